"""Tables of samples of no tool's format: CSV read row by row, and what the columns of any table are taken for."""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantverdict.errors import DataError, did_you_mean, one_of
from quantverdict.ingestion.logs import HIGHER, LogFile, LoggedMetric, LogOptions, known_unit
from quantverdict.ingestion.rows import (
    Block,
    InvalidRow,
    RowFields,
    as_number,
    as_utf8,
    read_blocks,
    reading_errors,
    schema_of,
)
from quantverdict.registry import METRICS
from quantverdict.tasks.data import json_object
from quantverdict.yaml_file import encoding_of

if TYPE_CHECKING:
    from _csv import Reader

CSV_ROWS = 1 << 16
LONGEST = 2**31 - 1
"""Characters of a field of a CSV file."""


def csv_blocks(path: Path, wanted: RowFields) -> Iterator[Block]:
    """A header and a row a record, separated by comma, semicolon or tab; an empty field is nothing."""
    import polars as pl

    records = csv_records(path, wanted)
    while some := list(islice(records, CSV_ROWS)):
        rows: list[tuple[object, ...]] = []
        texts: list[str] = []
        broken: list[InvalidRow] = []
        for number, fields, values in some:
            text = ",".join(fields)
            try:
                rows.append((number, *values()))
                texts.append(text)
            except ValueError as error:
                broken.append(InvalidRow(number, str(error), text))
        frame = pl.DataFrame(rows, schema=schema_of(wanted), orient="row")
        yield Block(frame, len(some), tuple(broken), texts)


def csv_records(path: Path, wanted: RowFields) -> Iterator[tuple[int, list[str], Callable[[], list[object]]]]:
    """(line on which a record begins, its fields, what gives the wanted values)."""
    with csv_reader(path) as reader:
        header = [name.strip() for name in next(reader, [])]
        for column in wanted.columns.values():
            if header.count(column) != 1:
                problem = "given twice" if column in header else "no such column"
                raise DataError(problem, file=path, line=1, field=column, expected=one_of(column, header))
        places = [(column, header.index(column), name in wanted.numbers) for name, column in wanted.columns.items()]
        for line, fields in _numbered(reader, reader.line_num + 1):
            yield line, fields, partial(_csv_values, fields, len(header), places)


@contextmanager
def csv_reader(path: Path) -> Iterator[Reader]:
    """A CSV file whose delimiter is the commonest of its header.

    Raises:
        DataError: it cannot be read.
    """
    csv.field_size_limit(LONGEST)
    try:
        with path.open("rb") as file:
            encoding = encoding_of(file.read(4))
            file.seek(0)
            text = io.TextIOWrapper(file, encoding=encoding, newline="")
            head = text.readline()
            text.seek(0)
            yield csv.reader(text, delimiter=max(",;\t", key=head.count), strict=True)
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"cannot be read ({error})", file=path, expected="CSV in UTF-8") from error


def _csv_values(fields: list[str], count: int, places: list[tuple[str, int, bool]]) -> list[object]:
    if len(fields) != count:
        raise ValueError(f"{len(fields)} fields where {count} are expected")
    return [_csv_value(fields[at], column, number) for column, at, number in places]


def _numbered(reader: Reader, line: int) -> Iterator[tuple[int, list[str]]]:
    """(line on which a record begins, its fields), blank lines left out."""
    for fields in reader:
        if fields:
            yield line, fields
        line = reader.line_num + 1


def _csv_value(text: str, column: str, number: bool) -> object:
    if not number or not text.strip():
        return text or None
    if text.strip().lower() in ("true", "false"):
        return float(text.strip().lower() == "true")
    try:
        value: object = float(text)
    except ValueError:
        value = text
    return as_number(value, column)


# What the columns of a table are

ROLES: Mapping[str, tuple[str, ...]] = {
    "sample_id": ("sample_id", "id", "doc_id", "item_id", "question_id", "example_id", "idx", "index", "key"),
    "prompt_hash": ("prompt_hash", "prompt_sha256", "prompt", "question", "input"),
    "item_hash": ("item_hash", "doc_hash"),
    "task": ("task", "dataset", "benchmark"),
    "cluster": ("cluster",),
    "arm": ("arm", "build", "quant", "variant", "model"),
}
"""Names under which a column is looked for where none is named, the first that is there."""
_PEEK = 200
_IN_NAME = re.compile(r"[\s;=\"'<>|{}]+")


def table_log(path: Path, options: LogOptions) -> Iterator[LogFile]:
    """A table: an id a row, and a column a metric. Columns that everybody knows as metrics by their name are taken, and
    those whose unit was given; others are named.

    Raises:
        DataError: no such column, or none that tells the samples apart.
    """
    form = options.form or ""
    columns = _columns(path, form)
    roles = _roles(path, columns, options)
    arms: tuple[str, ...] = ()
    if (column := roles.pop("arm", None)) is not None:
        arms = _distinct(path, form, column)
        if len(arms) > 1 or "arm" in options.columns:
            roles["cell"] = column
    numbers = {name: kind for name, kind in columns.items() if kind != "text" and name not in roles.values()}
    metrics, others = _metrics(path, numbers, options)
    task = "" if "task" in roles else "samples"
    notes = tuple(
        f"{name} is left out: unit and direction are not known (--unit {name}=UNIT,higher|lower)" for name in others
    )
    yield LogFile(path, form, roles, tuple(metrics), arm="" if "cell" in roles else "".join(arms) or stem_of(path),
                  arms=arms if "cell" in roles else (), task=task, notes=notes)  # fmt: skip


def _metrics(path: Path, numbers: Mapping[str, str], options: LogOptions) -> tuple[list[LoggedMetric], list[str]]:
    """The metrics among columns of numbers, and the columns of which that is not known."""
    metrics, others = [], []
    for name, kind in numbers.items():
        words = {"true": 1.0, "false": 0.0} if kind == "boolean" and options.form != "csv" else {}
        one = LoggedMetric(_IN_NAME.sub("_", name), name, values=words)
        if (
            METRICS.is_registered(one.name)
            or one.name in options.metrics
            or known_unit(one, options).better is not None
        ):
            metrics += [one] if options.takes(one.name) else []
        else:
            others.append(name)
    for name in options.metrics:
        if name not in [one.name for one in metrics]:
            raise DataError("no such column of numbers", file=path, line=1, field=name, expected=one_of(name, numbers))
    if not metrics:
        problem = "no column is known as a metric" if others else "has no column of numbers"
        first = others[0] if others else "NAME"
        expected = f"--unit {first}=share,higher, or a name as {', '.join(HIGHER[1:4])}{did_you_mean(first, HIGHER)}"
        raise DataError(problem, file=path, line=1, field=", ".join(others[:6]) or None, expected=expected)
    return metrics, [] if options.metrics else others


def stem_of(path: Path) -> str:
    """The name of a file without what says its format."""
    return path.name.removesuffix(".gz").rpartition(".")[0] or path.name


def _roles(path: Path, columns: Mapping[str, str], options: LogOptions) -> dict[str, str]:
    roles: dict[str, str] = {}
    for role, names in ROLES.items():
        given = options.columns.get(role)
        if given is not None and given not in columns:
            raise DataError("no such column", file=path, line=1, field=given, expected=one_of(given, columns))
        found = given or next(
            (name for name in names if name in columns and name not in options.columns.values()), None
        )
        if found is not None:
            roles[role] = found
    unknown = next((role for role in options.columns if role not in ROLES), None)
    if unknown is not None:
        raise DataError(f"no role {unknown}", field="--column", expected=f"{one_of(unknown, ROLES)}=COLUMN")
    if "sample_id" not in roles:
        problem = "no column tells its samples apart"
        expected = f"a column {' or '.join(ROLES['sample_id'][:3])}, or --column sample_id=NAME"
        raise DataError(problem, file=path, line=1, field="sample_id", expected=expected)
    return roles


def _columns(path: Path, form: str) -> dict[str, str]:
    """Each column, and whether it holds numbers, booleans or something else, by its first rows."""
    if form == "parquet":
        import polars as pl

        try:
            schema = pl.scan_parquet(path, glob=False).collect_schema()
        except (pl.exceptions.PolarsError, OSError) as error:
            problem = f"cannot be read ({str(error).splitlines()[0]})"
            raise DataError(problem, file=path, expected="Parquet") from error
        return {name: "number" if kind.is_numeric() else "boolean" if kind == pl.Boolean else "text"
                for name, kind in schema.items()}  # fmt: skip
    seen: dict[str, set[str]] = {}
    for row in _first_rows(path, form):
        for name, value in row.items():
            seen.setdefault(name, set()).update(() if value in (None, "") else (_kind(value, csv_=form == "csv"),))
    return {name: kinds.pop() if len(kinds) == 1 else "number" if kinds == {"number", "boolean"} else "text"
            for name, kinds in seen.items()}  # fmt: skip


def _kind(value: object, *, csv_: bool) -> str:
    if isinstance(value, bool) or (csv_ and str(value).strip().lower() in ("true", "false")):
        return "boolean"
    try:
        float(value if csv_ or not isinstance(value, str) else "text")  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return "text"
    return "number"


def _first_rows(path: Path, form: str) -> list[Mapping[str, Any]]:
    if form == "csv":
        with csv_reader(path) as reader:
            header = [name.strip() for name in next(reader, [])]
            rows = [dict(zip(header, fields, strict=False)) for fields in islice(reader, _PEEK)]
        return [dict.fromkeys(header), *rows]
    opener: Callable[..., Any] = gzip.open if form == "jsonl.gz" else open
    with reading_errors(path), opener(path, "rb") as file:
        some = list(islice(as_utf8(file), _PEEK))
    return [_object(content, path, number) for number, content in enumerate(some, 1) if content.strip()]


def _object(content: bytes, path: Path, number: int) -> dict[str, Any]:
    return json_object(content, partial(DataError, file=path, line=number))


def _distinct(path: Path, form: str, column: str) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for block in read_blocks(path, form, RowFields({"arm": column}, {})):
        found |= dict.fromkeys(str(one) for one in block.frame["arm"].drop_nulls().unique(maintain_order=True))
    return tuple(found)
