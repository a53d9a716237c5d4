"""Gradients' norms by lag: every loss by itself, as in the reference and as in many backwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tbptt_fast
from tbptt_fast import reference

from .cases import (
    CELLS,
    DTYPES,
    RECURRENT_MASKED,
    RECURRENT_SMALL,
    Problem,
    Shape,
    assert_close,
    backward,
    forward,
    make_masks,
    make_problem,
    part,
    relu_margin,
    shape_id,
)

cells = pytest.mark.parametrize("cell", CELLS)


def measured(ops: Any, problem: Problem, max_lag: int, is_init: Any = None) -> tuple[Any, Any]:
    _, _, tape = forward(ops, problem, is_init=is_init)
    phi, sums = ops.lag_norms(tape, problem.grad_out, max_lag, sums=True)
    return phi, sums


def check(
    problem: Problem,
    actual: tuple[Any, Any],
    expected: tuple[Any, Any],
    eps: float | None = None,
) -> None:
    """NaN at the same places, and elsewhere equal up to rounding, that of the dtype or eps."""
    phi, sums = actual
    assert phi.dtype == problem.x.dtype
    assert sums.dtype == np.float64
    np.testing.assert_array_equal(np.isnan(phi), np.isnan(expected[0]))
    eps = float(np.finfo(problem.x.dtype).eps) if eps is None else eps
    options = {"length": problem.length, "eps": eps}
    assert_close(np.nan_to_num(phi), np.nan_to_num(expected[0]), "gradient", **options)
    # Sums cancel; their rounding errors are those of their terms.
    terms = float(np.nan_to_num(expected[0]).max(initial=0.0)) * problem.x.shape[0] ** 0.5
    assert_close(sums, expected[1], "gradient", **options, terms=max(1.0, terms))


@cells
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*RECURRENT_SMALL, *RECURRENT_MASKED], ids=shape_id)
@pytest.mark.usefixtures("isa", "threads")
def test_every_loss_by_itself(cell: str, dtype: str, shape: Shape) -> None:
    problem = make_problem(cell, shape, dtype)
    for is_init in (None, make_masks("is_init", shape)["is_init"]):
        for max_lag in (0, 1, 4, shape[0] + 2):
            expected = measured(reference, problem, max_lag, is_init)
            check(problem, measured(tbptt_fast, problem, max_lag, is_init), expected)


@cells
@pytest.mark.usefixtures("isa")
def test_the_same_bits_for_any_number_of_threads(cell: str) -> None:
    for shape in ((40, 9, 5, 50), (5, 1, 40, 200), (3, 130, 5, 16)):
        problem = make_problem(cell, shape, "float32")
        is_init = make_masks("is_init", shape)["is_init"]
        results = []
        for n in (1, 2, 3, 8):
            with tbptt_fast.num_threads(n):
                results.append(measured(tbptt_fast, problem, 12, is_init))
        for phi, sums in results[1:]:
            assert phi.tobytes() == results[0][0].tobytes()
            assert sums.tobytes() == results[0][1].tobytes()


@cells
def test_against_the_gradient_of_an_entering_state(cell: str) -> None:
    """‖∂L_s/∂h_(s-k)‖ is the norm of hx's gradient where the sequence begins at step s-k+1."""
    problem = make_problem(cell, (9, 3, 4, 11))
    phi, sums = measured(tbptt_fast, problem, 8)
    total = np.zeros_like(sums)
    for s in range(9):
        assert problem.grad_out is not None
        lag_0 = problem.grad_out[s]
        np.testing.assert_allclose(phi[0, s], np.linalg.norm(lag_0, axis=1), rtol=1e-14)
        total[0, 0] += lag_0.sum(axis=0)
        for lag in range(1, s + 1):
            begin = s - lag + 1
            _, entering, _ = forward(tbptt_fast, part(problem, slice(0, begin), grad_hx=None))
            later = part(problem, slice(begin, s + 1), hx=entering, grad_hx=None)
            only_last = np.zeros_like(later.grad_out)
            only_last[-1] = later.grad_out[-1]
            later = replace(later, grad_out=only_last)
            _, _, tape = forward(tbptt_fast, later)
            grads = backward(tbptt_fast, later, tape)
            states = [grads[name] for name in ("h0", "c0") if name in grads]
            both = np.concatenate(states, axis=1)
            np.testing.assert_allclose(phi[lag, s], np.linalg.norm(both, axis=1), rtol=1e-12)
            total[lag] += np.stack([state.sum(axis=0) for state in states])
    np.testing.assert_allclose(sums, total, rtol=1e-11, atol=1e-13)


@cells
def test_before_a_reset_nothing_and_before_the_sequence_unknown(cell: str) -> None:
    problem = make_problem(cell, (6, 2, 3, 5))
    is_init = np.zeros((6, 2), bool)
    is_init[3, 1] = True
    phi, _ = measured(tbptt_fast, problem, 5, is_init)
    lag, step = np.indices((6, 6))
    unknown = lag > step
    assert np.isnan(phi[unknown]).all()
    beyond = (step >= 3) & (step - lag < 3) & ~unknown
    assert (phi[..., 1][beyond] == 0).all()
    assert (phi[..., 1][~beyond & ~unknown] > 0).all()
    assert (phi[..., 0][~unknown] > 0).all()


@cells
def test_losses_without_a_gradient_are_zero_and_change_no_other(cell: str) -> None:
    problem = make_problem(cell, (8, 3, 4, 9))
    phi, _ = measured(tbptt_fast, problem, 6)
    assert problem.grad_out is not None
    grad_out = problem.grad_out.copy()
    grad_out[:5] = 0
    grad_out[6, 1] = 0
    kept = (grad_out != 0).any(axis=-1)
    masked, _ = measured(tbptt_fast, replace(problem, grad_out=grad_out), 6)
    np.testing.assert_array_equal(masked[:, kept], phi[:, kept])
    assert (np.nan_to_num(masked[:, ~kept]) == 0).all()
    none, sums = measured(tbptt_fast, replace(problem, grad_out=0 * grad_out), 6)
    assert not np.nan_to_num(none).any()
    assert not sums.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_of_tiny_gradients_do_not_vanish(dtype: str) -> None:
    """Squares of 1e-30 are no float32; decay over many powers of ten is what is measured."""
    problem = make_problem("gru", (12, 2, 3, 7), dtype)
    assert problem.grad_out is not None
    tiny = 2.0**-100
    small = replace(problem, grad_out=(problem.grad_out * tiny).astype(dtype))
    phi, _ = measured(tbptt_fast, problem, 11)
    scaled, _ = measured(tbptt_fast, small, 11)
    np.testing.assert_allclose(scaled / np.float64(tiny), phi, rtol=1e-5)


@cells
def test_what_is_not_finite_stays_with_its_loss(cell: str) -> None:
    problem = make_problem(cell, (7, 2, 3, 5))
    assert problem.grad_out is not None
    grad_out = problem.grad_out.copy()
    grad_out[4, 0, 2] = np.nan
    clean, _ = measured(tbptt_fast, problem, 3)
    dirty, _ = measured(tbptt_fast, replace(problem, grad_out=grad_out), 3)
    assert np.isnan(dirty[0, 4, 0])
    if cell != "rnn_relu":  # which selects, and may stop it
        assert np.isnan(dirty[:, 4, 0]).all()
    other = np.ones((7, 2), bool)
    other[4, 0] = False
    np.testing.assert_array_equal(dirty[:, other], clean[:, other])


@pytest.mark.parametrize("shape", [(0, 2), (3, 0), (0, 0)])
def test_without_steps_or_rows(shape: tuple[int, int]) -> None:
    _, _, tape = tbptt_fast.gru_forward(
        np.zeros((*shape, 3)), None, np.ones((12, 3)), np.ones((12, 4))
    )
    phi, sums = tbptt_fast.lag_norms(tape, np.zeros((*shape, 4)), 2, sums=True)
    assert phi.shape == (3, *shape)
    assert sums.shape == (3, 1, 4)
    assert not sums.any()


@st.composite
def cases(draw: Any) -> tuple[Problem, Any, int]:
    cell, dtype = draw(st.sampled_from(CELLS)), draw(st.sampled_from(DTYPES))
    sizes = (st.integers(1, 12), st.integers(1, 9), st.integers(1, 5), st.integers(1, 35))
    shape: Any = tuple(draw(size) for size in sizes)
    problem = make_problem(cell, shape, dtype, seed=draw(st.integers(0, 2**32 - 1)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    is_init = rng.random(shape[:2]) < draw(st.sampled_from([0.0, 0.2, 0.7]))
    hx = problem.hx if draw(st.booleans()) else None
    return replace(problem, hx=hx), is_init, draw(st.integers(0, 15))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    case=cases(),
    isa=st.sampled_from(tbptt_fast.available_isas()),
    threads=st.integers(1, 4),
)
def test_any_problem(case: tuple[Problem, Any, int], isa: str, threads: int) -> None:
    problem, is_init, max_lag = case
    if problem.cell == "rnn_relu":
        out, _, _ = forward(reference, problem, is_init=is_init)
        assume(relu_margin(problem, out, is_init) > 1e-5)
    expected = measured(reference, problem, max_lag, is_init)
    with tbptt_fast.isa(isa), tbptt_fast.num_threads(threads):
        check(problem, measured(tbptt_fast, problem, max_lag, is_init), expected)


X = np.zeros((4, 2, 3))
OUT = np.zeros((4, 2, 5))


def tape_of_lstm() -> Any:
    return tbptt_fast.lstm_forward(X, None, np.zeros((20, 3)), np.zeros((20, 5)))[2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tape": None}, TypeError, "tape: expected a Tape, got NoneType"),
        ({"grad_out": OUT[1:]}, ValueError, r"grad_out: expected shape \[4, 2, 5\]"),
        ({"grad_out": OUT.astype("float32")}, TypeError, "grad_out: expected .*float64"),
        ({"grad_out": None}, TypeError, "grad_out: expected .*got NoneType"),
        ({"max_lag": -1}, ValueError, "max_lag: expected an integer >= 0, got -1"),
        ({"max_lag": 1.5}, TypeError, "max_lag: expected an integer, got float"),
        ({"max_lag": 2**63 - 1}, MemoryError, None),
        ({"sums": 1}, TypeError, "sums: expected .*got int"),
    ],
    ids=str,
)
def test_wrong_arguments(
    arguments: dict[str, Any], error: type[Exception], message: str | None
) -> None:
    given = {"tape": tape_of_lstm(), "grad_out": OUT, "max_lag": 2, "sums": False} | arguments
    with pytest.raises(error, match=message and f"^lag_norms: {message}"):
        tbptt_fast.lag_norms(**given)
