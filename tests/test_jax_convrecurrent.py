"""convrnn, convgru and convlstm for JAX: the bits of the primitives, and the oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import reference_convrecurrent as reference

from . import convrecurrent_cases as cases
from .cases import DTYPES
from .convrecurrent_cases import CELLS, LAYOUTS, SHAPES, SMALL, Shape, channels_last, make_masks
from .jax_cases import assert_same_bits, run_conv

pytestmark = pytest.mark.usefixtures("x64")

cells = pytest.mark.parametrize("cell", CELLS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
IMAGES = ("out", "h_n", "c_n", "grad_x", "grad_h0", "grad_c0")


def expected(problem: cases.Problem, layout: str = "NCHW", **options: Any) -> dict[str, Any]:
    """What the primitives give, in the layout of the call."""
    found = cases.run(tbptt_fast, problem, layout, **options)
    if layout == "NCHW":
        return found
    images = (*IMAGES, "grad_peephole") if problem.cell == "lstm_map" else IMAGES
    return {name: channels_last(a) if name in images else a for name, a in found.items()}


@cells
@pytest.mark.parametrize("dtype", DTYPES)
@layouts
@pytest.mark.parametrize("truncation", [None, (1, 2)], ids=str)
def test_the_bits_of_the_primitives(cell: str, dtype: str, layout: str, truncation: Any) -> None:
    problem = cases.make_problem(cell, SMALL, dtype)
    options = make_masks(problem) | {"truncation": truncation}
    assert_same_bits(
        problem, run_conv(problem, layout, **options), expected(problem, layout, **options)
    )


@cells
@pytest.mark.usefixtures("isa", "threads")
def test_every_instruction_set(cell: str) -> None:
    problem = cases.make_problem(cell, SMALL, "float32")
    assert_same_bits(problem, run_conv(problem), expected(problem))


@cells
@pytest.mark.parametrize("shape", SHAPES[3:6], ids=str)
def test_shapes(cell: str, shape: Shape) -> None:
    problem = cases.make_problem(cell, shape, "float32")
    assert_same_bits(problem, run_conv(problem), expected(problem))


@cells
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "missing", [("hx",), ("b_ih",), ("b_hh",), ("hx", "b_ih", "b_hh")], ids=str
)
def test_what_may_be_missing(cell: str, recompute: bool, missing: tuple[str, ...]) -> None:
    problem = replace(cases.make_problem(cell, SMALL, "float32"), **dict.fromkeys(missing))
    actual = run_conv(problem, recompute=recompute)
    assert_same_bits(problem, actual, expected(problem, recompute=recompute))


@cells
@pytest.mark.parametrize("sizes", [(0, 3, 4, 5), (3, 0, 4, 5)], ids=str)
def test_nothing_to_do(cell: str, sizes: tuple[int, int, int, int]) -> None:
    problem = cases.make_problem(cell, Shape(sizes, (4, 3)), "float32")
    options = make_masks(problem) | {"truncation": 2}
    for given in (problem, replace(problem, hx=None)):
        assert_same_bits(given, run_conv(given, **options), expected(given, **options))


@cells
@pytest.mark.parametrize("truncation", [None, (2, 3)], ids=str)
def test_the_oracle(cell: str, truncation: Any) -> None:
    problem = cases.make_problem(cell, SMALL)
    options = make_masks(problem) | {"truncation": truncation}
    cases.compare(problem, run_conv(problem, **options), cases.run(reference, problem, **options))


def test_dilation_is_a_number_or_a_pair() -> None:
    problem = cases.make_problem("gru", Shape((2, 1, 2, 3), (5, 5), dilation=(2, 2)), "float32")
    one = replace(problem, shape=replace(problem.shape, dilation=2))
    np.testing.assert_array_equal(run_conv(problem)["out"], run_conv(one)["out"])
