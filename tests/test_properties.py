"""Hypothesis: any shape, dtype, stride, mask and option agrees with the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tbptt_fast
from tbptt_fast import reference

from .cases import CELLS, DTYPES, Problem, assert_close, compare, make_problem, relu_margin, run

few = settings(max_examples=150, deadline=None, derandomize=True, database=None)
isas = st.sampled_from(tbptt_fast.available_isas())
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**32 - 1)


def strided(draw: Any, array: Any) -> Any:
    """The same values in another layout."""
    layout = draw(st.sampled_from(["contiguous", "sliced", "reversed", "transposed", "padded"]))
    if layout == "sliced":
        wide = np.zeros(tuple(2 * n for n in array.shape), array.dtype)
        view = wide[tuple(slice(1, None, 2) for _ in array.shape)]
        view[...] = array
        return view
    if layout == "reversed":
        return np.ascontiguousarray(array[::-1])[::-1]
    if layout == "transposed":
        return np.asfortranarray(array)
    if layout == "padded":
        return np.pad(array, 3)[tuple(slice(3, -3) for _ in array.shape)]
    return array


@st.composite
def problems(draw: Any) -> tuple[Problem, dict[str, Any]]:
    cell, dtype = draw(st.sampled_from(CELLS)), draw(dtypes)
    shape = (
        draw(st.integers(1, 10)),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 20)),
        draw(st.integers(1, 35)),
    )
    p = make_problem(cell, shape, dtype, seed=draw(seeds))

    def maybe(value: Any) -> Any:
        return value if draw(st.booleans()) else None

    def layout(state: Any) -> Any:
        return None if state is None else tuple(strided(draw, s) for s in state)

    p = replace(
        p,
        x=strided(draw, p.x),
        hx=layout(maybe(p.hx)),
        w_ih=strided(draw, p.w_ih),
        w_hh=strided(draw, p.w_hh),
        b_ih=maybe(p.b_ih),
        b_hh=maybe(p.b_hh),
        grad_out=strided(draw, p.grad_out),
        grad_hx=layout(maybe(p.grad_hx)),
    )
    rng = np.random.default_rng(draw(seeds))
    rate = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    is_init = rng.random(shape[:2]) < rate
    carry = rng.choice([0.0, 1.0, -0.5, 1.25], size=shape[:2]).astype(dtype)
    k1 = draw(st.integers(1, 12))
    truncation = draw(st.sampled_from([None, k1, (k1, k1 + draw(st.integers(0, 6)))]))
    options = {
        "is_init": maybe(strided(draw, is_init)),
        "carry_scale": maybe(strided(draw, carry)),
        "truncation": truncation,
    }
    return p, options


@few
@given(case=problems(), isa=isas, threads=st.integers(1, 4))
def test_recurrent(case: tuple[Problem, dict[str, Any]], isa: str, threads: int) -> None:
    problem, options = case
    expected = run(reference, problem, **options)
    if problem.cell == "rnn_relu":
        assume(relu_margin(problem, expected["out"], options["is_init"]) > 1e-5)
    with tbptt_fast.isa(isa), tbptt_fast.num_threads(threads):
        compare(problem, run(tbptt_fast, problem, **options), expected)


@st.composite
def batches(draw: Any) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(0, 7), max_size=3)))


@few
@given(
    leading=batches(),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    activation=st.sampled_from([None, "relu", "tanh", "sigmoid"]),
    bias=st.booleans(),
    needs=st.sets(st.sampled_from("xwb")),
    dtype=dtypes,
    isa=isas,
    seed=seeds,
    data=st.data(),
)
def test_linear(
    leading: tuple[int, ...],
    sizes: tuple[int, int],
    activation: str | None,
    bias: bool,
    needs: set[str],
    dtype: str,
    isa: str,
    seed: int,
    data: Any,
) -> None:
    rng = np.random.default_rng(seed)
    inputs, outputs = sizes
    x = strided(data.draw, rng.normal(size=(*leading, inputs)).astype(dtype))
    w = strided(data.draw, rng.normal(size=(outputs, inputs)).astype(dtype))
    b = rng.normal(size=outputs).astype(dtype) if bias else None
    grad = strided(data.draw, rng.normal(size=(*leading, outputs)).astype(dtype))
    y64 = reference.linear(x, w, b)
    assume(activation != "relu" or np.abs(y64).min(initial=1.0) > 1e-5)

    options: dict[str, Any] = {"activation": activation, "needs": tuple(sorted(needs))}
    with tbptt_fast.isa(isa):
        y = tbptt_fast.linear(x, w, b, activation=activation)
        grads = tbptt_fast.linear_backward(grad, x, w, y=y, **options)
    expected_y = reference.linear(x, w, b, activation=activation)
    expected = reference.linear_backward(grad, x, w, y=expected_y, **options)
    length = inputs + outputs + int(np.prod(leading))
    assert_close(y, expected_y, "forward", length=length, name="y")
    for name in "xwb":
        actual, wanted = getattr(grads, name), getattr(expected, name)
        assert (actual is None) == (name not in needs)
        if actual is not None:
            assert_close(actual, wanted, "gradient", length=length, name=name)


@few
@given(
    leading=batches(), rows=st.integers(1, 9), width=st.integers(1, 40), dtype=dtypes, seed=seeds
)
def test_embedding(leading: tuple[int, ...], rows: int, width: int, dtype: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(rows, width)).astype(dtype)
    ids = rng.integers(0, rows, size=leading).astype(rng.choice(["int32", "int64"]))
    grad = rng.normal(size=(*leading, width)).astype(dtype)
    np.testing.assert_array_equal(tbptt_fast.embedding(ids, w), w[ids])
    actual = tbptt_fast.embedding_backward(grad, ids, rows)
    expected = reference.embedding_backward(grad, ids, rows)
    assert_close(actual, expected, "gradient", length=ids.size)


@few
@given(
    leading=st.lists(st.integers(1, 7), max_size=3).map(tuple),
    classes=st.integers(1, 70),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    weighted=st.booleans(),
    scale=st.sampled_from([1.0, 30.0, 1000.0]),
    dtype=dtypes,
    isa=isas,
    seed=seeds,
)
def test_losses(
    leading: tuple[int, ...],
    classes: int,
    reduction: str,
    weighted: bool,
    scale: float,
    dtype: str,
    isa: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(*leading, classes))).astype(dtype)
    target = rng.normal(size=logits.shape).astype(dtype)
    targets = np.asarray(rng.integers(0, classes, size=leading))
    targets[np.asarray(rng.random(leading) < 0.2)] = -7
    assume((targets != -7).any())
    options: dict[str, Any] = {"reduction": reduction}
    if weighted:
        options["weights"] = rng.uniform(0.5, 2, size=leading).astype(dtype)

    with tbptt_fast.isa(isa):
        entropy = tbptt_fast.softmax_cross_entropy(logits, targets, ignore_index=-7, **options)
        square = tbptt_fast.mse_loss(logits, target, **options)
    expected = (
        reference.softmax_cross_entropy(logits, targets, ignore_index=-7, **options),
        reference.mse_loss(logits, target, **options),
    )
    for actual, wanted in zip((entropy, square), expected, strict=True):
        assert reduction == "none" or isinstance(actual[0], float)
        one = 1 / logits.size if reduction == "mean" else 1.0
        options = {"length": logits.size, "eps": float(np.finfo(dtype).eps), "terms": one}
        assert_close(actual[0], wanted[0], "forward", **options, name="loss")
        assert_close(actual[1], wanted[1], "gradient", **options, name="grad")


@few
@given(
    optimizer=st.sampled_from(["sgd", "rmsprop", "adam"]),
    sizes=st.lists(st.integers(1, 70), min_size=1, max_size=4),
    max_norm=st.sampled_from([None, 0.1, 100.0]),
    clip_value=st.sampled_from([None, 0.5, 100.0]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    flag=st.booleans(),
    mu=st.sampled_from([0.0, 0.9]),
    dtype=dtypes,
    isa=isas,
    seed=seeds,
)
def test_optimizers(
    optimizer: str,
    sizes: list[int],
    max_norm: float | None,
    clip_value: float | None,
    weight_decay: float,
    flag: bool,
    mu: float,
    dtype: str,
    isa: str,
    seed: int,
) -> None:
    """Three steps; `flag` is nesterov or decoupled."""
    rng = np.random.default_rng(seed)
    sizes = [8, *sizes]  # enough elements that not all of them cancel
    params = [rng.normal(size=n).astype(dtype) for n in sizes]
    states = [[np.zeros_like(p) for p in params] for _ in range(2)]
    common = {"max_norm": max_norm, "clip_value": clip_value, "weight_decay": weight_decay}

    def step(ops: Any, arrays: list[list[Any]], grads: list[Any], count: int) -> Any:
        p, first, second = arrays
        if optimizer == "sgd":
            nesterov = flag and mu > 0
            return ops.sgd_step(p, grads, first, lr=0.1, mu=mu, nesterov=nesterov, **common)
        if optimizer == "rmsprop":
            return ops.rmsprop_step(p, grads, first, second, lr=0.1, mu=mu, **common)
        return ops.adam_step(p, grads, first, second, step=count, lr=0.1, decoupled=flag, **common)

    actual = [params, *states]
    expected = [[a.astype(np.float64) for a in arrays] for arrays in actual]
    eps = float(np.finfo(dtype).eps)
    for count in (1, 2, 3):
        grads = [rng.normal(size=n).astype(dtype) for n in sizes]
        kept = [g.copy() for g in grads]
        with tbptt_fast.isa(isa):
            result = step(tbptt_fast, actual, grads, count)
        wanted = step(reference, expected, [g.astype(np.float64) for g in kept], count)
        assert result.applied is True
        assert_close(result.norm, wanted.norm, "forward", length=sum(sizes), eps=eps, name="norm")
        for a, b in zip(grads, kept, strict=True):
            np.testing.assert_array_equal(a, b)
    for arrays, wanted_arrays in zip(actual, expected, strict=True):
        a, b = np.concatenate(arrays), np.concatenate(wanted_arrays)
        # Averages of squares are small and never cancel.
        assert_close(a, b, "gradient", length=sum(sizes), terms=float(np.abs(b).max()))
