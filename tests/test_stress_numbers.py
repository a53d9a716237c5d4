"""`tests/stress/numbers.py` in short."""

from __future__ import annotations

import pytest

from .stress.numbers import explosions, numbers
from .stress.work import Failures


def test_extreme_inputs() -> None:
    failures = Failures("numbers")
    assert numbers(3, seed=1, failures=failures) > 30
    assert failures.count == 0


@pytest.mark.usefixtures("isa")
def test_exploding_sequences() -> None:
    failures = Failures("explosions")
    assert explosions(failures) > 100
    assert failures.count == 0
