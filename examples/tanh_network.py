"""A network of two tanh layers on the sunspot numbers, written with the primitives alone.

Two recurrent layers and a linear output predict next year's number from this year's. The gradient
is truncated to windows of K steps and clipped at a threshold of its norm; the cost is printed as it
falls, and the picture shows the fit, the cost and the norm of the gradient.

    python examples/tanh_network.py
    python examples/tanh_network.py --truncation 3 --threshold 0.1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from _common import panels, parse, parser, progress, run, save, table
from _data import Array, sunspots
from tbptt_fast import linear, linear_backward, mse_loss, rnn_backward, rnn_forward, sgd_step
from tbptt_fast.cli.parser import number, whole

YEAR, TRAINING = 1700, 247  # the first of 309 years; four fifths are trained on


class Result(NamedTuple):
    """Cost and gradient norm before each update; root mean square errors on the last fifth."""

    costs: list[float]
    norms: list[float]
    error: float
    no_change: float


def initial(hidden: int, seed: int) -> list[Array]:
    """w_ih, w_hh and bias of both layers, weight and bias of the output."""
    rng = np.random.default_rng(seed)
    shapes = [(hidden, 1), (hidden, hidden), (hidden, hidden), (hidden, hidden), (1, hidden)]
    drawn = [rng.uniform(-1, 1, shape) / np.sqrt(shape[1]) for shape in shapes]
    w1, u1, w2, u2, w3 = (weights.astype(np.float32) for weights in drawn)
    b1, b2, b3 = np.zeros((3, hidden), np.float32)
    return [w1, u1, b1, w2, u2, b2, w3, b3[:1].copy()]


def forward(parameters: list[Array], x: Array) -> tuple[Array, Any]:
    """Predictions [T, B, 1] for x [T, B, 1], and what the backward pass needs."""
    w1, u1, b1, w2, u2, b2, w3, b3 = parameters
    h1, _, tape1 = rnn_forward(x, None, w1, u1, b1)
    h2, _, tape2 = rnn_forward(h1, None, w2, u2, b2)
    return linear(h2, w3, b3), (tape1, tape2, h2)


def backward(parameters: list[Array], saved: Any, grad: Array, truncation: int) -> list[Array]:
    """The gradient of every parameter; none crosses a border between windows."""
    tape1, tape2, h2 = saved
    out = linear_backward(grad, h2, parameters[6])
    two = rnn_backward(tape2, out.x, truncation=truncation)
    one = rnn_backward(tape1, two.x, truncation=truncation)
    found = [one.w_ih, one.w_hh, one.b_ih, two.w_ih, two.w_hh, two.b_ih, out.w, out.b]
    return [gradient for gradient in found if gradient is not None]


def update(
    parameters: list[Array], x: Array, y: Array, *, truncation: int, threshold: float, lr: float
) -> tuple[float, float]:
    """One step of gradient descent in place; cost and norm of the gradient before it."""
    prediction, saved = forward(parameters, x)
    cost, grad = mse_loss(prediction, y)
    gradients = backward(parameters, saved, grad, truncation)
    return cost, sgd_step(parameters, gradients, None, lr=lr, max_norm=threshold).norm


def main(argv: Sequence[str] | None = None) -> Result:
    """Train on the first four fifths of the years, predict the last."""
    found = parser(__file__, __doc__, epochs=2000)
    found.add_argument("--hidden", type=whole(1), default=16, help="units (%(default)s)")
    found.add_argument("--truncation", type=whole(1), default=10, help="K (%(default)s)")
    found.add_argument("--threshold", type=number(0, above=True), default=0.5, help="(%(default)s)")
    found.add_argument("--lr", type=number(0, above=True), default=0.05, help="(%(default)s)")
    options = parse(found, argv, "statsmodels")
    values = sunspots()
    mean, scale = values[:TRAINING].mean(), values[:TRAINING].std()
    series = ((values - mean) / scale).astype(np.float32)[:, np.newaxis, np.newaxis]  # [T, 1, 1]
    x, y = series[:-1], series[1:]

    parameters, costs, norms = initial(options.hidden, options.seed), [], []
    how = {name: getattr(options, name) for name in ("truncation", "threshold", "lr")}
    with progress(options.epochs, "tanh network") as bar:
        for epoch in range(options.epochs):
            cost, norm = update(parameters, x[: TRAINING - 1], y[: TRAINING - 1], **how)
            costs.append(cost)
            norms.append(norm)
            if epoch % (options.epochs // 10 or 1) == 0:
                bar.write(f"epoch {epoch:5}: cost {cost:.4f}, gradient norm {norm:.3f}")
            bar.update()
    prediction = mean + scale * forward(parameters, x)[0].ravel()
    errors, changes = prediction - values[1:], np.diff(values)
    test = slice(TRAINING - 1, None)
    error, no_change = (float(np.sqrt(np.mean(e[test] ** 2))) for e in (errors, changes))
    clipped = np.mean(np.array(norms) > options.threshold)
    names = {"cost": ".4f", "test error": ".1f", "error of no change": ".1f", "clipped": ".1%"}
    table(names, [(costs[-1], error, no_change, clipped)])

    figure, (left, right) = panels(2)
    years = np.arange(YEAR + 1, YEAR + len(values))
    left.plot(years, values[1:], color="black", lw=0.8, label="sunspots")
    left.plot(years, prediction, color="tab:red", lw=0.8, label="prediction")
    left.axvline(YEAR + TRAINING, color="gray", ls="--", label="end of training")
    left.set(xlabel="year", ylabel="sunspot number", ylim=(None, 250))
    right.plot(costs, label="cost")
    right.plot(norms, lw=0.5, label="gradient norm")
    right.axhline(options.threshold, color="gray", ls="--", label="threshold")
    right.set(xlabel="epoch", yscale="log")
    save(figure, options.out)
    return Result(costs, norms, error, no_change)


if __name__ == "__main__":
    run(main)
