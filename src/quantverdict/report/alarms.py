"""Artifact alarms as the report shows them: those that fire, and how many were tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantverdict.matrix.alarms import LENGTH, SHARES
from quantverdict.report import formats
from quantverdict.report.bundle import CsvRow
from quantverdict.report.ledger import Cite, Sentence
from quantverdict.report.tables import Grid

_WORDS = {**SHARES, LENGTH: "tokens of an answer"}


def firing(rows: Sequence[CsvRow]) -> Grid:
    """The alarms of `alarms.csv` that fire."""
    columns = ("build", "alarm", "prompts", "baseline", "build's", "shift", "p (Holm)")
    body = tuple(_alarm(row) for row in rows if row.get("fires") == "1")
    shows = "The same prompts answered in another form than by the baseline; gains of such a build may be no gains."
    return Grid("alarms", "Artifact alarms", shows, columns, body, (False, False, *[True] * 5))


def _alarm(row: CsvRow) -> tuple[str, ...]:
    before, after = (
        row[count] or formats.quantity(row[mean], 1)
        for count, mean in (("baseline_k", "baseline_value"), ("k", "value"))
    )
    within = formats.interval(row.get("ci_lo"), row.get("ci_hi"), 1, sign=True)
    p = formats.number(row["p_holm"])
    return (
        formats.plain(f"{row['base_model']}/{row['quant']}"),
        _WORDS[row["alarm"]],
        row["n"],
        before,
        after,
        f"{formats.delta(row['shift'])} {row['unit']} {within}".rstrip(),
        formats.NOT_MEASURED if p is None else formats.significant(p, 2),
    )


def alarm_sentences(rows: Sequence[Mapping[str, str]]) -> list[Sentence]:
    """How many alarms were tested, and how many fire; nothing where none was."""
    if not rows:
        return []
    cites = {
        "all": Cite("alarms.csv", "", "", "count", "rows"),
        "firing": Cite("alarms.csv", "fires=1", "", "count", "rows"),
    }
    return [Sentence("alarms", "Of {all} comparisons of the form of answers with the baseline's {firing} fire.", cites)]
