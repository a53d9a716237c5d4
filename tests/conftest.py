"""Fixtures that force an instruction set and a number of threads; skips that are failures."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import tbptt_fast


@pytest.fixture(params=tbptt_fast.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this machine in turn."""
    with tbptt_fast.isa(request.param):
        assert tbptt_fast.active_isa() == request.param
        yield request.param


@pytest.fixture(params=(1, 2), ids=("1thread", "2threads"))
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """One thread and two."""
    with tbptt_fast.num_threads(request.param):
        assert tbptt_fast.get_num_threads() == request.param
        yield request.param


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """With TBPTT_FAST_REQUIRE_ORACLES a run that skipped something has failed: -rs says what."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("TBPTT_FAST_REQUIRE_ORACLES") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
