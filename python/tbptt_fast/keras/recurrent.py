"""SimpleRNN, GRU and LSTM with Keras's interface; part of `tbptt_fast.keras`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from .._options import Cell
from ._backend import Tensor, adapter
from ._layer import PACKAGE, NativeRecurrent
from ._masks import SHUT

_TANH, _SIGMOID, _RELU = keras.activations.tanh, keras.activations.sigmoid, keras.activations.relu


def missing_activations(layer: Any) -> str | None:
    """Why a layer with gates has no kernel, if that is for its activations."""
    if layer.activation is not _TANH or layer.recurrent_activation is not _SIGMOID:
        return "gates have kernels for activation='tanh' and recurrent_activation='sigmoid' alone"
    return None


def _values(weights: Sequence[Any]) -> list[Any]:
    """Tensors, of which a bias may still be a variable of Keras."""
    return [None if w is None else ops.convert_to_tensor(w) for w in weights]


@keras.saving.register_keras_serializable(package=PACKAGE)
class SimpleRNN(NativeRecurrent, keras.layers.SimpleRNN):
    """keras.layers.SimpleRNN on native kernels.

    The constructor, weights and calls are those of Keras's layer; activations with a kernel are
    "tanh" and "relu". With `recurrent_dropout` or another activation Keras's own loop runs.

    Args:
        truncation: of the backward pass: None, K or (k1, k2), see `tbptt_fast.rnn_backward`.
            Windows count the steps of a call that are not masked.

    A call takes `is_init`, bool [batch, steps], too: True zeroes the state that enters that step.

    Raises:
        ValueError: what Keras refuses; a truncation that is none, or without a native kernel.

    Source: see `tbptt_fast.rnn_forward`.

    >>> import numpy as np
    >>> layer = SimpleRNN(4, truncation=2, return_sequences=True)
    >>> tuple(layer(np.ones((2, 6, 3), "float32")).shape), layer.get_config()["kernels"]
    ((2, 6, 4), 'tbptt_fast')
    """

    def missing_kernel(self) -> str | None:
        if self.activation not in (_TANH, _RELU):
            return "it has kernels for activation='tanh' and activation='relu' alone"
        return super().missing_kernel()

    def run_kernel(
        self, x: Tensor, states: Sequence[Tensor], is_init: Tensor | None, pads: Tensor | None
    ) -> tuple[Tensor, ...]:
        cell = self.cell
        w_ih, w_hh = ops.transpose(cell.kernel), ops.transpose(cell.recurrent_kernel)
        weights = (*_values((w_ih, w_hh, cell.bias)), None)
        name: Cell = "rnn_relu" if self.activation is _RELU else "rnn_tanh"
        return adapter.recurrent(name, x, states, weights, is_init, self.truncation)


@keras.saving.register_keras_serializable(package=PACKAGE)
class GRU(NativeRecurrent, keras.layers.GRU):
    """keras.layers.GRU on native kernels, for `reset_after=True`, which is the default.

    The constructor, weights and calls are those of Keras's layer. With `reset_after=False`,
    `recurrent_dropout` or other activations Keras's own loop runs.

    The other arguments and errors are those of `SimpleRNN`.

    Source: see `tbptt_fast.gru_forward`.

    >>> GRU(4).get_config()["kernels"], GRU(4, reset_after=False).get_config()["kernels"]
    ('tbptt_fast', 'keras')
    """

    def missing_kernel(self) -> str | None:
        if not self.reset_after:
            return "reset_after=False has no kernel"
        return missing_activations(self) or super().missing_kernel()

    def run_kernel(
        self, x: Tensor, states: Sequence[Tensor], is_init: Tensor | None, pads: Tensor | None
    ) -> tuple[Tensor, ...]:
        cell = self.cell
        weights = [_gates(ops.transpose(w)) for w in (cell.kernel, cell.recurrent_kernel)]
        (both,) = _values([cell.bias])
        biases = [None, None] if both is None else [_gates(both[0]), _gates(both[1])]
        return adapter.recurrent("gru", x, states, (*weights, *biases), is_init, self.truncation)


def _gates(w: Tensor) -> Tensor:
    """Rows of the gates r, z, n for those of Keras's order: z, r, n."""
    z, r, n = ops.split(w, 3, axis=0)
    return ops.concatenate([r, z, n], axis=0)


@keras.saving.register_keras_serializable(package=PACKAGE)
class LSTM(NativeRecurrent, keras.layers.LSTM):
    """keras.layers.LSTM on native kernels.

    The constructor, weights and calls are those of Keras's layer. With `recurrent_dropout` or other
    activations Keras's own loop runs.

    The other arguments and errors are those of `SimpleRNN`.

    Source: see `tbptt_fast.lstm_forward`.

    >>> import numpy as np
    >>> x, starts = np.ones((2, 6, 3), "float32"), np.zeros((2, 6), bool)
    >>> starts[:, 3] = True
    >>> out = keras.ops.convert_to_numpy(LSTM(4, return_sequences=True)(x, is_init=starts))
    >>> bool((out[:, :3] == out[:, 3:]).all())
    True
    """

    def missing_kernel(self) -> str | None:
        return missing_activations(self) or super().missing_kernel()

    def run_kernel(
        self, x: Tensor, states: Sequence[Tensor], is_init: Tensor | None, pads: Tensor | None
    ) -> tuple[Tensor, ...]:
        cell = self.cell
        w_ih, w_hh = ops.transpose(cell.kernel), ops.transpose(cell.recurrent_kernel)
        if pads is not None:
            x = ops.concatenate([x, ops.expand_dims(pads, 2)], axis=2)
            w_ih = ops.concatenate([w_ih, shut_gates(self.units, x.dtype)], axis=1)
        weights = (*_values((w_ih, w_hh, cell.bias)), None)
        return adapter.recurrent("lstm", x, states, weights, is_init, self.truncation)


def shut_gates(units: int, dtype: Any) -> Tensor:
    """Weights [4H, 1] of an input that, where it is 1, lets an LSTM's c pass as it is."""
    column = [-SHUT] * units + [SHUT] * units + [0.0] * (2 * units)
    return ops.expand_dims(
        ops.convert_to_tensor(column, dtype=keras.backend.standardize_dtype(dtype)), 1
    )
