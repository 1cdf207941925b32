"""Intervals against statsmodels, scipy at the same draws, and published tables."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from quantverdict.stats.intervals import (
    bootstrap_mean,
    bootstrap_means,
    bootstrap_proportion,
    bootstrap_ratios,
    newcombe_difference,
    paired_bootstrap_difference,
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
