"""What n prompts can show: the smallest detectable effect, and the n that an effect needs.

Effects, rates and margins are fractions (0.05 is 5 percentage points), tests two-sided at `alpha` unless it says
otherwise. None means that no effect that could occur would be detected.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from quantverdict.stats.distributions import normal_cdf, normal_quantile, t_quantile
from quantverdict.stats.paired import chance, constrained_variance, most_lost

_MOST = 1 << 40
"""Sample sizes beyond this are as good as impossible."""
_NORMAL = 100_000
"""Pairs beyond which the normal approximation is exact to all that a sample size is asked for."""


@dataclass(frozen=True, slots=True)
class OutcomeProbabilities:
    """How often each outcome of a comparison is to be expected; they add up to 1."""

    non_inferior: float
    inferior: float
    not_resolvable: float


def power_unpaired(p1: float, p2: float, n1: int, n2: int, alpha: float = 0.05) -> float:
    """Power of the two-sided z test of two independent proportions, p1 of n1 against p2 of n2.

    Pooled variance under the null, separate variances under the alternative (Fleiss, Levin & Paik 2003, 4.2).
    """
    pooled = (n1 * p1 + n2 * p2) / (n1 + n2)
    null = math.sqrt(pooled * (1 - pooled) * (1 / n1 + 1 / n2))
    spread = math.sqrt(p1 * (1 - p1) / n1 + p2 * (1 - p2) / n2)
    gap, bound = abs(p1 - p2), normal_quantile(1 - alpha / 2) * null
    if spread == 0:
        return float(gap > bound)
    return normal_cdf((gap - bound) / spread) + normal_cdf((-gap - bound) / spread)


def mde_unpaired(
    p: float, n1: int, n2: int, power: float = 0.8, alpha: float = 0.05, *, rise: bool = False
) -> float | None:
    """Smallest drop (or `rise`) from rate p of n1 prompts that n2 other prompts detect with `power`; None if none is.

    Args:
        p: the baseline's rate.
        n1: prompts of the baseline.
        n2: prompts of the variant.
        power: wanted.
        alpha: of the two-sided test.
        rise: look for the smallest rise instead.
    """
    _check(power, alpha)
    room, sign = (1 - p, 1) if rise else (p, -1)

    def enough(effect: float) -> bool:
        return power_unpaired(p, min(1.0, max(0.0, p + sign * effect)), n1, n2, alpha) >= power

    return _smallest(enough, room)


def n_unpaired(p: float, effect: float, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """Prompts an arm needs to tell rate p from p + `effect` (negative: a drop); None where that is no rate."""
    _check(power, alpha)
    if not 0 <= p + effect <= 1 or effect == 0:
        return None
    return _least(lambda n: power_unpaired(p, p + effect, n, n, alpha) >= power)


def mde_paired(n: int, discordance: float, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Smallest difference that n pairs detect where a share `discordance` of pairs differs, by McNemar's test.

    Solves difference sqrt(n) = z_a sqrt(d) + z_b sqrt(d - difference^2) (Connor 1987, Biometrics 43:207). A difference
    cannot exceed the discordance: where it would have to, none is detected.
    """
    _check(power, alpha)
    if not 0 <= discordance <= 1 or n < 1:
        raise ValueError(f"discordance {discordance} of {n} pairs")
    z_a, z_b = normal_quantile(1 - alpha / 2), normal_quantile(power)
    spread, rest = z_a * math.sqrt(discordance), z_b * math.sqrt(discordance * (1 - discordance))
    if discordance == 0 or discordance * math.sqrt(n) < spread + rest:
        return None
    # Squared, it is quadratic in the difference; only rounding can take the root, or the difference, out of its bounds.
    root = math.sqrt(discordance * max(n + z_b**2 - z_a**2, 0.0))
    return min((math.sqrt(n) * spread + z_b * root) / (n + z_b**2), discordance)


def mde_paired_over(n: int, background: float, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Smallest difference that n pairs detect on top of a share `background` of pairs that differ anyway, by McNemar.

    `mde_paired` with discordance = background + difference: the background goes both ways alike, and what is lost or
    gained differs too (Connor 1987).
    """
    _check(power, alpha)
    if not 0 <= background < 1 or n < 1:
        raise ValueError(f"background {background} of {n} pairs")
    z_a, z_b = normal_quantile(1 - alpha / 2), normal_quantile(power)

    def enough(effect: float) -> bool:
        share = background + effect
        return effect * math.sqrt(n) >= z_a * math.sqrt(share) + z_b * math.sqrt(max(share - effect**2, 0.0))

    return _smallest(enough, 1 - background)


def n_paired(effect: float, discordance: float, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """Pairs needed to detect `effect` where a share `discordance` of them differs; None where it exceeds that share."""
    _check(power, alpha)
    if not 0 < abs(effect) <= discordance <= 1:
        return None
    z_a, z_b = normal_quantile(1 - alpha / 2), normal_quantile(power)
    root = (z_a * math.sqrt(discordance) + z_b * math.sqrt(discordance - effect**2)) / abs(effect)
    return math.ceil(root**2)


def n_noninferior(margin: float, discordance: float, power: float = 0.8, confidence: float = 0.95) -> int:
    """Pairs needed for the lower limit of the paired score interval to lie above -margin, the builds being equal.

    Nam (1997, Biometrics 53:1422): the variance at the null is the constrained one, so pairs are needed even where none
    differs.

    Args:
        margin: the tolerated loss, above 0 and below 1.
        discordance: share of pairs expected to differ, half of them each way.
        power: wanted.
        confidence: of the two-sided interval.
    """
    if not 0 < margin < 1 or not 0 <= discordance <= 1:
        raise ValueError(f"margin {margin}, discordance {discordance}")
    _check(power, 1 - confidence)
    null = constrained_variance(discordance / 2, discordance / 2, -margin)
    z_a, z_b = normal_quantile(0.5 + confidence / 2), normal_quantile(power)
    return math.ceil(((z_a * math.sqrt(null) + z_b * math.sqrt(discordance)) / margin) ** 2)


def outcome_probabilities(
    n: int, discordance: float, true_loss: float, margin: float, alpha: float = 0.025
) -> OutcomeProbabilities:
    """The chance of each outcome of `noninferiority.rate_loss` at n independent pairs, by its exact rejection regions.

    Args:
        n: pairs; where they are clustered, their number over the design effect.
        discordance: share of pairs that differ; raised to abs(true_loss) where it is less.
        true_loss: P(lost) - P(gained), from -1 to 1.
        margin: the tolerated loss, from 0 to below 1.
        alpha: one-sided level of each test.

    Raises:
        ValueError: a share, margin or level out of range, or no pair.
    """
    if n < 1 or not 0 <= discordance <= 1 or not -1 <= true_loss <= 1 or not 0 <= margin < 1 or not 0 < alpha < 0.5:
        raise ValueError(f"{n} pairs, discordance {discordance}, loss {true_loss}, margin {margin}, level {alpha}")
    share = max(discordance, abs(true_loss))
    lost, gained = (share + true_loss) / 2, (share - true_loss) / 2
    spread = 7 * math.sqrt(n * share * (1 - share)) + 10
    likely = max(0, math.floor(n * share - spread)), min(n, math.ceil(n * share + spread))
    within = chance(most_lost(n, margin, alpha, likely), n, lost, gained)
    beyond = chance(most_lost(n, -margin, alpha, likely), n, gained, lost)
    return OutcomeProbabilities(within, beyond, max(0.0, 1 - within - beyond))


@lru_cache(maxsize=1 << 10)
def n_resolved(
    discordance: float, true_loss: float, margin: float, power: float = 0.8, alpha: float = 0.025
) -> int | None:
    """Pairs at which the right outcome has chance `power`, checked exactly; None where the loss is the margin.

    From the normal approximation (Nam 1997, Connor 1987) in steps of 4 % to where the last one matters; the chance
    climbs in a saw, so some fewer pairs may do by luck. Multiply it by the design effect where pairs are clustered.

    Raises:
        ValueError: as `outcome_probabilities`.
    """
    _check(power, alpha)
    if true_loss == margin:
        return None
    share = max(discordance, abs(true_loss))
    lost, gained = (share + true_loss) / 2, (share - true_loss) / 2
    null = constrained_variance(gained, lost, -margin)
    reach = normal_quantile(1 - alpha) * math.sqrt(null)
    reach += normal_quantile(power) * math.sqrt(max(share - true_loss**2, 0.0))

    def enough(n: int) -> bool:
        found = outcome_probabilities(n, share, true_loss, margin, alpha)
        return (found.non_inferior if true_loss < margin else found.inferior) >= power

    n = max(1, math.ceil(min(reach / (margin - true_loss), _MOST) ** 2))
    if n > _NORMAL:
        return n if n < _MOST else None
    while not enough(n):
        n += max(1, n // 25)
    while n > 1 and enough(n - max(1, n // 25)):
        n -= max(1, n // 25)
    return n


def mean_outcome_probabilities(
    n: int, sd: float, true_loss: float, margin: float, alpha: float = 0.025
) -> OutcomeProbabilities:
    """The chance of each outcome of `noninferiority.mean_loss` at n independent pairs whose difference has `sd`.

    By the noncentral t distribution: an approximation, as that test takes skewness out. Where rare prompts that lose
    everything could be met by none, nothing is `non_inferior`.

    Raises:
        ValueError: no spread, a margin or level out of range, or no pair.
    """
    if n < 1 or not sd > 0 or not 0 < margin < 1 or not 0 < alpha < 0.5:
        raise ValueError(f"{n} pairs, sd {sd}, margin {margin}, level {alpha}")
    if n == 1:
        return OutcomeProbabilities(0.0, 0.0, 1.0)
    shift, bound = (margin - true_loss) * math.sqrt(n) / sd, t_quantile(1 - alpha, n - 1)
    within, beyond = (_beyond(one, bound, n - 1) for one in (shift, -shift))
    if (1 - margin) ** n > alpha:
        within = 0.0
    return OutcomeProbabilities(within, beyond, max(0.0, 1 - within - beyond))


def power_continuous(effect: float, sd: float, n: int, alpha: float = 0.05) -> float:
    """Power of the two-sided paired t test for a mean difference `effect` whose standard deviation is `sd`, n pairs."""
    from scipy.special import nctdtr

    bound = t_quantile(1 - alpha / 2, n - 1)
    shift = abs(effect) / sd * math.sqrt(n)
    near, far = (float(nctdtr(n - 1, shift, limit)) for limit in (bound, -bound))
    # Tails far below the shift underflow to NaN, where they are nothing.
    return 1 - (0.0 if math.isnan(near) else near) + (far if shift < 5 else 0.0)


def mde_continuous(n: int, sd: float, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Smallest mean difference, in the unit of `sd`, that n pairs detect by the paired t test; None for n < 2."""
    _check(power, alpha)
    if n < 2 or sd < 0:
        return None
    if sd == 0:
        return 0.0
    reach = 4 * (t_quantile(1 - alpha / 2, n - 1) + t_quantile(power, n - 1)) / math.sqrt(n)
    standard = _smallest(lambda effect: power_continuous(effect, 1.0, n, alpha) >= power, reach)
    return None if standard is None else standard * sd


def n_continuous(effect: float, sd: float, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """Pairs needed to detect a mean difference `effect` whose standard deviation is `sd`; None for no effect."""
    _check(power, alpha)
    if effect == 0 or sd <= 0:
        return None
    return _least(lambda n: n >= 2 and power_continuous(effect, sd, n, alpha) >= power)


def _beyond(shift: float, bound: float, dof: int) -> float:
    """Chance that Student's t with noncentrality `shift` is above `bound`, which is above 0."""
    from scipy.special import nctdtr

    below = float(nctdtr(dof, shift, bound))
    # Far from the bound the series underflows to NaN, where the answer is plain.
    return float(shift > bound) if math.isnan(below) else 1 - below


def _check(power: float, alpha: float) -> None:
    if not 0 < alpha < power < 1:
        raise ValueError(f"power {power} and alpha {alpha}: expected 0 < alpha < power < 1")


def _smallest(enough: Callable[[float], bool], most: float) -> float | None:
    """Bisect for the smallest effect in [0, most] that is enough; enough must stay so as the effect grows."""
    if most <= 0 or not enough(most):
        return None
    below, above = 0.0, most
    while above - below > 1e-12 * most:
        middle = (below + above) / 2
        below, above = (below, middle) if enough(middle) else (middle, above)
    return above


def _least(enough: Callable[[int], bool]) -> int | None:
    above = 1
    while not enough(above):
        above *= 2
        if above > _MOST:
            return None
    below = above // 2
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if enough(middle) else (middle, above)
    return above


# How many pairs resolve a paired loss against a margin, quickly enough for every outcome of a study.

_MOST_PROMPTS = 1 << 20
"""The root of as many pairs as nobody asks."""


def n_rate(discordance: float, loss: float, margin: float, power: float = 0.8, alpha: float = 0.025) -> int | None:
    """Pairs until the score test of a 0/1 metric tells loss from margin with `power`; None where none is enough.

    Nam (1997, Biometrics 53:1422), for any true loss: n = ((z_a sd0 + z_b sd1) / (margin - loss))^2, with sd0 under the
    null. For a loss of 0 it is `power.n_noninferior`. Where no pair differs, the chance is 0 up to some number of pairs
    and 1 from there on, so that number is the exact one; elsewhere `power.n_resolved` is within some 10 % of this.

    Args:
        discordance: share of pairs that differ; raised to abs(loss) where it is less.
        loss: the true one, P(lost) - P(gained).
        margin: above 0 and below 1.
        power: wanted.
        alpha: one-sided level.
    """
    if not 0 < margin < 1 or not 0 <= discordance <= 1 or not -1 <= loss <= 1:
        raise ValueError(f"margin {margin}, discordance {discordance}, loss {loss}")
    share = max(discordance, abs(loss))
    if share == 0:
        return n_resolved(0.0, 0.0, margin, power, alpha)
    lost, gained = (share + loss) / 2, (share - loss) / 2
    null, true = constrained_variance(gained, lost, -margin), share - loss**2
    return _pairs(math.sqrt(null), math.sqrt(true), margin - loss, (power, alpha))


def n_mean(sd: float, loss: float, margin: float, power: float = 0.8, alpha: float = 0.025) -> int | None:
    """The same for a mean difference whose standard deviation is `sd`.

    At least as many as rule out, for `non_inferior`, a loss of the margin by rare prompts that lose everything: these
    may be met by none (as `noninferiority.mean_loss` does).
    """
    pairs = _pairs(sd, sd, margin - loss, (power, alpha))
    rare = math.ceil(math.log(alpha) / math.log(1 - margin)) if loss < margin else 1
    return None if pairs is None else max(pairs, rare)


def _pairs(null: float, true: float, gap: float, levels: tuple[float, float]) -> int | None:
    power, alpha = levels
    reach = normal_quantile(1 - alpha) * null + normal_quantile(power) * true
    return None if reach >= abs(gap) * _MOST_PROMPTS else max(1, math.ceil((reach / gap) ** 2))
