"""CSV bytes, whole writes, and the lock."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantverdict.bundle.files import (
    Lock,
    cell_text,
    csv_bytes,
    decimal_text,
    json_line,
    make_file,
    read_csv,
    write_whole,
)
from quantverdict.bundle.jsonl_store import JsonlStore
from quantverdict.errors import BundleError
from quantverdict.records import Table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "1"),
        (False, "0"),
        (0, "0"),
        (0.1, "0.1"),
        (float("inf"), "inf"),
        (float("nan"), ""),
        (np.float64(0.25), "0.25"),
        (Fraction(-10), "-10"),
        (Fraction(1, 8), "0.125"),
        (Fraction(-1, 8), "-0.125"),
        (Fraction(1, 3), "0.333333333333"),
        (Fraction(2, 3), "0.666666666667"),
        (Fraction(1, 10**12), "0.000000000001"),
        (Fraction(-1, 10**13), "0"),
        ("a", "a"),
    ],
)
def test_a_value_is_written_as_the_contract_says(value, text):
    assert cell_text(value) == text


def test_a_value_of_no_known_type_is_a_mistake_of_the_program():
    with pytest.raises(TypeError, match="cannot hold"):
        cell_text([1])


@given(st.decimals(allow_nan=False, allow_infinity=False, places=12, min_value=-(10**6), max_value=10**6))
def test_twelve_decimals_are_exact(value):
    assert Fraction(decimal_text(Fraction(value))) == Fraction(value)
    assert Decimal(decimal_text(Fraction(value))) == value


@given(
    st.lists(
        st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.none() | st.floats(allow_nan=False)), max_size=5
    )
)
def test_any_table_is_read_back_by_the_csv_module(rows):
    data = csv_bytes(Table("t", ("a,b", "c"), tuple(rows)))
    # An embedded NUL is no text that a table may hold in CSV readers of old.
    read = list(csv.reader(io.StringIO(data.decode(), newline="")))
    assert read == [["a,b", "c"], *([text, cell_text(value)] for text, value in rows)]


def test_a_lone_surrogate_in_a_table_is_shown_not_fatal():
    assert csv_bytes(Table("t", ("a",), (("\ud800",),))) == b"a\n\\ud800\n"


def test_json_lines_hold_lone_surrogates():
    assert json_line({"a": "\ud800é"}) == b'{"a":"\\ud800\xc3\xa9"}\n'


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_whole(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(BundleError, match=r"a\.txt: the disk is full"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_reading_what_is_not_a_table_is_one_line(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"\xff\n")
    with pytest.raises(BundleError, match=r"x\.csv: cannot be read"):
        read_csv(tmp_path / "x.csv")


@pytest.mark.parametrize("text", ["a,b\n1,2\n3\n", "a,b\n1,2\n3,4,5\n"])
def test_a_row_that_does_not_fit_its_header_is_refused(tmp_path, text):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(BundleError, match=r"x\.csv: row 2 has more or fewer values"):
        read_csv(tmp_path / "x.csv")


def test_a_second_lock_is_refused_and_names_the_owner(tmp_path):
    lock = Lock(tmp_path)
    with pytest.raises(BundleError, match=f"in use by process {os.getpid()}"):
        Lock(tmp_path)
    lock.release()
    lock.release()
    Lock(tmp_path).release()


def test_a_forked_worker_does_not_hold_its_parents_lock(tmp_path):
    """A killed run's worker may live on for a while; the next run must not wait for it."""
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from quantverdict.bundle.files import Lock\n"
        "lock = Lock(Path(sys.argv[1]))\n"
        "if os.fork() == 0:\n"
        "    os.close(1); time.sleep(20); os._exit(0)\n"
        "print('held', flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, stdout=subprocess.PIPE)
    assert run.returncode == -9
    Lock(tmp_path).release()


@pytest.mark.parametrize("change", [lambda file: file.append(["x"]), lambda file: file.cut(0, 9)])
def test_no_file_is_changed_through_a_link_or_a_second_name(tmp_path, change):
    """Whoever made the bundle may have named a file of whoever opens it."""
    precious = tmp_path / "precious"
    precious.write_text("years of work")
    (tmp_path / "link").symlink_to(precious)
    (tmp_path / "second").hardlink_to(precious)
    os.mkfifo(tmp_path / "pipe")
    for name, told in (
        ("link", "is a symbolic link"),
        ("second", "has a second name"),
        ("pipe", "is not a file|cannot be written"),
    ):
        with pytest.raises(BundleError, match=told):
            change(JsonlStore(tmp_path / name))
    assert precious.read_text() == "years of work"


@pytest.mark.parametrize(
    "make", [lambda lock, precious: lock.symlink_to(precious), lambda lock, p: lock.hardlink_to(p)]
)
def test_a_lock_is_never_written_through_a_link(tmp_path, make):
    (tmp_path / "b").mkdir()
    (tmp_path / "precious").write_text("years of work")
    make(tmp_path / "b" / ".lock", tmp_path / "precious")
    with pytest.raises(BundleError, match=r"\.lock: (is a symbolic link|has a second name)"):
        Lock(tmp_path / "b")
    assert (tmp_path / "precious").read_text() == "years of work"


def test_a_file_that_is_written_whole_is_not_written_through_a_link_in_its_place_or_its_partials(tmp_path):
    (tmp_path / "precious").write_text("years of work")
    for name in ("report.md", ".report.md.partial"):
        (tmp_path / name).symlink_to(tmp_path / "precious")
    write_whole(tmp_path / "report.md", b"new")
    assert (tmp_path / "precious").read_text() == "years of work"
    assert (tmp_path / "report.md").read_bytes() == b"new"
    assert not (tmp_path / "report.md").is_symlink()


def test_an_empty_file_is_made_once_and_a_file_with_two_names_may_be_read_on(tmp_path):
    make_file(tmp_path / "a" / "x.jsonl")
    (tmp_path / "y").hardlink_to(tmp_path / "a" / "x.jsonl")
    make_file(tmp_path / "a" / "x.jsonl")
    assert (tmp_path / "a" / "x.jsonl").read_bytes() == b""
    (tmp_path / "a" / "z").symlink_to(tmp_path / "none")
    with pytest.raises(BundleError, match="is a symbolic link"):
        make_file(tmp_path / "a" / "z")
    assert not (tmp_path / "none").exists()
