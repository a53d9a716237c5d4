"""ThreadSanitizer: threads of the pool, of Python and of forked children, and who writes when.

    cmake --preset tsan && cmake --build --preset tsan
    python -m tests.stress.races build/tsan --minutes 2

A race on purpose, two threads that update one array, must be reported first. Then the tests of
threads and processes and a load of concurrent calls run; any report is a failure.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .work import package_with

TESTS = ("threads", "packed_weights", "determinism", "stress_load", "stress_processes")
RACE = """
import threading, numpy, tbptt_fast
assert tbptt_fast.build_info()["sanitizers"], "not the build with sanitizers"
arrays = [numpy.zeros(1 << 14, "f4")], [numpy.ones(1 << 14, "f4")], [numpy.zeros(1 << 14, "f4")]
def work():
    for _ in range(50):
        tbptt_fast.sgd_step(*arrays, lr=0.1, mu=0.9)
threads = [threading.Thread(target=work) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


class Sanitized:
    """Interpreters that load the sanitizer's runtime first."""

    def __init__(self, build: Path, folder: Path) -> None:
        compiler = os.environ.get("CXX", "g++")
        find = [compiler, "-print-file-name=libtsan.so"]
        runtime = subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip()
        self._reports = folder / "reports"
        self._reports.mkdir()
        self.last = ""  # report
        self._environment = os.environ | {
            "LD_PRELOAD": runtime,
            "PYTHONPATH": str(package_with(build, folder)),
            "TSAN_OPTIONS": f"log_path={self._reports}/report:die_after_fork=0:exitcode=0",
        }

    def run(self, *arguments: str) -> tuple[int, int]:
        """The exit status, and how many races were reported."""
        command = [sys.executable, *arguments]
        status = subprocess.run(command, env=self._environment, check=False).returncode
        races = 0
        for report in self._reports.iterdir():
            text = report.read_text()
            races += text.count("WARNING: ThreadSanitizer")
            self.last = text
            report.unlink()
        return status, races


def main(arguments: Sequence[str] | None = None) -> int:
    """The long form; there is no short one, as it needs another build."""
    parser = argparse.ArgumentParser(description="Run what is concurrent under ThreadSanitizer.")
    parser.add_argument("build", type=Path, help="the folder of the preset tsan")
    parser.add_argument("--minutes", type=float, default=2.0, help="of load")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        sanitized = Sanitized(given.build, Path(folder))
        status, planned = sanitized.run("-c", RACE)
        assert status == 0, "the build does not run"
        assert planned > 0, "the race on purpose was not reported"
        files = [f"tests/test_{name}.py" for name in TESTS]
        options = ("-q", "-p", "no:cacheprovider", "-k", "not torch")
        tests = sanitized.run("-m", "pytest", *options, *files)
        load = sanitized.run("-m", "tests.stress.load", "--minutes", str(given.minutes))
        if tests[1] + load[1]:
            print(sanitized.last)
    print(
        f"races: {planned} reports of the race on purpose, {tests[1]} in the tests,"
        f" {load[1]} under load"
    )
    return int((*tests, *load) != (0, 0, 0, 0))


if __name__ == "__main__":
    sys.exit(main())
