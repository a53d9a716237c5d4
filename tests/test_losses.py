"""Losses against the oracle and PyTorch: weights, ignored rows, extreme logits, reductions."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import reference_layers as reference

from .cases import DTYPES, assert_close, assert_identical

REDUCTIONS = ("mean", "sum", "none")
# Leading dimensions and the last one, around the lanes.
SIZES: tuple[tuple[tuple[int, ...], int], ...] = (
    ((), 3),
    ((1,), 1),
    ((4,), 2),
    ((3, 2), 15),
    ((5,), 16),
    ((2, 3, 2), 17),
    ((9,), 33),
    ((300,), 100),
    ((3,), 5000),
    ((5000,), 1),
)

sizes = pytest.mark.parametrize("size", SIZES, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
reductions = pytest.mark.parametrize("reduction", REDUCTIONS)


def arrays(size: tuple[tuple[int, ...], int], dtype: str, scale: float = 3.0) -> list[Any]:
    """Logits, targets of which some are ignored, weights, and values to compare with."""
    leading, last = size
    rng = np.random.default_rng(last)
    logits = (scale * rng.normal(size=(*leading, last))).astype(dtype)
    targets = np.asarray(rng.integers(0, last, size=leading))
    ignored = np.asarray(rng.random(leading) < 0.25)
    targets[ignored & (targets.size > 3)] = -100
    weights = rng.uniform(0.5, 2, size=leading).astype(dtype)
    return [logits, targets, weights, rng.normal(size=logits.shape).astype(dtype)]


def compare(actual: Any, expected: Any, dtype: str, count: int, reduction: str) -> None:
    """A loss is a sum of `count` terms of order one, or their mean; the terms have order ten."""
    assert reduction == "none" or isinstance(actual[0], float)
    terms = 10.0 if reduction != "mean" else 10.0 / count
    options: Any = {"eps": float(np.finfo(dtype).eps), "terms": terms}
    length = 1 if reduction == "none" else count
    assert_close(actual[0], expected[0], "forward", length=length, name="loss", **options)
    assert actual[1].dtype == dtype
    # The mean divides by a sum of weights.
    assert_close(actual[1], expected[1], "gradient", length=length, name="grad", **options)


@pytest.mark.usefixtures("isa", "threads")
@sizes
@dtypes
@reductions
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_losses(
    size: tuple[tuple[int, ...], int], dtype: str, reduction: Any, weighted: bool
) -> None:
    logits, targets, weights, values = arrays(size, dtype)
    options: dict[str, Any] = {"reduction": reduction, "weights": weights if weighted else None}
    actual = tbptt_fast.softmax_cross_entropy(logits, targets, **options)
    expected = reference.softmax_cross_entropy(logits, targets, **options)
    compare(actual, expected, dtype, targets.size, reduction)
    actual = tbptt_fast.mse_loss(logits, values, **options)
    expected = reference.mse_loss(logits, values, **options)
    compare(actual, expected, dtype, logits.size, reduction)


@dtypes
@reductions
@pytest.mark.parametrize("ids_dtype", ["int32", "int64"])
def test_cross_entropy_equals_torch(dtype: str, reduction: Any, ids_dtype: str) -> None:
    torch = pytest.importorskip("torch")
    logits, targets, _, _ = arrays(((40,), 29), dtype)
    theirs = torch.tensor(logits, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(theirs, torch.tensor(targets), reduction=reduction)
    loss.sum().backward()
    ours = tbptt_fast.softmax_cross_entropy(logits, targets.astype(ids_dtype), reduction=reduction)
    expected = (loss.detach().numpy(), theirs.grad.numpy())
    compare(ours, expected, dtype, 40, reduction)


@dtypes
@reductions
def test_mse_equals_torch(dtype: str, reduction: Any) -> None:
    torch = pytest.importorskip("torch")
    prediction, _, _, target = arrays(((40,), 29), dtype)
    theirs = torch.tensor(prediction, requires_grad=True)
    loss = torch.nn.functional.mse_loss(theirs, torch.tensor(target), reduction=reduction)
    loss.sum().backward()
    ours = tbptt_fast.mse_loss(prediction, target, reduction=reduction)
    compare(ours, (loss.detach().numpy(), theirs.grad.numpy()), dtype, prediction.size, reduction)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("size", [((2, 3), 5), ((4,), 1), ((2,), 17)], ids=str)
def test_central_differences(size: tuple[tuple[int, ...], int], reduction: Any) -> None:
    logits, targets, weights, values = arrays(size, "float64")
    step = 1e-5
    for loss, other in ((tbptt_fast.softmax_cross_entropy, targets), (tbptt_fast.mse_loss, values)):
        grad = loss(logits, other, weights=weights, reduction=reduction)[1]
        for index in np.ndindex(logits.shape):
            ends = []
            for sign in (1, -1):
                moved = logits.copy()
                moved[index] += sign * step
                ends.append(loss(moved, other, weights=weights, reduction=reduction)[0])
            difference = (ends[0] - ends[1]) / (2 * step)
            np.testing.assert_allclose(grad[index], difference, rtol=1e-7, atol=1e-8)


@pytest.mark.usefixtures("isa")
@dtypes
def test_the_same_bits_for_every_number_of_threads(dtype: str) -> None:
    for size, weighted in itertools.product((((3000,), 37), ((70000,), 1)), (False, True)):
        logits, targets, weights, values = arrays(size, dtype)
        results = []
        for n in (1, 2, 3, 8):
            with tbptt_fast.num_threads(n):
                named: dict[str, Any] = {}
                for reduction in REDUCTIONS:
                    options: Any = {"reduction": reduction}
                    options["weights"] = weights if weighted else None
                    entropy = tbptt_fast.softmax_cross_entropy(logits, targets, **options)
                    square = tbptt_fast.mse_loss(logits, values, **options)
                    for name, value in zip(
                        ("entropy", "grad", "square", "grad square"),
                        (*entropy, *square),
                        strict=True,
                    ):
                        named[f"{reduction} {name}"] = np.asarray(value)
                results.append(named)
        for result in results[1:]:
            assert_identical(result, results[0])


@dtypes
def test_sums_of_many_terms_are_in_double(dtype: str) -> None:
    """In float32 a running sum of a million times 0.1 would be wrong in the third digit."""
    prediction = np.full((1_000_000, 1), 0.1**0.5, dtype)
    exact = float(np.float64(prediction[0, 0]) ** 2) * 1e6
    loss, _ = tbptt_fast.mse_loss(prediction, 0 * prediction, reduction="sum")
    assert loss == pytest.approx(exact, rel=1e-10)
    logits = np.zeros((300_000, 2), dtype)
    loss, _ = tbptt_fast.softmax_cross_entropy(logits, np.zeros(300_000, np.int64), reduction="sum")
    assert loss == pytest.approx(300_000 * np.log(2), rel=1e-10)


# --- Values at the edge -------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
@dtypes
def test_large_logits_do_not_overflow(dtype: str) -> None:
    for large in (1e4, 1e30, float(np.finfo(dtype).max) / 4):
        logits = np.array([[large, 0, -large], [-large, -large, -large]], dtype)
        loss, grad = tbptt_fast.softmax_cross_entropy(logits, np.array([0, 1]), reduction="none")
        np.testing.assert_allclose(loss, [0, np.log(3)], rtol=1e-6)
        np.testing.assert_allclose(grad[0], [0, 0, 0], atol=1e-7)
        np.testing.assert_allclose(grad[1], [1 / 3, -2 / 3, 1 / 3], rtol=1e-6)
        loss, _ = tbptt_fast.softmax_cross_entropy(logits[:1], np.array([2]))
        assert loss == pytest.approx(2 * float(logits[0, 0]), rel=1e-6)


@dtypes
@pytest.mark.parametrize("width", [3, 16, 40])
def test_a_class_that_cannot_be(dtype: str, width: int) -> None:
    logits = np.zeros((1, width), dtype)
    logits[0, 1:] = -np.inf
    loss, grad = tbptt_fast.softmax_cross_entropy(logits, np.array([0]))
    assert loss == 0.0
    np.testing.assert_array_equal(grad, 0.0)
    loss, _ = tbptt_fast.softmax_cross_entropy(logits, np.array([1]))
    assert loss == np.inf


@pytest.mark.usefixtures("isa")
@dtypes
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("width", [1, 5, 16, 37])
def test_nan_and_inf_stay_in_their_row(dtype: str, value: float, width: int) -> None:
    for position in {0, width // 2, width - 1}:
        logits, targets, _, values = arrays(((4,), width), dtype)
        targets[:] = 0
        clean = tbptt_fast.softmax_cross_entropy(logits, targets, reduction="none")
        logits[2, position] = value
        loss, grad = tbptt_fast.softmax_cross_entropy(logits, targets, reduction="none")
        assert np.isnan(loss).tolist() == [False, False, True, False]
        assert np.isnan(grad[2]).all()
        keep = [0, 1, 3]
        np.testing.assert_array_equal(grad[keep], clean[1][keep])
        assert np.isnan(tbptt_fast.softmax_cross_entropy(logits, targets)[0])

        targets[2] = -100  # what is ignored is ignored
        loss, grad = tbptt_fast.softmax_cross_entropy(logits, targets, reduction="none")
        np.testing.assert_array_equal(loss[keep], clean[0][keep])
        assert loss[2] == 0.0
        np.testing.assert_array_equal(grad[2], 0.0)

        loss, grad = tbptt_fast.mse_loss(logits, values, reduction="none")
        bad = np.zeros(logits.shape, bool)
        bad[2, position] = True
        np.testing.assert_array_equal(~np.isfinite(loss), bad)
        np.testing.assert_array_equal(~np.isfinite(grad), bad)


def test_an_infinite_weight() -> None:
    """The lanes behind the end of a row must not turn it into NaN."""
    ones = np.ones((2, 3))
    weights = np.array([np.inf, 1.0])
    assert tbptt_fast.mse_loss(ones, 0 * ones, weights=weights, reduction="sum")[0] == np.inf


@dtypes
def test_a_mean_over_no_row_is_nan_as_in_torch(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    logits, targets = np.ones((3, 4), dtype), np.full(3, -100)
    loss, grad = tbptt_fast.softmax_cross_entropy(logits, targets)
    theirs = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(theirs, torch.tensor(targets))
    expected.backward()
    assert np.isnan(loss)
    assert torch.isnan(expected)
    np.testing.assert_array_equal(grad, theirs.grad.numpy())
    assert tbptt_fast.softmax_cross_entropy(logits, targets, reduction="sum")[0] == 0.0


def test_losses_of_nothing() -> None:
    none = np.zeros((0, 4))
    targets = np.zeros(0, np.int64)
    assert np.isnan(tbptt_fast.softmax_cross_entropy(none, targets)[0])
    assert tbptt_fast.softmax_cross_entropy(none, targets, reduction="sum")[0] == 0.0
    loss, grad = tbptt_fast.softmax_cross_entropy(none, targets, reduction="none")
    assert (loss.shape, grad.shape) == ((0,), (0, 4))
    assert np.isnan(tbptt_fast.mse_loss(none, none)[0])
    assert tbptt_fast.mse_loss(none.T, none.T, weights=np.ones(4), reduction="sum")[0] == 0.0


def test_ignore_index_may_be_a_class() -> None:
    logits, _, _, _ = arrays(((3,), 4), "float64")
    targets = np.array([1, 2, 1])
    loss, grad = tbptt_fast.softmax_cross_entropy(logits, targets, ignore_index=1)
    alone = tbptt_fast.softmax_cross_entropy(logits[1:2], targets[1:2])
    assert loss == alone[0]
    np.testing.assert_array_equal(grad[1:2], alone[1])
    np.testing.assert_array_equal(grad[[0, 2]], 0.0)


# --- Wrong arguments ----------------------------------------------------------------------------

LOGITS, TARGETS = np.zeros((2, 3)), np.array([0, 2])


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        (
            {"targets": np.array([0, 3])},
            ValueError,
            r"targets: expected values in \[0, 3\) or -100, got 3",
        ),
        ({"targets": np.array([-99, 0])}, ValueError, r"targets: .* or -100, got -99"),
        (
            {"targets": TARGETS, "ignore_index": 1.0},
            TypeError,
            "ignore_index: expected an integer, got float",
        ),
        (
            {"targets": TARGETS.astype("u8")},
            TypeError,
            "targets: expected dtype int32 or int64, got uint64",
        ),
        (
            {"targets": TARGETS.astype(">i8")},
            TypeError,
            "targets: expected dtype int32 or int64, got >i8",
        ),
        ({"logits": np.zeros((2, 0))}, ValueError, r"logits: expected at least 1 class, got .*0"),
        ({"logits": np.zeros(())}, ValueError, r"logits: expected at least 1 dimension, got"),
        ({"logits": LOGITS.astype("f2")}, TypeError, "logits: expected dtype float32 or float64"),
        ({"weights": np.ones(3)}, ValueError, r"weights: expected shape \[2\], got \[3\]"),
        ({"weights": np.ones(2, "f4")}, TypeError, "weights: expected dtype float64, got float32"),
        ({"reduction": None}, TypeError, "reduction: expected a string, got NoneType"),
        ({"reduction": "avg"}, ValueError, "reduction: expected 'mean', 'sum' or 'none', got 'avg"),
    ],
    ids=str,
)
def test_cross_entropy_rejects(changes: Any, error: type[Exception], text: str) -> None:
    arguments: dict[str, Any] = {"logits": LOGITS, "targets": TARGETS, **changes}
    with pytest.raises(error, match=f"^softmax_cross_entropy: {text}"):
        tbptt_fast.softmax_cross_entropy(**arguments)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"prediction": np.zeros(())}, ValueError, "prediction: expected at least 1 dimension"),
        ({"prediction": LOGITS.tolist()}, TypeError, "prediction: expected an array, got list"),
        ({"target": LOGITS.T}, ValueError, r"target: expected shape \[2, 3\], got \[3, 2\]"),
        ({"target": LOGITS[:, :1]}, ValueError, r"target: expected shape \[2, 3\], got \[2, 1\]"),
        ({"weights": LOGITS}, ValueError, r"weights: expected shape \[2\], got \[2, 3\]"),
    ],
    ids=str,
)
def test_mse_rejects(changes: Any, error: type[Exception], text: str) -> None:
    arguments: dict[str, Any] = {"prediction": LOGITS, "target": LOGITS, **changes}
    with pytest.raises(error, match=f"^mse_loss: {text}"):
        tbptt_fast.mse_loss(**arguments)
