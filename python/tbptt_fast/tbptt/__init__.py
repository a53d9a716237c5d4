"""Truncated backpropagation through time: the trainer, and truncation as a choice with reasons.

`TBPTT` trains on a stream of windows. `measure_lags` and `adaptive_k` find how far back a gradient
has to go for a bounded bias; `artbp` truncates at random without any bias; `checkpointed` does not
truncate, and pays with time instead of memory.
"""

from .adaptive import AdaptiveK, adaptive_k
from .artbp import artbp
from .checkpointed import Checkpointed, FullGradient, Primitive, checkpointed
from .measure import LagStatistics, measure_lags
from .trainer import TBPTT, Loss, StepReport

__all__ = [
    "TBPTT",
    "AdaptiveK",
    "Checkpointed",
    "FullGradient",
    "LagStatistics",
    "Loss",
    "Primitive",
    "StepReport",
    "adaptive_k",
    "artbp",
    "checkpointed",
    "measure_lags",
]
