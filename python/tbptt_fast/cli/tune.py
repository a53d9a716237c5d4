"""`tune`: how gradients decay on the user's data, and how far back to run them."""

from __future__ import annotations

import statistics
import time
from argparse import Namespace
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tbptt_fast import get_num_threads, set_num_threads
from tbptt_fast.cli.parser import UsageError
from tbptt_fast.cli.progress import Progress, installed, say_what_is_missing
from tbptt_fast.cli.request import Request
from tbptt_fast.cli.task import Task
from tbptt_fast.cli.training import Session, make_optimizer
from tbptt_fast.tbptt import TBPTT, AdaptiveK, adaptive_k, measure_lags

Array = NDArray[Any]

_LOSSES = 16  # steps measured, of all rows
_SECONDS_PER_K = 0.3  # of timing


class Cost(NamedTuple):
    """What training with one K takes: seconds per step of all rows, and bytes of history."""

    seconds: float
    nbytes: int


def tune(options: Namespace) -> int:
    """Run the command."""
    began = time.perf_counter()
    if options.minutes is None:
        options.minutes = 0.0 if options.resume else 0.5
    request = Request.of(options)
    k_max = options.max_lag if options.k_max is None else options.k_max
    if k_max > options.max_lag:
        raise UsageError(f"--k-max: must be at most --max-lag = {options.max_lag}, got {k_max}")
    if options.k_min > k_max:
        raise UsageError(f"--k-min: must be at most --k-max = {k_max}, got {options.k_min}")
    if options.tau is not None and options.tau > options.max_lag:
        raise UsageError(f"--tau: must be at most --max-lag = {options.max_lag}, got {options.tau}")
    if options.threads:
        set_num_threads(options.threads)
    session = Session(request.task(), request.settings, epochs=None, began=began)
    if request.tree is not None:
        session.resume(request.tree)
    task = session.task
    _check_length(task, request, options.max_lag)
    say_what_is_missing(picture=request.plot is not None)
    print(task.summary())
    print(f"{session.model!r}, {get_num_threads()} threads", flush=True)

    _train(session, request.seconds)
    print(
        f"after {session.updates:,} updates ({session.updates / session.per_epoch:.2f} epochs) "
        f"with k1 = {request.settings.k1}, k2 = {request.settings.k2}",
        flush=True,
    )
    x, y, state = _piece(session, options.max_lag)
    found = measure_lags(
        session.model, task.loss, x, y, options.max_lag, state=state, losses=_LOSSES
    )
    choice = adaptive_k(
        found.phi,
        gradient=found.gradient,
        delta=options.delta,
        tau=options.tau,
        k_min=options.k_min,
        k_max=k_max,
        fit=options.fit,
    )
    print(f"gradients of {found.phi.shape[1]:,} losses, lags 0 to {options.max_lag}\n")
    _table(choice, k_max, session, x, y)
    if request.plot and installed("matplotlib"):
        from tbptt_fast.cli.plot import plot_decay

        plot_decay(request.plot, choice, k_max, f"{session.model!r} on {task.name}")
        print(f"\npicture: {request.plot}")
    print(f"\n{choice}")
    advice = "recommended" if choice.met else "nothing better in this range"
    print(f"{advice}: --k1 {choice.k} --k2 {2 * choice.k - 1}, so that every loss reaches K steps")
    return 0


def _check_length(task: Task, request: Request, max_lag: int) -> None:
    steps = task.training.steps
    if steps < 2 * max_lag:
        raise UsageError(
            f"--max-lag: each of the {request.settings.batch} rows has {steps} steps, which must "
            f"be at least twice the largest lag {max_lag} (--batch, --max-lag)"
        )


def _train(session: Session, seconds: float) -> None:
    """Train for a while: the decay of a network that has learnt nothing says little."""
    end = session.run_seconds + seconds
    if seconds <= 0:
        return
    progress = Progress()
    try:
        while (now := session.run_seconds) < end:
            session.advance()
            if progress.due:
                figures = f"{session.training_value:.4g} {session.task.unit}"
                progress.show(1 - (end - now) / seconds, figures)
    except FloatingPointError as error:
        where = f"after {session.updates} updates"
        raise FloatingPointError(f"diverged {where}: {error}; try a lower --lr") from None
    finally:
        progress.close()


def _piece(session: Session, max_lag: int) -> tuple[Array, Array, Any]:
    """Neighbouring windows from the beginning of an epoch, and the state that enters them.

    As many as 2·max_lag steps, behind as many as max_lag that only lead to that state.
    """
    stream = session.task.training
    for _ in stream:  # what is left of the epoch that the training was in
        pass
    windows, steps = [], 0
    for window in stream:
        windows.append(window)
        steps += len(window.x)
        if steps >= 3 * max_lag:
            break
    x, y = (np.concatenate(parts) for parts in zip(*(w[:2] for w in windows), strict=True))
    warm = min(max_lag, len(x) - 2 * max_lag)
    state = session.model(x[:warm])[1] if warm > 0 else None
    warm = max(warm, 0)
    return x[warm:], y[warm:], state


def _table(choice: AdaptiveK, k_max: int, session: Session, x: Array, y: Array) -> None:
    powers = [2**n for n in range(k_max.bit_length())]
    ks = sorted({*(k for k in powers if k <= k_max), choice.k, k_max})
    rate = session.task.item
    print(
        f"     K  gradient at lag K  bound on the bias  relative    {rate + 's/s':>12}     memory"
    )
    for k in ks:
        cost = _cost(session, k, x, y)
        mark = "*" if k == choice.k else " "
        per_second = x.shape[1] / cost.seconds
        print(
            f"{mark}{k:5}  {choice.phi[k]:17.4g}  {choice.absolute[k]:17.4g}  "
            f"{choice.relative[k]:8.3g}    {per_second:12,.0f}  {cost.nbytes / 1e6:6.1f} MB",
            flush=True,
        )


def _cost(session: Session, k: int, x: Array, y: Array) -> Cost:
    """Time of updates on a copy of the network, the median of several, and memory of one."""
    model = session.task.network(session.settings)
    model.load_state_dict(session.model.state_dict())
    _, _, tape = model.forward(x[: 2 * k - 1])
    # Its updates take their time, but change nothing: the same few windows come again and again.
    optimizer = make_optimizer(model.parameters(), replace(session.settings, lr=1e-30))
    trainer = TBPTT(model, session.task.loss, optimizer, k=k)
    times: list[float] = []
    begin = 0
    end = time.perf_counter() + _SECONDS_PER_K
    while len(times) < 5 or time.perf_counter() < end:
        begin = 0 if begin + k > len(x) else begin
        since = time.perf_counter()
        trainer.step(x[begin : begin + k], y[begin : begin + k])
        times.append(time.perf_counter() - since)
        begin += k
    return Cost(statistics.median(times[2:]) / k, tape.nbytes)  # the first ones have no history
