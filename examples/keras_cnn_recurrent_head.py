"""A convolutional network with a recurrent head in Keras, trained with truncated backpropagation.

Two convolutions and a dense layer make 128 features of a digit; a recurrent layer reads them
`steps` times, and its last state is classified. The gradient runs back through the last
`truncation` steps only. Layers and optimizer are native, training is Keras's, on the backend that
KERAS_BACKEND names.

    KERAS_BACKEND=tensorflow python examples/keras_cnn_recurrent_head.py
    KERAS_BACKEND=jax python examples/keras_cnn_recurrent_head.py --truncation 1
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _common import panels, parse, parser, run, save, table
from _data import digits
from tbptt_fast.cli.parser import whole


def network(size: Sequence[int], steps: int, truncation: int) -> Any:
    """Images [B, Y, X, 1] to logits [B, 10]."""
    import keras

    from tbptt_fast.keras import Conv2D, SimpleRNN

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((*size, 1)),
            Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.RepeatVector(steps),
            SimpleRNN(64, truncation=(1, truncation)),
            layers.Dense(10),
        ]
    )


def main(argv: Sequence[str] | None = None) -> Any:
    """Train the network; returns what the table shows."""
    found = parser(__file__, __doc__, epochs=20)
    found.add_argument("--steps", type=whole(1), default=20, help="of the head (%(default)s)")
    found.add_argument("--truncation", type=whole(1), default=5, help="steps (%(default)s)")
    found.add_argument("--batch", type=whole(1), default=32, help="images (%(default)s)")
    found.add_argument("--idx", type=Path, metavar="FOLDER", help="MNIST's files, in IDX format")
    options = parse(found, argv, "keras", "sklearn")
    import keras

    from _keras import fit
    from tbptt_fast.keras import Adam

    data = digits(options.idx)
    updates = options.epochs * math.ceil(len(data.x) / options.batch)
    optimizer = Adam(keras.optimizers.schedules.CosineDecay(1e-3, updates), global_clipnorm=1.0)
    model = network(data.x.shape[1:3], options.steps, options.truncation)
    result = fit(model, optimizer, data, options)
    columns = {"backend": "s", "truncation": "d", "first loss": ".4f", "last loss": ".5f"}
    ends = result.losses[0], result.losses[-1]
    row = (keras.backend.backend(), options.truncation, *ends, result.accuracy, result.seconds)
    table(columns | {"test accuracy": ".2%", "seconds": ".2f"}, [row])

    figure, (axes,) = panels(1)
    axes.plot(range(1, options.epochs + 1), result.losses, label=row[0])
    axes.set(xlabel="epoch", ylabel="mean loss", yscale="log")
    save(figure, options.out)
    return result


if __name__ == "__main__":
    run(main)
