"""PyTorch's operators and layers on the CUDA kernels: which are called, and what comes back.

Where there is no GPU, tensors on the CPU go to the emulated device: it reads their memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import tbptt_fast.torch as ours  # noqa: E402
from tbptt_fast import cuda  # noqa: E402
from tbptt_fast.cuda import _places  # noqa: E402
from tbptt_fast.torch import _bridge, recurrent_ops  # noqa: E402

from .cases import CELLS  # noqa: E402
from .cuda_cases import NO_GPU, EmulatedDevice  # noqa: E402
from .torch_cases import KINDS, close, pair, results_and_gradients  # noqa: E402

TF32 = 3e-3  # of the greatest element


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device of the tensors; those of the CPU run on the emulated kernels."""
    if request.param == "cuda":
        if (reason := cuda.why_not()) or not torch.cuda.is_available():
            pytest.skip(f"{NO_GPU}: {reason or 'PyTorch sees none'}")
        return "cuda"
    request.getfixturevalue("emulated")
    monkeypatch.setattr(recurrent_ops.Layer, "is_on_gpu", staticmethod(lambda x: True))
    return "cpu"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_layers_are_torchs(place: str, kind: str, dtype: Any) -> None:
    theirs, mine = pair(kind, 5, 17, num_layers=2, dtype=dtype)
    mine.to(place)
    x = torch.randn(11, 3, 5, dtype=dtype, requires_grad=True)
    given = x.detach().to(place).requires_grad_()
    tolerance = TF32 if dtype is torch.float32 else 1e-10
    expected = results_and_gradients(theirs, lambda: theirs(x), x)
    found = results_and_gradients_on(place, mine, given)
    close(found, expected, tolerance)
    with torch.no_grad():
        close([r.cpu() for r in leaves(mine(given))], leaves(theirs(x)), tolerance)


def leaves(result: Any) -> list[Any]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [leaf for part in result for leaf in leaves(part)]


def results_and_gradients_on(place: str, module: Any, x: Any) -> list[Any]:
    """`results_and_gradients`, with gradients drawn on the CPU and everything brought there."""
    result = leaves(module(x))
    torch.manual_seed(1)
    grads = [torch.randn(r.shape, dtype=r.dtype).to(place) for r in result]
    torch.autograd.backward(result, grads)
    return [t.cpu() for t in (*result, x.grad, *(p.grad for p in module.parameters()))]


@pytest.mark.parametrize("kind", KINDS)
def test_options_and_truncation(place: str, kind: str) -> None:
    """is_init, truncation and carry_scale, like the same layer on the CPU's kernels."""
    torch.manual_seed(3)
    layer = getattr(ours, kind)(4, 9).double()
    x = torch.randn(12, 3, 4, dtype=torch.float64)
    starts, scale = torch.rand(12, 3) < 0.2, torch.rand(12, 3, dtype=torch.float64)
    options = {"truncation": (2, 4), "is_init": starts, "carry_scale": scale}
    layer.to(place)
    moved = {k: v.to(place) if torch.is_tensor(v) else v for k, v in options.items()}
    out, _ = layer(x.to(place), **moved)
    out.square().sum().backward()
    found = [out.cpu(), *(p.grad.cpu() for p in layer.parameters())]
    layer.to("cpu")
    for parameter in layer.parameters():
        parameter.grad = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recurrent_ops.Layer, "is_on_gpu", staticmethod(lambda x: False))
        out, _ = layer(x, **options)
        out.square().sum().backward()
    close(found, [out, *(p.grad for p in layer.parameters())], 1e-10)


@pytest.mark.parametrize("cell", CELLS)
def test_the_operators_shapes_are_those_of_their_fakes(place: str, cell: str) -> None:
    """What compilers believe is what comes, the size of the tape included."""
    layer = recurrent_ops._LAYERS[cell]  # type: ignore[index]
    rows = {"gru": 27, "lstm": 36}.get(cell, 9)
    weights = [torch.randn(rows, 4), torch.randn(rows, 9), torch.randn(rows), None]
    states = [torch.randn(3, 9) for _ in range(layer.states)]
    tensors = [t if t is None else t.to(place) for t in (torch.randn(6, 3, 4), *states, *weights)]
    for keep in (True, False):
        inputs = (*tensors, None, None, None, keep)
        found, fake = layer.run_forward(*inputs), layer.fake_forward(*inputs)
        assert [t.shape for t in found] == [t.shape for t in fake]
        assert [t.dtype for t in found] == [t.dtype for t in fake]
    found = layer.run_forward(*tensors, None, None, None, True)
    x, w_ih, w_hh = tensors[0], tensors[1 + layer.states], tensors[2 + layer.states]
    grads = [torch.ones_like(t) for t in found[: 1 + layer.states]]
    saved = (found[-1], x, *tensors[1 : 1 + layer.states], w_ih, w_hh, None, None)
    arguments = (*grads, *saved, [2, 3], [True, False], found[0])
    actual, fake = layer.run_backward(*arguments), layer.fake_backward(*arguments)
    assert [t.shape for t in actual] == [t.shape for t in fake]


def test_a_packed_sequence(place: str) -> None:
    theirs, mine = pair("GRU", 3, 7, dtype=torch.float64)
    data, lengths = torch.randn(6, 3, 3, dtype=torch.float64), [6, 4, 1]
    pack = torch.nn.utils.rnn.pack_padded_sequence
    expected, last = theirs(pack(data, lengths))
    found, found_last = mine.to(place)(pack(data.to(place), lengths))
    close([found.data.cpu(), found_last.cpu()], [expected.data, last], 1e-10)


def test_values_of_the_tape(emulated: EmulatedDevice) -> None:
    for cell, values in recurrent_ops.CUDA_TAPE_VALUES.items():
        assert emulated.module.tape_values(cell) == values


def test_precision_is_torchs() -> None:
    before = torch.backends.cudnn.allow_tf32
    try:
        for allowed, precision in ((True, "tf32"), (False, "highest")):
            torch.backends.cudnn.allow_tf32 = allowed
            assert _bridge.cuda_precision("rnn") == _bridge.cuda_precision("conv") == precision
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_cuda_has_operators_and_rules_for_autocast() -> None:
    registered = torch._C._dispatch_has_kernel_for_dispatch_key
    for cell in CELLS:
        for name in (cell, f"{cell}_backward"):
            for key in ("CPU", "CUDA", "AutocastCPU", "AutocastCUDA"):
                assert registered(f"tbptt_fast::{name}", key), (name, key)


def test_a_device_without_kernels_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that cannot run them torch's own code runs, and the functions say why not."""

    class OnGpu:
        is_cuda, device = True, torch.device("cuda:0")

    monkeypatch.setattr(cuda, "why_not", lambda: "the kernels rest")
    assert _bridge.missing_device(OnGpu()) == "the kernels rest"
    with pytest.raises(RuntimeError, match="gru: expected tensors on cpu, got some on cuda:0: the"):
        _bridge.check_device("gru", x=OnGpu())
    monkeypatch.setattr(cuda, "why_not", lambda: None)
    assert _bridge.missing_device(OnGpu()) is None
    with pytest.raises(RuntimeError, match="w_hh: expected a tensor on cuda:0, got one on cpu"):
        _bridge.check_device("gru", x=OnGpu(), w_hh=torch.zeros(1))


@pytest.mark.gpu
def test_accelerate_on_a_gpu() -> None:
    if (reason := cuda.why_not()) or not torch.cuda.is_available():
        pytest.skip(f"{NO_GPU}: {reason or 'PyTorch sees none'}")
    model = torch.nn.Sequential(torch.nn.LSTM(4, 8)).cuda()
    report = ours.accelerate(model)
    assert report.swapped == {"0": "LSTM"}
    layer = torch.compile(model[0], fullgraph=True)
    out, _ = layer(torch.randn(5, 2, 4, device="cuda"))
    out.sum().backward()
    assert out.device.type == "cuda"
    with torch.autocast("cuda"):
        assert model[0](torch.randn(5, 2, 4, device="cuda").half())[0].dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_layers_in_bfloat16(place: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As near to torch's float64 layer, on the same rounded numbers, as bfloat16 allows."""
    if place == "cpu":
        monkeypatch.setattr(_bridge, "has_bfloat16", lambda tensor: True)
    theirs, mine = pair(kind, 5, 16, num_layers=1, dtype=torch.bfloat16)
    theirs.double()
    mine.to(place)
    assert "backend=tbptt_fast" in repr(mine)
    x = torch.randn(11, 3, 5).bfloat16().double().requires_grad_()
    given = x.detach().to(place, torch.bfloat16).requires_grad_()
    expected = leaves(theirs(x))
    result = leaves(mine(given))
    torch.manual_seed(1)
    grads = [torch.randn(r.shape).bfloat16() for r in expected]
    torch.autograd.backward(expected, [g.double() for g in grads])
    torch.autograd.backward(result, [g.to(place) for g in grads])
    expected += [x.grad, *(p.grad for p in theirs.parameters())]
    result += [given.grad, *(p.grad for p in mine.parameters())]
    assert {t.dtype for t in result} == {torch.bfloat16}
    for tensor, wanted in zip(result, expected, strict=True):
        bound = 2.0**-6 * max(1.0, wanted.detach().abs().max().item())
        found = tensor.detach().cpu().double()
        torch.testing.assert_close(found, wanted.detach(), rtol=0, atol=bound)


def test_what_autocast_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 if that is its type and there are kernels; a backward pass follows its tape."""
    layer, x = recurrent_ops._LAYERS["gru"], torch.zeros(2, 1, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.autocast_forward(x) == torch.float32
        monkeypatch.setattr(_bridge, "has_bfloat16", lambda tensor: True)
        assert layer.autocast_forward(x) == torch.bfloat16
    with torch.autocast("cpu", torch.float16):
        assert layer.autocast_forward(x) == torch.float32
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        wanted = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        assert layer.autocast_backward(None, x.bfloat16(), x.to(dtype), x) == wanted


@pytest.mark.gpu
def test_autocast_on_a_gpu() -> None:
    if (reason := cuda.why_not()) or not torch.cuda.is_available():
        pytest.skip(f"{NO_GPU}: {reason or 'PyTorch sees none'}")
    layer: Any = ours.LSTM(4, 8).cuda()
    if not _bridge.has_bfloat16(layer.weight_hh_l0):
        pytest.skip(f"{NO_GPU} with bfloat16")
    x = torch.randn(5, 2, 4, device="cuda", requires_grad=True)
    with torch.autocast("cuda", torch.bfloat16):
        out, _ = layer(x)
        assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert layer.weight_hh_l0.grad.dtype == torch.float32
    wanted, _ = layer(x)
    torch.testing.assert_close(out.float(), wanted, rtol=0, atol=2e-2)


@pytest.mark.parametrize(("number", "stream"), [(0, "default"), (1, "default"), (0x700, 0x700)])
def test_results_are_made_on_the_stream_of_the_call(
    monkeypatch: pytest.MonkeyPatch, number: int, stream: Any
) -> None:
    """Else PyTorch may give their memory to others while that stream still uses it."""

    class OnGpu(torch.Tensor):  # type: ignore[misc, name-defined]
        is_cuda = True

    entered: list[Any] = []

    @contextmanager
    def enter(which: Any) -> Iterator[None]:
        entered.append(which)
        yield
        entered.append("left")

    monkeypatch.setattr(torch.cuda, "stream", enter)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: "default")
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda number, device: number)
    x = torch.ones(3, 2).as_subclass(OnGpu)
    empty, contiguous, found, library = _places.place_of(x, number)
    assert (found, library, entered) == (number, torch, [])
    assert empty is not None
    assert empty((4,), dtype=torch.float64).dtype == torch.float64
    assert contiguous(x.T).is_contiguous()
    assert entered == [stream, "left"] * 2
