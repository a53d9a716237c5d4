"""The layers of `tbptt_fast.jax.layers` as modules of Flax NNX.

    from tbptt_fast.jax.flax import LSTM

Each takes the sizes and options of the layer of its name, and `rngs`. Its parameters are
`nnx.Param`s by the layer's names, which are PyTorch's; `module.layer` is the layer itself.
Transformations, optimizers and checkpoints are Flax's own.
"""

from __future__ import annotations

from typing import Any, ClassVar

try:
    from flax import nnx
except ImportError as error:
    raise ImportError(
        "tbptt_fast.jax.flax needs Flax 0.10 or later: pip install 'tbptt_fast[flax]'"
    ) from error

from .._types import Truncation
from . import layers
from ._layer import Array, Params

__all__ = ["GRU", "LSTM", "RNN", "Conv1d", "Conv2d", "ConvGRU2d", "ConvLSTM2d", "ConvRNN2d"]


class _Module(nnx.Module):  # type: ignore[misc]
    """A layer and its parameters."""

    _layer: ClassVar[Any]

    def __init__(self, *sizes: Any, rngs: nnx.Rngs, **options: Any) -> None:
        self.layer = self._layer(*sizes, **options)
        for name, value in self.layer.init(rngs.params()).items():
            setattr(self, name, nnx.Param(value))

    def _params(self) -> Params:
        return {name: getattr(self, name)[...] for name in self.layer.names}


class _Recurrent(_Module):
    """A stack of recurrent layers, with a stream of its own for dropout's masks."""

    def __init__(self, *sizes: Any, rngs: nnx.Rngs, **options: Any) -> None:
        super().__init__(*sizes, rngs=rngs, **options)
        self.deterministic = False  # train() and eval() of every module that holds it set it
        if self.layer.dropout:
            self.rngs = rngs.dropout.fork()

    def __call__(
        self,
        x: Array,
        hx: Any = None,
        *,
        is_init: Array | None = None,
        truncation: Truncation = None,
        carry_scale: Array | None = None,
    ) -> tuple[Array, Any]:
        """The last layer's outputs and the new state: `apply` of the layer.

        With dropout, its masks come from the stream dropout of the `rngs` of the constructor, and
        `eval()` leaves them out.
        """
        dropping = self.layer.dropout and not self.deterministic
        found: tuple[Array, Any] = self.layer.apply(
            self._params(),
            x,
            hx,
            is_init=is_init,
            truncation=truncation,
            carry_scale=carry_scale,
            key=self.rngs() if dropping else None,
        )
        return found

    def zero_state(self, *sizes: Any) -> Any:
        """The layer's `zero_state`."""
        return self.layer.zero_state(*sizes)


class RNN(_Recurrent):
    """`tbptt_fast.jax.layers.RNN` as a module.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> rnn = RNN(3, 4, nonlinearity="relu", rngs=nnx.Rngs(0))
    >>> y, state = rnn(jnp.ones((5, 2, 3)))
    >>> y.shape, rnn.weight_hh_l0.shape
    ((5, 2, 4), (4, 4))
    """

    _layer = layers.RNN


class GRU(_Recurrent):
    """`tbptt_fast.jax.layers.GRU` as a module.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> gru = GRU(3, 4, num_layers=2, dropout=0.1, rngs=nnx.Rngs(0, dropout=1))
    >>> gru.eval()  # nothing is dropped
    >>> gru(jnp.ones((5, 2, 3)))[1].shape
    (2, 2, 4)
    """

    _layer = layers.GRU


class LSTM(_Recurrent):
    """`tbptt_fast.jax.layers.LSTM` as a module.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> lstm = LSTM(3, 4, rngs=nnx.Rngs(0))
    >>> @nnx.jit
    ... def gradients(model, x, state):
    ...     def loss(model):
    ...         y, carried = model(x, state, truncation=(1, 3))
    ...         return y.sum(), carried
    ...     return nnx.grad(loss, has_aux=True)(model)
    >>> grads, (h, c) = gradients(lstm, jnp.ones((5, 2, 3)), lstm.zero_state(2))
    >>> nnx.to_pure_dict(grads)["weight_hh_l0"].shape, c.shape
    ((16, 4), (1, 2, 4))
    """

    _layer = layers.LSTM


class ConvRNN2d(_Recurrent):
    """`tbptt_fast.jax.layers.ConvRNN2d` as a module."""

    _layer = layers.ConvRNN2d


class ConvGRU2d(_Recurrent):
    """`tbptt_fast.jax.layers.ConvGRU2d` as a module."""

    _layer = layers.ConvGRU2d


class ConvLSTM2d(_Recurrent):
    """`tbptt_fast.jax.layers.ConvLSTM2d` as a module.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> lstm = ConvLSTM2d(1, 4, 3, rngs=nnx.Rngs(0))
    >>> y, (h, c) = lstm(jnp.ones((5, 2, 1, 8, 8)), lstm.zero_state(2, (8, 8)))
    >>> y.shape
    (5, 2, 4, 8, 8)
    """

    _layer = layers.ConvLSTM2d


class _Conv(_Module):
    """A convolution."""

    def __call__(self, x: Array) -> Array:
        """The convolution of x: `apply` of the layer."""
        found: Array = self.layer.apply(self._params(), x)
        return found


class Conv1d(_Conv):
    """`tbptt_fast.jax.layers.Conv1d` as a module."""

    _layer = layers.Conv1d


class Conv2d(_Conv):
    """`tbptt_fast.jax.layers.Conv2d` as a module.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> conv = Conv2d(3, 8, 3, padding="same", activation="relu", rngs=nnx.Rngs(0))
    >>> conv(jnp.ones((2, 3, 5, 5))).shape
    (2, 8, 5, 5)
    """

    _layer = layers.Conv2d
