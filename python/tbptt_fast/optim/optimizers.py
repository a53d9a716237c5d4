"""SGD, RMSprop, Adam and AdamW: names and options for the fused native updates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from .. import ops
from .._state import check_arrays, check_names, copy_into
from .._types import Array
from .options import check_kind

Arrays = list[Array]
Slots = dict[str, dict[str, Array]]


class Optimizer:
    """Base of the optimizers: named parameters, options, and the arrays kept between steps.

    `params` are live arrays, C-contiguous and writable, all of one dtype. An option has the name,
    the meaning and the range that it has in the native op.
    """

    def __init__(self, params: Mapping[str, Array], slots: tuple[str, ...], **options: Any) -> None:
        kind = type(self).__name__
        if not params:
            raise ValueError(f"{kind}: params: expected at least one parameter, got none")
        if len({id(array) for array in params.values()}) < len(params):
            raise ValueError(f"{kind}: params: one array has several names, expected one each")
        self.params = dict(params)
        self.steps = 0
        self._options = options
        self._slots: Slots = {
            slot: {name: np.zeros_like(array, order="C") for name, array in params.items()}
            for slot in slots
        }
        self._check(options)

    def _update(
        self, params: Arrays, grads: Arrays, slots: Mapping[str, Arrays], options: dict[str, Any]
    ) -> ops.StepResult:
        raise NotImplementedError(f"{type(self).__name__} does not implement _update")

    def _check(self, options: dict[str, Any]) -> None:
        """Let the native op check the options: a step over no arrays at all."""
        self._update([], [], {slot: [] for slot in self._slots}, options)

    @property
    def lr(self) -> float:
        """The learning rate of the next step; settable."""
        return float(self._options["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        self._check({**self._options, "lr": value})
        self._options["lr"] = float(value)

    def step(self, grads: Mapping[str, Array]) -> ops.StepResult:
        """Update the parameters in place; names that this optimizer does not own are ignored.

        Returns (norm, applied): the global norm before clipping by norm, and whether the update
        was made. Raises ValueError for a missing gradient; with non_finite="raise"
        FloatingPointError for a gradient that is not finite, before anything has changed.
        """
        missing = [name for name in self.params if name not in grads]
        if missing:
            raise ValueError(f"{type(self).__name__}.step: grads: missing {missing}")
        result = self._update(
            list(self.params.values()),
            [grads[name] for name in self.params],
            {slot: list(arrays.values()) for slot, arrays in self._slots.items()},
            self._options,
        )
        self.steps += result.applied
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return copies of all that a later `load_state_dict` needs to continue bit for bit."""
        return {
            "kind": type(self).__name__,
            "step": self.steps,
            "options": dict(self._options),
            "state": {
                slot: {name: array.copy() for name, array in arrays.items()}
                for slot, arrays in self._slots.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore counters, options and arrays, as PyTorch does, the learning rate included.

        Raises ValueError or TypeError if anything does not fit; nothing is changed then.
        """
        where = check_kind(self, state, "state")
        check_names(f"{where}: options", self._options, state["options"])
        self._check(state["options"])
        check_names(f"{where}: state", self._slots, state["state"])
        for slot, arrays in self._slots.items():
            check_names(f"{where}: {slot}", arrays, state["state"][slot])
            check_arrays(f"{where}: {slot}", arrays, state["state"][slot])
        self.steps, self._options = int(state["step"]), dict(state["options"])
        for slot, arrays in self._slots.items():
            copy_into(arrays, state["state"][slot])

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self._options.items())
        return f"{type(self).__name__}({len(self.params)} parameters, {options})"


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, Nesterov's look-ahead and L2 weight decay.

    Raises ValueError or TypeError for an option out of range. Source:
    torch.optim.SGD; Sutskever et al. (2013).

    >>> w = np.ones(3, np.float32)
    >>> SGD({"w": w}, 0.5, max_norm=1.0).step({"w": np.array([2, 0, 0], np.float32)}).norm
    2.0
    >>> w.round(3).tolist()
    [0.5, 1.0, 1.0]
    """

    def __init__(
        self,
        params: Mapping[str, Array],
        lr: float,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        max_norm: float | None = None,
        clip_value: float | None = None,
        non_finite: str = "raise",
    ) -> None:
        super().__init__(
            params,
            ("momentum",) if momentum else (),
            lr=lr,
            mu=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            max_norm=max_norm,
            clip_value=clip_value,
            non_finite=non_finite,
        )

    def _update(
        self, params: Arrays, grads: Arrays, slots: Mapping[str, Arrays], options: dict[str, Any]
    ) -> ops.StepResult:
        return ops.sgd_step(params, grads, slots.get("momentum"), **options)


class RMSprop(Optimizer):
    """Gradients divided by a running root mean square, with optional momentum.

    Raises ValueError or TypeError for an option out of range. Source:
    torch.optim.RMSprop; Tieleman and Hinton, Coursera lecture 6.5 (2012).

    >>> w = np.ones(1)
    >>> RMSprop({"w": w}, 0.1, alpha=0.75).step({"w": np.array([3.0])}).applied
    True
    >>> w.round(6).tolist()
    [0.8]
    """

    def __init__(
        self,
        params: Mapping[str, Array],
        lr: float,
        *,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        max_norm: float | None = None,
        clip_value: float | None = None,
        non_finite: str = "raise",
    ) -> None:
        super().__init__(
            params,
            ("square_avg", "momentum") if momentum else ("square_avg",),
            lr=lr,
            alpha=alpha,
            eps=eps,
            mu=momentum,
            weight_decay=weight_decay,
            max_norm=max_norm,
            clip_value=clip_value,
            non_finite=non_finite,
        )

    def _update(
        self, params: Arrays, grads: Arrays, slots: Mapping[str, Arrays], options: dict[str, Any]
    ) -> ops.StepResult:
        momentum = slots.get("momentum")
        return ops.rmsprop_step(params, grads, slots["square_avg"], momentum, **options)


class Adam(Optimizer):
    """Adam with bias correction; weight decay is added to the gradient.

    Raises ValueError or TypeError for an option out of range. Source:
    torch.optim.Adam; Kingma and Ba, arXiv:1412.6980, algorithm 1.

    >>> w = np.ones(2)
    >>> Adam({"w": w}, 0.1).step({"w": np.array([5.0, -1e-3])}).applied
    True
    >>> w.round(3).tolist()
    [0.9, 1.1]
    """

    _decoupled: ClassVar[bool] = False

    def __init__(
        self,
        params: Mapping[str, Array],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_norm: float | None = None,
        clip_value: float | None = None,
        non_finite: str = "raise",
    ) -> None:
        super().__init__(
            params,
            ("exp_avg", "exp_avg_sq"),
            lr=lr,
            beta1=betas[0],
            beta2=betas[1],
            eps=eps,
            weight_decay=weight_decay,
            max_norm=max_norm,
            clip_value=clip_value,
            non_finite=non_finite,
        )

    def _update(
        self, params: Arrays, grads: Arrays, slots: Mapping[str, Arrays], options: dict[str, Any]
    ) -> ops.StepResult:
        return ops.adam_step(
            params,
            grads,
            slots["exp_avg"],
            slots["exp_avg_sq"],
            step=self.steps + 1,
            decoupled=self._decoupled,
            **options,
        )


class AdamW(Adam):
    """Adam whose weight decay acts on the parameters themselves, not through the gradient.

    Raises ValueError or TypeError for an option out of range. Source:
    torch.optim.AdamW; Loshchilov and Hutter, arXiv:1711.05101, algorithm 2.

    >>> w = np.ones(2)
    >>> AdamW({"w": w}, 0.1, weight_decay=0.5).step({"w": np.zeros(2)}).norm
    0.0
    >>> w.round(6).tolist()
    [0.95, 0.95]
    """

    _decoupled = True

    def __init__(
        self,
        params: Mapping[str, Array],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        max_norm: float | None = None,
        clip_value: float | None = None,
        non_finite: str = "raise",
    ) -> None:
        super().__init__(
            params,
            lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            max_norm=max_norm,
            clip_value=clip_value,
            non_finite=non_finite,
        )
