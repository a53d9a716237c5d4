"""What the fused optimizers for PyTorch share; part of `tbptt_fast.torch.optim`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from ..ops_optim import NonFinite
from . import _views
from ._views import Batch, Group, ParameterView, array_of, check_tensor, dense_order


def number(value: Any, name: str) -> Any:
    """Read an option, which may be a tensor of one element.

    Raises:
        ValueError: it is on a GPU.
    """
    if not isinstance(value, torch.Tensor):
        return value
    if value.is_cuda:
        raise ValueError(
            f"{name}: expected a number or a tensor on the device cpu, got one on {value.device}: "
            "every step would have to wait for it"
        )
    return value.item()


def option(group: Group, name: str) -> Any:
    """An option of the group; see `number`."""
    return number(group[name], name)


class Fused(torch.optim.Optimizer):
    """What the optimizers share: arrays over the tensors, one norm, and the errors."""

    _counts_steps = True

    def __init__(
        self,
        params: Any,
        *args: Any,
        max_norm: float | None = None,
        non_finite: NonFinite | None = None,
        **options: Any,
    ) -> None:
        self.max_norm = max_norm
        self.non_finite = non_finite
        self.grad_norm: Any = None  # a float, or a tensor on a GPU
        self._views: dict[int, ParameterView] = {}
        super().__init__(params, *args, **options)
        # torch's fused kernels unscale gradients themselves; here GradScaler has to do it.
        self.__dict__.pop("_step_supports_amp_scaling", None)

    # What differs between the optimizers.

    def _state_names(self, group: Group) -> tuple[str, ...]:
        """The state tensors of a parameter, as torch calls them, in the order of `_call`."""
        raise NotImplementedError

    def _stage(self, view: ParameterView, group: Group) -> int:
        """What parameters of one native call have to share: the number of this step, say."""
        raise NotImplementedError

    def _call(self, batch: Batch, max_norm: float | None, norm: Any) -> tuple[Any, bool]:
        """The native call: clip by max_norm, with this norm if it is given, and update.

        (norm, applied): on a GPU what is not finite shows in the norm, and applied is True.
        """
        raise NotImplementedError

    # What torch.optim.Optimizer offers.

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Clip and update in place all parameters that have a gradient.

        Args:
            closure: computes the loss again, and the gradients; called once, before the update.

        Returns:
            What the closure returns, else None.

        Raises:
            FloatingPointError: a gradient is not finite, and `non_finite` is "raise".
            RuntimeError: the first step is captured in a graph.
            TypeError, ValueError: see the module's first lines. Nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        made: list[tuple[torch.Tensor, str]] = []
        applied = False
        try:
            batches = self._batches(made)
            if made and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    f"{type(self).__name__}: expected a step before one is captured in a graph, "
                    "which would begin with fresh states whenever it is replayed"
                )
            applied = self._update(batches)
            if not applied and self._raises(batches):
                raise FloatingPointError(self._first_non_finite())
        finally:
            if not applied:
                self._forget(made)
        for batch in batches:
            for view in batch.views:
                view.fresh = False
                if view.step is not None and applied and not view.on_gpu:
                    view.step[()] += 1
                if applied:
                    torch.autograd.graph.increment_version(view.param)
        return loss

    def add_param_group(self, param_group: Group) -> None:
        """Add a group as torch does; if it is refused, the optimizer stays as it was."""
        super().add_param_group(param_group)
        group, index = self.param_groups[-1], len(self.param_groups) - 1
        try:
            self._check_options(group)
            for i, param in enumerate(group["params"]):
                name = self._name(index, i)
                check_tensor(param, name)
                dense_order(param, name)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def __getstate__(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("max_norm", "non_finite", "grad_norm")}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        defaults = state.get("defaults", self.__dict__.get("defaults", {}))
        for name in ("max_norm", "non_finite"):
            if name in state:
                setattr(self, name, state[name])
        for group in state["param_groups"]:
            self._check_options({**defaults, **group})
        super().__setstate__(state)
        self._views = {}

    # The parts of a step.

    def _batches(self, made: list[tuple[torch.Tensor, str]]) -> list[Batch]:
        """All parameters with gradients, by native calls; `made` collects states that are new."""
        batches: list[Batch] = []
        total = 0
        for index, group in enumerate(self.param_groups):
            self._check_options(group)
            total += len(group["params"])
            names = self._state_names(group)
            found: dict[tuple[Any, ...], Batch] = {}
            for i, param in enumerate(group["params"]):
                grad = param.grad
                if grad is None:
                    continue
                view = self._views.get(id(param))
                if view is None or not view.is_current(param, self.state.get(param), names):
                    view = self._new_view(param, group, names, self._name(index, i), made)
                key = view.dtype, self._stage(view, group), view.place
                batch = found.get(key)
                if batch is None:
                    batch = found[key] = Batch(group, key[1], len(names))
                    batches.append(batch)
                where = functools.partial(self._name, index, i)  # for errors only
                batch.add(view, view.grad_array(grad, where))
        if len(self._views) > total:  # parameters were taken out of a group
            ours = {id(p) for group in self.param_groups for p in group["params"]}
            self._views = {key: view for key, view in self._views.items() if key in ours}
        return batches

    def _new_view(
        self,
        param: torch.Tensor,
        group: Group,
        names: tuple[str, ...],
        where: str,
        made: list[tuple[torch.Tensor, str]],
    ) -> ParameterView:
        view = ParameterView(param, where)
        counted = self._counts_steps
        if not names and not counted:  # torch leaves no entry then
            state: Any = self.state.get(param, {})
        else:
            state = self.state[param]
        if counted:
            if "step" not in state:
                wide = torch.get_default_dtype() == torch.float64 and not group.get("fused")
                dtype = torch.float64 if wide and not view.on_gpu else torch.float32
                state["step"] = torch.zeros((), dtype=dtype, device=view.device)
                made.append((param, "step"))
            check_tensor(state["step"], f"step of {where}")
            state["step"] = step = view.counter(state["step"])
            view.step = array_of(step, None)
            view.state_tensors.append(("step", step, step.data_ptr()))
        for name in names:
            tensor = state.get(name)
            if tensor is None:
                tensor = torch.zeros_like(param, memory_format=torch.preserve_format)
                made.append((param, name))
                view.fresh = True
            check_tensor(tensor, f"{name} of {where}")
            if tensor.device != param.device:
                raise TypeError(
                    f"{name} of {where}: expected a tensor on {param.device}, got {tensor.device}"
                )
            if tensor.dtype != param.dtype:
                raise TypeError(f"{name} of {where}: expected {param.dtype}, got {tensor.dtype}")
            if tensor.shape != param.shape:
                raise ValueError(
                    f"{name} of {where}: expected shape {list(param.shape)}, "
                    f"got {list(tensor.shape)}"
                )
            array = array_of(tensor, view.order)
            if not _views.is_contiguous(array):  # loaded in another order than the parameter's
                tensor = torch.empty_like(param, memory_format=torch.preserve_format).copy_(tensor)
                array = array_of(tensor, view.order)
            state[name] = tensor
            view.state_tensors.append((name, tensor, tensor.data_ptr()))
            view.state_arrays.append(array)
        view.names = names
        self._views[id(param)] = view
        return view

    def _update(self, batches: list[Batch]) -> bool:
        """One norm over everything, then the updates; whether they were made."""
        if len(batches) == 1:
            self.grad_norm, applied = self._call(batches[0], self.max_norm, None)
        else:
            self.grad_norm = norm = _views.norm_of(batches)
            applied = not (isinstance(norm, float) and math.isnan(norm))
            for batch in batches if applied else ():
                here = norm.to(batch.device) if isinstance(norm, torch.Tensor) else norm
                self._call(batch, self.max_norm, here if batch.on_gpu else float(here))
        if not isinstance(self.grad_norm, float) and self._waits(batches):
            applied = not math.isnan(float(self.grad_norm))
        return applied

    def _raises(self, batches: list[Batch]) -> bool:
        if self.non_finite is None:
            return not any(batch.on_gpu for batch in batches)
        return self.non_finite == "raise"

    def _waits(self, batches: list[Batch]) -> bool:
        """Whether the host has to know at once what became of a step on a GPU."""
        return self._raises(batches) or any(batch.stage == 0 for batch in batches)

    def _forget(self, made: list[tuple[torch.Tensor, str]]) -> None:
        """Take back the states that were made for a step that was not."""
        for param, name in made:
            self._views.pop(id(param), None)
            del self.state[param][name]
            if not self.state[param]:
                del self.state[param]

    def _check_options(self, group: Group) -> None:
        kind = type(self).__name__
        for name in ("capturable", "differentiable"):
            counts_on = name == "capturable" and any(map(_views.is_on_gpu, group["params"]))
            if group.get(name) and not counts_on:
                raise ValueError(
                    f"{kind}: {name}: expected False, got {group[name]!r}: "
                    "no native kernel does that"
                )
        if self.non_finite not in (None, "raise", "skip"):
            raise ValueError(
                f"{kind}: non_finite: expected 'raise' or 'skip', got {self.non_finite!r}"
            )
        # The native op knows the ranges: an update of no arrays.
        self._call(Batch(group, states=len(self._state_names(group))), self.max_norm, None)

    def _name(self, group: int, index: int) -> str:
        names = self.param_groups[group].get("param_names")
        known = f" ({names[index]})" if names else ""
        return f"{type(self).__name__}: parameter {index} of group {group}{known}"

    def _first_non_finite(self) -> str:
        for index, group in enumerate(self.param_groups):
            for i, param in enumerate(group["params"]):
                if param.grad is not None and not bool(torch.isfinite(param.grad).all()):
                    return f"gradient of {self._name(index, i)}: non-finite gradient"
        return f"{type(self).__name__}: non-finite gradient"
