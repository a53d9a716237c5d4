"""PyTorch's SGD, RMSprop, Adam and AdamW with clipping and update in one fused native pass.

Each class is a subclass of that of torch.optim with the same name: arguments, parameter groups,
state and state dicts are torch's own, so either loads what the other has saved and goes on with
the same numbers, up to rounding. Two keywords are new:

- `max_norm`: clip by the global norm over all parameters of all groups, as
  torch.nn.utils.clip_grad_norm_ does: the factor is min(1, max_norm / (norm + 1e-6)). The norm
  before clipping is `grad_norm` afterwards, and `.grad` itself is left as it is.
- `non_finite`: what a gradient with a NaN or an infinity does, clipping or not: "raise" a
  FloatingPointError, or "skip" the step. Nothing has changed then, and `grad_norm` is NaN. None
  stands for "raise" on the CPU and for "skip" on GPUs, where to raise means to wait for the device
  in every step.

Parameters are dense, float32 or float64, in CPU memory or on GPUs where `tbptt_fast.cuda` runs;
channels-last weights are dense, too. The number of threads is `tbptt_fast.set_num_threads`', and
the bits do not depend on it. `foreach` and `fused` choose between kernels of torch; here they are
accepted, kept, and change nothing.

On a GPU a step puts its work on the current stream and waits for nothing: `grad_norm` is a tensor
there, and so is the number of the step, as torch's own fused optimizers keep it. A step that is
captured in a graph counts on when it is replayed, with or without `capturable`; the learning rate
and the other options stay as they were. One step is waited for: SGD's first with dampening, whose
momentum is not damped.

Raised by all classes, at construction, by `add_param_group` and `load_state_dict` as by `step`:
    TypeError: a parameter, gradient or state of another device, layout or dtype.
    ValueError: `differentiable` or, on the CPU, `capturable`, for which there is no kernel; an
        option out of the range of the native op (eps > 0, alpha < 1) or on a GPU; a parameter with
        gaps between its elements.
"""

from __future__ import annotations

from typing import Any

import torch

from ._fused import Fused, number, option
from ._views import Batch, Group, ParameterView

__all__ = ["SGD", "Adam", "AdamW", "RMSprop"]


class SGD(Fused, torch.optim.SGD):
    """Stochastic gradient descent with momentum, dampening, Nesterov's look-ahead and L2 decay.

    Arguments are torch.optim.SGD's, and the keywords max_norm and non_finite; for these and for
    what is raised see `tbptt_fast.torch.optim`.

    Source: torch.optim.SGD; Sutskever et al. (2013), "On the importance of initialization and
    momentum in deep learning".

    >>> import torch
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> w.grad = torch.tensor([3.0, 4.0])
    >>> optimizer = SGD([w], lr=0.5, max_norm=1.0)
    >>> optimizer.step()
    >>> optimizer.grad_norm, [round(x, 3) for x in w.tolist()]
    (5.0, [-0.3, -0.4])
    """

    _counts_steps = False

    def _state_names(self, group: Group) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def _stage(self, view: ParameterView, group: Group) -> int:
        return 0 if view.fresh and group["dampening"] else 1

    def _call(self, batch: Batch, max_norm: float | None, norm: Any) -> tuple[Any, bool]:
        group = batch.group
        return batch.call(
            "sgd_step",
            batch.params,
            batch.grads,
            batch.state(0),
            option(group, "lr"),
            option(group, "momentum"),
            # The first momentum is the gradient, undamped.
            0.0 if batch.stage == 0 else option(group, "dampening"),
            bool(group["nesterov"]),
            False,
            option(group, "weight_decay"),
            bool(group["maximize"]),
            max_norm,
            None,
            "skip",
            norm,
        )


class RMSprop(Fused, torch.optim.RMSprop):
    """Gradients divided by a running root mean square, centered or not, with optional momentum.

    Arguments are torch.optim.RMSprop's, and the keywords max_norm and non_finite; for these and
    for what is raised see `tbptt_fast.torch.optim`. The variance of the centered variant is kept
    from falling below zero by rounding, which gives a NaN in PyTorch.

    Source: torch.optim.RMSprop; Tieleman & Hinton (2012), Coursera lecture 6.5; Graves (2013),
    arXiv:1308.0850, equation 38.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.ones(1))
    >>> w.grad = torch.tensor([3.0])
    >>> RMSprop([w], lr=0.1, alpha=0.75).step()
    >>> round(w.item(), 4)
    0.8
    """

    def _state_names(self, group: Group) -> tuple[str, ...]:
        momentum = ("momentum_buffer",) if group["momentum"] else ()
        return ("square_avg", *momentum, *(("grad_avg",) if group["centered"] else ()))

    def _stage(self, view: ParameterView, group: Group) -> int:
        return 1

    def _call(self, batch: Batch, max_norm: float | None, norm: Any) -> tuple[Any, bool]:
        group = batch.group
        result = batch.call(
            "rmsprop_step",
            batch.params,
            batch.grads,
            batch.states[0],
            batch.states[1] if group["momentum"] else None,
            batch.states[-1] if group["centered"] else None,
            option(group, "lr"),
            option(group, "alpha"),
            option(group, "eps"),
            option(group, "momentum"),
            option(group, "weight_decay"),
            bool(group["maximize"]),
            max_norm,
            None,
            "skip",
            norm,
        )
        batch.count_steps(result[0])  # which this op does not look at
        return result


class _AdamStep(Fused):
    """The step of Adam and AdamW."""

    _decoupled = False

    def _state_names(self, group: Group) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))

    def _stage(self, view: ParameterView, group: Group) -> int:
        assert view.step is not None
        return 1 if view.on_gpu else int(view.step.item()) + 1

    def _call(self, batch: Batch, max_norm: float | None, norm: Any) -> tuple[Any, bool]:
        group = batch.group
        beta1, beta2 = group["betas"]
        return batch.call(
            "adam_step",
            batch.params,
            batch.grads,
            batch.states[0],
            batch.states[1],
            batch.state(2),
            batch.steps if batch.on_gpu else batch.stage,  # the former, as they count on
            option(group, "lr"),
            number(beta1, "betas"),
            number(beta2, "betas"),
            option(group, "eps"),
            option(group, "weight_decay"),
            # The option is younger than PyTorch 2.4.
            bool(group.get("decoupled_weight_decay", self._decoupled)),
            bool(group["maximize"]),
            max_norm,
            None,
            "skip",
            norm,
        )


class Adam(_AdamStep, torch.optim.Adam):
    """Adam and AMSGrad with bias correction; weight decay is added to the gradient.

    Arguments are torch.optim.Adam's, and the keywords max_norm and non_finite; for these and for
    what is raised see `tbptt_fast.torch.optim`.

    Source: torch.optim.Adam; Kingma & Ba (2015), arXiv:1412.6980, algorithm 1; Reddi et al.
    (2018), "On the convergence of Adam and beyond".

    >>> import torch
    >>> w = torch.nn.Parameter(torch.ones(2))
    >>> w.grad = torch.tensor([0.3, -0.4])
    >>> optimizer = Adam([w], lr=0.1)
    >>> optimizer.step()
    >>> round(optimizer.grad_norm, 6), [round(x, 4) for x in w.tolist()]
    (0.5, [0.9, 1.1])
    """


class AdamW(_AdamStep, torch.optim.AdamW):
    """Adam whose weight decay acts on the parameters themselves, not through the gradient.

    Arguments are torch.optim.AdamW's, and the keywords max_norm and non_finite; for these and for
    what is raised see `tbptt_fast.torch.optim`.

    Source: torch.optim.AdamW; Loshchilov & Hutter (2019), arXiv:1711.05101, algorithm 2.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.ones(2))
    >>> w.grad = torch.zeros(2)
    >>> AdamW([w], lr=0.1, weight_decay=0.5).step()
    >>> [round(x, 4) for x in w.tolist()]
    [0.95, 0.95]
    """

    _decoupled = True
