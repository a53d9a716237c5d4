"""Recurrent layers of many rows, of long ones, or with weights that no block can keep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from .cases import CELLS, assert_identical, forward, make_masks, make_problem, run, shape_id
from .cuda_cases import PRECISIONS, Device, EmulatedDevice
from .test_cuda_bfloat16 import BFLOAT16
from .test_cuda_bfloat16 import check as check_bfloat16
from .test_cuda_recurrent import check

# Near a kink of relu no bound holds; exact products alone are near enough for so many values.
ROUNDED_CELLS = [cell for cell in CELLS if cell != "rnn_relu"]
# More rows than are worth to be read again by each block, or than clusters take.
MANY = ((3, 520, 3, 24), (2, 2200, 2, 40))
# Rows for which only weights that do not stay ask for tiles.
SOME = (5, 40, 6, 40)
WIDE = (4, 40, 3, 104)  # also on a device of several blocks

cells = pytest.mark.parametrize("cell", CELLS)


def many_options(cell: str) -> list[tuple[str, str]]:
    return [(d, p) for d, p in PRECISIONS if cell != "rnn_relu" or (d, p) != ("float32", "tf32")]


@cells
@pytest.mark.parametrize("shape", MANY, ids=shape_id)
def test_many_rows(device: Device, cell: str, shape: Any) -> None:
    for dtype, precision in many_options(cell):
        check(device, cell, shape, dtype, precision)
    check(device, cell, shape, "float32", "highest", "both", (1, 2))


@pytest.mark.parametrize("cell", ROUNDED_CELLS)
@pytest.mark.parametrize("shape", MANY, ids=shape_id)
def test_many_rows_in_bfloat16(device: Device, cell: str, shape: Any) -> None:
    check_bfloat16(device, cell, shape)
    check_bfloat16(device, cell, shape, "both", (1, 2))


@cells
@pytest.mark.parametrize("truncation", [None, 2, (1, 3)], ids=str)
def test_windows_are_rows_of_tiles(device: Device, cell: str, truncation: Any) -> None:
    """Few rows of a long sequence become many, of several lengths."""
    for masks in ("plain", "both"):
        check(device, cell, (131, 5, 3, 12), "float64", "tf32", masks, truncation)


@cells
@pytest.mark.parametrize(("multiprocessors", "shared_kb", "capability"), [(1, 64, 75), (2, 99, 90)])
def test_weights_that_do_not_stay(
    emulated: EmulatedDevice, cell: str, multiprocessors: int, shared_kb: int, capability: int
) -> None:
    emulated.resize(multiprocessors, shared_kb << 10, capability=capability)
    for masks, truncation in (("plain", None), ("both", (1, 2)), ("both", 3)):
        for dtype, precision in many_options(cell):
            check(emulated, cell, SOME, dtype, precision, masks, truncation)
        if capability >= 80 and cell != "rnn_relu":
            check_bfloat16(emulated, cell, SOME, masks, truncation)


@cells
@pytest.mark.parametrize("dtype", ["float32", "float64", BFLOAT16], ids=str)
def test_neither_the_device_nor_an_order_of_threads_changes_a_bit(
    emulated: EmulatedDevice, cell: str, dtype: Any
) -> None:
    masks, problem = make_masks("both", WIDE, dtype), make_problem(cell, WIDE, dtype)
    emulated.resize(1)
    first = run(emulated.ops(), problem, **masks, truncation=(1, 3))
    for multiprocessors, seed in ((1, 1), (2, 2), (3, 3)):
        emulated.resize(multiprocessors)
        with emulated.order(seed):
            found = run(emulated.ops(), problem, **masks, truncation=(1, 3))
        assert_identical(found, first)
    if dtype is BFLOAT16:  # whose rounding hides in which order was added
        return
    emulated.resize(132, 227 << 10, capability=80)  # which keeps the weights, and adds otherwise
    other = run(emulated.ops(), problem, **masks, truncation=(1, 3))
    assert (other["grad_x"] != first["grad_x"]).any()


@cells
def test_a_reset_lets_no_nan_through(emulated: EmulatedDevice, cell: str) -> None:
    """Nor does it where a tile has rows that begin and rows that go on."""
    emulated.resize(1)
    problem = make_problem(cell, SOME, "float32")
    assert problem.hx is not None
    is_init = np.zeros(SOME[:2], bool)
    is_init[0, ::3] = True
    hx = tuple(state.copy() for state in problem.hx)
    for state in hx:
        state[::3] = np.nan
    found = run(emulated.ops(), replace(problem, hx=hx), is_init=is_init)
    assert all(np.isfinite(value).all() for value in found.values())


@cells
def test_inference_gives_the_same_bits(emulated: EmulatedDevice, cell: str) -> None:
    emulated.resize(1)
    problem = make_problem(cell, SOME, "float32")
    for mask in (None, make_masks("is_init", SOME)["is_init"]):
        out, *_ = forward(emulated.ops(), problem, is_init=mask, training=True)
        out_only, *_ = forward(emulated.ops(), problem, is_init=mask, training=False)
        assert_identical({"out": out_only}, {"out": out})


@cells
def test_clusters_that_share_the_depth(device: Device, cell: str) -> None:
    """Blocks have a slice of the depth, for rows that are long or many."""
    shape = (2, 500, 3, 200)
    if isinstance(device, EmulatedDevice):
        shape = (2, 500, 3, 68)
        device.resize(24, 227 << 10)
    for dtype, precision in many_options(cell)[::-1]:
        check(device, cell, shape, dtype, precision)
    check(device, cell, (3, 170, 3, 68), "float32", "highest", "both", (1, 2))
    if cell != "rnn_relu":
        check_bfloat16(device, cell, (2, 500, 3, 136), "both", 2)


@pytest.mark.parametrize(("cell", "hidden"), [("rnn_tanh", 1024), ("lstm", 256)])
def test_clusters_that_share_the_depth_of_few_rows(
    emulated: EmulatedDevice, cell: str, hidden: int
) -> None:
    """Of a plain layer in both directions, of the LSTM in the backward pass."""
    emulated.resize(160, 80 << 10)
    first = check(emulated, cell, (2, 32, 3, hidden), "float32", "highest", "both")
    emulated.resize(160, 80 << 10, capability=89)  # no clusters, another order
    other = check(emulated, cell, (2, 32, 3, hidden), "float32", "highest", "both")
    assert (other["grad_x"] != first["grad_x"]).any()


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_no_order_of_blocks_in_clusters_changes_a_bit(emulated: EmulatedDevice, cell: str) -> None:
    emulated.resize(24, 227 << 10)
    shape = (2, 500, 3, 68)
    masks, problem = make_masks("both", shape, "float32"), make_problem(cell, shape, "float32")
    first = run(emulated.ops(), problem, **masks)
    with emulated.order(1):
        assert_identical(run(emulated.ops(), problem, **masks), first)
    emulated.resize(24, 227 << 10, capability=89)  # which has none, and adds in another order
    other = run(emulated.ops(), problem, **masks)
    assert (other["out"] != first["out"]).any()
    assert (other["grad_x"] != first["grad_x"]).any()
