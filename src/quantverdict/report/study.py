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
from quantverdict.report import formats
from quantverdict.report.artefacts import Artefacts, Row
from quantverdict.report.heatmap import full_colour, metric_value, tone_of
from quantverdict.report.ledger import Sentence
from quantverdict.report.tables import Grid

Cells = tuple[str, ...]
WIDE = 8
"""Columns that a table may have before they stand close."""


@dataclass(frozen=True, slots=True)
class Part:
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
    grid: Grid
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
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Book:
    """What the tables of a study are made from: the artefacts, with what their order and names are."""

    read: Artefacts

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
            raise BundleError(f"{self.read.root / 'decision.json'}: its policy has no {threshold}")
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
        """The metrics that the matrix has not, in words."""
        here = {metric.name for metric in self.metrics(*names)}
        return ", ".join(formats.label(name) for name in dict.fromkeys(names) if name not in here)

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


def grid(name: str, title: str, shows: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Grid:
    """A table whose columns after the leading names hold numbers where every value is one, or missing."""
    numeric = tuple(bool(rows) and all(_numeric(row[at]) for row in rows) for at in range(len(columns)))
    body = tuple(tuple(formats.plain(cell) for cell in row) for row in rows)
    return Grid(name, title, shows, tuple(columns), body, numeric)


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
