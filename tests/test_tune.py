"""`python -m tbptt_fast tune`: what it measures, prints, draws and refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tbptt_fast import checkpoint
from tbptt_fast.cli import main
from tbptt_fast.cli.plot import plot_decay
from tbptt_fast.tbptt import adaptive_k

from .test_cli import SMALL, run, series, text

__all__ = ["series", "text"]

NETWORK = [*SMALL, "--threads", "1", "--seed", "1"]
FEW = ["--minutes", "0.02", "--max-lag", "16"]


def rows_of(output: str) -> dict[int, list[str]]:
    """The table's columns by K; the chosen K has a star, which is left out."""
    found = re.findall(r"^[* ]\s*(\d+)  +(.*)$", output, flags=re.MULTILINE)
    return {int(k): line.split() for k, line in found}


def test_text_from_end_to_end(text: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    options = ["--minutes", "0", "--max-lag", "16", "--delta", "0.5", "--plot", "decay.png"]
    done = run("tune", "--text", text, *NETWORK, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4,000 characters" in done.stdout
    assert "after 0 updates (0.00 epochs) with k1 = 8, k2 = 8" in done.stdout
    assert "gradients of 64 losses, lags 0 to 16" in done.stdout  # 16 steps of 4 rows
    table = rows_of(done.stdout)
    assert {1, 2, 4, 8, 16} <= table.keys()
    bounds = [float(row[2]) for _, row in sorted(table.items())]
    assert bounds == sorted(bounds, reverse=True)
    memory = [float(row[4]) for _, row in sorted(table.items())]
    assert memory == sorted(memory)
    chosen = int(re.search(r"^\*\s*(\d+)", done.stdout, flags=re.MULTILINE)[1])  # type: ignore[index]
    assert f"\nK = {chosen}: relative bias at most" in done.stdout
    assert f"recommended: --k1 {chosen} --k2 {2 * chosen - 1}" in done.stdout
    smaller = [k for k in table if k < chosen]
    assert float(table[chosen][2]) < 0.5 <= min([float(table[k][2]) for k in smaller], default=1.0)
    assert (tmp_path / "decay.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decay.png", "text.txt"]


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_series(cell: str, series: str, tmp_path: Path) -> None:
    network = ["--hidden", "12", "--batch", "2", "--cell", cell, "--layers", "2", "--threads", "1"]
    source = ["tune", "--csv", series, "--column", "height"]
    done = run(*source, *network, *FEW, "--plot", "none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "600 values" in done.stdout
    assert re.search(r"after [1-9][\d,]* updates \(.* epochs\) with k1 = 32, k2 = 32", done.stdout)
    assert re.search(r"^K = \d+", done.stdout, flags=re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir()] == ["series.csv"]


def test_a_bound_out_of_reach_is_said_to_be(text: str, capsys: Any) -> None:
    options = ["--minutes", "0", "--max-lag", "8", "--delta", "1e-9", "--k-max", "3"]
    assert main(["tune", "--text", text, *NETWORK, *options, "--plot", "none"]) == 0
    shown = capsys.readouterr().out
    assert "after 0 updates" in shown
    assert "K = 3, the largest allowed: relative bias at most" in shown
    assert "nothing better in this range: --k1 3 --k2 5" in shown


def test_a_trained_network_is_measured_as_it_is(text: str, tmp_path: Path, capsys: Any) -> None:
    saved = tmp_path / "run.ckpt"
    train = ["train", "--text", text, *NETWORK, "--epochs", "1", "--plot", "none", "--sample", "0"]
    assert run(*train, "--save", str(saved), cwd=tmp_path).returncode == 0
    before = saved.read_bytes()
    updates = checkpoint.load(saved)["session"]["trainer"]["updates"]
    capsys.readouterr()
    shown = []
    for _ in "ab":
        assert main(["tune", "--resume", str(saved), "--max-lag", "16", "--plot", "none"]) == 0
        shown.append(capsys.readouterr().out)
    assert f"after {updates:,} updates" in shown[0]
    decay = [[row[:3] for row in rows_of(output).values()] for output in shown]
    assert decay[0] == decay[1]
    assert saved.read_bytes() == before


def test_the_picture_shows_any_choice(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for i, phi in enumerate((0.9 ** np.arange(31), np.ones(31), np.array([1.0, 0.0, 0.0]))):
        path = tmp_path / f"{i}.png"
        plot_decay(str(path), adaptive_k(phi), len(phi) - 1, "any")
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--k-max", "9"], "--k-max: must be at most --max-lag = 8, got 9"),
        (["--k-min", "5", "--k-max", "4"], "--k-min: must be at most --k-max = 4, got 5"),
        (["--tau", "9"], "--tau: must be at most --max-lag = 8, got 9"),
        (["--delta", "0"], "argument --delta: must be above 0, got 0"),
        (["--max-lag", "1"], "argument --max-lag: must be at least 2, got 1"),
        (["--fit", "lsq"], "argument --fit: invalid choice: 'lsq'"),
        (["--max-lag", "600"], "--max-lag: each of the 4 rows has 899 steps, which must be"),
        (["--plot", "decay.txt"], "--plot: decay.txt: expected a name ending in .png"),
        (["--column", "height"], "--column: needs --csv"),
    ],
    ids=str,
)
def test_wrong_use_is_one_line(options: list[str], message: str, text: str, capsys: Any) -> None:
    standard = ["--max-lag", "8", "--minutes", "0", "--plot", "none"]
    assert main(["tune", "--text", text, *NETWORK, *standard, *options]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert message in shown.err
