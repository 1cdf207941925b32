"""Prompts to token ids and back as Transformers reads a checkpoint's tokenizer, for every engine that runs checkpoints.

A GGUF file has one too, rebuilt from its metadata. Nothing of the weights is loaded.
"""

from __future__ import annotations

import json
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from quantverdict.artifacts.gguf_read import open_gguf
from quantverdict.backends.base import Placement, hash_ids, is_mark, opens_reasoning
from quantverdict.backends.batch_scheduler import BatchJob, GeneratedAnswer
from quantverdict.errors import EngineError, PromptTooLongError
from quantverdict.records import Completion, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INSTALL = "pip install 'quantverdict[transformers]'"
LIBRARY_ERRORS = (
    OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, AssertionError,
    EOFError, MemoryError, NameError, zipfile.BadZipFile,
)  # fmt: skip
"""What these libraries raise for files, shapes and settings that they cannot do."""
_FOREIGN_ERRORS = {"PickleError", "SafetensorError", "StrictDataclassError", "PanicException"}
"""Classes of safetensors, huggingface_hub and what is written in Rust; to import them would take their packages."""

NEEDS_CODE = (
    "its files name code of their own (auto_map, modules.json), which is never run;"
    " expected a model that the installed libraries know"
)
_END_TEXTS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>",
    "<EOT>", "_<EOT>", "[EOT]", "<|end_of_text|>", "<end_of_utterance>", "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>",
    "<reponame>", "<|file_sep|>", "</s>", "<|flush|>", "<|calls|>", "[EOS]", "<eos>",
)  # fmt: skip
"""Tokens that end an answer whatever the model's files say, as in llama.cpp (llama-vocab.cpp)."""
_DIGIT_BY_DIGIT = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
"""Values of `tokenizer.ggml.pre` that split digits off first, which Transformers does not know of."""


class CheckpointTokenizer:
    """See `Tokenizer`.

    Args:
        path: a checkpoint's folder, or a GGUF file.

    Raises:
        EngineError: Transformers is not installed, or cannot read it.
    """

    def __init__(self, path: Path, _placement: Placement | None = None) -> None:
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise EngineError(f"Transformers is not installed ({error}); expected: {INSTALL}") from error
        with LibraryErrors(f"{path}: its tokenizer cannot be read"), _quiet(), pretrained(path) as (folder, options):
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
            if path.suffix == ".gguf":
                _split_digits(path, self._tokenizer)
        if set(self._tokenizer.get_vocab()) <= set(
            self._tokenizer.all_special_tokens
        ):  # made up, for want of its files
            raise EngineError(f"{path}: its tokenizer has no words; expected tokenizer.json beside the model")
        self.stops = self._stops(path)
        anchor = self._encode("a")
        self._anchor = anchor
        start = self._tokenizer.bos_token_id
        self._start = [start] if start is not None and self._tokenizer("a").input_ids[:1] == [start] else []
        self._anchor_length = len(self._tokenizer.decode(anchor, skip_special_tokens=True))
        special = {token: str(text) for token, text in self._tokenizer.added_tokens_decoder.items() if text.special}
        self._marks = frozenset(token for token, text in special.items() if is_mark(text))
        self._silent = frozenset(special) - self._marks

    def ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt; special tokens written in it are read as such.

        Raises:
            EngineError: it is not valid Unicode.
        """
        return tuple(self._begin(_asked(prompt)))

    @property
    def start(self) -> int | None:
        """The token that begins a sequence; None where the model wants none."""
        return self._start[0] if self._start else None

    def piece(self, token: int) -> str:
        """The text of one token, special tokens by their name."""
        return self.text((token,), special=True)

    def text(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of tokens that follow others: a space they begin with is kept.

        Special ones only if asked for, or where they structure an answer (`marks`).
        """
        if not special and not self._marks.isdisjoint(tokens):
            special, tokens = True, [token for token in tokens if token not in self._silent]
        options = {"skip_special_tokens": not special, "clean_up_tokenization_spaces": False}
        whole: str = self._tokenizer.decode([*self._anchor, *tokens], **options)
        return whole[self._anchor_length :]

    def job(self, prompt: Prompt, max_new_tokens: int, context: int) -> BatchJob:
        """A prompt as ids, its choices as they follow it.

        Raises:
            EngineError: it has no tokens, or does not fit the context.
        """
        text = _asked(prompt)
        tokens = self._begin(text)
        if not tokens:
            raise EngineError("the prompt has no tokens")
        choices = tuple(self._continuation(text, tokens, choice) for choice in prompt.choices)
        longest = max((len(choice) for choice in choices), default=0)
        if len(tokens) + max(min(1, max_new_tokens), longest - 1) > context:
            raise PromptTooLongError(
                f"the prompt's {len(tokens)} tokens do not fit a context of {context};"
                " expected a larger context or a shorter prompt"
            )
        return BatchJob(tuple(tokens), choices, opens_reasoning(text))

    def _continuation(self, text: str, prompt: list[int], choice: str) -> tuple[int, ...]:
        """Tokens of a choice as they follow the prompt's; by itself where prompt and choice melt into one token."""
        joint = self._begin(text + choice)
        melted = joint[: len(prompt)] != prompt
        tokens = self._encode(choice) if melted else joint[len(prompt) :]
        if not tokens:
            raise EngineError(f"the choice {choice!r} has no tokens")
        return tuple(tokens)

    def _begin(self, text: str) -> list[int]:
        tokens = self._encode(text)
        return tokens if tokens[:1] == self._start else self._start + tokens

    def _encode(self, text: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise EngineError(f"a text is not valid Unicode ({error.reason} at {error.start})") from error
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    def _stops(self, path: Path) -> tuple[int, ...]:
        """Ids that end an answer: all that the checkpoint's files name, and those that are known by their text."""
        vocabulary = self._tokenizer.get_vocab()
        known = {text for text in _END_TEXTS if text in vocabulary}
        if {"<|return|>", "<|call|>"} <= known:
            known -= {"<|end|>"}  # parts an answer there, and does not end it
        found = {vocabulary[text] for text in known} | {self._tokenizer.eos_token_id}
        if path.is_dir():
            for name in ("generation_config.json", "config.json"):
                found |= _end_ids(path / name)
        return tuple(sorted(token for token in found if token is not None))


def read_jobs(
    tokenizer: CheckpointTokenizer, prompts: Sequence[Prompt], max_new_tokens: int, context: int
) -> list[BatchJob]:
    """A batch as ids.

    Raises:
        EngineError: naming the prompt that cannot be asked.
    """
    jobs = []
    for prompt in prompts:
        try:
            jobs.append(tokenizer.job(prompt, max_new_tokens, context))
        except EngineError as error:
            raise error.of_prompt(f"{prompt.task}/{prompt.sample_id}") from error
    return jobs


def completion(tokenizer: CheckpointTokenizer, job: BatchJob, answer: GeneratedAnswer) -> Completion:
    """What became of a job, as a record."""
    return Completion(
        text=tokenizer.text(answer.tokens),
        finish=answer.finish,
        prompt_tokens=len(job.prompt),
        output_tokens=len(answer.tokens),
        prompt_ids_sha256=hash_ids(job.prompt),
        choice_logprobs=answer.choice_logprobs if job.choices else None,
        ttft_ms=answer.ttft_ms,
    )


def until_stop(tokens: Sequence[int], stops: Sequence[int]) -> tuple[list[int], str]:
    """Tokens before the first that ends an answer, and why they end."""
    end = next((i for i, token in enumerate(tokens) if token in stops), None)
    return (list(tokens), "length") if end is None else (list(tokens[:end]), "stop")


@contextmanager
def pretrained(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What `from_pretrained` takes for a folder or a GGUF file; no name of a model on a hub is ever looked up.

    That code in the folder is never run is said at every call: left out, Transformers asks on the terminal.
    A GGUF file is read in a folder of its own: files beside it may be another model's.
    """
    if not path.exists():
        raise EngineError(f"{path}: no such file or folder")
    if path.suffix != ".gguf":
        yield str(path), {"local_files_only": True}
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.gguf").symlink_to(path.resolve())
        yield folder, {"local_files_only": True, "gguf_file": "model.gguf"}


class LibraryErrors:
    """Turns what the libraries raise in its block into an `EngineError` of one line.

    No `except` clause: `tokenizers` raises `Exception` itself, which one could not tell from every other.

    Args:
        what: could not be done.
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        if isinstance(error, ImportError):
            raise EngineError(f"{self.what}: {one_line(error)}; expected: {INSTALL}") from error
        foreign = type(error) is Exception or _FOREIGN_ERRORS & {base.__name__ for base in type(error).__mro__}
        if foreign or isinstance(error, LIBRARY_ERRORS):
            raise EngineError(f"{self.what}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """An exception of a library, in one line."""
    if "trust_remote_code" in str(error):  # the libraries have no class for it, and would have the reader allow it
        return NEEDS_CODE
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def _asked(prompt: Prompt) -> str:
    return prompt.text if prompt.chat is None else prompt.chat


def _end_ids(file: Path) -> set[int]:
    try:
        settings = json.loads(file.read_bytes())
    except FileNotFoundError:
        return set()
    except (OSError, ValueError) as error:
        raise EngineError(f"{file}: cannot be read ({error})") from error
    found: set[int] = set()
    for part in (settings, settings.get("text_config")):
        ids = part.get("eos_token_id") if isinstance(part, Mapping) else None
        found |= set(ids) if isinstance(ids, list) else set() if ids is None else {ids}
    return found


def _split_digits(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    if open_gguf(path).text("tokenizer.ggml.pre") in _DIGIT_BY_DIGIT:
        from tokenizers import pre_tokenizers

        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Transformers' remarks to itself, and leave its logging as it was."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
