"""Keras 3 on these kernels: layers, optimizers, and `accelerate` for models that exist.

    from tbptt_fast.keras import LSTM, accelerate

`SimpleRNN`, `GRU`, `LSTM`, `Conv1D`, `Conv2D` and `ConvLSTM2D` are subclasses of Keras's layers:
constructors, weights, masks, states and saved files are Keras's own, on the backends torch, jax and
tensorflow. Recurrent layers take `truncation=`, and their calls `is_init=`. What has no kernel runs
Keras's own code, which the layer's config says (`"kernels": "keras"`).

On TensorFlow the kernels are called from Python (`tf.numpy_function`): layers run eagerly and in a
`tf.function`, as `fit` makes one, but not in an exported SavedModel, and not under XLA.
"""

try:
    import keras as _keras
except ImportError as error:
    raise ImportError(
        "tbptt_fast.keras needs Keras 3.12 or later: pip install 'tbptt_fast[keras]'"
    ) from error
if tuple(int(part) for part in _keras.__version__.split(".")[:2]) < (3, 12):
    raise ImportError(
        f"tbptt_fast.keras needs Keras 3.12 or later, got {_keras.__version__}: "
        "pip install 'tbptt_fast[keras]'"
    )

from .convolution import Conv1D, Conv2D
from .convrecurrent import ConvLSTM2D
from .optimizers import Adam, ClippedSGD
from .recurrent import GRU, LSTM, SimpleRNN
from .swap import SwapReport, accelerate, decelerate, swap_report

__all__ = [
    "GRU",
    "LSTM",
    "Adam",
    "ClippedSGD",
    "Conv1D",
    "Conv2D",
    "ConvLSTM2D",
    "SimpleRNN",
    "SwapReport",
    "accelerate",
    "decelerate",
    "swap_report",
]
