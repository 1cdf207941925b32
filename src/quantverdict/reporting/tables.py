"""The report's tables: the decision a row a build, and any CSV artefact; formatting and order only."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from markupsafe import Markup

from quantverdict.errors import count_of
from quantverdict.matrix.columns import METRICS
from quantverdict.protocol.actions import ACTIONS, CONFIGURED, PAIRED_ACTIONS, PASSES
from quantverdict.protocol.claims import Claim, Reader, resolve_claim
from quantverdict.protocol.regimes import REGIMES
from quantverdict.reporting import formats
from quantverdict.reporting.artefacts import BundleTables, CsvRow
from quantverdict.reporting.bars import interval_bar
from quantverdict.reporting.formats import NOT_MEASURED, DisplayNames

Cell = Mapping[str, Any]

VERDICTS = {
    "ship": ("\N{CHECK MARK}", "can ship"),
    "reject": ("\N{MULTIPLICATION X}", "must not ship"),
    "unknown": ("?", "cannot be told"),
    "failed": ("!", "did not run"),
    "reference": ("\N{BLACK SQUARE}", "baseline"),
}
"""Verdict to its sign and words; the sign stands beside the colour everywhere."""
BY_CRITERIA = {"ship": "accepted", "reject": "rejected", "unknown": "inconclusive"}
"""Its words where criteria decide."""
BY_THRESHOLDS = "passes by thresholds"
"""What is said by rules on deltas, which test nothing, of a build that passes: that it is safe is not proven by it."""
UNTESTED = f"{BY_THRESHOLDS}, untested"
"""And where the policy asks for tests, but there are no samples."""
UNDECIDED = {"not_measured": "not measured", "not_resolvable": "inconclusive"}
"""By criteria, the words of a build that is neither accepted nor rejected, by its action; else it is to be reviewed."""


def verdict_words(decision: Cell) -> dict[str, tuple[str, str]]:
    """`VERDICTS` in the words of what decided."""
    policy = decision.get("policy") or {}
    words: Mapping[str, str] = {}
    if decision.get("rules") == "criteria":
        words = BY_CRITERIA
    elif decision.get("rules") == "points":
        asks = policy.get("rules") != "points" and policy.get("criteria")
        words = {"ship": UNTESTED if asks else BY_THRESHOLDS}
    return {group: (sign, words.get(group, message)) for group, (sign, message) in VERDICTS.items()}


@dataclass(frozen=True, slots=True)
class Figure:
    """The number and the interval by which a criterion of a build is decided, as text, with its margin."""

    name: str
    margin: str
    value: str
    interval: str
    bar: str = ""


@dataclass(frozen=True, slots=True)
class BuildRow:
    """One row of the decision table, as text.

    Attributes:
        group: a key of `VERDICTS`.
        verdict: in words.
        criteria: what it is decided by, where criteria decide.
        visible_drop: the smallest drop of refusals, in pp, that this many prompts can show; empty where not known.
        same_as: the build whose weights it has, None where they are its own.
        duplicates: the builds that have its weights.
    """

    model: str
    quant: str
    group: str
    verdict: str
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
    duplicates: tuple[str, ...]
    is_best: bool
    is_pareto: bool
    criteria: tuple[Figure, ...] = ()

    @property
    def sign(self) -> str:
        return VERDICTS[self.group][0]

    @property
    def standing(self) -> str:
        """The verdict, and what is said of it as the best build."""
        return f"{self.verdict}, {BEST.get(self.group, 'the best')}" if self.is_best else self.verdict

    @property
    def label(self) -> str:
        """The build with its duplicates: `Q3_K_S = Q2_K`."""
        return " = ".join((self.quant, *self.duplicates))


@dataclass(frozen=True, slots=True)
class ModelVerdict:
    """What was decided for one base model: its best build with a headline, and its builds by verdict."""

    model: str
    headline: str
    best: str | None
    best_reason: str
    groups: Mapping[str, tuple[BuildRow, ...]]


BEST = {"ship": "the best", "unknown": "review this one first", "reference": "nothing smaller holds"}
HEADLINES = {
    "ship": "Ship {}",
    "reference": "Stay with the baseline, {}",
    "unknown": "{}, once its safety is reviewed",
}
"""What is said of the best build, by its verdict: one that nothing rules out is not yet one that can ship."""


@dataclass(frozen=True, slots=True)
class TextTable:
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


def builds(bundle: BundleTables) -> list[BuildRow]:
    """The decision table in study order; a duplicate shows what was measured of the build whose weights it has."""
    cells = {(cell["base_model"], cell["quant"]): cell for cell in bundle.cells}
    return [_build(cell, cells.get((cell["base_model"], cell.get("twin_of")), cell), bundle) for cell in bundle.cells]


def _build(own: Cell, shown: Cell, bundle: BundleTables) -> BuildRow:
    """One row: names and notes of the cell itself, numbers and verdict of the cell that was run for it."""
    model, quant, twin_of = own["base_model"], own["quant"], own.get("twin_of")
    best = (bundle.decision.get("best") or {}).get(model) or {}
    failed = shown.get("status") == "failed"

    def difference(name: str) -> str:
        return "reference" if shown.get("is_baseline") else formats.delta(shown.get(f"{name}_delta_pp"))

    def within(name: str) -> str:
        return formats.bounded(shown.get(f"{name}_lo_pp"), shown.get(f"{name}_hi_pp"))

    return BuildRow(
        model=formats.plain(model),
        quant=formats.plain(quant),
        group=verdict_group(shown),
        verdict=_verdict(shown, bundle.decision),
        bpw=formats.quantity(shown.get("bpw"), 2),
        size=formats.size(own.get("file_bytes") or shown.get("file_bytes")),
        speed=formats.quantity(shown.get("tokens_per_second")),
        quality=difference("quality"),
        quality_interval=within("quality"),
        refusal=difference("refusal"),
        refusal_interval=within("refusal"),
        visible_drop=""
        if shown.get("criteria") or (mde := formats.number(shown.get("refusal_mde_pp"))) is None
        else formats.fixed(mde, 1),
        regime=_regime(shown),
        action="did not run" if failed else _words(shown.get("action")),
        reason=readable(bundle.names, shown.get("failure") or shown.get("action_reason") or ""),
        notes=_notes(own, bundle),
        same_as=None if twin_of is None else formats.plain(twin_of),
        duplicates=duplicates_of(bundle, model, quant),
        is_best=best.get("quant") == quant,
        is_pareto=quant in (bundle.decision.get("pareto") or {}).get(model, ()),
        criteria=tuple(_figures(shown, bundle.decision)),
    )


def _verdict(cell: Cell, decision: Cell) -> str:
    group = verdict_group(cell)
    if group == "unknown" and decision.get("rules") == "criteria":
        return UNDECIDED.get(cell.get("action") or "", "to be reviewed")
    return verdict_words(decision)[group][1]


def _figures(cell: Cell, decision: Cell) -> Iterator[Figure]:
    """One a criterion of the policy; none where criteria do not decide."""
    if decision.get("rules") != "criteria":
        return
    found = {row["criterion"]: row for row in cell.get("criteria") or () if row["role"] == "criterion"}
    criteria = (decision.get("policy") or {}).get("criteria") or {}
    # The file's keys are sorted; criteria come as they decide, refusals first and quality last.
    for name in sorted(criteria, key=lambda one: (one != "refusal", one == "quality", one)):
        criterion = criteria[name]
        row = found.get(name)
        margin = criterion.get("margin_pp") if row is None else row.get("margin_pp")
        value, within, bar = "reference" if cell.get("is_baseline") else NOT_MEASURED, "", None
        if row is not None:
            value = formats.words(row["outcome"])
            if row.get("delta_pp") is not None:
                value = formats.delta(row["delta_pp"])
                within, bar = formats.bounded(row.get("ci_lo_pp"), row.get("ci_hi_pp")), interval_bar(row)
        limit = formats.number(margin)
        shown = NOT_MEASURED if limit is None else f"{limit:g} pp"
        yield Figure(formats.words(name), shown, value, within, bar or "")


def duplicates_of(bundle: BundleTables, model: str, quant: str) -> tuple[str, ...]:
    """The builds that have the same weights as this one and were not run."""
    same = (cell for cell in bundle.cells if cell["base_model"] == model and cell.get("twin_of") == quant)
    return tuple(formats.plain(cell["quant"]) for cell in same)


def _notes(cell: Cell, bundle: BundleTables) -> tuple[str, ...]:
    """What a reader must know of the file: what it duplicates, what it was decoded from, what it is not made of."""
    notes = []
    if cell.get("twin_of"):
        notes.append(f"same weights as {formats.plain(cell['twin_of'])}")
    if cell.get("stopped_after"):
        notes.append(f"{cell['stopped_after']} of {cell['prompts_planned']} prompts were enough")
    if cell.get("unpaired"):
        notes.append(readable(bundle.names, cell["unpaired"]))
    if cell.get("dequantized_from"):
        notes.append(f"dequantised from {formats.plain(cell['dequantized_from'])}")
    fallbacks = (bundle.artifacts.get((cell["base_model"], cell["quant"])) or {}).get("fallbacks")
    if fallbacks:
        matrices = count_of(sum(fallbacks.values()), "matrix", "matrices")
        notes.append(f"{matrices} fell back to {formats.plain(', '.join(fallbacks))}")
    return tuple(notes)


def _regime(cell: Cell) -> str:
    """A regime with its probability, where samples give it one."""
    share = formats.number(cell.get("regime_probability"))
    return _words(cell.get("regime")) + ("" if share is None else f" {formats.fixed(100 * share, 0)} %")


def _words(value: object) -> str:
    return NOT_MEASURED if value in {None, ""} else formats.words(value)


@cache
def _known(metrics: tuple[str, ...]) -> re.Pattern[str]:
    names = {*metrics, *ACTIONS, CONFIGURED, *PAIRED_ACTIONS, *REGIMES}
    return re.compile(rf"\b({'|'.join(sorted(names, key=lambda name: (-len(name), name)))})\b")


def readable(names: DisplayNames, text: object) -> str:
    """A sentence of the decision with its metrics, regimes and actions by their names in the report."""
    named = _known(tuple(METRICS)).sub(lambda found: names.label(found[0]), formats.plain(text))
    return re.sub(r"(?<![\w.\-])-(?=\d)", formats.MINUS, named)


def verdicts(bundle: BundleTables, rows: Sequence[BuildRow]) -> list[ModelVerdict]:
    """The answer for each base model, in study order."""
    result, by_points = [], bundle.decision.get("rules") == "points"
    for model in bundle.models:
        chosen = (bundle.decision.get("best") or {}).get(model) or {}
        mine = [row for row in rows if row.model == formats.plain(model)]
        best = next((row for row in mine if row.is_best), None)
        headlines = {**HEADLINES, "ship": f"{{}} {BY_THRESHOLDS}"} if by_points else HEADLINES
        headline = headlines.get(best.group, "{}").format(best.label) if best else "No build to recommend"
        groups = {group: tuple(row for row in mine if row.group == group) for group in VERDICTS}
        reason = readable(bundle.names, chosen.get("reason") or "")
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
PROTOCOL = ("quant_roles", "floor", "checklist", "taxonomy")
"""Those of a protocol of thresholds: a study that criteria decide did not ask for them."""
INSIDE = (
    "whitebox",
    "Inside the builds",
    "The refusal rate beside the log-probability of refusing, and how far each build is from its baseline, by token.",
)
ALONG_TEXT = (
    "text_kl",
    "Along a text",
    "How far each build is from its baseline along a text, token by token; KL in nats, shares from 0 to 1.",
)
JUDGES = (
    ("judges", "Judges", "What each judge was asked, how many of its labels count, and what it took."),
    ("judge_agreement", "Judge against judge", "How often two judges give the same answer the same label."),
    ("judge_direction", "Which judge gives more credit", "Answers that only one of two judges gives credit, each way."),
)
"""Those of judges, and of the inside of builds, are shown only where they were measured."""
PER_BUILD = (
    ("criteria", "Criteria", "Each criterion of each build and its members: what decides, and how many pairs would."),
    ("paired", "Paired comparison", "Each build against its baseline prompt by prompt: answers lost and gained."),
    ("tiers", "Tiers", "The worse of the benchmark and the generation delta of each build."),
    ("regimes", "Regimes", "What quality and refusal say together about each build, and why."),
    ("deltas", "Deltas", "Every metric of every build less that of its baseline, with the interval of the difference."),
)
"""CSV artefacts that the report shows: name, title, what it shows. Those with a row a build or more are folded."""


def grids(bundle: BundleTables) -> list[TextTable]:
    """The CSV artefacts as tables, those that hold something; a protocol's own where its thresholds decide."""
    by_criteria = bundle.decision.get("rules") == "criteria"
    overview = [table for table in OVERVIEW if table[0] not in PROTOCOL or not by_criteria]
    open_ = [grid(bundle.names, *table, bundle.tables.get(table[0])) for table in overview]
    open_ += [beside(bundle.names, table, bundle.tables.get(table[0], ())) for table in (INSIDE, ALONG_TEXT, *JUDGES)]
    decided = "criteria" if by_criteria else "paired"
    tables = [table for table in PER_BUILD if table[0] not in ("criteria", "paired") or table[0] == decided]
    folded = (grid(bundle.names, *table, bundle.tables.get(table[0])) for table in tables)
    return [one for one in (*open_, *(replace(one, folded=True) for one in folded)) if one.rows]


def beside(names: DisplayNames, table: tuple[str, str, str], rows: Sequence[CsvRow]) -> TextTable:
    """A table of one instrument or several; a metric stands without its own, for the judges have columns."""
    bare = [{**row, "metric": names.bare(row["metric"])} if "metric" in row else row for row in rows]
    return grid(names, *table, bare)


def grid(names: DisplayNames, name: str, title: str, shows: str, rows: Sequence[CsvRow] | None) -> TextTable:
    """One CSV artefact as a table; every column it has is shown."""
    if not rows:
        return TextTable(name, title, shows, (), ())
    columns = tuple(rows[0])
    given = {column: [row.get(column) for row in rows] for column in columns}
    # A value is mostly one of few in its column, and each is put into words once.
    different = {column: set(values) for column, values in given.items()}
    message = {
        column: {value: _grid_value(names, column, value) for value in values} for column, values in different.items()
    }
    body = tuple(zip(*(map(message[column].__getitem__, given[column]) for column in columns), strict=True))
    numeric = tuple(column not in _FLAGS and _is_numeric(different[column]) for column in columns)
    return TextTable(name, title, shows, tuple(names.label(column) for column in columns), body, numeric)


def _is_numeric(values: Iterable[str | None]) -> bool:
    given = [value for value in values if value]
    return bool(given) and all(formats.number(value) is not None for value in given)


_FLAGS = {"second", "inflated", "is_baseline", "reverses", "at_boundary", "safety_degrades_faster"}
_SENTENCES = {"reason", "observed", "cells", "trigger", "what_to_do"}
_IDENTIFIERS = {
    "interval_kind",
    "loss_tier",
    "regime",
    "action",
    "role",
    "tier",
    "status",
    "outcome",
    "failure_mode",
    "criterion",
    "headroom",
}


def _grid_value(names: DisplayNames, column: str, value: str | None) -> str:
    if value and column in _IDENTIFIERS:
        return formats.words(value)
    if value and column in _SENTENCES:
        return readable(names, value)
    if value in {"0", "1"} and column in _FLAGS:
        return "yes" if value == "1" else "no"
    if not value and column == "cells":
        return "none"
    if value and column in {"metric", "quality_metric", "safety_metric", "benchmark_metric", "generation_metric"}:
        return names.label(value)
    return formats.table_value(column, value)


# The claim ledger: what the report's sentences state, each number settled from its artefact and written one way.
#
# A sentence is text with claims in braces; it is said only where every claim in it has a value.


@dataclass(frozen=True, slots=True)
class Citation:
    """Where a number in a sentence comes from; the fields are those of `Claim`."""

    artefact: str
    row: str = ""
    column: str = ""
    aggregate: str = "value"
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence as written in code: `{name}` stands for the claim `cites[name]`.

    Attributes:
        name: with the name in braces, the id of each claim.
        text: no digits; numbers are claims.
        cites: name in the text to its source.
    """

    name: str
    text: str
    cites: Mapping[str, Citation]


@dataclass(frozen=True, slots=True)
class RenderedSentence:
    """A sentence that can be said: its parts in order, text and settled claims."""

    parts: tuple[str | Claim, ...]


@dataclass(frozen=True, slots=True)
class ClaimLedger:
    """The settled claims of a report, by id."""

    read: Reader
    names: DisplayNames
    claims: dict[str, Claim] = field(default_factory=dict)

    def say(self, sentence: Sentence) -> RenderedSentence | None:
        """A sentence with its numbers, None where one of them is not known; its claims join the ledger."""
        subject = re.sub(r"\{(\w+)\}", r"[\1]", sentence.text)
        settled = {
            name: resolve_claim(self._claim(f"{sentence.name}_{name}", subject, cite), self.read)
            for name, cite in sentence.cites.items()
        }
        if not all(claim.value for claim in settled.values()):
            return None
        self.claims.update((claim.claim_id, claim) for claim in settled.values())
        pieces = re.split(r"\{(\w+)\}", sentence.text)
        return RenderedSentence(tuple(settled[part] if at % 2 else part for at, part in enumerate(pieces)))

    @staticmethod
    def _claim(claim_id: str, subject: str, cite: Citation) -> Claim:
        return Claim(claim_id, subject, cite.artefact, cite.row, cite.column, cite.aggregate, unit=cite.unit)

    def render_sentences(self, sentences: Iterable[Sentence]) -> tuple[RenderedSentence, ...]:
        """Those of the sentences that can be said."""
        return tuple(said for sentence in sentences if (said := self.say(sentence)) is not None)


def sources(claim: Claim) -> str:
    """The artefact, row and column behind a claim, for a pointer over it."""
    rows = f"row {claim.row}" if claim.row else "all rows"
    of = f" of {claim.column}" if claim.column else ""
    return f"{claim.claim_id}: {claim.artefact}, {rows}, {claim.aggregate}{of}"


# How a claim is written


def written(names: DisplayNames, claim: Claim) -> str:
    """A claim's value in its unit."""
    known = formats.number(claim.value)
    if known is None or claim.unit not in WRITERS:
        return readable(names, claim.value)
    return WRITERS[claim.unit](known)


WRITERS: Mapping[str, Callable[[float], str]] = {
    "rows": lambda value: f"{value:,.0f}",
    "pp": lambda value: f"{formats.fixed(value, 2)} pp",
    "pp change": lambda value: f"{formats.fixed(value, 2, sign=True)} pp",
    "pp size": lambda value: f"{abs(value):g} pp",
    "percent size": lambda value: f"{abs(value):g} %",
    "change": lambda value: (
        formats.fixed(value, 3, sign=True) if abs(value) < 1 else formats.fixed(value, 1, sign=True)
    ),
    "level": lambda value: formats.fixed(value, 3),
    "share": lambda value: f"{formats.fixed(100 * value, 1)} %",
    "r": lambda value: formats.fixed(value, 3, sign=True),
    "p": lambda value: formats.fixed(value, 3) if value >= 0.0005 else formats.significant(value, 2),
    "coefficient": lambda value: formats.fixed(value, 3, sign=True),
    "number": formats.significant,
    "r squared": lambda value: formats.fixed(value, 3),
}
"""Unit of a claim to how its number is written; any other unit is a name, written as it is."""


def marked(names: DisplayNames, claim: Claim) -> Markup:
    """A claim in HTML: its number, with its id and its source."""
    look = "claim list" if claim.aggregate == "names" else "claim"
    return Markup('<span class="{}" data-claim="{}" title="{}">{}</span>').format(
        look, claim.claim_id, sources(claim), written(names, claim)
    )


def spoken(names: DisplayNames, said: RenderedSentence) -> str:
    """A sentence as plain text."""
    return "".join(part if isinstance(part, str) else written(names, part) for part in said.parts)


def spoken_marked(names: DisplayNames, said: RenderedSentence) -> Markup:
    """A sentence in HTML, its claims marked."""
    return Markup("").join(part if isinstance(part, str) else marked(names, part) for part in said.parts)
