"""The test cases of the ONNX standard for recurrent layers, from the package `onnx`.

Every case that it has is run, or is listed in `MISSING` with the option that does not exist here.
Their weights are mostly constant, which does not tell gates from each other: more cases, of random
weights, biases and states, have their results from the reference implementation in that package.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import nn

from .cases import assert_close
from .onnx_cases import Attributes, Case, attributes_of, find_cases, native, onnx

reference = pytest.importorskip("onnx.reference")

# Which of the standard's gates (i, o, f, c; z, r, h) are ours: i, f, g, o; r, z, n.
GATES = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 2, 3, 1)}
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
OUTPUTS = ("Y", "Y_h", "Y_c")

PEEPHOLES = "gates that see the cell (peepholes)"
RESET_FIRST = "a reset gate before the recurrent product (linear_before_reset = 0)"
LENGTHS = "rows of different lengths"

MISSING = {
    "test_gru_seq_length": RESET_FIRST,
    "test_lstm_with_peepholes": PEEPHOLES,
}


@dataclass(frozen=True)
class Layer:
    """One node with its arrays by their names in the standard, with the time first."""

    name: str
    op: str
    attributes: Attributes
    inputs: dict[str, Any]
    outputs: dict[str, Any]

    @property
    def direction(self) -> str:
        return bytes(self.attributes.get("direction", b"forward")).decode()

    @property
    def backwards(self) -> list[bool]:
        """Of each direction, whether it reads the sequence from its end."""
        return {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[
            self.direction
        ]

    @property
    def hidden(self) -> int:
        return int(self.attributes["hidden_size"])

    def ours(self, gates: Any) -> Any:
        """Rows of all gates, in our order."""
        blocks = np.split(gates, len(GATES[self.op]))
        return np.concatenate([blocks[gate] for gate in GATES[self.op]])

    def weights(self, direction: int) -> list[Any]:
        """w_ih, w_hh and, where there are biases, b_ih and b_hh."""
        found = [self.inputs[name][direction] for name in ("W", "R")]
        if "B" in self.inputs:
            found += np.split(self.inputs["B"][direction], 2)
        return [self.ours(array) for array in found]

    def state(self, direction: int) -> list[Any]:
        """[h], of an LSTM [h, c]; None for zeros."""
        names = ("initial_h", "initial_c")[: 1 + (self.op == "LSTM")]
        return [self.inputs[n][direction] if n in self.inputs else None for n in names]

    def turned(self, array: Any, direction: int) -> Any:
        return array[::-1] if self.backwards[direction] else array


def layer_of(case: Case) -> Layer:
    """What is not given has no name in the node, and no array."""
    attributes = attributes_of(case.node)

    def named(roles: tuple[str, ...], names: list[str], arrays: list[Any]) -> dict[str, Any]:
        given = iter(arrays)
        return {role: next(given) for role, name in zip(roles, names, strict=False) if name}

    inputs = named(INPUTS, list(case.node.input), case.inputs)
    outputs = named(OUTPUTS, list(case.node.output), case.outputs)
    if attributes.get("layout", 0):  # rows first, also of states
        first = ("X", "initial_h", "initial_c", "Y_h", "Y_c")
        for arrays in (inputs, outputs):
            arrays |= {n: np.swapaxes(a, 0, 1) for n, a in arrays.items() if n in first}
        if "Y" in outputs:
            outputs["Y"] = np.moveaxis(outputs["Y"], 0, 2)  # [B, T, D, H]
    return Layer(case.name, case.node.op_type, attributes, inputs, outputs)


LAYERS = {case.name: layer_of(case) for case in find_cases(tuple(GATES))}
RUN = [layer for name, layer in sorted(LAYERS.items()) if name not in MISSING]


def reference_case(op: str, direction: str, layout: int, more: bool) -> Layer:
    """Random weights, with biases and states if `more`, and what the reference makes of them."""
    rng = np.random.default_rng(len(op) + 10 * layout)
    steps, batch, inputs, hidden = 5, 3, 4, 6
    ways, gates = 1 + (direction == "bidirectional"), len(GATES[op])
    attributes = {"hidden_size": hidden, "direction": direction, "layout": layout}
    if op == "GRU":
        attributes["linear_before_reset"] = 1
    shapes: dict[str, tuple[int, ...]] = {
        "X": (batch, steps, inputs) if layout else (steps, batch, inputs),
        "W": (ways, gates * hidden, inputs),
        "R": (ways, gates * hidden, hidden),
    }
    state = (batch, ways, hidden) if layout else (ways, batch, hidden)
    if more:
        shapes |= {"B": (ways, 2 * gates * hidden), "initial_h": state}
    if more and op == "LSTM":
        shapes["initial_c"] = state
    arrays = {name: rng.uniform(-1, 1, shape) for name, shape in shapes.items()}
    names = [name if name in arrays else "" for name in INPUTS[: 6 + (op == "LSTM")]]
    results = OUTPUTS[: 2 + (op == "LSTM")]
    node = onnx.helper.make_node(op, names, list(results), **attributes)
    values = [
        [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.DOUBLE, None) for n in part]
        for part in (arrays, results)
    ]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], op, *values))
    outputs = reference.ReferenceEvaluator(model).run(None, arrays)
    name = f"{op}-{direction}-{('time', 'rows')[layout]} first-{'all' if more else 'weights'}"
    return layer_of(Case(name, model.graph, node, list(arrays.values()), outputs, 0.0))


MADE = [
    reference_case(*options)
    for options in product(GATES, ("forward", "reverse", "bidirectional"), (0, 1), (False, True))
]

layers = pytest.mark.parametrize("layer", RUN + MADE, ids=lambda layer: layer.name)


def same_rows(array: Any) -> bool:
    return bool((array == array[:1]).all())


def resets_alike(layer: Layer) -> bool:
    """No candidate sees whether the reset comes before the product: r ∘ (R·h + b) or R·(r ∘ h) + b.

    Where all units have the same weights, r is one number in every row; then b must be zero.
    """
    for direction in range(len(layer.backwards)):
        w_ih, w_hh, *biases = layer.weights(direction)
        candidate = slice(2 * layer.hidden, None)
        if biases and biases[1][candidate].any():
            return False
        reset = [array[: layer.hidden] for array in (w_ih, w_hh, *biases)]
        still = len(layer.inputs["X"]) == 1 and layer.state(direction)[0] is None
        if not still and not all(same_rows(array) for array in reset):
            return False
    return True


def missing(layer: Layer) -> str | None:
    """The option of a case that does not exist here."""
    if layer.inputs.get("P", np.zeros(1)).any():
        return PEEPHOLES
    steps = len(layer.inputs["X"])
    if (layer.inputs.get("sequence_lens", np.array(steps)) != steps).any():
        return LENGTHS
    first = layer.op == "GRU" and not layer.attributes.get("linear_before_reset", 0)
    return RESET_FIRST if first and not resets_alike(layer) else None


def test_every_case_is_run_or_listed() -> None:
    assert {n: missing(layer) for n, layer in LAYERS.items() if missing(layer)} == MISSING
    # What is there to run: nothing may be lost by the way that it is found.
    for op in GATES:
        directions = {layer.direction for layer in RUN if layer.op == op}
        assert directions == {"forward", "reverse", "bidirectional"}
    assert {layer.attributes.get("layout", 0) for layer in RUN} == {0, 1}


Results = tuple[Any, list[Any]]  # y [T, B, H] and the last states [B, H]


def by_ops(layer: Layer, x: Any, direction: int) -> Results:
    function = getattr(tbptt_fast, f"{layer.op.lower()}_forward")
    state = layer.state(direction)
    hx = tuple(state) if layer.op == "LSTM" else state[0]
    y, last, _ = function(x, hx, *layer.weights(direction))
    return y, list(last) if layer.op == "LSTM" else [last]


def by_nn(layer: Layer, x: Any, direction: int) -> Results:
    weights = layer.weights(direction)
    bias = len(weights) > 2
    module = getattr(nn, layer.op)(x.shape[2], layer.hidden, bias=bias, dtype=x.dtype)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    module.load_state_dict(dict(zip(names, weights, strict=False)))
    state = [s if s is None else s[np.newaxis] for s in layer.state(direction)]
    y, last = module(x, tuple(state) if layer.op == "LSTM" else state[0])
    return y, [s[0] for s in last] if layer.op == "LSTM" else [last[0]]


def compare(layer: Layer, results: list[Results]) -> None:
    """The outputs that the case has, with the directions side by side."""
    found = {"Y": np.stack([layer.turned(y, d) for d, (y, _) in enumerate(results)], 1)}
    for i, name in enumerate(OUTPUTS[1 : 2 + (layer.op == "LSTM")]):
        found[name] = np.stack([last[i] for _, last in results])
    # products of x and w, and of h, which is at most 1
    x, *weights = (np.abs(layer.inputs[name]).max() for name in ("X", "W", "R"))
    terms = float(x * weights[0] + weights[1])
    for name, expected in layer.outputs.items():
        length = layer.inputs["X"].shape[2] + layer.hidden
        assert_close(found[name], expected, "forward", length=length, terms=terms, name=name)


@native
@layers
@pytest.mark.parametrize("run", [by_ops, by_nn])
def test_like_the_standard(layer: Layer, run: Any) -> None:
    # a new attribute is not to be ignored
    known = {"hidden_size", "direction", "layout", "linear_before_reset"}
    assert layer.attributes.keys() <= known
    x = layer.inputs["X"]
    directions = range(len(layer.backwards))
    compare(layer, [run(layer, layer.turned(x, d), d) for d in directions])


@layers
def test_like_the_standard_in_torch(layer: Layer) -> None:
    """Two directions are one module there; what is read from its end alone is turned before."""
    torch = pytest.importorskip("torch")
    import tbptt_fast.torch as ours

    x, both = layer.inputs["X"], layer.direction == "bidirectional"
    module = getattr(ours, layer.op)(
        *(x.shape[2], layer.hidden),
        bias="B" in layer.inputs,
        bidirectional=both,
        dtype=torch.from_numpy(x).dtype,
    )
    ways = range(len(layer.backwards))
    weights = [array for d in ways for array in layer.weights(d)]
    states = [layer.state(d) for d in ways]
    hx: Any = None
    if states[0][0] is not None:
        hx = [torch.from_numpy(np.stack(state)) for state in zip(*states, strict=True)]
        hx = tuple(hx) if layer.op == "LSTM" else hx[0]
    with torch.no_grad():
        for parameter, array in zip(module.parameters(), weights, strict=True):
            parameter.copy_(torch.from_numpy(array))
        y, last = module(torch.from_numpy(x if both else layer.turned(x, 0).copy()), hx)
    last = [s.numpy() for s in (last if layer.op == "LSTM" else (last,))]
    parts = np.split(y.numpy(), len(ways), axis=2)
    # of both, the module has turned the second back; `compare` expects it as it was read
    turned = [layer.turned(part, d) if both else part for d, part in enumerate(parts)]
    compare(layer, [(turned[d], [s[d] for s in last]) for d in ways])
