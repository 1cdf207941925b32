"""A YAML file into a strict pydantic model; a mistake is answered with its line."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from quantverdict.errors import StudyError

Config = TypeVar("Config", bound=BaseModel)

_DEEP = 2000
"""Levels of nesting that need Python's own count of its calls."""


class MisplacedError(ValueError):
    """What a validator of a whole model finds wrong in a part of it: `at` leads there from that model."""

    def __init__(self, message: str, *at: int | str) -> None:
        super().__init__(message)
        self.at = at


def encoding_of(start: bytes) -> str:
    """The encoding of a text file that somebody else's program wrote, by its first four bytes.

    UTF-8, whether it has a byte order mark or not; else as its mark says (Windows PowerShell 5 writes UTF-16).
    """
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    return "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def decoded(data: bytes) -> str:
    """The text of such a file, without its byte order mark.

    Raises:
        UnicodeDecodeError: it is none.
    """
    return data.decode(encoding_of(data[:4]))


def load_yaml(path: Path, model: type[Config]) -> Config:
    """Read a YAML file into a strict model, saying the line of a mistake."""
    try:
        text = decoded(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"cannot be read ({error})", file=path, expected="a UTF-8 YAML file") from error
    try:
        root, wrong, data = _read(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise StudyError(f"not valid YAML: {reason}", file=path, line=mark.line + 1 if mark else None) from error
    if wrong is not None:
        name = wrong.value if isinstance(wrong, yaml.ScalarNode) else None
        problem = "not a name" if name is None else "given twice"
        raise StudyError(problem, file=path, line=wrong.start_mark.line + 1, field=name, expected="each key once")
    if not isinstance(data, dict):
        raise StudyError("is not a mapping", file=path, line=1, expected=f"the keys of a {model.__name__}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _explain(error, path, root, model) from error


def _read(text: str) -> tuple[yaml.Node | None, yaml.Node | None, object]:
    """The document's root, a wrong key in it, and without one what it says; by libyaml, a fifth of the time."""
    # Nothing nests deeper than brackets are opened and a line is long; libyaml's binding overruns the stack there.
    deepest = text.count("[") + text.count("{") + max(map(len, text.splitlines()), default=0)
    if deepest <= _DEEP:
        try:
            return _read_by(getattr(yaml, "CSafeLoader", yaml.SafeLoader), text)
        except (yaml.YAMLError, ValueError):
            pass  # PyYAML's own reader names the fault and its line better
    return _read_by(yaml.SafeLoader, text)


def _read_by(
    reader: type[yaml.SafeLoader | yaml.CSafeLoader], text: str
) -> tuple[yaml.Node | None, yaml.Node | None, object]:
    loader = reader(text)
    root = loader.get_single_node()
    wrong = None if root is None else wrong_key(root)
    return root, wrong, None if root is None or wrong is not None else loader.construct_document(root)


def _explain(error: ValidationError, path: Path, root: yaml.Node | None, model: type[BaseModel]) -> StudyError:
    # A misspelt key is both unknown and missing: the unknown one is the mistake to show.
    first = min(error.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden")
    cause = first.get("ctx", {}).get("error")
    location = (*first["loc"], *(cause.at if isinstance(cause, MisplacedError) else ()))
    field = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        known = _keys_at(model, location[:-1])
        problem, expected = "unknown key", f"one of {', '.join(known)}" if known else None
    elif first["type"] == "missing":
        problem, expected = "missing", "this key"
    else:
        message = first["msg"].removeprefix("Value error, ")
        problem, expected = message.removesuffix(" is expected"), None
        if message != problem:
            # What was given is the whole model where a part of it is wrong; the line shows the part.
            given = "" if isinstance(cause, MisplacedError) else f"{_shown(first['input'])} "
            problem, expected = f"{given}is not right", problem
    return StudyError(problem, file=path, line=line_of(root, location), field=field or None, expected=expected)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys a mapping at `location` may have."""
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = [] if field is None else [item for item in _types_in(field.annotation) if _is_model(item)]
        if not inner:
            return []
        model = inner[0]  # type: ignore[assignment]
    return [name for name, field in model.model_fields.items() if not field.exclude]


def _types_in(annotation: object) -> list[object]:
    return [annotation, *(item for argument in get_args(annotation) for item in _types_in(argument))]


def _is_model(item: object) -> bool:
    return isinstance(item, type) and issubclass(item, BaseModel)


def line_of(node: yaml.Node | None, location: tuple[int | str, ...]) -> int | None:
    """Line of the deepest node on the way to `location` that the file has; None for an empty file."""
    line = None if node is None else node.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def wrong_key(root: yaml.Node) -> yaml.Node | None:
    """A key that is no plain name, or that its mapping has twice: PyYAML keeps the last of two in silence.

    None where every key is right. A node that an alias repeats is looked at once.
    """
    waiting, met = [root], {id(root)}
    while waiting:
        node = waiting.pop()
        inner: list[yaml.Node] = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            names: set[str] = set()
            pairs: list[tuple[yaml.Node, yaml.Node]] = node.value
            for key, value in pairs:
                if not isinstance(key, yaml.ScalarNode) or key.value in names:
                    return key
                names.add(key.value)
                inner.append(value)
        fresh = [item for item in inner if id(item) not in met]
        met.update(map(id, fresh))
        waiting += reversed(fresh)
    return None
