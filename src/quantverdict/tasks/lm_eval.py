"""Tasks of lm-evaluation-harness as they are: their YAML becomes a task, with the prompts and targets of that package.

`{lm_eval: NAME}` names one of the ten that are built in, one of the installed package, or a YAML file. Templates run in
our sandbox. Its Python functions (`!function`) run only where the package is installed; what cannot be carried over is
refused by name.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ValidationError

from quantverdict.errors import TaskError, one_of
from quantverdict.tasks.catalog import Item, Task
from quantverdict.tasks.chat import render_template
from quantverdict.tasks.data import DataRecord, DataSource, hash_of, read_rows

BUILT_IN = Path(__file__).parent / "benchmarks" / "lm_eval.yaml"
FEWSHOT_SEED = 1234
"""Of the harness, for its worked examples."""
COMPLETION_TOKENS = 8
"""Generated beside the log-probabilities of choices, by which alone such a task is graded."""
_MOST = 2_000_000
"""Bytes of a YAML file."""
_DEEP = 10
_MMLU = "mmlu"
"""Of the built-in tasks, the one that stands for 57."""
_READ = frozenset({
    "task", "task_alias", "tag", "group", "group_alias", "include", "dataset_path", "dataset_name", "training_split",
    "validation_split", "test_split", "fewshot_split", "fewshot_config", "output_type", "doc_to_text", "doc_to_target",
    "doc_to_choice", "process_docs", "description", "target_delimiter", "fewshot_delimiter", "num_fewshot",
    "generation_kwargs", "filter_list", "metric_list", "metadata", "should_decontaminate",
    "doc_to_decontamination_query", "aggregate_metric_list", "repeats", "data_files",
})  # fmt: skip
_FEWSHOT = frozenset({"sampler", "split"})
_METRICS = {"multiple_choice": ("acc", "acc_norm"), "generate_until": ("exact_match",)}
_FILTERS = ("regex", "take_first", "remove_whitespace")

Doc = Mapping[str, Any]


class _Function(str):
    """The name of a Python function in a YAML file."""

    __slots__ = ()


class _Loader(yaml.SafeLoader):
    """Plain YAML, and the names of functions."""


_Loader.add_constructor("!function", lambda _, node: _Function(node.value))


@dataclass(frozen=True, slots=True)
class HarnessUse:
    """How a study uses a task of the harness.

    Attributes:
        name: of the task, or the path of its YAML file.
        data, fewshot: where its rows are, and those of its worked examples; None is the place that it names.
        num_fewshot: worked examples; None is as many as it says.
        filter: which of its filters reads answers; empty for the first.
    """

    name: str
    data: DataSource | None = None
    fewshot: DataSource | None = None
    num_fewshot: int | None = None
    filter: str = ""


def lm_eval_task(use: HarnessUse, folder: Path) -> Task:
    """A task of the harness.

    Args:
        folder: where relative paths start.

    Raises:
        TaskError: no such task, something of it that cannot be carried over, or no data.
    """
    name, config, place = find_config(use.name, folder)
    members = config.get("task")
    if isinstance(members, list):
        return _group(use, name, members, place, folder)
    return _Harness(name, config, place, use, folder).task()


def _group(use: HarnessUse, name: str, members: Sequence[object], place: Path, folder: Path) -> Task:
    """The tasks of a group as one, whose items say in `subtask` whose they are."""
    tasks: list[Task] = []
    for member in members:
        named = member if isinstance(member, str) else member.get("task") if isinstance(member, Mapping) else None
        if not isinstance(named, str):
            raise TaskError(f"{name}: a member of the group is {member!r:.40}", file=place, expected="names of tasks")
        tasks.append(lm_eval_task(replace(use, name=named), folder))
    if len({(task.task_type, task.delimiter) for task in tasks}) > 1:
        kinds = ", ".join(f"{task.name} ({task.task_type})" for task in tasks)
        raise TaskError(f"{name}: its tasks are graded in different ways: {kinds}", file=place, expected="one by one")
    items = tuple(
        Item(f"{task.name}/{item.id}", {**item.fields, "subtask": task.name}) for task in tasks for item in task.items
    )
    sha256 = hashlib.sha256("".join(task.sha256 for task in tasks).encode()).hexdigest()
    records = [task.data for task in tasks if task.data is not None]
    revision = ", ".join(dict.fromkeys(one.revision for one in records if one.revision))
    data = DataRecord(
        f"lm_eval:{name}", revision, hash_of([(one.id, one.fields) for one in items]), len(items)
    )  # fmt: skip
    return replace(tasks[0], name=name, items=items, sha256=sha256, source=f"lm_eval:{name}", data=data)


# Where a task is written down


def find_config(name: str, folder: Path) -> tuple[str, dict[str, Any], Path]:
    """The keys of a task, what it includes among them, and the file they stand in.

    Raises:
        TaskError: no such task.
    """
    if name.endswith((".yaml", ".yml")):
        path = folder / name
        config = _read(path)
        own = config.get("task")
        own = config.get("group") if isinstance(own, list) else own
        return str(own or path.stem), config, path
    known = {key: value for key, value in _read(BUILT_IN).items() if key != _MMLU}
    if name == _MMLU:
        return name, {"task": [f"mmlu_{subject}" for subject in MMLU_SUBJECTS]}, BUILT_IN
    if name in known:
        config = known[name]
        if "include" in config:
            config = {**known[config["include"]], **{key: value for key, value in config.items() if key != "include"}}
        return name, config, BUILT_IN
    if name.startswith("mmlu_") and (subject := name.removeprefix("mmlu_")) in MMLU_SUBJECTS:
        told = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
        return name, {**_read(BUILT_IN)[_MMLU], "dataset_name": subject, "description": told}, BUILT_IN
    paths = _installed()
    if name in paths:
        return name, _read(paths[name]), paths[name]
    expected = (
        one_of(name, [*known, *paths])
        if paths
        else f"{one_of(name, known)}; or a path of its YAML, or lm_eval installed"
    )
    raise TaskError(f"no task {name} of lm-evaluation-harness", field="lm_eval", expected=expected)


def _read(path: Path, depth: int = 0) -> dict[str, Any]:
    try:
        content = path.read_bytes()
        if len(content) > _MOST:
            raise TaskError(f"is {len(content)} bytes long", file=path, expected=f"at most {_MOST}")
        found = yaml.load(content.decode(), _Loader)  # noqa: S506 - a safe loader, with the names of functions
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        told = " ".join(str(error).split())[:160]
        raise TaskError(
            f"cannot be read ({told})", file=path, expected="a YAML file of lm-evaluation-harness"
        ) from error
    if not isinstance(found, dict):
        raise TaskError("is not a mapping", file=path, expected="the keys of a task of lm-evaluation-harness")
    include = None if path == BUILT_IN else found.pop("include", None)
    if include is None:
        return found
    if depth >= _DEEP:
        raise TaskError("includes itself", file=path, field="include", expected="a file that ends somewhere")
    base = _read(path.parent / str(include), depth + 1)
    return {**base, **found}


@cache
def _installed() -> dict[str, Path]:
    """The tasks of the installed package, by name; found without importing it."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        return {}
    found: dict[str, Path] = {}
    for path in sorted((Path(spec.submodule_search_locations[0]) / "tasks").rglob("*.yaml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        named = re.search(r"^[\"']?(?:task|group)[\"']?:[ \t]*[\"']?([\w.+-]+)[\"']?[ \t]*$", text, re.MULTILINE)
        if named and (named[1] not in found or "group" in named[0]):
            found[named[1]] = path
    return found


# What it asks


class _Harness:
    """One task of the harness, while it is carried over."""

    def __init__(self, name: str, config: dict[str, Any], place: Path, use: HarnessUse, folder: Path) -> None:
        self.name, self.config, self.place, self.use, self.folder = name, config, place, use, folder
        self.kind = str(config.get("output_type", "generate_until"))
        self._check()
        self.delimiter = str(config.get("target_delimiter", " "))
        self.columns: frozenset[str] = frozenset()

    def task(self) -> Task:
        docs, record = self._docs(self._split(), self.use.data)
        self.columns = frozenset(docs[0])
        wanted = self.use.num_fewshot if self.use.num_fewshot is not None else int(self.config.get("num_fewshot") or 0)
        examples = self._examples(docs, wanted)
        items, same = [], 0
        for number, doc in enumerate(docs):
            fields = self._fields(doc, next(examples))
            if fields is None:
                same += 1
                continue
            plain = {key: value for key, value in doc.items() if isinstance(value, str | int | float)}
            own = {key: value for key, value in plain.items() if key.isidentifier() and key not in fields}
            items.append(Item(str(number), {**own, **fields}))
        left_out = f"; {same} left out, whose choices are not all different" if same else ""
        used = hash_of([(item.id, item.fields) for item in items])
        written = json.dumps(self.config, sort_keys=True, default=str)
        chosen = self.kind == "multiple_choice"
        limit = self.config.get("generation_kwargs", {}).get("max_gen_toks")
        return Task(
            name=self.name,
            task_type="completion" if chosen else "exact_match",
            description=f"lm-evaluation-harness, {self._place_name()}, {wanted} examples{left_out}",
            prompt_template="{{ prompt }}",
            filters=(),
            items=tuple(items),
            sha256=hashlib.sha256(f"{written}{used}".encode()).hexdigest(),
            accuracy_metric=None,
            cluster_field=None,
            source=f"lm_eval:{self.name}",
            data=replace(record, sha256=used, items=len(items)),
            delimiter=self.delimiter if chosen and not isinstance(self._text(docs[0]), int) else "",
            max_new_tokens=COMPLETION_TOKENS if chosen else limit if type(limit) is int else None,
        )

    def _refuse(self, problem: str, key: str, expected: str) -> NoReturn:
        raise TaskError(f"{self.name}: {problem}", file=self.place, field=key, expected=expected)

    def _check(self) -> None:
        """Refuse by name what would be asked or graded otherwise than the harness does."""
        if self.kind not in _METRICS:
            self._refuse(f"{self.kind} cannot be carried over", "output_type", " or ".join(_METRICS))
        for key, value in self.config.items():
            if key not in _READ and value not in (None, "", [], {}, False):
                self._refuse(
                    "cannot be carried over", key, "a task without it, or the harness itself and quantverdict import"
                )
        if self.config.get("repeats", 1) not in (1, None):
            self._refuse("several answers to a prompt", "repeats", "1, and decoding.seeds in the study")
        self._check_metrics()
        if self.config.get("doc_to_choice") is None and self.kind == "multiple_choice":
            self._refuse("missing", "doc_to_choice", "the choices of a multiple_choice task")
        for key in ("doc_to_text", "doc_to_target"):
            if self.config.get(key) is None:
                self._refuse("missing", key, "a column or a template")

    def _check_metrics(self) -> None:
        """Refuse metrics and ways of drawing examples that nothing here stands for."""
        for key in self.config.get("fewshot_config") or {}:
            if key not in _FEWSHOT:
                self._refuse("cannot be carried over", f"fewshot_config.{key}", "sampler and split alone")
        named = [one.get("metric") for one in self.config.get("metric_list") or []]
        wrong = next((one for one in named if one not in _METRICS[self.kind]), None)
        if wrong is not None and not set(named) & set(_METRICS[self.kind]):
            self._refuse(f"the metric {wrong} cannot be carried over", "metric_list", " or ".join(_METRICS[self.kind]))

    def _split(self) -> str:
        split = self.config.get("test_split") or self.config.get("validation_split")
        return str(split) if split else self._refuse("names no split", "test_split", "test_split or validation_split")

    def _place_name(self) -> str:
        parts = (self.config.get("dataset_path"), self.config.get("dataset_name"), self._split())
        return "/".join(str(part) for part in parts if part)

    def _docs(self, split: str, given: DataSource | None) -> tuple[list[Doc], DataRecord]:
        source, folder = given, self.folder
        if source is None:
            path = self.config.get("dataset_path")
            if path in (None, "json", "csv", "parquet"):
                self._refuse("names no data set of the hub", "dataset_path", "data: {path: ...} in the study's task")
            try:
                source = DataSource(hub=str(path), config=self.config.get("dataset_name"), split=split)
            except ValidationError as error:
                self._refuse(f"is no place ({error.errors()[0]['msg']})", "dataset_path", "owner/name of a data set")
        rows, revision = read_rows(source, folder)
        docs: list[Doc] = [row.values for row in rows]
        function = self.config.get("process_docs")
        if function is not None:
            docs = self._processed(docs, function)
        return docs, DataRecord(str(source), revision, "", len(docs))

    def _processed(self, docs: Sequence[Doc], function: object) -> list[Doc]:
        made = self._function(function, "process_docs")
        try:
            table = importlib.import_module("datasets").Dataset
        except ImportError:
            self._refuse("needs the package datasets", "process_docs", "pip install datasets")
        return [dict(row) for row in made(table.from_list([dict(doc) for doc in docs]))]

    def _function(self, named: object, key: str) -> Callable[..., Any]:
        """A Python function of the harness: it runs only where the package is installed, which is the user's word."""
        if not isinstance(named, _Function) or importlib.util.find_spec("lm_eval") is None:
            self._refuse(
                f"a Python function ({named}) cannot be carried over", key, "lm_eval installed, whose code it is"
            )
        module, _, function = str(named).rpartition(".")
        path = self.place.parent.joinpath(*module.split(".")).with_suffix(".py")
        spec = importlib.util.spec_from_file_location(f"_lm_eval_{path.stem}", path)
        if spec is None or spec.loader is None or not path.is_file():
            self._refuse(f"no file {path.name} with its function {named}", key, "the file beside its YAML")
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        found: Callable[..., Any] = getattr(loaded, function)
        return found

    def _value(self, key: str, doc: Doc) -> Any:  # noqa: ANN401 - text, number or list
        """What a key of the task says of a row: a column of it, a template, a function, or as it stands."""
        said = self.config[key]
        if isinstance(said, _Function):
            return self._function(said, key)(dict(doc))
        if not isinstance(said, str):
            return list(said.values()) if isinstance(said, dict) else said
        return doc[said] if said in self.columns else self._rendered(said, key, doc)

    def _rendered(self, template: str, key: str, doc: Doc) -> str:
        values = json.loads(json.dumps(dict(doc), default=str))
        return render_template(template, values, where=f"lm_eval:{self.name}: {key}", strict=True, harness=True)

    def _choices(self, doc: Doc) -> list[str] | None:
        if self.config.get("doc_to_choice") is None:
            return None
        found = self._value("doc_to_choice", doc)
        found = _literal(found) if isinstance(found, str) else found
        if not isinstance(found, list) or not found:
            self._refuse(f"{found!r:.40} is no list of choices", "doc_to_choice", "a list of texts")
        return [str(one) for one in found]

    def _target(self, doc: Doc, choices: Sequence[str] | None) -> Any:  # noqa: ANN401 - a place, a text or texts
        found = self._value("doc_to_target", doc)
        if isinstance(found, str) and self.config["doc_to_target"] not in self.columns:
            if found.isdigit() and choices is not None:
                return int(found)
            listed = _literal(found) if found[:1] == "[" and found[-1:] == "]" else None
            return listed if isinstance(listed, list) else found
        return found

    def _text(self, doc: Doc) -> str | int:
        found = self._value("doc_to_text", doc)
        templated = isinstance(found, str) and self.config["doc_to_text"] not in self.columns
        return int(found) if templated and found.isdigit() and self.config.get("doc_to_choice") is not None else found

    def _fields(self, doc: Doc, before: str) -> dict[str, object] | None:
        """What is asked of a row and what is right; None where two of its choices are the same."""
        choices, text = self._choices(doc), self._text(doc)
        target = self._target(doc, choices)
        if self.kind == "generate_until":
            right = [str(one) for one in target] if isinstance(target, list) else [str(target)]
            return {
                "prompt": f"{before}{text}",
                "reference": right[0],
                "correct_answers": right,
                "reading": self._reading(),
            }
        assert choices is not None
        if isinstance(text, int):  # the inputs differ, and what follows them is the same
            return _several_inputs(before, choices, text, f"{self.delimiter}{target}")
        place = target if isinstance(target, int) else choices.index(target) if target in choices else -1
        if not 0 <= place < len(choices):
            self._refuse(f"{target!r:.40} is none of {len(choices)} choices", "doc_to_target", "a place or a choice")
        if len(set(choices)) < len(choices):
            return None
        return {"prompt": f"{before}{text}", "choices": choices, "reference": choices[place]}

    def _reading(self) -> str:
        """How answers are read: the stops, one of the filters, and what the metric takes no account of."""
        how: dict[str, object] = {}
        until = (self.config.get("generation_kwargs") or {}).get("until", ["\n\n"])
        how["until"] = [until] if isinstance(until, str) else [str(one) for one in until]
        filters = self.config.get("filter_list") or []
        names = [str(one.get("name")) for one in filters]
        if self.use.filter and self.use.filter not in names:
            self._refuse(f"no filter {self.use.filter}", "filter", one_of(self.use.filter, names) if names else "none")
        chosen: Doc = next((one for one in filters if self.use.filter in ("", one.get("name"))), {"filter": []})
        for step in chosen["filter"]:
            if step.get("function") not in _FILTERS:
                self._refuse(
                    f"the filter {step.get('function')} cannot be carried over", "filter_list", ", ".join(_FILTERS)
                )
            if step["function"] == "regex":
                how |= {"pattern": str(step["regex_pattern"]), "select": int(step.get("group_select", 0))}
        metrics: list[Doc] = self.config.get("metric_list") or []
        metric: Doc = next((one for one in metrics if one.get("metric") == "exact_match"), {})
        how |= {key: True for key in ("ignore_case", "ignore_punctuation") if metric.get(key)}
        if metric.get("regexes_to_ignore"):
            how["ignore"] = [str(one) for one in metric["regexes_to_ignore"]]
        return json.dumps(how)

    # Worked examples

    def _examples(self, docs: Sequence[Doc], wanted: int) -> Iterator[str]:
        """What stands before each row's prompt: the description and the examples, drawn as the harness draws them."""
        told = self.config.get("description") or ""

        def described(doc: Doc) -> str:
            return self._rendered(str(told), "description", doc) if told else ""

        if not wanted:
            yield from (described(doc) for doc in docs)
            return
        how = self.config.get("fewshot_config") or {}
        split = self.config.get("fewshot_split") or how.get("split") or self.config.get("training_split") \
            or self.config.get("validation_split") or self._split()  # fmt: skip
        same = split == self.config.get("test_split")
        pool = (
            list(docs)
            if self.use.fewshot is None and split == self._split()
            else self._docs(str(split), self.use.fewshot)[0]
        )
        draw, sampler = random.Random(FEWSHOT_SEED), str(how.get("sampler", "default"))  # noqa: S311 - as the harness draws
        if sampler not in ("default", "first_n"):
            self._refuse(f"the sampler {sampler} cannot be carried over", "fewshot_config", "default or first_n")
        if len(pool) < wanted + (same and sampler == "default"):
            self._refuse(f"{wanted} examples of {len(pool)} rows", "num_fewshot", "fewer, or more rows")
        texts: dict[int, str] = {}
        for doc in docs:
            if sampler == "first_n":
                chosen = [at for at, one in enumerate(pool) if not same or one != doc][:wanted]
            else:
                drawn = draw.sample(range(len(pool)), wanted + same)
                chosen = [at for at in drawn if not same or pool[at] != doc][:wanted]
            for at in chosen:
                texts.setdefault(at, self._example(pool[at]))
            yield described(doc) + "".join(texts[at] for at in chosen)

    def _example(self, doc: Doc) -> str:
        choices, text = self._choices(doc), self._text(doc)
        target = self._target(doc, choices)
        if isinstance(text, int):
            assert choices is not None
            text, choices = choices[text], None
        answer = choices[target] if choices and isinstance(target, int) else target
        answer = answer[0] if isinstance(answer, list) else answer
        return f"{text}{self.delimiter}{answer}{self.config.get('fewshot_delimiter', chr(10) * 2)}"


def _literal(text: str) -> Any:  # noqa: ANN401 - whatever is written
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _several_inputs(before: str, inputs: Sequence[str], right: int, rest: str) -> dict[str, object] | None:
    """One prompt of what all inputs begin with, and choices that go on from there.

    The harness compares the log-probability of what follows each input; here what makes the inputs differ counts too.
    """
    at = 0
    while at < min(map(len, inputs)) and len({one[at] for one in inputs}) == 1:
        at += 1
    begin = inputs[0][:at]
    begin = begin[: begin.rfind(" ") + 1].rstrip(" ")
    choices = [f"{one[len(begin) :]}{rest}" for one in inputs]
    if len(set(choices)) < len(choices):
        return None
    return {"prompt": f"{before}{begin}", "choices": choices, "reference": choices[right]}


MMLU_SUBJECTS = (
    "abstract_algebra", "anatomy", "astronomy", "business_ethics", "clinical_knowledge", "college_biology",
    "college_chemistry", "college_computer_science", "college_mathematics", "college_medicine", "college_physics",
    "computer_security", "conceptual_physics", "econometrics", "electrical_engineering", "elementary_mathematics",
    "formal_logic", "global_facts", "high_school_biology", "high_school_chemistry", "high_school_computer_science",
    "high_school_european_history", "high_school_geography", "high_school_government_and_politics",
    "high_school_macroeconomics", "high_school_mathematics", "high_school_microeconomics", "high_school_physics",
    "high_school_psychology", "high_school_statistics", "high_school_us_history", "high_school_world_history",
    "human_aging", "human_sexuality", "international_law", "jurisprudence", "logical_fallacies", "machine_learning",
    "management", "marketing", "medical_genetics", "miscellaneous", "moral_disputes", "moral_scenarios", "nutrition",
    "philosophy", "prehistory", "professional_accounting", "professional_law", "professional_medicine",
    "professional_psychology", "public_relations", "security_studies", "sociology", "us_foreign_policy", "virology",
    "world_religions",
)  # fmt: skip
