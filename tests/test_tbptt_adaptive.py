"""The trainer with k: windows in which every loss reaches k steps, and k chosen while training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tbptt_fast import checkpoint, nn, optim
from tbptt_fast.tbptt import TBPTT, adaptive_k, measure_lags

from .test_tbptt import (
    BATCH,
    CELLS,
    FEATURES,
    HIDDEN,
    Recorder,
    assert_same,
    half_square,
    recorded,
    stacked,
    stream,
)


def test_k_lets_every_loss_reach_k_steps() -> None:
    model = CELLS["gru"](FEATURES, HIDDEN, seed=1, dtype=np.float64)
    data = stream(23, resets=0.1)
    fixed: Any = Recorder()
    trainer = TBPTT(model, half_square, fixed, k=4)
    assert (trainer.k1, trainer.k2) == (4, 7)
    trainer.run([data])
    found = {name: value * 4 * BATCH for name, value in fixed.total().items()}
    assert_same(found, recorded(model, data, 4, 7))


def adaptive(model: nn.Module, optimizer: Any = None, **options: Any) -> TBPTT:
    optimizer = Recorder() if optimizer is None else optimizer
    given = {"delta": 0.1, "max_lag": 12, "block": 40, **options}
    return TBPTT(model, half_square, optimizer, k="adaptive", **given)


@pytest.mark.parametrize("resets", [0.0, 0.1])
def test_an_adaptive_k_is_the_one_of_its_definition(resets: float) -> None:
    """The choice is what adaptive_k says about the newest windows, and the windows follow it."""
    model = stacked()
    x, y, is_init = stream(150, width=4, resets=resets)
    choices: list[Any] = []
    lengths: list[int] = []
    trainer = adaptive(model, on_choice=choices.append, keep_last=False)
    step = trainer.step

    def noted(x: Any, *rest: Any) -> Any:
        lengths.append(len(x))
        return step(x, *rest)

    trainer.step = noted  # type: ignore[assignment,method-assign]
    trainer.run([(x, y, is_init)])
    assert lengths[:2] == [12, 12]  # k_max until 2·max_lag steps were seen
    assert len(choices) >= 2
    assert trainer.choice is choices[-1]
    found = measure_lags(
        model, half_square, x[:24], y[:24], 12, is_init=is_init_of(is_init), losses=256 // BATCH
    )
    first = adaptive_k(found.phi, gradient=found.gradient, delta=0.1, k_max=12)
    assert choices[0].k == first.k < 12
    np.testing.assert_array_equal(choices[0].phi, first.phi)
    assert lengths[2] == first.k
    left, following = 40, iter(choices)
    expected = next(following).k
    for length in lengths[2:]:
        assert length == expected
        left -= length
        if left <= 0:
            expected, left = next(following).k, 40
    assert not list(following)


def is_init_of(flags: Any) -> Any:
    return None if flags is None else flags[:24]


def test_the_newest_windows_are_measured_from_the_state_that_entered_them() -> None:
    """Weights do not change here: what the trainer measured is a piece of one long stream."""
    model = stacked()
    x, y, _ = stream(200, width=4)
    measured: list[tuple[int, int, Any]] = []

    def remember(choice: Any) -> None:
        windows = trainer.state_dict()["adapter"]["recent"]
        newest = np.concatenate([window[0] for window in windows])
        begin = next(t for t in range(200) if (x[t] == newest[0]).all())
        assert np.array_equal(x[begin : begin + len(newest)], newest)
        measured.append((begin, begin + len(newest), choice))

    trainer = adaptive(model, on_choice=remember, max_lag=10, block=60)
    trainer.run([(x[:97], y[:97]), (x[97:], y[97:])])
    assert len(measured) >= 3
    assert measured[-1][0] > 0
    for begin, end, choice in measured:
        assert 20 <= end - begin < 40
        state = model(x[:begin])[1] if begin else None
        found = measure_lags(
            model, half_square, x[begin:end], y[begin:end], 10, state=state, losses=256 // BATCH
        )
        np.testing.assert_allclose(choice.phi, found.phi.mean(axis=1), rtol=1e-10)


@pytest.mark.parametrize("windows", [1, 6, 15])
def test_a_resumed_adaptive_training_has_the_same_bits(windows: int, tmp_path: Any) -> None:
    def training() -> tuple[nn.Sequential, TBPTT, optim.SGD]:
        model = stacked(np.float32)
        optimizer = optim.SGD(model.parameters(), lr=0.05)
        return model, adaptive(model, optimizer, max_lag=8, block=30), optimizer

    x, y, is_init = stream(400, width=4, resets=0.05)
    x, y = x.astype(np.float32), y.astype(np.float32)

    def advance(trainer: TBPTT, begin: int, count: int) -> int:
        for _ in range(count):
            part = slice(begin, begin + trainer.k1)
            trainer.step(x[part], y[part], is_init[part])
            begin = part.stop
        return begin

    model, whole, _ = training()
    advance(whole, 0, windows + 12)
    first_model, first, _ = training()
    begin = advance(first, 0, windows)
    state = first.state_dict() | {"weights": first_model.state_dict()}
    checkpoint.save(tmp_path / "run.ckpt", state)
    second_model, second, _ = training()
    tree = checkpoint.load(tmp_path / "run.ckpt")
    second_model.load_state_dict(tree.pop("weights"))
    second.load_state_dict(tree)
    assert (second.k1, second.k2) == (first.k1, first.k2)
    advance(second, begin, 12)
    assert_same(second_model.parameters(), model.parameters(), 0.0)
    assert (second.k1, second.updates) == (whole.k1, whole.updates)


def test_rows_of_another_stream_are_not_mixed() -> None:
    model = stacked()
    trainer = adaptive(model)
    trainer.run([stream(30, width=4)])
    trainer.reset()
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((60, 5, FEATURES)), rng.standard_normal((60, 5, 4))
    trainer.run([wide])
    assert trainer.choice is not None


def test_training_with_an_adaptive_k_learns() -> None:
    """The bit of three steps ago, which the network must find out to carry that far."""
    bits = np.random.default_rng(3).integers(0, 2, (2003, 16)).astype(np.float32)
    x, target = bits[3:, :, None], bits[:-3, :, None]
    model = nn.Sequential(nn.GRU(1, 24, seed=1), nn.Linear(24, 1, seed=2))
    optimizer = optim.Adam(model.parameters(), lr=0.01, max_norm=1.0)
    trainer = adaptive(model, optimizer, delta=0.5, max_lag=30, block=200)
    trainer.run([(x[:1800], target[:1800])])
    assert trainer.choice is not None
    assert trainer.choice.met
    assert 3 < trainer.choice.k < 30
    assert trainer.evaluate([(x[1800:], target[1800:])]) < 0.0125


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "TBPTT: expected k1 or k, got neither"),
        ({"k": 3, "k1": 4}, "TBPTT: expected k or k1 and k2, got k = 3 and k1 or k2"),
        ({"k": "adaptive", "k2": 4}, "TBPTT: expected k or k1 and k2, got k = 'adaptive'"),
        ({"k": "auto"}, "k: expected a number or 'adaptive', got 'auto'"),
        ({"k": 0}, "expected 1 <= k1 <= k2, got"),
        ({"k": "adaptive", "delta": 0.0}, "delta: expected a value above 0"),
        ({"k": "adaptive", "k_min": 5, "k_max": 4}, "expected 1 <= k_min <= k_max, got 5 and 4"),
        ({"k": "adaptive", "max_lag": 10, "tau": 11}, "tau: expected a lag from 0 to 10, got 11"),
        ({"k": "adaptive", "max_lag": 0}, "expected max_lag and block of at least 1, got 0"),
        ({"k": "adaptive", "block": 0}, "expected max_lag and block of at least 1, got 100 and 0"),
    ],
    ids=str,
)
def test_wrong_windows(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TBPTT(stacked(), half_square, Recorder(), **options)


def test_adaptive_and_fixed_states_are_not_interchangeable() -> None:
    fixed, free = TBPTT(stacked(), half_square, Recorder(), k1=4), adaptive(stacked())
    with pytest.raises(ValueError, match="expected the other kind of windows, got a state of adap"):
        fixed.load_state_dict(free.state_dict())
    with pytest.raises(ValueError, match="expected the other kind of windows, got a state of fix"):
        free.load_state_dict(fixed.state_dict())
