"""The thread pool: its size, its neighbours, forks, and callers that come at once."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import tbptt_fast
from tbptt_fast import _native

from .cases import CELLS, assert_identical, backward, forward, make_problem, run

SHAPE = (12, 40, 24, 48)  # large enough to use the pool


def digest(threads: int) -> str:
    """The bits of every cell's results, as text; also run in child processes."""
    state = hashlib.sha256()
    with tbptt_fast.num_threads(threads):
        for cell in CELLS:
            results = run(tbptt_fast, make_problem(cell, SHAPE, "float32"), truncation=5)
            for name in sorted(results):
                state.update(results[name].tobytes())
    return state.hexdigest()


def send_digest(pipe: Any, threads: int) -> None:
    pipe.send(digest(threads))


def in_child(method: str) -> str:
    """digest(2) in a process started by this method; a child that hangs fails."""
    context: Any = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=send_digest, args=(sender, 2))
    child.start()
    try:
        assert receiver.poll(60), f"the {method} child does not answer"
        answer: str = receiver.recv()
        child.join(60)
        assert child.exitcode == 0
        return answer
    finally:
        if child.is_alive():
            child.kill()


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that finds the package as this one does."""
    path = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


# --- The number of threads ----------------------------------------------------------------------


def test_set_and_get() -> None:
    before = tbptt_fast.get_num_threads()
    try:
        for n in (1, 5, 2):
            tbptt_fast.set_num_threads(n)
            assert tbptt_fast.get_num_threads() == n
    finally:
        tbptt_fast.set_num_threads(before)


def test_the_context_restores_also_after_an_error() -> None:
    before = tbptt_fast.get_num_threads()
    with tbptt_fast.num_threads(before + 1):
        assert tbptt_fast.get_num_threads() == before + 1
        with tbptt_fast.num_threads(1):
            assert tbptt_fast.get_num_threads() == 1
        assert tbptt_fast.get_num_threads() == before + 1
    with pytest.raises(KeyError, match="inside"), tbptt_fast.num_threads(before + 2):
        raise KeyError("inside")
    assert tbptt_fast.get_num_threads() == before


@pytest.mark.parametrize("wrong", [0, -1, 10**6, 10**30])
def test_numbers_out_of_range(wrong: int) -> None:
    before = tbptt_fast.get_num_threads()
    with pytest.raises(ValueError, match=f"^set_num_threads: n: expected .*got {wrong}"):
        tbptt_fast.set_num_threads(wrong)
    assert tbptt_fast.get_num_threads() == before


@pytest.mark.parametrize("wrong", ["2", 1.5, None, True])
def test_numbers_that_are_none(wrong: Any) -> None:
    name = type(wrong).__name__
    with pytest.raises(TypeError, match=f"^set_num_threads: n: expected an integer, got {name}"):
        tbptt_fast.set_num_threads(wrong)


def test_environment() -> None:
    show = "import tbptt_fast; print(tbptt_fast.get_num_threads())"
    child = python(show, TBPTT_FAST_NUM_THREADS="3")
    assert (child.returncode, child.stdout) == (0, "3\n"), child.stderr


@pytest.mark.parametrize("wrong", ["0", "-2", "two", "1.5", "3x", "99999999999999999999"])
def test_environment_that_makes_no_sense(wrong: str) -> None:
    """Neither ignored nor a crash: the error names the variable and the value."""
    show = "import tbptt_fast; print(tbptt_fast.get_num_threads())"
    child = python(show, TBPTT_FAST_NUM_THREADS=wrong)
    assert child.returncode == 1
    assert "TBPTT_FAST_NUM_THREADS" in child.stderr
    assert wrong in child.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_affinity() -> None:
    """A process that may use one CPU starts with one thread."""
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import tbptt_fast; print(tbptt_fast.get_num_threads())"
    )
    child = python(code, TBPTT_FAST_NUM_THREADS="")
    assert (child.returncode, child.stdout) == (0, "1\n"), child.stderr


# A process cannot put itself into a cgroup without rights that tests do not have, and a way to
# point the library at other files would be an attack surface. So the parser of the kernel's text
# is tested here, and reading /sys/fs/cgroup stays a line that calls it.
@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("max 100000", None),
        ("max 100000\n", None),
        ("100000 100000", 1),
        ("150000 100000", 2),
        ("200000 100000\n", 2),
        ("1000 100000", 1),
        ("250000 50000", 5),
        ("", None),
        ("nonsense", None),
        ("100000", None),
        ("100000 0", None),
        ("-1 100000", None),
    ],
)
def test_cgroup_quota(text: str, cpus: int | None) -> None:
    assert _native.cgroup_cpus(text) == cpus


# --- The instruction set ------------------------------------------------------------------------


def test_instruction_sets() -> None:
    names = tbptt_fast.available_isas()
    assert "baseline" in names
    before = tbptt_fast.active_isa()
    assert before in names
    with pytest.raises(ValueError, match=r"^set_isa: .*expected .*got .*mmx"):
        tbptt_fast.set_isa("mmx")
    for name in names:
        with tbptt_fast.isa(name):
            assert tbptt_fast.active_isa() == name
        assert tbptt_fast.active_isa() == before
        child = python("import tbptt_fast; print(tbptt_fast.active_isa())", TBPTT_FAST_ISA=name)
        assert (child.returncode, child.stdout) == (0, f"{name}\n"), child.stderr
    child = python("import tbptt_fast; print(tbptt_fast.active_isa())", TBPTT_FAST_ISA="mmx")
    assert child.returncode == 1
    assert "TBPTT_FAST_ISA" in child.stderr
    assert "mmx" in child.stderr


# --- Neighbours ---------------------------------------------------------------------------------


# Python 3.12 warns about every fork beside threads; that it works is what is tested.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
def test_fork_after_use() -> None:
    expected = digest(2)
    assert in_child("fork") == expected
    assert digest(2) == expected  # the parent's pool is as it was


def test_spawn() -> None:
    assert in_child("spawn") == digest(2)


def test_eight_callers_at_once() -> None:
    problems = [make_problem(CELLS[i % 4], SHAPE, "float32", seed=i) for i in range(8)]
    expected = [run(tbptt_fast, p, truncation=5) for p in problems]
    with tbptt_fast.num_threads(3), ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            results = pool.map(lambda p: run(tbptt_fast, p, truncation=5), problems)
            for actual, wanted in zip(results, expected, strict=True):
                assert_identical(actual, wanted)


def test_one_tape_for_many_callers() -> None:
    for cell in CELLS:
        problem = make_problem(cell, SHAPE, "float32")
        _, _, tape = forward(tbptt_fast, problem)
        truncations = [None, 3, (2, 5), (1, 4)]
        expected = [backward(tbptt_fast, problem, tape, truncation=k) for k in truncations]
        with tbptt_fast.num_threads(2), ThreadPoolExecutor(4) as pool:
            for _ in range(5):
                results = pool.map(
                    lambda k, p=problem, t=tape: backward(tbptt_fast, p, t, truncation=k),
                    truncations,
                )
                for actual, wanted in zip(results, expected, strict=True):
                    assert_identical(actual, wanted)


def test_the_number_may_change_while_others_compute() -> None:
    expected = digest(2)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(digest, [1, 2, 3, 4, 1, 3]))
    assert answers == [expected] * 6


@pytest.mark.parametrize("order", ["torch first", "torch last"])
def test_beside_torch(order: str) -> None:
    pytest.importorskip("torch")
    imports = ["import torch", "import tbptt_fast"]
    lines = [*(imports if order == "torch first" else reversed(imports))]
    lines += [
        "from tests.test_threads import digest",
        "before = digest(2)",
        "a = torch.ones(300, 300); assert (a @ a).sum() == 300.0**3",
        "assert digest(2) == before; print(before)",
    ]
    child = python("\n".join(lines))
    assert (child.returncode, child.stdout) == (0, digest(2) + "\n"), child.stderr
