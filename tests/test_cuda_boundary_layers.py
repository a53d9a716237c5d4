"""Wrong arguments of layers, losses, pooling and optimizers on a device, and arrays of anybody's.

The tables are those of the CPU's tests: the checks are the same. Only what the values alone tell is
not an error here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tbptt_fast import cuda
from tbptt_fast import reference_layers as reference

from . import (
    test_activations,
    test_batch_norm,
    test_boundary_layers,
    test_dropout,
    test_layer_norm,
    test_pooling,
)
from .cuda_cases import EmulatedDevice, assert_near
from .test_boundary import message
from .test_cuda_boundary import Exporter, Interface, as_numpy
from .test_optimizer_errors import WRONG_ARRAYS, WRONG_OPTIONS
from .test_optimizers import STATES, one, ops, step_of

VALUES = ("values in", "…got 5", "…got -1")
TABLES = (
    *test_boundary_layers.WRONG,
    *test_pooling.WRONG,
    *test_batch_norm.WRONG,
    *test_layer_norm.WRONG,
    *((op, args, {}, error, text) for op, args, error, text in test_activations.WRONG),
)
WRONG = [
    case
    for case in TABLES
    if not (case[4].startswith(("ids", "targets", "indices")) and any(v in case[4] for v in VALUES))
    and not isinstance(case[1][0], np.generic)  # which the emulated device reads as an array
]


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(
    ("op", "args", "options", "error", "text"), WRONG, ids=[f"{w[0]}-{w[4]}" for w in WRONG]
)
def test_wrong_arguments(
    op: str, args: tuple[Any, ...], options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=message(f"{op}: {text}")):
        getattr(cuda, op)(*args, **options)


def test_the_tables_are_not_empty() -> None:
    assert len(WRONG) > 80


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("p", "key", "error", "text"), test_dropout.WRONG)
@pytest.mark.parametrize("op", ["dropout", "dropout_backward"])
def test_wrong_dropout(op: str, p: Any, key: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=message(f"{op}: {text}")):
        getattr(cuda, op)(np.ones(3), p, key)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("op", ["exp", "relu", "tanh", "sigmoid", "dropout"])
def test_wrong_arrays_of_elementwise_functions(op: str) -> None:
    more = (0.5, 0) if op == "dropout" else ()
    for x, text in (([1.0], "an array, got list"), (np.ones(3, int), "dtype …got int64")):
        with pytest.raises(TypeError, match=message(f"{op}: x: expected {text}")):
            getattr(cuda, op)(x, *more)


@pytest.mark.usefixtures("emulated")
def test_sizes_that_only_a_device_refuses() -> None:
    """Of nothing, so that they cost nothing."""
    x, w = np.zeros((0, 2**20 + 1)), np.zeros((3, 2**20 + 1))
    text = "linear: w: expected at most 2**20 inputs and outputs, got shape [3, 1048577]"
    with pytest.raises(ValueError, match=message(text)):
        cuda.linear(x, w)
    x, w = np.zeros((2**31, 0)), np.zeros((3, 0))
    text = "linear_backward: x: expected less than 2**31 rows, got shape [2147483648, 0]"
    with pytest.raises(ValueError, match=message(text)):
        cuda.linear_backward(x, x, w)
    x, c = np.zeros((0, 1, 2**16, 2**15)), np.ones(1)
    for op, args in (("batch_norm", (x, c, c, c, c)), ("batch_norm_backward", (x, x, c, c, c))):
        text = f"{op}: x: expected planes of less than 2**31 values, got shape [0, 1, 65536, 32768]"
        with pytest.raises(ValueError, match=message(text)):
            getattr(cuda, op)(*args, training=False)
    with pytest.raises(ValueError, match=message("linear: precision: expected")):
        cuda.linear(np.ones((2, 3)), np.ones((3, 3)), precision="half")


@pytest.mark.usefixtures("emulated")
@ops
@pytest.mark.parametrize(("position", "wrong", "error", "text"), WRONG_ARRAYS, ids=str)
def test_wrong_arrays(
    op: str, position: int, wrong: Any, error: type[Exception], text: str
) -> None:
    arrays = one(op)
    name = ("params", "grads", {"adam": "exp_avg"}.get(op, STATES[op][0]))[position]
    arrays[position][0] = wrong
    text = text.replace("a NumPy array", "an array")
    with pytest.raises(error, match=rf"^{op}_step: {name}\[0\]: {text}"):
        step_of(cuda, op, arrays)
    if position > 0:
        np.testing.assert_array_equal(arrays[0][0], 1.0)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("op", "options", "error", "text"), WRONG_OPTIONS)
def test_wrong_options(op: str, options: Any, error: type[Exception], text: str) -> None:
    arrays = one(op)
    with pytest.raises(error, match=f"^{op}_step: {text}"):
        step_of(cuda, op, arrays, **options)
    np.testing.assert_array_equal(arrays[0][0], 1.0)


@pytest.mark.usefixtures("emulated")
@ops
def test_wrong_lists(op: str) -> None:
    for position, name in enumerate(("params", "grads")):
        for wrong, kind in (({}, "dict"), (np.ones((1, 3)), "ndarray"), (None, "NoneType")):
            arrays: list[Any] = list(one(op))
            arrays[position] = wrong
            text = f"^{op}_step: {name}: expected a list of arrays, got {kind}"
            with pytest.raises(TypeError, match=text):
                step_of(cuda, op, tuple(arrays))
    arrays = list(one(op))
    arrays[1] = [*arrays[1], np.ones(3)]
    with pytest.raises(ValueError, match=f"^{op}_step: grads: expected 1 arrays, got 2"):
        step_of(cuda, op, tuple(arrays))
    arrays = [[] for _ in arrays]
    with pytest.raises(ValueError, match=f"^{op}_step: params: expected at least one array"):
        step_of(cuda, op, tuple(arrays))
    with pytest.raises(ValueError, match=r"^global_norm: arrays: expected at least one array"):
        cuda.global_norm([])


@pytest.mark.usefixtures("emulated")
@ops
def test_what_only_a_device_refuses(op: str) -> None:
    text = f"{op}_step: non_finite: expected 'skip', got 'raise': no call waits for the device"
    with pytest.raises(ValueError, match=text):
        step_of(cuda, op, one(op), non_finite="raise")
    for wrong, error, text in (
        (np.ones(1), ValueError, r"norm: expected shape \[\], got \[1\]"),
        (np.ones((), "f4"), TypeError, "norm: expected dtype float64, got float32"),
        (1.0, TypeError, "norm: expected an array, got float"),
    ):
        with pytest.raises(error, match=f"{op}_step: {text}"):
            step_of(cuda, op, one(op), norm=wrong)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(
    ("step", "error", "text"),
    [
        (0, ValueError, "expected an integer >= 1, got 0"),
        (1.0, TypeError, "expected an integer, got float"),
        (None, TypeError, "expected an integer, got NoneType"),
        (np.zeros(2, "i8"), ValueError, "expected an array of 1 element, got shape [2]"),
        (np.zeros((), "i4"), TypeError, "expected dtype int64 or float32, got int32"),
        (np.zeros((), "f8"), TypeError, "expected dtype int64 or float32, got float64"),
        ([], ValueError, "expected 1 arrays, got 0"),
        ([np.zeros((), "i8")] * 2, ValueError, "expected 1 arrays, got 2"),
        ([3], TypeError, "step[0]: expected an array, got int"),
    ],
    ids=str,
)
def test_wrong_steps(step: Any, error: type[Exception], text: str) -> None:
    params, grads, first, second = one("adam")
    name = "" if text.startswith("step") else "step: "
    with pytest.raises(error, match=message(f"adam_step: {name}{text}")):
        cuda.adam_step(params, grads, first, second, step=step, lr=0.1)


@pytest.mark.usefixtures("emulated")
def test_written_arrays_may_not_overlap() -> None:
    base, grads = np.zeros(10), [np.ones(5), np.ones(5)]
    with pytest.raises(ValueError, match=r"params\[1\]: .*overlaps params\[0\]"):
        cuda.sgd_step([base[:5], base[4:9]], grads, None, lr=0.1)
    with pytest.raises(ValueError, match=r"\[0\]: expected memory of its own, got an array that"):
        cuda.sgd_step([base[:5]], grads[:1], [base[:5]], lr=0.1, mu=0.5)
    counter = np.zeros((), "i8")
    lists = [[np.zeros(2), np.zeros(2)] for _ in range(4)]
    with pytest.raises(ValueError, match=r"step\[[01]\]: .*overlaps step\[[01]\]"):
        cuda.adam_step(*lists, step=[counter, counter], lr=0.1)
    assert counter == 0
    np.testing.assert_array_equal(base, 0.0)


def test_devices_must_agree(emulated: EmulatedDevice) -> None:
    far, near = np.ones((4, 3)), np.ones((4, 3))
    emulated.module.place_on_device(far.ctypes.data, far.nbytes, 1)
    text = "{}: expected an array on device 0, as {}, got one on device 1"
    with pytest.raises(ValueError, match=message(text.format("mse_loss: target", "prediction"))):
        cuda.mse_loss(near, far)
    with pytest.raises(ValueError, match=message(text.format("sgd_step: params[1]", "params[0]"))):
        cuda.sgd_step([near, far], [near, near], None, lr=0.1)
    with pytest.raises(ValueError, match=message(text.format("sgd_step: grads[0]", "params[0]"))):
        cuda.sgd_step([near], [far], None, lr=0.1)
    with pytest.raises(ValueError, match=message(text.format("linear: w", "x"))):
        cuda.linear(np.ones((2, 3)), far)
    with pytest.raises(ValueError, match=message(text.format("layer_norm: weight", "x"))):
        cuda.layer_norm(np.ones((2, 12)), far.reshape(12), None)
    with pytest.raises(ValueError, match=message(text.format("…: grad_out", "y"))):
        cuda.activation_backward(far, near, "relu")
    emulated.module.place_on_device(far.ctypes.data, 0, 0)


@pytest.mark.parametrize("wrap", [Interface, Exporter])
def test_arrays_of_unknown_libraries(emulated: EmulatedDevice, wrap: Any) -> None:
    """Results of any dtype are DeviceArrays; parameters are updated where they are."""
    x = np.random.default_rng(0).normal(size=(1, 2, 4, 6))
    y, indices = cuda.max_pool2d(wrap(x), 2)
    assert repr(indices) == "<DeviceArray [1, 2, 2, 3], int64, device 0>"
    grad = cuda.max_pool2d_backward(y, indices, x.shape)
    assert as_numpy(grad).sum() == pytest.approx(as_numpy(y).sum())
    targets = np.array([1, 0, 2])
    loss, slope = cuda.softmax_cross_entropy(wrap(x[0, 0, :3]), wrap(targets))
    wanted = reference.softmax_cross_entropy(x[0, 0, :3], targets)
    assert (loss.shape, loss.dtype) == ((), "float64")
    assert_near(as_numpy(loss), wanted[0], "forward", length=9)
    assert_near(as_numpy(slope), wanted[1], "gradient", length=9)
    normal = cuda.layer_norm(wrap(x), None, None)
    assert repr(normal.mean) == "<DeviceArray [1, 2, 4], float64, device 0>"
    np.testing.assert_allclose(as_numpy(normal.mean), x.mean(axis=-1))
    grads = cuda.linear_backward(wrap(x), wrap(x), wrap(np.ones((6, 6))), needs=("w",))
    assert grads.x is None
    np.testing.assert_allclose(as_numpy(grads.w), x.reshape(-1, 6).T @ x.reshape(-1, 6))
    param = np.ones(4)
    norm = cuda.sgd_step([wrap(param)], [wrap(np.array([3.0, 4, 0, 0]))], None, lr=0.5)
    assert as_numpy(norm) == 5.0
    np.testing.assert_array_equal(param, [-0.5, -1, 1, 1])
    del y, indices, grad, loss, slope, normal, grads, norm
    assert emulated.module.live_allocations() == 0


def test_read_only_memory_of_unknown_libraries(emulated: EmulatedDevice) -> None:
    param = np.ones(4)
    frozen = Interface(param, data=(param.ctypes.data, True))
    with pytest.raises(ValueError, match=r"params\[0\]: expected a writable array, got a read-on"):
        cuda.sgd_step([frozen], [np.ones(4)], None, lr=0.5)
    assert as_numpy(cuda.softmax(frozen)).sum() == pytest.approx(1)


def test_results_too_large_are_memory_errors(emulated: EmulatedDevice) -> None:
    with pytest.raises(MemoryError):
        cuda.embedding_backward(np.zeros((2, 2**30)), np.zeros(2, "i8"), 2**40)
    with pytest.raises(MemoryError):
        cuda.avg_pool2d_backward(np.zeros((2**2, 0, 1, 1)), (2**40, 2**40, 2, 2), 2)
    assert emulated.module.live_allocations() == 0
