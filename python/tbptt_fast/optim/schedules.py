"""Learning-rate schedules: pure functions of a counter, saved and restored with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .._state import check_names
from .optimizers import Optimizer
from .options import check_kind, check_options


class Schedule:
    """Base of the schedules: `lr_at` is a pure function of the number of steps made.

    A schedule takes the optimizer's rate at construction as `base_lr` and sets the rate of step 0;
    call `step` after every update, or after every epoch if the counts are meant in epochs.
    """

    def __init__(self, optimizer: Optimizer, **options: Any) -> None:
        self.optimizer = optimizer
        self.steps = 0
        self._options = check_options(type(self).__name__, {"base_lr": optimizer.lr, **options})
        self._set()

    def _set(self) -> float:
        self.optimizer.lr = self.lr_at(self.steps)
        return self.optimizer.lr

    def lr_at(self, step: int) -> float:
        """Return the learning rate after `step` steps; changes nothing."""
        raise NotImplementedError(f"{type(self).__name__} does not implement lr_at")

    def step(self) -> float:
        """Advance by one, set the optimizer's learning rate and return it."""
        self.steps += 1
        return self._set()

    def state_dict(self) -> dict[str, Any]:
        """Return the counter and the options."""
        return {
            "kind": type(self).__name__,
            "step": self.steps,
            "options": dict(self._options),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned and set the optimizer's rate to match.

        Raises ValueError if anything does not fit; nothing is changed then.
        """
        self._check(state)
        self.steps, self._options = int(state["step"]), dict(state["options"])
        self._set()

    def _check(self, state: Mapping[str, Any]) -> None:
        self._check_own(state)

    def _check_own(self, state: Mapping[str, Any], *names: str) -> None:
        where = check_kind(self, state, *names)
        check_names(f"{where}: options", self._options, state["options"])
        check_options(where, state["options"])


class ConstantLR(Schedule):
    """The same rate for ever: lr = base_lr; for `WarmUp` to wrap.

    >>> import numpy as np
    >>> from tbptt_fast import optim
    >>> ConstantLR(optim.SGD({"w": np.ones(1)}, 0.5)).lr_at(1000)
    0.5
    """

    def lr_at(self, step: int) -> float:
        return float(self._options["base_lr"])


class ExponentialLR(Schedule):
    """Decay by a factor every step: lr = base_lr · gamma^step.

    Raises ValueError for gamma outside (0, 1]. Source: torch.optim.lr_scheduler.ExponentialLR.

    >>> import numpy as np
    >>> from tbptt_fast import optim
    >>> ExponentialLR(optim.SGD({"w": np.ones(1)}, 0.8), gamma=0.5).lr_at(3)
    0.1
    """

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        super().__init__(optimizer, gamma=gamma)

    def lr_at(self, step: int) -> float:
        return float(self._options["base_lr"] * self._options["gamma"] ** step)


class StepLR(Schedule):
    """Decay by a factor every `step_size` steps: lr = base_lr · gamma^floor(step / step_size).

    Raises ValueError for a step_size below 1 or gamma outside (0, 1]. Source:
    torch.optim.lr_scheduler.StepLR.

    >>> import numpy as np
    >>> from tbptt_fast import optim
    >>> StepLR(optim.SGD({"w": np.ones(1)}, 0.8), step_size=10, gamma=0.5).lr_at(25)
    0.2
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        super().__init__(optimizer, step_size=step_size, gamma=gamma)

    def lr_at(self, step: int) -> float:
        options = self._options
        return float(options["base_lr"] * options["gamma"] ** (step // options["step_size"]))


class CosineLR(Schedule):
    """Half a cosine from base_lr down to min_lr in `total_steps` steps, and min_lr afterwards.

    lr = min_lr + (base_lr - min_lr) · (1 + cos(π · step / total_steps)) / 2.
    Raises ValueError for total_steps below 1 or a negative min_lr. Source: Loshchilov and Hutter,
    arXiv:1608.03983, equation 5, without restarts.

    >>> import numpy as np
    >>> from tbptt_fast import optim
    >>> CosineLR(optim.SGD({"w": np.ones(1)}, 1.0), total_steps=100).lr_at(50)
    0.5
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, min_lr: float = 0.0) -> None:
        super().__init__(optimizer, total_steps=total_steps, min_lr=min_lr)

    def lr_at(self, step: int) -> float:
        base, low = self._options["base_lr"], self._options["min_lr"]
        done = min(step / self._options["total_steps"], 1.0)
        return float(low + (base - low) * (1 + math.cos(math.pi * done)) / 2)


class WarmUp(Schedule):
    """Linear rise to the rate at which `inner` starts, then `inner`, counted from there.

    lr = inner.lr_at(0) · (step + 1) / (steps + 1) for step < steps, then inner.lr_at(step - steps).
    Raises ValueError for steps below 1. Source: Goyal et al., arXiv:1706.02677, section 2.2.

    >>> import numpy as np
    >>> from tbptt_fast import optim
    >>> warm = WarmUp(ConstantLR(optim.SGD({"w": np.ones(1)}, 0.5)), steps=4)
    >>> [warm.lr_at(step) for step in (0, 1, 4, 99)]
    [0.1, 0.2, 0.5, 0.5]
    """

    def __init__(self, inner: Schedule, steps: int) -> None:
        self.inner = inner
        super().__init__(inner.optimizer, warm_up_steps=steps)

    def lr_at(self, step: int) -> float:
        steps = int(self._options["warm_up_steps"])
        if step >= steps:
            return self.inner.lr_at(step - steps)
        return self.inner.lr_at(0) * (step + 1) / (steps + 1)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "inner": self.inner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._check(state)
        self.inner.load_state_dict(state["inner"])
        super().load_state_dict(state)

    def _check(self, state: Mapping[str, Any]) -> None:
        self._check_own(state, "inner")
        self.inner._check(state["inner"])
