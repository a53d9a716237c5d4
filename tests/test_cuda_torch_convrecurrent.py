"""PyTorch's layers on images with the CUDA kernels: which are called, and what comes back.

Where there is no GPU, tensors on the CPU go to the emulated device: it reads their memory.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import tbptt_fast.torch as ours  # noqa: E402
from tbptt_fast import cuda  # noqa: E402
from tbptt_fast.torch import _bridge, convrecurrent_ops  # noqa: E402
from tbptt_fast.torch.recurrent_ops import CELLS, Layer  # noqa: E402

from .cuda_cases import NO_GPU, EmulatedDevice  # noqa: E402
from .test_cuda_torch import TF32, leaves  # noqa: E402
from .torch_cases import close  # noqa: E402

KINDS: dict[str, dict[str, Any]] = {
    "ConvRNN2d": {"nonlinearity": "tanh"},
    "ConvGRU2d": {"dilation": (1, 2)},
    "ConvLSTM2d": {"peephole": True},
}


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device of the tensors; those of the CPU run on the emulated kernels."""
    if request.param == "cuda":
        if (reason := cuda.why_not()) or not torch.cuda.is_available():
            pytest.skip(f"{NO_GPU}: {reason or 'PyTorch sees none'}")
        return "cuda"
    request.getfixturevalue("emulated")
    monkeypatch.setattr(Layer, "is_on_gpu", staticmethod(lambda x: True))
    return "cpu"


def results(layer: Any, x: Any, **options: Any) -> list[Any]:
    """Outputs, last states and all gradients, on the CPU."""
    x = x.clone().requires_grad_()
    layer.zero_grad(set_to_none=True)
    found = leaves(layer(x, **options))
    torch.autograd.backward(found, [torch.ones_like(r) for r in found])
    return [t.cpu() for t in (*found, x.grad, *(p.grad for p in layer.parameters()))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("recompute", [False, True])
def test_layers_are_those_of_the_cpu(place: str, kind: str, layout: Any, recompute: bool) -> None:
    torch.manual_seed(3)
    options = {"layout": layout, "recompute": recompute, **KINDS[kind]}
    layer = getattr(ours, kind)(2, 5, 3, 2, dtype=torch.float64, **options)
    size = (7, 3, 2, 4, 5) if layout == "NCHW" else (7, 3, 4, 5, 2)
    x = torch.randn(size, dtype=torch.float64)
    starts, scale = torch.rand(7, 3) < 0.2, torch.rand(7, 3, dtype=torch.float64)
    given = {"is_init": starts, "carry_scale": scale}
    for truncation in (None, 2, (1, 3)):
        moved = {name: mask.to(place) for name, mask in given.items()}
        found = results(layer.to(place), x.to(place), truncation=truncation, **moved)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Layer, "is_on_gpu", staticmethod(lambda x: False))
            expected = results(layer.to("cpu"), x, truncation=truncation, **given)
        close(found, expected, 1e-10)
    with torch.no_grad():
        out, _ = layer.to(place)(x.to(place))
    assert out.requires_grad is False


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_close(place: str, kind: str) -> None:
    torch.manual_seed(4)
    layer = getattr(ours, kind)(3, 8, 3, **KINDS[kind])
    x = torch.randn(4, 2, 3, 6, 5)
    found = results(layer.to(place), x.to(place))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Layer, "is_on_gpu", staticmethod(lambda x: False))
        close(found, results(layer.to("cpu"), x), TF32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("recompute", [False, True])
def test_layers_in_bfloat16(
    place: str, kind: str, layout: Any, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As near to the float64 layer, on the same rounded numbers, as bfloat16 allows."""
    torch.manual_seed(5)
    options = {"layout": layout, "recompute": recompute, **KINDS[kind]}
    layer = getattr(ours, kind)(2, 5, 3, 2, dtype=torch.bfloat16, **options)
    size = (7, 3, 2, 4, 5) if layout == "NCHW" else (7, 3, 4, 5, 2)
    x, starts = torch.randn(size).bfloat16(), torch.rand(7, 3) < 0.2
    wide = copy.deepcopy(layer).to(place, torch.float64)
    starts = starts.to(place)
    exact = results(wide, x.to(place, torch.float64), is_init=starts, truncation=3)
    if place == "cpu":
        monkeypatch.setattr(_bridge, "has_bfloat16", lambda tensor: True)
    found = results(layer.to(place), x.to(place), is_init=starts, truncation=3)
    for tensor, wanted in zip(found, exact, strict=True):
        assert tensor.dtype == torch.bfloat16
        bound = 2.0**-6 * max(1.0, wanted.abs().max().item())
        torch.testing.assert_close(tensor.detach().double(), wanted.detach(), rtol=0, atol=bound)


def test_what_autocast_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of the other layers: bfloat16 if that is its type and there are kernels."""
    layer, x = convrecurrent_ops._LAYERS["lstm"], torch.zeros(2, 1, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.autocast_forward(x) == torch.float32
        monkeypatch.setattr(_bridge, "has_bfloat16", lambda tensor: True)
        assert layer.autocast_forward(x) == torch.bfloat16
    tape = x.bfloat16()
    assert layer.autocast_backward(None, None, None, tape, x) == torch.bfloat16
    assert layer.autocast_backward(None, None, None, x, x) == torch.float32


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("recompute", [False, True])
def test_the_operators_shapes_are_those_of_their_fakes(
    place: str, cell: Any, recompute: bool
) -> None:
    """What compilers believe is what comes, the size of the tape included."""
    layer = convrecurrent_ops._LAYERS[cell]
    rows = {"gru": 15, "lstm": 20}.get(cell, 5)
    states = [torch.randn(2, 5, 4, 3) for _ in range(layer.states)]
    peephole = torch.randn(3, 5) if cell == "lstm" else None
    weights = (torch.randn(rows, 2, 3, 3), torch.randn(rows, 5, 3, 3), torch.randn(rows), None)
    tensors = (torch.randn(6, 2, 2, 4, 3), *states, *weights, peephole)
    tensors = tuple(t if t is None else t.to(place) for t in tensors)
    options = ([1, 1], "NCHW", recompute)
    for keep in (True, False):
        inputs = (*tensors, None, None, [2, 3], *options, keep)
        found, fake = layer.run_forward(*inputs), layer.fake_forward(*inputs)
        assert [t.shape for t in found] == [t.shape for t in fake]
        assert [t.dtype for t in found] == [t.dtype for t in fake]
    found = layer.run_forward(*tensors, None, None, [2, 3], *options, True)
    grads = [torch.ones_like(t) for t in found[: 1 + layer.states]]
    saved = (found[-1], found[0], *tensors, None, None, [2, 3], *options)
    arguments = (*grads, *saved, [True, False, peephole is not None])
    actual, fake = layer.run_backward(*arguments), layer.fake_backward(*arguments)
    assert [t.shape for t in actual] == [t.shape for t in fake]


@pytest.mark.parametrize("allowed", [True, False])
def test_precision_is_torchs(emulated: EmulatedDevice, allowed: bool) -> None:
    layer = convrecurrent_ops._LAYERS["gru"]
    x, w_ih, w_hh = torch.randn(2, 1, 3, 5, 5), torch.randn(24, 3, 3, 3), torch.randn(24, 8, 3, 3)
    more = (None, None, None, None, None, None, [1, 1], "NCHW", False, False)
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = allowed
        found = layer.forward_cuda(x, None, w_ih, w_hh, *more)[0]
    finally:
        torch.backends.cudnn.allow_tf32 = before
    wanted = {
        p: cuda.convgru_forward(x, None, w_ih, w_hh, precision=p)[0] for p in ("tf32", "highest")
    }
    assert not torch.equal(wanted["tf32"], wanted["highest"])
    assert torch.equal(found, wanted["tf32" if allowed else "highest"])


def test_cuda_has_operators_and_rules_for_autocast() -> None:
    registered = torch._C._dispatch_has_kernel_for_dispatch_key
    for cell in CELLS:
        for name in (f"conv{cell}", f"conv{cell}_backward"):
            for key in ("CPU", "CUDA", "AutocastCPU", "AutocastCUDA"):
                assert registered(f"tbptt_fast::{name}", key), (name, key)


@pytest.mark.gpu
def test_compiled_and_under_autocast_on_a_gpu() -> None:
    if (reason := cuda.why_not()) or not torch.cuda.is_available():
        pytest.skip(f"{NO_GPU}: {reason or 'PyTorch sees none'}")
    layer = ours.ConvLSTM2d(4, 8, 3, peephole=True).cuda()
    x = torch.randn(5, 2, 4, 9, 9, device="cuda")
    out, _ = torch.compile(layer, fullgraph=True)(x, truncation=(2, 3))
    out.sum().backward()
    close(out, layer(x)[0], TF32)
    kept = torch.bfloat16 if _bridge.has_bfloat16(x) else torch.float32
    for dtype, wanted in ((torch.float16, torch.float32), (torch.bfloat16, kept)):
        layer.zero_grad()
        with torch.autocast("cuda", dtype):
            found = layer(x.to(dtype))[0]
        assert found.dtype == wanted
        found.float().sum().backward()
        assert {getattr(p.grad, "dtype", None) for p in layer.parameters()} == {torch.float32}
