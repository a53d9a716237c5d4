"""The studies of `bench/science`: what their data are by definition, and a quick run of each."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.science import __main__ as science
from bench.science import _common, copy_data, copy_task, digits, lags

RNG = np.random.default_rng

QUICK_FIGURES = {"lags": 6, "copy": 3, "bias": 3, "digits": 1}


def test_two_lags_have_the_entropies_of_their_joint_distribution() -> None:
    joint = {}  # of x_(t-t1), x_(t-t2) and y
    for a, b, y in itertools.product((0, 1), repeat=3):
        chance = 0.5 + 0.5 * a - 0.25 * b
        joint[a, b, y] = 0.25 * (chance if y else 1 - chance)
    assert sum(joint.values()) == pytest.approx(1)

    def conditional(known: int) -> float:
        """H(y | the first `known` of a, b)."""
        total = 0.0
        for (a, b, y), p in joint.items():
            same = [q for key, q in joint.items() if key[:known] == (a, b)[:known]]
            with_y = [
                q for key, q in joint.items() if key[:known] == (a, b)[:known] and key[2] == y
            ]
            total -= p * math.log(sum(with_y) / sum(same)) if p else 0.0
        return total

    assert lags.floors() == pytest.approx([conditional(known) for known in range(3)])
    assert np.round(lags.floors(), 4).tolist() == [0.6616, 0.5192, 0.4545]


def test_two_lags_are_drawn_as_stated() -> None:
    x, y = lags.draw(RNG(0), 4000, 50, 3, 7)
    assert (x.shape, y.shape) == ((4000, 50, 1), (4000, 50))
    assert (x.dtype, y.dtype) == (np.dtype(np.float32), np.dtype(np.int64))
    seen = x[:, :, 0]
    assert abs(seen.mean() - 0.5) < 0.005
    near, far, label = seen[7 - 3 : -3], seen[:-7], y[7:]
    for a, b in itertools.product((0, 1), repeat=2):
        chance = label[(near == a) & (far == b)].mean()
        assert chance == pytest.approx(0.5 + 0.5 * a - 0.25 * b, abs=0.01)
    for lag in (0, 1, 2, 4, 5, 6):  # of which nothing can be learnt
        other = seen[7 - lag : len(seen) - lag]
        assert abs(label[other == 1].mean() - label[other == 0].mean()) < 0.01


def test_plateaus_are_claimed_away_from_the_lags() -> None:
    found = [lags.plateau(K, 6, 18) for K in (1, 3, 4, 6, 7, 9, 10, 18, 19)]
    assert found == [0, 0, None, None, 1, 1, None, None, 2]


def test_copy_targets_are_the_inputs_m_steps_before() -> None:
    m = 10
    x, y = copy_data.draw(RNG(0), 400, 30, m, as_published=False)
    np.testing.assert_array_equal(y[m:], x[:-m])
    for row in x.T:
        (markers,) = np.nonzero(row == 1)
        assert (np.diff(markers) == 2 * m).all()
        symbols = (np.arange(len(row)) - markers[0]) % (2 * m)
        assert ((row > 1) == ((symbols > 0) & (symbols < m))).all()
    shifts = {int(np.flatnonzero(row == 1)[0]) for row in x.T}
    assert len(shifts) > 10  # each row its own
    assert set(np.unique(x)) == set(range(copy_data.SYMBOLS))
    assert copy_data.forgetful_perplexity(y) == pytest.approx(4**0.45, abs=0.01)


def test_copy_data_of_the_authors_shift_all_rows_so_far() -> None:
    m, steps, batch = 3, 40, 6
    x, y = copy_data.draw(RNG(4), steps, batch, m, as_published=True)
    rng = RNG(4)
    rows: list[tuple[list[int], list[int]]] = []
    for _ in range(batch):
        blocks = rng.integers(2, 6, (9, m)).tolist()
        shown = [s for block in blocks for s in [1, *block[1:], *[0] * m]]
        wanted = [s for block in blocks for s in [*[0] * m, 1, *block[1:]]]
        rows.append((shown, wanted))
        shift = int(rng.integers(2 * m))
        for row in rows:
            for part in row:
                part[:steps] = part[shift : shift + steps]
    np.testing.assert_array_equal(x.T, [row[0][:steps] for row in rows])
    np.testing.assert_array_equal(y.T, [row[1][:steps] for row in rows])
    # the last row is shifted once, the first one so often that it ends in fragments
    assert (y[m:, -1] == x[:-m, -1]).all()
    assert (y[m:, 0] != x[:-m, 0]).any()


def test_the_published_plateau_is_that_of_the_fragments() -> None:
    draws = [copy_data.draw(RNG(seed), 1000, 64, 10, as_published=True)[1] for seed in range(5)]
    found = [copy_data.forgetful_perplexity(y) for y in draws]
    assert np.mean(found) == pytest.approx(1.66, abs=0.02)  # 1.646 was published for K = 5


def test_initial_weights_of_the_copy_task() -> None:
    weights = copy_task.network(50, RNG(0)).parameters()
    for name, array in weights.items():
        bound = math.sqrt(3 / max(array.shape)) if array.ndim > 1 else 0.0
        assert np.abs(array).max() <= bound, name
        assert array.std() == pytest.approx(bound / math.sqrt(3), rel=0.1), name


def test_digits_bounce_off_the_borders() -> None:
    found = digits.positions(np.array([3, 0]), np.array([2, -1]), 7, 5)
    assert found.T.tolist() == [[3, 5, 3, 1, 1, 3, 5], [0, 1, 2, 3, 4, 5, 4]]


def test_digits_move_as_stated() -> None:
    images = RNG(1).random((7, 16, 16), np.float32)
    frames = digits.draw(RNG(2), images, 9, 4)
    assert frames.shape == (9, 4, 1, 32, 32)
    rng = RNG(2)
    start = rng.integers(0, 17, (4, 2, 2))
    speed = rng.choice((-2, -1, 1, 2), (4, 2, 2))
    chosen = rng.integers(7, size=(4, 2))
    for row in range(4):
        place, step = start[row].copy(), speed[row].copy()
        for t in range(9):
            expected = np.zeros((32, 32), np.float32)
            for image, (y, x) in zip(chosen[row], place, strict=True):
                shown = np.pad(images[image], ((y, 16 - y), (x, 16 - x)))
                expected = np.maximum(expected, shown)
            np.testing.assert_array_equal(frames[t, row, 0], expected)
            place += step
            step[(place < 0) | (place > 16)] *= -1
            place = np.where(place < 0, -place, np.where(place > 16, 32 - place, place))


def test_images_to_train_and_to_test_with_differ() -> None:
    pytest.importorskip("sklearn")
    train, test = digits.digits()
    assert (train.shape, test.shape) == ((1438, 16, 16), (359, 16, 16))
    assert (train.min(), train.max()) == (0, 1)
    assert (train[:, ::2, ::2] == train[:, 1::2, 1::2]).all()


def test_finished_runs_are_not_repeated(tmp_path: Path) -> None:
    calls: list[int] = []

    def study(K: int, seed: int = 0) -> dict[str, Any]:
        calls.append(K)
        return {"value": K + seed}

    path = tmp_path / "runs.json"
    store = _common.Store(path)
    first = store.run(study, K=3)
    assert first["value"] == 3
    assert first["seconds"] >= 0
    again = _common.Store(path)
    assert again.run(study, K=3, seed=0) == first  # the default was kept, too
    assert again.run(study, K=3, seed=1)["value"] == 4
    assert calls == [3, 3]
    assert [run["settings"]["seed"] for run in json.loads(path.read_text())["runs"]] == [0, 1]


@pytest.mark.parametrize(
    ("values", "met"), [([1.0, 1.2], True), ([1.0, 1.6], False), ([1.1, math.nan], False)]
)
def test_a_figure_is_met_by_its_mean(values: list[float], met: bool) -> None:
    assert _common.Figure("K", "1.1 ± 0.1", 1.0, 1.2, values).met is met


@pytest.mark.parametrize("study", science.STUDIES)
def test_quick_run(study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("sklearn", "matplotlib") if study == "digits" else ("matplotlib",):
        pytest.importorskip(package)
    runs, picture = tmp_path / "runs.json", tmp_path / "picture.png"
    command = [study, "--quick", "--seeds", "0", "--json", str(runs), "--plot", str(picture)]
    assert science.main(command) == 0  # every figure of the quick problem is met
    shown = capsys.readouterr().out
    assert shown.count("  yes\n") == QUICK_FIGURES[study]
    assert "  NO\n" not in shown
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")

    kept = runs.read_bytes()
    assert science.main(command[:-2]) == 0
    tables = [text.split("\n\n", 1)[1] for text in (shown, capsys.readouterr().out)]
    assert tables[0] == tables[1]
    assert runs.read_bytes() == kept  # nothing was run again


def test_wrong_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["lags", "--seeds", "0,0"], "expected different numbers, as 0,1,2, got '0,0'"),
        (["lags", "--seeds", "one"], "expected different numbers"),
        (["lags", "--json", str(tmp_path / "no" / "runs.json")], "no such folder"),
        (["unknown"], "invalid choice: 'unknown'"),
    ):
        with pytest.raises(SystemExit):
            science.main(options)
        assert message in capsys.readouterr().err
