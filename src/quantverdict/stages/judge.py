"""Judging: what a judge has not labelled yet is asked, batch after batch, each question once."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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
from quantverdict.errors import ArtifactError, EngineError
from quantverdict.judges.label_model import Identity, LabelModel, Target, open_label_model
from quantverdict.judges.rubrics import Question, pick_label, question_text, read_label
from quantverdict.records import Prompt
from quantverdict.registry import BACKENDS
from quantverdict.stages.ask import at_commit
from quantverdict.stages.facts import statistics_of
from quantverdict.stages.judgements import answers_of, judge_registry_of, whole_cells
from quantverdict.tasks.chat import ChatTemplate

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LoadedJudge:
    """A judge that is loaded.

    Attributes:
        identity: of the engine, with the hash of the model's file where there is one.
        render: a question's text as the engine gets it; None where the engine has a template of its own.
    """

    label_model: LabelModel
    identity: Identity
    render: Callable[[str], str] | None = None


Open = Callable[[JudgeConfig, Path], LoadedJudge]


@dataclass(frozen=True, slots=True)
class JudgeWork:
    """What a judge is to do.

    Attributes:
        file: of its labels.
        identity: of what gave the labels that are there; None where there are none.
        samples: how many answers it covers.
        missing: what it has not said, each question once.
    """

    file: str
    identity: Identity | None
    samples: int
    missing: list[Question]


def ask_judge(bundle: Bundle, judge: JudgeConfig, folder: Path, say: Say, open_judge: Open | None = None) -> None:
    """answers -> `judgements/NAME.jsonl`: what is missing there is asked, each question once.

    Labels of one model are never completed by another: a judge that is not what it was gets a file of its own, and
    answers everything. A finished bundle stays as it was until all is said: up to then the labels are kept in a folder
    that is no part of it.

    Args:
        folder: where the paths of the judge's source start.
        open_judge: loads the judge; not called where nothing is missing.

    Raises:
        EngineError: the judge cannot be loaded or asked; what it said so far is stored.
        BundleError: the stored labels were changed; the disk is full.
    """
    work = _register(bundle, judge, _hash_of(judge, folder))
    if not work.missing:
        _clear_away(bundle, work.file)
        say(f"judge {judge.name}: {work.samples} answers, all labelled in an earlier run")
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
        _ask_all(apart if bundle.sealed else bundle.root, judge, judge_model, _left(bundle, apart, work), say)
        _take_over(bundle, apart, work.file)
    finally:
        judge_model.label_model.close()


def _left(bundle: Bundle, apart: Path, work: JudgeWork) -> JudgeWork:
    """What was not said apart either, or taken over from there."""
    said = {**read_labels(bundle.root, work.file), **read_labels(apart, work.file)}
    return replace(work, missing=[question for question in work.missing if question.key not in said])


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
    answers = answers_of(bundle)
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
    return JudgeWork(file, entry.get("identity") if known else None, len(samples), missing)


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


def _ask_all(root: Path, judge: JudgeConfig, judge_model: LoadedJudge, work: JudgeWork, say: Say) -> None:
    """Ask what is missing, and keep it batch by batch in the bundle or folder `root`."""
    done, begun = 0, time.perf_counter()
    for batch in _batches(work.missing, judge.batch_size):
        start = time.perf_counter()
        said = _ask_batch(judge_model, batch)
        declined = [one for one in said if one.label is None and not one.text and one.logprobs is None]
        if not done and len(declined) == len(said):
            raise EngineError(f"judge {judge.name}: not one of the first {len(said)} was taken: {said[0].reason}")
        append_labels(root, work.file, said, time.perf_counter() - start)
        done += len(batch)
    say(f"judge {judge.name}: {done} questions, {time.perf_counter() - begun:.0f} s")


def _ask_batch(judge_model: LoadedJudge, batch: Sequence[Question]) -> list[JudgeReply]:
    prompts = [_prompt(judge_model, question) for question in batch]
    said = []
    for question, reply in zip(batch, judge_model.label_model.choose(prompts), strict=True):
        labels, logprobs = question.rubric.labels, reply.choice_logprobs
        if logprobs:
            label, reason = pick_label(labels, logprobs), ""
        elif not reply.text and reply.finish != "stop":
            label, reason = None, reply.finish
        else:
            label, reason = read_label(reply.text, labels, reply.reasoning)
        tokens = (reply.prompt_tokens or 0, reply.output_tokens or 0)
        text = "" if logprobs else reply.text
        said.append(JudgeReply(question.key, question.rubric.name, label, reason, text, logprobs or None, *tokens))
    return said


def _prompt(judge_model: LoadedJudge, question: Question) -> Prompt:
    text = question_text(question)
    chat = None if judge_model.render is None else judge_model.render(text)
    return Prompt(question.rubric.name, question.key[:12], text, chat, question.key, question.rubric.labels)


def open_judge_model(judge: JudgeConfig, folder: Path) -> LoadedJudge:
    """Load a judge from where its source says.

    Raises:
        EngineError: it cannot be loaded.
        ArtifactError: its file is not there.
        TaskError: its chat template does not render, or does not show what it is asked.
    """
    from quantverdict.artifacts.inspect import inspect_artifact
    from quantverdict.artifacts.sources import resolve

    kind, source = judge.engine or "", judge.source
    placement = Placement(judge.parallel, judge.threads, judge.context)
    if BACKENDS.find(kind).remote:
        target = Target(kind, None, _service(judge), placement, judge.temperature)
        label_model = open_label_model(target)
        return LoadedJudge(label_model, label_model.identity)
    assert source is not None  # a judge without one is refused when it is read
    artifact = inspect_artifact(resolve(source, folder))
    template, who = artifact.chat_template, f"judge {judge.name}"
    chat = None if template is None else ChatTemplate(template, artifact.special_tokens, who)
    label_model = open_label_model(Target(kind, Path(artifact.path), None, placement))

    def render(text: str) -> str:
        return f"{text}\nLabel: " if chat is None else chat.render(text, who)

    return LoadedJudge(label_model, {**label_model.identity, "sha256": artifact.sha256}, render)


def _service(judge: JudgeConfig) -> Service:
    source, patience = judge.source, (judge.api_key_env, judge.timeout_s, judge.retries, judge.request_fields)
    if source is not None and source.url:
        return Service(source.url, source.model or judge.model, *patience)
    if source is not None and source.ollama:
        return Service(ollama_url(), source.ollama, *patience)
    return Service("", judge.model, *patience)
