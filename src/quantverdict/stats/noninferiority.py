"""Is the paired loss within the margin? Two one-sided tests, three outcomes.

A loss is baseline less variant: P(right before, wrong now) - P(wrong before, right now) for a rate, a mean difference
for anything else. It is positive where the variant is worse, and a fraction (0.05 is 5 percentage points).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

from quantverdict.stats.distributions import beta_quantile, binomial_cdf, normal_quantile, t_cdf, t_quantile
from quantverdict.stats.intervals import FloatArray
from quantverdict.stats.paired import FEW, p_below

# Many p-values at once: Holm for the chance of any false alarm, Benjamini-Hochberg for their share.


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values in the given order (Holm 1979); None was not tested: it stays None and is not counted."""
    order = _ascending(p_values)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = highest
    return adjusted


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values in the given order (Benjamini & Hochberg 1995); None stays None and is not counted."""
    order = _ascending(p_values)
    adjusted: list[float | None] = [None] * len(p_values)
    lowest = 1.0
    for rank, (p, index) in reversed(list(enumerate(order, start=1))):
        lowest = min(lowest, p * len(order) / rank)
        adjusted[index] = lowest
    return adjusted


def _ascending(p_values: Sequence[float | None]) -> list[tuple[float, int]]:
    tested = [(p, index) for index, p in enumerate(p_values) if p is not None]
    if not all(0 <= p <= 1 for p, _ in tested):
        raise ValueError("a p-value lies between 0 and 1")
    return sorted(tested)


Outcome = Literal["non_inferior", "inferior", "not_resolvable"]

_PRECISION = 1e-5
"""Of the limits of a rate: a thousandth of a percentage point."""
_CAUTION = 1.0
"""Differing pairs that the assumption of clusters that move as one counts for."""


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
        design_effect: what clustering is taken to multiply the variance by; so many times as many pairs are needed.
    """

    estimate: float
    lo: float
    hi: float
    p_noninferior: float
    p_inferior: float
    n: int
    units: int
    differing: int
    design_effect: float = 1.0


def rate_loss(lost: int, gained: int, n: int, margin: Fraction | float, alpha: float = 0.025) -> Loss:
    """Loss of a 0/1 metric whose pairs are independent: exact tests by `exact_paired`, and the limits that invert them.

    Args:
        lost: pairs that are 1 in the baseline and 0 in the variant.
        gained: pairs that are 0 in the baseline and 1 in the variant.
        n: pairs.
        margin: the tolerated loss, from 0 to below 1.
        alpha: one-sided level, of each test.

    Raises:
        ValueError: counts, margin or level out of range.
    """
    if lost < 0 or gained < 0 or lost + gained > n or n == 0:
        raise ValueError(f"{lost} lost and {gained} gained of {n} pairs")
    _check(margin, alpha)
    return _rate((lost, gained, n), n, 1.0, float(margin), alpha)


def clustered_rate_loss(
    differences: npt.ArrayLike, clusters: Sequence[Hashable], margin: Fraction | float, alpha: float = 0.025
) -> Loss:
    """Loss of a 0/1 metric whose pairs come in clusters: the exact tests of counts divided by the design effect.

    Dividing counts by what clustering multiplies the variance by is Rao & Scott's (1992, Biometrics 48:577). The
    divided counts are rounded against the claim, and the design effect is taken high (see `design_effect`).

    Args:
        differences: (n,), baseline less variant, each -1, 0 or 1.
        clusters: a label for each pair; None is a cluster of its own.
        margin, alpha: as for `rate_loss`.

    Raises:
        ValueError: another value, unequal lengths, or no pair.
    """
    _check(margin, alpha)
    values = np.asarray(differences, dtype=np.float64)
    if not np.isin(values, (-1, 0, 1)).all():
        raise ValueError("differences of 0/1 values are expected")
    sums, sizes = cluster_sums(values, clusters)
    lost, gained = int((values > 0).sum()), int((values < 0).sum())
    effect = design_effect(sums, sizes, lost + gained, alpha)
    return _rate((lost, gained, values.size), len(sizes), effect, float(margin), alpha)


@dataclass(frozen=True, slots=True)
class Room:
    """What the prompts of one metric among those of a mean can lose.

    Attributes:
        units: independent units, rounded down.
        weight: of this metric in the mean; all of them add up to 1.
        largest: the largest loss that one prompt can have.
    """

    units: int
    weight: float
    largest: float


def mean_loss(
    differences: npt.ArrayLike,
    margin: Fraction | float,
    alpha: float = 0.025,
    clusters: Sequence[Hashable] | None = None,
    largest: float | Sequence[Room] = 1.0,
) -> Loss:
    """Loss of a continuous metric: Student's t of the units' sums.

    Skewness is taken out (Hall 1992, JRSS B 54:221) where that is the more cautious of the two, and the degrees of
    freedom are those of a variance estimated from differences with their kurtosis, 1.5 n / (kurtosis - 1), which are n
    - 1 at most: where few prompts differ, or a few by much, their spread is not known from n of them.

    No spread that was seen rules out a loss by rare prompts that lose `largest` each. So the p-value of
    non-inferiority is at least the chance to meet none of those, and that of inferiority the chance to meet none that
    gain everything and make up for what was seen beyond the margin; and where fewer than 10 units differ, which is too
    few for t, both tests are binomial, of whole losses. Builds that agree on every prompt are non-inferior only where
    enough prompts were asked, as for a rate.

    Args:
        differences: (n,), baseline less variant (variant less baseline where less is better), finite.
        margin: the tolerated loss, above 0, in the metric's unit.
        alpha: one-sided level, of each test.
        clusters: a label for each pair; None is a cluster of its own.
        largest: the largest loss that one prompt can have; or, where the prompts are those of several metrics, what
            those of each can lose.

    Raises:
        ValueError: a value that is not finite, unequal lengths, no pair, or margin out of range.
    """
    _check(margin, alpha)
    values = np.asarray(differences, dtype=np.float64)
    labels = [None] * values.size if clusters is None else clusters
    sums, sizes = cluster_sums(values, labels)
    n, differing = values.size, int((values != 0).sum())
    estimate, units = float(sums.sum()) / n, n * n / float(np.square(sizes).sum())
    few = math.floor(units)
    rooms = (Room(few, 1.0, largest),) if isinstance(largest, int | float) else tuple(largest)
    most = max(room.largest for room in rooms)
    if not margin > 0 or not min(room.largest for room in rooms) > 0:
        raise ValueError(f"margin {margin} of at most {most}: numbers above 0 are expected")
    if len(sizes) == 1:
        return Loss(estimate, -most, most, 1.0, 1.0, n, 1, differing)
    residuals = sums - sizes * estimate
    se = math.sqrt(len(sizes) / (len(sizes) - 1) * float(np.square(residuals).sum())) / n
    if np.count_nonzero(sums) < FEW:
        below, above, lo, hi = _whole_losses(sums / sizes, few, float(margin), most, alpha)
    else:
        shape = _shape(residuals, units)
        below, above = _tails(estimate - float(margin), se, shape)
        reach = t_quantile(1 - alpha, shape[1])
        ends = [(se * _unskewed(sign * reach, shape[0]), se * sign * reach) for sign in (1, -1)]
        lo, hi = estimate - max(ends[0]), estimate - min(ends[1])
    below = max(below, unmet(rooms, float(margin)))
    hi = max(hi, unmet_loss(rooms, alpha))
    above = max(above, (1 - min(max(estimate - float(margin), 0.0), 1.0)) ** few)
    lo = min(lo, estimate - (1 - alpha ** (1 / few)))
    spread = float(np.square(values - estimate).sum()) / (n * (n - 1))
    effect = max(1.0, se * se / spread) if spread > 0 else 1.0
    return Loss(estimate, max(lo, -most), min(hi, most), below, above, n, len(sizes), differing, effect)


def _shape(residuals: FloatArray, units: float) -> tuple[float, float]:
    """Skewness over the root of the units, and the degrees of freedom that kurtosis leaves."""
    variance = float(np.square(residuals).mean())
    if variance == 0:
        return 0.0, units - 1
    skew = float((residuals**3).mean()) / (variance * residuals.size / (residuals.size - 1)) ** 1.5
    kurtosis = float((residuals**4).mean()) / variance**2
    dof = units - 1 if kurtosis <= 1 else min(units - 1, 1.5 * units / (kurtosis - 1))
    return skew / math.sqrt(residuals.size), max(dof, 1.0)


def unmet(rooms: Sequence[Room], loss: float) -> float:
    """The chance that no prompt which lost everything is met, where such prompts lose `loss` in the mean.

    The largest over how they are spread over the metrics: at a price a unit, each metric has as many of them as leaves
    its own part of the chance worth it (a product of (1 - rate)^units under the sum of weight x rate x largest).
    """
    if loss >= sum(room.weight * room.largest for room in rooms):
        return 0.0
    if len(rooms) == 1:
        return math.pow(1 - loss / rooms[0].largest, rooms[0].units)
    low, high = 0.0, max(room.weight * room.largest / room.units for room in rooms)
    # The price at which all rates are 0 is the highest of these; as it falls they grow, and the loss with them.
    for _ in range(60):
        price = (low + high) / 2
        low, high = (price, high) if _met(rooms, price)[0] > loss else (low, price)
    return _met(rooms, low)[1]


def unmet_loss(rooms: Sequence[Room], alpha: float) -> float:
    """The largest loss that has a chance of `alpha` to be met by nothing (`unmet`)."""
    if len(rooms) == 1:
        return rooms[0].largest * (1 - math.pow(alpha, 1 / rooms[0].units))
    low, high = 0.0, max(room.weight * room.largest / room.units for room in rooms)
    for _ in range(60):
        price = (low + high) / 2
        low, high = (price, high) if _met(rooms, price)[1] < alpha else (low, price)
    return _met(rooms, low)[0]


def _met(rooms: Sequence[Room], price: float) -> tuple[float, float]:
    """Loss and chance where (1 - rate) = units x price / (weight x largest), at most 1, of each metric."""
    kept = [min(1.0, room.units * price / (room.weight * room.largest)) for room in rooms]
    loss = sum(room.weight * room.largest * (1 - one) for room, one in zip(rooms, kept, strict=True))
    chance = math.prod(one**room.units for room, one in zip(rooms, kept, strict=True))
    return loss, chance


def outcome(loss: Loss, alpha: float = 0.025) -> Outcome:
    """The outcome of one metric alone, at one-sided level `alpha`."""
    return outcomes((loss,), alpha)[0]


def outcomes(losses: Sequence[Loss], alpha: float = 0.025) -> tuple[Outcome, ...]:
    """The outcomes of a family: Holm over all tests of one direction, so that each direction errs at most at `alpha`.

    A wrong `non_inferior` anywhere in the family has a chance of at most alpha, and a wrong `inferior` too, however
    the metrics depend on each other.
    """
    within = holm([loss.p_noninferior for loss in losses])
    beyond = holm([loss.p_inferior for loss in losses])
    return tuple(resolved(one, two, alpha) for one, two in zip(within, beyond, strict=True))


def resolved(p_noninferior: float | None, p_inferior: float | None, alpha: float = 0.025) -> Outcome:
    """The outcome of two (adjusted) p-values; None, not tested, resolves nothing."""
    if p_noninferior is not None and p_noninferior <= alpha:
        return "non_inferior"
    return "inferior" if p_inferior is not None and p_inferior <= alpha else "not_resolvable"


def cluster_sums(values: FloatArray, clusters: Sequence[Hashable]) -> tuple[FloatArray, FloatArray]:
    """Sum and size of each cluster, in order of first appearance; a label of None is a cluster of its own.

    Raises:
        ValueError: no value, one that is not finite, or unequal lengths.
    """
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all() or len(clusters) != values.size:
        raise ValueError(f"{len(clusters)} cluster labels for {values.size} values: a label for each finite value")
    if None not in clusters and len(set(clusters)) == values.size:
        return values + 0.0, np.ones(values.size)  # sums from zero, of one value each
    seen: dict[tuple[bool, Hashable], int] = {}
    labels = ((label is None, i if label is None else label) for i, label in enumerate(clusters))
    codes = np.array([seen.setdefault(label, len(seen)) for label in labels])
    return np.bincount(codes, weights=values).astype(np.float64), np.bincount(codes).astype(np.float64)


def design_effect(sums: FloatArray, sizes: FloatArray, differing: int, alpha: float) -> float:
    """What clustering multiplies the variance of a mean paired difference of -1, 0 and 1 by, taken high.

    The ratio of the variance between clusters to that of independent pairs, between 1 and what it is where a cluster
    always moves as one. That upper end counts as one differing pair would (and is all there is where none differs): a
    few flips cannot show that they come alone. Student's t for the normal allows for few clusters.

    Args:
        sums, sizes: (clusters,), as `cluster_sums`.
        differing: pairs that differ.
        alpha: one-sided level of the test it is for.
    """
    n, clusters = float(sizes.sum()), len(sizes)
    most = float(np.square(sizes).sum()) / n
    if most == 1 or clusters == 1:
        return most
    mean = float(sums.sum()) / n
    independent = differing - n * mean * mean
    between = clusters / (clusters - 1) * float(np.square(sums - sizes * mean).sum())
    seen = min(max(between / independent, 1.0), most) if independent > 0 else most
    seen = (differing * seen + _CAUTION * most) / (differing + _CAUTION)
    return min(seen * (t_quantile(1 - alpha, n / most - 1) / normal_quantile(1 - alpha)) ** 2, most)


def rate_tests(
    counts: tuple[int, int, int], units: int, effect: float, margin: Fraction | float
) -> tuple[float, float]:
    """The p-values of `clustered_rate_loss` alone: of H0: loss >= margin, and of H0: loss <= margin.

    Args:
        counts: lost, gained and all pairs.
        units: clusters; as many as pairs where these are independent.
        effect: what clustering multiplies the variance by, 1 for independent pairs.
        margin: the tolerated loss.
    """
    if units == 1 and counts[2] > 1:
        return 1.0, 1.0
    below, above = _divided(counts, effect)
    return _shown(below, float(margin)), _shown(above, -float(margin))


def rate_limits(counts: tuple[int, int, int], units: int, effect: float, alpha: float, *, upper: bool) -> float:
    """The loss from which on `rate_tests` rules out more (`upper`), or less, at one-sided level `alpha`."""
    lost, gained, n = counts
    if units == 1 and n > 1:
        return 1.0 if upper else -1.0
    below, above = _divided(counts, effect)
    estimate = (lost - gained) / n
    if upper:
        return _limit(lambda loss: p_below(*below, loss), (1.0, True), estimate, 1.0, alpha)
    return _limit(lambda loss: p_below(*above, -loss), (-1.0, True), estimate, -1.0, alpha)


def _shown(counts: tuple[int, int, int], loss: float) -> float:
    """`p_below`, but 1 where what is seen speaks for H0: it rejects at no level, and costs as much to know exactly."""
    lost, gained, n = counts
    return 1.0 if lost - gained >= n * loss else p_below(lost, gained, n, loss)


def _divided(counts: tuple[int, int, int], effect: float) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Lost, gained and n divided by `effect`, rounded against `non_inferior`; gained, lost and n against `inferior`."""
    lost, gained, n = counts
    fewer = max(1, math.floor(n / effect))
    more_lost = min(math.ceil(lost / effect), fewer)
    more = math.ceil(n / effect)
    more_gained = math.ceil(gained / effect)
    return (
        (more_lost, min(math.floor(gained / effect), fewer - more_lost), fewer),
        (more_gained, min(math.floor(lost / effect), more - more_gained), more),
    )


def _rate(counts: tuple[int, int, int], units: int, effect: float, margin: float, alpha: float) -> Loss:
    """Both exact tests of the counts lost, gained and n divided by `effect`, and their limits."""
    lost, gained, n = counts
    estimate = (lost - gained) / n
    if units == 1 and n > 1:
        return Loss(estimate, -1.0, 1.0, 1.0, 1.0, n, 1, lost + gained, effect)
    below, above = _divided(counts, effect)

    def within(loss: float) -> float:
        return p_below(*below, loss)

    def beyond(loss: float) -> float:
        return p_below(*above, -loss)

    one, two = within(margin), beyond(margin)
    hi = _limit(within, (margin, one <= alpha), max(estimate, -1.0), 1.0, alpha)
    lo = _limit(beyond, (margin, two <= alpha), min(estimate, 1.0), -1.0, alpha)
    return Loss(estimate, lo, hi, one, two, n, units, lost + gained, effect)


def _limit(
    p_value: Callable[[float], float], known: tuple[float, bool], inside: float, outside: float, alpha: float
) -> float:
    """Where a p-value passes alpha between a loss it allows and one it does not; `known` keeps it on the margin's side.

    The limit stands outside the interval by less than the precision.
    """
    margin, rejected = known
    if rejected:
        outside = margin
    elif (margin - inside) * (outside - inside) > 0:
        inside = margin
    while abs(outside - inside) > _PRECISION:
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if p_value(middle) <= alpha else (middle, outside)
    return outside


def _tails(gap: float, se: float, shape: tuple[float, float]) -> tuple[float, float]:
    """P(T <= gap / se) and P(T >= gap / se), T Student's; each as it is or with the skewness taken out by Hall's cubic.

    The larger of both.

    Args:
        gap: mean less margin; where nothing varies it decides alone.
        se: standard error of the mean.
        shape: skewness over the root of the units, and degrees of freedom.
    """
    if se == 0:
        return (0.0, 1.0) if gap < 0 else (1.0, float(gap == 0))
    skew, dof = shape
    t = gap / se
    cubic = t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / 6
    return t_cdf(max(t, cubic), dof), t_cdf(-min(t, cubic), dof)


def _unskewed(t: float, skew: float) -> float:
    """The inverse of Hall's cubic."""
    if abs(skew) < 1e-9:
        return t
    return 3 / skew * (math.cbrt(1 + skew * (t - skew / 6)) - 1)


def _whole_losses(
    means: FloatArray, n: int, margin: float, largest: float, alpha: float
) -> tuple[float, float, float, float]:
    """Both p-values and limits if each of n units lost either nothing or `largest`: the binomial of the losses seen.

    Their sum is rounded; smaller losses vary less than that. What was gained counts against `inferior` alone.
    """
    share = min(margin / largest, 1.0)
    lost = min(n, round(float(means[means > 0].sum()) / largest))
    net = min(n, max(0, math.floor(float(means.sum()) / largest)))
    hi = 1.0 if lost >= n else beta_quantile(1 - alpha, lost + 1, n - lost)
    if net == 0:
        return binomial_cdf(lost, n, share), 1.0, -largest, hi * largest
    lo = beta_quantile(alpha, net, n - net + 1)
    return binomial_cdf(lost, n, share), 1 - binomial_cdf(net - 1, n, share), lo * largest, hi * largest


def _check(margin: Fraction | float, alpha: float) -> None:
    if not 0 <= margin < 1 or not 0 < alpha < 0.5:
        raise ValueError(f"margin {margin} from 0 to below 1 and level {alpha} between 0 and 1/2 are expected")


# A weighted mean of the losses of several metrics: its limits and tests from those of each metric.
#
# By the method of variance estimates recovery (Donner & Zou 2012, Stat Methods Med Res 21:347): the upper limit of a
# sum of w t is the estimate plus the root of the sum of w^2 (u - t)^2, u the upper limits of each. So small metrics
# keep limits of their own kind, which a t test of the weighted mean would not.

_LEAST_LEVEL, _MOST_LEVEL = 1e-7, 0.4999
_STEPS = 20


@dataclass(frozen=True, slots=True)
class Part:
    """One metric of a weighted mean.

    Attributes:
        weight: all of them add up to 1.
        estimate: the loss seen.
        limit: its one-sided limit at a level, on the side that is asked for.
    """

    weight: float
    estimate: float
    limit: Callable[[float], float]


def weighted_limit(parts: Sequence[Part], alpha: float, *, upper: bool) -> float:
    """The one-sided limit of the weighted mean at level `alpha`."""
    estimate = sum(part.weight * part.estimate for part in parts)
    ends = [part.limit(alpha) for part in parts]
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

    if within(_LEAST_LEVEL):
        return _LEAST_LEVEL
    if not within(_MOST_LEVEL):
        return 1.0
    low, high = math.log(_LEAST_LEVEL), math.log(_MOST_LEVEL)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if within(math.exp(middle)) else (middle, high)
    return math.exp(high)
