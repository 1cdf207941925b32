"""The hosted APIs of Anthropic and OpenAI by their own clients, as models that choose one of a few labels.

Anthropic's is held to the labels by a tool that must be called, OpenAI's by a strict JSON schema. The clients make a
request that failed again (408, 409, 429, 5xx, a broken connection), after their own growing waits. The key is read from
the environment and given to the client alone: no identity, error or file has it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any, NoReturn

from quantverdict.backends.base import Service
from quantverdict.backends.choosing import SEED, Chooser, Identity, choice_schema, declined
from quantverdict.errors import EngineError
from quantverdict.records import Completion, Prompt

INSTALL = "pip install 'quantverdict[hosted]'"
KEYS = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}
ROOM = {"anthropic": 256, "openai": 2048}
"""Tokens of a reply; a model of OpenAI's that reasons takes these from the same count."""
_TOOL = "label"
_OF_THE_QUESTION = (400, 413, 422)
"""Statuses that one question gets; any other one, every question would."""


def open_hosted(kind: str, service: Service, parallel: int, temperature: float | None = None) -> Chooser:
    """A model of `anthropic` or `openai`.

    Args:
        service: the model's name; `url` empty is the API's own address; `api_key_env` None the API's usual variable.
        parallel: requests at once.
        temperature: None sends none, which newer models demand.

    Raises:
        EngineError: the client is not installed, or the environment holds no key.
    """
    return (AnthropicChooser if kind == "anthropic" else OpenAIChooser)(service, parallel, temperature)


class _HostedChooser:
    """What both have in common."""

    kind: str

    def __init__(self, service: Service, parallel: int, temperature: float | None) -> None:
        self._service, self._parallel, self._temperature = service, parallel, temperature
        self._key = _key(service.api_key_env or KEYS[self.kind])
        try:
            self._client, self._errors = self._open()
        except ImportError as error:
            raise EngineError(f"the client of {self.kind} is not installed; expected: {INSTALL}") from error

    @property
    def identity(self) -> Identity:
        said = {} if self._temperature is None else {"temperature": str(self._temperature)}
        return {"engine": self.kind, "version": version(self.kind), "model": self._service.model, **said, **self._reads}

    def choose(self, prompts: Sequence[Prompt]) -> list[Completion]:
        """See `Chooser`."""
        with ThreadPoolExecutor(max(1, min(self._parallel, len(prompts)))) as pool:
            futures = [pool.submit(self._answer, prompt) for prompt in prompts]
            try:
                return [future.result() for future in futures]
            finally:
                pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _answer(self, prompt: Prompt) -> Completion:
        any_error, status_error = self._errors
        try:
            return self._ask(prompt)
        except status_error as error:
            if getattr(error, "status_code", None) in _OF_THE_QUESTION:
                return declined(self._line(error))
            self._fail(prompt, error)
        except any_error as error:
            self._fail(prompt, error)

    def _fail(self, prompt: Prompt, error: Exception) -> NoReturn:
        # Its own chain holds the request, and that the key.
        raise EngineError(f"{self.kind}: {prompt.task}/{prompt.sample_id}: {self._line(error)}") from None

    def _line(self, error: Exception) -> str:
        return " ".join(str(error).split())[:300].replace(self._key, "***")

    def _settings(self) -> dict[str, Any]:
        """What both clients take."""
        own = {"base_url": self._service.url} if self._service.url else {}
        timing = {"timeout": self._service.timeout_s, "max_retries": self._service.retries}
        return {"api_key": self._key, **timing, **own}

    _reads: Identity = {}  # noqa: RUF012 - never written to

    def _open(self) -> tuple[Any, tuple[type[Exception], type[Exception]]]:
        """The client; its root exception, and that of a status."""
        raise NotImplementedError

    def _ask(self, prompt: Prompt) -> Completion:
        raise NotImplementedError


class AnthropicChooser(_HostedChooser):
    """A model of the Messages API."""

    kind = "anthropic"
    _reads: Identity = {"reads": "forced tool"}  # noqa: RUF012

    def _open(self) -> tuple[Any, tuple[type[Exception], type[Exception]]]:
        import anthropic

        return anthropic.Anthropic(**self._settings()), (anthropic.AnthropicError, anthropic.APIStatusError)

    def _ask(self, prompt: Prompt) -> Completion:
        tool = {"name": _TOOL, "description": "State the label.", "input_schema": choice_schema(prompt.choices)}
        more = {} if self._temperature is None else {"extra_body": {"temperature": self._temperature}}
        reply = self._client.messages.create(
            model=self._service.model,
            max_tokens=ROOM[self.kind],
            messages=[{"role": "user", "content": prompt.text}],
            tools=[tool],
            tool_choice={"type": "tool", "name": _TOOL},
            **more,
        )
        called = next((block.input for block in reply.content if block.type == "tool_use"), None)
        said = str(called.get("label", "")) if isinstance(called, dict) else ""
        finish = "stop" if said else f"the model ended by {reply.stop_reason}"
        return Completion(said, finish, reply.usage.input_tokens, reply.usage.output_tokens)


class OpenAIChooser(_HostedChooser):
    """A model of the chat completions API."""

    kind = "openai"
    _reads: Identity = {"reads": "JSON schema"}  # noqa: RUF012

    def _open(self) -> tuple[Any, tuple[type[Exception], type[Exception]]]:
        import openai

        return openai.OpenAI(**self._settings()), (openai.OpenAIError, openai.APIStatusError)

    def _ask(self, prompt: Prompt) -> Completion:
        schema = {"name": _TOOL, "strict": True, "schema": choice_schema(prompt.choices)}
        more = {} if self._temperature is None else {"temperature": self._temperature, "seed": SEED}
        reply = self._client.chat.completions.create(
            model=self._service.model,
            max_completion_tokens=ROOM[self.kind],
            messages=[{"role": "user", "content": prompt.text}],
            response_format={"type": "json_schema", "json_schema": schema},
            **more,
        )
        message = reply.choices[0].message if reply.choices else None
        said = (message.content or "") if message is not None else ""
        refused = getattr(message, "refusal", None)
        finish = "stop" if said else f"the model declined: {refused}" if refused else "the reply has no text"
        tokens = (reply.usage.prompt_tokens, reply.usage.completion_tokens) if reply.usage else (0, 0)
        return Completion(said, finish, *tokens)


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise EngineError(f"the environment variable {variable} holds no key")
    return key
