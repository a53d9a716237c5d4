"""The PyTorch side: torch.nn layers and autograd, as users write them.

Where a choice is open it is made in PyTorch's favour: gradients are cleared outside the timed
region, and x is cut into leaves beforehand, so that no slice is scattered back into the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .problem import WEIGHTS, Problem, Result
from .timing import LocalSide

Tensor = torch.Tensor
State = tuple[Tensor, ...]
Layers = Mapping[str, Callable[..., Any]]
LAYERS: Layers = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
PARAMETERS = {
    "w_ih": "weight_ih_l0",
    "w_hh": "weight_hh_l0",
    "b_ih": "bias_ih_l0",
    "b_hh": "bias_hh_l0",
}


class Operands:
    """A layer with the problem's weights, and the leaves whose gradients are wanted."""

    def __init__(self, problem: Problem, layers: Layers = LAYERS) -> None:
        arrays = problem.arrays
        self.is_lstm = problem.cell == "lstm"
        self.layer = layers[problem.cell](problem.inputs, problem.hidden)
        self.weights = {name: getattr(self.layer, PARAMETERS[name]) for name in WEIGHTS}
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(torch.from_numpy(arrays[name]))
        length = problem.chunk or problem.steps
        x, grad_out = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["grad_out"])
        self.xs = [part.clone().requires_grad_() for part in torch.split(x, length)]
        self.grads = list(torch.split(grad_out, length))
        names = ("h", "c") if self.is_lstm else ("h",)
        self.state: State = tuple(
            torch.from_numpy(arrays[name])[None].clone().requires_grad_() for name in names
        )

    def call(self, x: Tensor, state: State, **more: Any) -> tuple[Tensor, State]:
        out, last = self.layer(x, state if self.is_lstm else state[0], **more)
        return out, last if self.is_lstm else (last,)

    def clear(self) -> None:
        for leaf in (*self.weights.values(), *self.xs, *self.state):
            leaf.grad = None

    def collect(self, outs: list[Tensor], last: State) -> Result:
        """What the pass that just ended computed, as arrays."""
        found = {"out": torch.cat(outs), "dx": torch.cat([gradient(x) for x in self.xs])}
        for name, value, leaf in zip("hc", last, self.state, strict=False):
            found[f"{name}_n"], found[f"d{name}"] = value[0], gradient(leaf)[0]
        for name, weight in self.weights.items():
            found[f"d{name}"] = gradient(weight)
        return {name: value.detach().numpy() for name, value in found.items()}


def gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def layer_side(
    problem: Problem, threads: int, name: str = "torch", layers: Layers = LAYERS, **more: Any
) -> LocalSide:
    """One call; with truncation one call per chunk, the state detached, gradients accumulated."""
    torch.set_num_threads(threads)
    operands = Operands(problem, layers)

    def forward() -> None:
        with torch.no_grad():
            state = operands.state
            for x in operands.xs:
                _, state = operands.call(x, state, **more)

    def both() -> tuple[list[Tensor], State]:
        state, outs = operands.state, []
        for x, grad in zip(operands.xs, operands.grads, strict=True):
            out, state = operands.call(x, state, **more)
            torch.autograd.backward(out, grad)
            state = tuple(part.detach() for part in state)
            outs.append(out.detach())
        return outs, state

    def compute() -> Result:
        operands.clear()
        return operands.collect(*both())

    tasks = {"forward": forward, "forward+backward": both}
    return LocalSide(name, compute, tasks, operands.clear)


def masked_loop_side(problem: Problem, threads: int) -> LocalSide:
    """Resets as everybody writes them: a loop over single steps with a masked state."""
    torch.set_num_threads(threads)
    operands = Operands(problem)
    assert problem.is_init is not None
    keep = torch.from_numpy(~problem.is_init).float()[:, None, :, None]

    def unroll() -> tuple[Tensor, State]:
        state, outs = operands.state, []
        for x, mask in zip(operands.xs[0].unbind(), keep, strict=True):
            out, state = operands.call(x[None], tuple(part * mask for part in state))
            outs.append(out)
        return torch.cat(outs), state

    def forward() -> None:
        with torch.no_grad():
            unroll()

    def both() -> tuple[Tensor, State]:
        out, state = unroll()
        torch.autograd.backward(out, operands.grads[0])
        return out, state

    def compute() -> Result:
        operands.clear()
        out, state = both()
        return operands.collect([out], state)

    tasks = {"forward": forward, "forward+backward": both}
    return LocalSide("torch", compute, tasks, operands.clear)
