"""The test cases of the ONNX standard for convolutions and pooling, from the package `onnx`.

Every case that it has is run, or is listed in `MISSING` with the option that does not exist here.
Those of recurrent layers are in `test_onnx_recurrent.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import tbptt_fast

from .cases import assert_close
from .onnx_cases import Attributes, attributes_of, find_cases, native, onnx

OPS = ("Conv", "ConvTranspose", "MaxPool", "AveragePool")

THREE = "three dimensions"
INTEGERS = "integer images"
DILATED = "dilated pooling"

MISSING = {
    "test_AvgPool3d": THREE,
    "test_AvgPool3d_stride": THREE,
    "test_AvgPool3d_stride1_pad0_gpu_input": THREE,
    "test_Conv3d": THREE,
    "test_Conv3d_dilated": THREE,
    "test_Conv3d_dilated_strided": THREE,
    "test_Conv3d_groups": THREE,
    "test_Conv3d_no_bias": THREE,
    "test_Conv3d_stride": THREE,
    "test_Conv3d_stride_padding": THREE,
    "test_MaxPool1d_stride_padding_dilation": DILATED,
    "test_MaxPool2d_stride_padding_dilation": DILATED,
    "test_MaxPool3d": THREE,
    "test_MaxPool3d_stride": THREE,
    "test_MaxPool3d_stride_padding": THREE,
    "test_averagepool_2d_dilations": DILATED,
    "test_averagepool_3d_default": THREE,
    "test_averagepool_3d_dilations_large_count_include_pad_is_0_ceil_mode_is_False": THREE,
    "test_averagepool_3d_dilations_large_count_include_pad_is_0_ceil_mode_is_True": THREE,
    "test_averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_False": THREE,
    "test_averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_True": THREE,
    "test_averagepool_3d_dilations_small": THREE,
    "test_convtranspose_3d": THREE,
    "test_maxpool_2d_dilations": DILATED,
    "test_maxpool_2d_uint8": INTEGERS,
    "test_maxpool_3d_default": THREE,
    "test_maxpool_3d_dilations": THREE,
    "test_maxpool_3d_dilations_use_ref_impl": THREE,
    "test_maxpool_3d_dilations_use_ref_impl_large": THREE,
}

# Written down with four decimals: the standard's own tolerance is all that they can be held to.
ROUNDED = {"test_averagepool_2d_ceil_last_window_starts_on_pad"}


@dataclass(frozen=True)
class Node:
    """One operator with its arrays; of a whole graph, the one that is tested."""

    name: str
    op: str
    attributes: Attributes
    inputs: list[Any]
    outputs: list[Any]
    rtol: float  # of the standard

    def ints(self, name: str, default: int) -> list[int]:
        """An attribute with one integer for each direction."""
        return list(self.attributes.get(name, [default] * self.rank))

    @property
    def rank(self) -> int:
        return int(self.inputs[0].ndim) - 2

    @property
    def size(self) -> list[int]:
        return list(self.inputs[0].shape[2:])

    @property
    def kernel(self) -> list[int]:
        given = self.inputs[1].shape[2:] if self.op.startswith("Conv") else None
        kernel = list(self.attributes.get("kernel_shape", given))
        assert given is None or kernel == list(given)
        return kernel

    @property
    def auto_pad(self) -> str:
        return bytes(self.attributes.get("auto_pad", b"NOTSET")).decode()

    @property
    def sides(self) -> list[tuple[int, int]]:
        """The padding before and behind, of all but transposed convolutions."""
        if self.auto_pad == "NOTSET":
            return halves(self.attributes.get("pads", [0] * 2 * self.rank))
        if self.auto_pad == "VALID":
            return [(0, 0)] * self.rank
        options = (self.size, self.kernel, self.ints("strides", 1), self.ints("dilations", 1))
        totals = [
            max(0, ((n - 1) // stride) * stride + (k - 1) * dilation + 1 - n)
            for n, k, stride, dilation in zip(*options, strict=True)
        ]
        return [share(total, self.auto_pad == "SAME_UPPER") for total in totals]


def halves(pads: list[int]) -> list[tuple[int, int]]:
    """ONNX lists what goes before in every direction, then what goes behind."""
    rank = len(pads) // 2
    return list(zip(pads[:rank], pads[rank:], strict=True))


def share(total: int, upper: bool) -> tuple[int, int]:
    """The two sides of a padding; an odd element goes behind if `upper`."""
    less, more = total // 2, total - total // 2
    return (less, more) if upper else (more, less)


def axes_changed(graph: Any, array: Any, op: str) -> Any:
    """PyTorch exported one-dimensional averages with an axis added before and removed behind."""
    for node in graph.node:
        if node.op_type == op:
            return np.expand_dims(array, tuple(attributes_of(node)["axes"]))
    return array


def find_nodes() -> Iterator[Node]:
    """Every case that tests one of the operators."""
    for case in find_cases(OPS):
        inputs = [axes_changed(case.graph, x, "Unsqueeze") for x in case.inputs]
        outputs = [axes_changed(case.graph, y, "Squeeze") for y in case.outputs]
        inputs += [onnx.numpy_helper.to_array(tensor) for tensor in case.graph.initializer]
        op, attributes = case.node.op_type, attributes_of(case.node)
        yield Node(case.name, op, attributes, inputs, outputs, case.rtol)


NODES = {node.name: node for node in find_nodes()}

RUN = [node for name, node in sorted(NODES.items()) if name not in MISSING]

layouts = pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])


def nodes(op: str) -> pytest.MarkDecorator:
    found = [node for node in RUN if node.op == op]
    return pytest.mark.parametrize("node", found, ids=lambda node: node.name)


def missing(node: Node) -> str | None:
    """The option of a case that does not exist here."""
    if node.rank > 2:
        return THREE
    if node.inputs[0].dtype.kind != "f":
        return INTEGERS
    if node.op.startswith("Conv"):
        return None
    return DILATED if any(dilation != 1 for dilation in node.ints("dilations", 1)) else None


def test_every_case_is_run_or_listed() -> None:
    assert {name: missing(node) for name, node in NODES.items() if missing(node)} == MISSING
    # What is there to run: none of the operators may be lost by the way that they are found.
    assert {node.op for node in RUN} == set(OPS)
    assert {node.rank for node in RUN} == {1, 2}


def check_attributes(node: Node, *known: str) -> None:
    """A new attribute is not to be ignored."""
    common = {"kernel_shape", "strides", "dilations", "pads", "auto_pad"}
    assert node.attributes.keys() <= common | set(known)


def plane(values: list[Any], missing: Any) -> tuple[Any, ...]:
    """One dimension is a plane of height 1: what an option is in two."""
    return tuple(values) if len(values) == 2 else (missing, *values)


def as_images(array: Any) -> Any:
    return array if array.ndim == 4 else array[:, :, None]


def moved(array: Any, last: bool) -> Any:
    """A view with the channels at the end."""
    return np.moveaxis(array, 1, -1) if last else array


def back(array: Any, last: bool) -> Any:
    return np.moveaxis(array, -1, 1) if last else array


def check_sums(node: Node, y: Any) -> None:
    """Of products of x and w; both sides round."""
    x, w = np.abs(node.inputs[0]), np.abs(node.inputs[1])
    terms = float(x.max() * w.max())
    assert_close(y, node.outputs[0], "forward", length=int(w[0].size), terms=terms)


@native
@layouts
@nodes("Conv")
def test_conv(node: Node, last: bool) -> None:
    check_attributes(node, "group")
    x, w, *bias = node.inputs
    conv = (tbptt_fast.conv1d, tbptt_fast.conv2d)[node.rank - 1]
    y = conv(
        moved(x, last),
        w,
        *bias,
        stride=node.ints("strides", 1),
        padding="same" if node.auto_pad == "SAME_UPPER" else node.sides,
        dilation=node.ints("dilations", 1),
        groups=node.attributes.get("group", 1),
        layout=(("NCL", "NLC"), ("NCHW", "NHWC"))[node.rank - 1][last],
    )
    check_sums(node, back(y, last))


def transposed_padding(node: Node) -> tuple[list[tuple[int, int]], list[int]]:
    """(sides, output_padding): where the output's size is given, they follow from it."""
    more = node.ints("output_padding", 0)
    stride, dilation = node.ints("strides", 1), node.ints("dilations", 1)
    shape = node.attributes.get("output_shape")
    if node.auto_pad.startswith("SAME"):
        shape = [n * s for n, s in zip(node.size, stride, strict=True)]
    if shape is None:
        return node.sides, more
    totals = [
        s * (n - 1) + extra + (k - 1) * d + 1 - out
        for n, k, s, d, extra, out in zip(
            node.size, node.kernel, stride, dilation, more, shape, strict=True
        )
    ]
    sides = [share(max(0, total), node.auto_pad == "SAME_UPPER") for total in totals]
    return sides, [extra - min(0, total) for extra, total in zip(more, totals, strict=True)]


@native
@layouts
@nodes("ConvTranspose")
def test_conv_transpose(node: Node, last: bool) -> None:
    check_attributes(node, "group", "output_padding", "output_shape")
    x, w, *bias = node.inputs
    sides, more = transposed_padding(node)
    y = tbptt_fast.conv_transpose2d(
        moved(as_images(x), last),
        as_images(w),
        *bias,
        stride=plane(node.ints("strides", 1), 1),
        padding=plane(sides, (0, 0)),
        output_padding=plane(more, 0),
        dilation=plane(node.ints("dilations", 1), 1),
        groups=node.attributes.get("group", 1),
        layout="NHWC" if last else "NCHW",
    )
    check_sums(node, back(y, last).reshape(node.outputs[0].shape))


def pooling_options(node: Node, last: bool) -> dict[str, Any]:
    return {
        "kernel": plane(node.kernel, 1),
        "stride": plane(node.ints("strides", 1), 1),
        "padding": "same" if node.auto_pad == "SAME_UPPER" else plane(node.sides, (0, 0)),
        "ceil_mode": bool(node.attributes.get("ceil_mode", 0)),
        "layout": "NHWC" if last else "NCHW",
    }


def plane_indices(node: Node) -> Any:
    """Places in the plane, row by row, from ONNX's in the whole array."""
    rows, columns = node.size
    found = node.outputs[1] % (rows * columns)
    if node.attributes.get("storage_order", 0):
        found = found % rows * columns + found // rows
    return found


@native
@layouts
@nodes("MaxPool")
def test_max_pool(node: Node, last: bool) -> None:
    check_attributes(node, "ceil_mode", "storage_order")
    images = moved(as_images(node.inputs[0]), last)
    y, indices = (
        back(a, last) for a in tbptt_fast.max_pool2d(images, **pooling_options(node, last))
    )
    np.testing.assert_array_equal(y.reshape(node.outputs[0].shape), node.outputs[0])
    if len(node.outputs) > 1:
        np.testing.assert_array_equal(indices, plane_indices(node))


@native
@layouts
@nodes("AveragePool")
def test_avg_pool(node: Node, last: bool) -> None:
    check_attributes(node, "ceil_mode", "count_include_pad")
    y = tbptt_fast.avg_pool2d(
        moved(as_images(node.inputs[0]), last),
        count_include_pad=bool(node.attributes.get("count_include_pad", 0)),
        **pooling_options(node, last),
    )
    shaped = back(y, last).reshape(node.outputs[0].shape)
    if node.name in ROUNDED:
        np.testing.assert_allclose(shaped, node.outputs[0], rtol=node.rtol)
        return
    terms = float(np.abs(node.inputs[0]).max())
    assert_close(shaped, node.outputs[0], "forward", length=int(np.prod(node.kernel)), terms=terms)
