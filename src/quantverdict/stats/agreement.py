"""Two judges labelling the same samples: raw agreement and Cohen's kappa."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from quantverdict.stats.distributions import critical_z
from quantverdict.stats.intervals import Interval, wilson


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two judges agree.

    Attributes:
        n: samples that both labelled.
        agreement: share with equal labels, None where n = 0; `agreement_interval` is Wilson's.
        kappa: agreement beyond chance, 1 at most; None where `reason` says why.
        se: large-sample standard error of kappa.
        kappa_interval: kappa -+ z se, cut at -1 and 1.
    """

    n: int
    agreement: float | None = None
    agreement_interval: Interval | None = None
    kappa: float | None = None
    se: float | None = None
    kappa_interval: Interval | None = None
    reason: str = ""


def cohen_kappa(
    pairs: Iterable[tuple[str, str]] | Mapping[tuple[str, str], int], confidence: float = 0.95
) -> Agreement:
    """Cohen's kappa (1960) of (first label, second label) pairs; standard error of Fleiss, Cohen & Everitt (1969).

    Args:
        pairs: every pair, or how often each occurs.
        confidence: of the intervals.
    """
    cells = Counter(pairs)
    n = sum(cells.values())
    if n == 0:
        return Agreement(0, reason="no sample has both labels")
    first: Counter[str] = Counter()
    second: Counter[str] = Counter()
    for (one, two), count in cells.items():
        first[one] += count
        second[two] += count
    same = sum(count for (one, two), count in cells.items() if one == two)
    observed, interval = same / n, wilson(same, n, confidence)
    chance_counts = sum(first[label] * second[label] for label in first)
    if chance_counts == n * n:
        return Agreement(n, observed, interval, reason="both judges gave one and the same label throughout")
    expected = chance_counts / (n * n)
    kappa = (observed - expected) / (1 - expected)
    on = sum(cells[label, label] * (n - (first[label] + second[label]) * (1 - kappa)) ** 2 for label in first)
    off = sum(count * (second[one] + first[two]) ** 2 for (one, two), count in cells.items() if one != two)
    variance = (on + (1 - kappa) ** 2 * off) / n**3 - (kappa - expected * (1 - kappa)) ** 2
    se = max(0.0, variance / n) ** 0.5 / (1 - expected)
    reach = critical_z(confidence) * se
    return Agreement(n, observed, interval, kappa, se, Interval(max(-1.0, kappa - reach), min(1.0, kappa + reach)))
