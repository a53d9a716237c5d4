"""Names for the arrays that the primitives take and return."""

from __future__ import annotations

from typing import Any, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
ArrayLike: TypeAlias = Any  # an ndarray or anything with __dlpack__ in CPU memory
