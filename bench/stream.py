"""Memory over a long stream: a million steps, trained window by window with k1 < k2."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import tbptt_fast
from tbptt_fast import nn, ops, optim
from tbptt_fast.tbptt import TBPTT

from .options import Options, progress
from .report import Section

STEPS, QUICK_STEPS = 1_000_000, 100_000
K1, K2 = 50, 100
FEATURES, HIDDEN = 8, 32
SAMPLES = 100
SETTLED = SAMPLES // 10  # by then every cache has been filled
MEGABYTE = 2**20


def run(options: Options) -> list[Section]:
    threads = max(options.threads)
    tbptt_fast.set_num_threads(threads)
    steps = QUICK_STEPS if options.quick else STEPS
    start = time.perf_counter()
    sizes = list(resident_sizes(steps))
    seconds = time.perf_counter() - start
    settled = sizes[SETTLED:]
    growth = settled[-1] - settled[0]
    spread = max(settled) - min(settled)
    progress(f"stream: {growth / MEGABYTE:+.2f} MiB from a tenth of {steps:,} steps to the end")
    section = Section(
        title=f"Resident memory over {steps:,} steps",
        columns=["steps", "resident MiB"],
        note=f"LSTM of {HIDDEN} and a linear layer, k1 = {K1}, k2 = {K2}, Adam, one stream, "
        f"{threads} threads, {steps / seconds:,.0f} steps a second. Growth from a tenth of the "
        f"way to the end: {growth / MEGABYTE:+.2f} MiB, largest minus smallest "
        f"{spread / MEGABYTE:.2f} MiB.",
    )
    for sample in sorted({0, SETTLED, SAMPLES // 4, SAMPLES // 2, SAMPLES - 1}):
        done = (sample + 1) * steps // SAMPLES
        section.rows.append([f"{done:,}", f"{sizes[sample] / MEGABYTE:.2f}"])
    section.records.append(
        {"steps": steps, "seconds": seconds, "growth_bytes": growth, "resident_bytes": sizes}
    )

    def draw(axes: Any) -> None:
        places = [(index + 1) * steps / SAMPLES for index in range(SAMPLES)]
        axes.plot(places, [size / MEGABYTE for size in sizes])
        axes.set_ylim(0, max(sizes) / MEGABYTE * 1.1)
        axes.set_xlabel("steps")
        axes.set_ylabel("resident MiB")

    section.draw = draw
    return [section]


def resident_sizes(steps: int) -> Iterator[int]:
    """Trains on `steps` steps and yields the bytes that are resident, SAMPLES times on the way."""
    rng = np.random.default_rng(1)
    model = nn.Sequential(nn.LSTM(FEATURES, HIDDEN, seed=1), nn.Linear(HIDDEN, FEATURES, seed=2))
    optimizer = optim.Adam(model.parameters(), lr=1e-3, max_norm=1.0)
    trainer = TBPTT(model, squared_error, optimizer, k1=K1, k2=K2)
    for _ in range(SAMPLES):
        for _ in range(steps // SAMPLES // K1):
            window = rng.standard_normal((K1 + 1, 1, FEATURES), dtype=np.float32)
            trainer.step(window[:-1], window[1:])
        yield resident_bytes()


def squared_error(y: Any, target: Any) -> tuple[float, Any, float]:
    loss, grad = ops.mse_loss(y, target, reduction="sum")
    return float(loss), grad, y.size


def resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no /proc: the largest size so far, which must not grow either
        import resource

        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest if sys.platform == "darwin" else largest * 1024
