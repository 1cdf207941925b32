"""The charts: areas where the policy's thresholds are, every build drawn once, markup that parses."""

import json
import re
from fractions import Fraction
from xml.etree import ElementTree as ET

import pytest

from quantverdict.policy import TR125, Policy
from quantverdict.reporting import figures, tables
from quantverdict.reporting.charts import Axis, Mark, Scale, regime_areas, regime_panel, shared_axes, trade_panel
from quantverdict.stages.run import decision_of


def policy(base=None, **changes):
    fields = (base or Policy()).model_copy(update={name: Fraction(str(value)) for name, value in changes.items()})
    return {name: value if isinstance(value, bool) else str(value) for name, value in fields.model_dump().items()}


def test_areas_are_the_thresholds_of_the_policy():
    given = policy(
        hidden_danger_quality_pp=-1.5, near_hidden_danger_quality_pp=-4, refusal_collapse_pp=-12, over_refusal_gain_pp=7
    )
    areas = {area.regime: area for area in regime_areas(given)}
    assert (areas["hidden_danger"].left, areas["hidden_danger"].top) == (-1.5, -12)
    assert (areas["near_hidden_danger"].left, areas["near_hidden_danger"].right) == (-4, -1.5)
    assert (areas["joint_collapse"].right, areas["joint_collapse"].top) == (-4, -12)
    assert (areas["over_refusal"].right, areas["over_refusal"].bottom) == (-5, 7)


def test_a_policy_without_joint_collapse_draws_none():
    assert "joint_collapse" not in {area.regime for area in regime_areas(policy(TR125))}


def test_a_policy_without_thresholds_draws_no_area():
    assert regime_areas({}) == []


def test_the_drawn_edge_of_hidden_danger_is_at_its_thresholds():
    axes = (Axis("q", -8, 2), Axis("r", -30, 10))
    drawn = ET.fromstring(regime_panel("p", [], regime_areas(policy()), axes))
    area = next(e for e in drawn.iter() if e.get("class") == "area hidden_danger")
    frame = [line for line in drawn.iter("line") if line.get("class") == "zero"]
    across = next(line for line in frame if line.get("y1") == line.get("y2"))
    x = Scale(-8, 2, float(across.get("x1")), float(across.get("x2")))
    assert float(area.get("x")) == pytest.approx(x(-2), abs=0.1)
    assert float(area.get("x")) + float(area.get("width")) == pytest.approx(x(2), abs=0.2)


def test_shared_axes_hold_every_mark_with_its_interval_and_reach_into_every_area():
    areas = regime_areas(policy())
    across, up = shared_axes([[Mark("a", -3, 4, (-9, 2), (-1, 15))], [Mark("b", 3, -44)]], areas, ("q", "r"))
    assert across.lo < -9 < 3 < across.hi
    assert up.lo < -44 < 15 < up.hi


def test_every_panel_parses_and_marks_each_measured_build_once(small):
    bundle = decision_of(small)
    rows = tables.builds(bundle)
    panel = figures.regime_figures(bundle, rows)[0].svg
    hints = [e.text for e in ET.fromstring(panel).iter("title")]
    assert [hint.split(":")[0] for hint in hints] == ["FP16", "Q8_0", "Q6_K", "Q4_K_M", "Q3_K_S = Q2_K"]
    assert "hidden danger, must not ship" in hints[-1]


def test_all_charts_of_a_study_parse(study):
    bundle = decision_of(study)
    rows = tables.builds(bundle)
    drawn = [*figures.regime_figures(bundle, rows), *figures.bits_figures(bundle), *figures.trade_figures(bundle, rows)]
    assert len(drawn) == 6 + 11 + 6
    for figure in drawn:
        root = ET.fromstring(figure.svg)
        _, _, width, height = map(float, root.get("viewBox").split())
        for label in root.iter("text"):
            assert 0 <= float(label.get("x")) <= width
            assert 0 <= float(label.get("y")) <= height


def test_regime_panels_of_one_study_share_their_axes(study):
    bundle = decision_of(study)
    drawn = [figure.svg for figure in figures.regime_figures(bundle, tables.builds(bundle))]
    assert len({tuple(re.findall(r'class="tick"[^>]*>([^<]*)<', svg)) for svg in drawn}) == 1


def test_without_file_sizes_the_trade_is_against_bits_per_weight(study):
    bundle = decision_of(study)
    assert {
        figure.caption.split(" against ")[1] for figure in figures.trade_figures(bundle, tables.builds(bundle))
    } == {"bits per weight"}


def test_equal_values_still_have_an_axis():
    drawn = trade_panel("t", [Mark("a", 1, 0), Mark("b", 1, 0)], (Axis("s", 0.9, 1.1), Axis("q", -1, 1)))
    assert "NaN" not in drawn


def test_heat_colour_says_better_or_worse_by_the_metrics_direction(small):
    def tone(metric, amount):
        return figures.tone_of(metric, amount, -10)

    assert [tone("refusal_rate", -10), tone("refusal_rate", 4), tone("over_refusal_rate", 4)] == [
        "worse5",
        "better2",
        "worse2",
    ]
    assert [tone("output_tokens", 30), tone("refusal_rate", 0), tone("refusal_rate", -99)] == ["other5", "", "worse5"]
    assert figures.tone_of("refusal_rate", -5, None) == ""


def test_a_study_without_bits_per_weight_has_no_bits_chart(small):
    path = small / "matrix.csv"
    head, *lines = path.read_text().splitlines()
    column = head.split(",").index("bpw")
    blank = [",".join("" if k == column else cell for k, cell in enumerate(line.split(","))) for line in lines]
    path.write_text("\n".join([head, *blank]) + "\n")
    assert figures.bits_figures(decision_of(small)) == []


def test_one_format_alone_can_be_drawn(small):
    """A study of one build at one width: no range to take a logarithm of."""
    path = small / "decision.json"
    decision = json.loads(path.read_text())
    path.write_text(json.dumps({**decision, "cells": decision["cells"][:1]}))
    bundle = decision_of(small)
    rows = tables.builds(bundle)
    assert figures.regime_figures(bundle, rows) == []
    assert figures.trade_figures(bundle, rows) == []
