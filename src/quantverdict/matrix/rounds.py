"""Builds that were asked in rounds: what was asked of each, and what its losses say at any time of looking.

A build that was stopped is compared with its baseline over the prompts that it was asked, in every table
(`matrix.shared`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from quantverdict.collect.rounds import Watched, add_round
from quantverdict.matrix.columns import Metric
from quantverdict.matrix.grid import Codes, Grid, Grids, Looks
from quantverdict.matrix.ungraded import Bounds
from quantverdict.records import CellId
from quantverdict.stats.intervals import FloatArray, Interval
from quantverdict.stats.sequential import ConfidenceSequence


@dataclass(frozen=True, slots=True)
class Asked:
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


def in_rounds(samples: Grids, asked: Mapping[CellId, Asked]) -> Grids:
    """The grids, with the rounds in which each of these builds was asked their prompts."""
    if not asked:
        return samples
    return {name: replace(grid, looks=_looks(grid, asked)) for name, grid in samples.items()}


def _looks(grid: Grid, asked: Mapping[CellId, Asked]) -> dict[CellId, Looks]:
    names = [(str(task), str(sample)) for task, sample in zip(grid.tasks, grid.samples, strict=True)]
    found: dict[CellId, Looks] = {}
    for cell, how in asked.items():
        if cell in grid.cells and how.baseline in grid.cells:
            numbers = np.array([how.rounds.get(name, -1) for name in names], dtype=np.int64)
            graded = grid.tasks[~np.isnan(grid.values_of(how.baseline))]
            largest = max((how.largest.get(task, 1) for task in dict.fromkeys(graded.tolist())), default=1)
            found[cell] = Looks(numbers, how.whole_rounds, largest, how.stopped_after, len(how.rounds))
    return found


def bets_on(bounds: Bounds) -> tuple[FloatArray, FloatArray]:
    """Losses for both sequences: a cosine may change by more than 1, and no bet is made on that."""
    return np.clip(bounds.accept, -1, 1), np.clip(bounds.reject, -1, 1)


def watched_over(looks: Looks, bounds: Bounds, units: Codes, margin: Fraction, alpha: float) -> Watched:
    """A metric's losses as they came, round by round.

    Args:
        looks: of the build.
        bounds: with no gain of what is ungraded taken against a loss.
        units: (prompts,), the cluster of each.
        margin: as a fraction of 1.
        alpha: two-sided, of the sequence's interval.
    """
    losses, rejecting = bets_on(bounds)
    other = None if np.array_equal(losses, rejecting, equal_nan=True) else ConfidenceSequence(alpha)
    watched = Watched(ConfidenceSequence(alpha), float(margin), other)
    for number in range(looks.asked):
        here = (looks.rounds == number) & ~np.isnan(losses)
        names = [str(unit) for unit in units[here]]
        add_round(watched, losses[here].tolist(), names, looks.largest, rejecting[here].tolist())
    return watched


def sequence_interval(metric: Metric, watched: Watched) -> Interval:
    """The interval of the delta, in pp, that holds whenever one stops."""
    loss = watched.sequence.update([])
    if watched.rejecting is not None:
        loss = Interval(watched.rejecting.update([]).lo, loss.hi)
    if metric.higher_is_better is False:
        return Interval(100 * loss.lo, 100 * loss.hi)
    return Interval(-100 * loss.hi, -100 * loss.lo)
