"""The options of the command line, their defaults and their limits."""

from __future__ import annotations

import argparse
import math
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

CELLS = ("lstm", "gru", "rnn")
OPTIMIZERS = ("adam", "adamw", "rmsprop", "sgd")
SCHEDULES = ("constant", "exponential", "step", "cosine")
PICTURES = (".png", ".pdf", ".svg")


class UsageError(ValueError):
    """Options that do not go together; the message is one line."""


@dataclass(frozen=True)
class Settings:
    """What the numbers of a training run depend on: part of its checkpoint, fixed on --resume."""

    cell: str = "lstm"
    hidden: int = 256
    layers: int = 1
    embedding: int = 64
    dropout: float = 0.0
    k1: int = 64
    k2: int = 64
    batch: int = 32
    lr: float = 3e-3
    schedule: str = "constant"
    decay: float = 0.9
    warmup: int = 0
    optimizer: str = "adam"
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 0


TEXT = Settings()
SERIES = Settings(hidden=64, batch=8, k1=32, k2=32)


def build_parser() -> ArgumentParser:
    """The parser of all commands; its errors are one line and exit code 2."""
    parser = _Parser(prog="tbptt_fast", allow_abbrev=False, description=_DESCRIPTION)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="train|sample|tune|info"
    )
    _add_train(commands.add_parser("train", allow_abbrev=False, help="train on text or a series"))
    _add_sample(commands.add_parser("sample", allow_abbrev=False, help="continue text or series"))
    _add_tune(commands.add_parser("tune", allow_abbrev=False, help="find how far to run back"))
    commands.add_parser("info", allow_abbrev=False, help="show version, ISA, threads, adapters")
    return parser


_DESCRIPTION = "Recurrent networks trained with truncated backpropagation through time."


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of the whole usage; `--help` shows that."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def _add_data(parser: ArgumentParser) -> None:
    data = parser.add_argument_group("data (default: CPython's own documentation)")
    source = data.add_mutually_exclusive_group()
    source.add_argument("--text", metavar="FILE", help="UTF-8 text to learn")
    source.add_argument("--csv", metavar="FILE", help="series to forecast, with --column")
    data.add_argument("--column", metavar="NAME", help="column of the CSV file")


def _add_settings(parser: ArgumentParser) -> None:
    # Without a default, so that --resume can tell which of them were given.
    settings = parser.add_argument_group("network and training", argument_default=SUPPRESS)

    def add(name: str, kind: Callable[[str], object] | tuple[str, ...], text: str) -> None:
        field = name.replace("-", "_")
        default, series = getattr(TEXT, field), getattr(SERIES, field)
        shown = f"{default}" if default == series else f"{default}; for a series {series}"
        if isinstance(kind, tuple):
            settings.add_argument(f"--{name}", choices=kind, help=f"{text} ({shown})")
        else:
            settings.add_argument(f"--{name}", type=kind, metavar="N", help=f"{text} ({shown})")

    add("cell", CELLS, "recurrent cell")
    add("hidden", whole(1), "units in a layer")
    add("layers", whole(1), "recurrent layers")
    add("embedding", whole(1), "size of a character's vector")
    add("dropout", number(0, 1, below=True), "dropped between layers")
    add("k1", whole(1), "steps between updates")
    settings.add_argument(
        "--k2", type=whole(1), metavar="N", help="steps a gradient runs back, at least k1 (k1)"
    )
    add("batch", whole(1), "streams side by side")
    add("lr", number(0, above=True), "learning rate")
    add("schedule", SCHEDULES, "learning rate over time; cosine needs --epochs")
    add("decay", number(0, 1, above=True), "factor per epoch of exponential and step")
    add("warmup", whole(0), "updates in which the learning rate rises to its value")
    add("optimizer", OPTIMIZERS, "optimizer")
    add("weight-decay", number(0), "weight decay")
    add("clip", number(0), "largest norm of the gradient, 0 for no limit")
    add("seed", whole(0), "seed of weights, dropout and sample")


def _add_train(parser: ArgumentParser) -> None:
    _add_data(parser)
    _add_settings(parser)
    limits = parser.add_argument_group("when to stop, whichever comes first")
    limits.add_argument(
        "--epochs", type=number(0, above=True), metavar="N", help="passes over the data"
    )
    limits.add_argument(
        "--minutes",
        type=number(0, above=True),
        metavar="N",
        help="time of this run, sample and picture included (1, or no limit with --epochs)",
    )
    limits.add_argument(
        "--patience",
        type=whole(0),
        default=6,
        metavar="N",
        help="validations without improvement, 0 for no limit (%(default)s)",
    )

    run = parser.add_argument_group("run")
    run.add_argument("--threads", type=whole(1, 256), metavar="N", help="threads (all cores)")
    run.add_argument(
        "--save", metavar="FILE", help="checkpoint (tbptt_fast.ckpt, written over; none: no file)"
    )
    run.add_argument("--resume", metavar="FILE", help="go on from this checkpoint, bit for bit")
    run.add_argument(
        "--checkpoint-every",
        type=number(0),
        default=30.0,
        metavar="SECONDS",
        help="time between checkpoints while training (%(default)g)",
    )
    run.add_argument(
        "--sample", type=whole(0), metavar="N", help="length of the sample (400; for a series 10)"
    )
    run.add_argument(
        "--temperature", type=number(0), metavar="N", help="of the sample of a text (0.7)"
    )
    run.add_argument(
        "--plot",
        metavar="FILE",
        help="picture of the curves (tbptt_fast.png, written over; none: no file)",
    )


def _add_tune(parser: ArgumentParser) -> None:
    _add_data(parser)
    _add_settings(parser)
    choice = parser.add_argument_group("what to measure and to choose")
    choice.add_argument(
        "--delta",
        type=number(0, above=True),
        default=0.1,
        metavar="N",
        help="relative bias of the gradient to stay below (%(default)g)",
    )
    choice.add_argument(
        "--max-lag", type=whole(2), default=128, metavar="N", help="largest lag (%(default)s)"
    )
    choice.add_argument(
        "--tau",
        type=whole(0),
        metavar="N",
        help="lag from which the decay is geometric (0.8 of the largest)",
    )
    choice.add_argument(
        "--fit",
        choices=("least_squares", "largest", "quantile"),
        default="least_squares",
        help="how the decay is estimated (%(default)s)",
    )
    choice.add_argument("--k-min", type=whole(1), default=1, metavar="N", help="smallest K (1)")
    choice.add_argument(
        "--k-max", type=whole(1), metavar="N", help="largest K, at most --max-lag (--max-lag)"
    )

    run = parser.add_argument_group("run")
    run.add_argument(
        "--minutes",
        type=number(0),
        metavar="N",
        help="training before the measurement (0.5; with --resume 0)",
    )
    run.add_argument("--resume", metavar="FILE", help="measure the network of this checkpoint")
    run.add_argument("--threads", type=whole(1, 256), metavar="N", help="threads (all cores)")
    run.add_argument(
        "--plot",
        metavar="FILE",
        help="picture of decay and bias (tbptt_fast.png, written over; none: no file)",
    )
    # What only a training has.
    parser.set_defaults(epochs=None, patience=0, save="none")


def _add_sample(parser: ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CKPT", help="written by train --save")
    parser.add_argument(
        "--length", type=whole(1), metavar="N", help="characters (1000) or values (10) to generate"
    )
    parser.add_argument(
        "--temperature", type=number(0), metavar="N", help="0 takes the likeliest character (0.7)"
    )
    parser.add_argument("--prime", metavar="TEXT", help="text to go on from")
    parser.add_argument("--seed", type=whole(0), metavar="N", help="of the random choice (random)")
    parser.add_argument("--threads", type=whole(1, 256), metavar="N", help="threads (all cores)")


def whole(low: int, high: float = math.inf) -> Callable[[str], int]:
    """An option's type: a whole number from `low` to `high`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
        if not low <= value <= high:
            limits = f"at least {low}" + (f" and at most {high}" if high < math.inf else "")
            raise argparse.ArgumentTypeError(f"must be {limits}, got {text}")
        return value

    return convert


def number(
    low: float, high: float = math.inf, *, above: bool = False, below: bool = False
) -> Callable[[str], float]:
    """An option's type: a finite number from `low` (or above it) to `high` (or below it)."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
        outside = value <= low if above else value < low
        outside |= value >= high if below else value > high
        if outside or not math.isfinite(value):
            limits = f"{'above' if above else 'at least'} {low:g}"
            if high < math.inf:
                limits += f" and {'below' if below else 'at most'} {high:g}"
            raise argparse.ArgumentTypeError(f"must be {limits}, got {text}")
        return value

    return convert
