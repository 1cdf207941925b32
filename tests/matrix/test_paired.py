"""Comparisons from samples: counts, intervals, what is ungraded, clusters, and A/A replicates."""

from dataclasses import replace
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar

from quantverdict.config import StatisticsConfig
from quantverdict.matrix.deltas import Delta
from quantverdict.matrix.grid import grids, scores_frame
from quantverdict.matrix.noise import ALL, flips_over_floor, gains_over_floor, noise_floors, noise_table
from quantverdict.matrix.paired import ComparisonRules, comparisons, with_intervals
from quantverdict.records import CellId, Score
from quantverdict.stats.intervals import bootstrap_mean
from quantverdict.stats.noninferiority import cluster_sums, clustered_rate_loss, design_effect, mean_loss, rate_loss
from quantverdict.stats.paired import tango_interval

BASE, VARIANT = CellId("m", "FP16"), CellId("m", "Q4_K_M")


def scores(cell, metric, values, task="t", clusters=None):
    return [
        Score(*cell, task, f"s{at:04d}", metric, value, None if clusters is None else f"c{clusters[at]}")
        for at, value in enumerate(values)
    ]


def compare(*frames, margins=None, nulls=None):
    samples = grids(scores_frame([score for frame in frames for score in frame]))
    rules = ComparisonRules(margins or {}, 0.025, StatisticsConfig(), 42)
    return {one.metric: one for one in comparisons(samples, {VARIANT: BASE}, rules, {}, nulls or {})}


def arms(both, lost, gained, neither):
    """Answers of baseline and variant with these counts."""
    pairs = [(1.0, 1.0)] * both + [(1.0, 0.0)] * lost + [(0.0, 1.0)] * gained + [(0.0, 0.0)] * neither
    return tuple(zip(*pairs, strict=True))


def test_a_rate_against_tango_and_statsmodels():
    """Cavo et al. (2012) in Fagerland, Lydersen & Laake, chapter 8: Tango's limits -0.1240 and -0.0054 of 161 pairs."""
    before, after = arms(59, 16, 6, 80)
    found = compare(scores(BASE, "refusal_rate", before), scores(VARIANT, "refusal_rate", after))["refusal_rate"]
    assert (found.n, found.lost, found.gained, found.delta) == (161, 16, 6, Fraction(-1000, 161))
    assert (found.lo, found.hi) == (pytest.approx(-12.40, abs=0.005), pytest.approx(-0.54, abs=0.005))
    assert (round(found.p_value, 6), round(found.midp, 6)) == (0.052479, 0.034690)
    before, after = arms(60, 17, 6, 17)
    found = compare(scores(BASE, "refusal_rate", before), scores(VARIANT, "refusal_rate", after))["refusal_rate"]
    table = [[60, 17], [6, 17]]
    assert found.p_value == pytest.approx(mcnemar(table, exact=True).pvalue)
    assert found.interval_kind == "tango"
    assert found.clusters is None


def test_the_gate_of_a_rate_is_that_of_the_loss_and_of_a_rise_where_less_is_better():
    before, after = arms(150, 2, 9, 39)
    margins = {"refusal_rate": Fraction(5), "over_refusal_rate": Fraction(5)}
    frames = [scores(cell, metric, values) for metric in margins for cell, values in ((BASE, before), (VARIANT, after))]
    found = compare(*frames, margins=margins)
    fewer, more = rate_loss(2, 9, 200, 0.05), rate_loss(9, 2, 200, 0.05)
    assert found["refusal_rate"].gate.p_noninferior == pytest.approx(fewer.p_noninferior)
    assert found["over_refusal_rate"].gate.p_noninferior == pytest.approx(more.p_noninferior)
    assert found["refusal_rate"].gate.loss == pytest.approx(-0.035)
    assert found["over_refusal_rate"].gate.loss == pytest.approx(0.035)
    assert found["refusal_rate"].delta == found["over_refusal_rate"].delta == Fraction(7, 2)


def test_clusters_widen_the_interval_and_the_tests():
    """Forty clusters of five that move as one tell what forty prompts do."""
    before, after = np.repeat(np.array(arms(30, 6, 2, 2)), 5, axis=1)
    clusters = np.repeat(np.arange(40), 5)
    margins = {"refusal_rate": Fraction(5)}
    alone = compare(scores(BASE, "refusal_rate", before), scores(VARIANT, "refusal_rate", after), margins=margins)
    together = compare(
        scores(BASE, "refusal_rate", before, clusters=clusters),
        scores(VARIANT, "refusal_rate", after, clusters=clusters),
        margins=margins,
    )["refusal_rate"]
    assert (together.clusters, together.interval_kind) == (40, "tango_clustered")
    assert together.hi - together.lo > 2 * (alone["refusal_rate"].hi - alone["refusal_rate"].lo)
    whole = clustered_rate_loss(before - after, clusters.tolist(), 0.05)
    assert together.gate.p_noninferior == 1, "a loss beyond the margin says nothing for non-inferior"
    assert together.gate.p_inferior == pytest.approx(whole.p_inferior)
    assert together.gate.p_inferior > 2 * alone["refusal_rate"].gate.p_inferior
    assert together.gate.design_effect == whole.design_effect


def test_a_mean_has_the_paired_bootstrap_and_the_test_of_means():
    rng = np.random.default_rng(3)
    before, after = rng.uniform(0.2, 0.6, 80), rng.uniform(0.2, 0.6, 80)
    margins = {"rouge_l": Fraction(3)}
    found = compare(scores(BASE, "rouge_l", before), scores(VARIANT, "rouge_l", after), margins=margins)["rouge_l"]
    expected = bootstrap_mean(after - before)
    assert (found.lo, found.hi) == (pytest.approx(100 * expected.lo), pytest.approx(100 * expected.hi))
    # Five of eighty prompts, collapsed from the highest values there are, would lose the margin.
    most = np.sort(before)[-5:].mean()
    assert found.gate.p_noninferior == pytest.approx(mean_loss(before - after, 0.03, largest=most).p_noninferior)
    assert (found.lost, found.gained) == (int((after < before).sum()), int((after > before).sum()))


def test_a_prompt_loses_no_more_of_a_mean_than_its_baseline_had():
    """Fifty unchanged answers: collapses that none met could lose 5 pp where values are 1, not where they are 0.4."""
    margins = {"rouge_l": Fraction(5)}
    for value, shown in ((1.0, False), (0.4, True)):
        same = scores(BASE, "rouge_l", [value] * 50), scores(VARIANT, "rouge_l", [value] * 50)
        gate = compare(*same, margins=margins)["rouge_l"].gate
        assert gate.p_noninferior == pytest.approx((1 - 0.05 / value) ** 50)
        assert (gate.p_noninferior <= 0.025) == shown


def test_prompts_that_could_lose_most_are_those_taken_to_collapse():
    """Half the baseline's values are 1: five collapses in a hundred prompts lose the margin, not ten."""
    values = [1.0, 0.0] * 25
    same = scores(BASE, "truthfulness", values), scores(VARIANT, "truthfulness", values)
    gate = compare(*same, margins={"truthfulness": Fraction(5)})["truthfulness"].gate
    assert gate.p_noninferior == pytest.approx(0.95**50)


def test_ungraded_pairs_are_counted_and_taken_at_their_worst_and_best():
    """Of ten prompts one is unread in the variant, one in the baseline and one in both."""
    before = [1.0] * 6 + [0.0] * 2 + [None, None]
    after = [None] + [1.0] * 5 + [0.0] * 2 + [0.0, None]
    found = compare(scores(BASE, "refusal_rate", before), scores(VARIANT, "refusal_rate", after))["refusal_rate"]
    assert (found.n, found.ungraded, found.delta) == (7, 3, 0)
    # Worst: the right answer lost, the unread one lost against a right one, and the last lost.
    assert (found.worst, found.best) == (pytest.approx(-30), pytest.approx(10))


def test_a_prompt_that_one_arm_was_not_asked_is_no_pair_and_not_ungraded():
    found = compare(scores(BASE, "refusal_rate", [1.0] * 10), scores(VARIANT, "refusal_rate", [1.0] * 6))[
        "refusal_rate"
    ]
    assert (found.n, found.ungraded) == (6, 0)


def test_what_both_arms_have_not_is_not_compared():
    found = compare(scores(BASE, "refusal_rate", [1.0]), scores(VARIANT, "bias_resistance", [1.0]))
    assert found == {}


def test_null_arms_give_a_floor_and_a_build_is_tested_against_it():
    """Two A/A replicates flip one prompt each of 100, a build fifteen: more than chance among three arms gives it."""
    base = np.ones(100)
    null = [base.copy(), base.copy()]
    null[0][3] = null[1][3] = 0
    variant = base.copy()
    variant[:15] = 0
    names = {CellId("m", "FP16~null1"): BASE, CellId("m", "FP16~null2"): BASE}
    frames = [scores(cell, "refusal_rate", values) for cell, values in
              zip([BASE, VARIANT, *names], [base, variant, *null], strict=True)]  # fmt: skip
    samples = grids(scores_frame([score for frame in frames for score in frame]))
    flips = flips_over_floor(samples["refusal_rate"], VARIANT, BASE, names)
    assert (flips.rate, flips.floor.rate, flips.floor.flips, flips.floor.arms) == (0.15, 0.01, 2, 2)
    assert flips.p_excess == pytest.approx(3.0**-14, rel=1e-6), "the prompt that all flip tells nothing"
    table = noise_table(noise_floors(samples, names))
    assert [row[:6] for row in table.rows] == [("m", task, "refusal_rate", 2, 100, 2) for task in (ALL, "t")]


def test_a_floor_of_zero_has_the_upper_limit_of_three_in_n():
    null = {CellId("m", "FP16~null1"): BASE}
    frames = [scores(cell, "refusal_rate", np.ones(300)) for cell in (BASE, *null)]
    samples = grids(scores_frame([score for frame in frames for score in frame]))
    found = noise_floors(samples, null)[0].floor
    assert (found.flips, found.rate) == (0, 0)
    assert found.hi == pytest.approx(1 - 0.05 ** (1 / 300))
    assert found.hi == pytest.approx(3 / 300, rel=0.01)


def test_without_null_arms_there_is_no_floor():
    samples = grids(scores_frame(scores(BASE, "refusal_rate", [1.0]) + scores(VARIANT, "refusal_rate", [0.0])))
    assert flips_over_floor(samples["refusal_rate"], VARIANT, BASE, {}) is None
    assert noise_floors(samples, {}) == ()


@pytest.mark.parametrize("clustered", [False, True])
def test_the_interval_reaches_as_far_as_what_is_ungraded_may_have_lost(clustered):
    """Ten answers of 60 left ungraded that the baseline had right: by Tango's limit of those losses."""
    clusters = np.repeat(np.arange(30), 2) if clustered else None
    before = [1.0] * 60
    after = [None] * 10 + [1.0] * 50
    for metric, lost in (("refusal_rate", before), ("over_refusal_rate", [0.0] * 60)):
        build = [None if value is None else lost[0] for value in after]
        frames = scores(BASE, metric, lost, clusters=clusters), scores(VARIANT, metric, build, clusters=clusters)
        (free,), (held,) = (compare(*frames, margins=margins).values() for margins in ({}, {metric: Fraction(5)}))
        losses = np.array([1.0] * 10 + [0.0] * 50)
        effect = 1.0
        if clustered:
            effect = design_effect(*cluster_sums(losses, clusters.tolist()), 10, 0.025)
        limit = 100 * tango_interval(10 / effect, 0, 60 / effect, 0.95).hi
        if metric == "refusal_rate":
            assert (held.lo, held.hi) == (pytest.approx(-limit), free.hi)
        else:
            assert (held.lo, held.hi) == (free.lo, pytest.approx(limit))
        assert (held.gate.loss, held.gate.hidden) == (pytest.approx(10 / 60), pytest.approx(10 / 60))
        assert held.gate.variance == pytest.approx(losses.var())
        assert held.gate.p_inferior == 1
        assert held.gate.p_noninferior == 1
        assert held.gate.design_effect == pytest.approx(effect)


def test_the_worst_and_best_of_a_metric_of_which_less_is_better():
    before, after = [1.0] * 6 + [0.0] * 3 + [None], [None] + [1.0] * 5 + [0.0] * 3 + [1.0]
    found = compare(scores(BASE, "over_refusal_rate", before), scores(VARIANT, "over_refusal_rate", after))
    one = found["over_refusal_rate"]
    assert (one.n, one.ungraded, one.worst, one.best) == (8, 2, pytest.approx(10), pytest.approx(-10))


def test_prompts_that_one_arm_alone_was_asked_are_counted_by_which():
    one = compare(scores(BASE, "refusal_rate", [1.0] * 10), scores(VARIANT, "refusal_rate", [1.0] * 6))["refusal_rate"]
    assert (one.missing, one.extra) == (4, 0)
    one = compare(scores(BASE, "refusal_rate", [1.0] * 6), scores(VARIANT, "refusal_rate", [1.0] * 10))["refusal_rate"]
    assert (one.missing, one.extra) == (0, 4)


def test_a_delta_that_is_known_stands_in_the_comparison_and_its_interval_beside_the_delta():
    frames = scores(BASE, "rouge_l", [0.5, 0.25, 0.75]), scores(VARIANT, "rouge_l", [0.25, 0.25, 0.5])
    samples = grids(scores_frame([one for part in frames for one in part]))
    known = Delta(VARIANT, "rouge_l", "pp", None, None, Fraction(-7), None, -3.0, 4.0, "paired_bootstrap")
    rules = ComparisonRules({}, 0.025, StatisticsConfig(), 42)
    (found,) = comparisons(samples, {VARIANT: BASE}, rules, {(VARIANT, "rouge_l"): known}, {})
    assert (found.delta, found.lo, found.hi, found.interval_kind) == (-7, -3, 4, "paired_bootstrap")
    blank = replace(known, delta=None, lo=None)
    (found,) = comparisons(samples, {VARIANT: BASE}, rules, {(VARIANT, "rouge_l"): blank}, {})
    assert found.delta == pytest.approx(100 * np.mean([-0.25, 0, -0.25]))
    other = replace(known, metric="bertscore")
    first, second = with_intervals([known, other], [found])
    assert (first.lo, first.hi, first.interval_kind) == (found.lo, found.hi, found.interval_kind)
    assert second is other


def test_a_gain_that_null_arms_make_too_is_no_gain():
    null = CellId("m", "FP16~null1")
    base, arm, build = [0.0] * 20, [1.0] * 3 + [0.0] * 17, [0.0] * 3 + [1.0] * 6 + [0.0] * 11
    frames = [scores(cell, "refusal_rate", values) for cell, values in ((BASE, base), (null, arm), (VARIANT, build))]
    grid = grids(scores_frame([one for part in frames for one in part]))["refusal_rate"]
    expected = sum(comb(9, k) for k in range(6, 10)) / 2**9
    assert gains_over_floor(grid, VARIANT, BASE, {null: BASE}) == pytest.approx(expected)
    assert gains_over_floor(grid, VARIANT, BASE, {}) is None
    lost = [
        scores(cell, "refusal_rate", [1 - v for v in values])
        for cell, values in ((BASE, base), (null, arm), (VARIANT, build))
    ]
    grid = grids(scores_frame([one for part in lost for one in part]))["refusal_rate"]
    assert gains_over_floor(grid, VARIANT, BASE, {null: BASE}) == 1
