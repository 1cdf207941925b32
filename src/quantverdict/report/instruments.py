"""Which instrument a number comes from, how often instruments err, and rates as people would have given them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantverdict.collect.frames import JUDGEMENTS, reading, scan_frame
from quantverdict.report import formats
from quantverdict.report.artefacts import Artefacts
from quantverdict.report.bundle import BundleView, CsvRow
from quantverdict.report.tables import Grid

PATTERNS = ("refusal_rate", "over_refusal_rate", "truthfulness", "bias_resistance")
JUDGED = ("judge_refusal_rate", "judge_truthfulness", "judge_bias_resistance")


@dataclass(frozen=True, slots=True)
class Instruments:
    """The section.

    Attributes:
        refusal: what the refusal deltas are of.
        measured: every rate, and its instrument.
        errors, corrected: empty where nobody labelled.
    """

    refusal: str
    measured: Grid
    errors: Grid
    corrected: Grid


def instruments(bundle: BundleView) -> Instruments:
    """What a reader must know of the numbers of the other sections."""
    policy = bundle.decision.get("policy") or {}
    return Instruments(
        formats.label(formats.plain(policy.get("refusal_metric", "refusal_rate"))),
        _measured(bundle),
        _errors(bundle.tables.get("instruments", ())),
        _corrected(bundle.tables.get("corrected_rates", ())),
    )


def judges(read: Artefacts) -> dict[str, tuple[str, ...]]:
    """Each rate by judges to those whose labels it counts; nothing where no build has such a rate.

    Raises:
        BundleError: `judgements.parquet` cannot be read.
    """
    path = read.root / "judgements.parquet"
    if not path.is_file() or not any(row.get(metric) for row in read.table("matrix") for metric in JUDGED):
        return {}
    import polars as pl

    from quantverdict.matrix.cells import judge_scores

    with reading(path):
        lazy = scan_frame(path, {name: JUDGEMENTS[name] for name in ("judge", "task", "label")})
        kinds = lazy.select(pl.col("judge", "task", "label").cast(pl.String)).unique().collect()
    # A judge stands where a build would: one label of each kind tells which of them gave which rate.
    labels = kinds.rename({"judge": "quant"}).with_columns(base_model=pl.lit(""), sample_id=pl.lit(""))
    given = judge_scores(labels).drop_nulls("value").select("metric", "quant").unique().sort("metric", "quant")
    found: dict[str, tuple[str, ...]] = {}
    for metric, judge in given.iter_rows():
        found[metric] = (*found.get(metric, ()), formats.plain(judge).translate(_BRACES))
    return found


_BRACES = str.maketrans("{}", "()")
"""Braces stand for claims in a sentence."""


def _measured(bundle: BundleView) -> Grid:
    rows = bundle.tables.get("matrix", ())
    given = [metric for metric in (*PATTERNS, *JUDGED) if any(row.get(metric) for row in rows)]
    body = tuple((formats.bare(name), formats.instrument(name).removeprefix("by ")) for name in given)
    return Grid("measured", "Instruments", "Who says what each rate counts.", ("rate", "instrument"), body)


def _errors(rows: Sequence[CsvRow]) -> Grid:
    columns = (
        "instrument", "rate", "task", "labelled answers", "prompts", "found", "missed", "false alarms", "rightly left",
        "ungraded", "unclear", "sensitivity (%)", "specificity (%)",
    )  # fmt: skip
    counts = (
        "n_labelled", "n_prompts", "true_positive", "false_negative", "false_positive", "true_negative", "ungraded",
        "unclear",
    )  # fmt: skip
    body = tuple(
        (
            formats.plain(row["instrument"]),
            formats.bare(row["metric"]),
            formats.plain(row["task"]),
            *(row[name] for name in counts),
            *(_percent(row, name, f"{name}_ci") for name in ("sensitivity", "specificity")),
        )
        for row in rows
    )
    shows = (
        "Each instrument against people's labels. Sensitivity: of what a person says has it, the share that the "
        "instrument finds; specificity: of the rest, the share that it leaves. Counts are of labelled answers, shares "
        "weighted by what each stands for; intervals count each prompt, or cluster, once."
    )
    return Grid("errors", "Error rates", shows, columns, body, (False, False, False, *[True] * 10))


def _corrected(rows: Sequence[CsvRow]) -> Grid:
    columns = (
        "build", "rate", "instrument", "answers", "labelled", "by instrument (%)", "human-corrected (%)",
        "delta by instrument (pp)", "human-corrected delta (pp)",
    )  # fmt: skip
    body = tuple(
        (
            formats.plain(f"{row['base_model']}/{row['quant']}"),
            formats.bare(row["metric"]),
            formats.plain(row["instrument"]),
            row["n"],
            row["n_labelled"],
            _percent(row, "raw_rate"),
            _percent(row, "corrected_rate", "ci"),
            _delta(row, "raw_delta_pp"),
            _delta(row, "corrected_delta_pp"),
        )
        for row in rows
    )
    shows = (
        "Rates as people would have given them, by stratified double sampling (PPI++) from the answers that they "
        "labelled, over every answer that is not empty and not unclear. Decisions rest on the instruments' rates."
    )
    return Grid("corrected", "Human-corrected rates", shows, columns, body, (False, False, False, *[True] * 6))


def _percent(row: CsvRow, name: str, around: str = "") -> str:
    known = formats.number(row.get(name))
    if known is None:
        return formats.NOT_MEASURED
    within = formats.interval(row.get(f"{around}_lo"), row.get(f"{around}_hi"), 1, factor=100) if around else ""
    return f"{formats.fixed(100 * known, 1)} {within}".rstrip()


def _delta(row: CsvRow, name: str) -> str:
    if row.get(name, "") == "" and not row.get("n_pairs"):
        return "reference"
    own = name == "corrected_delta_pp"
    within = formats.interval(row.get("delta_ci_lo_pp"), row.get("delta_ci_hi_pp"), 1, sign=True) if own else ""
    return f"{formats.delta(row.get(name), 1)} {within}".rstrip()
