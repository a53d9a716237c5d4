"""Checks made before the first write when saved values are loaded into live arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ._types import Array


def check_names(where: str, expected: Iterable[str], got: Iterable[str]) -> None:
    """Raise a ValueError that lists the missing and the unexpected names, if there are any."""
    expected, got = list(expected), list(got)
    missing = [name for name in expected if name not in got]
    unexpected = [name for name in got if name not in expected]
    if missing or unexpected:
        raise ValueError(f"{where}: missing {missing}, unexpected {unexpected}")


def check_arrays(where: str, live: Mapping[str, Array], loaded: Mapping[str, Any]) -> None:
    """Raise unless every loaded array has the dtype and shape of the live array of its name."""
    for name, array in loaded.items():
        target = live[name]
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{where}: {name}: expected an array, got {type(array).__name__}")
        if array.dtype != target.dtype:
            raise TypeError(f"{where}: {name}: expected dtype {target.dtype}, got {array.dtype}")
        if array.shape != target.shape:
            raise ValueError(
                f"{where}: {name}: expected shape {list(target.shape)}, got {list(array.shape)}"
            )


def copy_into(live: Mapping[str, Array], loaded: Mapping[str, Array]) -> None:
    """Overwrite the live arrays in place, so that everything that refers to them sees it."""
    for name, array in loaded.items():
        live[name][...] = array
