"""An anytime-valid confidence sequence for a paired loss, by betting (Waudby-Smith & Ramdas 2024, JRSS B 86:1)."""

from __future__ import annotations

import numpy.typing as npt

from quantverdict.stats.intervals import Interval


class ConfidenceSequence:
    """Interval of a mean of values in [-1, 1] that holds at all times at once with probability 1 - alpha.

    Args:
        alpha: two-sided level, half of it for each limit.
        population: size of the finite set that values are drawn from without replacement, for the mean of that set;
            None for the mean of what the values are a sample of, the question that a run of all prompts answers too.
    """

    def __init__(self, alpha: float = 0.05, population: int | None = None) -> None:
        self.alpha, self.population = alpha, population

    def update(self, differences: npt.ArrayLike) -> Interval:
        """Take further losses in the order in which they were asked, and return the interval so far."""
        raise NotImplementedError

    def p_values(self, margin: float) -> tuple[float, float]:
        """Anytime-valid p-values of H0: mean >= margin (`non_inferior`) and H0: mean <= margin (`inferior`)."""
        raise NotImplementedError
