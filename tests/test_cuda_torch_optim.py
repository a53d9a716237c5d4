"""The optimizers for PyTorch on the CUDA kernels, against torch.optim on the CPU.

Where there is no GPU, tensors on the CPU go to the emulated device: it reads their memory.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tbptt_fast import cuda  # noqa: E402
from tbptt_fast.torch import _views  # noqa: E402

from .cases import assert_close  # noqa: E402
from .cuda_cases import NO_GPU  # noqa: E402
from .torch_optim_cases import (  # noqa: E402
    CLIPS,
    OPTIMIZERS,
    SHAPES,
    STEPS,
    all_optimizers,
    classes,
    dtypes,
    optim,
    parameters,
    set_grads,
)


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device of the parameters; those of the CPU are updated by the emulated kernels."""
    if request.param == "cuda":
        if (reason := cuda.why_not()) or not torch.cuda.is_available():
            pytest.skip(f"{NO_GPU}: {reason or 'PyTorch sees none'}")
        return "cuda"
    request.getfixturevalue("emulated")
    monkeypatch.setattr(_views, "is_on_gpu", lambda tensor: True)
    return "cpu"


def on(place: str, dtype: str = "float32") -> list[Any]:
    return [torch.nn.Parameter(p.detach().to(place)) for p in parameters(dtype)]


def make(name: str, params: Any, **options: Any) -> Any:
    kind, more = OPTIMIZERS[name]
    return getattr(optim, kind)(params, lr=0.05, **more, **options)


def step_theirs(optimizer: Any, params: list[Any], max_norm: float | None, seed: int) -> float:
    set_grads(params, seed)
    norm = torch.nn.utils.clip_grad_norm_(params, math.inf if max_norm is None else max_norm)
    optimizer.step()
    return float(norm)


def check(ours: list[Any], theirs: list[Any], steps: int = STEPS, eps: float | None = None) -> None:
    for p, q in zip(ours, theirs, strict=True):
        found, wanted = p.detach().cpu().numpy(), q.detach().numpy()
        assert_close(found, wanted, "gradient", length=steps**2, eps=eps)


def check_state(ours: Any, theirs: Any) -> None:
    """The same entries, types and, up to rounding, values."""
    a, b = ours.state_dict()["state"], theirs.state_dict()["state"]
    assert a.keys() == b.keys()
    for key, entries in a.items():
        assert list(entries) == list(b[key])
        for name, tensor in entries.items():
            other = b[key][name]
            assert tensor.dtype == other.dtype
            check([tensor], [other])


@all_optimizers
@dtypes
@pytest.mark.parametrize("max_norm", CLIPS)
def test_every_step_equals_torch(place: str, name: str, dtype: str, max_norm: float | None) -> None:
    params, others = on(place, dtype), parameters(dtype)
    ours = make(name, params, max_norm=max_norm)
    kind, more = OPTIMIZERS[name]
    theirs = getattr(torch.optim, kind)(others, lr=0.05, **more)
    for count in range(1, STEPS + 1):
        norm = step_theirs(theirs, others, max_norm, count)
        set_grads(params, count)
        ours.step()
        assert isinstance(ours.grad_norm, torch.Tensor)
        assert (ours.grad_norm.dtype, ours.grad_norm.shape) == (torch.float64, ())
        assert float(ours.grad_norm) == pytest.approx(norm, rel=1e-5)
        check(params, others, count)
    if not ours.defaults.get("maximize"):
        check_state(ours, theirs)


@all_optimizers
def test_one_native_call_for_all_parameters(
    place: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing that waits: no value of a tensor is read."""
    params = on(place)
    ours = make(name, params, max_norm=1.0)
    calls: list[str] = []
    original = _views.Batch.call

    def counted(self: Any, op: str, *arguments: Any) -> Any:
        if self.params:  # else it looks at the options only
            calls.append(op)
        return original(self, op, *arguments)

    monkeypatch.setattr(_views.Batch, "call", counted)
    for count in (1, 2):
        set_grads(params, count)
        if count == 2:  # SGD's first step with dampening is waited for
            for method in ("item", "tolist", "__float__", "__bool__"):
                monkeypatch.setattr(torch.Tensor, method, refuse)
        ours.step()
    monkeypatch.undo()
    assert calls == [calls[0]] * 2


def refuse(*args: Any) -> Any:
    raise AssertionError("this waits for the device")


@all_optimizers
def test_groups_of_options_and_dtypes(place: str, name: str) -> None:
    """One norm over groups with rates of their own, one of them in two dtypes."""
    kind, options = OPTIMIZERS[name]
    made = []
    for module in (optim, torch.optim):
        own = module is optim
        params = on(place) + on(place, "float64") if own else parameters() + parameters("float64")
        groups = [
            {"params": params[:3]},
            {"params": params[5:9], "lr": 0.01, "weight_decay": 0.2},
            {"params": params[3:5], "lr": torch.tensor(0.02)},
            {"params": params[9:], "lr": 0.03},
        ]
        clip: dict[str, Any] = {"max_norm": 0.7} if own else {}
        made.append((getattr(module, kind)(groups, lr=0.05, **options, **clip), params))
    (ours, params), (theirs, others) = made
    for count in range(1, STEPS + 1):
        norm = step_theirs(theirs, others, 0.7, count)
        set_grads(params, count)
        ours.step()
        assert float(ours.grad_norm) == pytest.approx(norm, rel=1e-5)
    check(params, others, eps=float(np.finfo("float32").eps))


@all_optimizers
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_that_are_not_finite(place: str, name: str, bad: float, groups: int) -> None:
    """By default the step is skipped, and not counted; "raise" waits and tells where it was."""
    params, others = on(place), parameters()
    parts = [params] if groups == 1 else [params[:4], params[4:]]
    ours = make(name, [{"params": part} for part in parts], max_norm=1.0)
    kind, more = OPTIMIZERS[name]
    theirs = getattr(torch.optim, kind)(others, lr=0.05, **more)
    assert ours.non_finite is None
    index, position = ("0", 5) if groups == 1 else ("1", 1)
    for count in (1, 2):  # before there is a state, and after
        before = [p.detach().clone() for p in params]
        for mode in (None, "skip", "raise"):
            set_grads(params, 7)
            params[5].grad[0, 3] = bad
            ours.non_finite = mode
            if mode == "raise":
                text = f"gradient of {kind}: parameter {position} of group {index}: non-finite"
                with pytest.raises(FloatingPointError, match=text):
                    ours.step()
            else:
                ours.step()
            assert math.isnan(float(ours.grad_norm))
            assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
        ours.non_finite = None
        step_theirs(theirs, others, 1.0, count)
        set_grads(params, count)
        ours.step()
    check(params, others)
    if not ours.defaults.get("maximize"):
        check_state(ours, theirs)


@all_optimizers
@pytest.mark.parametrize("to_torch", [True, False])
def test_the_state_goes_both_ways(place: str, name: str, to_torch: bool) -> None:
    """In the middle of training, to torch's optimizer on the CPU and back."""
    params, others = on(place), parameters()
    ours = make(name, params)
    kind, more = OPTIMIZERS[name]
    theirs = getattr(torch.optim, kind)(others, lr=0.05, **more)
    for count in (1, 2):
        step_theirs(theirs, others, None, count)
        set_grads(params, count)
        ours.step()
    if to_torch:
        source, target = ours, getattr(torch.optim, kind)(on(place), lr=7.0)
    else:
        source, target = theirs, getattr(optim, kind)(on(place), lr=7.0)
    state = copy.deepcopy(source.state_dict())
    with torch.no_grad():
        for group, given in zip(target.param_groups, source.param_groups, strict=True):
            for p, q in zip(group["params"], given["params"], strict=True):
                p.copy_(q)
    target.load_state_dict(state)
    continued = target.param_groups[0]["params"]
    for count in (3, 4):
        step_theirs(theirs, others, None, count)
        set_grads(continued, count)
        target.step()
    check(continued, others)


@classes
def test_channels_last_and_gradients_in_another_order(place: str, kind: str) -> None:
    rng = np.random.default_rng(0)
    values, grads = (torch.from_numpy(rng.normal(size=(4, 3, 5, 2))) for _ in range(2))
    found = []
    for memory in (torch.contiguous_format, torch.channels_last):
        for other in (torch.contiguous_format, torch.channels_last):
            given = values.clone(memory_format=memory).to(place)
            p = torch.nn.Parameter(given)
            p.grad = grads.to(place).contiguous(memory_format=other)
            optimizer = getattr(optim, kind)([p], lr=0.1, max_norm=1.0)
            optimizer.step()
            assert p.is_contiguous(memory_format=memory)
            found.append(p.detach().cpu())
    for p in found[1:]:
        torch.testing.assert_close(p, found[0], rtol=1e-12, atol=1e-12)


def test_some_on_a_gpu_and_some_on_the_cpu(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One norm over both; the host has to wait for its part."""
    if place == "cpu":
        monkeypatch.setattr(_views, "is_on_gpu", lambda tensor: tensor.dim() == 2)
    params = [
        torch.nn.Parameter(p.detach().to(place if p.dim() == 2 else "cpu")) for p in parameters()
    ]
    others = parameters()
    ours, theirs = (
        optim.SGD(params, lr=0.1, momentum=0.9, max_norm=0.7),
        torch.optim.SGD(others, lr=0.1, momentum=0.9),
    )
    for count in (1, 2):
        norm = step_theirs(theirs, others, 0.7, count)
        set_grads(params, count)
        ours.step()
        assert float(ours.grad_norm) == pytest.approx(norm, rel=1e-5)
    check(params, others)


@pytest.mark.parametrize("kind", ["RMSprop", "Adam", "AdamW"])
def test_capturable_is_taken(place: str, kind: str) -> None:
    params = on(place)
    if place == "cpu":  # torch checks at construction that tensors are on a GPU
        optimizer = getattr(optim, kind)(params, lr=0.1)
        optimizer.param_groups[0]["capturable"] = True
    else:
        optimizer = getattr(optim, kind)(params, lr=0.1, capturable=True)
    set_grads(params, 1)
    optimizer.step()
    assert float(optimizer.state[params[0]]["step"]) == 1


def test_what_a_gpu_refuses(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    params = on(place)
    set_grads(params, 1)
    optimizer = optim.Adam(params, lr=0.1)
    optimizer.step()
    params[5].grad = torch.zeros(90, 91, device=place).to_sparse()
    with pytest.raises(TypeError, match=r"gradient of Adam: parameter 5 of group 0: .*sparse"):
        optimizer.step()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    set_grads(params, 1)
    optimizer.step()
    with pytest.raises(RuntimeError, match="SGD: expected a step before one is captured"):
        optim.SGD(params, lr=0.1, momentum=0.5).step()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sgd-momentum", "rmsprop-both", "adam", "adamw-amsgrad"])
def test_a_captured_step_goes_on_counting(name: str) -> None:
    """A graph that is replayed does what eager steps do, the number of the step included."""
    if (reason := cuda.why_not()) or not torch.cuda.is_available():
        pytest.skip(f"{NO_GPU}: {reason or 'PyTorch sees none'}")
    eager, captured = on("cuda"), on("cuda")
    a, b = make(name, eager, max_norm=0.9), make(name, captured, max_norm=0.9)
    for params, optimizer in ((eager, a), (captured, b)):
        set_grads(params, 1)
        optimizer.step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        b.step()
    for _ in range(4):
        graph.replay()
        a.step()
    torch.testing.assert_close(captured, eager, rtol=0, atol=0)
    torch.testing.assert_close(b.grad_norm, a.grad_norm, rtol=0, atol=0)
    assert len(SHAPES) == len(captured)
