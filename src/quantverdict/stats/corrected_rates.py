"""Rates corrected by a labelled sample: an instrument's labels on everything, a person's on a known part.

The estimator is Tenenbein's double sampling (1970, JASA 65:1350): in each stratum (what the instruments said) the
person's rate among the labelled, weighted by the stratum's share of all answers. It is prediction-powered inference
(PPI++, Angelopoulos, Duchi & Zrnic 2023) whose predictor is the stratum's labelled mean, so that its rectifier is 0.
The interval is Wilson's at the effective number of answers (Korn & Graubard 1998, Survey Methodology 24:193), which is
defined at 0 and 1, and is Wilson's own where everything is labelled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantverdict.stats.distributions import critical_z
from quantverdict.stats.intervals import Interval

SMOOTHING = 0.75
"""Labels of each kind that are added where a stratum's variance is judged, not where its rate is.

A few labels without an error do not show that there are none. Of the values tried in `benchmarks/corrected_rates.py`
the smallest with which no interval covers less than 94 %.
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
class Corrected:
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
) -> Corrected | None:
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
    total = sum(stratum.mass for stratum in strata)
    if total == 0 or not any(stratum.clear for stratum in strata):
        return None
    shares = [stratum.mass / total for stratum in strata]
    rate = sum(share * stratum.rate for share, stratum in zip(shares, strata, strict=True))
    likely = sum(share * stratum.smoothed for share, stratum in zip(shares, strata, strict=True))
    sampling = sum(
        share**2 * stratum.smoothed * (1 - stratum.smoothed) * stratum.unseen + _domain(stratum, rate, total)
        for share, stratum in zip(shares, strata, strict=True)
    )
    inflation = 1 + total * sampling / (likely * (1 - likely)) if 0 < likely < 1 else 1.0
    n = total / (inflation * max(design_effect, 1.0))
    around = wilson_at(min(max(rate, 0.0), 1.0), n, confidence)
    return Corrected(rate, around.lo, around.hi, n)


def _domain(stratum: Stratum, rate: float, total: float) -> float:
    """What not knowing how many answers are clear adds: variance of a ratio's denominator, linearised."""
    if stratum.labelled == 0:
        return 0.0
    clear = stratum.clear / stratum.labelled
    weight = stratum.size / total * (stratum.rate - rate)
    return weight**2 * clear * (1 - clear) * stratum.unseen


def corrected_difference(
    gained: Sequence[Stratum], lost: Sequence[Stratum], confidence: float = 0.95, *, design_effect: float = 1.0
) -> Corrected | None:
    """Rate of the pairs that gained less that of the pairs that lost, over the same pairs.

    Square-and-add of the two intervals with the correlation of two kinds of one multinomial (Newcombe 1998, Stat Med
    17:2635, method 10; Zou & Donner 2008, Stat Med 27:1693).

    Args:
        gained, lost: the same strata of pairs; `positive` counts pairs where the build alone, or the baseline alone,
            has what is counted.
        confidence, design_effect: as for `corrected_rate`.
    """
    up = corrected_rate(gained, confidence, design_effect=design_effect)
    down = corrected_rate(lost, confidence, design_effect=design_effect)
    if up is None or down is None:
        return None
    value = up.value - down.value
    correlation = -math.sqrt(_odds(up.value) * _odds(down.value))
    lo = value - _add(up.value - up.lo, down.hi - down.value, correlation)
    hi = value + _add(up.hi - up.value, down.value - down.lo, correlation)
    return Corrected(value, max(lo, -1.0), min(hi, 1.0), min(up.n_effective, down.n_effective))


def _odds(rate: float) -> float:
    return rate / (1 - rate) if rate < 1 else 0.0


def _add(one: float, two: float, correlation: float) -> float:
    return math.sqrt(one**2 + two**2 - 2 * max(correlation, -1.0) * one * two)


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
    return sum(weights) ** 2 / sum(weight**2 for weight in weights) if any(weights) else 0.0
