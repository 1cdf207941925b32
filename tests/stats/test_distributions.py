"""Distributions against closed forms, exact fractions and published tables, none of which is SciPy's."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special
from scipy import stats as scipy_stats

from quantverdict.stats.distributions import (
    beta_quantile,
    binomial_cdf,
    binomial_quantiles,
    correlation_two_sided,
    critical_correlation,
    critical_z,
    normal_cdf,
    normal_quantile,
    normal_two_sided,
    t_cdf,
    t_quantile,
)

TABLE = {
    1: (6.314, 12.706, 63.657), 2: (2.920, 4.303, 9.925), 5: (2.015, 2.571, 4.032), 10: (1.812, 2.228, 3.169),
    30: (1.697, 2.042, 2.750), 100: (1.660, 1.984, 2.626),
}  # fmt: skip
"""NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2: quantiles of Student's t at 0.95, 0.975 and 0.995."""


def exact_cdf(k, n, share):
    """P(X <= k) of a binomial, in fractions."""
    p = Fraction(share)
    return sum(math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k + 1))


@given(st.floats(-1, 1))
def test_p_value_of_a_correlation_in_closed_form(r):
    """With 1 degree of freedom 1 - 2/pi asin|r|, with 2 what is missing from |r| to 1."""
    assert correlation_two_sided(r, 2) == pytest.approx(1 - abs(r), rel=1e-9, abs=1e-9)
    assert correlation_two_sided(r, 1) == pytest.approx(1 - 2 / math.pi * math.asin(abs(r)), rel=1e-9, abs=1e-7)


@pytest.mark.parametrize(("r", "p"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 0.0)])
def test_p_value_at_the_ends(r, p):
    assert correlation_two_sided(r, 7) == p


@pytest.mark.parametrize("dof", [1, 2, 9, 44, 1000])
def test_critical_correlation_is_that_of_students_t(dof):
    t = scipy_stats.t.ppf(0.975, dof)
    assert critical_correlation(0.05, dof) == pytest.approx(t / np.sqrt(t * t + dof), rel=1e-12)


def test_a_tail_that_is_reached_exactly_is_reached():
    """Of 2 fair coins, none is heads in a quarter of cases, and none or one in three quarters."""
    assert binomial_quantiles(1, 2, (0.25, 0.75)) == [0, 1]


@pytest.mark.parametrize("n", [2, 7, 198, 28_500])
def test_binomial_quantiles_are_scipys(n):
    for k in {1, n // 3 or 1, n - 1}:
        theirs = scipy_stats.binom.ppf([0.025, 0.5, 0.975], n, k / n)
        assert binomial_quantiles(k, n, (0.025, 0.5, 0.975)) == theirs.tolist()


@given(st.floats(-30, 30))
def test_students_t_in_closed_form(t):
    assert t_cdf(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, rel=1e-9)
    assert t_cdf(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)), rel=1e-9)


def test_students_t_has_all_below_infinity_and_half_below_zero():
    assert [t_cdf(t, 7) for t in (-np.inf, 0.0, np.inf)] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("dof", TABLE)
def test_quantiles_of_students_t_are_those_of_the_table(dof):
    found = [t_quantile(probability, dof) for probability in (0.95, 0.975, 0.995)]
    assert [round(t, 3) for t in found] == list(TABLE[dof])
    assert t_quantile(0.025, dof) == pytest.approx(-found[1], rel=1e-12)


@given(st.floats(1e-6, 1 - 1e-6), st.integers(1, 5000) | st.floats(0.5, 300))
def test_a_quantile_of_students_t_has_its_probability_below_it(probability, dof):
    assert t_cdf(t_quantile(probability, dof), dof) == pytest.approx(probability, rel=1e-9)


@given(st.integers(1, 60), st.integers(0, 64), st.data())
def test_binomial_chances_are_the_exact_sums(n, share, data):
    k = data.draw(st.integers(-1, n))
    assert binomial_cdf(k, n, share / 64) == pytest.approx(float(exact_cdf(k, n, share / 64)), rel=1e-9, abs=1e-15)


@given(st.floats(0.001, 0.999), st.integers(1, 60), st.data())
def test_at_a_quantile_of_a_beta_the_exact_binomial_tail_is_its_probability(probability, n, data):
    """I_x(k + 1, n - k) is the chance of more than k of n at x; exact limits of a share are such quantiles."""
    k = data.draw(st.integers(0, n - 1))
    found = beta_quantile(probability, k + 1, n - k)
    assert float(1 - exact_cdf(k, n, found)) == pytest.approx(probability, rel=1e-9)


def test_an_exact_limit_is_the_rule_of_three_in_full():
    """None of 20: the upper limit at 95 % is 1 - 0.05^(1/20)."""
    assert beta_quantile(0.95, 1, 20) == pytest.approx(1 - 0.05 ** (1 / 20), rel=1e-12)


@given(st.floats(-30, 30))
def test_the_normal_distribution_is_scipys_where_ours_is_not(z):
    assert normal_cdf(z) == pytest.approx(special.ndtr(z), rel=1e-11, abs=1e-300)
    assert normal_two_sided(z) == pytest.approx(2 * special.ndtr(-abs(z)), rel=1e-11, abs=1e-300)


@pytest.mark.parametrize("probability", [1e-9, 0.025, 0.5, 0.6, 0.975])
def test_quantiles_of_the_normal_distribution_are_scipys_where_ours_are_not(probability):
    assert normal_quantile(probability) == pytest.approx(special.ndtri(probability), rel=1e-12)
    assert critical_z(probability) == pytest.approx(special.ndtri(0.5 + probability / 2), rel=1e-12)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.1, 1.1])
def test_all_and_nothing_are_no_confidence(confidence):
    with pytest.raises(ValueError, match="is not between 0 and 1"):
        critical_z(confidence)


@pytest.mark.parametrize(("k", "chance"), [(-1, 0.0), (0, 0.7**5), (4, 1 - 0.3**5), (5, 1.0), (6, 1.0)])
def test_binomial_chances_at_their_ends(k, chance):
    assert binomial_cdf(k, 5, 0.3) == pytest.approx(chance, rel=1e-12)


def test_binomial_quantiles_of_rare_and_of_nearly_certain_things():
    for k, n in ((1, 1000), (999, 1000), (3, 50_000)):
        levels = (1e-6, 0.025, 0.5, 0.975, 1 - 1e-9)
        assert binomial_quantiles(k, n, levels) == scipy_stats.binom.ppf(levels, n, k / n).tolist()


def test_a_quantile_too_small_for_a_double_is_nothing_and_ends():
    """One flip over a design effect of 1000: 0.025 to the power of 1000 is no number."""
    assert 0 <= beta_quantile(0.025, 1e-3, 2) < 1e-300
