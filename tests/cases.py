"""The one list of recurrent cases, their random inputs, and the one table of tolerances.

Tests and benchmarks share it. A function that takes `ops` works with the package and with
`tbptt_fast.reference` alike, because their signatures are the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

CELLS = ("rnn_tanh", "rnn_relu", "gru", "lstm")
GATES = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}
DTYPES = ("float32", "float64")

Shape = tuple[int, int, int, int]  # T, B, I, H: steps, batch, input, hidden

# Sizes around the lanes, primes, and ones.
RECURRENT_SMALL: tuple[Shape, ...] = (
    (1, 1, 1, 1),
    (1, 1, 3, 7),
    (1, 31, 4, 16),
    (2, 3, 7, 15),
    (3, 1, 1, 8),
    (3, 8, 17, 33),
    (4, 7, 15, 17),
    (5, 4, 8, 16),
    (6, 16, 31, 3),
    (7, 2, 16, 31),
    (9, 33, 2, 8),
    (11, 5, 33, 1),
    (13, 17, 5, 7),
    (31, 1, 8, 13),
    (8, 15, 64, 64),
)

# Enough steps for several windows and resets; the second has one row and odd sizes.
RECURRENT_MASKED: tuple[Shape, ...] = ((11, 5, 3, 17), (13, 1, 5, 8))

# The shapes of the peers' table; `bench` times them.
RECURRENT_BENCH: tuple[Shape, ...] = (
    (64, 1, 64, 64),
    (64, 16, 64, 64),
    (64, 32, 128, 128),
    (64, 64, 256, 256),
    (64, 64, 512, 512),
    (128, 16, 1024, 1024),
    (1000, 8, 32, 32),
)

MASKS = ("plain", "is_init", "carry_scale", "both")
TRUNCATIONS = (None, 1, 3, 4, (1, 4), (2, 5), (3, 4), (5, 50))

# Largest allowed difference in units of eps · sqrt(length of the reduction) · magnitude of the
# terms. Never raise a number to make a test pass.
TOLERANCE = {
    "forward": 2.0,
    "gradient": 5.0,
}


def assert_close(
    actual: Any,
    expected: Any,
    kind: str,
    *,
    length: int,
    eps: float | None = None,
    terms: float = 1.0,
    name: str = "",
) -> None:
    """Compare by TOLERANCE[kind]; shapes must be equal and a NaN on either side fails.

    `terms` is the magnitude of what is added up: results may cancel to less than it, but their
    error does not. It is one for the inputs made here; `eps` is that of the dtype of `actual`.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    eps = float(np.finfo(actual.dtype).eps) if eps is None else eps
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, not {expected.shape}"
    assert np.isfinite(expected).all(), f"{name}: the expected values are not finite"
    scale = max(float(np.abs(expected).max(initial=0.0)), terms)
    atol = TOLERANCE[kind] * eps * max(length, 1) ** 0.5 * scale
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, equal_nan=False, err_msg=name)


def assert_identical(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal bits, name by name."""
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert value.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(
            value.view(f"u{value.itemsize}"),
            expected[name].view(f"u{value.itemsize}"),
            err_msg=name,
        )


def shape_id(shape: Shape) -> str:
    return "-".join(f"{axis}{size}" for axis, size in zip("TBIH", shape, strict=True))


@dataclass(frozen=True)
class Problem:
    """The inputs of one forward and backward pass; tuples of states have one entry or two."""

    cell: str
    x: Any  # [T, B, I]
    hx: tuple[Any, ...] | None  # (h,) or (h, c), [B, H] each
    w_ih: Any
    w_hh: Any
    b_ih: Any | None
    b_hh: Any | None
    grad_out: Any  # [T, B, H] or None
    grad_hx: tuple[Any, ...] | None

    @property
    def shape(self) -> Shape:
        return (*self.x.shape, self.w_hh.shape[1])

    @property
    def op(self) -> str:
        return self.cell.partition("_")[0]

    @property
    def options(self) -> dict[str, str]:
        """What the forward pass needs to know beside the arrays."""
        name = self.cell.partition("_")[2]
        return {"nonlinearity": name} if name else {}

    @property
    def length(self) -> int:
        """The longest reduction: over inputs and units, and over all rows of all steps."""
        steps, batch, inputs, hidden = self.shape
        return inputs + hidden + steps * batch


def make_problem(
    cell: str, shape: Shape, dtype: str = "float64", *, seed: int = 0, bias: bool = True
) -> Problem:
    """Normal inputs and gradients, weights U(-1/√H, 1/√H) as PyTorch starts them."""
    steps, batch, inputs, hidden = shape
    rng = np.random.default_rng([seed, *shape, CELLS.index(cell)])
    rows = GATES[cell] * hidden
    bound = hidden**-0.5

    def normal(*size: int) -> Any:
        return rng.normal(size=size).astype(dtype)

    def uniform(*size: int) -> Any:
        return rng.uniform(-bound, bound, size=size).astype(dtype)

    states = 2 if cell == "lstm" else 1
    return Problem(
        cell=cell,
        x=normal(steps, batch, inputs),
        hx=tuple(normal(batch, hidden) for _ in range(states)),
        w_ih=uniform(rows, inputs),
        w_hh=uniform(rows, hidden),
        b_ih=uniform(rows) if bias else None,
        b_hh=uniform(rows) if bias else None,
        grad_out=normal(steps, batch, hidden),
        grad_hx=tuple(normal(batch, hidden) for _ in range(states)),
    )


def make_masks(name: str, shape: Shape, dtype: str = "float64", *, seed: int = 0) -> dict[str, Any]:
    """The options is_init [T, B] and carry_scale [T, B] as far as the name asks for them."""
    rng = np.random.default_rng([seed, *shape])
    is_init = rng.random(shape[:2]) < 0.2
    carry_scale = rng.choice([0.0, 0.5, 1.0, 1.0, 1.5], size=shape[:2]).astype(dtype)
    return {
        "is_init": is_init if name in ("is_init", "both") else None,
        "carry_scale": carry_scale if name in ("carry_scale", "both") else None,
    }


def pair(problem: Problem, state: tuple[Any, ...] | None) -> Any:
    """A state as the operation wants it: an array, for the LSTM a pair."""
    return state if state is None or problem.op == "lstm" else state[0]


def states(problem: Problem, state: Any) -> tuple[Any, ...]:
    """The inverse of `pair`."""
    return tuple(state) if problem.op == "lstm" else (state,)


def forward(ops: Any, problem: Problem, **options: Any) -> tuple[Any, tuple[Any, ...], Any]:
    """(out, final states, tape)."""
    p = problem
    function = getattr(ops, f"{p.op}_forward")
    hx = pair(p, p.hx)
    out, hx_n, tape = function(p.x, hx, p.w_ih, p.w_hh, p.b_ih, p.b_hh, **p.options, **options)
    return out, states(p, hx_n), tape


def backward(ops: Any, problem: Problem, tape: Any, **options: Any) -> dict[str, Any]:
    """The gradients by name: x, h0 (c0), w_ih, w_hh, and the biases where there are any."""
    function = getattr(ops, f"{problem.op}_backward")
    grads = function(tape, problem.grad_out, pair(problem, problem.grad_hx), **options)
    initial = states(problem, grads.hx)
    named = {"x": grads.x, **dict(zip(("h0", "c0"), initial, strict=False))}
    named |= {name: getattr(grads, name) for name in ("w_ih", "w_hh", "b_ih", "b_hh")}
    return {name: value for name, value in named.items() if value is not None}


def run(
    ops: Any,
    problem: Problem,
    *,
    is_init: Any = None,
    truncation: Any = None,
    carry_scale: Any = None,
) -> dict[str, Any]:
    """Forward and backward, everything by name."""
    out, final, tape = forward(ops, problem, is_init=is_init)
    named = {"out": out, **dict(zip(("h_n", "c_n"), final, strict=False))}
    grads = backward(ops, problem, tape, truncation=truncation, carry_scale=carry_scale)
    return named | {f"grad_{name}": value for name, value in grads.items()}


def compare(
    problem: Problem, actual: dict[str, Any], expected: dict[str, Any], eps: float | None = None
) -> None:
    """Every result within its tolerance; eps is that of the problem's dtype unless given."""
    eps = float(np.finfo(problem.x.dtype).eps) if eps is None else eps
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        kind = "gradient" if name.startswith("grad_") else "forward"
        assert_close(value, expected[name], kind, length=problem.length, eps=eps, name=name)


def relu_margin(problem: Problem, out: Any, is_init: Any = None) -> float:
    """The smallest |pre-activation| of an RNN whose exact outputs are `out`.

    Beside the kink of relu a rounding error decides about a whole gradient: choose another seed.
    """
    p = problem
    first = np.zeros_like(out[:1]) if p.hx is None else p.hx[0][None]
    entering = np.concatenate([first, out[:-1]])
    if is_init is not None:
        entering = np.where(is_init[..., None], 0.0, entering)
    pre = p.x.astype(np.float64) @ p.w_ih.astype(np.float64).T
    pre = pre + entering @ p.w_hh.astype(np.float64).T
    for b in (p.b_ih, p.b_hh):
        pre = pre + (0.0 if b is None else b)
    return float(np.abs(pre).min(initial=np.inf))


def part(problem: Problem, steps: slice, rows: slice = slice(None), **changes: Any) -> Problem:
    """The same weights on some steps and rows; states and gradients as given in `changes`."""
    p = problem
    grad_out = None if p.grad_out is None else p.grad_out[steps, rows]
    return replace(p, x=p.x[steps, rows], grad_out=grad_out, **changes)
