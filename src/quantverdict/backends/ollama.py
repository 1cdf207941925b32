"""Ollama by its native API: the digest says which build answers, and `num_ctx` is set so that no prompt is cut.

A prompt is sent as it was rendered (`raw`), without the start token where Ollama puts one itself. Penalties that
Ollama or the model file would add are switched off; the model file's stop texts stay and are part of the identity.
Ollama shows no token ids; it tells log-probabilities of the 20 likeliest next tokens, so choices are scored where each
of them is one of these.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from quantverdict.backends.base import Decoding, Placement, Progress, Service
from quantverdict.backends.http import HttpClient, ask_all, chat_messages, closed_unless_ready, without_start
from quantverdict.backends.replies import Message, Reply, Shape, Tokens, is_loaded, read_reply
from quantverdict.errors import EngineError
from quantverdict.records import Completion, Prompt

FINISHES = ("stop", "length")
HOST = "http://127.0.0.1:11434"
_LIKELIEST = 20
_NS_PER_MS = 1e6


def ollama_url() -> str:
    """Where Ollama is: OLLAMA_HOST, else its port on this machine."""
    host = os.environ.get("OLLAMA_HOST") or HOST
    return host if "://" in host else f"http://{host}"


class _Version(Reply):
    version: str


class _Tag(Reply):
    name: str
    digest: str


class _Tags(Reply):
    models: list[_Tag]


class OllamaClient:
    """Ollama's native API: what it holds and what it is; asked for answers and for labels alike.

    Args:
        service: where Ollama answers, and the model's name there.

    Attributes:
        model, digest: of the model, by the name that Ollama has for it.
        version: of Ollama.

    Raises:
        EngineError: it cannot be reached, or has no such model.
    """

    def __init__(self, service: Service) -> None:
        self.http = HttpClient(service)
        with closed_unless_ready(self.http):
            tags = {tag.name: tag.digest for tag in self.get(_Tags, "/api/tags").models}
            latest = f"{service.model}:latest"
            wanted = latest if latest in tags else service.model
            self.model = is_loaded(list(tags), wanted, self._where("/api/tags"))
            self.digest = tags[self.model]
            self.version = self.get(_Version, "/api/version").version

    def get(self, shape: type[Shape], path: str) -> Shape:
        """What a path says.

        Raises:
            EngineError: it cannot be had, or is of another shape.
        """
        return read_reply(shape, self.http.get(self.http.base + path), self._where(path))

    def post(self, shape: type[Shape], path: str, body: Mapping[str, Any]) -> Shape:
        """What a path replies to a request; see `get`."""
        return read_reply(shape, self.http.post(self.http.base + path, body), self._where(path))

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    def _where(self, path: str) -> str:
        return self.http.host + self.http.base + path


class _Details(Reply):
    format: str = "unknown"
    quantization_level: str = "unknown"


class _ShowReply(Reply):
    details: _Details
    parameters: str = ""
    model_info: Annotated[dict[str, Any], Field(default_factory=dict)]


class _TokenLogprob(Reply):
    token: str
    logprob: float


class _GenerateReply(_TokenLogprob):
    top_logprobs: Annotated[list[_TokenLogprob], Field(default_factory=list)]


class _Answer(Reply):
    done: bool
    done_reason: str
    response: str | None = None
    thinking: str | None = None
    message: Message | None = None
    prompt_eval_count: Tokens
    eval_count: Tokens = 0
    load_duration: int = 0
    prompt_eval_duration: int | None = None
    logprobs: list[_GenerateReply] | None = None


class OllamaBackend:
    """A model that Ollama holds; see `Backend`.

    Args:
        service: where Ollama answers, and the model's name there.
        placement: `parallel` requests at once, `context` tokens for prompt and answer.

    Raises:
        EngineError: it cannot be reached, has no such model, or the model has less context than is asked for.
    """

    def __init__(self, service: Service, placement: Placement) -> None:
        self._client = OllamaClient(service)
        self._placement = placement
        self._puts_start = False
        with closed_unless_ready(self._client):
            self._identity, shown = self._look_up()
            self._start = _start_text(shown)
            self._puts_start = bool(self._start) and self._reads("a") > 1

    @property
    def identity(self) -> Mapping[str, str | int | bool]:
        """Without the address: the same model may move."""
        return self._identity

    def complete(
        self, prompts: Sequence[Prompt], decoding: Decoding, progress: Progress | None = None
    ) -> list[Completion]:
        """Answer one batch.

        Raises:
            EngineError: a prompt was cut or not answered, after all retries; nothing of the batch counts.
        """

        def ask(prompt: Prompt) -> Completion:
            answer = self._ask(prompt, decoding)
            scored = self._choices(prompt) if prompt.choices else None
            return self._completion(answer, decoding.most_tokens, scored)

        return ask_all(self._client.http, ask, prompts, self._placement.parallel, progress)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _look_up(self) -> tuple[dict[str, str | int | bool], _ShowReply]:
        """The model's identity, and what else Ollama shows of it."""
        name = self._client.model
        shown = self._client.post(_ShowReply, "/api/show", {"model": name, "verbose": True})
        trained = next((value for key, value in shown.model_info.items() if key.endswith(".context_length")), None)
        context = self._placement.context
        if isinstance(trained, int) and trained < context:
            raise EngineError(
                f"{name} has a context of {trained} tokens, and Ollama goes no further; expected {context}"
            )
        identity: dict[str, str | int | bool] = {
            "engine": "ollama",
            "version": self._client.version,
            "model": name,
            "digest": self._client.digest,
            "quantization": shown.details.quantization_level,
            "format": shown.details.format,
            "parameters": "; ".join(" ".join(line.split()) for line in shown.parameters.splitlines() if line.strip()),
            "prompts": "text",
            "output_tokens": "without the end token",
            "parallel": self._placement.parallel,
            "context": context,
        }
        return identity, shown

    def _ask(self, prompt: Prompt, decoding: Decoding, more: Mapping[str, Any] | None = None) -> _Answer:
        options = {
            "temperature": decoding.temperature,
            "seed": decoding.seed + prompt.draw,
            "num_predict": max(1, decoding.most_tokens),  # 0 is no limit to some releases
            "num_ctx": self._placement.context,
            "repeat_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }
        body: dict[str, Any] = {
            "model": self._identity["model"],
            "options": options,
            "stream": False,
            "truncate": False,  # releases that know these two refuse what does not fit; others cut it, which
            "shift": False,  # the counts then show
            **(more or {}),
        }
        if prompt.chat is None:
            body["messages"] = chat_messages(prompt)
            return self._checked(self._client.post(_Answer, "/api/chat", body))
        text = without_start(prompt.chat, (self._start,)) if self._puts_start else prompt.chat
        return self._checked(self._client.post(_Answer, "/api/generate", body | {"prompt": text, "raw": True}))

    def _checked(self, answer: _Answer) -> _Answer:
        context = self._placement.context
        if not answer.done or answer.done_reason not in FINISHES:
            raise EngineError(f"Ollama finished by {answer.done_reason!r}; expected one of {', '.join(FINISHES)}")
        if answer.prompt_eval_count >= context or answer.prompt_eval_count + answer.eval_count > context + 1:
            raise EngineError(
                f"{answer.prompt_eval_count} tokens of prompt and {answer.eval_count} of answer in a context of"
                f" {context}: something was cut; expected a larger context or a shorter prompt"
            )
        return answer

    def _completion(self, answer: _Answer, max_new_tokens: int, scored: tuple[float, ...] | None) -> Completion:
        message = answer.message
        text = message.text if message is not None else answer.response
        reasoning = message.thought if message is not None else answer.thinking
        text = "" if text is None and reasoning else text
        if text is None:
            raise EngineError(f"{self._client.http.host}: Ollama's reply has no text")
        if text and answer.eval_count == 0:
            raise EngineError(f"{self._client.http.host}: Ollama's reply has a text of no tokens")
        if max_new_tokens < 1:
            return Completion("", "length", answer.prompt_eval_count, 0, choice_logprobs=scored)
        ttft = answer.prompt_eval_duration
        return Completion(
            text=text,
            finish=answer.done_reason,
            prompt_tokens=answer.prompt_eval_count,
            output_tokens=max(0, answer.eval_count - (answer.done_reason == "stop")),
            choice_logprobs=scored,
            ttft_ms=None if ttft is None else (answer.load_duration + ttft) / _NS_PER_MS,
            reasoning=reasoning or None,
        )

    def _choices(self, prompt: Prompt) -> tuple[float, ...] | None:
        """Natural log-probability of each choice, None where one is not among the likeliest tokens."""
        wish = {"logprobs": True, "top_logprobs": _LIKELIEST}
        generated = self._ask(prompt, Decoding(max_new_tokens=1), wish).logprobs
        if not generated:
            return None
        likely = {token.token: token.logprob for token in (*generated[0].top_logprobs, generated[0])}
        found = [likely[choice] for choice in prompt.choices if choice in likely]
        return tuple(found) if len(found) == len(prompt.choices) else None

    def _reads(self, text: str) -> int:
        """How many tokens Ollama makes of a text."""
        return self._ask(Prompt("", "", text, text, ""), Decoding(max_new_tokens=1)).prompt_eval_count


def _start_text(shown: _ShowReply) -> str:
    """The start token's text, by the vocabulary that Ollama shows; empty where it shows none."""
    tokens, start = (shown.model_info.get(f"tokenizer.ggml.{key}") for key in ("tokens", "bos_token_id"))
    if isinstance(tokens, list) and isinstance(start, int) and 0 <= start < len(tokens):
        return str(tokens[start])
    return ""
