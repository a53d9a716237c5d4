"""A network of one hidden layer on handwritten digits, trained by Keras's `fit` and ClippedSGD.

64-128-10 (784-128-10 with MNIST), on the backend of Keras that KERAS_BACKEND names. The gradient of
all parameters together is clipped to a norm of 1, the learning rate decays to zero along a cosine.

    KERAS_BACKEND=torch python examples/keras_digits.py
    KERAS_BACKEND=jax python examples/keras_digits.py --idx MNIST --epochs 5
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _common import panels, parse, parser, run, save, table
from _data import digits
from tbptt_fast.cli.parser import whole


def network(size: Sequence[int]) -> Any:
    """Images [B, Y, X, 1] to logits [B, 10]."""
    import keras

    layers = keras.layers
    hidden = layers.Dense(128, activation="relu")
    return keras.Sequential([keras.Input((*size, 1)), layers.Flatten(), hidden, layers.Dense(10)])


def main(argv: Sequence[str] | None = None) -> Any:
    """Train the network; returns what the table shows."""
    found = parser(__file__, __doc__, epochs=20)
    found.add_argument("--batch", type=whole(1), default=32, help="images (%(default)s)")
    found.add_argument("--idx", type=Path, metavar="FOLDER", help="MNIST's files, in IDX format")
    options = parse(found, argv, "keras", "sklearn")
    import keras

    from _keras import fit
    from tbptt_fast.keras import ClippedSGD

    data = digits(options.idx)
    updates = options.epochs * math.ceil(len(data.x) / options.batch)
    rate = keras.optimizers.schedules.CosineDecay(0.1, updates)
    optimizer = ClippedSGD(rate, momentum=0.9, global_clipnorm=1.0)
    model = network(data.x.shape[1:3])
    result = fit(model, optimizer, data, options)
    columns = {"backend": "s", "first loss": ".4f", "last loss": ".4f", "test accuracy": ".2%"}
    ends = result.losses[0], result.losses[-1]
    row = (keras.backend.backend(), *ends, result.accuracy, result.seconds)
    table(columns | {"seconds": ".2f"}, [row])

    figure, (axes,) = panels(1)
    axes.plot(range(1, options.epochs + 1), result.losses, label=row[0])
    axes.set(xlabel="epoch", ylabel="mean loss", yscale="log")
    save(figure, options.out)
    return result


if __name__ == "__main__":
    run(main)
