"""examples/jax_language_model.py in a short form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

for package in ("jax", "optax", "matplotlib", "tqdm"):
    pytest.importorskip(package)

import tbptt_fast.jax as backend  # noqa: E402

if not backend.available():
    pytest.skip("built without its JAX functions", allow_module_level=True)

import jax_language_model  # noqa: E402

FILE = Path(jax_language_model.__file__)
STEPS = 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The bits of every call, and the picture."""
    picture = tmp_path_factory.mktemp("example") / "picture.png"
    return jax_language_model.main(["--steps", str(STEPS), "--out", str(picture)]), picture


def test_it_is_sixty_lines() -> None:
    assert len(FILE.read_text(encoding="utf-8").splitlines()) <= 60


def test_bits_per_character_fall(run: Any) -> None:
    every, picture = run
    assert len(every) == STEPS
    assert np.log2(90) < every[0] < 8  # the weights are random: some hundred symbols
    assert np.mean(every[-5:]) < 0.65 * every[0]
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")


def test_a_seed_decides(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--steps", "3", "--out", str(tmp_path / "picture.png")]
    assert jax_language_model.main(options) == run[0][:3]
    assert jax_language_model.main([*options, "--seed", "1"])[0] != run[0][0]
    assert f"bits per character: {run[0][0]:.3f}, after 3 calls" in capsys.readouterr().out
