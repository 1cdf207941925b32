"""Read a task file: strict, every mistake with its line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from quantverdict.errors import TaskError
from quantverdict.registry import ACCURACIES, TASK_TYPES, TASKS, load, metrics_of, one_of, resource
from quantverdict.tasks import catalog
from quantverdict.tasks.catalog import FILTERS, Item, Task
from quantverdict.tasks.chat import template_fields
from quantverdict.yaml_file import UnreadableError, decoded, line_of, read_yaml, unread

# A task file's YAML with the lines it came from; the file is not trusted.


class TaskSource:
    """The data of a YAML file of plain values: no aliases, no repeated keys.

    Raises:
        TaskError: the file cannot be read, or is not such a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            content = path.read_bytes()
            text = decoded(content)
        except (OSError, ValueError) as error:
            raise TaskError(f"cannot be read ({unread(error)})", file=path, expected="a UTF-8 YAML file") from error
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.root: yaml.Node | None
        self.data: Any
        try:
            self.root, self.data = read_yaml(text, aliases=False)
        except UnreadableError as error:
            problem = error.problem if error.field is None else f"key {error.field!r} is {error.problem}"
            raise TaskError(problem, file=path, line=error.line, expected=error.expected) from error

    def refuse(self, location: tuple[str | int, ...], problem: str, expected: str | None = None) -> NoReturn:
        """Raise for what is at `location`, with the line of the nearest place that the file has."""
        line = line_of(self.root, location)
        field = ".".join(str(part) for part in location)
        raise TaskError(problem, file=self.path, line=line, field=field or None, expected=expected)


def _checked(right: Callable[[Any], object], problem: str, expected: Callable[[Any], str]) -> AfterValidator:
    """Refuse a value that is not valid, in words of our own."""

    def check(value: object) -> object:
        if not right(value):
            message = {"problem": problem.format(value)[:80], "expected": expected(value)}
            raise PydanticCustomError("mistake", "{problem}", message)
        return value

    return AfterValidator(check)


def _is_type(name: str) -> bool:
    try:
        return TASK_TYPES.find(name) is not None
    except ValueError:
        return False


def _filter_name(entry: object) -> object:
    return entry.get("type") if isinstance(entry, dict) else entry


_Text = Annotated[str, Field(pattern=r"\S")]
_Named = _checked(re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*").fullmatch, "{!r} is not a name",
                  lambda _: "letters, digits, '.', '_', '+', '-'")  # fmt: skip
_Filter = _checked(lambda entry: entry in [{"type": name} for name in FILTERS], "unknown filter {!r}",
                   lambda entry: f"type: {one_of(str(_filter_name(entry)), FILTERS)}")  # fmt: skip
_Kind = _checked(_is_type, "unknown type {!r}", lambda kind: one_of(kind, TASK_TYPES))
_Generated = _checked(lambda kind: kind == "generate", "unknown type {!r}", lambda _: "generate")
_NoExamples = _checked(lambda n: n == 0, "not supported", lambda _: "0; examples are written into prompt_template")


class _Head(BaseModel):
    """The keys of a task file; its samples are rows of data, which are looked at one by one."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: Annotated[_Text, _Named]
    task_type: Annotated[_Text, _Kind]
    prompt_template: _Text
    description: _Text = ""
    metric_group: _Text = ""
    output_type: Annotated[object, _Generated] = "generate"
    num_fewshot: Annotated[object, _NoExamples] = 0
    filters: Annotated[list[Annotated[Any, _Filter]], BeforeValidator(lambda given: given or [])] = []
    samples: Annotated[list[Any], Field(min_length=1)] = []
    samples_of: _Text = ""
    accuracy_metric: _Text = ""
    cluster_field: _Text = ""


_UNKNOWN = ("extra_forbidden", "invalid_key")
_LISTED = {"samples": ("missing or empty", "a list of items"), "filters": ("is not a list", "a list of 'type: NAME'")}
_LISTS = ("correct_answers", "incorrect_answers")
_ANSWERS = ("answer_choice_0", "answer_choice_1", "answer_choice_2")


class ItemProblem(NamedTuple):
    """What a task type's `check` finds in an item: the field (empty for the item), what is wrong, what is expected."""

    field: str
    problem: str
    expected: str


def read_task(path: Path) -> Task:
    """A task from its file.

    Raises:
        TaskError: the first mistake, with file, line, field and what was expected.
    """
    file = TaskSource(path)
    head = _head(file)
    source = _source(file, head.samples_of) if head.samples_of else None
    items = source.items if source else tuple(_item(file, index) for index in range(len(head.samples)))
    fallback = catalog.BEHAVIOR if any(catalog.BEHAVIOR in item.fields for item in items) else None
    accuracy = head.accuracy_metric or catalog.ACCURACY_OF.get(head.name, "choice_accuracy")
    task = Task(
        name=head.name,
        task_type=head.task_type,
        description=" ".join(head.description.split()),
        prompt_template=head.prompt_template,
        filters=tuple(entry["type"] for entry in head.filters),
        items=items,
        sha256=file.sha256 if source is None else hashlib.sha256((file.sha256 + source.sha256).encode()).hexdigest(),
        accuracy_metric=accuracy if _is_chosen(head) else None,
        cluster_field=head.cluster_field
        or catalog.CLUSTER_OF.get(head.name, fallback if source is None else source.cluster_field),
        source=str(path),
    )
    _check_items(file, task)
    _check_template(file, task)
    return task


def _source(file: TaskSource, name: str) -> Task:
    """The built-in task whose items a file asks in a template of its own."""
    if name not in TASKS:
        file.refuse(("samples_of",), f"no built-in task {name}", one_of(name, catalog.builtin_tasks()))
    path = resource(TASKS[name].file)
    data = TaskSource(path).data
    if isinstance(data, dict) and "samples_of" in data:
        file.refuse(("samples_of",), f"{name} has no samples of its own", f"{data['samples_of']}, whose they are")
    return read_task(path)


def _head(file: TaskSource) -> _Head:
    if not isinstance(file.data, dict):
        file.refuse((), "is not a mapping", f"the keys {', '.join(_Head.model_fields)}")
    try:
        head = _Head.model_validate(file.data)
    except ValidationError as error:
        # Unknown keys first: a misspelt one is the reason why another is missing.
        _refuse_head(file, min(error.errors(), key=lambda one: one["type"] not in _UNKNOWN))
    if bool(head.samples_of) == ("samples" in file.data):
        at = ("samples_of",) if head.samples_of else ("samples",)
        problem = "stands beside samples" if head.samples_of else "missing or empty"
        file.refuse(at, problem, "a list of items, or samples_of: a built-in task")
    if head.accuracy_metric and not _is_chosen(head):
        file.refuse(("accuracy_metric",), "the task is not a classification", "no such key")
    if head.accuracy_metric not in ("", *ACCURACIES):
        known = one_of(head.accuracy_metric, ACCURACIES)
        file.refuse(("accuracy_metric",), f"unknown metric {head.accuracy_metric!r}", known)
    return head


def _is_chosen(head: _Head) -> bool:
    """Whether its answers are choices, which have an accuracy."""
    return any("{A}" in metric for metric in metrics_of(TASK_TYPES[head.task_type]))


def _refuse_head(file: TaskSource, found: ErrorDetails) -> NoReturn:
    kind, at, keys = found["type"], found["loc"], _Head.model_fields
    if kind in _UNKNOWN:
        file.refuse(at, "unknown key", one_of(str(at[0]), keys))
    if kind == "mistake":
        file.refuse(at, found["ctx"]["problem"], found["ctx"]["expected"])
    file.refuse(at, *_LISTED.get(str(at[0]), ("missing" if kind == "missing" else "is not text", "text")))


def _item(file: TaskSource, index: int) -> Item:
    sample = file.data["samples"][index]
    if not isinstance(sample, dict):
        file.refuse(("samples", index), "is not a mapping", "an id and fields")
    if not isinstance(sample.get("id"), str) or not sample["id"].strip():
        file.refuse(("samples", index, "id"), "missing or not text", "an id in quotes")
    for key, value in sample.items():
        at = ("samples", index, key)
        if not isinstance(key, str) or not key.isidentifier():
            file.refuse(at, "is not a field name", "letters, digits and '_'")
        if key in _LISTS and not _is_answers(value):
            file.refuse(at, "is not a list of texts", "answers in quotes")
        if key not in _LISTS and not isinstance(value, str | int | float):
            file.refuse(at, f"a {type(value).__name__} is not allowed", "text, or a number")
    if not _is_text(sample.get("reference", "text")):
        file.refuse(
            ("samples", index, "reference"), "empty, or not text", "text; quotes keep yes, no and 12 as they are"
        )
    return Item(sample["id"], {key: value for key, value in sample.items() if key != "id"})


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_answers(value: object) -> bool:
    """A list of texts, at least one; published files have blank ones among them."""
    return isinstance(value, list) and any(map(_is_text, value)) and all(isinstance(text, str) for text in value)


def _check_items(file: TaskSource, task: Task) -> None:
    met: set[str] = set()
    needed = task.type.fields
    check = None if task.type.check is None else load(task.type.check)
    clustered = (file.data["cluster_field"],) if "cluster_field" in file.data else ()
    for index, item in enumerate(task.items):
        at = ("samples", index)
        if item.id in met:
            file.refuse((*at, "id"), f"{item.id!r} is given twice", "each id once")
        met.add(item.id)
        for field in (*needed, *clustered):
            if field not in item.fields:
                file.refuse((*at, field), "missing", f"a field of every {task.task_type} item")
        wrong = None if check is None else check(task, item)
        if wrong is not None:
            file.refuse((*at, *([wrong.field] if wrong.field else [])), wrong.problem, wrong.expected)


def check_choice(task: Task, item: Item) -> ItemProblem | None:
    """The choices of a classification's item, and whether its reference is one that an answer could match."""
    letters = "".join(catalog.choice_texts(item))
    if letters and ("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(letters)] != letters or len(letters) < 2):
        return ItemProblem("", f"choices {', '.join(letters)}", "A, B and so on without a gap")
    choices = catalog.choice_continuations(task, item)
    if len(set(choices)) != len(choices):
        return ItemProblem("categories", "a label is given twice", "each label once")
    if choices and item.reference not in choices:
        return ItemProblem("reference", f"{item.reference!r} is not a choice", f"one of {', '.join(choices)}")
    if catalog.apply_filters(task, str(item.reference)) != item.reference:
        return ItemProblem("reference", f"{item.reference!r} cannot match after the filters", "what the filters leave")
    return None


def check_bias(_task: Task, item: Item) -> ItemProblem | None:
    """The answers of an ambiguous question: the reference and the stereotype are among them."""
    answers = [item.fields[field] for field in _ANSWERS]
    if item.reference not in answers:
        return ItemProblem("reference", "is not a choice", f"one of {', '.join(map(repr, answers))}")
    right = answers.index(item.reference)
    if item.fields.get("correct_label", right) != right:
        return ItemProblem("correct_label", "is not the place of the reference", str(right))
    # Published files have items whose stereotype is not one of the answers: the place may be the reference's.
    stereotyped = item.fields["stereotyped_idx"]
    if isinstance(stereotyped, bool) or stereotyped not in range(3):
        return ItemProblem("stereotyped_idx", f"{stereotyped!r} is not a choice", "0, 1 or 2")
    return None


def _check_template(file: TaskSource, task: Task) -> None:
    names = template_fields(task.prompt_template, where=f"{file.path}: prompt_template")
    for index, item in enumerate(task.items):
        missing = sorted(names - {"id", *item.fields})
        try:
            if index == 0 or missing:
                # A missing field is no mistake where the template asks `is defined` first: rendering tells.
                catalog.render_prompt(task, item)
        except TaskError as error:
            if not missing:
                raise
            file.refuse(("samples", index), f"no field {missing[0]}: {error.problem}", "every field of prompt_template")
