"""The chance of each outcome of every gated metric before a study is run, and the prompts that would decide it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from quantverdict.errors import count_of
from quantverdict.matrix.columns import METRICS
from quantverdict.matrix.grid import Grids, ScoreGrid
from quantverdict.records import CellId
from quantverdict.stats.noninferiority import cluster_sums, design_effect, mean_loss
from quantverdict.stats.power import (
    OutcomeProbabilities,
    mean_outcome_probabilities,
    n_mean,
    n_resolved,
    outcome_probabilities,
)
from quantverdict.tasks.catalog import Task

ASSUMED_DISCORDANCE = 0.1
ASSUMED_RATE = 0.5
"""Without an earlier run: one pair in ten differs, and rates are where their spread is largest."""

TIMES_MARGIN = (0, 2)
"""The true losses that chances are given for."""


@dataclass(frozen=True, slots=True)
class PilotStats:
    """What an earlier run says of a metric: means over its builds.

    Attributes:
        rate: of the baseline.
        discordance: share of pairs that differ.
        variance: of the difference of one pair.
        design_effect: what clusters multiply that variance by.
        loss: mean of what a pair loses; negative where it gains.
    """

    rate: float
    discordance: float
    variance: float
    design_effect: float
    loss: float = 0.0


@dataclass(frozen=True, slots=True)
class DecisionRules:
    """What outcomes are decided by.

    Attributes:
        margins: the tolerated loss of every gated metric, as a fraction of 1.
        means: those of them that are means and no shares of prompts.
        builds: that are compared with a baseline.
        required: metrics without which no build is accepted.
        alpha: of the study's one-sided tests of one kind, all together.
        power: wanted.
    """

    margins: Mapping[str, float]
    means: Collection[str]
    builds: int
    required: Sequence[str]
    alpha: float
    power: float


@dataclass(frozen=True, slots=True)
class MetricPower:
    """One gated metric of a build with one true loss.

    Attributes:
        n: prompts.
        counted: independent pairs that they count for: clusters, or n over the design effect seen.
        discordance: share of pairs that differ besides those of the loss; of a mean, the variance of a pair.
        chances: of each outcome.
        n_needed: prompts at which the right outcome has the study's power; None where no number would do.
    """

    metric: str
    n: int
    counted: int
    margin_pp: float
    true_loss_pp: float
    discordance: float
    chances: OutcomeProbabilities
    n_needed: int | None


@dataclass(frozen=True, slots=True)
class BuildPower:
    """The chances of one build of a study.

    Attributes:
        level: one-sided, of each test.
        basis: where that level and the differing pairs are from.
        metrics: each gated metric for every true loss.
        missing: metrics without which no build is accepted and that no task of the study measures.
    """

    level: float
    power: float
    basis: tuple[str, ...]
    metrics: tuple[MetricPower, ...]
    missing: tuple[str, ...]

    def lines(self) -> list[str]:
        head = f"chance of each outcome of a build, every test at {self.level:.2g}"
        columns = f"{'metric':26}{'n':>6}{'counted':>9}{'margin':>9}{'true loss':>11}"
        columns += f"{'non_inferior':>14}{'inferior':>10}{'not_resolvable':>16}{f'n for {self.power:.0%}':>13}"
        basis = [f"({part})" for part in self.basis]
        missing = f"no build can be accepted: no task here measures {', '.join(self.missing)}"
        return [
            head,
            *basis,
            columns,
            *(_row(metric_power) for metric_power in self.metrics),
            *([missing] if self.missing else []),
        ]


def build_power(tasks: Sequence[Task], gating: DecisionRules, observed: Mapping[str, PilotStats]) -> BuildPower:
    """The chances at the planned prompts of a build with no true loss, and of one that loses twice the margin.

    Every test has the level of the first step of Holm's procedure, which is the hardest: further ones have more.

    Args:
        observed: by metric, of an earlier run; empty to assume them.
    """
    asked = _asked(tasks)
    measured = [metric for metric in gating.margins if metric in asked]
    level = gating.alpha / max(1, len(measured) * gating.builds)
    found: list[MetricPower] = []
    for metric in measured:
        seen = observed.get(metric)
        n, clusters = asked[metric]
        counted = clusters if seen is None else max(1, math.floor(n / seen.design_effect))
        for times in TIMES_MARGIN:
            pairs = _Pairs(metric, n, counted, min(1.0, times * gating.margins[metric]))
            found.append(_metric_power(pairs, gating, seen, level))
    basis = []
    if any(metric in observed for metric in measured):
        basis.append("differing pairs and clusters as in the earlier run")
    if any(metric not in observed for metric in measured):
        where = " where that has none" if basis else ""
        basis.append(
            f"assuming{where} that {ASSUMED_DISCORDANCE:.0%} of pairs differ anyway, that means spread as much, and "
            "that a cluster answers as one"
        )
    tests = f"{len(measured)} metrics x {count_of(gating.builds, 'build')}"
    family = f"the first step of Holm over {tests}; later steps are easier"
    missing = tuple(metric for metric in gating.required if metric not in asked)
    return BuildPower(level, gating.power, (family, *basis), tuple(found), missing)


@dataclass(frozen=True, slots=True)
class PlannedCriterion:
    """A criterion, or a member of a pool, before a study is run.

    Attributes:
        name: `safety`, or `safety/truthfulness`.
        metrics: that the study measures.
        accept, reject: its margins, as fractions of 1.
        weight: of its rejection.
    """

    name: str
    metrics: tuple[str, ...]
    accept: float
    reject: float
    weight: float

    @property
    def is_member(self) -> bool:
        """Of a pool."""
        return "/" in self.name


def criteria_prospects(
    tasks: Sequence[Task], rows: Sequence[PlannedCriterion], gating: DecisionRules, observed: Mapping[str, PilotStats]
) -> BuildPower:
    """The chances by criteria: of a build with no true loss to pass each, and of one that loses twice its margin.

    Args:
        rows: every criterion and member that is measured.
        gating: its `alpha` is what a look has of a family.
        observed: by metric, of an earlier run; empty to assume them.
    """
    asked, level = _asked(tasks), gating.alpha / max(1, gating.builds)
    found: list[MetricPower] = []
    for row in rows:
        seen = pooled([(asked[metric], observed.get(metric)) for metric in row.metrics])
        mean = any(metric in gating.means for metric in row.metrics)
        for times in TIMES_MARGIN:
            margin, at = (row.reject, level * row.weight) if times else (row.accept, level)
            loss = min(1.0, times * margin)
            rules = DecisionRules({row.name: margin}, (row.name,) if mean else (), 1, (), at, gating.power)
            found.append(_metric_power(_Pairs(row.name, seen.n, seen.counted, loss), rules, seen.observed, at))
    basis = [
        f"the first step of Holm over {count_of(gating.builds, 'build')}; later steps are easier",
        "first look at the prompts",
    ]
    if not observed:
        basis.append(f"assuming that {ASSUMED_DISCORDANCE:.0%} of pairs differ anyway, and a cluster answers as one")
    return BuildPower(level, gating.power, tuple(basis), tuple(found), ())


@dataclass(frozen=True, slots=True)
class Pool:
    """Prompts of some metrics, what they count for, and what an earlier run saw of them together."""

    n: int
    counted: int
    observed: PilotStats | None


def pooled(parts: Sequence[tuple[tuple[int, int], PilotStats | None]]) -> Pool:
    """Weighed by prompts; what only some of them were seen of is assumed of all."""
    n = sum(prompts for (prompts, _), _ in parts)
    seen = [(prompts, one) for (prompts, _), one in parts if one is not None]
    if len(seen) < len(parts):
        return Pool(n, sum(clusters for (_, clusters), _ in parts), None)

    def mean(value: Callable[[PilotStats], float]) -> float:
        return sum(prompts * value(one) for prompts, one in seen) / n

    observed = PilotStats(
        mean(lambda one: one.rate), mean(lambda one: one.discordance), mean(lambda one: one.variance),
        mean(lambda one: one.design_effect), mean(lambda one: one.loss),
    )  # fmt: skip
    return Pool(n, max(1, math.floor(n / observed.design_effect)), observed)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Pairs of one metric: prompts, those they count for, and the true loss."""

    metric: str
    n: int
    counted: int
    loss: float


def _metric_power(pairs: _Pairs, gating: DecisionRules, seen: PilotStats | None, level: float) -> MetricPower:
    margin, loss = gating.margins[pairs.metric], pairs.loss
    if pairs.metric in gating.means:
        spread = ASSUMED_DISCORDANCE if seen is None else seen.variance
        chances, needed = _of_mean(pairs, spread, margin, level, gating.power)
    else:
        spread = ASSUMED_DISCORDANCE if seen is None else seen.discordance
        share = min(1.0, spread + loss)
        chances = outcome_probabilities(pairs.counted, share, loss, margin, level)
        needed = n_resolved(share, loss, margin, gating.power, level)
    return MetricPower(
        metric=pairs.metric,
        n=pairs.n,
        counted=pairs.counted,
        margin_pp=100 * margin,
        true_loss_pp=100 * loss,
        discordance=spread,
        chances=chances,
        n_needed=None if needed is None else math.ceil(needed * pairs.n / pairs.counted),
    )


def _of_mean(
    pairs: _Pairs, variance: float, margin: float, level: float, power: float
) -> tuple[OutcomeProbabilities, int | None]:
    # Pairs that never differ are decided by how rare a whole loss can be, as are those that hardly do.
    sd = math.sqrt(max(variance, 1e-6))
    return (
        mean_outcome_probabilities(pairs.counted, sd, pairs.loss, margin, level),
        n_mean(sd, pairs.loss, margin, power, level),
    )


def _asked(tasks: Sequence[Task]) -> dict[str, tuple[int, int]]:
    """Prompts of every metric, and the clusters that they make."""
    n: dict[str, int] = {}
    units: dict[str, set[tuple[str, bool, str]]] = {}
    for task in tasks:
        for metric in task.metrics:
            n[metric] = n.get(metric, 0) + len(task.items)
            units.setdefault(metric, set()).update(units_of(task))
    return {metric: (n[metric], len(units[metric])) for metric in n}


def units_of(task: Task) -> set[tuple[str, bool, str]]:
    """What answers as one: each cluster, and each item that is in none."""
    clusters = ((item, task.cluster(item)) for item in task.items)
    return {(task.name, cluster is None, item.id if cluster is None else cluster) for item, cluster in clusters}


def _row(one: MetricPower) -> str:
    outcomes = one.chances
    pairs = f"{one.metric:26}{one.n:>6}{one.counted:>9}{f'{one.margin_pp:g} pp':>9}{f'{one.true_loss_pp:g} pp':>11}"
    chances = f"{outcomes.non_inferior:>14.0%}{outcomes.inferior:>10.0%}{outcomes.not_resolvable:>16.0%}"
    return pairs + chances + f"{'none' if one.n_needed is None else one.n_needed:>13}"


# What the pairs of a run say of each share, for the plan of the next.

_ANY_MARGIN = 0.05
"""The design effect of a mean does not depend on it."""


def observed_pairs(
    samples: Grids, baselines: Mapping[CellId, CellId], alpha: float
) -> dict[CellId, dict[str, PilotStats]]:
    """What a run saw of each of its builds, by metric; a metric that build and baseline do not both have is left out.

    Args:
        samples: one grid a metric.
        baselines: each build to the baseline that it is compared with.
        alpha: one-sided level of the tests, for what it takes to allow for few clusters.
    """
    found: dict[CellId, dict[str, PilotStats]] = {}
    for name, grid in samples.items():
        for cell, baseline in baselines.items():
            if METRICS[name].is_share and {cell, baseline} <= set(grid.cells):
                seen = _seen(name, grid, (cell, baseline), alpha)
                if seen is not None:
                    found.setdefault(cell, {})[name] = seen
    return found


def mean_pairs(builds: Mapping[CellId, Mapping[str, PilotStats]]) -> dict[str, PilotStats]:
    """Means over the builds of a run, by metric."""
    by_metric: dict[str, list[PilotStats]] = {}
    for seen in builds.values():
        for metric, one in seen.items():
            by_metric.setdefault(metric, []).append(one)
    return {
        metric: PilotStats(*(float(np.mean(values)) for values in zip(*map(astuple, of), strict=True)))
        for metric, of in by_metric.items()
    }


def _seen(name: str, grid: ScoreGrid, pair: tuple[CellId, CellId], alpha: float) -> PilotStats | None:
    mine, theirs = (grid.values[:, grid.cells.index(one)] for one in pair)
    known = ~np.isnan(mine - theirs)
    if not known.any():
        return None
    change, units = (mine - theirs)[known], grid.units[known].tolist()
    differing = int(np.count_nonzero(change))
    if METRICS[name].proportion:
        effect = design_effect(*cluster_sums(change, units), differing, alpha)
    else:
        effect = mean_loss(change, _ANY_MARGIN, alpha, units).design_effect
    loss = float(change.mean()) * (1 if METRICS[name].higher_is_better is False else -1)
    return PilotStats(float(theirs[known].mean()), differing / change.size, float(change.var()), effect, loss)
