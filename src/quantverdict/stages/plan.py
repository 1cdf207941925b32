"""What a study would ask, take and be able to show, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from quantverdict.artifacts.gguf_read import open_gguf
from quantverdict.artifacts.inspect import inspect_artifact
from quantverdict.artifacts.sources import find, resolve
from quantverdict.bundle.judge_registry import is_alike, labels_file
from quantverdict.bundle.manifest import RENDERED, Bundle
from quantverdict.bundle.prompts import PromptPlan, make_plan
from quantverdict.bundle.store import (
    DRIFTS,
    MARGINS,
    SEMANTIC,
    TEXT_KL,
    Timing,
    judge_timer,
    read_labels,
    time_taken,
)
from quantverdict.collect.schedule import read_outcomes
from quantverdict.config import JudgeConfig, Model, Study, Variant
from quantverdict.errors import ArtifactError, StudyError
from quantverdict.grading.semantic import read_semantically
from quantverdict.judges.rubrics import Question, load_rubric, question_text
from quantverdict.planning.estimate import Cost, PromptCost, ladder_bytes
from quantverdict.planning.memory import CACHE_TYPES, Memory, Needs, made_memory, memory_of
from quantverdict.policy import Policy
from quantverdict.records import GGUF_LEVELS, CellId, Prompt
from quantverdict.registry import BACKENDS, judge_rubrics
from quantverdict.registry.listing import one_of
from quantverdict.stages.ask import open_file
from quantverdict.stages.decide import samples_of
from quantverdict.stages.facts import stored_builds, stored_responses
from quantverdict.stages.judgements import cost_of, judge_registry_of
from quantverdict.tasks.catalog import Task
from quantverdict.yaml_file import read_yaml, text_of

if TYPE_CHECKING:
    from quantverdict.planning.estimate import PromptCost, StudyEstimate
    from quantverdict.planning.power import DecisionRules, PilotStats, PlannedCriterion
    from quantverdict.planning.target import PlannedStudy, TargetStudy
    from quantverdict.tasks.catalog import Task

# What it takes to score the answers of a study by encoders, judges and probes, before it runs.
#
# Counts are those of a run in which no two answers are alike. Times are those of an earlier run where it did the same,
# else an assumption that the line states.

CHARACTERS = 4
"""Of a token, about, where no tokenizer is asked."""
LABEL_TOKENS = 10
"""That a judge writes which does not give log-probabilities."""
OPENING_TOKENS = 7
ASSUMED_READ = 100
"""Tokens of questions that a judge in this machine is taken to read in a second."""
ASSUMED_CALL = 2.0
"""Seconds that a server or an API is taken to need for a question."""
ASSUMED_PAIRS = 5
"""Pairs of texts that an encoder is taken to compare in a second."""
EARLIER = "as in the earlier run"


@dataclass(frozen=True, slots=True)
class JudgeTiming:
    """What an earlier run asked of a judge: questions, mean tokens read and written, and how long it took."""

    questions: int
    read: float
    written: float
    timing: Timing


@dataclass(frozen=True, slots=True)
class ScoringTime:
    """What an earlier run spent on scoring; nothing of it where there was none."""

    semantic: Timing = field(default_factory=Timing)
    margins: Timing = field(default_factory=Timing)
    drifts: Timing = field(default_factory=Timing)
    texts: Timing = field(default_factory=Timing)
    judges: Mapping[str, JudgeTiming] = field(default_factory=dict)


def time_spent_on(bundle: Bundle, study: Study) -> ScoringTime:
    """What a bundle says of itself; of judges only those that are still asked as they were."""
    entries = judge_registry_of(bundle).judges
    judges = {}
    for judge in study.judges:
        entry = entries.get(judge.name)
        if entry is None or not is_alike(entry, judge, {}):
            continue
        said = [one for one in read_labels(bundle.root, labels_file(entry)).values() if one.prompt_tokens]
        if said:
            read, written = (sum(getattr(one, key) for one in said) for key in ("prompt_tokens", "output_tokens"))
            timing = time_taken(bundle.root, judge_timer(labels_file(entry)))
            judges[judge.name] = JudgeTiming(len(said), read / len(said), written / len(said), timing)
    semantic, margins, drifts = (time_taken(bundle.root, name) for name in (SEMANTIC, MARGINS, DRIFTS))
    return ScoringTime(semantic, margins, drifts, time_taken(bundle.root, TEXT_KL), judges)


def scoring_costs(
    study: Study, tasks: Sequence[Task], plan: PromptPlan, speed: PromptCost, scoring_time: ScoringTime
) -> tuple[Cost, ...]:
    """A line each for encoders, every judge that can run, and probes; none for what a study has not.

    Args:
        plan: what every build is asked.
        speed: of asking, and the tokens of an answer.
    """
    costs = [*_semantic(study, tasks, scoring_time)]
    costs += [_judge(study, tasks, plan, judge, (speed, scoring_time)) for judge in study.judges if judge.engine]
    costs += _whitebox(study, tasks, plan, speed, scoring_time)
    costs += _text_kl(study, speed, scoring_time)
    return tuple(costs)


def _cells(study: Study, model: Model) -> int:
    return len(model.variants) + study.nulls


def _semantic(study: Study, tasks: Sequence[Task], scoring_time: ScoringTime) -> Iterator[Cost]:
    settings = study.semantic
    if settings is None:
        return
    items = [item for task in tasks if read_semantically(task) for item in task.items]
    referred = sum(item.reference is not None for item in items)
    a_cell = (referred if settings.bertscore else 0) + (len(items) if settings.coherence else 0)
    pairs = a_cell * sum(_cells(study, model) for model in study.models)
    each = scoring_time.semantic.each
    basis = f"taking {ASSUMED_PAIRS} pairs a second, as of a large encoder" if each is None else EARLIER
    seconds = pairs * (1 / ASSUMED_PAIRS if each is None else each)
    yield Cost("semantic", pairs, "pairs of texts", None, None, seconds, None, basis)


def _judge(
    study: Study, tasks: Sequence[Task], plan: PromptPlan, judge: JudgeConfig, known: tuple[PromptCost, ScoringTime]
) -> Cost:
    names = {rubric.of: rubric.name for rubric in judge_rubrics()}
    rubrics = {task.name: names[name] for task in tasks for name in task.metrics if name in names}
    asked = [prompt for prompt in plan.prompts if prompt.task in rubrics]
    calls = sum(_questions(study, model, judge, len(asked)) for model in study.models)
    speed, scoring_time = known
    earlier, spec = scoring_time.judges.get(judge.name), BACKENDS.get(judge.engine or "")
    if earlier is not None:
        read, written, basis = earlier.read, earlier.written, EARLIER
    else:
        read = _mean([_tokens_read(prompt, rubrics[prompt.task], plan, speed) for prompt in asked])
        written = 0 if spec is not None and spec.capabilities.logprobs else LABEL_TOKENS
        basis = f"taking {CHARACTERS} characters a token"
    each = None if earlier is None else earlier.timing.each
    if each is None and spec is not None and spec.remote:
        each = ASSUMED_CALL / judge.parallel
        basis += f" and {ASSUMED_CALL:g} s a question, {judge.parallel} at once"
    elif each is None:
        each = read / ASSUMED_READ
        basis += f" and {ASSUMED_READ} tokens read a second"
    tokens = round(calls * read), round(calls * written)
    more = "; cells in danger are judged whole besides" if judge.second else ""
    return Cost(f"judge {judge.name}", calls, "questions", *tokens, calls * each, cost_of(judge, *tokens), basis + more)


def _questions(study: Study, model: Model, judge: JudgeConfig, prompts: int) -> int:
    """Of one base model: every answer that a judge covers; of a second one the baseline's, and a sample of the rest."""
    if judge.covers and model.name not in judge.covers:
        return 0
    quants = [variant.quant for variant in model.variants if not judge.quants or variant.quant in judge.quants]
    based = model.baseline in quants
    if judge.second:
        return prompts * based + min(judge.sample, prompts) * (len(quants) - based)
    return prompts * (len(quants) + study.nulls * based)


def _tokens_read(prompt: Prompt, rubric: str, plan: PromptPlan, speed: PromptCost) -> float:
    question = question_text(Question(load_rubric(rubric), prompt.text, ""))
    return len(question) / CHARACTERS + speed.tokens.get(prompt.task, plan.decoding[prompt.task].most_tokens)


def _whitebox(
    study: Study, tasks: Sequence[Task], plan: PromptPlan, speed: PromptCost, scoring_time: ScoringTime
) -> Iterator[Cost]:
    """Margins of every build, and the baseline's answers along which each other build is gone."""
    settings = study.whitebox
    if not (settings.openings or settings.prompts):
        return
    harmful = {task.name for task in tasks if task.type.harmful}
    prompts = [prompt for prompt in plan.prompts if prompt.task in harmful] if settings.openings else []
    builds = sum(len(model.variants) for model in study.models)
    margins = len(prompts) * builds
    drifts = min(settings.prompts, len(plan.prompts)) * (builds - len(study.models))
    long = _mean([len(prompt.chat or prompt.text) / CHARACTERS for prompt in plan.prompts])
    tokens = margins * (long + 2 * settings.openings * OPENING_TOKENS) + drifts * 2 * (long + settings.tokens)
    each = [
        timing.each for timing, wanted in ((scoring_time.margins, margins), (scoring_time.drifts, drifts)) if wanted
    ]
    seconds = None if speed.tokens_per_second is None else tokens / speed.tokens_per_second
    basis = "at most, were reading as slow as writing" if seconds is not None else "no measurement"
    if None not in each:
        seconds, basis = margins * (scoring_time.margins.each or 0) + drifts * (scoring_time.drifts.each or 0), EARLIER
    yield Cost("whitebox", margins + drifts, "probes", round(tokens), 0, seconds, None, basis)


def _text_kl(study: Study, speed: PromptCost, scoring_time: ScoringTime) -> Iterator[Cost]:
    """Every build along a text, and its baseline beside it."""
    settings = study.text_kl
    if settings is None:
        return
    from quantverdict.stages.kld import text_of as chosen_text

    long = len(chosen_text(settings, study.folder)[0]) / CHARACTERS
    long = long if settings.windows is None else min(long, settings.windows * settings.context)
    builds = sum(len(model.variants) - 1 for model in study.models)
    tokens = round(long * (builds + len(study.models)))
    each, basis = scoring_time.texts.each, EARLIER
    seconds = None if each is None else each * builds * long / 2  # the second half of a window is what is predicted
    if each is None and speed.tokens_per_second is not None:
        seconds, basis = tokens / speed.tokens_per_second, "at most, were reading as slow as writing"
    basis = "no measurement" if seconds is None else basis
    yield Cost("text_kl", builds, "builds along a text", tokens, 0, seconds, None, basis)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def needs_of(study: Study, context: int | None = None, cache_type: str = "F16") -> Needs:
    """What each build will hold, by the headers of the files that are here; a level that is made, by its nominal bits.

    Args:
        context: tokens of one sequence; `collect.context` if not given.

    Raises:
        StudyError: there is no such type of a cache.
    """
    if cache_type not in CACHE_TYPES:
        raise StudyError(f"no type {cache_type!r:.40} of a KV cache", expected=one_of(cache_type, CACHE_TYPES))
    asked = context or study.collect.context
    found = {
        f"{model.name}/{variant.quant}": _need(study, model, variant, asked, cache_type)
        for model in study.models
        for variant in model.variants
        if not (spec := BACKENDS[study.backend_of(variant)]).remote and spec.reads != "recordings"
    }
    return Needs(asked, cache_type, found, study.constraints.max_memory_bytes)


def _need(study: Study, model: Model, variant: Variant, context: int, cache_type: str) -> Memory | None:
    """None where the file is not here, or is a checkpoint that is still to be made."""
    cache = variant.kv_cache
    types = (cache_type, cache_type) if cache is None else (cache.k.upper(), cache.v.upper())
    try:
        if variant.source is not None:
            path = find(variant.source, study.folder)
            return None if path is None else memory_of(path, context, types)
        start = find(model.source, study.folder) if model.source else None
        if start is None or start.is_dir() or variant.format not in GGUF_LEVELS:
            return None
        weights = ladder_bytes([variant.format], sum(tensor.n_elements for tensor in open_gguf(start).tensors))
        return made_memory(start, weights, context, types)
    except ArtifactError:
        return None


def forecast(
    study: Study, tasks: Sequence[Task], earlier: Path | None, *, measure: bool, whole: Sequence[Task] | None = None
) -> tuple[StudyEstimate, PlannedStudy | None]:
    """What a study would ask, take and be able to show; and by what its builds are decided, where that is criteria.

    Args:
        earlier: a bundle whose tokens, speed and discordance are taken; None to time a short batch instead.
        measure: time that batch; without it the time is not known.
        whole: the tasks with all their items; those of `tasks` alone if not given.
    """
    from quantverdict.planning import estimate as estimates
    from quantverdict.planning.power import build_power, criteria_prospects, mean_pairs

    model = study.models[0]
    source = model.source or model.variants[0].source
    backend = BACKENDS[study.collect.backend if model.source else study.backend_of(model.variants[0])]
    here = source is not None and source.has_file and backend.capabilities.wheels
    path = resolve(source, study.folder) if source and here else None
    file = None if path is None else inspect_artifact(path)
    asked = make_plan(
        study, tasks, file.chat_template if file else None, file.special_tokens if file else {}, model.name
    )
    pilots: dict[CellId, dict[str, PilotStats]] = {}
    scoring_time = ScoringTime()
    # All of them: which builds are duplicates only this study's own files can tell, once they are made.
    builds = sum(len(each.variants) - 1 for each in study.models)
    if earlier is not None:
        with Bundle.reopen(earlier) as bundle:
            bundle.check_meta_equal((*RENDERED, "timings/"))
            speed, pilots = speed_of(bundle, asked), pairs_seen(bundle, study.policy)
            scoring_time = time_spent_on(bundle, study)
    elif measure and path is not None:
        speed = estimates.measured_speed(asked, partial(open_file, study, path))
    else:
        speed = estimates.PromptCost({}, None, "no measurement; answers are taken to reach their limit")
    observed, rules, planned = mean_pairs(pilots), gating(study, builds), None
    if study.policy.rules == "criteria":
        prospects = criteria_prospects(tasks, tested_rows(study, tasks), rules, observed)
        planned = planned_study(study, (tasks, whole or tasks), (asked, speed), rules, observed)
    else:
        prospects = build_power(tasks, rules, observed)
    estimated = estimates.estimate(
        tasks,
        asked,
        speed,
        cells=builds + len(study.models) * (1 + study.nulls),
        disk_bytes=estimates.made_bytes(study),
        shows=(estimates.detectable_differences(tasks, study.statistics.power, observed), prospects),
    )
    found = () if planned is None else planned.prospects(
        {name: pilots.get(cell, {}) for name, cell in compared_builds(study).items()}
    )  # fmt: skip
    return replace(estimated, scoring=scoring_costs(study, tasks, asked, speed, scoring_time), builds=found), planned


def compared_builds(study: Study) -> dict[str, CellId]:
    """Each build that is compared with a baseline, by its name: QUANT, or MODEL/QUANT of several models."""
    cells = [
        CellId(model.name, variant.quant)
        for model in study.models
        for variant in model.variants
        if variant.quant != model.baseline
    ]
    return {cell.quant if len(study.models) == 1 else str(cell): cell for cell in cells}


def planned_study(
    study: Study,
    tasks: tuple[Sequence[Task], Sequence[Task]],
    costs: tuple[PromptPlan, PromptCost],
    rules: DecisionRules,
    observed: Mapping[str, PilotStats],
) -> PlannedStudy:
    """By what the builds of a study are decided.

    Args:
        tasks: with the items that are asked, and with all their items.
        costs: what every build is asked, and what that takes.
    """
    from quantverdict.planning.power import units_of
    from quantverdict.planning.target import PlannedStudy, TaskRoom

    plan, speed = costs
    rooms = []
    for task, whole in zip(*tasks, strict=True):
        tokens = speed.tokens.get(task.name, plan.decoding[task.name].most_tokens)
        seconds = tokens / speed.tokens_per_second if speed.tokens_per_second else None
        rooms.append(TaskRoom(task.name, task.metrics, len(task.items), len(units_of(task)), len(whole.items), seconds))
    return PlannedStudy(tested_rows(study, tasks[0]), rooms, rules, observed)


def target_build(study: Study, wanted: str) -> str:
    """The build of a target `accept:BUILD`, by its name in `compared_builds`.

    Raises:
        StudyError: there is no such build, or the policy has no criteria.
    """
    names, (verb, _, name) = compared_builds(study), wanted.partition(":")
    found = next((short for short, cell in names.items() if name in (short, str(cell))), None)
    if verb != "accept" or found is None:
        expected = f"accept:BUILD, a build {one_of(name, names)}"
        raise StudyError(f"{wanted!r:.80} is no target", field="--target", expected=expected)
    if study.policy.rules != "criteria":
        expected = "a policy with criteria"
        raise StudyError(f"policy {study.policy.name} has no criteria", field="--target", expected=expected)
    return found


def target_study(study: Study, estimate: StudyEstimate, planned: PlannedStudy, name: str) -> TargetStudy:
    """The study that has the study's power to accept a build which loses nothing.

    Args:
        name: of the build, as in `compared_builds`.

    Raises:
        StudyError: the tasks do not hold so many prompts.
    """
    from quantverdict.planning.target import TargetStudy, total_seconds

    expects = next(one for one in estimate.builds if one.build == name)
    limits = planned.exact_limits_for(expects.seen)
    if limits is None:
        problem = f"no study of these tasks can accept {name}: {planned.short(expects.seen)}"
        raise StudyError(problem, file=study.file or None, field="--target", expected="tasks with more items")
    chance = planned.chance(expects.seen, limits)
    seconds = total_seconds(planned.rooms, limits, estimate.cells)
    text = _with_limits(study, limits, [room.name for room in planned.rooms])
    return TargetStudy(name, chance, limits, seconds, text)


class _Plain(yaml.SafeDumper):
    """What stands in two places is written twice."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's
        return True


def _with_limits(study: Study, limits: Mapping[str, int], names: Sequence[str]) -> str:
    """The study's file with other limits of its tasks, `names` in their order; its comments are left out."""
    if not study.file:
        raise StudyError("a study that is in no file cannot be printed", field="--target", expected="its file")
    data = read_yaml(text_of(Path(study.file)))[1]
    assert isinstance(data, dict)  # else it would not have been read
    draws = study.decoding.seeds
    uses = [{"task": use} if isinstance(use, str) else dict(use) for use in data["tasks"]]
    tasks = [{**use, "limit": math.ceil(limits[name] / draws)} for use, name in zip(uses, names, strict=True)]
    return yaml.dump({**data, "tasks": tasks}, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)


def gating(study: Study, builds: int) -> DecisionRules:
    """What the outcomes of `builds` builds, baselines not counted, would be decided by."""
    from quantverdict.collect.schedule import SEQUENTIAL_SHARE
    from quantverdict.matrix.columns import METRICS
    from quantverdict.planning.power import DecisionRules
    from quantverdict.protocol.criteria import look_share

    policy = study.policy
    # Looking early has a share of alpha; what is left is the least that a build's tests have.
    share = 1 - SEQUENTIAL_SHARE if study.stopping == "sequential" else 1.0
    share *= float(look_share(1)) if policy.rules == "criteria" else 1.0
    return DecisionRules(
        margins={metric: float(margin / 100) for metric, margin in policy.gates.items()},
        means=[metric for metric in policy.gates if METRICS[metric].power_rule == "mean"],
        builds=builds,
        required=policy.demanded if policy.rules == "paired" else (),
        alpha=policy.alpha / 2 * share,
        power=study.statistics.power,
    )


def counted_metrics(study: Study, task: Task) -> tuple[str, ...]:
    """The metrics of a task that a study measures and that no other of them replaces."""
    from quantverdict.grading.grade import metrics_given
    from quantverdict.matrix.columns import METRICS

    found = metrics_given(task, executed=study.allow_code_execution)
    return tuple(metric for metric in found if metric not in [METRICS[other].replaces for other in found])


def tested_rows(study: Study, tasks: Sequence[Task]) -> list[PlannedCriterion]:
    """Every criterion of a study's policy, and every member of a pool, that its tasks measure."""
    from quantverdict.planning.power import PlannedCriterion
    from quantverdict.protocol.criteria import rejection_weights

    policy, asked = study.policy, {metric for task in tasks for metric in counted_metrics(study, task)}
    rows: list[tuple[str, str, tuple[str, ...], float, float]] = []
    for name, criterion in (policy.criteria or {}).items():
        members = policy.members_among(name, asked)
        pooled = policy.pooled(name, members)
        margin = float(policy.margin_of(name, pooled) / 100)
        if pooled:
            rows.append((name, "criterion", pooled, margin, margin))
        if len(members) > 1:
            rows += [(name, "member", (metric,), float(criterion.guard_of(metric) / 100),
                      float(policy.gates[metric] / 100)) for metric in members]  # fmt: skip
    weights = rejection_weights({at: (name, role) for at, (name, role, *_) in enumerate(rows)})
    return [
        PlannedCriterion(
            name if role == "criterion" else f"{name}/{members[0]}", members, accept, reject, float(weights[at])
        )
        for at, (name, role, members, accept, reject) in enumerate(rows)
    ]


def speed_of(bundle: Bundle, asked: PromptPlan) -> PromptCost:
    """Speed and answer lengths of an earlier run, for what will be asked."""
    from quantverdict.planning.estimate import speed_of_run

    outcomes = read_outcomes(bundle)
    baseline = next((b.cell for b in stored_builds(bundle) if b.is_baseline and b.cell in outcomes), None)
    answers = () if baseline is None else stored_responses(bundle, baseline)
    return speed_of_run(outcomes.values(), answers, asked)


def pairs_seen(bundle: Bundle, policy: Policy) -> dict[CellId, dict[str, PilotStats]]:
    """How the answers of an earlier run's builds differ from those of their baselines, by metric."""
    from quantverdict.planning.power import observed_pairs

    builds, samples = stored_builds(bundle), samples_of(bundle)
    bases = {build.cell.base_model: build.cell for build in builds if build.is_baseline}
    compared = [build.cell for build in builds if not (build.is_baseline or build.null)]
    return observed_pairs(samples or {}, {cell: bases[cell.base_model] for cell in compared}, policy.alpha / 2)
