"""The normal and Student's t distribution, as far as the other statistics need them.

`scipy.special` is imported on first use: `scipy.stats` costs more than a whole analysis, and the normal needs neither.
"""

from __future__ import annotations

import math
from statistics import NormalDist

_NORMAL = NormalDist()


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
    from scipy.special import betainc

    return float(betainc(dof / 2, 0.5, max(0.0, (1 - r) * (1 + r))))


def t_quantile(probability: float, dof: float) -> float:
    """The t with P(T <= t) = `probability`."""
    from scipy.special import stdtrit

    return float(stdtrit(dof, probability))
