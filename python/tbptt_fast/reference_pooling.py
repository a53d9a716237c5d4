"""NumPy float64 oracles of pooling: window by window, images [N, C, Y, X] or [N, Y, X, C]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .reference_layers import AnyArray, Array, as_float64

Pair = int | Sequence[int]
Padding = Pair | Sequence[Sequence[int]] | str
Axis = list[tuple[slice, int]]


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _first(x: AnyArray, layout: str) -> Array:
    """The same images as [N, C, Y, X]."""
    return np.moveaxis(x, 3, 1) if layout == "NHWC" else x


def _last(x: AnyArray, layout: str) -> Any:
    """The inverse of `_first`."""
    return np.moveaxis(x, 1, 3) if layout == "NHWC" else x


def _sides(padding: Padding, i: int, size: int, kernel: int, stride: int) -> tuple[int, int]:
    """The padding before and behind an axis."""
    if padding == "valid":
        return 0, 0
    if padding == "same":
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2
    assert not isinstance(padding, str)
    given = padding if isinstance(padding, int) else padding[i]
    return (given, given) if isinstance(given, int) else (given[0], given[1])


def _axis(size: int, kernel: int, stride: int, sides: tuple[int, int], ceil_mode: bool) -> Axis:
    """Of each window, the part that lies on the axis, and its length with the padding."""
    before, behind = sides
    steps = size + before + behind - kernel
    count = (-(-steps // stride) if ceil_mode else steps // stride) + 1
    starts = [i * stride - before for i in range(count)]
    return [
        (slice(max(first, 0), min(first + kernel, size)), min(kernel, size + behind - first))
        for first in starts
        if first < size  # a window that would begin in the padding behind is left out
    ]


def _windows(
    shape: Sequence[int], kernel: Pair, stride: Pair | None, padding: Padding, ceil_mode: bool
) -> tuple[tuple[int, int], Iterator[tuple[int, int, slice, slice, int]]]:
    """The number of windows, and of each the row, the column, the parts down and across, the size.

    The size is that with the padding.
    """
    k = _pair(kernel)
    s = k if stride is None else _pair(stride)
    axes = []
    for i in (0, 1):
        size = shape[2 + i]
        axes.append(_axis(size, k[i], s[i], _sides(padding, i, size, k[i], s[i]), ceil_mode))
    down, across = axes
    every = (
        (i, j, a, b, rows * columns)
        for i, (a, rows) in enumerate(down)
        for j, (b, columns) in enumerate(across)
    )
    return (len(down), len(across)), every


def max_pool2d(
    x: AnyArray,
    kernel: Pair,
    *,
    stride: Pair | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    layout: str = "NCHW",
) -> tuple[Array, NDArray[np.int64]]:
    """The maxima of the windows and their places in the plane; the first of equal values."""
    x = _first(as_float64(x), layout)
    size, windows = _windows(x.shape, kernel, stride, padding, ceil_mode)
    y = np.empty((*x.shape[:2], *size))
    indices = np.empty(y.shape, np.int64)
    for i, j, down, across, _ in windows:
        part = x[:, :, down, across]
        found = part.reshape(*x.shape[:2], part.shape[2] * part.shape[3]).argmax(axis=-1)
        row, column = down.start + found // part.shape[3], across.start + found % part.shape[3]
        y[:, :, i, j] = part.max(axis=(2, 3), initial=-np.inf)
        indices[:, :, i, j] = row * x.shape[3] + column
    return _last(y, layout), _last(indices, layout)


def max_pool2d_backward(
    grad_out: AnyArray, indices: AnyArray, input_shape: Sequence[int], *, layout: str = "NCHW"
) -> Array:
    """The gradients added up at their indices."""
    d, places = _first(as_float64(grad_out), layout), _first(indices, layout)
    n, c, y, x = _first(np.empty(input_shape), layout).shape
    grad_x = np.zeros((n, c, y * x))
    for image, channel, i, j in np.ndindex(d.shape):
        grad_x[image, channel, places[image, channel, i, j]] += d[image, channel, i, j]
    return np.asarray(_last(grad_x.reshape(n, c, y, x), layout), np.float64)


def _count(include_pad: bool, down: slice, across: slice, padded: int) -> int:
    return padded if include_pad else (down.stop - down.start) * (across.stop - across.start)


def avg_pool2d(
    x: AnyArray,
    kernel: Pair,
    *,
    stride: Pair | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    layout: str = "NCHW",
) -> Array:
    """The means of the windows, over the kernel's size or over what lies on the plane."""
    x = _first(as_float64(x), layout)
    size, windows = _windows(x.shape, kernel, stride, padding, ceil_mode)
    y = np.empty((*x.shape[:2], *size))
    for i, j, down, across, padded in windows:
        total = x[:, :, down, across].sum(axis=(2, 3))
        y[:, :, i, j] = total / _count(count_include_pad, down, across, padded)
    return np.asarray(_last(y, layout), np.float64)


def avg_pool2d_backward(
    grad_out: AnyArray,
    input_shape: Sequence[int],
    kernel: Pair,
    *,
    stride: Pair | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    layout: str = "NCHW",
) -> Array:
    """The gradients of the windows, shared out among their values."""
    d = _first(as_float64(grad_out), layout)
    grad_x = np.zeros(_first(np.empty(input_shape), layout).shape)
    windows = _windows(grad_x.shape, kernel, stride, padding, ceil_mode)[1]
    for i, j, down, across, padded in windows:
        share = d[:, :, i, j] / _count(count_include_pad, down, across, padded)
        grad_x[:, :, down, across] += share[:, :, None, None]
    return np.asarray(_last(grad_x, layout), np.float64)


def global_avg_pool2d(x: AnyArray, *, layout: str = "NCHW") -> Array:
    """The means of the planes [N, C]."""
    return np.asarray(_first(as_float64(x), layout).mean(axis=(2, 3)), np.float64)


def global_avg_pool2d_backward(
    grad_out: AnyArray, input_shape: Sequence[int], *, layout: str = "NCHW"
) -> Array:
    """The gradients of the planes, shared out among their values."""
    n, c, y, x = _first(np.empty(input_shape), layout).shape
    grad_x = np.broadcast_to(as_float64(grad_out)[:, :, None, None] / (y * x), (n, c, y, x))
    return np.asarray(_last(grad_x, layout), np.float64)
