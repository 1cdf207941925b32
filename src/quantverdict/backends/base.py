"""What a backend is: prompts in, completions out.

A backend is opened for one artifact, asked batch after batch, and closed. It must give the same completions for the
same batches: nothing it returns may depend on timing. It raises `EngineError` when it cannot go on; it never returns
an error text as an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from quantverdict.records import Completion, Prompt

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Progress = Callable[[int, int], None]
"""Called while a batch runs with (prompts finished in it, tokens generated in it) so far."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How text is generated. Greedy where `temperature` is 0 (the only value the llama.cpp backend takes)."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 42


@dataclass(frozen=True, slots=True)
class Placement:
    """How a backend uses the machine; equal for every cell of a study and part of its manifest.

    Attributes:
        parallel: sequences decoded at once.
        threads: CPU threads; None is the number of physical cores given to this process.
        context: tokens of context a sequence may use, prompt and answer together.
        wheel: the package whose llama.cpp runs GGUF builds.
        dtype: of a checkpoint's arithmetic; `auto` is float32 on a CPU.
    """

    parallel: int = 16
    threads: int | None = None
    context: int = 2048
    wheel: str = "xllamacpp"
    dtype: str = "auto"


@dataclass(frozen=True, slots=True)
class Service:
    """A program that answers over HTTP.

    Attributes:
        url: its base address, with the API's version where it has one.
        model: the name it knows the model by.
        api_key_env: the environment variable that holds the key; None where none is needed.
        timeout_s: seconds that one answer may take.
        retries: how often a request that was refused, timed out or broken off is made again.
    """

    url: str
    model: str
    api_key_env: str | None = None
    timeout_s: float = 120.0
    retries: int = 5


class Tokenizer(Protocol):
    """The tokens a backend reads a prompt as, without the model: proves that two backends are asked the same."""

    def ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt as the backend evaluates them, the start token included."""
        ...

    def piece(self, token: int) -> str:
        """The text of one token, special tokens by their name."""
        ...


@dataclass(frozen=True, slots=True)
class Forced:
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

    def force(self, prompt: Prompt, answer: str, part: range) -> Forced:
        """The predictions at the tokens of `answer` in `part`, none beyond its last; an empty part asks for ids alone.

        Raises:
            EngineError: the engine failed, or prompt and answer do not fit the context.
        """
        ...


class Backend(Protocol):
    """One loaded build."""

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
