"""OLS against scipy, mixed models against statsmodels: no optimiser there may find a higher likelihood."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from quantverdict.stats import regression
from quantverdict.stats.regression import _singular, mixed_effects, ols


@given(st.integers(0, 2**32), st.integers(3, 60), st.floats(-1e3, 1e3))
def test_ols_is_scipys(seed, n, slope):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    y = slope * x + rng.normal(size=n) + 7
    ours, theirs = ols(x, y), scipy_stats.linregress(x, y)
    assert (ours.slope, ours.intercept) == pytest.approx((theirs.slope, theirs.intercept), rel=1e-8, abs=1e-8)
    assert ours.r_squared == pytest.approx(theirs.rvalue**2, rel=1e-9, abs=1e-12)
    if ours.r_squared < 1 - 1e-7:
        assert ours.p == pytest.approx(theirs.pvalue, rel=1e-5, abs=1e-12)
    assert ours.n == n


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([1, 2], [1, 2], "fewer than 3 points"),
        ([4, 4, 4], [1, 2, 3], "x does not vary"),
        ([1, 2, 3], [5, 5, 5], "y does not vary"),
    ],
)
def test_no_line_without_variation(x, y, reason):
    ours = ols(x, y)
    assert (ours.n, ours.slope, ours.intercept, ours.r_squared, ours.p) == (len(x), None, None, None, None)
    assert ours.reason == reason


def random_data(seed, n_groups, spread, slope_spread=0.0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 10, n_groups)
    groups = np.repeat([f"g{i}" for i in range(n_groups)], sizes)
    x = rng.normal(size=len(groups)) * rng.uniform(0.5, 20)
    y = rng.normal(scale=4) * x / 5 + np.repeat(rng.normal(scale=spread, size=n_groups), sizes)
    y = y + x * np.repeat(rng.normal(scale=slope_spread, size=n_groups), sizes) + rng.normal(size=len(groups)) * 3
    return pd.DataFrame({"y": y, "x": x, "group": groups})


def best_of_statsmodels(frame, random_slope=False):
    """The best finite fit of several optimisers (it reports an infinite likelihood for a fit stopped at variance 0)."""
    fits = []
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        model = smf.mixedlm("y ~ x", frame, groups="group", re_formula="~x" if random_slope else None)
        for method in ("bfgs", "cg", "powell", "nm"):
            try:
                fit = model.fit(reml=False, method=[method])
            except (np.linalg.LinAlgError, ValueError):
                continue
            if math.isfinite(fit.llf):
                fits.append(fit)
    return max(fits, key=lambda fit: fit.llf)


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(2, 8), st.sampled_from([0.0, 0.5, 2.0, 30.0]))
def test_random_intercept_likelihood_is_never_below_statsmodels(seed, n_groups, spread):
    frame = random_data(seed, n_groups, spread)
    ours, theirs = mixed_effects(frame.y, frame.x, list(frame.group)), best_of_statsmodels(frame)
    assert ours.reason == ""
    assert ours.log_likelihood >= theirs.llf - 1e-6
    if ours.log_likelihood - theirs.llf < 1e-7 and not ours.at_boundary:
        assert ours.coef == pytest.approx(theirs.params["x"], rel=1e-3, abs=1e-4)
        assert ours.se == pytest.approx(theirs.bse["x"], rel=1e-2)
        assert ours.p == pytest.approx(theirs.pvalues["x"], rel=2e-2, abs=1e-3)
        assert ours.group_variance == pytest.approx(theirs.cov_re.iloc[0, 0], rel=0.02, abs=1e-2)
        assert ours.residual_variance == pytest.approx(theirs.scale, rel=1e-2)


@settings(max_examples=6)
@given(st.integers(0, 2**32), st.integers(4, 7), st.sampled_from([0.0, 2.0]), st.sampled_from([0.0, 1.0]))
def test_random_slope_likelihood_is_never_below_statsmodels(seed, n_groups, spread, slope_spread):
    frame = random_data(seed, n_groups, spread, slope_spread)
    ours = mixed_effects(frame.y, frame.x, list(frame.group), random_slope=True)
    if ours.reason:
        assert frame.group.value_counts().max() <= 2
        return
    theirs = best_of_statsmodels(frame, random_slope=True)
    assert ours.log_likelihood >= theirs.llf - 1e-5
    assert ours.log_likelihood >= mixed_effects(frame.y, frame.x, list(frame.group)).log_likelihood - 1e-9


def test_random_slope_agrees_with_statsmodels_in_the_interior():
    frame = random_data(11, 12, 6.0, 2.0)
    ours = mixed_effects(frame.y, frame.x, list(frame.group), random_slope=True)
    theirs = best_of_statsmodels(frame, random_slope=True)
    assert ours.at_boundary is False
    assert (ours.coef, ours.se) == pytest.approx((theirs.params["x"], theirs.bse["x"]), rel=1e-3)
    assert ours.group_variance == pytest.approx(theirs.cov_re.iloc[0, 0], rel=1e-2)
    assert ours.slope_variance == pytest.approx(theirs.cov_re.iloc[1, 1], rel=1e-2)


def test_at_the_boundary_the_model_is_least_squares_by_maximum_likelihood():
    rng = np.random.default_rng(3)
    x = rng.normal(size=40)
    y = 2 * x + rng.normal(size=40)
    y -= np.repeat([y[i : i + 10].mean() for i in range(0, 40, 10)], 10)
    x -= np.repeat([x[i : i + 10].mean() for i in range(0, 40, 10)], 10)
    ours, line = mixed_effects(y, x, [i // 10 for i in range(40)]), scipy_stats.linregress(x, y)
    assert ours.at_boundary is True
    assert ours.group_variance == 0
    assert ours.coef == pytest.approx(line.slope)
    assert ours.se == pytest.approx(line.stderr * math.sqrt(38 / 40))


def test_two_maxima_are_both_climbed():
    """A grid of the likelihood over the whole range of the variance ratio holds no point above the fit."""
    for seed in range(18):
        frame = random_data(seed, 3, [0.0, 1.0, 5.0][seed % 3])
        ours = mixed_effects(frame.y, frame.x, list(frame.group))
        assert ours.log_likelihood >= naive_best(frame) - 1e-7


def naive_best(frame):
    best = -math.inf
    for ratio in np.concatenate([[0], np.logspace(-4, 4, 80)]):
        same = frame.group.to_numpy()[:, None] == frame.group.to_numpy()
        covariance = np.eye(len(frame)) + ratio * same
        inverse = np.linalg.inv(covariance)
        design = np.column_stack([np.ones(len(frame)), frame.x])
        fixed = np.linalg.solve(design.T @ inverse @ design, design.T @ inverse @ frame.y)
        rest = frame.y - design @ fixed
        scale = rest @ inverse @ rest / len(frame)
        log_det = np.linalg.slogdet(covariance)[1]
        best = max(best, -0.5 * (len(frame) * (math.log(2 * math.pi * scale) + 1) + log_det))
    return best


@pytest.mark.parametrize("random_slope", [False, True])
def test_units_and_offsets_do_not_change_the_inference(random_slope):
    frame = random_data(5, 6, 4.0, 0.5)
    groups = list(frame.group)
    plain = mixed_effects(frame.y, frame.x, groups, random_slope=random_slope)
    moved = mixed_effects(frame.y * 100 - 7e4, frame.x / 100, groups, random_slope=random_slope)
    assert moved.coef == pytest.approx(plain.coef * 1e4, rel=1e-4)
    assert moved.p == pytest.approx(plain.p, rel=1e-3)
    assert moved.group_variance == pytest.approx(plain.group_variance * 1e4, rel=1e-3)
    assert moved.log_likelihood == pytest.approx(plain.log_likelihood - len(groups) * math.log(100), abs=1e-6)


@pytest.mark.parametrize(
    ("y", "x", "groups", "reason"),
    [
        ([1, 2], [1, 2], ["a", "b"], "fewer than 3 points"),
        ([1, 2, 4, 3], [1, 2, 3, 4], ["a"] * 4, "fewer than 2 groups"),
        ([1, 2, 4], [1, 2, 5], ["a", "b", "c"], "too few points within groups"),
        ([1, 2, 4], [1, 2, 5], ["a", "a", "b"], "too few points within groups"),
        ([1, 2, 4, 3], [2, 2, 2, 2], ["a", "a", "b", "b"], "x does not vary"),
        ([1, 2, 3, 14, 15, 16], [1, 2, 3, 4, 5, 6], ["a", "a", "a", "b", "b", "b"], "too few points within groups"),
    ],
)
def test_no_fit_without_enough_to_fit(y, x, groups, reason):
    ours = mixed_effects(y, x, groups)
    assert reason in ours.reason
    assert (ours.coef, ours.p, ours.lo, ours.hi, ours.group_variance, ours.log_likelihood) == (None,) * 6


def test_a_predictor_that_varies_between_groups_only_is_fitted():
    rng = np.random.default_rng(8)
    x = np.repeat(rng.normal(size=8), 5)
    y = x + np.repeat(rng.normal(size=8), 5) + rng.normal(size=40)
    frame = pd.DataFrame({"y": y, "x": x, "group": np.repeat(range(8), 5)})
    ours, theirs = mixed_effects(y, x, list(frame.group)), best_of_statsmodels(frame)
    assert ours.log_likelihood >= theirs.llf - 1e-7
    assert (ours.coef, ours.se) == pytest.approx((theirs.params["x"], theirs.bse["x"]), rel=1e-3)


@pytest.mark.parametrize("offset", [0.0, 8.0])
def test_variances_are_those_at_the_origin_of_x(offset):
    """statsmodels fits x as it is: an intercept's variance is at x = 0, far from where the points are."""
    frame = random_data(11, 12, 6.0, 2.0)
    frame["x"] = frame.x / frame.x.std() + offset
    ours = mixed_effects(frame.y, frame.x, list(frame.group), random_slope=True, confidence=0.9)
    theirs = best_of_statsmodels(frame, random_slope=True)
    assert ours.log_likelihood == pytest.approx(theirs.llf, abs=1e-4)
    assert ours.group_variance == pytest.approx(theirs.cov_re.iloc[0, 0], rel=2e-2)
    assert ours.slope_variance == pytest.approx(theirs.cov_re.iloc[1, 1], rel=2e-2)
    assert ours.residual_variance == pytest.approx(theirs.scale, rel=1e-2)
    assert ours.p == pytest.approx(2 * scipy_stats.norm.sf(abs(ours.coef / ours.se)))
    reach = scipy_stats.norm.ppf(0.95) * ours.se
    assert (ours.lo, ours.hi) == pytest.approx((ours.coef - reach, ours.coef + reach))
    assert ours.n == len(frame)


def test_a_random_intercept_has_no_slope_variance_and_its_error_is_that_of_the_whole_information():
    """By second differences of the likelihood in slope, intercept, both variances: nothing is taken as known."""
    frame = random_data(4, 9, 5.0)
    groups, x, y = frame.group.to_numpy(), frame.x.to_numpy(), frame.y.to_numpy()
    ours = mixed_effects(y, x, list(groups))
    assert ours.slope_variance is None
    assert not ours.at_boundary
    same = groups[:, None] == groups

    def density(theta):
        covariance = math.exp(theta[2]) * same + math.exp(theta[3]) * np.eye(len(y))
        return scipy_stats.multivariate_normal.logpdf(y, theta[0] + theta[1] * x, covariance)

    weight = np.linalg.inv(ours.group_variance * same + ours.residual_variance * np.eye(len(y)))
    intercept = weight.sum(axis=0) @ (y - ours.coef * x) / weight.sum()
    best = np.array([intercept, ours.coef, math.log(ours.group_variance), math.log(ours.residual_variance)])
    steps = np.diag([1e-2, 1e-3, 1e-3, 1e-3])
    bend = np.array([
        [(density(best + a + b) - density(best + a - b) - density(best - a + b) + density(best - a - b))
         / (4 * a.sum() * b.sum()) for a in steps] for b in steps
    ])  # fmt: skip
    assert density(best) == pytest.approx(ours.log_likelihood, rel=1e-9)
    assert ours.se == pytest.approx(math.sqrt(np.linalg.inv(-bend)[1, 1]), rel=2e-3)


@pytest.mark.parametrize(
    ("covariance", "singular"),
    [
        ([[1e-8]], True),
        ([[1.01e-8]], False),
        ([[0.0]], True),
        ([[1.0, 0.0], [0.0, 1e-8]], True),
        ([[2.0, 0.0], [0.0, 1.01e-8]], False),
        ([[4.0, 2 * (1 - 6e-7) ** 0.5], [2 * (1 - 6e-7) ** 0.5, 1.0]], True),
        ([[4.0, -2 * (1 - 6e-7) ** 0.5], [-2 * (1 - 6e-7) ** 0.5, 1.0]], True),
        ([[4.0, 2 * (1 - 1.1e-6) ** 0.5], [2 * (1 - 1.1e-6) ** 0.5, 1.0]], False),
        ([[4.0, 0.0], [0.0, 1.0]], False),
    ],
)
def test_a_covariance_is_at_the_boundary_where_a_variance_is_nothing_or_a_correlation_one(covariance, singular):
    assert _singular(np.array(covariance)) == singular


def test_two_groups_are_enough_and_lengths_must_agree():
    frame = random_data(6, 2, 1.0)
    assert mixed_effects(frame.y, frame.x, list(frame.group)).reason == ""
    with pytest.raises(ValueError, match="2 groups for"):
        mixed_effects(frame.y, frame.x, ["a", "b"])


def test_groups_in_any_order_are_the_same_groups():
    frame = random_data(7, 5, 3.0)
    mixed = frame.sample(frac=1, random_state=1)
    one, two = (mixed_effects(each.y, each.x, list(each.group)) for each in (frame, mixed))
    assert (one.coef, one.se, one.log_likelihood) == pytest.approx((two.coef, two.se, two.log_likelihood))


@pytest.mark.parametrize("noise", [3e-7, 3e-5])
def test_a_line_in_each_group_without_rest_is_no_fit_and_one_with_little_is(noise):
    """Lines of one slope and an intercept a group; the mean square of what is left is about noise squared."""
    rng = np.random.default_rng(2)
    groups = np.repeat([0, 1, 2], 20)
    x = rng.normal(size=60)
    y = x + groups + noise * rng.normal(size=60)
    found = mixed_effects(y, x, groups.tolist())
    assert (found.reason == "") == (noise > 1e-6)


@pytest.mark.parametrize(("own", "mixed"), [(-1.0, 0.0), (0.0, 0.0), (1.0, 9.0)])
def test_an_information_that_is_no_longer_positive_without_the_covariance_is_taken_as_if_that_were_known(
    own, mixed, monkeypatch
):
    """Neither a covariance without a curvature, nor a rest without one, gives the error of a slope."""
    blocks = np.full((1, 2), mixed), np.full((1, 1), own)
    monkeypatch.setattr(regression, "_covariance_information", lambda *_: blocks)
    whitened = np.array([np.diag([4.0, 16.0, 1.0])])
    assert regression._slope_se(10, whitened, np.zeros(2), 1.0, 1) == pytest.approx(1 / 4)


def test_the_error_of_a_slope_grows_by_what_the_covariance_is_estimated_from(monkeypatch):
    blocks = np.array([[0.0, 2.0]]), np.array([[1.0]])
    monkeypatch.setattr(regression, "_covariance_information", lambda *_: blocks)
    whitened = np.array([np.diag([4.0, 16.0, 1.0])])
    assert regression._slope_se(10, whitened, np.zeros(2), 1.0, 1) == pytest.approx(1 / 12**0.5)
