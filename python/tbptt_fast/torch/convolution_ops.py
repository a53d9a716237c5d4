"""conv1d and conv2d as PyTorch operators; part of `tbptt_fast.torch`.

`tbptt_fast::conv2d` and its gradient; a convolution in one dimension is one over images of a single
row. Images in torch's channels_last format are computed and returned in it, without a copy.

On a GPU float32 is computed in TF32 where PyTorch's own convolutions would
(`torch.backends.cudnn.allow_tf32`, or `torch.backends.cudnn.conv.fp32_precision`). bfloat16 has
kernels there from compute capability 8.0 on, where autocast to it uses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _native
from .._types import Array
from ..cuda import _module
from ..cuda._places import place_of
from ._bridge import (
    autocast_dtype,
    check_device,
    cuda_precision,
    define,
    is_plain,
    needs_grad,
    refuse_second_derivative,
    to_arrays,
    to_tensor,
)

_FORWARD = (
    "(Tensor x, Tensor w, Tensor? b, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
    "SymInt groups) -> Tensor"
)
_BACKWARD = (
    "(Tensor grad_out, Tensor x, Tensor w, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
    "SymInt groups, bool[] needs) -> (Tensor x, Tensor w, Tensor b)"
)


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _images(x: Tensor, channels_last: bool) -> Tensor:
    """[N, Y, X, C] with channels_last, else [N, C, Y, X]."""
    return x.permute(0, 2, 3, 1) if channels_last else x


def _tensor(images: Array, channels_last: bool) -> Tensor:
    tensor = to_tensor(images)
    return tensor.permute(0, 3, 1, 2) if channels_last else tensor


def _options(
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> tuple[Any, Any, Any, int]:
    top, bottom, left, right = padding
    return tuple(stride), ((top, bottom), (left, right)), tuple(dilation), groups


def _names(needs: Sequence[bool]) -> tuple[str, ...]:
    return tuple(name for name, needed in zip("xwb", needs, strict=True) if needed)


def _forward(x: Tensor, w: Tensor, b: Tensor | None, *options: Any) -> Tensor:
    last = _is_channels_last(x)
    images, kernels, biases = to_arrays(_images(x, last), w, b)
    layout = "NHWC" if last else "NCHW"
    y = _native.conv2d(images, kernels, biases, *_options(*options), None, layout, "auto")
    return _tensor(y, last)


def _backward(grad_out: Tensor, x: Tensor, w: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Gradients by x, w and b; [0] where not needed."""
    *options, needs = rest
    last = _is_channels_last(x)
    grad, images, kernels = to_arrays(_images(grad_out, last), _images(x, last), w)
    grads = _native.conv2d_backward(
        grad,
        images,
        kernels,
        None,
        *_options(*options),
        None,
        "NHWC" if last else "NCHW",
        "auto",
        _names(needs),
    )
    nothing = x.new_empty(0)
    by_x, by_w, by_b = grads
    return (
        nothing if by_x is None else _tensor(by_x, last),
        nothing.clone() if by_w is None else to_tensor(by_w),
        nothing.clone() if by_b is None else to_tensor(by_b),
    )


def _forward_cuda(x: Tensor, w: Tensor, b: Tensor | None, *options: Any) -> Tensor:
    last = _is_channels_last(x)
    images, layout = _images(x, last), "NHWC" if last else "NCHW"
    place, precision = place_of(images), cuda_precision("conv")
    given = (*_options(*options), None, layout, "auto")
    y: Tensor = _module.native().conv2d(place, precision, images, w, b, *given)
    return y.permute(0, 3, 1, 2) if last else y


def _backward_cuda(grad_out: Tensor, x: Tensor, w: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *options, needs = rest
    last = _is_channels_last(x)
    images, layout = _images(x, last), "NHWC" if last else "NCHW"
    place, precision = place_of(images), cuda_precision("conv")
    given = (*_options(*options), None, layout, "auto", _names(needs))
    run = _module.native().conv2d_backward
    by_x, by_w, by_b = run(place, precision, _images(grad_out, last), images, w, None, *given)
    if last and by_x is not None:
        by_x = by_x.permute(0, 3, 1, 2)
    return tuple(x.new_empty(0) if g is None else g for g in (by_x, by_w, by_b))


def _is_on_gpu(x: Tensor) -> bool:
    """Whether a call with this tensor is one of the CUDA kernels."""
    return x.is_cuda


def _run_forward(x: Tensor, *rest: Any) -> Tensor:
    """The forward pass where x is."""
    return (_forward_cuda if _is_on_gpu(x) else _forward)(x, *rest)


def _run_backward(grad_out: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """The backward pass where x is."""
    return (_backward_cuda if _is_on_gpu(x) else _backward)(grad_out, x, *rest)


def _output_shape(x: Tensor, w: Tensor, *options: Any) -> list[Any]:
    stride, padding, dilation, _ = options
    sizes = [
        (
            x.shape[2 + i]
            + padding[2 * i]
            + padding[2 * i + 1]
            - dilation[i] * (w.shape[2 + i] - 1)
            - 1
        )
        // stride[i]
        + 1
        for i in range(2)
    ]
    return [x.shape[0], w.shape[0], *sizes]


def _fake_forward(x: Tensor, w: Tensor, b: Tensor | None, *options: Any) -> Tensor:
    format_ = torch.channels_last if _is_channels_last(x) else torch.contiguous_format
    return x.new_empty(_output_shape(x, w, *options)).to(memory_format=format_)


def _fake_backward(grad_out: Tensor, x: Tensor, w: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    needs = rest[-1]
    format_ = torch.channels_last if _is_channels_last(x) else torch.contiguous_format
    return (
        x.new_empty(x.shape).to(memory_format=format_) if needs[0] else x.new_empty(0),
        x.new_empty(w.shape) if needs[1] else x.new_empty(0),
        x.new_empty(w.shape[0]) if needs[2] else x.new_empty(0),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, _, *ctx.options = inputs
    ctx.save_for_backward(x, w)


def _differentiate(backward: Any, ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:3]
    found = backward(grad_out, *ctx.saved_tensors, *ctx.options, needs)
    by = (g if needed else None for g, needed in zip(found, needs, strict=True))
    return (*by, None, None, None, None)


def _autocast_backward(grad_out: Tensor, x: Tensor, *rest: Any) -> torch.dtype:
    """As the forward pass was."""
    return torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32


define(
    "conv2d_backward",
    _BACKWARD,
    _backward,
    _fake_backward,
    *refuse_second_derivative("conv2d_backward"),
    on_cuda=_backward_cuda,
    autocast_to=_autocast_backward,
)
_GRADIENT = torch.ops.tbptt_fast.conv2d_backward.default
define(
    "conv2d",
    _FORWARD,
    _forward,  # type: ignore[arg-type]
    _fake_forward,  # type: ignore[arg-type]
    lambda ctx, grad: _differentiate(_GRADIENT, ctx, grad),
    _save,
    on_cuda=_forward_cuda,  # type: ignore[arg-type]
    autocast_to=lambda x, *rest: autocast_dtype(x),
)


class _Plain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        output = _run_forward(*inputs)
        _save(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        # the operator, where second derivatives may be asked for: it refuses them
        return _differentiate(_GRADIENT if torch.is_grad_enabled() else _run_backward, ctx, grad)


def run_convolution(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Images [N, O, Y', X'] for [N, I, Y, X]; padding is (top, bottom, left, right)."""
    arguments = (x, w, b, list(stride), list(padding), list(dilation), groups)
    if not is_plain(x, w, b):
        return torch.ops.tbptt_fast.conv2d(*arguments)  # type: ignore[no-any-return]
    if not needs_grad(x, w, b):
        return _run_forward(*arguments)
    return _Plain.apply(*arguments)  # type: ignore[no-any-return, no-untyped-call]


def _per_direction(op: str, name: str, given: int | Sequence[int], directions: int) -> list[int]:
    values = [given] * directions if isinstance(given, int) else list(given)
    if len(values) != directions:
        raise ValueError(f"{op}: {name}: expected {directions} integers, got {len(values)}")
    return values


def _sides(
    op: str,
    padding: int | str | Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """(before, behind) of each direction, the outer one first."""
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(
                f"{op}: padding: expected integers, 'same' or 'valid', got {padding!r}"
            )
        if padding == "valid":
            return [0, 0] * len(kernel)
        if any(s != 1 for s in stride):
            raise RuntimeError("padding='same' is not supported for strided convolutions")
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [side for t in total for side in (t // 2, t - t // 2)]
    return [p for p in _per_direction(op, "padding", padding, len(kernel)) for _ in range(2)]


def _convolve(
    op: str,
    directions: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | str | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
) -> Tensor:
    """Check the arguments and run; a single direction is that along images of one row."""
    check_device(op, input=input, weight=weight, bias=bias)
    rank = directions + 2
    if input.dim() not in (rank - 1, rank) or weight.dim() != rank:
        raise ValueError(
            f"{op}: expected input with {rank - 1} or {rank} and weight with {rank} dimensions, "
            f"got shapes {list(input.shape)} and {list(weight.shape)}"
        )
    steps = _per_direction(op, "stride", stride, directions)
    apart = _per_direction(op, "dilation", dilation, directions)
    sides = _sides(op, padding, weight.shape[2:], steps, apart)
    batched = input.dim() == rank
    x, w = input if batched else input.unsqueeze(0), weight
    if directions == 1:
        x, w, steps, sides, apart = (
            x.unsqueeze(2),
            w.unsqueeze(2),
            [1, *steps],
            [0, 0, *sides],
            [1, *apart],
        )
    y = run_convolution(x, w, bias, steps, sides, apart, groups)
    if directions == 1:
        y = y.squeeze(2)
    return y if batched else y.squeeze(0)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """torch.nn.functional.conv2d on native kernels.

    Args:
        input: [N, I, Y, X] or [I, Y, X], float32 or float64 on the CPU, or on a GPU where
            `tbptt_fast.cuda` runs, which takes bfloat16, too; in either memory format, and the
            result has the same. All tensors are of one dtype and on one device.
        weight: [O, I/groups, kY, kX].
        bias: [O] or None.
        stride, padding, dilation: one integer, or (vertical, horizontal); padding also "same" or
            "valid".

    Returns:
        [N, O, Y', X'], or [O, Y', X'].

    Raises:
        TypeError, ValueError: a wrong dtype; a wrong shape or value.
        RuntimeError: a tensor is on a device without kernels; padding="same" with a stride; a
            second derivative is asked for.

    Source: see `tbptt_fast.conv2d`.

    >>> import torch
    >>> w = torch.ones(1, 1, 3, 3, requires_grad=True)
    >>> y = conv2d(torch.ones(1, 1, 3, 3), w, padding=1)
    >>> y.sum().backward()
    >>> y[0, 0, 1].tolist(), w.grad[0, 0, 0].tolist()
    ([6.0, 9.0, 6.0], [4.0, 6.0, 4.0])
    """
    return _convolve("conv2d", 2, input, weight, bias, stride, padding, dilation, groups)


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """torch.nn.functional.conv1d on native kernels.

    Args:
        input: [N, I, X] or [I, X], of such a dtype and device.
        weight: [O, I/groups, kX].

    The other arguments and errors are those of `conv2d`.

    Returns:
        [N, O, X'], or [O, X'].

    >>> import torch
    >>> conv1d(torch.ones(1, 1, 4), torch.ones(1, 1, 2), padding="same").tolist()
    [[[2.0, 2.0, 2.0, 1.0]]]
    """
    return _convolve("conv1d", 1, input, weight, bias, stride, padding, dilation, groups)
