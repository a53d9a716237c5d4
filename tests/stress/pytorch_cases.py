"""PyTorch's own test cases, as its wheel ships them, for what takes the place of its modules.

    python -m tests.stress.pytorch_cases

Inputs and expected errors are those of `torch.testing._internal`; the checks are those that tests
of PyTorch make of them. Outputs and gradients are equal to torch.nn's up to 1e-5 (float32) or 1e-12
(float64) of the greatest element. `pytorch_functions` does the same for functions.
"""

from __future__ import annotations

import argparse
import copy
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple
from unittest import mock

import torch

import tbptt_fast.torch as ours
from tests.torch_cases import close, leaves, results_and_gradients

from .checks import Check, RefusedError, Report, error_of

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
FAMILIES = re.compile("RNN|GRU|LSTM|Conv")

NO_MODULE = "no module of this kind takes its place"
PROJECTIONS = "projections (proj_size) have no kernel: torch's own code runs"
SECOND = "second derivatives"


class Published(NamedTuple):
    """The lists of PyTorch's cases."""

    modules: list[Any]  # of ModuleInfo
    older: list[dict[str, Any]]  # of modules with options, by name
    functions: list[Any]  # of OpInfo


@cache
def published() -> Published:
    """They take seconds to import, and would forbid changes of PyTorch's global settings."""
    with warnings.catch_warnings(), mock.patch.object(torch.backends, "disable_global_flags"):
        warnings.simplefilter("ignore")
        from torch.testing._internal import common_methods_invocations, common_modules, common_nn

        newer: Callable[[], list[dict[str, Any]]] = common_nn.get_new_module_tests
        older = [*common_nn.module_tests, *newer()]
    return Published(common_modules.module_db, older, common_methods_invocations.op_db)


class Pair(NamedTuple):
    """torch.nn's module and ours with the same parameters, and what they are called with."""

    theirs: Any
    mine: Any
    args: Sequence[Any]
    reference: Callable[..., Any] | None

    def call(self) -> Any:
        return self.mine(*self.args)

    @property
    def tolerance(self) -> float:
        return TOLERANCE[next(self.mine.parameters()).dtype]


def check_results(pair: Pair) -> None:
    """Outputs, gradients, and what the case's own reference says."""
    close(
        results_and_gradients(pair.mine, pair.call, pair.args),
        results_and_gradients(pair.theirs, partial(pair.theirs, *pair.args), pair.args),
        pair.tolerance,
    )
    packed = isinstance(pair.args[0], torch.nn.utils.rnn.PackedSequence)
    if pair.reference is not None and not packed:  # references do not know them
        close(pair.call(), pair.reference(pair.mine, *pair.args), pair.tolerance)


def strided(value: Any) -> Any:
    """The same values with gaps between them."""
    if isinstance(value, torch.Tensor):
        return value.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_()
    return type(value)(map(strided, value)) if isinstance(value, tuple) else value


def check_strided(pair: Pair) -> None:
    """Tensors that are not contiguous change nothing."""
    if isinstance(pair.args[0], torch.nn.utils.rnn.PackedSequence):
        return
    args = [strided(value) for value in pair.args]
    close(
        results_and_gradients(pair.mine, partial(pair.mine, *args), args),
        results_and_gradients(pair.mine, pair.call, pair.args),
        pair.tolerance,
    )


def check_copies(pair: Pair) -> None:
    """A pickled or copied module computes the same; so does one that is printed."""
    assert re.fullmatch(rf"{type(pair.theirs).__name__}\(.*\)", repr(pair.mine))
    for other in (copy.deepcopy(pair.mine), pickle.loads(pickle.dumps(pair.mine))):
        close(other(*pair.args), pair.call(), 0)


def differentiated(pair: Pair) -> tuple[Callable[..., Any], list[Any]]:
    """A function of the tensors that require gradients; they are the module's and the inputs."""
    tensors = [*leaves(pair.args), *pair.mine.parameters()]
    return lambda *_: tuple(leaves(pair.call())), tensors


def check_gradients(pair: Pair, quick: bool) -> None:
    """Against finite differences: each element, or a random direction of all if `quick`."""
    if pair.tolerance == TOLERANCE[torch.float64]:
        assert torch.autograd.gradcheck(*differentiated(pair), fast_mode=quick)


def check_second(pair: Pair) -> None:
    """Kernels have no second derivatives: an error says so, and no wrong number comes out."""
    function, tensors = differentiated(pair)
    first = torch.autograd.grad([y.sum() for y in function()], tensors, create_graph=True)
    total = torch.stack([grad.square().sum() for grad in first]).sum()
    error = error_of(partial(torch.autograd.grad, total, tensors, allow_unused=True))
    assert "second derivatives are not available" in str(error), error
    raise RefusedError(SECOND)


def procedures(quick: bool) -> dict[str, Callable[[Pair], None]]:
    return {
        "results": check_results,
        "strided": check_strided,
        "copies": check_copies,
        "gradients": partial(check_gradients, quick=quick),
        "second": check_second,
    }


def check_pair(make: Callable[[], Pair], procedure: Callable[[Pair], None]) -> None:
    """On native kernels; what has none runs torch's own code, is checked, and counts as refused."""
    torch.manual_seed(0)
    pair = make()
    reason = pair.mine.missing_kernel()
    if reason is None:
        procedure(pair)
        return
    if procedure is not check_second:  # torch's own has them
        procedure(pair)
    assert "proj_size" in reason, reason
    raise RefusedError(PROJECTIONS)


def refuse(reason: str) -> None:
    raise RefusedError(reason)


def module_pair(native: Any, info: Any, given: Any, dtype: Any, training: bool) -> Pair:
    arguments, call = given.constructor_input, given.forward_input
    theirs, mine = (
        kind(*arguments.args, **arguments.kwargs).to(dtype).train(training)
        for kind in (info.module_cls, native)
    )
    mine.load_state_dict(theirs.state_dict())
    assert not call.kwargs
    return Pair(theirs, mine, call.args, given.reference_fn)


def module_checks(dtypes: Sequence[Any], quick: bool) -> Iterator[Check]:
    """The list of modules, each with its inputs."""
    for info in published().modules:
        family = info.module_cls.__name__
        if not FAMILIES.search(family):
            continue
        native = getattr(ours, family, None)
        options = {"with_packed_sequence": True} if family in ("RNN", "GRU") else {}
        for dtype in dtypes:
            for training in (True,) if quick else (True, False):
                inputs = info.module_inputs_func(info, "cpu", dtype, True, training, **options)
                # the options come in powers of two: one in three meets all of them
                for i, given in list(enumerate(inputs))[:: 3 if quick else 1]:
                    name = f"{dtype} {'train' if training else 'eval'} {i}"
                    if native is None:
                        yield Check(family, name, partial(refuse, NO_MODULE))
                        continue
                    make = partial(module_pair, native, info, given, dtype, training)
                    for what, procedure in procedures(quick).items():
                        run = partial(check_pair, make, procedure)
                        yield Check(family, f"{name} {what}", run)


def check_error(native: Any, given: Any) -> None:
    """The error of construction, or of the call, with the message that PyTorch promises."""
    arguments = given.module_error_input.constructor_input

    def construct() -> Any:
        return native(*arguments.args, **arguments.kwargs)

    if given.error_on.name == "CONSTRUCTION_ERROR":
        error = error_of(construct)
    else:
        module, call = construct(), given.module_error_input.forward_input
        error = error_of(partial(module, *call.args, **call.kwargs))
    assert isinstance(error, given.error_type), error
    assert re.search(given.error_regex, str(error)), error


def error_checks(dtypes: Sequence[Any], quick: bool) -> Iterator[Check]:
    """What modules must refuse, and how."""
    for info in published().modules:
        native = getattr(ours, info.module_cls.__name__, None)
        if native is None or info.module_error_inputs_func is None:
            continue
        for dtype in dtypes:
            found = info.module_error_inputs_func(info, "cpu", dtype, False, False)
            for i, given in enumerate(found):
                run = partial(check_error, native, given)
                yield Check(info.module_cls.__name__, f"{dtype} error {i}", run)


def older_module(case: dict[str, Any]) -> Any:
    if "constructor" in case:
        return case["constructor"]()
    return getattr(torch.nn, case["module_name"])(*case.get("constructor_args", ()))


def older_pair(case: dict[str, Any], dtype: Any) -> Pair:
    theirs = older_module(case).to(dtype)
    mine = copy.deepcopy(theirs)
    assert ours.accelerate(mine).swapped
    size = case["input_size"]
    return Pair(theirs, mine, [torch.randn(size, dtype=dtype, requires_grad=True)], None)


def older_checks(dtypes: Sequence[Any], quick: bool) -> Iterator[Check]:
    """The older lists of modules, which have more of the options of convolutions."""
    for case in published().older:
        name = case.get("fullname") or case["module_name"] + "_" + case.get("desc", "")
        if not FAMILIES.search(name):
            continue
        family = type(older_module(case)).__name__
        if not FAMILIES.search(family):
            continue
        for dtype in dtypes:
            if getattr(ours, family, None) is None:
                yield Check(family, f"{name} {dtype}", partial(refuse, NO_MODULE))
                continue
            make = partial(older_pair, case, dtype)
            for what, procedure in procedures(quick).items():
                run = partial(check_pair, make, procedure)
                yield Check(family, f"{name} {dtype} {what}", run)


def run_modules(dtypes: Sequence[Any] = tuple(TOLERANCE), quick: bool = False) -> Report:
    """Every published case of a recurrent layer or a convolution."""
    report = Report()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections")
        warnings.filterwarnings("ignore", "Using padding='same'")  # torch.nn's copies of the input
        warnings.filterwarnings("ignore", "Lazy modules")
        for checks in (module_checks, error_checks, older_checks):
            report.run(checks(dtypes, quick))
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    from .pytorch_functions import run_functions

    parser = argparse.ArgumentParser(description="Run PyTorch's own test cases.")
    parser.parse_args(arguments)
    status = run_modules().print("PyTorch's cases of modules")
    return run_functions().print("PyTorch's cases of functions") | status


if __name__ == "__main__":
    raise SystemExit(main())
