"""Alternating rounds: each side takes its turn while the others rest, ratios are per round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from .problem import Result

# OpenMP workers of a peer go on spinning for some milliseconds after their last region.
SETTLE_SECONDS = 0.02
WARM_SECONDS = 0.008
LONG_SECONDS = 0.1


class Side(Protocol):
    """One implementation of a problem, here or in another process."""

    name: str

    def result(self) -> Result:
        """Everything the problem computes, for verification."""

    def turn(self, task: str, calls: int, warm_up: bool = True) -> list[float]:
        """Seconds of each of `calls` calls of "forward" or "forward+backward"."""


@dataclass(frozen=True)
class Spread:
    """A median and its quartiles."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        low, median, high = np.percentile(np.asarray(values), [25, 50, 75])
        return Spread(float(median), float(low), float(high))


@dataclass
class Timing:
    """Per side the median seconds of each round, and the FMA peak measured around our turns."""

    seconds: dict[str, list[float]]
    peaks: list[float] = field(default_factory=list)

    def spread(self, side: str) -> Spread:
        return Spread.of(self.seconds[side])

    def ratio(self, peer: str, base: str = "ours") -> Spread:
        """How many times as fast as `peer` is `base`: the median of the ratios of single rounds."""
        pairs = zip(self.seconds[peer], self.seconds[base], strict=True)
        return Spread.of([slow / fast for slow, fast in pairs])

    def share(self, flops: float, side: str = "ours") -> Spread:
        """A side's share of the FMA peak that the machine had in that round."""
        pairs = zip(self.peaks, self.seconds[side], strict=True)
        return Spread.of([flops / seconds / (peak * 1e9) for peak, seconds in pairs])

    def fastest_peer(self, peers: Sequence[str]) -> str | None:
        present = [peer for peer in peers if peer in self.seconds]
        return min(present, key=lambda peer: self.spread(peer).median, default=None)


def time_calls(
    step: Callable[[], object],
    calls: int,
    after: Callable[[], None] | None = None,
    warm_up: bool = True,
) -> list[float]:
    """Warm up, then time single calls; `after` runs between them, untimed."""
    end = time.perf_counter() + (WARM_SECONDS if warm_up else 0)
    while time.perf_counter() < end:
        step()
        if after:
            after()
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
        if after:
            after()
    return seconds


@dataclass
class LocalSide:
    """A side that runs in this process; `tasks` maps the name of a task to one call of it."""

    name: str
    compute: Callable[[], Result]
    tasks: Mapping[str, Callable[[], object]]
    after: Callable[[], None] | None = None

    def result(self) -> Result:
        return self.compute()

    def turn(self, task: str, calls: int, warm_up: bool = True) -> list[float]:
        return time_calls(self.tasks[task], calls, self.after, warm_up)


def alternate(
    sides: Sequence[Side],
    task: str,
    *,
    rounds: int,
    turn_seconds: float,
    peak: Callable[[], float] | None = None,
) -> Timing:
    """Let the sides take turns, in reversed order every second round; the peak is taken
    before and after each turn of "ours"."""
    plans: dict[str, tuple[int, bool]] = {}
    for side in sides:
        estimate = min(side.turn(task, 2))
        calls = max(1, min(20_000, round(turn_seconds / estimate)))
        # A long call warms itself up: caches, clock and pages cost it next to nothing.
        plans[side.name] = calls, estimate < LONG_SECONDS
    timing = Timing({side.name: [] for side in sides})
    for index in range(rounds):
        for side in sides if index % 2 == 0 else reversed(sides):
            time.sleep(SETTLE_SECONDS)
            around = peak if side.name == "ours" else None
            before = around() if around else 0.0
            timing.seconds[side.name].append(float(np.median(side.turn(task, *plans[side.name]))))
            if around:
                timing.peaks.append((before + around()) / 2)
    return timing
