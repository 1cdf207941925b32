"""The first screen: a card a base model, the ladder of its builds, what to do next, notes by weight, a forest plot."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantverdict.matrix.signals import duration
from quantverdict.reporting import formats, tables
from quantverdict.reporting.artefacts import BundleTables, CsvRow
from quantverdict.reporting.bars import ForestScale
from quantverdict.reporting.formats import NOT_MEASURED, DisplayNames
from quantverdict.reporting.tables import BuildRow

LOOKS = {"non_inferior": "ship", "inferior": "reject", "not_resolvable": "unknown"}
"""How a test came out, and the style class of a verdict that looks the same; anything else was not tested."""


SCREENFUL = 24
"""Rows of a forest plot that a screen shows."""
SAID = {"non_inferior": "not worse", "inferior": "worse"}
"""By its margin, or by its guard margin: an outcome in the width of a column."""


@dataclass(frozen=True, slots=True)
class ForestRow:
    """One test: its name, its interval as a drawing and as text, how it came out.

    Attributes:
        anchor: its id in the page.
        member: it is a member of the criterion above it.
        look: a key of `VERDICTS`, or `untested`.
        margins: in words.
        hint: all of it in a line.
    """

    anchor: str
    name: str
    member: bool
    look: str
    bar: str
    value: str
    interval: str
    n: str
    margins: str
    outcome: str
    hint: str


@dataclass(frozen=True, slots=True)
class Forest:
    """The tests of one base model under one axis, by build."""

    model: str
    axis: str
    builds: tuple[tuple[BuildRow, tuple[ForestRow, ...]], ...]

    @property
    def is_long(self) -> bool:
        """Whether it has more rows than a screen."""
        return sum(len(rows) for _, rows in self.builds) > SCREENFUL


@dataclass(frozen=True, slots=True)
class Card:
    """What is decided of one base model.

    Attributes:
        best: the build's row, None where none is recommended.
        facts: of the best build: what and how much, those that were measured.
        ladder: builds with own weights from many bits to few; where bits are not known, last in study order.
        steps: what to do next, a sentence each.
        notes: that bear on the verdicts.
    """

    model: str
    headline: str
    reason: str
    best: BuildRow | None
    facts: tuple[tuple[str, str], ...]
    ladder: tuple[BuildRow, ...]
    steps: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Notes:
    """What a reader must know besides: what bears on verdicts, what only explains, and what was not measured."""

    heavy: tuple[str, ...]
    light: tuple[str, ...]
    unmeasured: tuple[str, ...]


def anchors(bundle: BundleTables) -> dict[tuple[str, str], str]:
    """The id of each build in the page, by its names as they are shown; unique."""
    found: dict[tuple[str, str], str] = {}
    for at, cell in enumerate(bundle.cells):
        names = formats.plain(cell["base_model"]), formats.plain(cell["quant"])
        name = f"build-{slug('-'.join(names))}"
        found[names] = name if name not in found.values() else f"{name}-{at}"
    return found


def slug(name: str) -> str:
    """A name as a part of an id or of an address."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)


def cards(bundle: BundleTables, rows: Sequence[BuildRow], notes: Notes) -> list[Card]:
    """One a base model, in study order."""
    memory = {key: row.get("peak_memory_bytes") for key, row in bundle.by_cell("matrix").items()}
    cells = {(formats.plain(cell["base_model"]), formats.plain(cell["quant"])): cell for cell in bundle.cells}
    found = []
    for model, verdict in zip(bundle.models, tables.verdicts(bundle, rows), strict=True):
        mine = [row for row in rows if row.model == verdict.model and row.same_as is None]
        best = next((row for row in mine if row.is_best), None)
        ladder = sorted(mine, key=lambda row: _height(row, cells[row.model, row.quant]))
        facts = () if best is None else _facts(best, memory.get((model, best.quant)))
        steps = tuple(step for row in mine for step in _steps(row, cells[row.model, row.quant]))
        about = tuple(note for note in notes.heavy if len(bundle.models) == 1 or _is_about(note, verdict.model))
        found.append(
            Card(verdict.model, verdict.headline, verdict.best_reason, best, facts, tuple(ladder), steps, about)
        )
    return found


def _height(row: BuildRow, cell: Mapping[str, Any]) -> tuple[float, bool]:
    """Where a build stands on the ladder: bits first, and the baseline before others of as many, or of none known."""
    return -(formats.number(cell.get("bpw")) or 0), row.group != "reference"


def _is_about(note: str, model: str) -> bool:
    return f"{model}/" in note or note.startswith(f"{model}:")


def unclaimed(bundle: BundleTables, notes: Notes) -> list[str]:
    """The weighty notes that stand on no card, as they are of no base model or there is more than one."""
    models = [formats.plain(model) for model in bundle.models]
    return [note for note in notes.heavy if len(models) > 1 and not any(_is_about(note, model) for model in models)]


def _facts(best: BuildRow, memory: str | None) -> tuple[tuple[str, str], ...]:
    given: tuple[tuple[str, str], ...] = (
        ("file", best.size),
        ("bits per weight", best.bpw),
        ("tokens/s", best.speed),
        ("peak memory", formats.size(memory)),
    )
    if not best.criteria and best.group != "reference":
        changes = (("quality", best.quality, best.quality_interval), ("refusals", best.refusal, best.refusal_interval))
        given += tuple((name, f"{value} pp {within}".rstrip() if value != NOT_MEASURED else value)
                       for name, value, within in changes)  # fmt: skip
    return tuple((name, value) for name, value in given if value != NOT_MEASURED)


def _steps(row: BuildRow, cell: Mapping[str, Any]) -> Iterator[str]:
    """What would decide an inconclusive build, in prompts and time."""
    pairs = formats.number(cell.get("n_pairs"))
    if cell.get("action") != "not_resolvable" or pairs is None:
        return
    ends = []
    for what, clause in (("accept", "if nothing more is lost"), ("reject", "if it goes on as seen")):
        total, seconds = formats.number(cell.get(f"n_to_{what}")), formats.number(cell.get(f"seconds_to_{what}"))
        if total is not None and total > pairs:
            time = "" if seconds is None else f" (about {duration(seconds)})"
            ends.append(f"{total - pairs:,.0f} more prompts{time} {what} it {clause}")
    yield f"{row.label}: " + ("; ".join(ends) if ends else "no number of prompts is known that would decide it") + "."


HEAVY = re.compile(
    r"^Format alert|did not run|dequantised from|other tokens|ran on .* and its baseline did not|gave no label"
    r"|weak$|count nowhere|cannot lose|without a grade|asked otherwise|which no share can be|untested"
    r"|without samples nothing is compared|not compared|differ"
)
"""Notes that bear on whether a verdict can be trusted; the rest explains how it was made."""
SAID_ELSEWHERE = re.compile(r"^Inconclusive with this many prompts|^No conservative floor|^Quality is ")
"""Notes of what the cards, the table of builds or the head of the page say."""
UNMEASURED = re.compile(r"^(?P<what>.{1,200}) was not measured\.$")
CODE = re.compile(r" \(TAX_\d+\)")
"""The number of a failure mode, whose name is in the sentence already."""


def notes_of(bundle: BundleTables) -> Notes:
    """The decision's notes by weight, in words."""
    heavy, light, unmeasured = list[str](), list[str](), list[str]()
    by_criteria = bundle.decision.get("rules") == "criteria"
    for note in bundle.decision.get("notes") or ():
        shown = CODE.sub("", tables.readable(bundle.names, note))
        if found := UNMEASURED.match(shown):
            unmeasured.append(found["what"])
        elif not (by_criteria and SAID_ELSEWHERE.match(shown)):
            (heavy if HEAVY.search(shown) else light).append(shown)
    return Notes(tuple(heavy), tuple(light), tuple(unmeasured))


def forests(bundle: BundleTables, rows: Sequence[BuildRow]) -> list[Forest]:
    """The tests by which builds were decided, one plot a base model; empty where nothing was tested."""
    by_criteria = bundle.decision.get("rules") == "criteria"
    source = bundle.tables.get("criteria" if by_criteria else "paired", ())
    tests = [row for row in source if by_criteria or row.get("outcome")]
    ids, found = anchors(bundle), []
    for model in bundle.models:
        own = [row for row in tests if row["base_model"] == model]
        scale = ForestScale(own)
        builds = []
        for build in rows:
            mine = [row for row in own if formats.plain(row["quant"]) == build.quant]
            if build.model == formats.plain(model) and build.same_as is None and mine:
                shown = (_forest_row(bundle.names, row, scale, ids[build.model, build.quant]) for row in ordered(mine))
                builds.append((build, tuple(shown)))
        if builds:
            found.append(Forest(formats.plain(model), scale.axis(), tuple(builds)))
    return found


def ordered(rows: Sequence[CsvRow]) -> list[CsvRow]:
    """Criteria as they decide, refusals first and quality last, each before its members."""

    def place(row: CsvRow) -> tuple[bool, bool, str, bool]:
        name = row.get("criterion", "")
        return name != "refusal", name == "quality", name, row.get("role") == "member"

    return sorted(rows, key=place)


def _forest_row(names: DisplayNames, row: CsvRow, scale: ForestScale, anchor: str) -> ForestRow:
    criterion, member = row.get("criterion", ""), row.get("role") == "member"
    outcome = row.get("outcome") or ""
    look = LOOKS.get(outcome, "untested")
    name = names.label(row["metric"]) if member or not criterion else formats.words(criterion)
    tested = formats.number(row.get("delta_pp")) is not None
    value = formats.delta(row["delta_pp"]) if tested else ""
    within = formats.bounded(row.get("ci_lo_pp"), row.get("ci_hi_pp")) if tested else ""
    limits = [("margin", row.get("margin_pp")), ("guard", row.get("guard_margin_pp") if member else None)]
    known = [(word, limit) for word, text in limits if (limit := formats.number(text)) is not None]
    margins = ", ".join(f"{word} {limit:g}" for word, limit in known)
    n = row.get("n_pairs", "") if tested else ""
    said = SAID.get(outcome, formats.words(outcome))
    build = formats.plain(row["quant"])
    hint = f"{build}, {name}: {value} pp {within} of {n} pairs, {margins} pp, {said}" if tested else ""
    named = "-".join((criterion, row["metric"])) if member or not criterion else criterion
    ident = f"{anchor}-{slug(named)}"
    return ForestRow(ident, name, member, look, scale.bar(row, look), value, within, n, margins, said, hint)
