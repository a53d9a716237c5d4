"""Batch normalization: oracle, PyTorch, differences, bits and the boundary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import reference_norm as reference

from .cases import assert_close, assert_identical
from .norm_cases import VIEWS, check_slopes, compare, dtypes, read_only, scales
from .test_boundary import message

trains = pytest.mark.parametrize("training", [True, False], ids=["training", "running"])

# N, C, H, W, or N, C: sizes around the lanes and primes, several blocks of rows (128) and of
# elements (8192) with ends inside an image, more channels than a group (64), few with even rows.
BATCHES: tuple[tuple[int, ...], ...] = (
    (2, 1),
    (5, 3),
    (16, 16),
    (129, 33),
    (300, 1),
    (257, 97),
    (4096, 2),
    (1208, 5),
    (1, 1, 1, 2),
    (2, 3, 1, 1),
    (3, 7, 5, 3),
    (2, 17, 7, 7),
    (4, 2, 31, 33),
    (3, 3, 97, 101),
    (40, 2, 17, 13),
    (6, 3, 20, 6),
)

batches = pytest.mark.parametrize("shape", BATCHES, ids=str)
layouts = pytest.mark.parametrize("layout", ["NCHW", "NHWC"])


def channels_last(x: Any) -> Any:
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def batch_arrays(shape: tuple[int, ...], dtype: Any, scale: Any = (0.0, 1.0)) -> dict[str, Any]:
    """Everything by name; x and grad in NCHW, the running values near those of x."""
    rng, channels = np.random.default_rng([*shape]), shape[1]
    mean, deviation = scale
    found = {
        "x": mean + deviation * rng.normal(size=shape),
        "grad": rng.normal(size=shape),
        "weight": rng.uniform(0.5, 1.5, channels),
        "bias": rng.normal(size=channels),
        "running_mean": mean + deviation * rng.normal(size=channels),
        "running_var": deviation**2 * rng.uniform(0.5, 1.5, channels),
    }
    return {name: array.astype(dtype) for name, array in found.items()}


def run_batch(
    ops: Any, a: dict[str, Any], training: bool, layout: str = "NCHW", **options: Any
) -> dict[str, Any]:
    """Forward and backward; all results by name, those like x in NCHW."""
    move: Callable[[Any], Any] = channels_last if layout == "NHWC" else np.asarray
    given = a["weight"], a["bias"], a["running_mean"], a["running_var"]
    forward = ops.batch_norm(move(a["x"]), *given, training=training, layout=layout, **options)
    grads = ops.batch_norm_backward(
        move(a["grad"]),
        move(a["x"]),
        a["weight"],
        forward.mean,
        forward.inv_std,
        training=training,
        layout=layout,
    )
    found = {**forward._asdict(), **{f"grad of {n}": g for n, g in grads._asdict().items()}}
    for name in ("y", "grad of x"):
        assert found[name].flags.c_contiguous or ops is reference
        if layout == "NHWC":
            found[name] = np.moveaxis(found[name], -1, 1)
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.usefixtures("isa", "threads")
@batches
@dtypes
@scales
@trains
@layouts
def test_batch_norm(
    shape: tuple[int, ...], dtype: str, scale: Any, training: bool, layout: str
) -> None:
    a = batch_arrays(shape, dtype, scale)
    actual = run_batch(tbptt_fast, a, training, layout, momentum=0.3, eps=1e-6)
    expected = run_batch(reference, a, training, layout, momentum=0.3, eps=1e-6)
    count = a["x"].size // shape[1]
    names = ("sum", "grad of x", "grad of w", "grad of b")
    compare(actual, expected, a, dict.fromkeys(names, count))


@pytest.mark.usefixtures("isa")
def test_a_large_mean_costs_no_accuracy() -> None:
    """Deviation 1e-3 at 4096 in float32, where x² has no digit left for it: values are 0 or 1 ulp.

    The exact answer is ±1 for as many values above the mean as below.
    """
    step = np.float32(2.0**-11)
    x = np.full((64, 5, 12, 10), 4096, np.float32)
    x[::2] += step
    deviation = float(step) / 2
    result = tbptt_fast.batch_norm(x, None, None, None, None, training=True, eps=0.0)
    np.testing.assert_array_equal(result.mean, 4096 + deviation)
    np.testing.assert_array_equal(result.inv_std, 1 / deviation)
    np.testing.assert_array_equal(result.y, np.where(x > 4096, 1, -1))


@dtypes
@trains
def test_batch_norm_equals_torch(dtype: str, training: bool) -> None:
    torch = pytest.importorskip("torch")
    for shape in ((129, 33), (3, 7, 5, 3), (4, 2, 31, 33)):
        a = batch_arrays(shape, dtype)
        x, weight, bias = (torch.tensor(a[n], requires_grad=True) for n in ("x", "weight", "bias"))
        mean, var = (torch.tensor(a[n]) for n in ("running_mean", "running_var"))
        y = torch.nn.functional.batch_norm(x, mean, var, weight, bias, training, 0.3, 1e-4)
        y.backward(torch.tensor(a["grad"]))
        expected = {"y": y.detach(), "grad of x": x.grad}
        expected |= {"grad of w": weight.grad, "grad of b": bias.grad}
        if training:
            expected |= {"running_mean": mean, "running_var": var}
        actual = run_batch(tbptt_fast, a, training, momentum=0.3, eps=1e-4)
        for name, tensor in expected.items():
            kind = "gradient" if "grad" in name else "forward"
            length = x.numel() // shape[1]  # theirs are sums of this dtype
            assert_close(actual[name], tensor.numpy(), kind, length=length, name=name)


@pytest.mark.usefixtures("isa")
@trains
@layouts
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 3, 2)], ids=str)
def test_batch_norm_slopes(training: bool, layout: Any, shape: tuple[int, ...]) -> None:
    a = batch_arrays(shape, "float64")
    x, grad = (channels_last(a[n]) if layout == "NHWC" else a[n] for n in ("x", "grad"))

    def forward() -> Any:
        running = a["running_mean"], a["running_var"]
        return tbptt_fast.batch_norm(
            x, a["weight"], a["bias"], *running, training=training, layout=layout
        )

    _, mean, inv_std, *_ = forward()
    grads = tbptt_fast.batch_norm_backward(
        grad, x, a["weight"], mean, inv_std, training=training, layout=layout
    )
    pairs = [(x, grads.x), (a["weight"], grads.w), (a["bias"], grads.b)]
    check_slopes(lambda: float((forward().y * grad).sum()), pairs)


@pytest.mark.usefixtures("isa")
@dtypes
def test_the_same_bits_for_every_number_of_threads(dtype: str) -> None:
    def everything() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for shape in ((700, 130), (1500, 1), (9, 5, 61, 67), (33, 70, 9, 9), (32, 8, 16, 16)):
            a = batch_arrays(shape, dtype)
            for layout in ("NCHW", "NHWC"):
                for training in (True, False):
                    results = run_batch(tbptt_fast, a, training, layout)
                    found |= {
                        f"{shape} {layout} {training} {name}": np.ascontiguousarray(value)
                        for name, value in results.items()
                    }
        return found

    results = []
    for n in (1, 2, 3, 8, 1, 2, 3, 8):
        with tbptt_fast.num_threads(n):
            results.append(everything())
    for result in results[1:]:
        assert_identical(result, results[0])


@dtypes
@trains
def test_layout_of_memory_does_not_matter_and_inputs_stay(dtype: str, training: bool) -> None:
    a = batch_arrays((3, 5, 4, 7), dtype)
    expected = run_batch(tbptt_fast, a, training)
    for view in VIEWS:
        other = read_only(a, view)
        assert_identical(run_batch(tbptt_fast, other, training), expected)
        for name, array in other.items():
            np.testing.assert_array_equal(array, a[name])


@dtypes
@trains
def test_missing_weights_are_ones_and_zeros(dtype: str, training: bool) -> None:
    a = batch_arrays((3, 5, 4, 7), dtype)
    plain = {**a, "weight": None, "bias": None}
    ones = {**a, "weight": np.ones(5, dtype), "bias": np.zeros(5, dtype)}
    assert_identical(run_batch(tbptt_fast, plain, training), run_batch(tbptt_fast, ones, training))


def test_without_running_values_there_are_no_new_ones() -> None:
    a = batch_arrays((4, 3), "float64")
    result = tbptt_fast.batch_norm(a["x"], a["weight"], a["bias"], None, None, training=True)
    assert result.running_mean is None
    assert result.running_var is None
    np.testing.assert_array_equal(result.y, run_batch(tbptt_fast, a, True)["y"])


@trains
def test_only_what_is_needed(training: bool) -> None:
    a = batch_arrays((3, 5, 4, 7), "float32")
    choices: list[Any] = [(), ("x",), ("w",), ("b",), ("b", "x"), ("x", "w", "b")]
    running = a["running_mean"], a["running_var"]
    forward = tbptt_fast.batch_norm(a["x"], a["weight"], None, *running, training=training)
    everything = run_batch(tbptt_fast, a, training)
    for needs in choices:
        grads = tbptt_fast.batch_norm_backward(
            a["grad"],
            a["x"],
            a["weight"],
            forward.mean,
            forward.inv_std,
            training=training,
            needs=needs,
        )
        for name, value in grads._asdict().items():
            assert (value is None) == (name not in needs)
            if value is not None:
                np.testing.assert_array_equal(value, everything[f"grad of {name}"])


def test_nothing() -> None:
    """An empty batch: an error in training, and else empty; no channels are no error."""
    ones, zeros = np.ones(3), np.zeros(3)
    text = "batch_norm: x: expected at least 2 values per channel when training, got shape "
    for shape in ((0, 3), (1, 3), (0, 3, 4, 4), (1, 3, 1, 1), (2, 3, 0, 5)):
        x = np.ones(shape)
        with pytest.raises(ValueError, match=message(f"{text}{list(shape)}")):
            tbptt_fast.batch_norm(x, ones, zeros, zeros, ones, training=True)
        result = tbptt_fast.batch_norm(x, ones, zeros, zeros, ones, training=False, eps=0)
        np.testing.assert_array_equal(result.y, x)
        grads = tbptt_fast.batch_norm_backward(
            x, x, ones, result.mean, result.inv_std, training=False
        )
        np.testing.assert_array_equal(grads.x, x)
        np.testing.assert_array_equal(grads.w, np.full(3, x.size / 3))
        np.testing.assert_array_equal(grads.b, np.full(3, x.size / 3))
    none = np.zeros(0)
    for shape in ((4, 0), (4, 0, 3, 3)):
        result = tbptt_fast.batch_norm(np.ones(shape), none, none, none, none, training=True)
        assert result.y.shape == shape
        grads = tbptt_fast.batch_norm_backward(result.y, result.y, none, none, none, training=True)
        assert grads.x is not None
        assert grads.x.shape == shape


@pytest.mark.usefixtures("isa")
@dtypes
def test_nan_stays_in_its_channel(dtype: str) -> None:
    a = batch_arrays((3, 5, 4, 7), dtype)
    a["x"][1, 2, 3, 4] = np.nan
    for layout in ("NCHW", "NHWC"):
        y = run_batch(tbptt_fast, a, True, layout)["y"]
        assert np.isnan(y).all(axis=(0, 2, 3)).tolist() == [False, False, True, False, False]
        assert np.isnan(y).any(axis=(0, 2, 3)).tolist() == [False, False, True, False, False]
        assert np.isnan(run_batch(tbptt_fast, a, False, layout)["y"]).sum() == 1


X, C, S = np.ones((2, 3, 4, 5), np.float32), np.ones(3, np.float32), np.ones(3)
ON: dict[str, Any] = {"training": True}

# The operation, its arguments, and the error with … for anything.
WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    (
        "batch_norm",
        (X[0], C, C, C, C),
        ON,
        ValueError,
        "x: expected 2 or 4 dimensions, got shape [",
    ),
    ("batch_norm", (X.astype(int), C, C, C, C), ON, TypeError, "x: expected dtype …got int64"),
    ("batch_norm", (X.tolist(), C, C, C, C), ON, TypeError, "x: expected an array, got list"),
    ("batch_norm", (X, C[1:], C, C, C), ON, ValueError, "weight: expected shape [3], got [2]"),
    ("batch_norm", (X, C, S, C, C), ON, TypeError, "bias: expected dtype float32, got float64"),
    ("batch_norm", (X, C, C, X, C), ON, ValueError, "running_mean: expected shape [3], got [2,"),
    ("batch_norm", (X, C, C, C, S), ON, TypeError, "running_var: expected dtype float32"),
    ("batch_norm", (X, C, C, C, None), ON, TypeError, "running_var: expected both…got None"),
    ("batch_norm", (X, C, C, None, C), ON, TypeError, "running_mean: expected both…got None"),
    (
        "batch_norm",
        (X, C, C, None, None),
        {"training": False},
        TypeError,
        "running_mean: expected an array…got None",
    ),
    ("batch_norm", (X, C, C, C, C), {"training": 1}, TypeError, "training: expected True or False"),
    ("batch_norm", (X, C, C, C, C), {**ON, "momentum": 1.5}, ValueError, "momentum: …[0, 1], got"),
    ("batch_norm", (X, C, C, C, C), {**ON, "momentum": None}, TypeError, "momentum: expected"),
    ("batch_norm", (X, C, C, C, C), {**ON, "eps": -1.0}, ValueError, "eps: …>= 0, got -1.0"),
    ("batch_norm", (X, C, C, C, C), {**ON, "layout": "CHWN"}, ValueError, "layout: …got 'CHWN'"),
    ("batch_norm", (X, C, C, C, C), {**ON, "layout": 0}, TypeError, "layout: …got int"),
    (
        "batch_norm",
        (X, C, C, C, C),
        {**ON, "layout": "NHWC"},
        ValueError,
        "weight: expected shape [5], got [3]",
    ),
    ("batch_norm_backward", (X[1:], X, C, S, S), ON, ValueError, "grad_out: expected shape [2, 3,"),
    ("batch_norm_backward", (X, X, C, C, S), ON, TypeError, "mean: expected dtype float64, got"),
    ("batch_norm_backward", (X, X, C, S, S[1:]), ON, ValueError, "inv_std: expected shape [3]"),
    (
        "batch_norm_backward",
        (X, X, C, S, S),
        {**ON, "needs": ("y",)},
        ValueError,
        "needs: expected 'x', 'w' or 'b', got 'y'",
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
