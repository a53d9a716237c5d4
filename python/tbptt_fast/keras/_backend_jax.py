"""Keras's layers on the functions of `tbptt_fast.jax`; part of `tbptt_fast.keras`."""

from __future__ import annotations

from collections.abc import Sequence

from .. import jax as native
from .._options import Cell
from .._types import Activation, Layout
from ._backend import Padding, Tensor

missing: str | None = None
if not native.available():
    missing = "tbptt_fast was built without its functions for JAX"
supports_jit = True


def recurrent(
    cell: Cell,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    is_init: Tensor | None,
    truncation: list[int] | None,
) -> tuple[Tensor, ...]:
    w_ih, w_hh, *biases = weights
    pair = None if truncation is None else (truncation[0], truncation[1])
    if cell == "lstm":
        h, c = states
        out, last = native.lstm(x, (h, c), w_ih, w_hh, *biases, is_init=is_init, truncation=pair)
        return out, *last
    if cell == "gru":
        return native.gru(x, states[0], w_ih, w_hh, *biases, is_init=is_init, truncation=pair)
    return native.rnn(
        x,
        states[0],
        w_ih,
        w_hh,
        *biases,
        nonlinearity="relu" if cell == "rnn_relu" else "tanh",
        is_init=is_init,
        truncation=pair,
    )


def convlstm(
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    is_init: Tensor | None,
    truncation: list[int] | None,
    layout: Layout,
) -> tuple[Tensor, ...]:
    (h, c), (w_ih, w_hh, b) = states, weights
    pair = None if truncation is None else (truncation[0], truncation[1])
    out, last = native.convlstm(
        x, (h, c), w_ih, w_hh, b, is_init=is_init, truncation=pair, layout=layout
    )
    return out, *last


def convolution(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    stride: tuple[int, int],
    padding: Padding,
    dilation: tuple[int, int],
    groups: int,
    activation: Activation,
    layout: Layout,
) -> Tensor:
    return native.conv2d(
        x, w, b, stride, padding, dilation, groups, activation=activation, layout=layout
    )
