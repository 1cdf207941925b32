"""Every row of the matrix with what is decided about it: regime, outcomes, and the action by either rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantverdict.config import StatisticsConfig
from quantverdict.matrix.columns import baselines
from quantverdict.matrix.deltas import Delta
from quantverdict.matrix.detectable import Pairs
from quantverdict.matrix.grid import Grids
from quantverdict.matrix.paired import Rules, comparisons
from quantverdict.matrix.pairs import paired_draws
from quantverdict.matrix.signals import all_signals
from quantverdict.policy import Policy
from quantverdict.protocol.actions import decide_action
from quantverdict.protocol.formats import Decided
from quantverdict.protocol.outcomes import Judged, high_to_low, judge
from quantverdict.protocol.paired_actions import paired_action
from quantverdict.protocol.regimes import Draws, classify
from quantverdict.records import CellId, Matrix


def outcomes_of(
    matrix: Matrix,
    policy: Policy,
    samples: Grids,
    deltas: Mapping[tuple[CellId, str], Delta],
    nulls: Mapping[CellId, CellId],
    drawn: tuple[StatisticsConfig, int],
) -> tuple[Judged, ...]:
    """Every paired comparison of the study with its outcome, in the order of the matrix.

    Args:
        matrix: the builds; null arms are none of them.
        policy: margins and alpha.
        samples: one grid a metric.
        deltas: of the builds, with their intervals.
        nulls: null arms to their baselines.
        drawn: how intervals are made, and the seed.
    """
    statistics, seed = drawn
    base = {model: row.cell for model, row in baselines(matrix).items()}
    compared = {row.cell: base[row.base_model] for row in matrix if not row.is_baseline and row.base_model in base}
    found = comparisons(samples, compared, Rules(policy.gates, policy.alpha / 2, statistics, seed), deltas, nulls)
    return judge(found, policy, high_to_low({row.cell: row.bpw for row in matrix}), statistics.power)


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
    matrix: Matrix, policy: Policy, draws: Mapping[CellId, Draws], judged: Sequence[Judged] | None
) -> tuple[Decided, ...]:
    """The regime and the action of every row.

    Args:
        matrix: the cells.
        policy: whose `rules` decide.
        draws: resampled quality and refusal deltas of each build that has them.
        judged: paired outcomes; None without samples, where only the rules on deltas can be followed.
    """
    gated: dict[CellId, list[Judged]] = {}
    for one in judged or ():
        if one.outcome is not None:
            gated.setdefault(one.comparison.cell, []).append(one)
    rows = []
    for signals in all_signals(matrix, policy):
        regime = classify(signals, draws.get(signals.cell))
        point, paired = decide_action(signals, regime), None
        if judged is not None:
            mine = gated.get(signals.cell, [])
            siblings = (
                one for cell, many in gated.items() if cell.base_model == signals.cell.base_model for one in many
            )
            measured = dict.fromkeys(one.comparison.metric for one in siblings)
            paired = paired_action(signals, mine, measured)
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
