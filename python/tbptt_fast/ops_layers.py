"""The embedding and the losses; part of `tbptt_fast.ops`, whose first lines hold here too."""

from __future__ import annotations

from typing import Any, Literal, SupportsIndex, TypeAlias

from . import _native
from ._types import Array, ArrayLike

Reduction: TypeAlias = Literal["mean", "sum", "none"]


def embedding(ids: ArrayLike, w: ArrayLike) -> Array:
    """Return the rows of w [N, D] that ids [...], int32 or int64, name: [..., D].

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`; an id is not in [0, N).

    >>> import numpy as np
    >>> embedding(np.array([2, 0]), np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])).tolist()
    [[4.0, 5.0], [0.0, 1.0]]
    """
    return _native.embedding(ids, w)


def embedding_backward(grad_out: ArrayLike, ids: ArrayLike, num_embeddings: SupportsIndex) -> Array:
    """Gradient of `embedding` by w [N, D]: the rows of grad_out [..., D] added up by their id.

    Rows are added in the order of the ids, for any number of threads.

    Args:
        num_embeddings: N.

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`; an id is not in [0, N).

    >>> import numpy as np
    >>> embedding_backward(np.ones((3, 2)), np.array([1, 1, 0]), 3).tolist()
    [[1.0, 1.0], [2.0, 2.0], [0.0, 0.0]]
    """
    return _native.embedding_backward(grad_out, ids, num_embeddings)


def softmax_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    ignore_index: SupportsIndex = -100,
    reduction: Reduction = "mean",
) -> tuple[Any, Array]:
    """-log softmax(logits)[target] in nats, and its gradient by the logits, in one pass.

    Args:
        logits: [..., C].
        targets: classes [...], int32 or int64, each in [0, C) or equal to ignore_index.
        weights: of the rows [...]; None means ones.
        ignore_index: rows with this target have loss 0 and gradient 0, whatever their logits are.
        reduction: "sum"; "mean", divided by the sum of the weights of the rows that count; or
            "none", a loss for each row.

    Returns:
        The loss, a float (with "none" an array [...]), and the gradient [..., C] of that sum or
        mean (with "none" of each row's own loss). A mean over no row at all is NaN, as in PyTorch,
        with gradients of 0. A NaN in a row that counts makes its loss and its gradient NaN.

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`; a target is neither in [0, C) nor ignored.

    Source: Bridle (1990), "Probabilistic interpretation of feedforward classification network
    outputs".

    >>> import numpy as np
    >>> loss, grad = softmax_cross_entropy(np.zeros((1, 4)), np.array([1]))
    >>> round(loss, 6), grad.tolist()
    (1.386294, [[0.25, -0.75, 0.25, 0.25]])
    """
    return _native.softmax_cross_entropy(logits, targets, weights, ignore_index, reduction)


def mse_loss(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> tuple[Any, Array]:
    """Squared error (prediction - target)², and its gradient by the prediction, in one pass.

    Args:
        prediction, target: [..., D].
        weights: of the rows [...], for all D values of a row; None means ones.
        reduction: "sum"; "mean", divided by D times the sum of the weights; or "none".

    Returns:
        The loss, a float (with "none" an array [..., D]), and the gradient [..., D] of that sum or
        mean (with "none" of each value's own loss). A mean over nothing is NaN.

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`.

    >>> import numpy as np
    >>> loss, grad = mse_loss(np.array([[1.0, 3.0]]), np.array([[1.0, 1.0]]))
    >>> loss, grad.tolist()
    (2.0, [[0.0, 2.0]])
    """
    return _native.mse_loss(prediction, target, weights, reduction)


def l1_loss(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> tuple[Any, Array]:
    """Absolute error |prediction - target|, and its gradient by the prediction, in one pass.

    The gradient is the sign of the difference, 0 where there is none.

    Args, Returns: as for `mse_loss`.

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`.

    >>> import numpy as np
    >>> loss, grad = l1_loss(np.array([[1.0, 3.0]]), np.array([[1.0, 1.0]]))
    >>> loss, grad.tolist()
    (1.0, [[0.0, 0.5]])
    """
    return _native.l1_loss(prediction, target, weights, reduction)


def huber_loss(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    delta: float = 1.0,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> tuple[Any, Array]:
    """A square for small errors and a line for large ones, and its gradient, in one pass.

    With d = prediction - target it is d²/2 where |d| <= delta, else delta·(|d| - delta/2).

    Args:
        delta: > 0; where the square ends.
        prediction, target, weights, reduction: as for `mse_loss`, and so are the results.

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`.

    Source: Huber (1964), "Robust estimation of a location parameter".

    >>> import numpy as np
    >>> loss, grad = huber_loss(np.array([[1.0, 4.0]]), np.array([[0.0, 0.0]]), delta=2.0)
    >>> loss, grad.tolist()
    (3.25, [[0.5, 1.0]])
    """
    return _native.huber_loss(prediction, target, delta, weights, reduction)


def hinge_loss(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> tuple[Any, Array]:
    """max(0, 1 - target·prediction) for targets ±1, and its gradient, in one pass.

    The gradient is -target below the margin, 0 above it and at the kink target·prediction = 1.

    Args:
        target: [..., D], -1 or 1, of the prediction's dtype.
        prediction, weights, reduction: as for `mse_loss`, and so are the results.

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`; a target is neither -1 nor 1.

    Source: Cortes & Vapnik (1995), "Support-vector networks".

    >>> import numpy as np
    >>> loss, grad = hinge_loss(np.array([[0.5, 1.0]]), np.array([[-1.0, 1.0]]))
    >>> loss, grad.tolist()
    (0.75, [[0.5, 0.0]])
    """
    return _native.hinge_loss(prediction, target, weights, reduction)
