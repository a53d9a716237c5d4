"""tbptt_fast.keras.SimpleRNN, GRU, LSTM: Keras's in every option, and what they add."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .keras_cases import (
    BACKEND,
    DTYPES,
    RECURRENT,
    arrays,
    close,
    keras,
    ours,
    pair,
    random,
    results_and_gradients,
)

kinds = pytest.mark.parametrize("kind", RECURRENT)
STEPS, ROWS, INPUTS, UNITS = 7, 5, 3, 4
SHAPE = (None, STEPS, INPUTS)


def some_mask() -> Any:
    """Rows without gaps, with some, with leading and trailing ones, and without any step."""
    mask = np.random.default_rng(2).random((ROWS, STEPS)) > 0.4
    mask[0], mask[1] = True, False
    mask[2, :2], mask[2, 2] = False, True
    mask[3, 4:], mask[3, 3] = False, True
    return mask


MASKS = {
    "no mask": None,
    "right": np.arange(STEPS) < np.array([[7], [1], [4], [0], [3]]),
    "any": some_mask(),
}


def states(kind: str, dtype: str = "float32") -> list[Any]:
    return [random(ROWS, UNITS, dtype=dtype, seed=i) for i in range(1 + (kind == "LSTM"))]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"return_sequences": True},
    {"return_sequences": True, "return_state": True, "use_bias": False},
    {"return_sequences": True, "return_state": True, "go_backwards": True},
    {"return_state": True, "go_backwards": True},
]


@kinds
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "default")
def test_like_keras(kind: str, options: dict[str, Any], mask: str) -> None:
    """In float64; layers that return states are given some."""
    theirs, mine = pair(kind, SHAPE, UNITS, dtype="float64", **options)
    x, steps = random(ROWS, STEPS, INPUTS, dtype="float64"), MASKS[mask]
    hx = states(kind, "float64") if "return_state" in options else []

    def call(layer: Any) -> Any:
        return lambda x, *hx: layer(x, initial_state=list(hx) or None, mask=steps)

    given = results_and_gradients(mine, call(mine), [x, *hx])
    close(given, results_and_gradients(theirs, call(theirs), [x, *hx]))


@kinds
@pytest.mark.parametrize("mask", MASKS)
def test_like_keras_in_float32(kind: str, mask: str) -> None:
    theirs, mine = pair(kind, SHAPE, UNITS, return_sequences=True, return_state=True)
    x, steps = random(ROWS, STEPS, INPUTS), MASKS[mask]
    expected = results_and_gradients(theirs, lambda x: theirs(x, mask=steps), [x])
    close(results_and_gradients(mine, lambda x: mine(x, mask=steps), [x]), expected)


@kinds
@pytest.mark.parametrize("return_sequences", [False, True])
def test_zeros_for_masked_steps(kind: str, return_sequences: bool) -> None:
    options = {"return_sequences": return_sequences, "zero_output_for_mask": True}
    theirs, mine = pair(kind, SHAPE, UNITS, **options)
    x, mask = random(ROWS, STEPS, INPUTS), MASKS["any"]
    expected = results_and_gradients(theirs, lambda x: theirs(x, mask=mask), [x])
    close(results_and_gradients(mine, lambda x: mine(x, mask=mask), [x]), expected)


@kinds
@pytest.mark.parametrize("mask", MASKS)
def test_unrolled(kind: str, mask: str) -> None:
    """An unrolled layer of Keras gives the same; ours does not unroll."""
    theirs, mine = pair(kind, SHAPE, UNITS, unroll=True, return_sequences=True)
    x, steps = random(ROWS, STEPS, INPUTS), MASKS[mask]
    expected = results_and_gradients(theirs, lambda x: theirs(x, mask=steps), [x])
    close(results_and_gradients(mine, lambda x: mine(x, mask=steps), [x]), expected)


@kinds
@pytest.mark.parametrize("mask", MASKS)
def test_stateful(kind: str, mask: str) -> None:
    """States go from call to call, with gradients of each, and are reset."""
    shape = (ROWS, STEPS, INPUTS)
    theirs, mine = pair(kind, shape, UNITS, stateful=True)
    theirs.use_cudnn = False  # on torch its other loop changes what its gradients need
    steps = MASKS[mask]
    for call in range(3):
        if call == 2:
            theirs.reset_state()
            mine.reset_state()
        x = random(*shape, seed=call)
        if BACKEND == "jax":  # where gradients are those of calls without side effects
            close(arrays(mine(x, mask=steps)), arrays(theirs(x, mask=steps)))
        else:
            expected = results_and_gradients(theirs, lambda x: theirs(x, mask=steps), [x])
            close(results_and_gradients(mine, lambda x: mine(x, mask=steps), [x]), expected)
        close(arrays(mine.states), arrays(theirs.states))


@kinds
@pytest.mark.parametrize("mask", ["no mask", "any"])
def test_dropout_of_inputs(kind: str, mask: str) -> None:
    theirs, mine = pair(kind, SHAPE, UNITS, dropout=0.5, seed=3)
    x, steps = random(ROWS, STEPS, INPUTS), MASKS[mask]
    for training in (True, False):
        expected = arrays(theirs(x, mask=steps, training=training))
        close(arrays(mine(x, mask=steps, training=training)), expected)
    assert mine.get_config()["kernels"] == "tbptt_fast"


def test_relu() -> None:
    theirs, mine = pair("SimpleRNN", SHAPE, UNITS, activation="relu", return_sequences=True)
    x = random(ROWS, STEPS, INPUTS)
    assert mine.missing_kernel() is None
    close(results_and_gradients(mine, mine, [x]), results_and_gradients(theirs, theirs, [x]))


@kinds
@pytest.mark.parametrize("dtype", DTYPES)
def test_truncation_is_windows_of_detached_states(kind: str, dtype: str) -> None:
    """K steps at a time by Keras's layer, with states that have no gradient in between."""
    options: dict[str, Any] = {"dtype": dtype, "return_sequences": True, "return_state": True}
    theirs, mine = pair(kind, SHAPE, UNITS, truncation=3, **options)
    x, hx = random(ROWS, STEPS, INPUTS, dtype=dtype), states(kind, dtype)

    def windows(x: Any, *hx: Any) -> Any:
        outputs, state = [], list(hx)
        for start in range(0, STEPS, 3):
            out, *state = theirs(x[:, start : start + 3], initial_state=state)
            outputs.append(out)
            last, state = state, [keras.ops.stop_gradient(s) for s in state]
        return keras.ops.concatenate(outputs, axis=1), *last

    expected = results_and_gradients(theirs, windows, [x, *hx])
    given = results_and_gradients(mine, lambda x, *hx: mine(x, initial_state=list(hx)), [x, *hx])
    close(given, expected)


@kinds
def test_truncation_with_overlap(kind: str) -> None:
    """(1, k): every loss reaches exactly k steps back, those of row 2 from a masked one on."""
    _, mine = pair(kind, SHAPE, UNITS, return_sequences=True, truncation=(1, 2), dtype="float64")
    mask = np.ones((ROWS, STEPS), bool)
    mask[2, 3] = False
    x = random(ROWS, STEPS, INPUTS, dtype="float64")
    given = results_and_gradients(mine, lambda x: mine(x, mask=mask)[:, 5], [x])[1]
    reached = np.abs(given).max(axis=2) > 0
    expected = np.zeros((ROWS, STEPS), bool)
    expected[:, 4:6] = True
    np.testing.assert_array_equal(reached, expected)
    given = results_and_gradients(mine, lambda x: mine(x, mask=mask)[:, 4], [x])[1]
    expected = np.zeros((ROWS, STEPS), bool)
    expected[:, 3:5] = True
    expected[2, 2:5] = True, False, True
    np.testing.assert_array_equal(np.abs(given).max(axis=2) > 0, expected)


@kinds
@pytest.mark.parametrize("go_backwards", [False, True])
def test_resets_begin_sequences(kind: str, go_backwards: bool) -> None:
    """Steps from a reset on are a call of their own."""
    options = {"return_sequences": True, "return_state": True, "go_backwards": go_backwards}
    theirs, mine = pair(kind, SHAPE, UNITS, **options)
    x, resets = random(ROWS, STEPS, INPUTS), np.zeros((ROWS, STEPS), bool)
    resets[:, 4] = True
    parts = (slice(4, None), slice(None, 4))
    if go_backwards:
        parts = (slice(None, 5), slice(5, None))

    def apart(x: Any) -> Any:
        out, *last = theirs(x[:, parts[0]])
        return keras.ops.concatenate([theirs(x[:, parts[1]])[0], out], axis=1), *last

    expected = results_and_gradients(theirs, apart, [x])
    close(results_and_gradients(mine, lambda x: mine(x, is_init=resets), [x]), expected)


@kinds
def test_resets_and_masks(kind: str) -> None:
    """Every row is its steps that count alone; a reset at a masked step waits for the next."""
    theirs, mine = pair(kind, SHAPE, UNITS, return_sequences=True, return_state=True)
    x, hx = random(ROWS, STEPS, INPUTS), states(kind)
    mask, rng = MASKS["any"], np.random.default_rng(5)
    resets = rng.random((ROWS, STEPS)) > 0.7
    resets[1, 3] = resets[3, 5] = True  # where no step counts, and behind the last that does
    out, *last = arrays(mine(x, initial_state=hx, mask=mask, is_init=resets))
    for row in range(ROWS):
        state = [h[row : row + 1] for h in hx]
        before = state[0] if BACKEND == "jax" else np.zeros_like(state[0])
        for step in range(STEPS):
            if resets[row, step]:
                state = [np.zeros_like(s) for s in state]
            if mask[row, step]:
                one = theirs(x[row : row + 1, step : step + 1], initial_state=state)
                _, *state = arrays(one)
                before = state[0]
            close([out[row : row + 1, step]], [before])
        close([s[row : row + 1] for s in last], state)


FALLBACKS: list[tuple[str, dict[str, Any], str]] = [
    ("SimpleRNN", {"activation": "sigmoid"}, "activation"),
    ("SimpleRNN", {"recurrent_dropout": 0.5}, "recurrent_dropout"),
    ("GRU", {"reset_after": False}, "reset_after"),
    ("GRU", {"recurrent_activation": "hard_sigmoid"}, "recurrent_activation"),
    ("LSTM", {"activation": "relu"}, "activation"),
    ("LSTM", {"dtype": "mixed_bfloat16"}, "bfloat16"),
    ("LSTM", {"dropout": 0.5, "implementation": 1}, "each gate"),
]


@pytest.mark.parametrize(("kind", "options", "reason"), FALLBACKS)
def test_without_a_kernel(kind: str, options: dict[str, Any], reason: str) -> None:
    """Keras's own loop runs, the config says so, and what that lacks is refused."""
    theirs, mine = pair(kind, SHAPE, UNITS, return_sequences=True, **options)
    x, mask = random(ROWS, STEPS, INPUTS), MASKS["any"]
    assert reason in mine.missing_kernel()
    assert mine.get_config()["kernels"] == "keras"
    for a, b in zip(arrays(mine(x, mask=mask)), arrays(theirs(x, mask=mask)), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="truncation needs a native kernel"):
        getattr(ours, kind)(UNITS, truncation=2, **options)
    with pytest.raises(ValueError, match="is_init needs a native kernel"):
        mine(x, is_init=np.zeros((ROWS, STEPS), bool))


def test_errors_are_those_of_keras() -> None:
    for truncation in ((4, 2), 0, "2", (1, 2, 3), True):
        with pytest.raises(ValueError, match="truncation"):
            ours.LSTM(UNITS, truncation=truncation)
    layer = ours.GRU(UNITS)
    with pytest.raises(ValueError, match="ndim"):
        layer(random(ROWS, INPUTS))
    x = random(ROWS, STEPS, INPUTS)
    with pytest.raises(ValueError, match=r"is_init: expected shape \(5, 7\), got \(7, 5\)"):
        layer(x, is_init=np.zeros((STEPS, ROWS), bool))
    stateful = ours.LSTM(UNITS, stateful=True)
    stateful(x)
    with pytest.raises(ValueError, match="batch size"):
        stateful(x[:3])
    with pytest.raises(ValueError, match="units"):
        ours.SimpleRNN(0)


@kinds
def test_configs(kind: str) -> None:
    layer = getattr(ours, kind)(UNITS, truncation=(2, 5), go_backwards=True)
    config = keras.saving.serialize_keras_object(layer)
    assert config["registered_name"] == f"tbptt_fast>{kind}"
    assert config["config"]["truncation"] == [2, 5]
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config()
    theirs = getattr(keras.layers, kind)(UNITS, go_backwards=True, name=layer.name).get_config()
    assert theirs == {n: v for n, v in layer.get_config().items() if n in theirs}
    assert layer.get_config().keys() - theirs.keys() == {"kernels", "truncation"}
