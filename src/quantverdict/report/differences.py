"""What changed between two bundles, as lines and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

from quantverdict.protocol.differences import ACTION, CellChange, Change, DeltaMove, Differences
from quantverdict.records import CellId
from quantverdict.report import formats
from quantverdict.report.instruments import JUDGED

SHOWN = 12
"""So many moved deltas are listed; the JSON has all."""


def lines(found: Differences) -> list[str]:
    """For a person, the verdicts first."""
    return [" ".join(formats.plain(line).split("\n")) for line in _lines(found)]


def _lines(found: Differences) -> Iterator[str]:
    yield f"{found.study}: {found.one} -> {found.two}, {found.cells} builds in both"
    yield from _part("verdicts changed", [_verdict(found, one) for one in found.verdicts])
    moves = [_move(found, one) for one in found.moves[:SHOWN]]
    if len(found.moves) > SHOWN:
        moves.append(f"and {len(found.moves) - SHOWN} more (--json has all)")
    yield from _part("deltas moved (pp)", moves)
    yield from _part("answers changed", [_answers(found, at) for at in range(len(found.answers))])
    yield from _part("engines and versions", [_change(one) for one in found.engines])
    yield from _part("settings", [_change(one) for one in found.settings])


def _part(title: str, body: Sequence[str]) -> list[str]:
    return [f"{title}:", *(f"  {line}" for line in body)] if body else [f"{title}: none"]


def _verdict(found: Differences, one: CellChange) -> str:
    what = "" if one.what == ACTION else f" {_label(found, one.what)}"
    return f"{one.cell}{what}: {_word(one.before)} -> {_word(one.after)}"


def _label(found: Differences, metric: str) -> str:
    """A metric with its instrument, or with that of either bundle where they differ."""
    by = [one for one in _instruments(found, metric) if one]
    return f"{formats.bare(metric)} {', then '.join(dict.fromkeys(by))}".rstrip()


def _instruments(found: Differences, metric: str) -> list[str | None]:
    """Of either bundle; None where it has no such rate, or the metric names no instrument."""
    told: list[str | None] = []
    for judges in found.judges:
        with formats.judged_by(judges):
            known = metric in judges or metric not in JUDGED
            told.append((formats.instrument(metric) or None) if known else None)
    return told


def _move(found: Differences, one: DeltaMove) -> str:
    before, after, moved = (formats.delta(_float(value)) for value in (one.before, one.after, one.moved))
    how = "" if one.moved is None else f" ({moved})"
    return f"{one.cell} {_label(found, one.metric)}: {before} -> {after}{how}"


def _answers(found: Differences, at: int) -> str:
    one = found.answers[at]
    share = "" if one.share is None else f" ({formats.fixed(100 * float(one.share), 1)} %)"
    alone = f"; {one.only_one} in one bundle only" if one.only_one else ""
    return f"{one.cell}: {one.changed} of {one.equal + one.changed}{share}{alone}"


def _change(one: Change) -> str:
    return f"{one.what}: {one.before or 'none'} -> {one.after or 'none'}"


def _word(value: str | None) -> str:
    return "not there" if value is None else formats.words(value)


def as_json(found: Differences) -> dict[str, object]:
    """In plain values; deltas in pp, a share of 1, what one bundle lacks null."""
    return {
        "study": found.study,
        "one": found.one,
        "two": found.two,
        "verdict_changed": bool(found.verdicts),
        "verdicts": [
            {**_cell(one.cell), "what": one.what, **_by(found, one.what), **_pair(one)} for one in found.verdicts
        ],
        "deltas": [
            {**_cell(one.cell), "metric": one.metric, **_by(found, one.metric), "before_pp": _float(one.before),
             "after_pp": _float(one.after), "moved_pp": _float(one.moved)}
            for one in found.moves
        ],
        "answers": [
            {**_cell(one.cell), "equal": one.equal, "changed": one.changed, "only_one": one.only_one,
             "changed_share": _float(one.share)}
            for one in found.answers
        ],
        "engines": [{"what": one.what, **_pair(one)} for one in found.engines],
        "settings": [{"what": one.what, **_pair(one)} for one in found.settings],
    }  # fmt: skip


def _cell(cell: CellId) -> dict[str, str]:
    return {"base_model": cell.base_model, "quant": cell.quant}


def _by(found: Differences, metric: str) -> dict[str, str | None]:
    before, after = _instruments(found, metric)
    return {"instrument_before": before, "instrument_after": after}


def _pair(one: CellChange | Change) -> dict[str, str | None]:
    return {"before": one.before, "after": one.after}


def _float(value: Fraction | None) -> float | None:
    return None if value is None else float(value)
