"""Choosing K: the formulas on known decays, and measured norms of whole networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tbptt_fast import nn, reference
from tbptt_fast.tbptt import AdaptiveK, adaptive_k, measure_lags

FITS: tuple[Any, ...] = ("least_squares", "largest", "quantile")


def brute_force(phi: Any, tau: int, beta: float, k: int) -> float:
    """E(K), term by term, with the geometric tail summed up instead of its formula."""
    terms = [phi[lag] for lag in range(k, tau)]
    terms += [phi[tau] * beta ** (lag - tau) for lag in range(max(k, tau), max(k, tau) + 5000)]
    return float(sum(terms))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("lags", ["tail", "all"])
def test_geometric_decay_is_found_exactly(fit: Any, lags: Any) -> None:
    beta, last, tau = 0.9, 60, 40
    phi = 3.0 * beta ** np.arange(last + 1)
    choice = adaptive_k(phi, delta=0.2, tau=tau, fit=fit, lags=lags)
    assert choice.beta == pytest.approx(beta, rel=1e-12)
    first = tau if lags == "tail" else 0
    assert np.isnan(choice.fitted[:first]).all()
    np.testing.assert_allclose(choice.fitted[first:], phi[first:], rtol=1e-12)
    expected = [brute_force(phi, tau, beta, k) for k in range(last + 1)]
    np.testing.assert_allclose(choice.absolute, expected, rtol=1e-10)
    bound = max(phi[: k + 1].sum() - expected[k] for k in range(last + 1))
    assert choice.gradient == pytest.approx(bound, rel=1e-12)
    np.testing.assert_allclose(choice.relative, np.array(expected) / bound, rtol=1e-10)
    wanted = next(k for k in range(1, last + 1) if expected[k] / bound < 0.2)
    assert (choice.k, choice.met, choice.tau) == (wanted, True, tau)


def test_the_tail_alone_is_fitted_by_default() -> None:
    """Slow decay up to lag 20, fast decay beyond: the head must not slow down the tail."""
    lag = np.arange(41)
    phi = np.where(lag < 20, 0.99**lag, 0.99**20 * 0.7 ** (lag - 20.0))
    tail = adaptive_k(phi, tau=20)
    assert tail.beta == pytest.approx(0.7, rel=1e-12)
    every = adaptive_k(phi, tau=20, lags="all")
    slope = np.polyfit(lag, np.log(phi), 1)[0]
    assert every.beta == pytest.approx(np.exp(slope), rel=1e-12)
    for choice in (tail, every):
        expected = [brute_force(phi, 20, choice.beta, k) for k in range(41)]
        np.testing.assert_allclose(choice.absolute, expected, rtol=1e-10)
    assert tail.k < every.k


def test_slopes_of_a_noisy_decay() -> None:
    rng = np.random.default_rng(0)
    logs = -0.2 * np.arange(51) + 0.3 * rng.normal(size=51)
    tau, phi = 30, np.exp(logs)
    at = np.arange(tau, 51)
    least = adaptive_k(phi, tau=tau)
    assert np.log(least.beta) == pytest.approx(np.polyfit(at, logs[tau:], 1)[0], rel=1e-9)
    largest = adaptive_k(phi, tau=tau, fit="largest")
    slopes = [(logs[k] - logs[tau]) / (k - tau) for k in range(tau + 1, 51)]
    assert np.log(largest.beta) == pytest.approx(max(slopes), rel=1e-12)
    pairs = [(logs[j] - logs[i]) / (j - i) for i in range(tau, 51) for j in range(i + 1, 51)]
    for quantile in (0.5, 0.95):
        found = adaptive_k(phi, tau=tau, fit="quantile", quantile=quantile)
        assert np.log(found.beta) == pytest.approx(np.quantile(pairs, quantile), rel=1e-12)


@pytest.mark.parametrize("growth", [1.0, 1.05])
def test_no_decay_is_reported(growth: float) -> None:
    choice = adaptive_k(growth ** np.arange(31.0), k_min=2, k_max=17)
    assert (choice.k, choice.met, choice.decays) == (17, False, False)
    assert np.isinf(choice.absolute).all()
    assert np.isinf(choice.relative).all()
    assert "no decay beyond lag 24" in repr(choice)
    assert "K = 17, the largest allowed" in repr(choice)


def test_a_bound_that_is_missed_is_reported() -> None:
    choice = adaptive_k(0.99 ** np.arange(101), delta=0.01, k_max=50)
    assert (choice.k, choice.met, choice.decays) == (50, False, True)
    assert choice.relative[50] > 0.01
    assert "not below 0.01" in repr(choice)
    beyond = adaptive_k(0.99 ** np.arange(101), delta=0.01, k_max=1000)
    assert beyond.met
    assert beyond.k > 100
    assert beyond.relative[beyond.k] < 0.01 <= beyond.relative[beyond.k - 1]


def test_limits_of_k() -> None:
    phi = 0.5 ** np.arange(31)
    free = adaptive_k(phi, delta=0.1)
    assert free.relative[free.k] < 0.1 <= free.relative[free.k - 1]
    assert adaptive_k(phi, delta=0.1, k_min=9).k == 9
    short = adaptive_k(phi, delta=0.1, k_max=free.k - 1)
    assert (short.k, short.met) == (free.k - 1, False)


def test_a_smaller_delta_never_gives_a_smaller_k() -> None:
    phi = np.exp(np.cumsum(-np.random.default_rng(3).uniform(0, 0.4, 61)))
    ks = [adaptive_k(phi, delta=delta).k for delta in (0.9, 0.5, 0.1, 0.01, 1e-3)]
    assert ks == sorted(ks)
    assert len(set(ks)) > 3


def test_what_has_vanished_is_no_slope() -> None:
    """Values below e^-50 are left out; where the tail is gone, tau moves before it."""
    phi = np.maximum(0.1 ** np.arange(61.0), 1e-30)
    choice = adaptive_k(phi, tau=50)
    assert choice.tau == 20  # 0.1^21 is the last one above e^-50
    assert choice.beta == pytest.approx(0.1, rel=1e-9)
    assert choice.met
    nothing = adaptive_k(np.array([2.0, 0.0, 0.0, 0.0]))
    assert (nothing.k, nothing.met, nothing.beta) == (1, True, 0.0)
    assert nothing.absolute.tolist() == [2.0, 0.0, 0.0, 0.0]
    zero = adaptive_k(np.zeros(4))
    assert not zero.met
    assert "no positive lower bound" in repr(zero)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_gradients_that_are_not_finite_meet_no_bound(bad: float) -> None:
    phi = 0.5 ** np.arange(31)
    phi[12] = bad
    choice = adaptive_k(phi, k_max=20)
    assert (choice.k, choice.met) == (20, False)
    assert "not finite" in repr(choice)


def test_the_mean_is_over_losses_with_as_many_steps_before_them() -> None:
    rng = np.random.default_rng(0)
    phi = rng.uniform(1, 2, size=(9, 6, 3)) * 0.5 ** np.arange(9)[:, None, None]
    for lag in range(9):
        phi[lag, :lag] = np.nan
    found = adaptive_k(phi)
    expected = [phi[lag, lag:].mean() for lag in range(6)]
    np.testing.assert_allclose(found.phi, expected, rtol=1e-14)
    np.testing.assert_allclose(adaptive_k(phi[:6, 5]).phi, phi[:6, 5].mean(axis=1), rtol=1e-14)
    # A NaN where something is known is no missing value.
    phi[1, 4, 2] = np.nan
    assert not adaptive_k(phi).met


def test_cancelling_gradients_lower_the_bound() -> None:
    phi = 0.8 ** np.arange(41)
    loose, tight = adaptive_k(phi), adaptive_k(phi, gradient=np.cumsum(phi) / 4)
    assert tight.gradient < loose.gradient / 3
    assert tight.k > loose.k


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phi": np.ones((2, 2, 2, 2))}, r"phi: expected shape .* got \[2, 2, 2, 2\]"),
        ({"phi": np.ones((3, 0))}, r"phi: expected shape .* got \[3, 0\]"),
        ({"phi": np.ones(())}, r"phi: expected shape .* got \[\]"),
        ({"phi": np.ones(1)}, "phi: expected the lags 0 and 1 at least, got lag 0 alone"),
        ({"phi": np.ones((5, 1, 2))}, "phi: expected the lags 0 and 1 at least"),
        ({"phi": -np.ones(5)}, "phi: expected norms, got -1"),
        ({"delta": 0.0}, "delta: expected a value above 0, got 0.0"),
        ({"delta": np.nan}, "delta: expected a value above 0, got nan"),
        ({"tau": 5}, "tau: expected a lag from 0 to 4, got 5"),
        ({"tau": -1}, "tau: expected a lag from 0 to 4, got -1"),
        ({"k_min": 0}, "expected 1 <= k_min <= k_max, got 0 and 4"),
        ({"k_min": 3, "k_max": 2}, "expected 1 <= k_min <= k_max, got 3 and 2"),
        ({"fit": "lsq"}, "fit: expected 'least_squares', 'largest' or 'quantile', got 'lsq'"),
        ({"lags": "head"}, "lags: expected 'tail' or 'all', got 'head'"),
        ({"quantile": 1.5}, r"quantile: expected a value in \[0, 1\], got 1.5"),
        ({"gradient": np.ones(4)}, r"gradient: expected shape \[5\], got \[4\]"),
    ],
    ids=str,
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^adaptive_k: {message}"):
        adaptive_k(**{"phi": np.ones(5), **options})


# --- Whole networks -----------------------------------------------------------------------------


def half_square(y: Any, target: Any) -> tuple[float, Any, float]:
    return float(((y - target) ** 2).sum() / 2), y - target, float(y.size)


def data(steps: int, batch: int = 3, features: int = 2, width: int = 4) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(steps)
    x, y = (rng.standard_normal((steps, batch, n)) for n in (features, width))
    return x, y, rng.random((steps, batch)) < 0.1


CELLS: dict[str, Any] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_one_layer_against_the_reference(cell: str, resets: bool) -> None:
    x, y, flags = data(14)
    is_init = flags if resets else None
    layer = CELLS[cell](2, 5, seed=1, dtype=np.float64)
    head = nn.Linear(5, 4, seed=2, dtype=np.float64)
    model = nn.Sequential(layer, nn.Dropout(0.5, seed=3), head)
    found = measure_lags(model, half_square, x, y, 6, is_init=is_init, losses=100)
    assert model.training

    weights = layer.parameters().values()
    out, _, tape = getattr(reference, f"{cell}_forward")(x, None, *weights, is_init=is_init)
    w = head.parameters()
    grad = (out @ w["weight"].T + w["bias"] - y) @ w["weight"]
    phi: Any = reference.lag_norms(tape, grad, 6)
    np.testing.assert_allclose(found.phi.reshape(7, 8, 3), phi[:, 6:], rtol=1e-10, atol=1e-300)
    late = grad.copy()
    late[:6] = 0
    sums = reference.lag_norms(tape, late, 6, sums=True)[1]
    mean = sums.reshape(7, -1) / 24
    expected = [np.linalg.norm(mean[: k + 1].sum(axis=0)) for k in range(7)]
    np.testing.assert_allclose(found.gradient, expected, rtol=1e-10)


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_one_layer_either_way(cell: str, resets: bool) -> None:
    """What stacks are measured with gives the same norms as walking back all at once."""
    x, y, flags = data(12)
    is_init = flags if resets else None
    one = nn.Sequential(
        CELLS[cell](2, 5, seed=1, dtype=np.float64), nn.Linear(5, 4, seed=2, dtype=np.float64)
    )
    from tbptt_fast.tbptt import measure

    chosen = np.array([7, 9, 11])
    body, head = measure._split(one)
    both = [
        walk(body, head, half_square, x, y, 7, (None,), is_init, chosen)
        for walk in (measure._all_at_once, measure._step_by_step)
    ]
    np.testing.assert_allclose(both[1].phi, both[0].phi, rtol=1e-10, atol=1e-300)
    np.testing.assert_allclose(both[1].gradient, both[0].gradient, rtol=1e-10)


def stacks() -> dict[str, nn.Sequential]:
    head = nn.Linear(5, 4, seed=9, dtype=np.float64)
    return {
        "two layers": nn.Sequential(nn.LSTM(2, 5, 2, seed=1, dtype=np.float64), head),
        "a chain": nn.Sequential(
            nn.GRU(2, 3, seed=1, dtype=np.float64),
            nn.Linear(3, 6, activation="tanh", seed=2, dtype=np.float64),
            nn.LSTM(6, 5, seed=3, dtype=np.float64),
            head,
        ),
    }


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("name", stacks())
def test_stacks_against_finite_differences(name: str, resets: bool) -> None:
    """Move every unit of the state that enters a later step; see what one step's loss does."""
    model = stacks()[name]
    x, y, flags = data(6, batch=2)
    is_init = flags if resets else np.zeros((6, 2), bool)
    found = measure_lags(model, half_square, x, y, 4, is_init=is_init, losses=1)
    assert found.phi.shape == (5, 2)

    def flat(state: Any) -> list[Any]:
        if isinstance(state, tuple):
            return [array for entry in state for array in flat(entry)]
        return [] if state is None else [state]

    s, step, vectors = 4, 1e-6, []
    for lag in range(1, 5):
        begin = s - lag + 1
        _, state = model(x[:begin], is_init=is_init[:begin])
        columns = []
        for array in flat(state):
            for layer, unit in np.ndindex(array.shape[0], array.shape[2]):
                losses = []
                for move in (step, -step):
                    kept = array[layer, :, unit].copy()
                    array[layer, :, unit] += move
                    out, _ = model(x[begin : s + 1], state, is_init=is_init[begin : s + 1])
                    losses.append(((out[-1] - y[s]) ** 2).sum(axis=-1) / 2)
                    array[layer, :, unit] = kept
                columns.append((losses[0] - losses[1]) / (2 * step))
        vectors.append(np.stack(columns))  # [all units of the state, B]
    for lag, gradient in enumerate(vectors, start=1):
        expected = np.linalg.norm(gradient, axis=0)
        np.testing.assert_allclose(found.phi[lag], expected, rtol=1e-6, atol=1e-9)
    w = model[len(model) - 1].parameters()["weight"]
    out, _ = model(x[: s + 1], is_init=is_init[: s + 1])
    at_s = (out[s] - y[s]) @ w
    np.testing.assert_allclose(found.phi[0], np.linalg.norm(at_s, axis=1), rtol=1e-10)

    # The gradient by the last layer's h comes last, or before that layer's (or all layers') c.
    from tbptt_fast.tbptt import measure

    body, _ = measure._split(model)
    size = len(vectors[0])
    total = np.zeros(size)
    total[measure._place_of_output(body, size)] = at_s.mean(axis=0)
    np.testing.assert_allclose(found.gradient[0], np.linalg.norm(total), rtol=1e-10)
    for lag, gradient in enumerate(vectors, start=1):
        total = total + gradient.mean(axis=1)
        np.testing.assert_allclose(found.gradient[lag], np.linalg.norm(total), rtol=1e-6)


def test_an_entering_state_counts() -> None:
    x, y, _ = data(12)
    for model in (stacks()["a chain"], nn.GRU(2, 4, seed=1, dtype=np.float64)):
        whole = measure_lags(model, half_square, x, y, 4, losses=1)
        _, state = model(x[:5])
        later = measure_lags(model, half_square, x[5:], y[5:], 4, state=state, losses=1)
        last = measure_lags(model, half_square, x, y, 8, losses=1)
        assert whole.phi.shape == later.phi.shape
        np.testing.assert_allclose(later.phi, measure_at(model, x, y, 9), rtol=1e-12)
        assert not np.allclose(last.phi[:5], later.phi, rtol=1e-3)


def measure_at(model: Any, x: Any, y: Any, s: int) -> Any:
    """phi of the loss at step s alone, on the sequence that ends there."""
    return measure_lags(model, half_square, x[: s + 1], y[: s + 1], s, losses=1).phi[:5]


def test_a_network_that_cannot_be_measured_is_refused() -> None:
    x, y, _ = data(12)
    with pytest.raises(TypeError, match=r"^measure_lags: model: expected recurrent layers"):
        measure_lags(nn.Linear(2, 4, dtype=np.float64), half_square, x, y, 4)
    with pytest.raises(TypeError, match=r"got Conv1d\("):
        measure_lags(nn.Sequential(nn.Conv1d(2, 2, 3), nn.GRU(2, 4)), half_square, x, y, 4)
    model = nn.GRU(2, 4, dtype=np.float64)
    with pytest.raises(ValueError, match=r"^measure_lags: x: expected more than 12 steps, got 12"):
        measure_lags(model, half_square, x, y, 12)
    with pytest.raises(ValueError, match=r"^measure_lags: expected sizes of at least 1, got 0 and"):
        measure_lags(model, half_square, x, y, 0)


def test_the_result_shows_itself() -> None:
    choice = adaptive_k(0.8 ** np.arange(51))
    assert isinstance(choice, AdaptiveK)
    assert repr(choice).startswith("K = 11: relative bias at most 0.0859, below 0.1")
