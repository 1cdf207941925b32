"""What stands in for SciPy gives SciPy's values."""

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
    t_cdf,
    t_quantile,
)


@given(st.floats(-1, 1).filter(lambda r: abs(r) > 1e-3), st.integers(1, 5000))
def test_p_value_of_a_correlation_is_the_incomplete_beta(r, dof):
    theirs = special.betainc(dof / 2, 0.5, (1 - r) * (1 + r))
    assert correlation_two_sided(r, dof) == pytest.approx(theirs, rel=1e-9, abs=1e-300)


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


@given(st.floats(-30, 30), st.integers(1, 5000) | st.floats(0.5, 300))
def test_students_t_is_scipys(t, dof):
    assert t_cdf(t, dof) == pytest.approx(special.stdtr(dof, t), rel=1e-9, abs=1e-300)


def test_students_t_has_all_below_infinity_and_half_below_zero():
    assert [t_cdf(t, 7) for t in (-np.inf, 0.0, np.inf)] == [0.0, 0.5, 1.0]


@given(st.floats(1e-6, 1 - 1e-6), st.integers(1, 5000) | st.floats(0.5, 300))
def test_quantiles_of_students_t_are_scipys(probability, dof):
    assert t_quantile(probability, dof) == pytest.approx(special.stdtrit(dof, probability), rel=1e-9, abs=1e-9)


@given(st.integers(1, 3000), st.floats(0, 1), st.data())
def test_binomial_chances_are_scipys(n, share, data):
    k = data.draw(st.integers(-1, n))
    assert binomial_cdf(k, n, share) == pytest.approx(scipy_stats.binom.cdf(k, n, share), rel=1e-9, abs=1e-12)


@given(st.floats(0.001, 0.999), st.integers(1, 2000), st.data())
def test_quantiles_of_a_beta_are_scipys(probability, n, data):
    k = data.draw(st.integers(0, n - 1))
    theirs = special.betaincinv(k + 1, n - k, probability)
    assert beta_quantile(probability, k + 1, n - k) == pytest.approx(theirs, rel=1e-9)
