"""The stages of a bundle that is made from sources: scored samples and judgements instead of a model's answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import import_module
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from quantverdict.bundle.files import csv_bytes, json_line
from quantverdict.bundle.frames import reading, scan_frame
from quantverdict.bundle.integrity import MANIFEST, read_manifest
from quantverdict.bundle.manifest import Bundle, check_foreign_files
from quantverdict.bundle.sources import Sources, read_sources
from quantverdict.errors import StudyError
from quantverdict.grading.format_features import PLAIN_HARMFUL_TASKS, TemplateReading, read_answer
from quantverdict.ingestion.audit import (
    ANSWER_COLUMNS,
    IngestSummary,
    SourceAudit,
    audit_lines,
    audit_table,
    load_sources,
    plain_line,
)
from quantverdict.ingestion.matching import SAMPLE, AllowedValues
from quantverdict.ingestion.pairing import other_prompts, pairings_of, unpaired
from quantverdict.matrix.agreement import judge_agreement, judge_direction, label_pairs
from quantverdict.matrix.cells import CellInfo, build_matrix, judge_scores
from quantverdict.matrix.columns import METRICS, Metric, matrix_table, parse_matrix
from quantverdict.matrix.format_alerts import Templates, template_estimates, templates_table
from quantverdict.matrix.grid import SCORE_COLUMNS, Grids, grids
from quantverdict.policy import Policy
from quantverdict.protocol.second_judge import second_judge_regimes
from quantverdict.records import CellId, Estimate, Matrix, Table
from quantverdict.registry.listing import OF_STUDY, one_of
from quantverdict.stages.facts import FRAMES, JUDGEMENTS, OTHER_JUDGEMENTS, stored_frame

if TYPE_CHECKING:
    import polars as pl

EXACT_BELOW = 2**53
"""Every whole number up to here is a float."""
NEEDED_LATER = (
    "polars",
    "quantverdict.protocol.decide",
    "quantverdict.matrix.synthesis",
    "quantverdict.reporting.render",
)
"""Modules that are slow to import, in the order in which they are needed."""
READ_ANSWERS = 1 << 14
"""How many different answers are remembered as read."""


@dataclass(frozen=True, slots=True)
class IngestResult:
    """What sources come to before anything is written: `matrix` is `matrix.csv`, and `rows` what is read from it."""

    found: IngestSummary
    samples: Grids
    templates: Templates
    matrix: Table
    rows: Matrix


def load(sources_file: Path, out: Path, *, quarantine: bool) -> IngestResult:
    """Read sources up to the matrix, so that whatever is wrong with them is said before a bundle is made at `out`.

    Raises:
        StudyError, DataError: the sources, a file or a row is wrong.
        BundleError: `out` is in use, or holds something else.
    """
    sources = read_sources(sources_file)
    check_target(sources, out)
    cell_infos(sources)
    # Files are hashed and read outside the interpreter, in the time that these imports take.
    Thread(target=lambda: [*map(import_module, NEEDED_LATER)]).start()
    found = load_sources(sources, quarantine=quarantine, answers_of=PLAIN_HARMFUL_TASKS, metrics=allowed_values())
    return result_of(found, f"{sources_file}, as a matrix")


def check_target(sources: Sources, out: Path) -> None:
    """Refuse a folder that holds something else than a bundle of these sources.

    Raises:
        BundleError: it does, or is in use.
    """
    if (out / MANIFEST).exists():
        Bundle.open(out, sources).close()
    elif out.is_dir():
        check_foreign_files(out)


def result_of(found: IngestSummary, matrix_file: str) -> IngestResult:
    """Samples up to the matrix.

    Args:
        matrix_file: what the matrix is called where it would be refused.
    """
    sources = found.sources
    samples = all_samples(found.scores, found.judgements)
    templates = template_estimates(harmful_answers(found.scores, found.answers), sources.statistics, sources.seed)
    infos = cell_infos(sources)
    matrix = matrix_table(build_matrix(samples, infos, sources.statistics, templates=templates, seed=sources.seed))
    # What the file would be refused for is said while there is none.
    rows = parse_matrix(csv_bytes(matrix).decode(), matrix_file)
    return IngestResult(found, samples, templates, matrix, rows)


def save_result(loaded: IngestResult, bundle: Bundle) -> None:
    """sources -> `scores.parquet`, `judgements.parquet`, `sources.csv`, `templates.csv`, `matrix.csv`."""
    save_ingested(loaded.found, bundle)
    bundle.write_table(templates_table(loaded.templates))
    bundle.write_table(loaded.matrix)


def save_ingested(found: IngestSummary, bundle: Bundle) -> None:
    """Scores, judgements, the audit and what was set aside; the audit stands in the manifest too."""
    bundle.write_parquet("scores.parquet", found.scores)
    bundle.write_parquet(JUDGEMENTS, found.judgements)
    if found.other_judgements.height:
        bundle.write_parquet(OTHER_JUDGEMENTS, found.other_judgements)
    if found.quarantine:
        lines = [json_line({"source": label, **asdict(broken)}) for label, broken in found.quarantine]
        bundle.write_text("quarantine.jsonl", b"".join(lines).decode())
    bundle.write_table(audit_table(found))
    audits, pairings = ([asdict(one) for one in found_ones] for found_ones in (found.audits, found.pairings))
    bundle.set_meta(sources=audits, pairings=pairings)


def source_lines(bundle: Path) -> list[str]:
    """What an ingested bundle was not made from in whole, and what is not paired; a line each."""
    manifest = read_manifest(bundle)
    pairings = pairings_of(manifest["pairings"])
    others = [f"{cell}: {how}" for cell, how in other_prompts(pairings).items()]
    audits = audit_lines(SourceAudit(**audit) for audit in manifest["sources"])
    return [*audits, *map(plain_line, (*manifest.get("left_out", ()), *others, *unpaired(pairings)))]


def allowed_values() -> dict[str, AllowedValues]:
    """What the score of one sample can be, for every metric."""
    return {name: _allowed(metric) for name, metric in METRICS.items()}


def _allowed(metric: Metric) -> AllowedValues:
    if metric.is_share:
        return AllowedValues(metric.lowest, 1, whole=metric.proportion)
    if metric.name == "output_tokens":
        return AllowedValues(0, EXACT_BELOW, whole=True)
    free = metric.unit == "nats" or METRICS.owner(metric.name) == OF_STUDY
    return AllowedValues() if free else AllowedValues(0)


def cell_infos(sources: Sources) -> list[CellInfo]:
    """Every cell that the sources name, whether it has samples or not.

    Raises:
        StudyError: a value of a metric that samples give, or that there is not.
    """
    whole = [name for name, metric in METRICS.items() if metric.group in ("measured", "template")]
    infos = []
    for model in sources.models:
        for quant, bpw in model.quants.items():
            given = model.values.get(quant, {})
            for name in given:
                if name not in whole:
                    raise StudyError("is not a metric of a whole cell", file=sources.file, expected=one_of(name, whole),
                                     field=f"{model.name}.values.{quant}.{name}")  # fmt: skip
            values = {name: Estimate(value) for name, value in given.items()}
            infos.append(
                CellInfo(model.name, model.family, model.params_b, quant, bpw, quant == model.baseline, values)
            )
    return infos


def all_samples(scores: pl.DataFrame, judgements: pl.DataFrame | None, guarded: pl.DataFrame | None = None) -> Grids:
    """Scores, labels as scores of the judge metrics, and what guard models say."""
    import polars as pl

    judged = [] if judgements is None or judgements.height == 0 else [judge_scores(judgements)]
    judged += [] if guarded is None else [guarded]
    named = pl.col(pl.String).cast(pl.Categorical)
    return grids(pl.concat(frame.select(SCORE_COLUMNS).with_columns(named) for frame in (scores, *judged)))


def harmful_answers(scores: pl.DataFrame, answers: pl.DataFrame) -> dict[CellId, list[TemplateReading]]:
    """What every cell with scores or answers of the plain harmful task said to it.

    An answer is refused where its score says so; one without a score is read by pattern.
    """
    import polars as pl

    harmful = pl.any_horizontal(pl.col("task") == task for task in PLAIN_HARMFUL_TASKS)
    scored = scores.lazy().filter(harmful & (pl.col("metric") == "refusal_rate"))
    scored = scored.select(pl.col(SAMPLE).cast(pl.String), "value", pl.lit(value=True).alias("scored"))
    both = scored.join(answers.lazy().select(ANSWER_COLUMNS), on=SAMPLE, how="full", coalesce=True)
    graded = both.filter(pl.col("scored").is_null() | pl.col("value").is_not_null()).sort("base_model", "quant")
    rows = graded.select("base_model", "quant", "value", "text", pl.col("output_tokens").cast(pl.Int64)).collect()
    # Builds of one model often say the same: an answer is read once.
    read = lru_cache(READ_ANSWERS)(read_answer)
    return {
        CellId(*cell): [read(text, tokens, None if v is None else v == 1) for *_, v, text, tokens in own]
        for cell, own in groupby(rows.iter_rows(), key=itemgetter(0, 1))
    }


def judge_tables(bundle: Bundle, matrix: Matrix, policy: Policy, confidence: float) -> Iterator[Table]:
    """`judge_agreement`, `judge_direction` and `second_judge_regimes`, where two judges labelled the same samples."""
    import polars as pl

    others = stored_frame(bundle, OTHER_JUDGEMENTS)
    if others is None or not bundle.path(JUDGEMENTS).exists():
        return
    agreement, direction, regimes = [], [], []
    # Of the other files only what a second judge was asked too is read: the rest may be a hundred times as much.
    first, scores = (
        scan_frame(bundle.path(name), FRAMES[name]).join(others.lazy(), on=SAMPLE, how="semi")
        for name in (JUDGEMENTS, "scores.parquet")
    )
    with reading(bundle.path(JUDGEMENTS)):
        labels = first.collect()
    with reading(bundle.path("scores.parquet")):
        refusals = scores.filter(pl.col("metric") == policy.refusal_metric).collect()
    for (name,), second in others.partition_by("judge", as_dict=True, maintain_order=True).items():
        labelled = [frame.filter(frame["label"].is_not_null()) for frame in (labels, second)]
        judges_of_it = labelled[0].join(labelled[1], on=SAMPLE, how="semi")["judge"].unique().sort().to_list()
        if judges_of_it:
            judges = ("+".join(judges_of_it), str(name))
            agreement.append(judge_agreement(label_pairs(labels, second), judges, confidence))
            direction.append(judge_direction(labelled[0], labelled[1], judges))
            regimes.append(second_judge_regimes(matrix, policy, labels, second, judges, refusals))
    for tables in (agreement, direction, regimes):
        if tables:
            yield Table(tables[0].name, tables[0].columns, tuple(row for table in tables for row in table.rows))
