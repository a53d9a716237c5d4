"""Layers as pairs of pure functions, `init` and `apply`; part of `tbptt_fast.jax`.

A layer is a frozen record of sizes and options: it holds no array, is hashable, and may be a static
argument. `init(key)` draws its parameters, a dict of arrays by PyTorch's names, which are those of
`tbptt_fast.nn` and `tbptt_fast.torch`, too: what one of them saved fits all. `apply(params, x)`
works under `jit`, `grad`, `vmap`, `lax.scan` and `shard_map`, as the functions do that it calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import numpy.typing as npt
from jax import numpy as jnp

from .._options import plain_cell
from .._state import check_names
from .._types import Activation, Layout
from ..nn.module import check_dtype, check_sizes
from ._layer import Array, Layer, Params, Shapes, Stack, per_axis
from .convolution import Extent, Sides, conv1d, conv2d, hashable
from .convrecurrent import convgru, convlstm, convrnn
from .recurrent import Backend, gru, lstm, rnn

__all__ = ["GRU", "LSTM", "RNN", "Conv1d", "Conv2d", "ConvGRU2d", "ConvLSTM2d", "ConvRNN2d"]


def _ordered(weights: Params) -> list[Array | None]:
    """In the order of arguments."""
    return [weights.get(name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


@dataclass(frozen=True)
class _Recurrent(Stack):
    input_size: int
    hidden_size: int
    num_layers: int = 1
    _: KW_ONLY
    bias: bool = True
    dropout: float = 0.0
    dtype: npt.DTypeLike = jnp.float32
    backend: Backend = "ffi"
    _function: ClassVar[Callable[..., Any]]

    def __post_init__(self) -> None:
        check_sizes(self._kind, input_size=self.input_size, hidden_size=self.hidden_size)
        self._check_stack()
        self._set(dtype=check_dtype(self._kind, self.dtype))

    def _layer_shapes(self, layer: int) -> Shapes:
        rows, bound = self._gates * self.hidden_size, self.hidden_size**-0.5
        inputs = self.hidden_size if layer else self.input_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (rows, inputs),
            "weight_hh": (rows, self.hidden_size),
        }
        if self.bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        return {name: (shape, bound) for name, shape in shapes.items()}

    def _run(self, weights: Params, x: Array, hx: Any, options: dict[str, Any]) -> Any:
        return type(self)._function(x, hx, *_ordered(weights), backend=self.backend, **options)

    def zero_state(self, batch: int) -> Any:
        """The state [num_layers, batch, hidden_size] of zeros; of an LSTM the pair (h, c)."""
        return self._zeros(batch, self.hidden_size)


@dataclass(frozen=True, kw_only=True)
class RNN(_Recurrent):
    """Elman network: h' = act(W_ih x + b_ih + W_hh h + b_hh), act tanh or relu.

    x [T, B, input_size], y [T, B, hidden_size], state h [num_layers, B, hidden_size]; parameters
    weight_ih_l0 [H, I], weight_hh_l0 [H, H], bias_ih_l0, bias_hh_l0 [H], then _l1 and so on, all
    from U(-1/sqrt(H), 1/sqrt(H)). Dropout acts between layers, where `apply` is given a key.
    backend is that of `tbptt_fast.jax.rnn`.

    Raises ValueError for sizes, dropout or nonlinearity, TypeError for a dtype that is not float32
    or float64. Source: Elman, Finding structure in time (1990); layout of torch.nn.RNN.

    >>> import jax, jax.numpy as jnp
    >>> layer = RNN(3, 4)
    >>> params = layer.init(jax.random.key(0))
    >>> y, state = layer.apply(params, jnp.ones((5, 2, 3)), truncation=2)
    >>> y.shape, state.shape
    ((5, 2, 4), (1, 2, 4))
    """

    nonlinearity: Literal["tanh", "relu"] = "tanh"
    _gates = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        plain_cell("RNN", self.nonlinearity)

    def _run(self, weights: Params, x: Array, hx: Any, options: dict[str, Any]) -> Any:
        return super()._run(weights, x, hx, {"nonlinearity": self.nonlinearity, **options})

    _function = staticmethod(rnn)


@dataclass(frozen=True)
class GRU(_Recurrent):
    """Gated recurrent units, with the reset gate applied after the recurrent product.

    Shapes, options and errors as in `RNN`, with parameters weight_ih_l0 [3H, I], weight_hh_l0
    [3H, H], bias_ih_l0, bias_hh_l0 [3H], gates in the order r, z, n.

    Source: Cho et al., arXiv:1406.1078; layout of torch.nn.GRU.

    >>> import jax, jax.numpy as jnp
    >>> layer = GRU(3, 4, num_layers=2, dropout=0.1)
    >>> params = layer.init(jax.random.key(0))
    >>> y, state = layer.apply(params, jnp.ones((5, 2, 3)), key=jax.random.key(1))
    >>> y.shape, state.shape
    ((5, 2, 4), (2, 2, 4))
    """

    _gates = 3
    _function = staticmethod(gru)


@dataclass(frozen=True)
class LSTM(_Recurrent):
    """Long short-term memory; the state is the pair (h, c).

    Shapes, options and errors as in `RNN`, with h and c [num_layers, B, hidden_size] and parameters
    weight_ih_l0 [4H, I], weight_hh_l0 [4H, H], bias_ih_l0, bias_hh_l0 [4H], gates in the order
    i, f, g, o.

    Source: Hochreiter and Schmidhuber (1997), forget gate of Gers et al. (2000); layout of
    torch.nn.LSTM.

    >>> import jax, jax.numpy as jnp
    >>> layer = LSTM(3, 4)
    >>> params = layer.init(jax.random.key(0))
    >>> def loss(params, state):
    ...     y, state = layer.apply(params, jnp.ones((5, 2, 3)), state, truncation=(1, 3))
    ...     return y.sum(), state
    >>> grads, (h, c) = jax.grad(loss, has_aux=True)(params, layer.zero_state(2))
    >>> grads["weight_hh_l0"].shape, h.shape, c.shape
    ((16, 4), (1, 2, 4), (1, 2, 4))
    """

    _gates = 4
    _pair = True
    _function = staticmethod(lstm)


@dataclass(frozen=True)
class _ConvRecurrent(Stack):
    in_channels: int
    hidden_channels: int
    kernel_size: int | Sequence[int]
    num_layers: int = 1
    _: KW_ONLY
    dilation: int | tuple[int, int] = 1
    layout: Layout = "NCHW"
    recompute: bool = False
    bias: bool = True
    dropout: float = 0.0
    dtype: npt.DTypeLike = jnp.float32
    _function: ClassVar[Callable[..., Any]]

    def __post_init__(self) -> None:
        kind = self._kind
        check_sizes(kind, in_channels=self.in_channels, hidden_channels=self.hidden_channels)
        self._check_stack()
        kernel = per_axis(kind, "kernel_size", self.kernel_size, 2)
        if not all(size % 2 for size in kernel):
            raise ValueError(f"{kind}: kernel_size: expected odd sizes, got {self.kernel_size!r}")
        if self.layout not in ("NCHW", "NHWC"):
            raise ValueError(f"{kind}: layout: expected 'NCHW' or 'NHWC', got {self.layout!r}")
        dilation = per_axis(kind, "dilation", self.dilation, 2)
        self._set(kernel_size=kernel, dilation=dilation, dtype=check_dtype(kind, self.dtype))

    def _layer_shapes(self, layer: int) -> Shapes:
        kernel = per_axis(self._kind, "kernel_size", self.kernel_size, 2)
        rows, inputs = self._gates * self.hidden_channels, self.in_channels
        inputs = self.hidden_channels if layer else inputs
        bound = ((inputs + self.hidden_channels) * kernel[0] * kernel[1]) ** -0.5
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (rows, inputs, *kernel),
            "weight_hh": (rows, self.hidden_channels, *kernel),
        }
        if self.bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        return {name: (shape, bound) for name, shape in shapes.items()}

    def _run(self, weights: Params, x: Array, hx: Any, options: dict[str, Any]) -> Any:
        return type(self)._function(
            x,
            hx,
            *_ordered(weights),
            dilation=self.dilation,
            layout=self.layout,
            recompute=self.recompute,
            **options,
        )

    def _images(self, size: Sequence[int]) -> tuple[int, ...]:
        """The shape of a state without its batch, for images of a size (Y, X)."""
        return (
            (self.hidden_channels, *size)
            if self.layout == "NCHW"
            else (*size, self.hidden_channels)
        )

    def zero_state(self, batch: int, size: Sequence[int]) -> Any:
        """The state of zeros for images of the size (Y, X); of a ConvLSTM2d the pair (h, c)."""
        return self._zeros(batch, *self._images(size))


@dataclass(frozen=True, kw_only=True)
class ConvRNN2d(_ConvRecurrent):
    """Elman network on images: h' = act(W_ih*x + b_ih + W_hh*h + b_hh), act tanh or relu.

    x [T, B, in_channels, Y, X], y [T, B, hidden_channels, Y, X], state h [num_layers, B,
    hidden_channels, Y, X]; with layout "NHWC" the channels come last. Convolutions have stride 1,
    kernels of one odd size for x and h, and as many zeros around as keep the images' size.
    Parameters weight_ih_l0 [H, C, ky, kx], weight_hh_l0 [H, H, ky, kx], bias_ih_l0, bias_hh_l0
    [H], then _l1 and so on, drawn as in `tbptt_fast.nn.ConvRNN2d`. Dropout acts between layers,
    where `apply` is given a key; recompute is that of `tbptt_fast.jax.convrnn`.

    Raises ValueError for sizes, dropout, layout or nonlinearity, TypeError for a dtype that is not
    float32 or float64. Source: Elman (1990), with the products of Shi et al. (2015).

    >>> import jax, jax.numpy as jnp
    >>> layer = ConvRNN2d(1, 4, 3)
    >>> params = layer.init(jax.random.key(0))
    >>> y, state = layer.apply(params, jnp.ones((5, 2, 1, 8, 8)))
    >>> y.shape, state.shape
    ((5, 2, 4, 8, 8), (1, 2, 4, 8, 8))
    """

    nonlinearity: Literal["tanh", "relu"] = "tanh"
    _gates = 1
    _function = staticmethod(convrnn)

    def __post_init__(self) -> None:
        super().__post_init__()
        plain_cell("ConvRNN2d", self.nonlinearity)

    def _run(self, weights: Params, x: Array, hx: Any, options: dict[str, Any]) -> Any:
        return super()._run(weights, x, hx, {"nonlinearity": self.nonlinearity, **options})


@dataclass(frozen=True)
class ConvGRU2d(_ConvRecurrent):
    """Gated recurrent units on images, with the reset gate applied after the convolution.

    Shapes, options and errors as in `ConvRNN2d`, with parameters weight_ih_l0 [3H, C, ky, kx],
    weight_hh_l0 [3H, H, ky, kx], bias_ih_l0, bias_hh_l0 [3H], gates in the order r, z, n.

    Source: Ballas et al., arXiv:1511.06432; gates as in torch.nn.GRU.

    >>> import jax, jax.numpy as jnp
    >>> layer = ConvGRU2d(3, 4, (3, 5), num_layers=2, layout="NHWC")
    >>> params = layer.init(jax.random.key(0))
    >>> y, state = layer.apply(params, jnp.ones((5, 2, 8, 8, 3)), layer.zero_state(2, (8, 8)))
    >>> y.shape, state.shape
    ((5, 2, 8, 8, 4), (2, 2, 8, 8, 4))
    """

    _gates = 3
    _function = staticmethod(convgru)


@dataclass(frozen=True, kw_only=True)
class ConvLSTM2d(_ConvRecurrent):
    """Long short-term memory on images; the state is the pair (h, c).

    Shapes, options and errors as in `ConvRNN2d`, with h and c [num_layers, B, hidden_channels, Y,
    X] and parameters weight_ih_l0 [4H, C, ky, kx], weight_hh_l0 [4H, H, ky, kx], bias_ih_l0,
    bias_hh_l0 [4H], gates in the order i, f, g, o. `peephole` adds peephole_l0 of zeros, the
    weights of i, f and o by which they see c: True for one a channel [3, H], the images' size
    (Y, X) for one a channel and pixel [3, H, Y, X] ("NHWC": [3, Y, X, H]).

    Source: Shi et al., arXiv:1506.04214; gates as in torch.nn.LSTM.

    >>> import jax, jax.numpy as jnp
    >>> layer = ConvLSTM2d(1, 4, 3, peephole=True)
    >>> params = layer.init(jax.random.key(0))
    >>> y, (h, c) = layer.apply(params, jnp.ones((5, 2, 1, 8, 8)))
    >>> y.shape, params["peephole_l0"].shape
    ((5, 2, 4, 8, 8), (3, 4))
    """

    peephole: bool | tuple[int, int] = False
    _gates = 4
    _pair = True
    _function = staticmethod(convlstm)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.peephole, bool):
            self._set(peephole=per_axis("ConvLSTM2d", "peephole", self.peephole, 2))

    def _layer_shapes(self, layer: int) -> Shapes:
        shapes = super()._layer_shapes(layer)
        if self.peephole is False:
            return shapes
        pixels = (self.hidden_channels,) if self.peephole is True else self._images(self.peephole)
        return {**shapes, "peephole": ((3, *pixels), 0.0)}

    def _run(self, weights: Params, x: Array, hx: Any, options: dict[str, Any]) -> Any:
        return super()._run(weights, x, hx, {"peephole": weights.get("peephole"), **options})


@dataclass(frozen=True)
class _Conv(Layer):
    in_channels: int
    out_channels: int
    kernel_size: int | Sequence[int]
    stride: Extent = 1
    padding: Extent | Sides | str = 0
    dilation: Extent = 1
    groups: int = 1
    bias: bool = True
    activation: Activation = None
    _: KW_ONLY
    dtype: npt.DTypeLike = jnp.float32
    layout: str
    _rank: ClassVar[int]
    _function: ClassVar[Callable[..., Any]]

    def __post_init__(self) -> None:
        kind, inputs, outputs = self._kind, self.in_channels, self.out_channels
        check_sizes(kind, in_channels=inputs, out_channels=outputs, groups=self.groups)
        if inputs % self.groups or outputs % self.groups:
            raise ValueError(
                f"{kind}: groups: expected a divisor of {inputs} input and {outputs} output "
                f"channels, got {self.groups}"
            )
        self._set(
            kernel_size=per_axis(kind, "kernel_size", self.kernel_size, self._rank),
            stride=hashable(self.stride),
            padding=hashable(self.padding),
            dilation=hashable(self.dilation),
            dtype=check_dtype(kind, self.dtype),
        )

    def _shapes(self) -> Shapes:
        kernel = per_axis(self._kind, "kernel_size", self.kernel_size, self._rank)
        shape = (self.out_channels, self.in_channels // self.groups, *kernel)
        bound = math.prod(shape[1:]) ** -0.5
        bias = {"bias": ((self.out_channels,), bound)} if self.bias else {}
        return {"weight": (shape, bound), **bias}

    def apply(self, params: Params, x: Array) -> Array:
        """The convolution of x, with the activation.

        Raises:
            TypeError, ValueError: a wrong dtype; a wrong name, shape or value.
        """
        check_names(f"{self._kind}: params", self.names, params)
        y: Array = type(self)._function(
            x,
            params["weight"],
            params.get("bias"),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            activation=self.activation,
            layout=self.layout,
        )
        return y


@dataclass(frozen=True, kw_only=True)
class Conv2d(_Conv):
    """Convolution of images with a fused activation, None, relu, tanh or sigmoid.

    x [N, in_channels, Y, X] (layout "NHWC": [N, Y, X, in_channels]); parameters weight
    [out_channels, in_channels / groups, *kernel_size] and bias [out_channels], drawn from
    U(-1/sqrt(fan), 1/sqrt(fan)), fan being the size of one kernel. stride, padding, dilation and
    groups are those of `tbptt_fast.jax.conv2d`.

    Raises ValueError for sizes or groups, TypeError for a dtype that is not float32 or float64.
    Source: layout and initialisation of torch.nn.Conv2d.

    >>> import jax, jax.numpy as jnp
    >>> layer = Conv2d(3, 8, 3, padding=1, activation="relu")
    >>> params = layer.init(jax.random.key(0))
    >>> layer.apply(params, jnp.ones((2, 3, 5, 5))).shape, params["weight"].shape
    ((2, 8, 5, 5), (8, 3, 3, 3))
    """

    layout: Layout = "NCHW"
    _rank = 2
    _function = staticmethod(conv2d)


@dataclass(frozen=True, kw_only=True)
class Conv1d(_Conv):
    """`Conv2d` in one dimension: x [N, in_channels, X] (layout "NLC": [N, X, in_channels]).

    padding may also be "causal": no output sees a later input. Parameters, errors and source are
    those of `Conv2d`.

    >>> import jax, jax.numpy as jnp
    >>> layer = Conv1d(2, 4, 3, padding="causal")
    >>> layer.apply(layer.init(jax.random.key(0)), jnp.ones((1, 2, 7))).shape
    (1, 4, 7)
    """

    layout: Literal["NCL", "NLC"] = "NCL"
    _rank = 1
    _function = staticmethod(conv1d)
