"""The front door: a command a function, as `import quantverdict as qv` gives it.

Files and folders are `str` or `Path`; an open bundle (`BundleView`) stands for its folder. Nothing is printed. What
takes long tells each line of its progress to `progress`, where that is given. What is wrong raises a
`QuantverdictError`, whose text is one line and whose `exit_code` is the command line's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from quantverdict.api.models import PathLike, Progress, view_of
from quantverdict.api.models import init as init
from quantverdict.api.models import inspect as inspect
from quantverdict.api.models import lineage as lineage
from quantverdict.api.models import quantize as quantize
from quantverdict.errors import BundleError, DataError

if TYPE_CHECKING:
    from quantverdict.config import Study
    from quantverdict.planning.estimate import StudyEstimate
    from quantverdict.protocol.differences import BundleDiff
    from quantverdict.protocol.gate import Gate, GatePolicy
    from quantverdict.reporting.terminal import LineProgress
    from quantverdict.stages.card import WrittenCard
    from quantverdict.stages.compare import LogComparison
    from quantverdict.stages.grade import GradedFile
    from quantverdict.stages.label import LoadedSheet
    from quantverdict.stages.view import BundleView


class Frame(Protocol):
    """A data frame of polars or pandas."""

    @property
    def columns(self) -> Any: ...  # noqa: ANN401 - a list here, an index there


def load_study(study: PathLike, *, task_dir: PathLike | None = None) -> Study:
    """Read a study.

    Args:
        study: its YAML file.
        task_dir: where its task files are, instead of its own `task_dir`.

    Raises:
        StudyError: with file, line and key of the first mistake.
    """
    from quantverdict.config import load_study as load

    read = load(Path(study))
    return read if task_dir is None else read.model_copy(update={"task_dir": str(Path(task_dir).resolve())})


def run(  # noqa: PLR0913 - one argument an option
    study: PathLike | Study,
    out: PathLike | None = None,
    *,
    task_dir: PathLike | None = None,
    more: int | None = None,
    until_decided: bool = False,
    budget: str | None = None,
    store: PathLike | None = None,
    cache: bool = True,
    ray: str | bool | None = None,
    progress: Progress | LineProgress | None = None,
) -> BundleView:
    """Run a study, from builds to the decision and its report. Run it again to resume: only what is missing is asked.

    Args:
        study: a study, or its YAML file.
        out: the bundle to write or to resume; `bundles/STUDY` if not given.
        more: prompts a build to add to a finished bundle, rounded up to the next look.
        until_decided: add looks until every build is decided, or the tasks hold no more prompts.
        budget: bounds that: `30m`, `2h`. A look that is not expected to fit is not begun.
        store: the folder of answers that are reused, and kept; if not given, QUANTVERDICT_STORE, else one in the
            user's cache folder.
        cache: False asks for every answer, and keeps none.
        ray: HOST:PORT of a Ray cluster to run builds on; True for this machine's.

    Raises:
        InputError: a study, task or model file is wrong; nothing was run.
        BundleError: the bundle is in use, of another study, or cannot be written.
        EngineError: not one baseline could be run.
    """
    from quantverdict.collect.answer_store import chosen_folder
    from quantverdict.stages.ask import ray_executor
    from quantverdict.stages.more import GrowthRequest, read_budget
    from quantverdict.stages.run import run as run_study

    asked = GrowthRequest(more, until_decided, None if budget is None else read_budget(budget))
    folder = chosen_folder(None if store is None else Path(store), cache=cache)
    root = None if out is None else Path(out)
    given, where = _study(study, task_dir), ray_executor(ray)
    return open_bundle(run_study(given, root, view=view_of(progress), store=folder, asked=asked, executor=where))


def plan(  # noqa: PLR0913 - one argument an option
    study: PathLike | Study,
    bundle: PathLike | None = None,
    *,
    task_dir: PathLike | None = None,
    measure: bool = True,
    context: int | None = None,
    cache_type: str = "F16",
    target: str | None = None,
    progress: Progress | LineProgress | None = None,
) -> StudyEstimate:
    """What a study would ask, take and be able to show, before it runs.

    Args:
        bundle: an earlier run to take tokens, speed and differing pairs from.
        measure: time a short batch where there is no earlier run.
        context: tokens of one sequence for which each build's memory is estimated; `collect.context` if not given.
        cache_type: of the keys and values that it keeps then: `F16`, `Q8_0`, ...
        target: `accept:BUILD`: the study that could, as `.target`.

    Returns:
        Counts, times in seconds, money, and what each metric could show; `.lines()` as the command prints it.
    """
    from quantverdict.stages.run import plan as plan_study

    earlier = None if bundle is None else Path(bundle)
    how: dict[str, Any] = {"measure": measure, "memory": (context, cache_type), "target": target}
    return plan_study(_study(study, task_dir), earlier, **how, view=view_of(progress))


def analyze(
    source: PathLike | BundleView | Frame,
    *,
    policy: str | None = None,
    constraints: Mapping[str, object] | None = None,
    out: PathLike | None = None,
) -> BundleView:
    """Decide from stored scores, or from a finished matrix.

    Args:
        source: a bundle; or a matrix, as a CSV file or as a data frame with the columns of `matrix.csv`.
        policy: by name, or its YAML file; a bundle's own, and `quantverdict` for a matrix, if not given.
        constraints: what to change in those of the study: `{"max_file": "2 GB"}`; None takes one out.
        out: with a matrix: the bundle to write; a temporary one, which goes with the value returned, if not given.

    Raises:
        BundleError: a bundle was changed since it was finished, or `out` holds something else.
        DataError: the matrix, by file, line and column.
        StudyError: a constraint that there is not, or no size or speed.
    """
    from quantverdict.policy import constraints_of
    from quantverdict.stages.run import analyze as analyze_bundle
    from quantverdict.stages.run import matrix_view

    root = None if out is None else Path(out)
    held = None if constraints is None else constraints_of(constraints)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.is_dir():
            return matrix_view(path, policy, held, root)
        if out is not None:
            raise BundleError(f"{path}: a bundle is decided anew in place; out is for a matrix")
        return open_bundle(analyze_bundle(path, policy, held))
    return matrix_view(source, policy, held, root)


def ingest(sources: PathLike, out: PathLike, *, quarantine: bool = False) -> BundleView:
    """Decide from scored samples and judgements in files, each checked by its hash first.

    Args:
        sources: the YAML file that names them.
        out: the bundle to write.
        quarantine: set broken rows aside in the bundle, instead of refusing the first.

    Raises:
        StudyError: `sources` is wrong.
        DataError: a file has another hash, or a row cannot be used; nothing was written.
    """
    from quantverdict.stages.run import ingest as ingest_sources

    return open_bundle(ingest_sources(Path(sources), Path(out), quarantine=quarantine))


def import_logs(  # noqa: PLR0913 - one argument an option
    logs: PathLike | Sequence[PathLike],
    out: PathLike,
    *,
    arms: Mapping[str, PathLike] | Sequence[str] = (),
    baseline: str | None = None,
    model: str | None = None,
    bits: Mapping[str, str | float] | Sequence[str] = (),
    form: str | None = None,
    chosen: str = "all",
    columns: Mapping[str, str] | Sequence[str] = (),
    metrics: Sequence[str] = (),
    units: Mapping[str, str] | Sequence[str] = (),
    margin: float = 5.0,
    policy: str | None = None,
    quarantine: bool = False,
) -> BundleView:
    """Decide from logs of other tools: lm-eval, Inspect, promptfoo, Every Eval Ever, llama-perplexity, or tables.

    Args:
        logs: files and folders.
        out: the bundle to write.
        arms: further logs, each by what its build is called.
        baseline: the arm that the others are compared with; the first if not given.
        model: the base model's name; the bundle's if not given.
        bits: per weight, by arm: what is fit and has the fewest is recommended.
        form: of the logs, where a file does not tell: a name of the registry's importers.
        chosen: the filter of lm-eval whose rows are taken; `all` takes each as a metric.
        columns: of tables, by role: `{"sample_id": "question_id"}`.
        metrics: those that are taken; all if empty.
        units: of metrics: `{"f1": "share,higher"}`; kept in `quantverdict-metrics.yaml` in the current folder.
        margin: the tolerated loss, in pp.
        policy: by name, or its YAML file; if not given, quality is what the logs measure.
        quarantine: set broken rows aside in the bundle, instead of refusing the first.

    Raises:
        DataError: a log, by file and row: what is wrong and what was expected. Nothing was written.
        StudyError: an option that is not of its form.
    """
    from quantverdict.ingestion.logs import as_texts, log_options, name_value_pairs
    from quantverdict.stages.import_logs import import_logs as import_into

    places = [Path(logs)] if isinstance(logs, str | os.PathLike) else [Path(one) for one in logs]
    shown = {name: str(one) for name, one in bits.items()} if isinstance(bits, Mapping) else bits
    how = {"baseline": baseline, "model": model, "bits": name_value_pairs(shown, "--bits"), "margin": margin}
    how |= {"policy": policy, "quarantine": quarantine}
    options = log_options(form, chosen, columns, metrics)
    named = name_value_pairs(arms, "--arm")
    return open_bundle(import_into(places, Path(out), options, arms=named, units=as_texts(units), **how))


def compare(  # noqa: PLR0913 - one argument an option
    baseline: PathLike,
    candidate: PathLike,
    *,
    form: str | None = None,
    chosen: str = "all",
    columns: Mapping[str, str] | Sequence[str] = (),
    metrics: Sequence[str] = (),
    units: Mapping[str, str] | Sequence[str] = (),
    margin: float = 5.0,
) -> LogComparison:
    """Compare two logs prompt by prompt, without a bundle, by the tests of the criteria.

    Args: as `import_logs`.

    Returns:
        The verdict with its rows (by the columns of `criteria.csv`), and what does not pair; `.lines()` as printed.

    Raises:
        DataError: a log, by file and row; or the two have no metric or no prompt in common.
    """
    from quantverdict.ingestion.logs import UNITS_FILE, as_texts, log_options
    from quantverdict.stages.compare import compare as compare_logs

    options = log_options(form, chosen, columns, metrics)
    return compare_logs(
        Path(baseline), Path(candidate), options, margin=margin, units=as_texts(units), units_file=Path(UNITS_FILE)
    )


def judge(bundle: PathLike, judge: str, *, progress: Progress | LineProgress | None = None) -> list[dict[str, str]]:
    """Give stored answers to a judge, and decide again; what is labelled already is not asked.

    Args:
        judge: a judge of the study by name, or a YAML file with its keys.

    Returns:
        The rows of `judges.csv`.

    Raises:
        EngineError: the judge cannot be loaded or asked; what it said so far is kept.
    """
    from quantverdict.stages.run import judge as judge_bundle

    return judge_bundle(Path(bundle), judge, view=view_of(progress))


def grade(bundle: PathLike, *, progress: Progress | LineProgress | None = None) -> BundleView:
    """Score the stored answers of a study anew by the scorers that are installed, and decide again; nothing is asked.
    For answers in a file of your own, which is what the command `grade` reads, see `grade_file`.

    Raises:
        BundleError: the bundle holds no study's answers, or was changed since.
    """
    from quantverdict.stages.run import regrade

    return open_bundle(regrade(Path(bundle), view=view_of(progress)))


def grade_file(
    file: PathLike,
    kind: str,
    *,
    instrument: str | None = None,
    label: str | None = None,
    columns: Mapping[str, str] | Sequence[str] = (),
    out: PathLike | None = None,
) -> GradedFile:
    """Label answers in a file of your own, and compare with labels of people; no bundle takes part (see `grade`).

    Args:
        file: a CSV, JSONL or Parquet file with a row an answer.
        kind: what the answers are read for: `refusal`, `choice`, `truth` or `bias`.
        instrument: by name (`pattern`, `classifier`, a preset's), or the YAML file of a judge, a guard or a classifier.
        label: the column with labels of people.
        columns: role (prompt, answer, choices, reference, incorrect, stereotype) to column, or texts ROLE=NAME.
        out: the CSV or JSONL file to write: every row with its label.

    Raises:
        DataError: the file, by row and column.
        StudyError: no such kind, instrument or role.
        EngineError: a model cannot be loaded or asked.
    """
    from quantverdict.stages.grade import grade_file as grade_rows
    from quantverdict.stages.grade import named_columns

    named = columns if isinstance(columns, Mapping) else named_columns(columns)
    target = None if out is None else Path(out)
    return grade_rows(Path(file), kind, instrument=instrument, label=label, columns=named, out=target)


def label(bundle: PathLike, *, out: PathLike | None = None, read: PathLike | None = None, n: int = 200) -> LoadedSheet:
    """Have people label answers: write a blinded sheet, or read it back and correct the rates by its labels.

    Args:
        out: the CSV file to write; `n` is about how many answers are drawn at random besides the discordant pairs.
        read: the filled sheet.

    Raises:
        DataError: neither or both of `out` and `read`; or the sheet, by file, line and column.
        BundleError: the bundle has no answers, or no sheet was made of it.
    """
    from quantverdict.stages.run import label as write_sheet
    from quantverdict.stages.run import read_labels

    if out is not None and read is None:
        return write_sheet(Path(bundle), Path(out), n)
    if read is not None and out is None:
        return read_labels(Path(bundle), Path(read))
    raise DataError("what to do is not clear", expected="out, the sheet to write, or read, the sheet to read back")


def load_gate(
    policy: str | None = None, build: str | None = None, *, study: PathLike | Study | None = None
) -> GatePolicy:
    """What a gate asks for, so that a mistake is found before anything runs.

    Args:
        policy: a YAML file, or a policy by name; no more than was decided if not given.
        build: `MODEL/QUANT`, the only one to gate.
        study: whose builds are gated, where it is not yet run.

    Raises:
        StudyError: with file, line and key; or builds that the study has not.
    """
    from quantverdict.stages.run import read_gate

    return read_gate(policy, build, None if study is None else _study(study))


def gate(  # noqa: PLR0913 - one argument an option
    bundle: PathLike,
    policy: str | GatePolicy | None = None,
    *,
    build: str | None = None,
    constraints: Mapping[str, object] | None = None,
    today: date | None = None,
    junit: PathLike | None = None,
    summary: PathLike | None = None,
    inconclusive: Literal["skipped", "failure"] = "skipped",
) -> Gate:
    """Whether the builds of a finished bundle may ship; the bundle is not changed.

    Args:
        policy: of the gate: margins, floors, waivers; a YAML file, or a policy by name.
        build: gate this build alone, `MODEL/QUANT`.
        constraints: what to change in those of the gate's policy and of the study: `{"max_file": "2 GB"}`.
        today: a waiver that expired before it does not hold; today in UTC if not given.
        junit, summary: files to write; the Markdown summary is added to its file.
        inconclusive: what JUnit counts a verdict as that cannot be told, or was not measured. The exit code stays.

    Returns:
        The verdicts; `exit_code` 0 accepted, 3 rejected, 4 not measured, 5 inconclusive.

    Raises:
        StudyError: the gate's policy does not fit the bundle.
        BundleError: the bundle is not finished, or was changed since.
    """
    from quantverdict.policy import constraints_of
    from quantverdict.stages.run import gate as gate_bundle

    asked = load_gate(policy, build) if policy is None or isinstance(policy, str) else policy
    if constraints is not None:
        asked = asked.model_copy(update={"constraints": asked.constraints.changed(constraints_of(constraints))})
    files = [None if path is None else Path(path) for path in (junit, summary)]
    day = today or datetime.now(UTC).date()
    return gate_bundle(Path(bundle), asked, day, junit=files[0], summary=files[1], inconclusive=inconclusive)


def diff(one: PathLike, two: PathLike) -> BundleDiff:
    """What changed from bundle `one` to bundle `two` of the same study: verdicts, deltas, answers, engines.

    Raises:
        BundleError: a bundle is not finished, or they are not of the same study, tasks and prompts.
    """
    from quantverdict.stages.run import diff as diff_bundles

    return diff_bundles(Path(one), Path(two))


def verify(bundle: PathLike) -> list[str]:
    """What of a bundle is not as it was written, or does not follow from its data; empty where all holds.

    Raises:
        BundleError: not a bundle, or of another version.
    """
    from quantverdict.stages.run import verify as verify_bundle

    return verify_bundle(Path(bundle))


def report(bundle: PathLike, profile: str | None = None) -> list[Path]:
    """Render a bundle's report again.

    Args:
        profile: `default`, the short report, or `study`, the whole study; the one it has if not given.

    Returns:
        The files: Markdown and HTML.
    """
    from quantverdict.stages.run import report as render_report

    return render_report(Path(bundle), profile)


def export(bundle: PathLike, to: str, out: PathLike) -> list[Path]:
    """Write a finished bundle in the format of another tool; the bundle is not changed.

    Args:
        to: `parquet` (every table and every sample), `mlflow` (a store of SQLite with a run a build) or
            `every-eval-ever` (a document a build, and its instances where the bundle has answers).
        out: the folder to write.

    Returns:
        The files.

    Raises:
        BundleError: the bundle is not finished.
        QuantverdictError: what writes that format is not installed.
        DataError: no such format.
    """
    from quantverdict.stages.export import export as write

    return write(Path(bundle), to, Path(out))


def card(  # noqa: PLR0913 - one argument an option
    bundle: PathLike,
    out: PathLike = "card",
    *,
    model: str | None = None,
    base_model: str | None = None,
    quantized_by: str | None = None,
    repo: str | None = None,
    dataset: str | None = None,
    files: Mapping[str, str] | Sequence[str] = (),
    context: int | None = None,
    png: bool = False,
) -> WrittenCard:
    """Write what a publisher of builds puts on the hub: a model card's section and front matter, charts, results.

    Args:
        out: the folder: README.md (one that is there is kept but for what is ours), `.eval_results/`, `quantverdict/`.
        model: which base model of the bundle; not needed where there is one.
        base_model, quantized_by: front matter; the original on the hub, `owner/name`, and who made the builds.
        repo: the repository that the files are in, `owner/name`; links are relative if not given.
        dataset: the data set of the hub that holds the tasks which are not of it, `owner/name`.
        files: build to the name of its file, where the bundle's is not the published one.
        context: tokens that memory is estimated for; the study's if not given.
        png: draw the charts as PNG too, and show these: needs the extra png.

    Raises:
        BundleError: the bundle is not finished, or a file of somebody else's is in the way. Nothing was written.
        DataError: no such base model or build, no name of the hub, or a README.md whose front matter cannot be read.
    """
    from quantverdict.ingestion.logs import name_value_pairs
    from quantverdict.stages.card import CardOptions, write_card

    said = (quantized_by or "", repo or "", dataset or "")
    options = CardOptions(model, base_model, *said, context, name_value_pairs(files, "--file"), png)
    return write_card(Path(bundle), Path(out), options)


def open_bundle(bundle: PathLike) -> BundleView:
    """A bundle to look at: frames and small values, each read when asked for; nothing is locked or changed.

    Raises:
        BundleError: not a bundle, or of another version.
    """
    from quantverdict.stages.view import BundleView

    return BundleView(Path(bundle))


def _study(study: PathLike | Study, task_dir: PathLike | None = None) -> Study:
    if isinstance(study, str | os.PathLike):
        return load_study(study, task_dir=task_dir)
    return study if task_dir is None else study.model_copy(update={"task_dir": str(Path(task_dir).resolve())})
