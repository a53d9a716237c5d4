"""Modules without parameters and state: activations, and what makes vectors of images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import ops
from .._types import Array
from .module import Gradients, Module, Tape


class Stateless(Module):
    """Base of modules that are a function of x alone.

    A subclass implements `_value`, which returns y and what the backward pass needs, and
    `_gradient_of_x`, which takes both the gradient and that.
    """

    def _value(self, x: Array) -> tuple[Array, tuple[Any, ...]]:
        raise NotImplementedError(f"{type(self).__name__} does not implement _value")

    def _gradient_of_x(self, grad_y: Array, *saved: Any) -> Array:
        raise NotImplementedError(f"{type(self).__name__} does not implement _gradient_of_x")

    def _apply(
        self, x: Array, state: Any, is_init: Array | None, keep: bool
    ) -> tuple[Array, Any, Tape | None]:
        self._check_stateless(state)
        y, saved = self._value(x)
        return y, None, Tape(self, saved) if keep else None

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
        saved = self._saved(tape)
        self._check_stateless(grad_state, "grad_state")
        grad = self._gradient(grad_y)
        return Gradients(self._gradient_of_x(grad, *saved) if needs_x else None, None, {})

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class ReLU(Stateless):
    """Elementwise max(x, 0), with slope 0 at 0.

    >>> relu = ReLU()
    >>> y, _, tape = relu.forward(np.array([-1.0, 0.0, 2.0]))
    >>> y.tolist(), relu.backward(tape, np.ones(3)).x.tolist()
    ([0.0, 0.0, 2.0], [0.0, 0.0, 1.0])
    """

    def _value(self, x: Array) -> tuple[Array, tuple[Any, ...]]:
        y = ops.relu(x)
        return y, (y,)

    def _gradient_of_x(self, grad_y: Array, *saved: Any) -> Array:
        return ops.activation_backward(grad_y, saved[0], "relu")


class Tanh(Stateless):
    """Elementwise hyperbolic tangent.

    >>> tanh = Tanh()
    >>> y, _, tape = tanh.forward(np.zeros(2))
    >>> y.tolist(), tanh.backward(tape, np.ones(2)).x.tolist()
    ([0.0, 0.0], [1.0, 1.0])
    """

    def _value(self, x: Array) -> tuple[Array, tuple[Any, ...]]:
        y = ops.tanh(x)
        return y, (y,)

    def _gradient_of_x(self, grad_y: Array, *saved: Any) -> Array:
        return ops.activation_backward(grad_y, saved[0], "tanh")


class Sigmoid(Stateless):
    """Elementwise 1 / (1 + exp(-x)).

    >>> sigmoid = Sigmoid()
    >>> y, _, tape = sigmoid.forward(np.zeros(2))
    >>> y.tolist(), sigmoid.backward(tape, np.ones(2)).x.tolist()
    ([0.5, 0.5], [0.25, 0.25])
    """

    def _value(self, x: Array) -> tuple[Array, tuple[Any, ...]]:
        y = ops.sigmoid(x)
        return y, (y,)

    def _gradient_of_x(self, grad_y: Array, *saved: Any) -> Array:
        return ops.activation_backward(grad_y, saved[0], "sigmoid")


class Softmax(Stateless):
    """Shares exp(x) / Σ exp(x) along the last axis; with a loss, rather use its logits.

    >>> softmax = Softmax()
    >>> y, _, tape = softmax.forward(np.zeros((1, 4)))
    >>> y.tolist(), softmax.backward(tape, np.ones((1, 4))).x.tolist()
    ([[0.25, 0.25, 0.25, 0.25]], [[0.0, 0.0, 0.0, 0.0]])
    """

    def _value(self, x: Array) -> tuple[Array, tuple[Any, ...]]:
        y = ops.softmax(x)
        return y, (y,)

    def _gradient_of_x(self, grad_y: Array, *saved: Any) -> Array:
        return ops.softmax_backward(grad_y, saved[0])


class Flatten(Stateless):
    """Join the axes start_dim … end_dim into one; for [T, B, C, Y, X] start_dim is 2.

    The results are views of the arguments where these are contiguous. Raises TypeError unless
    both are integers, ValueError for an x without such axes. Source: torch.nn.Flatten.

    >>> flatten = Flatten()
    >>> y, _, tape = flatten.forward(np.zeros((2, 3, 4, 5)))
    >>> y.shape, flatten.backward(tape, y).x.shape
    ((2, 60), (2, 3, 4, 5))
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        for name, value in (("start_dim", start_dim), ("end_dim", end_dim)):
            if not isinstance(value, int | np.integer):
                raise TypeError(f"Flatten: {name}: expected an integer, got {value!r}")
        self.start_dim, self.end_dim = start_dim, end_dim

    def _value(self, x: Array) -> tuple[Array, tuple[Any, ...]]:
        if not isinstance(x, np.ndarray):
            raise TypeError(f"Flatten: x: expected an array, got {type(x).__name__}")
        first, last = (d + x.ndim if d < 0 else d for d in (self.start_dim, self.end_dim))
        if not 0 <= first <= last < x.ndim:
            raise ValueError(
                f"Flatten: x: expected axes {self.start_dim} to {self.end_dim}, "
                f"got shape {list(x.shape)}"
            )
        joined = math.prod(x.shape[first : last + 1])
        y = x.reshape(*x.shape[:first], joined, *x.shape[last + 1 :])
        return y, (x.shape, y.shape)

    def _gradient_of_x(self, grad_y: Array, *saved: Any) -> Array:
        shape, expected = saved
        if grad_y.shape != expected:
            raise ValueError(
                f"Flatten.backward: grad_y: expected shape {list(expected)}, "
                f"got {list(grad_y.shape)}"
            )
        grad_x: Array = grad_y.reshape(shape)
        return grad_x

    def __repr__(self) -> str:
        return f"Flatten({self.start_dim}, {self.end_dim})"
