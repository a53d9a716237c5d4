"""The linear layer and activations on devices, against the reference and the CPU's kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import reference_layers as reference

from .cases import DTYPES, assert_close
from .cuda_cases import (
    PRECISIONS,
    TF32_EPS,
    CudaDevice,
    Device,
    EmulatedDevice,
    assert_near,
    assert_same,
    same_bits,
    unaligned,
)
from .test_layers import LINEAR, activations, linear_arrays

dtypes = pytest.mark.parametrize("dtype", DTYPES)
precisions = pytest.mark.parametrize(
    ("dtype", "precision"), PRECISIONS, ids=[f"{d}-{p}" for d, p in PRECISIONS]
)
aligned = pytest.mark.parametrize("moved", [False, True], ids=["aligned", "unaligned"])
# Beside the CPU's: a depth in several parts, and rows and columns of several tiles.
sizes = pytest.mark.parametrize(
    "size", [*LINEAR, ((3,), 1100, 8), ((130,), 24, 130), ((1100,), 3, 4)], ids=str
)


def run_linear(ops: Any, arrays: list[Any], activation: Any, bias: bool = True) -> dict[str, Any]:
    x, w, b, grad = arrays
    y = ops.linear(x, w, b if bias else None, activation=activation)
    grads = ops.linear_backward(grad, x, w, y=y, activation=activation)
    return {"y": y, **grads._asdict()}


def check(arrays: list[Any], found: dict[str, Any], activation: Any, bias: bool, eps: Any) -> None:
    """Gradients are those at the output that was found: a kink is on the side where it was."""
    x, w, b, grad = arrays
    y = reference.linear(x, w, b if bias else None, activation=activation)
    wanted = reference.linear_backward(grad, x, w, y=found["y"], activation=activation)
    rows = max(1, grad.size // max(1, len(w)))
    assert_close(found["y"], y, "forward", length=w.shape[1], eps=eps, name="y")
    for name, length in (("x", len(w)), ("w", rows), ("b", rows)):
        assert found[name].dtype == x.dtype
        value = getattr(wanted, name)
        assert_close(found[name], value, "gradient", length=length, eps=eps, name=name)


@sizes
@precisions
@activations
def test_linear(device: Device, size: Any, dtype: str, precision: str, activation: Any) -> None:
    arrays = linear_arrays(size, dtype)
    eps = TF32_EPS if (dtype, precision) == ("float32", "tf32") else None
    ops = device.ops(precision=precision)
    for bias in (True, False):
        check(arrays, run_linear(ops, arrays, activation, bias), activation, bias, eps)
    moved = list(map(unaligned, arrays))
    check(moved, run_linear(ops, moved, activation), activation, True, eps)


@precisions
@pytest.mark.parametrize("size", [((3,), 1100, 8), ((130,), 24, 131), ((1100,), 3, 4)], ids=str)
def test_linear_has_the_same_bits(device: Device, size: Any, dtype: str, precision: str) -> None:
    """Whatever the order of the threads."""
    arrays, ops = linear_arrays(size, dtype), device.ops(precision=precision)
    same_bits(device, lambda: tuple(run_linear(ops, arrays, "tanh").values()))


@pytest.mark.parametrize(
    ("shape", "weight"), [((0, 4), (3, 4)), ((2, 0, 4), (3, 4)), ((5, 0), (3, 0)), ((5, 4), (0, 4))]
)
@activations
@dtypes
def test_linear_of_nothing(
    device: Device, shape: tuple[int, ...], weight: tuple[int, int], activation: Any, dtype: str
) -> None:
    x, w, b = np.ones(shape, dtype), np.ones(weight, dtype), np.arange(weight[0]).astype(dtype)
    grad = np.ones((*shape[:-1], weight[0]), dtype)
    found = run_linear(device.ops(), [x, w, b, grad], activation)
    check([x, w, b, grad], found, activation, True, None)


def test_linear_computes_only_what_is_needed(device: Device) -> None:
    x, w, _, grad = linear_arrays(((6,), 5, 4), "float32")
    ops = device.ops()
    everything = ops.linear_backward(grad, x, w)
    choices: list[Any] = [(), ("x",), ("w",), ("b",), ("b", "x")]
    for needs in choices:
        grads = ops.linear_backward(grad, x, w, needs=needs)
        for name, value in grads._asdict().items():
            assert (value is None) == (name not in needs)
            if value is not None:
                np.testing.assert_array_equal(value, getattr(everything, name))


@dtypes
def test_not_finite_stays_in_its_row(device: Device, dtype: str) -> None:
    x, w, b, grad = linear_arrays(((9,), 24, 7), dtype)
    x[2, 3], x[5, 0] = np.nan, np.inf
    y = device.ops().linear(x, w, b)
    np.testing.assert_array_equal(np.isfinite(y).any(axis=1), np.isfinite(x).all(axis=1))
    np.testing.assert_array_equal(np.isfinite(y).all(axis=1), np.isfinite(x).all(axis=1))
    grad[4, 6] = np.nan
    grads = device.ops().linear_backward(grad, x, w)
    np.testing.assert_array_equal(np.isnan(grads.x).all(axis=1), np.arange(9) == 4)
    np.testing.assert_array_equal(np.isnan(grads.b), np.arange(7) == 6)


# --- Elementwise --------------------------------------------------------------------------------

FUNCTIONS = ("exp", "relu", "tanh", "sigmoid")
SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (0, 3), (3, 5), (4, 16), (3, 2, 17), (9000,))
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def draw(shape: tuple[int, ...], dtype: str, moved: bool, seed: int = 0) -> Any:
    values = np.asarray(3 * np.random.default_rng([seed, *shape]).normal(size=shape), dtype)
    return unaligned(values) if moved else values


@shapes
@dtypes
@aligned
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(
    device: Device, shape: tuple[int, ...], dtype: str, moved: bool, name: str
) -> None:
    """Within a few ULP of the function in double."""
    x = draw(shape, dtype, moved)
    functions: dict[str, Any] = {"exp": np.exp, "tanh": np.tanh}
    functions |= {"relu": reference.relu, "sigmoid": reference.sigmoid}
    wanted = functions[name](x.astype("float64"))
    (y,) = same_bits(device, lambda: (getattr(device.ops(), name)(x),))
    assert y.dtype == dtype
    np.testing.assert_allclose(y, wanted, rtol=3 * float(np.finfo(dtype).eps), atol=0)


@dtypes
@pytest.mark.parametrize("count", [8, 13])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_what_is_not_finite(device: Device, dtype: str, count: int, name: str) -> None:
    edges = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30, 1.0, -1.0]
    x = np.resize(np.array(edges, dtype), count)
    found, wanted = getattr(device.ops(), name)(x), getattr(tbptt_fast, name)(x)
    assert_near(found, wanted, "forward", length=1)
    assert_same(np.sign(found), np.sign(wanted))


@shapes
@dtypes
@aligned
@pytest.mark.parametrize("name", FUNCTIONS[1:])
def test_activation_backward(
    device: Device, shape: tuple[int, ...], dtype: str, moved: bool, name: Any
) -> None:
    y = np.asarray(getattr(tbptt_fast, name)(draw(shape, dtype, False)), dtype)
    y, grad = unaligned(y) if moved else y, draw(shape, dtype, moved, 1)
    (found,) = same_bits(device, lambda: (device.ops().activation_backward(grad, y, name),))
    assert found.dtype == dtype
    wanted = reference.activation_backward(grad, y, name)
    assert_close(found, wanted, "gradient", length=1)


@dtypes
@pytest.mark.parametrize("name", FUNCTIONS[1:])
def test_activation_backward_of_what_is_not_finite(device: Device, dtype: str, name: Any) -> None:
    edges = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 0.5, 1.0], dtype)
    grad, y = (np.ascontiguousarray(part.ravel()) for part in np.meshgrid(edges, edges))
    found = device.ops().activation_backward(grad, y, name)
    np.testing.assert_array_equal(found, tbptt_fast.activation_backward(grad, y, name))


def test_every_size_of_device(emulated: EmulatedDevice) -> None:
    """Neither the multiprocessors nor what a block may hold changes a result."""
    arrays, x = linear_arrays(((300,), 1100, 9), "float32"), draw((40_000,), "float32", False)
    found = []
    for multiprocessors, kilobytes in ((1, 96), (3, 96), (132, 227)):
        emulated.resize(multiprocessors, kilobytes << 10)
        ops = emulated.ops()
        elementwise = [getattr(ops, name)(x) for name in FUNCTIONS]
        results = *run_linear(ops, arrays, "sigmoid").values(), *elementwise
        found.append((*results, ops.activation_backward(x, elementwise[2], "tanh")))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.gpu
@precisions
def test_large_on_a_gpu(dtype: str, precision: str) -> None:
    device = CudaDevice()
    arrays = linear_arrays(((33, 64), 1024, 1000), dtype)
    eps = TF32_EPS if (dtype, precision) == ("float32", "tf32") else None
    found = run_linear(device.ops(precision=precision), arrays, "tanh")
    check(arrays, found, "tanh", True, eps)
