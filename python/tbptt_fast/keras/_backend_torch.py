"""Keras's layers on the operators of `tbptt_fast.torch`; part of `tbptt_fast.keras`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._options import Cell
from .._types import Activation, Layout
from ..torch import convrecurrent_ops, recurrent_ops
from ..torch._bridge import check_device
from ..torch.convolution_ops import run_convolution
from ._backend import Padding

missing: str | None = None
supports_jit = True

_ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}


def _in_order(*tensors: Tensor | None) -> list[Tensor | None]:
    """Contiguous tensors: turned ones would be copied in the backward pass again.

    PyTorch copies on all of its threads, which then wait for more work, spinning, while the pass
    wants their processors.
    """
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def recurrent(
    cell: Cell,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    is_init: Tensor | None,
    truncation: list[int] | None,
) -> tuple[Tensor, ...]:
    check_device(cell, x=x)
    given = _in_order(*states), _in_order(*weights)
    return recurrent_ops.run_layer(cell, x.contiguous(), *given, is_init, truncation)


def convlstm(
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    is_init: Tensor | None,
    truncation: list[int] | None,
    layout: Layout,
) -> tuple[Tensor, ...]:
    w_ih, w_hh, b = weights
    pair = None if truncation is None else (truncation[0], truncation[1])
    return convrecurrent_ops.run_layer(
        "convlstm",
        "lstm",
        x,
        states,
        (w_ih, w_hh, b, None, None),
        is_init,
        pair,
        None,
        1,
        layout,
        False,
    )


def _sides(size: int, kernel: int, stride: int, dilation: int) -> list[int]:
    """The zeros before and behind of padding="same": an odd one goes behind."""
    total = max((-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    return [total // 2, total - total // 2]


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
    check_device("convolution", x=x)
    planes = x.permute(0, 3, 1, 2) if layout == "NHWC" else x
    if padding == "same":
        windows = zip(planes.shape[2:], w.shape[2:], stride, dilation, strict=True)
        sides = [side for window in windows for side in _sides(*window)]
    else:
        sides = [*padding[0], *padding[1]]
    y = run_convolution(planes, w, b, stride, sides, dilation, groups)
    if activation is not None:
        y = _ACTIVATIONS[activation](y)
    return y.permute(0, 2, 3, 1) if layout == "NHWC" else y
