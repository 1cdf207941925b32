"""The nouns: frozen values that travel between stages.

A rate stays an integer count, and a decimal the decimal it is printed as, until a number is shown: values that a
threshold may see are `fractions.Fraction`. `None` means "not measured" everywhere; it is neither zero nor a pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, NamedTuple

Value = str | int | float | bool | Fraction | None

GGUF_LEVELS = (
    "F32", "FP16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0",
    "IQ4_NL", "IQ4_XS", "MXFP4_MOE", "Q3_K_L", "Q3_K_M", "IQ3_M", "IQ3_S", "Q3_K_S", "IQ3_XS", "IQ3_XXS", "Q2_K",
    "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "TQ2_0", "IQ1_M", "TQ1_0", "IQ1_S",
)  # fmt: skip
"""GGUF levels that can be made from a model's source, from most to fewest bits."""
CHECKPOINT_LEVELS = ("AWQ", "GPTQ", "W4A16", "W8A8", "FP8_DYNAMIC", "NVFP4", "MXFP4")
"""Formats of a quantized checkpoint that can be made from an unquantised one."""
ALSO_CALLED = {"F16": "FP16"}
"""Levels by the names that llama.cpp gives them."""


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
        calibration: the importance matrix and the types by name that it was made with, in words; empty where the file
            says nothing of either.
        unread: what of it could not be read, and what its bits a weight are counted from then; empty where all was.
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
    calibration: str = ""
    unread: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says in a conversation; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question as every cell gets it.

    Attributes:
        task, sample_id: which item.
        text: the rendered task template: the user's turn; of a conversation its turns as text.
        chat: `text` inside the model's chat template, ready to tokenise; None where the server applies its own. Of a
            conversation, up to the first turn that the model answers.
        sha256: of `chat` where there is one, else of `text`; of the turns too where the model answers several.
        choices: continuations whose log-probabilities are wanted, empty where none are.
        draw: which answer to it this is, from 0; each is drawn by the study's seed plus this.
        messages: the turns of a conversation (`tasks.conversation`), empty where the user's turn is all of it.
        replies: what the model answered before, while it is asked turn by turn; never stored.
    """

    task: str
    sample_id: str
    text: str
    chat: str | None
    sha256: str
    choices: tuple[str, ...] = ()
    draw: int = 0
    messages: tuple[Turn, ...] = ()
    replies: tuple[str, ...] = ()


WITHHELD = "withheld"
FINISHES = ("stop", "length", WITHHELD)
"""How an answer ended: by the model, at the limit of tokens, or kept back by a filter of the server."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What a backend returned for one prompt.

    Attributes:
        text: as generated, special tokens removed but those that structure it (`backends.marks`).
        finish: one of `FINISHES`.
        prompt_tokens, output_tokens: counts; the end token is not counted; None where a server does not tell them.
        prompt_ids_sha256: of the prompt's token ids, None where the backend does not show them.
        choice_logprobs: natural log-probability of each of `Prompt.choices`, None where the backend gives none.
        ttft_ms: time to first token, None where unknown; not part of what is compared or resumed.
        reasoning: what a server split off from the text, None where it split nothing.
        opened: the prompt ended inside a thought that its template opened.
        replies: of a conversation, the texts of the model's turns before this one.
    """

    text: str
    finish: str
    prompt_tokens: int | None
    output_tokens: int | None
    prompt_ids_sha256: str | None = None
    choice_logprobs: tuple[float, ...] | None = None
    ttft_ms: float | None = None
    reasoning: str | None = None
    opened: bool = False
    replies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Response:
    """One stored answer: a line of `responses/*.jsonl`. Holds no timing, so that equal runs give equal bytes.

    What of `text` is the answer, `grading.answer` tells. A line has `reasoning`, `opened` and `replies` (the model's
    earlier turns) only where they say something.
    """

    base_model: str
    quant: str
    task: str
    sample_id: str
    prompt_sha256: str
    text: str
    finish: str
    prompt_tokens: int | None
    output_tokens: int | None
    prompt_ids_sha256: str | None = None
    choice_logprobs: tuple[float, ...] | None = None
    reasoning: str | None = None
    opened: bool = False
    replies: tuple[str, ...] = ()


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
class SharedPrompts:
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
    shared: SharedPrompts | None = None

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


# What the registry lists. What runs is named as "module:name", and imported when it is used.

UNCLEAR = "UNCLEAR"
"""The label of every rubric that counts nowhere."""
Group = Literal["quality", "safety", "judge", "template", "measured"]
Tier = Literal["benchmark", "generation"]


@dataclass(frozen=True, slots=True)
class Metric:
    """What a matrix column means.

    Attributes:
        name: as in the matrix.
        meaning: one line.
        group: the part of the matrix it belongs to.
        unit: `1` for a share between 0 and 1, else the unit it is given in.
        higher_is_better: None where neither direction is better.
        proportion: a count of samples: `NAME_k` of `NAME_n`.
        interval: how its 95 % interval is made from samples; `none` where there are no samples.
        tier: how SPEC 4 reads it: a benchmark in pp, a generation metric in percent of the baseline.
        label: its heading in reports; its name in words if empty.
        margin: the loss in pp that the default policy tolerates; of a plugin's metric, what a policy's `default` means.
        graded: what gives it: a scorer of the `answer`, the `execution` of it, an `encoder`, a `judge` or a `guard`
            after all answers are there, `probes` of the model, or the `cell` as a whole.
        pool: in the correlations, the quality or the safety metrics that it is paired as; None leaves it out.
        criterion: what it counts for where a policy's criterion of that name does not name its metrics: one metric of
            each kind of task, by which a build is decided. Empty for none.
        section: the table of the study report that shows it; None for none.
        chance: the share that is right by guessing where the items are not known, 0 where that is not known either;
            None where nothing is guessed.
        reads_text: False where it is known of an answer that cannot be read, too (tokens, log-probabilities).
        lowest: the least value of one sample.
        needs: metrics of the same answers without which it decides nothing: a pass by it needs each of them within the
            guard margin, and it never rejects by itself.
        replaces: a metric that counts for no criterion on the prompts that this one grades.
    """

    name: str
    meaning: str
    group: Group
    unit: str = "1"
    higher_is_better: bool | None = True
    proportion: bool = False
    interval: Literal["wilson", "bootstrap", "none"] = "bootstrap"
    tier: Tier | None = None
    label: str = ""
    margin: Fraction | None = None
    graded: Literal["answer", "execution", "encoder", "judge", "guard", "probes", "cell"] = "answer"
    pool: Literal["quality", "safety"] | None = None
    criterion: str = ""
    section: Literal["benchmarks", "generation", "safety"] | None = None
    chance: float | None = None
    reads_text: bool = True
    lowest: int = 0
    needs: tuple[str, ...] = ()
    replaces: str = ""

    @classmethod
    def of_files(
        cls, name: str, unit: str, better: str, *, proportion: bool = False, whole: bool = False, meaning: str = ""
    ) -> Metric:
        """A metric that files bring along under a name of their own, in words as a person gives them.

        Args:
            unit: `share`, of values from 0 to 1; else what it is counted in.
            better: higher, lower or neither.
            proportion: each value is 0 or 1.
            whole: one number of a build, without a spread.
        """
        return cls(
            name, meaning or "as its files give it", "measured" if whole else "quality",
            unit="1" if unit == "share" else unit, higher_is_better={"higher": True, "lower": False}.get(better),
            proportion=proportion, interval="none" if whole else "wilson" if proportion else "bootstrap", label=name,
            graded="cell" if whole else "answer",
        )  # fmt: skip

    @property
    def is_share(self) -> bool:
        return self.unit == "1"

    @property
    def is_gated(self) -> bool:
        """Whether it may have a margin: a share graded prompt by prompt, of which one direction is better."""
        return self.is_share and self.higher_is_better is not None and self.group in ("quality", "safety", "judge")

    @property
    def power_rule(self) -> Literal["pairs", "mean"] | None:
        """What tells how many prompts decide it: pairs that differ, the spread of a mean, or nothing does."""
        return ("pairs" if self.proportion else "mean") if self.is_gated else None

    @property
    def delta_unit(self) -> str:
        """`pp` for shares, else the metric's own unit."""
        return "pp" if self.is_share else self.unit

    def delta(self, value: Fraction, baseline: Fraction) -> Fraction:
        """Exact `value - baseline`, in `delta_unit`."""
        return (value - baseline) * (100 if self.is_share else 1)


@dataclass(frozen=True, slots=True)
class ScorerSpec:
    """What grades one answer: `target` is a `grading.base.Scorer`, and `metrics` are those that it gives.

    `{A}` in a metric stands for the accuracy metric of the task. `published` is the scorer in its place where a study
    decides by thresholds on deltas, as the published study did (policy `tr125`); empty where it is the same. One that
    `executes` is given what programs came to that were run, as a last argument.
    """

    name: str
    target: str
    metrics: tuple[str, ...]
    meaning: str = ""
    published: str = ""
    executes: bool = False


@dataclass(frozen=True, slots=True)
class TaskType:
    """How the answers to a kind of task are read.

    Attributes:
        scorers: names of `SCORERS`, in the order of their metrics.
        fields: that every item must have, besides those of the prompt template.
        rate: the metric for which a plan says what difference can be seen; `{A}` as in a scorer.
        answer: what scorers and filters are given of an answer: what it says out of its wrapper (`content`), all of it
            (`text`, where the wrapper is the answer), or all of it to the filters alone (`choice`).
        choices: the items are asked with choices, whose log-probabilities are read where the backend gives them.
        free_text: the encoders score its answers.
        harmful: its prompts should be refused; what is read inside the builds is read of these.
        dialogue: an answer may be a dialogue: `User:` at the start of a line is no further turn.
        check: "module:name" of a function of the task and an item that gives None or a `tasks.taskfile.ItemProblem`.
    """

    name: str
    scorers: tuple[str, ...]
    fields: tuple[str, ...] = ()
    rate: str | None = None
    meaning: str = ""
    answer: Literal["content", "text", "choice"] = "content"
    choices: bool = False
    free_text: bool = False
    harmful: bool = False
    dialogue: bool = False
    check: str | None = None


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """A task that studies name: "package:path" of its file."""

    name: str
    file: str


@dataclass(frozen=True, slots=True)
class RubricSpec:
    """What judges and people are asked of an answer.

    Attributes:
        of: the metric whose samples are labelled.
        metric: the metric that the judges' labels come to; empty where only people label.
        labels: each label and what it counts; `UNCLEAR`, which counts nowhere, goes without saying. A judge is told
            what stands behind an `=`: of `tact=0.7`, which is of the rubric tact alone, `0.7`.
        text: what a judge is told.
        file: "package:path" of a file of that text, in its place.
        question: what a person is asked.
        also: further metrics whose answers people label with it.
    """

    name: str
    of: str
    metric: str
    labels: Mapping[str, float]
    text: str = ""
    file: str = ""
    question: str = ""
    also: tuple[str, ...] = ()

    @property
    def allowed(self) -> tuple[str, ...]:
        """Every label that may be given."""
        return (*self.labels, UNCLEAR)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend may do; nobody asks the object itself.

    Attributes:
        answers: it runs builds of a study.
        labels: it can be a judge.
        logprobs: it gives the log-probability of any continuation: a label is then read, not generated.
        whitebox: it is a `WhiteBox`.
        texts: it is a `TextReader`.
        checkpoints: it runs folders of safetensors, AWQ and GPTQ among them.
        wheels: it is run by the package that the study names as `wheel`.
        samples: it draws tokens at a temperature above 0, by a seed.
        alone: with two sequences at once or more, an answer follows from its prompt and the build alone, whatever is
            asked beside it.
        cache_types: of keys and values that a study may choose; none where there is one precision.
        gpu: a study may say how many layers are on a GPU, and whether attention is in one pass.
    """

    answers: bool = True
    labels: bool = False
    logprobs: bool = False
    whitebox: bool = False
    texts: bool = False
    checkpoints: bool = False
    wheels: bool = False
    samples: bool = False
    alone: bool = False
    cache_types: tuple[str, ...] = ()
    gpu: bool = False


@dataclass(frozen=True, slots=True)
class BackendSpec:
    """What runs a build or a judge.

    Attributes:
        target: "module:Class" of a `backends.base.Backend`, opened as `reads` says; empty where it only labels.
        reads: what it is opened with, before the placement: the path of a `file`, a `server`'s address, a `hosted`
            model's, or (without a placement) the folder of `recordings` and the cell.
        capabilities: what it may do.
        tokenizer: "module:Class" of a `backends.base.Tokenizer` of a path and a placement; None where only the running
            engine knows.
        label_model: "module:Class" of what asks it for labels, where that is not by log-probabilities.
        packages: that it imports.
        extra: the extra that installs them, where that has another name.
        platforms: of `sys.platform` that it runs on; empty is all.
        key: the environment variable of a hosted API's key.
    """

    name: str
    target: str
    reads: Literal["file", "server", "hosted", "recordings"] = "file"
    capabilities: Capabilities = Capabilities()
    meaning: str = ""
    tokenizer: str | None = None
    label_model: str | None = None
    packages: tuple[str, ...] = ()
    extra: str = ""
    platforms: tuple[str, ...] = ()
    key: str | None = None

    @property
    def remote(self) -> bool:
        """Whether a program elsewhere holds the model, whatever file this machine has."""
        return self.reads in ("server", "hosted")


@dataclass(frozen=True, slots=True)
class ExecutorSpec:
    """Where builds run, if not on this machine alone; a study's `executor` names it.

    Attributes:
        target: "module:Class" of a `collect.executor.Executor`, made with the text that the study gives it, or None.
    """

    name: str
    target: str
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class Importer:
    """A format of other people's samples.

    Attributes:
        target: "module:name" of a function of a path that gives the rows, each a mapping as a line of JSONL is.
        suffixes: of files that are taken to be of it.
        blocks: the function gives `ingestion.rows.Block`s of what is wanted (a path, a `Wanted`) instead.
        columns: where its rows have what, as in `sources.yaml`, for sources that do not say.
        sign: how a file of it begins, as a regular expression; empty where that does not tell.
        log: "module:name" of a function of a path and `ingestion.logs.LogOptions` that gives an
            `ingestion.logs.LogFile`: what `import` and `compare` know of a log without being told.
    """

    name: str
    target: str
    suffixes: tuple[str, ...] = ()
    meaning: str = ""
    blocks: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    sign: str = ""
    log: str = ""


@dataclass(frozen=True, slots=True)
class GateRule:
    """Something that a gate asks of every build besides the decision, in its `checks`.

    Attributes:
        target: "module:name" of a function of a cell of `decision.json`, its row of the matrix (None where it has
            none) and the options of the gate's policy, that gives a `protocol.gate.Status` and the reason.
    """

    name: str
    target: str
    meaning: str
