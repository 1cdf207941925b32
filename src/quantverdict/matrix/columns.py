"""The schema of the matrix: every metric's meaning, unit, direction and interval; the CSV in and out.

A proportion is kept as its count; any other value as the decimal that it is printed as. Blank is missing.
"""

from __future__ import annotations

import csv
import difflib
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, TypeVar

from quantverdict.errors import DataError
from quantverdict.records import CellId, Estimate, Matrix, Metric, Row, Table, Value
from quantverdict.registry import METRICS
from quantverdict.registry.listing import load_plugins
from quantverdict.yaml_file import decoded

# One record of a CSV, read field by field; what is wrong is said with file, line, column and what was expected.

Parsed = TypeVar("Parsed")


class Cell(NamedTuple):
    """A field of the CSV and where it stands."""

    text: str
    column: str
    line: int
    file: str

    def error(self, problem: str, expected: str) -> DataError:
        return DataError(problem, file=self.file, line=self.line, field=self.column, expected=expected)


class CsvRecord:
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
            raise self.error(column, "blank" if cell is None else f"{cell.text[:40]!r} is not valid", "1 or 0")
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
        raise cell.error(f"{cell.text} is not valid", "a number above 0, or blank")
    return value


def positive_finite(cell: Cell) -> float:
    positive(cell)
    return finite(cell)


def finite(cell: Cell) -> float:
    value = float(cell.text) if _DECIMAL.fullmatch(cell.text) else float(number(cell))
    if math.isinf(value):
        raise cell.error(f"{cell.text} is not a finite number", "a decimal such as 0.646, or blank")
    return value


def count(cell: Cell) -> int:
    value = number(cell)
    if value.denominator != 1 or value < 0:
        raise cell.error(f"{cell.text} is not a count", "a whole number of samples")
    return value.numerator


__all__ = ["METRICS", "Metric"]

DECIMALS = 12
"""Places kept of a mean, in memory as in the CSV, so that both decide alike."""

ROUNDED = Fraction(1, 1000)
"""How far a share may stand beyond its range, being the sum of others that were rounded; it is said where one does."""

IDENTITY = ("base_model", "family", "params_b", "quant", "bpw", "is_baseline")
REQUIRED = ("base_model", "quant", "is_baseline")
SUFFIXES = ("_k", "_n", "_ci_lo", "_ci_hi")


def matrix_order(row: Row) -> tuple[str, bool, Fraction, str]:
    """Sort key of the matrix: by base model; its baseline first, then from most to fewest bits."""
    return (row.base_model, not row.is_baseline, Fraction(-1) if row.bpw is None else -row.bpw, row.quant)


def baselines(matrix: Iterable[Row]) -> dict[str, Row]:
    """The baseline row of each base model."""
    return {row.base_model: row for row in matrix if row.is_baseline}


def references(matrix: Iterable[Row]) -> dict[CellId, Row]:
    """What each row's `paired_metrics` are compared with: its baseline's, over the same prompts."""
    rows = tuple(matrix)
    base = baselines(rows)
    return {
        row.cell: base[row.base_model]
        if row.shared is None
        else replace(base[row.base_model], metrics=row.shared.metrics)
        for row in rows
        if row.base_model in base
    }


def decimal(value: float | Fraction) -> Fraction:
    """A measured number as the decimal of `DECIMALS` places that the CSV shows."""
    return Fraction(round(Fraction(value) * 10**DECIMALS), 10**DECIMALS)


# Writing


def matrix_table(matrix: Matrix) -> Table:
    """The matrix as `matrix.csv`: the metrics that some row has, four columns each, a proportion five."""
    metrics = [metric for metric in METRICS.values() if any(metric.name in row.metrics for row in matrix)]
    columns = [*IDENTITY, *(column for metric in metrics for column in _columns_of(metric))]
    rows = tuple(tuple(_cells_of(row, metrics)) for row in matrix)
    return Table("matrix", tuple(columns), rows)


def _columns_of(metric: Metric) -> tuple[str, ...]:
    name = metric.name
    count = (f"{name}_k",) if metric.proportion else ()
    return (name, *count, f"{name}_n", f"{name}_ci_lo", f"{name}_ci_hi")


def _cells_of(row: Row, metrics: Iterable[Metric]) -> Iterator[Value]:
    yield from (row.base_model, row.family, row.params_b, row.quant, row.bpw, row.is_baseline)
    for metric in metrics:
        found = row.metrics.get(metric.name)
        if found is None:
            yield from (None,) * len(_columns_of(metric))
        else:
            yield found.value
            if metric.proportion:
                yield found.k
            yield from (found.n, found.lo, found.hi)


# Reading


def read_matrix(path: Path) -> Matrix:
    """Read a matrix CSV (SPEC 10); rows come back in `matrix_order`, whatever their order in the file.

    Raises:
        DataError: with file, line, column and what was expected.
    """
    try:
        text = decoded(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error})", file=path, expected="a UTF-8 CSV file") from error
    return parse_matrix(text, str(path))


def parse_matrix(text: str, file: str = "matrix.csv") -> Matrix:
    """`read_matrix` for text that is already in memory."""
    lines = _records(text, file)
    rows = [(line.line, _row(line)) for line in lines]
    if not rows:
        raise DataError("has no rows", file=file, line=1, expected="a header and one row a cell")
    _refuse_duplicates(rows, file)
    _refuse_wrong_baselines(rows, file)
    return tuple(sorted((row for _, row in rows), key=matrix_order))


def _records(text: str, file: str) -> Iterator[CsvRecord]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(header, file)
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                raise DataError(f"{len(fields)} fields", file=file, line=reader.line_num, expected=f"{len(header)}")
            yield CsvRecord(dict(zip(header, fields, strict=True)), reader.line_num, file)
    except csv.Error as error:
        raise DataError(f"not valid CSV: {error}", file=file, line=reader.line_num, expected="RFC 4180") from error


def _check_header(header: list[str], file: str) -> None:
    known = _known_columns()
    if not known.issuperset(header):
        load_plugins()
        known = _known_columns()
    for column in header:
        if header.count(column) > 1:
            raise DataError("given twice", file=file, line=1, field=column or "(blank)", expected="each column once")
        if column not in known:
            raise DataError("unknown column", file=file, line=1, field=column or "(blank)",
                            expected=_suggestion(column, known))  # fmt: skip
    for column in REQUIRED:
        if column not in header:
            raise DataError("missing column", file=file, line=1, field=column, expected=", ".join(IDENTITY))


def _known_columns() -> set[str]:
    return {*IDENTITY, *(column for metric in METRICS.values() for column in _columns_of(metric))}


def _suggestion(column: str, known: set[str]) -> str:
    metric = METRICS.get(column.removesuffix("_k"))
    if metric is not None:
        return f"{', '.join(_columns_of(metric))}: it is a mean, not a proportion"
    close = difflib.get_close_matches(column, sorted(known), n=1)
    return f"a metric of the schema, perhaps {close[0]}" if close else "a metric of the schema"


def _row(line: CsvRecord) -> Row:
    metrics = {}
    for metric in METRICS.values():
        estimate = _estimate(line, metric)
        if estimate is not None:
            metrics[metric.name] = estimate
    return Row(
        base_model=line.name("base_model"),
        family=line.fields.get("family", "").strip(),
        params_b=line.parse("params_b", positive_finite),
        quant=line.name("quant"),
        bpw=line.parse("bpw", positive),
        is_baseline=line.flag("is_baseline"),
        metrics=metrics,
    )


def _estimate(line: CsvRecord, metric: Metric) -> Estimate | None:
    name = metric.name
    value, n = line.parse(name, number), line.parse(f"{name}_n", count)
    k = line.parse(f"{name}_k", count) if metric.proportion else None
    lo, hi = line.parse(f"{name}_ci_lo", finite), line.parse(f"{name}_ci_hi", finite)
    if k is not None:
        value = _exact_rate(line, metric, value, k, n)
    if value is None:
        for column in (f"{name}_n", f"{name}_ci_lo", f"{name}_ci_hi"):
            if line.cell(column) is not None:
                raise line.error(column, f"given without {name}", "a value too, or blank where nothing was measured")
        return None
    if n == 0:
        raise line.error(f"{name}_n", "0", "at least 1, or blank")
    _check_range(line, metric, value)
    if (lo is None) != (hi is None) or (lo is not None and hi is not None and lo > hi):
        raise line.error(f"{name}_ci_lo", "not an interval", f"{name}_ci_lo <= {name}_ci_hi, or both blank")
    return Estimate(value=value, lo=lo, hi=hi, n=n, k=k)


def _exact_rate(line: CsvRecord, metric: Metric, value: Fraction | None, k: int, n: int | None) -> Fraction:
    name = metric.name
    if n is None:
        raise line.error(f"{name}_n", f"missing beside {name}_k", "the number of graded samples")
    if not 0 < n >= k:
        column, problem = (f"{name}_n", str(n)) if n == 0 else (f"{name}_k", f"{k} of {n}")
        raise line.error(column, problem, f"0 <= {name}_k <= {name}_n, and at least one sample")
    exact = Fraction(k, n)
    cell = line.cell(name)
    if value is not None and cell is not None and abs(value - exact) > _rounding(cell.text):
        raise cell.error(f"{cell.text} is not {k}/{n}", f"{float(exact):.6g}, as {name}_k and {name}_n say")
    return exact


def _rounding(text: str) -> Fraction:
    """Half a unit of the last printed place; a rate printed to fewer than two places does not loosen it further."""
    mantissa, _, exponent = text.lower().partition("e")
    places = len(mantissa.partition(".")[2]) - int(exponent or 0)
    return Fraction(1, 2 * 10 ** max(places, 2))


def _check_range(line: CsvRecord, metric: Metric, value: Fraction) -> None:
    """Shares stand in 0..1, up to the rounding of what they were computed from; a cosine may be negative."""
    if metric.is_share:
        low, high = _bounds(metric)
        if not low - ROUNDED <= value <= high + ROUNDED:
            raise line.error(metric.name, f"{float(value):g}", "a share of 1 (0.64, not 64 or 64 %)")
    elif value < 0 and metric.unit != "nats":
        raise line.error(metric.name, f"{float(value):g}", f"a number of {metric.unit}, at least 0")


def _bounds(metric: Metric) -> tuple[int, int]:
    return (-1 if metric.tier == "generation" else 0, 1)


def beyond_bounds(row: Row) -> Iterator[tuple[str, Fraction]]:
    """Shares of a row that rounding put beyond what a share can be: they are kept as they were given."""
    for name, found in row.metrics.items():
        metric = METRICS[name]
        low, high = _bounds(metric)
        if metric.is_share and not low <= found.value <= high:
            yield name, found.value


def _refuse_duplicates(rows: list[tuple[int, Row]], file: str) -> None:
    first: dict[CellId, int] = {}
    for line, row in rows:
        if row.cell in first:
            raise DataError(f"{row.cell} is given twice, first on line {first[row.cell]}", file=file, line=line,
                            field="quant", expected="each cell once")  # fmt: skip
        first[row.cell] = line


def _refuse_wrong_baselines(rows: list[tuple[int, Row]], file: str) -> None:
    for model in dict.fromkeys(row.base_model for _, row in rows):
        lines = [line for line, row in rows if row.base_model == model and row.is_baseline]
        if len(lines) != 1:
            first = next(line for line, row in rows if row.base_model == model)
            found = f"{len(lines)} baselines of {model}" + (f" (lines {', '.join(map(str, lines))})" if lines else "")
            raise DataError(found, file=file, line=lines[1] if lines else first, field="is_baseline",
                            expected="exactly one a base model")  # fmt: skip
