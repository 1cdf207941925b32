"""Read a task file: strict, every mistake with its line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn, Protocol

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from quantverdict.errors import TaskError
from quantverdict.records import Turn
from quantverdict.registry import ACCURACIES, TASK_TYPES, TASKS, metrics_of
from quantverdict.registry.listing import load, one_of, resource
from quantverdict.tasks import catalog
from quantverdict.tasks.catalog import FILTERS, Item, Task
from quantverdict.tasks.chat import template_fields
from quantverdict.tasks.conversation import TurnError, asked_and_reference, read_turns
from quantverdict.tasks.data import (
    DataKeys,
    DataRecord,
    DataRow,
    DataSource,
    FewShot,
    hash_of,
    read_rows,
    samples_of_rows,
)
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
_FewShotForm = _checked(lambda form: form in ("text", "turns"), "unknown form {!r}", lambda _: "text or turns")
_Graded = _checked(lambda which: which in ("last", "all"), "unknown choice {!r}", lambda _: "last or all")
_Examples = _checked(lambda n: type(n) is int and 0 <= n <= 100, "not supported", lambda _: "a number from 0 to 100")


class TaskHead(BaseModel):
    """The keys of a task file; its samples are rows of data, which are looked at one by one."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: Annotated[_Text, _Named]
    """Letters, digits and `._+-`; in every table."""
    task_type: Annotated[_Text, _Kind]
    """How answers are graded."""
    prompt_template: _Text = ""
    """Jinja over the fields of an item: the user's turn; no file, network or Python is within its reach."""
    messages: Any = None
    """In place of `prompt_template`, a conversation: turns, each a `role` and a `content` that is Jinja; or the name of
    the field (of the column of `data`) that holds the turns of an item. Where two turns of the user follow each other
    the model answers in between; a last turn of the assistant is the reference."""
    system_prompt: str | None = None
    """Stands before every prompt, in place of the study's; empty for none. A conversation keeps one of its own."""
    graded: Annotated[object, _Graded] = "last"
    """Of a conversation: the model's `last` turn, or `all` its turns together."""
    description: _Text = ""
    """One line."""
    metric_group: _Text = ""
    """Read for files of other tools."""
    output_type: Annotated[object, _Generated] = "generate"
    """Read for files of other tools: `generate` alone."""
    num_fewshot: Annotated[object, _Examples] = 0
    """Beside `data`: so many worked examples stand before every prompt, each a prompt with its reference."""
    fewshot_as: Annotated[object, _FewShotForm] = "text"
    """How worked examples stand before a prompt: as `text` in the user's turn, or as `turns` of user and assistant."""
    filters: Annotated[list[Annotated[Any, _Filter]], BeforeValidator(lambda given: given or [])] = []
    """What is done to an answer before it is compared, in order."""
    samples: Annotated[list[Any], Field(min_length=1)] = []
    """The items: each an `id` in quotes and fields."""
    samples_of: _Text = ""
    """A built-in task, whose items are asked in this file's template."""
    accuracy_metric: _Text = ""
    """Of a classification."""
    cluster_field: _Text = ""
    """The field that says which items are forms of one thing."""
    data: Any = None
    fields: Any = None
    id: Any = None
    choices: Any = None
    answer: Any = None
    filter: Any = None
    sample: Any = None
    stratify: Any = None
    seed: Any = None
    fewshot: Any = None


_DATA_KEYS = tuple(DataKeys.model_fields)
_UNKNOWN = ("extra_forbidden", "invalid_key")
_LISTED = {"samples": ("missing or empty", "a list of items"), "filters": ("is not a list", "a list of 'type: NAME'")}
_LISTS = ("correct_answers", "incorrect_answers")
_ANSWERS = ("answer_choice_0", "answer_choice_1", "answer_choice_2")


class Refusal(Protocol):
    """Raises for what is at a location of a task file, or of the row that stands for it."""

    def __call__(self, location: tuple[str | int, ...], problem: str, expected: str | None = None) -> NoReturn: ...


class ItemProblem(NamedTuple):
    """What a task type's `check` finds in an item: the field (empty for the item), what is wrong, what is expected."""

    field: str
    problem: str
    expected: str


def read_task(path: Path, place: tuple[DataSource, Path] | None = None) -> Task:
    """A task from its file.

    Args:
        place: where its rows are, in place of what its `data` says, and the folder where that starts.

    Raises:
        TaskError: the first mistake, with file, line, field and what was expected.
    """
    file = TaskSource(path)
    head = _head(file)
    source = _source(file, head.samples_of) if head.samples_of else None
    keys = _data_keys(file) if "data" in file.data else None
    if keys is not None and place is not None:
        keys = keys.model_copy(update={"data": place[0]})
    refuse: Refusal = file.refuse
    record: DataRecord | None = None
    examples: tuple[Item, ...] = ()
    if keys is not None:
        folder = path.parent if place is None else place[1]
        items, examples, record, refuse = _items_of_data(file, head, keys, folder)
    elif source is not None:
        items = source.items
    else:
        field = _messages_field(head)
        items = tuple(_item(file.data["samples"][index], index, refuse, field) for index in range(len(head.samples)))
    fallback = catalog.BEHAVIOR if any(catalog.BEHAVIOR in item.fields for item in items) else None
    accuracy = head.accuracy_metric or catalog.ACCURACY_OF.get(head.name, "choice_accuracy")
    task = Task(
        name=head.name,
        task_type=head.task_type,
        description=" ".join(head.description.split()),
        prompt_template=head.prompt_template,
        filters=tuple(entry["type"] for entry in head.filters),
        items=items,
        sha256=_hash(file, source, record),
        accuracy_metric=accuracy if _is_chosen(head) else None,
        cluster_field=head.cluster_field
        or catalog.CLUSTER_OF.get(head.name, fallback if source is None else source.cluster_field),
        source=str(path),
        data=record,
        system_prompt=head.system_prompt,
        messages=_message_templates(file, head),
        messages_field=_messages_field(head),
        graded=str(head.graded),
    )
    _check_items(file, task, refuse)
    _check_template(file, task, refuse)
    return task if keys is None else _drawn(task, keys, examples, in_turns=head.fewshot_as == "turns")


def _messages_field(head: TaskHead) -> str:
    return head.messages if isinstance(head.messages, str) else ""


def _message_templates(file: TaskSource, head: TaskHead) -> tuple[Turn, ...]:
    """The turns of a task file."""
    if head.messages is None or isinstance(head.messages, str):
        return ()
    try:
        turns = read_turns(head.messages)
    except TurnError as error:
        file.refuse(("messages", *([] if error.place is None else [error.place])), error.problem, error.expected)
    if turns[-1].role != "user":
        file.refuse(("messages", len(turns) - 1), "the last turn is not the user's", "a turn that the model answers")
    return turns


def _hash(file: TaskSource, source: Task | None, record: DataRecord | None) -> str:
    """Of the file, with that of the items where they stand elsewhere."""
    more = source.sha256 if source is not None else record.sha256 if record is not None else ""
    return hashlib.sha256((file.sha256 + more).encode()).hexdigest() if more else file.sha256


# Items from a data set


def _data_keys(file: TaskSource) -> DataKeys:
    given = {key: value for key, value in file.data.items() if key in _DATA_KEYS}
    try:
        return DataKeys.model_validate(given)
    except ValidationError as error:
        first = min(error.errors(), key=lambda one: one["type"] not in _UNKNOWN)
        at = tuple(first["loc"])
        if first["type"] == "extra_forbidden":
            kind = FewShot if at[0] == "fewshot" else DataSource
            file.refuse(at, "unknown key", one_of(str(at[-1]), kind.model_fields))
        if first["type"] == "value_error":
            file.refuse(at, "does not say where the rows are", str(first["ctx"]["error"]))
        file.refuse(at, f"is {first['input']!r:.60}", first["msg"].replace("Input should be ", "").lower())


def _items_of_data(
    file: TaskSource, head: TaskHead, keys: DataKeys, folder: Path
) -> tuple[tuple[Item, ...], tuple[Item, ...], DataRecord, Refusal]:
    """The items of the rows, those that are worked examples, what was used, and what refuses an item by its row."""
    where = str(file.path)
    rows, revision = read_rows(keys.data, folder)
    field = _messages_field(head)
    found = samples_of_rows(rows, keys, where, field)
    every = _refusal([row for row, _ in found])
    own = [(row, _item(sample, index, every, field)) for index, (row, sample) in enumerate(found)]
    examples: tuple[Item, ...] = ()
    wanted = int(head.num_fewshot)  # type: ignore[call-overload]
    if wanted:
        if keys.fewshot is None:
            order = sorted(own, key=lambda one: _order(keys.seed, head.name, one[1].id))
            taken = {item.id for _, item in order[:wanted]}
            examples = tuple(item for _, item in order[:wanted])
            own = [(row, item) for row, item in own if item.id not in taken]
        else:
            examples = _examples(file, head, keys, wanted, [item for _, item in own])
        if len(examples) < wanted or not own:
            file.refuse(("num_fewshot",), f"{wanted} examples of {len(examples)} rows", "fewer, or more rows")
    items = tuple(item for _, item in own)
    used = [(item.id, item.fields) for item in (*examples, *items)]
    record = DataRecord(str(keys.data), revision, hash_of(used), len(items))
    return items, examples, record, _refusal([row for row, _ in own])


def _examples(file: TaskSource, head: TaskHead, keys: DataKeys, wanted: int, asked: Sequence[Item]) -> tuple[Item, ...]:
    """Rows of another place; what is asked is no example, should it stand there too."""
    assert keys.fewshot is not None
    given = {name: value for name, value in keys.fewshot.model_dump().items() if value is not None}
    place = keys.data.model_dump() | ({"hub": None, "revision": "main", "config": None, "split": None, "files": None,
                                       "package": None} if "path" in given else {}) | given  # fmt: skip
    try:
        source = DataSource.model_validate(place)
    except ValidationError as error:
        file.refuse(("fewshot",), "does not say where the examples are", error.errors()[0]["msg"])
    rows, _ = read_rows(source, file.path.parent)
    found = samples_of_rows(rows, keys, str(file.path))
    refuse = _refusal([row for row, _ in found])
    same = {hash_of([("", item.fields)]) for item in asked}
    items = [_item(sample, index, refuse) for index, (_, sample) in enumerate(found)]
    items = [item for item in items if hash_of([("", item.fields)]) not in same]
    return tuple(sorted(items, key=lambda item: _order(keys.seed, head.name, item.id))[:wanted])


def _order(seed: int, task: str, name: str) -> str:
    return hashlib.sha256(f"{seed}\n{task}\nfewshot\n{name}".encode()).hexdigest()


def _refusal(rows: Sequence[DataRow]) -> Refusal:
    """Raises for an item by the file and row that it stands in."""

    def refuse(location: tuple[str | int, ...], problem: str, expected: str | None = None) -> NoReturn:
        index = location[1] if len(location) > 1 and isinstance(location[1], int) else 0
        field = ".".join(str(part) for part in location[2:])
        raise rows[index].error(problem, field or None, expected)

    return refuse


def _drawn(task: Task, keys: DataKeys, examples: Sequence[Item], *, in_turns: bool) -> Task:
    """The task with its sample, and its examples before every prompt: each is a prompt with its reference."""
    if keys.sample is not None:
        task = catalog.select_items(task, keys.sample, keys.stratify, keys.seed)
        assert task.data is not None
        used = [(item.id, item.fields) for item in (*examples, *task.items)]
        task = replace(task, data=replace(task.data, sha256=hash_of(used), items=len(task.items)))
    texts, turns = [], list[Turn]()
    for item in examples:
        if item.reference is None:
            raise TaskError(f"{item.id}: an example has no reference", file=task.source, field="num_fewshot",
                            expected="a field reference: what the example answers")  # fmt: skip
        prompt = catalog.render_prompt(task, item)
        texts.append(f"{prompt} {item.reference}\n\n")
        turns += [Turn("user", prompt), Turn("assistant", item.reference)]
    return replace(task, example_turns=tuple(turns)) if in_turns else replace(task, examples="".join(texts))


def _source(file: TaskSource, name: str) -> Task:
    """The built-in task whose items a file asks in a template of its own."""
    if name not in TASKS:
        file.refuse(("samples_of",), f"no built-in task {name}", one_of(name, catalog.builtin_tasks()))
    path = resource(TASKS[name].file)
    data = TaskSource(path).data
    if isinstance(data, dict) and "samples_of" in data:
        file.refuse(("samples_of",), f"{name} has no samples of its own", f"{data['samples_of']}, whose they are")
    return read_task(path)


def _head(file: TaskSource) -> TaskHead:
    if not isinstance(file.data, dict):
        file.refuse((), "is not a mapping", f"the keys {', '.join(TaskHead.model_fields)}")
    try:
        head = TaskHead.model_validate(file.data)
    except ValidationError as error:
        # Unknown keys first: a misspelt one is the reason why another is missing.
        _refuse_head(file, min(error.errors(), key=lambda one: one["type"] not in _UNKNOWN))
    _check_places(file, head)
    if head.accuracy_metric and not _is_chosen(head):
        file.refuse(("accuracy_metric",), "the task is not a classification", "no such key")
    if head.accuracy_metric not in ("", *ACCURACIES):
        known = one_of(head.accuracy_metric, ACCURACIES)
        file.refuse(("accuracy_metric",), f"unknown metric {head.accuracy_metric!r}", known)
    return head


def _check_messages(file: TaskSource, head: TaskHead) -> None:
    """A prompt or a conversation, and what is said of conversations beside one."""
    if bool(head.prompt_template) == ("messages" in file.data):
        there = "stands beside prompt_template" if head.prompt_template else "missing"
        at = "messages" if head.prompt_template else "prompt_template"
        file.refuse((at,), there, "prompt_template, text; or messages: the turns of a conversation")
    if "messages" in file.data and not isinstance(head.messages, str | list):
        file.refuse(("messages",), f"is {head.messages!r:.40}", "a list of turns, or the name of a field")
    if head.graded != "last" and "messages" not in file.data:
        file.refuse(("graded",), "stands without messages", "messages: a conversation of several turns")
    if head.num_fewshot and "messages" in file.data:
        file.refuse(("num_fewshot",), "stands beside messages", "examples among the turns of messages")


def _check_places(file: TaskSource, head: TaskHead) -> None:
    """The items stand in one place, and what is said of rows stands beside `data`."""
    _check_messages(file, head)
    places = {"samples_of": bool(head.samples_of), "data": "data" in file.data, "samples": "samples" in file.data}
    named = [key for key, there in places.items() if there]
    if len(named) != 1:
        at, problem = (named[0], f"stands beside {named[1]}") if named else ("samples", "missing or empty")
        expected = "a list of items, or samples_of: a built-in task, or data: where the rows are"
        file.refuse((at,), problem, expected)
    if places["data"]:
        return
    for key in _DATA_KEYS:
        if key in file.data:
            file.refuse((key,), "stands without data", "data: where the rows are")
    if head.num_fewshot:
        file.refuse(("num_fewshot",), "not supported", "0 without data; examples are written into prompt_template")


def _is_chosen(head: TaskHead) -> bool:
    """Whether its answers are choices, which have an accuracy."""
    return any("{A}" in metric for metric in metrics_of(TASK_TYPES[head.task_type]))


def _refuse_head(file: TaskSource, found: ErrorDetails) -> NoReturn:
    kind, at, keys = found["type"], found["loc"], TaskHead.model_fields
    if kind in _UNKNOWN:
        file.refuse(at, "unknown key", one_of(str(at[0]), keys))
    if kind == "mistake":
        file.refuse(at, found["ctx"]["problem"], found["ctx"]["expected"])
    file.refuse(at, *_LISTED.get(str(at[0]), ("missing" if kind == "missing" else "is not text", "text")))


def _item(sample: Any, index: int, refuse: Refusal, messages: str = "") -> Item:  # noqa: ANN401 - whatever stands there
    if not isinstance(sample, dict):
        refuse(("samples", index), "is not a mapping", "an id and fields")
    if not isinstance(sample.get("id"), str) or not sample["id"].strip():
        refuse(("samples", index, "id"), "missing or not text", "an id in quotes")
    if str(sample.get("stereotyped_idx")) in ("0", "1", "2"):  # tables and expressions give numbers as text
        sample = {**sample, "stereotyped_idx": int(sample["stereotyped_idx"])}
    for key, value in sample.items():
        if key != messages:
            _check_field(key, value, ("samples", index, key), refuse)
    if messages:
        sample = _with_turns(sample, index, refuse, messages)
    if not _is_text(sample.get("reference", "text")):
        refuse(("samples", index, "reference"), "empty, or not text", "text; quotes keep yes, no and 12 as they are")
    return Item(sample["id"], {key: value for key, value in sample.items() if key != "id"})


def _check_field(key: Any, value: object, at: tuple[str | int, ...], refuse: Refusal) -> None:  # noqa: ANN401
    if not isinstance(key, str) or not key.isidentifier():
        refuse(at, "is not a field name", "letters, digits and '_'")
    if key in _LISTS and not _is_answers(value):
        refuse(at, "is not a list of texts", "answers in quotes")
    listed = key in _LISTS or (key == "choices" and _is_answers(value))
    if not listed and not isinstance(value, str | int | float):
        refuse(at, f"a {type(value).__name__} is not allowed", "text, or a number")


def _with_turns(sample: dict[str, Any], index: int, refuse: Refusal, field: str) -> dict[str, Any]:
    """An item whose conversation was looked at; where that ends with an answer, it is the reference."""
    if field not in sample:
        refuse(("samples", index, field), "missing", "the turns of the conversation")
    try:
        asked, said = asked_and_reference(read_turns(sample[field]))
    except TurnError as error:
        refuse(
            ("samples", index, field, *([] if error.place is None else [error.place])), error.problem, error.expected
        )
    if not asked or asked[-1].role != "user":
        refuse(("samples", index, field), "the last turn is not the user's", "a turn that the model answers")
    turns = [{"role": turn.role, "content": turn.content} for turn in asked]
    found = {**sample, field: turns}
    return found if said is None else {"reference": said, **found}


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_answers(value: object) -> bool:
    """A list of texts, at least one; published files have blank ones among them."""
    return isinstance(value, list) and any(map(_is_text, value)) and all(isinstance(text, str) for text in value)


def _check_items(file: TaskSource, task: Task, refuse: Refusal) -> None:
    met: set[str] = set()
    needed = task.type.fields
    check = None if task.type.check is None else load(task.type.check)
    clustered = (file.data["cluster_field"],) if "cluster_field" in file.data else ()
    for index, item in enumerate(task.items):
        at = ("samples", index)
        if item.id in met:
            refuse((*at, "id"), f"{item.id!r} is given twice", "each id once")
        met.add(item.id)
        for field in (*needed, *clustered):
            if field not in item.fields:
                refuse((*at, field), "missing", f"a field of every {task.task_type} item")
        wrong = None if check is None else check(task, item)
        if wrong is not None:
            refuse((*at, *([wrong.field] if wrong.field else [])), wrong.problem, wrong.expected)


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


def _check_template(file: TaskSource, task: Task, refuse: Refusal) -> None:
    if task.messages_field:
        return
    templates = [turn.content for turn in task.messages] or [task.prompt_template]
    key = "messages" if task.messages else "prompt_template"
    names = frozenset().union(*(template_fields(text, where=f"{file.path}: {key}") for text in templates))
    for index, item in enumerate(task.items):
        missing = sorted(names - {"id", *item.fields})
        try:
            if index == 0 or missing:
                # A missing field is no mistake where the template asks `is defined` first: rendering tells.
                catalog.conversation(task, item)
                catalog.render_prompt(task, item)
        except TaskError as error:
            if not missing:
                raise
            refuse(("samples", index), f"no field {missing[0]}: {error.problem}", f"every field of {key}")
