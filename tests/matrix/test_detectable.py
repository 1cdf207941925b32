"""The smallest detectable drop beside every rate."""

from fractions import Fraction

import pytest

from quantverdict.config import StatisticsConfig
from quantverdict.matrix.grid import grids, scores_frame
from quantverdict.matrix.headroom import PairCounts, paired_drop, power_table, units_of
from quantverdict.records import CellId, Estimate, Row, Score
from quantverdict.stats.power import mde_paired, mde_unpaired


def rate(k, n):
    return Estimate(Fraction(k, n), n=n, k=k)


MATRIX = (
    Row("m", "F", None, "Q8_0", None, True, {
        "refusal_rate": rate(200, 220), "mmlu_accuracy": rate(2, 285), "rouge_l": Estimate(Fraction(1, 3), n=50),
        "truthfulness": Estimate(Fraction(1, 2), n=50), "judge_refusal_rate": Estimate(Fraction(9, 10)),
    }),
    Row("m", "F", None, "Q2_K", None, False, {
        "refusal_rate": rate(100, 110), "mmlu_accuracy": rate(3, 285), "rouge_l": Estimate(Fraction(1, 3), n=50),
        "truthfulness": Estimate(Fraction(1, 2), n=50), "judge_refusal_rate": Estimate(Fraction(9, 10)),
        "bias_resistance": rate(5, 10),
    }),
)  # fmt: skip


def found(**options):
    chosen = {name: options.pop(name) for name in ("power", "confidence") if name in options}
    table = power_table(MATRIX, StatisticsConfig(**chosen), **options)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    return {(row["quant"], row["metric"]): row for row in rows}


def test_a_rate_is_compared_with_its_baselines_at_both_sample_sizes():
    row = found()["Q2_K", "refusal_rate"]
    assert row["mde_unpaired_pp"] == 100 * mde_unpaired(200 / 220, 220, 110)
    assert (row["rate"], row["n"], row["mde_paired_pp"], row["discordance"]) == (Fraction(10, 11), 110, None, None)


def test_the_paired_effect_needs_to_know_how_many_pairs_differ():
    row = found(pairs={(CellId("m", "Q2_K"), "refusal_rate"): PairCounts(10, 100, 100)})["Q2_K", "refusal_rate"]
    assert row["mde_paired_pp"] == 100 * mde_paired(100, 0.1), "by the pairs there are, not by the answers of one arm"
    assert row["mde_paired_pp"] < row["mde_unpaired_pp"]


def test_clusters_are_counted_in_the_place_of_their_prompts():
    """Four forms of one behaviour may all be answered alike: 220 prompts of 130 units show what 130 would."""
    cells = [CellId("m", quant) for quant in ("Q8_0", "Q2_K")]
    units = {(cell, "refusal_rate"): n for cell, n in zip(cells, (130, 100), strict=True)}
    rows = found(units=units, pairs={(cells[1], "refusal_rate"): PairCounts(10, 110, 100)})
    row = rows["Q2_K", "refusal_rate"]
    assert row["mde_unpaired_pp"] == 100 * mde_unpaired(200 / 220, 130, 100)
    assert row["mde_paired_pp"] == 100 * mde_paired(100, 10 / 110)
    assert (row["n"], row["n_independent"], row["unit"]) == (110, 100, "cluster")
    plain = rows["Q2_K", "truthfulness"]
    assert (plain["n"], plain["n_independent"], plain["unit"]) == (50, 50, "prompt")


def test_units_are_those_with_a_graded_prompt_of_the_metric():
    """Two prompts of a cluster and one alone; of another cell one prompt of the cluster has no grade."""
    scores = [
        Score("m", quant, "t", sample, metric, value, cluster)
        for quant in ("Q8_0", "Q2_K")
        for metric in ("refusal_rate", "truthfulness")
        for sample, cluster, value in (("a", "x", 1.0), ("b", "x", 0.0), ("c", None, 1.0))
        if (quant, sample) != ("Q2_K", "c")
    ]
    alone = Score("m", "Q8_0", "u", "d", "bertscore", 0.5, None)
    units = units_of(grids(scores_frame([*scores, alone])))
    assert units == {
        (CellId("m", quant), metric): n
        for quant, n in (("Q8_0", 2), ("Q2_K", 1))
        for metric in ("refusal_rate", "truthfulness")
    }


def test_power_and_confidence_are_arguments():
    assert (
        found(power=0.9)["Q2_K", "refusal_rate"]["mde_unpaired_pp"] > found()["Q2_K", "refusal_rate"]["mde_unpaired_pp"]
    )
    strict = found(confidence=0.99)["Q2_K", "refusal_rate"]["mde_unpaired_pp"]
    assert strict > found()["Q2_K", "refusal_rate"]["mde_unpaired_pp"]


def test_what_cannot_be_detected_or_is_not_known_is_blank_with_a_reason():
    rows = found()
    assert rows["Q2_K", "mmlu_accuracy"]["mde_unpaired_pp"] is None
    assert rows["Q2_K", "mmlu_accuracy"]["reason"] == "no drop from this rate would be detected"
    assert rows["Q2_K", "judge_refusal_rate"]["reason"] == "the number of prompts is not known"
    few = found(pairs={(CellId("m", "Q2_K"), "refusal_rate"): PairCounts(2, 100, 100)})["Q2_K", "refusal_rate"]
    assert (few["mde_paired_pp"], few["reason"]) == (None, "too few pairs differ to show any difference")


def test_only_rates_that_the_baseline_has_too_are_listed():
    assert {metric for _, metric in found()} == {
        "refusal_rate", "mmlu_accuracy", "truthfulness", "judge_refusal_rate",
    }  # fmt: skip


@pytest.mark.parametrize(("printed", "rate"), [("1.0003", 1.0), ("-0.0003", 0.0)])
def test_a_rate_that_rounding_put_beyond_its_range_is_at_its_end(printed, rate):
    """One cell of the published matrix has a refusal rate of 1.0003."""
    rows = [
        Row("m", "F", None, quant, None, quant == "Q8_0", {"refusal_rate": Estimate(Fraction(printed), n=220)})
        for quant in ("Q8_0", "Q2_K")
    ]
    table = power_table(tuple(rows), StatisticsConfig())
    drop = mde_unpaired(rate, 220, 220)
    assert table.rows[1][table.columns.index("mde_unpaired_pp")] == (None if drop is None else 100 * drop)


@pytest.mark.parametrize("units", [100, 60])
def test_a_paired_drop_is_by_the_units_there_are_and_the_share_of_pairs_that_differ(units):
    statistics = StatisticsConfig(power=0.9, confidence=0.9)
    assert paired_drop(PairCounts(30, 120, units), statistics) == mde_paired(units, 0.25, 0.9, 0.1)
    assert mde_paired(units, 0.25, 0.9, 0.1) not in (None, mde_paired(units, 0.25), mde_paired(units, 0.3, 0.9, 0.1))
