"""Correlation: Pearson, Spearman, and Bakdash & Marusich's for repeated measures.

Where a coefficient is not defined every figure is None and `reason` says why; nothing returned is ever NaN.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantverdict.stats.distributions import correlation_two_sided, critical_correlation, critical_z, normal_cdf
from quantverdict.stats.intervals import FloatArray, Interval, wilson

_ROUNDING = 1e-13
"""Spread, relative to the largest value, or correlation, below which there is nothing but rounding."""


@dataclass(frozen=True, slots=True)
class Correlation:
    """A correlation of n points with its two-sided p-value and Fisher z interval."""

    n: int
    r: float | None = None
    p: float | None = None
    lo: float | None = None
    hi: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RepeatedMeasures:
    """The common within-subject correlation of n points, with `dof` degrees of freedom and the power reached."""

    n: int
    r: float | None = None
    dof: int | None = None
    p: float | None = None
    lo: float | None = None
    hi: float | None = None
    power: float | None = None
    reason: str = ""


@dataclass(frozen=True, eq=False, slots=True)
class ScaledColumn:
    """A column as correlations take it: its deviations from the mean, of length 1 together; None: it does not vary."""

    n: int
    unit: FloatArray | None


def pearson(x: npt.ArrayLike, y: npt.ArrayLike, confidence: float = 0.95) -> Correlation:
    """Pearson's r; p from Student's t with n - 2 degrees of freedom, interval tanh(atanh r -+ z / sqrt(n - 3)).

    Raises:
        ValueError: x and y are not equally long, or hold a value that is not finite.
    """
    one, two = _pair(x, y)
    return correlated(spread(one), spread(two), confidence)


def spearman(x: npt.ArrayLike, y: npt.ArrayLike, confidence: float = 0.95) -> Correlation:
    """Spearman's rho: Pearson's r of the ranks, ties sharing their mean rank; p and interval as for Pearson's."""
    one, two = _pair(x, y)
    return correlated(spread(ranks(one)), spread(ranks(two)), confidence)


def rm_corr(
    x: npt.ArrayLike, y: npt.ArrayLike, subjects: Sequence[Hashable], confidence: float = 0.95, alpha: float = 0.05
) -> RepeatedMeasures:
    """Repeated measures correlation (Bakdash & Marusich 2017, Front Psychol 8:456).

    One slope for all subjects, an intercept for each: the correlation of x and y after each subject's mean is taken
    off, with n - subjects - 1 degrees of freedom. The interval and the power (of a two-sided test at `alpha`, by
    Fisher's z, as R's pwr.r.test) treat it as a correlation of dof + 2 points.

    Raises:
        ValueError: unequal lengths, or a value that is not finite.
    """
    one, two = _pair(x, y)
    if len(subjects) != len(one):
        raise ValueError(f"{len(subjects)} subjects for {len(one)} points")
    index = {subject: code for code, subject in enumerate(dict.fromkeys(subjects))}
    codes = np.array([index[subject] for subject in subjects], dtype=np.int64)
    dof = len(one) - len(index) - 1
    if dof < 1:
        return RepeatedMeasures(len(one), reason="too few points within subjects")
    inner = _correlation(*(_unit(_within(values, codes), values) for values in (one, two)))
    if isinstance(inner, str):
        return RepeatedMeasures(len(one), reason=f"{inner} within subjects")
    lo, hi = fisher_interval(inner, dof + 2, confidence)
    return RepeatedMeasures(
        len(one), inner, dof, correlation_two_sided(inner, dof), lo, hi, correlation_power(inner, dof + 2, alpha)
    )


def fisher_interval(r: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a correlation of n points by Fisher's z; all of [-1, 1] where n is 3 or less."""
    if n <= 3:
        return -1.0, 1.0
    if abs(r) == 1:
        return r, r
    reach = critical_z(confidence) / math.sqrt(n - 3)
    return math.tanh(math.atanh(r) - reach), math.tanh(math.atanh(r) + reach)


def correlation_power(r: float, n: int, alpha: float = 0.05) -> float | None:
    """Power of the two-sided test of a correlation of n points at `alpha`; None for fewer than 5, too few to say."""
    if n <= 4:
        return None
    if abs(r) == 1:
        return 1.0
    bound = math.atanh(critical_correlation(alpha, n - 2))
    shift = math.atanh(abs(r)) + abs(r) / (2 * (n - 1))
    root = math.sqrt(n - 3)
    return normal_cdf((shift - bound) * root) + normal_cdf((-shift - bound) * root)


def ranks(values: FloatArray) -> FloatArray:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse], dtype=np.float64)


def spread(values: FloatArray) -> ScaledColumn:
    """A column of finite numbers, ready to be correlated with others."""
    return ScaledColumn(len(values), _unit(values - values.mean(), values) if len(values) else None)


def correlated(x: ScaledColumn, y: ScaledColumn, confidence: float = 0.95) -> Correlation:
    """`pearson` of two equally long columns; `spearman` where they are spreads of ranks."""
    if x.n < 3:
        return Correlation(x.n, reason="fewer than 3 points")
    r = _correlation(x.unit, y.unit)
    if isinstance(r, str):
        return Correlation(x.n, reason=r)
    lo, hi = fisher_interval(r, x.n, confidence)
    return Correlation(x.n, r, correlation_two_sided(r, x.n - 2), lo, hi)


def _unit(centred: FloatArray, values: FloatArray) -> FloatArray | None:
    """Deviations of `values` scaled to length 1; None where there is nothing but rounding."""
    largest = float(np.abs(centred).max())
    if largest <= _ROUNDING * float(np.abs(values).max()):
        return None
    # Scaled first, so that squares neither overflow nor vanish.
    return np.asarray(centred / (largest * math.sqrt(float(np.square(centred / largest).sum()))), dtype=np.float64)


def _correlation(x: FloatArray | None, y: FloatArray | None) -> float | str:
    """Correlation of two columns of deviations, or the reason why there is none."""
    if x is None or y is None:
        return f"{'x' if x is None else 'y'} does not vary"
    r = float(x @ y)
    # A sign that rounding made is no sign.
    return 0.0 if abs(r) <= _ROUNDING else max(-1.0, min(1.0, r))


def _pair(x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    one, two = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if one.ndim != 1 or one.shape != two.shape or not (np.isfinite(one).all() and np.isfinite(two).all()):
        raise ValueError("two equally long arrays of finite numbers are expected")
    return one, two


def _within(values: FloatArray, codes: npt.NDArray[np.int64]) -> FloatArray:
    means = np.bincount(codes, weights=values) / np.bincount(codes)
    return np.asarray(values - means[codes], dtype=np.float64)


# Two judges labelling the same samples: raw agreement and Cohen's kappa.


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two judges agree.

    Attributes:
        n: samples that both labelled.
        agreement: share with equal labels, None where n = 0; `agreement_interval` is Wilson's.
        kappa: agreement beyond chance, 1 at most; None where `reason` says why.
        se: large-sample standard error of kappa.
        kappa_interval: kappa -+ z se, cut at -1 and 1.
    """

    n: int
    agreement: float | None = None
    agreement_interval: Interval | None = None
    kappa: float | None = None
    se: float | None = None
    kappa_interval: Interval | None = None
    reason: str = ""


def cohen_kappa(
    pairs: Iterable[tuple[str, str]] | Mapping[tuple[str, str], int], confidence: float = 0.95
) -> Agreement:
    """Cohen's kappa (1960) of (first label, second label) pairs; standard error of Fleiss, Cohen & Everitt (1969).

    Args:
        pairs: every pair, or how often each occurs.
        confidence: of the intervals.
    """
    cells = Counter(pairs)
    n = sum(cells.values())
    if n == 0:
        return Agreement(0, reason="no sample has both labels")
    first: Counter[str] = Counter()
    second: Counter[str] = Counter()
    for (one, two), count in cells.items():
        first[one] += count
        second[two] += count
    same = sum(count for (one, two), count in cells.items() if one == two)
    observed, interval = same / n, wilson(same, n, confidence)
    chance_counts = sum(first[label] * second[label] for label in first)
    if chance_counts == n * n:
        return Agreement(n, observed, interval, reason="both judges gave one and the same label throughout")
    expected = chance_counts / (n * n)
    kappa = (observed - expected) / (1 - expected)
    # fsum: the last bits of a sum of floats depend on its order, and the order of the pairs is the caller's.
    on = math.fsum(cells[label, label] * (n - (first[label] + second[label]) * (1 - kappa)) ** 2 for label in first)
    off = sum(count * (second[one] + first[two]) ** 2 for (one, two), count in cells.items() if one != two)
    variance = (on + (1 - kappa) ** 2 * off) / n**3 - (kappa - expected * (1 - kappa)) ** 2
    se = max(0.0, variance / n) ** 0.5 / (1 - expected)
    reach = critical_z(confidence) * se
    return Agreement(n, observed, interval, kappa, se, Interval(max(-1.0, kappa - reach), min(1.0, kappa + reach)))
