"""Stacks of recurrent layers on images: ConvRNN2d, ConvGRU2d, ConvLSTM2d."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from .. import ops
from .._types import Array, Layout
from .module import Module, check_dtype, check_sizes, uniform
from .recurrent import _PairState, _Recurrent

Size = int | tuple[int, int]


def _pair(kind: str, name: str, value: Size) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int | np.integer) else tuple(value)
    if len(pair) != 2:
        raise ValueError(f"{kind}: {name}: expected an integer or a pair, got {value!r}")
    check_sizes(kind, **{name: pair[0]})
    check_sizes(kind, **{name: pair[1]})
    return int(pair[0]), int(pair[1])


class _ConvRecurrent(_Recurrent):
    """A stack of recurrent layers on images; the cells differ in their ops."""

    _cell: ClassVar[str]

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
        seed: int | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        Module.__init__(self)
        kind = type(self).__name__
        check_sizes(
            kind,
            in_channels=in_channels,
            hidden_channels=hidden_channels,
            num_layers=num_layers,
        )
        self.kernel_size = _pair(kind, "kernel_size", kernel_size)
        if not all(size % 2 for size in self.kernel_size):
            raise ValueError(f"{kind}: kernel_size: expected odd sizes, got {kernel_size!r}")
        if layout not in ("NCHW", "NHWC"):
            raise ValueError(f"{kind}: layout: expected 'NCHW' or 'NHWC', got {layout!r}")
        self.dilation = _pair(kind, "dilation", dilation)
        if not isinstance(recompute, bool):
            raise TypeError(f"{kind}: recompute: expected True or False, got {recompute!r}")
        self.layout: Layout = layout
        self.recompute = recompute
        self.input_size, self.hidden_size, self.num_layers = (
            in_channels,
            hidden_channels,
            num_layers,
        )
        self._names = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if bias else ()))
        found = check_dtype(kind, dtype)
        rng = np.random.default_rng(seed)
        self._set_dropout(dropout, rng)
        rows = self._gates * hidden_channels
        for layer in range(num_layers):
            inputs = hidden_channels if layer else in_channels
            columns = {"weight_ih": inputs, "weight_hh": hidden_channels}
            fan = (inputs + hidden_channels) * self.kernel_size[0] * self.kernel_size[1]
            for name in self._names:
                shape = (rows, columns[name], *self.kernel_size) if name in columns else (rows,)
                self._parameters[f"{name}_l{layer}"] = uniform(rng, fan, shape, found)

    def _images(self, channels: int, *leading: str) -> tuple[str | int, ...]:
        if self.layout == "NCHW":
            return (*leading, channels, "Y", "X")
        return (*leading, "Y", "X", channels)

    def _input_shape(self) -> tuple[str | int, ...]:
        return self._images(self.input_size, "T", "B")

    def _state_shape(self) -> tuple[str | int, ...]:
        return self._images(self.hidden_size, "B")

    def _options(self) -> dict[str, Any]:
        return {}

    def _cell_forward(
        self, x: Array, hx: Any, weights: list[Array], is_init: Array | None, keep: bool
    ) -> tuple[Array, Any, Any]:
        named: dict[str, Any] = dict(zip(self._names, weights, strict=True))
        options = self._options()
        if "peephole" in named:
            options["peephole"] = named["peephole"]
        run = getattr(ops, f"{self._cell}_forward")
        out, state, tape = run(
            x,
            hx,
            named["weight_ih"],
            named["weight_hh"],
            named.get("bias_ih"),
            named.get("bias_hh"),
            is_init=is_init,
            dilation=self.dilation,
            layout=self.layout,
            training=keep,
            recompute=self.recompute,
            **options,
        )
        return out, state, tape

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.input_size}, {self.hidden_size}, {self.kernel_size}, "
            f"{self.num_layers})"
        )


class ConvRNN2d(_ConvRecurrent):
    """Elman network on images: h' = act(W_ih*x + b_ih + W_hh*h + b_hh), act tanh or relu.

    x [T, B, in_channels, Y, X], y [T, B, hidden_channels, Y, X], state h [num_layers, B,
    hidden_channels, Y, X]; with layout "NHWC" the channels come last. Convolutions have stride 1,
    kernels of one odd size for x and h, and as many zeros around as keep the images' size.
    Parameters weight_ih_l0 [H, C, ky, kx], weight_hh_l0 [H, H, ky, kx], bias_ih_l0, bias_hh_l0
    [H], then _l1 and so on. Dropout acts between layers, with masks from a generator that starts
    from `seed`. With `recompute` tapes hold no gates: the backward pass makes them again, for less
    memory and the same gradients (see `tbptt_fast.convrnn_forward`).

    Raises ValueError for sizes, dropout, layout or nonlinearity, TypeError for a dtype that is not
    float32 or float64. Source: Elman (1990), with the products of Shi et al. (2015).

    >>> rnn = ConvRNN2d(1, 4, 3, seed=0)
    >>> y, state, tape = rnn.forward(np.ones((5, 2, 1, 8, 8), np.float32))
    >>> y.shape, state.shape
    ((5, 2, 4, 8, 8), (1, 2, 4, 8, 8))
    """

    _gates = 1
    _cell = "convrnn"

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
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"ConvRNN2d: nonlinearity: expected tanh or relu, got {nonlinearity!r}"
            )
        super().__init__(in_channels, hidden_channels, kernel_size, num_layers, **options)
        self.nonlinearity = nonlinearity

    def _options(self) -> dict[str, Any]:
        return {"nonlinearity": self.nonlinearity}

    _cell_backward = staticmethod(ops.convrnn_backward)


class ConvGRU2d(_ConvRecurrent):
    """Gated recurrent units on images, with the reset gate applied after the convolution.

    Shapes, options and errors as in `ConvRNN2d`, with parameters weight_ih_l0 [3H, C, ky, kx],
    weight_hh_l0 [3H, H, ky, kx], bias_ih_l0, bias_hh_l0 [3H], gates in the order r, z, n.

    Source: Ballas et al., arXiv:1511.06432; gates as in torch.nn.GRU.

    >>> gru = ConvGRU2d(3, 4, (3, 5), num_layers=2, layout="NHWC", seed=0)
    >>> y, state = gru(np.ones((5, 2, 8, 8, 3), np.float32))
    >>> y.shape, state.shape
    ((5, 2, 8, 8, 4), (2, 2, 8, 8, 4))
    """

    _gates = 3
    _cell = "convgru"
    _cell_backward = staticmethod(ops.convgru_backward)


class ConvLSTM2d(_PairState, _ConvRecurrent):
    """Long short-term memory on images; the state is the pair (h, c).

    Shapes, options and errors as in `ConvRNN2d`, with h and c [num_layers, B, hidden_channels, Y,
    X] and parameters weight_ih_l0 [4H, C, ky, kx], weight_hh_l0 [4H, H, ky, kx], bias_ih_l0,
    bias_hh_l0 [4H], gates in the order i, f, g, o. `peephole` adds peephole_l0, the weights of
    i, f and o by which they see c: True for one a channel [3, H], the images' size (Y, X) for one
    a channel and pixel [3, H, Y, X] ("NHWC": [3, Y, X, H]), as in the source.

    Source: Shi et al., arXiv:1506.04214; gates as in torch.nn.LSTM.

    >>> lstm = ConvLSTM2d(1, 4, 3, peephole=True, seed=0)
    >>> y, (h, c), tape = lstm.forward(np.ones((5, 2, 1, 8, 8), np.float32))
    >>> grads = lstm.backward(tape, np.ones_like(y), truncation=2)
    >>> grads.x.shape, grads.params["peephole_l0"].shape
    ((5, 2, 1, 8, 8), (3, 4))
    """

    _gates = 4
    _cell = "convlstm"
    _cell_backward = staticmethod(ops.convlstm_backward)

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: Size,
        num_layers: int = 1,
        *,
        peephole: bool | tuple[int, int] = False,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, hidden_channels, kernel_size, num_layers, **options)
        if peephole is False:
            return
        shape: tuple[int, ...] = (3, hidden_channels)
        if peephole is not True:
            size = _pair("ConvLSTM2d", "peephole", peephole)
            maps = (hidden_channels, *size) if self.layout == "NCHW" else (*size, hidden_channels)
            shape = (3, *maps)
        self._names = (*self._names, "peephole")
        dtype = self._parameters["weight_hh_l0"].dtype
        for layer in range(num_layers):
            self._parameters[f"peephole_l{layer}"] = np.zeros(shape, dtype)

    @classmethod
    def from_ifog(cls, layers: Sequence[tuple[Array, Array | None]], **options: Any) -> ConvLSTM2d:
        """Return a module with the weights of the usual PyTorch cell.

        That cell has one convolution over cat([x, h], 1), and its output's channels are split into
        the gates i, f, o, g.

        Args:
            layers: a pair for each layer: weight [4H, C + H, ky, kx] and bias [4H] or None.
            options: dilation, layout, recompute and dropout, of this class.

        Raises:
            ValueError: a wrong shape, or layers that do not fit together.

        >>> weight, bias = np.ones((16, 1 + 4, 3, 3), np.float32), np.zeros(16, np.float32)
        >>> ConvLSTM2d.from_ifog([(weight, bias)])
        ConvLSTM2d(1, 4, (3, 3), 1)
        """
        where = "ConvLSTM2d.from_ifog: layers"
        if not layers:
            raise ValueError(f"{where}: expected at least one, got none")
        first = np.asarray(layers[0][0])
        hidden = first.shape[0] // 4 if first.ndim == 4 else 0
        inputs = first.shape[1] - hidden if first.ndim == 4 else 0
        state: dict[str, Array] = {}
        for i, (weight, bias) in enumerate(layers):
            w, columns = np.asarray(weight), hidden + (hidden if i else inputs)
            if hidden < 1 or w.shape != (4 * hidden, columns, *first.shape[2:]) or inputs < 1:
                raise ValueError(
                    f"{where}[{i}]: expected a weight [4H, C + H, ky, kx] with the H and kernel of "
                    f"the first, got shape {list(w.shape)}"
                )
            order = _ifgo_from_ifog(hidden)
            split = columns - hidden
            state[f"weight_ih_l{i}"] = w[order, :split].copy()
            state[f"weight_hh_l{i}"] = w[order, split:].copy()
            b = np.zeros(4 * hidden, w.dtype) if bias is None else np.asarray(bias)
            if b.shape != (4 * hidden,):
                raise ValueError(
                    f"{where}[{i}]: expected a bias [{4 * hidden}], got shape {list(b.shape)}"
                )
            state[f"bias_ih_l{i}"] = b[order].copy()
            state[f"bias_hh_l{i}"] = np.zeros_like(b)
        kernel = (first.shape[2], first.shape[3])
        module = cls(inputs, hidden, kernel, len(layers), dtype=first.dtype, **options)
        module.load_state_dict(state)
        return module


def _ifgo_from_ifog(hidden: int) -> Array:
    """Where the channels of the gates i, f, g, o lie in the order i, f, o, g."""
    channels = np.arange(4 * hidden).reshape(4, hidden)
    return channels[[0, 1, 3, 2]].ravel()
