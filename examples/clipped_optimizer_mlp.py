"""A network of one hidden layer on handwritten digits; clipped gradients, a decaying rate.

64-128-10 (784-128-10 with MNIST) is trained by SGD, RMSprop and Adam. Each clips the gradient of
all parameters together to a norm of 1, and its learning rate decays exponentially, epoch by epoch.

    python examples/clipped_optimizer_mlp.py
    python examples/clipped_optimizer_mlp.py --idx MNIST --epochs 5
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from _common import panels, parse, parser, progress, run, save, table
from _data import Array, Digits, accuracy, batches, digits
from tbptt_fast import nn, optim, softmax_cross_entropy
from tbptt_fast.cli.parser import number, whole

MAX_NORM = 1.0
OPTIMIZERS = {  # and the rates they begin with
    "SGD": (optim.SGD, 0.5),
    "RMSprop": (optim.RMSprop, 2e-3),
    "Adam": (optim.Adam, 3e-3),
}


class Result(NamedTuple):
    """After each epoch test accuracy and rate, the norm at each update; seconds of training."""

    curve: list[float]
    rates: list[float]
    norms: list[float]
    seconds: float


def network(pixels: int, seed: int) -> nn.Sequential:
    """Images [B, Y, X, 1] to logits [B, 10]."""
    hidden = nn.Linear(pixels, 128, activation="relu", seed=seed)
    return nn.Sequential(nn.Flatten(), hidden, nn.Linear(128, 10, seed=seed + 1))


def update(model: nn.Module, optimizer: optim.Optimizer, x: Array, y: Array) -> float:
    """One update by a batch; returns the norm of the gradient before it was clipped."""
    logits, _, tape = model.forward(x)
    _, gradient = softmax_cross_entropy(logits, y)
    return optimizer.step(model.backward(tape, gradient, needs_x=False).params).norm


def train(data: Digits, name: str, options: Namespace, bar: Any) -> Result:
    """Train the network with one of the optimizers."""
    kind, lr = OPTIMIZERS[name]
    model = network(data.x[0].size, options.seed)
    optimizer = kind(model.parameters(), lr, max_norm=MAX_NORM)
    schedule = optim.ExponentialLR(optimizer, options.decay)
    rng = np.random.default_rng(options.seed)
    result, begin = Result([], [], [], 0.0), time.perf_counter()
    for _ in range(options.epochs):
        for rows in batches(rng, len(data.x), options.batch):
            result.norms.append(update(model, optimizer, data.x[rows], data.y[rows]))
        result.rates.append(schedule.step())
        result.curve.append(accuracy(model, data.test_x, data.test_y))
        bar.update()
    return result._replace(seconds=time.perf_counter() - begin)


def main(argv: Sequence[str] | None = None) -> dict[str, Result]:
    """Compare the optimizers; returns what the table shows."""
    found = parser(__file__, __doc__, epochs=20)
    found.add_argument("--batch", type=whole(1), default=32, help="images (%(default)s)")
    found.add_argument("--decay", type=number(0, 1, above=True), default=0.9, help="(%(default)s)")
    found.add_argument("--idx", type=Path, metavar="FOLDER", help="MNIST's files, in IDX format")
    options = parse(found, argv, "sklearn")
    data = digits(options.idx)
    with progress(len(OPTIMIZERS) * options.epochs, "optimizers") as bar:
        results = {name: train(data, name, options, bar) for name in OPTIMIZERS}
    columns = {"optimizer": "s", "first rate": "g", "last rate": ".2g", "largest norm": ".2f"}
    columns |= {"clipped": ".1%", "seconds": ".2f", "test accuracy": ".2%"}
    rows = []
    for name, (_, lr) in OPTIMIZERS.items():
        curve, rates, norms, seconds = results[name]
        clipped = np.mean(np.array(norms) > MAX_NORM)
        rows.append((name, lr, rates[-1], max(norms), clipped, seconds, curve[-1]))
    table(columns, rows)

    figure, (left, right) = panels(2)
    for name, result in results.items():
        epochs = np.arange(1, options.epochs + 1)
        left.plot(epochs, result.curve, label=name)
        right.plot(epochs, result.rates, label=name)
    left.set(xlabel="epoch", ylabel="test accuracy", ylim=(0.9, 1))
    right.set(xlabel="epoch", ylabel="learning rate", yscale="log")
    save(figure, options.out)
    return results


if __name__ == "__main__":
    run(main)
