"""PyTorch on these kernels: layers, functions, optimizers, and streams for truncated training.

    from tbptt_fast.torch import LSTM, accelerate

`LSTM`, `GRU`, `RNN`, `Conv1d` and `Conv2d` take the place of torch.nn's; `accelerate(model)` puts
them into a model that exists. Everything runs eagerly, under `torch.compile(fullgraph=True)` and
`torch.export`, on CPU tensors of float32 or float64; under autocast in float32. Tensors are shared
with the kernels, not copied. Threads are those of `tbptt_fast.set_num_threads`. These layers and
their functions run on "cuda", too, where `tbptt_fast.cuda.is_available()`; there float32 follows
PyTorch's own setting of TF32 for recurrent layers and for convolutions, and all of them take
bfloat16, under autocast to it, too (from compute capability 8.0 on).
"""

try:
    import torch as _torch
except ImportError as error:
    raise ImportError(
        "tbptt_fast.torch needs PyTorch 2.4 or later: https://pytorch.org/get-started/locally"
    ) from error
if tuple(int(part) for part in _torch.__version__.split(".")[:2]) < (2, 4):
    raise ImportError(f"tbptt_fast.torch needs PyTorch 2.4 or later, got {_torch.__version__}")

from . import optim
from .convolution import Conv1d, Conv2d
from .convolution_ops import conv1d, conv2d
from .convrecurrent import ConvGRU2d, ConvLSTM2d, ConvRNN2d
from .convrecurrent_ops import convgru, convlstm, convrnn
from .recurrent import GRU, LSTM, RNN
from .recurrent_functions import gru, lstm, rnn
from .streams import StreamBatcher, detach_state, windows
from .swap import SwapReport, accelerate, decelerate

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Conv1d",
    "Conv2d",
    "ConvGRU2d",
    "ConvLSTM2d",
    "ConvRNN2d",
    "StreamBatcher",
    "SwapReport",
    "accelerate",
    "conv1d",
    "conv2d",
    "convgru",
    "convlstm",
    "convrnn",
    "decelerate",
    "detach_state",
    "gru",
    "lstm",
    "optim",
    "rnn",
    "windows",
]
