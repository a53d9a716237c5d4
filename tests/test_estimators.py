"""The estimators of truncated backpropagation and the traps that popular code falls into."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import reference

from .cases import (
    CELLS,
    Problem,
    Shape,
    assert_close,
    assert_identical,
    backward,
    forward,
    make_masks,
    make_problem,
    part,
    run,
)

cells = pytest.mark.parametrize("cell", CELLS)
SHAPE: Shape = (11, 3, 4, 9)
STEPS, BATCH, INPUTS, HIDDEN = SHAPE
WEIGHTS = ("w_ih", "w_hh", "b_ih", "b_hh")


def gradients(problem: Problem, **options: Any) -> dict[str, Any]:
    is_init = options.pop("is_init", None)
    _, _, tape = forward(tbptt_fast, problem, is_init=is_init)
    return backward(tbptt_fast, problem, tape, **options)


def close(problem: Problem, actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Gradients that are equal up to rounding."""
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert_close(value, expected[name], "gradient", length=problem.length, name=name)


def added(*terms: dict[str, Any]) -> dict[str, Any]:
    return {name: sum(term[name] for term in terms) for name in terms[0]}


def losses_at(problem: Problem, *steps: int) -> Problem:
    """Only the losses of these steps, and none of the final state."""
    assert problem.grad_out is not None
    grad_out = np.zeros_like(problem.grad_out)
    grad_out[list(steps)] = problem.grad_out[list(steps)]
    return replace(problem, grad_out=grad_out, grad_hx=None)


def reached(grad_x: Any) -> list[int]:
    """The steps whose inputs receive any gradient."""
    return [t for t in range(len(grad_x)) if np.any(grad_x[t] != 0)]


# --- The scalar recurrence x_t = w·x_{t-1} with w = 0.2 and x_0 = 0.9 ---------------------------


def scalar_recurrence(grad_out: list[float], truncation: Any) -> float:
    """The gradient of w; a linear cell is an RNN with relu whose states are positive."""
    problem = Problem(
        cell="rnn_relu",
        x=np.zeros((len(grad_out), 1, 1)),
        hx=(np.array([[0.9]]),),
        w_ih=np.zeros((1, 1)),
        w_hh=np.array([[0.2]]),
        b_ih=None,
        b_hh=None,
        grad_out=np.array(grad_out)[:, None, None],
        grad_hx=None,
    )
    return float(gradients(problem, truncation=truncation)["w_hh"][0, 0])


@pytest.mark.parametrize("truncation", [None, (1, 3), (3, 3), (2, 4), 3], ids=str)
@pytest.mark.parametrize(("step", "expected"), [(0, 0.9), (1, 0.36), (2, 0.108)])
def test_scalar_recurrence(truncation: Any, step: int, expected: float) -> None:
    """dx_t/dw = t·w^(t-1)·x_0; code that counts a step twice says 0.288 at the last."""
    one_loss = [float(t == step) for t in range(3)]
    assert scalar_recurrence(one_loss, truncation) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("truncation", "expected"),
    [
        (None, 0.9 + 0.36 + 0.108),
        ((1, 3), 0.9 + 0.36 + 0.108),
        ((1, 2), 0.9 + 0.36 + (0.036 + 0.2 * 0.18)),
        ((1, 1), 0.9 + 0.18 + 0.036),
        ((2, 2), 0.9 + 0.36 + 0.036),
        # The second window ends, nominally, at step 4: it reaches the cells 2 and 1.
        ((2, 3), 0.9 + 0.36 + (0.036 + 0.2 * 0.18)),
    ],
    ids=str,
)
def test_scalar_recurrence_sums_over_windows(truncation: Any, expected: float) -> None:
    assert scalar_recurrence([1.0, 1.0, 1.0], truncation) == pytest.approx(expected, rel=1e-15)


# --- Which cells a loss reaches -----------------------------------------------------------------


@cells
@pytest.mark.parametrize("k", [1, 2, 5, 11, 40])
def test_per_loss_truncation_reaches_exactly_k_cells(cell: str, k: int) -> None:
    """truncation=(1, K): the loss at s reaches s, s-1, …, s-K+1 with the full gradient."""
    problem = make_problem(cell, SHAPE)
    for s in (0, 4, STEPS - 1):
        one_loss = losses_at(problem, s)
        truncated = gradients(one_loss, truncation=(1, k))["x"]
        full = gradients(one_loss)["x"]
        lowest = max(0, s - k + 1)
        assert reached(truncated) == list(range(lowest, s + 1))
        expected = np.where(np.arange(STEPS)[:, None, None] >= lowest, full, 0.0)
        assert_close(truncated, expected, "gradient", length=problem.length)


@cells
@pytest.mark.parametrize(("k1", "k2"), [(2, 2), (2, 5), (3, 4), (4, 20), (11, 11)])
def test_a_window_reaches_down_to_its_nominal_end_minus_k2(cell: str, k1: int, k2: int) -> None:
    problem = make_problem(cell, SHAPE)
    for s in range(STEPS):
        grad_x = gradients(losses_at(problem, s), truncation=(k1, k2))["x"]
        lowest = max(0, (s // k1 + 1) * k1 - k2)
        assert reached(grad_x) == list(range(lowest, s + 1))
        assert min(s + 1, k2 - k1 + 1) <= s - lowest + 1 <= k2


@cells
@pytest.mark.parametrize("truncation", [(STEPS, STEPS), (STEPS, STEPS + 7), STEPS], ids=str)
def test_long_windows_are_full_backpropagation(cell: str, truncation: Any) -> None:
    problem = make_problem(cell, SHAPE)
    close(problem, gradients(problem, truncation=truncation), gradients(problem))


@cells
def test_an_integer_means_equal_numbers(cell: str) -> None:
    problem = make_problem(cell, SHAPE)
    assert_identical(gradients(problem, truncation=4), gradients(problem, truncation=(4, 4)))


@cells
@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_the_last_partial_window_counts(cell: str, k: int) -> None:
    """11 steps: the last window of 1, 2, 3 or 1 steps is neither dropped nor weighted."""
    problem = make_problem(cell, SHAPE)
    begin = (STEPS - 1) // k * k
    tail = losses_at(problem, *range(begin, STEPS))
    _, entering, _ = forward(tbptt_fast, part(problem, slice(0, begin)))
    alone = replace(part(problem, slice(begin, STEPS)), hx=entering, grad_hx=None)
    expected = gradients(alone)
    actual = gradients(tail, truncation=k)
    for name in WEIGHTS:
        assert np.abs(actual[name]).max() > 0
        assert_close(actual[name], expected[name], "gradient", length=problem.length, name=name)
    assert_close(actual["x"][begin:], expected["x"], "gradient", length=problem.length)
    assert reached(actual["x"]) == list(range(begin, STEPS))


@cells
@pytest.mark.parametrize(("k1", "k2"), [(1, 4), (2, 5), (3, 4), (4, 9)])
def test_overlapping_windows_add_up(cell: str, k1: int, k2: int) -> None:
    """Each window by itself: its own losses, the carry cut below its lowest cell."""
    problem = make_problem(cell, SHAPE)
    terms = []
    for start in range(0, STEPS, k1):
        stop, lowest = min(start + k1, STEPS), max(0, start + k1 - k2)
        cut = np.ones((STEPS, BATCH))
        if lowest > 0:
            cut[lowest] = 0
        window = losses_at(problem, *range(start, stop))
        if stop == STEPS:
            window = replace(window, grad_hx=problem.grad_hx)
        terms.append(gradients(window, carry_scale=cut))
    close(problem, gradients(problem, truncation=(k1, k2)), added(*terms))


@pytest.mark.parametrize(
    ("truncation", "error"),
    [
        ((4, 3), ValueError),
        ((2, 1), ValueError),
        (0, ValueError),
        (-3, ValueError),
        ((0, 3), ValueError),
        ((-1, 3), ValueError),
        ((1, 2, 3), ValueError),
        ((3,), ValueError),
        (2.5, TypeError),
        ((1, 2.5), TypeError),
        ("3", TypeError),
        (True, TypeError),
        (np.array([1, 2]), TypeError),
    ],
    ids=str,
)
@cells
def test_windows_that_make_no_sense(cell: str, truncation: Any, error: type[Exception]) -> None:
    """k2 < k1 would silently drop losses."""
    problem = make_problem(cell, SHAPE)
    _, _, tape = forward(tbptt_fast, problem)
    with pytest.raises(error, match=f"^{problem.op}_backward: truncation: expected .*got"):
        backward(tbptt_fast, problem, tape, truncation=truncation)


# --- The state before the sequence and after it -------------------------------------------------


@cells
@pytest.mark.parametrize(("k1", "k2"), [(3, 3), (2, 5), (1, 4)])
def test_grad_hx_enters_the_last_window_only(cell: str, k1: int, k2: int) -> None:
    problem = replace(make_problem(cell, SHAPE), grad_out=None)
    grad_x = gradients(problem, truncation=(k1, k2))["x"]
    lowest = max(0, (STEPS - 1) // k1 * k1 + k1 - k2)
    assert reached(grad_x) == list(range(lowest, STEPS))
    full = gradients(problem)["x"]
    assert_close(grad_x[lowest:], full[lowest:], "gradient", length=problem.length)


@cells
def test_the_gradient_of_hx_is_what_reaches_step_0(cell: str) -> None:
    problem = make_problem(cell, SHAPE)
    early = gradients(losses_at(problem, 0, 1, 2))
    truncated = gradients(problem, truncation=3)
    late = gradients(losses_at(problem, *range(3, STEPS)), truncation=3)
    for name in ("h0", "c0") if cell == "lstm" else ("h0",):
        assert_close(truncated[name], early[name], "gradient", length=problem.length)
        assert not late[name].any()


@cells
def test_resets_and_cuts_before_step_0(cell: str) -> None:
    problem = make_problem(cell, SHAPE)
    first = np.zeros((STEPS, BATCH), bool)
    first[0, 1] = True
    scale = np.where(first, 0.0, 1.0)
    scale[0, 2] = 2.5
    plain, reset = gradients(problem), gradients(problem, is_init=first)
    scaled = gradients(problem, carry_scale=scale)
    for name in ("h0", "c0") if cell == "lstm" else ("h0",):
        assert not reset[name][1].any()
        assert_close(reset[name][[0, 2]], plain[name][[0, 2]], "gradient", length=problem.length)
        expected = plain[name] * scale[0][:, None]
        assert_close(scaled[name], expected, "gradient", length=problem.length)
    for name in ("x", *WEIGHTS):  # a scale at step 0 changes nothing but hx
        assert_close(scaled[name], plain[name], "gradient", length=problem.length)


# --- Resets -------------------------------------------------------------------------------------


@cells
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_reset_selects_and_never_multiplies(cell: str, poison: float) -> None:
    """0·NaN is NaN: a state of NaN before a reset must leave no trace after it."""
    problem = make_problem(cell, SHAPE)
    assert problem.hx is not None
    clean = replace(problem, hx=tuple(np.zeros_like(s) for s in problem.hx))
    dirty = replace(problem, hx=tuple(np.full_like(s, poison) for s in problem.hx))
    is_init = np.zeros((STEPS, BATCH), bool)
    is_init[0] = True
    assert_identical(
        run(tbptt_fast, dirty, is_init=is_init), run(tbptt_fast, clean, is_init=is_init)
    )


@cells
def test_a_poisoned_episode_ends_at_the_reset(cell: str) -> None:
    problem = make_problem(cell, SHAPE)
    x = problem.x.copy()
    x[4, 1] = np.nan
    is_init = np.zeros((STEPS, BATCH), bool)
    is_init[6, 1] = True
    clean = run(tbptt_fast, problem, is_init=is_init)
    dirty = run(tbptt_fast, replace(problem, x=x), is_init=is_init)
    inside = np.zeros((STEPS, BATCH), bool)
    inside[4:6, 1] = True
    assert np.isnan(dirty["out"][inside]).any(axis=-1).all()
    np.testing.assert_array_equal(dirty["out"][~inside], clean["out"][~inside])
    np.testing.assert_array_equal(dirty["grad_x"][6:], clean["grad_x"][6:])
    np.testing.assert_array_equal(dirty["h_n"], clean["h_n"])


@cells
@pytest.mark.parametrize("how", ["is_init", "carry_scale", "truncation"])
def test_a_gradient_of_nan_stops_at_a_cut(cell: str, how: str) -> None:
    problem = make_problem(cell, SHAPE)
    assert problem.grad_out is not None
    grad_out = problem.grad_out.copy()
    grad_out[7] = np.nan
    at_6 = np.zeros((STEPS, BATCH), bool)
    at_6[6] = True
    options = {
        "is_init": {"is_init": at_6},
        "carry_scale": {"carry_scale": np.where(at_6, 0.0, 1.0)},
        "truncation": {"truncation": 6},
    }[how]
    clean = gradients(problem, **options)
    dirty = gradients(replace(problem, grad_out=grad_out), **options)
    assert np.isnan(dirty["x"][6:8]).any(axis=-1).all()
    np.testing.assert_array_equal(dirty["x"][:6], clean["x"][:6])
    np.testing.assert_array_equal(dirty["h0"], clean["h0"])


@cells
@pytest.mark.parametrize("truncation", [None, (1, 3)], ids=str)
def test_is_init_is_splitting_by_hand(cell: str, truncation: Any) -> None:
    """Episodes run one by one from zero states; with (1, K) the windows split alike."""
    problem = make_problem(cell, SHAPE)
    is_init = make_masks("is_init", SHAPE, seed=3)["is_init"]
    assert is_init.any(axis=0).all()
    whole = run(tbptt_fast, problem, is_init=is_init, truncation=truncation)
    sums = {name: 0.0 for name in WEIGHTS}
    for b in range(BATCH):
        row = slice(b, b + 1)
        edges = sorted({0, STEPS, *np.flatnonzero(is_init[:, b]).tolist()})
        for first, stop in itertools.pairwise(edges):
            begins = bool(is_init[first, b])
            piece = part(
                problem,
                slice(first, stop),
                row,
                hx=None if begins else tuple(s[row] for s in problem.hx or ()),
                grad_hx=tuple(s[row] for s in problem.grad_hx or ()) if stop == STEPS else None,
            )
            alone = run(tbptt_fast, piece, truncation=truncation)
            for name, kind in (("out", "forward"), ("grad_x", "gradient")):
                assert_close(
                    whole[name][first:stop, row], alone[name], kind, length=piece.length, name=name
                )
            for name in sums:
                sums[name] = sums[name] + alone[f"grad_{name}"]
            for name in ("h0", "c0") if cell == "lstm" else ("h0",):
                if first == 0:
                    expected = 0 * alone[f"grad_{name}"] if begins else alone[f"grad_{name}"]
                    actual = whole[f"grad_{name}"][row]
                    assert_close(actual, expected, "gradient", length=piece.length, name=name)
    for name, value in sums.items():
        assert_close(whole[f"grad_{name}"], value, "gradient", length=problem.length, name=name)


# --- carry_scale and linearity ------------------------------------------------------------------


@cells
def test_a_scale_of_one_changes_nothing(cell: str) -> None:
    problem = make_problem(cell, SHAPE)
    close(problem, gradients(problem, carry_scale=np.ones((STEPS, BATCH))), gradients(problem))


@cells
def test_a_cut_is_a_detach(cell: str) -> None:
    """Zeros before the steps 4 and 8 in every row are truncation=4."""
    problem = make_problem(cell, SHAPE)
    scale = np.ones((STEPS, BATCH))
    scale[[4, 8]] = 0
    close(problem, gradients(problem, carry_scale=scale), gradients(problem, truncation=4))


@cells
def test_randomised_truncation_is_unbiased(cell: str) -> None:
    """ARTBP (Tallec & Ollivier 2017): the mean over all patterns of cuts is the full gradient."""
    problem = make_problem(cell, (4, 1, 3, 5))
    c = np.array([0.2, 0.5, 0.3, 0.6])
    _, _, tape = forward(tbptt_fast, problem)
    mean = {name: np.zeros_like(value) for name, value in gradients(problem).items()}
    for pattern in itertools.product([False, True], repeat=4):
        cut = np.array(pattern)
        weight = float(np.where(cut, c, 1 - c).prod())
        scale = np.where(cut, 0.0, 1 / (1 - c))[:, None]
        grads = backward(tbptt_fast, problem, tape, carry_scale=scale)
        mean = {name: mean[name] + weight * grads[name] for name in mean}
    close(problem, mean, gradients(problem))


@cells
@pytest.mark.parametrize("truncation", [None, (2, 5)], ids=str)
def test_linear_in_the_gradients(cell: str, truncation: Any) -> None:
    problem, other = make_problem(cell, SHAPE), make_problem(cell, SHAPE, seed=1)
    options = {"truncation": truncation, **make_masks("both", SHAPE)}
    other = replace(problem, grad_out=other.grad_out, grad_hx=other.grad_hx)
    both = replace(
        problem,
        grad_out=2.0 * problem.grad_out - 3.0 * other.grad_out,
        grad_hx=tuple(
            2.0 * a - 3.0 * b
            for a, b in zip(problem.grad_hx or (), other.grad_hx or (), strict=True)
        ),
    )
    twice = {name: 2.0 * value for name, value in gradients(problem, **options).items()}
    thrice = {name: -3.0 * value for name, value in gradients(other, **options).items()}
    close(problem, gradients(both, **options), added(twice, thrice))


def test_the_reference_agrees_about_windows() -> None:
    """The oracle's windows, spelled out once by hand."""
    assert list(reference.windows(7, None)) == [(0, 7, 0)]
    assert list(reference.windows(7, 3)) == [(0, 3, 0), (3, 6, 3), (6, 7, 6)]
    assert list(reference.windows(7, (3, 4))) == [(0, 3, 0), (3, 6, 2), (6, 7, 5)]
    assert list(reference.windows(3, (1, 2))) == [(0, 1, 0), (1, 2, 0), (2, 3, 1)]
    with pytest.raises(ValueError, match="expected 1 <= k1 <= k2"):
        list(reference.windows(7, (4, 3)))
