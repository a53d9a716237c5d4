"""NumPy float64 oracles of pooling: window by window, images [N, C, Y, X] or [N, Y, X, C]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .reference_layers import AnyArray, Array, as_float64

Pair = int | Sequence[int]


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _first(x: AnyArray, layout: str) -> Array:
    """The same images as [N, C, Y, X]."""
    return np.moveaxis(x, 3, 1) if layout == "NHWC" else x


def _last(x: AnyArray, layout: str) -> Any:
    """The inverse of `_first`."""
    return np.moveaxis(x, 1, 3) if layout == "NHWC" else x


def _axis(size: int, kernel: int, stride: int, padding: int) -> list[slice]:
    """The part of each window that lies on the axis."""
    count = (size + 2 * padding - kernel) // stride + 1
    starts = [i * stride - padding for i in range(count)]
    return [slice(max(first, 0), min(first + kernel, size)) for first in starts]


def _windows(
    shape: Sequence[int], kernel: Pair, stride: Pair | None, padding: Pair
) -> tuple[tuple[int, int], Iterator[tuple[int, int, slice, slice]]]:
    """The number of windows down and across, and for each (row, column, part down, part across)."""
    k, p = _pair(kernel), _pair(padding)
    s = k if stride is None else _pair(stride)
    down, across = (_axis(shape[2 + i], k[i], s[i], p[i]) for i in (0, 1))
    every = ((i, j, a, b) for i, a in enumerate(down) for j, b in enumerate(across))
    return (len(down), len(across)), every


def max_pool2d(
    x: AnyArray,
    kernel: Pair,
    *,
    stride: Pair | None = None,
    padding: Pair = 0,
    layout: str = "NCHW",
) -> tuple[Array, NDArray[np.int64]]:
    """The maxima of the windows and their places in the plane; the first of equal values."""
    x = _first(as_float64(x), layout)
    size, windows = _windows(x.shape, kernel, stride, padding)
    y = np.empty((*x.shape[:2], *size))
    indices = np.empty(y.shape, np.int64)
    for i, j, down, across in windows:
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


def _count(kernel: Pair, include_pad: bool, down: slice, across: slice) -> int:
    inside = (down.stop - down.start) * (across.stop - across.start)
    return _pair(kernel)[0] * _pair(kernel)[1] if include_pad else int(inside)


def avg_pool2d(
    x: AnyArray,
    kernel: Pair,
    *,
    stride: Pair | None = None,
    padding: Pair = 0,
    count_include_pad: bool = True,
    layout: str = "NCHW",
) -> Array:
    """The means of the windows, over the kernel's size or over what lies on the plane."""
    x = _first(as_float64(x), layout)
    size, windows = _windows(x.shape, kernel, stride, padding)
    y = np.empty((*x.shape[:2], *size))
    for i, j, down, across in windows:
        total = x[:, :, down, across].sum(axis=(2, 3))
        y[:, :, i, j] = total / _count(kernel, count_include_pad, down, across)
    return np.asarray(_last(y, layout), np.float64)


def avg_pool2d_backward(
    grad_out: AnyArray,
    input_shape: Sequence[int],
    kernel: Pair,
    *,
    stride: Pair | None = None,
    padding: Pair = 0,
    count_include_pad: bool = True,
    layout: str = "NCHW",
) -> Array:
    """The gradients of the windows, shared out among their values."""
    d = _first(as_float64(grad_out), layout)
    grad_x = np.zeros(_first(np.empty(input_shape), layout).shape)
    for i, j, down, across in _windows(grad_x.shape, kernel, stride, padding)[1]:
        share = d[:, :, i, j] / _count(kernel, count_include_pad, down, across)
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
