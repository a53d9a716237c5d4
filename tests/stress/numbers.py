"""Extreme numbers: NaN, infinities, denormals, 1e±30, gradients that explode in float32.

- A NaN or an infinity at a random place of one input gives results of the oracle's classes (NaN,
  +inf, -inf, finite), element by element. Ways of Winograd transform tiles of 4x4 or 6x6 pixels,
  and what is not finite there may reach the whole tile: results further away are of the oracle's
  classes, and nothing that should be NaN or infinite becomes finite. Of a convolution's weights and
  of windows that overlap only the latter holds: the class depends on the order of sums there, and
  on whether a weight meets the zeros beside an image, as 0·inf is NaN.
- Positive numbers of any magnitude, which cannot cancel, give the float64 oracle's results rounded
  to float32: infinite, denormal and zero where they are, and else close. Winograd's ways subtract:
  they may give NaN for an infinity.
- Finite inputs give results that differ between two instruction sets by at most twice the bound of
  tests/cases.py, by which each may differ from the exact one (triangle inequality).
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

import tbptt_fast as tf
from tbptt_fast import reference, reference_convolution, reference_layers, reference_norm

from ..cases import CELLS, TOLERANCE, make_problem, run
from .work import Array, Failures, Result

POISONS = (np.nan, np.inf, -np.inf)
WINOGRAD_ERROR = 1e-4  # of the greatest output, as documented
PIXELS = 5  # how far from where it should be a tile of Winograd's largest way carries it


@dataclass(frozen=True)
class Case:
    """An operation in both implementations, on arrays by name."""

    name: str
    arrays: dict[str, Array]
    native: Callable[..., Result]
    oracle: Callable[..., Result]
    poisonable: tuple[str, ...]
    length: int  # of the longest sum
    tiled: bool = False
    loose: tuple[str, ...] = ()  # what is not finite there must not be lost; its class is free

    def astype(self, dtype: str, **changes: Array) -> dict[str, Array]:
        """The inputs, some of them changed; integers stay."""
        given = {**self.arrays, **changes}
        return {n: a.astype(dtype) if a.dtype.kind == "f" else a for n, a in given.items()}


def make_cases(rng: np.random.Generator) -> list[Case]:
    """The layers, with other sizes for every generator."""
    return [*recurrent_cases(rng), *convolution_cases(rng), *layer_cases(rng)]


def recurrent_cases(rng: np.random.Generator) -> list[Case]:
    found = []
    for cell in CELLS:
        steps, batch, inputs, hidden = (int(rng.integers(1, high)) for high in (9, 12, 20, 40))
        problem = make_problem(cell, (steps, batch, inputs, hidden), seed=int(rng.integers(1000)))
        names = ("x", "w_ih", "w_hh", "b_ih", "b_hh", "grad_out")
        arrays = {name: getattr(problem, name) for name in names}
        step = int(rng.integers(1, steps + 1))
        truncation = step, int(rng.integers(step, steps + 1))

        def made(ops: Any, problem: Any = problem, k: Any = truncation, **given: Array) -> Result:
            cast = given["x"].dtype
            hx, grad = (tuple(a.astype(cast) for a in s) for s in (problem.hx, problem.grad_hx))
            return run(ops, replace(problem, hx=hx, grad_hx=grad, **given), truncation=k)

        found.append(
            Case(
                f"{cell} {problem.shape} {truncation}",
                arrays,
                lambda made=made, **given: made(tf, **given),
                lambda made=made, **given: made(reference, **given),
                names,
                problem.length,
                loose=names if truncation[1] > truncation[0] else (),
            )
        )
    return found


def convolution_cases(rng: np.random.Generator) -> list[Case]:
    found = []
    for kernel, groups, stride in ((3, 1, 1), (3, 1, 2), (1, 1, 1), (5, 1, 1), (3, 4, 1)):
        batch, size = int(rng.integers(1, 4)), tuple(int(n) for n in rng.integers(6, 24, 2))
        inputs, outputs = (int(n) * groups for n in rng.integers(1, 20, 2))
        if groups > 1 and rng.random() < 0.5:
            groups = outputs = inputs  # depthwise
        padding = int(rng.integers(0, kernel // 2 + 1))
        x = rng.normal(size=(batch, inputs, *size))
        w = rng.normal(size=(outputs, inputs // groups, kernel, kernel)) / kernel
        shape = tf.conv2d(x, w, stride=stride, padding=padding, groups=groups).shape
        arrays = {"x": x, "w": w, "b": rng.normal(size=outputs), "g": rng.normal(size=shape)}
        common = {"stride": stride, "padding": padding, "groups": groups}
        whole = {
            "stride": (stride, stride),
            "padding": ((padding, padding),) * 2,
            "dilation": (1, 1),
            "groups": groups,
        }

        def native(x: Array, w: Array, b: Array, g: Array, options: Any = common) -> Result:
            grads = tf.conv2d_backward(g, x, w, **options)
            y = tf.conv2d(x, w, b, **options)
            return {"y": y, "grad_x": grads.x, "grad_w": grads.w, "grad_b": grads.b}

        def oracle(x: Array, w: Array, b: Array, g: Array, options: Any = whole) -> Result:
            grads = reference_convolution.conv_backward(g, x, w, **options)
            y = reference_convolution.conv(x, w, b, **options)
            return {"y": y, **dict(zip(("grad_x", "grad_w", "grad_b"), grads, strict=True))}

        found.append(
            Case(
                f"conv2d {x.shape} {w.shape} {common}",
                arrays,
                native,
                oracle,
                tuple(arrays),
                max(batch * int(np.prod(size)), kernel * kernel * max(inputs, outputs)),
                tiled=kernel == 3 and groups == 1 and stride == 1,
                loose=("w",),
            )
        )
    return found


def layer_cases(rng: np.random.Generator) -> list[Case]:
    rows, inputs, outputs = (int(rng.integers(1, high)) for high in (60, 50, 70))

    def normal(*shape: int) -> Array:
        return rng.normal(size=shape)

    def linear(ops: Any, x: Array, w: Array, b: Array, g: Array) -> Result:
        grads = ops.linear_backward(g, x, w)
        y = ops.linear(x, w, b)
        return {"y": y, "grad_x": grads.x, "grad_w": grads.w, "grad_b": grads.b}

    def norm(ops: Any, x: Array, w: Array, b: Array, g: Array) -> Result:
        y, mean, inv_std = ops.layer_norm(x, w, b)
        grads = ops.layer_norm_backward(g, x, w, mean, inv_std)
        named = {"y": y, "grad_x": grads.x, "grad_w": grads.w, "grad_b": grads.b}
        return {**named, "inv_std": inv_std}

    def softmax(ops: Any, x: Array) -> Result:
        return {"y": ops.softmax(x)}

    def losses(ops: Any, x: Array, t: Array) -> Result:
        named = {"mse": ops.mse_loss, "l1": ops.l1_loss, "huber": ops.huber_loss}
        found = {name: loss(x, t, reduction="none") for name, loss in named.items()}
        pairs = {f"{name} {i}": v for name, pair in found.items() for i, v in enumerate(pair)}
        return pairs

    def embedding(ops: Any, g: Array, ids: Array) -> Result:
        return {"grad_w": ops.embedding_backward(g, ids, 9)}

    x, w, b = normal(rows, inputs), normal(outputs, inputs), normal(outputs)
    specs: list[tuple[str, Any, Any, dict[str, Array]]] = [
        ("linear", linear, reference, {"x": x, "w": w, "b": b, "g": normal(rows, outputs)}),
        (
            *("layer_norm", norm, reference_norm),
            {"x": x, "w": normal(inputs), "b": normal(inputs), "g": normal(rows, inputs)},
        ),
        ("softmax", softmax, reference_layers, {"x": x}),
        ("losses", losses, reference_layers, {"x": x, "t": normal(rows, inputs)}),
        ("embedding", embedding, reference, {"g": x, "ids": rng.integers(0, 9, rows)}),
    ]
    return [
        Case(
            f"{name} {rows} {inputs} {outputs}",
            arrays,
            lambda op=op, **given: op(tf, **given),
            lambda op=op, ops=ops, **given: op(ops, **given),
            tuple(n for n, a in arrays.items() if a.dtype.kind == "f"),
            rows + inputs + outputs,
        )
        for name, op, ops, arrays in specs
    ]


def classes(values: Array) -> Array:
    """0 finite, 1 +inf, 2 -inf, 3 NaN."""
    return np.asarray(np.select([np.isnan(values), values == np.inf, values == -np.inf], [3, 1, 2]))


def spread(wrong: Array) -> Array:
    """What lies within PIXELS of a marked pixel of the same plane; [..., Y, X]."""
    wide: Array = wrong.copy()
    for axis in (-2, -1):
        source = wide.copy()
        for distance in range(1, PIXELS + 1):
            for shift in (distance, -distance):
                moved = np.roll(source, shift, axis)
                edge = [slice(None)] * wide.ndim
                edge[axis] = slice(None, distance) if shift > 0 else slice(-distance, None)
                moved[tuple(edge)] = False
                wide |= moved
    return wide


def poisoned(case: Case, dtype: str, rng: np.random.Generator, failures: Failures) -> None:
    """One value that is not finite, in each of the inputs."""
    for name in case.poisonable:
        value = POISONS[rng.integers(len(POISONS))]
        array = case.arrays[name].copy()
        array[tuple(rng.integers(n) for n in array.shape)] = value
        given = case.astype(dtype, **{name: array})
        found = case.native(**given)
        with np.errstate(all="ignore"):
            wanted = case.oracle(
                **{n: a.astype("f8") if a.dtype.kind == "f" else a for n, a in given.items()}
            )
        for result, values in found.items():
            ours, theirs = classes(np.asarray(values)), classes(np.asarray(wanted[result]))
            wrong = ours != theirs
            if (case.tiled or name in case.loose) and wrong.any():
                lost = (theirs != 0) & (ours == 0)
                free = name in case.loose or result == "grad_w"
                near = np.ones_like(wrong) if free else spread(theirs != 0)
                wrong = lost | (wrong & ~near)
            if wrong.any():
                failures.add(
                    f"{tf.active_isa()} {dtype} {case.name}: {value} in {name}: {result}:"
                    f" {int(wrong.sum())} of {wrong.size} of another class, such as"
                    f" {ours[wrong][0]} for {theirs[wrong][0]}"
                )


def magnitudes(case: Case, rng: np.random.Generator, failures: Failures) -> None:
    """Positive inputs of magnitudes up to 1e±30 and denormals, in float32."""
    if not case.name.startswith(("linear", "conv2d")):
        return  # subtractions, also hidden in a gate's derivative: no bound holds at any magnitude
    scales = {name: 10.0 ** rng.choice((-42, -30, -20, 0, 20, 30)) for name in case.arrays}
    arrays = {n: np.abs(case.arrays[n]) * scales[n] for n in case.arrays}
    given = case.astype("float32", **arrays)
    found = case.native(**given)
    with np.errstate(all="ignore"):
        wanted = case.oracle(**{n: a.astype("f8") for n, a in given.items()})
    limit = np.finfo(np.float32)
    for result, values in found.items():
        exact = np.asarray(wanted[result])
        rtol = TOLERANCE["gradient"] * float(limit.eps) * case.length**0.5
        # a sum that ends beside the largest number may round to either side
        beside = np.abs(exact) > (1 - rtol) * float(limit.max)
        low = np.where(beside & (exact < (1 + rtol) * float(limit.max)), 0, exact)
        with np.errstate(all="ignore"):
            expected = exact.astype(np.float32)
            error = np.abs(values - low)
        allowed = rtol * np.abs(exact) + case.length * float(limit.smallest_subnormal)
        fine = np.where(np.isinf(expected), beside & (values > limit.max / 2), error <= allowed)
        if case.tiled:  # Winograd's ways subtract: their error is one of the greatest result's
            greatest = WINOGRAD_ERROR * np.abs(exact).max(initial=0.0)
            lost = np.isinf(expected) & np.isfinite(values)
            fine = ~lost if np.isinf(expected).any() else fine | (error <= greatest)
        if not fine.all():
            at = np.unravel_index(int(np.argmin(fine)), fine.shape)
            failures.add(
                f"{tf.active_isa()} {case.name}: {scales}: {result}: {values[at]} for {exact[at]}"
            )


def agreement(case: Case, dtype: str, rng: np.random.Generator, failures: Failures) -> None:
    """The instruction sets against one another, on finite inputs."""
    scale = 10.0 ** rng.uniform(-3, 1)
    given = case.astype(dtype, **{"x": case.arrays["x"] * scale} if "x" in case.arrays else {})
    results = {}
    for isa in tf.available_isas():
        with tf.isa(isa):
            results[isa] = case.native(**given)
    eps = float(np.finfo(dtype).eps)
    names = list(results)
    for one, other in pairwise(names):
        for result, values in results[one].items():
            ours, theirs = np.asarray(values), np.asarray(results[other][result])
            # the sums' terms are larger than sums that cancel: about √length of them
            size = max(float(np.abs(ours).max(initial=0.0)), 1.0, scale)
            if result == "grad_x" and "inv_std" in results[one]:  # its terms have this factor
                size = max(size, float(results[one]["inv_std"].max()))
            bound = 2 * TOLERANCE["gradient"] * eps * case.length**0.5 * size
            difference = np.abs(ours - theirs).max(initial=0.0)
            if not difference <= bound:
                failures.add(
                    f"{one}, {other}: {dtype} {case.name}: {result}: {difference} > {bound}"
                )


def explosions(failures: Failures) -> int:
    """Long sequences whose states and gradients grow until they are infinite, or NaN."""
    checked = 0
    for steps, factor in ((100, 1.5), (400, 1.5), (2000, 1.2), (1000, 4.0)):
        for cell in CELLS:
            problem = make_problem(cell, (steps, 3, 5, 17), "float32")
            positive = {n: np.abs(getattr(problem, n)) for n in ("x", "w_ih", "b_ih", "b_hh")}
            positive |= {"w_hh": np.abs(problem.w_hh) * 0 + np.float32(factor / 17)}
            problem = replace(problem, **positive, grad_out=np.abs(problem.grad_out))
            hx = tuple(np.clip(np.abs(state), 0.1, 1.0) for state in problem.hx or ())
            out = run(tf, replace(problem, grad_hx=None, hx=hx), truncation=None)
            for name, values in out.items():
                checked += 1
                if cell == "rnn_relu":  # sums of what is positive: never NaN, in the end infinite
                    endless = name in ("out", "grad_w_hh") and steps > 300
                    fine = bool((values >= 0).all()) and np.isinf(values).any() >= endless
                else:
                    fine = name != "out" or bool((np.abs(values) <= 1).all())
                if not fine:
                    failures.add(f"explosion of {cell}, {steps} steps: {name}")
    return checked


def numbers(rounds: int, seed: int, failures: Failures) -> int:
    """All cases, a number of times, with every instruction set; returns how many were run."""
    count = 0
    for index in range(rounds):
        rng = np.random.default_rng([seed, index])
        cases = make_cases(rng)
        for case in cases:
            count += 1
            dtype = random.Random(f"{seed} {index}").choice(("float32", "float64"))
            for isa in tf.available_isas():
                with tf.isa(isa):
                    poisoned(case, dtype, rng, failures)
                    magnitudes(case, rng, failures)
            agreement(case, dtype, rng, failures)
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args(arguments)
    failures = Failures("numbers")
    count = numbers(o.rounds, o.seed, failures)
    checked = 0
    for isa in tf.available_isas():
        with tf.isa(isa):
            checked += explosions(failures)
    print(
        f"numbers: {o.rounds} rounds, {count} problems with {len(tf.available_isas())} instruction"
        f" sets, {checked} results of exploding sequences, {failures.count} failures"
    )
    return 1 if failures.count else 0


if __name__ == "__main__":
    sys.exit(main())
