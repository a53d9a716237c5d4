"""Layer normalization: oracle, PyTorch, differences, bits and the boundary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import reference_norm as reference

from .cases import assert_close, assert_identical
from .norm_cases import VIEWS, check_slopes, compare, dtypes, read_only, scales
from .test_boundary import message

# Leading dimensions and D.
ROWS: tuple[tuple[int, ...], ...] = (
    (1,),
    (1, 1),
    (7,),
    (3, 15),
    (2, 5, 17),
    (33, 64),
    (5, 300),
    (17, 3, 97),
    (2500, 5),
)

row_shapes = pytest.mark.parametrize("shape", ROWS, ids=str)


def row_arrays(shape: tuple[int, ...], dtype: Any, scale: Any = (0.0, 1.0)) -> dict[str, Any]:
    rng = np.random.default_rng([*shape])
    found = {
        "x": scale[0] + scale[1] * rng.normal(size=shape),
        "grad": rng.normal(size=shape),
        "weight": rng.uniform(0.5, 1.5, shape[-1]),
        "bias": rng.normal(size=shape[-1]),
    }
    return {name: array.astype(dtype) for name, array in found.items()}


def run_rows(ops: Any, a: dict[str, Any], **options: Any) -> dict[str, Any]:
    forward = ops.layer_norm(a["x"], a["weight"], a["bias"], **options)
    grads = ops.layer_norm_backward(a["grad"], a["x"], a["weight"], forward.mean, forward.inv_std)
    return {**forward._asdict(), **{f"grad of {n}": g for n, g in grads._asdict().items()}}


@pytest.mark.usefixtures("isa", "threads")
@row_shapes
@dtypes
@scales
def test_layer_norm(shape: tuple[int, ...], dtype: str, scale: Any) -> None:
    a, eps = row_arrays(shape, dtype, scale), 1e-6
    actual, expected = (run_rows(ops, a, eps=eps) for ops in (tbptt_fast, reference))
    rows = a["x"].size // shape[-1]
    lengths = {"sum": shape[-1], "grad of x": shape[-1], "grad of w": rows, "grad of b": rows}
    compare(actual, expected, a, lengths)


@pytest.mark.usefixtures("isa")
def test_a_large_mean_costs_no_accuracy() -> None:
    """Deviation 1e-3 at 4096 in float32, where x² has no digit left for it: values are 0 or 1 ulp.

    The exact answer is ±1 for as many values above the mean as below.
    """
    step = np.float32(2.0**-11)
    x = np.full((5, 12, 10, 64), 4096, np.float32)
    x[..., ::2] += step
    deviation = float(step) / 2
    y, mean, inv_std = tbptt_fast.layer_norm(x, None, None, eps=0.0)
    np.testing.assert_array_equal(mean, 4096 + deviation)
    np.testing.assert_array_equal(inv_std, 1 / deviation)
    np.testing.assert_array_equal(y, np.where(x > 4096, 1, -1))


@dtypes
def test_layer_norm_equals_torch(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    for shape in ((7,), (2, 5, 17), (33, 64)):
        a = row_arrays(shape, dtype)
        x, weight, bias = (torch.tensor(a[n], requires_grad=True) for n in ("x", "weight", "bias"))
        y = torch.nn.functional.layer_norm(x, shape[-1:], weight, bias, 1e-4)
        y.backward(torch.tensor(a["grad"]))
        expected = {"y": y.detach(), "grad of x": x.grad}
        expected |= {"grad of w": weight.grad, "grad of b": bias.grad}
        actual = run_rows(tbptt_fast, a, eps=1e-4)
        for name, tensor in expected.items():
            kind = "gradient" if "grad" in name else "forward"
            assert_close(actual[name], tensor.numpy(), kind, length=x.numel(), name=name)


@pytest.mark.usefixtures("isa")
def test_layer_norm_slopes() -> None:
    a = row_arrays((2, 3, 5), "float64")
    found = run_rows(tbptt_fast, a)

    def loss() -> float:
        y = tbptt_fast.layer_norm(a["x"], a["weight"], a["bias"]).y
        return float((y * a["grad"]).sum())

    names = (("x", "x"), ("weight", "w"), ("bias", "b"))
    check_slopes(loss, [(a[name], found[f"grad of {short}"]) for name, short in names])


@pytest.mark.usefixtures("isa")
@dtypes
def test_the_same_bits_for_every_number_of_threads(dtype: str) -> None:
    def everything() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for rows in ((3000, 33), (40, 2000)):
            results = run_rows(tbptt_fast, row_arrays(rows, dtype))
            found |= {f"{rows} {name}": value for name, value in results.items()}
        return found

    results = []
    for n in (1, 2, 3, 8, 1, 2, 3, 8):
        with tbptt_fast.num_threads(n):
            results.append(everything())
    for result in results[1:]:
        assert_identical(result, results[0])


@dtypes
def test_layout_of_memory_does_not_matter_and_inputs_stay(dtype: str) -> None:
    a = row_arrays((3, 5, 7), dtype)
    expected = run_rows(tbptt_fast, a)
    for view in VIEWS:
        other = read_only(a, view)
        assert_identical(run_rows(tbptt_fast, other), expected)
        for name, array in other.items():
            np.testing.assert_array_equal(array, a[name])


@dtypes
def test_missing_weights_are_ones_and_zeros(dtype: str) -> None:
    a = row_arrays((3, 5, 7), dtype)
    plain = {**a, "weight": None, "bias": None}
    ones = {**a, "weight": np.ones(7, dtype), "bias": np.zeros(7, dtype)}
    assert_identical(run_rows(tbptt_fast, plain), run_rows(tbptt_fast, ones))


def test_only_what_is_needed() -> None:
    a = row_arrays((3, 5, 7), "float32")
    choices: list[Any] = [(), ("x",), ("w",), ("b",), ("b", "x"), ("x", "w", "b")]
    _, mean, inv_std = tbptt_fast.layer_norm(a["x"], a["weight"], None)
    everything = run_rows(tbptt_fast, a)
    for needs in choices:
        grads = tbptt_fast.layer_norm_backward(
            a["grad"], a["x"], a["weight"], mean, inv_std, needs=needs
        )
        for name, value in grads._asdict().items():
            assert (value is None) == (name not in needs)
            if value is not None:
                np.testing.assert_array_equal(value, everything[f"grad of {name}"])


def test_nothing() -> None:
    """No rows are no error; rows without values are."""
    ones, zeros = np.ones(3), np.zeros(3)
    y, mean, inv_std = tbptt_fast.layer_norm(np.ones((2, 0, 3)), ones, zeros)
    assert (y.shape, mean.shape, inv_std.shape) == ((2, 0, 3), (2, 0), (2, 0))
    of_rows = tbptt_fast.layer_norm_backward(y, y, ones, mean, inv_std)
    np.testing.assert_array_equal(of_rows.w, zeros)
    np.testing.assert_array_equal(of_rows.b, zeros)
    with pytest.raises(
        ValueError, match=message("layer_norm: x: expected at least 1 value in a row, got")
    ):
        tbptt_fast.layer_norm(np.ones((2, 0)), None, None)


@pytest.mark.usefixtures("isa")
@dtypes
def test_not_finite_stays_in_its_row(dtype: str) -> None:
    rows = np.ones((3, 17), dtype)
    rows[1, 16] = np.inf
    y = tbptt_fast.layer_norm(rows, None, None).y
    assert np.isnan(y).all(axis=1).tolist() == [False, True, False]
    assert np.isnan(y).any(axis=1).tolist() == [False, True, False]


X, D, M = np.ones((4, 3), np.float32), np.ones(3, np.float32), np.ones(4)
S = np.ones(3)

# The operation, its arguments, and the error with … for anything.
WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    ("layer_norm", (np.float32(1), D, D), {}, TypeError, "x: expected an array, got float32"),
    ("layer_norm", (np.ones(()), D, D), {}, ValueError, "x: expected at least 1 dimension, got"),
    ("layer_norm", (X, D[1:], D), {}, ValueError, "weight: expected shape [3], got [2]"),
    ("layer_norm", (X, D, S), {}, TypeError, "bias: expected dtype float32, got float64"),
    ("layer_norm", (X, D, D), {"eps": np.nan}, ValueError, "eps: …>= 0, got nan"),
    ("layer_norm_backward", (D, X, D, M, M), {}, ValueError, "grad_out: expected shape [4, 3]"),
    ("layer_norm_backward", (X, X, D, S, M), {}, ValueError, "mean: expected shape [4], got"),
    ("layer_norm_backward", (X, X, D, M, M > 0), {}, TypeError, "inv_std: expected dtype"),
    ("layer_norm_backward", (X, X, D, M, M), {"needs": "xy"}, ValueError, "needs: …got 'y'"),
]


@pytest.mark.parametrize(
    ("op", "args", "options", "error", "text"), WRONG, ids=[f"{w[0]}-{w[4]}" for w in WRONG]
)
def test_wrong_arguments(
    op: str, args: tuple[Any, ...], options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=message(f"{op}: {text}")):
        getattr(tbptt_fast, op)(*args, **options)
