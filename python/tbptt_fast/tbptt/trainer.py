"""The trainer: truncated backpropagation through time over a stream of windows.

BPTT(h = k2; h' = k1) of Williams and Peng (1990): every k1 steps one update, whose losses are the
newest k1 steps and whose backward pass runs through the newest k2 steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..cuda import _places
from .adapter import Adapter
from .adaptive import AdaptiveK
from .measure import check_model

if TYPE_CHECKING:
    from tbptt_fast.nn import Module
    from tbptt_fast.optim import Optimizer, Schedule

Array = NDArray[Any]
Flags = NDArray[np.bool_]


class Loss(Protocol):
    """Called with y [k, B, ...] and target [k, B, ...].

    Returns the loss summed over the items, its gradient for y, and how many items counted.
    """

    def __call__(self, y: Array, target: Array, /) -> tuple[float, Array, float]: ...


@dataclass(frozen=True)
class StepReport:
    """What one update did; `norm` is the gradient's norm before it was clipped."""

    loss_per_item: float
    count: float
    norm: float
    applied: bool


class TBPTT:
    """Trains `model` on windows that follow one another, one update per window.

    The state is carried from window to window, and no gradient crosses its border: with k1 = k2
    this is the usual chunked training. With k1 < k2 the trainer keeps the inputs of the last
    k2 - k1 steps and the state that entered them; each update replays them with the current
    weights in front of the new steps. Only the new steps have losses, so no gradient is counted
    twice, and each loss reaches at least k2 - k1 + 1 and at most k2 steps.

    The gradient is divided by k1 · batch whatever the length of the window, so that a short last
    window does not weigh more per item than the others; with `keep_last=False` it is left out.

    Instead of k1 and k2, `k` lets every loss reach at least k steps: k1 = k, k2 = 2k - 1. With
    k="adaptive" the trainer measures between blocks how the gradients decay and takes the smallest
    k whose bound on the relative bias is below `delta` (`measure_lags`, `adaptive_k`), beginning
    with k_max. `run` then wants pieces longer than k_max, which it cuts as k changes; for `step`,
    `k1` says after each update how long the next window may be.

    Args:
        model: a module with a state; for k="adaptive" one that `measure_lags` takes.
        loss, optimizer: see `Loss` and `tbptt_fast.optim`.
        k1, k2: see above; k2 = None means k1.
        k: instead of them a number, or "adaptive", which the following are for.
        delta: the relative bias to stay below.
        max_lag: the largest lag that is measured.
        tau, k_min, k_max: as for `adaptive_k`.
        block: steps of the stream between two measurements; None for 50·max_lag. The first one
            comes as soon as 2·max_lag steps were seen.
        on_choice: called with each AdaptiveK, for instance to adapt a learning rate to its k.
        schedule: moves once an update.
        keep_last: whether a window shorter than k1 makes an update too.

    Attributes:
        choice: the latest AdaptiveK of this run, or None.

    Raises ValueError for k2 < k1, which would drop losses, and for windows given twice or not;
    TypeError for a model that cannot be measured, or whose weights lie on a GPU, where
    `tbptt_fast.torch.windows` cuts the stream.

    >>> import numpy as np
    >>> from tbptt_fast import nn, optim
    >>> model = nn.Sequential(nn.GRU(1, 8, seed=1), nn.Linear(8, 1, seed=2))
    >>> def loss(y, target):
    ...     return float(((y - target) ** 2).sum()), 2 * (y - target), y.size
    >>> trainer = TBPTT(model, loss, optim.Adam(model.parameters(), lr=0.01), k1=10, k2=20)
    >>> wave = np.sin(np.arange(401, dtype=np.float32) / 5)[:, None, None]
    >>> first = trainer.run([(wave[:-1], wave[1:])])
    >>> for _ in range(10):
    ...     trainer.reset()
    ...     last = trainer.run([(wave[:-1], wave[1:])])
    >>> last < first / 10
    True
    """

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: Optimizer,
        *,
        k1: int | None = None,
        k2: int | None = None,
        k: int | Literal["adaptive"] | None = None,
        delta: float = 0.1,
        max_lag: int = 100,
        tau: int | None = None,
        k_min: int = 1,
        k_max: int | None = None,
        block: int | None = None,
        on_choice: Callable[[AdaptiveK], None] | None = None,
        schedule: Schedule | None = None,
        keep_last: bool = True,
    ) -> None:
        if any(map(_places.lies_on_gpu, model.parameters().values())):
            raise TypeError(
                "TBPTT: model: expected weights on the host, got some on a GPU, "
                "where tbptt_fast.torch.windows cuts the stream"
            )
        self._adapter: Adapter | None = None
        if k is not None and (k1 is not None or k2 is not None):
            raise ValueError(f"TBPTT: expected k or k1 and k2, got k = {k!r} and k1 or k2")
        if isinstance(k, str):
            if k != "adaptive":
                raise ValueError(f"TBPTT: k: expected a number or 'adaptive', got {k!r}")
            check_model(model)
            k = max_lag if k_max is None else k_max
            self._adapter = Adapter(delta, max_lag, tau, k_min, k, block)
        if k is not None:
            k1, k2 = k, 2 * k - 1
        if k1 is None:
            raise ValueError("TBPTT: expected k1 or k, got neither")
        k2 = k1 if k2 is None else k2
        if not 1 <= k1 <= k2:
            raise ValueError(f"TBPTT: expected 1 <= k1 <= k2, got k1 = {k1}, k2 = {k2}")
        self.model, self.loss, self.optimizer, self.schedule = model, loss, optimizer, schedule
        self.k1, self.k2, self.keep_last = k1, k2, keep_last
        self.choice: AdaptiveK | None = None
        self.on_choice = on_choice
        self.updates = 0
        self._buffer: Array | None = None
        self.reset()

    def reset(self) -> None:
        """Forget state and history: the next window begins a new stream."""
        self._state: Any = None  # enters the history, or the next window where there is none
        self._history: Array | None = None
        self._history_init: Flags | None = None

    def step(self, x: Array, y: Array, is_init: Flags | None = None) -> StepReport:
        """One update on the next window of the stream.

        Shapes: x [k, B, ...], y [k, B, ...], is_init [k, B]; 1 <= k <= k1.
        A row's state is zero where `is_init` is set. Where the optimizer skipped a gradient that
        is not finite (`applied` is False), the stream goes on from a zero state, since the old
        one may hold what spoiled the gradient.
        """
        steps, batch = x.shape[:2]
        if not 1 <= steps <= self.k1:
            raise ValueError(f"TBPTT: expected a window of 1 to {self.k1} steps, got {steps}")
        if is_init is not None and is_init[0].all():
            self.reset()  # nothing before this window matters: nothing needs replaying
            is_init = is_init if is_init[1:].any() else None
        inputs, flags = self._after_history(x, is_init)

        # The next window's history begins at `cut`: two pieces, to know the state between them.
        cut = max(0, len(inputs) - (self.k2 - self.k1))
        parts = slice(0, cut), slice(cut, len(inputs))
        pieces = [part for part in parts if part.start < part.stop]
        outputs, tapes, states = [], [], [self._state]
        for part in pieces:
            piece_init = None if flags is None else flags[part]
            out, state, tape = self.model.forward(inputs[part], states[-1], is_init=piece_init)
            outputs.append(out)
            tapes.append(tape)
            states.append(state)
        out = outputs[0] if len(outputs) == 1 else np.concatenate(outputs)
        summed, grad, count = self.loss(out[len(inputs) - steps :], y)
        grad = self._whole_gradient(grad, len(inputs), 1.0 / (self.k1 * batch))

        total: dict[str, Array] | None = None
        grad_state = None
        for part, tape in zip(reversed(pieces), reversed(tapes), strict=True):
            found = self.model.backward(tape, grad[part], grad_state=grad_state, needs_x=False)
            grad_state = found.state
            if total is None:
                total = found.params
            else:
                for name, value in found.params.items():
                    total[name] += value
        assert total is not None
        result = self.optimizer.step(total)

        # Only now: an update that raised has left the trainer as it was.
        if self.schedule is not None:
            self.schedule.step()
        self.updates += 1
        if result.applied:
            if self._adapter is not None:
                entry = self._state, self._history, self._history_init
                self._adapter.observe(x, y, is_init, *entry)
            self._state = states[1] if cut else states[0]
            self._keep(inputs[cut:], None if flags is None else flags[cut:])
        else:
            self.reset()
        if self._adapter is not None and self._adapter.due:
            self._adapt(self._adapter)
        return StepReport(summed / count if count else 0.0, count, result.norm, result.applied)

    def run(self, windows: Iterable[tuple[Any, ...]]) -> float:
        """Train on every (x, y) or (x, y, is_init), in order; returns the mean loss per item.

        Pieces longer than k1 steps are cut into windows here.
        """
        summed = items = 0.0
        for x, y, *rest in windows:
            is_init: Flags | None = rest[0] if rest else None
            begin = 0
            while begin < len(x):
                part = slice(begin, begin + self.k1)
                begin = part.stop
                if part.stop > len(x) and not self.keep_last:
                    self.reset()  # the steps left out are a gap: the state belongs before it
                    continue
                report = self.step(x[part], y[part], None if is_init is None else is_init[part])
                summed += report.loss_per_item * report.count
                items += report.count
        return summed / items if items else math.nan

    def evaluate(self, windows: Iterable[tuple[Any, ...]]) -> float:
        """Mean loss per item, without updates, dropout or any effect on the training state.

        The state is carried from window to window, beginning at zero.
        """
        summed = items = 0.0
        state: Any = None
        for x, y, *rest in windows:
            out, state = self.model(x, state, is_init=rest[0] if rest else None)
            loss, _, count = self.loss(out, y)
            summed += loss
            items += count
        return summed / items if items else math.nan

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides weights, optimizer and schedule."""
        return {
            "k1": self.k1,
            "k2": self.k2,
            "updates": self.updates,
            "state": self._state,
            "history": self._history,
            "history_init": self._history_init,
            "adapter": None if self._adapter is None else self._adapter.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved stream; ValueError if it was cut with another k1 or k2."""
        adapter = state.get("adapter")
        if (adapter is None) != (self._adapter is None):
            got = "adaptive" if self._adapter is None else "fixed"
            raise ValueError(
                f"TBPTT: expected the other kind of windows, got a state of {got} ones"
            )
        if self._adapter is not None and adapter is not None:
            self._adapter.load_state_dict(adapter)
            self.k1, self.k2 = int(state["k1"]), int(state["k2"])
        elif (state["k1"], state["k2"]) != (self.k1, self.k2):
            raise ValueError(
                f"TBPTT: expected k1 = {self.k1}, k2 = {self.k2}, "
                f"got k1 = {state['k1']}, k2 = {state['k2']}"
            )
        updates, entering = int(state["updates"]), state["state"]
        self._history, self._history_init = state["history"], state["history_init"]
        self.updates, self._state = updates, entering

    def _adapt(self, adapter: Adapter) -> None:
        """Measure and choose k anew."""
        self.choice = adapter.choose(self.model, self.loss)
        self.k1, self.k2 = self.choice.k, 2 * self.choice.k - 1
        if self.on_choice is not None:
            self.on_choice(self.choice)

    def _after_history(self, x: Array, is_init: Flags | None) -> tuple[Array, Flags | None]:
        """The new steps behind the steps to replay."""
        history, flags = self._history, self._history_init
        if history is None:
            return x, is_init
        inputs = np.concatenate([history, x])
        if flags is None and is_init is None:
            return inputs, None
        flags = np.zeros(history.shape[:2], np.bool_) if flags is None else flags
        is_init = np.zeros(x.shape[:2], np.bool_) if is_init is None else is_init
        return inputs, np.concatenate([flags, is_init])

    def _keep(self, history: Array, flags: Flags | None) -> None:
        """Own copies: the caller may reuse the arrays of a window."""
        self._history = history.copy() if len(history) else None
        self._history_init = flags.copy() if flags is not None and flags.any() else None

    def _whole_gradient(self, grad: Array, steps: int, scale: float) -> Array:
        """`scale` · grad for the new steps, zeros for the replayed ones before them.

        In a buffer that is kept: touching fresh pages for it costs more than filling it.
        """
        shape = (steps, *grad.shape[1:])
        if self._buffer is None or self._buffer.shape != shape or self._buffer.dtype != grad.dtype:
            self._buffer = np.empty(shape, grad.dtype)
        new = steps - len(grad)
        self._buffer[:new] = 0
        np.multiply(grad, scale, out=self._buffer[new:])
        return self._buffer
