"""Everything that the reports of a bundle state, as one ledger: the default report and the study's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from quantverdict.protocol.claims import escaped
from quantverdict.protocol.document import refuse_other_schema
from quantverdict.report import formats
from quantverdict.report.alarms import alarm_sentences
from quantverdict.report.artefacts import Artefacts
from quantverdict.report.instruments import judges
from quantverdict.report.ledger import Cite, Ledger, Said, Sentence
from quantverdict.report.outcomes import outcome_sentences
from quantverdict.report.study import Book, Part, Section
from quantverdict.report.study_measures import appendices, quality, safety
from quantverdict.report.study_protocol import limits, protocol, regimes, validation
from quantverdict.report.study_relations import bits, interaction, mechanism, synthesis

SECTIONS = (
    validation, quality, safety, interaction, bits, protocol, regimes, mechanism, synthesis, limits, appendices,
)  # fmt: skip
"""The sections of the study's report, in order."""


def study_sections(book: Book) -> tuple[Section, ...]:
    """The study's report as sections of tables."""
    return tuple(section(book) for section in SECTIONS)


@dataclass(frozen=True)
class Told:
    """What the reports of a bundle state, each sentence settled once, when it is asked for."""

    book: Book

    @cached_property
    def ledger(self) -> Ledger:
        """The claims of the default report, and of the study's once its `sections` were asked for."""
        return default_ledger(self.book)

    @cached_property
    def judges(self) -> Mapping[str, Sequence[str]]:
        """Each rate by judges to its judges."""
        return judges(self.book.read)

    @cached_property
    def sections(self) -> list[tuple[Section, list[tuple[Part, tuple[Said, ...]]]]]:
        """The study's report: each section, its parts, and the sentences of each that can be said."""
        with formats.judged_by(self.judges):
            return [
                (section, [(part, self.ledger.say_all(part.sentences)) for part in section.parts])
                for section in study_sections(self.book)
            ]

    @property
    def everything(self) -> Ledger:
        """Every claim that some report states."""
        tuple(self.sections)  # asking for them settles them
        return self.ledger


def told_of(root: Path) -> Told:
    """What the reports of the bundle at `root` state, as its artefacts are.

    Raises:
        BundleError: its decision is of another version, or cannot be read.
    """
    book = Book(Artefacts(root))
    if book.read.rows("decision.json") is not None:
        refuse_other_schema(book.decision, root / "decision.json")
    return Told(book)


def ledger_of(root: Path) -> Ledger:
    """Every claim that some report of a bundle states.

    Raises:
        BundleError: an artefact cannot be read.
    """
    return told_of(root).everything


def default_ledger(book: Book) -> Ledger:
    """What the default report states outside of its tables."""
    ledger = Ledger(book.read.rows)
    counted = (*outcome_sentences(book.read.table("paired")), *alarm_sentences(book.read.table("alarms")))
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
