"""The trainer: its gradients are those of the definition, and a resumed run has the same bits."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from tbptt_fast import checkpoint, nn, optim, reference
from tbptt_fast.data import TextStream
from tbptt_fast.tbptt import TBPTT, adaptive_k, measure_lags

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


# --- k instead of k1 and k2, and its choice while training -------------------------------------


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

    trainer.step = noted  # type: ignore[method-assign]
    trainer.run([(x, y, is_init)])
    assert lengths[:2] == [12, 12]  # k_max until 2·max_lag steps were seen
    assert len(choices) >= 2
    assert trainer.choice is choices[-1]
    found = measure_lags(
        model, half_square, x[:24], y[:24], 12, is_init=is_init_of(is_init), losses=8
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
            model, half_square, x[begin:end], y[begin:end], 10, state=state, losses=8
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
