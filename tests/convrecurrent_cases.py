"""Recurrent layers on images: cases, random inputs, and all results by name, for several tests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from .cases import assert_close

CELLS = ("rnn_tanh", "rnn_relu", "gru", "lstm", "lstm_channel", "lstm_map")
GATES = {"rnn": 1, "gru": 3, "lstm": 4}
LAYOUTS = ("NCHW", "NHWC")


@dataclass(frozen=True)
class Shape:
    """T, B, C, H; (Y, X); the kernels of x and of h; dilation."""

    sizes: tuple[int, int, int, int]
    image: tuple[int, int]
    kernel_ih: tuple[int, int] = (3, 3)
    kernel_hh: tuple[int, int] = (3, 3)
    dilation: tuple[int, int] = (1, 1)

    def __str__(self) -> str:
        parts = (self.sizes, self.image, self.kernel_ih, self.kernel_hh, self.dilation)
        return "-".join("x".join(map(str, part)) for part in parts)


# Sizes around the lanes, kernels larger than the image, no neighbours at all, few and many
# channels, and one large enough that products are made apart from the cell.
SHAPES = (
    Shape((1, 1, 1, 1), (1, 1)),
    Shape((3, 2, 1, 7), (4, 5)),
    Shape((4, 3, 5, 17), (7, 6), (3, 1), (5, 3), (1, 2)),
    Shape((5, 2, 3, 16), (1, 1), (1, 1), (1, 1)),
    Shape((2, 1, 33, 9), (2, 3), (5, 7), (7, 5)),
    Shape((4, 2, 17, 33), (9, 10), (3, 3), (3, 3), (2, 1)),
    Shape((3, 2, 2, 20), (33, 17)),
    Shape((3, 1, 1, 5), (32, 33), (5, 5), (3, 3)),
)
SMALL = SHAPES[2]


@dataclass(frozen=True)
class Problem:
    """The inputs of one forward and backward pass; states have one entry or two; NCHW."""

    cell: str
    shape: Shape
    x: Any
    hx: tuple[Any, ...] | None
    w_ih: Any
    w_hh: Any
    b_ih: Any | None
    b_hh: Any | None
    peephole: Any | None
    grad_out: Any
    grad_hx: tuple[Any, ...] | None

    @property
    def op(self) -> str:
        return self.cell.partition("_")[0]

    @property
    def length(self) -> int:
        """The longest reduction: over taps and channels, and over all pixels of all steps."""
        steps, batch, inputs, hidden = self.shape.sizes
        taps = int(np.prod(self.shape.kernel_ih) + np.prod(self.shape.kernel_hh))
        return taps * (inputs + hidden) + steps * batch * int(np.prod(self.shape.image))


def make_problem(cell: str, shape: Shape, dtype: str = "float64", seed: int = 0) -> Problem:
    steps, batch, inputs, hidden = shape.sizes
    rng = np.random.default_rng([seed, *shape.sizes, *shape.image])
    op, _, kind = cell.partition("_")
    rows = GATES[op] * hidden
    bound = (hidden * int(np.prod(shape.kernel_hh))) ** -0.5

    def normal(*size: int) -> Any:
        return rng.normal(size=size).astype(dtype)

    def uniform(*size: int) -> Any:
        return rng.uniform(-bound, bound, size=size).astype(dtype)

    states = 2 if op == "lstm" else 1
    state = (batch, hidden, *shape.image)
    peepholes = {"channel": (3, hidden), "map": (3, hidden, *shape.image)}
    return Problem(
        cell=cell,
        shape=shape,
        x=normal(steps, batch, inputs, *shape.image),
        hx=tuple(normal(*state) for _ in range(states)),
        w_ih=uniform(rows, inputs, *shape.kernel_ih),
        w_hh=uniform(rows, hidden, *shape.kernel_hh),
        b_ih=uniform(rows),
        b_hh=uniform(rows),
        peephole=normal(*peepholes[kind]) if kind in peepholes else None,
        grad_out=normal(steps, *state),
        grad_hx=tuple(normal(*state) for _ in range(states)),
    )


def make_masks(problem: Problem, seed: int = 0) -> dict[str, Any]:
    size = problem.x.shape[:2]
    rng = np.random.default_rng([seed, *size])
    scale = rng.choice([0.0, 0.5, 1.0, 1.0, 1.5], size=size).astype(problem.x.dtype)
    return {"is_init": rng.random(size) < 0.2, "carry_scale": scale}


def channels_last(a: Any) -> Any:
    return None if a is None else np.ascontiguousarray(np.moveaxis(a, -3, -1))


def channels_first(a: Any) -> Any:
    return np.moveaxis(a, -1, -3)


def in_layout(layout: str, a: Any) -> Any:
    return a if layout == "NCHW" else channels_last(a)


def forward(
    ops: Any, problem: Problem, layout: str = "NCHW", **options: Any
) -> tuple[Any, tuple[Any, ...], Any]:
    """(out, final states, tape); arrays in the layout."""
    p = problem
    to = partial(in_layout, layout)
    hx = None if p.hx is None else tuple(to(s) for s in p.hx)
    if p.cell.startswith("rnn"):
        options["nonlinearity"] = p.cell[4:]
    if p.peephole is not None:
        options["peephole"] = p.peephole if p.peephole.ndim == 2 else to(p.peephole)
    if layout != "NCHW":
        options["layout"] = layout
    run_cell = getattr(ops, f"conv{p.op}_forward")
    given = hx if hx is None or p.op == "lstm" else hx[0]
    arguments = (to(p.x), given, p.w_ih, p.w_hh, p.b_ih, p.b_hh)
    out, last, tape = run_cell(*arguments, dilation=p.shape.dilation, **options)
    return out, last if p.op == "lstm" else (last,), tape


def backward(
    ops: Any, problem: Problem, tape: Any, layout: str = "NCHW", **options: Any
) -> dict[str, Any]:
    """The gradients by name; arrays in the layout."""
    p = problem
    to = partial(in_layout, layout)
    grad_hx = None if p.grad_hx is None else tuple(to(s) for s in p.grad_hx)
    given = grad_hx if grad_hx is None or p.op == "lstm" else grad_hx[0]
    grads = getattr(ops, f"conv{p.op}_backward")(tape, to(p.grad_out), given, **options)
    initial = grads.hx if p.op == "lstm" else (grads.hx,)
    named = {"x": grads.x, **dict(zip(("h0", "c0"), initial, strict=False))}
    names = ("w_ih", "w_hh", "b_ih", "b_hh", "peephole")
    named |= {name: getattr(grads, name) for name in names}
    return {name: value for name, value in named.items() if value is not None}


def run(
    ops: Any,
    problem: Problem,
    layout: str = "NCHW",
    *,
    truncation: Any = None,
    carry_scale: Any = None,
    **options: Any,
) -> dict[str, Any]:
    """Forward and backward, everything by name and in NCHW."""
    out, final, tape = forward(ops, problem, layout, **options)
    named = {"out": out, **dict(zip(("h_n", "c_n"), final, strict=False))}
    grads = backward(ops, problem, tape, layout, truncation=truncation, carry_scale=carry_scale)
    named |= {f"grad_{name}": value for name, value in grads.items()}
    if layout == "NCHW":
        return named
    images: tuple[str, ...] = ("out", "h_n", "c_n", "grad_x", "grad_h0", "grad_c0")
    if problem.cell == "lstm_map":
        images += ("grad_peephole",)
    return {n: channels_first(a) if n in images else a for n, a in named.items()}


def compare(
    problem: Problem, actual: dict[str, Any], expected: dict[str, Any], eps: float | None = None
) -> None:
    """Every result of direct convolutions within its tolerance; eps is the dtype's unless given."""
    eps = float(np.finfo(problem.x.dtype).eps) if eps is None else eps
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert value.dtype == problem.x.dtype
        kind = "gradient" if name.startswith("grad_") else "forward"
        assert_close(value, expected[name], kind, length=problem.length, eps=eps, name=name)


def cut(problem: Problem, steps: slice, rows: slice = slice(None), **changes: Any) -> Problem:
    """The same weights on some steps and rows; states and gradients as given in `changes`."""
    p = problem
    return replace(p, x=p.x[steps, rows], grad_out=p.grad_out[steps, rows], **changes)
