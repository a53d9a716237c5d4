"""The default text training beside the same network in PyTorch: seconds to a validation loss.

Both begin with the same weights and see the same windows and validations. They alternate every few
updates, each with a clock of its own. A disturbance of the machine may still hit one side only;
so beside the clock's seconds stands what they would be had every update and every validation taken
its median time, and the ratio of the times of an update, turn by turn.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

import tbptt_fast
from tbptt_fast.cli.parser import Settings
from tbptt_fast.cli.task import TextTask
from tbptt_fast.cli.training import Session
from tbptt_fast.data import python_documentation

from .options import PEER_NAMES, Options, progress
from .report import Section, times
from .timing import SETTLE_SECONDS, Spread

TARGET, QUICK_TARGET = 1.80, 2.60  # bits per character
TURN_UPDATES = 25
LIMIT_SECONDS = 60.0  # per side
PATIENCE = 6  # validations without improvement


class Training(Protocol):
    """One side: an update on the next window, and a validation in bits per character."""

    def advance(self) -> None: ...

    def validate(self) -> float: ...


@dataclass
class Ours:
    session: Session

    def advance(self) -> None:
        self.session.advance()

    def validate(self) -> float:
        return float(self.session.validate().validation)


@dataclass
class Run:
    """A side with its clock and its curve of (seconds, updates, bits per character)."""

    name: str
    training: Training
    validate_every: int
    target: float
    stop_at_target: bool
    seconds: float = 0.0
    updates: int = 0
    update_seconds: list[float] = field(default_factory=list)  # of one update, turn by turn
    validation_seconds: list[float] = field(default_factory=list)
    curve: list[tuple[float, int, float]] = field(default_factory=list)

    @property
    def passed(self) -> tuple[float, int, float] | None:
        """The first validation at or below the target."""
        return next((point for point in self.curve if point[2] <= self.target), None)

    @property
    def median_seconds(self) -> float | None:
        """Seconds to the target if every update and every validation took its median time."""
        if self.passed is None:
            return None
        validations = self.curve.index(self.passed) + 1
        update, validation = median(self.update_seconds), median(self.validation_seconds)
        return self.passed[1] * update + validations * validation

    @property
    def best(self) -> tuple[float, int, float]:
        return min(self.curve, key=lambda point: point[2])

    @property
    def finished(self) -> bool:
        if not self.curve:
            return False
        stale = len(self.curve) - 1 - self.curve.index(self.best)
        stopped = stale >= PATIENCE or (self.stop_at_target and self.passed is not None)
        return stopped or self.seconds >= LIMIT_SECONDS

    def turn(self) -> None:
        """Some updates, and a validation where one is due."""
        due = self.validate_every - self.updates % self.validate_every
        count = min(TURN_UPDATES, due)
        start = time.perf_counter()
        for _ in range(count):
            self.training.advance()
        elapsed = time.perf_counter() - start
        self.seconds += elapsed
        self.updates += count
        self.update_seconds.append(elapsed / count)
        if count == due:
            self.validate()

    def validate(self) -> None:
        start = time.perf_counter()
        value = self.training.validate()
        elapsed = time.perf_counter() - start
        self.seconds += elapsed
        self.validation_seconds.append(elapsed)
        self.curve.append((self.seconds, self.updates, value))
        progress(f"{self.name}: {self.seconds:.1f} s, {self.updates} updates, {value:.3f} bpc")


def run(options: Options) -> list[Section]:
    threads = max(options.threads)
    target = QUICK_TARGET if options.quick else TARGET
    text = python_documentation()
    pairs = [
        race(text, Settings(seed=seed), threads, target, options)
        for seed in range(options.train_seeds)
    ]
    return [table(pairs, threads, target)]


def race(text: str, settings: Settings, threads: int, target: float, options: Options) -> list[Run]:
    """Both sides to their end, turn by turn."""
    tbptt_fast.set_num_threads(threads)
    task = TextTask(text, settings, "documentation")
    session = Session(task, settings, began=time.perf_counter())
    sides: dict[str, Training] = {"ours": Ours(session)}
    if "torch" in options.peers:
        from .train_torch import TorchTraining

        weights = session.model.state_dict()
        peer = TorchTraining(TextTask(text, settings, "documentation"), settings, weights, threads)
        ours_first = session.task.value(session.trainer.evaluate(session.task.validation))
        torch_first = peer.validate()
        # Equal before the first update, or the race would mean nothing.
        assert abs(ours_first - torch_first) < 1e-4, f"{ours_first} and {torch_first} bpc"
        sides["torch"] = peer
    runs = [
        Run(name, side, session.validate_every, target, stop_at_target=options.quick)
        for name, side in sides.items()
    ]
    while not all(run.finished for run in runs):
        for each in runs:
            if not each.finished:
                time.sleep(SETTLE_SECONDS)
                each.turn()
        runs.reverse()
    return sorted(runs, key=lambda run: run.name)


def table(races: list[list[Run]], threads: int, target: float) -> Section:
    settings = Settings()
    section = Section(
        title=f"Text training to {target:.2f} bits per character",
        columns=[
            "seed",
            "side",
            f"s to {target:.2f}",
            "s at median speed",
            "updates",
            "characters / s",
            "best bpc",
            "after s",
        ],
        note=f"LSTM of {settings.hidden}, {settings.batch} streams, k1 = k2 = {settings.k1}, "
        f"Adam, {threads} threads; the clock counts updates and validations.",
    )
    for seed, runs in enumerate(races):
        for each in runs:
            speed = settings.batch * settings.k1 / median(each.update_seconds)
            section.rows.append(row(seed, each, speed))
            section.records.append(
                {
                    "seed": seed,
                    "side": each.name,
                    "seconds_to_target": each.passed[0] if each.passed else None,
                    "seconds_at_median_speed": each.median_seconds,
                    "characters_per_second": speed,
                    "curve": each.curve,
                    "seconds_of_an_update": each.update_seconds,
                    "seconds_of_a_validation": each.validation_seconds,
                }
            )
    for name, spread in ratios(races).items():
        section.note += f" PyTorch / ours, {name}: {times(spread)}."
        section.records.append({"ratio": name, "value": spread})

    def draw(axes: Any) -> None:
        for seed, runs in enumerate(races):
            for each, colour in zip(runs, ("tab:blue", "tab:orange"), strict=False):
                seconds, _, values = zip(*each.curve, strict=True)
                label = PEER_NAMES.get(each.name, each.name) if seed == 0 else None
                axes.plot(seconds, values, ".-", color=colour, label=label)
        axes.axhline(target, color="0.3", linestyle="--", linewidth=1)
        axes.set_xlabel("seconds")
        axes.set_ylabel("validation, bits per character")
        axes.legend()

    section.draw = draw
    return section


def row(seed: int, run: Run, speed: float) -> list[str]:
    at_median = run.median_seconds
    return [
        str(seed),
        PEER_NAMES.get(run.name, run.name),
        f"{run.passed[0]:.1f}" if run.passed else "—",
        f"{at_median:.1f}" if at_median else "—",
        str(run.passed[1]) if run.passed else "—",
        f"{speed:,.0f}",
        f"{run.best[2]:.3f}",
        f"{run.best[0]:.1f}",
    ]


def ratios(races: list[list[Run]]) -> dict[str, Spread]:
    """How many times as fast as PyTorch, to the target by both measures and per update."""
    clock, at_median, update = [], [], []
    for ours, peer in (race for race in races if len(race) == 2):
        if ours.passed and peer.passed:
            clock.append(peer.passed[0] / ours.passed[0])
        if ours.median_seconds and peer.median_seconds:
            at_median.append(peer.median_seconds / ours.median_seconds)
        # Turns of the side that ran on alone have no partner.
        update += [b / a for a, b in zip(ours.update_seconds, peer.update_seconds, strict=False)]
    named = {"to the target": clock, "at median speed": at_median, "per update": update}
    return {name: Spread.of(values) for name, values in named.items() if values}
