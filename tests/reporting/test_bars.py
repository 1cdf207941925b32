"""An interval drawn with its margin: where each sign stands, what is cut, what a screen reader says."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from markupsafe import escape

from quantverdict.reporting.bars import COLUMNS, HEIGHT, LEGEND, WIDTH, interval_bar
from quantverdict.reporting.formats import SIGNS, bounded


def bar(delta, lo, hi, margin=5, guard=5, role="criterion"):
    return interval_bar({"delta_pp": str(delta), "ci_lo_pp": str(lo), "ci_hi_pp": str(hi), "margin_pp": str(margin),
                         "guard_margin_pp": str(guard), "role": role})  # fmt: skip


@pytest.mark.parametrize(
    ("given", "drawn"),
    [
        ((0, -4, 4), "·····┃────●────·"),
        ((0, -6, 4), "····─┃────●────·"),
        ((-8, -9, -6), "·─●──┃··········"),
        ((-5, -6, -4), "····─●─·········"),
        ((-40, -50, -30), "●····┃··········"),
        ((20, 10, 100), "·····┃·········●"),
    ],
)
def test_the_bar_of_a_criterion_is_one_column_a_percentage_point(given, drawn):
    """From -10 to +5 pp by a margin of 5 pp: the margin is column 5, and 0 column 10; what is beyond is cut there."""
    found = bar(*given)
    assert found == drawn
    assert len(found) == COLUMNS
    assert found.translate(SIGNS).isascii()


@pytest.mark.parametrize(("lo", "hi", "side"), [(-4.4, 3, "right"), (-9, -5.6, "left"), (-6, 3, "both")])
def test_what_is_accepted_lies_right_of_the_margin_and_what_is_rejected_left(lo, hi, side):
    left, right = bar((lo + hi) / 2, lo, hi).split("┃")
    drawn = {"left": set("─●") & set(left), "right": set("─●") & set(right)}
    assert [name for name, found in drawn.items() if found] == (["left", "right"] if side == "both" else [side])


def test_a_member_has_both_of_its_margins_and_a_criterion_its_own():
    """From -20 to +10 pp: two a column; the guard margin of 10 is column 5, the margin of 5 column 8."""
    assert bar(0, 0, 0, guard=10, role="member") == "·····┆··┃·●·····"
    assert "┆" not in bar(0, 0, 0, guard=10)
    assert "┆" not in bar(0, 0, 0, role="member")


def test_what_is_not_tested_has_no_bar():
    assert bar("", "", "") is None
    assert interval_bar({"delta_pp": None, "ci_lo_pp": 1, "ci_hi_pp": 2, "margin_pp": 5}) is None


def test_in_html_it_is_a_drawing_that_says_its_numbers():
    root = ET.fromstring(str(escape(bar(-1.5, -4, 100, guard=10, role="member"))))
    assert root.get("aria-label") == "−1.50 pp at least −4.00, margin 5 pp, guard margin 10 pp"
    kinds = [one.get("class") for one in root]
    assert kinds == ["zero", "margin", "guard", "reach", "point"]
    inside = [float(one.get(key)) for one in root for key in ("x1", "x2", "cx") if one.get(key)]
    assert all(0 <= x <= WIDTH for x in inside)
    assert float(root.find("circle").get("cy")) == HEIGHT / 2


def test_the_legend_names_every_sign_of_a_criterion():
    assert all(sign in LEGEND for sign in "●─┃")


@pytest.mark.parametrize(
    ("lo", "hi", "words"),
    [
        (-3.4, 4.3, "[−3.40, +4.30]"),
        (-3.4, 100, "at least −3.40"),
        (-3.4, 99.99, "[−3.40, +99.99]"),
        (-100, 4.3, "at most +4.30"),
        ("-100.0", "100.0", "not bounded"),
        ("", 4, ""),
    ],
)
def test_an_end_as_far_as_a_share_can_go_is_none(lo, hi, words):
    assert bounded(lo, hi) == words
