"""Forward and backward at the sizes that oneDNN tests its own kernels with.

    python -m tests.stress.onednn_shapes recurrent --cells lstm
    python -m tests.stress.onednn_shapes convolution

float32 is compared with float64: recurrent layers and small convolutions with the references in
NumPy, large convolutions with PyTorch. Tolerances are those of `tests/cases.py`; where the choice
of an algorithm is left to the convolution, the bound that `conv2d` states.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

import tbptt_fast
from tbptt_fast import reference
from tests import cases
from tests.test_convolution import Case, compare, expected_of, expected_of_torch, run

from . import onednn_lists as lists
from .checks import Check, Report

CELLS = ("rnn_tanh", "gru", "lstm")
SMALL = 3e8  # multiply-adds that the plain reference of convolutions takes a second for
CHOSEN = 1e-4  # the greatest error of algo="auto", in units of the greatest element


def run_stack(ops: Any, problems: list[cases.Problem]) -> dict[str, Any]:
    """Forward and backward through layers, everything by name; each takes its x from the last."""
    named: dict[str, Any] = {}
    tapes, x = [], problems[0].x
    for index, problem in enumerate(problems):
        problems[index] = problem = replace(problem, x=x)
        x, final, tape = cases.forward(ops, problem)
        tapes.append(tape)
        named |= {f"{index} state {i}": s for i, s in enumerate(final)}
    named["out"], grad = x, problems[-1].grad_out
    for index in reversed(range(len(problems))):
        problem = replace(problems[index], grad_out=grad)
        grads = cases.backward(ops, problem, tapes[index])
        grad = grads["x"]
        named |= {f"grad_{index} {name}": value for name, value in grads.items()}
    return named


def check_recurrent(cell: str, shape: lists.Recurrent, dtype: str) -> None:
    layers, steps, batch, inputs, hidden = shape
    problems = [
        cases.make_problem(cell, (steps, batch, hidden if i else inputs, hidden), dtype, seed=i)
        for i in range(layers)
    ]
    length = max(p.length for p in problems)
    actual = run_stack(tbptt_fast, list(problems))
    expected = run_stack(reference, list(problems))
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        kind = "gradient" if name.startswith("grad_") else "forward"
        cases.assert_close(value, expected[name], kind, length=length, name=name)


def recurrent_checks(
    shapes: Sequence[lists.Recurrent], cells: Sequence[str] = CELLS, dtype: str = "float32"
) -> Iterator[Check]:
    """Each shape with each cell."""
    for shape in shapes:
        for cell in cells:
            yield Check(cell, str(shape), partial(check_recurrent, cell, shape, dtype))


def pair(value: lists.Pair, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else value


def make_case(rank: int, batch: int, row: lists.Square, dilation: int = 1) -> Case:
    """The padding behind follows from the output's size; what is left over of the image is cut."""
    groups, inputs, outputs, *extents = row
    size, out, kernel, before, stride = (pair(value, rank) for value in extents)
    dilations = (dilation,) * rank
    padding = tuple(
        (p, max(0, (o - 1) * s + d * (k - 1) + 1 - n - p))
        for n, o, k, p, s, d in zip(size, out, kernel, before, stride, dilations, strict=True)
    )
    per_group = (inputs // groups, outputs // groups)
    case = Case(batch, *per_group, size, kernel, stride, padding, dilations, groups)
    assert case.output_size == out, (row, case.output_size)
    return case


def small_cases() -> list[Case]:
    """Every kind and option: first layers, tails of vectors, groups, padding, dilation."""
    rows = [*lists.BASIC, *lists.TAILS, *lists.PADDED, *lists.DEPTHWISE[:15]]
    found = [make_case(2, 2, row) for row in rows]
    found += [make_case(1, 2, row) for row in (*lists.BASIC, *lists.LINES[:16])]
    for size, out, kernel, pad, stride, dilation in lists.FAR:
        for channels in ((1, 16), (16, 1)):
            row = (1, *channels, size, out, kernel, pad, stride)
            found.append(make_case(1, 1, row, dilation))
    return found


def large_cases() -> list[Case]:
    """What takes a good part of a second, or many."""
    found = [make_case(2, 2, row) for row in (*lists.DEPTHWISE[15:], *lists.ONES)]
    found += [make_case(1, 2, row) for row in lists.LINES[16:]]
    found += [make_case(2, lists.TRAINED_BATCH, row) for row in lists.TRAINED[:-1]]
    found.append(make_case(2, 2, lists.TRAINED[-1]))
    return sorted(found, key=lambda case: case.work)


def check_convolution(case: Case, last: bool, dtype: str) -> None:
    """The sums as they stand, and what the library chooses."""
    arrays = case.arrays(dtype)
    oracle = expected_of if case.work < SMALL else expected_of_torch
    expected = oracle(case, arrays, last, None)
    compare(case, run(case, arrays, last), expected, dtype)
    if len(case.size) == 2:
        for name, value in run(case, arrays, last, algo="auto").items():
            scale = np.abs(expected[name]).max()
            error = np.abs(value - expected[name]).max()
            assert error <= CHOSEN * max(scale, 1.0), f"{name}: {error:.1e} of {scale:.1e}"


def convolution_checks(found: Sequence[Case], dtype: str = "float32") -> Iterator[Check]:
    """Each case in both orders of the channels."""
    for case in found:
        for last in (False, True):
            order = "channels last" if last else "channels first"
            run_ = partial(check_convolution, case, last, dtype)
            yield Check(f"conv{len(case.size)}d, {order}", str(case), run_)


def timed(checks: Iterator[Check], minutes: float) -> Iterator[Check]:
    """As many as begin in that time."""
    end = time.monotonic() + 60 * minutes
    for check in checks:
        if time.monotonic() > end:
            print(f"stopped before {check.family} {check.name}")
            return
        yield check


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run the sizes that oneDNN tests.")
    parser.add_argument("kind", choices=["recurrent", "convolution"])
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--dtype", choices=cases.DTYPES, default="float32")
    parser.add_argument("--minutes", type=float, default=60.0)
    given = parser.parse_args(arguments)
    if given.kind == "recurrent":
        shapes = (*lists.SMALL_STACKS, *lists.TRAINING)
        checks = recurrent_checks(shapes, given.cells, given.dtype)
    else:
        checks = convolution_checks([*small_cases(), *large_cases()], given.dtype)
    start = time.monotonic()
    report = Report().run(timed(checks, given.minutes))
    seconds = time.monotonic() - start
    return report.print(f"oneDNN's sizes, {given.kind}, {given.dtype}, {seconds:.0f} s")


if __name__ == "__main__":
    raise SystemExit(main())
