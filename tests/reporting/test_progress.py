"""Progress: a bar on a terminal, a line a cell anywhere else."""

from __future__ import annotations

import io

from quantverdict.collect.generate import CellOutcome
from quantverdict.records import CellId
from quantverdict.reporting.terminal import BarProgress, LineProgress, progress_view

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
