"""The benchmarks' shapes against the reference, once each: the fastest ISA, all threads."""

from __future__ import annotations

import pytest

import tbptt_fast
from tbptt_fast import reference

from .cases import CELLS, RECURRENT_BENCH, Shape, compare, make_problem, run, shape_id

# One cell is enough at the largest size.
CASES = [(c, s) for c in ("rnn_tanh", "gru", "lstm") for s in RECURRENT_BENCH if s[3] < 1024]
CASES += [("lstm", s) for s in RECURRENT_BENCH if s[3] >= 1024]


@pytest.mark.parametrize(("cell", "shape"), CASES, ids=lambda v: v if v in CELLS else shape_id(v))
def test_benchmark_shapes(cell: str, shape: Shape) -> None:
    problem = make_problem(cell, shape, "float32")
    compare(problem, run(tbptt_fast, problem), run(reference, problem))
