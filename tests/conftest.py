"""Fixtures that force an instruction set, threads or a device; skips that are failures."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import tbptt_fast

from .cuda_cases import NO_GPU, CudaDevice, Device, EmulatedDevice

OTHER_BACKEND = "of another backend of Keras"  # the reason of a skip that is no failure, either

# Before anything imports Keras: a process has one backend of it.
os.environ.setdefault("KERAS_BACKEND", "torch")
collect_ignore = (
    [] if os.environ["KERAS_BACKEND"] == "tensorflow" else ["test_tensorflow_graphs.py"]
)


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


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision in JAX, for one test."""
    jax = pytest.importorskip("jax")
    new = hasattr(jax, "enable_x64")
    enable = jax.enable_x64 if new else pytest.importorskip("jax.experimental").enable_x64
    with enable(True):
        yield


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedDevice]:
    """The CUDA kernels on the host, in place of the module for GPUs."""
    device = EmulatedDevice(monkeypatch)
    yield device
    device.close()


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    """The emulated device, and a real one where there is one."""
    if request.param == "emulated":
        found: EmulatedDevice = request.getfixturevalue("emulated")
        return found
    return CudaDevice()


def _must_not_skip(report: pytest.TestReport) -> bool:
    """Oracles are required where TBPTT_FAST_REQUIRE_ORACLES says so, GPUs by ..._REQUIRE_GPU."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
    if OTHER_BACKEND in reason:  # Keras has one in a process
        return False
    gpu = NO_GPU in reason
    name = "TBPTT_FAST_REQUIRE_GPU" if gpu else "TBPTT_FAST_REQUIRE_ORACLES"
    return bool(os.environ.get(name))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Required tests that were skipped have failed: -rs says which."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and any(map(_must_not_skip, reporter.stats.get("skipped", ()))):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
