"""Recorded completions: a user's own outputs, demos, tests.

One file a cell, `BASE__QUANT.jsonl`. A line has `task`, `sample_id` and `text`; it may have `finish`, `prompt_tokens`,
`output_tokens`, `prompt_ids_sha256`, `choice_logprobs`, `reasoning` (also as `reasoning_content` or `thinking`, by
the names of servers), `opened` (the prompt ended inside a thought), `replies` (to the earlier turns of a
conversation, in their order), and `prompt_sha256`, which must then be the prompt's. Other keys are ignored, so the
`responses/` of a bundle can be replayed as they are.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from quantverdict.backends.base import Decoding, Progress
from quantverdict.errors import EngineError, os_reason
from quantverdict.records import CellId, Completion, Prompt
from quantverdict.yaml_file import decoded, encoding_of

Count = Annotated[int, Field(ge=0)]


class RecordedAnswer(BaseModel):
    """One recorded answer."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    task: str
    sample_id: str
    text: str
    finish: Annotated[str, Field(pattern="^(stop|length)$")] = "stop"
    prompt_tokens: Count | None = None
    output_tokens: Count | None = None
    prompt_sha256: str | None = None
    prompt_ids_sha256: str | None = None
    choice_logprobs: Annotated[tuple[FiniteFloat, ...] | None, Field(strict=False)] = None
    reasoning: Annotated[
        str | None, Field(validation_alias=AliasChoices("reasoning", "reasoning_content", "thinking"))
    ] = None
    opened: bool = False
    replies: Annotated[tuple[str, ...], Field(strict=False)] = ()


class ReplayBackend:
    """Answers a cell's prompts with what is recorded for them."""

    def __init__(self, directory: Path, cell: CellId) -> None:
        """Read the cell's file.

        Raises:
            EngineError: no such file, or a line that is wrong, by file and line.
        """
        self.path = directory / f"{cell.base_model}__{cell.quant}.jsonl"
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise EngineError(f"{self.path}: cannot be read ({os_reason(error)})") from error
        self._answers = self._read(data)
        counted = all(answer.output_tokens is not None for answer in self._answers.values())
        self._identity: dict[str, str | int | bool] = {
            "engine": "replay",
            "sha256": hashlib.sha256(data).hexdigest(),
            "token_counts": "recorded" if counted else "words where not recorded",
        }

    @property
    def identity(self) -> Mapping[str, str | int | bool]:
        return self._identity

    def complete(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding,  # noqa: ARG002 - what is recorded is recorded
        progress: Progress | None = None,
    ) -> list[Completion]:
        """The recorded answers, in the order of `prompts`.

        Raises:
            EngineError: a prompt has no recorded answer, or its answer was to another prompt.
        """
        completions = [self._answer(prompt) for prompt in prompts]
        if progress is not None:
            progress(len(completions), sum(completion.output_tokens or 0 for completion in completions))
        return completions

    def close(self) -> None:
        """Nothing is held."""

    def _read(self, data: bytes) -> dict[tuple[str, str], RecordedAnswer]:
        answers: dict[tuple[str, str], RecordedAnswer] = {}
        if encoding_of(data[:4]) != "utf-8-sig":
            try:
                data = decoded(data).encode()
            except UnicodeError as error:
                raise EngineError(f"{self.path}: cannot be read ({error})") from error
        data = data.removeprefix(codecs.BOM_UTF8)
        for number, line in enumerate(data.split(b"\n"), start=1):
            if not line.strip():
                continue
            answer = self._parse(line, number)
            if answers.setdefault((answer.task, answer.sample_id), answer) is not answer:
                raise EngineError(f"{self.path}:{number}: {answer.task}/{answer.sample_id} is recorded twice")
        return answers

    def _parse(self, line: bytes, number: int) -> RecordedAnswer:
        try:
            return RecordedAnswer.model_validate(json.loads(line))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise EngineError(f"{self.path}:{number}: {where}: {first['msg']}") from error
        except (ValueError, RecursionError) as error:
            raise EngineError(f"{self.path}:{number}: not valid JSON ({error})") from error

    def _answer(self, prompt: Prompt) -> Completion:
        name = f"{prompt.task}/{prompt.sample_id}"
        recorded = self._answers.get((prompt.task, prompt.sample_id))
        if recorded is None:
            raise EngineError(f"{self.path}: no answer to {name} is recorded")
        if recorded.prompt_sha256 not in (None, prompt.sha256):
            raise EngineError(f"{self.path}: the recorded answer to {name} is to another prompt")
        asked, turn = prompt.text if prompt.chat is None else prompt.chat, len(prompt.replies)
        if turn > len(recorded.replies):
            problem = f"{len(recorded.replies)} replies are recorded besides the answer, and turn {turn + 1} is asked"
            raise EngineError(f"{self.path}: {name}: {problem}")
        if turn < len(recorded.replies):
            reply, ids = recorded.replies[turn], recorded.prompt_ids_sha256
            return Completion(reply, "stop", words(asked), words(reply), ids, opened=recorded.opened)
        return Completion(
            text=recorded.text,
            finish=recorded.finish,
            prompt_tokens=words(asked) if recorded.prompt_tokens is None else recorded.prompt_tokens,
            output_tokens=words(recorded.text) if recorded.output_tokens is None else recorded.output_tokens,
            prompt_ids_sha256=recorded.prompt_ids_sha256,
            choice_logprobs=recorded.choice_logprobs,
            reasoning=recorded.reasoning,
            opened=recorded.opened,
        )


def words(text: str) -> int:
    """Words, where tokens were not recorded; the backend's identity says so."""
    return len(text.split())
