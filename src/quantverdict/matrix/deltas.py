"""Every metric of every build less that of its baseline, with an interval.

The delta is exact. With samples it is over the prompts that both have a grade for, and its interval is that of
`paired.csv`, which decides; of what is no share the paired bootstrap, clusters whole. From counts alone it is
Newcombe's; else it is not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from quantverdict.matrix.columns import METRICS, Metric, baselines, references
from quantverdict.matrix.grid import Column, Grids, ScoreGrid, draws, grids, independent, intervals
from quantverdict.matrix.shared import with_shared
from quantverdict.records import CellId, Estimate, Matrix, Row, Table
from quantverdict.stats.intervals import FloatArray, Interval, newcombe_difference

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

    from quantverdict.config import StatisticsConfig

# Paired intervals: each build against its baseline, by the bootstrap of the differences on prompts graded in both.


@dataclass(frozen=True, slots=True)
class PairedInterval:
    """Interval of a paired difference, in the metric's own unit.

    `n` prompts both answered, of which some differ; they are of so many `units`, prompts or clusters of them.
    """

    interval: Interval
    n: int
    differing: int
    units: int
    clustered: bool


def paired_intervals(
    scores: pl.DataFrame | Grids, baselines: Iterable[CellId], statistics: StatisticsConfig, seed: int
) -> dict[tuple[CellId, str], PairedInterval]:
    """The interval of every cell and metric that shares a graded prompt with its baseline."""
    base = {cell.base_model: cell for cell in baselines}
    columns = {
        (cell, name): column for name, grid in grids(scores).items() for cell, column in _differences(grid, base)
    }
    found = intervals(columns, statistics, seed)
    return {
        key: PairedInterval(
            found[key],
            n=int((~np.isnan(column.values)).sum()),
            differing=int((np.nan_to_num(column.values) != 0).sum()),
            units=independent(column.values, column.units),
            clustered=column.clustered,
        )
        for key, column in columns.items()
    }


def paired_draws(
    scores: pl.DataFrame | Grids, baselines: Iterable[CellId], metric: str, statistics: StatisticsConfig, seed: int
) -> dict[CellId, FloatArray]:
    """The resampled mean differences of one metric from the baseline, (resamples,) a cell, in the metric's own unit."""
    grid = grids(scores).get(metric)
    if grid is None:
        return {}
    differences = dict(_differences(grid, {cell.base_model: cell for cell in baselines}))
    return draws(differences, statistics, seed)


def _differences(grid: ScoreGrid, base: dict[str, CellId]) -> Iterator[tuple[CellId, Column]]:
    """Each cell with its differences from the baseline, NaN where either has no grade."""
    for cell in grid.cells:
        reference = base.get(cell.base_model)
        if reference is None or reference == cell or reference not in grid.cells:
            continue
        mine, theirs = grid.compared(cell, reference)
        difference = mine - theirs
        if not np.isnan(difference).all():
            yield cell, Column(difference, grid.units, grid.clustered)


COLUMNS = (
    "base_model", "quant", "metric", "unit", "baseline_value", "value", "delta", "delta_percent", "ci_lo", "ci_hi",
    "interval_kind", "n", "stopped_after",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Delta:
    """A metric of a build less that of its baseline.

    Attributes:
        unit: of `delta`, `lo` and `hi`: pp for shares.
        delta: exact; None where either side was not measured.
        percent: `delta` in percent of the size of the baseline; None where that is 0.
        lo, hi: 95 % interval of `delta`.
        interval_kind: of `paired.csv`, or `newcombe`.
        n: prompts that both have a grade for, where paired; else the build's graded samples.
        differing: of those pairs, how many differ; None where not paired.
        units: of how many independent units those pairs are; None where not paired.
        stopped_after: prompts that the build was asked, where it was stopped: the baseline's value is then over these.
    """

    cell: CellId
    metric: str
    unit: str
    baseline_value: Fraction | None
    value: Fraction | None
    delta: Fraction | None
    percent: Fraction | None
    lo: float | None = None
    hi: float | None = None
    interval_kind: str | None = None
    n: int | None = None
    differing: int | None = None
    units: int | None = None
    stopped_after: int | None = None


def deltas(
    matrix: Matrix, statistics: StatisticsConfig, scores: pl.DataFrame | Grids | None = None, seed: int = 42
) -> tuple[Delta, ...]:
    """Deltas of every non-baseline row, in the order of the matrix and of the schema.

    Args:
        matrix: rows; a base model without a baseline has no deltas.
        statistics: resamples and confidence.
        scores: scored samples (`grid.SCORE_COLUMNS`) or grids made of them, None where there are none.
        seed: of the bootstrap.
    """
    paired: Mapping[tuple[CellId, str], PairedInterval] = {}
    if scores is not None:
        samples = grids(scores)
        matrix = with_shared(matrix, samples)
        paired = paired_intervals(samples, [row.cell for row in baselines(matrix).values()], statistics, seed)
    return tuple(_all_deltas(matrix, statistics.confidence, paired))


def deltas_table(found: tuple[Delta, ...]) -> Table:
    """`deltas.csv`."""
    rows = tuple(
        (
            *d.cell,
            d.metric,
            d.unit,
            d.baseline_value,
            d.value,
            d.delta,
            d.percent,
            d.lo,
            d.hi,
            d.interval_kind,
            d.n,
            d.stopped_after,
        )
        for d in found
    )
    return Table("deltas", COLUMNS, rows)


def _all_deltas(
    matrix: Matrix, confidence: float, paired: Mapping[tuple[CellId, str], PairedInterval]
) -> Iterator[Delta]:
    base = references(matrix)
    for row in matrix:
        reference = base.get(row.cell)
        if reference is None or row.is_baseline:
            continue
        for metric in METRICS.values():
            if metric.name in row.metrics or metric.name in reference.metrics:
                pair = paired.get((row.cell, metric.name))
                delta = _delta(metric, row, reference, confidence, pair)
                yield delta if row.shared is None else replace(delta, stopped_after=row.shared.stopped_after)


def _delta(metric: Metric, row: Row, reference: Row, confidence: float, pair: PairedInterval | None) -> Delta:
    found, other = row.paired_metrics.get(metric.name), reference.metrics.get(metric.name)
    n = None if found is None else found.n
    if found is None or other is None:
        theirs, mine = (None if one is None else one.value for one in (other, found))
        return Delta(row.cell, metric.name, metric.delta_unit, theirs, mine, None, None, n=n)
    value, baseline = found.value, other.value
    change = metric.delta(value, baseline)
    percent = (value - baseline) / abs(baseline) * 100 if baseline else None
    interval, kind = _counted_interval(found, other, confidence)
    if pair is not None:
        kind = "paired_cluster_bootstrap" if pair.clustered else "paired_bootstrap"
        interval, n = pair.interval, pair.n
    scale = 100 if metric.is_share else 1
    lo, hi = (None, None) if interval is None else (interval.lo * scale, interval.hi * scale)
    counts = (None, None) if pair is None else (pair.differing, pair.units)
    return Delta(row.cell, metric.name, metric.delta_unit, baseline, value, change, percent, lo, hi, kind, n, *counts)


def _counted_interval(one: Estimate, two: Estimate, confidence: float) -> tuple[Interval | None, str | None]:
    if one.k is None or one.n is None or two.k is None or two.n is None:
        return None, None
    return newcombe_difference(one.k, one.n, two.k, two.n, confidence), "newcombe"
