"""What a call costs when there is nothing to compute: T = B = I = H = 1, from Python."""

from __future__ import annotations

import tbptt_fast

from . import ours
from .options import Options, progress
from .problem import WEIGHTS, Problem
from .report import Bar, Section, draw_bars, times
from .timing import LocalSide, Side

TASKS = ("forward", "forward+backward")


def run(options: Options) -> list[Section]:
    peer = "torch" in options.peers
    section = Section(
        title="Call overhead, T = B = I = H = 1",
        columns=["cell", "pass", "ours µs", *(["PyTorch µs", "vs PyTorch"] if peer else [])],
        note="Microseconds per call from Python, one thread; forward keeps no tape, "
        "backward returns all gradients.",
    )
    bars: list[Bar] = []
    for cell in options.cells:
        problem = Problem(cell, 1, 1, 1, 1)
        sides: list[Side] = [plain_calls(problem)]
        if peer:
            from . import peers_torch

            sides.append(peers_torch.layer_side(problem, 1))
        for side in sides:
            ours.verify(side, problem)
        for task in TASKS:
            timing = options.time(sides, task, 1, peak=False)
            micros = {side.name: timing.spread(side.name).median * 1e6 for side in sides}
            ratio = timing.ratio("torch") if peer else None
            section.rows.append(
                [
                    cell.upper(),
                    task,
                    *(f"{value:.2f}" for value in micros.values()),
                    *([times(ratio)] if ratio else []),
                ]
            )
            section.records.append(
                {
                    "cell": cell,
                    "task": task,
                    "seconds": {side.name: timing.spread(side.name) for side in sides},
                    "ratio_to_torch": ratio,
                    "rounds": timing.seconds,
                }
            )
            bars += [Bar(f"{cell}, {task}", ratio)] if ratio else []
            progress(f"overhead, {cell}, {task}: {micros['ours']:.2f} µs, vs torch {times(ratio)}")
    if bars:
        section.draw = lambda axes: draw_bars(axes, bars, "times as fast as PyTorch", line=1.0)
    return [section]


def plain_calls(problem: Problem) -> LocalSide:
    """The calls as a user writes them, with no layer of the benchmark in between."""
    forward = getattr(tbptt_fast, f"{problem.cell}_forward")
    backward = getattr(tbptt_fast, f"{problem.cell}_backward")
    arrays = problem.arrays
    x, grad_out = arrays["x"], arrays["grad_out"]
    hx = (arrays["h"], arrays["c"]) if problem.cell == "lstm" else arrays["h"]
    w_ih, w_hh, b_ih, b_hh = (arrays[name] for name in WEIGHTS)

    def forward_only() -> None:
        forward(x, hx, w_ih, w_hh, b_ih, b_hh, training=False)

    def both() -> None:
        _, _, tape = forward(x, hx, w_ih, w_hh, b_ih, b_hh)
        backward(tape, grad_out)

    result = ours.side(problem).compute
    return LocalSide("ours", result, {"forward": forward_only, "forward+backward": both})
