"""The kernels behind Keras's backend; part of `tbptt_fast.keras`.

Layers are written with `keras.ops` and call one of three adapters, which is chosen with the backend
of Keras, once for a process. Arrays here are the backend's own tensors, in the kernels' order:
time first, gates before inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Literal, Protocol, TypeAlias, cast

import keras

from .._options import Cell
from .._types import Activation, Layout

Tensor: TypeAlias = Any
# (top, bottom) and (left, right), or as many zeros as the kernels' "same" adds, which is Keras's
Padding: TypeAlias = tuple[tuple[int, int], tuple[int, int]] | Literal["same"]


class Adapter(Protocol):
    """What layers need of a framework; functions have gradients by all of their float tensors."""

    @property
    def missing(self) -> str | None:
        """Why this installation has no kernels for the backend; None where it has."""

    @property
    def supports_jit(self) -> bool:
        """Whether the calls can be part of what XLA compiles."""

    def recurrent(
        self,
        cell: Cell,
        x: Tensor,
        states: Sequence[Tensor],
        weights: Sequence[Tensor | None],
        is_init: Tensor | None,
        truncation: list[int] | None,
    ) -> tuple[Tensor, ...]:
        """All outputs [T, B, H] and the last states [B, H].

        x is [T, B, I], is_init bool [T, B]; weights are w_ih [G·H, I], w_hh [G·H, H] and the
        biases [G·H] or None, with the gates in the order of `tbptt_fast.lstm_forward` and so on.
        """

    def convlstm(
        self,
        x: Tensor,
        states: Sequence[Tensor],
        weights: Sequence[Tensor | None],
        is_init: Tensor | None,
        truncation: list[int] | None,
        layout: Layout,
    ) -> tuple[Tensor, ...]:
        """All outputs [T, B, H, Y, X] and the last h and c, or channels last with "NHWC".

        Weights are w_ih [4H, C, ky, kx], w_hh [4H, H, ky, kx] and one bias [4H] or None.
        """

    def convolution(
        self,
        x: Tensor,
        w: Tensor,
        b: Tensor | None,
        stride: tuple[int, int],
        padding: Padding,
        dilation: tuple[int, int],
        groups: int,
        activation: Activation,
        layout: Layout,
    ) -> Tensor:
        """Images [N, O, Y', X'], or channels last with "NHWC"; w is [O, I/groups, ky, kx]."""


_BACKEND = keras.backend.backend()
if _BACKEND not in ("jax", "tensorflow", "torch"):
    raise ImportError(
        "tbptt_fast.keras runs on the backends jax, tensorflow and torch of Keras, "
        f"got KERAS_BACKEND={_BACKEND}"
    )
adapter = cast(Adapter, import_module(f"{__package__}._backend_{_BACKEND}"))
# Keras on JAX takes the state for the output of the step before the first.
STATE_IS_OUTPUT = _BACKEND == "jax"
