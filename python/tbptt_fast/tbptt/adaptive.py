"""Choosing how far to run back from how gradients decay, with a bound on the bias that is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from .._types import Array, ArrayLike
from .places import to_host

Fit: TypeAlias = Literal["least_squares", "largest", "quantile"]

_NEGLIGIBLE = -50.0  # log φ below which a value says nothing about the decay


@dataclass(frozen=True, eq=False, repr=False)
class AdaptiveK:
    """What `adaptive_k` chose, and on which grounds.

    Attributes:
        k: cells that each loss should reach.
        met: whether the bound on the relative bias at k is below delta.
        delta: the relative bias that was asked for.
        beta: factor by which the gradient decays per step beyond `tau`; 1 or more is no decay.
        tau: the lag from which the decay was taken as geometric. It is earlier than the one asked
            for where later gradients are too small to tell a slope.
        phi: mean norm of the gradient at each lag [W + 1].
        fitted: the line through log φ, as norms [W + 1]; NaN at lags that it was not fitted to.
        absolute: bound on the norm of what truncation at K leaves out, by K = 0, 1, …
        relative: the same divided by `gradient`, by K = 0, 1, …
        gradient: lower bound on the norm of the full gradient.
    """

    k: int
    met: bool
    delta: float
    beta: float
    tau: int
    phi: Array
    fitted: Array
    absolute: Array
    relative: Array
    gradient: float

    @property
    def decays(self) -> bool:
        """Whether the gradient decays beyond tau; without that there is no bound."""
        return self.beta < 1

    def __repr__(self) -> str:
        if self.met:
            return (
                f"K = {self.k}: relative bias at most {self.relative[self.k]:.3g}, below "
                f"{self.delta:g} (decay {self.beta:.4g} per step beyond lag {self.tau})"
            )
        chosen = f"K = {self.k}, the largest allowed: "
        if not np.isfinite(self.phi).all():
            return chosen + "the gradients are not finite"
        if not self.decays:
            return (
                chosen + f"no decay beyond lag {self.tau} ({self.beta:.4g} per step), "
                f"so the bias has no bound"
            )
        if not self.gradient > 0:
            return chosen + "the full gradient has no positive lower bound"
        return (
            chosen + f"relative bias at most {self.relative[self.k]:.3g}, not below "
            f"{self.delta:g} (decay {self.beta:.4g} per step beyond lag {self.tau})"
        )


def adaptive_k(
    phi: ArrayLike,
    *,
    delta: float = 0.1,
    tau: int | None = None,
    k_min: int = 1,
    k_max: int | None = None,
    fit: Fit = "least_squares",
    lags: Literal["tail", "all"] = "tail",
    quantile: float = 0.95,
    gradient: ArrayLike | None = None,
) -> AdaptiveK:
    """The smallest K whose bound on the relative bias of the truncated gradient is below delta.

    Beyond lag tau the gradient is assumed to decay geometrically, φ_(τ+t) <= β^t·φ_τ. Cutting
    after K cells then leaves out at most E(K) = Σ_(K <= k < τ) φ_k + φ_τ/(1-β) for K < τ and
    φ_τ·β^(K-τ)/(1-β) otherwise, in units of the gradient by the state. The full gradient is at
    least max_K ‖ĝ_K‖ - E(K), with ĝ_K the gradient of the lags up to K.

    Args:
        phi: norms by lag: of `lag_norms` [W + 1, T, B], where each lag is averaged over the losses
            that have as many steps before them; [W + 1, N] of N losses with at least W steps before
            them; or their means [W + 1]. What lies on a GPU is waited for, and copied.
        delta: the relative bias to stay below.
        tau: where the geometric decay begins; None for 0.8·W.
        k_min, k_max: limits of K; None for W. Beyond W the bound extrapolates.
        fit: how β is found from log φ: the slope of a line of least squares; "largest", the
            largest slope from the first lag of the fit; or "quantile", that quantile of the slopes
            between all pairs of lags. Values below e^-50 are left out.
        lags: fit the lags tau … W ("tail") or all of them, as the authors' code does.
        quantile: of the pairwise slopes.
        gradient: ‖ĝ_K‖ for K = 0 … W, as in `measure_lags`; None takes the looser Σ_(k <= K) φ_k,
            which is too large where gradients of different lags or rows cancel.

    Returns:
        AdaptiveK; where no K in the range is good enough, K is k_max and `met` is False. β >= 1
        has an infinite bound.

    Raises ValueError for a wrong shape or range, a negative norm or an unknown name; TypeError for
    an array on a GPU of another library than PyTorch and CuPy.

    Source: Aicher, Foti & Fox (2019), "Adaptively truncating backpropagation through time to
    control gradient bias", arXiv:1905.07473.

    >>> import numpy as np
    >>> choice = adaptive_k(0.8 ** np.arange(51), delta=0.1)
    >>> choice
    K = 11: relative bias at most 0.0859, below 0.1 (decay 0.8 per step beyond lag 40)
    >>> adaptive_k(np.ones(51), k_max=20)
    K = 20, the largest allowed: no decay beyond lag 40 (1 per step), so the bias has no bound
    """
    mean = _mean_by_lag(np.asarray(to_host(phi, "adaptive_k: phi"), np.float64))
    last = len(mean) - 1
    k_max = last if k_max is None else k_max
    tau = round(0.8 * last) if tau is None else tau
    if not 1 <= k_min <= k_max:
        raise ValueError(f"adaptive_k: expected 1 <= k_min <= k_max, got {k_min} and {k_max}")
    if not 0 <= tau <= last:
        raise ValueError(f"adaptive_k: tau: expected a lag from 0 to {last}, got {tau}")
    if not delta > 0:
        raise ValueError(f"adaptive_k: delta: expected a value above 0, got {delta}")
    if not 0 <= quantile <= 1:
        raise ValueError(f"adaptive_k: quantile: expected a value in [0, 1], got {quantile}")
    if lags not in ("tail", "all"):
        raise ValueError(f"adaptive_k: lags: expected 'tail' or 'all', got {lags!r}")
    if gradient is None:
        partial = np.cumsum(mean)
    else:
        partial = np.asarray(to_host(gradient, "adaptive_k: gradient"), np.float64)
    if partial.shape != mean.shape:
        raise ValueError(
            f"adaptive_k: gradient: expected shape [{len(mean)}], got {list(partial.shape)}"
        )

    tau, beta, fitted = _decay(mean, tau, fit, lags, quantile)
    absolute = _bias(mean, tau, beta, max(k_max, last))
    with np.errstate(invalid="ignore"):
        bound = float(np.max(partial - absolute[: last + 1]))
        relative = absolute / bound if bound > 0 else np.full_like(absolute, np.inf)
    if np.isnan(bound):
        relative = np.full_like(absolute, np.nan)
    good = np.flatnonzero(relative[k_min : k_max + 1] < delta)
    k = k_min + int(good[0]) if len(good) else k_max
    return AdaptiveK(
        k, len(good) > 0, delta, beta, tau, mean, fitted, absolute, relative, max(bound, 0.0)
    )


def _mean_by_lag(phi: Array) -> Array:
    if not 1 <= phi.ndim <= 3 or len(phi) < 1 or phi[0].size < 1:
        raise ValueError(
            f"adaptive_k: phi: expected shape [W + 1, T, B], [W + 1, N] or [W + 1], "
            f"got {list(phi.shape)}"
        )
    if phi.ndim == 3:
        # A loss has no lag beyond step 0. Beyond the last step's, nothing is known.
        known = phi[: phi.shape[1]]
        means = np.array([norms[lag:].mean() for lag, norms in enumerate(known)])
    else:
        means = phi.reshape(len(phi), -1).mean(axis=1)
    if len(means) < 2:
        raise ValueError("adaptive_k: phi: expected the lags 0 and 1 at least, got lag 0 alone")
    if (means < 0).any():
        raise ValueError(f"adaptive_k: phi: expected norms, got {means.min():g}")
    return means


def _decay(phi: Array, tau: int, fit: Fit, lags: str, quantile: float) -> tuple[int, float, Array]:
    """The lag where the decay begins, its factor, and the fitted norms."""
    fitted = np.full(len(phi), np.nan)
    if fit not in ("least_squares", "largest", "quantile"):
        raise ValueError(
            f"adaptive_k: fit: expected 'least_squares', 'largest' or 'quantile', got {fit!r}"
        )
    if not np.isfinite(phi).all():
        return tau, np.nan, fitted
    with np.errstate(divide="ignore"):
        logs = np.log(phi)
    usable = np.flatnonzero(logs >= _NEGLIGIBLE)
    if len(usable) < 2:  # nothing flows back
        return len(phi) - 1, 0.0, fitted
    tau = min(tau, int(usable[-2]))
    at = usable if lags == "all" else usable[usable >= tau]
    values = logs[at]
    if fit == "least_squares":
        centred = at - at.mean()
        slope = float(centred @ values / (centred @ centred))
        middle, level = float(at.mean()), float(values.mean())
    else:
        if fit == "largest":
            slope = float(((values[1:] - values[0]) / (at[1:] - at[0])).max())
        else:
            first, second = np.triu_indices(len(at), 1)
            slopes = (values[second] - values[first]) / (at[second] - at[first])
            slope = float(np.quantile(slopes, quantile))
        middle, level = float(at[0]), float(values[0])
    line = np.arange(at[0], len(phi))
    with np.errstate(over="ignore"):
        fitted[at[0] :] = np.exp(level + slope * (line - middle))
    return tau, float(np.exp(slope)), fitted


def _bias(phi: Array, tau: int, beta: float, k_max: int) -> Array:
    """E(K) for K = 0 … k_max."""
    ks = np.arange(k_max + 1)
    if not beta < 1:
        return np.full(k_max + 1, np.inf if beta >= 1 else np.nan)
    rest = np.zeros(k_max + 1)
    head = min(tau, k_max + 1)
    rest[:head] = np.cumsum(phi[:tau][::-1])[::-1][:head]
    tail: Array = phi[tau] / (1 - beta) * beta ** np.maximum(ks - tau, 0).astype(np.float64)
    return rest + tail
