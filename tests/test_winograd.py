"""Winograd's filtering against the oracle: tiles, borders, channels, layouts, stated error."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tbptt_fast
from tbptt_fast import reference_convolution as reference

from .cases import DTYPES, assert_identical
from .test_convolution import Case, dtypes, expected_of, layouts, moved, native, run, same

Tile = Literal["winograd_2x2", "winograd_4x4"]

# In units of the greatest element of the result, and of epsilon: what rounding in the transforms
# adds up to, for the few channels here and for normal numbers.
BOUND = {"winograd_2x2": 40, "winograd_4x4": 200}
KERNEL = (3, 3)
PADDED = (same(1), same(1))
CASES = (
    Case(1, 1, 1, (3, 3), KERNEL),
    Case(1, 1, 1, (1, 1), KERNEL, padding=PADDED),
    Case(2, 3, 5, (4, 4), KERNEL, padding=PADDED),
    Case(1, 16, 17, (7, 9), KERNEL, padding=((0, 2), (3, 1))),
    Case(5, 33, 31, (7, 7), KERNEL, padding=PADDED),
    Case(3, 65, 70, (14, 15), KERNEL, padding=PADDED),
    Case(2, 130, 150, (6, 5), KERNEL, padding=(same(2), same(0))),
    Case(1, 2, 3, (3, 150), KERNEL, padding=(same(0), same(3))),
    Case(1, 3, 2, (150, 4), KERNEL, padding=PADDED),
    Case(2, 5, 20, (9, 10), KERNEL, padding=PADDED, groups=3),
    Case(2, 8, 8, (5, 6), KERNEL, padding=PADDED, groups=2),  # together as wide as a vector
)

cases = pytest.mark.parametrize("case", CASES, ids=str)
tiles = pytest.mark.parametrize("tile", BOUND)


def assert_within(actual: Any, expected: Any, tile: str, name: str, least: float = 1e-30) -> None:
    assert actual.shape == expected.shape, name
    scale = np.abs(expected).max(initial=least)
    error = np.abs(actual - expected).max(initial=0) / scale
    assert error <= BOUND[tile] * np.finfo(actual.dtype).eps, f"{name}: {error}"


@native
@cases
@dtypes
@layouts
@tiles
def test_winograd(case: Case, dtype: str, last: bool, tile: Tile) -> None:
    arrays = case.arrays(dtype)
    expected = expected_of(case, arrays, last, None)
    for name, value in run(case, arrays, last, algo=tile).items():
        assert value.dtype == dtype
        assert_within(value, expected[name], tile, name)


@native
@layouts
@tiles
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_activation(last: bool, tile: Tile, activation: str) -> None:
    case = CASES[3]
    arrays = case.arrays("float32")
    expected = expected_of(case, arrays, last, activation)
    for name, value in run(case, arrays, last, activation, algo=tile).items():
        assert_within(value, expected[name], tile, name)


@native
@cases
@layouts
def test_small_integers_are_exact_with_small_tiles(case: Case, last: bool) -> None:
    arrays = case.arrays("float32", integers=True)
    expected = expected_of(case, arrays, last, None)
    for name, value in run(case, arrays, last, algo="winograd_2x2").items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.usefixtures("isa")
@cases
@layouts
@tiles
def test_bits_do_not_depend_on_threads(case: Case, last: bool, tile: Tile) -> None:
    arrays = case.arrays("float32")
    with tbptt_fast.num_threads(1):
        alone = run(case, arrays, last, algo=tile)
    for threads in (2, 3, 5):
        with tbptt_fast.num_threads(threads):
            assert_identical(run(case, arrays, last, algo=tile), alone)


@native
@layouts
@tiles
@pytest.mark.parametrize("sizes", [(0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
def test_nothing_to_filter(last: bool, tile: Tile, sizes: tuple[int, int, int]) -> None:
    """Without images or channels there are only biases, and gradients of zero."""
    batch, inputs, outputs = sizes
    x, w = np.ones((batch, inputs, 5, 6), np.float32), np.ones((outputs, inputs, 3, 3), np.float32)
    more: dict[str, Any] = {"padding": 1, "layout": "NHWC" if last else "NCHW", "algo": tile}
    y = tbptt_fast.conv2d(moved(x, last), w, np.ones(outputs, np.float32), **more)
    assert np.all(y == 1)
    grads = tbptt_fast.conv2d_backward(y, moved(x, last), w, **more)
    assert grads.x is not None
    assert grads.w is not None
    assert not grads.x.any()
    assert not grads.w.any()


@native
@dtypes
@layouts
@tiles
def test_transposed(dtype: str, last: bool, tile: Tile) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 20, 9, 11)).astype(dtype), rng.normal(size=(20, 17, 3, 3))
    options: dict[str, Any] = {"padding": ((1, 0), (2, 1)), "layout": "NHWC" if last else "NCHW"}
    images = np.ascontiguousarray(moved(x, last))
    found, exact = (
        tbptt_fast.conv_transpose2d(images, w.astype(dtype), algo=algo, **options)
        for algo in (tile, "direct")
    )
    assert_within(found, exact, tile, "y")
    grad = rng.normal(size=found.shape).astype(dtype)
    found_grads, exact_grads = (
        tbptt_fast.conv_transpose2d_backward(grad, images, w.astype(dtype), algo=algo, **options)
        for algo in (tile, "direct")
    )
    for name in "xwb":
        assert_within(getattr(found_grads, name), getattr(exact_grads, name), tile, name)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 4),
    channels=st.tuples(*[st.sampled_from([1, 2, 15, 16, 17, 40, 64, 65])] * 2),
    size=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    sides=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=2, max_size=2),
    last=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    tile=st.sampled_from(sorted(BOUND)),
)
def test_any_size(
    batch: int, channels: Any, size: Any, sides: Any, last: bool, dtype: str, tile: Tile
) -> None:
    case = Case(batch, channels[0], channels[1], size, KERNEL, padding=tuple(sides))
    arrays = case.arrays(dtype)
    expected = expected_of(case, arrays, last, None)
    # A sum may happen to cancel; else it is about this much smaller than its terms.
    terms = expected_of(case, [np.abs(a) for a in arrays], last, None)
    for name, value in run(case, arrays, last, algo=tile).items():
        least = np.abs(terms[name]).max() * case.length**-0.5
        assert_within(value, expected[name], tile, name, least)


@native
@layouts
@pytest.mark.parametrize(("tile", "bound"), [("winograd_2x2", 1e-5), ("winograd_4x4", 5e-5)])
def test_stated_error(last: bool, tile: Tile, bound: float) -> None:
    """What `conv2d` states, at its greatest depth; automatic choice promises 1e-4."""
    case = Case(1, 1024, 48, (12, 12), KERNEL, padding=PADDED)
    arrays = case.arrays("float32")
    x, w = (a.astype("f8") for a in arrays[:2])
    y = reference.conv(x, w, **case.options)
    found = tbptt_fast.conv2d(
        moved(arrays[0], last), arrays[1], padding=1, layout="NHWC" if last else "NCHW", algo=tile
    )
    error = np.abs(moved(y, last) - found).max() / np.abs(y).max()
    assert 1e-8 < error <= bound


@layouts
def test_automatic_choice(last: bool) -> None:
    """Winograd's way in float32 where it is worth it; the direct way for doubles and few tiles."""

    def equal(case: Case, dtype: str, algo: str) -> bool:
        arrays = case.arrays(dtype)
        found, other = (run(case, arrays, last, algo=a) for a in ("auto", algo))
        return all(np.array_equal(found[name], other[name]) for name in found)

    large = Case(2, 48, 64, (24, 24), KERNEL, padding=PADDED)
    assert equal(large, "float32", "winograd")
    assert not equal(large, "float32", "direct")
    assert equal(large, "float64", "direct")
    assert equal(Case(1, 48, 64, (4, 4), KERNEL, padding=PADDED), "float32", "direct")
