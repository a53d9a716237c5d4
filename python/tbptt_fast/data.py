"""Streams: text and numeric series, cut into windows that follow one another.

Truncated backpropagation carries the state from one window to the next, so the windows must be
neighbours in time. A stream therefore lays the data out as `batch` contiguous rows and walks all
rows side by side; where it stands is two numbers that can be saved and restored.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class DataError(ValueError):
    """Data that cannot be used; the message is one line, fit to be shown to a user."""


class Window(NamedTuple):
    """One window of a stream, time first.

    Shapes: x [k, B, ...], y [k, B, ...], is_init [k, B] bool or None where no row begins.
    """

    x: Array
    y: Array
    is_init: NDArray[np.bool_] | None = None


class Stream:
    """Walks `batch` contiguous rows of a series in windows of `k1` steps.

    Row b holds the items b·steps … (b+1)·steps - 1, with steps = N // batch; up to batch - 1 items
    at the end belong to no row. Iterating yields the windows that are left of the current epoch;
    iterating again begins the next one. The first window of an epoch has `is_init` set at its
    first step. Windows are read-only views.

    Shapes: inputs [N, ...] and targets [N, ...], of which item i belongs to item i.
    Raises DataError where a row would be shorter than one window.

    >>> stream = Stream(np.arange(12), np.arange(12) + 1, batch=2, k1=4)
    >>> [window.x[:, 1].tolist() for window in stream]
    [[6, 7, 8, 9], [10, 11]]
    >>> stream.epoch, stream.position
    (1, 0)
    """

    def __init__(
        self, inputs: Array, targets: Array, batch: int, k1: int, *, keep_last: bool = True
    ) -> None:
        if batch < 1 or k1 < 1:
            raise ValueError(f"Stream: batch and k1 must be at least 1, got {batch} and {k1}")
        if len(inputs) != len(targets):
            raise ValueError(
                f"Stream: inputs and targets must be equally long, got {len(inputs)} "
                f"and {len(targets)}"
            )
        self.batch, self.k1, self.keep_last = batch, k1, keep_last
        self.steps = len(inputs) // batch
        if self.steps < k1:
            raise DataError(
                f"{len(inputs)} items are too few: {batch} rows with windows of {k1} steps "
                f"need at least {batch * k1}"
            )
        self._x = _rows(inputs, batch, self.steps)
        self._y = _rows(targets, batch, self.steps)
        # Where an epoch ends: without the last short window it ends early.
        self._end = self.steps if keep_last else self.steps - self.steps % k1
        self.epoch = 0
        self.position = 0

    def __len__(self) -> int:
        """Windows in one epoch."""
        return math.ceil(self._end / self.k1)

    @property
    def items(self) -> int:
        """Items in one epoch, all rows together."""
        return self._end * self.batch

    def __iter__(self) -> Iterator[Window]:
        epoch = self.epoch
        while self.epoch == epoch:
            yield self.next_window()

    def next_window(self) -> Window:
        """The window at the current position; the position then moves past it."""
        begin, end = self.position, min(self.position + self.k1, self._end)
        is_init = None
        if begin == 0:
            is_init = np.zeros((end, self.batch), dtype=np.bool_)
            is_init[0] = True
        # Moved before the window is handed out: a state saved while the window is being worked
        # on already stands behind it.
        self.position = end
        if end == self._end:
            self.epoch, self.position = self.epoch + 1, 0
        return Window(self._x[begin:end], self._y[begin:end], is_init)

    def state_dict(self) -> dict[str, int]:
        """Where the stream stands, with the layout for which that means something."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "steps": self.steps,
            "batch": self.batch,
            "k1": self.k1,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go back to a saved place; ValueError if it was saved from another layout."""
        for name, mine in (("steps", self.steps), ("batch", self.batch), ("k1", self.k1)):
            if state[name] != mine:
                raise ValueError(f"Stream: {name}: expected {mine}, got {state[name]}")
        if state["epoch"] < 0 or not 0 <= state["position"] < self._end:
            raise ValueError(
                f"Stream: no such place: epoch {state['epoch']}, position {state['position']}"
            )
        self.epoch, self.position = int(state["epoch"]), int(state["position"])


class TextStream(Stream):
    """A stream of symbols in which each one's target is the symbol that follows it.

    Shapes: ids [N]; windows x and y [k, B], of the dtype of `ids`.

    >>> window = TextStream(np.arange(9), batch=2, k1=4).next_window()
    >>> window.x.tolist(), window.y.tolist()
    ([[0, 4], [1, 5], [2, 6], [3, 7]], [[1, 5], [2, 6], [3, 7], [4, 8]])
    """

    def __init__(self, ids: Array, batch: int, k1: int, *, keep_last: bool = True) -> None:
        if ids.ndim != 1:
            raise ValueError(f"TextStream: ids: expected 1 dimension, got {ids.ndim}")
        super().__init__(ids[:-1], ids[1:], batch, k1, keep_last=keep_last)


class SeriesStream(Stream):
    """A stream of numeric vectors; targets None means the values one step later.

    Shapes: values [N, F], targets [N, F']; windows x [k, B, F] and y [k, B, F'].

    >>> stream = SeriesStream(np.linspace(0.0, 1.0, 11)[:, None], None, batch=1, k1=5)
    >>> stream.next_window().y[:, 0, 0].round(1).tolist()
    [0.1, 0.2, 0.3, 0.4, 0.5]
    """

    def __init__(
        self, values: Array, targets: Array | None, batch: int, k1: int, *, keep_last: bool = True
    ) -> None:
        if values.ndim != 2 or (targets is not None and targets.ndim != 2):
            raise ValueError("SeriesStream: expected values and targets with 2 dimensions")
        if targets is None:
            values, targets = values[:-1], values[1:]
        super().__init__(values, targets, batch, k1, keep_last=keep_last)


class Vocabulary:
    """The distinct characters of a text, numbered in the order of their code points.

    >>> vocabulary = Vocabulary("hello")
    >>> len(vocabulary), vocabulary.encode("hole").tolist()
    (4, [1, 3, 2, 0])
    >>> vocabulary.decode(np.array([1, 0, 2, 2, 3]))
    'hello'
    """

    def __init__(self, text: str) -> None:
        present = np.zeros(sys.maxunicode + 1, np.bool_)
        present[_code_points(text)] = True
        self._codes = np.flatnonzero(present).astype(np.uint32)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Array]) -> Vocabulary:
        """The vocabulary whose `state_dict` this is."""
        vocabulary = cls("")
        vocabulary._codes = np.array(state["codes"], dtype=np.uint32)
        return vocabulary

    def state_dict(self) -> dict[str, Array]:
        """The code points in order, [V] uint32."""
        return {"codes": self._codes.copy()}

    def __len__(self) -> int:
        return len(self._codes)

    def __contains__(self, symbol: str) -> bool:
        return len(symbol) == 1 and bool(np.isin(ord(symbol), self._codes))

    def encode(self, text: str) -> NDArray[np.int32]:
        """Ids [N] int32 of the characters; DataError for a character the vocabulary lacks."""
        table = np.full(sys.maxunicode + 1, -1, np.int32)
        table[self._codes] = np.arange(len(self), dtype=np.int32)
        ids = table[_code_points(text)]
        if len(ids) and ids.min() < 0:
            where = int(np.argmin(ids))
            raise DataError(f"character {text[where]!r} at position {where} is unknown here")
        return ids

    def decode(self, ids: Array) -> str:
        """The text of ids [N]."""
        return self._codes[ids].astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file; DataError if it is missing, empty or binary."""
    raw = _read(path)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from None
    if "\0" in text:
        raise DataError(f"{path}: binary, not text (a zero byte at {text.index(chr(0))})")
    if not text:
        raise DataError(f"{path}: the file is empty")
    return text.replace("\r\n", "\n")


def read_csv_column(path: str | Path, column: str) -> NDArray[np.float64]:
    """The numbers [N] of one column of a CSV file with a header line.

    Fields are separated by comma, semicolon or tab, whichever the header has most of.
    Raises DataError for a missing column and for a cell that is no finite number.
    """
    lines = read_text(path).splitlines()
    separator = max(",;\t", key=lines[0].count)
    rows = csv.reader(lines, delimiter=separator)
    names = [name.strip() for name in next(rows)]
    if column not in names:
        raise DataError(f"{path}: no column {column!r}; there are {', '.join(names)}")
    index = names.index(column)
    values = []
    for row in rows:
        if not row:
            continue
        cell = row[index] if index < len(row) else ""
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(
                f"{path}: line {rows.line_num}: column {column!r} is not a number: {cell!r}"
            )
        values.append(value)
    if not values:
        raise DataError(f"{path}: there are no lines below the header")
    return np.array(values, dtype=np.float64)


def python_documentation() -> str:
    """The English documentation text that ships with CPython, about 465,000 characters."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError("this Python ships no pydoc_data.topics; name a text file") from None
    return "".join(topics[name] for name in sorted(topics))


def _rows(values: Array, batch: int, steps: int) -> Array:
    """The rows side by side, [steps, batch, ...]: contiguous, so that every window is a view."""
    cut = values[: batch * steps].reshape(batch, steps, *values.shape[1:])
    rows = np.array(cut.swapaxes(0, 1), order="C")
    rows.flags.writeable = False
    return rows


def _code_points(text: str) -> NDArray[np.uint32]:
    """The code points of a text, without a Python object per character."""
    raw = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return raw.astype(np.uint32, copy=False)


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
