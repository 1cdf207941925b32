"""Scored samples as one grid a metric: prompts down, cells across, NaN where there is no grade.

Prompts and cells are sorted by name, so that nothing after this depends on the order of the samples.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from quantverdict.errors import DataError, one_of
from quantverdict.matrix.columns import METRICS
from quantverdict.records import CellId, Score
from quantverdict.stats.intervals import FloatArray, Interval, bootstrap_means, bootstrap_ratios, resampled_ratios

if TYPE_CHECKING:
    import polars as pl

    from quantverdict.config import StatisticsConfig

SCORE_COLUMNS = ("base_model", "quant", "task", "sample_id", "metric", "value", "cluster")

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class InterimAnalyses:
    """The rounds in which a build was asked the prompts of a grid.

    Attributes:
        rounds: (prompts,), the round of each, from 0.
        asked: rounds that the build was asked; it has no answer to later ones.
        largest: prompts of the largest cluster.
        stopped_after: prompts of all tasks that it was asked, where it was stopped; None where it was asked everything.
        planned: prompts of all tasks.
    """

    rounds: Codes
    asked: int
    largest: int
    stopped_after: int | None
    planned: int


@dataclass(frozen=True, slots=True)
class ScoreGrid:
    """The grades of one metric.

    Attributes:
        cells: the columns of `values`, sorted.
        values: (prompts, cells), NaN where there is no grade; prompts sorted by task and sample.
        units: (prompts,), what is drawn together: 0, 1, ... in order of first appearance.
        clustered: whether a unit can have more than one prompt.
        tasks: (prompts,), the task of each.
        prompts: (prompts,), a number for each that is its own in all grids made together.
        samples: (prompts,), the sample of each.
        ungraded: the numbers of the prompts that a cell answered without getting a grade; not all of them are rows.
        looks: of the builds that were asked in rounds.
    """

    cells: tuple[CellId, ...]
    values: FloatArray
    units: Codes
    clustered: bool
    tasks: npt.NDArray[np.object_]
    prompts: Codes
    samples: npt.NDArray[np.object_]
    ungraded: Mapping[CellId, Codes] = field(default_factory=dict)
    looks: Mapping[CellId, InterimAnalyses] = field(default_factory=dict)

    def values_of(self, cell: CellId) -> FloatArray:
        """(prompts,), the grades of a cell."""
        return self.values[:, self.cells.index(cell)]

    def asked(self, cell: CellId) -> Codes:
        """The numbers of the prompts that a cell answered, graded or not, in order."""
        graded = self.prompts[~np.isnan(self.values_of(cell))] if cell in self.cells else np.empty(0, dtype=np.int64)
        ungraded = self.ungraded.get(cell)
        return graded if ungraded is None else np.union1d(graded, ungraded)

    def compared(self, cell: CellId, baseline: CellId) -> tuple[FloatArray, FloatArray]:
        """(prompts,) grades of a build and of its baseline; neither has any of what a stopped build was not asked."""
        return self.values_of(cell), np.where(self.reached(cell), self.values_of(baseline), np.nan)

    def reached(self, cell: CellId) -> npt.NDArray[np.bool_]:
        """(prompts,), all but those of rounds that a stopped build was not asked."""
        looks = self.looks.get(cell)
        if looks is None or looks.stopped_after is None:
            return np.ones(len(self.prompts), dtype=np.bool_)
        return looks.rounds < looks.asked


Grids = Mapping[str, ScoreGrid]


def scores_frame(scores: Iterable[Score]) -> pl.DataFrame:
    """Scores as a frame with `SCORE_COLUMNS`."""
    import polars as pl

    rows = [(s.base_model, s.quant, s.task, s.sample_id, s.metric, s.value, s.cluster) for s in scores]
    schema = {name: pl.Float64 if name == "value" else pl.String for name in SCORE_COLUMNS}
    return pl.DataFrame(rows, schema=schema, orient="row")


def grids(scores: pl.DataFrame | Grids) -> Grids:
    """One grid for each metric that has a grade; grids that are made already are given back.

    Args:
        scores: a frame with `SCORE_COLUMNS`; `value` null is ungraded, `cluster` null a prompt of its own. Each sample
            once a metric; its cluster is the same wherever it is given.

    Raises:
        DataError: an unknown metric, a value that is not finite, a repeated sample, a sample of two clusters.
    """
    if isinstance(scores, Mapping):
        return scores
    import polars as pl

    if "cluster" not in scores.columns:
        scores = scores.with_columns(cluster=pl.lit(None, pl.String))
    samples = scores.lazy().select(SCORE_COLUMNS)
    graded, ungraded = samples.filter(pl.col("value").is_not_null()), samples.filter(pl.col("value").is_null())
    prompts = _prompts(scores)
    cells = graded.select("base_model", "quant").unique().sort(pl.col("base_model", "quant").cast(pl.String)).collect()
    known = {str(name) for name in graded.select("metric").unique().collect()["metric"]}
    _refuse_unknown(known)
    names = tuple(CellId(*row) for row in cells.iter_rows())
    tasks, ids = (prompts[name].cast(pl.String).to_numpy() for name in ("task", "sample_id"))
    of_prompts = _codes(prompts), tasks, ids

    def coded(part: pl.LazyFrame, metric: str) -> pl.DataFrame:
        return (
            part.filter(pl.col("metric") == metric)
            .join(cells.lazy().with_row_index("cell"), on=["base_model", "quant"])
            .join(prompts.lazy().select("task", "sample_id").with_row_index("prompt"), on=["task", "sample_id"])
            .select("cell", "prompt", "value")
            .collect()
        )

    made = {}
    for name in (name for name in METRICS if name in known):  # one after another: rows are held once beside the grids
        grid = _grid(name, coded(graded, name), names, of_prompts)
        left = {
            names[int(cell)]: rows["prompt"].unique().sort().to_numpy().astype(np.int64)
            for (cell,), rows in coded(ungraded, name).partition_by("cell", as_dict=True).items()
        }
        made[name] = replace(grid, ungraded=left)
    return made


def _grid(
    name: str,
    samples: pl.DataFrame,
    names: tuple[CellId, ...],
    of_prompts: tuple[Codes, npt.NDArray[np.object_], npt.NDArray[np.object_]],
) -> ScoreGrid:
    clusters, tasks, ids = of_prompts
    values = samples["value"].to_numpy().astype(np.float64, copy=False)
    if not np.isfinite(values).all():
        raise DataError("a value that is not finite", field=name, expected="a number, or null where ungraded")
    if METRICS[name].proportion and not ((values == 0) | (values == 1)).all():
        raise DataError("a value that is neither 0 nor 1", field=name, expected="0, 1, or null where ungraded")
    prompts, row = _compact(samples["prompt"].to_numpy(), len(clusters))
    cells, column = _compact(samples["cell"].to_numpy(), len(names))
    table = np.full((len(prompts), len(cells)), np.nan)
    table[row, column] = values
    if np.count_nonzero(~np.isnan(table)) != len(values):
        raise DataError("a sample is scored twice", field=name, expected="each sample of a cell once")
    _, first, inverse = np.unique(clusters[prompts], return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    columns, clustered = tuple(names[cell] for cell in cells), len(first) < len(prompts)
    return ScoreGrid(columns, table, rank[inverse], clustered, tasks[prompts], prompts, ids[prompts])


def without_replaced(samples: Grids) -> Grids:
    """Grids in which a prompt counts for one metric of its kind: what another replaces has none that it grades."""
    found = dict(samples)
    for name, grid in samples.items():
        other = found.get(METRICS[name].replaces)
        if other is None:
            continue
        left = ~np.isin(other.prompts, grid.prompts)
        if left.all():
            continue
        del found[METRICS[name].replaces]
        if left.any():
            looks = {cell: replace(one, rounds=one.rounds[left]) for cell, one in other.looks.items()}
            found[METRICS[name].replaces] = replace(
                other, values=other.values[left], units=other.units[left], tasks=other.tasks[left],
                prompts=other.prompts[left], samples=other.samples[left], looks=looks,
            )  # fmt: skip
    return found


def independent(values: FloatArray, units: Codes) -> int:
    """How many independent units, prompts or clusters of them, have a value among (prompts,) of them."""
    return int(np.count_nonzero(np.bincount(units[~np.isnan(values)])))


def _compact(codes: Codes, size: int) -> tuple[Codes, Codes]:
    """Which of the codes 0 .. size - 1 occur, and the place of each among those."""
    present = np.zeros(size, dtype=np.bool_)
    present[codes] = True
    return np.flatnonzero(present), (np.cumsum(present) - 1)[codes]


def _codes(prompts: pl.DataFrame) -> Codes:
    """A number for each prompt, the same for prompts of one task and cluster."""
    import polars as pl

    alone = pl.col("cluster").is_null()
    unit = pl.struct("task", alone.alias("alone"), pl.when(alone).then("sample_id").otherwise("cluster").alias("unit"))
    units = prompts.select(unit.alias("unit"))
    return (
        units.join(units.unique().with_row_index("code"), on="unit", maintain_order="left")["code"]
        .to_numpy()
        .astype(np.int64)
    )


def _prompts(scores: pl.DataFrame) -> pl.DataFrame:
    """Every sample once, sorted, with its cluster; a metric that does not say the cluster has that of the others."""
    import polars as pl

    cluster = pl.col("cluster")
    prompts = (
        scores.lazy()
        .select("task", "sample_id", cluster)
        .unique()
        .group_by("task", "sample_id")
        .agg(cluster.cast(pl.String).max(), cluster.cast(pl.String).min().alias("other"))
        .sort(pl.col("task", "sample_id").cast(pl.String))
        .collect()
    )
    torn = prompts.filter(cluster != pl.col("other"))
    if len(torn):
        task, sample, *_ = torn.row(0)
        raise DataError(f"sample {sample} of {task} has two clusters", field="cluster", expected="one, in every cell")
    return prompts.drop("other")


def _refuse_unknown(metrics: Iterable[str]) -> None:
    unknown = sorted(set(metrics) - set(METRICS))
    if unknown:
        raise DataError(f"unknown metric {unknown[0]}", field="metric", expected=one_of(unknown[0], METRICS))


# Bootstrap intervals of many columns of a grid at once.
#
# What is drawn is a prompt, or a whole cluster of prompts. A prompt without a grade is drawn like any other and adds
# nothing, so that all cells of a metric share their draws.

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Column:
    """Values of one cell, (prompts,) with NaN where there is none, and the unit of each prompt."""

    values: FloatArray
    units: npt.NDArray[np.int64]
    clustered: bool

    @property
    def is_plain(self) -> bool:
        """Every prompt is a unit and has a value."""
        return not self.clustered and not np.isnan(self.values).any()


def intervals(columns: Mapping[Key, Column], statistics: StatisticsConfig, seed: int) -> dict[Key, Interval]:
    """The interval of the mean of each column; each has at least one value."""
    plain: dict[int, list[Key]] = {}
    others: dict[int, list[Key]] = {}
    for key, column in columns.items():
        units = len(column.values) if column.is_plain else int(column.units.max()) + 1
        (plain if column.is_plain else others).setdefault(units, []).append(key)
    found: dict[Key, Interval] = {}
    settings = {"samples": statistics.bootstrap_samples, "seed": seed, "confidence": statistics.confidence}
    for keys in plain.values():
        stacked = np.column_stack([columns[key].values for key in keys])
        found |= _named(keys, bootstrap_means(stacked, **settings))  # type: ignore[arg-type]
    for units, keys in others.items():
        sums, counts = (np.column_stack(part) for part in zip(*(_totals(columns[k], units) for k in keys), strict=True))
        found |= _named(keys, bootstrap_ratios(sums, counts, **settings))  # type: ignore[arg-type]
    return found


def draws(columns: Mapping[Key, Column], statistics: StatisticsConfig, seed: int) -> dict[Key, FloatArray]:
    """The means of the resamples themselves, (resamples,) a column; NaN where a resample has no value of it."""
    by_units: dict[int, list[Key]] = {}
    for key, column in columns.items():
        by_units.setdefault(int(column.units.max()) + 1, []).append(key)
    found: dict[Key, FloatArray] = {}
    for units, keys in by_units.items():
        sums, counts = (np.column_stack(part) for part in zip(*(_totals(columns[k], units) for k in keys), strict=True))
        means = resampled_ratios(sums, counts, samples=statistics.bootstrap_samples, seed=seed)
        found |= dict(zip(keys, means.T, strict=True))
    return found


def _totals(column: Column, units: int) -> tuple[FloatArray, FloatArray]:
    """Sum and number of the values of each unit."""
    known = ~np.isnan(column.values)
    sums = np.bincount(column.units[known], weights=column.values[known], minlength=units).astype(np.float64)
    return sums, np.bincount(column.units[known], minlength=units).astype(np.float64)


def _named(keys: list[Key], limits: FloatArray) -> dict[Key, Interval]:
    return {key: Interval(float(lo), float(hi)) for key, (lo, hi) in zip(keys, limits, strict=True)}
