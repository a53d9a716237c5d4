"""Convolutions against the oracle and PyTorch: sizes, strides, padding, groups, layouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tbptt_fast
from tbptt_fast import reference_convolution as reference

from .cases import DTYPES, assert_close, assert_identical

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One convolution; sizes, kernel and options run over its dimensions, one or two."""

    batch: int
    inputs: int  # per group
    outputs: int  # per group
    size: Ints
    kernel: Ints
    stride: Ints = (1, 1)
    padding: tuple[Ints, ...] = ((0, 0), (0, 0))
    dilation: Ints = (1, 1)
    groups: int = 1

    @property
    def options(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    @property
    def length(self) -> int:
        """Of the longest sum."""
        pixels = self.batch * int(np.prod(self.size))
        return max(pixels, max(self.inputs, self.outputs) * int(np.prod(self.kernel)))

    @property
    def output_size(self) -> Ints:
        options = zip(
            *(self.size, self.padding, self.kernel, self.dilation, self.stride), strict=True
        )
        return tuple((n + sum(p) - d * (k - 1) - 1) // s + 1 for n, p, k, d, s in options)

    @property
    def work(self) -> int:
        """Multiply-adds of the forward pass."""
        weights = self.groups * self.inputs * self.outputs * int(np.prod(self.kernel))
        return self.batch * int(np.prod(self.output_size)) * weights

    def arrays(self, dtype: str, integers: bool = False) -> list[Any]:
        """x, w, b and the gradient by the output, channels first."""
        rng = np.random.default_rng(self.length)
        shapes = [
            (self.batch, self.inputs * self.groups, *self.size),
            (self.outputs * self.groups, self.inputs, *self.kernel),
            (self.outputs * self.groups,),
        ]
        made = [draw(rng, shape, integers) for shape in shapes]
        if not integers:
            made[1] *= (self.inputs * np.prod(self.kernel)) ** -0.5
        made.append(draw(rng, (*made[0].shape[:1], *made[2].shape, *self.output_size), integers))
        return [a.astype(dtype) for a in made]


def draw(rng: Any, shape: Ints, integers: bool) -> Any:
    return rng.integers(-3, 4, shape).astype(float) if integers else rng.normal(size=shape)


def same(n: int) -> tuple[int, int]:
    return (n, n)


ONE_SIDED = ((2, 0), (0, 3))
CASES: tuple[Case, ...] = (
    Case(1, 1, 1, (1, 1), (1, 1)),
    Case(2, 3, 5, (7, 7), (1, 1)),
    Case(1, 2, 17, (15, 16), (3, 3), padding=(same(1), same(1))),
    Case(5, 16, 16, (7, 7), (3, 3), padding=(same(1), same(1))),
    Case(2, 17, 33, (16, 17), (3, 3), stride=(2, 2), padding=(same(1), same(1))),
    Case(1, 3, 8, (33, 31), (7, 7), stride=(2, 2), padding=(same(3), same(3))),
    Case(2, 4, 3, (17, 15), (2, 5), stride=(3, 2), padding=ONE_SIDED),
    Case(1, 19, 6, (16, 16), (3, 2), dilation=(2, 3), padding=(same(2), same(1))),
    Case(2, 5, 7, (8, 9), (4, 6), stride=(2, 3), padding=(same(2), same(5)), dilation=(2, 1)),
    Case(2, 16, 32, (9, 9), (1, 1), stride=(3, 3)),
    Case(3, 4, 6, (7, 8), (3, 3), padding=(same(1), same(0)), groups=3),
    Case(2, 16, 2, (7, 8), (3, 3), stride=(2, 1), padding=(same(1), same(1)), groups=2),
    Case(2, 1, 1, (15, 17), (3, 3), padding=(same(1), same(1)), groups=33),
    Case(2, 1, 1, (16, 31), (5, 3), stride=(2, 2), padding=ONE_SIDED, groups=16),
    Case(1, 1, 1, (9, 8), (3, 3), dilation=(2, 2), padding=(same(2), same(2)), groups=7),
    Case(2, 1, 3, (7, 7), (3, 3), padding=(same(1), same(1)), groups=5),
    Case(1, 40, 35, (20, 20), (3, 3), padding=(same(1), same(1))),
    Case(1, 2, 3, (300, 3), (3, 3), padding=(same(1), same(1))),
    Case(1, 1, 1, (3, 300), (3, 3), padding=(same(1), same(1)), groups=2),
    Case(1, 3, 4, (5,), (5,), (1,), (same(0),), (1,)),
    Case(2, 5, 6, (31,), (3,), (2,), ((4, 1),), (3,)),
    Case(3, 16, 17, (33,), (7,), (1,), (same(3),), (1,)),
    Case(2, 1, 1, (16,), (3,), (1,), ((4, 0),), (2,), groups=17),
)

# Few input channels: one to fifteen have kernels of their own, which cut wide and high images.
SHALLOW = (
    Case(3, 1, 33, (28, 28), (3, 3), padding=(same(1), same(1))),
    Case(2, 1, 32, (17, 16), (5, 2), stride=(1, 3), padding=ONE_SIDED),
    Case(1, 2, 16, (15, 31), (6, 7), stride=(3, 1), padding=(same(2), same(3)), dilation=(1, 2)),
    Case(2, 3, 64, (32, 32), (3, 3), padding=(same(1), same(1))),
    Case(1, 3, 17, (33, 31), (1, 1), stride=(3, 3)),
    Case(1, 3, 20, (70, 40), (3, 3), stride=(2, 2), padding=(same(1), same(1))),
    Case(1, 3, 5, (40, 41), (2, 2), stride=(9, 9)),
    Case(2, 4, 31, (16, 33), (4, 4), stride=(2, 2), padding=(same(1), same(1))),
    Case(1, 5, 48, (9, 700), (3, 5), stride=(1, 2), padding=ONE_SIDED, dilation=(1, 2)),
    Case(9, 15, 15, (7, 15), (3, 3), stride=(1, 2), padding=(same(0), same(1))),
    Case(1, 1, 4, (1500,), (5,), (1,), (same(2),), (1,)),
    Case(2, 4, 35, (2100,), (3,), (2,), ((2, 0),), (1,)),
    Case(1, 13, 3, (33,), (7,), (3,), (same(9),), (3,)),
    Case(1, 15, 501, (5, 6), (3, 3)),  # too many weights to keep their sums side by side
)
# Channels that meet themselves alone: sizes around registers, images smaller than the kernel.
DEPTHWISE = (
    Case(2, 1, 1, (7, 7), (3, 3), padding=(same(1), same(1)), groups=64),
    Case(1, 1, 1, (2, 1), (3, 3), padding=(same(1), same(1)), groups=3),
    Case(5, 1, 1, (14, 15), (3, 3), padding=(same(1), same(1)), groups=15),
    Case(3, 1, 1, (32, 33), (3, 3), stride=(2, 2), padding=(same(1), same(1)), groups=17),
    Case(2, 1, 1, (31, 17), (5, 5), padding=(same(2), same(2)), groups=32),
    Case(2, 1, 1, (17, 32), (7, 7), stride=(3, 2), padding=(same(3), same(3)), groups=5),
    Case(1, 1, 1, (33, 16), (4, 6), stride=(1, 3), padding=ONE_SIDED, groups=33),
    Case(2, 1, 1, (16, 17), (3, 3), padding=(same(2), same(2)), dilation=(2, 2), groups=16),
    Case(2, 1, 2, (15, 16), (3, 3), stride=(2, 2), padding=(same(1), same(1)), groups=16),
    Case(1, 1, 3, (9, 31), (5, 3), padding=(same(2), same(1)), groups=7),
    Case(2, 1, 1, (3, 90), (1, 1), groups=65),
    Case(1, 1, 1, (700,), (7,), (2,), ((6, 0),), (1,), groups=20),
    Case(2, 1, 2, (33,), (3,), (1,), ((4, 0),), (2,), groups=9),
)
CASES += SHALLOW + DEPTHWISE

cases = pytest.mark.parametrize("case", CASES, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
layouts = pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
native = pytest.mark.usefixtures("isa", "threads")


def layout_of(case: Case, last: bool) -> str:
    return ("NLC" if last else "NCL") if len(case.size) == 1 else ("NHWC" if last else "NCHW")


def moved(array: Any, last: bool) -> Any:
    """A view with the channels at the end."""
    return np.moveaxis(array, 1, -1) if last else array


def run(
    case: Case, arrays: list[Any], last: bool, activation: Any = None, **more: Any
) -> dict[str, Any]:
    """The output and all gradients, in the layout of the call.

    The direct way, if nothing else is asked for: test_winograd.py has the other's bounds.
    """
    x, w, b, grad = arrays
    name = f"conv{len(case.size)}d"
    options = {**case.options, "activation": activation, "layout": layout_of(case, last)}
    options |= ({"algo": "direct"} if len(case.size) == 2 else {}) | more
    y = getattr(tbptt_fast, name)(moved(x, last), w, b, **options)
    backward = getattr(tbptt_fast, f"{name}_backward")
    grads = backward(moved(grad, last), moved(x, last), w, y=y, **options)
    return {"y": y, "x": grads.x, "w": grads.w, "b": grads.b}


def expected_of(case: Case, arrays: list[Any], last: bool, activation: Any) -> dict[str, Any]:
    x, w, b, grad = arrays
    y = reference.conv(x, w, b, **case.options, activation=activation)
    found = reference.conv_backward(grad, x, w, y=y, **case.options, activation=activation)
    return {"y": moved(y, last), "x": moved(found[0], last), "w": found[1], "b": found[2]}


def expected_of_torch(
    case: Case, arrays: list[Any], last: bool, activation: None
) -> dict[str, Any]:
    """As `expected_of`, by PyTorch in float64."""
    import torch

    x, w, b = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in arrays[:3])
    sides = [n for pair in reversed(case.padding) for n in pair]
    function = getattr(torch.nn.functional, f"conv{len(case.size)}d")
    y = function(
        torch.nn.functional.pad(x, sides),
        w,
        b,
        stride=case.stride,
        dilation=case.dilation,
        groups=case.groups,
    )
    y.backward(torch.tensor(arrays[3], dtype=torch.float64))
    tensors = {"y": y.detach(), "x": x.grad, "w": w.grad, "b": b.grad}
    return {
        name: moved(t.numpy(), last) if name in "yx" else t.numpy() for name, t in tensors.items()
    }


def compare(case: Case, actual: dict[str, Any], expected: dict[str, Any], dtype: str) -> None:
    for name, value in actual.items():
        kind = "forward" if name == "y" else "gradient"
        assert value.dtype == dtype
        assert value.flags.c_contiguous
        assert_close(value, expected[name], kind, length=case.length, name=name)


@native
@cases
@dtypes
@layouts
def test_convolution(case: Case, dtype: str, last: bool) -> None:
    arrays = case.arrays(dtype)
    compare(case, run(case, arrays, last), expected_of(case, arrays, last, None), dtype)


@native
@dtypes
@layouts
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("case", [CASES[4], CASES[13], CASES[20]], ids=str)
def test_activation(case: Case, dtype: str, last: bool, activation: str) -> None:
    arrays = case.arrays(dtype)
    if activation == "relu":  # near its kink rounding decides
        pre = reference.conv(*arrays[:3], **case.options)
        arrays[3][np.abs(pre) < 1e-4] = 0
    expected = expected_of(case, arrays, last, activation)
    compare(case, run(case, arrays, last, activation), expected, dtype)


@native
@cases
@dtypes
@layouts
def test_small_integers_are_exact(case: Case, dtype: str, last: bool) -> None:
    arrays = case.arrays(dtype, integers=True)
    for name, value in run(case, arrays, last).items():
        np.testing.assert_array_equal(
            value, expected_of(case, arrays, last, None)[name], err_msg=name
        )


@pytest.mark.usefixtures("isa")
@cases
@layouts
def test_bits_do_not_depend_on_threads(case: Case, last: bool) -> None:
    arrays = case.arrays("float32")
    with tbptt_fast.num_threads(1):
        alone = run(case, arrays, last, "tanh")
    for threads in (2, 3, 5):
        with tbptt_fast.num_threads(threads):
            assert_identical(run(case, arrays, last, "tanh"), alone)


@cases
@layouts
def test_equals_torch(case: Case, last: bool) -> None:
    pytest.importorskip("torch")
    arrays = case.arrays("float64")
    compare(case, run(case, arrays, last), expected_of_torch(case, arrays, last, None), "float64")


@st.composite
def any_case(draw: Any) -> Case:
    rank = draw(st.integers(1, 2))
    groups = draw(st.integers(1, 4))

    def ints(least: int, most: int) -> Ints:
        return tuple(draw(st.integers(least, most)) for _ in range(rank))

    kernel, dilation = ints(1, 7), ints(1, 3)
    padding = tuple(draw(st.tuples(st.integers(0, 4), st.integers(0, 4))) for _ in range(rank))
    size = tuple(
        draw(st.integers(max(1, d * (k - 1) + 1 - sum(p)), 33))
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    )
    channels = st.sampled_from([1, 2, 3, 15, 16, 17])
    inputs, outputs = draw(channels), draw(channels)
    return Case(
        draw(st.integers(1, 3)),
        inputs,
        outputs,
        size,
        kernel,
        ints(1, 3),
        padding,
        dilation,
        groups,
    )


@settings(max_examples=150, deadline=None)
@given(case=any_case(), last=st.booleans(), dtype=st.sampled_from(DTYPES))
def test_any_convolution(case: Case, last: bool, dtype: str) -> None:
    arrays = case.arrays(dtype)
    compare(case, run(case, arrays, last), expected_of(case, arrays, last, None), dtype)


@layouts
def test_gradients_by_finite_differences(last: bool) -> None:
    case = Case(2, 2, 3, (4, 5), (3, 2), (2, 1), ((1, 0), (1, 1)), (1, 2), groups=2)
    arrays = case.arrays("float64")
    grads, step = run(case, arrays, last, "tanh"), 1e-5

    def loss() -> float:
        options = {**case.options, "activation": "tanh", "layout": layout_of(case, last)}
        y = tbptt_fast.conv2d(moved(arrays[0], last), *arrays[1:3], **options)
        return float(np.sum(y * moved(arrays[3], last)))

    for name, array in zip("xwb", arrays[:3], strict=True):
        numeric = np.zeros_like(array)
        for index in np.ndindex(*array.shape):
            old, sides = array[index], []
            for sign in (1, -1):
                array[index] = old + sign * step
                sides.append(loss())
            array[index] = old
            numeric[index] = (sides[0] - sides[1]) / (2 * step)
        expected = moved(numeric, last) if name == "x" else numeric
        np.testing.assert_allclose(grads[name], expected, atol=2e-8, err_msg=name)


@pytest.mark.parametrize("length", [1, 2, 7, 16])
@pytest.mark.parametrize("kernel", [1, 2, 3, 6])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_named_padding(length: int, kernel: int, stride: int, dilation: int) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(1, 2, length)), rng.normal(size=(3, 2, kernel))
    reach = dilation * (kernel - 1)
    options: dict[str, Any] = {"stride": stride, "dilation": dilation}
    causal = tbptt_fast.conv1d(x, w, padding="causal", **options)
    np.testing.assert_array_equal(causal, tbptt_fast.conv1d(x, w, padding=((reach, 0),), **options))
    images, kernels = x[:, :, None], w[:, :, None]
    wide = tbptt_fast.conv2d(images, kernels, padding="same", **options)
    outputs = -(-length // stride)
    assert wide.shape == (1, 3, 1, outputs)
    total = max((outputs - 1) * stride + reach + 1 - length, 0)
    sides = ((0, 0), (total // 2, total - total // 2))
    np.testing.assert_array_equal(
        wide, tbptt_fast.conv2d(images, kernels, padding=sides, **options)
    )
    if length > reach:
        np.testing.assert_array_equal(
            tbptt_fast.conv1d(x, w, padding="valid", **options), tbptt_fast.conv1d(x, w, **options)
        )


def test_only_what_is_needed() -> None:
    case = CASES[4]
    x, w, _, grad = case.arrays("float32")
    everything = tbptt_fast.conv2d_backward(grad, x, w, **case.options)
    choices: list[Any] = [(), ("x",), ("w",), ("b",), ("b", "x")]
    for needs in choices:
        grads = tbptt_fast.conv2d_backward(grad, x, w, **case.options, needs=needs)
        for name in "xwb":
            value = getattr(grads, name)
            assert (value is None) == (name not in needs)
            if value is not None:
                np.testing.assert_array_equal(value, getattr(everything, name))


@layouts
def test_strided_and_read_only_arrays(last: bool) -> None:
    case = CASES[8]
    arrays = case.arrays("float32")
    strided = [np.repeat(a, 2, axis=0)[::2] for a in arrays]
    for a in strided:
        a.flags.writeable = False
    assert_identical(run(case, strided, last), run(case, arrays, last))


@layouts
def test_empty_batch(last: bool) -> None:
    case = Case(0, 3, 4, (5, 6), (3, 3))
    found = run(case, case.arrays("float32"), last)
    assert found["y"].size == 0
    assert found["x"].shape == moved(np.empty((0, 3, 5, 6)), last).shape
    assert not found["w"].any()
    assert not found["b"].any()


F32 = np.float32
X, W, B = np.ones((2, 4, 5, 6), F32), np.ones((6, 2, 3, 3), F32), np.ones(6, F32)
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": X[0]}, ValueError, "x: expected 4 dimensions"),
    ({"w": W[0]}, ValueError, "w: expected 4 dimensions"),
    ({"w": W.astype("f8")}, TypeError, "w: expected dtype float32"),
    ({"w": W[:, :1]}, ValueError, "w: expected 2 input channels per group"),
    ({"b": B[1:]}, ValueError, r"b: expected shape \[6\]"),
    ({"groups": 3}, ValueError, "groups: expected a divisor"),
    ({"groups": 0}, ValueError, "groups: expected an integer >= 1"),
    ({"stride": 0}, ValueError, "stride: expected an integer >= 1"),
    ({"stride": (1, 2, 3)}, ValueError, "stride: expected 2 integers"),
    ({"stride": 1.5}, TypeError, "stride: expected an integer"),
    ({"dilation": (1, 0)}, ValueError, "dilation: expected an integer >= 1"),
    ({"dilation": 3}, ValueError, "w: expected a kernel within the padded height 5"),
    ({"padding": -1}, ValueError, "padding: expected an integer >= 0"),
    ({"padding": "full"}, ValueError, "padding: expected 'same'"),
    ({"padding": "causal"}, ValueError, "padding: expected 'same'"),
    ({"padding": ((1, 1),)}, ValueError, "padding: expected 2 pairs"),
    ({"padding": 2**62}, ValueError, "padding: expected stride, dilation and padding below"),
    ({"layout": "NCL"}, ValueError, "layout: expected 'NCHW' or 'NHWC'"),
    ({"activation": "gelu"}, ValueError, "activation: expected"),
    ({"algo": "fft"}, ValueError, "algo: expected 'auto', 'direct', 'winograd'"),
    ({"algo": None}, TypeError, "algo: expected a string"),
    ({"algo": "winograd", "stride": 2}, ValueError, r"algo: expected a kernel of \(3, 3\)"),
    ({"algo": "winograd_4x4", "dilation": (1, 2)}, ValueError, "algo: .*got .*dilation"),
    ({"algo": "winograd_2x2", "w": W[:, :, :2]}, ValueError, r"algo: .*got kernel \(2, 3\)"),
]


@pytest.mark.parametrize(("change", "error", "text"), WRONG, ids=str)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], text: str) -> None:
    arguments: dict[str, Any] = {"x": X, "w": W, "b": B, "groups": 2, **change}
    with pytest.raises(error, match=f"conv2d: {text}"):
        tbptt_fast.conv2d(**arguments)


def test_backward_names_its_arguments() -> None:
    y = tbptt_fast.conv2d(X, W, groups=2)
    with pytest.raises(ValueError, match="conv2d_backward: grad_out: expected shape"):
        tbptt_fast.conv2d_backward(y[:, 1:], X, W, groups=2)
    with pytest.raises(ValueError, match="conv2d_backward: y: expected the output"):
        tbptt_fast.conv2d_backward(y, X, W, groups=2, activation="tanh")
    needs: Any = ("q",)
    with pytest.raises(ValueError, match="conv2d_backward: needs: expected"):
        tbptt_fast.conv2d_backward(y, X, W, groups=2, needs=needs)
