"""Rows of a source file as they are in it, block by block: the fast path for what is right, line by line for the rest.

A block of JSONL is parsed at once with a strict schema. Only where that fails is each of its lines looked at, so that
a broken one is named and the others are kept.
"""

from __future__ import annotations

import codecs
import gzip
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any, cast

from pydantic_core import from_json

from quantverdict.errors import DataError, one_of
from quantverdict.registry import IMPORTERS
from quantverdict.registry.listing import load
from quantverdict.yaml_file import encoding_of

if TYPE_CHECKING:
    import polars as pl

    from quantverdict.bundle.files import Json

BLOCK_BYTES = 1 << 25
BLOCK_ROWS = 1 << 20
PEEK_BYTES = 1 << 18
"""Looked at to see whether a column of scores holds numbers or booleans."""

NOT_TEXT = r"^(\[|\{|true$|false$)"
"""How the fast parser renders a list, an object or a boolean where text is wanted."""
NOT_A_WORD = r"^(\[|\{)"
"""The same where a boolean is wanted too."""

_TEXT = "JSON lines as plain text"
CONTAINERS = {
    b"\x1f\x8b": ("a gzip file", f"{_TEXT}, or format: jsonl.gz"),
    b"PAR1": ("a Parquet file", f"{_TEXT}, or format: parquet"),
    b"PK\x03\x04": ("a zip archive, as a .eval log of Inspect is one", f"{_TEXT}, or format: inspect"),
}
"""How a file begins that is no plain text: what it is, and what would be read."""
_INSPECT_LOG = re.compile(rb'\s*\{\s*"version":\s*\d+,\s*"status":')
_ONE_DOCUMENT = re.compile(rb"\s*(\[\s*[{\n]|\{\s*\n)")


@dataclass(frozen=True)
class RowFields:
    """What is read from a row: a name of our own to a column (`a.b`: key `b` of the object `a`).

    `words` are texts, numbers or booleans alike, and come as text. `prose` are the texts that may begin in any way.
    `keys` are those of every column.
    """

    texts: Mapping[str, str]
    numbers: Mapping[str, str]
    prose: tuple[str, ...] = ()
    words: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def columns(self) -> dict[str, str]:
        """Every name with its column: texts, words, numbers."""
        return {**self.texts, **self.words, **self.numbers}

    @cached_property
    def keys(self) -> frozenset[str]:
        return frozenset(key for column in self.columns.values() for key in column.split("."))

    @cached_property
    def readers(self) -> tuple[tuple[Callable[[object, str], object], str, str], ...]:
        """What reads each column, the first key on the way to it, and the column; texts, words, numbers."""
        kinds = ((_as_text, self.texts), (_as_word, self.words), (as_number, self.numbers))
        return tuple((read, name.partition(".")[0], name) for read, names in kinds for name in names.values())

    @cached_property
    def quoted(self) -> tuple[tuple[bytes, re.Pattern[bytes]], ...]:
        """Each key as it stands in JSON, alone and before its value."""
        names = [f'"{key}"'.encode() for key in sorted(self.keys)]
        return tuple((name, re.compile(re.escape(name) + rb"[ \t\r\n]*:")) for name in names)


@dataclass(frozen=True, slots=True)
class InvalidRow:
    """A row that cannot be used: its line (or row) from 1, why, and what it says."""

    line: int
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of a source.

    Attributes:
        frame: `line`, then text and Float64 columns by the names of `RowFields`; null where the row has nothing.
        raw: rows, broken ones included.
        text_of: what a row says, by its index in the frame.
    """

    frame: pl.DataFrame
    raw: int
    broken: tuple[InvalidRow, ...] = ()
    text_of: Sequence[str] = field(default=(), repr=False)


def read_blocks(path: Path, form: str, wanted: RowFields) -> Iterator[Block]:
    """The rows of a file, in order, in blocks of bounded size.

    Raises:
        DataError: the file cannot be read, or has no such column.
    """
    importer = IMPORTERS.find(form)
    reader = load(importer.target)
    if importer.blocks:
        yield from reader(path, wanted)
        return
    with TemporaryFile() as file:
        for row in reader(path):
            file.write(json.dumps(row).encode() + b"\n")
        file.seek(0)
        yield from _json_blocks(file, wanted)


def jsonl_blocks(path: Path, wanted: RowFields) -> Iterator[Block]:
    """JSON lines as plain text."""
    yield from _opened(path, wanted, plain_file)


def gzip_blocks(path: Path, wanted: RowFields) -> Iterator[Block]:
    """JSON lines in a gzip file."""
    yield from _opened(path, wanted, gzip.open)


def plain_file(path: Path, mode: str) -> IO[bytes]:
    _refuse_container(path)
    return cast("IO[bytes]", path.open(mode))


def _opened(path: Path, wanted: RowFields, opener: Callable[..., Any]) -> Iterator[Block]:
    with reading_errors(path), opener(path, "rb") as file:
        yield from _json_blocks(as_utf8(file), wanted)


@contextmanager
def reading_errors(path: Path) -> Iterator[None]:
    """What fails while it is open fails of the file."""
    try:
        yield
    except UnicodeError as error:
        raise DataError(f"cannot be read ({error})", file=path, expected="UTF-8, or UTF-16 throughout") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read ({error})", file=path) from error


def texts_at(path: Path, form: str, wanted: RowFields, lines: Collection[int]) -> dict[int, str]:
    """What the rows at these lines say, for lines that `read_blocks` gives in a frame."""
    found: dict[int, str] = {}
    for block in read_blocks(path, form, wanted):
        index = block.frame["line"].is_in(list(lines)).arg_true()
        found.update((block.frame["line"][row], block.text_of[row]) for row in index)
    return found


def _refuse_container(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(256).removeprefix(codecs.BOM_UTF8)
    for magic, (kind, expected) in CONTAINERS.items():
        if start.startswith(magic):
            raise DataError(f"is {kind}", file=path, expected=expected)
    if b"\0" in start[:4] and encoding_of(start) == "utf-8-sig":
        problem = "holds NUL bytes, as UTF-16 without a byte order mark does"
        raise DataError(problem, file=path, expected="UTF-8, or UTF-16 with its mark")
    if _INSPECT_LOG.match(start):
        raise DataError("is a log of Inspect", file=path, expected="format: inspect")
    if _ONE_DOCUMENT.match(start):
        raise DataError("is one JSON document", file=path, expected="JSON lines: one object a line")


def as_utf8(file: IO[bytes]) -> IO[bytes]:
    """The file without its byte order mark, as UTF-8 whatever the mark says."""
    start = file.read(4)
    file.seek(0)
    encoding = encoding_of(start)
    if encoding != "utf-8-sig":
        return cast("IO[bytes]", codecs.EncodedFile(file, "utf-8", encoding))
    file.seek(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)
    return file


def _json_blocks(file: IO[bytes], wanted: RowFields) -> Iterator[Block]:
    line, schema = 1, None
    for data in _whole_blocks(file):
        if schema is None:
            schema = _json_schema(wanted, _booleans(data, wanted))
        count = data.count(b"\n")
        yield _parse_fast(data, count, line, wanted, schema) or _parse_slow(data, line, wanted)
        line += count


def _whole_blocks(file: IO[bytes]) -> Iterator[bytes]:
    """Blocks that end in LF."""
    rest: list[bytes] = []
    while data := file.read(BLOCK_BYTES):
        end = data.rfind(b"\n") + 1
        if end:
            yield b"".join((*rest, data[:end]))
            rest = []
        rest.append(data[end:])
    if last := b"".join(rest):
        yield last + b"\n"


def _booleans(data: bytes, wanted: RowFields) -> set[str]:
    """Which number columns hold booleans, by the first value of each in the first lines that can be read."""
    found: dict[str, bool] = {}
    for line in data[:PEEK_BYTES].split(b"\n"):
        if len(found) == len(wanted.numbers):
            break
        try:
            row = json.loads(line)
            values = {name: _at(row, column) for name, column in wanted.numbers.items()}
        except (ValueError, RecursionError):
            continue
        for name, value in values.items():
            if value is not None:
                found.setdefault(name, isinstance(value, bool))
    return {name for name, boolean in found.items() if boolean}


Schema = dict[str, "pl.DataType"]


def _json_schema(wanted: RowFields, booleans: set[str]) -> Schema:
    import polars as pl

    tree: dict[str, Json] = {}
    texts = (*wanted.texts.values(), *wanted.words.values())
    leaves: list[tuple[str, type[pl.DataType]]] = [(column, pl.String) for column in texts]
    leaves += [(column, pl.Boolean if name in booleans else pl.Float64) for name, column in wanted.numbers.items()]
    for column, kind in leaves:
        *parents, last = column.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = kind()

    def as_type(node: Json) -> pl.DataType:
        return pl.Struct({key: as_type(item) for key, item in node.items()}) if isinstance(node, dict) else node

    return {key: as_type(node) for key, node in tree.items()}


def _parse_fast(data: bytes, count: int, line: int, wanted: RowFields, schema: Schema) -> Block | None:
    """None where the block holds anything that has to be looked at line by line."""
    import polars as pl

    try:
        raw = pl.read_ndjson(data, schema=schema)
    except pl.exceptions.PolarsError:
        return None
    if raw.height != count:
        return None
    frame = raw.select(
        pl.int_range(line, line + pl.len(), dtype=pl.UInt32).alias("line"),
        *(_column(column).alias(name) for name, column in {**wanted.texts, **wanted.words}.items()),
        *(_column(column).cast(pl.Float64).alias(name) for name, column in wanted.numbers.items()),
    )
    lines = _Lines(data)
    right = _trusted(frame, wanted) and _is_prose(frame, lines, wanted) and _has_keys_once(data, lines, wanted)
    return Block(frame, count, text_of=lines) if right else None


def _trusted(frame: pl.DataFrame, wanted: RowFields) -> bool:
    """Whether the fast parser may be taken at its word.

    It turns what is no text into text, a lone surrogate into NUL and, in some releases, what is no object into nulls.
    """
    import polars as pl

    texts = [pl.col(name) for name in wanted.texts if name not in wanted.prose]
    words = [pl.col(name) for name in wanted.words]
    suspect = frame.select(
        pl.any_horizontal(text.str.contains(NOT_TEXT).any() for text in texts)
        | pl.any_horizontal(pl.lit(value=False), *(word.str.contains(NOT_A_WORD).any() for word in words))
        | pl.any_horizontal(text.str.contains("\0", literal=True).any() for text in (*texts, *words))
        | pl.all_horizontal(text.is_null() for text in texts).any()
    )
    return not suspect.item()


def _is_prose(frame: pl.DataFrame, lines: Sequence[str], wanted: RowFields) -> bool:
    """Whether prose that looks like something else is text all the same: those lines are read again."""
    import polars as pl

    if not wanted.prose:
        return True
    odd = [pl.col(name).str.contains(NOT_TEXT) | pl.col(name).str.contains("\0", literal=True) for name in wanted.prose]
    try:
        for index in frame.select(pl.any_horizontal(odd).fill_null(value=False).arg_true()).to_series():
            parse_line(lines[index].encode(), wanted)
    except (ValueError, RecursionError):
        return False
    return True


def _has_keys_once(data: bytes, lines: Sequence[str], wanted: RowFields) -> bool:
    """Whether no line gives a key twice, of which the fast parser takes the first: those that seem to are read again.

    Inside a string a quote has a backslash before it, so that what is looked for is a key, of this object or of
    another; any that is spelled with an escape may be one too.
    """
    import polars as pl

    text = pl.Series([data.decode("utf-8", "replace")])
    twice = "|".join([*(rf'"{key}"\s*:.*"{key}"\s*:' for key in map(re.escape, wanted.keys)), r'\\u[^"\n]*"\s*:'])
    if not text.str.contains(twice).item():
        return True
    try:
        for index in text.str.split("\n").explode().str.contains(twice).arg_true():
            parse_line(lines[index].encode(), wanted)
    except (ValueError, RecursionError):
        return False
    return True


def _column(path: str) -> pl.Expr:
    import polars as pl

    first, *rest = path.split(".")
    expression = pl.col(first)
    for key in rest:
        expression = expression.struct.field(key)
    return expression


class _Lines(Sequence[str]):
    """The lines of a block, split only if one is asked for."""

    def __init__(self, data: bytes) -> None:
        self._data, self._split = data, list[bytes]()

    def __len__(self) -> int:
        return self._data.count(b"\n")

    def __getitem__(self, index: Json) -> Json:
        if not self._split:
            self._split = self._data.split(b"\n")
        return self._split[index].decode("utf-8", "replace")


def _parse_slow(data: bytes, line: int, wanted: RowFields) -> Block:
    import polars as pl

    rows: list[tuple[object, ...]] = []
    texts: list[str] = []
    broken: list[InvalidRow] = []
    for number, content in enumerate(data.split(b"\n")[:-1], start=line):
        if not content.strip():
            continue
        text = content.decode("utf-8", "replace")
        try:
            rows.append((number, *parse_line(content, wanted)))
            texts.append(text)
        except (ValueError, RecursionError) as error:
            broken.append(InvalidRow(number, str(error), text))
    frame = pl.DataFrame(rows, schema=schema_of(wanted), orient="row")
    return Block(frame, len(rows) + len(broken), tuple(broken), texts)


def schema_of(wanted: RowFields) -> dict[str, type[pl.DataType]]:
    """The columns of a block's frame."""
    import polars as pl

    kinds = {name: pl.Float64 if name in wanted.numbers else pl.String for name in wanted.columns}
    return {"line": pl.UInt32, **kinds}


def parse_line(content: bytes, wanted: RowFields) -> list[object]:
    """The wanted values of one line; ValueError says what is wrong with it."""
    # Objects are looked through for keys that are given twice only where some key stands there twice.
    twice = b"\\u" in content
    for name, key in wanted.quoted:
        twice = twice or (content.count(name) > 1 and len(key.findall(content)) > 1)
    row = _parsed_with_care(content, wanted.keys) if twice else _parsed(content)
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - one exception for all that can be wrong with a line
    return values_of(row, wanted)


def _parsed(content: bytes) -> Json:
    """A line by the fastest parser, which pydantic brings; what that refuses is left to Python's, and its words."""
    try:
        return from_json(content)
    except ValueError:
        return _parsed_with_care(content, frozenset())


def _parsed_with_care(content: bytes, keys: frozenset[str]) -> Json:
    try:
        return json.loads(content.decode(), object_pairs_hook=partial(_object, keys=keys))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg} at column {error.colno})") from None


def values_of(row: Json, wanted: RowFields) -> list[object]:
    """The wanted values of a row; ValueError says what is wrong with it."""
    return [read(row.get(key) if key == column else _at(row, column), column) for read, key, column in wanted.readers]


def _object(pairs: list[tuple[str, Json]], keys: frozenset[str]) -> dict[str, Json]:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1 and key in keys)
        if twice:
            raise ValueError(f"{twice[0]}: given twice")
    return row


def _at(row: Json, column: str) -> Json:
    for key in column.split("."):
        if row is None:
            return None
        if not isinstance(row, dict):
            raise ValueError(f"{column}: {key} is looked for in something that is not an object")  # noqa: TRY004
        row = row.get(key)
    return row


def _as_text(value: object, column: str) -> str | None:
    if isinstance(value, str):
        # Neither Parquet nor UTF-8 has lone surrogates.
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{column}: a {type(value).__name__}; expected text")


def _as_word(value: object, column: str) -> str | None:
    return str(value).lower() if isinstance(value, bool) else _as_text(value, column)


def as_number(value: object, column: str) -> float | None:
    if value is None or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, int) and abs(value) < 1 << 1000:
        return float(value)
    shown = value if isinstance(value, float) else f"a {type(value).__name__}"
    message = f" ({value[:20]!r}); `values` of a measure says what a word is worth" if isinstance(value, str) else ""
    raise ValueError(f"{column}: {shown}; expected a number{message}")


def parquet_blocks(path: Path, wanted: RowFields) -> Iterator[Block]:
    import polars as pl

    try:
        lazy = pl.scan_parquet(path, glob=False)
        schema = lazy.collect_schema()
        columns = [_parquet_column(schema, path, name, column, wanted) for name, column in _both(wanted)]
        total = lazy.select(pl.len()).collect().item()
        for start in range(0, total, BLOCK_ROWS):
            frame = lazy.slice(start, BLOCK_ROWS).select(columns).collect()
            line = pl.int_range(start + 1, start + 1 + frame.height, dtype=pl.UInt32, eager=True).alias("line")
            yield Block(frame.insert_column(0, line), frame.height, text_of=_Rows(frame))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"cannot be read ({str(error).splitlines()[0]})", file=path, expected="Parquet") from error


def _both(wanted: RowFields) -> list[tuple[str, str]]:
    return list(wanted.columns.items())


def _parquet_column(schema: pl.Schema, path: Path, name: str, column: str, wanted: RowFields) -> pl.Expr:
    """The column as text or Float64, where its type allows that."""
    import polars as pl

    first, *rest = [column] if column in schema else column.split(".")
    kind: Json = schema.get(first)
    for key in rest:
        kind = dict(kind).get(key) if isinstance(kind, pl.Struct) else None
    if kind is None:
        raise DataError("no such column", file=path, field=column, expected=one_of(column, schema))
    texts = (pl.String, pl.Categorical, pl.Enum, pl.Null)
    number = kind.is_numeric() or kind == pl.Null
    right = (number or kind == pl.Boolean) if name in wanted.numbers else (kind in texts or kind.is_integer())
    if not right and not (name in wanted.words and (number or kind == pl.Boolean)):
        text = kind in texts and name in wanted.numbers
        message = "numbers, or `values` in the measure: what each word is worth" if text else "numbers"
        raise DataError(f"is {kind}", file=path, field=column, expected=message if name in wanted.numbers else "text")
    expression = pl.col(column) if column in schema else _column(column)
    return expression.cast(pl.Float64 if name in wanted.numbers else pl.String).alias(name)


class _Rows(Sequence[str]):
    """The rows of a frame as JSON, each made when it is asked for."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self._frame = frame

    def __len__(self) -> int:
        return self._frame.height

    def __getitem__(self, index: Json) -> Json:
        return json.dumps(self._frame.row(index, named=True), ensure_ascii=False, default=str)
