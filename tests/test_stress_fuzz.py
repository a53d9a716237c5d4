"""The campaign's fuzzer and its failing allocations, in short."""

from __future__ import annotations

import inspect

import pytest

import tbptt_fast

from .stress import allocations, fuzz
from .stress.source import BytesSource

# what has no arguments to break, or is the machine's state
OTHERS = {"active_isa", "available_isas", "build_info", "get_num_threads", "isa", "num_threads"}
OTHERS |= {"set_isa", "set_num_threads"}


def test_every_function_has_calls() -> None:
    public = {name for name in tbptt_fast.__all__ if inspect.isroutine(getattr(tbptt_fast, name))}
    assert public - OTHERS == set(fuzz.NAMES)


def test_random_calls() -> None:
    found, failures = fuzz.run(60 * len(fuzz.NAMES), seed=7)
    assert not failures
    answered = {name for name, outcome in found if outcome == "answered"}
    refused = {name for name, outcome in found if outcome in ("TypeError", "ValueError")}
    assert answered == refused == set(fuzz.NAMES)


def test_calls_from_bytes() -> None:
    """Whatever the bytes, as a coverage-guided engine draws them, and where they end."""
    for length in range(0, 400, 23):
        source = BytesSource(bytes(7 * n % 251 for n in range(length)))
        name = fuzz.NAMES[source.integer(0, len(fuzz.NAMES) - 1)]
        try:
            call = fuzz.make_call(source, name)
        except ValueError:
            continue
        assert fuzz.check(call)


def test_a_broken_promise_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fuzzer can fail: a function that changes its argument, and one that names none."""

    def changes(x: object) -> object:
        if getattr(x, "size", 0):
            x[...] = 1  # type: ignore[index]
        return x

    def nameless(x: object) -> object:
        raise ValueError("no")

    for function in (changes, nameless):
        monkeypatch.setattr(tbptt_fast, "exp", function)
        fuzz.parameters.cache_clear()
        _, failures = fuzz.run(300, seed=0)
        fuzz.parameters.cache_clear()
        assert failures
        assert all(failure.startswith("exp ") for failure in failures)


def test_failing_allocations(capfd: pytest.CaptureFixture[str]) -> None:
    """In a process of its own, behind an allocator that fails; see the module."""
    if allocations.compiler() is None:
        pytest.skip("needs a C compiler")
    status = allocations.again(["--rounds", "1"])
    shown = capfd.readouterr()
    assert status == 0, shown
    assert "0 promises broken" in shown.out
