"""Data of the copy task, and what is reached on them without any memory.

Whoever knows where he is in a block but remembers no symbol of it has a perplexity of 4 to the
power of the share of symbols among the targets; that is where a K that is too short has to stay.
With rows that are shifted each on its own, as the paper describes them, the share is 0.45 and the
perplexity 1.866. The authors' public code (tbptt/generate_data.py) shifts *all* rows made so far
with every new row, so that about a third of its 1,000 test steps are fragments of blocks, with
fewer symbols, and the perplexity is 1.64 to 1.68, as the 1.646 that was published for K = 5.
"""

from __future__ import annotations

import numpy as np

from ._common import Array

SYMBOLS = 6  # 0 is blank, 1 the marker


def draw(
    rng: np.random.Generator, steps: int, batch: int, m: int, as_published: bool
) -> tuple[Array, Array]:
    """Inputs and targets [T, B] int64.

    A row is shifted by 0 … 2m - 1 steps; as in the authors' code, or each row on its own.
    """
    blocks = -(-steps // (2 * m)) + 2
    x = np.zeros((2 * m * blocks, batch), np.int64)
    y = x.copy()
    for row in range(batch):
        block = rng.integers(2, SYMBOLS, (blocks, m))
        block[:, 0] = 1
        blank = np.zeros_like(block)
        x[:, row], y[:, row] = np.hstack([block, blank]).ravel(), np.hstack([blank, block]).ravel()
        shift = int(rng.integers(2 * m))
        shifted = slice(None) if as_published else row
        for array in (x, y):
            array[:steps, shifted] = array[shift : shift + steps, shifted].copy()
    return x[:steps], y[:steps]


def forgetful_perplexity(y: Array) -> float:
    """Of one who knows the place in every block and the markers, but none of the symbols."""
    return float((SYMBOLS - 2) ** np.mean(y >= 2))


def one_hot(ids: Array) -> Array:
    return np.eye(SYMBOLS, dtype=np.float32)[ids]
