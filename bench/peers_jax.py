"""Sides within JAX: `lax.scan` with the input product hoisted, and tbptt_fast.jax.

Each is one layer and its vector-Jacobian product inside `jit`. XLA fixes its number of threads when
it starts, so every thread count has a process of its own, confined to as many CPUs. It answers one
request at a time over a pipe and rests in between, so that rounds alternate as they do with a peer
in the same process.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from .problem import WEIGHTS, Problem, Result
from .timing import LocalSide

TASKS = ("forward", "forward+backward")
Layer = Callable[..., Any]  # of x, the states and the weights: out and the last states


class JaxWorker:
    """A process that runs JAX on `threads` CPUs. Use as a context manager."""

    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> JaxWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()  # the worker ends when its pipe does
        self._process.join(5)

    def ask(self, request: str, *arguments: object) -> Any:
        try:
            self._pipe.send((request, arguments))
            succeeded, answer = self._pipe.recv()
        except (EOFError, BrokenPipeError) as error:
            raise RuntimeError("the JAX process ended unexpectedly") from error
        if not succeeded:
            raise RuntimeError(f"the JAX process failed:\n{answer}")
        return answer


class JaxSide:
    """One problem in the worker: "jax" is lax.scan, "ours" tbptt_fast.jax, "add" a jitted x + 1."""

    def __init__(self, worker: JaxWorker, problem: Problem, name: str = "jax") -> None:
        self.name = name
        self._worker = worker
        # A copy without the arrays: the worker makes its own.
        worker.ask("load", name, replace(problem))

    def result(self) -> Result:
        found: Result = self._worker.ask("result", self.name)
        return found

    def turn(self, task: str, calls: int, warm_up: bool = True) -> list[float]:
        seconds: list[float] = self._worker.ask("turn", self.name, task, calls, warm_up)
        return seconds


def _serve(pipe: Connection, threads: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["NPROC"] = str(threads)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if threads == 1:
        os.environ["XLA_FLAGS"] = (
            "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        )
    sides: dict[str, LocalSide] = {}
    while True:
        try:
            request, arguments = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            answer: object = None
            name, *rest = arguments
            if request == "load":
                (problem,) = rest
                sides[name] = _load(name, problem, threads)
            else:
                answer = getattr(sides[name], request)(*rest)
            pipe.send((True, answer))
        except Exception:
            pipe.send((False, traceback.format_exc()))


def _scan_layer(problem: Problem) -> Layer:
    """A loop over the steps; with windows, one over the windows, out of which no gradient goes."""
    import jax
    from jax import numpy as jnp

    hidden, chunk = problem.hidden, problem.chunk

    def rnn(carry: Any, matrix: Any, b_hh: Any, hoisted: Any) -> Any:
        (h,) = carry
        return (jnp.tanh(hoisted + h @ matrix),)

    def gru(carry: Any, matrix: Any, b_hh: Any, hoisted: Any) -> Any:
        (h,) = carry
        recurrent = h @ matrix + b_hh
        gates = jax.nn.sigmoid(hoisted[:, : 2 * hidden] + recurrent[:, : 2 * hidden])
        r, z = jnp.split(gates, 2, axis=-1)
        n = jnp.tanh(hoisted[:, 2 * hidden :] + r * recurrent[:, 2 * hidden :])
        return (n + z * (h - n),)

    def lstm(carry: Any, matrix: Any, b_hh: Any, hoisted: Any) -> Any:
        h, c = carry
        i, f, g, o = jnp.split(hoisted + h @ matrix, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c)

    cell = {"rnn": rnn, "gru": gru, "lstm": lstm}[problem.cell]
    bias_is_hoisted = problem.cell != "gru"

    def layer(x: Any, state: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
        hoisted = x @ w_ih.T + (b_ih + b_hh if bias_is_hoisted else b_ih)
        matrix = w_hh.T

        def step(carry: Any, row: Any) -> Any:
            carry = cell(carry, matrix, b_hh, row)
            return carry, carry[0]

        def window(carry: Any, rows: Any) -> Any:
            last, out = jax.lax.scan(step, carry, rows)
            return jax.lax.stop_gradient(last), out

        if chunk is None:
            last, out = jax.lax.scan(step, state, hoisted)
        else:
            last, out = jax.lax.scan(window, state, hoisted.reshape(-1, chunk, *hoisted.shape[1:]))
        return out.reshape(problem.steps, *out.shape[-2:]), last

    return layer


def _our_layer(problem: Problem, threads: int) -> Layer:
    import tbptt_fast
    import tbptt_fast.jax as backend

    tbptt_fast.set_num_threads(threads)
    function, pair = getattr(backend, problem.cell), problem.cell == "lstm"

    def layer(x: Any, state: Any, *weights: Any) -> Any:
        hx = state if pair else state[0]
        out, last = function(x, hx, *weights, truncation=problem.chunk)
        return out, last if pair else (last,)

    return layer


def _load(name: str, problem: Problem, threads: int) -> LocalSide:
    import jax

    wait: Any = jax.block_until_ready
    if name == "add":
        add, one = jax.jit(lambda x: x + 1), jax.device_put(problem.arrays["x"])
        return LocalSide(name, dict, dict.fromkeys(TASKS, lambda: wait(add(one))))
    layer = _our_layer(problem, threads) if name == "ours" else _scan_layer(problem)

    def layer_and_gradients(operands: Any, grad_out: Any) -> Any:
        out, pullback, last = jax.vjp(layer, *operands, has_aux=True)
        return out, last, pullback(grad_out)

    arrays = {name: jax.device_put(value) for name, value in problem.arrays.items()}
    state = tuple(arrays[name] for name in ("h", "c") if name in arrays)
    weights = [arrays[name] for name in WEIGHTS]
    operands = (arrays["x"], state, *weights)
    forward = jax.jit(layer)
    both = jax.jit(layer_and_gradients)

    def compute() -> Result:
        out, last, (dx, dstate, *dweights) = both(operands, arrays["grad_out"])
        found = {"out": out, "dx": dx}
        for name, value, gradient in zip("hc", last, dstate, strict=False):
            found[f"{name}_n"], found[f"d{name}"] = value, gradient
        found |= zip((f"d{name}" for name in WEIGHTS), dweights, strict=True)
        return {name: np.asarray(value) for name, value in found.items()}

    calls = (
        lambda: wait(forward(*operands)),
        lambda: wait(both(operands, arrays["grad_out"])),
    )
    return LocalSide(name, compute, dict(zip(TASKS, calls, strict=True)))
