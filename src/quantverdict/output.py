"""What leaves for a terminal or a log: text that commands nothing, on streams that may not take all of it.

Names, paths and errors come from files and servers of others. None of them may move a cursor, turn the direction of
the text, or be read as a command by the program that keeps the log.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from typing import TextIO

_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but the tab and the line feed, line separators, direction overrides, lone surrogates."""
_COMMAND = re.compile(r"##(?=\w*\[)|::(?=[a-z][a-z-]*(?: [^\n]*?)?::)", re.IGNORECASE)
"""How commands begin in a log of GitHub (`##[error]`, `::error::`), Azure (`##vso[`) or TeamCity (`##teamcity[`)."""
SIGNS = str.maketrans(
    {
        "\N{HORIZONTAL ELLIPSIS}": "...",
        "\N{CHECK MARK}": "+",
        "\N{MULTIPLICATION X}": "x",
        "\N{BLACK SQUARE}": "#",
        "\N{MINUS SIGN}": "-",
        "\N{MULTIPLICATION SIGN}": "x",
    }
)
"""Our own signs, for a stream that cannot show them."""


def plain(value: object) -> str:
    """Text as it can be shown: control characters, lone surrogates and direction overrides become U+FFFD."""
    text = str(value)
    # None of them is printable, which is quicker to see.
    return text if text.isprintable() else _HIDDEN.sub("\ufffd", text)


def harmless(text: object) -> str:
    """`plain`, and what a log would read as a command is set apart: `# #[error]`, `: :error::`."""
    return _COMMAND.sub(lambda found: " ".join(found.group()), plain(text))


def one_line(text: object) -> str:
    """`harmless`, in one line."""
    return harmless(" ".join(str(text).split()))


def json_text(document: object, stream: TextIO) -> str:
    """A document as JSON that any terminal can be shown, and that says the same: what is hidden is escaped."""
    return escaped_json(json.dumps(document, ensure_ascii=not is_utf8(stream), indent=2))


def escaped_json(text: str) -> str:
    """JSON whose texts hold control characters or commands, with these escaped: it stays the same document."""
    text = text if text.isprintable() else _HIDDEN.sub(lambda found: f"\\u{ord(found.group()):04x}", text)
    return _COMMAND.sub(lambda found: f"\\u{ord(found.group()[0]):04x}{found.group()[1]}", text)


def is_utf8(stream: TextIO) -> bool:
    """Whether a stream takes every character."""
    try:
        return codecs.lookup(stream.encoding or "ascii").name == "utf-8"
    except (AttributeError, LookupError, TypeError):
        return False


class Outlet:
    """A stream whose user has something better to do than to fail of it.

    A character that it cannot show becomes `?`, or a sign of ours its likeness. Where it takes nothing any longer (a
    full disk, a closed pipe), the rest is dropped and `failure` says why.
    """

    buffer = None
    """No way around `write`."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failure: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        if self.failure is None:
            try:
                self.stream.write(self._shown(text))
            except (OSError, ValueError) as error:  # a ValueError where it was closed
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        if self.failure is None:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self._fail(error)

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)

    def _shown(self, text: str) -> str:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            return text.translate(SIGNS).encode(encoding, "replace").decode(encoding)
        return text

    def _fail(self, error: OSError | ValueError) -> None:
        """Remember why, and lead what is still buffered to nowhere: Python would fail of it again as it ends."""
        self.failure = error
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):  # no file of the system's
            return
