"""Pooling over planes in a device's memory; part of `tbptt_fast.cuda`.

Layouts, kernels, strides and padding are given as to `tbptt_fast.max_pool2d`. Results have the bits
of the CPU's but for `global_avg_pool2d`, whose sums run in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsIndex

from .._types import Layout
from ..ops_pooling import Padding, Pair
from . import _module
from ._docs import describe
from ._places import place_of


def max_pool2d(
    x: Any,
    kernel: Pair,
    *,
    stride: Pair | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    layout: Layout = "NCHW",
    stream: Any = None,
) -> tuple[Any, Any]:
    run, place = _module.native().max_pool2d, place_of(x, stream)
    return run(place, x, kernel, stride, padding, ceil_mode, layout)  # type: ignore[no-any-return]


def max_pool2d_backward(
    grad_out: Any,
    indices: Any,
    input_shape: Sequence[SupportsIndex],
    *,
    layout: Layout = "NCHW",
    stream: Any = None,
) -> Any:
    run, place = _module.native().max_pool2d_backward, place_of(grad_out, stream)
    return run(place, grad_out, indices, input_shape, layout)


def avg_pool2d(
    x: Any,
    kernel: Pair,
    *,
    stride: Pair | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    layout: Layout = "NCHW",
    stream: Any = None,
) -> Any:
    run, place = _module.native().avg_pool2d, place_of(x, stream)
    return run(place, x, kernel, stride, padding, ceil_mode, count_include_pad, layout)


def avg_pool2d_backward(
    grad_out: Any,
    input_shape: Sequence[SupportsIndex],
    kernel: Pair,
    *,
    stride: Pair | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    layout: Layout = "NCHW",
    stream: Any = None,
) -> Any:
    run, place = _module.native().avg_pool2d_backward, place_of(grad_out, stream)
    options = (kernel, stride, padding, ceil_mode, count_include_pad, layout)
    return run(place, grad_out, input_shape, *options)


def global_avg_pool2d(x: Any, *, layout: Layout = "NCHW", stream: Any = None) -> Any:
    return _module.native().global_avg_pool2d(place_of(x, stream), x, layout)


def global_avg_pool2d_backward(
    grad_out: Any,
    input_shape: Sequence[SupportsIndex],
    *,
    layout: Layout = "NCHW",
    stream: Any = None,
) -> Any:
    run, place = _module.native().global_avg_pool2d_backward, place_of(grad_out, stream)
    return run(place, grad_out, input_shape, layout)


_LARGE = 'An image (a plane with layout "NCHW") has 2**31 values or more.'


def _describe() -> None:
    images, windows = '[N, C, Y, X], or with layout "NHWC" [N, Y, X, C]', "[N, C, OY, OX]"
    windows += ', or with "NHWC" [N, OY, OX, C]'
    describe(
        max_pool2d,
        first="x",
        args=f"x: {images}.",
        returns="The maxima, and their places in the plane (int64), both\n"
        f"        {windows}, by x's library.",
        raises=_LARGE,
        example="x = torch.tensor([[[[1.0, 5.0], [3.0, 4.0]]]], device='cuda')\n"
        "y, indices = cuda.max_pool2d(x, 2)\n"
        "assert (y.item(), indices.item()) == (5.0, 1)",
    )
    describe(
        max_pool2d_backward,
        first="grad_out",
        args=f"grad_out: {windows}.\n"
        "        indices: of grad_out's shape, int32 or int64; not looked at by the host.",
        returns="The gradient in input_shape, by grad_out's library; NaN throughout where an\n"
        "        index is not in [0, Y·X).",
        raises=_LARGE,
        example="grad = torch.ones(1, 1, 1, 2, device='cuda')\n"
        "indices = torch.tensor([[[[1, 1]]]], device='cuda')\n"
        "grad_x = cuda.max_pool2d_backward(grad, indices, (1, 1, 1, 3))\n"
        "assert grad_x.tolist() == [[[[0.0, 2.0, 0.0]]]]",
    )
    describe(
        avg_pool2d,
        first="x",
        args=f"x: {images}.",
        returns=f"{windows}, by x's library.",
        raises=_LARGE,
        example="x = torch.ones(1, 1, 4, 4, device='cuda')\n"
        "assert cuda.avg_pool2d(x, 2).tolist() == [[[[1.0, 1.0], [1.0, 1.0]]]]",
    )
    describe(
        avg_pool2d_backward,
        first="grad_out",
        args=f"grad_out: {windows}.",
        returns="The gradient in input_shape, by grad_out's library.",
        raises=_LARGE,
        example="grad = torch.ones(1, 1, 1, 2, device='cuda')\n"
        "grad_x = cuda.avg_pool2d_backward(grad, (1, 1, 1, 3), (1, 2), stride=1)\n"
        "assert grad_x.tolist() == [[[[0.5, 1.0, 0.5]]]]",
    )
    describe(
        global_avg_pool2d,
        first="x",
        args=f"x: {images}.",
        returns="[N, C], by x's library; the sums are in double.",
        raises="There are 2**31 planes or more.",
        example="x = torch.ones(1, 2, 4, 4, device='cuda')\n"
        "assert cuda.global_avg_pool2d(x).tolist() == [[1.0, 1.0]]",
    )
    describe(
        global_avg_pool2d_backward,
        first="grad_out",
        args="grad_out: [N, C].",
        returns="The gradient in input_shape, by grad_out's library.",
        raises=_LARGE,
        example="grad = torch.ones(1, 1, device='cuda')\n"
        "grad_x = cuda.global_avg_pool2d_backward(grad, (1, 1, 2, 2))\n"
        "assert grad_x.tolist() == [[[[0.25, 0.25], [0.25, 0.25]]]]",
    )


_describe()
