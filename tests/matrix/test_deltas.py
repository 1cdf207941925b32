"""Deltas are exact; their interval is paired where samples allow, Newcombe's from counts, else unknown."""

from fractions import Fraction

import numpy as np
import pytest

from quantverdict.config import StatisticsConfig
from quantverdict.matrix.cells import CellInfo, build_matrix, scores_frame
from quantverdict.matrix.deltas import deltas, deltas_table
from quantverdict.records import Estimate, Row, Score
from quantverdict.stats.intervals import newcombe_difference, paired_bootstrap_difference

STATISTICS = StatisticsConfig()


def row(quant, baseline=False, model="m", **metrics):
    return Row(model, "F", 1.0, quant, None, baseline, metrics)


def counted(k, n):
    return Estimate(Fraction(k, n), n=n, k=k)


def only(found):
    (delta,) = found
    return delta


def test_a_difference_of_rates_is_exact_and_in_percentage_points():
    found = only(
        deltas(
            (row("FP16", True, refusal_rate=counted(168, 220)), row("Q4_K_M", refusal_rate=counted(146, 220))),
            STATISTICS,
        )
    )
    assert (found.delta, found.unit) == (-10, "pp")
    assert found.percent == Fraction(-22, 168) * 100
    interval = newcombe_difference(146, 220, 168, 220)
    assert (found.lo, found.hi, found.interval_kind) == (interval.lo * 100, interval.hi * 100, "newcombe")
    assert (found.n, found.differing) == (220, None)


def test_other_metrics_keep_their_unit():
    found = only(
        deltas(
            (row("FP16", True, file_bytes=Estimate(Fraction(200))), row("Q2_K", file_bytes=Estimate(Fraction(50)))),
            STATISTICS,
        )
    )
    assert (found.delta, found.unit, found.percent) == (-150, "bytes", -75)
    assert (found.lo, found.hi, found.interval_kind) == (None, None, None)


def test_falling_further_below_zero_is_a_loss_in_percent_too():
    """A log-probability margin of -0.5 that becomes -1 fell by 100 % of its size."""
    margins = {"FP16": Fraction(-1, 2), "Q2_K": Fraction(-1)}
    matrix = tuple(row(q, q == "FP16", choice_accuracy_margin=Estimate(value)) for q, value in margins.items())
    assert only(deltas(matrix, STATISTICS)).percent == -100


def test_percent_of_nothing_is_not_known():
    found = only(
        deltas(
            (row("FP16", True, rouge_l=Estimate(Fraction(0))), row("Q2_K", rouge_l=Estimate(Fraction(1, 2)))),
            STATISTICS,
        )
    )
    assert (found.delta, found.percent) == (50, None)


@pytest.mark.parametrize("side", ["variant", "baseline"])
def test_a_metric_missing_on_one_side_is_shown_as_missing(side):
    known = {"rouge_l": Estimate(Fraction(1, 2))}
    base, variant = ({}, known) if side == "baseline" else (known, {})
    found = only(deltas((row("FP16", True, **base), row("Q2_K", **variant)), STATISTICS))
    assert (found.delta, found.percent, found.lo, found.hi) == (None, None, None, None)
    assert (found.baseline_value is None) == (side == "baseline")
    assert (found.value is None) == (side == "variant")


def test_each_build_is_compared_with_the_baseline_of_its_own_model():
    matrix = (
        row("FP16", True, model="a", rouge_l=Estimate(Fraction(1, 2))),
        row("Q2_K", model="a", rouge_l=Estimate(Fraction(1, 4))),
        row("FP16", True, model="b", rouge_l=Estimate(Fraction(1, 8))),
        row("Q2_K", model="b", rouge_l=Estimate(Fraction(1, 4))),
        row("Q2_K", model="c", rouge_l=Estimate(Fraction(1, 4))),
    )
    assert [(d.cell.base_model, d.delta) for d in deltas(matrix, STATISTICS)] == [("a", -25), ("b", Fraction(25, 2))]


def samples(metric, quant, values, clusters=None):
    names = clusters or [None] * len(values)
    return [
        Score("m", quant, "t", f"s{i:03d}", metric, value, cluster)
        for i, (value, cluster) in enumerate(zip(values, names, strict=True))
    ]


def from_samples(metric, base, variant, clusters=None):
    frame = scores_frame([*samples(metric, "FP16", base, clusters), *samples(metric, "Q4_K_M", variant, clusters)])
    infos = [
        CellInfo("m", "F", 1.0, "FP16", 16, is_baseline=True),
        CellInfo("m", "F", 1.0, "Q4_K_M", 4.85, is_baseline=False),
    ]
    return only(deltas(build_matrix(frame, infos, STATISTICS), STATISTICS, frame))


def test_with_samples_the_interval_is_the_paired_bootstrap():
    rng = np.random.default_rng(3)
    base = rng.random(60)
    variant = base + rng.normal(-0.02, 0.01, 60)
    found = from_samples("rouge_l", base.tolist(), variant.tolist())
    interval = paired_bootstrap_difference(variant, base)
    assert found.interval_kind == "paired_bootstrap"
    assert (found.lo, found.hi) == pytest.approx((interval.lo * 100, interval.hi * 100), abs=1e-9)
    assert found.lo < float(found.delta) < found.hi
    assert (found.n, found.differing) == (60, 60)


def test_pairing_says_more_than_two_separate_intervals():
    """The same prompts fail on both sides but for three: Newcombe's interval is more than three times as wide."""
    base, variant = [1] * 60 + [0] * 40, [0] * 3 + [1] * 57 + [0] * 40
    found = from_samples("mmlu_accuracy", base, variant)
    unpaired = newcombe_difference(57, 100, 60, 100)
    assert 3 * (found.hi - found.lo) < 100 * (unpaired.hi - unpaired.lo)
    assert (found.delta, found.differing) == (-3, 3)


def test_clusters_of_pairs_are_drawn_whole():
    clusters = [f"c{i // 4:02d}" for i in range(40)]
    base, variant = [1] * 40, [0] * 4 + [1] * 36
    found = from_samples("refusal_rate", base, variant, clusters)
    interval = paired_bootstrap_difference(variant, base, clusters=clusters)
    assert found.interval_kind == "paired_cluster_bootstrap"
    assert (found.lo, found.hi) == pytest.approx((interval.lo * 100, interval.hi * 100))


def test_only_prompts_that_both_answered_are_pairs():
    found = from_samples("refusal_rate", [1, 1, None, 0, 1], [1, 0, 1, None, 1])
    assert (found.n, found.differing) == (3, 1)


@pytest.mark.parametrize("clusters", [None, [f"c{i // 4:02d}" for i in range(100)]])
def test_a_delta_is_over_the_prompts_that_both_have_a_grade_for(clusters):
    """Of 50 prompts that the baseline refused, 40 have an empty answer: the 60 pairs that are left do not differ.

    What the 40 may hide is no part of the delta: the tests count it (`test_ungraded.py`).
    """
    base, variant = [1.0] * 50 + [0.0] * 50, [None] * 40 + [1.0] * 10 + [0.0] * 50
    found = from_samples("refusal_rate", base, variant, clusters)
    assert (found.delta, found.n, found.differing) == (0, 60, 0)
    assert found.baseline_value == found.value == Fraction(1, 6)


def test_without_a_common_prompt_there_is_no_delta():
    """Two answers right on each side, of other prompts: their rates differ, and say nothing of the build."""
    found = from_samples("mmlu_accuracy", [1, 1, None, None], [None, None, 0, 1])
    assert (found.delta, found.interval_kind, found.lo) == (None, None, None)


def test_the_table_has_a_row_for_each_delta():
    table = deltas_table(
        deltas((row("FP16", True, refusal_rate=counted(3, 4)), row("Q2_K", refusal_rate=counted(1, 4))), STATISTICS)
    )
    found = dict(zip(table.columns, table.rows[0], strict=True))
    assert found["delta"] == -50
    assert found["delta_percent"] == Fraction(-200, 3)
    assert (found["baseline_value"], found["value"]) == (Fraction(3, 4), Fraction(1, 4))
    assert (found["metric"], found["quant"]) == ("refusal_rate", "Q2_K")
