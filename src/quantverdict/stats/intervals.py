"""Intervals: Wilson and Newcombe for proportions, percentile bootstrap for means and for ratios of clusters.

The bootstrap draws whole units (samples, or clusters of them) with replacement. Its draws depend on the number of
units, the number of resamples and the seed alone, so cells with equally many units share them; its sums are exact,
so that neither the number of threads nor the size of a block changes a bit of the result.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from quantverdict.stats.distributions import beta_quantile, binomial_quantiles, critical_z

FloatArray = npt.NDArray[np.float64]

_BLOCK = 1 << 20
"""Draws counted at a time: few enough for little memory, enough for the product with many columns to be fast."""

_SMALLEST_EXPONENT = -1074
"""Of a double: below it a power of two is 0."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided interval, in the unit of what it is about."""

    lo: float
    hi: float


def wilson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of a proportion (Wilson 1927, JASA 22:209), as a fraction.

    Raises:
        ValueError: not 0 <= k <= n, or n = 0: nothing was measured.
    """
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"{k} of {n} is not a proportion")
    z = critical_z(confidence)
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return Interval(0.0 if k == 0 else centre - half, 1.0 if k == n else centre + half)


def clopper_pearson(k: float, n: float, confidence: float = 0.95) -> Interval:
    """The exact interval of a rate (Clopper & Pearson 1934): each limit errs by at most half of 1 - confidence.

    Args:
        k, n: counts; those of clusters divided by their design effect need not be whole.
        confidence: of the interval.
    """
    if not 0 <= k <= n or n <= 0:
        raise ValueError(f"{k} of {n}")
    half = (1 - confidence) / 2
    lo = 0.0 if k == 0 else beta_quantile(half, k, n - k + 1)
    hi = 1.0 if k == n else beta_quantile(1 - half, k + 1, n - k)
    return Interval(lo, hi)


def newcombe_difference(k1: int, n1: int, k2: int, n2: int, confidence: float = 0.95) -> Interval:
    """Hybrid score interval of k1/n1 - k2/n2, unpaired (Newcombe 1998, Stat Med 17:873, method 10)."""
    one, two = wilson(k1, n1, confidence), wilson(k2, n2, confidence)
    p1, p2 = k1 / n1, k2 / n2
    below = math.hypot(p1 - one.lo, two.hi - p2)
    above = math.hypot(one.hi - p1, p2 - two.lo)
    return Interval(p1 - p2 - below, p1 - p2 + above)


def bootstrap_mean(
    values: npt.ArrayLike,
    *,
    clusters: Sequence[Hashable] | None = None,
    samples: int = 2000,
    seed: int = 42,
    confidence: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of a mean (Efron 1979; limits by linear interpolation).

    Args:
        values: (n,), finite.
        clusters: a label for each value; values with the same label are drawn together, None is a cluster of its own.
        samples: resamples.
        seed: of the draws.
        confidence: of the interval.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    column = _columns(np.asarray(values, dtype=np.float64).reshape(-1, 1))
    if clusters is None:
        return _interval(bootstrap_means(column, samples=samples, seed=seed, confidence=confidence))
    codes = cluster_codes(clusters)
    if len(codes) != len(column):
        raise ValueError(f"{len(column)} values for {len(codes)} cluster labels")
    sums = np.bincount(codes, weights=column[:, 0]).reshape(-1, 1)
    counts = np.bincount(codes).astype(np.float64).reshape(-1, 1)
    return _interval(bootstrap_ratios(sums, counts, samples=samples, seed=seed, confidence=confidence))


def paired_bootstrap_difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    *,
    clusters: Sequence[Hashable] | None = None,
    samples: int = 2000,
    seed: int = 42,
    confidence: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of mean(first) - mean(second), where row i of both is the same prompt.

    Arguments and errors are those of `bootstrap_mean`; pairs, or whole clusters of them, are drawn.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != two.shape:
        raise ValueError(f"{one.shape} against {two.shape}: not pairs")
    return bootstrap_mean(one - two, clusters=clusters, samples=samples, seed=seed, confidence=confidence)


def bootstrap_means(
    values: npt.ArrayLike, *, samples: int = 2000, seed: int = 42, confidence: float = 0.95
) -> FloatArray:
    """`bootstrap_mean` of many cells with equally many values, sharing the draws: (n, cells) to (cells, 2).

    A column gives the same interval, to the bit, whatever stands beside it.
    """
    columns = _summable(_columns(values))
    means = np.concatenate([counts @ columns for counts in _draws(len(columns), samples, seed)]) / len(columns)
    return percentiles(means, confidence)


def bootstrap_ratios(
    sums: npt.ArrayLike, counts: npt.ArrayLike, *, samples: int = 2000, seed: int = 42, confidence: float = 0.95
) -> FloatArray:
    """Interval of sum(sums) / sum(counts) when whole rows are drawn: (clusters, cells) twice to (cells, 2).

    With the sum and the number of graded samples of each cluster this is the clustered bootstrap of a mean. A draw in
    which a cell has no sample at all says nothing and is left out.

    Raises:
        ValueError: as `resampled_ratios`.
    """
    return percentiles(resampled_ratios(sums, counts, samples=samples, seed=seed), confidence)


def resampled_ratios(sums: npt.ArrayLike, counts: npt.ArrayLike, *, samples: int = 2000, seed: int = 42) -> FloatArray:
    """The ratios of `bootstrap_ratios` themselves: (samples, cells), NaN where a draw has no sample of a cell.

    Raises:
        ValueError: shapes differ, a count is negative, or a cell has no sample.
    """
    top, bottom = _columns(sums), _columns(counts)
    if top.shape != bottom.shape or bottom.min() < 0 or bottom.sum(axis=0).min() == 0:
        raise ValueError("each cell needs a sum and a count for every cluster, and a count above 0 in one of them")
    top, bottom = _summable(top), _summable(bottom)
    totals = [(drawn @ top, drawn @ bottom) for drawn in _draws(len(top), samples, seed)]
    above, below = (np.concatenate(part) for part in zip(*totals, strict=True))
    ratios = np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
    return np.asarray(ratios, dtype=np.float64)


def resampled_counts(
    cells: Sequence[Sequence[int]], n: int, *, samples: int = 2000, seed: int = 42
) -> Iterator[list[npt.NDArray[np.int64]]]:
    """How often each kind of thing occurs in each resample of n things of which some are of a kind.

    All cells share their draws. Kinds are in falling order of their counts, so that the draws do not depend on the
    order they are given in. Memory is bounded: what comes is a block of resamples, (resamples, kinds) for each cell.

    Args:
        cells: how many things there are of each kind, at most n in all.
        n: things that are drawn.
        samples: resamples.
        seed: of the draws.

    Raises:
        ValueError: a negative count, or more than n.
    """
    edges = [np.concatenate([[0], np.cumsum(np.sort(np.asarray(counts, dtype=np.int64))[::-1])]) for counts in cells]
    if any(edge[-1] > n or (np.diff(edge) < 0).any() for edge in edges):
        raise ValueError(f"counts of at most {n} things are needed, none negative")
    for drawn in _draws(n, samples, seed):
        running = np.zeros((len(drawn), n + 1), dtype=np.int64)
        np.cumsum(drawn, axis=1, out=running[:, 1:], dtype=np.int64)
        yield [np.diff(running[:, edge], axis=1) for edge in edges]


def bootstrap_proportion(k: int, n: int, confidence: float = 0.95) -> Interval:
    """What `bootstrap_mean` of k ones among n values tends to as the resamples grow: quantiles of Binomial(n, k/n) / n.

    Exact, needs no draws, and has no clusters.
    """
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"{k} of {n} is not a proportion")
    if k in (0, n):
        return Interval(k / n, k / n)
    tail = (1 - confidence) / 2
    lo, hi = binomial_quantiles(k, n, (tail, 1 - tail))
    return Interval(lo / n, hi / n)


def _columns(values: npt.ArrayLike) -> FloatArray:
    columns = np.asarray(values, dtype=np.float64)
    if columns.ndim != 2 or columns.size == 0 or not np.isfinite(columns).all():
        raise ValueError("at least one value is needed, and every value finite")
    return columns


def cluster_codes(clusters: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    """0, 1, ... in order of first appearance."""
    seen: dict[tuple[bool, Hashable], int] = {}
    labels = ((label is None, i if label is None else label) for i, label in enumerate(clusters))
    return np.array([seen.setdefault(label, len(seen)) for label in labels], dtype=np.int64)


def _summable(columns: FloatArray) -> FloatArray:
    """Round each column to a grid on which any sum of as many values as it has is exact in binary floats.

    The grid is 2^-52 of the largest possible sum; exact sums do not depend on their order, hence not on threads.
    """
    largest = np.abs(columns).max(axis=0) * len(columns)
    exponent = np.frexp(largest)[1]
    grid = np.ldexp(1.0, np.maximum(exponent - 52, _SMALLEST_EXPONENT))
    return np.asarray(np.round(columns / grid) * grid, dtype=np.float64)


def _draws(n: int, samples: int, seed: int) -> Iterator[FloatArray]:
    """How often each of n units is drawn in each resample, as blocks of (resamples, n).

    The stream is that of `numpy.random.default_rng(seed).integers(0, n, (samples, n))`, which is scipy's too.
    """
    if samples * n <= _BLOCK:
        yield _one_block(n, samples, seed)
    else:
        yield from _blocks(n, samples, seed)


@lru_cache(8)
def _one_block(n: int, samples: int, seed: int) -> FloatArray:
    """The draws of a small study, kept: its matrix, deltas and regimes draw the same ones."""
    (block,) = _blocks(n, samples, seed)
    block.flags.writeable = False
    return block


def _blocks(n: int, samples: int, seed: int) -> Iterator[FloatArray]:
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // n)
    for start in range(0, samples, rows):
        block = min(rows, samples - start)
        drawn = rng.integers(0, n, (block, n))
        drawn += np.arange(0, block * n, n)[:, None]
        yield np.bincount(drawn.ravel(), minlength=block * n).reshape(block, n).astype(np.float64)


def percentiles(statistics: FloatArray, confidence: float) -> FloatArray:
    """Limits of resampled statistics, (samples, cells) to (cells, 2); a NaN is a resample that says nothing."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    tail = (1 - confidence) / 2
    quantile = np.nanquantile if np.isnan(statistics).any() else np.quantile
    # A cell's statistics side by side in memory are the quicker to put in order.
    return np.asarray(quantile(np.ascontiguousarray(statistics.T), [tail, 1 - tail], axis=1).T, dtype=np.float64)


def _interval(limits: FloatArray) -> Interval:
    return Interval(float(limits[0, 0]), float(limits[0, 1]))
