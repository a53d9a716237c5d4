"""Checks that pass, fail, or are refused for a reason that has a name; and their counts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple


class RefusedError(Exception):
    """What is checked does not exist here; the message says what that is."""


def error_of(call: Callable[[], object]) -> Exception | None:
    """What it raises."""
    try:
        call()
    except Exception as error:
        return error
    return None


class Check(NamedTuple):
    """`run` raises where the check fails."""

    family: str  # what is checked, such as a class or a function
    name: str
    run: Callable[[], object]


class Report:
    """The counts of many checks, by family."""

    def __init__(self) -> None:
        self.passed: Counter[str] = Counter()
        self.failed: list[str] = []
        self.refused: dict[str, Counter[str]] = defaultdict(Counter)  # family: reason: number

    def run(self, checks: Iterable[Check]) -> Report:
        """All of them: one that fails does not end the others."""
        for check in checks:
            try:
                check.run()
            except RefusedError as refusal:
                self.refused[check.family][str(refusal)] += 1
            except Exception as error:
                self.failed.append(f"{check.family} {check.name}: {type(error).__name__}: {error}")
            else:
                self.passed[check.family] += 1
        return self

    def reasons(self) -> dict[str, set[str]]:
        """Why checks of each family were refused."""
        return {family: set(reasons) for family, reasons in sorted(self.refused.items())}

    def print(self, title: str) -> int:
        """Counts by family, what failed, and all in one line; the exit status."""
        for family in sorted({*self.passed, *self.refused}):
            reasons = [f"{n} refused: {why}" for why, n in sorted(self.refused[family].items())]
            print(f"{family}: {', '.join([f'{self.passed[family]} passed', *reasons])}")
        for failure in self.failed:
            print("FAILED", failure)
        refused = sum(reasons.total() for reasons in self.refused.values())
        print(
            f"{title}: {self.passed.total()} passed, {len(self.failed)} failed, {refused} refused"
        )
        return int(bool(self.failed))
