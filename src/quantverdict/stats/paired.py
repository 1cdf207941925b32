"""Two builds answering the same prompts, right or wrong: discordant pairs, McNemar's test, Tango's interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from quantverdict.stats.distributions import beta_quantile, critical_z, normal_cdf, normal_quantile, t_quantile
from quantverdict.stats.intervals import FloatArray, Interval, cluster_codes

FEW = 10
"""Where fewer clusters differ, the spread of what they lose is not known from them."""


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
            return at  # rounded onto the end that is nearer to it
        found = height(at)
        if found * height_other < 0:
            one, height_one = other, height_other
        else:
            height_one /= 2
        other, height_other = at, found
    return other


# The exact unconditional score test of a paired loss of a 0/1 metric, at any number of pairs.
#
# Tables are ordered by Tango's score statistic; the p-value is the largest chance of a table at least as extreme
# (Hsueh, Liu & Chen 2001, Biometrics 57:478) over the discordances that the null allows and that the pairs which differ
# leave open: a confidence set of 1 - `OUTSIDE`, whose error is added (Berger & Boos 1994, JASA 89:1012). So a
# discordance that nobody saw, at which rare tables are likeliest, costs no power, and the level is held at each.

IntArray = npt.NDArray[np.int64]

EXACT_UP_TO = 2000
"""Pairs; beyond it the score statistic is normal to well within its level's third digit."""
OUTSIDE = 1e-6
"""Chance that the true discordance is not among those that are tried; every p-value is at least that."""
_COARSE, _FINE = 40, 17
"""Discordances tried first, and around the worst of them."""
_NODES = 5
"""Numbers of differing pairs at which a region of many pairs is worked out; between them it is read off a line."""
_FEW = 60
"""Pairs up to which a region is looked up table by table."""
_TIE = 1e-9
_NO_CHANCE = 1e-13
"""Of more gained pairs, which are left out then."""
_NEAR_ONE = 0.9999999999999999
"""The largest double below 1."""
_ZERO = 1e-300
"""In place of 0 where a logarithm or a quotient is taken; every power of it is nothing beside a count of tables."""


def score(lost: npt.ArrayLike, gained: npt.ArrayLike, n: float, loss: float) -> FloatArray:
    """Tango's (1998) statistic of H0: P(lost) - P(gained) = `loss`; negative where less is lost than that."""
    b, c = np.asarray(lost, dtype=np.float64), np.asarray(gained, dtype=np.float64)
    linear = -b - c + (2 * n - b + c) * loss
    root = np.sqrt(np.maximum(linear**2 + 8 * n * c * loss * (1 - loss), 0.0))
    # n times the variance, from the likeliest share of gained pairs under H0.
    variance = np.maximum((root - linear) / 2 + n * loss * (1 - loss), 0.0)
    gap = b - c - n * loss
    with np.errstate(divide="ignore", invalid="ignore"):
        found = gap / np.sqrt(variance)
    known = np.where(gap == 0, 0.0, np.copysign(np.inf, gap))
    return np.asarray(np.where(variance > 0, found, known), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class _Shares:
    """Shares of gained pairs that the chance of a region is taken at.

    Attributes:
        gained: (shares,).
        logs: (2, shares, 1) of r and 1 - r, r the share of lost pairs among those that are not gained.
        beyond: (shares, most + 1), the chance of 0, 1, ... or more gained pairs; more than `most` have none.
    """

    gained: FloatArray
    logs: FloatArray
    beyond: FloatArray


@lru_cache(maxsize=1 << 14)
def p_below(lost: int, gained: int, n: int, loss: float) -> float:
    """P-value of H0: P(lost) - P(gained) >= `loss`. By symmetry that of <= is p_below(gained, lost, n, -loss)."""
    seen = float(score(lost, gained, n, loss))
    if n > EXACT_UP_TO:
        return normal_cdf(seen)
    return min(1.0, _size(seen, n, loss, lost + gained) + OUTSIDE)


@lru_cache(maxsize=1 << 10)
def most_lost(n: int, loss: float, alpha: float, differing: tuple[int, int] | None = None) -> tuple[int, ...]:
    """The rejection region of H0: P(lost) - P(gained) >= `loss`: most lost pairs for 0, 1, ... n gained; -1 is none.

    Up to 60 pairs it is that of `p_below` exactly. Of more, the score from which on it rejects is read off a line
    between `_NODES` numbers of differing pairs, which is near enough to plan by.

    Args:
        n, loss, alpha: of the test.
        differing: the fewest and the most pairs that will differ; the region is of no use beyond them.
    """
    if n > EXACT_UP_TO:
        return tuple(_limits(normal_quantile(alpha), n, loss, n).tolist())
    fewest, most = (0, n) if differing is None else differing
    count = most - fewest + 1 if n <= _FEW else _NODES if differing is not None else 4 * _NODES
    nodes = np.unique(np.linspace(fewest, most, count).round().astype(np.int64))
    scores = np.array([_critical(n, loss, alpha, int(node)) for node in nodes])
    gained = np.arange(n + 1)
    level = np.full(n + 1, float(scores.max()))
    for _ in range(8):
        region = _limits(level, n, loss, n)
        level, before = np.interp(np.maximum(region, 0) + gained, nodes, scores), level
        if np.array_equal(level, before):
            break
    if n <= _FEW:  # the limits may swing between two tables whose levels differ: then look at each
        inside = [[p_below(b, c, n, loss) <= alpha for b in range(n - c + 1)] for c in range(n + 1)]
        return tuple(row.index(False) - 1 if False in row else len(row) - 1 for row in inside)
    return tuple(region.tolist())


def _critical(n: int, loss: float, alpha: float, differing: int) -> float:
    """The largest score at which the test rejects where so many pairs differ."""
    low, high = 4 * normal_quantile(alpha) - 4, 0.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if _size(middle, n, loss, differing) + OUTSIDE <= alpha else (low, middle)
    return low


def chance(region: npt.ArrayLike, n: int, lost: float, gained: float) -> float:
    """Chance of a table in `region` (as `most_lost`) where shares `lost` and `gained` of pairs are."""
    shares = _shares(np.array([gained]), n, lost - gained)
    return float(_chances(np.asarray(region, dtype=np.int64), n, shares)[0])


def _limits(level: float | FloatArray, n: int, loss: float, most: int) -> IntArray:
    """For 0, 1, ... `most` gained: the most lost pairs whose score is at most `level`, -1 where none is."""
    gained = np.arange(most + 1.0)
    # A level that is not finite is far from every other; times no variance it must still be a number.
    level = np.clip(np.asarray(level) + _TIE, -1 / _TIE, 1 / _TIE)
    # The variance of a difference is at most n (1 - loss^2), so the limit is within so many lost pairs.
    even, reach = gained + n * loss, level * math.sqrt(n * (1 - loss) * (1 + loss))
    below = np.clip(np.floor(even + np.minimum(reach, 0.0)) - 1, -1, n - gained)
    above = np.clip(np.ceil(even + np.maximum(reach, 0.0)) + 1, below + 1, n - gained + 1)
    least = n * loss * (1 - loss)
    start, square = 2 * n * loss - gained * (1 - loss), 8 * least * gained
    while (above - below).max() > 1:
        middle = np.floor((below + above) / 2)
        # As in `score`, what does not depend on the lost pairs taken out of the loop.
        linear = start - (1 + loss) * middle
        variance = (np.sqrt(np.maximum(linear * linear + square, 0.0)) - linear) / 2 + least
        inside = middle - even <= level * np.sqrt(np.maximum(variance, _ZERO))
        below, above = np.where(inside, middle, below), np.where(inside, above, middle)
        above = np.maximum(above, below + 1)
    return np.asarray(below, dtype=np.int64)


def _size(level: float, n: int, loss: float, differing: int) -> float:
    """The largest chance under H0 of a score at most `level`, over what `differing` pairs leave open."""
    shares = _coarse(n, loss, differing)
    region = _limits(level, n, loss, shares.beyond.shape[1] - 1)
    chances = _chances(region, n, shares)
    worst = int(chances.argmax())
    return min(1.0, float(max(chances.max(), _chances(region, n, _around(n, loss, differing, worst)).max())))


@lru_cache(maxsize=64)
def _coarse(n: int, loss: float, differing: int) -> _Shares:
    """The shares of gained pairs that H0 allows and that so many differing pairs leave open.

    Where H0 allows none of these it is the nearest, at which what is extreme is likelier than at any of them.
    """
    low = beta_quantile(OUTSIDE / 2, differing, n - differing + 1) if differing else 0.0
    high = beta_quantile(1 - OUTSIDE / 2, differing + 1, n - differing) if differing < n else 1.0
    # By the arcsine all shares are as well known as each other, so that none is passed over.
    share = np.sin(np.linspace(math.asin(math.sqrt(low)), math.asin(math.sqrt(high)), _COARSE)) ** 2
    return _shares(np.clip((share - loss) / 2, max(0.0, -loss), (1 - loss) / 2), n, loss)


@lru_cache(maxsize=256)
def _around(n: int, loss: float, differing: int, worst: int) -> _Shares:
    """The shares between the neighbours of one of them."""
    gained = _coarse(n, loss, differing).gained
    return _shares(np.linspace(gained[max(worst - 1, 0)], gained[min(worst + 1, _COARSE - 1)], _FINE), n, loss)


def _shares(gained: FloatArray, n: int, loss: float) -> _Shares:
    largest = float(gained.max())
    top = min(n, math.ceil(n * largest + 9 * math.sqrt(n * largest) + 30))
    share, count, ways = gained[:, None], np.arange(top + 1), _log_factorials(n)
    weight = np.log(np.maximum(share, _ZERO)) * count + np.log1p(-np.minimum(share, _NEAR_ONE)) * (n - count)
    weight += ways[n] - ways[: top + 1] - ways[n - count]
    beyond = np.exp(weight, out=weight)[:, ::-1].cumsum(axis=1)[:, ::-1]
    rest = np.clip((share + loss) / np.maximum(1 - share, _ZERO), 0.0, 1.0)
    kept = int(np.count_nonzero((beyond > _NO_CHANCE).any(axis=0)))
    return _Shares(gained, np.log(np.maximum([rest, 1 - rest], _ZERO)), np.ascontiguousarray(beyond[:, :kept]))


def _chances(region: IntArray, n: int, shares: _Shares) -> FloatArray:
    """Chance of the region, whose limits do not fall, for each of the shares.

    The chance F(g) of at most `region[g]` lost pairs among the n - g that are not gained grows, from g - 1 to g, by
    that of `region[g - 1]` + 1 lost pairs of which the pair that is now gained was one, and of as many lost pairs as
    the limit newly admits. The sum of P(g gained) F(g) is that of each such step times P(g or more gained): some 2 n
    positive terms a share, and no binomial tail.
    """
    limit = np.maximum.accumulate(region[: shares.beyond.shape[1]])
    admitted = np.arange(limit[-1] + 1)
    moved = np.flatnonzero(limit[:-1] >= 0) + 1
    gained = np.concatenate([limit.searchsorted(admitted), moved])
    lost = np.concatenate([admitted, limit[moved - 1]])
    possible = gained + lost <= n
    gained, lost, was_lost = gained[possible], lost[possible], (np.arange(lost.size) >= admitted.size)[possible]
    ways = _log_factorials(n)
    log_lost, log_kept = shares.logs
    terms = log_lost * (lost + was_lost) + log_kept * (n - gained - lost)
    terms += ways[n - gained] - ways[lost] - ways[n - gained - lost]
    np.exp(terms, out=terms)
    return np.asarray(np.einsum("st,st->s", terms, shares.beyond[:, gained]))


@lru_cache(maxsize=128)
def _log_factorials(n: int) -> FloatArray:
    """Of 0, 1, ... n."""
    return np.cumsum(np.log(np.maximum(np.arange(n + 1), 1)))


# The noise floor: how many answers flip though nothing changed, and whether a variant flips more of them.


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """Flips of A/A replicates against the baseline.

    Attributes:
        n: prompts that all arms answered.
        arms: A/A replicates.
        flips: prompts that differ from the baseline, summed over arms.
        rate: flips / (n arms).
        hi: upper limit of the rate (Clopper-Pearson, one-sided); above 0 where no flip was seen.
    """

    n: int
    arms: int
    flips: int
    rate: float
    hi: float


@dataclass(frozen=True, slots=True)
class FlipExcess:
    """Flips of a variant beyond those of the A/A replicates.

    Attributes:
        flips: of the variant.
        expected: of one arm, were the variant one more A/A replicate.
        p: one-sided, of H0: the variant is one more A/A replicate.
    """

    flips: int
    expected: float
    p: float


def noise_floor(nulls: npt.ArrayLike, confidence: float = 0.95) -> NoiseFloor:
    """The flip rate of A/A replicates.

    Arms flip the same fickle prompts, so the limit counts prompts, not answers: that of the flips of one arm (their
    mean, rounded up) among n. With no flip it is 1 - (1 - confidence)^(1 / n).

    Args:
        nulls: (arms, n), True where the arm differs from the baseline.
        confidence: of the upper limit.

    Raises:
        ValueError: no arm or no prompt.
    """
    flips = _arms(nulls)
    arms, n = flips.shape
    total = int(flips.sum())
    one = -(-total // arms)
    hi = 1.0 if one == n else beta_quantile(confidence, one + 1, n - one)
    return NoiseFloor(n, arms, total, total / (arms * n), hi)


def excess_flips(
    variant: npt.ArrayLike, nulls: npt.ArrayLike, clusters: Sequence[Hashable] | None = None
) -> FlipExcess:
    """Does a variant flip more prompts than the A/A replicates do? Exact, conditional on the flips of each prompt.

    Were the variant one more A/A replicate, then which of a prompt's flips are its own would be an even draw among all
    arms; the chance of as many as were seen is that of a sum of independent draws, one a prompt (or cluster). Where no
    prompt flips twice it is binomial.

    Args:
        variant: (n,), True where the variant differs from the baseline; or is lost, for a test of losses alone.
        nulls: (arms, n), the same of the A/A replicates.
        clusters: a label for each prompt; arms are exchanged within whole clusters. None is a cluster of its own.

    Raises:
        ValueError: shapes do not fit, or nothing in them.
    """
    flips = _arms(nulls)
    mine = np.asarray(variant, dtype=bool)
    if mine.shape != flips.shape[1:] or (clusters is not None and len(clusters) != mine.size):
        raise ValueError(f"{mine.shape} answers of a variant for {flips.shape} of A/A replicates")
    counts = np.vstack([mine, flips]).astype(np.int64).T
    if clusters is not None:
        counts = _summed(counts, clusters)
    chances = np.ones(1)
    for unit in counts[counts.any(axis=1)]:
        chances = np.convolve(chances, np.bincount(unit) / len(unit))
    seen, total = int(mine.sum()), int(counts.sum())
    return FlipExcess(seen, total / counts.shape[1], min(1.0, float(chances[seen:].sum())))


def _arms(nulls: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    flips = np.asarray(nulls, dtype=bool)
    if flips.ndim != 2 or flips.size == 0:
        raise ValueError(f"{flips.shape}: expected at least one A/A replicate of at least one prompt")
    return flips


def _summed(counts: npt.NDArray[np.int64], clusters: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    """Counts of whole clusters."""
    by_cluster: dict[Hashable, npt.NDArray[np.int64]] = {}
    for at, (label, row) in enumerate(zip(clusters, counts, strict=True)):
        key = (label is None, at if label is None else label)
        by_cluster[key] = by_cluster.get(key, np.zeros_like(row)) + row
    return np.array(list(by_cluster.values()))


# A variant's score as a share of the baseline's, over the same prompts.


def paired_rate_ratio(both: float, gained: float, lost: float, confidence: float = 0.95) -> Interval | None:
    """The ratio of two paired proportions: Bonett & Price's (2006) hybrid of two Wilson intervals.

    One of those that Fagerland, Lydersen & Laake (2017, chapter 8) recommend; it does not shrink to a point where no
    pair differs. Of clusters, counts divided by their design effect.

    Args:
        both, gained, lost: pairs that are 1 in both arms, in the variant alone, and in the baseline alone.

    Returns:
        Limits of variant / baseline, the upper one infinite where the baseline has few; None where it has none.
    """
    variant, baseline, some = both + gained, both + lost, both + gained + lost
    if baseline <= 0:
        return None
    root = math.sqrt((gained + lost + 2) / ((variant + 1) * (baseline + 1)))
    parts = [math.sqrt((1 - (count + 1) / (some + 2)) / (count + 1)) for count in (variant, baseline)]
    z = critical_z(confidence) * root / sum(parts)
    (lo, hi), (below, above) = (_wilson(count, some, z) for count in (variant, baseline))
    return Interval(lo / above, math.inf if below <= 0 else hi / below)


def _wilson(k: float, n: float, z: float) -> tuple[float, float]:
    centre, reach = 2 * k + z * z, z * math.sqrt(z * z + 4 * k * (1 - k / n))
    return max((centre - reach) / (2 * (n + z * z)), 0.0), (centre + reach) / (2 * (n + z * z))


def paired_mean_ratio(
    variant: npt.ArrayLike,
    baseline: npt.ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> Interval | None:
    """The ratio of two paired means: Fieller's (1954) interval of the sums of clusters, with t of clusters less one.

    Every ratio r is in it for which a t test does not tell the sums of variant - r x baseline from 0.

    Args:
        variant, baseline: (n,), row i the same prompt.
        clusters: a label for each pair; None is a cluster of its own.

    Returns:
        Limits of variant / baseline; None where the baseline's mean cannot be told from 0, or fewer than 10 clusters
        differ, of which t knows too little.
    """
    arms = [np.asarray(values, dtype=np.float64) for values in (variant, baseline)]
    codes = np.arange(len(arms[0])) if clusters is None else cluster_codes(clusters)
    mine, theirs = (np.bincount(codes, weights=values) for values in arms)
    if np.count_nonzero(mine - theirs) < FEW:
        return None
    many = len(mine)
    scale = t_quantile((1 + confidence) / 2, many - 1) ** 2 * many
    spread = np.cov(np.stack([mine, theirs]))
    x, y = float(mine.sum()), float(theirs.sum())
    a, b = y * y - scale * float(spread[1, 1]), x * y - scale * float(spread[0, 1])
    c = x * x - scale * float(spread[0, 0])
    if a <= 0:
        return None
    reach = math.sqrt(max(b * b - a * c, 0.0))
    return Interval((b - reach) / a, (b + reach) / a)
