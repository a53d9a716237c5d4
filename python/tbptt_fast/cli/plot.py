"""Pictures of a training and of how gradients decay, drawn without a screen; need matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbptt_fast.cli.training import Point
from tbptt_fast.tbptt import AdaptiveK

_BLUE, _GREY, _RED = "#1f6f8b", "#9aa5b1", "#b5533c"


def plot_curves(path: str, curve: Sequence[Point], measure: str, title: str) -> None:
    """Write training and validation over seconds to a PNG, PDF or SVG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    seconds = [point.seconds for point in curve]
    axes.plot(seconds, [p.training for p in curve], color=_GREY, marker=".", label="training")
    validation = [point.validation for point in curve]
    axes.plot(seconds, validation, color=_BLUE, marker="o", markersize=4, label="validation")
    if curve:
        best = min(curve, key=lambda point: point.validation)
        axes.annotate(
            f"{best.validation:.4g}",
            (best.seconds, best.validation),
            xytext=(0, -14),
            textcoords="offset points",
            ha="center",
            color=_BLUE,
        )
    axes.margins(y=0.12)
    axes.set(xlabel="seconds", ylabel=measure, title=title)
    _finish(axes)
    figure.savefig(path, dpi=150)


def plot_decay(path: str, choice: AdaptiveK, k_max: int, title: str) -> None:
    """Write the decay with its fitted line, and the bound on the bias by K, to such a file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    decay, bias = figure.subplots(1, 2)
    figure.suptitle(title)
    lags = np.arange(len(choice.phi))
    shown, fitted = _positive(choice.phi), _positive(choice.fitted)
    _spread(decay, shown, fitted)
    decay.semilogy(lags, shown, color=_BLUE, marker=".", label="measured")
    label = f"fitted: factor {choice.beta:.4g} per step"
    decay.semilogy(lags, fitted, color=_RED, linestyle="--", label=label)
    decay.axvline(choice.tau, color=_GREY, linewidth=0.8, label=f"tau = {choice.tau}")
    decay.set(xlabel="lag, steps", ylabel="gradient norm by the state", title="decay")
    _finish(decay)

    ks = np.arange(1, k_max + 1)
    bound = _positive(choice.relative[1 : k_max + 1])
    _spread(bias, bound, np.array([choice.delta]))
    bias.semilogy(ks, bound, color=_BLUE, label="bound on the relative bias")
    bias.axhline(choice.delta, color=_GREY, linewidth=0.8, label=f"delta = {choice.delta:g}")
    reached = "" if choice.met else " (bound not met)"
    bias.axvline(choice.k, color=_RED, linestyle="--", label=f"K = {choice.k}{reached}")
    bias.set(xlabel="K, steps", ylabel="relative bias", title="truncation after K steps")
    _finish(bias)
    figure.savefig(path, dpi=150)


def _positive(values: NDArray[Any]) -> NDArray[Any]:
    """What a logarithmic axis can show; NaN for the rest."""
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def _spread(axes: Any, *values: NDArray[Any]) -> None:
    """Limits of a logarithmic axis, also where all values are equal or none is known."""
    known = np.concatenate(values)
    known = known[np.isfinite(known)]
    if known.size:
        axes.set_ylim(known.min() / 1.5, known.max() * 1.5)


def _finish(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
