"""Intervals against statsmodels, scipy at the same draws, and published tables."""

import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from quantverdict.stats import intervals
from quantverdict.stats.intervals import (
    bootstrap_mean,
    bootstrap_means,
    bootstrap_proportion,
    bootstrap_ratios,
    clopper_pearson,
    newcombe_difference,
    paired_bootstrap_difference,
    resampled_counts,
    resampled_ratios,
    wilson,
)

counts = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_wilson_is_that_of_statsmodels(count, confidence):
    k, n = count
    ours = wilson(k, n, confidence)
    assert (ours.lo, ours.hi) == pytest.approx(proportion_confint(k, n, 1 - confidence, "wilson"), abs=1e-12)
    assert 0 <= ours.lo <= k / n <= ours.hi <= 1


def test_wilson_at_the_ends_touches_them_exactly():
    assert wilson(0, 10).lo == 0
    assert wilson(10, 10).hi == 1
    assert wilson(0, 1).hi < 1


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 10), (11, 10)])
def test_nothing_measured_is_not_a_proportion(k, n):
    for interval in (wilson, bootstrap_proportion):
        with pytest.raises(ValueError, match="not a proportion"):
            interval(k, n)


@given(counts, counts)
def test_newcombe_is_that_of_statsmodels(one, two):
    (k1, n1), (k2, n2) = one, two
    ours = newcombe_difference(k1, n1, k2, n2)
    theirs = confint_proportions_2indep(k1, n1, k2, n2, method="newcomb", compare="diff")
    assert (ours.lo, ours.hi) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize(
    ("table", "lo", "hi"),
    [
        # Newcombe (1998), Stat Med 17:873, table II, method 10.
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((6, 7, 2, 7), 0.0582, 0.8062),
        ((5, 56, 0, 29), -0.0381, 0.1926),
        ((0, 10, 0, 20), -0.1611, 0.2775),
        ((10, 10, 0, 10), 0.6075, 1.0),
        # Perondi et al. (2004) in Fagerland, Lydersen & Laake, Statistical Analysis of Contingency Tables, chapter 4.
        ((7, 34, 1, 34), 0.0189, 0.3404),
    ],
)
def test_newcombe_reproduces_published_tables(table, lo, hi):
    ours = newcombe_difference(*table)
    assert (round(ours.lo, 4), round(ours.hi, 4)) == (lo, hi)


def scipy_bootstrap(data, statistic, seed, **options):
    result = scipy_stats.bootstrap(
        data, statistic, n_resamples=2000, method="percentile", rng=np.random.default_rng(seed), **options
    )
    return result.confidence_interval


@settings(max_examples=25)
@given(st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=2, max_size=300), st.integers(0, 2**32))
def test_bootstrap_is_scipys_at_the_same_draws(values, seed):
    ours = bootstrap_mean(values, seed=seed)
    theirs = scipy_bootstrap((np.array(values),), np.mean, seed)
    scale = max(map(abs, values))
    assert (ours.lo, ours.hi) == pytest.approx((theirs.low, theirs.high), rel=1e-9, abs=1e-9 * scale)


def ratio(top, bottom, axis):
    return top.sum(axis=axis) / bottom.sum(axis=axis)


@settings(max_examples=15)
@given(st.integers(0, 2**32), st.integers(2, 60))
def test_clusters_are_drawn_whole_as_scipy_draws_pairs_of_sum_and_size(seed, clusters):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, clusters)
    labels = [f"c{i}" for i, size in enumerate(sizes) for _ in range(size)]
    values = rng.random(sizes.sum())
    sums = np.add.reduceat(values, np.cumsum(sizes) - sizes)
    ours = bootstrap_mean(values, clusters=labels, seed=seed)
    theirs = scipy_bootstrap((sums, sizes.astype(float)), ratio, seed, paired=True)
    assert (ours.lo, ours.hi) == pytest.approx((theirs.low, theirs.high), rel=1e-9)


def test_clusters_widen_the_interval_of_values_that_agree_within_them():
    values = np.repeat([0.0, 1.0], 40)
    alone = bootstrap_mean(values)
    whole = bootstrap_mean(values, clusters=[i // 4 for i in range(80)])
    assert whole.hi - whole.lo > 1.7 * (alone.hi - alone.lo)


def test_a_sample_without_a_cluster_is_a_cluster_of_its_own():
    values = np.random.default_rng(0).random(50)
    assert bootstrap_mean(values, clusters=[None] * 50) == bootstrap_mean(values)


def test_a_cell_has_the_same_bits_alone_and_beside_others():
    """Also across a block boundary: 700 values of 2000 resamples are several blocks."""
    values = np.random.default_rng(1).lognormal(size=(700, 9)) * np.logspace(-6, 6, 9)
    together = bootstrap_means(values)
    for column in range(9):
        alone = bootstrap_mean(values[:, column])
        assert (alone.lo, alone.hi) == tuple(together[column])


def test_threads_do_not_change_a_bit():
    code = (
        "import numpy as np; from quantverdict.stats.intervals import bootstrap_means;"
        "print(bootstrap_means(np.random.default_rng(3).normal(size=(501, 60)), samples=500).tobytes().hex())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(outputs) == 1


def test_a_draw_without_samples_of_a_cell_is_left_out():
    sums, sizes = np.array([[0.0], [3.0]]), np.array([[0.0], [4.0]])
    assert bootstrap_ratios(sums, sizes).tolist() == [[0.75, 0.75]]


def test_paired_difference_is_the_bootstrap_of_the_differences_first_minus_second():
    rng = np.random.default_rng(4)
    first, second = rng.random(80), rng.random(80) + 0.2
    ours = paired_bootstrap_difference(first, second, clusters=[i // 2 for i in range(80)])
    assert ours == bootstrap_mean(first - second, clusters=[i // 2 for i in range(80)])
    assert ours.hi < 0


def test_exact_shortcut_is_the_limit_of_the_bootstrap():
    drawn = bootstrap_mean(np.repeat([1.0, 0.0], [146, 74]), samples=200_000)
    exact = bootstrap_proportion(146, 220)
    assert (exact.lo, exact.hi) == pytest.approx((drawn.lo, drawn.hi), abs=1 / 220 + 1e-12)
    assert exact.lo == scipy_stats.binom.ppf(0.025, 220, 146 / 220) / 220
    assert exact.hi == scipy_stats.binom.ppf(0.975, 220, 146 / 220) / 220


@given(counts.filter(lambda count: count[1] < 400), st.sampled_from([0.8, 0.95]))
def test_exact_shortcut_is_scipys_binomial_quantile(count, confidence):
    k, n = count
    ours = bootstrap_proportion(k, n, confidence)
    tail = (1 - confidence) / 2
    theirs = scipy_stats.binom.ppf([tail, 1 - tail], n, k / n) / n
    assert (ours.lo, ours.hi) == pytest.approx(tuple(np.clip(theirs, 0, 1)))


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")], [float("inf")]])
def test_what_cannot_be_averaged_is_refused(bad):
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_mean(bad)


def test_coverage_of_the_clustered_bootstrap_is_near_nominal():
    """60 clusters of 4 answers with a shared inclination: the interval must cover the truth about 95 % of the time."""
    rng = np.random.default_rng(5)
    labels = [i // 4 for i in range(240)]
    covered = 0
    for trial in range(300):
        inclination = np.repeat(rng.beta(2, 1, 60), 4)
        interval = bootstrap_mean(
            (rng.random(240) < inclination).astype(float), clusters=labels, seed=trial, samples=400
        )
        covered += interval.lo <= 2 / 3 <= interval.hi
    assert 0.90 <= covered / 300 <= 0.985


@given(st.floats(0, 1), st.floats(0.5, 400), st.sampled_from([0.8, 0.95]))
def test_the_exact_interval_is_scipys_of_counts_that_need_not_be_whole(share, n, confidence):
    k = share * n
    ours, half = clopper_pearson(k, n, confidence), (1 - confidence) / 2
    if k > 1e-3:
        assert ours.lo == pytest.approx(scipy_stats.beta.ppf(half, k, n - k + 1), rel=1e-6, abs=1e-300)
    if n - k > 1e-3:
        assert ours.hi == pytest.approx(scipy_stats.beta.ppf(1 - half, k + 1, n - k), rel=1e-6)


def test_the_exact_interval_touches_its_ends_exactly():
    assert (clopper_pearson(0, 7).lo, clopper_pearson(7, 7).hi) == (0, 1)
    assert clopper_pearson(1, 7).lo > 0
    assert clopper_pearson(6, 7).hi < 1


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 10), (10.5, 10), (0, -1)])
def test_the_exact_interval_of_no_rate_is_refused(k, n):
    with pytest.raises(ValueError, match=f"{k} of {n}"):
        clopper_pearson(k, n)


@pytest.mark.parametrize("table", [(0, 0, 1, 2), (1, 2, 0, 0)])
def test_a_difference_from_nothing_is_refused(table):
    with pytest.raises(ValueError, match="0 of 0 is not a proportion"):
        newcombe_difference(*table)


@pytest.mark.parametrize(("samples", "n"), [(7, 3), (50, 30), (1, 1)])
def test_draws_are_numpys_whatever_the_block(monkeypatch, samples, n):
    """Units drawn, counted one resample at a time; in one block, in several and with a row too long for one."""
    drawn = np.random.default_rng(9).integers(0, n, (samples, n))
    expected = [np.bincount(row, minlength=n).tolist() for row in drawn]
    for block in (1 << 20, samples * n, samples * n - 1, 2 * n + 1, 2):
        monkeypatch.setattr(intervals, "_BLOCK", block)
        found = [row.tolist() for part in intervals._draws(n, samples, 9) for row in part]
        assert found == expected, block


def test_resampled_counts_are_those_of_the_draws_in_falling_order_of_kinds():
    """Of 9 things 2 are of one kind and 4 of another, in whatever order they are told; 3 are of none."""
    drawn = np.random.default_rng(42).integers(0, 9, (2000, 9))
    expected = np.column_stack([(drawn < 4).sum(axis=1), ((drawn >= 4) & (drawn < 6)).sum(axis=1)])
    for kinds in ([2, 4], [4, 2]):
        found = np.concatenate([part[0] for part in resampled_counts([kinds, [9]], 9)])
        assert (found == expected).all()
    assert all((part[1] == 9).all() for part in resampled_counts([[1], [9]], 9))


@pytest.mark.parametrize("kinds", [[5, 5], [-1, 3], [10]])
def test_kinds_of_more_things_than_there_are_are_refused(kinds):
    with pytest.raises(ValueError, match="at most 9"):
        list(resampled_counts([[3], kinds], 9))


@pytest.mark.parametrize(
    ("sums", "counts"),
    [([[1.0], [2.0]], [[1.0]]), ([[1.0], [2.0]], [[-1.0], [2.0]]), ([[1.0, 1.0]], [[1.0, 0.0]])],
)
def test_ratios_need_a_count_for_every_sum(sums, counts):
    with pytest.raises(ValueError, match="a sum and a count for every cluster"):
        resampled_ratios(sums, counts)


def test_ratios_may_have_a_cluster_without_samples_and_a_draw_of_it_alone_says_nothing():
    found = resampled_ratios([[0.0], [3.0]], [[0.0], [4.0]], samples=400)
    assert set(np.unique(found[~np.isnan(found)])) == {0.75}
    assert np.isnan(found).mean() == pytest.approx(0.25, abs=0.09)


@pytest.mark.parametrize("values", [[1.0, 2.0], [[1.0], [np.inf]], np.empty((0, 2)), np.empty((2, 0)), [[[1.0]]]])
def test_only_columns_of_finite_numbers_are_resampled(values):
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_means(values)


def test_labels_and_pairs_must_be_as_many_as_values():
    with pytest.raises(ValueError, match="3 values for 2 cluster labels"):
        bootstrap_mean([1.0, 2.0, 3.0], clusters=["a", "b"])
    with pytest.raises(ValueError, match="not pairs"):
        paired_bootstrap_difference([1.0, 2.0], [1.0])


def test_a_label_of_none_is_no_cluster_even_beside_one_whose_name_is_its_place():
    values = np.random.default_rng(2).random(40)
    labels = [None if at % 2 else at + 1 for at in range(40)]
    assert bootstrap_mean(values, clusters=labels) == bootstrap_mean(values, clusters=[f"{at}" for at in range(40)])


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=40))
def test_rounded_values_add_up_exactly_in_any_order_and_are_hardly_changed(values):
    column = np.array(values)[:, None]
    rounded = intervals._summable(column)[:, 0]
    exact = sum(map(Fraction, rounded.tolist()), Fraction(0))
    for order in (rounded, rounded[::-1], np.sort(rounded)):
        assert Fraction(float(np.cumsum(order)[-1])) == exact
    largest = len(values) * max(abs(value) for value in values)
    assert np.abs(rounded - column[:, 0]).max() <= 2.0**-52 * largest


@pytest.mark.parametrize("value", [0.0, 5e-324, 1e-310, 1e308])
def test_values_at_the_ends_of_what_a_double_holds_keep_their_mean(value):
    assert bootstrap_mean([value] * 1) == intervals.Interval(value, value)


def test_limits_are_numpys_quantiles_and_leave_out_what_says_nothing():
    drawn = np.random.default_rng(0).normal(size=(101, 2))
    for confidence in (0.5, 0.9):
        tails = [(1 - confidence) / 2, (1 + confidence) / 2]
        assert intervals.percentiles(drawn, confidence) == pytest.approx(np.quantile(drawn, tails, axis=0).T)
    drawn[3, 0] = np.nan
    expected = np.quantile(np.delete(drawn[:, 0], 3), [0.025, 0.975])
    assert intervals.percentiles(drawn, 0.95)[0] == pytest.approx(expected)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.5, 1.5])
def test_limits_of_no_confidence_are_refused(confidence):
    with pytest.raises(ValueError, match="is not between 0 and 1"):
        intervals.percentiles(np.zeros((3, 1)), confidence)
