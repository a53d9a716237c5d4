"""The options of schedules and the form of saved states, checked before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

from .._state import check_names


def _number(accepts: Callable[[float], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Real) and accepts(float(value))


def _count(value: Any) -> bool:
    return isinstance(value, Integral) and int(value) >= 1


_NOT_NEGATIVE = ("a finite number >= 0", _number(lambda v: 0 <= v < math.inf))
_COUNT = ("a positive integer", _count)

_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "base_lr": _NOT_NEGATIVE,
    "gamma": ("a number in (0, 1]", _number(lambda v: 0 < v <= 1)),
    "min_lr": _NOT_NEGATIVE,
    "step_size": _COUNT,
    "total_steps": _COUNT,
    "warm_up_steps": _COUNT,
    "step": ("an integer >= 0", lambda v: isinstance(v, Integral) and int(v) >= 0),
}


def check_options(where: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the options; raise a ValueError for the first one out of range."""
    for name, value in options.items():
        expected, accepts = _RULES[name]
        if not accepts(value):
            raise ValueError(f"{where}: {name}: expected {expected}, got {value!r}")
    return dict(options)


def check_kind(owner: object, state: Mapping[str, Any], *names: str) -> str:
    """Check that a saved state was made by this class; return the prefix of further errors."""
    kind = type(owner).__name__
    where = f"{kind}.load_state_dict"
    check_names(where, ("kind", "step", "options", *names), state)
    if state["kind"] != kind:
        raise ValueError(f"{where}: kind: expected {kind}, got {state['kind']}")
    check_options(where, {"step": state["step"]})
    return where
