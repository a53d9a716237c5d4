"""Convolutions; part of `tbptt_fast.ops`, whose first lines hold here too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, SupportsIndex, TypeAlias

from . import _native
from ._types import Activation, Algo, Array, ArrayLike, Layout

Needs: TypeAlias = Sequence[Literal["x", "w", "b"]]
Extent: TypeAlias = SupportsIndex | Sequence[SupportsIndex]  # one for all directions, or each
Sides: TypeAlias = Sequence[Sequence[SupportsIndex]]


PackedConv2d = _native.PackedConv2d


class ConvGrads(NamedTuple):
    """Gradients of a convolution, each shaped like its argument; None where not needed."""

    x: Array | None
    w: Array | None
    b: Array | None


def pack_conv2d(w: ArrayLike) -> PackedConv2d:
    """Weights [O, I/groups, kY, kX] to give as w to many calls of the convolutions of images.

    Kernels reorder their weights, which costs most where images are few. A call that is given the
    handle keeps its order for the next one: each order that a layout, an algorithm and an
    instruction set ask for is made once, at first use. Results are the same to the bit. The
    handle holds a copy of w, `handle.w`, which cannot be changed; threads may share it.

    Raises:
        TypeError, ValueError: w is not such an array of float32 or float64.

    >>> import numpy as np
    >>> handle = pack_conv2d(np.ones((1, 1, 3, 3)))
    >>> conv2d(np.ones((1, 1, 3, 3)), handle)[0, 0].tolist(), handle.w.shape
    ([[9.0]], (1, 1, 3, 3))
    """
    return _native.pack_conv2d(w)


def conv2d(
    x: ArrayLike,
    w: ArrayLike | PackedConv2d,
    b: ArrayLike | None = None,
    *,
    stride: Extent = 1,
    padding: Extent | Sides | Literal["same", "valid"] = 0,
    dilation: Extent = 1,
    groups: SupportsIndex = 1,
    activation: Activation = None,
    layout: Layout = "NCHW",
    algo: Algo = "auto",
) -> Array:
    """Return f(w ⋆ x + b): images [N, O, Y', X'] for x [N, I, Y, X] and w [O, I/groups, kY, kX].

    The kernel is not flipped (cross-correlation), as in every framework for neural networks.

    Args:
        w: weights, or what `pack_conv2d` made of them.
        b: [O] or None.
        stride, dilation: one integer, or (vertical, horizontal).
        padding: zeros around the images: one integer, (vertical, horizontal), a pair of sides
            ((top, bottom), (left, right)), "valid" (none), or "same": as many outputs as inputs
            (with a stride, the quotient rounded up), an odd zero going behind.
        groups: output channels of group g see the input channels of group g only.
        activation: f; None (identity), "relu", "tanh" or "sigmoid", applied in the same pass.
        layout: "NCHW", or "NHWC" with x [N, Y, X, I] and images [N, Y', X', O]; w is the same.
        algo: "direct" adds up the products as they stand: integers small enough come out exactly.
            "winograd" computes kernels of size (3, 3) without stride and dilation by minimal
            filtering with tiles of 4 by 4 or 2 by 2 outputs, whichever promises to be faster;
            "winograd_4x4" and "winograd_2x2" name the tile. "auto" takes Winograd's way in float32
            where it is faster: its greatest error, in units of the greatest output, is then below
            1e-4 (normal numbers, up to 1024 channels: 5e-5 with the larger tiles, 1e-5 with the
            smaller).

    Returns:
        Y' = (Y + top + bottom - dilation·(kY - 1) - 1) // stride + 1, and X' likewise.

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`; the kernel exceeds the padded image; Winograd's
            way for a kernel, stride or dilation that it has not.

    Source: Lavin and Gray (2016), "Fast algorithms for convolutional neural networks".

    >>> import numpy as np
    >>> conv2d(np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3)), padding=1)[0, 0].tolist()
    [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """
    return _native.conv2d(x, w, b, stride, padding, dilation, groups, activation, layout, algo)


def conv2d_backward(
    grad_out: ArrayLike,
    x: ArrayLike,
    w: ArrayLike | PackedConv2d,
    *,
    y: ArrayLike | None = None,
    stride: Extent = 1,
    padding: Extent | Sides | Literal["same", "valid"] = 0,
    dilation: Extent = 1,
    groups: SupportsIndex = 1,
    activation: Activation = None,
    layout: Layout = "NCHW",
    algo: Algo = "auto",
    needs: Needs = ("x", "w", "b"),
) -> ConvGrads:
    """Gradients of `conv2d` by x, w and b; those not in `needs` are None and cost nothing.

    Args:
        grad_out: gradient by the output.
        y: the output of `conv2d`; needed with an activation (relu'(0) = 0).

    The other arguments are those of `conv2d`.

    Raises:
        TypeError, ValueError: as `conv2d`.

    >>> import numpy as np
    >>> x, w = np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 2))
    >>> grads = conv2d_backward(np.ones((1, 1, 1, 1)), x, w, needs=("w", "b"))
    >>> grads.w.tolist(), grads.b.tolist(), grads.x
    ([[[[1.0, 1.0], [1.0, 1.0]]]], [1.0], None)
    """
    return ConvGrads(
        *_native.conv2d_backward(
            grad_out,
            x,
            w,
            y,
            stride,
            padding,
            dilation,
            groups,
            activation,
            layout,
            algo,
            needs,
        )
    )


def conv1d(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None = None,
    *,
    stride: Extent = 1,
    padding: Extent | Sides | Literal["same", "valid", "causal"] = 0,
    dilation: Extent = 1,
    groups: SupportsIndex = 1,
    activation: Activation = None,
    layout: Literal["NCL", "NLC"] = "NCL",
) -> Array:
    """`conv2d` in one dimension: [N, O, X'] for x [N, I, X] and w [O, I/groups, k].

    Args:
        padding: also ((before, behind),), or "causal": zeros before the first element only, so
            that no output sees a later input.
        layout: "NCL", or "NLC" with x [N, X, I] and outputs [N, X', O].

    The other arguments and errors are those of `conv2d`.

    >>> import numpy as np
    >>> conv1d(np.array([[[1.0, 2.0, 3.0]]]), np.ones((1, 1, 2)), padding="causal").tolist()
    [[[1.0, 3.0, 5.0]]]
    """
    return _native.conv1d(x, w, b, stride, padding, dilation, groups, activation, layout)


def conv1d_backward(
    grad_out: ArrayLike,
    x: ArrayLike,
    w: ArrayLike,
    *,
    y: ArrayLike | None = None,
    stride: Extent = 1,
    padding: Extent | Sides | Literal["same", "valid", "causal"] = 0,
    dilation: Extent = 1,
    groups: SupportsIndex = 1,
    activation: Activation = None,
    layout: Literal["NCL", "NLC"] = "NCL",
    needs: Needs = ("x", "w", "b"),
) -> ConvGrads:
    """Gradients of `conv1d`, as `conv2d_backward` gives those of `conv2d`.

    >>> import numpy as np
    >>> conv1d_backward(np.ones((1, 1, 2)), np.ones((1, 1, 3)), np.ones((1, 1, 2))).x.tolist()
    [[[1.0, 2.0, 1.0]]]
    """
    return ConvGrads(
        *_native.conv1d_backward(
            grad_out,
            x,
            w,
            y,
            stride,
            padding,
            dilation,
            groups,
            activation,
            layout,
            needs,
        )
    )


def conv_transpose2d(
    x: ArrayLike,
    w: ArrayLike | PackedConv2d,
    b: ArrayLike | None = None,
    *,
    stride: Extent = 1,
    padding: Extent | Sides = 0,
    output_padding: Extent = 0,
    dilation: Extent = 1,
    groups: SupportsIndex = 1,
    activation: Activation = None,
    layout: Layout = "NCHW",
    algo: Algo = "auto",
) -> Array:
    """The transpose of `conv2d`: images [N, O, Y', X'] for x [N, I, Y, X], w [I, O/groups, kY, kX].

    It is the gradient of that convolution by its input, with a bias [O] and an activation; no zeros
    are inserted, each phase of the stride is computed by itself.

    Args:
        padding: of the convolution: what is cut off the output, as integers or pairs of sides.
        output_padding: what is added to the output's size, below and to the right; less than the
            stride or the dilation.

    The other arguments are those of `conv2d`.

    Returns:
        Y' = (Y - 1)·stride - top - bottom + dilation·(kY - 1) + output_padding + 1, X' likewise.

    Raises:
        TypeError, ValueError: see `tbptt_fast.ops`; an output without a pixel.

    Source: Zeiler et al. (2010), "Deconvolutional networks"; sizes as in PyTorch.

    >>> import numpy as np
    >>> conv_transpose2d(np.ones((1, 1, 1, 2)), np.ones((1, 1, 1, 2)), stride=2)[0, 0].tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """
    return _native.conv_transpose2d(
        x, w, b, stride, padding, output_padding, dilation, groups, activation, layout, algo
    )


def conv_transpose2d_backward(
    grad_out: ArrayLike,
    x: ArrayLike,
    w: ArrayLike | PackedConv2d,
    *,
    y: ArrayLike | None = None,
    stride: Extent = 1,
    padding: Extent | Sides = 0,
    output_padding: Extent = 0,
    dilation: Extent = 1,
    groups: SupportsIndex = 1,
    activation: Activation = None,
    layout: Layout = "NCHW",
    algo: Algo = "auto",
    needs: Needs = ("x", "w", "b"),
) -> ConvGrads:
    """Gradients of `conv_transpose2d`, as `conv2d_backward` gives those of `conv2d`.

    >>> import numpy as np
    >>> x, w = np.ones((1, 1, 1, 2)), np.ones((1, 1, 1, 2))
    >>> conv_transpose2d_backward(np.ones((1, 1, 1, 4)), x, w, stride=2).x.tolist()
    [[[[2.0, 2.0]]]]
    """
    return ConvGrads(
        *_native.conv_transpose2d_backward(
            grad_out,
            x,
            w,
            y,
            stride,
            padding,
            output_padding,
            dilation,
            groups,
            activation,
            layout,
            algo,
            needs,
        )
    )
