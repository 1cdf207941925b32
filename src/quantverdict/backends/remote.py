"""What the backends that ask a server share: many prompts at once, replies checked field by field."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantverdict.backends.base import Progress
from quantverdict.backends.http import HttpClient, RefusedError
from quantverdict.errors import EngineError
from quantverdict.records import Completion, Prompt

Tokens = Annotated[int, Field(ge=0, lt=1 << 31)]
"""A count of tokens as a server says it: one that no model can have is no count."""


class Closing(Protocol):
    """What holds connections."""

    def close(self) -> None: ...


@contextmanager
def closed_unless_ready(client: Closing) -> Iterator[None]:
    """Close a client where what makes it ready fails, however it does."""
    with ExitStack() as undo:
        undo.callback(client.close)
        yield
        undo.pop_all()


class Reply(BaseModel):
    """A part of a server's reply: of the right types, whatever else it holds."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class Message(Reply):
    """What a chat API gives back: a text, or parts of several kinds; and what the server split off as reasoning."""

    content: str | list[Any] | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    thinking: Any = None

    @property
    def text(self) -> str | None:
        """The answer; None where the reply has none, and no reasoning either."""
        if isinstance(self.content, list):
            parts = [part for part in self.content if not _is_thought(part)]
            return "".join(map(_said, parts)) if all(map(_is_said, parts)) else None
        return "" if self.content is None and self.thought is not None else self.content

    @property
    def thought(self) -> str | None:
        """What was split off, None where nothing was; servers that give it by two names say the same twice."""
        parts = self.content if isinstance(self.content, list) else []
        named = map(_said, (self.reasoning_content, self.reasoning, self.thinking))
        found = [next(filter(str.strip, named), ""), *(_said(part) for part in parts if _is_thought(part))]
        return "\n\n".join(part for part in found if part.strip()) or None


_TEXTS = ("text", "thinking", "reasoning", "content", "summary")
"""Keys under which a part has its text."""


def _is_thought(part: object) -> bool:
    return isinstance(part, Mapping) and any(name in str(part.get("type", "")) for name in ("think", "reason"))


def _is_said(part: object) -> bool:
    """Whether a part is text at all: a picture, a sound or a call of a tool is no empty answer."""
    return isinstance(part, str | list) or (isinstance(part, Mapping) and any(name in part for name in _TEXTS))


def _said(part: object) -> str:
    """The text of a part, which may be parts in its turn."""
    if isinstance(part, str):
        return part
    if isinstance(part, list):
        return "".join(_said(one) for one in part)
    found = [part[name] for name in _TEXTS if part.get(name)] if isinstance(part, Mapping) else []
    return _said(found[0]) if found else ""


Shape = TypeVar("Shape", bound=Reply)


def read_reply(shape: type[Shape], found: Mapping[str, Any], where: str) -> Shape:
    """A reply as a value.

    Raises:
        RefusedError: a field is missing or of another type.
    """
    try:
        return shape.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise RefusedError(f"{where}: not the reply that was expected: {field}: {first['msg']}") from None


def ask_all(
    client: HttpClient,
    ask: Callable[[Prompt], Completion],
    prompts: Sequence[Prompt],
    parallel: int,
    progress: Progress | None,
) -> list[Completion]:
    """The answers in the order of `prompts`, at most `parallel` asked at once; the first failure breaks off the rest.

    Raises:
        EngineError: a prompt was not answered, by its name.
    """
    if not prompts:
        return []

    def named(prompt: Prompt) -> Completion:
        try:
            return ask(prompt)
        except EngineError as error:
            raise error.of_prompt(f"{prompt.task}/{prompt.sample_id}") from error

    pool = ThreadPoolExecutor(max(1, min(parallel, len(prompts))), thread_name_prefix="quantverdict-ask")
    settled, tokens = False, 0
    try:
        futures = [pool.submit(named, prompt) for prompt in prompts]
        for finished, future in enumerate(as_completed(futures), start=1):
            tokens += future.result().output_tokens
            if progress is not None:
                progress(finished, tokens)
        settled = True
    finally:
        if not settled:  # an interrupt too: nobody waits for the other answers
            client.stop()
        pool.shutdown(cancel_futures=True)
        if not settled:
            client.resume()
    return [future.result() for future in futures]


def without_start(text: str, starts: Sequence[str]) -> str:
    """A text without the start token written at its beginning, for a server that puts one itself."""
    written = next((start for start in starts if start and text.startswith(start)), "")
    return text.removeprefix(written)


def is_loaded(models: Sequence[str], wanted: str, where: str) -> str:
    """The name by which a server knows a model.

    Args:
        models: what it has.
        wanted: the name given; empty where it has only one.

    Raises:
        EngineError: it has none, or not this one.
    """
    if not models:
        raise EngineError(f"{where}: the server has no model")
    if not wanted and len(models) == 1:
        return models[0]
    if wanted not in models:
        shown = ", ".join(models[:10]) + (", ..." if len(models) > 10 else "")
        raise EngineError(f"{where}: the server has no model {wanted!r}; it has {shown}")
    return wanted
