"""Optimizers step by step against PyTorch's, schedules against their formulas, resuming, errors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tbptt_fast import optim

from .cases import DTYPES, assert_close, assert_identical

SHAPES = {"weight": (5, 7), "bias": (33,), "scalar": (), "one": (1,), "empty": (0, 3)}
STEPS = 6

# ours, PyTorch's name, options that both understand
OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (optim.SGD, {}),
    "sgd-decay": (optim.SGD, {"weight_decay": 0.1}),
    "sgd-momentum": (optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "sgd-nesterov": (optim.SGD, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    "rmsprop": (optim.RMSprop, {}),
    "rmsprop-momentum": (optim.RMSprop, {"momentum": 0.9, "alpha": 0.9, "weight_decay": 0.1}),
    "adam": (optim.Adam, {}),
    "adam-decay": (optim.Adam, {"betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}),
    "adamw": (optim.AdamW, {}),
    "adamw-decay": (optim.AdamW, {"betas": (0.8, 0.95), "weight_decay": 0.3}),
}
CLIPS: tuple[dict[str, float], ...] = (
    {},
    {"max_norm": 0.5},
    {"clip_value": 0.7},
    {"max_norm": 3.0, "clip_value": 0.7},
    {"max_norm": 1e6},
)

all_optimizers = pytest.mark.parametrize("name", OPTIMIZERS)


def make_params(dtype: str = "float64") -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: np.array(rng.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def make_grads(step: int, dtype: str = "float64") -> dict[str, Any]:
    rng = np.random.default_rng([1, step])
    return {name: np.array(rng.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def build(name: str, params: dict[str, Any], lr: float = 0.05, **options: Any) -> optim.Optimizer:
    kind, given = OPTIMIZERS[name]
    built: optim.Optimizer = kind(params, lr, **{**given, **options})
    return built


def everything(optimizer: optim.Optimizer) -> dict[str, Any]:
    """Parameters, arrays and counter, to be compared bit for bit."""
    state = optimizer.state_dict()
    found = {"step": np.array(state["step"]), **optimizer.params}
    for slot, arrays in state["state"].items():
        found |= {f"{slot}.{name}": array for name, array in arrays.items()}
    return {name: array.copy() for name, array in found.items()}


@all_optimizers
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: "-".join(clip) or "unclipped")
def test_every_step_equals_torch(name: str, dtype: str, clip: dict[str, float]) -> None:
    torch = pytest.importorskip("torch")
    params = make_params(dtype)
    ours = build(name, params, **clip)
    mirrors = {n: torch.nn.Parameter(torch.tensor(p)) for n, p in params.items()}
    kind, options = OPTIMIZERS[name]
    theirs = getattr(torch.optim, kind.__name__)(mirrors.values(), lr=0.05, **options)
    for step in range(STEPS):
        ours.lr = theirs.param_groups[0]["lr"] = 0.05 / (1 + step)
        grads = make_grads(step, dtype)
        for n, mirror in mirrors.items():
            mirror.grad = torch.tensor(grads[n])
        if "clip_value" in clip:
            torch.nn.utils.clip_grad_value_(mirrors.values(), clip["clip_value"])
        largest = clip.get("max_norm", math.inf)
        norm = torch.nn.utils.clip_grad_norm_(mirrors.values(), largest)
        theirs.step()
        result = ours.step(grads)
        assert result.applied
        assert ours.steps == step + 1
        eps = float(np.finfo(dtype).eps)
        assert result.norm == pytest.approx(float(norm), rel=8 * eps)
        for n, mirror in mirrors.items():
            # errors of the steps add up
            length = (step + 1) ** 2
            assert_close(params[n], mirror.detach().numpy(), "gradient", length=length, name=n)


@all_optimizers
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("clip", [{}, {"max_norm": 1.0, "clip_value": 0.5}])
def test_a_gradient_that_is_not_finite_changes_nothing(
    name: str, bad: float, clip: dict[str, float]
) -> None:
    optimizer = build(name, make_params(), **clip)
    clean = build(name, make_params(), **clip)
    for other in (optimizer, clean):
        other.step(make_grads(0))
    before = everything(optimizer)
    grads = make_grads(1)
    grads["one"][0] = bad  # the last array that holds a number: what comes before must wait
    with pytest.raises(FloatingPointError, match=r"non-finite|not finite"):
        optimizer.step(grads)
    assert_identical(everything(optimizer), before)

    skipping = build(name, make_params(), lr=1.0, **clip)
    skipping.load_state_dict(
        {**optimizer.state_dict(), "options": skipping.state_dict()["options"]}
    )
    for n, p in skipping.params.items():
        p[...] = optimizer.params[n]
    state = skipping.state_dict()
    state["options"]["non_finite"] = "skip"
    state["options"]["lr"] = 0.05
    skipping.load_state_dict(state)
    assert not skipping.step(grads).applied
    assert_identical(everything(skipping), before)
    assert skipping.step(make_grads(2)).applied
    clean.step(make_grads(2))
    assert_identical(everything(skipping), everything(clean))


@all_optimizers
def test_a_restored_optimizer_continues_bit_for_bit(name: str) -> None:
    optimizer = build(name, make_params("float32"), max_norm=2.0, clip_value=0.9)
    for step in range(3):
        optimizer.step(make_grads(step, "float32"))
    optimizer.lr = 0.02
    state = optimizer.state_dict()
    params = {n: p.copy() for n, p in optimizer.params.items()}
    other = build(name, params, lr=1.0)
    other.load_state_dict(state)
    assert other.lr == 0.02
    for step in range(3, 6):
        results = [o.step(make_grads(step, "float32")) for o in (optimizer, other)]
        assert results[0] == results[1]
        assert_identical(everything(optimizer), everything(other))


def test_state_dict_holds_copies() -> None:
    optimizer = build("adam", make_params())
    optimizer.step(make_grads(0))
    state = optimizer.state_dict()
    kept = copy.deepcopy(state)
    optimizer.step(make_grads(1))
    assert_identical(state["state"]["exp_avg"], kept["state"]["exp_avg"])
    optimizer.load_state_dict(state)
    optimizer.step(make_grads(1))
    assert_identical(state["state"]["exp_avg"], kept["state"]["exp_avg"])
    assert state["step"] == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kind": "AdamW"}, ValueError, "kind: expected Adam, got AdamW"),
        ({"step": -1}, ValueError, "step: expected an integer >= 0, got -1"),
        ({"step": 1.0}, ValueError, "step: expected an integer >= 0, got 1.0"),
        ({"more": 1}, ValueError, r"missing \[\], unexpected \['more'\]"),
        ({"options": {}}, ValueError, r"options: missing \['lr', 'beta1'"),
        (
            {"options.eps": -1.0},
            ValueError,
            "adam_step: eps: expected a finite number > 0, got -1.0",
        ),
        ({"state": {"exp_avg": {}}}, ValueError, r"state: missing \['exp_avg_sq'\]"),
        ({"state.exp_avg_sq": {}}, ValueError, r"exp_avg_sq: missing \['weight'"),
        (
            {"state.exp_avg_sq.one": np.zeros(2)},
            ValueError,
            r"one: expected shape \[1\], got \[2\]",
        ),
        ({"state.exp_avg_sq.one": np.zeros(1, "f4")}, TypeError, "expected dtype float64, got flo"),
        ({"state.exp_avg_sq.one": 0.0}, TypeError, "one: expected an array, got float"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    optimizer = build("adam", make_params())
    optimizer.step(make_grads(0))
    before, options = everything(optimizer), optimizer.state_dict()["options"]
    donor = build("adam", make_params(), lr=0.5)
    donor.step(make_grads(1))
    donor.step(make_grads(2))
    state = donor.state_dict()
    for path, value in change.items():
        *outer, last = path.split(".")
        node = state
        for key in outer:
            node = node[key]
        node[last] = value
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(state)
    assert_identical(everything(optimizer), before)
    assert optimizer.state_dict()["options"] == options


def test_gradients_are_found_by_name() -> None:
    params = make_params()
    optimizer = build("sgd", {name: params[name] for name in ("bias", "weight")})
    grads = make_grads(0)
    kept = {name: p.copy() for name, p in params.items()}
    optimizer.step(grads)
    assert_identical({"scalar": params["scalar"]}, {"scalar": kept["scalar"]})
    assert_close(params["bias"], kept["bias"] - 0.05 * grads["bias"], "forward", length=1)
    before = everything(optimizer)
    with pytest.raises(ValueError, match=r"SGD.step: grads: missing \['bias'\]"):
        optimizer.step({"weight": grads["weight"]})
    with pytest.raises(ValueError, match=r"sgd_step: grads\[0\]: expected shape"):
        optimizer.step({**grads, "bias": grads["weight"]})
    with pytest.raises(TypeError, match=r"sgd_step: grads\[0\]: expected dtype"):
        optimizer.step({**grads, "bias": grads["bias"].astype("float32")})
    assert_identical(everything(optimizer), before)


untyped: Any = optim  # wrong types on purpose
ONE = {"w": np.ones(3)}


@pytest.mark.parametrize(
    ("construct", "message"),
    [
        (lambda: optim.SGD({}, 0.1), "SGD: params: expected at least one parameter, got none"),
        (
            lambda: optim.SGD({**ONE, "v": ONE["w"]}, 0.1),
            "SGD: params: one array has several names",
        ),
        (lambda: optim.SGD(ONE, -0.1), "sgd_step: lr: expected a finite number >= 0, got -0.1"),
        (lambda: optim.SGD(ONE, math.nan), "sgd_step: lr: expected a finite number >= 0, got nan"),
        (lambda: optim.SGD(ONE, 0.1, momentum=-1), "sgd_step: mu: expected a finite .* got -1"),
        (lambda: optim.SGD(ONE, 0.1, nesterov=True), "sgd_step: nesterov: expected mu > 0 with it"),
        (lambda: optim.RMSprop(ONE, 0.1, alpha=1.0), r"rmsprop_step: alpha: .* \[0, 1\), got 1.0"),
        (lambda: optim.Adam(ONE, 0.1, betas=(0.9, 1.0)), r"adam_step: beta2: .* \[0, 1\), got 1.0"),
        (lambda: optim.Adam(ONE, 0.1, eps=math.inf), "adam_step: eps: expected a .* got inf"),
        (lambda: optim.AdamW(ONE, 0.1, weight_decay=-1), "adam_step: weight_decay: .* got -1"),
        (lambda: optim.SGD(ONE, 0.1, max_norm=0.0), "sgd_step: max_norm: expected None .* got 0.0"),
        (lambda: optim.SGD(ONE, 0.1, clip_value=-1), "sgd_step: clip_value: .* None or .* got -1"),
        (lambda: optim.SGD(ONE, 0.1, non_finite="no"), "non_finite: .*'raise' or 'skip', got 'no'"),
    ],
)
def test_bad_options(construct: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        construct()


def test_options_of_another_type() -> None:
    with pytest.raises(TypeError, match="sgd_step: lr: expected a finite number >= 0, got str"):
        untyped.SGD(ONE, "1")


def test_learning_rate_is_checked_when_set() -> None:
    optimizer = optim.SGD(ONE, 0.1)
    with pytest.raises(ValueError, match="sgd_step: lr: expected a finite number >= 0, got inf"):
        optimizer.lr = math.inf
    assert optimizer.lr == 0.1
    assert repr(optimizer).startswith("SGD(1 parameters, lr=0.1, mu=0.0, nesterov=False")


# ---- schedules


def sgd(lr: float = 0.8) -> optim.SGD:
    return optim.SGD({"w": np.ones(1)}, lr)


SCHEDULES: dict[str, tuple[Callable[[Any], optim.Schedule], Callable[[int], float]]] = {
    "constant": (optim.ConstantLR, lambda t: 0.8),
    "exponential": (lambda o: optim.ExponentialLR(o, 0.9), lambda t: 0.8 * 0.9**t),
    "step": (lambda o: optim.StepLR(o, 4, 0.5), lambda t: 0.8 * 0.5 ** (t // 4)),
    "cosine": (
        lambda o: optim.CosineLR(o, 10, 0.1),
        lambda t: 0.1 + 0.35 * (1 + math.cos(math.pi * min(t, 10) / 10)),
    ),
    "warm-up": (
        lambda o: optim.WarmUp(optim.ExponentialLR(o, 0.9), 4),
        lambda t: 0.16 * (t + 1) if t < 4 else 0.8 * 0.9 ** (t - 4),
    ),
}

all_schedules = pytest.mark.parametrize("name", SCHEDULES)


@all_schedules
def test_a_schedule_follows_its_formula(name: str) -> None:
    make, formula = SCHEDULES[name]
    optimizer = sgd()
    schedule = make(optimizer)
    rates = [optimizer.lr]
    for _ in range(25):
        returned = schedule.step()
        rates.append(optimizer.lr)
        assert returned == optimizer.lr
    assert rates == pytest.approx([formula(t) for t in range(26)], rel=1e-14)
    assert [schedule.lr_at(t) for t in range(26)] == rates, "lr_at is pure"
    assert schedule.steps == 25


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("exponential", lambda s, o: s.ExponentialLR(o, 0.9)),
        ("step", lambda s, o: s.StepLR(o, 4, 0.5)),
        ("cosine", lambda s, o: s.CosineAnnealingLR(o, 10, 0.1)),
    ],
)
def test_a_schedule_equals_torch(name: str, theirs: Callable[[Any, Any], Any]) -> None:
    torch = pytest.importorskip("torch")
    mirror = torch.optim.SGD([torch.zeros(1)], lr=0.8)
    expected = theirs(torch.optim.lr_scheduler, mirror)
    optimizer = sgd()
    schedule = SCHEDULES[name][0](optimizer)
    for _ in range(10):
        assert optimizer.lr == pytest.approx(expected.get_last_lr()[0], rel=1e-12)
        mirror.step()
        expected.step()
        schedule.step()


@all_schedules
def test_a_restored_schedule_continues(name: str) -> None:
    make, _ = SCHEDULES[name]
    one, two = sgd(), sgd(0.3)
    first, second = make(one), make(two)
    for _ in range(6):
        first.step()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert (two.lr, second.steps) == (one.lr, 6)
    assert [second.step() for _ in range(9)] == [first.step() for _ in range(9)]


def test_a_schedule_state_that_does_not_fit_changes_nothing() -> None:
    optimizer = sgd()
    schedule = optim.WarmUp(optim.StepLR(optimizer, 4), 3)
    schedule.step()
    before, rate = schedule.state_dict(), optimizer.lr
    good = optim.WarmUp(optim.StepLR(sgd(0.1), 5), 4).state_dict()
    inner = good["inner"]
    bad: list[tuple[dict[str, Any], str]] = [
        ({"kind": "StepLR"}, "WarmUp.load_state_dict: kind: expected WarmUp, got StepLR"),
        ({"step": -1}, "WarmUp.load_state_dict: step: expected an integer >= 0, got -1"),
        ({"options": {}}, r"WarmUp.load_state_dict: options: missing \['base_lr', 'warm_up_steps'"),
        ({"inner": {**inner, "kind": "CosineLR"}}, "StepLR.load_state_dict: kind: expected StepLR"),
        (
            {"inner": {**inner, "options": {"base_lr": 1.0}}},
            "StepLR.load_state_dict: options: miss",
        ),
        ({"other": 1}, r"WarmUp.load_state_dict: missing \[\], unexpected \['other'\]"),
    ]
    for change, message in bad:
        with pytest.raises(ValueError, match=message):
            schedule.load_state_dict({**good, **change})
        assert (schedule.state_dict(), optimizer.lr) == (before, rate)


@pytest.mark.parametrize(
    ("construct", "message"),
    [
        (lambda o: optim.ExponentialLR(o, 0.0), r"ExponentialLR: gamma: .* \(0, 1\], got 0.0"),
        (lambda o: optim.ExponentialLR(o, 1.5), r"ExponentialLR: gamma: .* \(0, 1\], got 1.5"),
        (lambda o: optim.StepLR(o, 0), "StepLR: step_size: expected a positive integer, got 0"),
        (lambda o: untyped.CosineLR(o, 2.5), "CosineLR: total_steps: .* integer, got 2.5"),
        (lambda o: optim.CosineLR(o, 5, -1.0), "CosineLR: min_lr: expected a finite .* got -1.0"),
        (lambda o: optim.WarmUp(optim.ConstantLR(o), 0), "WarmUp: warm_up_steps: .* got 0"),
    ],
)
def test_bad_schedules(construct: Callable[[Any], Any], message: str) -> None:
    optimizer = sgd()
    with pytest.raises(ValueError, match=message):
        construct(optimizer)
    assert optimizer.lr == 0.8
