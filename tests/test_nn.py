"""Modules: finite differences, time and states, dropout, names and errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tbptt_fast import nn

from .cases import CELLS, assert_identical
from .nn_cases import (
    BATCH,
    HIDDEN,
    INPUTS,
    LENGTH,
    STEPS,
    compare,
    flat,
    make,
    make_state,
    named,
    normal,
    run,
)

cells = pytest.mark.parametrize("cell", CELLS)


# ---- finite differences


@cells
def test_gradients_of_a_whole_model_are_the_slopes_of_its_loss(cell: str) -> None:
    model = nn.Sequential(
        nn.Linear(4, INPUTS, activation="tanh", seed=1, dtype="float64"),
        make(cell, 2, dropout=0.3),
        nn.Linear(HIDDEN, 2, seed=2, dtype="float64"),
    )
    x, state = normal(STEPS, BATCH, 4), (None, make_state(cell, 2, seed=3), None)
    is_init = np.random.default_rng(1).random((STEPS, BATCH)) < 0.2
    masks = model.rng_state()
    y, new_state, tape = model.forward(x, state, is_init=is_init)
    weights = normal(*y.shape, seed=4), [normal(*a.shape, seed=5) for a in flat(new_state)]
    entry = tuple(weights[1]) if cell == "lstm" else weights[1][0]
    grads = model.backward(tape, weights[0], grad_state=(None, entry, None))

    def loss() -> float:
        model.set_rng_state(masks)
        y, new_state, _ = model.forward(x, state, is_init=is_init)
        pairs = zip([y, *flat(new_state)], [weights[0], *weights[1]], strict=True)
        return float(sum((a * b).sum() for a, b in pairs))

    pairs = [(x, grads.x), *zip(flat(state), flat(grads.state), strict=True)]
    pairs += [(p, grads.params[name]) for name, p in model.parameters().items()]
    for i, (array, gradient) in enumerate(pairs):
        assert array.shape == gradient.shape
        direction = normal(*array.shape, seed=6 + i)
        kept, values = array.copy(), []
        for sign in (1, -1):
            array[...] = kept + sign * 1e-6 * direction
            values.append(loss())
        array[...] = kept
        slope = (values[0] - values[1]) / 2e-6
        assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-6, abs=1e-7)


# ---- time, windows, states


@cells
def test_two_calls_with_a_state_between_equal_one(cell: str) -> None:
    module, x = make(cell, 2), normal(STEPS, BATCH, INPUTS)
    whole = run(module, x)
    first, middle, tape_1 = module.forward(x[:4])
    second, last, tape_2 = module.forward(x[4:], middle)
    grad_y = normal(STEPS, BATCH, HIDDEN, seed=9)
    grad_last: Any = [normal(*a.shape, seed=8) for a in flat(last)]
    grad_last = tuple(grad_last) if cell == "lstm" else grad_last[0]
    late = module.backward(tape_2, grad_y[4:], grad_state=grad_last)
    early = module.backward(tape_1, grad_y[:4], grad_state=late.state)
    joined = nn.Gradients(
        np.concatenate([early.x, late.x]),
        early.state,
        {name: early.params[name] + late.params[name] for name in early.params},
    )
    compare(named(np.concatenate([first, second]), last, joined), whole, 2 * LENGTH)


@cells
@pytest.mark.parametrize("truncation", [None, 2, (1, 3), (2, 5)])
def test_layers_are_truncated_one_by_one(cell: str, truncation: Any) -> None:
    stack = make(cell, 2)
    weights, chain = stack.state_dict(), nn.Sequential(make(cell), make(cell, inputs=HIDDEN))
    chain.load_state_dict({f"{name[-1]}.{name[:-1]}0": array for name, array in weights.items()})
    x, grad_y = normal(STEPS, BATCH, INPUTS), normal(STEPS, BATCH, HIDDEN, seed=9)
    y, _, tape = stack.forward(x)
    grads = stack.backward(tape, grad_y, truncation=truncation)
    chain_y, _, chain_tape = chain.forward(x)
    expected = chain.backward(chain_tape, grad_y, truncation=truncation)
    renamed = {f"{n[2:-1]}{n[0]}": g for n, g in expected.params.items()}
    assert_identical(
        {"y": y, "x": grads.x, **grads.params}, {"y": chain_y, "x": expected.x} | renamed
    )


@cells
def test_inference_equals_forward_and_takes_single_steps(cell: str) -> None:
    model = nn.Sequential(make(cell, 2, dropout=0.5), nn.Linear(HIDDEN, 2, seed=0, dtype="float64"))
    x = normal(STEPS, BATCH, INPUTS)
    masks = model.rng_state()
    whole, last = model(x)
    assert model.rng_state() == masks, "inference draws no masks"
    assert_identical({"y": model.eval().forward(x)[0]}, {"y": whole})
    state, steps = None, []
    for t in range(STEPS):
        y, state = model(x[t : t + 1], state)
        steps.append(y)
    compare(
        named(np.concatenate(steps), state, nn.Gradients(None, None, {})),
        named(whole, last, nn.Gradients(None, None, {})),
    )


def test_a_tape_runs_backward_twice_and_only_in_its_own_module() -> None:
    module, other = make("lstm", 2, dropout=0.2), make("lstm", 2, dropout=0.2)
    y, _, tape = module.forward(normal(STEPS, BATCH, INPUTS))
    first, second = (module.backward(tape, y, needs_x=False) for _ in range(2))
    assert first.x is None
    assert_identical(first.params, second.params)
    assert tape.nbytes > y.nbytes
    assert repr(tape) == f"<Tape of LSTM, {tape.nbytes} bytes>"
    with pytest.raises(
        ValueError, match=r"LSTM.backward: tape: expected one of this module, got <T"
    ):
        other.backward(tape, y)
    with pytest.raises(
        ValueError, match=r"LSTM.backward: tape: expected one of this module, got No"
    ):
        module.backward(None, y)


def test_gradient_of_the_state_alone() -> None:
    module = make("lstm", 2)
    x = normal(STEPS, BATCH, INPUTS)
    y, (h, c), tape = module.forward(x)
    grad_c = normal(*c.shape)
    found = module.backward(tape, None, grad_state=(None, grad_c))
    expected = module.backward(tape, np.zeros_like(y), grad_state=(np.zeros_like(h), grad_c))
    assert_identical({"x": found.x, **found.params}, {"x": expected.x, **expected.params})


# ---- dropout


def test_dropout_masks_come_from_the_generator_and_keep_the_mean() -> None:
    module = make("gru", 2, dropout=0.25)
    x = normal(STEPS, BATCH, INPUTS)
    rng = np.random.default_rng()
    rng.bit_generator.state = module.rng_state()["dropout"]
    mask = rng.random((STEPS, BATCH, HIDDEN), np.float32) >= 0.25
    y, _, _ = module.forward(x)

    weights = module.state_dict()
    lower, upper = make("gru"), make("gru", inputs=HIDDEN)
    lower.load_state_dict({n: a for n, a in weights.items() if n.endswith("l0")})
    upper.load_state_dict({n[:-1] + "0": a for n, a in weights.items() if n.endswith("l1")})
    hidden, _ = lower(x)
    assert_identical({"y": y}, {"y": upper(hidden * mask * (1 / 0.75))[0]})


def test_dropout_is_reproducible_and_resumable() -> None:
    x = normal(STEPS, BATCH, INPUTS)
    one, two = (nn.Sequential(make("rnn_tanh", 3, dropout=0.5)) for _ in range(2))
    assert_identical({"y": one.forward(x)[0]}, {"y": two.forward(x)[0]})
    state = one.rng_state()
    assert list(state) == ["0.dropout"]
    later = one.forward(x)[0]
    two.forward(x)
    two.forward(x)
    two.set_rng_state(state)
    assert_identical({"y": two.forward(x)[0]}, {"y": later})
    with pytest.raises(
        ValueError, match=r"set_rng_state: missing \['0.dropout'\], unexpected \[\]"
    ):
        two.set_rng_state({})


def test_a_bad_rng_state_changes_nothing() -> None:
    model = nn.Sequential(*(make("gru", 2, INPUTS, dropout=0.5, seed=s) for s in (1, 2)))
    before = model.rng_state()
    other = nn.Sequential(*(make("gru", 2, INPUTS, dropout=0.5, seed=s) for s in (3, 4)))
    state = other.rng_state()
    state["1.dropout"] = {**state["1.dropout"], "bit_generator": "unknown"}
    with pytest.raises(ValueError, match="PCG64"):
        model.set_rng_state(state)
    assert model.rng_state() == before


# ---- parameters


def test_parameters_are_live_named_as_in_torch_and_contiguous() -> None:
    model = nn.Sequential(
        nn.Embedding(9, INPUTS, seed=0),
        make("gru", 2, bias=False, dtype="float32"),
        nn.Sequential(nn.Linear(HIDDEN, 4, seed=1), nn.Linear(4, 2, False, seed=2)),
    )
    parameters = model.parameters()
    assert {name: array.shape for name, array in parameters.items()} == {
        "0.weight": (9, INPUTS),
        "1.weight_ih_l0": (3 * HIDDEN, INPUTS),
        "1.weight_hh_l0": (3 * HIDDEN, HIDDEN),
        "1.weight_ih_l1": (3 * HIDDEN, HIDDEN),
        "1.weight_hh_l1": (3 * HIDDEN, HIDDEN),
        "2.0.weight": (4, HIDDEN),
        "2.0.bias": (4,),
        "2.1.weight": (2, 4),
    }
    for array in parameters.values():
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.dtype == np.float32
    ids = np.zeros((2, 1), np.int64)
    before, _ = model(ids)
    saved = model.state_dict()
    parameters["2.1.weight"] *= 2
    assert_identical({"y": model(ids)[0]}, {"y": 2 * before})
    model.load_state_dict(saved)
    assert parameters["2.1.weight"] is model.parameters()["2.1.weight"]
    assert_identical({"y": model(ids)[0]}, {"y": before})


def test_gradients_have_the_names_and_shapes_of_the_parameters() -> None:
    model = nn.Sequential(nn.Embedding(9, INPUTS, seed=0), make("lstm", 2, dtype="float32"))
    y, _, tape = model.forward(np.zeros((STEPS, BATCH), np.int32))
    grads = model.backward(tape, y)
    assert grads.x is None
    assert [(n, g.shape) for n, g in grads.params.items()] == [
        (n, p.shape) for n, p in model.parameters().items()
    ]


@pytest.mark.parametrize(
    ("build", "bound"),
    [
        (lambda seed: nn.LSTM(3, 64, 2, seed=seed), 1 / 8),
        (lambda seed: nn.Linear(64, 100, seed=seed), 1 / 8),
    ],
)
def test_initialisation_is_uniform_and_seeded(build: Callable[[int], Any], bound: float) -> None:
    weights = build(1).state_dict()
    assert_identical(weights, build(1).state_dict())
    values = np.concatenate([a.ravel() for a in weights.values()])
    assert np.abs(values).max() <= bound
    assert values.std() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert abs(values.mean()) < 0.02 * bound
    assert (build(2).parameters()[next(iter(weights))] != next(iter(weights.values()))).any()


def test_embedding_starts_from_a_normal_distribution() -> None:
    weight = nn.Embedding(100, 100, seed=1).parameters()["weight"]
    assert weight.std() == pytest.approx(1, rel=0.02)


def test_a_state_dict_that_does_not_fit_changes_nothing() -> None:
    module = make("gru")
    before, good = module.state_dict(), make("gru", seed=7).state_dict()
    last = "bias_hh_l0"
    bad: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({last: good[last][:-1]}, ValueError, r"bias_hh_l0: expected shape \[18\], got \[17\]"),
        ({last: good[last].astype("f4")}, TypeError, "expected dtype float64, got float32"),
        ({last: good[last].astype(">f8")}, TypeError, "expected dtype float64, got >f8"),
        ({last: good[last].tolist()}, TypeError, "bias_hh_l0: expected an array, got list"),
        ({"bias_hh_l9": good[last]}, ValueError, r"missing \[\], unexpected \['bias_hh_l9'\]"),
    ]
    for change, error, message in bad:
        with pytest.raises(error, match=f"GRU.load_state_dict: .*{message}"):
            module.load_state_dict({**good, **change})
        assert_identical(module.state_dict(), before)
    del good[last]
    with pytest.raises(ValueError, match=r"missing \['bias_hh_l0'\], unexpected \[\]"):
        module.load_state_dict(good)
    assert_identical(module.state_dict(), before)
    module.load_state_dict({**good, "head": before[last]}, strict=False)
    assert_identical(module.state_dict(), {**good, last: before[last]})


def test_training_flag_reaches_children() -> None:
    inner = make("gru", 2, dropout=0.5)
    model = nn.Sequential(nn.Sequential(inner))
    assert model.eval() is model
    assert not inner.training
    assert model.train() is model
    assert inner.training
    assert repr(model) == "Sequential(Sequential(GRU(5, 6, 2)))"


# ---- errors

untyped: Any = nn  # wrong types on purpose


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: untyped.GRU(0, 4),
            ValueError,
            "GRU: input_size: expected a positive integer, got 0",
        ),
        (
            lambda: untyped.LSTM(4, 2.5),
            ValueError,
            "LSTM: hidden_size: expected a positive .* got 2.5",
        ),
        (lambda: untyped.GRU(4, 4, 0), ValueError, "GRU: num_layers: expected a positive .* got 0"),
        (
            lambda: untyped.GRU(4, 4, 2, dropout=1.0),
            ValueError,
            r"expected a value in \[0, 1\), got 1.0",
        ),
        (lambda: untyped.GRU(4, 4, 2, dropout=np.nan), ValueError, r"GRU: dropout: .* got nan"),
        (lambda: untyped.GRU(4, 4, dropout=0.5), ValueError, "expected 0 for one layer, got 0.5"),
        (
            lambda: untyped.GRU(4, 4, dtype="int32"),
            TypeError,
            "GRU: dtype: expected float32 or .* int32",
        ),
        (
            lambda: untyped.RNN(4, 4, nonlinearity="sin"),
            ValueError,
            "expected tanh or relu, got 'sin'",
        ),
        (lambda: untyped.Linear(4, 0), ValueError, "Linear: out_features: expected a positive"),
        (lambda: untyped.Linear(4, 4, activation="gelu"), ValueError, "activation: .* got 'gelu'"),
        (lambda: untyped.Linear(4, 4, dtype="f2"), TypeError, "Linear: dtype: .* got float16"),
        (
            lambda: untyped.Embedding(0, 4),
            ValueError,
            "Embedding: num_embeddings: expected a positive",
        ),
        (lambda: untyped.Embedding(4, 4, dtype=">f4"), TypeError, "Embedding: dtype: .* got >f4"),
        (
            lambda: untyped.Sequential(np.tanh),
            TypeError,
            "Sequential: 0: expected a Module, got ufunc",
        ),
        (lambda: untyped.Sequential(*[nn.Linear(2, 2)] * 2), ValueError, "Sequential: 1: .* twice"),
    ],
)
def test_bad_arguments(build: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


H, HC = np.zeros((2, BATCH, HIDDEN)), np.zeros((1, BATCH, HIDDEN))


@pytest.mark.parametrize(
    ("build", "state", "error", "message"),
    [
        (lambda: make("gru", 2), HC, ValueError, r"expected shape \[2, B, 6\], got \[1, 3, 6\]"),
        (lambda: make("gru", 2), H[..., :5], ValueError, r"\[2, B, 6\], got \[2, 3, 5\]"),
        (lambda: make("gru", 2), H[0], ValueError, r"expected shape \[2, B, 6\], got \[3, 6\]"),
        (lambda: make("gru", 2), (H, H), TypeError, "GRU: state: expected an array, got tuple"),
        (lambda: make("lstm", 2), H, ValueError, r"expected a pair \(h, c\), got ndarray"),
        (lambda: make("lstm", 2), (H,), ValueError, r"expected a pair \(h, c\), got 1 items"),
        (lambda: make("lstm", 2), (H, HC), ValueError, r"LSTM: state\[1\]: expected shape \[2"),
        (lambda: nn.Linear(5, 2, dtype="f8"), H, ValueError, "state: expected None, got ndarray"),
        (lambda: nn.Sequential(make("gru")), HC, ValueError, "expected a tuple of 1, got ndarray"),
        (lambda: nn.Sequential(make("gru")), (), ValueError, "expected a tuple of 1, got 0 items"),
    ],
)
def test_bad_states(
    build: Callable[[], nn.Module], state: Any, error: type[Exception], message: str
) -> None:
    module, x = build(), normal(STEPS, BATCH, INPUTS)
    with pytest.raises(error, match=message):
        module.forward(x, state)
    with pytest.raises(error, match=message):
        module(x, state)
    y, _, tape = module.forward(x)
    with pytest.raises(error, match=message.replace("state", "grad_state")):
        module.backward(tape, y, grad_state=state)


def test_bad_inputs() -> None:
    module = make("lstm")
    with pytest.raises(ValueError, match=r"LSTM: x: expected shape \[T, B, 5\], got \[7, 3, 6\]"):
        module.forward(normal(STEPS, BATCH, INPUTS + 1))
    with pytest.raises(ValueError, match=r"LSTM: x: expected shape \[T, B, 5\], got \[3, 5\]"):
        module(normal(BATCH, INPUTS))
    with pytest.raises(TypeError, match="LSTM: x: expected dtype float64, got float32"):
        module.forward(normal(STEPS, BATCH, INPUTS, dtype="float32"))
    with pytest.raises(TypeError, match="LSTM: x: expected an array, got list"):
        module.forward([[[1.0]]])
    is_init = np.zeros((STEPS, BATCH + 1), np.bool_)
    with pytest.raises(ValueError, match=r"lstm_forward: is_init: expected shape \[7, 3\]"):
        module.forward(normal(STEPS, BATCH, INPUTS), is_init=is_init)
    y, _, tape = module.forward(normal(STEPS, BATCH, INPUTS))
    with pytest.raises(ValueError, match="lstm_backward: truncation: "):
        module.backward(tape, y, truncation=(3, 2))
    linear = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"Linear: x: expected shape \[\.\.\., 2\], got \[\]"):
        linear(np.array(1, np.float32))
    _, _, tape = linear.forward(np.zeros((1, 2), np.float32))
    with pytest.raises(TypeError, match=r"Linear.backward: grad_y: expected an array, got None"):
        linear.backward(tape, None)


def test_a_module_without_passes_says_so() -> None:
    module = nn.Module()
    with pytest.raises(NotImplementedError, match="Module does not implement _apply"):
        module.forward(np.zeros(1))
    with pytest.raises(NotImplementedError, match="Module does not implement backward"):
        module.backward(nn.Tape(module, ()), None)
