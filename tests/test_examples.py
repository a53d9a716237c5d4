"""The examples in short forms: what they claim, by definition and by their figures."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import _common
import _data
import clipped_optimizer_mlp
import cnn_recurrent_head
import minibatch_regression
import sliding_window
import tanh_network
from tbptt_fast import nn, reference
from tbptt_fast.data import DataError

for package in ("matplotlib", "sklearn", "statsmodels", "tqdm"):
    pytest.importorskip(package)

FOLDER = Path(_data.__file__).parent
EXAMPLES = [
    clipped_optimizer_mlp,
    cnn_recurrent_head,
    minibatch_regression,
    sliding_window,
    tanh_network,
]
RNG = np.random.default_rng


@pytest.fixture
def picture(tmp_path: Path) -> Any:
    """The options for a picture, which must have been written when the test ends."""
    path = tmp_path / "picture.png"
    yield ["--out", str(path)]
    assert path.read_bytes().startswith(b"\x89PNG\r\n")


def norm(arrays: Any) -> float:
    """The norm of all arrays together, in double precision."""
    return float(np.sqrt(sum(np.sum(np.square(array, dtype=np.float64)) for array in arrays)))


def test_examples_are_short() -> None:
    found = sorted(FOLDER.glob("*.py"))
    # those of frameworks: test_torch_ddp, test_jax_example, test_keras_examples
    elsewhere = {"ddp_language_model", "jax_language_model"}
    elsewhere |= {"keras_cnn_recurrent_head", "keras_digits"}
    names = {e.__name__ for e in EXAMPLES} | elsewhere
    assert {path.stem for path in found if path.stem[0] != "_"} == names
    for path in found:
        assert len(path.read_text(encoding="utf-8").splitlines()) < 120, path.name


def test_a_script_shows_progress_cost_and_picture(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "tanh_network.py"), "--epochs", "20"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "epoch    18: cost 0." in ended.stdout
    assert "|   cost | test error | error of no change | clipped |" in ended.stdout
    assert ended.stdout.splitlines()[-1] == "picture: tanh_network.png"
    assert "tanh network: 100%" in ended.stderr
    assert (tmp_path / "tanh_network.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_unusable_data_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "clipped_optimizer_mlp.py"), "--idx", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith("clipped_optimizer_mlp.py: error: ")
    assert "train-images-idx3-ubyte" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.__name__)
def test_missing_packages_and_wrong_options(
    example: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for arguments, message in (
        (["--out", "a.txt"], "a.txt: expected a name ending in .png, .pdf, .svg"),
        (["--out", "no/a.png"], "no/a.png: the folder does not exist"),
        (["--epochs", "0"], "argument --epochs: must be at least 1, got 0"),
    ):
        with pytest.raises(SystemExit, match="2"):
            example.main(arguments)
        assert message in capsys.readouterr().err
    monkeypatch.setattr(_common, "installed", lambda name: name == "matplotlib")
    with pytest.raises(SystemExit, match="2"):
        example.main([])
    found = capsys.readouterr().err
    assert "not installed: s" in found  # sklearn or statsmodels
    assert "tqdm (pip install '.[examples]')" in found


# The data.


def test_series_are_the_real_ones() -> None:
    spots, co2 = _data.sunspots(), _data.co2()
    assert spots.shape == (309,)
    assert spots.max() == 190.2  # the maximum of 1957
    assert co2.shape == (526,)
    assert np.isfinite(co2).all()
    assert np.all(np.diff(co2[:516].reshape(43, 12).mean(axis=1)) > 0.4)  # it grew every year


def test_digits_and_diabetes() -> None:
    data = _data.digits()
    assert data.x.shape == (1438, 8, 8, 1)
    assert data.test_x.shape == (359, 8, 8, 1)
    assert data.x.dtype == np.float32
    assert (data.x.min(), data.x.max()) == (0, 1)
    assert set(data.y) == set(data.test_y) == set(range(10))
    x, y = _data.diabetes()
    np.testing.assert_allclose(np.column_stack([x, y]).mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(np.column_stack([x, y]).std(0), 1, atol=1e-12)


def write_idx(path: Path, values: Any) -> bytes:
    """Write an IDX file of bytes, packed where the name ends in .gz; what it holds unpacked."""
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    content: bytes = b"\0\0\x08" + bytes([values.ndim]) + sizes + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return content


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files(suffix: str, tmp_path: Path) -> None:
    for shape in ((5,), (3, 4, 2)):
        values = RNG(0).integers(0, 256, shape)
        content = write_idx(tmp_path / f"a{suffix}", values)
        np.testing.assert_array_equal(_data.read_idx(tmp_path / "a"), values)
    for wrong, message in (
        (b"", "not an IDX file of bytes"),
        (content[:10], "not an IDX file of bytes"),
        (b"\0\0\x0d" + content[3:], "not an IDX file of bytes"),  # floats
        (content[:-1], "expected 24 bytes of data, got 23"),
        (content + b"\0", "expected 24 bytes of data, got 25"),
    ):
        (tmp_path / f"a{suffix}").write_bytes(gzip.compress(wrong) if suffix else wrong)
        with pytest.raises(DataError, match=message):
            _data.read_idx(tmp_path / "a")
    if suffix:
        for damaged in (gzip.compress(content)[:-9], content):
            (tmp_path / "a.gz").write_bytes(damaged)
            with pytest.raises(DataError, match=r"a\.gz: "):
                _data.read_idx(tmp_path / "a")


def test_training_on_idx_files(tmp_path: Path, picture: list[str]) -> None:
    data = _data.digits()
    for name, images, labels in (("train", data.x, data.y), ("t10k", data.test_x, data.test_y)):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte.gz", np.round(255 * images[..., 0]))
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte", labels)
    found = _data.digits(tmp_path)
    np.testing.assert_allclose(found.x, data.x, atol=1 / 255)
    np.testing.assert_array_equal(found.test_y, data.test_y)
    options = ["--idx", str(tmp_path), "--epochs", "3", *picture]
    assert clipped_optimizer_mlp.main(options)["Adam"].curve[-1] > 0.9
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", data.test_y[1:])
    with pytest.raises(DataError, match="expected as many labels as images"):
        clipped_optimizer_mlp.main(options)


# The network with a recurrent head.


def test_cnn_reaches_its_accuracy(picture: list[str]) -> None:
    (result,) = cnn_recurrent_head.main(["--truncations", "5", *picture]).values()
    assert len(result.curve) == 20
    assert result.curve[-1] > 0.97


def test_cnn_table(picture: list[str], capsys: Any) -> None:
    options = ["--epochs", "1", "--truncations", "1", "4", "20", *picture]
    results = cnn_recurrent_head.main(options)
    rest = {result.network - result.head for result in results.values()}
    assert len(rest) == 1  # truncation changes what the head keeps, and nothing else
    for length, result in results.items():
        assert result.head == length * 32 * (128 + 64) * 4 / 1024  # the features and the states
        assert 0.2 < result.curve[0] < 1
        assert result.seconds > 0
    rows = [line.split("|")[1] for line in capsys.readouterr().out.splitlines() if "%" in line]
    assert [int(cell) for cell in rows] == [1, 4, 20]


@pytest.mark.parametrize("truncation", [1, 3, 7, 9])
def test_head_is_the_truncated_gradient_of_its_last_state(truncation: int) -> None:
    head = cnn_recurrent_head.RecurrentHead(5, 4, 7, truncation, seed=0)
    x, grad = RNG(0).normal(size=(2, 3, 5)).astype(np.float32)
    grad = grad[:, :4]
    y, _, tape = head.forward(x)
    out, _, whole = head.cell.forward(np.repeat(x[None], 7, axis=0))
    np.testing.assert_array_equal(y, out[-1])
    last = np.zeros_like(out)
    last[-1] = grad
    wanted = head.cell.backward(whole, last, truncation=(1, truncation))
    assert wanted.x is not None
    found = head.backward(tape, grad)
    np.testing.assert_allclose(found.x, wanted.x.sum(axis=0), rtol=1e-5, atol=1e-6)
    assert found.params.keys() == head.parameters().keys()
    for name, gradient in wanted.params.items():
        np.testing.assert_allclose(found.params[f"cell.{name}"], gradient, rtol=1e-5, atol=1e-6)


# The sliding window.


def window_loss(parameters: Any, x: Any, y: Any, entering: Any) -> float:
    """The definition: squared errors of the last steps, from a constant state before them."""
    *cell, weight, bias = parameters
    out = reference.gru_forward(x, entering, *cell)[0]
    return float(np.sum((out @ weight.T + bias - y) ** 2))


def test_sum_and_gradient_of_a_window_are_the_definition() -> None:
    gru = nn.GRU(1, 3, seed=0, dtype="float64")
    model = nn.Sequential(gru, nn.Linear(3, 1, seed=1, dtype="float64"))
    parameters = model.parameters()
    x, y = RNG(0).normal(size=(2, 9, 2, 1))
    states = reference.gru_forward(x, None, *list(parameters.values())[:4])[0]
    window = sliding_window.SlidingWindow(model, 4)
    for t in range(9):
        window.append(x[t : t + 1], y[t : t + 1])
        loss, gradients = window.gradient()
        begin = max(0, t - 3)
        entering = states[begin - 1] if begin else None
        arguments = x[begin : t + 1], y[begin : t + 1], entering
        assert loss == pytest.approx(window_loss(parameters.values(), *arguments), rel=1e-12)
        one_by_one = [
            window_loss(
                parameters.values(), x[s : s + 1], y[s : s + 1], states[s - 1] if s else None
            )
            for s in range(begin, t + 1)
        ]
        assert loss == pytest.approx(sum(one_by_one), rel=1e-12)
        if t not in (0, 2, 8):
            continue
        for name, parameter in parameters.items():
            for index in np.ndindex(*parameter.shape):
                old, sides = parameter[index], []
                for step in (1e-6, -1e-6):
                    parameter[index] = old + step
                    sides.append(window_loss(parameters.values(), *arguments))
                parameter[index] = old
                numeric = (sides[0] - sides[1]) / 2e-6
                assert gradients[name][index] == pytest.approx(numeric, rel=1e-6, abs=1e-7)


def test_sliding_window_beats_no_change(picture: list[str]) -> None:
    results = sliding_window.main(["--epochs", "5", "--windows", "1", "8", *picture])
    assert results["sunspots"][8].no_change == pytest.approx(33.276, abs=1e-3)
    assert results["CO2"][8].no_change == pytest.approx(1.268, abs=1e-3)
    for series, share in (("sunspots", 0.75), ("CO2", 0.45)):
        for result in results[series].values():
            assert result.error < share * result.no_change
            assert result.seconds > 0


# The tanh network.


@pytest.mark.parametrize("truncation", [1, 5, 40])
def test_tanh_network_is_two_layers(truncation: int) -> None:
    parameters = tanh_network.initial(6, seed=1)
    w1, u1, b1, w2, u2, b2, w3, b3 = parameters
    model = nn.Sequential(nn.RNN(1, 6, 2), nn.Linear(6, 1))
    zeros = np.zeros(6, np.float32)
    arrays = [w1, u1, b1, zeros, w2, u2, b2, zeros, w3, b3]
    model.load_state_dict(dict(zip(model.parameters(), arrays, strict=True)))
    x, grad = RNG(0).normal(size=(2, 30, 1, 1)).astype(np.float32)
    expected, _, tape = model.forward(x)
    prediction, saved = tanh_network.forward(parameters, x)
    np.testing.assert_array_equal(prediction, expected)
    wanted = model.backward(tape, grad, truncation=truncation).params
    found = tanh_network.backward(parameters, saved, grad, truncation)
    named = [gradient for name, gradient in wanted.items() if "bias_hh" not in name]
    for gradient, other in zip(found, named, strict=True):
        np.testing.assert_array_equal(gradient, other)


def test_tanh_network_steps_stay_below_the_threshold() -> None:
    spots = _data.sunspots().astype(np.float32)[:100, None, None] / 50
    parameters = tanh_network.initial(8, seed=0)
    clipped = 0
    for _ in range(60):
        before = [array.copy() for array in parameters]
        _, before_clipping = tanh_network.update(
            parameters, spots[:-1], spots[1:], truncation=10, threshold=0.3, lr=0.1
        )
        step = norm(new - old for new, old in zip(parameters, before, strict=True)) / 0.1
        assert step <= 0.3 * (1 + 1e-5)
        assert step == pytest.approx(min(before_clipping, 0.3), rel=1e-4)
        clipped += before_clipping > 0.3
    assert 0 < clipped < 60


def test_tanh_network_learns(picture: list[str], capsys: Any) -> None:
    result = tanh_network.main(["--epochs", "400", *picture])
    assert result.costs[-1] < 0.15 * result.costs[0]
    assert result.error < 0.8 * result.no_change
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    costs = [float(line.split("cost ")[1].split(",")[0]) for line in printed]
    assert len(costs) == 10
    assert costs == sorted(costs, reverse=True)


# Regression.


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("regression") / "picture.png"
    results = minibatch_regression.main(["--batches", "64", "442", "--out", str(out)])
    assert out.stat().st_size > 10_000
    return results


def residuals(result: Any) -> tuple[Any, Any]:
    """The inputs with a column of ones, and prediction - target."""
    x, y = _data.diabetes()
    inputs = np.column_stack([x, np.ones(len(x))])
    return inputs, inputs @ result.coefficients - y[:, 0]


def test_regression_agrees_with_the_closed_form(regression: Any) -> None:
    x, y = _data.diabetes()
    inputs = np.column_stack([x, np.ones(len(x))])
    exact = np.linalg.solve(inputs.T @ inputs, inputs.T @ y)[:, 0]
    np.testing.assert_allclose(minibatch_regression.closed_form(x, y), exact, atol=1e-10)
    for batch in (64, 442):
        result = regression["MSE", "decayed", batch]
        np.testing.assert_allclose(result.coefficients, exact, atol=1e-3)
        assert len(result.costs) == 1000
    assert regression["MSE", "decayed", 64].updates == 7000


@pytest.mark.parametrize("loss", ["MSE", "L1", "Huber"])
def test_a_decaying_rate_ends_lowest(regression: Any, loss: str) -> None:
    last = {rate: regression[loss, rate, 64].costs[-1] for rate in ("fixed", "decayed", "adaptive")}
    assert last["decayed"] < last["adaptive"] < 1.01 * last["decayed"]
    assert last["decayed"] < last["fixed"] < 1.5 * last["decayed"]


def test_least_absolute_errors(regression: Any) -> None:
    """Zero is a subgradient: each kink may contribute any slope from -1 to 1."""
    linprog = pytest.importorskip("scipy.optimize").linprog
    inputs, error = residuals(regression["L1", "decayed", 64])
    kink = np.abs(error) < 0.01
    assert 0 < kink.sum() < 40
    slopes = np.abs(inputs[~kink].T @ np.sign(error[~kink]))
    assert np.all(slopes <= np.abs(inputs[kink]).sum(axis=0))
    # As a linear program: inputs·w + above - below = target, at least above + below.
    rows, columns = inputs.shape
    equal = np.hstack([inputs, np.eye(rows), -np.eye(rows)])
    price = np.r_[np.zeros(columns), np.full(2 * rows, 1 / rows)]
    bounds = [(None, None)] * columns + [(0, None)] * (2 * rows)
    best = linprog(price, A_eq=equal, b_eq=_data.diabetes()[1][:, 0], bounds=bounds)
    assert best.status == 0
    assert best.fun <= np.abs(error).mean() < best.fun * (1 + 1e-4)


def test_huber_optimum(regression: Any) -> None:
    inputs, error = residuals(regression["Huber", "decayed", 64])
    slopes = inputs.T @ np.clip(error, -1, 1) / len(error)
    np.testing.assert_allclose(slopes, 0, atol=1e-3)


# Clipped optimizers.


def clipped_gradient_norms(name: str, lr: float) -> tuple[list[float], list[float]]:
    """Norms before and after clipping, the latter from what an optimizer did with the gradient."""
    data = _data.digits()
    model = clipped_optimizer_mlp.network(64, seed=0)
    kind, _ = clipped_optimizer_mlp.OPTIMIZERS[name]
    optimizer = kind(model.parameters(), lr, max_norm=clipped_optimizer_mlp.MAX_NORM)
    before, after = [], []
    for rows in _data.batches(RNG(0), 1438, 8)[:60]:
        old = {"": model.state_dict(), **optimizer.state_dict()["state"]}
        before.append(clipped_optimizer_mlp.update(model, optimizer, data.x[rows], data.y[rows]))
        new = {"": model.parameters(), **optimizer.state_dict()["state"]}

        def change(slot: str, kept: float, old: Any = old, new: Any = new) -> list[Any]:
            return [new[slot][n].astype(np.float64) - kept * a for n, a in old[slot].items()]

        if name == "SGD":  # p -= lr·g
            after.append(norm(change("", 1)) / lr)
        elif name == "Adam":  # m = beta1·m + (1 - beta1)·g
            after.append(norm(change("exp_avg", 0.9)) / (1 - 0.9))
        else:  # v = alpha·v + (1 - alpha)·g²
            after.append(float(np.sqrt(sum(c.sum() for c in change("square_avg", 0.99)) / 0.01)))
    return before, after


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam"])
def test_no_gradient_is_longer_than_one(name: str) -> None:
    before, after = clipped_gradient_norms(name, lr=0.01)
    assert max(before) > 1 > min(before)
    assert max(after) <= 1 + 1e-4
    np.testing.assert_allclose(after, np.minimum(before, 1), rtol=1e-3)


def test_optimizers_learn_with_a_decaying_rate(picture: list[str]) -> None:
    results = clipped_optimizer_mlp.main(["--epochs", "6", "--decay", "0.8", *picture])
    assert list(results) == ["SGD", "RMSprop", "Adam"]
    for name, result in results.items():
        _, lr = clipped_optimizer_mlp.OPTIMIZERS[name]
        np.testing.assert_allclose(result.rates, lr * 0.8 ** np.arange(1, 7), rtol=1e-12)
        assert result.curve[-1] > 0.95
        assert len(result.norms) == 6 * 45
        assert max(result.norms) > 1
