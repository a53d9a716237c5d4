"""Our side of a recurrent problem, and the float64 reference that every side is compared with."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

import tbptt_fast
from tbptt_fast import reference
from tests.cases import assert_close

from .problem import WEIGHTS, Problem, Result
from .timing import LocalSide, Side

EPSILON = float(np.finfo(np.float32).eps)


class Call:
    """One problem, callable in `module`: tbptt_fast itself or its reference."""

    def __init__(self, module: ModuleType, problem: Problem) -> None:
        arrays = problem.arrays
        self.problem = problem
        self._forward = getattr(module, f"{problem.cell}_forward")
        self._backward = getattr(module, f"{problem.cell}_backward")
        hx: Any = (arrays["h"], arrays["c"]) if problem.cell == "lstm" else arrays["h"]
        self._operands = (arrays["x"], hx, *(arrays[name] for name in WEIGHTS))

    def forward(self) -> None:
        self._forward(*self._operands, is_init=self.problem.is_init, training=False)

    def both(self) -> tuple[Any, Any, Any]:
        out, hx, tape = self._forward(*self._operands, is_init=self.problem.is_init)
        grad_out = self.problem.arrays["grad_out"]
        return out, hx, self._backward(tape, grad_out, truncation=self.problem.chunk)

    def result(self) -> Result:
        out, hx, grads = self.both()
        found = {"out": out, "dx": grads.x}
        lstm = self.problem.cell == "lstm"
        states, dstates = (hx, grads.hx) if lstm else ((hx,), (grads.hx,))
        for name, state, dstate in zip("hc", states, dstates, strict=False):
            found[f"{name}_n"], found[f"d{name}"] = state, dstate
        return found | {f"d{name}": getattr(grads, name) for name in WEIGHTS}


def side(problem: Problem, name: str = "ours") -> LocalSide:
    call = Call(tbptt_fast, problem)
    tasks = {"forward": call.forward, "forward+backward": call.both}
    return LocalSide(name, call.result, tasks)


@lru_cache(maxsize=1)
def expected(problem: Problem) -> Result:
    """The float64 reference; kept, because one problem is verified for several thread counts."""
    return Call(reference, problem).result()


def verify(side: Side, problem: Problem) -> float:
    """The largest relative error; AssertionError where it is beyond the tolerance of the tests."""
    found, wanted = side.result(), expected(problem)
    assert found.keys() == wanted.keys(), f"{side.name}: {found.keys()} != {wanted.keys()}"
    length = problem.inputs + problem.hidden + problem.steps * problem.batch
    worst = 0.0
    for name, want in wanted.items():
        assert_close(
            found[name],
            want,
            "gradient" if name.startswith("d") else "forward",
            length=length,
            eps=EPSILON,
            name=f"{side.name}: {problem.cell} ({problem.shape}): {name}",
        )
        worst = max(worst, float(np.abs(found[name] - want).max() / np.abs(want).max()))
    return worst
