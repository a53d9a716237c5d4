"""conv1d and conv2d as functions of JAX arrays; part of `tbptt_fast.jax`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import jax

from .. import _native
from .._types import Activation, Layout
from . import _targets
from ._check import as_arrays, check_shapes
from ._primitives import Shape, Values, run_layer

__all__ = ["conv1d", "conv2d"]

Array: TypeAlias = jax.Array
Extent: TypeAlias = int | Sequence[int]
Sides: TypeAlias = Sequence[Sequence[int]]


@dataclass(frozen=True)
class ConvolutionCall:
    """One convolution; see `_primitives.Call`. The native module reads and checks its options."""

    op: str
    inputs: tuple[str, ...]
    options: tuple[Any, ...]  # stride, padding, dilation, groups, layout, activation
    constants: ClassVar[tuple[str, ...]] = ()
    weights: ClassVar[tuple[str, ...]] = ("w", "b")

    def _read(self, shapes: Values) -> tuple[tuple[int, ...], Shape, int]:
        """The numbers of the convolution, the shape of its result, and its activation."""
        rank = len(shapes["x"]) - 2
        found: tuple[tuple[int, ...], Shape, int] = _native.jax_convolution(
            self.op, rank, shapes["x"], shapes["w"], *self.options
        )
        return found

    def outputs(self, shapes: Values) -> list[Shape]:
        return [self._read(shapes)[1]]

    def saved(self, shapes: Values) -> Shape:
        return (0,)

    def batch_axis(self, name: str) -> int:
        return 0

    def output_batch_axis(self, index: int) -> int:
        return 0

    def forward(self, arrays: Values, keep: bool) -> list[Any]:
        numbers, y, activation = self._read({name: a.shape for name, a in arrays.items()})
        (out,) = _targets.call(
            "convolution_forward",
            [arrays["x"], arrays["w"], arrays.get("b")],
            [y],
            shape=numbers,
            activation=activation,
        )
        return [out, jax.numpy.zeros((0,), out.dtype)]

    def backward(
        self, grads: Sequence[Any], outs: Sequence[Any], saved: Any, arrays: Values, needs: set[str]
    ) -> Values:
        shapes = {name: array.shape for name, array in arrays.items()}
        numbers, _, activation = self._read(shapes)
        found = _targets.call(
            "convolution_backward",
            [grads[0], arrays["x"], arrays["w"], outs[0] if activation else None],
            [shapes[name] if name in needs else (0,) for name in ("x", "w", "b")],
            shape=numbers,
            activation=activation,
        )
        return dict(zip(("x", "w", "b"), found, strict=True))


def _hashable(option: Any) -> Any:
    return tuple(map(_hashable, option)) if isinstance(option, (tuple, list)) else option


def _run(op: str, rank: int, x: Any, w: Any, b: Any, options: tuple[Any, ...]) -> Array:
    arrays = as_arrays(op, {"x": x, "w": w, "b": b}, required=("x", "w"))
    call = ConvolutionCall(op, tuple(arrays), _hashable(options))
    _targets.check_available(op)
    check_shapes(op, arrays, {"x": rank + 2, "w": rank + 2}, lambda s: _expected(call, s))
    (y,) = run_layer(call, list(arrays.values()))
    return y


def _expected(call: ConvolutionCall, shapes: dict[str, Shape]) -> dict[str, Shape]:
    call.outputs(shapes)  # which reads the options, also where their hash is that of others
    return {"b": shapes["w"][:1]}


def conv2d(
    x: Array,
    w: Array,
    b: Array | None = None,
    stride: Extent = 1,
    padding: Extent | Sides | Literal["same", "valid"] = 0,
    dilation: Extent = 1,
    groups: int = 1,
    *,
    activation: Activation = None,
    layout: Layout = "NCHW",
) -> Array:
    """`tbptt_fast.conv2d` as a differentiable function of JAX arrays.

    Args:
        x: [N, I, Y, X], float32 or float64; with layout "NHWC" [N, Y, X, I].
        w: [O, I/groups, kY, kX] in either layout.
        b: [O] or None.
        stride, dilation: one integer, or (vertical, horizontal).
        padding: zeros around the images: one integer, (vertical, horizontal), a pair of sides
            ((top, bottom), (left, right)), "valid" or "same".
        activation: None, "relu", "tanh" or "sigmoid", applied in the same pass.

    Returns:
        [N, O, Y', X'], or with "NHWC" [N, Y', X', O].

    Raises:
        TypeError, ValueError: a wrong dtype; a wrong shape or value.
        NotImplementedError: a second derivative or a forward-mode one is asked for.
        RuntimeError: the native module was built without its functions for JAX.

    Source: see `tbptt_fast.conv2d`.

    >>> import jax, jax.numpy as jnp
    >>> def total(w):
    ...     return conv2d(jnp.ones((1, 1, 3, 3)), w, padding=1).sum()
    >>> jax.grad(total)(jnp.ones((1, 1, 3, 3)))[0, 0, 0].tolist()
    [4.0, 6.0, 4.0]
    """
    return _run("conv2d", 2, x, w, b, (stride, padding, dilation, groups, layout, activation))


def conv1d(
    x: Array,
    w: Array,
    b: Array | None = None,
    stride: Extent = 1,
    padding: Extent | Sides | Literal["same", "valid", "causal"] = 0,
    dilation: Extent = 1,
    groups: int = 1,
    *,
    activation: Activation = None,
    layout: Literal["NCL", "NLC"] = "NCL",
) -> Array:
    """`tbptt_fast.conv1d` as a differentiable function of JAX arrays.

    Args:
        x: [N, I, X]; with layout "NLC" [N, X, I].
        w: [O, I/groups, kX].
        padding: as in `conv2d`, or "causal": zeros before the sequence alone.

    The other arguments and errors are those of `conv2d`.

    Returns:
        [N, O, X'], or with "NLC" [N, X', O].

    >>> import jax.numpy as jnp
    >>> conv1d(jnp.ones((1, 1, 4)), jnp.ones((1, 1, 2)), padding="causal").tolist()
    [[[1.0, 2.0, 2.0, 2.0]]]
    """
    return _run("conv1d", 1, x, w, b, (stride, padding, dilation, groups, layout, activation))
