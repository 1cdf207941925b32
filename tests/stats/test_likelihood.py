"""The profiled likelihood of the linear mixed model, against the density of the data that it stands for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import multivariate_normal

from quantverdict.stats.regression import best_intercept, crossproducts, log_likelihood


def made(seed, spread, n_groups=5):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), rng.integers(3, 9, n_groups))
    x = rng.normal(size=len(groups))
    y = 0.5 * x + rng.normal(scale=spread, size=n_groups)[groups] + rng.normal(size=len(groups))
    return x, y, groups


def density(x, y, groups, factor):
    """The log density of y at the best fixed effects and residual variance, by its whole covariance matrix."""
    design = np.column_stack([np.ones_like(x), x])
    random = design[:, : len(factor)]
    same = groups[:, None] == groups[None, :]
    covariance = np.eye(len(y)) + same * (random @ factor @ factor.T @ random.T)
    inverse = np.linalg.inv(covariance)
    fixed = np.linalg.solve(design.T @ inverse @ design, design.T @ inverse @ y)
    rest = y - design @ fixed
    variance = float(rest @ inverse @ rest) / len(y)
    return multivariate_normal.logpdf(y, design @ fixed, variance * covariance)


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.floats(0, 3))
def test_the_likelihood_with_random_intercepts_is_the_density_of_the_data(seed, root):
    x, y, groups = made(seed, 1.0)
    factor = np.array([[root]])
    found = float(log_likelihood(crossproducts(x, y, list(groups)), factor))
    assert found == pytest.approx(density(x, y, groups, factor), rel=1e-8)


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.tuples(*[st.floats(-2, 2)] * 3))
def test_the_likelihood_with_random_slopes_is_the_density_of_the_data(seed, entries):
    x, y, groups = made(seed, 1.0)
    factor = np.array([[entries[0], 0.0], [entries[1], entries[2]]])
    found = float(log_likelihood(crossproducts(x, y, list(groups)), factor))
    assert found == pytest.approx(density(x, y, groups, factor), rel=1e-8)


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.2, 1.0, 30.0]))
def test_the_best_intercept_is_no_lower_than_any_other_share(seed, spread):
    """On a grid of its own over the share of variance between groups, and by an optimiser of scipy."""
    x, y, groups = made(seed, spread)
    data = crossproducts(x, y, list(groups))

    def at(share):
        return float(log_likelihood(data, np.array([[np.sqrt(share / (1 - share))]])))

    best = float(log_likelihood(data, best_intercept(data)))
    others = [at(share) for share in np.linspace(0, 0.999, 300)]
    others.append(-minimize_scalar(lambda share: -at(share), bounds=(0, 1 - 1e-9), method="bounded").fun)
    assert best >= max(others) - 1e-7


@settings(max_examples=15)
@given(st.integers(0, 2**32), st.sampled_from([0.3, 1.0, 30.0]))
def test_the_best_intercept_is_exact_to_six_digits(seed, spread):
    """Brent's method of scipy, from where the search ended: the derivative of the likelihood is 0 there."""
    x, y, groups = made(seed, spread, n_groups=9)
    data = crossproducts(x, y, list(groups))
    root = float(best_intercept(data)[0, 0])
    if root > 1e-3:
        step = 1e-3 * root
        ends = [float(log_likelihood(data, np.array([[root + way * step]]))) for way in (-1, 0, 1)]
        slope, bend = (ends[2] - ends[0]) / 2, ends[2] - 2 * ends[1] + ends[0]
        assert abs(slope / bend) * 1e-3 < 2e-6, "where a parabola through three points has its top"
