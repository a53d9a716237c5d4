"""Dropout: its generator, its mask by key and index alone, and the module."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import nn
from tbptt_fast import reference_norm as reference

from .cases import DTYPES, assert_identical
from .test_boundary import message

dtypes = pytest.mark.parametrize("dtype", DTYPES)

# Known answers of Philox 4x32-10 (the tests of Random123): counter, key, words.
KNOWN: tuple[tuple[tuple[int, ...], tuple[int, int], tuple[int, ...]], ...] = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_the_oracle_is_philox(counter: Any, key: Any, words: Any) -> None:
    assert reference.philox4x32(np.array(counter), key).tolist() == list(words)


@pytest.mark.usefixtures("isa", "threads")
@dtypes
@pytest.mark.parametrize("count", [0, 1, 7, 8, 31, 32, 33, 97, 20011])
@pytest.mark.parametrize("p", [0.0, 2**-32, 0.1, 0.5, 0.75, 0.999])
def test_dropout(dtype: str, count: int, p: float) -> None:
    """The mask exactly; the values up to the one rounding of the scale."""
    x = np.random.default_rng(count).normal(size=count).astype(dtype) + np.array(3, dtype)
    for key in (0, 5, 2**32 + 1, 2**63 - 1):
        y = tbptt_fast.dropout(x, p, key)
        expected = reference.dropout(x, p, key)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y != 0, expected != 0)
        np.testing.assert_allclose(y, expected, rtol=2 * float(np.finfo(dtype).eps))
        assert_identical({"x": tbptt_fast.dropout_backward(x, p, key)}, {"x": y})


@pytest.mark.parametrize("p", [0.01, 0.3, 0.9])
def test_the_share_of_dropped_elements_is_p(p: float) -> None:
    """Within five deviations, for every key and every lane of a group of 32; keys are apart."""
    count, keys = 32 * 400, 50
    ones = np.ones(count, np.float32)
    dropped = np.array([tbptt_fast.dropout(ones, p, key) == 0 for key in range(keys)])
    error = 5 * np.sqrt(p * (1 - p))
    assert abs(dropped.mean() - p) < error / np.sqrt(dropped.size)
    by_key, by_lane = dropped.mean(axis=1), dropped.reshape(-1, 32).mean(axis=0)
    assert np.abs(by_key - p).max() < error / np.sqrt(count)
    assert np.abs(by_lane - p).max() < error / np.sqrt(dropped.size / 32)
    pairs = np.corrcoef(dropped)[~np.eye(keys, dtype=bool)]
    assert np.abs(pairs).max() < 6 / np.sqrt(count)


def test_the_mask_depends_on_key_and_index_only() -> None:
    """Not on the dtype, the shape, the values, the threads or the instruction set."""
    rng = np.random.default_rng(0)
    wanted = reference.dropout_mask(60 * 1000, 0.4, 9)
    for isa in tbptt_fast.available_isas():
        for threads in (1, 2, 3, 8):
            for dtype in DTYPES:
                for shape in ((60, 1000), (3, 4, 5, 1000), (60 * 1000,)):
                    x = rng.uniform(1, 2, shape).astype(dtype)
                    with tbptt_fast.isa(isa), tbptt_fast.num_threads(threads):
                        y = tbptt_fast.dropout(x, 0.4, 9)
                    assert y.shape == shape
                    np.testing.assert_array_equal(y.ravel() != 0, wanted)
    shorter = tbptt_fast.dropout(np.ones(777), 0.4, 9)
    np.testing.assert_array_equal(shorter != 0, wanted[:777])


@pytest.mark.usefixtures("isa")
@dtypes
def test_dropout_selects(dtype: str) -> None:
    """What is dropped is +0, whatever it was; what is kept travels as IEEE says."""
    mask = reference.dropout_mask(64, 0.5, 3)
    for value in (np.nan, np.inf, -1.0):
        y = tbptt_fast.dropout(np.full(64, value, dtype), 0.5, 3)
        np.testing.assert_array_equal(y[mask], np.full(mask.sum(), 2 * value))
        assert not np.signbit(y[~mask]).any()
        np.testing.assert_array_equal(y[~mask], 0)


def test_dropout_takes_any_layout_and_changes_no_input() -> None:
    x = np.random.default_rng(0).normal(size=(40, 30))
    x.flags.writeable = False
    kept = x.copy()
    expected = tbptt_fast.dropout(np.ascontiguousarray(x.T[::2, ::-3]), 0.5, 1)
    np.testing.assert_array_equal(tbptt_fast.dropout(x.T[::2, ::-3], 0.5, 1), expected)
    np.testing.assert_array_equal(x, kept)
    assert tbptt_fast.dropout(np.array(1.5), 0.0, 0).shape == ()
    assert tbptt_fast.dropout(np.zeros((2, 0, 3)), 0.5, 0).shape == (2, 0, 3)


# p, key, and the error.
WRONG: list[tuple[Any, Any, type[Exception], str]] = [
    (1.0, 0, ValueError, "p: expected a number in [0, 1), got 1.0"),
    (-0.1, 0, ValueError, "p: expected a number in [0, 1), got -0.1"),
    (np.nan, 0, ValueError, "p: expected a number in [0, 1), got nan"),
    ("0.5", 0, TypeError, "p: expected a number in [0, 1), got str"),
    (0.5, -1, ValueError, "key: expected an integer >= 0, got -1"),
    (0.5, 2**63, ValueError, "key: expected an integer below 2**63, got 9223372036854775808"),
    (0.5, 1.0, TypeError, "key: expected an integer, got float"),
    (0.5, None, TypeError, "key: expected an integer, got NoneType"),
]


@pytest.mark.parametrize(("p", "key", "error", "text"), WRONG)
def test_wrong_arguments(p: Any, key: Any, error: type[Exception], text: str) -> None:
    for op in ("dropout", "dropout_backward"):
        with pytest.raises(error, match=message(f"{op}: {text}")):
            getattr(tbptt_fast, op)(np.ones(3), p, key)


def test_wrong_arrays() -> None:
    with pytest.raises(TypeError, match=message("dropout: x: expected an array, got list")):
        tbptt_fast.dropout([1.0], 0.5, 0)
    with pytest.raises(
        TypeError, match=message("dropout: x: expected dtype float32 or float64, got int")
    ):
        tbptt_fast.dropout(np.ones(3, int), 0.5, 0)
    with pytest.raises(
        TypeError, match=message("dropout_backward: grad_out: expected dtype float32")
    ):
        tbptt_fast.dropout_backward(np.ones(3, bool), 0.5, 0)


# --- The module ---------------------------------------------------------------------------------


@dtypes
def test_module(dtype: str) -> None:
    dropout, x = nn.Dropout(0.5, seed=1), np.ones((5, 4, 30), dtype)
    masks = dropout.rng_state()
    y, state, tape = dropout.forward(x)
    assert state is None
    assert tape.nbytes == 0, "the mask is not stored"
    assert set(np.unique(y)) == {0, 2}
    grads = dropout.backward(tape, np.full_like(x, 3))
    assert_identical({"x": grads.x}, {"x": 3 * y})
    assert grads.params == {}
    assert dropout.backward(tape, x, needs_x=False).x is None
    assert not np.array_equal(dropout.forward(x)[0], y), "every call draws a mask of its own"
    dropout.set_rng_state(masks)
    assert_identical({"y": dropout.forward(x)[0]}, {"y": y})
    assert dropout.state_dict() == {}


def test_module_rests_in_evaluation_and_without_a_tape() -> None:
    dropout, x = nn.Dropout(0.9, seed=1), np.ones((5, 4, 3))
    masks = dropout.rng_state()
    np.testing.assert_array_equal(dropout(x)[0], x)
    y, _, tape = dropout.eval().forward(x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(dropout.backward(tape, 2 * x).x, 2 * x)
    assert dropout.rng_state() == masks
    y, _, tape = nn.Dropout(0.0).forward(x)
    np.testing.assert_array_equal(y, x)


def test_module_names_what_is_wrong() -> None:
    for p in (1.0, -0.1, np.nan):
        with pytest.raises(ValueError, match=message(f"Dropout: p: expected …got {p!r}")):
            nn.Dropout(p)
    with pytest.raises(ValueError, match=message("Dropout: state: expected None")):
        nn.Dropout().forward(np.ones(3), state=())
    dropout = nn.Dropout()
    tape = dropout.forward(np.ones(3))[2]
    with pytest.raises(
        TypeError, match=message("Dropout.backward: grad_y: expected an array, got None")
    ):
        dropout.backward(tape, None)
    with pytest.raises(
        ValueError, match=message("Dropout.backward: tape: expected one of this module")
    ):
        nn.Dropout().backward(tape, np.ones(3))
