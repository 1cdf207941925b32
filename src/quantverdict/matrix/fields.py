"""One record of a CSV, read field by field; what is wrong is said with file, line, column and what was expected."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import NamedTuple, TypeVar

from quantverdict.errors import DataError

Parsed = TypeVar("Parsed")


class Cell(NamedTuple):
    """A field of the CSV and where it stands."""

    text: str
    column: str
    line: int
    file: str

    def error(self, problem: str, expected: str) -> DataError:
        return DataError(problem, file=self.file, line=self.line, field=self.column, expected=expected)


class Line:
    """One record of the CSV, read field by field."""

    def __init__(self, fields: Mapping[str, str], line: int, file: str) -> None:
        self.fields, self.line, self.file = fields, line, file

    def cell(self, column: str) -> Cell | None:
        """The field, None where it is blank or the file has no such column."""
        text = self.fields.get(column, "").strip()
        return Cell(text, column, self.line, self.file) if text else None

    def parse(self, column: str, parser: Callable[[Cell], Parsed]) -> Parsed | None:
        cell = self.cell(column)
        return None if cell is None else parser(cell)

    def name(self, column: str) -> str:
        cell = self.cell(column)
        if cell is None:
            raise self.error(column, "blank", "a name")
        return cell.text

    def flag(self, column: str) -> bool:
        cell = self.cell(column)
        if cell is None or cell.text.lower() not in {"0", "1", "true", "false"}:
            raise self.error(column, "blank" if cell is None else f"{cell.text[:40]!r} is not right", "1 or 0")
        return cell.text.lower() in {"1", "true"}

    def error(self, column: str, problem: str, expected: str) -> DataError:
        return Cell("", column, self.line, self.file).error(problem, expected)


_DECIMAL = re.compile(r"[+-]?([0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})([eE][+-]?[0-9]{1,3})?")
"""A finite number, of a length that nobody has to wait for."""


def number(cell: Cell) -> Fraction:
    if not _DECIMAL.fullmatch(cell.text):
        raise cell.error(f"{cell.text[:40]!r} is not a finite number", "a decimal such as 0.646, or blank")
    return Fraction(cell.text)


def positive(cell: Cell) -> Fraction:
    value = number(cell)
    if value <= 0:
        raise cell.error(f"{cell.text} is not right", "a number above 0, or blank")
    return value


def positive_finite(cell: Cell) -> float:
    return float(positive(cell))


def finite(cell: Cell) -> float:
    value = float(cell.text) if _DECIMAL.fullmatch(cell.text) else float(number(cell))
    if math.isinf(value):
        raise cell.error(f"{cell.text} is not a finite number", "a decimal such as 0.646, or blank")
    return value


def count(cell: Cell) -> int:
    if cell.text.isdecimal() and cell.text.isascii() and len(cell.text) <= 18:
        return int(cell.text)
    value = number(cell)
    if value.denominator != 1 or value < 0:
        raise cell.error(f"{cell.text} is not a count", "a whole number of samples")
    return value.numerator
