"""Stacks of recurrent layers: RNN, GRU, LSTM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from .. import ops
from .._types import Array
from .module import (
    Gradients,
    Module,
    Tape,
    check_dtype,
    check_input,
    check_sizes,
    uniform,
)


class _Recurrent(Module):
    """A stack of recurrent layers; the cells differ in their ops and in the form of the state."""

    _gates: ClassVar[int]
    _cell_backward: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        seed: int | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        kind = type(self).__name__
        check_sizes(kind, input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self._names = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if bias else ()))
        found = check_dtype(kind, dtype)
        rng = np.random.default_rng(seed)
        self._set_dropout(dropout, rng)
        rows = self._gates * hidden_size
        for layer in range(num_layers):
            columns = {"weight_ih": hidden_size if layer else input_size, "weight_hh": hidden_size}
            for name in self._names:
                shape = (rows, columns[name]) if name in columns else (rows,)
                self._parameters[f"{name}_l{layer}"] = uniform(rng, hidden_size, shape, found)

    def _set_dropout(self, dropout: float, rng: np.random.Generator) -> None:
        kind = type(self).__name__
        if not 0 <= dropout < 1:
            raise ValueError(f"{kind}: dropout: expected a value in [0, 1), got {dropout}")
        if dropout and self.num_layers == 1:
            raise ValueError(
                f"{kind}: dropout: acts between layers, expected 0 for one layer, got {dropout}"
            )
        self.dropout = dropout
        if dropout:
            self._generators["dropout"] = rng

    def _cell_forward(
        self, x: Array, hx: Any, weights: list[Array], is_init: Array | None, keep: bool
    ) -> tuple[Array, Any, Any]:
        raise NotImplementedError

    def _input_shape(self) -> tuple[str | int, ...]:
        return "T", "B", self.input_size

    def _state_shape(self) -> tuple[str | int, ...]:
        """Of one layer; letters stand for any size."""
        return "B", self.hidden_size

    def _layer_states(self, name: str, state: Any) -> list[Any]:
        """Cut a state h [L, B, …] into one hx per layer."""
        where = f"{type(self).__name__}: {name}"
        if state is None:
            return [None] * self.num_layers
        if not isinstance(state, np.ndarray):
            raise TypeError(f"{where}: expected an array, got {type(state).__name__}")
        wanted = (self.num_layers, *self._state_shape())
        if state.ndim != len(wanted) or any(
            isinstance(w, int) and n != w for n, w in zip(state.shape, wanted, strict=True)
        ):
            expected = ", ".join(map(str, wanted))
            raise ValueError(f"{where}: expected shape [{expected}], got {list(state.shape)}")
        return list(state)

    def _stack_states(self, states: Sequence[Any]) -> Any:
        return np.stack(states) if len(states) > 1 else states[0][np.newaxis]

    def _apply(
        self, x: Array, state: Any, is_init: Array | None, keep: bool
    ) -> tuple[Array, Any, Tape | None]:
        dtype = self._parameters["weight_hh_l0"].dtype
        check_input(type(self).__name__, x, dtype, self._input_shape())
        dropping = keep and self.training and self.dropout > 0
        finals, tapes, masks = [], [], []
        for layer, hx in enumerate(self._layer_states("state", state)):
            if layer and dropping:
                # float32 draws for both dtypes: half the work, and one stream of masks
                drawn = self._generators["dropout"].random(x.shape, np.float32)
                masks.append(drawn >= self.dropout)
                x = self._drop(x, masks[-1])
            weights = [self._parameters[f"{name}_l{layer}"] for name in self._names]
            x, final, tape = self._cell_forward(x, hx, weights, is_init, keep)
            finals.append(final)
            tapes.append(tape)
        return x, self._stack_states(finals), Tape(self, tapes + masks) if keep else None

    def _drop(self, a: Array, mask: Array) -> Array:
        kept = a * mask
        kept *= 1 / (1 - self.dropout)
        return kept

    def backward(
        self,
        tape: Tape,
        grad_y: Array | None,
        *,
        grad_state: Any = None,
        truncation: ops.Truncation = None,
        carry_scale: Array | None = None,
        needs_x: bool = True,
    ) -> Gradients:
        saved = self._saved(tape)
        tapes, masks = saved[: self.num_layers], saved[self.num_layers :]
        grad_hx = self._layer_states("grad_state", grad_state)
        grad, states, layers = grad_y, [], []
        for layer in reversed(range(self.num_layers)):
            grads = self._cell_backward(
                tapes[layer], grad, grad_hx[layer], truncation=truncation, carry_scale=carry_scale
            )
            grad = self._drop(grads.x, masks[layer - 1]) if layer and masks else grads.x
            states.append(grads.hx)
            layers.append([array for array in grads[2:] if array is not None])
        params = {
            f"{name}_l{layer}": array
            for layer, arrays in enumerate(reversed(layers))
            for name, array in zip(self._names, arrays, strict=True)
        }
        return Gradients(grad if needs_x else None, self._stack_states(states[::-1]), params)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.input_size}, {self.hidden_size}, {self.num_layers})"


class _PairState(_Recurrent):
    """Layers whose state is the pair (h, c)."""

    def _layer_states(self, name: str, state: Any) -> list[Any]:
        if state is None:
            return [None] * self.num_layers
        if not isinstance(state, tuple | list) or len(state) != 2:
            got = f"{len(state)} items" if isinstance(state, tuple | list) else type(state).__name__
            kind = type(self).__name__
            raise ValueError(f"{kind}: {name}: expected a pair (h, c), got {got}")
        h, c = (super(_PairState, self)._layer_states(f"{name}[{i}]", state[i]) for i in (0, 1))
        return list(zip(h, c, strict=True))

    def _stack_states(self, states: Sequence[Any]) -> Any:
        h, c = zip(*states, strict=True)
        return super()._stack_states(h), super()._stack_states(c)


class RNN(_Recurrent):
    """Elman network: h' = act(W_ih x + b_ih + W_hh h + b_hh), act tanh or relu.

    x [T, B, input_size], y [T, B, hidden_size], state h [num_layers, B, hidden_size]; parameters
    weight_ih_l0 [H, I], weight_hh_l0 [H, H], bias_ih_l0, bias_hh_l0 [H], then _l1 and so on.
    Dropout acts between layers, with masks from a generator that starts from `seed`.

    Raises ValueError for sizes, dropout or nonlinearity, TypeError for a dtype that is not float32
    or float64. Source: Elman, Finding structure in time (1990); layout of torch.nn.RNN.

    >>> rnn = RNN(3, 4, seed=0)
    >>> y, state, tape = rnn.forward(np.ones((5, 2, 3), np.float32))
    >>> y.shape, state.shape
    ((5, 2, 4), (1, 2, 4))
    >>> rnn.backward(tape, np.ones_like(y), truncation=2).params["weight_hh_l0"].shape
    (4, 4)
    """

    _gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        bias: bool = True,
        dropout: float = 0.0,
        seed: int | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"RNN: nonlinearity: expected tanh or relu, got {nonlinearity!r}")
        super().__init__(
            input_size, hidden_size, num_layers, bias=bias, dropout=dropout, seed=seed, dtype=dtype
        )
        self.nonlinearity = nonlinearity

    def _cell_forward(
        self, x: Array, hx: Any, weights: list[Array], is_init: Array | None, keep: bool
    ) -> tuple[Array, Any, Any]:
        return ops.rnn_forward(
            x, hx, *weights, nonlinearity=self.nonlinearity, is_init=is_init, training=keep
        )

    _cell_backward = staticmethod(ops.rnn_backward)


class GRU(_Recurrent):
    """Gated recurrent units, with the reset gate applied after the recurrent product.

    x [T, B, input_size], y [T, B, hidden_size], state h [num_layers, B, hidden_size]; parameters
    weight_ih_l0 [3H, I], weight_hh_l0 [3H, H], bias_ih_l0, bias_hh_l0 [3H], gates in the order
    r, z, n. Dropout acts between layers, with masks from a generator that starts from `seed`.

    Raises ValueError for sizes or dropout, TypeError for a dtype that is not float32 or float64.
    Source: Cho et al., arXiv:1406.1078; layout of torch.nn.GRU.

    >>> gru = GRU(3, 4, num_layers=2, dropout=0.1, seed=0)
    >>> y, state = gru(np.ones((5, 2, 3), np.float32))
    >>> y.shape, state.shape
    ((5, 2, 4), (2, 2, 4))
    """

    _gates = 3

    def _cell_forward(
        self, x: Array, hx: Any, weights: list[Array], is_init: Array | None, keep: bool
    ) -> tuple[Array, Any, Any]:
        return ops.gru_forward(x, hx, *weights, is_init=is_init, training=keep)

    _cell_backward = staticmethod(ops.gru_backward)


class LSTM(_PairState):
    """Long short-term memory; the state is the pair (h, c).

    x [T, B, input_size], y [T, B, hidden_size], h and c [num_layers, B, hidden_size]; parameters
    weight_ih_l0 [4H, I], weight_hh_l0 [4H, H], bias_ih_l0, bias_hh_l0 [4H], gates in the order
    i, f, g, o. Dropout acts between layers, with masks from a generator that starts from `seed`.

    Raises ValueError for sizes or dropout, TypeError for a dtype that is not float32 or float64.
    Source: Hochreiter and Schmidhuber (1997), forget gate of Gers et al. (2000); layout of
    torch.nn.LSTM.

    >>> lstm = LSTM(3, 4, seed=0)
    >>> y, (h, c), tape = lstm.forward(np.ones((5, 2, 3), np.float32))
    >>> y.shape, h.shape, c.shape
    ((5, 2, 4), (1, 2, 4), (1, 2, 4))
    >>> grads = lstm.backward(tape, None, grad_state=(np.ones_like(h), None))
    >>> grads.x.shape
    (5, 2, 3)
    """

    _gates = 4

    def _cell_forward(
        self, x: Array, hx: Any, weights: list[Array], is_init: Array | None, keep: bool
    ) -> tuple[Array, Any, Any]:
        return ops.lstm_forward(x, hx, *weights, is_init=is_init, training=keep)

    _cell_backward = staticmethod(ops.lstm_backward)
