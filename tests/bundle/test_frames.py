"""A Parquet file that was damaged is one line: its parser may panic, which is no exception, or end the process."""

from __future__ import annotations

import random

import polars as pl
import pytest

from quantverdict.bundle import frames
from quantverdict.bundle.frames import SCORES, read_frame, scan_frame, unreadable
from quantverdict.errors import BundleError

ROW = {name: ["x", "y"] if kind == "text" else [0.5, 1.0] for name, kind in SCORES.items()}


@pytest.fixture
def path(tmp_path):
    pl.DataFrame(ROW).write_parquet(tmp_path / "scores.parquet")
    return tmp_path / "scores.parquet"


def test_a_whole_file_is_read_and_readable(path):
    assert read_frame(path, SCORES).height == 2
    assert unreadable([path]) == {}
    assert unreadable([path], ["value", "a.b"]) == {}


@pytest.mark.parametrize("ruin", [b"", b"PAR1", b"junk" * 99])
def test_a_ruined_file_is_one_line(path, ruin):
    path.write_bytes(ruin)
    for read in (read_frame, scan_frame):
        with pytest.raises(BundleError, match=r"scores\.parquet: cannot be read") as told:
            read(path, SCORES)
        assert "\n" not in str(told.value)
    (why,) = unreadable([path]).values()
    assert why
    assert "\n" not in why


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda frame: frame.drop("metric"), "no column metric; its columns are base_model, "),
        (lambda frame: frame.with_columns(value=pl.lit("x")), "column value is String, not numbers"),
        (lambda frame: frame.with_columns(task=pl.lit([1])), r"column task is List\(.*\), not text"),
        (lambda frame: pl.DataFrame({"a": []}), "no column base_model; its columns are a"),
    ],
)
def test_a_table_of_other_columns_is_refused_by_the_first(path, change, told):
    change(pl.read_parquet(path)).write_parquet(path)
    with pytest.raises(BundleError, match=told):
        read_frame(path, SCORES)


def test_a_column_without_any_value_may_be_of_any_type(path):
    pl.read_parquet(path).with_columns(value=pl.lit(None), cluster=pl.lit(None)).write_parquet(path)
    assert read_frame(path, SCORES)["value"].null_count() == 2


def test_a_file_that_ends_its_reader_is_named_and_the_others_are_still_looked_at(path, tmp_path, monkeypatch):
    """As an allocation that no machine has does; the reader is replaced, as which bit does so depends on the engine."""
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"")
    lines = frames._TRY.replace("    try:\n", "    if 'killer' in path: import os; os.abort()\n    try:\n")
    monkeypatch.setattr(frames, "_TRY", lines)
    found = unreadable([path, tmp_path / "killer.parquet", broken])
    assert set(found) == {tmp_path / "killer.parquet", broken}
    assert found[tmp_path / "killer.parquet"] == "its reader was ended by it: signal 6"


def test_a_panic_is_one_line(path, monkeypatch):
    def panics(*_, **__):
        raise pl.exceptions.PanicException("unwrap on None\nnote: run with RUST_BACKTRACE=1")

    monkeypatch.setattr(pl, "read_parquet", panics)
    with pytest.raises(BundleError, match=r"cannot be read \(unwrap on None\)"):
        read_frame(path, SCORES)


def test_no_flipped_bit_ends_this_process(path, tmp_path):
    """Eighty files with one flipped bit each, tried in one go: each is read or named."""
    data, draw, files = path.read_bytes(), random.Random(3), []
    for number in range(80):
        flipped = bytearray(data)
        flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        files.append(tmp_path / f"{number}.parquet")
        files[-1].write_bytes(flipped)
    found = unreadable(files)
    assert found
    assert all(why and "\n" not in why for why in found.values())
    assert set(found) < set(files)


def test_the_reader_says_nothing_on_the_terminal(path, capfd):
    path.write_bytes(path.read_bytes()[:-9] + b"\xff" * 9)
    unreadable([path])
    assert capfd.readouterr() == ("", "")
