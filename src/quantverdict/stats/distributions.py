"""The normal, Student's t and the binomial distribution, as far as the other statistics need them.

An analysis needs no more of SciPy than stands here in few lines, and importing it would take a tenth of its time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np

_NORMAL = NormalDist()
_CONVERGED = 2.0**-48
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
    """P-value of a correlation: t = r sqrt(dof / (1 - r^2)) against Student's t, written as I_{1-r^2}(dof/2, 1/2).

    The incomplete beta form keeps its precision where t overflows (`r` near 1).
    """
    return _incomplete_beta(dof / 2, 0.5, max(0.0, (1 - r) * (1 + r)), r * r)


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
    tail = 0.0 if math.isinf(t) else _incomplete_beta(dof / 2, 0.5, dof / (dof + t * t), t * t / (dof + t * t)) / 2
    return tail if t < 0 else 1 - tail


@lru_cache(maxsize=1 << 10)
def t_quantile(probability: float, dof: float) -> float:
    """The t with P(T <= t) = `probability`, by Newton's method."""
    if probability == 0.5:
        return 0.0
    tail, t = min(probability, 1 - probability), abs(_NORMAL.inv_cdf(probability))
    # From below the quantile every step goes out and none too far; two terms of its expansion in 1 / dof are below it.
    t += (t**3 + t) / (4 * dof) if dof >= 1 else 0.0
    log_density = math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2) - math.log(dof * math.pi) / 2
    step = t
    while step > _CONVERGED * t:
        step = (t_cdf(-t, dof) - tail) / math.exp(log_density - (dof + 1) / 2 * math.log1p(t * t / dof))
        t += step
    return math.copysign(t, probability - 0.5)


def binomial_cdf(k: int, n: int, share: float) -> float:
    """P(X <= k) for X ~ Binomial(n, share)."""
    return float(k >= n) if k < 0 or k >= n else _incomplete_beta(n - k, k + 1, 1 - share, share)


@lru_cache(maxsize=1 << 10)
def beta_quantile(probability: float, a: float, b: float) -> float:
    """The x with I_x(a, b) = `probability`, by bisection."""
    below, above = 0.0, 1.0
    while above - below > _CONVERGED / 4 * above:
        middle = (below + above) / 2
        below, above = (middle, above) if _incomplete_beta(a, b, middle, 1 - middle) < probability else (below, middle)
    return above


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """The regularised I_x(a, b) for `rest` = 1 - x, by its continued fraction (DLMF 8.17.22, Lentz's method)."""
    if x <= 0 or rest <= 0:
        return float(rest <= 0)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, rest, x)
    log_factor = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    front, back, fraction = 1.0, 0.0, 1.0
    m, change = 0, 0.0
    while abs(change - 1) > _CONVERGED:
        change = 1.0
        for term in (
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
            (m + 1) * (b - m - 1) * x / ((a + 2 * m + 1) * (a + 2 * m + 2)),
        ):
            back = 1 / (1 + term * back)
            front = 1 + term / front
            change *= front * back
        fraction *= change
        m += 1
    return math.exp(log_factor) / (a * fraction)
