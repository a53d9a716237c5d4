"""The copy task of Aicher, Foti and Fox (2019): test perplexity against the truncation K.

Blocks of m symbols, the first of them a marker, are each followed by m blanks; the target is blank
for m steps and then the block. Training is theirs: Linear(6, 50), LSTM(50, 50, 2 layers),
Linear(50, 6), BPTT(h = 2K-1; h' = K), SGD with learning rate sqrt(K), weight decay 1e-5 and norms
clipped at 1/K.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tbptt_fast import nn, optim
from tbptt_fast.tbptt import TBPTT

from ..report import Section
from ._common import (
    Array,
    Figure,
    Options,
    Record,
    cross_entropy,
    figures_section,
    report_run,
    seconds,
)
from .copy_data import SYMBOLS, draw, forgetful_perplexity, one_hot

MAX_K = 100
FULL = {"m": 10, "hidden": 50, "batch": 64, "train_steps": 4000, "test_steps": 1000}
QUICK = {"m": 3, "hidden": 24, "batch": 32, "train_steps": 1000, "test_steps": 500}


class Case(NamedTuple):
    """A row of the table: K, or the delta of an adaptive K, and which perplexity meets it."""

    K: int | None
    delta: float | None
    epochs: int
    as_published: bool
    expected: str
    low: float
    high: float

    @property
    def name(self) -> str:
        return f"K = {self.K}" if self.K else f"adaptive, delta = {self.delta}"


FULL_CASES = (
    Case(5, None, 20, False, "1.866 ± 0.01 (derived)", 1.856, 1.876),
    Case(10, None, 40, False, "1.036, at most 1.066", 1.0, 1.066),
    Case(None, 0.1, 60, False, "1.030, at most 1.060", 1.0, 1.060),
    Case(5, None, 20, True, "1.646 ± 0.03", 1.616, 1.676),
    Case(10, None, 100, True, "1.036, at most 1.066", 1.0, 1.066),
    Case(None, 0.9, 40, True, "1.022, at most 1.052", 1.0, 1.052),
    Case(None, 0.1, 100, True, "1.030, at most 1.060", 1.0, 1.060),
)
QUICK_CASES = (
    Case(1, None, 4, False, "1.587 (derived), at least 1.45", 1.45, 1.65),
    Case(4, None, 16, False, "at most 1.2", 1.0, 1.2),
    Case(None, 0.1, 16, False, "at most 1.3", 1.0, 1.3),
)


def network(hidden: int, rng: np.random.Generator) -> nn.Sequential:
    """The authors' network with their initial weights."""
    model = nn.Sequential(
        nn.Linear(SYMBOLS, hidden), nn.LSTM(hidden, hidden, 2), nn.Linear(hidden, SYMBOLS)
    )
    for weights in model.parameters().values():
        bound = np.sqrt(3 / max(weights.shape)) if weights.ndim > 1 else 0.0
        weights[...] = rng.uniform(-bound, bound, weights.shape)
    return model


def train(
    K: int | None,
    delta: float | None,
    epochs: int,
    seed: int,
    as_published: bool,
    m: int,
    hidden: int,
    batch: int,
    train_steps: int,
    test_steps: int,
) -> Record:
    """Train with a fixed K, or with one that is chosen for `delta` every 5,000 steps.

    The perplexity is that of the test where the one of validation was best.
    """
    rng = np.random.default_rng((seed, 0))
    steps = (train_steps, test_steps, test_steps)
    data = [draw(rng, n, batch, m, as_published) for n in steps]
    (x, y), validation, test = [(one_hot(ids), targets) for ids, targets in data]
    model = network(hidden, np.random.default_rng((seed, 1)))
    # an adaptive K begins with the largest
    optimizer = sgd(model, K or MAX_K)
    if K is not None:
        trainer = TBPTT(model, cross_entropy, optimizer, k1=K, k2=2 * K - 1)
    else:
        assert delta is not None
        trainer = TBPTT(
            model,
            cross_entropy,
            optimizer,
            k="adaptive",
            delta=delta,
            max_lag=MAX_K,
            k_min=2,
            block=5000,
            on_choice=lambda choice: setattr(trainer, "optimizer", sgd(model, choice.k)),
        )
    curve: list[tuple[int, float, float, float]] = []  # epoch, perplexities, mean K since the last
    chosen: list[int] = []
    for epoch in range(1, epochs + 1):
        trainer.reset()
        trainer.run([(x, y)])
        chosen.append(trainer.k1)
        if epoch % max(1, epochs // 20) == 0:
            found = [float(np.exp(trainer.evaluate([part]))) for part in (validation, test)]
            curve.append((epoch, found[0], found[1], float(np.mean(chosen))))
            chosen = []
    best = min(curve, key=lambda point: point[1])
    forgetful = forgetful_perplexity(test[1])
    return {"perplexity": best[2], "epoch": best[0], "curve": curve, "forgetful": forgetful}


def sgd(model: nn.Module, K: int) -> optim.SGD:
    """The authors' step for a truncation of K."""
    return optim.SGD(model.parameters(), K**0.5, weight_decay=1e-5, max_norm=1 / K)


def run(options: Options) -> list[Section]:
    section = Section(
        "Copy task: test perplexity",
        ["truncation", "data", "epochs", "no memory", "mean", "lowest", "highest", "s per run"],
    )
    figures, curves = [], {}
    problem = QUICK if options.quick else FULL
    for case in QUICK_CASES if options.quick else FULL_CASES:
        settings = {
            "K": case.K,
            "delta": case.delta,
            "epochs": case.epochs,
            "as_published": case.as_published,
        }
        results = []
        for seed in options.seeds:
            results.append(options.store.run(train, seed=seed, **settings, **problem))
            report_run("copy", {"seed": seed, **settings}, f"{results[-1]['perplexity']:.4f}")
        values = [result["perplexity"] for result in results]
        data = "the authors'" if case.as_published else "own shifts"
        no_memory = np.mean([result["forgetful"] for result in results])
        shown = (no_memory, np.mean(values), min(values), max(values))
        section.rows.append(
            [case.name, data, str(case.epochs), *(f"{v:.3f}" for v in shown), seconds(results)]
        )
        name = f"{case.name}, {data}"
        figures.append(Figure(name, case.expected, case.low, case.high, values))
        curves[name] = np.mean([result["curve"] for result in results], axis=0)
    section.note = (
        "Blocks of {m}, LSTM of 2 layers of {hidden}, {batch} rows of {train_steps} steps, as many "
        "for validation as for the test: {test_steps}; ".format(**problem)
        + f"seeds {', '.join(map(str, options.seeds))}; the test at the best validation. "
        '"no memory" is the perplexity of one who forgets every symbol.'
    )
    section.draw = lambda axes: draw_curves(axes, curves)
    return [section, figures_section("Copy task: published perplexities", figures)]


def draw_curves(axes: Any, curves: dict[str, Array]) -> None:
    """Test perplexity by epoch, averaged over the seeds; for an adaptive K also its K."""
    lengths = axes.twinx()
    lengths.set_ylabel("adaptive K (dotted)")
    for name, curve in curves.items():
        (line,) = axes.plot(curve[:, 0], curve[:, 2], label=name)
        if name.startswith("adaptive"):
            lengths.plot(curve[:, 0], curve[:, 3], ":", color=line.get_color())
    axes.set_xlabel("epoch")
    axes.set_ylabel("test perplexity")
    axes.legend(fontsize=7)
