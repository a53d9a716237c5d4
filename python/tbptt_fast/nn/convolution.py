"""Convolutional modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import ops
from .._types import Activation, Array
from .module import Gradients, Module, Tape, check_dtype, check_sizes, uniform


class _Conv(Module):
    """What all convolutions share: parameters, options, forward and backward."""

    rank: int
    transposed = False
    _op: Callable[..., Array]
    _op_backward: Callable[..., ops.ConvGrads]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        bias: bool,
        seed: int | None,
        dtype: npt.DTypeLike,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        kind, groups, activation = type(self).__name__, options["groups"], options["activation"]
        given = kernel_size if isinstance(kernel_size, Sequence) else [kernel_size] * self.rank
        kernel = tuple(given)
        if len(kernel) != self.rank:
            raise ValueError(f"{kind}: kernel_size: expected {self.rank} sizes, got {kernel_size}")
        check_sizes(kind, in_channels=in_channels, out_channels=out_channels, groups=groups)
        for size in kernel:
            check_sizes(kind, kernel_size=size)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{kind}: groups: expected a divisor of {in_channels} input and {out_channels} "
                f"output channels, got {groups}"
            )
        if activation not in (None, "relu", "tanh", "sigmoid"):
            raise ValueError(
                f"{kind}: activation: expected None, relu, tanh or sigmoid, got {activation!r}"
            )
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel
        self.options = options
        found = check_dtype(kind, dtype)
        rng = np.random.default_rng(seed)
        sides = (in_channels, out_channels) if self.transposed else (out_channels, in_channels)
        shape = (sides[0], sides[1] // groups, *kernel)
        fan = int(np.prod(shape[1:]))
        self._parameters["weight"] = uniform(rng, fan, shape, found)
        if bias:
            self._parameters["bias"] = uniform(rng, fan, (out_channels,), found)

    def _apply(
        self, x: Array, state: Any, is_init: Array | None, keep: bool
    ) -> tuple[Array, Any, Tape | None]:
        self._check_stateless(state)
        weight, bias = self._parameters["weight"], self._parameters.get("bias")
        y = type(self)._op(x, weight, bias, **self.options)
        saved = (x,) if self.options["activation"] is None else (x, y)
        return y, None, Tape(self, saved) if keep else None

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
        x, y = self._saved(tape)[0], self._saved(tape)[-1]
        self._check_stateless(grad_state, "grad_state")
        wanted = {"x": needs_x, "w": True, "b": "bias" in self._parameters}
        grads = type(self)._op_backward(
            self._gradient(grad_y),
            x,
            self._parameters["weight"],
            y=None if self.options["activation"] is None else y,
            **self.options,
            needs=[name for name, needed in wanted.items() if needed],
        )
        found = {"weight": grads.w, "bias": grads.b}
        return Gradients(grads.x, None, {n: g for n, g in found.items() if g is not None})

    def __repr__(self) -> str:
        sizes = f"{self.in_channels}, {self.out_channels}, {self.kernel_size}"
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{type(self).__name__}({sizes}, {options})"


class Conv2d(_Conv):
    """Convolution of images with a fused activation, act None, relu, tanh or sigmoid.

    x [N, in_channels, Y, X] (layout "NHWC": [N, Y, X, in_channels]); parameters weight
    [out_channels, in_channels / groups, *kernel_size] and bias [out_channels], drawn from
    U(-1/sqrt(fan), 1/sqrt(fan)), fan being the size of one kernel. stride, padding, dilation,
    groups and algo are those of `tbptt_fast.conv2d`.

    Raises ValueError for sizes, groups or activation, TypeError for a dtype that is not float32 or
    float64. Source: layout and initialisation of torch.nn.Conv2d.

    >>> conv = Conv2d(3, 8, 3, padding=1, activation="relu", seed=0)
    >>> y, _, tape = conv.forward(np.ones((2, 3, 5, 5), np.float32))
    >>> grads = conv.backward(tape, np.ones_like(y))
    >>> y.shape, grads.x.shape, grads.params["weight"].shape
    ((2, 8, 5, 5), (2, 3, 5, 5), (8, 3, 3, 3))
    """

    rank = 2
    _op = staticmethod(ops.conv2d)
    _op_backward = staticmethod(ops.conv2d_backward)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        activation: Activation = None,
        *,
        layout: str = "NCHW",
        algo: str = "auto",
        seed: int | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        options = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "activation": activation,
            "layout": layout,
            "algo": algo,
        }
        super().__init__(in_channels, out_channels, kernel_size, bias, seed, dtype, options)


class Conv1d(_Conv):
    """`Conv2d` in one dimension: x [N, in_channels, X] (layout "NLC": [N, X, in_channels]).

    padding may also be "causal": no output sees a later input. Parameters, errors and source are
    those of `Conv2d`.

    >>> conv = Conv1d(2, 4, 3, padding="causal", seed=0)
    >>> y, _, _ = conv.forward(np.ones((1, 2, 7), np.float32))
    >>> y.shape
    (1, 4, 7)
    """

    rank = 1
    _op = staticmethod(ops.conv1d)
    _op_backward = staticmethod(ops.conv1d_backward)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        activation: Activation = None,
        *,
        layout: str = "NCL",
        seed: int | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        options = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "activation": activation,
            "layout": layout,
        }
        super().__init__(in_channels, out_channels, kernel_size, bias, seed, dtype, options)


class ConvTranspose2d(_Conv):
    """Transposed convolution of images with a fused activation: `tbptt_fast.conv_transpose2d`.

    x [N, in_channels, Y, X] (layout "NHWC": [N, Y, X, in_channels]); parameters weight
    [in_channels, out_channels / groups, *kernel_size] and bias [out_channels], drawn from
    U(-1/sqrt(fan), 1/sqrt(fan)), fan being the size of weight[0].

    Raises ValueError for sizes, groups or activation, TypeError for a dtype that is not float32 or
    float64. Source: layout and initialisation of torch.nn.ConvTranspose2d.

    >>> conv = ConvTranspose2d(8, 3, 4, stride=2, padding=1, seed=0)
    >>> y, _, _ = conv.forward(np.ones((2, 8, 5, 5), np.float32))
    >>> y.shape
    (2, 3, 10, 10)
    """

    rank = 2
    transposed = True
    _op = staticmethod(ops.conv_transpose2d)
    _op_backward = staticmethod(ops.conv_transpose2d_backward)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        activation: Activation = None,
        *,
        layout: str = "NCHW",
        algo: str = "auto",
        seed: int | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        options = {
            "stride": stride,
            "padding": padding,
            "output_padding": output_padding,
            "dilation": dilation,
            "groups": groups,
            "activation": activation,
            "layout": layout,
            "algo": algo,
        }
        super().__init__(in_channels, out_channels, kernel_size, bias, seed, dtype, options)
