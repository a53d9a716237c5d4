"""PyTorch's convolutions on the CUDA kernels: which are called, and what comes back.

Where there is no GPU, tensors on the CPU go to the emulated device: it reads their memory.
"""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import tbptt_fast.torch as ours  # noqa: E402
from tbptt_fast import cuda  # noqa: E402
from tbptt_fast.torch import _bridge, convolution_ops  # noqa: E402

from .cuda_cases import NO_GPU, EmulatedDevice  # noqa: E402
from .test_cuda_torch import TF32, results_and_gradients_on  # noqa: E402
from .torch_cases import close, pair, results_and_gradients  # noqa: E402


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device of the tensors; those of the CPU run on the emulated kernels."""
    if request.param == "cuda":
        if (reason := cuda.why_not()) or not torch.cuda.is_available():
            pytest.skip(f"{NO_GPU}: {reason or 'PyTorch sees none'}")
        return "cuda"
    request.getfixturevalue("emulated")
    monkeypatch.setattr(convolution_ops, "_is_on_gpu", lambda x: True)
    return "cpu"


def images(dimensions: int, dtype: Any, last: bool) -> Any:
    x = torch.randn(3, 4, *(11, 9)[:dimensions], dtype=dtype)
    return x.to(memory_format=torch.channels_last) if last else x


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"padding": "same", "dilation": 2},
        {"padding": "valid", "groups": 2, "bias": False},
        {"groups": 4, "padding": 1, "padding_mode": "reflect"},
    ],
    ids=str,
)
@pytest.mark.parametrize(("dimensions", "last"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_layers_are_torchs(
    place: str, options: dict[str, Any], dimensions: int, last: bool, dtype: Any
) -> None:
    theirs, mine = pair(f"Conv{dimensions}d", 4, 8, 3, dtype=dtype, **options)
    mine.to(place)
    x = images(dimensions, dtype, last).requires_grad_()
    given = x.detach().to(place).requires_grad_()
    tolerance = TF32 if dtype is torch.float32 else 1e-10
    found = results_and_gradients_on(place, mine, given)
    close(found, results_and_gradients(theirs, lambda: theirs(x), x), tolerance)
    if last:
        assert mine(given).is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        close(mine(given[0]).cpu(), theirs(x[0]), tolerance)


@pytest.mark.parametrize(("dimensions", "last"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_layers_in_bfloat16(
    place: str, dimensions: int, last: bool, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's float64 layer on the same rounded numbers, each result rounded once."""
    if place == "cpu":
        monkeypatch.setattr(_bridge, "has_bfloat16", lambda tensor: True)
    options = {"padding": 1, "stride": 2, "groups": groups, "dtype": torch.bfloat16}
    theirs, mine = pair(f"Conv{dimensions}d", 4, 8, 3, **options)
    theirs.double()
    mine.to(place)
    assert "backend=tbptt_fast" in repr(mine)
    x = images(dimensions, torch.bfloat16, last)
    wide, given = x.double().requires_grad_(), x.to(place).requires_grad_()
    expected, found = theirs(wide), mine(given)
    grad = torch.randn(expected.shape).bfloat16()
    expected.backward(grad.double())
    found.backward(grad.to(place))
    if last:
        assert found.is_contiguous(memory_format=torch.channels_last)
    results = [found, given.grad, *(p.grad for p in mine.parameters())]
    exact = [expected, wide.grad, *(p.grad for p in theirs.parameters())]
    for tensor, wanted in zip(results, exact, strict=True):
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(
            tensor.detach().cpu().double(), wanted.detach(), rtol=2.0**-8, atol=1e-5
        )


def test_what_autocast_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 if that is its type and there are kernels; a backward pass as its forward pass."""
    x = torch.zeros(1, 1, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert _bridge.autocast_dtype(x) == torch.float32
        monkeypatch.setattr(_bridge, "has_bfloat16", lambda tensor: True)
        assert _bridge.autocast_dtype(x) == torch.bfloat16
    with torch.autocast("cpu", torch.float16):
        assert _bridge.autocast_dtype(x) == torch.float32
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        wanted = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        assert convolution_ops._autocast_backward(x.bfloat16(), x.to(dtype), x) == wanted


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("needs", [(True, True, True), (False, True, False), (True, False, True)])
def test_the_operators_shapes_are_those_of_their_fakes(
    place: str, last: bool, needs: tuple[bool, ...]
) -> None:
    """What compilers believe is what comes, memory formats included."""
    x, w, b = images(2, torch.float32, last), torch.randn(6, 2, 3, 2), torch.randn(6)
    x, w, b = (t.to(place) for t in (x, w, b))
    options = ([2, 1], [1, 0, 1, 1], [1, 2], 2)
    found = convolution_ops._run_forward(x, w, b, *options)
    fake = convolution_ops._fake_forward(x, w, b, *options)
    assert (found.shape, found.dtype, found.stride()) == (fake.shape, fake.dtype, fake.stride())
    actual = convolution_ops._run_backward(found, x, w, *options, list(needs))
    believed = convolution_ops._fake_backward(found, x, w, *options, list(needs))
    for one, other in zip(actual, believed, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one.numel() == 0 or one.stride() == other.stride()


def test_second_derivatives_are_refused(place: str) -> None:
    x = torch.randn(1, 2, 4, 4, device=place, requires_grad=True)
    y = ours.conv2d(x, torch.randn(3, 2, 2, 2, device=place))
    (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not available"):
        grad.sum().backward()


@pytest.mark.parametrize("allowed", [True, False])
def test_precision_is_torchs(emulated: EmulatedDevice, allowed: bool) -> None:
    x, w = torch.randn(1, 6, 5, 5), torch.randn(4, 6, 3, 3)
    options = ([1, 1], [0, 0, 0, 0], [1, 1], 1)
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = allowed
        found = convolution_ops._forward_cuda(x, w, None, *options)
    finally:
        torch.backends.cudnn.allow_tf32 = before
    wanted = {p: cuda.conv2d(x, w, precision=p) for p in ("tf32", "highest")}
    assert not torch.equal(wanted["tf32"], wanted["highest"])
    assert torch.equal(found, wanted["tf32" if allowed else "highest"])


def test_cuda_has_operators_and_rules_for_autocast() -> None:
    registered = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in ("conv2d", "conv2d_backward"):
        for key in ("CPU", "CUDA", "AutocastCPU", "AutocastCUDA"):
            assert registered(f"tbptt_fast::{name}", key), (name, key)


def test_a_layer_without_kernels_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Conv2d(2, 3, 1, device="meta")
    report = ours.accelerate(layer)
    assert report.left == {"": "parameters are on meta: there are no kernels for meta"}
    with pytest.raises(RuntimeError, match="conv2d: input: expected a tensor on cpu, got one on m"):
        ours.conv2d(torch.zeros(1, 1, 3, 3, device="meta"), torch.zeros(1, 1, 1, 1))


@pytest.mark.gpu
def test_accelerate_on_a_gpu() -> None:
    if (reason := cuda.why_not()) or not torch.cuda.is_available():
        pytest.skip(f"{NO_GPU}: {reason or 'PyTorch sees none'}")
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.Conv2d(8, 8, 3, groups=8)).cuda()
    report = ours.accelerate(model)
    assert report.swapped == {"0": "Conv2d", "1": "Conv2d"}
    x = torch.randn(2, 4, 9, 9, device="cuda")
    out = torch.compile(model, fullgraph=True)(x)
    out.sum().backward()
    assert out.device.type == "cuda"
    close(out, model(x), TF32)
    with torch.autocast("cuda"):
        assert model(x.half()).dtype == torch.float32
    if not _bridge.has_bfloat16(x):
        return
    with torch.autocast("cuda", torch.bfloat16):
        out = model(x)
        assert out.dtype == torch.bfloat16
    model.zero_grad()
    out.float().sum().backward()
    assert model[0].weight.grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), model(x), rtol=0, atol=5e-2)
