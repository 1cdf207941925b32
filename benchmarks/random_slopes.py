"""How often the search for random slopes ends below one from a dense grid of starts, on random groups.

python benchmarks/random_slopes.py [--fits 600] [--seed 1]
"""

from __future__ import annotations

import argparse
import json
from itertools import product

import numpy as np

from quantverdict.stats import regression
from quantverdict.stats.regression import Crossproducts, crossproducts, log_likelihood, unbounded

SPREADS, GROUPS = ((0.0, 0.5, 10.0), (0.0, 0.3, 3.0)), (3, 4, 5, 6, 10)
"""Of intercepts and of slopes, where the residual's is 1; and how many groups there are."""
LEVELS, TILTS = (0.05, 0.15, 0.4, 1.0, 3.0, 9.0, 27.0), (-0.99, -0.6, 0.0, 0.6, 0.99)
NEAR = 1e-7


def drawn(rng: np.random.Generator) -> Crossproducts:
    """Some points in groups; the slope and the residual are always there."""
    groups = int(rng.choice(GROUPS))
    sizes = rng.integers(3, 10, groups)
    within, (intercepts, steeper) = np.repeat(np.arange(groups), sizes), map(rng.choice, SPREADS)
    x = rng.normal(size=len(within)) + rng.normal(size=groups)[within]
    y = 0.5 * x + rng.normal(scale=intercepts, size=groups)[within] + rng.normal(size=len(within))
    y += x * rng.normal(scale=steeper, size=groups)[within]
    return crossproducts((x - x.mean()) / x.std(), (y - y.mean()) / y.std(), list(within))


def dense(fits: list[Crossproducts]) -> np.ndarray:
    """The highest likelihood of each fit from every start of the grid."""
    starts = np.array([(a, b * t, b * np.sqrt(1 - t * t)) for a, b, t in product(LEVELS, LEVELS, TILTS)])
    data = regression._stacked(fits).of(np.repeat(np.arange(len(fits)), len(starts)))
    ends = regression._newton(data, regression._climb(data, np.tile(starts, (len(fits), 1))))
    return regression._look(data, ends)[0].reshape(len(fits), -1).max(axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fits", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    rng, fits = np.random.default_rng(asked.seed), list[Crossproducts]()
    while len(fits) < asked.fits:
        one = drawn(rng)
        if not unbounded(one, random_slope=True):
            fits.append(one)
    found = [float(log_likelihood(*pair)) for pair in zip(fits, regression.best_slopes(fits), strict=True)]
    short = dense(fits) - found
    print(json.dumps({"fits": len(fits), "below": int((short > NEAR).sum()), "worst": float(short.max())}))


if __name__ == "__main__":
    main()
