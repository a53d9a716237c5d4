"""ConvRNN2d, ConvGRU2d and ConvLSTM2d, stacks of layers on images; part of `tbptt_fast.torch`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .. import nn as native
from .._options import Cell
from .._types import Layout
from ..ops import Truncation
from .convrecurrent_ops import Size, run_layer


class _ConvRecurrent(nn.Module):
    """A stack of layers; sizes, options and parameters are those of `tbptt_fast.nn`'s class."""

    _cell: Cell
    _native: type[Any]

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: Size,
        num_layers: int = 1,
        *,
        dilation: Size = 1,
        layout: Layout = "NCHW",
        recompute: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        # the checks, the shapes and the names of the parameters are the native class's
        model = self._native(
            in_channels,
            hidden_channels,
            kernel_size,
            num_layers,
            dilation=dilation,
            layout=layout,
            recompute=recompute,
            bias=bias,
            dropout=dropout,
            seed=int(torch.randint(2**31, ()).item()),
            **options,
        )
        self.in_channels, self.hidden_channels = in_channels, hidden_channels
        self.kernel_size, self.num_layers = model.kernel_size, num_layers
        self.dilation, self.layout, self.dropout = model.dilation, model.layout, dropout
        self.recompute = model.recompute
        for name, array in model.parameters().items():
            tensor = torch.from_numpy(array).to(dtype or torch.get_default_dtype())
            self.register_parameter(name, nn.Parameter(tensor))

    def extra_repr(self) -> str:
        sizes = f"{self.in_channels}, {self.hidden_channels}, {self.kernel_size}"
        return f"{sizes}, num_layers={self.num_layers}, layout={self.layout}"

    def _weights(self, layer: int) -> list[Tensor | None]:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "peephole")
        return [getattr(self, f"{name}_l{layer}", None) for name in names]

    def _run(
        self,
        x: Tensor,
        states: Sequence[Tensor | None],
        is_init: Tensor | None,
        truncation: Truncation,
        carry_scale: Tensor | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """The output and the last states, each [layers, …]."""
        kind, last = type(self).__name__, []
        for i, state in enumerate(states):
            if state is not None and (state.dim() != 5 or len(state) != self.num_layers):
                raise ValueError(
                    f"{kind}: {'hc'[i]}: expected {self.num_layers} states of 4 dimensions, "
                    f"got shape {list(state.shape)}"
                )
        for layer in range(self.num_layers):
            if layer and self.dropout:
                x = nn.functional.dropout(x, self.dropout, self.training)
            x, *found = run_layer(
                kind,
                self._cell,
                x,
                [None if s is None else s[layer] for s in states],
                self._weights(layer),
                is_init,
                truncation,
                carry_scale,
                self.dilation,
                self.layout,
                self.recompute,
            )
            last.append(found)
        return x, [torch.stack(s) for s in zip(*last, strict=True)]

    def forward(
        self,
        input: Tensor,
        hx: Any = None,
        *,
        is_init: Tensor | None = None,
        truncation: Truncation = None,
        carry_scale: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Run the stack over time.

        Args:
            input: [T, B, C, Y, X], with layout "NHWC" [T, B, Y, X, C].
            hx: the state before step 0 [layers, B, H, Y, X], a ConvLSTM's as the pair (h, c);
                None means zeros.
            is_init: bool [T, B]; True at (t, b) zeroes the states of all layers that enter step t
                of row b.
            truncation: of the backward pass, in every layer: None, K or (k1, k2), see
                `tbptt_fast.convlstm_backward`.
            carry_scale: [T, B]; multiplies the gradient that flows from step t back to step t - 1
                in every layer.

        Returns:
            The last layer's outputs [T, B, H, Y, X] and the last states, as `hx`.

        Raises:
            TypeError, ValueError, RuntimeError: see `tbptt_fast.torch.convrnn`.
        """
        out, (h,) = self._run(input, (hx,), is_init, truncation, carry_scale)
        return out, h


class ConvRNN2d(_ConvRecurrent):
    """`tbptt_fast.nn.ConvRNN2d` as a module of PyTorch; its options but `seed`, and `dtype`.

    >>> rnn = ConvRNN2d(1, 4, 3)
    >>> out, h = rnn(torch.ones(5, 2, 1, 8, 8), truncation=2)
    >>> out.shape, h.shape
    (torch.Size([5, 2, 4, 8, 8]), torch.Size([1, 2, 4, 8, 8]))
    """

    _native = native.ConvRNN2d

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: Size,
        num_layers: int = 1,
        *,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        **options: Any,
    ) -> None:
        super().__init__(
            in_channels,
            hidden_channels,
            kernel_size,
            num_layers,
            nonlinearity=nonlinearity,
            **options,
        )
        self._cell = "rnn_relu" if nonlinearity == "relu" else "rnn_tanh"


class ConvGRU2d(_ConvRecurrent):
    """`tbptt_fast.nn.ConvGRU2d` as a module of PyTorch; its options but `seed`, and `dtype`.

    >>> gru = ConvGRU2d(1, 4, 3, num_layers=2)
    >>> out, h = gru(torch.ones(5, 2, 1, 8, 8))
    >>> out.sum().backward()
    >>> h.shape, gru.weight_hh_l1.grad.shape
    (torch.Size([2, 2, 4, 8, 8]), torch.Size([12, 4, 3, 3]))
    """

    _cell = "gru"
    _native = native.ConvGRU2d


class ConvLSTM2d(_ConvRecurrent):
    """`tbptt_fast.nn.ConvLSTM2d` as a module of PyTorch; its options but `seed`, and `dtype`.

    `tbptt_fast.nn.ConvLSTM2d.from_ifog` converts the weights of the usual cell, one convolution
    over [x, h] with gates i, f, o, g; its `state_dict` holds arrays by the names of this one.

    >>> lstm = ConvLSTM2d(1, 4, 3, peephole=True)
    >>> out, (h, c) = lstm(torch.ones(5, 2, 1, 8, 8), truncation=2)
    >>> out.sum().backward()
    >>> c.shape, lstm.peephole_l0.grad.shape
    (torch.Size([1, 2, 4, 8, 8]), torch.Size([3, 4]))
    """

    _cell = "lstm"
    _native = native.ConvLSTM2d

    def forward(
        self,
        input: Tensor,
        hx: Any = None,
        *,
        is_init: Tensor | None = None,
        truncation: Truncation = None,
        carry_scale: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        states = (None, None) if hx is None else tuple(hx)
        if len(states) != 2:
            raise ValueError(f"ConvLSTM2d: hx: expected a pair (h, c), got {len(states)} items")
        out, (h, c) = self._run(input, states, is_init, truncation, carry_scale)
        return out, (h, c)

    forward.__doc__ = _ConvRecurrent.forward.__doc__
