"""What is learnt: a text or a series, with its streams, its network and its measure."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tbptt_fast import nn
from tbptt_fast.cli import model as models
from tbptt_fast.cli.parser import Settings
from tbptt_fast.data import DataError, SeriesStream, Stream, TextStream, Vocabulary
from tbptt_fast.tbptt import Loss

Array = NDArray[Any]

_VALIDATION_ITEMS = 131_072  # at most: validation has to stay cheap on any amount of data
_VALIDATION_ROWS = 32
_VALIDATION_WINDOW = 256
_TAIL = 512  # values of a series kept in a checkpoint, for a forecast to begin with


class Task(Protocol):
    """The tail of the data, a tenth of it, is held out for validation."""

    name: str
    measure: str
    unit: str
    item: str
    training: Stream
    validation: Stream
    loss: Loss

    def network(self, settings: Settings) -> nn.Sequential:
        """A fresh network."""
        ...

    def value(self, mean_loss: float) -> float:
        """The measure that is shown, of a mean loss per item."""
        ...

    def summary(self) -> str:
        """One line about the data."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What generating needs, and a fingerprint of the data."""
        ...


class TextTask:
    """Predict the next character; measured in bits per character."""

    measure = "bits per character"
    unit = "bpc"
    item = "character"

    def __init__(self, text: str, settings: Settings, name: str) -> None:
        self.name = name
        self.loss: Loss = models.next_symbol_loss
        self.vocabulary = Vocabulary(text)
        ids = self.vocabulary.encode(text)
        self._fingerprint = _fingerprint(ids, self.vocabulary.state_dict()["codes"])
        train, held_out = _hold_out(ids, name)
        self._sizes = len(ids), len(train), len(held_out)
        with _naming(name):
            self.training: Stream = TextStream(train, settings.batch, settings.k1)
            self.validation: Stream = TextStream(held_out, *_validation_layout(len(held_out)))

    def network(self, settings: Settings) -> nn.Sequential:
        return text_network(self.vocabulary, settings)

    def value(self, mean_loss: float) -> float:
        return models.bits(mean_loss)

    def summary(self) -> str:
        total, train, held_out = self._sizes
        return (
            f"{self.name}: {total:,} characters, {len(self.vocabulary)} different ones; "
            f"{train:,} to train, {held_out:,} held out"
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": "text",
            "fingerprint": self._fingerprint,
            "vocabulary": self.vocabulary.state_dict(),
        }


class SeriesTask:
    """Predict the next value of a series; measured as the root of the mean squared error."""

    measure = "RMSE"
    unit = "RMSE"
    item = "value"

    def __init__(self, values: Array, settings: Settings, name: str) -> None:
        self.name = name
        self.loss: Loss = models.squared_error
        self._fingerprint = _fingerprint(values)
        train, held_out = _hold_out(values, name)
        self._sizes = len(values), len(train), len(held_out)
        self.mean, self.std = float(train.mean()), float(train.std())
        if not self.std > 0:
            raise DataError(f"{name}: the part to train on is constant")
        # The error of saying "as before", for comparison.
        self.persistence = math.sqrt(float(np.mean(np.diff(held_out) ** 2)))
        self._tail = standardise(values[-_TAIL:], self.mean, self.std)
        train = standardise(train, self.mean, self.std)
        held_out = standardise(held_out, self.mean, self.std)
        with _naming(name):
            self.training: Stream = SeriesStream(train, None, settings.batch, settings.k1)
            self.validation: Stream = SeriesStream(
                held_out, None, *_validation_layout(len(held_out))
            )

    def network(self, settings: Settings) -> nn.Sequential:
        return series_network(settings)

    def value(self, mean_loss: float) -> float:
        return math.sqrt(mean_loss) * self.std

    def summary(self) -> str:
        total, train, held_out = self._sizes
        return (
            f"{self.name}: {total:,} values, mean {self.mean:.4g}, deviation {self.std:.4g}; "
            f"{train:,} to train, {held_out:,} held out; repeating the last value has an RMSE "
            f"of {self.persistence:.4g}"
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": "series",
            "fingerprint": self._fingerprint,
            "mean": self.mean,
            "std": self.std,
            "tail": self._tail,
        }


def text_network(vocabulary: Vocabulary, settings: Settings) -> nn.Sequential:
    """The language model of these settings."""
    return models.language_model(
        len(vocabulary),
        cell=settings.cell,
        embedding=settings.embedding,
        hidden=settings.hidden,
        layers=settings.layers,
        dropout=settings.dropout,
        seed=settings.seed,
    )


def series_network(settings: Settings) -> nn.Sequential:
    """The forecaster of these settings."""
    return models.forecaster(
        1,
        cell=settings.cell,
        hidden=settings.hidden,
        layers=settings.layers,
        dropout=settings.dropout,
        seed=settings.seed,
    )


def standardise(values: Array, mean: float, std: float) -> Array:
    """Series [N] as float32 [N, 1] with mean 0 and deviation 1."""
    scaled: Array = ((values - mean) / std).astype(np.float32)[:, None]
    return scaled


def _hold_out(items: Array, name: str) -> tuple[Array, Array]:
    """The part to train on and the last tenth, for validation."""
    held_out = len(items) // 10
    if held_out < 2:
        raise DataError(f"{name}: too short to hold out a tenth: {len(items)} items, at least 20")
    cut = len(items) - held_out
    return items[:cut], items[cut : cut + _VALIDATION_ITEMS]


def _validation_layout(items: int) -> tuple[int, int]:
    """Rows and window of the validation stream, which do not depend on any setting.

    Few rows for little data, since each row begins without context.
    """
    rows = max(1, min(_VALIDATION_ROWS, items // _VALIDATION_WINDOW))
    return rows, min(_VALIDATION_WINDOW, (items - 1) // rows)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Say of which data an error speaks."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{name}: {error} (--batch, --k1)") from None


def _fingerprint(*arrays: Array) -> int:
    """A number that differs, in practice, where the data does."""
    value = 0
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array).tobytes(), value)
    return value
