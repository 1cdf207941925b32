"""Replies of servers as values: checked field by field where they matter, lenient where servers differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from quantverdict.backends.http import RejectedReplyError
from quantverdict.errors import EngineError
from quantverdict.records import WITHHELD


def _whole(value: object) -> object:
    """12 where a server counts 12.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Tokens = Annotated[int, BeforeValidator(_whole), Field(ge=0, lt=1 << 31)]
"""A count of tokens as a server says it: one that no model can have is no count."""


class Reply(BaseModel):
    """A part of a server's reply: of the right types, whatever else it holds; what is null is not there."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:  # noqa: ANN401 - whatever was sent
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


class Message(Reply):
    """What a chat API gives back: a text, or parts of several kinds; and what the server split off as reasoning."""

    content: str | list[Any] | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    thinking: Any = None
    refusal: str | None = None

    @property
    def text(self) -> str | None:
        """The answer, or the refusal that was split off; None where the reply has neither, and no reasoning."""
        if isinstance(self.content, list):
            parts = [part for part in self.content if not _is_thought(part)]
            return "".join(map(_said, parts)) if all(map(_is_said, parts)) else None
        if self.content is None:
            return self.refusal or (None if self.thought is None else "")
        return self.content or self.refusal or ""

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


_ENDS: Mapping[str, str] = {
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens", "max_new_tokens", "model_length"), "length"),
    **dict.fromkeys(("content_filter", "safety", "recitation", "blocklist", "prohibited_content", "spii"), WITHHELD),
}
_FAILED = (
    "error",
    "abort",
    "aborted",
    "cancelled",
    "canceled",
    "timeout",
    "insufficient_system_resource",
    "load",
    "unload",
)


def read_finish(reason: str, *, full: bool, where: str) -> str:
    """How an answer ended, by the words of whatever server; one that is not known is an end by the model.

    Args:
        reason: what the server says, empty where it says nothing.
        full: the answer has as many tokens as were allowed.

    Raises:
        EngineError: it broke off, so there is no answer.
    """
    name = reason.casefold()
    if name in _FAILED:
        raise EngineError(f"{where}: finished by {reason!r}: it broke off, so there is no answer")
    return _ENDS.get(name) or ("length" if full and name not in ("stop", "eos") else "stop")


Shape = TypeVar("Shape", bound=Reply)


def read_reply(shape: type[Shape], found: Mapping[str, Any], where: str) -> Shape:
    """A reply as a value.

    Raises:
        RejectedReplyError: a field is missing or of another type.
    """
    try:
        return shape.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise RejectedReplyError(f"{where}: not the reply that was expected: {field}: {first['msg']}") from None


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
