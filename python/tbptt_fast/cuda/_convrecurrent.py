"""Recurrent layers on images in a device's memory; part of `tbptt_fast.cuda`."""

from __future__ import annotations

from typing import Any, Literal

from .. import ops_convrecurrent
from .._types import Layout, Truncation
from ..ops_convrecurrent import Algo, ConvRecurrentGrads
from . import _module
from ._docs import source_of
from ._places import LEGACY_DEFAULT, place_of
from ._recurrent import Precision


def convrnn_forward(
    x: Any,
    hx: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    nonlinearity: Literal["tanh", "relu"] = "tanh",
    is_init: Any = None,
    dilation: int | tuple[int, int] = 1,
    layout: Layout = "NCHW",
    algo: Algo = "auto",
    training: bool = True,
    recompute: bool = False,
    precision: Precision = "tf32",
    stream: Any = None,
) -> tuple[Any, Any, Any]:
    weights, options = (w_ih, w_hh, b_ih, b_hh, None), (is_init, dilation, layout, algo)
    run, place = _module.native().convrnn_forward, place_of(x, stream)
    keep = (training, recompute)
    return run(place, precision, nonlinearity, x, hx, *weights, *options, *keep)  # type: ignore[no-any-return]


def convgru_forward(
    x: Any,
    hx: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    is_init: Any = None,
    dilation: int | tuple[int, int] = 1,
    layout: Layout = "NCHW",
    algo: Algo = "auto",
    training: bool = True,
    recompute: bool = False,
    precision: Precision = "tf32",
    stream: Any = None,
) -> tuple[Any, Any, Any]:
    weights, options = (w_ih, w_hh, b_ih, b_hh, None), (is_init, dilation, layout, algo)
    run, place = _module.native().convrecurrent_forward, place_of(x, stream)
    keep = (training, recompute)
    return run(place, precision, "gru", x, hx, *weights, *options, *keep)  # type: ignore[no-any-return]


def convlstm_forward(
    x: Any,
    hx: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    peephole: Any = None,
    is_init: Any = None,
    dilation: int | tuple[int, int] = 1,
    layout: Layout = "NCHW",
    algo: Algo = "auto",
    training: bool = True,
    recompute: bool = False,
    precision: Precision = "tf32",
    stream: Any = None,
) -> tuple[Any, tuple[Any, Any], Any]:
    weights, options = (w_ih, w_hh, b_ih, b_hh, peephole), (is_init, dilation, layout, algo)
    run, place = _module.native().convrecurrent_forward, place_of(x, stream)
    keep = (training, recompute)
    return run(place, precision, "lstm", x, hx, *weights, *options, *keep)  # type: ignore[no-any-return]


def _backward(
    cell: str,
    tape: Any,
    grad_out: Any,
    grad_hx: Any,
    truncation: Truncation,
    carry_scale: Any,
    precision: Precision,
    stream: Any,
) -> ConvRecurrentGrads:
    run, before = _module.native().convrecurrent_backward, getattr(tape, "stream", LEGACY_DEFAULT)
    place = place_of(getattr(tape, "x", None), stream, before)
    options = (truncation, carry_scale)
    return ConvRecurrentGrads(*run(place, precision, cell, tape, grad_out, grad_hx, *options))


def convrnn_backward(
    tape: Any,
    grad_out: Any,
    grad_hx: Any = None,
    *,
    truncation: Truncation = None,
    carry_scale: Any = None,
    precision: Precision = "tf32",
    stream: Any = None,
) -> ConvRecurrentGrads:
    options = (truncation, carry_scale, precision, stream)
    return _backward("rnn_tanh", tape, grad_out, grad_hx, *options)


def convgru_backward(
    tape: Any,
    grad_out: Any,
    grad_hx: Any = None,
    *,
    truncation: Truncation = None,
    carry_scale: Any = None,
    precision: Precision = "tf32",
    stream: Any = None,
) -> ConvRecurrentGrads:
    options = (truncation, carry_scale, precision, stream)
    return _backward("gru", tape, grad_out, grad_hx, *options)


def convlstm_backward(
    tape: Any,
    grad_out: Any,
    grad_hx: Any = None,
    *,
    truncation: Truncation = None,
    carry_scale: Any = None,
    precision: Precision = "tf32",
    stream: Any = None,
) -> ConvRecurrentGrads:
    options = (truncation, carry_scale, precision, stream)
    return _backward("lstm", tape, grad_out, grad_hx, *options)


_MORE = """`tbptt_fast.{name}` on arrays in a device's memory.

    Args:
        precision, stream: see `tbptt_fast.cuda`. All other arguments, shapes and gradients are
            those of `tbptt_fast.{name}`, of dtype float32, float64 or bfloat16.{options}

    Returns:
        What `tbptt_fast.{name}` returns, as arrays of {library} library. The work may
        still be going on; nothing waits for it but the stream.{borrows}

    Raises:
        TypeError, ValueError: a wrong dtype, an array elsewhere than on x's device; a wrong shape
            or value; a strided array of a library that is not known here; 2**30 pixels or more.
        RuntimeError: the kernels cannot run here (`why_not`), or CUDA reports an error.
        MemoryError: the device has too little memory.

{source}

    >>> from tbptt_fast import cuda
    >>> if cuda.is_available():
    ...     import torch
    ...     x = torch.ones(6, 2, 3, 8, 8, device="cuda")
    ...     w_ih, w_hh = x.new_ones({rows}, 3, 3, 3), x.new_ones({rows}, 4, 3, 3)
    ...     out, _, tape = cuda.{op}_forward(x, None, w_ih, w_hh)
    ...     grads = cuda.{op}_backward(tape, torch.ones_like(out), truncation=2)
    ...     assert grads.w_hh.shape == w_hh.shape
    """

_OPTIONS = """
        algo: "auto" or "direct", which are the same here: there is no Winograd's filtering.
        recompute: the backward pass makes the gates of all steps again at once."""

_BORROWS = """

        The tape refers to the arguments and to the output: do not change them in place before the
        backward pass."""


def _describe() -> None:
    for op, gates in (("convrnn", 1), ("convgru", 3), ("convlstm", 4)):
        for direction in ("forward", "backward"):
            name, forward = f"{op}_{direction}", direction == "forward"
            globals()[name].__doc__ = _MORE.format(
                name=name,
                op=op,
                options=_OPTIONS if forward else "",
                library="x's" if forward else "the forward pass's",
                borrows=_BORROWS if forward else "",
                source=source_of(getattr(ops_convrecurrent, name)),
                rows=4 * gates,
            )


_describe()
