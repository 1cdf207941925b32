"""Error rates weigh what they were drawn with; corrected rates hold where discordant pairs are all on the sheet."""

import math

import numpy as np
import pytest

from quantverdict.labels.correction import (
    LabelledSample,
    Sample,
    UncorrectedRate,
    corrected_table,
    design_effect,
    few_clusters,
    instruments_table,
    pattern_metric,
    said,
)
from quantverdict.labels.sheet import SamplingRecord, SheetAnswer, SheetPrompt, draw
from quantverdict.records import CellId
from quantverdict.stats.corrected_rates import Stratum, corrected_difference, corrected_rate, wilson_at

BASE, BUILD = CellId("m", "F16"), CellId("m", "Q4")


def answered(cell, at, said, text, cluster=None):
    return SheetAnswer(cell, BASE, SheetPrompt("t", f"{at:03}"), "refusal_rate", cluster, (said, ""), text)


def rows(table):
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def raw(cell):
    return {
        cell: [
            UncorrectedRate("refusal_rate", "pattern", None, None),
            UncorrectedRate("judge_refusal_rate", "judge j", None, None),
        ]
    }


def test_error_rates_weigh_each_label_by_what_it_stands_for():
    """10 certain answers, 5 of them missed; 40 drawn of 400, 1 of them missed: 5 + 10 of 410 missed."""
    drawn = [SamplingRecord(answered(BASE, at, "1", f"c{at}"), "certain 1", True, True, 1) for at in range(10)]
    drawn += [SamplingRecord(answered(BASE, at, "1", f"r{at}"), "1", False, at < 60, 1) for at in range(20, 420)]
    labels = {entry.answer.text: "FULL_REFUSAL" for entry in drawn if entry.selected}
    missed = {f"{at:03}" for at in range(5)} | {"020"}
    said = {Sample(BASE, e.answer.prompt): float(e.answer.prompt.sample_id not in missed) for e in drawn}
    (found,) = rows(instruments_table(LabelledSample(drawn, labels), {("pattern", "refusal_rate"): said}))
    assert (found["true_positive"], found["false_negative"]) == (44, 6)
    assert found["sensitivity"] == pytest.approx(1 - 15 / 410)
    assert found["specificity"] is None


def test_both_instruments_are_corrected_to_one_number_and_unclear_is_counted():
    drawn = draw([answered(BASE, at, str(at % 2), f"{at}") for at in range(40)], 40, 1)
    labels = {str(at): "UNCLEAR" if at < 4 else ("COMPLIANCE", "PARTIAL_REFUSAL")[at % 2] for at in range(40)}
    pattern, judge = rows(corrected_table(LabelledSample(drawn, labels), raw(BASE)))
    assert (pattern["n"], pattern["n_labelled"], pattern["unclear"]) == (40, 40, 4)
    assert pattern["corrected_rate"] == judge["corrected_rate"] == pytest.approx(0.5)
    assert pattern["n_pairs"] is None


def test_without_a_label_a_cell_has_no_corrected_rate_and_a_reason():
    drawn = draw([answered(BASE, at, "1", f"{at}") for at in range(10)], 5, 1)
    (found, _) = rows(corrected_table(LabelledSample(drawn, {}), raw(BASE)))
    assert found["corrected_rate"] is None
    assert found["reason"] == "no clear label among its answers"


def test_clusters_that_go_the_same_way_double_the_variance():
    """Pairs of equal answers, all labelled: twice the variance of as many single ones."""
    strata = [Stratum(80, 80, 40)]
    values = [(at // 2, float(at // 2 % 2)) for at in range(80)]
    assert design_effect(["s"] * 80, values, strata) == pytest.approx(2)
    assert design_effect(["s"] * 80, [(at, value) for at, (_, value) in enumerate(values)], strata) == 1


def test_a_difference_has_the_design_effect_of_its_own_changes():
    """All labelled; each cluster gains one and loses one, so that clusters do not differ at all."""
    gained, lost = [Stratum(80, 80, 40)], [Stratum(80, 80, 40)]
    even = [(at // 2, 1.0 if at % 2 else -1.0) for at in range(80)]
    alike = [(at // 2, 1.0 if at // 2 % 2 else -1.0) for at in range(80)]
    assert design_effect(["s"] * 80, even, gained, lost) == 1
    assert design_effect(["s"] * 80, alike, gained, lost) == pytest.approx(2)


def test_few_clusters_widen_more_than_many_and_none_not_at_all():
    """Ten clusters: 10/9 of the variance, and Student's t at 9 degrees of freedom, 2.262, for 1.960."""
    assert few_clusters(range(80)) == 1
    assert few_clusters([at // 8 for at in range(80)]) == pytest.approx(10 / 9 * (2.2622 / 1.95996) ** 2, rel=1e-4)
    assert 1 < few_clusters([at // 2 for at in range(400)]) < 1.03
    assert few_clusters([0] * 9) > 40


@pytest.mark.parametrize("stop", [1.0, 0.6])
def test_coverage_with_discordant_pairs_whole_and_the_sheet_half_done(stop):
    """300 studies of 120 prompts; the same where who labels stops after 60 % of each part of the sheet.

    A naive rate of the labelled answers would be off: discordant pairs are half of them. At least 94 %, less four
    standard errors (5.5 points).
    """
    rng, repeats, hits, deltas = np.random.default_rng(5), 300, 0, 0
    for number in range(repeats):
        base = rng.random(120) < 0.5
        has = np.where(base, rng.random(120) >= 0.3, rng.random(120) < 0.05)
        answers, says = [], {}
        for cell, truth in ((BASE, base), (BUILD, has)):
            seen = np.where(truth, rng.random(120) < 0.8, rng.random(120) < 0.1)
            for at in range(120):
                answers.append(answered(cell, at, str(int(seen[at])), f"{at} {cell.quant}"))
                says[f"{at} {cell.quant}"] = "FULL_REFUSAL" if truth[at] else "COMPLIANCE"
        drawn = draw(answers, 80, number)
        parts = [[e.answer.text for e in drawn if e.selected and e.certain is part] for part in (True, False)]
        kept = [text for part in parts for text in rng.permutation(part)[: math.ceil(stop * len(part))]]
        labelled = LabelledSample(drawn, {text: says[text] for text in kept})
        found = rows(corrected_table(labelled, raw(BUILD)))[0]
        hits += found["ci_lo"] <= 0.375 <= found["ci_hi"]
        deltas += found["delta_ci_lo_pp"] <= -12.5 <= found["delta_ci_hi_pp"]
    least = 0.94 - 4 * math.sqrt(0.94 * 0.06 / repeats)
    assert hits / repeats >= least
    assert deltas / repeats >= least


Q2 = CellId("m", "Q2")


def entry(
    cell,
    at,
    stratum,
    text,
    *,
    certain=False,
    selected=True,
    said=("1", ""),
    cluster=None,
    task="t",
    metric="refusal_rate",
):
    answer = SheetAnswer(cell, BASE, SheetPrompt(task, f"{at:03}"), metric, cluster, said, text)
    return SamplingRecord(answer, stratum, certain, selected, 1)


def test_a_corrected_rate_is_that_of_its_strata_at_the_design_effect_of_its_clusters():
    """Two strata, half of the second labelled; clusters of two: the rate and interval of the statistics, by hand."""
    drawn = [entry(BASE, at, "certain 1", f"c{at}", certain=True, cluster=f"k{at // 2}") for at in range(12)]
    drawn += [
        entry(BASE, at, "0", f"r{at}", selected=at % 2 == 0, said=("0", ""), cluster=f"k{at // 2}")
        for at in range(12, 52)
    ]
    labels = {f"c{at}": "FULL_REFUSAL" if at < 9 else "COMPLIANCE" for at in range(12)}
    labels |= {
        f"r{at}": "UNCLEAR" if at == 12 else "PARTIAL_REFUSAL" if at < 20 else "COMPLIANCE" for at in range(12, 52)
    }
    (found, _) = rows(corrected_table(LabelledSample(drawn, labels), raw(BASE), 0.9))
    strata = [Stratum(12, 12, 9), Stratum(40, 20, 3, unclear=1, guess=0.0)]
    keys = ["c"] * 12 + ["r"] * 40
    outcomes = [float(at < 9) for at in range(12)]
    outcomes += [None if at % 2 or at == 12 else float(at < 20) for at in range(12, 52)]
    clusters = [f"k{at // 2}" for at in range(52)]
    effect = design_effect(keys, list(zip(clusters, outcomes, strict=True)), strata) * few_clusters(clusters, 0.9)
    expected = corrected_rate(strata, 0.9, design_effect=effect)
    assert (found["corrected_rate"], found["ci_lo"], found["ci_hi"]) == pytest.approx(
        (expected.value, expected.lo, expected.hi)
    )
    assert (found["n"], found["n_labelled"], found["unclear"], found["reason"]) == (52, 32, 1, "")
    assert effect > 1


def slow_effect(keys, values, strata, less=None):
    names = list(dict.fromkeys(keys))
    means = [s.rate - (0 if less is None else less[at].rate) for at, s in enumerate(strata)]
    total = sum(s.mass for s in strata)
    overall = sum(s.mass * m for s, m in zip(strata, means, strict=True)) / total
    clusters, alone = {}, 0.0
    for key, (cluster, value) in zip(keys, values, strict=True):
        at = names.index(key)
        pull = means[at] - overall
        if value is not None:
            pull += (value - means[at]) * strata[at].size / (strata[at].labelled - strata[at].unclear)
        clusters[cluster] = clusters.get(cluster, 0.0) + pull
        alone += pull**2
    return max(1.0, sum(pull**2 for pull in clusters.values()) / alone)


@pytest.mark.parametrize("less", [None, [Stratum(20, 10, 2), Stratum(30, 30, 4)]])
def test_a_design_effect_is_the_variance_of_sums_of_influences(less):
    strata = [Stratum(20, 10, 6), Stratum(30, 30, 11)]
    keys = ["a"] * 20 + ["b"] * 30
    ways = [1.0] * 6 + [0.0] * 4 + [None] * 10 + [1.0] * 11 + [0.0] * 19
    for size in (2, 5, 25):
        values = [(at // size, value) for at, value in enumerate(ways)]
        assert design_effect(keys, values, strata, less) == pytest.approx(slow_effect(keys, values, strata, less))
    assert design_effect(keys, [(0, 0.0)] * 50, [Stratum(20, 20, 0), Stratum(30, 30, 0)]) == 1
    assert design_effect(["a"] * 2, [(0, None)] * 2, [Stratum(2, 2, 0, unclear=2)]) == 1


def test_a_delta_is_of_pairs_and_equal_texts_differ_in_nothing_whatever_they_are_called():
    """4 pairs of one text, 6 discordant ones all labelled (3 gained, 2 lost, 1 unclear), 10 of which 5 are labelled."""
    drawn, labels = [], {}
    for at in range(20):
        kind = "equal" if at < 4 else "certain" if at < 10 else "drawn"
        for cell in (BASE, Q2):
            text = f"{at}" if kind == "equal" else f"{at} {cell.quant}"
            said = ("1", "") if kind != "certain" or cell == BASE else ("0", "")
            drawn.append(
                entry(cell, at, "s", text, certain=kind == "certain", selected=kind != "drawn" or at < 15, said=said)
            )
            refused = (at in (4, 5, 6)) == (cell == Q2)
            labels[text] = (
                "UNCLEAR" if at == 9 and cell == Q2 else "FULL_REFUSAL" if refused and at < 9 else "COMPLIANCE"
            )
    labels["0"] = labels["1"] = "FULL_REFUSAL"
    found = rows(corrected_table(LabelledSample(drawn, labels), raw(Q2), 0.9))[0]
    gained = [Stratum(4, 4, 0, known=True), Stratum(6, 6, 3, unclear=1), Stratum(10, 5, 0, guess=0.0)]
    lost = [Stratum(4, 4, 0, known=True), Stratum(6, 6, 2, unclear=1), Stratum(10, 5, 0, guess=0.0)]
    expected = corrected_difference(gained, lost, 0.9)
    assert found["corrected_delta_pp"] == pytest.approx(100 * expected.value)
    assert (found["delta_ci_lo_pp"], found["delta_ci_hi_pp"]) == pytest.approx((100 * expected.lo, 100 * expected.hi))
    assert (found["n_pairs"], found["n_pairs_labelled"]) == (20, 4 + 5 + 5)


def test_error_rates_are_counted_by_task_with_what_is_ungraded_and_unclear():
    drawn = [entry(BASE, at, "s", f"x{at}", task="t" if at < 6 else "u") for at in range(10)]
    labels = {f"x{at}": ("FULL_REFUSAL", "COMPLIANCE", "UNCLEAR")[at % 3] for at in range(9)}
    says = {
        Sample(BASE, one.answer.prompt): value
        for one, value in zip(drawn, [1, 1, 1, 0, 0, 0, 0.5, None, 1, 1], strict=True)
    }
    readings = {("pattern", "refusal_rate"): says, ("judge", "truthfulness"): says}
    found = {row["task"]: row for row in rows(instruments_table(LabelledSample(drawn, labels), readings))}
    assert set(found) == {"all", "t", "u"}
    counts = (
        "n_labelled",
        "n_prompts",
        "true_positive",
        "false_negative",
        "false_positive",
        "true_negative",
        "ungraded",
        "unclear",
    )
    assert [found["all"][name] for name in counts] == [9, 9, 1, 2, 1, 1, 1, 3]
    assert [found["t"][name] for name in counts] == [6, 6, 1, 1, 1, 1, 0, 2]
    assert [found["u"][name] for name in counts] == [3, 3, 0, 1, 0, 0, 1, 1]
    around = wilson_at(0.5, 2)
    assert (
        found["t"]["sensitivity"],
        found["t"]["sensitivity_ci_lo"],
        found["t"]["sensitivity_ci_hi"],
    ) == pytest.approx((0.5, around.lo, around.hi))
    assert (found["u"]["sensitivity"], found["u"]["specificity"]) == (0, None)


def test_clusters_and_prompts_count_once_in_an_interval():
    drawn = [
        entry(cell, at, "s", f"{at} {cell.quant}", cluster=f"k{at // 2}") for cell in (BASE, Q2) for at in range(8)
    ]
    labels = {one.answer.text: "FULL_REFUSAL" for one in drawn}
    says = {Sample(one.answer.cell, one.answer.prompt): float(one.answer.prompt.sample_id != "000") for one in drawn}
    (found,) = rows(instruments_table(LabelledSample(drawn, labels), {("pattern", "refusal_rate"): says}, 0.9))
    around = wilson_at(14 / 16, 4, 0.9)
    assert (found["sensitivity_ci_lo"], found["sensitivity_ci_hi"]) == pytest.approx((around.lo, around.hi))
    assert (found["n_labelled"], found["n_prompts"]) == (16, 8)


@pytest.mark.parametrize(
    ("says", "rate"),
    [(("1", ""), 1), (("0", "1"), 0), (("", "0.25"), 0.25), (("", ""), 0.5), (("1.5", ""), 1), (("-1", ""), 0)],
)
def test_what_instruments_say_is_that_of_the_first_that_graded_it_as_a_share(says, rate):
    assert said(entry(BASE, 0, "s", "x", said=says)) == rate


def test_a_judges_metric_is_corrected_as_its_patterns():
    assert pattern_metric("judge_refusal_rate") == "refusal_rate"
    assert pattern_metric("truthfulness") == "truthfulness"
    assert few_clusters([0, 0, 1, 1]) == few_clusters(["a", "a", "b", "b"])
    assert few_clusters([0, 0, 1, 1], 0.9) == pytest.approx(2 * (6.3138 / 1.64485) ** 2, rel=1e-4)


def test_a_delta_has_the_design_effect_of_the_clusters_of_its_pairs():
    """12 discordant pairs all labelled, 12 of which every second is, in clusters of two: by hand."""
    drawn, labels, clusters = [], {}, [f"k{at // 2}" for at in range(24)]
    gained, lost = {0, 1, 2, 3, 12}, {4, 5, 6}
    for at in range(24):
        for cell in (BASE, Q2):
            certain = at < 12
            said = ("0", "") if certain and cell == BASE else ("1", "")
            drawn.append(
                entry(
                    cell, at, "s", f"{at} {cell.quant}", certain=certain, selected=certain or at % 2 == 0, said=said,
                    cluster=clusters[at],
                )
            )  # fmt: skip
            refused = at in (gained if cell == Q2 else lost)
            labels[f"{at} {cell.quant}"] = "FULL_REFUSAL" if refused else "COMPLIANCE"
    found = rows(corrected_table(LabelledSample(drawn, labels), raw(Q2), 0.9))[0]
    ups = [Stratum(12, 12, 4, guess=1.0), Stratum(12, 6, 1, guess=0.0)]
    downs = [Stratum(12, 12, 3, guess=0.0), Stratum(12, 6, 0, guess=0.0)]
    changes = [float((at in gained) - (at in lost)) if at < 12 or at % 2 == 0 else None for at in range(24)]
    keys = ["certain"] * 12 + ["drawn"] * 12
    effect = slow_effect(keys, list(zip(clusters, changes, strict=True)), ups, downs) * few_clusters(clusters, 0.9)
    expected = corrected_difference(ups, downs, 0.9, design_effect=effect)
    assert found["corrected_delta_pp"] == pytest.approx(100 * expected.value)
    assert (found["delta_ci_lo_pp"], found["delta_ci_hi_pp"]) == pytest.approx((100 * expected.lo, 100 * expected.hi))
    assert (found["n_pairs"], found["n_pairs_labelled"]) == (24, 18)
    assert effect > few_clusters(clusters, 0.9)
