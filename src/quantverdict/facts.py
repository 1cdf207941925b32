"""What a bundle says of itself: its statistics, its cells, what failed, and what a decision rests on."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from quantverdict.artifacts.builds import Build, engine_baseline
from quantverdict.asking import stored_builds
from quantverdict.collect.files import sha256_of
from quantverdict.collect.frames import FORMS, JUDGEMENTS, read_frame
from quantverdict.collect.generate import CellOutcome
from quantverdict.collect.manifest import Bundle
from quantverdict.collect.pairing import other_prompts, pairing_notes, pairings_of
from quantverdict.collect.prompts import prompt_parity, prompts_file, read_prompts
from quantverdict.collect.schedule import read_outcomes
from quantverdict.collect.sources import Sources
from quantverdict.collect.store import read_responses, responses_path
from quantverdict.comparable import configured_otherwise, doubts
from quantverdict.config import StatisticsConfig, Study
from quantverdict.errors import BundleError, EngineError
from quantverdict.matrix.columns import ACCURACIES
from quantverdict.records import CellId, Estimate, Table

if TYPE_CHECKING:
    import polars as pl

    from quantverdict.matrix.cells import CellInfo
    from quantverdict.matrix.engines import Elsewhere
    from quantverdict.matrix.grid import Grids
    from quantverdict.protocol.evidence import Evidence


CHOSEN = frozenset(ACCURACIES)
"""Metrics of which some answers are right by chance."""


def statistics_of(bundle: Bundle) -> tuple[StatisticsConfig, int]:
    """How intervals are made, and the seed."""
    config = config_of(bundle)
    return (StatisticsConfig(), 42) if config is None else (config.statistics, config.seed)


def config_of(bundle: Bundle) -> Study | Sources | None:
    """The study or the sources that the bundle is made from, None where it is neither."""
    match bundle.recorded("config"):
        case "study.yaml":
            return bundle.study()
        case "sources.yaml":
            return bundle.sources()
    return None


def failures(bundle: Bundle) -> dict[CellId, str]:
    """Cells that have no row, and why: not made, not run, or without a baseline to compare with."""
    builds, outcomes = [build for build in stored_builds(bundle) if not build.null], read_outcomes(bundle)
    why = {build.cell: build.failure for build in builds if build.failure is not None}
    ran = {build.cell: outcomes[build.cell].failure for build in builds if build.cell in outcomes}
    why |= {cell: failure for cell, failure in ran.items() if failure is not None}
    lost = {build.cell.base_model: why[build.cell] for build in builds if build.is_baseline and build.cell in why}
    if builds and len(lost) == len({build.cell.base_model for build in builds}):
        raise EngineError(f"no baseline could be run: {next(iter(lost.values()))}")
    for build in builds:
        if build.runs and build.cell.base_model in lost:
            why.setdefault(build.cell, f"its baseline did not run: {lost[build.cell.base_model]}")
    return why


def cell_infos(bundle: Bundle) -> list[CellInfo]:
    """What is known of every cell that has a row, besides its samples."""
    from quantverdict import ingestion
    from quantverdict.matrix.cells import CellInfo

    config = config_of(bundle)
    if isinstance(config, Sources):
        return ingestion.cell_infos(config)
    outcomes, failed = read_outcomes(bundle), failures(bundle)
    builds = [build for build in stored_builds(bundle) if build.runs and not build.null and build.cell not in failed]
    for build in builds:
        if build.cell not in outcomes:
            raise BundleError(f"{bundle.path('cells.json')}: holds no row of {build.cell}; run the study again")
    return [
        CellInfo(
            base_model=build.cell.base_model,
            family=build.family,
            params_b=build.params_b,
            quant=build.cell.quant,
            bpw=build.artifact.bpw_quantized if build.artifact else None,
            is_baseline=build.is_baseline,
            measured=measurements(build, outcomes[build.cell]),
        )
        for build in builds
    ]


def measurements(build: Build, outcome: CellOutcome) -> dict[str, Estimate]:
    """Size, speed and memory; what was not measured is absent. Reading recorded answers measures no engine."""
    from quantverdict.matrix.cells import measured

    values: dict[str, float | None] = {"file_bytes": build.artifact.file_bytes if build.artifact else None}
    if build.backend != "replay":
        values |= {name: getattr(outcome, name) for name in ("tokens_per_second", "ttft_ms", "peak_memory_bytes")}
    return {name: measured(value) for name, value in values.items() if value is not None}


def read_templates(bundle: Bundle) -> dict[CellId, dict[str, Estimate]]:
    """`templates.csv`."""
    found: dict[CellId, dict[str, Estimate]] = {}
    for row in bundle.read_table("templates") if bundle.path("templates.csv").exists() else []:
        if "ci_lo" not in row:
            path = bundle.path("templates.csv")
            raise BundleError(f"{path}: has no intervals (an older version wrote it); run the study again")
        k, n = (int(row[name]) if row[name] else None for name in ("k", "n"))
        value = Fraction(row["value"]) if k is None or n is None else Fraction(k, n)
        lo, hi = (float(row[name]) for name in ("ci_lo", "ci_hi"))
        found.setdefault(CellId(row["base_model"], row["quant"]), {})[row["metric"]] = Estimate(value, lo, hi, n, k)
    return found


def evidence_of(bundle: Bundle, sign_reversal: Table, samples: Grids | None) -> Evidence:
    """What a decision rests on besides the matrix: samples; twins, failures and baselines that are not originals."""
    from quantverdict.matrix.engines import mixed_up
    from quantverdict.protocol.evidence import Evidence

    builds, config = stored_builds(bundle), config_of(bundle)
    pairings = pairings_of(bundle.recorded("pairings"))
    return Evidence(
        scores=samples,
        sign_reversal=sign_reversal,
        matrix_sha256=sha256_of(bundle.path("matrix.csv")),
        failed=failures(bundle),
        twins={build.cell: build.twin_of for build in builds if build.twin_of is not None},
        # What was seen stands above what was foreseen.
        lineage=doubts(builds) | prompt_mismatches(bundle, builds) | other_prompts(pairings),
        configured=configured_otherwise(builds),
        pairing=tuple(pairing_notes(pairings)),
        nulls=null_arms(builds),
        mixed_up=mixed_up(elsewhere(builds)),
        dequantized={
            build.cell: build.artifact.dequantized_from
            for build in builds
            if build.is_baseline and build.artifact and build.artifact.dequantized_from
        },
        baselines=frozenset(build.cell for build in builds if build.is_baseline),
        idle_judges=idle_judges(bundle, config),
        order=tuple(config.cells)
        if isinstance(config, Sources)
        else tuple(build.cell for build in builds if not build.null),
        seed=statistics_of(bundle)[1],
        answers=read_forms(bundle),
        choices={} if samples is None or not CHOSEN & samples.keys() else choices_of(bundle, builds),
    )


def choices_of(bundle: Bundle, builds: Sequence[Build]) -> dict[str, dict[tuple[str, str], int]]:
    """How many choices each item of a base model has, by task and sample, as the frozen prompts say."""
    found: dict[str, dict[tuple[str, str], int]] = {}
    for model in dict.fromkeys(build.cell.base_model for build in builds):
        path = bundle.path(prompts_file(model))
        prompts = read_prompts(path) if path.exists() else ()
        found[model] = {(one.task, one.sample_id): len(one.choices) for one in prompts if one.choices}
    return found


def read_forms(bundle: Bundle) -> pl.DataFrame | None:
    """`answers.parquet`, None where the bundle holds none."""
    path = bundle.path("answers.parquet")
    return read_frame(path, FORMS) if path.exists() else None


def idle_judges(bundle: Bundle, config: Study | Sources | None) -> tuple[str, ...]:
    """The judges that a study names and that gave no label."""
    if not isinstance(config, Study) or not config.judges:
        return ()
    files = [bundle.path(name) for name in ("judgements.parquet", "other_judgements.parquet")]
    told = [read_frame(file, JUDGEMENTS).drop_nulls("label")["judge"] for file in files if file.exists()]
    labelled = {name for names in told for name in names.unique()}
    return tuple(judge.name for judge in config.judges if judge.name not in labelled)


def elsewhere(builds: Sequence[Build]) -> dict[CellId, Elsewhere]:
    """The cells that run on another engine than their baseline."""
    from quantverdict.matrix.engines import Elsewhere

    bases = {build.cell.base_model: build for build in builds if build.is_baseline}
    found: dict[CellId, Elsewhere] = {}
    for build in builds:
        base = bases[build.cell.base_model]
        if build.runs and not build.null and build.backend != base.backend:
            anchor = engine_baseline(builds, build)
            found[build.cell] = Elsewhere(build.cell, build.backend, base.cell, None if anchor is None else anchor.cell)
    return found


def null_arms(builds: Sequence[Build]) -> dict[CellId, CellId]:
    """Each null arm and the baseline that it is."""
    baselines = {build.cell.base_model: build.cell for build in builds if build.is_baseline}
    return {build.cell: baselines[build.cell.base_model] for build in builds if build.null and build.failure is None}


def prompt_mismatches(bundle: Bundle, builds: Sequence[Build]) -> dict[CellId, str]:
    """Cells that were not asked the token sequences that their baseline was, and the first prompt that differs."""
    found: dict[CellId, str] = {}
    answers = {build.cell: responses_path(bundle.root, build.cell) for build in builds if build.runs}
    baselines = {build.cell.base_model: build.cell for build in builds if build.is_baseline}
    for cell, path in answers.items():
        baseline = answers.get(baselines[cell.base_model])
        if baseline is None or baseline == path or not (path.exists() and baseline.exists()):
            continue
        parity = prompt_parity(read_responses(baseline), read_responses(path))
        if parity.different:
            found[cell] = f"{parity.different} prompts were other tokens, the first {parity.first_difference}"
    return found
