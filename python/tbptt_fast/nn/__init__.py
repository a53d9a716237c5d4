"""Modules with PyTorch's parameter names: explicit forward and backward, no hidden autograd.

`forward` returns a tape and `backward` takes it; between the two neither the input, nor the
output, nor the parameters may be modified, because a tape refers to them instead of copying.
Sequences are time-major: x is [T, B, features].
"""

from .composed import Iterated, TimeDistributed
from .convolution import Conv1d, Conv2d, ConvTranspose2d
from .convrecurrent import ConvGRU2d, ConvLSTM2d, ConvRNN2d
from .layers import Embedding, Linear, Sequential
from .module import Gradients, Module, Tape
from .normalization import BatchNorm2d, Dropout, LayerNorm
from .pooling import AvgPool2d, GlobalAvgPool2d, MaxPool2d
from .recurrent import GRU, LSTM, RNN
from .stateless import Flatten, ReLU, Sigmoid, Softmax, Tanh

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "AvgPool2d",
    "BatchNorm2d",
    "Conv1d",
    "Conv2d",
    "ConvGRU2d",
    "ConvLSTM2d",
    "ConvRNN2d",
    "ConvTranspose2d",
    "Dropout",
    "Embedding",
    "Flatten",
    "GlobalAvgPool2d",
    "Gradients",
    "Iterated",
    "LayerNorm",
    "Linear",
    "MaxPool2d",
    "Module",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "Tape",
    "TimeDistributed",
]
