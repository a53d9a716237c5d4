"""Convolutional modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import ops
from .._types import Activation, Array
from .module import Gradients, Module, Tape, check_dtype, check_sizes, uniform


class _Conv(Module):
    """What the dimensions share: parameters, options, forward and backward."""

    rank: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        bias: bool,
        activation: Activation,
        layout: Any,
        seed: int | None,
        dtype: npt.DTypeLike,
    ) -> None:
        super().__init__()
        kind = type(self).__name__
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
        self.options: dict[str, Any] = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "activation": activation,
            "layout": layout,
        }
        found = check_dtype(kind, dtype)
        rng = np.random.default_rng(seed)
        fan = in_channels // groups * int(np.prod(kernel))
        shape = (out_channels, in_channels // groups, *kernel)
        self._parameters["weight"] = uniform(rng, fan, shape, found)
        if bias:
            self._parameters["bias"] = uniform(rng, fan, (out_channels,), found)

    def _apply(
        self, x: Array, state: Any, is_init: Array | None, keep: bool
    ) -> tuple[Array, Any, Tape | None]:
        self._check_stateless(state)
        weight, bias = self._parameters["weight"], self._parameters.get("bias")
        y = (ops.conv1d if self.rank == 1 else ops.conv2d)(x, weight, bias, **self.options)
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
        grads = (ops.conv1d_backward if self.rank == 1 else ops.conv2d_backward)(
            self._gradient(grad_y),
            x,
            self._parameters["weight"],
            y=None if self.options["activation"] is None else y,
            **self.options,
            needs=[name for name, needed in wanted.items() if needed],  # type: ignore[misc]
        )
        found = {"weight": grads.w, "bias": grads.b}
        return Gradients(grads.x, None, {n: g for n, g in found.items() if g is not None})

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        kernel = self.kernel_size
        return (
            f"{type(self).__name__}({self.in_channels}, {self.out_channels}, {kernel}, {options})"
        )


class Conv2d(_Conv):
    """Convolution of images with a fused activation, act None, relu, tanh or sigmoid.

    x [N, in_channels, Y, X] (layout "NHWC": [N, Y, X, in_channels]); parameters weight
    [out_channels, in_channels / groups, *kernel_size] and bias [out_channels], drawn from
    U(-1/sqrt(fan), 1/sqrt(fan)), fan being the size of one kernel. stride, padding, dilation and
    groups are those of `tbptt_fast.conv2d`.

    Raises ValueError for sizes, groups or activation, TypeError for a dtype that is not float32 or
    float64. Source: layout and initialisation of torch.nn.Conv2d.

    >>> conv = Conv2d(3, 8, 3, padding=1, activation="relu", seed=0)
    >>> y, _, tape = conv.forward(np.ones((2, 3, 5, 5), np.float32))
    >>> grads = conv.backward(tape, np.ones_like(y))
    >>> y.shape, grads.x.shape, grads.params["weight"].shape
    ((2, 8, 5, 5), (2, 3, 5, 5), (8, 3, 3, 3))
    """

    rank = 2

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
        seed: int | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            activation,
            layout,
            seed,
            dtype,
        )


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
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            activation,
            layout,
            seed,
            dtype,
        )
