"""The report of a study (`--profile study`): its sections, each table followed by what it shows.

A table whose artefact or metrics are missing says so in a line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from quantverdict.errors import BundleError
from quantverdict.matrix.columns import METRICS, Metric
from quantverdict.protocol.claims import where
from quantverdict.registry import judged_by
from quantverdict.registry.listing import BUILT_IN
from quantverdict.reporting import formats
from quantverdict.reporting.artefacts import Artefacts, Row
from quantverdict.reporting.figures import full_colour, metric_value, tone_of
from quantverdict.reporting.formats import DisplayNames
from quantverdict.reporting.tables import INSIDE, JUDGES, Citation, Sentence, TextTable, beside

Cells = tuple[str, ...]
WIDE = 8
"""Columns that a table may have before they stand close."""


@dataclass(frozen=True, slots=True)
class StudyTable:
    """A table of the study and what is said below it.

    Attributes:
        name: unique in the report.
        grid: the table; without rows its `shows` is not said, but `missing` is.
        missing: what the bundle lacks where there are no rows.
        none: said instead where it lacks nothing and there is nothing to list.
        sentences: said below it, those whose numbers are known.
        figure: a chart of the default report that stands above it: `regimes` or `bits`.
        tones: style class of each cell, where the table has colours.
    """

    name: str
    grid: TextTable
    missing: str
    sentences: tuple[Sentence, ...] = ()
    figure: str = ""
    tones: tuple[Cells, ...] = ()
    none: str = ""

    @property
    def is_wide(self) -> bool:
        """Whether its columns must stand close to fit a page."""
        return len(self.grid.columns) > WIDE

    def looks(self, at: int) -> Cells:
        """The style classes of each cell of a row: numbers stand right, and the tones."""
        numeric = ["num" if right else "" for right in self.grid.numeric]
        tones = self.tones[at] if self.tones else ("",) * len(numeric)
        return tuple(" ".join(filter(None, pair)) for pair in zip(numeric, tones, strict=True))


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and its tables."""

    name: str
    title: str
    parts: tuple[StudyTable, ...]


@dataclass(frozen=True)
class StudyData:
    """What the tables of a study are made from: the artefacts, with what their order and names are."""

    read: Artefacts
    names: DisplayNames

    @cached_property
    def decision(self) -> Row:
        """The plain values of `decision.json`."""
        rows = self.read.rows("decision.json")
        return rows[0] if rows else {}

    @cached_property
    def policy(self) -> Row:
        rows = self.read.rows("decision.json#policy")
        return rows[0] if rows else {}

    def limit(self, threshold: str) -> str:
        """A threshold of the policy, as it is written there.

        Raises:
            BundleError: the decision names none.
        """
        if not self.policy.get(threshold):
            raise BundleError(f"{self.read.name}/decision.json: its policy has no {threshold}")
        return self.policy[threshold]

    @property
    def quality(self) -> str:
        return self.policy.get("quality_metric", "")

    @property
    def refusal(self) -> str:
        return self.policy.get("refusal_metric", "")

    @cached_property
    def matrix(self) -> Sequence[Row]:
        return self.read.table("matrix")

    @cached_property
    def models(self) -> list[str]:
        return list(dict.fromkeys(row["base_model"] for row in self.matrix))

    @cached_property
    def quants(self) -> list[str]:
        """Every format, from most to fewest bits; those without a figure last."""
        bits: dict[str, Fraction] = {}
        for row in self.matrix:
            bits[row["quant"]] = max(bits.get(row["quant"], Fraction(0)), Fraction(row.get("bpw") or 0))
        return sorted(bits, key=lambda quant: (-bits[quant], quant))

    @cached_property
    def deltas(self) -> Mapping[tuple[str, str, str], Row]:
        return {(row["base_model"], row["quant"], row["metric"]): row for row in self.read.table("deltas")}

    @cached_property
    def cells(self) -> Mapping[tuple[str, str], Row]:
        """The decision's cells."""
        rows = self.read.rows("decision.json#cells") or ()
        return {(row["base_model"], row["quant"]): row for row in rows}

    def metrics(self, *names: str) -> list[Metric]:
        """Those of the metrics that the matrix has."""
        return [METRICS[name] for name in dict.fromkeys(names) if any(row.get(name) for row in self.matrix)]

    def absent(self, *names: str) -> str:
        """The metrics that the matrix has not, in words; one of a plugin is missed nowhere."""
        here = {metric.name for metric in self.metrics(*names)}
        gone = (name for name in dict.fromkeys(names) if name not in here and METRICS.owner(name) == BUILT_IN)
        return ", ".join(map(self.names.label, gone))

    def delta(self, row: Row, metric: Metric) -> str:
        """A metric's change from the baseline, as a table shows it."""
        if row.get("is_baseline") == "1":
            return "baseline"
        found = self.deltas.get((row["base_model"], row["quant"], metric.name))
        return formats.delta(found.get("delta") if found else None)

    def absence(self, model: str, quant: str) -> str:
        """Why a base model has no row for a format."""
        return "did not run" if self.cells.get((model, quant), {}).get("status") == "failed" else "no build"

    def tone(self, row: Row, metric: Metric) -> str:
        """The colour of that change."""
        found = self.deltas.get((row.get("base_model", ""), row.get("quant", ""), metric.name), {})
        amount = formats.number(found.get("delta" if metric.is_share else "delta_percent"))
        if not row:
            return "missing"
        if amount is None or row.get("is_baseline") == "1":
            return ""
        return tone_of(metric.name, amount, formats.number(self.policy.get(full_colour(pp=metric.is_share))))


def level(row: Row, metric: Metric) -> str:
    """A metric of a matrix row in its unit."""
    return metric_value(metric.name, row.get(metric.name))


def grid(name: str, title: str, shows: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> TextTable:
    """A table whose columns after the leading names hold numbers where every value is one, or missing."""
    numeric = tuple(bool(rows) and all(_numeric(row[at]) for row in rows) for at in range(len(columns)))
    body = tuple(tuple(formats.plain(cell) for cell in row) for row in rows)
    return TextTable(name, title, shows, tuple(columns), body, numeric)


def _numeric(text: str) -> bool:
    """A number, alone or with its unit or interval; or a word that stands for one."""
    if text in {formats.NOT_MEASURED, "baseline", "not known", "no build", "did not run", "", "none"}:
        return True
    return text.lstrip(f"+{formats.MINUS}[<")[:1].isdigit() or text.startswith("\N{INFINITY}")


def known(value: str | None, digits: int = 3, *, sign: bool = False) -> str:
    """A statistic to fixed places; `not known` where it could not be computed."""
    number = formats.number(value)
    return "not known" if number is None else formats.fixed(number, digits, sign=sign)


def p_value(value: str | None) -> str:
    """A p-value to three places."""
    number = formats.number(value)
    if number is None:
        return "not known"
    return formats.fixed(number, 3) if number >= 0.0005 else formats.significant(number, 2)


def yes_no(value: str | None) -> str:
    """A flag of a table."""
    return {"1": "yes", "0": "no"}.get(value or "", "not known")


def words(value: Any) -> str:  # noqa: ANN401 - any value of a table
    """An identifier as words."""
    return formats.words(value) if value else formats.NOT_MEASURED


# Study report: what was measured. Quality, safety, judge against pattern, and the wide tables of every metric.

LENGTH = ("repetition", "output_tokens")


def section(name: str) -> tuple[str, ...]:
    """The metrics that a table of levels shows."""
    return tuple(metric.name for metric in METRICS.values() if metric.section == name)


def wide_tables() -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """Name, title and metrics of the tables of the appendix."""
    return (
        ("benchmarks", "Benchmarks: every model, every format", section("benchmarks")),
        ("generation", "Generation quality: every model, every format", (*section("generation"), "output_tokens")),
        ("harm", "Safety: every model, every format", (*section("safety"), *judged_by().values())),
    )


def quality(book: StudyData) -> Section:
    """Generation metrics, benchmarks, repetition and length, tiers."""
    tiers = [
        (row["base_model"], row["quant"], formats.delta(cell.get("quality_delta_pp")), words(row["tier"]),
         words(cell.get("regime")), words(cell.get("action")))
        for row in book.read.table("tiers")
        if (cell := book.cells.get((row["base_model"], row["quant"]), {})).get("is_baseline") != "1"
    ]  # fmt: skip
    columns = ("base model", "build", f"{book.names.label(book.quality)} delta (pp)", "tier", "regime", "action")
    return Section("quality", "Quality", (
        measures(book, "generation", "Generation metrics", section("generation")),
        measures(book, "benchmarks", "Benchmark accuracy", section("benchmarks")),
        measures(book, "length", "Repetition and output length", LENGTH),
        StudyTable("tiers", grid("tiers", "Quality tiers", "The worse of the benchmark and the generation delta, "
             "beside what safety says.", columns, tiers), "the tiers", (_tiers_missed(), _inflated())),
    ))  # fmt: skip


def safety(book: StudyData) -> Section:
    """Safety metrics, inside the builds, judge against pattern, judge against judge."""
    inside = book.read.table(INSIDE[0])
    return Section("safety", "Safety", (
        measures(book, "safety", "Safety metrics", section("safety"), (_collapsed(book),)),
        *([StudyTable(INSIDE[0], beside(book.names, INSIDE, inside), "", (_margins(),))] if inside else ()),
        _judge_gaps(book),
        _judges(book),
        _agreement(book),
        _direction(book),
        _second_judge(book),
    ))  # fmt: skip


def appendices(book: StudyData) -> Section:
    """A metric a table: base models down, formats across."""
    parts = []
    for name, _, metrics in wide_tables():
        parts += [_wide(book, f"wide_{metric.name}", metric) for metric in book.metrics(*metrics)]
        absent = book.absent(*metrics)
        if absent:
            parts.append(StudyTable(f"wide_{name}", grid(name, "Metrics that no build has", "", (), ()), absent))
    return Section("appendices", "Every metric, wide", tuple(parts))


def measures(
    book: StudyData, name: str, title: str, metrics: tuple[str, ...], more: tuple[Sentence, ...] = ()
) -> StudyTable:
    """Levels of some metrics with their change from the baseline, a row a build; and how far each moves."""
    found = book.metrics(*metrics)
    columns = ["base model", "build"]
    columns += [text for metric in found for text in (book.names.label(metric.name), f"delta ({metric.delta_unit})")]
    rows = [
        (row["base_model"], row["quant"], *(text for m in found for text in (level(row, m), book.delta(row, m))))
        for row in book.matrix
        if found
    ]
    tones = tuple(
        ("", "", *(tone for metric in found for tone in ("", book.tone(row, metric)))) for row in book.matrix if found
    )
    absent = book.absent(*metrics)
    shows = "Each metric and its change from the baseline of the same model." + (
        f" Not measured: {absent}." if absent else ""
    )
    said = tuple(moves(book, f"{name}_{metric.name}", metric) for metric in found)
    return StudyTable(name, grid(name, title, shows, columns, rows), absent, (*said, *more), tones=tones)


def moves(book: StudyData, name: str, metric: Metric) -> Sentence:
    """From where to where a metric's deltas go."""
    row, unit = where(metric=metric.name), "pp change" if metric.is_share else "change"
    cites = {
        "n": Citation("deltas.csv", row, "delta", "count", "rows"),
        "low": Citation("deltas.csv", row, "delta", "min", unit),
        "lowest": Citation("deltas.csv", row, "delta", "at_min"),
        "high": Citation("deltas.csv", row, "delta", "max", unit),
        "highest": Citation("deltas.csv", row, "delta", "at_max"),
    }
    label = book.names.label(metric.name)
    tail = "" if metric.is_share else f" {metric.unit}"
    text = (
        f"Over {{n}} builds the change of {label} runs from {{low}}{tail} ({{lowest}}) to {{high}}{tail} ({{highest}})."
    )
    return Sentence(name, text, cites)


def _tiers_missed() -> Sentence:
    rejected = where(action=("reject_hidden_danger", "reject_severe_safety_drift"))
    passed = f"{rejected};{where(tier=('negligible', 'acceptable', 'inflated'))}"
    return Sentence(
        "tiers_missed",
        "A screen by quality tier alone would let {missed} of the {rejected} rejected builds pass: they stand in a "
        "tier that is negligible, acceptable, or inflated.",
        {
            "missed": Citation("decision.json#cells", passed, "", "count", "rows"),
            "rejected": Citation("decision.json#cells", rejected, "", "count", "rows"),
        },
    )


def _inflated() -> Sentence:
    row = where(inflated=1)
    return Sentence(
        "tiers_inflated",
        "{n} builds gain more in a generation metric than a lossy build can be expected to; the largest gain is {gain} "
        "({at}).",
        {
            "n": Citation("tiers.csv", row, "", "count", "rows"),
            "gain": Citation("tiers.csv", row, "inflated_gain_pp", "max", "pp change"),
            "at": Citation("tiers.csv", row, "inflated_gain_pp", "at_max"),
        },
    )


def _margins() -> Sentence:
    nats = {"column": "margin_delta_nats", "unit": "change"}
    return Sentence(
        "inside",
        "The margin of refusing changes by {low} ({lowest}) to {high} ({highest}) nats.",
        {
            "low": Citation("whitebox.csv", aggregate="min", **nats),
            "lowest": Citation("whitebox.csv", "", "margin_delta_nats", "at_min"),
            "high": Citation("whitebox.csv", aggregate="max", **nats),
            "highest": Citation("whitebox.csv", "", "margin_delta_nats", "at_max"),
        },
    )


def _collapsed(book: StudyData) -> Sentence:
    row = where(metric=book.refusal)
    fell = f"{row};delta<={book.limit('refusal_collapse_pp')}"
    return Sentence(
        "safety_collapsed",
        "Refusals fall by {limit} or more, the policy's limit, in {fell} of {n} builds.",
        {
            "limit": Citation("decision.json#policy", "", "refusal_collapse_pp", unit="pp size"),
            "fell": Citation("deltas.csv", fell, "", "count", "rows"),
            "n": Citation("deltas.csv", row, "delta", "count", "rows"),
        },
    )


# Judges


def _judge_gaps(book: StudyData) -> StudyTable:
    found = [row for row in book.read.table("judge_gaps") if row["metric"] == book.refusal and row["gap_pp"]]
    rows = [
        (row["base_model"], row["quant"], _percent(row["pattern_rate"]), _percent(row["judge_rate"]),
         formats.delta(row["signed_gap_pp"]), yes_no(row["diverges"]))
        for row in found
    ]  # fmt: skip
    judge = book.names.instrument(book.policy.get("judge_refusal_metric") or "judge_refusal_rate")
    columns = ("base model", "build", "by pattern", judge, "gap (pp)", "diverges")
    shows = f"Refusal rate of the same answers, read by pattern and {judge}."
    row = where(metric=book.refusal)
    sentence = Sentence(
        "judge_gaps",
        "Judge and pattern stand up to {most} apart ({at}); {apart} of {n} builds reach the limit of {limit}, and the "
        "judge reads more refusals than the pattern in {more}.",
        {
            "most": Citation("judge_gaps.csv", row, "gap_pp", "max", "pp"),
            "at": Citation("judge_gaps.csv", row, "gap_pp", "at_max"),
            "apart": Citation("judge_gaps.csv", f"{row};diverges=1", "", "count", "rows"),
            "n": Citation("judge_gaps.csv", row, "gap_pp", "count", "rows"),
            "limit": Citation("decision.json#policy", "", "measurement_gap_pp", unit="pp size"),
            "more": Citation("judge_gaps.csv", f"{row};signed_gap_pp>0", "", "count", "rows"),
        },
    )
    missing = "the judge's refusal rates"
    return StudyTable(
        "judge_gaps", grid("judge_gaps", "Judge against pattern", shows, columns, rows), missing, (sentence,)
    )


def _judges(book: StudyData) -> StudyTable:
    table = book.read.table(JUDGES[0][0])
    said = tuple(
        Sentence(
            f"judges_{at}",
            "{judge} read {samples} answers and left {ungraded} of them ungraded; {loaded} of its labels count.",
            {
                "judge": Citation("judges.csv", where(judge=row["judge"]), "judge"),
                **{name: Citation("judges.csv", where(judge=row["judge"]), name, unit="rows")
                   for name in ("samples", "ungraded", "loaded")},
            },
        )
        for at, row in enumerate(table, 1)
    )  # fmt: skip
    return StudyTable("judges", beside(book.names, JUDGES[0], table), "a judge that was asked here", said)


def _direction(book: StudyData) -> StudyTable:
    table = book.read.table("judge_direction")
    overall = [row for row in table if row["task"] == row["quant"] == "all"]
    said = tuple(_leans(book, f"judge_direction_{at}", row) for at, row in enumerate(overall, 1))
    return StudyTable(
        "judge_direction", beside(book.names, JUDGES[2], table), "a second judge of the same samples", said
    )


def _leans(book: StudyData, name: str, row: Row) -> Sentence:
    key = where(**{column: row[column] for column in ("first_judge", "second_judge", "metric", "task", "quant")})
    cites = {
        "n": Citation("judge_direction.csv", key, "n", unit="rows"),
        "one": Citation("judge_direction.csv", key, "first_judge"),
        "first": Citation("judge_direction.csv", key, "only_first", unit="rows"),
        "other": Citation("judge_direction.csv", key, "second_judge"),
        "second": Citation("judge_direction.csv", key, "only_second", unit="rows"),
        "p": Citation("judge_direction.csv", key, "p_value", unit="p"),
    }
    text = (
        f"Of {{n}} answers that both graded for {book.names.bare(row['metric'])}, {{one}} alone gives {{first}} credit "
        "and {other} alone {second} (p {p}, by McNemar's exact test)."
    )
    return Sentence(name, text, cites)


def _agreement(book: StudyData) -> StudyTable:
    table = [row for row in book.read.table("judge_agreement") if row["n"] != "0"]
    rows = [
        (row["first_judge"], row["second_judge"], row["task"], row["quant"], row["n"], row["ungraded"],
         _percent(row["agreement"]), known(row["kappa"]),
         formats.interval(row["kappa_ci_lo"], row["kappa_ci_hi"], 3) or "not known")
        for row in table
        if "all" in (row["task"], row["quant"])
    ]  # fmt: skip
    columns = ("judge", "other judge", "task", "build", "n", "ungraded", "agreement", "kappa", "interval of kappa")
    pairs = dict.fromkeys((row["first_judge"], row["second_judge"]) for row in table)
    said = tuple(_agree(f"judge_agreement_{at}", where(first_judge=one, second_judge=two, task="all", quant="all"))
                 for at, (one, two) in enumerate(pairs, 1))  # fmt: skip
    found = grid("judge_agreement", "Judge against judge", "Two judges on the same samples.", columns, rows)
    return StudyTable("judge_agreement", found, "a second judge of the same samples", said)


def _agree(name: str, row: str) -> Sentence:
    return Sentence(
        name,
        "{one} and {other} agree on {agreement} of the {n} samples that both judged; Cohen's kappa is {kappa}.",
        {
            "one": Citation("judge_agreement.csv", row, "first_judge"),
            "other": Citation("judge_agreement.csv", row, "second_judge"),
            "n": Citation("judge_agreement.csv", row, "n", unit="rows"),
            "agreement": Citation("judge_agreement.csv", row, "agreement", unit="share"),
            "kappa": Citation("judge_agreement.csv", row, "kappa", unit="r squared"),
        },
    )


def _second_judge(book: StudyData) -> StudyTable:
    table = book.read.table("second_judge_regimes")
    rows = [
        (row["base_model"], row["quant"], row["first_judge"], row["second_judge"],
         formats.delta(row["first_refusal_delta_pp"]), formats.delta(row["second_refusal_delta_pp"]),
         words(row["first_regime"]), words(row["second_regime"]), words(row["first_action"]),
         words(row["second_action"]))
        for row in table
        if row["changed"] == "1"
    ]  # fmt: skip
    columns = (
        "base model", "build", "judge", "other judge", "refusal delta", "by the other", "regime", "by the other",
        "action", "by the other",
    )  # fmt: skip
    sentence = Sentence(
        "second_judge",
        "Of {n} comparisons of a build by another judge {changed} change its regime or its action.",
        {
            "n": Citation("second_judge_regimes.csv", "first_regime!=baseline", "", "count", "rows"),
            "changed": Citation("second_judge_regimes.csv", "changed=1", "", "count", "rows"),
        },
    )
    found = grid("second_judge", "Decided by another judge", "Builds that another judge would file elsewhere, in pp.",
                 columns, rows)  # fmt: skip
    none = "Every build keeps its regime and its action by the other judge." if table else ""
    return StudyTable("second_judge", found, "a second judge of the same samples", (sentence,), none=none)


def _percent(value: str) -> str:
    number = formats.number(value)
    return formats.NOT_MEASURED if number is None else f"{formats.fixed(100 * number, 1)} %"


# Wide tables


def _wide(book: StudyData, name: str, metric: Metric) -> StudyTable:
    cells = {(row["base_model"], row["quant"]): row for row in book.matrix}
    rows = [
        (model, *(_wide_level(book, cells, (model, quant), metric) for quant in book.quants)) for model in book.models
    ]
    tones = tuple(
        ("", *(book.tone(cells.get((model, quant), {}), metric) for quant in book.quants)) for model in book.models
    )
    shows = METRICS[metric.name].meaning
    unit = "share" if metric.proportion else "level" if metric.is_share else "number"
    sentence = Sentence(
        name,
        "The highest is {high} ({highest}), the lowest {low} ({lowest}).",
        {
            "high": Citation("matrix.csv", "", metric.name, "max", unit),
            "highest": Citation("matrix.csv", "", metric.name, "at_max"),
            "low": Citation("matrix.csv", "", metric.name, "min", unit),
            "lowest": Citation("matrix.csv", "", metric.name, "at_min"),
        },
    )
    found = grid(name, book.names.label(metric.name), f"{shows}.", ("base model", *book.quants), rows)
    return StudyTable(name, found, book.names.label(metric.name), (sentence,), tones=tones)


def _wide_level(book: StudyData, cells: Mapping[tuple[str, str], Row], cell: tuple[str, str], metric: Metric) -> str:
    return level(cells[cell], metric) if cell in cells else book.absence(*cell)
