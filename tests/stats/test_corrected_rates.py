"""Corrected rates equal published estimators, and their intervals cover what they say."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from quantverdict.stats.corrected_rates import (
    Stratum,
    _likely_changes,
    corrected_difference,
    corrected_rate,
    few,
    kish,
    wilson_at,
)
from quantverdict.stats.intervals import wilson
from quantverdict.stats.paired import tango_interval


def test_all_labelled_is_wilsons_interval_of_the_labels():
    """Whatever the strata: nothing is left to correct, and nothing is added."""
    found = corrected_rate([Stratum(40, 40, 31), Stratum(180, 180, 5), Stratum(10, 10, 0)])
    around = wilson(36, 230)
    assert found.value == pytest.approx(36 / 230)
    assert (found.lo, found.hi) == pytest.approx((around.lo, around.hi))


@given(st.integers(1, 400), st.data())
def test_wilson_at_a_whole_number_is_wilson(n, data):
    k = data.draw(st.integers(0, n))
    found, expected = wilson_at(k / n, n), wilson(k, n)
    assert (found.lo, found.hi) == pytest.approx((expected.lo, expected.hi), abs=1e-12)


def by_ppi(labels, predicted, everything):
    """PPI++ of a mean, lambda 1 (Angelopoulos, Duchi & Zrnic 2023): estimate and standard error."""
    value = everything.mean() + (labels - predicted).mean()
    return value, math.sqrt((labels - predicted).var() / len(labels) + everything.var() / len(everything))


def example():
    """220 answers, 66 that a pattern calls refused; a tenth of each labelled alike: 60 and 140 of them."""
    strata = [Stratum(66, 30, 24), Stratum(154, 70, 9)]
    labels = np.repeat([1.0, 0.0, 1.0, 0.0], [24, 6, 9, 61])
    predicted = np.repeat([24 / 30, 9 / 70], [30, 70])
    return strata, labels, predicted, np.repeat([24 / 30, 9 / 70], [66, 154])


def test_a_stratum_that_is_labelled_in_part_is_lent_one_label_of_what_such_strata_have_together():
    """By hand: two such strata of 10 and 20 clear labels, half a change smoothed in of each of four kinds."""
    gained, lost = (Stratum(100, 10, 3), Stratum(50, 20, 2)), (Stratum(100, 10, 1), Stratum(50, 20, 0))
    whole, unlabelled = (Stratum(8, 8, 2), Stratum(8, 8, 4)), (Stratum(9, 0, 0), Stratum(9, 0, 0))
    found = _likely_changes([*zip(gained, lost, strict=True), whole, unlabelled])
    up, down = (3 + 2 + 0.5) / (10 + 20 + 2), (1 + 0 + 0.5) / (10 + 20 + 2)
    assert found[0] == pytest.approx(((3 + up) / 11, (1 + down) / 11))
    assert found[1] == pytest.approx(((2 + up) / 21, (0 + down) / 21))
    assert found[2] == pytest.approx((2 / 8, 4 / 8))
    assert found[3] == (0.5, 0.5)


def test_it_is_prediction_powered_inference_with_the_strata_as_predictor():
    strata, labels, predicted, everything = example()
    value, error = by_ppi(labels, predicted, everything)
    found = corrected_rate(strata)
    assert found.value == pytest.approx(value)
    # The interval's own standard error, which smoothing makes a little wider.
    assert math.sqrt(value * (1 - value) / found.n_effective) == pytest.approx(error, rel=0.05)


def test_it_is_what_ppi_python_gives():
    ppi = pytest.importorskip("ppi_py")
    strata, labels, predicted, everything = example()
    expected = ppi.ppi_mean_pointestimate(labels, predicted, everything, lam=1)
    assert corrected_rate(strata).value == pytest.approx(float(expected[0]))


def test_an_instrument_that_always_errs_is_turned_round():
    """All that it calls refused complied, and the other way round: the rate is that of the people, not of it."""
    assert corrected_rate([Stratum(150, 60, 0), Stratum(70, 30, 30)]).value == pytest.approx(70 / 220)


def test_no_label_is_no_rate():
    assert corrected_rate([Stratum(10, 0, 0), Stratum(20, 0, 0)]) is None
    assert corrected_rate([Stratum(10, 3, 0, unclear=3)]) is None
    assert corrected_rate([]) is None


def test_a_stratum_without_a_label_widens_the_interval_to_whatever_it_may_hold():
    known = corrected_rate([Stratum(100, 100, 50), Stratum(100, 100, 0)])
    blind = corrected_rate([Stratum(100, 100, 50), Stratum(100, 0, 0, guess=0.0)])
    assert blind.value == known.value == 0.25
    assert blind.hi > 0.7
    assert known.hi < 0.32


def test_unclear_answers_count_in_no_rate():
    """Half of a stratum is unclear: its weight is halved, as in a ratio of totals."""
    found = corrected_rate([Stratum(100, 50, 25, unclear=25), Stratum(50, 50, 0)])
    assert found.value == pytest.approx(50 / 100)


def test_equal_texts_need_no_label_to_differ_in_nothing():
    same = Stratum(200, 0, 0, known=True)
    found = corrected_difference([same, Stratum(20, 20, 2)], [same, Stratum(20, 20, 8)])
    assert found.value == pytest.approx(-6 / 220)
    assert found.hi < 0.005
    assert found.lo > -0.07


def test_a_difference_turned_round_is_its_negative():
    one, two = [Stratum(150, 40, 3), Stratum(70, 70, 4)], [Stratum(150, 40, 6), Stratum(70, 70, 9)]
    up, down = corrected_difference(one, two), corrected_difference(two, one)
    assert (up.value, up.lo, up.hi) == pytest.approx((-down.value, -down.hi, -down.lo))


PAIRS = st.integers(0, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n)))


def sides(parts):
    """Strata of pairs from (size, labelled, gained, lost)."""
    return tuple([Stratum(part[0], part[1], part[way]) for part in parts] for way in (2, 3))


@given(st.lists(PAIRS, min_size=1, max_size=5), st.integers(0, 50))
def test_a_difference_of_labelled_pairs_is_tangos(found, same):
    """Whatever the strata, and equal texts beside them: nothing is left to correct."""
    parts = [(n, n, min(a, b), max(a, b) - min(a, b)) for n, a, b in found if n]
    gained, lost = sides(parts)
    known = [Stratum(same, 0, 0, known=True)] if same else []
    corrected = corrected_difference(gained + known, lost + known)
    n = sum(part[0] for part in parts) + same
    if not parts:
        assert corrected is None
    else:
        around = tango_interval(sum(part[2] for part in parts), sum(part[3] for part in parts), n)
        assert (corrected.lo, corrected.hi) == pytest.approx((around.lo, around.hi), abs=1e-9)
        assert corrected.n_effective == pytest.approx(n)


@given(st.lists(st.tuples(PAIRS, st.integers(0, 60)), min_size=1, max_size=5), st.floats(1, 8))
def test_a_difference_lies_within_its_interval_and_that_within_one(found, effect):
    parts = [(n + more, n, min(a, b), max(a, b) - min(a, b)) for (n, a, b), more in found if n + more]
    corrected = corrected_difference(*sides(parts), design_effect=effect)
    if corrected is not None:
        assert -1 <= corrected.lo <= corrected.value + 1e-12
        assert corrected.value - 1e-12 <= corrected.hi <= 1
        assert corrected.hi - corrected.lo > 0


def test_no_change_among_few_labels_does_not_show_that_there_is_none():
    """The fewer are labelled, the wider; with all of them it is Tango's of no change."""
    widths = []
    for labelled in (60, 30, 15, 4):
        found = corrected_difference(*sides([(100, 100, 0, 0), (60, labelled, 0, 0)]))
        assert found.value == 0
        assert found.lo == pytest.approx(-found.hi)
        widths.append(found.hi - found.lo)
    assert widths[0] == pytest.approx(2 * 3.8415 / (160 + 3.8415), rel=1e-4)
    assert widths == sorted(widths)
    assert widths[-1] > 1.5 * widths[0]


def test_pairs_that_nobody_labelled_may_all_have_changed():
    half = Stratum(100, 0, 0, guess=0.0)
    found = corrected_difference([Stratum(100, 100, 0), half], [Stratum(100, 100, 0), half])
    assert found.value == 0
    assert found.hi > 0.5
    assert found.lo < -0.5


def test_clusters_widen_a_difference():
    plain = corrected_difference(*sides([(100, 40, 3, 9)]))
    clustered = corrected_difference(*sides([(100, 40, 3, 9)]), design_effect=2)
    assert clustered.n_effective == pytest.approx(plain.n_effective / 2)
    assert clustered.hi - clustered.lo > 1.25 * (plain.hi - plain.lo)


def test_clusters_widen_an_interval_and_never_narrow_it():
    strata = [Stratum(100, 50, 20), Stratum(100, 50, 40)]
    plain, clustered = corrected_rate(strata), corrected_rate(strata, design_effect=2)
    assert clustered.n_effective == pytest.approx(plain.n_effective / 2)
    assert corrected_rate(strata, design_effect=0.5) == plain


def test_kish_counts_equal_weights_and_discounts_unequal_ones():
    assert kish([3.0] * 7) == pytest.approx(7)
    assert kish([1.0, 0.0, 0.0]) == pytest.approx(1)
    assert kish([]) == 0


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.95])
@pytest.mark.parametrize(("sensitivity", "specificity"), [(0.7, 0.7), (0.7, 0.99), (0.99, 0.85)])
@pytest.mark.parametrize("labelled", [50, 150])
def test_coverage_near_95_percent(rate, sensitivity, specificity, labelled):
    """1,500 cells of 220 answers: at least 94 %, less four standard errors of the simulation (2.5 points)."""
    rng, repeats, prompts, hits = np.random.default_rng(11), 1500, 220, 0
    for _ in range(repeats):
        has = rng.random(prompts) < rate
        seen = np.where(has, rng.random(prompts) < sensitivity, rng.random(prompts) >= specificity)
        strata = []
        for said in (True, False):
            mine = has[seen == said]
            n = min(len(mine), max(4, round(labelled * len(mine) / prompts)))
            strata.append(Stratum(len(mine), n, int(rng.permutation(mine)[:n].sum())))
        found = corrected_rate([stratum for stratum in strata if stratum.size])
        hits += found.lo <= rate <= found.hi
    assert hits / repeats >= 0.94 - 4 * math.sqrt(0.94 * 0.06 / repeats)


def one_difference(rng, agree, differ, labelled):
    """220 pairs: 100 of equal texts, twice 40 that instruments agree on and `labelled` of which are, 40 labelled whole.

    `agree` (turned round in the second 40) and `differ`: the chances to gain and to lose.
    """
    sizes = rng.multinomial(220, np.array([100, 40, 40, 40]) / 220)
    sides = [[Stratum(int(sizes[0]), 0, 0, known=True)] for _ in range(2)]
    strata = zip(sizes[1:], (agree, agree[::-1], differ), (labelled, labelled, sizes[3]), strict=True)
    for size, chances, wanted in strata:
        seen = rng.choice([1, -1, 0], size, p=[*chances, 1 - sum(chances)])[:wanted]
        for side, way in zip(sides, (1, -1), strict=True):
            side.append(Stratum(int(size), len(seen), int((seen == way).sum())))
    return sides


def test_coverage_of_differences_is_neither_less_nor_more_than_said():
    """12 settings of 600: on average 94 to 96 %, each at least 93.5 %, but for noise (0.5 and 4 points).

    Square-and-add of two intervals whose every stratum is smoothed alone covers 98 % here.
    """
    rng, repeats, coverage = np.random.default_rng(3), 600, []
    for agree in ((0, 0.02), (0.01, 0.05)):
        for differ in ((0.05, 0.2), (0.1, 0.4), (0.3, 0.3)):
            for labelled in (10, 20):
                truth = 40 * (differ[0] - differ[1]) / 220
                found = [corrected_difference(*one_difference(rng, agree, differ, labelled)) for _ in range(repeats)]
                coverage.append(sum(one.lo <= truth <= one.hi for one in found) / repeats)
    assert min(coverage) >= 0.935 - 4 * math.sqrt(0.935 * 0.065 / repeats)
    noise = 2 * math.sqrt(0.95 * 0.05 / (repeats * len(coverage)))
    assert 0.94 - noise <= np.mean(coverage) <= 0.96 + noise


def slow_rate(strata, effect):
    """The documented formula, a stratum at a time: value and effective number of answers."""
    mass = [s.size * (s.labelled - s.unclear) / s.labelled if s.labelled else s.size for s in strata]
    total = sum(mass)
    rates, smooth, unseen = [], [], []
    for s in strata:
        clear = s.labelled - s.unclear
        rates.append(0.0 if s.known else s.positive / clear if clear else s.guess)
        smooth.append(0.0 if s.known else (s.positive + 0.5) / (clear + 1))
        unseen.append(1.0 if not s.labelled else 1 / max(clear, 1) - 1 / s.size if s.labelled < s.size else 0.0)
    value = sum(m * rate for m, rate in zip(mass, rates, strict=True)) / total
    likely = sum(m * rate for m, rate in zip(mass, smooth, strict=True)) / total
    variance = sum((m / total) ** 2 * p * (1 - p) * u for m, p, u in zip(mass, smooth, unseen, strict=True))
    for s, rate, u in zip(strata, rates, unseen, strict=True):
        if s.labelled:
            share = (s.labelled - s.unclear) / s.labelled
            variance += (s.size / total * (rate - value)) ** 2 * share * (1 - share) * u
    inflation = 1 + total * variance / (likely * (1 - likely)) if 0 < likely < 1 else 1
    return value, total / inflation / max(effect, 1.0)


STRATUM = st.integers(1, 60).flatmap(
    lambda size: st.integers(0, size).flatmap(
        lambda labelled: st.integers(0, labelled).flatmap(
            lambda clear: st.builds(
                Stratum, st.just(size), st.just(labelled), st.integers(0, clear), st.just(labelled - clear),
                st.sampled_from([0.0, 0.3, 1.0]), st.booleans() if labelled == 0 else st.just(False),
            )
        )
    )
)  # fmt: skip


@given(st.lists(STRATUM, min_size=1, max_size=4), st.sampled_from([0.5, 1.0, 2.5]), st.sampled_from([0.8, 0.95]))
def test_a_corrected_rate_is_what_its_formula_says(strata, effect, confidence):
    found = corrected_rate(strata, confidence, design_effect=effect)
    if not any(s.labelled > s.unclear for s in strata):
        assert found is None
        return
    value, n = slow_rate(strata, effect)
    assert (found.value, found.n_effective) == pytest.approx((value, n), rel=1e-9, abs=1e-12)
    around = wilson_at(min(max(value, 0.0), 1.0), n, confidence)
    assert (found.lo, found.hi) == pytest.approx((around.lo, around.hi), rel=1e-9, abs=1e-9)


def slow_difference(gained, lost, effect, confidence):
    mass = [s.size * (s.labelled - s.unclear) / s.labelled if s.labelled else s.size for s in gained]
    total = sum(mass)

    def rate(s):
        clear = s.labelled - s.unclear
        return 0.0 if s.known else s.positive / clear if clear else s.guess

    up, down = (sum(m * rate(s) for m, s in zip(mass, side, strict=True)) / total for side in (gained, lost))
    part = [at for at, s in enumerate(gained) if not s.known and s.labelled < s.size]
    labels = sum(gained[at].labelled - gained[at].unclear for at in part) + 2
    lent = [(sum(side[at].positive for at in part) + 0.5) / labels for side in (gained, lost)]
    sampling, likely, freedom = [], [], 0.0
    for at, s in enumerate(gained):
        clear = s.labelled - s.unclear
        if s.known or s.labelled == s.size:
            ways = (rate(s), rate(lost[at]))
        elif clear == 0:
            ways = (0.5, 0.5)
        else:
            ways = tuple(
                (side[at].positive + more) / (clear + 1) for side, more in zip((gained, lost), lent, strict=True)
            )
        likely.append(ways)
        unseen = 1.0 if not s.labelled else 1 / max(clear, 1) - 1 / s.size if s.labelled < s.size else 0.0
        own = (mass[at] / total) ** 2 * max(sum(ways) - (ways[0] - ways[1]) ** 2, 0.0) * unseen
        if s.labelled:
            share = clear / s.labelled
            own += (s.size / total * (rate(s) - rate(lost[at]) - up + down)) ** 2 * share * (1 - share) * unseen
        sampling.append(own)
        freedom += own**2 / clear if clear else 0.0
    ups, downs = (sum(m * ways[way] for m, ways in zip(mass, likely, strict=True)) / total for way in (0, 1))
    spread = max(ups + downs - (ups - downs) ** 2, 0.0)
    variance = spread / total + sum(sampling)
    n = spread / variance if spread else total
    widened = 1.0
    if freedom:
        half = 0.5 + confidence / 2
        widened = (scipy_stats.t.ppf(half, max(variance**2 / freedom, 1.0)) / scipy_stats.norm.ppf(half)) ** 2
    return up - down, n / max(effect, 1.0) / widened


@given(
    st.lists(st.tuples(STRATUM, st.integers(0, 60)), min_size=1, max_size=4),
    st.sampled_from([0.5, 1.0, 2.5]),
    st.sampled_from([0.8, 0.95]),
)
def test_a_corrected_difference_is_what_its_formula_says(parts, effect, confidence):
    gained = [s for s, _ in parts]
    lost = [replace(s, positive=min(other, s.labelled - s.unclear - s.positive), guess=0.0) for s, other in parts]
    found = corrected_difference(gained, lost, confidence, design_effect=effect)
    if not any(s.labelled > s.unclear for s in gained):
        assert found is None
        return
    value, n = slow_difference(gained, lost, effect, confidence)
    assert (found.value, found.n_effective) == pytest.approx((value, n), rel=1e-6, abs=1e-9)


def test_few_degrees_of_freedom_are_students_and_below_one_they_are_one():
    z = scipy_stats.norm.ppf(0.95)
    for dof, counted in ((9.5, 9.5), (1.0, 1.0), (0.2, 1.0)):
        assert few(dof, 0.9) == pytest.approx((scipy_stats.t.ppf(0.95, counted) / z) ** 2)
    assert few(math.inf, 0.9) == 1


@pytest.mark.parametrize(("rate", "n"), [(-0.01, 5), (1.01, 5), (0.5, 0), (0.5, -1)])
def test_what_is_no_share_has_no_interval(rate, n):
    with pytest.raises(ValueError, match="is not a proportion"):
        wilson_at(rate, n)


def test_an_interval_of_a_share_touches_its_ends_exactly():
    assert (wilson_at(0.0, 0.5).lo, wilson_at(1.0, 0.5).hi) == (0, 1)
    assert wilson_at(0.001, 5).lo > 0
    assert wilson_at(0.999, 5).hi < 1


def test_kish_of_one_weight_above_nothing_is_one():
    assert kish([0.0, 0.0]) == 0
    assert kish([2.0, 1.0]) == pytest.approx(9 / 5)
