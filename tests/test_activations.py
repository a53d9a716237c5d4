"""relu, softmax and the gradients of activations against the oracle, PyTorch and differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import reference_layers as reference

from .cases import DTYPES, assert_close, assert_identical
from .test_boundary import message, sliced

SHAPES: tuple[tuple[int, ...], ...] = ((1,), (3, 1), (2, 5), (4, 16), (3, 2, 17), (1000, 33))
ACTIVATIONS = ("relu", "tanh", "sigmoid")

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
activations = pytest.mark.parametrize("activation", ACTIVATIONS)


def normal(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


@pytest.mark.usefixtures("isa", "threads")
@shapes
@dtypes
@activations
def test_activations(shape: tuple[int, ...], dtype: str, activation: Any) -> None:
    x, grad = normal(shape, dtype), normal(shape, dtype, 1)
    y = getattr(tbptt_fast, activation)(x)
    if activation == "relu":
        np.testing.assert_array_equal(y, reference.relu(x))
    actual = tbptt_fast.activation_backward(grad, y, activation)
    assert y.dtype == dtype
    assert actual.dtype == dtype
    assert_close(actual, reference.activation_backward(grad, y, activation), "gradient", length=1)


@pytest.mark.usefixtures("isa", "threads")
@shapes
@dtypes
def test_softmax(shape: tuple[int, ...], dtype: str) -> None:
    x, grad = normal(shape, dtype), normal(shape, dtype, 1)
    y = tbptt_fast.softmax(x)
    actual = tbptt_fast.softmax_backward(grad, y)
    assert y.dtype == dtype
    assert actual.dtype == dtype
    assert_close(y, reference.softmax(x), "forward", length=shape[-1])
    assert_close(actual, reference.softmax_backward(grad, y), "gradient", length=shape[-1])


@dtypes
@pytest.mark.parametrize("name", [*ACTIVATIONS, "softmax"])
def test_equals_torch(dtype: str, name: Any) -> None:
    torch = pytest.importorskip("torch")
    x, grad = normal((30, 17), dtype), normal((30, 17), dtype, 1)
    x[0, :3] = 0
    leaf = torch.tensor(x, requires_grad=True)
    theirs = torch.softmax(leaf, -1) if name == "softmax" else getattr(torch, name)(leaf)
    theirs.backward(torch.tensor(grad))
    y = getattr(tbptt_fast, name)(x)
    if name == "softmax":
        actual = tbptt_fast.softmax_backward(grad, y)
    else:
        actual = tbptt_fast.activation_backward(grad, y, name)
    assert_close(y, theirs.detach().numpy(), "forward", length=17)
    assert_close(actual, leaf.grad.numpy(), "gradient", length=17)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", [*ACTIVATIONS, "softmax"])
def test_finite_differences(name: Any) -> None:
    x, grad, step = normal((3, 5), "float64"), normal((3, 5), "float64", 1), 1e-5
    assert np.abs(x).min() > 10 * step  # the kink of relu
    function = getattr(tbptt_fast, name)
    if name == "softmax":
        actual = tbptt_fast.softmax_backward(grad, function(x))
    else:
        actual = tbptt_fast.activation_backward(grad, function(x), name)
    for index in np.ndindex(x.shape):
        ends = []
        for sign in (1, -1):
            z = x.copy()
            z[index] += sign * step
            ends.append((function(z) * grad).sum())
        slope = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(actual[index], slope, rtol=1e-7, atol=1e-8)


@pytest.mark.usefixtures("isa")
@dtypes
def test_the_same_bits_for_every_number_of_threads(dtype: str) -> None:
    x, grad = normal((3001, 37), dtype), normal((3001, 37), dtype, 1)
    results = []
    for n in (1, 2, 3, 8):
        with tbptt_fast.num_threads(n):
            named: dict[str, Any] = {"softmax": tbptt_fast.softmax(x)}
            named["back"] = tbptt_fast.softmax_backward(grad, named["softmax"])
            for name in ("relu", "tanh", "sigmoid"):
                y = getattr(tbptt_fast, name)(x)
                named[name] = y
                named[f"{name} back"] = tbptt_fast.activation_backward(grad, y, name)
            results.append(named)
    for result in results[1:]:
        assert_identical(result, results[0])


# --- Values at the edge -------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
@dtypes
def test_relu_at_the_edge(dtype: str) -> None:
    x = np.array([-np.inf, -1, -0.0, 0, 1, np.inf, np.nan], dtype)
    y = tbptt_fast.relu(x)
    np.testing.assert_array_equal(y, [0, 0, 0, 0, 1, np.inf, np.nan])
    back = tbptt_fast.activation_backward(np.ones_like(x), y, "relu")
    np.testing.assert_array_equal(back[:6], [0, 0, 0, 0, 1, 1])


@pytest.mark.usefixtures("isa")
@dtypes
@pytest.mark.parametrize("width", [2, 16, 37])
def test_softmax_at_the_edge(dtype: str, width: int) -> None:
    x = np.zeros((5, width), dtype)
    x[0, 0], x[1, 1:], x[2, -1], x[3] = 1e4, -np.inf, np.nan, -np.inf
    y = tbptt_fast.softmax(x)
    np.testing.assert_array_equal(y[:2], np.eye(1, width).repeat(2, axis=0))
    assert np.isnan(y[2:4]).all()
    np.testing.assert_allclose(y[4], 1 / width, rtol=4 * float(np.finfo(dtype).eps))


def test_activations_of_nothing() -> None:
    for shape in ((0, 3), (3, 0), (0,)):
        none = np.zeros(shape)
        assert tbptt_fast.relu(none).shape == shape
        assert tbptt_fast.softmax(none).shape == shape
        assert tbptt_fast.softmax_backward(none, none).shape == shape
        assert tbptt_fast.activation_backward(none, none, "tanh").shape == shape
    assert tbptt_fast.relu(np.array(-1.0)).shape == ()


def test_strided_arrays() -> None:
    x, grad = normal((4, 5), "float32"), normal((4, 5), "float32", 1)
    y = tbptt_fast.softmax(x)
    for change in (sliced, np.asfortranarray):
        np.testing.assert_array_equal(tbptt_fast.softmax(change(x)), y)
        np.testing.assert_array_equal(tbptt_fast.relu(change(x)), tbptt_fast.relu(x))
        np.testing.assert_array_equal(
            tbptt_fast.softmax_backward(change(grad), change(y)),
            tbptt_fast.softmax_backward(grad, y),
        )
        np.testing.assert_array_equal(
            tbptt_fast.activation_backward(change(grad), change(y), "tanh"),
            tbptt_fast.activation_backward(grad, y, "tanh"),
        )


Y = np.zeros((2, 3), np.float32)
WRONG: list[tuple[str, tuple[Any, ...], type[Exception], str]] = [
    ("relu", (Y.astype("i4"),), TypeError, "x: expected dtype float32 or float64, got int32"),
    ("softmax", ([1.0],), TypeError, "x: expected an array, got list"),
    ("softmax", (np.zeros((), "f4"),), ValueError, "x: expected at least 1 dimension, got shape"),
    ("softmax_backward", (Y.T, Y), ValueError, "grad_out: expected shape [2, 3], got [3, 2]"),
    ("softmax_backward", (Y.astype("f8"), Y), TypeError, "grad_out: expected dtype float32"),
    ("activation_backward", (Y.T, Y, "relu"), ValueError, "grad_out: expected shape [2, 3]"),
    ("activation_backward", (Y, Y, "gelu"), ValueError, "activation: expected …got 'gelu'"),
    ("activation_backward", (Y, Y, None), TypeError, "activation: expected a string, got None"),
]


@pytest.mark.parametrize(
    ("op", "args", "error", "text"), WRONG, ids=[f"{w[0]}-{w[3]}" for w in WRONG]
)
def test_wrong_arguments(op: str, args: tuple[Any, ...], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=message(f"{op}: {text}")):
        getattr(tbptt_fast, op)(*args)
