"""TimeDistributed and Iterated: what they fold and repeat, by definition and by differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tbptt_fast import mse_loss, nn, optim, tbptt

RNG = np.random.default_rng


def encoder() -> nn.Sequential:
    conv = nn.Conv2d(1, 3, 3, stride=2, padding=1, activation="relu", seed=0, dtype="float64")
    return nn.Sequential(conv, nn.Flatten(), nn.Linear(12, 5, seed=1, dtype="float64"))


def test_time_is_folded_into_the_batch() -> None:
    inner = encoder()
    outer = nn.TimeDistributed(inner)
    x = RNG(0).normal(size=(3, 2, 1, 4, 4))
    y, state, tape = outer.forward(x)
    assert state is None
    expected, _, inner_tape = inner.forward(x.reshape(6, 1, 4, 4))
    np.testing.assert_array_equal(y, expected.reshape(3, 2, 5))
    grad = RNG(1).normal(size=y.shape)
    grads, wanted = outer.backward(tape, grad), inner.backward(inner_tape, grad.reshape(6, 5))
    assert grads.x is not None
    assert wanted.x is not None
    np.testing.assert_array_equal(grads.x, wanted.x.reshape(x.shape))
    assert list(grads.params) == list(outer.parameters())
    for name, gradient in wanted.params.items():
        np.testing.assert_array_equal(grads.params[f"module.{name}"], gradient)
    assert outer.backward(tape, grad, needs_x=False).x is None


def test_trainer_trains_an_encoder_before_a_recurrent_layer() -> None:
    model = nn.Sequential(
        nn.TimeDistributed(encoder()),
        nn.LSTM(5, 6, seed=2, dtype="float64"),
        nn.TimeDistributed(nn.Linear(6, 2, seed=3, dtype="float64")),
    )

    def loss(y: Any, target: Any) -> tuple[float, Any, int]:
        value, gradient = mse_loss(y, target, reduction="sum")
        return value, gradient, target.size

    optimizer = optim.Adam(model.parameters(), lr=1e-2)
    trainer = tbptt.TBPTT(model, loss, optimizer, k1=4, k2=8)
    x, target = RNG(0).normal(size=(4, 2, 1, 4, 4)), RNG(1).normal(size=(4, 2, 2))
    losses = [trainer.step(x, target).loss_per_item for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


def composed(model: nn.Iterated, x: Any, frozen: int) -> tuple[Any, Any]:
    """What enters the last iterations, and the output."""
    for _ in range(model.steps - frozen):
        x, _ = model.module(x)
    y = x
    for _ in range(frozen):
        y, _ = model.module(y)
    return x, y


@pytest.mark.parametrize("truncation", [None, 1, 2, 4, 7])
def test_iterated_by_differences(truncation: int | None) -> None:
    child = nn.Linear(3, 3, activation="tanh", seed=0, dtype="float64")
    model = nn.Iterated(child, 4, truncation)
    reach = min(truncation or 4, 4)
    x, grad = RNG(0).normal(size=(2, 3)), RNG(1).normal(size=(2, 3))
    y, _, tape = model.forward(x)
    entering, expected = composed(model, x, reach)
    np.testing.assert_array_equal(y, expected)
    grads = model.backward(tape, grad)

    def loss() -> float:
        last = entering
        for _ in range(reach):
            last, _ = child(last)
        return float(np.sum(last * grad))

    step = 1e-6
    for name, parameter in model.parameters().items():
        numeric = np.zeros_like(parameter)
        for index in np.ndindex(*parameter.shape):
            old, sides = parameter[index], []
            for sign in (1, -1):
                parameter[index] = old + sign * step
                sides.append(loss())
            parameter[index] = old
            numeric[index] = (sides[0] - sides[1]) / (2 * step)
        np.testing.assert_allclose(grads.params[name], numeric, atol=1e-8, err_msg=name)
    assert grads.x is not None
    if reach < 4:
        assert not grads.x.any()
        return
    numeric = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        sides = []
        for sign in (1, -1):
            moved = x.copy()
            moved[index] += sign * step
            sides.append(float(np.sum(composed(model, moved, 0)[0] * grad)))
        numeric[index] = (sides[0] - sides[1]) / (2 * step)
    np.testing.assert_allclose(grads.x, numeric, atol=1e-8)


def test_iterated_keeps_only_what_it_goes_back_through() -> None:
    child = nn.Linear(8, 8, activation="tanh", seed=0)
    x = np.ones((4, 8), np.float32)
    tapes = [nn.Iterated(child, 10, k).forward(x)[2] for k in (1, 5, None)]
    assert [len(tape.saved) for tape in tapes] == [1, 5, 10]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: nn.TimeDistributed(None), TypeError, "TimeDistributed: module: expected a Module"),
        (lambda: nn.Iterated(nn.Linear(2, 2), 0), ValueError, "Iterated: steps: expected"),
        (lambda: nn.Iterated(nn.Linear(2, 2), 3, 0), ValueError, "Iterated: truncation: expected"),
        (
            lambda: nn.Iterated(nn.Linear(2, 3), 2).forward(np.ones((1, 2), np.float32)),
            ValueError,
            r"Iterated: module: expected one that keeps the shape \[1, 2\], got \[1, 3\]",
        ),
        (
            lambda: nn.TimeDistributed(nn.Linear(2, 2)).forward(np.ones(2, np.float32)),
            ValueError,
            r"TimeDistributed: x: expected \[T, B, ...\], got shape \[2\]",
        ),
        (
            lambda: nn.Iterated(nn.GRU(2, 2), 2).forward(np.ones((1, 1, 2), np.float32)),
            ValueError,
            "Iterated: module: expected one without a state",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
