"""Recurrent layers on images as PyTorch operators; part of `tbptt_fast.torch`.

As in `recurrent_ops`: operators `tbptt_fast::convlstm` and so on with their gradients, and the same
kernels behind an `autograd.Function` for plain eager calls. The output serves the backward pass as
history, so it is saved beside the tape. On a GPU float32 is computed in TF32 where PyTorch's own
convolutions would (`torch.backends.cudnn.allow_tf32`, or
`torch.backends.cudnn.conv.fp32_precision`). bfloat16 has kernels on GPUs from compute capability
8.0 on, where autocast to it uses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from .. import _native
from .._options import Cell, plain_cell, read_truncation
from .._types import Layout
from ..cuda import _module
from ..cuda._places import place_of
from ..ops import Truncation
from ._bridge import (
    check_device,
    cuda_precision,
    is_plain,
    needs_grad,
    to_arrays,
    to_tensor,
)
from .recurrent_ops import CELLS, Layer, pair_states

Size = int | tuple[int, int]
# per value of the output: with the gates, and where they are made again
TAPE_VALUES = {"rnn_tanh": (1, 0), "rnn_relu": (1, 0), "gru": (4, 0), "lstm": (5, 1)}
CUDA_TAPE_VALUES = TAPE_VALUES | {"rnn_tanh": (0, 0), "rnn_relu": (0, 0)}

_FORWARD = (
    "(Tensor x, Tensor? h, {c}Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, "
    "Tensor? peephole, Tensor? is_init, Tensor? carry_scale, int[]? truncation, int[] dilation, "
    "str layout, bool recompute, bool keep) -> (Tensor out, Tensor h_n, {c_n}Tensor tape)"
)
_BACKWARD = (
    "(Tensor? grad_out, Tensor? grad_h, {grad_c}Tensor tape, Tensor out, Tensor x, Tensor? h, "
    "{c}Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? peephole, Tensor? is_init, "
    "Tensor? carry_scale, int[]? truncation, int[] dilation, str layout, bool recompute, "
    "bool[] given)"
    " -> (Tensor x, Tensor h, {c_n}Tensor w_ih, Tensor w_hh, Tensor b_ih, Tensor b_hh, "
    "Tensor peephole)"
)


class _ConvLayer(Layer):
    """One cell's operators; arrays as `tbptt_fast.convlstm_forward` and its kin take them."""

    forward_schema, backward_schema = _FORWARD, _BACKWARD
    options = 7

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.name = f"conv{cell}"

    def forward(self, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        n = self.states
        dilation, layout, recompute, keep = rest[-4:]
        array, *states, w_ih, w_hh, b_ih, b_hh, peephole, is_init = to_arrays(x, *rest[: n + 6])
        out, state, tape = _native.convrecurrent_forward(
            self.cell,
            array,
            pair_states(self.cell, states),
            w_ih,
            w_hh,
            b_ih,
            b_hh,
            peephole,
            is_init,
            tuple(dilation),
            layout,
            "auto",
            keep,
            recompute,
        )
        last = state if self.cell == "lstm" else (state,)
        memory = x.new_empty(0) if tape is None else to_tensor(tape.memory)
        return (to_tensor(out), *map(to_tensor, last), memory)

    def backward(self, grad_out: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
        n = self.states
        truncation, dilation, layout, recompute, _ = rest[-5:]
        grad, *arrays, carry_scale = to_arrays(grad_out, *rest[:-5])
        grad_states, (tape, out, x), states = arrays[:n], arrays[n : n + 3], arrays[n + 3 : -6]
        w_ih, w_hh, b_ih, b_hh, peephole, is_init = arrays[-6:]
        restored = _native.restore_conv_tape(
            self.cell,
            x,
            pair_states(self.cell, states),
            w_ih,
            w_hh,
            b_ih,
            b_hh,
            peephole,
            is_init,
            tuple(dilation),
            layout,
            "auto",
            recompute,
            out,
            tape,
        )
        grads = _native.convrecurrent_backward(
            self.cell,
            restored,
            grad,
            pair_states(self.cell, grad_states),
            truncation,
            carry_scale,
        )
        by_states = grads[1] if self.cell == "lstm" else (grads[1],)
        found = (grads[0], *by_states, *grads[2:])
        return tuple([rest[n].new_empty(0) if g is None else to_tensor(g) for g in found])

    def forward_cuda(self, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        n = self.states
        states, weights, is_init = rest[:n], rest[n : n + 5], rest[n + 5]
        dilation, layout, recompute, keep = rest[-4:]
        out, state, tape = _module.native().convrecurrent_forward(
            place_of(x),
            cuda_precision("conv"),
            self.cell,
            x,
            pair_states(self.cell, states),
            *weights,
            is_init,
            tuple(dilation),
            layout,
            "auto",
            keep,
            recompute,
        )
        last = state if self.cell == "lstm" else (state,)
        return (out, *last, x.new_empty(0) if tape is None else tape.memory)

    def backward_cuda(self, grad_out: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
        n = self.states
        *tensors, carry_scale, truncation, dilation, layout, recompute, _ = rest
        grad_states, (tape, out, x), states = tensors[:n], tensors[n : n + 3], tensors[n + 3 : -6]
        module, place = _module.native(), place_of(x)
        restored = module.restore_conv_tape(
            place,
            self.cell,
            x,
            pair_states(self.cell, states),
            *tensors[-6:],
            tuple(dilation),
            layout,
            "auto",
            recompute,
            out,
            tape,
        )
        grads = module.convrecurrent_backward(
            place,
            cuda_precision("conv"),
            self.cell,
            restored,
            grad_out,
            pair_states(self.cell, grad_states),
            truncation,
            carry_scale,
        )
        by_states = grads[1] if self.cell == "lstm" else (grads[1],)
        found = (grads[0], *by_states, *grads[2:])
        return tuple([x.new_empty(0) if g is None else g for g in found])

    def fake_forward(self, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        hidden, (layout, recompute, keep) = rest[self.states + 1].shape[1], rest[-3:]
        steps, batch, *image = x.shape
        image[0 if layout == "NCHW" else 2] = hidden
        out = x.new_empty(steps, batch, *image)
        values = (CUDA_TAPE_VALUES if self.is_on_gpu(x) else TAPE_VALUES)[self.cell]
        size = values[recompute] * out.numel() if keep else 0
        last = (x.new_empty(batch, *image) for _ in range(self.states))
        return (out, *last, x.new_empty(size))

    def fake_backward(self, grad_out: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
        n = self.states
        out, x = rest[n + 1 : n + 3]
        w_ih, w_hh, _, _, peephole = rest[2 * n + 3 : 2 * n + 8]
        by_states = (x.new_empty(out.shape[1:]) for _ in range(n))
        by_biases = (x.new_empty(w_hh.shape[0] if has else 0) for has in rest[-1][:2])
        by_peephole = x.new_empty(0) if peephole is None else x.new_empty(peephole.shape)
        weights = (x.new_empty(w_ih.shape), x.new_empty(w_hh.shape))
        return (x.new_empty(x.shape), *by_states, *weights, *by_biases, by_peephole)

    def save(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        n = self.states
        x, states, weights = inputs[0], inputs[1 : n + 1], inputs[n + 1 : n + 6]
        is_init, carry_scale, *options, _ = inputs[n + 6 :]
        ctx.save_for_backward(output[-1], output[0], x, *states, *weights, is_init, carry_scale)
        ctx.options = tuple(options)
        ctx.states = [s is not None for s in states]
        ctx.biases = [w is not None for w in weights[2:]]
        ctx.mark_non_differentiable(output[-1])
        ctx.set_materialize_grads(False)

    def saved(self, ctx: Any) -> tuple[Any, ...]:
        return (*ctx.saved_tensors, *ctx.options, ctx.biases)


_LAYERS = {cell: _ConvLayer(cell) for cell in CELLS}
_OPERATORS = {cell: layer.register() for cell, layer in _LAYERS.items()}


def run_layer(
    op: str,
    cell: Cell,
    x: Tensor,
    states: Sequence[Tensor | None],
    weights: Sequence[Tensor | None],
    is_init: Tensor | None,
    truncation: Truncation,
    carry_scale: Tensor | None,
    dilation: Size,
    layout: Layout,
    recompute: bool,
) -> tuple[Tensor, ...]:
    """The output and the last states of one layer; weights are w_ih, w_hh, b_ih, b_hh, peephole."""
    check_device(
        op, x=x, w_ih=weights[0], w_hh=weights[1], is_init=is_init, carry_scale=carry_scale
    )
    if carry_scale is not None and carry_scale.shape != x.shape[:2]:
        raise ValueError(
            f"{op}: carry_scale: expected shape {list(x.shape[:2])}, got {list(carry_scale.shape)}"
        )
    pair = [dilation, dilation] if isinstance(dilation, int) else list(dilation)
    tensors = (x, *states, *weights)
    keep = needs_grad(*tensors)
    options = (is_init, carry_scale, read_truncation(truncation), pair, layout, recompute, keep)
    operator_, plain = _OPERATORS[cell]
    if not is_plain(*tensors):
        return operator_(*tensors, *options)[:-1]  # type: ignore[no-any-return]
    if not keep:
        return _LAYERS[cell].run_forward(x, *states, *weights, *options)[:-1]
    return plain.apply(options, *tensors)[:-1]  # type: ignore[no-any-return]


def convrnn(
    x: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: Literal["tanh", "relu"] = "tanh",
    is_init: Tensor | None = None,
    truncation: Truncation = None,
    carry_scale: Tensor | None = None,
    dilation: Size = 1,
    layout: Layout = "NCHW",
    recompute: bool = False,
) -> tuple[Tensor, Tensor]:
    """`tbptt_fast.convrnn_forward` as a differentiable function of tensors.

    Args:
        x: [T, B, C, Y, X], float32 or float64 on the CPU, or on a GPU where `tbptt_fast.cuda`
            runs, which takes bfloat16, too; with layout "NHWC" [T, B, Y, X, C]. All tensors are on
            one device.
        hx: [B, H, Y, X] or None (zeros).
        w_ih, w_hh, b_ih, b_hh: [H, C, ky, kx], [H, H, ky, kx], [H] or None.
        nonlinearity: "tanh" or "relu".
        is_init: bool [T, B]; True at (t, b) zeroes the state that enters step t of row b.
        truncation: of the backward pass: None, K or (k1, k2) (`tbptt_fast.convrnn_backward`).
        carry_scale: [T, B]; multiplies the gradient from step t to step t - 1. A constant: it has
            no gradient itself.
        dilation: of both kernels, or a pair (y, x).
        recompute: save no gates for the backward pass, which makes them again
            (`tbptt_fast.convrnn_forward`).

    Returns:
        All states [T, B, H, Y, X] and the last one.

    Raises:
        TypeError, ValueError: a wrong dtype; a wrong shape or value.
        RuntimeError: a tensor is on a device without kernels; a second derivative is asked for.

    Source: see `tbptt_fast.convrnn_forward`.

    >>> import torch
    >>> w = torch.ones(1, 1, 1, 1, requires_grad=True)
    >>> out, h_n = convrnn(torch.ones(3, 1, 1, 1, 1), None, w, w, nonlinearity="relu", truncation=1)
    >>> out.sum().backward()  # 1 by w_ih at each step, and by w_hh the states before: 0, 1, 2
    >>> out.ravel().tolist(), w.grad.item()
    ([1.0, 2.0, 3.0], 6.0)
    """
    cell = plain_cell("convrnn", nonlinearity)
    weights = (w_ih, w_hh, b_ih, b_hh, None)
    options = (is_init, truncation, carry_scale, dilation, layout, recompute)
    out, h_n = run_layer("convrnn", cell, x, (hx,), weights, *options)
    return out, h_n


def convgru(
    x: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    is_init: Tensor | None = None,
    truncation: Truncation = None,
    carry_scale: Tensor | None = None,
    dilation: Size = 1,
    layout: Layout = "NCHW",
    recompute: bool = False,
) -> tuple[Tensor, Tensor]:
    """`tbptt_fast.convgru_forward` as a differentiable function of tensors.

    Args:
        w_ih, w_hh, b_ih, b_hh: [3H, C, ky, kx], [3H, H, ky, kx], [3H] or None; gates r, z, n.

    The other arguments, results and errors are those of `convrnn`.

    Source: see `tbptt_fast.convgru_forward`.

    >>> import torch
    >>> x, h = torch.ones(4, 1, 3, 5, 6), torch.ones(1, 2, 5, 6, requires_grad=True)
    >>> out, h_n = convgru(x, h, torch.zeros(6, 3, 3, 3), torch.zeros(6, 2, 3, 3))
    >>> out[-1].sum().backward()
    >>> h.grad[0, 0, 0, 0].item()
    0.0625
    """
    weights = (w_ih, w_hh, b_ih, b_hh, None)
    options = (is_init, truncation, carry_scale, dilation, layout, recompute)
    out, h_n = run_layer("convgru", "gru", x, (hx,), weights, *options)
    return out, h_n


def convlstm(
    x: Tensor,
    hx: tuple[Tensor | None, Tensor | None] | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    peephole: Tensor | None = None,
    is_init: Tensor | None = None,
    truncation: Truncation = None,
    carry_scale: Tensor | None = None,
    dilation: Size = 1,
    layout: Layout = "NCHW",
    recompute: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`tbptt_fast.convlstm_forward` as a differentiable function of tensors.

    Args:
        hx: the pair (h, c), each [B, H, Y, X] or None (zeros), or None.
        w_ih, w_hh, b_ih, b_hh: [4H, C, ky, kx], [4H, H, ky, kx], [4H] or None; gates i, f, g, o.
        peephole: [3, H] or [3, H, Y, X] (see `tbptt_fast.convlstm_forward`), or None.

    The other arguments, results and errors are those of `convrnn`.

    Returns:
        All h [T, B, H, Y, X] and the last pair (h, c).

    Source: see `tbptt_fast.convlstm_forward`.

    >>> import torch
    >>> w_ih, w_hh = torch.ones(20, 1, 3, 3, requires_grad=True), torch.ones(20, 5, 3, 3)
    >>> out, (h_n, c_n) = convlstm(torch.ones(3, 2, 1, 8, 8), None, w_ih, w_hh, truncation=(1, 2))
    >>> out.sum().backward()
    >>> out.shape, w_ih.grad.shape
    (torch.Size([3, 2, 5, 8, 8]), torch.Size([20, 1, 3, 3]))
    """
    states = (None, None) if hx is None else tuple(hx)
    if len(states) != 2:
        raise ValueError(f"convlstm: hx: expected a pair (h, c), got {len(states)} items")
    weights = (w_ih, w_hh, b_ih, b_hh, peephole)
    options = (is_init, truncation, carry_scale, dilation, layout, recompute)
    out, h_n, c_n = run_layer("convlstm", "lstm", x, states, weights, *options)
    return out, (h_n, c_n)
