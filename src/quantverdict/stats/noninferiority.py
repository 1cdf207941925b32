"""Is the paired loss within the margin? Two one-sided tests, three outcomes.

A loss is baseline less variant: P(right before, wrong now) - P(wrong before, right now) for a rate, a mean difference
for anything else. It is positive where the variant is worse, and a fraction (0.05 is 5 percentage points).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy.typing as npt

Outcome = Literal["non_inferior", "inferior", "not_resolvable"]


@dataclass(frozen=True, slots=True)
class Loss:
    """A paired loss and its two tests against a margin.

    Attributes:
        estimate: loss seen.
        lo, hi: interval of confidence 1 - 2 alpha; each limit is the other test's bound: hi < margin is `non_inferior`.
        p_noninferior: of H0: loss >= margin.
        p_inferior: of H0: loss <= margin.
        n: pairs.
        units: independent units, clusters where there are any.
        differing: pairs that differ.
    """

    estimate: float
    lo: float
    hi: float
    p_noninferior: float
    p_inferior: float
    n: int
    units: int
    differing: int


def rate_loss(lost: int, gained: int, n: int, margin: Fraction | float, alpha: float = 0.025) -> Loss:
    """Loss of a 0/1 metric whose pairs are independent.

    Args:
        lost: pairs that are 1 in the baseline and 0 in the variant.
        gained: pairs that are 0 in the baseline and 1 in the variant.
        n: pairs.
        margin: the tolerated loss, from 0 to below 1.
        alpha: one-sided level, of each test.

    Raises:
        ValueError: counts, margin or level out of range.
    """
    raise NotImplementedError


def clustered_rate_loss(
    differences: npt.ArrayLike, clusters: Sequence[Hashable], margin: Fraction | float, alpha: float = 0.025
) -> Loss:
    """Loss of a 0/1 metric whose pairs come in clusters.

    Args:
        differences: (n,), baseline less variant, each -1, 0 or 1.
        clusters: a label for each pair; None is a cluster of its own.
        margin, alpha: as for `rate_loss`.

    Raises:
        ValueError: another value, unequal lengths, or no pair.
    """
    raise NotImplementedError


def mean_loss(
    differences: npt.ArrayLike,
    margin: Fraction | float,
    alpha: float = 0.025,
    clusters: Sequence[Hashable] | None = None,
    largest: float = 1.0,
) -> Loss:
    """Loss of a continuous metric.

    Args:
        differences: (n,), baseline less variant (variant less baseline where less is better), finite.
        margin: the tolerated loss, above 0, in the metric's unit.
        alpha: one-sided level, of each test.
        clusters: a label for each pair; None is a cluster of its own.
        largest: the largest loss that one prompt can have; what few differing pairs cannot rule out depends on it.

    Raises:
        ValueError: a value that is not finite, unequal lengths, no pair, or margin out of range.
    """
    raise NotImplementedError


def outcome(loss: Loss, alpha: float = 0.025) -> Outcome:
    """The outcome of one metric alone, at one-sided level `alpha`."""
    if loss.p_noninferior <= alpha:
        return "non_inferior"
    return "inferior" if loss.p_inferior <= alpha else "not_resolvable"


def outcomes(losses: Sequence[Loss], alpha: float = 0.025) -> tuple[Outcome, ...]:
    """The outcomes of a family: Holm over all tests of one direction, so that each direction errs at most at `alpha`.

    A wrong `non_inferior` anywhere in the family has a chance of at most alpha, and a wrong `inferior` too.
    """
    raise NotImplementedError
