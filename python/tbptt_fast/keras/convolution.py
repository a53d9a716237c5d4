"""Conv1D and Conv2D with Keras's interface; part of `tbptt_fast.keras`."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from .._types import Activation, Layout
from ._backend import Padding, Tensor, adapter
from ._layer import PACKAGE, NativeLayer

_FUSED: dict[Any, Activation] = {
    keras.activations.relu: "relu",
    keras.activations.tanh: "tanh",
    keras.activations.sigmoid: "sigmoid",
}


def layout_of(data_format: str) -> Layout:
    """The kernels' name for Keras's order of dimensions."""
    return "NHWC" if data_format == "channels_last" else "NCHW"


def convolve(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    strides: tuple[int, ...],
    padding: str,
    dilation: tuple[int, ...],
    data_format: str,
    activation: Activation = None,
) -> Tensor:
    """Images [N, …] of x in Keras's order, for a kernel [ky, kx, I/groups, O].

    In one dimension, x and kernel have one less; padding may be "causal" there.
    """
    directions = len(strides)
    layout = layout_of(data_format)
    row = 1 if layout == "NHWC" else 2  # where the first direction is
    before = dilation[0] * (kernel.shape[0] - 1) if padding == "causal" else 0
    around: Padding = "same" if padding == "same" else ((0, 0), (before, 0))
    w = ops.transpose(kernel, (directions + 1, directions, *range(directions)))
    if directions == 1:  # that is along images of one row
        x, w = ops.expand_dims(x, row), ops.expand_dims(w, 2)
        strides, dilation = (1, *strides), (1, *dilation)
    channels = x.shape[3 if layout == "NHWC" else 1]
    pair, apart = (strides[0], strides[1]), (dilation[0], dilation[1])
    groups = channels // w.shape[1]
    y = adapter.convolution(x, w, bias, pair, around, apart, groups, activation, layout)
    return ops.squeeze(y, row) if directions == 1 else y


class _Convolution(NativeLayer):
    """What both have in common; parameters and checks are Keras's."""

    def call(self, inputs: Tensor) -> Tensor:
        layer: Any = self
        if self.missing_kernel() is not None:
            parent: Any = super()
            return parent.call(inputs)
        x = ops.cast(inputs, layer.compute_dtype)
        kernel = ops.convert_to_tensor(layer.kernel)
        bias = None if layer.bias is None else ops.convert_to_tensor(layer.bias)
        options = (layer.strides, layer.padding, layer.dilation_rate, layer.data_format)
        fused = _FUSED.get(layer.activation)
        y = convolve(x, kernel, bias, *options, fused)
        return y if fused or layer.activation is None else layer.activation(y)


@keras.saving.register_keras_serializable(package=PACKAGE)
class Conv1D(_Convolution, keras.layers.Conv1D):
    """keras.layers.Conv1D on native kernels.

    The constructor, weights and calls are those of Keras's layer.

    Raises:
        ValueError: what Keras refuses.

    Source: see `tbptt_fast.conv1d`.

    >>> import numpy as np
    >>> layer = Conv1D(5, 3, padding="causal", dilation_rate=2)
    >>> tuple(layer(np.ones((2, 9, 4), "float32")).shape), layer.get_config()["kernels"]
    ((2, 9, 5), 'tbptt_fast')
    """


@keras.saving.register_keras_serializable(package=PACKAGE)
class Conv2D(_Convolution, keras.layers.Conv2D):
    """keras.layers.Conv2D on native kernels, in either data format.

    The constructor, weights and calls are those of Keras's layer.

    Raises:
        ValueError: what Keras refuses.

    Source: see `tbptt_fast.conv2d`.

    >>> import numpy as np
    >>> layer = Conv2D(8, 3, strides=2, padding="same", activation="relu")
    >>> tuple(layer(np.ones((2, 9, 9, 3), "float32")).shape)
    (2, 5, 5, 8)
    """
