"""What functions of JAX arrays check when they are traced, once for all layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax import numpy as jnp

from .._options import read_truncation
from .._types import Truncation
from ._primitives import Shape


def as_arrays(
    op: str, given: dict[str, Any], *, required: Sequence[str], masks: Sequence[str] = ()
) -> dict[str, Any]:
    """Those that are given, as JAX arrays of one dtype.

    Raises:
        TypeError: a missing array, or one of another dtype than float32 or float64, or than x.
    """
    arrays: dict[str, Any] = {}
    for name, value in given.items():  # x is the first
        if value is None:
            if name in required:
                raise TypeError(f"{op}: {name}: expected an array, got None")
            continue
        array = jnp.asarray(value)
        if name == "x" and array.dtype not in (jnp.float32, jnp.float64):
            raise TypeError(f"{op}: x: expected float32 or float64, got {array.dtype}")
        wanted = jnp.bool_ if name in masks else arrays.get("x", array).dtype
        if array.dtype != wanted:
            raise TypeError(f"{op}: {name}: expected {jnp.dtype(wanted)}, got {array.dtype}")
        arrays[name] = array
    return arrays


def pair_of_states(op: str, hx: Any) -> tuple[Any, Any]:
    """(h, c) of an LSTM; None stands for two that are missing.

    Raises:
        TypeError, ValueError: no pair.
    """
    if hx is None:
        return None, None
    if not isinstance(hx, (tuple, list)):
        raise TypeError(f"{op}: hx: expected a pair (h, c), got {type(hx).__name__}")
    if len(hx) != 2:
        raise ValueError(f"{op}: hx: expected a pair (h, c), got {len(hx)} items")
    return hx[0], hx[1]


def read_windows(truncation: Truncation) -> tuple[int, int] | None:
    """None, or (k1, k2), which is hashable; errors are those of `read_truncation`."""
    read = read_truncation(truncation)
    return None if read is None else (read[0], read[1])


def check_shapes(
    op: str,
    arrays: dict[str, Any],
    ranks: dict[str, int],
    expected: Callable[[dict[str, Shape]], dict[str, Shape]],
) -> None:
    """First the ranks, then what they say of the other shapes.

    Raises:
        ValueError: another rank or shape.
    """
    shapes: dict[str, Shape] = {name: tuple(array.shape) for name, array in arrays.items()}
    for name, rank in ranks.items():
        if len(shapes[name]) != rank:
            raise ValueError(
                f"{op}: {name}: expected {rank} dimensions, got shape {[*shapes[name]]}"
            )
    wanted = expected(shapes)
    for name, shape in shapes.items():
        if shape != wanted.get(name, shape):
            raise ValueError(f"{op}: {name}: expected shape {[*wanted[name]]}, got {[*shape]}")
