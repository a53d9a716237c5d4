"""Batch and layer normalization, and dropout, as modules."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .. import ops
from .._types import Array
from .module import Gradients, Module, Tape, check_dtype, check_input, check_sizes


def _check_eps(kind: str, eps: float) -> None:
    if not 0 <= eps < np.inf:
        raise ValueError(f"{kind}: eps: expected a finite number >= 0, got {eps!r}")


class BatchNorm2d(Module):
    """Batch normalization of x [N, C, H, W], [N, H, W, C] or [N, C].

    In training mode, `forward` normalizes by the statistics of the batch and updates the running
    ones; in evaluation mode, and in a call without a tape, the running ones are used. Parameters
    weight and bias [C] (with affine); buffers running_mean, running_var [C] and
    num_batches_tracked (with track_running_stats; without, every call uses the batch).

    Args:
        momentum: share of a batch in the running values; None makes them a plain average.
        layout: "NCHW" or "NHWC", which a rank of 2 does not look at.

    Raises ValueError for sizes, options and a batch with fewer than 2 values per channel,
    TypeError for a dtype that is not float32 or float64. Source: Ioffe and Szegedy (2015); names
    and conventions of torch.nn.BatchNorm2d and BatchNorm1d.

    >>> norm = BatchNorm2d(3, dtype="float64")
    >>> y, _, tape = norm.forward(np.arange(24.0).reshape(2, 3, 2, 2))
    >>> norm.backward(tape, np.ones_like(y)).params["bias"].tolist()
    [8.0, 8.0, 8.0]
    >>> norm.state_dict()["running_mean"].round(2).tolist()
    [0.75, 1.15, 1.55]
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        layout: ops.Layout = "NCHW",
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        check_sizes("BatchNorm2d", num_features=num_features)
        _check_eps("BatchNorm2d", eps)
        if momentum is not None and not 0 <= momentum <= 1:
            raise ValueError(
                f"BatchNorm2d: momentum: expected None or a number in [0, 1], got {momentum!r}"
            )
        if layout not in ("NCHW", "NHWC"):
            raise ValueError(f"BatchNorm2d: layout: expected NCHW or NHWC, got {layout!r}")
        self.num_features, self.layout = num_features, layout
        self.eps, self.momentum = eps, momentum
        self._dtype = check_dtype("BatchNorm2d", dtype)
        if affine:
            self._parameters["weight"] = np.ones(num_features, self._dtype)
            self._parameters["bias"] = np.zeros(num_features, self._dtype)
        if track_running_stats:
            self._buffers["running_mean"] = np.zeros(num_features, self._dtype)
            self._buffers["running_var"] = np.ones(num_features, self._dtype)
            self._buffers["num_batches_tracked"] = np.zeros((), np.int64)

    def _check(self, x: Array) -> None:
        shape: tuple[str | int, ...] = ("N", "H", "W", self.num_features)
        if self.layout == "NCHW":
            shape = ("N", self.num_features, "H", "W")
        if getattr(x, "ndim", 4) == 2:
            shape = ("N", self.num_features)
        check_input("BatchNorm2d", x, self._dtype, shape)

    def _apply(
        self, x: Array, state: Any, is_init: Array | None, keep: bool
    ) -> tuple[Array, Any, Tape | None]:
        self._check_stateless(state)
        self._check(x)
        learns = self.training and keep
        by_batch = learns or not self._buffers
        count = self._buffers.get("num_batches_tracked")
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.momentum is None and count is not None:
            momentum = 1 / (int(count) + 1)
        result = ops.batch_norm(
            x,
            self._parameters.get("weight"),
            self._parameters.get("bias"),
            self._buffers.get("running_mean"),
            self._buffers.get("running_var"),
            training=by_batch,
            momentum=momentum,
            eps=self.eps,
            layout=self.layout,
        )
        if count is not None and result.running_mean is not None:
            self._buffers["running_mean"][...] = result.running_mean
            self._buffers["running_var"][...] = result.running_var
            count += 1
        saved = (x, result.mean, result.inv_std, by_batch)
        return result.y, None, Tape(self, saved) if keep else None

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
        x, mean, inv_std, by_batch = self._saved(tape)
        self._check_stateless(grad_state, "grad_state")
        grads = ops.batch_norm_backward(
            self._gradient(grad_y),
            x,
            self._parameters.get("weight"),
            mean,
            inv_std,
            training=by_batch,
            layout=self.layout,
            needs=_needs(self, needs_x),
        )
        return _gradients(grads)

    def __repr__(self) -> str:
        return f"BatchNorm2d({self.num_features})"


class LayerNorm(Module):
    """Layer normalization of x [..., normalized_shape] over its last axis.

    Parameters weight and bias [normalized_shape]: neither without elementwise_affine, no bias with
    bias=False.

    Raises ValueError for sizes and options, TypeError for a dtype that is not float32 or float64.
    Source: Ba, Kiros and Hinton (2016); names of torch.nn.LayerNorm.

    >>> norm = LayerNorm(4, dtype="float64")
    >>> y, _, tape = norm.forward(np.arange(8.0).reshape(2, 1, 4))
    >>> y[0].round(2).tolist()
    [[-1.34, -0.45, 0.45, 1.34]]
    """

    def __init__(
        self,
        normalized_shape: int,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        check_sizes("LayerNorm", normalized_shape=normalized_shape)
        _check_eps("LayerNorm", eps)
        self.normalized_shape, self.eps = normalized_shape, eps
        self._dtype = check_dtype("LayerNorm", dtype)
        if elementwise_affine:
            self._parameters["weight"] = np.ones(normalized_shape, self._dtype)
            if bias:
                self._parameters["bias"] = np.zeros(normalized_shape, self._dtype)

    def _apply(
        self, x: Array, state: Any, is_init: Array | None, keep: bool
    ) -> tuple[Array, Any, Tape | None]:
        self._check_stateless(state)
        check_input("LayerNorm", x, self._dtype, ("...", self.normalized_shape))
        weight, bias = self._parameters.get("weight"), self._parameters.get("bias")
        y, mean, inv_std = ops.layer_norm(x, weight, bias, eps=self.eps)
        return y, None, Tape(self, (x, mean, inv_std)) if keep else None

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
        x, mean, inv_std = self._saved(tape)
        self._check_stateless(grad_state, "grad_state")
        grads = ops.layer_norm_backward(
            self._gradient(grad_y),
            x,
            self._parameters.get("weight"),
            mean,
            inv_std,
            needs=_needs(self, needs_x),
        )
        return _gradients(grads)

    def __repr__(self) -> str:
        return f"LayerNorm({self.normalized_shape})"


class Dropout(Module):
    """Dropout of single elements of x [...]; acts in `forward` in training mode only.

    The mask is not stored: the tape holds the key that it is drawn from. Keys come from a generator
    of the module, which `rng_state` and `set_rng_state` save and restore.

    Raises ValueError unless p is in [0, 1). Source: Srivastava et al. (2014); torch.nn.Dropout.

    >>> dropout = Dropout(0.5, seed=0)
    >>> y, _, tape = dropout.forward(np.ones((2, 3, 4)))
    >>> bool((dropout.backward(tape, np.ones_like(y)).x == y).all())
    True
    >>> dropout(np.ones(3))[0].tolist()
    [1.0, 1.0, 1.0]
    """

    def __init__(self, p: float = 0.5, *, seed: int | None = None) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p: expected a number in [0, 1), got {p!r}")
        self.p = p
        self._generators["dropout"] = np.random.default_rng(seed)

    def _apply(
        self, x: Array, state: Any, is_init: Array | None, keep: bool
    ) -> tuple[Array, Any, Tape | None]:
        self._check_stateless(state)
        key = None
        if self.training and keep and self.p > 0:
            key = int(self._generators["dropout"].integers(2**63))
            x = ops.dropout(x, self.p, key)
        return x, None, Tape(self, (key,)) if keep else None

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
        (key,) = self._saved(tape)
        self._check_stateless(grad_state, "grad_state")
        grad: Array | None = self._gradient(grad_y)
        if not needs_x:
            grad = None
        elif key is not None:
            grad = ops.dropout_backward(grad, self.p, key)
        return Gradients(grad, None, {})

    def __repr__(self) -> str:
        return f"Dropout({self.p})"


def _needs(module: Module, needs_x: bool) -> tuple[Any, ...]:
    wanted = {"x": needs_x, "w": "weight", "b": "bias"}
    return tuple(n for n, given in wanted.items() if given is True or given in module._parameters)


def _gradients(grads: ops.NormGrads) -> Gradients:
    found = {"weight": grads.w, "bias": grads.b}
    return Gradients(grads.x, None, {n: g for n, g in found.items() if g is not None})
