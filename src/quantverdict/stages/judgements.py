"""The judges of a bundle: stored answers -> `judgements/*.jsonl` -> `judgements.parquet`, `judges.csv`.

Everything but the labels themselves follows from the bundle: which answers a judge covers, which of them are one
question, which judge's label counts. So the tables are made again without a model, and `verify` does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantverdict.bundle.frames import SCORES, read_frame
from quantverdict.bundle.judge_registry import FORMER, RECORD, JudgeRegistry, labels_file
from quantverdict.bundle.manifest import Bundle
from quantverdict.bundle.store import JudgeReply, read_labels
from quantverdict.config import JudgeConfig, Study
from quantverdict.errors import BundleError, StudyError, did_you_mean
from quantverdict.grading.answer import answer_of, read_answer
from quantverdict.grading.instruments import COUNTS
from quantverdict.ingestion.audit import JUDGEMENT_COLUMNS
from quantverdict.judges.calibration import Calibration, calibration_of, calibration_table, calibrations
from quantverdict.judges.guards import GUARDS, guarded_metrics
from quantverdict.judges.rubrics import (
    EMPTY_ANSWER,
    Question,
    Sample,
    first_label_wins,
    load_rubric,
    sample_of,
    stratified,
)
from quantverdict.records import CellId, Judgement, Prompt, Response, Score, Table, Value
from quantverdict.registry import judge_rubrics
from quantverdict.stages.facts import (
    GUARDED,
    JUDGEMENTS,
    OTHER_JUDGEMENTS,
    statistics_of,
    stored_builds,
    stored_prompts,
    stored_responses,
)
from quantverdict.tasks.conversation import as_text, turns_with
from quantverdict.yaml_file import load_yaml

if TYPE_CHECKING:
    import polars as pl

KEPT = (JUDGEMENTS, OTHER_JUDGEMENTS, GUARDED, "judges.csv", "judge_calibration.csv")
"""What the labels of finished judges come to."""
WATCHED = ("hidden_danger", "near_hidden_danger")
"""Regimes whose cells a second judge judges whole, beside the baselines."""
COLUMNS = (
    "judge", "model", "second", "samples", "loaded", "superseded", "ungraded", "empty", "questions", "requests",
    "prompt_tokens", "output_tokens", "cost",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class JudgedBundle:
    """What the judges of a bundle came to.

    Attributes:
        first, others: the judgements that count, and those that do not.
        guarded: what guard models say, as scores.
        table, calibration: `judges.csv`, `judge_calibration.csv`.
    """

    first: list[Judgement]
    others: list[Judgement]
    guarded: list[Score]
    table: Table
    calibration: Table


# Who judges


def judges_of(bundle: Bundle) -> tuple[JudgeConfig, ...]:
    """The judges that can run: the study's in its order, then those that were added to the bundle."""
    config = bundle.config
    own = config.judges if isinstance(config, Study) else ()
    names = {judge.name for judge in own}
    added = [JudgeConfig.model_validate(one["config"]) for one in judge_registry_of(bundle).judges.values()]
    return tuple(judge for judge in (*own, *(one for one in added if one.name not in names)) if judge.engine)


def find_judge(bundle: Bundle, name_or_file: str) -> tuple[JudgeConfig, Path]:
    """A judge of the bundle by name, or from a YAML file with the keys of a study's judge; and where its paths start.

    Raises:
        StudyError: neither; or another judge of the study has the name.
    """
    known = {judge.name: judge for judge in judges_of(bundle)}
    if name_or_file in known:
        return known[name_or_file], bundle.root
    file = Path(name_or_file)
    if not file.is_file():
        names = ", ".join(known) or "none here"
        expected = f"a judge that can run ({names}), or a file{did_you_mean(name_or_file, known)}"
        raise StudyError(f"no judge {name_or_file}", field="judge", expected=expected)
    judge = load_yaml(file, JudgeConfig)
    if not judge.engine:
        raise StudyError("cannot run", file=file, field="source", expected="a source, or a backend with a hosted API")
    config = bundle.config
    named = config.judges if isinstance(config, Study) else ()
    if any(one.name == judge.name and one != judge for one in named):
        raise StudyError(f"the study has another judge {judge.name}", file=file, field="name", expected="another name")
    return judge, file.parent


def judge_registry_of(bundle: Bundle) -> JudgeRegistry:
    """The judges of a bundle, active and former."""
    return JudgeRegistry.of({part: bundle.get_meta(part) for part in (RECORD, FORMER)})


# What is judged


@dataclass(frozen=True, slots=True)
class JudgedAnswers:
    """The answers of a bundle that a rubric covers, in the order in which they were asked."""

    questions: Mapping[Sample, Question]

    def covered(self, judge: JudgeConfig, sampled: Mapping[str, Any] | None, seed: int) -> list[Sample]:
        """The samples that a judge labels; `sampled` is what the manifest says of a second judge."""
        mine = [
            sample
            for sample in self.questions
            if (not judge.covers or sample[0] in judge.covers)
            and (not judge.quants or sample[1].partition("~")[0] in judge.quants)
        ]
        if not judge.second:
            return mine
        whole = {CellId(*cell.split("/", 1)) for cell in (sampled or {}).get("whole", ())}
        rows = [sample for sample in mine if "~" not in sample[1]]  # an A/A replicate has no row of its own
        return stratified(rows, whole, judge.sample, seed)


def answers_of(bundle: Bundle, guard: str | None = None) -> JudgedAnswers:
    """Every graded answer to a task that has a rubric; with the preset of a guard, those that it is asked.

    Raises:
        BundleError: the bundle holds no answers.
    """
    import polars as pl

    if not bundle.path("responses").is_dir():
        raise BundleError(f"{bundle.root}: holds no answers to judge; expected the bundle of a study")
    names = {rubric.of: load_rubric(rubric.name) for rubric in judge_rubrics()}
    if guard is not None:
        names = dict.fromkeys(guarded_metrics(guard), GUARDS[guard].rubric)
    scores = read_frame(bundle.path("scores.parquet"), SCORES).filter(pl.col("metric").is_in(list(names)))
    rubrics = dict(scores.select("task", "metric").unique().iter_rows())
    cells = set(scores.select("base_model", "quant").unique().iter_rows())
    found: dict[Sample, Question] = {}
    asked: dict[str, dict[tuple[str, str], Prompt]] = {}
    for build in stored_builds(bundle):
        if tuple(build.cell) not in cells:
            continue
        model = build.cell.base_model
        if model not in asked:
            asked[model] = {(one.task, one.sample_id): one for one in stored_prompts(bundle, model)}
        for one in stored_responses(bundle, build.cell):
            if one.task in rubrics:
                prompt = question_asked(asked[model][one.task, one.sample_id], one)
                question = Question(names[rubrics[one.task]], prompt, answer_of(one).text)
                found[one.base_model, one.quant, one.task, one.sample_id] = question
    return JudgedAnswers(found)


def question_asked(prompt: Prompt, response: Response) -> str:
    """What was asked before an answer; of a conversation with what the model itself said in it."""
    if not response.replies:
        return prompt.text
    said = [read_answer(text, opened=response.opened).text for text in response.replies]
    return as_text(turns_with(prompt.messages, said))


def whole_cells(bundle: Bundle) -> list[str]:
    """The cells that a second judge judges whole: baselines, and those whose regime is a danger."""
    baselines = [build.cell for build in stored_builds(bundle) if build.is_baseline]
    rows = bundle.read_table("regimes") if bundle.path("regimes.csv").exists() else []
    watched = [CellId(row["base_model"], row["quant"]) for row in rows if row["regime"] in WATCHED]
    return sorted({str(cell) for cell in (*baselines, *watched)})


# What it comes to


def judged(bundle: Bundle) -> JudgedBundle | None:
    """What the judges said of the answers that a bundle holds, without asking; None where none is finished.

    A judge that has not labelled everything that it covers is left out: a cell of which a part is judged is no cell.
    So are the labels by a rubric of which its calibration found it uninformative.
    """
    record = judge_registry_of(bundle).judges
    if not record:
        return None
    answers: dict[str | None, JudgedAnswers] = {None: answers_of(bundle)}
    seed = statistics_of(bundle)[1]
    own: dict[str, list[Judgement]] = {}
    replies: dict[str, tuple[int, Collection[JudgeReply]]] = {}
    found: list[Calibration] = []
    judges = {judge.name: judge for judge in judges_of(bundle) if judge.name in record}
    for name, judge in judges.items():
        if judge.guard not in answers:
            answers[judge.guard] = answers_of(bundle, judge.guard)
        questions = answers[judge.guard].questions
        said = read_labels(bundle.root, labels_file(record[name]))
        samples = answers[judge.guard].covered(judge, record[name], seed)
        asked = {questions[sample].key for sample in samples if questions[sample].answer.strip()}
        if not samples or not asked <= said.keys():
            continue
        known = calibration_of({questions[sample].rubric for sample in samples}, judge.guard)
        found += (mine := list(calibrations(name, known, said)))
        useless = {one.rubric for one in mine if one.verdict == "uninformative"}
        counting = [sample for sample in samples if questions[sample].rubric.name not in useless]
        own[name] = [_judgement(name, sample, questions[sample], said) for sample in counting]
        replies[name] = len(asked), said.values()
    if not own:
        return None
    first, others = first_label_wins([own[name] for name, judge in judges.items() if name in own and judge.counts])
    others += [one for name in own if judges[name].second for one in own[name]]
    guards, _ = first_label_wins([own[name] for name in own if judges[name].guard is not None])
    rows = tuple(_counts(judges[name], own[name], replies[name], [*first, *guards]) for name in own)
    table = Table("judges", COLUMNS, rows)
    return JudgedBundle(first, others, _guard_scores(bundle, guards), table, calibration_table(found))


def _guard_scores(bundle: Bundle, guards: Sequence[Judgement]) -> list[Score]:
    """The labels of guards as scores of `guard_refusal_rate` and `guard_over_refusal_rate`."""
    import polars as pl

    if not guards:
        return []
    scores = read_frame(bundle.path("scores.parquet"), SCORES)
    refusals = scores.filter(pl.col("metric").is_in(["refusal_rate", "over_refusal_rate"]))
    columns = ("task", "sample_id", "metric", "cluster")
    of = {(task, sample): rest for task, sample, *rest in refusals.select(columns).unique().iter_rows()}
    found = []
    for one in guards:
        metric, cluster = of[one.task, one.sample_id]
        value = None if one.label is None else COUNTS[one.label]
        reason = one.reason or ("" if value is not None else "the guard calls it unclear")
        found.append(Score(*sample_of(one), f"guard_{metric}", value, cluster, reason))
    return found


def save_judged(bundle: Bundle) -> bool:
    """`judgements.parquet` and its like, `judges.csv`, `judge_calibration.csv`; False where no judge is finished."""
    found = judged(bundle)
    if found is None:  # the judges that they are of have less labels than answers by now, or are no longer active
        bundle.drop(*KEPT)
        return False
    bundle.write_parquet(JUDGEMENTS, judgements_frame(found.first))
    for name, frame in optional_frames(found).items():
        if frame is None:
            bundle.drop(name)
        else:
            bundle.write_parquet(name, frame)
    bundle.write_table(found.table)
    if found.calibration.rows:
        bundle.write_table(found.calibration)
    else:
        bundle.drop("judge_calibration.csv")
    return True


def optional_frames(found: JudgedBundle) -> dict[str, pl.DataFrame | None]:
    """What only some bundles with judges hold; None where this one does not."""
    import polars as pl

    from quantverdict.matrix.grid import scores_frame

    reasons = pl.Series("reason", [one.reason for one in found.guarded], dtype=pl.String)
    return {
        OTHER_JUDGEMENTS: judgements_frame(found.others) if found.others else None,
        GUARDED: scores_frame(found.guarded).with_columns(reasons) if found.guarded else None,
    }


def judgements_frame(judgements: list[Judgement]) -> pl.DataFrame:
    """Judgements as a frame, a column each field."""
    import polars as pl

    rows = [(*sample_of(one), one.judge, one.label, one.reason) for one in judgements]
    return pl.DataFrame(rows, schema=dict.fromkeys(JUDGEMENT_COLUMNS, pl.String), orient="row")


def _judgement(judge: str, sample: Sample, question: Question, said: Mapping[str, JudgeReply]) -> Judgement:
    if not question.answer.strip():
        return Judgement(*sample, judge, None, EMPTY_ANSWER)
    found = said[question.key]
    return Judgement(*sample, judge, found.label, found.reason)


def _counts(
    judge: JudgeConfig,
    own: list[Judgement],
    replies: tuple[int, Collection[JudgeReply]],
    first: Sequence[Judgement],
) -> tuple[Value, ...]:
    """A row of `judges.csv`; requests, tokens and cost are of all that it was asked, its calibration too."""
    loaded = len(own) if judge.second else sum(one.judge == judge.name for one in first)
    questions, said = replies
    tokens = [sum(getattr(one, name) for one in said) for name in ("prompt_tokens", "output_tokens")]
    empty = sum(one.reason == EMPTY_ANSWER for one in own)
    ungraded = sum(one.label is None for one in own)
    counts = (len(own), loaded, len(own) - loaded, ungraded, empty, questions, len(said), *tokens)
    return (judge.name, judge.model, judge.second, *counts, cost_of(judge, *tokens))


def cost_of(judge: JudgeConfig, read: int, written: int) -> float | None:
    """Of so many tokens, in the currency of its price; None where it has none."""
    price = judge.price
    return None if price is None else (read * price.input + written * price.output) / 1e6
