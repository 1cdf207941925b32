"""The normal, Student's t, the beta and the binomial distribution, as far as the other statistics need them.

SciPy is imported where it is used: what decides nothing new, such as a gate on a finished bundle, loads none of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

_NORMAL = NormalDist()
_TIE = 1e-12
"""Relative rounding within which a binomial tail is the one asked for: exact ties exist where p is a half."""


def normal_cdf(z: float) -> float:
    """P(Z <= z)."""
    return 0.5 * math.erfc(-z / math.sqrt(2))


def normal_quantile(probability: float) -> float:
    """The z with P(Z <= z) = `probability`, which lies between 0 and 1."""
    return _NORMAL.inv_cdf(probability)


def critical_z(confidence: float) -> float:
    """Half-width of the two-sided normal interval in standard errors: 1.96 for 0.95.

    Raises:
        ValueError: `confidence` is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    return _NORMAL.inv_cdf(0.5 + confidence / 2)


def normal_two_sided(z: float) -> float:
    """P(|Z| >= |z|)."""
    return math.erfc(abs(z) / math.sqrt(2))


def correlation_two_sided(r: float, dof: int) -> float:
    """P-value of a correlation: t = r sqrt(dof / (1 - r^2)) against Student's t."""
    return _two_sided(r * r, max(0.0, (1 - r) * (1 + r)), dof)


def _two_sided(near: float, far: float, dof: float) -> float:
    """P(|T| >= |t|) for near = t^2 / (dof + t^2) and far = 1 - near, each as exact as it can be had.

    I_far(dof/2, 1/2) keeps its precision where t overflows, and its complement near t = 0, where SciPy's own
    distribution has an error of 1e-9.
    """
    from scipy.special import betainc, betaincc

    return float(betaincc(0.5, dof / 2, near) if near < 0.25 else betainc(dof / 2, 0.5, far))


def critical_correlation(alpha: float, dof: int) -> float:
    """The r whose two-sided p-value is `alpha`: t / sqrt(dof + t^2)."""
    t = -t_quantile(alpha / 2, dof)
    return t / math.sqrt(dof + t * t)


def binomial_quantiles(k: int, n: int, levels: Sequence[float]) -> list[int]:
    """The least j with P(X <= j) >= level, for X ~ Binomial(n, k/n) and each level; 0 < k < n."""
    # Relative to the mode, which is the mean, nothing overflows, and what underflows is nothing.
    odds = k / (n - k)
    above = np.arange(k + 1, n + 1)
    below = np.arange(k - 1, -1, -1)
    up, down = np.cumprod((n + 1 - above) / above * odds), np.cumprod((below + 1) / (n - below) / odds)
    reached = np.cumsum(np.concatenate([down[::-1], [1.0], up]))
    return [int(at) for at in np.searchsorted(reached / reached[-1], np.asarray(levels) * (1 - _TIE))]


def t_cdf(t: float, dof: float) -> float:
    """P(T <= t)."""
    if math.isinf(t * t):
        return float(t > 0)
    beyond = _two_sided(t * t / (dof + t * t), dof / (dof + t * t), dof) / 2
    return beyond if t < 0 else 1 - beyond


def t_quantile(probability: float, dof: float) -> float:
    """The t with P(T <= t) = `probability`."""
    from scipy.special import stdtrit

    return float(stdtrit(dof, probability))


def binomial_cdf(k: int, n: int, share: float) -> float:
    """P(X <= k) for X ~ Binomial(n, share)."""
    from scipy.special import betainc

    return float(k >= n) if k < 0 or k >= n else float(betainc(n - k, k + 1, 1 - share))


def beta_quantile(probability: float, a: float, b: float) -> float:
    """The x with I_x(a, b) = `probability`."""
    from scipy.special import betaincinv

    return float(betaincinv(a, b, probability))
