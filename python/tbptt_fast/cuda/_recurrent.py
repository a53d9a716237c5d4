"""Recurrent layers on arrays in a device's memory; part of `tbptt_fast.cuda`."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from .. import ops_recurrent
from .._types import Truncation
from ..ops_recurrent import RecurrentGrads
from . import _module
from ._docs import describe, source_of
from ._places import LEGACY_DEFAULT, Place, place_of

Precision: TypeAlias = Literal["tf32", "highest"]


def rnn_forward(
    x: Any,
    hx: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    nonlinearity: Literal["tanh", "relu"] = "tanh",
    is_init: Any = None,
    training: bool = True,
    precision: Precision = "tf32",
    stream: Any = None,
) -> tuple[Any, Any, Any]:
    weights = (w_ih, w_hh, b_ih, b_hh, nonlinearity)
    run, place = _module.native().rnn_forward, place_of(x, stream)
    return run(place, precision, x, hx, *weights, is_init, training)  # type: ignore[no-any-return]


def gru_forward(
    x: Any,
    hx: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    is_init: Any = None,
    training: bool = True,
    precision: Precision = "tf32",
    stream: Any = None,
) -> tuple[Any, Any, Any]:
    weights = (w_ih, w_hh, b_ih, b_hh)
    run, place = _module.native().gru_forward, place_of(x, stream)
    return run(place, precision, x, hx, *weights, is_init, training)  # type: ignore[no-any-return]


def lstm_forward(
    x: Any,
    hx: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
    *,
    is_init: Any = None,
    training: bool = True,
    precision: Precision = "tf32",
    stream: Any = None,
) -> tuple[Any, tuple[Any, Any], Any]:
    weights = (w_ih, w_hh, b_ih, b_hh)
    run, place = _module.native().lstm_forward, place_of(x, stream)
    return run(place, precision, x, hx, *weights, is_init, training)  # type: ignore[no-any-return]


def _place_of_tape(tape: Any, stream: Any) -> Place:
    before = getattr(tape, "stream", LEGACY_DEFAULT)
    return place_of(getattr(tape, "x", None), stream, before)


def _backward(
    name: str,
    tape: Any,
    grad_out: Any,
    grad_hx: Any,
    truncation: Truncation,
    carry_scale: Any,
    precision: Precision,
    stream: Any,
) -> RecurrentGrads:
    run = getattr(_module.native(), name)
    place = _place_of_tape(tape, stream)
    return RecurrentGrads(*run(place, precision, tape, grad_out, grad_hx, truncation, carry_scale))


def rnn_backward(
    tape: Any,
    grad_out: Any,
    grad_hx: Any = None,
    *,
    truncation: Truncation = None,
    carry_scale: Any = None,
    precision: Precision = "tf32",
    stream: Any = None,
) -> RecurrentGrads:
    options = (truncation, carry_scale, precision, stream)
    return _backward("rnn_backward", tape, grad_out, grad_hx, *options)


def gru_backward(
    tape: Any,
    grad_out: Any,
    grad_hx: Any = None,
    *,
    truncation: Truncation = None,
    carry_scale: Any = None,
    precision: Precision = "tf32",
    stream: Any = None,
) -> RecurrentGrads:
    options = (truncation, carry_scale, precision, stream)
    return _backward("gru_backward", tape, grad_out, grad_hx, *options)


def lstm_backward(
    tape: Any,
    grad_out: Any,
    grad_hx: Any = None,
    *,
    truncation: Truncation = None,
    carry_scale: Any = None,
    precision: Precision = "tf32",
    stream: Any = None,
) -> RecurrentGrads:
    options = (truncation, carry_scale, precision, stream)
    return _backward("lstm_backward", tape, grad_out, grad_hx, *options)


def lag_norms(
    tape: Any,
    grad_out: Any,
    max_lag: int,
    *,
    sums: bool = False,
    precision: Precision = "tf32",
    stream: Any = None,
) -> Any:
    run, place = _module.native().lag_norms, _place_of_tape(tape, stream)
    phi, total = run(place, precision, tape, grad_out, max_lag, sums)
    return phi if total is None else (phi, total)


describe(
    lag_norms,
    first="the tape",
    args="precision: see `tbptt_fast.cuda`.",
    returns="""phi [max_lag + 1, T, B], and with `sums` Σ ∂L_s/∂h_(s-k) in float64, as arrays of the
        forward pass's library. How many losses have a gradient is counted on the device.""",
    example="""x = torch.ones(6, 2, 3, device="cuda")
w_ih, w_hh = x.new_ones(16, 3), x.new_ones(16, 4)
out, _, tape = cuda.lstm_forward(x, None, w_ih, w_hh)
phi = cuda.lag_norms(tape, torch.ones_like(out), max_lag=4)
assert phi.shape == (5, 6, 2)""",
)

_MORE = """`tbptt_fast.{name}` on arrays in a device's memory.

    Args:
        precision, stream: see `tbptt_fast.cuda`. All other arguments, shapes and gradients are
            those of `tbptt_fast.{name}`.

    Returns:
        What `tbptt_fast.{name}` returns, as arrays of {library} library. The work may
        still be going on; nothing waits for it but the stream.{borrows}

    Raises:
        TypeError, ValueError: a wrong dtype, an array elsewhere than on x's device; a wrong shape
            or value; a strided array of a library that is not known here.
        RuntimeError: the kernels cannot run here (`why_not`), or CUDA reports an error.
        MemoryError: the device has too little memory.

{source}

    >>> from tbptt_fast import cuda
    >>> if cuda.is_available():
    ...     import torch
    ...     x = torch.ones(6, 2, 3, device="cuda")
    ...     w_ih, w_hh = x.new_ones({rows}, 3), x.new_ones({rows}, 4)
    ...     out, _, tape = cuda.{cell}_forward(x, None, w_ih, w_hh)
    ...     grads = cuda.{cell}_backward(tape, torch.ones_like(out), truncation=2)
    ...     assert grads.w_hh.shape == w_hh.shape
    """

_BORROWS = """

        The tape refers to the arguments and to the output: do not change them in place before the
        backward pass."""


def _describe() -> None:
    for cell, gates in (("rnn", 1), ("gru", 3), ("lstm", 4)):
        for direction, function in (
            ("forward", globals()[f"{cell}_forward"]),
            ("backward", globals()[f"{cell}_backward"]),
        ):
            name = f"{cell}_{direction}"
            function.__doc__ = _MORE.format(
                name=name,
                cell=cell,
                library="x's" if direction == "forward" else "the forward pass's",
                borrows=_BORROWS if direction == "forward" else "",
                source=source_of(getattr(ops_recurrent, name)),
                rows=4 * gates,
            )


_describe()
