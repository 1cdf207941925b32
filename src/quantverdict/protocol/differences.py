"""What changed from one bundle of a study to another: verdicts, deltas, answers, and what made them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from quantverdict.records import CellId
from quantverdict.yaml_file import exact

ACTION = "action"
Cells = Mapping[CellId, Mapping[str, Any]]
Texts = Mapping[tuple[str, str], str]
"""The answers of a cell by task and sample."""


class Change(NamedTuple):
    """A value that is another; None where one bundle has none."""

    what: str
    before: str | None
    after: str | None


class CellChange(NamedTuple):
    """What was decided otherwise: the action (`ACTION`), or the outcome of a metric."""

    cell: CellId
    what: str
    before: str | None
    after: str | None


class CriterionChange(NamedTuple):
    """A row of a build's criteria that is another, `safety` or `safety/truthfulness` of a member.

    Attributes:
        before, after: outcome, p-value of acceptance and delta in pp; None where one bundle has no such row.
    """

    cell: CellId
    name: str
    before: CriterionFigures | None
    after: CriterionFigures | None


class CriterionFigures(NamedTuple):
    """What is compared of a criterion; None where it was not tested."""

    outcome: str
    p_accept: float | None
    delta_pp: float | None


class DeltaChange(NamedTuple):
    """A delta that is another, in pp; `moved` is `after - before`, exact, None where one bundle has none."""

    cell: CellId
    metric: str
    before: Fraction | None
    after: Fraction | None

    @property
    def moved(self) -> Fraction | None:
        return None if self.before is None or self.after is None else self.after - self.before


class AnswerChanges(NamedTuple):
    """How many answers of a cell are the same text, and how many prompts only one bundle has an answer to."""

    cell: CellId
    equal: int
    changed: int
    only_one: int

    @property
    def share(self) -> Fraction | None:
        """Of the prompts that both answered, those answered otherwise; None where there are none."""
        both = self.equal + self.changed
        return Fraction(self.changed, both) if both else None


@dataclass(frozen=True, slots=True)
class BundleDiff:
    """From bundle `one` to bundle `two`.

    Attributes:
        verdicts: actions and outcomes that changed, cells that only one bundle has among them.
        criteria: rows of criteria that changed, in the order of the study.
        moves: deltas of shares that changed, the largest first.
        answers: of every cell that answered in both.
        engines, settings: what made the answers, and what the study and its policy say otherwise.
        cells: how many both bundles have.
        judges: of either bundle, each rate by judges to those whose labels it counts.
    """

    one: str
    two: str
    study: str
    cells: int
    verdicts: tuple[CellChange, ...]
    moves: tuple[DeltaChange, ...]
    answers: tuple[AnswerChanges, ...]
    engines: tuple[Change, ...]
    settings: tuple[Change, ...]
    judges: tuple[Mapping[str, tuple[str, ...]], Mapping[str, tuple[str, ...]]] = ({}, {})
    criteria: tuple[CriterionChange, ...] = ()


def changed_verdicts(one: Cells, two: Cells) -> tuple[CellChange, ...]:
    """Actions and outcomes that are others, in study order."""
    found = []
    for cell in dict.fromkeys([*one, *two]):
        before, after = (dict(_verdicts(cells.get(cell))) for cells in (one, two))
        found += [CellChange(cell, *change) for change in changes(before, after)]
    return tuple(found)


def _verdicts(document: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """A cell that did not run is decided on too: it is `failed`, or a `duplicate`."""
    if document is not None:
        yield ACTION, document["action"] or document["status"]
        yield from ((one["metric"], one["outcome"]) for one in document["outcomes"] or ())


def changed_criteria(one: Cells, two: Cells) -> tuple[CriterionChange, ...]:
    """Criteria and members of the builds that both have, whose outcome, p-value or delta is another."""
    found = []
    for cell in (cell for cell in one if cell in two):
        before, after = (_figures(cells[cell]) for cells in (one, two))
        found += [
            CriterionChange(cell, name, before.get(name), after.get(name))
            for name in dict.fromkeys([*before, *after])
            if before.get(name) != after.get(name)
        ]
    return tuple(found)


def _figures(document: Mapping[str, Any]) -> dict[str, CriterionFigures]:
    return {
        row["name"]: CriterionFigures(row["outcome"], row["p_accept"], row["delta_pp"])
        for row in document.get("criteria") or ()
    }


def moved_deltas(one: Iterable[Mapping[str, str]], two: Iterable[Mapping[str, str]]) -> tuple[DeltaChange, ...]:
    """Deltas in pp that are others, those that one bundle lacks last; rows of `deltas.csv`."""
    before, after = (
        {(CellId(row["base_model"], row["quant"]), row["metric"]): exact(row["delta"]) for row in rows
         if row["unit"] == "pp"}
        for rows in (one, two)
    )  # fmt: skip
    moves = [DeltaChange(*key, before.get(key), after.get(key)) for key in dict.fromkeys([*before, *after])]
    different = [move for move in moves if move.before != move.after]
    return tuple(sorted(different, key=lambda move: (move.moved is None, -abs(move.moved or 0), move.cell)))


def compared_answers(cell: CellId, one: Texts, two: Texts) -> AnswerChanges:
    """Text by text."""
    both = one.keys() & two.keys()
    equal = sum(one[key] == two[key] for key in both)
    return AnswerChanges(cell, equal, len(both) - equal, len(one.keys() ^ two.keys()))


def changes(one: Mapping[str, str], two: Mapping[str, str]) -> tuple[Change, ...]:
    """Keys with another value."""
    keys = dict.fromkeys([*one, *two])
    return tuple(Change(key, one.get(key), two.get(key)) for key in keys if one.get(key) != two.get(key))
