"""Native kernels for networks trained with truncated backpropagation through time."""

from . import _runtime, ops
from ._runtime import (
    active_isa,
    available_isas,
    build_info,
    get_num_threads,
    isa,
    num_threads,
    set_isa,
    set_num_threads,
)
from ._version import __version__
from .ops import (
    LinearGrads,
    RecurrentGrads,
    Tape,
    exp,
    gru_backward,
    gru_forward,
    linear,
    linear_backward,
    lstm_backward,
    lstm_forward,
    rnn_backward,
    rnn_forward,
    sigmoid,
    tanh,
)

__all__ = [
    "LinearGrads",
    "RecurrentGrads",
    "Tape",
    "__version__",
    "active_isa",
    "available_isas",
    "build_info",
    "exp",
    "get_num_threads",
    "gru_backward",
    "gru_forward",
    "isa",
    "linear",
    "linear_backward",
    "lstm_backward",
    "lstm_forward",
    "num_threads",
    "ops",
    "rnn_backward",
    "rnn_forward",
    "set_isa",
    "set_num_threads",
    "sigmoid",
    "tanh",
]
del _runtime
