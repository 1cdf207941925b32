"""The product on one page: study in, decision out.

Each stage reads artefacts from the bundle and leaves its own there, so that any later stage starts from a bundle alone.
"""

from __future__ import annotations

import os
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from quantverdict.artifacts.sources import cache_dir
from quantverdict.bundle.files import sha256_of
from quantverdict.bundle.integrity import MANIFEST, SCHEMA, read_manifest
from quantverdict.bundle.manifest import Bundle
from quantverdict.bundle.prompts import study_tasks, whole_tasks
from quantverdict.collect.answer_store import AnswerStore
from quantverdict.collect.executor import nodes_lines
from quantverdict.collect.looks import Sampling, look_of
from quantverdict.config import Study, quantize_config
from quantverdict.errors import ArtifactError, BundleError, EngineError, count_of, did_you_mean
from quantverdict.grading.instruments import find_classifier
from quantverdict.policy import Constraints, Policy, load_policy
from quantverdict.records import ALSO_CALLED, CHECKPOINT_LEVELS, GGUF_LEVELS
from quantverdict.reporting.artefacts import BundleTables
from quantverdict.reporting.terminal import LineProgress
from quantverdict.stages.ask import (
    Tools,
    ask,
    executor_lines,
    find_pinned_encoders,
    make_builds,
    open_executor,
    pinned,
    with_threads,
)
from quantverdict.stages.decide import (
    build_matrix,
    check_policy_unchanged,
    decide,
    decided_constraints,
    decided_policy,
    grade,
    render,
    samples_of,
)
from quantverdict.stages.execute import execute_code
from quantverdict.stages.facts import stored_builds, view_of
from quantverdict.stages.more import GrowthRequest, reason_to_stop, refuse_rounds
from quantverdict.stages.verify import DryRunBundle
from quantverdict.stages.view import BundleView, write_matrix

if TYPE_CHECKING:
    from quantverdict.planning.estimate import StudyEstimate
    from quantverdict.protocol.differences import BundleDiff
    from quantverdict.protocol.gate import Gate, GatePolicy
    from quantverdict.stages.label import LoadedSheet
    from quantverdict.tasks.catalog import Task


def run(
    study: Study,
    out: Path | None = None,
    *,
    view: LineProgress,
    store: Path | None = None,
    asked: GrowthRequest | None = None,
    executor: Mapping[str, str | None] | None = None,
) -> Path:
    """The whole pipeline. Run again to resume: only what is missing is asked.

    Args:
        executor: where builds run, in place of the study's own.
        store: a folder of answers that need not be asked again.
        asked: how many prompts, where that is not the study's to say.

    Returns:
        The bundle's folder.

    Raises:
        InputError: a study, task or model file is wrong; nothing was run.
        BundleError: the bundle is in use, of another study, or cannot be written.
        EngineError: not one baseline could be run.
    """
    from quantverdict.planning.preflight import check_study

    root, asked = out or default_bundle(study), asked or GrowthRequest()
    if asked.more is not None and not (root / MANIFEST).exists():
        raise BundleError(f"{root}: holds no run to add prompts to; give the same command without --more first")
    refuse_rounds(study, asked)
    whole = whole_tasks(study)
    notes = check_study(study, study_tasks(study, whole))
    classifier = find_classifier(study.classifier, study.folder)
    with ExitStack() as stack:
        crew = open_executor(study, executor)
        if crew is not None:
            stack.callback(crew.close)
        bundle = stack.enter_context(Bundle.open(root, study))
        stack.enter_context(view)
        for note in (*notes, *(nodes_lines(crew.nodes()) if crew is not None else ())):
            view.say(note)
        encoders = find_pinned_encoders(study, bundle)
        check_data(whole, bundle)
        answers = None if store is None else AnswerStore(store, view.say)
        tools = Tools(encoders, classifier, answers, view, crew)
        run_looks(with_threads(pinned(study, bundle), crew), whole, bundle, tools, asked)
    return bundle.root


def check_data(tasks: Sequence[Task], bundle: Bundle) -> None:
    """Keep in the manifest what is used of data sets, and refuse to go on where it is other data than before.

    Raises:
        BundleError: naming the task, its data set and what differs.
    """
    known: dict[str, dict[str, object]] = bundle.get_meta("data") or {}
    used = {task.name: asdict(task.data) for task in tasks if task.data is not None}
    for name, record in used.items():
        before = known.get(name, record)
        if before["sha256"] != record["sha256"]:
            told = f"task {name} changed since this bundle was begun: {_data(before)}, now {_data(record)}"
            raise BundleError(f"{bundle.root}: the data of {told}; put it back, pin a revision, or name another bundle")
    if used:
        bundle.hold(data={**known, **used})


def _data(record: Mapping[str, object]) -> str:
    revision = f" at {str(record['revision'])[:12]}" if record["revision"] else ""
    return (
        f"{count_of(int(str(record['items'])), 'item')} of {record['source']}{revision} ({str(record['sha256'])[:12]})"
    )


def run_looks(study: Study, whole: Sequence[Task], bundle: Bundle, tools: Tools, asked: GrowthRequest) -> None:
    """Ask and decide; where a build is to be decided, ask more and decide again, until there is a reason to stop.

    Args:
        whole: the study's tasks with all their items.
    """
    begun, more = time.monotonic(), asked.more
    if more is not None and not bundle.was_finished:
        tools.view.say("the last run did not come to its end and is brought there; give --more again for more prompts")
        more = None
    run_once(study, Sampling(study, whole, bundle), more, bundle, tools)
    while asked.until_decided:
        sampling = Sampling(study, whole, bundle)
        if (why := reason_to_stop(bundle, sampling, asked, time.monotonic() - begun)) is not None:
            tools.view.say(f"stopped after look {look_of(bundle)}: {why}")
            return
        run_once(study, sampling, 1, bundle, tools)


def run_once(study: Study, sampling: Sampling, more: int | None, bundle: Bundle, tools: Tools) -> None:
    """From builds to the report, over what was asked so far and what is missing of it, or `more`."""
    from quantverdict.stages.kld import measure_text
    from quantverdict.stages.whitebox import measure as measure_inside

    view = tools.view
    before = sampling.known
    tasks = sampling.settle(more)
    if before and (new := sum(len(task.items) for task in tasks) - before) > 0:
        view.say(f"look {look_of(bundle)}: {count_of(new, 'prompt')} a build more, {before + new} in all")
        if bundle.path("labels.csv").exists():
            view.say("people's labels are of answers of an earlier look, and so are the rates that they correct")
    builds = make_builds(study, tasks, bundle, view)
    ask(study, tasks, builds, bundle, tools)
    measure_inside(study, tasks, builds, bundle, view.say)
    measure_text(study, builds, bundle, view.say)
    execute_code(study, tasks, bundle, view.say)
    grade(tasks, builds, bundle, tools.encoders, view.say, tools.classifier)
    judge_study(study, bundle, view)
    recompute(bundle)


def plan(
    study: Study,
    earlier: Path | None = None,
    *,
    measure: bool = True,
    memory: tuple[int | None, str] = (None, "F16"),
    target: str | None = None,
    view: LineProgress,
) -> StudyEstimate:
    """What a study would ask, take and be able to show; nothing is built or asked but a short measurement.

    Args:
        memory: the tokens of context for which each build's is estimated (the study's, if None), and the cache's type.
        target: `accept:BUILD`, for the study that could.

    Raises:
        StudyError: the study is wrong; or there is no such target, or none that its tasks hold enough prompts for.
    """
    from quantverdict.planning.preflight import check_study
    from quantverdict.stages.plan import forecast, needs_of, target_build, target_study

    build = None if target is None else target_build(study, target)
    whole = whole_tasks(study)
    tasks = study_tasks(study, whole)
    for note in check_study(study, tasks):
        view.say(note)
    latest = default_bundle(study)
    known = earlier or (latest if latest.exists() else None)
    found, planned = forecast(study, tasks, known, measure=measure, whole=whole)
    for line in executor_lines(study, found.seconds):
        view.say(line)
    if build is not None and planned is not None:
        found = replace(found, target=target_study(study, found, planned, build))
    return replace(found, memory=needs_of(study, *memory))


def analyze(path: Path, policy: str | None = None, constraints: Constraints | None = None) -> Path:
    """Scores in, decision out: everything after grading, again.

    Args:
        constraints: what is to change in those of the study; nothing is asked for it.
    """
    with Bundle.reopen(path, "analyze", "scores.parquet", "matrix.csv") as bundle:
        if policy is None:
            check_policy_unchanged(bundle)
        held = None if constraints is None else decided_constraints(bundle, last=False).changed(constraints)
        recompute(bundle, load_policy(policy) if policy else None, held)
    return bundle.root


def upgrade(bundle: str | os.PathLike[str]) -> bool:
    """Bring a bundle of an older version to this one's, by its stored scores: every table, the decision, the report.

    Answers, scores and labels stay as they are; `grade` scores the answers by the scorers of this version.

    Returns:
        Whether there was anything to do.

    Raises:
        BundleError: not a bundle, of a version that cannot be upgraded, left unfinished, or changed.
    """
    path = Path(bundle)
    manifest = read_manifest(path, older=True)
    if manifest["schema"] == SCHEMA and manifest["run"].get("finished") is not None:
        return False
    with Bundle.reopen(path, "analyze", "scores.parquet", "matrix.csv", older=True) as opened:
        check_policy_unchanged(opened)
        opened.set_meta(schema=SCHEMA)
        recompute(opened)
    return True


def regrade(path: Path, *, view: LineProgress) -> Path:
    """The stored answers of a bundle scored anew by the scorers of this version, and decided again; nothing is asked.

    Raises:
        BundleError: the bundle holds no study's answers, or was changed since.
        TaskError: a task file of the study is not where it was.
    """
    from quantverdict.stages.judgements import save_judged

    study = DryRunBundle(path).config
    if not isinstance(study, Study):
        raise BundleError(f"{path}: holds no study.yaml")
    classifier = find_classifier(study.classifier, study.folder)
    with Bundle.open(path, study) as bundle, view:
        encoders = find_pinned_encoders(study, bundle)
        tasks, builds = Sampling(study, whole_tasks(study), bundle).asked_only(), stored_builds(bundle)
        execute_code(study, tasks, bundle, view.say)
        grade(tasks, builds, bundle, encoders, view.say, classifier)
        save_judged(bundle)
        recompute(bundle, decided_policy(bundle))
    return bundle.root


def judge_study(study: Study, bundle: Bundle, view: LineProgress) -> None:
    """answers -> `judgements.parquet`; a judge that cannot run gives no label, and the run goes on without it."""
    from quantverdict.stages.judge import ask_judge
    from quantverdict.stages.judgements import save_judged

    judges = sorted((judge for judge in study.judges if judge.engine), key=lambda judge: judge.second)
    for number, judge in enumerate(judges):
        if judge.second and not (number and judges[number - 1].second):
            save_judged(bundle)
            recompute_tables(bundle)  # which cells it judges whole is read from the regimes
        try:
            ask_judge(bundle, judge, study.folder, view.say)
        except (EngineError, ArtifactError) as error:
            view.say(f"judge {judge.name}: failed: {error}")
    save_judged(bundle)


def judge(path: Path, name_or_file: str, *, view: LineProgress) -> list[dict[str, str]]:
    """Give the stored answers of a bundle to a judge, and decide again with its labels.

    Args:
        name_or_file: a judge of the study, or a YAML file with the same keys.

    Returns:
        The rows of `judges.csv`.

    Raises:
        StudyError: no such judge.
        BundleError: the bundle holds no answers, or labels of another model by this name.
        EngineError: the judge cannot be loaded or asked; what it said so far is kept.
    """
    from quantverdict.stages.judge import ask_judge
    from quantverdict.stages.judgements import find_judge, save_judged

    with Bundle.reopen(path, "judge", "scores.parquet") as bundle, view:
        chosen, folder = find_judge(bundle, name_or_file)
        ask_judge(bundle, chosen, folder, view.say)
        save_judged(bundle)
        recompute(bundle, decided_policy(bundle))
        return bundle.read_table("judges") if bundle.path("judges.csv").exists() else []


def recompute(bundle: Bundle, policy: Policy | None = None, constraints: Constraints | None = None) -> None:
    """From the scores that a bundle holds, or the matrix alone where it holds none, to the report."""
    recompute_tables(bundle, policy, constraints)
    render(bundle)


def recompute_tables(bundle: Bundle, policy: Policy | None = None, constraints: Constraints | None = None) -> None:
    """From the scores to the decision."""
    samples = samples_of(bundle)
    if samples is not None:
        build_matrix(bundle, samples)
    decide(bundle, policy, samples, constraints=constraints)


def ingest(sources_file: Path, out: Path, *, quarantine: bool = False) -> Path:
    """Scored samples and judgements from files in, decision out.

    Args:
        quarantine: set broken rows aside in `quarantine.jsonl`, instead of refusing the first.

    Raises:
        StudyError: `sources.yaml` is wrong.
        DataError: a file has another hash, or a row cannot be used; nothing was written.
        BundleError: `out` holds something that this would overwrite.
    """
    from quantverdict.stages.ingest import load, save_result

    loaded = load(sources_file, out, quarantine=quarantine)
    with Bundle.open(out, loaded.found.sources) as bundle:
        save_result(loaded, bundle)
        samples, rows = loaded.samples, loaded.rows
        del loaded  # what was read is in the bundle, and as much as all that is made of it
        decide(bundle, None, samples, rows)
        render(bundle)
    return bundle.root


def analyze_matrix(matrix_file: Path, out: Path, policy: str, constraints: Constraints | None = None) -> Path:
    """A finished matrix in, decision out, by the rules on deltas alone.

    Raises:
        DataError: the matrix, by file, line and column.
        BundleError: `out` holds something that this would overwrite.
    """
    from quantverdict.matrix.columns import matrix_table, read_matrix

    rows, rules = read_matrix(matrix_file), load_policy(policy)
    with Bundle.open(out, None) as bundle:
        if bundle.get_meta("config"):
            raise BundleError(f"{out}: holds the run of a study; name another bundle")
        bundle.set_meta(sources=[{"label": "matrix", "file": matrix_file.name, "sha256": sha256_of(matrix_file)}])
        bundle.write_table(matrix_table(rows))
        decide(bundle, rules, constraints=constraints)
        render(bundle)
    return bundle.root


def matrix_view(source: object, policy: str | None, constraints: Constraints | None, out: Path | None) -> BundleView:
    """`analyze_matrix` of a file or a data frame; without `out` in a folder that goes with the value returned."""
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="quantverdict-")))
        matrix = source if isinstance(source, Path) else write_matrix(source, folder / "matrix.csv")
        found = BundleView(analyze_matrix(matrix, out or folder / "matrix", policy or "quantverdict", constraints))
        if out is None:
            weakref.finalize(found, undo.pop_all().close)
    return found


def decision_of(path: Path) -> BundleTables:
    """What was decided in a bundle, to be shown.

    Raises:
        BundleError: nothing was.
    """
    return view_of(DryRunBundle(path))


def report(path: Path, profile: str | None = None) -> list[Path]:
    """Render a bundle's report again.

    Args:
        profile: one of `PROFILES`, kept for the next time; the one that the bundle has if not given.
    """
    with Bundle.reopen(path, "report", "decision.json") as bundle:
        if profile is not None:
            bundle.set_meta(report={"profile": profile})
        render(bundle)
    return [path / "report.md", path / "report.html"]


def label(path: Path, out: Path, rows: int) -> LoadedSheet:
    """Write a blinded sheet of a bundle's answers for people to label.

    Args:
        rows: about how many are drawn at random, besides the discordant pairs.

    Raises:
        BundleError: the bundle has no answers, or the sheet cannot be written.
    """
    from quantverdict.stages.label import write_sheet

    with Bundle.reopen(path, "label --out", "decision.json") as bundle:
        sheet = write_sheet(bundle, out, rows)
        render(bundle)
    return sheet


def read_labels(path: Path, file: Path) -> LoadedSheet:
    """Read a labelled sheet back into its bundle: error rates of instruments, corrected rates, and the report anew.

    Raises:
        DataError: the sheet, by file, line and column.
        BundleError: no sheet was made of this bundle.
    """
    from quantverdict.stages.label import save_labels

    with Bundle.reopen(path, "label --read", "decision.json") as bundle:
        sheet = save_labels(bundle, file)
        recompute(bundle, decided_policy(bundle))
    return sheet


def read_gate(policy: str | None, build: str | None = None, study: Study | None = None) -> GatePolicy:
    """What a gate asks for, before anything runs.

    Args:
        policy: a YAML file, or a policy by its name; none asks for no more than was decided.
        build: BASE/QUANT, the only one to gate.
        study: whose builds are gated, where it is not yet run.

    Raises:
        StudyError: with file, line and key; or builds that the study has not.
    """
    from quantverdict.stages.gate import check_policy_names, load_gate

    asked = load_gate(policy, build)
    if study is not None:
        check_policy_names(asked, study)
    return asked


def gate(
    path: Path,
    asked: GatePolicy,
    today: date,
    *,
    junit: Path | None = None,
    summary: Path | None = None,
    inconclusive: str = "skipped",
) -> Gate:
    """A finished bundle through a gate; the bundle is not changed.

    Args:
        today: a waiver that expired before it does not hold.
        junit, summary: files to write; the summary is added to its file.
        inconclusive: what JUnit counts as that: `skipped` or `failure`.

    Raises:
        StudyError: the gate's policy does not fit the bundle.
        BundleError: the bundle is not finished, or was changed since.
    """
    from quantverdict.stages.gate import gate_bundle, write_reports

    found = gate_bundle(path, asked, today)
    write_reports(found, junit, summary, inconclusive)
    return found


def diff(one: Path, two: Path) -> BundleDiff:
    """What changed from one bundle of a study to another.

    Raises:
        BundleError: a bundle is not finished, or they are not of the same study, tasks and prompts.
    """
    from quantverdict.stages.diff import compare

    return compare(one, two)


def verify(path: Path) -> list[str]:
    """What of a bundle is not as it was written, or does not follow from its data; empty when all holds.

    Raises:
        BundleError: not a bundle, or of another version.
    """
    from quantverdict.stages.verify import verify as verify_bundle

    return verify_bundle(path)


GGUF_OPTIONS = ("imatrix", "imatrix_text", "tensor_types")


def quantize(
    model: Path, levels: Sequence[str], out: Path, how: Mapping[str, object] | None = None, *, view: LineProgress
) -> Mapping[str, Path]:
    """Make GGUF levels of a model file, and AWQ and GPTQ builds of a file or a checkpoint, in a folder.

    Args:
        how: fields of `QuantizeConfig`; `GGUF_OPTIONS` are for GGUF levels, the others for checkpoints.

    Raises:
        ArtifactError: no such level (nothing is made then), or not a model.
        EngineError: a tool cannot make a build of this model; its reason.
    """
    from quantverdict.artifacts.checkpoint_build import quantize_checkpoint_levels
    from quantverdict.artifacts.imatrix import read_imatrix
    from quantverdict.artifacts.quantize import make_level
    from quantverdict.backends.imatrix import compute_imatrix

    known = GGUF_LEVELS + CHECKPOINT_LEVELS
    levels = [ALSO_CALLED.get(level, level) for level in levels]
    for level in levels:
        if level not in known:
            raise ArtifactError(
                f"no level {level!r}", field="--to", expected=f"some of {','.join(known)}{did_you_mean(level, known)}"
            )
    how = dict(how or {})
    recipe = quantize_config({name: how.pop(name) for name in GGUF_OPTIONS if name in how})
    file = recipe.imatrix
    if recipe.imatrix_text is not None:
        text = Path(recipe.imatrix_text)
        file = str(compute_imatrix(model, text, out / f"{model.stem}-{text.stem}.imatrix.gguf"))
    imatrix = None if file is None else read_imatrix(Path(file))
    types = recipe.tensor_types
    made = {
        level: make_level(model, level, out / f"{model.stem}-{level}.gguf", imatrix=imatrix, tensor_types=types)
        for level in levels
        if level in GGUF_LEVELS
    }
    others = [level for level in levels if level in CHECKPOINT_LEVELS]
    with view:
        made |= quantize_checkpoint_levels(model, others, out, quantize_config(how), cache_dir(), view.say)
    return made


def default_bundle(study: Study) -> Path:
    return Path("bundles") / study.study
