"""A task file's YAML with the lines it came from; the file is not trusted."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NoReturn

import yaml

from quantverdict.errors import TaskError
from quantverdict.yaml_file import decoded, line_of, wrong_key

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DEPTH = 20


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
        except (OSError, UnicodeDecodeError) as error:
            raise TaskError(f"cannot be read ({error})", file=path, expected="a UTF-8 YAML file") from error
        self.sha256 = hashlib.sha256(content).hexdigest()
        try:
            self._refuse_depth_and_aliases(text)
            self.root = yaml.compose(text, Loader=_LOADER)
            wrong = None if self.root is None else wrong_key(self.root)
            if wrong is not None:
                problem = f"key {str(wrong.value)[:60]!r} is given twice, or not a name"
                raise TaskError(problem, file=path, line=wrong.start_mark.line + 1, expected="each key once")
            self.data: Any = yaml.load(text, Loader=_LOADER)  # noqa: S506 - a safe loader, the C one where there is one
        except (yaml.YAMLError, ValueError) as error:
            mark = getattr(error, "problem_mark", None)
            reason = " ".join(str(getattr(error, "problem", None) or error).split())
            line = mark.line + 1 if mark else None
            raise TaskError(f"not valid YAML: {reason}", file=path, line=line) from error

    def _refuse_depth_and_aliases(self, text: str) -> None:
        """Before nodes are made: libyaml's composer overruns its stack on deep files, and aliases unfold for ever."""
        depth = 0
        for event in yaml.parse(text, Loader=_LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEPTH or isinstance(event, yaml.AliasEvent):
                problem = "nested too deeply" if depth > _DEPTH else "an alias"
                line = event.start_mark.line + 1 if event.start_mark else None
                raise TaskError(problem, file=self.path, line=line, expected="plain values, written out")

    def refuse(self, location: tuple[str | int, ...], problem: str, expected: str | None = None) -> NoReturn:
        """Raise for what is at `location`, with the line of the nearest place that the file has."""
        line = line_of(self.root, location)
        field = ".".join(str(part) for part in location)
        raise TaskError(problem, file=self.path, line=line, field=field or None, expected=expected)
