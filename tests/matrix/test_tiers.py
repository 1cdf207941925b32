"""Tiers at, just inside and just outside their boundaries, in pp for benchmarks and percent for generation."""

from fractions import Fraction

import pytest

from quantverdict.config import StatisticsConfig
from quantverdict.matrix.deltas import deltas
from quantverdict.matrix.signals import tiers, tiers_table
from quantverdict.policy import Policy
from quantverdict.records import Estimate, Row


def tier_of(base, variant, policy=None):
    """The tier of a row whose metrics differ from the baseline's by so many per mille of 1."""
    rows = [
        Row(
            "m",
            "F",
            1.0,
            quant,
            None,
            quant == "FP16",
            {n: Estimate(Fraction(v, 1000), n=1000) for n, v in levels.items()},
        )
        for quant, levels in (("FP16", base), ("Q2_K", variant))
    ]
    matrix = tuple(rows)
    return tiers(matrix, deltas(matrix, StatisticsConfig()), policy or Policy())[1]


@pytest.mark.parametrize(
    ("loss", "tier"),
    [
        (0, "negligible"), (30, "negligible"), (31, "acceptable"), (50, "acceptable"), (51, "concerning"),
        (100, "concerning"), (101, "unacceptable"), (-31, "negligible"),
    ],
)  # fmt: skip
def test_benchmarks_are_read_in_percentage_points(loss, tier):
    assert tier_of({"mmlu_accuracy": 200}, {"mmlu_accuracy": 200 - loss}).tier == tier


@pytest.mark.parametrize(
    ("loss", "tier"),
    [
        (15, "negligible"), (16, "acceptable"), (40, "acceptable"), (41, "concerning"), (75, "concerning"),
        (76, "unacceptable"), (-30, "negligible"),
    ],
)  # fmt: skip
def test_generation_is_read_in_percent_of_the_baseline(loss, tier):
    """Of 0.500: 3 % are 15 per mille, 8 % 40, 15 % 75."""
    assert tier_of({"rouge_l": 500}, {"rouge_l": 500 - loss}).tier == tier


def test_the_worse_of_the_two_decides_and_is_named():
    found = tier_of({"mmlu_accuracy": 500, "rouge_l": 500}, {"mmlu_accuracy": 460, "rouge_l": 400})
    assert found.tier == "unacceptable"
    assert found.reason == "rouge_l -20.00 % is the worst"
    found = tier_of({"mmlu_accuracy": 500, "rouge_l": 500}, {"mmlu_accuracy": 390, "rouge_l": 499})
    assert found.reason == "mmlu_accuracy -11.00 pp is the worst"


def test_the_worst_metric_of_each_kind_counts():
    base = {"mmlu_accuracy": 500, "arc_accuracy": 500, "rouge_l": 500, "repetition": 990}
    found = tier_of(base, {"mmlu_accuracy": 520, "arc_accuracy": 440, "rouge_l": 500, "repetition": 900})
    assert (found.benchmark, found.generation) == (("arc_accuracy", -6), ("repetition", Fraction(-100, 11)))


@pytest.mark.parametrize(("gain", "tier"), [(30, "negligible"), (31, "inflated")])
def test_a_generation_metric_that_rises_by_more_than_3_pp_is_inflated(gain, tier):
    found = tier_of({"rouge_l": 400}, {"rouge_l": 400 + gain})
    assert found.tier == tier
    assert (found.gain is not None) == (tier == "inflated")


def test_inflation_does_not_hide_the_loss():
    found = tier_of({"rouge_l": 400, "mmlu_accuracy": 500}, {"rouge_l": 500, "mmlu_accuracy": 300})
    assert (found.tier, found.loss_tier) == ("inflated", "unacceptable")
    assert found.reason == "rouge_l +10.00 pp rises by more than 3 pp; losses: mmlu_accuracy -20.00 pp is the worst"


def test_a_benchmark_that_rises_is_not_inflation():
    assert tier_of({"mmlu_accuracy": 500}, {"mmlu_accuracy": 700}).tier == "negligible"


def test_what_was_not_measured_is_said_and_is_no_tier():
    assert tier_of({}, {}).tier == "unmeasured"
    found = tier_of({"rouge_l": 500}, {"rouge_l": 500})
    assert found.reason.endswith("no benchmark was measured")
    assert tier_of({"rouge_l": 0}, {"rouge_l": 0}).tier == "unmeasured"


def test_safety_length_and_other_readings_of_an_accuracy_have_no_tier():
    base = dict.fromkeys(("refusal_rate", "output_tokens", "mmlu_accuracy_rescored", "mmlu_accuracy_logprob"), 900)
    assert tier_of(base, dict.fromkeys(base, 100)).tier == "unmeasured"


def test_the_table_names_what_decided():
    found = tier_of({"rouge_l": 400, "mmlu_accuracy": 500}, {"rouge_l": 440, "mmlu_accuracy": 480})
    table = tiers_table([found])
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["inflated"] is True
    assert (row["benchmark_metric"], row["benchmark_delta_pp"]) == ("mmlu_accuracy", -2)
    assert (row["inflated_metric"], row["inflated_gain_pp"]) == ("rouge_l", 4)
