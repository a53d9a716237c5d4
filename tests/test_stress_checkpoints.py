"""`tests/stress/checkpoints.py` in short."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

pytest.importorskip("resource", reason="limits of POSIX")

from .stress import checkpoints
from .stress.work import Failures


def test_killed_while_writing(tmp_path: Path) -> None:
    failures = Failures("kills")
    checkpoints.kills(6, random.Random(1), tmp_path, failures)
    assert failures.count == 0


def test_full_disks(tmp_path: Path) -> None:
    failures = Failures("full disks")
    checkpoints.full_disks(20, random.Random(2), tmp_path, failures)
    assert failures.count == 0


def test_damaged_files(tmp_path: Path) -> None:
    failures = Failures("damage")
    assert checkpoints.damage(800, random.Random(3), tmp_path, failures) > 800
    assert failures.count == 0


def test_hostile_files(tmp_path: Path) -> None:
    failures = Failures("hostile")
    checkpoints.hostile(tmp_path, failures)
    assert failures.count == 0
