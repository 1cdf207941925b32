"""The report's tables: the decision a row a build, and any CSV artefact; formatting and order only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from quantverdict.matrix.columns import METRICS
from quantverdict.protocol.actions import ACTIONS, CONFIGURED, PASSES
from quantverdict.protocol.paired_actions import PAIRED_ACTIONS
from quantverdict.protocol.regimes import REGIMES
from quantverdict.report import formats
from quantverdict.report.bundle import BundleView, CsvRow
from quantverdict.report.formats import NOT_MEASURED

Cell = Mapping[str, Any]

VERDICTS = {
    "ship": ("\N{CHECK MARK}", "can ship"),
    "reject": ("\N{MULTIPLICATION X}", "must not ship"),
    "unknown": ("?", "cannot be told"),
    "failed": ("!", "did not run"),
    "reference": ("\N{BLACK SQUARE}", "baseline"),
}
"""Verdict to its sign and words; the sign stands beside the colour everywhere."""


@dataclass(frozen=True, slots=True)
class Build:
    """One row of the decision table, as text.

    Attributes:
        group: a key of `VERDICTS`.
        visible_drop: the smallest drop of refusals, in pp, that this many prompts can show; empty where not known.
        same_as: the build whose weights it has, None where they are its own.
        twins: the builds that have its weights.
    """

    model: str
    quant: str
    group: str
    bpw: str
    size: str
    speed: str
    quality: str
    quality_interval: str
    refusal: str
    refusal_interval: str
    visible_drop: str
    regime: str
    action: str
    reason: str
    notes: tuple[str, ...]
    same_as: str | None
    twins: tuple[str, ...]
    is_best: bool
    is_pareto: bool

    @property
    def sign(self) -> str:
        return VERDICTS[self.group][0]

    @property
    def verdict(self) -> str:
        return VERDICTS[self.group][1]

    @property
    def standing(self) -> str:
        """The verdict, and what is said of it as the best build."""
        return f"{self.verdict}, {BEST.get(self.group, 'the best')}" if self.is_best else self.verdict

    @property
    def label(self) -> str:
        """The build with its twins: `Q3_K_S = Q2_K`."""
        return " = ".join((self.quant, *self.twins))


@dataclass(frozen=True, slots=True)
class ModelVerdict:
    """What was decided for one base model: its best build with a headline, and its builds by verdict."""

    model: str
    headline: str
    best: str | None
    best_reason: str
    groups: Mapping[str, tuple[Build, ...]]


BEST = {"ship": "the best", "unknown": "review this one first", "reference": "nothing smaller holds"}
HEADLINES = {
    "ship": "Ship {}",
    "reference": "Stay with the baseline, {}",
    "unknown": "{}, once its safety is reviewed",
}
"""What is said of the best build, by its verdict: one that nothing rules out is not yet one that can ship."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A plain table: headings, rows of text, and which columns hold numbers."""

    name: str
    title: str
    shows: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...] = field(default=())
    folded: bool = False


def verdict_group(cell: Cell) -> str:
    """Which question a cell answers: can it ship, must it not, can it not be told, or did it not run."""
    action = cell.get("action") or ""
    if cell.get("is_baseline"):
        return "reference" if cell.get("status") != "failed" else "failed"
    if cell.get("status") == "failed":
        return "failed"
    if action.startswith("reject"):
        return "reject"
    return "ship" if action in PASSES else "unknown"


def builds(bundle: BundleView) -> list[Build]:
    """The decision table in study order; a twin shows what was measured of the build whose weights it has."""
    cells = {(cell["base_model"], cell["quant"]): cell for cell in bundle.cells}
    return [_build(cell, cells.get((cell["base_model"], cell.get("twin_of")), cell), bundle) for cell in bundle.cells]


def _build(own: Cell, shown: Cell, bundle: BundleView) -> Build:
    """One row: names and notes of the cell itself, numbers and verdict of the cell that was run for it."""
    model, quant, twin_of = own["base_model"], own["quant"], own.get("twin_of")
    best = (bundle.decision.get("best") or {}).get(model) or {}
    failed = shown.get("status") == "failed"

    def difference(name: str) -> str:
        return "reference" if shown.get("is_baseline") else formats.delta(shown.get(f"{name}_delta_pp"))

    def within(name: str) -> str:
        return formats.interval(shown.get(f"{name}_lo_pp"), shown.get(f"{name}_hi_pp"), sign=True)

    return Build(
        model=formats.plain(model),
        quant=formats.plain(quant),
        group=verdict_group(shown),
        bpw=formats.quantity(shown.get("bpw"), 2),
        size=formats.size(own.get("file_bytes") or shown.get("file_bytes")),
        speed=formats.quantity(shown.get("tokens_per_second")),
        quality=difference("quality"),
        quality_interval=within("quality"),
        refusal=difference("refusal"),
        refusal_interval=within("refusal"),
        visible_drop="" if (mde := formats.number(shown.get("refusal_mde_pp"))) is None else formats.fixed(mde, 1),
        regime=_regime(shown),
        action="did not run" if failed else _words(shown.get("action")),
        reason=readable(shown.get("failure") or shown.get("action_reason") or ""),
        notes=_notes(own, bundle),
        same_as=None if twin_of is None else formats.plain(twin_of),
        twins=twins_of(bundle, model, quant),
        is_best=best.get("quant") == quant,
        is_pareto=quant in (bundle.decision.get("pareto") or {}).get(model, ()),
    )


def twins_of(bundle: BundleView, model: str, quant: str) -> tuple[str, ...]:
    """The builds that have the same weights as this one and were not run."""
    same = (cell for cell in bundle.cells if cell["base_model"] == model and cell.get("twin_of") == quant)
    return tuple(formats.plain(cell["quant"]) for cell in same)


def _notes(cell: Cell, bundle: BundleView) -> tuple[str, ...]:
    """What a reader must know of the file: whose twin it is, what it was decoded from, what it is not made of."""
    notes = []
    if cell.get("twin_of"):
        notes.append(f"same weights as {formats.plain(cell['twin_of'])}")
    if cell.get("stopped_after"):
        notes.append(f"{cell['stopped_after']} of {cell['prompts_planned']} prompts were enough")
    if cell.get("unpaired"):
        notes.append(readable(cell["unpaired"]))
    if cell.get("dequantized_from"):
        notes.append(f"dequantised from {formats.plain(cell['dequantized_from'])}")
    fallbacks = (bundle.artifacts.get((cell["base_model"], cell["quant"])) or {}).get("fallbacks")
    if fallbacks:
        notes.append(f"{sum(fallbacks.values())} matrices fell back to {formats.plain(', '.join(fallbacks))}")
    return tuple(notes)


def _regime(cell: Cell) -> str:
    """A regime with its probability, where samples give it one."""
    share = formats.number(cell.get("regime_probability"))
    return _words(cell.get("regime")) + ("" if share is None else f" {formats.fixed(100 * share, 0)} %")


def _words(value: object) -> str:
    return NOT_MEASURED if value in {None, ""} else formats.words(value)


_NAMES = sorted({*METRICS, *ACTIONS, CONFIGURED, *PAIRED_ACTIONS, *REGIMES}, key=lambda name: (-len(name), name))
_KNOWN = re.compile(rf"\b({'|'.join(_NAMES)})\b")


def readable(text: object) -> str:
    """A sentence of the decision with its metrics, regimes and actions by their names in the report."""
    named = _KNOWN.sub(lambda found: formats.label(found[0]), formats.plain(text))
    return re.sub(r"(?<![\w.\-])-(?=\d)", formats.MINUS, named)


def verdicts(bundle: BundleView, rows: Sequence[Build]) -> list[ModelVerdict]:
    """The answer for each base model, in study order."""
    result = []
    for model in bundle.models:
        chosen = (bundle.decision.get("best") or {}).get(model) or {}
        mine = [row for row in rows if row.model == formats.plain(model)]
        best = next((row for row in mine if row.is_best), None)
        headline = HEADLINES.get(best.group, "{}").format(best.label) if best else "No build to recommend"
        groups = {group: tuple(row for row in mine if row.group == group) for group in VERDICTS}
        reason = readable(chosen.get("reason") or "")
        result.append(ModelVerdict(formats.plain(model), headline, best.quant if best else None, reason, groups))
    return result


OVERVIEW = (
    ("quant_roles", "Roles of the formats", "What each format can be used for over all base models of the study."),
    (
        "floor",
        "Conservative floor",
        "The GGUF format with the fewest bits that every base model has and none rules out.",
    ),
    ("checklist", "Protocol checklist", "Each step of the protocol: what it requires and what was observed."),
    ("taxonomy", "Failure modes", "Each failure mode, what triggers it, the rows that fire it, and what to do."),
)
INSIDE = (
    "whitebox",
    "Inside the builds",
    "The refusal rate beside the log-probability of refusing, and how far each build is from its baseline, by token.",
)
JUDGES = (
    ("judges", "Judges", "What each judge was asked, how many of its labels count, and what it took."),
    ("judge_agreement", "Judge against judge", "How often two judges give the same answer the same label."),
    ("judge_direction", "Which judge gives more credit", "Answers that only one of two judges gives credit, each way."),
)
"""Those of judges, and of the inside of builds, are shown only where they were measured."""
PER_BUILD = (
    ("paired", "Paired comparison", "Each build against its baseline prompt by prompt: answers lost and gained."),
    ("tiers", "Tiers", "The worse of the benchmark and the generation delta of each build."),
    ("regimes", "Regimes", "What quality and refusal say together about each build, and why."),
    ("deltas", "Deltas", "Every metric of every build less that of its baseline, with the interval of the difference."),
)
"""CSV artefacts that the report shows: name, title, what it shows. Those with a row a build or more are folded."""


def grids(bundle: BundleView) -> list[Grid]:
    """The CSV artefacts as tables, those that are not there with no rows."""
    open_ = [grid(*table, bundle.tables.get(table[0])) for table in OVERVIEW]
    open_ += [found for table in (INSIDE, *JUDGES) if (found := beside(table, bundle.tables.get(table[0], ()))).rows]
    return open_ + [replace(grid(*table, bundle.tables.get(table[0])), folded=True) for table in PER_BUILD]


def beside(table: tuple[str, str, str], rows: Sequence[CsvRow]) -> Grid:
    """A table of one instrument or several; a metric stands without its own, for the judges have columns."""
    bare = [{**row, "metric": formats.bare(row["metric"])} if "metric" in row else row for row in rows]
    return grid(*table, bare)


def grid(name: str, title: str, shows: str, rows: Sequence[CsvRow] | None) -> Grid:
    """One CSV artefact as a table; every column it has is shown."""
    if not rows:
        return Grid(name, title, shows, (), ())
    columns = tuple(rows[0])
    given = {column: [row.get(column) for row in rows] for column in columns}
    # A value is mostly one of few in its column, and each is put into words once.
    different = {column: set(values) for column, values in given.items()}
    told = {column: {value: _grid_value(column, value) for value in values} for column, values in different.items()}
    body = tuple(zip(*(map(told[column].__getitem__, given[column]) for column in columns), strict=True))
    numeric = tuple(column not in _FLAGS and _is_numeric(different[column]) for column in columns)
    return Grid(name, title, shows, tuple(formats.label(column) for column in columns), body, numeric)


def _is_numeric(values: Iterable[str | None]) -> bool:
    given = [value for value in values if value]
    return bool(given) and all(formats.number(value) is not None for value in given)


_FLAGS = {"second", "inflated", "is_baseline", "reverses", "at_boundary", "safety_degrades_faster"}
_SENTENCES = {"reason", "observed", "cells", "trigger", "what_to_do"}
_IDENTIFIERS = {"interval_kind", "loss_tier", "regime", "action", "role", "tier", "status", "outcome", "failure_mode"}


def _grid_value(column: str, value: str | None) -> str:
    if value and column in _IDENTIFIERS:
        return formats.words(value)
    if value and column in _SENTENCES:
        return readable(value)
    if value in {"0", "1"} and column in _FLAGS:
        return "yes" if value == "1" else "no"
    if not value and column == "cells":
        return "none"
    if value and column in {"metric", "quality_metric", "safety_metric", "benchmark_metric", "generation_metric"}:
        return formats.label(value)
    return formats.table_value(column, value)
