"""Recovery: a build's score in percent of its baseline's, over the prompts that both have a grade for.

A score is that of which more is better: of a metric of which less is better, 1 less its value. Beside it stands whether
its difference is one that A/A replicates, the baseline run again, show too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from quantverdict.matrix.columns import METRICS
from quantverdict.matrix.grid import Codes, Grids
from quantverdict.matrix.noise import inside_noise
from quantverdict.records import CellId, Table
from quantverdict.stats.intervals import FloatArray, Interval
from quantverdict.stats.noninferiority import cluster_sums, design_effect
from quantverdict.stats.paired import paired_mean_ratio, paired_rate_ratio

COLUMNS = (
    "base_model", "quant", "metric", "n_pairs", "baseline_value", "value", "recovery_percent", "recovery_lo",
    "recovery_hi", "noise",
)  # fmt: skip
INSIDE, BEYOND = "inside", "beyond"


@dataclass(frozen=True, slots=True)
class Recovery:
    """One metric of one build.

    Attributes:
        n: pairs.
        baseline, score: means over them, more is better.
        within: limits of score / baseline; None where too few pairs differ, or the baseline has next to nothing.
        noise: `INSIDE` where A/A replicates differ as much from the baseline, `BEYOND` where they do not, empty where
            there is none.
    """

    cell: CellId
    metric: str
    n: int
    baseline: float
    score: float
    within: Interval | None
    noise: str

    @property
    def ratio(self) -> float | None:
        """None where the baseline has nothing."""
        return self.score / self.baseline if self.baseline > 0 else None


def recoveries(
    samples: Grids, baselines: Mapping[CellId, CellId], nulls: Mapping[CellId, CellId], confidence: float = 0.95
) -> tuple[Recovery, ...]:
    """Of every build and share of which more, or less, is better.

    Args:
        samples: one grid a metric.
        baselines: each build to the baseline that it is compared with.
        nulls: A/A replicates, each to the baseline that it is.
    """
    return tuple(
        found
        for cell, baseline in baselines.items()
        for metric in samples
        if (found := _recovery(samples, (cell, baseline), metric, nulls, confidence)) is not None
    )


def _recovery(
    samples: Grids, pair: tuple[CellId, CellId], metric: str, nulls: Mapping[CellId, CellId], confidence: float
) -> Recovery | None:
    grid, known_as = samples[metric], METRICS[metric]
    if known_as.higher_is_better is None or not known_as.is_share or not set(pair) <= set(grid.cells):
        return None
    mine, theirs = grid.compared(*pair)
    known = ~np.isnan(mine - theirs)
    if not known.any():
        return None
    score, base = (values[known] if known_as.higher_is_better else 1 - values[known] for values in (mine, theirs))
    limits = _rate_limits if known_as.proportion else _mean_limits
    inside = inside_noise(grid, *pair, nulls)
    noise = "" if inside is None else INSIDE if inside else BEYOND
    within = limits(score, base, grid.units[known], confidence)
    return Recovery(pair[0], metric, len(score), float(base.mean()), float(score.mean()), within, noise)


def _rate_limits(score: FloatArray, base: FloatArray, units: Codes, confidence: float) -> Interval | None:
    """Of answers that are right or wrong: counts over the design effect of what differs."""
    both, gained, lost = (float(part.sum()) for part in (score * base, score * (1 - base), (1 - score) * base))
    effect = 1.0
    if len(np.unique(units)) < len(units):
        sums = cluster_sums(base - score, units.tolist())
        effect = design_effect(*sums, int(gained + lost), (1 - confidence) / 2)
    return paired_rate_ratio(both / effect, gained / effect, lost / effect, confidence)


def _mean_limits(score: FloatArray, base: FloatArray, units: Codes, confidence: float) -> Interval | None:
    return paired_mean_ratio(score, base, units.tolist(), confidence)


def recovery_table(found: Iterable[Recovery]) -> Table:
    """`recovery.csv`."""
    return Table("recovery", COLUMNS, tuple(tuple(_values(one)) for one in found))


def _values(one: Recovery) -> Iterator[str | int | float | Fraction | None]:
    yield from (*one.cell, one.metric, one.n, one.baseline, one.score)
    yield None if one.ratio is None else 100 * one.ratio
    for end in (None, None) if one.within is None else (one.within.lo, one.within.hi):
        yield None if end is None or math.isinf(end) else 100 * end
    yield one.noise or None
