"""From the matrix to the decision: every rule applied once, as tables and as the document `decision.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from quantverdict.config import Constraints, StatisticsConfig
from quantverdict.matrix.columns import baselines
from quantverdict.matrix.deltas import Delta, deltas, deltas_table
from quantverdict.matrix.detectable import power_table
from quantverdict.matrix.grid import Grids, grids
from quantverdict.matrix.pairs import paired_draws
from quantverdict.matrix.signals import all_signals
from quantverdict.matrix.tiers import TierOf, tiers, tiers_table
from quantverdict.policy import Policy
from quantverdict.protocol.actions import decide_action, row_actions_table
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
from quantverdict.protocol.regimes import Draws, classify, regimes_table
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
    document: Mapping[str, object]

    @property
    def tables(self) -> tuple[Table, ...]:
        return (
            self.deltas, self.tiers, self.regimes, self.row_actions, self.quant_roles, self.floor, self.taxonomy,
            self.checklist, self.power,
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
    samples = None if evidence.scores is None else grids(evidence.scores)
    rows = _decided(matrix, policy, _regime_draws(matrix, policy, samples, statistics, evidence.seed))
    found = deltas(matrix, statistics, samples, evidence.seed)
    tier_of = tiers(matrix, found, policy)
    models = tuple(dict.fromkeys([*(row.base_model for row in matrix), *(cell.base_model for cell in evidence.failed)]))
    formats = formats_of(rows, models)
    roles = tuple(role_of(one, policy) for one in formats)
    floor = conservative_floor(formats, policy)
    screen = None if evidence.sign_reversal is None else sign_screen(evidence.sign_reversal)
    by_metric = {(delta.cell, delta.metric): delta for delta in found}
    findings = Findings(rows, by_metric, screen, floor, evidence.lineage, statistics)
    judged = Judged(
        study=study,
        policy=policy,
        constraints=constraints,
        findings=findings,
        tiers={tier.cell: tier for tier in tier_of},
        roles=roles,
        choices=_choices(models, rows, tier_of, constraints),
        fronts={model: pareto_front([row for row in matrix if row.base_model == model], policy) for model in models},
        failed=evidence.failed,
        twins=evidence.twins,
        dequantized=evidence.dequantized,
        baselines=evidence.baselines,
        idle_judges=evidence.idle_judges,
        order=evidence.order,
        has_samples=evidence.scores is not None,
    )
    return Decision(
        deltas=deltas_table(found),
        tiers=tiers_table(tier_of),
        regimes=regimes_table(row.regime for row in rows),
        row_actions=row_actions_table(row.action for row in rows),
        quant_roles=roles_table(roles),
        floor=floor_table(floor),
        taxonomy=taxonomy_table(findings, policy),
        checklist=checklist_table(checklist(Protocol(rows, evidence.matrix_sha256, screen, floor))),
        power=power_table(matrix, _differing(found), statistics.power, statistics.confidence),
        document=document(judged),
    )


def _decided(matrix: Matrix, policy: Policy, draws: Mapping[CellId, Draws]) -> tuple[Decided, ...]:
    rows = []
    for signals in all_signals(matrix, policy):
        regime = classify(signals, draws.get(signals.cell))
        rows.append(Decided(signals, regime, decide_action(signals, regime)))
    return tuple(rows)


def _differing(found: tuple[Delta, ...]) -> dict[tuple[CellId, str], tuple[int, int]]:
    """How many pairs differ, of how many, of every build and metric that is paired."""
    return {(d.cell, d.metric): (d.differing, d.n) for d in found if d.differing is not None and d.n}


def _regime_draws(
    matrix: Matrix, policy: Policy, samples: Grids | None, statistics: StatisticsConfig, seed: int
) -> dict[CellId, Draws]:
    """Resampled quality and refusal deltas, in pp; drawn apart, since they are over different prompts."""
    if samples is None:
        return {}
    base = [row.cell for row in baselines(matrix).values()]
    quality = paired_draws(samples, base, policy.quality_metric, statistics, seed)
    refusal = paired_draws(samples, base, policy.refusal_metric, statistics, seed + 1)
    return {cell: (100 * quality[cell], 100 * refusal[cell]) for cell in quality if cell in refusal}


def _choices(
    models: tuple[str, ...], rows: tuple[Decided, ...], tier_of: tuple[TierOf, ...], constraints: Constraints
) -> tuple[Choice, ...]:
    choices = []
    for model in models:
        mine = [(row, tier) for row, tier in zip(rows, tier_of, strict=True) if row.signals.cell.base_model == model]
        choices.append(best_build(model, [row for row, _ in mine], [tier for _, tier in mine], constraints))
    return tuple(choices)
