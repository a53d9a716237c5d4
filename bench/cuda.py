"""Layers on a GPU: `tbptt_fast.torch` against PyTorch's own (cuDNN).

Both are in TF32, or both in bfloat16. Every side is a module from `module(x)`
to the gradients of x and all parameters. Errors against PyTorch's float64 layer, on the same
numbers, come first: ours may be at most four times cuDNN's. Times are medians of rounds in which
the sides take turns, by CUDA events; floors count bytes and operations at the bandwidth and the
dtype's peak of the run.
"""

from __future__ import annotations

import time
from statistics import geometric_mean
from typing import Any

from tbptt_fast import cuda
from tbptt_fast._types import Layout

from . import cuda_convlstm, cuda_convolution
from .convlstm import CASES as CONVLSTM
from .cuda_sides import Call, Limits, add, alternate, measure_limits, ratio, verify
from .options import Options, progress
from .report import Section
from .timing import Spread

CELLS = {"lstm": 4, "gru": 3}
STEPS, BATCHES, UNITS = (512, 1024), (1, 8, 32, 128), (128, 256, 512, 1024)
CHUNK, RESET_RATE = 64, 0.03


def run(options: Options) -> list[Section]:
    if (reason := cuda.why_not()) is not None:
        raise SystemExit(f"bench cuda needs a GPU: {reason}")
    if "torch" not in options.peers:
        raise SystemExit("bench cuda needs PyTorch, whose layers it compares with")
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("bench cuda needs a PyTorch that sees the GPU")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True  # its fastest algorithms
    torch.backends.cuda.matmul.allow_tf32 = True
    limits = measure_limits(torch)
    progress(
        f"{torch.cuda.get_device_name()}: {limits['float32']:.0f} TFLOP/s in TF32, "
        f"{limits['bfloat16']:.0f} in bfloat16, {limits['gbs']:.0f} GB/s"
    )
    return [
        whole_sequences(torch, options, limits, "float32"),
        whole_sequences(torch, options, limits, "bfloat16"),
        chunks(torch, options),
        resets(torch, options),
        cuda_convolution.section(torch, options, limits, "float32"),
        cuda_convolution.section(torch, options, limits, "bfloat16"),
        recurrent_images(torch, options),
        overhead(torch, options),
    ]


# --- Sides --------------------------------------------------------------------------------------


def layers(torch: Any, cell: str, size: int, dtype: str = "float32") -> dict[str, Any]:
    """Our module and PyTorch's with the same weights, and PyTorch's in float64."""
    import tbptt_fast.torch as ours

    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    theirs = getattr(torch.nn, cell.upper())(size, size).cuda().to(kind)
    mine = getattr(ours, cell.upper())(size, size).cuda().to(kind)
    exact = getattr(torch.nn, cell.upper())(size, size).cuda().double()
    mine.load_state_dict(theirs.state_dict())
    exact.load_state_dict(theirs.state_dict())
    if (reason := mine.missing_kernel()) is not None:
        raise SystemExit(f"bench cuda: {reason}")
    return {"ours": mine, "cuDNN": theirs, "exact": exact}


def both_ways(torch: Any, module: Any, x: Any, grad: Any, **options: Any) -> Call:
    leaves = [x, *module.parameters()]

    def call() -> list[Any]:
        out, _ = module(x, **options)
        return [out, *torch.autograd.grad(out, leaves, grad)]

    return call


def in_chunks(torch: Any, module: Any, x: Any, grad: Any) -> Call:
    """The usual chunked TBPTT: a call for each chunk, the state detached, gradients added up."""
    parts = [part.detach().requires_grad_() for part in x.detach().split(CHUNK)]
    grads, parameters = grad.split(CHUNK), list(module.parameters())

    def call() -> list[Any]:
        state, outs, by_x, total = None, [], [], None
        for part, by_out in zip(parts, grads, strict=True):
            out, state = module(part, state)
            found = torch.autograd.grad(out, [part, *parameters], by_out)
            state = tuple(s.detach() for s in state) if type(state) is tuple else state.detach()
            outs.append(out.detach())
            by_x.append(found[0])
            total = found[1:] if total is None else torch._foreach_add(total, found[1:])
        return [torch.cat(outs), torch.cat(by_x), *(total or ())]

    return call


def split_and_pad(torch: Any, module: Any, x: Any, grad: Any, is_init: Any) -> Call:
    """Episodes as rows of a padded batch; where they lie is found beforehand, untimed."""
    steps, batch = is_init.shape
    starts = is_init.clone()
    starts[0] = True
    order = starts.T.reshape(-1).cumsum(0) - 1  # episode of (b, t)
    first = starts.T.reshape(-1).nonzero()[:, 0]
    place = torch.arange(order.numel(), device="cuda") - first[order]
    rows, longest = int(order[-1]) + 1, int(place.max()) + 1
    step = place.view(batch, steps).T
    row = order.view(batch, steps).T
    leaves = [x, *module.parameters()]

    def call() -> list[Any]:
        padded = x.new_zeros(longest, rows, x.shape[-1]).index_put((step, row), x)
        out = module(padded)[0][step, row]
        return [out, *torch.autograd.grad(out, leaves, grad)]

    return call


def data(torch: Any, steps: int, batch: int, size: int, dtype: str = "float32") -> tuple[Any, Any]:
    torch.manual_seed(steps + batch + size)
    kind = getattr(torch, dtype)
    x = torch.randn(steps, batch, size, device="cuda").to(kind).requires_grad_()
    return x, torch.randn(steps, batch, size, device="cuda").to(kind)


def floor_milliseconds(cell: str, shape: tuple[int, int, int], limits: Limits, dtype: str) -> float:
    """What nothing can be faster than: forward and backward, input product and all gradients."""
    steps, batch, size = shape
    gates = CELLS[cell]
    operations = 3 * 2 * steps * batch * gates * size * (2 * size)
    kept = gates + (cell == "lstm")  # written, then read; x, out and their gradients beside them
    values = steps * batch * size * (2 * kept + 6) + 4 * gates * size * size
    nbytes = values * (2 if dtype == "bfloat16" else 4)
    return max(operations / limits[dtype] / 1e9, nbytes / limits["gbs"] / 1e6)


# --- Sections -----------------------------------------------------------------------------------


def whole_sequences(torch: Any, options: Options, limits: Limits, dtype: str) -> Section:
    name = "TF32" if dtype == "float32" else dtype
    section = Section(
        title=f"Layers on a GPU, forward + backward, {name}",
        columns=["cell", "T, B, I = H", "ours ms", "cuDNN ms", "floor ms", "error", "vs cuDNN"],
        note=f"{torch.cuda.get_device_name()}; error: ours in units of cuDNN's.",
    )
    ratios: dict[str, list[float]] = {cell: [] for cell in CELLS}
    batches, units = ((8,), (128, 512)) if options.quick else (BATCHES, UNITS)
    for cell in CELLS:
        for steps in STEPS[: 1 if options.quick else 2]:
            for batch in batches:
                for size in units:
                    shape = (steps, batch, size)
                    x, grad = data(torch, *shape, dtype)
                    made = layers(torch, cell, size, dtype)
                    sides = {n: both_ways(torch, made[n], x, grad) for n in ("ours", "cuDNN")}
                    wide = x.detach().double().requires_grad_()
                    exact = both_ways(torch, made["exact"], wide, grad.double())()
                    label = f"{cell} {name} {steps}, {batch}, {size}"
                    error = verify(label, sides["ours"](), sides["cuDNN"](), exact)
                    del exact, wide
                    found = alternate(torch, sides, options.rounds)
                    add(
                        section,
                        [cell.upper(), f"{steps}, {batch}, {size}"],
                        found,
                        floor_milliseconds(cell, shape, limits, dtype),
                        error,
                    )
                    ratios[cell].append(ratio(found, "cuDNN").median)
    for cell, values in ratios.items():
        section.rows.append(
            [
                cell.upper(),
                "geometric mean; least",
                "",
                "",
                "",
                "",
                f"{geometric_mean(values):.2f}; {min(values):.2f}",
            ]
        )
    return section


def chunks(torch: Any, options: Options) -> Section:
    section = Section(
        title=f"Chunked TBPTT on a GPU, K = {CHUNK}, forward + backward",
        columns=["cell", "T, B, I = H", "ours ms", "cuDNN's chunks ms", "vs cuDNN"],
    )
    for cell in CELLS:
        for steps, batch, size in ((512, 8, 128), (1024, 8, 256), (1024, 32, 512))[
            : 1 if options.quick else 3
        ]:
            x, grad = data(torch, steps, batch, size)
            made = layers(torch, cell, size)
            wide = x.detach().double().requires_grad_()
            exact = in_chunks(torch, made["exact"], wide, grad.double())()
            sides = {
                "ours": both_ways(torch, made["ours"], x, grad, truncation=CHUNK),
                "cuDNN": in_chunks(torch, made["cuDNN"], x, grad),
            }
            label = f"{cell} in chunks {steps}, {batch}, {size}"
            verify(label, sides["ours"](), sides["cuDNN"](), exact)
            found = alternate(torch, sides, options.rounds)
            add(section, [cell.upper(), f"{steps}, {batch}, {size}"], found, None, None)
    return section


def resets(torch: Any, options: Options) -> Section:
    section = Section(
        title=f"Resets on a GPU ({RESET_RATE:.0%} of the steps), forward + backward",
        columns=[
            "cell",
            "T, B, I = H",
            "ours ms",
            "split-and-pad ms",
            "ours without resets ms",
            "vs split-and-pad",
        ],
        note="Split-and-pad: episodes as rows of a padded batch, through cuDNN.",
    )
    for cell in CELLS:
        for steps, batch, size in ((512, 32, 256), (1024, 8, 512))[: 1 if options.quick else 2]:
            x, grad = data(torch, steps, batch, size)
            made = layers(torch, cell, size)
            is_init = torch.rand(steps, batch, device="cuda") < RESET_RATE
            wide = x.detach().double().requires_grad_()
            exact = split_and_pad(torch, made["exact"], wide, grad.double(), is_init)()
            sides = {
                "ours": both_ways(torch, made["ours"], x, grad, is_init=is_init),
                "cuDNN": split_and_pad(torch, made["cuDNN"], x, grad, is_init),
                "without resets": both_ways(torch, made["ours"], x, grad),
            }
            label = f"{cell} with resets {steps}, {batch}, {size}"
            verify(label, sides["ours"](), sides["cuDNN"](), exact)
            found = alternate(torch, sides, options.rounds)
            add(section, [cell.upper(), f"{steps}, {batch}, {size}"], found, None, None)
    return section


def recurrent_images(torch: Any, options: Options) -> Section:
    columns = ["layout", "T, B, C, H, size, kernel", "ours ms", "cuDNN's cell ms", "vs cuDNN"]
    title = "ConvLSTM on a GPU, forward + backward, TF32"
    section = Section(title=title, columns=columns, note="The usual cell: a convolution a step.")
    layouts: tuple[Layout, ...] = ("NCHW", "NHWC")
    for layout in layouts:
        for case in CONVLSTM[: 1 if options.quick else None]:
            made = cuda_convlstm.modules(torch, case, layout)
            x, grad = cuda_convlstm.data(torch, case, layout)
            sides = {name: both_ways(torch, made[name], x, grad) for name in ("ours", "cuDNN")}
            wide = x.detach().double().requires_grad_()
            exact = both_ways(torch, made["exact"], wide, grad.double())()
            verify(f"ConvLSTM {layout} {case}", sides["ours"](), sides["cuDNN"](), exact)
            found = alternate(torch, sides, options.rounds)
            add(section, [layout, str(case)], found, None, None)
    return section


def overhead(torch: Any, options: Options) -> Section:
    """Microseconds of the host, from one call to the next, while the device keeps up."""
    section = Section(
        title="Call overhead on a GPU, T = B = 1, I = H = 32, forward without a tape",
        columns=["call", "µs"],
        note="Host time of a call; nothing is waited for.",
    )
    x, _ = data(torch, 1, 1, 32)
    made = layers(torch, "lstm", 32)
    x, weights = x.detach(), [w.detach() for w in made["ours"].parameters()]

    def primitive() -> Any:
        return cuda.lstm_forward(x, None, *weights, training=False)

    calls: dict[str, Call] = {
        "tbptt_fast.cuda.lstm_forward": primitive,
        "tbptt_fast.torch.LSTM": lambda: made["ours"](x),
        "torch.nn.LSTM": lambda: made["cuDNN"](x),
    }
    with torch.no_grad():
        for name, call in calls.items():
            micros = []
            for _ in range(options.rounds):
                torch.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(200):
                    call()
                micros.append((time.perf_counter() - start) / 200 * 1e6)
                torch.cuda.synchronize()
            section.rows.append([name, f"{Spread.of(micros).median:.1f}"])
            section.records.append({"call": name, "microseconds": micros})
            progress(f"{name}: {section.rows[-1][1]} µs")
    return section
