"""exp, tanh and sigmoid of the kernels: their error in ULP over dense ranges, special values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tbptt_fast

from .cases import DTYPES

pytestmark = pytest.mark.usefixtures("isa")

# The documented largest errors, in units in the last place of the exact result.
ULP_BOUND = {
    ("exp", "float32"): 1.5,
    ("sigmoid", "float32"): 2.0,
    ("tanh", "float32"): 2.5,
    ("exp", "float64"): 1.5,
    ("sigmoid", "float64"): 2.0,
    ("tanh", "float64"): 2.5,
}
FUNCTIONS = ("exp", "sigmoid", "tanh")
COUNT = 200_003  # no multiple of any vector's length

functions = pytest.mark.parametrize("function", FUNCTIONS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def exact(function: str, x: Any) -> Any:
    """The same function with at least ten more bits than the dtype of x."""
    wide = np.longdouble if x.dtype == np.float64 else np.float64
    assert np.finfo(wide).nmant >= np.finfo(x.dtype).nmant + 10
    z = x.astype(wide)
    with np.errstate(all="ignore"):
        if function == "sigmoid":
            e = np.exp(-np.abs(z))
            return np.where(z >= 0, 1 / (1 + e), e / (1 + e))
        return {"exp": np.exp, "tanh": np.tanh}[function](z)


def inputs(function: str, dtype: str, region: str) -> Any:
    """Points where the exact result is a normal number."""
    info = np.finfo(dtype)
    low, high = float(np.log(info.smallest_normal)), float(np.log(info.max))
    rng = np.random.default_rng(0)
    if region == "whole range":
        first, last = {"exp": (low, high), "sigmoid": (low, -low), "tanh": (-50, 50)}[function]
        x = np.linspace(first, last, COUNT)
    elif region == "around zero":
        x = np.linspace(-2, 2, COUNT)
    elif region == "random":  # dense enough to meet what evenly spaced points step over
        x = rng.uniform(-12, 12, 10 * COUNT)
    else:  # every exponent below one
        x = rng.choice([-1, 1], COUNT) * 2.0 ** rng.uniform(info.minexp + 1, 0, COUNT)
    x = x.astype(dtype)
    if function != "tanh":
        x = x[x > low * (1 - 2 * info.eps)]
    return x[x < high] if function == "exp" else x


@functions
@dtypes
@pytest.mark.parametrize("region", ["whole range", "around zero", "random", "every exponent"])
def test_error_in_ulp(function: str, dtype: str, region: str) -> None:
    x = inputs(function, dtype, region)
    assert x.size > COUNT // 2
    expected = exact(function, x)
    actual = getattr(tbptt_fast, function)(x)
    assert actual.dtype == x.dtype
    ulp = np.spacing(np.abs(expected.astype(dtype))).astype(expected.dtype)
    error = np.abs(actual.astype(expected.dtype) - expected) / ulp
    worst = int(np.argmax(error))  # the first NaN, if there is any
    bound = ULP_BOUND[function, dtype]
    assert error[worst] <= bound, (
        f"{function}({x[worst]!r}) = {actual[worst]!r}, {error[worst]} ULP"
    )


@dtypes
def test_special_values(dtype: str) -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan], dtype)
    nan = np.nan
    np.testing.assert_array_equal(tbptt_fast.exp(x), [1, 1, np.inf, 0, nan])
    np.testing.assert_array_equal(tbptt_fast.sigmoid(x), [0.5, 0.5, 1, 0, nan])
    np.testing.assert_array_equal(tbptt_fast.tanh(x), [0, -0.0, 1, -1, nan])
    np.testing.assert_array_equal(np.signbit(tbptt_fast.tanh(x[:2])), [False, True])


@dtypes
def test_huge_values_saturate(dtype: str) -> None:
    info = np.finfo(dtype)
    beyond = np.log(info.max)
    x = np.array([1.001 * beyond, 2 * beyond, 1e6, 1e30, info.max], dtype)
    np.testing.assert_array_equal(tbptt_fast.exp(x), np.full(5, np.inf))
    np.testing.assert_array_equal(tbptt_fast.sigmoid(x), np.ones(5))
    np.testing.assert_array_equal(tbptt_fast.tanh(x), np.ones(5))
    np.testing.assert_array_equal(tbptt_fast.tanh(-x), -np.ones(5))
    # Far below: zero, or a number too small to be normal.
    for function in (tbptt_fast.exp, tbptt_fast.sigmoid):
        y = function(-x)
        assert (y >= 0).all()
        assert (y <= info.smallest_normal).all()
        assert (y[1:] == 0).all()


@dtypes
def test_results_below_the_normal_numbers(dtype: str) -> None:
    """exp goes on into the subnormal numbers; sigmoid may flush to zero, but is never larger."""
    info = np.finfo(dtype)
    low, last = np.log(info.smallest_normal), np.log(info.smallest_subnormal)
    x = np.linspace(low, last - 1, 10_007)[1:].astype(dtype)
    expected = exact("exp", x)
    error = np.abs(tbptt_fast.exp(x).astype(expected.dtype) - expected)
    assert error.max() / info.smallest_subnormal <= ULP_BOUND["exp", dtype]
    y = tbptt_fast.sigmoid(x)
    assert (y >= 0).all()
    assert (y <= info.smallest_normal * (1 + 4 * info.eps)).all()


@dtypes
def test_subnormal_arguments(dtype: str) -> None:
    info = np.finfo(dtype)
    x = info.smallest_subnormal * np.arange(1, 100, dtype=dtype)
    assert (x > 0).all()
    assert (x < info.smallest_normal).all()
    for sign in (1, -1):
        np.testing.assert_array_equal(tbptt_fast.exp(sign * x), np.ones(99))
        np.testing.assert_array_equal(tbptt_fast.sigmoid(sign * x), np.full(99, 0.5))
        np.testing.assert_array_equal(tbptt_fast.tanh(sign * x), sign * x)


@dtypes
def test_symmetry_and_range(dtype: str) -> None:
    x = np.linspace(-40, 40, COUNT).astype(dtype)
    x = (x - x[::-1]) / 2  # exactly symmetric
    tanh, sigmoid = tbptt_fast.tanh(x), tbptt_fast.sigmoid(x)
    np.testing.assert_array_equal(tanh, -tanh[::-1])
    assert (np.abs(tanh) <= 1).all()
    assert (sigmoid >= 0).all()
    assert (sigmoid <= 1).all()


@functions
@dtypes
def test_any_shape_and_stride(function: str, dtype: str) -> None:
    call = getattr(tbptt_fast, function)
    x = np.random.default_rng(0).normal(size=(7, 9, 11)).astype(dtype)
    expected = call(x)
    assert expected.shape == x.shape
    np.testing.assert_array_equal(call(x.ravel()), expected.ravel())
    np.testing.assert_array_equal(call(x.T), expected.T)
    np.testing.assert_array_equal(call(x[::2, ::-1, 1::3]), expected[::2, ::-1, 1::3])
    np.testing.assert_array_equal(call(x[0, 0, :1].reshape(())), expected[0, 0, 0])
    assert call(np.zeros((3, 0), dtype)).shape == (3, 0)


@functions
@dtypes
def test_the_place_in_a_vector_does_not_matter(function: str, dtype: str) -> None:
    """Tails give the bits that whole vectors give."""
    call = getattr(tbptt_fast, function)
    x = np.random.default_rng(1).normal(scale=3, size=67).astype(dtype)
    expected = call(x)
    for n in range(67):
        np.testing.assert_array_equal(call(x[:n]), expected[:n])
        np.testing.assert_array_equal(call(x[n:]), expected[n:])


@functions
def test_other_dtypes_are_rejected(function: str) -> None:
    for dtype in ("int64", "float16", "complex64", "bool"):
        with pytest.raises(TypeError, match=f"^{function}: x: expected dtype .*got {dtype}"):
            getattr(tbptt_fast, function)(np.ones(3, dtype))
