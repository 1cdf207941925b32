"""The keys of what reads answers: judges, guards and rubrics, classifiers, encoders; and where a model is.

`config.Study` has them; a file of a judge or a classifier has the same keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from quantverdict.errors import PluginError, one_of
from quantverdict.policy import FrozenModel, Limit, Name
from quantverdict.records import Metric, RubricSpec
from quantverdict.registry import BACKENDS, METRICS, RUBRICS, adopt, backends
from quantverdict.registry.listing import OF_STUDY, NameCheck
from quantverdict.yaml_file import InvalidFieldError, InvalidValueError

_LABEL = r"^[A-Z][A-Z_]*$"
RefusalWord = Literal["full", "partial", "none", "unclear"]
"""What an instrument may say of an answer: it refuses in full, in part, not at all, or that cannot be told."""
GuardName = Literal["wildguard", "qwen3guard", "llama_guard", "harmbench", "strongreject"]
"""Guard models that `judges.guards` knows how to ask."""


def _unset(value: object) -> bool:
    return value is None


MOST_TOKENS = 10_000_000
"""Of anything: ten times the longest context that a model has."""


_PLACES = ("path", "hub", "ollama", "package")


def _address(url: str) -> str:
    """An address as it may be stored and shown. A refusal says what is wrong with it, and does not repeat it."""
    if set("@?#") & set(url):
        what = "holds a user or a key before its @" if "@" in url else "has a query or fragment, which is never sent"
        raise InvalidValueError(what, "http://HOST:PORT/v1, and api_key_env for the name of the key's variable")
    return url


def _variable(name: str) -> str:
    """The name of an environment variable. A refusal does not repeat it: it may be the key itself."""
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) or re.fullmatch(r"(?=.*[a-z])(?=.*\d).{20,}", name):
        raise InvalidValueError("is no name of an environment variable", "that of the one which holds the key")
    return name


REQUEST_FIELDS = (
    "cache_prompt", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "messages", "model",
    "presence_penalty", "prompt", "repeat_penalty", "repetition_penalty", "response_format", "seed", "stream",
    "temperature",
)  # fmt: skip
"""What a request to a server of the OpenAI API may hold."""
_NEEDED = ("messages", "prompt")


def _request_fields(fields: Mapping[str, str | None]) -> Mapping[str, str | None]:
    for name, own in fields.items():
        if name not in REQUEST_FIELDS:
            raise InvalidFieldError(one_of(name, REQUEST_FIELDS), name)
        if own is None and name in _NEEDED:
            raise InvalidValueError("cannot be left out: it is what is asked", "its name for this server", name)
    return fields


RequestFields = Annotated[Mapping[str, Annotated[str, Field(min_length=1)] | None], AfterValidator(_request_fields)]
Address = Annotated[str, AfterValidator(_address)]
Variable = Annotated[str, AfterValidator(_variable)]


class Source(FrozenModel):
    """Where a model is: one of `path`, `hub`, `ollama`, `package`; or a `url`, with the file it runs if known."""

    path: str | None = None
    """A GGUF file or a checkpoint's folder, relative to the study."""
    hub: str | None = None
    """A repository of the Hugging Face hub."""
    revision: str | None = None
    """Of the repository: a commit, a tag or a branch."""
    ollama: str | None = None
    """A tag: in the local store, or of a running Ollama."""
    package: str | None = None
    """An installed Python package; `file` is a glob in it."""
    url: Address | None = None
    """Where a server answers: http://127.0.0.1:8080/v1, or the host of Ollama."""
    model: str | None = None
    """The name by which the server of `url` knows the model."""
    file: str | None = None
    """File name or glob inside the hub repository or the package."""

    @property
    def has_file(self) -> bool:
        """Whether it names a file or folder, and not a server alone."""
        return any(getattr(self, key) for key in _PLACES)

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        given = [key for key in _PLACES if getattr(self, key)]
        if len(given) > 1 or not (given or self.url):
            raise ValueError(f"exactly one of {', '.join(_PLACES)}, url")
        if (self.model is None) != (self.url is None):
            raise ValueError("url and model together")
        return self

    def __str__(self) -> str:
        keys = [key for key in (*_PLACES, "url") if getattr(self, key)]
        place = f"{keys[0]}:{getattr(self, keys[0])}"
        return place + (f"@{self.revision}" if self.revision else "") + (f"/{self.file}" if self.file else "")


JudgeBackendName = Annotated[str, AfterValidator(NameCheck(lambda: backends(lambda can: can.labels)))]


class Price(FrozenModel):
    """Of a judge, per million tokens, in whatever currency."""

    input: float = Field(ge=0, le=1e9)
    """Of a million tokens of questions."""
    output: float = Field(ge=0, le=1e9)
    """Of a million tokens of replies."""


class RubricConfig(FrozenModel):
    """What the judges of this study are asked of the answers that a metric grades: see docs/extending.md."""

    name: Name
    """Of the rubric."""
    of: Annotated[str, AfterValidator(NameCheck(lambda: METRICS))]
    """The metric whose answers are labelled; their labels come to the metric `judge_NAME`."""
    labels: Mapping[Annotated[str, Field(pattern=_LABEL)], Literal[0, 1]] = Field(
        default_factory=dict, exclude_if=lambda labels: not labels
    )
    """Each label and what it counts; a judge may say UNCLEAR besides, which counts nowhere."""
    score: bool = Field(default=False, exclude_if=lambda score: not score)
    """In place of labels: a judge gives a score from 0 to 1, in tenths, and the metric is their mean."""
    text: str = Field(min_length=1, max_length=20_000)
    """What a judge is told."""
    question: str = ""
    """What a person is asked; without it, people label no such answers."""

    def adopt(self) -> None:
        """Let the registry know it, as this study's.

        Raises:
            PluginError: its name, metric or a label is taken.
        """
        metric, counted = f"judge_{self.name}", [label for label, counts in self.labels.items() if counts]
        labels: Mapping[str, float] = {f"{self.name}={tenth / 10}": tenth / 10 for tenth in range(11)}
        meaning = "the score that the judge gives, a mean"
        if not self.score:
            labels, meaning = self.labels, f"answers that the judge calls {' or '.join(counted)}"
        adopt("rubrics", RubricSpec(self.name, self.of, metric, labels, self.text, question=self.question), OF_STUDY)
        label = f"{self.name.replace('_', ' ')} by judge"
        shape = Metric(metric, meaning, "judge", proportion=not self.score, label=label, graded="judge")
        adopt("metrics", shape, OF_STUDY)

    @model_validator(mode="after")
    def _labels_or_score(self) -> Self:
        if self.score == bool(self.labels) or len(self.labels) == 1:
            raise ValueError("labels, two or more, or score: true")
        if self.score and self.question:
            raise ValueError("no question: people label by labels, and a score has none")
        return self


def adopted(rubrics: tuple[RubricConfig, ...]) -> tuple[RubricConfig, ...]:
    """The rubrics of a study, once the registry knows them and those of no other study."""
    clear_rubrics()
    for at, rubric in enumerate(rubrics):
        try:
            rubric.adopt()
        except PluginError as error:
            raise InvalidValueError(str(error), "what is its own", at) from error
        for other in rubrics[:at]:
            if other.name == rubric.name or other.of == rubric.of or set(other.labels) & set(rubric.labels):
                raise InvalidFieldError(f"each rubric with a name, a metric and labels of its own ({other.name})", at)
    return rubrics


def clear_rubrics() -> None:
    """What another study brought along is none of this one's."""
    RUBRICS.drop(OF_STUDY)
    METRICS.drop(OF_STUDY)


class JudgeConfig(FrozenModel):
    """A judge. The order in the study is the precedence: the first that has a label wins. See docs/judges.md."""

    name: Name
    """In every table, and of the file of its labels."""
    model: str
    """What it is called; the model's name where a hosted API has it."""
    covers: tuple[Name, ...] = Field(default=(), strict=False)
    """Base models it judged; empty is all."""
    quants: tuple[Name, ...] = Field(default=(), strict=False)
    """Formats it judged; empty is all."""
    source: Source | None = None
    """The model, or the server, that it is; none where its labels come from elsewhere."""
    backend: JudgeBackendName | None = None
    """What runs it, if not given `server` for a url, `ollama` for a tag, else `llamacpp`."""
    second: bool = False
    """A second judge labels a sample beside the others, and its labels decide nothing."""
    sample: int = Field(default=20, ge=0, le=1_000_000)
    """Of a second judge: answers of each cell that is not judged whole."""
    batch_size: int = Field(default=32, gt=0, le=100_000)
    """Questions asked together, and what a kill can lose."""
    parallel: int = Field(default=8, gt=0, le=1024)
    """Questions at once, of the engine or as requests."""
    context: int = Field(default=4096, gt=0, le=MOST_TOKENS)
    """Tokens that a question may use."""
    threads: int | None = Field(default=None, gt=0, le=4096)
    """Of the engine, on a CPU; as many as physical cores if not given."""
    timeout_s: float = Field(default=120.0, gt=0, le=86_400)
    """How long a server may take for one label."""
    retries: int = Field(default=5, ge=0, le=100)
    """How often a server that is busy or fails is asked again."""
    api_key_env: Variable | None = None
    """The environment variable that holds the key; the key itself is never stored."""
    request_fields: RequestFields = Field(default={}, exclude_if=lambda fields: not fields)
    """As of `collect`."""
    temperature: float | None = Field(default=None, ge=0, le=10)
    """Sent to a hosted API only where it is given: not every model takes it. All others are asked at 0."""
    price: Price | None = None
    """For the cost in `judges.csv`."""
    guard: GuardName | None = Field(default=None, exclude_if=_unset)
    """The preset of a guard model: it is asked in its own form whether answers refuse, harmful prompts and safe ones,
    and gives `guard_refusal_rate` and `guard_over_refusal_rate`. See docs/judges.md."""
    max_cost: Limit | None = Field(default=None, exclude_if=_unset)
    """What it may cost by its `price`; judging stops before it would cost more, and what was bought is kept."""
    max_requests: int | None = Field(default=None, gt=0, le=1_000_000_000, exclude_if=_unset)
    """Questions that it may be asked, over all runs; the same."""
    max_tokens: int | None = Field(default=None, gt=0, le=1_000_000_000_000, exclude_if=_unset)
    """Tokens of questions and replies, over all runs; the same."""

    @property
    def counts(self) -> bool:
        """Whether its labels may come to the judges' rates: those of a second judge and of a guard do not."""
        return not self.second and self.guard is None

    @property
    def engine(self) -> str | None:
        """What runs it; None where nothing does, and its labels can only come from elsewhere."""
        if self.backend is not None or self.source is None:
            return self.backend
        return "server" if self.source.url else "ollama" if self.source.ollama else "llamacpp"

    @model_validator(mode="after")
    def _can_run(self) -> Self:
        needs = None if self.backend is None else BACKENDS[self.backend].reads
        if needs in ("file", "server") and self.source is None:
            raise ValueError(f"backend {self.backend}: a source")
        if self.backend == "server" and (self.source is None or not self.source.url):
            raise ValueError("backend server: a source with url and model")
        if self.sample != 20 and not self.second:
            raise ValueError("sample: second: true beside it")
        if self.max_cost is not None and self.price is None:
            raise ValueError("max_cost: a price beside it")
        if self.guard is not None and self.second:
            raise ValueError(f"guard {self.guard}: second: false, as a guard labels everything")
        if self.guard is not None and self.backend is not None and not BACKENDS[self.backend].capabilities.answers:
            raise ValueError(f"guard {self.guard}: a backend that takes a prompt as it is, not {self.backend}")
        return self


@dataclass(frozen=True, slots=True)
class ClassifierPreset:
    """How a published classifier of refusals is asked.

    Attributes:
        hub: its repository.
        labels: its labels, in small letters, and what each means here.
        text: what it is given; `{prompt}` and `{answer}` stand for these.
        max_length: tokens of it that are read.
    """

    hub: str
    labels: Mapping[str, RefusalWord]
    text: str
    max_length: int


_TURNS = "<|user|>\n{prompt}\n<|assistant|>\n{answer}"
_REFUSAL: Mapping[str, RefusalWord] = {"refusal": "full", "non-refusal": "none"}
_NUMBERED: Mapping[str, RefusalWord] = {"label_0": "none", "label_1": "full", "compliance": "none"}
CLASSIFIER_PRESETS = {
    "minos-v1": ClassifierPreset("NousResearch/Minos-v1", _REFUSAL, _TURNS, 8192),
    "garak-refusal-detector": ClassifierPreset("garak-llm/garak-refusal-detector", _REFUSAL, "{answer}", 8192),
    "mmbert-refusal": ClassifierPreset("natong19/refusal_classifier", {**_REFUSAL, **_NUMBERED}, _TURNS, 8192),
    "distilroberta-rejection": ClassifierPreset(
        "protectai/distilroberta-base-rejection-v1", {"rejection": "full", "normal": "none"}, "{answer}", 512
    ),
}
"""Classifiers that a study names by preset; each label that a model has must be among them, whatever it is called."""


class ClassifierConfig(FrozenModel):
    """A sequence classifier by Transformers that says of answers whether they refuse. See docs/judges.md."""

    preset: Annotated[str, AfterValidator(NameCheck(lambda: CLASSIFIER_PRESETS))] | None = None
    """A published one by name: its source, labels, text and length, each of which may be given besides."""
    source: Source | None = None
    """The classifier: a folder, a repository of the hub or a package."""
    labels: Mapping[str, RefusalWord] = Field(default_factory=dict)
    """Each of its labels, as `config.json` has them (small letters or not), and what it means: full, partial, none or
    unclear."""
    text: str = Field(default="", max_length=2000)
    """What it is given, with `{answer}` and where it reads both `{prompt}`."""
    max_length: int | None = Field(default=None, ge=8, le=MOST_TOKENS)
    """Tokens that are read of it; a longer prompt and answer are cut at their end."""
    batch_tokens: int | None = Field(default=None, gt=0, le=100_000_000)
    """Tokens classified at once, padding included; 1024 on a CPU and 16384 elsewhere if not given."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of its arithmetic; auto is float32 on a CPU, bfloat16 on a GPU."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:[0-9]+)?)$")
    """`auto` is a GPU where there is one."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.preset is None and (self.source is None or not self.labels):
            raise ValueError("a preset, or a source with labels")
        if self.source is not None and not (self.source.path or self.source.hub or self.source.package):
            raise ValueError("a source with path, hub or package")
        if "{answer}" not in self.form:
            raise ValueError("text: {answer} in it")
        return self

    @property
    def place(self) -> Source:
        """Where it is."""
        return self.source or Source(hub=CLASSIFIER_PRESETS[self.preset or ""].hub)

    @property
    def meanings(self) -> dict[str, RefusalWord]:
        """What its labels mean, by small letters."""
        own = {label.lower(): meaning for label, meaning in self.labels.items()}
        return own if own or self.preset is None else dict(CLASSIFIER_PRESETS[self.preset].labels)

    @property
    def form(self) -> str:
        """What it is given."""
        return self.text or ("{answer}" if self.preset is None else CLASSIFIER_PRESETS[self.preset].text)

    @property
    def length(self) -> int | None:
        """Tokens that are read; None where its own limit holds."""
        return self.max_length or (None if self.preset is None else CLASSIFIER_PRESETS[self.preset].max_length)


class BertScoreConfig(FrozenModel):
    """The encoder of `bertscore`, and the layer whose output is compared: its own must be given for another one."""

    source: Source = Source(hub="microsoft/deberta-xlarge-mnli")
    """The encoder."""
    layer: int = Field(default=40, gt=0, le=1000)
    """Whose output is compared."""

    @model_validator(mode="after")
    def _own_layer(self) -> Self:
        if "source" in self.model_fields_set and "layer" not in self.model_fields_set:
            raise ValueError("layer, the one of this encoder that is compared")
        return self


class CoherenceConfig(FrozenModel):
    """The sentence encoder of `coherence` and `coherence_prompt`."""

    source: Source = Source(hub="sentence-transformers/all-mpnet-base-v2")
    """The encoder."""


class SemanticConfig(FrozenModel):
    """Scores of stored answers by encoders; null leaves one out."""

    bertscore: BertScoreConfig | None = BertScoreConfig()
    """Of the metric `bertscore`."""
    coherence: CoherenceConfig | None = CoherenceConfig()
    """Of the metrics `coherence` and `coherence_prompt`."""
    batch_tokens: int | None = Field(default=None, gt=0, le=100_000_000)
    """Tokens encoded at once, padding included; 1024 on a CPU and 16384 elsewhere if not given."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the encoders' arithmetic; auto is float32 on a CPU, bfloat16 on a GPU."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:[0-9]+)?)$")
    """`auto` is a GPU where there is one."""
