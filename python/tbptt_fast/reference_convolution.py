"""Convolutions in plain NumPy and float64, to read and to test against: a sum over the taps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .reference_layers import AnyArray, Array, activation_backward, apply_activation, as_float64

Sides = Sequence[Sequence[int]]


def conv(
    x: AnyArray,
    w: AnyArray,
    b: AnyArray | None = None,
    *,
    stride: Sequence[int],
    padding: Sides,
    dilation: Sequence[int],
    groups: int = 1,
    activation: str | None = None,
) -> Array:
    """Cross-correlation of x [N, I, …] with w [O, I/groups, …], in any number of dimensions.

    padding: (before, behind) for each dimension; the layout is channels first.
    """
    padded, w = pad(x, padding), as_float64(w)
    sizes = output_sizes(padded, w, stride, dilation)
    y = np.zeros((len(padded), w.shape[0], *sizes))
    for tap in np.ndindex(*w.shape[2:]):
        where = window(tap, sizes, stride, dilation)
        for g in range(groups):
            outputs, inputs = group(w.shape[0], groups, g), group(padded.shape[1], groups, g)
            y[:, outputs] += np.einsum(
                "ni...,oi->no...", padded[:, inputs][where], at_tap(w, tap)[outputs]
            )
    if b is not None:
        y += as_float64(b).reshape(1, -1, *[1] * len(sizes))
    return apply_activation(y, activation)


def conv_backward(
    grad_out: AnyArray,
    x: AnyArray,
    w: AnyArray,
    *,
    y: AnyArray | None = None,
    stride: Sequence[int],
    padding: Sides,
    dilation: Sequence[int],
    groups: int = 1,
    activation: str | None = None,
) -> tuple[Array, Array, Array]:
    """Gradients of `conv` by x, w and b."""
    grad = as_float64(grad_out)
    if activation is not None:
        assert y is not None
        grad = activation_backward(grad, y, activation)
    padded, w = pad(x, padding), as_float64(w)
    sizes = output_sizes(padded, w, stride, dilation)
    grad_x, grad_w = np.zeros_like(padded), np.zeros_like(w)
    for tap in np.ndindex(*w.shape[2:]):
        where = window(tap, sizes, stride, dilation)
        for g in range(groups):
            outputs, inputs = group(w.shape[0], groups, g), group(padded.shape[1], groups, g)
            mine, pixels = grad[:, outputs], padded[:, inputs][where]
            axes = (0, *range(2, mine.ndim))
            at_tap(grad_w, tap)[outputs] = np.tensordot(mine, pixels, (axes, axes))
            kernel = at_tap(w, tap)[outputs]
            grad_x[:, inputs][where] += np.einsum("no...,oi->ni...", mine, kernel)
    inner: list[Any] = [slice(None), slice(None)]
    for size, (before, behind) in zip(padded.shape[2:], padding, strict=True):
        inner.append(slice(before, size - behind))
    return grad_x[tuple(inner)], grad_w, grad.sum((0, *range(2, grad.ndim)))


def at_tap(w: Array, tap: Sequence[int]) -> Array:
    """The view [O, I/groups] of one element of all kernels."""
    index: Any = (slice(None), slice(None), *tap)
    view: Array = w[index]
    return view


def pad(x: AnyArray, padding: Sides) -> Array:
    """x with zeros around it, in every dimension but the first two."""
    sides: list[Any] = [(0, 0), (0, 0), *padding]
    return np.pad(as_float64(x), sides)


def output_sizes(
    padded: Array, w: Array, stride: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """How many positions of the kernel fit, in each dimension."""
    return tuple(
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(padded.shape[2:], w.shape[2:], stride, dilation, strict=True)
    )


def window(
    tap: Sequence[int], sizes: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Any:
    """The index of the pixels that one tap meets, over all positions of the kernel."""
    slices = (
        slice(t * d, t * d + (n - 1) * s + 1, s)
        for t, n, s, d in zip(tap, sizes, stride, dilation, strict=True)
    )
    return (slice(None), slice(None), *slices)


def group(channels: int, groups: int, index: int) -> slice:
    """The channels of one group."""
    size = channels // groups
    return slice(index * size, (index + 1) * size)
