"""What changed between two bundles: verdicts, deltas, answers and settings, each compared by hand."""

from fractions import Fraction

import pytest

from quantverdict.protocol.differences import (
    ACTION,
    AnswerChanges,
    CellChange,
    Change,
    CriterionChange,
    CriterionFigures,
    DeltaChange,
    changed_criteria,
    changed_verdicts,
    changes,
    compared_answers,
    moved_deltas,
)
from quantverdict.records import CellId

A, B, C = (CellId("m", quant) for quant in ("A", "B", "C"))


def cell(action, status="ok", outcomes=()):
    return {"action": action, "status": status, "outcomes": [{"metric": m, "outcome": o} for m, o in outcomes] or None}


def delta(quant, metric, value, unit="pp", base_model="m"):
    return {"base_model": base_model, "quant": quant, "metric": metric, "unit": unit, "delta": value}


def test_an_action_or_an_outcome_that_is_another_is_a_change_and_an_equal_one_is_none():
    one = {A: cell("accept", outcomes=[("x", "non_inferior"), ("y", "inferior")]), B: cell("reject")}
    two = {A: cell("accept", outcomes=[("x", "not_resolvable"), ("y", "inferior")]), B: cell("accept")}
    assert changed_verdicts(one, two) == (
        CellChange(A, "x", "non_inferior", "not_resolvable"),
        CellChange(B, ACTION, "reject", "accept"),
    )
    assert changed_verdicts(one, one) == ()


def test_a_cell_that_only_one_bundle_has_and_one_that_did_not_run_are_changes():
    one = {A: cell("accept"), C: cell("accept", outcomes=[("x", "inferior")])}
    two = {B: cell("accept"), A: cell(None, "failed"), C: cell("accept")}
    assert changed_verdicts(one, two) == (
        CellChange(A, ACTION, "accept", "failed"),
        CellChange(C, "x", "inferior", None),
        CellChange(B, ACTION, None, "accept"),
    )


def criteria(**rows):
    named = [{"name": name, "outcome": o, "p_accept": p, "delta_pp": d} for name, (o, p, d) in rows.items()]
    return {"criteria": named}


def test_a_criterion_whose_outcome_p_value_or_delta_is_another_is_a_change_and_an_equal_one_is_none():
    same = ("non_inferior", 0.001, -0.5)
    one = {A: criteria(refusal=("not_resolvable", 0.2, -2.5), safety=same, quality=same), B: criteria(refusal=same)}
    two = {A: criteria(refusal=("non_inferior", 0.2, -2.5), safety=("non_inferior", 0.002, -0.5), quality=same)}
    assert changed_criteria(one, two) == (
        CriterionChange(
            A, "refusal", CriterionFigures("not_resolvable", 0.2, -2.5), CriterionFigures("non_inferior", 0.2, -2.5)
        ),
        CriterionChange(A, "safety", CriterionFigures(*same), CriterionFigures("non_inferior", 0.002, -0.5)),
    )
    assert changed_criteria(one, one) == ()


def test_a_criterion_that_one_bundle_lacks_is_a_change_and_a_build_decided_without_criteria_has_none():
    one, two = {A: criteria(refusal=("uninformative", None, None))}, {A: criteria()}
    assert changed_criteria(one, two) == (
        CriterionChange(A, "refusal", CriterionFigures("uninformative", None, None), None),
    )
    assert changed_criteria({A: cell("accept")}, {A: cell("reject")}) == ()


def test_deltas_that_moved_come_largest_first_then_by_cell_and_those_of_one_bundle_last():
    one = [delta("A", "x", "-1.5"), delta("B", "x", "2"), delta("C", "x", "0.1"), delta("C", "y", "7")]
    two = [delta("A", "x", "-1.25"), delta("B", "x", "-2"), delta("C", "x", "0.1"), delta("A", "y", "9"),
           delta("C", "x2", "1/3")]  # fmt: skip
    assert moved_deltas(one, two) == (
        DeltaChange(B, "x", Fraction(2), Fraction(-2)),
        DeltaChange(A, "x", Fraction(-3, 2), Fraction(-5, 4)),
        DeltaChange(A, "y", None, Fraction(9)),
        DeltaChange(C, "y", Fraction(7), None),
        DeltaChange(C, "x2", None, Fraction(1, 3)),
    )
    assert [move.moved for move in moved_deltas(one, two)] == [-4, Fraction(1, 4), None, None, None]


def test_equal_moves_either_way_go_by_cell_and_small_ones_stand_before_what_one_bundle_lacks():
    one = [delta("B", "x", "0"), delta("A", "x", "5"), delta("C", "x", "1")]
    two = [delta("B", "x", "3"), delta("A", "x", "2"), delta("C", "y", "90"), delta("C", "x", "1.001")]
    assert [move[:2] for move in moved_deltas(one, two)] == [(A, "x"), (B, "x"), (C, "x"), (C, "y")]


def test_only_shares_are_compared_and_each_of_its_own_model():
    one = [delta("A", "ttft_ms", "5", unit="ms"), delta("A", "x", "1"), delta("A", "x", "2", base_model="n")]
    two = [delta("A", "ttft_ms", "50", unit="ms"), delta("A", "x", "1"), delta("A", "x", "3", base_model="n")]
    assert moved_deltas(one, two) == (DeltaChange(CellId("n", "A"), "x", Fraction(2), Fraction(3)),)


@pytest.mark.parametrize(
    ("before", "after", "moved"),
    [(Fraction(1, 3), Fraction(1, 2), Fraction(1, 6)), (Fraction(0), Fraction(-2), -2), (None, Fraction(1), None),
     (Fraction(1), None, None), (None, None, None)],
)  # fmt: skip
def test_how_far_a_delta_moved_is_exact_and_unknown_where_one_side_is(before, after, moved):
    assert DeltaChange(A, "x", before, after).moved == moved


def test_answers_are_compared_text_by_text_over_the_prompts_of_both():
    one = {("t", "0"): "yes", ("t", "1"): "no", ("t", "2"): "no", ("u", "0"): "a", ("t", "9"): "gone", ("v", "0"): "x"}
    two = {("t", "0"): "yes", ("t", "1"): "No", ("t", "2"): "no", ("u", "0"): "a", ("u", "1"): "new", ("u", "2"): "."}
    assert compared_answers(A, one, two) == AnswerChanges(A, 3, 1, 4)
    assert compared_answers(A, one, one) == AnswerChanges(A, 6, 0, 0)
    assert compared_answers(A, {}, two) == AnswerChanges(A, 0, 0, 6)


@pytest.mark.parametrize(
    ("equal", "changed", "share"), [(3, 1, Fraction(1, 4)), (0, 2, 1), (5, 0, 0), (0, 0, None), (1, 2, Fraction(2, 3))]
)
def test_the_share_of_changed_answers_is_of_those_that_both_gave(equal, changed, share):
    assert AnswerChanges(A, equal, changed, 7).share == share


def test_settings_that_differ_are_named_with_both_values_and_equal_ones_are_not():
    one, two = {"seed": "1", "engine": "x", "old": "y"}, {"new": "z", "seed": "2", "engine": "x"}
    assert changes(one, two) == (Change("seed", "1", "2"), Change("old", "y", None), Change("new", None, "z"))
    assert changes({}, {}) == ()
