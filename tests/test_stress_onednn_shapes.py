"""The smaller of oneDNN's sizes; `python -m tests.stress.onednn_shapes` runs all of them."""

from __future__ import annotations

import pytest

import tbptt_fast

from .cases import DTYPES
from .stress import onednn_lists as lists
from .stress.checks import Report
from .stress.onednn_shapes import (
    convolution_checks,
    large_cases,
    recurrent_checks,
    small_cases,
)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", DTYPES)
def test_recurrent(dtype: str) -> None:
    report = Report().run(recurrent_checks(lists.SMALL_STACKS, dtype=dtype))
    assert report.failed == []
    assert report.passed.total() == 3 * len(lists.SMALL_STACKS)


@pytest.mark.usefixtures("isa")
def test_convolution() -> None:
    report = Report().run(convolution_checks(small_cases()))
    assert report.failed == []
    assert report.passed.total() == 2 * len(small_cases())


def test_training_sizes() -> None:
    """The first of the larger ones."""
    with tbptt_fast.num_threads(2):
        report = Report().run(recurrent_checks(lists.TRAINING[:3], ["lstm"]))
        report.run(convolution_checks(large_cases()[:3]))
    assert report.failed == []
    assert report.passed.total() == 9
