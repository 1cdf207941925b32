"""A server's tokenizer, and the log-probabilities of choices that rest on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from quantverdict.backends.http import HttpClient, RefusedError
from quantverdict.backends.remote import Reply, read_reply
from quantverdict.backends.server_engines import LLAMACPP, Engine
from quantverdict.errors import EngineError
from quantverdict.records import Prompt

Ids = tuple[int, ...]

_SEEN = 100
"""Most likely next tokens that are asked for at once; a choice beyond them is asked for by itself."""
_FORCE = 1e6
"""Added to a token's logit so that it is the one generated; the log-probability told is the one before."""


class _Tokens(Reply):
    tokens: list[int]


class ServerTokenizer:
    """Tokens as the server reads them; a `Tokenizer`.

    Args:
        client: open on the server.
        engine: which program it is.
        place: path of the API that holds `/tokenize`.

    Raises:
        EngineError: there is none, or it does something with a text's start that is not understood.
    """

    def __init__(self, client: HttpClient, engine: Engine, place: str) -> None:
        self._client, self._engine, self._place = client, engine, place
        self.start = self._start()

    def ids(self, prompt: Prompt) -> Ids:
        """Token ids of a prompt as they are sent: the start token once, where the model wants one.

        Raises:
            EngineError: the prompt has no chat text, so that the server's own template is used; or no tokens.
        """
        if prompt.chat is None:
            raise EngineError(f"{prompt.task}/{prompt.sample_id}: the server's own template makes its tokens")
        tokens = self._read(prompt.chat, special=False)
        if self.start is not None and tokens[:1] != (self.start,):
            tokens = (self.start, *tokens)
        if not tokens:
            raise EngineError("the prompt has no tokens")
        return tokens

    def piece(self, token: int) -> str:
        """The text of one token, special tokens by their name."""
        body: dict[str, Any] = {"tokens": [token]}
        if self._engine.name != LLAMACPP:
            body |= {"model": self._engine.model, "skip_special_tokens": False}
        found = self._client.post(self._place + "/detokenize", body)
        text = next((found[key] for key in ("content", "prompt", "text") if isinstance(found.get(key), str)), None)
        if text is None:
            raise EngineError(f"{self._client.host}{self._place}/detokenize: the reply has no text")
        return str(text)

    def continuation(self, prompt: Prompt, ids: Ids, choice: str) -> Ids:
        """Tokens of a choice as they follow the prompt's; by itself where prompt and choice melt into one token."""
        joint = self._read(f"{prompt.chat}{choice}", special=False)
        own = ids[1:] if self.start is not None and joint[:1] != (self.start,) else ids
        melted = joint[: len(own)] != own
        tokens = self._read(choice, special=False) if melted else joint[len(own) :]
        if not tokens:
            raise EngineError(f"the choice {choice!r} has no tokens")
        return tokens

    def _start(self) -> int | None:
        """The token put before a text that asks for none of its own."""
        plain, dressed = self._read("a", special=False), self._read("a", special=True)
        if plain and dressed[: len(plain)] == plain:
            return None
        if plain and dressed[1 : len(plain) + 1] == plain:
            return dressed[0]
        raise EngineError(f"{self._client.host}{self._place}/tokenize: special tokens are put where none was expected")

    def _read(self, text: str, *, special: bool) -> Ids:
        path, body = self._place + "/tokenize", {"model": self._engine.model, "prompt": text}
        asked: Mapping[str, Any] = body | {"add_special_tokens": special}
        if self._engine.name == LLAMACPP:
            asked = {"content": text, "add_special": special, "parse_special": True}
        return tuple(read_reply(_Tokens, self._client.post(path, asked), self._client.host + path).tokens)


def find_tokenizer(client: HttpClient, engine: Engine) -> ServerTokenizer | None:
    """The server's tokenizer; None where it has none, so that prompts must be sent as text."""
    for place in dict.fromkeys((engine.root, client.base)):
        path = place + "/tokenize"
        probe = {"content": "a"} if engine.name == LLAMACPP else {"model": engine.model, "prompt": "a"}
        if "tokens" in (client.find(path, probe) or {}):
            return ServerTokenizer(client, engine, place)
    return None


class _Likely(Reply):
    id: int
    logprob: float


class _Generated(_Likely):
    top_logprobs: list[_Likely]


class _Content(Reply):
    content: list[_Generated]


class _NextChoice(Reply):
    logprobs: _Content


class _Next(Reply):
    choices: list[_NextChoice]


class _Echo(Reply):
    token_logprobs: list[float | None]


class _EchoChoice(Reply):
    logprobs: _Echo


class _Echoes(Reply):
    choices: list[_EchoChoice]


class ForcedChoices:
    """Log-probabilities where the server tells those of the next token: a choice is walked token by token."""

    name = "next token"

    def __init__(self, client: HttpClient, engine: Engine) -> None:
        self._client, self._engine = client, engine

    def score(self, ids: Ids, choices: Sequence[Ids]) -> tuple[float, ...]:
        """Natural log-probability of each choice after a prompt."""
        wanted: dict[Ids, set[int]] = {}
        for choice in choices:
            for length, token in enumerate(choice):
                wanted.setdefault(choice[:length], set()).add(token)
        found = {start: self._next(ids + start, tokens) for start, tokens in wanted.items()}
        return tuple(math.fsum(found[choice[:i]][token] for i, token in enumerate(choice)) for choice in choices)

    def _next(self, ids: Ids, wanted: set[int]) -> dict[int, float]:
        first = self._generated(ids, {"logprobs": _SEEN})
        likely = {token.id: token.logprob for token in (first, *first.top_logprobs) if token.id in wanted}
        for token in sorted(wanted - set(likely)):
            forced = self._generated(ids, {"logprobs": 1, "logit_bias": [[token, _FORCE]]})
            if forced.id != token:
                raise RefusedError(f"the server generated token {forced.id} where {token} was forced")
            likely[token] = forced.logprob
        return likely

    def _generated(self, ids: Ids, more: Mapping[str, Any]) -> _Generated:
        path = self._client.base + "/completions"
        reply = self._client.post(path, {**_one_token(self._engine, ids), **more})
        choices = read_reply(_Next, reply, self._client.host + path).choices
        if not choices or not choices[0].logprobs.content:
            raise RefusedError(f"{self._client.host}{path}: no log-probabilities in the reply")
        return choices[0].logprobs.content[0]


class EchoedChoices:
    """Log-probabilities where the server tells those of the prompt's own tokens: one request a choice."""

    name = "echo"

    def __init__(self, client: HttpClient, engine: Engine) -> None:
        self._client, self._engine = client, engine

    def score(self, ids: Ids, choices: Sequence[Ids]) -> tuple[float, ...]:
        """Natural log-probability of each choice after a prompt."""
        return tuple(math.fsum(self._last(ids + choice, len(choice))) for choice in choices)

    def _last(self, ids: Ids, n: int) -> list[float]:
        path = self._client.base + "/completions"
        reply = self._client.post(path, {**_one_token(self._engine, ids), "echo": True, "logprobs": 1})
        choices = read_reply(_Echoes, reply, self._client.host + path).choices
        told = choices[0].logprobs.token_logprobs[: len(ids)] if choices else []
        last = [value for value in told[-n:] if value is not None]
        if len(told) < len(ids) or told[0] is not None or len(last) < n:
            raise RefusedError(f"{self._client.host}{path}: no log-probabilities of the prompt in the reply")
        return last


def find_choices(
    client: HttpClient, engine: Engine, tokenizer: ServerTokenizer
) -> ForcedChoices | EchoedChoices | None:
    """How the server tells log-probabilities of choices, tried on a small text; None where it does not."""
    way = ForcedChoices(client, engine) if engine.name == LLAMACPP else EchoedChoices(client, engine)
    probe = Prompt("", "", "", "a b", "")
    ids = tokenizer.ids(probe)
    try:
        way.score(ids, [ids[-1:]])
    except RefusedError:
        return None
    return way


def _one_token(engine: Engine, ids: Ids) -> dict[str, Any]:
    body = {"model": engine.model, "prompt": ids, "max_tokens": 1, "temperature": 0.0, "stream": False}
    return body | dict(engine.settings)
