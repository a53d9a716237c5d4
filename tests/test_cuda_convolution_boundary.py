"""The boundary of convolutions on a device: what they accept, and how they refuse."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import cuda

from .cases import assert_identical
from .cuda_cases import Device, EmulatedDevice
from .test_boundary import message
from .test_convolution import WRONG, B, Case, W, X
from .test_convolution_grid import TOO_LARGE, VIEWS
from .test_cuda_boundary import Exporter, Interface, as_numpy
from .test_cuda_convolution import run

CASE = Case(2, 2, 3, (5, 6), (3, 2), (1, 2), ((1, 1), (0, 1)), groups=2)
BACKWARD: tuple[tuple[dict[str, Any], type[Exception]], ...] = (
    ({"grad_out": np.ones((2, 6, 3, 3), "f4")}, ValueError),
    ({"grad_out": np.ones((2, 6, 3, 4))}, TypeError),
    ({"w": W.astype("f8")}, TypeError),
    ({"activation": "tanh"}, ValueError),
    ({"activation": "tanh", "y": X}, ValueError),
    ({"needs": ("q",)}, ValueError),
    ({"layout": 3}, TypeError),
)
TRANSPOSED: tuple[tuple[dict[str, Any], type[Exception]], ...] = (
    ({"output_padding": 1}, ValueError),
    ({"output_padding": -1}, ValueError),
    ({"padding": "same"}, ValueError),
    ({"padding": 9}, ValueError),
    ({"w": W[:1]}, ValueError),
    ({"groups": 3}, ValueError),
    ({"b": B[1:]}, ValueError),
)


def refused_alike(device: Device, name: str, error: type[Exception], **arguments: Any) -> None:
    """With the CPU's very words."""
    with pytest.raises(error) as on_cpu:
        getattr(tbptt_fast, name)(**arguments)
    with pytest.raises(error) as on_device:
        getattr(device.ops(), name)(**arguments)
    assert str(on_device.value) == str(on_cpu.value)
    assert str(on_device.value).startswith(f"{name}: ")


@pytest.mark.parametrize(("change", "error"), [wrong[:2] for wrong in WRONG], ids=str)
def test_wrong_arguments(device: Device, change: dict[str, Any], error: type[Exception]) -> None:
    arguments: dict[str, Any] = {"x": X, "w": W, "b": B, "groups": 2, **change}
    refused_alike(device, "conv2d", error, **arguments)


@pytest.mark.parametrize(("change", "error"), BACKWARD, ids=str)
def test_wrong_gradients(device: Device, change: dict[str, Any], error: type[Exception]) -> None:
    grad = np.ones((2, 6, 3, 4), "f4")
    arguments: dict[str, Any] = {"grad_out": grad, "x": X, "w": W, "groups": 2, **change}
    refused_alike(device, "conv2d_backward", error, **arguments)


@pytest.mark.parametrize(("change", "error"), TRANSPOSED, ids=str)
def test_wrong_transposed(device: Device, change: dict[str, Any], error: type[Exception]) -> None:
    arguments: dict[str, Any] = {"x": X, "w": W[:4], "b": np.ones(2, "f4"), **change}
    refused_alike(device, "conv_transpose2d", error, **arguments)


@pytest.mark.parametrize(("x", "w", "options"), [wrong[:3] for wrong in TOO_LARGE], ids=str)
def test_no_output_is_a_clear_error(device: Device, x: Any, w: Any, options: Any) -> None:
    name = f"conv{len(x) - 2}d"
    given = {"x": np.ones(x, "f4"), "w": np.ones(w, "f4"), **options}
    refused_alike(device, name, ValueError, **given)
    refused_alike(device, f"{name}_backward", ValueError, grad_out=given["x"], **given)


def test_what_only_the_cpu_has(device: Device) -> None:
    ops = device.ops()
    for algo in ("winograd", "winograd_2x2", "winograd_4x4"):
        text = f"conv2d: algo: expected 'auto' or 'direct' on cuda, got '{algo}'"
        with pytest.raises(ValueError, match=message(text)):
            ops.conv2d(X, W, groups=2, algo=algo)
    for algo in ("auto", "direct"):
        np.testing.assert_array_equal(
            ops.conv2d(X, W, groups=2, algo=algo), ops.conv2d(X, W, groups=2)
        )
    packed = tbptt_fast.pack_conv2d(W)
    with pytest.raises(TypeError, match="conv2d: w: expected an array, got PackedConv2d"):
        ops.conv2d(X, packed, groups=2)


def test_wrong_precision(device: Device) -> None:
    for function in ("conv2d", "conv_transpose2d"):
        with pytest.raises(ValueError, match=f"{function}: precision: expected 'tf32' or"):
            getattr(device.ops(precision="high"), function)(X, W, groups=2)
    with pytest.raises(TypeError, match="conv1d: precision: expected 'tf32' or 'highest', got Non"):
        device.ops(precision=None).conv1d(X[..., 0], W[..., 0], groups=2)


def test_a_device_without_bfloat16_refuses_it(emulated: EmulatedDevice) -> None:
    x, w = (a.astype(pytest.importorskip("ml_dtypes").bfloat16) for a in (X, W))
    emulated.resize(capability=75)
    text = (
        "conv2d: x: expected dtype float32 or float64, got bfloat16, which needs a device of "
        "compute capability 8.0 or more, not 7.5"
    )
    with pytest.raises(TypeError, match=message(text)):
        emulated.ops().conv2d(x, w, groups=2)


def test_dtypes_do_not_mix(device: Device) -> None:
    narrow = pytest.importorskip("ml_dtypes").bfloat16
    ops, x, w, b = device.ops(), *(a.astype(narrow) for a in (X, W, B))
    y = ops.conv2d(x, w, b, groups=2)
    for name in ("w", "b"):
        given = {"x": x, "w": w, "b": b, name: {"w": W, "b": B}[name]}
        text = f"conv2d: {name}: expected dtype bfloat16, got float32"
        with pytest.raises(TypeError, match=message(text)):
            ops.conv2d(**given, groups=2)
    with pytest.raises(TypeError, match="w: expected dtype float32, got bfloat16"):
        ops.conv2d(X, w, groups=2)
    with pytest.raises(TypeError, match="grad_out: expected dtype bfloat16, got float32"):
        ops.conv2d_backward(y.astype("float32"), x, w, groups=2)
    with pytest.raises(TypeError, match="y: expected dtype bfloat16, got float32"):
        ops.conv2d_backward(y, x, w, y=y.astype("float32"), activation="relu", groups=2)
    with pytest.raises(TypeError, match="expected dtype float32, float64 or bfloat16, got float16"):
        ops.conv2d(X.astype("float16"), w, groups=2)


def test_too_many_pixels(emulated: EmulatedDevice) -> None:
    """Indices on a device are of 32 bits; nothing is cut off in silence."""
    x, w = np.empty((2**30, 0, 1, 1)), np.empty((0, 0, 1, 1))
    text = "x: expected sizes, pixels and weights of a channel below 2**30 on cuda, got 1073741824"
    with pytest.raises(ValueError, match=message(f"conv2d: {text}")):
        cuda.conv2d(x, w)
    with pytest.raises(ValueError, match=message(f"conv2d_backward: {text}")):
        cuda.conv2d_backward(x, x, w)
    with pytest.raises(MemoryError):
        cuda.conv2d(np.empty((2**31, 0, 1, 1)), np.empty((2**33, 0, 1, 1)))
    assert emulated.module.live_allocations() == 0


@pytest.mark.parametrize("wrap", [Interface, Exporter])
def test_arrays_of_unknown_libraries(emulated: EmulatedDevice, wrap: Callable[[Any], Any]) -> None:
    """Results are DeviceArrays, which others read by DLPack and by the array interface."""
    arrays = CASE.arrays("float32")
    wanted = run(emulated.ops(), CASE, arrays, False, "tanh")
    x, w, b, grad = (wrap(a) for a in arrays)
    y = cuda.conv2d(x, w, b, **CASE.options, activation="tanh")
    assert repr(y) == f"<DeviceArray {list(wanted['y'].shape)}, float32, device 0>"
    options = {**CASE.options, "activation": "tanh", "y": wrap(as_numpy(y))}
    grads: Any = cuda.conv2d_backward(grad, x, w, **options)
    found = {"y": y, "x": grads.x, "w": grads.w, "b": grads.b}
    assert_identical({name: as_numpy(value) for name, value in found.items()}, wanted)
    del y, grads, found
    gc.collect()
    assert emulated.module.live_allocations() == 0


def test_results_are_on_the_stream(emulated: EmulatedDevice) -> None:
    x, w = Interface(X, stream=0x500), Interface(W, stream=0x700)
    y = cuda.conv2d(x, w, groups=2)
    assert emulated.module.take_waits() == [(0x500, 0x700, 0)]
    assert y.__cuda_array_interface__["stream"] == 0x500
    grads: Any = cuda.conv2d_backward(as_numpy(y), x, w, groups=2, stream=0x300)
    assert grads.w.__cuda_array_interface__["stream"] == 0x300


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("last", [False, True])
def test_any_view_gives_the_same_bits(emulated: EmulatedDevice, view: str, last: bool) -> None:
    arrays = CASE.arrays("float32")
    others = [VIEWS[view](a) for a in arrays]
    found = run(emulated.ops(), CASE, others, last, "tanh")
    assert_identical(found, run(emulated.ops(), CASE, arrays, last, "tanh"))
    for other, array in zip(others, arrays, strict=True):
        np.testing.assert_array_equal(other, array)


def test_memory_elsewhere_is_refused(emulated: EmulatedDevice) -> None:
    with pytest.raises(TypeError, match="conv2d: x: expected an array in CUDA memory, got Exporte"):
        cuda.conv2d(Exporter(X, (10, 0)), W, groups=2)
    far = W.copy()
    emulated.module.place_on_device(far.ctypes.data, far.nbytes, 1)
    text = "conv2d: w: expected an array on device 0, as x, got one on device 1"
    with pytest.raises(ValueError, match=text):
        cuda.conv2d(X, far, groups=2)
    emulated.module.place_on_device(far.ctypes.data, 0, 0)
    strided = Interface(np.asfortranarray(W))
    with pytest.raises(ValueError, match="conv2d: w: expected a C-contiguous array, got a strided"):
        cuda.conv2d(X, strided, groups=2)
