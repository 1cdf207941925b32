"""A bundle's artefacts as rows of text: CSV as it is, JSON by key path, Parquet as its CSV would be."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from quantverdict.collect.files import cell_text, read_csv
from quantverdict.collect.frames import read_frame
from quantverdict.errors import BundleError

Row = Mapping[str, str]


class Artefacts:
    """Reads each artefact of a bundle once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rows = cache(self._rows)
        self._document = cache(self._json)

    def _rows(self, artefact: str) -> Sequence[Row] | None:
        """The rows of `FILE.csv`, `FILE.parquet` or `FILE.json#key/path`; None where the bundle has no such artefact.

        Raises:
            BundleError: it cannot be read.
        """
        name, _, keys = artefact.partition("#")
        path = self.root / name
        # A ledger is somebody's file: what it names outside of the bundle is no artefact of it.
        if not path.is_file() or not path.resolve().is_relative_to(self.root.resolve()):
            return None
        match path.suffix:
            case ".csv":
                return read_csv(path)
            case ".json":
                return self._entries(name, keys)
            case ".parquet":
                return parquet_rows(path)
        return None

    def table(self, name: str) -> Sequence[Row]:
        """The rows of `NAME.csv`, none where there is no such file."""
        return self.rows(f"{name}.csv") or ()

    def _entries(self, name: str, keys: str) -> Sequence[Row] | None:
        """What stands at a key path: a list of objects as rows, an object as one row, a list of values one a row."""
        found = self._document(name)
        for key in map(unquote, keys.split("/") if keys else ()):
            if not isinstance(found, dict) or found.get(key) is None:
                return None
            found = found[key]
        entries = found if isinstance(found, list) else [found]
        return [
            dict(flat(entry)) if isinstance(entry, dict) else {"index": str(index), "value": plain_text(entry)}
            for index, entry in enumerate(entries)
        ]

    def _json(self, name: str) -> Any:  # noqa: ANN401 - any JSON
        try:
            return json.loads((self.root / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{self.root / name}: cannot be read ({error})") from error


def flat(entry: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """An object as columns; those of nested objects by their key path."""
    for key, value in entry.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", plain_text(value)


def plain_text(value: object) -> str:
    """A JSON value as a CSV shows it."""
    if isinstance(value, str | int | float | bool) or value is None:
        return cell_text(value)
    return json.dumps(value, ensure_ascii=False)


def parquet_rows(path: Path) -> Sequence[Row]:
    """Every row of a Parquet file as text."""
    frame = read_frame(path, {})
    return [{key: plain_text(value) for key, value in row.items()} for row in frame.iter_rows(named=True)]
