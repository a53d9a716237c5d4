"""`tests/stress/load.py` in short."""

from __future__ import annotations

from .stress.load import load


def test_results_under_load() -> None:
    calls, failed = load(threads=16, seconds=1.0, seed=1)
    assert failed == 0
    assert calls >= 32
