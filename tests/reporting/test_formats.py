"""Numbers as they are read: signs, digits and units, and what was not measured."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantverdict.reporting import formats
from quantverdict.reporting.summary import escape_markdown, markdown_table
from quantverdict.reporting.tables import readable

M = "\u2212"


@pytest.mark.parametrize(
    ("value", "expected"),
    [("-3.636363", f"{M}3.64"), (0, "0.00"), (-0.004, "0.00"), (0.004, "0.00"), ("10", "+10.00"), ("-13/2", f"{M}6.50"),
     (None, "not measured"), ("", "not measured"), ("nan", "not measured"), (math.inf, "\u221e"),
     (True, "not measured")],
)  # fmt: skip
def test_deltas(value, expected):
    assert formats.delta(value) == expected


def test_an_interval_needs_both_ends():
    assert formats.interval(-6.806, "-0.92", sign=True) == f"[{M}6.81, {M}0.92]"
    assert formats.interval(0.5, 0.75, 1, factor=100) == "[50.0, 75.0]"
    assert formats.interval(None, 1) == formats.interval(1, "") == ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [(144810624, "145 MB"), (999, "999 B"), (1000, "1.00 kB"), (4.37e9, "4.37 GB"), (0, "0 B"), (None, "not measured")],
)
def test_sizes(value, expected):
    assert formats.size(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(61.34, "61.3"), (104.2, "104"), (0.03456, "0.0346"), (12345, "12345"), (1e-9, f"1.00e{M}09"), (0, "0")],
)
def test_three_figures(value, expected):
    assert formats.significant(value) == expected


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [("max_refusal_signal_pp", "19", "19.00"), ("quality_delta_pp", "2.5", "+2.50"), ("n_models", "6", "6"),
     ("rows", 0, "0"), ("p_value", "0.017", "0.01700"), ("file_bytes", "2000000", "2.00 MB"),
     ("role", "", "not measured"), ("note", "x", "x")],
)  # fmt: skip
def test_table_values_by_column(column, value, expected):
    assert formats.table_value(column, value) == expected


@given(st.text())
def test_plain_text_can_always_be_written_and_holds_no_control(text):
    shown = formats.plain(text)
    shown.encode("utf-8")
    assert not any(ord(c) < 32 and c not in "\t\n" for c in shown)


def test_plain_text_cannot_reverse_what_stands_beside_it():
    assert formats.plain("a\u202eb\x1b[31m\ud800") == "a\ufffdb\ufffd[31m\ufffd"


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_markdown_is_one_line_without_live_marks(text):
    shown = escape_markdown(text)
    assert "\n" not in shown
    bare = shown.replace("\\\\", "")
    for mark in "`*[]<>|#~&!":
        assert bare.count(mark) == bare.count(f"\\{mark}")


def test_names_of_builds_stay_readable_in_markdown():
    assert escape_markdown("Q4_K_M _x_") == r"Q4_K_M \_x\_"


def test_a_markdown_table_is_not_escaped_twice():
    table = markdown_table(("a|b",), [("*",)], (True,))
    assert escape_markdown(table) == "| a\\|b |\n| ---: |\n| \\* |"


def test_sentences_name_metrics_and_actions_as_the_report_does():
    text = "rouge_l -1.20 pp is at least -3 pp; conservative_floor_candidate in smollm2-135m/Q4_K_M, n-gram"
    expected = f"ROUGE-L {M}1.20 pp is at least {M}3 pp; conservative floor candidate in smollm2-135m/Q4_K_M, n-gram"
    assert readable(formats.DisplayNames(), text) == expected


def test_nested_values_are_flattened_in_their_order():
    value = {"b": {"c": None, "d": [1, 2]}, "a": True, "e": [{"f": 1}], "g": []}
    assert formats.flatten(value) == [
        ("b.c", "not measured"),
        ("b.d", "1, 2"),
        ("a", "yes"),
        ("e[0].f", "1"),
        ("g", "none"),
    ]
