"""What the tests of the modules share: small modules, inputs, and all results by name."""

from __future__ import annotations

from typing import Any

import numpy as np

from tbptt_fast import nn

from .cases import assert_close

STEPS, BATCH, INPUTS, HIDDEN = 7, 3, 5, 6
LENGTH = INPUTS + HIDDEN + STEPS * BATCH


def make(cell: str, num_layers: int = 1, inputs: int = INPUTS, **options: Any) -> Any:
    name, _, nonlinearity = cell.partition("_")
    kind = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[name]
    if nonlinearity:
        options["nonlinearity"] = nonlinearity
    return kind(inputs, HIDDEN, num_layers, **{"dtype": "float64", "seed": 1, **options})


def normal(*shape: int, seed: int = 0, dtype: Any = "float64") -> Any:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def make_state(cell: str, num_layers: int, seed: int, dtype: str = "float64") -> Any:
    h, c = (normal(num_layers, BATCH, HIDDEN, seed=seed + i, dtype=dtype) for i in (0, 1))
    return (h, c) if cell == "lstm" else h


def flat(state: Any) -> list[Any]:
    """The arrays of a state, whatever its form."""
    if state is None:
        return []
    return [state] if isinstance(state, np.ndarray) else [a for s in state for a in flat(s)]


def named(y: Any, state: Any, grads: nn.Gradients) -> dict[str, Any]:
    """All results of forward and backward by name."""
    found = {"y": y, **{f"state {i}": a for i, a in enumerate(flat(state))}}
    found |= {f"grad of state {i}": a for i, a in enumerate(flat(grads.state))}
    found |= {f"grad of {name}": a for name, a in grads.params.items()}
    return found if grads.x is None else found | {"grad of x": grads.x}


def run(
    module: nn.Module, x: Any, state: Any = None, *, is_init: Any = None, **options: Any
) -> Any:
    """Forward and backward with fixed gradients, everything by name."""
    y, new_state, tape = module.forward(x, state, is_init=is_init)
    grad_state = [normal(*a.shape, seed=8, dtype=a.dtype) for a in flat(new_state)]
    grads = module.backward(
        tape,
        normal(*y.shape, seed=9, dtype=y.dtype),
        grad_state=tuple(grad_state) if isinstance(new_state, tuple) else grad_state[0],
        **options,
    )
    return named(y, new_state, grads)


def compare(actual: dict[str, Any], expected: dict[str, Any], length: int = LENGTH) -> None:
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        kind = "gradient" if name.startswith("grad") else "forward"
        assert value.dtype == expected[name].dtype
        assert_close(value, expected[name], kind, length=length, name=name)
