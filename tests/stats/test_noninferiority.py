"""Three outcomes of a paired loss: exact where pairs are independent, careful where they are not."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from quantverdict.stats.noninferiority import (
    Loss,
    Part,
    Room,
    _unskewed,
    cluster_sums,
    clustered_rate_loss,
    design_effect,
    mean_loss,
    outcome,
    outcomes,
    rate_limits,
    rate_loss,
    rate_tests,
    resolved,
    unmet,
    unmet_loss,
    weighted_limit,
    weighted_p,
)
from quantverdict.stats.paired import p_below


@settings(max_examples=40)
@given(st.integers(2, 120), st.sampled_from([0.0, 0.02, 0.05, 0.2]), st.data())
def test_limits_and_tests_of_a_rate_say_the_same(n, margin, data):
    lost = data.draw(st.integers(0, n))
    found = rate_loss(lost, data.draw(st.integers(0, n - lost)), n, margin)
    assert found.lo <= found.estimate <= found.hi
    assert (found.p_noninferior <= 0.025) == (found.hi <= margin)
    assert (found.p_inferior <= 0.025) == (found.lo >= margin)


def test_builds_that_agree_are_non_inferior_only_where_enough_was_asked():
    """None of 50 differs: up to 7.1 pp may still be lost, as (1 - 0.071)^50 = 2.5 % says; 100 show 5 pp."""
    few, many = rate_loss(0, 0, 50, 0.05), rate_loss(0, 0, 100, Fraction(1, 20))
    assert few.hi == pytest.approx(1 - 0.025 ** (1 / 50), abs=5e-4)
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
    se = scipy_stats.sem(differences)
    dof = min(199, 1.5 * 200 / (scipy_stats.kurtosis(differences, fisher=False) - 1))
    assert found.p_noninferior == pytest.approx(scipy_stats.t.cdf((differences.mean() - 0.025) / se, dof))
    reach = se * scipy_stats.t.ppf(0.975, dof)
    unseen = 1 - 0.025 ** (1 / 200)
    assert (found.lo, found.hi) == pytest.approx((0.02 - max(reach, unseen), 0.02 + reach))


def test_degrees_of_freedom_are_never_more_than_the_units_leave():
    """A coin's differences have the least kurtosis, 1, and t has n - 1."""
    differences = np.tile([0.1, -0.06], 50)
    theirs = scipy_stats.ttest_1samp(differences, 0.05, alternative="less")
    assert mean_loss(differences, 0.05, largest=0.5).p_noninferior == pytest.approx(max(theirs.pvalue, 0.9**100))


def test_skewness_is_taken_out_only_against_the_claim():
    """Of the two statistics each test has the one that says less."""
    for sign in (1, -1):
        differences = sign * np.random.default_rng(1).exponential(0.08, 400)
        se, mean = scipy_stats.sem(differences), differences.mean()
        dof = min(399, 1.5 * 400 / (scipy_stats.kurtosis(differences, fisher=False) - 1))
        skew = float(scipy_stats.skew(differences)) * (399 / 400) ** 1.5 / 20
        for margin in (0.02, 0.09, 0.2):
            t = (mean - margin) / se
            cubic = t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / 6
            found = mean_loss(differences, margin, largest=0.2)
            rare = max(0.0, 1 - margin / 0.2) ** 400
            assert found.p_noninferior == pytest.approx(max(scipy_stats.t.cdf(max(t, cubic), dof), rare), abs=1e-12)
            unseen = (1 - max(mean - margin, 0)) ** 400
            assert found.p_inferior == pytest.approx(max(scipy_stats.t.sf(min(t, cubic), dof), unseen), abs=1e-12)


def test_what_no_prompt_met_is_spread_over_metrics_where_it_is_likeliest_to_be_missed():
    """`unmet` against a search over every split of the loss; alone it is (1 - loss / largest)^units."""
    assert unmet((Room(50, 1.0, 0.5),), 0.05) == pytest.approx(0.9**50)
    assert unmet((Room(50, 1.0, 0.5),), 0.5) == 0
    rooms = (Room(40, 0.25, 1.0), Room(100, 0.75, 0.4))
    for loss in (0.01, 0.05, 0.2):
        parts = np.linspace(0, min(loss, 0.25), 200_001)
        rates = parts / 0.25, (loss - parts) / 0.3
        chances = np.maximum(1 - rates[0], 0) ** 40 * np.maximum(1 - rates[1], 0) ** 100
        assert unmet(rooms, loss) == pytest.approx(chances[rates[1] <= 1].max(), rel=1e-6)
        assert unmet_loss(rooms, unmet(rooms, loss)) == pytest.approx(loss, rel=1e-6)
    assert mean_loss([0.0] * 140, 0.05, largest=rooms).p_noninferior >= unmet(rooms, 0.05)


def test_mean_takes_skewness_out_as_hall_does():
    """Hall's (1992) cubic by its formula, from scipy's moments; and its limits invert the tests."""
    differences = np.random.default_rng(1).exponential(0.08, 400)
    n, skew = 400, float(scipy_stats.skew(differences)) * (399 / 400) ** 1.5
    t = (differences.mean() - 0.09) / (differences.std(ddof=1) / 20)
    cubic = t + skew * t**2 / (3 * n**0.5) + skew**2 * t**3 / (27 * n) + skew / (6 * n**0.5)
    found = mean_loss(differences, 0.09)
    dof = min(n - 1, 1.5 * n / (scipy_stats.kurtosis(differences, fisher=False) - 1))
    assert found.p_noninferior == pytest.approx(scipy_stats.t.cdf(cubic, dof), rel=1e-6)
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
    assert lost.p_inferior == pytest.approx((1 - (8 / 12 - 0.05)) ** 12), "gains that nobody met would make up for it"
    few = mean_loss([1.0] * 4 + [0.0] * 20, 0.05)
    assert few.p_inferior == pytest.approx(max(scipy_stats.binom.sf(3, 24, 0.05), (1 - (4 / 24 - 0.05)) ** 24))
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


def slow_mean_loss(values, margin, alpha, labels, largest):
    """`mean_loss` read out once more, one unit after the other, by SciPy's distributions."""
    groups = {}
    for at, (value, label) in enumerate(zip(values, labels or [None] * len(values), strict=True)):
        groups.setdefault(("alone", at) if label is None else label, []).append(value)
    n, k = len(values), len(groups)
    mean = sum(values) / n
    units = n**2 / sum(len(group) ** 2 for group in groups.values())
    rests = [sum(group) - len(group) * mean for group in groups.values()]
    se = (k / (k - 1) * sum(rest**2 for rest in rests)) ** 0.5 / n
    effect = max(1.0, se**2 / (sum((value - mean) ** 2 for value in values) / (n * (n - 1))))
    whole = int(units)
    if sum(sum(group) != 0 for group in groups.values()) < 10:
        means = [sum(group) / len(group) for group in groups.values()]
        share = min(margin / largest, 1.0)
        lost = min(whole, round(sum(m for m in means if m > 0) / largest))
        net = min(whole, max(0, int(sum(means) / largest)))
        hi = 1.0 if lost == whole else scipy_stats.beta.ppf(1 - alpha, lost + 1, whole - lost)
        below = max(scipy_stats.binom.cdf(lost, whole, share), (1 - share) ** whole)
        above = scipy_stats.binom.sf(net - 1, whole, share) if net else 1.0
        lo = scipy_stats.beta.ppf(alpha, net, whole - net + 1) if net else -1.0
        lo, hi = lo * largest, hi * largest
    else:
        skew = sum(rest**3 for rest in rests) / k / (se * n / k**0.5) ** 3 / k**0.5
        t = (mean - margin) / se
        cubic = t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / 6
        kurtosis = sum(rest**4 for rest in rests) * k / sum(rest**2 for rest in rests) ** 2
        dof = max(1, min(units - 1, 1.5 * units / (kurtosis - 1)))
        below = max(scipy_stats.t.cdf(max(t, cubic), dof), (1 - min(margin / largest, 1.0)) ** whole)
        above = scipy_stats.t.sf(min(t, cubic), dof)
        reach = scipy_stats.t.ppf(1 - alpha, dof)
        lo = mean - se * max(reach, 3 / skew * (np.cbrt(1 + skew * (reach - skew / 6)) - 1))
        hi = mean - se * min(-reach, 3 / skew * (np.cbrt(1 + skew * (-reach - skew / 6)) - 1))
    hi = max(hi, largest * (1 - alpha ** (1 / whole)))
    lo = min(lo, mean - (1 - alpha ** (1 / whole)))
    above = max(above, (1 - min(max(mean - margin, 0), 1)) ** whole)
    return mean, max(lo, -largest), min(hi, largest), below, above, k, effect


@settings(max_examples=80)
@given(
    st.integers(0, 2**32),
    st.sampled_from([3, 9, 10, 11, 40, 150]),
    st.sampled_from([1, 3]),
    st.sampled_from([0.02, 0.3, 0.9]),
    st.sampled_from([0.2, 0.4, 1.0]),
    st.sampled_from([0.001, 0.025, 0.2]),
    st.sampled_from([0.0, 0.3, 2.0]),
)
def test_a_mean_loss_is_what_its_definition_says(seed, n, size, share, largest, alpha, shift):
    """Few and many units that differ, clusters, skewed values, gains and losses."""
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(n * size) < share, rng.exponential(0.1, n * size) + shift * 0.05, 0.0)
    values = np.where(rng.random(n * size) < 0.2, -values, values)
    labels = None if size == 1 else [int(at) for at in rng.integers(0, n, n * size)]
    if np.ptp(values) == 0 or (labels is not None and len(set(labels)) == 1):
        return
    expected = slow_mean_loss(values.tolist(), 0.05, alpha, labels, largest)
    found = mean_loss(values, 0.05, alpha, labels, largest)
    ours = (found.estimate, found.lo, found.hi, found.p_noninferior, found.p_inferior, found.units, found.design_effect)
    assert ours == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert (found.n, found.differing) == (len(values), int((values != 0).sum()))


def slow_design_effect(groups, alpha):
    n, k = sum(map(len, groups)), len(groups)
    most = sum(len(group) ** 2 for group in groups) / n
    if k == 1 or most == 1:
        return most
    differing = sum(value != 0 for group in groups for value in group)
    mean = sum(map(sum, groups)) / n
    alone = differing - n * mean**2
    between = k / (k - 1) * sum((sum(group) - len(group) * mean) ** 2 for group in groups)
    seen = min(max(between / alone, 1.0), most) if alone > 1e-12 else most
    seen = (differing * seen + most) / (differing + 1)
    few = scipy_stats.t.ppf(1 - alpha, n / most - 1) / scipy_stats.norm.ppf(1 - alpha)
    return min(seen * few**2, most)


GROUPS = st.lists(st.lists(st.sampled_from([-1, 0, 0, 0, 1]), min_size=1, max_size=5), min_size=1, max_size=12)


@given(GROUPS, st.sampled_from([0.001, 0.025, 0.2]))
def test_a_design_effect_is_what_its_definition_says(groups, alpha):
    sums, sizes = np.array([sum(group) for group in groups], float), np.array([len(group) for group in groups], float)
    differing = sum(value != 0 for group in groups for value in group)
    assert design_effect(sums, sizes, differing, alpha) == pytest.approx(slow_design_effect(groups, alpha), rel=1e-7)


@settings(max_examples=60)
@given(GROUPS, st.sampled_from([0.0, 0.05, 0.3]))
def test_clustered_counts_are_divided_and_rounded_against_the_claim(groups, margin):
    """By the exact test of what is left of them: lost up and gained down for `non_inferior`."""
    values = [value for group in groups for value in group]
    labels = [at for at, group in enumerate(groups) for _ in group]
    found = clustered_rate_loss(values, labels, margin)
    n, lost, gained = len(values), values.count(1), values.count(-1)
    assert (found.n, found.units, found.differing, found.estimate) == (
        n,
        len(groups),
        lost + gained,
        (lost - gained) / n,
    )
    if len(groups) == 1 and n > 1:
        assert (found.lo, found.hi, found.p_noninferior, found.p_inferior) == (-1, 1, 1, 1)
        return
    effect = found.design_effect
    fewer, more = max(1, math.floor(n / effect)), math.ceil(n / effect)
    up = min(math.ceil(lost / effect), fewer)
    within = p_below(up, min(math.floor(gained / effect), fewer - up), fewer, margin)
    down = math.ceil(gained / effect)
    beyond = p_below(down, min(math.floor(lost / effect), more - down), more, -margin)
    assert (found.p_noninferior, found.p_inferior) == (within, beyond)
    told = rate_tests((lost, gained, n), len(groups), effect, margin)
    speaks = [up - min(math.floor(gained / effect), fewer - up) < fewer * margin,
              down - min(math.floor(lost / effect), more - down) < -more * margin]  # fmt: skip
    assert told == tuple(p if speak else 1.0 for p, speak in zip((within, beyond), speaks, strict=True))


@settings(max_examples=25)
@given(st.integers(1, 90), st.sampled_from([0.0, 0.02, 0.2]), st.sampled_from([0.01, 0.025, 0.2]), st.data())
def test_limits_of_a_rate_are_the_losses_at_which_its_tests_turn(n, margin, alpha, data):
    lost = data.draw(st.integers(0, n))
    gained = data.draw(st.integers(0, n - lost))
    found = rate_loss(lost, gained, n, margin, alpha)
    step = 1.1e-5
    if found.hi < 1 and found.hi != margin:
        assert p_below(lost, gained, n, found.hi) <= alpha < p_below(lost, gained, n, found.hi - step)
    if found.lo > -1 and found.lo != margin:
        assert p_below(gained, lost, n, -found.lo) <= alpha < p_below(gained, lost, n, -found.lo - step)


@pytest.mark.parametrize(
    "call",
    [
        lambda: rate_loss(-1, 0, 5, 0.05),
        lambda: rate_loss(0, -1, 5, 0.05),
        lambda: rate_loss(0, 0, 5, 1.0),
        lambda: rate_loss(0, 0, 5, 0.05, alpha=0.0),
        lambda: clustered_rate_loss([1, 0], [None] * 2, 1.0),
        lambda: mean_loss([0.1, 0.2], 1.0),
        lambda: mean_loss([0.1, 0.2], 0.05, alpha=0.5),
        lambda: mean_loss([0.1, 0.2], -0.05),
        lambda: cluster_sums(np.zeros((2, 2)), ["a", "b"]),
        lambda: cluster_sums(np.zeros(2), ["a"]),
        lambda: cluster_sums(np.array([np.inf]), ["a"]),
        lambda: cluster_sums(np.zeros(0), []),
    ],
)
def test_what_is_out_of_range_is_refused(call):
    with pytest.raises(ValueError):
        call()


def test_ranges_hold_their_ends():
    assert rate_loss(5, 0, 5, 0.0).estimate == 1
    assert rate_loss(0, 5, 5, 0.99, alpha=0.499).estimate == -1
    sums, sizes = cluster_sums(np.array([1.0, 2.0, 4.0, 8.0]), ["a", None, "a", None])
    assert (sums.tolist(), sizes.tolist()) == ([5, 2, 8], [2, 1, 1])
    sums, sizes = cluster_sums(np.array([1.0, -0.0, 4.0]), ["a", "b", "c"])  # each a cluster of its own
    assert (sums.tolist(), sizes.tolist(), np.signbit(sums).any()) == ([1, 0, 4], [1, 1, 1], False)


def test_nothing_that_varies_is_decided_by_the_gap_alone():
    """Twelve equal losses: at the margin nothing is told, beyond it either way not without enough prompts."""
    for value, below, above in ((1 / 16, 1.0, 1.0), (1 / 8, 1.0, (15 / 16) ** 12), (1 / 32, (15 / 16) ** 12, 1.0)):
        found = mean_loss([value] * 12, 1 / 16)
        assert (found.p_noninferior, found.p_inferior) == (pytest.approx(below), above)


def test_one_cluster_proves_nothing_and_one_pair_is_tested_as_it_is():
    """Of 40 pairs in one cluster nothing is known of chance; a single pair is its own unit."""
    assert rate_tests((30, 0, 40), 1, 40.0, 0.05) == (1.0, 1.0)
    assert rate_tests((0, 0, 40), 1, 40.0, 0.05) == (1.0, 1.0)
    assert rate_tests((0, 0, 1), 1, 1.0, 0.05)[0] == p_below(0, 0, 1, 0.05)


@pytest.mark.parametrize(("about", "left"), [(0.55, 0.5**12), (0.3, 0.75**12), (1.3, 0.0)])
def test_units_that_all_lose_are_inferior_only_as_far_as_prompts_that_gain_everything_would_have_been_met(about, left):
    """Twelve losses alike: t leaves no doubt, but a share of what was seen beyond the margin could be made up unseen.

    Beyond a whole one nothing can make up for it.
    """
    values = [about + 0.001 * (-1) ** at for at in range(12)]
    assert mean_loss(values, 0.05).p_inferior == pytest.approx(left, rel=1e-6, abs=1e-15)
    assert mean_loss([-value for value in values], 0.05).p_inferior == 1


@pytest.mark.parametrize("largest", [1.0, 0.8])
def test_nine_whole_losses_of_a_hundred_are_scipys_binomial(largest):
    values = [largest] * 9 + [0.0] * 91
    found = mean_loss(values, 0.05 * largest, largest=largest)
    assert found.p_noninferior == pytest.approx(scipy_stats.binom.cdf(9, 100, 0.05))
    assert found.p_inferior == pytest.approx(scipy_stats.binom.sf(8, 100, 0.05))
    assert found.lo == pytest.approx(largest * scipy_stats.beta.ppf(0.025, 9, 92))
    assert found.hi == pytest.approx(largest * scipy_stats.beta.ppf(0.975, 10, 91))


def test_a_margin_beyond_the_largest_loss_is_never_lost():
    assert mean_loss([0.03] * 3 + [0.0] * 47, 0.05, largest=0.03).p_noninferior == 0


@pytest.mark.parametrize("skew", [0.0, 1e-10, -1e-10])
def test_without_skewness_students_quantile_is_left_as_it_is(skew):
    assert _unskewed(2.0, skew) == 2.0
    assert _unskewed(2.0, skew + 1e-3) == pytest.approx(2.0, abs=5e-3)
    assert _unskewed(2.0, skew + 1e-3) != 2.0


WEIGHED = ((0.25, 0.02, 0.01), (0.75, 0.06, 0.02))
"""Weight, estimate and standard error of two parts whose limits are normal: so is then their weighted mean's."""


def normal_parts(upper):
    sign = 1 if upper else -1
    return [Part(weight, estimate, lambda alpha, at=estimate, se=se: at + sign * scipy_stats.norm.isf(alpha) * se)
            for weight, estimate, se in WEIGHED]  # fmt: skip


MEAN = sum(weight * estimate for weight, estimate, _ in WEIGHED)
SE = math.hypot(*(weight * se for weight, _, se in WEIGHED))


@pytest.mark.parametrize("alpha", [0.001, 0.025, 0.3])
def test_the_limits_of_a_weighted_mean_of_normal_losses_are_its_own(alpha):
    reach = scipy_stats.norm.isf(alpha) * SE
    assert weighted_limit(normal_parts(True), alpha, upper=True) == pytest.approx(MEAN + reach)
    assert weighted_limit(normal_parts(False), alpha, upper=False) == pytest.approx(MEAN - reach)


def test_the_p_value_of_a_weighted_mean_is_the_level_at_which_its_limit_reaches_the_margin():
    """Normal losses: P(Z <= (mean - margin) / se), given as the upper end of a bracket of 1.5e-5 of itself."""
    for upper, sign in ((True, 1), (False, -1)):
        beyond = []
        for expected in (2e-7, 1e-5, 0.003, 0.024, 0.1, 0.3, 0.45):
            margin = MEAN + sign * scipy_stats.norm.isf(expected) * SE
            beyond.append(weighted_p(normal_parts(upper), margin, upper=upper) / expected - 1)
        assert min(beyond) > -1e-9
        assert max(beyond) < 1.5e-5
        for p, told in ((0.9e-7, 1e-7), (1e-9, 1e-7), (0.49995, 1.0), (0.5, 1.0), (0.6, 1.0), (0.99, 1.0)):
            margin = MEAN + sign * scipy_stats.norm.isf(p) * SE
            assert weighted_p(normal_parts(upper), margin, upper=upper) == pytest.approx(told, rel=1e-9)
        assert weighted_p(normal_parts(upper), MEAN + sign * scipy_stats.norm.isf(1.1e-7) * SE,
                          upper=upper) == pytest.approx(1.1e-7, rel=1e-4)  # fmt: skip
        assert weighted_p(normal_parts(upper), MEAN + sign * scipy_stats.norm.isf(0.4998) * SE,
                          upper=upper) == pytest.approx(0.4998, rel=1e-4)  # fmt: skip
        assert weighted_p(normal_parts(upper), sum(p.weight * p.estimate for p in normal_parts(upper)),
                          upper=upper) == 1  # fmt: skip


def test_a_p_value_of_exactly_alpha_rejects_and_its_limit_is_on_the_margins_other_side():
    lost, kept = rate_loss(12, 0, 100, 0.05), rate_loss(1, 0, 100, 0.05)
    assert rate_loss(12, 0, 100, 0.05, lost.p_inferior).lo >= 0.05
    assert rate_loss(12, 0, 100, 0.05, lost.p_inferior * (1 - 1e-9)).lo < 0.05
    assert rate_loss(1, 0, 100, 0.05, kept.p_noninferior).hi <= 0.05
    assert rate_loss(1, 0, 100, 0.05, kept.p_noninferior * (1 - 1e-9)).hi > 0.05
    assert outcome(lost, lost.p_inferior) == "inferior"
    assert outcome(kept, kept.p_noninferior) == "non_inferior"


def test_where_every_answer_was_lost_or_gained_a_limit_is_everything():
    assert rate_limits((12, 0, 12), 12, 1.0, 0.025, upper=True) == 1.0
    assert rate_limits((0, 12, 12), 12, 1.0, 0.025, upper=False) == -1.0
