"""Single layers, forward and forward + backward with all gradients, against the peers' layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any

import tbptt_fast
from tests.cases import RECURRENT_BENCH

from . import ours
from .options import PEER_NAMES, LayerPeers, Options, Shape, on_threads, progress
from .problem import Problem
from .report import Bar, Section, draw_bars, milliseconds, percent, times
from .timing import Spread, Timing

TASKS = ("forward+backward", "forward")
QUICK_FLOPS = 1e9


@dataclass
class Case:
    """One line of the table."""

    problem: Problem
    threads: int
    task: str
    timing: Timing
    error: float
    peers: Sequence[str]

    @property
    def flops(self) -> float:
        return self.problem.forward_flops * (1 if self.task == "forward" else 3)

    @property
    def share(self) -> Spread:
        return self.timing.share(self.flops)

    def ratio(self, peer: str | None) -> Spread | None:
        return None if peer is None else self.timing.ratio(peer)

    @property
    def best(self) -> Spread | None:
        """Against the peer that is fastest on this case."""
        return self.ratio(self.timing.fastest_peer(self.peers))

    def cells(self) -> list[str]:
        peers = [milliseconds(self.timing.spread(peer).median) for peer in self.peers]
        return [
            self.problem.cell.upper(),
            self.problem.shape,
            str(self.threads),
            milliseconds(self.timing.spread("ours").median),
            percent(self.share),
            *peers,
            *(times(self.ratio(peer)) for peer in self.peers),
        ]

    def record(self) -> dict[str, Any]:
        return {
            "cell": self.problem.cell,
            "shape": [getattr(self.problem, n) for n in ("steps", "batch", "inputs", "hidden")],
            "threads": self.threads,
            "task": self.task,
            "largest_error": self.error,
            "flops": self.flops,
            "share_of_peak": self.share,
            "seconds": {side: self.timing.spread(side) for side in self.timing.seconds},
            "ratio": {peer: self.ratio(peer) for peer in self.peers},
            "ratio_to_best": self.best,
            "rounds": self.timing.seconds,
            "peaks_gflops": self.timing.peaks,
        }


def run(options: Options) -> list[Section]:
    cases: list[Case] = []
    with LayerPeers(options) as peers:
        for cell in options.cells:
            for shape in chosen_shapes(options, cell):
                for threads in options.threads:
                    cases += measure(options, peers, Problem(cell, *shape), threads)
    tables = [table(options, task, [c for c in cases if c.task == task]) for task in TASKS]
    return [*tables, summary(options, cases)] if options.peers else tables


def chosen_shapes(options: Options, cell: str) -> list[Shape]:
    shapes = list(options.shapes or RECURRENT_BENCH)
    if options.shapes is None and options.quick:
        shapes = [s for s in shapes if Problem(cell, *s).forward_flops < QUICK_FLOPS]
    return shapes


def measure(options: Options, peers: LayerPeers, problem: Problem, threads: int) -> list[Case]:
    tbptt_fast.set_num_threads(threads)
    sides = [ours.side(problem), *peers.sides(problem, threads)]
    errors = [ours.verify(side, problem) for side in sides]
    cases = []
    for task in TASKS:
        timing = options.time(sides, task, threads)
        case = Case(problem, threads, task, timing, errors[0], options.peers)
        progress(
            f"{problem.cell} ({problem.shape}), {on_threads(threads)}, {task}: "
            f"{milliseconds(timing.spread('ours').median)} ms, {percent(case.share)} of peak, "
            f"vs best peer {times(case.best)}"
        )
        cases.append(case)
    return cases


def table(options: Options, task: str, cases: Sequence[Case]) -> Section:
    peers = [PEER_NAMES[peer] for peer in options.peers]
    gradients = ", all gradients" if task != "forward" else ", no tape kept"
    section = Section(
        title=f"Recurrent layers, {task}{gradients}",
        columns=[
            "cell",
            "T, B, I, H",
            "threads",
            "ours ms",
            "of FMA peak",
            *(f"{peer} ms" for peer in peers),
            *(f"vs {peer}" for peer in peers),
        ],
        rows=[case.cells() for case in cases],
        records=[case.record() for case in cases],
        note="Medians. vs: how many times as fast ours is, with the quartiles over the rounds.",
    )
    label = "times as fast as the best peer" if peers else "share of the FMA peak"
    values = [case.best or case.share for case in cases]
    bars = [
        Bar(f"{c.problem.cell} ({c.problem.shape}) · {c.threads}", value, c.threads)
        for c, value in zip(cases, values, strict=True)
    ]
    section.draw = lambda axes: draw_bars(axes, bars, f"{label} (T, B, I, H) · threads", 1.0)
    return section


def summary(options: Options, cases: Sequence[Case]) -> Section:
    """The smallest ratio and the geometric means over the shapes."""
    section = Section(
        title="Recurrent layers, summary over the shapes",
        columns=[
            "cell",
            "pass",
            "threads",
            "smallest vs best peer",
            "mean vs best peer",
            *(f"mean vs {PEER_NAMES[peer]}" for peer in options.peers),
        ],
        note="Means are geometric.",
    )
    for cell in options.cells:
        for task in TASKS:
            for threads in options.threads:
                chosen = [
                    c for c in cases if (c.problem.cell, c.task, c.threads) == (cell, task, threads)
                ]
                if not chosen:
                    continue
                best = [c.best.median for c in chosen if c.best]
                means = {
                    peer: geometric_mean([c.timing.ratio(peer).median for c in chosen])
                    for peer in options.peers
                }
                worst = chosen[best.index(min(best))].problem.shape
                section.rows.append(
                    [
                        cell.upper(),
                        task,
                        str(threads),
                        f"{min(best):.2f} at ({worst})",
                        f"{geometric_mean(best):.2f}",
                        *(f"{mean:.2f}" for mean in means.values()),
                    ]
                )
                section.records.append(
                    {
                        "cell": cell,
                        "task": task,
                        "threads": threads,
                        "smallest_ratio_to_best": min(best),
                        "mean_ratio_to_best": geometric_mean(best),
                        "mean_ratio": means,
                    }
                )
    return section
