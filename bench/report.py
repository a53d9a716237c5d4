"""What a benchmark hands back, and its forms: table, JSON, picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .timing import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class Section:
    """One table of results; `records` are its raw numbers, `draw` its picture, if it has one."""

    title: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""
    draw: Callable[[Axes], None] | None = None


@dataclass
class Bar:
    """One horizontal bar with its spread as an error bar."""

    label: str
    value: Spread
    threads: int = 1


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def times(ratio: Spread | None) -> str:
    """A ratio with its quartiles: 1.52 (1.48-1.60)."""
    return "—" if ratio is None else f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def percent(share: Spread) -> str:
    return f"{share.median * 100:.0f} %"


def machine_lines(machine: dict[str, Any]) -> list[str]:
    limits = [
        f"{n} thread{'s' if n > 1 else ''}: {peak:.0f} GFLOP/s, "
        f"{machine['memory_bandwidth_gbs'][n]:.1f} GB/s"
        for n, peak in machine["fma_peak_gflops"].items()
    ]
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items())
    return [
        f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['system']}, ISA {machine['isa']}",
        f"measured limits: {'; '.join(limits)}",
        f"{versions}; {machine['date']}",
    ]


def machine_text(machine: dict[str, Any], *, markdown: bool) -> str:
    return "\n".join(f"- {line}" if markdown else line for line in machine_lines(machine))


def section_text(section: Section, *, markdown: bool) -> str:
    heading = f"### {section.title}" if markdown else section.title
    table = _table([list(section.columns), *section.rows], markdown)
    return "\n\n".join(filter(None, [heading, section.note, table]))


def _table(lines: list[list[str]], markdown: bool) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        [cell.ljust(width) if index == 0 else cell.rjust(width) for index, (cell, width) in row]
        for row in (enumerate(zip(line, widths, strict=True)) for line in lines)
    ]
    if not markdown:
        rule = ["-" * width for width in widths]
        return "\n".join("  ".join(line).rstrip() for line in [padded[0], rule, *padded[1:]])
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], rule, *padded[1:]])


def save_json(path: Path, machine: dict[str, Any], sections: Sequence[Section]) -> None:
    tables = {section.title: section.records for section in sections}
    text = json.dumps({"machine": machine, "results": tables}, indent=1, default=asdict)
    path.write_text(text + "\n")


def save_plot(path: Path, machine: dict[str, Any], sections: Sequence[Section]) -> None:
    """All pictures one below the other, each as high as it has to be."""
    from matplotlib import pyplot

    drawn = [(section, section.draw) for section in sections if section.draw]
    if not drawn:
        raise SystemExit(f"{path}: nothing to draw without a peer")
    heights = [max(2.5, 0.22 * len(section.rows) + 1.2) for section, _ in drawn]
    figure, axes = pyplot.subplots(
        len(drawn),
        figsize=(10, sum(heights) + 0.8),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for (section, draw), panel in zip(drawn, axes[:, 0], strict=True):
        panel.set_title(section.title, loc="left")
        draw(panel)
    figure.suptitle("\n".join(machine_lines(machine)), fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def draw_bars(axes: Axes, bars: Sequence[Bar], label: str, line: float | None = None) -> None:
    """Horizontal bars from top to bottom, each with its quartiles; `line` marks parity."""
    middles = [bar.value.median for bar in bars]
    spread = [
        [bar.value.median - bar.value.low for bar in bars],
        [bar.value.high - bar.value.median for bar in bars],
    ]
    places = range(len(bars))
    colours = ["tab:blue" if bar.threads == 1 else "tab:cyan" for bar in bars]
    axes.barh(places, middles, xerr=spread, color=colours, ecolor="0.3", capsize=2)
    for place, bar in zip(places, bars, strict=True):
        axes.text(bar.value.high, place, f" {bar.value.median:.2f}", va="center", fontsize=7)
    axes.set_yticks(places, [bar.label for bar in bars], fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.08, y=0.01)
    axes.set_xlabel(label)
    if line is not None:
        axes.axvline(line, color="0.3", linestyle="--", linewidth=1)
