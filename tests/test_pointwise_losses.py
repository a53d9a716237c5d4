"""l1, Huber and hinge: oracle, PyTorch, differences, kinks, NaN; the rest is in test_losses.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import reference_layers as reference

from .cases import DTYPES, assert_identical
from .test_boundary import message
from .test_losses import SIZES, arrays, compare

LOSSES: dict[str, dict[str, Any]] = {"l1_loss": {}, "huber_loss": {"delta": 1.5}, "hinge_loss": {}}

losses = pytest.mark.parametrize("name", LOSSES)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def problem(name: str, size: tuple[tuple[int, ...], int], dtype: str) -> tuple[Any, Any, Any]:
    """Prediction, target and weights."""
    prediction, _, weights, target = arrays(size, dtype)
    if name == "hinge_loss":
        target = np.where(target < 0, -1, 1).astype(dtype)
    return prediction, target, weights


@pytest.mark.usefixtures("isa", "threads")
@losses
@pytest.mark.parametrize("size", SIZES, ids=str)
@dtypes
@reductions
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_losses(name: str, size: Any, dtype: str, reduction: str, weighted: bool) -> None:
    prediction, target, weights = problem(name, size, dtype)
    options = {"reduction": reduction, "weights": weights if weighted else None, **LOSSES[name]}
    actual = getattr(tbptt_fast, name)(prediction, target, **options)
    expected = getattr(reference, name)(prediction, target, **options)
    compare(actual, expected, dtype, prediction.size, reduction)


@losses
@dtypes
@reductions
def test_equals_torch(name: str, dtype: str, reduction: str) -> None:
    torch = pytest.importorskip("torch")
    prediction, target, _ = problem(name, ((40,), 29), dtype)
    prediction[0] = target[0]
    leaf, goal = torch.tensor(prediction, requires_grad=True), torch.tensor(target)
    if name == "hinge_loss":  # by its definition; torch's own is another loss
        each = torch.nn.functional.relu(1 - leaf * goal)
        loss = {"none": each, "sum": each.sum(), "mean": each.mean()}[reduction]
    else:
        function = getattr(torch.nn.functional, name)
        loss = function(leaf, goal, reduction=reduction, **LOSSES[name])
    loss.sum().backward()
    ours = getattr(tbptt_fast, name)(prediction, target, reduction=reduction, **LOSSES[name])
    compare(ours, (loss.detach().numpy(), leaf.grad.numpy()), dtype, prediction.size, reduction)


@pytest.mark.usefixtures("isa")
@losses
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_central_differences(name: str, reduction: str) -> None:
    prediction, target, weights = problem(name, ((2, 3), 5), "float64")
    loss, step = getattr(tbptt_fast, name), 1e-5
    options: Any = {"weights": weights, "reduction": reduction, **LOSSES[name]}
    grad = loss(prediction, target, **options)[1]
    for index in np.ndindex(prediction.shape):
        ends = []
        for sign in (1, -1):
            moved = prediction.copy()
            moved[index] += sign * step
            ends.append(loss(moved, target, **options)[0])
        difference = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(grad[index], difference, rtol=1e-7, atol=1e-8)


@pytest.mark.usefixtures("isa")
@dtypes
def test_slopes_at_the_kinks(dtype: str) -> None:
    around = np.array([[-1, -0.0, 0, 1]], dtype)
    loss, grad = tbptt_fast.l1_loss(around, 0 * around, reduction="none")
    np.testing.assert_array_equal(loss, [[1, 0, 0, 1]])
    np.testing.assert_array_equal(grad, [[-1, 0, 0, 1]])
    values = np.array([[-3, -2, -1, 0, 1, 2, 3]], dtype)
    loss, grad = tbptt_fast.huber_loss(values, 0 * values, delta=2, reduction="none")
    np.testing.assert_array_equal(loss, [[4, 2, 0.5, 0, 0.5, 2, 4]])
    np.testing.assert_array_equal(grad, [[-2, -2, -1, 0, 1, 2, 2]])
    one = np.ones_like(values)
    loss, grad = tbptt_fast.hinge_loss(values, one, reduction="none")
    np.testing.assert_array_equal(loss, [[4, 3, 2, 1, 0, 0, 0]])
    np.testing.assert_array_equal(grad, [[-1, -1, -1, -1, 0, 0, 0]])
    mirrored = tbptt_fast.hinge_loss(-values, -one, reduction="none")
    np.testing.assert_array_equal(mirrored[0], loss)
    np.testing.assert_array_equal(mirrored[1], -grad)


@pytest.mark.usefixtures("isa")
@losses
@dtypes
def test_nan_and_infinity(name: str, dtype: str) -> None:
    prediction, target, _ = problem(name, ((4,), 37), dtype)
    target[:] = 1
    prediction[2, 36], prediction[1, 3] = np.nan, -np.inf
    options: Any = {"reduction": "none", **LOSSES[name]}
    loss, grad = getattr(tbptt_fast, name)(prediction, target, **options)
    assert np.argwhere(np.isnan(loss)).tolist() == [[2, 36]]
    assert np.argwhere(np.isnan(grad)).tolist() == [[2, 36]]
    assert loss[1, 3] == np.inf
    assert grad[1, 3] == -LOSSES[name].get("delta", 1)


@pytest.mark.usefixtures("isa")
@losses
@dtypes
def test_the_same_bits_for_every_number_of_threads(name: str, dtype: str) -> None:
    for size in (((3000,), 37), ((70000,), 1)):
        prediction, target, weights = problem(name, size, dtype)
        for given in (None, weights):
            results = []
            for n in (1, 2, 3, 8):
                with tbptt_fast.num_threads(n):
                    options: Any = {"weights": given, **LOSSES[name]}
                    loss, grad = getattr(tbptt_fast, name)(prediction, target, **options)
                    results.append({"loss": np.asarray(loss), "grad": grad})
            for result in results[1:]:
                assert_identical(result, results[0])


@losses
def test_losses_of_nothing(name: str) -> None:
    none = np.zeros((0, 4))
    assert np.isnan(getattr(tbptt_fast, name)(none, none)[0])
    assert getattr(tbptt_fast, name)(none, none, reduction="sum")[0] == 0.0


P = np.ones((2, 3), np.float32)


@losses
@pytest.mark.parametrize(
    ("args", "options", "error", "text"),
    [
        ((P, P[1:]), {}, ValueError, "target: expected shape [2, 3], got [1, 3]"),
        ((P, P.astype("f8")), {}, TypeError, "target: expected dtype float32, got float64"),
        ((P.astype("i4"), P), {}, TypeError, "prediction: expected dtype …got int32"),
        ((P, P), {"weights": P}, ValueError, "weights: expected shape [2], got [2, 3]"),
        ((P, P), {"reduction": "max"}, ValueError, "reduction: expected …got 'max'"),
    ],
    ids=str,
)
def test_wrong_arguments(
    name: str, args: Any, options: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=message(f"{name}: {text}")):
        getattr(tbptt_fast, name)(*args, **options)


@pytest.mark.parametrize("delta", [0, -1.0, np.nan, np.inf, "1"])
def test_huber_rejects_deltas(delta: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="huber_loss: delta: expected a finite"):
        tbptt_fast.huber_loss(P, P, delta=delta)


@pytest.mark.parametrize("value", [0.0, 0.5, np.nan])
def test_hinge_rejects_targets(value: float) -> None:
    target = P.copy()
    target[1, 2] = value
    text = f"hinge_loss: target: expected -1 or 1, got {value}"
    with pytest.raises(ValueError, match=message(text)):
        tbptt_fast.hinge_loss(P, target)
