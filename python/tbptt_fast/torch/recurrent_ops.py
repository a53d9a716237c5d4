"""rnn, gru and lstm as PyTorch operators; part of `tbptt_fast.torch`.

An operator `tbptt_fast::lstm` and its gradient `tbptt_fast::lstm_backward` for every cell. The
tape of the forward pass is a tensor among the results, so that compilers, checkpointing and hooks
on saved tensors treat it like any other. Plain eager calls skip the dispatcher: the same kernels
behind an `autograd.Function`.

On a GPU the output is part of what the backward pass reads, and is saved beside the tape. float32
is computed in TF32 where PyTorch's own recurrent layers would (`torch.backends.cudnn.allow_tf32`,
or `torch.backends.cudnn.rnn.fp32_precision`), which is the default of both. bfloat16 has kernels on
GPUs from compute capability 8.0 on, where autocast to it uses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _native
from .._options import Cell
from ..cuda import _module
from ..cuda._places import place_of
from ._bridge import (
    autocast_dtype,
    cuda_precision,
    define,
    is_plain,
    needs_grad,
    refuse_second_derivative,
    to_arrays,
    to_tensor,
)

CELLS: tuple[Cell, ...] = ("rnn_tanh", "rnn_relu", "gru", "lstm")
TAPE_VALUES = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 5, "lstm": 6}  # per step, row and unit
CUDA_TAPE_VALUES = {"rnn_tanh": 0, "rnn_relu": 0, "gru": 4, "lstm": 5}  # beside the output

_FORWARD = (
    "(Tensor x, Tensor? h, {c}Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, "
    "Tensor? is_init, Tensor? carry_scale, int[]? truncation, bool keep)"
    " -> (Tensor out, Tensor h_n, {c_n}Tensor tape)"
)
_BACKWARD = (
    "(Tensor? grad_out, Tensor? grad_h, {grad_c}Tensor tape, Tensor x, Tensor? h, {c}Tensor w_ih, "
    "Tensor w_hh, Tensor? is_init, Tensor? carry_scale, int[]? truncation, bool[] biases, "
    "Tensor? out=None)"
    " -> (Tensor x, Tensor h, {c_n}Tensor w_ih, Tensor w_hh, Tensor b_ih, Tensor b_hh)"
)


def pair_states(cell: Cell, states: Sequence[Any]) -> Any:
    """An LSTM's pair (h, c), or the one state of other cells."""
    return tuple(states) if cell == "lstm" else states[0]


class Layer:
    """One cell's operators, written for a list of states: (h,), or (h, c) of an LSTM."""

    forward_schema, backward_schema = _FORWARD, _BACKWARD
    options = 4  # arguments of the forward pass behind those that have gradients

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.states = 2 if cell == "lstm" else 1
        self.name: str = cell
        family = cell[:3] if cell.startswith("rnn") else cell
        self._names = f"{family}_forward", f"{family}_backward"
        self._forward, self._backward = (getattr(_native, name) for name in self._names)
        self._options = (cell[4:],) if family == "rnn" else ()

    def forward(self, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        """out [T, B, H], the last states [B, H], and the tape [n], which is empty unless kept."""
        n, keep = self.states, rest[-1]
        array, *states, w_ih, w_hh, b_ih, b_hh, is_init = to_arrays(x, *rest[: n + 5])
        out, state, tape = self._forward(
            array,
            pair_states(self.cell, states),
            w_ih,
            w_hh,
            b_ih,
            b_hh,
            *self._options,
            is_init,
            keep,
        )
        last = state if self.cell == "lstm" else (state,)
        memory = to_tensor(tape.memory) if keep else x.new_empty(0)
        return (to_tensor(out), *map(to_tensor, last), memory)

    def backward(self, grad_out: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
        """Gradients by x, the states, w_ih, w_hh, b_ih and b_hh; [0] for a missing bias."""
        n, (*tensors, truncation, biases) = self.states, rest[: 2 * self.states + 8]
        grad, *arrays, is_init, carry_scale = to_arrays(grad_out, *tensors)
        grad_states, (tape, x), states = arrays[:n], arrays[n : n + 2], arrays[n + 2 : 2 * n + 2]
        (w_ih, w_hh), (b_ih, b_hh) = arrays[-2:], biases
        restored = _native.restore_tape(
            self.cell, x, pair_states(self.cell, states), w_ih, w_hh, b_ih, b_hh, is_init, tape
        )
        grads = self._backward(
            restored, grad, pair_states(self.cell, grad_states), truncation, carry_scale
        )
        by_states = grads[1] if self.cell == "lstm" else (grads[1],)
        found = (grads[0], *by_states, *grads[2:])
        return tuple([rest[n].new_empty(0) if g is None else to_tensor(g) for g in found])

    @staticmethod
    def is_on_gpu(x: Tensor) -> bool:
        """Whether a call with this tensor is one of the CUDA kernels."""
        return x.is_cuda

    def autocast_forward(self, x: Tensor, *rest: Any) -> torch.dtype:
        """bfloat16 if autocast asks for it and it has kernels, else float32."""
        return autocast_dtype(x)

    def autocast_backward(self, grad_out: Tensor | None, *rest: Any) -> torch.dtype:
        """As the forward pass was: a tape cannot be cast."""
        kept: torch.dtype = rest[self.states].dtype
        return torch.bfloat16 if kept == torch.bfloat16 else torch.float32

    def forward_cuda(self, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        """`forward` on a GPU. The tape holds what is kept beside the output."""
        n, keep = self.states, rest[-1]
        states, weights, is_init = rest[:n], rest[n : n + 4], rest[n + 4]
        run = getattr(_module.native(), self._names[0])
        out, state, tape = run(
            place_of(x),
            cuda_precision("rnn"),
            x,
            pair_states(self.cell, states),
            *weights,
            *self._options,
            is_init,
            keep,
        )
        last = state if self.cell == "lstm" else (state,)
        return (out, *last, tape.memory if keep else x.new_empty(0))

    def backward_cuda(self, grad_out: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
        """`backward` on a GPU."""
        n = self.states
        *tensors, w_ih, w_hh, is_init, carry_scale, truncation, biases, out = rest
        grad_states, (tape, x), states = tensors[:n], tensors[n : n + 2], tensors[n + 2 :]
        module, place = _module.native(), place_of(x)
        given = pair_states(self.cell, states)
        restored = module.restore_tape(
            place, self.cell, x, given, w_ih, w_hh, *biases, is_init, out, tape
        )
        run, by_state = getattr(module, self._names[1]), pair_states(self.cell, grad_states)
        options = (truncation, carry_scale)
        grads = run(place, cuda_precision("rnn"), restored, grad_out, by_state, *options)
        by_states = grads[1] if self.cell == "lstm" else (grads[1],)
        found = (grads[0], *by_states, *grads[2:])
        return tuple([x.new_empty(0) if g is None else g for g in found])

    def run_forward(self, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        """The forward pass where x is."""
        return (self.forward_cuda if self.is_on_gpu(x) else self.forward)(x, *rest)

    def run_backward(self, grad_out: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
        """The backward pass where the tape is."""
        run = self.backward_cuda if self.is_on_gpu(rest[self.states]) else self.backward
        return run(grad_out, *rest)

    def fake_forward(self, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        """Tensors of the shapes that `forward` returns."""
        steps, batch, _ = x.shape
        hidden, keep = rest[self.states + 1].shape[1], rest[-1]
        values = (CUDA_TAPE_VALUES if self.is_on_gpu(x) else TAPE_VALUES)[self.cell]
        size = values * steps * batch * hidden if keep else 0
        last = (x.new_empty(batch, hidden) for _ in range(self.states))
        return (x.new_empty(steps, batch, hidden), *last, x.new_empty(size))

    def fake_backward(self, grad_out: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
        """Tensors of the shapes that `backward` returns."""
        n = self.states
        x, w_ih, w_hh, biases = rest[n + 1], rest[2 * n + 2], rest[2 * n + 3], rest[2 * n + 7]
        by_states = (x.new_empty(x.shape[1], w_hh.shape[1]) for _ in range(n))
        by_biases = (x.new_empty(w_hh.shape[0] if has else 0) for has in biases)
        weights = (x.new_empty(w_ih.shape), x.new_empty(w_hh.shape))
        return (x.new_empty(x.shape), *by_states, *weights, *by_biases)

    def save(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the backward pass needs."""
        n = self.states
        x, states, (w_ih, w_hh, b_ih, b_hh) = inputs[0], inputs[1 : n + 1], inputs[n + 1 : n + 5]
        is_init, carry_scale, truncation, _ = inputs[n + 5 :]
        out = output[0] if self.is_on_gpu(x) else None
        ctx.save_for_backward(output[-1], x, *states, w_ih, w_hh, is_init, carry_scale, out)
        ctx.options = (truncation,)
        ctx.states = [s is not None for s in states]
        ctx.biases = (b_ih is not None, b_hh is not None)
        ctx.mark_non_differentiable(output[-1])
        ctx.set_materialize_grads(False)

    def saved(self, ctx: Any) -> tuple[Any, ...]:
        """What was kept, as arguments of the backward pass behind the gradients."""
        *tensors, out = ctx.saved_tensors
        return (*tensors, *ctx.options, ctx.biases, out)

    def differentiate(self, backward: Any, ctx: Any, grads: tuple[Tensor | None, ...]) -> Any:
        """Gradients by x, the states and the weights, by `backward`, of this class or its op."""
        n = self.states
        if all(g is None for g in grads[: n + 1]):
            return (None,) * (n + 3 + len(ctx.biases))
        found = backward(*grads[: n + 1], *self.saved(ctx))
        given = (True, *ctx.states, True, True, *ctx.biases)
        return tuple([g if has else None for g, has in zip(found, given, strict=True)])

    def register(self) -> Any:
        """Define both operators; returns the forward one and the Function for plain calls."""
        more = {
            "c": "Tensor? c, ",
            "c_n": "Tensor c_n, ",
            "grad_c": "Tensor? grad_c, ",
        }
        if self.cell != "lstm":
            more = dict.fromkeys(more, "")
        name = f"{self.name}_backward"
        define(
            name,
            self.backward_schema.format(**more),
            self.backward,
            self.fake_backward,
            *refuse_second_derivative(name),
            on_cuda=self.backward_cuda,
            autocast_to=self.autocast_backward,
        )
        gradient = getattr(torch.ops.tbptt_fast, name).default
        define(
            self.name,
            self.forward_schema.format(**more),
            self.forward,
            self.fake_forward,
            lambda ctx, *grads: (
                *self.differentiate(gradient, ctx, grads),
                *(None,) * self.options,
            ),
            lambda ctx, inputs, output: self.save(ctx, inputs, output),
            on_cuda=self.forward_cuda,
            autocast_to=self.autocast_forward,
        )
        layer = self

        class Plain(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, options: tuple[Any, ...], *tensors: Any) -> Any:
                inputs = (*tensors, *options)
                output = layer.run_forward(*inputs)
                layer.save(ctx, inputs, output)
                return output

            @staticmethod
            def backward(ctx: Any, *grads: Any) -> Any:
                # the operator, where second derivatives may be asked for: it refuses them
                run = gradient if torch.is_grad_enabled() else layer.run_backward
                return (None, *layer.differentiate(run, ctx, grads))

        return getattr(torch.ops.tbptt_fast, self.name), Plain


_LAYERS = {cell: Layer(cell) for cell in CELLS}
_OPERATORS = {cell: layer.register() for cell, layer in _LAYERS.items()}


def run_layer(
    cell: Cell,
    x: Tensor,
    states: Sequence[Tensor | None],
    weights: Sequence[Tensor | None],
    is_init: Tensor | None = None,
    truncation: list[int] | None = None,
    carry_scale: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """out [T, B, H] and the last states [B, H] of one layer; weights are w_ih, w_hh, b_ih, b_hh."""
    tensors = (x, *states, *weights)
    keep = needs_grad(*tensors)
    operator_, plain = _OPERATORS[cell]
    arguments = (*tensors, is_init, carry_scale, truncation, keep)
    if not is_plain(*tensors):
        return operator_(*arguments)[:-1]  # type: ignore[no-any-return]
    if not keep:
        return _LAYERS[cell].run_forward(x, *arguments[1:])[:-1]
    options = (is_init, carry_scale, truncation, True)
    return plain.apply(options, *tensors)[:-1]  # type: ignore[no-any-return]
