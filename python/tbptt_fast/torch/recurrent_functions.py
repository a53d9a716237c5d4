"""rnn, gru and lstm as differentiable functions of tensors; part of `tbptt_fast.torch`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from .._options import Cell, plain_cell, read_truncation
from ..ops import Truncation
from ._bridge import check_device
from .recurrent_ops import run_layer


def _checked(
    op: str,
    cell: Cell,
    x: Tensor,
    states: Sequence[Tensor | None],
    weights: Sequence[Tensor | None],
    is_init: Tensor | None,
    truncation: Truncation,
    carry_scale: Tensor | None,
) -> tuple[Tensor, ...]:
    check_device(
        op, x=x, w_ih=weights[0], w_hh=weights[1], is_init=is_init, carry_scale=carry_scale
    )
    if carry_scale is not None and carry_scale.shape != x.shape[:2]:
        raise ValueError(
            f"{op}: carry_scale: expected shape {list(x.shape[:2])}, got {list(carry_scale.shape)}"
        )
    return run_layer(cell, x, states, weights, is_init, read_truncation(truncation), carry_scale)


def rnn(
    x: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: Literal["tanh", "relu"] = "tanh",
    is_init: Tensor | None = None,
    truncation: Truncation = None,
    carry_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`tbptt_fast.rnn_forward` as a differentiable function of tensors.

    Args:
        x: [T, B, I], float32 or float64 on the CPU, or on a GPU where `tbptt_fast.cuda` runs, which
            takes bfloat16, too; all tensors are on one device.
        hx: [B, H] or None (zeros).
        w_ih, w_hh, b_ih, b_hh: [H, I], [H, H], [H] or None, as in torch.nn.RNN.
        nonlinearity: "tanh" or "relu".
        is_init: bool [T, B]; True at (t, b) zeroes the state that enters step t of row b.
        truncation: of the backward pass: None, K or (k1, k2) (`tbptt_fast.rnn_backward`).
        carry_scale: [T, B]; multiplies the gradient from step t to step t - 1. A constant: it has
            no gradient itself.

    Returns:
        All states [T, B, H] and the last one [B, H].

    Raises:
        TypeError, ValueError: a wrong dtype; a wrong shape or value.
        RuntimeError: a tensor is on a device without kernels; a second derivative is asked for.

    Source: see `tbptt_fast.rnn_forward`.

    >>> import torch
    >>> w = torch.ones(1, 1, requires_grad=True)
    >>> out, h_n = rnn(torch.ones(3, 1, 1), None, w, w, nonlinearity="relu", truncation=1)
    >>> out.sum().backward()  # 1 by w_ih at each step, and by w_hh the states before: 0, 1, 2
    >>> out.ravel().tolist(), w.grad.item()
    ([1.0, 2.0, 3.0], 6.0)
    """
    cell = plain_cell("rnn", nonlinearity)
    weights = (w_ih, w_hh, b_ih, b_hh)
    out, h_n = _checked("rnn", cell, x, (hx,), weights, is_init, truncation, carry_scale)
    return out, h_n


def gru(
    x: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    is_init: Tensor | None = None,
    truncation: Truncation = None,
    carry_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`tbptt_fast.gru_forward` as a differentiable function of tensors.

    Args:
        w_ih, w_hh, b_ih, b_hh: [3H, I], [3H, H], [3H] or None, as in torch.nn.GRU.

    The other arguments, results and errors are those of `rnn`.

    Source: see `tbptt_fast.gru_forward`.

    >>> import torch
    >>> x, h = torch.ones(4, 2, 3), torch.ones(2, 5, requires_grad=True)
    >>> out, h_n = gru(x, h, torch.zeros(15, 3), torch.zeros(15, 5))
    >>> out[-1].sum().backward()
    >>> h.grad[0, 0].item()
    0.0625
    """
    weights = (w_ih, w_hh, b_ih, b_hh)
    out, h_n = _checked("gru", "gru", x, (hx,), weights, is_init, truncation, carry_scale)
    return out, h_n


def lstm(
    x: Tensor,
    hx: tuple[Tensor | None, Tensor | None] | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    is_init: Tensor | None = None,
    truncation: Truncation = None,
    carry_scale: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`tbptt_fast.lstm_forward` as a differentiable function of tensors.

    Args:
        hx: the pair (h, c), each [B, H] or None (zeros), or None.
        w_ih, w_hh, b_ih, b_hh: [4H, I], [4H, H], [4H] or None, as in torch.nn.LSTM.

    The other arguments, results and errors are those of `rnn`.

    Returns:
        All h [T, B, H] and the last pair (h, c), each [B, H].

    Source: see `tbptt_fast.lstm_forward`.

    >>> import torch
    >>> w_ih, w_hh = torch.ones(20, 4, requires_grad=True), torch.ones(20, 5)
    >>> out, (h_n, c_n) = lstm(torch.ones(3, 2, 4), None, w_ih, w_hh, truncation=(1, 2))
    >>> out.sum().backward()
    >>> out.shape, w_ih.grad.shape
    (torch.Size([3, 2, 5]), torch.Size([20, 4]))
    """
    states = (None, None) if hx is None else tuple(hx)
    if len(states) != 2:
        raise ValueError(f"lstm: hx: expected a pair (h, c), got {len(states)} items")
    weights = (w_ih, w_hh, b_ih, b_hh)
    out, h_n, c_n = _checked("lstm", "lstm", x, states, weights, is_init, truncation, carry_scale)
    return out, (h_n, c_n)
