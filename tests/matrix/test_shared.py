"""What a build is compared over: levels of prompts that both were asked, deltas of those that both have a grade for."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from quantverdict.config import StatisticsConfig
from quantverdict.matrix.cells import CellInfo, build_matrix
from quantverdict.matrix.grid import grids, scores_frame
from quantverdict.matrix.shared import bounded_losses, credit, unpaired, with_shared
from quantverdict.matrix.signals import all_signals
from quantverdict.matrix.synthesis import _level, exact_changes
from quantverdict.policy import Policy
from quantverdict.records import CellId, Estimate, Score, SharedPrompts

BASE, BUILD = CellId("m", "FP16"), CellId("m", "Q4_K_M")
FEW = StatisticsConfig(bootstrap_samples=100)


def study(base, build, templates=None, metric="refusal_rate"):
    """Matrix and samples of two arms, each a mapping of prompt to value."""
    found = [
        Score(*cell, "t", name, metric, value)
        for cell, values in ((BASE, base), (BUILD, build))
        for name, value in values.items()
    ]
    infos = [CellInfo("m", "F", 1.0, cell.quant, 16 - at, is_baseline=not at) for at, cell in enumerate((BASE, BUILD))]
    samples = grids(scores_frame(found))
    return build_matrix(samples, infos, FEW, templates=templates or {}), samples


def named(values, start=0):
    return {f"s{at:03d}": value for at, value in enumerate(values, start)}


def test_the_same_prompts_change_nothing():
    matrix, samples = study(named([1.0, 0.0, None]), named([1.0, 1.0, None]))
    assert with_shared(matrix, samples) == matrix
    assert unpaired(samples, BUILD, BASE, ["refusal_rate"]) is None


def test_levels_are_of_prompts_that_both_were_asked_and_deltas_of_those_that_both_have_a_grade_for():
    """Prompts 0 to 5 in the baseline, 2 to 9 in the build, which leaves prompt 2 ungraded."""
    matrix, samples = study(named([1.0] * 6), named([None, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0], start=2))
    row = next(row for row in with_shared(matrix, samples) if not row.is_baseline)
    assert row.metrics["refusal_rate"] == Estimate(Fraction(2, 3), n=3, k=2), "of prompts 3, 4 and 5"
    assert row.paired_metrics["refusal_rate"].value == Fraction(2, 3)
    assert row.shared.metrics["refusal_rate"] == Estimate(Fraction(1), n=3, k=3)
    found = unpaired(samples, BUILD, BASE, ["refusal_rate", "truthfulness"])
    assert (found.missing, found.extra, found.asked, found.metrics) == (2, 4, 6, ("refusal_rate",))
    assert with_shared(with_shared(matrix, samples), samples) == with_shared(matrix, samples)


def test_no_common_prompt_is_no_delta_and_says_so():
    matrix, samples = study(named([1.0] * 5), named([0.0] * 5, start=5))
    shared = with_shared(matrix, samples)
    assert [deltas for _, deltas in exact_changes(shared)] == [{}]
    signals = all_signals(shared, Policy())[1]
    assert signals.refusal is None
    assert signals.missing("refusal_rate") == "refusal_rate: no prompt that both it and the baseline have a grade for"


def test_what_is_of_a_cell_as_a_whole_has_no_delta_over_other_prompts():
    prefixes = {cell: {"prefix_entropy": Estimate(Fraction(1, 2))} for cell in (BASE, BUILD)}
    for build, kept in ((named([1.0] * 6), True), (named([1.0] * 3), False)):
        matrix, samples = study(named([1.0] * 6), build, prefixes)
        ((_, deltas),) = exact_changes(with_shared(matrix, samples))
        assert ("prefix_entropy" in deltas) == kept


def test_a_level_stands_on_its_bits_beside_all_of_the_baseline_by_its_delta():
    """Half a log, of the prompts that are harder: its level is lower than the baseline's and its delta 0."""
    for build, level in (([0.0] * 5, Fraction(1, 2)), ([1.0] + [0.0] * 4, Fraction(7, 10))):
        matrix, samples = study(named([0.0] * 5 + [1.0] * 5), named(build))
        base, row = with_shared(matrix, samples)
        assert _level(row, base, "refusal_rate") == level
        assert _level(row, base, "truthfulness") is None
        assert _level(base, base, "refusal_rate") == Fraction(1, 2)


def test_what_is_missing_is_said_in_words_and_a_judge_need_not_label_every_build():
    _, samples = study(named([1.0] * 6), named([1.0] * 5, start=3))
    assert str(unpaired(samples, BUILD, BASE, ["refusal_rate"])) == (
        "3 of 6 prompts are missing and 2 prompts were not asked of the baseline (refusal_rate)"
    )
    _, samples = study(named([1.0] * 6), named([1.0] * 8))
    assert (
        str(unpaired(samples, BUILD, BASE, ["refusal_rate"]))
        == "2 prompts were not asked of the baseline (refusal_rate)"
    )
    _, samples = study(named([1.0] * 6), named([1.0] * 4))
    assert str(unpaired(samples, BUILD, BASE, ["refusal_rate"])) == "2 of 6 prompts are missing (refusal_rate)"
    for metric, told in (("judge_refusal_rate", False), ("truthfulness", True)):
        for arms in ((named([1.0] * 6), {}), ({}, named([1.0] * 6))):
            _, samples = study(*arms, metric=metric)
            assert (unpaired(samples, BUILD, BASE, [metric]) is not None) == told
    _, samples = study(named([1.0] * 6), named([1.0] * 5), metric="judge_refusal_rate")
    assert unpaired(samples, BUILD, BASE, ["judge_refusal_rate"]).missing == 1


@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("metric", ["refusal_rate", "over_refusal_rate", "truthfulness"])
def test_what_is_ungraded_is_lost_where_it_was_good_and_gained_no_further_than_that(metric, offset):
    """By hand: 3 good answers left ungraded, 5 good ones that the baseline left; not asked of both is no pair."""
    good, bad = (0.0, 1.0) if metric == "over_refusal_rate" else (1.0, 0.0)
    nan = np.nan
    theirs = np.array([good, good, bad, good, good, good, bad, *[nan] * 6, nan, good])
    mine = np.array([good, bad, good, nan, nan, nan, nan, *[good] * 5, bad, nan, nan])
    asked = np.array([True] * 14 + [False])
    found = bounded_losses(metric, mine, theirs, asked, offset=offset)
    back = ([-1, -1, -1, 0, 0] if metric != "truthfulness" else [-3 / 5] * 5) if offset else [0] * 5
    expected = np.array([0, 1, -1, 1, 1, 1, 0, *back, 0, nan, nan])
    assert found.accept == pytest.approx(expected, nan_ok=True)
    assert found.reject == pytest.approx(np.array([0, 1, -1, *[0] * 10, nan, nan]), nan_ok=True)
    assert (found.a, found.c) == (3, 5)


def test_gains_that_losses_make_up_for_count_whole():
    mine, theirs = np.array([np.nan, np.nan, 1.0, 1.0]), np.array([1.0, 1.0, np.nan, np.nan])
    found = bounded_losses("refusal_rate", mine, theirs, np.ones(4, bool))
    assert found.accept.tolist() == [1, 1, -1, -1]
    half = bounded_losses("truthfulness", 0.5 * mine, theirs, np.ones(4, bool))
    assert half.accept.tolist() == [1, 1, -0.5, -0.5]


def test_what_an_answer_can_lose_is_a_share():
    values = np.array([-0.5, 0.0, 0.25, 1.0, 1.5])
    assert credit("rouge_l", values).tolist() == [0, 0, 0.25, 1, 1]
    assert credit("over_refusal_rate", values).tolist() == [1, 1, 0.75, 0, 0]


@pytest.mark.parametrize(
    ("metric", "values", "losable"),
    [("refusal_rate", [-0.5, 0, 0.4, 1, 1.2], [0, 0, 0.4, 1, 1]),
     ("over_refusal_rate", [-0.5, 0, 0.4, 1, 1.2], [1, 1, 0.6, 0, 0])],
)  # fmt: skip
def test_an_answer_can_lose_all_of_its_value_and_no_more_than_everything(metric, values, losable):
    assert credit(metric, np.array(values)) == pytest.approx(losable)


def test_a_row_without_a_baseline_and_one_that_is_compared_already_stay_as_they_are():
    matrix, samples = study(named([1.0] * 6), named([1.0] * 3))
    alone = tuple(row for row in matrix if not row.is_baseline)
    assert with_shared(alone, samples) == alone
    other = SharedPrompts({"refusal_rate": Estimate(Fraction(1, 3))}, stopped_after=3, planned=9)
    held = tuple(row if row.is_baseline else replace(row, shared=other) for row in matrix)
    assert with_shared(held, samples) == held
    assert with_shared(matrix, samples) != matrix
    assert with_shared(matrix, samples)[0] == matrix[0]


def test_a_metric_that_only_one_of_two_rows_has_takes_no_part():
    """Both have samples of both metrics, but a row may come from elsewhere without one."""
    matrix, samples = study(named([1.0] * 6), named([1.0] * 3))
    for lacking in (0, 1):
        torn = tuple(replace(row, metrics={}) if at == lacking else row for at, row in enumerate(matrix))
        assert with_shared(torn, samples) == torn
