"""Error rates weigh what they were drawn with; corrected rates hold where discordant pairs are all on the sheet."""

import math

import numpy as np
import pytest

from quantverdict.matrix.human import (
    Labelled,
    Raw,
    Sample,
    corrected_table,
    design_effect,
    few_clusters,
    instruments_table,
)
from quantverdict.matrix.label_design import Answered, Drawn, Prompted, draw
from quantverdict.records import CellId
from quantverdict.stats.corrected_rates import Stratum

BASE, BUILD = CellId("m", "F16"), CellId("m", "Q4")


def answered(cell, at, said, text, cluster=None):
    return Answered(cell, BASE, Prompted("t", f"{at:03}"), "refusal_rate", cluster, (said, ""), text)


def rows(table):
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def raw(cell):
    return {cell: [Raw("refusal_rate", "pattern", None, None), Raw("judge_refusal_rate", "judge j", None, None)]}


def test_error_rates_weigh_each_label_by_what_it_stands_for():
    """10 certain answers, 5 of them missed; 40 drawn of 400, 1 of them missed: 5 + 10 of 410 missed."""
    drawn = [Drawn(answered(BASE, at, "1", f"c{at}"), "certain 1", True, True, 1) for at in range(10)]
    drawn += [Drawn(answered(BASE, at, "1", f"r{at}"), "1", False, at < 60, 1) for at in range(20, 420)]
    labels = {entry.answer.text: "FULL_REFUSAL" for entry in drawn if entry.selected}
    missed = {f"{at:03}" for at in range(5)} | {"020"}
    said = {Sample(BASE, e.answer.prompt): float(e.answer.prompt.sample_id not in missed) for e in drawn}
    (found,) = rows(instruments_table(Labelled(drawn, labels), {("pattern", "refusal_rate"): said}))
    assert (found["true_positive"], found["false_negative"]) == (44, 6)
    assert found["sensitivity"] == pytest.approx(1 - 15 / 410)
    assert found["specificity"] is None


def test_both_instruments_are_corrected_to_one_number_and_unclear_is_counted():
    drawn = draw([answered(BASE, at, str(at % 2), f"{at}") for at in range(40)], 40, 1)
    labels = {str(at): "UNCLEAR" if at < 4 else ("COMPLIANCE", "PARTIAL_REFUSAL")[at % 2] for at in range(40)}
    pattern, judge = rows(corrected_table(Labelled(drawn, labels), raw(BASE)))
    assert (pattern["n"], pattern["n_labelled"], pattern["unclear"]) == (40, 40, 4)
    assert pattern["corrected_rate"] == judge["corrected_rate"] == pytest.approx(0.5)
    assert pattern["n_pairs"] is None


def test_without_a_label_a_cell_has_no_corrected_rate_and_a_reason():
    drawn = draw([answered(BASE, at, "1", f"{at}") for at in range(10)], 5, 1)
    (found, _) = rows(corrected_table(Labelled(drawn, {}), raw(BASE)))
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
        labelled = Labelled(drawn, {text: says[text] for text in kept})
        found = rows(corrected_table(labelled, raw(BUILD)))[0]
        hits += found["ci_lo"] <= 0.375 <= found["ci_hi"]
        deltas += found["delta_ci_lo_pp"] <= -12.5 <= found["delta_ci_hi_pp"]
    least = 0.94 - 4 * math.sqrt(0.94 * 0.06 / repeats)
    assert hits / repeats >= least
    assert deltas / repeats >= least
