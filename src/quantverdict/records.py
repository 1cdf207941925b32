"""The nouns: frozen values that travel between stages.

A rate stays an integer count, and a decimal the decimal it is printed as, until a number is shown: values that a
threshold may see are `fractions.Fraction`. `None` means "not measured" everywhere; it is neither zero nor a pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

Value = str | int | float | bool | Fraction | None


class CellId(NamedTuple):
    """The aggregation unit: one quantized build of one base model."""

    base_model: str
    quant: str

    def __str__(self) -> str:
        return f"{self.base_model}/{self.quant}"


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a model file is, read from the file.

    Attributes:
        path: where it is.
        format: `gguf`, `safetensors`, ...
        sha256: of the whole file.
        weights_sha256: of tensor names, shapes, types and data alone, whatever their metadata.
        file_bytes: size on disk.
        n_params: elements over all tensors.
        bpw: bits of all tensor data over `n_params`.
        bpw_quantized: the same over the tensors that are matrices (norms and biases left out).
        tensor_types: type name to number of tensors.
        fallbacks: matrices stored in another type than the level's name says, type name to number.
        architecture, name: from the metadata.
        chat_template: the Jinja source, None where the file has none.
        tokenizer_sha256: of the vocabulary, merges and special tokens.
        dequantized_from: the low-bit type whose grid a wide baseline still shows, None where it shows none.
        special_tokens: `bos`, `eos`, ... to their text.
        identity_sha256: of everything that changes an answer: weights, architecture and tokenizer settings, chat
            template as it renders; equal for one build under two names. Empty in a bundle of an older version.
        tokens_sha256: of everything that decides which tokens a text is.
    """

    path: str
    format: str
    sha256: str
    weights_sha256: str
    file_bytes: int
    n_params: int
    bpw: float
    bpw_quantized: float
    tensor_types: Mapping[str, int]
    fallbacks: Mapping[str, int]
    architecture: str
    name: str
    chat_template: str | None
    tokenizer_sha256: str
    dequantized_from: str | None
    special_tokens: Mapping[str, str]
    identity_sha256: str = ""
    tokens_sha256: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question as every cell gets it.

    Attributes:
        task, sample_id: which item.
        text: the rendered task template: the user's turn.
        chat: `text` inside the model's chat template, ready to tokenise; None where the server applies its own.
        sha256: of `chat` where there is one, else of `text`.
        choices: continuations whose log-probabilities are wanted, empty where none are.
    """

    task: str
    sample_id: str
    text: str
    chat: str | None
    sha256: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """What a backend returned for one prompt.

    Attributes:
        text: as generated, special tokens removed but those that structure it (`backends.marks`).
        finish: `stop` or `length`.
        prompt_tokens, output_tokens: counts; the end token is not counted.
        prompt_ids_sha256: of the prompt's token ids, None where the backend does not show them.
        choice_logprobs: natural log-probability of each of `Prompt.choices`, None where the backend gives none.
        ttft_ms: time to first token, None where unknown; not part of what is compared or resumed.
        reasoning: what a server split off from the text, None where it split nothing.
        opened: the prompt ended inside a thought that its template opened.
    """

    text: str
    finish: str
    prompt_tokens: int
    output_tokens: int
    prompt_ids_sha256: str | None = None
    choice_logprobs: tuple[float, ...] | None = None
    ttft_ms: float | None = None
    reasoning: str | None = None
    opened: bool = False


@dataclass(frozen=True, slots=True)
class Response:
    """One stored answer: a line of `responses/*.jsonl`. Holds no timing, so that equal runs give equal bytes.

    What of `text` is the answer, `grading.answer` tells. A line has `reasoning` and `opened` only where they say
    something.
    """

    base_model: str
    quant: str
    task: str
    sample_id: str
    prompt_sha256: str
    text: str
    finish: str
    prompt_tokens: int
    output_tokens: int
    prompt_ids_sha256: str | None = None
    choice_logprobs: tuple[float, ...] | None = None
    reasoning: str | None = None
    opened: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """One number for one sample by one metric; `value` None is ungraded, and `reason` says why."""

    base_model: str
    quant: str
    task: str
    sample_id: str
    metric: str
    value: float | None
    cluster: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A judge's label for one sample; `label` None is ungraded, and `reason` says why."""

    base_model: str
    quant: str
    task: str
    sample_id: str
    judge: str
    label: str | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric of a cell.

    Attributes:
        value: exact: k/n for a proportion, else the decimal as printed.
        lo, hi: the 95 % interval, None where it is not known.
        n: graded samples, None where it is not known.
        k: the count of a proportion, None for other metrics.
    """

    value: Fraction
    lo: float | None = None
    hi: float | None = None
    n: int | None = None
    k: int | None = None


@dataclass(frozen=True, slots=True)
class Shared:
    """What a build is compared by, where its prompts and those of its baseline are not all paired.

    Attributes:
        metrics: those of its baseline, over the prompts that both have a grade for.
        own: those of the build over the same prompts; None where they are the row's.
        stopped_after: prompts that it was asked, where it was stopped.
        planned: prompts that its baseline was asked, where it was stopped.
        without_pair: metrics that both have, on no prompt in common.
    """

    metrics: Mapping[str, Estimate]
    own: Mapping[str, Estimate] | None = None
    stopped_after: int | None = None
    planned: int | None = None
    without_pair: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the matrix.

    Attributes:
        metrics: one that was not measured is absent. Beside samples, over prompts that its baseline was asked too;
            `matrix.csv` has them over all of the build's own.
        shared: None where every prompt of either arm is paired; no part of `matrix.csv`.
    """

    base_model: str
    family: str
    params_b: float | None
    quant: str
    bpw: Fraction | None
    is_baseline: bool
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    shared: Shared | None = None

    @property
    def cell(self) -> CellId:
        return CellId(self.base_model, self.quant)

    def value(self, metric: str) -> Fraction | None:
        """The exact value of a metric, None where it was not measured."""
        estimate = self.metrics.get(metric)
        return None if estimate is None else estimate.value

    @property
    def paired_metrics(self) -> Mapping[str, Estimate]:
        """What a delta is taken from: `metrics`, over the prompts that the baseline has a grade for too."""
        return self.metrics if self.shared is None or self.shared.own is None else self.shared.own


Matrix = tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV artefact before it is written: `name.csv`, its columns, its rows."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.name}: a row of {len(row)} values for {len(self.columns)} columns")
