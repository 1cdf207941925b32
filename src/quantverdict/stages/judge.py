"""Judging: what a judge has not labelled yet is asked, batch after batch, each question once.

Before all else it is asked what we know: the calibration set, of the rubrics that it labels by. A limit of what it may
cost stops it before a batch that would exceed it; what was bought is kept, and a higher limit goes on from there.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from quantverdict.backends.base import Placement, Service
from quantverdict.backends.ollama import ollama_url
from quantverdict.bundle.files import saving
from quantverdict.bundle.integrity import JUDGING, plain
from quantverdict.bundle.judge_registry import asked_as, labels_file
from quantverdict.bundle.manifest import Bundle
from quantverdict.bundle.store import (
    JudgeReply,
    append_labels,
    judge_timer,
    key_of,
    labels_path,
    read_labels,
    time_taken,
)
from quantverdict.config import JudgeConfig
from quantverdict.errors import ArtifactError, EngineError, TaskError, count_of
from quantverdict.judges.calibration import calibration_of, calibrations
from quantverdict.judges.guards import GUARDS, REPLY_TOKENS, Turns, guard_of, guard_prompt, read_guard
from quantverdict.judges.label_model import ROOM, Identity, LabelModel, Target, open_label_model
from quantverdict.judges.rubrics import Question, Rubric, pick_label, question_text, read_label, read_score
from quantverdict.records import Completion, Prompt
from quantverdict.registry import BACKENDS
from quantverdict.stages.ask import at_commit
from quantverdict.stages.facts import statistics_of
from quantverdict.stages.judgements import answers_of, cost_of, judge_registry_of, whole_cells
from quantverdict.tasks.chat import ChatTemplate, render_messages

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LoadedJudge:
    """A judge that is loaded.

    Attributes:
        identity: of the engine, with the hash of the model's file where there is one.
        render: a question's text as the engine gets it; None where the engine has a template of its own.
        turns: a request and an answer as two turns of the model's chat template; None where its file is not here.
    """

    label_model: LabelModel
    identity: Identity
    render: Callable[[str], str] | None = None
    turns: Turns | None = None


Open = Callable[[JudgeConfig, Path], LoadedJudge]


@dataclass(frozen=True, slots=True)
class JudgeWork:
    """What a judge is to do.

    Attributes:
        file: of its labels.
        identity: of what gave the labels that are there; None where there are none.
        samples: how many answers it covers.
        missing: what it has not said, each question once.
        calibration: what it has not said of the answers whose labels are known.
    """

    file: str
    identity: Identity | None
    samples: int
    missing: list[Question]
    calibration: list[Question]


def ask_judge(bundle: Bundle, judge: JudgeConfig, folder: Path, say: Say, open_judge: Open | None = None) -> None:
    """answers -> `judgements/NAME.jsonl`: what is missing there is asked, each question once.

    Labels of one model are never completed by another: a judge that is not what it was gets a file of its own, and
    answers everything. A finished bundle stays as it was until all is said: up to then the labels are kept in a folder
    that is no part of it.

    Args:
        folder: where the paths of the judge's source start.
        open_judge: loads the judge; not called where nothing is missing.

    Raises:
        EngineError: the judge cannot be loaded or asked, or has spent what it may; what it said so far is stored.
        BundleError: the stored labels were changed; the disk is full.
    """
    work = _register(bundle, judge, _hash_of(judge, folder))
    if not work.missing:
        _clear_away(bundle, work.file)
        say(f"judge {judge.name}: {count_of(work.samples, 'answer')}, all labelled in an earlier run")
        return
    source = judge.source
    if not BACKENDS[judge.engine or ""].remote:
        source = at_commit(source, folder, bundle)
    judge_model = (open_judge or open_judge_model)(judge.model_copy(update={"source": source}), folder)
    try:
        identity = dict(judge_model.identity)
        if work.identity not in (None, identity):
            say(f"judge {judge.name}: is another model or engine than before, and labels everything itself")
            work = _register(bundle, judge, identity)
        bundle.hold(**judge_registry_of(bundle).with_entry(judge, identity=identity).parts)
        apart = bundle.path(JUDGING) / key_of(plain(asked_as(judge)), identity)[:16]
        if not bundle.sealed:
            _take_over(bundle, apart, work.file)
        said = {**read_labels(bundle.root, work.file), **read_labels(apart, work.file)}
        spending = Spending(judge, said.values())
        _ask_all(apart if bundle.sealed else bundle.root, judge_model, _left(work, said), spending, say)
        _take_over(bundle, apart, work.file)
    finally:
        judge_model.label_model.close()


def _left(work: JudgeWork, said: Mapping[str, JudgeReply]) -> JudgeWork:
    """What was not said apart either, or taken over from there."""
    missing, known = ([one for one in part if one.key not in said] for part in (work.missing, work.calibration))
    return replace(work, missing=missing, calibration=known)


def _take_over(bundle: Bundle, apart: Path, file: str) -> None:
    """What was said apart becomes a part of the bundle; a kill on the way leaves nothing out and nothing twice."""
    if not apart.is_dir():
        return
    bundle.begin()
    known = read_labels(bundle.root, file)
    new = [said for key, said in read_labels(apart, file).items() if key not in known]
    if new:
        append_labels(bundle.root, file, new, time_taken(apart, judge_timer(file)).seconds)
    _remove(apart)


def _clear_away(bundle: Bundle, file: str) -> None:
    """Remove what was taken over already, where a kill left it."""
    known = read_labels(bundle.root, file)
    for apart in bundle.path(JUDGING).glob("*/"):
        own = [path.stem for path in apart.glob("judgements/*.jsonl")]
        if own in ([], [file]) and read_labels(apart, file).keys() <= known.keys():
            _remove(apart)


def _remove(apart: Path) -> None:
    with saving(apart):
        shutil.rmtree(apart)
        if not any(apart.parent.iterdir()):
            apart.parent.rmdir()


def _register(bundle: Bundle, judge: JudgeConfig, identity: Identity) -> JudgeWork:
    """Activate a judge, by the labels that are its own as far as its identity is known, and see what it lacks."""
    answers = answers_of(bundle, judge.guard)
    judge_registry = judge_registry_of(bundle).registered(judge, identity).with_entry(judge)
    if judge.second and "whole" not in judge_registry.judges[judge.name]:
        judge_registry = judge_registry.with_entry(judge, whole=whole_cells(bundle))
    entry = judge_registry.judges[judge.name]
    file = labels_file(entry)
    bundle.check_hash(labels_path(file))
    bundle.hold(**judge_registry.parts)
    known = read_labels(bundle.root, file)
    samples = answers.covered(judge, entry, statistics_of(bundle)[1])
    asked = {(q := answers.questions[sample]).key: q for sample in samples}
    missing = [q for key, q in asked.items() if key not in known and q.answer.strip()]
    calibration = [one.question for one in calibration_of({q.rubric for q in asked.values()}, judge.guard)]
    unasked = [question for question in calibration if question.key not in known]
    return JudgeWork(file, entry.get("identity") if known else None, len(samples), missing, unasked)


def _hash_of(judge: JudgeConfig, folder: Path) -> Identity:
    """What a judge's model is, where it is a file here: another one may be in the place of the one that was asked."""
    from quantverdict.artifacts.inspect import inspect_artifact
    from quantverdict.artifacts.sources import resolve

    source = judge.source
    if source is None or source.path is None or judge.engine is None or BACKENDS[judge.engine].remote:
        return {}
    try:
        return {"sha256": inspect_artifact(resolve(source, folder)).sha256}
    except ArtifactError:  # gone; its labels are there all the same
        return {}


def _batches(questions: Iterable[Question], size: int) -> Iterator[list[Question]]:
    """Questions of one rubric, of like length: their common start is read once."""
    by_rubric: dict[str, list[Question]] = {}
    for question in questions:
        by_rubric.setdefault(question.rubric.name, []).append(question)
    for own in by_rubric.values():
        own.sort(key=lambda question: (len(question.prompt) + len(question.answer), question.key))
        yield from (own[start : start + size] for start in range(0, len(own), size))


@dataclass(slots=True)
class Spending:
    """What a judge has been asked, and what it may be.

    What a question will take is estimated from those before it: characters a token, and the longest reply.
    """

    judge: JudgeConfig
    replies: InitVar[Iterable[JudgeReply]]
    requests: int = 0
    read: int = 0
    written: int = 0
    longest: int = 0
    characters: int = 0
    seen: int = 0

    def __post_init__(self, replies: Iterable[JudgeReply]) -> None:
        for one in replies:
            self._count(one)

    def add(self, characters: int, said: Sequence[JudgeReply]) -> None:
        """What a batch of so many characters took.

        Raises:
            EngineError: tokens are limited, and the engine does not tell them.
        """
        for one in said:
            self._count(one)
        tokens = sum(one.prompt_tokens for one in said)
        self.characters, self.seen = self.characters + characters, self.seen + tokens
        if not tokens and (self.judge.max_tokens or self.judge.max_cost) and any(one.text for one in said):
            raise EngineError(
                f"judge {self.judge.name}: its server does not say how many tokens it used, so that max_tokens and "
                "max_cost cannot be held; expected max_requests in their place"
            )

    def _count(self, one: JudgeReply) -> None:
        self.requests, self.read, self.written = (
            self.requests + 1, self.read + one.prompt_tokens, self.written + one.output_tokens,
        )  # fmt: skip
        self.longest = max(self.longest, one.output_tokens)

    def fitting(self, lengths: Sequence[int]) -> int:
        """How many of the next questions, of so many characters, can be asked."""
        judge, each = self.judge, self.seen / self.characters if self.seen else 1 / 3
        read, written = self.read, self.written
        for number, length in enumerate(lengths):
            read, written = read + math.ceil(length * each), written + (self.longest or ROOM)
            cost = cost_of(judge, read, written)
            if (
                (judge.max_requests is not None and self.requests + number + 1 > judge.max_requests)
                or (judge.max_tokens is not None and read + written > judge.max_tokens)
                or (judge.max_cost is not None and cost is not None and cost > judge.max_cost)
            ):
                return number
        return len(lengths)

    @property
    def summary(self) -> str:
        """What was spent so far, in words."""
        cost = cost_of(self.judge, self.read, self.written)
        price = "" if cost is None else f", cost {cost:.4g}"
        return f"{count_of(self.requests, 'request')}, {self.read + self.written} tokens{price}"

    def stop(self, left: int) -> NoReturn:
        """Say that no more is asked."""
        limits = ("max_cost", "max_requests", "max_tokens")
        held = ", ".join(f"{key} {value:g}" for key in limits if (value := getattr(self.judge, key)) is not None)
        raise EngineError(
            f"judge {self.judge.name}: stopped at its limit ({held}) after {self.summary}; {left} questions are left, "
            "and its labels count once all are answered; raise the limit and give the same command to go on"
        )


def _ask_all(root: Path, judge_model: LoadedJudge, work: JudgeWork, spending: Spending, say: Say) -> None:
    """Ask what is missing, first what we know, and keep it batch by batch in the bundle or folder `root`."""
    judge, done, begun = spending.judge, 0, time.perf_counter()
    for part in (work.calibration, work.missing):
        for whole in _batches(part, judge.batch_size):
            batch = whole[: spending.fitting([_length(question) for question in whole])]
            start = time.perf_counter()
            said = _ask_batch(judge_model, batch) if batch else []
            declined = [one for one in said if one.label is None and not one.text and one.logprobs is None]
            if said and not done and len(declined) == len(said):
                raise EngineError(f"judge {judge.name}: not one of the first {len(said)} was taken: {said[0].reason}")
            if said:
                append_labels(root, work.file, said, time.perf_counter() - start)
            spending.add(sum(map(_length, batch)), said)
            done += len(batch)
            if len(batch) < len(whole):
                spending.stop(len(work.calibration) + len(work.missing) - done)
        if part is work.calibration and part:
            _tell_calibration(root, judge, work, say)
    took = f"{time.perf_counter() - begun:.0f} s"
    say(f"judge {judge.name}: {count_of(done, 'question')}, {took}; in all {spending.summary}")


def ask_questions(model: LoadedJudge, judge: JudgeConfig, questions: Sequence[Question]) -> dict[str, JudgeReply]:
    """What a judge says to questions that no bundle holds, each asked once.

    Raises:
        EngineError: it could not be asked, or has spent what it may.
    """
    spending, found = Spending(judge, ()), dict[str, JudgeReply]()
    for whole in _batches({one.key: one for one in questions}.values(), judge.batch_size):
        batch = whole[: spending.fitting([_length(question) for question in whole])]
        said = _ask_batch(model, batch) if batch else []
        spending.add(sum(map(_length, batch)), said)
        found |= {one.key: one for one in said}
        if len(batch) < len(whole):
            spending.stop(len(questions) - len(found))
    return found


def _length(question: Question) -> int:
    """Characters of what a judge reads of a question."""
    return len(question.rubric.text) + len(question.prompt) + len(question.answer)


def _tell_calibration(root: Path, judge: JudgeConfig, work: JudgeWork, say: Say) -> None:
    """How a judge did on what we know, before it is asked what we do not."""
    rubrics = {question.rubric for question in work.missing}
    for one in calibrations(judge.name, calibration_of(rubrics, judge.guard), read_labels(root, work.file)):
        say(one.summary)


def _ask_batch(judge_model: LoadedJudge, batch: Sequence[Question]) -> list[JudgeReply]:
    prompts = [_prompt(judge_model, question) for question in batch]
    said = []
    for question, reply in zip(batch, judge_model.label_model.choose(prompts), strict=True):
        logprobs = reply.choice_logprobs
        label, reason = _label(question.rubric, reply)
        tokens = (reply.prompt_tokens or 0, reply.output_tokens or 0)
        text = "" if logprobs else reply.text
        said.append(JudgeReply(question.key, question.rubric.name, label, reason, text, logprobs or None, *tokens))
    return said


def _label(rubric: Rubric, reply: Completion) -> tuple[str | None, str]:
    """What a reply says, or None and why nothing."""
    guard = guard_of(rubric)
    if reply.choice_logprobs:
        return pick_label(rubric.labels, reply.choice_logprobs), ""
    if not reply.text and reply.finish != "stop":
        return None, reply.finish
    if guard is not None:
        return read_guard(guard, reply.text, reply.reasoning)
    if rubric.is_score:
        return read_score(reply.text, rubric, reply.reasoning)
    return read_label(reply.text, rubric.labels, reply.reasoning)


def _prompt(judge_model: LoadedJudge, question: Question) -> Prompt:
    guard = guard_of(question.rubric)
    if guard is None:
        text = question_text(question)
        chat = None if judge_model.render is None else judge_model.render(text)
    else:
        text, chat = guard_prompt(guard, question, judge_model.render, judge_model.turns)
    choices = () if guard is not None else question.rubric.spoken
    return Prompt(question.rubric.name, question.key[:12], text, chat, question.key, choices)


def open_judge_model(judge: JudgeConfig, folder: Path) -> LoadedJudge:
    """Load a judge from where its source says.

    Raises:
        EngineError: it cannot be loaded.
        ArtifactError: its file is not there.
        TaskError: its chat template does not render, or does not show what it is asked.
    """
    from quantverdict.artifacts.inspect import inspect_artifact
    from quantverdict.artifacts.sources import resolve

    kind, source, who = judge.engine or "", judge.source, f"judge {judge.name}"
    placement = Placement(judge.parallel, judge.threads, judge.context)
    reply_tokens = 0 if judge.guard is None else REPLY_TOKENS
    remote, by_turns = BACKENDS.find(kind).remote, judge.guard is not None and GUARDS[judge.guard].form == "turns"
    artifact = None
    if source is not None and (not remote or (by_turns and source.has_file)):
        artifact = inspect_artifact(resolve(source, folder))
    template = None if artifact is None else artifact.chat_template
    turns = None
    if artifact is not None and template is not None and by_turns:
        turns = partial(_turns, template, artifact.special_tokens, who)
    if remote:
        target = Target(kind, None, _service(judge), placement, judge.temperature, reply_tokens)
        label_model = open_label_model(target)
        return LoadedJudge(label_model, label_model.identity, None, turns)
    assert artifact is not None  # a judge without a source is refused when it is read
    chat = None if template is None or judge.guard else ChatTemplate(template, artifact.special_tokens, who)
    if judge.guard and GUARDS[judge.guard].form == "user" and template is not None:
        chat = ChatTemplate(template, artifact.special_tokens, who)
    label_model = open_label_model(Target(kind, Path(artifact.path), None, placement, None, reply_tokens))

    def render(text: str) -> str:
        return f"{text}\nLabel: " if chat is None else chat.render(text, who)

    return LoadedJudge(label_model, {**label_model.identity, "sha256": artifact.sha256}, render, turns)


def _turns(template: str, special: Mapping[str, str], who: str, prompt: str, answer: str) -> str:
    """A request and an answer as a guard's own chat template lays them out, up to where it answers."""
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    text = render_messages(template, special, messages, who)
    for part in (prompt.strip(), answer.strip()):
        if part not in text:
            raise TaskError(
                "does not show what it is asked", file=f"chat template, for {who}", expected="both turns whole"
            )
    return text


def _service(judge: JudgeConfig) -> Service:
    source, patience = judge.source, (judge.api_key_env, judge.timeout_s, judge.retries, judge.request_fields)
    if source is not None and source.url:
        return Service(source.url, source.model or judge.model, *patience)
    if source is not None and source.ollama:
        return Service(ollama_url(), source.ollama, *patience)
    return Service("", judge.model, *patience)
