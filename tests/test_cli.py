"""The command line: a short training from end to end, its files, and every wrong use of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tbptt_fast import checkpoint
from tbptt_fast.cli import main
from tbptt_fast.cli.model import bits, forecaster, language_model, next_symbol_loss
from tbptt_fast.cli.sample import forecast, generate
from tbptt_fast.data import Vocabulary, python_documentation

SMALL = ["--hidden", "12", "--embedding", "6", "--batch", "4", "--k1", "8"]
QUIET = ["--save", "none", "--plot", "none", "--sample", "0"]


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(python_documentation()[:4000], encoding="utf-8")
    return str(path)


@pytest.fixture
def series(tmp_path: Path) -> str:
    path = tmp_path / "series.csv"
    values = np.sin(np.arange(600) / 7) * 5 + 20
    rows = [f"{day},{value:.4f},x" for day, value in enumerate(values)]
    path.write_text("\n".join(["day,height,note", *rows]), encoding="utf-8")
    return str(path)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tbptt_fast", *arguments]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def final_weights(path: Path) -> dict[str, Any]:
    session = checkpoint.load(path)["session"]
    weights: dict[str, Any] = session["weights"]
    return weights


def assert_same_training(one: Path, other: Path) -> None:
    """Bit for bit: weights, best weights and the curve but for its seconds."""
    ours, theirs = checkpoint.load(one), checkpoint.load(other)
    for name, value in ours["session"]["weights"].items():
        np.testing.assert_array_equal(theirs["session"]["weights"][name], value)
        np.testing.assert_array_equal(theirs["weights"][name], ours["weights"][name])
    updates = ours["session"]["trainer"]["updates"]
    assert theirs["session"]["trainer"]["updates"] == updates
    curves = ours["session"]["curve"], theirs["session"]["curve"]
    np.testing.assert_array_equal(*(curve[:, [0, 2, 3]] for curve in curves))


def test_train_sample_and_resume_from_end_to_end(text: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("tqdm")
    done = run(
        *["train", "--text", text, *SMALL, "--epochs", "2", "--seed", "3", "--sample", "30"],
        *["--save", "run.ckpt", "--plot", "run.png"],
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "4,000 characters" in done.stdout
    assert "a sample at temperature 0.7" in done.stdout
    assert "best validation: " in done.stdout
    assert "bits per character after " in done.stdout
    assert "total: " in done.stdout
    assert "characters per second (all epochs done)" in done.stdout
    assert "100%|" in done.stderr
    assert " bpc, valid " in done.stderr
    assert "characters/s" in done.stderr
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")

    drawn = [run("sample", "run.ckpt", "--length", "20", "--seed", "1", cwd=tmp_path) for _ in "ab"]
    assert drawn[0].returncode == 0
    assert drawn[0].stdout == drawn[1].stdout
    assert len(drawn[0].stdout) == 21  # and a line break

    more = ["train", "--resume", "run.ckpt", "--epochs", "3", *QUIET[2:]]
    assert run(*more, "--save", "more.ckpt", cwd=tmp_path).returncode == 0
    whole = ["train", "--text", text, *SMALL, "--epochs", "3", "--seed", "3", *QUIET[2:]]
    assert run(*whole, "--save", "whole.ckpt", cwd=tmp_path).returncode == 0
    for name, value in final_weights(tmp_path / "whole.ckpt").items():
        np.testing.assert_array_equal(final_weights(tmp_path / "more.ckpt")[name], value)


def start_and_signal(arguments: list[str], saved: Path, number: int, cwd: Path) -> Any:
    """Start a training that writes `saved` all the time and send it a signal once it has."""
    process = subprocess.Popen(
        command(*arguments, "--save", str(saved), "--checkpoint-every", "0"),
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores it, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    limit = time.monotonic() + 60
    while not saved.exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_killed_training_resumes_bit_for_bit(text: str, tmp_path: Path) -> None:
    training = ["train", "--text", text, *SMALL, "--k2", "13", "--layers", "2", "--dropout", "0.2"]
    training += ["--schedule", "cosine", "--warmup", "5", "--epochs", "4", "--patience", "0"]
    training += QUIET[2:]
    whole, killed = tmp_path / "whole.ckpt", tmp_path / "killed.ckpt"
    assert run(*training, "--save", str(whole), cwd=tmp_path).returncode == 0
    code, _ = start_and_signal(training, killed, signal.SIGKILL, tmp_path)
    assert code == -signal.SIGKILL
    updates = [checkpoint.load(p)["session"]["trainer"]["updates"] for p in (killed, whole)]
    assert 0 < updates[0] < updates[1]
    resumed = run("train", "--resume", str(killed), "--patience", "0", *QUIET[2:], cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_training(killed, whole)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_is_saved(number: int, text: str, tmp_path: Path) -> None:
    saved = tmp_path / "run.ckpt"
    training = ["train", "--text", text, *SMALL, "--patience", "0", "--plot", "none"]
    code, errors = start_and_signal(training, saved, number, tmp_path)
    assert code == 128 + number
    assert f"interrupted, saved in {saved}" in errors
    assert "Traceback" not in errors
    assert checkpoint.load(saved)["session"]["trainer"]["updates"] > 0


def test_the_default_files_and_the_minutes(text: str, tmp_path: Path) -> None:
    began = time.monotonic()
    done = run(
        "train", "--text", text, *SMALL, "--minutes", "0.05", "--patience", "0", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "(time is up)" in done.stdout
    assert time.monotonic() - began < 30
    assert (tmp_path / "tbptt_fast.ckpt").exists()
    assert sorted(path.suffix for path in tmp_path.glob("*.tmp")) == []


def test_without_tqdm_and_matplotlib_it_says_so_and_runs(text: str, tmp_path: Path) -> None:
    hide = "import sys; sys.modules.update(tqdm=None, matplotlib=None); "
    code = f"{hide}from tbptt_fast.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["train", "--text", text, *SMALL, "--epochs", "1", "--sample", "0"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, *figures = done.stderr.splitlines()
    assert first.startswith("no progress bar and no picture: tqdm and matplotlib not installed")
    assert "pip install 'tbptt_fast[cli]'" in first
    assert figures
    assert all(" bpc, valid " in line for line in figures)
    assert not (tmp_path / "tbptt_fast.png").exists()
    assert (tmp_path / "tbptt_fast.ckpt").exists()


def test_series_are_forecast(series: str, tmp_path: Path, capsys: Any) -> None:
    saved = str(tmp_path / "run.ckpt")
    arguments = ["train", "--csv", series, "--column", "height", "--epochs", "150"]
    assert (
        main([*arguments, "--hidden", "16", "--patience", "0", "--save", saved, "--plot", "none"])
        == 0
    )
    output = capsys.readouterr().out
    assert "RMSE after" in output
    naive = float(output.split("has an RMSE of ")[1].split()[0])
    best = float(output.split("best validation: ")[1].split()[0])
    assert best < naive
    assert "the next 10 values" in output
    assert main(["sample", saved, "--length", "3"]) == 0
    values = [float(line) for line in capsys.readouterr().out.splitlines()]
    assert len(values) == 3
    assert all(10 < value < 30 for value in values)


def test_info(capsys: Any) -> None:
    assert main(["info"]) == 0
    output = capsys.readouterr().out
    for word in ("tbptt_fast", "compiler", "ISA", "threads", "CUDA", "torch", "jax", "keras"):
        assert word in output


def test_help_needs_no_training(capsys: Any) -> None:
    assert main(["train", "--help"]) == 0
    assert "--k2" in capsys.readouterr().out


def test_the_language_model_is_the_usual_network() -> None:
    model = language_model(11, embedding=3, hidden=5, seed=2)
    shapes = {name: value.shape for name, value in model.parameters().items()}
    assert shapes["0.weight"] == (11, 3)
    assert shapes["1.weight_hh_l0"] == (20, 5)
    assert shapes["2.weight"] == (11, 5)
    logits, _ = model(np.zeros((4, 2), np.int32))
    loss, grad, count = next_symbol_loss(np.zeros_like(logits), np.ones((4, 2), np.int32))
    assert count == 8
    assert bits(loss / count) == pytest.approx(np.log2(11))
    assert grad.shape == logits.shape


def test_generating_follows_prime_temperature_and_seed() -> None:
    vocabulary = Vocabulary("abc\n")
    model = language_model(4, embedding=3, hidden=5, seed=2)
    cold = [generate(model, vocabulary, 12, temperature=0.0, prime="ab", seed=s) for s in (1, 2)]
    assert cold[0] == cold[1]
    assert cold[0].startswith("ab")
    assert len(cold[0]) == 14
    warm = [generate(model, vocabulary, 40, temperature=1.0, seed=seed) for seed in (1, 2, 1)]
    assert warm[0] != warm[1]
    assert warm[0] == warm[2]
    hot = generate(model, vocabulary, 40, temperature=1e9, seed=1)
    assert set(hot) == set("abc\n")


def test_a_forecast_goes_on_from_its_own_values() -> None:
    model = forecaster(1, hidden=5, seed=2)
    tail = np.ones((6, 1), np.float32)
    values = forecast(model, {"tail": tail, "mean": 10.0, "std": 2.0}, 3)
    longer = np.concatenate([tail, ((values[:1] - 10) / 2).astype(np.float32)[:, None]])
    again = forecast(model, {"tail": longer, "mean": 10.0, "std": 2.0}, 2)
    np.testing.assert_allclose(values[1:], again, rtol=1e-5)


def fails(capsys: Any, message: str, *arguments: str) -> None:
    """Exit code 2 and one line on stderr that holds the message."""
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("tbptt_fast")
    assert message in captured.err


WRONG_OPTIONS = {
    "no command": ([], "required: train|sample|tune|info"),
    "unknown command": (["test"], "invalid choice: 'test'"),
    "unknown option": (["train", "--hiden", "3"], "unrecognized arguments: --hiden"),
    "k2 below k1": (["train", "--k1", "8", "--k2", "4"], "--k2: must be at least k1 = 8, got 4"),
    "k1 of zero": (["train", "--k1", "0"], "argument --k1: must be at least 1, got 0"),
    "batch not whole": (["train", "--batch", "x"], "--batch: expected a whole number, got 'x'"),
    "cell": (["train", "--cell", "qrnn"], "argument --cell: invalid choice: 'qrnn'"),
    "lr of zero": (["train", "--lr", "0"], "argument --lr: must be above 0, got 0"),
    "lr not finite": (["train", "--lr", "nan"], "argument --lr: must be above 0, got nan"),
    "lr no number": (["train", "--lr", "fast"], "--lr: expected a number, got 'fast'"),
    "dropout of one": (
        ["train", "--dropout", "1"],
        "--dropout: must be at least 0 and below 1, got 1",
    ),
    "dropout, one layer": (["train", "--dropout", "0.5"], "needs --layers of at least 2"),
    "decay": (["train", "--decay", "2"], "--decay: must be above 0 and at most 1, got 2"),
    "minutes": (["train", "--minutes", "-1"], "--minutes: must be above 0, got -1"),
    "cosine": (["train", "--schedule", "cosine"], "--schedule cosine: needs --epochs"),
    "threads": (
        ["train", "--threads", "0"],
        "--threads: must be at least 1 and at most 256, got 0",
    ),
    "text and csv": (["train", "--text", "a", "--csv", "b"], "not allowed with argument --text"),
    "csv, no column": (["train", "--csv", "b"], "--csv: needs --column"),
    "column, no csv": (["train", "--column", "b"], "--column: needs --csv"),
    "picture": (["train", "--plot", "a.txt"], "--plot: a.txt: expected a name ending in .png"),
    "save, no folder": (["train", "--save", "no/a"], "--save: no/a: the folder does not exist"),
    "save, folder": (["train", "--save", "."], "--save: .: it is a folder"),
    "missing text": (["train", "--text", "no.txt"], "no.txt: No such file or directory"),
    "missing csv": (["train", "--csv", "no", "--column", "a"], "no: No such file or directory"),
    "missing checkpoint": (["sample", "no.ckpt"], "no.ckpt: No such file or directory"),
    "missing resume": (["train", "--resume", "no.ckpt"], "no.ckpt: No such file or directory"),
}


@pytest.mark.parametrize("case", WRONG_OPTIONS)
def test_wrong_options(case: str, capsys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, message = WRONG_OPTIONS[case]
    fails(capsys, message, *arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\x7fELF\0\0", "binary, not text"),
        (b"\xff\xfe\xfa", "not UTF-8 text"),
        (b"too short", "too short to hold out a tenth: 9 items, at least 20"),
        (b"too short " * 30, "269 items are too few: 4 rows with windows of 100 steps need at"),
    ],
)
def test_unusable_text(content: bytes, message: str, capsys: Any, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(content)
    arguments = ["train", "--text", str(path), "--batch", "4", "--k1", "100", *QUIET]
    fails(capsys, message, *arguments)


def test_unusable_series(series: str, capsys: Any, tmp_path: Path) -> None:
    def wrong(message: str, column: str, *more: str, path: str = series) -> None:
        fails(capsys, message, "train", "--csv", path, "--column", column, *more, *QUIET)

    wrong("no column 'depth'; there are day, height, note", "depth")
    wrong("line 2: column 'note' is not a number: 'x'", "note")
    wrong("rows with windows of 500 steps", "height", "--k1", "500")
    wrong("--embedding: only for text", "height", "--embedding", "3")
    flat = tmp_path / "flat.csv"
    flat.write_text("a\n" + "1.5\n" * 500, encoding="utf-8")
    wrong("the part to train on is constant", "a", path=str(flat))


@pytest.fixture
def trained(text: str, tmp_path: Path, capsys: Any) -> Callable[..., str]:
    def train(*more: str) -> str:
        saved = str(tmp_path / "trained.ckpt")
        arguments = ["train", "--text", text, *SMALL, "--epochs", "1", *more, *QUIET[2:]]
        assert main([*arguments, "--save", saved]) == 0
        capsys.readouterr()
        return saved

    return train


def test_wrong_use_of_a_checkpoint(
    trained: Callable[..., str], series: str, capsys: Any, tmp_path: Path
) -> None:
    saved = trained("--schedule", "cosine")
    fails(capsys, "--prime: character 'é' at position 1", "sample", saved, "--prime", "aé")
    fails(capsys, "--temperature: must be at least 0", "sample", saved, "--temperature", "-1")
    resume = ["train", "--resume", saved, *QUIET[2:]]
    fails(capsys, "--hidden: the checkpoint was begun with 12, got 13", *resume, "--hidden", "13")
    fails(capsys, "--epochs: the cosine ends at 1, got 2", *resume, "--epochs", "2")
    fails(
        capsys, "--csv: the checkpoint is of a text", *resume, "--csv", series, "--column", "height"
    )
    other = tmp_path / "other.txt"
    other.write_text(python_documentation()[:5000], encoding="utf-8")
    fails(capsys, "not what this checkpoint was trained on", *resume, "--text", str(other))

    whole = Path(saved).read_bytes()
    Path(saved).write_bytes(whole[: len(whole) // 2])
    fails(capsys, "trained.ckpt: damaged checkpoint", "sample", saved)
    fails(capsys, "trained.ckpt: damaged checkpoint", *resume)
    checkpoint.save(saved, {"weights": np.zeros(3)})
    fails(capsys, "not written by `tbptt_fast train`", "sample", saved)


def test_a_training_that_diverges_ends_with_one_line(text: str, capsys: Any) -> None:
    wild = ["--optimizer", "sgd", "--lr", "1e10", "--weight-decay", "1e30"]
    with np.errstate(all="ignore"):
        assert main(["train", "--text", text, *SMALL, *wild, *QUIET]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("tbptt_fast train: error: diverged after ")
    assert last.endswith("; try a lower --lr")
