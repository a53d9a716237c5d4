"""Recurrent layers on images against the oracle: cells, shapes, layouts, estimators, bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tbptt_fast
from tbptt_fast import reference_convrecurrent as reference

from .cases import DTYPES, TRUNCATIONS, assert_close, assert_identical
from .convrecurrent_cases import (
    CELLS,
    LAYOUTS,
    SHAPES,
    SMALL,
    Problem,
    Shape,
    backward,
    channels_last,
    compare,
    cut,
    forward,
    make_masks,
    make_problem,
    run,
)
from .test_finite_differences import numerical

cells = pytest.mark.parametrize("cell", CELLS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
direct: dict[str, Any] = {"algo": "direct"}


@cells
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@dtypes
@pytest.mark.usefixtures("isa", "threads")
def test_values_and_gradients(cell: str, shape: Shape, dtype: str) -> None:
    problem = make_problem(cell, shape, dtype)
    expected = run(reference, problem)
    for layout in LAYOUTS:
        compare(problem, run(tbptt_fast, problem, layout, **direct), expected)


@cells
@layouts
@pytest.mark.parametrize("shape", [SMALL, SHAPES[6]], ids=str)
def test_estimators(cell: str, layout: str, shape: Shape) -> None:
    problem = make_problem(cell, replace(shape, sizes=(9, *shape.sizes[1:])))
    masks = make_masks(problem)
    for truncation in TRUNCATIONS:
        expected = run(reference, problem, truncation=truncation, **masks)
        compare(problem, run(tbptt_fast, problem, layout, truncation=truncation, **masks), expected)


@cells
def test_without_state_biases_and_losses(cell: str) -> None:
    problem = replace(
        make_problem(cell, SMALL), hx=None, b_ih=None, b_hh=None, grad_out=None, grad_hx=None
    )
    last = make_problem(cell, SMALL).grad_hx
    assert last is not None
    for change in (
        {"grad_hx": last},
        {"grad_out": np.ones_like(make_problem(cell, SMALL).grad_out)},
    ):
        some: Problem = replace(problem, **change)
        for b_ih, b_hh in (
            (None, None),
            (make_problem(cell, SMALL).b_ih, None),
            (None, some.w_hh[:, 0, 0, 0]),
        ):
            p = replace(some, b_ih=b_ih, b_hh=b_hh)
            compare(p, run(tbptt_fast, p), run(reference, p))


@st.composite
def problems(draw: Any) -> tuple[Problem, dict[str, Any]]:
    odd = st.sampled_from([1, 3, 5])
    shape = Shape(
        tuple(draw(st.integers(1, most)) for most in (7, 3, 5, 9)),
        (draw(st.integers(1, 6)), draw(st.integers(1, 6))),
        (draw(odd), draw(odd)),
        (draw(odd), draw(odd)),
        (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
    )
    cell = draw(st.sampled_from([c for c in CELLS if c != "rnn_relu"]))
    problem = make_problem(cell, shape, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 999)))
    if draw(st.booleans()):
        problem = replace(problem, hx=None)
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    size = problem.x.shape[:2]
    rate = draw(st.sampled_from([0.0, 0.3, 1.0]))
    k1 = draw(st.integers(1, 8))
    options: dict[str, Any] = {
        "truncation": draw(st.sampled_from([None, k1, (k1, k1 + draw(st.integers(0, 4)))])),
        "is_init": draw(st.sampled_from([None, rng.random(size) < rate])),
        "carry_scale": draw(st.sampled_from([None, rng.choice([0.0, 1.0, -0.5, 1.25], size=size)])),
    }
    if options["carry_scale"] is not None:
        options["carry_scale"] = options["carry_scale"].astype(problem.x.dtype)
    return problem, options


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(problems(), st.sampled_from(tbptt_fast.available_isas()), st.sampled_from(LAYOUTS))
def test_anything(case: tuple[Problem, dict[str, Any]], isa: str, layout: str) -> None:
    problem, options = case
    with tbptt_fast.isa(isa):
        actual = run(tbptt_fast, problem, layout, **direct, **options)
    compare(problem, actual, run(reference, problem, **options))


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm", "lstm_map"])
@pytest.mark.usefixtures("isa")
def test_winograd_is_close(cell: str) -> None:
    """Kernels of 3x3 in float32 may go Winograd's way: within 1e-4 of the greatest element."""
    problem = make_problem(cell, Shape((5, 2, 16, 32), (32, 20)), "float32")
    for layout in LAYOUTS:
        for options in ({}, {"truncation": 2, **make_masks(problem)}, {"truncation": (2, 3)}):
            expected = run(reference, problem, **options)
            for name, value in run(tbptt_fast, problem, layout, **options).items():
                scale = np.abs(expected[name]).max()
                assert np.abs(value - expected[name]).max() <= 1e-4 * scale, name


@dtypes
@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "gru", "lstm"])
@pytest.mark.usefixtures("isa")
def test_one_pixel_is_the_layer_without_images(cell: str, dtype: str) -> None:
    """1x1 maps and kernels: equal up to the order in which the biases are added."""
    problem = make_problem(cell, SHAPES[3], dtype)
    found = run(tbptt_fast, problem, truncation=2, **make_masks(problem))
    p = problem
    flat = {"rnn": tbptt_fast.rnn_forward, "gru": tbptt_fast.gru_forward}
    options = {"nonlinearity": cell[4:]} if cell.startswith("rnn") else {}
    masks = make_masks(problem)
    layer = flat.get(p.op, tbptt_fast.lstm_forward)
    gradient = getattr(tbptt_fast, f"{p.op}_backward")

    def squeezed(a: Any) -> Any:
        return a.reshape(a.shape[: a.ndim - 2])

    def pair(states: Any) -> Any:
        flat_states = tuple(squeezed(s) for s in states)
        return flat_states if p.op == "lstm" else flat_states[0]

    weights = (squeezed(p.w_ih), squeezed(p.w_hh), p.b_ih, p.b_hh)
    out, last, tape = layer(
        squeezed(p.x), pair(p.hx), *weights, is_init=masks["is_init"], **options
    )
    grads = gradient(
        tape,
        squeezed(p.grad_out),
        pair(p.grad_hx),
        truncation=2,
        carry_scale=masks["carry_scale"],
    )
    expected = {"out": out, "grad_x": grads.x, "grad_w_ih": grads.w_ih, "grad_w_hh": grads.w_hh}
    expected |= {"grad_b_ih": grads.b_ih, "grad_b_hh": grads.b_hh}
    finals = ("h_n", "grad_h0"), ("c_n", "grad_c0")
    for i, (name, grad) in enumerate(finals[: 2 if p.op == "lstm" else 1]):
        expected[name] = last[i] if p.op == "lstm" else last
        expected[grad] = grads.hx[i] if p.op == "lstm" else grads.hx
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        kind = "gradient" if name.startswith("grad") else "forward"
        assert_close(found[name].reshape(value.shape), value, kind, length=p.length, name=name)


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm", "lstm_channel"])
@pytest.mark.parametrize("truncation", [None, 2, (1, 3)], ids=str)
@pytest.mark.usefixtures("isa")
def test_finite_differences(cell: str, truncation: Any) -> None:
    """A truncated gradient is that of a loss whose recorded states are constants."""
    problem = make_problem(cell, Shape((4, 2, 2, 2), (3, 2), (3, 1), (3, 3)))
    assert problem.hx is not None
    assert problem.grad_hx is not None
    steps = len(problem.x)
    recorded = [tuple(s.copy() for s in problem.hx)]
    for t in range(steps):
        recorded.append(forward(tbptt_fast, cut(problem, slice(t, t + 1), hx=recorded[-1]))[1])
    k1, k2 = (truncation, truncation) if isinstance(truncation, int) else truncation or (4, 4)

    def loss() -> float:
        total = 0.0
        for start in range(0, steps, k1):
            stop, first = min(start + k1, steps), max(0, start + k1 - k2)
            hx = problem.hx if first == 0 else recorded[first]
            piece = cut(problem, slice(first, stop), hx=hx)
            out, final, _ = forward(tbptt_fast, piece, training=False)
            total += float((out * piece.grad_out)[start - first :].sum())
            if stop == steps:
                total += sum(
                    float((s * g).sum()) for s, g in zip(final, problem.grad_hx or (), strict=True)
                )
        return total

    _, _, tape = forward(tbptt_fast, problem)
    grads = backward(tbptt_fast, problem, tape, truncation=truncation)
    inputs = {n: getattr(problem, n) for n in ("x", "w_ih", "w_hh", "b_ih", "b_hh", "peephole")}
    inputs |= dict(zip(("h0", "c0"), problem.hx, strict=False))
    for name, value in grads.items():
        expected = numerical(loss, inputs[name])
        np.testing.assert_allclose(value, expected, rtol=1e-7, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm_map"])
@pytest.mark.parametrize("shape", [SMALL, SHAPES[3], SHAPES[6], SHAPES[7]], ids=str)
@layouts
@pytest.mark.usefixtures("isa")
def test_threads_do_not_change_bits(cell: str, shape: Shape, layout: str) -> None:
    for dtype in DTYPES:
        problem = make_problem(cell, replace(shape, sizes=(7, *shape.sizes[1:])), dtype)
        masks = make_masks(problem)
        for options in ({}, {"truncation": 3, **masks}, {"truncation": (2, 4), **masks}):
            results = []
            for n in (1, 2, 3, 8, 2):
                with tbptt_fast.num_threads(n):
                    results.append(run(tbptt_fast, problem, layout, **options))
            for result in results[1:]:
                assert_identical(
                    {k: np.ascontiguousarray(v) for k, v in result.items()},
                    {k: np.ascontiguousarray(v) for k, v in results[0].items()},
                )


@pytest.mark.parametrize("cell", ["gru", "lstm_map"])
@layouts
def test_long_sequences_are_walked_in_runs(cell: str, layout: str) -> None:
    """Images so large that the gradients of few steps are kept at a time."""
    shape = Shape((5, 1, 1, 32), (50, 30), (1, 1), (1, 3))
    problem = make_problem(cell, shape)
    rows = 3 if cell == "gru" else 4
    assert 2 * 32 * rows * 1500 * 8 <= 4 << 20 < 5 * 32 * rows * 1500 * 8
    is_init = np.array([[0], [0], [0], [1], [0]], bool)
    scale = np.array([[1.5], [0.5], [1.0], [1.0], [2.0]])
    for options in ({}, {"truncation": 3}, {"is_init": is_init, "carry_scale": scale}):
        compare(
            problem, run(tbptt_fast, problem, layout, **options), run(reference, problem, **options)
        )


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm_channel"])
@pytest.mark.parametrize("shape", [SMALL, SHAPES[6]], ids=str)
@layouts
def test_a_reset_selects(cell: str, shape: Shape, layout: str) -> None:
    """What is NaN before a reset stays before it, in every gradient by the weights too."""
    problem = make_problem(cell, replace(shape, sizes=(4, *shape.sizes[1:])), "float32")
    is_init = np.zeros(problem.x.shape[:2], bool)
    is_init[2] = True
    x, grad_out = problem.x.copy(), problem.grad_out.copy()
    x[:2] = 0
    grad_out[:2] = 0
    clean = replace(problem, x=x, grad_out=grad_out, hx=tuple(0 * s for s in problem.hx or ()))
    dirty = replace(clean, hx=tuple(np.full_like(s, np.nan) for s in clean.hx or ()))
    found, expected = (run(tbptt_fast, p, layout, is_init=is_init) for p in (dirty, clean))
    assert np.isnan(found["out"][:2]).any()
    np.testing.assert_array_equal(found["out"][2:], expected["out"][2:])
    np.testing.assert_array_equal(found["grad_x"][2:], expected["grad_x"][2:])
    first = np.ones_like(is_init)
    found = run(tbptt_fast, dirty, layout, is_init=first)
    assert all(np.isfinite(value).all() for value in found.values())


@pytest.mark.parametrize("cell", ["rnn_relu", "gru", "lstm_map"])
@pytest.mark.parametrize("sizes", [(0, 2, 3, 4), (3, 0, 3, 4), (0, 0, 3, 4)], ids=str)
@layouts
def test_empty(cell: str, sizes: Any, layout: str) -> None:
    problem = make_problem(cell, Shape(sizes, (3, 4)))
    found = run(tbptt_fast, problem, layout, truncation=2)
    assert found["out"].shape == (sizes[0], sizes[1], 4, 3, 4)
    assert problem.hx is not None
    assert problem.grad_hx is not None
    np.testing.assert_array_equal(found["h_n"], problem.hx[0])
    np.testing.assert_array_equal(found["grad_h0"], problem.grad_hx[0])
    assert not found["grad_w_hh"].any()
    assert not found["grad_b_ih"].any()
    assert found["grad_x"].shape == problem.x.shape


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
@layouts
def test_inference_gives_the_same_bits(cell: str, layout: str) -> None:
    for shape in (SMALL, SHAPES[6]):
        problem = make_problem(cell, shape, "float32")
        out, last, tape = forward(tbptt_fast, problem, layout)
        same, same_last, nothing = forward(tbptt_fast, problem, layout, training=False)
        assert nothing is None
        assert tape is not None
        np.testing.assert_array_equal(same, out)
        for a, b in zip(same_last, last, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_tape_can_be_used_again() -> None:
    problem = make_problem("lstm_map", SMALL)
    _, _, tape = forward(tbptt_fast, problem)
    first = backward(tbptt_fast, problem, tape, truncation=2)
    backward(tbptt_fast, problem, tape, truncation=(1, 3))
    assert_identical(backward(tbptt_fast, problem, tape, truncation=2), first)
    steps, batch, inputs, hidden = SMALL.sizes
    assert tape.nbytes == 5 * 8 * steps * batch * hidden * 7 * 6
    assert repr(tape) == (
        f"<ConvTape of convlstm_forward: steps {steps}, batch {batch}, inputs {inputs}, "
        f"hidden {hidden}, size 7x6, float64, {tape.nbytes} bytes>"
    )


def test_layouts_of_memory_do_not_matter() -> None:
    problem = make_problem("lstm_map", SMALL)

    def sliced(a: Any) -> Any:
        wide = np.zeros(tuple(2 * n for n in a.shape), a.dtype)
        view = wide[tuple(slice(1, None, 2) for _ in a.shape)]
        view[...] = a
        view.flags.writeable = False
        return view

    changed = replace(
        problem,
        **{
            name: sliced(getattr(problem, name))
            for name in ("x", "w_ih", "w_hh", "b_ih", "b_hh", "peephole", "grad_out")
        },
        hx=tuple(sliced(s) for s in problem.hx or ()),
        grad_hx=tuple(np.asfortranarray(s) for s in problem.grad_hx or ()),
    )
    masks = make_masks(problem)
    expected = run(tbptt_fast, problem, truncation=2, **masks)
    masks = {name: sliced(value) for name, value in masks.items()}
    assert_identical(run(tbptt_fast, changed, truncation=2, **masks), expected)


X = np.ones((2, 3, 4, 5, 6))
W_IH, W_HH = np.ones((12, 4, 3, 3)), np.ones((12, 3, 3, 3))

WRONG: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
    ({"x": X[0]}, ValueError, r"x: expected 5 dimensions, got shape \[3, 4, 5, 6\]"),
    ({"x": X.astype(int)}, TypeError, "x: expected dtype float32 or float64, got int64"),
    ({"x": [1]}, TypeError, "x: expected an array, got list"),
    ({"x": X[:, :, :0]}, ValueError, "x: expected at least one channel and one pixel"),
    ({"x": X[..., :0]}, ValueError, "x: expected at least one channel and one pixel"),
    ({"x": X[:, :, :2]}, ValueError, r"w_ih: expected shape \[12, 2, 3, 3\], got \[12, 4, 3, 3\]"),
    ({"w_ih": W_IH[:, :, :2]}, ValueError, "w_ih: expected a kernel of odd height and width"),
    ({"w_hh": W_HH[..., :2]}, ValueError, "w_hh: expected a kernel of odd height and width"),
    ({"w_hh": W_HH[:10]}, ValueError, "w_hh: expected 4 gates of equal size"),
    ({"w_hh": W_HH[:0]}, ValueError, "w_hh: expected at least one hidden channel"),
    ({"w_hh": W_HH.astype("f")}, TypeError, "w_hh: expected dtype float64, got float32"),
    ({"w_hh": W_HH[:, :2]}, ValueError, r"w_hh: expected shape \[12, 3, 3, 3\]"),
    ({"b_ih": np.ones(11)}, ValueError, r"b_ih: expected shape \[12\], got \[11\]"),
    ({"b_hh": np.ones((12, 1))}, ValueError, r"b_hh: expected shape \[12\]"),
    ({"hx": np.ones((3, 3, 5, 6))}, TypeError, r"hx: expected a pair \(h, c\), got ndarray"),
    ({"hx": (np.ones((3, 3, 5, 5)), None)}, ValueError, r"hx\[0\]: expected shape"),
    ({"hx": (None, np.ones((3, 5, 6, 3)))}, ValueError, r"hx\[1\]: expected shape \[3, 3, 5, 6\]"),
    ({"peephole": np.ones((4, 3))}, ValueError, r"peephole: expected shape \[3, 3\], got \[4, 3\]"),
    ({"peephole": np.ones((3, 3, 6, 5))}, ValueError, r"peephole: expected shape \[3, 3, 5, 6\]"),
    ({"is_init": np.ones((2, 3))}, TypeError, "is_init: expected dtype bool, got float64"),
    ({"is_init": np.ones((3, 2), bool)}, ValueError, r"is_init: expected shape \[2, 3\]"),
    ({"dilation": 0}, ValueError, "dilation: expected an integer >= 1, got 0"),
    ({"dilation": (1, 2, 3)}, ValueError, "dilation: expected 2 integers, got 3"),
    ({"dilation": 1.5}, TypeError, "dilation: expected an integer or a tuple"),
    ({"layout": "CHWN"}, ValueError, "layout: expected 'NCHW' or 'NHWC', got 'CHWN'"),
    ({"layout": "NHWC"}, ValueError, "w_ih: expected shape"),
    ({"algo": "winograd"}, ValueError, "algo: expected 'auto' or 'direct', got 'winograd'"),
    ({"algo": None}, TypeError, "algo: expected a string, got NoneType"),
    ({"training": 1}, TypeError, "training: expected True or False, got int"),
)


@pytest.mark.parametrize(("change", "error", "message"), WRONG, ids=range(len(WRONG)))
def test_wrong_arguments_forward(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"x": X, "hx": None, "w_ih": W_IH, "w_hh": W_HH} | change
    with pytest.raises(error, match=f"^convlstm_forward: {message}"):
        tbptt_fast.convlstm_forward(**arguments)


STATE = np.ones((3, 3, 5, 6))
WRONG_BACKWARD: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
    ({"tape": None}, TypeError, "tape: expected a ConvTape, got NoneType"),
    ({"grad_out": None}, ValueError, "grad_out: expected an array, or None together with grad_hx"),
    ({"grad_out": X}, ValueError, r"grad_out: expected shape \[2, 3, 3, 5, 6\]"),
    ({"grad_hx": STATE}, TypeError, r"grad_hx: expected a pair \(h, c\), got ndarray"),
    ({"grad_hx": (STATE, STATE[:2])}, ValueError, r"grad_hx\[1\]: expected shape"),
    ({"truncation": 0}, ValueError, "truncation: expected at least 1 step, got 0"),
    ({"truncation": (3, 2)}, ValueError, "truncation: expected k1 <= k2"),
    ({"truncation": "2"}, TypeError, "truncation: expected None, an integer K or a pair"),
    ({"carry_scale": np.ones((3, 2))}, ValueError, r"carry_scale: expected shape \[2, 3\]"),
    ({"carry_scale": np.ones((2, 3), "f")}, TypeError, "carry_scale: expected dtype float64"),
)


@pytest.mark.parametrize(
    ("change", "error", "message"), WRONG_BACKWARD, ids=range(len(WRONG_BACKWARD))
)
def test_wrong_arguments_backward(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    out, _, tape = tbptt_fast.convlstm_forward(X, None, W_IH, W_HH)
    arguments = {"tape": tape, "grad_out": np.ones_like(out)} | change
    with pytest.raises(error, match=f"^convlstm_backward: {message}"):
        tbptt_fast.convlstm_backward(**arguments)


def test_other_wrong_arguments() -> None:
    _, _, tape = tbptt_fast.convlstm_forward(X, None, W_IH, W_HH)
    with pytest.raises(ValueError, match=r"^convgru_backward: tape: expected a tape of convgru"):
        tbptt_fast.convgru_backward(tape, X)
    w = np.ones((2, 4, 3, 3))
    with pytest.raises(ValueError, match=r"^convrnn_forward: nonlinearity: expected 'tanh' or"):
        tbptt_fast.convrnn_forward(X, None, w, w[:, :2], nonlinearity="sin")
    with pytest.raises(TypeError, match=r"^convrnn_forward: nonlinearity: expected 'tanh' or"):
        tbptt_fast.convrnn_forward(X, None, w, w[:, :2], nonlinearity=1)


def test_a_dlpack_producer_is_taken() -> None:
    torch = pytest.importorskip("torch")
    problem = make_problem("lstm", SMALL)
    expected = forward(tbptt_fast, problem)[0]
    given = replace(problem, x=torch.from_numpy(problem.x))
    np.testing.assert_array_equal(forward(tbptt_fast, given)[0], expected)
    np.testing.assert_array_equal(forward(tbptt_fast, problem, "NHWC")[0], channels_last(expected))
