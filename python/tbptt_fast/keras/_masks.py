"""Sequences with masked steps, for kernels that know no masks; part of `tbptt_fast.keras`.

A masked step does nothing: states go past it, and the output before it is repeated. So the steps of
a row that count are moved to its front, the kernel runs over all, and each step's output is fetched
from where the last one that counts went. That is exact for any mask, and so are the gradients.
"""

from __future__ import annotations

from math import prod

from keras import ops

from ._backend import Tensor

# The sigmoid of it is 1, and of its negative 0: of gates that let c pass as it is.
SHUT = 1e4


def _select(condition: Tensor, x: Tensor, otherwise: Tensor) -> Tensor:
    """x [S, B, …] where the condition [S, B] holds."""
    axes = tuple(range(2, len(x.shape)))
    return ops.where(ops.expand_dims(condition, axes) if axes else condition, x, otherwise)


class PackedSteps:
    """The order of steps that a mask, bool [T, B], asks for; True is a step that counts."""

    def __init__(self, mask: Tensor) -> None:
        steps, self._rows = ops.shape(mask)[0], ops.shape(mask)[1]
        self._mask = mask
        self._time = ops.expand_dims(ops.arange(steps, dtype="int32"), 1)
        # all keys differ, so that any sort will do
        self._order = ops.argsort(ops.where(mask, self._time, self._time + steps), axis=0)
        self._count = ops.cumsum(ops.cast(mask, "int32"), axis=0)  # up to and with each step
        self._total = self._count[-1:]
        self._late: Tensor | None = None  # bool [1, B]: a reset behind the last step that counts

    def _take(self, x: Tensor, steps: Tensor) -> Tensor:
        """x[steps[s, b], b] for x [T, B, …] and steps [S, B]."""
        size = x.shape[2:]
        places = ops.cast(steps, "int32") * self._rows + ops.arange(self._rows, dtype="int32")
        rows = ops.reshape(x, (-1, prod(size)) if size else (-1,))
        return ops.reshape(ops.take(rows, places, axis=0), (*ops.shape(steps), *size))

    def pack(self, x: Tensor) -> Tensor:
        """x [T, B, …] with the steps that count in front."""
        return self._take(x, self._order)

    def pack_resets(self, is_init: Tensor) -> Tensor:
        """The resets, bool [T, B]; one before masked steps holds for the step behind them."""
        seen = ops.cumsum(ops.cast(is_init, "int32"), axis=0)
        at = self._take(seen, self._order)
        before = ops.concatenate([ops.zeros_like(at[:1]), at[:-1]], axis=0)
        counts = ops.less(self._time, self._total)
        last = ops.max(ops.where(counts, at, ops.zeros_like(at)), axis=0, keepdims=True)
        self._late = ops.greater(seen[-1:], last)
        return ops.logical_and(ops.greater(at, before), counts)

    def padding(self, dtype: str) -> Tensor:
        """1 at the steps behind those that count, else 0 [T, B]."""
        return ops.cast(ops.greater_equal(self._time, self._total), dtype)

    def outputs(self, out: Tensor, first: Tensor, zero: bool, every: bool) -> Tensor:
        """What the layer puts out at every step, or at the last one alone [1, B, …].

        `first` [B, …] is the output before the first step that counts; with `zero` masked steps put
        out zeros instead.
        """
        count = self._count if every else self._total
        found = self._last_of(out, count, first)
        if zero:
            found = _select(self._mask if every else self._mask[-1:], found, ops.zeros_like(found))
        return found

    def last(self, out: Tensor, initial: Tensor) -> Tensor:
        """The state behind all steps [B, …]; that before them in rows where none counts."""
        return self.after_resets(self._last_of(out, self._total, initial)[0])

    def after_resets(self, state: Tensor) -> Tensor:
        """A last state [B, …], zero where a reset is behind the last step that counts."""
        if self._late is None:
            return state
        one = ops.expand_dims(state, 0)
        return _select(self._late, ops.zeros_like(one), one)[0]

    def _last_of(self, out: Tensor, count: Tensor, first: Tensor) -> Tensor:
        found = self._take(out, ops.maximum(count - 1, 0))
        return _select(ops.greater(count, 0), found, ops.expand_dims(first, 0))
