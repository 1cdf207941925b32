"""An anytime-valid confidence sequence for a paired loss, by betting (Waudby-Smith & Ramdas 2024, JRSS B 86:1).

For every mean m there is a gambler who bets that values lie above it, and one who bets that they lie below. Were m the
mean, neither's capital could ever reach k with a chance over 1 / k (Ville 1939). The means that have not made a gambler
rich are the interval, at all times at once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from quantverdict.stats.intervals import FloatArray, Interval

_STAKES = np.array([0.03, 0.1, 0.3, 0.6, 0.95])
_PURSE = np.log([0.1, 0.15, 0.2, 0.25, 0.3])
"""Shares of the capital that are staked, and how much of it at first goes to each: nearly as good as the best alone."""
_PRECISION = 1e-6
_LEAST = 1e-12


class ConfidenceSequence:
    """Interval of a mean of values in [-1, 1] that holds at all times at once with probability 1 - alpha.

    Args:
        alpha: two-sided level, half of it for each limit.
        population: size of the finite set that values are drawn from without replacement, for the mean of that set;
            None for the mean of what the values are a sample of, the question that a run of all prompts answers too.

    Raises:
        ValueError: a level or a size out of range.
    """

    def __init__(self, alpha: float = 0.05, population: int | None = None) -> None:
        if not 0 < alpha < 1 or (population is not None and population < 1):
            raise ValueError(f"level {alpha} of {population} values")
        self.alpha, self.population = alpha, population
        self._values, self._weights = np.empty(0), np.empty(0)
        self._ends: list[int] = []
        self._lo, self._hi = -np.inf, np.inf

    def __len__(self) -> int:
        return len(self._values)

    def update(self, differences: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Interval:
        """`add` further losses and return the interval so far: it only narrows."""
        self.add(differences, weights)
        bound = float(np.log(2 / self.alpha))
        least, most = self._possible()
        lo, hi = max(self._lo, least), min(self._hi, most)
        self._lo = _edge(lambda mean: self._log_capital(mean, 1) >= bound, lo, hi)
        self._hi = _edge(lambda mean: self._log_capital(mean, -1) >= bound, hi, lo)
        return Interval(self._lo, self._hi)

    def add(self, differences: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> None:
        """Take further losses in the order in which they were asked.

        Only after it is looked. Where values differ in kind (tasks, sizes of clusters), each call should have the same
        mix of them: what holds for values drawn alike then holds at its end, as a product of factors whose
        mean is 1 is at most 1.

        Args:
            differences: (n,), from -1 to 1; means, where a value stands for a cluster of prompts.
            weights: (n,), from above 0 to 1: the size of each cluster over that of the largest there is. The mean is
                then that over prompts.

        Raises:
            ValueError: a value or weight out of range, more values than the population has, or weights in one.
        """
        values = np.atleast_1d(np.asarray(differences, dtype=np.float64))
        sizes = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
        if values.shape != sizes.shape or not ((np.abs(values) <= 1) & (sizes > 0) & (sizes <= 1)).all():
            raise ValueError("losses from -1 to 1, with weights above 0 and at most 1, are expected")
        if self.population is not None and (weights is not None or len(self._values) + len(values) > self.population):
            raise ValueError(f"at most the {self.population} values of the population, without weights, are expected")
        self._values, self._weights = np.append(self._values, values), np.append(self._weights, sizes)
        if len(values):
            self._ends.append(len(self._values))

    def p_values(self, margin: float) -> tuple[float, float]:
        """P-values of H0: mean >= margin (`non_inferior`) and H0: mean <= margin (`inferior`), as of now.

        The reciprocals of the most that each gambler ever had after an `add`: valid whenever one chooses to stop.
        """
        least, most = self._possible()
        below = 0.0 if margin > most else float(np.exp(-max(self._log_capital(margin, -1), 0.0)))
        above = 0.0 if margin < least else float(np.exp(-max(self._log_capital(margin, 1), 0.0)))
        return below, above

    def _possible(self) -> tuple[float, float]:
        """What the mean of the population can still be."""
        if self.population is None:
            return -1.0, 1.0
        total, left = float(self._values.sum()), self.population - len(self._values)
        return (total - left) / self.population, (total + left) / self.population

    def _log_capital(self, mean: float, side: int) -> float:
        """Log of the most capital that a bet on values above `mean` (side 1), or below it (side -1), has had.

        A stake f of the most that can be bet multiplies the capital by 1 + w f ((1 + x) / (1 + m) - 1): never below 0,
        and 1 on average. m is the mean of what is left, where values are drawn without replacement.
        """
        values = self._values
        if len(values) == 0:
            return 0.0
        left: float | FloatArray = mean
        if self.population is not None:
            before = np.concatenate([[0.0], np.cumsum(values)[:-1]])
            left = (self.population * mean - before) / (self.population - np.arange(len(values)))
        odds = (1 + side * values) / np.maximum(1 + side * np.asarray(left), _LEAST)
        logs = np.log1p(_STAKES[:, None] * self._weights * (odds - 1)).cumsum(axis=1)
        capital = np.logaddexp.reduce(logs[:, np.array(self._ends) - 1] + _PURSE[:, None], axis=0)
        return float(capital.max())


def _edge(refused: Callable[[float], bool], outside: float, inside: float) -> float:
    """The mean between the two at which refusal ends, on its refused side; `outside` where none is refused."""
    if not refused(outside):
        return outside
    while abs(inside - outside) > _PRECISION:
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if refused(middle) else (middle, outside)
    return outside
