"""The optimizers for PyTorch against torch.optim: steps, groups, clipping, states."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import numpy as np
import pytest

import tbptt_fast

from .cases import assert_identical
from .torch_optim_cases import (
    CLIPS,
    OPTIMIZERS,
    SHAPES,
    STEPS,
    all_optimizers,
    assert_same,
    assert_same_state,
    classes,
    draw,
    dtypes,
    optim,
    pair,
    parameters,
    set_grads,
    step_both,
    torch,
)

# --- The same as torch.optim --------------------------------------------------------------------


@pytest.mark.usefixtures("isa", "threads")
@all_optimizers
@dtypes
@pytest.mark.parametrize("max_norm", CLIPS)
def test_every_step_equals_torch(name: str, dtype: str, max_norm: float | None) -> None:
    ours, theirs = pair(name, dtype, max_norm=max_norm)
    for count in range(1, STEPS + 1):
        step_both(ours, theirs, count)
        assert_same(ours[1], theirs[1], count)
    if not ours[0].defaults.get("maximize"):
        assert_same_state(ours[0], theirs[0])
    assert isinstance(ours[0], type(theirs[0]))


@all_optimizers
def test_missing_gradients(name: str) -> None:
    """Parameters without a gradient wait, and their counts of steps fall behind."""
    ours, theirs = pair(name, max_norm=1.0)
    for count, missing in enumerate([(0, 3), (3, 5), (), (1,), range(len(SHAPES)), (3,)], 1):
        if len(missing) == len(SHAPES):
            set_grads(ours[1], count, missing)
            ours[0].step()
            assert ours[0].grad_norm == 0.0
            continue
        step_both(ours, theirs, count, tuple(missing))
        assert_same(ours[1], theirs[1])
    assert_same_state(ours[0], theirs[0])


@all_optimizers
def test_groups_of_options_and_dtypes(name: str) -> None:
    """One norm over groups with rates of their own, one of them in two dtypes."""
    kind, options = OPTIMIZERS[name]
    made = []
    for module in (optim, torch.optim):
        params = parameters() + parameters("float64")
        groups = [
            {"params": params[:3]},
            {"params": params[5:9], "lr": 0.01, "weight_decay": 0.2},
            {"params": params[3:5], "lr": torch.tensor(0.02)},
        ]
        clip: dict[str, Any] = {"max_norm": 0.7} if module is optim else {}
        optimizer = getattr(module, kind)(groups, lr=0.05, **options, **clip)
        optimizer.add_param_group({"params": params[9:], "lr": 0.03})
        made.append((optimizer, params))
    for count in range(1, STEPS + 1):
        step_both(made[0], made[1], count, (count, 12) if count > 1 else ())
    # torch takes the norm and the tensor rate in float32, also for parameters in float64.
    assert_same(made[0][1], made[1][1], eps=float(np.finfo("float32").eps))


@pytest.mark.parametrize("options", [{}, {"eps": 0.1, "weight_decay": 0.1}])
def test_the_norm_of_several_calls(options: dict[str, Any]) -> None:
    """Groups of equal options take several calls, with the bits of one call."""
    results = []
    for split in (0, 2):
        params = parameters()
        groups = [{"params": params[:split]}] if split else []
        optimizer = optim.AdamW(
            [*groups, {"params": params[split:]}], lr=0.1, max_norm=0.3, **options
        )
        for count in (1, 2):
            set_grads(params, count)
            optimizer.step()
        named = {str(i): p.detach().numpy() for i, p in enumerate(params)}
        results.append(named | {"norm": np.array(optimizer.grad_norm)})
    assert_identical(results[0], results[1])


@pytest.mark.parametrize("kind", ["StepLR", "OneCycleLR", "ReduceLROnPlateau", "LambdaLR"])
@pytest.mark.parametrize("name", ["sgd-momentum", "adamw"])
@pytest.mark.filterwarnings("ignore:Detected call of")
def test_schedulers(name: str, kind: str) -> None:
    choices: dict[str, dict[str, Any]] = {
        "StepLR": {"step_size": 2},
        "OneCycleLR": {"max_lr": 0.1, "total_steps": STEPS + 1},
        "ReduceLROnPlateau": {"patience": 0},
        "LambdaLR": {"lr_lambda": lambda epoch: 1 / (1 + epoch)},
    }
    both = pair(name, max_norm=1.0)
    schedules = [getattr(torch.optim.lr_scheduler, kind)(o, **choices[kind]) for o, _ in both]
    for count in range(1, STEPS + 1):
        step_both(*both, count)
        for schedule in schedules:
            schedule.step(*([1.0] if kind == "ReduceLROnPlateau" else []))
        assert both[0][0].param_groups[0]["lr"] == both[1][0].param_groups[0]["lr"]
    assert both[0][0].param_groups[0]["lr"] != 0.05
    assert_same(both[0][1], both[1][1])


# --- States that move ---------------------------------------------------------------------------


@all_optimizers
@pytest.mark.parametrize("to_torch", [True, False])
def test_the_state_goes_both_ways(name: str, to_torch: bool) -> None:
    """In the middle of training, through a file, into an optimizer with other options."""
    ours, theirs = pair(name)
    for count in (1, 2):
        step_both(ours, theirs, count, missing=(2,) if count == 1 else ())
    source, target = (ours, theirs) if to_torch else (theirs, ours)
    file = io.BytesIO()
    torch.save(source[0].state_dict(), file)
    file.seek(0)
    kind, _ = OPTIMIZERS[name]
    module = torch.optim if to_torch else optim
    fresh = getattr(module, kind)(source[1], lr=7.0)
    fresh.load_state_dict(torch.load(file))
    assert fresh.param_groups[0]["lr"] == 0.05
    for count in (3, 4):
        for optimizer, params in ((fresh, source[1]), target):
            set_grads(params, count)
            optimizer.step()
    assert_same(source[1], target[1])
    assert_same_state(*((target[0], fresh) if to_torch else (fresh, target[0])))


@all_optimizers
@pytest.mark.parametrize("way", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on_alike(name: str, way: Any) -> None:
    """Options and state come along, and the memory is the copy's own."""
    (ours, params), _ = pair(name, max_norm=0.5, non_finite="skip")
    set_grads(params, 1)
    ours.step()
    other = way(ours)
    twins = other.param_groups[0]["params"]
    assert (other.max_norm, other.non_finite, other.grad_norm) == (0.5, "skip", ours.grad_norm)
    for optimizer, own in ((ours, params), (other, twins)):
        for count in (2, 3):
            set_grads(own, count)
            optimizer.step()
    results = [{str(i): p.detach().numpy() for i, p in enumerate(own)} for own in (params, twins)]
    assert_identical(*results)
    for p, q in zip(params, twins, strict=True):
        assert p.data_ptr() != q.data_ptr() or not p.numel()


def test_replaced_tensors() -> None:
    """Memory, state and dtype may change between two steps."""
    ours, theirs = pair("adamw")
    step_both(ours, theirs, 1)
    for optimizer, params in (ours, theirs):
        params[1].data = torch.full_like(params[1], 3.0)
        entries = optimizer.state[params[3]]
        entries["exp_avg"] = torch.ones_like(entries["exp_avg"])
        optimizer.state[params[4]].clear()
        optimizer.state[params[5]]["step"] = torch.tensor(9.0)
    step_both(ours, theirs, 2)
    assert_same(ours[1], theirs[1])
    for optimizer, params in (ours, theirs):
        for p in params:
            p.data = p.data.double()
            p.grad = None
        optimizer.load_state_dict(optimizer.state_dict())  # casts the state
    step_both(ours, theirs, 3)
    assert all(p.dtype == torch.float64 for p in ours[1])
    single = float(np.finfo("float32").eps)  # of the steps before
    assert_same(ours[1], theirs[1], eps=single)
    assert_same_state(ours[0], theirs[0], eps=single)


def test_parameters_that_left_are_forgotten() -> None:
    params = parameters()
    optimizer = optim.SGD(params, lr=0.1)
    set_grads(params, 1)
    optimizer.step()
    optimizer.param_groups[0]["params"] = params[:2]
    optimizer.step()
    assert {id(p) for p in params[:2]} == optimizer._views.keys()


# --- Layouts ------------------------------------------------------------------------------------


@all_optimizers
@pytest.mark.parametrize("grad_last", [True, False])
@pytest.mark.parametrize("state_last", [True, False])
def test_dense_parameters_in_other_orders(name: str, grad_last: bool, state_last: bool) -> None:
    """Channels-last and transposed weights, with gradients and states in any order."""
    kind, options = OPTIMIZERS[name]
    made = []
    for module in (optim, torch.optim):
        weight, matrix = draw(0, shapes=((6, 5, 3, 3), (7, 9)))
        params = [
            torch.nn.Parameter(weight.to(memory_format=torch.channels_last)),
            torch.nn.Parameter(matrix.t()),
        ]
        made.append((getattr(module, kind)(params, lr=0.05, **options), params))
    for count in range(1, STEPS + 1):
        for optimizer, params in made:
            set_grads(params, count)
            if not grad_last:
                for p in params:
                    p.grad = p.grad.contiguous()
            optimizer.step()
            if not state_last:
                for entries in optimizer.state.values():
                    for key in entries:
                        entries[key] = entries[key].contiguous()
    assert_same(made[0][1], made[1][1])
    assert not made[0][1][0].is_contiguous()


@classes
def test_gradients_in_any_layout(kind: str) -> None:
    results = []
    values = draw(1, shapes=((12, 10),))[0]
    wide = torch.zeros(24, 30)
    wide[::2, ::3] = values
    with_graph = values.clone().requires_grad_()
    for grad in (values, wide[::2, ::3], values.t().contiguous().t(), with_graph):
        (p,) = parameters(shapes=((12, 10),))
        p.grad = grad
        getattr(optim, kind)([p], lr=0.1, max_norm=1.0).step()
        results.append({"p": p.detach().numpy()})
    assert not values.requires_grad
    for result in results[1:]:
        assert_identical(result, results[0])


# --- The contract of an optimizer ---------------------------------------------------------------


def test_gradients_are_left_alone() -> None:
    params = parameters()
    set_grads(params, 1)
    kept = [p.grad.clone() for p in params]
    optimizer = optim.Adam(params, max_norm=0.1)
    assert optimizer.grad_norm is None
    optimizer.step()
    assert all(torch.equal(p.grad, k) for p, k in zip(params, kept, strict=True))
    assert optimizer.grad_norm == pytest.approx(
        math.sqrt(sum(float((k.double() ** 2).sum()) for k in kept)), rel=1e-12
    )
    optimizer.zero_grad(set_to_none=False)
    assert not any(p.grad.any() for p in params)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


@classes
def test_training_with_hooks_and_a_closure(kind: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3)
    x, y = torch.randn(20, 5), torch.randn(20, 3)
    optimizer = getattr(optim, kind)(model.parameters(), lr=0.01, max_norm=1.0)
    calls = []
    optimizer.register_step_pre_hook(lambda *args: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *args: calls.append("post"))

    def closure() -> Any:
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    with torch.no_grad():
        losses = [float(optimizer.step(closure)) for _ in range(20)]
    assert calls == ["pre", "post"] * 20
    assert losses[-1] < losses[0]
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())


def test_autograd_notices_the_update() -> None:
    """As with torch's own: a graph that needs the old values refuses to go back."""
    w = torch.nn.Parameter(torch.ones(3))
    loss = (w * w).sum()
    loss.backward(retain_graph=True)
    optim.SGD([w], lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_grad_scaler() -> None:
    """It unscales by itself, also where `fused` would have left that to torch's kernel."""
    (w,) = parameters(shapes=((4,),))
    optimizer = optim.AdamW([w], lr=0.1, fused=True, max_norm=5.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    scaler.scale((w * torch.tensor([1.0, 2.0, 2.0, 4.0])).sum()).backward()
    scaler.step(optimizer)
    assert optimizer.grad_norm == pytest.approx(5.0)


@pytest.mark.usefixtures("isa")
@all_optimizers
@dtypes
def test_the_same_bits_for_every_number_of_threads(name: str, dtype: str) -> None:
    kind, options = OPTIMIZERS[name]
    results = []
    for n in (1, 2, 3):
        params = parameters(dtype, ((300, 301), (5,), (70001,)))
        optimizer = getattr(optim, kind)(params, lr=0.1, max_norm=1.0, **options)
        with tbptt_fast.num_threads(n):
            for count in (1, 2):
                set_grads(params, count)
                optimizer.step()
        named = {f"param {i}": p.detach().numpy() for i, p in enumerate(params)}
        for i, entries in optimizer.state_dict()["state"].items():
            named |= {f"{key} {i}": tensor.numpy() for key, tensor in entries.items()}
        results.append(named | {"norm": np.array(optimizer.grad_norm)})
    for result in results[1:]:
        assert_identical(result, results[0])
