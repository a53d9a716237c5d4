"""Two lags: y_t ~ Bernoulli(0.5 + 0.5 x_{t-t1} - 0.25 x_{t-t2}) of fair coins x.

What can be learnt is known exactly: 0.6616 nats without either lag, 0.5192 with t1, 0.4545 with
both. A truncation of K steps that reaches neither lag, one or both has to land on the plateau that
belongs to it. In truth K reaches a little more than K steps, because a network keeps traces of
older inputs in its state before it has learnt to, and one that has learnt the first lag keeps the
last t1 inputs. Plateaus are therefore claimed for K above a lag and for K at most half as long as
one, and what lies between is shown without a claim.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tbptt_fast import nn, optim
from tbptt_fast.ops import Truncation

from ..report import Section
from ._common import (
    Array,
    Figure,
    Options,
    Record,
    cross_entropy,
    entropy,
    figures_section,
    report_run,
    seconds,
)

FULL = {"t1": 6, "t2": 18, "updates": 3000, "hidden": 48, "block": 72, "batch": 32, "lr": 1e-2}
FULL_K, TOLERANCE = (3, 5, 8, 11, 16, 24), 0.01  # nats
QUICK = {"t1": 3, "t2": 9, "updates": 450, "hidden": 32, "block": 40, "batch": 32, "lr": 1e-2}
QUICK_K, QUICK_TOLERANCE = (1, 4, 11), 0.03  # below half the distance of the nearest plateaus
WEIGHTS = (0.5, 0.5, -0.25)  # of one, x_{t-t1} and x_{t-t2}
ESTIMATORS = {"per loss": "truncation=(1, K)", "windows": "truncation=K"}


def floors() -> tuple[float, float, float]:
    """Best cross-entropy in nats with neither lag, with t1 and with both, from the joint law."""
    p = np.array([[WEIGHTS[0] + WEIGHTS[1] * a + WEIGHTS[2] * b for b in (0, 1)] for a in (0, 1)])
    neither, one = entropy(p.mean()), np.mean([entropy(row.mean()) for row in p])
    return neither, float(one), float(np.mean([entropy(each) for each in p.flat]))


def draw(rng: np.random.Generator, steps: int, batch: int, t1: int, t2: int) -> tuple[Array, Array]:
    """Inputs [T, B, 1] float32 and labels [T, B] int64; the inputs before step 0 are not shown."""
    x = rng.random((steps + t2, batch)) < 0.5
    near, far = x[t2 - t1 : t2 - t1 + steps], x[:steps]
    chance = WEIGHTS[0] + WEIGHTS[1] * near + WEIGHTS[2] * far
    y = rng.random((steps, batch)) < chance
    return x[t2:, :, np.newaxis].astype(np.float32), y.astype(np.int64)


def plateau(K: int, t1: int, t2: int) -> int | None:
    """Which floor is claimed for K: that of 0, 1 or 2 lags, or None between the plateaus."""
    if 2 * K <= t1:
        return 0
    if t1 < K <= t2 // 2:
        return 1
    return 2 if K > t2 else None


def train(
    K: int,
    estimator: str,
    seed: int,
    t1: int,
    t2: int,
    updates: int,
    hidden: int,
    block: int,
    batch: int,
    lr: float,
) -> Record:
    """Train an LSTM on blocks of one endless stream; cross-entropy on another one."""
    rng, seeds = np.random.default_rng((seed, 0)), (2 * seed, 2 * seed + 1)
    model = nn.Sequential(nn.LSTM(1, hidden, seed=seeds[0]), nn.Linear(hidden, 2, seed=seeds[1]))
    optimizer = optim.Adam(model.parameters(), lr=lr, max_norm=1.0)
    schedule = optim.CosineLR(optimizer, updates)
    truncation: Truncation = (1, K) if estimator == "per loss" else K
    x, y = draw(rng, updates * block, batch, t1, t2)
    state: Any = None
    curve = []
    for begin in range(0, len(x), block):
        part = slice(begin, begin + block)
        logits, state, tape = model.forward(x[part], state)
        loss, grad, count = cross_entropy(logits, y[part])
        grads = model.backward(tape, grad / count, truncation=truncation, needs_x=False)
        optimizer.step(grads.params)
        schedule.step()
        curve.append(loss / count)
    x, y = draw(np.random.default_rng((seed, 1)), 5000, 64, t1, t2)
    logits, _ = model(x)
    nats = cross_entropy(logits[t2:], y[t2:])[0] / y[t2:].size
    return {"nats": nats, "curve": [float(np.mean(c)) for c in np.array_split(curve, 60)]}


def run(options: Options) -> list[Section]:
    section = Section(
        "Two lags: cross-entropy in nats after training with a truncation of K",
        ["K", "estimator", "lags claimed", "floor", "mean", "lowest", "highest", "s per run"],
    )
    figures, curves = [], {}
    problem, tolerance = (QUICK, QUICK_TOLERANCE) if options.quick else (FULL, TOLERANCE)
    t1, t2 = int(problem["t1"]), int(problem["t2"])
    names = ("neither lag", "t1", "both lags")
    for estimator, call in ESTIMATORS.items():
        for K in QUICK_K if options.quick else FULL_K:
            results = []
            for seed in options.seeds:
                settings = {"K": K, "estimator": estimator, "seed": seed, **problem}
                results.append(options.store.run(train, **settings))
                report_run("lags", settings, f"{results[-1]['nats']:.4f} nats")
            values = [result["nats"] for result in results]
            claim = plateau(K, t1, t2)
            floor = None if claim is None else floors()[claim]
            shown = ("—", "—") if claim is None or floor is None else (names[claim], f"{floor:.4f}")
            spread = (np.mean(values), min(values), max(values))
            section.rows.append(
                [str(K), call, *shown, *(f"{v:.4f}" for v in spread), seconds(results)]
            )
            curves[K, estimator] = np.mean([result["curve"] for result in results], axis=0)
            if floor is not None:
                expected = f"{floor:.4f} ± {tolerance}"
                low, high = floor - tolerance, floor + tolerance
                figures.append(Figure(f"K = {K}, {call}", expected, low, high, values))
    section.note = (
        "Lags {t1} and {t2}; an LSTM of {hidden} units, {batch} rows in blocks of {block} steps, "
        "{updates} updates by Adam, {lr} down a cosine; ".format(**problem)
        + f"seeds {', '.join(map(str, options.seeds))}; measured on 320,000 fresh steps. "
        "K without a claim lies between the plateaus."
    )
    section.draw = lambda axes: draw_curves(axes, curves)
    return [section, figures_section("Two lags: plateaus", figures, 4)]


def draw_curves(axes: Any, curves: dict[tuple[int, str], Array]) -> None:
    """Training losses, averaged over the seeds."""
    for (K, estimator), curve in curves.items():
        dashes = "-" if estimator == "per loss" else "--"
        axes.plot(np.linspace(0, 1, len(curve)), curve, dashes, label=f"K = {K}, {estimator}")
    for floor in floors():
        axes.axhline(floor, color="0.6", linewidth=0.8)
    axes.set_xlabel("share of the training")
    axes.set_ylabel("training loss in nats")
    axes.legend(fontsize=7, ncols=2)
