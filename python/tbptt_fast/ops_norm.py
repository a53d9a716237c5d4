"""Normalization and dropout; part of `tbptt_fast.ops`, whose first lines hold here too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, SupportsIndex

from . import _native
from ._types import Array, ArrayLike, Layout


class BatchNorm(NamedTuple):
    """What `batch_norm` returns; the running values are None where it made no new ones."""

    y: Array
    mean: Array
    inv_std: Array
    running_mean: Array | None
    running_var: Array | None


class LayerNorm(NamedTuple):
    """What `layer_norm` returns."""

    y: Array
    mean: Array
    inv_std: Array


class NormGrads(NamedTuple):
    """Gradients of a normalization by x, weight and bias; None where not needed."""

    x: Array | None
    w: Array | None
    b: Array | None


def batch_norm(
    x: ArrayLike,
    weight: ArrayLike | None,
    bias: ArrayLike | None,
    running_mean: ArrayLike | None,
    running_var: ArrayLike | None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    layout: Layout = "NCHW",
) -> BatchNorm:
    """Normalize each channel, y = (x - mean) / √(variance + eps) · weight + bias.

    Training takes mean and variance of x over all axes but the channel, in double and stably:
    a mean far larger than the deviation costs no accuracy. Otherwise they are the running ones.

    Args:
        x: [N, C], or [N, C, H, W] with layout "NCHW" and [N, H, W, C] with "NHWC".
        weight, bias: [C]; None means ones and zeros.
        running_mean, running_var: [C], never changed; both may be None when training.
        momentum: share of this batch in the new running values, in [0, 1].

    Returns:
        y like x; mean and inv_std = 1 / √(variance + eps), float64 [C] whatever the dtype of x,
        for `batch_norm_backward`; and the new running values [C]: (1 - momentum) · old +
        momentum · this batch's, where the variance is divided by n - 1 (that of y by n). Those
        are None without training or without running values.

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`; training needs at least 2 values per channel,
            so an empty batch is an error there. Without training it gives an empty y.

    Source: Ioffe and Szegedy (2015), "Batch normalization"; conventions of PyTorch.

    >>> import numpy as np
    >>> result = batch_norm(
    ...     np.array([[1.0], [3.0]]), None, None, np.zeros(1), np.ones(1), training=True, eps=0.0
    ... )
    >>> result.y.tolist(), result.mean.tolist(), result.inv_std.tolist()
    ([[-1.0], [1.0]], [2.0], [1.0])
    >>> result.running_mean.round(6).tolist(), result.running_var.round(6).tolist()
    ([0.2], [1.1])
    """
    return BatchNorm(
        *_native.batch_norm(
            x, weight, bias, running_mean, running_var, training, momentum, eps, layout
        )
    )


def batch_norm_backward(
    grad_out: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike | None,
    mean: ArrayLike,
    inv_std: ArrayLike,
    *,
    training: bool,
    layout: Layout = "NCHW",
    needs: Sequence[Literal["x", "w", "b"]] = ("x", "w", "b"),
) -> NormGrads:
    """Gradients of `batch_norm` by x, weight and bias; those not in `needs` are None.

    Args:
        grad_out: gradient by y, shaped like x.
        mean, inv_std: as `batch_norm` returned them, float64 [C].
        training: as given to `batch_norm`; mean and inv_std are then functions of x, and else
            constants.

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`.

    >>> import numpy as np
    >>> grads = batch_norm_backward(
    ...     np.array([[1.0], [3.0]]), np.array([[4.0], [6.0]]), np.array([2.0]),
    ...     np.array([5.0]), np.array([1.0]), training=False,
    ... )
    >>> grads.x.tolist(), grads.w.tolist(), grads.b.tolist()
    ([[2.0], [6.0]], [2.0], [4.0])
    """
    return NormGrads(
        *_native.batch_norm_backward(grad_out, x, weight, mean, inv_std, training, layout, needs)
    )


def layer_norm(
    x: ArrayLike, weight: ArrayLike | None, bias: ArrayLike | None, *, eps: float = 1e-5
) -> LayerNorm:
    """Normalize each row of x [..., D], y = (x - mean) / √(variance + eps) · weight + bias.

    Mean and variance (divided by D) of a row are summed in double and stably.

    Args:
        weight, bias: [D]; None means ones and zeros.

    Returns:
        y like x; mean and inv_std = 1 / √(variance + eps), float64 [...] whatever the dtype of x,
        for `layer_norm_backward`. Without rows, all are empty.

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`; D is 0.

    Source: Ba, Kiros and Hinton (2016), "Layer normalization".

    >>> import numpy as np
    >>> x = np.array([[1.0, 3.0], [7.0, 5.0]])
    >>> layer_norm(x, None, np.array([0.0, 9.0]), eps=0.0).y.tolist()
    [[-1.0, 10.0], [1.0, 8.0]]
    """
    return LayerNorm(*_native.layer_norm(x, weight, bias, eps))


def layer_norm_backward(
    grad_out: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike | None,
    mean: ArrayLike,
    inv_std: ArrayLike,
    *,
    needs: Sequence[Literal["x", "w", "b"]] = ("x", "w", "b"),
) -> NormGrads:
    """Gradients of `layer_norm` by x, weight and bias; those not in `needs` are None.

    Args:
        grad_out: gradient by y, [..., D] like x.
        mean, inv_std: as `layer_norm` returned them, float64 [...].

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`.

    >>> import numpy as np
    >>> x = np.array([[1.0, 3.0]])
    >>> _, mean, inv_std = layer_norm(x, None, None, eps=0.0)
    >>> grads = layer_norm_backward(np.array([[1.0, 2.0]]), x, None, mean, inv_std)
    >>> grads.x.tolist(), grads.w.tolist(), grads.b.tolist()
    ([[0.0, 0.0]], [-1.0, 2.0], [1.0, 2.0])
    """
    return NormGrads(*_native.layer_norm_backward(grad_out, x, weight, mean, inv_std, needs))


def dropout(x: ArrayLike, p: float, key: SupportsIndex) -> Array:
    """Return x [...] with each element 0 with probability p, and else divided by 1 - p.

    Which elements are dropped depends only on p, the key and an element's index in C order: not on
    the dtype, the values, the number of threads or the instruction set. A dropped element is 0
    even where x is NaN. An empty x gives an empty result.

    Args:
        p: in [0, 1); taken to a multiple of 2**-32.
        key: an integer in [0, 2**63). Use a new one for every call.

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`.

    Source: Srivastava et al. (2014), "Dropout"; the generator is Philox 4x32-10 of Salmon et al.
    (2011), "Parallel random numbers: as easy as 1, 2, 3". Element 32·b + 8·w + i is kept where
    word w of counter 8·b + i is not below p · 2**32.

    >>> import numpy as np
    >>> dropout(np.ones(8), 0.5, key=1).tolist()
    [2.0, 2.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0]
    """
    return _native.dropout(x, p, key)


def dropout_backward(grad_out: ArrayLike, p: float, key: SupportsIndex) -> Array:
    """Gradient of `dropout` by x, with the mask drawn again from p and the key of that call.

    Args:
        grad_out: gradient by the output [...], shaped like x.

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`.

    >>> import numpy as np
    >>> x = np.arange(1.0, 9.0)
    >>> bool((dropout_backward(np.ones(8), 0.5, key=1) * x == dropout(x, 0.5, key=1)).all())
    True
    """
    return _native.dropout_backward(grad_out, p, key)
