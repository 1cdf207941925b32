"""What the prompts of each cell can show: the smallest detectable drop beside every rate.

Prompts of a cluster (one behaviour in several wrappers) may all be answered alike: clusters are counted in their place,
which is the cautious end, as in `plan`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import cache
from typing import NamedTuple

from quantverdict.config import StatisticsConfig
from quantverdict.matrix.columns import METRICS, references
from quantverdict.matrix.grid import Grids, independent
from quantverdict.records import CellId, Estimate, Matrix, Row, Table, Value
from quantverdict.stats.power import mde_paired, mde_unpaired

COLUMNS = (
    "base_model", "quant", "metric", "rate", "n", "n_independent", "unit", "mde_unpaired_pp", "mde_paired_pp",
    "discordance", "reason",
)  # fmt: skip

Units = Mapping[tuple[CellId, str], int]
"""Of how many independent units the graded prompts of a cell and metric are, where that is fewer than they are."""


class Pairs(NamedTuple):
    """How many pairs differ, of how many, and of how many independent units those are."""

    differing: int
    n: int
    units: int


def units_of(samples: Grids) -> dict[tuple[CellId, str], int]:
    """The units of every metric whose prompts come in clusters."""
    return {
        (cell, name): independent(grid.values[:, column], grid.units)
        for name, grid in samples.items()
        if grid.clustered
        for column, cell in enumerate(grid.cells)
    }


def power_table(
    matrix: Matrix,
    statistics: StatisticsConfig,
    pairs: Mapping[tuple[CellId, str], Pairs] | None = None,
    units: Units | None = None,
) -> Table:
    """`power.csv`: the smallest drop from the baseline's rate that a cell's prompts detect, in pp.

    A rate is a proportion, or a safety score between 0 and 1 (its variance is then at most that of a proportion).
    `n_independent` is what is counted, and `unit` whether those are prompts or clusters of them.

    Args:
        matrix: the cells.
        statistics: the power that is wanted, and the confidence, one less the level of the two-sided test.
        pairs: by cell and metric, where samples exist; the paired effect needs them.
        units: where samples exist.
    """
    # The same few rates and counts come again and again, one a base model and metric.
    unpaired = cache(lambda p, n1, n2: mde_unpaired(p, n1, n2, statistics.power, 1 - statistics.confidence))
    base, units = references(matrix), units or {}
    rows: list[tuple[Value, ...]] = []
    for row in matrix:
        for metric, found, reference in _rates(row, base.get(row.cell)):
            pair = (pairs or {}).get((row.cell, metric))
            n, n_base = counted(row, metric, units), counted(base[row.cell], metric, units)
            loose = tight = None
            reasons = ["the number of prompts is not known"]
            if n is not None and n_base is not None:
                loose = unpaired(as_probability(reference.value), n_base, n)
                reasons = [] if loose is not None else ["no drop from this rate would be detected"]
                if pair is not None:
                    tight = paired_drop(pair, statistics)
                    reasons += [] if tight is not None else ["too few pairs differ to show any difference"]
            share = None if pair is None else pair.differing / pair.n
            unit = None if n is None else "cluster" if n != found.n else "prompt"
            effects = (_pp(loose), _pp(tight), share)
            rows.append((*row.cell, metric, found.value, found.n, n, unit, *effects, "; ".join(reasons)))
    return Table("power", COLUMNS, tuple(rows))


def counted(row: Row, metric: str, units: Units) -> int | None:
    """The independent units that a rate is of; None where the number of prompts is not known."""
    n = row.metrics[metric].n
    return None if n is None else min(n, units.get((row.cell, metric), n))


def paired_drop(pairs: Pairs, statistics: StatisticsConfig) -> float | None:
    """The smallest difference that pairs detect, as a fraction; None where none is."""
    return mde_paired(pairs.units, pairs.differing / pairs.n, statistics.power, 1 - statistics.confidence)


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
