"""Recurrent layers on images, emulated and on a GPU, against the float64 reference."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tbptt_fast
from tbptt_fast import cuda
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
    compare,
    forward,
    make_masks,
    make_problem,
    run,
)
from .cuda_cases import PRECISIONS, TF32_EPS, CudaDevice, Device, EmulatedDevice
from .test_convrecurrent import problems
from .test_cuda_recurrent import eps_of, widened

cells = pytest.mark.parametrize("cell", CELLS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
LONG = Shape((7, 3, 2, 5), (3, 4), (3, 1), (1, 3), (1, 2))


def contiguous(results: dict[str, Any]) -> dict[str, Any]:
    return {name: np.ascontiguousarray(value) for name, value in results.items()}


@cells
@pytest.mark.parametrize("shape", [*SHAPES[:5], LONG], ids=str)
def test_every_shape(device: Device, cell: str, shape: Shape) -> None:
    for (dtype, precision), layout in zip(PRECISIONS, ("NCHW", "NHWC", "NCHW"), strict=True):
        eps = eps_of(dtype, precision)
        if cell == "rnn_relu" and eps is not None:  # its kink is near
            continue
        problem = make_problem(cell, shape, dtype)
        found = run(device.ops(precision=precision), problem, layout)
        compare(problem, found, run(reference, problem), eps)


@cache
def estimate(cell: str, masks: str, truncation: Any) -> dict[str, Any]:
    problem = make_problem(cell, LONG)
    return run(reference, problem, truncation=truncation, **some_masks(problem, masks))


def some_masks(problem: Problem, masks: str) -> dict[str, Any]:
    names = {"plain": (), "both": ("is_init", "carry_scale")}.get(masks, (masks,))
    return {name: mask for name, mask in make_masks(problem).items() if name in names}


@cells
@pytest.mark.parametrize("truncation", [*TRUNCATIONS, (2, 7), (3, 100)], ids=str)
@pytest.mark.parametrize("masks", ["plain", "is_init", "both"])
def test_masks_and_truncation(device: Device, cell: str, masks: str, truncation: Any) -> None:
    problem, expected = make_problem(cell, LONG), estimate(cell, masks, truncation)
    options: dict[str, Any] = {"truncation": truncation, **some_masks(problem, masks)}
    for layout in LAYOUTS:
        found = run(device.ops(), problem, layout, **options)
        compare(problem, found, expected)
    again = run(device.ops(), problem, layout, recompute=True, **options)
    assert_identical(contiguous(again), contiguous(found))


@cells
@pytest.mark.parametrize("truncation", [(1, 4), (2, 5), (2, 100)], ids=str)
@pytest.mark.parametrize("often", [0.1, 0.6])
def test_windows_that_end_early(device: Device, cell: str, truncation: Any, often: float) -> None:
    """Products deep enough to be made in parts, of fewer images from step to step, or of none."""
    problem = make_problem(cell, Shape((6, 3, 2, 24), (3, 4)))
    is_init = np.random.default_rng(1).random((6, 3)) < often
    options: dict[str, Any] = {"truncation": truncation, "is_init": is_init}
    expected = run(reference, problem, **options)
    compare(problem, run(device.ops(), problem, **options), expected)


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # a device serves all examples
)
@given(problems(), st.sampled_from(LAYOUTS), st.booleans())
def test_anything(
    device: Device, case: tuple[Problem, dict[str, Any]], layout: str, recompute: bool
) -> None:
    problem, options = case
    ops = device.ops(precision="highest")
    found = run(ops, problem, layout, recompute=recompute, **options)
    compare(problem, found, run(reference, problem, **options))


@cells
@pytest.mark.parametrize("missing", ["hx", "b_ih", "b_hh", "both", "grad_hx", "grad_out"])
def test_what_is_optional(device: Device, cell: str, missing: str) -> None:
    problem = make_problem(cell, LONG)
    gone: dict[str, Any] = dict.fromkeys(("b_ih", "b_hh") if missing == "both" else (missing,))
    problem = replace(problem, **gone)
    for options in ({}, {"is_init": make_masks(problem)["is_init"], "truncation": 2}):
        expected = run(reference, problem, **options)
        compare(problem, run(device.ops(), problem, **options), expected)


@pytest.mark.parametrize("missing", [0, 1])
def test_one_half_of_the_lstm_state(device: Device, missing: int) -> None:
    problem = make_problem("lstm_channel", LONG)

    def half(state: Any) -> Any:
        return tuple(None if i == missing else s for i, s in enumerate(state))

    problem = replace(problem, hx=half(problem.hx), grad_hx=half(problem.grad_hx))
    compare(problem, run(device.ops(), problem), run(reference, problem))


@cells
@layouts
def test_inference_gives_the_same_bits_and_no_tape(device: Device, cell: str, layout: str) -> None:
    problem, ops = make_problem(cell, LONG, "float32"), device.ops()
    for mask in (None, make_masks(problem)["is_init"]):
        out, final, tape = forward(ops, problem, layout, is_init=mask)
        only, final_only, none = forward(ops, problem, layout, is_init=mask, training=False)
        assert tape is not None
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
    problem = make_problem(cell, shape, "float32")
    options: dict[str, Any] = {"truncation": 2, "is_init": make_masks(problem)["is_init"]}
    emulated.resize(multiprocessors=1)
    found = run(emulated.ops(precision="highest"), problem, layout, recompute=recompute, **options)
    compare(problem, found, run(reference, problem, **options))
    ops = emulated.ops(precision="highest", training=False)
    out, _, _ = forward(ops, problem, layout, is_init=options["is_init"])
    assert_identical({"out": np.ascontiguousarray(found["out"])}, {"out": as_nchw(layout, out)})


def as_nchw(layout: str, images: Any) -> Any:
    return np.ascontiguousarray(images if layout == "NCHW" else np.moveaxis(images, -1, -3))


@cells
def test_no_order_of_threads_changes_a_bit(emulated: EmulatedDevice, cell: str) -> None:
    """A barrier that is missing would show."""
    problem = make_problem(cell, LONG, "float32")
    options: dict[str, Any] = {"truncation": (2, 3), **make_masks(problem)}
    first = run(emulated.ops(), problem, **options)
    for seed in (1, 2):
        with emulated.order(seed):
            found = run(emulated.ops(), problem, **options)
        assert_identical(found, first)


@pytest.mark.parametrize("cell", ["rnn_relu", "gru", "lstm_channel"])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_tape_can_be_used_again(device: Device, cell: str, recompute: bool) -> None:
    problem, ops = make_problem(cell, LONG), device.ops()
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
    problem = make_problem(cell, Shape(sizes, (3, 4)))
    for truncation in (None, 2, (1, 3)):
        options: dict[str, Any] = {"truncation": truncation, **make_masks(problem)}
        compare(problem, run(device.ops(), problem, **options), run(reference, problem, **options))


@cells
@pytest.mark.parametrize("truncation", [None, 2, (1, 5)], ids=str)
def test_a_cut_lets_no_nan_through(device: Device, cell: str, truncation: Any) -> None:
    """It selects, it does not multiply by zero: what lies before a reset reaches nothing behind it,
    and what lies behind it reaches nothing before."""
    clean = make_problem(cell, LONG)
    assert clean.hx is not None
    is_init = np.zeros(clean.x.shape[:2], bool)
    is_init[4, 1] = True
    options: dict[str, Any] = {"is_init": is_init, "truncation": truncation}
    wanted = run(device.ops(), clean, **options)
    hx = tuple(state.copy() for state in clean.hx)
    for state in hx:
        state[1] = np.nan
    found = run(device.ops(), replace(clean, hx=hx), **options)
    behind, rows = ("out", "grad_x"), [0, 2]
    for name in behind:
        np.testing.assert_array_equal(found[name][4:], wanted[name][4:])
        np.testing.assert_array_equal(found[name][:, rows], wanted[name][:, rows])
    assert np.isnan(found["out"][:4, 1]).any()
    grad_out = clean.grad_out.copy()
    grad_out[4:, 1] = np.nan
    found = run(device.ops(), replace(clean, grad_out=grad_out), **options)
    np.testing.assert_array_equal(found["grad_x"][:4], wanted["grad_x"][:4])
    np.testing.assert_array_equal(found["grad_h0"], wanted["grad_h0"])
    assert np.isnan(found["grad_x"][4:, 1]).any()


@pytest.mark.parametrize(
    ("cell", "values"), [("rnn_tanh", (0, 0)), ("gru", (4, 0)), ("lstm_map", (5, 1))]
)
def test_a_tape_holds_what_its_cell_needs(
    device: Device, cell: str, values: tuple[int, int]
) -> None:
    problem = make_problem(cell, LONG)
    steps, batch, _, hidden = LONG.sizes
    for recompute in (False, True):
        _, _, tape = forward(device.ops(), problem, recompute=recompute)
        assert tape.nbytes == 8 * values[recompute] * steps * batch * hidden * 3 * 4
        assert repr(tape) == (
            f"<ConvTape of conv{problem.op}_forward: steps 7, batch 3, inputs 2, hidden 5, "
            f"size 3x4, float64, {'recompute, ' if recompute else ''}{tape.nbytes} bytes>"
        )


def test_precision_matters_in_float32_only(device: Device) -> None:
    single = make_problem("lstm", SMALL, "float32")
    fast, exact = (run(device.ops(precision=p), single) for p in ("tf32", "highest"))
    assert np.abs(fast["out"] - exact["out"]).max() > 1e-6
    double = make_problem("lstm", LONG)
    both = [run(device.ops(precision=p), double) for p in ("tf32", "highest")]
    assert_identical(*both)


def test_wrong_arguments(device: Device) -> None:
    """The checks are the CPU's (tests/test_convrecurrent.py); here those of the place."""
    p, ops = make_problem("gru", LONG, "float32"), device.ops()
    for dtype in ("float16", "int32"):
        with pytest.raises(TypeError, match="x: expected dtype float32, float64 or bfloat16, got"):
            forward(ops, replace(p, x=p.x.astype(dtype)))
    with pytest.raises(TypeError, match="convgru_forward: w_hh: expected dtype float32, got float"):
        forward(ops, replace(p, w_hh=p.w_hh.astype("float64")))
    with pytest.raises(ValueError, match="w_hh: expected a kernel of odd height and width"):
        forward(ops, replace(p, w_hh=np.zeros((15, 5, 2, 3), "float32")))
    with pytest.raises(ValueError, match="algo: expected 'auto' or 'direct', got 'winograd'"):
        forward(ops, p, algo="winograd")
    with pytest.raises(ValueError, match="precision: expected 'tf32' or 'highest', got 'bf16'"):
        forward(device.ops(precision="bf16"), p)
    _, _, tape = forward(ops, p)
    with pytest.raises(ValueError, match="expected a tape of convlstm_forward, got one of convgru"):
        ops.convlstm_backward(tape, p.grad_out)
    with pytest.raises(ValueError, match=r"convgru_backward: grad_out: expected shape \[7, 3, 5"):
        ops.convgru_backward(tape, p.grad_out[1:])
    with pytest.raises(ValueError, match="grad_out: expected an array, or None together with"):
        ops.convgru_backward(tape, None)
    host = tbptt_fast.convgru_forward(p.x, None, p.w_ih, p.w_hh)[2]
    with pytest.raises(
        TypeError, match="convgru_backward: tape: expected a ConvTape, got ConvTape"
    ):
        ops.convgru_backward(host, p.grad_out)


def test_sizes_beyond_the_kernels_indices(device: Device) -> None:
    p = make_problem("lstm", LONG, "float32")
    with pytest.raises(ValueError, match=r"convlstm_forward: x: expected sizes.*below 2\*\*30"):
        device.ops().convlstm_forward(p.x, None, p.w_ih, p.w_hh, dilation=1 << 30)


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
    problem = make_problem(cell, shape, "float32")
    masks = make_masks(problem)
    wide = Problem(**{name: widened(value) for name, value in vars(problem).items()})
    wide_masks = {name: widened(value) for name, value in masks.items()}
    for truncation in (None, 4, (2, 6)):
        wanted = run(tbptt_fast, wide, **wide_masks, truncation=truncation)
        for precision, eps in (("highest", None), ("tf32", TF32_EPS)):
            for layout in LAYOUTS:
                ops = device.ops(precision=precision)
                found = run(ops, problem, layout, **masks, truncation=truncation)
                compare(problem, found, wanted, eps)


@pytest.mark.gpu
def test_a_captured_graph_replays() -> None:
    """Forward and backward pass in one CUDA graph, on changed inputs."""
    torch = CudaDevice().torch
    p = make_problem("lstm_channel", Shape((6, 2, 3, 16), (12, 12)), "float32")
    x, w_ih, w_hh, peephole = (
        torch.from_numpy(a).cuda() for a in (p.x, p.w_ih, p.w_hh, p.peephole)
    )
    grad = torch.from_numpy(p.grad_out).cuda()

    def step() -> Any:
        out, _, tape = cuda.convlstm_forward(x, None, w_ih, w_hh, peephole=peephole)
        return out, cuda.convlstm_backward(tape, grad, truncation=4)

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
