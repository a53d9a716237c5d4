"""Linear and embedding against the oracle and PyTorch, for every layout, size and activation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import reference_layers as reference

from .cases import DTYPES, assert_close, assert_identical

ACTIVATIONS = (None, "relu", "tanh", "sigmoid")

# Leading dimensions, inputs, outputs: sizes around the lanes, primes, ones, several blocks of rows.
LINEAR: tuple[tuple[tuple[int, ...], int, int], ...] = (
    ((), 1, 1),
    ((1,), 1, 7),
    ((3,), 15, 16),
    ((2, 5), 17, 33),
    ((7, 3, 2), 31, 1),
    ((97,), 13, 65),
    ((193,), 64, 64),
    ((4,), 300, 5),
)
# Leading dimensions, rows of the table, width.
EMBEDDING: tuple[tuple[tuple[int, ...], int, int], ...] = (
    ((), 1, 1),
    ((5,), 3, 7),
    ((4, 3), 10, 16),
    ((2, 3, 5), 97, 33),
    ((400, 5), 30, 129),
)

linear_sizes = pytest.mark.parametrize("size", LINEAR, ids=str)
embedding_sizes = pytest.mark.parametrize("size", EMBEDDING, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
activations = pytest.mark.parametrize("activation", ACTIVATIONS)


def linear_arrays(size: tuple[tuple[int, ...], int, int], dtype: str) -> list[Any]:
    """x, w, b and the gradient of the output."""
    leading, inputs, outputs = size
    rng = np.random.default_rng(len(leading))
    bound = inputs**-0.5
    return [
        rng.normal(size=(*leading, inputs)).astype(dtype),
        rng.uniform(-bound, bound, size=(outputs, inputs)).astype(dtype),
        rng.uniform(-bound, bound, size=outputs).astype(dtype),
        rng.normal(size=(*leading, outputs)).astype(dtype),
    ]


def embedding_arrays(size: tuple[tuple[int, ...], int, int], dtype: str) -> list[Any]:
    """ids, w and the gradient of the output; half of the ids are the same."""
    leading, rows, width = size
    rng = np.random.default_rng(rows)
    ids = np.asarray(rng.integers(0, rows, size=leading))
    ids[np.asarray(rng.random(leading) < 0.5)] = rows // 2
    return [
        ids,
        rng.normal(size=(rows, width)).astype(dtype),
        rng.normal(size=(*leading, width)).astype(dtype),
    ]


# --- Linear -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa", "threads")
@linear_sizes
@dtypes
@activations
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_linear(
    size: tuple[tuple[int, ...], int, int], dtype: str, activation: Any, bias: bool
) -> None:
    x, w, b, grad = linear_arrays(size, dtype)
    given = b if bias else None
    y = tbptt_fast.linear(x, w, given, activation=activation)
    expected = reference.linear(x, w, given, activation=activation)
    assert y.dtype == dtype
    assert_close(y, expected, "forward", length=size[1], name="y")
    actual = tbptt_fast.linear_backward(grad, x, w, y=y, activation=activation)
    wanted = reference.linear_backward(grad, x, w, y=y, activation=activation)
    for name, length in (("x", size[2]), ("w", y.size // size[2]), ("b", y.size // size[2])):
        value = getattr(actual, name)
        assert value.dtype == dtype
        assert_close(value, getattr(wanted, name), "gradient", length=length, name=name)


@dtypes
@activations
def test_linear_equals_torch(dtype: str, activation: Any) -> None:
    torch = pytest.importorskip("torch")
    arrays = linear_arrays(((7, 5), 33, 17), dtype)
    x, w, b = (torch.tensor(a, requires_grad=True) for a in arrays[:3])
    function = {None: lambda z: z, "relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}
    y = function[activation](torch.nn.functional.linear(x, w, b))
    y.backward(torch.tensor(arrays[3]))
    ours = tbptt_fast.linear(*arrays[:3], activation=activation)
    assert_close(ours, y.detach().numpy(), "forward", length=33)
    grads = tbptt_fast.linear_backward(
        arrays[3], arrays[0], arrays[1], y=ours, activation=activation
    )
    for actual, tensor in zip(grads, (x, w, b), strict=True):
        assert_close(actual, tensor.grad.numpy(), "gradient", length=35)


def test_linear_computes_only_what_is_needed() -> None:
    x, w, _, grad = linear_arrays(((6,), 5, 4), "float32")
    everything = tbptt_fast.linear_backward(grad, x, w)
    choices: list[Any] = [(), ("x",), ("w",), ("b",), ("b", "x")]
    for needs in choices:
        grads = tbptt_fast.linear_backward(grad, x, w, needs=needs)
        for name in "xwb":
            value = getattr(grads, name)
            assert (value is None) == (name not in needs)
            if value is not None:
                np.testing.assert_array_equal(value, getattr(everything, name))


@dtypes
def test_relu_has_no_slope_at_zero(dtype: str) -> None:
    x, w = np.array([[-1.0], [0.0], [2.0]], dtype), np.ones((1, 1), dtype)
    y = tbptt_fast.linear(x, w, activation="relu")
    assert y.ravel().tolist() == [0.0, 0.0, 2.0]
    grads = tbptt_fast.linear_backward(np.ones_like(y), x, w, y=y, activation="relu")
    assert grads.x is not None
    assert grads.x.ravel().tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("shape", "weight"), [((0, 4), (3, 4)), ((2, 0, 4), (3, 4)), ((5, 0), (3, 0)), ((5, 4), (0, 4))]
)
def test_linear_of_nothing(shape: tuple[int, ...], weight: tuple[int, int]) -> None:
    x, w, b = np.ones(shape), np.ones(weight), np.arange(float(weight[0]))
    y = tbptt_fast.linear(x, w, b)
    np.testing.assert_array_equal(y, reference.linear(x, w, b))
    grads = tbptt_fast.linear_backward(np.ones_like(y), x, w)
    rows = float(np.prod(shape[:-1]))
    np.testing.assert_array_equal(grads.x, np.full(shape, float(weight[0])))
    np.testing.assert_array_equal(grads.w, np.full(weight, rows))
    np.testing.assert_array_equal(grads.b, np.full(weight[0], rows))


# --- Embedding ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa", "threads")
@embedding_sizes
@dtypes
@pytest.mark.parametrize("ids_dtype", ["int32", "int64"])
def test_embedding(size: tuple[tuple[int, ...], int, int], dtype: str, ids_dtype: str) -> None:
    ids, w, grad = embedding_arrays(size, dtype)
    ids = ids.astype(ids_dtype)
    y = tbptt_fast.embedding(ids, w)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, w[ids])
    actual = tbptt_fast.embedding_backward(grad, ids, size[1])
    assert actual.dtype == dtype
    expected = reference.embedding_backward(grad, ids, size[1])
    terms = float(reference.embedding_backward(np.abs(grad), ids, size[1]).max())
    assert_close(actual, expected, "gradient", length=1, terms=terms)


def test_embedding_is_the_gradient_of_its_loss() -> None:
    """It is linear, so a difference of any size is exact up to rounding."""
    ids, w, grad = embedding_arrays(((3, 4), 5, 3), "float64")
    actual = tbptt_fast.embedding_backward(grad, ids, 5)
    for index in np.ndindex(w.shape):
        change = np.zeros_like(w)
        change[index] = 1.0
        difference = (tbptt_fast.embedding(ids, change) * grad).sum()
        np.testing.assert_allclose(actual[index], difference, rtol=1e-13, atol=1e-13)


@dtypes
def test_embedding_equals_torch(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    ids, w, grad = embedding_arrays(((40, 3), 11, 17), dtype)
    weight = torch.tensor(w, requires_grad=True)
    y = torch.nn.functional.embedding(torch.tensor(ids), weight)
    y.backward(torch.tensor(grad))
    np.testing.assert_array_equal(tbptt_fast.embedding(ids, w), y.detach().numpy())
    actual = tbptt_fast.embedding_backward(grad, ids, 11)
    assert_close(actual, weight.grad.numpy(), "gradient", length=ids.size)


@pytest.mark.usefixtures("isa")
@dtypes
def test_embedding_gives_the_same_bits_for_every_number_of_threads(dtype: str) -> None:
    """With a table of many columns, of few, and of few rows that all get everything."""
    for size in (((700, 9), 50, 200), ((5000,), 300, 10), ((3000,), 2, 70)):
        ids, w, grad = embedding_arrays(size, dtype)
        results = []
        for n in (1, 2, 3, 8):
            with tbptt_fast.num_threads(n):
                y = tbptt_fast.embedding(ids, w)
                table = tbptt_fast.embedding_backward(grad, ids, size[1])
                results.append({"y": y, "table": table})
        for result in results[1:]:
            assert_identical(result, results[0])


def test_embedding_of_nothing() -> None:
    none, w = np.zeros((2, 0), np.int64), np.ones((3, 4))
    assert tbptt_fast.embedding(none, w).shape == (2, 0, 4)
    np.testing.assert_array_equal(
        tbptt_fast.embedding_backward(np.ones((2, 0, 4)), none, 3), np.zeros((3, 4))
    )
    assert tbptt_fast.embedding(np.zeros(2, np.int64), np.ones((3, 0))).shape == (2, 0)
    assert tbptt_fast.embedding_backward(np.ones((0, 4)), none[0], 0).shape == (0, 4)


def test_embedding_passes_nan_on() -> None:
    w = np.ones((3, 2))
    w[1] = np.nan
    y = tbptt_fast.embedding(np.array([0, 1]), w)
    assert np.isnan(y).tolist() == [[False, False], [True, True]]
    table = tbptt_fast.embedding_backward(y, np.array([2, 0]), 3)
    assert np.isnan(table).tolist() == [[True, True], [False, False], [False, False]]


@pytest.mark.parametrize(
    ("ids", "error", "text"),
    [
        (np.array([0, 3]), ValueError, r"ids: expected values in \[0, 3\), got 3"),
        (np.array([2**40]), ValueError, r"ids: expected values in \[0, 3\), got 1099511627776"),
        (np.array([-1], np.int32), ValueError, r"ids: expected values in \[0, 3\), got -1"),
        (np.array([0], np.uint32), TypeError, "ids: expected dtype int32 or int64, got uint32"),
        (np.array([0], ">i4"), TypeError, "ids: expected dtype int32 or int64, got >i4"),
        (np.array([True]), TypeError, "ids: expected dtype int32 or int64, got bool"),
        ([0], TypeError, "ids: expected an array, got list"),
    ],
    ids=str,
)
def test_embedding_rejects_ids(ids: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^embedding: {text}"):
        tbptt_fast.embedding(ids, np.ones((3, 2)))
    with pytest.raises(error, match=f"^embedding_backward: {text}"):
        tbptt_fast.embedding_backward(np.ones((len(ids), 2)), ids, 3)


@pytest.mark.parametrize(
    ("number", "error", "text"),
    [
        (-1, ValueError, "expected an integer >= 0, got -1"),
        (2**64, ValueError, r"expected an integer below 2\*\*63, got 18446744073709551616"),
        (3.0, TypeError, "expected an integer, got float"),
        (True, TypeError, "expected an integer, got bool"),
        (None, TypeError, "expected an integer, got NoneType"),
    ],
)
def test_embedding_backward_rejects_numbers(number: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^embedding_backward: num_embeddings: {text}"):
        tbptt_fast.embedding_backward(np.ones((1, 2)), np.zeros(1, np.int64), number)


def test_a_table_too_large_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="bad_alloc"):
        tbptt_fast.embedding_backward(np.ones((1, 2)), np.zeros(1, np.int64), 2**62)
