"""The boundary: what is accepted gives the same bits, what is not is named in the error."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import reference

from .cases import (
    CELLS,
    DTYPES,
    GATES,
    Problem,
    Shape,
    assert_identical,
    backward,
    compare,
    forward,
    make_masks,
    make_problem,
    pair,
    run,
    states,
)

SHAPE: Shape = (5, 3, 4, 6)
STEPS, BATCH, INPUTS, HIDDEN = SHAPE

cells = pytest.mark.parametrize("cell", CELLS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
ops = pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])


def message(text: str) -> str:
    """A pattern in which … stands for anything."""
    return "^" + ".*".join(re.escape(piece) for piece in text.split("…"))


# --- Layouts that must not matter ---------------------------------------------------------------


def sliced(a: Any) -> Any:
    wide = np.zeros(tuple(3 * n for n in a.shape), a.dtype)
    view = wide[tuple(slice(1, None, 3) for _ in a.shape)]
    view[...] = a
    return view


def transposed(a: Any) -> Any:
    return np.asfortranarray(a)


def reversed_(a: Any) -> Any:
    return np.ascontiguousarray(a[::-1])[::-1]


def misaligned(a: Any) -> Any:
    raw = np.zeros(a.nbytes + 1, np.uint8)[1:]
    view = raw.view(a.dtype).reshape(a.shape)
    view[...] = a
    assert a.itemsize == 1 or not view.flags.aligned
    return view


def offset_by_one(a: Any) -> Any:
    """Aligned for its dtype, but for no vector."""
    flat = np.zeros(a.size + 1, a.dtype)[1:]
    flat[...] = a.ravel()
    return flat.reshape(a.shape)


def read_only(a: Any) -> Any:
    a = a.copy()
    a.flags.writeable = False
    return a


class Producer:
    """Nothing but DLPack: neither an ndarray nor the buffer protocol."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def torch_tensor(a: Any) -> Any:
    return pytest.importorskip("torch").from_numpy(a.copy())


LAYOUTS = (
    sliced,
    transposed,
    reversed_,
    misaligned,
    offset_by_one,
    read_only,
    Producer,
    torch_tensor,
)


def everywhere(problem: Problem, change: Callable[[Any], Any]) -> Problem:
    """Every array of the problem changed."""

    def all_of(state: Any) -> Any:
        return tuple(change(s) for s in state)

    arrays = ("x", "w_ih", "w_hh", "b_ih", "b_hh", "grad_out")
    changed = {name: change(getattr(problem, name)) for name in arrays}
    return replace(problem, **changed, hx=all_of(problem.hx), grad_hx=all_of(problem.grad_hx))


@cells
@dtypes
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_layouts_give_the_same_bits(cell: str, dtype: str, layout: Callable[[Any], Any]) -> None:
    problem = make_problem(cell, SHAPE, dtype)
    masks = make_masks("both", SHAPE, dtype)
    changed = {name: layout(mask) for name, mask in masks.items()}
    expected = run(tbptt_fast, problem, **masks, truncation=(2, 3))
    actual = run(tbptt_fast, everywhere(problem, layout), **changed, truncation=(2, 3))
    assert_identical(actual, expected)


@dtypes
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_layouts_of_layers_and_losses(dtype: str, layout: Callable[[Any], Any]) -> None:
    rng = np.random.default_rng(0)
    x, w, b, y = (rng.normal(size=s).astype(dtype) for s in ((3, 4), (5, 4), (5,), (3, 5)))
    ids = np.array([4, 0, 4])

    def results(change: Callable[[Any], Any]) -> dict[str, Any]:
        named: dict[str, Any] = {"y": tbptt_fast.linear(change(x), change(w), change(b))}
        grads = tbptt_fast.linear_backward(change(y), change(x), change(w))
        named |= {"x": grads.x, "w": grads.w, "b": grads.b}
        named["rows"] = tbptt_fast.embedding(change(ids), change(w))
        named["table"] = tbptt_fast.embedding_backward(change(y), change(ids), 5)
        named["entropy"] = tbptt_fast.softmax_cross_entropy(change(y), change(ids))[1]
        named["square"] = tbptt_fast.mse_loss(change(y), change(0 * y))[1]
        return named

    assert_identical(results(layout), results(lambda a: a))


def test_a_broadcast_mask() -> None:
    """Strides of zero are strides."""
    problem = make_problem("gru", SHAPE)
    column = make_masks("is_init", SHAPE)["is_init"][:, :1]
    wide = np.broadcast_to(column, (STEPS, BATCH))
    assert_identical(
        run(tbptt_fast, problem, is_init=wide), run(tbptt_fast, problem, is_init=wide.copy())
    )


@cells
def test_inputs_are_not_changed(cell: str) -> None:
    problem = make_problem(cell, SHAPE)
    kept = everywhere(problem, np.copy)
    masks = make_masks("both", SHAPE)
    kept_masks = {name: mask.copy() for name, mask in masks.items()}
    run(tbptt_fast, problem, **masks, truncation=(1, 3))
    everywhere_equal = zip(
        (*vars(problem).values(), *masks.values()),
        (*vars(kept).values(), *kept_masks.values()),
        strict=True,
    )
    for now, before in everywhere_equal:
        np.testing.assert_array_equal(now, before)


# --- Wrong arguments of the recurrent layers ----------------------------------------------------


def rejected(cell: str, error: type[Exception], text: str, **changes: Any) -> None:
    """The forward pass with these changes fails with this message."""
    problem = make_problem(cell, SHAPE, "float32")
    options = {"is_init": changes.pop("is_init")} if "is_init" in changes else {}
    with pytest.raises(error, match=message(f"{problem.op}_forward: {text}")):
        forward(tbptt_fast, replace(problem, **changes), **options)


def shapes_of(cell: str) -> dict[str, tuple[int, ...]]:
    rows = GATES[cell] * HIDDEN
    return {"w_ih": (rows, INPUTS), "w_hh": (rows, HIDDEN), "b_ih": (rows,), "b_hh": (rows,)}


@ops
@pytest.mark.parametrize("name", ["w_ih", "w_hh", "b_ih", "b_hh"])
def test_wrong_weights(cell: str, name: str) -> None:
    shape = shapes_of(cell)[name]
    good = np.zeros(shape, "float32")
    longer = np.zeros((*shape[:-1], shape[-1] + 1), "float32")
    rejected(
        cell, ValueError, f"{name}: expected shape …got {list(longer.shape)}", **{name: longer}
    )
    rejected(cell, ValueError, f"{name}: expected …got …[1, ", **{name: good[None]})
    rejected(
        cell,
        ValueError,
        f"{name}: expected …got …[]",
        **{name: good[..., 0].ravel()[0:1].reshape(())},
    )
    for dtype in ("float64", "int32", "float16", "bool"):
        wrong = good.astype(dtype)
        rejected(cell, TypeError, f"{name}: expected dtype float32, got {dtype}", **{name: wrong})
    swapped = good.astype(good.dtype.newbyteorder())
    text = f"{name}: expected dtype float32, got {swapped.dtype}"
    rejected(cell, TypeError, text, **{name: swapped})
    rejected(cell, TypeError, f"{name}: expected an array, got list", **{name: good.tolist()})
    rejected(cell, TypeError, f"{name}: expected an array, got str", **{name: "weights"})


@ops
def test_wrong_x(cell: str) -> None:
    x = np.zeros((STEPS, BATCH, INPUTS), "float32")
    rejected(cell, ValueError, "x: expected …got …[5, 3]", x=x[..., 0])
    rejected(cell, ValueError, "x: expected …got …[1, 5, 3, 4]", x=x[None])
    # A wrong number of inputs shows where x and w_ih meet.
    rejected(cell, ValueError, "w_ih: expected shape …, 3], got …, 4]", x=x[..., 1:])
    for dtype in ("float16", "int64", "complex64", "bool", "object"):
        rejected(
            cell, TypeError, f"x: expected dtype float32 or float64, got {dtype}", x=x.astype(dtype)
        )
    swapped = x.astype(x.dtype.newbyteorder())
    text = f"x: expected dtype float32 or float64, got {swapped.dtype}"
    rejected(cell, TypeError, text, x=swapped)
    rejected(cell, TypeError, "x: expected an array, got list", x=x.tolist())
    rejected(cell, TypeError, "x: expected an array, got NoneType", x=None)


@ops
def test_wrong_state(cell: str) -> None:
    problem = make_problem(cell, SHAPE, "float32")
    good = problem.hx
    assert good is not None
    for i in range(len(good)):

        def changed(value: Any, i: int = i) -> tuple[Any, ...]:
            return tuple(value if j == i else s for j, s in enumerate(good))

        state = good[i]
        rejected(
            cell,
            ValueError,
            "hx…: expected shape [3, 6], got [3, 7]",
            hx=changed(np.zeros((3, 7), "float32")),
        )
        rejected(cell, ValueError, "hx…: expected …got …[1, 3, 6]", hx=changed(state[None]))
        rejected(
            cell,
            TypeError,
            "hx…: expected dtype float32, got float64",
            hx=changed(state.astype("float64")),
        )
        rejected(cell, TypeError, "hx…: expected an array, got list", hx=changed(state.tolist()))


def test_the_lstm_state_is_a_pair() -> None:
    p = make_problem("lstm", SHAPE)
    h, c = p.hx or ()
    _, _, tape = forward(tbptt_fast, p)
    for wrong in (h, (h,), (h, c, c), 0):
        with pytest.raises(
            (TypeError, ValueError), match=message("lstm_forward: hx: expected a pair (h, c)")
        ):
            tbptt_fast.lstm_forward(p.x, wrong, p.w_ih, p.w_hh)
        with pytest.raises(
            (TypeError, ValueError), match=message("lstm_backward: grad_hx: expected a pair (h, c)")
        ):
            tbptt_fast.lstm_backward(tape, p.grad_out, wrong)


@ops
def test_wrong_is_init(cell: str) -> None:
    mask = np.zeros((STEPS, BATCH), bool)
    rejected(cell, ValueError, "is_init: expected shape [5, 3], got [3, 5]", is_init=mask.T)
    rejected(cell, ValueError, "is_init: expected …got …[5]", is_init=mask[:, 0])
    for dtype in ("uint8", "int64", "float32"):
        wrong = mask.astype(dtype)
        rejected(cell, TypeError, f"is_init: expected dtype bool, got {dtype}", is_init=wrong)
    rejected(cell, TypeError, "is_init: expected an array, got list", is_init=mask.tolist())


@pytest.mark.parametrize("wrong", ["sigmoid", "", "Tanh", None])
def test_wrong_nonlinearity(wrong: Any) -> None:
    p = make_problem("rnn_tanh", SHAPE)
    with pytest.raises(
        (TypeError, ValueError), match=message("rnn_forward: nonlinearity: expected …got")
    ):
        tbptt_fast.rnn_forward(p.x, None, p.w_ih, p.w_hh, nonlinearity=wrong)


@ops
def test_wrong_gradients(cell: str) -> None:
    problem = make_problem(cell, SHAPE, "float32")
    _, _, tape = forward(tbptt_fast, problem)
    function = getattr(tbptt_fast, f"{problem.op}_backward")
    grad = problem.grad_out
    assert grad is not None

    def bad(error: type[Exception], text: str, *args: Any, **options: Any) -> None:
        with pytest.raises(error, match=message(f"{problem.op}_backward: {text}")):
            function(tape, *args, **options)

    bad(ValueError, "grad_out: expected shape [5, 3, 6], got [4, 3, 6]", grad[1:])
    bad(ValueError, "grad_out: expected …got …[5, 3]", grad[..., 0])
    bad(TypeError, "grad_out: expected dtype float32, got float64", grad.astype("float64"))
    bad(TypeError, "grad_out: expected an array, got list", grad.tolist())
    swapped = grad.astype(grad.dtype.newbyteorder())
    bad(TypeError, f"grad_out: expected dtype float32, got {swapped.dtype}", swapped)
    bad(ValueError, "grad_out: ", None)  # neither grad_out nor grad_hx

    scale = np.ones((STEPS, BATCH), "float32")
    bad(ValueError, "carry_scale: expected shape [5, 3], got [3, 5]", grad, carry_scale=scale.T)
    bad(ValueError, "carry_scale: expected …got …[5, 3, 1]", grad, carry_scale=scale[..., None])
    for dtype in ("float64", "bool"):
        wrong = scale.astype(dtype)
        bad(TypeError, f"carry_scale: expected dtype float32, got {dtype}", grad, carry_scale=wrong)

    final = problem.grad_hx
    assert final is not None
    for i in range(len(final)):
        for error, text, wrong in (
            (ValueError, "expected shape [3, 6], got [2, 6]", final[i][1:]),
            (TypeError, "expected dtype float32, got float64", final[i].astype("float64")),
        ):
            state = tuple(wrong if j == i else s for j, s in enumerate(final))
            bad(error, f"grad_hx…: {text}", grad, pair(problem, state))


@ops
def test_wrong_tape(cell: str) -> None:
    problem = make_problem(cell, SHAPE)
    function = getattr(tbptt_fast, f"{problem.op}_backward")
    _, _, other = forward(tbptt_fast, make_problem("lstm" if cell == "gru" else "gru", SHAPE))
    _, _, none = forward(tbptt_fast, problem, training=False)
    for wrong, error in ((other, ValueError), (none, TypeError), (3, TypeError)):
        with pytest.raises(error, match=message(f"{problem.op}_backward: tape: expected …got")):
            function(wrong, problem.grad_out)


# --- Values and sizes at the edge ---------------------------------------------------------------


@cells
@dtypes
@pytest.mark.parametrize("axis", [0, 1, 2], ids=["T", "B", "I"])
def test_nothing_at_all(cell: str, dtype: str, axis: int) -> None:
    """No steps, no rows or no inputs: empty results, the state passes through."""
    shape: Any = tuple(0 if i == axis else n for i, n in enumerate(SHAPE))
    problem = make_problem(cell, shape, dtype)
    for truncation in (None, 2, (1, 3)):
        actual = run(tbptt_fast, problem, **make_masks("both", shape, dtype), truncation=truncation)
        expected = run(
            reference, problem, **make_masks("both", shape, dtype), truncation=truncation
        )
        compare(problem, actual, expected)


@ops
def test_no_units_is_an_error(cell: str) -> None:
    rows = {"x": (5, 3, 4), "w_ih": (0, 4), "w_hh": (0, 0)}
    arrays = {name: np.zeros(shape) for name, shape in rows.items()}
    function = getattr(tbptt_fast, f"{cell.partition('_')[0]}_forward")
    with pytest.raises(ValueError, match="_forward: w_hh: expected …got".replace("…", ".*")):
        function(arrays["x"], None, arrays["w_ih"], arrays["w_hh"])


@pytest.mark.skipif(
    tbptt_fast.build_info()["sanitizers"], reason="AddressSanitizer ends the process instead"
)
@ops
def test_out_of_memory(cell: str) -> None:
    """More memory than addresses: an error, both for a copy of an input and for the outputs."""
    rows = GATES[cell] * HIDDEN
    function = getattr(tbptt_fast, f"{cell.partition('_')[0]}_forward")
    w_hh = np.zeros((rows, HIDDEN))
    endless = np.broadcast_to(np.zeros((1, 1, 1)), (2**28, 2**20, 1))
    with pytest.raises(MemoryError):
        function(endless, None, np.zeros((rows, 1)), w_hh)
    with pytest.raises(MemoryError):
        function(np.zeros((2**28, 2**28, 0)), None, np.zeros((rows, 0)), w_hh)


@cells
@dtypes
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_travel(cell: str, dtype: str, value: float) -> None:
    """As IEEE says, to what depends on them and nowhere else."""
    problem = make_problem(cell, SHAPE, dtype)
    clean = run(tbptt_fast, problem)
    x = problem.x.copy()
    x[2, 1, 3] = value
    out, _, _ = forward(tbptt_fast, replace(problem, x=x))
    with np.errstate(all="ignore"):
        expected, _, _ = forward(reference, replace(problem, x=x))
    np.testing.assert_array_equal(np.isnan(out), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(out), np.isinf(expected))
    np.testing.assert_array_equal(out[:2], clean["out"][:2])
    np.testing.assert_array_equal(out[:, [0, 2]], clean["out"][:, [0, 2]])

    assert problem.grad_out is not None
    grad_out = problem.grad_out.copy()
    grad_out[2, 1] = value
    dirty = run(tbptt_fast, replace(problem, grad_out=grad_out))
    assert not np.isfinite(dirty["grad_x"][2, 1]).any()
    assert not np.isfinite(dirty["grad_b_ih"]).all()
    np.testing.assert_array_equal(dirty["grad_x"][3:], clean["grad_x"][3:])
    np.testing.assert_array_equal(dirty["grad_x"][:, [0, 2]], clean["grad_x"][:, [0, 2]])


@ops
def test_results_own_their_memory(cell: str) -> None:
    """Fresh, writable, not shared with an input or the tape."""
    problem = make_problem(cell, SHAPE)
    out, final, tape = forward(tbptt_fast, problem)
    first = backward(tbptt_fast, problem, tape)
    for array in (out, *final):
        array.fill(7.0)
    second = backward(tbptt_fast, problem, tape)
    assert_identical(second, first)
    for array in (out, *final, *first.values()):
        assert array.flags.writeable
        assert array.flags.c_contiguous
        assert not any(
            np.shares_memory(array, s)
            for s in (problem.x, *states(problem, pair(problem, problem.hx)))
        )
