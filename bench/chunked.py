"""Chunked TBPTT: one call with truncation=K, against PyTorch's loop over detached chunks and
against full backpropagation, ours and PyTorch's."""

from __future__ import annotations

from dataclasses import replace

import tbptt_fast

from . import ours
from .options import Options, on_threads, progress
from .problem import Problem
from .report import Bar, Section, draw_bars, milliseconds, times
from .timing import Side, Spread

# (T, B, I = H, K)
CASES = ((1024, 1, 128, 32), (1024, 8, 256, 64), (1024, 1, 512, 32))
TASK = "forward+backward"


def run(options: Options) -> list[Section]:
    peer = "torch" in options.peers
    section = Section(
        title="Chunked TBPTT, forward + backward, all gradients",
        columns=["cell", "T, B, I = H, K", "threads", "ours ms", "ours, full BPTT ms"],
        note="K is the truncation. PyTorch runs a chunk at a time, detaching the state.",
    )
    section.columns = [
        *section.columns,
        *(["PyTorch chunked ms", "PyTorch full ms"] if peer else []),
        "vs our full BPTT",
        *(["vs PyTorch chunked"] if peer else []),
    ]
    bars: list[Bar] = []
    for cell in options.cells:
        for steps, batch, size, chunk in CASES[:1] if options.quick else CASES:
            problem = Problem(cell, steps, batch, size, size, chunk=chunk)
            for threads in options.threads:
                if ratio := measure(options, problem, threads, section):
                    bars.append(Bar(" · ".join(section.rows[-1][:3]), ratio, threads))
    if bars:
        label = "times as fast as PyTorch's chunks (T, B, I = H, K · threads)"
        section.draw = lambda axes: draw_bars(axes, bars, label, line=1.0)
    return [section]


def measure(options: Options, problem: Problem, threads: int, section: Section) -> Spread | None:
    """Adds a row; returns the ratio to PyTorch's chunks, where PyTorch takes part."""
    tbptt_fast.set_num_threads(threads)
    full = replace(problem, chunk=None)
    sides: list[Side] = [ours.side(problem), ours.side(full, "ours full")]
    if "torch" in options.peers:
        from . import peers_torch

        sides.append(peers_torch.layer_side(problem, threads))
        sides.append(peers_torch.layer_side(full, threads, "torch full"))
    for side in sides:
        if not side.name.endswith("full"):  # those are verified by the bench of full layers
            ours.verify(side, problem)
    timing = options.time(sides, TASK, threads)
    ratio = timing.ratio("torch") if "torch" in options.peers else None
    against_full = timing.ratio("ours full")
    name = f"{problem.steps}, {problem.batch}, {problem.hidden}, {problem.chunk}"
    section.rows.append(
        [
            problem.cell.upper(),
            name,
            str(threads),
            *(milliseconds(timing.spread(side.name).median) for side in sides),
            times(against_full),
            *([times(ratio)] if ratio else []),
        ]
    )
    section.records.append(
        {
            "cell": problem.cell,
            "case": name,
            "threads": threads,
            "seconds": {side.name: timing.spread(side.name) for side in sides},
            "ratio_to_our_full": against_full,
            "ratio_to_torch_chunked": ratio,
            "rounds": timing.seconds,
        }
    )
    progress(
        f"{problem.cell} ({name}), {on_threads(threads)}: "
        f"{milliseconds(timing.spread('ours').median)} ms, "
        f"vs own full {times(against_full)}, vs torch chunked {times(ratio)}"
    )
    return ratio
