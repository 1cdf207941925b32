"""The exact unconditional score test of a paired loss of a 0/1 metric, at any number of pairs.

Tables are ordered by Tango's score statistic; the p-value is the largest chance, over every discordance that the null
allows, of a table at least as extreme (Hsueh, Liu & Chen 2001, Biometrics 57:478). It never errs above its level,
which the normal approximation does at few pairs and few flips.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from quantverdict.stats.distributions import normal_cdf, normal_quantile
from quantverdict.stats.intervals import FloatArray

IntArray = npt.NDArray[np.int64]

EXACT_UP_TO = 2000
"""Pairs; beyond it the score statistic is normal to well within its level's third digit."""
_COARSE, _FINE = 40, 17
"""Discordances tried first, and around the worst of them."""
_TIE = 1e-9
_NO_CHANCE = 1e-13
"""Of more gained pairs, which are left out then."""
_NEAR_ONE = 1 - 2.0**-53
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
    return _size(seen, n, loss)


@lru_cache(maxsize=1 << 10)
def most_lost(n: int, loss: float, alpha: float) -> tuple[int, ...]:
    """The rejection region of H0: P(lost) - P(gained) >= `loss`: most lost pairs for 0, 1, ... n gained; -1 is none."""
    low, high = 4 * normal_quantile(alpha) - 4, 0.0
    if n > EXACT_UP_TO:
        low = high = normal_quantile(alpha)
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if _size(middle, n, loss) <= alpha else (low, middle)
    return tuple(_limits(low, n, loss, n).tolist())


def chance(region: npt.ArrayLike, n: int, lost: float, gained: float) -> float:
    """Chance of a table in `region` (as `most_lost`) where shares `lost` and `gained` of pairs are."""
    shares = _shares(np.array([gained]), n, lost - gained)
    return float(_chances(np.asarray(region, dtype=np.int64), n, shares)[0])


def _limits(level: float, n: int, loss: float, most: int) -> IntArray:
    """For 0, 1, ... `most` gained: the most lost pairs whose score is at most `level`, -1 where none is."""
    gained = np.arange(most + 1.0)
    # A level that is not finite is far from every other; times no variance it must still be a number.
    level = min(max(level + _TIE, -1 / _TIE), 1 / _TIE)
    # The variance of a difference is at most n (1 - loss^2), so the limit is within so many lost pairs.
    even, reach = gained + n * loss, level * math.sqrt(n * (1 - loss) * (1 + loss))
    below = np.clip(np.floor(even + min(reach, 0.0)) - 1, -1, n - gained)
    above = np.clip(np.ceil(even + max(reach, 0.0)) + 1, below + 1, n - gained + 1)
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


def _size(level: float, n: int, loss: float) -> float:
    """The largest chance under H0 of a score at most `level`."""
    shares = _coarse(n, loss)
    region = _limits(level, n, loss, shares.beyond.shape[1] - 1)
    chances = _chances(region, n, shares)
    worst = int(chances.argmax())
    return min(1.0, float(max(chances.max(), _chances(region, n, _around(n, loss, worst)).max())))


@lru_cache(maxsize=32)
def _coarse(n: int, loss: float) -> _Shares:
    """The shares that H0 allows."""
    least, most = max(0.0, -loss), (1 - loss) / 2
    # Few flips are where the chance bends most.
    return _shares(least + (most - least) * np.linspace(0, 1, _COARSE) ** 3, n, loss)


@lru_cache(maxsize=128)
def _around(n: int, loss: float, worst: int) -> _Shares:
    """The shares between the neighbours of one of them."""
    gained = _coarse(n, loss).gained
    return _shares(np.linspace(gained[max(worst - 1, 0)], gained[min(worst + 1, _COARSE - 1)], _FINE), n, loss)


def _shares(gained: FloatArray, n: int, loss: float) -> _Shares:
    share, count, ways = gained[:, None], np.arange(n + 1), _log_factorials(n)
    weight = np.log(np.maximum(share, _ZERO)) * count + np.log1p(-np.minimum(share, _NEAR_ONE)) * (n - count)
    weight += ways[n] - ways - ways[::-1]
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
