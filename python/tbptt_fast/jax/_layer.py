"""What the layers of `tbptt_fast.jax.layers` share: parameters, and stacks of recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import jax
import numpy.typing as npt
from jax import numpy as jnp

from .._state import check_names
from .._types import Truncation
from ..nn.module import check_sizes

Array: TypeAlias = jax.Array
Params: TypeAlias = dict[str, Array]
Shapes: TypeAlias = dict[str, tuple[tuple[int, ...], float]]  # with the bound of first values


def per_axis(kind: str, name: str, value: Any, rank: int) -> tuple[int, ...]:
    """One size for each axis, from one for all or a sequence."""
    sizes = tuple(value) if isinstance(value, Sequence) else (value,) * rank
    if len(sizes) != rank:
        raise ValueError(f"{kind}: {name}: expected an integer or {rank} of them, got {value!r}")
    for size in sizes:
        check_sizes(kind, **{name: size})
    return sizes


class Layer:
    """What parameters a layer has."""

    dtype: npt.DTypeLike

    @property
    def _kind(self) -> str:
        return type(self).__name__

    def _shapes(self) -> Shapes:
        raise NotImplementedError

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the parameters."""
        return tuple(self._shapes())

    def _set(self, **options: Any) -> None:
        """Options in the one form that equal layers share."""
        for name, value in options.items():
            object.__setattr__(self, name, value)

    def init(self, key: Array) -> Params:
        """Draw the parameters from U(-bound, bound), with the bounds of torch.nn.

        Raises:
            ValueError: float64, which JAX has with jax_enable_x64 alone.
        """
        if self.dtype == jnp.float64 and not jax.config.jax_enable_x64:
            raise ValueError(f"{self._kind}: dtype: float64 needs jax_enable_x64")
        shapes = self._shapes()
        keys = jax.random.split(key, len(shapes))
        return {
            name: jax.random.uniform(one, shape, self.dtype, -bound, bound)
            for one, (name, (shape, bound)) in zip(keys, shapes.items(), strict=True)
        }


class Stack(Layer):
    """A stack of recurrent layers; they differ in their function and in the form of the state."""

    num_layers: int
    bias: bool
    dropout: float
    _gates: ClassVar[int]
    _pair: ClassVar[bool] = False  # whether the state is (h, c)

    def _check_stack(self) -> None:
        kind, dropout = self._kind, self.dropout
        check_sizes(kind, num_layers=self.num_layers)
        if not 0 <= dropout < 1:
            raise ValueError(f"{kind}: dropout: expected a value in [0, 1), got {dropout}")
        if dropout and self.num_layers == 1:
            raise ValueError(
                f"{kind}: dropout: acts between layers, expected 0 for one layer, got {dropout}"
            )

    def _layer_shapes(self, layer: int) -> Shapes:
        """Those of one layer, by names without its number."""
        raise NotImplementedError

    def _shapes(self) -> Shapes:
        return {
            f"{name}_l{layer}": shape
            for layer in range(self.num_layers)
            for name, shape in self._layer_shapes(layer).items()
        }

    def _run(self, weights: Params, x: Array, hx: Any, options: dict[str, Any]) -> Any:
        """One layer."""
        raise NotImplementedError

    def _layer_states(self, hx: Any) -> list[Any]:
        """Cut a state [L, ...] into one for each layer."""
        if hx is None:
            return [None] * self.num_layers
        states = tuple(hx) if self._pair and isinstance(hx, (tuple, list)) else (hx,)
        if len(states) != 1 + self._pair:
            got = f"{len(states)} items" if len(states) > 1 else type(hx).__name__
            raise ValueError(f"{self._kind}: hx: expected a pair (h, c), got {got}")
        for state in states:
            if state is not None and jnp.shape(state)[:1] != (self.num_layers,):
                raise ValueError(
                    f"{self._kind}: hx: expected shape [{self.num_layers}, ...], "
                    f"got {[*jnp.shape(state)]}"
                )
        cut = [
            tuple(None if state is None else state[layer] for state in states)
            for layer in range(self.num_layers)
        ]
        return cut if self._pair else [state for (state,) in cut]

    def _zeros(self, *shape: int) -> Any:
        """A state of zeros; two arrays of a pair, so that both may be donated."""
        made = [jnp.zeros((self.num_layers, *shape), self.dtype) for _ in range(1 + self._pair)]
        return tuple(made) if self._pair else made[0]

    def apply(
        self,
        params: Params,
        x: Array,
        hx: Any = None,
        *,
        is_init: Array | None = None,
        truncation: Truncation = None,
        carry_scale: Array | None = None,
        key: Array | None = None,
    ) -> tuple[Array, Any]:
        """The last layer's outputs, and the state that the next call may begin with.

        Args:
            params: what `init` returns.
            x: [T, B, ...].
            hx: the state that enters, or None (zeros).
            is_init, truncation, carry_scale: of every layer by itself, as in `tbptt_fast.jax.rnn`.
            key: draws the masks of dropout; without one nothing is dropped.

        Raises:
            TypeError, ValueError: a wrong dtype; a wrong name, shape or value.
        """
        names = list(self._layer_shapes(0))
        check_names(f"{self._kind}: params", self.names, params)
        options = {"is_init": is_init, "truncation": truncation, "carry_scale": carry_scale}
        states = []
        for layer, entering in enumerate(self._layer_states(hx)):
            if layer and self.dropout and key is not None:
                key, drawn = jax.random.split(key)
                kept = jax.random.bernoulli(drawn, 1 - self.dropout, x.shape)
                x = jnp.where(kept, x / (1 - self.dropout), 0)
            weights = {name: params[f"{name}_l{layer}"] for name in names}
            x, state = self._run(weights, x, entering, options)
            states.append(state)
        return x, jax.tree.map(lambda *each: jnp.stack(each), *states)
