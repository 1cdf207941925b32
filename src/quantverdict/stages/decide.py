"""The stages of a run: each reads artefacts from the bundle and leaves its own there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pydantic import ValidationError

from quantverdict.artifacts.builds import Build
from quantverdict.bundle.files import sha256_of
from quantverdict.bundle.manifest import STOPPED, Bundle
from quantverdict.bundle.store import CLASSIFIER, SEMANTIC, NumberStore, note_time
from quantverdict.collect.schedule import read_outcomes, round_numbers
from quantverdict.config import Study
from quantverdict.errors import BundleError
from quantverdict.policy import Constraints, Policy
from quantverdict.records import CellId, Matrix, Response, Score
from quantverdict.stages.execute import read_executions
from quantverdict.stages.facts import (
    GUARDED,
    JUDGEMENTS,
    cell_infos,
    collect_claims,
    elsewhere,
    evidence_of,
    read_templates,
    statistics_of,
    stored_builds,
    stored_frame,
    stored_matrix,
    stored_prompts,
    stored_responses,
    view_of,
)

if TYPE_CHECKING:
    from quantverdict.grading.encoders import Encoders
    from quantverdict.grading.instruments import ClassifierFiles
    from quantverdict.matrix.grid import Grids
    from quantverdict.matrix.paired import PromptedSet
    from quantverdict.tasks.catalog import Task

OPTIONAL = (
    "whitebox", "judge_agreement", "judge_direction", "second_judge_regimes", "alarms", "instruments",
    "corrected_rates", "criteria", "recovery", "text_kl",
)  # fmt: skip
"""Tables of a decision that only some bundles have; one is deleted with what it came of."""


def grade(
    tasks: Sequence[Task],
    builds: Sequence[Build],
    bundle: Bundle,
    encoders: Encoders | None = None,
    say: Callable[[str], None] = lambda _: None,
    classifier: ClassifierFiles | None = None,
) -> None:
    """responses -> `scores.parquet`, `answers.parquet` of their form, `templates.csv` for metrics of a whole cell.

    Args:
        encoders: what scores semantically, where the study has it; `say` is told how far it is.
        classifier: what reads refusals in place of the classifier that ships, where the study names one.
    """
    import polars as pl

    from quantverdict.grading.format_features import PLAIN_HARMFUL_TASKS, TemplateReading, reading_of
    from quantverdict.grading.grade import grade_responses
    from quantverdict.grading.instruments import read_ahead
    from quantverdict.matrix.format_alerts import template_estimates, templates_table
    from quantverdict.matrix.grid import scores_frame

    outcomes, config = read_outcomes(bundle), bundle.config
    by_name = {task.name: task for task in tasks}
    published = isinstance(config, Study) and config.policy.rules == "points"
    allowed = isinstance(config, Study) and config.allow_code_execution
    executions = read_executions(bundle) if allowed else None
    scores: list[Score] = []
    harmful: dict[CellId, list[TemplateReading]] = {}
    answers: list[Response] = []
    for build in builds:
        if build.cell not in outcomes or outcomes[build.cell].failure is not None:
            continue
        # A task that the study has no longer left answers that count nowhere.
        responses = [answer for answer in stored_responses(bundle, build.cell) if answer.task in by_name]
        scores += grade_responses(by_name, read_ahead(by_name, responses), published=published, executions=executions)
        plain = [answer for answer in responses if answer.task in PLAIN_HARMFUL_TASKS]
        harmful[build.cell] = [reading_of(answer) for answer in plain]
        answers += responses
    scores = (
        [*_without_shipped(scores), *_classified(classifier, by_name, answers, bundle, say)] if classifier else scores
    )
    if classifier is None:
        bundle.forget("classifier")
    if encoders is not None:
        from quantverdict.grading.semantic import KEPT, ScoreMemory, identities, semantic_scores

        bundle.check_hash(KEPT)
        kept, timer = NumberStore(bundle.path(KEPT)), partial(note_time, bundle.root, SEMANTIC)
        scores += semantic_scores(encoders, by_name, answers, ScoreMemory(kept.values, kept.add, timer), say)
        bundle.set_meta(semantic=identities(encoders))
    else:
        bundle.forget("semantic")
    if isinstance(config, Study):
        from quantverdict.stages.whitebox import inside_scores

        scores += inside_scores(config, tasks, builds, bundle)
    frame = scores_frame(scores).with_columns(reason=pl.Series([score.reason for score in scores], dtype=pl.String))
    bundle.write_parquet("scores.parquet", frame)
    save_format_features(by_name, answers, builds, bundle)
    bundle.write_table(templates_table(template_estimates(harmful, *statistics_of(bundle))))


def _without_shipped(scores: Sequence[Score]) -> list[Score]:
    """Scores without those of the classifier that ships."""
    from quantverdict.grading.instruments import CLASSIFIED

    return [one for one in scores if one.metric not in CLASSIFIED.values()]


def _classified(
    classifier: ClassifierFiles,
    tasks: Mapping[str, Task],
    answers: Sequence[Response],
    bundle: Bundle,
    say: Callable[[str], None],
) -> list[Score]:
    """What a study's own classifier says of the answers; `classified.jsonl` keeps it."""
    from quantverdict.grading.instruments import KEPT, classifier_scores
    from quantverdict.grading.semantic import ScoreMemory

    bundle.check_hash(KEPT)
    kept, timer = NumberStore(bundle.path(KEPT)), partial(note_time, bundle.root, CLASSIFIER)
    found = list(classifier_scores(classifier, tasks, answers, ScoreMemory(kept.values, kept.add, timer), say))
    bundle.set_meta(classifier=classifier.identity)
    return found


def save_format_features(
    tasks: Mapping[str, Task], answers: Sequence[Response], builds: Sequence[Build], bundle: Bundle
) -> None:
    """answers -> `answers.parquet`: the form of each, beside that of its baseline's to the same prompt."""
    from quantverdict.grading.format_features import forms_frame, forms_of, texts_of

    baselines = {build.cell for build in builds if build.is_baseline}
    of_baselines = (one for one in answers if CellId(one.base_model, one.quant) in baselines)
    bundle.write_parquet("answers.parquet", forms_frame(forms_of(tasks, answers, texts_of(tasks, of_baselines))))


def samples_of(bundle: Bundle) -> Grids | None:
    """Scores and judgements as the bundle holds them, None where it holds no scores."""
    from quantverdict.matrix.paired import in_rounds
    from quantverdict.stages.ingest import all_samples

    scores = stored_frame(bundle, "scores.parquet")
    if scores is None:
        return None
    judgements, guarded = stored_frame(bundle, JUDGEMENTS), stored_frame(bundle, GUARDED)
    return in_rounds(all_samples(scores, judgements, guarded), asked_in_rounds(bundle))


def asked_in_rounds(bundle: Bundle) -> dict[CellId, PromptedSet]:
    """How the builds of a study with `stopping: sequential` were asked, by the frozen plan; empty for any other."""
    from quantverdict.matrix.paired import PromptedSet

    found: dict[CellId, PromptedSet] = {}
    stopped, builds = bundle.get_meta(STOPPED) or {}, stored_builds(bundle)
    for model, plan in (bundle.get_meta("rounds") or {}).items():
        rounds = round_numbers(stored_prompts(bundle, model), bundle.get_meta("batches")[model], plan["ends"])
        mine = [build for build in builds if build.cell.base_model == model and build.runs and not build.null]
        baseline = next((build.cell for build in mine if build.is_baseline), None)
        for build in mine:
            if baseline is not None and build.cell != baseline:
                found[build.cell] = PromptedSet(baseline, rounds, plan["largest"], stopped.get(str(build.cell)))
    return found


def build_matrix(bundle: Bundle, samples: Grids) -> None:
    """scores -> `matrix.csv`: one row a cell, every metric with its interval and n."""
    from quantverdict.matrix.cells import build_matrix
    from quantverdict.matrix.columns import matrix_table

    statistics, seed = statistics_of(bundle)
    matrix = build_matrix(samples, cell_infos(bundle), statistics, templates=read_templates(bundle), seed=seed)
    bundle.write_table(matrix_table(matrix))


def decide(
    bundle: Bundle,
    policy: Policy | None = None,
    samples: Grids | None = None,
    matrix: Matrix | None = None,
    constraints: Constraints | None = None,
) -> None:
    """matrix -> the tables of statistics and protocol, and `decision.json`.

    Args:
        policy: None is the study's, or that of the last decision.
        samples: where there are any.
        matrix: what `matrix.csv` holds, where it was read already.
        constraints: None are the study's, or with a policy those of the last decision.
    """
    from quantverdict.matrix.paired import engines_table
    from quantverdict.matrix.shared import with_shared
    from quantverdict.matrix.synthesis import synthesis_tables
    from quantverdict.protocol.decide import decide as decide_matrix
    from quantverdict.protocol.regimes import regime_counts
    from quantverdict.stages.ingest import judge_tables
    from quantverdict.stages.kld import text_kl_tables
    from quantverdict.stages.label import label_tables
    from quantverdict.stages.whitebox import whitebox_tables

    study = bundle.config
    rules = policy or (study.policy if study else decided_policy(bundle))
    statistics, seed = statistics_of(bundle)
    matrix = with_shared(matrix or stored_matrix(bundle), samples)
    rules = rules.settled({metric for row in matrix for metric in row.metrics})
    synthesis = {table.name: table for table in synthesis_tables(matrix, rules, statistics.confidence)}
    evidence = evidence_of(bundle, synthesis["sign_reversal"], samples)
    decision = decide_matrix(
        matrix,
        rules,
        study=study.study if study else bundle.root.name,
        constraints=constraints or decided_constraints(bundle, last=policy is not None),
        statistics=statistics,
        evidence=evidence,
    )
    engines = engines_table(samples, elsewhere(stored_builds(bundle)), statistics, seed)
    deltas = next(table for table in decision.tables if table.name == "deltas")
    tables = (*synthesis.values(), *decision.tables, regime_counts(decision.regimes), engines)
    tables += (*whitebox_tables(matrix, deltas, samples), *text_kl_tables(bundle, matrix))
    judged = judge_tables(bundle, matrix, rules, statistics.confidence)
    written = (*tables, *judged, *label_tables(bundle, matrix, statistics.confidence))
    for table in written:
        bundle.write_table(table)
    names = {table.name for table in written}
    bundle.drop(*(f"{name}.csv" for name in OPTIONAL if name not in names))
    bundle.write_json("decision.json", decision.document)


def decided_policy(bundle: Bundle) -> Policy:
    """The policy that a bundle was decided by, the default where it was not decided yet.

    Raises:
        BundleError: `decision.json` holds none.
    """
    path = bundle.path("decision.json")
    if not path.exists():
        return Policy()
    try:
        return Policy.model_validate(bundle.read_json(path.name)["policy"])
    except (ValidationError, TypeError, LookupError) as error:
        raise BundleError(f"{path}: holds no policy; analyze the bundle again, with --policy") from error


def decided_constraints(bundle: Bundle, *, last: bool = True) -> Constraints:
    """The constraints that a bundle was decided by; those of its study where it was not decided yet.

    Args:
        last: whether those of the last decision come before the study's, as where somebody changed them since.

    Raises:
        BundleError: `decision.json` holds none.
    """
    study, path = bundle.config, bundle.path("decision.json")
    if not path.exists() or (study is not None and not last):
        return study.constraints if study else Constraints()
    if study is None and _was_changed(bundle):  # nobody's word: whoever names a policy names constraints too
        return Constraints()
    try:
        return Constraints.model_validate(bundle.read_json(path.name)["constraints"])
    except (ValidationError, TypeError, LookupError) as error:
        raise BundleError(f"{path}: holds no constraints; analyze the bundle again") from error


def _was_changed(bundle: Bundle) -> bool:
    """Whether `decision.json` of a finished bundle is another than was written, or gone."""
    entry, path = (bundle.get_meta("artefacts") or {}).get("decision.json"), bundle.path("decision.json")
    if entry is None or not bundle.sealed:
        return False
    return not path.exists() or sha256_of(path) != entry["sha256"]


def check_policy_unchanged(bundle: Bundle) -> None:
    """A bundle made from a matrix has its policy in `decision.json` alone: to decide by it again, it must be as it was.

    One whose decision was broken off is gone on with by what stands there.

    Raises:
        BundleError: it is missing, or changed since the bundle was finished.
    """
    if bundle.get_meta("config") is None and _was_changed(bundle):
        path = bundle.path("decision.json")
        problem = "changed since it was written" if path.exists() else "is missing"
        raise BundleError(f"{path}: {problem}, and the policy stood there; put it back, or name a policy with --policy")


def render(bundle: Bundle) -> None:
    """artefacts -> `claims.csv`, `report.md`, `report.html`; the reports show the hashes of all the others."""
    from quantverdict.protocol.claims import claims_table
    from quantverdict.reporting.render import report_texts

    claims = collect_claims(bundle)
    bundle.write_table(claims_table(claims.everything.claims.values()))
    bundle.update_hashes()
    for name, text in report_texts(view_of(bundle, claims), claims).items():
        bundle.write_bytes(name, text)
    bundle.finish()
