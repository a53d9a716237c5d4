"""Data-parallel truncated backpropagation: a character language model in several processes.

Each process reads rows of its own part of CPython's documentation and carries their states; only
gradients are shared. The parts end with paragraphs: some processes have more windows than others.
A checkpoint holds every process's place and state; of two, --resume goes on bit for bit.

    python examples/ddp_language_model.py
    torchrun --nproc-per-node 2 examples/ddp_language_model.py --stop 100
    torchrun --nproc-per-node 2 examples/ddp_language_model.py --resume
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from _common import curves, parse, parser, progress, run, table
from _data import documentation
from _ddp import broadcast, gather, processes, read, write
from tbptt_fast.cli.parser import whole
from tbptt_fast.torch import LSTM
from tbptt_fast.torch.streams import StreamBatcher, Window, windows


class LanguageModel(torch.nn.Module):
    """Logits [k, B, symbols] of a window's new steps; the state travels with the windows."""

    def __init__(self, symbols: int, hidden: int) -> None:
        super().__init__()
        self.embedding, self.lstm = torch.nn.Embedding(symbols, 64), LSTM(64, hidden)
        self.head = torch.nn.Linear(hidden, symbols)

    def forward(self, window: Window) -> Any:
        return window.run(self.read)

    def read(self, x: Any, state: Any, is_init: Any) -> tuple[Any, Any]:
        out, state = self.lstm(self.embedding(x), state, is_init=is_init)
        return self.head(out), state


def train(options: Namespace, rank: int, world: int) -> list[list[float]]:
    """Train all epochs; returns the bits per character of all windows, a list per process."""
    symbols, ids = documentation(rank, world)
    sizes = {"batch_size": options.batch, "steps": options.k1}
    stream = StreamBatcher(torch.from_numpy(ids), **sizes, rank=0, world_size=1)  # ids are its own
    torch.manual_seed(options.seed)
    network = LanguageModel(symbols, options.hidden)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    bits: list[float] = []
    begin, place = 0, None
    if options.resume:
        begin, (position, place, bits) = read(options.checkpoint, network, optimizer)
        stream.load_state_dict(position)
    model = DistributedDataParallel(network)

    bar = progress(options.epochs * len(stream), "language model") if rank == 0 else None
    while stream.epoch < options.epochs:
        counts = gather(len(stream) - stream.position // options.k1)
        pieces = windows(stream, options.k1, options.k2)
        if place is not None:
            pieces.load_state_dict(place)
        with model.join():  # whose windows are used up, adds zeros to the sums of the others
            for number, window in enumerate(pieces, 1):
                logits, y = model(window), window.new.y
                loss = cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum")
                optimizer.zero_grad()
                (loss / (options.k1 * options.batch)).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                bits.append(loss.item() / y.numel() / math.log(2))
                if bar is not None:
                    bar.update(len(bits) - bar.n)
                    bar.set_postfix_str(f"{bits[-1]:.3f} bits")
                stop = begin + number == options.stop
                # Only while every process is still here to save its part.
                if number < min(counts) and (stop or (begin + number) % options.every == 0):
                    own = (stream.state_dict(), pieces.state_dict(), bits)
                    write(options.checkpoint, begin + number, network, optimizer, own)
                    if stop:
                        return gather(bits)
        # Who ended early got the last weights from join, but not the optimizer's moments.
        optimizer.load_state_dict(broadcast(optimizer.state_dict(), counts.index(max(counts))))
        begin, place = begin + max(counts), None
        write(options.checkpoint, begin, network, optimizer, (stream.state_dict(), place, bits))
    return gather(bits)


def main(argv: Sequence[str] | None = None) -> list[list[float]]:
    """Train, alone or as one process of torchrun's; returns the bits of all processes."""
    found = parser(__file__, __doc__, epochs=2)
    sizes = {"k1": 64, "k2": 64, "batch": 16, "hidden": 192, "every": 100, "stop": None}
    for name, default in sizes.items():
        found.add_argument(f"--{name}", type=whole(1), default=default, help="(%(default)s)")
    found.add_argument("--checkpoint", type=Path, default=Path(__file__).with_suffix(".pt").name)
    found.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    options = parse(found, argv)
    with processes() as (rank, world):
        results = train(options, rank, world)
    if rank == 0:
        columns = {"process": "d", "windows": "d", "first bits": ".3f", "last bits": ".3f"}
        table(columns, [(r, len(bits), bits[0], bits[-1]) for r, bits in enumerate(results)])
        lines = {f"process {r}": bits for r, bits in enumerate(results)}
        curves(options.out, lines, xlabel="window", ylabel="bits per character")
    return results


if __name__ == "__main__":
    run(main)
