"""PyTorch's autograd as a second oracle: whole sequences, detached chunks, overlapping windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tbptt_fast

from .cases import (
    CELLS,
    DTYPES,
    Problem,
    Shape,
    compare,
    make_masks,
    make_problem,
    run,
    shape_id,
)

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.usefixtures("threads")

cells = pytest.mark.parametrize("cell", CELLS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
SHAPES: tuple[Shape, ...] = ((1, 1, 1, 1), (11, 3, 5, 7), (9, 4, 16, 33))


def module_of(problem: Problem) -> Any:
    """nn.RNN, nn.GRU or nn.LSTM in float64 with the problem's weights."""
    _, _, inputs, hidden = problem.shape
    kind = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[problem.op]
    module = kind(inputs, hidden, **problem.options).double()
    with torch.no_grad():
        for name in ("w_ih", "w_hh", "b_ih", "b_hh"):
            parameter = getattr(module, name.replace("w", "weight").replace("b_", "bias_") + "_l0")
            parameter.copy_(torch.from_numpy(getattr(problem, name).astype(np.float64)))
    return module


class Sequence:
    """One sequence in torch: leaves that collect gradients, and a loop over steps."""

    def __init__(self, problem: Problem, is_init: Any = None) -> None:
        self.problem = problem
        self.module = module_of(problem)
        self.x = self.leaf(problem.x)
        assert problem.hx is not None
        self.hx = tuple(self.leaf(s) for s in problem.hx)
        self.grad_out = torch.from_numpy(problem.grad_out.astype(np.float64))
        self.grad_hx = [torch.from_numpy(s.astype(np.float64)) for s in problem.grad_hx or ()]
        self.is_init = None if is_init is None else torch.from_numpy(is_init)

    @staticmethod
    def leaf(array: Any) -> Any:
        return torch.from_numpy(array.astype(np.float64)).requires_grad_()

    def steps(self, first: int, stop: int, state: tuple[Any, ...]) -> tuple[Any, list[Any]]:
        """Outputs of the steps first … stop-1, and the states after each of them."""
        outputs, after = [], []
        for t in range(first, stop):
            if self.is_init is not None:
                reset = self.is_init[t][:, None]
                state = tuple(torch.where(reset, torch.zeros_like(s), s) for s in state)
            batched = tuple(s[None] for s in state)
            hx = batched if self.problem.op == "lstm" else batched[0]
            out, new = self.module(self.x[t : t + 1], hx)
            state = tuple(s[0] for s in (new if self.problem.op == "lstm" else (new,)))
            outputs.append(out[0])
            after.append(state)
        return torch.stack(outputs), after

    def loss(self, outputs: Any, start: int, stop: int, final: tuple[Any, ...]) -> Any:
        """The losses of the steps start … stop-1, and the final state's if this is the end."""
        total = (outputs * self.grad_out[start:stop]).sum()
        if stop == len(self.x):
            total = total + sum((s * g).sum() for s, g in zip(final, self.grad_hx, strict=True))
        return total

    def results(self, out: Any, final: tuple[Any, ...]) -> dict[str, Any]:
        names = {"weight_ih": "w_ih", "weight_hh": "w_hh", "bias_ih": "b_ih", "bias_hh": "b_hh"}
        tensors = {
            "out": out,
            **dict(zip(("h_n", "c_n"), final, strict=False)),
            "grad_x": self.x.grad,
        }
        for name, s in zip(("h0", "c0"), self.hx, strict=False):
            tensors[f"grad_{name}"] = torch.zeros_like(s) if s.grad is None else s.grad
        for name, parameter in self.module.named_parameters():
            tensors["grad_" + names[name.removesuffix("_l0")]] = parameter.grad
        return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def overlapping(problem: Problem, k1: int, k2: int, is_init: Any = None) -> dict[str, Any]:
    """BPTT(k2; k1): each window replays from a detached state and counts its own losses."""
    run_ = Sequence(problem, is_init)
    steps = len(problem.x)
    with torch.no_grad():
        out, after = run_.steps(0, steps, run_.hx)
    for start in range(0, steps, k1):
        stop, lowest = min(start + k1, steps), max(0, start + k1 - k2)
        state = run_.hx if lowest == 0 else tuple(s.detach() for s in after[lowest - 1])
        outputs, states = run_.steps(lowest, stop, state)
        run_.loss(outputs[start - lowest :], start, stop, states[-1]).backward()
    return run_.results(out, after[-1])


@cells
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_whole_sequence(cell: str, dtype: str, shape: Shape) -> None:
    """One call of the layer, as everybody uses it."""
    problem = make_problem(cell, shape, dtype)
    oracle = Sequence(problem)
    states = tuple(s[None] for s in oracle.hx)
    out, hx_n = oracle.module(oracle.x, states if problem.op == "lstm" else states[0])
    final = tuple(s[0] for s in (hx_n if problem.op == "lstm" else (hx_n,)))
    oracle.loss(out, 0, len(problem.x), final).backward()
    compare(problem, run(tbptt_fast, problem), oracle.results(out, final))


@cells
@dtypes
@pytest.mark.parametrize("k", [1, 3, 4, 11, 20])
def test_detached_chunks(cell: str, dtype: str, k: int) -> None:
    """truncation=K is a detach before the steps K, 2K, …; 11 is no multiple of 3 or 4."""
    problem = make_problem(cell, SHAPES[1], dtype)
    oracle = Sequence(problem)
    steps, state, outs = len(problem.x), oracle.hx, []
    for start in range(0, steps, k):
        stop = min(start + k, steps)
        out, after = oracle.steps(start, stop, state)
        oracle.loss(out, start, stop, after[-1]).backward()
        state = tuple(s.detach() for s in after[-1])
        outs.append(out)
    expected = oracle.results(torch.cat(outs), state)
    compare(problem, run(tbptt_fast, problem, truncation=k), expected)


@cells
@dtypes
@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (1, 4), (2, 3), (3, 7), (4, 11), (5, 30)])
def test_overlapping_windows(cell: str, dtype: str, k1: int, k2: int) -> None:
    problem = make_problem(cell, SHAPES[1], dtype)
    expected = overlapping(problem, k1, k2)
    compare(problem, run(tbptt_fast, problem, truncation=(k1, k2)), expected)


@cells
@dtypes
@pytest.mark.parametrize("truncation", [None, (1, 4), (3, 3), (2, 5)], ids=str)
def test_resets(cell: str, dtype: str, truncation: Any) -> None:
    problem = make_problem(cell, SHAPES[1], dtype)
    is_init = make_masks("is_init", SHAPES[1])["is_init"]
    k1, k2 = truncation or (len(problem.x), len(problem.x))
    expected = overlapping(problem, k1, k2, is_init)
    actual = run(tbptt_fast, problem, is_init=is_init, truncation=truncation)
    compare(problem, actual, expected)
