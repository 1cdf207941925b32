"""Scales, ticks and labels: round, inside their range, and never on top of each other."""

from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantverdict.reporting.charts import (
    Box,
    Scale,
    _box,
    coordinate,
    element,
    log_ticks,
    place_labels,
    span,
    text,
    text_width,
    ticks,
)

finite = st.floats(-1e6, 1e6, allow_nan=False)


@given(finite, st.floats(1e-3, 1e6), st.integers(2, 9))
def test_ticks_are_inside_even_and_about_as_many_as_asked(lo, width, about):
    hi = lo + width
    found = ticks(lo, hi, about)
    assert all(lo - 1e-6 * width <= value <= hi + 1e-6 * width for value in found)
    assert 1 <= len(found) <= about + 2
    steps = [b - a for a, b in pairwise(found)]
    assert not steps or max(steps) - min(steps) < 1e-6 * max(steps) + 1e-9


@pytest.mark.parametrize(
    ("lo", "hi", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (-60, 20, [-60, -40, -20, 0, 20]), (0.2, 0.6, [0.2, 0.3, 0.4, 0.5, 0.6])],
)
def test_ticks_are_round(lo, hi, expected):
    assert ticks(lo, hi, 5) == expected


def test_log_ticks_are_powers_of_two_and_halves_where_those_are_few():
    assert log_ticks(2.6, 17) == [3, 4, 6, 8, 12, 16]
    assert log_ticks(1, 64) == [1, 2, 4, 8, 16, 32, 64]


@given(st.lists(finite, min_size=1, max_size=9))
def test_a_span_holds_its_values_and_is_not_empty(values):
    lo, hi = span(values)
    assert lo < hi
    assert lo <= min(values) <= max(values) <= hi


def test_scales_map_ends_to_ends():
    assert Scale(0, 10, 100, 200)(5) == 150
    assert Scale(2, 32, 0, 4, log=True)(8) == pytest.approx(2)
    assert Scale(0, 10, 0, 1).inside(12) == 10


def test_coordinates_are_short_and_have_no_negative_zero():
    assert [coordinate(value) for value in (1.04, 2.0, -0.01, -3.25)] == ["1", "2", "0", "-3.2"]


@given(st.text(st.characters(exclude_categories=("Cs", "Cc"))))
def test_any_text_is_escaped(content):
    parsed = ET.fromstring(element("g", text(content, 1, 2), id=content))
    assert parsed.attrib["id"] == content
    assert parsed[0].text in {content, content or None}


@given(st.lists(st.tuples(st.floats(0, 400), st.floats(0, 300)), min_size=1, max_size=14))
def test_labels_lie_in_the_frame_and_overlap_neither_each_other_nor_a_mark(marks):
    frame = Box(0, 0, 400, 300)
    labels = [f"Q{k}_K_M" for k in range(len(marks))]
    placed = place_labels(marks, labels, frame, 11)
    boxes = [_box(spot, text_width(label, 11), 11) for spot, label in zip(placed, labels, strict=True) if spot]
    for index, box in enumerate(boxes):
        assert frame.holds(box)
        assert not any(box.overlaps(other) for other in boxes[:index])
        assert not any(box.overlaps(Box(x - 5, y - 5, x + 5, y + 5)) for x, y in marks)


def test_a_cluster_of_nine_builds_keeps_all_its_labels():
    marks = [(200 + 2 * (k % 3), 150 + 2 * (k // 3)) for k in range(9)]
    placed = place_labels(marks, [f"Q{k}_K_M" for k in range(9)], Box(0, 0, 400, 300), 11)
    assert None not in placed


def test_a_label_that_fits_nowhere_is_left_out():
    assert place_labels([(5, 5)], ["a label far wider than its frame"], Box(0, 0, 20, 20), 11) == [None]
