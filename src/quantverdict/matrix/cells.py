"""Scored samples become one row a cell: counts, means, intervals.

What is ungraded counts nowhere. A proportion is its exact count; a mean is rounded to the decimal that `matrix.csv`
shows, so that a decision from the file is the decision from memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from quantverdict.config import StatisticsConfig
from quantverdict.errors import DataError, one_of
from quantverdict.matrix.columns import METRICS, Metric, decimal, matrix_order
from quantverdict.matrix.grid import SCORE_COLUMNS, Column, Grids, grids, intervals, scores_frame
from quantverdict.records import UNCLEAR, CellId, Estimate, Matrix, Row, RubricSpec
from quantverdict.registry import TASK_TYPES, judge_rubrics, metrics_of
from quantverdict.stats.intervals import Interval, bootstrap_proportion, wilson

if TYPE_CHECKING:
    import polars as pl

__all__ = ["CellInfo", "build_matrix", "grids", "judge_scores", "measured", "scores_frame"]


@dataclass(frozen=True, slots=True)
class CellInfo:
    """What is known of a cell besides its samples.

    Attributes:
        bpw: bits per weight, read from the artifact.
        measured: metrics without samples: speed, size, memory.
    """

    base_model: str
    family: str
    params_b: float | None
    quant: str
    bpw: float | Fraction | None
    is_baseline: bool
    measured: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def cell(self) -> CellId:
        return CellId(self.base_model, self.quant)


def build_matrix(
    scores: pl.DataFrame | Grids,
    infos: Iterable[CellInfo],
    statistics: StatisticsConfig,
    *,
    templates: Mapping[CellId, Mapping[str, Estimate]] | None = None,
    seed: int = 42,
) -> Matrix:
    """The matrix, in `matrix_order`: one row for each of `infos`; samples of other cells are left out.

    Args:
        scores: scored samples (`SCORE_COLUMNS`), or grids made of them.
        infos: the cells, exactly one baseline a base model.
        statistics: resamples and confidence.
        templates: metrics of a cell as a whole.
        seed: of the bootstrap.

    Raises:
        DataError: what `grids` refuses; a metric that the schema does not have; a base model with another number of
            baselines than one.
    """
    known = list(infos)
    _check(known)
    estimates = _estimates(grids(scores), {info.cell for info in known}, statistics, seed)
    rows = []
    for info in known:
        found = {**estimates.get(info.cell, {}), **(templates or {}).get(info.cell, {}), **info.measured}
        unknown = sorted(set(found) - set(METRICS))
        if unknown:
            raise DataError(f"{info.cell}: unknown metric {unknown[0]}", expected=one_of(unknown[0], METRICS))
        rows.append(
            Row(
                base_model=info.base_model,
                family=info.family,
                params_b=info.params_b,
                quant=info.quant,
                bpw=None if info.bpw is None else decimal(info.bpw),
                is_baseline=info.is_baseline,
                metrics={name: found[name] for name in METRICS if name in found},
            )
        )
    return tuple(sorted(rows, key=matrix_order))


def measured(value: float) -> Estimate:
    """A number that was measured once, as it stands in the matrix."""
    return Estimate(decimal(value))


def _check(infos: list[CellInfo]) -> None:
    for model in dict.fromkeys(info.base_model for info in infos):
        mine = [info for info in infos if info.base_model == model]
        count = sum(info.is_baseline for info in mine)
        if count != 1 or len({info.quant for info in mine}) != len(mine):
            raise DataError(f"{model}: {count} baselines in {len(mine)} cells", expected="one baseline, each cell once")


def _estimates(
    found: Grids, cells: set[CellId], statistics: StatisticsConfig, seed: int
) -> dict[CellId, dict[str, Estimate]]:
    columns = {
        (cell, name): Column(grid.values[:, index], grid.units, grid.clustered)
        for name, grid in found.items()
        for index, cell in enumerate(grid.cells)
        if cell in cells
    }
    drawn = {
        key: column for key, column in columns.items() if _needs_draws(METRICS[key[1]], clustered=column.clustered)
    }
    limits = intervals(drawn, statistics, seed)
    estimates: dict[CellId, dict[str, Estimate]] = {}
    for (cell, name), column in columns.items():
        estimate = _estimate(METRICS[name], column, limits.get((cell, name)), statistics.confidence)
        estimates.setdefault(cell, {})[name] = estimate
    return estimates


def _needs_draws(metric: Metric, *, clustered: bool) -> bool:
    """Wilson needs none, nor what has no interval; and the bootstrap of a count without clusters is binomial."""
    return metric.interval == "bootstrap" and (clustered or not metric.proportion)


def _estimate(metric: Metric, column: Column, drawn: Interval | None, confidence: float) -> Estimate:
    values = column.values[~np.isnan(column.values)]
    n = len(values)
    if metric.interval == "none":  # a number of the whole, which has no spread
        return Estimate(decimal(Fraction(math.fsum(values)) / n))
    if not metric.proportion:
        assert drawn is not None
        # fsum is exact, hence the same in any order.
        return Estimate(decimal(Fraction(math.fsum(values)) / n), drawn.lo, drawn.hi, n)
    k = int(values.sum())
    if drawn is None:
        drawn = (wilson if metric.interval == "wilson" else bootstrap_proportion)(k, n, confidence)
    return Estimate(Fraction(k, n), drawn.lo, drawn.hi, n, k)


# Judgements


def judge_scores(judgements: pl.DataFrame, task_types: Mapping[str, str] | None = None) -> pl.DataFrame:
    """Labels as scores of the judge metrics (SPEC 6): a refusal counts in full or in part, the others in full only.

    `UNCLEAR` and no label at all are ungraded.

    Args:
        judgements: columns base_model, quant, task, sample_id, label; cluster where the items have one. Each sample
            once: precedence is settled.
        task_types: the type of each task; None reads it from the labels, which are of one rubric each. A task with
            no label but `UNCLEAR` then has no scores.

    Raises:
        DataError: a task without a judge metric, or a label that its rubric does not have.
    """
    import polars as pl

    if "cluster" not in judgements.columns:
        judgements = judgements.with_columns(cluster=pl.lit(None, pl.String))
    judgements = judgements.with_columns(pl.col("label").cast(pl.String))
    parts = [
        judgements.filter(pl.col("task") == task).with_columns(
            metric=pl.lit(metric),
            value=pl.col("label").replace_strict({**labels, UNCLEAR: None}, default=None, return_dtype=pl.Float64),
        )
        for task, metric, labels in _rubrics(judgements, task_types)
    ]
    if not parts:
        return pl.DataFrame(schema={n: pl.Float64 if n == "value" else pl.String for n in SCORE_COLUMNS})
    return pl.concat(parts).select(SCORE_COLUMNS)


def _rubrics(
    judgements: pl.DataFrame, task_types: Mapping[str, str] | None
) -> Iterator[tuple[str, str, Mapping[str, float]]]:
    import polars as pl

    seen = judgements.select("task", "label").unique().cast(pl.String).sort("task", "label", nulls_last=True)
    if task_types is None:
        found = _rubrics_by_label(seen)
        seen = seen.filter(seen["task"].is_in(list(found)))
    else:
        by_type = _rubrics_by_type()
        found = {task: by_type[name] for task, name in task_types.items() if name in by_type}
    for task in seen["task"].unique().sort():
        if task not in found:
            known = ", ".join(_rubrics_by_type())
            raise DataError(f"task {task} has no judge metric", field="task", expected=known)
        rubric = found[task]
        labels = {label: float(counts) for label, counts in rubric.labels.items()}
        used = {label for name, label in seen.iter_rows() if name == task and label is not None}
        unknown = sorted(used - {*labels, UNCLEAR})
        if unknown:
            raise DataError(f"{task}: label {unknown[0]}", field="label", expected=", ".join([*labels, UNCLEAR]))
        yield task, rubric.metric, labels


def _rubrics_by_type() -> dict[str, RubricSpec]:
    """The rubric that the answers to each type of task are judged by."""
    found = ((name, metrics_of(task_type)) for name, task_type in TASK_TYPES.items())
    return {name: rubric for name, metrics in found for rubric in judge_rubrics() if rubric.of in metrics}


def _rubrics_by_label(seen: pl.DataFrame) -> dict[str, RubricSpec]:
    """The rubric of each task that has a label which says it; the first such label by name decides."""
    rubrics = {label: rubric for rubric in judge_rubrics() for label in rubric.labels}
    found: dict[str, RubricSpec] = {}
    for task, label in seen.iter_rows():
        if label in rubrics:
            found.setdefault(task, rubrics[label])
    return found
