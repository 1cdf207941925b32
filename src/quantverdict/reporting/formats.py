"""How a value is written: one place for digits, units and the words for what was not measured."""

from __future__ import annotations

import codecs
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TextIO

# What leaves for a terminal or a log: text that commands nothing, on streams that may not take all of it.
#
# Names, paths and errors come from files and servers of others. None of them may move a cursor, turn the direction of
# the text, or be read as a command by the program that keeps the log.

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
        "\N{BLACK CIRCLE}": "o",
        "\N{BOX DRAWINGS LIGHT HORIZONTAL}": "-",
        "\N{BOX DRAWINGS HEAVY VERTICAL}": "|",
        "\N{BOX DRAWINGS LIGHT TRIPLE DASH VERTICAL}": ":",
        "\N{MIDDLE DOT}": ".",
    }
)
"""Our own signs, for a stream that cannot show them."""
BAR = (
    "\N{BLACK CIRCLE}", "\N{BOX DRAWINGS LIGHT HORIZONTAL}", "\N{BOX DRAWINGS HEAVY VERTICAL}",
    "\N{BOX DRAWINGS LIGHT TRIPLE DASH VERTICAL}", "\N{MIDDLE DOT}",
)  # fmt: skip
"""What an interval is drawn with: the delta, the interval, the margin, the guard margin, the axis."""


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


class OutputStream:
    """A stream whose user has something better to do than to fail of it.

    A character that it cannot show becomes `?`, or a sign of ours its likeness. Where it takes nothing any longer (a
    full disk, a closed pipe), the rest is dropped and `failure` says why.
    """

    buffer = None
    """No way around `write`."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failure: OSError | ValueError | None = None
        self.written = 0

    def write(self, text: str) -> int:
        self.written += len(text)
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


NOT_MEASURED = "not measured"
OPEN_END = 100
"""In pp: an interval of a delta that reaches so far has no end there, for too few pairs differ to bound it."""
MINUS = "\N{MINUS SIGN}"

_NAMES = {
    "arc": "ARC",
    "bertscore": "BERTScore",
    "bpw": "bits per weight",
    "ci": "interval",
    "hi": "to",
    "id": "id",
    "lo": "from",
    "mmlu": "MMLU",
    "n": "n",
    "pp": "(pp)",
    "percent": "(%)",
    "quant": "build",
    "rouge": "ROUGE",
    "sha256": "SHA-256",
}
_WHOLE = {
    "bpw_quantized": "bits per weight of matrices",
}


def number(value: object) -> float | None:
    """A bundle's number as a float; None for blank, missing, not-a-number and text."""
    if value is None or value == "" or isinstance(value, bool):
        return None
    text = str(value)
    try:
        result = float(Fraction(text)) if "/" in text and isinstance(value, str) else float(text)
    except (ValueError, ZeroDivisionError):
        return None
    return None if math.isnan(result) else result


def fixed(value: float, digits: int, *, sign: bool = False) -> str:
    """A decimal with a true minus sign; a value that rounds to zero has no sign."""
    if math.isinf(value):
        return "\N{INFINITY}" if value > 0 else f"{MINUS}\N{INFINITY}"
    rounded = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(rounded) == 0:
        rounded = rounded.lstrip("+-")
    return rounded.replace("-", MINUS)


def delta(value: object, digits: int = 2) -> str:
    """A signed difference."""
    known = number(value)
    return NOT_MEASURED if known is None else fixed(known, digits, sign=True)


def interval(lo: object, hi: object, digits: int = 2, *, sign: bool = False, factor: float = 1.0) -> str:
    """`[lo, hi]`, or an empty text where either end is not known."""
    low, high = number(lo), number(hi)
    if low is None or high is None:
        return ""
    return f"[{fixed(low * factor, digits, sign=sign)}, {fixed(high * factor, digits, sign=sign)}]"


def bounded(lo: object, hi: object, digits: int = 2) -> str:
    """The interval of a delta in pp; where one end is as far as a share can go, the other alone: `at least -3.40`."""
    low, high = number(lo), number(hi)
    if low is None or high is None:
        return ""
    ends = (low > -OPEN_END, high < OPEN_END)
    if all(ends):
        return interval(lo, hi, digits, sign=True)
    if not any(ends):
        return "not bounded"
    return f"at least {fixed(low, digits, sign=True)}" if ends[0] else f"at most {fixed(high, digits, sign=True)}"


def significant(value: float, digits: int = 3) -> str:
    """A plain decimal of at least `digits` significant figures; powers of ten only where it would be unreadable."""
    if value == 0 or math.isinf(value):
        return fixed(value, 0)
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4 or exponent > 14:
        return f"{value:.{digits - 1}e}".replace("-", MINUS)
    return fixed(value, max(0, digits - 1 - exponent))


def size(value: object) -> str:
    """Bytes in decimal units, as file listings of model hubs give them."""
    known = number(value)
    if known is None:
        return NOT_MEASURED
    for unit, bytes_ in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if known >= bytes_:
            return f"{significant(known / bytes_)} {unit}"
    return f"{significant(known)} B"


def quantity(value: object, digits: int | None = None) -> str:
    """An unsigned number: to `digits` decimals, or to three figures where they are not given."""
    known = number(value)
    if known is None:
        return NOT_MEASURED
    return significant(known) if digits is None else fixed(known, digits)


ON_SCREENS = {"neutral": "no named regime"}
"""What files call, and how a screen says it."""


def words(identifier: object) -> str:
    """`hidden_danger` as `hidden danger`; what files call otherwise than screens, as screens do."""
    text = ON_SCREENS.get(str(identifier), plain(identifier))
    return text.replace("not_resolvable", "inconclusive").replace("_", " ")


@dataclass(frozen=True, slots=True)
class DisplayNames:
    """Columns and metrics by their names in a report.

    Attributes:
        judges: each rate by judges to its judges, as they can be shown; without them it is by `judge`.
    """

    judges: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def label(self, column: str) -> str:
        """A column or metric name as a heading; a judge's rate with its judges."""
        from quantverdict.registry import METRICS  # heavier than all that the command line needs of this module

        whole = METRICS[column].label if column in METRICS else _WHOLE.get(column)
        if whole:
            names = self.judges.get(column)
            return f"{whole}{'s' * (len(names) > 1)} {', '.join(names)}" if names else whole
        return " ".join(_NAMES.get(part, part) for part in column.split("_"))

    def instrument(self, metric: str) -> str:
        """`by pattern`, or by which judge; empty for a metric that names no instrument."""
        return "".join(self.label(metric).partition(" by ")[1:]).strip()

    def measured(self, metric: str) -> str:
        """A metric by its identifier, and the instrument that it is by."""
        by = self.instrument(metric)
        return f"{metric} ({by})" if by else metric

    def bare(self, metric: str) -> str:
        """A metric's name without its instrument, which stands beside it."""
        return self.label(metric).partition(" by ")[0]

    def refusal_delta(self, policy: Mapping[str, object]) -> str:
        """The heading of refusal deltas: by which instrument they are."""
        return f"refusal delta {self.instrument(plain(policy.get('refusal_metric') or 'refusal_rate'))}".rstrip()


def table_value(column: str, value: object) -> str:
    """A CSV value as a table shows it, by the ending of its column's name."""
    if value is None or value == "":
        return NOT_MEASURED
    known = number(value)
    if known is None:
        return plain(value)
    if column == "bpw":
        return fixed(known, 2)
    if "bytes" in column:
        return size(known)
    if column.endswith(("_pp", "_percent")):
        signed = "delta" in column or "_lo" in column or "_hi" in column
        return fixed(known, 2, sign=signed)
    return plain(value) if known == int_or(known) and "." not in str(value) else significant(known, 4)


def int_or(value: float) -> float | int:
    """The whole number a float is, itself where it is none."""
    return int(value) if math.isfinite(value) and value == int(value) else value


def flatten(value: object, prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as (dotted key, text) pairs in its own order; lists are joined."""
    if isinstance(value, Mapping):
        pairs = []
        for key, item in value.items():
            pairs += flatten(item, f"{prefix}.{key}" if prefix else str(key))
        return pairs
    if isinstance(value, list):
        if any(isinstance(item, Mapping) for item in value):
            return [pair for k, item in enumerate(value) for pair in flatten(item, f"{prefix}[{k}]")]
        return [(prefix, ", ".join(plain(item) for item in value) or "none")]
    if isinstance(value, bool):
        return [(prefix, "yes" if value else "no")]
    return [(prefix, NOT_MEASURED if value is None or value == "" else plain(value))]
