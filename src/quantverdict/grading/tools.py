"""Calls of tools: is the right tool called, with the right arguments?

An item says in `tools` which tools there are (their JSON schemas, as in the OpenAI API) and in `reference` which calls
are right: a list of `{"name": ..., "arguments": {...}}`, empty where no tool fits. A call is read from JSON in its
usual shapes, in tags and fences, and from Python.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from quantverdict.grading.base import EMPTY_ANSWER, Grade, cleaned
from quantverdict.records import Response
from quantverdict.tasks.catalog import Item, Task
from quantverdict.tasks.taskfile import ItemProblem

MOST_CHARS = 8000
"""Of an answer."""
_NAMES = ("name", "tool", "function", "tool_name", "function_name", "action")
_ARGUMENTS = ("arguments", "parameters", "args", "params", "input", "action_input", "kwargs")
_WRAPPERS = ("tool_calls", "calls", "function_call", "tool_call")
_TAG = re.compile(r"</?(?:tool_call|function_call|tool|tools|function|call)>|<\|[\w▁]{1,30}\|>|\[TOOL_CALLS\]|```[\w]*")


class Call(NamedTuple):
    """A tool and its arguments by name."""

    name: str
    arguments: Mapping[str, Any]


def score_tool_call(_task: Task, item: Item, _response: Response, text: str) -> Iterator[Grade]:
    """`tool_call_accuracy`: 1 where exactly the right calls are made, each with the right arguments, in any order."""
    if not cleaned(text):
        yield Grade("tool_call_accuracy", None, EMPTY_ANSWER)
        return
    schemas = {one["name"]: one for one in _listed(item.fields["tools"])}
    wanted = [Call(one["name"], one["arguments"]) for one in json.loads(str(item.fields["reference"]))]
    yield Grade("tool_call_accuracy", float(calls_match(calls_in(text, tuple(schemas)), wanted, schemas)))


def calls_match(found: Sequence[Call], wanted: Sequence[Call], schemas: Mapping[str, Any]) -> bool:
    """Whether two lists hold the same calls; an argument that is left out may be given as its default."""
    left = list(wanted)
    for call in found:
        same = next((one for one in left if _same_call(call, one, schemas.get(call.name, {}))), None)
        if same is None:
            return False
        left.remove(same)
    return not left


def _same_call(call: Call, wanted: Call, schema: Mapping[str, Any]) -> bool:
    if call.name != wanted.name:
        return False
    known = schema.get("parameters", {}).get("properties", {})
    for name in {*call.arguments, *wanted.arguments}:
        if name in wanted.arguments and name in call.arguments:
            if not same_value(call.arguments[name], wanted.arguments[name]):
                return False
        elif name in wanted.arguments:
            if "default" not in known.get(name, {}) or not same_value(known[name]["default"], wanted.arguments[name]):
                return False
        elif "default" not in known.get(name, {}) or not same_value(call.arguments[name], known[name]["default"]):
            return False
    return True


def same_value(found: object, wanted: object) -> bool:
    """Whether an argument is the right one: texts without regard to case and white space, numbers by value.

    `{"any_of": [...]}` is right where one of its members is; a text is no number, and no list.
    """
    if isinstance(wanted, dict) and set(wanted) == {"any_of"}:
        return any(same_value(found, one) for one in wanted["any_of"])
    match found, wanted:
        case (bool(), _) | (_, bool()) | (None, _):
            same = found is wanted
        case (int() | float(), int() | float()):
            same = float(found) == float(wanted)
        case (str(), str()):
            same = _plain(found) == _plain(wanted)
        case (list(), list()):
            same = len(found) == len(wanted) and all(map(same_value, found, wanted))
        case (dict(), dict()):
            same = set(found) == set(wanted) and all(same_value(found[key], wanted[key]) for key in wanted)
        case _:
            same = False
    return same


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


def calls_in(text: str, names: tuple[str, ...]) -> list[Call]:
    """The calls that an answer makes, in their order; of tools that are not there too, where they are JSON."""
    plain = _TAG.sub(" ", text[:MOST_CHARS])
    found = [call for value in _json_values(plain) for call in _calls(value)]
    return found or _python_calls(plain, names)


def _json_values(text: str) -> Iterator[Any]:
    """Every JSON object or list that begins in a text outside another."""
    decoder, at = json.JSONDecoder(), 0
    for _ in range(100):
        begins = re.compile(r"[{\[]").search(text, at)
        if begins is None:
            return
        try:
            value, at = decoder.raw_decode(text, begins.start())
        except (ValueError, RecursionError):
            at = begins.start() + 1
        else:
            yield value


def _calls(value: Any) -> Iterator[Call]:  # noqa: ANN401 - whatever the JSON holds
    if isinstance(value, list):
        for one in value:
            yield from _calls(one)
    if not isinstance(value, dict):
        return
    inner = next((key for key in _WRAPPERS if key in value), "function")
    if inner in _WRAPPERS or isinstance(value.get("function"), dict):
        yield from _calls(value[inner])
        return
    name = next((value[key] for key in _NAMES if isinstance(value.get(key), str)), None)
    given = {} if len(value) == 1 else _arguments(value)
    if name is not None and given is not None:
        yield Call(name, given)


def _arguments(value: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The arguments of a call, which may be JSON in a text; None where it has none."""
    given = next((value[key] for key in _ARGUMENTS if key in value), None)
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            return None
    return given if isinstance(given, dict) else None


def _python_calls(text: str, names: tuple[str, ...]) -> list[Call]:
    """Calls such as `get_weather(city="Paris")`, of tools that are there and by the names of their arguments."""
    found = []
    for name in re.finditer(rf"(?<![\w.])(?:{'|'.join(map(re.escape, names)) or '(?!)'})\s?\(", text):
        end, depth = name.end(), 1
        while end < len(text) and depth and end - name.end() < 1000:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        try:
            node = ast.parse(text[name.start() : end].strip(), mode="eval").body
            if isinstance(node, ast.Call) and not node.args and all(key.arg for key in node.keywords):
                given = {str(key.arg): _literal(key.value) for key in node.keywords}
                found.append(Call(ast.unparse(node.func), given))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return found


def _literal(node: ast.expr) -> Any:  # noqa: ANN401 - a value
    if isinstance(node, ast.Name) and node.id in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[node.id]
    return ast.literal_eval(node)


def _listed(value: object) -> list[dict[str, Any]]:
    """The tools of an item, each with a name and its parameters."""
    tools = [one.get("function", one) if isinstance(one, dict) else one for one in json.loads(str(value))]
    if not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in tools):
        raise ValueError("a tool without a name")
    return tools


def check_tool_call(_task: Task, item: Item) -> ItemProblem | None:
    """The tools of an item, and right calls of tools that are among them."""
    try:
        names = [one["name"] for one in _listed(item.fields["tools"])]
    except (ValueError, RecursionError):
        return ItemProblem("tools", "is no JSON list of tools", '[{"name": ..., "parameters": {"properties": {...}}}]')
    try:
        calls = json.loads(str(item.fields["reference"]))
        right = isinstance(calls, list) and all(set(one) == {"name", "arguments"} for one in calls)
        right = right and all(isinstance(one["arguments"], dict) for one in calls)
    except (ValueError, TypeError, RecursionError):
        right = False
    if not right:
        return ItemProblem("reference", "is no JSON list of calls", '[{"name": ..., "arguments": {...}}], or []')
    unknown = next((one["name"] for one in calls if one["name"] not in names), None)
    if unknown is not None:
        return ItemProblem("reference", f"calls {unknown!r}, which is none of its tools", f"one of {', '.join(names)}")
    return None
