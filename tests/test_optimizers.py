"""Fused updates against the oracle and torch.optim step by step, clipping."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import reference_layers as reference

from .cases import DTYPES, assert_close, assert_identical

# Around the lanes and the blocks of the kernels, no element, no dimension.
SHAPES: tuple[tuple[int, ...], ...] = (
    (),
    (1,),
    (7,),
    (3, 5),
    (0, 4),
    (16,),
    (33,),
    (4097,),
    (90, 91),
)
STEPS = 4

# The op, PyTorch's name, and the options of both. With weight decay a gradient may cancel to nearly
# nothing; a large eps then keeps its rounding error from being divided by itself.
OPTIMIZERS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "sgd": ("sgd", "SGD", {}, {}),
    "sgd-decay": ("sgd", "SGD", {"weight_decay": 0.1}, {"weight_decay": 0.1}),
    "sgd-momentum": (
        "sgd",
        "SGD",
        {"mu": 0.9, "weight_decay": 0.1},
        {"momentum": 0.9, "weight_decay": 0.1},
    ),
    "sgd-nesterov": (
        "sgd",
        "SGD",
        {"mu": 0.8, "nesterov": True},
        {"momentum": 0.8, "nesterov": True},
    ),
    "rmsprop": ("rmsprop", "RMSprop", {}, {}),
    "rmsprop-momentum": (
        "rmsprop",
        "RMSprop",
        {"mu": 0.9, "alpha": 0.9, "eps": 0.1, "weight_decay": 0.1},
        {"momentum": 0.9, "alpha": 0.9, "eps": 0.1, "weight_decay": 0.1},
    ),
    "adam": ("adam", "Adam", {}, {}),
    "adam-decay": (
        "adam",
        "Adam",
        {"beta1": 0.8, "beta2": 0.95, "eps": 0.1, "weight_decay": 0.1},
        {"betas": (0.8, 0.95), "eps": 0.1, "weight_decay": 0.1},
    ),
    "adamw": (
        "adam",
        "AdamW",
        {"weight_decay": 0.3, "decoupled": True},
        {"weight_decay": 0.3},
    ),
}
STATES = {"sgd": ("momentum",), "rmsprop": ("square_avg", "momentum"), "adam": ("first", "second")}
CLIPS: tuple[dict[str, float], ...] = (
    {},
    {"max_norm": 0.5},
    {"clip_value": 0.7},
    {"max_norm": 3.0, "clip_value": 0.7},
    {"max_norm": 1e6},
)

all_optimizers = pytest.mark.parametrize("name", OPTIMIZERS)
ops = pytest.mark.parametrize("op", ["sgd", "rmsprop", "adam"])
dtypes = pytest.mark.parametrize("dtype", DTYPES)
clips = pytest.mark.parametrize("clip", CLIPS, ids=lambda c: "-".join(c) or "unclipped")


def draw(seed: int, dtype: str, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def zeros(arrays: list[Any], op: str) -> list[list[Any]]:
    """The optimizer's own arrays before the first step."""
    return [[np.zeros_like(a) for a in arrays] for _ in STATES[op]]


def step_of(module: Any, op: str, arrays: tuple[Any, ...], count: int = 1, **options: Any) -> Any:
    """One step of params, grads and states."""
    options = {"lr": 0.05, **options, **({"step": count} if op == "adam" else {})}
    return getattr(module, f"{op}_step")(*arrays, **options)


def one(op: str, value: Any = None, dtype: str = "float64") -> tuple[list[Any], ...]:
    """A single parameter [3] of ones and its gradient."""
    params = [np.ones(3, dtype)]
    return params, [np.ones(3, dtype) if value is None else value], *zeros(params, op)


# --- Against others -----------------------------------------------------------------------------


@pytest.mark.usefixtures("isa", "threads")
@all_optimizers
@dtypes
@clips
def test_every_step_equals_the_oracle(name: str, dtype: str, clip: dict[str, float]) -> None:
    op, _, options, _ = OPTIMIZERS[name]
    params = draw(0, dtype)
    ours = [params, *zeros(params, op)]
    theirs = [[a.astype(np.float64) for a in arrays] for arrays in ours]
    eps = float(np.finfo(dtype).eps)
    for count in range(1, STEPS + 1):
        grads = draw(count, dtype)
        kept = [g.copy() for g in grads]
        result = step_of(tbptt_fast, op, (ours[0], grads, *ours[1:]), count, **options, **clip)
        wide = [g.astype(np.float64) for g in grads]
        wanted = step_of(reference, op, (theirs[0], wide, *theirs[1:]), count, **options, **clip)
        assert result.applied is True
        # The clipping value is rounded to the dtype.
        assert result.norm == pytest.approx(wanted.norm, rel=eps if "clip_value" in clip else 1e-13)
        for grad, before in zip(grads, kept, strict=True):
            np.testing.assert_array_equal(grad, before)
        for arrays, expected in zip(ours, theirs, strict=True):
            for a, b in zip(arrays, expected, strict=True):
                assert_close(a, b, "gradient", length=count**2)


@all_optimizers
@dtypes
@clips
def test_every_step_equals_torch(name: str, dtype: str, clip: dict[str, float]) -> None:
    torch = pytest.importorskip("torch")
    op, kind, options, torch_options = OPTIMIZERS[name]
    params = draw(0, dtype)
    states = zeros(params, op)
    mirrors = [torch.nn.Parameter(torch.tensor(p)) for p in params]
    theirs = getattr(torch.optim, kind)(mirrors, lr=0.05, **torch_options)
    for count in range(1, STEPS + 1):
        grads = draw(count, dtype)
        for mirror, grad in zip(mirrors, grads, strict=True):
            mirror.grad = torch.tensor(grad)
        if "clip_value" in clip:
            torch.nn.utils.clip_grad_value_(mirrors, clip["clip_value"])
        norm = torch.nn.utils.clip_grad_norm_(mirrors, clip.get("max_norm", math.inf))
        theirs.step()
        result = step_of(tbptt_fast, op, (params, grads, *states), count, **options, **clip)
        eps = float(np.finfo(dtype).eps)
        assert result.norm == pytest.approx(float(norm), rel=30 * eps)
        for p, mirror in zip(params, mirrors, strict=True):
            assert_close(p, mirror.detach().numpy(), "gradient", length=count**2)


# The op, its options, and whether it has a third array of its own.
VARIANTS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "sgd-dampening": ("sgd", {"mu": 0.9, "dampening": 0.4, "weight_decay": 0.1}, False),
    "sgd-maximize": ("sgd", {"maximize": True, "weight_decay": 0.1}, False),
    "sgd-velocity": ("sgd", {"mu": 0.9, "velocity": True, "weight_decay": 0.1}, False),
    "sgd-velocity-nesterov": ("sgd", {"mu": 0.9, "velocity": True, "nesterov": True}, False),
    "sgd-velocity-without": ("sgd", {"velocity": True, "maximize": True}, False),
    "rmsprop-centered": ("rmsprop", {"alpha": 0.8, "eps": 0.1}, True),
    "rmsprop-centered-momentum": ("rmsprop", {"mu": 0.8, "alpha": 0.8, "eps": 0.1}, True),
    "rmsprop-maximize": ("rmsprop", {"maximize": True}, False),
    "adam-amsgrad": ("adam", {"beta2": 0.5, "eps": 0.1}, True),
    "adam-maximize": ("adam", {"maximize": True, "weight_decay": 0.3, "decoupled": True}, False),
}


@pytest.mark.usefixtures("isa", "threads")
@pytest.mark.parametrize("name", VARIANTS)
@dtypes
@clips
def test_variants_equal_the_oracle(name: str, dtype: str, clip: dict[str, float]) -> None:
    op, options, third = VARIANTS[name]
    params = draw(0, dtype)
    ours = [params, *zeros(params, op), *([[np.zeros_like(p) for p in params]] if third else [])]
    theirs = [[a.astype(np.float64) for a in arrays] for arrays in ours]
    for count in range(1, STEPS + 1):
        grads = draw(count, dtype)
        step_of(tbptt_fast, op, (ours[0], grads, *ours[1:]), count, **options, **clip)
        wide = [g.astype(np.float64) for g in grads]
        step_of(reference, op, (theirs[0], wide, *theirs[1:]), count, **options, **clip)
        for arrays, expected in zip(ours, theirs, strict=True):
            for a, b in zip(arrays, expected, strict=True):
                assert_close(a, b, "gradient", length=count**2)


@ops
@dtypes
def test_a_given_norm(op: str, dtype: str) -> None:
    """Bits as if it had been computed; another norm clips by another factor."""
    grads = draw(1, dtype)
    norm = tbptt_fast.global_norm(grads, clip_value=0.9)
    results = []
    for given in (None, norm, 2 * norm):
        params = draw(0, dtype)
        arrays = (params, grads, *zeros(params, op))
        result = step_of(tbptt_fast, op, arrays, max_norm=0.5, clip_value=0.9, norm=given)
        assert result == (given or norm, True)
        results.append({str(i): p for i, p in enumerate(params)})
    assert_identical(results[0], results[1])
    assert any((results[0][key] != results[2][key]).any() for key in results[0])


@ops
def test_a_given_norm_that_is_not_finite(op: str) -> None:
    arrays = one(op)
    with pytest.raises(FloatingPointError, match=f"^{op}_step: norm: non-finite gradient$"):
        step_of(tbptt_fast, op, arrays, norm=math.nan)
    assert step_of(tbptt_fast, op, arrays, norm=math.nan, non_finite="skip").applied is False
    np.testing.assert_array_equal(arrays[0][0], 1.0)
    for norm, error in ((math.inf, ValueError), (-1.0, ValueError), ("1", TypeError)):
        with pytest.raises(error, match=f"^{op}_step: norm: expected a finite number >= 0, got"):
            step_of(tbptt_fast, op, arrays, norm=norm)


@pytest.mark.usefixtures("isa", "threads")
@pytest.mark.parametrize("dtypes_", [("float32",), ("float64",), ("float32", "float64")])
def test_the_norm_of_many_arrays(dtypes_: tuple[str, ...]) -> None:
    arrays = [a for dtype in dtypes_ for a in draw(3, dtype)]
    for clip_value in (None, 0.5):
        wanted = reference.global_norm(arrays, clip_value=clip_value)
        norm = tbptt_fast.global_norm(arrays, clip_value=clip_value)
        assert norm == pytest.approx(wanted, rel=1e-13)
    strided = [np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a for a in arrays]
    assert tbptt_fast.global_norm(strided) == tbptt_fast.global_norm(tuple(arrays))
    assert tbptt_fast.global_norm([]) == 0.0
    for bad in (math.nan, math.inf):
        arrays[-1][3, 4] = bad
        assert math.isnan(tbptt_fast.global_norm(arrays, clip_value=1.0))


def test_arrays_without_a_norm() -> None:
    good = np.ones(3)
    for wrong, text in (
        (np.ones(3, np.int64), "expected dtype float32 or float64, got int64"),
        ([1.0], "expected an array, got list"),
    ):
        with pytest.raises(TypeError, match=rf"^global_norm: arrays\[1\]: {text}"):
            tbptt_fast.global_norm([good, wrong])
    with pytest.raises(TypeError, match=r"^global_norm: arrays: expected a list of arrays, got"):
        tbptt_fast.global_norm(good)
    with pytest.raises(ValueError, match=r"^global_norm: clip_value: expected None or a finite"):
        tbptt_fast.global_norm([good], clip_value=0.0)


@dtypes
@pytest.mark.parametrize("nesterov", [False, True], ids=["plain", "nesterov"])
def test_a_velocity_keeps_the_rates_of_its_steps(dtype: str, nesterov: bool) -> None:
    """m = mu·m - lr·g; p += m, or p += mu·m - lr·g, with a rate of its own for every step."""
    params = draw(0, dtype)
    (velocity,) = zeros(params, "sgd")[:1]
    theirs = [a.astype(np.float64) for a in params]
    hand = [a.astype(np.float64) for a in params]
    theirs_velocity, hand_velocity = zeros(theirs, "sgd")[0], zeros(hand, "sgd")[0]
    options: dict[str, Any] = {"mu": 0.9, "nesterov": nesterov, "velocity": True, "max_norm": 3.0}
    for count, lr in enumerate((0.05, 0.2, 0.0, 0.01), start=1):
        grads = draw(count, dtype)
        norm = tbptt_fast.sgd_step(params, grads, velocity, lr=lr, **options).norm
        wide = [g.astype(np.float64) for g in grads]
        reference.sgd_step(theirs, wide, theirs_velocity, lr=lr, **options)
        for p, m, g in zip(hand, hand_velocity, wide, strict=True):
            g = g * min(1.0, 3.0 / (norm + 1e-6))
            m[...] = 0.9 * m - lr * g
            p += 0.9 * m - lr * g if nesterov else m
        for ours in ((params, hand), (velocity, hand_velocity)):
            for a, b in zip(*ours, strict=True):
                assert_close(a, b, "gradient", length=count**2)
        for a, b in zip(theirs, hand, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_by_hand() -> None:
    """Nesterov's second step, and the order of the two ways of clipping."""
    w, m = np.array([1.0]), np.array([0.0])
    for _ in range(2):
        tbptt_fast.sgd_step([w], [np.array([1.0])], [m], lr=0.1, mu=0.5, nesterov=True)
    # m: 1, 1.5; steps: 1 + 0.5, 1 + 0.75
    assert (m[0], w[0]) == (1.5, pytest.approx(1 - 0.15 - 0.175))
    w = np.array([0.0, 0.0])
    result = tbptt_fast.sgd_step(
        [w], [np.array([3.0, -100.0])], None, lr=1.0, clip_value=4.0, max_norm=2.5
    )
    assert result == (5.0, True)
    np.testing.assert_allclose(w, [-1.5, 2.0], rtol=1e-6)


# --- The same bits ------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
@all_optimizers
@dtypes
def test_the_same_bits_for_every_number_of_threads(name: str, dtype: str) -> None:
    op, _, options, _ = OPTIMIZERS[name]
    shapes = ((300, 301), (5,), (70001,), (4096,))
    results = []
    for n in (1, 2, 3, 8):
        params = draw(0, dtype, shapes)
        states = zeros(params, op)
        norms = []
        with tbptt_fast.num_threads(n):
            for count in (1, 2):
                arrays = (params, draw(count, dtype, shapes), *states)
                result = step_of(
                    tbptt_fast, op, arrays, count, max_norm=1.0, clip_value=2.0, **options
                )
                norms.append(result.norm)
        named = {f"param {i}": p for i, p in enumerate(params)} | {"norms": np.array(norms)}
        results.append(named | {f"state {i}": s for i, s in enumerate(states[0])})
    for result in results[1:]:
        assert_identical(result, results[0])


def test_the_norm_is_summed_in_double() -> None:
    grad = np.full(1_000_000, 0.1, np.float32)
    result = tbptt_fast.sgd_step([np.zeros_like(grad)], [grad], None, lr=0.0)
    assert result.norm == pytest.approx(float(np.float32(0.1)) * 1000, rel=1e-12)


# --- What is read and what is written -----------------------------------------------------------


@ops
@dtypes
def test_gradients_in_any_layout(op: str, dtype: str) -> None:
    params = draw(0, dtype, ((4, 6), (5,)))
    grads = draw(1, dtype, ((4, 6), (5,)))
    wide = np.zeros((8, 18), dtype)
    wide[::2, ::3] = grads[0]
    raw = np.zeros(5 * grads[1].itemsize + 1, np.uint8)[1:].view(dtype)
    raw[...] = grads[1]
    raw.flags.writeable = False
    torch = pytest.importorskip("torch")
    choices: list[Any] = [
        grads,
        [wide[::2, ::3], raw],
        [np.asfortranarray(grads[0]), grads[1][::-1].copy()[::-1]],
        tuple(torch.tensor(g) for g in grads),
    ]
    results = []
    for choice in choices:
        copies = [p.copy() for p in params]
        step_of(tbptt_fast, op, (copies, choice, *zeros(copies, op)), max_norm=1.0)
        results.append({str(i): p for i, p in enumerate(copies)})
    for result in results[1:]:
        assert_identical(result, results[0])


@ops
def test_gradients_that_share_memory(op: str) -> None:
    """A gradient may be the parameter itself, a view of it, another's, or twice the same."""
    picks: tuple[Callable[[Any], tuple[Any, Any]], ...] = (
        lambda p: (p[0], p[1]),
        lambda p: (p[1], p[0]),
        lambda p: (p[0][::-1], p[0]),
        lambda p: (p[1], p[1]),
    )
    for pick in picks:
        params = draw(0, "float64", ((9000,), (9000,)))
        copies = [p.copy() for p in params]
        step_of(tbptt_fast, op, (params, list(pick(params)), *zeros(params, op)))
        apart = [g.copy() for g in pick([p.copy() for p in copies])]
        step_of(tbptt_fast, op, (copies, apart, *zeros(copies, op)))
        for p, q in zip(params, copies, strict=True):
            np.testing.assert_array_equal(p, q)


@ops
def test_no_parameters(op: str) -> None:
    result = step_of(tbptt_fast, op, ([], [], *([] for _ in STATES[op])))
    assert result == (0.0, True)


def test_an_unused_momentum_is_left_alone() -> None:
    params, grads, momentum = one("sgd")
    momentum[0][:] = 7.0
    tbptt_fast.sgd_step(params, grads, momentum, lr=0.1)
    np.testing.assert_array_equal(momentum[0], 7.0)
    np.testing.assert_allclose(params[0], 0.9)


@ops
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 16, 4096, 8191, 9000])
@dtypes
def test_the_first_gradient_that_is_not_finite_is_named(
    op: str, bad: float, position: int, dtype: str
) -> None:
    params = draw(0, dtype, ((3,), (0,), (9001,), (2,)))
    grads = draw(1, dtype, ((3,), (0,), (9001,), (2,)))
    before = [p.copy() for p in params]
    grads[2][position] = grads[3][1] = bad
    arrays = (params, grads, *zeros(params, op))
    with pytest.raises(FloatingPointError, match=rf"^{op}_step: grads\[2\]: non-finite gradient$"):
        step_of(tbptt_fast, op, arrays, clip_value=0.1)
    result = step_of(tbptt_fast, op, arrays, clip_value=0.1, non_finite="skip")
    assert result.applied is False
    assert math.isnan(result.norm)
    for p, q in zip((*params, *arrays[2]), (*before, *zeros(params, op)[0]), strict=True):
        np.testing.assert_array_equal(p, q)


def test_large_gradients_are_finite() -> None:
    """Squares of these overflow in float32, not in the norm."""
    w = np.zeros(2, np.float32)
    grad = np.array([3e30, 4e30], np.float32)
    result = tbptt_fast.sgd_step([w], [grad], None, lr=1.0, max_norm=1.0)
    assert result.norm == pytest.approx(5e30, rel=1e-6)
    np.testing.assert_allclose(w, [-0.6, -0.8], rtol=1e-6)
