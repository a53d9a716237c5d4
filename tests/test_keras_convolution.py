"""tbptt_fast.keras.Conv1D, Conv2D, ConvLSTM2D: Keras's in every option."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .keras_cases import (
    BACKEND,
    arrays,
    close,
    keras,
    ours,
    pair,
    random,
    results_and_gradients,
)

# Keras on TensorFlow and a CPU has no convolution with channels first.
OTHER = "channels_last" if BACKEND == "tensorflow" else "channels_first"
formats = pytest.mark.parametrize(
    ("data_format", "dtype"), [("channels_last", "float32"), (OTHER, "float64")]
)

CONV1D: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": 4, "padding": "same"},
    {"kernel_size": 4, "padding": "same", "strides": 3},
    {"kernel_size": 3, "padding": "causal", "dilation_rate": 2},
    {"kernel_size": 3, "padding": "causal", "strides": 2, "use_bias": False},
    {"kernel_size": 2, "groups": 2, "activation": "relu"},
]
CONV2D: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": "same", "activation": "relu"},
    {"kernel_size": 1, "use_bias": False},
    {"kernel_size": (4, 3), "padding": "same", "strides": (2, 3), "activation": "tanh"},
    {"kernel_size": (2, 5), "strides": 2},
    {"kernel_size": (3, 2), "padding": "same", "dilation_rate": (1, 2), "activation": "sigmoid"},
    {"kernel_size": 3, "groups": 2, "activation": "gelu"},
]


def image(size: tuple[int, ...], data_format: str, channels: int, before: int = 1) -> list[int]:
    """The shape of images: `before` dimensions of 3, then those of the format."""
    inner = [*size, channels] if data_format == "channels_last" else [channels, *size]
    return [3] * before + inner


@formats
@pytest.mark.parametrize(
    ("kind", "options"),
    [("Conv1D", o) for o in CONV1D] + [("Conv2D", o) for o in CONV2D],
    ids=lambda given: given if isinstance(given, str) else "-".join(map(str, given.values())),
)
def test_convolutions(kind: str, options: dict[str, Any], data_format: str, dtype: str) -> None:
    size = (11,) if kind == "Conv1D" else (11, 10)
    shape = image(size, data_format, 4)
    theirs, mine = pair(kind, shape, 6, data_format=data_format, dtype=dtype, **options)
    assert mine.missing_kernel() is None
    x = random(*shape, dtype=dtype)
    expected = results_and_gradients(theirs, theirs, [x])
    close(results_and_gradients(mine, mine, [x]), expected)


def test_low_rank_adaptation() -> None:
    shape = image((8, 8), "channels_last", 3)
    theirs, mine = pair("Conv2D", shape, 4, 3)
    for layer in (theirs, mine):
        layer.enable_lora(2)
        layer.lora_kernel_a.assign(random(3, 3, 3, 2, seed=1))
        layer.lora_kernel_b.assign(random(2, 4, seed=2))
    x = random(*shape)
    close(results_and_gradients(mine, mine, [x]), results_and_gradients(theirs, theirs, [x]))


def test_convolutions_in_other_precisions_are_those_of_keras() -> None:
    shape = image((8, 8), "channels_last", 3)
    theirs, mine = pair("Conv2D", shape, 4, 3, dtype="mixed_bfloat16")
    assert mine.get_config()["kernels"] == "keras"
    x = random(*shape)
    for a, b in zip(arrays(mine(x)), arrays(theirs(x)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["Conv1D", "Conv2D"])
def test_errors_are_those_of_keras(kind: str) -> None:
    layer = getattr(ours, kind)
    for options in ({"strides": 2, "dilation_rate": 2}, {"groups": 3}, {"padding": "full"}):
        with pytest.raises(ValueError, match=r"."):
            layer(4, 3, **options)
    shape = image((8,) if kind == "Conv1D" else (8, 8), "channels_last", 3)
    with pytest.raises(ValueError, match="groups"):
        layer(4, 3, groups=2)(random(*shape))
    with pytest.raises(ValueError, match=r"[Cc]omputed output size|output shape"):
        layer(4, 9)(random(*shape))
    built = layer(4, 3)
    built(random(*shape))
    with pytest.raises(ValueError, match="incompatible"):
        built(random(*shape[:-1], 5))


CONVLSTM: list[dict[str, Any]] = [
    {"padding": "same"},
    {"padding": "valid"},
    {"padding": "same", "strides": 2},
    {"padding": "valid", "dilation_rate": 2, "use_bias": False},
    {"padding": "same", "go_backwards": True},
]


def some_mask() -> Any:
    """Of three rows and four steps: with gaps, of no step, and with masked steps at both ends."""
    return np.array([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0]], bool)


def mask_of(layer: Any, mask: Any) -> Any:
    """The mask in the form that a layer takes: on JAX Keras's own layer needs it like images."""
    plain = mask is None or BACKEND != "jax" or type(layer) is ours.ConvLSTM2D
    return mask if plain else mask[:, :, None, None, None]


@formats
@pytest.mark.parametrize("mask", [None, some_mask()], ids=["no mask", "mask"])
@pytest.mark.parametrize("options", CONVLSTM, ids=lambda o: "-".join(map(str, o.values())))
def test_convlstm(options: dict[str, Any], mask: Any, data_format: str, dtype: str) -> None:
    (rows, *one), steps = image((9, 8), data_format, 2), 4
    shape = [rows, steps, *one]
    options = {**options, "data_format": data_format, "dtype": dtype, "return_sequences": True}
    theirs, mine = pair("ConvLSTM2D", shape, 4, 3, return_state=True, **options)
    assert mine.missing_kernel() is None
    x = random(*shape, dtype=dtype)
    state = theirs.compute_output_shape(tuple(shape))[1]
    hx = [random(*state, dtype=dtype, seed=seed) for seed in (1, 2)]

    def call(layer: Any) -> Any:
        steps = mask_of(layer, mask)
        return lambda x, *hx: layer(x, initial_state=list(hx), mask=steps)

    expected = results_and_gradients(theirs, call(theirs), [x, *hx])
    close(results_and_gradients(mine, call(mine), [x, *hx]), expected)


@pytest.mark.parametrize("mask", [None, some_mask()], ids=["no mask", "mask"])
def test_stateful_convlstm(mask: Any) -> None:
    shape = (3, 4, 6, 6, 2)
    theirs, mine = pair("ConvLSTM2D", shape, 3, 3, padding="same", stateful=True)
    for call in range(2):
        x = random(*shape, seed=call)
        close(arrays(mine(x, mask=mask)), arrays(theirs(x, mask=mask_of(theirs, mask))))
        close(arrays(mine.states), arrays(theirs.states))


def test_truncation_and_resets_of_convlstm() -> None:
    """Windows of two steps with detached states, and rows that begin again, by Keras's layer."""
    shape = (3, 4, 6, 6, 2)
    options = {"padding": "same", "return_sequences": True, "return_state": True}
    theirs, mine = pair("ConvLSTM2D", shape, 3, 3, truncation=2, **options)
    x, resets = random(*shape), np.zeros((3, 4), bool)
    resets[:, 3] = True

    def windows(x: Any) -> Any:
        first, *state = theirs(x[:, :2])
        state = [keras.ops.stop_gradient(s) for s in state]
        third, *_ = theirs(x[:, 2:3], initial_state=state)
        last, *state = theirs(x[:, 3:])
        return keras.ops.concatenate([first, third, last], axis=1), *state

    expected = results_and_gradients(theirs, windows, [x])
    close(results_and_gradients(mine, lambda x: mine(x, is_init=resets), [x]), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": (3, 4)},
        {"kernel_size": 3, "recurrent_activation": "hard_sigmoid"},
        {"kernel_size": 3, "dropout": 0.5},
        {"kernel_size": 3, "recurrent_dropout": 0.5},
    ],
)
def test_convlstm_without_a_kernel(options: dict[str, Any]) -> None:
    shape = (3, 2, 6, 6, 2)
    theirs, mine = pair("ConvLSTM2D", shape, 3, **options)
    assert mine.get_config()["kernels"] == "keras"
    close(arrays(mine(random(*shape))), arrays(theirs(random(*shape))))
    with pytest.raises(ValueError, match="truncation needs a native kernel"):
        ours.ConvLSTM2D(3, truncation=2, **options)


@pytest.mark.parametrize(
    "layer",
    [
        ours.Conv1D(4, 3, padding="causal"),
        ours.Conv2D(4, (3, 2), activation="relu"),
        ours.ConvLSTM2D(4, 3, truncation=(1, 3)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_configs(layer: Any) -> None:
    config = keras.saving.serialize_keras_object(layer)
    assert config["registered_name"] == f"tbptt_fast>{type(layer).__name__}"
    assert config["config"]["kernels"] == "tbptt_fast"
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config()
