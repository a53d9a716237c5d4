"""Weights packed once: the same bits as plain arrays, each form made once, shared by threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import tbptt_fast

from .cases import assert_identical
from .test_convolution import Case, dtypes, layouts, native, run, same

PADDED = (same(1), same(1))
CASES = (
    Case(2, 17, 33, (9, 8), (3, 3), padding=PADDED),
    Case(2, 48, 64, (24, 24), (3, 3), padding=PADDED),  # where float32 goes Winograd's way
    Case(1, 20, 18, (9, 9), (3, 2), stride=(2, 2), padding=PADDED),
    Case(2, 4, 6, (7, 8), (5, 5), padding=(same(2), same(2)), groups=3),
    Case(2, 1, 1, (9, 8), (3, 3), padding=PADDED, groups=19),
)
cases = pytest.mark.parametrize("case", CASES, ids=str)


@native
@cases
@dtypes
@layouts
def test_same_bits_and_forms_made_once(case: Case, dtype: str, last: bool) -> None:
    x, w, b, grad = case.arrays(dtype)
    expected = run(case, [x, w, b, grad], last, "tanh", algo="auto")
    packed: Any = tbptt_fast.pack_conv2d(w)
    assert packed.nbytes == 0
    assert_identical(run(case, [x, packed, b, grad], last, "tanh", algo="auto"), expected)
    size = packed.nbytes
    for _ in range(2):
        assert_identical(run(case, [x, packed, b, grad], last, "tanh", algo="auto"), expected)
    assert packed.nbytes == size
    if last and case.groups == 1:
        assert size >= w.nbytes * 2  # forward and backward


@layouts
def test_one_handle_for_every_use(last: bool) -> None:
    """Forms of other algorithms, directions, groups and ISAs never meet."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(16, 16, 3, 3)).astype("f4")
    packed: Any = tbptt_fast.pack_conv2d(w)
    x = rng.normal(size=(2, 12, 13, 16) if last else (2, 16, 12, 13)).astype("f4")
    wide = np.concatenate([x, -x], axis=-1 if last else 1)
    layout: Any = "NHWC" if last else "NCHW"
    for _ in range(2):
        for isa in tbptt_fast.available_isas():
            with tbptt_fast.isa(isa):
                for algo in ("auto", "direct", "winograd_2x2", "winograd_4x4"):
                    for images, groups in ((x, 1), (wide, 2)):
                        more: Any = {"algo": algo, "layout": layout, "groups": groups}
                        np.testing.assert_array_equal(
                            tbptt_fast.conv2d(images, packed, **more),
                            tbptt_fast.conv2d(images, w, **more),
                        )
                    more = {"algo": algo, "layout": layout, "padding": 1}
                    np.testing.assert_array_equal(
                        tbptt_fast.conv_transpose2d(x, packed, **more),
                        tbptt_fast.conv_transpose2d(x, w, **more),
                    )
                for stride in ((1, 1), (2, 1), (2, 3)):
                    more = {"layout": layout, "stride": stride, "algo": "direct"}
                    np.testing.assert_array_equal(
                        tbptt_fast.conv_transpose2d(x, packed, **more),
                        tbptt_fast.conv_transpose2d(x, w, **more),
                    )


def test_a_copy_that_nobody_changes() -> None:
    x, w = np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3))
    packed = tbptt_fast.pack_conv2d(w)
    w[:] = 2
    assert tbptt_fast.conv2d(x, packed).item() == 9
    assert packed.w.shape == (1, 1, 3, 3)
    assert not packed.w.flags.writeable
    assert isinstance(packed, tbptt_fast.PackedConv2d)
    with pytest.raises(ValueError, match="read-only"):
        packed.w[:] = 3


def test_shared_by_threads() -> None:
    """Calls that ask for a form while another one makes it do not wait, and are right."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(1, 9, 9, 64)), rng.normal(size=(64, 64, 3, 3))
    expected = tbptt_fast.conv2d(x, w, layout="NHWC")
    for _ in range(5):
        packed = tbptt_fast.pack_conv2d(w)
        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(tbptt_fast.conv2d, x, packed, layout="NHWC") for _ in range(12)]
            for call in calls:
                np.testing.assert_array_equal(call.result(), expected)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="pack_conv2d: w: expected 4 dimensions"):
        tbptt_fast.pack_conv2d(np.ones((2, 2, 3)))
    with pytest.raises(TypeError, match="pack_conv2d: w: expected dtype float32 or float64"):
        tbptt_fast.pack_conv2d(np.ones((2, 2, 3, 3), int))
    packed = tbptt_fast.pack_conv2d(np.ones((2, 2, 3, 3)))
    with pytest.raises(TypeError, match="conv2d: w: expected dtype float32"):
        tbptt_fast.conv2d(np.ones((1, 2, 5, 5), np.float32), packed)
    with pytest.raises(ValueError, match="conv2d: w: expected 3 input channels per group"):
        tbptt_fast.conv2d(np.ones((1, 3, 5, 5)), packed)
