"""NumPy float64 oracles of normalization and dropout; independent of csrc."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .reference_layers import AnyArray, Array, as_float64


class BatchNorm(NamedTuple):
    """Results of :func:`batch_norm`."""

    y: Array
    mean: Array
    inv_std: Array
    running_mean: Array | None
    running_var: Array | None


class LayerNorm(NamedTuple):
    """Results of :func:`layer_norm`."""

    y: Array
    mean: Array
    inv_std: Array


class NormGrads(NamedTuple):
    """Gradients by x, weight and bias."""

    x: Array
    w: Array
    b: Array


def _columns(x: AnyArray, layout: str) -> Array:
    """x [N, C], [N, C, H, W] or [N, H, W, C] as [values of a channel, C], in double."""
    last = np.moveaxis(as_float64(x), 1, -1) if layout == "NCHW" else as_float64(x)
    return last.reshape(-1, last.shape[-1])


def _restored(columns: Array, x: AnyArray, layout: str) -> Array:
    """The inverse of :func:`_columns`, in the shape of x."""
    if layout == "NHWC":
        return columns.reshape(x.shape)
    moved = (x.shape[0], *x.shape[2:], x.shape[1])
    return np.moveaxis(columns.reshape(moved), -1, 1)


def batch_norm(
    x: AnyArray,
    weight: AnyArray | None,
    bias: AnyArray | None,
    running_mean: AnyArray | None,
    running_var: AnyArray | None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    layout: str = "NCHW",
) -> BatchNorm:
    """(x - mean) / √(var + eps) · weight + bias per channel; biased var of x, unbiased running."""
    columns, new_mean, new_var = _columns(x, layout), None, None
    if training:
        mean = columns.mean(axis=0)
        var = np.mean((columns - mean) ** 2, axis=0)
        if running_mean is not None and running_var is not None:
            unbiased = var * len(columns) / (len(columns) - 1)
            new_mean = (1 - momentum) * as_float64(running_mean) + momentum * mean
            new_var = (1 - momentum) * as_float64(running_var) + momentum * unbiased
    else:
        assert running_mean is not None
        assert running_var is not None
        mean, var = as_float64(running_mean), as_float64(running_var)
    inv_std = 1 / np.sqrt(var + eps)
    y = (columns - mean) * inv_std
    y = y * (1.0 if weight is None else as_float64(weight))
    y = y + (0.0 if bias is None else as_float64(bias))
    return BatchNorm(_restored(y, x, layout), mean, inv_std, new_mean, new_var)


def batch_norm_backward(
    grad_out: AnyArray,
    x: AnyArray,
    weight: AnyArray | None,
    mean: AnyArray,
    inv_std: AnyArray,
    *,
    training: bool,
    layout: str = "NCHW",
) -> NormGrads:
    """Gradients of :func:`batch_norm`; with training, mean and inv_std depend on x."""
    dy, scale = _columns(grad_out, layout), as_float64(inv_std)
    normal = (_columns(x, layout) - as_float64(mean)) * scale
    grad_b, grad_w = dy.sum(axis=0), (dy * normal).sum(axis=0)
    dx = dy - (grad_b + normal * grad_w) / len(dy) if training else dy
    dx = dx * scale * (1.0 if weight is None else as_float64(weight))
    return NormGrads(_restored(dx, x, layout), grad_w, grad_b)


def layer_norm(
    x: AnyArray, weight: AnyArray | None, bias: AnyArray | None, *, eps: float = 1e-5
) -> LayerNorm:
    """(x - mean) / √(var + eps) · weight + bias over the last axis, var divided by its length."""
    x = as_float64(x)
    mean = x.mean(axis=-1)
    inv_std = 1 / np.sqrt(np.mean((x - mean[..., None]) ** 2, axis=-1) + eps)
    y = (x - mean[..., None]) * inv_std[..., None]
    y = y * (1.0 if weight is None else as_float64(weight))
    y = y + (0.0 if bias is None else as_float64(bias))
    return LayerNorm(y, mean, inv_std)


def layer_norm_backward(
    grad_out: AnyArray,
    x: AnyArray,
    weight: AnyArray | None,
    mean: AnyArray,
    inv_std: AnyArray,
) -> NormGrads:
    """Gradients of :func:`layer_norm`."""
    dy, scale = as_float64(grad_out), as_float64(inv_std)[..., None]
    normal = (as_float64(x) - as_float64(mean)[..., None]) * scale
    g = dy * (1.0 if weight is None else as_float64(weight))
    of_g, of_product = g.mean(axis=-1, keepdims=True), (g * normal).mean(axis=-1, keepdims=True)
    rows = tuple(range(dy.ndim - 1))
    return NormGrads(
        scale * (g - of_g - normal * of_product), (dy * normal).sum(axis=rows), dy.sum(axis=rows)
    )


def philox4x32(counter: NDArray[Any], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Philox 4x32-10 (Salmon et al. 2011): counters [..., 4] to random words [..., 4].

    >>> [hex(word) for word in philox4x32(np.zeros(4), (0, 0)).tolist()]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    low = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = np.moveaxis(np.asarray(counter).astype(np.uint64), -1, 0)
    for r in range(10):
        k0 = np.uint64((key[0] + r * 0x9E3779B9) % 2**32)
        k1 = np.uint64((key[1] + r * 0xBB67AE85) % 2**32)
        a, b = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (b >> np.uint64(32)) ^ c1 ^ k0,
            b & low,
            (a >> np.uint64(32)) ^ c3 ^ k1,
            a & low,
        )
    return np.stack([c0, c1, c2, c3], axis=-1)


def dropout_mask(count: int, p: float, key: int) -> NDArray[np.bool_]:
    """Which of `count` elements are kept: element 32·b + 8·w + i by word w of counter 8·b + i."""
    index = np.arange(count)
    block, word, lane = index // 32, index % 32 // 8, index % 8
    number = 8 * block + lane
    counter = np.stack([number % 2**32, number // 2**32, 0 * number, 0 * number], axis=-1)
    words = philox4x32(counter, (key % 2**32, key // 2**32))[index, word]
    kept: NDArray[np.bool_] = words >= np.uint64(int(p * 2**32))
    return kept


def dropout(x: AnyArray, p: float, key: int) -> Array:
    """x / (1 - p) where kept, else 0; its own gradient, with the same key."""
    x = as_float64(x)
    return np.where(dropout_mask(x.size, p, key).reshape(x.shape), x / (1 - p), 0.0)
