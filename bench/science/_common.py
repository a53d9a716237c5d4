"""What the studies share: options, finished runs that are kept, and figures with what they meet."""

from __future__ import annotations

import inspect
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbptt_fast import ops

from ..options import progress
from ..report import Section

Array = NDArray[Any]
Record = dict[str, Any]


class Store:
    """Results of finished runs; those in its file are not repeated.

    A run is a function of named settings, with results that JSON can hold.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.runs: dict[str, Record] = {}
        if path and path.exists():
            for run in json.loads(path.read_text(encoding="utf-8"))["runs"]:
                self.runs[_key(run["study"], run["settings"])] = run

    def run(self, function: Callable[..., Record], **settings: Any) -> Record:
        """What `function(**settings)` returns, and the "seconds" that it took."""
        bound = inspect.signature(function).bind(**settings)
        bound.apply_defaults()
        study = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        key = _key(study, bound.arguments)
        if key not in self.runs:
            start = time.perf_counter()
            result = function(**settings)
            result["seconds"] = time.perf_counter() - start
            settings = dict(bound.arguments)
            self.runs[key] = {"study": study, "settings": settings, "result": result}
            self.save()
        found: Record = self.runs[key]["result"]
        return found

    def save(self) -> None:
        """Write all runs; through a second file, so that a stop in between loses nothing."""
        if self.path:
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps({"runs": list(self.runs.values())}, indent=1) + "\n")
            part.replace(self.path)


def _key(study: str, settings: Record) -> str:
    return json.dumps([study, settings], sort_keys=True)


@dataclass(frozen=True)
class Options:
    seeds: tuple[int, ...]
    quick: bool
    store: Store


@dataclass(frozen=True)
class Figure:
    """A claim: the mean of `values`, one for each seed, lies in [low, high]."""

    name: str
    expected: str
    low: float
    high: float
    values: Sequence[float]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def met(self) -> bool:
        return self.low <= self.mean <= self.high  # NaN is not


def figures_section(title: str, figures: Sequence[Figure], digits: int = 3) -> Section:
    """The table of what is expected, what was measured and whether that is met."""
    section = Section(title, ["figure", "expected", "measured", "of each seed", "met"])
    for figure in figures:
        seeds = ", ".join(f"{value:.{digits}f}" for value in figure.values)
        mean, verdict = f"{figure.mean:.{digits}f}", "yes" if figure.met else "NO"
        section.rows.append([figure.name, figure.expected, mean, seeds, verdict])
        section.records.append({"figure": figure.name, "mean": figure.mean, "met": figure.met})
    return section


def seconds(results: Sequence[Record]) -> str:
    """The time of some runs: their mean."""
    return f"{np.mean([result['seconds'] for result in results]):.0f}"


def cross_entropy(logits: Array, targets: Array) -> tuple[float, Array, float]:
    """Nats summed over the items, the gradient and the number of items, as `TBPTT` wants them.

    Shapes: logits [k, B, V], targets [k, B].
    """
    loss, grad = ops.softmax_cross_entropy(logits, targets, reduction="sum")
    return loss, grad, targets.size


def entropy(probability: float) -> float:
    """Nats of one draw from Bernoulli(probability)."""
    return -sum(p * math.log(p) for p in (probability, 1 - probability) if p > 0)


def report_run(study: str, settings: Record, result: str) -> None:
    """One line on stderr after a run."""
    shown = ", ".join(f"{name} {value}" for name, value in settings.items())
    progress(f"{study}: {shown}: {result}")
