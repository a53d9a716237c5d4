"""The trainer: its gradients are those of the definition, and a resumed run has the same bits."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from tbptt_fast import checkpoint, nn, optim, reference
from tbptt_fast.data import TextStream
from tbptt_fast.tbptt import TBPTT

CELLS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
BATCH, FEATURES, HIDDEN = 3, 2, 5


class Result(NamedTuple):
    norm: float
    applied: bool


class Recorder:
    """An optimizer that changes nothing and adds up the gradients it is given."""

    lr = 0.0

    def __init__(self, applied: bool = True) -> None:
        self.applied = applied
        self.steps: list[dict[str, Any]] = []

    def step(self, grads: dict[str, Any]) -> Result:
        self.steps.append({name: value.copy() for name, value in grads.items()})
        return Result(1.0, self.applied)

    def total(self) -> dict[str, Any]:
        return {name: sum(step[name] for step in self.steps) for name in self.steps[0]}


def half_square(y: Any, target: Any) -> tuple[float, Any, float]:
    return float(((y - target) ** 2).sum() / 2), y - target, float(y.size)


def stream(steps: int, width: int = HIDDEN, resets: float = 0.0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(steps)
    x = rng.standard_normal((steps, BATCH, FEATURES))
    target = rng.standard_normal((steps, BATCH, width))
    return x, target, rng.random((steps, BATCH)) < resets if resets else None


def recorded(model: nn.Module, data: tuple[Any, Any, Any], k1: int, k2: int) -> dict[str, Any]:
    """The gradient summed over all losses, as the trainer's updates with fixed weights give it."""
    recorder: Any = Recorder()
    TBPTT(model, half_square, recorder, k1=k1, k2=k2).run([data])
    return {name: value * k1 * BATCH for name, value in recorder.total().items()}


def assert_same(got: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-10) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("resets", [0.0, 0.15])
@pytest.mark.parametrize("steps", [1, 12, 23])
@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (4, 4), (1, 5), (4, 5), (4, 7), (3, 11), (30, 40)])
@pytest.mark.parametrize("cell", CELLS)
def test_windows_add_up_to_the_truncated_gradient_of_the_whole_stream(
    cell: str, k1: int, k2: int, steps: int, resets: float
) -> None:
    model = CELLS[cell](FEATURES, HIDDEN, seed=1, dtype=np.float64)
    x, target, is_init = data = stream(steps, resets=resets)
    got = recorded(model, data, k1, k2)

    weights = model.parameters().values()  # in the order of the op's arguments
    out, _, tape = getattr(reference, f"{cell}_forward")(x, None, *weights, is_init=is_init)
    grads = getattr(reference, f"{cell}_backward")(tape, out - target, truncation=(k1, k2))
    expected = [grads.w_ih, grads.w_hh, grads.b_ih, grads.b_hh]
    assert_same(got, dict(zip(got, expected, strict=True)))


def stacked(dtype: Any = np.float64) -> nn.Sequential:
    return nn.Sequential(
        nn.GRU(FEATURES, HIDDEN, 2, seed=1, dtype=dtype),
        nn.LSTM(HIDDEN, HIDDEN, seed=2, dtype=dtype),
        nn.Linear(HIDDEN, 4, seed=3, dtype=dtype),
    )


@pytest.mark.parametrize("resets", [0.0, 0.15])
@pytest.mark.parametrize(("k1", "k2"), [(4, 4), (4, 7), (3, 11)])
def test_a_deep_network_is_the_explicit_loop_over_overlapping_windows(
    k1: int, k2: int, resets: float
) -> None:
    model = stacked()
    x, target, is_init = data = stream(22, width=4, resets=resets)
    flags = np.zeros(x.shape[:2], bool) if is_init is None else is_init
    expected: dict[str, Any] = dict.fromkeys(model.parameters(), 0.0)
    for begin in range(0, len(x), k1):
        low, end = max(0, begin + k1 - k2), min(begin + k1, len(x))
        state = model(x[:low], is_init=flags[:low])[1] if low else None
        y, _, tape = model.forward(x[low:end], state, is_init=flags[low:end])
        grad = np.zeros_like(y)
        grad[begin - low :] = y[begin - low :] - target[begin:end]
        for name, value in model.backward(tape, grad).params.items():
            expected[name] = expected[name] + value
    assert_same(recorded(model, data, k1, k2), expected)


def test_scalar_recurrence_counts_no_gradient_twice() -> None:
    """x_t = w x_{t-1} with w = 0.2, x_0 = 0.9: dx_t/dw is 0.9, 0.36, 0.108."""
    rnn = nn.RNN(1, 1, nonlinearity="relu", bias=False, dtype=np.float64)
    rnn.load_state_dict({"weight_ih_l0": np.ones((1, 1)), "weight_hh_l0": np.full((1, 1), 0.2)})
    x = np.zeros((4, 1, 1))
    x[0] = 0.9
    recorder: Any = Recorder()

    def output(y: Any, target: Any) -> tuple[float, Any, float]:
        return float(y.sum()), np.ones_like(y), y.size

    TBPTT(rnn, output, recorder, k1=1, k2=4).run([(x, x)])
    got = [step["weight_hh_l0"].item() for step in recorder.steps]
    np.testing.assert_allclose(got, [0.0, 0.9, 0.36, 0.108], rtol=1e-12)


def test_a_short_last_window_weighs_no_more_per_item() -> None:
    model = CELLS["gru"](FEATURES, HIDDEN, seed=1, dtype=np.float64)
    x, target, _ = stream(10)
    recorder: Any = Recorder()
    trainer = TBPTT(model, half_square, recorder, k1=8)
    trainer.run([(x, target)])
    state = model(x[:8])[1]
    y, _, tape = model.forward(x[8:], state)
    exact = model.backward(tape, (y - target[8:]) / (8 * BATCH)).params
    assert_same(recorder.steps[1], exact)

    recorder.steps.clear()
    TBPTT(model, half_square, recorder, k1=8, keep_last=False).run([(x, target), (x, target)])
    assert len(recorder.steps) == 2
    # What was left out is a gap, so the second stream began from zero as the first did.
    assert_same(recorder.steps[0], recorder.steps[1])


def test_a_window_in_which_all_rows_begin_forgets_what_was_before() -> None:
    model = stacked()
    x, target, _ = stream(6, width=4)
    is_init = np.zeros((6, BATCH), bool)
    is_init[0] = True
    fresh: Any = Recorder()
    used: Any = Recorder()
    for recorder in (fresh, used):
        trainer = TBPTT(model, half_square, recorder, k1=6, k2=9)
        if recorder is used:
            trainer.run([stream(12, width=4)])
        trainer.step(x, target, is_init)
    assert_same(used.steps[-1], fresh.steps[-1])


def test_run_and_evaluate_return_the_mean_loss_per_item() -> None:
    model = stacked()
    x, target, is_init = stream(20, width=4, resets=0.1)
    before = {name: value.copy() for name, value in model.parameters().items()}
    y, _ = model(x, is_init=is_init)
    expected = ((y - target) ** 2).mean() / 2
    recorder: Any = Recorder()
    trainer = TBPTT(model, half_square, recorder, k1=4, k2=6)
    trainer.run([(x[:8], target[:8])])
    state = trainer.state_dict()

    parts = [(x[:7], target[:7], is_init[:7]), (x[7:], target[7:], is_init[7:])]
    assert trainer.evaluate(parts) == pytest.approx(expected, rel=1e-12)
    assert_same(model.parameters(), before, 0.0)
    assert trainer.state_dict()["state"] is state["state"]

    trainer.reset()
    assert trainer.run([(x, target, is_init)]) == pytest.approx(expected, rel=1e-12)
    assert trainer.updates == 2 + 5
    assert np.isnan(trainer.evaluate([]))


def test_targets_that_do_not_count_make_no_step() -> None:
    model = nn.Linear(2, 2, seed=0)
    recorder: Any = Recorder()
    trainer = TBPTT(model, lambda y, _: (0.0, np.zeros_like(y), 0), recorder, k1=4)
    x = np.ones((4, 1, 2), np.float32)
    assert trainer.step(x, x).loss_per_item == 0.0


def test_the_schedule_moves_once_an_update() -> None:
    model = nn.Linear(FEATURES, 4, seed=0, dtype=np.float64)
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    schedule = optim.ExponentialLR(optimizer, gamma=0.5)
    trainer = TBPTT(model, half_square, optimizer, k1=5, schedule=schedule)
    trainer.run([stream(15, width=4)])
    assert optimizer.lr == 0.125


def test_a_skipped_gradient_ends_the_stream() -> None:
    model = stacked()
    recorder: Any = Recorder(applied=False)
    trainer = TBPTT(model, half_square, recorder, k1=4, k2=8)
    x, target, _ = stream(4, width=4)
    report = trainer.step(x, target)
    assert not report.applied
    assert trainer.state_dict()["state"] is None
    assert trainer.state_dict()["history"] is None


def test_an_update_that_raises_leaves_the_trainer_as_it_was() -> None:
    model = stacked()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    trainer = TBPTT(model, half_square, optimizer, k1=4, k2=8)
    x, target, _ = stream(8, width=4)
    trainer.step(x[:4], target[:4])
    before, weights = trainer.state_dict(), model.state_dict()
    x[5, 1, 0] = np.nan
    with pytest.raises(FloatingPointError, match="finite"):
        trainer.step(x[4:], target[4:])
    assert trainer.state_dict() == before
    assert_same(model.parameters(), weights, 0.0)


@pytest.mark.parametrize(("k1", "k2"), [(0, 4), (4, 3), (-1, None)])
def test_impossible_windows_are_refused(k1: int, k2: int | None) -> None:
    recorder: Any = Recorder()
    with pytest.raises(ValueError, match="expected 1 <= k1 <= k2, got"):
        TBPTT(stacked(), half_square, recorder, k1=k1, k2=k2)


@pytest.mark.parametrize("steps", [0, 5])
def test_step_refuses_what_is_no_window(steps: int) -> None:
    recorder: Any = Recorder()
    trainer = TBPTT(stacked(), half_square, recorder, k1=4)
    with pytest.raises(ValueError, match=f"window of 1 to 4 steps, got {steps}"):
        trainer.step(*stream(steps, width=4))


class Training:
    """Everything a checkpoint of a training holds."""

    def __init__(self, k1: int, k2: int) -> None:
        self.model = nn.Sequential(
            nn.Embedding(7, 4, seed=1),
            nn.LSTM(4, 6, 2, dropout=0.3, seed=2),
            nn.Linear(6, 7, seed=3),
        )
        self.optimizer = optim.Adam(self.model.parameters(), lr=0.01, max_norm=1.0)
        self.schedule = optim.WarmUp(optim.ExponentialLR(self.optimizer, gamma=0.9), steps=3)
        self.trainer = TBPTT(
            self.model, one_hot_error, self.optimizer, k1=k1, k2=k2, schedule=self.schedule
        )
        ids = np.random.default_rng(5).integers(0, 7, 120).astype(np.int32)
        self.stream = TextStream(ids, batch=2, k1=k1)

    def advance(self, windows: int) -> None:
        for _ in range(windows):
            self.trainer.step(*self.stream.next_window())

    def parts(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "trainer": self.trainer,
            "stream": self.stream,
        }

    def save(self, path: Any) -> None:
        tree = {name: part.state_dict() for name, part in self.parts().items()}
        tree |= {"model": self.model.state_dict(), "random": self.model.rng_state()}
        checkpoint.save(path, tree)

    def load(self, path: Any) -> None:
        tree = checkpoint.load(path)
        self.model.load_state_dict(tree["model"])
        self.model.set_rng_state(tree["random"])
        for name, part in self.parts().items():
            part.load_state_dict(tree[name])


def one_hot_error(y: Any, target: Any) -> tuple[float, Any, float]:
    return half_square(y, np.eye(7, dtype=np.float32)[target])


@pytest.mark.parametrize("windows", [1, 5, 17])
@pytest.mark.parametrize(("k1", "k2"), [(8, 8), (4, 10), (5, 7)])
def test_a_resumed_training_has_the_same_bits(
    k1: int, k2: int, windows: int, tmp_path: Any
) -> None:
    whole, first, second = Training(k1, k2), Training(k1, k2), Training(k1, k2)
    whole.advance(windows + 20)
    first.advance(windows)
    first.save(tmp_path / "run.ckpt")
    first.advance(3)  # what happened after the checkpoint is lost
    second.load(tmp_path / "run.ckpt")
    second.advance(20)
    assert_same(second.model.parameters(), whole.model.parameters(), 0.0)
    assert second.optimizer.lr == whole.optimizer.lr
    assert second.stream.state_dict() == whole.stream.state_dict()
    assert second.trainer.updates == whole.trainer.updates


def test_a_state_of_other_windows_is_refused() -> None:
    trainer = Training(4, 8).trainer
    with pytest.raises(ValueError, match="expected k1 = 4, k2 = 8, got k1 = 4, k2 = 4"):
        trainer.load_state_dict(Training(4, 4).trainer.state_dict())


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_learns_to_echo_across_the_border_of_windows(cell: str) -> None:
    """The bit of three steps ago with k1 = 2: k2 = 2 can never learn to store it, k2 = 6 must."""
    bits = np.random.default_rng(3).integers(0, 2, (1203, 16)).astype(np.float32)
    x, target = bits[3:, :, None], bits[:-3, :, None]
    errors = {}
    for k2 in (2, 6):
        model = nn.Sequential(CELLS[cell](1, 24, seed=1), nn.Linear(24, 1, seed=2))
        optimizer = optim.Adam(model.parameters(), lr=0.01, max_norm=1.0)
        trainer = TBPTT(model, half_square, optimizer, k1=2, k2=k2)
        trainer.run([(x[:1000], target[:1000])])
        errors[k2] = trainer.evaluate([(x[1000:], target[1000:])])
    guessing = 0.125  # the mean half square of a bit from its mean
    assert errors[6] < guessing / 10
    assert errors[2] > guessing / 2
