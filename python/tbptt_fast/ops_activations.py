"""Activations by themselves; part of `tbptt_fast.ops`, whose first lines hold here too."""

from __future__ import annotations

from typing import Literal

from . import _native
from ._types import Array, ArrayLike


def relu(x: ArrayLike) -> Array:
    """Elementwise max(x, 0) for x [...]; a NaN stays one.

    Raises:
        TypeError: see `tbptt_fast.ops`.

    >>> import numpy as np
    >>> relu(np.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """
    return _native.relu(x)


def activation_backward(
    grad_out: ArrayLike, y: ArrayLike, activation: Literal["relu", "tanh", "sigmoid"]
) -> Array:
    """Gradient of relu, tanh or sigmoid by the argument, from the output: grad_out · f'.

    f' is 1 where y > 0 and else 0 (relu'(0) = 0), 1 - y², or y·(1 - y).

    Args:
        grad_out: gradient by the output [...].
        y: the output [...].

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`.

    >>> import numpy as np
    >>> activation_backward(np.ones(2), np.array([0.5, 0.0]), "tanh").tolist()
    [0.75, 1.0]
    """
    return _native.activation_backward(grad_out, y, activation)


def softmax(x: ArrayLike) -> Array:
    """Return exp(x) / Σ exp(x) along the last axis of x [..., C], without overflow.

    A row with a NaN or with nothing above -inf becomes NaN.

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`.

    Source: Bridle (1990), "Probabilistic interpretation of feedforward classification network
    outputs".

    >>> import numpy as np
    >>> softmax(np.array([[1000.0, 1000.0]])).tolist()
    [[0.5, 0.5]]
    """
    return _native.softmax(x)


def softmax_backward(grad_out: ArrayLike, y: ArrayLike) -> Array:
    """Gradient of `softmax` by x, from its output: y·(grad_out - Σ y·grad_out), all [..., C].

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`.

    >>> import numpy as np
    >>> softmax_backward(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]])).tolist()
    [[0.25, -0.25]]
    """
    return _native.softmax_backward(grad_out, y)
