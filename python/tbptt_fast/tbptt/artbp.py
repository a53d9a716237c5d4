"""Randomised truncation whose expectation is the full gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .._types import Array, ArrayLike
from .places import from_host, to_host


def artbp(
    steps: int,
    batch: int,
    *,
    cut: ArrayLike | None = None,
    mean_length: float | None = None,
    alpha: float = 6.0,
    rng: np.random.Generator | int | None = None,
    dtype: npt.DTypeLike = np.float32,
    like: Any = None,
) -> Any:
    """Draw a `carry_scale` [T, B] that cuts at random and makes up for it: unbiased truncation.

    Each row's gradient is cut before step t with probability c_t (the scale is 0) and otherwise
    multiplied by 1/(1 - c_t), so that its expectation over the draws is that of full
    backpropagation. The price is variance: the scales of a long uncut piece multiply.

    Args:
        steps, batch: T and B.
        cut: c, a number in [0, 1) or such numbers [T] or [T, B]. Give this or `mean_length`.
        mean_length: draws pieces of this length on average, above 1, that exceed n steps with a
            probability like n^-alpha: c_t = alpha / ((alpha - 1)·mean_length + δ_t) with
            δ_t = 1, 2, … the steps since the last cut. Along a piece the product of the scales then
            grows like n^alpha, and not exponentially as with a constant c.
        alpha: above 2, for pieces of finite variance; the larger, the closer to a constant c.
        rng: a generator, or the seed of one.
        dtype: float32 or float64, as the layer's arrays.
        like: an array of NumPy, PyTorch or CuPy, on a GPU, too: the same draws as an array of its
            library, its dtype and its device. In bfloat16 1/(1 - c) is rounded to 8 bits, a bias of
            up to 0.4 % in each step.

    Raises ValueError for sizes below 0, a probability outside [0, 1), a length of 1 or less, an
    alpha of 2 or less, or both or neither of `cut` and `mean_length`; TypeError for a `like` of
    another library.

    Source: Tallec & Ollivier (2017), "Unbiasing truncated backpropagation through time",
    arXiv:1705.08209. It allows any c_t that depends on earlier cuts only; the one of `mean_length`
    has that mean exactly.

    >>> artbp(4, 2, cut=0.5, rng=0).tolist()
    [[2.0, 0.0], [0.0, 0.0], [2.0, 2.0], [2.0, 2.0]]
    >>> scale = artbp(1000, 50, mean_length=20, rng=0)
    >>> pieces = 50 + (scale[1:] == 0).sum()
    >>> bool(18 < 1000 * 50 / pieces < 22)
    True
    """
    if steps < 0 or batch < 0:
        raise ValueError(f"artbp: expected sizes of at least 0, got {steps} and {batch}")
    if (cut is None) == (mean_length is None):
        raise ValueError(
            f"artbp: expected either cut or mean_length, got {'neither' if cut is None else 'both'}"
        )
    draws = np.random.default_rng(rng).random((steps, batch))
    if mean_length is None:
        c = _probabilities(cut, steps, batch)
        return _placed(np.where(draws < c, 0.0, 1 / (1 - c)), dtype, like)
    if not 1 < mean_length < np.inf:
        raise ValueError(f"artbp: mean_length: expected a length above 1, got {mean_length}")
    if not 2 < alpha < np.inf:
        raise ValueError(f"artbp: alpha: expected a value above 2, got {alpha}")
    scale = np.empty((steps, batch))
    since = np.ones(batch)
    for t in range(steps):
        c = alpha / ((alpha - 1) * mean_length + since)
        cuts = draws[t] < c
        scale[t] = np.where(cuts, 0.0, 1 / (1 - c))
        since = np.where(cuts, 1.0, since + 1)
    return _placed(scale, dtype, like)


def _placed(scale: Array, dtype: npt.DTypeLike, like: Any) -> Any:
    return scale.astype(dtype) if like is None else from_host(scale, like, "artbp: like")


def _probabilities(cut: ArrayLike, steps: int, batch: int) -> Array:
    c = np.asarray(to_host(cut, "artbp: cut"), np.float64)
    if not ((c >= 0) & (c < 1)).all():
        raise ValueError(f"artbp: cut: expected probabilities in [0, 1), got {cut}")
    if c.shape == (steps,):
        c = c[:, None]
    elif c.shape not in ((), (steps, batch)):
        raise ValueError(
            f"artbp: cut: expected a number or shape [{steps}] or [{steps}, {batch}], "
            f"got {list(c.shape)}"
        )
    return np.broadcast_to(c, (steps, batch))
