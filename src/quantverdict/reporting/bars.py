"""The interval that decides, drawn with the margin: as text for a terminal and Markdown, as SVG in HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from quantverdict.reporting import formats
from quantverdict.reporting.formats import BAR

WIDTH, HEIGHT = 120, 16
"""Of the drawing, in pixels."""
COLUMNS = 16
"""Of the text."""
LEGEND = (
    f"{BAR[0]} delta, {BAR[1]} interval, {BAR[2]} margin: accepted where all of the interval is right "
    "of it, rejected where all is left of it"
)
GUARDED = f"{LEGEND}; {BAR[3]} guard margin, by which a member is accepted"


class IntervalBar(str):
    """A bar as text, which stands in HTML as a drawing."""

    __slots__ = ("drawn",)
    drawn: str

    def __html__(self) -> str:
        return self.drawn


def interval_bar(row: Mapping[str, Any]) -> IntervalBar | None:
    """The bar of a row of `criteria.csv` or of a build's criteria in `decision.json`; None where it is not tested.

    From twice the larger margin below 0 to as much above it as one margin; what is beyond is cut there.
    """
    delta, lo, hi = (formats.number(row.get(key)) for key in ("delta_pp", "ci_lo_pp", "ci_hi_pp"))
    margin, guard = (formats.number(row.get(key)) for key in ("margin_pp", "guard_margin_pp"))
    if delta is None or lo is None or hi is None or margin is None:
        return None
    guards = guard if row.get("role") == "member" and guard is not None and guard != margin else None
    widest = max(margin, guards or 0.0)
    scale = _Scale(-2 * widest, widest)
    bar = IntervalBar(_text(scale, (delta, lo, hi), margin, guards))
    bar.drawn = _svg(scale, (delta, lo, hi), margin, guards)
    return bar


class _Scale:
    """Where a delta in pp stands between two ends, from 0 to 1."""

    def __init__(self, lo: float, hi: float) -> None:
        self.lo, self.hi = lo, hi

    def at(self, value: float) -> float:
        return (min(max(value, self.lo), self.hi) - self.lo) / (self.hi - self.lo)


def _text(scale: _Scale, seen: tuple[float, float, float], margin: float, guard: float | None) -> str:
    point, line, mark, dots, axis = BAR
    delta, lo, hi = (round(scale.at(value) * (COLUMNS - 1)) for value in seen)
    cells = [line if lo <= at <= hi else axis for at in range(COLUMNS)]
    cells[delta] = point
    for value, sign in ((guard, dots), (margin, mark)):
        if value is not None and (at := round(scale.at(-value) * (COLUMNS - 1))) != delta:
            cells[at] = sign
    return "".join(cells)


def _svg(scale: _Scale, seen: tuple[float, float, float], margin: float, guard: float | None) -> str:
    delta, lo, hi = (_x(scale, value) for value in seen)
    middle = HEIGHT / 2
    words = f"{formats.delta(seen[0])} pp {formats.bounded(*seen[1:])}, margin {margin:g} pp"
    words += "" if guard is None else f", guard margin {guard:g} pp"
    marks = [(0.0, "zero"), (-margin, "margin"), *([] if guard is None else [(-guard, "guard")])]
    lines = "".join(
        f'<line class="{kind}" x1="{_x(scale, value)}" x2="{_x(scale, value)}" y1="1" y2="{HEIGHT - 1}"/>'
        for value, kind in marks
    )
    reach = f'<line class="reach" x1="{lo}" x2="{hi}" y1="{middle:g}" y2="{middle:g}"/>'
    point = f'<circle class="point" cx="{delta}" cy="{middle:g}" r="3"/>'
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return f'<svg class="margins" {size} role="img" aria-label="{words}">{lines}{reach}{point}</svg>'


def _x(scale: _Scale, value: float, width: float = WIDTH) -> str:
    return f"{4 + scale.at(value) * (width - 8):.1f}"


# A forest plot: rows of one scale under one axis, each a drawing of its own, so that its words can stand in a table.

ROW = (360, 24)
"""Width and height of a row's drawing."""


class ForestScale(_Scale):
    """One scale for many rows: from two of the widest margins below zero to one above it."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        margins = [known for row in rows for key in ("margin_pp", "guard_margin_pp")
                   if (known := formats.number(row.get(key))) is not None]  # fmt: skip
        widest = max(margins, default=5.0)
        super().__init__(-2 * widest, widest)

    def axis(self) -> str:
        """Ticks with their numbers, for the head of the column."""
        step = next((step for step in (1, 2, 2.5, 5, 10, 20, 25) if (self.hi - self.lo) / step <= 7), 50)
        first = math.ceil(self.lo / step)
        parts = []
        for k in range(first, math.floor(self.hi / step) + 1):
            x = _x(self, k * step, ROW[0])
            label = f"{k * step:+g}".replace("-", formats.MINUS) if k else "0"
            parts.append(f'<line class="zero" x1="{x}" x2="{x}" y1="18" y2="24"/>')
            parts.append(f'<text class="tick" x="{x}" y="13" text-anchor="{_anchor(float(x))}">{label}</text>')
        return f'<svg class="forest-bar axis" viewBox="0 0 {ROW[0]} {ROW[1]}" aria-hidden="true">{"".join(parts)}</svg>'

    def bar(self, row: Mapping[str, Any], look: str) -> str:
        """One interval with its margins; an end beyond the scale is an arrow. Empty where nothing was tested.

        Args:
            look: a class that says how it came out.
        """
        delta, lo, hi = (formats.number(row.get(key)) for key in ("delta_pp", "ci_lo_pp", "ci_hi_pp"))
        if delta is None or lo is None or hi is None:
            return ""
        margin, guard = (formats.number(row.get(key)) for key in ("margin_pp", "guard_margin_pp"))
        marks = [(0.0, "zero"), (margin and -margin, "margin")]
        if row.get("role") == "member" and guard != margin:
            marks.append((guard and -guard, "guard"))
        middle = ROW[1] / 2
        parts = [f'<line class="{kind}" x1="{x}" x2="{x}" y1="0" y2="{ROW[1]}"/>'
                 for at, kind in marks if at is not None for x in [_x(self, at, ROW[0])]]  # fmt: skip
        left, right = (_x(self, end, ROW[0]) for end in (lo, hi))
        parts.append(f'<line class="reach" x1="{left}" x2="{right}" y1="{middle:g}" y2="{middle:g}"/>')
        if lo < self.lo:
            parts.append(f'<path class="arrow" d="M8,{middle - 4:g} L2,{middle:g} L8,{middle + 4:g}"/>')
        if hi > self.hi:
            end = ROW[0] - 2
            tip = f"M{end - 6},{middle - 4:g} L{end},{middle:g} L{end - 6},{middle + 4:g}"
            parts.append(f'<path class="arrow" d="{tip}"/>')
        if self.lo <= delta <= self.hi:
            radius = 4 if row.get("role") == "member" else 5.5
            parts.append(f'<circle class="point" cx="{_x(self, delta, ROW[0])}" cy="{middle:g}" r="{radius}"/>')
        size = f'viewBox="0 0 {ROW[0]} {ROW[1]}"'
        return f'<svg class="forest-bar {look}" {size} aria-hidden="true">{"".join(parts)}</svg>'


def _anchor(x: float) -> str:
    return "start" if x < ROW[0] / 20 else "end" if x > ROW[0] * 19 / 20 else "middle"
