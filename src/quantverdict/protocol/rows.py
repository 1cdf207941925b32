"""Every row of the matrix with what is decided about it: regime, outcomes, and the action by either rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from quantverdict.config import StatisticsConfig
from quantverdict.matrix.columns import baselines
from quantverdict.matrix.deltas import Delta
from quantverdict.matrix.detectable import Pairs
from quantverdict.matrix.grid import Grids
from quantverdict.matrix.headroom import Headroom, apart, headrooms
from quantverdict.matrix.paired import Rules, comparisons
from quantverdict.matrix.pairs import paired_draws
from quantverdict.matrix.shared import unpaired
from quantverdict.matrix.signals import POLICY_METRICS, Signals, all_signals
from quantverdict.policy import Policy
from quantverdict.protocol.actions import decide_action
from quantverdict.protocol.evidence import Evidence
from quantverdict.protocol.formats import Decided
from quantverdict.protocol.outcomes import Judged, high_to_low, judge
from quantverdict.protocol.paired_actions import Against, paired_action
from quantverdict.protocol.regimes import Draws, classify
from quantverdict.records import CellId, Matrix


def outcomes_of(
    matrix: Matrix,
    policy: Policy,
    samples: Grids,
    deltas: Mapping[tuple[CellId, str], Delta],
    evidence: Evidence,
    statistics: StatisticsConfig,
) -> tuple[Judged, ...]:
    """Every paired comparison of the study with its outcome, in the order of the matrix.

    Args:
        matrix: the builds; null arms are none of them.
        policy: margins and alpha.
        samples: one grid a metric.
        deltas: of the builds, with their intervals.
        evidence: null arms, the choices of items, and the seed.
        statistics: how intervals are made.
    """
    compared = compared_with(matrix)
    rules = Rules(policy.gates, policy.alpha / 2, statistics, evidence.seed)
    found = comparisons(samples, compared, rules, deltas, evidence.nulls)
    rooms = rooms_of(matrix, policy, samples, evidence)
    return judge(found, policy, high_to_low({row.cell: row.bpw for row in matrix}), statistics.power, rooms)


def rooms_of(matrix: Matrix, policy: Policy, samples: Grids, evidence: Evidence) -> dict[tuple[str, str], Headroom]:
    """The head-room of what either kind of rules rests on: what has no margin is held to the thresholds on deltas."""
    drifting = (policy.refusal_metric, policy.judge_refusal_metric, policy.truthfulness_metric, policy.bias_metric)
    points = {**dict.fromkeys(drifting, policy.floor_drift_pp), policy.quality_metric: -policy.floor_quality_pp}
    return headrooms(
        samples, dict.fromkeys(compared_with(matrix).values()), {**points, **policy.gates}, evidence.choices
    )


def compared_with(matrix: Matrix) -> dict[CellId, CellId]:
    """Each build and its baseline."""
    base = {model: row.cell for model, row in baselines(matrix).items()}
    return {row.cell: base[row.base_model] for row in matrix if not row.is_baseline and row.base_model in base}


def against_builds(
    matrix: Matrix, policy: Policy, samples: Grids | None, judged: Sequence[Judged] | None, evidence: Evidence
) -> dict[CellId, Against]:
    """What of the run itself keeps each build from passing; a build of a bare matrix has nothing against it."""
    if samples is None:
        return {}
    signals = {one.cell: one for one in all_signals(matrix, policy)}
    rooms = rooms_of(matrix, policy, samples, evidence)
    outcomes: dict[CellId, dict[str, Judged]] = {}
    for one in judged or ():
        outcomes.setdefault(one.comparison.cell, {})[one.comparison.metric] = one
    found = {}
    for cell, baseline in compared_with(matrix).items():
        rests_on = dict.fromkeys([*policy.gates, *(getattr(policy, field) for field in POLICY_METRICS)])
        torn = unpaired(samples, cell, baseline, rests_on)
        told = None if torn is None else str(torn)
        gaps = [*([] if told is None else [told]), *_gaps(signals[cell], outcomes.get(cell, {}), rooms)]
        found[cell] = Against(told, apart(samples, cell, baseline, policy), tuple(gaps))
    return found


def _gaps(signals: Signals, outcomes: Mapping[str, Judged], rooms: Mapping[tuple[str, str], Headroom]) -> Iterator[str]:
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
    judged: Sequence[Judged] | None,
    against: Mapping[CellId, Against] | None = None,
) -> tuple[Decided, ...]:
    """The regime and the action of every row.

    Args:
        matrix: the cells.
        policy: whose `rules` decide.
        draws: resampled quality and refusal deltas of each build that has them.
        judged: paired outcomes; None without samples, where only the rules on deltas can be followed.
        against: what of the run itself keeps a build from passing.
    """
    gated: dict[CellId, list[Judged]] = {}
    for one in judged or ():
        if one.outcome is not None:
            gated.setdefault(one.comparison.cell, []).append(one)
    rows = []
    for plain in all_signals(matrix, policy):
        why = (against or {}).get(plain.cell, Against())
        signals = replace(plain, gaps=why.gaps)
        regime = classify(signals, draws.get(signals.cell))
        point, paired = decide_action(signals, regime), None
        if judged is not None:
            mine = gated.get(signals.cell, [])
            siblings = (
                one for cell, many in gated.items() if cell.base_model == signals.cell.base_model for one in many
            )
            measured = dict.fromkeys(one.comparison.metric for one in siblings)
            paired = paired_action(signals, mine, measured, why)
        action = paired if paired is not None and policy.rules == "paired" else point
        rows.append(Decided(signals, regime, action, point, paired, tuple(gated.get(signals.cell, ()))))
    return tuple(rows)


def pairs_that_differ(found: Sequence[Delta]) -> dict[tuple[CellId, str], Pairs]:
    """The pairs of every build and metric that is paired."""
    return {
        (d.cell, d.metric): Pairs(d.differing, d.n, d.units)
        for d in found
        if d.differing is not None and d.n and d.units
    }
