"""Convolutions on a GPU: our layer and PyTorch's (cuDNN), in both layouts, for `bench.cuda`."""

from __future__ import annotations

from dataclasses import replace
from statistics import geometric_mean
from typing import Any

from .conv_shapes import RESNET_50, Convolution
from .cuda_sides import Call, Limits, add, alternate, ratio, verify
from .options import Options
from .report import Section


def section(torch: Any, options: Options, limits: Limits, dtype: str) -> Section:
    name = "TF32" if dtype == "float32" else dtype
    made = Section(
        title=f"Convolutions of ResNet-50 on a GPU, forward + backward, {name}",
        columns=[
            "N, C, size², K, R/stride",
            "layout",
            "ours ms",
            "cuDNN ms",
            "floor ms",
            "error",
            "vs cuDNN",
        ],
        note="cuDNN with the algorithms that its search found; error: ours in units of cuDNN's.",
    )
    for layout in ("NCHW", "NHWC"):
        ratios = []
        for plain in RESNET_50[:3] if options.quick else RESNET_50:
            shape = replace(plain, layout=layout)
            sides, exact = sides_of(torch, shape, dtype)
            label = f"{shape.name}, {layout}, {name}"
            error = verify(label, sides["ours"](), sides["cuDNN"](), exact())
            found = alternate(torch, sides, options.rounds)
            floor = floor_milliseconds(shape, limits, dtype)
            add(made, [shape.name, layout], found, floor, error)
            ratios.append(ratio(found, "cuDNN").median)
        summary = f"{geometric_mean(ratios):.2f}; {min(ratios):.2f}"
        made.rows.append(["geometric mean; least", layout, "", "", "", "", summary])
    return made


def sides_of(torch: Any, shape: Convolution, dtype: str) -> tuple[dict[str, Call], Call]:
    """Forward and backward pass of our layer and PyTorch's, and PyTorch's in float64."""
    import tbptt_fast.torch as ours

    torch.manual_seed(0)
    sizes = (shape.inputs, shape.outputs, shape.kernel)
    kind = getattr(torch, dtype)
    theirs, mine, exact = (
        layer(*sizes, **shape.options).cuda().to(kind)
        for layer in (torch.nn.Conv2d, ours.Conv2d, torch.nn.Conv2d)
    )
    mine.load_state_dict(theirs.state_dict())
    exact.load_state_dict(theirs.state_dict())
    if (reason := mine.missing_kernel()) is not None:
        raise SystemExit(f"bench cuda: {reason}")
    last = shape.layout == "NHWC"
    order = torch.channels_last if last else torch.contiguous_format
    theirs.to(memory_format=order)  # type: ignore[call-overload]
    images = [shape.batch, shape.inputs, shape.size, shape.size]
    results = [shape.batch, shape.outputs, shape.out_size, shape.out_size]
    x, grad = (
        torch.randn(s, device="cuda").to(kind, memory_format=order) for s in (images, results)
    )

    def call_of(module: Any, x: Any, grad: Any) -> Call:
        leaves = [x.requires_grad_(), *module.parameters()]

        def call() -> list[Any]:
            out = module(x)
            return [out.detach(), *torch.autograd.grad(out, leaves, grad)]

        return call

    sides = {"ours": call_of(mine, x, grad), "cuDNN": call_of(theirs, x, grad)}
    return sides, call_of(exact.double(), x.detach().double(), grad.double())


def floor_milliseconds(shape: Convolution, limits: Limits, dtype: str) -> float:
    """What nothing can be faster than: each of three passes reads two of x, y, w and writes one."""
    images = shape.batch * shape.inputs * shape.size**2
    results = shape.batch * shape.outputs * shape.out_size**2
    weights = shape.outputs * (shape.inputs // shape.groups) * shape.kernel**2
    values = 3 * (images + results + weights)
    nbytes = values * (2 if dtype == "bfloat16" else 4)
    return max(3 * shape.flops / limits[dtype] / 1e9, nbytes / limits["gbs"] / 1e6)
