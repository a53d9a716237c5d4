"""Full backpropagation through time in little memory: segments are run again when needed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .. import ops
from .._state import copy_into
from .._types import Array
from ..nn import Gradients, Module, Tape
from .places import functions_for, library_of

if TYPE_CHECKING:
    from .trainer import Flags, Loss


@dataclass(frozen=True, eq=False)
class FullGradient:
    """What a run over a whole sequence gives.

    Attributes:
        loss: summed over all items.
        count: how many items counted.
        state: the final state.
        grads: sums over all steps; `x` is None unless asked for.
        nbytes: the most bytes of tapes and carried states that were kept at a time.
    """

    loss: float
    count: float
    state: Any
    grads: Gradients
    nbytes: int


def checkpointed(segment: int | None = None, *, recompute: bool = True) -> Checkpointed:
    """Full backpropagation that keeps the states between segments and one segment's tape.

    The forward pass leaves nothing but the state that enters each segment of `segment` steps; the
    backward pass runs each segment forward again. With about √T steps a segment (None), memory for
    history grows with √T instead of T, for one more forward pass. Random masks of dropout are drawn
    again as they were, and running values of batch normalization are updated once.

    `recompute=False` keeps all tapes: the stored version, which has the same bits in every result.
    Both add up loss and gradients of parameters segment by segment, the last one first. One pass
    over the whole sequence has the same outputs and final state to the bit, but adds in another
    order: its loss and gradients differ by rounding. (Dropout draws its masks for a segment at a
    time, and batch normalization in training mode takes its means over one.)

    Returns:
        Checkpointed, to be called with the model and the sequence.

    Raises ValueError for a segment below 1.

    Source: Gruslys et al. (2016), "Memory-efficient backpropagation through time",
    arXiv:1606.03401; Chen et al. (2016), arXiv:1604.06174.

    >>> import numpy as np
    >>> from tbptt_fast import nn
    >>> model = nn.Sequential(nn.GRU(1, 8, seed=1), nn.Linear(8, 1, seed=2))
    >>> def square(y, target):
    ...     return float(((y - target) ** 2).sum()), 2 * (y - target), y.size
    >>> wave = np.sin(np.arange(401, dtype=np.float32) / 5)[:, None, None]
    >>> little = checkpointed()(model, square, wave[:-1], wave[1:])
    >>> stored = checkpointed(recompute=False)(model, square, wave[:-1], wave[1:])
    >>> all(np.array_equal(little.grads.params[n], g) for n, g in stored.grads.params.items())
    True
    >>> stored.nbytes / little.nbytes > 10
    True
    """
    if segment is not None and segment < 1:
        raise ValueError(f"checkpointed: segment: expected at least 1 step, got {segment}")
    return Checkpointed(segment, recompute)


@dataclass(frozen=True)
class Checkpointed:
    """Full backpropagation in segments; see `checkpointed`."""

    segment: int | None
    recompute: bool

    def __call__(
        self,
        model: Module,
        loss: Loss,
        x: Array,
        y: Array,
        state: Any = None,
        *,
        is_init: Flags | None = None,
        grad_state: Any = None,
        needs_x: bool = False,
    ) -> FullGradient:
        """Loss and gradients of a whole sequence.

        Args:
            model: a module, or a `Primitive`.
            loss: as for `TBPTT`; called segment by segment.
            x, y: inputs [T, B, ...] and targets [T, B, ...]; with a `Primitive` on a GPU arrays of
                PyTorch or CuPy there, and so are all results. Nothing waits for the GPU.
            state: what enters step 0; None for zeros.
            is_init: [T, B], or None.
            grad_state: gradient by the final state, or None.
            needs_x: also make the gradient by x, which is as long as x.

        Raises ValueError for a sequence without steps, TypeError for a model that is no module of
        `tbptt_fast.nn` or an array on a GPU of another library, and what model and loss raise.
        """
        if not isinstance(model, Module):
            got = type(model).__name__
            raise TypeError(
                f"checkpointed: model: expected a module of tbptt_fast.nn or a Primitive, got {got}"
            )
        library = library_of(x, "checkpointed: x")
        if len(x) < 1:
            raise ValueError("checkpointed: x: expected at least 1 step, got 0")
        segment = math.isqrt(len(x) - 1) + 1 if self.segment is None else self.segment
        parts = [slice(begin, begin + segment) for begin in range(0, len(x), segment)]

        def run(part: slice, entering: Any) -> tuple[Array, Any, Tape]:
            flags = None if is_init is None else is_init[part]
            return model.forward(x[part], entering, is_init=flags)

        entering, random, kept = [], [], {}
        for i, part in enumerate(parts):
            entering.append(state)
            random.append(model.rng_state())
            out, state, tape = run(part, state)
            if not self.recompute or i == len(parts) - 1:
                kept[i] = out, tape
        small = sum(_nbytes(item) for item in entering)
        nbytes = small + sum(tape.nbytes for _, tape in kept.values())
        after = model.rng_state()
        buffers = _buffers(model)

        summed = items = 0.0
        total: dict[str, Array] | None = None
        grads_x: list[Any] = []
        try:
            for i in reversed(range(len(parts))):
                if i in kept:
                    out, tape = kept.pop(i)
                else:
                    model.set_rng_state(random[i])
                    out, _, tape = run(parts[i], entering[i])
                    nbytes = max(nbytes, small + tape.nbytes)
                value, grad, count = loss(out, y[parts[i]])
                summed, items = summed + value, items + count
                found = model.backward(tape, grad, grad_state=grad_state, needs_x=needs_x)
                grad_state = found.state
                grads_x.append(found.x)
                if total is None:
                    total = found.params
                else:
                    for name, gradient in found.params.items():
                        total[name] += gradient
        finally:  # as after one forward pass
            model.set_rng_state(after)
            copy_into(_live_buffers(model), buffers)
        assert total is not None
        whole = library.concatenate(grads_x[::-1]) if grads_x[0] is not None else None
        return FullGradient(summed, items, state, Gradients(whole, grad_state, total), nbytes)


def _live_buffers(model: Module) -> dict[str, Array]:
    parameters = model.parameters()
    return {name: array for name, array in model._state().items() if name not in parameters}


def _buffers(model: Module) -> dict[str, Array]:
    return {name: array.copy() for name, array in _live_buffers(model).items()}


def _nbytes(state: Any) -> int:
    if isinstance(state, tuple | list):
        return sum(_nbytes(entry) for entry in state)
    return int(getattr(state, "nbytes", 0))


_OF_BOTH_PASSES = ("precision", "stream")  # options of `tbptt_fast.cuda`


class Primitive(Module):
    """A pair like `lstm_forward` and `lstm_backward` with its weights, where a module is expected.

    x [T, B, I], y [T, B, H]; states are those of the primitive, [B, H] or for an LSTM pairs of
    them; parameters and their gradients have the names of its arguments. With weights in a GPU's
    memory it is the pair of `tbptt_fast.cuda`, and all arrays are there.

    Args:
        cell: "lstm", "gru" or "rnn".
        w_ih, w_hh, b_ih, b_hh: as for the primitive; used, not copied.
        options: other arguments of the forward pass, such as nonlinearity="relu"; on a GPU
            precision and stream, of the backward pass, too.

    Raises ValueError for an unknown cell.

    >>> import numpy as np
    >>> lstm = Primitive("lstm", np.ones((20, 3)), np.ones((20, 5)))
    >>> y, (h, c), tape = lstm.forward(np.ones((7, 2, 3)))
    >>> lstm.backward(tape, np.ones_like(y)).params["w_hh"].shape
    (20, 5)
    """

    num_layers = 1

    def __init__(
        self,
        cell: Literal["lstm", "gru", "rnn"],
        w_ih: Array,
        w_hh: Array,
        b_ih: Array | None = None,
        b_hh: Array | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if cell not in ("lstm", "gru", "rnn"):
            raise ValueError(f"Primitive: cell: expected 'lstm', 'gru' or 'rnn', got {cell!r}")
        functions = functions_for(w_ih)
        self._forward = getattr(functions, f"{cell}_forward")
        self._backward = getattr(functions, f"{cell}_backward")
        self._lag_norms = functions.lag_norms
        self.cell, self._options = cell, options
        self._of_both = {name: options[name] for name in _OF_BOTH_PASSES if name in options}
        self._weights = (w_ih, w_hh, b_ih, b_hh)
        named = zip(("w_ih", "w_hh", "b_ih", "b_hh"), self._weights, strict=True)
        self._parameters = {name: array for name, array in named if array is not None}

    def _apply(
        self, x: Array, state: Any, is_init: Array | None, keep: bool
    ) -> tuple[Array, Any, Tape | None]:
        y, final, tape = self._forward(
            x, state, *self._weights, is_init=is_init, training=keep, **self._options
        )
        return y, final, Tape(self, (tape,)) if keep else None

    def backward(
        self,
        tape: Tape,
        grad_y: Array | None,
        *,
        grad_state: Any = None,
        truncation: ops.Truncation = None,
        carry_scale: Array | None = None,
        needs_x: bool = True,
    ) -> Gradients:
        (inner,) = self._saved(tape)
        grads = self._backward(
            inner,
            grad_y,
            grad_state,
            truncation=truncation,
            carry_scale=carry_scale,
            **self._of_both,
        )
        params = {name: getattr(grads, name) for name in self._parameters}
        return Gradients(grads.x if needs_x else None, grads.hx, params)

    def lag_norms(self, tape: Tape, grad_y: Array, max_lag: int) -> tuple[Array, Array]:
        """Norms by lag and their gradients' sums, as of `tbptt_fast.lag_norms`."""
        (inner,) = self._saved(tape)
        phi, sums = self._lag_norms(inner, grad_y, max_lag, sums=True, **self._of_both)
        return phi, sums

    def __repr__(self) -> str:
        hidden, inputs = self._weights[1].shape[1], self._weights[0].shape[1]
        return f"Primitive({self.cell!r}, {inputs}, {hidden})"
