"""Pooling over planes; part of `tbptt_fast.ops`, whose first lines hold here too.

Images are [N, C, Y, X] (layout "NCHW") or [N, Y, X, C] ("NHWC"). A kernel or a stride is an integer
for both axes or a pair (down, across); the stride is the kernel unless given. Padding is less than
the kernel: one integer, a pair, pairs of sides ((top, bottom), (left, right)), "valid" (none), or
"same": as many windows as values (with a stride, the quotient rounded up), an odd one going behind.
An axis has (size + padding before and behind - kernel) / stride + 1 windows, rounded down; with
ceil_mode rounded up, as long as a window begins before the padding behind. All as in PyTorch, which
knows neither sides nor names, and takes at most half of the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, SupportsIndex, TypeAlias

from . import _native
from ._types import Array, ArrayLike, Layout

Pair: TypeAlias = SupportsIndex | Sequence[SupportsIndex]
Padding: TypeAlias = Pair | Sequence[Sequence[SupportsIndex]] | Literal["same", "valid"]


def max_pool2d(
    x: ArrayLike,
    kernel: Pair,
    *,
    stride: Pair | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    layout: Layout = "NCHW",
) -> tuple[Array, Array]:
    """Return the largest value of each window, and where it is.

    Args:
        x: images; see the module's first lines, also for the other arguments. Padding is never the
            largest.
        layout: of x and of the results.

    Returns:
        The maxima and their places y·X + x in the plane, int64, both [N, C, OY, OX] (with "NHWC"
        [N, OY, OX, C]). Of equal values the first in the window's rows counts; a NaN is larger
        than everything, and of several the last counts, as in PyTorch.

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`; no window fits, or too much padding.

    Source: Zhou & Chellappa (1988), "Computation of optical flow using a neural network".

    >>> import numpy as np
    >>> y, indices = max_pool2d(np.array([[[[1.0, 5.0, 2.0, 2.0], [3.0, 4.0, 2.0, 0.0]]]]), 2)
    >>> y.tolist(), indices.tolist()
    ([[[[5.0, 2.0]]]], [[[[1, 2]]]])
    """
    return _native.max_pool2d(x, kernel, stride, padding, ceil_mode, layout)


def max_pool2d_backward(
    grad_out: ArrayLike,
    indices: ArrayLike,
    input_shape: Sequence[SupportsIndex],
    *,
    layout: Layout = "NCHW",
) -> Array:
    """Gradient of `max_pool2d` by x: each gradient goes to the place of its maximum.

    Where windows overlap, gradients are added in the order of the windows, row by row, for any
    number of threads.

    Args:
        grad_out: [N, C, OY, OX], or with "NHWC" [N, OY, OX, C].
        indices: as `max_pool2d` returns them, int32 or int64.
        input_shape: that of x.
        layout: of all of them.

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`; an index is not in [0, Y·X).

    >>> import numpy as np
    >>> max_pool2d_backward(np.ones((1, 1, 1, 2)), np.array([[[[1, 1]]]]), (1, 1, 1, 3)).tolist()
    [[[[0.0, 2.0, 0.0]]]]
    """
    return _native.max_pool2d_backward(grad_out, indices, input_shape, layout)


def avg_pool2d(
    x: ArrayLike,
    kernel: Pair,
    *,
    stride: Pair | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    layout: Layout = "NCHW",
) -> Array:
    """Return the mean of each window [N, C, OY, OX] (with "NHWC" [N, OY, OX, C]).

    Args:
        x: images; see the module's first lines, also for the other arguments.
        count_include_pad: whether padding counts as zeros or not at all; what ceil_mode adds behind
            the padding never counts.
        layout: of x and of the result.

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`; no window fits, or too much padding.

    Source: LeCun et al. (1998), "Gradient-based learning applied to document recognition".

    >>> import numpy as np
    >>> x = np.array([[[[1.0, 5.0, 2.0, 0.0], [3.0, 3.0, 2.0, 0.0]]]])
    >>> avg_pool2d(x, 2).tolist()
    [[[[3.0, 1.0]]]]
    """
    return _native.avg_pool2d(x, kernel, stride, padding, ceil_mode, count_include_pad, layout)


def avg_pool2d_backward(
    grad_out: ArrayLike,
    input_shape: Sequence[SupportsIndex],
    kernel: Pair,
    *,
    stride: Pair | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    layout: Layout = "NCHW",
) -> Array:
    """Gradient of `avg_pool2d` by x, from the same options.

    Args:
        grad_out: [N, C, OY, OX], or with "NHWC" [N, OY, OX, C].
        input_shape: that of x.
        kernel, stride, padding, ceil_mode, count_include_pad, layout: those of `avg_pool2d`.

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`; no window fits, or too much padding.

    >>> import numpy as np
    >>> avg_pool2d_backward(np.ones((1, 1, 1, 2)), (1, 1, 1, 3), (1, 2), stride=1).tolist()
    [[[[0.5, 1.0, 0.5]]]]
    """
    return _native.avg_pool2d_backward(
        grad_out, input_shape, kernel, stride, padding, ceil_mode, count_include_pad, layout
    )


def global_avg_pool2d(x: ArrayLike, *, layout: Layout = "NCHW") -> Array:
    """Return the mean of every plane [N, C] of images x; the sums are in double.

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`; a plane without values.

    Source: Lin, Chen & Yan (2014), "Network in network".

    >>> import numpy as np
    >>> global_avg_pool2d(np.arange(8.0).reshape(1, 2, 2, 2)).tolist()
    [[1.5, 5.5]]
    """
    return _native.global_avg_pool2d(x, layout)


def global_avg_pool2d_backward(
    grad_out: ArrayLike, input_shape: Sequence[SupportsIndex], *, layout: Layout = "NCHW"
) -> Array:
    """Gradient of `global_avg_pool2d` by x of shape input_shape, from grad_out [N, C].

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`; a plane without values.

    >>> import numpy as np
    >>> global_avg_pool2d_backward(np.array([[1.0]]), (1, 1, 2, 2)).tolist()
    [[[[0.25, 0.25], [0.25, 0.25]]]]
    """
    return _native.global_avg_pool2d_backward(grad_out, input_shape, layout)
