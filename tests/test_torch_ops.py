"""The registered operators: PyTorch's own checks, compilers, autocast, transformations, errors."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import tbptt_fast.torch as ours  # noqa: E402

from .torch_cases import KINDS, close, pair, results_and_gradients  # noqa: E402

GATES = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}
cells = pytest.mark.parametrize("cell", GATES)
kinds = pytest.mark.parametrize("kind", KINDS)

# Compiled code is C++ that is built at run time.
pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")


def arguments(cell: str, keep: bool = True, dtype: Any = torch.float64) -> tuple[Any, ...]:
    """Of tbptt_fast::<cell>, with everything that it may be given."""
    torch.manual_seed(0)
    steps, batch, inputs, hidden = 5, 2, 3, 4
    g = GATES[cell] * hidden

    def leaf(*shape: int) -> Any:
        return torch.randn(*shape, dtype=dtype, requires_grad=True)

    state = [leaf(batch, hidden) for _ in range(2 if cell == "lstm" else 1)]
    starts = torch.rand(steps, batch) < 0.3
    scale = torch.rand(steps, batch, dtype=dtype)
    weights = (leaf(g, inputs), leaf(g, hidden), leaf(g), leaf(g))
    return (leaf(steps, batch, inputs), *state, *weights, starts, scale, [2, 3], keep)


@cells
def test_opcheck(cell: str) -> None:
    given = arguments(cell)
    op = getattr(torch.ops.tbptt_fast, cell).default
    torch.library.opcheck(op, given)
    plain = [a.detach() if isinstance(a, torch.Tensor) else a for a in given]
    torch.library.opcheck(op, (*plain[:-1], False))  # inference
    states = 2 if cell == "lstm" else 1
    out, *last, tape = op(*plain)
    x, weights = plain[0], plain[1 + states : 3 + states]
    backward = getattr(torch.ops.tbptt_fast, f"{cell}_backward").default
    grads = [torch.ones_like(out), *(torch.ones_like(s) for s in last)]
    saved = (tape, x, *plain[1 : 1 + states], *weights, *plain[5 + states : 8 + states])
    torch.library.opcheck(backward, (*grads, *saved, [True, True]))
    torch.library.opcheck(backward, (None, *grads[1:], *saved, [False, False]))


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck_of_convolutions(channels_last: bool) -> None:
    torch.manual_seed(0)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, 4, 7, 5, dtype=torch.float64).to(memory_format=memory).requires_grad_()
    w, b = torch.randn(6, 2, 3, 2, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    options = ([2, 1], [1, 0, 2, 1], [1, 2], 2)
    op = torch.ops.tbptt_fast.conv2d.default
    torch.library.opcheck(op, (x, w.requires_grad_(), b.requires_grad_(), *options))
    torch.library.opcheck(op, (x.detach(), w.detach(), None, *options))
    grad = torch.randn_like(op(x, w, b, *options)).to(memory_format=memory)
    backward = torch.ops.tbptt_fast.conv2d_backward.default
    for needs in ([True, True, True], [False, True, False]):
        torch.library.opcheck(backward, (grad, x.detach(), w.detach(), *options, needs))


@cells
def test_gradcheck(cell: str) -> None:
    """By finite differences, of full backpropagation, through both ways that a call can take."""
    x, *rest = arguments(cell)
    rest = [*rest[:-3], None, None]
    states = 2 if cell == "lstm" else 1
    op = getattr(torch.ops.tbptt_fast, cell)

    def plain(x: Any, *given: Any) -> Any:
        hx, weights = given[:states], given[states : states + 4]
        starts = given[states + 4]
        if cell == "lstm":
            out, last = ours.lstm(x, hx, *weights, is_init=starts)
            return out, *last
        if cell == "gru":
            return ours.gru(x, *hx, *weights, is_init=starts)
        return ours.rnn(x, *hx, *weights, nonlinearity=cell[4:], is_init=starts)

    tensors = (x, *rest[: states + 5])
    assert torch.autograd.gradcheck(plain, tensors)
    assert torch.autograd.gradcheck(lambda *a: op(*a, None, None, True)[:-1], tensors)


def test_gradcheck_of_convolutions() -> None:
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: ours.conv1d(x, w, padding=1, stride=2), (x, w))
    image = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    options = dict(padding="same", dilation=(1, 2), groups=2)
    assert torch.autograd.gradcheck(lambda x, w: ours.conv2d(x, w, **options), (image, kernel))


@pytest.mark.parametrize("way", ["plain", "operator"])
@pytest.mark.parametrize("kind", ["recurrent", "convolution"])
def test_second_derivatives_are_refused(way: str, kind: str) -> None:
    """Also where the first gradient is used, and not treated as a constant."""
    x, w = torch.randn(3, 2, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    if kind == "recurrent" and way == "plain":
        out, _ = ours.rnn(x, None, w, torch.randn(4, 4))
    elif kind == "recurrent":
        op = torch.ops.tbptt_fast.rnn_tanh
        out = op(x, None, w, torch.randn(4, 4), None, None, None, None, None, True)[0]
    elif way == "plain":
        out = ours.conv1d(x, w[:, None], groups=2)
    else:
        out = torch.ops.tbptt_fast.conv2d(
            x[None], w[:3, :, None, None], None, [1, 1], [0, 0, 0, 0], [1, 1], 1
        )
    (first,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not available"):
        first.square().sum().backward()


@kinds
def test_compiled_as_one_graph(kind: str) -> None:
    _, mine = pair(kind, 3, 8, num_layers=2, batch_first=True)
    torch._dynamo.reset()
    compiled = torch.compile(mine, fullgraph=True, dynamic=True)
    for batch in (2, 3, 5):
        x = torch.randn(batch, 7, 3, requires_grad=True)
        starts = torch.rand(batch, 7) < 0.3

        def call(module: Any, x: Any = x, starts: Any = starts) -> Any:
            return module(x, is_init=starts, truncation=(2, 4))

        close(
            results_and_gradients(mine, partial(call, compiled), (x,)),
            results_and_gradients(mine, partial(call, mine), (x,)),
        )
    with torch.no_grad():
        close(compiled(x), mine(x))


def test_compiled_convolutions() -> None:
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3, stride=2)
    )
    x = torch.randn(2, 3, 9, 9)
    expected = results_and_gradients(theirs, lambda: theirs(x))
    ours.accelerate(theirs)
    torch._dynamo.reset()
    compiled = torch.compile(theirs, fullgraph=True)
    for memory in (torch.contiguous_format, torch.channels_last):
        images = x.to(memory_format=memory)
        close(results_and_gradients(theirs, partial(compiled, images)), expected, 1e-4)


@kinds
def test_exported(kind: str) -> None:
    _, mine = pair(kind, 3, 8)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        mine.eval(), (torch.randn(5, 2, 3),), dynamic_shapes=({1: batch},)
    )
    assert "tbptt_fast" in str(program.graph)
    x = torch.randn(5, 7, 3)
    close(program.module()(x), mine(x))


@kinds
def test_autocast_computes_in_float32(kind: str) -> None:
    _, mine = pair(kind, 3, 8)
    x = torch.randn(5, 2, 3).bfloat16()
    expected = mine(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        close(mine(x), expected)
        result, state = mine(torch.nn.functional.linear(x, torch.eye(3)))
        close(mine(x, state), mine(x.float(), state))
        scale = torch.rand(5, 2)
        close(mine(x, carry_scale=scale), expected)
    assert result.dtype == torch.float32
    result.sum().backward()
    assert mine.weight_hh_l0.grad.dtype == torch.float32


def test_autocast_of_convolutions() -> None:
    _, mine = pair("Conv2d", 3, 4, 3)
    x = torch.randn(2, 3, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        result = mine(x.bfloat16())
    assert result.dtype == torch.float32
    close(result, mine(x.bfloat16().float()))


@kinds
def test_inference_modes_keep_no_tape(kind: str) -> None:
    _, mine = pair(kind, 3, 8)
    x = torch.randn(5, 2, 3)
    expected = mine(x)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            result = mine(x)
        close(result, expected, 0)
        assert not result[0].requires_grad


@kinds
def test_functional_call_and_checkpointing(kind: str) -> None:
    theirs, mine = pair(kind, 3, 8)
    x = torch.randn(5, 2, 3, requires_grad=True)
    parameters = {name: 2 * p.detach() for name, p in mine.named_parameters()}
    close(
        torch.func.functional_call(mine, parameters, (x,)),
        torch.func.functional_call(theirs, parameters, (x,)),
    )

    def checkpointed() -> Any:
        return torch.utils.checkpoint.checkpoint(mine, x, use_reentrant=False)

    close(
        results_and_gradients(mine, checkpointed, (x,)),
        results_and_gradients(mine, lambda: mine(x), (x,)),
        0,
    )


def test_hooks_on_saved_tensors_see_the_tape() -> None:
    _, mine = pair("LSTM", 3, 8)
    x = torch.randn(5, 2, 3)
    sizes = []

    def pack(tensor: Any) -> Any:
        sizes.append(tensor.numel())
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = mine(x)
    assert 6 * 5 * 2 * 8 in sizes
    close(
        results_and_gradients(mine, lambda: result),
        results_and_gradients(mine, lambda: mine(x)),
        0,
    )


def test_functions_check_their_arguments() -> None:
    x, w_ih, w_hh = torch.ones(3, 2, 3), torch.ones(4, 3), torch.ones(4, 4)
    with pytest.raises(ValueError, match=r"w_hh: expected shape \[4, 4\], got \[4, 5\]"):
        ours.rnn(x, None, w_ih, torch.ones(4, 5))
    with pytest.raises(TypeError, match="float32, got float64"):
        ours.rnn(x, None, w_ih.double(), w_hh)
    with pytest.raises(RuntimeError, match="expected a tensor on cpu, got one on meta"):
        ours.rnn(x.to("meta"), None, w_ih, w_hh)
    with pytest.raises(ValueError, match="'tanh' or 'relu'"):
        ours.rnn(x, None, w_ih, w_hh, nonlinearity="sigmoid")
    with pytest.raises(ValueError, match=r"carry_scale: expected shape \[3, 2\]"):
        ours.rnn(x, None, w_ih, w_hh, carry_scale=torch.ones(2, 3))
    with pytest.raises(ValueError, match="a pair"):
        ours.lstm(x, (x, x, x), w_ih, w_hh)


def test_unusual_tensors_are_read_as_they_are() -> None:
    """Views with another sign or order than their memory, subclasses, and read-only memory."""
    theirs, mine = pair("GRU", 3, 4)
    negative = torch.randn(5, 2, 3, dtype=torch.complex64).conj().imag
    assert negative.is_neg()
    odd = [negative, torch.randn(3, 2, 5).permute(2, 1, 0), torch.randn(10, 2, 3)[::2]]
    odd += [torch.randn(1, 2, 3).expand(5, 2, 3), torch.nn.Parameter(torch.randn(5, 2, 3))]
    if hasattr(torch.nn, "Buffer"):  # since 2.5
        odd.append(torch.nn.Buffer(torch.randn(5, 2, 3)))
    for x in odd:
        close(mine(x), theirs(x))


def test_outputs_outlive_everything() -> None:
    """Tensors own the memory that the kernels wrote."""
    _, mine = pair("LSTM", 16, 64)
    out, (h_n, _) = mine(torch.randn(64, 16, 16))
    expected = [out.detach().clone(), h_n.detach().clone()]
    del mine
    for _ in range(3):
        ours.LSTM(16, 64)(torch.randn(64, 16, 16))
    close([out, h_n], expected, 0)


def test_importing_without_pytorch_says_what_is_missing() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import tbptt_fast\n"
        "try:\n    import tbptt_fast.torch\n"
        "except ImportError as error:\n    print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "tbptt_fast.torch needs PyTorch 2.4 or later" in run.stdout
