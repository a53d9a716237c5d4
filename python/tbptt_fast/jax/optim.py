"""Updates of all parameters by one native call, inside `jit`; part of `tbptt_fast.jax`.

They are pure functions of lists of arrays. Where the caller donates parameters and states, or where
XLA knows that nobody reads them again, they are updated in place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
from jax import numpy as jnp

from . import _targets

__all__ = ["AdamStep", "SgdStep", "adam_step", "sgd_step"]

Array: TypeAlias = jax.Array
Scalar: TypeAlias = float | Array


class SgdStep(NamedTuple):
    """What `sgd_step` returns."""

    params: list[Array]
    momentum: list[Array] | None
    norm: Array  # of all gradients, before clipping by it; NaN where one is not finite


class AdamStep(NamedTuple):
    """What `adam_step` returns."""

    params: list[Array]
    exp_avg: list[Array]
    exp_avg_sq: list[Array]
    max_exp_avg_sq: list[Array] | None
    norm: Array  # of all gradients, before clipping by it; NaN where one is not finite


def _update(
    op: str, lists: Sequence[Sequence[Any]], scalars: Sequence[Scalar], **options: Any
) -> tuple[list[list[Array]], Array]:
    """lists: parameters, gradients, and states; returns new ones without the gradients."""
    _targets.check_available(op)
    params, states = [jnp.asarray(param) for param in lists[0]], lists[2:]
    if not params:
        raise ValueError(f"{op}: params: expected at least one array")
    names = ("params", "grads", "states")
    dtype = params[0].dtype
    if dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"{op}: params[0]: expected float32 or float64, got {dtype}")
    arrays: list[Any] = []
    for i, given in enumerate(lists):
        name = names[min(i, 2)]
        if len(given) != len(params):
            raise ValueError(f"{op}: {name}: expected {len(params)} arrays, got {len(given)}")
        for n, (value, like) in enumerate(zip(given, params, strict=True)):
            array = jnp.asarray(value)
            if array.shape != like.shape:
                raise ValueError(
                    f"{op}: {name}[{n}]: expected shape {[*like.shape]}, got {[*array.shape]}"
                )
            if array.dtype != dtype:
                raise TypeError(f"{op}: {name}[{n}]: expected {dtype}, got {array.dtype}")
            arrays.append(array)
    count = len(params)
    changed = [*range(count), *range(2 * count, (2 + len(states)) * count)]
    *found, norm = _targets.call(
        op,
        [*arrays, jnp.stack([jnp.asarray(value, dtype) for value in scalars])],
        [*(arrays[i].shape for i in changed), (1,)],
        aliases={source: target for target, source in enumerate(changed)},
        sizes=tuple(array.size for array in arrays[:count]),
        **options,
    )
    return [found[i : i + count] for i in range(0, len(found), count)], norm[0]


def _positive(op: str, name: str, value: float | None) -> float:
    if value is None:
        return math.inf
    if not 0 < value < math.inf:
        raise ValueError(f"{op}: {name}: expected None or a finite number > 0, got {value}")
    return float(value)


def _within(op: str, name: str, value: float, least: float, end: float) -> float:
    if not (least <= value < end and math.isfinite(value)):
        raise ValueError(f"{op}: {name}: expected a number in [{least}, {end}), got {value}")
    return float(value)


def sgd_step(
    params: Sequence[Array],
    grads: Sequence[Array],
    momentum: Sequence[Array] | None,
    lr: Scalar,
    *,
    mu: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    velocity: bool = False,
    weight_decay: float = 0.0,
    max_norm: float | None = None,
    clip_value: float | None = None,
    norm_eps: float = 1e-6,
) -> SgdStep:
    """`tbptt_fast.sgd_step` as a function of JAX arrays.

    Args:
        params, grads, momentum: lists of arrays of one dtype, of equal shapes; the momentum is
            needed with mu > 0 alone, and None without.
        lr: the learning rate, which may be traced.
        mu, dampening, nesterov, weight_decay: as in torch.optim.SGD; mu is the momentum's factor.
        velocity: momentum that holds the rates of its steps, see `tbptt_fast.sgd_step`.
        max_norm: clip gradients by their global norm to this.
        clip_value: first clip every value to at most this.
        norm_eps: added to the norm that is divided by, in PyTorch 1e-6, in Keras 0.

    Returns:
        `SgdStep`. Where a gradient is not finite nothing changes, and the norm is NaN.

    Raises:
        TypeError, ValueError: a wrong dtype; a wrong shape or value.
        RuntimeError: the native module was built without its functions for JAX.

    Source: see `tbptt_fast.sgd_step`.

    >>> import jax.numpy as jnp
    >>> step = sgd_step([jnp.ones(2)], [jnp.array([3.0, 4.0])], None, 0.5, max_norm=10.0)
    >>> float(step.norm), step.params[0].tolist()
    (5.0, [-0.5, -1.0])
    """
    op = "sgd_step"
    mu = _within(op, "mu", mu, 0.0, math.inf)
    if nesterov and mu == 0:
        raise ValueError(f"{op}: nesterov: expected mu > 0 with it, got mu = 0")
    if mu > 0 and momentum is None:
        raise ValueError(f"{op}: momentum: expected a list of arrays with mu > 0, got None")
    states = [momentum] if momentum is not None and mu > 0 else []
    (new, *moved), norm = _update(
        op,
        [params, grads, *states],
        (lr, 1.0, 0.0),
        mu=mu,
        dampening=_within(op, "dampening", dampening, -math.inf, math.inf),
        nesterov=bool(nesterov),
        velocity=bool(velocity),
        weight_decay=_within(op, "weight_decay", weight_decay, 0.0, math.inf),
        max_norm=_positive(op, "max_norm", max_norm),
        clip_value=_positive(op, "clip_value", clip_value),
        norm_eps=_within(op, "norm_eps", norm_eps, 0.0, math.inf),
    )
    unused = None if momentum is None else list(momentum)
    return SgdStep(new, moved[0] if moved else unused, norm)


def adam_step(
    params: Sequence[Array],
    grads: Sequence[Array],
    exp_avg: Sequence[Array],
    exp_avg_sq: Sequence[Array],
    max_exp_avg_sq: Sequence[Array] | None,
    step: Scalar,
    lr: Scalar,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    max_norm: float | None = None,
    clip_value: float | None = None,
    norm_eps: float = 1e-6,
) -> AdamStep:
    """`tbptt_fast.adam_step` as a function of JAX arrays.

    Args:
        params, grads, exp_avg, exp_avg_sq: lists of arrays of one dtype, of equal shapes.
        max_exp_avg_sq: the same for amsgrad, or None.
        step: the number of this update, from 1, which may be traced.
        lr: the learning rate, which may be traced.
        beta1, beta2, weight_decay: as in torch.optim.Adam; decoupled: as in AdamW.
        eps: the same, which may be traced.
        max_norm: clip gradients by their global norm to this.
        clip_value: first clip every value to at most this.
        norm_eps: added to the norm that is divided by, in PyTorch 1e-6, in Keras 0.

    Returns:
        `AdamStep`. Where a gradient is not finite nothing changes, and the norm is NaN.

    Raises:
        TypeError, ValueError: a wrong dtype; a wrong shape or value.
        RuntimeError: the native module was built without its functions for JAX.

    Source: see `tbptt_fast.adam_step`.

    >>> import jax.numpy as jnp
    >>> zeros = [jnp.zeros(1)]
    >>> found = adam_step([jnp.ones(1)], [jnp.full(1, 0.5)], zeros, zeros, None, 1, 0.25)
    >>> round(float(found.params[0][0]), 4)
    0.75
    """
    op = "adam_step"
    amsgrad = max_exp_avg_sq is not None
    states = [exp_avg, exp_avg_sq, *([max_exp_avg_sq] if max_exp_avg_sq is not None else [])]
    if not isinstance(eps, jax.Array):
        eps = _within(op, "eps", eps, 0.0, math.inf)
    (new, first, second, *third), norm = _update(
        op,
        [params, grads, *states],
        (lr, step, eps),
        amsgrad=amsgrad,
        beta1=_within(op, "beta1", beta1, 0.0, 1.0),
        beta2=_within(op, "beta2", beta2, 0.0, 1.0),
        weight_decay=_within(op, "weight_decay", weight_decay, 0.0, math.inf),
        decoupled=bool(decoupled),
        max_norm=_positive(op, "max_norm", max_norm),
        clip_value=_positive(op, "clip_value", clip_value),
        norm_eps=_within(op, "norm_eps", norm_eps, 0.0, math.inf),
    )
    return AdamStep(new, first, second, third[0] if third else None, norm)
