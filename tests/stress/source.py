"""Where a fuzzer's decisions come from: a generator with a seed, or the bytes of another engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

T = TypeVar("T")


class Source(Protocol):
    """Anything that decides."""

    def integer(self, low: int, high: int) -> int:
        """From low to high, both included."""


class RandomSource:
    """Decisions by a seed, for ever."""

    def __init__(self, *seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def integer(self, low: int, high: int) -> int:
        return int(self._rng.integers(low, high + 1))


class BytesSource:
    """Decisions by bytes, which a coverage-guided engine changes; the smallest ones at the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def integer(self, low: int, high: int) -> int:
        count = (max(high - low, 1).bit_length() + 7) // 8
        found = self._data[self._position : self._position + count]
        self._position += count
        return low + int.from_bytes(found, "little") % (high - low + 1)


def choice(source: Source, values: Sequence[T]) -> T:
    """One of them."""
    return values[source.integer(0, len(values) - 1)]


def chance(source: Source, percent: int) -> bool:
    """True so many times of a hundred."""
    return source.integer(0, 99) >= 100 - percent


# What numbers can be: beside ordinary ones, those at the ends of both types.
STRANGE = (0.0, -0.0, 1e30, -1e30, 1e-30, 1e-42, 3e38, np.inf, -np.inf, np.nan)


def numbers(source: Source, shape: Sequence[int], dtype: str, strange: int = 15) -> Any:
    """Ordinary numbers, with strange ones among them so many times of a hundred."""
    rng = np.random.default_rng(source.integer(0, 2**32 - 1))
    values = rng.standard_normal(tuple(shape)).astype(dtype)
    if values.size and chance(source, strange):
        places = rng.integers(0, values.size, 1 + values.size // 8)
        with np.errstate(over="ignore"):
            values.reshape(-1)[places] = np.asarray(choice(source, STRANGE)).astype(dtype)
    return values


def _misaligned(array: Any) -> Any:
    raw = np.zeros(array.nbytes + 1, np.uint8)
    view = raw[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def _sliced(array: Any) -> Any:
    wide = np.zeros(tuple(2 * n + 1 for n in array.shape), array.dtype)
    view = wide[tuple(slice(1, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def _read_only(array: Any) -> Any:
    view = array.copy()
    view.flags.writeable = False
    return view


LAYOUTS = (
    np.asfortranarray,
    lambda array: np.ascontiguousarray(array[::-1])[::-1],
    _misaligned,
    _sliced,
    _read_only,
)


def in_another_layout(source: Source, array: Any) -> Any:
    """The same values, elsewhere in memory."""
    return choice(source, LAYOUTS)(array) if array.ndim else array


DTYPES = ("float16", ">f4", "float64", "float32", "int64", "int32", "bool", "complex64", "O", "U3")
HUGE = (2**31, 2**32 + 1, 2**40, 2**61, 2**62)
OBJECTS: tuple[Any, ...] = (None, "x", b"x", 1.5, 3, (), [], {}, object(), [[1.0], [2.0, 3.0]])


def _another_dtype(source: Source, array: Any) -> Any:
    with np.errstate(all="ignore"):
        return array.astype(choice(source, DTYPES))


def _another_extent(source: Source, array: Any) -> Any:
    shape = list(array.shape) or [1]
    axis = source.integer(0, len(shape) - 1)
    shape[axis] = max(0, shape[axis] + choice(source, (-2, -1, 1, 2, 7)))
    return np.ones(shape, array.dtype)


def _another_rank(source: Source, array: Any) -> Any:
    if array.ndim and chance(source, 50):
        return array[0] if array.shape[0] else array.sum(axis=0)
    return array[None] if chance(source, 50) else array[..., None]


def _empty(source: Source, array: Any) -> Any:
    """No value at all, in a shape whose other extents may have any product."""
    shape = [choice(source, (*HUGE, 0, 1, n)) if chance(source, 50) else n for n in array.shape]
    shape = shape or [0]
    shape[source.integer(0, len(shape) - 1)] = 0
    try:
        return np.zeros(shape, array.dtype)
    except ValueError:  # larger than NumPy itself allows
        return np.zeros(0, array.dtype)


BREAKS = (_another_dtype, _another_extent, _another_rank, _empty)


def broken(source: Source, array: Any) -> Any:
    """Something else instead of an array that fits."""
    if isinstance(array, np.ndarray) and chance(source, 85):
        return choice(source, BREAKS)(source, array)
    return choice(source, OBJECTS)


ODD: tuple[Any, ...] = (
    *(None, -1, 0, 1, 2, 3, 5, 1.5, -0.5, float("nan"), float("inf"), 1e-300, True, False),
    *(2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30),
    *("x", "", "same", "valid", "causal", "relu", "mean", "skip", "NHWC", b"x", object()),
    *((), (1,), (1, 2), (2, 1), (1, 2, 3), ((1, 2), (0, 1)), (2**62, 2**62), (-1, 1), [1, 2]),
    *(np.int64(2), np.float32(0.5), np.array(3), np.array([1, 2]), ("x", "w"), ("q",)),
)
