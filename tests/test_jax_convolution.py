"""conv1d and conv2d for JAX: the bits of the primitives, the oracle, and every option."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import reference_convolution as reference

from .cases import DTYPES, assert_close, assert_identical
from .jax_cases import jax, ours, with_gradients
from .test_convolution import CASES, Case, layout_of, moved

pytestmark = pytest.mark.usefixtures("x64")

Arrays = dict[str, Any]
FEW = (*CASES[1:13:2], *CASES[18:23], CASES[23], CASES[-13], CASES[-2])
ACTIVATIONS = (None, "relu", "tanh", "sigmoid")
few = pytest.mark.parametrize("case", FEW, ids=str)
layouts = pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])


def run(case: Case, dtype: str, last: bool, bias: bool = True, **options: Any) -> Arrays:
    x, w, b, grad = case.arrays(dtype)
    options |= case.options | {"layout": layout_of(case, last)}
    function = getattr(ours, f"conv{len(case.size)}d")

    def layer(given: Arrays) -> Arrays:
        return {"y": function(given["x"], given["w"], given.get("b"), **options)}

    arrays = {"x": moved(x, last), "w": w} | ({"b": b} if bias else {})
    return with_gradients(layer, arrays, {"y": moved(grad, last)})


def primitives(
    case: Case, dtype: str, last: bool, bias: bool = True, activation: Any = None
) -> Arrays:
    x, w, b, grad = case.arrays(dtype)
    options = case.options | {"layout": layout_of(case, last), "activation": activation}
    rank = len(case.size)
    x, grad = moved(x, last), moved(grad, last)
    y = getattr(tbptt_fast, f"conv{rank}d")(x, w, b if bias else None, **options)
    backward = getattr(tbptt_fast, f"conv{rank}d_backward")
    grads = backward(grad, x, w, **options, **({"y": y} if activation else {}))
    named = {"y": y, "grad_x": grads[0], "grad_w": grads[1], "grad_b": grads[2]}
    return named if bias else {name: a for name, a in named.items() if name != "grad_b"}


@few
@layouts
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_the_primitives(case: Case, dtype: str, last: bool) -> None:
    assert_identical(run(case, dtype, last), primitives(case, dtype, last))


@pytest.mark.parametrize("case", [CASES[4], CASES[20]], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.usefixtures("isa", "threads")
def test_activations_on_every_instruction_set(case: Case, activation: Any) -> None:
    actual = run(case, "float32", False, bias=False, activation=activation)
    expected = primitives(case, "float32", False, bias=False, activation=activation)
    assert_identical(actual, expected)


@few
@pytest.mark.parametrize("activation", [None, "tanh"])
def test_the_oracle(case: Case, activation: Any) -> None:
    x, w, b, grad = case.arrays("float64")
    options = case.options | {"activation": activation}
    y = reference.conv(x, w, b, **options)
    grads = reference.conv_backward(grad, x, w, y=y, **options)
    actual = run(case, "float64", False, activation=activation)
    for name, value in zip(("y", "grad_x", "grad_w", "grad_b"), (y, *grads), strict=True):
        kind = "gradient" if name.startswith("grad_") else "forward"
        assert_close(actual[name], value, kind, length=case.length, name=name)


@pytest.mark.parametrize(
    "padding", ["same", "valid", "causal", 2, (2,), ((1, 2),), [[1, 2]]], ids=str
)
def test_padding(padding: Any) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 3, 9)), rng.normal(size=(4, 3, 3))
    np.testing.assert_array_equal(
        ours.conv1d(x, w, padding=padding), tbptt_fast.conv1d(x, w, padding=padding)
    )


def test_only_what_is_needed_has_a_gradient() -> None:
    """And each alone has the bits that it has beside the others."""
    x, w, b, _ = CASES[3].arrays("float32")

    def loss(x: Any, w: Any, b: Any) -> Any:
        return ours.conv2d(x, w, b, activation="relu").sum()

    whole = jax.grad(loss, (0, 1, 2))(x, w, b)
    for i, expected in enumerate(whole):
        np.testing.assert_array_equal(jax.grad(loss, i)(x, w, b), expected)


@pytest.mark.parametrize("last", [False, True])
def test_no_images(last: bool) -> None:
    x = np.zeros((0, 5, 6, 3) if last else (0, 3, 5, 6), "float32")
    w, layout = np.ones((2, 3, 3, 3), "float32"), "NHWC" if last else "NCHW"

    def total(x: Any, w: Any) -> Any:
        return ours.conv2d(x, w, layout=layout).sum()

    grads = jax.jit(jax.grad(total, (0, 1)))(x, w)
    assert [g.shape for g in grads] == [x.shape, w.shape]
    assert not np.asarray(grads[1]).any()
