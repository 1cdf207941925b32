"""An instrument held to labels of people: agreement, kappa, sensitivity and specificity.

Sensitivity is the share of what people say has it (refuses, is true, is unbiased) that the instrument says so of, and
specificity the share of the rest that it does not. What people call unclear takes part in agreement and kappa alone; an
instrument that calls an answer unclear has not said that it has it. Where the labels are choices, sensitivity is of the
answers that make one, how many are read rightly, and specificity of those that make none, how many are read as none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from quantverdict.stats.correlation import Agreement, cohen_kappa
from quantverdict.stats.intervals import Interval, wilson

HAS, LACKS, NO_CHOICE = "1", "0", "none"
"""What a label counts; anything else counts nowhere. Of choices: that none is made."""
CONFIDENCE = 0.95


class Share(NamedTuple):
    """So many of so many."""

    k: int
    n: int

    @property
    def interval(self) -> Interval | None:
        """Wilson's, at 95 %; None of nothing."""
        return wilson(self.k, self.n, CONFIDENCE) if self.n else None

    def as_json(self) -> dict[str, float | None]:
        """For `--json`."""
        around = self.interval
        value = self.k / self.n if self.n else None
        lo, hi = (None, None) if around is None else (around.lo, around.hi)
        return {"k": self.k, "n": self.n, "value": value, "ci_lo": lo, "ci_hi": hi}


@dataclass(frozen=True, slots=True)
class Comparison:
    """An instrument against people.

    Attributes:
        found: agreement and kappa, with their 95 % intervals.
    """

    found: Agreement
    sensitivity: Share
    specificity: Share

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        found = self.found
        around = (found.agreement_interval, found.kappa_interval)
        raw, beyond = ((None, None) if one is None else (one.lo, one.hi) for one in around)
        return {
            "n": found.n,
            "agreement": found.agreement,
            "ci_lo": raw[0],
            "ci_hi": raw[1],
            "kappa": found.kappa,
            "kappa_ci_lo": beyond[0],
            "kappa_ci_hi": beyond[1],
            "reason": found.reason,
            "sensitivity": self.sensitivity.as_json(),
            "specificity": self.specificity.as_json(),
        }


def compared(pairs: Sequence[tuple[str, str]], *, choices: bool = False) -> Comparison:
    """An instrument's labels against those of people.

    Args:
        pairs: what each (person, instrument) label counts: `HAS`, `LACKS` or another word; of choices the choice.
        choices: whether they are choices.
    """
    if choices:
        right = [person == said for person, said in pairs if person != NO_CHOICE]
        left = [said == NO_CHOICE for person, said in pairs if person == NO_CHOICE]
    else:
        right = [said == HAS for person, said in pairs if person == HAS]
        left = [said != HAS for person, said in pairs if person == LACKS]
    return Comparison(cohen_kappa(pairs, CONFIDENCE), Share(sum(right), len(right)), Share(sum(left), len(left)))
