"""Convolutions over a generated grid of sizes and options, and at their edges."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tbptt_fast
from tbptt_fast import reference_convolution as reference

from .cases import DTYPES, assert_identical
from .test_boundary import message, sliced
from .test_convolution import (
    Case,
    Ints,
    any_case,
    compare,
    dtypes,
    expected_of,
    layout_of,
    layouts,
    moved,
    run,
    same,
)

SIZES = (1, 7, 15, 16, 17, 31, 32, 33)


def grid() -> Iterator[Case]:
    """Every kernel with every stride and size; the other options take turns, out of step."""
    batches, dilations = cycle((1, 2, 3, 4, 5)), cycle((1, 2, 3, 1))
    widths, others = cycle((17, 1, 33, 7, 16, 31, 15)), cycle((3, 1, 7, 2, 5, 4, 6))
    none, one = (0, 0), (1, 1)
    pads = cycle(((none, none), (one, (2, 0)), ((0, 3), one), (none, (3, 3)), (one, one)))
    # (groups, inputs and outputs of a group): dense, grouped, depthwise, with a multiplier
    channels = cycle(((1, 3, 5), (1, 16, 17), (4, 2, 3), (17, 1, 1), (1, 1, 8), (5, 1, 2)))
    for kernel in range(1, 8):
        for stride in (1, 2, 3):
            for height in SIZES:
                size, kernels = (height, next(widths)), (kernel, next(others))
                dilation = (next(dilations), next(dilations))
                reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernels, strict=True)]
                padding: tuple[Ints, ...] = next(pads)
                # Where it does not fit, the kernel just reaches over the padded image.
                short = [
                    max(0, r - n - sum(p)) for r, n, p in zip(reach, size, padding, strict=True)
                ]
                padding = tuple((a + n, b) for (a, b), n in zip(padding, short, strict=True))
                groups, inputs, outputs = next(channels)
                yield Case(
                    next(batches),
                    inputs,
                    outputs,
                    size,
                    kernels,
                    (stride, next(dilations)),
                    padding,
                    dilation,
                    groups,
                )


GRID = tuple(grid())

native = pytest.mark.usefixtures("isa", "threads")


def test_the_grid_has_all_that_it_is_for() -> None:
    """Every value of every option that is asked for, and every kernel with every stride."""
    assert {(c.kernel[0], c.stride[0], c.size[0]) for c in GRID} == {
        (kernel, stride, size) for kernel in range(1, 8) for stride in (1, 2, 3) for size in SIZES
    }
    assert {c.batch for c in GRID} == {1, 2, 3, 4, 5}
    assert {c.size[1] for c in GRID} >= {1, 7, 15, 16, 17, 31, 33}
    assert {d for c in GRID for d in c.dilation} == {1, 2, 3}
    assert {c.groups for c in GRID} == {1, 4, 5, 17}
    assert any(c.padding == ((0, 0), (0, 0)) for c in GRID)


@native
@layouts
@pytest.mark.parametrize("kernel", range(1, 8))
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_grid(kernel: int, stride: int, last: bool) -> None:
    """Float64 against the oracle, and integers in float32 to the bit."""
    for case in GRID:
        if (case.kernel[0], case.stride[0]) != (kernel, stride):
            continue
        arrays = case.arrays("float64")
        compare(case, run(case, arrays, last), expected_of(case, arrays, last, None), "float64")
        arrays = case.arrays("float32", integers=True)
        expected = expected_of(case, arrays, last, None)
        for name, value in run(case, arrays, last).items():
            np.testing.assert_array_equal(value, expected[name], err_msg=f"{case} {name}")


@layouts
@pytest.mark.parametrize("kernel", range(1, 8))
def test_grid_equals_torch(kernel: int, last: bool) -> None:
    torch = pytest.importorskip("torch")
    for case in GRID:
        if case.kernel[0] != kernel:
            continue
        arrays = case.arrays("float32")
        x, w, b = (torch.tensor(a, requires_grad=True) for a in arrays[:3])
        sides = [n for pair in reversed(case.padding) for n in pair]
        y = torch.nn.functional.conv2d(
            torch.nn.functional.pad(x, sides),
            w,
            b,
            stride=case.stride,
            dilation=case.dilation,
            groups=case.groups,
        )
        y.backward(torch.tensor(arrays[3]))
        tensors = {"y": y.detach(), "x": x.grad, "w": w.grad, "b": b.grad}
        expected = {
            name: moved(tensor.numpy(), last) if name in "yx" else tensor.numpy()
            for name, tensor in tensors.items()
        }
        compare(case, run(case, arrays, last), expected, "float32")


@settings(max_examples=100, deadline=None)
@given(
    case=any_case(),
    last=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    isa=st.sampled_from(tbptt_fast.available_isas()),
    threads=st.integers(1, 3),
)
def test_any_integers_are_exact(case: Case, last: bool, dtype: str, isa: Any, threads: int) -> None:
    arrays = case.arrays(dtype, integers=True)
    expected = expected_of(case, arrays, last, None)
    with tbptt_fast.isa(isa), tbptt_fast.num_threads(threads):
        for name, value in run(case, arrays, last).items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)


# --- Edges --------------------------------------------------------------------------------------

# One of every way that a convolution may go: dense, 1 by 1, few channels, groups, depthwise, 1-D.
WAYS = (
    Case(2, 20, 18, (6, 7), (3, 3), padding=(same(1), same(1))),
    Case(2, 17, 16, (5, 4), (1, 1)),
    Case(2, 3, 8, (9, 8), (3, 2), (2, 1), ((1, 0), (0, 1))),
    Case(2, 2, 3, (6, 7), (3, 3), (1, 2), (same(1), same(2)), (2, 1), groups=3),
    Case(2, 1, 1, (7, 6), (3, 3), (2, 1), (same(1), same(1)), groups=5),
    Case(2, 4, 3, (9,), (3,), (2,), (same(1),), (2,)),
)
ways = pytest.mark.parametrize("case", WAYS, ids=str)

VIEWS: dict[str, Callable[[Any], Any]] = {
    "sliced": sliced,
    "reversed": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "last axis reversed": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "Fortran": np.asfortranarray,
    "unaligned": lambda a: unaligned(a),
}


def unaligned(array: Any) -> Any:
    memory = np.empty(array.nbytes + 1, np.uint8)
    view = memory[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    assert array.size == 0 or not view.flags.aligned
    return view


@dtypes
@layouts
@ways
@pytest.mark.parametrize("view", VIEWS)
def test_any_view_gives_the_same_bits(case: Case, dtype: str, last: bool, view: str) -> None:
    """Read-only ones, too, and they are as before."""
    arrays = case.arrays(dtype)
    others = [VIEWS[view](a) for a in arrays]
    for other in others:
        other.flags.writeable = False
    assert_identical(run(case, others, last, "tanh"), run(case, arrays, last, "tanh"))
    for other, array in zip(others, arrays, strict=True):
        np.testing.assert_array_equal(other, array)


@layouts
@ways
def test_gradients_by_finite_differences(case: Case, last: bool) -> None:
    """Along random directions through all of x, w and b at once."""
    arrays, step = case.arrays("float64"), 1e-6
    grads = run(case, arrays, last, "sigmoid")
    op = getattr(tbptt_fast, f"conv{len(case.size)}d")
    options = {**case.options, "activation": "sigmoid", "layout": layout_of(case, last)}
    rng = np.random.default_rng(0)
    for _ in range(5):
        ways_to_go = [rng.normal(size=a.shape) for a in arrays[:3]]
        sums = []
        for sign in (1, -1):
            x, w, b = (a + sign * step * d for a, d in zip(arrays[:3], ways_to_go, strict=True))
            y = op(moved(x, last), w, b, **options)
            sums.append(float((y * moved(arrays[3], last)).sum()))
        numeric = (sums[0] - sums[1]) / (2 * step)
        terms = [
            float((grads[name] * (moved(d, last) if name == "x" else d)).sum())
            for name, d in zip("xwb", ways_to_go, strict=True)
        ]
        assert sum(terms) == pytest.approx(numeric, rel=1e-6, abs=1e-6)


@native
@layouts
@ways
def test_empty_batch(case: Case, last: bool) -> None:
    empty = Case(**{**vars(case), "batch": 0})
    x, w, b, _ = case.arrays("float32")
    grad = np.empty((0, *reference.conv(x, w, **case.options).shape[1:]), np.float32)
    found = run(empty, [x[:0], w, b, grad], last)
    assert found["y"].shape == moved(grad, last).shape
    assert found["x"].shape == moved(x[:0], last).shape
    np.testing.assert_array_equal(found["w"], np.zeros_like(w))
    np.testing.assert_array_equal(found["b"], np.zeros_like(b))


@native
@layouts
def test_no_channels(last: bool) -> None:
    """Without inputs the output is the bias; without outputs there is none."""
    x, w, b = np.ones((2, 0, 5, 6)), np.ones((3, 0, 2, 2)), np.arange(3.0)
    layout: Any = "NHWC" if last else "NCHW"
    y = tbptt_fast.conv2d(moved(x, last), w, b, layout=layout)
    np.testing.assert_array_equal(y, moved(np.broadcast_to(b[:, None, None], (2, 3, 4, 5)), last))
    grads = tbptt_fast.conv2d_backward(y, moved(x, last), w, layout=layout)
    assert grads.x is not None
    assert grads.x.shape == moved(x, last).shape
    np.testing.assert_array_equal(grads.b, 40 * b)
    x, w = np.ones((2, 3, 5, 6)), np.ones((0, 3, 2, 2))
    y = tbptt_fast.conv2d(moved(x, last), w, None, layout=layout)
    assert y.shape == moved(np.empty((2, 0, 4, 5)), last).shape
    grads = tbptt_fast.conv2d_backward(y, moved(x, last), w, layout=layout)
    np.testing.assert_array_equal(grads.x, np.zeros_like(moved(x, last)))


# x, w, options and the error: planes without values, and kernels that reach over the padding.
TOO_LARGE: list[tuple[Ints, Ints, dict[str, Any], str]] = [
    ((2, 4, 0, 6), (3, 4, 1, 1), {}, "w: expected a kernel within the padded height 0, got size 1"),
    ((2, 4, 6, 0), (3, 4, 1, 1), {}, "w: expected a kernel within the padded width 0, got size 1"),
    ((2, 4, 5, 6), (3, 4, 6, 1), {}, "w: expected a kernel within the padded height 5, got size 6"),
    (
        (2, 4, 5, 6),
        (3, 4, 3, 9),
        {"padding": (0, 1)},
        "w: expected a kernel within the padded width 8, got size 9",
    ),
    (
        (2, 4, 5, 6),
        (3, 4, 3, 3),
        {"dilation": (1, 4), "padding": ((0, 0), (2, 0))},
        "w: expected a kernel within the padded width 8, got size 3 with dilation 4",
    ),
    ((2, 4, 5, 6), (3, 4, 0, 3), {}, "w: expected a kernel with at least one element, got shape"),
    ((2, 4, 6), (3, 4, 7), {}, "w: expected a kernel within the padded width 6, got size 7"),
    ((2, 4, 0), (3, 4, 1), {}, "w: expected a kernel within the padded width 0, got size 1"),
]


@pytest.mark.parametrize(("x", "w", "options", "text"), TOO_LARGE, ids=str)
def test_no_output_is_a_clear_error(x: Ints, w: Ints, options: dict[str, Any], text: str) -> None:
    name = f"conv{len(x) - 2}d"
    images, weights = np.ones(x, np.float32), np.ones(w, np.float32)
    with pytest.raises(ValueError, match=message(f"{name}: {text}")):
        getattr(tbptt_fast, name)(images, weights, **options)
    backward = f"{name}_backward"
    with pytest.raises(ValueError, match=message(f"{backward}: {text}")):
        getattr(tbptt_fast, backward)(images, images, weights, **options)


@native
@layouts
def test_images_of_nothing_but_padding(last: bool) -> None:
    """A plane without values is one of zeros as soon as it is padded."""
    x, w, b = np.ones((2, 3, 0, 4)), np.ones((5, 3, 2, 2)), np.arange(5.0)
    options: Any = {"padding": ((1, 2), (0, 0)), "layout": "NHWC" if last else "NCHW"}
    y = tbptt_fast.conv2d(moved(x, last), w, b, **options)
    np.testing.assert_array_equal(y, moved(np.broadcast_to(b[:, None, None], (2, 5, 2, 3)), last))
    grads = tbptt_fast.conv2d_backward(y, moved(x, last), w, **options)
    assert grads.x is not None
    assert grads.x.shape == moved(x, last).shape
    np.testing.assert_array_equal(grads.w, np.zeros_like(w))
    np.testing.assert_array_equal(grads.b, 12 * b)
