"""Where an estimator's arrays lie: the functions for them, their library, the way to the host."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import cuda, ops
from .._types import Array
from ..cuda import _places


def functions_for(array: Any) -> Any:
    """`tbptt_fast.cuda` for an array in a GPU's memory, else the CPU's functions."""
    return cuda if _places.lies_on_gpu(array) else ops


def library_of(array: Any, where: str) -> Any:
    """NumPy for what lies on the host, else PyTorch or CuPy.

    Raises:
        TypeError: an array in a GPU's memory of another library.
    """
    if not _places.lies_on_gpu(array):
        return np
    library = _places.library_of(array)
    if library is None:
        kind = type(array).__name__
        raise TypeError(
            f"{where}: expected an array of PyTorch or CuPy, or one on the host, got {kind}"
        )
    return library


def to_host(array: Any, where: str) -> Any:
    """The array where NumPy can read it; waits for a GPU. Raises what `library_of` raises."""
    library = library_of(array, where)
    if library.__name__ == "torch":
        host = array.detach().cpu()
        return (host.float() if host.dtype == library.bfloat16 else host).numpy()
    return library.asnumpy(array) if library.__name__ == "cupy" else array


def from_host(values: Array, like: Any, where: str) -> Any:
    """The values as an array of the library, the dtype and the device of `like`.

    Raises:
        TypeError: an array of no known library.
    """
    library = _places.library_of(like)
    if library is None:
        kind = type(like).__name__
        raise TypeError(f"{where}: expected an array of NumPy, PyTorch or CuPy, got {kind}")
    if library.__name__ == "torch":
        return library.from_numpy(values).to(like.device, like.dtype)
    if library.__name__ == "cupy":
        with like.device:
            return library.asarray(values, like.dtype)
    return values.astype(like.dtype)
