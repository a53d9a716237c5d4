"""Pooling against the oracle and PyTorch: both layouts, overlaps, gaps, padding, ties, NaN."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import reference_pooling as reference

from .cases import DTYPES, assert_close, assert_identical
from .test_boundary import message, sliced

LAYOUTS = ("NCHW", "NHWC")
# N, C, Y, X; kernel, stride, padding: rows around the lanes, overlaps, gaps, unequal axes.
CASES: tuple[tuple[tuple[int, int, int, int], Any, Any, Any], ...] = (
    ((1, 1, 1, 1), 1, None, 0),
    ((2, 3, 4, 6), 2, None, 0),
    ((1, 2, 5, 7), 2, None, 1),
    ((2, 17, 9, 8), 3, 2, 1),
    ((1, 3, 6, 35), 3, 1, 1),
    ((1, 2, 7, 71), 2, 2, 0),
    ((2, 2, 5, 70), (3, 2), (2, 2), (1, 1)),
    ((1, 33, 8, 7), (2, 3), (3, 4), (0, 1)),
    ((1, 65, 6, 5), (6, 5), None, 0),
    ((1, 2, 3, 130), (3, 5), (1, 3), (1, 2)),
    ((3, 1, 1, 40), (2, 4), (1, 1), (1, 2)),
    ((1, 4, 40, 1), (7, 2), (1, 1), (3, 1)),
    ((2, 5, 14, 14), 3, 2, 1),
    ((1, 3, 9, 40), (3, 4), (2, 3), 1),
)
# What PyTorch does not know: more padding than half of the kernel, by sides, and by name.
MORE: tuple[tuple[tuple[int, int, int, int], Any, Any, Any], ...] = (
    ((1, 2, 9, 11), 3, 2, 2),
    ((2, 3, 8, 37), (2, 4), (1, 2), ((1, 0), (0, 3))),
    ((1, 17, 5, 6), (4, 3), (3, 1), ((0, 3), (2, 1))),
    ((1, 2, 7, 33), 2, 1, "same"),
    ((2, 3, 8, 9), (5, 4), (3, 2), "same"),
    ((2, 3, 7, 9), 3, 5, "same"),
    ((1, 5, 6, 8), (3, 2), (1, 2), "valid"),
)
cases = pytest.mark.parametrize("case", CASES, ids=str)
all_cases = pytest.mark.parametrize("case", CASES + MORE, ids=str)
ceil = pytest.mark.parametrize("ceil_mode", [False, True], ids=["down", "up"])
dtypes = pytest.mark.parametrize("dtype", DTYPES)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
include = pytest.mark.parametrize("count_include_pad", [True, False], ids=["padded", "inside"])


def in_layout(images: Any, layout: str) -> Any:
    return np.ascontiguousarray(np.moveaxis(images, 1, 3)) if layout == "NHWC" else images


def images(shape: tuple[int, ...], dtype: str, layout: str, *, ties: bool = False) -> Any:
    rng = np.random.default_rng(list(shape))
    x = rng.integers(-2, 3, size=shape) if ties else rng.normal(size=shape)
    return in_layout(x.astype(dtype), layout)


def area(kernel: Any) -> int:
    return kernel * kernel if isinstance(kernel, int) else kernel[0] * kernel[1]


# --- Values -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa", "threads")
@all_cases
@dtypes
@layouts
@ceil
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_max_pool(case: Any, dtype: str, layout: Any, ceil_mode: bool, ties: bool) -> None:
    shape, kernel, stride, padding = case
    options = {"stride": stride, "padding": padding, "ceil_mode": ceil_mode, "layout": layout}
    x = images(shape, dtype, layout, ties=ties)
    y, indices = tbptt_fast.max_pool2d(x, kernel, **options)
    expected, places = reference.max_pool2d(x, kernel, **options)
    assert y.dtype == dtype
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(indices, places)
    grad = images(y.shape, dtype, "NCHW")
    for given in (indices, indices.astype(np.int32)):
        actual = tbptt_fast.max_pool2d_backward(grad, given, x.shape, layout=layout)
        wanted = reference.max_pool2d_backward(grad, indices, x.shape, layout=layout)
        assert actual.dtype == dtype
        assert_close(actual, wanted, "gradient", length=area(kernel))


@pytest.mark.usefixtures("isa", "threads")
@all_cases
@dtypes
@layouts
@ceil
@include
def test_avg_pool(
    case: Any, dtype: str, layout: Any, ceil_mode: bool, count_include_pad: bool
) -> None:
    shape, kernel, stride, padding = case
    options: dict[str, Any] = {"stride": stride, "padding": padding, "layout": layout}
    options["ceil_mode"] = ceil_mode
    options["count_include_pad"] = count_include_pad
    x = images(shape, dtype, layout)
    y = tbptt_fast.avg_pool2d(x, kernel, **options)
    assert y.dtype == dtype
    assert_close(y, reference.avg_pool2d(x, kernel, **options), "forward", length=area(kernel))
    grad = images(y.shape, dtype, "NCHW")
    actual = tbptt_fast.avg_pool2d_backward(grad, x.shape, kernel, **options)
    wanted = reference.avg_pool2d_backward(grad, x.shape, kernel, **options)
    assert actual.dtype == dtype
    assert_close(actual, wanted, "gradient", length=area(kernel))


@pytest.mark.usefixtures("isa", "threads")
@dtypes
@layouts
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 7), (1, 130, 3, 3), (3, 65, 9, 11)])
def test_global_avg_pool(shape: tuple[int, ...], dtype: str, layout: Any) -> None:
    x = images(shape, dtype, layout)
    y = tbptt_fast.global_avg_pool2d(x, layout=layout)
    assert y.dtype == dtype
    assert_close(y, reference.global_avg_pool2d(x, layout=layout), "forward", length=1)
    grad = images(shape[:2], dtype, "NCHW")
    actual = tbptt_fast.global_avg_pool2d_backward(grad, x.shape, layout=layout)
    wanted = reference.global_avg_pool2d_backward(grad, x.shape, layout=layout)
    assert actual.dtype == dtype
    assert_close(actual, wanted, "gradient", length=1)


@layouts
def test_long_means_are_summed_in_double(layout: Any) -> None:
    x = np.full((1, 1, 3000, 1000) if layout == "NCHW" else (1, 3000, 1000, 1), 0.1, np.float32)
    assert tbptt_fast.global_avg_pool2d(x, layout=layout)[0, 0] == np.float32(0.1)


@pytest.mark.usefixtures("isa")
@all_cases
@dtypes
@ceil
def test_both_layouts_have_the_same_bits(case: Any, dtype: str, ceil_mode: bool) -> None:
    shape, kernel, stride, padding = case
    results = []
    for layout in LAYOUTS:
        x = images(shape, dtype, layout)
        options: Any = {"stride": stride, "padding": padding, "ceil_mode": ceil_mode}
        options["layout"] = layout
        y, indices = tbptt_fast.max_pool2d(x, kernel, **options)
        mean = tbptt_fast.avg_pool2d(x, kernel, **options)
        spread = tbptt_fast.avg_pool2d_backward(mean, x.shape, kernel, **options)
        back = tbptt_fast.max_pool2d_backward(mean, indices, x.shape, layout=layout)
        named = {"y": y, "indices": indices, "mean": mean, "spread": spread, "back": back}
        if layout == "NHWC":
            named = {k: np.ascontiguousarray(np.moveaxis(v, 3, 1)) for k, v in named.items()}
        results.append(named)
    assert_identical(results[1], results[0])


@pytest.mark.usefixtures("isa")
@dtypes
@layouts
def test_the_same_bits_for_every_number_of_threads(dtype: str, layout: Any) -> None:
    for shape in ((1, 3, 120, 90), (5, 70, 24, 23), (40, 200, 5, 5)):
        x = images(shape, dtype, layout)
        results = []
        for n in (1, 2, 3, 8):
            with tbptt_fast.num_threads(n):
                options: Any = {"stride": (1, 2), "padding": 1, "layout": layout}
                y, indices = tbptt_fast.max_pool2d(x, 3, **options)
                mean = tbptt_fast.avg_pool2d(x, 3, **options)
                whole = tbptt_fast.global_avg_pool2d(x, layout=layout)
                results.append(
                    {
                        "y": y,
                        "indices": indices,
                        "mean": mean,
                        "whole": whole,
                        "grad y": tbptt_fast.max_pool2d_backward(
                            mean, indices, x.shape, layout=layout
                        ),
                        "grad mean": tbptt_fast.avg_pool2d_backward(y, x.shape, 3, **options),
                        "grad whole": tbptt_fast.global_avg_pool2d_backward(
                            whole, x.shape, layout=layout
                        ),
                    }
                )
        for result in results[1:]:
            assert_identical(result, results[0])


@pytest.mark.usefixtures("isa")
@layouts
@pytest.mark.parametrize("shape", [(1, 130, 30, 7), (2, 3, 50, 60), (5, 33, 9, 9)], ids=str)
def test_indices_may_point_anywhere(shape: tuple[int, int, int, int], layout: Any) -> None:
    """Gradients of small integers: exact in every order, for windows and places far apart."""
    rng = np.random.default_rng(list(shape))
    n, c, rows, columns = shape
    grad = in_layout(rng.integers(-3, 4, (n, c, 11, 13)).astype(np.float32), layout)
    indices = in_layout(rng.integers(0, rows * columns, (n, c, 11, 13)), layout)
    size = in_layout(np.empty(shape), layout).shape
    expected = reference.max_pool2d_backward(grad, indices, size, layout=layout)
    for threads in (1, 2, 3):
        with tbptt_fast.num_threads(threads):
            actual = tbptt_fast.max_pool2d_backward(grad, indices, size, layout=layout)
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.usefixtures("isa")
@layouts
@pytest.mark.parametrize("value", [-1, 36, -(2**63), 2**63 - 1])
def test_one_index_outside(layout: Any, value: int) -> None:
    """Wherever it is, for whole images and for blocks of channels."""
    grad = np.ones((3, 70, 30, 2) if layout == "NCHW" else (3, 30, 2, 70), np.float32)
    size = (3, 70, 6, 6) if layout == "NCHW" else (3, 6, 6, 70)
    text = message(f"max_pool2d_backward: indices: expected values in [0, 36), got {value}")
    rng = np.random.default_rng(0)
    for place in (0, grad.size - 1, *rng.integers(0, grad.size, 10)):
        indices = np.zeros(grad.shape, np.int64)
        indices.flat[place] = value
        for threads in (1, 2, 3):
            with tbptt_fast.num_threads(threads), pytest.raises(ValueError, match=text):
                tbptt_fast.max_pool2d_backward(grad, indices, size, layout=layout)


# --- PyTorch ------------------------------------------------------------------------------------


@cases
@dtypes
@layouts
@ceil
def test_equals_torch(case: Any, dtype: str, layout: Any, ceil_mode: bool) -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    shape, kernel, stride, padding = case
    plain = images(shape, dtype, "NCHW", ties=True)
    x = in_layout(plain, layout)
    options: Any = {"stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    leaf = torch.tensor(plain, requires_grad=True)

    def check(ours: Any, theirs: Any, kind: str) -> None:
        expected = in_layout(theirs.detach().numpy(), layout)
        assert_close(ours, expected, kind, length=area(kernel))

    def backward(theirs: Any) -> Any:
        leaf.grad = None
        grad = images(tuple(theirs.shape), dtype, "NCHW")
        theirs.backward(torch.tensor(grad))
        return in_layout(grad, layout)

    theirs, places = functional.max_pool2d(leaf, kernel, **options, return_indices=True)
    y, indices = tbptt_fast.max_pool2d(x, kernel, **options, layout=layout)
    np.testing.assert_array_equal(y, in_layout(theirs.detach().numpy(), layout))
    np.testing.assert_array_equal(indices, in_layout(places.numpy(), layout))
    grad = backward(theirs)
    ours = tbptt_fast.max_pool2d_backward(grad, indices, x.shape, layout=layout)
    check(ours, leaf.grad, "gradient")
    for count_include_pad in (True, False):
        options["count_include_pad"] = count_include_pad
        theirs = functional.avg_pool2d(leaf, kernel, **options)
        check(tbptt_fast.avg_pool2d(x, kernel, **options, layout=layout), theirs, "forward")
        grad = backward(theirs)
        ours = tbptt_fast.avg_pool2d_backward(grad, x.shape, kernel, **options, layout=layout)
        check(ours, leaf.grad, "gradient")


@pytest.mark.usefixtures("isa")
@dtypes
@layouts
def test_nan_and_infinity_as_in_torch(dtype: str, layout: Any) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = rng.choice([np.nan, -np.inf, np.inf, 0.0, 1.0], size=(2, 20, 9, 70)).astype(dtype)
    x[0, 0] = -np.inf
    y, indices = tbptt_fast.max_pool2d(in_layout(x, layout), 3, stride=2, padding=1, layout=layout)
    theirs, places = torch.nn.functional.max_pool2d(
        torch.tensor(x), 3, stride=2, padding=1, return_indices=True
    )
    np.testing.assert_array_equal(y, in_layout(theirs.numpy(), layout))
    np.testing.assert_array_equal(indices, in_layout(places.numpy(), layout))


# --- Finite differences -------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
@layouts
def test_finite_differences(layout: Any) -> None:
    step = 1e-5
    x = images((2, 2, 5, 6), "float64", layout)
    for stride, padding, ceil_mode in itertools.product((1, 2, 4), (0, 1), (False, True)):
        options: Any = {"stride": stride, "padding": padding, "ceil_mode": ceil_mode}
        options["layout"] = layout
        y, indices = tbptt_fast.max_pool2d(x, 3, **options)
        grad = images(y.shape, "float64", "NCHW")
        whole = images((2, 2), "float64", "NCHW")
        found = [
            tbptt_fast.max_pool2d_backward(grad, indices, x.shape, layout=layout),
            tbptt_fast.avg_pool2d_backward(grad, x.shape, 3, **options),
            tbptt_fast.avg_pool2d_backward(grad, x.shape, 3, **options, count_include_pad=False),
            tbptt_fast.global_avg_pool2d_backward(whole, x.shape, layout=layout),
        ]
        for index in np.ndindex(x.shape):
            ends = []
            for sign in (1, -1):
                z = x.copy()
                z[index] += sign * step
                values = [
                    tbptt_fast.max_pool2d(z, 3, **options)[0] * grad,
                    tbptt_fast.avg_pool2d(z, 3, **options) * grad,
                    tbptt_fast.avg_pool2d(z, 3, **options, count_include_pad=False) * grad,
                    tbptt_fast.global_avg_pool2d(z, layout=layout) * whole,
                ]
                ends.append(np.array([v.sum() for v in values]))
            slopes = (ends[0] - ends[1]) / (2 * step)
            actual = [array[index] for array in found]
            np.testing.assert_allclose(actual, slopes, rtol=1e-7, atol=1e-8)


# --- Layouts in memory, nothing at all ----------------------------------------------------------


@layouts
def test_strided_and_read_only_arrays(layout: Any) -> None:
    x = images((2, 3, 5, 6), "float32", layout)
    y, indices = tbptt_fast.max_pool2d(x, 2, layout=layout)
    mean = tbptt_fast.avg_pool2d(x, 2, layout=layout)
    expected = [
        *(y, indices, mean, tbptt_fast.global_avg_pool2d(x, layout=layout)),
        tbptt_fast.max_pool2d_backward(y, indices, x.shape, layout=layout),
        tbptt_fast.avg_pool2d_backward(y, x.shape, 2, layout=layout),
    ]

    def frozen(a: Any) -> Any:
        a = a.copy()
        a.flags.writeable = False
        return a

    for change in (sliced, frozen, np.asfortranarray):
        z, g, places = change(x), change(y), change(indices)
        actual = [
            *tbptt_fast.max_pool2d(z, 2, layout=layout),
            tbptt_fast.avg_pool2d(z, 2, layout=layout),
            tbptt_fast.global_avg_pool2d(z, layout=layout),
            tbptt_fast.max_pool2d_backward(g, places, list(x.shape), layout=layout),
            tbptt_fast.avg_pool2d_backward(g, list(x.shape), 2, layout=layout),
        ]
        for a, b in zip(actual, expected, strict=True):
            assert a.flags.c_contiguous
            np.testing.assert_array_equal(a, b)


@layouts
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4)])
def test_pools_of_nothing(shape: tuple[int, int, int, int], layout: Any) -> None:
    x = images(shape, "float32", layout)
    pooled = in_layout(np.zeros((*shape[:2], 2, 2)), layout).shape
    y, indices = tbptt_fast.max_pool2d(x, 2, layout=layout)
    assert (y.shape, indices.shape) == (pooled, pooled)
    assert tbptt_fast.max_pool2d_backward(y, indices, x.shape, layout=layout).shape == x.shape
    assert tbptt_fast.avg_pool2d(x, 2, layout=layout).shape == pooled
    assert tbptt_fast.avg_pool2d_backward(y, x.shape, 2, layout=layout).shape == x.shape
    whole = tbptt_fast.global_avg_pool2d(x, layout=layout)
    assert whole.shape == shape[:2]
    back = tbptt_fast.global_avg_pool2d_backward(whole, x.shape, layout=layout)
    assert back.shape == x.shape


# --- Wrong arguments ----------------------------------------------------------------------------

X = np.zeros((2, 3, 4, 6), np.float32)
Y, PLACES = X[:, :, :2, :3], np.zeros((2, 3, 2, 3), np.int64)
HUGE = np.broadcast_to(np.float32(0), (1, 1, 2**16, 2**15))

WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    ("max_pool2d", (X[0], 2), {}, ValueError, "x: expected 4 dimensions, got shape [3, 4, 6]"),
    ("max_pool2d", (X.astype("i4"), 2), {}, TypeError, "x: expected dtype …got int32"),
    ("max_pool2d", (X.tolist(), 2), {}, TypeError, "x: expected an array, got list"),
    ("max_pool2d", (X[:, :, :0], 2), {}, ValueError, "x: expected a plane of at least …0, 6]"),
    ("max_pool2d", (X, 0), {}, ValueError, "kernel: expected an integer >= 1, got 0"),
    ("max_pool2d", (X, 2.0), {}, TypeError, "kernel: expected an integer or …got float"),
    ("max_pool2d", (X, (2, 2, 2)), {}, ValueError, "kernel: expected 2 integers, got 3"),
    ("max_pool2d", (X, (2, True)), {}, TypeError, "kernel: expected an integer, got bool"),
    ("max_pool2d", (X, 2**31), {}, ValueError, "kernel: expected sizes and strides below 2**31"),
    (
        "max_pool2d",
        (X, (5, 2)),
        {},
        ValueError,
        "kernel: expected at most the plane with its padding, (4, 6), got (5, 2)",
    ),
    ("max_pool2d", (X, 2), {"stride": 0}, ValueError, "stride: expected an integer >= 1, got 0"),
    ("max_pool2d", (X, 2), {"padding": -1}, ValueError, "padding: expected an integer >= 0"),
    (
        "max_pool2d",
        (X, 3),
        {"padding": ((1, 2), (3, 0))},
        ValueError,
        "padding: expected less than the kernel, (3, 3), got (1, 3) before and (2, 0) behind",
    ),
    ("max_pool2d", (X, 2), {"padding": "full"}, ValueError, "padding: …'valid' or integers, got"),
    ("max_pool2d", (X, 2), {"padding": 2**62}, ValueError, "padding: expected less than the ker"),
    ("max_pool2d", (X, 2), {"ceil_mode": 1}, TypeError, "ceil_mode: expected True or False, got"),
    ("max_pool2d", (X, 2), {"layout": "CHWN"}, ValueError, "layout: expected …got 'CHWN'"),
    ("max_pool2d", (X, 2), {"layout": None}, TypeError, "layout: expected a string, got None"),
    ("max_pool2d", (HUGE, 2), {}, ValueError, "x: expected planes of less than 2**31 values"),
    ("avg_pool2d", (X, (5, 2)), {}, ValueError, "kernel: expected at most"),
    ("avg_pool2d", (X, 2), {"count_include_pad": 1}, TypeError, "count_include_pad: expected True"),
    (
        "max_pool2d_backward",
        (Y, PLACES + 24, X.shape),
        {},
        ValueError,
        "indices: expected values in [0, 24), got 24",
    ),
    ("max_pool2d_backward", (Y, PLACES - 1, X.shape), {}, ValueError, "indices: expected …got -1"),
    ("max_pool2d_backward", (Y, PLACES[1:], X.shape), {}, ValueError, "indices: expected shape"),
    ("max_pool2d_backward", (Y, Y, X.shape), {}, TypeError, "indices: expected dtype int32 or"),
    ("max_pool2d_backward", (Y, PLACES, 24), {}, TypeError, "input_shape: expected …got int"),
    ("max_pool2d_backward", (Y, PLACES, (2, 3)), {}, ValueError, "input_shape: …got 2 items"),
    ("max_pool2d_backward", (Y, PLACES, (2, 3, 4, -6)), {}, ValueError, "input_shape: …got -6"),
    ("max_pool2d_backward", (Y, PLACES, (2, 3, 0, 6)), {}, ValueError, "input_shape: expected a p"),
    ("max_pool2d_backward", (Y, PLACES, (2, 5, 4, 6)), {}, ValueError, "grad_out: expected shape"),
    ("avg_pool2d_backward", (Y, X.shape, 3), {}, ValueError, "grad_out: expected shape [2, 3, 1,"),
    ("avg_pool2d_backward", (Y, X.shape, 2), {"padding": 2}, ValueError, "padding: expected less"),
    ("global_avg_pool2d", (X[0],), {}, ValueError, "x: expected 4 dimensions"),
    ("global_avg_pool2d_backward", (Y, X.shape), {}, ValueError, "grad_out: expected shape [2, 3]"),
]


@pytest.mark.parametrize(
    ("op", "args", "options", "error", "text"), WRONG, ids=[f"{w[0]}-{w[4]}" for w in WRONG]
)
def test_wrong_arguments(
    op: str, args: tuple[Any, ...], options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=message(f"{op}: {text}")):
        getattr(tbptt_fast, op)(*args, **options)


def test_a_shape_too_large_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="bad_alloc"):
        tbptt_fast.avg_pool2d_backward(X, (2**40, 2**40, 2, 2), 2)
