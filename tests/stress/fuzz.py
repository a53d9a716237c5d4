"""Random calls of every public function: nothing but an answer, or a refusal that names an argument.

    python -m tests.stress.fuzz --calls 1000000 --seed 0

Of each call some arrays lie strangely in memory, some arguments are broken, and some numbers are
NaN, infinite or denormal. Then: it returns, or raises what is documented; arguments are not
changed, but those that a step of an optimizer updates, and these not by a refused call; and the
same values laid out plainly give the same bits.
"""

from __future__ import annotations

import argparse
import inspect
import resource
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

import tbptt_fast

from .calls import BUILDERS, Arguments
from .source import ODD, RandomSource, Source, broken, chance, choice, in_another_layout

REFUSALS = (TypeError, ValueError, OverflowError, MemoryError, FloatingPointError)
MEMORY = 6 << 30  # bytes of addresses: what asks for more is refused as a MemoryError
NAMES = tuple(BUILDERS)
UPDATES = ("sgd_step", "rmsprop_step", "adam_step")
# what a call updates beside: the running statistics
UPDATED = {"batch_norm": (3, 4)}


@cache
def parameters(name: str) -> tuple[str, ...]:
    """The names of a function's arguments."""
    return tuple(inspect.signature(getattr(tbptt_fast, name)).parameters)


@dataclass
class Call:
    """A call, and whether its arguments are those that it was built with, but for their layout."""

    name: str
    arguments: list[Any]
    options: dict[str, Any]
    whole: bool

    def run(self) -> Any:
        return getattr(tbptt_fast, self.name)(*self.arguments, **self.options)


def each_array(value: Any, change: Any) -> Any:
    """The same structure with every array changed."""
    if isinstance(value, np.ndarray):
        return change(value)
    if isinstance(value, list | tuple):
        if hasattr(value, "_fields"):
            return type(value)(*(each_array(one, change) for one in value))
        return type(value)(each_array(one, change) for one in value)
    if isinstance(value, dict):
        return {name: each_array(one, change) for name, one in value.items()}
    return value


def copied(array: Any) -> Any:
    return np.array(array, order="C", copy=True)


def bits(value: Any) -> list[Any]:
    """All arrays and numbers in a structure, as bytes."""
    found: list[Any] = []

    def collect(array: Any) -> Any:
        found.append((array.shape, array.dtype.str, np.ascontiguousarray(array).tobytes()))
        return array

    def walk(one: Any) -> None:
        if isinstance(one, float):
            found.append(np.float64(one).tobytes())
        elif isinstance(one, np.ndarray) and one.dtype != object:
            collect(one)
        elif isinstance(one, list | tuple):
            for part in one:
                walk(part)
        elif isinstance(one, dict):
            for part in one.values():
                walk(part)

    walk(value)
    return found


def make_call(source: Source, name: str) -> Call:
    """Arguments that fit, then changed."""
    arguments, options = _built(source, name)

    def moved(array: Any) -> Any:
        return in_another_layout(source, array) if chance(source, 25) else array

    if name not in UPDATES:
        arguments, options = each_array(arguments, moved), each_array(options, moved)
    whole = True
    while chance(source, 40):
        whole = False
        if options and chance(source, 50):
            options[choice(source, tuple(options))] = choice(source, ODD)
        else:
            place = source.integer(0, len(arguments) - 1)
            arguments[place] = _broken(source, arguments, place)
    return Call(name, arguments, options, whole)


def _built(source: Source, name: str) -> Arguments:
    dtype = choice(source, ("float32", "float64"))
    arguments, options = BUILDERS[name](source, dtype)
    return list(arguments), dict(options)


def _broken(source: Source, arguments: list[Any], place: int) -> Any:
    """Something instead of an argument: another one of the same call (they then overlap), or worse."""
    value = arguments[place]
    if chance(source, 20):
        return choice(source, arguments)
    if isinstance(value, list | tuple) and value and chance(source, 70):
        parts = list(value)
        at = source.integer(0, len(parts) - 1)
        parts[at] = broken(source, parts[at])
        return type(value)(parts) if type(value) in (list, tuple) else parts
    return broken(source, value)


def check(call: Call) -> str:
    """What came of it: "answered", or the name of the refusal's type.

    Raises:
        AssertionError: a promise is broken.
    """
    before = bits([call.arguments, call.options])
    plain = Call(
        call.name, each_array(call.arguments, copied), each_array(call.options, copied), call.whole
    )
    try:
        with np.errstate(all="ignore"):
            result = call.run()
    except REFUSALS as refusal:
        assert bits([call.arguments, call.options]) == before, "a refused call changed arguments"
        if not isinstance(refusal, MemoryError):
            text = str(refusal)
            assert any(name in text for name in parameters(call.name)), f"names no argument: {text}"
        return type(refusal).__name__
    if call.name not in UPDATES and call.name not in UPDATED:
        assert bits([call.arguments, call.options]) == before, "arguments were changed"
    if call.whole:
        assert bits(result) == bits(plain.run()), "another layout gives other bits"
    return "answered"


def one(seed: int, number: int) -> str:
    """A call by its number; what came of it.

    Raises:
        AssertionError: a promise is broken; it says how to see that again.
    """
    source = RandomSource(seed, number)
    name = NAMES[number % len(NAMES)]
    isa = choice(source, tbptt_fast.available_isas())
    with tbptt_fast.isa(isa), tbptt_fast.num_threads(source.integer(1, 3)):
        try:
            call = make_call(source, name)
        except ValueError:  # a backward pass whose forward pass has no such shapes
            return "not built"
        try:
            return check(call)
        except Exception as problem:
            text = f"{name} (--seed {seed} --only {number}): {type(problem).__name__}: {problem}"
            raise AssertionError(text) from problem


def run(calls: int, seed: int) -> tuple[Counter[str], list[str]]:
    """So many calls: what came of them, and the broken promises."""
    found: Counter[str] = Counter()
    failures = []
    for number in range(calls):
        try:
            found[one(seed, number)] += 1
        except AssertionError as failure:
            failures.append(str(failure))
    return found, failures


def main(arguments: Sequence[str] | None = None) -> int:
    """The long form."""
    parser = argparse.ArgumentParser(description="Call every public function at random.")
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this call alone, to see it fail again")
    given = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    if given.only is not None:
        print(one(given.seed, given.only))
        return 0
    found, failures = run(given.calls, given.seed)
    print(*failures[:100], sep="\n")
    counts = ", ".join(f"{count} {name}" for name, count in found.most_common())
    print(
        f"fuzz: {given.calls} calls of {len(NAMES)} functions, seed {given.seed}: {counts}, "
        f"{len(failures)} failures"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
