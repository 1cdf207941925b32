"""Recovery: a build's score in percent of its baseline's, its interval by other implementations, and A/A noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from quantverdict.matrix.grid import grids, scores_frame
from quantverdict.matrix.noise import inside_noise
from quantverdict.matrix.recovery import COLUMNS, recoveries, recovery_table
from quantverdict.records import CellId, Score
from quantverdict.stats.paired import FEW, paired_mean_ratio, paired_rate_ratio

BASE, BUILD, ONE, TWO = (CellId("m", quant) for quant in ("FP16", "Q4_0", "null 1", "null 2"))
NULLS = {ONE: BASE, TWO: BASE}


def test_the_ratio_of_two_paired_rates_is_that_of_a_published_table():
    """Complete response of 161 patients before and after therapy (Cavo 2012, in Fagerland, Lydersen & Laake 2017)."""
    found = paired_rate_ratio(59, 6, 16)
    assert (round(found.lo, 4), round(found.hi, 4)) == (0.7579, 0.9910)


@pytest.mark.parametrize("counts", [(59, 6, 16), (300, 0, 0), (40, 3, 9), (1, 2, 0)])
def test_the_ratio_turned_round_has_the_limits_turned_round(counts):
    both, gained, lost = counts
    one, other = paired_rate_ratio(both, gained, lost), paired_rate_ratio(both, lost, gained)
    assert (one.lo, one.hi) == pytest.approx((1 / other.hi, 1 / other.lo))
    assert one.lo < (both + gained) / (both + lost) < one.hi


def test_a_rate_of_which_no_pair_differs_has_an_interval_and_a_baseline_of_nothing_none():
    found = paired_rate_ratio(100, 0, 0)
    assert 0.9 < found.lo < 1 < found.hi < 1.1
    assert paired_rate_ratio(0, 5, 0) is None
    assert paired_rate_ratio(0, 0, 4).lo == 0


def test_the_ratio_of_two_paired_means_is_where_a_t_test_turns():
    """Fieller's limits are the ratios at which scipy's t test of variant - ratio x baseline has p = 0.05."""
    draw = np.random.default_rng(3)
    base = draw.uniform(0.2, 1.0, 60)
    mine = np.clip(base + draw.normal(-0.05, 0.15, 60), 0, 1)
    found = paired_mean_ratio(mine, base)

    def turned(ratio):
        return stats.ttest_1samp(mine - ratio * base, 0).pvalue - 0.05

    middle = mine.mean() / base.mean()
    assert found.lo == pytest.approx(optimize.brentq(turned, middle - 0.3, middle), abs=1e-9)
    assert found.hi == pytest.approx(optimize.brentq(turned, middle, middle + 0.3), abs=1e-9)


def test_the_ratio_of_means_agrees_with_the_bootstrap():
    draw = np.random.default_rng(5)
    base = draw.uniform(0, 1, 400)
    mine = np.clip(base * draw.uniform(0.7, 1.2, 400), 0, 1)
    found = paired_mean_ratio(mine, base)

    def ratio(at):
        return mine[at].sum() / base[at].sum()

    limits = stats.bootstrap((np.arange(400),), ratio, vectorized=False, method="BCa", rng=draw, n_resamples=2000)
    assert (found.lo, found.hi) == pytest.approx(tuple(limits.confidence_interval), abs=0.004)


def test_prompts_of_a_cluster_are_one_unit():
    """Each prompt four times over has the interval of the prompts once; as prompts of their own, half of its width."""
    draw = np.random.default_rng(7)
    base, mine = draw.uniform(0.3, 1, 50), draw.uniform(0.3, 1, 50)
    once = paired_mean_ratio(mine, base)
    four = [np.repeat(values, 4) for values in (mine, base)]
    clustered, apart = paired_mean_ratio(*four, np.repeat(np.arange(50), 4).tolist()), paired_mean_ratio(*four)
    assert paired_mean_ratio(*four, [None] * 200) == apart
    assert (clustered.lo, clustered.hi) == pytest.approx((once.lo, once.hi))
    assert (apart.hi - apart.lo) / (once.hi - once.lo) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("differing", "known"), [(FEW - 1, False), (FEW, True)])
def test_means_of_which_too_few_differ_have_no_interval(differing, known):
    base = np.linspace(0.2, 1, 80)
    mine = base.copy()
    mine[:differing] /= 2
    assert (paired_mean_ratio(mine, base) is not None) is known


def test_a_baseline_that_cannot_be_told_from_nothing_has_no_interval():
    base = np.zeros(50)
    base[0] = 0.5
    assert paired_mean_ratio(np.linspace(0, 1, 50), base) is None


@pytest.mark.parametrize("flips", [0.02, 0.1])
@pytest.mark.parametrize("n", [60, 400])
def test_the_intervals_hold_what_is_true_in_nineteen_of_twenty_studies(n, flips):
    """500 simulated studies: rates of 0.8 of which the build loses as many as it gains, and means that lose a tenth."""
    draw = np.random.default_rng(n)
    rates, means = 0, 0
    for _ in range(500):
        base = draw.random(n) < 0.8
        mine = np.where(base, draw.random(n) >= flips, draw.random(n) < 4 * flips)
        found = paired_rate_ratio(*(int(part.sum()) for part in (base & mine, mine & ~base, base & ~mine)))
        rates += found.lo <= 1 <= found.hi
        scores = draw.beta(4, 2, n)
        other = paired_mean_ratio(0.9 * scores + draw.normal(0, 0.1, n), scores)
        means += other.lo <= 0.9 <= other.hi
    assert rates >= 465
    assert 460 <= means <= 490


# Over scores


def samples(arms, metric="refusal_rate", cluster=lambda at: None):
    """Each arm's values, None for no grade."""
    return grids(
        scores_frame(
            Score(*cell, "t", f"s{at:03d}", metric, value, cluster(at))
            for cell, values in arms.items()
            for at, value in enumerate(values)
        )
    )


def only(found):
    (one,) = found
    return one


def test_recovery_is_over_the_prompts_that_both_have_a_grade_for():
    arms = {BASE: [1.0] * 80 + [0.0] * 20, BUILD: [0.0] * 8 + [1.0] * 74 + [0.0] * 17 + [None]}
    one = only(recoveries(samples(arms), {BUILD: BASE}, {}))
    assert (one.n, one.baseline, one.score) == (99, pytest.approx(80 / 99), pytest.approx(74 / 99))
    assert one.ratio == pytest.approx(74 / 80)
    known = paired_rate_ratio(72, 2, 8)
    assert (one.within, one.noise) == (known, "")
    row = dict(zip(COLUMNS, only(recovery_table([one]).rows), strict=True))
    assert row["recovery_percent"] == pytest.approx(92.5)
    assert (row["recovery_lo"], row["recovery_hi"]) == pytest.approx((100 * known.lo, 100 * known.hi))


def test_of_what_is_better_when_it_is_less_the_rest_is_the_score():
    """Refused 10 of 100 safe prompts before and 19 after: 81 of 90 are answered still."""
    arms = {BASE: [1.0] * 10 + [0.0] * 90, BUILD: [1.0] * 19 + [0.0] * 81}
    one = only(recoveries(samples(arms, "over_refusal_rate"), {BUILD: BASE}, {}))
    assert one.ratio == pytest.approx(0.9)
    assert one.within == paired_rate_ratio(81, 0, 9)


def test_counts_of_clusters_are_divided_by_their_design_effect():
    arms = {BASE: [1.0] * 100, BUILD: [0.0] * 12 + [1.0] * 88}
    apart = only(recoveries(samples(arms), {BUILD: BASE}, {})).within
    together = only(recoveries(samples(arms, cluster=lambda at: f"c{at // 4}"), {BUILD: BASE}, {})).within
    assert together.lo < apart.lo < apart.hi < together.hi


def test_a_baseline_without_any_has_no_recovery_and_what_has_no_better_is_left_out():
    one = only(recoveries(samples({BASE: [0.0] * 30, BUILD: [1.0] * 30}), {BUILD: BASE}, {}))
    assert (one.ratio, one.within) == (None, None)
    assert only(recovery_table([one]).rows)[6:] == (None, None, None, None)
    assert recoveries(samples({BASE: [9.0] * 30, BUILD: [8.0] * 30}, "output_tokens"), {BUILD: BASE}, {}) == ()
    assert recoveries(samples({BASE: [1.0] * 30, BUILD: [None] * 30}), {BUILD: BASE}, {}) == ()


@pytest.mark.parametrize(("lost", "noise"), [(3, "inside"), (4, "beyond")])
def test_a_delta_is_noise_up_to_that_of_the_replicate_that_differs_most(lost, noise):
    base = [1.0] * 100
    arms = {BASE: base, ONE: [0.0] * 3 + base[3:], TWO: base, BUILD: base[lost:] + [0.0] * lost}
    assert only(recoveries(samples(arms), {BUILD: BASE}, NULLS)).noise == noise


def test_a_build_that_flips_many_answers_both_ways_is_not_noise_though_its_delta_is_zero():
    base = [1.0] * 100 + [0.0] * 100
    arms = {BASE: base, ONE: [0.0, *base[1:]], TWO: base, BUILD: [0.0] * 20 + base[20:180] + [1.0] * 20}
    grid = samples(arms)["refusal_rate"]
    assert inside_noise(grid, BUILD, BASE, NULLS) is False
    assert inside_noise(grid, BUILD, BASE, {}) is None
    assert inside_noise(grid, ONE, BASE, {TWO: BASE}) is False
