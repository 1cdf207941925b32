"""Claims: every number that the report states, with the artefact, rows and column behind it, and how to recompute it.

A claim is an aggregate of one column over the rows that a filter selects. Values are compared as texts, exactly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from urllib.parse import quote, unquote

from quantverdict.records import Table
from quantverdict.yaml_file import exact

Rows = Sequence[Mapping[str, str]]
Reader = Callable[[str], Rows | None]
"""The rows of an artefact by its name, None where the bundle has none."""

COLUMNS = ("claim_id", "text", "artefact", "row", "column", "aggregate", "value", "unit")
KEYS = ("base_model", "quant", "scope", "omitted", "metric", "quality_metric", "safety_metric", "random", "step", "id")
"""Columns that say which row it is, in the order in which a row is named by them."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A number that the report states, or a name that it rests on.

    Attributes:
        claim_id: unique in the ledger.
        text: the sentence that states it, claims in square brackets.
        artefact: a file of the bundle; `FILE.json#a/b` is what stands at a key path of a JSON document.
        row: conditions such as `base_model=phi-2;quant=AWQ|GPTQ;p_value<0.05`; empty selects every row.
        column: what is aggregated; may be empty for a count.
        aggregate: a key of `AGGREGATES`.
        value: as text, empty where it is not known.
        unit: how it is written.
    """

    claim_id: str
    text: str
    artefact: str
    row: str
    column: str
    aggregate: str
    value: str = ""
    unit: str = ""


def resolve_claim(claim: Claim, read: Reader) -> Claim:
    """The claim with the value that the artefact gives."""
    return replace(claim, value=value_of(claim, read))


def value_of(claim: Claim, read: Reader) -> str:
    """What the artefact gives for a claim; empty where the artefact, the rows or their values are missing.

    Raises:
        ValueError: the claim's filter or aggregate is none.
    """
    if claim.aggregate not in AGGREGATES:
        raise ValueError(f"no aggregate {claim.aggregate!r}; there are {', '.join(AGGREGATES)}")
    conditions = parse_row(claim.row)
    rows = read(claim.artefact)
    if rows is None:
        return ""
    chosen = rows
    for holds in conditions:
        chosen = [row for row in chosen if holds(row)]
    return AGGREGATES[claim.aggregate](ClaimSelection(chosen, claim.column, fixed_columns(claim.row)))


def broken(claims: Iterable[Claim], read: Reader) -> list[str]:
    """The claims that no longer hold, each with what it says and what its artefact gives."""
    problems = []
    for claim in claims:
        try:
            now = value_of(claim, read)
        except ValueError as error:
            problems.append(f"claims.csv: claim {claim.claim_id}: {error}")
            continue
        if now != claim.value:
            where = f"{claim.artefact}, row {claim.row or '(all)'}, {claim.aggregate} of {claim.column or 'rows'}"
            problems.append(
                f"claims.csv: claim {claim.claim_id} says {claim.value or 'nothing'}; {where} gives {now or 'nothing'}"
            )
    return problems


def claims_table(claims: Iterable[Claim]) -> Table:
    """`claims.csv`."""
    return Table("claims", COLUMNS, tuple(tuple(getattr(claim, name) for name in COLUMNS) for claim in claims))


def claims_of(rows: Rows) -> tuple[Claim, ...]:
    """The claims of a `claims.csv`."""
    return tuple(Claim(**{name: row.get(name) or "" for name in COLUMNS}) for row in rows)


# Filters

_CONDITION = re.compile(r"([A-Za-z_][A-Za-z0-9_.]*)(!=|<=|>=|=|<|>)(.*)", re.DOTALL)
_TESTS: Mapping[str, Callable[[Fraction, Fraction], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def where(**columns: object) -> str:
    """A filter for rows whose columns have these values; a tuple admits any of its values."""
    parts = []
    for column, value in columns.items():
        values = value if isinstance(value, tuple) else (value,)
        parts.append(f"{column}={'|'.join(escaped(each) for each in values)}")
    return ";".join(parts)


def escaped(value: object) -> str:
    """A value as a filter holds it."""
    return quote(str(value), safe=" /()+,:@&$*~'\"?#[]{}")


def parse_row(row: str) -> list[Callable[[Mapping[str, str]], bool]]:
    """The conditions of a filter.

    Raises:
        ValueError: not a filter.
    """
    return [_condition(part) for part in row.split(";") if part]


def fixed_columns(row: str) -> frozenset[str]:
    """The columns that a filter binds to one value."""
    found = [_CONDITION.fullmatch(part) for part in row.split(";")]
    return frozenset(one[1] for one in found if one and one[2] == "=" and "|" not in one[3])


def _condition(text: str) -> Callable[[Mapping[str, str]], bool]:
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a condition such as quant=Q8_0")
    column, sign, value = found.groups()
    if sign in _TESTS:
        test, limit = _TESTS[sign], number(unquote(value))
        if limit is None:
            raise ValueError(f"{text!r} is not a condition such as p<0.05")
        return lambda row: (known := number(row.get(column))) is not None and test(known, limit)
    allowed = {unquote(each) for each in value.split("|")}
    if sign == "=":
        return lambda row: (row.get(column) or "") in allowed
    return lambda row: (row.get(column) or "") not in allowed


# Aggregates


@dataclass(frozen=True, slots=True)
class ClaimSelection:
    """The selected rows, the column that is asked for, and the columns that the filter binds."""

    rows: Rows
    column: str
    bound: frozenset[str]

    @property
    def texts(self) -> list[str]:
        return [value for row in self.rows if (value := row.get(self.column) or "")]

    @property
    def numbers(self) -> list[tuple[Fraction, str, Mapping[str, str]]]:
        """Numbers of the column as exact values, as texts, and their rows."""
        found = []
        for row in self.rows:
            value = number(row.get(self.column))
            if value is not None:
                found.append((value, row[self.column], row))
        return found

    def name(self, row: Mapping[str, str]) -> str:
        """What a row is called: its keys that the filter leaves open."""
        return " ".join(row[key] for key in KEYS if row.get(key) and key not in self.bound)


@lru_cache(1 << 16)
def number(text: str | None) -> Fraction | None:
    """A decimal or a fraction as the exact number it is; None for anything else."""
    return exact(text) if text else None


def _only(chosen: ClaimSelection) -> str:
    return chosen.rows[0].get(chosen.column) or "" if len(chosen.rows) == 1 else ""


def _count(chosen: ClaimSelection) -> str:
    """Rows; with a column, the rows that have a value in it."""
    return str(len(chosen.texts) if chosen.column else len(chosen.rows))


def _extreme(
    best: Callable[..., tuple[Fraction, str, Mapping[str, str]]], size: Callable[[Fraction], Fraction] = lambda v: v
) -> Callable[[ClaimSelection], tuple[str, str]]:
    """Text and row name of the extreme of the column; the first of equals."""

    def find(chosen: ClaimSelection) -> tuple[str, str]:
        numbers = chosen.numbers
        if not numbers:
            return "", ""
        _, text, row = best(numbers, key=lambda one: size(one[0]))
        return text, chosen.name(row)

    return find


_least, _most, _farthest = _extreme(min), _extreme(max), _extreme(max, abs)


def _median(chosen: ClaimSelection) -> str:
    """The middle value, or the mean of the two in the middle to 12 places."""
    ordered = sorted(value for value, _, _ in chosen.numbers)
    if not ordered:
        return ""
    middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]
    return decimal(sum(middle, Fraction(0)) / len(middle))


def decimal(value: Fraction) -> str:
    """A number as a decimal of at most 12 places."""
    return f"{float(value):.12f}".rstrip("0").rstrip(".")


AGGREGATES: Mapping[str, Callable[[ClaimSelection], str]] = {
    "value": _only,
    "count": _count,
    "distinct": lambda chosen: str(len(set(chosen.texts))),
    "min": lambda chosen: _least(chosen)[0],
    "max": lambda chosen: _most(chosen)[0],
    "max_abs": lambda chosen: _farthest(chosen)[0],
    "at_min": lambda chosen: _least(chosen)[1],
    "at_max": lambda chosen: _most(chosen)[1],
    "at_max_abs": lambda chosen: _farthest(chosen)[1],
    "median": _median,
    "sum": lambda chosen: decimal(sum((value for value, _, _ in chosen.numbers), Fraction(0))),
    "names": lambda chosen: ", ".join(chosen.name(row) for row in chosen.rows),
}
"""`value` is of the only row; `at_` names the row of the extreme, `names` every row, by the keys left open."""
