"""Fused updates of all parameters of a network in a device's memory; part of `tbptt_fast.cuda`.

A call puts some launches on the stream, however many arrays there are, and waits for nothing: the
norm of the gradients stays on the device, where the update clips by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, SupportsIndex

from . import _module
from ._docs import describe
from ._places import place_of


def _first(arrays: Any) -> Any:
    return arrays[0] if isinstance(arrays, (list, tuple)) and arrays else None


def global_norm(
    arrays: Sequence[Any], *, clip_value: float | None = None, stream: Any = None
) -> Any:
    place = place_of(_first(arrays), stream)
    return _module.native().global_norm(place, arrays, clip_value)


def sgd_step(
    params: Sequence[Any],
    grads: Sequence[Any],
    momentum: Sequence[Any] | None,
    *,
    lr: float,
    mu: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    velocity: bool = False,
    weight_decay: float = 0.0,
    max_norm: float | None = None,
    clip_value: float | None = None,
    non_finite: Literal["skip"] = "skip",
    maximize: bool = False,
    norm: Any = None,
    stream: Any = None,
) -> Any:
    return _module.native().sgd_step(
        place_of(_first(params), stream),
        params,
        grads,
        momentum,
        lr,
        mu,
        dampening,
        nesterov,
        velocity,
        weight_decay,
        maximize,
        max_norm,
        clip_value,
        non_finite,
        norm,
    )


def rmsprop_step(
    params: Sequence[Any],
    grads: Sequence[Any],
    square_avg: Sequence[Any],
    momentum: Sequence[Any] | None,
    grad_avg: Sequence[Any] | None = None,
    *,
    lr: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    mu: float = 0.0,
    weight_decay: float = 0.0,
    max_norm: float | None = None,
    clip_value: float | None = None,
    non_finite: Literal["skip"] = "skip",
    maximize: bool = False,
    norm: Any = None,
    stream: Any = None,
) -> Any:
    return _module.native().rmsprop_step(
        place_of(_first(params), stream),
        params,
        grads,
        square_avg,
        momentum,
        grad_avg,
        lr,
        alpha,
        eps,
        mu,
        weight_decay,
        maximize,
        max_norm,
        clip_value,
        non_finite,
        norm,
    )


def adam_step(
    params: Sequence[Any],
    grads: Sequence[Any],
    exp_avg: Sequence[Any],
    exp_avg_sq: Sequence[Any],
    max_exp_avg_sq: Sequence[Any] | None = None,
    *,
    step: SupportsIndex | Any,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    max_norm: float | None = None,
    clip_value: float | None = None,
    non_finite: Literal["skip"] = "skip",
    maximize: bool = False,
    norm: Any = None,
    stream: Any = None,
) -> Any:
    return _module.native().adam_step(
        place_of(_first(params), stream),
        params,
        grads,
        exp_avg,
        exp_avg_sq,
        max_exp_avg_sq,
        step,
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        decoupled,
        maximize,
        max_norm,
        clip_value,
        non_finite,
        norm,
    )


_LISTS = """params: a list of arrays of one dtype on one device, updated in place: contiguous,
            none overlapping another; at least one.
        grads: a list of arrays of the same shapes, in any layout.
        {states}
        non_finite: "skip": a gradient that is not finite leaves everything as it is. "raise" is
            refused, as it would have to wait for the device.
        norm: the norm to clip by, float64 [] on the device, instead of that of `grads`."""

_COUNTED = """{states}
        step: t, 1 for the first step; or what counts the steps on the device: an array of one
            element (int64, or float32 as PyTorch's), zero before the first step, or a list of
            them, one for each parameter. The step adds one to each unless it is skipped, so that
            a graph that is replayed goes on counting. Everything else that is a number stays in
            a graph as it was."""

_NORM = "The gradients' norm before clipping by it, float64 [], by the library of params[0]; NaN\n"
_NORM += "        where one is not finite, and nothing has changed then."

_EXAMPLE = """w, grad = torch.ones(2, device='cuda'), torch.tensor([3.0, 4.0], device='cuda')
{state}norm = cuda.{call}
assert norm.item() == 5.0 and w[0].item() < 1"""


def _describe() -> None:
    describe(
        global_norm,
        first="arrays[0]",
        args="arrays: a list of arrays of any shapes, each float32 or float64, on one device; at\n"
        "            least one.",
        returns="float64 [], by the library of arrays[0]; NaN where an element is not finite.",
        example="x = torch.tensor([3.0, 4.0], device='cuda')\n"
        "assert cuda.global_norm([x]).item() == 5.0",
    )
    states = "momentum: a list like params, updated in place, or None."
    describe(
        sgd_step,
        first="params[0]",
        args=_LISTS.format(states=states),
        returns=_NORM,
        example=_EXAMPLE.format(state="", call="sgd_step([w], [grad], None, lr=0.5, max_norm=1.0)"),
    )
    states = "square_avg, momentum, grad_avg: lists like params, updated in place; the latter two\n"
    states += "            may be None."
    describe(
        rmsprop_step,
        first="params[0]",
        args=_LISTS.format(states=states),
        returns=_NORM,
        example=_EXAMPLE.format(
            state="v = torch.zeros_like(w)\n",
            call="rmsprop_step([w], [grad], [v], None, lr=0.1)",
        ),
    )
    states = "exp_avg, exp_avg_sq, max_exp_avg_sq: lists like params, updated in place; the last\n"
    states += "            may be None."
    describe(
        adam_step,
        first="params[0]",
        args=_LISTS.format(states=_COUNTED.format(states=states)),
        returns=_NORM,
        example=_EXAMPLE.format(
            state="m, v = torch.zeros_like(w), torch.zeros_like(w)\n"
            "t = torch.zeros((), dtype=torch.int64, device='cuda')\n",
            call="adam_step([w], [grad], [m], [v], step=t, lr=0.1)",
        ),
    )


_describe()
