"""Options that frameworks' functions read before a native call gets them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Literal, SupportsIndex, TypeAlias

from ._types import Truncation

Cell: TypeAlias = Literal["rnn_tanh", "rnn_relu", "gru", "lstm"]


def read_truncation(given: Truncation) -> list[int] | None:
    """None, or [k1, k2].

    Raises:
        TypeError, ValueError: it is no such thing, or k2 < k1, which would drop losses.
    """
    if given is None:
        return None
    pair: Sequence[SupportsIndex] = given if isinstance(given, (tuple, list)) else (given, given)
    if len(pair) != 2:
        raise ValueError(f"truncation: expected a pair (k1, k2), got {len(pair)} items")
    if any(isinstance(k, bool) for k in pair):
        raise TypeError(f"truncation: expected None, K or (k1, k2), got {given!r}")
    k1, k2 = (operator.index(k) for k in pair)
    if not 1 <= k1 <= k2:
        raise ValueError(f"truncation: expected 1 <= k1 <= k2, got ({k1}, {k2})")
    return [k1, k2]


def state_names(cell: Cell) -> tuple[str, ...]:
    """Those of a cell's states, in the order of arguments."""
    return ("h", "c") if cell == "lstm" else ("h",)


def plain_cell(op: str, nonlinearity: str) -> Cell:
    """The plain cell of a nonlinearity; it is part of the operator's name."""
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"{op}: nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
    return "rnn_relu" if nonlinearity == "relu" else "rnn_tanh"
