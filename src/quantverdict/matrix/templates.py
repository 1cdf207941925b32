"""The refusal template of every cell with its intervals, and `templates.csv`.

The openings of refusals are drawn as the multinomial counts they are, the refused answers being as many as they were;
for the means answers are drawn, those without a refusal adding nothing, so that all cells share their draws. Either
way the order of the answers does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from quantverdict.config import StatisticsConfig
from quantverdict.grading.template import Reading, openings, template_of
from quantverdict.matrix.resample import Column, intervals
from quantverdict.records import CellId, Estimate, Table
from quantverdict.stats.intervals import FloatArray, Interval, bootstrap_proportion, percentiles, resampled_counts

Key = tuple[CellId, str]
Templates = Mapping[CellId, Mapping[str, Estimate]]
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
    for cell, own in answers.items():
        limits |= {(cell, name): limit for name, limit in _shares(own, statistics, seed)}
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


def _shares(own: Sequence[Reading], statistics: StatisticsConfig, seed: int) -> Iterator[tuple[str, Interval]]:
    counts = openings(own)
    n = counts.total()
    if not n:
        return
    drawn = resampled_counts(list(counts.values()), samples=statistics.bootstrap_samples, seed=seed)
    found = {"dominant_prefix_share": drawn.max(axis=1) / n, "unique_prefix_rate": np.count_nonzero(drawn, axis=1) / n}
    if n > 1:
        spread = np.arange(n + 1) * np.log(np.maximum(np.arange(n + 1), 1))
        found["prefix_entropy"] = np.maximum(1 - spread[drawn].sum(axis=1) / (n * np.log(n)), 0)
    for name, values in found.items():
        yield name, _limits(values, statistics.confidence)


def _limits(values: FloatArray, confidence: float) -> Interval:
    lo, hi = percentiles(values.reshape(-1, 1), confidence)[0]
    return Interval(float(lo), float(hi))


def _proportion(one: Estimate, confidence: float) -> Interval:
    assert one.k is not None
    assert one.n is not None
    return bootstrap_proportion(one.k, one.n, confidence)
