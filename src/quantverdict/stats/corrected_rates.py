"""Rates corrected by a labelled sample: an instrument's labels on everything, a person's on a known part.

The estimator is Tenenbein's double sampling (1970, JASA 65:1350): in each stratum (what the instruments said) the
person's rate among the labelled, weighted by the stratum's share of all answers. It is prediction-powered inference
(PPI++, Angelopoulos, Duchi & Zrnic 2023) whose predictor is the stratum's labelled mean, so that its rectifier is 0.
A rate has Wilson's interval and a difference Tango's, both at the effective number of answers (Korn & Graubard 1998,
Survey Methodology 24:193): defined where nothing is seen, and Wilson's and Tango's own where everything is labelled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantverdict.stats import plain_sum
from quantverdict.stats.distributions import critical_z, t_quantile
from quantverdict.stats.intervals import Interval
from quantverdict.stats.paired import tango_interval

SMOOTHING = 0.5
"""Labels of each kind that are added where a variance is judged, not where a rate is.

A few labels without an error do not show that there are none. Half of one of each is Jeffreys' prior of a rate, and
what Agresti & Min (2005, Stat Med 24:729) add to each of the four cells of matched pairs.
"""


@dataclass(frozen=True, slots=True)
class Stratum:
    """Answers alike in all that is known of them without a person; those labelled are a random part of them.

    Attributes:
        size: answers, labelled or not.
        labelled: those with a label, `unclear` of them outside of every rate.
        positive: labelled answers that have what is counted.
        guess: the rate that stands in where nothing is labelled; the interval then allows for any.
        known: no answer can have what is counted, which needs no label.
    """

    size: int
    labelled: int
    positive: int
    unclear: int = 0
    guess: float = 0.5
    known: bool = False

    @property
    def clear(self) -> int:
        return self.labelled - self.unclear

    @property
    def mass(self) -> float:
        """Answers that are expected to be clear."""
        return self.size * self.clear / self.labelled if self.labelled else float(self.size)

    @property
    def rate(self) -> float:
        if self.known:
            return 0.0
        return self.positive / self.clear if self.clear else self.guess

    @property
    def smoothed(self) -> float:
        return 0.0 if self.known else (self.positive + SMOOTHING) / (self.clear + 2 * SMOOTHING)

    @property
    def unseen(self) -> float:
        """1 / labelled - 1 / size: what sampling within the stratum adds to the variance of its mean, by its spread."""
        if self.labelled == 0:
            return 1.0
        return (1 / max(self.clear, 1) - 1 / self.size) if self.labelled < self.size else 0.0


@dataclass(frozen=True, slots=True)
class CorrectedRate:
    """A rate, or a difference of rates, as a person would have given it.

    Attributes:
        n_effective: answers labelled by a person that would tell as much.
    """

    value: float
    lo: float
    hi: float
    n_effective: float


def corrected_rate(
    strata: Sequence[Stratum], confidence: float = 0.95, *, design_effect: float = 1.0
) -> CorrectedRate | None:
    """A person's rate over all answers, for prompts like these.

    Variance relative to that of a rate of as many labelled answers:
    1 + N sum w_h^2 s_h^2 (1/n_h - 1/N_h) / (p (1 - p)), w_h = N_h / N, with smoothed s_h and p.

    Args:
        strata: of every answer.
        confidence: of the interval.
        design_effect: by how much clusters of prompts inflate the variance.

    Returns:
        None where nothing is labelled, or nothing clearly.
    """
    total = plain_sum(stratum.mass for stratum in strata)
    if total == 0 or not any(stratum.clear for stratum in strata):
        return None
    shares = [stratum.mass / total for stratum in strata]
    rate = plain_sum(share * stratum.rate for share, stratum in zip(shares, strata, strict=True))
    likely = plain_sum(share * stratum.smoothed for share, stratum in zip(shares, strata, strict=True))
    sampling = plain_sum(
        share**2 * stratum.smoothed * (1 - stratum.smoothed) * stratum.unseen
        + _domain(stratum, stratum.rate - rate, total)
        for share, stratum in zip(shares, strata, strict=True)
    )
    inflation = 1 + total * sampling / (likely * (1 - likely)) if 0 < likely < 1 else 1.0
    n = total / (inflation * max(design_effect, 1.0))
    around = wilson_at(min(max(rate, 0.0), 1.0), n, confidence)
    return CorrectedRate(rate, around.lo, around.hi, n)


def _domain(stratum: Stratum, off: float, total: float) -> float:
    """What not knowing how many answers are clear adds: variance of a ratio's denominator, linearised.

    Args:
        stratum: `off` from the mean of all.
        total: answers expected to be clear.
    """
    if stratum.labelled == 0:
        return 0.0
    clear = stratum.clear / stratum.labelled
    weight = stratum.size / total * off
    return weight**2 * clear * (1 - clear) * stratum.unseen


def corrected_difference(
    gained: Sequence[Stratum], lost: Sequence[Stratum], confidence: float = 0.95, *, design_effect: float = 1.0
) -> CorrectedRate | None:
    """Rate of the pairs that gained less that of the pairs that lost, over the same pairs.

    Tango's score interval (`paired.tango_interval`) at an effective number of pairs, inflated as in `corrected_rate`
    but by the variance of the difference itself, up + down - (up - down)^2, in each stratum and overall. Few labels
    make that variance uncertain, which Student's t at Satterthwaite's degrees of freedom allows for.

    Args:
        gained, lost: the same strata of pairs; `positive` counts pairs where the build alone, or the baseline alone,
            has what is counted.
        confidence, design_effect: as for `corrected_rate`.
    """
    pairs = list(zip(gained, lost, strict=True))
    total = plain_sum(stratum.mass for stratum in gained)
    if total == 0 or not any(stratum.clear for stratum in gained):
        return None
    shares = [stratum.mass / total for stratum in gained]
    up, down = (
        plain_sum(share * stratum.rate for share, stratum in zip(shares, side, strict=True)) for side in (gained, lost)
    )
    likely = _likely_changes(pairs)
    sampling = [
        share**2 * _spread(*rates) * one.unseen + _domain(one, one.rate - other.rate - up + down, total)
        for share, rates, (one, other) in zip(shares, likely, pairs, strict=True)
    ]
    spread = _spread(
        *(plain_sum(share * rates[way] for share, rates in zip(shares, likely, strict=True)) for way in (0, 1))
    )
    variance = spread / total + plain_sum(sampling)
    n = spread / variance if spread else total
    # One more than the labels less 1: the label that each stratum was lent counts.
    uncertain = plain_sum(part**2 / one.clear for part, one in zip(sampling, gained, strict=True) if one.clear)
    n /= max(design_effect, 1.0) * few(variance**2 / uncertain if uncertain else math.inf, confidence)
    around = tango_interval(up * n, down * n, n, confidence)
    return CorrectedRate(up - down, around.lo, around.hi, n)


def _likely_changes(pairs: Sequence[tuple[Stratum, Stratum]]) -> list[tuple[float, float]]:
    """The rates of pairs that gained and lost by which variances are judged.

    Pairs on which instruments agree seldom change, so that `SMOOTHING` in each stratum would make up most of its
    changes. Each stratum that is labelled in part is lent one label of what those strata have together (a unit
    information prior, Kass & Wasserman 1995, JASA 90:928), and only that mean is smoothed.
    """
    in_part = [pair for pair in pairs if not pair[0].known and pair[0].labelled < pair[0].size]
    labels = plain_sum(one.clear for one, _ in in_part) + 4 * SMOOTHING
    lent = [(plain_sum(pair[way].positive for pair in in_part) + SMOOTHING) / labels for way in (0, 1)]
    found = []
    for pair in pairs:
        one = pair[0]
        if one.known or one.labelled == one.size:
            found.append((pair[0].rate, pair[1].rate))
        elif one.clear == 0:
            found.append((0.5, 0.5))
        else:
            up, down = ((side.positive + rate) / (side.clear + 1) for side, rate in zip(pair, lent, strict=True))
            found.append((up, down))
    return found


def _spread(up: float, down: float) -> float:
    """Variance of the change of one pair, which is 1, -1 or 0."""
    return max(up + down - (up - down) ** 2, 0.0)


def few(dof: float, confidence: float = 0.95) -> float:
    """What a variance judged with few degrees of freedom is multiplied by: (t / z)^2; below 1 they count as 1."""
    if math.isinf(dof):
        return 1.0
    return (t_quantile(0.5 + confidence / 2, max(dof, 1.0)) / critical_z(confidence)) ** 2


def wilson_at(rate: float, n: float, confidence: float = 0.95) -> Interval:
    """`intervals.wilson` for any share of an effective number of answers, which need not be whole.

    Raises:
        ValueError: `rate` is no share, or `n` is not above 0.
    """
    if not 0 <= rate <= 1 or n <= 0:
        raise ValueError(f"{rate} of {n} is not a proportion")
    z = critical_z(confidence)
    centre = (rate * n + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(n * rate * (1 - rate) + z * z / 4)
    return Interval(0.0 if rate == 0 else centre - half, 1.0 if rate == 1 else centre + half)


def kish(weights: Sequence[float]) -> float:
    """Answers of equal weight that tell as much as weighted ones: (sum w)^2 / sum w^2 (Kish 1965); 0 for none."""
    return plain_sum(weights) ** 2 / plain_sum(weight**2 for weight in weights) if any(weights) else 0.0
