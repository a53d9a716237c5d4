"""Processes that train one model together: started by torchrun, or one alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tbptt_fast.data import DataError


@contextmanager
def processes() -> Iterator[tuple[int, int]]:
    """The group of all processes, as (rank, number of processes)."""
    alone: dict[str, Any] = {}
    if "RANK" not in os.environ:
        store = dist.HashStore()  # type: ignore[attr-defined]
        alone = {"store": store, "rank": 0, "world_size": 1}
    dist.init_process_group("gloo", **alone)
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def gather(value: Any) -> list[Any]:
    """The values of all processes, in the order of their ranks."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def broadcast(value: Any, source: int) -> Any:
    """The value of one process, for all."""
    holder = [value]
    dist.broadcast_object_list(holder, source)
    return holder[0]


def write(path: Path, updates: int, model: Any, optimizer: Any, own: Any) -> None:
    """Save what all share and each process's own; a crash leaves the old file or the new one."""
    everyone = gather(own)
    if dist.get_rank() == 0:
        new = path.with_name(f"{path.name}.new")
        torch.save((updates, model.state_dict(), optimizer.state_dict(), everyone), new)
        new.replace(path)


def read(path: Path, model: Any, optimizer: Any) -> tuple[int, Any]:
    """The number of updates and this process's own; the first process alone needs the file."""
    rank, world = dist.get_rank(), dist.get_world_size()
    saved = torch.load(path, weights_only=True) if rank == 0 else None
    updates, weights, moments, everyone = broadcast(saved, 0)
    if len(everyone) != world:
        raise DataError(f"{path}: expected {len(everyone)} processes, got {world}")
    model.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    return updates, everyone[rank]
