"""Modules against PyTorch's, with the weights moved in both directions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tbptt_fast import nn

from .cases import CELLS, DTYPES, assert_identical
from .nn_cases import (
    BATCH,
    HIDDEN,
    INPUTS,
    LENGTH,
    STEPS,
    compare,
    flat,
    make,
    make_state,
    named,
    normal,
    run,
)

torch = pytest.importorskip("torch")

cells = pytest.mark.parametrize("cell", CELLS)


def torch_module(cell: str, module: Any) -> Any:
    """The same network in torch, with the weights of the module, by `load_state_dict`."""
    name, _, nonlinearity = cell.partition("_")
    kind = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[name]
    options = {"nonlinearity": nonlinearity} if nonlinearity else {}
    found = kind(
        INPUTS, HIDDEN, module.num_layers, bias="bias_ih_l0" in module.parameters(), **options
    )
    weights = {k: torch.from_numpy(v) for k, v in module.state_dict().items()}
    found.to(weights["weight_hh_l0"].dtype).load_state_dict(weights)
    return found


def run_torch(
    module: Any,
    x: Any,
    state: Any,
    *,
    is_init: Any = None,
    truncation: int | None = None,
    carry_scale: Any = None,
) -> dict[str, Any]:
    """What `run` gives, from autograd: one call per step, the state cut and scaled between."""
    leaves = [torch.tensor(a, requires_grad=True) for a in flat(state)]
    inputs = torch.tensor(x, requires_grad=True)
    entering, outputs = list(leaves), []
    for t in range(len(x)):
        if carry_scale is not None:
            scale = torch.from_numpy(carry_scale[t])[:, None]
            entering = [scale * s + ((1 - scale) * s).detach() for s in entering]
        if is_init is not None:
            first = torch.from_numpy(is_init[t])[:, None]
            entering = [torch.where(first, torch.zeros_like(s), s) for s in entering]
        if truncation is not None and t and t % truncation == 0:
            entering = [s.detach() for s in entering]
        out, new = module(inputs[t : t + 1], tuple(entering) if len(entering) > 1 else entering[0])
        entering = list(new) if isinstance(new, tuple) else [new]
        outputs.append(out)
    y = torch.cat(outputs)
    total = (y * torch.from_numpy(normal(*y.shape, seed=9, dtype=x.dtype))).sum()
    for s in entering:
        total = total + (s * torch.from_numpy(normal(*s.shape, seed=8, dtype=x.dtype))).sum()
    total.backward()
    found = {"y": y.detach().numpy()}
    found |= {f"state {i}": s.detach().numpy() for i, s in enumerate(entering)}
    found |= {f"grad of state {i}": s.grad.numpy() for i, s in enumerate(leaves)}
    found |= {f"grad of {name}": p.grad.numpy() for name, p in module.named_parameters()}
    return found | {"grad of x": inputs.grad.numpy()}


MASKS = ("plain", "is_init", "carry_scale", "truncation", "all")


@cells
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("mask", MASKS)
def test_equals_torch(cell: str, num_layers: int, mask: str) -> None:
    module = make(cell, num_layers)
    x, state = normal(STEPS, BATCH, INPUTS), make_state(cell, num_layers, seed=3)
    rng = np.random.default_rng(5)
    options: dict[str, Any] = {}
    if mask in ("is_init", "all"):
        options["is_init"] = rng.random((STEPS, BATCH)) < 0.3
    if mask in ("carry_scale", "all"):
        options["carry_scale"] = rng.choice([0.0, 0.5, 1.0, 1.5], (STEPS, BATCH))
    if mask in ("truncation", "all"):
        options["truncation"] = 3
    expected = run_torch(torch_module(cell, module), x, state, **options)
    compare(run(module, x, state, **options), expected, num_layers * LENGTH)


@cells
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_loads_the_weights_of_torch(cell: str, bias: bool, dtype: str) -> None:
    module = make(cell, 2, bias=bias, seed=1, dtype=dtype)
    theirs = torch_module(cell, make(cell, 2, bias=bias, seed=2, dtype=dtype))
    weights = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    module.load_state_dict(weights)
    assert list(module.parameters()) == list(weights)
    assert_identical(module.state_dict(), weights)
    x, state = normal(STEPS, BATCH, INPUTS, dtype=dtype), make_state(cell, 2, 3, dtype)
    compare(run(module, x, state), run_torch(theirs, x, state), 2 * LENGTH)


@pytest.mark.parametrize("activation", [None, "relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_torch(activation: Any, bias: bool) -> None:
    linear = nn.Linear(INPUTS, HIDDEN, bias, activation, seed=1, dtype="float64")
    x, grad_y = normal(STEPS, BATCH, INPUTS), normal(STEPS, BATCH, HIDDEN, seed=1)
    y, state, tape = linear.forward(x)
    grads = linear.backward(tape, grad_y)
    leaf = torch.tensor(x, requires_grad=True)
    weights = {k: torch.tensor(v, requires_grad=True) for k, v in linear.state_dict().items()}
    expected = torch.nn.functional.linear(leaf, weights["weight"], weights.get("bias"))
    if activation is not None:
        expected = getattr(torch, activation)(expected)
    expected.backward(torch.from_numpy(grad_y))
    assert state is None
    assert grads.state is None
    compare(
        named(y, state, grads),
        {
            "y": expected.detach().numpy(),
            **{f"grad of {name}": w.grad.numpy() for name, w in weights.items()},
            "grad of x": leaf.grad.numpy(),
        },
    )


def test_embedding_equals_torch() -> None:
    embedding = nn.Embedding(11, HIDDEN, seed=1, dtype="float64")
    ids = np.random.default_rng(0).integers(0, 11, (STEPS, BATCH))
    y, _, tape = embedding.forward(ids)
    grads = embedding.backward(tape, normal(*y.shape))
    weight = torch.tensor(embedding.parameters()["weight"], requires_grad=True)
    expected = torch.nn.functional.embedding(torch.from_numpy(ids), weight)
    expected.backward(torch.from_numpy(normal(*y.shape)))
    assert grads.x is None
    compare(
        named(y, None, grads),
        {"y": expected.detach().numpy(), "grad of weight": weight.grad.numpy()},
    )
