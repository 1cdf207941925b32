"""The exact unconditional score test of a paired loss of a 0/1 metric, at any number of pairs.

Tables are ordered by Tango's score statistic; the p-value is the largest chance, over every discordance that the null
allows, of a table at least as extreme (Hsueh, Liu & Chen 2001, Biometrics 57:478). It never errs above its level,
which the normal approximation does at few pairs and few flips.
"""

from __future__ import annotations

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
    return tuple(_limits(low, n, loss).tolist())


def chance(region: npt.ArrayLike, n: int, lost: float, gained: float) -> float:
    """Chance of a table in `region` (as `most_lost`) where shares `lost` and `gained` of pairs are."""
    return float(_chances(np.asarray(region, dtype=np.int64), n, np.array([gained]), lost - gained)[0])


def _limits(level: float, n: int, loss: float) -> IntArray:
    """For 0, 1, ... n gained: the most lost pairs whose score is at most `level`, -1 where none is."""
    gained = np.arange(n + 1)
    below, above = np.full(n + 1, -1), n - gained + 1
    while (above - below > 1).any():
        middle = (below + above) // 2
        inside = score(middle, gained, n, loss) <= level + _TIE
        below, above = np.where(inside, middle, below), np.where(inside, above, middle)
        above = np.maximum(above, below + 1)
    return below.astype(np.int64)


def _size(level: float, n: int, loss: float) -> float:
    """The largest chance under H0 of a score at most `level`."""
    region = _limits(level, n, loss)
    least, most = max(0.0, -loss), (1 - loss) / 2
    # Few flips are where the chance bends most.
    shares = least + (most - least) * np.linspace(0, 1, _COARSE) ** 3
    chances = _chances(region, n, shares, loss)
    worst = int(chances.argmax())
    around = np.linspace(shares[max(worst - 1, 0)], shares[min(worst + 1, _COARSE - 1)], _FINE)
    return min(1.0, float(max(chances.max(), _chances(region, n, around, loss).max())))


def _chances(region: IntArray, n: int, gained: FloatArray, loss: float) -> FloatArray:
    """Chance of the region for each share of gained pairs, the share of lost ones being `loss` more."""
    from scipy.special import bdtr, gammaln, xlog1py, xlogy

    count = np.flatnonzero(region >= 0)
    if count.size == 0:
        return np.zeros(len(gained))
    share = gained[:, None]
    ways = gammaln(n + 1) - gammaln(count + 1) - gammaln(n - count + 1)
    weight = np.exp(ways + xlogy(count, share) + xlog1py(n - count, -share))
    rest = np.clip((share + loss) / np.maximum(1 - share, 1e-300), 0.0, 1.0)
    kept = (weight > 1e-12).any(axis=0)
    count, weight = count[kept], weight[:, kept]
    tail = bdtr(region[count].astype(np.float64), n - count, np.broadcast_to(rest, weight.shape))
    return np.asarray((weight * tail).sum(axis=1), dtype=np.float64)
