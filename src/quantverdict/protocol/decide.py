"""From the matrix to the decision: every rule applied once, as tables and as the document `decision.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from quantverdict.config import StatisticsConfig
from quantverdict.matrix.columns import baselines
from quantverdict.matrix.criteria import standings
from quantverdict.matrix.deltas import Delta, deltas, deltas_table, paired_draws
from quantverdict.matrix.format_alerts import FormatAlert, alerts, alerts_table
from quantverdict.matrix.grid import Grids, grids, without_replaced
from quantverdict.matrix.headroom import Headroom, PairCounts, Units, apart, headrooms, power_table, units_of
from quantverdict.matrix.noise import gains_over_floor, noise_floors, noise_table
from quantverdict.matrix.paired import ComparisonRules, comparisons, with_intervals
from quantverdict.matrix.recovery import recoveries, recovery_table
from quantverdict.matrix.shared import unpaired, with_shared
from quantverdict.matrix.signals import POLICY_METRICS, Signals, TierOf, all_signals, tiers, tiers_table
from quantverdict.policy import Constraints, Policy
from quantverdict.protocol.actions import (
    CONFIGURED,
    RowAction,
    RunObjections,
    criteria_action,
    decide_action,
    paired_action,
    row_actions_table,
)
from quantverdict.protocol.criteria import BuildVerdict, criteria_table, decide_criteria
from quantverdict.protocol.document import DecidedStudy, Evidence, document
from quantverdict.protocol.formats import DecidedRow, conservative_floor, floor_table, formats_of, role_of, roles_table
from quantverdict.protocol.outcomes import ComparisonOutcome as OutcomeOf
from quantverdict.protocol.outcomes import as_members, high_to_low, judge, paired_table
from quantverdict.protocol.regimes import Draws, classify, regimes_table
from quantverdict.protocol.selection import ModelChoice, best_build, pareto_front
from quantverdict.protocol.taxonomy import Findings, Protocol, checklist, checklist_table, sign_screen, taxonomy_table
from quantverdict.records import CellId, Matrix, Table

# Every row of the matrix with what is decided about it: regime, outcomes, and the action by either rules.


def criteria_of(
    matrix: Matrix, policy: Policy, samples: Grids, evidence: Evidence, statistics: StatisticsConfig
) -> dict[CellId, BuildVerdict]:
    """What the criteria of a policy say of every build; empty where it has none."""
    if policy.rules != "criteria":
        return {}
    samples = without_replaced(samples)
    found = standings(samples, compared_with(matrix), policy, rooms_of(matrix, policy, samples, evidence))
    order = high_to_low({row.cell: row.bpw for row in matrix})
    verdicts = decide_criteria(found, policy, order, statistics.power, evidence.look)
    return {cell: replace(one, pace=evidence.paces.get(cell)) for cell, one in verdicts.items()}


def member_levels(criteria: Mapping[CellId, BuildVerdict]) -> dict[tuple[CellId, str], tuple[float, float]]:
    """One-sided levels at which each member is tested by its own margin: to accept, and to reject."""
    return {
        (cell, row.standing.metric): (found.accept_level, found.reject_level * float(row.weight))
        for cell, found in criteria.items()
        for row in found.rows
        if row.standing.loss is not None
    }


def outcomes_of(
    matrix: Matrix,
    policy: Policy,
    samples: Grids,
    deltas: Mapping[tuple[CellId, str], Delta],
    evidence: Evidence,
    statistics: StatisticsConfig,
) -> tuple[OutcomeOf, ...]:
    """Every paired comparison of the study with its outcome, in the order of the matrix.

    Args:
        matrix: the builds; A/A replicates are none of them.
        policy: margins and alpha.
        samples: one grid a metric.
        deltas: of the builds, with their intervals.
        evidence: A/A replicates, the choices of items, and the seed.
        statistics: how intervals are made.
    """
    compared = compared_with(matrix)
    rules = ComparisonRules(policy.gates, policy.alpha / 2, statistics, evidence.seed)
    found = comparisons(samples, compared, rules, deltas, evidence.nulls)
    rooms = rooms_of(matrix, policy, samples, evidence)
    return judge(found, policy, high_to_low({row.cell: row.bpw for row in matrix}), statistics.power, rooms)


def rooms_of(matrix: Matrix, policy: Policy, samples: Grids, evidence: Evidence) -> dict[tuple[str, str], Headroom]:
    """The head-room of what either kind of rules rests on: what has no margin is held to the thresholds on deltas."""
    drifting = (policy.refusal_metric, policy.judge_refusal_metric, policy.truthfulness_metric, policy.bias_metric)
    margins = {**dict.fromkeys(drifting, policy.floor_drift_pp), **policy.gates}
    return headrooms(samples, dict.fromkeys(compared_with(matrix).values()), margins, evidence.choices)


def compared_with(matrix: Matrix) -> dict[CellId, CellId]:
    """Each build and its baseline."""
    base = {model: row.cell for model, row in baselines(matrix).items()}
    return {row.cell: base[row.base_model] for row in matrix if not row.is_baseline and row.base_model in base}


def against_builds(
    matrix: Matrix, policy: Policy, samples: Grids | None, judged: Sequence[OutcomeOf] | None, evidence: Evidence
) -> dict[CellId, RunObjections]:
    """What of the run itself keeps each build from passing; a build of a bare matrix has nothing against it."""
    if samples is None:
        return {}
    signals = {one.cell: one for one in all_signals(matrix, policy)}
    rooms = rooms_of(matrix, policy, samples, evidence)
    outcomes: dict[CellId, dict[str, OutcomeOf]] = {}
    for one in judged or ():
        outcomes.setdefault(one.comparison.cell, {})[one.comparison.metric] = one
    found = {}
    for cell, baseline in compared_with(matrix).items():
        rests_on = dict.fromkeys([*policy.gates, *(getattr(policy, field) for field in POLICY_METRICS)])
        torn = unpaired(samples, cell, baseline, rests_on)
        problem = None if torn is None else str(torn)
        gaps = [*([] if problem is None else [problem]), *_gaps(signals[cell], outcomes.get(cell, {}), rooms)]
        told_by = dict.fromkeys([*policy.gates, policy.judge_refusal_metric])
        keys = [(cell.base_model, metric) for metric in told_by]
        same = [rooms[key].reason for key in keys if key in rooms and rooms[key].constant]
        found[cell] = RunObjections(
            problem, apart(samples, cell, baseline, policy), tuple(gaps), "; ".join(same) or None
        )
    return found


def _gaps(
    signals: Signals, outcomes: Mapping[str, OutcomeOf], rooms: Mapping[tuple[str, str], Headroom]
) -> Iterator[str]:
    """What thresholds on deltas rest on and this run could not have shown.

    Quality and the refusal signal must have been able to fall; the others must not be known to be unable to.
    """
    policy = signals.policy
    for metric in dict.fromkeys((policy.quality_metric, signals.refusal_source, *(name for name, _ in signals.drifts))):
        one, room = outcomes.get(metric), rooms.get((signals.cell.base_model, metric))
        needed = metric in (policy.quality_metric, signals.refusal_source)
        if room is not None and (not room.tested or (needed and room.verdict != "informative")):
            yield room.reason
        elif one is not None and one.reason is not None and (gate := one.comparison.gate) is not None and gate.hidden:
            most = -policy.floor_quality_pp if metric == policy.quality_metric else policy.floor_drift_pp
            if 100 * gate.loss >= most:
                yield one.reason


def regime_draws(
    matrix: Matrix, policy: Policy, samples: Grids | None, statistics: StatisticsConfig, seed: int
) -> dict[CellId, Draws]:
    """Resampled quality and refusal deltas, in pp; drawn apart, since they are over different prompts."""
    if samples is None:
        return {}
    base = [row.cell for row in baselines(matrix).values()]
    quality = paired_draws(samples, base, policy.quality_metric, statistics, seed)
    refusal = paired_draws(samples, base, policy.refusal_metric, statistics, seed + 1)
    return {cell: (100 * quality[cell], 100 * refusal[cell]) for cell in quality if cell in refusal}


def decide_rows(
    matrix: Matrix,
    policy: Policy,
    draws: Mapping[CellId, Draws],
    judged: Sequence[OutcomeOf] | None,
    against: Mapping[CellId, RunObjections] | None = None,
    criteria: Mapping[CellId, BuildVerdict] | None = None,
) -> tuple[DecidedRow, ...]:
    """The regime and the action of every row.

    Args:
        matrix: the cells.
        policy: whose `rules` decide.
        draws: resampled quality and refusal deltas of each build that has them.
        judged: paired outcomes; None without samples, where only the rules on deltas can be followed.
        against: what of the run itself keeps a build from passing.
        criteria: what the policy's criteria say of each build.
    """
    gated: dict[CellId, list[OutcomeOf]] = {}
    for one in judged or ():
        if one.outcome is not None:
            gated.setdefault(one.comparison.cell, []).append(one)
    rows = []
    for plain in all_signals(matrix, policy):
        why = (against or {}).get(plain.cell, RunObjections())
        signals = replace(plain, gaps=why.gaps)
        regime = classify(signals, draws.get(signals.cell))
        point, paired = decide_action(signals, regime), None
        if judged is not None and policy.rules == "criteria":
            paired = criteria_action(signals, (criteria or {}).get(plain.cell), why)
        elif judged is not None:
            mine = gated.get(signals.cell, [])
            siblings = (
                one for cell, many in gated.items() if cell.base_model == signals.cell.base_model for one in many
            )
            measured = dict.fromkeys(one.comparison.metric for one in siblings)
            paired = paired_action(signals, mine, measured, why)
        action = paired if paired is not None and policy.rules != "points" else point
        verdict = (criteria or {}).get(signals.cell)
        rows.append(DecidedRow(signals, regime, action, point, paired, tuple(gated.get(signals.cell, ())), verdict))
    return tuple(rows)


def pairs_that_differ(found: Sequence[Delta]) -> dict[tuple[CellId, str], PairCounts]:
    """The pairs of every build and metric that is paired."""
    return {
        (d.cell, d.metric): PairCounts(d.differing, d.n, d.units)
        for d in found
        if d.differing is not None and d.n and d.units
    }


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
    alerts: Table | None
    document: Mapping[str, object]
    criteria: Table | None = None
    recovery: Table | None = None

    @property
    def tables(self) -> tuple[Table, ...]:
        return (
            self.deltas, self.tiers, self.regimes, self.row_actions, self.quant_roles, self.floor, self.taxonomy,
            self.checklist, self.power, self.paired, self.noise_floor, *(() if self.alerts is None else (self.alerts,)),
            *(one for one in (self.criteria, self.recovery) if one is not None),
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
        matrix: one row a cell; duplicates and cells that did not run have none.
        policy: every threshold.
        study: its name.
        constraints: what the build to ship must satisfy besides.
        statistics: resamples, confidence and power.
        evidence: what is known besides the matrix.

    Raises:
        StudyError: the policy names a metric that the rules cannot read.
    """
    statistics, evidence = statistics or StatisticsConfig(), evidence or Evidence()
    samples = None if evidence.scores is None else grids(evidence.scores)
    matrix = with_shared(tuple(row for row in matrix if row.cell not in evidence.nulls), samples)
    compared = _compare(matrix, policy, statistics, evidence)
    judged = _judge(compared, study, policy, constraints or Constraints(), evidence)
    return _decision(compared, judged)


@dataclass(frozen=True, slots=True)
class _ComparedBuilds:
    """Every build beside its baseline.

    Attributes:
        matrix: the builds; A/A replicates are none of them.
        rules: the policy, by points where nothing is paired.
        statistics: resamples, confidence and power.
        samples: None where there are none, hence no `outcomes` either.
        units: of how many independent units prompts are, where they come in clusters.
        deltas: of every metric of every build.
        outcomes: of every paired comparison.
        rows: the matrix with what is decided of each row.
        alarms: None where answers are not stored.
        gains: p-values of a metric that rose further than a policy tolerates, were it one more A/A replicate.
        against: what of the run itself keeps each build from passing.
        criteria: what the policy's criteria say; empty where it has none.
    """

    matrix: Matrix
    rules: Policy
    statistics: StatisticsConfig
    samples: Grids | None
    units: Units
    deltas: tuple[Delta, ...]
    outcomes: tuple[OutcomeOf, ...] | None
    rows: tuple[DecidedRow, ...]
    alerts: tuple[FormatAlert, ...] | None
    gains: Mapping[tuple[CellId, str], float]
    against: Mapping[CellId, RunObjections]
    criteria: Mapping[CellId, BuildVerdict]

    @property
    def by_metric(self) -> dict[tuple[CellId, str], Delta]:
        return {(delta.cell, delta.metric): delta for delta in self.deltas}


def _compare(matrix: Matrix, policy: Policy, statistics: StatisticsConfig, evidence: Evidence) -> _ComparedBuilds:
    samples = None if evidence.scores is None else grids(evidence.scores)
    policy = policy.settled({metric for row in matrix for metric in row.metrics})
    # Nothing is paired without samples, so the paired rules have nothing to go by.
    rules = policy if samples is not None else policy.by_points
    found = deltas(matrix, statistics, samples, evidence.seed)
    by_metric = {(delta.cell, delta.metric): delta for delta in found}
    drawn = (statistics, evidence.seed)
    outcomes, criteria = None, dict[CellId, BuildVerdict]()
    if samples is not None:
        criteria = criteria_of(matrix, rules, samples, evidence, statistics)
        outcomes = outcomes_of(matrix, rules, samples, by_metric, evidence, statistics)
        if rules.rules == "criteria":
            outcomes = as_members(outcomes, member_levels(criteria))
        found = with_intervals(found, (one.comparison for one in outcomes))
    against = against_builds(matrix, rules, samples, outcomes, evidence)
    return _ComparedBuilds(
        matrix=matrix,
        rules=rules,
        statistics=statistics,
        samples=samples,
        units={} if samples is None else units_of(samples),
        deltas=found,
        outcomes=outcomes,
        rows=tuple(
            _reviewed(row, evidence.configured)
            for row in decide_rows(
                matrix, rules, regime_draws(matrix, rules, samples, *drawn), outcomes, against, criteria
            )
        ),
        alerts=_alerts(matrix, rules, statistics, evidence),
        gains={} if samples is None else _gains(matrix, found, rules, samples, evidence),
        against=against,
        criteria=criteria,
    )


def _reviewed(row: DecidedRow, configured: Mapping[CellId, str]) -> DecidedRow:
    """What would pass and is not configured as its baseline is for a person to look at."""
    cell = row.signals.cell
    if cell not in configured or not row.action.is_pass:
        return row
    reason = f"not configured as its baseline: {configured[cell]}; else {row.action.action}"
    return replace(row, action=RowAction(cell, CONFIGURED, reason))


def _alerts(
    matrix: Matrix, rules: Policy, statistics: StatisticsConfig, evidence: Evidence
) -> tuple[FormatAlert, ...] | None:
    if evidence.answers is None:
        return None
    return alerts(evidence.answers, compared_with(matrix), rules.alpha, statistics, evidence.seed)


def _gains(
    matrix: Matrix, found: tuple[Delta, ...], rules: Policy, samples: Grids, evidence: Evidence
) -> dict[tuple[CellId, str], float]:
    """Of what may be an implausible gain, how likely it is by what A/A replicates gain; empty without them."""
    base = compared_with(matrix)
    risen = [d for d in found if d.delta is not None and d.delta > rules.inflated_gain_pp and d.metric in samples]
    tested = {
        (d.cell, d.metric): gains_over_floor(samples[d.metric], d.cell, base[d.cell], evidence.nulls)
        for d in risen
        if evidence.nulls
    }
    return {key: p for key, p in tested.items() if p is not None}


def _judge(
    compared: _ComparedBuilds, study: str, policy: Policy, constraints: Constraints, evidence: Evidence
) -> DecidedStudy:
    """What the builds say together: formats, floor, and the build to ship of each base model."""
    matrix, rules, rows = compared.matrix, compared.rules, compared.rows
    models = tuple(dict.fromkeys([*(row.base_model for row in matrix), *(cell.base_model for cell in evidence.failed)]))
    formats = formats_of(rows, models)
    found_tiers = tiers(matrix, compared.deltas, rules)
    return DecidedStudy(
        study=study,
        policy=policy.settled({metric for row in matrix for metric in row.metrics}),
        constraints=constraints,
        evidence=evidence,
        findings=Findings(
            rows=rows,
            deltas=compared.by_metric,
            screen=None if evidence.sign_reversal is None else sign_screen(evidence.sign_reversal),
            floor=conservative_floor(formats, rules),
            lineage=_doubts(evidence.lineage, compared.against),
            statistics=compared.statistics,
            units=compared.units,
            alerts=compared.alerts,
            gains=compared.gains,
            against=compared.against,
            outcomes=compared.outcomes or (),
            rooms={} if compared.samples is None else rooms_of(matrix, rules, compared.samples, evidence),
        ),
        tiers={tier.cell: tier for tier in found_tiers},
        roles=tuple(role_of(one, rules) for one in formats),
        choices=_choices(models, rows, found_tiers, constraints),
        fronts={model: pareto_front([row for row in matrix if row.base_model == model], rules) for model in models},
        noise=None
        if compared.samples is None
        else noise_floors(compared.samples, evidence.nulls, compared.statistics.confidence),
        recovery=()
        if compared.samples is None
        else recoveries(compared.samples, compared_with(matrix), evidence.nulls, compared.statistics.confidence),
    )


def _doubts(lineage: Mapping[CellId, str], against: Mapping[CellId, RunObjections]) -> dict[CellId, str]:
    """Cells whose origin or prompt is in doubt, and those that were asked other prompts than their baseline."""
    torn = {
        cell: f"{why.unpaired}: its deltas are over the prompts that both were asked" for cell, why in against.items()
        if why.unpaired is not None
    }  # fmt: skip
    cells = dict.fromkeys([*lineage, *torn])
    return {cell: "; ".join(found[cell] for found in (lineage, torn) if cell in found) for cell in cells}


def _decision(compared: _ComparedBuilds, judged: DecidedStudy) -> Decision:
    findings, rows = judged.findings, compared.rows
    protocol = Protocol(rows, judged.evidence.matrix_sha256, findings.screen, findings.floor)
    pairs = pairs_that_differ(compared.deltas)
    return Decision(
        deltas=deltas_table(compared.deltas),
        tiers=tiers_table(judged.tiers.values()),
        regimes=regimes_table(row.regime for row in rows),
        row_actions=row_actions_table(row.action for row in rows),
        quant_roles=roles_table(judged.roles),
        floor=floor_table(findings.floor),
        taxonomy=taxonomy_table(findings, compared.rules),
        checklist=checklist_table(checklist(protocol)),
        power=power_table(compared.matrix, compared.statistics, pairs, compared.units),
        paired=paired_table(compared.outcomes or ()),
        noise_floor=noise_table(judged.noise or ()),
        alerts=None if compared.alerts is None else alerts_table(compared.alerts),
        document=document(judged),
        criteria=criteria_table(compared.criteria) if compared.rules.rules == "criteria" else None,
        recovery=None if compared.samples is None else recovery_table(judged.recovery),
    )


def _choices(
    models: tuple[str, ...], rows: tuple[DecidedRow, ...], tier_of: tuple[TierOf, ...], constraints: Constraints
) -> tuple[ModelChoice, ...]:
    choices = []
    for model in models:
        mine = [(row, tier) for row, tier in zip(rows, tier_of, strict=True) if row.signals.cell.base_model == model]
        choices.append(best_build(model, [row for row, _ in mine], [tier for _, tier in mine], constraints))
    return tuple(choices)
