"""Three outcomes of a paired loss: exact where pairs are independent, careful where they are not."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from quantverdict.stats.noninferiority import (
    Loss,
    cluster_sums,
    clustered_rate_loss,
    design_effect,
    mean_loss,
    outcome,
    outcomes,
    rate_loss,
    rate_tests,
    resolved,
)


@settings(max_examples=40)
@given(st.integers(2, 120), st.sampled_from([0.0, 0.02, 0.05, 0.2]), st.data())
def test_limits_and_tests_of_a_rate_say_the_same(n, margin, data):
    lost = data.draw(st.integers(0, n))
    found = rate_loss(lost, data.draw(st.integers(0, n - lost)), n, margin)
    assert found.lo <= found.estimate <= found.hi
    assert (found.p_noninferior <= 0.025) == (found.hi <= margin)
    assert (found.p_inferior <= 0.025) == (found.lo >= margin)


def test_builds_that_agree_are_non_inferior_only_where_enough_was_asked():
    """None of 50 differs: up to 7.2 pp may still be lost, as (1 - 0.072)^50 = 2.5 % says; 100 show 5 pp."""
    few, many = rate_loss(0, 0, 50, 0.05), rate_loss(0, 0, 100, Fraction(1, 20))
    assert few.hi == pytest.approx(0.072, abs=5e-4)
    assert (outcome(few), outcome(many)) == ("not_resolvable", "non_inferior")


def test_twelve_of_twelve_lost_is_inferior_and_one_of_one_is_nothing():
    assert outcome(rate_loss(12, 0, 12, 0.05)) == "inferior"
    assert outcome(rate_loss(1, 0, 1, 0.05)) == "not_resolvable"
    assert outcome(rate_loss(0, 12, 12, 0.05)) == "non_inferior"


def test_swapping_the_arms_swaps_the_limits():
    one, other = rate_loss(9, 3, 80, 0.0), rate_loss(3, 9, 80, 0.0)
    assert (one.lo, one.hi) == pytest.approx((-other.hi, -other.lo), abs=3e-5)
    assert one.p_inferior == pytest.approx(other.p_noninferior)


def test_clusters_of_one_are_independent_pairs():
    differences = [1] * 6 + [-1] * 2 + [0] * 92
    assert clustered_rate_loss(differences, [None] * 100, 0.05) == rate_loss(6, 2, 100, 0.05)


def test_clusters_that_move_as_one_count_once():
    once = [1] * 6 + [-1] * 2 + [0] * 92
    repeated = np.repeat(once, 4)
    found, alone = (
        clustered_rate_loss(repeated, np.repeat(np.arange(100), 4).tolist(), 0.05),
        rate_loss(6, 2, 100, 0.05),
    )
    assert (found.design_effect, found.units, found.n) == (4, 100, 400)
    assert (found.p_noninferior, found.p_inferior) == (alone.p_noninferior, alone.p_inferior)
    below, above = rate_tests((24, 8, 400), 100, 4.0, 0.05)
    assert (below, above) == (alone.p_noninferior, 1), "a loss under the margin says nothing for inferior"
    assert alone.p_inferior > 0.5


def test_design_effect_is_the_ratio_of_variances_and_high_where_few_pairs_differ():
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(3000), 5).tolist()
    alone = rng.choice([-1.0, 0.0, 1.0], p=[0.05, 0.85, 0.1], size=15_000)
    assert design_effect(*cluster_sums(alone, labels), 2250, 0.025) == pytest.approx(1, abs=0.06)
    together = np.repeat(alone[:3000], 5)
    assert design_effect(*cluster_sums(together, labels), 2250, 0.025) == pytest.approx(5)
    one = np.zeros(100)
    one[0] = 1
    assert design_effect(*cluster_sums(one, labels[:100]), 1, 0.025) > 3
    assert design_effect(*cluster_sums(np.zeros(100), labels[:100]), 0, 0.025) == 5


def test_one_cluster_resolves_nothing():
    for found in (clustered_rate_loss([1] * 50, ["a"] * 50, 0.05), mean_loss([0.9] * 50, 0.05, clusters=["a"] * 50)):
        assert outcome(found) == "not_resolvable"
        assert (found.lo, found.hi) == (-1, 1)


def test_mean_is_students_where_differences_are_symmetric():
    half = np.random.default_rng(0).normal(0, 0.1, 100)
    differences = 0.02 + np.concatenate([half, -half])
    found = mean_loss(differences, 0.025, largest=0.5)
    theirs = scipy_stats.ttest_1samp(differences, 0.025, alternative="less")
    limits = scipy_stats.ttest_1samp(differences, 0.025).confidence_interval(0.95)
    assert found.p_noninferior == pytest.approx(theirs.pvalue)
    assert (found.lo, found.hi) == pytest.approx((limits.low, limits.high))


def test_mean_takes_skewness_out_as_hall_does():
    """Hall's (1992) cubic by its formula, from scipy's moments; and its limits invert the tests."""
    differences = np.random.default_rng(1).exponential(0.08, 400)
    n, skew = 400, float(scipy_stats.skew(differences)) * (399 / 400) ** 1.5
    t = (differences.mean() - 0.09) / (differences.std(ddof=1) / 20)
    cubic = t + skew * t**2 / (3 * n**0.5) + skew**2 * t**3 / (27 * n) + skew / (6 * n**0.5)
    found = mean_loss(differences, 0.09)
    assert found.p_noninferior == pytest.approx(scipy_stats.t.cdf(cubic, n - 1), rel=1e-6)
    assert mean_loss(differences, found.hi).p_noninferior == pytest.approx(0.025, rel=1e-6)
    assert mean_loss(differences, found.lo).p_inferior == pytest.approx(0.025, rel=1e-6)


def test_repeating_a_cluster_adds_nothing_to_a_mean():
    values = np.random.default_rng(2).normal(0.03, 0.1, 90)
    one = mean_loss(values, 0.05)
    many = mean_loss(np.repeat(values, 3), 0.05, clusters=np.repeat(np.arange(90), 3).tolist())
    assert (many.lo, many.hi, many.p_inferior) == pytest.approx((one.lo, one.hi, one.p_inferior))
    assert many.design_effect == pytest.approx(3, rel=0.03)


def test_mean_of_builds_that_agree_waits_for_enough_prompts():
    assert mean_loss([0.0] * 50, 0.05).p_noninferior == pytest.approx(0.95**50)
    assert outcome(mean_loss([0.0] * 80, 0.05)) == "non_inferior"
    assert outcome(mean_loss([0.0] * 50, 0.05, largest=0.5)) == "non_inferior"
    assert mean_loss([0.0] * 80, 0.05).hi == pytest.approx(1 - 0.025 ** (1 / 80))


def test_mean_of_few_differing_pairs_is_the_binomial_of_whole_losses():
    found = mean_loss([1.0] * 2 + [0.0] * 198, 0.05)
    assert found.p_noninferior == pytest.approx(scipy_stats.binom.cdf(2, 200, 0.05))
    lost = mean_loss([1.0] * 8 + [0.0] * 4, 0.05)
    assert lost.p_inferior == pytest.approx(scipy_stats.binom.sf(7, 12, 0.05))
    assert outcome(mean_loss([0.06] * 3, 0.05)) == "not_resolvable"


def test_family_errs_no_more_than_a_single_test():
    """Holm within each direction: 0.02 passes alone, not beside two others that say nothing."""
    losses = [Loss(0.0, 0.0, 0.0, p, 1 - p, 100, 100, 0) for p in (0.02, 0.5, 0.9, 0.001, 0.99999)]
    assert outcome(losses[0]) == "non_inferior"
    assert outcomes(losses) == ("not_resolvable",) * 3 + ("non_inferior", "inferior")
    assert resolved(None, None) == "not_resolvable"


@pytest.mark.parametrize(
    "call",
    [
        lambda: rate_loss(3, 3, 5, 0.05),
        lambda: rate_loss(0, 0, 0, 0.05),
        lambda: rate_loss(0, 0, 5, -0.05),
        lambda: rate_loss(0, 0, 5, 0.05, alpha=0.5),
        lambda: clustered_rate_loss([0.5], [None], 0.05),
        lambda: clustered_rate_loss([1, 0], [None], 0.05),
        lambda: mean_loss([], 0.05),
        lambda: mean_loss([0.1, float("nan")], 0.05),
        lambda: mean_loss([0.1, 0.2], 0.0),
        lambda: mean_loss([0.1, 0.2], 0.05, largest=0.0),
    ],
)
def test_what_cannot_be_tested_is_refused(call):
    with pytest.raises(ValueError):
        call()
