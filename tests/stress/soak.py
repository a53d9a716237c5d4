"""Hours of streaming training with resets: flat memory, finite losses, no drift between threads.

Three trainings (LSTM with overlapping windows, GRU with dropout, ConvLSTM) run twice side by side,
on one thread and on two, on the same endless stream; their weights must keep the same bits.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tbptt_fast as tf
from tbptt_fast import _native, nn, optim
from tbptt_fast.tbptt import TBPTT

from .work import Failures, Job

Window = tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]

# Pages that one of the allocators keeps after its largest moment may come late; a leak of one
# smallest array (64 bytes) in each of the 6 trainings' updates would exceed this in 44 000 updates.
GROWTH = 16 << 20


def squared(y: Any, target: Any) -> tuple[float, Any, float]:
    loss, grad = tf.mse_loss(y, target, reduction="sum")
    return loss, grad, target.size


@dataclass
class Pair:
    """One training twice, on one thread and on two."""

    name: str
    make: Callable[[], TBPTT]
    shape: tuple[int, ...]  # of a window's x and target: [k, B, ...]

    def __post_init__(self) -> None:
        self.trainers = self.make(), self.make()

    def windows(self, seed: int) -> Iterator[Window]:
        """Waves and noise; rows begin anew at random, now and then all of them at once."""
        rng = np.random.default_rng([seed, len(self.name)])
        steps, batch = self.shape[:2]
        for clock in range(sys.maxsize):
            time = (clock * steps + np.arange(steps)).reshape(-1, *[1] * (len(self.shape) - 1))
            x = np.sin(0.3 * time) + 0.1 * rng.standard_normal(self.shape)
            is_init = rng.random((steps, batch)) < 0.03
            is_init[0] |= clock % 50 == 0
            yield x.astype(np.float32), np.roll(x, -1, 0).astype(np.float32), is_init

    def bits(self) -> list[str]:
        """Of both trainings' weights."""
        return [Job("", trainer.model.state_dict, False).digest() for trainer in self.trainers]


def pairs() -> list[Pair]:
    def trainer(model: Any, k1: int, k2: int) -> TBPTT:
        return TBPTT(
            model, squared, optim.Adam(model.parameters(), 1e-3, max_norm=1.0), k1=k1, k2=k2
        )

    def lstm() -> TBPTT:
        return trainer(nn.Sequential(nn.LSTM(5, 40, seed=1), nn.Linear(40, 5, seed=2)), 10, 25)

    def gru() -> TBPTT:
        layers = nn.GRU(5, 33, 2, dropout=0.2, seed=3), nn.Linear(33, 5, seed=4)
        return trainer(nn.Sequential(*layers), 12, 12)

    def convlstm() -> TBPTT:
        return trainer(nn.ConvLSTM2d(3, 3, 3, seed=5), 4, 6)

    return [
        Pair("lstm", lstm, (10, 24, 5)),
        Pair("gru", gru, (12, 20, 5)),
        Pair("convlstm", convlstm, (4, 2, 3, 10, 11)),
    ]


def resident() -> int:
    """Bytes of this process that are in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def soak(seconds: float, every: int, warm_up: int, seed: int, failures: Failures) -> list[int]:
    """Train for some seconds, comparing bits every so many updates.

    Returns the number of updates of each training, the bytes in memory after `warm_up` updates,
    and at the end.
    """
    running = [(pair, pair.windows(seed)) for pair in pairs()]
    updates, early, in_use = 0, 0, 0
    end = time.monotonic() + seconds
    while time.monotonic() < end or updates < 2 * warm_up or updates % every:
        for pair, windows in running:
            window = next(windows)
            reports = []
            for threads, trainer in zip((1, 2), pair.trainers, strict=True):
                with tf.num_threads(threads):
                    reports.append(trainer.step(*window))
            if reports[0] != reports[1] or not math.isfinite(reports[0].loss_per_item):
                failures.add(f"{pair.name}: update {updates}: {reports}")
        updates += 1
        if updates % every == 0:
            for pair, _ in running:
                if len(set(pair.bits())) != 1:
                    failures.add(f"{pair.name}: update {updates}: threads give other weights")
        if updates == warm_up:
            gc.collect()
            early, in_use = resident(), _native.memory_in_use()
    gc.collect()
    late = resident()
    if late - early > GROWTH:
        failures.add(f"memory grew from {early} to {late} bytes")
    if _native.memory_in_use() > in_use:
        failures.add(f"blocks in use grew from {in_use} to {_native.memory_in_use()} bytes")
    return [updates, early, late]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=int, default=100, help="updates between two comparisons")
    parser.add_argument("--warm-up", type=int, default=1000, help="updates before memory is read")
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args(arguments)
    failures = Failures("soak")
    updates, early, late = soak(60 * o.minutes, o.every, o.warm_up, o.seed, failures)
    print(
        f"soak: {60 * o.minutes:.0f} s, {updates} updates of each of 6 trainings, resident"
        f" {early / 2**20:.1f} MB after {o.warm_up} and {late / 2**20:.1f} MB at the end"
        f" (at most {GROWTH >> 20} MB more), {failures.count} failures"
    )
    return 1 if failures.count else 0


if __name__ == "__main__":
    sys.exit(main())
