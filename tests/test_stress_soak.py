"""`tests/stress/soak.py` in short."""

from __future__ import annotations

import sys

import pytest

from .stress.soak import soak
from .stress.work import Failures


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_streams_keep_bits_and_memory() -> None:
    failures = Failures("soak")
    updates, early, late = soak(0.0, every=20, warm_up=60, seed=1, failures=failures)
    assert failures.count == 0
    assert updates >= 120
    assert 0 < early
    assert 0 < late
