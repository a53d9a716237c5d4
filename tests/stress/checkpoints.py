"""Checkpoints whose writing is cut short, whose disk is full, whose bytes are damaged or hostile.

Whatever happens, the last whole checkpoint loads and its run goes on bit for bit; any other file is
refused by CheckpointError in one line, or gives exactly what was saved; and no file runs code.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import io
import json
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from tbptt_fast import checkpoint

from ..test_checkpoint import SMALL, TREE, Run, same
from .work import Failures, Job, start

PADDING = 1 << 18  # doubles: 2 MB, so that most of a training's time is writing
LAST = 60  # updates

KILLED = """
import sys
import numpy as np
from tbptt_fast import checkpoint
from tests.stress.checkpoints import LAST, padded
from tests.test_checkpoint import Run
run = Run(seed=1)
try:
    run.restore(checkpoint.load(sys.argv[1])["run"])
except FileNotFoundError:
    pass
print("ready", flush=True)
while True:
    run.train(1)
    checkpoint.save(sys.argv[1], padded(run))
    if run.step >= LAST:
        run = Run(seed=1)
"""


def padded(run: Run) -> dict[str, Any]:
    """A run's checkpoint, large, and different with every step."""
    return {"run": run.tree(), "padding": np.full(PADDING, float(run.step))}


def weights(run: Run) -> str:
    return Job("", run.model.state_dict, False).digest()


def kills(count: int, rng: random.Random, folder: Path, failures: Failures) -> int:
    """SIGKILL to a training that writes all the time; returns how many hit it while it wrote."""
    path = folder / "killed.ckpt"
    whole = Run(seed=1)
    known = [weights(whole)]
    for _ in range(LAST + 2):
        whole.train(1)
        known.append(weights(whole))
    while_writing = 0
    for _ in range(count):
        child = start(KILLED, str(path))
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.005 + 0.1 * rng.random())
        child.kill()
        child.communicate()
        parts = list(folder.glob("killed.ckpt.*.tmp"))
        while_writing += bool(parts)
        for part in parts:
            part.unlink()
        if not path.exists():
            continue  # killed before the first one was whole
        tree = checkpoint.load(path)
        run = Run(seed=2)
        run.restore(tree["run"])
        if weights(run) != known[run.step] or set(tree["padding"]) != {float(run.step)}:
            failures.add(f"killed: other bits at step {run.step}")
        step = min(run.step + 2, LAST + 2)
        run.train(step - run.step)
        if weights(run) != known[step]:
            failures.add(f"killed: the resumed run differs at step {step}")
    return while_writing


class Full(io.FileIO):
    """A file on a disk with room for some more bytes."""

    room = 0

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        if size > self.room:
            written = super().write(memoryview(data).cast("B")[: self.room]) if self.room else 0
            self.room = 0
            if written:
                return written
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= size
        return super().write(data) or 0


def full_disks(count: int, rng: random.Random, folder: Path, failures: Failures) -> None:
    """No space left, after any number of bytes; and a limit on the size of files."""
    path = folder / "full.ckpt"
    old = {"old": np.arange(100)}
    checkpoint.save(path, old)
    new = {"new": [rng.random() for _ in range(50)], "padding": np.zeros(40_000)}
    checkpoint.save(folder / "size", new)
    size = (folder / "size").stat().st_size

    def refused(number: int, room: int, save: Callable[[], None]) -> None:
        try:
            save()
        except OSError as error:
            if error.errno != number:
                failures.add(f"full disk: {error!r} after {room} bytes")
        else:
            failures.add(f"full disk: no error after {room} of {size} bytes")
        left = [name for name in os.listdir(folder) if name.startswith("full.ckpt")]
        if left != ["full.ckpt"] or not same(checkpoint.load(path), old):
            failures.add(f"full disk: {left} are left after {room} bytes")

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for i in range(count):
        room = rng.choice((0, rng.randrange(size), size - 1 - rng.randrange(1000)))

        def opened(name: str, mode: str, room: int = room) -> Any:
            if mode != "xb":
                return open(name, mode)
            file = Full(name, mode.replace("b", ""))
            file.room = room
            return io.BufferedWriter(file)

        if i % 2:
            with mock.patch.object(checkpoint, "open", opened, create=True):
                refused(errno.ENOSPC, room, lambda: checkpoint.save(path, new))
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
            try:
                refused(errno.EFBIG, room, lambda: checkpoint.save(path, new))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)


def tiny_disk(failures: Failures) -> bool:
    """A real file system that is full: a tmpfs of 256 kB; False where it may not be mounted."""
    with tempfile.TemporaryDirectory() as name:
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", name]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            return False
        try:
            path, old = Path(name) / "run.ckpt", {"old": np.arange(100)}
            checkpoint.save(path, old)
            try:
                checkpoint.save(path, np.zeros(60_000))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    failures.add(f"tmpfs: {error!r}")
            else:
                failures.add("tmpfs: no error")
            if os.listdir(name) != ["run.ckpt"] or not same(checkpoint.load(path), old):
                failures.add(f"tmpfs: {os.listdir(name)} are left")
            checkpoint.save(path, {"small": np.zeros(100)})
        finally:
            subprocess.run(["umount", name], check=True)
        return True


def judge(path: Path, data: bytes, wanted: Any, failures: Failures, name: str) -> bool:
    """Whether the bytes were refused as documented; else they must load as `wanted`."""
    path.write_bytes(data)
    try:
        found = checkpoint.load(path)
    except checkpoint.CheckpointError as error:
        if "\n" in str(error) or not str(error).startswith(f"{path}: "):
            failures.add(f"{name}: message {error}")
        return True
    except Exception as error:
        failures.add(f"{name}: {error!r}")
        return True
    if not same(found, wanted):
        failures.add(f"{name}: something else was loaded")
    return False


def damage(count: int, rng: random.Random, folder: Path, failures: Failures) -> int:
    """Every bit of a small file, and random harm to larger ones; returns how many were refused."""
    path, refused = folder / "damaged.ckpt", 0
    run = Run(seed=1)
    run.train(2)
    trees = [SMALL, TREE, run.tree()]
    files = []
    for tree in trees:
        checkpoint.save(path, tree)
        files.append(path.read_bytes())
    for bit in range(0, 8 * len(files[0]), max(1, 8 * len(files[0]) // count)):
        data = bytearray(files[0])
        data[bit // 8] ^= 1 << bit % 8
        refused += judge(path, data, SMALL, failures, f"bit {bit}")
    for i in range(count):
        which = rng.randrange(len(trees))
        data = bytearray(files[which])
        kind = rng.choice(("flip", "flip", "cut", "zero", "swap", "insert", "two"))
        at, size = rng.randrange(len(data)), rng.randrange(1, 600)
        if kind == "flip":
            for _ in range(rng.randrange(1, 5)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del data[at:]
        elif kind == "zero":
            data[at : at + size] = bytes(len(data[at : at + size]))
        elif kind == "swap":
            other = rng.randrange(len(data))
            data[at : at + size] = data[other : other + size]
        elif kind == "insert":
            data[at:at] = rng.randbytes(size)
        else:
            data = data + files[rng.randrange(len(files))]
            which = next(k for k, f in enumerate(files) if data.endswith(f))
        refused += judge(path, bytes(data), trees[which], failures, f"{kind} {i}")
    return refused


class Payload:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def forge(tree: Any, members: Sequence[bytes], **changes: Any) -> bytes:
    """A file with a right checksum, by someone who knows the format."""
    body = {"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "tree": tree}
    body |= {"arrays": len(members), **changes}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode())
    for data in members:
        digest.update(struct.pack("<Q", len(data)) + data)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("manifest.json", json.dumps({**body, "sha256": digest.hexdigest()}))
        for number, data in enumerate(members):
            archive.writestr(f"{number}.npy", data)
    return file.getvalue()


def hostile(folder: Path, failures: Failures) -> int:
    """Files made to run code, to fill the memory or to surprise; all of them must be refused."""
    path, mark = folder / "hostile.ckpt", folder / "code ran"
    pickled = pickle.dumps(np.array([Payload(mark)], object))
    objects = io.BytesIO()
    np.lib.format.write_array(objects, np.array([Payload(mark)], object))

    def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
        text = header.encode() + b"\n"
        return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data

    code = f"__import__('os').mkdir({str(mark)!r})"
    good = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", bytes(4))
    arrays = [
        objects.getvalue(),
        pickled,
        npy(code),
        npy(f"{{'descr': {code}, 'fortran_order': False, 'shape': (1,), }}", bytes(8)),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", pickled),
        npy("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,), }", pickled),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }", bytes(4)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1), }", bytes(4)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1.5,), }", bytes(4)),
        npy("{'descr': '<f4', 'fortran_order': 3, 'shape': (1,), }", bytes(4)),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (True,), }", bytes(5)),
        npy("{'descr': 'nonsense', 'fortran_order': False, 'shape': (1,), }", bytes(4)),
        *(npy(text) for text in ("", "{", "(" * 900, "{'a': '''", "\x00", "[" * 5000, "1_")),
        good.replace(b"\x01\x00", b"\x09\x09", 1),
        good[:8],
        b"",
    ]
    numbers: list[Any] = [1, -1, 0.0, "0", None, True, [0], 10**30]
    contents: list[Any] = [[], {}, 0, None, "x", {"a": 1}]
    trees: list[Any] = [["array", number] for number in numbers]
    trees += [["dict", content] for content in contents if not isinstance(content, dict)]
    trees += [["list", content] for content in contents if not isinstance(content, list)]
    trees += [["tuple"], [], [1], ["eval", code], [["array"], 0], [None, 0], ["array", 0, 0]]
    files = [forge(["array", 0], [data]) for data in arrays]
    files += [forge(tree, [good]) for tree in trees]
    versions: list[Any] = [0, 2, "1", None, 1.5, [1], {}, "9" * 5000]
    files += [forge(["array", 0], [good], version=version) for version in versions]
    files += [forge(["array", 0], [good], arrays=count) for count in (10**15, "1", None, 1.0)]
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", b" " * (1 << 24))
    files += [bomb.getvalue(), pickled, b"PK\x03\x04" + pickled]
    for index, data in enumerate(files):
        if not judge(path, data, None, failures, f"hostile {index}"):
            failures.add(f"hostile {index}: was loaded")
    if mark.exists():
        failures.add("hostile: code ran")
    pickle.loads(pickled)  # the payload itself works
    if not mark.exists():
        failures.add("hostile: the payload is none")
    return len(files)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--full", type=int, default=200)
    parser.add_argument("--damages", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args(arguments)
    rng, failures = random.Random(o.seed), Failures("checkpoints")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        while_writing = kills(o.kills, rng, folder, failures)
        full_disks(o.full, rng, folder, failures)
        mounted = tiny_disk(failures)
        refused = damage(o.damages, rng, folder, failures)
        forged = hostile(folder, failures)
    print(
        f"checkpoints: {o.kills} kills ({while_writing} while writing), {o.full} full disks"
        f"{' and a full tmpfs' if mounted else ''}, {o.damages} random damages and every bit"
        f" ({refused} refused, the others harmless), {forged} hostile files,"
        f" {failures.count} failures"
    )
    return 1 if failures.count else 0


if __name__ == "__main__":
    sys.exit(main())
