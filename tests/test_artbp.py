"""Randomised truncation: every draw is legal, and their mean is the full gradient."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast.tbptt import artbp

from .cases import CELLS, backward, forward, make_problem

cells = pytest.mark.parametrize("cell", CELLS)

RULES: dict[str, dict[str, Any]] = {
    "constant": {"cut": 0.2},
    "by step": {"cut": np.linspace(0.0, 0.4, 7)},
    "pieces": {"mean_length": 4.0},
}


@cells
@pytest.mark.parametrize("rule", RULES)
def test_the_mean_over_draws_is_the_full_gradient(cell: str, rule: str) -> None:
    """No linear projection of the mean is off by more than chance allows, at 99.9 % confidence.

    Rows are independent draws, so 4000 rows with the same input are 4000 estimates. The error of
    their mean in 20 fixed directions is compared with its standard error; the limit is that of a
    normal distribution for 20 comparisons, which a right estimator exceeds once in 1000 seeds.
    A truncation without the compensation fails by far, as the last lines make sure.
    """
    steps, rows = 7, 4000
    one = make_problem(cell, (steps, 1, 3, 6))
    wide = make_problem(cell, (steps, rows, 3, 6))
    same = {
        "x": np.broadcast_to(one.x, wide.x.shape),
        "hx": None,
        "grad_out": np.broadcast_to(one.grad_out, (steps, rows, 6)),
        "grad_hx": None,
    }
    problem = type(one)(**{**vars(one), **same})
    _, _, tape = forward(tbptt_fast, problem)
    full = backward(tbptt_fast, problem, tape)["x"]
    scale = artbp(steps, rows, **RULES[rule], rng=1, dtype=np.float64)

    rng = np.random.default_rng(0)
    directions = rng.normal(size=(20, full[:, 0].size))

    def deviations(carry_scale: Any) -> Any:
        found = backward(tbptt_fast, problem, tape, carry_scale=carry_scale)["x"]
        errors = (found - full).transpose(1, 0, 2).reshape(rows, -1) @ directions.T
        return np.abs(errors.mean(axis=0)) / (errors.std(axis=0, ddof=1) / math.sqrt(rows))

    limit = NormalDist().inv_cdf(1 - 0.001 / (2 * len(directions)))
    assert deviations(scale).max() < limit
    assert deviations((scale > 0).astype(np.float64)).max() > 2 * limit


def test_scales_are_cuts_and_their_compensation() -> None:
    c = np.array([0.0, 0.5, 0.25])
    scale = artbp(3, 2000, cut=c, rng=0, dtype=np.float64)
    assert scale.shape == (3, 2000)
    for t, probability in enumerate(c):
        assert set(np.unique(scale[t])) <= {0.0, 1 / (1 - probability)}
        # five standard deviations of a binomial
        spread = 5 * math.sqrt(2000 * probability * (1 - probability))
        assert abs((scale[t] == 0).sum() - 2000 * probability) <= spread


def test_pieces_have_the_length_and_the_tail_that_were_asked_for() -> None:
    """P(length > n) is the product of 1 - c; the scales along a piece are what c says."""
    mean, alpha = 5.0, 6.0
    scale = artbp(400, 500, mean_length=mean, alpha=alpha, rng=0, dtype=np.float64)
    lengths = []
    for row in scale.T:
        cuts = np.flatnonzero(row == 0)
        lengths.extend(np.diff(cuts).tolist())
        since = np.arange(1, len(row[: cuts[0]]) + 1)
        c = alpha / ((alpha - 1) * mean + since)
        np.testing.assert_allclose(row[: cuts[0]], 1 / (1 - c), rtol=1e-14)
    found = np.array(lengths)
    assert len(found) > 30_000
    error = 5 * found.std() / math.sqrt(len(found))
    # Pieces that the end cuts off are missing: at most one in 400 / mean, and the long ones.
    assert abs(found.mean() - mean) < error + 0.1
    n = np.arange(1, 16)
    survival = np.cumprod(1 - alpha / ((alpha - 1) * mean + n))
    for length, expected in zip(n, survival, strict=True):
        error = 5 * math.sqrt(expected * (1 - expected) / len(found))
        assert abs((found > length).mean() - expected) < error + 0.01


def test_draws_are_reproducible_and_advance_a_generator() -> None:
    first = artbp(9, 4, cut=0.3, rng=7)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, artbp(9, 4, cut=0.3, rng=7))
    rng = np.random.default_rng(7)
    np.testing.assert_array_equal(first, artbp(9, 4, cut=0.3, rng=rng))
    assert (artbp(9, 4, cut=0.3, rng=rng) != first).any()
    assert artbp(0, 4, cut=0.3).shape == (0, 4)
    assert (artbp(5, 4, cut=0.0) == 1).all()
    by_place = np.zeros((5, 4))
    by_place[2, 1] = 0.999999
    assert np.argwhere(artbp(5, 4, cut=by_place, rng=0) == 0).tolist() == [[2, 1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected either cut or mean_length, got neither"),
        ({"cut": 0.1, "mean_length": 5}, "expected either cut or mean_length, got both"),
        ({"cut": 1.0}, r"cut: expected probabilities in \[0, 1\)"),
        ({"cut": -0.1}, r"cut: expected probabilities in \[0, 1\)"),
        ({"cut": np.nan}, r"cut: expected probabilities in \[0, 1\)"),
        ({"cut": np.zeros(3)}, r"cut: expected a number or shape \[4\] or \[4, 2\], got \[3\]"),
        ({"mean_length": 1.0}, "mean_length: expected a length above 1, got 1.0"),
        ({"mean_length": np.nan}, "mean_length: expected a length above 1, got nan"),
        ({"mean_length": 5, "alpha": 2.0}, "alpha: expected a value above 2, got 2.0"),
    ],
    ids=str,
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^artbp: {message}"):
        artbp(4, 2, **options)


def test_wrong_sizes() -> None:
    with pytest.raises(ValueError, match=r"^artbp: expected sizes of at least 0, got -1 and 2"):
        artbp(-1, 2, cut=0.5)
