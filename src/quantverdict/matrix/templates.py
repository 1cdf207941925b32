"""The refusal template of every cell with its intervals, and `templates.csv`.

Answers are drawn, those that are no refusal with the others: they add nothing, and all cells share their draws. The
order of the answers does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from quantverdict.config import StatisticsConfig
from quantverdict.grading.template import Reading, openings, template_of
from quantverdict.matrix.resample import Column, intervals
from quantverdict.records import CellId, Estimate, Table
from quantverdict.stats.intervals import FloatArray, Interval, bootstrap_proportion, percentiles, resampled_counts

Key = tuple[CellId, str]
Templates = Mapping[CellId, Mapping[str, Estimate]]
SHARES = ("dominant_prefix_share", "unique_prefix_rate", "prefix_entropy")
COLUMNS = ("base_model", "quant", "metric", "value", "k", "n", "ci_lo", "ci_hi")


def template_estimates(
    answers: Mapping[CellId, Sequence[Reading]], statistics: StatisticsConfig, seed: int
) -> dict[CellId, dict[str, Estimate]]:
    """`template_of` the answers of every cell, each metric with its interval; what was not measured is absent.

    Args:
        answers: to the plain harmful task.
        statistics: resamples and confidence.
        seed: of the bootstrap.
    """
    found = {
        (cell, name): estimate
        for cell, own in answers.items()
        for name, estimate in template_of(own).items()
        if estimate is not None
    }
    limits = intervals(dict(_means(answers, found)), statistics, seed)
    limits |= dict(_shares(answers, statistics, seed))
    estimates: dict[CellId, dict[str, Estimate]] = {cell: {} for cell in answers}
    for (cell, name), one in found.items():
        limit = limits.get((cell, name)) or _proportion(one, statistics.confidence)
        estimates[cell][name] = replace(one, lo=limit.lo, hi=limit.hi)
    return estimates


def templates_table(templates: Templates) -> Table:
    """`templates.csv`."""
    rows = [
        (*cell, name, one.value, one.k, one.n, one.lo, one.hi)
        for cell, own in templates.items()
        for name, one in own.items()
    ]
    return Table("templates", COLUMNS, tuple(rows))


def _means(
    answers: Mapping[CellId, Sequence[Reading]], measured: Mapping[Key, Estimate]
) -> Iterator[tuple[Key, Column]]:
    for cell, own in answers.items():
        refused = [reading.refused for reading in own]
        for name, counts in (
            ("mean_refusal_tokens", [reading.tokens for reading in own]),
            ("mean_refusal_chars", [reading.chars for reading in own]),
        ):
            if (cell, name) in measured:
                known = [c if r and c is not None else np.nan for r, c in zip(refused, counts, strict=True)]
                values = np.sort(np.array(known, dtype=np.float64))
                yield (cell, name), Column(values, np.arange(len(values)), clustered=False)


def _shares(
    answers: Mapping[CellId, Sequence[Reading]], statistics: StatisticsConfig, seed: int
) -> Iterator[tuple[Key, Interval]]:
    by_size: dict[int, dict[CellId, list[int]]] = {}
    for cell, own in answers.items():
        if counts := openings(own):
            by_size.setdefault(len(own), {})[cell] = list(counts.values())
    for n, cells in by_size.items():
        blocks = resampled_counts(list(cells.values()), n, samples=statistics.bootstrap_samples, seed=seed)
        figures = [[_figures(counts) for counts in block] for block in blocks]
        for cell, drawn in zip(cells, zip(*figures, strict=True), strict=True):
            for name, values in zip(SHARES, np.concatenate(drawn).T, strict=True):
                if not np.isnan(values).all():
                    lo, hi = percentiles(values.reshape(-1, 1), statistics.confidence)[0]
                    yield (cell, name), Interval(float(lo), float(hi))


def _figures(counts: npt.NDArray[np.int64]) -> FloatArray:
    """`SHARES` of each resample: (resamples, kinds) to (resamples, 3), NaN where it says nothing of one."""
    n = counts.sum(axis=1)
    some, several = np.where(n > 0, n, np.nan), np.where(n > 1, n, np.nan)
    spread = np.arange(counts.max() + 1) * np.log(np.maximum(np.arange(counts.max() + 1), 1))
    entropy = 1 - spread[counts].sum(axis=1) / (several * np.log(several))
    return np.column_stack([counts.max(axis=1) / some, np.count_nonzero(counts, axis=1) / some, entropy.clip(0)])


def _proportion(one: Estimate, confidence: float) -> Interval:
    assert one.k is not None
    assert one.n is not None
    return bootstrap_proportion(one.k, one.n, confidence)
