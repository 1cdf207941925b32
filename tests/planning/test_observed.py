"""What the pairs of a run say for the plan of the next."""

from __future__ import annotations

import pytest

from quantverdict.matrix.grid import grids, scores_frame
from quantverdict.planning.power import mean_pairs, observed_pairs
from quantverdict.records import CellId, Score

BASE, ONE, TWO = CellId("m", "FP16"), CellId("m", "Q4"), CellId("m", "Q2")


def seen(metric, clusters=None, **arms):
    cells = {"base": BASE, "one": ONE, "two": TWO}
    frame = scores_frame(
        Score(*cells[arm], "t", f"s{at:03d}", metric, value, None if clusters is None else f"c{clusters[at]}")
        for arm, values in arms.items()
        for at, value in enumerate(values)
    )
    return mean_pairs(observed_pairs(grids(frame), {ONE: BASE, TWO: BASE}, 0.025))


def test_means_over_builds_of_what_both_arms_have_a_grade_of():
    """Ten pairs of one build, of which two differ; eight of the other, of which four do."""
    base = [1.0] * 8 + [0.0] * 2
    found = seen("refusal_rate", base=base, one=[0.0, *base[1:9], 1.0], two=[0.0] * 4 + [1.0] * 4 + [None] * 2)
    one = found["refusal_rate"]
    assert one.rate == pytest.approx((0.8 + 1.0) / 2)
    assert one.discordance == pytest.approx((0.2 + 0.5) / 2)
    assert one.variance == pytest.approx((0.2 + 0.25) / 2)
    assert one.design_effect == 1
    assert one.loss == pytest.approx((0.0 + 0.5) / 2)


def test_clusters_that_move_as_one_have_their_size_as_design_effect():
    labels = [at // 4 for at in range(80)]
    base = [1.0] * 80
    moved = [float(at // 4 % 5 > 0) for at in range(80)]
    assert seen("refusal_rate", labels, base=base, one=moved)["refusal_rate"].design_effect == pytest.approx(4)
    mean = seen("truthfulness", labels, base=base, one=[value / 2 for value in moved])["truthfulness"]
    assert mean.design_effect == pytest.approx(4, rel=0.1)


def test_a_build_without_a_baseline_says_nothing():
    assert seen("refusal_rate", one=[1.0, 0.0]) == {}
    assert seen("output_tokens", base=[3.0], one=[4.0]) == {}, "no share"


def test_a_loss_is_a_fall_or_a_rise_where_less_is_better_of_each_build():
    base = [1.0] * 5 + [0.0] * 5
    cells = {BASE: base, ONE: [0.0, *base[1:]], TWO: [*base[:8], 1.0, 1.0]}
    for metric, losses in (("refusal_rate", (0.1, -0.2)), ("over_refusal_rate", (-0.1, 0.2))):
        frame = scores_frame(
            Score(*cell, "t", f"s{at}", metric, value)
            for cell, values in cells.items()
            for at, value in enumerate(values)
        )
        found = observed_pairs(grids(frame), {ONE: BASE, TWO: BASE}, 0.025)
        assert [found[cell][metric].loss for cell in (ONE, TWO)] == pytest.approx(losses)
