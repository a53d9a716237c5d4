"""rnn, gru and lstm as functions of JAX arrays; part of `tbptt_fast.jax`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import jax

from .._options import Cell, plain_cell, state_names
from .._types import Truncation
from . import _targets
from ._check import as_arrays, check_shapes, pair_of_states, read_windows
from ._primitives import Shape, Values, run_layer
from ._scan import scan_layer

__all__ = ["gru", "lstm", "rnn"]

Array: TypeAlias = jax.Array
Backend: TypeAlias = Literal["ffi", "scan"]

GATES = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}
SAVED = {"rnn_tanh": 0, "rnn_relu": 0, "gru": 4, "lstm": 5}  # values a step, row and unit


@dataclass(frozen=True)
class RecurrentCall:
    """One recurrent layer; see `_primitives.Call`."""

    cell: Cell
    inputs: tuple[str, ...]
    truncation: tuple[int, int] | None
    constants: ClassVar[tuple[str, ...]] = ("is_init", "carry_scale")
    weights: ClassVar[tuple[str, ...]] = ("w_ih", "w_hh", "b_ih", "b_hh")

    @property
    def op(self) -> str:
        return self.cell[:3] if self.cell.startswith("rnn") else self.cell

    @property
    def states(self) -> tuple[str, ...]:
        return state_names(self.cell)

    def _sizes(self, shapes: Values) -> tuple[int, int, int, int]:
        steps, batch, inputs = shapes["x"]
        return steps, batch, inputs, shapes["w_hh"][1]

    def outputs(self, shapes: Values) -> list[Shape]:
        steps, batch, _, hidden = self._sizes(shapes)
        return [(steps, batch, hidden), *[(batch, hidden) for _ in self.states]]

    def saved(self, shapes: Values) -> Shape:
        steps, batch, _, hidden = self._sizes(shapes)
        return (steps * batch * hidden * SAVED[self.cell],)

    def batch_axis(self, name: str) -> int:
        return 0 if name in self.states else 1

    def output_batch_axis(self, index: int) -> int:
        return 1 if index == 0 else 0

    def forward(self, arrays: Values, keep: bool) -> list[Any]:
        names = ("x", *self.states, "w_ih", "w_hh", "b_ih", "b_hh", "is_init")
        shapes = {name: array.shape for name, array in arrays.items()}
        kept = self.saved(shapes) if keep else (0,)
        return _targets.call(
            "recurrent_forward",
            [arrays.get(name) for name in names],
            [*self.outputs(shapes), kept],
            cell=self.cell,
            shape=self._sizes(shapes),
            keep=keep,
        )

    def backward(
        self, grads: Sequence[Any], outs: Sequence[Any], saved: Any, arrays: Values, needs: set[str]
    ) -> Values:
        shapes = {name: array.shape for name, array in arrays.items()}
        names = ("x", *self.states, "w_ih", "w_hh", "is_init", "carry_scale")
        sizes = self._sizes(shapes)
        results = {
            "x": shapes["x"],
            **{state: (sizes[1], sizes[3]) for state in self.states},
            **{name: shapes[name] for name in ("w_ih", "w_hh")},
            **{name: shapes[name] if name in needs else (0,) for name in ("b_ih", "b_hh")},
        }
        found = _targets.call(
            "recurrent_backward",
            [*grads, outs[0], saved, *map(arrays.get, names)],
            list(results.values()),
            cell=self.cell,
            shape=sizes,
            truncation=self.truncation or (max(sizes[0], 1),) * 2,
        )
        return dict(zip(results, found, strict=True))


def _run(
    op: str,
    cell: Cell,
    x: Any,
    states: Sequence[Any],
    weights: Sequence[Any],
    is_init: Any,
    truncation: Truncation,
    carry_scale: Any,
    backend: Backend,
) -> list[Array]:
    given = dict(
        zip(
            ("x", *state_names(cell), "w_ih", "w_hh", "b_ih", "b_hh", "is_init", "carry_scale"),
            (x, *states, *weights, is_init, carry_scale),
            strict=True,
        )
    )
    arrays = as_arrays(op, given, required=("x", "w_ih", "w_hh"), masks=("is_init",))
    check_shapes(op, arrays, {"x": 3, "w_hh": 2}, lambda shapes: _expected(op, cell, shapes))
    windows = read_windows(truncation)
    if backend == "scan":
        return scan_layer(cell, arrays, windows)
    if backend != "ffi":
        raise ValueError(f"{op}: backend: expected 'ffi' or 'scan', got {backend!r}")
    _targets.check_available(op, ", or compute with backend='scan'")
    call = RecurrentCall(cell, tuple(arrays), windows)
    return run_layer(call, list(arrays.values()))


def _expected(op: str, cell: Cell, shapes: dict[str, Shape]) -> dict[str, Shape]:
    steps, batch, inputs = shapes["x"]
    hidden = shapes["w_hh"][1]
    if hidden < 1:
        raise ValueError(f"{op}: w_hh: expected at least one unit, got shape {[*shapes['w_hh']]}")
    columns = GATES[cell] * hidden
    return {
        "h": (batch, hidden),
        "c": (batch, hidden),
        "w_ih": (columns, inputs),
        "w_hh": (columns, hidden),
        "b_ih": (columns,),
        "b_hh": (columns,),
        "is_init": (steps, batch),
        "carry_scale": (steps, batch),
    }


def rnn(
    x: Array,
    hx: Array | None,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None = None,
    b_hh: Array | None = None,
    *,
    nonlinearity: Literal["tanh", "relu"] = "tanh",
    is_init: Array | None = None,
    truncation: Truncation = None,
    carry_scale: Array | None = None,
    backend: Backend = "ffi",
) -> tuple[Array, Array]:
    """`tbptt_fast.rnn_forward` as a differentiable function of JAX arrays.

    Under `jit`, `grad`, `vmap`, `scan` and `shard_map` it is one native call forward and one
    backward. A mapped axis is folded into the batch where the weights are not mapped; where they
    are, and for gradients of every example by itself, the examples run one after another.

    Args:
        x: [T, B, I], float32 or float64; all arrays have its dtype.
        hx: [B, H] or None (zeros).
        w_ih, w_hh, b_ih, b_hh: [H, I], [H, H], [H] or None, as in torch.nn.RNN.
        nonlinearity: "tanh" or "relu".
        is_init: bool [T, B]; True at (t, b) zeroes the state that enters step t of row b.
        truncation: of the backward pass: None, K or (k1, k2) (`tbptt_fast.rnn_backward`).
        carry_scale: [T, B]; multiplies the gradient from step t to step t - 1. A constant: it has
            no gradient itself.
        backend: "ffi", the native kernels, on the CPU; or "scan", a reference of `jax.lax.scan`
            for every device and every derivative.

    Returns:
        All states [T, B, H] and the last one [B, H].

    Raises:
        TypeError, ValueError: a wrong dtype; a wrong shape or value.
        NotImplementedError: a second derivative or a forward-mode one is asked for.
        RuntimeError: the native module was built without its functions for JAX.

    Source: see `tbptt_fast.rnn_forward`.

    >>> import jax, jax.numpy as jnp
    >>> def loss(w):
    ...     return rnn(jnp.ones((3, 1, 1)), None, w, w, nonlinearity="relu", truncation=1)[0].sum()
    >>> w = jnp.ones((1, 1))  # by w_ih 1 at each step, and by w_hh the states before: 0, 1, 2
    >>> float(loss(w)), float(jax.grad(loss)(w)[0, 0])
    (6.0, 6.0)
    """
    weights = (w_ih, w_hh, b_ih, b_hh)
    cell = plain_cell("rnn", nonlinearity)
    out, h_n = _run("rnn", cell, x, (hx,), weights, is_init, truncation, carry_scale, backend)
    return out, h_n


def gru(
    x: Array,
    hx: Array | None,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None = None,
    b_hh: Array | None = None,
    *,
    is_init: Array | None = None,
    truncation: Truncation = None,
    carry_scale: Array | None = None,
    backend: Backend = "ffi",
) -> tuple[Array, Array]:
    """`tbptt_fast.gru_forward` as a differentiable function of JAX arrays.

    Args:
        w_ih, w_hh, b_ih, b_hh: [3H, I], [3H, H], [3H] or None, as in torch.nn.GRU.

    The other arguments, results and errors are those of `rnn`.

    Source: see `tbptt_fast.gru_forward`.

    >>> import jax, jax.numpy as jnp
    >>> def last(h):
    ...     out, _ = gru(jnp.ones((4, 2, 3)), h, jnp.zeros((15, 3)), jnp.zeros((15, 5)))
    ...     return out[-1].sum()
    >>> float(jax.grad(last)(jnp.ones((2, 5)))[0, 0])
    0.0625
    """
    weights = (w_ih, w_hh, b_ih, b_hh)
    out, h_n = _run("gru", "gru", x, (hx,), weights, is_init, truncation, carry_scale, backend)
    return out, h_n


def lstm(
    x: Array,
    hx: tuple[Array | None, Array | None] | None,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None = None,
    b_hh: Array | None = None,
    *,
    is_init: Array | None = None,
    truncation: Truncation = None,
    carry_scale: Array | None = None,
    backend: Backend = "ffi",
) -> tuple[Array, tuple[Array, Array]]:
    """`tbptt_fast.lstm_forward` as a differentiable function of JAX arrays.

    Args:
        hx: the pair (h, c), each [B, H] or None (zeros), or None.
        w_ih, w_hh, b_ih, b_hh: [4H, I], [4H, H], [4H] or None, as in torch.nn.LSTM.

    The other arguments, results and errors are those of `rnn`.

    Returns:
        All h [T, B, H] and the last pair (h, c), each [B, H].

    Source: see `tbptt_fast.lstm_forward`.

    >>> import jax, jax.numpy as jnp
    >>> def loss(w_ih):
    ...     x, w_hh = jnp.ones((3, 2, 4)), jnp.ones((20, 5))
    ...     out, (h_n, c_n) = lstm(x, None, w_ih, w_hh, truncation=(1, 2))
    ...     return out.sum()
    >>> jax.jit(jax.grad(loss))(jnp.ones((20, 4))).shape
    (20, 4)
    """
    states = pair_of_states("lstm", hx)
    weights = (w_ih, w_hh, b_ih, b_hh)
    out, h_n, c_n = _run(
        "lstm", "lstm", x, states, weights, is_init, truncation, carry_scale, backend
    )
    return out, (h_n, c_n)
