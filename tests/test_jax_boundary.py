"""What the functions for JAX refuse, and that nothing crashes that XLA could call."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from .jax_cases import Arrays, jax, ours

from tbptt_fast.jax import _targets  # isort: skip

jnp = jax.numpy
RECURRENT = ("rnn", "gru", "lstm")
CONV_RECURRENT = ("convrnn", "convgru", "convlstm")
GATES = {"rnn": 1, "gru": 3, "lstm": 4}


def zeros(*shape: int, dtype: Any = "float32") -> Any:
    return np.zeros(shape, dtype)


def arguments(op: str) -> Arrays:
    """Small arrays that are accepted: T 3, B 2, five inputs, four units; images of 6 by 7."""
    if op in ("conv1d", "conv2d"):
        rank = int(op[4])
        return {"x": zeros(2, 4, *(6, 7)[:rank]), "w": zeros(6, 2, *(3, 3)[:rank]), "b": zeros(6)}
    image, kernel = ((6, 7), (3, 3)) if op in CONV_RECURRENT else ((), ())
    rows = GATES[op.removeprefix("conv")] * 4
    state = zeros(2, 4, *image)
    return {
        "x": zeros(3, 2, 5, *image),
        "hx": (state, state) if op.endswith("lstm") else state,
        "w_ih": zeros(rows, 5, *kernel),
        "w_hh": zeros(rows, 4, *kernel),
        "b_ih": zeros(rows),
        "b_hh": zeros(rows),
        "is_init": zeros(3, 2, dtype=bool),
        "carry_scale": zeros(3, 2),
    }


def call(op: str, **changes: Any) -> Any:
    given = arguments(op) | changes
    if op in ("conv1d", "conv2d"):
        given = {"groups": 2} | given
    return getattr(ours, op)(**given)


OPS = (*RECURRENT, *CONV_RECURRENT, "conv1d", "conv2d")
every_op = pytest.mark.parametrize("op", OPS)
recurrent = pytest.mark.parametrize("op", [*RECURRENT, *CONV_RECURRENT])


def refused(error: type[Exception], text: str, op: str, **changes: Any) -> None:
    """By the function, and by the same one when it is traced."""

    def run() -> Any:
        return call(op, **changes)

    with pytest.raises(error, match=text):
        run()
    with pytest.raises(error, match=text):
        jax.eval_shape(run)


@every_op
@pytest.mark.parametrize("dtype", ["float16", "int32", "bool", "complex64"])
def test_dtypes(op: str, dtype: str) -> None:
    for name, value in arguments(op).items():
        if name == "hx":
            wrong = jax.tree.map(lambda a: a.astype(dtype), value)
            refused(TypeError, f"^{op}: h: expected float32, got {dtype}", op, hx=wrong)
        elif name == "is_init":
            if dtype != "bool":
                wrong = value.astype(dtype)
                refused(TypeError, f"^{op}: is_init: expected bool, got {dtype}", op, is_init=wrong)
        else:
            kind = "float32 or float64" if name == "x" else "float32"
            text = f"^{op}: {name}: expected {kind}, got {dtype}"
            refused(TypeError, text, op, **{name: value.astype(dtype)})


@every_op
def test_one_dtype(op: str, x64: None) -> None:
    for name, value in arguments(op).items():
        if name in ("x", "is_init"):
            continue
        wrong = jax.tree.map(lambda a: a.astype("float64"), value)
        refused(TypeError, rf"^{op}: \w+: expected float32, got float64", op, **{name: wrong})


@every_op
def test_shapes(op: str) -> None:
    """One more element along every axis of every array, and one axis more."""
    for name, value in arguments(op).items():
        single = value[0] if isinstance(value, tuple) else value
        for axis in range(single.ndim):
            shape = list(single.shape)
            shape[axis] += 1
            free = op.startswith("conv") and name in ("x", "w", "w_ih", "w_hh")
            if free and (axis > 1 or (op in ("conv1d", "conv2d") and (name, axis) == ("x", 0))):
                continue  # the sizes of images and kernels; states say more where there are any
            wrong = zeros(*shape, dtype=single.dtype)
            refused(
                ValueError,
                f"^{op}: ",
                op,
                **{name: (wrong,) * 2 if name == "hx" and op.endswith("lstm") else wrong},
            )
        wrong = single[None]
        refused(
            ValueError,
            f"^{op}: ",
            op,
            **{name: (wrong,) * 2 if name == "hx" and op.endswith("lstm") else wrong},
        )


@every_op
def test_what_must_be_given(op: str) -> None:
    for name in ("x", "w") if op in ("conv1d", "conv2d") else ("x", "w_ih", "w_hh"):
        refused(TypeError, f"^{op}: {name}: expected an array, got None", op, **{name: None})


@pytest.mark.parametrize("op", ["lstm", "convlstm"])
def test_pairs_of_states(op: str) -> None:
    state = arguments(op)["hx"][0]
    refused(TypeError, f"^{op}: hx: expected a pair .h, c., got ndarray", op, hx=state)
    refused(TypeError, f"^{op}: hx: expected a pair .h, c., got int", op, hx=3)
    refused(ValueError, f"^{op}: hx: expected a pair .h, c., got 1 items", op, hx=(state,))
    refused(ValueError, f"^{op}: c: expected shape", op, hx=(state, state[:1]))
    for hx in (None, (state, None), (None, state), [state, state]):
        call(op, hx=hx)


@recurrent
@pytest.mark.parametrize(
    ("truncation", "error"),
    [
        *((given, ValueError) for given in (0, -1, (3, 2), (1, 2, 3))),
        *((given, TypeError) for given in (True, 1.5, "2", (1, None))),
    ],
    ids=str,
)
def test_truncations(op: str, truncation: Any, error: type[Exception]) -> None:
    refused(error, "truncation|integer", op, truncation=truncation)


@pytest.mark.parametrize("op", RECURRENT)
def test_other_options(op: str) -> None:
    refused(ValueError, f"^{op}: backend: expected 'ffi' or 'scan', got 'gpu'", op, backend="gpu")
    nothing = {"w_ih": zeros(0, 5), "w_hh": zeros(0, 0), "b_ih": None, "b_hh": None, "hx": None}
    refused(ValueError, f"^{op}: w_hh: expected at least one unit", op, **nothing)


@pytest.mark.parametrize("op", ["rnn", "convrnn"])
def test_nonlinearities(op: str) -> None:
    text = f"^{op}: nonlinearity: expected 'tanh' or 'relu', got 'sigmoid'"
    refused(ValueError, text, op, nonlinearity="sigmoid")


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"stride": 0}, ValueError, "stride: "),
        ({"stride": 1.0}, TypeError, "stride: "),
        ({"stride": (1, 2, 3)}, ValueError, "stride: "),
        ({"stride": np.ones(1)}, TypeError, "stride: "),
        ({"padding": "around"}, ValueError, "padding: "),
        ({"dilation": 9}, ValueError, "w: "),
        ({"groups": 4}, ValueError, "groups|w: "),
        ({"activation": "gelu"}, ValueError, "activation: "),
        ({"layout": "CHW"}, ValueError, "layout: "),
    ],
    ids=str,
)
@pytest.mark.parametrize("op", ["conv1d", "conv2d"])
def test_options_of_convolutions(op: str, changes: Any, error: type[Exception], text: str) -> None:
    """Also after a call with equal ones: 1.0 is no stride, though it equals 1."""
    call(op)
    refused(error, f"^{op}: .*{text}|^{op}: {text}", op, **changes)


@pytest.mark.parametrize("op", CONV_RECURRENT)
def test_options_of_recurrent_images(op: str) -> None:
    refused(ValueError, f"^{op}: dilation: ", op, dilation=0)
    refused(ValueError, f"^{op}: layout: ", op, layout="CHW")
    refused(TypeError, f"^{op}: recompute: ", op, recompute=1)


# --- derivatives that there are not


@every_op
def test_derivatives_that_are_not_available(op: str) -> None:
    given = arguments(op)
    weight = "w" if op in ("conv1d", "conv2d") else "w_hh"

    def loss(w: Any) -> Any:
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(call(op, **{weight: w})))

    w = given[weight] + np.float32(0.1)
    forward = f"{op}: forward-mode derivatives .* use grad or vjp"
    second = f"{op}: second derivatives are not available"

    def twice(w: Any) -> Any:
        return (jax.grad(loss)(w) ** 2).sum()

    for function in (loss, jax.jit(loss)):
        with pytest.raises(NotImplementedError, match=forward):
            jax.jvp(function, (w,), (w,))
        with pytest.raises(NotImplementedError, match=forward):
            jax.jit(lambda w, f=function: jax.jvp(f, (w,), (w,)))(w)
    for function in (twice, jax.jit(twice)):
        with pytest.raises(NotImplementedError, match=second):
            jax.grad(function)(w)
    with pytest.raises(NotImplementedError, match=second):
        jax.hessian(loss)(w)


# --- what is missing


@every_op
def test_a_module_that_was_built_without(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that says what to do; nothing else computes instead."""
    monkeypatch.setattr(_targets, "_AVAILABLE", False)
    assert not ours.available()
    with pytest.raises(RuntimeError, match=f"^{op}: tbptt_fast was built without.*TBPTT_FAST_JAX"):
        call(op)
    if op in RECURRENT:
        with pytest.raises(RuntimeError, match="backend='scan'"):
            call(op)
        call(op, backend="scan")


def test_optimizers_of_a_module_that_was_built_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_targets, "_AVAILABLE", False)
    one = [zeros(1)]
    with pytest.raises(RuntimeError, match=r"^sgd_step: tbptt_fast was built without"):
        ours.optim.sgd_step(one, one, None, 1.0)
    with pytest.raises(RuntimeError, match=r"^adam_step: tbptt_fast was built without"):
        ours.optim.adam_step(one, one, one, one, None, 1, 1.0)


@pytest.mark.parametrize(
    ("blocked", "text"),
    [
        ("None", "tbptt_fast.jax needs JAX 0.6.1 or later: pip install 'tbptt_fast[jax]'"),
        (
            "types.SimpleNamespace(__version__='0.6.0', __version_info__=(0, 6, 0))",
            "tbptt_fast.jax needs JAX 0.6.1 or later, got 0.6.0",
        ),
    ],
)
def test_without_jax(blocked: str, text: str) -> None:
    code = f"import sys, types; sys.modules['jax'] = {blocked}; import tbptt_fast"
    command = [sys.executable, "-c", f"{code}; print('yes'); import tbptt_fast.jax"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.stdout == "yes\n", run.stderr
    assert f"ImportError: {text}\n" in run.stderr


# --- calls that XLA could make

HUGE = 1 << 62
Numbers = tuple[int, ...]


class Recorded:
    """One native call: what a public function gives to XLA."""

    def __init__(self, name: str, results: Any, inputs: Any, options: dict[str, Any]) -> None:
        self.name, self.options = name, options
        self.results = [(r.shape, r.dtype) for r in results]
        self.inputs = [(a.shape, a.dtype) for a in inputs]

    def run(self, **changes: Any) -> None:
        given = vars(self) | changes
        structs = [jax.ShapeDtypeStruct(*result) for result in given["results"]]
        arrays = [np.zeros(*array) for array in given["inputs"]]
        native = jax.ffi.ffi_call(self.name, structs)
        jax.block_until_ready(jax.jit(lambda *a: native(*a, **given["options"]))(*arrays))

    def refused(self, text: str = "tbptt_fast: expected", **changes: Any) -> None:
        with pytest.raises(jax.errors.JaxRuntimeError, match=text):
            self.run(**changes)

    def answered(self, **changes: Any) -> None:
        """With an error or without."""
        try:
            self.run(**changes)
        except jax.errors.JaxRuntimeError as error:
            assert "tbptt_fast: expected" in str(error)  # noqa: PT017


def record(function: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    found: list[Recorded] = []
    original = jax.ffi.ffi_call

    def recording(name: str, results: Any, **settings: Any) -> Any:
        def given(*inputs: Any, **options: Any) -> Any:
            found.append(Recorded(name, results, inputs, options))
            return original(name, results, **settings)(*inputs, **options)

        return given

    with monkeypatch.context() as patch:
        patch.setattr(jax.ffi, "ffi_call", recording)
        jax.jit(function).lower()
    return found


def one_call(target: str) -> Callable[[], Any]:
    def gradient(op: str) -> Any:
        name = "w" if op == "conv2d" else "w_ih"

        def loss(w: Any) -> Any:
            more = {"activation": "tanh"} if op == "conv2d" else {"truncation": 2}
            return sum(a.sum() for a in jax.tree.leaves(call(op, **{name: w}, **more)))

        return jax.grad(loss)(jnp.asarray(arguments(op)[name]))

    one = [jnp.ones((2, 3)), jnp.ones(4)]
    return {
        "recurrent": lambda: gradient("lstm"),
        "convrecurrent": lambda: gradient("convlstm"),
        "convolution": lambda: gradient("conv2d"),
        "sgd": lambda: ours.optim.sgd_step(one, one, one, 1.0, mu=0.5),
        "adam": lambda: ours.optim.adam_step(one, one, one, one, one, 1, 1.0),
    }[target]


@pytest.mark.parametrize("target", ["recurrent", "convrecurrent", "convolution", "sgd", "adam"])
def test_no_call_of_xla_crashes(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong sizes, dtypes, numbers of arrays and options are errors of XLA."""
    recorded = record(one_call(target), monkeypatch)
    assert len(recorded) == (1 if target in ("sgd", "adam") else 2)
    for native in recorded:
        native.run()
        for kind in ("inputs", "results"):
            arrays = getattr(native, kind)
            for i, (shape, dtype) in enumerate(arrays):
                if not np.prod(shape):
                    continue  # one that is missing
                others = [*arrays[:i], ((int(np.prod(shape)) + 1,), dtype), *arrays[i + 1 :]]
                native.refused(**{kind: others})
                others[i] = (shape, np.int32)
                native.refused(**{kind: others})
            if len(arrays) > 1:  # XLA leaves out a call without results
                native.refused(**{kind: arrays[:-1]})
            native.refused(**{kind: [*arrays, ((1,), np.float32)]})
        native.refused(inputs=[])
        for name, value in native.options.items():
            if name == "exact":
                continue  # which is read on GPUs alone
            rest = {key: other for key, other in native.options.items() if key != name}
            native.refused(f"expected the option {name}", options=rest)
            native.refused(f"expected the option {name}", options=rest | {name: np.float32(1)})
            if isinstance(value, np.ndarray):
                native.refused(options=rest | {name: value[:-1]})
                for i in range(len(value)):
                    for number in (-1, HUGE, 0, value[i] + 1):
                        changed = value.copy()
                        changed[i] = number
                        check = native.refused if number == -1 else native.answered
                        check(options=rest | {name: changed})
            elif isinstance(value, str):
                native.refused(options=rest | {name: "transformer"})
            elif isinstance(value, np.integer):
                for number in (-1, 4, HUGE):
                    native.refused(options=rest | {name: np.int64(number)})


def test_sizes_whose_product_overflows(monkeypatch: pytest.MonkeyPatch) -> None:
    """2^32 images of 2^32 rows have no elements, counted in 64 bits."""
    _, native = record(one_call("convolution"), monkeypatch)
    sizes = native.options["shape"].copy()
    sizes[[0, 4, 6]] = 1 << 32
    _, _, w, _ = native.inputs
    native.refused(
        "expected smaller sizes",
        inputs=[((0,), "float32"), ((0,), "float32"), w, ((0,), "float32")],
        results=[((0,), "float32"), w, ((6,), "float32")],
        options=native.options | {"shape": sizes},
    )
