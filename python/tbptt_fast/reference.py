"""A plain NumPy float64 oracle of every operation, written to be read.

It shares no code with the native kernels and makes no attempt to be fast: one step after another,
one window after another. Tests compare the kernels with it; readers learn the formulas from it.
Signatures are those of :mod:`tbptt_fast.ops`; all arithmetic and all results are float64.
This file holds the recurrent layers, `reference_layers.py` everything that knows no time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .reference_layers import (
    AnyArray,
    Array,
    LinearGrads,
    StepResult,
    adam_step,
    as_float64,
    embedding,
    embedding_backward,
    global_norm,
    linear,
    linear_backward,
    mse_loss,
    relu,
    rmsprop_step,
    sgd_step,
    sigmoid,
    softmax_cross_entropy,
)

__all__ = [
    "LinearGrads",
    "RecurrentGrads",
    "StepResult",
    "Tape",
    "adam_step",
    "embedding",
    "embedding_backward",
    "global_norm",
    "gru_backward",
    "gru_forward",
    "lag_norms",
    "linear",
    "linear_backward",
    "lstm_backward",
    "lstm_forward",
    "mse_loss",
    "relu",
    "rmsprop_step",
    "rnn_backward",
    "rnn_forward",
    "sgd_step",
    "sigmoid",
    "softmax_cross_entropy",
    "windows",
]

State = tuple[Array, ...]  # (h,) or, for the LSTM, (h, c); each [B, H]
Truncation = int | tuple[int, int] | None

# ---------------------------------------------------------------------------------------------
# Cells: gates_x = x W_ihᵀ + b_ih and gates_h = h W_hhᵀ + b_hh are given, [B, G·H] each.
# A cell returns the new state and what its derivative needs. The derivative takes the gradient of
# the new state and returns the gradients of gates_x, of gates_h, and of the previous state as far
# as it does not pass through gates_h.


@dataclass(frozen=True)
class Cell:
    """The maths of one step; `states` counts the arrays that the state consists of."""

    forward: Callable[[Array, Array, State], tuple[State, State]]
    backward: Callable[[State, State], tuple[Array, Array, State]]
    states: int = 1


def _tanh_forward(gates_x: Array, gates_h: Array, state: State) -> tuple[State, State]:
    h = np.tanh(gates_x + gates_h)
    return (h,), (h,)


def _tanh_backward(saved: State, grad: State) -> tuple[Array, Array, State]:
    (h,), (dh,) = saved, grad
    d = dh * (1 - h**2)
    return d, d, (np.zeros_like(dh),)


def _relu_forward(gates_x: Array, gates_h: Array, state: State) -> tuple[State, State]:
    h = relu(gates_x + gates_h)
    return (h,), (h,)


def _relu_backward(saved: State, grad: State) -> tuple[Array, Array, State]:
    (h,), (dh,) = saved, grad
    d = np.where(h <= 0, 0.0, dh)  # a NaN travels
    return d, d, (np.zeros_like(dh),)


def _gru_forward(gates_x: Array, gates_h: Array, state: State) -> tuple[State, State]:
    (h_prev,) = state
    xr, xz, xn = np.split(gates_x, 3, axis=-1)
    hr, hz, hn = np.split(gates_h, 3, axis=-1)
    r, z = sigmoid(xr + hr), sigmoid(xz + hz)
    n = np.tanh(xn + r * hn)
    return ((1 - z) * n + z * h_prev,), (r, z, n, hn, h_prev)


def _gru_backward(saved: State, grad: State) -> tuple[Array, Array, State]:
    r, z, n, hn, h_prev = saved
    (dh,) = grad
    dn = dh * (1 - z) * (1 - n**2)
    dz = dh * (h_prev - n) * z * (1 - z)
    dr = dn * hn * r * (1 - r)
    # The reset gate stands between the candidate's recurrent product and the candidate.
    return (
        np.concatenate([dr, dz, dn], axis=-1),
        np.concatenate([dr, dz, dn * r], axis=-1),
        (dh * z,),
    )


def _lstm_forward(gates_x: Array, gates_h: Array, state: State) -> tuple[State, State]:
    _, c_prev = state
    pi, pf, pg, po = np.split(gates_x + gates_h, 4, axis=-1)
    i, f, g, o = sigmoid(pi), sigmoid(pf), np.tanh(pg), sigmoid(po)
    c = f * c_prev + i * g
    tanh_c = np.tanh(c)
    return (o * tanh_c, c), (i, f, g, o, tanh_c, c_prev)


def _lstm_backward(saved: State, grad: State) -> tuple[Array, Array, State]:
    i, f, g, o, tanh_c, c_prev = saved
    dh, dc = grad
    dc = dc + dh * o * (1 - tanh_c**2)
    d = np.concatenate(
        [
            dc * g * i * (1 - i),
            dc * c_prev * f * (1 - f),
            dc * i * (1 - g**2),
            dh * tanh_c * o * (1 - o),
        ],
        axis=-1,
    )
    return d, d, (np.zeros_like(dh), dc * f)


RNN_TANH = Cell(_tanh_forward, _tanh_backward)
RNN_RELU = Cell(_relu_forward, _relu_backward)
GRU = Cell(_gru_forward, _gru_backward)
LSTM = Cell(_lstm_forward, _lstm_backward, states=2)

# ---------------------------------------------------------------------------------------------
# Through time


@dataclass(frozen=True)
class Tape:
    """What the forward pass leaves for the backward pass, one entry a step."""

    cell: Cell
    x: Array  # [T, B, I]
    w_ih: Array  # [G·H, I]
    w_hh: Array  # [G·H, H]
    biases: tuple[bool, bool]
    is_init: NDArray[np.bool_]  # [T, B]
    h_prev: list[Array]  # the hidden state that entered each step, after resets; [B, H] each
    saved: list[State]


class RecurrentGrads(NamedTuple):
    """Gradients in the order of the forward arguments; `hx` is a pair for the LSTM."""

    x: Array
    hx: Any
    w_ih: Array
    w_hh: Array
    b_ih: Array | None
    b_hh: Array | None


def windows(steps: int, truncation: Truncation) -> Iterator[tuple[int, int, int]]:
    """The windows of BPTT(h=k2; h'=k1), Williams & Peng (1990): (start, stop, lowest) each.

    A window injects the losses of the steps start … stop-1 and runs back through the cells
    stop-1 … lowest. `lowest` counts from the window's nominal end, also in a short last window.
    """
    if truncation is None:
        truncation = (max(steps, 1), max(steps, 1))
    k1, k2 = (truncation, truncation) if isinstance(truncation, int) else truncation
    if not 1 <= k1 <= k2:
        raise ValueError(f"truncation: expected 1 <= k1 <= k2, got ({k1}, {k2})")
    for start in range(0, steps, k1):
        yield start, min(start + k1, steps), max(0, start + k1 - k2)


def _forward(
    cell: Cell,
    x: AnyArray,
    hx: tuple[AnyArray | None, ...],
    w_ih: AnyArray,
    w_hh: AnyArray,
    b_ih: AnyArray | None,
    b_hh: AnyArray | None,
    is_init: AnyArray | None,
) -> tuple[Array, State, Tape]:
    x, w_ih, w_hh = as_float64(x), as_float64(w_ih), as_float64(w_hh)
    steps, batch, _ = x.shape
    hidden = w_hh.shape[1]
    bias_x = np.zeros(len(w_ih)) if b_ih is None else as_float64(b_ih)
    bias_h = np.zeros(len(w_hh)) if b_hh is None else as_float64(b_hh)
    resets = np.zeros((steps, batch), bool) if is_init is None else np.asarray(is_init, bool)
    state: State = tuple(np.zeros((batch, hidden)) if s is None else as_float64(s) for s in hx)
    tape = Tape(cell, x, w_ih, w_hh, (b_ih is not None, b_hh is not None), resets, [], [])

    out = np.zeros((steps, batch, hidden))
    for t in range(steps):
        # Select, never multiply by zero: the state before a reset may be NaN.
        state = tuple(np.where(resets[t][:, None], 0.0, s) for s in state)
        tape.h_prev.append(state[0])
        state, saved = cell.forward(x[t] @ w_ih.T + bias_x, state[0] @ w_hh.T + bias_h, state)
        tape.saved.append(saved)
        out[t] = state[0]
    return out, state, tape


def _backward(
    tape: Tape,
    grad_out: AnyArray | None,
    grad_hx: tuple[AnyArray | None, ...],
    truncation: Truncation,
    carry_scale: AnyArray | None,
) -> tuple[RecurrentGrads, State]:
    steps, batch, _ = tape.x.shape
    hidden = tape.w_hh.shape[1]
    zeros: State = tuple(np.zeros((batch, hidden)) for _ in range(tape.cell.states))
    dout = np.zeros((steps, batch, hidden)) if grad_out is None else as_float64(grad_out)
    final = tuple(z if g is None else as_float64(g) for z, g in zip(zeros, grad_hx, strict=True))
    scale = np.ones((steps, batch)) if carry_scale is None else as_float64(carry_scale)

    dx, dw_ih, dw_hh = np.zeros_like(tape.x), np.zeros_like(tape.w_ih), np.zeros_like(tape.w_hh)
    db_ih, db_hh = np.zeros(len(tape.w_ih)), np.zeros(len(tape.w_hh))
    dhx = zeros if steps else final

    for start, stop, lowest in windows(steps, truncation):
        carry = final if stop == steps else zeros  # the final state belongs to the last window
        for t in reversed(range(lowest, stop)):
            # Losses before `start` belong to earlier windows; here they are only passed through.
            dh = carry[0] + dout[t] if t >= start else carry[0]
            dgates_x, dgates_h, direct = tape.cell.backward(tape.saved[t], (dh, *carry[1:]))
            dx[t] += dgates_x @ tape.w_ih
            dw_ih += dgates_x.T @ tape.x[t]
            dw_hh += dgates_h.T @ tape.h_prev[t]
            db_ih += dgates_x.sum(axis=0)
            db_hh += dgates_h.sum(axis=0)
            carry = (direct[0] + dgates_h @ tape.w_hh, *direct[1:])
            # What leaves the cell: nothing across a reset or a cut, else the scaled carry.
            factor = np.where(tape.is_init[t], 0.0, scale[t])[:, None]
            carry = tuple(np.where(factor == 0, 0.0, factor * s) for s in carry)
        if lowest == 0:
            dhx = tuple(total + s for total, s in zip(dhx, carry, strict=True))

    grads = RecurrentGrads(
        x=dx,
        hx=None,
        w_ih=dw_ih,
        w_hh=dw_hh,
        b_ih=db_ih if tape.biases[0] else None,
        b_hh=db_hh if tape.biases[1] else None,
    )
    return grads, dhx


def rnn_forward(
    x: AnyArray,
    hx: AnyArray | None,
    w_ih: AnyArray,
    w_hh: AnyArray,
    b_ih: AnyArray | None = None,
    b_hh: AnyArray | None = None,
    *,
    nonlinearity: str = "tanh",
    is_init: AnyArray | None = None,
    training: bool = True,
) -> tuple[Array, Array, Tape | None]:
    """Elman's network: h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), f tanh or relu.

    x [T, B, I], hx [B, H] or None (zeros), w_ih [H, I], w_hh [H, H], biases [H], is_init [T, B].
    Returns out [T, B, H], h_n [B, H] and the tape (None if not training).
    """
    cell = {"tanh": RNN_TANH, "relu": RNN_RELU}[nonlinearity]
    out, (h,), tape = _forward(cell, x, (hx,), w_ih, w_hh, b_ih, b_hh, is_init)
    return out, h, tape if training else None


def gru_forward(
    x: AnyArray,
    hx: AnyArray | None,
    w_ih: AnyArray,
    w_hh: AnyArray,
    b_ih: AnyArray | None = None,
    b_hh: AnyArray | None = None,
    *,
    is_init: AnyArray | None = None,
    training: bool = True,
) -> tuple[Array, Array, Tape | None]:
    """GRU (Cho et al. 2014) in the form with the reset gate after the product; gates r, z, n.

    r, z = sigmoid(W_ih x + b_ih + W_hh h + b_hh); n = tanh(W_in x + b_in + r ∘ (W_hn h + b_hn));
    h' = (1 - z) ∘ n + z ∘ h. Shapes as in :func:`rnn_forward` with w_ih [3H, I], w_hh [3H, H].
    """
    out, (h,), tape = _forward(GRU, x, (hx,), w_ih, w_hh, b_ih, b_hh, is_init)
    return out, h, tape if training else None


def lstm_forward(
    x: AnyArray,
    hx: tuple[AnyArray | None, AnyArray | None] | None,
    w_ih: AnyArray,
    w_hh: AnyArray,
    b_ih: AnyArray | None = None,
    b_hh: AnyArray | None = None,
    *,
    is_init: AnyArray | None = None,
    training: bool = True,
) -> tuple[Array, tuple[Array, Array], Tape | None]:
    """LSTM (Hochreiter & Schmidhuber 1997) with forget gates (Gers et al. 2000); gates i, f, g, o.

    c' = f ∘ c + i ∘ g; h' = o ∘ tanh(c'). Shapes as in :func:`rnn_forward` with w_ih [4H, I],
    w_hh [4H, H]; hx is the pair (h, c), either of them or the whole may be None.
    """
    pair = (None, None) if hx is None else hx
    out, (h, c), tape = _forward(LSTM, x, pair, w_ih, w_hh, b_ih, b_hh, is_init)
    return out, (h, c), tape if training else None


def rnn_backward(
    tape: Tape,
    grad_out: AnyArray | None,
    grad_hx: AnyArray | None = None,
    *,
    truncation: Truncation = None,
    carry_scale: AnyArray | None = None,
) -> RecurrentGrads:
    """Backpropagation through time; with truncation=(k1, k2) BPTT(k2; k1), Williams & Peng (1990).

    grad_out [T, B, H] is the gradient of the loss at each step, grad_hx [B, H] that of the final
    state. carry_scale [T, B] multiplies the gradient that leaves step t towards step t-1.
    """
    grads, (dh,) = _backward(tape, grad_out, (grad_hx,), truncation, carry_scale)
    return grads._replace(hx=dh)


gru_backward = rnn_backward


def lstm_backward(
    tape: Tape,
    grad_out: AnyArray | None,
    grad_hx: tuple[AnyArray | None, AnyArray | None] | None = None,
    *,
    truncation: Truncation = None,
    carry_scale: AnyArray | None = None,
) -> RecurrentGrads:
    """:func:`rnn_backward` for the LSTM: grad_hx and the result's hx are pairs (h, c)."""
    pair = (None, None) if grad_hx is None else grad_hx
    grads, (dh, dc) = _backward(tape, grad_out, pair, truncation, carry_scale)
    return grads._replace(hx=(dh, dc))


def lag_norms(
    tape: Tape, grad_out: AnyArray, max_lag: int, *, sums: bool = False
) -> Array | tuple[Array, Array]:
    """phi[k, s, b] = ‖∂L_s/∂(state that left step s-k)‖, one loss after another.

    NaN before step 0, 0 before a reset; with `sums` also the sum of those gradients over all
    losses and rows [max_lag + 1, states, H].
    """
    dout = as_float64(grad_out)
    steps, batch, hidden = dout.shape
    phi = np.full((max_lag + 1, steps, batch), np.nan)
    total = np.zeros((max_lag + 1, tape.cell.states, hidden))
    for s in range(steps):
        grad: State = (dout[s], *(np.zeros((batch, hidden)) for _ in range(tape.cell.states - 1)))
        for lag in range(min(max_lag, s) + 1):
            phi[lag, s] = np.sqrt(sum((part**2).sum(axis=-1) for part in grad))
            total[lag] += np.stack([part.sum(axis=0) for part in grad])
            _, dgates_h, direct = tape.cell.backward(tape.saved[s - lag], grad)
            grad = (direct[0] + dgates_h @ tape.w_hh, *direct[1:])
            grad = tuple(np.where(tape.is_init[s - lag][:, None], 0.0, part) for part in grad)
    return (phi, total) if sums else phi
