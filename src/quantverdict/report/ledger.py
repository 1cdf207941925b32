"""The claim ledger: what the report's sentences state, each number settled from its artefact and written one way.

A sentence is text with claims in braces; it is said only where every claim in it has a value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from markupsafe import Markup

from quantverdict.protocol.claims import Claim, Reader, settle
from quantverdict.report import formats
from quantverdict.report.tables import readable


@dataclass(frozen=True, slots=True)
class Cite:
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
    cites: Mapping[str, Cite]


@dataclass(frozen=True, slots=True)
class Said:
    """A sentence that can be said: its parts in order, text and settled claims."""

    parts: tuple[str | Claim, ...]


@dataclass(frozen=True, slots=True)
class Ledger:
    """The settled claims of a report, by id."""

    read: Reader
    claims: dict[str, Claim] = field(default_factory=dict)

    def say(self, sentence: Sentence) -> Said | None:
        """A sentence with its numbers, None where one of them is not known; its claims join the ledger."""
        subject = re.sub(r"\{(\w+)\}", r"[\1]", sentence.text)
        settled = {
            name: settle(self._claim(f"{sentence.name}_{name}", subject, cite), self.read)
            for name, cite in sentence.cites.items()
        }
        if not all(claim.value for claim in settled.values()):
            return None
        self.claims.update((claim.claim_id, claim) for claim in settled.values())
        pieces = re.split(r"\{(\w+)\}", sentence.text)
        return Said(tuple(settled[part] if at % 2 else part for at, part in enumerate(pieces)))

    @staticmethod
    def _claim(claim_id: str, subject: str, cite: Cite) -> Claim:
        return Claim(claim_id, subject, cite.artefact, cite.row, cite.column, cite.aggregate, unit=cite.unit)

    def say_all(self, sentences: Iterable[Sentence]) -> tuple[Said, ...]:
        """Those of the sentences that can be said."""
        return tuple(said for sentence in sentences if (said := self.say(sentence)) is not None)


def sources(claim: Claim) -> str:
    """The artefact, row and column behind a claim, for a pointer over it."""
    rows = f"row {claim.row}" if claim.row else "all rows"
    of = f" of {claim.column}" if claim.column else ""
    return f"{claim.claim_id}: {claim.artefact}, {rows}, {claim.aggregate}{of}"


# How a claim is written


def written(claim: Claim) -> str:
    """A claim's value in its unit."""
    known = formats.number(claim.value)
    if known is None or claim.unit not in WRITERS:
        return readable(claim.value)
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


def marked(claim: Claim) -> Markup:
    """A claim in HTML: its number, with its id and its source."""
    look = "claim list" if claim.aggregate == "names" else "claim"
    return Markup('<span class="{}" data-claim="{}" title="{}">{}</span>').format(
        look, claim.claim_id, sources(claim), written(claim)
    )


def spoken(said: Said) -> str:
    """A sentence as plain text."""
    return "".join(part if isinstance(part, str) else written(part) for part in said.parts)


def spoken_marked(said: Said) -> Markup:
    """A sentence in HTML, its claims marked."""
    return Markup("").join(part if isinstance(part, str) else marked(part) for part in said.parts)
