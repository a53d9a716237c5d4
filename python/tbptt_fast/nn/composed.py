"""Modules that run another one many times: over the steps of a sequence, or on its own output."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from .._types import Array
from .module import Gradients, Module, Tape, check_sizes


class _Repeated(Module):
    """One child without a state, whose parameters are named "module.…"."""

    def __init__(self, module: Module) -> None:
        super().__init__()
        if not isinstance(module, Module):
            kind = type(self).__name__
            raise TypeError(f"{kind}: module: expected a Module, got {type(module).__name__}")
        self._children["module"] = module

    @property
    def module(self) -> Module:
        return self._children["module"]

    def _run(self, x: Array, keep: bool) -> tuple[Array, Tape | None]:
        y, state, tape = self.module._apply(x, None, None, keep)
        if has_state(state):
            raise ValueError(
                f"{type(self).__name__}: module: expected one without a state, got {self.module!r}"
            )
        return y, tape

    def _named(self, params: dict[str, Array]) -> dict[str, Array]:
        return {f"module.{name}": gradient for name, gradient in params.items()}


def has_state(state: Any) -> bool:
    """Whether a state is more than None and tuples of it, which is what chains return."""
    if isinstance(state, tuple):
        return any(has_state(entry) for entry in state)
    return state is not None


class TimeDistributed(_Repeated):
    """Runs a module over all steps at once: time is folded into the batch.

    x [T, B, ...] reaches the module as [T·B, ...], and its output [T·B, ...] comes back as
    [T, B, ...]: a convolutional encoder before a recurrent layer, or a head after it, is one call.

    Raises TypeError for a child that is no Module, ValueError for an x of fewer than two dimensions
    or a child with a state. Source: the layer of this name in Keras.

    >>> from tbptt_fast.nn import LSTM, Conv2d, Flatten, Sequential
    >>> encoder = Sequential(Conv2d(1, 4, 3, stride=2, padding=1, seed=0), Flatten())
    >>> model = Sequential(TimeDistributed(encoder), LSTM(64, 8, seed=1))
    >>> y, _, tape = model.forward(np.ones((5, 2, 1, 8, 8), np.float32))
    >>> y.shape, model.backward(tape, np.ones_like(y)).x.shape
    ((5, 2, 8), (5, 2, 1, 8, 8))
    """

    def _apply(
        self, x: Array, state: Any, is_init: Array | None, keep: bool
    ) -> tuple[Array, Any, Tape | None]:
        self._check_stateless(state)
        if x.ndim < 2:
            shape = list(x.shape)
            raise ValueError(f"TimeDistributed: x: expected [T, B, ...], got shape {shape}")
        y, tape = self._run(fold(x), keep)
        return y.reshape(*x.shape[:2], *y.shape[1:]), None, Tape(self, (tape,)) if keep else None

    def backward(
        self,
        tape: Tape,
        grad_y: Array | None,
        *,
        grad_state: Any = None,
        truncation: ops.Truncation = None,
        carry_scale: Array | None = None,
        needs_x: bool = True,
    ) -> Gradients:
        (inner,) = self._saved(tape)
        self._check_stateless(grad_state, "grad_state")
        grad = self._gradient(grad_y)
        grads = self.module.backward(inner, fold(grad), needs_x=needs_x)
        grad_x = None if grads.x is None else grads.x.reshape(*grad.shape[:2], *grads.x.shape[1:])
        return Gradients(grad_x, None, self._named(grads.params))

    def __repr__(self) -> str:
        return f"TimeDistributed({self.module!r})"


def fold(x: Array) -> Array:
    """[T, B, ...] as [T·B, ...]."""
    folded: Array = x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
    return folded


class Iterated(_Repeated):
    """Applies a module to its own output, `steps` times: y = f(f(… f(x))).

    The backward pass goes through the last `truncation` iterations only, as truncated
    backpropagation through time does: what entered them counts as a constant, and only they are
    kept in memory. With fewer than `steps`, the gradient by x is zero. Parameters are shared by all
    iterations, and their gradients are summed.

    Raises TypeError for a child that is no Module, ValueError for steps, truncation, a child with a
    state or one that changes the shape. Source: Williams & Peng (1990), "An efficient
    gradient-based algorithm for on-line training of recurrent network trajectories".

    >>> from tbptt_fast.nn import Linear
    >>> model = Iterated(Linear(4, 4, activation="tanh", seed=0), steps=10, truncation=5)
    >>> y, _, tape = model.forward(np.ones((3, 4), np.float32))
    >>> grads = model.backward(tape, np.ones_like(y))
    >>> y.shape, grads.params["module.weight"].shape, bool(grads.x.any())
    ((3, 4), (4, 4), False)
    """

    def __init__(self, module: Module, steps: int, truncation: int | None = None) -> None:
        super().__init__(module)
        check_sizes("Iterated", steps=steps, truncation=steps if truncation is None else truncation)
        self.steps, self.truncation = steps, truncation

    def _apply(
        self, x: Array, state: Any, is_init: Array | None, keep: bool
    ) -> tuple[Array, Any, Tape | None]:
        self._check_stateless(state)
        reach = self.steps if self.truncation is None else min(self.truncation, self.steps)
        y, tapes = x, []
        for step in range(self.steps):
            before = y.shape
            y, tape = self._run(y, keep)
            if y.shape != before:
                raise ValueError(
                    f"Iterated: module: expected one that keeps the shape {list(before)}, "
                    f"got {list(y.shape)}"
                )
            if step >= self.steps - reach:
                tapes.append(tape)
        return y, None, Tape(self, tapes) if keep else None

    def backward(
        self,
        tape: Tape,
        grad_y: Array | None,
        *,
        grad_state: Any = None,
        truncation: ops.Truncation = None,
        carry_scale: Array | None = None,
        needs_x: bool = True,
    ) -> Gradients:
        tapes = self._saved(tape)
        self._check_stateless(grad_state, "grad_state")
        grad = self._gradient(grad_y)
        reaches_x = len(tapes) == self.steps
        params: dict[str, Array] = {}
        for index in reversed(range(len(tapes))):
            grads = self.module.backward(tapes[index], grad, needs_x=index > 0 or reaches_x)
            for name, gradient in grads.params.items():
                params[name] = params[name] + gradient if name in params else gradient
            if grads.x is not None:
                grad = grads.x
        grad_x = (grad if reaches_x else np.zeros_like(grad)) if needs_x else None
        return Gradients(grad_x, None, self._named(params))

    def __repr__(self) -> str:
        return f"Iterated({self.module!r}, {self.steps}, truncation={self.truncation})"
