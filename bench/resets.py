"""Resets in the middle of sequences: what they cost us, and PyTorch's loop over steps."""

from __future__ import annotations

from dataclasses import replace

import tbptt_fast

from . import ours
from .options import Options, on_threads, progress
from .problem import Problem
from .report import Bar, Section, draw_bars, milliseconds, times
from .timing import Side

WITH_RESETS = Problem("lstm", 128, 16, 64, 256, reset_rate=0.03)
TASK = "forward+backward"


def run(options: Options) -> list[Section]:
    peer = "torch" in options.peers
    section = Section(
        title="LSTM with resets, forward + backward, all gradients",
        columns=[
            "T, B, I, H",
            "threads",
            "ours ms",
            "ours without resets ms",
            *(["PyTorch ms", "PyTorch without resets ms"] if peer else []),
            "vs ours without resets",
            *(["vs PyTorch"] if peer else []),
        ],
        note=f"{WITH_RESETS.reset_rate:.0%} of all steps start from a zero state. "
        "PyTorch with resets is the usual loop over steps with a masked state.",
    )
    bars: list[Bar] = []
    for threads in options.threads:
        bars += measure(options, threads, section)
    label = "times as fast as … (threads)"
    section.draw = lambda axes: draw_bars(axes, bars, label, line=1.0)
    return [section]


def measure(options: Options, threads: int, section: Section) -> list[Bar]:
    """Adds a row and returns its bars."""
    tbptt_fast.set_num_threads(threads)
    without = replace(WITH_RESETS, reset_rate=0.0)
    checked: list[tuple[Side, Problem]] = [
        (ours.side(WITH_RESETS), WITH_RESETS),
        (ours.side(without, "ours without"), without),
    ]
    if "torch" in options.peers:
        from . import peers_torch

        checked.append((peers_torch.masked_loop_side(WITH_RESETS, threads), WITH_RESETS))
        checked.append((peers_torch.layer_side(without, threads, "torch without"), without))
    for side, problem in checked:
        ours.verify(side, problem)
    sides = [side for side, _ in checked]
    timing = options.time(sides, TASK, threads)
    compared = {"ours without": "ours without resets", "torch": "PyTorch"}
    ratios = {name: timing.ratio(name) for name in compared if name in timing.seconds}
    section.rows.append(
        [
            WITH_RESETS.shape,
            str(threads),
            *(milliseconds(timing.spread(side.name).median) for side in sides),
            *(times(ratio) for ratio in ratios.values()),
        ]
    )
    section.records.append(
        {
            "shape": WITH_RESETS.shape,
            "reset_rate": WITH_RESETS.reset_rate,
            "threads": threads,
            "seconds": {side.name: timing.spread(side.name) for side in sides},
            "ratio": ratios,
            "rounds": timing.seconds,
        }
    )
    progress(
        f"resets, {on_threads(threads)}: {milliseconds(timing.spread('ours').median)} ms, "
        + ", ".join(f"vs {compared[name]} {times(ratio)}" for name, ratio in ratios.items())
    )
    return [Bar(f"{compared[name]} · {threads}", ratio, threads) for name, ratio in ratios.items()]
