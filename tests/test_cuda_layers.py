"""Softmax, losses and the embedding on devices, against the CPU's kernels and the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import reference_layers as reference

from .cases import DTYPES
from .cuda_cases import (
    CudaDevice,
    Device,
    EmulatedDevice,
    assert_near,
    assert_same,
    same_bits,
    unaligned,
)

dtypes = pytest.mark.parametrize("dtype", DTYPES)
reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])

# Leading extents and columns: a lane, a warp, a block for a row, and sizes around their limits.
ROWS: tuple[tuple[tuple[int, ...], int], ...] = (
    ((), 3),
    ((1,), 1),
    ((0,), 5),
    ((2, 3), 4),
    ((33,), 3),
    ((9,), 17),
    ((130,), 10),
    ((7,), 32),
    ((6,), 128),
    ((3,), 1023),
    ((2,), 1024),
    ((3,), 1028),
    ((2,), 9001),
    ((5000,), 2),
)
rows = pytest.mark.parametrize("size", ROWS, ids=str)


def draw(size: tuple[tuple[int, ...], int], dtype: str, seed: int = 0, scale: float = 1.0) -> Any:
    leading, last = size
    values = np.random.default_rng([seed, last]).normal(size=(*leading, last))
    return np.asarray(scale * values, dtype)


def placed(array: Any, moved: bool) -> Any:
    return unaligned(array) if moved else array


# --- Softmax ------------------------------------------------------------------------------------


@rows
@dtypes
@pytest.mark.parametrize("moved", [False, True], ids=["aligned", "unaligned"])
def test_softmax(device: Device, size: Any, dtype: str, moved: bool) -> None:
    x = placed(draw(size, dtype, scale=4.0), moved)
    ops = device.ops()
    (y,) = same_bits(device, lambda: (ops.softmax(x),))
    assert y.dtype == dtype
    assert_near(y, reference.softmax(x), "forward", length=size[1])
    y, grad = placed(y, moved), placed(draw(size, dtype, 1), moved)
    (grad_x,) = same_bits(device, lambda: (ops.softmax_backward(grad, y),))
    assert_near(grad_x, reference.softmax_backward(grad, y), "gradient", length=size[1])


@dtypes
@pytest.mark.parametrize("columns", [5, 8, 130, 2049])
def test_softmax_of_what_is_not_finite(device: Device, dtype: str, columns: int) -> None:
    x = draw(((6,), columns), dtype)
    x[1] = -np.inf
    x[2, 3] = np.inf
    x[3, 1] = np.nan
    x[4, : columns // 2] = -np.inf
    x[5] = np.finfo(dtype).max
    wanted = tbptt_fast.softmax(x)
    assert_near(device.ops().softmax(x), wanted, "forward", length=columns)


def test_softmax_without_columns(device: Device) -> None:
    empty = np.zeros((3, 0), "float32")
    assert device.ops().softmax(empty).shape == (3, 0)
    assert device.ops().softmax_backward(empty, empty).shape == (3, 0)


# --- Losses -------------------------------------------------------------------------------------


def check_loss(actual: Any, wanted: Any, dtype: str, reduction: str, length: int) -> None:
    loss, grad = actual
    assert loss.dtype == (dtype if reduction == "none" else "float64")
    assert grad.dtype == dtype
    terms = 10.0 if reduction != "mean" else 10.0 / max(length, 1)
    # What is added up in float64 was made in the dtype of the logits.
    assert_near(loss.astype(dtype), wanted[0], "forward", length=length, terms=terms)
    assert_near(grad, wanted[1], "gradient", length=length, terms=terms)


def targets_of(size: Any, seed: int = 0) -> Any:
    leading, classes = size
    rng = np.random.default_rng([seed, classes])
    targets = np.asarray(rng.integers(0, classes, size=leading))
    ignored = np.asarray(rng.random(leading) < 0.25)
    targets[ignored & (targets.size > 3)] = -100
    return targets


@rows
@dtypes
@reductions
def test_cross_entropy(device: Device, size: Any, dtype: str, reduction: Any) -> None:
    logits, targets = draw(size, dtype, scale=3.0), targets_of(size)
    weights = np.random.default_rng(3).uniform(0.5, 2, size=size[0]).astype(dtype)
    ops = device.ops()
    length = size[1] + targets.size
    for given, ids, moved in ((None, "int64", False), (weights, "int32", True)):
        arguments = placed(logits, moved), targets.astype(ids)
        options: dict[str, Any] = {"weights": given, "reduction": reduction}
        actual = same_bits(
            device,
            lambda a=arguments, o=options: ops.softmax_cross_entropy(*a, **o),  # type: ignore[misc]
        )
        with np.errstate(all="ignore"):  # a mean over nothing
            wanted = reference.softmax_cross_entropy(logits, targets, **options)
        check_loss(actual, wanted, dtype, reduction, length)


@dtypes
@reductions
@pytest.mark.parametrize("classes", [3, 8, 2050])
def test_cross_entropy_of_what_is_not_finite(
    device: Device, dtype: str, reduction: Any, classes: int
) -> None:
    """Ignored rows may hold anything; elsewhere a NaN travels, as on the CPU."""
    logits, targets = draw(((7,), classes), dtype), targets_of(((7,), classes))
    targets[:5] = (0, -100, 1, 0, 2)
    logits[0, 1] = -np.inf
    logits[1] = np.nan
    logits[2, 2] = np.nan
    logits[3] = -np.inf
    logits[4, 0] = np.inf
    for these in ([0, 1], [0, 1, 2], list(range(7))):
        given = logits[these], targets[these]
        actual = device.ops().softmax_cross_entropy(*given, reduction=reduction)
        wanted = tbptt_fast.softmax_cross_entropy(*given, reduction=reduction)
        check_loss(actual, wanted, dtype, reduction, classes)


@dtypes
@pytest.mark.parametrize("wrong", [7, -1, 2**40])
def test_targets_that_are_no_class(device: Device, dtype: str, wrong: int) -> None:
    """They make their row's loss and gradients NaN, and no others."""
    logits, targets = draw(((4,), 7), dtype), np.array([0, wrong, -100, 5])
    loss, grad = device.ops().softmax_cross_entropy(logits, targets, reduction="none")
    np.testing.assert_array_equal(np.isnan(loss), [False, True, False, False])
    np.testing.assert_array_equal(np.isnan(grad), np.isnan(loss)[:, None].repeat(7, axis=1))
    for reduction in ("mean", "sum"):
        total, _ = device.ops().softmax_cross_entropy(logits, targets, reduction=reduction)
        assert np.isnan(total)


@dtypes
def test_another_ignored_index(device: Device, dtype: str) -> None:
    logits, targets = draw(((6,), 5), dtype), np.array([0, 1, 2, 1, 4, 3])
    for ignored in (1, -7, 2**62):
        actual = device.ops().softmax_cross_entropy(logits, targets, ignore_index=ignored)
        wanted = reference.softmax_cross_entropy(logits, targets, ignore_index=ignored)
        check_loss(actual, wanted, dtype, "mean", 11)


POINTWISE = ("mse_loss", "l1_loss", "huber_loss", "hinge_loss")
VALUES: tuple[tuple[tuple[int, ...], int], ...] = (
    ((), 3),
    ((0,), 3),
    ((3,), 0),
    ((5,), 7),
    ((2, 3, 11), 1),
    ((100,), 83),
    ((2,), 4097),
    ((9001,), 1),
)


@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize("size", VALUES, ids=str)
@dtypes
@reductions
def test_pointwise_losses(device: Device, name: str, size: Any, dtype: str, reduction: Any) -> None:
    prediction, target = draw(size, dtype), draw(size, dtype, 1)
    if name == "hinge_loss":
        target = np.where(target > 0, 1, -1).astype(dtype)
    if prediction.size > 20:  # the kink
        prediction.flat[5] = target.flat[5]
    weights = np.random.default_rng(3).uniform(0.5, 2, size=size[0]).astype(dtype)
    more: dict[str, Any] = {"delta": 0.6} if name == "huber_loss" else {}
    for given, moved in ((None, False), (weights, True)):
        options = {"weights": given, "reduction": reduction, **more}
        function = getattr(device.ops(), name)
        arguments = placed(prediction, moved), placed(target, moved)
        actual = same_bits(device, lambda a=arguments, o=options, f=function: f(*a, **o))  # type: ignore[misc]
        with np.errstate(all="ignore"):
            wanted = getattr(reference, name)(prediction, target, **options)
        check_loss(actual, wanted, dtype, reduction, prediction.size)


@pytest.mark.parametrize("name", POINTWISE)
@dtypes
def test_pointwise_losses_of_what_is_not_finite(device: Device, name: str, dtype: str) -> None:
    prediction, target = draw(((4,), 9), dtype), np.ones((4, 9), dtype)
    prediction[0, 3], prediction[1, 1], prediction[2, 8] = np.nan, np.inf, -np.inf
    if name != "hinge_loss":
        target[3, 2] = np.nan
    actual = getattr(device.ops(), name)(prediction, target, reduction="none")
    wanted = getattr(tbptt_fast, name)(prediction, target, reduction="none")
    for a, b in zip(actual, wanted, strict=True):
        assert_same(a, b)


# --- Embedding ----------------------------------------------------------------------------------

# Ids, rows of the table, columns: one digit of the sort and several; half of the ids are one.
TABLES = (
    (0, 3, 4),
    (5, 1, 1),
    (9, 4, 0),
    (1, 2, 3),
    (100, 7, 8),
    (700, 3, 12),
    (1000, 300, 5),
    (3000, 255, 4),
    (2500, 256, 16),
    (2100, 66000, 2),
    (5000, 2, 33),
    (300, 40, 200),
    (2049, 1, 3),
    (8000, 3, 4),
)


@pytest.mark.parametrize("table", TABLES, ids=str)
@dtypes
@pytest.mark.parametrize("moved", [False, True], ids=["aligned", "unaligned"])
def test_embedding(device: Device, table: Any, dtype: str, moved: bool) -> None:
    count, embeddings, width = table
    rng = np.random.default_rng(list(table))
    ids = rng.integers(0, embeddings, count)
    ids[: count // 2] = embeddings - 1
    ids = ids.astype("int32" if moved else "int64")
    w = placed(rng.normal(size=(embeddings, width)).astype(dtype), moved)
    grad = placed(rng.normal(size=(count, width)).astype(dtype), moved)
    ops = device.ops()
    (y,) = same_bits(device, lambda: (ops.embedding(ids, w),))
    assert_same(y, w[ids])
    (grad_w,) = same_bits(device, lambda: (ops.embedding_backward(grad, ids, embeddings),))
    wanted = tbptt_fast.embedding_backward(grad.astype("float64"), ids, embeddings)
    assert_near(grad_w, wanted, "gradient", length=count)
    if count < 128:  # a team adds them up in their order
        assert_same(grad_w, tbptt_fast.embedding_backward(grad, ids, embeddings))


@dtypes
@pytest.mark.parametrize("wrong", [-1, 40, 2**50])
def test_ids_that_are_no_row(device: Device, dtype: str, wrong: int) -> None:
    """Forward their row is NaN, backward everything."""
    ids = np.array([[3, 39, 0], [wrong, 3, 5]])
    w = np.ones((40, 5), dtype)
    y = device.ops().embedding(ids, w)
    np.testing.assert_array_equal(np.isnan(y).all(axis=2), ids == wrong)
    np.testing.assert_array_equal(y[ids != wrong], 1)
    grad = np.ones((2, 3, 5), dtype)
    assert np.isnan(device.ops().embedding_backward(grad, ids, 40)).all()


def test_nan_and_inf_go_to_their_rows(device: Device) -> None:
    ids, grad = np.array([2, 0, 2, 1]), np.ones((4, 3), "float32")
    grad[0, 1], grad[1, 2] = np.nan, np.inf
    wanted = tbptt_fast.embedding_backward(grad, ids, 4)
    assert_same(device.ops().embedding_backward(grad, ids, 4), wanted)


def test_every_size_of_device(emulated: EmulatedDevice) -> None:
    """Neither the multiprocessors nor what a block may hold changes a result."""
    ids = np.random.default_rng(0).integers(0, 30, 900)
    grad = np.random.default_rng(1).normal(size=(900, 6)).astype("float32")
    logits = draw(((700,), 6), "float32")
    found = []
    for multiprocessors, kilobytes in ((1, 48), (3, 96), (132, 227)):
        emulated.resize(multiprocessors, kilobytes << 10)
        loss, slope = emulated.ops().softmax_cross_entropy(logits, ids[:700] % 6)
        found.append((emulated.ops().embedding_backward(grad, ids, 30), loss, slope))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.gpu
def test_large_on_a_gpu() -> None:
    device = CudaDevice()
    ops, rng = device.ops(), np.random.default_rng(0)
    logits = rng.normal(size=(4096, 32000)).astype("float32")
    targets = rng.integers(0, 32000, 4096)
    check_loss(
        ops.softmax_cross_entropy(logits, targets),
        tbptt_fast.softmax_cross_entropy(logits, targets),
        "float32",
        "mean",
        36096,
    )
    ids = np.minimum(rng.geometric(1e-3, size=200_000), 49_999)  # some often, many never
    grad = rng.normal(size=(200_000, 128)).astype("float32")
    wanted = tbptt_fast.embedding_backward(grad.astype("float64"), ids, 50_000)
    (found,) = same_bits(device, lambda: (ops.embedding_backward(grad, ids, 50_000),))
    assert_near(found, wanted, "gradient", length=200_000)
