"""The test cases that the package `onnx` brings along; what the tests of its operators share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

onnx = pytest.importorskip("onnx")

Attributes = dict[str, Any]

# Nodes of single operators, and what PyTorch exported for its own modules.
KINDS = ("node", "pytorch-converted", "pytorch-operator")

native = pytest.mark.usefixtures("isa", "threads")


class Case(NamedTuple):
    """A graph that has one node but for changes of axes, and the arrays that go in and come out."""

    name: str
    graph: Any
    node: Any
    inputs: list[Any]
    outputs: list[Any]
    rtol: float  # of the standard


def attributes_of(node: Any) -> Attributes:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def data_of(case: Any) -> tuple[Any, list[Any], list[Any]]:
    """The model of a case, its inputs and its outputs."""
    if case.model is not None:
        inputs, outputs = case.data_sets[0]
        return case.model, list(inputs), list(outputs)
    folder = Path(case.model_dir)
    sets = [
        [onnx.numpy_helper.to_array(onnx.load_tensor(str(path))) for path in sorted(paths)]
        for paths in (folder.glob("test_data_set_0/input_*"), folder.glob("*_0/output_*"))
    ]
    return onnx.load(str(folder / "model.onnx")), sets[0], sets[1]


def find_cases(ops: tuple[str, ...]) -> Iterator[Case]:
    """Every case that tests one of the operators."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other operators, whose cases are made on import
        from onnx.backend.test.loader import load_model_tests

        found = [case for kind in KINDS for case in load_model_tests(kind=kind)]
    for case in found:
        if case.model is None and case.model_dir is None:
            continue  # a whole network, to be downloaded
        model, inputs, outputs = data_of(case)
        nodes = [n for n in model.graph.node if n.op_type not in ("Squeeze", "Unsqueeze")]
        if len(nodes) != 1 or nodes[0].op_type not in ops:
            continue  # another operator, maybe made of these
        yield Case(case.name, model.graph, nodes[0], inputs, outputs, case.rtol)
