"""Recurrent layers on images in plain NumPy and float64, to read and to test against.

The cells are those of `reference.py`; only the products differ. Layout is NCHW, and every window
is walked by itself, one step after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import reference
from .reference_convolution import conv, conv_backward
from .reference_layers import AnyArray, Array, as_float64, sigmoid

State = tuple[Array, ...]


class ConvRecurrentGrads(NamedTuple):
    """Gradients in the order of the forward arguments; `hx` is a pair for the LSTM."""

    x: Array
    hx: Any
    w_ih: Array
    w_hh: Array
    b_ih: Array | None
    b_hh: Array | None
    peephole: Array | None


@dataclass(frozen=True)
class ConvTape:
    """What the forward pass leaves for the backward pass, one entry a step."""

    cell: reference.Cell
    x: Array  # [T, B, C, Y, X]
    w_ih: Array
    w_hh: Array
    biases: tuple[bool, bool]
    peephole: Array | None  # [3, H, 1, 1] or [3, H, Y, X]
    peephole_shape: tuple[int, ...]
    is_init: NDArray[np.bool_]  # [T, B]
    dilation: tuple[int, int]
    before: list[State]  # the state that entered each step, after resets
    behind: list[State]
    saved: list[State]


def _options(w: Array, dilation: tuple[int, int]) -> dict[str, Any]:
    sides = [
        ((k - 1) // 2 * d, (k - 1) // 2 * d) for k, d in zip(w.shape[2:], dilation, strict=True)
    ]
    return {"stride": (1, 1), "padding": sides, "dilation": dilation}


def _last(a: Array) -> Array:
    """Channels last, as the cells want their gates."""
    return np.moveaxis(a, 1, -1)


def _first(a: Array) -> Array:
    return np.moveaxis(a, -1, 1)


def _peephole_lstm_forward(gates: Array, state: State, peephole: Array) -> tuple[State, State]:
    """The LSTM whose gates i and f see the c before, and whose gate o sees the new one; NCHW."""
    _, c_prev = state
    i, f, g, o = np.split(gates, 4, axis=1)
    i, f, g = sigmoid(i + peephole[0] * c_prev), sigmoid(f + peephole[1] * c_prev), np.tanh(g)
    c = f * c_prev + i * g
    o = sigmoid(o + peephole[2] * c)
    tanh_c = np.tanh(c)
    return (o * tanh_c, c), (i, f, g, o, tanh_c, c_prev)


def _peephole_lstm_backward(
    saved: State, grad: State, peephole: Array
) -> tuple[Array, Array, State]:
    i, f, g, o, tanh_c, c_prev = saved
    dh, dc = grad
    d_o = dh * tanh_c * o * (1 - o)
    dc = dc + dh * o * (1 - tanh_c**2) + d_o * peephole[2]
    d_i, d_f, d_g = dc * g * i * (1 - i), dc * c_prev * f * (1 - f), dc * i * (1 - g**2)
    d = np.concatenate([d_i, d_f, d_g, d_o], axis=1)
    return d, d, (np.zeros_like(dh), dc * f + d_i * peephole[0] + d_f * peephole[1])


def _cell_forward(tape: ConvTape, x: Array, h: Array, state: State) -> tuple[State, State]:
    if tape.peephole is not None:
        return _peephole_lstm_forward(x + h, state, tape.peephole)
    new, saved = tape.cell.forward(_last(x), _last(h), tuple(_last(s) for s in state))
    return tuple(_first(s) for s in new), saved


def _cell_backward(tape: ConvTape, saved: State, grad: State) -> tuple[Array, Array, State]:
    if tape.peephole is not None:
        return _peephole_lstm_backward(saved, grad, tape.peephole)
    by_x, by_h, direct = tape.cell.backward(saved, tuple(_last(g) for g in grad))
    return _first(by_x), _first(by_h), tuple(_first(g) for g in direct)


def _forward(
    cell: reference.Cell,
    x: AnyArray,
    hx: tuple[AnyArray | None, ...],
    w_ih: AnyArray,
    w_hh: AnyArray,
    b_ih: AnyArray | None,
    b_hh: AnyArray | None,
    peephole: AnyArray | None,
    is_init: AnyArray | None,
    dilation: int | tuple[int, int],
) -> tuple[Array, State, ConvTape]:
    x, w_ih, w_hh = as_float64(x), as_float64(w_ih), as_float64(w_hh)
    steps, batch, _, height, width = x.shape
    shape = (batch, w_hh.shape[1], height, width)
    pair = (dilation, dilation) if isinstance(dilation, int) else dilation
    resets = np.zeros((steps, batch), bool) if is_init is None else np.asarray(is_init, bool)
    peepholes = None if peephole is None else as_float64(peephole)
    given_shape = () if peepholes is None else peepholes.shape
    if peepholes is not None and peepholes.ndim == 2:
        peepholes = peepholes[:, :, None, None]
    biases = (b_ih is not None, b_hh is not None)
    tape = ConvTape(cell, x, w_ih, w_hh, biases, peepholes, given_shape, resets, pair, [], [], [])
    state: State = tuple(np.zeros(shape) if s is None else as_float64(s) for s in hx)
    out = np.zeros((steps, *shape))
    for t in range(steps):
        # Select, never multiply by zero: the state before a reset may be NaN.
        state = tuple(np.where(resets[t][:, None, None, None], 0.0, s) for s in state)
        tape.before.append(state)
        by_x = conv(x[t], w_ih, b_ih, **_options(w_ih, pair))
        by_h = conv(state[0], w_hh, b_hh, **_options(w_hh, pair))
        state, saved = _cell_forward(tape, by_x, by_h, state)
        tape.behind.append(state)
        tape.saved.append(saved)
        out[t] = state[0]
    return out, state, tape


def _backward(
    tape: ConvTape,
    grad_out: AnyArray | None,
    grad_hx: tuple[AnyArray | None, ...],
    truncation: reference.Truncation,
    carry_scale: AnyArray | None,
) -> tuple[ConvRecurrentGrads, State]:
    steps, batch, _, height, width = tape.x.shape
    shape = (batch, tape.w_hh.shape[1], height, width)
    zeros: State = tuple(np.zeros(shape) for _ in range(tape.cell.states))
    dout = np.zeros((steps, *shape)) if grad_out is None else as_float64(grad_out)
    final = tuple(z if g is None else as_float64(g) for z, g in zip(zeros, grad_hx, strict=True))
    scale = np.ones((steps, batch)) if carry_scale is None else as_float64(carry_scale)

    dx, dw_ih, dw_hh = np.zeros_like(tape.x), np.zeros_like(tape.w_ih), np.zeros_like(tape.w_hh)
    db_ih, db_hh = np.zeros(len(tape.w_ih)), np.zeros(len(tape.w_hh))
    dpeephole = np.zeros((3, *shape[1:]))
    dhx = zeros if steps else final
    for start, stop, lowest in reference.windows(steps, truncation):
        carry = final if stop == steps else zeros  # the final state belongs to the last window
        for t in reversed(range(lowest, stop)):
            # Losses before `start` belong to earlier windows; here they are only passed through.
            dh = carry[0] + dout[t] if t >= start else carry[0]
            by_x, by_h, direct = _cell_backward(tape, tape.saved[t], (dh, *carry[1:]))
            options = _options(tape.w_ih, tape.dilation)
            grad_x, grad_w, grad_b = conv_backward(by_x, tape.x[t], tape.w_ih, **options)
            dx[t] += grad_x
            dw_ih += grad_w
            db_ih += grad_b
            options = _options(tape.w_hh, tape.dilation)
            grad_h, grad_w, grad_b = conv_backward(by_h, tape.before[t][0], tape.w_hh, **options)
            dw_hh += grad_w
            db_hh += grad_b
            if tape.peephole is not None:
                d_i, d_f, _, d_o = np.split(by_h, 4, axis=1)
                dpeephole[0] += (d_i * tape.before[t][1]).sum(0)
                dpeephole[1] += (d_f * tape.before[t][1]).sum(0)
                dpeephole[2] += (d_o * tape.behind[t][1]).sum(0)
            carry = (direct[0] + grad_h, *direct[1:])
            # What leaves the cell: nothing across a reset or a cut, else the scaled carry.
            factor = np.where(tape.is_init[t], 0.0, scale[t])[:, None, None, None]
            carry = tuple(np.where(factor == 0, 0.0, factor * s) for s in carry)
        if lowest == 0:
            dhx = tuple(total + s for total, s in zip(dhx, carry, strict=True))

    if len(tape.peephole_shape) == 2:
        dpeephole = dpeephole.sum((2, 3))
    grads = ConvRecurrentGrads(
        x=dx,
        hx=None,
        w_ih=dw_ih,
        w_hh=dw_hh,
        b_ih=db_ih if tape.biases[0] else None,
        b_hh=db_hh if tape.biases[1] else None,
        peephole=None if tape.peephole is None else dpeephole,
    )
    return grads, dhx


def convrnn_forward(
    x: AnyArray,
    hx: AnyArray | None,
    w_ih: AnyArray,
    w_hh: AnyArray,
    b_ih: AnyArray | None = None,
    b_hh: AnyArray | None = None,
    *,
    nonlinearity: str = "tanh",
    is_init: AnyArray | None = None,
    dilation: int | tuple[int, int] = 1,
) -> tuple[Array, Array, ConvTape]:
    """h_t = f(W_ih*x_t + b_ih + W_hh*h_(t-1) + b_hh), f tanh or relu; x [T, B, C, Y, X]."""
    cell = {"tanh": reference.RNN_TANH, "relu": reference.RNN_RELU}[nonlinearity]
    out, (h,), tape = _forward(cell, x, (hx,), w_ih, w_hh, b_ih, b_hh, None, is_init, dilation)
    return out, h, tape


def convgru_forward(
    x: AnyArray,
    hx: AnyArray | None,
    w_ih: AnyArray,
    w_hh: AnyArray,
    b_ih: AnyArray | None = None,
    b_hh: AnyArray | None = None,
    *,
    is_init: AnyArray | None = None,
    dilation: int | tuple[int, int] = 1,
) -> tuple[Array, Array, ConvTape]:
    """`reference.gru_forward` with convolutions; gates r, z, n."""
    cell = reference.GRU
    out, (h,), tape = _forward(cell, x, (hx,), w_ih, w_hh, b_ih, b_hh, None, is_init, dilation)
    return out, h, tape


def convlstm_forward(
    x: AnyArray,
    hx: tuple[AnyArray | None, AnyArray | None] | None,
    w_ih: AnyArray,
    w_hh: AnyArray,
    b_ih: AnyArray | None = None,
    b_hh: AnyArray | None = None,
    *,
    peephole: AnyArray | None = None,
    is_init: AnyArray | None = None,
    dilation: int | tuple[int, int] = 1,
) -> tuple[Array, tuple[Array, Array], ConvTape]:
    """ConvLSTM (Shi et al. 2015), gates i, f, g, o; peephole [3, H] or [3, H, Y, X], or None."""
    pair = (None, None) if hx is None else hx
    out, (h, c), tape = _forward(
        reference.LSTM, x, pair, w_ih, w_hh, b_ih, b_hh, peephole, is_init, dilation
    )
    return out, (h, c), tape


def convrnn_backward(
    tape: ConvTape,
    grad_out: AnyArray | None,
    grad_hx: AnyArray | None = None,
    *,
    truncation: reference.Truncation = None,
    carry_scale: AnyArray | None = None,
) -> ConvRecurrentGrads:
    """`reference.rnn_backward` for images."""
    grads, (dh,) = _backward(tape, grad_out, (grad_hx,), truncation, carry_scale)
    return grads._replace(hx=dh)


convgru_backward = convrnn_backward


def convlstm_backward(
    tape: ConvTape,
    grad_out: AnyArray | None,
    grad_hx: tuple[AnyArray | None, AnyArray | None] | None = None,
    *,
    truncation: reference.Truncation = None,
    carry_scale: AnyArray | None = None,
) -> ConvRecurrentGrads:
    """`reference.lstm_backward` for images; grad_hx and the result's hx are pairs (h, c)."""
    pair = (None, None) if grad_hx is None else grad_hx
    grads, (dh, dc) = _backward(tape, grad_out, pair, truncation, carry_scale)
    return grads._replace(hx=(dh, dc))
