"""What the machine can do, measured: FMA peak and memory bandwidth; and what it is."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tbptt_fast
from tbptt_fast import _native

SHORT_SECONDS = 0.015


def available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def short_peak(threads: int) -> Callable[[], float]:
    """A probe of the FMA peak [GFLOP/s], short enough to run beside every round."""
    return lambda: float(_native.fma_peak(threads, SHORT_SECONDS))


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe(threads: Sequence[int], seconds: float) -> dict[str, Any]:
    """Machine, versions and measured limits, as it goes into the report."""
    packages = ("numpy", "torch", "jax", "jaxlib")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cpus": available_cpus(),
        "system": f"{platform.system()} {platform.machine()}",
        "isa": tbptt_fast.active_isa(),
        "build": tbptt_fast.build_info(),
        "versions": {
            "tbptt_fast": tbptt_fast.__version__,
            "python": platform.python_version(),
            **{name: found for name in packages if (found := version_of(name))},
        },
        "fma_peak_gflops": {n: float(_native.fma_peak(n, seconds)) for n in threads},
        "memory_bandwidth_gbs": {n: float(_native.memory_bandwidth(n, seconds)) for n in threads},
    }
