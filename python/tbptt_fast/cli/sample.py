"""`sample`: continue a text, or a series, with a trained network."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbptt_fast import nn, set_num_threads
from tbptt_fast.cli.parser import UsageError
from tbptt_fast.cli.task import series_network, text_network
from tbptt_fast.cli.training import load
from tbptt_fast.data import DataError, Vocabulary

Array = NDArray[Any]


def sample(options: Namespace) -> int:
    """Run the command."""
    if options.threads:
        set_num_threads(options.threads)
    tree, settings = load(options.checkpoint)
    task = tree["task"]
    if task["kind"] == "series":
        given = [name for name in ("prime", "temperature") if getattr(options, name) is not None]
        if given:
            raise UsageError(f"--{given[0]}: the checkpoint forecasts a series, it is not for text")
        model = series_network(settings)
        model.load_state_dict(tree["weights"])
        print(format_values(forecast(model, task, options.length or 10)))
        return 0
    vocabulary = Vocabulary.from_state_dict(task["vocabulary"])
    model = text_network(vocabulary, settings)
    model.load_state_dict(tree["weights"])
    text = generate(
        model,
        vocabulary,
        options.length or 1000,
        temperature=0.7 if options.temperature is None else options.temperature,
        prime=options.prime or "",
        seed=options.seed,
    )
    print(text)
    return 0


def generate(
    model: nn.Module,
    vocabulary: Vocabulary,
    length: int,
    *,
    temperature: float = 0.7,
    prime: str = "",
    seed: int | None = None,
) -> str:
    """`prime` and `length` characters that the model draws after it, one at a time.

    Temperature 0 takes the likeliest character each time, 1 draws from the model's distribution,
    lower ones in between. Without a prime the text begins as after a line break.
    """
    first = "\n" if "\n" in vocabulary else vocabulary.decode(np.zeros(1, np.int32))
    try:
        ids = vocabulary.encode(prime or first)
    except DataError as error:
        raise DataError(f"--prime: {error}") from None
    random = np.random.default_rng(seed)
    drawn: list[int] = []
    logits, state = model(ids[:, None])
    while len(drawn) < length:
        drawn.append(_draw(logits[-1, 0], temperature, random))
        logits, state = model(np.array([[drawn[-1]]], dtype=np.int32), state)
    return prime + vocabulary.decode(np.array(drawn, dtype=np.int32))


def forecast(model: nn.Module, task: Mapping[str, Any], length: int) -> Array:
    """The `length` values [length] that follow the series, each from those before it.

    `task` is the state of a `SeriesTask`: the end of the series, its mean and its deviation.
    """
    values: Array = np.empty(length)
    prediction, state = model(task["tail"][:, None])
    for step in range(length):
        values[step] = prediction[-1, 0, 0]
        prediction, state = model(prediction[-1:], state)
    values *= task["std"]
    values += task["mean"]
    return values


def format_values(values: Array) -> str:
    """Values one per line."""
    return "\n".join(f"{value:.6g}" for value in values)


def _draw(logits: Array, temperature: float, random: np.random.Generator) -> int:
    """One symbol from logits [V]."""
    if temperature == 0:
        return int(np.argmax(logits))
    scaled = (logits - logits.max()).astype(np.float64) / temperature
    cumulated = np.cumsum(np.exp(scaled))
    return int(np.searchsorted(cumulated, random.random() * cumulated[-1], side="right"))
