"""Paired intervals: each build against its baseline on the same prompts, which are drawn together.

Where both answered every prompt that is the bootstrap of the differences. Where one left a prompt ungraded that the
other did not, the means of both arms are drawn, so that the interval is about the delta of the matrix.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quantverdict.config import StatisticsConfig
from quantverdict.matrix.grid import Grid, Grids, grids, independent
from quantverdict.matrix.resample import Column, difference_draws, difference_intervals, draws, intervals
from quantverdict.records import CellId
from quantverdict.stats.intervals import FloatArray, Interval

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl


Arms = tuple[Column, Column]
"""A build and its baseline."""


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
    columns: dict[tuple[CellId, str], Column] = {}
    uneven: dict[tuple[CellId, str], Arms] = {}
    for name, grid in grids(scores).items():
        for cell, column, arms in _differences(grid, base):
            columns[cell, name] = column
            if arms is not None:
                uneven[cell, name] = arms
    even = {key: column for key, column in columns.items() if key not in uneven}
    found = intervals(even, statistics, seed) | difference_intervals(uneven, statistics, seed)
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
    differences = list(_differences(grid, {cell.base_model: cell for cell in baselines}))
    even = {cell: column for cell, column, arms in differences if arms is None}
    uneven = {cell: arms for cell, _, arms in differences if arms is not None}
    return draws(even, statistics, seed) | difference_draws(uneven, statistics, seed)


def _differences(grid: Grid, base: dict[str, CellId]) -> Iterator[tuple[CellId, Column, Arms | None]]:
    """Each cell with its differences from the baseline, and both arms where they have other prompts graded."""
    for cell in grid.cells:
        reference = base.get(cell.base_model)
        if reference is None or reference == cell or reference not in grid.cells:
            continue
        mine, theirs = grid.compared(cell, reference)
        difference = mine - theirs
        if not np.isnan(difference).all():
            alike = bool((np.isnan(mine) == np.isnan(theirs)).all())
            arms = (Column(mine, grid.units, grid.clustered), Column(theirs, grid.units, grid.clustered))
            yield cell, Column(difference, grid.units, grid.clustered), None if alike else arms
