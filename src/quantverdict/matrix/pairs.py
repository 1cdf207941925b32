"""Paired intervals: each build against its baseline, by the bootstrap of the differences on prompts graded in both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quantverdict.config import StatisticsConfig
from quantverdict.matrix.grid import Grid, Grids, grids, independent
from quantverdict.matrix.resample import Column, draws, intervals
from quantverdict.records import CellId
from quantverdict.stats.intervals import FloatArray, Interval

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl


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


def _differences(grid: Grid, base: dict[str, CellId]) -> Iterator[tuple[CellId, Column]]:
    """Each cell with its differences from the baseline, NaN where either has no grade."""
    for cell in grid.cells:
        reference = base.get(cell.base_model)
        if reference is None or reference == cell or reference not in grid.cells:
            continue
        mine, theirs = grid.compared(cell, reference)
        difference = mine - theirs
        if not np.isnan(difference).all():
            yield cell, Column(difference, grid.units, grid.clustered)
