"""Convolutions against PyTorch's, in both layouts: the shapes of small networks, the layers of
ResNet-50 and MobileNet-V1."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

import tbptt_fast
from tbptt_fast import reference_convolution as reference

from .options import Options, on_threads, progress
from .problem import Array
from .report import Section, milliseconds, percent, times
from .timing import LocalSide, Side, Spread, Timing

WHOLE = "forward+backward"
PARTS = ("forward", "backward data", "backward weights")
LAYOUTS = ("NCHW", "NHWC")


@dataclass(frozen=True)
class Convolution:
    """N images of C channels, K kernels of R·R, padded so that stride 1 keeps the size."""

    batch: int
    inputs: int
    size: int
    outputs: int
    kernel: int
    stride: int = 1
    groups: int = 1
    layout: str = "NCHW"

    @property
    def name(self) -> str:
        shape = f"{self.batch}, {self.inputs}, {self.size}², {self.outputs}, {self.kernel}"
        return shape + f"/{self.stride}" + (f", {self.groups} groups" if self.groups > 1 else "")

    @property
    def options(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.kernel // 2, "groups": self.groups}

    @property
    def flops(self) -> float:
        """Of one of the three parts."""
        pixels = self.batch * self.out_size**2
        return 2.0 * pixels * self.outputs * (self.inputs // self.groups) * self.kernel**2

    @property
    def out_size(self) -> int:
        return (self.size + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1

    @cached_property
    def arrays(self) -> dict[str, Array]:
        """x, w, b and the gradient by the output; images in the layout of the call."""
        rng = np.random.default_rng(1)
        depth = self.inputs // self.groups
        images, results = (
            (self.batch, channels, size, size)
            for channels, size in ((self.inputs, self.size), (self.outputs, self.out_size))
        )
        made = {
            "x": rng.standard_normal(images, np.float32),
            "w": rng.standard_normal((self.outputs, depth, self.kernel, self.kernel), np.float32),
            "b": rng.standard_normal(self.outputs, np.float32),
            "grad": rng.standard_normal(results, np.float32),
        }
        made["w"] *= (depth * self.kernel**2) ** -0.5
        if self.layout == "NHWC":
            for name in ("x", "grad"):
                made[name] = np.ascontiguousarray(np.moveaxis(made[name], 1, -1))
        return made


SMALL = [
    Convolution(32, 1, 28, 32, 3),
    Convolution(32, 32, 14, 64, 3),
    Convolution(1, 32, 8, 32, 3),
]
LARGE = [
    Convolution(16, 3, 224, 64, 7, 2),
    Convolution(16, 64, 56, 64, 3),
    Convolution(16, 64, 56, 256, 1),
    Convolution(16, 128, 28, 128, 3),
    Convolution(16, 256, 14, 256, 3),
    Convolution(16, 512, 7, 512, 3),
    Convolution(16, 128, 28, 128, 3, 1, 128),
    Convolution(16, 128, 56, 128, 3, 2),
]
RESNET = [
    Convolution(16, 64, 56, 64, 1),
    Convolution(16, 256, 56, 64, 1),
    Convolution(16, 256, 56, 128, 1),
    Convolution(16, 256, 56, 512, 1, 2),
    Convolution(16, 128, 28, 512, 1),
    Convolution(16, 512, 28, 128, 1),
    Convolution(16, 512, 28, 256, 1),
    Convolution(16, 512, 28, 1024, 1, 2),
    Convolution(16, 256, 28, 256, 3, 2),
    Convolution(16, 256, 14, 1024, 1),
    Convolution(16, 1024, 14, 256, 1),
    Convolution(16, 1024, 14, 512, 1),
    Convolution(16, 1024, 14, 2048, 1, 2),
    Convolution(16, 512, 14, 512, 3, 2),
    Convolution(16, 512, 7, 2048, 1),
    Convolution(16, 2048, 7, 512, 1),
]
MOBILENET = [
    Convolution(16, 3, 224, 32, 3, 2),
    Convolution(16, 32, 112, 32, 3, 1, 32),
    Convolution(16, 32, 112, 64, 1),
    Convolution(16, 64, 112, 64, 3, 2, 64),
    Convolution(16, 64, 56, 128, 1),
    Convolution(16, 128, 56, 128, 3, 1, 128),
    Convolution(16, 128, 56, 128, 1),
    Convolution(16, 128, 56, 128, 3, 2, 128),
    Convolution(16, 128, 28, 256, 1),
    Convolution(16, 256, 28, 256, 3, 1, 256),
    Convolution(16, 256, 28, 256, 1),
    Convolution(16, 256, 28, 256, 3, 2, 256),
    Convolution(16, 256, 14, 512, 1),
    Convolution(16, 512, 14, 512, 3, 1, 512),
    Convolution(16, 512, 14, 512, 1),
    Convolution(16, 512, 14, 512, 3, 2, 512),
    Convolution(16, 512, 7, 1024, 1),
    Convolution(16, 1024, 7, 1024, 3, 1, 1024),
    Convolution(16, 1024, 7, 1024, 1),
]
GROUPS = {"Common shapes": SMALL + LARGE, "ResNet-50": RESNET, "MobileNet-V1": MOBILENET}


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
                "all ms",
                "PyTorch ms",
                "vs PyTorch",
            ],
            note="In brackets our share of the FMA peak. PyTorch runs forward and autograd.",
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
    return [*sections, *([summary] if summary.rows else [])]


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
    verify(replace(problem, batch=1))
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
        }
    )
    progress(
        f"conv ({problem.name}) {problem.layout}, {on_threads(threads)}: "
        f"{cell(whole, 3 * problem.flops)} ms, vs PyTorch {times(ratio)}"
    )
    return theirs, ratio.median if ratio else 0.0


def our_side(problem: Convolution) -> LocalSide:
    arrays, options = problem.arrays, {**problem.options, "layout": problem.layout}
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


def verify(problem: Convolution) -> None:
    """Raise unless ours equals the float64 oracle, on one image."""
    arrays = problem.arrays
    last = problem.layout == "NHWC"

    def first(array: Array) -> Array:
        return np.moveaxis(array, -1, 1) if last and array.ndim == 4 else array

    x, grad = first(arrays["x"]), first(arrays["grad"])
    size = (problem.kernel // 2,) * 2
    options: dict[str, Any] = {
        "stride": (problem.stride,) * 2,
        "padding": (size, size),
        "dilation": (1, 1),
        "groups": problem.groups,
    }
    found = our_side(problem).result()
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
