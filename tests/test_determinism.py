"""The same bits for any number of threads, and from run to run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tbptt_fast

from .cases import (
    CELLS,
    DTYPES,
    Shape,
    assert_identical,
    make_masks,
    make_problem,
    run,
    shape_id,
)

pytestmark = pytest.mark.usefixtures("isa")

# Many rows and few columns, few rows and many columns, both, a long sequence, odd sizes.
SHAPES: tuple[Shape, ...] = (
    (3, 130, 5, 16),
    (5, 1, 40, 200),
    (6, 48, 33, 96),
    (150, 3, 7, 19),
    (9, 17, 65, 67),
)
THREADS = (1, 2, 3, 8)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_recurrent(cell: str, dtype: str, shape: Shape) -> None:
    problem = make_problem(cell, shape, dtype)
    choices: list[dict[str, Any]] = [
        {},
        {"truncation": 4, **make_masks("is_init", shape, dtype)},
        {"truncation": (2, 5), **make_masks("both", shape, dtype)},
    ]
    for options in choices:
        results = []
        for n in (*THREADS, *THREADS):
            with tbptt_fast.num_threads(n):
                results.append(run(tbptt_fast, problem, **options))
        for result in results[1:]:
            assert_identical(result, results[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_losses_and_optimizers(dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, w, b = (rng.normal(size=s).astype(dtype) for s in ((70, 9, 33), (129, 33), (129,)))
    ids = rng.integers(0, 50, size=(70, 9))
    targets = rng.integers(0, 129, size=(70, 9))

    def everything() -> dict[str, Any]:
        y = tbptt_fast.linear(x, w, b, activation="tanh")
        loss, grad = tbptt_fast.softmax_cross_entropy(y, targets)
        error, grad_mse = tbptt_fast.mse_loss(y, 0 * y)
        grads = tbptt_fast.linear_backward(grad, x, w, y=y, activation="tanh")
        table = tbptt_fast.embedding_backward(x, ids, 50)
        params, moments = [w.copy(), b.copy()], [[0 * w, 0 * b], [0 * w, 0 * b]]
        step = tbptt_fast.adam_step(
            params, [grads.w, grads.b], *moments, step=1, lr=0.1, max_norm=0.01
        )
        scalars = np.array([loss, error, step.norm])
        named = {"y": y, "grad": grad, "grad_mse": grad_mse, "table": table, "scalars": scalars}
        named |= {f"grad_{name}": getattr(grads, name) for name in ("x", "w", "b")}
        return named | {"w": params[0], "b": params[1]}

    results = []
    for n in (*THREADS, *THREADS):
        with tbptt_fast.num_threads(n):
            results.append(everything())
    for result in results[1:]:
        assert_identical(result, results[0])


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.usefixtures("isa", "threads")
def test_few_rows_have_the_bits_of_many(cell: str) -> None:
    """Steps one by one, whose weights are not packed, equal one call over all of them."""
    rng = np.random.default_rng(0)
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[cell]
    x, h = rng.standard_normal((9, 2, 13)), rng.standard_normal((2, 21))
    weights = [rng.standard_normal((gates * 21, n)) / 4 for n in (13, 21)]
    forward = getattr(tbptt_fast, f"{cell}_forward")
    state = (h, -h) if cell == "lstm" else h
    out, last, _ = forward(x, state, *weights)
    for step, expected in zip(x, out, strict=True):
        found, state, _ = forward(step[np.newaxis], state, *weights, training=False)
        assert np.array_equal(found[0], expected)
    assert all(np.array_equal(a, b) for a, b in zip(state, last, strict=True))
