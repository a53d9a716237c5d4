"""Recurrent layers in bfloat16, on the emulated device and on a real one.

The reference gets the same numbers in float64. Where bfloat16 is exact, so are the kernels, to the
bit; elsewhere the bounds are a few times its rounding error.
"""

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
    GATES,
    MASKS,
    RECURRENT_MASKED,
    RECURRENT_SMALL,
    TRUNCATIONS,
    Problem,
    Shape,
    assert_identical,
    backward,
    forward,
    make_masks,
    make_problem,
    relu_margin,
    run,
    shape_id,
)
from .cuda_cases import (
    ROUNDING,
    CudaDevice,
    Device,
    EmulatedDevice,
    bfloat16,
    mapped,
    unaligned,
    widened,
)
from .test_lag_norms import measured

BFLOAT16 = bfloat16()

# In units of ROUNDING and of the largest element (or one). `out` and the states are rounded once
# themselves. Behind them are the rounding of each step's input part, which a gate's slope damps,
# and that of the states that enter the product, by weights whose rows have a norm below 0.6.
FORWARD = 2.0
# Every factor of a gradient (gates, states, gates' gradients) was rounded once. Over steps and rows
# these errors are independent and grow like the root of their number, as the largest sums do.
GRADIENT = 4.0

SHAPE = RECURRENT_MASKED[0]  # 11, 5, 3, 17
# Rows that are read 16 bytes at a time, and the sizes of a cluster's blocks.
ALIGNED: tuple[Shape, ...] = ((5, 4, 8, 40), (4, 19, 16, 64), (3, 2, 8, 264))

cells = pytest.mark.parametrize("cell", CELLS)


def wide_problem(problem: Problem) -> Problem:
    return Problem(**{name: widened(value) for name, value in vars(problem).items()})


def wide_masks(masks: dict[str, Any]) -> dict[str, Any]:
    return {name: widened(value) for name, value in masks.items()}


@cache
def problem_for(cell: str, shape: Shape, masks: str = "plain") -> Problem:
    """With relu one whose pre-activations stay away from the kink."""
    if cell != "rnn_relu":
        return make_problem(cell, shape, BFLOAT16)
    is_init = make_masks(masks, shape, BFLOAT16)["is_init"]
    for seed in range(3000):
        problem = make_problem(cell, shape, BFLOAT16, seed=seed)
        wide = wide_problem(problem)
        out, _, _ = forward(reference, wide, is_init=is_init)
        if relu_margin(wide, out, is_init) > 6 * ROUNDING:
            return problem
    raise AssertionError("no such problem was found")


@cache
def expected(cell: str, shape: Shape, masks: str, truncation: Any) -> dict[str, Any]:
    problem = wide_problem(problem_for(cell, shape, masks))
    options = wide_masks(make_masks(masks, shape, BFLOAT16))
    return run(reference, problem, **options, truncation=truncation)


def compare(actual: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert actual.keys() == wanted.keys()
    for name, value in actual.items():
        assert value.dtype == BFLOAT16, name
        assert value.shape == wanted[name].shape, name
        units = GRADIENT if name.startswith("grad_") else FORWARD
        scale = max(1.0, float(np.abs(wanted[name]).max(initial=0.0)))
        np.testing.assert_allclose(
            widened(value), wanted[name], rtol=0, atol=units * ROUNDING * scale, err_msg=name
        )


def check(
    device: Device, cell: str, shape: Shape, masks: str = "plain", truncation: Any = None
) -> None:
    problem = problem_for(cell, shape, masks)
    options = make_masks(masks, shape, BFLOAT16)
    actual = run(device.ops(), problem, **options, truncation=truncation)
    compare(actual, expected(cell, shape, masks, truncation))


@cells
@pytest.mark.parametrize("shape", RECURRENT_SMALL + ALIGNED, ids=shape_id)
def test_every_size(device: Device, cell: str, shape: Shape) -> None:
    steps, batch, _, hidden = shape
    if cell != "rnn_relu" or steps * batch * hidden <= 128:  # test_exact_numbers has all of them
        check(device, cell, shape)


@cells
@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)
@pytest.mark.parametrize("masks", MASKS)
def test_masks_and_truncation(device: Device, cell: str, masks: str, truncation: Any) -> None:
    check(device, cell, (7, 2, 3, 5) if cell == "rnn_relu" else SHAPE, masks, truncation)


@cells
@pytest.mark.parametrize("masks", ["plain", "is_init"])
def test_norms_by_lag(device: Device, cell: str, masks: str) -> None:
    """Norms are rounded once themselves; their sums are not."""
    shape: Shape = (7, 2, 3, 5) if cell == "rnn_relu" else SHAPE
    problem, is_init = problem_for(cell, shape, masks), make_masks(masks, shape)["is_init"]
    phi, sums = measured(device.ops(), problem, 5, is_init)
    wanted, wanted_sums = measured(reference, wide_problem(problem), 5, is_init)
    assert (phi.dtype, sums.dtype) == (BFLOAT16, np.float64)
    phi = widened(phi)
    np.testing.assert_array_equal(np.isnan(phi), np.isnan(wanted))
    largest = max(1.0, float(np.nanmax(wanted)))
    np.testing.assert_allclose(phi, wanted, rtol=0, atol=GRADIENT * ROUNDING * largest)
    largest *= shape[0] ** 0.5  # of what is added up
    np.testing.assert_allclose(sums, wanted_sums, rtol=0, atol=GRADIENT * ROUNDING * largest)


def integers(shape: Shape, seed: int = 0) -> Problem:
    """A relu network of small integers, whose states and gates' gradients are exact in bfloat16."""
    steps, batch, inputs, hidden = shape
    rng = np.random.default_rng([seed, *shape])

    def sparse(rows: int, columns: int, count: int) -> Any:
        values = np.zeros((rows, columns))
        for row in values:
            places = rng.choice(columns, min(count, columns), replace=False)
            row[places] = rng.choice([-1.0, 1.0], len(places))
        return values.astype(BFLOAT16)

    def small(*size: int) -> Any:
        return rng.integers(-2, 3, size).astype(BFLOAT16)

    return Problem(
        cell="rnn_relu",
        x=small(steps, batch, inputs),
        hx=(small(batch, hidden),),
        w_ih=sparse(hidden, inputs, 3),
        w_hh=sparse(hidden, hidden, 1),
        b_ih=small(hidden),
        b_hh=small(hidden),
        grad_out=small(steps, batch, hidden),
        grad_hx=(small(batch, hidden),),
    )


def rounded(results: dict[str, Any]) -> dict[str, Any]:
    return {name: value.astype(BFLOAT16) for name, value in results.items()}


def assert_equal(actual: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Equal numbers: zeros may have either sign."""
    assert actual.keys() == wanted.keys()
    for name, value in actual.items():
        assert value.dtype == wanted[name].dtype, name
        np.testing.assert_array_equal(widened(value), widened(wanted[name]), err_msg=name)


@pytest.mark.parametrize("shape", RECURRENT_SMALL + ALIGNED, ids=shape_id)
@pytest.mark.parametrize("truncation", [None, 3, (2, 5)], ids=str)
def test_exact_numbers(device: Device, shape: Shape, truncation: Any) -> None:
    """Every product and sum is exact in float32, and the results are rounded once."""
    problem = integers(shape)
    is_init = make_masks("is_init", shape)["is_init"]
    wanted = run(reference, wide_problem(problem), is_init=is_init, truncation=truncation)
    assert max(float(np.abs(wanted[name]).max()) for name in ("out", "grad_x")) <= 256
    actual = run(device.ops(), problem, is_init=is_init, truncation=truncation)
    assert_equal(actual, rounded(wanted))


def test_weight_gradients_add_up_in_float32(device: Device) -> None:
    """Sums of ones, where bfloat16 would stay at 256; deep enough to be made in parts."""
    shape: Shape = (1100, 1, 2, 3)
    ones = np.ones((1100, 1, 3), BFLOAT16)
    problem = Problem(
        cell="rnn_relu",
        x=np.ones((1100, 1, 2), BFLOAT16),
        hx=None,
        w_ih=np.ones((3, 2), BFLOAT16),
        w_hh=np.zeros((3, 3), BFLOAT16),
        b_ih=np.zeros(3, BFLOAT16),
        b_hh=None,
        grad_out=ones,
        grad_hx=None,
    )
    assert problem.shape == shape
    found = run(device.ops(), problem, truncation=4)
    for name, exact in (("w_ih", 1100.0), ("b_ih", 1100.0), ("w_hh", 2 * 1099.0)):
        value = np.asarray(exact).astype(BFLOAT16).astype("float64")
        assert (widened(found[f"grad_{name}"]) == value).all(), name


def test_overlapping_windows_add_up_in_float32(device: Device) -> None:
    """A state that is handed on: each of 290 losses reaches step 0 with a gradient of one."""
    steps = 290
    problem = Problem(
        cell="rnn_relu",
        x=np.ones((steps, 1, 1), BFLOAT16),
        hx=(np.ones((1, 1), BFLOAT16),),
        w_ih=np.zeros((1, 1), BFLOAT16),
        w_hh=np.ones((1, 1), BFLOAT16),
        b_ih=None,
        b_hh=None,
        grad_out=np.ones((steps, 1, 1), BFLOAT16),
        grad_hx=None,
    )
    found = run(device.ops(), problem, truncation=(1, 2 * steps))
    assert widened(found["grad_h0"]) == 290.0
    exact = np.cumsum(np.arange(1, steps + 1))[-1]  # dgates of every step: the losses behind it
    by_weight = widened(found["grad_w_hh"]).item()
    assert abs(by_weight - exact) <= ROUNDING * exact * 1.01


def gate_biases(cell: str, *values: float) -> Any:
    return np.repeat(np.asarray(values), 8)[: GATES[cell] * 8].astype(BFLOAT16)


def long_memory(cell: str, biases: Any, steps: int) -> Problem:
    """Gates by their biases alone, eight units."""
    rows = GATES[cell] * 8
    state = np.linspace(0.5, 1.0, 8).reshape(1, 8).astype(BFLOAT16)
    return Problem(
        cell=cell,
        x=np.zeros((steps, 1, 1), BFLOAT16),
        hx=(state, state) if cell == "lstm" else (state,),
        w_ih=np.zeros((rows, 1), BFLOAT16),
        w_hh=np.zeros((rows, 8), BFLOAT16),
        b_ih=biases,
        b_hh=None,
        grad_out=np.zeros((steps, 1, 8), BFLOAT16),
        grad_hx=(state, state) if cell == "lstm" else (state,),
    )


@pytest.mark.parametrize(
    ("cell", "biases"),
    [
        ("lstm", gate_biases("lstm", -6.0, 6.25, 0.5, 0.0)),  # i, f, g, o
        ("gru", gate_biases("gru", 0.0, 6.25, 1.0)),  # r, z, n
    ],
    ids=["lstm", "gru"],
)
def test_a_long_memory(device: Device, cell: str, biases: Any) -> None:
    """A gate of 0.998, which is none of bfloat16's numbers, and steps that are below its rounding.

    The state runs on in float32, and the tape keeps how far the gate is from one: rounded to 1.0
    or to 0.996, 300 steps would forget nothing or twice as much.
    """
    problem = long_memory(cell, biases, 300)
    actual = run(device.ops(), problem)
    wanted = run(reference, wide_problem(problem))
    last, first = ("c_n", "grad_c0") if cell == "lstm" else ("h_n", "grad_h0")
    for name in (last, first):
        np.testing.assert_allclose(widened(actual[name]), wanted[name], rtol=3 * ROUNDING)
    inference, states, _ = forward(device.ops(), problem, training=False)
    assert_identical({"out": inference}, {"out": actual["out"]})
    assert_identical({last: states[-1]}, {last: actual[last]})


@cells
def test_inference_gives_the_same_bits_and_no_tape(device: Device, cell: str) -> None:
    for shape in ((7, 5, 6, 19), ALIGNED[0]):
        problem, ops = make_problem(cell, shape, BFLOAT16), device.ops()
        for mask in (None, make_masks("is_init", shape)["is_init"]):
            out, final, _ = forward(ops, problem, is_init=mask, training=True)
            out_only, final_only, none = forward(ops, problem, is_init=mask, training=False)
            assert none is None
            assert_identical({"out": out_only}, {"out": out})
            for a, b in zip(final_only, final, strict=True):
                assert_identical({"state": a}, {"state": b})


@cells
def test_a_tape_can_be_used_again(device: Device, cell: str) -> None:
    problem, ops = make_problem(cell, SHAPE, BFLOAT16), device.ops()
    masks = make_masks("both", SHAPE, BFLOAT16)
    scale = {"carry_scale": masks["carry_scale"]}
    _, _, tape = forward(ops, problem, is_init=masks["is_init"])
    first = backward(ops, problem, tape, truncation=3, **scale)
    other = backward(ops, problem, tape, truncation=(1, 4), **scale)
    assert_identical(backward(ops, problem, tape, truncation=3, **scale), first)
    assert any((other[name] != first[name]).any() for name in first)


def test_precision_is_of_float32_alone(device: Device) -> None:
    problem = make_problem("gru", SHAPE, BFLOAT16)
    both = [run(device.ops(precision=p), problem) for p in ("tf32", "highest")]
    assert_identical(*both)


@cells
@pytest.mark.parametrize("shape", [(9, 5, 7, 37), ALIGNED[0]], ids=shape_id)
def test_no_order_of_threads_changes_a_bit(
    emulated: EmulatedDevice, cell: str, shape: Shape
) -> None:
    """A barrier that is missing would show."""
    masks = make_masks("both", shape, BFLOAT16)
    problem = make_problem(cell, shape, BFLOAT16)
    for truncation in (None, (2, 5)):
        first = run(emulated.ops(), problem, **masks, truncation=truncation)
        for seed in (1, 2, 3):
            with emulated.order(seed):
                found = run(emulated.ops(), problem, **masks, truncation=truncation)
            assert_identical(found, first)


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
@pytest.mark.parametrize(
    ("multiprocessors", "shared_kb", "capability"),
    [(1, 64, 80), (2, 99, 86), (8, 227, 90), (132, 227, 90)],
)
def test_every_size_of_device(
    emulated: EmulatedDevice, cell: str, multiprocessors: int, shared_kb: int, capability: int
) -> None:
    """Weights that stay on the chip, weights that do not, one block, many, and clusters."""
    emulated.resize(multiprocessors, shared_kb << 10, capability=capability)
    for shape, truncation in (
        ((5, 3, 6, 50), None),
        ((12, 2, 5, 33), (2, 4)),
        ((3, 20, 4, 16), 1),
        ((4, 17, 8, 48), None),
    ):
        check(emulated, cell, shape, "both", truncation)
    if multiprocessors > 1:
        check(emulated, cell, (3, 2, 3, 304))  # clusters of blocks of 32 units


@cells
@pytest.mark.parametrize("axis", [0, 1, 2], ids=["T", "B", "I"])
def test_nothing_at_all(device: Device, cell: str, axis: int) -> None:
    """No steps, no rows or no inputs: empty results, the state passes through."""
    sizes = (5, 3, 4, 6)
    shape: Any = tuple(0 if i == axis else n for i, n in enumerate(sizes))
    problem = make_problem(cell, shape, BFLOAT16, seed=5)
    for truncation in (None, 2, (1, 3)):
        masks = make_masks("both", shape, BFLOAT16)
        actual = run(device.ops(), problem, **masks, truncation=truncation)
        options = wide_masks(masks)
        wanted = run(reference, wide_problem(problem), **options, truncation=truncation)
        if cell == "rnn_relu" and axis == 2:  # a kink may be near
            assert [value.shape for value in actual.values()] == [w.shape for w in wanted.values()]
        else:
            compare(actual, wanted)


@cells
@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (5, 3, 8, 8)], ids=shape_id)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_travel(device: Device, cell: str, shape: Shape, value: float) -> None:
    """As IEEE says, to what depends on them and nowhere else."""
    problem, ops = make_problem(cell, shape, BFLOAT16), device.ops()
    clean = run(ops, problem)
    x = problem.x.copy()
    x[2, 1, 3] = value
    changed = replace(problem, x=x)
    out, _, _ = forward(ops, changed)
    with np.errstate(all="ignore"):
        wanted, _, _ = forward(reference, wide_problem(changed))
    np.testing.assert_array_equal(np.isnan(widened(out)), np.isnan(wanted))
    np.testing.assert_array_equal(np.isinf(widened(out)), np.isinf(wanted))
    np.testing.assert_array_equal(out[:2], clean["out"][:2])
    np.testing.assert_array_equal(out[:, [0, 2]], clean["out"][:, [0, 2]])

    grad_out = problem.grad_out.copy()
    grad_out[2, 1] = value
    dirty = run(ops, replace(problem, grad_out=grad_out))
    assert not np.isfinite(widened(dirty["grad_x"])[2, 1]).any()
    assert not np.isfinite(widened(dirty["grad_b_ih"])).all()
    np.testing.assert_array_equal(dirty["grad_x"][3:], clean["grad_x"][3:])
    np.testing.assert_array_equal(dirty["grad_x"][:, [0, 2]], clean["grad_x"][:, [0, 2]])


@cells
def test_a_reset_lets_no_nan_through(device: Device, cell: str) -> None:
    problem = make_problem(cell, (4, 2, 3, 5), BFLOAT16)
    is_init = np.zeros((4, 2), bool)
    is_init[0, 1] = True
    hx = tuple(state.copy() for state in problem.hx or ())
    for state in hx:
        state[1] = np.nan
    found = run(device.ops(), replace(problem, hx=hx), is_init=is_init)
    assert all(np.isfinite(widened(value)).all() for value in found.values())


@cells
def test_arrays_that_begin_anywhere(emulated: EmulatedDevice, cell: str) -> None:
    """At any multiple of two bytes: rows of 16 bytes then are no multiples of 16."""
    shape = (7, 2, 8, 8)
    problem = problem_for(cell, shape)
    apart = {name: mapped(value, unaligned, np.ndarray) for name, value in vars(problem).items()}
    compare(run(emulated.ops(), Problem(**apart)), expected(cell, shape, "plain", None))


@pytest.mark.gpu
@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
@pytest.mark.parametrize(
    "shape",
    [(65, 33, 129, 257), (20, 128, 64, 1024), (300, 2, 40, 520), (40, 8, 64, 512), (30, 8, 9, 256)],
    ids=shape_id,
)
def test_large_on_a_gpu(cell: str, shape: Shape) -> None:
    """Shapes of every regime, against the CPU's kernels in float64, which the reference judged."""
    device = CudaDevice()
    problem, masks = make_problem(cell, shape, BFLOAT16), make_masks("both", shape, BFLOAT16)
    for truncation in (None, 16, (8, 24)):
        options = wide_masks(masks)
        wanted = run(tbptt_fast, wide_problem(problem), **options, truncation=truncation)
        compare(run(device.ops(), problem, **masks, truncation=truncation), wanted)
