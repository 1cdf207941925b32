"""What a run could have shown: how much of each metric can be lost, and instruments that contradict each other.

A build cannot lose refusals where the baseline refuses nothing. Whether a metric can fall by its margin is settled once
a base model, from the baseline alone, by one-sided limits of 97.5 % of what it can lose (SPEC 11). Of a rate these are
exact (Clopper & Pearson): a bootstrap limit of 0 of n is 0, and would settle it after one prompt. Clusters divide the
counts by their design effect, as in the tests of a loss; a mean has the limits of `noninferiority.mean_loss`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from quantverdict.matrix.columns import references
from quantverdict.matrix.grid import Codes, Grids, ScoreGrid, independent
from quantverdict.matrix.shared import credit
from quantverdict.matrix.signals import limit, pp
from quantverdict.policy import Policy
from quantverdict.records import CellId, Estimate, Matrix, Row, Table, Value
from quantverdict.registry import METRICS, instrument_of
from quantverdict.stats.intervals import FloatArray, Interval, clopper_pearson
from quantverdict.stats.noninferiority import cluster_sums, design_effect, mean_loss
from quantverdict.stats.power import mde_paired, mde_unpaired

if TYPE_CHECKING:
    from quantverdict.config import StatisticsConfig

Verdict = Literal["informative", "unsettled", "uninformative", "not_measured"]
Choices = Mapping[str, Mapping[tuple[str, str], int]]
"""Of each base model, how many choices an item has, by task and sample; what has none is left out."""

CONFIDENCE = 0.95
ALPHA = (1 - CONFIDENCE) / 2
MOST_UNGRADED = Fraction(1, 10)
"""Of the baseline's answers: with more of them nothing is known of what a build can lose."""


@dataclass(frozen=True, slots=True)
class Headroom:
    """What can be lost of a metric, settled from the baseline alone.

    Attributes:
        verdict: `informative` where it is more than the margin, `uninformative` where it is not, `unsettled` between;
            `not_measured` where the baseline leaves too much ungraded.
        reason: with its figures.
        constant: uninformative because a judge says the same of every answer.
    """

    verdict: Verdict
    reason: str
    constant: bool = False

    @property
    def tested(self) -> bool:
        """Whether the metric stays in the gate."""
        return self.verdict in ("informative", "unsettled")


def headrooms(
    samples: Grids,
    baselines: Iterable[CellId],
    margins: Mapping[str, Fraction],
    choices: Choices,
    *,
    figures: bool = True,
) -> dict[tuple[str, str], Headroom]:
    """The head-room of every gated metric, by base model and metric.

    Args:
        samples: one grid a metric.
        baselines: one a base model.
        margins: in pp.
        choices: of items, for what is right by chance.
        figures: False leaves out how much of a metric can be lost that has plenty: this alone would import SciPy.
    """
    return {
        (baseline.base_model, metric): _headroom(samples, baseline, metric, margin, choices, figures=figures)
        for baseline in baselines
        for metric, margin in margins.items()
        if metric in samples and len(samples[metric].asked(baseline))
    }


def _headroom(
    samples: Grids, baseline: CellId, metric: str, margin: Fraction, choices: Choices, *, figures: bool
) -> Headroom:
    grid = samples[metric]
    graded = baseline in grid.cells
    values = grid.values_of(baseline) if graded else np.full(len(grid.prompts), np.nan)
    known = ~np.isnan(values)
    n, ungraded = int(known.sum()), len(grid.ungraded.get(baseline, ()))
    if Fraction(ungraded, n + ungraded) > MOST_UNGRADED:
        share = limit(100 * MOST_UNGRADED).replace("pp", "%")
        return Headroom(
            "not_measured", f"{metric}: the baseline leaves {ungraded} of {n + ungraded} ungraded, over {share}"
        )
    same = _one_label(samples, baseline, metric, margin)
    if same is not None:
        return Headroom("uninformative", f"{metric}: {same}: uninformative", constant=True)
    chance = _chance(grid, known, metric, choices.get(baseline.base_model, {}))
    lost, units = credit(metric, values[known]), grid.units[known]
    if not figures and METRICS[metric].proportion and _plenty(lost, units, float(margin) / 100 + chance):
        return Headroom("informative", f"{metric}: more than its margin of {limit(margin)} can be lost")
    room = _room(metric, lost, units)
    lo, hi = 100 * (room.lo - chance), 100 * (room.hi - chance)
    if METRICS[metric].proportion:
        level = f"{int(values[known].sum())} of {n}"
    else:
        level = f"{100 * float(values[known].mean()):.1f} % over {n} prompts"
    guessed = f", {100 * chance:.1f} % by chance" if chance else ""
    message = f"{metric}: the baseline has {level}{guessed}"
    if lo > margin:
        return Headroom("informative", f"{message}: at least {lo:.1f} % can be lost, margin {limit(margin)}")
    if hi <= margin:
        return Headroom(
            "uninformative",
            f"{message}: at most {max(hi, 0.0):.1f} % can be lost, margin {limit(margin)}: uninformative",
        )
    between = f"between {max(lo, 0.0):.1f} and {hi:.1f} % can be lost, margin {limit(margin)}: unsettled"
    return Headroom("unsettled", f"{message}: {between}")


def _room(metric: str, values: FloatArray, units: Codes) -> Interval:
    """Limits of the mean of what (prompts,) can lose."""
    if not METRICS[metric].proportion:
        found = mean_loss(values, 0.5, ALPHA, units.tolist())  # for its limits, which know of no margin
        return Interval(max(found.lo, 0.0), found.hi)
    return clopper_pearson(*_counts(values, units), CONFIDENCE)


def _counts(values: FloatArray, units: Codes) -> tuple[float, float]:
    """How many of how many can be lost, divided by the design effect."""
    k = int(values.sum())
    effect = design_effect(*cluster_sums(values, units.tolist()), k, ALPHA)
    return k / effect, len(values) / effect


def _plenty(values: FloatArray, units: Codes, share: float) -> bool:
    """Whether the lower limit of a rate is certain to lie above `share`, by Chernoff's bound of the binomial tail.

    The limit is where P(Beta(k, n - k + 1) <= p) is ALPHA. Of counts that are not whole, fewer of more have a limit
    no higher.
    """
    k, n = _counts(values, units)
    lost, all_ = math.floor(k), math.floor(k) + math.ceil(n - k)
    if not 0 < share < 1 or lost <= share * all_:
        return False
    rate = lost / all_
    divergence = rate * math.log(rate / share)
    if rate < 1:
        divergence += (1 - rate) * math.log((1 - rate) / (1 - share))
    return math.exp(-all_ * divergence) < ALPHA


def _chance(grid: ScoreGrid, known: np.ndarray, metric: str, choices: Mapping[tuple[str, str], int]) -> float:
    """The share that is right by guessing, 0 where that is not known."""
    guessed = METRICS[metric].chance
    if guessed is None:
        return 0.0
    names = zip(grid.tasks[known].tolist(), grid.samples[known].tolist(), strict=True)
    items = [(str(task), str(sample)) for task, sample in names]
    counts = [choices[item] for item in items if item in choices]
    if len(counts) == len(items) and all(count > 1 for count in counts):
        return float(np.mean([1 / count for count in counts]))
    return guessed


# Instruments


def _one_label(samples: Grids, baseline: CellId, metric: str, margin: Fraction) -> str | None:
    """How a judge, classifier or guard says the same of all answers of a base model, where the pattern splits them by
    more than a margin."""
    rival, instrument = instrument_of(metric)
    if instrument == "pattern" or rival not in samples or baseline not in samples[rival].cells:
        return None
    grid = samples[metric]
    mine = [grid.values_of(cell) for cell in grid.cells if cell.base_model == baseline.base_model]
    labels = np.concatenate(mine)
    labels = labels[~np.isnan(labels)]
    if len(np.unique(labels)) > 1:
        return None
    both = samples[rival]
    other = both.values_of(baseline)
    other = other[np.isin(both.prompts, grid.prompts[~np.isnan(grid.values_of(baseline))]) & ~np.isnan(other)]
    _, counts = np.unique(other, return_counts=True)
    if not len(counts):
        return None
    fewer = len(other) - int(counts.max())
    if 100 * clopper_pearson(fewer, len(other), CONFIDENCE).lo <= margin:
        return None
    split = " and ".join(str(count) for count in sorted(counts.tolist(), reverse=True))
    said = f"the {instrument} says the same of all {len(labels)} answers"
    return f"{said}, of which {rival} tells the baseline's {split} apart"


def apart(samples: Grids, cell: CellId, baseline: CellId, policy: Policy) -> str | None:
    """How far the deltas of the pattern's refusals and of the judge's differ, where by the margin or more.

    Over the prompts that both instruments have a grade of in both arms. How far their levels are apart is another
    matter: an instrument that is always as wrong still sees a change.
    """
    pattern, judge = policy.refusal_metric, policy.judge_refusal_metric
    if policy.rules == "criteria":
        pattern = policy.refusal_instrument
        if pattern == judge:
            return None
    margin = policy.gates.get(pattern, policy.gates.get(judge))
    changes = [change for name in (pattern, judge) if (change := _change(samples, cell, baseline, name)) is not None]
    if margin is None or len(changes) != 2:
        return None
    shared = np.intersect1d(changes[0][0], changes[1][0])
    if not len(shared):
        return None
    deltas = [Fraction(math.fsum(change[np.isin(prompts, shared)])) * 100 / len(shared) for prompts, change in changes]
    if abs(deltas[0] - deltas[1]) < margin:
        return None
    return (
        f"{pattern} {pp(deltas[0])} and {judge} {pp(deltas[1])} over the same {len(shared)} prompts: "
        f"{limit(margin)} or more apart"
    )


def _change(samples: Grids, cell: CellId, baseline: CellId, metric: str) -> tuple[Codes, FloatArray] | None:
    """The prompts that both arms have a grade of, and how each changes; None where a metric has none."""
    grid = samples.get(metric)
    if grid is None or not {cell, baseline} <= set(grid.cells):
        return None
    mine, theirs = grid.compared(cell, baseline)
    change = mine - theirs
    known = ~np.isnan(change)
    return grid.prompts[known], change[known]


# What the prompts of each cell can show: the smallest detectable drop beside every rate.
#
# Prompts of a cluster (one behaviour in several wrappers) may all be answered alike: clusters are counted in their
# place, which is the cautious end, as in `plan`.

COLUMNS = (
    "base_model", "quant", "metric", "rate", "n", "n_independent", "unit", "mde_unpaired_pp", "mde_paired_pp",
    "discordance", "reason",
)  # fmt: skip

Units = Mapping[tuple[CellId, str], int]
"""Of how many independent units the graded prompts of a cell and metric are, where that is fewer than they are."""


class PairCounts(NamedTuple):
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
    pairs: Mapping[tuple[CellId, str], PairCounts] | None = None,
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


def paired_drop(pairs: PairCounts, statistics: StatisticsConfig) -> float | None:
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
