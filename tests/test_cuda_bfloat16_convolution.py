"""Convolutions in bfloat16, on the emulated device and on a real one.

The reference gets the same numbers in float64. Products of bfloat16 are exact in float32, where
they are added up, and each result is rounded once: so small the bounds are. Behind an activation
the gradient before it is rounded, too, as tensor cores take it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import reference_convolution as reference

from . import test_conv_transpose as transposed
from .cases import TOLERANCE, assert_identical
from .cuda_cases import (
    ROUNDING,
    CudaDevice,
    Device,
    EmulatedDevice,
    bfloat16,
    unaligned,
    widened,
)
from .cuda_convolution_cases import (
    DEEP,
    GRID,
    LARGE,
    LINES,
    ONE,
    check_needs,
    check_orders,
    run,
    run_transposed,
)
from .test_convolution import Case, expected_of, layout_of, layouts, moved
from .test_convolution_grid import ways

BFLOAT16 = bfloat16()
EPS = float(np.finfo("float32").eps)
Results = dict[str, Any]


def wide(arrays: list[Any]) -> list[Any]:
    return [widened(a) for a in arrays]


def compare(case: Case, actual: Results, wanted: Results, inside: Results | None = None) -> None:
    """One rounding of each element, and sums as in float32; `inside` bounds what was rounded."""
    for name, value in actual.items():
        assert value.dtype == BFLOAT16, name
        assert value.shape == wanted[name].shape, name
        assert np.isfinite(widened(value)).all(), name
        scale = max(float(np.abs(wanted[name]).max(initial=0.0)), 1.0)
        kind = "forward" if name == "y" else "gradient"
        bound = TOLERANCE[kind] * EPS * max(case.length, 1) ** 0.5 * scale
        bound = bound + ROUNDING * np.abs(wanted[name])
        if inside is not None and name in inside:
            bound = bound + ROUNDING * inside[name]
        error = np.abs(widened(value) - wanted[name])
        assert (error <= bound).all(), (name, float((error - bound).max()))


def check(device: Device, case: Case, last: bool) -> None:
    arrays = case.arrays(BFLOAT16)
    wanted = expected_of(case, wide(arrays), last, None)
    compare(case, run(device.ops(), case, arrays, last), wanted)


def assert_rounded(actual: Results, wanted: Results) -> None:
    """Equal numbers: zeros may have either sign."""
    for name, value in actual.items():
        assert value.dtype == BFLOAT16, name
        exact = widened(wanted[name].astype(BFLOAT16))
        np.testing.assert_array_equal(widened(value), exact, err_msg=name)


@layouts
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_grid(device: Device, kernel: int, last: bool) -> None:
    for case in GRID:
        if case.kernel[0] == kernel:
            check(device, case, last)


@layouts
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_exact_numbers(device: Device, kernel: int, last: bool) -> None:
    """Sums of small integers are exact in float32, and rounded once."""
    for case in GRID:
        if case.kernel[0] == kernel:
            arrays = case.arrays(BFLOAT16, integers=True)
            wanted = expected_of(case, wide(arrays), last, None)
            assert_rounded(run(device.ops(), case, arrays, last), wanted)


@layouts
def test_one_dimension(device: Device, last: bool) -> None:
    for case in LINES:
        check(device, case, last)


@layouts
def test_conv_transpose(device: Device, last: bool) -> None:
    for case in GRID[::3]:
        arrays = [a.astype(BFLOAT16) for a in transposed.arrays_of(case, "float64")]
        wanted = transposed.expected_of(case, wide(arrays), last, None)
        compare(case, run_transposed(device.ops(), case, arrays, last), wanted)
        whole = [np.rint(2 * widened(a)).astype(BFLOAT16) for a in arrays]
        wanted = transposed.expected_of(case, wide(whole), last, None)
        assert_rounded(run_transposed(device.ops(), case, whole, last), wanted)


def before(activation: str, y: Any, grad: Any) -> Any:
    """The gradient before an activation."""
    if activation == "relu":
        return np.where(y > 0, grad, 0)
    return grad * (1 - y * y if activation == "tanh" else y * (1 - y))


@layouts
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@ways
def test_activations(device: Device, case: Case, last: bool, activation: str) -> None:
    """Rounded behind them alone; gradients follow from the y that came."""
    arrays = case.arrays(BFLOAT16)
    x, w, b, grad = wide(arrays)
    found = run(device.ops(), case, arrays, last, activation)
    y = np.moveaxis(widened(found["y"]), -1, 1) if last else widened(found["y"])
    g = before(activation, y, grad)
    by_x, by_w, by_b = reference.conv_backward(g, x, w, **case.options)
    wanted = {
        "y": moved(reference.conv(x, w, b, **case.options, activation=activation), last),
        "x": moved(by_x, last),
        "w": by_w,
        "b": by_b,
    }
    x_bound, w_bound, _ = reference.conv_backward(np.abs(g), np.abs(x), np.abs(w), **case.options)
    inside = {"x": moved(x_bound, last), "w": w_bound} if activation != "relu" else None
    compare(case, found, wanted, inside)


@layouts
def test_relu_at_zero_and_at_nan(device: Device, last: bool) -> None:
    """relu'(0) = 0, -0 included; NaN lets the gradient pass."""
    x = np.array([0.0, -0.0, 1.0, -1.0, np.nan]).reshape(1, 1, 1, 5).astype(BFLOAT16)
    w, grad = np.ones((1, 1, 1, 1), BFLOAT16), np.full_like(x, 3)
    options: Any = {"activation": "relu", "layout": "NHWC" if last else "NCHW"}
    y = device.ops().conv2d(moved(x, last), w, **options)
    np.testing.assert_array_equal(widened(y).ravel(), [0, 0, 1, 0, np.nan])
    grads = device.ops().conv2d_backward(moved(grad, last), moved(x, last), w, y=y, **options)
    np.testing.assert_array_equal(widened(grads.x).ravel(), [0, 0, 3, 0, 3])
    np.testing.assert_array_equal(widened(grads.b), [6])


# (inputs, outputs, groups, size, batch): tiles that are full, begun, and more than one
TILES = (
    (16, 130, 1, (9, 17), 1),
    (36, 65, 1, (8, 8), 2),
    (12, 64, 2, (16, 16), 1),
    (130, 10, 1, (5, 6), 1),
)


@layouts
@pytest.mark.parametrize("shape", TILES, ids=str)
@pytest.mark.parametrize(("multiprocessors", "capability"), [(1, 90), (132, 80)])
def test_every_tile(
    emulated: EmulatedDevice, shape: Any, last: bool, multiprocessors: int, capability: int
) -> None:
    """Devices that take large tiles and small ones get the same bits."""
    inputs, outputs, groups, size, batch = shape
    case = Case(batch, inputs, outputs, size, (3, 3), ONE, (ONE, ONE), ONE, groups)
    emulated.resize(3, capability=80)
    alone = run(emulated.ops(), case, case.arrays(BFLOAT16), last, "tanh")
    emulated.resize(multiprocessors, capability=capability)
    found = run(emulated.ops(), case, case.arrays(BFLOAT16), last, "tanh")
    assert_identical(found, alone)
    check(emulated, case, last)


@layouts
@pytest.mark.parametrize(
    "case", [*DEEP, Case(1, 1100, 6, (3, 3), (1, 1)), Case(1, 60, 9, (6, 5), (5, 5))], ids=str
)
def test_depths_in_parts(device: Device, case: Case, last: bool) -> None:
    check(device, case, last)
    arrays = case.arrays(BFLOAT16)
    x, w, b, _ = wide(arrays)
    for activation in ("relu", "tanh"):
        options = {**case.options, "activation": activation, "layout": layout_of(case, last)}
        y = device.ops().conv2d(moved(arrays[0], last), *arrays[1:3], **options)
        wanted = moved(reference.conv(x, w, b, **case.options, activation=activation), last)
        compare(case, {"y": y}, {"y": wanted})


@layouts
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_sums_are_added_up_in_float32(device: Device, groups: int, last: bool) -> None:
    """Sums of ones over pixels in parts, where bfloat16 would stay at 256."""
    case = Case(3, 6 // groups, 12 // groups, (40, 31), (1, 1), (1, 2), groups=groups)
    ones = [np.ones_like(a) for a in case.arrays(BFLOAT16)]
    found = run(device.ops(), case, ones, last)
    pixels = np.asarray(3.0 * 40 * 16).astype(BFLOAT16)
    for name in ("w", "b"):
        assert (found[name] == pixels).all(), name


@layouts
def test_parts_are_added_up_in_float32(emulated: EmulatedDevice, last: bool) -> None:
    """Ones beside 2²⁰, which goes in another part of the depth: until then float32 keeps them."""
    x = np.ones((1, 2048, 1, 1), BFLOAT16)
    w = np.ones((3, 2048, 1, 1), BFLOAT16)
    x[:, 0], x[:, -1] = 2.0**20, -(2.0**20)
    options: Any = {"layout": "NHWC" if last else "NCHW"}
    y = emulated.ops().conv2d(moved(x, last), w, **options)
    np.testing.assert_array_equal(widened(y).ravel(), [np.float64(BFLOAT16.type(2046))] * 3)


@layouts
def test_arrays_that_begin_anywhere(device: Device, last: bool) -> None:
    for case in (
        Case(2, 16, 24, (5, 7), (3, 3), padding=(ONE, ONE)),
        Case(2, 8, 8, (4, 8), (1, 1)),
        Case(2, 1, 1, (4, 8), (3, 3), groups=8),
    ):
        arrays = case.arrays(BFLOAT16)
        x, w, b, grad = (unaligned(a) for a in arrays)
        if last:  # which the call takes as views: they have to be unaligned in that order
            x, grad = (np.moveaxis(unaligned(np.moveaxis(a, 1, -1)), -1, 1) for a in (x, grad))
        for activation in (None, "tanh"):
            found = run(device.ops(), case, [x, w, b, grad], last, activation)
            wanted = run(device.ops(), case, arrays, last, activation)
            assert_identical(
                {n: found[n] for n in ("y", "x", "w")}, {n: wanted[n] for n in ("y", "x", "w")}
            )
            exact = widened(wanted["b"])  # accesses of another width add up in another order
            np.testing.assert_allclose(widened(found["b"]), exact, rtol=2 * ROUNDING, atol=1e-4)


def test_images_of_one_pixel_or_channel(device: Device) -> None:
    """Where both orders are the same memory, nothing is turned round."""
    for case in (
        Case(5, 12, 20, (1, 1), (1, 1)),
        Case(2, 1, 1, (6, 9), (3, 3), padding=(ONE, ONE)),
        Case(2, 1, 7, (6, 9), (3, 3)),
        Case(2, 9, 1, (6, 9), (2, 3), (2, 1)),
        Case(3, 10, 6, (3, 2), (3, 2)),
    ):
        check(device, case, False)


@layouts
@ways
def test_only_what_is_needed(device: Device, case: Case, last: bool) -> None:
    check_needs(device, case, BFLOAT16, last)


@layouts
@ways
def test_no_order_of_threads_changes_a_bit(
    emulated: EmulatedDevice, case: Case, last: bool
) -> None:
    check_orders(emulated, case, BFLOAT16, last)


@ways
def test_precision_is_of_float32_alone(device: Device, case: Case) -> None:
    """And two runs have the same bits."""
    both = [
        run(device.ops(precision=p), case, case.arrays(BFLOAT16), False, "relu")
        for p in ("tf32", "highest")
    ]
    assert_identical(*both)


@layouts
@ways
def test_every_way_once(device: Device, case: Case, last: bool) -> None:
    """What the sanitizers look at on a GPU."""
    check(device, case, last)


# --- Edges --------------------------------------------------------------------------------------


@layouts
@ways
def test_empty_batch(device: Device, case: Case, last: bool) -> None:
    x, w, b, grad = case.arrays(BFLOAT16)
    for activation in (None, "tanh"):
        arrays = [x[:0], w, b, grad[:0]]
        found = run(device.ops(), replace(case, batch=0), arrays, last, activation)
        assert found["y"].shape == moved(grad[:0], last).shape
        assert found["x"].shape == moved(x[:0], last).shape
        assert_rounded({n: found[n] for n in "wb"}, {"w": 0 * widened(w), "b": 0 * widened(b)})


@layouts
def test_no_channels_and_nothing_but_padding(device: Device, last: bool) -> None:
    """The output is the bias, behind its activation; weights have no gradient."""
    ops, layout = device.ops(), "NHWC" if last else "NCHW"
    b = np.arange(3.0).astype(BFLOAT16)
    for x_shape, w_shape, padding in (
        ((2, 0, 5, 6), (3, 0, 2, 2), 0),
        ((2, 4, 0, 5), (3, 4, 2, 2), ((2, 3), (0, 0))),
    ):
        x, w = np.ones(x_shape, BFLOAT16), np.ones(w_shape, BFLOAT16)
        options: Any = {"padding": padding, "layout": layout}
        for activation in (None, "tanh"):
            y = ops.conv2d(moved(x, last), w, b, activation=activation, **options)
            values = widened(b) if activation is None else np.tanh(widened(b))
            planes = np.moveaxis(y, -1, 1) if last else y
            wanted = np.broadcast_to(values[:, None, None], planes.shape)
            np.testing.assert_allclose(widened(planes), wanted, rtol=ROUNDING)
        y = ops.conv2d(moved(x, last), w, b, **options)
        grads = ops.conv2d_backward(y, moved(x, last), w, **options)
        assert grads.x.shape == moved(x, last).shape
        assert_rounded({"w": grads.w}, {"w": np.zeros(w_shape)})
        pixels = planes.size // 3
        assert_rounded({"b": grads.b}, {"b": pixels * widened(b)})


@layouts
@ways
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_inf_travel(device: Device, case: Case, last: bool, value: float) -> None:
    """As IEEE says, to what depends on them and nowhere else."""
    ops, arrays = device.ops(), case.arrays(BFLOAT16)
    clean = run(ops, case, arrays, last)
    x, w, b, grad = (a.copy() for a in arrays)
    middle = tuple(n // 2 for n in grad.shape[2:])
    rules = zip(middle, case.stride, case.padding, case.kernel, case.dilation, strict=True)
    met = tuple(i * s - before + k // 2 * d for i, s, (before, _), k, d in rules)
    x[0, 0][met] = value
    grad[-1, 1][middle] = value
    found = run(ops, case, [x, w, b, grad], last)
    with np.errstate(all="ignore"):
        wanted = expected_of(case, wide([x, w, b, grad]), last, None)
    for name in ("y", "x", "w", "b"):
        for test in (np.isnan, np.isposinf, np.isneginf):
            is_there = test(widened(found[name]))
            np.testing.assert_array_equal(is_there, test(wanted[name]), err_msg=name)
        untouched = np.isfinite(widened(found[name]))
        assert not untouched.all()
        np.testing.assert_array_equal(found[name][untouched], clean[name][untouched])


@pytest.mark.gpu
@layouts
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_large_on_a_gpu(case: Case, last: bool) -> None:
    """Against the CPU's kernels in float64, which the reference judged."""
    arrays = case.arrays(BFLOAT16)
    compare(
        case,
        run(CudaDevice().ops(), case, arrays, last),
        run(tbptt_fast, case, wide(arrays), last),
    )
