"""Everything that changes during training, and the checkpoint that holds it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tbptt_fast import checkpoint, optim
from tbptt_fast.checkpoint import CheckpointError
from tbptt_fast.cli.parser import Settings, UsageError
from tbptt_fast.cli.task import Task
from tbptt_fast.tbptt import TBPTT

Array = NDArray[Any]

_FORMAT = "tbptt_fast command line"


class Point(NamedTuple):
    """One validation: after how many updates and seconds, and the measure on both parts."""

    updates: float
    seconds: float
    training: float
    validation: float


class Session:
    """One training: model, optimizer, schedule, trainer, stream, curve and best weights."""

    def __init__(
        self, task: Task, settings: Settings, *, epochs: float | None = None, began: float
    ) -> None:
        self.task, self.settings = task, settings
        self.model = task.network(settings)
        self.per_epoch = len(task.training)
        self.optimizer = make_optimizer(self.model.parameters(), settings)
        self.schedule = make_schedule(self.optimizer, settings, self.per_epoch, epochs)
        self.trainer = TBPTT(
            self.model,
            task.loss,
            self.optimizer,
            k1=settings.k1,
            k2=settings.k2,
            schedule=self.schedule,
        )
        # After nine times as many items as it measures, which is once an epoch where a whole tenth
        # is held out: forward only, a validation then takes about a twentieth of the time.
        window = settings.batch * settings.k1
        self.validate_every = math.ceil(9 * task.validation.items / window)
        self.curve: list[Point] = []
        self.best: dict[str, Array] | None = None
        self.validation_seconds = 0.0
        self._loss = self._items = 0.0  # since the last validation
        self._run_items = 0.0
        self._earlier_seconds = 0.0
        self._began = began  # on the clock of time.perf_counter

    @property
    def updates(self) -> int:
        return self.trainer.updates

    @property
    def run_seconds(self) -> float:
        """Time since the command began, whatever it went into."""
        return time.perf_counter() - self._began

    @property
    def seconds(self) -> float:
        """Time spent on this training, the runs before a --resume included."""
        return self._earlier_seconds + self.run_seconds

    @property
    def rate(self) -> float:
        """Items trained on per second of this run."""
        return self._run_items / self.run_seconds

    @property
    def training_value(self) -> float:
        """The measure on the training data since the last validation."""
        return self.task.value(self._loss / self._items) if self._items else math.nan

    @property
    def best_point(self) -> Point | None:
        """The best validation, the first of equals."""
        known = [point for point in self.curve if not math.isnan(point.validation)]
        return min(known, key=lambda point: point.validation, default=None)

    @property
    def validated(self) -> bool:
        """Whether the last validation was of the weights as they are now."""
        return bool(self.curve) and self.curve[-1].updates == self.updates

    @property
    def stale(self) -> int:
        """Validations since the best."""
        best = self.best_point
        return len(self.curve) if best is None else len(self.curve) - 1 - self.curve.index(best)

    def advance(self) -> None:
        """One update on the next window."""
        report = self.trainer.step(*self.task.training.next_window())
        self._loss += report.loss_per_item * report.count
        self._items += report.count
        self._run_items += report.count

    def validate(self) -> Point:
        """Measure on the held-out data and keep the weights if they are the best so far."""
        begin = time.perf_counter()
        value = self.task.value(self.trainer.evaluate(self.task.validation))
        self.validation_seconds = time.perf_counter() - begin
        best = self.best_point
        if not math.isnan(value) and (best is None or value < best.validation):
            self.best = self.model.state_dict()
        point = Point(float(self.updates), self.seconds, self.training_value, value)
        self.curve.append(point)
        self._loss = self._items = 0.0
        return point

    def restore_best(self) -> None:
        """Give the model its best weights: for after the training."""
        if self.best is not None:
            self.model.load_state_dict(self.best)

    def save(self, path: str, source: Mapping[str, str | None], epochs: float | None) -> None:
        """Write the checkpoint from which `--resume` and `sample` go on."""
        weights = self.model.state_dict()
        tree = {
            "format": _FORMAT,
            "source": dict(source),
            "epochs": epochs,
            "settings": asdict(self.settings),
            "task": self.task.state_dict(),
            "weights": weights if self.best is None else self.best,
            "session": {
                "weights": weights,
                "best": self.best,
                "random": self.model.rng_state(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": None if self.schedule is None else self.schedule.state_dict(),
                "trainer": self.trainer.state_dict(),
                "stream": self.task.training.state_dict(),
                "curve": np.array(self.curve, np.float64).reshape(-1, len(Point._fields)),
                "loss": self._loss,
                "items": self._items,
                "seconds": self.seconds,
            },
        }
        checkpoint.save(path, tree)

    def resume(self, tree: Mapping[str, Any]) -> None:
        """Take up a training where its checkpoint was written."""
        if tree["task"]["fingerprint"] != self.task.state_dict()["fingerprint"]:
            raise UsageError("--resume: the data is not what this checkpoint was trained on")
        state = tree["session"]
        self.model.load_state_dict(state["weights"])
        self.model.set_rng_state(state["random"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.trainer.load_state_dict(state["trainer"])
        self.task.training.load_state_dict(state["stream"])
        self.best = state["best"]
        self.curve = [Point(*row) for row in state["curve"].tolist()]
        self._loss, self._items = state["loss"], state["items"]
        self._earlier_seconds = state["seconds"]


def load(path: str) -> tuple[dict[str, Any], Settings]:
    """A checkpoint of the command line and its settings; CheckpointError for any other file."""
    tree = checkpoint.load(path)
    if not isinstance(tree, dict) or tree.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: not written by `tbptt_fast train`")
    names, settings = {field.name for field in fields(Settings)}, tree.get("settings")
    if not isinstance(settings, dict) or set(settings) != names:
        raise CheckpointError(f"{path}: written by another version of tbptt_fast")
    return tree, Settings(**settings)


def make_optimizer(parameters: dict[str, Array], settings: Settings) -> optim.Optimizer:
    """The optimizer of these settings; `--clip` is the largest global norm."""
    kinds: dict[str, Callable[..., optim.Optimizer]] = {
        "adam": optim.Adam,
        "adamw": optim.AdamW,
        "rmsprop": optim.RMSprop,
        "sgd": optim.SGD,
    }
    return kinds[settings.optimizer](
        parameters,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        max_norm=settings.clip or None,
    )


def make_schedule(
    optimizer: optim.Optimizer, settings: Settings, per_epoch: int, epochs: float | None
) -> optim.Schedule | None:
    """The schedule of these settings, stepped once per update."""
    schedule: optim.Schedule | None = None
    if settings.schedule == "exponential":
        schedule = optim.ExponentialLR(optimizer, settings.decay ** (1 / per_epoch))
    elif settings.schedule == "step":
        schedule = optim.StepLR(optimizer, per_epoch, settings.decay)
    elif settings.schedule == "cosine":
        if epochs is None:
            raise ValueError("make_schedule: cosine: expected a number of epochs, got None")
        updates = math.ceil(epochs * per_epoch) - settings.warmup
        schedule = optim.CosineLR(optimizer, max(1, updates))
    if settings.warmup:
        schedule = optim.WarmUp(schedule or optim.ConstantLR(optimizer), settings.warmup)
    return schedule
