"""What the tests of the functions for JAX share: results and gradients by name, through `jit`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from . import cases, convrecurrent_cases
from .cases import assert_identical

jax = pytest.importorskip("jax")
ours = pytest.importorskip("tbptt_fast.jax")

if not ours.available():
    pytest.skip("built without the functions for JAX", allow_module_level=True)

Arrays = dict[str, Any]


def numpy_arrays(results: Arrays) -> Arrays:
    return {name: np.asarray(value) for name, value in results.items()}


def with_gradients(function: Callable[[Arrays], Arrays], arrays: Arrays, grads: Arrays) -> Arrays:
    """What a function returns, and its gradients as grad_*, compiled together."""

    def both(given: Arrays, entering: Arrays) -> tuple[Arrays, Arrays]:
        results, pull = jax.vjp(function, given)
        return results, pull(entering)[0]

    results, found = jax.jit(both)(arrays, grads)
    return numpy_arrays(results | {f"grad_{name}": value for name, value in found.items()})


def present(named: Arrays) -> Arrays:
    return {name: value for name, value in named.items() if value is not None}


# --- recurrent layers


def recurrent_arrays(problem: cases.Problem) -> Arrays:
    """The inputs by the names that `cases.run` gives their gradients."""
    initial = dict(zip(("h0", "c0"), problem.hx or (), strict=False))
    names = ("x", "w_ih", "w_hh", "b_ih", "b_hh")
    return initial | present({name: getattr(problem, name) for name in names})


def recurrent(problem: cases.Problem, arrays: Arrays, **options: Any) -> Arrays:
    hx = None if problem.hx is None else cases.pair(problem, initial_states(arrays))
    weights = [arrays.get(name) for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    function = getattr(ours, problem.op)
    out, last = function(arrays["x"], hx, *weights, **problem.options, **options)
    return {"out": out, **final_states(cases.states(problem, last))}


def initial_states(arrays: Arrays) -> tuple[Any, ...]:
    return tuple(arrays[name] for name in ("h0", "c0") if name in arrays)


def final_states(last: tuple[Any, ...]) -> Arrays:
    return dict(zip(("h_n", "c_n"), last, strict=False))


def run(problem: cases.Problem, **options: Any) -> Arrays:
    """`cases.run` by JAX, without gradients of states that are not given."""
    assert problem.grad_hx is not None
    grads = {"out": problem.grad_out, **final_states(problem.grad_hx)}
    layer = partial(recurrent, problem, **options)
    return with_gradients(layer, recurrent_arrays(problem), grads)


# --- recurrent layers on images


def convrecurrent(
    problem: convrecurrent_cases.Problem, arrays: Arrays, layout: str, **options: Any
) -> Arrays:
    p = problem
    states = initial_states(arrays)
    hx = None if p.hx is None else states if p.op == "lstm" else states[0]
    if p.cell.startswith("rnn"):
        options["nonlinearity"] = p.cell[4:]
    if "peephole" in arrays:
        options["peephole"] = arrays["peephole"]
    weights = [arrays.get(name) for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    function = getattr(ours, f"conv{p.op}")
    options |= {"layout": layout, "dilation": p.shape.dilation}
    out, last = function(arrays["x"], hx, *weights, **options)
    return {"out": out, **final_states(last if p.op == "lstm" else (last,))}


def run_conv(problem: convrecurrent_cases.Problem, layout: str = "NCHW", **options: Any) -> Arrays:
    """`convrecurrent_cases.run` by JAX, in the layout of the call."""
    p = problem
    assert p.grad_hx is not None
    to = partial(convrecurrent_cases.in_layout, layout)
    arrays = {"x": to(p.x), **dict(zip(("h0", "c0"), map(to, p.hx or ()), strict=False))}
    arrays |= {name: getattr(p, name) for name in ("w_ih", "w_hh", "b_ih", "b_hh")}
    arrays["peephole"] = to(p.peephole) if p.cell == "lstm_map" else p.peephole
    grads = {"out": to(p.grad_out), **final_states(tuple(map(to, p.grad_hx)))}
    layer = partial(convrecurrent, p, layout=layout, **options)
    return with_gradients(layer, present(arrays), grads)


def assert_same_bits(problem: Any, actual: Arrays, expected: Arrays) -> None:
    """Equal bits; states that are not given alone have no gradients in JAX."""
    missing = expected.keys() - actual.keys()
    assert missing == (set() if problem.hx else {"grad_h0", "grad_c0"} & expected.keys())
    assert_identical(actual, {name: expected[name] for name in actual})
