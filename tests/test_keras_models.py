"""Models of Keras with native layers: accelerate, masks, wrappers, training, and saved files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .keras_cases import BACKEND, RECURRENT, adapter, arrays, close, keras, ours, random

layers = keras.layers


def sequences() -> tuple[Any, Any]:
    return random(8, 6, 3), random(8, 2, seed=1)


def recurrent_model() -> Any:
    return keras.Sequential(
        [
            keras.Input((6, 3)),
            layers.Conv1D(5, 3, padding="causal", activation="relu"),
            layers.GRU(4, return_sequences=True, name="memory"),
            layers.SimpleRNN(4, return_sequences=True),
            layers.LSTM(4),
            layers.Dense(2),
        ],
        name="recurrent",
    )


def video_model() -> Any:
    return keras.Sequential(
        [
            keras.Input((4, 8, 8, 1)),
            layers.TimeDistributed(layers.Conv2D(3, 3, activation="relu")),
            layers.ConvLSTM2D(3, 3, padding="same", return_sequences=True),
            layers.ConvLSTM2D(2, 3),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )


def bidirectional_model() -> Any:
    """Nested models, a mask from an embedding, wrappers, and states from layer to layer."""
    words = keras.Input((6,), dtype="int32")
    inner = keras.Sequential([layers.Embedding(9, 3, mask_zero=True)], name="embedding")
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(inner(words))
    x, *state = layers.GRU(4, return_sequences=True, return_state=True)(x)
    x = layers.GRU(4, return_sequences=True)(x, initial_state=state)
    backward = layers.GRU(3, go_backwards=True)
    x = layers.Bidirectional(layers.GRU(3), merge_mode="sum", backward_layer=backward)(x)
    return keras.Model(words, layers.Dense(2)(x))


def words() -> tuple[Any, Any]:
    given = np.random.default_rng(0).integers(0, 9, (8, 6)).astype("int32")
    given[0], given[1, 3:], given[2, :2] = 0, 0, 0
    return given, random(8, 2, seed=1)


def images() -> tuple[Any, Any]:
    return random(4, 4, 8, 8, 1), random(4, 2, seed=1)


MODELS = {
    "recurrent": (recurrent_model, sequences),
    "video": (video_model, images),
    "bidirectional": (bidirectional_model, words),
}
models = pytest.mark.parametrize("name", MODELS)


def weights(model: Any) -> list[Any]:
    return arrays([v.value for v in model.weights])


def twins(name: str) -> tuple[Any, Any, Any, Any]:
    """A model, the same on native kernels, and a batch."""
    keras.utils.set_random_seed(0)
    make, batch = MODELS[name]
    theirs = make()
    mine = ours.accelerate(theirs)
    report = ours.swap_report(mine)
    assert report.swapped
    assert not report.left
    return theirs, mine, *batch()


@models
def test_training_is_that_of_keras(name: str) -> None:
    """The weights after some batches, which a step of Adam would not tell from noise."""
    theirs, mine, x, y = twins(name)
    close(weights(mine), weights(theirs), 1e-30)
    losses = []
    for model in (theirs, mine):
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
        losses.append([float(model.train_on_batch(x, y)) for _ in range(4)])
    assert losses[0][-1] < losses[0][0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    close(weights(mine), weights(theirs))
    close([mine.predict(x, verbose=0)], [theirs.predict(x, verbose=0)])


def test_fit() -> None:
    """Batches of several sizes, callbacks, and evaluation."""
    theirs, mine, x, y = twins("recurrent")
    histories = []
    for model in (theirs, mine):
        model.compile("sgd", "mse")
        stop = keras.callbacks.EarlyStopping(monitor="loss", patience=3)
        options = {"batch_size": 3, "epochs": 2, "shuffle": False, "verbose": 0}
        history = model.fit(x, y, validation_data=(x, y), callbacks=[stop], **options).history
        histories.append([*history["loss"], *history["val_loss"]])
    np.testing.assert_allclose(histories[1], histories[0], rtol=1e-5)


@models
def test_saved_files(name: str, tmp_path: Path) -> None:
    """Ours load as ours; decelerated they are files of Keras, whose files can be accelerated."""
    theirs, mine, x, _ = twins(name)
    expected = [theirs.predict(x, verbose=0)]
    mine.save(tmp_path / "mine.keras")
    again = keras.saving.load_model(tmp_path / "mine.keras")
    assert ours.swap_report(again) == ours.swap_report(mine)
    close([again.predict(x, verbose=0)], expected)

    plain = ours.decelerate(mine)
    assert not ours.swap_report(plain).swapped
    plain.save(tmp_path / "plain.keras")
    assert "tbptt_fast" not in plain.to_json()
    loaded = keras.saving.load_model(tmp_path / "plain.keras")
    close(weights(loaded), weights(theirs), 1e-30)

    theirs.save(tmp_path / "theirs.keras")
    fast = ours.accelerate(keras.saving.load_model(tmp_path / "theirs.keras"))
    assert len(ours.swap_report(fast).swapped) == len(ours.swap_report(mine).swapped)
    close([fast.predict(x, verbose=0)], expected)

    # weights alone go both ways, too
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    for weight in mine.trainable_variables:
        weight.assign(np.zeros(weight.shape))
    mine.load_weights(tmp_path / "theirs.weights.h5")
    close(weights(mine), weights(theirs), 1e-30)


def test_what_is_saved_keeps_its_truncation(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((6, 3)), ours.GRU(4, truncation=(2, 3), name="memory")])
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.get_layer("memory").truncation == [2, 3]
    assert ours.accelerate(model).get_layer("memory").truncation == [2, 3]


def test_truncation_within_bidirectional() -> None:
    """Its layers are made of configs, which have it, and Keras's fused kernels leave them alone."""
    layer = layers.Bidirectional(ours.LSTM(4, truncation=2))
    layer(random(2, 6, 3))
    for one in (layer.forward_layer, layer.backward_layer):
        assert type(one) is ours.LSTM
        assert one.truncation == [2, 2]
        assert one.use_cudnn is False


def test_report() -> None:
    class Special(layers.GRU):  # type: ignore[misc, name-defined]
        pass

    model = keras.Sequential(
        [
            keras.Input((6, 3)),
            layers.Bidirectional(layers.LSTM(4, return_sequences=True, name="lstm"), name="both"),
            layers.GRU(4, reset_after=False, return_sequences=True, name="old"),
            Special(4, return_sequences=True, name="special"),
            layers.RNN(layers.LSTMCell(4), name="cells"),
        ]
    )
    with keras.saving.custom_object_scope({"Special": Special}):
        report = ours.swap_report(ours.accelerate(model))
    assert report.swapped == {"both/forward_lstm": "LSTM", "both/backward_lstm": "LSTM"}
    assert report.left == {
        "old": "reset_after=False has no kernel",
        "special": "Special is a subclass, with code of its own",
    }
    assert str(report).splitlines()[2] == "old: left alone, reset_after=False has no kernel"
    plain = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    assert str(ours.swap_report(ours.accelerate(plain))) == (
        "no recurrent layer or convolution found"
    )


def test_one_layer() -> None:
    layer = layers.LSTM(4, name="alone")
    x = random(2, 6, 3)
    expected = arrays(layer(x))
    fast = ours.accelerate(layer)
    assert ours.swap_report(fast).swapped == {"alone": "LSTM"}
    fast.build(x.shape)
    fast.set_weights(layer.get_weights())
    close(arrays(fast(x)), expected)


def test_shared_layers_stay_shared() -> None:
    x = keras.Input((6, 3))
    shared = layers.GRU(3, return_sequences=True)
    model = ours.accelerate(keras.Model(x, shared(shared(x))))
    assert len(model.weights) == 3


@pytest.mark.parametrize("name", ["accelerate", "decelerate", "swap_report"])
def test_no_model(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: model: expected a model"):
        getattr(ours, name)([1])


@pytest.mark.parametrize("kind", RECURRENT)
def test_resets_as_an_input_of_a_model(kind: str) -> None:
    """A functional model has them as an input, and its file, too."""
    x, starts = keras.Input((6, 3)), keras.Input((6,), dtype="bool")
    y = getattr(ours, kind)(4, return_sequences=True)(x, is_init=starts)
    model = keras.Model([x, starts], y)
    given, resets = random(5, 6, 3), np.zeros((5, 6), bool)
    resets[:, 3] = True
    out = model.predict([given, resets], verbose=0)
    close([out[:, 3:]], arrays(model.layers[-1](given[:, 3:])))
    again = keras.Model.from_config(model.get_config())
    again.set_weights(model.get_weights())
    close([again.predict([given, resets], verbose=0)], [out])


def test_compiled_by_xla_only_where_kernels_are_part_of_it() -> None:
    assert ours.LSTM(4).supports_jit is (BACKEND != "tensorflow")
    assert ours.Conv2D(4, 3).supports_jit is (BACKEND != "tensorflow")
    assert (
        ours.GRU(4, reset_after=False).supports_jit is layers.GRU(4, reset_after=False).supports_jit
    )


def test_without_kernels_for_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build without the functions for JAX: models are left alone, and say why."""
    monkeypatch.setattr(adapter, "missing", "there are none here")
    report = ours.swap_report(ours.accelerate(recurrent_model()))
    assert not report.swapped
    assert set(report.left.values()) == {"there are none here"}
    with pytest.raises(ValueError, match="needs a native kernel: there are none here"):
        ours.LSTM(4, truncation=2)
