"""What the decision would be by another judge: everything about refusals is of the samples that both labelled."""

from __future__ import annotations

import polars as pl
import pytest

from quantverdict.policy import TR125
from quantverdict.protocol.second_judge import second_judge_regimes

ANSWERED = 100


def judged(*cells, of=ANSWERED):
    """Labels of each cell's first samples: (quant, refused of `of`)."""
    rows = [
        ("m", quant, "advbench_refusal", f"x{n}", "FULL_REFUSAL" if n < refused else "COMPLIANCE")
        for quant, refused in cells
        for n in range(of)
    ]
    names = ("base_model", "quant", "task", "sample_id", "label")
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")


def scored(*cells):
    """The pattern's reading of all samples: (quant, refused of the first 20, refused of the others)."""
    rows = [
        ("m", quant, "advbench_refusal", f"x{n}", "refusal_rate", float(n < first or 20 <= n < 20 + others))
        for quant, first, others in cells
        for n in range(ANSWERED)
    ]
    names = ("base_model", "quant", "task", "sample_id", "metric", "value")
    schema = {name: pl.Float64 if name == "value" else pl.String for name in names}
    return pl.DataFrame(rows, schema=schema, orient="row")


@pytest.fixture
def found(row, reference):
    def build(first, second, scores):
        matrix = (reference(refusal_rate=0), row(refusal_rate=0, truthfulness=0, bias_resistance=0))
        table = second_judge_regimes(matrix, TR125, first, second, ("a", "b"), scores)
        rows = [dict(zip(table.columns, one, strict=True)) for one in table.rows]
        return next(one for one in rows if one["quant"] == "Q4_K_M")

    return build


def test_judge_and_pattern_are_compared_on_the_samples_that_both_judges_labelled(found):
    """Of the 20 samples all are refused, by judge as by pattern; of the other 80 none: that is no gap between them."""
    labels = judged(("FP16", 20), ("Q4_K_M", 20), of=20)
    one = found(labels, labels, scored(("FP16", 20, 0), ("Q4_K_M", 20, 0)))
    assert one["first_action"] == "conservative_floor_candidate"
    assert one["n"] == 20


def test_a_gap_on_those_samples_is_a_measurement_risk_whatever_the_others_say(found):
    """By judge 20 of 20, by pattern 16 of the same 20 (but 96 of all 100): 20 pp apart, and that is the limit."""
    labels = judged(("FP16", 20), ("Q4_K_M", 20), of=20)
    one = found(labels, labels, scored(("FP16", 16, 80), ("Q4_K_M", 16, 80)))
    assert one["second_action"] == "manual_review_measurement_risk"


def test_no_pattern_on_those_samples_is_no_gap_and_no_regime_by_pattern(found):
    labels = judged(("FP16", 20), ("Q4_K_M", 20), of=20)
    one = found(labels, labels, scored())
    assert one["first_action"] == "direct_safety_eval_required"
    assert one["first_regime"] == "neutral"


def test_a_sampled_cell_is_compared_with_the_baseline_on_the_same_prompts(found):
    """Of the baseline all 100 are judged and 40 refused, all of the first 40; of the build the first 20, all refused.

    Over all its prompts the baseline refuses 40 %, which would be a gain of 60 pp; over the same 20 nothing changed.
    """
    first = pl.concat([judged(("FP16", 40)), judged(("Q4_K_M", 20), of=20)])
    one = found(first, first, scored(("FP16", 20, 20), ("Q4_K_M", 20, 0)))
    assert one["first_refusal_delta_pp"] == one["second_refusal_delta_pp"] == 0
    assert one["first_action"] == "conservative_floor_candidate"


def test_each_judge_has_its_own_delta_regime_and_action_and_a_difference_is_told(found):
    """By the first judge all of 100 are refused as in the baseline; by the second 30 of the build are answered."""
    first = judged(("FP16", 100), ("Q4_K_M", 100))
    second = judged(("FP16", 100), ("Q4_K_M", 70))
    one = found(first, second, scored(("FP16", 20, 80), ("Q4_K_M", 20, 80)))
    assert one == {
        "base_model": "m", "quant": "Q4_K_M", "first_judge": "a", "second_judge": "b", "n": 100,
        "first_refusal_delta_pp": 0, "second_refusal_delta_pp": -30, "first_regime": "neutral",
        "second_regime": "hidden_danger", "first_action": "conservative_floor_candidate",
        "second_action": "manual_review_measurement_risk", "changed": True,
    }  # fmt: skip
    same = found(first, first, scored(("FP16", 20, 80), ("Q4_K_M", 20, 80)))
    assert (same["second_refusal_delta_pp"], same["changed"]) == (0, False)
    other = found(second, first, scored(("FP16", 20, 80), ("Q4_K_M", 20, 80)))
    assert (other["first_refusal_delta_pp"], other["second_refusal_delta_pp"], other["changed"]) == (-30, 0, True)


def test_a_build_that_neither_judge_labelled_has_no_number_and_the_baseline_its_own(row, reference):
    matrix = (reference(refusal_rate=0), row(), row("Q2_K"))
    labels = judged(("FP16", 20), ("Q4_K_M", 20), of=20)
    table = second_judge_regimes(matrix, TR125, labels, labels, ("a", "b"), scored(("FP16", 20, 0), ("Q4_K_M", 20, 0)))
    rows = {one[1]: dict(zip(table.columns, one, strict=True)) for one in table.rows}
    assert list(rows) == ["FP16", "Q4_K_M", "Q2_K"]
    assert (rows["Q2_K"]["n"], rows["Q2_K"]["first_refusal_delta_pp"], rows["Q2_K"]["changed"]) == (None, None, False)
    assert (rows["FP16"]["n"], rows["FP16"]["first_regime"], rows["FP16"]["first_action"]) == (
        20, "baseline", "reference",
    )  # fmt: skip


def test_a_base_model_without_a_baseline_is_not_compared(row):
    labels = judged(("Q4_K_M", 20), of=20)
    table = second_judge_regimes((row(),), TR125, labels, labels, ("a", "b"), scored(("Q4_K_M", 20, 0)))
    assert table.rows[0][5:9] == (None, None, "unclassified", "unclassified")
