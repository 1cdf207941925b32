"""`sources.yaml`: which files hold scored samples and judgements, what their columns mean, which cells there are."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat, model_validator

from quantverdict.config import Seed, StatisticsConfig
from quantverdict.errors import PluginError, StudyError, did_you_mean
from quantverdict.instruments import clear_rubrics
from quantverdict.policy import Constraints, FrozenModel, Limit, Name, Policy, as_policy
from quantverdict.records import UNCLEAR, CellId, Metric, Row
from quantverdict.registry import IMPORTERS, METRICS, adopt, judge_labels
from quantverdict.registry.listing import OF_STUDY, NameCheck, known_among, one_of
from quantverdict.yaml_file import Exact, load_yaml

SampleMetric = Annotated[str, AfterValidator(NameCheck(lambda: METRICS))]
Column = Annotated[str, Field(min_length=1)]
"""A column; `a.b` is the key `b` inside the object `a`."""


def _hash(value: object) -> object:
    """A hash as tools print it: in capitals, or behind the name of its kind."""
    return re.sub(r"(?i)^sha-?256:", "", value.strip()).lower() if isinstance(value, str) else value


def _word(value: object) -> object:
    """A value of a score as YAML reads it, as the text that `ScoreColumn.worth` looks up."""
    if isinstance(value, bool):
        return str(value).lower()
    return plain_word(str(value)) if isinstance(value, int | float) else value


def _words(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    found = {_word(key): worth for key, worth in value.items()}
    if len(found) < len(value):
        raise ValueError("each value once")
    return found


def plain_word(text: str) -> str:
    """A whole number without the zero that some formats write behind it; nothing around a word."""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text.strip())


Sha256 = Annotated[str, BeforeValidator(_hash), Field(pattern="^[0-9a-f]{64}$")]
Values = Annotated[Mapping[str, FiniteFloat | None], BeforeValidator(_words)]
"""What each value of a score is worth, as a number; null is ungraded."""
_YES_NO = {"yes": "true", "on": "true", "no": "false", "off": "false"}
"""Words that YAML reads as booleans, so that a key which was one of them cannot be told from the others."""


class OwnMetric(FrozenModel):
    """A metric of the files' own, under the name that it has there."""

    unit: Annotated[str, Field(min_length=1, max_length=20)] = "share"
    """`share`, of values from 0 to 1; else what it is counted in."""
    better: Literal["higher", "lower", "neither"]
    """Which direction is better."""
    proportion: bool = False
    """Each value is 0 or 1: a rate, which has exact tests."""
    whole: bool = False
    """One number of a build as a whole, without a spread."""
    meaning: str = ""
    """One line."""

    def as_metric(self, name: str) -> Metric:
        """As the registry has it."""
        return Metric.of_files(
            name, self.unit, self.better, proportion=self.proportion, whole=self.whole, meaning=self.meaning
        )


def _own_metrics(metrics: Mapping[str, OwnMetric]) -> Mapping[str, OwnMetric]:
    for name, metric in metrics.items():
        if metric.proportion and metric.unit != "share":
            raise ValueError(f"{name}: unit: share, for a proportion")
        try:
            adopt("metrics", metric.as_metric(name), OF_STUDY)
        except PluginError as error:
            raise ValueError(f"{name}: another name ({error})") from error
    return metrics


MetricName = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+@,-]*$")]


class IngestedModel(FrozenModel):
    """A base model and its cells."""

    name: Name
    """In every table."""
    family: Name
    """Of models, such as Llama."""
    params_b: Limit | None = None
    """Billions of parameters, as shown."""
    baseline: Name
    """One of `quants`."""
    quants: Mapping[Name, Exact | None] = Field(min_length=1)
    """Each quant and its bits per weight, null where they are not known."""
    values: Mapping[Name, Mapping[Name, Exact]] = {}
    """Metrics of a cell as a whole, by quant: size, speed, memory, or a refusal template measured elsewhere."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.baseline not in self.quants:
            raise ValueError(
                f"a baseline among the quants ({', '.join(self.quants)}){did_you_mean(self.baseline, self.quants)}"
            )
        for quant in self.values:
            if quant not in self.quants:
                raise ValueError(f"values: {quant}: {one_of(quant, self.quants)}")
        return self


class SourceColumns(FrozenModel):
    """Where a source has what. A cell is one column (`cell`, read by `cells`) or `base_model` and `quant`."""

    sample_id: Column
    """What tells the samples of a task apart."""
    task: Column | None = None
    """The task; else `fixed` has it."""
    cell: Column | None = None
    """A build as one column, read by `cells`."""
    base_model: Column | None = None
    """The base model; else `fixed` has it."""
    quant: Column | None = None
    """The quant; else `fixed` has it."""
    cluster: Column | None = None
    """Samples of one value belong together."""
    reason: Column | None = None
    """Why a sample is ungraded."""
    metric: Column | None = None
    """With `value`: one score a row, by the metric that this column names."""
    value: Column | None = None
    """The score, beside `metric`."""
    label: Column | None = None
    """Of a judge source."""
    text: Column | None = None
    """The answer. Only those to the plain harmful task are kept, for the refusal template of a cell."""
    output_tokens: Column | None = None
    """Tokens of the answer, beside `text`."""
    prompt_hash: Column | None = None
    """What says whether two arms were asked the same words: a hash of the prompt, or the prompt."""
    item_hash: Column | None = None
    """What says whether two samples are the same item: a hash of the document."""


class ScoreColumn(FrozenModel):
    """A column of scores: the metric it is, for all tasks or the named ones."""

    metric: SampleMetric
    """The metric that it is."""
    column: Column
    """The column of its scores."""
    tasks: tuple[Name, ...] = Field(default=(), strict=False)
    """Rows of other tasks have no such score; empty is all tasks."""
    values: Values = Field(default_factory=dict)
    """What each value of the column is worth, where they are letters, words or booleans."""


class ScoreSource(FrozenModel):
    """One file.

    `fixed` holds what is the same for every row; `base_models`, `quants`, `tasks`, `cells` (to `BASE/QUANT`), `metrics`
    and `labels` (null: not a label) translate what the file says, and what they do not name stays as it is.
    """

    label: Name
    """Its name in `sources.csv`."""
    role: Literal["quality", "safety", "judge", "second_judge"]
    """What its rows are; a second judge is compared and never counts."""
    path: Column
    """Relative to the sources file."""
    sha256: Sha256
    """Of the file as it is; another one refuses the whole load."""
    format: Annotated[str, AfterValidator(NameCheck(lambda: IMPORTERS))] | None = None
    """By the end of the file's name if not given."""
    columns: SourceColumns
    """Where it has what; of a format that says so itself, only what is elsewhere."""
    where: Mapping[Column, str] = Field(default_factory=dict, exclude_if=lambda where: not where)
    """Rows whose column has another value are left out, and counted."""
    fixed: Mapping[Literal["base_model", "quant", "task"], Name] = {}
    """What is the same for every row."""
    base_models: Mapping[str, Name] = {}
    """Its names of base models to those of `models`."""
    quants: Mapping[str, Name] = {}
    """Its names of quants to those of `models`."""
    tasks: Mapping[str, Name] = {}
    """Its names of tasks to others."""
    cells: Mapping[str, str] = {}
    """The values of the column `cell` to BASE_MODEL/QUANT."""
    metrics: Mapping[str, SampleMetric | None] = {}
    """Its names of metrics to ours; null leaves its rows out."""
    labels: Mapping[str, str | None] = {}
    """Its labels to ours; null is no label."""
    measures: tuple[ScoreColumn, ...] = Field(default=(), strict=False)
    """Its columns of scores."""
    values: Values = Field(default_factory=dict)
    """As in a measure, of the column `value`."""
    only_tasks: tuple[Name, ...] = Field(default=(), strict=False)
    """Rows of other tasks are left out, and counted; empty is all tasks."""
    judge: Name | None = None
    """The judge's name; the source's label where it is not given."""

    @model_validator(mode="before")
    @classmethod
    def _with_columns_of_its_format(cls, value: object) -> object:
        """A log has its columns where it always has them."""
        if not isinstance(value, dict) or not isinstance(value.get("columns", {}), dict):
            return value
        form, given, fixed = value.get("format"), value.get("columns", {}), value.get("fixed") or {}
        form = form or _format_of_name(str(value.get("path", "")))
        own = IMPORTERS[str(form)].columns if form in IMPORTERS else {}
        taken = {*given, *fixed} | ({"cell"} if {"base_model", "quant"} & {*given, *fixed} else set())
        columns = {**{name: column for name, column in own.items() if name not in taken}, **given}
        return {**value, "columns": columns} if own else value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        self._check_ids()
        if self.columns.text is None and self.columns.output_tokens is not None:
            raise ValueError("the column output_tokens only beside text")
        if self.is_judge:
            self._check_judge()
        elif bool(self.measures) == (self.columns.value is not None):
            raise ValueError("either measures, or the columns metric and value")
        elif (self.columns.value is None) != (self.columns.metric is None):
            raise ValueError("the columns metric and value together")
        if self.values and self.columns.value is None:
            raise ValueError("values only beside the column value; a measure has its own")
        return self

    def _check_ids(self) -> None:
        one_column = self.columns.cell is not None
        for part in ("base_model", "quant", "task"):
            given = (getattr(self.columns, part) is not None) + (part in self.fixed)
            if given != (0 if one_column and part != "task" else 1):
                wanted = (
                    "nothing beside the column cell" if one_column and part != "task" else "a column or a fixed one"
                )
                raise ValueError(f"{part}: {wanted}")

    def _check_judge(self) -> None:
        if self.columns.label is None or self.measures or self.columns.value is not None:
            raise ValueError("for a judge, a column label and no measures or value")
        if self.columns.text is not None:
            raise ValueError("no column text for a judge")
        for label in self.labels.values():
            try:
                known_among(label or UNCLEAR, judge_labels)
            except ValueError as error:
                raise ValueError(f"labels: {label}: null or {error}") from None

    @property
    def is_judge(self) -> bool:
        return self.role in ("judge", "second_judge")


class Sources(FrozenModel):
    """What an ingested bundle is made from."""

    study: Name
    """Its name."""
    seed: Seed = 42
    """Of the bootstrap."""
    metrics: Annotated[Mapping[MetricName, OwnMetric], AfterValidator(_own_metrics)] = Field(
        default_factory=dict, exclude_if=lambda metrics: not metrics
    )
    """Metrics that nobody has registered, under the names of the files."""
    models: tuple[IngestedModel, ...] = Field(min_length=1, strict=False)
    """The base models and their cells."""
    sources: tuple[ScoreSource, ...] = Field(min_length=1, strict=False)
    """The files."""
    judge_precedence: tuple[Name, ...] = Field(default=(), strict=False)
    """Labels of the judge sources, first wins; their order in `sources` where it is not given."""
    statistics: StatisticsConfig = StatisticsConfig()
    """Of intervals."""
    policy: Annotated[Policy, BeforeValidator(as_policy)] = Policy()
    """The rules of the decision: a name, or a mapping with `base`."""
    constraints: Constraints = Constraints()
    """What the build to ship must satisfy besides."""
    file: str = Field(default="", exclude=True)
    """The file it was read from; relative paths start at its folder."""

    @model_validator(mode="before")
    @classmethod
    def _of_its_own(cls, value: object) -> object:
        clear_rubrics()
        return value

    def adopt(self) -> None:
        """Let the registry know its metrics, and those of no other study."""
        clear_rubrics()
        _own_metrics(self.metrics)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for kind, names in (
            ("model name", [model.name for model in self.models]),
            ("source label", [source.label for source in self.sources]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"each {kind} once")
        judges = [source.label for source in self.sources if source.role == "judge"]
        if self.judge_precedence and sorted(self.judge_precedence) != sorted(judges):
            raise ValueError(f"judge_precedence: each judge source once ({', '.join(judges)})")
        known = {str(cell) for cell in self.cells}
        for source in self.sources:
            for name in source.cells.values():
                if name not in known:
                    raise ValueError(
                        f"{source.label}: cells: {name}: BASE/QUANT of the models{did_you_mean(name, known)}"
                    )
        return self

    @property
    def folder(self) -> Path:
        return Path(self.file).parent

    @cached_property
    def cells(self) -> Mapping[CellId, Fraction | None]:
        """Every cell with its bits per weight."""
        return {CellId(model.name, quant): bpw for model in self.models for quant, bpw in model.quants.items()}

    def rows(self) -> tuple[Row, ...]:
        """A row of the matrix for every cell, with nothing measured yet."""
        return tuple(
            Row(model.name, model.family, model.params_b, quant, bpw, is_baseline=quant == model.baseline)
            for model in self.models
            for quant, bpw in model.quants.items()
        )

    def precedence(self) -> tuple[str, ...]:
        """Labels of the judge sources, first wins."""
        return self.judge_precedence or tuple(source.label for source in self.sources if source.role == "judge")


def worth(values: Mapping[str, float | None], said: str) -> tuple[float | None, str | None]:
    """(what a value of a score is worth, null where it is ungraded; what is wrong with it)."""
    plain = plain_word(said)
    lower = plain.lower()
    loose: tuple[str, ...] = (_YES_NO.get(lower, lower),) if lower in ("true", "false", *_YES_NO) else ()
    loose += tuple(word for word in values if word.lower() == lower == "nan")
    for word in (said, plain, *loose):
        if word in values:
            return values[word], None
    near = difflib.get_close_matches(plain, values, 1, 0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return None, f"{said[:40]!r}; expected one of {', '.join(values)}{hint}"


def read_sources(path: Path) -> Sources:
    """Read `sources.yaml`.

    Raises:
        StudyError: with file, line and key of the first mistake.
    """
    sources = load_yaml(path, Sources).model_copy(update={"file": str(path)})
    for number, source in enumerate(sources.sources):
        if format_of(source) is None:
            suffixes = ", ".join(suffix for one in IMPORTERS.values() for suffix in one.suffixes)
            expected = f"format: {one_of('', IMPORTERS)}; or a name that ends in {suffixes}"
            raise StudyError("unknown format", file=path, field=f"sources.{number}.path", expected=expected)
    return sources


def format_of(source: ScoreSource) -> str | None:
    """`jsonl`, `jsonl.gz`, `parquet` or `csv`: as stated, else by the file's name."""
    return source.format or _format_of_name(source.path)


def _format_of_name(path: str) -> str | None:
    return next((name for name, one in IMPORTERS.items() if one.suffixes and path.endswith(one.suffixes)), None)
