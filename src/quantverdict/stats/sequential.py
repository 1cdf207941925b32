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

_STAKES = np.array([0.01, 0.02, 0.04, 0.07, 0.12, 0.2, 0.32, 0.48, 0.68, 0.9, 1.0])
"""Shares of the capital that are staked, each on an equal part of it: as good as the best of them but for log 11."""
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
        self._values = np.empty(0)
        self._lo, self._hi = -1.0, 1.0

    def __len__(self) -> int:
        return len(self._values)

    def update(self, differences: npt.ArrayLike) -> Interval:
        """Take further losses in the order in which they were asked, and return the interval so far: it only narrows.

        Raises:
            ValueError: a value outside [-1, 1], or more than the population has.
        """
        values = np.atleast_1d(np.asarray(differences, dtype=np.float64))
        if values.ndim != 1 or not (np.abs(values) <= 1).all():
            raise ValueError("losses from -1 to 1 are expected")
        if self.population is not None and len(self._values) + len(values) > self.population:
            raise ValueError(f"more than the {self.population} values of the population")
        self._values = np.concatenate([self._values, values])
        bound = float(np.log(2 / self.alpha))
        least, most = self._possible()
        lo, hi = max(self._lo, least), min(self._hi, most)
        self._lo = _edge(lambda mean: self._log_capital(mean, 1) >= bound, lo, hi)
        self._hi = _edge(lambda mean: self._log_capital(mean, -1) >= bound, hi, lo)
        return Interval(self._lo, self._hi)

    def p_values(self, margin: float) -> tuple[float, float]:
        """P-values of H0: mean >= margin (`non_inferior`) and H0: mean <= margin (`inferior`), as of now.

        The reciprocals of the gamblers' capital: valid at any one time, chosen by whatever was seen till then.
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
        """Log capital of who bets on values above `mean` (side 1), or below it (side -1).

        A stake f of the most that can be bet multiplies the capital by 1 - f + f (1 + x) / (1 + m): never below 0, and
        1 on average. m is the mean of what is left, where values are drawn without replacement.
        """
        values = self._values
        if len(values) == 0:
            return 0.0
        left: float | FloatArray = mean
        if self.population is not None:
            before = np.concatenate([[0.0], np.cumsum(values)[:-1]])
            left = (self.population * mean - before) / (self.population - np.arange(len(values)))
        odds = (1 + side * values) / np.maximum(1 + side * np.asarray(left), _LEAST)
        with np.errstate(divide="ignore"):
            logs = np.log1p(_STAKES[:, None] * (odds - 1)).sum(axis=1)
        return float(np.logaddexp.reduce(logs) - np.log(len(_STAKES)))


def _edge(refused: Callable[[float], bool], outside: float, inside: float) -> float:
    """The mean between the two at which refusal ends, on its refused side; `outside` where none is refused."""
    if not refused(outside):
        return outside
    while abs(inside - outside) > _PRECISION:
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if refused(middle) else (middle, outside)
    return outside
