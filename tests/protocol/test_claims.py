"""Claims: filters and aggregates on hand-made rows, and what a broken claim says."""

from fractions import Fraction
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantverdict.protocol.claims import (
    AGGREGATES,
    Claim,
    broken,
    claims_of,
    claims_table,
    escaped,
    parse_row,
    resolve_claim,
    value_of,
    where,
)

ROWS = [
    {"base_model": "a", "quant": "Q8_0", "delta": "-0.1", "p": "0.05", "note": ""},
    {"base_model": "a", "quant": "Q2_K", "delta": "-61.818181818182", "p": "0.049", "note": "x"},
    {"base_model": "b", "quant": "Q2_K", "delta": "7", "p": "", "note": "x"},
    {"base_model": "b", "quant": "AWQ", "delta": "", "p": "1e-7", "note": "y"},
]
READ = {"t.csv": ROWS}.get


def value(row="", column="", aggregate="value", artefact="t.csv"):
    return value_of(Claim("c", "", artefact, row, column, aggregate), READ)


@pytest.mark.parametrize(
    ("row", "n"),
    [
        ("", 4), ("base_model=a", 2), ("base_model=a;quant=Q2_K", 1), ("quant=AWQ|Q8_0", 2), ("quant!=AWQ", 3),
        ("quant!=AWQ|Q8_0", 2), ("note=", 1), ("note!=", 3), ("other=", 4), ("other=x", 0),
    ],
)  # fmt: skip
def test_equality_filters(row, n):
    assert value(row, aggregate="count") == str(n)


@pytest.mark.parametrize(
    ("row", "n"),
    [("p<0.05", 2), ("p<=0.05", 3), ("p<=0.0499999", 2), ("p>0.05", 0), ("p>=0.05", 1), ("delta<-61.818181818182", 0),
     ("delta<=-61.818181818182", 1)],
)  # fmt: skip
def test_a_threshold_holds_exactly_and_never_for_a_missing_value(row, n):
    assert value(row, aggregate="count") == str(n)


def test_aggregates_give_the_text_that_is_stored():
    assert value("base_model=a;quant=Q8_0", "delta") == "-0.1"
    assert value("", "delta", "min") == "-61.818181818182"
    assert value("", "delta", "max") == "7"
    assert value("", "delta", "max_abs") == "-61.818181818182"
    assert value("", "delta", "sum") == "-54.918181818182"
    assert value("", "base_model", "distinct") == "2"


def test_a_column_is_counted_where_it_has_a_value():
    assert value("", "delta", "count") == "3"
    assert value("", "", "count") == "4"


def test_rows_are_named_by_the_keys_that_the_filter_leaves_open():
    assert value("", "delta", "at_min") == "a Q2_K"
    assert value("base_model=a", "delta", "at_min") == "Q2_K"
    assert value("base_model=a|b", "delta", "at_max") == "b Q2_K"
    assert value("quant=Q2_K", aggregate="names") == "a, b"


def test_models_that_differ_in_their_random_part_alone_have_different_names():
    rows = [{"quality_metric": "rouge_l", "random": part, "coef": "2"} for part in ("intercept", "slope")]
    named = value_of(Claim("c", "", "mixed.csv", "", "", "names"), {"mixed.csv": rows}.get)
    assert named == "rouge_l intercept, rouge_l slope"


def test_value_needs_exactly_one_row():
    assert value("quant=Q2_K", "delta") == ""
    assert value("quant=Q6_K", "delta") == ""


@pytest.mark.parametrize("aggregate", [name for name in AGGREGATES if name not in {"count", "distinct", "sum"}])
def test_nothing_is_no_number(aggregate):
    assert value("quant=none", "delta", aggregate) == ""
    assert value("", "delta", aggregate, artefact="absent.csv") == ""


def test_a_count_of_no_rows_is_zero_but_of_no_artefact_is_not_known():
    assert value("quant=none", aggregate="count") == "0"
    assert value("", aggregate="count", artefact="absent.csv") == ""


@given(st.lists(st.decimals(-1000, 1000, places=3), min_size=1, max_size=9))
def test_median_is_that_of_the_standard_library(numbers):
    rows = [{"x": str(number)} for number in numbers]
    found = value_of(Claim("c", "", "t", "", "x", "median"), lambda _: rows)
    assert Fraction(found) == Fraction(median(numbers))


@given(st.dictionaries(st.sampled_from(["base_model", "quant"]), st.text(max_size=12), min_size=1))
def test_any_name_can_be_filtered_for(names):
    (test, *rest) = parse_row(where(**names))
    row = dict(names)
    assert all(holds(row) for holds in (test, *rest))
    other = {key: text + "x" for key, text in names.items()}
    assert not any(holds(other) for holds in (test, *rest))


def test_separators_in_a_name_are_escaped():
    assert escaped("a;b=c|d") == "a%3Bb%3Dc%7Cd"
    assert where(quant=("a|b", "c")) == "quant=a%7Cb|c"


@pytest.mark.parametrize("row", ["quant", "=x", "p<many", "quant~x"])
def test_what_is_no_filter_is_refused(row):
    with pytest.raises(ValueError, match="is not a condition"):
        value(row, aggregate="count")


def test_a_broken_claim_is_named_with_what_it_says_and_what_is_true():
    true = resolve_claim(Claim("danger", "[n] rows", "t.csv", "delta<=-10", "", "count"), READ)
    false = Claim("other", "", "t.csv", "quant=Q2_K", "", "count", "3")
    unknown = Claim("third", "", "t.csv", "", "", "average", "1")
    gone = Claim("fourth", "", "gone.csv", "", "", "count", "1")
    assert true.value == "1"
    assert broken([true], READ) == []
    first, second, third = broken([true, false, unknown, gone], READ)
    assert first == "claims.csv: claim other says 3; t.csv, row quant=Q2_K, count of rows gives 2"
    assert "no aggregate 'average'" in second
    assert third.endswith("gives nothing")


def test_claims_come_back_from_their_table():
    claims = (Claim("a", '[x] of, "all"', "t.csv", "quant=Q2_K", "delta", "min", "-1", "pp"),)
    table = claims_table(claims)
    assert claims_of([dict(zip(table.columns, row, strict=True)) for row in table.rows]) == claims


@pytest.mark.parametrize("limit", ["1/0", "1e999999999", "nan", "x", ""])
def test_a_limit_that_is_no_number_breaks_its_claim_alone(limit):
    """A fraction without a value, or an exponent that fills the memory, must not keep the other claims unread."""
    good = Claim("good", "", "t.csv", "", "", "count", "5")
    (first, second) = broken([Claim("bad", "", "t.csv", f"p<{limit}", "", "count", "1"), good], READ)
    assert first.startswith("claims.csv: claim bad: ")
    assert second == "claims.csv: claim good says 5; t.csv, row (all), count of rows gives 4"


def test_a_threshold_of_a_policy_may_be_a_fraction():
    """`decision.json` holds 7.5 as 15/2."""
    assert value("delta<=-15/2", aggregate="count") == "1"


def test_a_column_value_that_is_no_decimal_is_no_number():
    odd = [{"delta": text} for text in ("1/0", "1e999999999", "1_0", "inf", "2.5")]
    claim = Claim("c", "", "t.csv", "", "delta", "max")
    assert value_of(claim, {"t.csv": odd}.get) == "2.5"


def test_a_threshold_on_a_column_that_is_not_there_selects_nothing():
    assert value("nowhere<5", aggregate="count") == "0"
    assert value("nowhere>=-5", aggregate="count") == "0"


def test_extremes_are_the_text_or_the_row_of_the_first_of_equals():
    rows = [{"quant": quant, "x": text} for quant, text in (("A", "-3"), ("B", "3"), ("C", "-3.0"), ("D", "1"))]
    read = {"t.csv": rows}.get
    names = ("min", "max", "max_abs", "at_min", "at_max", "at_max_abs", "median", "sum", "distinct")
    found = {name: value_of(Claim("c", "", "t.csv", "", "x", name), read) for name in names}
    assert found == {"min": "-3", "max": "3", "max_abs": "-3", "at_min": "A", "at_max": "B", "at_max_abs": "A",
                     "median": "-1", "sum": "-2", "distinct": "4"}  # fmt: skip


def test_a_filter_may_end_in_a_separator_and_binds_only_single_values():
    assert value("base_model=a;", "delta", "at_min") == "Q2_K"
    assert value("base_model=a;quant!=AWQ", "delta", "at_max") == "Q8_0"
    assert value("p<0.05;quant=Q2_K", "delta", "at_min") == "a"
