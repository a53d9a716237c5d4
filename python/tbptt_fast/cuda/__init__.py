"""The primitives on NVIDIA GPUs, for arrays that lie in a device's memory.

    from tbptt_fast import cuda

    out, h_n, tape = cuda.gru_forward(x, None, w_ih, w_hh)  # x: a torch tensor on "cuda", say

Arrays are tensors of PyTorch, CuPy's, or any object with `__cuda_array_interface__` or `__dlpack__`
in CUDA memory; all of a call are on one device. Results are made by the library of x; for objects
of other libraries they are `DeviceArray`s, which those read by the same protocols.

`precision` is "tf32", in which tensor cores multiply float32 numbers rounded to 10 bits behind the
point and add them up in float32, or "highest", which is float32 throughout. The default is "tf32",
as it is in PyTorch's own recurrent layers and convolutions (cuDNN's); its linear layers have
"highest". float64 is float64 in both; chips without TF32 (before Ampere) always use "highest".

bfloat16, from compute capability 8.0 on, halves the bytes of recurrent layers and convolutions: all
arrays of a call have that dtype, the initial and last states and carry_scale too. Tensor cores add
products up in float32; gates, activations, the running states (an LSTM's c, a GRU's h) and the
gradients carried from step to step are float32 within a call, and every result is rounded once.
`precision` does not matter to it. NumPy's dtype for it is ml_dtypes' (in arrays of other libraries
with `__cuda_array_interface__`).

`stream` is None for the stream that x's library currently uses on its device, or a stream: an
integer handle, or an object of PyTorch, CuPy or another library with `__cuda_stream__`. Calls put
their work there and return, as if that stream were the library's current one: what another stream
made has to be waited for before. Nothing waits for the device, so that everything can be captured
in a graph. Results have the same bits from run to run on one kind of device. What only the values
tell, an id or a target that is none, is not looked at: it gives NaN.

Without kernels or a device, `is_available()` is False, `why_not()` says why, and all functions
raise a RuntimeError with that sentence. `tbptt_fast.torch` uses these kernels for tensors on
"cuda".
"""

from ..ops import LinearGrads
from ..ops_convolution import ConvGrads
from ..ops_convrecurrent import ConvRecurrentGrads
from ..ops_norm import BatchNorm, LayerNorm, NormGrads
from ..ops_recurrent import RecurrentGrads
from . import _module
from ._convolution import (
    conv1d,
    conv1d_backward,
    conv2d,
    conv2d_backward,
    conv_transpose2d,
    conv_transpose2d_backward,
)
from ._convrecurrent import (
    convgru_backward,
    convgru_forward,
    convlstm_backward,
    convlstm_forward,
    convrnn_backward,
    convrnn_forward,
)
from ._layers import (
    embedding,
    embedding_backward,
    hinge_loss,
    huber_loss,
    l1_loss,
    mse_loss,
    softmax,
    softmax_backward,
    softmax_cross_entropy,
)
from ._linear import (
    activation_backward,
    exp,
    linear,
    linear_backward,
    relu,
    sigmoid,
    tanh,
)
from ._module import why_not
from ._norm import (
    batch_norm,
    batch_norm_backward,
    dropout,
    dropout_backward,
    layer_norm,
    layer_norm_backward,
)
from ._optim import adam_step, global_norm, rmsprop_step, sgd_step
from ._pooling import (
    avg_pool2d,
    avg_pool2d_backward,
    global_avg_pool2d,
    global_avg_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
)
from ._recurrent import (
    Precision,
    gru_backward,
    gru_forward,
    lag_norms,
    lstm_backward,
    lstm_forward,
    rnn_backward,
    rnn_forward,
)

__all__ = [
    "BatchNorm",
    "ConvGrads",
    "ConvRecurrentGrads",
    "LayerNorm",
    "LinearGrads",
    "NormGrads",
    "Precision",
    "RecurrentGrads",
    "activation_backward",
    "adam_step",
    "avg_pool2d",
    "avg_pool2d_backward",
    "batch_norm",
    "batch_norm_backward",
    "build_info",
    "conv1d",
    "conv1d_backward",
    "conv2d",
    "conv2d_backward",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "convgru_backward",
    "convgru_forward",
    "convlstm_backward",
    "convlstm_forward",
    "convrnn_backward",
    "convrnn_forward",
    "devices",
    "dropout",
    "dropout_backward",
    "embedding",
    "embedding_backward",
    "empty_cache",
    "exp",
    "global_avg_pool2d",
    "global_avg_pool2d_backward",
    "global_norm",
    "gru_backward",
    "gru_forward",
    "hinge_loss",
    "huber_loss",
    "is_available",
    "l1_loss",
    "lag_norms",
    "layer_norm",
    "layer_norm_backward",
    "linear",
    "linear_backward",
    "lstm_backward",
    "lstm_forward",
    "max_pool2d",
    "max_pool2d_backward",
    "mse_loss",
    "relu",
    "rmsprop_step",
    "rnn_backward",
    "rnn_forward",
    "sgd_step",
    "sigmoid",
    "softmax",
    "softmax_backward",
    "softmax_cross_entropy",
    "tanh",
    "why_not",
]


def is_available() -> bool:
    """Whether there are kernels, and a device that runs them.

    >>> from tbptt_fast import cuda
    >>> cuda.is_available() or len(cuda.why_not()) > 0
    True
    """
    return why_not() is None


def build_info() -> dict[str, str] | None:
    """Versions (of this library, of CUDA, the driver's) and targets; None without kernels.

    >>> from tbptt_fast import cuda
    >>> info = cuda.build_info()
    >>> info is None or "targets" in info
    True
    """
    module = _module.loaded()
    return None if isinstance(module, str) else module.build_info()


def devices() -> list[dict[str, object]]:
    """Name, compute capability, multiprocessors and bytes of memory of each device.

    >>> from tbptt_fast import cuda
    >>> len(cuda.devices()) >= cuda.is_available()
    True
    """
    module = _module.loaded()
    return [] if isinstance(module, str) else module.devices()


def empty_cache() -> None:
    """Give the memory that is kept for later calls, up to 1 GiB, back to the current device.

    Raises:
        RuntimeError: the kernels cannot run here (`why_not`).

    >>> from tbptt_fast import cuda
    >>> if cuda.is_available():
    ...     cuda.empty_cache()
    """
    _module.native().empty_cache()
