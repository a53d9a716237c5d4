"""The command line, `python -m tbptt_fast {train, sample, tune, info}`.

    parser.py    the options and their limits
    model.py     the networks and losses
    task.py      what is learnt: text or a series, with its streams and its measure
    training.py  everything that changes during training, and its checkpoint
    train.py, sample.py, tune.py, info.py   the commands
    plot.py, progress.py           picture and progress bar, both optional

Exit codes: 0 done, 1 training failed, 2 wrong use or unusable data, 128 + n stopped by signal n.
Whatever goes wrong for a reason outside the program is one line on stderr.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress

from tbptt_fast.checkpoint import CheckpointError
from tbptt_fast.cli.parser import UsageError, build_parser
from tbptt_fast.data import DataError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    # A sample may hold characters that the terminal's encoding lacks.
    with suppress(AttributeError):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    program = "tbptt_fast"
    try:
        options = build_parser().parse_args(argv)
        program = f"tbptt_fast {options.command}"
        code = _run(options)
        sys.stdout.flush()  # here, where a closed pipe is still caught
        return code
    except SystemExit as stop:  # argparse: 0 after --help, 2 after a wrong option
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `sample … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (UsageError, DataError, CheckpointError, OSError) as error:
        print(f"{program}: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except (FloatingPointError, MemoryError) as error:
        print(f"{program}: error: {_one_line(error)}", file=sys.stderr)
        return 1


def _run(options: Namespace) -> int:
    # Imported late: `--help` needs neither trainer nor data.
    if options.command == "train":
        from tbptt_fast.cli.train import train

        return train(options)
    if options.command == "sample":
        from tbptt_fast.cli.sample import sample

        return sample(options)
    if options.command == "tune":
        from tbptt_fast.cli.tune import tune

        return tune(options)
    from tbptt_fast.cli.info import info

    return info()


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
