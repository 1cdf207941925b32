"""`report.md` and `report.html` from a bundle's artefacts: the same sections in order, by two sets of templates."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from quantverdict.reporting import cards, figures, formats, tables
from quantverdict.reporting.artefacts import BundleTables, profile_of
from quantverdict.reporting.outcomes import Instruments, firing, instruments, outcomes
from quantverdict.reporting.statements import ReportClaims
from quantverdict.reporting.summary import TEMPLATES, markdown
from quantverdict.reporting.tables import BuildRow, ClaimLedger, TextTable, marked, spoken_marked

SECTIONS = {
    "decision": "Decision",
    "builds": "Builds",
    "matrix": "Matrix",
    "flips": "Answers that changed",
    "outcomes": "Prompt by prompt",
    "alarms": "Format alerts",
    "regimes": "Quality against refusal",
    "bits": "Bits per weight",
    "trade": "Size and speed",
    "instruments": "Instruments",
    "tables": "Tables",
    "provenance": "Do it again",
}
"""The sections of the default report, each with its name in the list of them: a template of this name in
`templates/html` and in `templates/md` each. One that holds nothing is left out."""
MISSING = {
    "matrix": "the matrix",
    "flips": "answers (the bundle keeps none)",
    "outcomes": "pairs of answers",
    "regimes": "quality against refusal",
    "bits": "bits per weight",
    "trade": "file sizes and speeds",
}
"""What a section that is left out says was not measured."""

CONSTRAINTS = {
    "max_file_bytes": "file size at most",
    "max_memory_bytes": "peak memory at most",
    "min_tokens_per_second": "tokens/s at least",
    "max_ttft_ms": "ms to the first token at most",
}


def report_texts(bundle: BundleTables, report_claims: ReportClaims) -> dict[str, bytes]:
    """`report.html` and `report.md` of a bundle, in the profile that its manifest names.

    Both are functions of the bundle's other artefacts alone: the same bundle gives the same bytes.
    """
    if profile_of(bundle.manifest) == "study":
        context, template = study_context(bundle, report_claims), "study_report"
    else:
        context, template = report_context(bundle, report_claims), "report"
    return {
        "report.html": html(context, template).encode("utf-8"),
        "report.md": markdown(context, template).encode("utf-8"),
    }


def study_context(bundle: BundleTables, report_claims: ReportClaims) -> dict[str, Any]:
    """All that the templates of the study's report show: the decision, its tables with what they show, its claims."""
    rows = tables.builds(bundle)
    return {
        **frame_context(bundle, rows),
        "ledger": report_claims.ledger,
        "anchor": {},
        "unmeasured": _unmeasured(bundle, instruments(bundle)),
        "study_sections": report_claims.sections,
        "alarms": firing(bundle.tables.get("alarms", ())),
        "outcomes": outcomes(bundle),
        "instruments": instruments(bundle),
        "regimes": figures.regime_figures(bundle, rows),
        "regime_legend": figures.regime_legend(bundle, rows),
        "bits": figures.bits_figures(bundle),
        "bits_legend": figures.model_legend(bundle),
        "flips": None,
        "claims": list(report_claims.everything.claims.values()),
        "provenance": provenance(bundle),
    }


def report_context(bundle: BundleTables, report_claims: ReportClaims) -> dict[str, Any]:
    """All that the templates show, formatted."""
    rows = tables.builds(bundle)
    shown: dict[str, Any] = {
        "alarms": firing(bundle.tables.get("alarms", ())),
        "outcomes": outcomes(bundle),
        "instruments": instruments(bundle),
        "heat_maps": figures.heat_maps(bundle, rows),
        "regimes": figures.regime_figures(bundle, rows),
        "bits": figures.bits_figures(bundle),
        "trade": figures.trade_figures(bundle, rows),
        "grids": tables.grids(bundle),
        "provenance": provenance(bundle),
    }
    empty = _empty(bundle, shown)
    return {
        **frame_context(bundle, rows),
        **shown,
        "ledger": report_claims.ledger,
        "anchor": cards.anchors(bundle),
        "sections": tuple(name for name in SECTIONS if name not in empty),
        "titles": SECTIONS,
        "unmeasured": [
            *_unmeasured(bundle, shown["instruments"]),
            *(what for name, what in MISSING.items() if name in empty),
        ],
        "regime_legend": figures.regime_legend(bundle, rows),
        "bits_legend": figures.model_legend(bundle),
        "trade_legend": figures.trade_legend(rows, bundle.decision),
        "examples": bundle.examples,
        "flips": bundle.flips,
    }


def _unmeasured(bundle: BundleTables, shown: Instruments) -> list[str]:
    """Metrics that were not measured, and how often instruments err where nobody can tell."""
    errors = ["how often the instruments err (nobody labelled an answer)"] if not shown.corrected.rows else []
    return [*cards.notes_of(bundle).unmeasured, *(errors if shown.measured.rows else [])]


def _empty(bundle: BundleTables, shown: Mapping[str, Any]) -> set[str]:
    """The sections that hold nothing."""
    held = {
        "matrix": shown["heat_maps"],
        "flips": bundle.flips or bundle.examples,
        "outcomes": shown["outcomes"].gated.rows,
        "alarms": bundle.tables.get("alarms"),
        "instruments": shown["instruments"].measured.rows,
        "tables": shown["grids"],
        **{name: shown[name] for name in ("regimes", "bits", "trade")},
    }
    return {name for name, what in held.items() if not what}


def frame_context(bundle: BundleTables, rows: list[BuildRow]) -> dict[str, Any]:
    """What both reports open with: the study and its decision."""
    decision, notes = bundle.decision, cards.notes_of(bundle)
    policy = decision.get("policy") or {}
    return {
        "study": formats.plain(decision.get("study") or formats.NOT_MEASURED),
        "policy": formats.plain(policy.get("name") or formats.NOT_MEASURED),
        "quality_metric": bundle.names.label(formats.plain(decision.get("quality_metric") or "quality")),
        "refusal_delta": bundle.names.refusal_delta(policy),
        "not_measured": formats.NOT_MEASURED,
        "verdict_words": tables.verdict_words(decision),
        "models": tables.verdicts(bundle, rows),
        "cards": cards.cards(bundle, rows, notes),
        "forests": cards.forests(bundle, rows),
        "general_notes": cards.unclaimed(bundle, notes),
        "light_notes": notes.light,
        # Of one base model under criteria it is the build that ships, or none: the card says so.
        "shows_floor": decision.get("rules") != "criteria" or len(bundle.models) > 1,
        "builds": rows,
        "floor": _floor(decision.get("floor")),
        "notes": [tables.readable(bundle.names, note) for note in decision.get("notes") or ()],
        "constraints": _constraints(decision.get("constraints") or {}),
        "bits_title": figures.bits_title(bundle),
        "bits_read": bool(bundle.artifacts),
        "by_criteria": decision.get("rules") == "criteria" and bool(rows),
    }


def _floor(floor: Mapping[str, Any] | None) -> dict[str, str] | None:
    if not floor:
        return None
    return {"quant": formats.plain(floor.get("quant"))}


def _constraints(given: dict[str, Any]) -> list[str]:
    """The constraints that the study states, in words."""
    known = [(key, value) for key, value in given.items() if value is not None]
    return [f"{CONSTRAINTS.get(key, formats.words(key))} {formats.table_value(key, value)}" for key, value in known]


_APART = {"artefacts", "run", "plugins"}
"""Keys of the manifest that are not shown as they are; of plugins it is the packages that matter."""


def provenance(bundle: BundleTables) -> list[TextTable]:
    """What it takes to do it again: builds with their hashes, artefacts with theirs, versions, seeds, hardware.

    The manifest's `run` holds times, and the reports' own hashes cannot stand in themselves: both are left out.
    """
    artefacts = bundle.manifest.get("artefacts") or {}
    files = tuple(
        (formats.plain(name), formats.plain(entry.get("sha256")), formats.table_value("rows", entry.get("rows")))
        for name, entry in artefacts.items()
        if not name.startswith("report.")
    )
    rest = formats.flatten({key: value for key, value in bundle.manifest.items() if key not in _APART})
    policy = formats.flatten(bundle.decision.get("policy") or {})
    thresholds = tuple((formats.words(key), value) for key, value in policy)
    shows = "Every file of the bundle with its hash and its rows."
    return [
        _artifact_grid(bundle),
        TextTable(
            "artefacts", "Artefacts of this bundle", shows, ("file", "SHA-256", "rows"), files, (False, False, True)
        ),
        TextTable(
            "environment", "Versions, seeds and hardware", "What it was made with.", ("what", "value"), tuple(rest)
        ),
        TextTable("policy", "Policy", "What it was decided with.", ("threshold", "value"), thresholds, (False, True)),
    ]


def _artifact_grid(bundle: BundleTables) -> TextTable:
    columns = (
        "base_model",
        "quant",
        "format",
        "file_bytes",
        "bpw",
        "bpw_quantized",
        "tensor_types",
        "fallbacks",
        "sha256",
    )
    rows = []
    for (model, quant), entry in bundle.artifacts.items():
        shown = {**entry, "base_model": model, "quant": quant}
        rows.append(tuple(_artifact_value(column, shown.get(column)) for column in columns))
    titles = tuple(bundle.names.label(column) for column in columns)
    numeric = tuple(column.startswith(("bpw", "file")) for column in columns)
    return TextTable(
        "artifacts",
        "Builds",
        "Each model file: what is in it, and its hash.",
        titles if rows else (),
        tuple(rows),
        numeric,
    )


def _artifact_value(column: str, value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{formats.plain(key)}\N{MULTIPLICATION SIGN}{item}" for key, item in value.items()) or "none"
    if column.startswith("bpw"):
        return formats.quantity(value, 3)
    return formats.table_value(column, value)


def html(context: dict[str, Any], template: str = "report") -> str:
    """One file that asks the network for nothing: its policy admits its own style and script, by hash, and no more."""
    env = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["svg"] = _drawing
    env.filters["by_model"] = by_model
    env.filters["measured"] = measured
    env.filters["by_first"] = by_first
    env.filters["table_rows"] = table_rows
    env.globals["claim"] = partial(_claim, context["ledger"])
    env.globals["say"] = partial(spoken_marked, context["ledger"].names)
    env.filters["json"] = _drawing
    own = {name: (TEMPLATES / file).read_text(encoding="utf-8") for name, file in OWN.items()}
    hashes = {f"{name}_hash": _digest(text) for name, text in own.items()}
    markup = {name: _drawing(text) for name, text in own.items()}
    return env.get_template(f"html/{template}.html").render(**context, **markup, **hashes)


OWN = {"style": "style.css", "script": "page.js"}
"""What stands in the page besides its text."""


def _digest(text: str) -> str:
    """As a content policy names it."""
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def by_model(rows: Sequence[BuildRow]) -> list[tuple[str, list[BuildRow]]]:
    """Builds in groups of their base model, both in study order."""
    return [(model, [row for row in rows if row.model == model]) for model in dict.fromkeys(row.model for row in rows)]


def measured(columns: Sequence[tuple[str, str]], rows: Sequence[BuildRow]) -> list[tuple[str, str]]:
    """Headings and fields of which some build has a value; the others are in the line of what was not measured."""
    return [one for one in columns if any(getattr(row, one[1]) != formats.NOT_MEASURED for row in rows)]


def by_first(rows: Sequence[Sequence[str]], grouped: bool) -> list[tuple[str, list[tuple[int, Sequence[str]]]]]:
    """Numbered rows in groups of their first value, or all in one group."""
    groups: dict[str, list[tuple[int, Sequence[str]]]] = {}
    for at, row in enumerate(rows):
        groups.setdefault(row[0] if grouped else "", []).append((at, row))
    return list(groups.items())


def table_rows(grid: TextTable) -> Markup:
    """The rows of a plain table; made here because a template takes ten times as long for thousands of cells."""
    opened = []
    for at, column in enumerate(grid.columns):
        kind = "hash" if column == "SHA-256" else "num" if grid.numeric and grid.numeric[at] else ""
        opened.append(f'<td class="{kind}">' if kind else "<td>")
    missing = f'<span class="missing">{escape(formats.NOT_MEASURED)}</span>'
    lines = []
    for row in grid.rows:
        shown = [missing if cell == formats.NOT_MEASURED else str(escape(cell)) for cell in row]
        cells = "".join(f"{start}{cell}</td>" for start, cell in zip(opened, shown, strict=True))
        lines.append(f"<tr>{cells}</tr>\n")
    return Markup("".join(lines))  # noqa: S704 - every cell is escaped


def _drawing(markup: str) -> Markup:
    """Markup made by `charts` and `bars`, where all of a bundle is escaped; the style, the script; `page_json`."""
    return Markup(markup)  # noqa: S704


def _claim(ledger: ClaimLedger, claim_id: str) -> Markup:
    """The number of a claim of the ledger, marked with its source."""
    known = ledger.claims.get(claim_id)
    return Markup.escape(formats.NOT_MEASURED) if known is None else marked(ledger.names, known)
