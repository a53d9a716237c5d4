"""Memory that runs out at every allocation of every public function, in turn.

    python -m tests.stress.allocations --rounds 20

A small library in C (failing_allocations.c, compiled here) stands before the C library's
allocator. For a call of each function, drawn as by the fuzzer, the first allocation fails, then
the second, and so on until the call answers: once alone, once with all that follow. Each time the
call raises MemoryError or answers with the same bits, leaves its arguments alone where it raised,
gives back what it took, and works as before when there is memory again.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import tbptt_fast
from tbptt_fast import _native

from .calls import BUILDERS
from .fuzz import NAMES, UPDATES, Call, bits, copied, each_array
from .source import RandomSource, choice

SOURCE = Path(__file__).with_name("failing_allocations.c")
MARK = "TBPTT_FAST_FAILING_ALLOCATIONS"
FOREVER = 2**62


def compiler() -> str | None:
    """The C compiler's command."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def again(arguments: Sequence[str]) -> int:
    """This script once more, behind the library."""
    command = compiler()
    if command is None or not sys.platform.startswith("linux"):
        raise SystemExit("allocations: needs Linux and a C compiler")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "failing.so"
        subprocess.run([command, "-O2", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
        environment = os.environ | {"LD_PRELOAD": str(library), MARK: str(library)}
        run = [sys.executable, "-m", __spec__.name if __spec__ else __name__, *arguments]
        return subprocess.run(run, env=environment, check=False).returncode


class Allocator:
    """The library, told where the module's code lies."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ[MARK])
        self._library.counted.restype = ctypes.c_long
        name = str(Path(str(_native.__file__)).resolve())
        lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if name in line]
        ends = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
        first, last = min(low for low, _ in ends), max(high for _, high in ends)
        self._library.watch(ctypes.c_void_p(first), ctypes.c_void_p(last))

    def fail(self, first: int, last: int) -> None:
        """Those numbered first ... last - 1 of the following allocations fail."""
        self._library.fail(ctypes.c_long(first), ctypes.c_long(last))

    def rest(self) -> int:
        """None fails any more; how many there were."""
        count = int(self._library.counted())
        self.fail(FOREVER, FOREVER)
        return count


def fresh(call: Call) -> Call:
    """The same call of copies, which it may update."""
    arguments, options = each_array(call.arguments, copied), each_array(call.options, copied)
    return Call(call.name, arguments, options, call.whole)


def starve(allocator: Allocator, call: Call, found: Counter[str]) -> None:
    """Every allocation of a call fails in turn.

    Raises:
        AssertionError: a promise is broken.
    """
    expected = bits(fresh(call).run())
    for kind in ("one", "all"):
        number, answered = 0, False
        while not answered:
            trial = fresh(call)
            before = bits([trial.arguments, trial.options])
            _native.empty_cache()
            in_use = _native.memory_in_use()
            allocator.fail(number, number + 1 if kind == "one" else FOREVER)
            try:
                result = trial.run()
                reached = allocator.rest() > number
                found["answered"] += reached
                answered = not reached
                assert bits(result) == expected, "other bits after an allocation failed"
                del result
            except MemoryError:
                allocator.rest()
                found["MemoryError"] += 1
                assert bits([trial.arguments, trial.options]) == before, "arguments were changed"
            assert _native.memory_in_use() == in_use, "memory is lost"
            number += 1
    assert bits(fresh(call).run()) == expected, "the function does not work as before"


def run(rounds: int, seed: int) -> tuple[Counter[str], list[str]]:
    """So many calls of each function: what came of failures, and the broken promises."""
    allocator, found = Allocator(), Counter[str]()
    failures = []
    for name in NAMES:
        for number in range(rounds):
            source = RandomSource(seed, number)
            dtype = choice(source, ("float32", "float64"))
            isa = choice(source, tbptt_fast.available_isas())
            with tbptt_fast.isa(isa), tbptt_fast.num_threads(source.integer(1, 2)):
                try:
                    arguments, options = BUILDERS[name](source, dtype)
                except ValueError:  # a backward pass whose forward pass has no such shapes
                    continue
                if name in UPDATES:
                    options["non_finite"] = "skip"
                call = Call(name, list(arguments), dict(options), True)
                try:
                    with np.errstate(all="ignore"):
                        starve(allocator, call, found)
                except Exception as problem:
                    allocator.rest()
                    failures.append(f"{name} ({number}): {type(problem).__name__}: {problem}")
    return found, failures


def main(arguments: Sequence[str] | None = None) -> int:
    """The long form."""
    parser = argparse.ArgumentParser(description="Let every allocation fail in turn.")
    parser.add_argument("--rounds", type=int, default=20, help="calls of each function")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if MARK not in os.environ:
        return again(sys.argv[1:] if arguments is None else arguments)
    found, failures = run(given.rounds, given.seed)
    print(*failures[:100], sep="\n")
    print(
        f"allocations: {given.rounds} calls of {len(NAMES)} functions, {found.total()} failures "
        f"injected: {found['MemoryError']} raised MemoryError, {found['answered']} were answered "
        f"all the same, {len(failures)} promises broken"
    )
    return 1 if failures or not found["MemoryError"] else 0


if __name__ == "__main__":
    sys.exit(main())
