"""What the prompts of each cell can show: the smallest detectable drop beside every rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import cache

from quantverdict.matrix.columns import METRICS, baselines
from quantverdict.records import CellId, Estimate, Matrix, Row, Table, Value
from quantverdict.stats.power import mde_paired, mde_unpaired

COLUMNS = (
    "base_model", "quant", "metric", "rate", "n", "mde_unpaired_pp", "mde_paired_pp", "discordance", "reason",
)  # fmt: skip


def power_table(
    matrix: Matrix,
    pairs: Mapping[tuple[CellId, str], tuple[int, int]] | None = None,
    power: float = 0.8,
    confidence: float = 0.95,
) -> Table:
    """`power.csv`: the smallest drop from the baseline's rate that a cell's prompts detect, in pp.

    A rate is a proportion, or a safety score between 0 and 1 (its variance is then at most that of a proportion).

    Args:
        matrix: the cells.
        pairs: how many pairs differ, of how many, by cell and metric, where samples exist; the paired effect needs it.
        power: wanted.
        confidence: one less the level of the two-sided test.
    """
    # The same few rates and counts come again and again, one a base model and metric.
    unpaired = cache(lambda p, n1, n2: mde_unpaired(p, n1, n2, power, 1 - confidence))
    base = baselines(matrix)
    rows: list[tuple[Value, ...]] = []
    for row in matrix:
        for metric, found, reference in _rates(row, base.get(row.base_model)):
            pair = (pairs or {}).get((row.cell, metric))
            share = None if pair is None else pair[0] / pair[1]
            loose = tight = None
            reasons = ["the number of prompts is not known"]
            if found.n is not None and reference.n is not None:
                loose = unpaired(as_probability(reference.value), reference.n, found.n)
                reasons = [] if loose is not None else ["no drop from this rate would be detected"]
                if pair is not None and share is not None:
                    tight = mde_paired(pair[1], share, power, 1 - confidence)
                    reasons += [] if tight is not None else ["too few pairs differ to show any difference"]
            rows.append((*row.cell, metric, found.value, found.n, _pp(loose), _pp(tight), share, "; ".join(reasons)))
    return Table("power", COLUMNS, tuple(rows))


def _rates(row: Row, baseline: Row | None) -> Iterator[tuple[str, Estimate, Estimate]]:
    for name, metric in METRICS.items():
        rate = metric.proportion or (metric.is_share and metric.group in ("safety", "judge"))
        if rate and baseline is not None and name in row.metrics and name in baseline.metrics:
            yield name, row.metrics[name], baseline.metrics[name]


def as_probability(rate: Fraction) -> float:
    """A rate between 0 and 1; a published one can stand beyond them by its rounding."""
    return float(min(max(rate, Fraction(0)), Fraction(1)))


def _pp(fraction: float | None) -> float | None:
    return None if fraction is None else fraction * 100
