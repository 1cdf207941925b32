"""The stages of a run: each reads artefacts from the bundle and leaves its own there."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from quantverdict.artifacts.builds import Build, engine_baseline
from quantverdict.artifacts.inspect import inspect_artifact
from quantverdict.artifacts.sources import resolve
from quantverdict.asking import open_file, stored_builds
from quantverdict.collect.files import sha256_of
from quantverdict.collect.generate import CellOutcome
from quantverdict.collect.manifest import Bundle
from quantverdict.collect.prompts import make_plan, prompt_parity, prompts_file, read_prompts
from quantverdict.collect.rounds import round_numbers
from quantverdict.collect.schedule import STOPPED, read_outcomes
from quantverdict.collect.sources import Sources
from quantverdict.collect.store import read_responses, responses_path
from quantverdict.comparable import doubts
from quantverdict.config import StatisticsConfig, Study
from quantverdict.errors import EngineError
from quantverdict.policy import Policy
from quantverdict.records import CellId, Estimate, Matrix, Score, Table

if TYPE_CHECKING:
    from quantverdict.collect.estimate import Speed, StudyEstimate
    from quantverdict.collect.prospects import Gating, Observed
    from quantverdict.matrix.cells import CellInfo
    from quantverdict.matrix.engines import Elsewhere
    from quantverdict.matrix.grid import Grids
    from quantverdict.matrix.rounds import Asked
    from quantverdict.protocol.decide import Evidence
    from quantverdict.tasks.catalog import Task


def grade(tasks: Sequence[Task], builds: Sequence[Build], bundle: Bundle) -> None:
    """responses -> `scores.parquet`, and `templates.csv` for the metrics of a cell as a whole."""
    import polars as pl

    from quantverdict.grading.grade import grade_responses
    from quantverdict.grading.template import PLAIN_HARMFUL_TASKS, Reading, read_answer
    from quantverdict.matrix.grid import scores_frame
    from quantverdict.matrix.templates import template_estimates, templates_table

    outcomes = read_outcomes(bundle)
    by_name = {task.name: task for task in tasks}
    scores: list[Score] = []
    harmful: dict[CellId, list[Reading]] = {}
    for build in builds:
        if build.cell not in outcomes or outcomes[build.cell].failure is not None:
            continue
        responses = tuple(read_responses(responses_path(bundle.root, build.cell)))
        scores += grade_responses(by_name, responses)
        plain = [answer for answer in responses if answer.task in PLAIN_HARMFUL_TASKS]
        harmful[build.cell] = [read_answer(answer.text, answer.output_tokens) for answer in plain]
    frame = scores_frame(scores).with_columns(reason=pl.Series([score.reason for score in scores], dtype=pl.String))
    bundle.write_parquet("scores.parquet", frame)
    bundle.write_table(templates_table(template_estimates(harmful, *statistics_of(bundle))))


def samples_of(bundle: Bundle) -> Grids | None:
    """Scores and judgements as the bundle holds them, None where it holds no scores."""
    import polars as pl

    from quantverdict.ingestion import all_samples, stored_judgements
    from quantverdict.matrix.rounds import in_rounds

    path = bundle.path("scores.parquet")
    if not path.exists():
        return None
    return in_rounds(all_samples(pl.read_parquet(path), stored_judgements(bundle)), asked_in_rounds(bundle))


def asked_in_rounds(bundle: Bundle) -> dict[CellId, Asked]:
    """How the builds of a study with `stopping: sequential` were asked, by the frozen plan; empty for any other."""
    from quantverdict.matrix.rounds import Asked

    found: dict[CellId, Asked] = {}
    stopped, builds = bundle.recorded(STOPPED) or {}, stored_builds(bundle)
    for model, plan in (bundle.recorded("rounds") or {}).items():
        prompts = read_prompts(bundle.path(prompts_file(model)))
        rounds = round_numbers(prompts, bundle.recorded("batches")[model], plan["ends"])
        mine = [build for build in builds if build.cell.base_model == model and build.runs and not build.null]
        baseline = next((build.cell for build in mine if build.is_baseline), None)
        for build in mine:
            if baseline is not None and build.cell != baseline:
                found[build.cell] = Asked(baseline, rounds, plan["largest"], stopped.get(str(build.cell)))
    return found


def summarise(bundle: Bundle, samples: Grids) -> None:
    """scores -> `matrix.csv`: one row a cell, every metric with its interval and n."""
    from quantverdict.matrix.cells import build_matrix
    from quantverdict.matrix.columns import matrix_table

    statistics, seed = statistics_of(bundle)
    matrix = build_matrix(samples, cell_infos(bundle), statistics, templates=read_templates(bundle), seed=seed)
    bundle.write_table(matrix_table(matrix))


def decide(
    bundle: Bundle, policy: Policy | None = None, samples: Grids | None = None, matrix: Matrix | None = None
) -> None:
    """matrix -> the tables of statistics and protocol, and `decision.json`.

    Args:
        policy: None is the study's, or that of the last decision.
        samples: where there are any.
        matrix: what `matrix.csv` holds, where it was read already.
    """
    from quantverdict.ingestion import judge_tables
    from quantverdict.matrix.columns import read_matrix
    from quantverdict.matrix.engines import engines_table
    from quantverdict.matrix.rounds import with_shared
    from quantverdict.matrix.synthesis import synthesis_tables
    from quantverdict.protocol.decide import decide as decide_matrix
    from quantverdict.protocol.regime_counts import regime_counts

    study = config_of(bundle)
    rules = policy or (study.policy if study else decided_policy(bundle))
    statistics, seed = statistics_of(bundle)
    matrix = with_shared(matrix or read_matrix(bundle.path("matrix.csv")), samples)
    synthesis = {table.name: table for table in synthesis_tables(matrix, rules, statistics.confidence)}
    evidence = evidence_of(bundle, synthesis["sign_reversal"], samples)
    decision = decide_matrix(
        matrix,
        rules,
        study=study.study if study else bundle.root.name,
        constraints=study.constraints if study else None,
        statistics=statistics,
        evidence=evidence,
    )
    engines = engines_table(samples, elsewhere(stored_builds(bundle)), statistics, seed)
    tables = (*synthesis.values(), *decision.tables, regime_counts(decision.regimes), engines)
    for table in (*tables, *judge_tables(bundle, matrix, rules, statistics.confidence)):
        bundle.write_table(table)
    bundle.write_json("decision.json", decision.document)


def decided_policy(bundle: Bundle) -> Policy:
    """The policy that a bundle without a study was decided by, the default where it was not decided yet."""
    if not bundle.path("decision.json").exists():
        return Policy()
    return Policy.model_validate(bundle.read_json("decision.json").get("policy"))


def render(bundle: Bundle) -> None:
    """artefacts -> `claims.csv`, `report.md`, `report.html`; the reports show the hashes of all the others."""
    from quantverdict.protocol.claims import claims_table
    from quantverdict.report.render import render_report
    from quantverdict.report.statements import told_of

    told = told_of(bundle.root)
    bundle.write_table(claims_table(told.everything.claims.values()))
    bundle.take_stock()
    render_report(bundle.root, told)
    bundle.finish()


# What a bundle says of itself


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
        for build in stored_builds(bundle)
        if build.runs and not build.null and build.cell not in failed
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
        k, n = (int(row[name]) if row[name] else None for name in ("k", "n"))
        value = Fraction(row["value"]) if k is None or n is None else Fraction(k, n)
        lo, hi = (float(row[name]) for name in ("ci_lo", "ci_hi"))
        found.setdefault(CellId(row["base_model"], row["quant"]), {})[row["metric"]] = Estimate(value, lo, hi, n, k)
    return found


def evidence_of(bundle: Bundle, sign_reversal: Table, samples: Grids | None) -> Evidence:
    """What a decision rests on besides the matrix: samples; twins, failures and baselines that are not originals."""
    from quantverdict.matrix.engines import mixed_up
    from quantverdict.protocol.decide import Evidence

    builds, config = stored_builds(bundle), config_of(bundle)
    return Evidence(
        scores=samples,
        sign_reversal=sign_reversal,
        matrix_sha256=sha256_of(bundle.path("matrix.csv")),
        failed=failures(bundle),
        twins={build.cell: build.twin_of for build in builds if build.twin_of is not None},
        lineage=doubts(builds) | prompt_mismatches(bundle, builds),  # what was seen stands above what was foreseen
        nulls=null_arms(builds),
        mixed_up=mixed_up(elsewhere(builds)),
        dequantized={
            build.cell: build.artifact.dequantized_from
            for build in builds
            if build.is_baseline and build.artifact and build.artifact.dequantized_from
        },
        baselines=frozenset(build.cell for build in builds if build.is_baseline),
        idle_judges=tuple(judge.name for judge in config.judges) if isinstance(config, Study) else (),
        order=tuple(config.cells)
        if isinstance(config, Sources)
        else tuple(build.cell for build in builds if not build.null),
        seed=statistics_of(bundle)[1],
    )


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


def forecast(study: Study, tasks: Sequence[Task], earlier: Path | None, *, measure: bool) -> StudyEstimate:
    """What a study would ask, take and be able to show.

    Args:
        earlier: a bundle whose tokens, speed and discordance are taken; None to time a short batch instead.
        measure: time that batch; without it the time is not known.
    """
    from quantverdict.collect import estimate as estimates
    from quantverdict.collect.prospects import prospects

    model = study.models[0]
    source = model.source or model.variants[0].source
    path = resolve(source, study.folder) if source and study.collect.backend == "llamacpp" else None
    file = None if path is None else inspect_artifact(path)
    asked = make_plan(study, tasks, file.chat_template if file else None, file.special_tokens if file else {})
    observed: dict[str, Observed] = {}
    cells = sum(len(each.variants) for each in study.models)
    if earlier is not None:
        with Bundle.reopen(earlier) as bundle:
            speed, observed = speed_of(bundle), pairs_seen(bundle, study.policy)
            # Twins are not run, and which builds are twins is only known once they are made.
            cells -= sum(build.twin_of is not None for build in stored_builds(bundle))
    elif measure and path is not None:
        speed = estimates.measured_speed(asked, partial(open_file, study, path))
    else:
        speed = estimates.Speed({}, None, "no measurement; answers are taken to reach their limit")
    return estimates.estimate(
        tasks,
        asked,
        speed,
        cells=cells,
        disk_bytes=estimates.made_bytes(study),
        shows=(
            estimates.detectable_differences(tasks, study.statistics.power, observed),
            prospects(tasks, gating(study, cells - len(study.models)), observed),
        ),
    )


def gating(study: Study, builds: int) -> Gating:
    """What the outcomes of `builds` builds, baselines not counted, would be decided by."""
    from quantverdict.collect.prospects import Gating
    from quantverdict.collect.rounds import SEQUENTIAL_SHARE
    from quantverdict.matrix.columns import METRICS

    policy = study.policy
    # Looking early has a share of alpha; what is left is the least that a build's tests have.
    share = 1 - SEQUENTIAL_SHARE if study.stopping == "sequential" else 1.0
    return Gating(
        margins={metric: float(margin / 100) for metric, margin in policy.gates.items()},
        means=[metric for metric in policy.gates if not METRICS[metric].proportion],
        builds=builds,
        required=policy.demanded if policy.rules == "paired" else (),
        alpha=policy.alpha / 2 * share,
        power=study.statistics.power,
    )


def speed_of(bundle: Bundle) -> Speed:
    """Speed and answer lengths of an earlier run."""
    from quantverdict.collect.estimate import speed_of_run

    outcomes = read_outcomes(bundle)
    baseline = next((b.cell for b in stored_builds(bundle) if b.is_baseline and b.cell in outcomes), None)
    answers = () if baseline is None else read_responses(responses_path(bundle.root, baseline))
    return speed_of_run(outcomes.values(), answers)


def pairs_seen(bundle: Bundle, policy: Policy) -> dict[str, Observed]:
    """Of each share of an earlier run: how its builds' answers differ from those of their baselines."""
    from quantverdict.matrix.observed import observed_pairs

    builds, samples = stored_builds(bundle), samples_of(bundle)
    bases = {build.cell.base_model: build.cell for build in builds if build.is_baseline}
    compared = [build.cell for build in builds if not (build.is_baseline or build.null)]
    return observed_pairs(samples or {}, {cell: bases[cell.base_model] for cell in compared}, policy.alpha / 2)
