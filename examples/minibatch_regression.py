"""Linear regression by mini-batch stochastic (sub)gradient descent: losses, rates, batch sizes.

The squared error, the absolute error (L1) and Huber's loss are minimised on scikit-learn's diabetes
data with a fixed, a decayed and an adaptive learning rate, and the squared error with several sizes
of the batch. The closed form of least squares says how far each of them got.

    python examples/minibatch_regression.py
    python examples/minibatch_regression.py --epochs 300 --batches 16 442
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from _common import panels, parse, parser, progress, run, save, table
from _data import Array, batches, diabetes
from tbptt_fast import huber_loss, l1_loss, mse_loss, nn, optim
from tbptt_fast.cli.parser import whole

LOSSES = {"MSE": mse_loss, "L1": l1_loss, "Huber": huber_loss}
RATES = ("fixed", "decayed", "adaptive")


class Result(NamedTuple):
    """Cost after each epoch, coefficients [11] with the bias last, updates and their seconds."""

    costs: list[float]
    coefficients: Array
    updates: int
    seconds: float


def optimizer_and_schedule(
    rate: str, parameters: dict[str, Array], batch: int, updates: int
) -> tuple[optim.Optimizer, optim.Schedule]:
    """Adam adapts the rate of each parameter; otherwise it grows with the root of the batch."""
    if rate == "adaptive":
        adam = optim.Adam(parameters, lr=0.02)
        return adam, optim.ConstantLR(adam)
    sgd = optim.SGD(parameters, lr=0.05 * math.sqrt(batch / 64), momentum=0.9)
    return sgd, optim.CosineLR(sgd, updates) if rate == "decayed" else optim.ConstantLR(sgd)


def train(
    x: Array, y: Array, loss: Callable[..., Any], rate: str, batch: int, epochs: int, seed: int
) -> Result:
    """Minimise the mean loss of a linear model on x [N, D], y [N, 1]."""
    rng = np.random.default_rng(seed)
    model = nn.Linear(x.shape[1], 1, seed=seed, dtype=x.dtype)
    updates = epochs * math.ceil(len(x) / batch)
    optimizer, schedule = optimizer_and_schedule(rate, model.parameters(), batch, updates)
    costs = []
    begin = time.perf_counter()
    for _ in range(epochs):
        for rows in batches(rng, len(x), batch):
            prediction, _, tape = model.forward(x[rows])
            _, gradient = loss(prediction, y[rows])
            optimizer.step(model.backward(tape, gradient, needs_x=False).params)
            schedule.step()
        costs.append(loss(model(x)[0], y)[0])
    seconds = time.perf_counter() - begin
    coefficients = np.concatenate([p.ravel() for p in model.parameters().values()])
    return Result(costs, coefficients, updates, seconds)


def closed_form(x: Array, y: Array) -> Array:
    """The coefficients of least squares, with the bias last."""
    found: Array = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]
    return found.ravel()


def main(argv: Sequence[str] | None = None) -> dict[tuple[str, str, int], Result]:
    """Run both studies; returns the result of every (loss, rate, batch size)."""
    found = parser(__file__, __doc__, epochs=1000)
    found.add_argument("--batch", type=whole(1), default=64, help="of the rates (%(default)s)")
    found.add_argument("--batches", type=whole(1), nargs="+", default=[4, 16, 64, 442])
    options = parse(found, argv, "sklearn")
    x, y = diabetes()
    exact = closed_form(x, y)
    best = mse_loss(x @ exact[:-1, np.newaxis] + exact[-1], y)[0]
    studies = [(loss, rate, options.batch) for loss in LOSSES for rate in RATES]
    studies += [("MSE", "decayed", n) for n in options.batches if n != options.batch]
    results = {}
    with progress(len(studies), "studies") as bar:
        for loss, rate, size in studies:
            how = LOSSES[loss], rate, size, options.epochs, options.seed
            results[loss, rate, size] = train(x, y, *how)
            bar.update()

    print(f"cost with batches of {options.batch}; the least MSE, by the closed form: {best:.6f}")
    by_rate = [[results[loss, rate, options.batch] for rate in RATES] for loss in LOSSES]
    rows = [(loss, *(r.costs[-1] for r in row)) for loss, row in zip(LOSSES, by_rate, strict=True)]
    table({"loss": "s", **dict.fromkeys(RATES, ".6f")}, rows)
    print("MSE, decayed rate: largest difference of a coefficient from the closed form")
    by_size = {size: results["MSE", "decayed", size] for size in options.batches}
    far = {size: np.abs(result.coefficients - exact).max() for size, result in by_size.items()}
    rows = [(size, r.updates, r.seconds, far[size]) for size, r in by_size.items()]
    table({"batch": "d", "updates": ",d", "seconds": ".2f", "difference": ".1e"}, rows)

    figure, (left, right) = panels(2)
    for rate, result in zip(RATES, by_rate[0], strict=True):
        left.plot(np.array(result.costs) - best, lw=0.8, label=rate)
    left.set(title=f"rates, batches of {options.batch}")
    for size, result in by_size.items():
        right.plot(np.array(result.costs) - best, lw=0.8, label=f"batches of {size}")
    right.set(title="batch sizes, decayed rate")
    for axes in (left, right):
        axes.set(xlabel="epoch", ylabel="MSE above the optimum", yscale="log", ylim=(1e-9, None))
    save(figure, options.out)
    return results


if __name__ == "__main__":
    run(main)
