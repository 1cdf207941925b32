"""From the matrix to the decision: every rule applied once, as tables and as the document `decision.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quantverdict.config import Constraints, StatisticsConfig
from quantverdict.matrix.deltas import deltas, deltas_table
from quantverdict.matrix.detectable import power_table, units_of
from quantverdict.matrix.grid import Grids, grids
from quantverdict.matrix.noise import noise_floors, noise_table
from quantverdict.matrix.tiers import TierOf, tiers, tiers_table
from quantverdict.policy import Policy
from quantverdict.protocol.actions import row_actions_table
from quantverdict.protocol.checklist import Protocol, checklist, checklist_table, sign_screen
from quantverdict.protocol.document import Judged, document
from quantverdict.protocol.formats import (
    Decided,
    conservative_floor,
    floor_table,
    formats_of,
    role_of,
    roles_table,
)
from quantverdict.protocol.outcomes import paired_table, refuse_unusable
from quantverdict.protocol.regimes import regimes_table
from quantverdict.protocol.rows import decide_rows, outcomes_of, pairs_that_differ, regime_draws
from quantverdict.protocol.selection import Choice, best_build, pareto_front
from quantverdict.protocol.taxonomy import Findings, taxonomy_table
from quantverdict.records import CellId, Matrix, Table

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a decision rests on besides the matrix; the defaults are those of a bare matrix.

    Attributes:
        scores: scored samples (`grid.SCORE_COLUMNS`) or grids made of them, for paired intervals.
        sign_reversal: `sign_reversal.csv`, for the correlation screen.
        matrix_sha256: of the frozen `matrix.csv`.
        failed: cells that did not run, and why.
        twins: cells with the same weights as another build of their base model, and that build's quant.
        lineage: cells whose origin or prompt is in doubt, and why.
        dequantized: baselines that were themselves dequantised, and from what.
        baselines: the cells that others are compared with, whether they ran or not.
        idle_judges: judges that the study names and that gave no label.
        nulls: null arms, each to the baseline that it is; they are no builds.
        mixed_up: cells on another engine than their baseline, which does not run there: format and engine in one delta.
        order: the cells of the study in its order; the matrix's own order where it is empty.
        seed: of the bootstrap.
    """

    scores: pl.DataFrame | Grids | None = None
    sign_reversal: Table | None = None
    matrix_sha256: str | None = None
    failed: Mapping[CellId, str] = field(default_factory=dict)
    twins: Mapping[CellId, str] = field(default_factory=dict)
    lineage: Mapping[CellId, str] = field(default_factory=dict)
    dequantized: Mapping[CellId, str] = field(default_factory=dict)
    baselines: frozenset[CellId] = frozenset()
    idle_judges: tuple[str, ...] = ()
    nulls: Mapping[CellId, CellId] = field(default_factory=dict)
    mixed_up: Mapping[CellId, str] = field(default_factory=dict)
    order: tuple[CellId, ...] = ()
    seed: int = 42


@dataclass(frozen=True, slots=True)
class Decision:
    """The artefacts of a decision: the CSV tables, and the content of `decision.json`."""

    deltas: Table
    tiers: Table
    regimes: Table
    row_actions: Table
    quant_roles: Table
    floor: Table
    taxonomy: Table
    checklist: Table
    power: Table
    paired: Table
    noise_floor: Table
    document: Mapping[str, object]

    @property
    def tables(self) -> tuple[Table, ...]:
        return (
            self.deltas, self.tiers, self.regimes, self.row_actions, self.quant_roles, self.floor, self.taxonomy,
            self.checklist, self.power, self.paired, self.noise_floor,
        )  # fmt: skip


def decide(
    matrix: Matrix,
    policy: Policy,
    *,
    study: str = "",
    constraints: Constraints | None = None,
    statistics: StatisticsConfig | None = None,
    evidence: Evidence | None = None,
) -> Decision:
    """Decide every build, every format and the floor.

    Args:
        matrix: one row a cell; twins and cells that did not run have none.
        policy: every threshold.
        study: its name.
        constraints: what the build to ship must satisfy besides.
        statistics: resamples, confidence and power.
        evidence: what is known besides the matrix.

    Raises:
        StudyError: the policy names a metric that the rules cannot read.
    """
    constraints, statistics = constraints or Constraints(), statistics or StatisticsConfig()
    evidence = evidence or Evidence()
    refuse_unusable(policy)
    matrix = tuple(row for row in matrix if row.cell not in evidence.nulls)
    samples = None if evidence.scores is None else grids(evidence.scores)
    # Nothing is paired without samples, so the paired rules have nothing to go by.
    rules = policy if samples is not None else policy.by_points
    found = deltas(matrix, statistics, samples, evidence.seed)
    by_metric = {(delta.cell, delta.metric): delta for delta in found}
    drawn = (statistics, evidence.seed)
    compared = None if samples is None else outcomes_of(matrix, rules, samples, by_metric, evidence.nulls, drawn)
    rows = decide_rows(matrix, rules, regime_draws(matrix, rules, samples, *drawn), compared)
    tier_of = tiers(matrix, found, rules)
    noise = None if samples is None else noise_floors(samples, evidence.nulls, statistics.confidence)
    models = tuple(dict.fromkeys([*(row.base_model for row in matrix), *(cell.base_model for cell in evidence.failed)]))
    formats = formats_of(rows, models)
    roles = tuple(role_of(one, rules) for one in formats)
    floor = conservative_floor(formats, rules)
    screen = None if evidence.sign_reversal is None else sign_screen(evidence.sign_reversal)
    units = {} if samples is None else units_of(samples)
    findings = Findings(rows, by_metric, screen, floor, evidence.lineage, statistics, units)
    judged = Judged(
        study=study,
        policy=policy,
        constraints=constraints,
        findings=findings,
        tiers={tier.cell: tier for tier in tier_of},
        roles=roles,
        choices=_choices(models, rows, tier_of, constraints),
        fronts={model: pareto_front([row for row in matrix if row.base_model == model], rules) for model in models},
        failed=evidence.failed,
        twins=evidence.twins,
        dequantized=evidence.dequantized,
        baselines=evidence.baselines,
        idle_judges=evidence.idle_judges,
        mixed_up=evidence.mixed_up,
        order=evidence.order,
        noise=noise,
    )
    return Decision(
        deltas=deltas_table(found),
        tiers=tiers_table(tier_of),
        regimes=regimes_table(row.regime for row in rows),
        row_actions=row_actions_table(row.action for row in rows),
        quant_roles=roles_table(roles),
        floor=floor_table(floor),
        taxonomy=taxonomy_table(findings, rules),
        checklist=checklist_table(checklist(Protocol(rows, evidence.matrix_sha256, screen, floor))),
        power=power_table(matrix, statistics, pairs_that_differ(found), units),
        paired=paired_table(compared or ()),
        noise_floor=noise_table(noise or ()),
        document=document(judged),
    )


def _choices(
    models: tuple[str, ...], rows: tuple[Decided, ...], tier_of: tuple[TierOf, ...], constraints: Constraints
) -> tuple[Choice, ...]:
    choices = []
    for model in models:
        mine = [(row, tier) for row, tier in zip(rows, tier_of, strict=True) if row.signals.cell.base_model == model]
        choices.append(best_build(model, [row for row, _ in mine], [tier for _, tier in mine], constraints))
    return tuple(choices)
