"""Normalization and dropout on devices, against the reference, and dropout against the CPU's bits.

Shapes, scales and comparisons are those of the CPU's tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import cuda
from tbptt_fast import reference_norm as reference

from .cases import assert_identical
from .cuda_cases import CudaDevice, Device, EmulatedDevice, assert_same, same_bits, unaligned
from .norm_cases import compare, dtypes, scales
from .test_batch_norm import BATCHES, batch_arrays, layouts, run_batch, trains
from .test_layer_norm import ROWS, row_arrays, run_rows

# Beside the CPU's: whole vectors in a plane, several parts of one, a part's end inside an image.
batches = pytest.mark.parametrize("shape", [*BATCHES, (2, 3, 4, 8), (2, 2, 64, 80)], ids=str)
# And some lanes, a warp, a block for a row, with vectors and without.
rows = pytest.mark.parametrize(
    "shape", [*ROWS, (3, 128), (2, 1023), (3, 1028), (2, 9001), (300, 33)], ids=str
)
aligned = pytest.mark.parametrize("moved", [False, True], ids=["aligned", "unaligned"])


def placed(a: dict[str, Any], moved: bool) -> dict[str, Any]:
    return {name: unaligned(array) for name, array in a.items()} if moved else a


def compare_batch(
    actual: dict[str, Any], a: dict[str, Any], training: bool, **options: Any
) -> None:
    count = a["x"].size // a["x"].shape[1]
    lengths = dict.fromkeys(("sum", "grad of x", "grad of w", "grad of b"), count)
    compare(actual, run_batch(reference, a, training, **options), a, lengths)


def compare_rows(actual: dict[str, Any], a: dict[str, Any], **options: Any) -> None:
    columns = a["x"].shape[-1]
    lengths = dict.fromkeys(("grad of w", "grad of b"), a["x"].size // columns)
    lengths |= {"sum": columns, "grad of x": columns}
    compare(actual, run_rows(reference, a, **options), a, lengths)


# --- Batch normalization ------------------------------------------------------------------------


@batches
@dtypes
@trains
@layouts
@aligned
def test_batch_norm(
    device: Device, shape: tuple[int, ...], dtype: str, training: bool, layout: str, moved: bool
) -> None:
    a = placed(batch_arrays(shape, dtype), moved)
    options = {"layout": layout, "momentum": 0.3, "eps": 1e-6}
    compare_batch(run_batch(device.ops(), a, training, **options), a, training, **options)


@pytest.mark.parametrize("shape", [(129, 33), (4096, 2), (3, 7, 5, 3), (4, 2, 31, 33)], ids=str)
@dtypes
@scales
@trains
def test_batch_norm_of_other_scales(
    device: Device, shape: tuple[int, ...], dtype: str, scale: Any, training: bool
) -> None:
    a = batch_arrays(shape, dtype, scale)
    compare_batch(run_batch(device.ops(), a, training), a, training)


@layouts
def test_a_large_mean_costs_no_accuracy(device: Device, layout: Any) -> None:
    """Values at 4096 that are 0 or 1 ulp of float32 apart become ±1; in several parts."""
    step = np.float32(2.0**-11)
    shape = (64, 4, 16, 16) if layout == "NCHW" else (64, 16, 16, 4)
    x = np.full(shape, 4096, np.float32)
    x[::2] += step
    deviation = float(step) / 2
    result = device.ops().batch_norm(
        x, None, None, None, None, training=True, eps=0.0, layout=layout
    )
    np.testing.assert_array_equal(result.mean, 4096 + deviation)
    np.testing.assert_array_equal(result.inv_std, 1 / deviation)
    np.testing.assert_array_equal(result.y, np.where(x > 4096, 1, -1))
    ends = np.full((2, 4), 4096, np.float32) + np.array([[0], [step]], np.float32)
    result = device.ops().batch_norm(ends, None, None, None, None, training=True, eps=0.0)
    np.testing.assert_array_equal(result.y, [[-1] * 4, [1] * 4])


@pytest.mark.parametrize("shape", [(257, 97), (4096, 2), (3, 3, 97, 101), (2, 3, 4, 8)], ids=str)
@dtypes
@layouts
def test_batch_norm_has_the_same_bits(
    device: Device, shape: tuple[int, ...], dtype: str, layout: str
) -> None:
    """Whatever the order of the threads."""
    a, ops = batch_arrays(shape, dtype), device.ops()
    same_bits(
        device, lambda: tuple(map(np.ascontiguousarray, run_batch(ops, a, True, layout).values()))
    )


@trains
@layouts
def test_batch_norm_without_weights(device: Device, training: bool, layout: str) -> None:
    a, ops = batch_arrays((3, 5, 4, 7), "float32"), device.ops()
    plain = {**a, "weight": None, "bias": None}
    ones = {**a, "weight": np.ones(5, "f4"), "bias": np.zeros(5, "f4")}
    found = run_batch(ops, plain, training, layout), run_batch(ops, ones, training, layout)
    for name, value in found[0].items():
        assert_same(value, found[1][name])


def test_without_running_values_there_are_no_new_ones(device: Device) -> None:
    a = batch_arrays((4, 3), "float64")
    ops = device.ops()
    result = ops.batch_norm(a["x"], a["weight"], a["bias"], None, None, training=True)
    assert result.running_mean is None
    assert result.running_var is None
    np.testing.assert_array_equal(result.y, run_batch(ops, a, True)["y"])
    running = a["running_mean"], a["running_var"]
    result = ops.batch_norm(a["x"], a["weight"], a["bias"], *running, training=False)
    assert result.running_mean is None
    assert result.running_var is None


NEEDS: list[Any] = [(), ("x",), ("w",), ("b",), ("b", "x"), ("x", "w", "b")]


@trains
def test_batch_norm_computes_what_is_needed(device: Device, training: bool) -> None:
    a, ops = batch_arrays((3, 5, 4, 7), "float32"), device.ops()
    everything = run_batch(ops, a, training)
    statistics = everything["mean"], everything["inv_std"]
    for needs in NEEDS:
        given = a["grad"], a["x"], a["weight"], *statistics
        grads = ops.batch_norm_backward(*given, training=training, needs=needs)
        for name, value in grads._asdict().items():
            assert (value is None) == (name not in needs)
            if value is not None:
                np.testing.assert_array_equal(value, everything[f"grad of {name}"])


@dtypes
def test_batch_norm_of_nothing(device: Device, dtype: str) -> None:
    ops, ones, zeros, s = device.ops(), np.ones(3, dtype), np.zeros(3, dtype), np.ones(3)
    for shape in ((0, 3), (0, 3, 4, 4), (2, 3, 0, 5), (1, 3), (1, 3, 1, 1)):
        x = np.ones(shape, dtype)
        result = ops.batch_norm(x, ones, zeros, zeros, ones, training=False, eps=0)
        np.testing.assert_array_equal(result.y, x)
        np.testing.assert_array_equal(result.inv_std, s)
        grads = ops.batch_norm_backward(x, x, ones, result.mean, s, training=False)
        np.testing.assert_array_equal(grads.x, x)
        np.testing.assert_array_equal(grads.w, np.full(3, x.size / 3))
        np.testing.assert_array_equal(grads.b, np.full(3, x.size / 3))
    none, empty = np.zeros(0, dtype), np.zeros(0)
    for shape in ((4, 0), (4, 0, 3, 3)):
        x = np.ones(shape, dtype)
        result = ops.batch_norm(x, none, none, none, none, training=True)
        assert (result.y.shape, result.mean.shape) == (shape, (0,))
        grads = ops.batch_norm_backward(x, x, none, empty, empty, training=True)
        assert (grads.x.shape, grads.w.shape) == (shape, (0,))


@dtypes
@layouts
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_stays_in_its_channel(
    device: Device, dtype: str, layout: str, value: float
) -> None:
    for shape, place in (((3, 5, 4, 8), (1, 2, 3, 4)), ((2, 5, 50, 51), (0, 2, 3, 4))):
        a = batch_arrays(shape, dtype)
        a["x"][place] = value
        found, wanted = (run_batch(ops, a, True, layout) for ops in (device.ops(), tbptt_fast))
        channels = np.arange(5) == 2
        y = found["y"]
        np.testing.assert_array_equal(np.isnan(y).all(axis=(0, 2, 3)), channels)
        np.testing.assert_array_equal(np.isnan(y).any(axis=(0, 2, 3)), channels)
        for name in ("grad of x", "grad of w", "grad of b", "inv_std", "running_var"):
            np.testing.assert_array_equal(np.isnan(found[name]), np.isnan(wanted[name]), name)
        found, wanted = (run_batch(ops, a, False, layout) for ops in (device.ops(), tbptt_fast))
        finite = np.isfinite(wanted["y"])
        np.testing.assert_array_equal(found["y"][~finite], wanted["y"][~finite])
        assert np.isfinite(found["y"]).sum() == y.size - 1


# --- Layer normalization ------------------------------------------------------------------------


@rows
@dtypes
@aligned
def test_layer_norm(device: Device, shape: tuple[int, ...], dtype: str, moved: bool) -> None:
    a, ops = placed(row_arrays(shape, dtype), moved), device.ops()
    found = same_bits(device, lambda: tuple(run_rows(ops, a, eps=1e-6).values()))
    compare_rows(dict(zip(run_rows(reference, a), found, strict=True)), a, eps=1e-6)


@pytest.mark.parametrize("shape", [(3, 15), (5, 300), (3, 1028)], ids=str)
@dtypes
@scales
def test_layer_norm_of_other_scales(
    device: Device, shape: tuple[int, ...], dtype: str, scale: Any
) -> None:
    a = row_arrays(shape, dtype, scale)
    compare_rows(run_rows(device.ops(), a), a)


@pytest.mark.parametrize("columns", [6, 64, 2048])
def test_a_large_mean_costs_rows_no_accuracy(device: Device, columns: int) -> None:
    step = np.float32(2.0**-11)
    x = np.full((5, columns), 4096, np.float32)
    x[..., ::2] += step
    deviation = float(step) / 2
    y, mean, inv_std = device.ops().layer_norm(x, None, None, eps=0.0)
    np.testing.assert_array_equal(mean, 4096 + deviation)
    np.testing.assert_array_equal(inv_std, 1 / deviation)
    np.testing.assert_array_equal(y, np.where(x > 4096, 1, -1))


def test_layer_norm_without_weights(device: Device) -> None:
    a, ops = row_arrays((3, 5, 8), "float32"), device.ops()
    plain = {**a, "weight": None, "bias": None}
    ones = {**a, "weight": np.ones(8, "f4"), "bias": np.zeros(8, "f4")}
    assert_identical(run_rows(ops, plain), run_rows(ops, ones))


def test_layer_norm_computes_what_is_needed(device: Device) -> None:
    a, ops = row_arrays((3, 5, 7), "float32"), device.ops()
    everything = run_rows(ops, a)
    for needs in NEEDS:
        given = a["grad"], a["x"], a["weight"], everything["mean"], everything["inv_std"]
        grads = ops.layer_norm_backward(*given, needs=needs)
        for name, value in grads._asdict().items():
            assert (value is None) == (name not in needs)
            if value is not None:
                np.testing.assert_array_equal(value, everything[f"grad of {name}"])


def test_layer_norm_of_no_rows(device: Device) -> None:
    ops, ones = device.ops(), np.ones(3)
    y, mean, inv_std = ops.layer_norm(np.ones((2, 0, 3)), ones, ones)
    assert (y.shape, mean.shape, inv_std.shape) == ((2, 0, 3), (2, 0), (2, 0))
    grads = ops.layer_norm_backward(y, y, ones, mean, inv_std)
    assert grads.x.shape == (2, 0, 3)
    np.testing.assert_array_equal(grads.w, np.zeros(3))
    np.testing.assert_array_equal(grads.b, np.zeros(3))


@dtypes
@pytest.mark.parametrize("columns", [17, 64, 1500])
def test_not_finite_stays_in_its_row(device: Device, dtype: str, columns: int) -> None:
    a = row_arrays((5, columns), dtype)
    a["x"][1, 16], a["x"][3, 2] = np.inf, np.nan
    found, wanted = (run_rows(ops, a) for ops in (device.ops(), tbptt_fast))
    for name, value in found.items():
        np.testing.assert_array_equal(np.isnan(value), np.isnan(wanted[name]), name)
    rows_of_nan = [False, True, False, True, False]
    np.testing.assert_array_equal(np.isnan(found["y"]).all(axis=1), rows_of_nan)
    np.testing.assert_array_equal(np.isnan(found["grad of x"]).any(axis=1), rows_of_nan)


# --- Dropout ------------------------------------------------------------------------------------


@dtypes
@aligned
@pytest.mark.parametrize("count", [0, 1, 7, 8, 31, 32, 33, 97, 2001, 70_001])
def test_dropout_has_the_bits_of_the_cpu(
    device: Device, dtype: str, moved: bool, count: int
) -> None:
    x = np.random.default_rng(count).normal(size=count).astype(dtype)
    x = unaligned(x) if moved else x
    for p in (0.0, 2**-32, 0.1, 0.5, 0.999):
        for key in (0, 2**32 + 1, 2**63 - 1):
            y = device.ops().dropout(x, p, key)
            assert_same(y, tbptt_fast.dropout(x, p, key))
            assert_same(device.ops().dropout_backward(x, p, key), y)


def test_dropout_draws_the_words_of_philox(device: Device) -> None:
    """By its definition, too, and in any shape."""
    x = np.ones((5, 7, 11), "float32")
    wanted = reference.dropout_mask(x.size, 0.4, 9).reshape(x.shape)
    np.testing.assert_array_equal(device.ops().dropout(x, 0.4, 9) != 0, wanted)
    assert device.ops().dropout(np.array(1.5), 0.0, 0) == 1.5


@dtypes
def test_dropout_selects(device: Device, dtype: str) -> None:
    """What is dropped is +0, whatever it was."""
    mask = reference.dropout_mask(64, 0.5, 3)
    for value in (np.nan, np.inf, -1.0):
        y = device.ops().dropout(np.full(64, value, dtype), 0.5, 3)
        np.testing.assert_array_equal(y[mask], np.full(mask.sum(), 2 * value))
        np.testing.assert_array_equal(y[~mask], 0)
        assert not np.signbit(y[~mask]).any()


# --- Devices ------------------------------------------------------------------------------------


def test_every_size_of_device(emulated: EmulatedDevice) -> None:
    """Neither the multiprocessors nor what a block may hold changes a result."""
    batch, images = batch_arrays((900, 40), "float32"), batch_arrays((3, 2, 60, 61), "float32")
    lines, x = row_arrays((300, 70), "float32"), np.ones(40_000, "float32")
    found = []
    for multiprocessors, kilobytes in ((1, 48), (3, 96), (132, 227)):
        emulated.resize(multiprocessors, kilobytes << 10)
        ops = emulated.ops()
        results = {f"batch {n}": v for n, v in run_batch(ops, batch, True).items()}
        results |= {f"images {n}": v for n, v in run_batch(ops, images, True).items()}
        results |= run_rows(ops, lines)
        found.append(results | {"dropped": ops.dropout(x, 0.3, 5)})
    for other in found[1:]:
        assert_identical(other, found[0])


@pytest.mark.gpu
def test_a_captured_graph_replays() -> None:
    """Norms, dropout and a linear layer in one CUDA graph, on changed inputs."""
    device = CudaDevice()
    torch = device.torch
    x, w = torch.randn(300, 48, device="cuda"), torch.randn(40, 48, device="cuda")

    def step() -> Any:
        y, *row = cuda.layer_norm(cuda.dropout(x, 0.1, 3), None, None)
        z = cuda.linear(y, w, activation="tanh")
        _, *statistics, _, _ = batch = cuda.batch_norm(z, None, None, None, None, training=True)
        by_z = cuda.batch_norm_backward(batch.y, z, None, *statistics, training=True).x
        grads = cuda.linear_backward(by_z, y, w, y=z, activation="tanh")
        return cuda.layer_norm_backward(grads.x, x, None, *row).x, grads.w

    step()  # whatever is set up once
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    x.mul_(0.5)
    graph.replay()
    for actual, expected in zip(found, step(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.gpu
def test_large_on_a_gpu() -> None:
    device = CudaDevice()
    ops = device.ops()
    for shape in ((32, 256, 56, 56), (100_000, 300)):
        a = batch_arrays(shape, "float32", (-3.0, 0.1))
        for layout in ("NCHW", "NHWC"):
            compare_batch(run_batch(ops, a, True, layout), a, True, layout=layout)
    a = row_arrays((20_000, 1024), "float32")
    found = same_bits(device, lambda: tuple(run_rows(ops, a).values()))
    compare_rows(dict(zip(run_rows(reference, a), found, strict=True)), a)
    x = np.ones(100_000_001, "float32")
    assert_same(ops.dropout(x, 0.25, 1), tbptt_fast.dropout(x, 0.25, 1))
