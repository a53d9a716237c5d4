"""`python -m bench.science NAME`: train, measure, and say which published figures are met.

The tables go to stdout, progress to stderr. All runs use one thread, so that seeds can run side by
side. The exit status is 1 where a figure is not met.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import tbptt_fast

from .. import report
from ..options import progress
from ..peak import describe
from ._common import Options, Store

STUDIES = {
    "copy": ("copy_task", "the copy task of Aicher et al.: perplexity against K, and adaptive K"),
    "lags": ("lags", "two lags: which of them a truncation of K steps learns"),
    "bias": ("bias", "the gradient's bias against K, and the bound that adaptive_k states"),
    "digits": ("digits", "moving digits: a ConvLSTM against copying the last frame"),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    for path in filter(None, (arguments.json, arguments.plot)):
        if not path.absolute().parent.is_dir():
            parser.error(f"{path}: no such folder")
    if arguments.plot and not importlib.util.find_spec("matplotlib"):
        parser.error("--plot needs matplotlib")
    machine = describe((1,), 0.2)
    print(report.machine_text(machine, markdown=arguments.markdown))
    start = time.perf_counter()
    options = Options(arguments.seeds, arguments.quick, Store(arguments.json))
    run: Callable[[Options], list[report.Section]] = importlib.import_module(
        f".{STUDIES[arguments.study][0]}", __package__
    ).run
    with tbptt_fast.num_threads(1):
        sections = run(options)
    for section in sections:
        print("\n" + report.section_text(section, markdown=arguments.markdown), flush=True)
    progress(f"{time.perf_counter() - start:.0f} s, runs taken from --json not counted")
    if arguments.plot:
        report.save_plot(arguments.plot, machine, sections)
    met = [record["met"] for section in sections for record in section.records if "met" in record]
    return 0 if all(met) else 1


def build_parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:7} {text}" for name, (_, text) in STUDIES.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench.science",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"Train with truncation and compare with published figures:\n{listed}",
    )
    parser.add_argument("study", choices=STUDIES, metavar="NAME")
    parser.add_argument("--seeds", type=parse_seeds, default="0,1,2", help="default 0,1,2")
    parser.add_argument("--quick", action="store_true", help="a small problem, some seconds")
    parser.add_argument("--markdown", action="store_true", help="the tables as Markdown")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="keep every run; runs it holds are not repeated"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw them (matplotlib)")
    return parser


def parse_seeds(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise argparse.ArgumentTypeError(f"expected different numbers, as 0,1,2, got {text!r}")
    return tuple(int(part) for part in parts)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
