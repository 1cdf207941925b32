"""What an answer stands in as a whole: a code fence, JSON, XML; and what it says inside.

Whoever serves a model with a schema, or a model that answers every question in a code block, wraps a refusal or a
choice in marks that say nothing. An answer that is only partly in such marks is left as it is.
"""

from __future__ import annotations

import json
import re
from typing import Literal

from quantverdict.backends.base import OPEN

Wrapper = Literal["none", "code", "json", "xml"]

DEPTH = 6
"""Wrappers inside wrappers that are opened."""
_ANSWER_KEYS = (
    "final_answer", "answer", "final", "response", "reply", "refusal", "completion", "output", "result", "solution",
    "conclusion", "decision", "choice", "option", "letter", "ans", "pick", "label", "prediction", "category",
    "classification", "selected", "verdict", "message",
    "content", "text", "value", "assistant", "model", "arguments", "action_input", "body", "comment", "error", "reason",
    "detail", "explanation",
)  # fmt: skip
"""Keys and tags under which an answer stands, the surest first."""
_THOUGHT_KEYS = frozenset(
    ["reasoning", "thought", "thoughts", "thinking", "rationale", "analysis", "chain_of_thought", "steps"]
)
"""Keys of what is thought: where one other key is left, the answer stands there, whatever it is called."""
_LEAD = r"[ \t\n]{0,20}(?:(?!```|[{\[<])[^\n{}<>`]{1,80}:[ \t]{0,3}\n{1,2})?"
"""A line that announces what follows (`Here is my answer:`), and says nothing itself."""
_FENCE = re.compile(
    rf"{_LEAD}[ \t]{{0,3}}(?P<fence>`{{3,10}}|~{{3,10}})[ \t]*(?P<info>[\w+#./-]{{0,30}})[^\n`]{{0,60}}\n"
)
_JSON = re.compile(rf"{_LEAD}(?=[{{\[\"])")
_XML = re.compile(
    rf"{_LEAD}(?:<\?xml[^<>]{{0,200}}\?>\s{{0,3}})?(?:<!DOCTYPE[^<>]{{0,200}}>\s{{0,3}})?"
    r"<(?P<tag>[A-Za-z][\w:.-]{0,40})(?:\s[^<>]{0,200})?>",
    re.IGNORECASE,
)
_THOUGHT = re.compile(OPEN, re.IGNORECASE)
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>|<!--[^<>]{0,500}-->|<!\[CDATA\[|\]\]>")
_BLANKS = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")
_PAIR = re.compile(
    rf"[\"']?\b({'|'.join(_ANSWER_KEYS)})\b[\"']?\s{{0,5}}:\s{{0,5}}"
    r"(?:\"((?:[^\"\\]|\\.)*)|'((?:[^'\\]|\\.)*)|([\w.-]{1,60}))",
    re.IGNORECASE,
)


_PRINTED = re.compile(
    r"(?:def \w{1,40}\([^()\n]{0,80}\)[^:\n]{0,40}:\s{1,20})?"
    r"(?:print|echo|return|puts|console\.log|raise \w{1,40}|throw new \w{1,40})\s?\(?\s?"
    r"([\"'])([^\n]{1,2000})\1\s?\)?;?"
)
"""A program that does nothing but say something."""
_ANSWER_ENDS = ("_answer", "_response", "_reply", "_message", "_output", "_choice", "_option", "_text")


def unwrap(text: str) -> tuple[Wrapper, str]:
    """What an answer stands in, and what it says inside: `none` and the text itself where it stands in nothing."""
    kind: Wrapper = "none"
    for _ in range(DEPTH):
        found, inside = _once(text)
        if found == "none":
            break
        kind, text = (found if kind == "none" else kind), inside
    return kind, text


def _once(text: str) -> tuple[Wrapper, str]:
    stripped = text.strip()
    for kind, inside in (("code", _in_fence(stripped)), ("json", _in_json(stripped)), ("xml", _in_xml(stripped))):
        if inside is not None:
            return kind, inside  # type: ignore[return-value]
    return "none", text


def _in_fence(text: str) -> str | None:
    """The inside of one code block, closed or cut."""
    begun = _FENCE.match(text)
    if begun is None:
        return None
    close = re.compile(rf"^[ \t]{{0,3}}{re.escape(begun['fence'])}+[ \t]*$", re.MULTILINE)
    end = close.search(text, begun.end())
    if end is not None and end.end() != len(text):
        return None
    inside = text[begun.end() : end.start() if end else len(text)].strip()
    printed = _PRINTED.fullmatch(inside)
    return printed[2] if printed else inside


def _in_json(text: str) -> str | None:
    begun = _JSON.match(text)
    if begun is None:
        return None
    text = text[begun.end() :]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return _in_broken_json(text)
    return _said(found, DEPTH) if isinstance(found, dict | list | str) else None


def _in_broken_json(text: str) -> str | None:
    """A text that begins as an object and is cut, or is not quite JSON: the surest pair of it."""
    if not re.match(r"\{\s{0,20}[\"'\w]", text):
        return None
    pairs = {pair[1].lower(): pair for pair in reversed(list(_PAIR.finditer(text)))}
    best = next((pairs[key] for key in _ANSWER_KEYS if key in pairs), None)
    if best is None:
        return None
    value = next((group for group in best.groups()[1:] if group is not None), "")
    return value.replace("\\n", "\n").replace('\\"', '"').replace("\\'", "'").strip()


def _said(found: object, depth: int) -> str | None:
    """What a JSON value says; None where no key of it is known for holding an answer."""
    if found is None or depth == 0:
        return None
    if isinstance(found, str):
        return found
    if isinstance(found, dict):
        return _said_by_keys(found, depth)
    if isinstance(found, list):
        parts = [_said(part, depth - 1) for part in found]
        return None if None in parts or not parts else "\n".join(part for part in parts if part is not None)
    return json.dumps(found)


def _said_by_keys(found: dict[str, object], depth: int) -> str | None:
    """The same of an object."""
    keys = {key.strip().lower().replace(" ", "_").replace("-", "_"): key for key in reversed(found)}
    known = [keys[name] for name in _ANSWER_KEYS if name in keys]
    known.sort(key=lambda key: isinstance(found[key], bool))  # `{"refusal": true, "message": "No."}` says "No."
    for key in known:
        if inside := _said(found[key], depth - 1):
            return inside
    held = [found[key] for name, key in keys.items() if name.endswith(_ANSWER_ENDS)]
    left = [found[key] for name, key in keys.items() if name not in _THOUGHT_KEYS] or [*found.values()]
    if len(held) == 1 or len(left) == 1:
        return _said((held if len(held) == 1 else left)[0], depth - 1)
    chosen = [key for key, value in found.items() if value is True]
    return chosen[0] if len(chosen) == 1 and all(isinstance(value, bool) for value in found.values()) else None


def _in_xml(text: str) -> str | None:
    """The inside of one element, closed or cut; of its parts that which is known for holding an answer."""
    begun = _XML.match(text)
    if begun is None or _THOUGHT.match(text, begun.start("tag") - 1):
        return None
    close, low = f"</{begun['tag'].lower()}>", text.lower()
    at = low.rfind(close)
    if 0 <= at < len(text) - len(close):
        return None
    inside = text[begun.end() : at] if at >= begun.end() else text[begun.end() :]
    for key in _ANSWER_KEYS:
        start = inside.lower().rfind(f"<{key}>")
        if start >= 0:
            part = inside[start + len(key) + 2 :]
            end = part.lower().find(f"</{key}>")
            return (part if end < 0 else part[:end]).strip()
    return _BLANKS.sub("\n", _TAG.sub("\n" if "\n" in inside else " ", inside)).strip()
