"""Threads and instruction sets: what the kernels may use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import SupportsIndex

from . import _native
from ._native import active_isa, available_isas, build_info, get_num_threads, set_isa


def set_num_threads(n: SupportsIndex) -> None:
    """Let the kernels use up to `n` threads, the calling one included.

    The results are the same bits for every number. Without this call it is what affinity and the
    cgroup's quota grant, or the environment variable TBPTT_FAST_NUM_THREADS.

    Raises:
        TypeError: `n` is no integer.
        ValueError: `n` is not in 1 to 256.
    """
    _native.set_num_threads(n)


@contextmanager
def num_threads(n: SupportsIndex) -> Iterator[None]:
    """Use up to `n` threads inside a `with` block.

    >>> import tbptt_fast
    >>> with tbptt_fast.num_threads(1):
    ...     tbptt_fast.get_num_threads()
    1
    """
    before = get_num_threads()
    set_num_threads(n)
    try:
        yield
    finally:
        set_num_threads(before)


@contextmanager
def isa(name: str) -> Iterator[None]:
    """Run the kernels of the instruction set `name` (of `available_isas()`) inside a `with` block.

    Meant for tests and measurements: the fastest one is active by itself.

    >>> import tbptt_fast
    >>> with tbptt_fast.isa("baseline"):
    ...     tbptt_fast.active_isa()
    'baseline'
    """
    before = active_isa()
    set_isa(name)
    try:
        yield
    finally:
        set_isa(before)


__all__ = [
    "active_isa",
    "available_isas",
    "build_info",
    "get_num_threads",
    "isa",
    "num_threads",
    "set_isa",
    "set_num_threads",
]
