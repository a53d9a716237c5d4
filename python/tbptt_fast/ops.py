"""The primitives: single layers, forward and backward, on NumPy arrays.

Arrays are time-major (T steps, B rows of the batch, I inputs, H hidden units), all float32 or all
float64 within a call; strided, read-only and DLPack arrays are welcome. Outputs are fresh and
C-contiguous. Weights have PyTorch's layout. A wrong dtype raises TypeError and a wrong shape or
value ValueError, both naming the argument, what was expected and what was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, overload

from . import _native
from ._native import Tape
from ._types import Activation, Array, ArrayLike, Layout
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

StatePair: TypeAlias = tuple[Array, Array]
Truncation: TypeAlias = int | tuple[int, int] | None


class RecurrentGrads(NamedTuple):
    """Gradients of a recurrent layer, each shaped like its argument; None for a missing bias."""

    x: Array
    hx: Any
    w_ih: Array
    w_hh: Array
    b_ih: Array | None
    b_hh: Array | None


class LinearGrads(NamedTuple):
    """Gradients of a linear layer; None where not needed."""

    x: Array | None
    w: Array | None
    b: Array | None


def rnn_forward(
    x: ArrayLike,
    hx: ArrayLike | None,
    w_ih: ArrayLike,
    w_hh: ArrayLike,
    b_ih: ArrayLike | None = None,
    b_hh: ArrayLike | None = None,
    *,
    nonlinearity: Literal["tanh", "relu"] = "tanh",
    is_init: ArrayLike | None = None,
    training: bool = True,
) -> tuple[Array, Array, Tape | None]:
    """Run a plain recurrent layer, h_t = f(W_ih·x_t + b_ih + W_hh·h_(t-1) + b_hh), over T steps.

    Args:
        x: inputs [T, B, I].
        hx: state before step 0 [B, H]; None means zeros.
        w_ih, w_hh: weights [H, I] and [H, H].
        b_ih, b_hh: biases [H], or None.
        nonlinearity: f, "tanh" or "relu".
        is_init: bool [T, B]; True at (t, b) zeroes the state that enters step t of row b.
        training: keep a tape for `rnn_backward`; without it no history is kept.

    Returns:
        All states [T, B, H], the last one [B, H], and the tape (None unless training). The tape
        refers to the arguments: do not change them in place before the backward pass.

    Raises:
        TypeError, ValueError: see the module's first lines.

    Source: Elman (1990), "Finding structure in time".

    >>> import numpy as np
    >>> x = np.ones((2, 1, 1))
    >>> out, h_n, tape = rnn_forward(x, None, np.ones((1, 1)), np.ones((1, 1)), nonlinearity="relu")
    >>> out.ravel().tolist()
    [1.0, 2.0]
    """
    return _native.rnn_forward(x, hx, w_ih, w_hh, b_ih, b_hh, nonlinearity, is_init, training)


def gru_forward(
    x: ArrayLike,
    hx: ArrayLike | None,
    w_ih: ArrayLike,
    w_hh: ArrayLike,
    b_ih: ArrayLike | None = None,
    b_hh: ArrayLike | None = None,
    *,
    is_init: ArrayLike | None = None,
    training: bool = True,
) -> tuple[Array, Array, Tape | None]:
    """Run a GRU layer over T steps; the reset gate applies after the product.

    Args:
        x: inputs [T, B, I].
        hx: state before step 0 [B, H]; None means zeros.
        w_ih, w_hh: weights [3H, I] and [3H, H], gates in the order r, z, n.
        b_ih, b_hh: biases [3H], or None.
        is_init: bool [T, B]; True at (t, b) zeroes the state that enters step t of row b.
        training: keep a tape for `gru_backward`.

    Returns:
        All states [T, B, H], the last one [B, H], and the tape (None unless training). The tape
        refers to the arguments: do not change them in place before the backward pass.

    Raises:
        TypeError, ValueError: see the module's first lines.

    Source: Cho et al. (2014), "Learning phrase representations using RNN encoder-decoder".

    >>> import numpy as np
    >>> x, w = np.ones((4, 2, 3)), np.zeros((15, 3))
    >>> out, h_n, tape = gru_forward(x, np.ones((2, 5)), w, np.zeros((15, 5)))
    >>> float(h_n[0, 0])  # halved at every step
    0.0625
    """
    return _native.gru_forward(x, hx, w_ih, w_hh, b_ih, b_hh, is_init, training)


def lstm_forward(
    x: ArrayLike,
    hx: tuple[ArrayLike | None, ArrayLike | None] | None,
    w_ih: ArrayLike,
    w_hh: ArrayLike,
    b_ih: ArrayLike | None = None,
    b_hh: ArrayLike | None = None,
    *,
    is_init: ArrayLike | None = None,
    training: bool = True,
) -> tuple[Array, StatePair, Tape | None]:
    """Run an LSTM layer over T steps.

    Args:
        x: inputs [T, B, I].
        hx: the pair (h, c) before step 0, each [B, H] or None; None means zeros.
        w_ih, w_hh: weights [4H, I] and [4H, H], gates in the order i, f, g, o.
        b_ih, b_hh: biases [4H], or None.
        is_init: bool [T, B]; True at (t, b) zeroes the state that enters step t of row b.
        training: keep a tape for `lstm_backward`.

    Returns:
        All h [T, B, H], the last pair (h, c), and the tape (None unless training). The tape refers
        to the arguments: do not change them in place before the backward pass.

    Raises:
        TypeError, ValueError: see the module's first lines.

    Source: Hochreiter & Schmidhuber (1997), "Long short-term memory"; Gers et al. (2000).

    >>> import numpy as np
    >>> x = np.zeros((3, 2, 4))
    >>> out, (h_n, c_n), tape = lstm_forward(x, None, np.ones((20, 4)), np.ones((20, 5)))
    >>> out.shape, c_n.shape, tape.nbytes == 6 * out.nbytes
    ((3, 2, 5), (2, 5), True)
    """
    return _native.lstm_forward(x, hx, w_ih, w_hh, b_ih, b_hh, is_init, training)


_BACKWARD = """Gradients of {name} by truncated backpropagation through time.

    Args:
        tape: of `{name}_forward`; it may be used any number of times.
        grad_out: gradient of the loss by each step's output [T, B, H]; None for zeros.
        grad_hx: gradient by the final state{pair}, or None.
        truncation: None for full backpropagation; K for windows of K steps (a detach before the
            steps K, 2K, …); (k1, k2) for windows of k1 losses that reach back over at most k2
            steps, k1 <= k2. (1, K) lets every loss reach exactly K steps. Windows are rows of one
            batch: truncating is faster than not truncating.
        carry_scale: [T, B]; multiplies the gradient that flows from step t back to step t - 1
            (at t = 0: to hx). 0 cuts; 1 / (1 - c) corrects for cuts made with probability c.

    Returns:
        RecurrentGrads(x, hx, w_ih, w_hh, b_ih, b_hh): sums over all losses, never means.

    Raises:
        TypeError, ValueError: see the module's first lines; k2 < k1 would drop losses.

    Source: Williams & Peng (1990), "An efficient gradient-based algorithm for on-line training of
    recurrent network trajectories": BPTT(h; h') with h = k2, h' = k1.

    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((6, 1, 1)), np.ones(({gates}, 1)), np.ones(({gates}, 1))
    >>> out, _, tape = {name}_forward(x, None, w_ih, w_hh)
    >>> full = {name}_backward(tape, np.ones_like(out))
    >>> windows = {name}_backward(tape, np.ones_like(out), truncation=(2, 4))
    >>> full.w_hh.shape == windows.w_hh.shape
    True
    """


def rnn_backward(
    tape: Tape | None,
    grad_out: ArrayLike | None,
    grad_hx: ArrayLike | None = None,
    *,
    truncation: Truncation = None,
    carry_scale: ArrayLike | None = None,
) -> RecurrentGrads:
    return RecurrentGrads(*_native.rnn_backward(tape, grad_out, grad_hx, truncation, carry_scale))


def gru_backward(
    tape: Tape | None,
    grad_out: ArrayLike | None,
    grad_hx: ArrayLike | None = None,
    *,
    truncation: Truncation = None,
    carry_scale: ArrayLike | None = None,
) -> RecurrentGrads:
    return RecurrentGrads(*_native.gru_backward(tape, grad_out, grad_hx, truncation, carry_scale))


def lstm_backward(
    tape: Tape | None,
    grad_out: ArrayLike | None,
    grad_hx: tuple[ArrayLike | None, ArrayLike | None] | None = None,
    *,
    truncation: Truncation = None,
    carry_scale: ArrayLike | None = None,
) -> RecurrentGrads:
    return RecurrentGrads(*_native.lstm_backward(tape, grad_out, grad_hx, truncation, carry_scale))


rnn_backward.__doc__ = _BACKWARD.format(name="rnn", gates=1, pair=" [B, H]")
gru_backward.__doc__ = _BACKWARD.format(name="gru", gates=3, pair=" [B, H]")
lstm_backward.__doc__ = _BACKWARD.format(
    name="lstm", gates=4, pair=", the pair (h, c), each [B, H] or None"
)


@overload
def lag_norms(
    tape: Tape | None, grad_out: ArrayLike, max_lag: int, *, sums: Literal[False] = False
) -> Array: ...
@overload
def lag_norms(
    tape: Tape | None, grad_out: ArrayLike, max_lag: int, *, sums: Literal[True]
) -> tuple[Array, Array]: ...
def lag_norms(
    tape: Tape | None, grad_out: ArrayLike, max_lag: int, *, sums: bool = False
) -> Array | tuple[Array, Array]:
    """How far each step's loss reaches back: phi[k, s, b] = ‖∂L_s/∂h_(s-k)‖ of row b.

    All losses walk back together, one batch per lag, without gradients of weights. h_(s-k) is the
    state that left step s - k; for an LSTM it is h and c side by side, c without what it does to
    the same step's h. Lag 0 is the norm of `grad_out` itself.

    Args:
        tape: of `lstm_forward`, `gru_forward` or `rnn_forward`.
        grad_out: gradient of L_s by the output of step s, for all s [T, B, H]. Losses whose
            gradient is zero have zeros and cost nothing, which is how to measure only some of them.
        max_lag: the largest lag, 0 or more.
        sums: also return Σ ∂L_s/∂h_(s-k) over all s and b, float64 [max_lag + 1, S, H], with
            S = 2 (h and c) for an LSTM and 1 for the others.

    Returns:
        phi [max_lag + 1, T, B]. Before a reset (`is_init`) it is 0, because nothing reaches there;
        before step 0 (k > s) it is NaN, because nothing is known about that.

    Raises:
        TypeError, ValueError: see the module's first lines.

    Source: Aicher, Foti & Fox (2019), "Adaptively truncating backpropagation through time".

    >>> import numpy as np
    >>> one, halving = np.ones((3, 1, 1)), np.full((1, 1), 0.5)
    >>> _, _, tape = rnn_forward(one, None, np.ones((1, 1)), halving, nonlinearity="relu")
    >>> lag_norms(tape, one, max_lag=2)[:, :, 0].tolist()
    [[1.0, 1.0, 1.0], [nan, 0.5, 0.5], [nan, nan, 0.25]]
    """
    phi, total = _native.lag_norms(tape, grad_out, max_lag, sums)
    return phi if total is None else (phi, total)


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
    return LinearGrads(*_native.linear_backward(grad_out, x, w, y, activation, tuple(needs)))


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
