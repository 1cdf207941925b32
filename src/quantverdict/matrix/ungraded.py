"""Answers without a grade, as each of the two tests takes them (SPEC 11).

What is missing is not missing by chance: a build that breaks leaves answers that nothing can read. So a test that would
accept counts an answer that the baseline had right and the build left ungraded as lost, and the reverse as gained only
as far as it makes up for such losses; a test that would reject gives an ungraded answer the other arm's value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantverdict.matrix.columns import METRICS
from quantverdict.stats.intervals import FloatArray

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Bounds:
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
) -> Bounds:
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
    return Bounds(accept, reject, int((gone > 0).sum()), int((back > 0).sum()))


def _made_up(back: FloatArray, most: float, *, whole: bool) -> FloatArray:
    """Of these gains no more than `most` in all: the first ones of answers that are right or wrong, else in parts."""
    total = float(back.sum())
    if total <= most:
        return back
    return np.where(np.cumsum(back) <= most, back, 0.0) if whole else back * (most / total)
