"""libFuzzer under AddressSanitizer: its bytes become calls, through the boundary into the kernels.

    pip install atheris
    cmake --preset fuzz && cmake --build --preset fuzz
    python -m tests.stress.native_fuzz build/fuzz --runs 1000000

The module is compiled by Clang with coverage counters, so that the engine (Atheris brings it) keeps
the bytes that reach new code: a check that lets too much pass, an edge of a kernel. Every call is
held to the rules of `fuzz`; a broken one, an access outside an array or a leak ends the run, and
leaves the bytes behind.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .work import package_with

MARK = "TBPTT_FAST_NATIVE_FUZZ"
LARGEST = 1024  # MiB of one allocation; more is refused as a MemoryError


def start(build: Path, options: Sequence[str]) -> int:
    """A process that loads the sanitizer first, then the instrumented module."""
    spec = importlib.util.find_spec("atheris")
    if spec is None or spec.origin is None:
        raise SystemExit("native_fuzz: needs the package atheris")
    runtime = Path(spec.origin).parents[1] / "asan_with_fuzzer.so"
    with tempfile.TemporaryDirectory() as folder:
        package_with(build, Path(folder))
        environment = os.environ | {
            MARK: "1",
            "LD_PRELOAD": str(runtime),
            "PYTHONPATH": os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")]),
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:"
            f"max_allocation_size_mb={LARGEST}",
        }
        run = [sys.executable, "-m", "tests.stress.native_fuzz", *options]
        return subprocess.run(run, env=environment, check=False).returncode


def fuzz(options: list[str]) -> None:
    """The engine's loop; it ends the process."""
    import atheris

    import tbptt_fast

    from .fuzz import NAMES, check, make_call
    from .source import BytesSource, choice

    assert tbptt_fast.build_info()["sanitizers"], "not the build with sanitizers"

    def one(data: bytes) -> None:
        source = BytesSource(data)
        name = choice(source, NAMES)
        isa = choice(source, tbptt_fast.available_isas())
        with tbptt_fast.isa(isa), tbptt_fast.num_threads(source.integer(1, 2)):
            try:
                call = make_call(source, name)
            except (MemoryError, ValueError):
                return
            check(call)

    atheris.Setup([sys.argv[0], *options], one, enable_python_coverage=False)
    atheris.Fuzz()


def main(arguments: Sequence[str] | None = None) -> int:
    """The long form; there is no short one, as it needs another build."""
    if MARK in os.environ:
        fuzz(sys.argv[1:])
    parser = argparse.ArgumentParser(description="Let libFuzzer look for calls that break.")
    parser.add_argument("build", type=Path, help="the folder of the preset fuzz")
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as corpus:
        limits = [f"-runs={given.runs}", f"-max_total_time={given.seconds}", f"-seed={given.seed}"]
        limits += [
            "-max_len=400",
            "-len_control=10",
            "-timeout=60",
            "-rss_limit_mb=8192",
            "-print_final_stats=1",
        ]
        return start(given.build, [*limits, corpus])


if __name__ == "__main__":
    sys.exit(main())
