"""Output filters: what is done to an answer before it is compared; a task names them in order."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

_PREFIX = re.compile(r"\s*(?:assistant|answer|response)\s*:\s*", re.IGNORECASE)


def strip_whitespace(text: str) -> str:
    """Without white space at both ends."""
    return text.strip()


def truncate_at_newline(text: str) -> str:
    """The first line, without its line break."""
    return text.split("\n", 1)[0].removesuffix("\r")


def remove_assistant_prefix(text: str) -> str:
    """Without one leading `Assistant:`, `Answer:` or `Response:` in any case, and the white space around it."""
    found = _PREFIX.match(text)
    return text[found.end() :] if found else text


def lowercase(text: str) -> str:
    """In lower case."""
    return text.lower()


FILTERS: Mapping[str, Callable[[str], str]] = {
    function.__name__: function
    for function in (strip_whitespace, truncate_at_newline, remove_assistant_prefix, lowercase)
}
