"""The progress of a training on stderr: a bar where tqdm is installed, else a line now and then."""

from __future__ import annotations

import sys
import time
from importlib import import_module
from importlib.util import find_spec
from typing import Any

_INSTALL = "pip install 'tbptt_fast[cli]'"


def say_what_is_missing(picture: bool) -> None:
    """One line on stderr if tqdm or, where a picture is wanted, matplotlib is not installed."""
    wanted = ["tqdm", "matplotlib"] if picture else ["tqdm"]
    lost = {"tqdm": "progress bar", "matplotlib": "picture"}
    missing = [name for name in wanted if not installed(name)]
    if missing:
        without = " and no ".join(lost[name] for name in missing)
        print(f"no {without}: {' and '.join(missing)} not installed ({_INSTALL})", file=sys.stderr)


def installed(package: str) -> bool:
    """Whether a package can be found; it is not imported."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


class Progress:
    """Shows how much of a training is done, in parts of 1, and its latest figures."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._shown = time.monotonic()
        # Where nobody watches, in a log, a bar that moves is noise.
        self._interval = 0.2 if sys.stderr.isatty() else 5.0
        if installed("tqdm"):
            self._bar = import_module("tqdm").tqdm(
                total=1.0,
                file=sys.stderr,
                bar_format="{percentage:3.0f}%|{bar:20}| {elapsed}{postfix}",
                dynamic_ncols=True,
            )

    @property
    def due(self) -> bool:
        """Whether it is time to show figures again."""
        return time.monotonic() - self._shown >= self._interval

    def show(self, done: float, figures: str, *, milestone: bool = False) -> None:
        """Show figures; a milestone has a line of its own where there is no bar."""
        self._shown = time.monotonic()
        if self._bar is not None:
            self._bar.n = min(done, 1.0)
            self._bar.set_postfix_str(figures)
        elif milestone:
            print(f"{min(done, 1.0):4.0%}  {figures}", file=sys.stderr)

    def close(self) -> None:
        """Leave the last figures standing."""
        if self._bar is not None:
            self._bar.close()
