"""Keras's layers on TensorFlow, by `tf.numpy_function`; part of `tbptt_fast.keras`.

Arrays are shared with TensorFlow, not copied: `numpy_function` hands out its tensors' memory, and
takes over that of results. What the kernels need is Python: the layers run eagerly and in a
`tf.function`, but cannot be compiled by XLA or exported as a SavedModel.

The tape of the forward pass is one of its results, an array that TensorFlow owns: it is freed with
the gradient that holds it, whether that is computed or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from .. import _native
from .._options import Cell
from .._types import Activation, Array, Layout
from ._backend import Padding, Tensor

missing: str | None = None
supports_jit = False


def _call(
    run: Callable[..., Sequence[Array | None]], tensors: Sequence[Tensor], shapes: Sequence[Any]
) -> list[Tensor]:
    """Results of a function of arrays, of the first tensor's dtype and of static shapes."""
    types = [tensors[0].dtype] * len(shapes)
    found = tf.nest.flatten(tf.numpy_function(run, tensors, types, stateful=False))
    for tensor, shape in zip(found, shapes, strict=True):
        tensor.set_shape(shape)
    return list(found)


def _differentiable(
    op: str,
    tensors: Sequence[Tensor | None],
    forward: Callable[..., Sequence[Array]],
    shapes: Sequence[Any],
    backward: Callable[..., Sequence[Array | None]],
    *,
    constant: Tensor | None = None,
    returned: int,
    kept: Sequence[int] = (),
) -> tuple[Tensor, ...]:
    """`forward` as a function of tensors, whose gradient is `backward`.

    Args:
        op: its name, for errors.
        tensors: those with a gradient; None is handed on.
        forward: of the arrays of `tensors` and `constant`.
        shapes: of all results of `forward`, as far as they are known.
        backward: of the gradients by the results returned, then of the results kept, then of the
            arguments of `forward`; gradients by `tensors`.
        returned: how many results are returned.
        kept: which results `backward` needs.
    """
    here = [i for i, tensor in enumerate(tensors) if tensor is not None]
    behind = [] if constant is None else [constant]
    front = returned + len(kept)

    def arguments(arrays: Sequence[Array]) -> list[Array | None]:
        given: list[Array | None] = [None] * (len(tensors) + 1)
        for i, array in zip(here, arrays, strict=False):
            given[i] = array
        if behind:
            given[-1] = arrays[-1]
        return given

    def run_forward(*arrays: Array) -> Sequence[Array]:
        return forward(*arguments(arrays))

    def run_backward(*arrays: Array) -> list[Array | None]:
        found = backward(*arrays[:front], *arguments(arrays[front:]))
        return [found[i] for i in here]

    @tf.custom_gradient
    def differentiate(*given: Tensor) -> Any:
        def refuse(*_: Tensor) -> Any:
            raise RuntimeError(f"{op}: second derivatives are not available")

        by = [tensor.shape for tensor in given[front : front + len(here)]]
        return _call(run_backward, given, by), refuse

    @tf.custom_gradient
    def run(*given: Tensor) -> Any:
        found = _call(run_forward, [*given, *behind], shapes)

        def gradient(*grads: Tensor) -> Any:
            return differentiate(*grads, *(found[i] for i in kept), *given, *behind)

        return found[:returned], gradient

    return tuple(run(*(tf.convert_to_tensor(tensors[i]) for i in here)))  # of variables, too


def _state(arrays: Sequence[Array | None]) -> Any:
    return tuple(arrays) if len(arrays) == 2 else arrays[0]


def _list(state: Any) -> list[Array]:
    return list(state) if isinstance(state, tuple) else [state]


def recurrent(
    cell: Cell,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    is_init: Tensor | None,
    truncation: list[int] | None,
) -> tuple[Tensor, ...]:
    n = len(states)
    name = cell[:3] if cell.startswith("rnn") else cell
    options = (cell[4:],) if name == "rnn" else ()
    run = getattr(_native, f"{name}_forward")
    run_backward = getattr(_native, f"{name}_backward")

    def forward(x: Array, *rest: Any) -> Sequence[Array]:
        out, state, tape = run(x, _state(rest[:n]), *rest[n:-1], *options, rest[-1], True)
        return [out, *_list(state), tape.memory]

    def backward(grad_out: Array, *rest: Any) -> Sequence[Array | None]:
        by_states, (tape, x), rest = rest[:n], rest[n : n + 2], rest[n + 2 :]
        given, (w_ih, w_hh, b_ih, b_hh), is_init = _state(rest[:n]), rest[n:-1], rest[-1]
        biases = b_ih is not None, b_hh is not None
        restored = _native.restore_tape(cell, x, given, w_ih, w_hh, *biases, is_init, tape)
        found = run_backward(restored, grad_out, _state(by_states), truncation, None)
        return [found[0], *_list(found[1]), *found[2:]]

    size = states[0].shape[-1]
    last = [[x.shape[1], size]] * n
    shapes = [[x.shape[0], x.shape[1], size], *last, [None]]
    return _differentiable(
        cell,
        (x, *states, *weights),
        forward,
        shapes,
        backward,
        constant=is_init,
        returned=n + 1,
        kept=(n + 1,),
    )


def convlstm(
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    is_init: Tensor | None,
    truncation: list[int] | None,
    layout: Layout,
) -> tuple[Tensor, ...]:
    same = ((1, 1), layout, "auto")  # dilation, the order of channels, and how to convolve

    def forward(x: Array, h: Array, c: Array, *rest: Any) -> Sequence[Array]:
        w_ih, w_hh, b, is_init = rest
        out, state, tape = _native.convrecurrent_forward(
            "lstm", x, (h, c), w_ih, w_hh, b, None, None, is_init, *same, True, False
        )
        assert tape is not None
        return [out, *state, tape.memory]

    def backward(grad_out: Array, *rest: Any) -> Sequence[Array | None]:
        by_states, (out, tape, x), (h, c) = rest[:2], rest[2:5], rest[5:7]
        w_ih, w_hh, b, is_init = rest[7:]
        restored = _native.restore_conv_tape(
            "lstm", x, (h, c), w_ih, w_hh, b, None, None, is_init, *same, False, out, tape
        )
        found = _native.convrecurrent_backward(
            "lstm", restored, grad_out, tuple(by_states), truncation, None
        )
        return [found[0], *_list(found[1]), *found[2:5]]

    image = states[0].shape[1:]
    last = [[x.shape[1], *image]] * 2
    shapes = [[x.shape[0], x.shape[1], *image], *last, [None]]
    return _differentiable(
        "convlstm",
        (x, *states, *weights),
        forward,
        shapes,
        backward,
        constant=is_init,
        returned=3,
        kept=(0, 3),
    )


def convolution(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    stride: tuple[int, int],
    padding: Padding,
    dilation: tuple[int, int],
    groups: int,
    activation: Activation,
    layout: Layout,
) -> Tensor:
    options = (stride, padding, dilation, groups, activation, layout)
    kept = () if activation is None else (0,)
    needs = "xw" if b is None else "xwb"

    def forward(x: Array, w: Array, b: Array | None, _: None) -> Sequence[Array]:
        return [_native.conv2d(x, w, b, *options, "auto")]

    def backward(grad: Array, *rest: Any) -> Sequence[Array | None]:
        y, (x, w, *_) = rest[0] if kept else None, rest[len(kept) :]
        return _native.conv2d_backward(grad, x, w, y, *options, "auto", needs)

    first = 1 if layout == "NHWC" else 2
    windows = zip(x.shape[first : first + 2], w.shape[2:], stride, dilation, strict=True)
    if padding == "same":
        sizes = [None if n is None else -(-n // s) for n, _, s, _ in windows]
    else:
        sizes = [
            None if n is None else (n + sum(sides) - d * (k - 1) - 1) // s + 1
            for (n, k, s, d), sides in zip(windows, padding, strict=True)
        ]
    shape = [x.shape[0], *sizes]
    shape.insert(3 if layout == "NHWC" else 1, w.shape[0])
    tensors = (x, w, b)
    (y,) = _differentiable(
        "convolution", tensors, forward, [shape], backward, returned=1, kept=kept
    )
    return y
