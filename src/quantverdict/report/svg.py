"""SVG from plain functions: escaped elements, scales with round ticks, and labels that do not overlap.

Lengths are in user units; every colour is a class name that the page's style gives a value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle, x to the right and y down."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Whether the two share an area."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def holds(self, other: Box) -> bool:
        """Whether `other` lies wholly inside."""
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.top <= other.top
            and other.bottom <= self.bottom
        )


def coordinate(value: float) -> str:
    """A length in at most a tenth of a unit, without a trailing `.0` or a negative zero."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def element(name: str, *children: str, **attributes: str | float | None) -> str:
    """One element; attribute values are escaped, children are markup; `class_` and `_` are written `class` and `-`."""
    parts = [name]
    for key, value in attributes.items():
        if value is not None:
            text = value if isinstance(value, str) else coordinate(value)
            parts.append(f'{key.rstrip("_").replace("_", "-")}="{escape(text)}"')
    return f"<{' '.join(parts)}/>" if not children else f"<{' '.join(parts)}>{''.join(children)}</{name}>"


def text(content: str, x: float, y: float, **attributes: str | float | None) -> str:
    """A line of text, escaped."""
    return element("text", escape(content), x=x, y=y, **attributes)


def text_width(content: str, size: float) -> float:
    """Width that a line takes in a usual sans-serif face, rounded up rather than down."""
    return sum(0.36 if c in " .,:;'|ijl[]()-" else 0.66 for c in content) * size


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps data in [lo, hi] to lengths in [start, end], by the logarithm where `log` is set."""

    lo: float
    hi: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log(value / self.lo) / math.log(self.hi / self.lo)
        else:
            share = (value - self.lo) / (self.hi - self.lo)
        return self.start + share * (self.end - self.start)

    def inside(self, value: float) -> float:
        """`value`, or the end of the scale it lies beyond."""
        return min(max(value, self.lo), self.hi)


def span(values: Sequence[float], margin: float = 0.06) -> tuple[float, float]:
    """The range of `values` with a margin; a wider one where they are all equal."""
    lo, hi = min(values), max(values)
    pad = (hi - lo) * margin or abs(hi) * 0.1 or 1.0
    return lo - pad, hi + pad


def ticks(lo: float, hi: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten within [lo, hi], some `about` of them."""
    raw = (hi - lo) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= raw * 0.999)
    first = math.ceil(lo / step - 1e-9)
    return [round(first * step + k * step, 10) for k in range(int((hi - first * step) / step + 1e-9) + 1)]


def log_ticks(lo: float, hi: float) -> list[float]:
    """Powers of two, and halfway between them where they are few, within [lo, hi]."""
    powers = [
        2.0**k * part for k in range(math.floor(math.log2(lo)), math.ceil(math.log2(hi)) + 1) for part in (1, 1.5)
    ]
    within = [value for value in powers if lo <= value <= hi]
    whole = [value for value in within if math.log2(value).is_integer()]
    return whole if len(whole) >= 5 else within


class Placed(NamedTuple):
    """A label's anchor point, its alignment, and whether it is far enough from its mark to need a line to it."""

    x: float
    y: float
    anchor: str
    led: bool


_DIRECTIONS = (
    (1, 0), (-1, 0), (0, -1), (0, 1), (0.8, -0.7), (-0.8, -0.7), (0.8, 0.7), (-0.8, 0.7),
    (0.95, -0.35), (-0.95, -0.35), (0.95, 0.35), (-0.95, 0.35), (0.4, -0.95), (-0.4, -0.95), (0.4, 0.95), (-0.4, 0.95),
)  # fmt: skip
_RADII = (8, 15, 24, 34, 46, 60, 76)


def _candidates(x: float, y: float) -> Iterator[Placed]:
    for radius in _RADII:
        for dx, dy in _DIRECTIONS:
            anchor = "middle" if dx == 0 else "start" if dx > 0 else "end"
            yield Placed(x + dx * radius, y + dy * radius * 1.15, anchor, radius > 15)


def _box(placed: Placed, width: float, size: float) -> Box:
    left = placed.x - {"start": 0.0, "middle": width / 2, "end": width}[placed.anchor]
    return Box(left - 2, placed.y - size * 0.55, left + width + 2, placed.y + size * 0.55)


def _clear_line(placed: Placed, x: float, y: float, taken: Sequence[Box]) -> bool:
    """Whether the line from a mark to its label crosses no other label."""
    points = [(x + (placed.x - x) * k / 8, y + (placed.y - y) * k / 8) for k in range(1, 8)]
    return not any(box.left <= px <= box.right and box.top <= py <= box.bottom for box in taken for px, py in points)


def place_labels(
    marks: Sequence[tuple[float, float]], labels: Sequence[str], frame: Box, size: float, taken: Sequence[Box] = ()
) -> list[Placed | None]:
    """A free place for each label near its mark, first come first served; None where there is none within reach."""
    dots = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in marks]
    written: list[Box] = list(taken)
    result: list[Placed | None] = []
    for (x, y), label in zip(marks, labels, strict=True):
        chosen = _free_place((x, y), text_width(label, size), size, frame, (dots, written))
        if chosen is not None:
            written.append(_box(chosen, text_width(label, size), size))
        result.append(chosen)
    return result


def _free_place(
    mark: tuple[float, float], width: float, size: float, frame: Box, taken: tuple[Sequence[Box], Sequence[Box]]
) -> Placed | None:
    """The nearest free place whose line crosses no label; where every line would, the nearest free place."""
    dots, written = taken
    crossing = None
    for candidate in _candidates(*mark):
        box = _box(candidate, width, size)
        if frame.holds(box) and not any(box.overlaps(other) for other in (*dots, *written)):
            if not candidate.led or _clear_line(candidate, *mark, written):
                return candidate
            crossing = crossing or candidate
    return crossing
