"""ConvLSTM, forward and backward with all gradients, against the usual PyTorch cell: one
convolution over cat([x, h]) and a Python loop over time. Memory is that of one process each, with
the gates on the tape ("ours") and without ("recompute")."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import tbptt_fast
from tbptt_fast import reference_convrecurrent as reference

from .options import Options, on_threads, progress
from .problem import Result
from .report import Section, milliseconds, times
from .timing import LocalSide, Side

TASK = "forward+backward"


@dataclass(frozen=True)
class Case:
    steps: int
    batch: int
    inputs: int
    hidden: int
    size: int
    kernel: int
    window: int | None = None

    def __str__(self) -> str:
        parts = (self.steps, self.batch, self.inputs, self.hidden, self.size, self.kernel)
        return ", ".join(map(str, parts))

    def arrays(self) -> dict[str, Any]:
        """Weights of the PyTorch cell; its gates come in the order i, f, o, g."""
        rng = np.random.default_rng(0)
        depth = self.inputs + self.hidden
        weight = (4 * self.hidden, depth, self.kernel, self.kernel)
        bound = (depth * self.kernel**2) ** -0.5
        image = (self.size, self.size)

        def normal(*shape: int) -> Any:
            return rng.standard_normal(shape, np.float32)

        return {
            "weight": rng.uniform(-bound, bound, weight).astype(np.float32),
            "bias": rng.uniform(-bound, bound, 4 * self.hidden).astype(np.float32),
            "x": normal(self.steps, self.batch, self.inputs, *image),
            "grad_out": normal(self.steps, self.batch, self.hidden, *image),
        }


CASES = (
    Case(10, 8, 1, 16, 32, 3),
    Case(10, 4, 1, 64, 64, 3),
    Case(20, 2, 64, 64, 64, 5),
)
# Windows of a quarter of the steps, where images are small.
SMALL = (Case(8, 8, 1, 16, 16, 3), Case(16, 4, 16, 32, 8, 3), Case(64, 1, 16, 64, 4, 3))


def split(case: Case, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
    """w_ih, w_hh and b_ih in the order i, f, g, o."""
    order = np.arange(4 * case.hidden).reshape(4, -1)[[0, 1, 3, 2]].ravel()
    return weight[order, : case.inputs].copy(), weight[order, case.inputs :].copy(), bias[order]


def our_side(case: Case, name: str = "ours") -> LocalSide:
    arrays = case.arrays()
    weights = split(case, arrays["weight"], arrays["bias"])
    recompute = name == "recompute"

    def forward() -> Any:
        return tbptt_fast.convlstm_forward(arrays["x"], None, *weights, recompute=recompute)

    def both() -> Result:
        out, _, tape = forward()
        grads = tbptt_fast.convlstm_backward(tape, arrays["grad_out"], truncation=case.window)
        return {"out": out, "dx": grads.x, "dw_ih": grads.w_ih, "dw_hh": grads.w_hh}

    return LocalSide(name, both, {"forward": forward, TASK: both})


def torch_side(case: Case, threads: int) -> LocalSide:
    import torch

    torch.set_num_threads(threads)
    arrays = {name: torch.from_numpy(value) for name, value in case.arrays().items()}
    conv = torch.nn.Conv2d(
        case.inputs + case.hidden, 4 * case.hidden, case.kernel, padding=case.kernel // 2
    )
    with torch.no_grad():
        conv.weight.copy_(arrays["weight"])
        assert conv.bias is not None
        conv.bias.copy_(arrays["bias"])
    x = arrays["x"].requires_grad_()

    def forward() -> Any:
        h = c = torch.zeros_like(arrays["grad_out"][0])
        outs = []
        for step in x:
            i, f, o, g = torch.split(conv(torch.cat([step, h], 1)), case.hidden, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outs.append(h)
        return torch.stack(outs)

    def both() -> Any:
        conv.zero_grad()
        x.grad = None
        out = forward()
        out.backward(arrays["grad_out"])
        return out

    def result() -> Result:
        out = both().detach().numpy()
        assert x.grad is not None
        assert conv.weight.grad is not None
        w_ih, w_hh, _ = split(case, conv.weight.grad.numpy(), np.zeros(4 * case.hidden))
        return {"out": out, "dx": x.grad.numpy(), "dw_ih": w_ih, "dw_hh": w_hh}

    return LocalSide("torch", result, {"forward": forward, TASK: both})


def verify(make: Callable[[Case], Side], case: Case) -> None:
    """Against the oracle in float64; where that would take minutes, on fewer steps and rows."""
    if case.steps * case.batch * case.size**2 > 1 << 15:
        case = replace(case, steps=3, batch=1)
    side, arrays = make(case), case.arrays()
    w_ih, w_hh, bias = split(case, arrays["weight"], arrays["bias"])
    out, _, tape = reference.convlstm_forward(arrays["x"], None, w_ih, w_hh, bias)
    grads = reference.convlstm_backward(tape, arrays["grad_out"], truncation=case.window)
    expected = {"out": out, "dx": grads.x, "dw_ih": grads.w_ih, "dw_hh": grads.w_hh}
    for name, value in side.result().items():
        error = np.abs(value - expected[name]).max() / np.abs(expected[name]).max()
        if not error < 1e-4:  # a NaN is wrong, too
            raise AssertionError(f"{side.name}: {name} is off by {error:.1e} of its greatest value")


def memory(name: str, case: Case, threads: int) -> float:
    """Megabytes by which a fresh process grows in one call of each task, after a call of a tiny
    case: what libraries load is not counted."""
    command = [sys.executable, "-m", "bench.convlstm", name, str(threads)]
    command += [str(v) for v in (case.steps, case.batch, case.inputs, case.hidden, case.size)]
    run = subprocess.run([*command, str(case.kernel)], capture_output=True, text=True, check=True)
    return float(run.stdout)


def peak_of_one_process(arguments: list[str]) -> float:
    name, threads, *sizes = arguments
    case = Case(*(int(size) for size in sizes))
    tbptt_fast.set_num_threads(int(threads))
    tiny = replace(case, steps=2, batch=1, size=8)
    for one in (tiny, case):
        side = torch_side(one, int(threads)) if name == "torch" else our_side(one, name)
        before = most_resident()
        side.turn(TASK, 1, warm_up=False)
    return (most_resident() - before) / 1024


def most_resident() -> int:
    """The most KiB that were resident at a time. Not getrusage's maximum where Linux tells another:
    that one begins with what the parent had."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def run(options: Options) -> list[Section]:
    peer = "torch" in options.peers
    cases = CASES[:1] if options.quick else CASES
    section = Section(
        title="ConvLSTM, forward + backward, all gradients, float32, NCHW",
        columns=[
            "T, B, C, H, size, kernel",
            "threads",
            "ours ms",
            "recompute ms",
            *(["PyTorch ms", "vs PyTorch", "recompute vs PyTorch"] if peer else []),
            "ours MB",
            "recompute MB",
            *(["PyTorch MB"] if peer else []),
        ],
        note="MB: by how much a fresh process grows. Recompute: without gates on the tape. "
        "PyTorch's cell: one convolution over [x, h].",
    )
    for case in cases:
        for threads in options.threads:
            measure(options, case, threads, section, peer)
    windows = Section(
        title="ConvLSTM in windows of K = T / 4, forward + backward",
        columns=["T, B, C, H, size, kernel", "threads", "full ms", "windows ms", "vs full"],
    )
    for case in SMALL[:1] if options.quick else SMALL:
        for threads in options.threads:
            measure_windows(options, case, threads, windows)
    return [section, windows]


def measure(options: Options, case: Case, threads: int, section: Section, peer: bool) -> None:
    tbptt_fast.set_num_threads(threads)
    makers: list[Callable[[Case], Side]] = [
        our_side,
        partial(our_side, name="recompute"),
        *([partial(torch_side, threads=threads)] if peer else []),
    ]
    for make in makers:
        verify(make, case)
    sides: list[Side] = [make(case) for make in makers]
    timing = options.time(sides, TASK, threads)
    ratio = timing.ratio("torch") if peer else None
    again = timing.ratio("torch", "recompute") if peer else None
    grown = {side.name: memory(side.name, case, threads) for side in sides}
    seconds = {side.name: timing.spread(side.name) for side in sides}
    row = [str(case), str(threads), *(milliseconds(seconds[side.name].median) for side in sides)]
    if peer:
        row += [times(ratio), times(again)]
    section.rows.append([*row, *(f"{grown[side.name]:.0f}" for side in sides)])
    section.records.append(
        {
            "case": str(case),
            "threads": threads,
            "seconds": seconds,
            "ratio_to_torch": ratio,
            "recompute_ratio_to_torch": again,
            "megabytes": grown,
            "rounds": timing.seconds,
        }
    )
    progress(
        f"convlstm ({case}), {on_threads(threads)}: vs torch {times(ratio)}, "
        f"recompute {times(again)}, MB {grown}"
    )


def measure_windows(options: Options, case: Case, threads: int, section: Section) -> None:
    tbptt_fast.set_num_threads(threads)
    cut = replace(case, window=case.steps // 4)
    sides: list[Side] = [our_side(cut), our_side(case, "full")]
    verify(our_side, cut)
    timing = options.time(sides, TASK, threads)
    ratio = timing.ratio("full")
    full, ours = (milliseconds(timing.spread(name).median) for name in ("full", "ours"))
    section.rows.append([str(case), str(threads), full, ours, times(ratio)])
    section.records.append(
        {"case": str(case), "threads": threads, "ratio_to_full": ratio, "rounds": timing.seconds}
    )
    progress(f"convlstm windows ({case}), {on_threads(threads)}: vs full {times(ratio)}")


if __name__ == "__main__":
    print(peak_of_one_process(sys.argv[1:]))
