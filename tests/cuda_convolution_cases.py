"""What the tests of the convolutions' CUDA kernels share, in float32, float64 and bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import pytest

from . import test_conv_transpose as transposed
from .cases import assert_identical
from .cuda_cases import PRECISIONS, Device, EmulatedDevice
from .test_convolution import Case, Ints, layout_of, moved, same

NONE, ONE = (0, 0), (1, 1)
precisions = pytest.mark.parametrize(
    ("dtype", "precision"), PRECISIONS, ids=[f"{d}-{p}" for d, p in PRECISIONS]
)


def grid() -> Iterator[Case]:
    """Every kernel with every stride and kind of channels; the other options take turns."""
    batches, dilations = cycle((1, 2, 3)), cycle((1, 2, 1, 3, 1))
    heights, widths = cycle((1, 7, 4, 9, 12)), cycle((8, 1, 5, 11, 3, 6, 16))
    others = cycle((3, 1, 2, 5, 3, 4, 7))
    pads = cycle(((NONE, NONE), (ONE, (2, 0)), ((0, 3), ONE), (ONE, ONE), (NONE, (3, 3))))
    # (groups, inputs and outputs of a group): dense, grouped, depthwise, with a multiplier
    kinds = ((1, 3, 5), (1, 8, 12), (1, 17, 70), (3, 4, 2), (4, 1, 1), (8, 1, 1), (3, 1, 2))
    for kernel in (1, 2, 3, 5):
        for stride in (1, 2, 3):
            for groups, inputs, outputs in kinds:
                size, kernels = (next(heights), next(widths)), (kernel, next(others))
                dilation = (next(dilations), next(dilations))
                padding = fitting(size, kernels, dilation, next(pads))
                yield Case(
                    next(batches),
                    inputs,
                    outputs,
                    size,
                    kernels,
                    (stride, next(dilations)),
                    padding,
                    dilation,
                    groups,
                )


def fitting(
    size: Ints, kernel: Ints, dilation: Ints, padding: tuple[Ints, ...]
) -> tuple[Ints, ...]:
    """`padding`, with more where the kernel would reach over the padded image."""
    reach = (d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    short = (max(0, r - n - sum(p)) for r, n, p in zip(reach, size, padding, strict=True))
    return tuple((a + n, b) for (a, b), n in zip(padding, short, strict=True))


GRID = tuple(grid())
LINES = tuple(  # of one dimension
    Case(2, inputs, outputs, (length,), (kernel,), (stride,), (pad,), (dilation,), groups)
    for (groups, inputs, outputs), length, kernel, stride, pad, dilation in (
        ((1, 3, 5), 9, 3, 1, (1, 1), 1),
        ((1, 4, 8), 17, 5, 2, (4, 0), 2),
        ((2, 2, 3), 8, 1, 3, (0, 0), 1),
        ((5, 1, 1), 33, 3, 2, (2, 0), 1),
        ((3, 1, 2), 7, 2, 1, (0, 3), 3),
    )
)

# Few pixels and channels that meet many: forward, backward, in phases, in groups.
DEEP = (
    Case(1, 64, 10, (5, 6), (3, 3), padding=(ONE, ONE)),
    Case(2, 531, 6, (3, 3), (1, 1)),
    Case(1, 6, 132, (7, 6), (4, 4), (2, 2), (ONE, ONE)),
    Case(1, 60, 70, (4, 5), (3, 3), groups=2),
)

# Layers of ResNet-50 and MobileNet, with two images.
LARGE = (
    Case(2, 3, 64, (112, 112), (7, 7), (2, 2), (same(3), same(3))),
    Case(2, 64, 64, (56, 56), (3, 3), padding=(ONE, ONE)),
    Case(2, 256, 128, (56, 56), (1, 1)),
    Case(2, 512, 1024, (28, 28), (1, 1), (2, 2)),
    Case(2, 512, 512, (7, 7), (3, 3), padding=(ONE, ONE)),
    Case(2, 16, 16, (29, 31), (3, 3), (2, 2), (ONE, ONE), groups=8),
    Case(2, 1, 1, (112, 112), (3, 3), (2, 2), (ONE, ONE), groups=64),
)


def run(
    ops: Any, case: Case, arrays: list[Any], last: bool, activation: Any = None, **more: Any
) -> dict[str, Any]:
    """The output and all gradients, in the layout of the call."""
    x, w, b, grad = arrays
    name = f"conv{len(case.size)}d"
    options = {**case.options, "activation": activation, "layout": layout_of(case, last), **more}
    y = getattr(ops, name)(moved(x, last), w, b, **options)
    backward = getattr(ops, f"{name}_backward")
    grads = backward(moved(grad, last), moved(x, last), w, y=y, **options)
    return {"y": y, "x": grads.x, "w": grads.w, "b": grads.b}


def run_transposed(
    ops: Any, case: Case, arrays: list[Any], last: bool, activation: Any = None
) -> dict[str, Any]:
    x, w, b, grad = arrays
    options = {**transposed.options_of(case, arrays, last), "activation": activation}
    y = ops.conv_transpose2d(moved(x, last), w, b, **options)
    grads = ops.conv_transpose2d_backward(moved(grad, last), moved(x, last), w, y=y, **options)
    return {"y": y, "x": grads.x, "w": grads.w, "b": grads.b}


def check_needs(device: Device, case: Case, dtype: Any, last: bool) -> None:
    """Gradients that are asked for alone are those of all."""
    ops, (x, w, _, grad) = device.ops(), case.arrays(dtype)
    x, grad = moved(x, last), moved(grad, last)
    backward = getattr(ops, f"conv{len(case.size)}d_backward")
    options = {**case.options, "layout": layout_of(case, last)}
    for more in ({}, {"activation": "tanh", "y": grad}):
        everything = backward(grad, x, w, **options, **more)
        for needs in ((), ("x",), ("w",), ["b"], ("b", "x")):
            grads = backward(grad, x, w, **options, **more, needs=needs)
            for name in "xwb":
                value = getattr(grads, name)
                assert (value is None) == (name not in needs)
                if value is not None:
                    assert_identical({name: value}, {name: getattr(everything, name)})


def check_orders(emulated: EmulatedDevice, case: Case, dtype: Any, last: bool) -> None:
    """A barrier that is missing would show."""
    arrays = case.arrays(dtype)
    first = run(emulated.ops(), case, arrays, last, "tanh")
    for seed in (1, 2, 3):
        with emulated.order(seed):
            assert_identical(run(emulated.ops(), case, arrays, last, "tanh"), first)
