"""JAX's transformations of the layers: vmap, scan, checkpoint, cond, donation, threads, devices."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tbptt_fast

from . import cases, convrecurrent_cases
from .cases import CELLS, assert_close, assert_identical, make_masks, make_problem
from .jax_cases import Arrays, convrecurrent, jax, ours, recurrent, recurrent_arrays, run

jnp = jax.numpy
EXAMPLES = 3


@dataclass(frozen=True)
class Layer:
    """A function of named arrays, in float32; its results by name."""

    run: Callable[[Arrays], Arrays]
    arrays: Arrays
    weights: tuple[str, ...]
    constants: tuple[str, ...] = ()

    def mapped(self, names: tuple[str, ...]) -> Arrays:
        """Several examples of some inputs, along their first axis."""
        rng = np.random.default_rng(len(names))
        made = dict(self.arrays)
        for name in names:
            value = self.arrays[name]
            shape = (EXAMPLES, *value.shape)
            random = rng.random(shape) < 0.2 if value.dtype == bool else rng.normal(size=shape) / 3
            made[name] = random.astype(value.dtype)
        return made

    def loss(self, arrays: Arrays) -> Any:
        return sum((value**2).sum() for value in self.run(arrays).values())


def layer(name: str) -> Layer:
    if name == "conv2d":
        rng = np.random.default_rng(0)
        arrays = {"x": (2, 4, 7, 6), "w": (6, 2, 3, 3), "b": (6,)}
        return Layer(
            lambda a: {"y": ours.conv2d(a["x"], a["w"], a["b"], padding=1, groups=2)},
            {name: rng.normal(size=shape).astype("float32") for name, shape in arrays.items()},
            ("w", "b"),
        )
    if name.startswith("conv"):
        shape = convrecurrent_cases.Shape((3, 2, 2, 3), (4, 5))
        conv = convrecurrent_cases.make_problem(name[4:], shape, "float32")
        masks = convrecurrent_cases.make_masks(conv)
        arrays = {n: getattr(conv, n) for n in ("x", "w_ih", "w_hh", "b_ih", "b_hh", "peephole")}
        arrays |= dict(zip(("h0", "c0"), conv.hx or (), strict=False))
        run = partial(convrecurrent, conv, layout="NCHW", truncation=2)
    else:
        problem = make_problem(name, (5, 2, 3, 4), "float32")
        masks = make_masks("both", (5, 2, 3, 4), "float32")
        arrays, run = recurrent_arrays(problem), partial(recurrent, problem, truncation=(2, 3))
    given = {n: a for n, a in arrays.items() if a is not None} | masks
    names = ("w_ih", "w_hh", "b_ih", "b_hh", "peephole")
    weights = tuple(n for n in names if n in given)

    def masked(a: Arrays) -> Arrays:
        return run(a, is_init=a["is_init"], carry_scale=a["carry_scale"])

    return Layer(masked, given, weights, ("is_init", "carry_scale"))


NAMES = ("rnn_tanh", "gru", "lstm", "conv2d", "convgru", "convlstm_channel")
INPUTS = [(name, mapped) for name in NAMES[1:4] for mapped in layer(name).arrays]
INPUTS += [(NAMES[5], mapped) for mapped in ("x", "h0", "w_hh", "peephole", "is_init")]
every_input = pytest.mark.parametrize(("name", "mapped"), INPUTS)
every_layer = pytest.mark.parametrize("name", NAMES)


def axes(arrays: Arrays, names: tuple[str, ...]) -> Arrays:
    return {name: 0 if name in names else None for name in arrays}


def one_by_one(function: Callable[[Arrays], Any], arrays: Arrays, names: tuple[str, ...]) -> Any:
    results = [
        function({n: a[i] if n in names else a for n, a in arrays.items()}) for i in range(EXAMPLES)
    ]
    return jax.tree.map(lambda *parts: np.stack(parts), *results)


def same(actual: Any, expected: Any, kind: str = "gradient", length: int = 200) -> None:
    """Arrays of the same names, up to rounding: a folded batch adds up in another order."""
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert_close(value, expected[name], kind, length=length, name=name)


def differentiable(layer: Layer) -> tuple[str, ...]:
    return tuple(name for name in layer.arrays if name not in layer.constants)


def by_arrays(layer: Layer) -> Callable[[Arrays], Arrays]:
    """The gradients of the loss by all that has some."""

    def gradients(arrays: Arrays) -> Arrays:
        rest = {name: arrays[name] for name in layer.constants}
        found: Arrays = jax.grad(lambda a: layer.loss(a | rest))(
            {name: arrays[name] for name in differentiable(layer)}
        )
        return found

    return gradients


@every_input
def test_one_input_is_mapped(name: str, mapped: str) -> None:
    """Values, gradients of the sum, and every example's own gradients."""
    made = layer(name)
    arrays = made.mapped((mapped,))
    mapping = axes(arrays, (mapped,))
    same(
        jax.jit(jax.vmap(made.run, (mapping,)))(arrays),
        one_by_one(jax.jit(made.run), arrays, (mapped,)),
        "forward",
    )
    expected = one_by_one(jax.jit(by_arrays(made)), arrays, (mapped,))
    same(jax.jit(jax.vmap(by_arrays(made), (mapping,)))(arrays), expected)

    def total(given: Arrays, rest: Arrays) -> Any:
        return jax.vmap(made.loss, (mapping,))(given | rest).sum()

    rest = {name: arrays[name] for name in made.constants}
    given = {name: arrays[name] for name in differentiable(made)}
    found = jax.jit(jax.grad(total))(given, rest)
    summed = {name: a if name == mapped else a.sum(0) for name, a in expected.items()}
    same(found, summed)


@every_layer
def test_the_gradient_of_a_mapped_layer_is_one_call(name: str) -> None:
    """One pass in each direction over the folded batch: weights neither repeat nor loop."""
    made = layer(name)
    names = tuple(n for n in made.arrays if n not in made.weights)
    arrays = made.mapped(names)
    mapping = axes(arrays, names)
    rest = {n: arrays[n] for n in made.constants}

    def total(given: Arrays) -> Any:
        return jax.vmap(made.loss, (mapping,))(given | rest).sum()

    text = str(jax.make_jaxpr(jax.grad(total))({n: arrays[n] for n in differentiable(made)}))
    assert text.count("= tbptt_fast_layer[") == 1
    assert text.count("= tbptt_fast_gradient[") == 1
    assert "tbptt_fast_tangent" not in text
    assert "scan[" not in text
    for weight in made.weights:
        size = ",".join(map(str, (EXAMPLES, *arrays[weight].shape)))
        assert f"f32[{size}]" not in text


@every_layer
@pytest.mark.parametrize("outer", [0, 1, -1])
def test_nested_and_other_axes(name: str, outer: int) -> None:
    """Two mapped axes, one of them anywhere."""
    made = layer(name)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, EXAMPLES, *made.arrays["x"].shape)).astype("float32")
    moved = np.moveaxis(x, 0, outer)
    inner = outer if outer > 0 else 0

    def run(x: Any) -> Arrays:
        return made.run(made.arrays | {"x": x})

    found = jax.jit(jax.vmap(jax.vmap(run), outer))(moved)
    rows = [[run(example) for example in part] for part in x]
    parts = [jax.tree.map(lambda *a: np.stack(a), *row) for row in rows]
    same(found, jax.tree.map(lambda *a: np.stack(a), *parts), "forward")
    found = jax.vmap(run, inner, 1)(np.moveaxis(x[0], 0, inner))
    same({n: np.moveaxis(a, 1, 0) for n, a in found.items()}, parts[0], "forward")


@every_layer
def test_no_examples(name: str) -> None:
    made = layer(name)
    x = np.zeros((0, *made.arrays["x"].shape), "float32")

    def run(x: Any) -> Arrays:
        return made.run(made.arrays | {"x": x})

    single = run(made.arrays["x"])
    found = jax.vmap(run)(x)
    assert {n: a.shape for n, a in found.items()} == {n: (0, *a.shape) for n, a in single.items()}
    gradient = jax.jit(jax.grad(lambda x: sum(a.sum() for a in jax.vmap(run)(x).values())))(x)
    assert gradient.shape == x.shape


def test_a_jacobian() -> None:
    """Reverse mode maps the backward pass."""
    made = layer("gru")
    found = jax.jacrev(lambda w: made.run(made.arrays | {"w_hh": w})["h_n"])(made.arrays["w_hh"])
    for row, column in itertools.product(range(2), range(4)):
        expected = jax.grad(
            lambda w, at=(row, column): made.run(made.arrays | {"w_hh": w})["h_n"][at]
        )(made.arrays["w_hh"])
        assert_close(found[row, column], expected, "gradient", length=20)


# --- control flow


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("stopped", [True, False])
def test_scan_over_windows(cell: str, stopped: bool) -> None:
    """A carried state whose gradient stops at windows is truncated BPTT; else it is all of it."""
    steps, window = 12, 4
    problem = make_problem(cell, (steps, 3, 5, 7))
    problem = replace(problem, grad_hx=tuple(np.zeros_like(s) for s in problem.hx or ()))
    arrays = recurrent_arrays(problem)
    names = ("h0", "c0")[: len(problem.hx or ())]

    def advance(given: Arrays, state: Any, at: tuple[Any, Any]) -> Any:
        if stopped:
            state = jax.lax.stop_gradient(state)
        now = given | {"x": at[0]} | dict(zip(names, state, strict=True))
        found = recurrent(problem, now)
        last = tuple(found[name] for name in ("h_n", "c_n") if name in found)
        return last, (found["out"] * at[1]).sum()

    def by_windows(given: Arrays) -> Any:
        parts = (
            given["x"].reshape(-1, window, *given["x"].shape[1:]),
            problem.grad_out.reshape(-1, window, *problem.grad_out.shape[1:]),
        )
        first = tuple(given[name] for name in names)
        return jax.lax.scan(partial(advance, given), first, parts)[1].sum()

    whole = cases.run(tbptt_fast, problem, truncation=window if stopped else None)
    for name, value in jax.jit(jax.grad(by_windows))(arrays).items():
        expected = whole[f"grad_{name}"]
        if stopped and name in names:
            expected = np.zeros_like(expected)  # the first window's state is stopped as well
        assert_close(value, expected, "gradient", length=problem.length, name=name)


@every_layer
@pytest.mark.parametrize("policy", [None, "dots_saveable", "everything_saveable"])
def test_checkpoint(name: str, policy: Any) -> None:
    made = layer(name)
    chosen = policy and getattr(jax.checkpoint_policies, policy)
    again = replace(made, run=jax.checkpoint(made.run, policy=chosen))
    found, expected = (jax.jit(by_arrays(one))(made.arrays) for one in (again, made))
    for key, value in found.items():
        np.testing.assert_array_equal(value, expected[key], err_msg=key)


def test_cond_and_switch() -> None:
    made = layer("lstm")

    def chosen(arrays: Arrays, which: Any) -> Any:
        rest = {name: made.arrays[name] for name in made.constants}
        branches = [lambda a: made.loss(a | rest), lambda a: (a["x"] ** 2).sum()]
        return jax.lax.switch(which, branches, arrays)

    given = {name: made.arrays[name] for name in differentiable(made)}
    gradients = jax.jit(jax.grad(chosen))
    expected = jax.jit(by_arrays(made))(made.arrays)
    for name, value in gradients(given, 0).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    other = gradients(given, 1)
    np.testing.assert_array_equal(other["x"], 2 * given["x"])
    assert not np.asarray(other["w_hh"]).any()


def test_a_rule_that_gives_zeros_as_tangents() -> None:
    """The transpose is asked for some of the inputs whose tangents it has."""
    made = layer("gru")

    def plain(x: Any, w: Any) -> Any:
        return made.run(made.arrays | {"x": x, "w_hh": w})["out"]

    run = jax.custom_jvp(plain)
    run.defjvp(lambda primals, tangents: jax.jvp(plain, primals, tangents))
    x, w = made.arrays["x"], made.arrays["w_hh"]
    for by in (0, 1, (0, 1)):
        found = jax.grad(lambda x, w: run(x, w).sum(), by)(x, w)
        expected = jax.grad(lambda x, w: plain(x, w).sum(), by)(x, w)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_without_jit() -> None:
    """Switched off for debugging: a layer is still one compiled call."""
    made = layer("lstm")
    expected = by_arrays(made)(made.arrays)
    with jax.disable_jit():
        found = by_arrays(made)(made.arrays)
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


# --- what XLA does with the arrays


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
def test_donated_arrays(cell: str) -> None:
    """States that the caller gives away are used for the next ones, with the same results."""
    problem = make_problem(cell, (4, 3, 5, 8), "float32")
    arrays = recurrent_arrays(problem)
    names = ("h0", "c0")[: len(problem.hx or ())]
    state = {name: arrays.pop(name) for name in names}

    def step(state: Arrays, arrays: Arrays) -> tuple[Arrays, Any]:
        found = recurrent(problem, arrays | state)
        last = {name: found[end] for name, end in zip(names, ("h_n", "c_n"), strict=False)}
        return last, found["out"]

    kept, given = jax.jit(step), jax.jit(step, donate_argnums=0)
    mine, theirs = jax.tree.map(jnp.array, state), jax.tree.map(jnp.array, state)
    for _ in range(3):
        before = theirs
        (mine, out), (theirs, other) = kept(mine, arrays), given(theirs, arrays)
        np.testing.assert_array_equal(out, other)
        assert all(value.is_deleted() for value in before.values())
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)


def test_many_threads_call_at_once() -> None:
    """Compiled and not, while other calls of the same functions are on their way."""
    made = layer("lstm")
    compiled = jax.jit(by_arrays(made))
    expected = jax.tree.map(np.asarray, compiled(made.arrays))

    def call(index: int) -> Any:
        function = compiled if index % 2 else by_arrays(made)
        waiting = [function(made.arrays) for _ in range(3)]  # dispatched, not waited for
        return jax.tree.map(np.asarray, waiting)

    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(call, range(24)):
            for found in results:
                jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("cell", CELLS)
def test_the_same_bits_for_every_number_of_threads(cell: str) -> None:
    problem = make_problem(cell, (16, 32, 16, 64), "float32")
    results = []
    for threads in (1, 2):
        with tbptt_fast.num_threads(threads):
            results.append(run(problem, truncation=(4, 8)))
    assert_identical(*results)


def test_several_devices() -> None:
    """In another process: their number is fixed before JAX starts."""
    script = Path(__file__).with_name("jax_devices.py")
    flags = "--xla_force_host_platform_device_count=2"
    paths = os.pathsep.join(sys.path)
    run = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["gru", "lstm", "conv2d", "convgru", "sharded"]
