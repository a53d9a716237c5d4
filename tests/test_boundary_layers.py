"""Wrong arguments of layers, losses and optimizers, each named in the error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tbptt_fast

from .test_boundary import message

F32 = np.float32


def arrays(*shapes: tuple[int, ...]) -> list[Any]:
    return [np.ones(shape, F32) for shape in shapes]


X, W, B, Y = arrays((2, 3, 4), (5, 4), (5,), (2, 3, 5))
IDS = np.zeros((2, 3), np.int64)

# The operation, its arguments, and the error with … for anything.
WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    (
        "linear",
        (X, W[:, 1:], B),
        {},
        ValueError,
        "x: expected last dimension 3, got shape [2, 3, 4]",
    ),
    ("linear", (X, W[0], B), {}, ValueError, "w: expected …got …[4]"),
    ("linear", (X, W, B[1:]), {}, ValueError, "b: expected shape [5], got [4]"),
    ("linear", (X, W.astype("f8"), B), {}, TypeError, "w: expected dtype float32, got float64"),
    ("linear", (X, W, B.astype("i8")), {}, TypeError, "b: expected dtype float32, got int64"),
    ("linear", (X.astype("i4"), W, B), {}, TypeError, "x: expected dtype …got int32"),
    ("linear", (X.tolist(), W, B), {}, TypeError, "x: expected an array, got list"),
    ("linear", (X, W, B), {"activation": "gelu"}, ValueError, "activation: expected …got"),
    ("linear_backward", (Y[1:], X, W), {}, ValueError, "grad_out: expected shape …got [1, 3, 5]"),
    ("linear_backward", (Y, X, W), {"activation": "tanh"}, ValueError, "y: "),
    ("linear_backward", (Y, X, W), {"needs": ("x", "q")}, ValueError, "needs: expected …got"),
    ("embedding", (IDS + 5, W), {}, ValueError, "ids: expected …got 5"),
    ("embedding", (IDS - 1, W), {}, ValueError, "ids: expected …got -1"),
    ("embedding", (IDS.astype("f4"), W), {}, TypeError, "ids: expected dtype …got float32"),
    ("embedding", (IDS, W[0]), {}, ValueError, "w: expected …got …[4]"),
    ("embedding_backward", (Y, IDS + 5, 5), {}, ValueError, "ids: expected …got 5"),
    ("embedding_backward", (Y, IDS[1:], 5), {}, ValueError, "…: expected shape …got ["),
    ("softmax_cross_entropy", (Y, IDS + 5), {}, ValueError, "targets: expected …got 5"),
    ("softmax_cross_entropy", (Y, IDS - 1), {}, ValueError, "targets: expected …got -1"),
    ("softmax_cross_entropy", (Y, IDS[1:]), {}, ValueError, "targets: expected shape [2, 3], got"),
    ("softmax_cross_entropy", (Y, Y), {}, TypeError, "targets: expected dtype …got float32"),
    ("softmax_cross_entropy", (Y, IDS), {"reduction": "max"}, ValueError, "reduction: expected"),
    (
        "softmax_cross_entropy",
        (Y, IDS),
        {"weights": Y},
        ValueError,
        "weights: expected shape [2, 3]",
    ),
    ("mse_loss", (Y, Y[1:]), {}, ValueError, "target: expected shape [2, 3, 5], got [1, 3, 5]"),
    ("mse_loss", (Y, Y.astype("f8")), {}, TypeError, "target: expected dtype float32, got float64"),
    ("mse_loss", (Y, Y), {"reduction": "sun"}, ValueError, "reduction: expected …got"),
    (
        "mse_loss",
        (Y, Y),
        {"weights": Y[0]},
        ValueError,
        "weights: expected shape [2, 3], got [3, 5]",
    ),
]


@pytest.mark.parametrize(
    ("op", "args", "options", "error", "text"), WRONG, ids=[f"{w[0]}-{w[4]}" for w in WRONG]
)
def test_wrong_arguments(
    op: str, args: tuple[Any, ...], options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=message(f"{op}: {text}")):
        getattr(tbptt_fast, op)(*args, **options)


def step_of(
    op: str, params: list[Any], grads: list[Any], states: list[list[Any]], **options: Any
) -> Any:
    options |= {"step": 1} if op == "adam_step" else {}
    needed = states[:1] if op == "sgd_step" else states
    return getattr(tbptt_fast, op)(params, grads, *needed, **{"lr": 0.1, **options})


optimizers = pytest.mark.parametrize("op", ["sgd_step", "rmsprop_step", "adam_step"])


@optimizers
def test_optimizers_check_before_they_write(op: str) -> None:
    """A wrong last array leaves the first one as it was."""
    good, bad_shape, bad_dtype = np.ones((2, 3)), np.ones((3, 2)), np.ones((2, 3), F32)
    frozen = np.ones((2, 3))
    frozen.flags.writeable = False

    def lists() -> list[list[Any]]:
        return [[np.ones((2, 3)), np.ones((2, 3))] for _ in range(4)]

    cases: list[tuple[int, Any, type[Exception], str]] = [
        (0, bad_dtype, TypeError, "expected dtype float64, got float32"),
        (0, frozen, ValueError, "expected …writable"),
        (0, np.ones((3, 2)).T, ValueError, "expected …contiguous"),
        (1, bad_shape, ValueError, "expected shape [2, 3], got [3, 2]"),
        (1, bad_dtype, TypeError, "expected dtype float64, got float32"),
        (2, bad_shape, ValueError, "expected shape [2, 3], got [3, 2]"),
        (2, frozen, ValueError, "expected …writable"),
    ]
    for position, wrong, error, text in cases:
        arguments = lists()
        arguments[position][1] = wrong
        with pytest.raises(error, match=message(f"{op}: …[1]: {text}")):
            step_of(
                op, arguments[0], arguments[1], arguments[2:], mu=0.9
            ) if op != "adam_step" else (step_of(op, arguments[0], arguments[1], arguments[2:]))
        np.testing.assert_array_equal(arguments[0][0], good)
    arguments = lists()
    with pytest.raises(ValueError, match=message(f"{op}: grads: expected 2 arrays, got 1")):
        step_of(op, arguments[0], arguments[1][:1], arguments[2:])


@optimizers
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("clip", [{}, {"max_norm": 1.0}, {"clip_value": 1.0}], ids=str)
def test_non_finite_gradients_never_reach_the_weights(op: str, value: float, clip: Any) -> None:
    """Also where clipping by value would have made an infinity finite."""

    def lists() -> list[list[Any]]:
        return [[np.ones(37, F32), np.ones(3, F32)] for _ in range(4)]

    params, grads, *states = lists()
    grads[1][2] = value
    with pytest.raises(FloatingPointError, match=message(f"{op}: ")):
        step_of(op, params, grads, states, **clip)
    result = step_of(op, params, grads, states, **clip, non_finite="skip")
    assert result.applied is False
    for array in (*params, *states[0], *states[1]):
        np.testing.assert_array_equal(array, 1.0)
    with pytest.raises(ValueError, match=message(f"{op}: non_finite: expected …got")):
        step_of(op, params, grads, states, **clip, non_finite="ignore")


@optimizers
@pytest.mark.parametrize("name", ["lr", "max_norm", "clip_value", "weight_decay"])
def test_optimizers_reject_options_out_of_range(op: str, name: str) -> None:
    for wrong in (-1.0, np.nan):
        one = [np.ones(3)]
        with pytest.raises(ValueError, match=message(f"{op}: {name}: expected …got")):
            step_of(op, one, [np.ones(3)], [[np.ones(3)], [np.ones(3)]], **{name: wrong})
        np.testing.assert_array_equal(one[0], 1.0)


def test_empty_results_of_endless_shapes() -> None:
    """No element, and still more than an array can have in the other axes."""
    ids, w = np.zeros((0, 2**31), np.int64), np.zeros((0, 2**32), np.float32)
    with pytest.raises(MemoryError):
        tbptt_fast.embedding(ids, w)
