"""The picture of a training: its curves over time, drawn without a screen."""

from __future__ import annotations

from collections.abc import Sequence

from tbptt_fast.cli.training import Point


def plot_curves(path: str, curve: Sequence[Point], measure: str, title: str) -> None:
    """Write training and validation over seconds to a PNG, PDF or SVG file; needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    seconds = [point.seconds for point in curve]
    axes.plot(seconds, [p.training for p in curve], color="#9aa5b1", marker=".", label="training")
    validation = [point.validation for point in curve]
    axes.plot(seconds, validation, color="#1f6f8b", marker="o", markersize=4, label="validation")
    if curve:
        best = min(curve, key=lambda point: point.validation)
        axes.annotate(
            f"{best.validation:.4g}",
            (best.seconds, best.validation),
            xytext=(0, -14),
            textcoords="offset points",
            ha="center",
            color="#1f6f8b",
        )
    axes.margins(y=0.12)
    axes.set(xlabel="seconds", ylabel=measure, title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
