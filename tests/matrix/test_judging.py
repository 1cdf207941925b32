"""Judge against pattern, and judge against judge."""

from collections import Counter
from dataclasses import astuple
from fractions import Fraction

import polars as pl
import pytest
from statsmodels.stats.inter_rater import cohens_kappa

from quantverdict.matrix.agreement import LabelPair, judge_agreement, judge_direction, judge_gaps, label_pairs
from quantverdict.policy import TR125, Policy
from quantverdict.records import Estimate, Row
from quantverdict.stats.intervals import wilson


def cell(quant, **metrics):
    return Row("m", "F", None, quant, None, quant == "FP16", {k: Estimate(Fraction(v)) for k, v in metrics.items()})


def records_of(table):
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


@pytest.mark.parametrize(("judge", "diverges"), [("0.8", True), ("0.7999", False), ("0.8001", True), ("0.4", True)])
def test_a_gap_of_20_points_either_way_diverges(judge, diverges):
    """Exact: 0.8 - 0.6 is 0.20000000000000007 in binary floats, and 0.6 - 0.4 is 0.19999999999999996."""
    (found,) = records_of(judge_gaps((cell("FP16", refusal_rate="0.6", judge_refusal_rate=judge),), TR125))
    assert found["diverges"] is diverges
    assert found["gap_pp"] == abs(found["signed_gap_pp"]) == abs(Fraction(judge) - Fraction("0.6")) * 100


def test_the_limit_is_the_policys():
    matrix = (cell("FP16", refusal_rate="0.6", judge_refusal_rate="0.7"),)
    (found,) = records_of(judge_gaps(matrix, Policy(measurement_gap_pp=Fraction(10))))
    assert found["diverges"] is True


def test_a_cell_without_a_judge_is_missing_and_a_metric_without_any_has_no_rows():
    matrix = (
        cell("FP16", refusal_rate="0.6", judge_refusal_rate="0.7", truthfulness="0.5"),
        cell("Q2_K", refusal_rate="0.1", truthfulness="0.5"),
    )
    found = records_of(judge_gaps(matrix, TR125))
    assert [(one["quant"], one["metric"], one["gap_pp"]) for one in found] == [
        ("FP16", "refusal_rate", 10),
        ("Q2_K", "refusal_rate", None),
    ]
    assert found[1]["diverges"] is None
    assert judge_gaps((cell("FP16", refusal_rate="0.6"),), TR125).rows == ()


def judgements(*rows):
    names = ("base_model", "quant", "task", "sample_id", "label")
    return pl.DataFrame([("m", "Q2_K", *row) for row in rows], schema=dict.fromkeys(names, pl.String), orient="row")


def test_only_samples_that_both_judges_saw_are_paired():
    first = judgements(*(("t", str(i), "TRUTHFUL") for i in range(4)))
    second = judgements(("t", "1", "UNTRUTHFUL"), ("t", "9", "TRUTHFUL"), ("u", "1", "TRUTHFUL"), ("t", "2", None))
    second = second.vstack(judgements(("t", "0", "UNTRUTHFUL")))
    assert label_pairs(first, second) == {
        LabelPair("t", "Q2_K", "TRUTHFUL", "UNTRUTHFUL"): 2,
        LabelPair("t", "Q2_K", "TRUTHFUL", None): 1,
    }


def test_pairs_and_their_counts_say_the_same():
    pairs = [LabelPair("t", "Q2_K", one, two) for one, two in ("AA", "AB", "AA", "BB")] + [
        LabelPair("t", "Q2_K", None, "A")
    ]
    assert judge_agreement(pairs, ("a", "b")) == judge_agreement(Counter(pairs), ("a", "b"))


def test_agreement_is_reported_overall_by_task_by_quant_and_by_both():
    pairs = [LabelPair("t1", "Q8_0", "A", "A")] * 20 + [LabelPair("t1", "Q2_K", "A", "B")] * 5
    pairs += [LabelPair("t2", "Q2_K", "B", "B")] * 10 + [LabelPair("t2", "Q8_0", "B", None)] * 3
    found = records_of(judge_agreement(pairs, ("gemma", "claude")))
    assert [(one["task"], one["quant"]) for one in found] == [
        ("all", "all"), ("t1", "all"), ("t2", "all"), ("all", "Q2_K"), ("all", "Q8_0"),
        ("t1", "Q2_K"), ("t1", "Q8_0"), ("t2", "Q2_K"), ("t2", "Q8_0"),
    ]  # fmt: skip
    whole = found[0]
    theirs = cohens_kappa([[20, 5], [0, 10]])
    assert (whole["first_judge"], whole["second_judge"]) == ("gemma", "claude")
    assert (whole["n"], whole["ungraded"], whole["agreement"]) == (35, 3, 30 / 35)
    assert whole["kappa"] == pytest.approx(theirs.kappa)
    assert whole["kappa_ci_lo"] == pytest.approx(theirs.kappa_low)
    alone = found[-1]
    assert (alone["n"], alone["ungraded"], alone["agreement"], alone["kappa"]) == (0, 3, None, None)
    assert alone["reason"] == "no sample has both labels"
    assert "one and the same label" in found[-2]["reason"]


def test_no_second_judge_is_no_agreement():
    (found,) = records_of(judge_agreement([], ("a", "b")))
    assert (found["task"], found["n"], found["kappa"]) == ("all", 0, None)


def test_agreement_has_intervals_at_the_confidence_that_is_asked_for():
    pairs = [LabelPair("t", "Q2_K", one, two) for one, two in ["AA"] * 9 + ["AB"] * 4 + ["BB"] * 7]
    wide, narrow = (records_of(judge_agreement(pairs, ("a", "b"), level))[0] for level in (0.95, 0.5))
    assert narrow["kappa"] == wide["kappa"]
    assert narrow["ci_hi"] - narrow["ci_lo"] < wide["ci_hi"] - wide["ci_lo"]
    assert narrow["kappa_ci_hi"] - narrow["kappa_ci_lo"] < wide["kappa_ci_hi"] - wide["kappa_ci_lo"]


def test_groups_come_from_the_whole_to_tasks_to_quants_to_both():
    pairs = [
        LabelPair(task, quant, "A", other) for task in "ut" for quant in ("Q8", "Q2") for other in ("A", "B", None)
    ]
    found = records_of(judge_agreement(pairs, ("one", "two"), 0.9))
    assert [(one["task"], one["quant"]) for one in found] == [
        ("all", "all"), ("t", "all"), ("u", "all"), ("all", "Q2"), ("all", "Q8"),
        ("t", "Q2"), ("t", "Q8"), ("u", "Q2"), ("u", "Q8"),
    ]  # fmt: skip
    assert [(one["n"], one["ungraded"]) for one in found] == [(8, 4), *[(4, 2)] * 4, *[(2, 1)] * 4]
    assert (found[0]["ci_lo"], found[0]["ci_hi"]) == astuple(wilson(4, 8, 0.9))
    default = records_of(judge_agreement(pairs, ("one", "two")))
    assert (default[0]["ci_lo"], default[0]["ci_hi"]) == astuple(wilson(4, 8, 0.95))


def test_the_judge_that_gives_more_credit_is_named_with_its_p_value():
    first = judgements(*(("t" if at < 6 else "u", str(at), "TRUTHFUL" if at % 4 else "UNTRUTHFUL") for at in range(12)))
    second = judgements(
        *(("t" if at < 6 else "u", str(at), "TRUTHFUL" if at > 10 else "UNTRUTHFUL") for at in range(12))
    )
    found = records_of(judge_direction(first, second, ("one", "two")))
    seen = [
        (one["task"], one["quant"], one["n"], one["only_first"], one["only_second"], one["more_credit"])
        for one in found
    ]
    assert seen == [
        ("all", "all", 12, 8, 0, "one"), ("t", "all", 6, 4, 0, "one"), ("u", "all", 6, 4, 0, "one"),
        ("all", "Q2_K", 12, 8, 0, "one"),
    ]  # fmt: skip
    assert found[0]["p_value"] == 2 / 2**8
    assert records_of(judge_direction(second, first, ("one", "two")))[0]["more_credit"] == "two"
    assert records_of(judge_direction(first, first, ("one", "two")))[0]["more_credit"] is None
