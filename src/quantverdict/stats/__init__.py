"""Arrays in, small named results out."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from operator import add


def plain_sum(values: Iterable[float]) -> float:
    """Floats added one after another, as `sum` did before Python 3.12.

    Since then it carries along what rounding loses: the last digit of a result would depend on the version.
    """
    return reduce(add, values, 0)
