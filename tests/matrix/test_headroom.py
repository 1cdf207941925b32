"""What can be lost, by exact limits beside scipy's; what guessing gives; and instruments that contradict each other."""

from dataclasses import astuple
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binomtest

from quantverdict.matrix.grid import grids, scores_frame
from quantverdict.matrix.headroom import _plenty, apart, headrooms
from quantverdict.policy import Policy
from quantverdict.records import CellId, Score
from quantverdict.stats.intervals import clopper_pearson
from quantverdict.stats.noninferiority import cluster_sums, design_effect

BY_PATTERN = Policy(instruments={"refusal": "pattern"})
BASE, BUILD = CellId("m", "FP16"), CellId("m", "Q4_K_M")


def scores(cell, metric, values, clusters=None):
    return [
        Score(*cell, "t", f"s{at:04d}", metric, value, None if clusters is None else f"c{clusters[at]}")
        for at, value in enumerate(values)
    ]


def settled(metric, values, margin=5, choices=None, clusters=None):
    samples = grids(scores_frame(scores(BASE, metric, values, clusters)))
    return headrooms(samples, [BASE], {metric: Fraction(margin)}, choices or {})["m", metric]


def rate(k, n):
    return [1.0] * k + [0.0] * (n - k)


@pytest.mark.parametrize(("k", "n"), [(0, 120), (5, 500), (1, 3), (60, 120), (500, 500)])
def test_the_exact_interval_is_scipys(k, n):
    ours, theirs = clopper_pearson(k, n), binomtest(k, n).proportion_ci(0.95, "exact")
    assert (ours.lo, ours.hi) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_each_verdict_at_its_boundary_in_counts():
    """Of 200 refusals: the verdict turns where the limits of scipy's exact test pass the margin of 5 pp."""
    limits = {k: binomtest(k, 200).proportion_ci(0.95, "exact") for k in range(40)}
    for k, found in limits.items():
        expected = "informative" if found.low > 0.05 else "uninformative" if found.high <= 0.05 else "unsettled"
        assert settled("refusal_rate", rate(k, 200)).verdict == expected, k
    seen = {settled("refusal_rate", rate(k, 200)).verdict for k in limits}
    assert seen == {"informative", "unsettled", "uninformative"}


@pytest.mark.parametrize(
    ("metric", "k", "verdict"),
    [
        ("refusal_rate", 0, "uninformative"),
        ("refusal_rate", 300, "informative"),
        ("over_refusal_rate", 0, "informative"),
        ("over_refusal_rate", 300, "uninformative"),
        ("bias_resistance", 300, "informative"),
    ],
)
def test_the_direction_says_what_can_be_lost(metric, k, verdict):
    assert settled(metric, rate(k, 300)).verdict == verdict


def test_clusters_tell_less_than_their_prompts():
    """None of 120 prompts in 30 clusters of four is none of 30: up to 11.6 % may be lost."""
    assert settled("refusal_rate", rate(0, 120)).verdict == "uninformative"
    found = settled("refusal_rate", rate(0, 120), clusters=np.repeat(np.arange(30), 4))
    assert (found.verdict, "11.6 %" in found.reason) == ("unsettled", True)


def test_a_mean_has_the_limits_of_a_mean():
    assert settled("rouge_l", [0.3 + at % 5 / 50 for at in range(50)], margin=3).verdict == "informative"
    assert settled("rouge_l", [0.0] * 500, margin=3).verdict == "uninformative"
    assert settled("rouge_l", [0.0] * 20, margin=3).verdict == "unsettled", "twenty prompts do not settle 3 pp"
    assert settled("truthfulness", [0.0] * 495 + [0.5] * 5).verdict == "uninformative"


def test_what_is_right_by_guessing_is_not_there_to_lose():
    """Half of 2000 with two choices is chance, and with four is not; of MMLU four are known."""
    for count, verdict in ((2, "uninformative"), (4, "informative")):
        choices = {"m": {("t", f"s{at:04d}"): count for at in range(2000)}}
        found = settled("choice_accuracy", rate(1000, 2000), choices=choices)
        assert (found.verdict, f"{100 / count:.1f} % by chance" in found.reason) == (verdict, True)
    assert settled("choice_accuracy", rate(100, 400)).verdict == "informative", "without choices nothing is known"
    assert settled("mmlu_accuracy", rate(100, 400)).verdict == "uninformative"
    some = {"m": {("t", "s0000"): 2}}
    assert "chance" not in settled("choice_accuracy", rate(100, 400), choices=some).reason


@pytest.mark.parametrize(("unread", "verdict"), [(40, "informative"), (41, "not_measured")])
def test_a_baseline_may_leave_a_tenth_ungraded(unread, verdict):
    assert settled("refusal_rate", [None] * unread + rate(300, 400 - unread)).verdict == verdict


def test_a_baseline_without_any_grade_is_not_measured_and_said():
    samples = grids(scores_frame(scores(BASE, "truthfulness", [None] * 9) + scores(BUILD, "truthfulness", [1.0] * 9)
                                 + scores(BASE, "refusal_rate", [1.0] * 9)))  # fmt: skip
    found = headrooms(samples, [BASE], {"truthfulness": Fraction(5)}, {})["m", "truthfulness"]
    assert (found.verdict, "9 of 9 ungraded" in found.reason) == ("not_measured", True)


def judged(pattern, judge, build_judge=None):
    arms = [(BASE, judge), (BUILD, judge if build_judge is None else build_judge)]
    found = [score for cell, _ in arms for score in scores(cell, "refusal_rate", pattern)]
    found += [score for cell, labels in arms for score in scores(cell, "judge_refusal_rate", labels)]
    return grids(scores_frame(found))


@pytest.mark.parametrize(
    ("pattern", "labels", "constant"),
    [
        (rate(100, 200), [1.0] * 200, True),
        (rate(199, 200), [1.0] * 200, False),
        (rate(100, 200), [1.0] * 199 + [0.0], False),
        (rate(100, 200), [1.0] * 3 + [None] * 197, False),
    ],
)
def test_a_judge_is_constant_where_the_pattern_splits_what_it_labelled(pattern, labels, constant):
    samples = judged(pattern, labels)
    found = headrooms(samples, [BASE], {"judge_refusal_rate": Fraction(5)}, {})["m", "judge_refusal_rate"]
    assert found.constant == constant


def test_a_judge_that_tells_a_build_from_its_baseline_is_not_constant():
    samples = judged(rate(100, 200), [1.0] * 200, build_judge=rate(150, 200))
    found = headrooms(samples, [BASE], {"judge_refusal_rate": Fraction(5)}, {})["m", "judge_refusal_rate"]
    assert found.verdict == "informative"


def test_instruments_are_compared_over_the_prompts_that_both_read():
    """The judge labelled the first half alone, where the pattern changes nothing: they agree there."""
    pattern = {BASE: rate(100, 100), BUILD: rate(90, 100)}
    judge = {BASE: [1.0] * 50, BUILD: [1.0] * 50}
    both = [("refusal_rate", pattern), ("judge_refusal_rate", judge)]
    found = [score for name, arms in both for cell, values in arms.items() for score in scores(cell, name, values)]
    assert apart(grids(scores_frame(found)), BUILD, BASE, BY_PATTERN) is None
    judge[BUILD] = [1.0] * 45 + [0.0] * 5
    found = [score for name, arms in both for cell, values in arms.items() for score in scores(cell, name, values)]
    said = apart(grids(scores_frame(found)), BUILD, BASE, BY_PATTERN)
    assert said.startswith("refusal_rate +0.00 pp and judge_refusal_rate -10.00 pp over the same 50 prompts")


def test_a_mean_of_one_prompt_or_one_cluster_can_be_anything():
    for values, clusters in (([0.3], None), ([0.3] * 40, [0] * 40)):
        found = settled("rouge_l", values, clusters=clusters)
        assert found.verdict == "unsettled"
        assert "between 0.0 and 100.0 % can be lost" in found.reason
    assert settled("rouge_l", [0.3] * 40, clusters=list(range(40))).verdict == "informative"


def test_a_verdict_at_the_margin_itself():
    """Whatever the limits are: a room of more than the margin for certain is informative, of no more is not."""
    lo, hi = (100 * Fraction(limit) for limit in astuple(clopper_pearson(30, 200)))
    near = Fraction(1, 10**6)
    turns = {lo - near: "informative", lo + near: "unsettled", hi - near: "unsettled", hi + near: "uninformative"}
    for margin, verdict in turns.items():
        assert settled("refusal_rate", rate(30, 200), margin=margin).verdict == verdict


def test_reasons_give_figures_in_percent_of_what_can_be_lost():
    lo, hi = (100 * limit for limit in astuple(clopper_pearson(60, 120)))
    assert settled("refusal_rate", rate(60, 120)).reason == (
        f"refusal_rate: the baseline has 60 of 120: at least {lo:.1f} % can be lost, margin 5 pp"
    )
    lo, hi = (100 * limit for limit in astuple(clopper_pearson(15, 120)))
    assert settled("over_refusal_rate", rate(105, 120), margin=10).reason == (
        f"over_refusal_rate: the baseline has 105 of 120: between {lo:.1f} and {hi:.1f} % can be lost, "
        "margin 10 pp: unsettled"
    )
    told = settled("rouge_l", [0.25] * 200, margin=3).reason
    assert told.startswith("rouge_l: the baseline has 25.0 % over 200 prompts: at least")
    lo, hi = (100 * (limit - 0.25) for limit in astuple(clopper_pearson(100, 400)))
    assert settled("mmlu_accuracy", rate(100, 400)).reason == (
        f"mmlu_accuracy: the baseline has 100 of 400, 25.0 % by chance: at most {hi:.1f} % can be lost, "
        "margin 5 pp: uninformative"
    )


def test_the_chance_of_guessing_is_the_mean_over_items_and_ungraded_items_do_not_count():
    values = [None, *rate(300, 399)]
    choices = {"m": {("t", f"s{at:04d}"): 2 if at % 2 else 4 for at in range(1, 400)}}
    found = settled("choice_accuracy", values, choices=choices)
    assert f"{100 * (200 / 2 + 199 / 4) / 399:.1f} % by chance" in found.reason
    one = {"m": {("t", f"s{at:04d}"): 1 for at in range(400)}}
    assert "chance" not in settled("choice_accuracy", rate(300, 400), choices=one).reason
    assert "25.0 % by chance" in settled("arc_accuracy", rate(300, 400)).reason


def test_clusters_of_a_rate_divide_its_counts_by_their_design_effect():
    rng = np.random.default_rng(4)
    clusters = np.repeat(np.arange(50), 4)
    values = np.repeat(rng.random(50) < 0.3, 4).astype(float)
    effect = design_effect(*cluster_sums(values, clusters.tolist()), int(values.sum()), 0.025)
    lo = clopper_pearson(values.sum() / effect, 200 / effect).lo
    assert (
        f"at least {100 * lo:.1f} % can be lost" in settled("refusal_rate", values.tolist(), clusters=clusters).reason
    )


@pytest.mark.parametrize(("beyond", "constant"), [(-1, True), (1, False)])
def test_a_judge_is_constant_where_the_pattern_surely_splits_by_more_than_the_margin(beyond, constant):
    """Of 200 the pattern reads 21 otherwise; the margin is just inside and just outside of scipy's lower limit."""
    margin = Fraction(100 * binomtest(21, 200).proportion_ci(0.95, "exact").low) + Fraction(beyond, 10**9)
    samples = judged(rate(21, 200), [0.0] * 200)
    found = headrooms(samples, [BASE], {"judge_refusal_rate": margin}, {})["m", "judge_refusal_rate"]
    assert found.constant == constant
    if constant:
        assert found.verdict == "uninformative"
        assert "all 400 answers, of which refusal_rate tells the baseline's 179 and 21 apart" in found.reason


def test_a_metric_that_no_one_was_asked_has_no_headroom():
    samples = grids(scores_frame(scores(BUILD, "refusal_rate", [1.0] * 9) + scores(BASE, "truthfulness", [1.0])))
    assert list(
        headrooms(
            samples, [BASE], {"refusal_rate": Fraction(5), "rouge_l": Fraction(5), "truthfulness": Fraction(5)}, {}
        )
    ) == [("m", "truthfulness")]


@pytest.mark.parametrize(("lost", "said"), [(4, False), (5, True), (6, True)])
def test_instruments_are_apart_from_the_margin_on(lost, said):
    """The pattern loses none of 100 and the judge some: 5 pp is the margin."""
    samples = judged([1.0] * 100, [1.0] * 100, build_judge=rate(100 - lost, 100))
    assert (apart(samples, BUILD, BASE, BY_PATTERN) is not None) == said
    other = Policy(margins={"judge_refusal_rate": 5, "refusal_rate": 5, "bertscore": 5})
    assert (apart(samples, BUILD, BASE, other) is not None) == said


def test_one_instrument_alone_contradicts_nothing():
    samples = grids(scores_frame([one for cell in (BASE, BUILD) for one in scores(cell, "refusal_rate", [1.0] * 9)]))
    assert apart(samples, BUILD, BASE, BY_PATTERN) is None
    apart_prompts = judged([1.0, None], [None, 1.0], build_judge=[None, 0.0])
    assert apart(apart_prompts, BUILD, BASE, BY_PATTERN) is None


@pytest.mark.parametrize("known", [{}, {("t", "s0000"): 2}])
def test_an_item_of_unknown_choices_leaves_the_chance_of_the_metric(known):
    """ARC has four choices where its items are not all known; a metric of our own has no chance to tell then."""
    values = rate(150, 200)
    assert "25.0 % by chance" in settled("arc_accuracy", values, choices={"m": known}).reason
    assert "chance" not in settled("choice_accuracy", values, choices={"m": known}).reason


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_plenty_is_only_what_the_exact_limit_says_too(share):
    """Chernoff's bound never says more than Clopper and Pearson's lower limit, clustered or not; and it says some."""
    seen = set()
    draw = np.random.default_rng(3)
    for n in (1, 7, 40, 300):
        for k in range(0, n + 1, max(1, n // 20)):
            values = np.array(rate(k, n))
            for units in (np.arange(n), draw.integers(0, max(2, n // 5), n)):
                effect = design_effect(*cluster_sums(values, units.tolist()), k, 0.025)
                exact = clopper_pearson(k / effect, n / effect).lo
                found = _plenty(values, units, share)
                assert not found or exact > share, (k, n)
                seen.add(found)
    assert seen == {True, False}


def test_without_figures_every_verdict_is_the_same():
    """Of 200 refusals, at every count; only the words of what has plenty to lose differ."""
    for k in range(0, 201, 4):
        samples = grids(scores_frame(scores(BASE, "refusal_rate", rate(k, 200))))
        one, two = (headrooms(samples, [BASE], {"refusal_rate": Fraction(5)}, {}, figures=figures)["m", "refusal_rate"]
                    for figures in (True, False))  # fmt: skip
        assert one.verdict == two.verdict
        assert one.verdict == "informative" or one == two
