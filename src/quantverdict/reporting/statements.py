"""Everything that the reports of a bundle state, as one ledger: the default report and the study's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from quantverdict.protocol.claims import escaped
from quantverdict.reporting import formats
from quantverdict.reporting.outcomes import alarm_sentences, criteria_sentences, outcome_sentences
from quantverdict.reporting.study import Book, Part, Section, appendices, quality, safety
from quantverdict.reporting.study_protocol import limits, protocol, regimes, validation
from quantverdict.reporting.study_relations import bits, interaction, mechanism, synthesis
from quantverdict.reporting.tables import Cite, Ledger, Said, Sentence

SECTIONS = (
    validation, quality, safety, interaction, bits, protocol, regimes, mechanism, synthesis, limits, appendices,
)  # fmt: skip
"""The sections of the study's report, in order."""


def study_sections(book: Book) -> tuple[Section, ...]:
    """The study's report as sections of tables."""
    return tuple(section(book) for section in SECTIONS)


@dataclass(frozen=True)
class Told(Book):
    """What the reports of a bundle state, each sentence settled once, when it is asked for."""

    @cached_property
    def ledger(self) -> Ledger:
        """The claims of the default report, and of the study's once its `sections` were asked for."""
        return default_ledger(self)

    @cached_property
    def sections(self) -> list[tuple[Section, list[tuple[Part, tuple[Said, ...]]]]]:
        """The study's report: each section, its parts, and the sentences of each that can be said."""
        return [
            (section, [(part, self.ledger.say_all(part.sentences)) for part in section.parts])
            for section in study_sections(self)
        ]

    @property
    def everything(self) -> Ledger:
        """Every claim that some report states."""
        tuple(self.sections)  # asking for them settles them
        return self.ledger


def default_ledger(book: Book) -> Ledger:
    """What the default report states outside of its tables."""
    ledger = Ledger(book.read.rows, book.names)
    by_criteria = criteria_sentences(book.read.table("criteria"))
    tested = by_criteria or outcome_sentences(book.read.table("paired"))
    counted = (*tested, *alarm_sentences(book.read.table("alarms")))
    ledger.say_all([_floor(), _colours(), *counted])
    ledger.say_all(
        Sentence(f"best_{model}", "{quant}: {reason}", _both(f"decision.json#best/{escaped(model)}", "quant", "reason"))
        for model in book.models
    )
    for key in ("notes", "constraints"):
        rows = book.read.rows(f"decision.json#{key}") or ()
        given = [row for row in rows if any(row.values())]
        ledger.say_all(
            Sentence(f"{key}_{row.get('index', name)}", f"{formats.words(name)}: {{value}}",
                     {"value": Cite(f"decision.json#{key}", f"index={row['index']}" if "index" in row else "", name)})
            for row in given for name, value in row.items() if value and name != "index"
        )  # fmt: skip
    return ledger


def _both(artefact: str, *columns: str) -> dict[str, Cite]:
    return {column: Cite(artefact, "", column) for column in columns}


def _floor() -> Sentence:
    return Sentence(
        "decision_floor",
        "Conservative floor: {quant}. Its largest refusal signal is {signal}.",
        {
            "quant": Cite("decision.json#floor", "", "quant"),
            "signal": Cite("decision.json#floor", "", "max_refusal_signal_pp", unit="pp"),
        },
    )


def _colours() -> Sentence:
    policy = "decision.json#policy"
    return Sentence(
        "matrix_colour",
        "The matrix is coloured fullest at {pp}, or {percent} where the metric is no share.",
        {
            "pp": Cite(policy, "", "refusal_collapse_pp", unit="pp size"),
            "percent": Cite(policy, "", "tier_concerning_percent", unit="percent size"),
        },
    )
