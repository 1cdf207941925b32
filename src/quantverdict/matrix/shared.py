"""What a build is compared over: the prompts that both it and its baseline were asked and have a grade for.

Every delta of every table is over these. Prompts that only one of the two was asked are counted and named, and a build
that has any is not passed: it might have failed what is not there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from quantverdict.errors import count_of
from quantverdict.matrix.columns import METRICS, baselines, decimal
from quantverdict.matrix.grid import Codes, Grids, ScoreGrid
from quantverdict.records import CellId, Estimate, Matrix, Row, SharedPrompts
from quantverdict.stats.intervals import FloatArray


@dataclass(frozen=True, slots=True)
class UnpairedPrompts:
    """Prompts that a build or its baseline was asked and the other was not.

    Attributes:
        missing: of the baseline's, those that the build has not.
        extra: of the build's, those that the baseline has not.
        asked: of the baseline.
        metrics: that they are scored by.
    """

    missing: int
    extra: int
    asked: int
    metrics: tuple[str, ...]

    def __str__(self) -> str:
        """`60 of 120 prompts are missing`."""
        verb = "is" if self.asked == 1 else "are"
        message = [f"{self.missing} of {count_of(self.asked, 'prompt')} {verb} missing"] if self.missing else []
        verb = "was" if self.extra == 1 else "were"
        message += [f"{count_of(self.extra, 'prompt')} {verb} not asked of the baseline"] if self.extra else []
        return f"{' and '.join(message)} ({', '.join(self.metrics)})"


def with_shared(matrix: Matrix, samples: Grids | None) -> Matrix:
    """The matrix, with what each build is compared by where not every prompt is paired; a row that has it keeps it."""
    base = baselines(matrix)
    if not samples:
        return matrix
    return tuple(
        row
        if row.is_baseline or row.base_model not in base or row.shared is not None
        else _with_shared(row, base[row.base_model], samples)
        for row in matrix
    )


def unpaired(samples: Grids, cell: CellId, baseline: CellId, metrics: Iterable[str]) -> UnpairedPrompts | None:
    """What does not pair by any of these metrics; None where everything does.

    A metric that one of the two lacks altogether has no pair at all; but for judges, which need not label every build.
    """
    asked: list[tuple[Codes, Codes]] = []
    names = []
    for name in metrics:
        if name in samples:
            mine, theirs = asked_of_both(samples[name], cell, baseline)
            if (len(mine) and len(theirs)) or METRICS[name].group != "judge":
                asked.append((mine, theirs))
                names += [] if np.array_equal(mine, theirs) else [name]
    if not names:
        return None
    missing, extra, whole = (
        np.unique(np.concatenate(parts))
        for parts in (
            [np.setdiff1d(theirs, mine) for mine, theirs in asked],
            [np.setdiff1d(mine, theirs) for mine, theirs in asked],
            [theirs for _, theirs in asked],
        )
    )
    return UnpairedPrompts(len(missing), len(extra), len(whole), tuple(names))


def asked_of_both(grid: ScoreGrid, cell: CellId, baseline: CellId) -> tuple[Codes, Codes]:
    """The prompts that a build and its baseline were asked; a build that was asked in rounds misses none by mistake."""
    theirs = grid.asked(baseline)
    return (theirs if cell in grid.looks else grid.asked(cell)), theirs


def _with_shared(row: Row, baseline: Row, samples: Grids) -> Row:
    levels, own, metrics = dict(row.metrics), dict(row.metrics), dict(baseline.metrics)
    stopped: tuple[int | None, int | None] = (None, None)
    torn = False
    for name, grid in _of_both(row, baseline, samples):
        looks = grid.looks.get(row.cell)
        if looks is not None and looks.stopped_after is not None:
            stopped = (looks.stopped_after, looks.planned)
        asked, theirs = asked_of_both(grid, row.cell, baseline.cell)
        alike = np.array_equal(asked, theirs)
        torn = torn or not alike
        mine, reference = grid.compared(row.cell, baseline.cell)
        if not alike and len(np.setdiff1d(asked, theirs)):
            _put(levels, name, np.where(np.isin(grid.prompts, theirs), mine, np.nan))
        known = ~(np.isnan(mine) | np.isnan(reference))
        graded = (~np.isnan(arm) for arm in (mine, grid.values_of(baseline.cell)))
        if not all(np.array_equal(known, of_arm) for of_arm in graded):
            _put(own, name, mine[known])
            _put(metrics, name, reference[known])
    if torn:  # the openings of refusals are those of a cell as a whole
        metrics = {name: found for name, found in metrics.items() if METRICS[name].group != "template"}
    if stopped == (None, None) and own == row.metrics and metrics == baseline.metrics:
        return row
    without = tuple(name for name in row.metrics if name in samples and name in baseline.metrics and name not in own)
    return replace(row, metrics=levels, shared=SharedPrompts(metrics, own, *stopped, without))


def _of_both(row: Row, baseline: Row, samples: Grids) -> Iterator[tuple[str, ScoreGrid]]:
    """The metrics that both have samples of."""
    for name, grid in samples.items():
        if name in row.metrics and name in baseline.metrics and {row.cell, baseline.cell} <= set(grid.cells):
            yield name, grid


def _put(metrics: dict[str, Estimate], name: str, values: FloatArray) -> None:
    """A metric over these values, NaN where there is none; taken out where there is none at all."""
    values = values[~np.isnan(values)]
    n, total = len(values), math.fsum(values)
    if not n:
        metrics.pop(name, None)
    elif METRICS[name].proportion:
        metrics[name] = Estimate(Fraction(int(total), n), n=n, k=int(total))
    else:
        metrics[name] = Estimate(decimal(Fraction(total) / n), n=n)


# Answers without a grade, as each of the two tests takes them (SPEC 11).
#
# What is missing is not missing by chance: a build that breaks leaves answers that nothing can read. So a test that
# would accept counts an answer that the baseline had right and the build left ungraded as lost, and the reverse as
# gained only as far as it makes up for such losses; a test that would reject gives an ungraded answer the other arm's
# value.

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LossBounds:
    """Losses of the prompts that at least one arm has a grade for, (prompts,) with NaN elsewhere.

    Attributes:
        accept, reject: as the test that would accept, and the one that would reject, takes them.
        a: prompts that the baseline answered well and the build left ungraded.
        c: the reverse.
    """

    accept: FloatArray
    reject: FloatArray
    a: int
    c: int


def losses_of(metric: str, change: FloatArray) -> FloatArray:
    """What a build loses by changes from the baseline: a fall, or a rise where less is better."""
    return change if METRICS[metric].higher_is_better is False else -change


def credit(metric: str, values: FloatArray) -> FloatArray:
    """What an answer with these values can lose, from 0 to 1: where nothing is answered, all of it."""
    return np.clip(1 - values if METRICS[metric].higher_is_better is False else values, 0.0, 1.0)


def bounded_losses(
    metric: str, mine: FloatArray, theirs: FloatArray, asked: BoolArray, *, offset: bool = True
) -> LossBounds:
    """Losses of a build with what is ungraded in one of the arms.

    Args:
        metric: says which direction is a loss.
        mine, theirs: (prompts,), NaN where there is no grade.
        asked: (prompts,), of both arms; a prompt that only one was asked is no pair.
        offset: whether answers that only the build has a grade for make up for those that only the baseline has. While
            prompts are still being asked it is not known for how many.
    """
    accept = losses_of(metric, mine - theirs)
    reject = accept.copy()
    left, found = (asked & np.isnan(one) & ~np.isnan(two) for one, two in ((mine, theirs), (theirs, mine)))
    reject[left | found] = 0.0
    gone, back = credit(metric, theirs[left]), credit(metric, mine[found])
    accept[left] = gone
    accept[found] = -_made_up(back, float(gone.sum()) if offset else 0.0, whole=METRICS[metric].proportion)
    return LossBounds(accept, reject, int((gone > 0).sum()), int((back > 0).sum()))


def _made_up(back: FloatArray, most: float, *, whole: bool) -> FloatArray:
    """Of these gains no more than `most` in all: the first ones of answers that are right or wrong, else in parts."""
    total = float(back.sum())
    if total <= most:
        return back
    return np.where(np.cumsum(back) <= most, back, 0.0) if whole else back * (most / total)
