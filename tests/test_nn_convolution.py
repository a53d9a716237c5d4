"""Convolutional modules: parameters as in PyTorch, state dicts both ways, gradients, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tbptt_fast import nn

CONV: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    ("Conv2d", (3, 8, 3), {"padding": 1}, (2, 3, 7, 6)),
    ("Conv2d", (4, 6, (3, 2)), {"stride": (2, 1), "groups": 2, "bias": False}, (1, 4, 9, 5)),
    ("Conv2d", (4, 4, 3), {"padding": "same", "dilation": 2, "groups": 4}, (2, 4, 8, 8)),
    ("Conv1d", (2, 5, 4), {"stride": 2, "padding": 3}, (3, 2, 11)),
    ("ConvTranspose2d", (4, 6, 3), {"stride": 2, "output_padding": 1}, (2, 4, 5, 6)),
    ("ConvTranspose2d", (4, 2, (2, 5)), {"groups": 2, "padding": (1, 2)}, (1, 4, 7, 6)),
]

modules = pytest.mark.parametrize(("kind", "sizes", "options", "shape"), CONV, ids=str)


@modules
def test_equals_torch(
    kind: str, sizes: Any, options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.nn, kind)(*sizes, **options).double()
    ours = getattr(nn, kind)(*sizes, **options, dtype="float64", seed=1)
    assert {n: p.shape for n, p in ours.parameters().items()} == {
        n: tuple(p.shape) for n, p in theirs.named_parameters()
    }
    ours.load_state_dict({n: p.numpy() for n, p in theirs.state_dict().items()})
    x = np.random.default_rng(0).normal(size=shape)
    tensor = torch.tensor(x, requires_grad=True)
    expected = theirs(tensor)
    y, _, tape = ours.forward(x)
    np.testing.assert_allclose(y, expected.detach().numpy(), atol=1e-12)
    grad = np.random.default_rng(1).normal(size=y.shape)
    expected.backward(torch.tensor(grad))
    grads = ours.backward(tape, grad)
    np.testing.assert_allclose(grads.x, tensor.grad.numpy(), atol=1e-12)
    for name, parameter in theirs.named_parameters():
        np.testing.assert_allclose(grads.params[name], parameter.grad.numpy(), atol=1e-12)
    other = getattr(nn, kind)(*sizes, **options, dtype="float64", seed=2)
    theirs.load_state_dict({n: torch.tensor(p) for n, p in other.state_dict().items()})
    np.testing.assert_allclose(
        other.forward(x)[0], theirs(torch.tensor(x)).detach().numpy(), atol=1e-12
    )


@pytest.mark.parametrize(
    ("kind", "layout", "shape"),
    [("Conv2d", "NHWC", (2, 6, 5, 3)), ("Conv1d", "NLC", (2, 6, 3))],
)
def test_channels_last_with_activation(kind: str, layout: str, shape: tuple[int, ...]) -> None:
    make: Any = getattr(nn, kind)
    last = make(3, 4, 3, padding=1, activation="relu", layout=layout, seed=0, dtype="float64")
    first = make(3, 4, 3, padding=1, activation="relu", seed=0, dtype="float64")
    x = np.random.default_rng(0).normal(size=shape)
    moved = np.ascontiguousarray(np.moveaxis(x, -1, 1))
    y, _, tape = last.forward(x)
    other, _, other_tape = first.forward(moved)
    np.testing.assert_allclose(np.moveaxis(y, -1, 1), other, atol=1e-12)
    grads = last.backward(tape, np.ones_like(y), needs_x=False)
    wanted = first.backward(other_tape, np.ones_like(other), needs_x=False)
    assert grads.x is None
    for name, value in wanted.params.items():
        np.testing.assert_allclose(grads.params[name], value, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: nn.Conv2d(0, 1, 3), "Conv2d: in_channels: expected a positive"),
        (lambda: nn.Conv2d(1, 1, (3,)), "Conv2d: kernel_size: expected 2 sizes"),
        (lambda: nn.Conv1d(1, 1, 0), "Conv1d: kernel_size: expected a positive"),
        (lambda: nn.Conv2d(4, 6, 3, groups=4), "Conv2d: groups: expected a divisor"),
        (lambda: nn.Conv2d(1, 1, 3, activation="gelu"), "Conv2d: activation: expected"),
    ],
)
def test_wrong_sizes(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()
