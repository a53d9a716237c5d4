"""The native recurrent layers against the float64 reference: every cell, dtype, ISA, mask."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import reference

from .cases import (
    CELLS,
    DTYPES,
    MASKS,
    RECURRENT_MASKED,
    RECURRENT_SMALL,
    TRUNCATIONS,
    Problem,
    Shape,
    assert_identical,
    backward,
    compare,
    forward,
    make_masks,
    make_problem,
    relu_margin,
    run,
    shape_id,
)

pytestmark = pytest.mark.usefixtures("isa", "threads")

cells = pytest.mark.parametrize("cell", CELLS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
truncations = pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)


def problem_with(case: str, cell: str, shape: Shape, dtype: str) -> Problem:
    """A problem in which something optional is missing."""
    p = make_problem(cell, shape, dtype, bias="no bias" not in case)
    missing: dict[str, Any] = {
        "no hx": {"hx": None},
        "no b_ih": {"b_ih": None},
        "no b_hh": {"b_hh": None},
        "no grad_hx": {"grad_hx": None},
        "no grad_out": {"grad_out": None},
    }
    return replace(p, **missing.get(case, {}))


@cache
def expected(
    cell: str,
    shape: Shape,
    dtype: str,
    case: str = "all",
    masks: str = "plain",
    truncation: Any = None,
) -> dict[str, Any]:
    """The reference's results, computed once for all instruction sets and threads."""
    problem = problem_with(case, cell, shape, dtype)
    options = make_masks(masks, shape, dtype)
    results = run(reference, problem, **options, truncation=truncation)
    if cell == "rnn_relu":
        assert relu_margin(problem, results["out"], options["is_init"]) > 1e-6
    return results


@cells
@dtypes
@pytest.mark.parametrize("shape", RECURRENT_SMALL, ids=shape_id)
def test_every_size(cell: str, dtype: str, shape: Shape) -> None:
    problem = make_problem(cell, shape, dtype)
    actual = run(tbptt_fast, problem)
    assert {value.dtype for value in actual.values()} == {np.dtype(dtype)}
    assert all(value.flags.c_contiguous for value in actual.values())
    compare(problem, actual, expected(cell, shape, dtype))


@cells
@dtypes
@truncations
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("shape", RECURRENT_MASKED, ids=shape_id)
def test_masks_and_truncation(
    cell: str, dtype: str, shape: Shape, masks: str, truncation: Any
) -> None:
    problem = make_problem(cell, shape, dtype)
    actual = run(tbptt_fast, problem, **make_masks(masks, shape, dtype), truncation=truncation)
    compare(problem, actual, expected(cell, shape, dtype, "all", masks, truncation))


@cells
@dtypes
@pytest.mark.parametrize(
    "case", ["no hx", "no bias", "no b_ih", "no b_hh", "no grad_hx", "no grad_out"]
)
def test_what_is_optional(cell: str, dtype: str, case: str) -> None:
    shape = (5, 3, 4, 9)
    problem = problem_with(case, cell, shape, dtype)
    actual = run(tbptt_fast, problem, truncation=2)
    compare(problem, actual, expected(cell, shape, dtype, case, "plain", 2))


@pytest.mark.parametrize("missing", [0, 1])
def test_one_half_of_the_lstm_state(missing: int) -> None:
    problem = make_problem("lstm", (4, 3, 5, 9))

    def half(state: Any) -> Any:
        return tuple(None if i == missing else s for i, s in enumerate(state))

    problem = replace(problem, hx=half(problem.hx), grad_hx=half(problem.grad_hx))
    compare(problem, run(tbptt_fast, problem), run(reference, problem))


@cells
@dtypes
def test_inference_gives_the_same_bits_and_no_tape(cell: str, dtype: str) -> None:
    shape = (7, 5, 6, 19)
    problem = make_problem(cell, shape, dtype)
    is_init = make_masks("is_init", shape)["is_init"]
    for mask in (None, is_init):
        out, final, tape = forward(tbptt_fast, problem, is_init=mask, training=True)
        out_only, final_only, no_tape = forward(tbptt_fast, problem, is_init=mask, training=False)
        assert tape is not None
        assert no_tape is None
        assert_identical({"out": out_only}, {"out": out})
        for a, b in zip(final_only, final, strict=True):
            assert_identical({"state": a}, {"state": b})


@cells
@dtypes
def test_the_final_state_is_the_last_output(cell: str, dtype: str) -> None:
    out, final, _ = forward(tbptt_fast, make_problem(cell, (4, 3, 5, 9), dtype))
    assert_identical({"h_n": final[0]}, {"h_n": out[-1]})
    assert not np.shares_memory(final[0], out)


@cells
@dtypes
def test_a_tape_can_be_used_again(cell: str, dtype: str) -> None:
    shape = RECURRENT_MASKED[0]
    problem = make_problem(cell, shape, dtype)
    masks = make_masks("both", shape, dtype)
    scale = masks["carry_scale"]
    _, _, tape = forward(tbptt_fast, problem, is_init=masks["is_init"])
    for truncation in (*TRUNCATIONS, *reversed(TRUNCATIONS)):
        for carry_scale in (None, scale):
            again = backward(
                tbptt_fast, problem, tape, truncation=truncation, carry_scale=carry_scale
            )
            _, _, fresh = forward(tbptt_fast, problem, is_init=masks["is_init"])
            first = backward(
                tbptt_fast, problem, fresh, truncation=truncation, carry_scale=carry_scale
            )
            assert_identical(again, first)


@dtypes
@pytest.mark.parametrize("shape", [(64, 16, 32, 64), (33, 7, 5, 31)], ids=shape_id)
def test_the_tape_of_an_lstm_is_small(dtype: str, shape: Shape) -> None:
    steps, batch, _, hidden = shape
    _, _, tape = forward(tbptt_fast, make_problem("lstm", shape, dtype))
    assert 0 < tape.nbytes <= 6 * steps * batch * hidden * np.dtype(dtype).itemsize
    assert str(steps) in repr(tape)
