"""What the command line chose, and the sides that follow from it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import tbptt_fast

from .peak import short_peak
from .problem import Problem
from .report import Section
from .timing import Side, Timing, alternate

if TYPE_CHECKING:
    from .peers_jax import JaxWorker

Shape = tuple[int, int, int, int]
PEER_NAMES = {"torch": "PyTorch", "jax": "JAX"}


@dataclass(frozen=True)
class Options:
    cells: tuple[str, ...]
    shapes: tuple[Shape, ...] | None
    threads: tuple[int, ...]
    peers: tuple[str, ...]
    quick: bool
    rounds: int
    train_seeds: int = 1

    @property
    def turn_seconds(self) -> float:
        return 0.03 if self.quick else 0.1

    def time(self, sides: list[Side], task: str, threads: int, *, peak: bool = True) -> Timing:
        """Alternating rounds on `threads` threads; `sides` were made for as many."""
        tbptt_fast.set_num_threads(threads)
        return alternate(
            sides,
            task,
            rounds=self.rounds,
            turn_seconds=self.turn_seconds,
            peak=short_peak(threads) if peak else None,
        )


@dataclass
class LayerPeers:
    """The peers' layers for a problem; JAX in one process per thread count, kept to the end."""

    options: Options
    _workers: dict[int, JaxWorker] = field(default_factory=dict)
    _open: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> LayerPeers:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def sides(self, problem: Problem, threads: int) -> list[Side]:
        sides: list[Side] = []
        if "torch" in self.options.peers:
            from . import peers_torch

            sides.append(peers_torch.layer_side(problem, threads))
        if "jax" in self.options.peers:
            from . import peers_jax

            sides.append(peers_jax.JaxSide(self.worker(threads), problem))
        return sides

    def worker(self, threads: int) -> JaxWorker:
        from . import peers_jax

        if threads not in self._workers:
            worker = peers_jax.JaxWorker(threads)
            self._workers[threads] = self._open.enter_context(worker)
        return self._workers[threads]


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def on_threads(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


Bench = Callable[[Options], list[Section]]
