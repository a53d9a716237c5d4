"""Fused updates of all parameters of a network in one call; part of `tbptt_fast.ops`.

`params` and the optimizer's own arrays are lists of NumPy arrays that are updated in place: all of
one dtype, writable, C-contiguous, none overlapping another. `grads` are arrays of the same shapes
in any layout. Everything is checked before anything is changed.

Gradients are clipped first by value, then by their global norm over all arrays, which is summed in
double precision. A gradient that is not finite before clipping raises FloatingPointError, or with
non_finite="skip" leaves everything as it is.

Parameters of several dtypes, or with several options, take several calls: `global_norm` of all
gradients first, then each call with `norm=`, which neither computes a norm nor looks for gradients
that are not finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, SupportsIndex, TypeAlias

from . import _native
from ._types import Array, ArrayLike

NonFinite: TypeAlias = Literal["raise", "skip"]


class StepResult(NamedTuple):
    """The gradients' global norm before clipping by norm, and whether the update was made.

    The norm is NaN when a gradient is not finite.
    """

    norm: float
    applied: bool


def global_norm(arrays: Sequence[ArrayLike], *, clip_value: float | None = None) -> float:
    """Return √Σx² over all elements of all arrays, summed in double precision.

    Args:
        arrays: a list of arrays of any shapes and layouts, each float32 or float64.
        clip_value: largest magnitude of an element, larger ones are taken to have it.

    Returns:
        The norm, the same bits for every number of threads and those that a step over the same
        gradients computes; NaN when an element is not finite; 0 without elements.

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`.

    Source: torch.nn.utils.clip_grad_norm_; Pascanu et al. (2013), "On the difficulty of training
    recurrent neural networks".

    >>> import numpy as np
    >>> global_norm([np.array([3.0], np.float32), np.array([[4.0]])])
    5.0
    """
    return _native.global_norm(arrays, clip_value)


def sgd_step(
    params: Sequence[Array],
    grads: Sequence[ArrayLike],
    momentum: Sequence[Array] | None,
    *,
    lr: float,
    mu: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    velocity: bool = False,
    weight_decay: float = 0.0,
    max_norm: float | None = None,
    clip_value: float | None = None,
    non_finite: NonFinite = "raise",
    maximize: bool = False,
    norm: float | None = None,
) -> StepResult:
    """Stochastic gradient descent: m = mu·m + g; p -= lr·m, with weight_decay·p added to g.

    Args:
        params, grads: lists of arrays; `params` is updated in place.
        momentum: m, zeros before the first step, updated in place; None or untouched with mu = 0.
        lr, mu, weight_decay: finite and >= 0.
        dampening: m = mu·m + (1 - dampening)·g instead, finite; PyTorch's first step has none.
        nesterov: p -= lr·(g + mu·m) instead; needs mu > 0.
        velocity: m = mu·m - lr·g; p += m instead, with nesterov p += mu·m - lr·g. A rate that
            changes leaves m as it is, as in Keras and in Sutskever et al.
        max_norm: largest global norm; the factor is min(1, max_norm / (norm + 1e-6)).
        clip_value: largest magnitude of an element, before the norm is taken.
        non_finite: "raise" or "skip".
        maximize: move along the gradient, not against it.
        norm: the norm to clip by, of `global_norm`, instead of that of `grads`. NaN stands for a
            gradient that is not finite.

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`; an option is out of range.
        FloatingPointError: a gradient is not finite, and non_finite is "raise".

    Source: torch.optim.SGD; Sutskever et al. (2013), "On the importance of initialization and
    momentum in deep learning".

    >>> import numpy as np
    >>> w = np.ones(2)
    >>> sgd_step([w], [np.array([3.0, 4.0])], None, lr=0.5, max_norm=1.0)
    StepResult(norm=5.0, applied=True)
    >>> w.round(3).tolist()
    [0.7, 0.6]
    """
    return StepResult(
        *_native.sgd_step(
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
    )


def rmsprop_step(
    params: Sequence[Array],
    grads: Sequence[ArrayLike],
    square_avg: Sequence[Array],
    momentum: Sequence[Array] | None,
    grad_avg: Sequence[Array] | None = None,
    *,
    lr: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    mu: float = 0.0,
    weight_decay: float = 0.0,
    max_norm: float | None = None,
    clip_value: float | None = None,
    non_finite: NonFinite = "raise",
    maximize: bool = False,
    norm: float | None = None,
) -> StepResult:
    """RMSprop: v = alpha·v + (1 - alpha)·g²; p -= lr·g / (√v + eps), or with momentum.

    Args:
        params, grads: lists of arrays; `params` is updated in place.
        square_avg: v, zeros before the first step, updated in place.
        momentum: m of m = mu·m + g / (√v + eps); p -= lr·m; None or untouched with mu = 0.
        grad_avg: a of the centered variant, zeros before the first step, updated in place:
            a = alpha·a + (1 - alpha)·g, and the variance v - a², at least 0, takes the place of v.
        alpha: in [0, 1).
        eps: > 0.
        lr, mu, weight_decay, max_norm, clip_value, non_finite, maximize, norm: as in `sgd_step`.

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`; an option is out of range.
        FloatingPointError: a gradient is not finite, and non_finite is "raise".

    Source: torch.optim.RMSprop; Tieleman & Hinton (2012), Coursera lecture 6.5; Graves (2013),
    arXiv:1308.0850, equation 38 (centered).

    >>> import numpy as np
    >>> w = np.ones(1)
    >>> rmsprop_step([w], [np.array([3.0])], [np.zeros(1)], None, lr=0.1, alpha=0.75).applied
    True
    >>> w.round(6).tolist()
    [0.8]
    """
    return StepResult(
        *_native.rmsprop_step(
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
    )


def adam_step(
    params: Sequence[Array],
    grads: Sequence[ArrayLike],
    exp_avg: Sequence[Array],
    exp_avg_sq: Sequence[Array],
    max_exp_avg_sq: Sequence[Array] | None = None,
    *,
    step: SupportsIndex,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    max_norm: float | None = None,
    clip_value: float | None = None,
    non_finite: NonFinite = "raise",
    maximize: bool = False,
    norm: float | None = None,
) -> StepResult:
    """Adam and, with decoupled weight decay, AdamW.

    m = beta1·m + (1 - beta1)·g; v = beta2·v + (1 - beta2)·g²;
    p -= lr / (1 - beta1ᵗ) · m / (√(v / (1 - beta2ᵗ)) + eps)

    Args:
        params, grads: lists of arrays; `params` is updated in place.
        exp_avg, exp_avg_sq: m and v, zeros before the first step, updated in place.
        max_exp_avg_sq: the largest v so far, zeros before the first step, updated in place, takes
            the place of v in the denominator (AMSGrad); None for Adam.
        step: t, 1 for the first step.
        beta1, beta2: in [0, 1).
        eps: > 0.
        decoupled: multiply p by 1 - lr·weight_decay instead of adding weight_decay·p to g.
        lr, weight_decay, max_norm, clip_value, non_finite, maximize, norm: as in `sgd_step`.

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`; an option is out of range.
        FloatingPointError: a gradient is not finite, and non_finite is "raise".

    Source: torch.optim.Adam, AdamW; Kingma & Ba (2015), arXiv:1412.6980, algorithm 1; Loshchilov &
    Hutter (2019), arXiv:1711.05101, algorithm 2; Reddi et al. (2018), "On the convergence of Adam
    and beyond" (AMSGrad).

    >>> import numpy as np
    >>> w, m, v = np.ones(2), np.zeros(2), np.zeros(2)
    >>> adam_step([w], [np.array([0.3, -0.4])], [m], [v], step=1, lr=0.1)
    StepResult(norm=0.5, applied=True)
    >>> w.round(6).tolist()
    [0.9, 1.1]
    """
    return StepResult(
        *_native.adam_step(
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
    )
