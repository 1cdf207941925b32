"""JSON as an answer: whether it parses, and whether it is of the item's schema.

The answer may stand in a code block; text around it is a fault. JSON Schema is checked by the jsonschema package, which
reaches for nothing outside of the schema.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType
from typing import Any

from quantverdict.errors import TaskError
from quantverdict.grading.base import EMPTY_ANSWER, Grade, cleaned
from quantverdict.grading.instructions import FENCE
from quantverdict.records import Response
from quantverdict.tasks.catalog import Item, Task
from quantverdict.tasks.taskfile import ItemProblem

MOST_CHARS = 100_000
_NO_PACKAGE = "a schema is checked by a package that is not installed"


def score_json(_task: Task, item: Item, _response: Response, text: str) -> Iterator[Grade]:
    """`json_valid`: the answer is JSON; `json_schema_valid`: of the item's `schema` too, where it has one."""
    schema = item.fields.get("schema")
    if not cleaned(text):
        yield Grade("json_valid", None, EMPTY_ANSWER)
        yield Grade("json_schema_valid", None, EMPTY_ANSWER)
        return
    found, value = _parsed(text)
    yield Grade("json_valid", float(found))
    if not isinstance(schema, str):
        yield Grade("json_schema_valid", None, "the item has no schema")
        return
    fits = _fits(value, schema) if found else False
    reason = "the schema refers to something that it does not hold" if fits is None else ""
    yield Grade("json_schema_valid", None if fits is None else float(fits), reason)


def _parsed(text: str) -> tuple[bool, Any]:
    inside = FENCE.match(text)
    text = inside[1] if inside else text
    if len(text) > MOST_CHARS:
        return False, None
    try:
        return True, json.loads(text.strip(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False, None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _fits(value: Any, schema: str) -> bool | None:  # noqa: ANN401 - whatever JSON holds
    unresolvable: type[Exception] = importlib.import_module("referencing.exceptions").Unresolvable
    try:
        return bool(_validator(schema).is_valid(value))
    except RecursionError:
        return False
    except unresolvable:
        return None


@lru_cache(maxsize=512)
def _validator(schema: str) -> Any:  # noqa: ANN401 - a class of the package's
    package, content = _package(), json.loads(schema)
    registry = importlib.import_module("referencing").Registry()  # empty: a reference to elsewhere is not fetched
    kind = package.validators.validator_for(content, default=package.Draft202012Validator)
    kind.check_schema(content)
    return kind(content, registry=registry)


def _package() -> ModuleType:
    try:
        return importlib.import_module("jsonschema")
    except ImportError as error:
        raise TaskError(_NO_PACKAGE, field="schema", expected="pip install 'quantverdict[json]'") from error


def check_json(_task: Task, item: Item) -> ItemProblem | None:
    """The schema of an item is one, in JSON."""
    schema = item.fields.get("schema")
    if schema is None:
        return None
    expected = 'a JSON Schema as text, such as {"type": "object", "required": ["name"]}'
    try:
        if not isinstance(schema, str) or not isinstance(json.loads(schema), dict):
            return ItemProblem("schema", f"{schema!r:.40} is no JSON Schema", expected)
    except (ValueError, RecursionError) as error:
        return ItemProblem("schema", f"not valid JSON ({error})", expected)
    package = _package()
    try:
        _validator(schema)
    except (package.SchemaError, RecursionError) as error:
        return ItemProblem("schema", f"is no JSON Schema ({str(error).splitlines()[0]:.80})", expected)
    return None
