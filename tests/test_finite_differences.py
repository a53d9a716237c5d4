"""Central differences in float64 through the native forward passes, for every gradient.

A truncated gradient is no gradient of the loss, but it is the exact gradient of a surrogate: the
sequence is cut by hand into pieces, and the state that enters a piece is a recorded constant.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import reference

from .cases import (
    CELLS,
    Problem,
    Shape,
    backward,
    forward,
    make_problem,
    part,
    relu_margin,
)

SHAPE: Shape = (7, 2, 2, 3)
STEP = 1e-5
# Truncation error of the differences is STEP², rounding eps / STEP, for values of order one.
TOLERANCE = 2e-8

CUTS = np.array([[0, 0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 1, 1, 0]], bool).T  # [T, B]
IS_INIT = np.array([[0, 0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 1, 0]], bool).T


@dataclass(frozen=True)
class Piece:
    """Cells first … stop-1 of a row; losses of the steps start … stop-1 count."""

    row: int
    first: int
    start: int
    stop: int
    constant: bool  # the state that enters is a recorded constant

    def __post_init__(self) -> None:
        assert self.first <= self.start <= self.stop


def pieces(truncation: Any, cuts: Any) -> Iterator[Piece]:
    """DESIGN §4 spelled out: each window, cut again where the row's carry is cut."""
    steps, rows = cuts.shape
    k1, k2 = truncation or (steps, steps)
    for row in range(rows):
        for start in range(0, steps, k1):
            stop = min(start + k1, steps)
            lowest = max(0, start + k1 - k2)
            inner = [t for t in range(lowest + 1, stop) if cuts[t, row]]
            edges = [lowest, *inner, stop]
            for first, last in itertools.pairwise(edges):
                if last > start:
                    constant = first > 0 or bool(cuts[0, row])
                    yield Piece(row, first, max(first, start), last, constant)


def surrogate(problem: Problem, recorded: list[Any], is_init: Any, plan: list[Piece]) -> float:
    """The loss whose exact gradient is the truncated one."""
    steps = len(problem.x)
    total = 0.0
    for piece in plan:
        row = slice(piece.row, piece.row + 1)
        entering: Any = recorded[piece.first] if piece.constant else problem.hx
        hx = tuple(s[row] for s in entering)
        chunk = part(problem, slice(piece.first, piece.stop), row, hx=hx)
        out, final, _ = forward(
            tbptt_fast, chunk, is_init=is_init[piece.first : piece.stop, row], training=False
        )
        counted = slice(piece.start - piece.first, None)
        total += float((out[counted] * chunk.grad_out[counted]).sum())
        if piece.stop == steps:
            total += sum(
                float((s * g[row]).sum()) for s, g in zip(final, problem.grad_hx or (), strict=True)
            )
    return total


def numerical(loss: Any, array: Any) -> Any:
    """Central differences of loss() by every element of `array`, which is changed in place."""
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        value = array[index]
        array[index] = value + STEP
        above = loss()
        array[index] = value - STEP
        below = loss()
        array[index] = value
        gradient[index] = (above - below) / (2 * STEP)
    return gradient


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("truncation", [None, (1, 1), (3, 3), (1, 4), (2, 5), (5, 6)], ids=str)
@pytest.mark.parametrize("masks", ["plain", "is_init", "cuts", "both"])
@pytest.mark.usefixtures("isa")
def test_every_gradient(cell: str, truncation: Any, masks: str) -> None:
    nothing = np.zeros(SHAPE[:2], bool)
    is_init = IS_INIT if masks in ("is_init", "both") else nothing
    cuts = CUTS if masks in ("cuts", "both") else nothing
    problem = make_problem(cell, SHAPE, seed=1)
    assert problem.hx is not None

    # The state before each step, then the gradients to be checked.
    recorded = [tuple(s.copy() for s in problem.hx)]
    for t in range(len(problem.x) - 1):
        step = part(problem, slice(t, t + 1), hx=recorded[-1])
        recorded.append(forward(tbptt_fast, step, is_init=is_init[t : t + 1])[1])
    out, _, tape = forward(tbptt_fast, problem, is_init=is_init)
    if cell == "rnn_relu":
        assert relu_margin(problem, out, is_init) > 10 * STEP
    scale = np.where(cuts, 0.0, 1.0)
    grads = backward(tbptt_fast, problem, tape, truncation=truncation, carry_scale=scale)

    plan = list(pieces(truncation, cuts))
    inputs = {name: getattr(problem, name) for name in ("x", "w_ih", "w_hh", "b_ih", "b_hh")}
    inputs |= dict(zip(("h0", "c0"), problem.hx, strict=False))
    assert inputs.keys() == grads.keys()
    for name, array in inputs.items():
        expected = numerical(lambda: surrogate(problem, recorded, is_init, plan), array)
        np.testing.assert_allclose(
            grads[name], expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=False, err_msg=name
        )


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("isa")
def test_a_carry_scale_is_a_factor_between_steps(cell: str) -> None:
    """Per step: the gradient by the state that enters step t is scaled, and nothing else is."""
    steps, rows = SHAPE[:2]
    problem = make_problem(cell, SHAPE, seed=2)
    scale = np.random.default_rng(0).uniform(-0.5, 2.0, size=(steps, rows))
    _, _, tape = forward(tbptt_fast, problem)
    grads = backward(tbptt_fast, problem, tape, carry_scale=scale)

    carry = problem.grad_hx
    state, tapes = problem.hx, []
    for t in range(steps):
        step = part(problem, slice(t, t + 1), hx=state)
        _, state, one = forward(tbptt_fast, step)
        tapes.append(one)
    total: dict[str, Any] = {}
    for t in reversed(range(steps)):
        step = replace(part(problem, slice(t, t + 1)), grad_hx=carry)
        local = backward(tbptt_fast, step, tapes[t])
        carry = tuple(scale[t][:, None] * local[n] for n in ("h0", "c0") if n in local)
        for name in ("w_ih", "w_hh", "b_ih", "b_hh"):
            total[name] = total.get(name, 0.0) + local[name]
        np.testing.assert_allclose(grads["x"][t], local["x"][0], rtol=1e-12, atol=1e-13)
    assert carry is not None
    total |= dict(zip(("h0", "c0"), carry, strict=False))
    for name, value in total.items():
        np.testing.assert_allclose(grads[name], value, rtol=1e-11, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("activation", [None, "relu", "tanh", "sigmoid"])
def test_linear(activation: str | None) -> None:
    rng = np.random.default_rng(3)
    x, w, b = rng.normal(size=(2, 3, 4)), rng.normal(size=(5, 4)), rng.normal(size=5)
    grad = rng.normal(size=(2, 3, 5))
    y = tbptt_fast.linear(x, w, b, activation=activation)
    grads = tbptt_fast.linear_backward(grad, x, w, y=y, activation=activation)

    def loss() -> float:
        return float((tbptt_fast.linear(x, w, b, activation=activation) * grad).sum())

    assert np.abs(reference.linear(x, w, b)).min() > 10 * STEP  # the kink of relu
    for actual, array in zip(grads, (x, w, b), strict=True):
        np.testing.assert_allclose(actual, numerical(loss, array), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses(reduction: str) -> None:
    rng = np.random.default_rng(4)
    logits, weights = rng.normal(size=(3, 4, 5)), rng.uniform(0.5, 2, size=(3, 4))
    targets = rng.integers(0, 5, size=(3, 4))
    targets[1, 2] = -100
    target = rng.normal(size=logits.shape)

    def entropy() -> tuple[float, Any]:
        return tbptt_fast.softmax_cross_entropy(
            logits, targets, weights=weights, reduction=reduction
        )

    def square() -> tuple[float, Any]:
        return tbptt_fast.mse_loss(logits, target, weights=weights, reduction=reduction)

    for loss in (entropy, square):
        expected = numerical(lambda loss=loss: loss()[0], logits)
        np.testing.assert_allclose(loss()[1], expected, rtol=1e-7, atol=1e-8)
