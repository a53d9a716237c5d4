"""Convolutions against PyTorch's, in both layouts, and the training step of a small network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import tbptt_fast
from tbptt_fast import _native
from tbptt_fast import reference_convolution as reference

from . import small_network
from .conv_shapes import GROUPS, SMALL, Convolution
from .options import Options, on_threads, progress
from .problem import Array
from .report import Section, milliseconds, percent, times
from .timing import LocalSide, Side, Spread, Timing

WHOLE = "forward+backward"
PARTS = ("forward", "backward data", "backward weights")
LAYOUTS = ("NCHW", "NHWC")
EXTRA_BYTES = 2 << 20  # of a call, per thread, beside the packed weights


def run(options: Options) -> list[Section]:
    groups: dict[str, list[Convolution]] = (
        {"Common shapes": SMALL} if options.quick else dict(GROUPS)
    )
    sections, summary = [], summary_section()
    for title, shapes in groups.items():
        section = Section(
            title=f"Convolutions, {title}",
            columns=[
                "N, C, size², K, R/stride",
                "layout",
                "threads",
                *(f"{part} ms" for part in PARTS),
                "extra MiB",
                "all ms",
                "PyTorch ms",
                "vs PyTorch",
            ],
            note="In brackets the share of the FMA peak that the direct way would need for this "
            "time: Winograd's may exceed 100 %. Extra memory: the most of the three calls, beside "
            "packed weights, marked where it is more than 2 MiB a thread. PyTorch runs forward and "
            "autograd.",
        )
        for threads in options.threads:
            best: list[float] = []
            for shape in shapes:
                found = [
                    measure(options, replace(shape, layout=layout), threads, section)
                    for layout in LAYOUTS
                ]
                if "torch" in options.peers:
                    best.append(min(found)[1])
            if best:
                mean = float(np.exp(np.mean(np.log(best))))
                row = [title, str(threads), f"{min(best):.2f}", f"{mean:.2f}"]
                summary.rows.append(row)
                summary.records.append({"shapes": title, "threads": threads, "ratios": best})
        sections.append(section)
    return [*sections, *([summary] if summary.rows else []), small_network.run(options)]


def summary_section() -> Section:
    return Section(
        title="Convolutions, summary",
        columns=["shapes", "threads", "smallest vs PyTorch", "geometric mean"],
        note="Forward + backward, each shape in the layout in which PyTorch is faster.",
    )


def measure(
    options: Options, problem: Convolution, threads: int, section: Section
) -> tuple[float, float]:
    """Adds a row; returns PyTorch's seconds and how many times as fast ours is."""
    tbptt_fast.set_num_threads(threads)
    verify(problem)
    extra = extra_memory(problem)
    sides: list[Side] = [our_side(problem)]
    if "torch" in options.peers:
        sides.append(torch_side(problem, threads))
    parts = {part: options.time(sides[:1], part, threads) for part in PARTS}
    whole = options.time(sides, WHOLE, threads)
    ratio: Spread | None = whole.ratio("torch") if len(sides) > 1 else None
    theirs = whole.spread("torch").median if ratio else 0.0

    def cell(timing: Timing, flops: float) -> str:
        return f"{milliseconds(timing.spread('ours').median)} ({percent(timing.share(flops))})"

    section.rows.append(
        [
            problem.name,
            problem.layout,
            str(threads),
            *(cell(parts[part], problem.flops) for part in PARTS),
            f"{extra / 2**20:.1f}" + (" (over)" if extra > EXTRA_BYTES * threads else ""),
            cell(whole, 3 * problem.flops),
            milliseconds(theirs) if ratio else "—",
            times(ratio),
        ]
    )
    section.records.append(
        {
            "shape": problem.name,
            "layout": problem.layout,
            "threads": threads,
            "seconds": {name: timing.seconds for name, timing in {**parts, WHOLE: whole}.items()},
            "peaks": whole.peaks,
            "ratio": ratio,
            "extra_bytes": extra,
        }
    )
    progress(
        f"conv ({problem.name}) {problem.layout}, {on_threads(threads)}: "
        f"{cell(whole, 3 * problem.flops)} ms, vs PyTorch {times(ratio)}"
    )
    return theirs, ratio.median if ratio else 0.0


def our_side(problem: Convolution, arrays: dict[str, Array] | None = None) -> LocalSide:
    """On the problem's arrays or on others of the same shapes."""
    arrays = arrays or problem.arrays
    options = {**problem.options, "layout": problem.layout, "algo": problem.algo}
    x, w, b, grad = (arrays[name] for name in ("x", "w", "b", "grad"))

    def forward() -> Array:
        return tbptt_fast.conv2d(x, w, b, **options)

    def backward(*needs: Any) -> Any:
        return tbptt_fast.conv2d_backward(grad, x, w, **options, needs=needs)

    def everything() -> dict[str, Array]:
        return {"y": forward(), **backward("x", "w", "b")._asdict()}

    tasks = {
        "forward": forward,
        "backward data": lambda: backward("x"),
        "backward weights": lambda: backward("w", "b"),
        WHOLE: everything,
    }
    return LocalSide("ours", everything, tasks)


def torch_side(problem: Convolution, threads: int) -> LocalSide:
    import torch

    torch.set_num_threads(threads)
    last = problem.layout == "NHWC"
    layout = torch.channels_last if last else torch.contiguous_format

    def tensor(name: str) -> torch.Tensor:
        array = problem.arrays[name]
        if last and name in ("x", "grad"):
            array = np.moveaxis(array, -1, 1)
        found = torch.from_numpy(array)
        return found if name == "b" else found.contiguous(memory_format=layout)

    leaves = [tensor(name).requires_grad_() for name in ("x", "w", "b")]
    grad = tensor("grad")

    def everything() -> None:
        x, w, b = leaves
        y = torch.nn.functional.conv2d(x, w, b, **problem.options)
        torch.autograd.backward([y], [grad])

    def clear() -> None:
        for leaf in leaves:
            leaf.grad = None

    return LocalSide("torch", dict, {WHOLE: everything}, clear)


def extra_memory(problem: Convolution) -> int:
    """The most bytes that one of the calls takes beside its arrays and packed weights."""
    arrays, packed = problem.arrays, tbptt_fast.pack_conv2d(problem.arrays["w"])
    options = {**problem.options, "layout": problem.layout, "algo": problem.algo}
    x, w, b, grad = (arrays[name] for name in ("x", "w", "b", "grad"))

    def forward(w: Any) -> Any:
        return tbptt_fast.conv2d(x, w, b, **options)

    def backward(w: Any, *needs: Any) -> Any:
        return tbptt_fast.conv2d_backward(grad, x, w, **options, needs=needs)

    def weights_kept(call: Any) -> int:
        """Bytes of packed weights, or of a copy of them, that such a call needs."""
        before = _native.memory_in_use()
        call(packed)
        return max(_native.memory_in_use() - before, arrays["w"].nbytes)

    most = 0
    calls: list[tuple[Any, int]] = [
        (lambda: forward(w), weights_kept(forward)),
        (lambda: backward(w, "x"), weights_kept(lambda w: backward(w, "x"))),
        (lambda: backward(w, "w", "b"), arrays["w"].nbytes),  # their gradient's sums
    ]
    for call, kept in calls:
        _native.reset_memory_peak()
        result = call()
        most = max(most, _native.memory_peak() - _native.memory_in_use() - kept)
        del result
    return most


def verify(problem: Convolution) -> None:
    """Raise unless ours equals the float64 oracle, on the first image.

    The gradient of all others is zero, so that those by the weights and the bias are its alone.
    """
    arrays = {name: array.copy() for name, array in problem.arrays.items()}
    arrays["grad"][1:] = 0
    last = problem.layout == "NHWC"

    def first(array: Array) -> Array:
        return np.moveaxis(array[:1], -1, 1) if last else array[:1]

    x, grad = first(arrays["x"]), first(arrays["grad"])
    size = (problem.kernel // 2,) * 2
    options: dict[str, Any] = {
        "stride": (problem.stride,) * 2,
        "padding": (size, size),
        "dilation": (1, 1),
        "groups": problem.groups,
    }
    found = our_side(problem, arrays).result()
    expected = dict(
        zip("xwb", reference.conv_backward(grad, x, arrays["w"], **options), strict=True),
        y=reference.conv(x, arrays["w"], arrays["b"], **options),
    )
    for name, value in found.items():
        ours = first(value) if name in "xy" else value
        error = float(np.abs(ours - expected[name]).max())
        scale = float(np.abs(expected[name]).max())
        if not error <= 1e-4 * scale:
            raise AssertionError(f"conv {problem}: {name} is off by {error:.3g}, of {scale:.3g}")
