"""Recurrent layers on the emulated device and on a real one, against the float64 reference."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import cuda, reference

from .cases import (
    CELLS,
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
from .cuda_cases import PRECISIONS, TF32_EPS, CudaDevice, Device, EmulatedDevice

cells = pytest.mark.parametrize("cell", CELLS)
precisions = pytest.mark.parametrize(
    ("dtype", "precision"), PRECISIONS, ids=[f"{d}-{p}" for d, p in PRECISIONS]
)
SHAPE = RECURRENT_MASKED[0]  # 11, 5, 3, 17


def eps_of(dtype: str, precision: str) -> float | None:
    return TF32_EPS if (dtype, precision) == ("float32", "tf32") else None


@cache
def problem_for(
    cell: str, shape: Shape, dtype: str, precision: str, masks: str = "plain"
) -> Problem:
    """With TF32 one whose pre-activations stay away from the kink of relu, if it has one."""
    if cell != "rnn_relu" or eps_of(dtype, precision) is None:
        return make_problem(cell, shape, dtype)
    is_init = make_masks(masks, shape, dtype)["is_init"]
    for seed in range(300):
        problem = make_problem(cell, shape, dtype, seed=seed)
        out, _, _ = forward(reference, problem, is_init=is_init)
        if relu_margin(problem, out, is_init) > 4e-3:
            return problem
    raise AssertionError("no such problem was found")


@cache
def expected(
    cell: str, shape: Shape, dtype: str, precision: str, masks: str, truncation: Any
) -> dict[str, Any]:
    problem = problem_for(cell, shape, dtype, precision, masks)
    return run(reference, problem, **make_masks(masks, shape, dtype), truncation=truncation)


def check(
    device: Device,
    cell: str,
    shape: Shape,
    dtype: str,
    precision: str,
    masks: str = "plain",
    truncation: Any = None,
) -> dict[str, Any]:
    """One forward and backward pass within the tolerances; the results."""
    problem = problem_for(cell, shape, dtype, precision, masks)
    ops = device.ops(precision=precision)
    actual = run(ops, problem, **make_masks(masks, shape, dtype), truncation=truncation)
    assert {value.dtype for value in actual.values()} == {np.dtype(dtype)}
    wanted = expected(cell, shape, dtype, precision, masks, truncation)
    compare(problem, actual, wanted, eps_of(dtype, precision))
    return actual


@cells
@pytest.mark.parametrize("shape", RECURRENT_SMALL, ids=shape_id)
def test_every_size(device: Device, cell: str, shape: Shape) -> None:
    for dtype, precision in PRECISIONS:
        if cell != "rnn_relu" or eps_of(dtype, precision) is None:
            check(device, cell, shape, dtype, precision)


@cells
@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)
@pytest.mark.parametrize("masks", MASKS)
def test_masks_and_truncation(device: Device, cell: str, masks: str, truncation: Any) -> None:
    check(device, cell, SHAPE, "float64", "tf32", masks, truncation)


@cells
@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)
def test_masks_and_truncation_in_float32(device: Device, cell: str, truncation: Any) -> None:
    check(device, cell, SHAPE, "float32", "highest", "both", truncation)
    shape = (7, 2, 3, 5) if cell == "rnn_relu" else SHAPE
    check(device, cell, shape, "float32", "tf32", "both", truncation)


@cells
@pytest.mark.parametrize("missing", ["hx", "bias", "b_ih", "b_hh", "grad_hx", "grad_out"])
def test_what_is_optional(device: Device, cell: str, missing: str) -> None:
    problem = make_problem(cell, (5, 3, 4, 9), bias=missing != "bias")
    if missing != "bias":
        gone: dict[str, Any] = {missing: None}
        problem = replace(problem, **gone)
    actual = run(device.ops(), problem, truncation=2)
    compare(problem, actual, run(reference, problem, truncation=2))


@pytest.mark.parametrize("missing", [0, 1])
def test_one_half_of_the_lstm_state(device: Device, missing: int) -> None:
    problem = make_problem("lstm", (4, 3, 5, 9))

    def half(state: Any) -> Any:
        return tuple(None if i == missing else s for i, s in enumerate(state))

    problem = replace(problem, hx=half(problem.hx), grad_hx=half(problem.grad_hx))
    compare(problem, run(device.ops(), problem), run(reference, problem))


@cells
@precisions
def test_inference_gives_the_same_bits_and_no_tape(
    device: Device, cell: str, dtype: str, precision: str
) -> None:
    shape = (7, 5, 6, 19)
    problem, ops = make_problem(cell, shape, dtype), device.ops(precision=precision)
    for mask in (None, make_masks("is_init", shape)["is_init"]):
        out, final, tape = forward(ops, problem, is_init=mask, training=True)
        out_only, final_only, none = forward(ops, problem, is_init=mask, training=False)
        assert tape is not None
        assert none is None
        assert_identical({"out": out_only}, {"out": out})
        for a, b in zip(final_only, final, strict=True):
            assert_identical({"state": a}, {"state": b})


@cells
@precisions
def test_a_tape_can_be_used_again(device: Device, cell: str, dtype: str, precision: str) -> None:
    problem, ops = make_problem(cell, SHAPE, dtype), device.ops(precision=precision)
    masks = make_masks("both", SHAPE, dtype)
    scale = {"carry_scale": masks["carry_scale"]}
    _, _, tape = forward(ops, problem, is_init=masks["is_init"])
    first = backward(ops, problem, tape, truncation=3, **scale)
    other = backward(ops, problem, tape, truncation=(1, 4), **scale)
    again = backward(ops, problem, tape, truncation=3, **scale)
    assert_identical(again, first)
    assert any((other[name] != first[name]).any() for name in first)


@cells
def test_two_runs_have_the_same_bits(device: Device, cell: str) -> None:
    shape = (40, 9, 13, 70)
    problem, masks = make_problem(cell, shape, "float32"), make_masks("both", shape, "float32")
    first = run(device.ops(), problem, **masks, truncation=(4, 8))
    assert_identical(run(device.ops(), problem, **masks, truncation=(4, 8)), first)


@cells
def test_no_order_of_threads_changes_a_bit(emulated: EmulatedDevice, cell: str) -> None:
    """A barrier that is missing would show."""
    shape = (9, 5, 7, 37)
    masks = make_masks("both", shape, "float32")
    problem = make_problem(cell, shape, "float32")
    first = run(emulated.ops(), problem, **masks, truncation=(2, 5))
    for seed in (1, 2, 3):
        with emulated.order(seed):
            found = run(emulated.ops(), problem, **masks, truncation=(2, 5))
        assert_identical(found, first)


@cells
@pytest.mark.parametrize(
    ("multiprocessors", "shared_kb", "capability"),
    [(1, 64, 75), (2, 99, 86), (8, 227, 90), (132, 227, 90)],
)
def test_every_size_of_device(
    emulated: EmulatedDevice, cell: str, multiprocessors: int, shared_kb: int, capability: int
) -> None:
    """Weights that stay on the chip, weights that do not, one block and many."""
    emulated.resize(multiprocessors, shared_kb << 10, capability=capability)
    for shape, truncation in (((5, 3, 6, 50), None), ((12, 2, 5, 33), (2, 4)), ((3, 20, 4, 16), 1)):
        check(emulated, cell, shape, "float32", "highest", "both", truncation)
        check(emulated, cell, shape, "float64", "tf32", "plain", truncation)


@cells
@pytest.mark.parametrize("axis", [0, 1, 2], ids=["T", "B", "I"])
def test_nothing_at_all(device: Device, cell: str, axis: int) -> None:
    """No steps, no rows or no inputs: empty results, the state passes through."""
    sizes = (5, 3, 4, 6)
    shape: Any = tuple(0 if i == axis else n for i, n in enumerate(sizes))
    problem = make_problem(cell, shape)
    for truncation in (None, 2, (1, 3)):
        options = {**make_masks("both", shape), "truncation": truncation}
        compare(problem, run(device.ops(), problem, **options), run(reference, problem, **options))


@cells
@precisions
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_travel(
    device: Device, cell: str, dtype: str, precision: str, value: float
) -> None:
    """As IEEE says, to what depends on them and nowhere else."""
    problem, ops = make_problem(cell, (5, 3, 4, 6), dtype), device.ops(precision=precision)
    clean = run(ops, problem)
    x = problem.x.copy()
    x[2, 1, 3] = value
    out, _, _ = forward(ops, replace(problem, x=x))
    with np.errstate(all="ignore"):
        wanted, _, _ = forward(reference, replace(problem, x=x))
    np.testing.assert_array_equal(np.isnan(out), np.isnan(wanted))
    np.testing.assert_array_equal(np.isinf(out), np.isinf(wanted))
    np.testing.assert_array_equal(out[:2], clean["out"][:2])
    np.testing.assert_array_equal(out[:, [0, 2]], clean["out"][:, [0, 2]])

    assert problem.grad_out is not None
    grad_out = problem.grad_out.copy()
    grad_out[2, 1] = value
    dirty = run(ops, replace(problem, grad_out=grad_out))
    assert not np.isfinite(dirty["grad_x"][2, 1]).any()
    assert not np.isfinite(dirty["grad_b_ih"]).all()
    np.testing.assert_array_equal(dirty["grad_x"][3:], clean["grad_x"][3:])
    np.testing.assert_array_equal(dirty["grad_x"][:, [0, 2]], clean["grad_x"][:, [0, 2]])


@cells
def test_a_reset_lets_no_nan_through(device: Device, cell: str) -> None:
    """It selects, it does not multiply by zero."""
    problem = make_problem(cell, (4, 2, 3, 5))
    assert problem.hx is not None
    is_init = np.zeros((4, 2), bool)
    is_init[0, 1] = True
    hx = tuple(state.copy() for state in problem.hx)
    for state in hx:
        state[1] = np.nan
    found = run(device.ops(), replace(problem, hx=hx), is_init=is_init)
    assert all(np.isfinite(value).all() for value in found.values())


def test_precision_matters_in_float32_only(device: Device) -> None:
    single = make_problem("lstm", (6, 4, 30, 40), "float32")
    fast, exact = (run(device.ops(precision=p), single) for p in ("tf32", "highest"))
    assert np.abs(fast["out"] - exact["out"]).max() > 1e-6
    double = make_problem("lstm", (6, 4, 30, 40))
    both = [run(device.ops(precision=p), double) for p in ("tf32", "highest")]
    assert_identical(*both)


@pytest.mark.gpu
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell != "rnn_relu"])  # its kink is near
@pytest.mark.parametrize("shape", [(65, 33, 129, 257), (20, 128, 64, 1024), (300, 2, 40, 520)])
def test_large_on_a_gpu(cell: str, shape: Shape) -> None:
    """Shapes of every regime, against the CPU's kernels in float64, which the reference judged."""
    device = CudaDevice()
    problem, masks = make_problem(cell, shape, "float32"), make_masks("both", shape, "float32")
    wide = Problem(**{name: widened(value) for name, value in vars(problem).items()})
    wide_masks = {name: widened(value) for name, value in masks.items()}
    for truncation in (None, 16, (8, 24)):
        wanted = run(tbptt_fast, wide, **wide_masks, truncation=truncation)
        for precision, eps in (("highest", None), ("tf32", TF32_EPS)):
            ops = device.ops(precision=precision)
            compare(problem, run(ops, problem, **masks, truncation=truncation), wanted, eps)


def widened(value: Any) -> Any:
    """float32 arrays in float64, also in tuples."""
    if isinstance(value, tuple):
        return tuple(widened(part) for part in value)
    is_float = isinstance(value, np.ndarray) and value.dtype == np.float32
    return value.astype("float64") if is_float else value


@pytest.mark.gpu
def test_a_captured_graph_replays() -> None:
    """Forward and backward pass in one CUDA graph, on changed inputs."""
    torch = CudaDevice().torch
    p = make_problem("lstm", (12, 4, 8, 64), "float32")
    x, w_ih, w_hh = (torch.from_numpy(a).cuda() for a in (p.x, p.w_ih, p.w_hh))
    grad = torch.from_numpy(p.grad_out).cuda()

    def step() -> Any:
        out, _, tape = cuda.lstm_forward(x, None, w_ih, w_hh)
        return out, cuda.lstm_backward(tape, grad, truncation=4)

    step()  # whatever is set up once
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, grads = step()
    x.mul_(0.5)
    graph.replay()
    expected_out, expected_grads = step()
    torch.testing.assert_close(out, expected_out, rtol=0, atol=0)
    torch.testing.assert_close(grads.w_hh, expected_grads.w_hh, rtol=0, atol=0)
