"""The noise floor: how many answers of a baseline change though nothing did, and what a build changes beyond that.

An A/A replicate is the baseline again, in another order, batch size and thread count. It is no build: it is in no
table of builds, and nothing is decided about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantverdict.matrix.grid import Grids, ScoreGrid
from quantverdict.records import CellId, Table
from quantverdict.stats.intervals import FloatArray
from quantverdict.stats.paired import NoiseFloor, excess_flips, noise_floor

ALL = "all"
"""Stands for all tasks of a metric."""
COLUMNS = ("base_model", "task", "metric", "arms", "n", "flips", "null_flip_rate", "null_flip_hi")


@dataclass(frozen=True, slots=True)
class Flips:
    """Prompts of a build that differ from the baseline beside those of A/A replicates, over the prompts that all have.

    Attributes:
        rate: of the build.
        floor: of the A/A replicates.
        p_excess: exact, one-sided, of H0: the build is one more A/A replicate.
    """

    rate: float
    floor: NoiseFloor
    p_excess: float


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise floor of one metric of a base model, in one task or in `ALL`."""

    base_model: str
    task: str
    metric: str
    floor: NoiseFloor


@dataclass(frozen=True, slots=True)
class _Shifts:
    """Values less the baseline's, over the prompts that a build and every A/A replicate have.

    Attributes:
        nulls: a row an arm.
        units: the cluster of each prompt, None where each is its own.
    """

    build: FloatArray
    nulls: FloatArray
    units: list[int] | None


def flips_over_floor(grid: ScoreGrid, cell: CellId, baseline: CellId, nulls: Mapping[CellId, CellId]) -> Flips | None:
    """None where the baseline has no A/A replicate, or they share no prompt."""
    moved = _moved(grid, cell, baseline, nulls)
    if moved is None:
        return None
    variant, null = moved.build != 0, moved.nulls != 0
    return Flips(float(variant.mean()), noise_floor(null), excess_flips(variant, null, moved.units).p)


def gains_over_floor(grid: ScoreGrid, cell: CellId, baseline: CellId, nulls: Mapping[CellId, CellId]) -> float | None:
    """P-value, exact and one-sided, of H0: no more prompts rise in the build than in one more A/A replicate.

    None where the baseline has no A/A replicate, or they share no prompt.
    """
    moved = _moved(grid, cell, baseline, nulls)
    return None if moved is None else excess_flips(moved.build > 0, moved.nulls > 0, moved.units).p


def inside_noise(
    grid: ScoreGrid, cell: CellId, baseline: CellId, nulls: Mapping[CellId, CellId], alpha: float = 0.05
) -> bool | None:
    """Whether A/A replicates differ from the baseline as a build does: its mean differs by no more than that of the
    replicate that differs most, and no more of its prompts change than would in one more replicate.

    None where the baseline has no A/A replicate, or they share no prompt.
    """
    moved = _moved(grid, cell, baseline, nulls)
    if moved is None:
        return None
    furthest = float(np.abs(moved.nulls.mean(axis=1)).max())
    if abs(float(moved.build.mean())) > furthest + 1e-12:
        return False
    return excess_flips(moved.build != 0, moved.nulls != 0, moved.units).p > alpha


def noise_floors(samples: Grids, nulls: Mapping[CellId, CellId], confidence: float = 0.95) -> tuple[Noise, ...]:
    """The flips of the A/A replicates, for every base model and metric, over all tasks and of each."""
    found = []
    for baseline in sorted(set(nulls.values())):
        for metric, grid in samples.items():
            arms = _arms(grid, baseline, nulls)
            for task, flips in () if arms is None else _by_task(grid, arms):
                found.append(Noise(baseline.base_model, task, metric, noise_floor(flips, confidence)))
    return tuple(found)


def noise_table(found: Iterable[Noise]) -> Table:
    """`noise_floor.csv`."""
    rows = ((n.base_model, n.task, n.metric, n.floor.arms, n.floor.n, n.floor.flips, n.floor.rate, n.floor.hi)
            for n in found)  # fmt: skip
    return Table("noise_floor", COLUMNS, tuple(rows))


def _by_task(grid: ScoreGrid, arms: FloatArray) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    known = ~np.isnan(arms).any(axis=0)
    if known.any():
        yield ALL, arms[:, known] != 0
    for task in sorted(set(grid.tasks[known])):
        yield str(task), arms[:, known & (grid.tasks == task)] != 0


def _moved(grid: ScoreGrid, cell: CellId, baseline: CellId, nulls: Mapping[CellId, CellId]) -> _Shifts | None:
    """None where the baseline has no A/A replicate, or they share no prompt."""
    arms = _arms(grid, baseline, nulls)
    if arms is None or cell not in grid.cells:
        return None
    mine = _column(grid, cell) - _column(grid, baseline)
    known = ~(np.isnan(mine) | np.isnan(arms).any(axis=0))
    if not known.any():
        return None
    return _Shifts(mine[known], arms[:, known], grid.units[known].tolist() if grid.clustered else None)


def _arms(grid: ScoreGrid, baseline: CellId, nulls: Mapping[CellId, CellId]) -> FloatArray | None:
    """(arms, prompts) differences of the A/A replicates from their baseline, NaN where either has no grade."""
    cells = [null for null, of in nulls.items() if of == baseline and null in grid.cells]
    if not cells or baseline not in grid.cells:
        return None
    return np.array([_column(grid, null) - _column(grid, baseline) for null in cells])


def _column(grid: ScoreGrid, cell: CellId) -> FloatArray:
    return grid.values[:, grid.cells.index(cell)]
