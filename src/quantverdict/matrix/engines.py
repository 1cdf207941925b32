"""Format against engine: `engines.csv`.

A build that runs on another engine than its baseline differs from it by the format and by the engine. Where the study
runs the baseline's format on that engine too, the two are told apart: engine effect = that run less the baseline (the
same weights, two engines), format effect = the build less that run (one engine, two formats).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantverdict.config import StatisticsConfig
from quantverdict.matrix.grid import Grids
from quantverdict.matrix.paired import Comparison, Rules, comparisons
from quantverdict.records import CellId, Table, Value

ENGINE, FORMAT = "engine", "format"
COLUMNS = (
    "base_model", "quant", "engine", "effect", "against", "metric", "n_pairs", "lost", "gained", "delta_pp", "ci_lo_pp",
    "ci_hi_pp", "interval_kind", "p_value",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A cell that runs on another engine than its baseline.

    Attributes:
        engine: what runs it.
        baseline: what it is compared with.
        anchor: the baseline's format on the same engine; the cell itself where it is that, None where there is none.
    """

    cell: CellId
    engine: str
    baseline: CellId
    anchor: CellId | None

    @property
    def effect(self) -> str:
        return ENGINE if self.anchor == self.cell else FORMAT

    @property
    def against(self) -> CellId | None:
        return self.baseline if self.anchor == self.cell else self.anchor


def engines_table(
    samples: Grids | None, elsewhere: Mapping[CellId, Elsewhere], statistics: StatisticsConfig, seed: int
) -> Table:
    """Each effect on every share that both arms have graded prompts of; no rows where no engine has its baseline.

    Args:
        samples: one grid a metric; None where there are none.
        elsewhere: the cells on another engine than their baseline.
        statistics: confidence and resamples.
        seed: of the bootstrap.
    """
    pairs = {cell: case.against for cell, case in elsewhere.items() if case.against is not None}
    if samples is None or not pairs:
        return Table("engines", COLUMNS, ())
    arms = {cell: against for cell, against in pairs.items() if against is not None}
    found = comparisons(samples, arms, Rules({}, 0.05, statistics, seed), {}, {})
    return Table("engines", COLUMNS, tuple(_row(one, elsewhere[one.cell]) for one in found))


def mixed_up(elsewhere: Mapping[CellId, Elsewhere]) -> dict[CellId, str]:
    """Cells whose delta is format and engine in one, and the engine."""
    return {cell: case.engine for cell, case in elsewhere.items() if case.anchor is None}


def _row(found: Comparison, case: Elsewhere) -> tuple[Value, ...]:
    against = case.against
    return (
        *found.cell, case.engine, case.effect, None if against is None else against.quant, found.metric, found.n,
        found.lost, found.gained, found.delta, found.lo, found.hi, found.interval_kind, found.p_value,
    )  # fmt: skip
