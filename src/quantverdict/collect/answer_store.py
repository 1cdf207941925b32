"""Answers that outlive their bundle: what one build said by one engine is not asked again by another study.

A file holds what one build said by one engine with its settings. A line is one answer, under a hash of all that it
follows from: the build, the engine, the prompt as rendered (no engine shows its tokens before it is asked; what
arguments of the template change is in there), the choices, the limits, and the batch where the engine's answers depend
on it. A line without a right checksum is none. The store is a convenience: a bundle holds its own answers, and a store
that cannot be read or written is done without.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from quantverdict.artifacts.sources import cache_dir
from quantverdict.backends.base import Decoding
from quantverdict.bundle.files import Lock, saving
from quantverdict.bundle.jsonl_store import JsonlStore, proved_value
from quantverdict.bundle.store import key_of
from quantverdict.collect.generate import Identity
from quantverdict.errors import BundleError
from quantverdict.records import Completion, Prompt

FOLDER = "QUANTVERDICT_STORE"
"""An environment variable: the folder of the store. Set to nothing, answers are not kept."""
WAIT_S = 30.0
"""How long another run may write before this one goes on without keeping what it asked."""


def chosen_folder(given: Path | None, *, cache: bool = True) -> Path | None:
    """Where answers are kept: as given, by QUANTVERDICT_STORE, else in `answers` beside the levels that were made.

    Args:
        cache: False where none are to be.

    Returns:
        None where none are; so too where the variable is set to nothing.

    Raises:
        BundleError: what was given is no folder, or is given although none are to be kept.
    """
    if given is not None:
        if not cache:
            raise BundleError(f"{given}: answers are to be kept there and not to be kept; give --store or --no-cache")
        if given.exists() and not given.is_dir():
            raise BundleError(f"{given}: is no folder; name the folder of kept answers, or --no-cache")
        return given
    if not cache:
        return None
    own = os.environ.get(FOLDER)
    if own is None:
        return cache_dir() / "answers"
    return Path(own).expanduser() if own else None


class AnswerStore:
    """A folder of answers, shared by all runs of a user.

    Args:
        say: told once where it cannot be used.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self._say = folder, say
        self._usable = True

    def of(self, build: str, identity: Identity, *, batched: bool) -> BuildAnswers:
        """What a build said by an engine.

        Args:
            build: hash of all that changes its answers; empty where the engine alone knows.
            batched: whether an answer depends on what is asked beside it.
        """
        return BuildAnswers(self, key_of(build, dict(identity)), batched=batched)

    def read(self, name: str) -> dict[str, Completion]:
        """The answers of a file by their keys; what is none is left out."""
        found: dict[str, Completion] = {}
        if self._usable:
            try:
                lines = self._file(name).lines()
            except BundleError as error:
                self._give_up(error)
            else:
                found = dict(filter(None, map(_entry, lines)))
        return found

    def append(self, name: str, answers: Mapping[str, Completion]) -> None:
        """Add answers to a file; one run at a time."""
        if not (self._usable and answers):
            return
        file = self._file(name)
        try:
            with saving(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = Lock(self.folder, WAIT_S)
            try:
                file.mend()
                file.append({"key": key, **_values(said)} for key, said in answers.items())
            finally:
                lock.release()
        except BundleError as error:
            self._give_up(error)

    def _file(self, name: str) -> JsonlStore:
        return JsonlStore(self.folder / name[:2] / f"{name[:32]}.jsonl", synced=False)

    def _give_up(self, error: BundleError) -> None:
        self._usable = False
        self._say(f"answers are neither kept nor reused: {error}")


class BuildAnswers:
    """What one build said by one engine; see `generate.KeptAnswers`."""

    def __init__(self, store: AnswerStore, name: str, *, batched: bool) -> None:
        self._store, self._name, self._batched = store, name, batched
        self._known = store.read(name)

    def find(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[Completion | None]:
        """What was said to each prompt; to all or to none where an answer depends on the others."""
        found = [self._known.get(key) for key in self._keys(prompts, decoding)]
        return [None] * len(found) if self._batched and None in found else found

    def keep(self, prompts: Sequence[Prompt], decoding: Decoding, said: Sequence[Completion]) -> None:
        """Store what was said to a batch."""
        new = {key: one for key, one in zip(self._keys(prompts, decoding), said, strict=True) if key not in self._known}
        self._store.append(self._name, new)
        self._known |= new

    def _keys(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
        asked = [
            (prompt.sha256, prompt.chat is not None, list(prompt.choices), *([prompt.draw] if prompt.draw else ()))
            for prompt in prompts
        ]
        beside = key_of(asked) if self._batched else None
        limits = {name: value for name, value in asdict(decoding).items() if value is not None}
        return [key_of(self._name, *one, limits, beside) for one in asked]


def _values(said: Completion) -> dict[str, object]:
    """Without its time: that is of the run that asked."""
    values = asdict(said)
    del values["ttft_ms"]
    if not said.replies:
        del values["replies"]
    return values


def _entry(line: bytes) -> tuple[str, Completion] | None:
    """A line's key and answer, None where it is no such line."""
    try:
        values = dict(proved_value(line))
        key = values.pop("key")
        said = Completion(**{**values, "replies": tuple(values.get("replies", ()))})
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return (key, replace(said, choice_logprobs=_numbers(said.choice_logprobs))) if _fits(key, said) else None


def _fits(key: object, said: Completion) -> bool:
    texts = all(one is None or isinstance(one, str) for one in (said.prompt_ids_sha256, said.reasoning, *said.replies))
    counts = all(one is None or type(one) is int for one in (said.prompt_tokens, said.output_tokens))
    numbers = said.choice_logprobs is None or (
        isinstance(said.choice_logprobs, list) and all(type(one) in (int, float) for one in said.choice_logprobs)
    )
    own = isinstance(key, str) and isinstance(said.text, str) and isinstance(said.finish, str)
    return own and texts and counts and numbers and isinstance(said.opened, bool) and said.ttft_ms is None


def _numbers(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(map(float, values))
