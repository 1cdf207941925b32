"""A gate as people read it: lines for a terminal, GitHub-flavoured Markdown for a job summary; and as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from quantverdict.errors import count_of
from quantverdict.protocol.differences import (
    ACTION,
    BundleDiff,
    CellChange,
    Change,
    CriterionChange,
    CriterionFigures,
    DeltaChange,
)
from quantverdict.protocol.gate import NAMES, NUMBERS, Gate, MetricVerdict, worst
from quantverdict.records import CellId
from quantverdict.registry import judged_by
from quantverdict.reporting import formats
from quantverdict.reporting.figures import HeatCell, HeatMap
from quantverdict.reporting.formats import DisplayNames
from quantverdict.reporting.tables import BuildRow, spoken, written

# The Markdown report: its templates, and an escape under which every printed value means itself.

TEMPLATES = Path(__file__).parent / "templates"


class MarkdownText(str):
    """Markdown that is ready to be written."""

    __slots__ = ()


_SPECIAL = re.compile(r"[\\`*\[\]<>|#~&!]|(?<![^\W_])_|_(?![^\W_])")


def escape_markdown(value: object) -> MarkdownText:
    """Text that means itself in Markdown, on one line; an underscore inside a word already does."""
    if isinstance(value, MarkdownText):
        return value
    return MarkdownText(_SPECIAL.sub(r"\\\g<0>", " ".join(formats.plain(value).split())))


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool] = ()) -> MarkdownText:
    """A pipe table."""
    ends = [*numeric, *[False] * (len(columns) - len(numeric))]
    lines = [columns, ["---:" if right else "---" for right in ends], *rows]
    text = [[escape_markdown(cell) if k != 1 else cell for cell in line] for k, line in enumerate(lines)]
    return MarkdownText("\n".join("| " + " | ".join(line) + " |" for line in text))


def build_table(rows: Sequence[BuildRow], refusal_delta: str) -> MarkdownText:
    """The decision table, a row a build."""
    columns: tuple[str, ...] = (
        "base model", "build", "bits per weight", "file size", "tokens/s", "quality delta", refusal_delta, "regime",
        "action", "reason",
    )  # fmt: skip
    figures = next((row.criteria for row in rows if row.criteria), ())
    if figures:
        columns = (*columns[:5], *(f"{one.name} (margin {one.margin})" for one in figures), *columns[7:])
    body = []
    for row in rows:
        notes = f" ({', '.join(row.notes)})" if row.notes else ""
        mark = " *" if row.is_best else ""
        deltas = [f"{row.quality} {row.quality_interval}", f"{row.refusal} {row.refusal_interval}"]
        if figures:
            deltas = [f"{one.value} {one.interval}" for one in row.criteria]
        body.append((row.model, f"{row.sign} {row.quant}{notes}{mark}", row.bpw, row.size, row.speed,
                     *map(str.rstrip, deltas), row.regime, row.action, row.reason))  # fmt: skip
    return markdown_table(columns, body, (False, False, *[True] * (len(columns) - 5)))


def matrix_table(heat: HeatMap) -> MarkdownText:
    """The matrix of one base model: metrics down, builds across."""
    columns = ("metric", *(f"{row.quant} = {row.same_as}" if row.same_as else row.quant for row in heat.builds))
    body = [("regime", *(row.regime for row in heat.builds))]
    body += [(line.metric, *(_heat_text(cell) for cell in line.cells)) for _, lines in heat.groups for line in lines]
    return markdown_table(columns, body, (False, *[True] * len(heat.builds)))


def _heat_text(cell: HeatCell) -> str:
    change = f" ({cell.delta})" if cell.delta and cell.tone != "reference" else ""
    return f"{cell.value} {cell.interval}".rstrip() + change


def markdown(context: Mapping[str, Any], template: str = "report") -> str:
    """The report for a terminal, a review or a model card; a value is escaped unless it is a `MarkdownText`."""
    # Nothing here is HTML: `finalize` escapes for Markdown what autoescape would escape for HTML.
    env = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=False,  # noqa: S701
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=escape_markdown,
    )
    env.globals["table"] = markdown_table
    env.globals["build_table"] = build_table
    env.globals["matrix_table"] = matrix_table
    claims, names = context["ledger"].claims, context["ledger"].names
    env.globals["claim"] = lambda name: written(names, claims[name]) if name in claims else formats.NOT_MEASURED
    env.globals["say"] = partial(spoken, names)
    text = env.get_template(f"md/{template}.md").render(**context)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


SIGNS = {
    "passed": "\N{CHECK MARK}",
    "failed": "\N{MULTIPLICATION X}",
    "not_measured": "?",
    "not_resolvable": "?",
    "uninformative": "-",
    "waived": "~",
}
MEANING = {
    0: "nothing stands against what is gated.",
    3: "a build is worse than is tolerated, or a baseline does not reach its floor.",
    4: "something that is gated was not measured.",
    5: "nothing is rejected, but it cannot be told whether a loss beyond what is tolerated is there.",
}


def gate_json(gate: Gate) -> dict[str, object]:
    """The gate in plain values; a delta in pp, what was not measured null."""
    names = DisplayNames(gate.judges)
    return {
        "study": gate.study,
        "policy": gate.policy,
        "rules": gate.rules,
        "verdict": NAMES[gate.exit_code],
        "exit_code": int(gate.exit_code),
        "builds": [
            {"base_model": cell.base_model, "quant": cell.quant, "verdict": NAMES[worst(gate.of(cell))]}
            for cell in gate.builds
        ],
        "verdicts": [
            {
                "base_model": one.cell.base_model,
                "quant": one.cell.quant,
                "metric": one.metric,
                "instrument": names.instrument(one.metric) or None,
                "status": one.status,
                "was": one.was,
                "reason": one.reason,
                **{name: one.numbers.get(name) for name in NUMBERS},
            }
            for one in gate.verdicts
        ],
        "notes": list(gate.notes),
    }


def gate_lines(gate: Gate) -> list[str]:
    """Each cell with what stands against it, then the verdict."""
    lines, names = list[str](), DisplayNames(gate.judges)
    for cell in gate.cells:
        lines.append(f"{cell}: {_verdict(gate, cell)}")
        lines += [f"  {SIGNS[one.status]} {names.measured(one.metric)}: {one.reason}" for one in gate.of(cell)]
    lines += [f"note: {note}" for note in gate.notes]
    lines.append(f"gate: {formats.words(NAMES[gate.exit_code])} (exit {int(gate.exit_code)}): {_meaning(gate)}")
    return [" ".join(formats.plain(line).split("\n")) for line in lines]


def summary_markdown(gate: Gate) -> str:
    """The section of a job summary."""
    return "\n\n".join(_parts(gate, DisplayNames(gate.judges))) + "\n"


def _parts(gate: Gate, names: DisplayNames) -> Iterator[str]:
    sign = {0: SIGNS["passed"], 3: SIGNS["failed"]}.get(int(gate.exit_code), "?")
    yield f"## {sign} quantverdict: {formats.words(NAMES[gate.exit_code])}"
    how = {"criteria": "criteria", "paired": "paired tests"}.get(gate.rules, "thresholds on deltas")
    yield escape_markdown(f"Study {gate.study}, policy {gate.policy}, by {how}: {_meaning(gate)}")
    if gate.builds:
        body = [(str(cell), _verdict(gate, cell), _against(gate, cell, names)) for cell in gate.builds]
        yield markdown_table(("build", "verdict", "what stands against it"), body)
    if gate.verdicts:
        columns = ("build", "metric", "verdict", "delta (pp)", "margin (pp)", "pairs", "pairs needed", "why")
        numeric = (False, False, False, True, True, True, True)
        yield "<details><summary>Every gated metric</summary>"
        yield markdown_table(columns, [_row(one, names) for one in gate.verdicts], numeric)
        yield "</details>"
    if gate.notes:
        yield "\n".join(f"- {escape_markdown(note)}" for note in gate.notes)


def _row(one: MetricVerdict, names: DisplayNames) -> tuple[str, ...]:
    within = formats.bounded(one.numbers.get("ci_lo_pp"), one.numbers.get("ci_hi_pp"), 1)
    delta, margin = one.numbers.get("delta_pp"), one.numbers.get("margin_pp")
    return (
        str(one.cell),
        names.label(one.metric),
        f"{SIGNS[one.status]} {formats.words(one.status)}",
        "" if delta is None else f"{formats.delta(delta)} {within}".rstrip(),
        "" if margin is None else formats.quantity(margin),
        *("" if one.numbers.get(name) is None else str(one.numbers[name]) for name in ("n_pairs", "n_needed")),
        "" if one.numbers and one.was is None else one.reason,
    )


def _against(gate: Gate, cell: CellId, names: DisplayNames) -> str:
    """What is rejected or waived with its reason, what is open by name alone: the whole table has the rest."""
    found = {status: [one for one in gate.of(cell) if one.status == status] for status in SIGNS}
    lines = [f"{names.label(one.metric)}: {one.reason}" for one in (*found["failed"], *found["waived"])]
    for status in ("not_measured", "not_resolvable", "uninformative"):
        named = ", ".join(names.label(one.metric) for one in found[status])
        lines += [f"{formats.words(status)}: {named}"] if named else []
    return "; ".join(lines) or "nothing"


def _verdict(gate: Gate, cell: CellId) -> str:
    return formats.words(NAMES[worst(gate.of(cell))])


def _meaning(gate: Gate) -> str:
    return MEANING[int(gate.exit_code)] if gate.builds else "no build was gated."


# A gate as JUnit XML: a testsuite a build, a testcase a gated metric; only what was shown to hold is passed.

_NO_XML = re.compile("[\ufffe\uffff]")
"""Of what `formats.plain` leaves, the characters that XML 1.0 cannot hold."""


FAILURES: Mapping[str, Mapping[str, str]] = {
    "skipped": {"failed": "rejected"},
    "failure": {"failed": "rejected", "not_resolvable": "inconclusive", "not_measured": "not measured"},
}
"""What JUnit counts as a failure, by what is asked of inconclusive verdicts: status to the type that the failure has.

Who wants a verdict that cannot be told to fail wants one that was not even measured to fail too.
"""


def junit_xml(gate: Gate, inconclusive: str = "skipped") -> str:
    """The document, without times: nothing in it is run. What a rate is by stands in the text, and names stay.

    Args:
        inconclusive: one of `FAILURES`.
    """
    names, failures = DisplayNames(gate.judges), FAILURES[inconclusive]
    nothing = {"tests": "1", "failures" if "not_measured" in failures else "skipped": "1"}
    root = ET.Element("testsuites", _counts(gate.study, gate.verdicts, failures) | ({} if gate.verdicts else nothing))
    for cell in gate.cells:
        suite = ET.SubElement(root, "testsuite", _counts(str(cell), gate.of(cell), failures))
        for one in gate.of(cell):
            _case(suite, one, names, failures)
    if not gate.verdicts:
        suite = ET.SubElement(root, "testsuite", _counts("gate", (), failures) | nothing)
        case = ET.SubElement(suite, "testcase", {"classname": "gate", "name": "builds"})
        message = {"message": "not measured: no build was gated"}
        if "not_measured" in failures:
            ET.SubElement(case, "failure", {"type": failures["not_measured"], **message})
        else:
            ET.SubElement(case, "skipped", message)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _counts(name: str, verdicts: tuple[MetricVerdict, ...], failures: Mapping[str, str]) -> dict[str, str]:
    failed = sum(one.status in failures for one in verdicts)
    skipped = sum(one.status not in failures and one.status != "passed" for one in verdicts)
    counts = {"tests": len(verdicts), "failures": failed, "errors": 0, "skipped": skipped}
    return {"name": _text(name), **{key: str(value) for key, value in counts.items()}}


def _case(suite: ET.Element, one: MetricVerdict, names: DisplayNames, failures: Mapping[str, str]) -> None:
    case = ET.SubElement(suite, "testcase", {"classname": _text(one.cell), "name": _text(one.metric)})
    by = names.instrument(one.metric)
    by = f"{by}: " if by else ""
    match one.status:
        case "passed":
            ET.SubElement(case, "system-out").text = _text(f"{by}{one.reason}")
        case status if status in failures:
            lines = {"type": failures[status], "message": _text(f"{by}{one.reason}")}
            failure = ET.SubElement(case, "failure", lines)
            failure.text = _text(f"{one.cell}: {names.measured(one.metric)}: {one.reason}")
        case _:
            said = one.reason if one.status == "waived" else f"{formats.words(one.status)}: {one.reason}"
            ET.SubElement(case, "skipped", {"message": _text(f"{by}{said}")})


def _text(value: object) -> str:
    return _NO_XML.sub("\ufffd", formats.plain(value))


# What changed between two bundles, as lines and as JSON.

SHOWN = 12
"""So many moved deltas are listed; the JSON has all."""


def lines(found: BundleDiff) -> list[str]:
    """For a person, the verdicts first."""
    return [" ".join(formats.plain(line).split("\n")) for line in _lines(found)]


def _lines(found: BundleDiff) -> Iterator[str]:
    yield f"{found.study}: {found.one} -> {found.two}, {count_of(found.cells, 'build')} in both"
    yield from _part("verdicts changed", [_changed_verdict(found, one) for one in found.verdicts])
    yield from _part("criteria changed", [_criterion(found, one) for one in found.criteria])
    moves = [_move(found, one) for one in found.moves[:SHOWN]]
    if len(found.moves) > SHOWN:
        moves.append(f"and {len(found.moves) - SHOWN} more (--json has all)")
    yield from _part("deltas moved (pp)", moves)
    yield from _part("answers changed", [_answers(found, at) for at in range(len(found.answers))])
    yield from _part("engines and versions", [_change(one) for one in found.engines])
    yield from _part("settings", [_change(one) for one in found.settings])


def _part(title: str, body: Sequence[str]) -> list[str]:
    return [f"{title}:", *(f"  {line}" for line in body)] if body else [f"{title}: none"]


def _changed_verdict(found: BundleDiff, one: CellChange) -> str:
    what = "" if one.what == ACTION else f" {_label(found, one.what)}"
    return f"{one.cell}{what}: {_word(one.before)} -> {_word(one.after)}"


def _criterion(found: BundleDiff, one: CriterionChange) -> str:
    name, _, member = one.name.partition("/")
    what = f"{formats.words(name)}: {_label(found, member)}" if member else formats.words(name)
    before, after = (_figures(figures) for figures in (one.before, one.after))
    return f"{one.cell} {what}: {before} -> {after}"


def _figures(one: CriterionFigures | None) -> str:
    """`inconclusive, delta -2.50, p 0.23`."""
    if one is None:
        return "not there"
    words = [formats.words(one.outcome)]
    if one.delta_pp is not None and one.p_accept is not None:
        words += [f"delta {formats.delta(one.delta_pp)}", f"p {formats.significant(one.p_accept, 2)}"]
    return ", ".join(words)


def _label(found: BundleDiff, metric: str) -> str:
    """A metric with its instrument, or with that of either bundle where they differ."""
    by = [one for one in _instruments(found, metric) if one]
    return f"{DisplayNames().bare(metric)} {', then '.join(dict.fromkeys(by))}".rstrip()


def _instruments(found: BundleDiff, metric: str) -> list[str | None]:
    """Of either bundle; None where it has no such rate, or the metric names no instrument."""
    labels: list[str | None] = []
    for judges in found.judges:
        known = metric in judges or metric not in judged_by().values()
        labels.append((DisplayNames(judges).instrument(metric) or None) if known else None)
    return labels


def _move(found: BundleDiff, one: DeltaChange) -> str:
    before, after, moved = (formats.delta(_float(value)) for value in (one.before, one.after, one.moved))
    how = "" if one.moved is None else f" ({moved})"
    return f"{one.cell} {_label(found, one.metric)}: {before} -> {after}{how}"


def _answers(found: BundleDiff, at: int) -> str:
    one = found.answers[at]
    share = "" if one.share is None else f" ({formats.fixed(100 * float(one.share), 1)} %)"
    alone = f"; {one.only_one} in one bundle only" if one.only_one else ""
    return f"{one.cell}: {one.changed} of {one.equal + one.changed}{share}{alone}"


def _change(one: Change) -> str:
    return f"{one.what}: {one.before or 'none'} -> {one.after or 'none'}"


def _word(value: str | None) -> str:
    return "not there" if value is None else formats.words(value)


def as_json(found: BundleDiff) -> dict[str, object]:
    """In plain values; deltas in pp, a share of 1, what one bundle lacks null."""
    return {
        "study": found.study,
        "one": found.one,
        "two": found.two,
        "verdict_changed": bool(found.verdicts),
        "verdicts": [
            {**_cell(one.cell), "what": one.what, **_by(found, one.what), **_pair(one)} for one in found.verdicts
        ],
        "criteria": [
            {**_cell(one.cell), "name": one.name, **{
                side: None if figures is None else figures._asdict()
                for side, figures in (("before", one.before), ("after", one.after))
            }}
            for one in found.criteria
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


def _by(found: BundleDiff, metric: str) -> dict[str, str | None]:
    before, after = _instruments(found, metric)
    return {"instrument_before": before, "instrument_after": after}


def _pair(one: CellChange | Change) -> dict[str, str | None]:
    return {"before": one.before, "after": one.after}


def _float(value: Fraction | None) -> float | None:
    return None if value is None else float(value)
