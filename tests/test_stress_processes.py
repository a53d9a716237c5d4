"""`tests/stress/processes.py` in short."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

import tbptt_fast

from .stress import processes
from .stress.work import Failures

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="forks and signals of POSIX"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


def test_forked_and_spawned_children() -> None:
    failures = Failures("forks")
    with tbptt_fast.num_threads(2):
        processes.forks(20, failures)
        processes.spawns(2, failures)
    assert failures.count == 0


def test_exit_beside_daemon_threads_in_native_calls() -> None:
    failures = Failures("exits")
    processes.exits(5, random.Random(1), failures)
    assert failures.count == 0


def test_sub_interpreters_are_refused() -> None:
    failures = Failures("sub-interpreters")
    processes.sub_interpreters(2, failures)
    assert failures.count == 0


def test_interrupts(tmp_path: Path) -> None:
    failures = Failures("interrupts")
    processes.interrupts(2, random.Random(2), tmp_path, failures)
    processes.command_line(2, random.Random(3), tmp_path, failures)
    assert failures.count == 0
