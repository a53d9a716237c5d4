"""Pooling, activation and flattening modules: their ops, time axes, a whole model, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tbptt_fast import nn

from .cases import assert_close
from .nn_cases import normal

SHAPE = (5, 3, 4, 6, 7)  # T, B, C, Y, X


def modules(layout: Any = "NCHW") -> list[nn.Module]:
    return [
        nn.MaxPool2d(3, 2, 1, layout=layout),
        nn.AvgPool2d((2, 3), (2, 1), count_include_pad=False, layout=layout),
        nn.GlobalAvgPool2d(layout=layout),
    ]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("which", range(3))
def test_time_and_batch_are_images(layout: str, which: int) -> None:
    module, x = modules(layout)[which], normal(*SHAPE)
    y, state, tape = module.forward(x)
    grads = module.backward(tape, y)
    flat, _, flat_tape = module.forward(x.reshape(15, *SHAPE[2:]))
    expected = module.backward(flat_tape, flat)
    assert state is None
    assert (grads.state, grads.params) == (None, {})
    np.testing.assert_array_equal(y.reshape(flat.shape), flat)
    assert expected.x is not None
    np.testing.assert_array_equal(grads.x, expected.x.reshape(SHAPE))
    np.testing.assert_array_equal(module(x)[0], y)
    assert module.backward(tape, y, needs_x=False).x is None


def test_equals_torch() -> None:
    torch = pytest.importorskip("torch")
    pairs = [
        (nn.MaxPool2d(3, 2, 1), torch.nn.MaxPool2d(3, 2, 1)),
        (nn.AvgPool2d(3, 2, 1, False), torch.nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
        (
            nn.GlobalAvgPool2d(),
            torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()),
        ),
        (nn.Flatten(), torch.nn.Flatten()),
        (nn.Flatten(0, -2), torch.nn.Flatten(0, -2)),
        (nn.ReLU(), torch.nn.ReLU()),
        (nn.Tanh(), torch.nn.Tanh()),
        (nn.Sigmoid(), torch.nn.Sigmoid()),
        (nn.Softmax(), torch.nn.Softmax(-1)),
    ]
    x = normal(*SHAPE[1:])
    for ours, theirs in pairs:
        leaf = torch.tensor(x, requires_grad=True)
        expected = theirs(leaf)
        grad = normal(*expected.shape, seed=1)
        expected.backward(torch.tensor(grad))
        y, _, tape = ours.forward(x)
        found = ours.backward(tape, grad)
        assert_close(y, expected.detach().numpy(), "forward", length=42, name=repr(ours))
        assert_close(found.x, leaf.grad.numpy(), "gradient", length=42, name=repr(ours))


def test_gradients_of_a_whole_model_are_the_slopes_of_its_loss() -> None:
    model = nn.Sequential(
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.AvgPool2d(2, 1),
        nn.Flatten(2),
        nn.Linear(4 * 2 * 2, 6, seed=1, dtype="float64"),
        nn.Sigmoid(),
        nn.LSTM(6, 5, seed=2, dtype="float64"),
        nn.ReLU(),
        nn.Softmax(),
    )
    x = normal(*SHAPE)
    y, _, tape = model.forward(x)
    weights = normal(*y.shape, seed=3)
    grads = model.backward(tape, weights)
    pairs = [(x, grads.x), *((p, grads.params[name]) for name, p in model.parameters().items())]
    for i, (array, gradient) in enumerate(pairs):
        direction, kept, values = normal(*array.shape, seed=4 + i), array.copy(), []
        for sign in (1, -1):
            array[...] = kept + sign * 1e-6 * direction
            values.append(float((model(x)[0] * weights).sum()))
        array[...] = kept
        slope = (values[0] - values[1]) / 2e-6
        assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_names() -> None:
    assert repr(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())) == (
        "Sequential(ReLU(), MaxPool2d(2, stride=None, padding=0), Flatten(1, -1))"
    )
    assert not nn.AvgPool2d(2).parameters()
    assert nn.GlobalAvgPool2d().state_dict() == {}


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: nn.MaxPool2d(2, layout="CHWN"), ValueError, "MaxPool2d: layout: .* got 'CHWN'"),
        (lambda: nn.MaxPool2d(9)(normal(*SHAPE)), ValueError, "max_pool2d: kernel: expected at m"),
        (lambda: nn.MaxPool2d(2)(normal(3, 3)), ValueError, "MaxPool2d: x: expected at least 3 d"),
        (lambda: nn.AvgPool2d(2)([1.0]), TypeError, "AvgPool2d: x: expected an array, got list"),
        (lambda: nn.Flatten("1"), TypeError, "Flatten: start_dim: expected an integer, got '1'"),
        (lambda: nn.Flatten(2)(normal(2, 3)), ValueError, r"Flatten: x: expected axes 2 to -1"),
        (lambda: nn.Flatten()([1.0]), TypeError, "Flatten: x: expected an array, got list"),
        (lambda: nn.ReLU()(normal(2), 1), ValueError, "ReLU: state: expected None, got int"),
    ],
)
def test_errors(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_errors_of_backward() -> None:
    for module in (*modules(), nn.Flatten(), nn.Tanh()):
        y, _, tape = module.forward(normal(*SHAPE))
        kind = type(module).__name__
        with pytest.raises(TypeError, match=f"{kind}.backward: grad_y: expected an array, got No"):
            module.backward(tape, None)
        with pytest.raises(ValueError, match=f"{kind}.backward: tape: expected one of this"):
            module.backward(nn.Tape(nn.ReLU(), ()), y)
        with pytest.raises(ValueError, match=f"{kind}: grad_state: expected None"):
            module.backward(tape, y, grad_state=1)
        with pytest.raises(ValueError, match="expected shape"):
            module.backward(tape, y[:, :1])
