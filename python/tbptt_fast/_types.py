"""Names for the arrays that the primitives take and return."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
ArrayLike: TypeAlias = Any  # an ndarray or anything with __dlpack__ in CPU memory

Activation: TypeAlias = Literal["relu", "tanh", "sigmoid"] | None
Algo: TypeAlias = Literal["auto", "direct", "winograd", "winograd_2x2", "winograd_4x4"]
Layout: TypeAlias = Literal["NCHW", "NHWC"]

StatePair: TypeAlias = tuple[Array, Array]  # of an LSTM: h and c
Truncation: TypeAlias = int | tuple[int, int] | None
