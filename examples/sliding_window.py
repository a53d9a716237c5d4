"""Online learning in a sliding window: after every step, the losses of the last T steps.

A recurrent network reads a series and predicts its next change. After step t (k1 = 1) it is updated
by the gradient of

    L_t = l_(t-T+1) + ... + l_(t-1) + l_t

through the last T steps; the state that enters them is a constant. The table compares T by the
error on the last fifth of the series, which is not trained on, beside that of predicting no change.

    python examples/sliding_window.py
    python examples/sliding_window.py --windows 8 --epochs 50
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from _common import panels, parse, parser, progress, run, save, table
from _data import Array, co2, sunspots
from tbptt_fast import mse_loss, nn, optim
from tbptt_fast.cli.parser import whole


class SlidingWindow:
    """The newest `length` steps of a stream x, y [1, B, ...], and the state that enters them."""

    def __init__(self, model: nn.Module, length: int) -> None:
        self.model, self.length = model, length
        self.restart()

    def restart(self) -> None:
        """Begin a new stream, from a zero state."""
        self.x: list[Array] = []
        self.y: list[Array] = []
        self.state: Any = None

    def append(self, x: Array, y: Array) -> None:
        """Take the next step in; where the window is full, its oldest step moves the state on."""
        if len(self.x) == self.length:
            _, self.state = self.model(self.x.pop(0), self.state)
            self.y.pop(0)
        self.x.append(x)
        self.y.append(y)

    def gradient(self) -> tuple[float, dict[str, Array]]:
        """The sum of the losses in the window and its gradient by every parameter."""
        prediction, _, tape = self.model.forward(np.concatenate(self.x), self.state)
        loss, gradient = mse_loss(prediction, np.concatenate(self.y), reduction="sum")
        return loss, self.model.backward(tape, gradient, needs_x=False).params


class Result(NamedTuple):
    """Root mean square errors, in the units of the series, and seconds of training."""

    error: float
    no_change: float
    seconds: float


def train(values: Array, length: int, options: Namespace, bar: Any) -> Result:
    """Learn the first four fifths of a series [N] step by step; measure the error on the rest."""
    changes = np.diff(values)
    known = len(changes) * 4 // 5
    mean, scale = changes[:known].mean(), changes[:known].std()
    series = ((changes - mean) / scale).astype(np.float32)[:, np.newaxis, np.newaxis]  # [T, 1, 1]
    x, y = series[:-1], series[1:]

    model = nn.Sequential(nn.GRU(1, 16, seed=options.seed), nn.Linear(16, 1, seed=options.seed + 1))
    window = SlidingWindow(model, length)
    optimizer = optim.Adam(model.parameters(), lr=5e-3, max_norm=1.0)
    schedule = optim.ExponentialLR(optimizer, 0.03 ** (1 / options.epochs))
    begin = time.perf_counter()
    for _ in range(options.epochs):
        window.restart()
        for t in range(known - 1):
            window.append(x[t : t + 1], y[t : t + 1])
            optimizer.step(window.gradient()[1])
        schedule.step()
        bar.update()
    seconds = time.perf_counter() - begin

    prediction, _ = model(x)
    errors = scale * (prediction - y)[known - 1 :]
    no_change = np.sqrt(np.mean(changes[known:] ** 2))
    return Result(float(np.sqrt(np.mean(errors**2))), float(no_change), seconds)


def main(argv: Sequence[str] | None = None) -> dict[str, dict[int, Result]]:
    """Train on both series with every window; returns what the table shows."""
    found = parser(__file__, __doc__, epochs=15)
    found.add_argument("--windows", type=whole(1), nargs="+", default=[1, 2, 4, 8, 16, 32])
    options = parse(found, argv, "statsmodels")
    results: dict[str, dict[int, Result]] = {}
    with progress(2 * len(options.windows) * options.epochs, "sliding windows") as bar:
        for name, values in (("sunspots", sunspots()), ("CO2", co2())):
            results[name] = {T: train(values, T, options, bar) for T in options.windows}
    spots, ppm = results.values()
    columns = {"T": "d", "sunspots error": ".1f", "s": ".2f", "CO2 error": ".3f", "s ": ".2f"}
    rows = [(T, spots[T].error, spots[T].seconds, ppm[T].error, ppm[T].seconds) for T in spots]
    table(columns, rows)

    figure, axes = panels(2)
    for one, (name, series) in zip(axes, results.items(), strict=True):
        errors, no_change, _ = zip(*series.values(), strict=True)
        one.plot([str(T) for T in series], errors, marker="o", label="network")
        one.axhline(no_change[0], color="gray", ls="--", label="no change")
        one.set(title=name, xlabel="T, steps in the window", ylabel="error", ylim=(0, None))
    save(figure, options.out)
    return results


if __name__ == "__main__":
    run(main)
