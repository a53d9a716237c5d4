"""Checkpoints: round trips, crashes, damaged and foreign files, and a run that is resumed."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tbptt_fast import checkpoint, nn, optim

from .cases import assert_identical


def same(a: Any, b: Any) -> bool:
    """Equal types, values and bits, all the way down; NaN equals NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray | np.generic):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    return bool(a == b or (a != a and b != b))


TREE: dict[str, Any] = {
    "model": {"0.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "empty": np.zeros((0, 4))},
    "state": (None, (np.ones((1, 2, 3)), np.float32(0.1)), [True, 7, 0.1, "text ß\n\x00"]),
    "rng": np.random.default_rng(7).bit_generator.state,
    "big": -(10**40),
    "odd": [float("nan"), float("inf"), -0.0, {}, [], ()],
}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    checkpoint.save(path, TREE)
    found = checkpoint.load(str(path))
    assert same(found, TREE)
    assert np.signbit(found["odd"][2])
    assert os.listdir(tmp_path) == ["run.ckpt"]
    weight = found["model"]["0.weight"]
    assert weight.flags.writeable
    weight += 1


TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | st.text()
    | hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, min_side=0, max_side=4)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(tree=TREES)
def test_round_trip_of_any_tree(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    path = tmp_path_factory.mktemp("tree") / "run.ckpt"
    checkpoint.save(path, tree)
    assert same(checkpoint.load(path), tree)


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.MT19937, np.random.Philox])
def test_generators_resume(tmp_path: Path, kind: Any) -> None:
    one, two = (np.random.Generator(kind(seed)) for seed in (1, 2))
    one.random(7, np.float32)
    checkpoint.save(tmp_path / "rng", one.bit_generator.state)
    two.bit_generator.state = checkpoint.load(tmp_path / "rng")
    assert same(two.random(9), one.random(9))


def test_layouts_and_byte_orders(tmp_path: Path) -> None:
    values = np.arange(24, dtype=">f8").reshape(2, 3, 4)
    trees = [values, values.T, values[:, ::2], np.asfortranarray(values), np.array(3)]
    checkpoint.save(tmp_path / "run", trees)
    assert same(checkpoint.load(tmp_path / "run"), trees)


def test_the_same_tree_gives_the_same_bytes_and_numpy_reads_them(tmp_path: Path) -> None:
    for name in ("one", "two"):
        checkpoint.save(tmp_path / name, TREE)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with np.load(tmp_path / "one") as archive:
        assert same(archive["0"], TREE["model"]["0.weight"])


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": [1, {"b": object()}]}, r"tree\['a'\]\[1\]\['b'\]: expected dict, .* got object"),
        ({"a": {1: 2}}, r"tree\['a'\]: expected str keys, got 1"),
        ((b"bytes",), r"tree\[0\]: expected dict, .* got bytes"),
        ({"a": {1, 2}}, r"tree\['a'\]: .* got set"),
        ([1j], r"tree\[0\]: .* got complex"),
        ([np.array([None])], r"tree\[0\]: expected numbers, got dtype object"),
    ],
)
def test_what_cannot_be_saved_leaves_the_old_file(tmp_path: Path, tree: Any, message: str) -> None:
    path = tmp_path / "run.ckpt"
    checkpoint.save(path, {"old": 1})
    with pytest.raises(TypeError, match=f"checkpoint.save: {message}"):
        checkpoint.save(path, tree)
    assert checkpoint.load(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["run.ckpt"]


# ---- writing


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failure_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = tmp_path / "run.ckpt"
    checkpoint.save(path, {"old": 1})

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, where, fail)
        with pytest.raises(OSError, match="no space left"):
            checkpoint.save(path, {"new": 2})
    assert checkpoint.load(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["run.ckpt"], "the temporary file is gone"


def test_a_crash_before_the_replacement_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    checkpoint.save(path, {"old": 1})
    program = (
        "import os, sys\n"
        "from tbptt_fast import checkpoint\n"
        "os.replace = lambda *_: os._exit(9)\n"
        "checkpoint.save(sys.argv[1], {'new': 2})\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert ended.returncode == 9
    assert checkpoint.load(path) == {"old": 1}
    checkpoint.save(path, {"new": 2})
    assert checkpoint.load(path) == {"new": 2}


def test_a_missing_folder_is_an_ordinary_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        checkpoint.save(tmp_path / "missing" / "run.ckpt", {})


@pytest.mark.skipif(os.name != "posix", reason="modes and links are POSIX")
def test_mode_and_link_are_kept(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        checkpoint.save(tmp_path / "run.ckpt", 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "run.ckpt").stat().st_mode) == 0o640
    (tmp_path / "latest").symlink_to("run.ckpt")
    checkpoint.save(tmp_path / "latest", 2)
    assert (tmp_path / "latest").is_symlink()
    assert checkpoint.load(tmp_path / "run.ckpt") == 2


# ---- damaged and foreign files

SMALL = {"w": np.arange(3, dtype=np.float32), "n": 5}


def test_every_truncated_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    checkpoint.save(path, SMALL)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(checkpoint.CheckpointError, match=r"run.ckpt: (not a|damaged)") as found:
            checkpoint.load(path)
        assert "\n" not in str(found.value)


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    checkpoint.save(path, SMALL)
    whole, rejected = path.read_bytes(), 0
    for position in range(len(whole)):
        for flip in (0x01, 0xFF):
            damaged = bytearray(whole)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            try:
                found = checkpoint.load(path)
            except checkpoint.CheckpointError:
                rejected += 1
            else:
                assert same(found, SMALL)  # a date or a flag of the zip
    assert rejected > len(whole)


def test_swapped_and_changed_arrays_are_noticed(tmp_path: Path) -> None:
    """The zip is sound, every member has its own right CRC, but not the tree that was saved."""
    path = tmp_path / "run.ckpt"
    checkpoint.save(path, [np.zeros(3), np.ones(3)])
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["0.npy"], members["1.npy"] = members["1.npy"], members["0.npy"]
    _write_zip(path, members)
    with pytest.raises(checkpoint.CheckpointError, match=r"damaged .*checksum does not match"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "expected checkpoint version 1, got 2"),
        ({"version": None}, "expected checkpoint version 1, got None"),
        ({"format": "another"}, "not a tbptt_fast checkpoint"),
        ({"tree": 1}, "damaged checkpoint .the checksum does not match"),
        ({"arrays": 7}, "damaged checkpoint"),
        ({"sha256": "0" * 64}, "damaged checkpoint .the checksum does not match"),
        ({"sha256": None}, "damaged checkpoint .the checksum does not match"),
    ],
)
def test_another_manifest_is_rejected(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "run.ckpt"
    checkpoint.save(path, SMALL)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest = {**json.loads(members["manifest.json"]), **change}
    _write_zip(path, {**members, "manifest.json": json.dumps(manifest).encode()})
    with pytest.raises(checkpoint.CheckpointError, match=f"run.ckpt: {message}"):
        checkpoint.load(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"hello, world", b"PK\x03\x04 and no more"])
def test_foreign_bytes_are_rejected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.ckpt"
    path.write_bytes(content)
    with pytest.raises(checkpoint.CheckpointError, match=r"run.ckpt: (not a|damaged)"):
        checkpoint.load(path)


@pytest.mark.parametrize("manifest", [None, b"{", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000])
def test_foreign_archives_are_rejected(tmp_path: Path, manifest: bytes | None) -> None:
    path = tmp_path / "run.npz"
    _write_zip(path, {"0.npy": b""} | ({} if manifest is None else {"manifest.json": manifest}))
    with pytest.raises(checkpoint.CheckpointError, match=r"run.npz: (not a|damaged)"):
        checkpoint.load(path)


def test_a_missing_file_is_an_ordinary_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        checkpoint.load(tmp_path / "nowhere")


def _write_zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


# ---- a run


class Run:
    """A small training with everything that has to survive: dropout, Adam, a schedule, a state."""

    def __init__(self, seed: int) -> None:
        self.model = nn.Sequential(
            nn.Embedding(11, 4, seed=seed),
            nn.LSTM(4, 5, 2, dropout=0.3, seed=seed),
            nn.Linear(5, 11, seed=seed),
        )
        self.optimizer = optim.AdamW(self.model.parameters(), 0.01, max_norm=1.0)
        self.schedule = optim.WarmUp(optim.CosineLR(self.optimizer, 9), 3)
        self.state: Any = None
        self.step = 0

    def train(self, steps: int) -> None:
        for _ in range(steps):
            rng = np.random.default_rng(self.step)
            y, self.state, tape = self.model.forward(rng.integers(0, 11, (6, 2)), self.state)
            self.optimizer.step(self.model.backward(tape, y, truncation=4).params)
            self.schedule.step()
            self.step += 1

    def tree(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "masks": self.model.rng_state(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "state": self.state,
            "step": self.step,
        }

    def restore(self, tree: dict[str, Any]) -> None:
        self.model.load_state_dict(tree["model"])
        self.model.set_rng_state(tree["masks"])
        self.optimizer.load_state_dict(tree["optimizer"])
        self.schedule.load_state_dict(tree["schedule"])
        self.state, self.step = tree["state"], tree["step"]


def test_a_resumed_run_continues_bit_for_bit(tmp_path: Path) -> None:
    run, resumed = Run(seed=1), Run(seed=2)
    run.train(5)
    checkpoint.save(tmp_path / "run.ckpt", run.tree())
    run.train(5)
    resumed.restore(checkpoint.load(tmp_path / "run.ckpt"))
    resumed.train(5)
    assert_identical(resumed.model.state_dict(), run.model.state_dict())
    assert same(resumed.tree(), run.tree())
