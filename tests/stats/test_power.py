"""Detectable effects against statsmodels, pingouin and simulation."""

import math
from dataclasses import astuple

import numpy as np
import pingouin as pg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import integrate, optimize
from scipy import stats as scipy_stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import power_proportions_2indep

from quantverdict.stats.noninferiority import mean_loss
from quantverdict.stats.paired import constrained_variance, p_below, tango_interval
from quantverdict.stats.power import (
    mde_continuous,
    mde_paired,
    mde_paired_over,
    mde_unpaired,
    mean_outcome_probabilities,
    n_continuous,
    n_mean,
    n_noninferior,
    n_paired,
    n_rate,
    n_resolved,
    n_unpaired,
    outcome_probabilities,
    power_continuous,
    power_unpaired,
)


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.integers(5, 2000), st.integers(5, 2000))
def test_unpaired_power_is_that_of_statsmodels(p1, p2, n1, n2):
    theirs = power_proportions_2indep(p2 - p1, p1, n2, ratio=n1 / n2, return_results=False)
    assert power_unpaired(p1, p2, n1, n2) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize(("p", "n"), [(0.5, 285), (0.5, 200), (0.9, 220), (0.7, 50)])
def test_unpaired_detectable_drop_has_just_the_wanted_power(p, n):
    effect = mde_unpaired(p, n, n)
    assert power_unpaired(p, p - effect, n, n) == pytest.approx(0.8, abs=1e-9)
    assert power_unpaired(p, p - effect + 1e-4, n, n) < 0.8


def test_benchmarks_of_the_study_resolve_12_to_14_points_unpaired():
    """The study says about 9 pp at N = 200-285; that is one sample against a known rate (8.3 to 9.9 pp)."""
    assert [round(100 * mde_unpaired(0.5, n, n), 1) for n in (285, 200)] == [11.6, 13.8]
    reach = scipy_stats.norm.ppf(0.975) + scipy_stats.norm.ppf(0.8)
    assert [round(100 * reach * math.sqrt(0.25 / n), 1) for n in (285, 200)] == [8.3, 9.9]


def test_unpaired_detectable_drop_by_simulation():
    p, n = 0.8, 220
    effect = mde_unpaired(p, n, n)
    rng = np.random.default_rng(0)
    one, two = rng.binomial(n, p, 20_000) / n, rng.binomial(n, p - effect, 20_000) / n
    pooled = (one + two) / 2
    rejected = np.abs(one - two) > scipy_stats.norm.ppf(0.975) * np.sqrt(2 * pooled * (1 - pooled) / n)
    assert rejected.mean() == pytest.approx(0.8, abs=0.02)


def test_a_drop_that_cannot_occur_is_not_detectable():
    assert mde_unpaired(0.03, 220, 220) is None
    assert mde_unpaired(0.0, 220, 220) is None
    assert mde_unpaired(0.03, 220, 220, rise=True) is not None
    assert mde_unpaired(1.0, 5, 5) is not None
    assert mde_unpaired(0.5, 1, 1) is None


@pytest.mark.parametrize(("p", "effect"), [(0.5, -0.09), (0.9, -0.03), (0.2, 0.1)])
def test_needed_n_is_the_first_with_the_wanted_power(p, effect):
    n = n_unpaired(p, effect)
    assert power_unpaired(p, p + effect, n, n) >= 0.8 > power_unpaired(p, p + effect, n - 1, n - 1)


def test_no_n_for_an_effect_that_is_none():
    assert n_unpaired(0.5, 0.0) is None
    assert n_unpaired(0.5, -0.6) is None
    assert n_paired(0.2, 0.1) is None
    assert n_continuous(0.0, 1.0) is None


@given(st.integers(20, 5000), st.floats(0.01, 1.0))
def test_paired_effect_and_n_are_each_others_inverse(n, discordance):
    effect = mde_paired(n, discordance)
    if effect is None:
        z_a, z_b = scipy_stats.norm.ppf([0.975, 0.8])
        # Not even if every pair that differs differs the same way.
        assert discordance * math.sqrt(n) < z_a * math.sqrt(discordance) + z_b * math.sqrt(
            discordance * (1 - discordance)
        )
        return
    assert 0 < effect <= discordance
    assert n_paired(effect, discordance) in (n, n + 1)
    assert n_paired(effect * 0.99, discordance) >= n


def test_paired_detectable_difference_by_simulation():
    n, discordance = 285, 0.12
    effect = mde_paired(n, discordance)
    rng = np.random.default_rng(1)
    shares = [(discordance + effect) / 2, (discordance - effect) / 2, 1 - discordance]
    lost, gained, _ = rng.multinomial(n, shares, 20_000).T
    rejected = (lost - gained) ** 2 > scipy_stats.chi2.ppf(0.95, 1) * (lost + gained)
    assert rejected.mean() == pytest.approx(0.8, abs=0.02)


def test_pairing_resolves_more_than_two_samples():
    assert mde_paired(285, 0.12) < mde_unpaired(0.5, 285, 285) / 1.9


@pytest.mark.parametrize(("margin", "discordance"), [(0.05, 0.1), (0.03, 0.04), (0.1, 0.3)])
def test_pairs_for_noninferiority_by_simulation(margin, discordance):
    n = n_noninferior(margin, discordance)
    rng = np.random.default_rng(2)
    draws = rng.multinomial(n, [discordance / 2, discordance / 2, 1 - discordance], 1500)
    shown = sum(tango_interval(gained, lost, n).lo > -margin for gained, lost, _ in draws)
    assert shown / 1500 == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize("margin", [0.01, 0.05, 0.2])
def test_noninferiority_needs_pairs_even_where_none_differs(margin):
    n = n_noninferior(margin, 0.0)
    assert tango_interval(0, 0, n).lo >= -margin - 1e-12
    assert tango_interval(0, 0, n - 1).lo < -margin


def integrated_power(shift, dof):
    bound = scipy_stats.t.ppf(0.975, dof)

    def beyond(s):
        return (scipy_stats.norm.sf(bound * s - shift) + scipy_stats.norm.cdf(-bound * s - shift)) * density(s)

    def density(s):
        return scipy_stats.chi2.pdf(dof * s * s, dof) * 2 * dof * s

    return integrate.quad(beyond, 0, 8, limit=400, points=[shift / bound] if shift < 8 * bound else None)[0]


@example(2.4375, 0.75, 146)
@given(st.floats(0.01, 3), st.floats(0.1, 10), st.integers(2, 300))
def test_continuous_power_is_that_of_statsmodels(effect, sd, n):
    theirs = TTestPower().power(effect / sd, n, 0.05)
    if math.isnan(theirs):
        # scipy's two-sided sum gives up far from the null; the definition does not.
        theirs = integrated_power(effect / sd * math.sqrt(n), n - 1)
    assert power_continuous(effect, sd, n) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize(("n", "sd"), [(10, 1.0), (50, 0.1), (285, 12.0)])
def test_continuous_detectable_difference_is_that_of_pingouin(n, sd):
    assert mde_continuous(n, sd) == pytest.approx(pg.power_ttest(n=n, power=0.8, contrast="paired") * sd, rel=1e-6)


@pytest.mark.parametrize("standard", [0.1, 0.3, 1.2])
def test_needed_pairs_are_those_of_pingouin(standard):
    assert n_continuous(standard, 1.0) == math.ceil(pg.power_ttest(d=standard, power=0.8, contrast="paired"))


def test_continuous_at_its_ends():
    assert mde_continuous(1, 1.0) is None
    assert mde_continuous(50, 0.0) == 0
    assert mde_continuous(2, 1.0) > 5


@pytest.mark.parametrize(("power", "alpha"), [(0.05, 0.05), (1.0, 0.05), (0.8, 0.0)])
def test_power_and_alpha_out_of_order_are_refused(power, alpha):
    with pytest.raises(ValueError, match="expected"):
        mde_unpaired(0.5, 100, 100, power, alpha)


@given(st.integers(10, 2000), st.floats(0, 0.5))
def test_a_difference_over_a_background_is_the_fixed_point_of_the_paired_one(n, background):
    """With discordance = background + effect, the effect is what `mde_paired` calls the smallest detectable one."""
    effect = mde_paired_over(n, background)
    if effect is None:
        assert mde_paired(n, 1.0) is None or mde_paired(n, 1.0) > 1 - background
    else:
        assert mde_paired(n, background + effect) == pytest.approx(effect, rel=1e-6)


@pytest.mark.parametrize(
    ("n", "loss", "margin"), [(40, 0.0, 0.1), (120, 0.05, 0.0), (120, 0.3, 0.05), (60, -0.1, 0.05)]
)
def test_chances_of_outcomes_are_those_of_simulated_tables(n, loss, margin):
    share = max(0.1, abs(loss))
    lost, gained = (share + loss) / 2, (share - loss) / 2
    tables = np.random.default_rng(n).multinomial(n, [lost, gained, 1 - share], size=4000)
    kinds, counts = np.unique(tables[:, :2], axis=0, return_counts=True)
    seen = {"non_inferior": 0, "inferior": 0, "not_resolvable": 0}
    for (b, c), count in zip(kinds.tolist(), counts.tolist(), strict=True):
        below, above = p_below(b, c, n, margin), p_below(c, b, n, -margin)
        seen["non_inferior" if below <= 0.025 else "inferior" if above <= 0.025 else "not_resolvable"] += count
    found = outcome_probabilities(n, 0.1, loss, margin)
    for outcome, count in seen.items():
        assert getattr(found, outcome) == pytest.approx(count / 4000, abs=0.025)


@pytest.mark.parametrize(
    ("discordance", "loss", "margin"), [(0.0, 0.0, 0.05), (0.02, 0.0, 0.05), (0.1, 0.0, 0.05), (0.1, 0.2, 0.05)]
)
def test_planned_n_resolves_with_the_wanted_power_and_three_quarters_of_it_do_not(discordance, loss, margin):
    n = n_resolved(discordance, loss, margin)
    which = "non_inferior" if loss < margin else "inferior"
    assert getattr(outcome_probabilities(n, discordance, loss, margin), which) >= 0.8
    assert getattr(outcome_probabilities(int(0.75 * n), discordance, loss, margin), which) < 0.8


def test_planned_n_of_equal_builds_is_near_nams_and_none_resolves_a_loss_at_the_margin():
    for discordance in (0.02, 0.05, 0.1):
        nam = n_noninferior(0.05, discordance)
        assert 0.85 * nam <= n_resolved(discordance, 0.0, 0.05) <= 1.08 * nam, "fewer, where hardly any pair differs"
    assert n_resolved(0.1, 0.05, 0.05) is None


def test_what_cannot_be_planned_is_refused():
    for arguments in ((0, 0.1, 0.0, 0.05), (10, 1.1, 0.0, 0.05), (10, 0.1, 2.0, 0.05), (10, 0.1, 0.0, 1.0)):
        with pytest.raises(ValueError):
            outcome_probabilities(*arguments)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ({"n": 1}, {"n": 0}),
        ({"discordance": 0.0}, {"discordance": -0.01}),
        ({"discordance": 1.0}, {"discordance": 1.01}),
        ({"true_loss": 1.0}, {"true_loss": 1.01}),
        ({"true_loss": -1.0}, {"true_loss": -1.01}),
        ({"margin": 0.0}, {"margin": -0.01}),
        ({"margin": 0.99}, {"margin": 1.0}),
        ({"alpha": 0.001}, {"alpha": 0.0}),
        ({"alpha": 0.499}, {"alpha": 0.5}),
    ],
)
def test_outcomes_have_chances_up_to_the_ends_of_every_range_and_not_beyond(right, wrong):
    """Each end is the last that is answered: the next is refused, whatever the others are."""
    usual = {"n": 50, "discordance": 0.2, "true_loss": 0.0, "margin": 0.05, "alpha": 0.025}
    chances = outcome_probabilities(**usual | right)
    assert sum(astuple(chances)) == pytest.approx(1)
    assert all(-1e-9 <= chance <= 1 + 1e-9 for chance in astuple(chances))
    with pytest.raises(ValueError, match="pairs"):
        outcome_probabilities(**usual | wrong)


@pytest.mark.parametrize(("n", "loss", "sd"), [(30, 0.0, 0.1), (60, 0.0, 0.2), (150, 0.0, 0.15), (150, 0.1, 0.15)])
def test_chances_of_a_mean_are_those_of_simulated_differences(n, loss, sd):
    """Within 5 points, at 2.5 % and at a tenth of it; 30 pairs cannot rule out rare whole losses, so none passes."""
    draw = np.random.default_rng(n)
    found = [mean_loss(draw.normal(loss, sd, n), 0.05) for _ in range(800)]
    for alpha in (0.025, 0.0025):
        planned = mean_outcome_probabilities(n, sd, loss, 0.05, alpha)
        assert np.mean([one.p_noninferior <= alpha for one in found]) == pytest.approx(planned.non_inferior, abs=0.05)
        assert np.mean([one.p_inferior <= alpha for one in found]) == pytest.approx(planned.inferior, abs=0.08)
        assert planned.not_resolvable == pytest.approx(1 - planned.non_inferior - planned.inferior)


def test_chances_of_a_mean_at_their_ends():
    assert mean_outcome_probabilities(1, 0.1, 0.0, 0.05).not_resolvable == 1
    assert mean_outcome_probabilities(10_000, 0.001, 0.0, 0.05).non_inferior == 1
    assert mean_outcome_probabilities(10_000, 0.001, 0.1, 0.05).inferior == 1
    with pytest.raises(ValueError, match="sd 0"):
        mean_outcome_probabilities(10, 0, 0.0, 0.05)


def test_a_planned_n_of_millions_is_that_of_the_normal_approximation():
    assert n_resolved(0.1, 0.0, 0.001) == n_noninferior(0.001, 0.1)
    assert n_resolved(0.1, 0.0499999999, 0.05) is None, "as good as the margin"


def test_rates_at_their_ends_differ_for_certain_or_not_at_all():
    assert power_unpaired(1.0, 0.0, 20, 20) == 1
    assert power_unpaired(1.0, 0.0, 1, 1) == 0
    assert power_unpaired(1.0, 1.0, 20, 20) == 0
    assert n_unpaired(0.5, 0.5) == next(n for n in range(1, 99) if power_unpaired(0.5, 1.0, n, n) >= 0.8)
    assert n_unpaired(0.5, -0.5) == n_unpaired(0.5, 0.5)
    assert n_unpaired(0.0, 1.0) == next(n for n in range(1, 99) if power_unpaired(0.0, 1.0, n, n) >= 0.8)
    assert n_unpaired(0.5, 0.5000001) is None


@pytest.mark.parametrize("rise", [False, True])
def test_an_unpaired_effect_is_exact_to_its_last_digits_either_way(rise):
    p, sign = 0.3, 1 if rise else -1
    effect = mde_unpaired(p, 300, 150, 0.9, 0.01, rise=rise)
    reached = [power_unpaired(p, p + sign * effect * by, 300, 150, 0.01) for by in (1, 1 - 1e-9)]
    assert reached[0] >= 0.9 > reached[1]


def test_the_least_n_is_found_from_one_up_and_not_beyond_a_million_millions():
    assert n_continuous(50.0, 1.0) == 2
    assert n_continuous(1.0, 2.0) == n_continuous(0.5, 1.0) == n_continuous(0.25, 0.5)
    assert n_continuous(-0.5, 1.0) == n_continuous(0.5, 1.0)
    assert n_continuous(0.5, 0.0) is None
    assert n_continuous(0.5, -1.0) is None
    assert n_unpaired(0.5, 1e-8) is None
    n = n_unpaired(0.5, 2e-6)
    assert 2**39 < n < 2**41
    assert power_unpaired(0.5, 0.500002, n, n) >= 0.8 > power_unpaired(0.5, 0.500002, n - 1, n - 1)


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        (mde_paired, (100, -0.01)), (mde_paired, (100, 1.01)), (mde_paired, (0, 0.5)),
        (mde_paired_over, (100, -0.01)), (mde_paired_over, (100, 1.0)), (mde_paired_over, (0, 0.5)),
        (n_noninferior, (0.0, 0.1)), (n_noninferior, (1.0, 0.1)), (n_noninferior, (0.1, -0.01)),
        (n_noninferior, (0.1, 1.01)),
        (n_rate, (0.1, 0.0, 0.0)), (n_rate, (0.1, 0.0, 1.0)), (n_rate, (-0.01, 0.0, 0.1)), (n_rate, (1.01, 0.0, 0.1)),
        (n_rate, (0.1, 1.01, 0.1)), (n_rate, (0.1, -1.01, 0.1)),
        (mean_outcome_probabilities, (0, 0.1, 0.0, 0.05)), (mean_outcome_probabilities, (9, 0.0, 0.0, 0.05)),
        (mean_outcome_probabilities, (9, 0.1, 0.0, 0.0)), (mean_outcome_probabilities, (9, 0.1, 0.0, 1.0)),
        (mean_outcome_probabilities, (9, 0.1, 0.0, 0.05, 0.0)), (mean_outcome_probabilities, (9, 0.1, 0.0, 0.05, 0.5)),
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_refused_by_every_plan(call, wrong):
    with pytest.raises(ValueError):
        call(*wrong)


def test_what_is_at_the_end_of_its_range_is_planned():
    assert mde_paired(1, 0.5) is None
    assert mde_paired(1000, 0.0) is None
    assert mde_paired(1000, 1.0) == pytest.approx(0.08849, abs=1e-5)
    assert mde_paired_over(1000, 0.0) == pytest.approx((1.959964 + 0.841621) ** 2 / 1000, rel=5e-3)
    assert mde_paired_over(1, 0.5) is None
    assert n_paired(0.2, 0.2) == math.ceil((1.9599640 * 0.2**0.5 + 0.8416212 * 0.16**0.5) ** 2 / 0.04)
    assert n_paired(-0.2, 0.2) == n_paired(0.2, 0.2)
    assert n_paired(0.0, 0.2) is None
    assert n_paired(0.2, 1.0) is not None
    assert n_paired(0.2, 1.0001) is None
    assert n_noninferior(0.999, 1.0) >= 1
    assert n_rate(1.0, 1.0, 0.5) is not None
    assert n_rate(0.0, -1.0, 0.999) == 1
    assert mean_outcome_probabilities(2, 0.1, 0.0, 0.999, 0.499).not_resolvable < 1


@pytest.mark.parametrize("n", [20, 200, 3000])
def test_a_paired_effect_solves_connors_equation(n):
    for discordance in (0.05, 0.3, 0.9):
        effect = mde_paired(n, discordance, 0.9, 0.01)
        z_a, z_b = scipy_stats.norm.ppf([0.995, 0.9])
        if effect is not None and effect < discordance:
            right = z_a * math.sqrt(discordance) + z_b * math.sqrt(discordance - effect**2)
            assert effect * math.sqrt(n) == pytest.approx(right, rel=1e-9)
            assert n_paired(effect, discordance, 0.9, 0.01) in (n, n + 1)


def test_pairs_for_noninferiority_are_nams_formula():
    """With the likeliest share of lost pairs under a difference of -margin, found by an optimiser of scipy."""
    for margin, discordance in ((0.05, 0.1), (0.02, 0.3), (0.3, 0.02)):
        half = discordance / 2

        def unlikely(q, half=half, margin=margin):
            return -(half * math.log(q) + half * math.log(q - margin) + (1 - 2 * half) * math.log(1 - 2 * q + margin))

        lost = optimize.minimize_scalar(
            unlikely, bounds=(margin + 1e-12, (1 + margin) / 2 - 1e-12), method="bounded", options={"xatol": 1e-13}
        ).x
        null = 2 * lost - margin - margin**2
        z_a, z_b = scipy_stats.norm.ppf([0.95, 0.9])
        n = ((z_a * math.sqrt(null) + z_b * math.sqrt(discordance)) / margin) ** 2
        assert n_noninferior(margin, discordance, 0.9, 0.9) == pytest.approx(n, rel=1e-3, abs=1)


@pytest.mark.parametrize(
    ("discordance", "loss", "margin"), [(0.1, 0.0, 0.05), (0.2, 0.3, 0.05), (0.05, -0.05, 0.02), (0.4, 0.1, 0.2)]
)
def test_pairs_that_tell_a_loss_are_nams_with_the_true_variance(discordance, loss, margin):
    share = max(discordance, abs(loss))
    null = constrained_variance((share - loss) / 2, (share + loss) / 2, -margin)
    z_a, z_b = scipy_stats.norm.ppf([0.99, 0.9])
    n = ((z_a * math.sqrt(null) + z_b * math.sqrt(share - loss**2)) / (margin - loss)) ** 2
    assert n_rate(discordance, loss, margin, 0.9, 0.01) == math.ceil(n)
    assert n_mean(0.3, loss, margin, 0.9, 0.01) == max(
        math.ceil((0.3 * (z_a + z_b) / (margin - loss)) ** 2),
        math.ceil(math.log(0.01) / math.log(1 - margin)) * (loss < margin),
    )


def test_a_loss_next_to_the_margin_takes_more_pairs_than_anybody_asks():
    assert n_rate(0.1, 0.05 - 1e-8, 0.05) is None
    assert n_rate(0.1, 0.05, 0.05) is None
    assert n_mean(0.1, 0.05, 0.05) is None
    assert 2**36 < n_rate(0.1, 0.05 - 2e-6, 0.05) < 2**40
    assert n_mean(1e-9, 0.5, 0.05) == 1


@pytest.mark.parametrize(
    ("discordance", "loss", "margin", "power", "alpha"),
    [
        (0.1, 0.0, 0.05, 0.8, 0.025),
        (0.1, 0.2, 0.05, 0.9, 0.01),
        (0.0, 0.0, 0.1, 0.8, 0.025),
        (0.3, 0.5, 0.1, 0.95, 0.025),
    ],
)
def test_a_planned_n_is_within_its_step_of_one_that_does_not_do(discordance, loss, margin, power, alpha):
    n = n_resolved(discordance, loss, margin, power, alpha)

    def reached(pairs):
        found = outcome_probabilities(pairs, discordance, loss, margin, alpha)
        return found.non_inferior if loss < margin else found.inferior

    assert reached(n) >= power
    assert n == 1 or reached(n - max(1, n // 25)) < power


def test_chances_of_a_mean_are_those_of_scipys_noncentral_t():
    for n, loss in ((200, 0.0), (200, 0.08), (90, 0.05)):
        found = mean_outcome_probabilities(n, 0.2, loss, 0.05, 0.01)
        bound, shift = scipy_stats.t.ppf(0.99, n - 1), (0.05 - loss) * math.sqrt(n) / 0.2
        within = scipy_stats.nct.sf(bound, n - 1, shift) if 0.95**n <= 0.01 else 0.0
        beyond = scipy_stats.nct.sf(bound, n - 1, -shift)
        assert astuple(found) == pytest.approx((within, beyond, 1 - within - beyond), abs=1e-9)


@pytest.mark.parametrize(("alpha", "passes"), [(0.95**60, True), (0.95**60 - 1e-9, False)])
def test_as_many_prompts_as_rule_out_rare_whole_losses_are_enough(alpha, passes):
    assert (mean_outcome_probabilities(60, 0.01, 0.0, 0.05, alpha).non_inferior > 0) == passes


def test_a_detectable_mean_has_just_the_wanted_power():
    for n, power, alpha in ((2, 0.8, 0.05), (12, 0.9, 0.01), (400, 0.6, 0.1)):
        effect = mde_continuous(n, 2.0, power, alpha)
        assert power_continuous(effect, 2.0, n, alpha) == pytest.approx(power, abs=1e-8)
    assert mde_continuous(9, -1.0) is None
    assert mde_continuous(2, 0.0) == 0


@pytest.mark.parametrize(("effect", "n"), [(0.0, 20), (1.2, 17), (0.6, 69), (9.0, 300)])
def test_both_tails_count_towards_the_power_of_a_mean(effect, n):
    bound, shift = scipy_stats.t.ppf(0.95, n - 1), effect * math.sqrt(n)
    far = scipy_stats.nct.cdf(-bound, n - 1, shift) if shift < 5 else 0.0
    near = scipy_stats.nct.sf(bound, n - 1, shift) if shift < 30 else 1.0
    assert power_continuous(effect, 1.0, n, 0.1) == pytest.approx(near + far, abs=1e-9)
    assert power_continuous(-effect, 1.0, n, 0.1) == power_continuous(effect, 1.0, n, 0.1)


@pytest.mark.parametrize(("power", "alpha"), [(0.8, 0.0), (0.8, 0.8), (1.0, 0.05), (0.8, -0.1)])
def test_every_plan_wants_a_power_above_its_level(power, alpha):
    for call, rest in ((n_unpaired, (0.5, 0.1)), (mde_paired, (100, 0.2)), (mde_paired_over, (100, 0.2)),
                       (n_paired, (0.1, 0.2)), (mde_continuous, (50, 1.0)), (n_continuous, (0.1, 1.0)),
                       (n_resolved, (0.1, 0.0, 0.05))):  # fmt: skip
        with pytest.raises(ValueError, match="expected"):
            call(*rest, power, alpha)
    with pytest.raises(ValueError, match="expected"):
        n_noninferior(0.05, 0.1, power, 1 - alpha)


@pytest.mark.parametrize(
    ("discordance", "loss", "margin", "n"),
    [(0.05, 0.0, 0.3, 17), (0.05, 0.0, 0.4, 10), (0.1, 0.1, 0.5, 12), (0.2, 0.0, 0.4, 15), (0.5, 0.1, 0.5, 24),
     (0.05, 0.8, 0.4, None)],
)  # fmt: skip
def test_few_pairs_are_counted_one_by_one(discordance, loss, margin, n):
    """At the number the chance is reached, and at one less it is not; the normal approximation stops short of it."""
    found = n_resolved(discordance, loss, margin)
    if n is not None:
        assert found == n

    def chance(pairs):
        outcome = outcome_probabilities(pairs, max(discordance, loss), loss, margin)
        return outcome.non_inferior if loss < margin else outcome.inferior

    assert chance(found) >= 0.8
    assert found == 1 or chance(found - 1) < 0.8


@pytest.mark.parametrize(("discordance", "loss", "margin"), [(0.3, 0.01, 0.012), (0.5, 0.2, 0.202), (0.4, 0.1, 0.098)])
def test_beyond_100_000_pairs_the_number_is_that_of_the_normal_approximation(discordance, loss, margin):
    """Nam (1997): ((z_a sd0 + z_b sd1) / (margin - loss))^2, sd1^2 = discordance - loss^2."""
    lost, gained = (discordance + loss) / 2, (discordance - loss) / 2
    null = constrained_variance(gained, lost, -margin)
    z_a, z_b = scipy_stats.norm.ppf([0.975, 0.8])
    expected = ((z_a * math.sqrt(null) + z_b * math.sqrt(discordance - loss**2)) / (margin - loss)) ** 2
    assert expected > 100_000
    assert n_resolved(discordance, loss, margin) == math.ceil(expected)
