"""Recurrent layers on images in bfloat16, on the emulated device and on a real one.

As in test_cuda_bfloat16.py: the reference gets the same numbers in float64, and the bounds are
those of the layers there; where bfloat16 is exact, so are the kernels, to the bit.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import reference_convrecurrent as reference

from .cases import TRUNCATIONS, assert_identical
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
from .cuda_cases import (
    ROUNDING,
    CudaDevice,
    Device,
    EmulatedDevice,
    mapped,
    unaligned,
    widened,
)
from .test_boundary import message
from .test_cuda_bfloat16 import (
    BFLOAT16,
    assert_equal,
    compare,
    rounded,
    wide_masks,
)
from .test_cuda_convrecurrent import LONG, as_nchw, contiguous, some_masks

# Beside the kink of relu a rounding error decides about a gradient: exact numbers have that cell.
SMOOTH = tuple(cell for cell in CELLS if cell != "rnn_relu")
# Channels of whole accesses and others, and a depth that is cut into parts.
ALIGNED = Shape((4, 2, 8, 16), (5, 6))
DEEP = Shape((3, 1, 3, 72), (3, 4), (3, 3), (5, 5))

smooth = pytest.mark.parametrize("cell", SMOOTH)
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def wide_problem(problem: Problem) -> Problem:
    return Problem(**{name: widened(value) for name, value in vars(problem).items()})


@cache
def expected(cell: str, shape: Shape, masks: str = "plain", truncation: Any = None) -> Any:
    problem = make_problem(cell, shape, BFLOAT16)
    options = wide_masks(some_masks(problem, masks))
    return run(reference, wide_problem(problem), truncation=truncation, **options)


@smooth
@pytest.mark.parametrize("shape", [*SHAPES[:5], LONG, ALIGNED, DEEP], ids=str)
@layouts
def test_every_shape(device: Device, cell: str, shape: Shape, layout: str) -> None:
    problem = make_problem(cell, shape, BFLOAT16)
    compare(run(device.ops(), problem, layout), expected(cell, shape))


@smooth
@pytest.mark.parametrize("truncation", [*TRUNCATIONS, (2, 7), (3, 100)], ids=str)
@pytest.mark.parametrize("masks", ["plain", "is_init", "both"])
def test_masks_and_truncation(device: Device, cell: str, masks: str, truncation: Any) -> None:
    problem = make_problem(cell, LONG, BFLOAT16)
    options: dict[str, Any] = {"truncation": truncation, **some_masks(problem, masks)}
    for layout in LAYOUTS:
        found = run(device.ops(), problem, layout, **options)
        compare(found, expected(cell, LONG, masks, truncation))
    again = run(device.ops(), problem, layout, recompute=True, **options)
    assert_identical(contiguous(again), contiguous(found))


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm_map"])
def test_windows_that_end_early(device: Device, cell: str) -> None:
    """Products deep enough to be made in parts, of fewer images from step to step."""
    shape = Shape((6, 2, 3, 40), (3, 4), (3, 3), (5, 5))
    problem = make_problem(cell, shape, BFLOAT16)
    options: dict[str, Any] = {"truncation": (2, 5), **some_masks(problem, "is_init")}
    compare(run(device.ops(), problem, **options), expected(cell, shape, "is_init", (2, 5)))


@smooth
@pytest.mark.parametrize("missing", ["hx", "b_ih", "b_hh", "grad_hx", "grad_out"])
def test_what_is_optional(device: Device, cell: str, missing: str) -> None:
    gone: dict[str, Any] = {missing: None}
    problem = replace(make_problem(cell, LONG, BFLOAT16), **gone)
    found = run(device.ops(), problem, truncation=3)
    compare(found, run(reference, wide_problem(problem), truncation=3))


def integers(shape: Shape) -> Problem:
    """A relu network of small integers, whose states and gates' gradients are exact in bfloat16."""
    steps, batch, inputs, hidden = shape.sizes
    rng = np.random.default_rng([*shape.sizes, *shape.image])

    def sparse(count: int, *size: int) -> Any:
        values = np.zeros((size[0], int(np.prod(size[1:]))))
        for row in values:
            places = rng.choice(len(row), min(count, len(row)), replace=False)
            row[places] = rng.choice([-1.0, 1.0], len(places))
        return values.reshape(size).astype(BFLOAT16)

    def small(*size: int) -> Any:
        return rng.integers(-2, 3, size).astype(BFLOAT16)

    state = (batch, hidden, *shape.image)
    return Problem(
        cell="rnn_relu",
        shape=shape,
        x=small(steps, batch, inputs, *shape.image),
        hx=(small(*state),),
        w_ih=sparse(3, hidden, inputs, *shape.kernel_ih),
        w_hh=sparse(1, hidden, hidden, *shape.kernel_hh),
        b_ih=small(hidden),
        b_hh=small(hidden),
        peephole=None,
        grad_out=small(steps, *state),
        grad_hx=(small(*state),),
    )


@pytest.mark.parametrize("shape", [*SHAPES[:5], LONG, ALIGNED, DEEP], ids=str)
@pytest.mark.parametrize("truncation", [None, 3, (2, 5)], ids=str)
def test_exact_numbers(device: Device, shape: Shape, truncation: Any) -> None:
    """Every product and sum is exact in float32, and the results are rounded once."""
    problem = integers(shape)
    is_init = make_masks(problem)["is_init"]
    wanted = run(reference, wide_problem(problem), is_init=is_init, truncation=truncation)
    assert max(float(np.abs(wanted[name]).max()) for name in ("out", "grad_x")) <= 256
    for layout in LAYOUTS:
        found = run(device.ops(), problem, layout, is_init=is_init, truncation=truncation)
        assert_equal(found, rounded(wanted))


def test_overlapping_windows_add_up_in_float32(device: Device) -> None:
    """A state that is handed on: each of 290 losses reaches step 0 with a gradient of one."""
    steps = 290
    ones = np.ones((steps, 1, 1, 1, 1), BFLOAT16)
    problem = Problem(
        cell="rnn_relu",
        shape=Shape((steps, 1, 1, 1), (1, 1), (1, 1), (1, 1)),
        x=ones,
        hx=(ones[0],),
        w_ih=np.zeros((1, 1, 1, 1), BFLOAT16),
        w_hh=np.ones((1, 1, 1, 1), BFLOAT16),
        b_ih=None,
        b_hh=None,
        peephole=None,
        grad_out=ones,
        grad_hx=None,
    )
    found = run(device.ops(), problem, truncation=(1, 2 * steps))
    assert widened(found["grad_h0"]) == 290.0
    exact = steps * (steps + 1) // 2  # dgates of every step: the losses behind it
    by_weight = widened(found["grad_w_hh"]).item()
    assert abs(by_weight - exact) <= ROUNDING * exact * 1.01


@pytest.mark.parametrize(
    ("cell", "biases", "peephole"),
    [
        ("lstm", (-6.0, 6.25, 0.5, 0.0), None),  # i, f, g, o
        ("lstm_channel", (-6.0, 6.0, 0.5, 0.0), 0.25),
        ("gru", (0.0, 6.25, 1.0), None),  # r, z, n
    ],
)
def test_a_long_memory(device: Device, cell: str, biases: Any, peephole: float | None) -> None:
    """A gate of 0.998, which is none of bfloat16's numbers, and steps that are below its rounding.

    The state runs on in float32, with and without a tape and where gates are made again, and the
    tape keeps how far the gate is from one: 300 steps of rounded numbers would forget nothing or
    twice as much.
    """
    steps, size = 300, (1, 2, 2, 2)
    state = np.linspace(0.5, 1.0, 8).reshape(size).astype(BFLOAT16)
    states = (state, state) if cell.startswith("lstm") else (state,)
    rows = 2 * len(biases)
    problem = Problem(
        cell=cell,
        shape=Shape((steps, 1, 1, 2), (2, 2), (1, 1), (1, 1)),
        x=np.zeros((steps, 1, 1, 2, 2), BFLOAT16),
        hx=states,
        w_ih=np.zeros((rows, 1, 1, 1), BFLOAT16),
        w_hh=np.zeros((rows, 2, 1, 1), BFLOAT16),
        b_ih=np.repeat(np.asarray(biases), 2).astype(BFLOAT16),
        b_hh=None,
        peephole=None if peephole is None else np.full((3, 2), peephole, BFLOAT16),
        grad_out=np.zeros((steps, *size), BFLOAT16),
        grad_hx=states,
    )
    found = run(device.ops(), problem)
    wanted = run(reference, wide_problem(problem))
    last, first = ("c_n", "grad_c0") if cell.startswith("lstm") else ("h_n", "grad_h0")
    for name in (last, first):
        np.testing.assert_allclose(widened(found[name]), wanted[name], rtol=3 * ROUNDING)
    assert_identical(run(device.ops(), problem, recompute=True), found)
    inference, final, _ = forward(device.ops(), problem, training=False)
    assert_identical({"out": inference}, {"out": found["out"]})
    assert_identical({last: final[-1]}, {last: found[last]})


@pytest.mark.parametrize("cell", CELLS)
@layouts
def test_inference_gives_the_same_bits_and_no_tape(device: Device, cell: str, layout: str) -> None:
    problem, ops = make_problem(cell, LONG, BFLOAT16), device.ops()
    is_init = make_masks(problem)["is_init"]
    out, final, _ = forward(ops, problem, layout, is_init=is_init)
    only, final_only, none = forward(ops, problem, layout, is_init=is_init, training=False)
    assert none is None
    assert_identical({"out": only}, {"out": out})
    for a, b in zip(final_only, final, strict=True):
        assert_identical({"state": a}, {"state": b})


@pytest.mark.parametrize("cell", ["gru", "lstm_map"])
@layouts
@pytest.mark.parametrize("recompute", [False, True])
def test_gates_are_made_in_runs_of_steps(
    emulated: EmulatedDevice, cell: str, layout: str, recompute: bool
) -> None:
    """A small device takes four or five of these steps at a time."""
    shape = Shape((7, 2, 1, 6), (20, 16), (1, 1), (1, 3))
    problem = make_problem(cell, shape, BFLOAT16)
    options: dict[str, Any] = {"truncation": 2, "is_init": make_masks(problem)["is_init"]}
    emulated.resize(multiprocessors=1)
    found = run(emulated.ops(), problem, layout, recompute=recompute, **options)
    compare(found, expected(cell, shape, "is_init", 2))
    out, _, _ = forward(emulated.ops(training=False), problem, layout, is_init=options["is_init"])
    assert_identical({"out": np.ascontiguousarray(found["out"])}, {"out": as_nchw(layout, out)})


@pytest.mark.parametrize("cell", CELLS)
def test_no_order_of_threads_changes_a_bit(emulated: EmulatedDevice, cell: str) -> None:
    """A barrier that is missing would show."""
    problem = make_problem(cell, LONG, BFLOAT16)
    options: dict[str, Any] = {"truncation": (2, 3), **make_masks(problem)}
    first = run(emulated.ops(), problem, **options)
    for seed in (1, 2):
        with emulated.order(seed):
            found = run(emulated.ops(), problem, **options)
        assert_identical(found, first)


class Unaligned:
    """Operations whose arrays begin an element behind a multiple of 16 bytes."""

    def __init__(self, ops: Any) -> None:
        self._ops = ops

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            options = {key: mapped(value, unaligned, np.ndarray) for key, value in options.items()}
            return getattr(self._ops, name)(*mapped(args, unaligned, np.ndarray), **options)

        return call


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm_map"])
@layouts
@pytest.mark.parametrize("dtype", [BFLOAT16, "float32"], ids=str)
def test_arrays_that_begin_anywhere(device: Device, cell: str, layout: str, dtype: Any) -> None:
    """At any multiple of an element: images whose pixels are whole accesses then are none."""
    problem = make_problem(cell, ALIGNED, dtype)
    for truncation in (None, (2, 3)):
        wanted = run(device.ops(), problem, layout, truncation=truncation)
        found = run(Unaligned(device.ops()), problem, layout, truncation=truncation)
        assert_identical(contiguous(found), contiguous(wanted))


@pytest.mark.parametrize("cell", ["rnn_relu", "gru", "lstm_channel"])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_tape_can_be_used_again(device: Device, cell: str, recompute: bool) -> None:
    problem, ops = make_problem(cell, LONG, BFLOAT16), device.ops()
    masks = make_masks(problem)
    scale = {"carry_scale": masks["carry_scale"]}
    _, _, tape = forward(ops, problem, is_init=masks["is_init"], recompute=recompute)
    first = backward(ops, problem, tape, truncation=3, **scale)
    other = backward(ops, problem, tape, truncation=(1, 4), **scale)
    assert_identical(backward(ops, problem, tape, truncation=3, **scale), first)
    assert any((other[name] != first[name]).any() for name in first)


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm", "lstm_map"])
@pytest.mark.parametrize("sizes", [(0, 2, 3, 4), (3, 0, 3, 4)], ids=str)
def test_nothing_at_all(device: Device, cell: str, sizes: Any) -> None:
    """No steps or no rows: empty results, the state passes through."""
    problem = make_problem(cell, Shape(sizes, (3, 4)), BFLOAT16)
    masks = make_masks(problem)
    for truncation in (None, 2, (1, 3)):
        found = run(device.ops(), problem, truncation=truncation, **masks)
        wide = wide_masks(masks)
        compare(found, run(reference, wide_problem(problem), truncation=truncation, **wide))


@pytest.mark.parametrize("cell", CELLS)
def test_a_cut_lets_no_nan_through(device: Device, cell: str) -> None:
    """It selects, it does not multiply by zero; what runs on in float32 stops there, too."""
    clean = make_problem(cell, LONG, BFLOAT16)
    is_init = np.zeros(clean.x.shape[:2], bool)
    is_init[4, 1] = True
    options: dict[str, Any] = {"is_init": is_init, "truncation": (1, 5)}
    wanted = run(device.ops(), clean, **options)
    hx = tuple(state.copy() for state in clean.hx or ())
    for state in hx:
        state[1] = np.nan
    found = run(device.ops(), replace(clean, hx=hx), **options)
    np.testing.assert_array_equal(found["out"][4:], wanted["out"][4:])
    assert np.isnan(widened(found["out"])[:4, 1]).any()
    grad_out = clean.grad_out.copy()
    grad_out[4:, 1] = np.nan
    found = run(device.ops(), replace(clean, grad_out=grad_out), **options)
    np.testing.assert_array_equal(found["grad_x"][:4], wanted["grad_x"][:4])
    assert np.isnan(widened(found["grad_x"])[4:, 1]).any()


def test_precision_is_of_float32_alone(device: Device) -> None:
    problem = make_problem("lstm", SMALL, BFLOAT16)
    both = [run(device.ops(precision=p), problem) for p in ("tf32", "highest")]
    assert_identical(*both)


def test_a_device_without_bfloat16_refuses_it(emulated: EmulatedDevice) -> None:
    emulated.resize(capability=75)
    text = (
        "convgru_forward: x: expected dtype float32 or float64, got bfloat16, which needs a device "
        "of compute capability 8.0 or more, not 7.5"
    )
    with pytest.raises(TypeError, match=message(text)):
        forward(emulated.ops(), make_problem("gru", SMALL, BFLOAT16))


def test_dtypes_do_not_mix(device: Device) -> None:
    problem, ops = make_problem("lstm_map", SMALL, BFLOAT16), device.ops()
    for name in ("w_ih", "w_hh", "b_ih", "b_hh", "peephole"):
        changed: dict[str, Any] = {name: getattr(problem, name).astype("float32")}
        text = f"convlstm_forward: {name}: expected dtype bfloat16, got float32"
        with pytest.raises(TypeError, match=message(text)):
            forward(ops, replace(problem, **changed))
    _, _, tape = forward(ops, problem)
    values = np.prod(SMALL.sizes) // SMALL.sizes[2] * np.prod(SMALL.image)
    assert tape.nbytes == 2 * 5 * values
    assert f"bfloat16, {tape.nbytes} bytes" in repr(tape)
    with pytest.raises(TypeError, match="grad_out: expected dtype bfloat16, got float32"):
        backward(ops, make_problem("lstm_map", SMALL, "float32"), tape)


@pytest.mark.gpu
@pytest.mark.parametrize("cell", ["gru", "lstm_map"])
@pytest.mark.parametrize(
    "shape",
    [Shape((9, 4, 3, 64), (33, 31)), Shape((20, 2, 16, 33), (16, 20), (5, 5), (3, 3), (2, 1))],
    ids=str,
)
def test_large_on_a_gpu(cell: str, shape: Shape) -> None:
    """Shapes of real layers, against the CPU's kernels in float64, which the reference judged."""
    device = CudaDevice()
    problem = make_problem(cell, shape, BFLOAT16)
    masks = make_masks(problem)
    for truncation in (None, 4, (2, 6)):
        wide = wide_masks(masks)
        wanted = run(tbptt_fast, wide_problem(problem), **wide, truncation=truncation)
        for layout in LAYOUTS:
            compare(run(device.ops(), problem, layout, **masks, truncation=truncation), wanted)
