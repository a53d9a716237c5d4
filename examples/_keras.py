"""What the examples with Keras share: the same start and the same batches on every backend.

Keras's backends draw other random numbers and shuffle in other orders. Weights and batches are
drawn by NumPy here, so that the loss curves of the backends are one curve.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import keras
import numpy as np

from _data import Array, Digits
from _data import batches as draw


class Result(NamedTuple):
    """Mean loss of each epoch, test accuracy, and seconds of training."""

    losses: list[float]
    accuracy: float
    seconds: float


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """All rows in random order, in another one for each epoch: batches of `size`, then the rest."""

    def __init__(self, x: Array, y: Array, size: int, seed: int) -> None:
        super().__init__()
        self.x, self.y, self.size = x, y, size
        self.rng = np.random.default_rng(seed)
        self.order = draw(self.rng, len(x), size)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[Array, Array]:
        rows = self.order[index]
        return self.x[rows], self.y[rows]

    def on_epoch_end(self) -> None:
        self.order = draw(self.rng, len(self.x), self.size)


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
    batches = Batches(data.x, data.y, options.batch, options.seed)
    begin = time.perf_counter()
    history = model.fit(batches, epochs=options.epochs, shuffle=False).history
    seconds = time.perf_counter() - begin
    accuracy = model.evaluate(data.test_x, data.test_y, verbose=0)[1]
    return Result(history["loss"], accuracy, seconds)
