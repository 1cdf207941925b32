"""Progress: a bar on a terminal, a line a cell anywhere else."""

from __future__ import annotations

import io

import pytest

from quantverdict.collect.generate import CellOutcome
from quantverdict.records import CellId
from quantverdict.reporting.terminal import BarProgress, LineProgress, clock, progress_view

CELL = CellId("tiny", "Q4_K_M")


def outcome(failure=None):
    return CellOutcome(CELL, "failed" if failure else "ok", failure, 12, {}, None, None, None, None, None)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def drive(view, failure=None):
    with view:
        view.start_cell(CELL, 12, 4)
        view.advance(2, 30)
        view.advance(6, 50)
        view.finish_cell(outcome(failure))


def test_away_from_a_terminal_a_cell_is_one_line():
    out = io.StringIO()
    view = progress_view(out)
    assert type(view) is LineProgress
    drive(view)
    assert out.getvalue().count("\n") == 1
    assert out.getvalue().startswith("tiny/Q4_K_M: 12 answers, ")
    assert "prompts/s" in out.getvalue()


def test_a_failed_cell_says_why():
    out = io.StringIO()
    drive(progress_view(out), "[red]no such layer[/red]")
    assert out.getvalue() == "tiny/Q4_K_M: failed: [red]no such layer[/red]\n"


def test_a_cell_of_an_earlier_run_says_so():
    out = io.StringIO()
    view = progress_view(out)
    view.start_cell(CELL, 12, 12)
    view.finish_cell(outcome())
    assert out.getvalue() == "tiny/Q4_K_M: 12 answers, all from an earlier run\n"


def test_on_a_terminal_a_bar_shows_speed_and_time_left_and_goes(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    view = progress_view(out)
    assert isinstance(view, BarProgress)
    with view:
        view.start_cell(CELL, 12, 4)
        assert view.left() == "-:--"
        view.advance(8, 30)
        assert view.left() == "0:00"
        view.bars.refresh()
        view.finish_cell(outcome("[/oops] markup"))
    shown = out.getvalue()
    assert "prompts/s" in shown
    assert "tokens/s" in shown
    assert "left" in shown
    assert "12/12" in shown
    assert "failed: [/oops] markup" in shown


def test_a_study_of_several_cells_says_which_one_runs_and_what_is_left_of_all(monkeypatch):
    """At the speed so far: 10 of 40 prompts took 20 s, so 30 more take 60 s; then 20 of 40 took 40 s."""
    now = [0.0]
    monkeypatch.setattr("quantverdict.reporting.terminal.time.perf_counter", lambda: now[0])
    out = io.StringIO()
    view = progress_view(out)
    cells = [CellId("tiny", name) for name in ("FP16", "Q8_0", "Q4_K_M")]
    view.start_cells(dict(zip(cells, (20, 10, 10), strict=True)))
    view.start_cell(cells[0], 25, 5)
    assert view.whole() == "; cell 1 of 3"
    now[0] = 20.0
    view.advance(10, 0)
    assert view.whole() == "; cell 1 of 3, 1:00 left in all"
    now[0] = 40.0
    view.advance(10, 0)
    view.finish_cell(outcome())
    assert out.getvalue().endswith("40 s; cell 1 of 3, 0:40 left in all\n")
    now[0] = 1000.0
    view.start_cell(cells[1], 10, 0)
    now[0] = 1020.0
    view.advance(10, 0)
    assert view.whole() == "; cell 2 of 3, 0:20 left in all"
    view.finish_cell(outcome())
    view.start_cell(cells[2], 10, 0)
    view.advance(10, 0)
    view.finish_cell(outcome())
    assert "left" not in out.getvalue().splitlines()[-1]


def test_one_cell_is_no_study_to_be_counted():
    view = progress_view(io.StringIO())
    view.start_cells({CELL: 12})
    view.start_cell(CELL, 12, 0)
    assert view.whole() == ""


@pytest.mark.parametrize(("seconds", "told"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00")])
def test_time_left_has_hours_from_one_on(seconds, told):
    assert clock(seconds) == told


def test_files_that_are_read_have_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    out = Terminal()
    view = progress_view(out)
    with view:
        view.step("reading and hashing tiny/Q4_K_M", 1, 3)
        view.bars.refresh()
        view.step("read tiny", 3, 3)
    assert "reading and hashing tiny/Q4_K_M" in out.getvalue()
    assert "1/3" in out.getvalue()
