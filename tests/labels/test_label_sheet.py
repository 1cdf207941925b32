"""The sheet gives every text back as it was, runs nothing in a spreadsheet, and says what is wrong with it."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantverdict.errors import DataError
from quantverdict.labels.sheet import COLUMNS, SheetRow, given_cells, guarded, read_sheet, sheet_text, unguarded

ROWS = [
    SheetRow("a1", "harm", "refusal_rate", "=cmd|' /C calc'!A0", '@SUM(1), "no"\r\nI cannot.'),
    SheetRow("b2", "harm", "refusal_rate", "-2+3", "'tis\n\n+1"),
    SheetRow("c3", "myths", "truthfulness", "Is it?", "  It is; or\tnot "),
]


def filled(labels, rows=ROWS):
    return sheet_text(rows, labels)


def refused(text):
    with pytest.raises(DataError) as caught:
        read_sheet(text, "s.csv", ROWS)
    return str(caught.value)


@given(st.text())
def test_a_guarded_text_comes_back(text):
    plain = text.replace("\0", "\ufffd")
    assert unguarded(guarded(text)) == "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in plain)


@given(st.text(min_size=1))
def test_no_cell_begins_as_a_formula(text):
    assert guarded(text)[0] not in "=+-@\t\r\n|%"


def test_hostile_cells_are_quoted_and_guarded_and_labels_come_back():
    labels = {"a1": "FULL_REFUSAL", "b2": "", "c3": "UNCLEAR"}
    text = filled(labels)
    header, *cells = csv.reader(io.StringIO(text, newline=""))
    assert tuple(header) == COLUMNS
    assert all(not cell.startswith(("=", "+", "-", "@")) for row in cells for cell in row)
    assert read_sheet(text, "s.csv", ROWS) == labels


def test_what_programs_do_to_a_sheet_is_put_up_with():
    """Another separator, a byte order mark, other line ends, lower case, rows sorted otherwise or left out."""
    header, *cells = csv.reader(io.StringIO(filled({"a1": "compliance", "c3": "truthful"}), newline=""))
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=";", lineterminator="\n")
    writer.writerows([header, cells[2], cells[0]])
    text = "\ufeff" + out.getvalue().replace("\r\n", "\n")
    assert read_sheet(text, "s.csv", ROWS) == {"a1": "COMPLIANCE", "b2": "", "c3": "TRUTHFUL"}


def test_bad_sheets_are_refused_by_line_and_column():
    text = filled({"a1": "COMPLIANCE"})
    assert refused(text.replace('"b2"', '"zz"')).startswith("s.csv:4: id: unknown id 'zz'; expected an id")
    assert refused(text.replace('COMPLIANCE"\r\n', 'MAYBE"\r\n')).startswith("s.csv:2: label: unknown label 'MAYBE'")
    assert "expected FULL_REFUSAL, PARTIAL_REFUSAL, COMPLIANCE, UNCLEAR, or blank" in refused(
        text.replace('COMPLIANCE"\r\n', 'TRUTHFUL"\r\n')
    )
    assert refused(text.replace('"label"', '"mark"')).startswith("s.csv:1: label: missing column")
    assert refused(text.replace("I cannot.", "I can.")).startswith("s.csv:2: answer: was changed")
    assert refused(text.replace("Is it?", "Is it not?")).startswith("s.csv:7: prompt: was changed")
    assert refused(text.replace('"b2"', '"a1"')).startswith(("s.csv:4: id: a1 a second time", "s.csv:4: prompt"))
    assert refused(text + '"x"\r\n').startswith("s.csv:8: 1 fields; expected 6")
    assert "not valid CSV" in refused(text + '"x')
    assert refused("").startswith("s.csv:1: id: missing column")


def test_a_cell_may_hold_sixteen_million_characters_and_no_more():
    """Csv itself stops at 131,072, which is less than some answers have."""
    row = SheetRow("a1", "t", "refusal_rate", "p", "x" * (1 << 24))
    assert read_sheet(sheet_text([row], {"a1": "COMPLIANCE"}), "s.csv", [row]) == {"a1": "COMPLIANCE"}
    longer = SheetRow("a1", "t", "refusal_rate", "p", "x" * ((1 << 24) + 1))
    with pytest.raises(DataError, match="field larger than field limit"):
        read_sheet(sheet_text([longer], {}), "s.csv", [longer])


def test_what_a_person_wrote_is_everything_beside_what_was_asked():
    """The label, and any column of their own; with the line on which each row begins."""
    row = '"{}","t","q","p","a\r\nb","{}","{}"\r\n'
    text = '"id","task","question","prompt","answer","label","note"\r\n' + row.format("a1", "COMPLIANCE", " see\tme ")
    text += row.format("'=b2", "", "") + row.format(" c3 ", "'-x", "")
    assert list(given_cells(text, "s.csv")) == [(2, "a1", "COMPLIANCE see\tme"), (4, "=b2", ""), (6, "c3", "-x")]
