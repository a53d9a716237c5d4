"""Fused updates on devices, step by step, against the oracle and the CPU's kernels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import cuda
from tbptt_fast import reference_layers as reference

from .cases import DTYPES, assert_close, assert_identical
from .cuda_cases import CudaDevice, Device, EmulatedDevice, unaligned
from .test_optimizers import CLIPS, OPTIMIZERS, SHAPES, VARIANTS, draw, step_of

# The op, its options, and whether the third array of a parameter is used, too.
CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    name: (op, options, False) for name, (op, _, options, _) in OPTIMIZERS.items()
} | VARIANTS
SLOTS = {"sgd": 1, "rmsprop": 2, "adam": 2}
all_cases = pytest.mark.parametrize("name", CASES)
dtypes = pytest.mark.parametrize("dtype", DTYPES)

Lists = list[list[Any]]


def make_lists(name: str, dtype: str, shapes: Any = SHAPES) -> Lists:
    """Parameters and the optimizer's own arrays, which are zeros."""
    op, _, third = CASES[name]
    params = draw(0, dtype, tuple(shapes))
    return [params, *([np.zeros_like(a) for a in params] for _ in range(SLOTS[op] + third))]


def copied(lists: Lists, dtype: str | None = None) -> Lists:
    return [[np.array(a, dtype or a.dtype) for a in arrays] for arrays in lists]


def on_device(device: Device, lists: Lists) -> Lists:
    return [[device.array(a) for a in arrays] for arrays in lists]


def back(device: Device, lists: Lists) -> Lists:
    return [[device.numpy(a) for a in arrays] for arrays in lists]


def check(actual: Lists, expected: Lists, count: int, eps: float) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert_close(a, b, "gradient", length=count**2, eps=eps)


STEPPED = [("float32", clip) for clip in CLIPS] + [("float64", CLIPS[3])]


@all_cases
@pytest.mark.parametrize(("dtype", "clip"), STEPPED, ids=str)
def test_every_step_equals_the_oracle(
    device: Device, name: str, dtype: str, clip: dict[str, float]
) -> None:
    op, options, _ = CASES[name]
    start, eps = make_lists(name, dtype), float(np.finfo(dtype).eps)
    ours, host, theirs = on_device(device, copied(start)), copied(start), copied(start, "float64")
    for count in range(1, 4):
        grads = draw(count, dtype)
        given = [device.array(g) for g in grads]
        norm = step_of(cuda, op, (ours[0], given, *ours[1:]), count, **options, **clip)
        wanted = step_of(reference, op, (theirs[0], grads, *theirs[1:]), count, **options, **clip)
        step_of(tbptt_fast, op, (host[0], grads, *host[1:]), count, **options, **clip)
        norm = device.numpy(norm)
        assert (norm.dtype, norm.shape) == (np.float64, ())
        assert norm == pytest.approx(wanted.norm, rel=1e-12)
        check(back(device, ours), theirs, count, eps)
        check(back(device, ours), host, count, eps)


def mixed_sizes(count: int) -> list[tuple[int, ...]]:
    """Around vectors and blocks, none, and what takes several blocks."""
    sizes = [1, 7, 0, 33, 64, 3, 4097, 5, 16, 9000, 2, 4096]
    return [(sizes[i % len(sizes)] if i < 24 else 1 + i % 5,) for i in range(count)]


MANY = [
    (count, name, dtype)
    for count in (12, 65, 610)
    for name in ("sgd-momentum", "rmsprop-centered-momentum", "adam-amsgrad")
    for dtype in DTYPES
    if count < 600 or (name, dtype) == ("adam-amsgrad", "float32")
]


@pytest.mark.parametrize(("count", "name", "dtype"), MANY)
def test_many_parameters(device: Device, count: int, name: str, dtype: str) -> None:
    """Of mixed sizes and alignment; more than one list holds; in any order of threads."""
    op, options, _ = CASES[name]
    start = make_lists(name, dtype, mixed_sizes(count))
    grads = draw(1, dtype, tuple(mixed_sizes(count)))
    start = [[unaligned(a) if i % 3 == 1 else a for i, a in enumerate(x)] for x in start]
    grads = [unaligned(g, 1 + i % 2) if i % 4 == 2 else g for i, g in enumerate(grads)]
    clip = {"max_norm": 0.5, "clip_value": 0.7}

    def run() -> tuple[Any, Lists]:
        moved = [[unaligned(a) if i % 3 == 1 else a.copy() for i, a in enumerate(x)] for x in start]
        lists = on_device(device, moved)
        given = [device.array(g) for g in grads]
        norm = step_of(cuda, op, (lists[0], given, *lists[1:]), 3, **options, **clip)
        return device.numpy(norm), back(device, lists)

    (norm, found), *others = device.runs(run) if count < 600 else [run()]
    for other_norm, other in others:
        assert other_norm.tobytes() == norm.tobytes()
        for a, b in zip(found, other, strict=True):
            assert [x.tobytes() for x in a] == [x.tobytes() for x in b]
    host = copied(start)
    wanted = step_of(tbptt_fast, op, (host[0], grads, *host[1:]), 3, **options, **clip)
    assert norm == pytest.approx(wanted.norm, rel=1e-12)
    check(found, host, 3, float(np.finfo(dtype).eps))


@all_cases
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_gradients_that_are_not_finite_skip_the_step(device: Device, name: str, bad: float) -> None:
    op, options, _ = CASES[name]
    start, grads = make_lists(name, "float32"), draw(1, "float32")
    grads[7][4000] = bad
    for clip in ({}, {"max_norm": 1.0, "clip_value": 0.5}):
        lists = on_device(device, copied(start))
        given = [device.array(g) for g in grads]
        norm = step_of(cuda, op, (lists[0], given, *lists[1:]), **options, **clip)
        assert np.isnan(device.numpy(norm))
        for ours, theirs in zip(back(device, lists), start, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(a, b)


# --- The norm -----------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_value", [None, 0.3])
@pytest.mark.parametrize("kinds", [("float32",), ("float64",), ("float32", "float64")], ids=str)
def test_global_norm(device: Device, kinds: tuple[str, ...], clip_value: float | None) -> None:
    arrays = [a for kind in kinds for a in draw(3, kind)]
    given = [device.array(a) for a in arrays]
    norm = device.numpy(cuda.global_norm(given, clip_value=clip_value))
    assert norm == pytest.approx(reference.global_norm(arrays, clip_value=clip_value), rel=1e-12)
    arrays[4 if len(kinds) == 1 else -1] = np.array([1.0, math.inf, 2.0], kinds[-1])
    given = [device.array(a) for a in arrays]
    assert np.isnan(device.numpy(cuda.global_norm(given, clip_value=clip_value)))


@dtypes
def test_the_norm_of_two_calls(device: Device, dtype: str) -> None:
    """`norm=` clips each call by the norm of all; a NaN skips it."""
    grads = draw(2, dtype)
    params = on_device(device, [draw(0, dtype)])[0]
    given = [device.array(g) for g in grads]
    norm = cuda.global_norm(given)
    for part in (slice(0, 4), slice(4, None)):
        same = cuda.sgd_step(params[part], given[part], None, lr=0.1, max_norm=0.5, norm=norm)
        assert device.numpy(same) == device.numpy(norm)
    host = draw(0, dtype)
    tbptt_fast.sgd_step(host, grads, None, lr=0.1, max_norm=0.5)
    check(back(device, [params]), [host], 1, float(np.finfo(dtype).eps))
    before = back(device, [params])
    nan = device.array(np.array(math.nan))
    cuda.sgd_step(params, given, None, lr=0.1, norm=nan)
    for a, b in zip(back(device, [params])[0], before[0], strict=True):
        np.testing.assert_array_equal(a, b)


# --- Memory -------------------------------------------------------------------------------------


@dtypes
def test_gradients_in_any_layout(device: Device, dtype: str) -> None:
    grad = np.random.default_rng(0).normal(size=(6, 4)).astype(dtype)
    param = device.array(np.zeros((4, 6), dtype))
    cuda.sgd_step([param], [device.array(grad).T], None, lr=1.0)
    np.testing.assert_array_equal(device.numpy(param), -grad.T)


@dtypes
def test_gradients_that_are_written(device: Device, dtype: str) -> None:
    """A gradient may be its own parameter; one that lies elsewhere in what is written is copied."""
    values = np.arange(1.0, 9.0).astype(dtype)
    param = device.array(values.copy())
    cuda.sgd_step([param], [param], None, lr=0.5)
    np.testing.assert_array_equal(device.numpy(param), values / 2)
    first, second = device.array(values.copy()), device.array(values.copy())
    cuda.sgd_step([first, second], [second, first], None, lr=1.0)
    np.testing.assert_array_equal(device.numpy(first), 0 * values)
    np.testing.assert_array_equal(device.numpy(second), 0 * values)


# --- Steps that are counted on the device -------------------------------------------------------


def adam_lists(device: Device, dtype: str) -> Lists:
    return on_device(device, copied(make_lists("adam-amsgrad", dtype)))


@dtypes
@pytest.mark.parametrize("counter", ["int64", "float32", "each", "each-float32"])
@pytest.mark.parametrize("decoupled", [False, True])
def test_a_replayed_step_goes_on_counting(
    device: Device, dtype: str, counter: str, decoupled: bool
) -> None:
    """The very same call again and again does what calls with step=1, 2, … do.

    That is what a graph makes of it: launches with the same parameters.
    """
    options: Any = {"lr": 0.05, "weight_decay": 0.1, "decoupled": decoupled, "eps": 0.1}
    options["max_norm"] = 0.9
    grads = [device.array(g) for g in draw(1, dtype)]
    eager, replayed = adam_lists(device, dtype), adam_lists(device, dtype)
    kind = "float32" if "float32" in counter else "int64"
    shape = () if counter != "int64" else (1,)
    counters = [device.array(np.zeros(shape, kind)) for _ in (grads if "each" in counter else "1")]
    step = counters if "each" in counter else counters[0]
    for count in range(1, 4):
        cuda.adam_step(eager[0], grads, *eager[1:], step=count, **options)
        cuda.adam_step(replayed[0], grads, *replayed[1:], step=step, **options)
        assert {device.numpy(c).item() for c in counters} == {count}
        a, b = back(device, replayed), back(device, eager)
        if isinstance(device, EmulatedDevice):  # whose powers are the host's
            for ours, theirs in zip(a, b, strict=True):
                assert [x.tobytes() for x in ours] == [x.tobytes() for x in theirs]
        check(a, b, 1, float(np.finfo(dtype).eps))


def test_a_step_that_is_skipped_is_not_counted(device: Device) -> None:
    lists, step = adam_lists(device, "float32"), device.array(np.array([3], "int64"))
    grads = draw(1, "float32")
    grads[3][2] = math.nan
    given = [device.array(g) for g in grads]
    cuda.adam_step(lists[0], given, *lists[1:], step=step, lr=0.1)
    assert device.numpy(step).item() == 3
    norm = device.array(np.array(math.nan))
    cuda.adam_step(lists[0], given, *lists[1:], step=step, lr=0.1, norm=norm)
    assert device.numpy(step).item() == 3


def test_more_counters_than_a_launch_has_room_for(device: Device) -> None:
    count = 600
    params = [np.ones(2, "float32") for _ in range(count)]
    lists = [params, *([np.zeros_like(p) for p in params] for _ in range(2))]
    host = copied(lists)
    grads = [np.full(2, 1.0 + i, "float32") for i in range(count)]
    ours = on_device(device, lists)
    steps = [device.array(np.array(i % 7, "int64")) for i in range(count)]
    cuda.adam_step(ours[0], [device.array(g) for g in grads], *ours[1:], step=steps, lr=0.1)
    for i in range(count):
        one = [[arrays[i]] for arrays in host]
        tbptt_fast.adam_step(one[0], [grads[i]], *one[1:], step=1 + i % 7, lr=0.1)
    assert [device.numpy(s).item() for s in steps] == [1 + i % 7 for i in range(count)]
    check(back(device, ours), host, 1, float(np.finfo("float32").eps))


@pytest.mark.gpu
def test_a_captured_step_goes_on_counting() -> None:
    """One CUDA graph, replayed, against eager steps of the same numbers."""
    device = CudaDevice()
    torch = device.torch
    options: Any = {"lr": 0.05, "max_norm": 0.9, "eps": 0.1}
    grads = [device.array(g) for g in draw(1, "float32")]
    eager, captured = adam_lists(device, "float32"), adam_lists(device, "float32")
    step = device.array(np.zeros((), "int64"))
    cuda.adam_step(captured[0], grads, *captured[1:], step=step, **options)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        cuda.adam_step(captured[0], grads, *captured[1:], step=step, **options)
    for _ in range(4):
        graph.replay()
    for count in range(1, 6):
        cuda.adam_step(eager[0], grads, *eager[1:], step=count, **options)
    assert step.item() == 5
    check(back(device, captured), back(device, eager), 5, float(np.finfo("float32").eps))


@pytest.mark.gpu
def test_large_on_a_gpu() -> None:
    device = CudaDevice()
    shapes = [(4096, 1024), (1024,), (3, 4097)] * 30
    start = make_lists("adamw", "float32", shapes)
    grads = draw(1, "float32", tuple(shapes))
    ours, host = on_device(device, copied(start)), copied(start)
    for count in (1, 2):
        arguments = (ours[0], [device.array(g) for g in grads], *ours[1:])
        norm = step_of(cuda, "adam", arguments, count, max_norm=1.0)
        wanted = step_of(tbptt_fast, "adam", (host[0], grads, *host[1:]), count, max_norm=1.0)
        assert device.numpy(norm) == pytest.approx(wanted.norm, rel=1e-12)
    check(back(device, ours), host, 2, float(np.finfo("float32").eps))
    again = on_device(device, copied(start))
    first = on_device(device, copied(start))
    for lists in (first, again):
        step_of(
            cuda, "adam", (lists[0], [device.array(g) for g in grads], *lists[1:]), max_norm=1.0
        )
    for a, b in zip(back(device, first), back(device, again), strict=True):
        names = [str(i) for i in range(len(a))]
        assert_identical(dict(zip(names, a, strict=True)), dict(zip(names, b, strict=True)))
