"""The stages of a bundle that is made from sources: scored samples and judgements instead of a model's answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from quantverdict.collect.audit import (
    ANSWER_COLUMNS,
    Ingested,
    SourceAudit,
    audit_lines,
    load_sources,
    plain_line,
    write_ingested,
)
from quantverdict.collect.files import csv_bytes
from quantverdict.collect.frames import JUDGEMENTS as JUDGED
from quantverdict.collect.frames import SCORES, read_frame, reading, scan_frame
from quantverdict.collect.integrity import MANIFEST, read_manifest
from quantverdict.collect.manifest import Bundle, refuse_strangers
from quantverdict.collect.matching import SAMPLE, Allowed
from quantverdict.collect.pairing import other_prompts, pairings_of, unpaired
from quantverdict.collect.sources import Sources, read_sources
from quantverdict.errors import StudyError
from quantverdict.grading.template import PLAIN_HARMFUL_TASKS, Reading, read_answer
from quantverdict.matrix.cells import CellInfo, build_matrix, judge_scores
from quantverdict.matrix.columns import METRICS, Metric, matrix_table, parse_matrix
from quantverdict.matrix.grid import SCORE_COLUMNS, Grids, grids
from quantverdict.matrix.judging import judge_agreement, judge_direction, label_pairs
from quantverdict.matrix.templates import Templates, template_estimates, templates_table
from quantverdict.metrics import one_of
from quantverdict.policy import Policy
from quantverdict.protocol.second_judge import second_judge_regimes
from quantverdict.records import CellId, Estimate, Matrix, Table

if TYPE_CHECKING:
    import polars as pl

COSINES = ("coherence", "coherence_prompt")
EXACT_BELOW = 2**53
"""Every whole number up to here is a float."""
NEEDED_LATER = ("polars", "quantverdict.protocol.decide", "quantverdict.matrix.synthesis", "quantverdict.report.render")
"""Modules that are slow to import, in the order in which they are needed."""
READ_ANSWERS = 1 << 14
"""How many different answers are remembered as read."""
JUDGEMENTS, OTHER_JUDGEMENTS = "judgements.parquet", "other_judgements.parquet"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What sources come to before anything is written: `matrix` is `matrix.csv`, and `rows` what is read from it."""

    found: Ingested
    samples: Grids
    templates: Templates
    matrix: Table
    rows: Matrix


def load(sources_file: Path, out: Path, *, quarantine: bool) -> Loaded:
    """Read sources up to the matrix, so that whatever is wrong with them is said before a bundle is made at `out`.

    Raises:
        StudyError, DataError: the sources, a file or a row is wrong.
        BundleError: `out` is in use, or holds something else.
    """
    sources = read_sources(sources_file)
    if (out / MANIFEST).exists():
        Bundle.open(out, sources).close()
    elif out.is_dir():
        refuse_strangers(out)
    infos = cell_infos(sources)
    # Files are hashed and read outside the interpreter, in the time that these imports take.
    Thread(target=lambda: [*map(import_module, NEEDED_LATER)]).start()
    found = load_sources(sources, quarantine=quarantine, answers_of=PLAIN_HARMFUL_TASKS, metrics=allowed_values())
    samples = all_samples(found.scores, found.judgements)
    told = template_estimates(harmful_answers(found.scores, found.answers), sources.statistics, sources.seed)
    matrix = matrix_table(build_matrix(samples, infos, sources.statistics, templates=told, seed=sources.seed))
    # What the file would be refused for is said while there is none.
    rows = parse_matrix(csv_bytes(matrix).decode(), f"{sources_file}, as a matrix")
    return Loaded(found, samples, told, matrix, rows)


def keep(loaded: Loaded, bundle: Bundle) -> None:
    """sources -> `scores.parquet`, `judgements.parquet`, `sources.csv`, `templates.csv`, `matrix.csv`."""
    write_ingested(bundle, loaded.found)
    bundle.write_table(templates_table(loaded.templates))
    bundle.write_table(loaded.matrix)


def source_lines(bundle: Path) -> list[str]:
    """What an ingested bundle was not made from in whole, and what is not paired; a line each."""
    manifest = read_manifest(bundle)
    pairings = pairings_of(manifest["pairings"])
    others = [f"{cell}: {told}" for cell, told in other_prompts(pairings).items()]
    audits = audit_lines(SourceAudit(**audit) for audit in manifest["sources"])
    return [*audits, *map(plain_line, (*others, *unpaired(pairings)))]


def allowed_values() -> dict[str, Allowed]:
    """What the score of one sample can be, for every metric."""
    return {name: _allowed(metric) for name, metric in METRICS.items()}


def _allowed(metric: Metric) -> Allowed:
    if metric.is_share:
        return Allowed(-1 if metric.name in COSINES else 0, 1, whole=metric.proportion)
    if metric.name == "output_tokens":
        return Allowed(0, EXACT_BELOW, whole=True)
    return Allowed() if metric.unit == "nats" else Allowed(0)


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


def all_samples(scores: pl.DataFrame, judgements: pl.DataFrame | None) -> Grids:
    """Scores, and labels as scores of the judge metrics."""
    import polars as pl

    judged = [] if judgements is None or judgements.height == 0 else [judge_scores(judgements)]
    named = pl.col(pl.String).cast(pl.Categorical)
    return grids(pl.concat(frame.select(SCORE_COLUMNS).with_columns(named) for frame in (scores, *judged)))


def stored_judgements(bundle: Bundle) -> pl.DataFrame | None:
    """`judgements.parquet`, None where there is none."""
    path = bundle.path(JUDGEMENTS)
    return read_frame(path, JUDGED) if path.exists() else None


def harmful_answers(scores: pl.DataFrame, answers: pl.DataFrame) -> dict[CellId, list[Reading]]:
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

    if not all(bundle.path(name).exists() for name in (JUDGEMENTS, OTHER_JUDGEMENTS)):
        return
    agreement, direction, regimes = [], [], []
    others = read_frame(bundle.path(OTHER_JUDGEMENTS), JUDGED)
    # Of the other files only what a second judge was asked too is read: the rest may be a hundred times as much.
    first, scores = (
        scan_frame(bundle.path(name), columns).join(others.lazy(), on=SAMPLE, how="semi")
        for name, columns in ((JUDGEMENTS, JUDGED), ("scores.parquet", SCORES))
    )
    with reading(bundle.path(JUDGEMENTS)):
        labels = first.collect()
    with reading(bundle.path("scores.parquet")):
        refusals = scores.filter(pl.col("metric") == policy.refusal_metric).collect()
    for (name,), second in others.partition_by("judge", as_dict=True, maintain_order=True).items():
        labelled = [frame.filter(frame["label"].is_not_null()) for frame in (labels, second)]
        told = labelled[0].join(labelled[1], on=SAMPLE, how="semi")["judge"].unique().sort().to_list()
        if told:
            judges = ("+".join(told), str(name))
            agreement.append(judge_agreement(label_pairs(labels, second), judges, confidence))
            direction.append(judge_direction(labelled[0], labelled[1], judges))
            regimes.append(second_judge_regimes(matrix, policy, labels, second, judges, refusals))
    for tables in (agreement, direction, regimes):
        if tables:
            yield Table(tables[0].name, tables[0].columns, tuple(row for table in tables for row in table.rows))
