"""The primitives: single layers, forward and backward, on NumPy arrays.

Arrays are time-major (T steps, B rows of the batch, I inputs, H hidden units), all float32 or all
float64 within a call; strided, read-only and DLPack arrays are welcome. Outputs are fresh and
C-contiguous. Weights have PyTorch's layout. A wrong dtype raises TypeError and a wrong shape or
value ValueError, both naming the argument, what was expected and what was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from . import _native
from ._types import Activation, Array, ArrayLike, Layout, Truncation
from .ops_activations import activation_backward, relu, softmax, softmax_backward
from .ops_convolution import (
    ConvGrads,
    PackedConv2d,
    conv1d,
    conv1d_backward,
    conv2d,
    conv2d_backward,
    conv_transpose2d,
    conv_transpose2d_backward,
    pack_conv2d,
)
from .ops_convrecurrent import (
    ConvRecurrentGrads,
    ConvTape,
    convgru_backward,
    convgru_forward,
    convlstm_backward,
    convlstm_forward,
    convrnn_backward,
    convrnn_forward,
)
from .ops_layers import (
    embedding,
    embedding_backward,
    hinge_loss,
    huber_loss,
    l1_loss,
    mse_loss,
    softmax_cross_entropy,
)
from .ops_norm import (
    BatchNorm,
    LayerNorm,
    NormGrads,
    batch_norm,
    batch_norm_backward,
    dropout,
    dropout_backward,
    layer_norm,
    layer_norm_backward,
)
from .ops_optim import StepResult, adam_step, global_norm, rmsprop_step, sgd_step
from .ops_pooling import (
    avg_pool2d,
    avg_pool2d_backward,
    global_avg_pool2d,
    global_avg_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
)
from .ops_recurrent import (
    RecurrentGrads,
    Tape,
    gru_backward,
    gru_forward,
    lag_norms,
    lstm_backward,
    lstm_forward,
    rnn_backward,
    rnn_forward,
)

__all__ = [
    "BatchNorm",
    "ConvGrads",
    "ConvRecurrentGrads",
    "ConvTape",
    "LayerNorm",
    "Layout",
    "LinearGrads",
    "NormGrads",
    "PackedConv2d",
    "RecurrentGrads",
    "StepResult",
    "Tape",
    "Truncation",
    "activation_backward",
    "adam_step",
    "avg_pool2d",
    "avg_pool2d_backward",
    "batch_norm",
    "batch_norm_backward",
    "conv1d",
    "conv1d_backward",
    "conv2d",
    "conv2d_backward",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "convgru_backward",
    "convgru_forward",
    "convlstm_backward",
    "convlstm_forward",
    "convrnn_backward",
    "convrnn_forward",
    "dropout",
    "dropout_backward",
    "embedding",
    "embedding_backward",
    "exp",
    "global_avg_pool2d",
    "global_avg_pool2d_backward",
    "global_norm",
    "gru_backward",
    "gru_forward",
    "hinge_loss",
    "huber_loss",
    "l1_loss",
    "lag_norms",
    "layer_norm",
    "layer_norm_backward",
    "linear",
    "linear_backward",
    "lstm_backward",
    "lstm_forward",
    "max_pool2d",
    "max_pool2d_backward",
    "mse_loss",
    "pack_conv2d",
    "relu",
    "rmsprop_step",
    "rnn_backward",
    "rnn_forward",
    "sgd_step",
    "sigmoid",
    "softmax",
    "softmax_backward",
    "softmax_cross_entropy",
    "tanh",
]


class LinearGrads(NamedTuple):
    """Gradients of a linear layer; None where not needed."""

    x: Array | None
    w: Array | None
    b: Array | None


def linear(
    x: ArrayLike, w: ArrayLike, b: ArrayLike | None = None, *, activation: Activation = None
) -> Array:
    """Return f(x·Wᵀ + b) [..., O] for x [..., I], w [O, I], b [O] or None.

    Args:
        activation: f; None (identity), "relu", "tanh" or "sigmoid", applied in the same pass.

    Raises:
        TypeError, ValueError: see the module's first lines.

    >>> import numpy as np
    >>> linear(np.ones((2, 3)), np.ones((1, 3)), np.array([-4.0]), activation="relu").tolist()
    [[0.0], [0.0]]
    """
    return _native.linear(x, w, b, activation)


def linear_backward(
    grad_out: ArrayLike,
    x: ArrayLike,
    w: ArrayLike,
    *,
    y: ArrayLike | None = None,
    activation: Activation = None,
    needs: Sequence[Literal["x", "w", "b"]] = ("x", "w", "b"),
) -> LinearGrads:
    """Gradients of `linear` by x, w and b; those not in `needs` are None and cost nothing.

    Args:
        grad_out: gradient by the output [..., O].
        y: the output of `linear` [..., O]; needed with an activation (relu'(0) = 0).

    Raises:
        TypeError, ValueError: see the module's first lines.

    >>> import numpy as np
    >>> grads = linear_backward(np.ones((2, 1)), np.ones((2, 3)), np.ones((1, 3)), needs=("w",))
    >>> grads.w.tolist(), grads.x
    ([[2.0, 2.0, 2.0]], None)
    """
    return LinearGrads(*_native.linear_backward(grad_out, x, w, y, activation, needs))


def exp(x: ArrayLike) -> Array:
    """Elementwise e**x with the kernels' own vector maths (at most 1.5 ULP off).

    >>> import numpy as np
    >>> exp(np.array([0.0])).tolist()
    [1.0]
    """
    return _native.exp(x)


def tanh(x: ArrayLike) -> Array:
    """Elementwise hyperbolic tangent with the kernels' own vector maths (at most 2.5 ULP off).

    >>> import numpy as np
    >>> tanh(np.array([0.0, np.inf])).tolist()
    [0.0, 1.0]
    """
    return _native.tanh(x)


def sigmoid(x: ArrayLike) -> Array:
    """Elementwise 1 / (1 + e**-x) with the kernels' own vector maths (at most 2 ULP off).

    >>> import numpy as np
    >>> sigmoid(np.array([0.0, -np.inf])).tolist()
    [0.5, 0.0]
    """
    return _native.sigmoid(x)
