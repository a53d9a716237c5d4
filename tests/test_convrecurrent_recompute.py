"""Recurrent layers on images without gates on the tape: the same bits, less memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tbptt_fast

from .cases import DTYPES, assert_identical
from .convrecurrent_cases import (
    CELLS,
    LAYOUTS,
    SHAPES,
    SMALL,
    Problem,
    Shape,
    backward,
    forward,
    make_masks,
    make_problem,
    run,
)
from .test_convrecurrent import problems

cells = pytest.mark.parametrize("cell", CELLS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
# products made apart from the cell, in float32, Winograd's way
LARGE = Shape((4, 2, 16, 32), (32, 16))


def check_bits(problem: Problem, layout: str, **options: Any) -> None:
    kept, found = (
        run(tbptt_fast, problem, layout, recompute=recompute, **options)
        for recompute in (False, True)
    )
    assert_identical(
        {name: np.ascontiguousarray(value) for name, value in found.items()},
        {name: np.ascontiguousarray(value) for name, value in kept.items()},
    )


def check_estimators(cell: str, shape: Shape, steps: int, dtype: str) -> None:
    problem = make_problem(cell, replace(shape, sizes=(steps, *shape.sizes[1:])), dtype)
    masks = make_masks(problem)
    for layout in LAYOUTS:
        check_bits(problem, layout)
        check_bits(replace(problem, hx=None, b_ih=None), layout, truncation=3, **masks)
        check_bits(replace(problem, b_hh=None), layout, truncation=(2, 4), **masks)


@cells
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@dtypes
@pytest.mark.usefixtures("isa", "threads")
def test_the_bits_are_those_of_the_whole_tape(cell: str, shape: Shape, dtype: str) -> None:
    check_estimators(cell, shape, 7 if np.prod(shape.image) < 100 else 4, dtype)


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm", "lstm_map"])
@pytest.mark.usefixtures("isa", "threads")
def test_the_bits_of_large_images(cell: str) -> None:
    check_estimators(cell, LARGE, 4, "float32")


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm_map"])
@pytest.mark.parametrize("algo", ["auto", "direct"])
@layouts
@pytest.mark.usefixtures("threads")
def test_runs_need_not_fit(cell: str, algo: str, layout: str) -> None:
    """The backward pass takes other runs of steps than the forward pass, and more than one."""
    problem = make_problem(cell, Shape((17, 1, 2, 16), (50, 64), (1, 1), (3, 3)), "float32")
    masks = make_masks(problem)
    check_bits(problem, layout, algo=algo)
    for truncation in (3, 7):
        check_bits(problem, layout, algo=algo, truncation=truncation, **masks)


@layouts
def test_the_way_of_convolutions_is_chosen_once(layout: str) -> None:
    """The forward pass convolves x of 20 steps at once, Winograd's way; the runs of the backward
    pass end with fewer, for which the automatic choice would be the direct way."""
    problem = make_problem("lstm", Shape((60, 1, 16, 32), (14, 14)), "float32")
    check_bits(problem, layout)
    check_bits(problem, layout, truncation=7)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(problems(), st.sampled_from(tbptt_fast.available_isas()), st.sampled_from(LAYOUTS))
def test_anything(case: tuple[Problem, dict[str, Any]], isa: str, layout: str) -> None:
    problem, options = case
    with tbptt_fast.isa(isa):
        check_bits(problem, layout, **options)


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm_channel"])
@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=str)
@layouts
def test_a_reset_selects(cell: str, shape: Shape, layout: str) -> None:
    """NaN before a reset is where it is with the whole tape, too, and nowhere else."""
    problem = make_problem(cell, shape, "float32")
    is_init = np.zeros(problem.x.shape[:2], bool)
    is_init[2] = True
    dirty = replace(problem, hx=tuple(np.full_like(s, np.nan) for s in problem.hx or ()))
    kept = run(tbptt_fast, dirty, layout, is_init=is_init, truncation=1)
    found = run(tbptt_fast, dirty, layout, is_init=is_init, truncation=1, recompute=True)
    assert np.isfinite(found["grad_x"][2:]).all()
    assert np.isnan(found["grad_x"][:2]).any()
    for name, value in found.items():
        np.testing.assert_array_equal(value, kept[name], err_msg=name)


@pytest.mark.parametrize(("cell", "values"), [("rnn_relu", 0), ("gru", 0), ("lstm", 1)])
@layouts
def test_a_tape_holds_what_cannot_be_made_again(cell: str, values: int, layout: str) -> None:
    problem = make_problem(cell, SMALL)
    _, _, tape = forward(tbptt_fast, problem, layout, recompute=True)
    steps, batch, inputs, hidden = SMALL.sizes
    assert tape.nbytes == tape.memory.nbytes == values * 8 * steps * batch * hidden * 7 * 6
    assert repr(tape) == (
        f"<ConvTape of conv{problem.op}_forward: steps {steps}, batch {batch}, inputs {inputs}, "
        f"hidden {hidden}, size 7x6, float64, recompute, {tape.nbytes} bytes>"
    )
    memory = tape.memory.copy()
    first = backward(tbptt_fast, problem, tape, layout, truncation=2)
    backward(tbptt_fast, problem, tape, layout, truncation=(1, 3))
    assert_identical(backward(tbptt_fast, problem, tape, layout, truncation=2), first)
    np.testing.assert_array_equal(tape.memory, memory)


@pytest.mark.parametrize("cell", ["rnn_relu", "gru", "lstm_map"])
@pytest.mark.parametrize("sizes", [(0, 2, 3, 4), (3, 0, 3, 4)], ids=str)
def test_empty(cell: str, sizes: Any) -> None:
    check_bits(make_problem(cell, Shape(sizes, (3, 4))), "NCHW", truncation=2)


def test_inference_keeps_nothing() -> None:
    problem = make_problem("lstm", SMALL)
    out, _, tape = forward(tbptt_fast, problem, training=False, recompute=True)
    assert tape is None
    np.testing.assert_array_equal(out, forward(tbptt_fast, problem)[0])


def test_wrong_arguments() -> None:
    w = np.ones((4, 1, 3, 3))
    with pytest.raises(TypeError, match=r"^convlstm_forward: recompute: expected True or False"):
        tbptt_fast.convlstm_forward(np.ones((1, 1, 1, 2, 2)), None, w, w, recompute=1)
