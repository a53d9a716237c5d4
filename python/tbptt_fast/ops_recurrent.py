"""Recurrent layers, forward and backward, and what they tell; part of `tbptt_fast.ops`.

Their arrays and errors are those of its first lines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, overload

from . import _native
from ._native import Tape
from ._types import Array, ArrayLike, StatePair, Truncation

__all__ = [
    "RecurrentGrads",
    "Tape",
    "gru_backward",
    "gru_forward",
    "lag_norms",
    "lstm_backward",
    "lstm_forward",
    "rnn_backward",
    "rnn_forward",
]


class RecurrentGrads(NamedTuple):
    """Gradients of a recurrent layer, each shaped like its argument; None for a missing bias."""

    x: Array
    hx: Any
    w_ih: Array
    w_hh: Array
    b_ih: Array | None
    b_hh: Array | None


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
        TypeError, ValueError: a wrong dtype; a wrong shape or value.

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
        TypeError, ValueError: a wrong dtype; a wrong shape or value.

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
        TypeError, ValueError: a wrong dtype; a wrong shape or value.

    Source: Hochreiter & Schmidhuber (1997), "Long short-term memory"; Gers et al. (2000).

    >>> import numpy as np
    >>> x = np.zeros((3, 2, 4))
    >>> out, (h_n, c_n), tape = lstm_forward(x, None, np.ones((20, 4)), np.ones((20, 5)))
    >>> out.shape, c_n.shape, tape.nbytes == 6 * out.nbytes
    ((3, 2, 5), (2, 5), True)
    """
    return _native.lstm_forward(x, hx, w_ih, w_hh, b_ih, b_hh, is_init, training)


# Of all recurrent layers; the others are in `ops_convrecurrent`.
BACKWARD = """Gradients of {name} by truncated backpropagation through time.

    Args:
        tape: of `{name}_forward`; it may be used any number of times.
        grad_out: gradient of the loss by each step's output [T, {state}]; None for zeros.
        grad_hx: gradient by the final state{of}[{state}], or None.
        truncation: None for full backpropagation; K for windows of K steps (a detach before the
            steps K, 2K, …); (k1, k2) for windows of k1 losses that reach back over at most k2
            steps, k1 <= k2. (1, K) lets every loss reach exactly K steps. Windows are rows of one
            batch, and run side by side.
        carry_scale: [T, B]; multiplies the gradient that flows from step t back to step t - 1
            (at t = 0: to hx). 0 cuts; 1 / (1 - c) corrects for cuts made with probability c.

    Returns:
        {grads}: sums over all losses, never means.

    Raises:
        TypeError, ValueError: a wrong dtype; a wrong shape or value; k2 < k1 would drop losses.

    Source: Williams & Peng (1990), "An efficient gradient-based algorithm for on-line training of
    recurrent network trajectories": BPTT(h; h') with h = k2, h' = k1.

    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((6, 1, 1{image})), np.ones({weights}), np.ones({weights})
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


def describe_backward(
    backward: Callable[..., Any], grads: type[Any], gates: int, image: str = "", kernel: str = ""
) -> None:
    """Give a backward pass its docstring; `image` and `kernel` are sizes behind the channels."""
    name = backward.__name__.removesuffix("_backward")
    of = ", the pair (h, c), each " if name.endswith("lstm") else " "
    backward.__doc__ = BACKWARD.format(
        name=name,
        of=of,
        state="B, H, Y, X" if image else "B, H",
        grads=f"{grads.__name__}({', '.join(grads._fields)})",
        image=image,
        weights=f"({gates}, 1{kernel})",
    )


for _gates, _backward in ((1, rnn_backward), (3, gru_backward), (4, lstm_backward)):
    describe_backward(_backward, RecurrentGrads, _gates)


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
        TypeError, ValueError: a wrong dtype; a wrong shape or value.

    Source: Aicher, Foti & Fox (2019), "Adaptively truncating backpropagation through time".

    >>> import numpy as np
    >>> one, halving = np.ones((3, 1, 1)), np.full((1, 1), 0.5)
    >>> _, _, tape = rnn_forward(one, None, np.ones((1, 1)), halving, nonlinearity="relu")
    >>> lag_norms(tape, one, max_lag=2)[:, :, 0].tolist()
    [[1.0, 1.0, 1.0], [nan, 0.5, 0.5], [nan, nan, 0.25]]
    """
    phi, total = _native.lag_norms(tape, grad_out, max_lag, sums)
    return phi if total is None else (phi, total)
