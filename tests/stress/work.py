"""Calls whose results are known, which the scripts that disturb them share."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tbptt_fast as tf

from ..cases import CELLS, Problem, make_masks, make_problem
from ..cases import forward as recurrent_forward
from ..cases import run as recurrent

Array = NDArray[Any]
Result = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A computation that gives the same bits every time."""

    name: str
    run: Callable[[], Result]
    single: bool  # one native call: what others switch meanwhile reaches all of it or nothing

    def digest(self) -> str:
        """The bits of all results."""
        state = hashlib.sha256()
        for name, value in sorted(self.run().items()):
            state.update(name.encode())
            state.update(np.ascontiguousarray(value).tobytes())
        return state.hexdigest()


def make_jobs(seed: int = 0, scale: int = 1) -> list[Job]:
    """Recurrent, convolution, loss and optimizer calls; `scale` multiplies their batches."""
    rng = np.random.default_rng(seed)
    found: list[Job] = []

    def add(name: str, run: Callable[[], Result], *, single: bool = False) -> None:
        found.append(Job(name, run, single))

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    for cell in CELLS:
        problem = make_problem(cell, (12, 10 * scale, 20, 33), "float32", seed=seed)
        init = make_masks("is_init", (12, 10 * scale, 20, 33), seed=seed)["is_init"]
        add(cell, partial(recurrent, tf, problem, is_init=init, truncation=(3, 5)))
        add(f"{cell} forward", partial(_out, problem), single=True)

    images, w3, w1 = normal(2 * scale, 8, 13, 15), normal(16, 8, 3, 3), normal(8, 1, 3, 3)
    packed = tf.pack_conv2d(w3)
    add("conv2d", lambda: {"y": tf.conv2d(images, w3, padding=1)}, single=True)
    add("conv2d packed", lambda: {"y": tf.conv2d(images, packed, padding=1)}, single=True)
    # turned, so that NumPy copies it without the interpreter's lock
    turned = np.ascontiguousarray(images.transpose(3, 2, 1, 0)).T
    add("conv2d of a turned array", lambda: {"y": tf.conv2d(turned, w3, padding=1)})
    depthwise = {"padding": 1, "groups": 8}
    add("depthwise", lambda: {"y": tf.conv2d(images, w1, None, **depthwise)}, single=True)
    grad = normal(2 * scale, 16, 13, 15)
    add("conv2d backward", lambda: _fields(tf.conv2d_backward(grad, images, w3, padding=1)))
    frames, wx, wh = normal(3, scale, 3, 9, 9), normal(16, 3, 3, 3) / 4, normal(16, 4, 3, 3) / 4
    upper = normal(3, scale, 4, 9, 9)

    def convlstm() -> Result:
        out, _, tape = tf.convlstm_forward(frames, None, wx, wh)
        return {"out": out, **_fields(tf.convlstm_backward(tape, upper, truncation=2))}

    add("convlstm", convlstm)
    rows, w = normal(40 * scale, 30), normal(50, 30)
    add("linear", lambda: {"y": tf.linear(rows, w, activation="tanh")}, single=True)
    logits, ids = normal(40 * scale, 50), rng.integers(0, 50, 40 * scale)
    add("loss", lambda: _named(tf.softmax_cross_entropy(logits, ids)), single=True)
    add("huber", lambda: _named(tf.huber_loss(logits, 0 * logits)), single=True)
    weights, grads = [normal(37, 41), normal(1000 * scale)], [normal(37, 41), normal(1000 * scale)]

    def step(update: Callable[..., Any], moments: int, **options: float) -> Result:
        params = [a.copy() for a in weights]
        states = [[np.zeros_like(a) for a in weights] for _ in range(moments)]
        norm = update(params, grads, *states, lr=0.1, max_norm=0.5, **options).norm
        return {"norm": norm, **_named([a for arrays in (params, *states) for a in arrays])}

    add("adam", lambda: step(tf.adam_step, 2, step=3))
    add("sgd", lambda: step(tf.sgd_step, 1, mu=0.9))
    return found


def _out(problem: Problem) -> Result:
    return {"out": recurrent_forward(tf, problem)[0]}


def _named(values: Sequence[Any]) -> Result:
    return {str(i): value for i, value in enumerate(values)}


def _fields(grads: Any) -> Result:
    """The arrays of a named tuple of gradients."""
    return {name: value for name, value in grads._asdict().items() if isinstance(value, np.ndarray)}


def digests(jobs: Sequence[Job], threads: int = 2) -> dict[str, str]:
    """Each job's bits, computed alone."""
    with tf.num_threads(threads):
        return {job.name: job.digest() for job in jobs}


def environment() -> dict[str, str]:
    """For a child that finds package and tests as this process does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}


def start(code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """An interpreter that runs `code`, its output and errors to be read."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def package_with(build: Path, folder: Path) -> Path:
    """A copy of the package in `folder`, with the module of another build."""
    package = folder / "tbptt_fast"
    shutil.copytree(tf.__path__[0], package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (module,) = build.glob("_native.*.so")
    shutil.copy2(module, package)
    return folder


class Failures:
    """What went wrong: counted, the first of them printed."""

    def __init__(self, name: str, shown: int = 20) -> None:
        self.name, self.count, self._shown = name, 0, shown

    def add(self, what: str) -> None:
        """One more failure."""
        self.count += 1
        if self.count <= self._shown:
            print(f"{self.name}: FAILED: {what}", flush=True)
