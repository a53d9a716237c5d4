"""NumPy float64 oracles of what knows no time: layers, losses and optimizers.

The optimizers update their arrays in place, as the native ones do; give them float64 copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
AnyArray = NDArray[Any]  # any dtype that float64 can hold


def as_float64(x: AnyArray) -> Array:
    """The one conversion at the entrance of every oracle."""
    return np.asarray(x, dtype=np.float64)


# ---------------------------------------------------------------------------------------------
# Elementwise functions


def sigmoid(x: AnyArray) -> Array:
    """1 / (1 + exp(-x)), without overflow at either end."""
    x = as_float64(x)
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def relu(x: AnyArray) -> Array:
    """max(x, 0); its derivative at 0 is 0."""
    return np.maximum(as_float64(x), 0.0)


def activation_backward(grad_out: AnyArray, y: AnyArray, activation: str) -> Array:
    """The gradient by the argument of relu, tanh or sigmoid, whose output is y."""
    d, y = as_float64(grad_out), as_float64(y)
    slope = {"relu": np.where(y <= 0, 0.0, 1.0), "tanh": 1 - y**2, "sigmoid": y * (1 - y)}
    gradient: Array = d * slope[activation]
    return gradient


def softmax(x: AnyArray) -> Array:
    """exp(x) / Σ exp(x) along the last axis."""
    x = as_float64(x)
    e = np.exp(x - x.max(axis=-1, keepdims=True, initial=-np.inf))
    shares: Array = e / e.sum(axis=-1, keepdims=True)
    return shares


def softmax_backward(grad_out: AnyArray, y: AnyArray) -> Array:
    """The gradient by x of :func:`softmax`, whose output is y."""
    d, y = as_float64(grad_out), as_float64(y)
    gradient: Array = y * (d - (y * d).sum(axis=-1, keepdims=True))
    return gradient


# ---------------------------------------------------------------------------------------------
# Layers and losses


class LinearGrads(NamedTuple):
    """Gradients of :func:`linear`; None where not needed."""

    x: Array | None
    w: Array | None
    b: Array | None


def apply_activation(x: Array, activation: str | None) -> Array:
    """relu, tanh or sigmoid of x, or x itself."""
    functions: dict[str, Callable[[Array], Array]]
    functions = {"relu": relu, "tanh": np.tanh, "sigmoid": sigmoid}
    return x if activation is None else functions[activation](x)


def linear(
    x: AnyArray, w: AnyArray, b: AnyArray | None = None, *, activation: str | None = None
) -> Array:
    """activation(x wᵀ + b): x [..., I], w [O, I], b [O]; relu, tanh, sigmoid or None."""
    y = as_float64(x) @ as_float64(w).T
    if b is not None:
        y = y + as_float64(b)
    return apply_activation(y, activation)


def linear_backward(
    grad_out: AnyArray,
    x: AnyArray,
    w: AnyArray,
    *,
    y: AnyArray | None = None,
    activation: str | None = None,
    needs: Sequence[str] = ("x", "w", "b"),
) -> LinearGrads:
    """Gradients of :func:`linear`; with an activation, `y` is the forward's result."""
    d, x, w = as_float64(grad_out), as_float64(x), as_float64(w)
    if activation is not None:
        assert y is not None
        d = activation_backward(d, y, activation)
    count = math.prod(x.shape[:-1])  # -1 would be ambiguous where a layer has no inputs or outputs
    rows, inputs = d.reshape(count, w.shape[0]), x.reshape(count, w.shape[1])
    return LinearGrads(
        x=d @ w if "x" in needs else None,
        w=rows.T @ inputs if "w" in needs else None,
        b=rows.sum(axis=0) if "b" in needs else None,
    )


def embedding(ids: AnyArray, w: AnyArray) -> Array:
    """Rows of w [N, D] at ids [...]: [..., D]."""
    rows: Array = as_float64(w)[np.asarray(ids)]
    return rows


def embedding_backward(grad_out: AnyArray, ids: AnyArray, num_embeddings: int) -> Array:
    """The gradient of w [N, D]: rows of grad_out added up where their id points."""
    d, rows = as_float64(grad_out), np.asarray(ids).reshape(-1)
    grad_w = np.zeros((num_embeddings, d.shape[-1]))
    np.add.at(grad_w, rows, d.reshape(-1, d.shape[-1]))
    return grad_w


def softmax_cross_entropy(
    logits: AnyArray,
    targets: AnyArray,
    *,
    weights: AnyArray | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> tuple[Any, Array]:
    """-log softmax(logits)[target] in nats: logits [..., C], targets and weights [...].

    "mean" divides by the sum of the weights of the rows that are not ignored. Returns the loss
    and the gradient of the logits ("none": a loss for each row, and each row's own gradient).
    """
    z, rows = as_float64(logits), np.asarray(targets)
    counts = rows != ignore_index
    weight = np.where(counts, 1.0 if weights is None else as_float64(weights), 0.0)
    shifted = z - z.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    picked = np.where(counts, rows, 0)[..., None]
    loss = weight * -np.take_along_axis(log_p, picked, axis=-1)[..., 0]
    one_hot = np.arange(z.shape[-1]) == picked
    grad = weight[..., None] * (np.exp(log_p) - one_hot)
    return _reduced(loss, grad, weight.sum(), reduction)


def mse_loss(
    prediction: AnyArray,
    target: AnyArray,
    *,
    weights: AnyArray | None = None,
    reduction: str = "mean",
) -> tuple[Any, Array]:
    """Squared error, [..., D] both; weights [...] count rows. "mean" divides by Σ weights · D."""
    d = as_float64(prediction) - as_float64(target)
    return _weighted(d**2, 2 * d, weights, reduction)


def l1_loss(
    prediction: AnyArray,
    target: AnyArray,
    *,
    weights: AnyArray | None = None,
    reduction: str = "mean",
) -> tuple[Any, Array]:
    """Absolute error; its slope at 0 is 0. The rest is that of :func:`mse_loss`."""
    d = as_float64(prediction) - as_float64(target)
    return _weighted(np.abs(d), np.sign(d), weights, reduction)


def huber_loss(
    prediction: AnyArray,
    target: AnyArray,
    *,
    delta: float = 1.0,
    weights: AnyArray | None = None,
    reduction: str = "mean",
) -> tuple[Any, Array]:
    """d²/2 up to |d| = delta, then a line. The rest is that of :func:`mse_loss`."""
    d = as_float64(prediction) - as_float64(target)
    loss = np.where(np.abs(d) <= delta, d**2 / 2, delta * (np.abs(d) - delta / 2))
    return _weighted(loss, np.clip(d, -delta, delta), weights, reduction)


def hinge_loss(
    prediction: AnyArray,
    target: AnyArray,
    *,
    weights: AnyArray | None = None,
    reduction: str = "mean",
) -> tuple[Any, Array]:
    """max(0, 1 - target·prediction), targets ±1. The rest is that of :func:`mse_loss`."""
    p, t = as_float64(prediction), as_float64(target)
    return _weighted(np.maximum(1 - t * p, 0), np.where(t * p < 1, -t, 0), weights, reduction)


def _weighted(
    loss: Array, slope: Array, weights: AnyArray | None, reduction: str
) -> tuple[Any, Array]:
    weight = (np.ones(loss.shape[:-1]) if weights is None else as_float64(weights))[..., None]
    return _reduced(weight * loss, weight * slope, weight.sum() * loss.shape[-1], reduction)


def _reduced(loss: Array, grad: Array, count: float, reduction: str) -> tuple[Any, Array]:
    if reduction == "none":
        return loss, grad
    divisor = {"sum": 1.0, "mean": count}[reduction]
    return float(loss.sum() / divisor), grad / divisor


# ---------------------------------------------------------------------------------------------
# Optimizers: PyTorch's formulas. Clipping first by value, then by the norm over all arrays.


class StepResult(NamedTuple):
    """The gradient's norm before clipping by norm, and whether anything was updated."""

    norm: float
    applied: bool


def global_norm(arrays: Sequence[Array], *, clip_value: float | None = None) -> float:
    """√Σx² over all arrays, after clipping to ±clip_value; NaN when an element is not finite."""
    if not all(np.isfinite(x).all() for x in arrays):
        return float("nan")
    if clip_value is not None:
        arrays = [np.clip(x, -clip_value, clip_value) for x in arrays]
    return float(np.sqrt(sum(float((x.astype(np.float64) ** 2).sum()) for x in arrays)))


def _clipped(
    grads: Sequence[Array],
    max_norm: float | None,
    clip_value: float | None,
    non_finite: str,
    maximize: bool,
    norm: float | None,
) -> tuple[list[Array], StepResult]:
    norm = global_norm(grads, clip_value=clip_value) if norm is None else norm
    finite = not np.isnan(norm)
    if not finite and non_finite == "raise":
        raise FloatingPointError("a gradient is not finite")
    if clip_value is not None:
        grads = [np.clip(g, -clip_value, clip_value) for g in grads]
    factor = 1.0 if max_norm is None else min(1.0, max_norm / (norm + 1e-6))
    factor = -factor if maximize else factor
    return [factor * g for g in grads], StepResult(norm, finite)


def sgd_step(
    params: Sequence[Array],
    grads: Sequence[Array],
    momentum: Sequence[Array] | None,
    *,
    lr: float,
    mu: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    velocity: bool = False,
    weight_decay: float = 0.0,
    max_norm: float | None = None,
    clip_value: float | None = None,
    non_finite: str = "raise",
    maximize: bool = False,
    norm: float | None = None,
) -> StepResult:
    """m ← mu·m + g; p ← p - lr·m (Nesterov: p - lr·(g + mu·m)), g with weight_decay·p added.

    With velocity m ← mu·m - lr·g; p ← p + m (Nesterov: p + mu·m - lr·g).
    """
    rate, lr = (-lr, -1.0) if velocity else (1.0, lr)
    clipped, result = _clipped(grads, max_norm, clip_value, non_finite, maximize, norm)
    for p, g, m in _together(result, params, clipped, momentum):
        g = rate * (g + weight_decay * p)
        if m is not None and mu:
            m[...] = mu * m + (1 - dampening) * g
            g = g + mu * m if nesterov else m
        p -= lr * g
    return result


def rmsprop_step(
    params: Sequence[Array],
    grads: Sequence[Array],
    square_avg: Sequence[Array],
    momentum: Sequence[Array] | None,
    grad_avg: Sequence[Array] | None = None,
    *,
    lr: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    mu: float = 0.0,
    weight_decay: float = 0.0,
    max_norm: float | None = None,
    clip_value: float | None = None,
    non_finite: str = "raise",
    maximize: bool = False,
    norm: float | None = None,
) -> StepResult:
    """v ← alpha·v + (1 - alpha)·g²; p ← p - lr·g / (√v + eps) (Hinton 2012), or with momentum."""
    clipped, result = _clipped(grads, max_norm, clip_value, non_finite, maximize, norm)
    for p, g, v, m, a in _together(result, params, clipped, square_avg, momentum, grad_avg):
        g = g + weight_decay * p
        v[...] = alpha * v + (1 - alpha) * g**2
        variance = v
        if a is not None:
            a[...] = alpha * a + (1 - alpha) * g
            variance = np.maximum(v - a**2, 0)
        g = g / (np.sqrt(variance) + eps)
        if m is not None and mu:
            m[...] = mu * m + g
            g = m
        p -= lr * g
    return result


def adam_step(
    params: Sequence[Array],
    grads: Sequence[Array],
    exp_avg: Sequence[Array],
    exp_avg_sq: Sequence[Array],
    max_exp_avg_sq: Sequence[Array] | None = None,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    max_norm: float | None = None,
    clip_value: float | None = None,
    non_finite: str = "raise",
    maximize: bool = False,
    norm: float | None = None,
) -> StepResult:
    """Adam (Kingma & Ba 2015), step counted from 1; decoupled: AdamW (Loshchilov & Hutter 2019)."""
    clipped, result = _clipped(grads, max_norm, clip_value, non_finite, maximize, norm)
    for p, g, m, v, top in _together(result, params, clipped, exp_avg, exp_avg_sq, max_exp_avg_sq):
        if decoupled:
            p *= 1 - lr * weight_decay
        else:
            g = g + weight_decay * p
        m[...] = beta1 * m + (1 - beta1) * g
        v[...] = beta2 * v + (1 - beta2) * g**2
        if top is not None:
            v = top[...] = np.maximum(top, v)
        denominator = np.sqrt(v) / np.sqrt(1 - beta2**step) + eps
        p -= lr / (1 - beta1**step) * m / denominator
    return result


def _together(result: StepResult, *lists: Sequence[Array] | None) -> Iterator[tuple[Any, ...]]:
    """Walk the lists side by side, None standing for a list of None; nothing if not applied."""
    if not result.applied:
        return iter(())
    count = next(len(arrays) for arrays in lists if arrays is not None)
    return zip(*([None] * count if a is None else a for a in lists), strict=True)
