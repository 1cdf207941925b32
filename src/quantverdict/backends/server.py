"""Any server of the OpenAI API: vLLM, llama-server, SGLang, LM Studio.

A prompt is sent as it was rendered: as token ids where the server has a tokenizer to show, so that the start token is
put once and what is hashed is what is evaluated, else as text. Where a prompt has no chat text, its user's turn goes
through the server's own template. Other requests that the server answers beside ours can change the last bits of its
sums: for equal answers run by run, ask one at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quantverdict.backends.base import Decoding, Placement, Progress, Service
from quantverdict.backends.http import HttpClient
from quantverdict.backends.remote import Message, Reply, Tokens, ask_all, read_reply, without_start
from quantverdict.backends.server_engines import Engine, identify
from quantverdict.backends.server_tokens import Ids, ServerTokenizer, find_choices, find_tokenizer
from quantverdict.backends.token_hash import hash_ids
from quantverdict.errors import EngineError
from quantverdict.records import Completion, Prompt

STARTS = ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<｜begin▁of▁sentence｜>", "[BOS]")  # noqa: RUF001
"""Start tokens by name, for servers that do not show their tokens."""
FINISHES = ("stop", "length")


class _Usage(Reply):
    prompt_tokens: Tokens
    completion_tokens: Tokens


class _Timings(Reply):
    prompt_ms: float | None = None


class _Choice(Reply):
    finish_reason: str
    text: str | None = None
    message: Message | None = None


class _Answer(Reply):
    choices: list[_Choice]
    usage: _Usage
    timings: _Timings = _Timings()


class ServerBackend:
    """A model behind an OpenAI-compatible address; see `Backend`.

    Args:
        service: where it is, and how patient to be.
        placement: `parallel` requests at once, `context` tokens for prompt and answer.

    Attributes:
        tokenizer: the server's, None where it shows no tokens.

    Raises:
        EngineError: it cannot be reached, has no such model, or less context than `placement` asks for.
    """

    def __init__(self, service: Service, placement: Placement) -> None:
        self._client = HttpClient(service, "/v1")
        self._placement = placement
        ready = False
        try:
            self._engine = identify(self._client, service.model)
            self._refuse_small(self._engine)
            self.tokenizer: ServerTokenizer | None = find_tokenizer(self._client, self._engine)
            self._choices = find_choices(self._client, self._engine, self.tokenizer) if self.tokenizer else None
            self._puts_start = self.tokenizer is None and self._reads("a") > 1
            ready = True
        finally:
            if not ready:
                self._client.close()

    @property
    def identity(self) -> Mapping[str, str | int | bool]:
        """Without the address: the same server may move."""
        engine, context = self._engine, self._engine.context
        return {
            "engine": engine.name,
            "version": engine.version,
            "model": engine.model,
            "prompts": "text" if self.tokenizer is None else "token ids",
            "choices": "none" if self._choices is None else self._choices.name,
            "output_tokens": "as the server counts" if engine.counts_end is None else "without the end token",
            "parallel": self._placement.parallel,
            "context": self._placement.context,
            **({} if context is None else {"server_context": context}),
            **engine.facts,
        }

    def complete(
        self, prompts: Sequence[Prompt], decoding: Decoding, progress: Progress | None = None
    ) -> list[Completion]:
        """Answer one batch.

        Raises:
            EngineError: a prompt was not answered, after all retries; nothing of the batch counts.
        """

        def ask(prompt: Prompt) -> Completion:
            return self._in_chat(prompt, decoding) if prompt.chat is None else self._rendered(prompt, decoding)

        return ask_all(self._client, ask, prompts, self._placement.parallel, progress)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _refuse_small(self, engine: Engine) -> None:
        asked = self._placement.context
        if engine.context is not None and engine.context < asked:
            raise EngineError(
                f"{self._client.host}: the server gives a sequence {engine.context} tokens of context; expected at"
                f" least {asked}: start it with more, or set collect.context lower"
            )

    def _rendered(self, prompt: Prompt, decoding: Decoding) -> Completion:
        assert prompt.chat is not None
        if self.tokenizer is None:
            text = without_start(prompt.chat, STARTS) if self._puts_start else prompt.chat
            return self._ask("/completions", {"prompt": text}, decoding.max_new_tokens, decoding)
        ids = self.tokenizer.ids(prompt)
        choices = [self.tokenizer.continuation(prompt, ids, choice) for choice in prompt.choices]
        room = self._room(len(ids), choices, decoding.max_new_tokens)
        found = self._ask("/completions", {"prompt": ids}, room, decoding)
        if found.prompt_tokens != len(ids):
            raise EngineError(f"the server read {found.prompt_tokens} tokens of a prompt that has {len(ids)}")
        scored = self._choices.score(ids, choices) if choices and self._choices is not None else None
        return Completion(
            text=found.text,
            finish=found.finish,
            prompt_tokens=found.prompt_tokens,
            output_tokens=found.output_tokens,
            prompt_ids_sha256=hash_ids(ids),
            choice_logprobs=scored,
            ttft_ms=found.ttft_ms,
            reasoning=found.reasoning,
        )

    def _in_chat(self, prompt: Prompt, decoding: Decoding) -> Completion:
        messages = [{"role": "user", "content": prompt.text}]
        return self._ask("/chat/completions", {"messages": messages}, decoding.max_new_tokens, decoding)

    def _room(self, prompt: int, choices: Sequence[Ids], max_new_tokens: int) -> int:
        """Tokens that may be generated, so that every backend ends an answer at the same length."""
        longest = max(map(len, choices), default=0)
        if prompt + max(min(1, max_new_tokens), longest - 1) > self._placement.context:
            raise EngineError(
                f"the prompt's {prompt} tokens do not fit a context of {self._placement.context};"
                " expected a larger context or a shorter prompt"
            )
        return min(max_new_tokens, self._placement.context - prompt)

    def _reads(self, text: str) -> int:
        """How many tokens the server makes of a text."""
        once = Decoding(max_new_tokens=1)
        return self._ask("/completions", {"prompt": text}, once.max_new_tokens, once).prompt_tokens

    def _ask(self, path: str, what: Mapping[str, Any], max_tokens: int, decoding: Decoding) -> Completion:
        """One answer, its log-probabilities left out."""
        where = self._client.host + self._client.base + path
        body = {
            **self._engine.settings,
            **what,
            "model": self._engine.model,
            "max_tokens": max(1, max_tokens),  # 0 is no limit to some
            "temperature": decoding.temperature,
            "seed": decoding.seed,
            "stream": False,
        }
        answer = read_reply(_Answer, self._client.post(self._client.base + path, body), where)
        if not answer.choices:
            raise EngineError(f"{where}: the reply has no choices")
        if len(answer.choices) > 1:
            raise EngineError(f"{where}: the reply has {len(answer.choices)} answers; expected one, as was asked for")
        choice = answer.choices[0]
        text = choice.message.text if choice.message is not None else choice.text
        reasoning = choice.message.thought if choice.message is not None else None
        if text is None and choice.finish_reason == "length" and answer.usage.completion_tokens:
            text = ""  # spent on a thought that the server keeps to itself
        if text is None:
            raise EngineError(f"{where}: the reply has no text")
        if choice.finish_reason not in FINISHES:
            raise EngineError(f"{where}: finished by {choice.finish_reason!r}; expected one of {', '.join(FINISHES)}")
        ends = self._engine.counts_end is True and choice.finish_reason == "stop"
        tokens = max(0, answer.usage.completion_tokens - ends)
        if max_tokens < 1:
            text, reasoning, tokens = "", None, 0
        ttft = answer.timings.prompt_ms if max_tokens > 0 else None
        finish = choice.finish_reason if max_tokens > 0 else "length"
        return Completion(text, finish, answer.usage.prompt_tokens, tokens, ttft_ms=ttft, reasoning=reasoning)
