"""`train`: learn a text or a series within a time, then show figures, a sample and the curves."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tbptt_fast import get_num_threads, set_num_threads
from tbptt_fast.cli.progress import Progress, installed, say_what_is_missing
from tbptt_fast.cli.request import Request
from tbptt_fast.cli.sample import forecast, format_values, generate
from tbptt_fast.cli.task import TextTask
from tbptt_fast.cli.training import Session


def train(options: Namespace) -> int:
    """Run the command."""
    began = time.perf_counter()
    request = Request.of(options)
    if options.threads:
        set_num_threads(options.threads)
    session = Session(request.task(), request.settings, epochs=request.epochs, began=began)
    if request.tree is not None:
        session.resume(request.tree)
    say_what_is_missing(picture=request.plot is not None)
    print(session.task.summary())
    size = sum(array.size for array in session.model.parameters().values())
    print(f"{session.model!r}: {size:,} parameters, {get_num_threads()} threads", flush=True)

    with _stopping() as stop:
        reason = _fit(session, request, stop, options.checkpoint_every)
        if request.save:  # here, where a signal does not end it
            session.save(request.save, request.source, request.epochs)
    if stop.signal:
        kept = f"saved in {request.save}" if request.save else "nothing saved"
        print(f"tbptt_fast train: interrupted, {kept}", file=sys.stderr)
        return 128 + stop.signal

    session.restore_best()
    _sample(session, options)
    if request.plot and installed("matplotlib"):
        from tbptt_fast.cli.plot import plot_curves

        plot_curves(request.plot, session.curve, session.task.measure, _title(request))
    _report(session, request, reason)
    return 0


class _Stop:
    """The signal that asks for an end, if there was one."""

    signal: int = 0


@contextmanager
def _stopping() -> Iterator[_Stop]:
    """Let SIGINT and SIGTERM end the training between two updates; a second one ends it at once.

    Between updates everything is consistent, so that what is saved then resumes bit for bit.
    """
    stop = _Stop()

    def handle(number: int, _: FrameType | None) -> None:
        if stop.signal:
            raise KeyboardInterrupt
        stop.signal = number

    earlier = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                earlier[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _fit(session: Session, request: Request, stop: _Stop, checkpoint_every: float) -> str:
    """Train until something says stop; returns what. Unless interrupted, validates at the end."""
    last_update = math.inf
    if request.epochs is not None:
        last_update = math.ceil(request.epochs * session.per_epoch)
    saved = time.perf_counter()
    progress = Progress()

    def show(*, milestone: bool) -> None:
        done = max(session.updates / last_update, session.run_seconds / request.seconds)
        progress.show(done, _figures(session), milestone=milestone)

    try:
        while not (reason := _reason_to_stop(session, request, stop, last_update)):
            session.advance()
            milestone = session.updates % session.validate_every == 0
            if milestone:
                session.validate()
            if milestone or progress.due:
                show(milestone=milestone)
            if request.save and time.perf_counter() - saved >= checkpoint_every:
                session.save(request.save, request.source, request.epochs)
                saved = time.perf_counter()
        if not stop.signal and not session.validated:
            session.validate()
            show(milestone=True)
    except FloatingPointError as error:
        where = f"after {session.updates} updates"
        raise FloatingPointError(f"diverged {where}: {error}; try a lower --lr") from None
    finally:
        progress.close()
    return reason


def _reason_to_stop(
    session: Session, request: Request, stop: _Stop, last_update: float
) -> str | None:
    if stop.signal:
        return "interrupted"
    if session.updates >= last_update:
        return "all epochs done"
    # Time for what is still to come: a validation, the sample, the picture.
    ahead = min(4.0, 0.1 * request.seconds) + session.validation_seconds
    if session.rate and session.run_seconds + ahead > request.seconds:
        return "time is up"
    if request.patience and session.stale >= request.patience:
        return f"no better in {session.stale} validations"
    return None


def _figures(session: Session) -> str:
    """The state of a training in one short line."""
    unit, item = session.task.unit, session.task.item
    figures = [f"epoch {session.updates / session.per_epoch:.2f}"]
    training = session.training_value
    if session.curve:
        point = session.curve[-1]
        training = point.training if math.isnan(training) else training
        figures.append(f"valid {point.validation:.4g} {unit}")
    figures.insert(1, f"train {training:.4g} {unit}")
    return ", ".join([*figures, f"{session.rate:,.0f} {item}s/s"])


def _sample(session: Session, options: Namespace) -> None:
    task = session.task
    if isinstance(task, TextTask):
        length = 400 if options.sample is None else options.sample
        if length:
            temperature = 0.7 if options.temperature is None else options.temperature
            print(f"\na sample at temperature {temperature:g}:\n")
            print(
                generate(
                    session.model,
                    task.vocabulary,
                    length,
                    temperature=temperature,
                    seed=session.settings.seed,
                )
            )
        return
    length = 10 if options.sample is None else options.sample
    if length:
        print(f"\nthe next {length} values:")
        print(format_values(forecast(session.model, task.state_dict(), length)))


def _report(session: Session, request: Request, reason: str) -> None:
    best, task = session.best_point, session.task
    print()
    if best is None:
        print(f"validation never gave a finite {task.measure}")
    else:
        print(
            f"best validation: {best.validation:.4f} {task.measure} "
            f"after {best.seconds:.1f} s and {best.updates / session.per_epoch:.2f} epochs"
        )
    print(
        f"total: {session.seconds:.1f} s, {session.updates / session.per_epoch:.2f} epochs, "
        f"{session.rate:,.0f} {task.item}s per second ({reason})"
    )
    if request.save:
        print(f"model: {request.save} (python -m tbptt_fast sample {request.save})")
    if request.plot and installed("matplotlib"):
        print(f"curves: {request.plot}")


def _title(request: Request) -> str:
    settings = request.settings
    layers = "" if settings.layers == 1 else f"{settings.layers} x "
    return (
        f"{layers}{settings.cell.upper()} {settings.hidden}, k1 = {settings.k1}, "
        f"k2 = {settings.k2}, {settings.batch} streams"
    )
