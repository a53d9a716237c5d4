"""PyTorch's own test cases in short; `python -m tests.stress.pytorch_cases` runs all of them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest")  # which the published cases import

from .stress.checks import Check, Report  # noqa: E402
from .stress.pytorch_cases import (  # noqa: E402
    NO_MODULE,
    PROJECTIONS,
    SECOND,
    Pair,
    check_error,
    check_results,
    published,
    run_modules,
)
from .stress.pytorch_functions import (  # noqa: E402
    ADAPTIVE,
    DILATED,
    DIVISOR,
    EMPTY,
    NO_FUNCTION,
    run_functions,
)
from .torch_cases import pair  # noqa: E402

# What PyTorch has cases for, and there is no equivalent of.
MODULES = {
    **{kind: {SECOND} for kind in ("Conv1d", "Conv2d", "GRU", "RNN")},
    "LSTM": {PROJECTIONS, SECOND},
    **{kind: {NO_MODULE} for kind in ("GRUCell", "LSTMCell", "RNNCell", "Conv3d")},
    **{f"ConvTranspose{n}d": {NO_MODULE} for n in (1, 2, 3)},
    **{f"LazyConv{n}d": {NO_MODULE} for n in (1, 2, 3)},
    **{f"LazyConvTranspose{n}d": {NO_MODULE} for n in (1, 2, 3)},
}
FUNCTIONS = {
    "adaptive_avg_pool1d": {ADAPTIVE},
    "adaptive_avg_pool2d": {ADAPTIVE},
    "avg_pool2d": {DIVISOR},
    "max_pool1d": {DILATED, EMPTY},
    "max_pool2d": {DILATED},
    **{f"adaptive_max_pool{n}d": {NO_FUNCTION} for n in (1, 2, 3)},
    **{f"fractional_max_pool{n}d": {NO_FUNCTION} for n in (2, 3)},
    **{f"max_unpool{n}d": {NO_FUNCTION} for n in (1, 2, 3)},
    **{
        f"{name}3d": {NO_FUNCTION}
        for name in ("adaptive_avg_pool", "avg_pool", "conv", "conv_transpose", "max_pool")
    },
}


def test_modules() -> None:
    report = run_modules((torch.float64,), quick=True)
    assert report.failed == []
    assert report.reasons() == MODULES
    assert report.passed.keys() == {"Conv1d", "Conv2d", "GRU", "LSTM", "RNN"}
    assert min(report.passed.values()) > 30


def test_functions() -> None:
    report = run_functions((torch.float32,), every=61)
    assert report.failed == []
    assert report.reasons() == {f"nn.functional.{name}": why for name, why in FUNCTIONS.items()}
    assert all(report.passed[f"nn.functional.{n}"] > 5 for n in ("conv1d", "conv_transpose2d"))


def test_what_is_wrong_is_found() -> None:
    """A parameter that differs, an error that is missing: checks that cannot fail show nothing."""
    theirs, mine = pair("LSTM", 3, 4)
    with torch.no_grad():
        mine.bias_hh_l0[2] += 1e-3
    x = torch.randn(5, 2, 3, requires_grad=True)
    given = next(info for info in published().modules if info.module_cls is torch.nn.GRU)
    (first, *_) = given.module_error_inputs_func(given, "cpu", torch.float32, False, False)
    report = Report().run(
        [
            Check("LSTM", "changed", lambda: check_results(Pair(theirs, mine, [x], None))),
            Check("GRU", "no error", lambda: check_error(lambda *_: None, first)),
        ]
    )
    assert [failure.split(":")[0] for failure in report.failed] == ["LSTM changed", "GRU no error"]
    assert report.print("found") == 1


def test_global_settings_can_be_changed_afterwards() -> None:
    published()
    torch.backends.mkldnn.set_flags(torch.backends.mkldnn.enabled)
    assert not torch.backends.flags_frozen()
