"""What the examples with Keras share: the same start and the same batches on every backend.

Keras's backends draw other random numbers and shuffle in other orders. Weights and the order of the
images are drawn by NumPy here, once, so that the loss curves of the backends are one curve.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import keras
import numpy as np

from _data import Digits


class Result(NamedTuple):
    """Mean loss of each epoch, test accuracy, and seconds of training."""

    losses: list[float]
    accuracy: float
    seconds: float


def set_weights(model: Any, seed: int) -> None:
    """Draw matrices and kernels uniformly (Glorot & Bengio 2010); biases are zeros."""
    rng, weights = np.random.default_rng(seed), []
    for shape in (weight.shape for weight in model.weights):
        around = int(np.prod(shape[:-2]))  # pixels that a kernel sees
        bound = (6 / (around * sum(shape[-2:]))) ** 0.5 if len(shape) > 1 else 0.0
        weights.append(rng.uniform(-bound, bound, shape).astype(np.float32))
    model.set_weights(weights)


def fit(model: Any, optimizer: Any, data: Digits, options: Any) -> Result:
    """Train with Keras's own progress bar, from weights and in an order that the seed fixes."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    set_weights(model, options.seed)
    order = np.random.default_rng(options.seed).permutation(len(data.x))
    arrays, sizes = (data.x[order], data.y[order]), (options.batch, options.epochs)
    begin = time.perf_counter()
    history = model.fit(*arrays, *sizes, shuffle=False).history
    seconds = time.perf_counter() - begin
    accuracy = model.evaluate(data.test_x, data.test_y, verbose=0)[1]
    return Result(history["loss"], accuracy, seconds)
