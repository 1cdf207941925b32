"""The noise floor: how many answers flip though nothing changed, and whether a variant flips more of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantverdict.stats.distributions import beta_quantile


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """Flips of null arms against the baseline.

    Attributes:
        n: prompts that all arms answered.
        arms: null arms.
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
class Excess:
    """Flips of a variant beyond those of the null arms.

    Attributes:
        flips: of the variant.
        expected: of one arm, were the variant one more null arm.
        p: one-sided, of H0: the variant is one more null arm.
    """

    flips: int
    expected: float
    p: float


def noise_floor(nulls: npt.ArrayLike, confidence: float = 0.95) -> NoiseFloor:
    """The flip rate of null arms.

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


def excess_flips(variant: npt.ArrayLike, nulls: npt.ArrayLike, clusters: Sequence[Hashable] | None = None) -> Excess:
    """Does a variant flip more prompts than the null arms do? Exact, conditional on the flips of each prompt.

    Were the variant one more null arm, then which of a prompt's flips are its own would be an even draw among all arms;
    the chance of as many as were seen is that of a sum of independent draws, one a prompt (or cluster). Where no prompt
    flips twice it is binomial.

    Args:
        variant: (n,), True where the variant differs from the baseline; or is lost, for a test of losses alone.
        nulls: (arms, n), the same of the null arms.
        clusters: a label for each prompt; arms are exchanged within whole clusters. None is a cluster of its own.

    Raises:
        ValueError: shapes do not fit, or nothing in them.
    """
    flips = _arms(nulls)
    mine = np.asarray(variant, dtype=bool)
    if mine.shape != flips.shape[1:] or (clusters is not None and len(clusters) != mine.size):
        raise ValueError(f"{mine.shape} answers of a variant for {flips.shape} of null arms")
    counts = np.vstack([mine, flips]).astype(np.int64).T
    if clusters is not None:
        counts = _summed(counts, clusters)
    chances = np.ones(1)
    for unit in counts[counts.any(axis=1)]:
        chances = np.convolve(chances, np.bincount(unit) / len(unit))
    seen, total = int(mine.sum()), int(counts.sum())
    return Excess(seen, total / counts.shape[1], min(1.0, float(chances[seen:].sum())))


def _arms(nulls: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    flips = np.asarray(nulls, dtype=bool)
    if flips.ndim != 2 or flips.size == 0:
        raise ValueError(f"{flips.shape}: at least one null arm of at least one prompt is expected")
    return flips


def _summed(counts: npt.NDArray[np.int64], clusters: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    """Counts of whole clusters."""
    by_cluster: dict[Hashable, npt.NDArray[np.int64]] = {}
    for at, (label, row) in enumerate(zip(clusters, counts, strict=True)):
        key = (label is None, at if label is None else label)
        by_cluster[key] = by_cluster.get(key, np.zeros_like(row)) + row
    return np.array(list(by_cluster.values()))
