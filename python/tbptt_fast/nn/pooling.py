"""Pooling modules; leading axes, such as time and batch, are images to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import ops
from .._types import Array
from ..ops_pooling import Padding
from .stateless import Stateless

Pair = int | Sequence[int]


def folded(kind: str, x: Array, axes: int = 3) -> Array:
    """x with everything before its last `axes` axes in one."""
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{kind}: expected an array, got {type(x).__name__}")
    if x.ndim < axes:
        raise ValueError(f"{kind}: expected at least {axes} dimensions, got shape {list(x.shape)}")
    rows = int(np.prod(x.shape[: x.ndim - axes], dtype=np.int64))
    return x.reshape(rows, *x.shape[x.ndim - axes :])


def checked_layout(kind: str, layout: ops.Layout) -> ops.Layout:
    """The layout, or a ValueError."""
    if layout not in ("NCHW", "NHWC"):
        raise ValueError(f"{kind}: layout: expected 'NCHW' or 'NHWC', got {layout!r}")
    return layout


class MaxPool2d(Stateless):
    """Largest values of windows: `ops.max_pool2d` on x [..., C, Y, X] ("NHWC": [..., Y, X, C]).

    kernel_size, stride, padding and ceil_mode are those of the op; the stride is the kernel unless
    given. Raises ValueError for the layout, and in `forward` what the op raises. Source: torch.nn.

    >>> pool = MaxPool2d(2)
    >>> y, _, tape = pool.forward(np.zeros((5, 3, 8, 6, 4)))
    >>> y.shape, pool.backward(tape, y).x.shape
    ((5, 3, 8, 3, 2), (5, 3, 8, 6, 4))
    """

    def __init__(
        self,
        kernel_size: Pair,
        stride: Pair | None = None,
        padding: Padding = 0,
        *,
        ceil_mode: bool = False,
        layout: ops.Layout = "NCHW",
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.ceil_mode = ceil_mode
        self.layout = checked_layout("MaxPool2d", layout)

    def _value(self, x: Array) -> tuple[Array, tuple[Any, ...]]:
        images = folded("MaxPool2d: x", x)
        y, indices = ops.max_pool2d(
            images,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            ceil_mode=self.ceil_mode,
            layout=self.layout,
        )
        return y.reshape(*x.shape[:-3], *y.shape[1:]), (indices, images.shape, x.shape)

    def _gradient_of_x(self, grad_y: Array, *saved: Any) -> Array:
        shape: tuple[int, ...]
        indices, images, shape = saved
        grad = ops.max_pool2d_backward(
            folded("MaxPool2d.backward: grad_y", grad_y), indices, images, layout=self.layout
        )
        return grad.reshape(shape)

    def __repr__(self) -> str:
        return f"MaxPool2d({self.kernel_size}, stride={self.stride}, padding={self.padding})"


class AvgPool2d(Stateless):
    """Means of windows: `ops.avg_pool2d` on x [..., C, Y, X] ("NHWC": [..., Y, X, C]).

    kernel_size, stride, padding and ceil_mode are those of the op; the stride is the kernel unless
    given. Raises ValueError for the layout, and in `forward` what the op raises. Source: torch.nn.

    >>> pool = AvgPool2d(3, stride=1, padding=1)
    >>> y, _, tape = pool.forward(np.ones((5, 8, 6, 4)))
    >>> y.shape, pool.backward(tape, y).x.shape
    ((5, 8, 6, 4), (5, 8, 6, 4))
    """

    def __init__(
        self,
        kernel_size: Pair,
        stride: Pair | None = None,
        padding: Padding = 0,
        count_include_pad: bool = True,
        *,
        ceil_mode: bool = False,
        layout: ops.Layout = "NCHW",
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad
        self.layout = checked_layout("AvgPool2d", layout)

    def _options(self) -> dict[str, Any]:
        names = ("stride", "padding", "ceil_mode", "count_include_pad", "layout")
        return {name: getattr(self, name) for name in names}

    def _value(self, x: Array) -> tuple[Array, tuple[Any, ...]]:
        images = folded("AvgPool2d: x", x)
        y = ops.avg_pool2d(images, self.kernel_size, **self._options())
        return y.reshape(*x.shape[:-3], *y.shape[1:]), (images.shape, x.shape)

    def _gradient_of_x(self, grad_y: Array, *saved: Any) -> Array:
        shape: tuple[int, ...]
        images, shape = saved
        rows = folded("AvgPool2d.backward: grad_y", grad_y)
        grad = ops.avg_pool2d_backward(rows, images, self.kernel_size, **self._options())
        return grad.reshape(shape)

    def __repr__(self) -> str:
        return f"AvgPool2d({self.kernel_size}, stride={self.stride}, padding={self.padding})"


class GlobalAvgPool2d(Stateless):
    """Means of whole planes: [..., C] of x [..., C, Y, X] ("NHWC": [..., Y, X, C]).

    Raises ValueError for the layout, and in `forward` what `ops.global_avg_pool2d` raises. Source:
    Lin, Chen & Yan (2014), "Network in network".

    >>> pool = GlobalAvgPool2d()
    >>> y, _, tape = pool.forward(np.ones((5, 3, 8, 6, 4)))
    >>> y.shape, pool.backward(tape, y).x.shape
    ((5, 3, 8), (5, 3, 8, 6, 4))
    """

    def __init__(self, *, layout: ops.Layout = "NCHW") -> None:
        super().__init__()
        self.layout = checked_layout("GlobalAvgPool2d", layout)

    def _value(self, x: Array) -> tuple[Array, tuple[Any, ...]]:
        images = folded("GlobalAvgPool2d: x", x)
        y = ops.global_avg_pool2d(images, layout=self.layout)
        return y.reshape(*x.shape[:-3], y.shape[1]), (images.shape, x.shape)

    def _gradient_of_x(self, grad_y: Array, *saved: Any) -> Array:
        shape: tuple[int, ...]
        images, shape = saved
        rows = folded("GlobalAvgPool2d.backward: grad_y", grad_y, axes=1)
        return ops.global_avg_pool2d_backward(rows, images, layout=self.layout).reshape(shape)
