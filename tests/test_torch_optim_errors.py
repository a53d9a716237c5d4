"""What the optimizers for PyTorch refuse, and that nothing changes then."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest

from .torch_optim_cases import (
    OPTIMIZERS,
    all_optimizers,
    assert_same,
    classes,
    optim,
    parameters,
    set_grads,
    step_both,
    torch,
)


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
