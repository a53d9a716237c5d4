"""Convolutions on a device at their edges: nothing at all, NaN and Inf, pixels that nobody met."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from .cases import assert_identical
from .cuda_cases import Device
from .cuda_convolution_cases import precisions, run
from .test_convolution import Case, expected_of, layouts, moved
from .test_convolution_grid import ways


@layouts
@ways
def test_empty_batch(device: Device, case: Case, last: bool) -> None:
    x, w, b, grad = case.arrays("float32")
    for activation in (None, "relu"):
        arrays = [x[:0], w, b, grad[:0]]
        found = run(device.ops(), replace(case, batch=0), arrays, last, activation)
        assert found["y"].shape == moved(grad[:0], last).shape
        assert found["x"].shape == moved(x[:0], last).shape
        np.testing.assert_array_equal(found["w"], np.zeros_like(w))
        np.testing.assert_array_equal(found["b"], np.zeros_like(b))


@layouts
def test_no_channels(device: Device, last: bool) -> None:
    """Without inputs the output is the bias; without outputs there is none."""
    ops, options = device.ops(), {"layout": "NHWC" if last else "NCHW"}
    x, w, b = np.ones((2, 0, 5, 6)), np.ones((3, 0, 2, 2)), np.arange(3.0)
    y = ops.conv2d(moved(x, last), w, b, **options)
    np.testing.assert_array_equal(y, moved(np.broadcast_to(b[:, None, None], (2, 3, 4, 5)), last))
    grads = ops.conv2d_backward(y, moved(x, last), w, **options)
    assert grads.x.shape == moved(x, last).shape
    assert grads.w.shape == w.shape
    np.testing.assert_array_equal(grads.b, 40 * b)
    x, w = np.ones((2, 3, 5, 6)), np.ones((0, 3, 2, 2))
    y = ops.conv2d(moved(x, last), w, **options)
    assert y.shape == moved(np.empty((2, 0, 4, 5)), last).shape
    grads = ops.conv2d_backward(y, moved(x, last), w, **options)
    np.testing.assert_array_equal(grads.x, np.zeros_like(moved(x, last)))
    assert grads.w.shape == w.shape
    assert grads.b.shape == (0,)


@layouts
def test_images_of_nothing_but_padding(device: Device, last: bool) -> None:
    x, w, b = np.ones((2, 3, 0, 4)), np.ones((5, 3, 2, 2)), np.arange(5.0)
    options = {"padding": ((1, 2), (0, 0)), "layout": "NHWC" if last else "NCHW"}
    y = device.ops().conv2d(moved(x, last), w, b, **options)
    np.testing.assert_array_equal(y, moved(np.broadcast_to(b[:, None, None], (2, 5, 2, 3)), last))
    grads = device.ops().conv2d_backward(y, moved(x, last), w, **options)
    assert grads.x.shape == moved(x, last).shape
    np.testing.assert_array_equal(grads.w, np.zeros_like(w))
    np.testing.assert_array_equal(grads.b, 12 * b)


@layouts
def test_pixels_that_no_output_saw_have_no_gradient(device: Device, last: bool) -> None:
    """A stride beyond the kernel leaves pixels out, and so does what is behind the last window."""
    for groups in (1, 4):
        case = Case(2, 4 // groups, 4 // groups, (9, 8), (2, 1), (4, 3), groups=groups)
        arrays = case.arrays("float32")
        found = run(device.ops(), case, arrays, last)["x"]
        planes = np.moveaxis(found, -1, 1) if last else found
        seen = np.zeros((9, 8), bool)
        seen[[0, 1, 4, 5]] = np.arange(8) % 3 == 0
        np.testing.assert_array_equal((planes != 0).any((0, 1)), seen)


@precisions
@layouts
@ways
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_inf_travel(
    device: Device, case: Case, last: bool, dtype: str, precision: str, value: float
) -> None:
    """As IEEE says, to what depends on them and nowhere else."""
    ops, arrays = device.ops(precision=precision), case.arrays(dtype)
    clean = run(ops, case, arrays, last)
    x, w, b, grad = (a.copy() for a in arrays)
    middle = tuple(n // 2 for n in grad.shape[2:])
    rules = zip(middle, case.stride, case.padding, case.kernel, case.dilation, strict=True)
    met = tuple(i * s - before + k // 2 * d for i, s, (before, _), k, d in rules)
    x[0, 0][met] = value
    grad[-1, 1][middle] = value
    found = run(ops, case, [x, w, b, grad], last)
    with np.errstate(all="ignore"):
        wanted = expected_of(case, [x, w, b, grad], last, None)
    for name in ("y", "x", "w", "b"):
        for test in (np.isnan, np.isposinf, np.isneginf):
            np.testing.assert_array_equal(test(found[name]), test(wanted[name]), err_msg=name)
        untouched = np.isfinite(found[name])
        assert not untouched.all()
        np.testing.assert_array_equal(found[name][untouched], clean[name][untouched])


def test_precision_matters_in_float32_only(device: Device) -> None:
    case = Case(1, 12, 9, (6, 7), (3, 3))
    fast, exact = (
        run(device.ops(precision=p), case, case.arrays("float32"), False)
        for p in ("tf32", "highest")
    )
    assert np.abs(fast["y"] - exact["y"]).max() > 1e-6
    both = [
        run(device.ops(precision=p), case, case.arrays("float64"), False)
        for p in ("tf32", "highest")
    ]
    assert_identical(*both)
