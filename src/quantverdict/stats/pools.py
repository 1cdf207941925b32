"""A weighted mean of the losses of several metrics: its limits and tests from those of each metric.

By the method of variance estimates recovery (Donner & Zou 2012, Stat Methods Med Res 21:347): the upper limit of a sum
of w t is the estimate plus the root of the sum of w^2 (u - t)^2, u the upper limits of each. So small metrics keep
limits of their own kind, which a t test of the weighted mean would not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_LEAST, _MOST = 1e-7, 0.4999
_STEPS = 40


@dataclass(frozen=True, slots=True)
class Part:
    """One metric of a weighted mean.

    Attributes:
        weight: all of them add up to 1.
        estimate: the loss seen.
        upper, lower: its one-sided limit at a level.
    """

    weight: float
    estimate: float
    upper: Callable[[float], float]
    lower: Callable[[float], float]


def weighted_limit(parts: Sequence[Part], alpha: float, *, upper: bool) -> float:
    """The one-sided limit of the weighted mean at level `alpha`."""
    estimate = sum(part.weight * part.estimate for part in parts)
    ends = [(part.upper if upper else part.lower)(alpha) for part in parts]
    reach = math.sqrt(sum((part.weight * (end - part.estimate)) ** 2 for part, end in zip(parts, ends, strict=True)))
    return estimate + reach if upper else estimate - reach


def weighted_p(parts: Sequence[Part], margin: float, *, upper: bool) -> float:
    """The level at which the limit reaches the margin: of H0: loss >= margin (`upper`), or of H0: loss <= margin.

    1 where what was seen speaks for H0; levels under one in ten million are not told apart.
    """
    estimate = sum(part.weight * part.estimate for part in parts)
    if (estimate >= margin) if upper else (estimate <= margin):
        return 1.0

    def within(alpha: float) -> bool:
        limit = weighted_limit(parts, alpha, upper=upper)
        return limit <= margin if upper else limit >= margin

    if within(_LEAST):
        return _LEAST
    if not within(_MOST):
        return 1.0
    low, high = math.log(_LEAST), math.log(_MOST)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if within(math.exp(middle)) else (middle, high)
    return math.exp(high)
