"""Everything that the reports of a bundle state, as one ledger: the default report and the study's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from quantverdict.protocol.claims import escaped
from quantverdict.reporting import formats
from quantverdict.reporting.outcomes import alert_sentences, criteria_sentences, outcome_sentences
from quantverdict.reporting.study import Section, StudyData, StudyTable, appendices, quality, safety
from quantverdict.reporting.study_protocol import limits, protocol, regimes, validation
from quantverdict.reporting.study_relations import bits, interaction, mechanism, synthesis
from quantverdict.reporting.tables import Citation, ClaimLedger, RenderedSentence, Sentence

SECTIONS = (
    validation, quality, safety, interaction, bits, protocol, regimes, mechanism, synthesis, limits, appendices,
)  # fmt: skip
"""The sections of the study's report, in order."""


def study_sections(book: StudyData) -> tuple[Section, ...]:
    """The study's report as sections of tables."""
    return tuple(section(book) for section in SECTIONS)


@dataclass(frozen=True)
class ReportClaims(StudyData):
    """What the reports of a bundle state, each sentence settled once, when it is asked for."""

    @cached_property
    def ledger(self) -> ClaimLedger:
        """The claims of the default report, and of the study's once its `sections` were asked for."""
        return default_ledger(self)

    @cached_property
    def sections(self) -> list[tuple[Section, list[tuple[StudyTable, tuple[RenderedSentence, ...]]]]]:
        """The study's report: each section, its parts, and the sentences of each that can be said."""
        return [
            (section, [(part, self.ledger.render_sentences(part.sentences)) for part in section.parts])
            for section in study_sections(self)
        ]

    @property
    def everything(self) -> ClaimLedger:
        """Every claim that some report states."""
        tuple(self.sections)  # asking for them settles them
        return self.ledger


def default_ledger(book: StudyData) -> ClaimLedger:
    """What the default report states outside of its tables."""
    ledger = ClaimLedger(book.read.rows, book.names)
    by_criteria = criteria_sentences(book.read.table("criteria"))
    tested = by_criteria or outcome_sentences(book.read.table("paired"))
    counted = (*tested, *alert_sentences(book.read.table("alarms")))
    ledger.render_sentences([_floor(), *counted])
    ledger.render_sentences(
        Sentence(f"best_{model}", "{quant}: {reason}", _both(f"decision.json#best/{escaped(model)}", "quant", "reason"))
        for model in book.models
    )
    for key in ("notes", "constraints"):
        rows = book.read.rows(f"decision.json#{key}") or ()
        given = [row for row in rows if any(row.values())]
        ledger.render_sentences(
            Sentence(f"{key}_{row.get('index', name)}", f"{formats.words(name)}: {{value}}",
                     {"value": Citation(f"decision.json#{key}", f"index={row['index']}" if "index" in row else "",
                                        name)})
            for row in given for name, value in row.items() if value and name != "index"
        )  # fmt: skip
    return ledger


def _both(artefact: str, *columns: str) -> dict[str, Citation]:
    return {column: Citation(artefact, "", column) for column in columns}


def _floor() -> Sentence:
    return Sentence(
        "decision_floor",
        "Conservative floor: {quant}. Its largest refusal signal is {signal}.",
        {
            "quant": Citation("decision.json#floor", "", "quant"),
            "signal": Citation("decision.json#floor", "", "max_refusal_signal_pp", unit="pp"),
        },
    )
