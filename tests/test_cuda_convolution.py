"""Convolutions on the emulated device and on a real one, against the float64 reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import cuda
from tbptt_fast import reference_convolution as reference

from . import test_conv_transpose as transposed
from .cases import assert_close, assert_identical
from .cuda_cases import PRECISIONS, TF32_EPS, CudaDevice, Device, EmulatedDevice
from .cuda_convolution_cases import (
    DEEP,
    GRID,
    LARGE,
    LINES,
    NONE,
    ONE,
    check_needs,
    check_orders,
    precisions,
    run,
    run_transposed,
)
from .test_convolution import Case, expected_of, layout_of, layouts, moved
from .test_convolution_grid import WAYS, ways


def test_the_grid_has_all_that_it_is_for() -> None:
    assert {(c.kernel[0], c.stride[0], c.groups) for c in GRID} == {
        (kernel, stride, groups)
        for kernel in (1, 2, 3, 5)
        for stride in (1, 2, 3)
        for groups in (1, 3, 4, 8)
    }
    assert {c.batch for c in GRID} == {1, 2, 3}
    assert {d for c in GRID for d in c.dilation} == {1, 2, 3}
    assert any(c.padding == (NONE, NONE) for c in GRID)
    assert any(a != b for c in GRID for a, b in c.padding)
    assert any(s > k for c in GRID for s, k in zip(c.stride, c.kernel, strict=True))


def eps_of(dtype: str, precision: str) -> float | None:
    return TF32_EPS if (dtype, precision) == ("float32", "tf32") else None


def compare(
    case: Case, actual: dict[str, Any], expected: dict[str, Any], dtype: str, precision: str
) -> None:
    eps = eps_of(dtype, precision)
    for name, value in actual.items():
        kind = "forward" if name == "y" else "gradient"
        assert value.dtype == dtype
        assert value.flags.c_contiguous
        assert_close(value, expected[name], kind, length=case.length, eps=eps, name=name)


def check(device: Device, case: Case, last: bool, dtype: str, precision: str) -> None:
    arrays = case.arrays(dtype)
    actual = run(device.ops(precision=precision), case, arrays, last)
    compare(case, actual, expected_of(case, arrays, last, None), dtype, precision)


@precisions
@layouts
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_grid(device: Device, kernel: int, last: bool, dtype: str, precision: str) -> None:
    for case in GRID:
        if case.kernel[0] == kernel:
            check(device, case, last, dtype, precision)


@precisions
@layouts
def test_one_dimension(device: Device, last: bool, dtype: str, precision: str) -> None:
    for case in LINES:
        check(device, case, last, dtype, precision)


@precisions
@layouts
def test_conv_transpose(device: Device, last: bool, dtype: str, precision: str) -> None:
    ops = device.ops(precision=precision)
    for index, case in enumerate(GRID[::3]):
        activation = (None, "tanh")[index % 2]
        arrays = transposed.arrays_of(case, dtype)
        actual = run_transposed(ops, case, arrays, last, activation)
        expected = transposed.expected_of(case, arrays, last, activation)
        compare(case, actual, expected, dtype, precision)


@precisions
@layouts
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_activations(
    device: Device, last: bool, dtype: str, precision: str, activation: str
) -> None:
    for case in WAYS:
        arrays = case.arrays(dtype)
        if activation == "relu":  # near its kink rounding decides
            margin = 1e-4 if eps_of(dtype, precision) is None else 2e-2
            arrays[3][np.abs(reference.conv(*arrays[:3], **case.options)) < margin] = 0
        actual = run(device.ops(precision=precision), case, arrays, last, activation)
        expected = expected_of(case, arrays, last, activation)
        compare(case, actual, expected, dtype, precision)


def test_relu_at_zero_and_at_nan(device: Device) -> None:
    """relu'(0) = 0, -0 included; NaN lets the gradient pass."""
    x = np.array([0.0, -0.0, 1.0, -1.0, np.nan]).reshape(1, 1, 1, 5)
    w, grad = np.ones((1, 1, 1, 1)), np.full_like(x, 3)
    y = device.ops().conv2d(x, w, activation="relu")
    np.testing.assert_array_equal(y.ravel(), [0, 0, 1, 0, np.nan])
    grads = device.ops().conv2d_backward(grad, x, w, y=y, activation="relu")
    np.testing.assert_array_equal(grads.x.ravel(), [0, 0, 3, 0, 3])
    np.testing.assert_array_equal(grads.b, [6])


# (inputs, outputs, groups, size, batch): tiles that are full, begun, and more than one
TILES = (
    (16, 130, 1, (9, 17), 1),
    (36, 65, 1, (8, 8), 2),
    (12, 64, 2, (16, 16), 1),
    (64, 10, 1, (5, 6), 1),
)


@layouts
@pytest.mark.parametrize("shape", TILES, ids=str)
@pytest.mark.parametrize(("multiprocessors", "capability"), [(1, 90), (2, 75), (132, 90)])
def test_every_tile(
    emulated: EmulatedDevice, shape: Any, last: bool, multiprocessors: int, capability: int
) -> None:
    """Devices that take large tiles and small ones get the same bits."""
    inputs, outputs, groups, size, batch = shape
    case = Case(batch, inputs, outputs, size, (3, 3), ONE, (ONE, ONE), ONE, groups)
    arrays = case.arrays("float32")
    emulated.resize(3, capability=80)
    alone = run(emulated.ops(), case, arrays, last)
    compare(case, alone, expected_of(case, arrays, last, None), "float32", "tf32")
    emulated.resize(multiprocessors, capability=capability)
    found = run(emulated.ops(), case, arrays, last)
    same_sums = {name: found[name] for name in ("y", "x", "b")}  # weights' tiles cut their pixels
    assert_identical(same_sums, {name: alone[name] for name in same_sums})
    compare(case, found, expected_of(case, arrays, last, None), "float32", "tf32")


@precisions
@layouts
@pytest.mark.parametrize("case", DEEP, ids=str)
def test_depths_in_parts(
    device: Device, case: Case, last: bool, dtype: str, precision: str
) -> None:
    check(device, case, last, dtype, precision)
    arrays = case.arrays(dtype)
    for activation in ("relu", "tanh"):
        options = {**case.options, "activation": activation, "layout": layout_of(case, last)}
        y = device.ops(precision=precision).conv2d(moved(arrays[0], last), *arrays[1:3], **options)
        wanted = moved(reference.conv(*arrays[:3], **case.options, activation=activation), last)
        eps = eps_of(dtype, precision)
        assert_close(y, wanted, "forward", length=case.length, eps=eps)


@layouts
def test_parts_are_added_up(emulated: EmulatedDevice, last: bool) -> None:
    """A half is lost beside 2²⁴; the sum of many, in a part of their own, is not."""
    x = np.full((1, 1024, 1, 1), 0.5, "float32")
    x[:, :512] = 0
    x[:, 0] = 2.0**24
    w = np.ones((3, 1024, 1, 1), "float32")
    y = emulated.ops().conv2d(moved(x, last), w, layout="NHWC" if last else "NCHW")
    np.testing.assert_array_equal(y.ravel(), [2.0**24 + 256] * 3)
    grad = emulated.ops().conv_transpose2d(
        moved(x, last), w.transpose(1, 0, 2, 3), layout="NHWC" if last else "NCHW"
    )
    np.testing.assert_array_equal(grad.ravel(), [2.0**24 + 256] * 3)


@layouts
@pytest.mark.parametrize("groups", [1, 3])
def test_many_pixels(device: Device, groups: int, last: bool) -> None:
    """Sums over so many pixels that they are cut in parts."""
    case = Case(3, 6 // groups, 12 // groups, (40, 31), (3, 3), (1, 2), (ONE, ONE), ONE, groups)
    check(device, case, last, "float32", "highest")
    deep = Case(2, 1, 1, (64, 66), (3, 2), ONE, (ONE, ONE), ONE, 5)
    check(device, deep, last, "float32", "highest")


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_named_padding(device: Device, stride: int, dilation: int) -> None:
    ops, rng = device.ops(), np.random.default_rng(0)
    options: dict[str, Any] = {"stride": stride, "dilation": dilation}
    for length, kernel in ((1, 2), (7, 3), (8, 6)):
        x, w = rng.normal(size=(1, 2, length)), rng.normal(size=(3, 2, kernel))
        reach = dilation * (kernel - 1)
        total = max((-(-length // stride) - 1) * stride + reach + 1 - length, 0)
        sides = {"causal": (reach, 0), "same": (total // 2, total - total // 2)}
        sides |= {"valid": (0, 0)} if length > reach else {}
        for name, pair in sides.items():
            y = ops.conv1d(x, w, padding=name, **options)
            np.testing.assert_array_equal(y, ops.conv1d(x, w, padding=(pair,), **options))
            expected = reference.conv(x, w, stride=(stride,), padding=(pair,), dilation=(dilation,))
            np.testing.assert_allclose(y, expected, atol=1e-12)
            if name == "causal":
                continue
            images, both = x[:, :, None], ((0, 0), pair)
            wide = ops.conv2d(images, w[:, :, None], padding=name, **options)
            np.testing.assert_array_equal(
                wide, ops.conv2d(images, w[:, :, None], padding=both, **options)
            )


@layouts
@ways
def test_only_what_is_needed(device: Device, case: Case, last: bool) -> None:
    check_needs(device, case, "float32", last)


@layouts
@ways
def test_no_order_of_threads_changes_a_bit(
    emulated: EmulatedDevice, case: Case, last: bool
) -> None:
    check_orders(emulated, case, "float32", last)


@precisions
@ways
def test_two_runs_have_the_same_bits(
    device: Device, case: Case, dtype: str, precision: str
) -> None:
    arrays, ops = case.arrays(dtype), device.ops(precision=precision)
    first = run(ops, case, arrays, False, "relu")
    assert_identical(run(ops, case, arrays, False, "relu"), first)


@layouts
@ways
def test_every_way_once(device: Device, case: Case, last: bool) -> None:
    """What the sanitizers look at on a GPU."""
    for dtype, precision in PRECISIONS:
        check(device, case, last, dtype, precision)


# --- On a GPU only ------------------------------------------------------------------------------


@pytest.mark.gpu
@layouts
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_large_on_a_gpu(case: Case, last: bool) -> None:
    """Against the CPU's kernels in float64, which the reference judged."""
    device = CudaDevice()
    arrays = case.arrays("float32")
    wide = [a.astype("float64") for a in arrays]
    expected = run(tbptt_fast, case, wide, last)
    for precision in ("highest", "tf32"):
        actual = run(device.ops(precision=precision), case, arrays, last)
        compare(case, actual, expected, "float32", precision)


@pytest.mark.gpu
def test_a_captured_graph_replays() -> None:
    """Forward and backward pass in one CUDA graph, on changed inputs."""
    torch = CudaDevice().torch
    case = Case(2, 16, 24, (9, 10), (3, 3), padding=(ONE, ONE))
    x, w, b, grad = (torch.from_numpy(a).cuda() for a in case.arrays("float32"))

    def step() -> Any:
        y = cuda.conv2d(x, w, b, padding=1, activation="relu")
        return y, cuda.conv2d_backward(grad, x, w, y=y, padding=1, activation="relu")

    step()  # whatever is set up once
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, grads = step()
    x.mul_(0.5)
    graph.replay()
    expected_y, expected_grads = step()
    torch.testing.assert_close(y, expected_y, rtol=0, atol=0)
    torch.testing.assert_close(grads.w, expected_grads.w, rtol=0, atol=0)
