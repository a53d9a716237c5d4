"""Recurrent layers on images, forward and backward; part of `tbptt_fast.ops`.

The products of RNN, GRU and LSTM are convolutions with stride 1 and as many zeros around as keep
the size. Arrays have T steps, B rows of the batch, C input and H hidden channels, Y rows and X
columns; kernels have odd sizes. With layout "NHWC" the channels of images and states come last.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

from . import _native
from ._native import ConvTape
from ._types import Array, ArrayLike, Layout, StatePair, Truncation
from .ops_recurrent import describe_backward

__all__ = [
    "ConvRecurrentGrads",
    "ConvTape",
    "convgru_backward",
    "convgru_forward",
    "convlstm_backward",
    "convlstm_forward",
    "convrnn_backward",
    "convrnn_forward",
]

Algo: TypeAlias = Literal["auto", "direct"]


class ConvRecurrentGrads(NamedTuple):
    """Gradients of a recurrent layer on images, each shaped like its argument.

    None for a missing bias, and for missing peepholes.
    """

    x: Array
    hx: Any
    w_ih: Array
    w_hh: Array
    b_ih: Array | None
    b_hh: Array | None
    peephole: Array | None


def convrnn_forward(
    x: ArrayLike,
    hx: ArrayLike | None,
    w_ih: ArrayLike,
    w_hh: ArrayLike,
    b_ih: ArrayLike | None = None,
    b_hh: ArrayLike | None = None,
    *,
    nonlinearity: Literal["tanh", "relu"] = "tanh",
    is_init: ArrayLike | None = None,
    dilation: int | tuple[int, int] = 1,
    layout: Layout = "NCHW",
    algo: Algo = "auto",
    training: bool = True,
    recompute: bool = False,
) -> tuple[Array, Array, ConvTape | None]:
    """Run a plain recurrent layer on images, h_t = f(W_ih*x_t + b_ih + W_hh*h_(t-1) + b_hh).

    Args:
        x: inputs [T, B, C, Y, X].
        hx: state before step 0 [B, H, Y, X]; None means zeros.
        w_ih, w_hh: kernels [H, C, ky, kx] and [H, H, ky, kx]; sizes are odd and may differ.
        b_ih, b_hh: biases [H], or None.
        nonlinearity: f, "tanh" or "relu".
        is_init: bool [T, B]; True at (t, b) zeroes the state that enters step t of row b.
        dilation: of both kernels, or a pair (y, x).
        layout: "NCHW", or "NHWC" for x [T, B, Y, X, C], hx and outputs.
        algo: of all convolutions; "auto" takes Winograd's way for kernels of size (3, 3) in float32
            where it is faster (see `conv2d`), "direct" never.
        training: keep a tape for `convrnn_backward`; without it no history is kept.
        recompute: keep no gates on the tape. The backward pass makes them again from the output,
            many steps at a time, and gives the same gradients, bit for bit. Where windows overlap
            (k1 < k2) it makes those of all steps at once, and then takes as much memory as the
            whole tape would. A plain layer has no gates: the output alone is enough.

    Returns:
        All states [T, B, H, Y, X], the last one, and the tape (None unless training). The tape
        refers to the arguments and to the output: do not change them in place before the backward
        pass.

    Raises:
        TypeError, ValueError: a wrong dtype; a wrong shape or value.

    Source: Elman (1990), "Finding structure in time", with the products of Shi et al. (2015).

    >>> import numpy as np
    >>> x, w = np.ones((2, 1, 1, 4, 4)), np.ones((1, 1, 1, 1))
    >>> out, h_n, tape = convrnn_forward(x, None, w, w, nonlinearity="relu")
    >>> out[:, 0, 0, 0, 0].tolist()
    [1.0, 2.0]
    """
    return _native.convrnn_forward(
        nonlinearity,
        x,
        hx,
        w_ih,
        w_hh,
        b_ih,
        b_hh,
        None,
        is_init,
        dilation,
        layout,
        algo,
        training,
        recompute,
    )


def convgru_forward(
    x: ArrayLike,
    hx: ArrayLike | None,
    w_ih: ArrayLike,
    w_hh: ArrayLike,
    b_ih: ArrayLike | None = None,
    b_hh: ArrayLike | None = None,
    *,
    is_init: ArrayLike | None = None,
    dilation: int | tuple[int, int] = 1,
    layout: Layout = "NCHW",
    algo: Algo = "auto",
    training: bool = True,
    recompute: bool = False,
) -> tuple[Array, Array, ConvTape | None]:
    """Run a GRU layer on images; the reset gate applies after the convolution.

    Args:
        w_ih, w_hh: kernels [3H, C, ky, kx] and [3H, H, ky, kx], gates in the order r, z, n.
        b_ih, b_hh: biases [3H], or None.

    The other arguments, results and errors are those of `convrnn_forward`.

    Source: Ballas et al. (2015), "Delving deeper into convolutional networks for learning video
    representations", with the reset gate after the product as in PyTorch's GRU.

    >>> import numpy as np
    >>> x, h = np.ones((4, 1, 3, 5, 6)), np.ones((1, 2, 5, 6))
    >>> out, h_n, tape = convgru_forward(x, h, np.zeros((6, 3, 3, 3)), np.zeros((6, 2, 3, 3)))
    >>> float(h_n[0, 0, 0, 0])  # halved at every step
    0.0625
    """
    return _native.convrecurrent_forward(
        "gru",
        x,
        hx,
        w_ih,
        w_hh,
        b_ih,
        b_hh,
        None,
        is_init,
        dilation,
        layout,
        algo,
        training,
        recompute,
    )


def convlstm_forward(
    x: ArrayLike,
    hx: tuple[ArrayLike | None, ArrayLike | None] | None,
    w_ih: ArrayLike,
    w_hh: ArrayLike,
    b_ih: ArrayLike | None = None,
    b_hh: ArrayLike | None = None,
    *,
    peephole: ArrayLike | None = None,
    is_init: ArrayLike | None = None,
    dilation: int | tuple[int, int] = 1,
    layout: Layout = "NCHW",
    algo: Algo = "auto",
    training: bool = True,
    recompute: bool = False,
) -> tuple[Array, StatePair, ConvTape | None]:
    """Run a ConvLSTM layer over T steps.

    Args:
        hx: the pair (h, c) before step 0, each [B, H, Y, X] or None; None means zeros.
        w_ih, w_hh: kernels [4H, C, ky, kx] and [4H, H, ky, kx], gates in the order i, f, g, o.
        b_ih, b_hh: biases [4H], or None.
        peephole: weights by which the gates i and f see the c before, and o the new c: for each
            channel [3, H], or for each channel and pixel as in the source [3, H, Y, X] ("NHWC":
            [3, Y, X, H]); None for none.

    The other arguments, results and errors are those of `convrnn_forward`; the final state is the
    pair (h, c). With `recompute` the tape holds c alone.

    Source: Shi et al. (2015), "Convolutional LSTM network: a machine learning approach for
    precipitation nowcasting".

    >>> import numpy as np
    >>> x, w_ih, w_hh = np.zeros((3, 2, 1, 8, 8)), np.ones((20, 1, 3, 3)), np.ones((20, 5, 3, 3))
    >>> out, (h_n, c_n), tape = convlstm_forward(x, None, w_ih, w_hh)
    >>> out.shape, c_n.shape, tape.nbytes == 5 * out.nbytes
    ((3, 2, 5, 8, 8), (2, 5, 8, 8), True)
    >>> convlstm_forward(x, None, w_ih, w_hh, recompute=True)[2].nbytes == out.nbytes
    True
    """
    return _native.convrecurrent_forward(
        "lstm",
        x,
        hx,
        w_ih,
        w_hh,
        b_ih,
        b_hh,
        peephole,
        is_init,
        dilation,
        layout,
        algo,
        training,
        recompute,
    )


def convrnn_backward(
    tape: ConvTape | None,
    grad_out: ArrayLike | None,
    grad_hx: ArrayLike | None = None,
    *,
    truncation: Truncation = None,
    carry_scale: ArrayLike | None = None,
) -> ConvRecurrentGrads:
    return _backward("rnn_tanh", tape, grad_out, grad_hx, truncation, carry_scale)


def convgru_backward(
    tape: ConvTape | None,
    grad_out: ArrayLike | None,
    grad_hx: ArrayLike | None = None,
    *,
    truncation: Truncation = None,
    carry_scale: ArrayLike | None = None,
) -> ConvRecurrentGrads:
    return _backward("gru", tape, grad_out, grad_hx, truncation, carry_scale)


def convlstm_backward(
    tape: ConvTape | None,
    grad_out: ArrayLike | None,
    grad_hx: tuple[ArrayLike | None, ArrayLike | None] | None = None,
    *,
    truncation: Truncation = None,
    carry_scale: ArrayLike | None = None,
) -> ConvRecurrentGrads:
    return _backward("lstm", tape, grad_out, grad_hx, truncation, carry_scale)


def _backward(cell: str, *arguments: Any) -> ConvRecurrentGrads:
    return ConvRecurrentGrads(*_native.convrecurrent_backward(cell, *arguments))


for _gates, _op in ((1, convrnn_backward), (3, convgru_backward), (4, convlstm_backward)):
    describe_backward(_op, ConvRecurrentGrads, _gates, image=", 4, 4", kernel=", 3, 3")
