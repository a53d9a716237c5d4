"""The optimizers for JAX against the primitives: steps, traced numbers, donation, bad gradients."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest

import tbptt_fast

from .cases import DTYPES, assert_close
from .jax_cases import jax, ours

pytestmark = pytest.mark.usefixtures("x64")

jnp = jax.numpy
optim = ours.optim
SHAPES: tuple[tuple[int, ...], ...] = ((), (7,), (0, 4), (33,), (90, 91))
SGD: tuple[dict[str, Any], ...] = (
    {},
    {"weight_decay": 0.1, "clip_value": 0.5},
    {"mu": 0.9, "dampening": 0.5, "max_norm": 0.7},
    {"mu": 0.8, "nesterov": True, "weight_decay": 0.1, "max_norm": 1e6},
)
ADAM: tuple[dict[str, Any], ...] = (
    {},
    {"beta1": 0.8, "beta2": 0.95, "weight_decay": 0.1, "max_norm": 0.7},
    {"decoupled": True, "weight_decay": 0.1, "eps": 1e-3, "clip_value": 0.5},
)
RATES = (0.125, 0.5, 0.03125)  # the same in both dtypes
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def draw(seed: int, dtype: str) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [np.array(rng.normal(size=shape), dtype) for shape in SHAPES]


def zeros(dtype: str) -> list[Any]:
    return [np.zeros(shape, dtype) for shape in SHAPES]


def same(actual: Any, expected: Any) -> None:
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@dtypes
@pytest.mark.parametrize("options", SGD, ids=str)
@pytest.mark.usefixtures("threads")
def test_sgd_equals_the_primitive(options: dict[str, Any], dtype: str) -> None:
    """Step by step, with a rate that is traced."""
    step = jax.jit(partial(optim.sgd_step, **options))
    params, momentum = draw(0, dtype), zeros(dtype) if "mu" in options else None
    mine: Any = jax.tree.map(np.copy, (params, momentum))
    for seed, lr in enumerate(RATES, 1):
        grads = draw(seed, dtype)
        norm = tbptt_fast.sgd_step(params, grads, momentum, lr=lr, **options).norm
        found = step(*mine[:1], grads, *mine[1:], lr)
        mine = found.params, found.momentum
        same(found.params, params)
        same(found.momentum or [], momentum or [])
        assert found.norm.dtype == dtype
        assert float(found.norm) == np.dtype(dtype).type(norm)


@dtypes
@pytest.mark.parametrize("options", ADAM, ids=str)
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.usefixtures("isa")
def test_adam_equals_the_primitive(options: dict[str, Any], amsgrad: bool, dtype: str) -> None:
    """Step by step, with a rate and a count of steps that are traced."""
    step = jax.jit(partial(optim.adam_step, **options))
    params, first, second = draw(0, dtype), zeros(dtype), zeros(dtype)
    third = zeros(dtype) if amsgrad else None
    mine = [np.copy(p) for p in params]
    states: Any = jax.tree.map(np.copy, (first, second, third))
    for count, lr in enumerate(RATES, 1):
        grads = draw(count, dtype)
        given = (params, grads, first, second, third)
        tbptt_fast.adam_step(*given, step=count, lr=lr, **options)
        found = step(mine, grads, *states, count, lr)
        mine, states = found.params, found[1:4]
        for a, b in zip(found[:4], (params, first, second, third), strict=True):
            same(a or [], b or [])


def test_rates_that_float32_has_not() -> None:
    params = draw(0, "float32")
    found = optim.sgd_step(params, draw(1, "float32"), None, 0.1)
    tbptt_fast.sgd_step(params, draw(1, "float32"), None, lr=0.1)
    for a, b in zip(found.params, params, strict=True):
        assert_close(a, b, "forward", length=1)


def one_step(kind: str, params: Any, grads: Any, states: Any, count: Any) -> Any:
    """(params, states, norm) after one step."""
    if kind == "sgd":
        found = optim.sgd_step(params, grads, states[0], 0.25, mu=0.5)
        return found.params, [found.momentum], found.norm
    found = optim.adam_step(params, grads, *states, None, count, 0.25, max_norm=1.0)
    return found.params, [found.exp_avg, found.exp_avg_sq], found.norm


kinds = pytest.mark.parametrize("kind", ["sgd", "adam"])


@kinds
@dtypes
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(kind: str, dtype: str, bad: float) -> None:
    params, grads = draw(0, dtype), draw(1, dtype)
    states = [draw(2, dtype), [abs(a) for a in draw(3, dtype)]][: 1 if kind == "sgd" else 2]
    grads[3][5] = bad
    new, moved, norm = jax.jit(partial(one_step, kind))(params, grads, states, 3)
    same(new, params)
    for a, b in zip(moved, states, strict=True):
        same(a, b)
    assert np.isnan(norm)


@kinds
def test_donated_arrays_are_updated_in_place(kind: str) -> None:
    params = [jnp.asarray(a) * 1 for a in draw(0, "float32")]  # not NumPy's own memory
    states = [[jnp.zeros_like(p) for p in params] for _ in range(1 if kind == "sgd" else 2)]
    grads = [jnp.asarray(a) for a in draw(1, "float32")]
    kept = jax.jit(partial(one_step, kind))(params, grads, states, 1)

    def places(tree: Any) -> list[int]:
        return [a.unsafe_buffer_pointer() for a in jax.tree.leaves(tree) if a.size > 1]

    before = places((params, states))
    given = jax.jit(partial(one_step, kind), donate_argnums=(0, 2))(params, grads, states, 1)
    assert all(a.is_deleted() for a in jax.tree.leaves((params, states)))
    assert places(given[:2]) == before
    jax.tree.map(np.testing.assert_array_equal, given, kept)


@kinds
def test_arrays_that_are_not_donated_are_left_alone(kind: str) -> None:
    """Also where one array is several arguments."""
    p = jnp.ones((40, 3))
    params, states = [p, p], [[p, p]] * (1 if kind == "sgd" else 2)
    first = one_step(kind, params, params, states, 1)
    again = jax.jit(partial(one_step, kind))(params, params, states, 1)
    assert np.all(p == 1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    np.testing.assert_array_equal(first[0][0], first[0][1])
    assert np.all(first[0][0] != 1)


@kinds
def test_steps_in_a_scan(kind: str) -> None:
    """The parameters of a loop are updated where they lie."""
    grads = [np.stack([draw(seed, "float32")[i] for seed in range(4)]) for i in range(len(SHAPES))]
    params, states = draw(9, "float32"), [zeros("float32")] * (1 if kind == "sgd" else 2)

    def body(carry: Any, at: Any) -> Any:
        count, entering = at
        new, moved, norm = one_step(kind, carry[0], entering, carry[1], count)
        return (new, moved), norm

    last, norms = jax.jit(partial(jax.lax.scan, body))((params, states), (np.arange(1, 5), grads))
    for count in range(1, 5):
        params, states, norm = one_step(kind, params, [g[count - 1] for g in grads], states, count)
        assert norm == norms[count - 1]
    jax.tree.map(np.testing.assert_array_equal, last, (params, states))


ONE = [np.ones(2, "float32")]
BAD: tuple[tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str], ...] = (
    ("sgd_step", ([], [], None, 1.0), {}, ValueError, "params: expected at least one"),
    ("sgd_step", (ONE, [], None, 1.0), {}, ValueError, "grads: expected 1 arrays, got 0"),
    ("sgd_step", (ONE, [np.ones(3, "f")], None, 1.0), {}, ValueError, r"grads\[0\].*\[2\].*\[3\]"),
    ("sgd_step", (ONE, [np.ones(2)], None, 1.0), {}, TypeError, r"grads\[0\].*float32.*float64"),
    ("sgd_step", ([np.ones(2, int)], ONE, None, 1.0), {}, TypeError, r"params\[0\].*int64"),
    ("sgd_step", (ONE, ONE, None, 1.0), {"mu": 0.5}, ValueError, "momentum: expected a list"),
    ("sgd_step", (ONE, ONE, [], 1.0), {"mu": 0.5}, ValueError, "states: expected 1 arrays, got 0"),
    ("sgd_step", (ONE, ONE, None, 1.0), {"mu": -0.5}, ValueError, "mu: expected a number"),
    ("sgd_step", (ONE, ONE, None, 1.0), {"mu": np.inf}, ValueError, "mu: expected a number"),
    ("sgd_step", (ONE, ONE, None, 1.0), {"nesterov": True}, ValueError, "nesterov: .*mu > 0"),
    ("sgd_step", (ONE, ONE, None, 1.0), {"dampening": np.nan}, ValueError, "dampening: expected"),
    ("sgd_step", (ONE, ONE, None, 1.0), {"max_norm": 0.0}, ValueError, "max_norm: expected None"),
    ("sgd_step", (ONE, ONE, None, 1.0), {"clip_value": np.nan}, ValueError, "clip_value: expected"),
    ("sgd_step", (ONE, ONE, None, 1.0), {"weight_decay": -1.0}, ValueError, "weight_decay: "),
    ("adam_step", (ONE, ONE, ONE, [], None, 1, 1.0), {}, ValueError, "states: expected 1"),
    ("adam_step", (ONE, ONE, ONE, ONE, [], 1, 1.0), {}, ValueError, "states: expected 1"),
    ("adam_step", (ONE, ONE, ONE, ONE, None, 1, 1.0), {"beta1": 1.0}, ValueError, "beta1: "),
    ("adam_step", (ONE, ONE, ONE, ONE, None, 1, 1.0), {"beta2": -0.1}, ValueError, "beta2: "),
    ("adam_step", (ONE, ONE, ONE, ONE, None, 1, 1.0), {"eps": np.inf}, ValueError, "eps: "),
)


@pytest.mark.parametrize(("op", "arguments", "options", "error", "text"), BAD)
def test_errors(op: str, arguments: Any, options: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^{op}: {text}"):
        getattr(optim, op)(*arguments, **options)
    with pytest.raises(error, match=f"^{op}: {text}"):
        jax.eval_shape(lambda: getattr(optim, op)(*arguments, **options))


def test_numbers_are_arrays_too() -> None:
    found = optim.sgd_step([1.0, [2.0, 3.0]], [0.5, [1.0, 1.0]], None, 1.0)
    assert [a.tolist() for a in found.params] == [0.5, [1.0, 2.0]]


def test_every_option_is_its_own() -> None:
    """No two of them are mistaken for one another in what is compiled."""
    norms = itertools.product((None, 0.5), (None, 0.25))
    results = set()
    for max_norm, clip_value in norms:
        found = optim.sgd_step(ONE, ONE, None, 1.0, max_norm=max_norm, clip_value=clip_value)
        results.add(float(found.params[0][0]))
    assert len(results) == 4 - 1  # a clipped gradient of norm below 0.5 is not clipped again
