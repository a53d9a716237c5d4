"""Wrong arguments of the fused updates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import tbptt_fast

from .test_optimizers import STATES, one, ops, step_of

FROZEN = np.ones(3)
FROZEN.flags.writeable = False
MISALIGNED = np.zeros(25, np.uint8)[1:].view(np.float64)
BASE = np.zeros(10)


WRONG_ARRAYS: list[tuple[int, Any, type[Exception], str]] = [
    (0, FROZEN, ValueError, "expected a writable array, got a read-only one"),
    (0, np.ones(6)[::2], ValueError, "expected a C-contiguous array, got a strided one"),
    (0, MISALIGNED, ValueError, "expected an aligned array, got a misaligned one"),
    (0, np.ones(3, "i8"), TypeError, "expected dtype float32 or float64, got int64"),
    (0, np.ones(3, ">f8"), TypeError, "expected dtype float32 or float64, got >f8"),
    (0, [1.0, 2.0, 3.0], TypeError, "expected a NumPy array, got list"),
    (1, np.ones(4), ValueError, r"expected shape \[3\], got \[4\]"),
    (1, np.ones((3, 1)), ValueError, r"expected shape \[3\], got \[3, 1\]"),
    (1, np.ones(3, "f4"), TypeError, "expected dtype float64, got float32"),
    (1, None, TypeError, "expected an array, got NoneType"),
    (2, np.ones(4), ValueError, r"expected shape \[3\], got \[4\]"),
    (2, np.ones(3, "f4"), TypeError, "expected dtype float64, got float32"),
    (2, FROZEN, ValueError, "expected a writable array, got a read-only one"),
    (2, 1.0, TypeError, "expected a NumPy array, got float"),
]


@ops
@pytest.mark.parametrize(("position", "wrong", "error", "text"), WRONG_ARRAYS, ids=str)
def test_wrong_arrays(
    op: str, position: int, wrong: Any, error: type[Exception], text: str
) -> None:
    arrays = one(op)
    name = ("params", "grads", {"adam": "exp_avg"}.get(op, STATES[op][0]))[position]
    arrays[position][0] = wrong
    with pytest.raises(error, match=rf"^{op}_step: {name}\[0\]: {text}"):
        step_of(tbptt_fast, op, arrays)


@ops
def test_wrong_lists(op: str) -> None:
    for position, name in enumerate(("params", "grads")):
        for wrong, kind in (({}, "dict"), (np.ones((1, 3)), "ndarray"), (None, "NoneType")):
            arrays: list[Any] = list(one(op))
            arrays[position] = wrong
            text = f"^{op}_step: {name}: expected a list of arrays, got {kind}"
            with pytest.raises(TypeError, match=text):
                step_of(tbptt_fast, op, tuple(arrays))
    arrays = list(one(op))
    arrays[1] = [*arrays[1], np.ones(3)]
    with pytest.raises(ValueError, match=f"^{op}_step: grads: expected 1 arrays, got 2"):
        step_of(tbptt_fast, op, tuple(arrays))


@pytest.mark.parametrize(
    ("params", "momentum", "text"),
    [
        ([BASE, BASE], [np.zeros(10), np.zeros(10)], r"params\[[01]\]: .*overlaps params\[[01]\]"),
        ([BASE[:5], BASE[4:9]], [np.zeros(5), np.zeros(5)], r"params\[1\]: .*overlaps params\[0\]"),
        ([BASE], [BASE], r"(params|momentum)\[0\]: expected memory of its own, got an array that"),
    ],
    ids=["same object", "views", "state"],
)
def test_written_arrays_may_not_overlap(params: Any, momentum: Any, text: str) -> None:
    grads = [np.ones_like(p) for p in params]
    with pytest.raises(ValueError, match=f"^sgd_step: {text}"):
        tbptt_fast.sgd_step(params, grads, momentum, lr=0.1, mu=0.5)
    np.testing.assert_array_equal(BASE, 0.0)
    halves = [BASE[:5], BASE[5:]]  # neighbours do not overlap
    tbptt_fast.sgd_step(halves, [np.zeros(5), np.zeros(5)], None, lr=0.1)


WRONG_OPTIONS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("sgd", {"lr": -0.1}, ValueError, "lr: expected a finite number >= 0, got -0.1"),
    ("sgd", {"lr": math.inf}, ValueError, "lr: expected a finite number >= 0, got inf"),
    ("sgd", {"lr": math.nan}, ValueError, "lr: expected a finite number >= 0, got nan"),
    ("sgd", {"lr": "0.1"}, TypeError, "lr: expected a finite number >= 0, got str"),
    ("sgd", {"mu": -1}, ValueError, "mu: expected a finite number >= 0, got -1"),
    ("sgd", {"weight_decay": -1}, ValueError, "weight_decay: expected a finite number >= 0"),
    ("sgd", {"nesterov": True}, ValueError, "nesterov: expected mu > 0 with it, got mu = 0"),
    ("sgd", {"nesterov": 1, "mu": 0.5}, TypeError, "nesterov: expected True or False, got int"),
    ("sgd", {"max_norm": 0.0}, ValueError, "max_norm: expected None or a finite number > 0"),
    ("adam", {"max_norm": math.nan}, ValueError, "max_norm: expected None or a .* got nan"),
    ("adam", {"clip_value": -1}, ValueError, "clip_value: expected None or a .* got -1"),
    ("adam", {"beta1": 1.0}, ValueError, r"beta1: expected a number in \[0, 1\), got 1.0"),
    ("adam", {"beta2": -0.1}, ValueError, r"beta2: expected a number in \[0, 1\), got -0.1"),
    ("adam", {"eps": 0.0}, ValueError, "eps: expected a finite number > 0, got 0.0"),
    ("adam", {"decoupled": None}, TypeError, "decoupled: expected True or False, got NoneType"),
    ("adam", {"non_finite": "ignore"}, ValueError, "non_finite: expected 'raise' or 'skip'"),
    ("adam", {"non_finite": None}, TypeError, "non_finite: expected a string, got NoneType"),
    ("rmsprop", {"alpha": 1.5}, ValueError, r"alpha: expected a number in \[0, 1\), got 1.5"),
    ("rmsprop", {"eps": -1e-8}, ValueError, "eps: expected a finite number > 0, got -1e-08"),
]


@pytest.mark.parametrize(("op", "options", "error", "text"), WRONG_OPTIONS)
def test_wrong_options(op: str, options: Any, error: type[Exception], text: str) -> None:
    arrays = one(op)
    with pytest.raises(error, match=f"^{op}_step: {text}"):
        step_of(tbptt_fast, op, arrays, **options)
    np.testing.assert_array_equal(arrays[0][0], 1.0)


@pytest.mark.parametrize(
    ("step", "error", "text"),
    [
        (0, ValueError, "expected an integer >= 1, got 0"),
        (1.0, TypeError, "expected an integer, got float"),
    ],
)
def test_wrong_steps(step: Any, error: type[Exception], text: str) -> None:
    params, grads, first, second = one("adam")
    with pytest.raises(error, match=f"^adam_step: step: {text}"):
        tbptt_fast.adam_step(params, grads, first, second, step=step, lr=0.1)


@pytest.mark.parametrize("op", ["sgd", "rmsprop"])
def test_a_momentum_that_is_needed(op: str) -> None:
    params, grads, *states = one(op)
    arrays = (params, grads, *states[:-1], None)
    with pytest.raises(ValueError, match=f"^{op}_step: momentum: expected a list of arrays with"):
        step_of(tbptt_fast, op, arrays, mu=0.9)
