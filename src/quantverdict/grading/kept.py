"""Values that are kept in a bundle by a hash of all that they follow from, so that none is computed twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from quantverdict.collect.files import Json, json_line, open_own, saving, whole_lines
from quantverdict.collect.store import append_bytes, cut


def key_of(*parts: Json) -> str:
    """A hash of texts, numbers and mappings of them."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Kept:
    """An append-only JSONL file, a value a line. A line that a killed run left unfinished is cut off.

    Raises:
        BundleError: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        os.close(open_own(path, os.O_RDWR | os.O_CREAT))
        with saving(path):
            data = path.read_bytes()
        lines = whole_lines(data)
        cut(path, sum(len(line) + 1 for line in lines), len(data))
        self.values: dict[str, float] = dict(entry for line in lines if (entry := _entry(line)) is not None)

    def add(self, values: Mapping[str, float]) -> None:
        """Store values: all of them, or on failure none."""
        append_bytes(self._path, b"".join(json_line({"key": key, "value": own}) for key, own in values.items()),
                     sync=True)  # fmt: skip
        self.values.update(values)


def _entry(line: bytes) -> tuple[str, float] | None:
    """A line's key and value, None where it is no such line: that value is computed again."""
    try:
        data = json.loads(line)
        return str(data["key"]), float(data["value"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
