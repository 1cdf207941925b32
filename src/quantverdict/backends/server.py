"""Any server of the OpenAI API: vLLM, llama-server, SGLang, LM Studio.

A prompt is sent as it was rendered: as token ids where the server has a tokenizer to show, so that the start token is
put once and what is hashed is what is evaluated, else as text. Where a prompt has no chat text, or the server takes
none, its user's turn goes through the server's own template: nothing then shows that two builds read the same tokens.
What a server may leave out of a reply (counts, how it ended) is not known then, and no reason to stop. Other requests
that the server answers beside ours can change the last bits of its sums: for equal answers run by run, ask one at a
time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import Field

from quantverdict.backends.base import Decoding, Placement, Progress, Service, hash_ids
from quantverdict.backends.http import (
    HttpClient,
    RejectedReplyError,
    ask_all,
    chat_messages,
    closed_unless_ready,
    without_start,
)
from quantverdict.backends.replies import Message, Reply, Tokens, is_loaded, read_finish, read_reply
from quantverdict.errors import EngineError, PromptTooLongError
from quantverdict.records import WITHHELD, Completion, Prompt

# Which program serves the OpenAI API, and what differs between those that do.

LLAMACPP = "llama.cpp server"
_UNNAMED = "OpenAI-compatible server"
_GREEDY = {"presence_penalty": 0.0, "frequency_penalty": 0.0}


@dataclass(frozen=True, slots=True)
class Engine:
    """The program behind an address.

    Attributes:
        name, version: of the program.
        model: the name it knows the model by.
        root: path of what it has beside the OpenAI API.
        settings: goes into every request: no penalty of a model's own defaults, no state of earlier requests.
        counts_end: whether its count of generated tokens holds the end token; None where that is not known.
        context: tokens a sequence may have there, None where it does not say.
        facts: what else it says that can change an answer.
    """

    name: str
    version: str
    model: str
    root: str
    settings: Mapping[str, float | bool]
    counts_end: bool | None = None
    context: int | None = None
    facts: Mapping[str, str | int | bool] = field(default_factory=dict)


class _Model(Reply):
    id: str
    owned_by: str = ""
    aliases: Annotated[tuple[str, ...], Field(strict=False)] = ()
    max_model_len: int | None = None


class _Models(Reply):
    data: list[_Model]


class _Generation(Reply):
    n_ctx: int


class _Props(Reply):
    build_info: str = "unknown"
    model_ftype: str | None = None
    total_slots: int
    default_generation_settings: _Generation


def identify(client: HttpClient, wanted: str) -> Engine:
    """Ask an address what it is.

    Args:
        client: open on it.
        wanted: the model's name; empty where it serves only one.

    Raises:
        EngineError: it does not answer, or has no such model.
    """
    where = client.base + "/models"
    listed = client.find(where) if wanted else client.get(where)
    if listed is None:  # no list of models: what is asked for is not there either if the name is wrong
        return Engine(_UNNAMED, "unknown", wanted, client.base.removesuffix("/v1"), _GREEDY)
    models = read_reply(_Models, listed, client.host + where).data
    by_name = {name: model for model in models for name in (model.id, *model.aliases)}
    only = models[0].id if len(models) == 1 else ""
    name = is_loaded(list(by_name), wanted or only, client.host + where)
    model = by_name[name]
    known = _KNOWN.get(model.owned_by, _other)
    return known(client, name, model, client.base.removesuffix("/v1"))


def _llamacpp(
    client: HttpClient,
    name: str,
    model: _Model,  # noqa: ARG001 - /props says more
    root: str,
) -> Engine:
    props = read_reply(_Props, client.get(root + "/props"), client.host + root + "/props")
    facts: dict[str, str | int | bool] = {"slots": props.total_slots}
    if props.model_ftype is not None:
        facts["model_type"] = props.model_ftype
    settings = _GREEDY | {"repeat_penalty": 1.0, "cache_prompt": False}
    context = props.default_generation_settings.n_ctx
    return Engine(LLAMACPP, props.build_info, name, root, settings, counts_end=True, context=context, facts=facts)


def _vllm(client: HttpClient, name: str, model: _Model, root: str) -> Engine:
    version = _version(client, root + "/version")
    settings = _GREEDY | {"repetition_penalty": 1.0}
    return Engine("vLLM server", version, name, root, settings, counts_end=True, context=model.max_model_len)


def _sglang(client: HttpClient, name: str, model: _Model, root: str) -> Engine:
    version = _version(client, root + "/server_info", root + "/get_server_info")
    settings = _GREEDY | {"repetition_penalty": 1.0}
    return Engine("SGLang server", version, name, root, settings, counts_end=True, context=model.max_model_len)


def _other(client: HttpClient, name: str, model: _Model, root: str) -> Engine:
    """LM Studio has a list of its own, with each model's quantization."""
    listed = (client.find(root + "/api/v0/models") or {}).get("data")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    entry = next((entry for entry in entries if entry.get("id") == name), None)
    if entry is None:
        return Engine(model.owned_by or _UNNAMED, "unknown", name, root, _GREEDY)
    facts: dict[str, str | int | bool] = {
        key: entry[key] for key in ("quantization", "compatibility_type", "arch") if isinstance(entry.get(key), str)
    }
    context = entry.get("loaded_context_length")
    return Engine(
        "LM Studio", "unknown", name, root, _GREEDY, context=context if isinstance(context, int) else None, facts=facts
    )


def _version(client: HttpClient, *paths: str) -> str:
    found: Any = next((reply["version"] for path in paths if "version" in (reply := client.find(path) or {})), None)
    return found if isinstance(found, str) else "unknown"


_KNOWN: Mapping[str, Callable[[HttpClient, str, _Model, str], Engine]] = {
    "llamacpp": _llamacpp,
    "vllm": _vllm,
    "sglang": _sglang,
}
"""By what a server calls itself in its list of models."""


# A server's tokenizer, and the log-probabilities of choices that rest on it.

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

    stops = None

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


class _TokenLogprob(Reply):
    id: int
    logprob: float


class _GeneratedText(_TokenLogprob):
    top_logprobs: list[_TokenLogprob]


class _Content(Reply):
    content: list[_GeneratedText]


class _NextChoice(Reply):
    logprobs: _Content


class _NextTokenReply(Reply):
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
                raise RejectedReplyError(f"the server generated token {forced.id} where {token} was forced")
            likely[token] = forced.logprob
        return likely

    def _generated(self, ids: Ids, more: Mapping[str, Any]) -> _GeneratedText:
        path = self._client.base + "/completions"
        reply = self._client.ask(path, {**_one_token(self._engine, ids), **more})
        choices = read_reply(_NextTokenReply, reply, self._client.host + path).choices
        if not choices or not choices[0].logprobs.content:
            raise RejectedReplyError(f"{self._client.host}{path}: no log-probabilities in the reply")
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
        reply = self._client.ask(path, {**_one_token(self._engine, ids), "echo": True, "logprobs": 1})
        choices = read_reply(_Echoes, reply, self._client.host + path).choices
        reply_logprobs = choices[0].logprobs.token_logprobs[: len(ids)] if choices else []
        last = [value for value in reply_logprobs[-n:] if value is not None]
        if len(reply_logprobs) < len(ids) or reply_logprobs[0] is not None or len(last) < n:
            raise RejectedReplyError(f"{self._client.host}{path}: no log-probabilities of the prompt in the reply")
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
    except RejectedReplyError:
        return None
    return way


def _one_token(engine: Engine, ids: Ids) -> dict[str, Any]:
    body = {"model": engine.model, "prompt": ids, "max_tokens": 1, "temperature": 0.0, "stream": False}
    return body | dict(engine.settings)


STARTS = ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<｜begin▁of▁sentence｜>", "[BOS]")  # noqa: RUF001
"""Start tokens by name, for servers that do not show their tokens."""
_FILTERED = ("content_filter", "ResponsibleAIPolicyViolation", "content_policy_violation", "data_inspection_failed")
"""What servers call the error by which they keep an answer back."""


class _Usage(Reply):
    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None


class _Timings(Reply):
    prompt_ms: float | None = None


class _Choice(Reply):
    finish_reason: str = ""
    text: str | None = None
    message: Message | None = None


class _Answer(Reply):
    choices: list[_Choice]
    usage: _Usage = _Usage()
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
        self._placement, self._arguments = placement, dict(service.template_arguments)
        with closed_unless_ready(self._client):
            self._engine = identify(self._client, service.model)
            self._refuse_small(self._engine)
            self.tokenizer: ServerTokenizer | None = find_tokenizer(self._client, self._engine)
            self._choices = find_choices(self._client, self._engine, self.tokenizer) if self.tokenizer else None
            self._chat_only, self._puts_start = False, False
            if self.tokenizer is None:
                self._chat_only, self._puts_start = self._probed()
        self._renamed = dict(sorted(service.request_fields.items()))

    @property
    def identity(self) -> Mapping[str, str | int | bool]:
        """Without the address: the same server may move."""
        engine, context = self._engine, self._engine.context
        return {
            "engine": engine.name,
            "version": engine.version,
            "model": engine.model,
            "prompts": self._takes,
            "choices": "none" if self._choices is None else self._choices.name,
            "output_tokens": "as the server counts" if engine.counts_end is None else "without the end token",
            "parallel": self._placement.parallel,
            "context": self._placement.context,
            **({} if context is None else {"server_context": context}),
            **engine.facts,
            **{f"request_{name}": own or "left out" for name, own in self._renamed.items()},
        }

    @property
    def _takes(self) -> str:
        """What a prompt is sent as."""
        if self.tokenizer is not None:
            return "token ids"
        return "the user's turn, in the server's own template" if self._chat_only else "text"

    def complete(
        self, prompts: Sequence[Prompt], decoding: Decoding, progress: Progress | None = None
    ) -> list[Completion]:
        """Answer one batch.

        Raises:
            EngineError: a prompt was not answered, after all retries; nothing of the batch counts.
        """

        def ask(prompt: Prompt) -> Completion:
            own = replace(decoding, seed=decoding.seed + prompt.draw)
            in_chat = prompt.chat is None or self._chat_only
            return self._in_chat(prompt, own) if in_chat else self._rendered(prompt, own)

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
            return self._ask("/completions", {"prompt": text}, decoding.most_tokens, decoding)
        ids = self.tokenizer.ids(prompt)
        choices = [self.tokenizer.continuation(prompt, ids, choice) for choice in prompt.choices]
        room = self._room(len(ids), choices, decoding.most_tokens)
        found = self._ask("/completions", {"prompt": ids}, room, decoding)
        if found.prompt_tokens not in (None, len(ids)):
            raise EngineError(f"the server read {found.prompt_tokens} tokens of a prompt that has {len(ids)}")
        scored = self._choices.score(ids, choices) if choices and self._choices is not None else None
        return Completion(
            text=found.text,
            finish=found.finish,
            prompt_tokens=len(ids),
            output_tokens=found.output_tokens,
            prompt_ids_sha256=hash_ids(ids),
            choice_logprobs=scored,
            ttft_ms=found.ttft_ms,
            reasoning=found.reasoning,
        )

    def _in_chat(self, prompt: Prompt, decoding: Decoding) -> Completion:
        asked: dict[str, Any] = {"messages": chat_messages(prompt)}
        if self._arguments:
            asked["chat_template_kwargs"] = self._arguments
        return self._ask("/chat/completions", asked, decoding.most_tokens, decoding)

    def _room(self, prompt: int, choices: Sequence[Ids], max_new_tokens: int) -> int:
        """Tokens that may be generated, so that every backend ends an answer at the same length."""
        longest = max(map(len, choices), default=0)
        if prompt + max(min(1, max_new_tokens), longest - 1) > self._placement.context:
            raise PromptTooLongError(
                f"the prompt's {prompt} tokens do not fit a context of {self._placement.context};"
                " expected a larger context or a shorter prompt"
            )
        return min(max_new_tokens, self._placement.context - prompt)

    def _probed(self) -> tuple[bool, bool]:
        """Whether the server takes chats alone; and whether it puts a start token, as most do that do not tell."""
        once = Decoding(max_new_tokens=1)
        try:
            tokens = self._ask("/completions", {"prompt": "a"}, once.max_new_tokens, once).prompt_tokens
        except RejectedReplyError:
            self._in_chat(Prompt("", "", "a", None, ""), once)  # what serves neither serves nothing
            return True, False
        return False, tokens is None or tokens > 1

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
        try:
            answer = read_reply(_Answer, self._client.ask(self._client.base + path, body), where)
        except RejectedReplyError as error:
            if error.code not in _FILTERED:
                raise
            return Completion("", WITHHELD, None, None)
        if not answer.choices:
            raise EngineError(f"{where}: the reply has no choices")
        if len(answer.choices) > 1:
            raise EngineError(f"{where}: the reply has {len(answer.choices)} answers; expected one, as was asked for")
        return self._read(answer, max_tokens, where)

    def _read(self, answer: _Answer, max_tokens: int, where: str) -> Completion:
        choice, prompt, generated = answer.choices[0], answer.usage.prompt_tokens, answer.usage.completion_tokens
        finish = read_finish(choice.finish_reason, full=(generated or 0) >= max(1, max_tokens), where=where)
        message = choice.message
        text = message.text if message is not None else choice.text
        if max_tokens < 1 and text is not None:
            return Completion("", "length", prompt, 0)
        if text is None and (finish == WITHHELD or generated == 0 or (finish == "length" and generated)):
            text = ""  # spent on a thought that the server keeps to itself
        if text is None:
            raise EngineError(f"{where}: the reply has no text")
        ends = self._engine.counts_end is True and finish == "stop"
        tokens = None if generated is None else max(0, generated - ends)
        reasoning = message.thought if message is not None else None
        return Completion(text, finish, prompt, tokens, ttft_ms=answer.timings.prompt_ms, reasoning=reasoning)
