"""Real data for the examples: digits, series and a table that come with their packages."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tbptt_fast import nn
from tbptt_fast.data import DataError, Vocabulary, python_documentation

Array = NDArray[Any]


class Digits(NamedTuple):
    """Images [N, Y, X, 1] from 0 to 1 and their classes [N], to train on and to test with."""

    x: Array
    y: Array
    test_x: Array
    test_y: Array


def digits(folder: Path | None = None) -> Digits:
    """1,797 digits of 8 x 8 from scikit-learn, a fifth to test; or the MNIST files of a folder."""
    if folder is not None:
        names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
        x, y, test_x, test_y = (read_idx(folder / f"{name}-ubyte") for name in names)
        if (len(x), len(test_x)) != (len(y), len(test_y)):
            raise DataError(f"{folder}: expected as many labels as images")
        return Digits(_images(x, 255), _classes(y), _images(test_x, 255), _classes(test_y))
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = _images(data.images, 16), _classes(data.target)
    test, train = np.split(np.random.default_rng(0).permutation(len(x)), [len(x) // 5])
    return Digits(x[train], y[train], x[test], y[test])


def _images(pixels: Array, largest: float) -> Array:
    images: Array = (pixels[..., np.newaxis] / largest).astype(np.float32)
    return images


def _classes(labels: Array) -> Array:
    return labels.astype(np.int64)


def read_idx(path: Path) -> Array:
    """The bytes [...] of an IDX file, the format of MNIST; `path`.gz is read if it exists.

    Raises DataError for a file of another kind or length.
    """
    packed = path.with_name(f"{path.name}.gz")
    try:
        raw = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{packed}: {error}") from None
    if raw[:3] != b"\0\0\x08" or len(raw) < 4 or len(raw) < 4 + 4 * raw[3]:
        raise DataError(f"{path}: not an IDX file of bytes")
    shape = [int(size) for size in np.frombuffer(raw, ">u4", raw[3], offset=4)]
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if len(values) != math.prod(shape):
        raise DataError(f"{path}: expected {math.prod(shape)} bytes of data, got {len(values)}")
    return values.reshape(shape)


def sunspots() -> Array:
    """Sunspot numbers of the years 1700 to 2008, [309]."""
    from statsmodels.datasets.sunspots import load_pandas

    return np.asarray(load_pandas().data["SUNACTIVITY"], np.float64)


def co2() -> Array:
    """CO2 above Mauna Loa in ppm, means of the months 1958-03 to 2001-12, [526]."""
    from statsmodels.datasets.co2 import load_pandas

    months = load_pandas().data["co2"].resample("MS").mean()
    return np.asarray(months.interpolate(), np.float64)  # five months have no measurement


def diabetes() -> tuple[Array, Array]:
    """Measurements of patients [442, 10] and the progression of their diabetes [442, 1].

    All columns have mean 0 and variance 1.
    """
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    joined = np.column_stack([x, y])
    joined = (joined - joined.mean(0)) / joined.std(0)
    return joined[:, :-1], joined[:, -1:]


def documentation(part: int, parts: int) -> tuple[int, Array]:
    """Symbols of CPython's documentation, and ids [N] of the paragraphs of one part of it."""
    text = python_documentation()
    first, last = (1 + text.rfind("\n\n", 0, len(text) * p // parts) for p in (part, part + 1))
    vocabulary = Vocabulary(text)
    return len(vocabulary), vocabulary.encode(text[first:last]).astype(np.int64)


def batches(rng: np.random.Generator, count: int, size: int) -> list[Array]:
    """Indices of one epoch in random order: batches of `size` and, last, what is left."""
    return np.split(rng.permutation(count), range(size, count, size))


def accuracy(model: nn.Module, x: Array, y: Array) -> float:
    """The share of x [N, ...] whose largest output is its class y [N]."""
    pieces = np.split(x, range(500, len(x), 500))  # a network keeps large images in memory
    return float(np.mean(np.concatenate([model(piece)[0].argmax(-1) for piece in pieces]) == y))
