"""tbptt_fast.jax beside lax.scan, both inside jit and in one process per thread count."""

from __future__ import annotations

from itertools import chain
from statistics import geometric_mean
from typing import Any

from tests.cases import RECURRENT_BENCH

from . import ours
from .options import LayerPeers, Options, on_threads, progress
from .peers_jax import TASKS, JaxSide
from .problem import Problem
from .report import Section, milliseconds, percent, times
from .timing import Side, Spread, Timing

FORWARD, BOTH = TASKS
WINDOWS = ((256, 16, 128, 128), (1024, 8, 64, 64))
CHUNK = 16
COLUMNS = (
    *("layer", "T, B, I, H", "threads", "ours ms", "of FMA peak"),
    *("lax.scan ms", "of FMA peak", "vs lax.scan"),
)


def run(options: Options) -> list[Section]:
    if "jax" not in options.peers:
        raise SystemExit("bench jax needs JAX")
    with LayerPeers(options) as peers:
        return [*layers(options, peers), windows(options, peers), overhead(options, peers)]


def timed(options: Options, peers: LayerPeers, problem: Problem, threads: int) -> Timing:
    """Forward and backward pass of both, verified against the float64 oracle."""
    worker = peers.worker(threads)
    sides: list[Side] = [JaxSide(worker, problem, name) for name in ("ours", "jax")]
    for side in sides:
        ours.verify(side, problem)
    return options.time(sides, BOTH, threads)


def add(section: Section, problem: Problem, threads: int, timing: Timing) -> float:
    """A line of the table; returns the ratio."""
    label = [problem.cell.upper(), problem.shape, str(threads)]
    ratio = timing.ratio("jax")
    seconds = {side: timing.spread(side) for side in ("ours", "jax")}
    shares = {side: timing.share(3 * problem.forward_flops, side) for side in seconds}
    progress(f"{', '.join(label)}: {times(ratio)}, lax.scan {percent(shares['jax'])} of peak")
    cells = ((milliseconds(seconds[side].median), percent(shares[side])) for side in seconds)
    section.rows.append([*label, *chain.from_iterable(cells), times(ratio)])
    record = {"label": label, "seconds": seconds, "share_of_peak": shares, "ratio": ratio}
    section.records.append(record)
    return ratio.median


def layers(options: Options, peers: LayerPeers) -> list[Section]:
    section = Section(
        title="Within jit, forward and backward with all gradients",
        columns=COLUMNS,
    )
    summary = Section(
        title="Within jit, summary",
        columns=["layer", "threads", "smallest vs lax.scan", "geometric mean"],
    )
    shapes = options.shapes or (RECURRENT_BENCH[:2] if options.quick else RECURRENT_BENCH)
    for cell in options.cells:
        for threads in options.threads:
            ratios = {}
            for shape in shapes:
                problem = Problem(cell, *shape)
                timing = timed(options, peers, problem, threads)
                ratios[problem.shape] = add(section, problem, threads, timing)
            smallest = min(ratios, key=lambda shape: ratios[shape])
            found = (
                f"{ratios[smallest]:.2f} at ({smallest})",
                f"{geometric_mean(ratios.values()):.2f}",
            )
            summary.rows.append([cell.upper(), str(threads), *found])
    return [section, summary]


def windows(options: Options, peers: LayerPeers) -> Section:
    section = Section(
        title=f"Within jit, gradients truncated to windows of {CHUNK} steps",
        columns=COLUMNS,
        note="Ours is one call with truncation; lax.scan is a loop over windows whose state "
        "carries no gradient.",
    )
    for cell in options.cells:
        for shape in WINDOWS[:1] if options.quick else WINDOWS:
            problem = Problem(cell, *shape, chunk=CHUNK)
            for threads in options.threads:
                add(section, problem, threads, timed(options, peers, problem, threads))
    return section


def overhead(options: Options, peers: LayerPeers) -> Section:
    section = Section(
        title="What a call costs, T = B = I = H = 1",
        columns=["layer", "pass", "x + 1 µs", "ours µs", "difference µs", "lax.scan µs"],
        note="A jitted call beside that of x + 1, from Python and until its results are there; "
        "one thread.",
    )
    for cell in options.cells:
        problem = Problem(cell, 1, 1, 1, 1)
        sides: list[Side] = [
            JaxSide(peers.worker(1), problem, name) for name in ("add", "ours", "jax")
        ]
        for side in sides[1:]:
            ours.verify(side, problem)
        for task in TASKS:
            timing = options.time(sides, task, 1, peak=False)
            micros = {name: timing.spread(name).median * 1e6 for name in timing.seconds}
            pairs = zip(timing.seconds["ours"], timing.seconds["add"], strict=True)
            difference = Spread.of([(a - b) * 1e6 for a, b in pairs])
            values: list[Any] = [micros["add"], micros["ours"], difference.median, micros["jax"]]
            section.rows.append([cell.upper(), task, *(f"{value:.1f}" for value in values)])
            record = {"cell": cell, "task": task, "micros": micros, "difference": difference}
            section.records.append(record)
            progress(f"{cell}, {task}, call: {difference.median:.1f} µs ({on_threads(1)})")
    return section
