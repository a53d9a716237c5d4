"""ConvLSTM2D with Keras's interface; part of `tbptt_fast.keras`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from ._backend import Tensor, adapter
from ._layer import PACKAGE, NativeRecurrent
from .convolution import convolve, layout_of
from .recurrent import missing_activations, shut_gates


@keras.saving.register_keras_serializable(package=PACKAGE)
class ConvLSTM2D(NativeRecurrent, keras.layers.ConvLSTM2D):
    """keras.layers.ConvLSTM2D on native kernels, for kernels of odd sizes.

    The constructor, weights and calls are those of Keras's layer. With kernels of even sizes,
    dropout or other activations Keras's own loop runs. A convolution of the inputs that keeps their
    size is part of the recurrent kernel; one with strides, dilation or `padding="valid"`, which is
    the default, is made of all steps before it.

    The other arguments and errors are those of `SimpleRNN`.

    Source: see `tbptt_fast.convlstm_forward`.

    >>> import numpy as np
    >>> layer = ConvLSTM2D(4, 3, padding="same", return_sequences=True, truncation=(2, 4))
    >>> tuple(layer(np.ones((2, 5, 8, 8, 1), "float32")).shape)
    (2, 5, 8, 8, 4)
    """

    def missing_kernel(self) -> str | None:
        if any(size % 2 == 0 for size in self.kernel_size):
            return "kernels of even sizes are not supported"
        return missing_activations(self) or super().missing_kernel()

    def run_kernel(
        self, x: Tensor, states: Sequence[Tensor], is_init: Tensor | None, pads: Tensor | None
    ) -> tuple[Tensor, ...]:
        cell: Any = self.cell
        w_ih, bias, dtype = ops.convert_to_tensor(cell.kernel), cell.bias, self.compute_dtype
        b = None if bias is None else ops.convert_to_tensor(bias)
        keeps_size = self.padding == "same" or self.kernel_size == (1, 1)
        if not keeps_size or max(*self.strides, *self.dilation_rate) > 1:
            x, w_ih, b = self._gates(x, w_ih, b), np.eye(4 * self.filters), None
            w_ih = ops.convert_to_tensor(w_ih[None, None], dtype=dtype)
        if pads is not None:
            x, w_ih = self._let_pass(x, w_ih, pads)
        w_hh = ops.convert_to_tensor(cell.recurrent_kernel)
        weights = (ops.transpose(w_ih, (3, 2, 0, 1)), ops.transpose(w_hh, (3, 2, 0, 1)), b)
        layout = layout_of(self.data_format)
        return adapter.convlstm(x, states, weights, is_init, self.truncation, layout)

    def _gates(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """What the inputs add to the gates, as images of all steps [T, B, …]."""
        size, images = ops.shape(x)[:2], ops.reshape(x, (-1, *x.shape[2:]))
        options = (self.strides, self.padding, self.dilation_rate, self.data_format)
        y = convolve(images, kernel, bias, *options)
        return ops.reshape(y, (*size, *y.shape[1:]))

    def _let_pass(self, x: Tensor, kernel: Tensor, pads: Tensor) -> tuple[Tensor, Tensor]:
        """One more channel, which lets c pass as it is where `pads` [T, B] is 1."""
        channel = -1 if self.data_format == "channels_last" else 2
        plane = ops.ones_like(x[..., :1] if channel == -1 else x[:, :, :1])
        x = ops.concatenate([x, plane * ops.reshape(pads, (*ops.shape(pads), 1, 1, 1))], channel)
        center = np.zeros((*kernel.shape[:2], 1, 1))
        center[kernel.shape[0] // 2, kernel.shape[1] // 2] = 1
        gates = ops.reshape(shut_gates(self.filters, self.compute_dtype), (1, 1, 1, -1))
        more = ops.convert_to_tensor(center, dtype=self.compute_dtype) * gates
        return x, ops.concatenate([kernel, more], 2)
