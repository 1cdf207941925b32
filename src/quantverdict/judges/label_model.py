"""Models that are asked to choose one of a few labels, each held to them as far as its engine can be.

In this process's reach (llama.cpp, Transformers, vLLM) the log-probability of every label is read and nothing is
generated. A server or Ollama answers by a JSON schema; one that takes none answers freely, and what it says is read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, Protocol

from quantverdict.backends.base import Backend, Decoding, Placement, Service
from quantverdict.backends.http import HttpClient, RejectedReplyError, ask_all, closed_unless_ready
from quantverdict.backends.ollama import OllamaClient
from quantverdict.backends.replies import Message, Reply, Tokens, read_reply
from quantverdict.backends.server import identify
from quantverdict.errors import EngineError, PromptTooLongError
from quantverdict.records import Completion, Prompt
from quantverdict.registry import BACKENDS
from quantverdict.registry.listing import load

ROOM = 64
"""Tokens that a label in JSON may take."""

SEED = 42
"""Sent where an API takes one; all are asked at temperature 0."""
Identity = Mapping[str, str | int | bool]


class LabelModel(Protocol):
    """A model that is asked to choose."""

    @property
    def identity(self) -> Identity:
        """Engine, version and every setting that can change a choice; no key and no address."""
        ...

    def choose(self, prompts: Sequence[Prompt]) -> list[Completion]:
        """One of `Prompt.choices` for each prompt, in their order.

        `choice_logprobs` are filled where the engine gives them, and `text` is then of no account; else `text` is the
        reply. A question that the model declines for good has an empty text, and `finish` says why.

        Raises:
            EngineError: it could not be asked, after all retries; nothing of the batch counts.
        """
        ...

    def close(self) -> None:
        """Release the model; may be called twice."""
        ...


def choice_schema(choices: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of a reply."""
    label = {"type": "string", "enum": list(choices)}
    return {"type": "object", "properties": {"label": label}, "required": ["label"], "additionalProperties": False}


class LogprobLabelModel:
    """A backend that gives log-probabilities of choices; or one that answers freely, where `tokens` says how long."""

    def __init__(self, backend: Backend, tokens: int = 0) -> None:
        self._backend, self._decoding = backend, Decoding(max_new_tokens=tokens)

    @property
    def identity(self) -> Identity:
        reads = "replies" if self._decoding.max_new_tokens else "log-probabilities of the labels"
        return {**self._backend.identity, "reads": reads}

    def choose(self, prompts: Sequence[Prompt]) -> list[Completion]:
        """See `LabelModel`; a backend that refuses a batch for one question of it is asked the others again."""
        found: dict[int, Completion] = {}
        while asked := [number for number in range(len(prompts)) if number not in found]:
            try:
                done = self._backend.complete([prompts[number] for number in asked], self._decoding)
            except PromptTooLongError as error:
                long = [number for number in asked if _name(prompts[number]) == error.prompt]
                if not long:
                    raise
                found |= {number: declined(str(error)) for number in long}
            else:
                found |= dict(zip(asked, done, strict=True))
        return [found[number] for number in range(len(prompts))]

    def close(self) -> None:
        self._backend.close()


def _name(prompt: Prompt) -> str:
    """As a backend calls a prompt in its errors."""
    return f"{prompt.task}/{prompt.sample_id}"


class _Usage(Reply):
    prompt_tokens: Tokens = 0
    completion_tokens: Tokens = 0


class _Choice(Reply):
    message: Message


class _Chat(Reply):
    choices: list[_Choice]
    usage: _Usage = _Usage()


class _RemoteLabelModel:
    """What a server and Ollama have in common: questions are asked side by side, one that is refused is declined."""

    def __init__(self, client: HttpClient, parallel: int) -> None:
        self._client, self._parallel = client, parallel

    def choose(self, prompts: Sequence[Prompt]) -> list[Completion]:
        """See `LabelModel`."""
        return ask_all(self._client, self._answer, prompts, self._parallel, None)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _answer(self, prompt: Prompt) -> Completion:
        try:
            return self._ask(prompt)
        except RejectedReplyError as error:
            return declined(str(error))

    def _ask(self, prompt: Prompt) -> Completion:
        raise NotImplementedError


class ServerLabelModel(_RemoteLabelModel):
    """A server of the OpenAI API, by its own chat template.

    Raises:
        EngineError: it cannot be reached, or has no such model.
    """

    def __init__(self, service: Service, placement: Placement, _temperature: float | None = None) -> None:
        super().__init__(HttpClient(service, "/v1"), placement.parallel)
        self._takes_schema = True
        with closed_unless_ready(self._client):
            self._engine = identify(self._client, service.model)
            self._takes_schema = self._offers_schema()

    @property
    def identity(self) -> Identity:
        engine = self._engine
        reads = "JSON schema" if self._takes_schema else "text"
        return {"engine": engine.name, "version": engine.version, "model": engine.model, "reads": reads, **engine.facts}

    def _offers_schema(self) -> bool:
        """Whether the server takes a schema; it is asked once, so that no two questions are asked in two ways."""
        probe = Prompt("", "", "Reply with yes.", None, "", ("yes", "no"))
        try:
            self._ask(probe)
        except RejectedReplyError:
            return False
        return True

    def _ask(self, prompt: Prompt) -> Completion:
        body: dict[str, Any] = {
            **self._engine.settings,
            "model": self._engine.model,
            "messages": [{"role": "user", "content": prompt.text}],
            "max_tokens": ROOM,
            "temperature": 0,
            "seed": SEED,
            "stream": False,
        }
        if self._takes_schema:
            schema = {"name": "label", "strict": True, "schema": choice_schema(prompt.choices)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        path = self._client.base + "/chat/completions"
        reply = read_reply(_Chat, self._client.ask(path, body), self._client.host + path)
        said = reply.choices[0].message if reply.choices else Message()
        tokens = (reply.usage.prompt_tokens, reply.usage.completion_tokens)
        return Completion(said.text or "", "stop", *tokens, reasoning=said.thought)


class _Ollama(Reply):
    message: Message
    prompt_eval_count: int = 0
    eval_count: int = 0


class OllamaLabelModel(_RemoteLabelModel):
    """A model that Ollama holds, by its native API: the schema goes into `format`, and no prompt is cut.

    Raises:
        EngineError: it cannot be reached, or has no such model.
    """

    def __init__(self, service: Service, placement: Placement, _temperature: float | None = None) -> None:
        self._ollama = OllamaClient(service)
        super().__init__(self._ollama.http, placement.parallel)
        self._context = placement.context
        self._identity: dict[str, str | int | bool] = {
            "engine": "ollama",
            "version": self._ollama.version,
            "model": self._ollama.model,
            "digest": self._ollama.digest,
            "reads": "JSON schema",
            "context": placement.context,
        }

    @property
    def identity(self) -> Identity:
        return self._identity

    def _ask(self, prompt: Prompt) -> Completion:
        context = self._context
        options = {"temperature": 0, "seed": SEED, "num_predict": ROOM, "num_ctx": context}
        body = {
            "model": self._ollama.model,
            "messages": [{"role": "user", "content": prompt.text}],
            "format": choice_schema(prompt.choices),
            "options": options,
            "stream": False,
            "truncate": False,
            "shift": False,
        }
        reply = self._ollama.post(_Ollama, "/api/chat", body)
        if reply.prompt_eval_count + reply.eval_count >= context:
            return declined(f"the question does not fit a context of {context}; expected a larger one")
        said, tokens = reply.message, (reply.prompt_eval_count, reply.eval_count)
        return Completion(said.text or "", "stop", *tokens, reasoning=said.thought)


def declined(reason: str) -> Completion:
    """A question that a model does not take: no text, and why."""
    return Completion("", reason, 0, 0)


@dataclass(frozen=True, slots=True)
class Target:
    """What is opened: a file or folder, or a program that holds the model.

    Attributes:
        temperature: for a hosted API, None to send none.
        reply_tokens: of a free reply to a prompt that is sent as it is; 0 where it is held to labels.
    """

    kind: str
    path: Path | None
    service: Service | None
    placement: Placement
    temperature: float | None = None
    reply_tokens: int = 0


def open_label_model(target: Target) -> LabelModel:
    """Load a model that is to choose.

    Raises:
        EngineError: it cannot be loaded.
    """
    spec = BACKENDS.find(target.kind)
    if target.reply_tokens:
        from quantverdict.backends.open import open_backend

        backend = open_backend(target.kind, target.path, target.placement, service=target.service)
        return LogprobLabelModel(backend, target.reply_tokens)
    if spec.label_model is not None and target.service is not None:
        label_model: LabelModel = load(spec.label_model)(target.service, target.placement, target.temperature)
        return label_model
    from quantverdict.backends.open import open_backend

    return LogprobLabelModel(open_backend(target.kind, target.path, target.placement))


# The hosted APIs of Anthropic and OpenAI by their own clients, as models that choose one of a few labels.
#
# Anthropic's is held to the labels by a tool that must be called, OpenAI's by a strict JSON schema. The clients make a
# request that failed again (408, 409, 429, 5xx, a broken connection), after their own growing waits. The key is read
# from the environment and given to the client alone: no identity, error or file has it.

INSTALL = "pip install 'quantverdict[hosted]'"
MAX_TOKENS = {"anthropic": 256, "openai": 2048}
"""Tokens of a reply; a model of OpenAI's that reasons takes these from the same count."""
_TOOL = "label"
_OF_THE_QUESTION = (400, 413, 422)
"""Statuses that one question gets; any other one, every question would."""


class _HostedLabelModel:
    """What both have in common.

    Args:
        service: the model's name; `url` empty is the API's own address; `api_key_env` None the API's usual variable.
        temperature: None sends none, which newer models demand.

    Raises:
        EngineError: the client is not installed, or the environment holds no key.
    """

    kind: str

    def __init__(self, service: Service, placement: Placement, temperature: float | None = None) -> None:
        self._service, self._parallel, self._temperature = service, placement.parallel, temperature
        self._key = _key(service.api_key_env or BACKENDS[self.kind].key or "")
        try:
            self._client, self._errors = self._open()
        except ImportError as error:
            raise EngineError(f"the client of {self.kind} is not installed; expected: {INSTALL}") from error

    @property
    def identity(self) -> Identity:
        said = {} if self._temperature is None else {"temperature": str(self._temperature)}
        return {"engine": self.kind, "version": version(self.kind), "model": self._service.model, **said, **self._reads}

    def choose(self, prompts: Sequence[Prompt]) -> list[Completion]:
        """See `LabelModel`."""
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


class AnthropicLabelModel(_HostedLabelModel):
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
            max_tokens=MAX_TOKENS[self.kind],
            messages=[{"role": "user", "content": prompt.text}],
            tools=[tool],
            tool_choice={"type": "tool", "name": _TOOL},
            **more,
        )
        called = next((block.input for block in reply.content if block.type == "tool_use"), None)
        said = str(called.get("label", "")) if isinstance(called, dict) else ""
        finish = "stop" if said else f"the model ended by {reply.stop_reason}"
        return Completion(said, finish, reply.usage.input_tokens, reply.usage.output_tokens)


class OpenAILabelModel(_HostedLabelModel):
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
            max_completion_tokens=MAX_TOKENS[self.kind],
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
