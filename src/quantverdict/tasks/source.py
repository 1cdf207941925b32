"""A task file's YAML with the lines it came from; the file is not trusted."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NoReturn

import yaml

from quantverdict.errors import TaskError
from quantverdict.yaml_file import UnreadableError, decoded, line_of, read_yaml, unread


class TaskSource:
    """The data of a YAML file of plain values: no aliases, no repeated keys.

    Raises:
        TaskError: the file cannot be read, or is not such a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            content = path.read_bytes()
            text = decoded(content)
        except (OSError, ValueError) as error:
            raise TaskError(f"cannot be read ({unread(error)})", file=path, expected="a UTF-8 YAML file") from error
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.root: yaml.Node | None
        self.data: Any
        try:
            self.root, self.data = read_yaml(text, aliases=False)
        except UnreadableError as error:
            problem = error.problem if error.field is None else f"key {error.field!r} is {error.problem}"
            raise TaskError(problem, file=path, line=error.line, expected=error.expected) from error

    def refuse(self, location: tuple[str | int, ...], problem: str, expected: str | None = None) -> NoReturn:
        """Raise for what is at `location`, with the line of the nearest place that the file has."""
        line = line_of(self.root, location)
        field = ".".join(str(part) for part in location)
        raise TaskError(problem, file=self.path, line=line, field=field or None, expected=expected)
