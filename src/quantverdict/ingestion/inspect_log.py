"""Logs of Inspect: a zip of JSON members, compressed by Zstandard or deflated, or all of it as one JSON document."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantverdict.errors import DataError
from quantverdict.ingestion.logs import LogFile, LoggedMetric, LogOptions, Unit, document_of, short_name, under
from quantverdict.registry import IMPORTERS

if sys.version_info >= (3, 14):
    import zipfile
else:
    from backports.zstd import zipfile

WORTH = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0, "true": 1.0, "false": 0.0}
"""Correct, partially correct, incorrect, no answer: as Inspect's own `value_to_float` has it."""


def inspect_log(path: Path, options: LogOptions) -> Iterator[LogFile]:
    """The samples of one run: each scorer is a metric, each value of a scorer that gives several is one, and epochs are
    repeats of a prompt."""
    rows = list(inspect_rows(path))
    seen: dict[str, list[object]] = {}
    for row in rows:
        for name, value in row["scores"].items():
            seen.setdefault(name, []).append(value)
    metrics = (_metric(name, values) for name, values in seen.items())
    ungraded = sum(not row["scores"] for row in rows)
    header = _header(path)
    notes = [f"{ungraded} of {len(rows)} samples have no score (status {header.get('status', 'unknown')})"]
    wanted = {**IMPORTERS["inspect"].columns}
    wanted.pop("cell")
    wanted.pop("task")
    yield LogFile(
        path=path,
        format="inspect",
        columns=wanted,
        metrics=tuple(one for one in metrics if options.takes(one.name)),
        arm=str(header["eval"].get("model", "")),
        task=short_name(str(header["eval"].get("task", "")), "inspect"),
        notes=tuple(notes if ungraded else ()),
    )


def _metric(name: str, values: list[object]) -> LoggedMetric:
    words = any(isinstance(value, str | bool) for value in values)
    if not words:
        return LoggedMetric(name, f"scores.{name}")
    return LoggedMetric(name, f"scores.{name}", Unit("share", "higher"), WORTH)


def inspect_rows(path: Path) -> Iterator[dict[str, Any]]:
    """A row a sample and epoch: `model`, `task`, `sample_id`, `cluster`, `prompt_hash`, `reason`, `scores.SCORER`.

    Raises:
        DataError: the file is no such log, or is broken.
    """
    header = _header(path)
    said = header["eval"]
    epochs = under(said, "config").get("epochs")
    repeated = isinstance(epochs, int) and epochs > 1
    for sample in _samples(path):
        name = str(sample["id"])
        error = sample.get("error")
        yield {
            "model": str(said.get("model", "")),
            "task": str(said.get("task", "")),
            "sample_id": f"{name}#{sample.get('epoch', 1)}" if repeated else name,
            "cluster": name if repeated else None,
            "prompt_hash": _hash(sample.get("input")),
            "reason": str(error.get("message", "error")) if isinstance(error, dict) else None,
            "scores": _scores(under(sample, "scores")),
        }


def _scores(scores: Mapping[str, Any]) -> dict[str, object]:
    found: dict[str, object] = {}
    for scorer, score in scores.items():
        name, value = scorer.replace(".", "_"), score.get("value") if isinstance(score, dict) else None
        parts = (
            {f"{name}_{key}".replace(".", "_"): item for key, item in value.items()} if isinstance(value, dict) else {}
        )
        found |= {key: _plain(item) for key, item in (parts or {name: value}).items() if not isinstance(item, list)}
    return {key: item for key, item in found.items() if item is not None}


def _plain(value: object) -> object:
    """A number that was written as text is a number."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _hash(asked: object) -> str:
    """Of what a sample was asked: a text, or messages."""
    text = asked if isinstance(asked, str) else json.dumps(_messages(asked), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def _messages(asked: object) -> object:
    """Without the ids that every run gives its messages anew."""
    if isinstance(asked, list):
        return [_messages(one) for one in asked]
    return {key: one for key, one in asked.items() if key != "id"} if isinstance(asked, dict) else asked


def _header(path: Path) -> dict[str, Any]:
    found = _member(path, ("header.json", "_journal/start.json")) if _is_zip(path) else document_of(path)
    if not isinstance(found, dict) or not isinstance(found.get("eval"), dict):
        raise DataError("is no log of Inspect", file=path, field="eval", expected="what was run: model, task")
    return found


def _samples(path: Path) -> Iterator[dict[str, Any]]:
    found = _members(path) if _is_zip(path) else enumerate(document_of(path).get("samples") or [], 1)
    for where, sample in found:
        if not isinstance(sample, dict) or "id" not in sample:
            raise DataError("is no sample", file=path, field=str(where), expected="id, epoch, input, scores")
        yield sample


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _member(path: Path, names: tuple[str, ...]) -> object:
    with _opened(path) as archive:
        name = next((one for one in names if one in archive.namelist()), None)
        return {} if name is None else _read(archive, name, path)


def _members(path: Path) -> Iterator[tuple[str, object]]:
    with _opened(path) as archive:
        for name in archive.namelist():
            if name.startswith("samples/") and name.endswith(".json"):
                yield name, _read(archive, name, path)


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot be read ({error})", file=path, expected="a zip archive, as .eval is") from error


def _read(archive: zipfile.ZipFile, name: str, path: Path) -> object:
    try:
        return json.loads(archive.read(name))
    except (OSError, ValueError, EOFError, RecursionError, NotImplementedError, zipfile.BadZipFile) as error:
        raise DataError(f"{name}: cannot be read ({error})", file=path, expected="JSON") from error
