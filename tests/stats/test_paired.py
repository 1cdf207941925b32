"""McNemar and Tango against scipy, statsmodels and published tables."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from scipy.optimize import minimize_scalar
from statsmodels.stats.contingency_tables import mcnemar

from quantverdict.stats.paired import (
    _crossing,
    constrained_variance,
    discordant,
    mcnemar_exact,
    mcnemar_midp,
    signed_rank,
    tango_interval,
)

pair_counts = st.tuples(st.integers(0, 200), st.integers(0, 200), st.integers(0, 400)).filter(lambda c: sum(c) > 0)


def test_discordant_pairs_are_counted_each_way():
    found = discordant([1, 1, 0, 0, 1], [1, 0, 0, 1, 0])
    assert (found.n, found.lost, found.gained) == (5, 2, 1)


@pytest.mark.parametrize("variant", [[1, 0], [1, 0, 0.5], [1, 0, float("nan")]])
def test_what_is_not_right_or_wrong_has_no_discordance(variant):
    with pytest.raises(ValueError, match="0 and 1"):
        discordant([1, 0, 1], variant)


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_exact_mcnemar_is_that_of_statsmodels_and_of_the_binomial_test(lost, gained):
    ours = mcnemar_exact(lost, gained)
    if lost + gained:
        assert ours == pytest.approx(mcnemar([[0, lost], [gained, 0]], exact=True).pvalue, rel=1e-9)
        assert ours == pytest.approx(scipy_stats.binomtest(lost, lost + gained).pvalue, rel=1e-9)
    else:
        assert ours == 1


@given(st.integers(0, 300), st.integers(0, 300))
def test_mid_p_takes_off_the_chance_of_the_table_seen(lost, gained):
    ours, n = mcnemar_midp(lost, gained), lost + gained
    tail = 2 * scipy_stats.binom.cdf(min(lost, gained), n, 0.5) - scipy_stats.binom.pmf(lost, n, 0.5)
    assert ours == pytest.approx(tail, rel=1e-9)
    assert 0 < ours <= 1
    assert ours == mcnemar_midp(gained, lost)


# Cavo et al. (2012), Bentur et al. (2009): Fagerland, Lydersen & Laake, Statistical Analysis of Contingency Tables,
# chapter 8. The last is the example of PropCIs::scoreci.mp.
def test_published_p_values():
    assert round(mcnemar_exact(6, 16), 6) == 0.052479
    assert round(mcnemar_midp(6, 16), 6) == 0.034690


@pytest.mark.parametrize(
    ("gained", "lost", "n", "lo", "hi"),
    [(6, 16, 161, -0.1240, -0.0054), (1, 7, 21, -0.5172, -0.0260), (40, 20, 160, 0.0309, 0.2181)],
)
def test_tango_reproduces_published_tables(gained, lost, n, lo, hi):
    ours = tango_interval(gained, lost, n)
    assert (round(ours.lo, 4), round(ours.hi, 4)) == (lo, hi)


@given(pair_counts, st.sampled_from([0.9, 0.95, 0.99]))
def test_tango_mirrors_and_holds_the_estimate(counts, confidence):
    gained, lost, same = counts
    n = gained + lost + same
    ours, mirror = tango_interval(gained, lost, n, confidence), tango_interval(lost, gained, n, confidence)
    assert (ours.lo, ours.hi) == pytest.approx((-mirror.hi, -mirror.lo), abs=1e-12)
    assert -1 <= ours.lo <= (gained - lost) / n + 1e-12
    assert (gained - lost) / n - 1e-12 <= ours.hi <= 1
    assert ours.hi > ours.lo


@pytest.mark.parametrize("n", [1, 5, 73, 1000])
def test_tango_without_discordant_pairs_is_z_squared_over_n_plus_z_squared(n):
    z2 = scipy_stats.norm.ppf(0.975) ** 2
    ours = tango_interval(0, 0, n)
    assert (ours.lo, ours.hi) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)), abs=1e-12)


def test_tango_excludes_zero_just_where_the_uncorrected_mcnemar_test_rejects():
    for lost in range(40):
        for gained in range(40 - lost):
            if lost + gained:
                interval = tango_interval(gained, lost, 100)
                rejects = (gained - lost) ** 2 / (gained + lost) > scipy_stats.chi2.ppf(0.95, 1)
                assert (interval.lo > 0 or interval.hi < 0) == rejects


def test_tango_covers_the_truth_at_about_its_nominal_rate():
    rng = np.random.default_rng(0)
    draws = rng.multinomial(60, [0.15, 0.05, 0.8], size=2000)
    covered = sum(
        interval.lo <= 0.10 <= interval.hi for interval in (tango_interval(g, lost, 60) for g, lost, _ in draws)
    )
    assert 0.93 <= covered / 2000 <= 0.97


@pytest.mark.parametrize(("gained", "lost", "n"), [(0, 4, 4), (4, 0, 4), (2, 2, 4), (0, 0, 4), (1, 0, 1), (0, 1, 1)])
def test_every_pair_may_differ_and_none_may(gained, lost, n):
    """The ends of what counts can be: an interval there, inside [-1, 1], that holds the estimate."""
    interval = tango_interval(gained, lost, n)
    assert -1 <= interval.lo <= (gained - lost) / n <= interval.hi <= 1
    assert (interval.lo == -1) == (lost == n)
    assert (interval.hi == 1) == (gained == n)


@pytest.mark.parametrize("effect", [3.0, 1.7, 7.1])
def test_counts_over_a_design_effect_fit_though_rounding_may_lift_their_sum(effect):
    tango_interval(2 / effect, 1 / effect, 3 / effect)


@pytest.mark.parametrize(("gained", "lost"), [(-0.001, 1), (1, -0.001), (2, 2.001)])
def test_a_little_beyond_what_fits_is_refused(gained, lost):
    with pytest.raises(ValueError, match="pairs"):
        tango_interval(gained, lost, 4)


@pytest.mark.parametrize(("gained", "lost", "n"), [(0, 0, 0), (-1, 0, 4), (3, 2, 4)])
def test_counts_that_do_not_fit_are_refused(gained, lost, n):
    with pytest.raises(ValueError, match="pairs"):
        tango_interval(gained, lost, n)


@pytest.mark.parametrize("counts", [(-1, 3), (3, -1), (-1, -1)])
def test_counts_below_zero_are_refused(counts):
    for test in (mcnemar_exact, mcnemar_midp) if counts[0] != counts[1] else (mcnemar_exact,):
        with pytest.raises(ValueError, match="are not counts"):
            test(*counts)


@pytest.mark.parametrize("n", [6, 50, 51, 80])
@pytest.mark.parametrize("tied", [False, True])
def test_signed_ranks_are_scipys_exact_up_to_50_untied(n, tied):
    values = np.random.default_rng(n).normal(0.3, 1, n)
    values[0] = -values[1] if tied else values[0]
    method = "exact" if n <= 50 and not tied else "approx"
    assert signed_rank(values) == scipy_stats.wilcoxon(values, method=method).pvalue
    assert signed_rank([0.0, *values, 0.0]) == signed_rank(values)


def test_no_difference_at_all_has_no_rank():
    assert signed_rank([0.0, 0.0]) == signed_rank([]) == 1


@given(pair_counts, st.floats(1, 9), st.sampled_from([0.8, 0.95]))
def test_limits_of_tango_are_where_the_score_is_z(counts, effect, confidence):
    """By the constrained variance and bisection; counts over a design effect need not be whole."""
    gained, lost, same = (count / effect for count in counts)
    n, z = gained + lost + same, scipy_stats.norm.ppf(0.5 + confidence / 2)
    found, estimate = tango_interval(gained, lost, n, confidence), (gained - lost) / n

    def apart(delta):
        variance = constrained_variance(gained / n, lost / n, delta)
        return abs(estimate - delta) - z * math.sqrt(variance / n)

    for limit, outward in ((found.lo, -1e-9), (found.hi, 1e-9)):
        if abs(limit) < 1:
            assert apart(limit + outward) >= -1e-12
            assert apart(limit - outward) <= 1e-8


@given(st.floats(0.01, 0.6), st.floats(0.01, 0.39), st.floats(-0.9, 0.9))
def test_the_constrained_variance_is_that_of_the_likeliest_shares(gained, lost, delta):
    """The trinomial likelihood along the line of shares whose difference is `delta`, by an optimiser of scipy."""

    def unlikely(q):
        shares = np.array([q + delta, q, 1 - 2 * q - delta])
        return -float(np.array([gained, lost, 1 - gained - lost]) @ np.log(np.maximum(shares, 1e-300)))

    ends = (max(0.0, -delta), (1 - delta) / 2)
    best = minimize_scalar(unlikely, bounds=ends, method="bounded", options={"xatol": 1e-12}).x
    expected = 2 * best + delta - delta**2
    assert constrained_variance(gained, lost, delta) == pytest.approx(expected, abs=2e-6)


def test_the_constrained_variance_is_never_below_zero_and_is_that_of_the_estimate_there():
    assert constrained_variance(0.3, 0.1, 0.2) == pytest.approx(0.4 - 0.2**2)
    assert constrained_variance(0.0, 0.0, 0.0) == 0
    assert constrained_variance(1.0, 0.0, 1.0) == pytest.approx(0)
    assert constrained_variance(0.0, 1.0, 1.0) >= 0


@pytest.mark.parametrize(("one", "other", "heights"), [(1.0, 0.0, (1e-17, -1.0)), (0.0, 1.0, (-1.0, 1e-17))])
def test_a_crossing_that_rounding_puts_on_an_end_is_that_end(one, other, heights):
    """Of two places the one at which next to nothing is left, and no height between is asked for."""

    def height(_):
        raise AssertionError("nothing lies between")

    assert _crossing(height, one, other, *heights) == 1.0


def test_a_crossing_is_found_from_either_side_and_an_end_without_height_is_it():
    for one, other in ((-1.0, 1.0), (1.0, -1.0)):
        assert _crossing(lambda x: x**3 - 0.125, one, other, one**3 - 0.125, other**3 - 0.125) == pytest.approx(0.5)
    assert _crossing(lambda _: 1 / 0, -1.0, 0.25, -1.0, 0.0) == 0.25
