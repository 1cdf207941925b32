"""Instructions followed: what an item's `checks` ask of the form of an answer, each one looked at by rule.

`checks` is a JSON list. Each member has a `kind`: `length` and `count` (of a `unit`, `at_least`, `at_most` or
`exactly`), `case`, `format`, `keywords`, `language`, `starts`, `ends`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from quantverdict.grading.base import EMPTY_ANSWER, Grade, cleaned
from quantverdict.grading.format_features import language
from quantverdict.records import Response
from quantverdict.registry import one_of
from quantverdict.tasks.catalog import Item, Task
from quantverdict.tasks.taskfile import ItemProblem

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")  # noqa: RUF001
_BULLET, _NUMBERED = re.compile(r"^[ \t]*[-*•+] +\S", re.MULTILINE), re.compile(r"^[ \t]*\d{1,3}[.)] +\S", re.MULTILINE)
_SENTENCE = re.compile(r"[.!?…。！？]+[\"'”’)]*(?=\s|$)|(?<=[。！？])")  # noqa: RUF001
_FENCE = re.compile(r"\A\s*```[\w+-]*\n(.*?)\n?```\s*\Z", re.DOTALL)

UNITS: Mapping[str, Callable[[str], int]] = {
    "words": lambda text: len(_WORD.findall(text)),
    "characters": lambda text: len(text.strip()),
    "sentences": lambda text: len([part for part in _SENTENCE.split(text) if _WORD.search(part)]),
    "lines": lambda text: len([line for line in text.splitlines() if line.strip()]),
    "paragraphs": lambda text: len([part for part in re.split(r"\n[ \t]*\n", text) if part.strip()]),
    "bullets": lambda text: len(_BULLET.findall(text)),
    "numbered": lambda text: len(_NUMBERED.findall(text)),
    "commas": lambda text: text.count(","),
    "question_marks": lambda text: text.count("?"),
    "exclamation_marks": lambda text: text.count("!"),
    "comma_items": lambda text: len([part for part in text.strip().rstrip(".").split(",") if part.strip()]),
}
"""What is counted."""


def score_instruction(_task: Task, item: Item, _response: Response, text: str) -> Iterator[Grade]:
    """`instruction_following`: 1 where every check of the item holds."""
    if not cleaned(text):
        yield Grade("instruction_following", None, EMPTY_ANSWER)
        return
    checks = json.loads(str(item.fields["checks"]))
    yield Grade("instruction_following", float(all(holds(one, text) for one in checks)))


def holds(check: Mapping[str, Any], text: str) -> bool:
    """Whether an answer does what one check asks."""
    return KINDS[check["kind"]](check, text.strip())


def _counted(check: Mapping[str, Any], text: str) -> bool:
    n = UNITS[check["unit"]](text)
    if "exactly" in check:
        return n == int(check["exactly"])
    return int(check.get("at_least", 0)) <= n <= int(check.get("at_most", n))


def _case(check: Mapping[str, Any], text: str) -> bool:
    letters = [letter for letter in text if letter.isalpha()]
    if check["is"] == "title":
        return bool(letters) and all(word[0].isupper() or not word[0].isalpha() for word in _WORD.findall(text))
    wanted = str.isupper if check["is"] == "upper" else str.islower
    return bool(letters) and all(wanted(letter) for letter in letters if letter.upper() != letter.lower())


def _keywords(check: Mapping[str, Any], text: str) -> bool:
    def times(word: str) -> int:
        return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))

    found = [times(word) for word in check.get("all", ())]
    counts = [times(word) == int(n) for word, n in check.get("times", {}).items()]
    return all(found) and all(counts) and not any(times(word) for word in check.get("none", ()))


def _json(text: str) -> Any:  # noqa: ANN401 - whatever it holds
    inside = _FENCE.match(text)
    return json.loads(inside[1] if inside else text)


def _format(check: Mapping[str, Any], text: str) -> bool:
    kind, lines = check["is"], [line for line in text.splitlines() if line.strip()]
    if kind in ("json", "json_list"):
        try:
            value = _json(text)
        except (ValueError, RecursionError):
            return False
        if kind == "json_list":
            return isinstance(value, list)
        return isinstance(value, dict) and set(check.get("keys", value)) == set(value)
    if kind == "bullets":
        return all(_BULLET.match(line) for line in lines)
    if kind == "numbered":
        numbers = [re.match(r"[ \t]*(\d{1,3})[.)] +\S", line) for line in lines]
        return [int(one[1]) if one else 0 for one in numbers] == list(range(1, len(lines) + 1))
    if kind == "table":
        rows = [line.strip() for line in lines]
        return len(rows) > 2 and all(row.startswith("|") and row.endswith("|") for row in rows) and set(rows[1]) <= set("|-: ")
    if kind == "csv":
        widths = {len(line.split(",")) for line in lines}
        return len(widths) == 1 and widths != {1}
    if kind == "quoted":
        return len(text) > 2 and text[0] in "\"“«" and text[-1] in "\"”»"
    return kind == "one_word" and len(_WORD.findall(text)) == 1


KINDS: Mapping[str, Callable[[Mapping[str, Any], str], bool]] = {
    "length": _counted,
    "count": _counted,
    "case": _case,
    "format": _format,
    "keywords": _keywords,
    "language": lambda check, text: language(text) == check["is"],
    "starts": lambda check, text: text.casefold().startswith(str(check["with"]).casefold()),
    "ends": lambda check, text: text.casefold().endswith(str(check["with"]).casefold()),
}
CASES, FORMATS = ("upper", "lower", "title"), (
    "json", "json_list", "bullets", "numbered", "table", "csv", "quoted", "one_word",
)  # fmt: skip
_NEEDS = {"length": "unit", "count": "unit", "case": "is", "format": "is", "language": "is", "starts": "with", "ends": "with"}


def check_instruction(_task: Task, item: Item) -> ItemProblem | None:
    """The checks of an item: known kinds, with what each needs."""
    try:
        checks = json.loads(str(item.fields["checks"]))
    except (ValueError, RecursionError):
        checks = None
    if not isinstance(checks, list) or not checks or not all(isinstance(one, dict) for one in checks):
        return ItemProblem("checks", "is no JSON list of checks", '[{"kind": "length", "unit": "words", "at_most": 20}]')
    for one in checks:
        kind = str(one.get("kind"))
        if kind not in KINDS:
            return ItemProblem("checks", f"unknown kind {kind!r}", one_of(kind, KINDS))
        need = _NEEDS.get(kind)
        if need is not None and need not in one:
            return ItemProblem("checks", f"a check of kind {kind} without {need}", f'"{need}": ...')
        known = {"unit": tuple(UNITS), "case": CASES, "format": FORMATS}.get("unit" if need == "unit" else kind)
        if known and one[need or ""] not in known:
            return ItemProblem("checks", f"unknown {need} {one[need or '']!r}", one_of(str(one[need or ""]), known))
        if need == "unit" and not all(type(one[key]) is int for key in ("exactly", "at_least", "at_most") if key in one):
            return ItemProblem("checks", f"a limit of {one['unit']} that is no whole number", "a whole number")
        if need == "unit" and not {"exactly", "at_least", "at_most"} & set(one):
            return ItemProblem("checks", f"a count of {one['unit']} without a limit", "at_least, at_most or exactly")
    return None
