"""The linear layer and activations in a device's memory; part of `tbptt_fast.cuda`."""

from __future__ import annotations

from typing import Any, Literal

from .._types import Activation
from ..ops import LinearGrads
from ..ops_convolution import Needs
from . import _module
from ._docs import describe
from ._places import place_of
from ._recurrent import Precision


def linear(
    x: Any,
    w: Any,
    b: Any = None,
    *,
    activation: Activation = None,
    precision: Precision = "tf32",
    stream: Any = None,
) -> Any:
    return _module.native().linear(place_of(x, stream), precision, x, w, b, activation)


def linear_backward(
    grad_out: Any,
    x: Any,
    w: Any,
    *,
    y: Any = None,
    activation: Activation = None,
    needs: Needs = ("x", "w", "b"),
    precision: Precision = "tf32",
    stream: Any = None,
) -> LinearGrads:
    run, place = _module.native().linear_backward, place_of(x, stream)
    return LinearGrads(*run(place, precision, grad_out, x, w, y, activation, needs))


def exp(x: Any, *, stream: Any = None) -> Any:
    return _module.native().exp(place_of(x, stream), x)


def tanh(x: Any, *, stream: Any = None) -> Any:
    return _module.native().tanh(place_of(x, stream), x)


def sigmoid(x: Any, *, stream: Any = None) -> Any:
    return _module.native().sigmoid(place_of(x, stream), x)


def relu(x: Any, *, stream: Any = None) -> Any:
    return _module.native().relu(place_of(x, stream), x)


def activation_backward(
    grad_out: Any, y: Any, activation: Literal["relu", "tanh", "sigmoid"], *, stream: Any = None
) -> Any:
    return _module.native().activation_backward(place_of(y, stream), grad_out, y, activation)


_LARGE = "There are 2**31 rows or more, or more than 2**20 inputs or outputs."


def _describe() -> None:
    precision = "        precision: see `tbptt_fast.cuda`."
    describe(
        linear,
        first="x",
        args=f"x: [..., I].\n        w: [O, I].\n        b: [O] or None.\n{precision}",
        returns="[..., O], by x's library.",
        raises=_LARGE,
        example="x, w = torch.ones(2, 3, device='cuda'), torch.ones(1, 3, device='cuda')\n"
        "assert cuda.linear(x, w, activation='relu').tolist() == [[3.0], [3.0]]",
    )
    describe(
        linear_backward,
        first="x",
        args="grad_out, y: [..., O]; y is needed with an activation alone.\n"
        f"        x: [..., I].\n        w: [O, I].\n{precision}",
        returns="The gradients by x, w and b, by x's library; None where not in `needs`, and then\n"
        "        they cost nothing.",
        raises=_LARGE,
        example="x, w = torch.ones(2, 3, device='cuda'), torch.ones(1, 3, device='cuda')\n"
        "grads = cuda.linear_backward(torch.ones(2, 1, device='cuda'), x, w, needs=('w',))\n"
        "assert (grads.x, grads.w.tolist()) == (None, [[2.0, 2.0, 2.0]])",
    )
    values = {exp: 1.0, tanh: 0.0, sigmoid: 0.5, relu: 0.0}
    for function, at_zero in values.items():
        describe(
            function,
            first="x",
            args="x: [...].",
            returns="[...], by x's library; CUDA's own functions, at most 3 ULP off.",
            example="x = torch.zeros(2, device='cuda')\n"
            f"assert cuda.{function.__name__}(x).tolist() == [{at_zero}, {at_zero}]",
        )
    describe(
        activation_backward,
        first="y",
        args="grad_out, y: [...].",
        returns="[...], by y's library.",
        example="grad, y = torch.ones(2, device='cuda'), torch.tensor([0.5, 0.0], device='cuda')\n"
        "assert cuda.activation_backward(grad, y, 'tanh').tolist() == [0.75, 1.0]",
    )


_describe()
