"""One recurrent problem: its shape, its work and its data, the same for every side and process.

The data follow from the seed alone, so a peer in another process builds them for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Result = dict[str, Array]  # out, h_n, c_n, then dx, dh, dc, dw_ih, dw_hh, db_ih, db_hh

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
WEIGHTS = ("w_ih", "w_hh", "b_ih", "b_hh")


@dataclass(frozen=True)
class Problem:
    """A cell over [steps, batch, inputs] with `hidden` units; PyTorch's weight layout."""

    cell: str
    steps: int
    batch: int
    inputs: int
    hidden: int
    chunk: int | None = None  # truncation window, None for full backpropagation
    reset_rate: float = 0.0
    seed: int = 1

    @property
    def shape(self) -> str:
        return f"{self.steps}, {self.batch}, {self.inputs}, {self.hidden}"

    @property
    def forward_flops(self) -> float:
        """Multiplications and additions of the two products; a backward pass does twice as much."""
        columns = GATES[self.cell] * self.hidden
        return 2.0 * self.steps * self.batch * columns * (self.inputs + self.hidden)

    @cached_property
    def arrays(self) -> dict[str, Array]:
        """Fresh random float32 operands: x, h, c (LSTM), the weights, grad_out."""
        rng = np.random.default_rng(self.seed)
        columns = GATES[self.cell] * self.hidden
        bound = self.hidden**-0.5

        def normal(*shape: int) -> Array:
            return rng.standard_normal(shape, dtype=np.float32)

        def uniform(*shape: int) -> Array:
            return rng.uniform(-bound, bound, shape).astype(np.float32)

        arrays = {
            "x": normal(self.steps, self.batch, self.inputs),
            "h": normal(self.batch, self.hidden),
            "w_ih": uniform(columns, self.inputs),
            "w_hh": uniform(columns, self.hidden),
            "b_ih": uniform(columns),
            "b_hh": uniform(columns),
            "grad_out": normal(self.steps, self.batch, self.hidden),
        }
        if self.cell == "lstm":
            arrays["c"] = normal(self.batch, self.hidden)
        return arrays

    @cached_property
    def is_init(self) -> Array | None:
        """Resets [steps, batch], or None where this problem has none."""
        if self.reset_rate == 0.0:
            return None
        rng = np.random.default_rng(self.seed + 1)
        return rng.random((self.steps, self.batch)) < self.reset_rate
