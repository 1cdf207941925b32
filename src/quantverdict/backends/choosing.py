"""Models that are asked to choose one of a few labels, each held to them as far as its engine can be.

In this process's reach (llama.cpp, Transformers, vLLM) the log-probability of every label is read and nothing is
generated. A server or Ollama answers by a JSON schema; one that takes none answers freely, and what it says is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from quantverdict.backends.base import Backend, Decoding, Placement, Service
from quantverdict.backends.http import HttpClient, RefusedError
from quantverdict.backends.remote import Message, Reply, Tokens, ask_all, is_loaded, read_reply
from quantverdict.backends.server_engines import identify
from quantverdict.errors import EngineError
from quantverdict.records import Completion, Prompt

ROOM = 64
"""Tokens that a label in JSON may take."""

SEED = 42
"""Sent where an API takes one; all are asked at temperature 0."""
TOO_LONG = "a context of"
"""What every backend says, beside the prompt's name, of one that does not fit; nothing is computed then."""
Identity = Mapping[str, str | int | bool]


class Chooser(Protocol):
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


class LogprobChooser:
    """A backend that gives log-probabilities of choices."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @property
    def identity(self) -> Identity:
        return {**self._backend.identity, "reads": "log-probabilities of the labels"}

    def choose(self, prompts: Sequence[Prompt]) -> list[Completion]:
        """See `Chooser`; a backend that refuses a batch for one question of it is asked the others again."""
        found: dict[int, Completion] = {}
        while asked := [number for number in range(len(prompts)) if number not in found]:
            try:
                done = self._backend.complete([prompts[number] for number in asked], Decoding(max_new_tokens=0))
            except EngineError as error:
                told = str(error)
                long = [number for number in asked if TOO_LONG in told and f"{_name(prompts[number])}: " in told]
                if not long:
                    raise
                found |= {number: declined(told) for number in long}
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


class _RemoteChooser:
    """What a server and Ollama have in common: questions are asked side by side, one that is refused is declined."""

    def __init__(self, client: HttpClient, parallel: int) -> None:
        self._client, self._parallel = client, parallel

    def choose(self, prompts: Sequence[Prompt]) -> list[Completion]:
        """See `Chooser`."""
        return ask_all(self._client, self._answer, prompts, self._parallel, None)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _answer(self, prompt: Prompt) -> Completion:
        try:
            return self._ask(prompt)
        except RefusedError as error:
            return declined(str(error))

    def _ask(self, prompt: Prompt) -> Completion:
        raise NotImplementedError


class ServerChooser(_RemoteChooser):
    """A server of the OpenAI API, by its own chat template.

    Raises:
        EngineError: it cannot be reached, or has no such model.
    """

    def __init__(self, service: Service, placement: Placement) -> None:
        super().__init__(HttpClient(service, "/v1"), placement.parallel)
        ready, self._takes_schema = False, True
        try:
            self._engine = identify(self._client, service.model)
            self._takes_schema = self._offers_schema()
            ready = True
        finally:
            if not ready:
                self._client.close()

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
        except RefusedError:
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
        reply = read_reply(_Chat, self._client.post(path, body), self._client.host + path)
        said = reply.choices[0].message if reply.choices else Message()
        tokens = (reply.usage.prompt_tokens, reply.usage.completion_tokens)
        return Completion(said.text or "", "stop", *tokens, reasoning=said.thought)


class _Tag(Reply):
    name: str
    digest: str


class _Tags(Reply):
    models: list[_Tag]


class _Version(Reply):
    version: str


class _Ollama(Reply):
    message: Message
    prompt_eval_count: int = 0
    eval_count: int = 0


class OllamaChooser(_RemoteChooser):
    """A model that Ollama holds, by its native API: the schema goes into `format`, and no prompt is cut.

    Raises:
        EngineError: it cannot be reached, or has no such model.
    """

    def __init__(self, service: Service, placement: Placement) -> None:
        super().__init__(HttpClient(service), placement.parallel)
        self._context = placement.context
        ready = False
        try:
            tags = read_reply(_Tags, self._client.get("/api/tags"), "/api/tags").models
            digests = {tag.name: tag.digest for tag in tags}
            latest = f"{service.model}:latest"
            wanted = latest if latest in digests else service.model
            self._model = is_loaded(list(digests), wanted, self._client.host)
            version = read_reply(_Version, self._client.get("/api/version"), "/api/version").version
            ready = True
        finally:
            if not ready:
                self._client.close()
        self._identity: dict[str, str | int | bool] = {
            "engine": "ollama",
            "version": version,
            "model": self._model,
            "digest": digests[self._model],
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
            "model": self._model,
            "messages": [{"role": "user", "content": prompt.text}],
            "format": choice_schema(prompt.choices),
            "options": options,
            "stream": False,
            "truncate": False,
            "shift": False,
        }
        reply = read_reply(_Ollama, self._client.post("/api/chat", body), self._client.host + "/api/chat")
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
    """

    kind: str
    path: Path | None
    service: Service | None
    placement: Placement
    temperature: float | None = None


def open_chooser(target: Target) -> Chooser:
    """Load a model that is to choose.

    Raises:
        EngineError: it cannot be loaded.
    """
    remote: dict[str, Callable[[Service, Placement], Chooser]] = {"server": ServerChooser, "ollama": OllamaChooser}
    if target.kind in remote and target.service is not None:
        return remote[target.kind](target.service, target.placement)
    if target.kind in ("anthropic", "openai") and target.service is not None:
        from quantverdict.backends.hosted import open_hosted

        return open_hosted(target.kind, target.service, target.placement.parallel, target.temperature)
    from quantverdict.backends.open import open_backend

    return LogprobChooser(open_backend(target.kind, target.path, target.placement))
