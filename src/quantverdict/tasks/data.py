"""Items of a task from a data set: local files, a repository of the hub, or a file in an installed package.

Rows become items by the `fields` of the task file: a column by its name, or an expression that the templates' sandbox
computes. What was used is known by its hash, so that a bundle is not gone on with where the data changed.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import importlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from quantverdict.errors import InputError, PluginError, TaskError, one_of
from quantverdict.registry.listing import resource
from quantverdict.tasks.chat import render_template
from quantverdict.yaml_file import decoded

FORMATS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".jsonl.gz": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".json": "json",
}  # fmt: skip
"""By the end of a file's name; `json` is one list of objects."""
AT_ONCE = 64
"""Rows for which the sandbox is asked at the same time."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SEPARATOR = "\u241e"
"""Between the values of rows: a sign that no text has."""

Text = Annotated[str, Field(pattern=r"\S")]


class DataSource(BaseModel):
    """Where the rows of a task are: exactly one of `path`, `hub` and `package`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    path: Text | None = None
    """A file or a pattern (`questions/*.jsonl`), relative to the task file: JSONL, CSV, Parquet, or a JSON list."""
    hub: Text | None = None
    """A data set of the hub, `owner/name`: needs the extra hub."""
    config: Text | None = None
    """Of a data set of the hub: the folder of its files, or how their names begin."""
    split: Text | None = None
    """Of a data set of the hub, as its files' names have it: `test`, `validation`."""
    files: Text | None = None
    """Of a data set of the hub: a pattern of its files, in place of config and split."""
    revision: Text = "main"
    """Of a data set of the hub; the commit that it stands for is recorded, and a full one is pinned."""
    package: Text | None = None
    """A file in an installed package: `package:path/in/it.jsonl`."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(place is not None for place in (self.path, self.hub, self.package)) != 1:
            raise ValueError("exactly one of path, hub, package")
        if self.hub is None and (self.config or self.split or self.files or self.revision != "main"):
            raise ValueError("config, split, files and revision only beside hub")
        return self

    def __str__(self) -> str:
        if self.hub is not None:
            return "/".join(part for part in (f"hub:{self.hub}", self.config, self.split) if part)
        return str(self.path or self.package)


class FewShot(BaseModel):
    """Where worked examples are drawn from."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    path: Text | None = None
    """Other files than those of `data`."""
    split: Text | None = None
    """Another split of the data set of the hub."""
    files: Text | None = None
    """Other files of the data set of the hub."""


class DataKeys(BaseModel):
    """The keys of a task file that say what rows mean; only beside `data`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    data: DataSource
    """Where the rows are."""
    fields: dict[str, str] = {}
    """Each field of an item: a column (`a.b`: key `b` of the column `a`), or an expression with `{{ }}` over the
    columns; if not given every column is a field."""
    id: Text | None = None
    """A column or an expression; if not given the column `id`, else a hash of the fields."""
    choices: str | list[str] = []
    """A column that is a list of choices, or several columns: they become `option_a`, `option_b` and so on."""
    answer: Text | None = None
    """Beside `choices`, the column of the right one: its place from 0, letter or text; it becomes `reference`."""
    filter: Text | None = None
    """An expression over the columns; rows for which it is false are left out."""
    sample: Annotated[int, Field(gt=0, le=1_000_000_000)] | None = None
    """At most so many items, drawn by `seed`."""
    stratify: Text | None = None
    """The field over whose values the sample is balanced."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 42
    """Of the sample and of the worked examples."""
    fewshot: FewShot | None = None
    """Where worked examples come from; if not given from the rows themselves, which are then not asked."""


@dataclass(frozen=True, slots=True)
class DataRecord:
    """What was used of a data set.

    Attributes:
        source: as the task file names it.
        revision: the commit of a data set of the hub; empty for files.
        sha256: of the items.
        items: how many.
    """

    source: str
    revision: str
    sha256: str
    items: int


@dataclass(frozen=True, slots=True)
class DataRow:
    """A row and where it stands."""

    values: Mapping[str, Any]
    file: Path
    line: int

    def error(self, problem: str, field: str | None = None, expected: str | None = None) -> TaskError:
        return TaskError(problem, file=self.file, line=self.line, field=field, expected=expected)


def read_rows(source: DataSource, folder: Path) -> tuple[list[DataRow], str]:
    """The rows of a data set, and the commit that it was read at.

    Raises:
        TaskError: there is no such data, or a row of it is broken, by file and row.
    """
    files, revision = _files(source, folder)
    rows = [row for file in files for row in _rows(file)]
    if not rows:
        raise TaskError("has no rows", file=files[0] if files else str(source), expected="at least one")
    return rows, revision


def _files(source: DataSource, folder: Path) -> tuple[list[Path], str]:
    if source.hub is not None:
        return _hub_files(source)
    if source.package is not None:
        try:
            file = resource(source.package)
        except PluginError as error:
            raise TaskError(str(error), field="data.package", expected="package:path of a file") from error
        if not file.is_file():
            raise TaskError("no such file in the package", file=source.package, field="data.package",
                            expected=f"one of {file.parent}")  # fmt: skip
        return [file], ""
    assert source.path is not None
    pattern = Path(source.path)
    base, relative = (Path(pattern.anchor), str(pattern)[len(pattern.anchor) :]) if pattern.is_absolute() else (
        folder, source.path)  # fmt: skip
    wild = any(character in relative for character in "*?[")
    files = sorted(base.glob(relative)) if wild else [base / relative]
    files = [file for file in files if file.is_file()]
    if not files:
        problem = "no file has such a name" if wild else "no such file"
        raise TaskError(problem, file=base / relative, field="data.path", expected="JSONL, CSV, Parquet or JSON")
    return files, ""


# A data set of the hub: its client downloads, its files are read like any others


def _hub_files(source: DataSource) -> tuple[list[Path], str]:
    assert source.hub is not None
    try:
        hub = importlib.import_module("huggingface_hub")
        failures = _hub_failures(hub)
    except ImportError as error:
        problem = "the hub's client is not installed"
        raise TaskError(problem, field="data.hub", expected="pip install 'quantverdict[hub]'") from error
    pattern, revision = source.files, source.revision
    try:
        if not _COMMIT.fullmatch(revision):
            revision = str(hub.HfApi().dataset_info(source.hub, revision=revision).sha)
        folder = Path(
            hub.snapshot_download(
                source.hub, repo_type="dataset", revision=revision, allow_patterns=_patterns(source, pattern)
            )
        )
    except failures as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        expected = "a data set and revision that exist, and a network; offline a full commit that is cached"
        if _is_gated(error):
            terms = f"https://huggingface.co/datasets/{source.hub}"
            expected = f"that its terms are accepted at {terms}, and HF_TOKEN with a token that may read it"
        raise TaskError(f"cannot be had from the hub ({reason})", file=str(source), expected=expected) from error
    inside = sorted(path for path in folder.rglob("*") if path.is_file() and _form(path) is not None)
    found = [path for path in inside if _matches(path.relative_to(folder), source, pattern)]
    if not found:
        names = [path.relative_to(folder).as_posix() for path in inside]
        parts = " ".join(part for part in (source.config, source.split) if part)
        problem = f"has no file {pattern}" if pattern else f"has no file of {parts or 'rows'}"
        expected = one_of(pattern or parts, names) if names else "files of JSONL, CSV or Parquet"
        raise TaskError(problem, file=f"hub:{source.hub}", field="data.files", expected=expected)
    return found, revision


def _is_gated(error: Exception) -> bool:
    """Whether the hub wants to know who asks: its client has a class for it, and else the status says so."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return "gated" in type(error).__name__.lower() or status in (401, 403)


def _patterns(source: DataSource, pattern: str | None) -> list[str]:
    """What is fetched: the files that may be meant, and no weights or pictures beside them."""
    if pattern:
        return [pattern]
    return [f"*{end}" for end in FORMATS] if not source.split else [f"*{source.split}*{end}" for end in FORMATS]


def _matches(path: Path, source: DataSource, pattern: str | None) -> bool:
    if pattern:
        return PurePosixPath(path.as_posix()).match(pattern)
    words = re.split(r"[/._-]+", path.as_posix())
    split = source.split is None or source.split in words
    return split and (source.config is None or path.as_posix().startswith((f"{source.config}/", f"{source.config}-",
                                                                           f"data/{source.config}")))  # fmt: skip


def _hub_failures(hub: ModuleType) -> tuple[type[Exception], ...]:
    """What the client raises for a wrong name or no network; its HTTP library's errors are not all OSErrors."""
    errors = importlib.import_module(f"{hub.__name__}.errors")
    clients = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    return (OSError, ValueError, errors.HfHubHTTPError, errors.LocalEntryNotFoundError, *(c.HTTPError for c in clients))


# Rows


def _form(path: Path) -> str | None:
    return next((form for end, form in FORMATS.items() if path.name.endswith(end)), None)


def _rows(file: Path) -> Iterator[DataRow]:
    form = _form(file)
    if form is None:
        expected = f"a name that ends in {', '.join(FORMATS)}"
        raise TaskError("is of no format that is known", file=file, expected=expected)
    if form == "parquet":
        yield from _table(file)
        return
    try:
        content = gzip.decompress(file.read_bytes()) if file.name.endswith(".gz") else file.read_bytes()
        text = decoded(content)
    except (OSError, ValueError, EOFError) as error:
        raise TaskError(f"cannot be read ({error})", file=file, expected=f"a {form} file") from error
    yield from {"csv": _csv, "jsonl": _json_lines, "json": _json_list}[form](text, file)


def _table(file: Path) -> Iterator[DataRow]:
    import polars as pl

    try:
        rows = pl.read_parquet(file, glob=False).to_dicts()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        problem = f"cannot be read ({str(error).splitlines()[0]})"
        raise TaskError(problem, file=file, expected="a Parquet file") from error
    yield from (DataRow(row, file, number) for number, row in enumerate(rows, 1))


def _csv(text: str, file: Path) -> Iterator[DataRow]:
    head = text.partition("\n")[0]
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if len(set(header)) < len(header):
            raise TaskError("a column is given twice", file=file, line=1, expected="each column once")
        line = reader.line_num + 1
        for fields in reader:
            if fields and len(fields) != len(header):
                problem = f"{len(fields)} fields where {len(header)} are expected"
                raise TaskError(problem, file=file, line=line)
            if fields:
                yield DataRow(dict(zip(header, fields, strict=True)), file, line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise TaskError(f"cannot be read ({error})", file=file, line=reader.line_num, expected="CSV") from error


def _json_lines(text: str, file: Path) -> Iterator[DataRow]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _json_row(line, file, number)


def _json_row(line: str, file: Path, number: int) -> DataRow:
    return DataRow(json_object(line, partial(TaskError, file=file, line=number)), file, number)


def json_object(content: str | bytes, refused: Callable[..., InputError]) -> dict[str, Any]:
    """A line of JSON as the object that it must be.

    Args:
        refused: makes the error, from its problem and `expected`.
    """
    try:
        row = json.loads(content)
    except json.JSONDecodeError as error:
        problem = f"not valid JSON ({error.msg} at column {error.colno})"
        raise refused(problem, expected="a JSON object a line") from error
    except (ValueError, RecursionError) as error:
        raise refused(f"not valid JSON ({error})", expected="a JSON object a line") from error
    if not isinstance(row, dict):
        raise refused("not a JSON object", expected="a JSON object a line")
    return row


def _json_list(text: str, file: Path) -> Iterator[DataRow]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"not valid JSON ({error})", file=file, expected="a list of objects") from error
    if not isinstance(rows, list):
        raise TaskError("is no list", file=file, expected="a list of objects, or JSONL: an object a line")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise TaskError("not a JSON object", file=file, line=number, expected="an object with a column a key")
        yield DataRow(row, file, number)


# What rows mean


def samples_of_rows(
    rows: Sequence[DataRow], keys: DataKeys, where: str, messages: str = ""
) -> list[tuple[DataRow, dict[str, Any]]]:
    """Each row that the filter leaves, and its item as a sample of a task file: `id` and fields.

    Args:
        where: the task file, for messages about its expressions.
        messages: the column that is a conversation, as a list of turns or as JSON; empty for none.

    Raises:
        TaskError: a missing column, an expression that cannot be computed, or a filter that leaves nothing.
    """
    if keys.filter is not None:
        shown = _computed(rows, f"{{% if {keys.filter} %}}1{{% endif %}}", f"{where}: filter")
        kept = [row for row, text in zip(rows, shown, strict=True) if text]
        if not kept:
            raise TaskError(f"the filter leaves none of {len(rows)} rows", file=where, field="filter",
                            expected="an expression that some row fulfils")  # fmt: skip
        rows = kept
    columns = {name: _column(rows, said, where, f"fields.{name}") for name, said in keys.fields.items()}
    samples: list[dict[str, Any]] = []
    for at, row in enumerate(rows):
        sample = {name: values[at] for name, values in columns.items()} if columns else _plain_fields(row)
        samples.append(sample)
    if keys.choices:
        _put_choices(rows, samples, keys)
    if messages:
        for row, sample in zip(rows, samples, strict=True):
            sample[messages] = _turns(row, messages)
    ids = _ids(rows, samples, keys, where)
    for sample, name in zip(samples, ids, strict=True):
        sample["id"] = name
    return list(zip(rows, samples, strict=True))


def _turns(row: DataRow, column: str) -> Any:  # noqa: ANN401 - whatever a column holds
    value = _value(row, column, "messages")
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise row.error("not valid JSON", column, "a list of turns, each with role and content") from error


def _plain_fields(row: DataRow) -> dict[str, Any]:
    """The columns that can be fields as they are."""
    found = {name: value for name, value in row.values.items() if name.isidentifier() and value is not None}
    return {name: value for name, value in found.items() if isinstance(value, str | int | float) or _is_texts(value)}


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def _column(rows: Sequence[DataRow], said: str, where: str, key: str) -> list[Any]:
    """The values of a column, or of an expression."""
    if "{{" in said or "{%" in said:
        return list(_computed(rows, said, f"{where}: {key}"))
    return [_value(row, said, key) for row in rows]


def _value(row: DataRow, column: str, key: str) -> Any:  # noqa: ANN401 - whatever a column holds
    if column in row.values:
        return row.values[column]
    found: Any = row.values
    for part in column.split("."):
        if not isinstance(found, Mapping) or part not in found:
            raise row.error(f"no column {column} ({key})", expected=one_of(column, row.values))
        found = found[part]
    return found


def _computed(rows: Sequence[DataRow], source: str, where: str) -> Iterator[str]:
    """An expression for each row, some rows at a time; `row` is the row, and its columns stand by their names."""
    for start in range(0, len(rows), AT_ONCE):
        some = rows[start : start + AT_ONCE]
        names = sorted({name for row in some for name in row.values if name.isidentifier()} - {"row"})
        given = ", ".join(f"{name}=row[{name!r}]" for name in names) or "_none=none"
        body = f"{{% for row in _rows %}}{{% with {given} %}}{source}{{% endwith %}}{_SEPARATOR}{{% endfor %}}"
        plain = [{**dict.fromkeys(names), **row.values} for row in some]
        try:
            values = {"_rows": json.loads(json.dumps(plain, default=str))}
            text = render_template(body, values, where=where, strict=True)
            found = text.split(_SEPARATOR)[:-1]
        except TaskError as error:
            raise some[0].error(f"{where.rpartition(': ')[2]} cannot be computed ({error.problem})",
                                expected=f"an expression over {', '.join(names[:8])}") from error  # fmt: skip
        if len(found) != len(some):
            raise some[0].error("a value holds a sign that no text has", expected=f"text without {_SEPARATOR}")
        yield from found


def _put_choices(rows: Sequence[DataRow], samples: Sequence[dict[str, Any]], keys: DataKeys) -> None:
    """Choices as `option_a` and so on, the right one as the letter in `reference`."""
    for row, sample in zip(rows, samples, strict=True):
        texts = choices_of(row, keys)
        sample |= {f"option_{letter.lower()}": text for letter, text in zip(LETTERS, texts, strict=False)}
        if keys.answer is not None:
            said, labels = _value(row, keys.answer, "answer"), _labels(row, keys)
            if said in labels and len(labels) == len(texts):
                said = LETTERS[labels.index(said)]
            sample["reference"] = _letter(row, said, texts)


def _labels(row: DataRow, keys: DataKeys) -> list[Any]:
    """The labels of a column of choices that has them beside its texts, as ARC has: {text: [...], label: [...]}."""
    found = _value(row, keys.choices, "choices") if isinstance(keys.choices, str) else None
    labels = found.get("label") if isinstance(found, Mapping) else None
    return labels if isinstance(labels, list) else []


def choices_of(row: DataRow, keys: DataKeys) -> list[str]:
    if isinstance(keys.choices, list):
        texts = [str(_value(row, column, "choices")) for column in keys.choices]
    else:
        found = _value(row, keys.choices, "choices")
        found = found.get("text") if isinstance(found, Mapping) else found
        texts = [str(one) for one in found] if isinstance(found, list) else []
    if not 2 <= len(texts) <= len(LETTERS):
        raise row.error(f"{len(texts)} choices", field=str(keys.choices), expected="2 to 26, as a list of texts")
    return texts


def _letter(row: DataRow, said: object, texts: Sequence[str]) -> str:
    """The letter of the right choice, which is given by its place from 0, its letter, its label or its text."""
    letters, text = LETTERS[: len(texts)], str(said).strip()
    if isinstance(said, bool) or said is None:
        raise row.error(f"the answer is {said!r}", expected="a place from 0, a letter or a text")
    if isinstance(said, int) and 0 <= said < len(texts):
        return letters[said]  # a number is a place, whatever numbers the choices are
    if text in texts:
        return letters[list(texts).index(text)]
    if len(text) == 1 and text.upper() in letters:
        return text.upper()
    if text.removesuffix(".0").isdigit() and int(float(text)) < len(texts):
        return letters[int(float(text))]
    expected = f"a place from 0 to {len(texts) - 1}, a letter of {letters}, or a choice"
    raise row.error(f"the answer is {text!r:.40}", expected=expected)


def _ids(rows: Sequence[DataRow], samples: Sequence[dict[str, Any]], keys: DataKeys, where: str) -> list[str]:
    """As given; else a hash of the fields, the same whatever the order of the rows."""
    said = keys.id or ("id" if all("id" in row.values for row in rows) else None)
    if said is not None:
        return [str(one) for one in _column(rows, said, where, "id")]
    seen: dict[str, int] = {}
    found = []
    for sample in samples:
        name = hashlib.sha256(_canonical(sample)).hexdigest()[:16]
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return found


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace")


def hash_of(items: Sequence[tuple[str, Mapping[str, object]]]) -> str:
    """Of ids and fields, in their order."""
    found = hashlib.sha256()
    for name, fields in items:
        found.update(_canonical([name, fields]) + b"\n")
    return found.hexdigest()
