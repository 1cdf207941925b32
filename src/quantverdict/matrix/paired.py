"""Each build against its baseline, prompt by prompt: `paired.csv` but for what a policy makes of it.

A rate has McNemar's exact test and Tango's interval; a continuous metric the same test of how many prompts fell and
rose (the sign test) and the paired bootstrap. Where prompts come in clusters, the interval and the tests against a
margin allow for it, while McNemar's p-values take prompts one by one. What only one arm has a grade for stands in no
delta, and counts in both tests (`matrix.ungraded`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from quantverdict.matrix.columns import METRICS, Metric
from quantverdict.matrix.deltas import Delta
from quantverdict.matrix.grid import Codes, Column, Grids, InterimAnalyses, ScoreGrid, intervals
from quantverdict.matrix.noise import Flips, flips_over_floor
from quantverdict.matrix.shared import BoolArray, LossBounds, asked_of_both, bounded_losses, credit
from quantverdict.records import CellId, Table, Value
from quantverdict.stats.intervals import FloatArray, Interval
from quantverdict.stats.noninferiority import cluster_sums, design_effect, mean_loss, rate_tests
from quantverdict.stats.paired import mcnemar_exact, mcnemar_midp, tango_interval
from quantverdict.stats.sequential import ConfidenceSequence

if TYPE_CHECKING:
    from quantverdict.collect.schedule import MonitoredMetric
    from quantverdict.config import StatisticsConfig

# Builds that were asked in rounds: what was asked of each, and what its losses say at any time of looking.
#
# A build that was stopped is compared with its baseline over the prompts that it was asked, in every table
# (`matrix.shared`).


@dataclass(frozen=True, slots=True)
class PromptedSet:
    """How the prompts of a base model were asked of one of its builds.

    Attributes:
        baseline: what it is compared with; that was asked everything.
        rounds: the round of every prompt, from 0, by task and sample.
        largest: prompts of the largest cluster of each task.
        stopped_after: prompts that it was asked, where it was stopped; None where it was asked everything.
    """

    baseline: CellId
    rounds: Mapping[tuple[str, str], int]
    largest: Mapping[str, int]
    stopped_after: int | None

    @property
    def whole_rounds(self) -> int:
        """Rounds that it was asked."""
        if self.stopped_after is None:
            return max(self.rounds.values(), default=-1) + 1
        left, number = self.stopped_after, 0
        counts = np.bincount(np.array(list(self.rounds.values()), dtype=np.int64))
        while number < len(counts) and left >= counts[number]:
            left -= int(counts[number])
            number += 1
        return number


def in_rounds(samples: Grids, asked: Mapping[CellId, PromptedSet]) -> Grids:
    """The grids, with the rounds in which each of these builds was asked their prompts."""
    if not asked:
        return samples
    return {name: replace(grid, looks=_looks(grid, asked)) for name, grid in samples.items()}


def _looks(grid: ScoreGrid, asked: Mapping[CellId, PromptedSet]) -> dict[CellId, InterimAnalyses]:
    names = [(str(task), str(sample)) for task, sample in zip(grid.tasks, grid.samples, strict=True)]
    found: dict[CellId, InterimAnalyses] = {}
    for cell, how in asked.items():
        if cell in grid.cells and how.baseline in grid.cells:
            numbers = np.array([how.rounds.get(name, -1) for name in names], dtype=np.int64)
            graded = grid.tasks[~np.isnan(grid.values_of(how.baseline))]
            largest = max((how.largest.get(task, 1) for task in dict.fromkeys(graded.tolist())), default=1)
            found[cell] = InterimAnalyses(numbers, how.whole_rounds, largest, how.stopped_after, len(how.rounds))
    return found


def bets_on(bounds: LossBounds) -> tuple[FloatArray, FloatArray]:
    """Losses for both sequences: a cosine may change by more than 1, and no bet is made on that."""
    return np.clip(bounds.accept, -1, 1), np.clip(bounds.reject, -1, 1)


def watched_over(
    looks: InterimAnalyses, bounds: LossBounds, units: Codes, margin: Fraction, alpha: float
) -> MonitoredMetric:
    """A metric's losses as they came, round by round.

    Args:
        looks: of the build.
        bounds: with no gain of what is ungraded taken against a loss.
        units: (prompts,), the cluster of each.
        margin: as a fraction of 1.
        alpha: two-sided, of the sequence's interval.
    """
    from quantverdict.collect.schedule import MonitoredMetric, add_round

    losses, rejecting = bets_on(bounds)
    other = None if np.array_equal(losses, rejecting, equal_nan=True) else ConfidenceSequence(alpha)
    watched = MonitoredMetric(ConfidenceSequence(alpha), float(margin), other)
    for number in range(looks.asked):
        here = (looks.rounds == number) & ~np.isnan(losses)
        names = [str(unit) for unit in units[here]]
        add_round(watched, losses[here].tolist(), names, looks.largest, rejecting[here].tolist())
    return watched


def sequence_interval(metric: Metric, watched: MonitoredMetric) -> Interval:
    """The interval of the delta, in pp, that holds whenever one stops."""
    loss = watched.sequence.update([])
    if watched.rejecting is not None:
        loss = Interval(watched.rejecting.update([]).lo, loss.hi)
    if metric.higher_is_better is False:
        return Interval(100 * loss.lo, 100 * loss.hi)
    return Interval(-100 * loss.hi, -100 * loss.lo)


@dataclass(frozen=True, slots=True)
class GateTests:
    """Two one-sided tests of a loss against the margin of its metric; all but the p-values are fractions of 1.

    Attributes:
        margin: the tolerated loss, exact, in pp.
        p_noninferior: of H0: loss >= margin.
        p_inferior: of H0: loss <= margin.
        loss: as the test that would accept takes it: as seen, where nothing is ungraded; a rise where less is better.
        variance: of the loss of one pair, so taken.
        design_effect: what clusters multiply that variance by.
        hidden: what of `loss` comes from answers without a grade alone.
    """

    margin: Fraction
    p_noninferior: float
    p_inferior: float
    loss: float
    variance: float
    design_effect: float
    hidden: float = 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric of one build on the prompts that both it and its baseline have a grade for.

    Attributes:
        n: those prompts.
        lost, gained: of them, with a lower and with a higher value than in the baseline.
        delta, lo, hi: mean difference from the baseline, and its interval, in pp; exact for a rate. Of a gated metric
            the interval reaches as far as what is ungraded may have lost.
        interval_kind: `tango`, `tango_clustered`, `paired_bootstrap` or `paired_cluster_bootstrap`; of a gated metric
            of a build that was stopped `confidence_sequence`, which holds whenever one stops.
        p_value, midp: McNemar's exact test and its mid-p form.
        clusters: independent units among the pairs, None where every prompt is one.
        ungraded: further prompts that both were asked and that one or both have no grade for.
        ungraded_a, ungraded_c: of them, answered well by the baseline and not graded in the build, and the reverse.
        missing, extra: prompts that only the baseline was asked, and that only the build was.
        worst, best: the delta over `n + ungraded` prompts, were those as bad and as good as can be.
        flips: beside those of A/A replicates; None without A/A replicates.
        gate: None where the metric has no margin.
        stopped_after: prompts of all tasks that the build was asked, where it was stopped; None where everything.
    """

    cell: CellId
    metric: str
    n: int
    lost: int
    gained: int
    delta: Fraction | float
    lo: float
    hi: float
    interval_kind: str
    p_value: float
    midp: float
    clusters: int | None
    ungraded: int
    worst: float
    best: float
    flips: Flips | None
    gate: GateTests | None
    stopped_after: int | None = None
    ungraded_a: int = 0
    ungraded_c: int = 0
    missing: int = 0
    extra: int = 0


@dataclass(frozen=True, slots=True)
class ComparisonRules:
    """What comparisons are made by.

    Attributes:
        margins: of the gated metrics, in pp.
        alpha: one-sided level of the tests against them, for what it takes to allow for few clusters.
        statistics: confidence of intervals, and resamples.
        seed: of the bootstrap.
    """

    margins: Mapping[str, Fraction]
    alpha: float
    statistics: StatisticsConfig
    seed: int


@dataclass(frozen=True, slots=True)
class Arms:
    """A build and its baseline over the prompts of a grid, NaN where there is no grade; `asked` of both."""

    grid: ScoreGrid
    cell: CellId
    baseline: CellId
    mine: FloatArray
    theirs: FloatArray
    asked: BoolArray

    @property
    def known(self) -> BoolArray:
        """Which prompts both have a grade for."""
        return ~(np.isnan(self.mine) | np.isnan(self.theirs))

    def bounds(self, metric: str, *, offset: bool = True) -> LossBounds:
        return bounded_losses(metric, self.mine, self.theirs, self.asked, offset=offset)


def comparisons(
    samples: Grids,
    baselines: Mapping[CellId, CellId],
    rules: ComparisonRules,
    deltas: Mapping[tuple[CellId, str], Delta],
    nulls: Mapping[CellId, CellId],
) -> tuple[Comparison, ...]:
    """Every share that a build and its baseline both have a graded prompt of, in the order of cells and of the schema.

    Args:
        samples: one grid a metric.
        baselines: each build to the baseline that it is compared with.
        rules: margins and levels.
        deltas: with their bootstrap intervals.
        nulls: A/A replicates to their baselines.
    """
    pairs = [(cell, metric) for cell in baselines for metric in METRICS if metric in samples]
    found = {key: arms for key in pairs if (arms := arms_of(samples[key[1]], key[0], baselines[key[0]])) is not None}
    shares = {key: arms for key, arms in found.items() if METRICS[key[1]].is_share}
    means = {key: arms for key, arms in shares.items() if not METRICS[key[1]].proportion}
    drawn = _mean_intervals(means, deltas, rules)
    compared = (_compare(METRICS[key[1]], arms, rules, drawn.get(key), nulls) for key, arms in shares.items())
    known = {key: delta.delta for key, delta in deltas.items() if delta.delta is not None}
    # The same mean, but as the decimal that `deltas.csv` has.
    return tuple(replace(one, delta=known.get((one.cell, one.metric), one.delta)) for one in compared)


def with_intervals(found: Iterable[Delta], compared: Iterable[Comparison]) -> tuple[Delta, ...]:
    """The deltas, each with the interval that stands beside it in `paired.csv`, where it has one."""
    beside = {(one.cell, one.metric): one for one in compared}
    return tuple(
        delta
        if (one := beside.get((delta.cell, delta.metric))) is None
        else replace(delta, lo=one.lo, hi=one.hi, interval_kind=one.interval_kind)
        for delta in found
    )


def arms_of(grid: ScoreGrid, cell: CellId, baseline: CellId) -> Arms | None:
    if cell not in grid.cells or baseline not in grid.cells:
        return None
    mine, theirs = grid.compared(cell, baseline)
    asked = np.isin(grid.prompts, np.intersect1d(grid.asked(cell), grid.asked(baseline), assume_unique=True))
    arms = Arms(grid, cell, baseline, mine, theirs, asked & grid.reached(cell))
    return arms if arms.known.any() else None


def _mean_intervals(
    means: Mapping[tuple[CellId, str], Arms], deltas: Mapping[tuple[CellId, str], Delta], rules: ComparisonRules
) -> dict[tuple[CellId, str], Interval]:
    """Bootstrap intervals in pp: those of the deltas, and of what has none there."""
    found: dict[tuple[CellId, str], Interval] = {}
    others: dict[tuple[CellId, str], Column] = {}
    for key, arms in means.items():
        delta = deltas.get(key)
        if delta is not None and delta.lo is not None and delta.hi is not None:
            found[key] = Interval(delta.lo, delta.hi)
        else:
            others[key] = Column(arms.mine - arms.theirs, arms.grid.units, arms.grid.clustered)
    drawn = intervals(others, rules.statistics, rules.seed)
    return found | {key: Interval(100 * one.lo, 100 * one.hi) for key, one in drawn.items()}


def _compare(
    metric: Metric, arms: Arms, rules: ComparisonRules, drawn: Interval | None, nulls: Mapping[CellId, CellId]
) -> Comparison:
    change, units = (arms.mine - arms.theirs)[arms.known], arms.grid.units[arms.known]
    n, lost, gained = len(change), int((change < 0).sum()), int((change > 0).sum())
    clusters = len(np.unique(units)) if arms.grid.clustered else n
    clustered = clusters < n
    ungraded, worst, best = _extremes(metric, arms, float(change.sum()), n)
    looks, watched = arms.grid.looks.get(arms.cell), _watched(metric, arms, rules)
    if drawn is None:
        drawn = _tango(change, units, rules)
        kind = "tango_clustered" if clustered else "tango"
    else:
        kind = "paired_cluster_bootstrap" if clustered else "paired_bootstrap"
    stopped_after = None if looks is None else looks.stopped_after
    bounds, gate = arms.bounds(metric.name), None
    if metric.name in rules.margins:
        gate, most = _gate(metric, arms, bounds, rules)
        drawn = _reaching(metric, drawn, most)
    if watched is not None and stopped_after is not None:
        drawn, kind = sequence_interval(metric, watched), "confidence_sequence"
    if gate is not None and watched is not None:
        gate = _at_any_time(gate, watched, stopped=stopped_after is not None)
    asked, theirs = asked_of_both(arms.grid, arms.cell, arms.baseline)
    return Comparison(
        cell=arms.cell,
        metric=metric.name,
        n=n,
        lost=lost,
        gained=gained,
        delta=Fraction(100 * (gained - lost), n) if metric.proportion else 100 * float(change.mean()),
        lo=drawn.lo,
        hi=drawn.hi,
        interval_kind=kind,
        p_value=mcnemar_exact(lost, gained),
        midp=mcnemar_midp(lost, gained),
        clusters=clusters if clustered else None,
        ungraded=ungraded,
        worst=worst,
        best=best,
        flips=flips_over_floor(arms.grid, arms.cell, arms.baseline, nulls),
        gate=gate,
        stopped_after=stopped_after,
        ungraded_a=bounds.a,
        ungraded_c=bounds.c,
        missing=len(np.setdiff1d(theirs, asked)),
        extra=len(np.setdiff1d(asked, theirs)),
    )


def _reaching(metric: Metric, drawn: Interval, most: float | None) -> Interval:
    """An interval of a delta that reaches as far as a loss of `most` does."""
    if most is None:
        return drawn
    if metric.higher_is_better is False:
        return Interval(drawn.lo, max(drawn.hi, most))
    return Interval(min(drawn.lo, -most), drawn.hi)


def _tango(change: FloatArray, units: Codes, rules: ComparisonRules) -> Interval:
    """Tango's interval of changes of -1, 0 and 1, in pp; of counts over the design effect where they are clustered."""
    lost, gained = int((change < 0).sum()), int((change > 0).sum())
    effect = design_effect(*cluster_sums(change, units.tolist()), lost + gained, rules.alpha)
    share = tango_interval(gained / effect, lost / effect, len(change) / effect, rules.statistics.confidence)
    return Interval(100 * share.lo, 100 * share.hi)


def _watched(metric: Metric, arms: Arms, rules: ComparisonRules) -> MonitoredMetric | None:
    """The losses of a gated metric as they came, where the build was asked in rounds."""
    margin, looks = rules.margins.get(metric.name), arms.grid.looks.get(arms.cell)
    if margin is None or looks is None:
        return None
    bounds = arms.bounds(metric.name, offset=False)
    return watched_over(looks, bounds, arms.grid.units, margin / 100, 1 - rules.statistics.confidence)


def _at_any_time(gate: GateTests, watched: MonitoredMetric, *, stopped: bool) -> GateTests:
    """The tests of a build that might have been stopped after any round."""
    from quantverdict.collect.schedule import full_p_values, stopped_p_values

    full = (gate.p_noninferior, gate.p_inferior)
    below, above = stopped_p_values(watched) if stopped else full_p_values(watched, full)
    return replace(gate, p_noninferior=below, p_inferior=above)


def _gate(metric: Metric, arms: Arms, bounds: LossBounds, rules: ComparisonRules) -> tuple[GateTests, float | None]:
    """Both tests of a loss, which is a fall where more is better, and a rise where less is.

    Args:
        metric: decides which.
        arms: build and baseline.
        bounds: their losses, with what is ungraded.
        rules: margins and level.

    Returns:
        The tests; and the upper limit of the loss in pp, were what is ungraded lost, where only one arm has a grade for
        some prompt.
    """
    gate, limit = _tests(metric, bounds.accept, arms, rules)
    both = ~np.isnan(bounds.accept)
    if np.array_equal(both, arms.known):
        return gate, None
    other, _ = _tests(metric, bounds.reject, arms, rules)
    hidden = gate.loss - float(bounds.reject[both].mean())
    return replace(gate, p_inferior=other.p_inferior, hidden=hidden), 100 * limit


def _tests(metric: Metric, losses: FloatArray, arms: Arms, rules: ComparisonRules) -> tuple[GateTests, float]:
    """Both tests of (prompts,) losses, NaN where there is none, against the margin; and their upper limit."""
    here = ~np.isnan(losses)
    values, units = losses[here], arms.grid.units[here]
    margin, labels = rules.margins[metric.name], units.tolist()
    if metric.proportion:
        lost, gained, n = int((values > 0).sum()), int((values < 0).sum()), len(values)
        sums, sizes = cluster_sums(values, labels)
        effect = design_effect(sums, sizes, lost + gained, rules.alpha)
        below, above = rate_tests((lost, gained, n), len(sizes), effect, margin / 100)
        limit = tango_interval(lost / effect, gained / effect, n / effect, 1 - 2 * rules.alpha).hi
    else:
        room = credit(metric.name, arms.theirs[here])
        largest = collapse(room[~np.isnan(room)], float(margin / 100))
        found = mean_loss(values, margin / 100, rules.alpha, labels, largest)
        below, above, effect, limit = found.p_noninferior, found.p_inferior, found.design_effect, found.hi
    return GateTests(margin, below, above, float(values.mean()), float(values.var()), effect), limit


def collapse(room: FloatArray, margin: float) -> float:
    """What one prompt loses where as few collapse as a loss of `margin` takes: the mean of those with most to lose.

    Not the mean of all: prompts that collapse need not be like the rest, and the chance to have met none of them would
    be understated. A change of a cosine may be beyond what was there, so it is no less than twice the margin.

    Args:
        room: (pairs,), what each can lose.
        margin: as a fraction of 1.
    """
    most = np.sort(np.clip(room, 0.0, 1.0))[::-1]
    few = int(np.searchsorted(np.cumsum(most), margin * len(most))) + 1
    return max(float(most[:few].mean()), 2 * margin)


def _extremes(metric: Metric, arms: Arms, total: float, n: int) -> tuple[int, float, float]:
    """Prompts that an arm was asked and has no grade for, and the delta in pp at the worst and best they can be."""
    least = most = 0.0
    count = 0
    for low, high in _unknown(arms):
        count, least, most = count + 1, least + low, most + high
    ends = (100 * (total + least) / (n + count), 100 * (total + most) / (n + count))
    worst, best = ends[::-1] if metric.higher_is_better is False else ends
    return count, worst, best


def _unknown(arms: Arms) -> Iterator[tuple[float, float]]:
    """The least and the most that each ungraded pair can differ by, for values from 0 to 1."""
    grid = arms.grid
    place = {int(prompt): at for at, prompt in enumerate(grid.prompts)}
    mine, theirs = (set(grid.ungraded.get(cell, np.empty(0)).tolist()) for cell in (arms.cell, arms.baseline))
    for _ in mine & theirs:
        yield -1.0, 1.0
    for prompt in mine - theirs:
        if prompt in place and not np.isnan(before := arms.theirs[place[prompt]]):
            yield -float(before), 1 - float(before)
    for prompt in theirs - mine:
        if prompt in place and not np.isnan(after := arms.mine[place[prompt]]):
            yield float(after) - 1, float(after)


# Format against engine: `engines.csv`.
#
# A build that runs on another engine than its baseline differs from it by the format and by the engine. Where the study
# runs the baseline's format on that engine too, the two are told apart: engine effect = that run less the baseline (the
# same weights, two engines), format effect = the build less that run (one engine, two formats). An engine with settings
# of a build's own, such as the types of its cache, is another engine; where the study runs the same file without them,
# cache effect = the build less that run.

ENGINE, FORMAT, CACHE = "engine", "format", "cache"
COLUMNS = (
    "base_model", "quant", "engine", "effect", "against", "metric", "n_pairs", "lost", "gained", "delta_pp", "ci_lo_pp",
    "ci_hi_pp", "interval_kind", "p_value",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EngineMismatch:
    """A cell that runs on another engine than its baseline.

    Attributes:
        engine: what runs it.
        baseline: what it is compared with.
        anchor: the baseline's format on the same engine; the cell itself where it is that, None where there is none.
        same_weights: the same file without settings of its own, None where there is none.
    """

    cell: CellId
    engine: str
    baseline: CellId
    anchor: CellId | None
    same_weights: CellId | None = None

    @property
    def effect(self) -> str:
        return CACHE if self.same_weights else ENGINE if self.anchor == self.cell else FORMAT

    @property
    def against(self) -> CellId | None:
        return self.same_weights or (self.baseline if self.anchor == self.cell else self.anchor)


def engines_table(
    samples: Grids | None, elsewhere: Mapping[CellId, EngineMismatch], statistics: StatisticsConfig, seed: int
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
    found = comparisons(samples, arms, ComparisonRules({}, 0.05, statistics, seed), {}, {})
    return Table("engines", COLUMNS, tuple(_row(one, elsewhere[one.cell]) for one in found))


def mixed_up(elsewhere: Mapping[CellId, EngineMismatch]) -> dict[CellId, str]:
    """Cells whose delta is format and engine in one, and the engine."""
    return {cell: case.engine for cell, case in elsewhere.items() if case.against is None}


def _row(found: Comparison, case: EngineMismatch) -> tuple[Value, ...]:
    against = case.against
    return (
        *found.cell, case.engine, case.effect, None if against is None else against.quant, found.metric, found.n,
        found.lost, found.gained, found.delta, found.lo, found.hi, found.interval_kind, found.p_value,
    )  # fmt: skip
