"""How a value is written: one place for digits, units and the words for what was not measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from fractions import Fraction

from quantverdict import output

NOT_MEASURED = "not measured"
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
    "rouge_l": "ROUGE-L",
    "refusal_rate": "refusal rate by pattern",
    "over_refusal_rate": "over-refusal rate by pattern",
    "truthfulness": "truthfulness by pattern",
    "bias_resistance": "bias resistance by pattern",
    "judge_refusal_rate": "refusal rate by judge",
    "judge_truthfulness": "truthfulness by judge",
    "judge_bias_resistance": "bias resistance by judge",
    "advbench_refusal_rate": "plain refusal rate by pattern",
    "hard_refusal_rate": "hard refusal rate by pattern",
    "ttft_ms": "time to first token (ms)",
    "tokens_per_second": "tokens/s",
    "file_bytes": "file size",
    "peak_memory_bytes": "peak memory",
}


_JUDGES: ContextVar[Mapping[str, Sequence[str]]] = ContextVar("_JUDGES")
"""Metric to its judges in the bundle that is being shown."""

plain = output.plain
"""Text as it can be shown."""


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


def words(identifier: object) -> str:
    """`hidden_danger` as `hidden danger`."""
    return plain(identifier).replace("_", " ")


def label(column: str) -> str:
    """A column or metric name as a heading; a judge's rate with its judges, where `judged_by` names them."""
    if column in _WHOLE:
        names = _JUDGES.get({}).get(column)
        return f"{_WHOLE[column]}{'s' * (len(names) > 1)} {', '.join(names)}" if names else _WHOLE[column]
    return " ".join(_NAMES.get(part, part) for part in column.split("_"))


@contextmanager
def judged_by(judges: Mapping[str, Sequence[str]]) -> Iterator[None]:
    """While it is open the headings of rates by judges name these; metric to names as they can be shown."""
    token = _JUDGES.set(judges)
    try:
        yield
    finally:
        _JUDGES.reset(token)


def instrument(metric: str) -> str:
    """`by pattern`, or by which judge; empty for a metric that names no instrument."""
    return "".join(label(metric).partition(" by ")[1:]).strip()


def measured(metric: str) -> str:
    """A metric by its identifier, and the instrument that it is by."""
    by = instrument(metric)
    return f"{metric} ({by})" if by else metric


def bare(metric: str) -> str:
    """A metric's name without its instrument, which stands beside it."""
    return label(metric).partition(" by ")[0]


def refusal_delta(policy: Mapping[str, object]) -> str:
    """The heading of refusal deltas: by which instrument they are."""
    return f"refusal delta {instrument(plain(policy.get('refusal_metric') or 'refusal_rate'))}".rstrip()


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
