"""PyTorch's own samples of functions, run against the functions here; part of `pytorch_cases`."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

import tbptt_fast
import tbptt_fast.torch as ours
from tests.torch_cases import close, leaves

from .checks import Check, RefusedError, Report, error_of
from .pytorch_cases import TOLERANCE, published

FAMILIES = re.compile(r"^nn\.functional\..*(conv|pool)")

NO_FUNCTION = "no function of this kind"
DILATED = "dilated pooling"
ADAPTIVE = "windows of several sizes (adaptive pooling)"
DIVISOR = "a divisor of the caller's (divisor_override)"
EMPTY = "no error: planes without values give results without values"


class Primitive(torch.autograd.Function):
    """A primitive on arrays, with its gradient, as a function of tensors."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., Any], *tensors: Any) -> Any:
        arrays = [None if t is None else t.detach().numpy() for t in tensors]
        (y, *rest), ctx.gradients = run(*arrays)
        found = (torch.from_numpy(y), *map(torch.from_numpy, rest))
        ctx.mark_non_differentiable(*found[1:])
        return found if rest else found[0]

    @staticmethod
    def backward(ctx: Any, grad: Any, *_: Any) -> Any:
        grads = ctx.gradients(grad.numpy())
        return (None, *(None if g is None else torch.from_numpy(g) for g in grads))


primitive: Callable[..., Any] = Primitive.apply


def each(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,)


def plane(value: Any, rank: int, missing: int) -> Any:
    """An option of images; that of one dimension is one of images with a single row."""
    values = each(value)
    if len(values) == 1:
        values *= rank
    return values if rank == 2 else (missing, *values)


def conv_transpose(
    rank: int,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    options = {
        "stride": plane(stride, rank, 1),
        "padding": plane(padding, rank, 0),
        "output_padding": plane(output_padding, rank, 0),
        "dilation": plane(dilation, rank, 1),
        "groups": groups,
    }

    def run(x: Any, w: Any, b: Any) -> Any:
        def gradients(grad: Any) -> Any:
            grads = tbptt_fast.conv_transpose2d_backward(grad, x, w, **options)
            return grads.x, grads.w, None if b is None else grads.b

        return (tbptt_fast.conv_transpose2d(x, w, b, **options),), gradients

    return on_images(rank, input, lambda x: primitive(run, x, rows(rank, weight), bias))


def rows(rank: int, tensor: Any) -> Any:
    return tensor.unsqueeze(-2) if rank == 1 else tensor


def on_images(rank: int, input: Any, function: Callable[[Any], Any]) -> Any:
    """Call it with a batch of images, and bring results back to the form of the input."""
    batched = input.dim() == rank + 2
    result = function(rows(rank, input if batched else input.unsqueeze(0)))
    several = isinstance(result, tuple)
    shaped = [y.squeeze(-2) if rank == 1 else y for y in (result if several else (result,))]
    shaped = [y if batched else y.squeeze(0) for y in shaped]
    return tuple(shaped) if several else shaped[0]


def max_pool(
    rank: int,
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    if any(d != 1 for d in each(dilation)):
        raise RefusedError(DILATED)
    options = {
        "kernel": plane(kernel_size, rank, 1),
        "stride": None if stride is None else plane(stride, rank, 1),
        "padding": plane(padding, rank, 0),
        "ceil_mode": ceil_mode,
    }

    def run(x: Any) -> Any:
        y, indices = tbptt_fast.max_pool2d(x, **options)

        def gradients(grad: Any) -> Any:
            return (tbptt_fast.max_pool2d_backward(grad, indices, x.shape),)

        return (y, indices), gradients

    found = on_images(rank, input, lambda x: primitive(run, x))
    return found if return_indices else found[0]


def avg_pool(
    rank: int,
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    if divisor_override is not None:
        raise RefusedError(DIVISOR)
    options = {
        "kernel": plane(kernel_size, rank, 1),
        "stride": None if stride in (None, ()) else plane(stride, rank, 1),
        "padding": plane(padding, rank, 0),
        "ceil_mode": ceil_mode,
        "count_include_pad": count_include_pad,
    }

    def run(x: Any) -> Any:
        def gradients(grad: Any) -> Any:
            return (tbptt_fast.avg_pool2d_backward(grad, x.shape, **options),)

        return (tbptt_fast.avg_pool2d(x, **options),), gradients

    return on_images(rank, input, lambda x: primitive(run, x))


def adaptive_avg_pool(rank: int, input: Any, output_size: Any) -> Any:
    """One window over everything is what exists."""
    if len(each(output_size)) not in (1, rank):
        raise ValueError(f"expected {rank} sizes, got {output_size}")
    if any(n != 1 for n in each(output_size)):
        raise RefusedError(ADAPTIVE)

    def run(x: Any) -> Any:
        def gradients(grad: Any) -> Any:
            return (tbptt_fast.global_avg_pool2d_backward(grad[..., 0, 0], x.shape),)

        return (tbptt_fast.global_avg_pool2d(x)[..., None, None],), gradients

    return on_images(rank, input, lambda x: primitive(run, x))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "nn.functional.conv1d": ours.conv1d,
    "nn.functional.conv2d": ours.conv2d,
    "nn.functional.conv_transpose1d": partial(conv_transpose, 1),
    "nn.functional.conv_transpose2d": partial(conv_transpose, 2),
    "nn.functional.max_pool1d": partial(max_pool, 1),
    "nn.functional.max_pool2d": partial(max_pool, 2),
    "nn.functional.avg_pool1d": partial(avg_pool, 1),
    "nn.functional.avg_pool2d": partial(avg_pool, 2),
    "nn.functional.adaptive_avg_pool1d": partial(adaptive_avg_pool, 1),
    "nn.functional.adaptive_avg_pool2d": partial(adaptive_avg_pool, 2),
}


def differentiate(function: Callable[..., Any], sample: Any) -> list[Any]:
    """Outputs, and gradients by all tensors that require them."""
    tensors = [t for t in (sample.input, *sample.args) if isinstance(t, torch.Tensor)]
    for tensor in tensors:
        tensor.grad = None
    found = leaves(function(sample.input, *sample.args, **sample.kwargs))
    outputs = [y for y in found if y.is_floating_point()]
    torch.manual_seed(1)
    torch.autograd.backward(outputs, [torch.randn(y.shape, dtype=y.dtype) for y in outputs])
    return [*found, *(t.grad for t in tensors)]


def check_sample(function: Callable[..., Any], theirs: Any, sample: Any, dtype: Any) -> None:
    close(differentiate(function, sample), differentiate(theirs, sample), TOLERANCE[dtype])


def check_error(function: Callable[..., Any], given: Any) -> None:
    """What PyTorch refuses is refused, with a message of our own."""
    sample = given.sample_input
    error = error_of(partial(function, sample.input, *sample.args, **sample.kwargs))
    if error is None and sample.input.numel() == 0:
        raise RefusedError(EMPTY)
    if isinstance(error, RefusedError):
        raise error
    assert isinstance(error, (RuntimeError, TypeError, ValueError)), error


def refuse() -> None:
    raise RefusedError(NO_FUNCTION)


def function_checks(dtypes: Sequence[Any], every: int) -> Iterator[Check]:
    """Samples of all convolutions and pools, of long lists one in `every`; and errors."""
    for info in published().functions:
        if not FAMILIES.search(info.name):
            continue
        function = FUNCTIONS.get(info.name)
        if function is None:
            yield Check(info.name, info.variant_test_name, refuse)
            continue
        for dtype in dtypes:
            torch.manual_seed(0)
            samples = list(info.sample_inputs("cpu", dtype, requires_grad=True))
            for i, sample in list(enumerate(samples))[:: every if len(samples) > 100 else 1]:
                run = partial(check_sample, function, info.op, sample, dtype)
                yield Check(info.name, f"{dtype} {i}", run)
        if info.error_inputs_func is not None:
            for i, given in enumerate(info.error_inputs("cpu")):
                yield Check(info.name, f"error {i}", partial(check_error, function, given))


def run_functions(dtypes: Sequence[Any] = (torch.float32, torch.float64), every: int = 1) -> Report:
    """Every published sample of a convolution or a pool."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using padding='same'")  # PyTorch copies the input
        return Report().run(function_checks(dtypes, every))
