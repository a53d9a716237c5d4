"""What is special about the kernels on TensorFlow: graphs, unknown shapes, memory, and refusals."""

from __future__ import annotations

import gc
import resource
from typing import Any

import numpy as np
import pytest

from .keras_cases import arrays, close, keras, ours, random

tf = pytest.importorskip("tensorflow")


@pytest.mark.parametrize("kind", ["SimpleRNN", "GRU", "LSTM"])
def test_graphs_with_unknown_shapes(kind: str) -> None:
    """A function for any batch and length has the results of eager calls, and known sizes."""
    layer = getattr(ours, kind)(4, return_sequences=True, return_state=True)
    shapes = []

    signature = [tf.TensorSpec((None, None, 3)), tf.TensorSpec((None, None), bool)]

    def run(x: Any, mask: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            out, *states = layer(x, mask=mask)
            loss = tf.reduce_sum(out**2)
        shapes.append([tuple(out.shape), tuple(states[0].shape)])
        return [out, *states, tape.gradient(loss, x)]

    layer.build((None, None, 3))
    call = tf.function(run, input_signature=signature)
    for rows, steps in ((2, 5), (3, 7)):
        x, mask = random(rows, steps, 3), np.random.default_rng(1).random((rows, steps)) > 0.3
        found = call(x, mask)
        close(arrays(found[:-1]), arrays(layer(x, mask=mask)))
        assert found[-1].shape == x.shape
    assert shapes == [[(None, None, 4), (None, 4)]]


def test_convolutions_of_unknown_sizes() -> None:
    theirs = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Conv2D(4, 3, strides=2, padding="same", activation="relu"),
            keras.layers.Conv2D(4, 3),
            keras.layers.GlobalMaxPooling2D(),
        ]
    )
    mine = ours.accelerate(theirs)
    assert mine.layers[1].output.shape == (None, None, None, 4)
    for size in ((9, 8), (12, 15)):
        x = random(2, *size, 3)
        close([mine.predict(x, verbose=0)], [theirs.predict(x, verbose=0)])


def test_second_derivatives_are_refused() -> None:
    layer = ours.GRU(4)
    x = tf.constant(random(2, 5, 3))
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = tf.reduce_sum(layer(x))
        gradient = inner.gradient(y, x)
    with pytest.raises(RuntimeError, match="gru: second derivatives are not available"):
        outer.gradient(gradient, x)


def test_xla_refuses() -> None:
    """It cannot compile Python, and says so; `compile` leaves it out by itself."""
    model = keras.Sequential([keras.Input((5, 3)), ours.LSTM(4)])
    model.compile("sgd", "mse")
    assert model.jit_compile is False
    with pytest.raises(tf.errors.InvalidArgumentError, match="PyFunc"):
        tf.function(model, jit_compile=True)(random(2, 5, 3))


def test_tapes_are_freed() -> None:
    """Whether their gradient is computed or not: hundreds of them take no more than a few."""
    layer = ours.LSTM(64)
    x = tf.constant(random(32, 64, 8))  # a tape of 3 MB

    def gradient(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x))
        return tape.gradient(loss, layer.trainable_variables)[0]

    step = tf.function(gradient)

    def run(times: int) -> None:
        for _ in range(times):
            step(x)
            layer(x)
        gc.collect()

    run(10)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(100)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 60_000  # KiB, where 200 tapes are 600 MB
