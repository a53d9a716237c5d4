"""Convolutions of arrays in a device's memory; part of `tbptt_fast.cuda`."""

from __future__ import annotations

from typing import Any, Literal, SupportsIndex

from .._types import Activation, Layout
from ..ops_convolution import ConvGrads, Extent, Needs, Sides
from . import _module
from ._places import place_of
from ._recurrent import Precision


def conv2d(
    x: Any,
    w: Any,
    b: Any = None,
    *,
    stride: Extent = 1,
    padding: Extent | Sides | Literal["same", "valid"] = 0,
    dilation: Extent = 1,
    groups: SupportsIndex = 1,
    activation: Activation = None,
    layout: Layout = "NCHW",
    algo: Literal["auto", "direct"] = "auto",
    precision: Precision = "tf32",
    stream: Any = None,
) -> Any:
    options = (stride, padding, dilation, groups, activation, layout, algo)
    run, place = _module.native().conv2d, place_of(x, stream)
    return run(place, precision, x, w, b, *options)


def conv2d_backward(
    grad_out: Any,
    x: Any,
    w: Any,
    *,
    y: Any = None,
    stride: Extent = 1,
    padding: Extent | Sides | Literal["same", "valid"] = 0,
    dilation: Extent = 1,
    groups: SupportsIndex = 1,
    activation: Activation = None,
    layout: Layout = "NCHW",
    algo: Literal["auto", "direct"] = "auto",
    needs: Needs = ("x", "w", "b"),
    precision: Precision = "tf32",
    stream: Any = None,
) -> ConvGrads:
    options = (stride, padding, dilation, groups, activation, layout, algo, needs)
    run, place = _module.native().conv2d_backward, place_of(x, stream)
    return ConvGrads(*run(place, precision, grad_out, x, w, y, *options))


def conv1d(
    x: Any,
    w: Any,
    b: Any = None,
    *,
    stride: Extent = 1,
    padding: Extent | Sides | Literal["same", "valid", "causal"] = 0,
    dilation: Extent = 1,
    groups: SupportsIndex = 1,
    activation: Activation = None,
    layout: Literal["NCL", "NLC"] = "NCL",
    precision: Precision = "tf32",
    stream: Any = None,
) -> Any:
    options = (stride, padding, dilation, groups, activation, layout)
    run, place = _module.native().conv1d, place_of(x, stream)
    return run(place, precision, x, w, b, *options)


def conv1d_backward(
    grad_out: Any,
    x: Any,
    w: Any,
    *,
    y: Any = None,
    stride: Extent = 1,
    padding: Extent | Sides | Literal["same", "valid", "causal"] = 0,
    dilation: Extent = 1,
    groups: SupportsIndex = 1,
    activation: Activation = None,
    layout: Literal["NCL", "NLC"] = "NCL",
    needs: Needs = ("x", "w", "b"),
    precision: Precision = "tf32",
    stream: Any = None,
) -> ConvGrads:
    options = (stride, padding, dilation, groups, activation, layout, needs)
    run, place = _module.native().conv1d_backward, place_of(x, stream)
    return ConvGrads(*run(place, precision, grad_out, x, w, y, *options))


def conv_transpose2d(
    x: Any,
    w: Any,
    b: Any = None,
    *,
    stride: Extent = 1,
    padding: Extent | Sides = 0,
    output_padding: Extent = 0,
    dilation: Extent = 1,
    groups: SupportsIndex = 1,
    activation: Activation = None,
    layout: Layout = "NCHW",
    algo: Literal["auto", "direct"] = "auto",
    precision: Precision = "tf32",
    stream: Any = None,
) -> Any:
    options = (stride, padding, output_padding, dilation, groups, activation, layout, algo)
    run, place = _module.native().conv_transpose2d, place_of(x, stream)
    return run(place, precision, x, w, b, *options)


def conv_transpose2d_backward(
    grad_out: Any,
    x: Any,
    w: Any,
    *,
    y: Any = None,
    stride: Extent = 1,
    padding: Extent | Sides = 0,
    output_padding: Extent = 0,
    dilation: Extent = 1,
    groups: SupportsIndex = 1,
    activation: Activation = None,
    layout: Layout = "NCHW",
    algo: Literal["auto", "direct"] = "auto",
    needs: Needs = ("x", "w", "b"),
    precision: Precision = "tf32",
    stream: Any = None,
) -> ConvGrads:
    sizes = (stride, padding, output_padding, dilation, groups)
    options = (*sizes, activation, layout, algo, needs)
    run, place = _module.native().conv_transpose2d_backward, place_of(x, stream)
    return ConvGrads(*run(place, precision, grad_out, x, w, y, *options))


_MORE = """`tbptt_fast.{name}` on arrays in a device's memory.

    Args:
        precision, stream: see `tbptt_fast.cuda`. All other arguments, shapes and gradients are
            those of `tbptt_fast.{name}`, of dtype float32, float64 or bfloat16.{algo}

    Returns:
        What `tbptt_fast.{name}` returns, as {arrays} of x's library. The work may still be
        going on; nothing waits for it but the stream.

    Raises:
        TypeError, ValueError: a wrong dtype, an array elsewhere than on x's device; a wrong shape
            or value; a strided array of a library that is not known here; 2**30 pixels or more.
        RuntimeError: the kernels cannot run here (`why_not`), or CUDA reports an error.
        MemoryError: the device has too little memory.

    Source: see `tbptt_fast.{source}`.

    >>> from tbptt_fast import cuda
    >>> if cuda.is_available():
    ...     import torch
    ...     x, w = (torch.ones(s, device="cuda") for s in ((2, 3, {size}), (3, 3, {kernel})))
    ...     y = cuda.{forward}(x, w)
    ...     grads = cuda.{forward}_backward(torch.ones_like(y), x, w, needs=("x", "w"))
    ...     assert grads.w.shape == w.shape
    """

_ALGO = """
        algo: "auto" or "direct", which are the same here: there is no Winograd's filtering."""


def _describe() -> None:
    for forward in ("conv1d", "conv2d", "conv_transpose2d"):
        for name in (forward, f"{forward}_backward"):
            images = forward != "conv1d"
            globals()[name].__doc__ = _MORE.format(
                name=name,
                forward=forward,
                arrays="an array" if name == forward else "arrays",
                algo=_ALGO if images else "",
                source="conv2d" if forward == "conv1d" else forward,
                size="8, 8" if images else "8",
                kernel="3, 3" if images else "3",
            )


_describe()
