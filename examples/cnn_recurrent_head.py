"""A convolutional network with a recurrent head, trained with truncated backpropagation.

The head reads 128 features of a digit `steps` times, h <- tanh(W x + U h + b), and its last state
is classified. The gradient runs back through the last iterations only, and only they are kept: the
table shows seconds, KiB that a batch keeps for its backward pass, and accuracy by their number.

    python examples/cnn_recurrent_head.py
    python examples/cnn_recurrent_head.py --idx MNIST --epochs 1 --truncations 5
"""

from __future__ import annotations

import math
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from _common import panels, parse, parser, progress, run, save, table
from _data import Array, Digits, accuracy, batches, digits
from tbptt_fast import nn, optim, softmax_cross_entropy
from tbptt_fast.cli.parser import whole


class Result(NamedTuple):
    """Seconds of training, KiB that a batch keeps for its backward pass, accuracy per epoch."""

    seconds: float
    head: float
    network: float
    curve: list[float]


class RecurrentHead(nn.Module):
    """Applies a recurrent layer to x [B, inputs] `steps` times; y [B, hidden] is its last state."""

    def __init__(self, inputs: int, hidden: int, steps: int, truncation: int, seed: int) -> None:
        super().__init__()
        self.steps, self.truncation = steps, min(steps, truncation)
        self.cell = self._children["cell"] = nn.RNN(inputs, hidden, seed=seed)

    def _apply(self, x: Array, state: Any, is_init: Any, keep: bool) -> tuple[Array, Any, Any]:
        first, last = self.steps - self.truncation, np.repeat(x[np.newaxis], self.truncation, 0)
        _, entering = self.cell(np.repeat(x[np.newaxis], first, 0))  # leaves no tape
        _, final, tape = self.cell.forward(last, entering)
        return final[0], None, nn.Tape(self, (tape, last)) if keep else None

    def backward(self, tape: nn.Tape, grad_y: Any, **options: Any) -> nn.Gradients:
        grads = self.cell.backward(tape.saved[0], None, grad_state=grad_y[np.newaxis])
        assert grads.x is not None
        params = {f"cell.{name}": gradient for name, gradient in grads.params.items()}
        return nn.Gradients(grads.x.sum(axis=0), None, params)


def network(size: Sequence[int], steps: int, truncation: int, seed: int) -> nn.Sequential:
    """Images [B, Y, X, 1] to logits [B, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, activation="relu", layout="NHWC", seed=seed),
        nn.MaxPool2d(2, layout="NHWC"),
        nn.Conv2d(32, 64, 3, padding=1, activation="relu", layout="NHWC", seed=seed + 1),
        nn.MaxPool2d(2, layout="NHWC"),
        nn.Flatten(),
        nn.Linear(64 * (size[0] // 4) * (size[1] // 4), 128, activation="relu", seed=seed + 2),
        RecurrentHead(128, 64, steps, truncation, seed=seed + 3),
        nn.Linear(64, 10, seed=seed + 4),
    )


def train(data: Digits, truncation: int, options: Namespace) -> Result:
    """Train a network whose head is differentiated through `truncation` iterations."""
    model = network(data.x.shape[1:3], options.steps, truncation, options.seed)
    optimizer = optim.Adam(model.parameters(), lr=2e-3)
    updates = options.epochs * math.ceil(len(data.x) / options.batch)
    schedule = optim.CosineLR(optimizer, updates)
    rng, seconds, curve = np.random.default_rng(options.seed), 0.0, []
    with progress(updates, f"truncation {truncation}") as bar:
        for _ in range(options.epochs):
            begin = time.perf_counter()
            for batch in batches(rng, len(data.x), options.batch):
                logits, _, tape = model.forward(data.x[batch])
                _, gradient = softmax_cross_entropy(logits, data.y[batch])
                optimizer.step(model.backward(tape, gradient, needs_x=False).params)
                schedule.step()
                bar.update()
            seconds += time.perf_counter() - begin
            curve.append(accuracy(model, data.test_x, data.test_y))
            bar.set_postfix_str(f"accuracy {curve[-1]:.2%}")
    _, _, tape = model.forward(data.x[: options.batch])
    return Result(seconds, tape.saved[-2].nbytes / 1024, tape.nbytes / 1024, curve)


def main(argv: Sequence[str] | None = None) -> dict[int, Result]:
    """Train a network for every truncation length; returns what the table shows."""
    found = parser(__file__, __doc__, epochs=20)
    found.add_argument("--steps", type=whole(1), default=20, help="of the head (%(default)s)")
    found.add_argument("--truncations", type=whole(1), nargs="+", default=[1, 2, 5, 10, 20])
    found.add_argument("--batch", type=whole(1), default=32, help="images (%(default)s)")
    found.add_argument("--idx", type=Path, metavar="FOLDER", help="MNIST's files, in IDX format")
    options = parse(found, argv, "sklearn")
    data = digits(options.idx)
    results = {length: train(data, length, options) for length in options.truncations}
    names = {"truncation": "d", "s": ".2f", "head KiB": ".0f", "all KiB": ".0f", "accuracy": ".2%"}
    table(names, [(length, *result[:3], result.curve[-1]) for length, result in results.items()])

    figure, (left, right) = panels(2)
    for length, result in results.items():
        left.plot(range(1, options.epochs + 1), result.curve, label=f"truncation {length}")
        right.bar(str(length), result.head)
    left.set(xlabel="epoch", ylabel="test accuracy", ylim=(0.8, 1))
    right.set(xlabel="truncation", ylabel="KiB that the head keeps of a batch")
    save(figure, options.out)
    return results


if __name__ == "__main__":
    run(main)
