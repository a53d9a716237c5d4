"""The base of all modules: what a module owns, and what forward and backward exchange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from .. import ops
from .._state import check_arrays, check_names, copy_into
from .._types import Array

Self = TypeVar("Self", bound="Module")


class Gradients(NamedTuple):
    """What a backward returns: sums over time, batch and windows, never means."""

    x: Array | None
    state: Any
    params: dict[str, Array]


class Tape:
    """What one forward keeps for its backward: opaque, may be run backward several times."""

    def __init__(self, owner: Module, saved: Sequence[Any]) -> None:
        self.owner = owner
        self.saved = tuple(saved)

    @property
    def nbytes(self) -> int:
        """Bytes kept alive; an array that two layers share counts in each of them."""
        return sum(int(getattr(item, "nbytes", 0)) for item in self.saved)

    def __repr__(self) -> str:
        return f"<Tape of {type(self.owner).__name__}, {self.nbytes} bytes>"


class Module:
    """Base of all modules: names, saves and restores what a module owns.

    A subclass fills `_parameters` (C-contiguous arrays), `_buffers` (arrays that are saved, but not
    trained), `_children` and `_generators`, and implements `_apply`, which is the forward pass with
    or without a tape, and `backward`.
    """

    def __init__(self) -> None:
        self.training = True
        self._parameters: dict[str, Array] = {}
        self._buffers: dict[str, Array] = {}
        self._generators: dict[str, np.random.Generator] = {}
        self._children: dict[str, Module] = {}

    def _apply(
        self, x: Array, state: Any, is_init: Array | None, keep: bool
    ) -> tuple[Array, Any, Tape | None]:
        raise NotImplementedError(f"{type(self).__name__} does not implement _apply")

    def forward(
        self, x: Array, state: Any = None, *, is_init: Array | None = None
    ) -> tuple[Array, Any, Tape]:
        """Return (y, new_state, tape) for x [T, B, ...]; the tape is for `backward`.

        `state` enters step 0, None means zeros; modules without a state take and return None.
        `is_init` [T, B] bool marks steps that start from a zero state. While `training` is True,
        dropout acts, and batch normalization uses the batch and updates its running values.

        Raises TypeError for a wrong dtype, ValueError for a wrong shape or state.
        """
        y, new_state, tape = self._apply(x, state, is_init, True)
        assert tape is not None
        return y, new_state, tape

    def __call__(
        self, x: Array, state: Any = None, *, is_init: Array | None = None
    ) -> tuple[Array, Any]:
        """Return (y, new_state) for inference: as after `eval`, no tape, memory for one step."""
        y, new_state, _ = self._apply(x, state, is_init, False)
        return y, new_state

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
        """Return the gradients of x, of the entering state and of every parameter.

        `grad_y` has the shape of y and `grad_state` that of new_state. `truncation` and
        `carry_scale` [T, B] have the meaning they have in `ops.lstm_backward`, in every recurrent
        layer by itself: K equals a detach of all layers every K steps, while with k1 < k2 a path
        may run through up to k2 steps of each layer. `needs_x=False` leaves `x` None.

        Raises ValueError for a tape of another module, and what the ops raise for the rest.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement backward")

    def parameters(self) -> dict[str, Array]:
        """Return the live arrays by PyTorch's names; updates in place change the module."""
        named = dict(self._parameters)
        for prefix, child in self._children.items():
            named.update({f"{prefix}.{name}": p for name, p in child.parameters().items()})
        return named

    def _state(self) -> dict[str, Array]:
        """The live parameters and buffers, in PyTorch's order."""
        named = {**self._parameters, **self._buffers}
        for prefix, child in self._children.items():
            named.update({f"{prefix}.{name}": array for name, array in child._state().items()})
        return named

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters and buffers by PyTorch's names."""
        return {name: array.copy() for name, array in self._state().items()}

    def load_state_dict(self, state: Mapping[str, Array], strict: bool = True) -> None:
        """Copy arrays into parameters and buffers, after names, shapes and dtypes were checked.

        `strict=False` loads the names that both sides have and leaves the others alone.

        Raises ValueError for names and shapes, TypeError for dtypes; nothing is written then.
        """
        where = f"{type(self).__name__}.load_state_dict"
        live = self._state()
        if strict:
            check_names(where, live, state)
        known = {name: array for name, array in state.items() if name in live}
        check_arrays(where, live, known)
        copy_into(live, known)

    def _named_generators(self) -> dict[str, np.random.Generator]:
        named = dict(self._generators)
        for prefix, child in self._children.items():
            named.update({f"{prefix}.{n}": g for n, g in child._named_generators().items()})
        return named

    def rng_state(self) -> dict[str, Any]:
        """Return the states of the generators that draw dropout masks, to resume bit for bit."""
        return {name: g.bit_generator.state for name, g in self._named_generators().items()}

    def set_rng_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `rng_state` returned; a bad state raises before anything is changed."""
        generators = self._named_generators()
        check_names(f"{type(self).__name__}.set_rng_state", generators, state)
        for name, generator in generators.items():
            type(generator.bit_generator)().state = state[name]
        for name, generator in generators.items():
            generator.bit_generator.state = state[name]

    def train(self: Self, mode: bool = True) -> Self:
        """Switch training in `forward` on (or off) here and in all children; return self."""
        self.training = mode
        for child in self._children.values():
            child.train(mode)
        return self

    def eval(self: Self) -> Self:
        """Switch training off; the same as `train(False)`."""
        return self.train(False)

    def _saved(self, tape: Tape) -> tuple[Any, ...]:
        if not isinstance(tape, Tape) or tape.owner is not self:
            kind = type(self).__name__
            raise ValueError(f"{kind}.backward: tape: expected one of this module, got {tape!r}")
        return tape.saved

    def _check_stateless(self, state: Any, name: str = "state") -> None:
        if state is not None:
            kind = type(self).__name__
            raise ValueError(f"{kind}: {name}: expected None, got {type(state).__name__}")

    def _gradient(self, grad_y: Array | None) -> Array:
        if grad_y is None:
            raise TypeError(f"{type(self).__name__}.backward: grad_y: expected an array, got None")
        return grad_y


def check_sizes(kind: str, **sizes: int) -> None:
    """Raise a ValueError unless every size is a positive integer."""
    for name, size in sizes.items():
        if not isinstance(size, int | np.integer) or size < 1:
            raise ValueError(f"{kind}: {name}: expected a positive integer, got {size!r}")


def check_dtype(kind: str, dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return float32 or float64 as a NumPy dtype; raise a TypeError for anything else."""
    found = np.dtype(dtype)
    if found not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"{kind}: dtype: expected float32 or float64, got {found}")
    return found


def check_input(kind: str, x: Array, dtype: np.dtype[Any], shape: tuple[str | int, ...]) -> None:
    """Raise unless x has this dtype and shape, whose letters stand for any size."""
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{kind}: x: expected an array, got {type(x).__name__}")
    if x.dtype != dtype:
        raise TypeError(f"{kind}: x: expected dtype {dtype}, got {x.dtype}")
    given, wanted = (x.shape[-1:], shape[1:]) if shape[0] == "..." else (x.shape, shape)
    sizes = zip(given, wanted, strict=False)
    if len(given) != len(wanted) or any(not isinstance(w, str) and n != w for n, w in sizes):
        expected = ", ".join(map(str, shape))
        raise ValueError(f"{kind}: x: expected shape [{expected}], got {list(x.shape)}")


def uniform(
    rng: np.random.Generator, fan: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Array:
    """Draw from U(-1/sqrt(fan), 1/sqrt(fan)), PyTorch's initialisation of these layers."""
    bound = 1 / np.sqrt(fan)
    return rng.uniform(-bound, bound, shape).astype(dtype)
