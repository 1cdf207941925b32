"""A task file from a table, and what a task file may hold."""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from quantverdict.errors import TaskError
from quantverdict.registry import ACCURACIES, TASK_TYPES
from quantverdict.tasks.catalog import FILTERS, Task
from quantverdict.tasks.conversation import ROLES
from quantverdict.tasks.data import LETTERS, DataKeys, DataRow, DataSource, FewShot, choices_of, read_rows
from quantverdict.tasks.taskfile import TaskHead, read_task
from quantverdict.yaml_file import unread


def new_task(file: Path, out: Path, *, force: bool = False) -> tuple[Path, Task]:
    """Write a task file for the rows of a file, guessed from its columns, and read it.

    Raises:
        TaskError: `out` is there already, or the rows cannot be read.
    """
    if out.exists() and not force:
        raise TaskError("is there already", file=out, expected="--out, another name; or --force")
    text = draft_task(file, out.parent)
    temporary = out.with_name(f".{out.name}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        task = read_task(temporary)
        temporary.replace(out)
    except OSError as error:
        raise TaskError(
            f"cannot be written ({unread(error)})", file=out, expected="a folder that may be written"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return out, replace(task, source=str(out))


def draft_task(path: Path, folder: Path) -> str:
    """A task file in a folder for the rows of a file, guessed from its columns; what is guessed is said beside it.

    Raises:
        TaskError: the file cannot be read.
    """
    rows, _ = read_rows(DataSource(path=str(path.resolve())), path.parent)
    columns = list(dict.fromkeys(column for row in rows[:200] for column in row.values))
    found = {role: next((one for one in columns if one.lower() in names), None) for role, names in _GUESSES.items()}
    listed = [one for one in columns if re.fullmatch(r"(option|choice|answer_choice)_?([a-z]|\d)|[A-D]", one)]
    choices: object = found["choices"] or (listed if len(listed) > 1 else None)
    asked = found["question"] or next((one for one in columns if one not in found.values()), columns[0])
    kind = "classification" if choices and found["answer"] else "qa" if found["answer"] else "creative_writing"
    context = f"{{{{ {_field(found['context'])} }}}}\n\n  " if found["context"] else ""
    lines = [
        f"# Made from the columns of {path.name}: {', '.join(columns)}.",
        f"name: {json.dumps(re.sub(r'[^A-Za-z0-9._+-]+', '_', path.stem).lstrip('._+-') or 'task')}",
        f"task_type: {kind}  # {_WHY[kind]}",
        "prompt_template: |",
        f"  {context}{{{{ {_field(asked)} }}}}",
    ]
    if kind == "classification":
        letters = LETTERS[: _count(rows[0], choices)]
        lines += [
            *(f"  {letter}. {{{{ option_{letter.lower()} }}}}" for letter in letters),
            "  Answer with the letter.",
        ]
    near = path.name if path.resolve().parent == folder.resolve() else str(path.resolve())
    lines += [f"data: {{path: {json.dumps(near)}}}", "fields:"]
    lines += [f"  {_field(one)}: {json.dumps(one)}" for one in dict.fromkeys([asked, found["context"]]) if one]
    if kind == "qa":
        lines.append(f"  reference: {json.dumps(found['answer'])}")
    if kind == "classification":
        lines += [f"choices: {json.dumps(choices)}", f"answer: {json.dumps(found['answer'])}"]
    lines.append(f"id: {json.dumps(found['id'])}" if found["id"] else "# id: a column; else it is a hash of the fields")
    return "\n".join([*lines, f"# {len(rows)} rows; sample: 200 and stratify: FIELD ask fewer of them", ""])


def _count(row: DataRow, choices: object) -> int:
    return len(choices_of(row, DataKeys(data=DataSource(path="x"), choices=choices)))  # type: ignore[arg-type]


def _field(column: str | None) -> str:
    name = re.sub(r"\W+", "_", column or "text").strip("_").lower()
    return name if name.isidentifier() else f"field_{name}"


_GUESSES = {
    "id": ("id", "sample_id", "question_id", "idx"),
    "question": ("question", "prompt", "instruction", "input", "query", "text", "goal", "behavior"),
    "context": ("context", "passage", "article", "document"),
    "choices": ("choices", "options"),
    "answer": ("answer", "reference", "target", "label", "answerkey", "gold", "answer_index", "output", "summary"),
}
_WHY = {
    "classification": "choices and an answer",
    "qa": "an answer, compared by ROUGE-L; a choice needs choices, a refusal safety_refusal",
    "creative_writing": "no column of answers was found",
}


# What a task file may hold


def task_schema() -> dict[str, Any]:
    """The JSON schema of a task file, for editors: every key with what it does."""
    found = DataKeys.model_json_schema()
    described = {**_described(DataKeys), **_described(TaskHead)}
    keys: dict[str, Any] = {
        **{name: {"type": "string"} for name in TaskHead.model_fields},
        **found["properties"],
        "task_type": {"enum": list(TASK_TYPES)},
        "output_type": {"const": "generate"},
        "num_fewshot": {"type": "integer", "minimum": 0, "maximum": 100},
        "filters": {"type": "array", "items": {"type": "object", "properties": {"type": {"enum": list(FILTERS)}},
                                               "required": ["type"], "additionalProperties": False}},
        "messages": {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {
            "type": "object", "required": ["role", "content"], "properties": {
                "role": {"enum": list(ROLES)}, "content": {"type": "string"}}}}]},
        "graded": {"enum": ["last", "all"]},
        "fewshot_as": {"enum": ["text", "turns"]},
        "samples": {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["id"]}},
        "accuracy_metric": {"enum": list(ACCURACIES)},
    }  # fmt: skip
    properties = {name: {**schema, "description": described.get(name, "")} for name, schema in keys.items()}
    for model in (DataSource, FewShot):
        for name, text in _described(model).items():
            found["$defs"][model.__name__]["properties"][name]["description"] = text
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A task file of quantverdict",
        "type": "object",
        "properties": properties,
        "required": ["name", "task_type"],
        "allOf": [
            {"oneOf": [{"required": [place]} for place in places]}
            for places in (("samples", "samples_of", "data"), ("prompt_template", "messages"))
        ],
        "additionalProperties": False,
        "$defs": found.get("$defs", {}),
    }


def _described(model: type[BaseModel]) -> dict[str, str]:
    """What the string below each field says."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(model)))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found = {}
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found
