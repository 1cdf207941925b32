"""Read a task file: strict, every mistake with its line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantverdict.errors import TaskError, did_you_mean
from quantverdict.metrics import one_of
from quantverdict.tasks import catalog
from quantverdict.tasks.catalog import Item, Task
from quantverdict.tasks.filters import FILTERS
from quantverdict.tasks.sandbox import template_fields
from quantverdict.tasks.source import TaskSource

_TEXTS = {
    "name": True, "task_type": True, "prompt_template": True, "description": False, "metric_group": False,
    "accuracy_metric": False, "cluster_field": False,
}  # fmt: skip
"""Text keys, and whether they are required."""
_KEYS = (
    "name", "task_type", "prompt_template", "description", "metric_group", "output_type", "num_fewshot", "filters",
    "samples", "accuracy_metric", "cluster_field",
)  # fmt: skip
_LISTS = ("correct_answers", "incorrect_answers")
_ANSWERS = ("answer_choice_0", "answer_choice_1", "answer_choice_2")
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "classification": ("reference",),
    "qa": ("reference",),
    "summarization": ("reference",),
    "code_generation": ("reference",),
    "safety_truthfulness": _LISTS,
    "safety_bias": ("reference", *_ANSWERS, "stereotyped_idx"),
}
"""Fields that the grader of a task type reads."""


def read_task(path: Path) -> Task:
    """A task from its file.

    Raises:
        TaskError: the first mistake, with file, line, field and what was expected.
    """
    file = TaskSource(path)
    head = _head(file)
    items = tuple(_item(file, index) for index in range(len(file.data["samples"])))
    fallback = catalog.BEHAVIOR if any(catalog.BEHAVIOR in item.fields for item in items) else None
    task = Task(
        name=head["name"],
        task_type=head["task_type"],
        description=" ".join(head.get("description", "").split()),
        prompt_template=head["prompt_template"],
        filters=_filters(file),
        items=items,
        sha256=file.sha256,
        accuracy_metric=_accuracy_metric(file),
        cluster_field=head.get("cluster_field", catalog.CLUSTER_OF.get(head["name"], fallback)),
        source=str(path),
    )
    _check_items(file, task)
    _check_template(file, task)
    return task


def _head(file: TaskSource) -> dict[str, Any]:
    data = file.data
    if not isinstance(data, dict):
        file.refuse((), "is not a mapping", f"the keys {', '.join(_KEYS)}")
    for key in data:
        if key not in _KEYS:
            file.refuse((key,), "unknown key", f"one of {', '.join(_KEYS)}{did_you_mean(str(key), _KEYS)}")
    for key, required in _TEXTS.items():
        if (required or key in data) and not (isinstance(data.get(key), str) and data[key].strip()):
            file.refuse((key,), "missing" if key not in data else "is not text", "text")
    _check_kind(file)
    if not isinstance(data.get("samples"), list) or not data["samples"]:
        file.refuse(("samples",), "missing or empty", "a list of items")
    return data


def _check_kind(file: TaskSource) -> None:
    data = file.data
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", data["name"]):
        file.refuse(("name",), f"{data['name']!r} is not a name", "letters, digits, '.', '_', '+', '-'")
    if data["task_type"] not in catalog.TASK_TYPES:
        file.refuse(
            ("task_type",), f"unknown type {data['task_type']!r}", one_of(data["task_type"], catalog.TASK_TYPES)
        )
    if data.get("output_type", "generate") != "generate":
        file.refuse(("output_type",), f"unknown type {data['output_type']!r}", "generate")
    if data.get("num_fewshot", 0) != 0:
        file.refuse(("num_fewshot",), "not supported", "0; examples are written into prompt_template")


def _filters(file: TaskSource) -> tuple[str, ...]:
    given = file.data.get("filters") or []
    if not isinstance(given, list):
        file.refuse(("filters",), "is not a list", "a list of 'type: NAME'")
    for index, entry in enumerate(given):
        if not isinstance(entry, dict) or list(entry) != ["type"] or entry["type"] not in [*FILTERS]:
            shown, named = f"unknown filter {entry!r}"[:80], entry.get("type") if isinstance(entry, dict) else entry
            file.refuse(("filters", index), shown, f"type: {one_of(str(named), FILTERS)}")
    return tuple(entry["type"] for entry in given)


def _accuracy_metric(file: TaskSource) -> str | None:
    given, name = file.data.get("accuracy_metric"), file.data["name"]
    if file.data["task_type"] != "classification":
        if given is not None:
            file.refuse(("accuracy_metric",), "the task is not a classification", "no such key")
        return None
    if given is not None and given not in catalog.ACCURACY_METRICS:
        file.refuse(("accuracy_metric",), f"unknown metric {given!r}", one_of(given, catalog.ACCURACY_METRICS))
    return given or catalog.ACCURACY_OF.get(name, "choice_accuracy")


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
    needed = _NEEDED.get(task.task_type, ())
    clustered = (file.data["cluster_field"],) if "cluster_field" in file.data else ()
    for index, item in enumerate(task.items):
        at = ("samples", index)
        if item.id in met:
            file.refuse((*at, "id"), f"{item.id!r} is given twice", "each id once")
        met.add(item.id)
        for field in (*needed, *clustered):
            if field not in item.fields:
                file.refuse((*at, field), "missing", f"a field of every {task.task_type} item")
        if task.task_type == "classification":
            _check_choice(file, task, index)
        if task.task_type == "safety_bias":
            _check_bias(file, item, index)


def _check_choice(file: TaskSource, task: Task, index: int) -> None:
    item, at = task.items[index], ("samples", index)
    letters = "".join(catalog.choice_texts(item))
    if letters and ("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(letters)] != letters or len(letters) < 2):
        file.refuse(at, f"choices {', '.join(letters)}", "A, B and so on without a gap")
    choices = catalog.choice_continuations(task, item)
    if len(set(choices)) != len(choices):
        file.refuse((*at, "categories"), "a label is given twice", "each label once")
    if choices and item.reference not in choices:
        file.refuse((*at, "reference"), f"{item.reference!r} is not a choice", f"one of {', '.join(choices)}")
    if catalog.apply_filters(task, str(item.reference)) != item.reference:
        file.refuse((*at, "reference"), f"{item.reference!r} cannot match after the filters", "what the filters leave")


def _check_bias(file: TaskSource, item: Item, index: int) -> None:
    at = ("samples", index)
    answers = [item.fields[field] for field in _ANSWERS]
    if item.reference not in answers:
        file.refuse((*at, "reference"), "is not a choice", f"one of {', '.join(map(repr, answers))}")
    right = answers.index(item.reference)
    if item.fields.get("correct_label", right) != right:
        file.refuse((*at, "correct_label"), "is not the place of the reference", str(right))
    # Published files have items whose stereotype is not one of the answers: the place may be the reference's.
    stereotyped = item.fields["stereotyped_idx"]
    if isinstance(stereotyped, bool) or stereotyped not in range(3):
        file.refuse((*at, "stereotyped_idx"), f"{stereotyped!r} is not a choice", "0, 1 or 2")


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
