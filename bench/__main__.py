"""`python -m bench NAME`: measure the machine, verify, time, report.

The table goes to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # tests.cases, from wherever this was started

from . import report  # noqa: E402
from .options import Bench, Options, Shape, progress  # noqa: E402
from .peak import available_cpus, describe  # noqa: E402

BENCHES = {
    "recurrent": "single layers against PyTorch and JAX",
    "chunked": "chunked TBPTT against PyTorch's loop over detached chunks",
    "resets": "an LSTM with resets in the middle of its sequences",
    "overhead": "microseconds per call when there is nothing to compute",
    "stream": "memory over a million steps",
    "conv": "convolutions against PyTorch's, in both layouts",
    "convlstm": "ConvLSTM against the usual PyTorch cell, with peak memory and windows",
    "keras": "a batch of training in Keras, on every backend that is installed",
    "torch": "tbptt_fast.torch against torch.nn and torch.optim, at the level of modules",
    "jax": "tbptt_fast.jax against lax.scan, both inside jit, windows, overhead",
    "cuda": "layers on a GPU against PyTorch's (cuDNN), chunks, resets, overhead",
    "train": "seconds to a validation loss on real text, against PyTorch",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if problem := unusable(arguments):  # now, not after half an hour of measuring
        parser.error(problem)
    options = Options(
        cells=arguments.cells,
        shapes=arguments.shapes,
        threads=arguments.threads,
        peers=installed_peers() if arguments.peers is None else arguments.peers,
        quick=arguments.quick,
        rounds=arguments.rounds or (3 if arguments.quick else 9),
        train_seeds=arguments.rounds or 1,
    )
    progress("measuring the machine")
    machine = describe(options.threads, 0.2 if options.quick else 1.0)
    for line in report.machine_lines(machine):
        progress(line)
    print(report.machine_text(machine, markdown=arguments.markdown))
    sections: list[report.Section] = []
    for name in all_benches() if arguments.bench == "all" else [arguments.bench]:
        run: Bench = importlib.import_module(f".{name}", __package__).run
        found = run(options)
        sections += found
        for section in found:
            print("\n" + report.section_text(section, markdown=arguments.markdown), flush=True)
        if arguments.json:  # after every bench: a later one may fail
            report.save_json(arguments.json, machine, sections)
    if arguments.plot:
        report.save_plot(arguments.plot, machine, sections)
    return 0


def all_benches() -> list[str]:
    """All that this machine can run."""
    from tbptt_fast import _native, cuda

    def has(module: str) -> bool:
        return importlib.util.find_spec(module) is not None

    runs = {
        "cuda": cuda.is_available(),
        "jax": has("jax") and hasattr(_native, "jax_targets"),
        "keras": has("keras"),
    }
    return [name for name in BENCHES if runs.get(name, True)]


def build_parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:10} {text}" for name, text in BENCHES.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"Verify, then time, alternating with the peers that are installed:\n{listed}",
    )
    parser.add_argument("bench", choices=[*BENCHES, "all"], metavar="NAME|all")
    parser.add_argument("--cells", type=names("lstm", "gru", "rnn"), default="lstm,gru,rnn")
    parser.add_argument(
        "--shapes",
        type=parse_shapes,
        metavar="TxBxIxH,…",
        help="of `recurrent`, for example 64x32x128x128; default: those of tests/cases.py",
    )
    parser.add_argument("--threads", type=parse_threads, default="1,2", help="default 1,2")
    parser.add_argument(
        "--peers", type=names("torch", "jax"), help="torch,jax or none; default: those installed"
    )
    parser.add_argument("--rounds", type=positive, help="default 9; of `train`: 1 seed")
    parser.add_argument("--quick", action="store_true", help="few rounds, small shapes")
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all raw numbers")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw them (matplotlib)")
    return parser


def unusable(arguments: argparse.Namespace) -> str | None:
    """What would only fail at the end."""
    for path in filter(None, (arguments.json, arguments.plot)):
        if not path.absolute().parent.is_dir():
            return f"{path}: no such folder"
    if arguments.plot and not importlib.util.find_spec("matplotlib"):
        return "--plot needs matplotlib"
    for peer in arguments.peers or ():
        if not importlib.util.find_spec(peer):
            return f"--peers: {peer} is not installed"
    return None


def installed_peers() -> tuple[str, ...]:
    return tuple(peer for peer in ("torch", "jax") if importlib.util.find_spec(peer))


class names:
    """A comma-separated choice among known names, or "none"."""

    def __init__(self, *known: str) -> None:
        self.known = known

    def __call__(self, text: str) -> tuple[str, ...]:
        if text == "none":
            return ()
        chosen = tuple(text.split(","))
        for name in chosen:
            if name not in self.known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(self.known)}")
        return chosen


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return int(text)


def parse_threads(text: str) -> tuple[int, ...]:
    counts = tuple(positive(part) for part in text.split(","))
    if max(counts) > available_cpus():
        raise argparse.ArgumentTypeError(
            f"{max(counts)} threads cannot be timed on {available_cpus()} CPUs"
        )
    return counts


def parse_shapes(text: str) -> tuple[Shape, ...]:
    shapes = []
    for part in text.split(","):
        sizes = [positive(size) for size in part.split("x")]
        if len(sizes) != 4:
            raise argparse.ArgumentTypeError(f"expected TxBxIxH, got {part!r}")
        shapes.append((sizes[0], sizes[1], sizes[2], sizes[3]))
    return tuple(shapes)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
