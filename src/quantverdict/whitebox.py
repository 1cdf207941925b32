"""Inside the builds, once all have answered: the refusal margin, and how far each is from its baseline token by token.

Each build is opened once more. Every build is asked the log-probability of the same openings after the harmful prompts;
along a sample of the baseline's answers both models are open at once, their distributions are compared a few tokens at
a time, and no more than three sums a prompt are kept.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING

from quantverdict.artifacts.builds import Build
from quantverdict.asking import open_build, tokenizer_of
from quantverdict.backends.base import Backend, Decoding, Forced, WhiteBox
from quantverdict.collect.clock import DRIFTS, MARGINS, note_time
from quantverdict.collect.manifest import Bundle
from quantverdict.collect.probes import Kind, Probe, ProbeStore, probe_key, probes_file, read_probes
from quantverdict.collect.prompts import prompts_file, read_prompts
from quantverdict.collect.schedule import read_outcomes
from quantverdict.collect.store import read_responses, responses_path
from quantverdict.config import Study
from quantverdict.errors import EngineError
from quantverdict.grading.answer import answer_of
from quantverdict.grading.openings import Openings, margin, openings
from quantverdict.records import CellId, Prompt, Response, Score
from quantverdict.stats.divergence import divergence

if TYPE_CHECKING:
    from quantverdict.tasks.catalog import Task

BACKENDS = ("llamacpp", "transformers", "vllm")
"""Those that give the log-probability of any continuation."""
CHUNK = 64
"""Tokens whose distributions are held at once: 13 MB a model with a vocabulary of 50 thousand."""
Sample = tuple[str, str]
Open = Callable[[Study, Build], Backend]


@dataclass(frozen=True, slots=True)
class Question:
    """One probe to make: a prompt, and the baseline's answer to it where that is gone along.

    A prompt of the margin has the openings as its choices.
    """

    kind: Kind
    prompt: Prompt
    key: str
    answer: str = ""

    @property
    def sample(self) -> Sample:
        return self.prompt.task, self.prompt.sample_id


@dataclass(frozen=True, slots=True)
class Inquiry:
    """All that the builds of one base model are asked.

    Attributes:
        openings: None where no margin is measured.
        questions: of the margin, then along the baseline's answers.
    """

    openings: Openings | None
    questions: tuple[Question, ...]


def measure(
    study: Study,
    tasks: Sequence[Task],
    builds: Sequence[Build],
    bundle: Bundle,
    say: Callable[[str], None],
    open_backend: Open = open_build,
) -> None:
    """responses -> `whitebox/*.jsonl`: what is missing there; a cell that cannot be measured is one line and no more.

    Raises:
        DataError, BundleError: a stored file was changed, or cannot be written.
    """
    if not study.whitebox.openings:
        bundle.drop(*(openings_file(model.name) for model in study.models))
    if not (study.whitebox.openings or study.whitebox.prompts):
        bundle.forget("whitebox")
        return
    unmeasured: dict[str, str] = {}
    ran = answered(builds, bundle)
    for baseline in (build for build in ran if build.is_baseline):
        inquiry = inquiry_of(study, tasks, bundle, baseline.cell)
        if study.whitebox.openings and inquiry.openings is None:
            say(f"whitebox: {baseline.cell} refused nothing, so there is no refusal margin")
        arms = [_Arm(study, build, bundle, open_backend) for build in _baseline_first(ran, baseline)]
        unmeasured |= _measure_arms(arms, inquiry, say)
    bundle.record(whitebox={**study.whitebox.model_dump(), "unmeasured": unmeasured})


def _measure_arms(arms: Sequence[_Arm], inquiry: Inquiry, say: Callable[[str], None]) -> dict[str, str]:
    """Ask the builds of one base model, its baseline first; those that cannot be measured, and why."""
    unmeasured: dict[str, str] = {}
    with closing(arms[0]) as reference:
        for arm in arms:
            try:
                if arm is reference:
                    _keep_openings(reference, inquiry)
                    reference.ask(inquiry, None, say)
                    continue
                with closing(arm):
                    arm.ask(inquiry, reference, say)
            except EngineError as error:
                unmeasured[str(arm.build.cell)] = str(error)
                say(f"whitebox: {arm.build.cell} is not measured: {error}")
                if arm is reference:
                    break  # there is nothing to compare the others with
    return unmeasured


def _baseline_first(builds: Sequence[Build], baseline: Build) -> list[Build]:
    others = [build for build in builds if build.cell.base_model == baseline.cell.base_model and build != baseline]
    return [baseline, *others]


def answered(builds: Sequence[Build], bundle: Bundle) -> list[Build]:
    """The builds that have a row in the matrix; null arms have none."""
    outcomes = read_outcomes(bundle)
    ran = {cell for cell, outcome in outcomes.items() if outcome.failure is None}
    return [build for build in builds if build.runs and not build.null and build.cell in ran]


def inquiry_of(study: Study, tasks: Sequence[Task], bundle: Bundle, baseline: CellId) -> Inquiry:
    """What follows from the baseline's answers and the study alone, so that a rerun asks the same."""
    settings = study.whitebox
    prompts = {
        (prompt.task, prompt.sample_id): prompt
        for prompt in read_prompts(bundle.path(prompts_file(baseline.base_model)))
    }
    answers = {(one.task, one.sample_id): one for one in read_responses(responses_path(bundle.root, baseline))}
    harmful = {task.name for task in tasks if task.task_type == "safety_refusal"}
    asked = [sample for sample in answers if sample[0] in harmful and sample in prompts]
    said = (answer_of(answers[sample]).content for sample in asked)
    found = openings(said, settings.openings) if settings.openings else None
    questions = [] if found is None else [_margin_question(prompts[sample], found) for sample in asked]
    for sample in drawn(list(answers.values()), settings.prompts, study.seed):
        prompt, text = prompts[sample], answers[sample].text
        key = probe_key("drift", prompt.sha256, text, str(settings.tokens))
        questions.append(Question("drift", prompt, key, text))
    return Inquiry(found, tuple(questions))


def drawn(answers: Sequence[Response], most: int, seed: int) -> list[Sample]:
    """At most so many answers that say something, drawn by the seed, from every task in turn while it has any."""
    by_task: dict[str, list[Sample]] = {}
    for answer in answers:
        if answer.text.strip():
            by_task.setdefault(answer.task, []).append((answer.task, answer.sample_id))
    chance = random.Random(seed)  # noqa: S311 - no secret
    for samples in by_task.values():
        chance.shuffle(samples)
    longest = max(map(len, by_task.values()), default=0)
    turns = [samples[turn] for turn in range(longest) for samples in by_task.values() if turn < len(samples)]
    return turns[:most]


def inside_scores(study: Study, tasks: Sequence[Task], builds: Sequence[Build], bundle: Bundle) -> Iterator[Score]:
    """`refusal_margin`, `baseline_kl` and `baseline_agreement` of every prompt that was probed."""
    if not (study.whitebox.openings or study.whitebox.prompts):
        return
    clusters = {(task.name, item.id): task.cluster(item) for task in tasks for item in task.items}
    ran = answered(builds, bundle)
    for baseline in (build for build in ran if build.is_baseline):
        inquiry = inquiry_of(study, tasks, bundle, baseline.cell)
        tokens = _stored_tokens(bundle, baseline.cell.base_model, inquiry.openings)
        for build in ran:
            if build.cell.base_model != baseline.cell.base_model:
                continue
            known = read_probes(bundle.root, build.cell)
            for question in inquiry.questions:
                if question.key in known:
                    for metric, value in _values(inquiry, known[question.key], tokens):
                        yield Score(*build.cell, *question.sample, metric, value, clusters[question.sample])


class _Arm:
    """One build while it is asked: opened when something is missing, and closed with the stack at the latest."""

    def __init__(self, study: Study, build: Build, bundle: Bundle, open_backend: Open) -> None:
        self.study, self.build, self.bundle = study, build, bundle
        self._open = open_backend
        self._backend: Backend | None = None

    @property
    def backend(self) -> Backend:
        """The build, loaded.

        Raises:
            EngineError: it cannot be.
        """
        self.refuse_closed()
        if self._backend is None:
            self._backend = self._open(self.study, self.build)
        return self._backend

    def refuse_closed(self) -> None:
        """Refuse a backend that cannot be looked into.

        Raises:
            EngineError: so it is.
        """
        if self.build.backend not in BACKENDS:
            raise EngineError(f"backend {self.build.backend} does not give log-probabilities of what it is shown")

    def close(self) -> None:
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def ask(self, inquiry: Inquiry, baseline: _Arm | None, say: Callable[[str], None]) -> None:
        """Make the probes that are missing of the prompts that the build has answered.

        Args:
            baseline: whose answers are gone along; None is the baseline itself, which is not compared with itself.
        """
        self.bundle.refuse_changed(probes_file(self.build.cell))
        store = ProbeStore(self.bundle.root, self.build.cell)
        given = {(one.task, one.sample_id) for one in read_responses(responses_path(self.bundle.root, self.build.cell))}
        missing = [one for one in inquiry.questions if one.key not in store.known and one.sample in given]
        margins = [question for question in missing if question.kind == "margin"]
        drifts = [] if baseline is None else [question for question in missing if question.kind == "drift"]
        if margins or drifts:
            self.backend  # noqa: B018 - a build that cannot be opened says so before it is announced
            say(f"whitebox: {self.build.cell}: {len(margins)} margins, {len(drifts)} answers of the baseline")
        size = self.study.collect.batch_size
        for first in range(0, len(margins), size):
            start = perf_counter()
            self._keep(store, MARGINS, self._margins(margins[first : first + size]), start)
        for question in drifts:
            assert baseline is not None
            ends, start = (baseline.backend, self.backend), perf_counter()
            self._keep(store, DRIFTS, [_drift(question, ends, self.study.whitebox.tokens)], start)

    def _keep(self, store: ProbeStore, clock: str, probes: list[Probe], start: float) -> None:
        store.append(probes)
        note_time(self.bundle.root, clock, len(probes), perf_counter() - start)

    def _margins(self, questions: Sequence[Question]) -> list[Probe]:
        done = self.backend.complete([question.prompt for question in questions], Decoding(max_new_tokens=0))
        probes = []
        for question, completion in zip(questions, done, strict=True):
            if completion.choice_logprobs is None:
                raise EngineError("the backend gave no log-probabilities")
            probes.append(Probe("margin", *question.sample, question.key, completion.choice_logprobs))
        return probes


def _drift(question: Question, ends: tuple[Backend, Backend], most: int) -> Probe:
    """The baseline and a build along one answer of the baseline, `CHUNK` tokens at a time."""
    kl, agreed, places = 0.0, 0, 0
    for start in range(0, most, CHUNK):
        part = range(start, min(start + CHUNK, most))
        found = [_forced(backend, question, part) for backend in ends]
        if found[0].ids != found[1].ids or found[0].logits.shape != found[1].logits.shape:
            raise EngineError(f"{'/'.join(question.sample)}: the answer is other tokens than to the baseline")
        parted = divergence(found[0].logits, found[1].logits)
        kl, agreed, places = kl + parted.kl, agreed + parted.agreed, places + parted.places
        if part.stop >= len(found[0].ids):
            break
    return Probe("drift", *question.sample, question.key, (kl, float(agreed), float(places)))


def _forced(backend: Backend, question: Question, part: range) -> Forced:
    if not isinstance(backend, WhiteBox):
        raise EngineError("the backend does not show its whole distribution")
    return backend.force(question.prompt, question.answer, part)


def _margin_question(prompt: Prompt, found: Openings) -> Question:
    key = probe_key("margin", prompt.sha256, *found.texts)
    return Question("margin", replace(prompt, choices=found.texts), key)


def _values(inquiry: Inquiry, probe: Probe, tokens: Mapping[str, int]) -> Iterator[tuple[str, float]]:
    if probe.kind == "drift":
        kl, agreed, places = probe.values
        yield from (("baseline_kl", kl / places), ("baseline_agreement", agreed / places))
    elif inquiry.openings is not None and tokens:
        yield "refusal_margin", margin(inquiry.openings, probe.values, tokens)


def _keep_openings(baseline: _Arm, inquiry: Inquiry) -> None:
    """`whitebox/BASE.json`: the openings with their weights, and of how many tokens each is after a prompt.

    A chat template ends with a token of its own, so that one prompt counts for all.
    """
    baseline.refuse_closed()
    model, found = baseline.build.cell.base_model, inquiry.openings
    if found is None or _stored_tokens(baseline.bundle, model, found):
        return
    reader = tokenizer_of(baseline.study, baseline.build)
    assert reader is not None  # each of BACKENDS has one
    prompt = inquiry.questions[0].prompt
    begun = prompt.text if prompt.chat is None else prompt.chat
    alone = len(reader.ids(prompt))
    tokens = {text: max(1, len(reader.ids(replace(prompt, chat=begun + text))) - alone) for text in found.texts}
    baseline.bundle.write_json(openings_file(model), {**asdict(found), "tokens": tokens})


def _stored_tokens(bundle: Bundle, base_model: str, found: Openings | None) -> Mapping[str, int]:
    """Of how many tokens each opening is; empty where that is not stored, or of other openings."""
    name = openings_file(base_model)
    if found is None or not bundle.path(name).exists():
        return {}
    stored = bundle.read_json(name)
    return dict(stored["tokens"]) if stored == {**asdict(found), "tokens": stored.get("tokens")} else {}


def openings_file(base_model: str) -> str:
    return f"whitebox/{base_model}.json"
