"""A gate as people read it: lines for a terminal, GitHub-flavoured Markdown for a job summary; and as JSON."""

from __future__ import annotations

from collections.abc import Iterator

from quantverdict.protocol.gate import NAMES, NUMBERS, Gate, Verdict, worst
from quantverdict.records import CellId
from quantverdict.report import formats
from quantverdict.report.markdown import escape_markdown, markdown_table

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
    with formats.judged_by(gate.judges):
        return _json(gate)


def _json(gate: Gate) -> dict[str, object]:
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
                "instrument": formats.instrument(one.metric) or None,
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
    lines = []
    with formats.judged_by(gate.judges):
        for cell in gate.cells:
            lines.append(f"{cell}: {_verdict(gate, cell)}")
            lines += [f"  {SIGNS[one.status]} {formats.measured(one.metric)}: {one.reason}" for one in gate.of(cell)]
    lines += [f"note: {note}" for note in gate.notes]
    lines.append(f"gate: {formats.words(NAMES[gate.exit_code])} (exit {int(gate.exit_code)}): {_meaning(gate)}")
    return [" ".join(formats.plain(line).split("\n")) for line in lines]


def summary_markdown(gate: Gate) -> str:
    """The section of a job summary."""
    with formats.judged_by(gate.judges):
        return "\n\n".join(_parts(gate)) + "\n"


def _parts(gate: Gate) -> Iterator[str]:
    sign = {0: SIGNS["passed"], 3: SIGNS["failed"]}.get(int(gate.exit_code), "?")
    yield f"## {sign} quantverdict: {formats.words(NAMES[gate.exit_code])}"
    how = "paired tests" if gate.rules == "paired" else "thresholds on deltas"
    yield escape_markdown(f"Study {gate.study}, policy {gate.policy}, by {how}: {_meaning(gate)}")
    if gate.builds:
        body = [(str(cell), _verdict(gate, cell), _against(gate, cell)) for cell in gate.builds]
        yield markdown_table(("build", "verdict", "what stands against it"), body)
    if gate.verdicts:
        columns = ("build", "metric", "verdict", "delta (pp)", "margin (pp)", "pairs", "pairs needed", "why")
        numeric = (False, False, False, True, True, True, True)
        yield "<details><summary>Every gated metric</summary>"
        yield markdown_table(columns, [_row(one) for one in gate.verdicts], numeric)
        yield "</details>"
    if gate.notes:
        yield "\n".join(f"- {escape_markdown(note)}" for note in gate.notes)


def _row(one: Verdict) -> tuple[str, ...]:
    within = formats.interval(one.numbers.get("ci_lo_pp"), one.numbers.get("ci_hi_pp"), 1, sign=True)
    delta, margin = one.numbers.get("delta_pp"), one.numbers.get("margin_pp")
    return (
        str(one.cell),
        formats.label(one.metric),
        f"{SIGNS[one.status]} {formats.words(one.status)}",
        "" if delta is None else f"{formats.delta(delta)} {within}".rstrip(),
        "" if margin is None else formats.quantity(margin),
        *("" if one.numbers.get(name) is None else str(one.numbers[name]) for name in ("n_pairs", "n_needed")),
        "" if one.numbers and one.was is None else one.reason,
    )


def _against(gate: Gate, cell: CellId) -> str:
    """What is rejected or waived with its reason, what is open by name alone: the whole table has the rest."""
    found = {status: [one for one in gate.of(cell) if one.status == status] for status in SIGNS}
    told = [f"{formats.label(one.metric)}: {one.reason}" for one in (*found["failed"], *found["waived"])]
    for status in ("not_measured", "not_resolvable", "uninformative"):
        named = ", ".join(formats.label(one.metric) for one in found[status])
        told += [f"{formats.words(status)}: {named}"] if named else []
    return "; ".join(told) or "nothing"


def _verdict(gate: Gate, cell: CellId) -> str:
    return formats.words(NAMES[worst(gate.of(cell))])


def _meaning(gate: Gate) -> str:
    return MEANING[int(gate.exit_code)] if gate.builds else "no build was gated."
