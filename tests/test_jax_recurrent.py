"""rnn, gru and lstm for JAX: the bits of the primitives, the oracle, and the reference by scan."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import reference

from . import cases
from .cases import (
    CELLS,
    DTYPES,
    RECURRENT_MASKED,
    RECURRENT_SMALL,
    TRUNCATIONS,
    make_masks,
    make_problem,
    shape_id,
)
from .jax_cases import assert_same_bits, jax, recurrent, recurrent_arrays, run

pytestmark = pytest.mark.usefixtures("x64")

SHAPE = RECURRENT_MASKED[0]
cells = pytest.mark.parametrize("cell", CELLS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


@cells
@dtypes
@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)
def test_the_bits_of_the_primitives(cell: str, dtype: str, truncation: Any) -> None:
    problem = make_problem(cell, SHAPE, dtype)
    options = make_masks("both", SHAPE, dtype) | {"truncation": truncation}
    assert_same_bits(problem, run(problem, **options), cases.run(tbptt_fast, problem, **options))


@cells
@pytest.mark.parametrize("shape", RECURRENT_SMALL[5::8], ids=shape_id)
@pytest.mark.usefixtures("threads")
def test_every_instruction_set(cell: str, shape: cases.Shape, isa: str) -> None:
    problem = make_problem(cell, shape, "float32")
    assert_same_bits(problem, run(problem), cases.run(tbptt_fast, problem))


@cells
@pytest.mark.parametrize("mask", ["plain", "both"])
@pytest.mark.parametrize(
    "missing", [("hx",), ("b_ih",), ("b_hh",), ("hx", "b_ih", "b_hh")], ids=str
)
def test_what_may_be_missing(cell: str, mask: str, missing: tuple[str, ...]) -> None:
    problem = replace(make_problem(cell, SHAPE, "float32"), **dict.fromkeys(missing))
    options = make_masks(mask, SHAPE, "float32")
    assert_same_bits(problem, run(problem, **options), cases.run(tbptt_fast, problem, **options))


@cells
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (3, 0, 4, 5), (3, 2, 0, 5)], ids=shape_id)
@pytest.mark.parametrize("truncation", [None, 2])
def test_nothing_to_do(cell: str, shape: cases.Shape, truncation: Any) -> None:
    problem = make_problem(cell, shape, "float32")
    options = make_masks("both", shape, "float32") | {"truncation": truncation}
    for given in (problem, replace(problem, hx=None)):
        assert_same_bits(given, run(given, **options), cases.run(tbptt_fast, given, **options))


@cells
@pytest.mark.parametrize("truncation", [None, 3, (2, 5)], ids=str)
def test_the_oracle(cell: str, truncation: Any) -> None:
    problem = make_problem(cell, SHAPE)
    options = make_masks("both", SHAPE) | {"truncation": truncation}
    cases.compare(problem, run(problem, **options), cases.run(reference, problem, **options))


@pytest.mark.parametrize(
    ("cell", "truncation"),
    [*(("gru", t) for t in TRUNCATIONS), *((c, (3, 4)) for c in CELLS if c != "gru")],
    ids=str,
)
def test_the_reference_by_scan(cell: str, truncation: Any) -> None:
    shape = (7, 4, 3, 5)
    problem = make_problem(cell, shape)
    options = make_masks("both", shape) | {"truncation": truncation}
    scanned = run(problem, backend="scan", **options)
    cases.compare(problem, scanned, cases.run(reference, problem, **options))


@cells
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (3, 0, 4, 5), (3, 2, 0, 5)], ids=shape_id)
def test_the_reference_by_scan_of_nothing(cell: str, shape: cases.Shape) -> None:
    problem = make_problem(cell, shape)
    cases.compare(problem, run(problem, backend="scan"), cases.run(reference, problem))
    bare = replace(problem, hx=None, b_ih=None, b_hh=None)
    scanned = run(bare, backend="scan", truncation=2)
    assert_shapes = {name: value.shape for name, value in run(bare, truncation=2).items()}
    assert {name: value.shape for name, value in scanned.items()} == assert_shapes


def test_the_reference_by_scan_has_every_derivative() -> None:
    """Forward mode and second derivatives, with every option; the native one has neither."""
    problem = make_problem("lstm", (2, 1, 1, 2))
    options = make_masks("both", (2, 1, 1, 2)) | {"truncation": (1, 2), "backend": "scan"}
    arrays = recurrent_arrays(problem)

    def loss(x: Any) -> Any:
        out = recurrent(problem, arrays | {"x": x}, **options)
        return (out["out"] ** 2).sum() + out["c_n"].sum()

    forward, backward = (jax.jit(mode(loss))(problem.x) for mode in (jax.jacfwd, jax.jacrev))
    np.testing.assert_allclose(forward, backward, rtol=1e-12)
    assert jax.eval_shape(jax.hessian(loss), problem.x).shape == problem.x.shape * 2


@cells
@pytest.mark.parametrize("mask", ["plain", "is_init"])
def test_finite_differences(cell: str, mask: str) -> None:
    shape = (4, 2, 3, 5)
    problem = make_problem(cell, shape, seed=1)
    layer = partial(recurrent, problem, is_init=make_masks(mask, shape)["is_init"])
    from jax.test_util import check_grads

    check_grads(layer, (recurrent_arrays(problem),), order=1, modes=["rev"], eps=1e-6)


@cells
def test_only_some_results_are_used(cell: str) -> None:
    """Gradients that do not enter are zeros, whichever they are."""
    problem = make_problem(cell, SHAPE, "float32")
    arrays = recurrent_arrays(problem)
    out = recurrent(problem, arrays)
    for used in out:
        entering = {name: np.zeros(value.shape, "float32") for name, value in out.items()}
        entering[used] = np.full(out[used].shape, 0.5, "float32")
        loss = jax.jit(jax.grad(lambda a, used=used: 0.5 * recurrent(problem, a)[used].sum()))
        found = {f"grad_{name}": np.asarray(value) for name, value in loss(arrays).items()}
        states = tuple(entering[name] for name in ("h_n", "c_n") if name in entering)
        single = replace(problem, grad_out=entering["out"], grad_hx=states)
        expected = cases.run(tbptt_fast, single)
        for name, value in found.items():
            np.testing.assert_array_equal(value, expected[name], err_msg=f"{used}: {name}")


def test_constants_have_no_gradient() -> None:
    problem = make_problem("gru", SHAPE)
    masks = make_masks("both", SHAPE)

    def loss(scale: Any) -> Any:
        arrays = recurrent_arrays(problem)
        return recurrent(problem, arrays, is_init=masks["is_init"], carry_scale=scale)["out"].sum()

    for function in (jax.grad(loss), jax.jit(jax.grad(loss))):
        assert not np.asarray(function(masks["carry_scale"])).any()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("cell", CELLS)
def test_subnormal_numbers(cell: str, threads: int) -> None:
    """XLA flushes them to zero on its own threads; the kernels have one arithmetic everywhere."""
    shape = (3, 64, 8, 64)
    problem = make_problem(cell, shape, "float32")
    tiny = replace(problem, x=problem.x * np.float32(1e-39), hx=None, b_ih=None, b_hh=None)
    tiny = replace(tiny, w_ih=problem.w_ih, w_hh=problem.w_hh)
    expected = cases.run(tbptt_fast, tiny)
    assert_same_bits(tiny, run(tiny), expected)
    if cell == "rnn_relu":
        assert 0 < expected["out"].max() < np.finfo("float32").tiny
