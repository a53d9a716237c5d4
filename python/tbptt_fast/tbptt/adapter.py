"""What `TBPTT(k="adaptive")` remembers of its stream to measure how gradients decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._types import Array
from .adaptive import AdaptiveK, adaptive_k
from .measure import measure_lags

if TYPE_CHECKING:
    from tbptt_fast.nn import Module

    from .trainer import Loss

Flags = NDArray[np.bool_]

_LOSSES = 256  # measured in all: so many rows, or the rows of several steps


class _Window(NamedTuple):
    x: Array
    y: Array
    is_init: Flags | None
    state: Any  # enters the history, or the window where there is none
    history: Array | None
    history_init: Flags | None


class Adapter:
    """The newest windows of a stream, at least 2·max_lag steps, and when to look at them again."""

    def __init__(
        self,
        delta: float,
        max_lag: int,
        tau: int | None,
        k_min: int,
        k_max: int,
        block: int | None,
    ) -> None:
        self.block = 50 * max_lag if block is None else block
        if max_lag < 1 or self.block < 1:
            raise ValueError(
                f"TBPTT: expected max_lag and block of at least 1, got {max_lag} and {self.block}"
            )
        self.max_lag = max_lag
        self._options: dict[str, Any] = {
            "delta": delta,
            "tau": tau,
            "k_min": k_min,
            "k_max": k_max,
        }
        adaptive_k(np.ones(max_lag + 1), **self._options)  # which checks them
        self._left = 0  # steps until the block ends
        self._recent: list[_Window] = []
        self._steps = 0

    @property
    def due(self) -> bool:
        """Whether a block is over and enough steps are at hand."""
        return self._left <= 0 and self._steps >= 2 * self.max_lag

    def observe(
        self,
        x: Array,
        y: Array,
        is_init: Flags | None,
        state: Any,
        history: Array | None,
        history_init: Flags | None,
    ) -> None:
        """Remember a window, in own copies, and with the state and history that entered it."""
        if self._recent and self._recent[-1].x.shape[1:] != x.shape[1:]:
            self._recent, self._steps = [], 0  # rows of another stream
        flags = None if is_init is None else is_init.copy()
        if state is None and history is None:  # a stream begins, maybe behind another one
            flags = np.zeros(x.shape[:2], np.bool_) if flags is None else flags
            flags[0] = True
        self._recent.append(_Window(x.copy(), y.copy(), flags, state, history, history_init))
        self._steps += len(x)
        self._left -= len(x)
        while self._steps - len(self._recent[0].x) >= 2 * self.max_lag:
            self._steps -= len(self._recent.pop(0).x)

    def choose(self, model: Module, loss: Loss) -> AdaptiveK:
        """Measure the newest windows with the weights as they are, and begin a new block."""
        first = self._recent[0]
        state = first.state
        if first.history is not None:
            _, state = model(first.history, state, is_init=first.history_init)
        flags = None
        if any(window.is_init is not None for window in self._recent):
            flags = np.concatenate([_flags(window) for window in self._recent])
        found = measure_lags(
            model,
            loss,
            np.concatenate([window.x for window in self._recent]),
            np.concatenate([window.y for window in self._recent]),
            self.max_lag,
            state=state,
            is_init=flags,
            losses=max(1, _LOSSES // first.x.shape[1]),
        )
        self._left = self.block
        return adaptive_k(found.phi, gradient=found.gradient, **self._options)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"left": self._left, "recent": [list(window) for window in self._recent]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved stream."""
        self._left = int(state["left"])
        self._recent = [_Window(*window) for window in state["recent"]]
        self._steps = sum(len(window.x) for window in self._recent)


def _flags(window: _Window) -> Flags:
    return np.zeros(window.x.shape[:2], np.bool_) if window.is_init is None else window.is_init
