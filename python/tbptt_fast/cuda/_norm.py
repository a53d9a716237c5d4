"""Normalization and dropout in a device's memory; part of `tbptt_fast.cuda`.

Statistics are summed in double, in an order that sizes alone decide; dropout has the CPU's masks.
"""

from __future__ import annotations

from typing import Any, SupportsIndex

from .._types import Layout
from ..ops_convolution import Needs
from ..ops_norm import BatchNorm, LayerNorm, NormGrads
from . import _module
from ._docs import describe
from ._places import place_of


def batch_norm(
    x: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    layout: Layout = "NCHW",
    stream: Any = None,
) -> BatchNorm:
    arrays = (x, weight, bias, running_mean, running_var)
    run, place = _module.native().batch_norm, place_of(x, stream)
    return BatchNorm(*run(place, *arrays, training, momentum, eps, layout))


def batch_norm_backward(
    grad_out: Any,
    x: Any,
    weight: Any,
    mean: Any,
    inv_std: Any,
    *,
    training: bool,
    layout: Layout = "NCHW",
    needs: Needs = ("x", "w", "b"),
    stream: Any = None,
) -> NormGrads:
    arrays = (grad_out, x, weight, mean, inv_std)
    run, place = _module.native().batch_norm_backward, place_of(x, stream)
    return NormGrads(*run(place, *arrays, training, layout, needs))


def layer_norm(
    x: Any, weight: Any, bias: Any, *, eps: float = 1e-5, stream: Any = None
) -> LayerNorm:
    run, place = _module.native().layer_norm, place_of(x, stream)
    return LayerNorm(*run(place, x, weight, bias, eps))


def layer_norm_backward(
    grad_out: Any,
    x: Any,
    weight: Any,
    mean: Any,
    inv_std: Any,
    *,
    needs: Needs = ("x", "w", "b"),
    stream: Any = None,
) -> NormGrads:
    run, place = _module.native().layer_norm_backward, place_of(x, stream)
    return NormGrads(*run(place, grad_out, x, weight, mean, inv_std, needs))


def dropout(x: Any, p: float, key: SupportsIndex, *, stream: Any = None) -> Any:
    return _module.native().dropout(place_of(x, stream), x, p, key)


def dropout_backward(grad_out: Any, p: float, key: SupportsIndex, *, stream: Any = None) -> Any:
    return _module.native().dropout_backward(place_of(grad_out, stream), grad_out, p, key)


_GRADS = (
    "The gradients by x, weight and bias, by x's library; None where not in `needs`, and then\n"
    "        their sums are not made."
)
_LARGE = "A plane has 2**31 values or more."


def _describe() -> None:
    images = '[N, C], or [N, C, H, W] with layout "NCHW" and [N, H, W, C] with "NHWC"'
    describe(
        batch_norm,
        first="x",
        args=f"x: {images}.\n"
        "        weight, bias: [C] or None.\n"
        "        running_mean, running_var: [C], never changed; or None when training.",
        returns="y like x; mean and inv_std, float64 [C]; the new running values [C] or None: all\n"
        "        by x's library.",
        raises=_LARGE,
        example="x = torch.tensor([[1.0], [3.0]], device='cuda')\n"
        "result = cuda.batch_norm(x, None, None, None, None, training=True, eps=0.0)\n"
        "assert result.y.tolist() == [[-1.0], [1.0]]",
    )
    describe(
        batch_norm_backward,
        first="x",
        args=f"grad_out, x: {images}.\n"
        "        weight: [C] or None.\n"
        "        mean, inv_std: as `batch_norm` returned them, float64 [C].",
        returns=_GRADS,
        raises=_LARGE,
        example="x = torch.tensor([[1.0], [3.0]], device='cuda')\n"
        "result = cuda.batch_norm(x, None, None, None, None, training=True, eps=0.0)\n"
        "statistics = result.mean, result.inv_std\n"
        "grads = cuda.batch_norm_backward(x, x, None, *statistics, training=True)\n"
        "assert (grads.w.tolist(), grads.b.tolist()) == ([2.0], [4.0])",
    )
    describe(
        layer_norm,
        first="x",
        args="x: [..., D].\n        weight, bias: [D] or None.",
        returns="y like x; mean and inv_std, float64 [...]: all by x's library.",
        example="x = torch.tensor([[1.0, 3.0], [7.0, 5.0]], device='cuda')\n"
        "y, mean, inv_std = cuda.layer_norm(x, None, None, eps=0.0)\n"
        "assert y.tolist() == [[-1.0, 1.0], [1.0, -1.0]]",
    )
    describe(
        layer_norm_backward,
        first="x",
        args="grad_out, x: [..., D].\n"
        "        weight: [D] or None.\n"
        "        mean, inv_std: as `layer_norm` returned them, float64 [...].",
        returns=_GRADS,
        example="x = torch.tensor([[1.0, 3.0]], device='cuda')\n"
        "y, mean, inv_std = cuda.layer_norm(x, None, None, eps=0.0)\n"
        "grads = cuda.layer_norm_backward(x, x, None, mean, inv_std)\n"
        "assert (grads.w.tolist(), grads.b.tolist()) == ([-1.0, 3.0], [1.0, 3.0])",
    )
    describe(
        dropout,
        first="x",
        args="x: [...].\n        p, key: with an element's index they decide, as on the CPU.",
        returns="[...], by x's library.",
        example="x = torch.ones(8, device='cuda')\n"
        "assert cuda.dropout(x, 0.5, key=1).tolist() == [2.0, 2.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0]",
    )
    describe(
        dropout_backward,
        first="grad_out",
        args="grad_out: [...].\n        p, key: those of the forward call.",
        returns="[...], by grad_out's library.",
        example="grad = torch.ones(3, device='cuda')\n"
        "assert cuda.dropout_backward(grad, 0.5, key=1).tolist() == [2.0, 2.0, 0.0]",
    )


_describe()
