"""PyTorch's SGD, RMSprop, Adam and AdamW with clipping and update in one fused native pass.

Each class is a subclass of that of torch.optim with the same name: arguments, parameter groups,
state and state dicts are torch's own, so either loads what the other has saved and goes on with
the same numbers, up to rounding. Two keywords are new:

- `max_norm`: clip by the global norm over all parameters of all groups, as
  torch.nn.utils.clip_grad_norm_ does: the factor is min(1, max_norm / (norm + 1e-6)). The norm
  before clipping is `grad_norm` afterwards, and `.grad` itself is left as it is.
- `non_finite`: what a gradient with a NaN or an infinity does, clipping or not: "raise" a
  FloatingPointError, or "skip" the step. Nothing has changed then, and `grad_norm` is NaN.

Parameters are dense, in CPU memory, float32 or float64; channels-last weights are dense, too. The
number of threads is `tbptt_fast.set_num_threads`', and the bits do not depend on it. `foreach` and
`fused` choose between kernels of torch; here they are accepted, kept, and change nothing.

Raised by all classes, at construction, by `add_param_group` and `load_state_dict` as by `step`:
    TypeError: a parameter, gradient or state of another device, layout or dtype.
    ValueError: `capturable` or `differentiable`, for which there is no kernel; an option out of
        the range of the native op (eps > 0, alpha < 1); a parameter with gaps between its elements.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from .. import _native
from ..ops_optim import NonFinite
from ._views import Batch, Group, ParameterView, array_of, check_tensor, dense_order

__all__ = ["SGD", "Adam", "AdamW", "RMSprop"]


def _number(value: Any) -> Any:
    """Read an option, which may be a tensor of one element."""
    return value.item() if isinstance(value, torch.Tensor) else value


class _Fused(torch.optim.Optimizer):
    """What the optimizers share: arrays over the tensors, one norm, and the errors."""

    _counts_steps = True

    def __init__(
        self,
        params: Any,
        *args: Any,
        max_norm: float | None = None,
        non_finite: NonFinite = "raise",
        **options: Any,
    ) -> None:
        self.max_norm = max_norm
        self.non_finite = non_finite
        self.grad_norm: float | None = None
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

    def _call(self, batch: Batch, max_norm: float | None, norm: float | None) -> tuple[float, bool]:
        """The native call: clip by max_norm, with this norm if it is given, and update."""
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
            applied = self._update(batches)
            if not applied and self.non_finite == "raise":
                raise FloatingPointError(self._first_non_finite())
        finally:
            if not applied:
                self._forget(made)
        for batch in batches:
            for view in batch.views:
                view.fresh = False
                if view.step is not None and applied:
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
            found: dict[tuple[torch.dtype, int], Batch] = {}
            for i, param in enumerate(group["params"]):
                grad = param.grad
                if grad is None:
                    continue
                view = self._views.get(id(param))
                if view is None or not view.is_current(param, self.state.get(param), names):
                    view = self._new_view(param, group, names, self._name(index, i), made)
                key = view.dtype, self._stage(view, group)
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
                state["step"] = torch.zeros((), dtype=torch.float64 if wide else torch.float32)
                made.append((param, "step"))
            step = state["step"]
            check_tensor(step, f"step of {where}")
            view.step = step.detach().numpy()
            view.state_tensors.append(("step", step, step.data_ptr()))
        for name in names:
            tensor = state.get(name)
            if tensor is None:
                tensor = torch.zeros_like(param, memory_format=torch.preserve_format)
                made.append((param, name))
                view.fresh = True
            check_tensor(tensor, f"{name} of {where}")
            if tensor.dtype != param.dtype:
                raise TypeError(f"{name} of {where}: expected {param.dtype}, got {tensor.dtype}")
            if tensor.shape != param.shape:
                raise ValueError(
                    f"{name} of {where}: expected shape {list(param.shape)}, "
                    f"got {list(tensor.shape)}"
                )
            array = array_of(tensor, view.order)
            if not array.flags.c_contiguous:  # loaded in another order than the parameter's
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
            return applied
        grads = [grad for batch in batches for grad in batch.grads]
        self.grad_norm = norm = _native.global_norm(grads, None)
        if math.isnan(norm):
            return False
        for batch in batches:
            self._call(batch, self.max_norm, norm)
        return True

    def _forget(self, made: list[tuple[torch.Tensor, str]]) -> None:
        """Take back the states that were made for a step that was not."""
        for param, name in made:
            self._views.pop(id(param), None)
            del self.state[param][name]
            if not self.state[param]:
                del self.state[param]

    def _check_options(self, group: Group) -> None:
        kind = type(self).__name__
        for option in ("capturable", "differentiable"):
            if group.get(option):
                raise ValueError(
                    f"{kind}: {option}: expected False, got {group[option]!r}: "
                    "no native kernel does that"
                )
        if self.non_finite not in ("raise", "skip"):
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


class SGD(_Fused, torch.optim.SGD):
    """Stochastic gradient descent with momentum, dampening, Nesterov's look-ahead and L2 decay.

    Arguments are torch.optim.SGD's, and the keywords max_norm and non_finite; for these and for
    what is raised see `tbptt_fast.torch.optim`.

    Source: torch.optim.SGD; Sutskever et al. (2013), "On the importance of initialization and
    momentum in deep learning".

    >>> import torch
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> w.grad = torch.tensor([3.0, 4.0])
    >>> optimizer = SGD([w], lr=0.5, max_norm=1.0)
    >>> optimizer.step()
    >>> optimizer.grad_norm, [round(x, 3) for x in w.tolist()]
    (5.0, [-0.3, -0.4])
    """

    _counts_steps = False

    def _state_names(self, group: Group) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def _stage(self, view: ParameterView, group: Group) -> int:
        return 0 if view.fresh and group["dampening"] else 1

    def _call(self, batch: Batch, max_norm: float | None, norm: float | None) -> tuple[float, bool]:
        group = batch.group
        return _native.sgd_step(
            batch.params,
            batch.grads,
            batch.state(0),
            _number(group["lr"]),
            _number(group["momentum"]),
            # The first momentum is the gradient, undamped.
            0.0 if batch.stage == 0 else _number(group["dampening"]),
            bool(group["nesterov"]),
            _number(group["weight_decay"]),
            bool(group["maximize"]),
            max_norm,
            None,
            "skip",
            norm,
        )


class RMSprop(_Fused, torch.optim.RMSprop):
    """Gradients divided by a running root mean square, centered or not, with optional momentum.

    Arguments are torch.optim.RMSprop's, and the keywords max_norm and non_finite; for these and
    for what is raised see `tbptt_fast.torch.optim`. The variance of the centered variant is kept
    from falling below zero by rounding, which gives a NaN in PyTorch.

    Source: torch.optim.RMSprop; Tieleman & Hinton (2012), Coursera lecture 6.5; Graves (2013),
    arXiv:1308.0850, equation 38.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.ones(1))
    >>> w.grad = torch.tensor([3.0])
    >>> RMSprop([w], lr=0.1, alpha=0.75).step()
    >>> round(w.item(), 4)
    0.8
    """

    def _state_names(self, group: Group) -> tuple[str, ...]:
        momentum = ("momentum_buffer",) if group["momentum"] else ()
        return ("square_avg", *momentum, *(("grad_avg",) if group["centered"] else ()))

    def _stage(self, view: ParameterView, group: Group) -> int:
        return 1

    def _call(self, batch: Batch, max_norm: float | None, norm: float | None) -> tuple[float, bool]:
        group = batch.group
        return _native.rmsprop_step(
            batch.params,
            batch.grads,
            batch.states[0],
            batch.states[1] if group["momentum"] else None,
            batch.states[-1] if group["centered"] else None,
            _number(group["lr"]),
            _number(group["alpha"]),
            _number(group["eps"]),
            _number(group["momentum"]),
            _number(group["weight_decay"]),
            bool(group["maximize"]),
            max_norm,
            None,
            "skip",
            norm,
        )


class _AdamStep(_Fused):
    """The step of Adam and AdamW."""

    _decoupled = False

    def _state_names(self, group: Group) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))

    def _stage(self, view: ParameterView, group: Group) -> int:
        assert view.step is not None
        return int(view.step.item()) + 1

    def _call(self, batch: Batch, max_norm: float | None, norm: float | None) -> tuple[float, bool]:
        group = batch.group
        beta1, beta2 = group["betas"]
        return _native.adam_step(
            batch.params,
            batch.grads,
            batch.states[0],
            batch.states[1],
            batch.state(2),
            batch.stage,
            _number(group["lr"]),
            _number(beta1),
            _number(beta2),
            _number(group["eps"]),
            _number(group["weight_decay"]),
            # The option is younger than PyTorch 2.4.
            bool(group.get("decoupled_weight_decay", self._decoupled)),
            bool(group["maximize"]),
            max_norm,
            None,
            "skip",
            norm,
        )


class Adam(_AdamStep, torch.optim.Adam):
    """Adam and AMSGrad with bias correction; weight decay is added to the gradient.

    Arguments are torch.optim.Adam's, and the keywords max_norm and non_finite; for these and for
    what is raised see `tbptt_fast.torch.optim`.

    Source: torch.optim.Adam; Kingma & Ba (2015), arXiv:1412.6980, algorithm 1; Reddi et al.
    (2018), "On the convergence of Adam and beyond".

    >>> import torch
    >>> w = torch.nn.Parameter(torch.ones(2))
    >>> w.grad = torch.tensor([0.3, -0.4])
    >>> optimizer = Adam([w], lr=0.1)
    >>> optimizer.step()
    >>> round(optimizer.grad_norm, 6), [round(x, 4) for x in w.tolist()]
    (0.5, [0.9, 1.1])
    """


class AdamW(_AdamStep, torch.optim.AdamW):
    """Adam whose weight decay acts on the parameters themselves, not through the gradient.

    Arguments are torch.optim.AdamW's, and the keywords max_norm and non_finite; for these and for
    what is raised see `tbptt_fast.torch.optim`.

    Source: torch.optim.AdamW; Loshchilov & Hutter (2019), arXiv:1711.05101, algorithm 2.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.ones(2))
    >>> w.grad = torch.zeros(2)
    >>> AdamW([w], lr=0.1, weight_decay=0.5).step()
    >>> [round(x, 4) for x in w.tolist()]
    [0.95, 0.95]
    """

    _decoupled = True
