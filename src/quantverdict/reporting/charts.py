"""The report's charts as inline SVG: regimes, metrics against bits per weight, quality against size and speed.

Each panel is drawn for one base model or one metric and stays readable from a phone to a page, so that a study of
many models is a grid of panels and not one crowded plot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from quantverdict.reporting import formats
from quantverdict.stats import plain_sum

# SVG from plain functions: escaped elements, scales with round ticks, and labels that do not overlap.
#
# Lengths are in user units; every colour is a class name that the page's style gives a value.


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
    return plain_sum(0.36 if c in " .,:;'|ijl[]()-" else 0.66 for c in content) * size


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


class PlacedLabel(NamedTuple):
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


def _candidates(x: float, y: float) -> Iterator[PlacedLabel]:
    for radius in _RADII:
        for dx, dy in _DIRECTIONS:
            anchor = "middle" if dx == 0 else "start" if dx > 0 else "end"
            yield PlacedLabel(x + dx * radius, y + dy * radius * 1.15, anchor, radius > 15)


def _box(placed: PlacedLabel, width: float, size: float) -> Box:
    left = placed.x - {"start": 0.0, "middle": width / 2, "end": width}[placed.anchor]
    return Box(left - 2, placed.y - size * 0.55, left + width + 2, placed.y + size * 0.55)


def _clear_line(placed: PlacedLabel, x: float, y: float, taken: Sequence[Box]) -> bool:
    """Whether the line from a mark to its label crosses no other label."""
    points = [(x + (placed.x - x) * k / 8, y + (placed.y - y) * k / 8) for k in range(1, 8)]
    return not any(box.left <= px <= box.right and box.top <= py <= box.bottom for box in taken for px, py in points)


def place_labels(
    marks: Sequence[tuple[float, float]], labels: Sequence[str], frame: Box, size: float, taken: Sequence[Box] = ()
) -> list[PlacedLabel | None]:
    """A free place for each label near its mark, first come first served; None where there is none within reach."""
    dots = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in marks]
    written: list[Box] = list(taken)
    result: list[PlacedLabel | None] = []
    for (x, y), label in zip(marks, labels, strict=True):
        chosen = _free_place((x, y), text_width(label, size), size, frame, (dots, written))
        if chosen is not None:
            written.append(_box(chosen, text_width(label, size), size))
        result.append(chosen)
    return result


def _free_place(
    mark: tuple[float, float], width: float, size: float, frame: Box, taken: tuple[Sequence[Box], Sequence[Box]]
) -> PlacedLabel | None:
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


SIZES = {"regimes": (380.0, 340.0), "alone": (460.0, 400.0), "bits": (380.0, 310.0), "trade": (400.0, 300.0)}
"""Width and height of each kind of panel, in units that are about a pixel where it is shown."""
SMALL, TICK, TITLE = 13.5, 13.5, 13.5
"""Sizes of labels, of ticks and of the titles of axes in print; on a screen the style sheet has them smaller."""
TOP, BOTTOM, LEVELS = 10.0, 48.0, 52.0
"""Room above and under where the data is drawn, and above it where names of levels stand there."""


@dataclass(frozen=True, slots=True)
class Mark:
    """One build in a chart.

    Attributes:
        label: its name.
        x, y: where it is.
        x_range, y_range: its intervals, None where they are not known.
        shape: `ship`, `reject`, `unknown`, `reference`, or a series number as text.
        hint: the text that a pointer over it shows.
        joined: whether a line runs through it.
    """

    label: str
    x: float
    y: float
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    shape: str = "ship"
    hint: str = ""
    joined: bool = True


@dataclass(frozen=True, slots=True)
class Area:
    """A regime's rectangle in deltas; an open side is None."""

    regime: str
    left: float | None
    right: float | None
    bottom: float | None
    top: float | None


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis: its title, its range, and whether it is logarithmic."""

    title: str
    lo: float
    hi: float
    log: bool = False


def fitting(titles: Sequence[str], height: float) -> str:
    """The first title of an upward axis that a panel of this height has room for, the last if none is."""
    room = height - BOTTOM + TOP  # it stands in the middle of where the data is drawn, and may go on above and under
    return next((title for title in titles if text_width(title, TITLE) <= room), titles[-1])


def regime_areas(policy: Mapping[str, object]) -> list[Area]:
    """The rules of a policy as areas: quality delta to the right, refusal delta up, both in pp."""

    def threshold(name: str) -> float | None:
        return formats.number(policy.get(name))

    hidden, near = threshold("hidden_danger_quality_pp"), threshold("near_hidden_danger_quality_pp")
    collapse = threshold("refusal_collapse_pp")
    over, gain = threshold("over_refusal_quality_pp"), threshold("over_refusal_gain_pp")
    areas = []
    if collapse is not None and hidden is not None:
        areas.append(Area("hidden_danger", hidden, None, None, collapse))
    if collapse is not None and hidden is not None and near is not None:
        areas.append(Area("near_hidden_danger", near, hidden, None, collapse))
        if policy.get("joint_collapse"):
            areas.append(Area("joint_collapse", None, near, None, collapse))
    if over is not None and gain is not None:
        areas.append(Area("over_refusal", None, over, gain, None))
    return areas


def regime_panel(
    name: str, marks: Sequence[Mark], areas: Sequence[Area], axes: tuple[Axis, Axis], *, alone: bool = False
) -> str:
    """Quality delta against refusal delta with the regime areas.

    Args:
        name: an id, unique in the page.
        marks, areas: in the units of the axes.
        axes: across, up.
        alone: there is no other panel beside it.
    """
    size = SIZES["alone" if alone else "regimes"]
    frame = _frame(size, axes[1])
    x, y = _scales(axes, frame)
    defs, shapes, taken = [_patterns(name)], [], []
    for area in areas:
        box = _area_box(area, x, y)
        if box is not None:
            shapes.append(_rectangle(box, area.regime, name))
            caption, used = _area_label(formats.words(area.regime), box, [(x(m.x), y(m.y)) for m in marks])
            shapes.append(caption)
            taken += used
    zero = [element("line", x1=x(0), x2=x(0), y1=frame.top, y2=frame.bottom, class_="zero"),
            element("line", x1=frame.left, x2=frame.right, y1=y(0), y2=y(0), class_="zero")]  # fmt: skip
    body = [element("defs", *defs), *_axes(axes, x, y, frame), *shapes, *zero, *_marks(marks, x, y)]
    body += _labels(marks, x, y, frame, taken)
    return _svg(name, body, _describe(marks, axes), size)


def shared_axes(groups: Sequence[Sequence[Mark]], areas: Sequence[Area], titles: tuple[str, str]) -> tuple[Axis, Axis]:
    """Axes that hold every mark with its intervals and show a part of every area."""
    xs, ys = [0.0], [0.0]
    for mark in (mark for group in groups for mark in group):
        xs += [mark.x, *(mark.x_range or ())]
        ys += [mark.y, *(mark.y_range or ())]
    for area in areas:
        xs += [1.6 * edge for edge in (area.left, area.right) if edge is not None]
        ys += [1.6 * edge for edge in (area.bottom, area.top) if edge is not None]
    return Axis(titles[0], *span(xs, 0.03)), Axis(titles[1], *span(ys, 0.03))


def metric_panel(name: str, series: Sequence[Sequence[Mark]], axes: tuple[Axis, Axis], *, labelled: bool) -> str:
    """A metric against bits per weight, a line a base model, with interval bars.

    Args:
        name: an id, unique in the page.
        series: the marks of each base model from few bits to many.
        axes: bits per weight, the metric.
        labelled: write each build's name at its mark; else the names of the levels stand over the bits of each.
    """
    frame = _frame(SIZES["bits"], axes[1], TOP if labelled else LEVELS)
    x, y = _scales(axes, frame)
    body = _axes(axes, x, y, frame)
    body += [] if labelled else _levels([mark for marks in series for mark in marks], x, frame)
    for index, marks in enumerate(series):
        # Side by side, so that intervals at the same bits per weight stay apart.
        shift = (index - (len(series) - 1) / 2) * 2.5

        def across(value: float, shift: float = shift) -> float:
            return x(value) + shift

        line = " ".join(f"{across(m.x):.1f},{y(m.y):.1f}" for m in marks if m.joined)
        body += [element("polyline", points=line, class_=f"line s{index % 8}")] if line else []
        body += _marks(marks, across, y)
    marks = [mark for group in series for mark in group]
    body += _labels(marks, x, y, frame, ()) if labelled else []
    return _svg(name, body, _describe(marks, axes), SIZES["bits"])


def _levels(marks: Sequence[Mark], x: Scale, frame: Box) -> list[str]:
    """The names of builds over their bits per weight, slanted, each once, those that have no room left out."""
    bits: dict[str, list[float]] = {}
    for mark in marks:
        bits.setdefault(mark.label, []).append(mark.x)
    at_bits: dict[float, list[str]] = {}
    for label, values in bits.items():
        at_bits.setdefault(x(plain_sum(values) / len(values)), []).append(label)
    places = sorted((at, ", ".join(labels)) for at, labels in at_bits.items())
    parts, last = [], -math.inf
    for at, label in places:
        if at - last >= SMALL:
            top = frame.top - 5
            turn = f"rotate(-45 {at:.1f} {top:.1f})"
            parts.append(text(label, at, top, class_="tick", transform=turn))
            last = at
    return parts


def trade_panel(name: str, marks: Sequence[Mark], axes: tuple[Axis, Axis]) -> str:
    """One axis of the trade: quality delta against size, or against speed."""
    frame = _frame(SIZES["trade"], axes[1])
    x, y = _scales(axes, frame)
    zero = (
        [element("line", x1=frame.left, x2=frame.right, y1=y(0), y2=y(0), class_="zero")]
        if axes[1].lo < 0 < axes[1].hi
        else []
    )
    front = sorted((x(mark.x), y(mark.y)) for mark in marks if mark.joined)
    points = " ".join(f"{left:.1f},{top:.1f}" for left, top in front)
    line = [element("polyline", points=points, class_="front")] if len(front) > 1 else []
    body = [*_axes(axes, x, y, frame), *zero, *line, *_marks(marks, x, y), *_labels(marks, x, y, frame, ())]
    return _svg(name, body, _describe(marks, axes), SIZES["trade"])


def key_mark(shape: str) -> str:
    """A mark of its own, for a legend."""
    return element("svg", _shape(shape, 8, 8), class_="key", viewBox="0 0 16 16", aria_hidden="true")


def key_area(regime: str) -> str:
    """A swatch of a regime's area, for a legend."""
    name = f"key-{regime}"
    swatch = element("rect", x=1, y=1, width=22, height=14, class_=f"area {regime}", fill=f"url(#{name}-{regime})")
    return element(
        "svg",
        element("defs", _patterns(name, regime)),
        swatch,
        class_="key wide",
        viewBox="0 0 24 16",
        aria_hidden="true",
    )


_HATCH = {
    "hidden_danger": (7, "M-1,8 L8,-1"),
    "near_hidden_danger": (7, "M-1,-1 L8,8"),
    "joint_collapse": (6, "M3,2 L3,4"),
    "over_refusal": (6, "M0,3 L6,3"),
}


def _patterns(name: str, only: str | None = None) -> str:
    made = []
    for regime, (side, path) in _HATCH.items():
        if only in {None, regime}:
            ground = element("rect", width=side, height=side, class_=f"ground {regime}")
            hatch = element("path", d=path, class_=f"hatch {regime}")
            made.append(element("pattern", ground, hatch, id=f"{name}-{regime}", width=side, height=side,
                                patternUnits="userSpaceOnUse"))  # fmt: skip
    return "".join(made)


def _frame(size: tuple[float, float], up: Axis, top: float = TOP) -> Box:
    """Where the data is drawn: beside the axis title and the widest label of a tick, above those of the other axis."""
    widest = max(text_width(_tick(value), TICK) for value in ticks(up.lo, up.hi, 5))
    return Box(28 + widest, top, size[0] - 12, size[1] - BOTTOM)


def _scales(axes: tuple[Axis, Axis], frame: Box) -> tuple[Scale, Scale]:
    across, up = axes
    return (Scale(across.lo, across.hi, frame.left, frame.right, across.log),
            Scale(up.lo, up.hi, frame.bottom, frame.top, up.log))  # fmt: skip


def _axes(axes: tuple[Axis, Axis], x: Scale, y: Scale, frame: Box) -> list[str]:
    parts = []
    for value in log_ticks(x.lo, x.hi) if x.log else ticks(x.lo, x.hi, 6):
        parts.append(element("line", x1=x(value), x2=x(value), y1=frame.top, y2=frame.bottom, class_="grid"))
        parts.append(text(_tick(value), x(value), frame.bottom + 17, class_="tick", text_anchor="middle"))
    for value in ticks(y.lo, y.hi, 5):
        parts.append(element("line", x1=frame.left, x2=frame.right, y1=y(value), y2=y(value), class_="grid"))
        parts.append(text(_tick(value), frame.left - 6, y(value) + 4, class_="tick", text_anchor="end"))
    middle = (frame.top + frame.bottom) / 2
    parts.append(
        text(axes[0].title, (frame.left + frame.right) / 2, frame.bottom + 38, class_="title", text_anchor="middle")
    )
    parts.append(
        text(axes[1].title, 13, middle, class_="title", text_anchor="middle", transform=f"rotate(-90 13 {middle:.0f})")
    )
    return parts


def _tick(value: float) -> str:
    return f"{value:g}".replace("-", formats.MINUS)


def _area_box(area: Area, x: Scale, y: Scale) -> Box | None:
    left, right = (
        x(x.inside(edge if edge is not None else end)) for edge, end in ((area.left, x.lo), (area.right, x.hi))
    )
    bottom, top = (
        y(y.inside(edge if edge is not None else end)) for edge, end in ((area.bottom, y.lo), (area.top, y.hi))
    )
    return Box(left, top, right, bottom) if right > left and bottom > top else None


def _rectangle(box: Box, regime: str, name: str) -> str:
    sides = {"width": box.right - box.left, "height": box.bottom - box.top}
    return element("rect", x=box.left, y=box.top, **sides, class_=f"area {regime}", fill=f"url(#{name}-{regime})")


def _area_label(caption: str, box: Box, marks: Sequence[tuple[float, float]]) -> tuple[str, list[Box]]:
    """A regime's name inside its area, level or else upright, clear of the marks; nothing where it does not fit."""
    width, height, pad = text_width(caption, SMALL), SMALL + 3, 5
    tops, lefts = (box.bottom - height - pad, box.top + pad), (box.right - width - pad, box.left + pad)
    level = [Box(left, top, left + width, top + height) for top in tops for left in lefts]
    tops, lefts = (box.bottom - width - pad, box.top + pad), ((box.left + box.right - height) / 2, box.left + pad)
    upright = [Box(left, top, left + height, top + width) for left in lefts for top in tops]
    dots = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in marks]
    for spot in (*level, *upright):
        if box.holds(spot) and not any(spot.overlaps(dot) for dot in dots):
            x, y = (spot.left, spot.bottom - 4) if spot in level else (spot.right - 4, spot.bottom)
            turn = None if spot in level else f"rotate(-90 {x:.1f} {y:.1f})"
            return text(caption, x, y, class_="region", transform=turn), [spot]
    return "", []


def _marks(marks: Sequence[Mark], x: Callable[[float], float], y: Callable[[float], float]) -> list[str]:
    bars, dots = [], []
    for mark in marks:
        left, top = x(mark.x), y(mark.y)
        if mark.x_range:
            bars.append(
                element(
                    "line", x1=x(mark.x_range[0]), x2=x(mark.x_range[1]), y1=top, y2=top, class_=f"bar s{mark.shape}"
                )
            )
        if mark.y_range:
            bars.append(
                element(
                    "line", x1=left, x2=left, y1=y(mark.y_range[0]), y2=y(mark.y_range[1]), class_=f"bar s{mark.shape}"
                )
            )
        hint = element("title", _escaped(mark.hint or mark.label))
        dots.append(element("g", hint, _shape(mark.shape, left, top, hollow=not mark.joined)))
    return bars + dots


def _escaped(content: str) -> str:
    return content.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_PATHS = {
    "reference": "M-5,-5 H5 V5 H-5 Z",
    "reject": "M-5,-5 L5,5 M-5,5 L5,-5",
    "unknown": "M0,-6 L6,5 H-6 Z",
    "1": "M-4,-4 H4 V4 H-4 Z",
    "2": "M0,-5.5 L5,4 H-5 Z",
    "3": "M0,-5.5 L5.5,0 L0,5.5 L-5.5,0 Z",
    "4": "M0,5.5 L5,-4 H-5 Z",
    "5": "M-5,-5 L5,5 M-5,5 L5,-5",
    "6": "M0,-5.5 V5.5 M-5.5,0 H5.5",
    "7": "M-5,3 L0,-5 L5,3 L0,5 Z",
}


def _shape(shape: str, x: float, y: float, *, hollow: bool = False) -> str:
    style = f"mark s{shape}" + (" hollow" if hollow else "")
    if shape not in _PATHS:
        return element("circle", cx=x, cy=y, r=4.5, class_=style)
    return element("path", d=_PATHS[shape], transform=f"translate({x:.1f} {y:.1f})", class_=style)


def _labels(marks: Sequence[Mark], x: Scale, y: Scale, frame: Box, taken: Sequence[Box]) -> list[str]:
    # The marks farthest out first: they matter most, and those in the crowd can be led out of it.
    order = sorted(
        marks,
        key=lambda m: (m.shape != "reject", -abs(x(m.x) - x(0) if not x.log else 0) - abs(y(m.y) - y(y.inside(0)))),
    )
    spots = [(x(mark.x), y(mark.y)) for mark in order]
    placed = place_labels(spots, [mark.label for mark in order], frame, SMALL, taken)
    parts = []
    for mark, (left, top), spot in zip(order, spots, placed, strict=True):
        if spot is not None:
            parts += _label(mark.label, left, top, spot)
    return parts


def _label(label: str, left: float, top: float, spot: PlacedLabel) -> list[str]:
    line = [element("line", x1=left, y1=top, x2=spot.x, y2=spot.y, class_="lead")] if spot.led else []
    return [*line, text(label, spot.x, spot.y + SMALL * 0.36, class_="label", text_anchor=spot.anchor)]


def _describe(marks: Sequence[Mark], axes: tuple[Axis, Axis]) -> str:
    listed = "; ".join(mark.hint or mark.label for mark in marks)
    return f"{axes[1].title} against {axes[0].title}. {listed}."


def _svg(name: str, body: Sequence[str], description: str, size: tuple[float, float]) -> str:
    about = element("desc", _escaped(description), id=f"{name}-desc")
    return element("svg", about, *body, id=name, class_="chart", role="img", viewBox=f"0 0 {size[0]:.0f} {size[1]:.0f}",
                   aria_labelledby=f"{name}-caption", aria_describedby=f"{name}-desc")  # fmt: skip
