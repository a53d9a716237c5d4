"""ConvRNN2d, ConvGRU2d, ConvLSTM2d of tbptt_fast.torch: values, gradients, compilers, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tbptt_fast
from tbptt_fast import nn as native

from .cases import assert_close, assert_identical
from .convrecurrent_cases import SMALL, Problem, backward, forward, make_masks, make_problem

torch = pytest.importorskip("torch")
pytest.importorskip("tbptt_fast.torch")
import tbptt_fast.torch as fast  # noqa: E402

CELLS = ("rnn_tanh", "rnn_relu", "gru", "lstm", "lstm_channel", "lstm_map")
cells = pytest.mark.parametrize("cell", CELLS)


def tensors(problem: Problem) -> dict[str, Any]:
    names = ("x", "w_ih", "w_hh", "b_ih", "b_hh", "peephole")
    found = {name: getattr(problem, name) for name in names}
    found |= dict(zip(("h0", "c0"), problem.hx or (), strict=False))
    return {
        name: torch.tensor(value, requires_grad=True)
        for name, value in found.items()
        if value is not None
    }


def call(problem: Problem, given: dict[str, Any], **options: Any) -> tuple[Any, tuple[Any, ...]]:
    if problem.cell.startswith("rnn"):
        options["nonlinearity"] = problem.cell[4:]
    if "peephole" in given:
        options["peephole"] = given["peephole"]
    hx = (given["h0"], given["c0"]) if problem.op == "lstm" else given["h0"]
    weights = [given[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    function = getattr(fast, f"conv{problem.op}")
    out, last = function(given["x"], hx, *weights, dilation=problem.shape.dilation, **options)
    return out, last if problem.op == "lstm" else (last,)


@cells
@pytest.mark.parametrize("truncation", [None, 2, (1, 3)], ids=str)
@pytest.mark.parametrize("recompute", [False, True])
def test_functions_are_the_primitives(cell: str, truncation: Any, recompute: bool) -> None:
    problem = make_problem(cell, SMALL)
    masks = make_masks(problem)
    out, last, tape = forward(tbptt_fast, problem, is_init=masks["is_init"])
    grads = backward(
        tbptt_fast, problem, tape, truncation=truncation, carry_scale=masks["carry_scale"]
    )
    given = tensors(problem)
    flags = {name: torch.from_numpy(value) for name, value in masks.items()}
    found, found_last = call(problem, given, truncation=truncation, recompute=recompute, **flags)
    leaves = (found, *found_last)
    torch.autograd.backward(
        leaves, [torch.from_numpy(g) for g in (problem.grad_out, *(problem.grad_hx or ()))]
    )
    assert_identical({"out": found.detach().numpy()}, {"out": out})
    for a, b in zip(found_last, last, strict=True):
        assert_identical({"state": a.detach().numpy()}, {"state": b})
    assert_identical({name: given[name].grad.numpy() for name in grads}, grads)


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm_channel"])
@pytest.mark.parametrize("recompute", [False, True])
def test_operators_are_registered_well(cell: str, recompute: bool) -> None:
    """PyTorch's own checks of schema, fake shapes and autograd."""
    problem = make_problem(cell, SMALL, "float32")
    given = tensors(problem)
    states = [given[name] for name in ("h0", "c0") if name in given]
    weights = [given.get(name) for name in ("w_ih", "w_hh", "b_ih", "b_hh", "peephole")]
    masks = {k: torch.from_numpy(v) for k, v in make_masks(problem).items()}
    name = "convlstm" if problem.op == "lstm" else f"conv{cell}"
    torch.library.opcheck(
        getattr(torch.ops.tbptt_fast, name).default,
        (
            given["x"],
            *states,
            *weights,
            masks["is_init"],
            masks["carry_scale"],
            [1, 2],
            list(problem.shape.dilation),
            "NCHW",
            recompute,
            True,
        ),
    )


@pytest.mark.parametrize("kind", ["ConvRNN2d", "ConvGRU2d", "ConvLSTM2d"])
@pytest.mark.parametrize(
    ("layout", "recompute"), [("NCHW", False), ("NHWC", False), ("NCHW", True)]
)
def test_modules_are_the_native_modules(kind: str, layout: str, recompute: bool) -> None:
    options: dict[str, Any] = {"layout": layout, "dilation": (1, 2), "recompute": recompute}
    if kind == "ConvLSTM2d":
        options["peephole"] = True
    module = getattr(fast, kind)(3, 5, 3, 2, **options)
    theirs = getattr(native, kind)(3, 5, 3, 2, **options)
    theirs.load_state_dict({k: v.detach().numpy() for k, v in module.state_dict().items()})
    shape = (6, 2, 3, 7, 8) if layout == "NCHW" else (6, 2, 7, 8, 3)
    x = torch.randn(shape, requires_grad=True)
    out, state = module(x, truncation=(2, 3))
    expected, expected_state, tape = theirs.forward(x.detach().numpy())
    np.testing.assert_array_equal(out.detach().numpy(), expected)
    found = state if kind == "ConvLSTM2d" else (state,)
    wanted = expected_state if kind == "ConvLSTM2d" else (expected_state,)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a.detach().numpy(), b)
    out.backward(torch.ones_like(out))
    grads = theirs.backward(tape, np.ones_like(expected), truncation=(2, 3))
    assert_identical({k: p.grad.numpy() for k, p in module.named_parameters()}, grads.params)
    np.testing.assert_array_equal(x.grad.numpy(), grads.x)
    with torch.no_grad():
        again, _ = module(x)
    np.testing.assert_array_equal(again.numpy(), expected)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_state_is_carried_and_compiled(recompute: bool) -> None:
    module = fast.ConvLSTM2d(1, 3, 3, recompute=recompute, dtype=torch.float64)
    x = torch.randn(6, 2, 1, 5, 5, dtype=torch.float64)
    whole, (h, c) = module(x)
    first, state = module(x[:4])
    second, (h_n, c_n) = module(x[4:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(h_n, h)
    torch.testing.assert_close(c_n, c)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    out, _ = compiled(x, truncation=2)
    torch.testing.assert_close(out, whole)
    out.sum().backward()
    found = {name: p.grad for name, p in module.named_parameters()}
    module.zero_grad(set_to_none=True)
    module(x, truncation=2)[0].sum().backward()
    for name, p in module.named_parameters():
        torch.testing.assert_close(found[name], p.grad)


def test_a_changed_output_is_noticed() -> None:
    """The output is history: PyTorch refuses a backward pass after it was changed in place."""
    module = fast.ConvGRU2d(1, 2, 3)
    out, _ = module(torch.randn(3, 1, 1, 4, 4))
    loss = (out * 2).sum()
    out.data.fill_(0)  # hidden from autograd, and so the caller's affair
    loss.backward()
    out, _ = module(torch.randn(3, 1, 1, 4, 4))
    out.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_the_usual_cell_loads() -> None:
    hidden = 4
    conv = torch.nn.Conv2d(2 + hidden, 4 * hidden, 3, padding=1)
    x = torch.randn(5, 2, 2, 6, 6)
    h = c = torch.zeros(2, hidden, 6, 6)
    outs = []
    for step in x:
        i, f, o, g = torch.split(conv(torch.cat([step, h], 1)), hidden, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outs.append(h)
    weights = native.ConvLSTM2d.from_ifog(
        [(conv.weight.detach().numpy(), conv.bias.detach().numpy())]
    ).state_dict()
    module = fast.ConvLSTM2d(2, hidden, 3)
    module.load_state_dict({name: torch.from_numpy(a) for name, a in weights.items()})
    out, _ = module(x)
    expected = torch.stack(outs).detach().numpy()
    assert_close(out.detach().numpy(), expected, "forward", length=9 * 6 * 5)


def test_wrong_arguments() -> None:
    module = fast.ConvLSTM2d(1, 2, 3)
    x = torch.ones(3, 2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"hx: expected a pair \(h, c\), got 1 items"):
        module(x, (x,))
    with pytest.raises(ValueError, match="h: expected 1 states of 4 dimensions"):
        module(x, (x[0], None))
    with pytest.raises(ValueError, match=r"carry_scale: expected shape \[3, 2\]"):
        module(x, carry_scale=torch.ones(2, 3))
    with pytest.raises(ValueError, match="truncation: expected 1 <= k1 <= k2"):
        module(x, truncation=(3, 2))
    with pytest.raises(ValueError, match="kernel_size: expected odd"):
        fast.ConvLSTM2d(1, 2, 2)
    with pytest.raises(RuntimeError, match="expected a tensor on cpu, got one on meta"):
        module(x.to("meta"))
    out, _ = module(x)
    (grad,) = torch.autograd.grad(out.sum(), module.weight_hh_l0, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not available"):
        grad.sum().backward()
