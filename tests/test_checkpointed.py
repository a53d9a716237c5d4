"""Full backpropagation in segments: the same bits with and without running them again."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import nn
from tbptt_fast.tbptt import FullGradient, Primitive, checkpointed

from .cases import CELLS, DTYPES, Problem, assert_close, forward, make_masks, make_problem, pair

STEPS, BATCH, FEATURES = 23, 3, 4


def half_square(y: Any, target: Any) -> tuple[float, Any, float]:
    return float(((y - target) ** 2).sum() / 2), y - target, float(y.size)


def leaves(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [leaf for entry in value for leaf in leaves(entry)]
    return [] if value is None else [value]


def assert_same_bits(a: FullGradient, b: FullGradient) -> None:
    names = {field.name for field in fields(FullGradient)}
    assert names == {"loss", "count", "state", "grads", "nbytes"}
    assert (a.loss, a.count) == (b.loss, b.count)
    assert a.grads.params.keys() == b.grads.params.keys()
    pairs = [(leaves(a.state), leaves(b.state)), (leaves(a.grads.state), leaves(b.grads.state))]
    pairs.append((list(a.grads.params.values()), list(b.grads.params.values())))
    pairs.append((leaves(a.grads.x), leaves(b.grads.x)))
    for first, second in pairs:
        assert len(first) == len(second)
        for x, y in zip(first, second, strict=True):
            assert x.dtype == y.dtype
            assert x.shape == y.shape
            assert x.tobytes() == y.tobytes()


def models(dtype: Any) -> dict[str, nn.Module]:
    return {
        "gru": nn.GRU(FEATURES, 6, seed=1, dtype=dtype),
        "stack with dropout": nn.Sequential(
            nn.LSTM(FEATURES, 9, 2, dropout=0.3, seed=1, dtype=dtype),
            nn.Dropout(0.2, seed=2),
            nn.RNN(9, 7, seed=3, dtype=dtype),
            nn.LayerNorm(7, dtype=dtype),
            nn.Linear(7, 6, seed=4, dtype=dtype),
        ),
    }


def data(dtype: Any, width: int = 6) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((STEPS, BATCH, FEATURES)).astype(dtype)
    y = rng.standard_normal((STEPS, BATCH, width)).astype(dtype)
    return x, y, rng.random((STEPS, BATCH)) < 0.1


@pytest.mark.parametrize("segment", [None, 1, 4, 7, 23, 100])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", models("float32"))
@pytest.mark.usefixtures("isa", "threads")
def test_running_again_has_the_bits_of_storing(name: str, dtype: str, segment: int | None) -> None:
    x, y, is_init = data(dtype)
    results = []
    for recompute in (True, False):
        model = models(dtype)[name]
        run = checkpointed(segment, recompute=recompute)
        first = run(model, half_square, x, y, is_init=is_init, needs_x=True)
        # The second run goes on from the first one's state and random numbers.
        second = run(
            model, half_square, x, y, first.state, grad_state=first.grads.state, needs_x=True
        )
        results.append((first, second, model.rng_state()))
    for i in (0, 1):
        assert_same_bits(results[0][i], results[1][i])
    assert results[0][2] == results[1][2]
    if "dropout" in name:
        assert results[0][0].loss != results[0][1].loss


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("segment", [1, 4, 7])
@pytest.mark.usefixtures("isa", "threads")
def test_it_is_full_backpropagation(dtype: str, segment: int) -> None:
    """One pass over the whole sequence, up to the order of additions; its states to the bit."""
    x, y, is_init = data(dtype)
    model = models(dtype)["stack with dropout"].eval()
    found = checkpointed(segment)(model, half_square, x, y, is_init=is_init, needs_x=True)
    out, state, tape = model.forward(x, is_init=is_init)
    loss, grad, count = half_square(out, y)
    whole = model.backward(tape, grad)
    eps = float(np.finfo(dtype).eps)
    assert found.count == count
    assert found.loss == pytest.approx(loss, rel=1e3 * eps)
    for one, other in zip(leaves(found.state), leaves(state), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(leaves(found.grads.state), leaves(whole.state), strict=True):
        assert_close(one, other, "gradient", length=STEPS)
    assert_close(found.grads.x, whole.x, "gradient", length=STEPS)
    for name, expected in whole.params.items():
        terms = float(np.abs(expected).max())
        assert_close(
            found.grads.params[name], expected, "gradient", length=STEPS * BATCH, terms=terms
        )


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("isa")
def test_primitives(cell: str) -> None:
    problem: Problem = make_problem(cell, (29, 3, 4, 9))
    is_init = make_masks("is_init", (29, 3, 4, 9))["is_init"]
    p = problem
    layer: Any = Primitive(p.op, p.w_ih, p.w_hh, p.b_ih, p.b_hh, **p.options)

    def given(y: Any, target: Any) -> tuple[float, Any, float]:
        return float((y * target).sum()), target, y.size

    results = [
        checkpointed(5, recompute=recompute)(
            layer,
            given,
            p.x,
            p.grad_out,
            pair(p, p.hx),
            is_init=is_init,
            grad_state=pair(p, p.grad_hx),
            needs_x=True,
        )
        for recompute in (True, False)
    ]
    assert_same_bits(*results)
    out, final, tape = forward(tbptt_fast, problem, is_init=is_init)
    backward = getattr(tbptt_fast, f"{p.op}_backward")
    grads = backward(tape, p.grad_out, pair(p, p.grad_hx))
    found = results[0]
    for one, other in zip(leaves(found.state), final, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(leaves(found.grads.state), leaves(grads.hx), strict=True):
        assert_close(one, other, "gradient", length=p.length)
    assert_close(found.grads.x, grads.x, "gradient", length=p.length)
    for name, value in found.grads.params.items():
        assert_close(value, getattr(grads, name), "gradient", length=p.length, name=name)
    assert found.loss == pytest.approx(float((out * p.grad_out).sum()), rel=1e-12)


def test_memory_grows_with_the_root_of_the_length() -> None:
    model = nn.GRU(2, 16, seed=0)

    def kept(steps: int, recompute: bool) -> int:
        x, y = np.ones((steps, 4, 2), np.float32), np.zeros((steps, 4, 16), np.float32)
        return checkpointed(recompute=recompute)(model, half_square, x, y).nbytes

    assert kept(6400, False) > 15 * kept(400, False)
    assert kept(6400, True) < 4.2 * kept(400, True)
    assert kept(6400, True) < kept(6400, False) / 50


def test_what_runs_again_leaves_the_model_as_one_pass_does() -> None:
    """Running values of batch normalization move once a segment, not twice."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((12, 3, 2, 4, 4)).astype(np.float32)
    y = np.zeros((12, 3, 5), np.float32)

    def network() -> nn.Sequential:
        encoder = nn.Sequential(nn.Conv2d(2, 3, 3, seed=1), nn.BatchNorm2d(3), nn.Flatten())
        return nn.Sequential(nn.TimeDistributed(encoder), nn.GRU(12, 5, seed=2))

    again, stored = network(), network()
    a = checkpointed(5)(again, half_square, x, y)
    b = checkpointed(5, recompute=False)(stored, half_square, x, y)
    assert_same_bits(a, b)
    for name, value in stored.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], value, err_msg=name)


def test_an_error_leaves_the_random_numbers_where_they_were_going() -> None:
    model = nn.Sequential(nn.Dropout(0.5, seed=0), nn.GRU(FEATURES, 6, seed=1))
    x, y, _ = data("float32")
    twin = nn.Sequential(nn.Dropout(0.5, seed=0), nn.GRU(FEATURES, 6, seed=1))
    checkpointed(4)(twin, half_square, x, y)
    calls = 0

    def failing(out: Any, target: Any) -> tuple[float, Any, float]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("no more")
        return half_square(out, target)

    with pytest.raises(RuntimeError, match="no more"):
        checkpointed(4)(model, failing, x, y)
    assert model.rng_state() == twin.rng_state()


def test_wrong_arguments() -> None:
    with pytest.raises(
        ValueError, match=r"^checkpointed: segment: expected at least 1 step, got 0"
    ):
        checkpointed(0)
    model = nn.GRU(2, 3)
    with pytest.raises(ValueError, match=r"^checkpointed: x: expected at least 1 step, got 0"):
        checkpointed()(model, half_square, np.zeros((0, 1, 2), np.float32), np.zeros((0, 1, 3)))
    with pytest.raises(ValueError, match=r"^Primitive: cell: expected 'lstm', 'gru' or 'rnn'"):
        Primitive("elman", np.zeros((1, 1)), np.zeros((1, 1)))
