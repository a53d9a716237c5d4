"""convrnn, convgru and convlstm as functions of JAX arrays; part of `tbptt_fast.jax`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import jax

from .. import _native
from .._options import Cell, plain_cell, state_names
from .._types import Layout, Truncation
from . import _targets
from ._check import as_arrays, check_shapes, pair_of_states, read_windows
from ._primitives import Shape, Values, run_layer

__all__ = ["convgru", "convlstm", "convrnn"]

Array: TypeAlias = jax.Array
Size: TypeAlias = int | tuple[int, int]


@dataclass(frozen=True)
class ConvRecurrentCall:
    """One recurrent layer on images; see `_primitives.Call`."""

    op: str
    cell: Cell
    inputs: tuple[str, ...]
    truncation: tuple[int, int] | None
    dilation: Size
    layout: Layout
    recompute: bool
    constants: ClassVar[tuple[str, ...]] = ("is_init", "carry_scale")
    weights: ClassVar[tuple[str, ...]] = ("w_ih", "w_hh", "b_ih", "b_hh", "peephole")

    @property
    def states(self) -> tuple[str, ...]:
        return state_names(self.cell)

    @property
    def _layer(self) -> tuple[str, ...]:
        """The inputs that both directions read, in their order."""
        peephole = ("peephole",) if self.cell == "lstm" else ()
        return ("x", *self.states, "w_ih", "w_hh", "b_ih", "b_hh", *peephole, "is_init")

    def read(self, shapes: Values) -> tuple[tuple[int, ...], Shape, Shape, int]:
        """The layer's numbers, the shapes of its output and of a state, and what it keeps."""
        found: tuple[tuple[int, ...], Shape, Shape, int] = _native.jax_convrecurrent(
            self.op,
            self.cell,
            shapes["x"],
            shapes["w_ih"],
            shapes["w_hh"],
            self.dilation,
            self.layout,
            "auto",
            self.recompute,
        )
        return found

    def _options(self, shapes: Values) -> dict[str, Any]:
        return {
            "cell": self.cell,
            "shape": self.read(shapes)[0],
            "recompute": self.recompute,
            "peephole_maps": len(shapes.get("peephole", ())) == 4,
        }

    def outputs(self, shapes: Values) -> list[Shape]:
        _, out, state, _ = self.read(shapes)
        return [out, *(state for _ in self.states)]

    def saved(self, shapes: Values) -> Shape:
        return (self.read(shapes)[3],)

    def batch_axis(self, name: str) -> int:
        return 0 if name in self.states else 1

    def output_batch_axis(self, index: int) -> int:
        return 1 if index == 0 else 0

    def forward(self, arrays: Values, keep: bool) -> list[Any]:
        shapes = {name: array.shape for name, array in arrays.items()}
        return _targets.call(
            "convrecurrent_forward",
            [arrays.get(name) for name in self._layer],
            [*self.outputs(shapes), self.saved(shapes) if keep else (0,)],
            **self._options(shapes),
        )

    def backward(
        self, grads: Sequence[Any], outs: Sequence[Any], saved: Any, arrays: Values, needs: set[str]
    ) -> Values:
        shapes = {name: array.shape for name, array in arrays.items()}
        steps, state = shapes["x"][0], self.read(shapes)[2]
        optional = [name for name in self._layer if name in ("b_ih", "b_hh", "peephole")]
        results = {
            "x": shapes["x"],
            **{name: state for name in self.states},
            **{name: shapes[name] for name in ("w_ih", "w_hh")},
            **{name: shapes.get(name, (0,)) for name in optional},
        }
        found = _targets.call(
            "convrecurrent_backward",
            [*grads, outs[0], saved, *map(arrays.get, (*self._layer, "carry_scale"))],
            list(results.values()),
            **self._options(shapes),
            truncation=self.truncation or (max(steps, 1),) * 2,
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
    dilation: Size,
    layout: Layout,
    recompute: bool,
) -> list[Array]:
    given = dict(
        zip(
            (
                "x",
                *state_names(cell),
                "w_ih",
                "w_hh",
                "b_ih",
                "b_hh",
                "peephole",
                "is_init",
                "carry_scale",
            ),
            (x, *states, *weights, is_init, carry_scale),
            strict=True,
        )
    )
    arrays = as_arrays(op, given, required=("x", "w_ih", "w_hh"), masks=("is_init",))
    windows = read_windows(truncation)
    pair = dilation if isinstance(dilation, int) else (dilation[0], dilation[1])
    call = ConvRecurrentCall(op, cell, tuple(arrays), windows, pair, layout, recompute)
    _targets.check_available(op)
    check_shapes(op, arrays, {"x": 5, "w_ih": 4, "w_hh": 4}, lambda s: _expected(call, s))
    return run_layer(call, list(arrays.values()))


def _expected(call: ConvRecurrentCall, shapes: dict[str, Shape]) -> dict[str, Shape]:
    _, _, state, _ = call.read(shapes)
    steps, batch = shapes["x"][:2]
    columns, hidden = shapes["w_hh"][:2]
    channels = shapes["x"][4 if call.layout == "NHWC" else 2]
    maps = len(shapes.get("peephole", ())) == 4
    return {
        "h": state,
        "c": state,
        "w_ih": (columns, channels, *shapes["w_ih"][2:]),
        "w_hh": (columns, state[3 if call.layout == "NHWC" else 1], *shapes["w_hh"][2:]),
        "b_ih": (columns,),
        "b_hh": (columns,),
        "peephole": (3, *state[1:]) if maps else (3, hidden),
        "is_init": (steps, batch),
        "carry_scale": (steps, batch),
    }


def convrnn(
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
    dilation: Size = 1,
    layout: Layout = "NCHW",
    recompute: bool = False,
) -> tuple[Array, Array]:
    """`tbptt_fast.convrnn_forward` as a differentiable function of JAX arrays.

    Args:
        x: [T, B, C, Y, X], float32 or float64; with layout "NHWC" [T, B, Y, X, C].
        hx: [B, H, Y, X] or None (zeros).
        w_ih, w_hh, b_ih, b_hh: [H, C, ky, kx], [H, H, ky, kx], [H] or None.
        nonlinearity: "tanh" or "relu".
        is_init: bool [T, B]; True at (t, b) zeroes the state that enters step t of row b.
        truncation: of the backward pass: None, K or (k1, k2) (`tbptt_fast.convrnn_backward`).
        carry_scale: [T, B]; multiplies the gradient from step t to step t - 1. A constant: it has
            no gradient itself.
        dilation: of both kernels, or a pair (y, x).
        recompute: save no gates for the backward pass, which makes them again
            (`tbptt_fast.convrnn_forward`).

    Returns:
        All states [T, B, H, Y, X] and the last one.

    Raises:
        TypeError, ValueError: a wrong dtype; a wrong shape or value.
        NotImplementedError: a second derivative or a forward-mode one is asked for.
        RuntimeError: the native module was built without its functions for JAX.

    Source: see `tbptt_fast.convrnn_forward`.

    >>> import jax, jax.numpy as jnp
    >>> def total(w):
    ...     x = jnp.ones((3, 1, 1, 1, 1))
    ...     return convrnn(x, None, w, w, nonlinearity="relu", truncation=1)[0].sum()
    >>> float(jax.grad(total)(jnp.ones((1, 1, 1, 1))).sum())  # w_ih: 1 + 1 + 1, w_hh: 0 + 1 + 2
    6.0
    """
    cell = plain_cell("convrnn", nonlinearity)
    weights = (w_ih, w_hh, b_ih, b_hh, None)
    options = (is_init, truncation, carry_scale, dilation, layout, recompute)
    out, h_n = _run("convrnn", cell, x, (hx,), weights, *options)
    return out, h_n


def convgru(
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
    dilation: Size = 1,
    layout: Layout = "NCHW",
    recompute: bool = False,
) -> tuple[Array, Array]:
    """`tbptt_fast.convgru_forward` as a differentiable function of JAX arrays.

    Args:
        w_ih, w_hh, b_ih, b_hh: [3H, C, ky, kx], [3H, H, ky, kx], [3H] or None; gates r, z, n.

    The other arguments, results and errors are those of `convrnn`.

    Source: see `tbptt_fast.convgru_forward`.

    >>> import jax.numpy as jnp
    >>> x, h = jnp.ones((4, 1, 3, 5, 6)), jnp.ones((1, 2, 5, 6))
    >>> out, h_n = convgru(x, h, jnp.zeros((6, 3, 3, 3)), jnp.zeros((6, 2, 3, 3)))
    >>> float(h_n[0, 0, 0, 0])
    0.0625
    """
    weights = (w_ih, w_hh, b_ih, b_hh, None)
    options = (is_init, truncation, carry_scale, dilation, layout, recompute)
    out, h_n = _run("convgru", "gru", x, (hx,), weights, *options)
    return out, h_n


def convlstm(
    x: Array,
    hx: tuple[Array | None, Array | None] | None,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None = None,
    b_hh: Array | None = None,
    *,
    peephole: Array | None = None,
    is_init: Array | None = None,
    truncation: Truncation = None,
    carry_scale: Array | None = None,
    dilation: Size = 1,
    layout: Layout = "NCHW",
    recompute: bool = False,
) -> tuple[Array, tuple[Array, Array]]:
    """`tbptt_fast.convlstm_forward` as a differentiable function of JAX arrays.

    Args:
        hx: the pair (h, c), each [B, H, Y, X] or None (zeros), or None.
        w_ih, w_hh, b_ih, b_hh: [4H, C, ky, kx], [4H, H, ky, kx], [4H] or None; gates i, f, g, o.
        peephole: [3, H] or [3, H, Y, X] (see `tbptt_fast.convlstm_forward`), or None.

    The other arguments, results and errors are those of `convrnn`.

    Returns:
        All h [T, B, H, Y, X] and the last pair (h, c).

    Source: see `tbptt_fast.convlstm_forward`.

    >>> import jax.numpy as jnp
    >>> w_ih, w_hh = jnp.ones((20, 1, 3, 3)), jnp.ones((20, 5, 3, 3))
    >>> out, (h_n, c_n) = convlstm(jnp.ones((3, 2, 1, 8, 8)), None, w_ih, w_hh)
    >>> out.shape
    (3, 2, 5, 8, 8)
    """
    states = pair_of_states("convlstm", hx)
    weights = (w_ih, w_hh, b_ih, b_hh, peephole)
    options = (is_init, truncation, carry_scale, dilation, layout, recompute)
    out, h_n, c_n = _run("convlstm", "lstm", x, states, weights, *options)
    return out, (h_n, c_n)
