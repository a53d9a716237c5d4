"""The networks the command line trains and their losses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tbptt_fast import nn, ops

Array = NDArray[Any]

_CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def language_model(
    symbols: int,
    *,
    cell: str = "lstm",
    embedding: int = 64,
    hidden: int = 256,
    layers: int = 1,
    dropout: float = 0.0,
    seed: int = 0,
) -> nn.Sequential:
    """Embedding, recurrent layers and a linear head: ids [k, B] to logits [k, B, symbols]."""
    seeds = _seeds(seed, 3)
    return nn.Sequential(
        nn.Embedding(symbols, embedding, seed=seeds[0]),
        _CELLS[cell](embedding, hidden, layers, dropout=dropout, seed=seeds[1]),
        nn.Linear(hidden, symbols, seed=seeds[2]),
    )


def forecaster(
    features: int,
    *,
    cell: str = "lstm",
    hidden: int = 64,
    layers: int = 1,
    dropout: float = 0.0,
    seed: int = 0,
) -> nn.Sequential:
    """Recurrent layers and a linear head: values [k, B, F] to the next values [k, B, F]."""
    seeds = _seeds(seed, 2)
    return nn.Sequential(
        _CELLS[cell](features, hidden, layers, dropout=dropout, seed=seeds[0]),
        nn.Linear(hidden, features, seed=seeds[1]),
    )


def next_symbol_loss(logits: Array, targets: Array) -> tuple[float, Array, float]:
    """Cross-entropy in nats summed over the symbols, its gradient and their number.

    Shapes: logits [k, B, V], targets [k, B].
    """
    loss, grad = ops.softmax_cross_entropy(logits, targets, reduction="sum")
    return loss, grad, targets.size


def squared_error(prediction: Array, target: Array) -> tuple[float, Array, float]:
    """Squared error summed over the values, its gradient and their number; both [k, B, F]."""
    loss, grad = ops.mse_loss(prediction, target, reduction="sum")
    return loss, grad, target.size


def bits(nats: float) -> float:
    """The same information in bits.

    >>> bits(math.log(8.0))
    3.0
    """
    return nats / math.log(2.0)


def _seeds(seed: int, count: int) -> list[int]:
    """Independent seeds, one for each part of a network."""
    return [int(value) for value in np.random.SeedSequence(seed).generate_state(count)]
