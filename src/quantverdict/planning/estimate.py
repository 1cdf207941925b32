"""What a study would ask, take and be able to show, before it runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter

from quantverdict.artifacts.inspect import inspect_artifact
from quantverdict.artifacts.sources import resolve
from quantverdict.backends.base import Backend, Decoding
from quantverdict.bundle.prompts import PromptPlan
from quantverdict.collect.generate import CellOutcome
from quantverdict.config import Model, Study
from quantverdict.planning.memory import Needs
from quantverdict.planning.power import ASSUMED_DISCORDANCE, ASSUMED_RATE, BuildPower, PilotStats
from quantverdict.planning.target import VERBS, BuildProspect, TargetStudy
from quantverdict.records import Completion, Response
from quantverdict.registry import BACKENDS
from quantverdict.stats.power import mde_paired_over, mde_unpaired
from quantverdict.tasks.catalog import Task
from quantverdict.tasks.conversation import answered_turns, opening

SAMPLE_PROMPTS = 16
SAMPLE_TOKENS = 32
"""A short measurement: so many prompts, spread over the study, at most so many tokens each."""


@dataclass(frozen=True, slots=True)
class PromptCost:
    """What prompts cost, and where that is known from.

    Attributes:
        tokens: mean generated tokens of an answer, by task.
        tokens_per_second: generated tokens over wall time, prompts included; None where nothing was measured.
        basis: in words.
    """

    tokens: Mapping[str, float]
    tokens_per_second: float | None
    basis: str


@dataclass(frozen=True, slots=True)
class TaskEstimate:
    """One task: prompts a cell, expected tokens of an answer, and the limit."""

    task: str
    prompts: int
    output_tokens: float
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class DetectableDifference:
    """The smallest difference that n prompts show at the study's power, in percentage points; None where none would.

    Attributes:
        clusters: independent groups of items, counted instead of n where there are fewer; None where each is its own.
        paired_pp: the same prompts on both arms, of which a share `discordance` differs whatever the builds.
        unpaired_pp: a drop from `rate` on other prompts.
    """

    metric: str
    n: int
    clusters: int | None
    discordance: float
    rate: float
    paired_pp: float | None
    unpaired_pp: float | None


@dataclass(frozen=True, slots=True)
class DetectableDifferences:
    """What each rate of a study can show, and under which assumptions.

    Attributes:
        power: of the two-sided 5 % test of one metric, before any correction.
        basis: where rates and discordance are from.
    """

    power: float
    basis: str
    metrics: tuple[DetectableDifference, ...]

    def lines(self) -> list[str]:
        head = f"smallest difference that shows at {self.power:.0%} power (one two-sided test at 5 %; {self.basis})"
        columns = f"{'metric':26}{'n':>6}{'clusters':>10}{'paired':>10}{'unpaired':>10}"
        return [head, columns, *(_row(metric) for metric in self.metrics)]


@dataclass(frozen=True, slots=True)
class Cost:
    """What scoring the stored answers in one way takes, beside asking for them.

    Attributes:
        part: `semantic`, `judge NAME` or `whitebox`.
        calls, of: how many of what, at most: equal answers are one.
        input_tokens, output_tokens: None where tokens are not what it costs, or are not known.
        seconds: None where no speed is known.
        price: of a judge whose price is known, in its currency.
        basis: in words.
    """

    part: str
    calls: int
    of: str
    input_tokens: int | None
    output_tokens: int | None
    seconds: float | None
    price: float | None
    basis: str

    def line(self) -> str:
        """As a person reads it."""
        message = [f"at most {self.calls} {self.of}"]
        if self.input_tokens is not None:
            written = f" and {self.output_tokens} written" if self.output_tokens else ""
            message.append(f"about {self.input_tokens} tokens read{written}")
        if self.price is not None:
            message.append(f"cost about {self.price:.2f}")
        message.append("time unknown" if self.seconds is None else f"about {max(1, round(self.seconds / 60))} min")
        return f"{self.part:10} {', '.join(message)} ({self.basis})"


@dataclass(frozen=True, slots=True)
class StudyEstimate:
    """The answer of `quantverdict plan`.

    Attributes:
        cells: builds that are run.
        output_tokens: expected, over all cells.
        seconds: of generation over all cells, None where no speed is known.
        disk_bytes: of the builds that are still to be made, and of the bundle.
        scoring: what judges, encoders and probes take besides.
        memory: what each build will hold, as far as its header says.
        builds: whether each build can be decided; empty where no criteria decide.
        target: the study that was asked for.
    """

    cells: int
    prompts_per_cell: int
    prompts: int
    output_tokens: int
    seconds: float | None
    disk_bytes: int
    basis: str
    tasks: tuple[TaskEstimate, ...]
    detectable: DetectableDifferences
    prospects: BuildPower
    scoring: tuple[Cost, ...] = ()
    memory: Needs | None = None
    builds: tuple[BuildProspect, ...] = ()
    target: TargetStudy | None = None

    def as_json(self) -> dict[str, object]:
        """In plain values."""
        message = asdict(self)
        message["builds"] = [{**asdict(one), "sentence": one.sentence} for one in self.builds]
        for name, one in () if self.memory is None else self.memory.builds.items():
            if one is not None:
                message["memory"]["builds"][name]["total"] = one.total
        return message

    def lines(self) -> list[str]:
        """The estimate as a person reads it."""
        time = "unknown" if self.seconds is None else f"about {max(1, round(self.seconds / 60))} min"
        head = [
            f"cells      {self.cells}",
            f"prompts    {self.prompts_per_cell} a cell, {self.prompts} in all",
            f"tokens     about {self.output_tokens} generated",
            f"time       {time} of generation ({self.basis})",
            *(cost.line() for cost in self.scoring),
            f"disk       about {self.disk_bytes / 1e6:.0f} MB",
            "",
            f"{'task':26}{'prompts':>8}{'tokens an answer':>18}{'limit':>7}",
        ]
        tasks = [f"{t.task:26}{t.prompts:>8}{t.output_tokens:>18.0f}{t.max_new_tokens:>7}" for t in self.tasks]
        needs = [] if self.memory is None else self.memory.lines()
        return [
            *head,
            *tasks,
            *([""] if needs else []),
            *needs,
            "",
            *self.detectable.lines(),
            "",
            *self.prospects.lines(),
            *self.sentences(),
        ]

    def sentences(self) -> list[str]:
        """What can be decided of each build; builds of which the same is said in one line."""
        alike: dict[tuple[str, str], list[str]] = {}
        for one in self.builds:
            alike.setdefault((VERBS[one.decides], one.details), []).append(one.build)
        return [f"{verb} {', '.join(names)}: {details}" for (verb, details), names in alike.items()]


def _row(found: DetectableDifference) -> str:
    clusters = "-" if found.clusters is None else str(found.clusters)
    return f"{found.metric:26}{found.n:>6}{clusters:>10}{_pp(found.paired_pp):>10}{_pp(found.unpaired_pp):>10}"


def _pp(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f} pp"


def speed_of_run(outcomes: Iterable[CellOutcome], baseline: Iterable[Response], plan: PromptPlan) -> PromptCost:
    """Speed and answer lengths of an earlier run of the study, whose limits may have been others than the plan's."""
    tokens: dict[str, list[int]] = defaultdict(list)
    for response in baseline:
        if response.task in plan.decoding:
            limit = plan.decoding[response.task].most_tokens
            tokens[response.task].append(_length(response, limit))
    timed = [
        (o.tokens_per_second * o.wall_seconds, o.wall_seconds)
        for o in outcomes
        if o.tokens_per_second and o.wall_seconds
    ]
    means = {task: sum(counts) / len(counts) for task, counts in tokens.items()}
    rate = sum(generated for generated, _ in timed) / sum(wall for _, wall in timed) if timed else None
    return PromptCost(means, rate, "from the earlier run")


def measured_speed(plan: PromptPlan, open_backend: Callable[[], Backend]) -> PromptCost:
    """Ask a few prompts of every task and time them.

    Raises:
        EngineError: the engine cannot run.
    """
    step = max(1, len(plan.prompts) // SAMPLE_PROMPTS)
    sample = [opening(prompt) for prompt in plan.prompts[::step]]
    longest = min(SAMPLE_TOKENS, max(decoding.most_tokens for decoding in plan.decoding.values()))
    backend = open_backend()
    try:
        start = perf_counter()
        completions = backend.complete(sample, Decoding(max_new_tokens=longest))
        seconds = perf_counter() - start
    finally:
        backend.close()
    tokens: dict[str, list[int]] = defaultdict(list)
    for prompt, completion in zip(sample, completions, strict=True):
        limit = plan.decoding[prompt.task].most_tokens
        tokens[prompt.task].append(_length(completion, limit))
    means = {task: sum(counts) / len(counts) for task, counts in tokens.items()}
    counted = sum(completion.output_tokens or 0 for completion in completions)
    return PromptCost(means, counted / seconds if counted else None, f"from {len(sample)} prompts timed just now")


def _length(answer: Completion | Response, limit: int) -> int:
    """Tokens of an answer under a limit; one that was cut or not counted may reach it."""
    known = answer.output_tokens
    return limit if known is None or answer.finish == "length" else min(limit, known)


def detectable_differences(
    tasks: Sequence[Task], power: float, observed: Mapping[str, PilotStats]
) -> DetectableDifferences:
    """What each rate of the study can show.

    Args:
        observed: by metric, of an earlier run; empty to assume rates and differing pairs.
    """
    n: Counter[str] = Counter()
    clusters: dict[str, set[str]] = defaultdict(set)
    for task in tasks:
        metric = task.type.rate and task.type.rate.replace("{A}", task.accuracy_metric or "")
        if metric:
            n[metric] += len(task.items)
            clusters[metric] |= {f"{task.name}/{task.cluster(item) or item.id}" for item in task.items}
    found = tuple(_detectable(name, n[name], len(clusters[name]), power, observed.get(name)) for name in n)
    assumed = f"assuming that {ASSUMED_DISCORDANCE:.0%} of pairs differ anyway and rates of {ASSUMED_RATE:.0%}"
    return DetectableDifferences(power, "rates and differing pairs of the earlier run" if observed else assumed, found)


NOMINAL_BITS: Mapping[str, float] = {
    "F32": 32.0, "FP16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.6, "Q5_K_M": 5.7, "Q5_K_S": 5.5, "Q5_1": 6.0,
    "Q5_0": 5.5, "Q4_K_M": 4.9, "Q4_K_S": 4.6, "Q4_1": 5.0, "Q4_0": 4.5, "Q3_K_L": 4.2, "Q3_K_M": 3.9, "Q3_K_S": 3.5,
    "Q2_K": 3.0, "AWQ": 4.25, "GPTQ": 4.25, "W4A16": 4.25, "W8A8": 8.0, "FP8_DYNAMIC": 8.0, "NVFP4": 4.5, "MXFP4": 4.25,
     "IQ4_NL": 4.5, "IQ4_XS": 4.3, "MXFP4_MOE": 4.25, "IQ3_M": 3.7, "IQ3_S": 3.5,
    "IQ3_XS": 3.3, "IQ3_XXS": 3.1, "Q2_K_S": 2.8, "IQ2_M": 2.7, "IQ2_S": 2.5, "IQ2_XS": 2.3, "IQ2_XXS": 2.1,
    "TQ2_0": 2.1, "IQ1_M": 1.8, "TQ1_0": 1.7, "IQ1_S": 1.6,
}  # fmt: skip


def _detectable(metric: str, n: int, clusters: int, power: float, observed: PilotStats | None) -> DetectableDifference:
    rate = ASSUMED_RATE if observed is None else observed.rate
    discordance = ASSUMED_DISCORDANCE if observed is None else observed.discordance
    # Items of a cluster may all answer alike: counting clusters is the cautious end.
    # Where every pair differs already no loss can show by differing.
    paired = mde_paired_over(clusters, discordance, power) if discordance < 1 else None
    unpaired = mde_unpaired(rate, clusters, clusters, power)
    return DetectableDifference(
        metric=metric,
        n=n,
        clusters=clusters if clusters < n else None,
        discordance=discordance,
        rate=rate,
        paired_pp=None if paired is None else paired * 100,
        unpaired_pp=None if unpaired is None else unpaired * 100,
    )


def made_bytes(study: Study) -> int:
    """About what the builds that are still to be made take on disk, over every base model of the study.

    Raises:
        ArtifactError: a model whose size the study does not state cannot be read.
    """
    total = 0
    for model in study.models:
        made = [
            each
            for each in model.variants
            if each.source is None and BACKENDS[study.backend_of(each)].reads != "recordings"
        ]
        if made:
            total += ladder_bytes([variant.format for variant in made], _n_params(study, model))
    return total


def _n_params(study: Study, model: Model) -> int:
    """As the study states, else as the file says that levels are made from."""
    if model.params_b is not None:
        return round(model.params_b * 1e9)
    source = model.source or model.checkpoint
    return 0 if source is None else inspect_artifact(resolve(source, study.folder)).n_params


def ladder_bytes(levels: Sequence[str], n_params: int) -> int:
    """About what made levels take on disk: parameters times the nominal bits of the level."""
    return round(sum(NOMINAL_BITS.get(level, 16.0) for level in levels) * n_params / 8)


def estimate(
    tasks: Sequence[Task],
    plan: PromptPlan,
    speed: PromptCost,
    *,
    cells: int,
    disk_bytes: int,
    shows: tuple[DetectableDifferences, BuildPower],
) -> StudyEstimate:
    """Put an estimate together; an answer of a task whose length is not known is taken to reach its limit."""
    rows = tuple(
        TaskEstimate(
            task=task.name,
            prompts=len(task.items),
            output_tokens=speed.tokens.get(task.name, plan.decoding[task.name].most_tokens),
            max_new_tokens=plan.decoding[task.name].most_tokens,
        )
        for task in tasks
    )
    # A conversation has several answers.
    turns = Counter(prompt.task for prompt in plan.prompts for _ in answered_turns(prompt.messages) or (0,))
    asked = Counter(prompt.task for prompt in plan.prompts)
    each = {task: turns[task] / asked[task] for task in asked}
    tokens = round(cells * sum(row.prompts * row.output_tokens * each.get(row.task, 1) for row in rows))
    return StudyEstimate(
        cells=cells,
        prompts_per_cell=len(plan.prompts),
        prompts=cells * len(plan.prompts),
        output_tokens=tokens,
        seconds=tokens / speed.tokens_per_second if speed.tokens_per_second else None,
        disk_bytes=disk_bytes,
        basis=speed.basis,
        tasks=rows,
        detectable=shows[0],
        prospects=shows[1],
    )
