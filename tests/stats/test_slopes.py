"""The search for the highest likelihood with random slopes, against the likelihood itself and other optimisers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from quantverdict.stats import regression
from quantverdict.stats.regression import (
    best_intercept,
    crossproducts,
    log_likelihood,
    mixed_effects,
    mixed_effects_of_each,
    unbounded,
)


def made(seed, spread, slope_spread, n_groups=5):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, 10, n_groups)
    groups = np.repeat(np.arange(n_groups), sizes)
    x = rng.normal(size=len(groups)) + np.repeat(rng.normal(size=n_groups), sizes)
    y = 0.5 * x + np.repeat(rng.normal(scale=spread, size=n_groups), sizes) + rng.normal(size=len(groups))
    y += x * np.repeat(rng.normal(scale=slope_spread, size=n_groups), sizes)
    return (y - y.mean()) / y.std(), (x - x.mean()) / x.std(), list(groups)


def triangle(entries):
    return np.array([[entries[0], 0.0], [entries[1], entries[2]]])


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.tuples(*[st.floats(-20, 20)] * 3))
def test_the_closed_forms_are_the_likelihood_and_its_gradient(seed, entries):
    y, x, groups = made(seed, 1.0, 1.0)
    data = crossproducts(x, y, groups)
    root = np.array([entries])
    value, slope = regression._slope(regression._stacked([data]), root)
    assert value[0] == pytest.approx(float(log_likelihood(data, triangle(entries))), rel=1e-9)
    steps = 1e-5 * np.eye(3)
    ahead, behind = (
        np.array([float(log_likelihood(data, triangle(root[0] + sign * step))) for step in steps]) for sign in (1, -1)
    )
    assert slope[0] == pytest.approx((ahead - behind) / 2e-5, rel=1e-4, abs=1e-4)


@settings(max_examples=12)
@example(336353, 0.5, 0.0)  # the best points of a coarse grid all lead to a lower end
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.5, 10.0]), st.sampled_from([0.0, 0.3, 3.0]))
def test_no_optimiser_of_scipy_ends_higher(seed, spread, slope_spread):
    """Interior, correlation of 1, no variance at all: the same bound from six random starts of two methods."""
    y, x, groups = made(seed, spread, slope_spread)
    data = crossproducts(x, y, groups)
    assert not unbounded(data, random_slope=True)
    (best,) = regression.best_slopes([data])
    reached = float(log_likelihood(data, best))
    assert reached >= float(log_likelihood(data, best_intercept(data))) - 1e-9
    rng = np.random.default_rng(seed)
    for method in ("BFGS", "Nelder-Mead"):
        for start in rng.normal(size=(3, 3)) * 2:
            other = minimize(lambda entries: -float(log_likelihood(data, triangle(entries))), start, method=method)
            assert reached >= -other.fun - 1e-7


def test_a_climb_never_falls():
    """ECME alone from a poor start: no step lowers the likelihood (that is what the method promises)."""
    y, x, groups = made(3, 2.0, 1.0)
    data = regression._stacked([crossproducts(x, y, groups)])
    root, before = np.array([[5.0, 1.0, 5.0]]), -np.inf
    for _ in range(10):
        value = regression._look(data, root)[0][0]
        assert value >= before - 1e-10
        before, root = value, regression._climb(data, root)


def test_a_fit_is_the_same_whatever_is_fitted_beside_it():
    samples = [made(seed, 1.0, 0.5, n_groups=3 + seed) for seed in range(4)]
    together = mixed_effects_of_each(samples, random_slope=True)
    for fit, sample in zip(together, samples, strict=True):
        alone = mixed_effects(*sample, random_slope=True)
        assert (fit.coef, fit.log_likelihood) == pytest.approx((alone.coef, alone.log_likelihood), rel=1e-7)
        assert fit.at_boundary == alone.at_boundary


def test_points_without_a_fit_keep_their_place_among_the_others():
    good = made(1, 1.0, 0.5)
    flat = ([1.0, 2.0, 3.0, 4.0], [2.0] * 4, ["a", "a", "b", "b"])
    fits = mixed_effects_of_each([flat, good, flat], random_slope=True)
    assert [fit.reason for fit in fits] == ["x does not vary", "", "x does not vary"]
    assert mixed_effects_of_each([flat], random_slope=True)[0].coef is None


def test_two_groups_are_at_the_boundary_and_it_is_said():
    """They lie apart along one line: the correlation of their random effects is estimated as 1 or -1."""
    y, x, groups = made(5, 3.0, 2.0, n_groups=2)
    fit = mixed_effects(y, x, groups, random_slope=True)
    assert fit.at_boundary
    (best,) = regression.best_slopes([crossproducts(x, y, groups)])
    assert abs(best[1, 1]) < 1e-4 * abs(best[1, 0])


def test_levels_of_the_grid_about_double_and_tilts_are_mirrored():
    """No hill of the likelihood in the logarithm of a spread, or in the correlation, lies between two of its points."""
    ratios = [after / before for before, after in pairwise(regression._LEVELS)]
    assert ratios == pytest.approx([2.0] * 9, abs=0.04)
    assert (regression._LEVELS[0], regression._LEVELS[-1]) == (0.05, 26)
    assert tuple(-tilt for tilt in reversed(regression._TILTS)) == regression._TILTS
    assert list(regression._TILTS) == sorted(regression._TILTS)
    assert regression._TILTS[4:] == (0, 0.4, 0.8, 0.97, 1)


def test_peaks_are_no_lower_than_their_neighbours_along_any_axis():
    heights = np.random.default_rng(0).integers(0, 4, (2, 4, 5, 3)).astype(float)
    found = regression._peaks(heights)
    for fit, *at in np.ndindex(heights.shape):
        near = [tuple(np.add(at, step)) for axis in np.eye(3, dtype=int) for step in (axis, -axis)]
        inside = [one for one in near if all(0 <= i < n for i, n in zip(one, heights.shape[1:], strict=True))]
        assert found[(fit, *at)] == all(heights[(fit, *at)] >= heights[(fit, *one)] for one in inside)


def test_the_peaks_that_are_followed_are_the_highest_of_the_grid_and_then_its_highest_points():
    y, x, groups = made(336353, 0.5, 0.0)
    data = crossproducts(x, y, groups)
    found = regression._promising(regression._stacked([data]))[0]
    assert len(found) == 12
    levels, tilts = regression._LEVELS, regression._TILTS
    grid = np.array([[[(a, b * t, b * np.sqrt(1 - t * t)) for t in tilts] for b in levels] for a in levels])
    heights = np.array([float(log_likelihood(data, triangle(point))) for point in grid.reshape(-1, 3)])
    peaks = regression._peaks(heights.reshape(1, 10, 10, 9)).ravel()
    order = sorted(range(900), key=lambda at: (not peaks[at], -heights[at]))[:12]
    assert [float(log_likelihood(data, triangle(one))) for one in found] == pytest.approx(heights[order], rel=1e-9)


def test_a_root_gives_its_covariance_back_and_clips_what_is_none():
    root = np.array([[0.7, -0.3, 0.4], [0.0, 0.0, 0.5], [1.2, 0.8, 0.0]])
    assert np.allclose(regression._root(*regression._covariance(root)), root)
    d11, d12, d22 = np.array([-1e-9, 1.0]), np.array([0.0, 2.0]), np.array([0.25, 3.9])
    assert np.allclose(regression._root(d11, d12, d22), [[0, 0, 0.5], [1, 2, 0]])


def test_newtons_method_ends_where_the_gradient_is_nothing():
    for seed in range(4):
        y, x, groups = made(seed, 1.5, 0.7, n_groups=8)
        data = regression._stacked([crossproducts(x, y, groups)])
        end = regression._newton(data, np.array([[1.0, 0.2, 0.5]]))
        assert np.abs(regression._slope(data, end)[1]).max() < 1e-3
        assert regression._look(data, end)[0] >= regression._look(data, np.array([[1.0, 0.2, 0.5]]))[0]
