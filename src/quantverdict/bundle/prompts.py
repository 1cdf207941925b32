"""Prompts: rendered once, frozen with their hashes, the same for every cell and provably the same tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from quantverdict.backends.base import Decoding
from quantverdict.bundle.files import json_line, whole_lines
from quantverdict.config import Study, TaskUse
from quantverdict.errors import BundleError, StudyError
from quantverdict.records import Prompt, Response, Turn
from quantverdict.registry.listing import one_of
from quantverdict.tasks.benchmark_list import benchmark_task
from quantverdict.tasks.catalog import (
    Item,
    Task,
    builtin_tasks,
    choice_continuations,
    conversation,
    load_task,
    render_prompt,
    select_items,
    with_seeds,
)
from quantverdict.tasks.chat import ChatTemplate
from quantverdict.tasks.conversation import AS_TEXT, SYSTEM, Dialogue, as_text, merged_system, opening
from quantverdict.tasks.lm_eval import HarnessUse, lm_eval_task
from quantverdict.yaml_file import misplaced

Batches = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class StoppingSchedule:
    """When a cell may be stopped.

    Attributes:
        ends: batches asked by the end of each round.
        largest: prompts of the largest cluster of each task.
    """

    ends: tuple[int, ...]
    largest: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class PromptPlan:
    """What every cell of a base model is asked, and how.

    Attributes:
        prompts: in study order; what was added later comes after what was asked before.
        batches: indices into `prompts`; a batch holds prompts of one task and is the unit of resume.
        decoding: by task.
        rounds: None where every cell is asked everything.
        content: how the chat template takes a question, `text` or `parts`; None without a template.
        system: how it takes a system prompt: a `role` of its own, or `merged` into the first turn of the user; None
            where nobody gives one, or without a template.
        dialogue: goes on with prompts that are asked turn by turn.
        left_out: numbers of batches that were asked of some cell, and are of a task that the study has no longer.
    """

    prompts: tuple[Prompt, ...]
    batches: Batches
    decoding: Mapping[str, Decoding]
    rounds: StoppingSchedule | None = None
    content: str | None = None
    system: str | None = None
    dialogue: Dialogue = AS_TEXT
    left_out: frozenset[int] = frozenset()


def study_tasks(study: Study, whole: Sequence[Task] | None = None) -> tuple[Task, ...]:
    """The study's tasks with the items it asks.

    Args:
        whole: its tasks with all their items, where they are read already.

    Raises:
        TaskError, StudyError: as `whole_tasks`.
    """
    whole = whole_tasks(study) if whole is None else whole
    return tuple(drawn(study, task, use) for task, use in zip(whole, study.tasks, strict=True))


def drawn(study: Study, task: Task, use: TaskUse, kept: Collection[str] = (), most: int | None = None) -> Task:
    """A whole task with the items that a study asks of it.

    Args:
        kept: ids of those that were asked before.
        most: in place of the study's own limit.

    Raises:
        TaskError: as `tasks.catalog.select_items`.
    """
    limit = most
    if most is None and use.limit is not None:
        limit = use.limit * study.decoding.seeds
    chosen = limit is not None or use.stratify is not None
    return select_items(task, limit, use.stratify, study.seed, kept) if chosen or kept else task


def whole_tasks(study: Study) -> tuple[Task, ...]:
    """The study's tasks with all their items.

    Raises:
        TaskError: a task file is wrong.
        StudyError: two tasks of one name.
    """
    tasks: list[Task] = []
    for number, use in enumerate(study.tasks):
        task = _named_task(study, use, number)
        if task.name in [other.name for other in tasks]:
            raise StudyError(f"{task.name} twice", file=study.file, field=f"tasks.{number}", expected="each task once")
        tasks.append(with_seeds(task, study.decoding.seeds))
    return tuple(tasks)


def _named_task(study: Study, use: TaskUse, number: int) -> Task:
    folder = study.folder / study.task_dir
    if use.lm_eval is not None:
        return lm_eval_task(HarnessUse(use.lm_eval, use.data, use.fewshot, use.num_fewshot, use.filter), folder)
    own = None if use.path is None else folder / use.path
    if own is not None and ((use.task is None and use.benchmark is None) or own.is_file()):
        return load_task(own)
    if use.benchmark is not None:
        return benchmark_task(use.benchmark, use.data, folder)
    if use.task not in builtin_tasks():
        expected = one_of(use.task or "", builtin_tasks())
        raise misplaced(study.file, f"{use.task}: no such task", "tasks", number, expected=expected)
    return load_task(use.task or "")


def make_plan(
    study: Study, tasks: Sequence[Task], chat_template: str | None, special: Mapping[str, str], name: str = ""
) -> PromptPlan:
    """The plan of a base model; `chat_template` and `special` (`bos`, `eos`) are its baseline's, `name` its own."""
    baselines = (one for model in study.models if model.name == name for one in model.variants
                 if one.quant == model.baseline)  # fmt: skip
    baseline = next(baselines, None)
    variables = {} if baseline is None else study.template_variables(baseline)
    chat = None if chat_template is None else open_chat(tasks, chat_template, special, name, variables)
    prompts = _frozen(tasks, chat, name, study.system_prompt)
    lengths = {task.name: use.max_new_tokens or task.max_new_tokens or study.decoding.max_new_tokens
               for task, use in zip(tasks, study.tasks, strict=True)}  # fmt: skip
    decoding = {
        name: Decoding(most, study.decoding.temperature, study.seed,
                       None if baseline is None else study.most_reasoning(baseline, most))
        for name, most in lengths.items()
    }  # fmt: skip
    return PromptPlan(
        prompts,
        plan_batches(prompts, study.collect.batch_size),
        decoding,
        content=None if chat is None else chat.content,
        system=None if chat is None else _system_form(chat, prompts, tasks, study.system_prompt, name),
        dialogue=Dialogue(chat),
    )


def freeze_prompts(tasks: Sequence[Task], chat_template: str | None, special: Mapping[str, str]) -> tuple[Prompt, ...]:
    """Every item of every task as it is asked; without a chat template, the task's text alone.

    Raises:
        TaskError: a template does not render, or a prompt does not hold its question whole and once.
    """
    chat = None if chat_template is None else open_chat(tasks, chat_template, special)
    return _frozen(tasks, chat)


def asked_otherwise(
    plan: PromptPlan, chat_template: str, special: Mapping[str, str], variables: Mapping[str, object], name: str
) -> PromptPlan:
    """The same questions in the same batches, each in the chat template as `variables` make it.

    Raises:
        TaskError: the template does not render, does not show a question whole and once, or reads no such variable.
    """
    chat, prompts = ChatTemplate(chat_template, special, name, variables), []
    for prompt in plan.prompts:
        where = f"{name}/{prompt.task}/{prompt.sample_id}"
        if prompt.messages:
            prompts.append(_frozen_turns(prompt.messages, chat, where, prompt))
            continue
        shown = chat.render(prompt.text, where)
        prompts.append(replace(prompt, chat=shown, sha256=_hash(shown)))
    return replace(plan, prompts=tuple(prompts), content=chat.content, dialogue=Dialogue(chat))


def open_chat(
    tasks: Sequence[Task],
    chat_template: str,
    special: Mapping[str, str],
    name: str = "",
    variables: Mapping[str, object] | None = None,
) -> ChatTemplate | None:
    """The template that these tasks are asked in, tried for the first of their items; None where they have none.

    Raises:
        TaskError: it does not render, or does not show a question whole and once.
    """
    first = next(((task, item) for task in tasks for item in task.items), None)
    return None if first is None else ChatTemplate(chat_template, special, _sample(*first, name), variables)


def _frozen(
    tasks: Sequence[Task], chat: ChatTemplate | None, name: str = "", system_prompt: str | None = None
) -> tuple[Prompt, ...]:
    prompts = []
    for task in tasks:
        for item in task.items:
            where, choices = _sample(task, item, name), choice_continuations(task, item)
            choices = choices if chat is not None else tuple(f"{task.delimiter}{choice}" for choice in choices)
            turns = conversation(task, item, system_prompt)
            if turns:
                made = _frozen_turns(turns, chat, where, Prompt(task.name, item.id, "", None, "", choices, item.draw))
                prompts.append(made)
                continue
            text = render_prompt(task, item)
            rendered = None if chat is None else chat.render(text, where)
            asked = text if rendered is None else rendered
            prompts.append(Prompt(task.name, item.id, text, rendered, _hash(asked), choices, item.draw))
    return tuple(prompts)


def _frozen_turns(turns: tuple[Turn, ...], chat: ChatTemplate | None, where: str, bare: Prompt) -> Prompt:
    """A conversation as it is asked: its hash is of all that is asked, whatever the model will reply in between."""
    if chat is not None and not chat.takes_system(where):
        turns = merged_system(turns)
    prompt = replace(bare, messages=turns, text=as_text(turns))
    first = opening(prompt)
    rendered = None if chat is None else chat.render_turns(first.messages, where)
    asked = rendered if rendered is not None and first is prompt else json.dumps(
        [rendered, *(asdict(turn) for turn in turns)], ensure_ascii=True
    )  # fmt: skip
    return replace(prompt, chat=rendered, sha256=_hash(asked))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _system_form(
    chat: ChatTemplate, prompts: Sequence[Prompt], tasks: Sequence[Task], system_prompt: str | None, name: str
) -> str | None:
    own = (system_prompt if task.system_prompt is None else task.system_prompt for task in tasks)
    if not any(text and text.strip() for text in own) and not any(
        turn.role == SYSTEM for prompt in prompts for turn in prompt.messages[:1]
    ):
        return None
    return "role" if chat.takes_system(name) else "merged"


def _sample(task: Task, item: Item, name: str) -> str:
    return "/".join(part for part in (name, task.name, item.id) if part)


def plan_batches(prompts: Sequence[Prompt], batch_size: int) -> Batches:
    """Batches of at most `batch_size` prompts of one task, similar lengths together.

    They follow from the task texts alone: never from timing, nor from a model, nor from the study's other tasks, so
    that a task's answers do not change when another one is added.
    """
    batches: list[tuple[int, ...]] = []
    for _, members in groupby(range(len(prompts)), key=lambda index: prompts[index].task):
        order = sorted(members, key=lambda index: len(prompts[index].text))
        batches += [tuple(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
    return tuple(batches)


def grown(wanted: PromptPlan, place: str, asked: Sequence[Prompt], batches: Batches, size: int) -> PromptPlan:
    """What was asked before, batch by batch as it was, and after it what of `wanted` was not.

    Args:
        wanted: what the study asks now.
        place: the file of the prompts, for an error.
        asked: the prompts that were frozen before; none at first.
        batches: theirs, as far as they were frozen; a kill may have come in between.
        size: prompts of a batch, at most.

    Raises:
        BundleError: a prompt is not what it was.
    """
    known = {(prompt.task, prompt.sample_id): prompt for prompt in asked}
    for prompt in wanted.prompts:
        if known.get((prompt.task, prompt.sample_id), prompt) != prompt:
            name = f"{prompt.task}/{prompt.sample_id}"
            raise BundleError(f"{place}: the prompts are not those this bundle was begun with: {name}")
    if asked and sum(map(len, batches)) > len(asked):
        raise BundleError(f"{place}: holds fewer prompts than were asked; put it back")
    new = tuple(prompt for prompt in wanted.prompts if (prompt.task, prompt.sample_id) not in known)
    prompts, batches = (*asked, *new), batches if asked else ()
    for part in (asked[sum(map(len, batches)) :], new):
        first = sum(map(len, batches))
        batches += tuple(tuple(first + index for index in batch) for batch in plan_batches(part, size))
    tasks = {prompt.task for prompt in wanted.prompts}
    gone = frozenset(number for number, batch in enumerate(batches) if prompts[batch[0]].task not in tasks)
    return replace(wanted, prompts=prompts, batches=batches, left_out=gone)


def prompts_file(base_model: str) -> str:
    return f"prompts/{base_model}.jsonl"


def prompt_lines(prompts: Sequence[Prompt]) -> str:
    """The frozen prompts as JSONL."""
    rows = (asdict(prompt) for prompt in prompts)
    # Where a prompt is asked once there is no draw to tell of, and one turn of the user is no conversation.
    return b"".join(json_line({k: v for k, v in row.items() if k not in _SELDOM or v}) for row in rows).decode()


_SELDOM = ("draw", "messages", "replies")


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """The prompts that a bundle holds for one base model.

    Raises:
        BundleError: not as written.
    """
    try:
        rows = [json.loads(line) for line in whole_lines(path.read_bytes())]
        found = tuple(map(_as_prompt, rows))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise BundleError(f"{path}: cannot be read ({error})") from error
    for number, prompt in enumerate(found, start=1):
        said = [text for turn in prompt.messages for text in (turn.role, turn.content)]
        texts = (prompt.task, prompt.sample_id, prompt.text, prompt.sha256, prompt.chat or "", *prompt.choices, *said)
        if not all(isinstance(text, str) for text in texts):
            raise BundleError(f"{path}: line {number}: not as it was written: a value is not a text")
    return found


def _as_prompt(row: Any) -> Prompt:  # noqa: ANN401 - what a line of JSON may be
    if not isinstance(row, dict):
        raise TypeError(f"a line is a {type(row).__name__}, not a prompt")
    turns = tuple(Turn(**turn) for turn in row.get("messages", ()))
    return Prompt(**{**row, "choices": tuple(row["choices"]), "messages": turns})


def first_changed(stored: Sequence[Prompt], given: Sequence[Prompt]) -> str | None:
    """The first prompt that is not what it was, None where all are."""
    for was, now in zip(stored, given, strict=False):
        if was != now:
            return f"{now.task}/{now.sample_id}"
    longer = stored if len(stored) > len(given) else given
    rest = longer[min(len(stored), len(given)) :]
    return f"{rest[0].task}/{rest[0].sample_id}" if rest else None


@dataclass(frozen=True, slots=True)
class PromptParity:
    """Whether two cells were asked the same token sequences.

    Attributes:
        same, different: prompts whose token ids are, or are not, equal.
        unknown: prompts that one of the backends shows no ids for; neither same nor different.
        first_difference: TASK/SAMPLE of the first that differs.
    """

    same: int
    different: int
    unknown: int
    first_difference: str | None


def prompt_parity(baseline: Iterable[Response], other: Iterable[Response]) -> PromptParity:
    """Compare the token ids of each prompt that both cells answered."""
    ids = {(response.task, response.sample_id): response.prompt_ids_sha256 for response in baseline}
    same, unknown = 0, 0
    different: list[str] = []
    for response in other:
        key = (response.task, response.sample_id)
        if key not in ids:
            continue
        if ids[key] is None or response.prompt_ids_sha256 is None:
            unknown += 1
        elif ids[key] == response.prompt_ids_sha256:
            same += 1
        else:
            different.append("/".join(key))
    return PromptParity(same, len(different), unknown, different[0] if different else None)
