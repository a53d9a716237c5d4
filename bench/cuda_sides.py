"""What the benches of layers on a GPU share: sides that take turns, their errors, their rows.

A side is a call; "ours" and "cuDNN" are compared, others stand beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

from .options import progress
from .report import Section, times
from .timing import Spread

TURN_MILLISECONDS = 15.0
WORST_ERROR = 4.0

Call: TypeAlias = Callable[[], Any]
Limits: TypeAlias = dict[str, float]


def milliseconds_of(torch: Any, call: Call, calls: int) -> float:
    """Of one call, by events around `calls` of them."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / calls


def alternate(torch: Any, sides: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each side in each round; the order turns round every second time."""
    calls = {}
    for name, call in sides.items():
        call()  # whatever is set up once
        once = milliseconds_of(torch, call, 1)
        calls[name] = max(1, min(200, round(TURN_MILLISECONDS / max(once, 1e-3))))
    found: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(rounds):
        for name in sides if index % 2 == 0 else reversed(list(sides)):
            found[name].append(milliseconds_of(torch, sides[name], calls[name]))
    return found


def ratio(found: Mapping[str, list[float]], slow: str, fast: str = "ours") -> Spread:
    return Spread.of([a / b for a, b in zip(found[slow], found[fast], strict=True)])


def measure_limits(torch: Any) -> Limits:
    """TFLOP/s of a large product by its dtype, and GB/s of a copy, read and written bytes."""
    size = 8192
    limits = {}
    for dtype in ("float32", "bfloat16"):
        a = torch.randn(size, size, device="cuda", dtype=getattr(torch, dtype))
        product = min(milliseconds_of(torch, partial(torch.matmul, a, a), 3) for _ in range(5))
        limits[dtype] = 2 * size**3 / product / 1e9
    source = torch.empty(1 << 28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    copy = min(milliseconds_of(torch, lambda: target.copy_(source), 3) for _ in range(5))
    return limits | {"gbs": 2 * source.nbytes / copy / 1e6}


def verify(name: str, ours: list[Any], theirs: list[Any], exact: list[Any]) -> float:
    """Our largest error in units of cuDNN's; an error where it is above WORST_ERROR."""
    worst = 0.0
    for mine, other, truth in zip(ours, theirs, exact, strict=True):
        floor = (1e-6 if mine.itemsize == 4 else 1e-3) * float(truth.abs().max())
        error = float((mine.double() - truth).abs().max())
        worst = max(worst, error / max(float((other.double() - truth).abs().max()), floor))
        if not worst <= WORST_ERROR:
            raise SystemExit(f"{name}: our error is {worst:.2f} times cuDNN's")
    return worst


def add(
    section: Section,
    label: list[str],
    found: Mapping[str, list[float]],
    floor: float | None,
    error: float | None,
) -> None:
    spread, medians = ratio(found, "cuDNN"), {n: Spread.of(v).median for n, v in found.items()}
    progress(f"{', '.join(label)}: {times(spread)}")
    more = [] if floor is None else [f"{floor:.3g}"]
    more += [] if error is None else [f"{error:.2f}"]
    section.rows.append([*label, *(f"{m:.3g}" for m in medians.values()), *more, times(spread)])
    section.records.append(
        {"label": label, "milliseconds": found, "floor": floor, "error": error, "ratio": spread}
    )
