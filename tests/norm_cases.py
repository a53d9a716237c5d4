"""What the tests of batch and layer normalization share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from .cases import DTYPES, assert_close
from .test_boundary import sliced

dtypes = pytest.mark.parametrize("dtype", DTYPES)

# Means and deviations of the values; the last are those that E[x²] - E[x]² cannot tell apart.
SCALES = ((0.0, 1.0), (-3.0, 0.1), (1000.0, 0.05), (1e5, 1.0))

scales = pytest.mark.parametrize("scale", SCALES, ids=str)

# Strided, reversed and transposed views, which are to give the bits of contiguous arrays.
VIEWS: tuple[Callable[[Any], Any], ...] = (
    sliced,
    lambda a: np.ascontiguousarray(a[::-1])[::-1],
    np.asfortranarray,
)


def read_only(arrays: dict[str, Any], view: Callable[[Any], Any]) -> dict[str, Any]:
    """Views of the arrays that cannot be written to."""
    found = {name: view(array) for name, array in arrays.items()}
    for array in found.values():
        array.flags.writeable = False
    return found


def compare(
    actual: dict[str, Any], expected: dict[str, Any], a: dict[str, Any], lengths: dict[str, int]
) -> None:
    """Everything as exact as its dtype, and the statistics as double, of `lengths["sum"]` values.

    Where the mean is far larger than the deviation, the rounding of double grows by their ratio,
    in the oracle as well; that of float32 does not. The gradient of x is made of terms as large as
    the greatest inv_std, and may cancel.
    """
    assert actual.keys() == expected.keys()
    largest = float(expected["inv_std"].max())
    ratio = 1 + float(np.abs(a["x"]).max()) * largest
    double = float(np.finfo(np.float64).eps) * ratio * lengths["sum"] ** 0.5
    for name, value in actual.items():
        statistic = name in ("mean", "inv_std")
        assert value.dtype == ("float64" if statistic else a["x"].dtype), name
        assert_close(
            value,
            expected[name],
            "gradient" if name.startswith("grad") else "forward",
            length=lengths.get(name, 1),
            eps=double if statistic else double + float(np.finfo(value.dtype).eps),
            terms=max(1.0, 4 * largest) if name == "grad of x" else 1.0,
            name=name,
        )


def check_slopes(loss: Callable[[], float], pairs: list[tuple[Any, Any]]) -> None:
    """Central differences of loss() by every element of each array, changed in place."""
    step = 1e-5
    for array, gradient in pairs:
        assert array.shape == gradient.shape
        for index in np.ndindex(array.shape):
            value, found = array[index], []
            for sign in (1, -1):
                array[index] = value + sign * step
                found.append(loss())
            array[index] = value
            assert gradient[index] == pytest.approx((found[0] - found[1]) / (2 * step), abs=1e-7)
