"""The interval that decides, drawn with the margin: as text for a terminal and Markdown, as SVG in HTML."""

from __future__ import annotations

from collections.abc import Mapping
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


def _x(scale: _Scale, value: float) -> str:
    return f"{4 + scale.at(value) * (WIDTH - 8):.1f}"
