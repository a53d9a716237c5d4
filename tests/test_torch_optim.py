"""The optimizers for PyTorch against torch.optim: steps, groups, clipping, states, errors."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest

import tbptt_fast

from .cases import DTYPES, assert_close, assert_identical

torch = pytest.importorskip("torch")
optim = pytest.importorskip("tbptt_fast.torch.optim")

# Around the lanes and the blocks of the kernels, no element, no dimension, images.
SHAPES: tuple[tuple[int, ...], ...] = (
    (),
    (7,),
    (0, 4),
    (33,),
    (4097,),
    (90, 91),
    (8, 3, 5, 5),
)
STEPS = 4

# The class and its options. With weight decay a gradient may cancel to nearly nothing; a large eps
# then keeps its rounding error from being divided by itself.
DECAY = {"weight_decay": 0.1, "eps": 0.1}
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {}),
    "sgd-decay": ("SGD", {"weight_decay": 0.1, "maximize": True}),
    "sgd-momentum": ("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
    "sgd-dampening": ("SGD", {"momentum": 0.9, "dampening": 0.4}),
    "sgd-nesterov": ("SGD", {"momentum": 0.8, "nesterov": True, "maximize": True}),
    "rmsprop": ("RMSprop", {"maximize": True}),
    "rmsprop-momentum": ("RMSprop", {"momentum": 0.9, "alpha": 0.9, **DECAY}),
    "rmsprop-centered": ("RMSprop", {"centered": True, "alpha": 0.8, "eps": 0.1}),
    "rmsprop-both": ("RMSprop", {"centered": True, "momentum": 0.5, **DECAY}),
    "adam": ("Adam", {"maximize": True}),
    "adam-decay": ("Adam", {"betas": (0.8, 0.95), **DECAY}),
    "adam-amsgrad": ("Adam", {"betas": (0.8, 0.5), "amsgrad": True, "eps": 0.1}),
    "adamw": ("AdamW", {"weight_decay": 0.1}),
    "adamw-amsgrad": ("AdamW", {"amsgrad": True, "betas": (0.5, 0.5), **DECAY}),
}
CLIPS = (None, 0.5, 1e6)

all_optimizers = pytest.mark.parametrize("name", OPTIMIZERS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
classes = pytest.mark.parametrize("kind", ["SGD", "RMSprop", "Adam", "AdamW"])


def draw(
    seed: int, dtype: str = "float32", shapes: Iterable[tuple[int, ...]] = SHAPES
) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(np.array(rng.standard_normal(s), dtype)) for s in shapes]


def parameters(dtype: str = "float32", shapes: Iterable[tuple[int, ...]] = SHAPES) -> list[Any]:
    return [torch.nn.Parameter(values) for values in draw(0, dtype, shapes)]


def set_grads(params: Sequence[Any], seed: int, missing: Sequence[int] = ()) -> None:
    """The same values for every list of parameters of the same shapes, whatever their dtype."""
    grads = draw(seed, "float64", [tuple(p.shape) for p in params])
    for i, (p, grad) in enumerate(zip(params, grads, strict=True)):
        p.grad = None if i in missing else torch.empty_like(p).copy_(grad)


def step_both(
    ours: tuple[Any, list[Any]],
    theirs: tuple[Any, list[Any]],
    seed: int,
    missing: Sequence[int] = (),
) -> None:
    """One step of each; torch's clips by the max_norm of ours."""
    for optimizer, params in (ours, theirs):
        set_grads(params, seed, missing)
        if optimizer is theirs[0]:
            limit = math.inf if ours[0].max_norm is None else ours[0].max_norm
            norm = torch.nn.utils.clip_grad_norm_([p for p in params if p.grad is not None], limit)
        optimizer.step()
    assert ours[0].grad_norm == pytest.approx(float(norm), rel=1e-5)


def assert_same(
    ours: Sequence[Any], theirs: Sequence[Any], steps: int = STEPS, eps: float | None = None
) -> None:
    for p, q in zip(ours, theirs, strict=True):
        assert p.dtype == q.dtype
        assert_close(p.detach().numpy(), q.detach().numpy(), "gradient", length=steps**2, eps=eps)


def assert_same_state(ours: Any, theirs: Any, eps: float | None = None) -> None:
    """State dicts of the same entries, names, types and, up to rounding, values."""
    a, b = ours.state_dict(), theirs.state_dict()
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for key, entries in a["state"].items():
        assert list(entries) == list(b["state"][key])
        for name, tensor in entries.items():
            other = b["state"][key][name]
            assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
            assert not tensor.numel() or tensor.stride() == other.stride(), name
            assert_close(
                tensor.numpy(), other.numpy(), "gradient", length=STEPS**2, eps=eps, name=name
            )


def pair(
    name: str, dtype: str = "float32", **options: Any
) -> tuple[tuple[Any, list[Any]], tuple[Any, list[Any]]]:
    """Ours and torch's over equal parameters."""
    kind, more = OPTIMIZERS[name]
    own, other = parameters(dtype), parameters(dtype)
    ours = getattr(optim, kind)(own, lr=0.05, **more, **options)
    theirs = getattr(torch.optim, kind)(other, lr=0.05, **more)
    return (ours, own), (theirs, other)


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


# --- Refused ------------------------------------------------------------------------------------


@all_optimizers
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_that_are_not_finite(name: str, bad: float, groups: int) -> None:
    kind, options = OPTIMIZERS[name]
    ours, theirs = (
        (getattr(module, kind)([{"params": p[:4]}, {"params": p[4:]}][:groups], **more), p)
        for module, p, more in (
            (optim, parameters(), {"lr": 0.05, **options}),
            (torch.optim, parameters(), {"lr": 0.05, **options}),
        )
    )
    if groups == 1:
        for optimizer, p in (ours, theirs):
            optimizer.param_groups[0]["params"] = list(p)
    index, position = ("0", 5) if groups == 1 else ("1", 1)
    for count in (1, 2):  # before there is a state, and after
        set_grads(ours[1], 7)
        ours[1][5].grad[0, 3] = bad
        state, values = copy.deepcopy(ours[0].state_dict()), [p.clone() for p in ours[1]]
        expected = rf"^gradient of {kind}: parameter {position} of group {index}: non-finite"
        ours[0].non_finite = "raise"
        with pytest.raises(FloatingPointError, match=expected):
            ours[0].step()
        ours[0].non_finite = "skip"
        ours[0].step()
        assert math.isnan(ours[0].grad_norm)
        assert all(torch.equal(p, q) for p, q in zip(ours[1], values, strict=True))
        after = ours[0].state_dict()["state"]
        assert after.keys() == state["state"].keys()
        for key, entries in after.items():
            assert all(torch.equal(t, state["state"][key][n]) for n, t in entries.items())
        step_both(ours, theirs, count)
    assert_same(ours[1], theirs[1])


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("RMSprop", {"capturable": True}, "RMSprop: capturable: expected False, got True"),
    ("Adam", {"capturable": True}, "Adam: capturable: expected False, got True"),
    ("AdamW", {"differentiable": True}, "AdamW: differentiable: expected False, got True"),
    ("SGD", {"differentiable": True}, "SGD: differentiable: expected False, got True"),
    ("Adam", {"eps": 0.0}, "adam_step: eps: expected a finite number > 0, got 0.0"),
    ("RMSprop", {"alpha": 1.0}, r"rmsprop_step: alpha: expected a number in \[0, 1\), got 1.0"),
]


@pytest.mark.parametrize(("kind", "options", "text"), REFUSED)
def test_options_without_a_kernel(kind: str, options: dict[str, Any], text: str) -> None:
    """Refused wherever they come from; what was there before stays."""
    make = getattr(optim, kind)
    with pytest.raises(ValueError, match=f"^{text}"):
        make(parameters(), lr=0.1, **options)
    params = parameters()
    optimizer = make(params[:3], lr=0.1)
    with pytest.raises(ValueError, match=f"^{text}"):
        optimizer.add_param_group({"params": params[3:], **options})
    assert len(optimizer.param_groups) == 1
    state = optimizer.state_dict()
    state["param_groups"][0] |= {**options, "lr": 0.7}
    with pytest.raises(ValueError, match=f"^{text}"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.1
    set_grads(params, 1)
    before = [p.clone() for p in params]
    optimizer.param_groups[0].update(options)
    with pytest.raises(ValueError, match=f"^{text}"):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


@classes
def test_wrong_keywords(kind: str) -> None:
    make = getattr(optim, kind)
    op = f"{kind.removesuffix('W').lower()}_step"
    for max_norm in (0.0, -1.0, math.nan, math.inf):
        text = f"^{op}: max_norm: expected None or a finite number > 0"
        with pytest.raises(ValueError, match=text):
            make(parameters(), lr=0.1, max_norm=max_norm)
    with pytest.raises(TypeError, match=f"^{op}: max_norm: expected None or .* got str"):
        make(parameters(), lr=0.1, max_norm="1")
    with pytest.raises(ValueError, match=f"^{kind}: non_finite: expected 'raise' or 'skip'"):
        make(parameters(), lr=0.1, non_finite="ignore")


@classes
@pytest.mark.parametrize(
    ("tensor", "error", "text"),
    [
        (lambda: torch.ones(3, dtype=torch.float16), TypeError, "float64, got torch.float16"),
        (lambda: torch.ones(3, dtype=torch.bfloat16), TypeError, "float64, got torch.bfloat16"),
        (lambda: torch.ones(3, dtype=torch.complex64), TypeError, "got torch.complex64"),
        (lambda: torch.ones(3, device="meta"), TypeError, "on the device cpu, got meta"),
        (lambda: torch.ones(6)[::2], ValueError, r"without gaps .* shape \[3\] with strides \[2\]"),
        (lambda: torch.ones(1).expand(3), ValueError, r"without gaps .* strides \[0\]"),
        (lambda: torch.eye(2).to_sparse(), TypeError, "dense tensor .* got torch.sparse_coo"),
    ],
)
def test_wrong_parameters(kind: str, tensor: Any, error: type[Exception], text: str) -> None:
    """At construction, in a new group, and when it comes later."""
    make = getattr(optim, kind)
    where = f"^{kind}: parameter 1 of group 0: .*"
    good, other = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    with pytest.raises(error, match=where + text):
        make([good, tensor().requires_grad_()], lr=0.1)
    optimizer = make([good], lr=0.1)
    with pytest.raises(error, match=where.replace("1 of group 0", "0 of group 1") + text):
        optimizer.add_param_group({"params": [tensor().requires_grad_()]})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [other]})
    wrong = tensor().requires_grad_()
    optimizer.param_groups[0]["params"] = [good, wrong]
    set_grads([good, other], 1)
    wrong.grad = torch.zeros_like(wrong)
    with pytest.raises(error, match=where + text):
        optimizer.step()
    assert torch.equal(good, torch.ones(3))
    assert not optimizer.state


@classes
def test_sparse_gradients(kind: str) -> None:
    table = torch.nn.Embedding(5, 3, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    optimizer = getattr(optim, kind)(table.parameters(), lr=0.1)
    text = (
        f"^gradient of {kind}: parameter 0 of group 0: expected a dense tensor .* torch.sparse_coo"
    )
    with pytest.raises(TypeError, match=text):
        optimizer.step()
    assert not optimizer.state


def test_wrong_states() -> None:
    (p,) = parameters(shapes=((3,),))
    p.grad = torch.ones(3)
    for wrong, error, text in (
        (torch.ones(4), ValueError, r"expected shape \[3\], got \[4\]"),
        (
            torch.ones(3, dtype=torch.float64),
            TypeError,
            "expected torch.float32, got torch.float64",
        ),
        (np.ones(3), TypeError, "expected a tensor, got ndarray"),
    ):
        optimizer = optim.Adam([p])
        optimizer.step()
        optimizer.state[p]["exp_avg"] = wrong
        with pytest.raises(error, match=f"^exp_avg of Adam: parameter 0 of group 0: {text}"):
            optimizer.step()


def test_names_of_parameters_are_told() -> None:
    model = torch.nn.Linear(2, 1)
    try:
        optimizer = optim.SGD(model.named_parameters(), lr=0.1)
    except TypeError:
        pytest.skip("this PyTorch takes no named parameters")
    model.weight.grad = torch.full((1, 2), math.nan)
    with pytest.raises(FloatingPointError, match=r"parameter 0 of group 0 \(weight\): non-finite"):
        optimizer.step()
