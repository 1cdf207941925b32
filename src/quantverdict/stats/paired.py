"""Two builds answering the same prompts, right or wrong: discordant pairs, McNemar's test, Tango's interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantverdict.stats.distributions import critical_z
from quantverdict.stats.intervals import Interval


@dataclass(frozen=True, slots=True)
class Discordance:
    """Pairs that differ.

    Attributes:
        n: pairs.
        lost: 1 in the baseline and 0 in the variant.
        gained: 0 in the baseline and 1 in the variant.
    """

    n: int
    lost: int
    gained: int


def discordant(baseline: npt.ArrayLike, variant: npt.ArrayLike) -> Discordance:
    """Count the pairs that differ; both (n,), of 0 and 1, row i the same prompt.

    Raises:
        ValueError: shapes differ, or a value is neither 0 nor 1.
    """
    before, after = np.asarray(baseline), np.asarray(variant)
    if before.shape != after.shape or not (np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all()):
        raise ValueError("two equally long arrays of 0 and 1 are expected")
    return Discordance(
        before.size, int(((before == 1) & (after == 0)).sum()), int(((before == 0) & (after == 1)).sum())
    )


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided p-value of the exact conditional McNemar test: Binomial(lost + gained, 1/2); 1 where none differs."""
    return min(1.0, _twice_tail(lost, gained))


def mcnemar_midp(lost: int, gained: int) -> float:
    """Two-sided mid-p McNemar test (Fagerland, Lydersen & Laake 2013): the exact one less the chance of the table seen.

    Less conservative than the exact test, and very rarely above the nominal level.
    """
    n = lost + gained
    if lost == gained:
        # Twice the mid-p tail passes 1 here by nothing: the tail and half the middle term make one half.
        return 1.0
    return _twice_tail(lost, gained) - math.comb(n, lost) / (1 << n)


def _twice_tail(lost: int, gained: int) -> float:
    if lost < 0 or gained < 0:
        raise ValueError(f"{lost} and {gained} are not counts")
    n, term, total = lost + gained, 1, 0
    for i in range(min(lost, gained) + 1):
        total += term
        term = term * (n - i) // (i + 1)
    return 2 * total / (1 << n)


def signed_rank(differences: npt.ArrayLike) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test of paired differences, zeros left out; 1 where all are 0.

    Exact for up to 50 untied differences, else normal.
    """
    from scipy.stats import wilcoxon

    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0]
    if not values.size:
        return 1.0
    tied = len(np.unique(np.abs(values))) < values.size
    return float(wilcoxon(values, method="exact" if values.size <= 50 and not tied else "approx").pvalue)


def tango_interval(gained: float, lost: float, n: float, confidence: float = 0.95) -> Interval:
    """Score interval of the paired difference (gained - lost) / n (Tango 1998, Stat Med 17:891).

    Of counts, or of counts that are divided by the design effect of their clusters (Rao & Scott 1992, Biometrics
    48:577). The limits are the differences at which the score statistic equals -+z; it falls as the difference grows,
    so each is found between the estimate and +-1.

    Raises:
        ValueError: the counts do not fit, or n = 0.
    """
    if gained < 0 or lost < 0 or gained + lost > n * (1 + 1e-12) or n == 0:
        raise ValueError(f"{gained} gained and {lost} lost of {n} pairs")
    z = critical_z(confidence)
    lo = -1.0 if lost == n else _tango_limit(gained, lost, n, z)
    hi = 1.0 if gained == n else _tango_limit(gained, lost, n, -z)
    return Interval(lo, hi)


def constrained_variance(gained: float, lost: float, delta: float) -> float:
    """n times the variance of the difference under H0: difference = `delta`, `gained` and `lost` being shares of n.

    2 q + delta (1 - delta), q the maximum-likelihood share of lost pairs under H0 (Tango 1998, Nam 1997).
    """
    b = -gained - lost + (2 - gained + lost) * delta
    c = -lost * delta * (1 - delta)
    q = (math.sqrt(max(b * b - 8 * c, 0.0)) - b) / 4
    return max(2 * q + delta * (1 - delta), 0.0)


def _tango_limit(gained: float, lost: float, n: float, target: float) -> float:
    estimate = (gained - lost) / n
    up, down = gained / n, lost / n
    # As in `constrained_variance`, what does not depend on the difference taken out of the loop.
    start, slope = -up - down, 2 - up + down

    def ahead(delta: float) -> float:
        b, c = start + slope * delta, -down * delta * (1 - delta)
        square = b * b - 8 * c
        variance = 2 * ((math.sqrt(square) - b if square > 0 else -b) / 4) + delta * (1 - delta)
        return estimate - delta - target * (math.sqrt(variance / n) if variance > 0 else 0.0)

    end = -1.0 if target > 0 else 1.0
    # At the estimate itself the variance may be 0, and both sides with it; next to it they are not.
    return _crossing(ahead, end, estimate, ahead(end), ahead(estimate) or -target / n)


def _crossing(
    height: Callable[[float], float], one: float, other: float, height_one: float, height_other: float
) -> float:
    """Where a continuous function is 0, between two places of unlike sign.

    By the Illinois variant of false position (Dowell & Jarratt 1971, BIT 11:168).
    """
    while abs(other - one) > 1e-15 and height_other:
        at = (one * height_other - other * height_one) / (height_other - height_one)
        if not min(one, other) < at < max(one, other):
            break
        found = height(at)
        if found * height_other < 0:
            one, height_one = other, height_other
        else:
            height_one /= 2
        other, height_other = at, found
    return other
