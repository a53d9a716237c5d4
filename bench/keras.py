"""One batch of training in Keras: our layers and optimizer beside Keras's own, per backend.

A process has one backend of Keras, and JAX and TensorFlow fix their number of threads when they
start: every backend and number of threads has a process of its own, confined to as many CPUs. Both
sides take turns in it.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

import tbptt_fast

from .options import Options, progress
from .problem import Problem
from .report import Section, milliseconds, times
from .timing import LocalSide, Side, Timing, alternate

BACKENDS = ("torch", "jax", "tensorflow")
SHAPE = (64, 32, 128, 128)
TASK = "train_on_batch"
CHECKED = 4  # batches, whose losses must agree


def run(options: Options) -> list[Section]:
    if not importlib.util.find_spec("keras"):
        raise SystemExit("bench keras needs Keras")
    section = Section(
        title="Keras: train_on_batch of a recurrent layer and a dense one, Adam, clipped by norm",
        columns=["layer", "T, B, I, H", "backend", "threads", "ours ms", "Keras ms", "vs Keras"],
        note="Ours: layer and optimizer of tbptt_fast.keras. Both are compiled as Keras does it.",
    )
    problems = [Problem(cell, *shape) for cell in options.cells for shape in shapes(options)]
    for backend in filter(importlib.util.find_spec, BACKENDS):
        for threads in options.threads:
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, spawn, start_process, (backend, threads)) as process:
                for problem in problems:
                    timing = process.submit(measure, problem, options).result()
                    add(section, problem, backend, threads, timing)
    return [section]


def shapes(options: Options) -> tuple[tuple[int, int, int, int], ...]:
    return options.shapes or (SHAPE,)


def add(section: Section, problem: Problem, backend: str, threads: int, timing: Timing) -> None:
    ratio = timing.ratio("keras")
    label = [problem.cell.upper(), problem.shape, backend, str(threads)]
    progress(f"{', '.join(label)}: {times(ratio)}")
    seconds = {side: timing.spread(side) for side in timing.seconds}
    both = (milliseconds(seconds[side].median) for side in ("ours", "keras"))
    section.rows.append([*label, *both, times(ratio)])
    section.records.append({"label": label, "seconds": seconds, "ratio": ratio})


# In the process of a backend.


def start_process(backend: str, threads: int) -> None:
    """Confine the process to `threads` CPUs, before anything starts threads of its own."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ |= {"KERAS_BACKEND": backend, "NPROC": str(threads), "TF_CPP_MIN_LOG_LEVEL": "3"}
    os.environ |= {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(threads)}
    if threads == 1:
        os.environ["XLA_FLAGS"] = (
            "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        )
    tbptt_fast.set_num_threads(threads)
    if backend == "torch":
        import torch

        torch.set_num_threads(threads)
    elif backend == "tensorflow":
        import tensorflow

        tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
        tensorflow.config.threading.set_inter_op_parallelism_threads(threads)


def measure(problem: Problem, options: Options) -> Timing:
    """Both sides of the problem, verified, then timed in turns."""
    import keras

    import tbptt_fast.keras as ours

    name = {"lstm": "LSTM", "gru": "GRU", "rnn": "SimpleRNN"}[problem.cell]
    rng = np.random.default_rng(problem.seed)
    x = rng.standard_normal((problem.batch, problem.steps, problem.inputs), dtype=np.float32)
    y = rng.standard_normal((problem.batch, 1), dtype=np.float32)

    def model(layer: Any, optimizer: Any) -> Any:
        size = keras.Input((problem.steps, problem.inputs))
        made = keras.Sequential([size, layer(problem.hidden), keras.layers.Dense(1)])
        made.compile(optimizer(1e-3, global_clipnorm=1.0), "mse")
        return made

    models = {
        "ours": model(getattr(ours, name), ours.Adam),
        "keras": model(getattr(keras.layers, name), keras.optimizers.Adam),
    }
    models["ours"].set_weights(models["keras"].get_weights())
    losses = [[float(m.train_on_batch(x, y)) for _ in range(CHECKED)] for m in models.values()]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4, err_msg=problem.shape)

    def step(made: Any) -> Callable[[], object]:
        return lambda: made.train_on_batch(x, y)

    sides: list[Side] = [LocalSide(n, dict, {TASK: step(m)}) for n, m in models.items()]
    return alternate(sides, TASK, rounds=options.rounds, turn_seconds=options.turn_seconds)
