"""What a bundle says of itself: its statistics, its cells, what failed, and what a decision rests on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantverdict.artifacts.builds import Build, engine_baseline, from_json
from quantverdict.backends.base import begins_with_thought
from quantverdict.bundle.files import Json, sha256_of
from quantverdict.bundle.frames import FORMS, SCORES, read_frame, reading, scan_frame
from quantverdict.bundle.frames import JUDGEMENTS as JUDGED
from quantverdict.bundle.integrity import check_fields
from quantverdict.bundle.manifest import Bundle
from quantverdict.bundle.prompts import prompt_parity, prompts_file, read_prompts
from quantverdict.bundle.sources import Sources
from quantverdict.bundle.store import read_responses, responses_path
from quantverdict.collect.compatibility import configured_otherwise, doubts
from quantverdict.collect.generate import CellOutcome
from quantverdict.collect.looks import look_of
from quantverdict.collect.schedule import read_outcomes
from quantverdict.config import StatisticsConfig, Study
from quantverdict.errors import BundleError, EngineError, count_of
from quantverdict.ingestion.pairing import other_prompts, pairing_notes, pairings_of
from quantverdict.matrix.columns import read_matrix
from quantverdict.records import CellId, Estimate, Matrix, Prompt, Response, Table
from quantverdict.registry import BACKENDS, METRICS, judged_by
from quantverdict.registry.listing import BUILT_IN
from quantverdict.reporting.artefacts import Artefacts, BundleTables
from quantverdict.reporting.formats import DisplayNames

if TYPE_CHECKING:
    import polars as pl

    from quantverdict.matrix.cells import CellInfo
    from quantverdict.matrix.grid import Grids
    from quantverdict.matrix.paired import EngineMismatch
    from quantverdict.protocol.criteria import Pace
    from quantverdict.protocol.document import Evidence
    from quantverdict.reporting.examples import Example, Key
    from quantverdict.reporting.flips import Flips
    from quantverdict.reporting.statements import ReportClaims

JUDGEMENTS, OTHER_JUDGEMENTS, GUARDED = "judgements.parquet", "other_judgements.parquet", "guard_scores.parquet"
FRAMES = {
    **dict.fromkeys(("scores.parquet", GUARDED), SCORES),
    "answers.parquet": FORMS,
    **dict.fromkeys((JUDGEMENTS, OTHER_JUDGEMENTS), JUDGED),
}
"""The columns of each Parquet artefact."""


def statistics_of(bundle: Bundle) -> tuple[StatisticsConfig, int]:
    """How intervals are made, and the seed."""
    config = bundle.config
    return (StatisticsConfig(), 42) if config is None else (config.statistics, config.seed)


def stored_builds(bundle: Bundle) -> tuple[Build, ...]:
    """The builds that `artifacts.json` lists, none where there is no such file.

    Raises:
        BundleError: it is not as it was written, naming the build and the key.
    """
    rows = bundle.read_json("artifacts.json") if bundle.path("artifacts.json").exists() else []
    return bundle.once("artifacts.json", partial(_builds, rows), "builds")


def _builds(rows: Json, path: Path) -> tuple[Build, ...]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BundleError(f"{path}: not as it was written; expected a list with an object for each build")
    found: list[Build] = []
    for number, row in enumerate(rows, start=1):
        try:
            found += from_json([row])
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            problem = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise BundleError(f"{path}: build {number}: not as it was written; {problem}") from error
        check_fields(Build, asdict(replace(found[-1], artifact=None)), f"{path}: build {number}")
        file = found[-1].artifact
        if file is not None and not (isinstance(file.sha256, str) and isinstance(file.path, str)):
            raise BundleError(f"{path}: build {number}: not as it was written; path, sha256: texts are expected")
    return tuple(found)


def stored_prompts(bundle: Bundle, base_model: str) -> tuple[Prompt, ...]:
    """The frozen prompts of a base model.

    Raises:
        BundleError: not there, or not as they were written.
    """
    return bundle.once(prompts_file(base_model), read_prompts)


def stored_responses(bundle: Bundle, cell: CellId) -> tuple[Response, ...]:
    """The answers of a cell, in the order they were asked.

    Raises:
        DataError: not there, or a line that is no answer.
    """
    return bundle.once(responses_path(Path(), cell).as_posix(), lambda path: tuple(read_responses(path)))


def stored_frame(bundle: Bundle, name: str) -> pl.DataFrame | None:
    """A Parquet artefact, None where the bundle holds none; read anew each time, as it may be large.

    Raises:
        BundleError: it cannot be read, or a column is missing or of another type.
    """
    path = bundle.path(name)
    return read_frame(path, FRAMES[name]) if path.exists() else None


def stored_matrix(bundle: Bundle) -> Matrix:
    """The rows of `matrix.csv`.

    Raises:
        BundleError, DataError: not there, or not a matrix.
    """
    return bundle.once("matrix.csv", read_matrix, "matrix")


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
    from quantverdict.matrix.cells import CellInfo
    from quantverdict.stages import ingest as ingestion

    config = bundle.config
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
            measured=measurements(build, outcomes[build.cell])
            | _text_figures(bundle, build.cell)
            | _thoughts(bundle, build.cell),
        )
        for build in builds
    ]


def measurements(build: Build, outcome: CellOutcome) -> dict[str, Estimate]:
    """Size, speed and memory; what was not measured is absent. Reading recorded answers measures no engine."""
    from quantverdict.matrix.cells import measured

    values: dict[str, float | None] = {"file_bytes": build.artifact.file_bytes if build.artifact else None}
    if BACKENDS[build.backend].reads != "recordings":
        values |= {name: getattr(outcome, name) for name in ("tokens_per_second", "ttft_ms", "peak_memory_bytes")}
    return {name: measured(value) for name, value in values.items() if value is not None}


def _thoughts(bundle: Bundle, cell: CellId) -> dict[str, Estimate]:
    kept = responses_path(bundle.root, cell).exists()
    return thought_figures(stored_responses(bundle, cell)) if kept else {}


def thought_figures(answers: Sequence[Response]) -> dict[str, Estimate]:
    """How much of what was generated is thought, and how often it was cut there; nothing where nothing was thought.

    Tokens are shared out by characters: which token is thought, only the engine knew. Answers whose tokens nobody
    counted take no part in the share.
    """
    from quantverdict.grading.answer import answer_of
    from quantverdict.matrix.cells import measured

    thinks = [one for one in answers if one.opened or one.reasoning or begins_with_thought(one.text)]
    if not thinks:
        return {}
    thought, cut = 0.0, 0
    for one in thinks:
        found = answer_of(one)
        cut += found.cut
        if one.output_tokens is not None:
            whole = len(one.text) + len(one.reasoning or "")
            thought += one.output_tokens * min(1.0, len(found.reasoning or "") / max(1, whole))
    generated = sum(one.output_tokens for one in answers if one.output_tokens is not None)
    share = {"reasoning_share": measured(thought / generated)} if generated else {}
    return share | {"reasoning_cut_share": measured(cut / len(answers))}


def text_kl_file(cell: CellId) -> str:
    return f"text_kl/{responses_path(Path(), cell).stem}.json"


TEXT_FIGURES = {
    name: name.removeprefix("text_").removeprefix("kl_")
    for name in METRICS
    if name.startswith("text_") and METRICS.owner(name) == BUILT_IN
}
"""Metrics of the matrix, and what they are called in `text_kl.csv`."""


def stored_text_kl(bundle: Bundle, cell: CellId) -> Mapping[str, Any]:
    """What a build came to along a text, as it was stored; empty where nothing is.

    Raises:
        BundleError: it is not as it was written.
    """
    name = text_kl_file(cell)
    if not bundle.path(name).exists():
        return {}
    found = bundle.read_json(name)
    numbers = {"tokens", *TEXT_FIGURES.values()}
    if not isinstance(found, dict) or not all(isinstance(found.get(key), int | float) for key in numbers):
        raise BundleError(f"{bundle.path(name)}: not as it was written")
    return found


def _text_figures(bundle: Bundle, cell: CellId) -> dict[str, Estimate]:
    from quantverdict.matrix.cells import measured

    found = stored_text_kl(bundle, cell)
    return {name: measured(found[key]) for name, key in TEXT_FIGURES.items()} if found else {}


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
    """What a decision rests on besides the matrix: samples, duplicates, failures, baselines that are not originals."""
    from quantverdict.matrix.paired import mixed_up
    from quantverdict.protocol.document import Evidence

    builds, config = stored_builds(bundle), bundle.config
    pairings = pairings_of(bundle.get_meta("pairings"))
    return Evidence(
        scores=samples,
        look=look_of(bundle),
        paces=paces(bundle, builds),
        sign_reversal=sign_reversal,
        matrix_sha256=sha256_of(bundle.path("matrix.csv")),
        failed=failures(bundle),
        duplicates={build.cell: build.twin_of for build in builds if build.twin_of is not None},
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
        judging=judging_notes(bundle),
        order=tuple(config.cells)
        if isinstance(config, Sources)
        else tuple(build.cell for build in builds if not build.null),
        seed=statistics_of(bundle)[1],
        answers=stored_frame(bundle, "answers.parquet"),
        choices={}
        if samples is None or not any(METRICS[name].chance is not None for name in samples)
        else choices_of(bundle, builds),
    )


def seconds_a_prompt(bundle: Bundle) -> dict[CellId, float]:
    """What one prompt takes of each cell: its tokens a second by the tokens of its answers, some of which may be kept
    ones that took no time; a cell that was asked nothing is left out."""
    found: dict[CellId, float] = {}
    for cell, outcome in read_outcomes(bundle).items():
        if outcome.tokens_per_second and outcome.prompts:
            tokens = sum(answer.output_tokens or 0 for answer in stored_responses(bundle, cell))
            found[cell] = tokens / outcome.prompts / outcome.tokens_per_second
    return found


def paces(bundle: Bundle, builds: Sequence[Build]) -> dict[CellId, Pace]:
    """Of each build that an engine was asked for: its prompts, and what one more takes of it and of its baseline."""
    from quantverdict.protocol.criteria import Pace

    times, outcomes = seconds_a_prompt(bundle), read_outcomes(bundle)
    timed = {build.cell for build in builds if BACKENDS[build.backend].reads != "recordings"} & times.keys()
    bases = {build.cell.base_model: build.cell for build in builds if build.is_baseline}
    return {
        build.cell: Pace(outcomes[build.cell].prompts, times[build.cell] + times[base])
        for build in builds
        if {build.cell, base := bases[build.cell.base_model]} <= timed and not build.is_baseline
    }


def choices_of(bundle: Bundle, builds: Sequence[Build]) -> dict[str, dict[tuple[str, str], int]]:
    """How many choices each item of a base model has, by task and sample, as the frozen prompts say."""
    found: dict[str, dict[tuple[str, str], int]] = {}
    for model in dict.fromkeys(build.cell.base_model for build in builds):
        prompts = stored_prompts(bundle, model) if bundle.path(prompts_file(model)).exists() else ()
        found[model] = {(one.task, one.sample_id): len(one.choices) for one in prompts if one.choices}
    return found


def idle_judges(bundle: Bundle, config: Study | Sources | None) -> tuple[str, ...]:
    """The judges that a study names and that gave no label."""
    if not isinstance(config, Study) or not config.judges:
        return ()
    frames = (stored_frame(bundle, name) for name in (JUDGEMENTS, OTHER_JUDGEMENTS))
    labelled = {name for frame in frames if frame is not None for name in frame.drop_nulls("label")["judge"].unique()}
    named = labelled | {row["judge"] for row in _calibrated(bundle)}
    return tuple(judge.name for judge in config.judges if judge.name not in named)


def _calibrated(bundle: Bundle) -> Sequence[Mapping[str, str]]:
    """The rows of `judge_calibration.csv`."""
    return bundle.read_table("judge_calibration") if bundle.path("judge_calibration.csv").exists() else ()


def judging_notes(bundle: Bundle) -> tuple[str, ...]:
    """Judges whose calibration found them weak or uninformative, a line for each rubric."""
    return tuple(_judging_note(row) for row in _calibrated(bundle) if row["verdict"] != "agrees")


def _judging_note(row: Mapping[str, str]) -> str:
    figure = "no kappa"
    if row["kappa"]:
        kappa, lo, hi = (round(float(row[name]), 2) + 0.0 for name in ("kappa", "kappa_ci_lo", "kappa_ci_hi"))
        figure = f"kappa {kappa:.2f} [{lo:.2f}, {hi:.2f}]"
    what = "weak" if row["verdict"] == "weak" else "uninformative, and its labels by that rubric count nowhere"
    return f"Judge {row['judge']} has {figure} with our labels of {row['n']} answers ({row['rubric']}): {what}."


def elsewhere(builds: Sequence[Build]) -> dict[CellId, EngineMismatch]:
    """The cells that run on another engine than their baseline, or with another cache."""
    from quantverdict.matrix.paired import EngineMismatch

    bases = {build.cell.base_model: build for build in builds if build.is_baseline}
    found: dict[CellId, EngineMismatch] = {}
    for build in builds:
        base = bases[build.cell.base_model]
        if build.runs and not build.null and build.engine != base.engine:
            anchor, same = engine_baseline(builds, build), _same_weights(builds, build)
            found[build.cell] = EngineMismatch(
                build.cell,
                build.engine,
                base.cell,
                None if anchor is None else anchor.cell,
                None if same is None else same.cell,
            )
    return found


def _same_weights(builds: Sequence[Build], build: Build) -> Build | None:
    """The same file on the same backend with the settings of every other build."""
    if not build.runtime or build.artifact is None:
        return None
    identity = build.artifact.identity_sha256
    alike = (one for one in builds if one.backend == build.backend and one.runs and not one.runtime and not one.null)
    return next((one for one in alike if one.artifact and one.artifact.identity_sha256 == identity), None)


def null_arms(builds: Sequence[Build]) -> dict[CellId, CellId]:
    """Each A/A replicate and the baseline that it is."""
    baselines = {build.cell.base_model: build.cell for build in builds if build.is_baseline}
    return {build.cell: baselines[build.cell.base_model] for build in builds if build.null and build.failure is None}


def prompt_mismatches(bundle: Bundle, builds: Sequence[Build]) -> dict[CellId, str]:
    """Cells that were not asked the token sequences that their baseline was, and the first prompt that differs."""
    found: dict[CellId, str] = {}
    ran = [build.cell for build in builds if build.runs and responses_path(bundle.root, build.cell).exists()]
    baselines = {build.cell.base_model: build.cell for build in builds if build.is_baseline and build.cell in ran}
    asked_alike = {build.cell for build in builds if not build.asked_otherwise or build.is_baseline}
    for cell in ran:
        if cell not in asked_alike:
            continue  # an arm that is to be asked in another prompt
        baseline = baselines.get(cell.base_model, cell)
        parity = prompt_parity(stored_responses(bundle, baseline), stored_responses(bundle, cell))
        if parity.different:
            were = "was" if parity.different == 1 else "were"
            told = f"{count_of(parity.different, 'prompt')} {were} other tokens"
            found[cell] = f"{told}, the first {parity.first_difference}"
    return found


# What a report is made from.


def artefacts_of(bundle: Bundle) -> Artefacts:
    """The artefacts as rows."""
    return Artefacts(str(bundle.root), partial(_document, bundle))


def _document(bundle: Bundle, name: str) -> Json:
    path = bundle.path(name)
    # A ledger is somebody's file: what it names outside of the bundle is no artefact of it.
    if not path.is_file() or not path.resolve().is_relative_to(bundle.root.resolve()):
        return None
    match path.suffix:
        case ".csv":
            return bundle.read_table(name.removesuffix(".csv"))
        case ".json":
            return bundle.read_json(name)
        case ".parquet":
            return list(read_frame(path, {}).iter_rows(named=True))
    return None


def rate_judges(bundle: Bundle, read: Artefacts) -> dict[str, tuple[str, ...]]:
    """Each rate by judges to those whose labels it counts; nothing where no build has such a rate.

    Raises:
        BundleError: `judgements.parquet` cannot be read.
    """
    path = bundle.path(JUDGEMENTS)
    if not path.is_file() or not any(row.get(rate) for row in read.table("matrix") for rate in judged_by().values()):
        return {}
    import polars as pl

    from quantverdict.reporting.outcomes import judges

    columns = ("judge", "task", "label")
    with reading(path):
        lazy = scan_frame(path, {name: JUDGED[name] for name in columns})
        return judges(lazy.select(pl.col(columns).cast(pl.String)).unique().collect())


def collect_claims(bundle: Bundle) -> ReportClaims:
    """What the reports of a bundle state.

    Raises:
        BundleError: its decision is of another version, or cannot be read.
    """
    from quantverdict.protocol.document import check_schema
    from quantverdict.reporting.statements import ReportClaims

    read = artefacts_of(bundle)
    claims = ReportClaims(read, DisplayNames(rate_judges(bundle, read)))
    if read.rows("decision.json") is not None:
        check_schema(claims.decision, bundle.path("decision.json"))
    return claims


def view_of(bundle: Bundle, claims: ReportClaims | None = None) -> BundleTables:
    """What a report shows of a bundle; its examples only where `claims` is given, of which the report is made.

    Raises:
        BundleError: nothing was decided in it, or an artefact cannot be read.
    """
    from quantverdict.reporting import artefacts

    read = artefacts_of(bundle) if claims is None else claims.read
    view = artefacts.view_of(read, DisplayNames(rate_judges(bundle, read)) if claims is None else claims.names)
    if claims is None or artefacts.profile_of(view.manifest) == "study":
        return view
    return replace(view, examples=examples_of(bundle, view), flips=flips_of(bundle, view))


def examples_of(bundle: Bundle, view: BundleTables) -> list[Example]:
    """Prompts that a baseline refused and a build answered; none where no answers are kept."""
    from quantverdict.reporting.examples import chosen, examples

    pairs = chosen(view, _refusals(bundle, view))
    answers, prompts = _texts(bundle, {key for pair in pairs for key in pair})
    return examples(pairs, answers, prompts)


def _texts(bundle: Bundle, wanted: Set[Key]) -> tuple[dict[Key, Response], dict[Key, str]]:
    """The answers that are wanted, and the prompts of them, as far as they are kept."""
    answers: dict[Key, Response] = {}
    prompts: dict[Key, str] = {}
    for cell in sorted({CellId(*key[:2]) for key in wanted}):
        # A decision is somebody's file: a name in it may lead out of the bundle.
        said, asked = responses_path(bundle.root, cell), bundle.path(prompts_file(cell.base_model))
        if said.parent == bundle.path("responses") and said.is_file():
            given = (((*cell, one.task, one.sample_id), one) for one in stored_responses(bundle, cell))
            answers |= {key: one for key, one in given if key in wanted}
        if asked.parent == bundle.path("prompts") and asked.is_file():
            turns = (((*cell, one.task, one.sample_id), one.text) for one in stored_prompts(bundle, cell.base_model))
            prompts |= {key: text for key, text in turns if key in wanted}
    return answers, prompts


def flips_of(bundle: Bundle, view: BundleTables) -> Flips | None:
    """The answers whose grade changed, with their texts; None where no scored answers are kept.

    Raises:
        BundleError, DataError: scores, labels or answers that cannot be read.
    """
    if not bundle.path("scores.parquet").is_file() or not bundle.path("responses").is_dir():
        return None
    import polars as pl

    from quantverdict.reporting import flips

    scores = _all_scores(bundle)
    found = flips.changes(view, scores)
    keys = pl.DataFrame([*found.rows], schema=["base_model", "task", "sample_id"], orient="row")
    keys = keys.cast(pl.String)
    mine = scores.join(keys, on=keys.columns, how="semi").sort(*flips.KEY, "metric")
    rated = flips.scores_of(mine.rows())
    answers, prompts = _texts(bundle, rated.keys())
    material = flips.Material(answers, rated, _alerts(bundle, rated.keys()), _labels(bundle, rated.keys()), prompts)
    return flips.flips(view, found, material)


def _alerts(bundle: Bundle, wanted: Set[Key]) -> dict[Key, list[str]]:
    """The format alerts of each answer that has one."""
    from quantverdict.reporting.flips import FORMS as ALERTS
    from quantverdict.reporting.flips import KEY

    read = stored_frame(bundle, "answers.parquet")
    rows = [] if read is None else read.select(*KEY, *ALERTS).rows()
    held = {(m, q, t, s): [name for name, one in zip(ALERTS, flags, strict=True) if one] for m, q, t, s, *flags in rows}
    return {key: names for key, names in held.items() if names and key in wanted}


def _labels(bundle: Bundle, wanted: Set[Key]) -> dict[Key, list[tuple[str, str]]]:
    """Each judge's label of an answer."""
    from quantverdict.reporting.flips import KEY

    found: dict[Key, list[tuple[str, str]]] = {}
    for read in (stored_frame(bundle, name) for name in (JUDGEMENTS, OTHER_JUDGEMENTS)):
        for m, q, t, s, judge, label in [] if read is None else read.select(*KEY, "judge", "label").rows():
            if label is not None and (m, q, t, s) in wanted:
                found.setdefault((m, q, t, s), []).append((str(judge), str(label)))
    return found


def _all_scores(bundle: Bundle) -> pl.DataFrame:
    """Every score of a bundle: those of scorers and guards, and of judges by their labels."""
    import polars as pl

    from quantverdict.matrix.cells import judge_scores

    columns = ("base_model", "quant", "task", "sample_id", "metric")
    frames = [stored_frame(bundle, name) for name in ("scores.parquet", GUARDED)]
    judged = stored_frame(bundle, JUDGEMENTS)
    frames.append(None if judged is None or judged.is_empty() else judge_scores(judged))
    chosen = [*(pl.col(name).cast(pl.String) for name in columns), pl.col("value").cast(pl.Float64)]
    return pl.concat([frame.select(chosen) for frame in frames if frame is not None])


def _refusals(bundle: Bundle, view: BundleTables) -> Iterator[tuple[Key, float]]:
    path = bundle.path("scores.parquet")
    if not path.is_file() or not bundle.path("responses").is_dir():
        return
    import polars as pl

    metric = (view.decision.get("policy") or {}).get("refusal_metric", "refusal_rate")
    with reading(path):
        refusals = scan_frame(path, SCORES).filter(pl.col("metric") == metric, pl.col("value").is_not_null())
        keys = (pl.col(name).cast(pl.String) for name in ("base_model", "quant", "task", "sample_id"))
        rows = refusals.select(*keys, pl.col("value").cast(pl.Float64)).collect().rows()
    yield from ((row[:4], row[4]) for row in rows)
