"""Answers compared with what is expected: equal, equal as a number, holding a text, or of a pattern.

How an answer is read stands in the item, so that a build is never read in another way than its baseline.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from quantverdict.grading.base import EMPTY_ANSWER, Grade, cleaned, strings
from quantverdict.records import Response
from quantverdict.tasks.catalog import Item, Task
from quantverdict.tasks.taskfile import ItemProblem

READ_CHARS = 20_000
"""How much of an answer a pattern of a task is tried on: the end of it."""
_PUNCTUATION = str.maketrans("", "", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_READING = {"until": list, "pattern": str, "select": int, "ignore_case": bool, "ignore_punctuation": bool,
            "ignore": list}  # fmt: skip
_FORM = '{"until": ["\\n\\n"], "pattern": "#### (.*)", "select": -1, "ignore": [","], "ignore_case": true}'


def expected_texts(item: Item) -> tuple[str, ...]:
    """What is right: the reference, and the `correct_answers` besides."""
    found = (*strings(item.fields.get("reference")), *strings(item.fields.get("correct_answers")))
    return tuple(dict.fromkeys(text for text in found if text.strip()))


# Equal


def score_exact_match(_task: Task, item: Item, _response: Response, text: str) -> Iterator[Grade]:
    """`exact_match_rate`: 1 where the answer, read as the item's `reading` says, is one of what is expected."""
    if not cleaned(text):
        yield Grade("exact_match_rate", None, EMPTY_ANSWER)
        return
    how = _reading(str(item.fields.get("reading", "")))
    found = extracted(text, how)
    right = {_plain(one, how) for one in expected_texts(item)}
    yield Grade("exact_match_rate", float(found is not None and _plain(found, how) in right))


def extracted(text: str, how: Mapping[str, Any]) -> str | None:
    """The part of an answer that is compared; None where the pattern finds nothing."""
    ends = [at for mark in how.get("until", ()) if mark and (at := text.find(mark)) >= 0]
    text = text[: min(ends)] if ends else text
    if "pattern" not in how:
        return text
    found = [match for match in re.findall(how["pattern"], text[-READ_CHARS:]) if match]
    if not found:
        return None
    chosen = found[max(-len(found), min(int(how.get("select", 0)), len(found) - 1))]
    return next((part for part in chosen if part), "") if isinstance(chosen, tuple) else str(chosen)


def _plain(text: str, how: Mapping[str, Any]) -> str:
    for pattern in how.get("ignore", ()):
        text = re.sub(pattern, "", text)
    text = text.lower() if how.get("ignore_case") else text
    return (text.translate(_PUNCTUATION) if how.get("ignore_punctuation") else text).strip()


@lru_cache(maxsize=256)
def _reading(text: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(text) if text.strip() else {}
    return found


def check_exact_match(_task: Task, item: Item) -> ItemProblem | None:
    """Something is expected, and `reading` is a mapping of known keys whose patterns compile."""
    if not expected_texts(item):
        return ItemProblem("reference", "nothing is expected", "a reference, or correct_answers")
    said = item.fields.get("reading", "")
    try:
        how = _reading(str(said))
        known = isinstance(how, dict) and all(type(value) is _READING.get(key) for key, value in how.items())
    except (ValueError, RecursionError):
        known, how = False, {}
    if not known:
        return ItemProblem("reading", f"{said!r:.40} says not how answers are read", f"JSON such as {_FORM}")
    patterns = [*how.get("ignore", ()), *([how["pattern"]] if "pattern" in how else [])]
    return next((wrong for one in patterns if (wrong := _pattern_problem("reading", one)) is not None), None)


def _pattern_problem(field: str, pattern: str) -> ItemProblem | None:
    try:
        re.compile(pattern)
    except re.error as error:
        return ItemProblem(field, f"{pattern!r:.60} is no regular expression ({error})", "a pattern of Python's re")
    return None


# Contains, pattern


def score_contains(_task: Task, item: Item, _response: Response, text: str) -> Iterator[Grade]:
    """`contains_expected`: 1 where one of what is expected stands in the answer, in any case, as whole words."""
    answer = cleaned(text).casefold()
    if not answer:
        yield Grade("contains_expected", None, EMPTY_ANSWER)
        return
    wanted = (re.escape(cleaned(one).casefold()) for one in expected_texts(item))
    yield Grade("contains_expected", float(any(re.search(rf"(?<!\w){one}(?!\w)", answer) for one in wanted)))


def check_expected(_task: Task, item: Item) -> ItemProblem | None:
    """Something is expected that a reader could see."""
    if not any(cleaned(text) for text in expected_texts(item)):
        return ItemProblem("reference", "nothing is expected", "a reference, or correct_answers")
    return None


def score_regex(_task: Task, item: Item, _response: Response, text: str) -> Iterator[Grade]:
    """`regex_match`: 1 where the item's `pattern` is found in the answer."""
    if not cleaned(text):
        yield Grade("regex_match", None, EMPTY_ANSWER)
        return
    yield Grade("regex_match", float(re.search(str(item.fields["pattern"]), text[-READ_CHARS:]) is not None))


def check_regex(_task: Task, item: Item) -> ItemProblem | None:
    """The pattern compiles, and not everything is of it."""
    pattern = str(item.fields["pattern"])
    wrong = _pattern_problem("pattern", pattern)
    if wrong is None and re.search(pattern, ""):
        return ItemProblem(
            "pattern", f"{pattern!r:.60} is found in an empty answer", "a pattern that asks for something"
        )
    return wrong


# Numbers

_GROUPED = r"\d{1,3}(?:[,\u00a0\u202f ]\d{3})+(?!\d)|\d+"
_NUMBER = re.compile(
    rf"(?<![\w.])(?P<sign>[-+\u2212]?)\s?(?:[$€£¥]\s?)?(?P<whole>{_GROUPED})?(?P<part>\.\d+)?"
    r"(?:\s?[xX*\u00b7\u00d7]\s?10\s?\^\s?\{?(?P<ten>[-+\u2212]?\d{1,3})\}?|[eE](?P<e>[-+]?\d{1,3})(?!\w))?"
    r"(?:\s?/\s?(?P<under>\d+))?(?P<percent>\s?%)?"
)
_FRACTION = re.compile(r"(?P<sign>[-\u2212]?)\\[dt]?frac\s?\{(?P<over>[^{}]{1,20})\}\s?\{(?P<under>[^{}]{1,20})\}")
_MARKED = (re.compile(r"\\boxed\s?\{((?:[^{}]|\{[^{}]*\}){1,200})\}"), re.compile(r"####\s*([^\n]{1,200})"))
_LATEX = re.compile(r"\\(?:text|mathrm|mbox)\s?\{[^{}]*\}|\\[,!;: ]|\$|\\%(?=\s|$)")
DIGITS = 40
"""A number of more digits is none that anybody meant."""


def score_numeric(_task: Task, item: Item, _response: Response, text: str) -> Iterator[Grade]:
    r"""`numeric_match`: 1 where the number that the answer comes to is the reference, within the item's `tolerance`.

    That is what stands in its last `\boxed{}` or behind its last `####`, else the last number in it.
    """
    if not cleaned(text):
        yield Grade("numeric_match", None, EMPTY_ANSWER)
        return
    bound = abs(Fraction(str(item.fields.get("tolerance", 0))))
    right = [value for one in expected_texts(item) for value in readings(one)]
    same = any(abs(found - value) <= bound for found in readings(text) for value in right)
    yield Grade("numeric_match", float(same))


def readings(text: str) -> tuple[Fraction, ...]:
    """The number that a text comes to, exactly; of a percentage, 12 % as 12 and as 0.12. Empty where it has none."""
    text = text[-READ_CHARS:]
    for pattern in _MARKED:
        marked = pattern.findall(text)
        if marked and (found := _last_number(str(marked[-1]))):
            return found
    return _last_number(text)


def _last_number(text: str) -> tuple[Fraction, ...]:
    plain = _FRACTION.sub(lambda found: f"{found['sign']}{found['over']}/{found['under']}", text)
    plain = _LATEX.sub(" ", plain.replace("\\%", "%").replace("{,}", ","))
    values = [(value, found["percent"]) for found in _NUMBER.finditer(plain) if (value := _value(found)) is not None]
    if not values:
        return ()
    last, percent = values[-1]
    return (last, last / 100) if percent else (last,)


def _value(found: re.Match[str]) -> Fraction | None:
    whole, part = re.sub(r"[^\d]", "", found["whole"] or ""), found["part"] or ""
    if not whole + part or len(whole + part) > DIGITS:
        return None
    value = Fraction(f"{whole or '0'}{part}") * Fraction(10) ** int(
        (found["ten"] or found["e"] or "0").replace("\u2212", "-")
    )
    if found["under"]:
        if not int(found["under"]):
            return None
        value /= int(found["under"])
    return -value if found["sign"] in ("-", "\u2212") else value


def check_numeric(_task: Task, item: Item) -> ItemProblem | None:
    """The reference is a number, and the tolerance is none below 0."""
    if not any(readings(text) for text in expected_texts(item)):
        return ItemProblem("reference", f"{item.reference!r:.40} holds no number", "a number, such as 1,234.5 or 3/4")
    try:
        right = Fraction(str(item.fields.get("tolerance", 0))) >= 0
    except (ValueError, ZeroDivisionError):
        right = False
    return None if right else ItemProblem("tolerance", f"{item.fields['tolerance']!r} is not valid", "a number from 0")


# An answer that judges alone read


def score_answered(_task: Task, _item: Item, response: Response, text: str) -> Iterator[Grade]:
    """`answered_rate`: there is an answer; what it is worth a rubric says that is `of: answered_rate`."""
    yield Grade("answered_rate", float(bool(cleaned(text))) if response.finish else None)


# The likeliest continuation


def score_completion(_task: Task, item: Item, response: Response, _text: str) -> Iterator[Grade]:
    """`completion_accuracy` and `completion_accuracy_norm`: the likeliest of the item's `choices` is the right one.

    The second by the log-probability a character, as lm-evaluation-harness has it (`acc_norm`).
    """
    choices, values = strings(item.fields.get("choices")), response.choice_logprobs
    names = ("completion_accuracy", "completion_accuracy_norm")
    if values is None or len(values) != len(choices):
        for name in names:
            yield Grade(name, None, "no log-probabilities of the choices")
        return
    right = choices.index(str(item.reference))
    a_character = [value / max(1, len(choice)) for value, choice in zip(values, choices, strict=True)]
    for name, numbers in zip(names, (values, a_character), strict=True):
        best = max(numbers)
        yield Grade(name, float(numbers[right] == best and list(numbers).count(best) == 1))


def check_completion(_task: Task, item: Item) -> ItemProblem | None:
    """Two choices or more, all different, and the reference among them."""
    choices = strings(item.fields["choices"]) if isinstance(item.fields["choices"], list) else ()
    if len(choices) < 2 or len(set(choices)) < len(choices):
        return ItemProblem("choices", f"{len(choices)} choices", "a list of two or more different texts")
    if item.reference not in choices:
        return ItemProblem("reference", f"{item.reference!r:.40} is not a choice", "one of choices")
    return None
