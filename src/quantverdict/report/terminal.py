"""The decision in a terminal: a row a build, as wide as there is room for, and what was decided in a few lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from quantverdict.output import SIGNS, harmless
from quantverdict.report import formats, tables
from quantverdict.report.artefacts import Artefacts
from quantverdict.report.bundle import BundleView, read_bundle
from quantverdict.report.instruments import judges
from quantverdict.report.tables import Build

COLOURS = {"ship": "blue", "reject": "red", "unknown": "yellow", "failed": "dim", "reference": ""}
WIDE, MIDDLE, NARROW = 112, 96, 72
"""Columns from which an action stands on one line, file size and speed are shown, and the regime is."""
INTERVAL = 16
"""Columns that `[-12.34, +12.34]` takes."""
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True, slots=True)
class DecisionTable:
    """Draws itself for the width it is given."""

    rows: tuple[Build, ...]
    refusal: str = "refusal delta"
    """The heading of refusal deltas, with their instrument."""

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        for model in dict.fromkeys(row.model for row in self.rows):
            rows = [row for row in self.rows if row.model == model]
            yield _table(model, rows, options, self.refusal)
            yield from (_why(row, options) for row in rows)
            for best in [row for row in rows if row.is_best]:
                yield Padding(_text(f"* {tables.BEST.get(best.group, 'the best')}", options, "dim"), (0, 0, 0, 2))
            yield ""


def decision_table(bundle_dir: Path) -> DecisionTable:
    """The decision table of a bundle, ready to print.

    Raises:
        BundleError: nothing was decided in this bundle.
    """
    read = Artefacts(bundle_dir)
    with formats.judged_by(judges(read)):
        bundle = read_bundle(bundle_dir, read)
        return DecisionTable(tuple(tables.builds(bundle)), formats.refusal_delta(bundle.decision.get("policy") or {}))


def summary_lines(bundle_dir: Path) -> list[str]:
    """What was decided, in plain lines: each base model's build, the floor, the notes.

    Raises:
        BundleError: nothing was decided in this bundle.
    """
    read = Artefacts(bundle_dir)
    with formats.judged_by(judges(read)):
        return _summary(read_bundle(bundle_dir, read))


def _summary(bundle: BundleView) -> list[str]:
    policy = bundle.decision.get("policy") or {}
    refusal = formats.label(formats.plain(policy.get("refusal_metric", "refusal_rate")))
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
    notes = [f"note: {tables.readable(note)}" for note in bundle.decision.get("notes") or ()]
    return [*lines, *notes, f"instruments: refusal delta is of {refusal}"]


def print_decision(bundle_dir: Path, console: Console | None = None) -> None:
    """Print the table, the summary and where the report is."""
    console = console or _console()
    console.print(decision_table(bundle_dir))
    for line in summary_lines(bundle_dir):
        console.print(_text(line, console.options))
    console.print(_text(f"report: {formats.plain(bundle_dir / 'report.html')}", console.options), soft_wrap=True)


def _console() -> Console:
    """The terminal as wide as it is; a file or a pipe wide enough for every column."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


def _table(model: str, rows: Sequence[Build], options: ConsoleOptions, refusal: str) -> Table:
    wide, middle = options.max_width >= WIDE, options.max_width >= MIDDLE
    table = Table(title=_text(model, options, "bold"), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    table.padding, table.pad_edge = (0, int(wide), 0, 0), False
    table.add_column("build", no_wrap=True)
    table.add_column("bits/\nweight", justify="right", no_wrap=True)
    if middle:
        table.add_column("file\nsize", justify="right", no_wrap=True)
        table.add_column("tok/s", justify="right", no_wrap=True)
    table.add_column("quality\ndelta, pp", justify="right", no_wrap=True)
    table.add_column(_text(_heading(refusal), options), justify="right", no_wrap=True)
    if options.max_width >= NARROW:
        table.add_column("regime", min_width=12, max_width=18 if wide else 12)
    table.add_column("action", min_width=12, max_width=30 if wide else 12)
    for row in rows:
        table.add_row(*_cells(row, options, sized=middle))
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


def _cells(row: Build, options: ConsoleOptions, *, sized: bool) -> list[Text]:
    colour = COLOURS[row.group]
    deltas = ((row.quality, row.quality_interval), (row.refusal, row.refusal_interval))
    cells = [_text(f"{row.sign} {row.quant}{' *' if row.is_best else ''}", options, f"bold {colour}".strip())]
    cells += [_value(row.bpw, options)]
    cells += [_value(row.size, options), _value(row.speed, options)] if sized else []
    cells += [_value(value, options).append_text(_text(f"\n{around}", options, "dim")) for value, around in deltas]
    cells += [_value(row.regime, options)] if options.max_width >= NARROW else []
    return [*cells, _text(row.action, options, colour)]


def _why(row: Build, options: ConsoleOptions) -> Padding:
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
