"""What is asked: tasks built in or from a user's file, their items, prompts and choices.

A task file is YAML: `name`, `task_type`, a Jinja `prompt_template`, `filters` in order, `samples` with an `id` and
their fields, or `data` that names a data set of them (`tasks.data`). Own keys besides the usual ones:
`accuracy_metric`, `cluster_field`, `samples_of`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from quantverdict.errors import TaskError
from quantverdict.records import TaskType, Turn
from quantverdict.registry import TASK_TYPES, TASKS, metrics_of
from quantverdict.registry.listing import BUILT_IN, one_of, resource

if TYPE_CHECKING:
    from quantverdict.tasks.data import DataRecord

# Output filters: what is done to an answer before it is compared; a task names them in order.

_PREFIX = re.compile(r"\s*(?:assistant|answer|response)\s*:\s*", re.IGNORECASE)


def strip_whitespace(text: str) -> str:
    """Without white space at both ends."""
    return text.strip()


def truncate_at_newline(text: str) -> str:
    """The first line, without its line break."""
    return text.split("\n", 1)[0].removesuffix("\r")


def remove_assistant_prefix(text: str) -> str:
    """Without one leading `Assistant:`, `Answer:` or `Response:` in any case, and the white space around it."""
    found = _PREFIX.match(text)
    return text[found.end() :] if found else text


def lowercase(text: str) -> str:
    """In lower case."""
    return text.lower()


FILTERS: Mapping[str, Callable[[str], str]] = {
    function.__name__: function
    for function in (strip_whitespace, truncate_at_newline, remove_assistant_prefix, lowercase)
}


ACCURACY_OF = {
    "mmlu": "mmlu_accuracy",
    "mmlu_real": "mmlu_accuracy",
    "arc_challenge": "arc_accuracy",
    "classification": "classification_accuracy",
    "starter_classification": "classification_accuracy",
}
"""Accuracy metric of well-known tasks; another classification task has `choice_accuracy`."""
CLUSTER_OF = {"mmlu": "subject", "mmlu_real": "subject"}
BEHAVIOR = "base_behavior_id"
"""Items that have this field are forms of one behaviour: a cluster."""


_LETTERED = re.compile(r"^[ \t]*\(?([A-Z])[).:][ \t]+(\S.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Item:
    """One question: its id in the task and the fields that the template and the grader read.

    Attributes:
        repeats: the id of the question where it is asked by several seeds, of its first asking too; else None.
        draw: which of these askings it is, from 0.
    """

    id: str
    fields: Mapping[str, object]
    repeats: str | None = None
    draw: int = 0

    @property
    def reference(self) -> str | None:
        """The right answer, None where a task has none."""
        found = self.fields.get("reference")
        return found if isinstance(found, str) else None


@dataclass(frozen=True, slots=True)
class Task:
    """A set of items and how they are asked.

    Attributes:
        filters: names of `filters.FILTERS`, in the order they are applied.
        sha256: of the file.
        accuracy_metric: of a task with choices, else None.
        cluster_field: item field that says which items belong together, None where every item stands alone.
        source: the file, or `built-in:NAME`.
        examples: worked examples that stand before every prompt, as text; empty for none.
        data: what was used of a data set, None where the items stand in the file.
        system_prompt: stands before every conversation; None is the study's, empty is none.
        messages: turns of every item, each content a template; empty where `prompt_template` is the user's one turn.
        messages_field: the field of an item that is its conversation; empty for none.
        example_turns: worked examples as turns of the user and of the assistant.
        graded: of a conversation, the model's `last` turn, or `all` of them.
        delimiter: between a prompt without a chat template and each of its choices.
        max_new_tokens: of an answer, where the study sets no limit of its own to it; None is the study's.
    """

    name: str
    task_type: str
    description: str
    prompt_template: str
    filters: tuple[str, ...]
    items: tuple[Item, ...]
    sha256: str
    accuracy_metric: str | None
    cluster_field: str | None
    source: str
    examples: str = ""
    data: DataRecord | None = None
    system_prompt: str | None = None
    messages: tuple[Turn, ...] = ()
    messages_field: str = ""
    example_turns: tuple[Turn, ...] = ()
    graded: str = "last"
    delimiter: str = ""
    max_new_tokens: int | None = None

    def cluster(self, item: Item) -> str | None:
        """The cluster an item belongs to, None where it stands alone; askings by several seeds are one."""
        found = item.fields.get(self.cluster_field) if self.cluster_field else None
        return item.repeats if found is None else str(found)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Per-sample metrics the answers are graded by."""
        return tuple(name.replace("{A}", self.accuracy_metric or "") for name in metrics_of(self.type))

    @property
    def type(self) -> TaskType:
        """How its answers are read."""
        return TASK_TYPES.find(self.task_type)


class TaskSummary(NamedTuple):
    """A line of `quantverdict tasks list`."""

    name: str
    task_type: str
    items: int
    metrics: tuple[str, ...]
    description: str


def builtin_tasks() -> tuple[str, ...]:
    """Names of the starter battery, and of the tasks of loaded plugins."""
    return tuple(TASKS)


def task_summaries(names: Iterable[str | Path] | None = None) -> tuple[TaskSummary, ...]:
    """A line for each of the named tasks, or of the built-in ones.

    Raises:
        TaskError: as `load_task`.
    """
    tasks = [load_task(name) for name in (builtin_tasks() if names is None else names)]
    return tuple(TaskSummary(t.name, t.task_type, len(t.items), t.metrics, t.description) for t in tasks)


def load_task(name_or_path: str | Path) -> Task:
    """A built-in task by name, or a task file by path; its template and every item are checked.

    Raises:
        TaskError: no such task, or a mistake in the file: with file, line, field and what was expected.
    """
    from quantverdict.tasks.taskfile import read_task

    if str(name_or_path) in TASKS:
        file, owner = TASKS[str(name_or_path)].file, TASKS.owner(str(name_or_path))
        source = f"{'built-in' if owner == BUILT_IN else owner}:{name_or_path}"
        return replace(read_task(resource(file)), source=source)
    path = Path(name_or_path)
    try:
        found = path.is_file()
    except OSError:  # no file can have that name, or it may not be looked at
        found = False
    if not found:
        near = one_of(str(name_or_path)[:80], builtin_tasks())
        raise TaskError("no such task", file=path, expected=f"the path of a task file, or {near}")
    return read_task(path)


def render_prompt(task: Task, item: Item) -> str:
    """The user's turn for one item; of a conversation the last one.

    Raises:
        TaskError: the template does not render.
    """
    if task.messages or task.messages_field:
        return next(turn.content for turn in reversed(_own_turns(task, item)) if turn.role == "user")
    return task.examples + _rendered(task, item, task.prompt_template, "prompt_template")


def conversation(task: Task, item: Item, system_prompt: str | None = None) -> tuple[Turn, ...]:
    """The turns of an item, those of its examples and the system prompt before; empty where one turn is all.

    Args:
        system_prompt: the study's, for a task that has none of its own.

    Raises:
        TaskError: a template does not render.
    """
    from quantverdict.tasks.conversation import with_system

    system = task.system_prompt if task.system_prompt is not None else system_prompt or ""
    turns = with_system((*task.example_turns, *_own_turns(task, item)), system)
    return turns if len(turns) > 1 else ()


def _own_turns(task: Task, item: Item) -> tuple[Turn, ...]:
    from quantverdict.tasks.conversation import asked_and_reference, read_turns

    if task.messages_field:
        return asked_and_reference(read_turns(item.fields[task.messages_field]))[0]
    if not task.messages:
        return (Turn("user", render_prompt(task, item)),)
    return tuple(
        Turn(turn.role, _rendered(task, item, turn.content, f"messages.{number}"))
        for number, turn in enumerate(task.messages)
    )


def _rendered(task: Task, item: Item, template: str, key: str) -> str:
    from quantverdict.tasks.chat import render_template

    where = f"{task.source}: {key}: {item.id}"
    return render_template(template, {"id": item.id, **item.fields}, where=where, strict=True)


def apply_filters(task: Task, text: str) -> str:
    """An answer after the task's filters, in order."""
    for name in task.filters:
        text = FILTERS[name](text)
    return text


def choice_continuations(task: Task, item: Item) -> tuple[str, ...]:
    """Answers to choose among: `choices` as they are, letters (`option_a`... or the lines of `choices_text`), labels
    (`categories`) or ()."""
    if not task.type.choices:
        return ()
    if isinstance(texts := item.fields.get("choices"), list):
        return tuple(map(str, texts))
    lettered = choice_texts(item)
    if lettered:
        return tuple(lettered)
    categories = item.fields.get("categories")
    return tuple(label.strip() for label in categories.split(",")) if isinstance(categories, str) else ()


def choice_texts(item: Item) -> dict[str, str]:
    """Letter to text of an item's lettered choices, empty where it has none."""
    options = {key[-1].upper(): str(text) for key, text in item.fields.items() if re.fullmatch(r"option_[a-z]", key)}
    listed = item.fields.get("choices_text")
    if not options and isinstance(listed, str):
        options = {letter: text.strip() for letter, text in _LETTERED.findall(listed)}
    return dict(sorted(options.items()))


def correct_choice(task: Task, item: Item) -> int | None:
    """Index of the right one of `choice_continuations`, None where there are none."""
    choices = choice_continuations(task, item)
    return choices.index(item.reference) if item.reference in choices else None


def select_items(task: Task, limit: int | None, stratify: str | None, seed: int, kept: Collection[str] = ()) -> Task:
    """The task with at most `limit` items, in their order; the same for the same arguments on every machine.

    Items are drawn in an order hashed from seed, task and id, in turn from each value of the field `stratify`. Whole
    clusters are drawn, so fewer than `limit` may come; balancing over the cluster field itself draws from within them.

    Args:
        kept: ids that were drawn before, all of which stay: a larger sample contains the smaller.

    Raises:
        TaskError: an item has no such field, no whole cluster fits, or an item that was drawn before is gone.
    """
    if gone := sorted(set(kept) - {item.id for item in task.items}):
        problem = f"item {gone[0]} was asked before, and is not there any longer"
        raise TaskError(problem, file=task.source, field="samples", expected="every item that was asked")
    if limit is None or limit >= len(task.items):
        return task
    strata: dict[str, list[list[Item]]] = {}
    for group in sorted(_groups(task, stratify), key=lambda group: _draw(seed, task, group[0].id)):
        strata.setdefault(_stratum(task, group, stratify), []).append(group)
    turns = sorted(
        (
            (turn, _draw(seed, task, value), group)
            for value, groups in strata.items()
            for turn, group in enumerate(groups)
        ),
        key=lambda entry: entry[:2],
    )
    chosen = set(kept)
    for _, _, group in turns:
        if not chosen.isdisjoint(item.id for item in group):
            continue
        if len(chosen) + len(group) <= limit:
            chosen.update(item.id for item in group)
    if not chosen:
        smallest = min(len(group) for _, _, group in turns)
        raise TaskError("no whole cluster fits", file=task.source, field="limit", expected=f"at least {smallest}")
    return replace(task, items=tuple(item for item in task.items if item.id in chosen))


def with_seeds(task: Task, seeds: int) -> Task:
    """The task with every item asked so many times: `ID`, `ID#2`, `ID#3`, each by a seed of its own."""
    if seeds == 1:
        return task
    items = (
        Item(item.id if draw == 0 else f"{item.id}#{draw + 1}", item.fields, item.id, draw)
        for item in task.items
        for draw in range(seeds)
    )
    return replace(task, items=tuple(items))


def _groups(task: Task, stratify: str | None) -> list[list[Item]]:
    together: dict[tuple[str, str], list[Item]] = {}
    for item in task.items:
        cluster = task.cluster(item) if stratify != task.cluster_field else item.repeats
        together.setdefault(("item", item.id) if cluster is None else ("cluster", cluster), []).append(item)
    return list(together.values())


def _stratum(task: Task, group: list[Item], stratify: str | None) -> str:
    if stratify is None:
        return ""
    for item in group:
        if stratify not in item.fields:
            problem = f"item {item.id} has no field {stratify}"
            raise TaskError(problem, file=task.source, field="stratify", expected="a field that every item has")
    return "\n".join(sorted({str(item.fields[stratify]) for item in group}))


def _draw(seed: int, task: Task, key: str) -> str:
    return hashlib.sha256(f"{seed}\n{task.name}\n{key}".encode()).hexdigest()
