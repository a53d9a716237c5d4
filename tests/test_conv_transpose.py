"""Transposed convolution: the adjoint of convolution, against the oracle and PyTorch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import reference_convolution as reference

from .cases import DTYPES, assert_close, assert_identical
from .test_convolution import CASES, Case, moved

TWO = [case for case in CASES if len(case.size) == 2]

cases = pytest.mark.parametrize("case", TWO, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
layouts = pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])


def arrays_of(case: Case, dtype: str) -> list[Any]:
    """x is like the convolution's output, the gradient like its input; then w and b."""
    image, w, _, x = case.arrays(dtype)
    b = np.random.default_rng(1).normal(size=image.shape[1]).astype(dtype)
    return [x, w, b, image]


def options_of(case: Case, arrays: list[Any], last: bool) -> dict[str, Any]:
    """The output padding is what the convolution's floor lost."""
    x, w, _, image = arrays
    lost = []
    for axis, (before, behind) in enumerate(case.padding):
        reach = case.dilation[axis] * (w.shape[axis + 2] - 1)
        size = (x.shape[axis + 2] - 1) * case.stride[axis] + reach + 1 - before - behind
        lost.append(image.shape[axis + 2] - size)
    return {**case.options, "output_padding": lost, "layout": "NHWC" if last else "NCHW"}


def run(case: Case, arrays: list[Any], last: bool, activation: Any = None) -> dict[str, Any]:
    x, w, b, grad = arrays
    options = {**options_of(case, arrays, last), "activation": activation, "algo": "direct"}
    y = tbptt_fast.conv_transpose2d(moved(x, last), w, b, **options)
    grads = tbptt_fast.conv_transpose2d_backward(
        moved(grad, last), moved(x, last), w, y=y, **options
    )
    return {"y": y, "x": grads.x, "w": grads.w, "b": grads.b}


def expected_of(case: Case, arrays: list[Any], last: bool, activation: Any) -> dict[str, Any]:
    """By the definition: the adjoint of `reference.conv`."""
    x, w, b, grad = arrays
    y = reference.conv_backward(x, np.zeros_like(grad), w, **case.options)[0]
    y += b.astype("f8").reshape(1, -1, 1, 1)
    before = grad.astype("f8")
    if activation == "tanh":
        y = np.tanh(y)
        before = before * (1 - y**2)
    grad_w = reference.conv_backward(x, before, w, **case.options)[1]
    grad_x = reference.conv(before, w, **case.options)
    return {
        "y": moved(y, last),
        "x": moved(grad_x, last),
        "w": grad_w,
        "b": before.sum((0, 2, 3)),
    }


@pytest.mark.usefixtures("isa", "threads")
@cases
@dtypes
@layouts
@pytest.mark.parametrize("activation", [None, "tanh"])
def test_conv_transpose(case: Case, dtype: str, last: bool, activation: Any) -> None:
    arrays = arrays_of(case, dtype)
    expected = expected_of(case, arrays, last, activation)
    for name, value in run(case, arrays, last, activation).items():
        kind = "forward" if name == "y" else "gradient"
        assert value.dtype == dtype
        assert_close(value, expected[name], kind, length=case.length, name=name)


@cases
@layouts
def test_equals_torch(case: Case, last: bool) -> None:
    torch = pytest.importorskip("torch")
    if any(before != behind for before, behind in case.padding):
        case = replace(case, padding=tuple((p[0], p[0]) for p in case.padding))
    arrays = arrays_of(case, "float64")
    options = options_of(case, arrays, last)
    x, w, b = (torch.tensor(a, requires_grad=True) for a in arrays[:3])
    y = torch.nn.functional.conv_transpose2d(
        x,
        w,
        b,
        stride=case.stride,
        padding=tuple(p[0] for p in case.padding),
        output_padding=tuple(options["output_padding"]),
        groups=case.groups,
        dilation=case.dilation,
    )
    y.backward(torch.tensor(arrays[3]))
    found = run(case, arrays, last)
    expected = {"y": y.detach(), "x": x.grad, "w": w.grad, "b": b.grad}
    for name, tensor in expected.items():
        theirs = moved(tensor.numpy(), last) if name in "yx" else tensor.numpy()
        assert_close(found[name], theirs, "gradient", length=case.length, name=name)


@layouts
def test_bits_do_not_depend_on_threads(last: bool) -> None:
    for case in TWO[::3]:
        arrays = arrays_of(case, "float32")
        with tbptt_fast.num_threads(1):
            alone = run(case, arrays, last, "tanh")
        with tbptt_fast.num_threads(3):
            assert_identical(run(case, arrays, last, "tanh"), alone)


X, W = np.ones((2, 4, 5, 6), np.float32), np.ones((4, 3, 3, 3), np.float32)
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"w": W[1:]}, ValueError, "w: expected 4 input channels"),
    ({"groups": 3}, ValueError, "groups: expected a divisor"),
    ({"output_padding": 1}, ValueError, "output_padding: expected less than"),
    ({"padding": 4}, ValueError, "padding: expected an output of at least one pixel"),
    ({"padding": "same"}, ValueError, "padding: expected integers"),
    ({"padding": 2**40}, ValueError, "padding: expected sizes"),
    ({"b": W[0, 0, 0, :2]}, ValueError, r"b: expected shape \[3\], got \[2\]"),
    ({"stride": 0}, ValueError, "stride: expected an integer >= 1"),
]


@pytest.mark.parametrize(("change", "error", "text"), WRONG, ids=str)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], text: str) -> None:
    arguments: dict[str, Any] = {"x": X, "w": W, **change}
    with pytest.raises(error, match=f"conv_transpose2d: {text}"):
        tbptt_fast.conv_transpose2d(**arguments)
