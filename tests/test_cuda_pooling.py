"""Pooling on devices: the bits of the CPU's kernels, which were judged by the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import reference_pooling as reference

from .cases import DTYPES
from .cuda_cases import CudaDevice, Device, assert_near, assert_same, same_bits, unaligned
from .test_pooling import CASES, LAYOUTS, MORE, in_layout

dtypes = pytest.mark.parametrize("dtype", DTYPES)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
ceil = pytest.mark.parametrize("ceil_mode", [False, True], ids=["down", "up"])
all_cases = pytest.mark.parametrize("case", CASES + MORE, ids=str)

# Channels that go by vectors, and no image, channel or padding of its own kind.
SIZES = ((2, 8), (1, 13), (0, 3), (3, 0), (1, 1))


def images(shape: tuple[int, ...], dtype: str, layout: str, kind: str = "normal") -> Any:
    rng = np.random.default_rng([*shape, len(kind)])
    x = rng.normal(size=shape).astype(dtype)
    if kind == "ties":
        x = rng.integers(-2, 3, size=shape).astype(dtype)
    if kind == "odd" and x.size:
        for value in (np.nan, np.inf, -np.inf, -0.0, 0.0):
            x.flat[rng.integers(0, x.size, max(1, x.size // 12))] = value
    return in_layout(x, layout)


@all_cases
@dtypes
@layouts
@ceil
@pytest.mark.parametrize("kind", ["normal", "ties", "odd"])
def test_max_pool(
    device: Device, case: Any, dtype: str, layout: Any, ceil_mode: bool, kind: str
) -> None:
    shape, kernel, stride, padding = case
    options = {"stride": stride, "padding": padding, "ceil_mode": ceil_mode, "layout": layout}
    x, ops = images(shape, dtype, layout, kind), device.ops()
    y, indices = same_bits(device, lambda: ops.max_pool2d(x, kernel, **options))
    wanted, places = tbptt_fast.max_pool2d(x, kernel, **options)
    assert_same(y, wanted)
    assert_same(indices, places)
    if kind == "ties":
        expected = reference.max_pool2d(x, kernel, **options)
        np.testing.assert_array_equal(y, expected[0])
        np.testing.assert_array_equal(indices, expected[1])
    grad = images(y.shape, dtype, "NCHW", "odd" if kind == "odd" else "normal")
    given = indices.astype("int32" if kind == "ties" else "int64")
    (grad_x,) = same_bits(
        device, lambda: (ops.max_pool2d_backward(grad, given, x.shape, layout=layout),)
    )
    assert_same(grad_x, tbptt_fast.max_pool2d_backward(grad, indices, x.shape, layout=layout))


@all_cases
@dtypes
@layouts
@ceil
@pytest.mark.parametrize("count_include_pad", [True, False], ids=["padded", "inside"])
def test_avg_pool(
    device: Device, case: Any, dtype: str, layout: Any, ceil_mode: bool, count_include_pad: bool
) -> None:
    shape, kernel, stride, padding = case
    options: dict[str, Any] = {"stride": stride, "padding": padding, "layout": layout}
    options |= {"ceil_mode": ceil_mode, "count_include_pad": count_include_pad}
    x, ops = images(shape, dtype, layout, "odd" if ceil_mode else "normal"), device.ops()
    (y,) = same_bits(device, lambda: (ops.avg_pool2d(x, kernel, **options),))
    assert_same(y, tbptt_fast.avg_pool2d(x, kernel, **options))
    grad = images(y.shape, dtype, "NCHW")
    (grad_x,) = same_bits(
        device, lambda: (ops.avg_pool2d_backward(grad, x.shape, kernel, **options),)
    )
    assert_same(grad_x, tbptt_fast.avg_pool2d_backward(grad, x.shape, kernel, **options))


@pytest.mark.parametrize("size", SIZES, ids=str)
@dtypes
@layouts
@pytest.mark.parametrize("moved", [False, True], ids=["aligned", "unaligned"])
def test_every_number_of_channels(
    device: Device, size: Any, dtype: str, layout: Any, moved: bool
) -> None:
    """By vectors of channels and one by one; without images or channels, empty results."""
    shape, ops = (*size, 7, 6), device.ops()
    options: Any = {"stride": 2, "padding": ((1, 0), (2, 1)), "layout": layout}
    x = images(shape, dtype, layout, "ties")
    x = unaligned(x) if moved else x
    y, indices = same_bits(device, lambda: ops.max_pool2d(x, 3, **options))
    wanted, places = tbptt_fast.max_pool2d(x, 3, **options)
    assert_same(y, wanted)
    assert_same(indices, places)
    mean = ops.avg_pool2d(x, 3, **options)
    assert_same(mean, tbptt_fast.avg_pool2d(x, 3, **options))
    grad = images(mean.shape, dtype, "NCHW")
    grad = unaligned(grad) if moved else grad
    found = ops.max_pool2d_backward(grad, indices, x.shape, layout=layout)
    assert_same(found, tbptt_fast.max_pool2d_backward(grad, places, x.shape, layout=layout))
    found = ops.avg_pool2d_backward(grad, x.shape, 3, **options)
    assert_same(found, tbptt_fast.avg_pool2d_backward(grad, x.shape, 3, **options))


@dtypes
@layouts
def test_any_indices_at_all(device: Device, dtype: str, layout: Any) -> None:
    """The gradient goes where the indices say, whatever made them."""
    rng = np.random.default_rng(5)
    for shape, windows in (((2, 3, 9, 11), (4, 5)), ((1, 8, 6, 6), (6, 6)), ((1, 2, 3, 3), (5, 8))):
        x, y = in_layout(np.zeros(shape, dtype), layout), (*shape[:2], *windows)
        grad = in_layout(rng.normal(size=y).astype(dtype), layout)
        indices = in_layout(rng.integers(0, shape[2] * shape[3], y), layout)
        found = device.ops().max_pool2d_backward(grad, indices, x.shape, layout=layout)
        wanted = tbptt_fast.max_pool2d_backward(grad, indices, x.shape, layout=layout)
        assert_same(found, wanted)


@dtypes
@layouts
@pytest.mark.parametrize("wrong", [-1, 99, 2**40])
def test_indices_that_are_no_place(device: Device, dtype: str, layout: Any, wrong: int) -> None:
    """One makes all gradients NaN: nothing else could tell."""
    grad = in_layout(np.ones((2, 3, 4, 5), dtype), layout)
    indices = in_layout(np.zeros((2, 3, 4, 5), "int64"), layout)
    x = in_layout(np.zeros((2, 3, 9, 11), dtype), layout)
    indices[1, 2, 3, 2] = wrong
    assert np.isnan(device.ops().max_pool2d_backward(grad, indices, x.shape, layout=layout)).all()


@dtypes
@layouts
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 3, 5, 7), (2, 65, 9, 9), (3, 4, 70, 90), (0, 3, 2, 2), (2, 0, 2, 2)]
)
def test_global_average(device: Device, shape: Any, dtype: str, layout: Any) -> None:
    x, ops = images(shape, dtype, layout), device.ops()
    (y,) = same_bits(device, lambda: (ops.global_avg_pool2d(x, layout=layout),))
    assert_near(y, reference.global_avg_pool2d(x, layout=layout), "forward", length=1)
    grad = np.random.default_rng(1).normal(size=y.shape).astype(dtype)
    found = ops.global_avg_pool2d_backward(grad, x.shape, layout=layout)
    assert_same(found, tbptt_fast.global_avg_pool2d_backward(grad, x.shape, layout=layout))


def test_global_average_of_what_is_not_finite(device: Device) -> None:
    x = np.ones((3, 2, 4, 5), "float32")
    x[0, 0, 1, 1], x[1, 1, 2, 2], x[2, 0, 0, :2] = np.nan, np.inf, (np.inf, -np.inf)
    for layout in LAYOUTS:
        given = in_layout(x, layout)
        wanted = tbptt_fast.global_avg_pool2d(given, layout=layout)
        assert_same(device.ops().global_avg_pool2d(given, layout=layout), wanted)


@pytest.mark.gpu
@layouts
def test_large_on_a_gpu(layout: Any) -> None:
    ops = CudaDevice().ops()
    x = images((16, 64, 112, 112), "float32", layout)
    y, indices = ops.max_pool2d(x, 3, stride=2, padding=1, layout=layout)
    wanted, places = tbptt_fast.max_pool2d(x, 3, stride=2, padding=1, layout=layout)
    assert_same(y, wanted)
    assert_same(indices, places)
    grad = images(y.shape, "float32", "NCHW")
    found = ops.max_pool2d_backward(grad, indices, x.shape, layout=layout)
    assert_same(found, tbptt_fast.max_pool2d_backward(grad, places, x.shape, layout=layout))
