"""Correlations against scipy and pingouin; degenerate input is None with a reason."""

import math
import warnings

import numpy as np
import pandas as pd
import pingouin as pg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from quantverdict.stats.correlation import correlation_power, fisher_interval, pearson, ranks, rm_corr, spearman

tied = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=3, max_size=60)
smooth = st.integers(0, 2**32).map(np.random.default_rng).map(lambda rng: rng.normal(size=(rng.integers(4, 50), 2)))


def columns(points):
    return np.array(points, dtype=float).T


@given(st.one_of(tied, smooth))
def test_pearson_is_scipys_with_its_interval(points):
    x, y = columns(points)
    ours = pearson(x, y)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert ours.r is None
        assert "does not vary" in ours.reason
        return
    theirs = scipy_stats.pearsonr(x, y)
    assert ours.r == pytest.approx(theirs.statistic, abs=1e-12)
    if abs(ours.r) < 1 - 1e-9:
        assert ours.p == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-12)
        assert (ours.lo, ours.hi) == pytest.approx(tuple(theirs.confidence_interval()), abs=1e-9)


@given(st.one_of(tied, smooth))
def test_spearman_is_scipys_with_ties(points):
    x, y = columns(points)
    ours = spearman(x, y)
    if ours.r is None:
        assert np.ptp(x) == 0 or np.ptp(y) == 0
        return
    theirs = scipy_stats.spearmanr(x, y)
    assert ours.r == pytest.approx(theirs.statistic, abs=1e-12)
    if abs(ours.r) < 1 - 1e-9:
        assert ours.p == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-12)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=50))
def test_ranks_are_scipys(values):
    assert ranks(np.array(values, dtype=float)).tolist() == scipy_stats.rankdata(values).tolist()


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([], [], "fewer than 3 points"),
        ([1, 2], [1, 2], "fewer than 3 points"),
        ([1, 1, 1], [1, 2, 3], "x does not vary"),
        ([1, 2, 3], [0, 0, 0], "y does not vary"),
        ([0.1 + 0.2, 0.3, 0.3], [1, 2, 3], "x does not vary"),
    ],
)
def test_without_a_correlation_every_figure_is_none_and_a_reason_is_given(x, y, reason):
    for function in (pearson, spearman) if x != [0.1 + 0.2, 0.3, 0.3] else (pearson,):
        ours = function(x, y)
        assert (ours.n, ours.r, ours.p, ours.lo, ours.hi, ours.reason) == (len(x), None, None, None, None, reason)


def test_a_perfect_line_is_exactly_one():
    ours = pearson([1, 2, 3, 4], [10, 20, 30, 40])
    assert (ours.r, ours.p, ours.lo, ours.hi) == (1, 0, 1, 1)


def test_no_correlation_has_no_sign_from_rounding():
    """Exactly 0 by design; a plain float sum of these gives about 1e-17."""
    x = np.tile([0.1, 0.2, 0.3, 0.1, 0.2, 0.3], 5)
    y = np.tile([0.7, 0.7, 0.7, 0.1, 0.1, 0.1], 5)
    assert pearson(x, y).r == 0.0
    assert rm_corr(x, y, ["a"] * 15 + ["b"] * 15).r == 0.0


def test_three_points_say_nothing_about_the_interval():
    ours = pearson([1, 2, 3], [1, 3, 2])
    assert (ours.lo, ours.hi) == (-1, 1)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_no_unit_is_too_small_or_too_large(scale):
    x, y = np.random.default_rng(0).normal(size=(2, 20))
    assert pearson(x * scale, y).r == pytest.approx(pearson(x, y).r)


@pytest.mark.parametrize(("x", "y"), [([1, 2, 3], [1, 2]), ([1, 2, float("nan")], [1, 2, 3])])
def test_what_is_not_two_columns_of_numbers_is_refused(x, y):
    for function in (pearson, spearman):
        with pytest.raises(ValueError, match="finite numbers"):
            function(x, y)


def pingouin_rm_corr(x, y, subjects):
    frame = pd.DataFrame({"x": x, "y": y, "subject": subjects})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pg.rm_corr(frame, x="x", y="y", subject="subject").iloc[0]


def check_rm_corr(x, y, subjects):
    ours, theirs = rm_corr(x, y, subjects), pingouin_rm_corr(x, y, subjects)
    assert ours.r == pytest.approx(theirs["r"], abs=1e-9)
    assert ours.dof == theirs["dof"]
    assert ours.p == pytest.approx(theirs["pval"], rel=1e-5, abs=1e-12)
    assert (ours.lo, ours.hi) == pytest.approx(tuple(theirs["CI95"]), abs=0.00501)
    if ours.power is not None:
        assert ours.power == pytest.approx(theirs["power"], abs=1e-9)


def test_rm_corr_of_the_authors_own_data():
    """Bland & Altman's pH and PacO2, the example of Bakdash & Marusich: r(38) = -0.507, p < 0.001, [-0.71, -0.23]."""
    frame = pg.read_dataset("rm_corr")
    ours = rm_corr(frame["pH"], frame["PacO2"], list(frame["Subject"]))
    assert (round(ours.r, 5), ours.dof, round(ours.p, 6)) == (-0.50677, 38, 0.000847)
    assert (round(ours.lo, 2), round(ours.hi, 2), round(ours.power, 6)) == (-0.71, -0.23, 0.929579)
    check_rm_corr(frame["pH"].to_numpy(), frame["PacO2"].to_numpy(), list(frame["Subject"]))


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(3, 8), st.floats(-2, 2))
def test_rm_corr_is_pingouins_on_random_unbalanced_data(seed, n_subjects, slope):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 9, n_subjects)
    subjects = [f"s{i}" for i, size in enumerate(sizes) for _ in range(size)]
    offsets = np.repeat(rng.normal(scale=5, size=n_subjects), sizes)
    x = rng.normal(size=len(subjects)) + offsets
    y = slope * x + rng.normal(size=len(subjects)) - 3 * offsets
    check_rm_corr(x, y, subjects)


def test_one_subject_is_a_plain_correlation():
    x, y = np.random.default_rng(2).normal(size=(2, 12))
    ours, plain = rm_corr(x, y, ["a"] * 12), pearson(x, y)
    assert (ours.r, ours.p) == pytest.approx((plain.r, plain.p))
    assert (ours.lo, ours.hi) == pytest.approx((plain.lo, plain.hi))


@pytest.mark.parametrize(
    ("x", "subjects", "reason"),
    [
        ([], [], "too few points"),
        ([1.0, 2.0], ["a", "b"], "too few points"),
        ([1.0, 2.0, 3.0], ["a", "a", "b"], "too few points"),
        ([0.1, 0.1, 0.3, 0.3, 0.3], ["a", "a", "b", "b", "b"], "x does not vary within subjects"),
    ],
)
def test_rm_corr_without_variation_within_subjects_is_none_with_a_reason(x, subjects, reason):
    ours = rm_corr(x, list(range(len(x))), subjects)
    assert (ours.r, ours.dof, ours.p, ours.lo, ours.hi, ours.power) == (None,) * 6
    assert reason in ours.reason


@given(st.floats(-0.999, 0.999), st.integers(5, 200))
def test_power_of_a_correlation_is_pingouins(r, n):
    assert correlation_power(r, n) == pytest.approx(pg.power_corr(r=r, n=n), abs=1e-9)


def test_power_is_said_only_where_it_can_be():
    assert correlation_power(0.5, 4) is None
    assert correlation_power(1.0, 5) == 1
    assert math.isclose(correlation_power(0.0, 100), 0.05, abs_tol=0.002)


@pytest.mark.parametrize(
    ("r", "n", "expected"), [(0.3, 3, (-1, 1)), (1.0, 3, (-1, 1)), (1.0, 4, (1, 1)), (-1.0, 9, (-1, -1))]
)
def test_the_interval_of_few_points_is_everything_and_of_a_perfect_line_itself(r, n, expected):
    assert fisher_interval(r, n) == expected


def test_the_interval_of_four_points_is_fishers():
    lo, hi = fisher_interval(0.3, 4, 0.9)
    reach = scipy_stats.norm.ppf(0.95)
    assert (lo, hi) == pytest.approx((math.tanh(math.atanh(0.3) - reach), math.tanh(math.atanh(0.3) + reach)))


@pytest.mark.parametrize("alpha", [0.01, 0.2])
def test_power_at_another_level_is_pingouins(alpha):
    for r, n in ((0.0, 5), (0.5, 5), (-0.4, 30), (0.99, 6)):
        assert correlation_power(r, n, alpha) == pytest.approx(pg.power_corr(r=r, n=n, alpha=alpha), abs=1e-9)
    assert correlation_power(-1.0, 5, alpha) == 1
    assert correlation_power(0.5, 5, alpha) is not None


def test_three_points_are_enough_and_two_are_not():
    assert pearson([1, 2, 3], [1, 3, 2]).r == pytest.approx(0.5)
    assert pearson([1, 2, 3], [1, 3, 2]).p == pytest.approx(scipy_stats.pearsonr([1, 2, 3], [1, 3, 2]).pvalue)
    assert pearson([1, 2], [1, 3]).reason == "fewer than 3 points"


def test_one_degree_of_freedom_is_enough_for_repeated_measures():
    x, y = [1.0, 2.0, 4.0, 1.0], [2.0, 1.0, 5.0, 3.0]
    found = rm_corr([*x[:3], 7.0], [*y[:3], 1.0], ["a", "a", "a", "b"])
    assert (found.dof, found.n) == (1, 4)
    assert found.r == pytest.approx(np.corrcoef(x[:3], y[:3])[0, 1])
    assert (found.lo, found.hi, found.power) == (-1, 1, None)
    with pytest.raises(ValueError, match="3 subjects for 4 points"):
        rm_corr(x, y, ["a"] * 3)


@pytest.mark.parametrize(("spread", "varies"), [(1e-15, False), (3e-14, False), (1e-12, True)])
def test_what_varies_by_rounding_alone_does_not_vary(spread, varies):
    x = 1 + spread * np.array([-1.0, 1.0, 0.0, -1.0, 1.0])
    assert (pearson(x, [1, 2, 3, 4, 6]).r is not None) == varies
    assert (pearson([1, 2, 3, 4, 6], x).r is not None) == varies


@pytest.mark.parametrize(
    "bad", [([[1.0, 2.0]], [[1.0, 2.0]]), ([1.0, np.inf, 2.0], [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [1.0, np.nan, 3.0])]
)
def test_only_two_rows_of_finite_numbers_are_correlated(bad):
    with pytest.raises(ValueError, match="finite numbers"):
        pearson(*bad)


def test_a_correlation_is_no_more_than_one_though_rounding_may_lift_it():
    for seed in range(60):
        x = np.random.default_rng(seed).normal(size=9)
        assert abs(pearson(x, 3 * x - 1).r) <= 1
        assert pearson(x, -x).r == pytest.approx(-1, abs=1e-12)
        assert pearson(x, -x).r >= -1
