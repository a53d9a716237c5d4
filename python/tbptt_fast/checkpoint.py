"""Checkpoints: a nested tree of arrays and plain values in one file, written atomically, no pickle.

The file is an uncompressed zip. `manifest.json` holds the format, the version, a SHA-256 of all
that matters, and the tree; every array is a member `<number>.npy` that NumPy itself can read.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import secrets
import struct
import tokenize
import zipfile
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["VERSION", "CheckpointError", "load", "save"]

FORMAT = "tbptt_fast checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
# what zipfile and json raise on damaged bytes; our own checks raise CheckpointError
_DAMAGE = (
    zipfile.BadZipFile,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    OverflowError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,  # NumPy, of an array's header
)


class CheckpointError(ValueError):
    """A file is not a checkpoint, is damaged, or was written in an unknown version."""


def save(path: str | os.PathLike[str], tree: Any) -> None:
    """Write a tree of dict (str keys), list, tuple, array, number, str, bool and None to a file.

    The bytes go to a new file in the same folder, are synced to the disk, and then replace `path`,
    so that a crash leaves the old checkpoint or the new one, never a part. The same tree gives the
    same bytes. Raises TypeError, with the place in the tree, for a value of another kind, and
    OSError as `open` does; `path` is untouched then.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/run.ckpt", {"step": 7, "weights": (np.ones((2, 3)), None)})
    ...     load(f"{folder}/run.ckpt")["weights"][0].shape
    (2, 3)
    """
    members: list[bytes] = []
    encoded = _encode(tree, "tree", members)
    body = {"format": FORMAT, "version": VERSION, "tree": encoded, "arrays": len(members)}
    manifest = {**body, "sha256": _digest(body, members)}
    target = os.path.realpath(path)  # a link to a checkpoint stays a link
    temporary = f"{target}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                # a bare ZipInfo has a fixed date
                archive.writestr(zipfile.ZipInfo(MANIFEST), json.dumps(manifest))
                for number, data in enumerate(members):
                    archive.writestr(zipfile.ZipInfo(f"{number}.npy"), data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    _sync_folder(os.path.dirname(target))


def load(path: str | os.PathLike[str]) -> Any:
    """Read back what `save` wrote: the same tree, with fresh, writable arrays.

    Everything is read and its checksum compared before anything is returned. Raises
    CheckpointError, in one line, for a damaged, truncated or foreign file or an unknown version,
    and OSError as `open` does.
    """
    name = os.fspath(path)
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise CheckpointError(f"{name}: not a {FORMAT}")
        try:
            with zipfile.ZipFile(file) as archive:
                return _read(name, archive)
        except CheckpointError:
            raise
        except _DAMAGE as error:
            raise CheckpointError(f"{name}: damaged checkpoint ({error})") from error


def _read(name: str, archive: zipfile.ZipFile) -> Any:
    if MANIFEST not in archive.namelist():
        raise CheckpointError(f"{name}: not a {FORMAT}, it has no {MANIFEST}")
    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
        # nothing here is larger in memory than it is in the file
        raise CheckpointError(f"{name}: damaged checkpoint (a member is compressed)")
    body = json.loads(archive.read(MANIFEST))
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise CheckpointError(f"{name}: not a {FORMAT}")
    if body.get("version") != VERSION:
        raise CheckpointError(
            f"{name}: expected checkpoint version {VERSION}, got {body.get('version')}"
        )
    expected = body.pop("sha256")
    members = [archive.read(f"{number}.npy") for number in range(body["arrays"])]
    if _digest(body, members) != expected:
        raise CheckpointError(f"{name}: damaged checkpoint (the checksum does not match)")
    return _decode(body["tree"], members)


def _digest(body: dict[str, Any], members: Iterable[bytes]) -> str:
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode())
    for data in members:
        digest.update(struct.pack("<Q", len(data)))
        digest.update(data)
    return digest.hexdigest()


def _encode(node: Any, where: str, members: list[bytes]) -> Any:
    """Turn a tree into JSON: plain values as they are, all else as a pair [tag, content]."""
    if isinstance(node, np.ndarray | np.generic):
        if node.dtype.hasobject:
            raise TypeError(f"checkpoint.save: {where}: expected numbers, got dtype {node.dtype}")
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.asanyarray(node), allow_pickle=False)
        members.append(buffer.getvalue())
        return ["array" if isinstance(node, np.ndarray) else "scalar", len(members) - 1]
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if isinstance(node, dict):
        for key in node:
            if not isinstance(key, str):
                raise TypeError(f"checkpoint.save: {where}: expected str keys, got {key!r}")
        return ["dict", {k: _encode(v, f"{where}[{k!r}]", members) for k, v in node.items()}]
    if isinstance(node, list | tuple):
        kind = "list" if isinstance(node, list) else "tuple"
        return [kind, [_encode(v, f"{where}[{i}]", members) for i, v in enumerate(node)]]
    raise TypeError(
        f"checkpoint.save: {where}: expected dict, list, tuple, array, number, str, bool or None,"
        f" got {type(node).__name__}"
    )


def _decode(node: Any, members: list[bytes]) -> Any:
    if not isinstance(node, list):
        return node
    tag, content = node
    if tag == "dict" and isinstance(content, dict):
        return {key: _decode(value, members) for key, value in content.items()}
    if tag in ("list", "tuple") and isinstance(content, list):
        values = [_decode(value, members) for value in content]
        return values if tag == "list" else tuple(values)
    if tag not in ("array", "scalar") or type(content) is not int or content < 0:
        raise ValueError(f"no part of a tree: {tag!r} of {type(content).__name__}")
    array = _array(members[content])
    return array if tag == "array" else array[()]


def _array(data: bytes) -> NDArray[Any]:
    """The array of a member; ValueError where its header asks for more than there is."""
    buffer = io.BytesIO(data)
    if np.lib.format.read_magic(buffer) == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(buffer)
        given = len(data) - buffer.tell()
        if not dtype.hasobject and math.prod(shape) * dtype.itemsize != given:
            raise ValueError(f"an array of shape {shape} in {given} bytes")
    buffer.seek(0)
    return np.lib.format.read_array(buffer, allow_pickle=False)


def _sync_folder(folder: str) -> None:
    """Make the new name itself durable, where folders can be opened (not on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
