"""Instructions followed: what an item's `checks` ask of the form of an answer, each one looked at by rule.

`checks` is a JSON list. Each member has a `kind`: `length` and `count` (of a `unit`, `at_least`, `at_most` or
`exactly`), `case`, `format`, `keywords`, `language`, `starts`, `ends`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from quantverdict.grading.base import EMPTY_ANSWER, Grade, cleaned
from quantverdict.grading.format_features import language
from quantverdict.records import Response
from quantverdict.registry.listing import one_of
from quantverdict.tasks.catalog import Item, Task
from quantverdict.tasks.taskfile import ItemProblem

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")  # noqa: RUF001
_BULLET, _NUMBERED = re.compile(r"^[ \t]*[-*•+] +\S", re.MULTILINE), re.compile(r"^[ \t]*\d{1,3}[.)] +\S", re.MULTILINE)
_SENTENCE = re.compile(r"[.!?…。！？]+[\"'”’)]*(?=\s|$)|(?<=[。！？])")  # noqa: RUF001
FENCE = re.compile(r"\A\s*```[\w+-]*\n(.*?)\n?```\s*\Z", re.DOTALL)

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
    inside = FENCE.match(text)
    return json.loads(inside[1] if inside else text)


def _json_format(check: Mapping[str, Any], text: str) -> bool:
    try:
        value = _json(text)
    except (ValueError, RecursionError):
        return False
    if check["is"] == "json_list":
        return isinstance(value, list)
    return isinstance(value, dict) and set(check.get("keys", value)) == set(value)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _numbered(_check: Mapping[str, Any], text: str) -> bool:
    numbers = [re.match(r"(\d{1,3})[.)] +\S", line) for line in _lines(text)]
    return [int(one[1]) if one else 0 for one in numbers] == list(range(1, len(numbers) + 1))


def _table(_check: Mapping[str, Any], text: str) -> bool:
    rows = _lines(text)
    framed = all(row.startswith("|") and row.endswith("|") for row in rows)
    return len(rows) > 2 and framed and set(rows[1]) <= set("|-: ")


def _csv(_check: Mapping[str, Any], text: str) -> bool:
    widths = {len(line.split(",")) for line in _lines(text)}
    return len(widths) == 1 and widths != {1}


FORMATS: Mapping[str, Callable[[Mapping[str, Any], str], bool]] = {
    "json": _json_format,
    "json_list": _json_format,
    "bullets": lambda _, text: all(_BULLET.match(line) for line in _lines(text)),
    "numbered": _numbered,
    "table": _table,
    "csv": _csv,
    "quoted": lambda _, text: len(text) > 2 and text[0] in '"“«' and text[-1] in '"”»',
    "one_word": lambda _, text: len(_WORD.findall(text)) == 1,
}
KINDS: Mapping[str, Callable[[Mapping[str, Any], str], bool]] = {
    "length": _counted,
    "count": _counted,
    "case": _case,
    "format": lambda check, text: FORMATS[check["is"]](check, text),
    "keywords": _keywords,
    "language": lambda check, text: language(text) == check["is"],
    "starts": lambda check, text: text.casefold().startswith(str(check["with"]).casefold()),
    "ends": lambda check, text: text.casefold().endswith(str(check["with"]).casefold()),
}
CASES = ("upper", "lower", "title")
_NEEDS = {
    "length": "unit",
    "count": "unit",
    "case": "is",
    "format": "is",
    "language": "is",
    "starts": "with",
    "ends": "with",
}


def check_instruction(_task: Task, item: Item) -> ItemProblem | None:
    """The checks of an item: known kinds, with what each needs."""
    try:
        checks = json.loads(str(item.fields["checks"]))
    except (ValueError, RecursionError):
        checks = None
    if not isinstance(checks, list) or not checks or not all(isinstance(one, dict) for one in checks):
        return ItemProblem(
            "checks", "is no JSON list of checks", '[{"kind": "length", "unit": "words", "at_most": 20}]'
        )
    return next((wrong for one in checks if (wrong := _check_one(one)) is not None), None)


def _check_one(one: Mapping[str, Any]) -> ItemProblem | None:
    kind = str(one.get("kind"))
    need = _NEEDS.get(kind)
    wrong: tuple[str, str] | None = None
    if kind not in KINDS:
        wrong = f"unknown kind {kind!r}", one_of(kind, KINDS)
    elif need is not None and need not in one:
        wrong = f"a check of kind {kind} without {need}", f'"{need}": ...'
    elif need is not None and (known := _KNOWN.get(kind)) and one[need] not in known:
        wrong = f"unknown {need} {one[need]!r}", one_of(str(one[need]), known)
    elif need == "unit" and not set(_LIMITS) & set(one):
        wrong = f"a count of {one['unit']} without a limit", " or ".join(_LIMITS)
    elif need == "unit" and not all(type(one[key]) is int for key in _LIMITS if key in one):
        wrong = f"a limit of {one['unit']} that is no whole number", "a whole number"
    return None if wrong is None else ItemProblem("checks", *wrong)


_LIMITS = ("exactly", "at_least", "at_most")
_KNOWN: Mapping[str, Iterable[str]] = {
    "length": UNITS, "count": UNITS, "case": CASES, "format": FORMATS,
}  # fmt: skip
