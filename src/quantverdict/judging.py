"""Judging: what a judge has not labelled yet is asked, batch after batch, each question once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantverdict.asking import OLLAMA
from quantverdict.backends.base import Placement, Service
from quantverdict.backends.choosing import Chooser, Identity, Target, open_chooser
from quantverdict.collect.labels import Said, append_labels, labels_path, read_labels
from quantverdict.collect.manifest import Bundle
from quantverdict.collect.meaning import plain as plain_values
from quantverdict.collect.prompts import apply_chat
from quantverdict.config import HOSTED, JudgeConfig
from quantverdict.errors import BundleError, EngineError
from quantverdict.facts import statistics_of
from quantverdict.grading.judge import Question, pick_label, question_text, read_label
from quantverdict.judges import RECORD, answers_of, record_of, whole_cells
from quantverdict.records import Prompt

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Asker:
    """A judge that is loaded.

    Attributes:
        identity: of the engine, with the hash of the model's file where there is one.
        render: a question's text as the engine gets it; None where the engine has a template of its own.
    """

    chooser: Chooser
    identity: Identity
    render: Callable[[str], str] | None = None


Open = Callable[[JudgeConfig, Path], Asker]


def ask_judge(bundle: Bundle, judge: JudgeConfig, folder: Path, say: Say, open_judge: Open | None = None) -> None:
    """answers -> `judgements/NAME.jsonl`: what is missing there is asked, each question once.

    Args:
        folder: where the paths of the judge's source start.
        open_judge: loads the judge; not called where nothing is missing.

    Raises:
        EngineError: the judge cannot be loaded or asked; what it said so far is stored.
        BundleError: another model or engine gave the labels that are stored; the disk is full.
    """
    bundle.refuse_changed(labels_path(judge.name))
    record = record_of(bundle)
    mine = {**record.get(judge.name, {}), "config": plain_values(judge.model_dump())}
    if judge.second and "whole" not in mine:
        mine |= {"whole": whole_cells(bundle)}
    bundle.record(**{RECORD: {**record, judge.name: mine}})
    answers, known = answers_of(bundle), read_labels(bundle.root, judge.name)
    samples = answers.covered(judge, mine, statistics_of(bundle)[1])
    missing = {(q := answers.questions[sample]).key: q for sample in samples}
    missing = {key: q for key, q in missing.items() if key not in known and q.answer.strip()}
    if not missing:
        say(f"judge {judge.name}: {len(samples)} answers, all labelled in an earlier run")
        return
    asker = (open_judge or open_asker)(judge, folder)
    try:
        identity = dict(asker.identity)
        if known and mine.get("identity", identity) != identity:
            raise BundleError(
                f"{bundle.path(labels_path(judge.name))}: is of another model or engine; delete it to judge again"
            )
        bundle.record(**{RECORD: {**record, judge.name: {**mine, "identity": identity}}})
        _ask_all(bundle, judge, asker, _batches(missing.values(), judge.batch_size), say)
    finally:
        asker.chooser.close()


def _batches(questions: Iterable[Question], size: int) -> Iterator[list[Question]]:
    """Questions of one rubric, of like length: their common start is read once."""
    by_rubric: dict[str, list[Question]] = {}
    for question in questions:
        by_rubric.setdefault(question.rubric.name, []).append(question)
    for own in by_rubric.values():
        own.sort(key=lambda question: (len(question.prompt) + len(question.answer), question.key))
        yield from (own[start : start + size] for start in range(0, len(own), size))


def _ask_all(bundle: Bundle, judge: JudgeConfig, asker: Asker, batches: Iterable[list[Question]], say: Say) -> None:
    done, begun = 0, time.perf_counter()
    for batch in batches:
        start = time.perf_counter()
        said = _ask_batch(asker, batch)
        declined = [one for one in said if one.label is None and not one.text and one.logprobs is None]
        if not done and len(declined) == len(said):
            raise EngineError(f"judge {judge.name}: not one of the first {len(said)} was taken: {said[0].reason}")
        seconds = time.perf_counter() - start
        append_labels(bundle.root, judge.name, said, {"questions": len(said), "wall_s": round(seconds, 3)})
        done += len(batch)
    say(f"judge {judge.name}: {done} questions, {time.perf_counter() - begun:.0f} s")


def _ask_batch(asker: Asker, batch: Sequence[Question]) -> list[Said]:
    prompts = [_prompt(asker, question) for question in batch]
    said = []
    for question, reply in zip(batch, asker.chooser.choose(prompts), strict=True):
        labels, logprobs = question.rubric.labels, reply.choice_logprobs
        if logprobs:
            label, reason = pick_label(labels, logprobs), ""
        elif not reply.text and reply.finish != "stop":
            label, reason = None, reply.finish
        else:
            label, reason = read_label(reply.text, labels)
        tokens = (reply.prompt_tokens, reply.output_tokens)
        text = "" if logprobs else reply.text
        said.append(Said(question.key, question.rubric.name, label, reason, text, logprobs or None, *tokens))
    return said


def _prompt(asker: Asker, question: Question) -> Prompt:
    text = question_text(question)
    chat = None if asker.render is None else asker.render(text)
    return Prompt(question.rubric.name, question.key[:12], text, chat, question.key, question.rubric.labels)


def open_asker(judge: JudgeConfig, folder: Path) -> Asker:
    """Load a judge from where its source says.

    Raises:
        EngineError: it cannot be loaded.
        ArtifactError: its file is not there.
    """
    from quantverdict.artifacts.inspect import inspect_artifact
    from quantverdict.artifacts.sources import resolve

    kind, source = judge.engine or "", judge.source
    placement = Placement(judge.parallel, judge.threads, judge.context)
    if kind in HOSTED or kind in ("server", "ollama"):
        target = Target(kind, None, _service(judge), placement, judge.temperature)
        chooser = open_chooser(target)
        return Asker(chooser, chooser.identity)
    assert source is not None  # a judge without one is refused when it is read
    artifact = inspect_artifact(resolve(source, folder))
    chooser = open_chooser(Target(kind, Path(artifact.path), None, placement))
    template, special = artifact.chat_template, artifact.special_tokens

    def render(text: str) -> str:
        return f"{text}\nLabel: " if template is None else apply_chat(template, text, special, f"judge {judge.name}")

    return Asker(chooser, {**chooser.identity, "sha256": artifact.sha256}, render)


def _service(judge: JudgeConfig) -> Service:
    source, patience = judge.source, (judge.api_key_env, judge.timeout_s, judge.retries)
    if source is not None and source.url:
        return Service(source.url, source.model or judge.model, *patience)
    if source is not None and source.ollama:
        host = os.environ.get("OLLAMA_HOST") or OLLAMA
        return Service(host if "://" in host else f"http://{host}", source.ollama, *patience)
    return Service("", judge.model, *patience)
