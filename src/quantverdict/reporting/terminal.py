"""The decision in a terminal: a row a build, as wide as there is room for, and what was decided in a few lines."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from quantverdict.collect.generate import CellOutcome, ProgressView
from quantverdict.errors import count_of
from quantverdict.records import CellId
from quantverdict.registry import by_instrument
from quantverdict.reporting import formats, tables
from quantverdict.reporting.artefacts import BundleTables
from quantverdict.reporting.bars import LEGEND
from quantverdict.reporting.formats import SIGNS, harmless, one_line
from quantverdict.reporting.tables import BuildRow

COLOURS = {"ship": "blue", "reject": "red", "unknown": "yellow", "failed": "dim", "reference": ""}
WIDE, MIDDLE, NARROW = 112, 96, 72
"""Columns from which an action stands on one line, file size and speed are shown, and the regime is."""
WIDER = 132
"""Columns from which file size and speed are shown beside criteria; the regime is from `WIDE` on."""
INTERVAL = 16
"""Columns that `[-12.34, +12.34]` takes."""
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True, slots=True)
class DecisionTable:
    """Draws itself for the width it is given."""

    rows: tuple[BuildRow, ...]
    refusal: str = "refusal delta"
    """The heading of refusal deltas, with their instrument."""

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        for model in dict.fromkeys(row.model for row in self.rows):
            rows = [row for row in self.rows if row.model == model]
            yield _table(model, rows, options, self.refusal)
            yield from (_why(row, options) for row in rows)
            for best in [row for row in rows if row.is_best]:
                yield Padding(_text(f"* {tables.BEST.get(best.group, 'the best')}", options, "dim"), (0, 0, 0, 2))
            if any(figure.bar for row in rows for figure in row.criteria):
                yield Padding(_text(LEGEND, options, "dim"), (0, 0, 0, 2))
            yield ""


def decision_table(bundle: BundleTables) -> DecisionTable:
    """The decision table of a bundle, ready to print."""
    return DecisionTable(tuple(tables.builds(bundle)), bundle.names.refusal_delta(bundle.decision.get("policy") or {}))


def summary_lines(bundle: BundleTables) -> list[str]:
    """What was decided, in plain lines: each base model's build, the floor, the notes, and whose word refusals are."""
    policy = bundle.decision.get("policy") or {}
    refusal = bundle.names.label(formats.plain(policy.get("refusal_metric", "refusal_rate")))
    message = f"instruments: refusal delta is of {refusal}"
    if bundle.decision.get("rules") == "criteria":
        decides = by_instrument("refusal_rate", (policy.get("instruments") or {}).get("refusal", "pattern"))
        message = f"instruments: refusals are decided by {bundle.names.label(decides or 'refusal_rate')}"
    lines = [
        ": ".join(part for part in (verdict.model, verdict.headline, verdict.best_reason) if part)
        for verdict in tables.verdicts(bundle, tables.builds(bundle))
    ]
    floor = bundle.decision.get("floor")
    if floor:
        signal = formats.quantity(floor.get("max_refusal_signal_pp"), 2)
        lines.append(f"conservative floor: {formats.plain(floor['quant'])}, largest refusal signal {signal} pp")
    else:
        lines.append("conservative floor: none")
    notes = [f"note: {tables.readable(bundle.names, note)}" for note in bundle.decision.get("notes") or ()]
    return [*lines, *notes, message]


def print_decision(bundle: BundleTables, report: Path, console: Console | None = None) -> None:
    """Print the table, the summary and where the report is."""
    console = console or _console()
    console.print(decision_table(bundle))
    for line in summary_lines(bundle):
        console.print(_text(line, console.options))
    console.print(_text(f"report: {formats.plain(report)}", console.options), soft_wrap=True)


def _console() -> Console:
    """The terminal as wide as it is; a file or a pipe wide enough for every column."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


def _table(model: str, rows: Sequence[BuildRow], options: ConsoleOptions, refusal: str) -> Table:
    wide, middle = options.max_width >= WIDE, options.max_width >= MIDDLE
    figures = next((row.criteria for row in rows if row.criteria), ())
    if figures:
        middle = options.max_width >= WIDER
    table = Table(title=_text(model, options, "bold"), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    table.padding, table.pad_edge = (0, int(wide), 0, 0), False
    table.add_column("build", no_wrap=True)
    table.add_column("bits/\nweight", justify="right", no_wrap=True)
    if middle:
        table.add_column("file\nsize", justify="right", no_wrap=True)
        table.add_column("tok/s", justify="right", no_wrap=True)
    for one in figures:
        heading = _text(f"{one.name}\nmargin {one.margin}", options)
        table.add_column(heading, justify="right", no_wrap=True)
    if not figures:
        table.add_column("quality\ndelta, pp", justify="right", no_wrap=True)
        table.add_column(_text(_heading(refusal), options), justify="right", no_wrap=True)
    if options.max_width >= (WIDE if figures else NARROW):
        table.add_column("regime", min_width=12, max_width=18 if wide else 12)
    table.add_column("action", min_width=12, max_width=30 if wide else 12)
    for row in rows:
        table.add_row(*_cells(row, options, sized=middle, regime=options.max_width >= (WIDE if figures else NARROW)))
    return table


def _heading(refusal: str) -> str:
    """A heading in lines no wider than an interval: `refusal delta`, `by pattern, pp`; a long judge's name is cut."""
    what, by, instrument = f"{refusal}, pp".partition(" by ")
    if not by:
        return "refusal\ndelta, pp"
    if len(instrument) + 3 <= INTERVAL:
        return f"{what}\nby {instrument}"
    kind, _, name = instrument.partition(" ")
    cut = name if len(name) <= INTERVAL else f"{name[: INTERVAL - 5]}{ELLIPSIS}, pp"
    return f"{what}\nby {kind}\n{cut}"


def _cells(row: BuildRow, options: ConsoleOptions, *, sized: bool, regime: bool) -> list[Text]:
    colour = COLOURS[row.group]
    deltas = [(row.quality, row.quality_interval), (row.refusal, row.refusal_interval)]
    if row.criteria:
        deltas = [(one.value, one.interval) for one in row.criteria]
    cells = [_text(f"{row.sign} {row.quant}{' *' if row.is_best else ''}", options, f"bold {colour}".strip())]
    cells += [_value(row.bpw, options)]
    cells += [_value(row.size, options), _value(row.speed, options)] if sized else []
    bars = [f"\n{one.bar}" for one in row.criteria] or [""] * len(deltas)
    cells += [
        _value(value, options).append_text(_text(f"\n{around}{bar}", options, "dim"))
        for (value, around), bar in zip(deltas, bars, strict=True)
    ]
    cells += [_value(row.regime, options)] if regime else []
    return [*cells, _text(row.verdict if row.criteria else row.action, options, colour)]


def _why(row: BuildRow, options: ConsoleOptions) -> Padding:
    """A row's notes and reason, a line of its own: no column is wide enough for them."""
    reason = () if row.same_as else (row.reason,)
    line = _text(f"{row.quant}: ", options, "bold")
    line.append_text(_text("; ".join(part for part in (*row.notes, *reason) if part), options))
    return Padding(line, (0, 0, 0, 2))


def _value(value: str, options: ConsoleOptions) -> Text:
    return _text("not\nmeasured", options, "dim") if value == formats.NOT_MEASURED else _text(value, options)


def _text(content: str, options: ConsoleOptions, style: str = "") -> Text:
    """Text that the terminal can show, read as text and not as markup or commands."""
    content = harmless(content)
    if options.ascii_only:
        content = content.translate(SIGNS).encode("ascii", "replace").decode("ascii")
    return Text(content.rstrip("\n"), style=style)


# How collecting is shown: a bar a cell on a terminal, else one line a cell; always on stderr.


def progress_view(
    stream: TextIO | None = None,
    *,
    quiet: bool = False,
    verbose: bool = False,
    log: Callable[[str], object] | None = None,
) -> LineProgress:
    """The view that suits `stream` (stderr); use it in a `with` block.

    Args:
        quiet: show nothing.
        verbose: show the time since it was made, and how far a cell is also where there is no bar.
        log: gets each line, shown or not.
    """
    out = sys.stderr if stream is None else stream
    if out.isatty() and not quiet and not verbose:
        return BarProgress(out, log=log)
    return LineProgress(out, quiet=quiet, verbose=verbose, log=log)


class LineProgress(ProgressView):
    """One line when a cell ends."""

    def __init__(
        self,
        stream: TextIO,
        *,
        quiet: bool = False,
        verbose: bool = False,
        log: Callable[[str], object] | None = None,
    ) -> None:
        self.stream, self.quiet, self.verbose, self.log = stream, quiet, verbose, log
        self.start, self.new, self.tokens = time.perf_counter(), 0, 0
        self.made = self.told = self.start
        self.waiting: dict[CellId, int] = {}
        self.cells, self.at, self.spent, self.asked, self.now = 0, 0, 0.0, 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None

    def build(self, level: str, done: int, total: int) -> None:
        """So many of a level's weights are written."""
        if done == total:
            self.say(f"made {level}")

    def step(self, what: str, done: int, total: int) -> None:
        """So much of a work that is not asking is done: files read, builds compared."""
        if self.verbose and done < total:
            self.say(f"{what}: {done} of {total}")

    def say(self, line: str) -> None:
        """Something that takes long begins, or a cell has ended."""
        if self.log is not None:
            self.log(one_line(line))
        if not self.quiet:
            self.show(one_line(line))

    def show(self, line: str) -> None:
        since = f"{time.perf_counter() - self.made:8.1f} s  " if self.verbose else ""
        print(f"{since}{line}", file=self.stream, flush=True)

    def start_cells(self, cells: Mapping[CellId, int]) -> None:
        self.waiting, self.cells, self.at = dict(cells), len(cells), 0

    def start_cell(self, cell: CellId, total: int, done: int) -> None:
        self.start, self.new, self.tokens = time.perf_counter(), 0, 0
        self.at += 1
        self.waiting.pop(cell, None)
        self.now = total - done

    def advance(self, prompts: int, tokens: int) -> None:
        self.new += prompts
        self.tokens += tokens
        if self.verbose and time.perf_counter() - self.told > OFTEN:
            self.told = time.perf_counter()
            self.say(f"{self.new} of {self.now} prompts, {self.rates()}{self.whole()}")

    def finish_cell(self, outcome: CellOutcome) -> None:
        self.say(self.line(outcome))
        self.spent += time.perf_counter() - self.start
        self.asked += self.new
        self.now = self.new = 0

    def beside(self) -> LineProgress:
        return LineProgress(self.stream)

    def line(self, outcome: CellOutcome) -> str:
        """What is left to read when a cell has ended."""
        if outcome.failure is not None:
            return f"{outcome.cell}: failed: {outcome.failure}"
        if not self.new:
            return f"{outcome.cell}: {count_of(outcome.prompts, 'answer')}, all from an earlier run"
        enough = "" if outcome.stopped_after is None else " were enough"
        seconds = time.perf_counter() - self.start
        self.now = self.new  # nothing more of it comes
        told = f"{outcome.cell}: {count_of(outcome.prompts, 'answer')}{enough}, {self.rates()}, {seconds:.0f} s"
        return told + (self.whole() if self.waiting else "")

    def rates(self) -> str:
        seconds = max(time.perf_counter() - self.start, 1e-3)
        tokens = f", {self.tokens / seconds:.0f} tokens/s" if self.tokens else ""
        return f"{self.new / seconds:.1f} prompts/s{tokens}"

    def whole(self) -> str:
        """`; cell 2 of 6, 3:20 left in all`, at the speed of the study so far; nothing where there is one cell."""
        if self.cells < 2:
            return ""
        asked, left = self.asked + self.new, max(0, self.now - self.new) + sum(self.waiting.values())
        seconds = self.spent + time.perf_counter() - self.start
        told = f", {clock(seconds / asked * left)} left in all" if asked and left else ""
        return f"; cell {self.at} of {self.cells}{told}"


OFTEN = 5.0
"""Seconds after which a verbose view says again how far a cell is."""


def clock(seconds: float) -> str:
    """`3:20`, or `1:02:03` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class CalledProgress(LineProgress):
    """Each line goes to a function; with none given, nowhere."""

    def __init__(self, tell: Callable[[str], object] | None = None) -> None:
        super().__init__(io.StringIO())
        self.tell = tell

    def say(self, line: str) -> None:
        if self.tell is not None:
            self.tell(one_line(line))

    def beside(self) -> LineProgress:
        return CalledProgress(self.tell)


class BarProgress(LineProgress):
    """A bar with prompts/s, tokens/s and time left while a cell runs, and its line when it ends."""

    def __init__(self, stream: TextIO, *, log: Callable[[str], object] | None = None) -> None:
        super().__init__(stream, log=log)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
        )
        self.bars = Progress(*columns, console=Console(file=stream), transient=True, refresh_per_second=4)
        self.task = self.bars.add_task("", visible=False, speed="")

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bars.stop()

    def build(self, level: str, done: int, total: int) -> None:
        self.bars.update(self.task, description=f"making {level}", total=total, completed=done, visible=True, speed="")
        if done == total:
            self.bars.update(self.task, visible=False)
            self.say(f"made {level}")

    def step(self, what: str, done: int, total: int) -> None:
        self.bars.update(self.task, description=what, total=total, completed=done, visible=done < total, speed="")

    def show(self, line: str) -> None:
        self.bars.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def start_cell(self, cell: CellId, total: int, done: int) -> None:
        super().start_cell(cell, total, done)
        self.bars.reset(self.task, description=str(cell), total=total, completed=done, visible=True, speed="loading")

    def advance(self, prompts: int, tokens: int) -> None:
        super().advance(prompts, tokens)
        self.bars.update(self.task, advance=prompts, speed=f"{self.rates()}, {self.left()} left{self.whole()}")

    def beside(self) -> LineProgress:
        other = copy(self)
        other.task = self.bars.add_task("", visible=False, speed="")
        return other

    def left(self) -> str:
        """Time left at the speed so far, `-:--` before the first prompt is finished."""
        if not self.new:
            return "-:--"
        return clock((self.now - self.new) * (time.perf_counter() - self.start) / self.new)

    def finish_cell(self, outcome: CellOutcome) -> None:
        self.bars.update(self.task, visible=False)
        super().finish_cell(outcome)
