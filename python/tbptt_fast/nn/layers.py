"""Modules without a state, and the chain that joins modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import ops
from .._types import Activation, Array
from .module import (
    Gradients,
    Module,
    Tape,
    check_dtype,
    check_input,
    check_sizes,
    uniform,
)


class Linear(Module):
    """Affine map with a fused activation: y = act(x Wᵀ + b), act None, relu, tanh or sigmoid.

    x [..., in_features], y [..., out_features]; parameters weight [out_features, in_features] and
    bias [out_features], drawn from U(-1/sqrt(in_features), 1/sqrt(in_features)).

    Raises ValueError for sizes or activation, TypeError for a dtype that is not float32 or
    float64. Source: layout and initialisation of torch.nn.Linear.

    >>> linear = Linear(3, 2, activation="relu", seed=0)
    >>> y, _, tape = linear.forward(np.ones((5, 4, 3), np.float32))
    >>> grads = linear.backward(tape, np.ones_like(y))
    >>> y.shape, grads.x.shape, grads.params["weight"].shape
    ((5, 4, 2), (5, 4, 3), (2, 3))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: Activation = None,
        *,
        seed: int | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        check_sizes("Linear", in_features=in_features, out_features=out_features)
        if activation not in (None, "relu", "tanh", "sigmoid"):
            raise ValueError(
                f"Linear: activation: expected None, relu, tanh or sigmoid, got {activation!r}"
            )
        self.in_features, self.out_features, self.activation = in_features, out_features, activation
        found = check_dtype("Linear", dtype)
        rng = np.random.default_rng(seed)
        self._parameters["weight"] = uniform(rng, in_features, (out_features, in_features), found)
        if bias:
            self._parameters["bias"] = uniform(rng, in_features, (out_features,), found)

    def _apply(
        self, x: Array, state: Any, is_init: Array | None, keep: bool
    ) -> tuple[Array, Any, Tape | None]:
        self._check_stateless(state)
        weight, bias = self._parameters["weight"], self._parameters.get("bias")
        check_input("Linear", x, weight.dtype, ("...", self.in_features))
        y = ops.linear(x, weight, bias, activation=self.activation)
        saved = (x,) if self.activation is None else (x, y)
        return y, None, Tape(self, saved) if keep else None

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
        x, y = self._saved(tape)[0], self._saved(tape)[-1]
        self._check_stateless(grad_state, "grad_state")
        grads = ops.linear_backward(
            self._gradient(grad_y),
            x,
            self._parameters["weight"],
            y=None if self.activation is None else y,
            activation=self.activation,
            needs=("x", "w", "b") if needs_x else ("w", "b"),
        )
        found = {"weight": grads.w, "bias": grads.b if "bias" in self._parameters else None}
        return Gradients(grads.x, None, {n: g for n, g in found.items() if g is not None})

    def __repr__(self) -> str:
        return f"Linear({self.in_features}, {self.out_features}, activation={self.activation!r})"


class Embedding(Module):
    """Table of vectors: y[..., :] = weight[ids[...]].

    ids [...] int32 or int64 below num_embeddings, y [..., embedding_dim]; parameter weight
    [num_embeddings, embedding_dim], drawn from N(0, 1). Ids have no gradient: `x` is None.

    Raises ValueError for sizes, TypeError for a dtype that is not float32 or float64. Source:
    layout and initialisation of torch.nn.Embedding.

    >>> embedding = Embedding(10, 3, seed=0)
    >>> y, _, tape = embedding.forward(np.array([[1, 2], [1, 9]]))
    >>> grads = embedding.backward(tape, np.ones_like(y))
    >>> grads.params["weight"][:3, 0].tolist()
    [0.0, 2.0, 1.0]
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        seed: int | None = None,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__()
        check_sizes("Embedding", num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        found = check_dtype("Embedding", dtype)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        drawn = np.random.default_rng(seed).standard_normal((num_embeddings, embedding_dim))
        self._parameters["weight"] = drawn.astype(found)

    def _apply(
        self, x: Array, state: Any, is_init: Array | None, keep: bool
    ) -> tuple[Array, Any, Tape | None]:
        self._check_stateless(state)
        y = ops.embedding(x, self._parameters["weight"])
        return y, None, Tape(self, (x,)) if keep else None

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
        (ids,) = self._saved(tape)
        self._check_stateless(grad_state, "grad_state")
        weight = ops.embedding_backward(self._gradient(grad_y), ids, self.num_embeddings)
        return Gradients(None, None, {"weight": weight})

    def __repr__(self) -> str:
        return f"Embedding({self.num_embeddings}, {self.embedding_dim})"


class Sequential(Module):
    """Chain of modules; the state is a tuple with one entry per child, None for a stateless one.

    Parameters carry the child's position, as in "0.weight". `is_init`, `truncation` and
    `carry_scale` reach every recurrent child.

    Raises TypeError for a child that is no Module, ValueError for one that appears twice or for a
    state with another number of entries. Source: names of torch.nn.Sequential.

    >>> from tbptt_fast.nn import LSTM
    >>> model = Sequential(Embedding(65, 8, seed=0), LSTM(8, 16, seed=1), Linear(16, 65, seed=2))
    >>> logits, state, tape = model.forward(np.zeros((5, 4), np.int64))
    >>> logits.shape
    (5, 4, 65)
    >>> grads = model.backward(tape, np.ones_like(logits))
    >>> grads.params["2.weight"].shape
    (65, 16)
    >>> logits, state = model(np.zeros((1, 4), np.int64), state)
    """

    def __init__(self, *modules: Module) -> None:
        super().__init__()
        for position, child in enumerate(modules):
            if not isinstance(child, Module):
                raise TypeError(
                    f"Sequential: {position}: expected a Module, got {type(child).__name__}"
                )
            if any(child is other for other in modules[:position]):
                # its gradients would arrive under two names and be applied twice
                raise ValueError(f"Sequential: {position}: {child!r} appears twice")
            self._children[str(position)] = child

    def _child_states(self, name: str, state: Any) -> tuple[Any, ...]:
        if state is None:
            return (None,) * len(self)
        if not isinstance(state, tuple | list) or len(state) != len(self):
            got = f"{len(state)} items" if isinstance(state, tuple | list) else type(state).__name__
            raise ValueError(f"Sequential: {name}: expected a tuple of {len(self)}, got {got}")
        return tuple(state)

    def _apply(
        self, x: Array, state: Any, is_init: Array | None, keep: bool
    ) -> tuple[Array, Any, Tape | None]:
        finals, tapes = [], []
        for child, entry in zip(self, self._child_states("state", state), strict=True):
            x, final, tape = child._apply(x, entry, is_init, keep)
            finals.append(final)
            tapes.append(tape)
        return x, tuple(finals), Tape(self, tapes) if keep else None

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
        tapes, entries = self._saved(tape), self._child_states("grad_state", grad_state)
        grad, states, params = grad_y, [], {}
        for position in reversed(range(len(self))):
            grads = self[position].backward(
                tapes[position],
                grad,
                grad_state=entries[position],
                truncation=truncation,
                carry_scale=carry_scale,
                needs_x=needs_x or position > 0,
            )
            grad = grads.x
            states.append(grads.state)
            params.update({f"{position}.{name}": g for name, g in grads.params.items()})
        ordered = {name: params[name] for name in self.parameters()}
        return Gradients(grad, tuple(states[::-1]), ordered)

    def __len__(self) -> int:
        return len(self._children)

    def __getitem__(self, position: int) -> Module:
        return list(self._children.values())[position]

    def __iter__(self) -> Iterator[Module]:
        return iter(self._children.values())

    def __repr__(self) -> str:
        return f"Sequential({', '.join(map(repr, self))})"
