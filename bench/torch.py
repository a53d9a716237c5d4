"""The PyTorch backend as users call it: modules, from `module(x)` to `backward()`; optimizers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import geometric_mean
from typing import Any

import tbptt_fast
from tests.cases import RECURRENT_BENCH

from . import ours
from .options import Options, on_threads, progress
from .overhead import plain_calls
from .problem import Problem
from .report import Section, milliseconds, times
from .timing import LocalSide, Side, Spread, Timing

TASKS = ("forward+backward", "forward")
LEARNER = (128, 16, 64, 256)  # of recurrent PPO
RESET_RATE = 0.03
MAX_NORM = 1.0


def run(options: Options) -> list[Section]:
    if "torch" not in options.peers:
        raise SystemExit("bench torch needs PyTorch")
    layers = compare_layers(options)
    return [*layers, compare_steps(options), learner(options), optimizers(options), cost(options)]


def our_layers() -> dict[str, Any]:
    import tbptt_fast.torch as backend

    return {"lstm": backend.LSTM, "gru": backend.GRU, "rnn": backend.RNN}


def pair(problem: Problem, threads: int) -> list[Side]:
    """Our module and torch.nn's, verified against the float64 oracle."""
    from . import peers_torch

    tbptt_fast.set_num_threads(threads)
    sides: list[Side] = [
        peers_torch.layer_side(problem, threads, "ours", our_layers()),
        peers_torch.layer_side(problem, threads),
    ]
    for side in sides:
        ours.verify(side, problem)
    return sides


def line(label: Sequence[str], timing: Timing) -> tuple[list[str], dict[str, Any]]:
    ratio = timing.ratio("torch")
    seconds = {side: timing.spread(side) for side in timing.seconds}
    progress(f"{', '.join(label)}: {times(ratio)}")
    row = [*label, *(milliseconds(seconds[s].median) for s in ("ours", "torch")), times(ratio)]
    return row, {"label": list(label), "seconds": seconds, "ratio": ratio}


def add(section: Section, label: Sequence[str], timing: Timing) -> Spread:
    row, record = line(label, timing)
    section.rows.append(row)
    section.records.append(record)
    ratio: Spread = record["ratio"]
    return ratio


def compare_layers(options: Options) -> list[Section]:
    section = Section(
        title="Modules, forward and backward with all gradients",
        columns=["module", "T, B, I, H", "threads", "ours ms", "torch.nn ms", "vs torch.nn"],
    )
    summary = Section(
        title="Modules, summary",
        columns=["module", "threads", "smallest vs torch.nn", "geometric mean"],
    )
    shapes = options.shapes or (RECURRENT_BENCH[:2] if options.quick else RECURRENT_BENCH)
    for cell in options.cells:
        for threads in options.threads:
            ratios = []
            for shape in shapes:
                problem = Problem(cell, *shape)
                timing = options.time(pair(problem, threads), TASKS[0], threads, peak=False)
                label = [cell.upper(), problem.shape, str(threads)]
                ratios.append(add(section, label, timing).median)
            found = (f"{min(ratios):.2f}", f"{geometric_mean(ratios):.2f}")
            summary.rows.append([cell.upper(), str(threads), *found])
    return [section, summary]


def compare_steps(options: Options) -> Section:
    section = Section(
        title="An actor's step, T = 1",
        columns=[
            "module",
            "T, B, I, H",
            "threads",
            "pass",
            "ours ms",
            "torch.nn ms",
            "vs torch.nn",
        ],
    )
    for cell in options.cells:
        for batch in (1, 16):
            problem = Problem(cell, 1, batch, *LEARNER[2:])
            for threads in options.threads:
                sides = pair(problem, threads)
                for task in TASKS:
                    timing = options.time(sides, task, threads, peak=False)
                    add(section, [cell.upper(), problem.shape, str(threads), task], timing)
    return section


def learner(options: Options) -> Section:
    """A module with is_init beside the loop over steps with a masked state."""
    import torch

    from . import peers_torch

    section = Section(
        title=f"A learner's step with {RESET_RATE:.0%} resets",
        columns=["module", "T, B, I, H", "threads", "ours ms", "PyTorch ms", "vs PyTorch"],
        note="Ours is one call with is_init; PyTorch loops over steps and masks the state.",
    )
    for cell in options.cells:
        problem = Problem(cell, *LEARNER, reset_rate=RESET_RATE)
        assert problem.is_init is not None
        starts = torch.from_numpy(problem.is_init)
        for threads in options.threads:
            tbptt_fast.set_num_threads(threads)
            sides: list[Side] = [
                peers_torch.layer_side(problem, threads, "ours", our_layers(), is_init=starts),
                peers_torch.masked_loop_side(problem, threads),
            ]
            for side in sides:
                ours.verify(side, problem)
            timing = options.time(sides, TASKS[0], threads, peak=False)
            add(section, [cell.upper(), problem.shape, str(threads)], timing)
    return section


def parameter_shapes() -> dict[str, list[tuple[int, ...]]]:
    """Ten million elements in few arrays, and in many."""
    few = ((4096, 512), (4096, 1024), (4096,), (4096,), (4096, 512), (1024, 1024), (1024, 600))
    many = 37 * ((256, 512), (512, 256), (512,), (256,))
    return {"few": list(few), "many": list(many)}


def optimizers(options: Options) -> Section:
    import torch

    import tbptt_fast.torch as backend

    section = Section(
        title="AdamW with clipping by the global norm, ten million parameters",
        columns=["arrays", "threads", "ours ms", "PyTorch ms", "vs PyTorch"],
        note="PyTorch: clip_grad_norm_, then AdamW(fused=True).",
    )

    def leaves(shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        made = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
        for parameter in made:
            parameter.grad = torch.randn_like(parameter)
        return list(made)

    def ours_step(parameters: list[torch.Tensor]) -> Callable[[], None]:
        optimizer = backend.optim.AdamW(parameters, lr=1e-4, max_norm=MAX_NORM)
        return lambda: optimizer.step()

    def torch_step(parameters: list[torch.Tensor]) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

        def step() -> None:
            torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
            optimizer.step()

        return step

    task = "step"
    for shapes in parameter_shapes().values():
        for threads in options.threads:
            tbptt_fast.set_num_threads(threads)
            torch.set_num_threads(threads)
            mine, theirs = leaves(shapes), leaves(shapes)
            steps = {"ours": ours_step(mine), "torch": torch_step(theirs)}
            for step in steps.values():
                step()
            for a, b in zip(mine, theirs, strict=True):
                torch.testing.assert_close(a, b)
            sides: list[Side] = [LocalSide(n, dict, {task: s}) for n, s in steps.items()]
            timing = options.time(sides, task, threads, peak=False)
            add(section, [str(len(shapes)), str(threads)], timing)
    return section


def cost(options: Options) -> Section:
    """Forward and backward of a module beside the same two calls on arrays, nothing to compute."""

    section = Section(
        title="What the adapter costs, T = B = I = H = 1",
        columns=["module", "primitives µs", "module µs", "difference µs", "torch.nn µs"],
        note="Forward and backward, one thread; torch.nn's module for comparison.",
    )
    for cell in options.cells:
        problem = Problem(cell, 1, 1, 1, 1)
        primitives = plain_calls(problem)
        primitives.name = "primitives"
        sides: list[Side] = [primitives, *pair(problem, 1)]
        timing = options.time(sides, TASKS[0], 1, peak=False)
        names = ("primitives", "ours", "torch")
        micros = {name: timing.spread(name).median * 1e6 for name in names}
        difference = Spread.of(
            [
                (a - b) * 1e6
                for a, b in zip(timing.seconds["ours"], timing.seconds["primitives"], strict=True)
            ]
        )
        section.rows.append(
            [
                cell.upper(),
                f"{micros['primitives']:.1f}",
                f"{micros['ours']:.1f}",
                f"{difference.median:.1f}",
                f"{micros['torch']:.1f}",
            ]
        )
        section.records.append({"cell": cell, "micros": micros, "difference": difference})
        progress(f"{cell}, adapter: {difference.median:.1f} µs ({on_threads(1)})")
    return section
