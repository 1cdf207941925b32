"""The Markdown report: its templates, and an escape under which every printed value means itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from quantverdict.report import formats
from quantverdict.report.heatmap import HeatCell, HeatMap
from quantverdict.report.ledger import spoken, written
from quantverdict.report.tables import Build

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


def build_table(rows: Sequence[Build], refusal_delta: str) -> MarkdownText:
    """The decision table, a row a build."""
    columns = (
        "base model", "build", "bits per weight", "file size", "tokens/s", "quality delta", refusal_delta, "regime",
        "action", "reason",
    )  # fmt: skip
    body = []
    for row in rows:
        notes = f" ({', '.join(row.notes)})" if row.notes else ""
        mark = " *" if row.is_best else ""
        body.append((row.model, f"{row.sign} {row.quant}{notes}{mark}", row.bpw, row.size, row.speed,
                     f"{row.quality} {row.quality_interval}".rstrip(), f"{row.refusal} {row.refusal_interval}".rstrip(),
                     row.regime, row.action, row.reason))  # fmt: skip
    return markdown_table(columns, body, (False, False, True, True, True, True, True))


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
    claims = context["ledger"].claims
    env.globals["claim"] = lambda name: written(claims[name]) if name in claims else formats.NOT_MEASURED
    env.globals["say"] = spoken
    text = env.get_template(f"md/{template}.md").render(**context)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
