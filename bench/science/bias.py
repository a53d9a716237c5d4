"""Bias of truncated gradients against K, on a trained language model, and the bound on it.

A character model is trained on CPython's documentation. On one part of the text that it has not
seen `measure_lags` and `adaptive_k` say how large the bias of a truncation at K is at most; on
another part the bias is measured. Both times losses are averaged over many steps, and each of them
has `history` steps before it, so that "the full gradient" goes back four times as far as what the
bound was fitted to.

By the state: the sum over the lags k >= K of the mean of dL_s/dh_(s-k), relative to the sum over
all lags. This is what the bound speaks of. By the parameters: the difference of the LSTM's mean
gradient with truncation=(1, K), each loss reaching K cells, and of the full one, relative to the
full one. That the same bound holds there assumes that dh/dtheta is as large for the lags that are
cut as for those that are kept (its norm cancels then).

K stays within the lags that were measured: beyond them the bound extrapolates the fitted decay,
which does not hold for ever.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tbptt_fast import lag_norms, nn, optim
from tbptt_fast.data import TextStream, Vocabulary, python_documentation
from tbptt_fast.ops import Truncation
from tbptt_fast.tbptt import TBPTT, adaptive_k, measure_lags

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

LENGTHS = (1, 2, 4, 8, 16, 32, 64)
DELTAS = (0.9, 0.5, 0.1)
FULL = {"hidden": 96, "batch": 32, "updates": 1500, "max_lag": 100, "history": 400}
QUICK = {"hidden": 24, "batch": 16, "updates": 60, "max_lag": 70, "history": 140}


def train(seed: int, hidden: int, batch: int, updates: int) -> tuple[nn.Sequential, Array, float]:
    """The model, the ids of the text's last fifth, unseen, and the last mean loss in bits."""
    text = python_documentation()
    vocabulary = Vocabulary(text)
    ids = vocabulary.encode(text).astype(np.int64)
    cut = len(ids) * 4 // 5
    seeds = range(3 * seed, 3 * seed + 3)
    model = nn.Sequential(
        nn.Embedding(len(vocabulary), 32, seed=seeds[0]),
        nn.LSTM(32, hidden, seed=seeds[1]),
        nn.Linear(hidden, len(vocabulary), seed=seeds[2]),
    )
    optimizer = optim.Adam(model.parameters(), lr=4e-3, max_norm=1.0)
    schedule = optim.CosineLR(optimizer, updates)
    trainer = TBPTT(model, cross_entropy, optimizer, k1=64, schedule=schedule)
    stream = TextStream(ids[:cut], batch, 64)
    losses = [trainer.step(*stream.next_window()).loss_per_item for _ in range(updates)]
    return model, ids[cut:], float(np.mean(losses[-50:]) / np.log(2))


def gradients(model: nn.Sequential, x: Array, grad: Array, truncation: Truncation) -> Array:
    """Of the LSTM's weights and biases by the losses whose gradient by the logits is `grad`."""
    _, _, tape = model.forward(x)
    params = model.backward(tape, grad, truncation=truncation, needs_x=False).params
    return np.concatenate([g.ravel() for name, g in params.items() if name[0] == "1"])


def measure(seed: int, hidden: int, batch: int, updates: int, max_lag: int, history: int) -> Record:
    """The bound from one part of the text and the bias on another, by K."""
    model, ids, bits = train(seed, hidden, batch, updates)
    steps = 2 * history
    parts = [ids[i * steps * batch :][: steps * batch + 1] for i in range(2)]
    windows = [TextStream(part, batch, steps).next_window() for part in parts]

    first = windows[0]
    found = measure_lags(model, cross_entropy, first.x, first.y, max_lag, losses=history)
    k_max = max(max_lag, *LENGTHS)
    choices = [
        adaptive_k(found.phi, gradient=found.gradient, delta=delta, k_max=k_max) for delta in DELTAS
    ]
    choice = choices[0]

    x, y = windows[1].x, windows[1].y
    hidden_out, _, _ = model[0].forward(x)
    h, _, tape = model[1].forward(hidden_out)
    logits, _, head = model[2].forward(h)
    grad = cross_entropy(logits, y)[1]
    grad[:history] = 0  # their losses are not measured
    grad /= history * batch
    by_state = model[2].backward(head, grad).x
    assert by_state is not None
    sums: Array = lag_norms(tape.saved[0], by_state, history, sums=True)[1]
    by_lag = sums.reshape(history + 1, -1)
    tails = np.linalg.norm(np.cumsum(by_lag[::-1], axis=0)[::-1], axis=1)  # of the lags >= K
    full = gradients(model, x, grad, None)
    size = np.linalg.norm(full)

    def bias(truncation: Truncation) -> float:
        return float(np.linalg.norm(gradients(model, x, grad, truncation) - full) / size)

    return {
        "bits": bits,
        "beta": choice.beta,
        "chosen": [[found.k, found.met] for found in choices],
        "absolute_bound": [float(choice.absolute[K]) for K in LENGTHS],
        "absolute": [float(tails[K]) for K in LENGTHS],
        "relative_bound": [float(choice.relative[K]) for K in LENGTHS],
        "relative": [float(tails[K] / tails[0]) for K in LENGTHS],
        "parameters": [bias((1, K)) for K in LENGTHS],
        "windows": [bias((K, 2 * K - 1)) for K in LENGTHS],
    }


def run(options: Options) -> list[Section]:
    problem = QUICK if options.quick else FULL
    results = []
    for seed in options.seeds:
        results.append(options.store.run(measure, seed=seed, **problem))
        chosen = ", ".join(f"K = {k}" for k, _ in results[-1]["chosen"])
        report_run("bias", {"seed": seed}, f"{results[-1]['bits']:.2f} bits, {chosen}")

    def mean(name: str, i: int) -> float:
        return float(np.mean([result[name][i] for result in results]))

    section = Section(
        "Bias of truncated gradients of a trained language model",
        [
            "K",
            "bound, absolute",
            "measured",
            "bound, relative",
            "by the state",
            "by the parameters",
            "in windows (K, 2K-1)",
        ],
    )
    names = ("absolute_bound", "absolute", "relative_bound", "relative", "parameters", "windows")
    for i, K in enumerate(LENGTHS):
        section.rows.append([str(K), *(f"{mean(name, i):.3g}" for name in names)])
    seeds = ", ".join(map(str, options.seeds))
    section.note = (
        "An LSTM of {hidden}, {updates} updates by Adam on {batch} rows of CPython's documentation "
        "in windows of 64; norms of the lags 0 to {max_lag} on 1 part of the unseen text, bias "
        "against the lags 0 to {history} on another; ".format(**problem)
        + f"{np.mean([result['bits'] for result in results]):.2f} bits per character; beta "
        + ", ".join(f"{result['beta']:.4f}" for result in results)
        + f"; means of the seeds {seeds}; {seconds(results)} s a seed. adaptive_k chose "
        + "; ".join(chosen_for(delta, i, results) for i, delta in enumerate(DELTAS))
        + "."
    )
    section.draw = lambda axes: draw_bias(axes, mean)
    claims = (
        ("absolute bias by the state", "absolute", "absolute_bound"),
        ("relative bias by the state", "relative", "relative_bound"),
        ("relative bias by the parameters", "parameters", "relative_bound"),
    )
    figures = [
        Figure(f"largest share of the bound, {name}", "at most 1", 0.0, 1.0, shares(results, *pair))
        for name, *pair in claims
    ]
    return [section, figures_section("Bias within the bound, for every K", figures)]


def shares(results: list[Record], measured: str, bound: str) -> list[float]:
    """By seed the largest quotient over all K."""
    return [float(np.max(np.divide(found[measured], found[bound]))) for found in results]


def chosen_for(delta: float, i: int, results: list[Record]) -> str:
    parts = [
        f"{found['chosen'][i][0]}{'' if found['chosen'][i][1] else ' (the limit)'}"
        for found in results
    ]
    return f"K = {', '.join(parts)} for delta = {delta}"


def draw_bias(axes: Any, mean: Any) -> None:
    """Bound and biases, relative, against K."""
    lines = {
        "bound of adaptive_k": ("relative_bound", "k-"),
        "by the state": ("relative", "o-"),
        "by the parameters, (1, K)": ("parameters", "s-"),
        "by the parameters, (K, 2K-1)": ("windows", "^-"),
    }
    for label, (name, style) in lines.items():
        axes.plot(LENGTHS, [mean(name, i) for i in range(len(LENGTHS))], style, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("K")
    axes.set_ylabel("relative bias")
    axes.legend()
