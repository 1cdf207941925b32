"""Conversations: a system prompt, worked examples as turns, several turns of the user.

Where two turns of the user follow each other the model answers in between: it is asked turn by turn, and its own
replies stand in what it is asked next. A turn of the assistant that is written down is shown as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from quantverdict.errors import one_of
from quantverdict.records import Completion, Prompt, Turn
from quantverdict.tasks.chat import ChatTemplate

SYSTEM, USER, ASSISTANT = ROLES = ("system", "user", "assistant")
_EXPECTED = "a list of turns, each {role: system, user or assistant, content: text}, the system's first"


class TurnError(ValueError):
    """What is wrong with the turns that somebody wrote down; `place` is the number of the turn, from 0."""

    def __init__(self, problem: str, expected: str = _EXPECTED, place: int | None = None) -> None:
        super().__init__(problem)
        self.problem, self.expected, self.place = problem, expected, place


def read_turns(value: object) -> tuple[Turn, ...]:
    """The turns in a list of roles and contents.

    Raises:
        TurnError: it is no such list, or nothing in it is asked.
    """
    if not isinstance(value, list | tuple) or not value:
        raise TurnError(f"a {type(value).__name__} is no conversation" if value else "holds no turn")
    turns = tuple(_turn(one, place) for place, one in enumerate(value))
    late = next((place for place, turn in enumerate(turns) if turn.role == SYSTEM and place), None)
    if late is not None:
        raise TurnError("a system turn after others", "one, before all others", late)
    if not any(turn.role == USER for turn in turns):
        raise TurnError("has no turn of the user", "at least one")
    return turns


def _turn(value: object, place: int) -> Turn:
    if not isinstance(value, Mapping):
        raise TurnError(f"a {type(value).__name__} is no turn", place=place)
    role, content = value.get("role"), value.get("content")
    if role not in ROLES:
        raise TurnError(f"unknown role {role!r}", one_of(str(role), ROLES), place)
    parts = [content] if isinstance(content, str) else content if isinstance(content, list | tuple) else []
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else part for part in parts]
    if not texts or not all(isinstance(text, str) for text in texts) or not "".join(map(str, texts)).strip():
        raise TurnError(f"the content of a turn is {content!r:.40}", "text", place)
    return Turn(str(role), "".join(map(str, texts)))


def asked_and_reference(turns: Sequence[Turn]) -> tuple[tuple[Turn, ...], str | None]:
    """What is asked, and the last turn where it is the assistant's: what is right to answer."""
    if turns[-1].role == ASSISTANT:
        return tuple(turns[:-1]), turns[-1].content
    return tuple(turns), None


def with_system(turns: Sequence[Turn], system: str) -> tuple[Turn, ...]:
    """The turns after a system prompt; a conversation keeps one of its own."""
    if not system.strip() or turns[0].role == SYSTEM:
        return tuple(turns)
    return (Turn(SYSTEM, system), *turns)


def merged_system(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The system prompt at the beginning of the first turn of the user, for templates without that role."""
    if turns[0].role != SYSTEM:
        return tuple(turns)
    rest = list(turns[1:])
    first = next(place for place, turn in enumerate(rest) if turn.role == USER)
    rest[first] = Turn(USER, f"{turns[0].content}\n\n{rest[first].content}")
    return tuple(rest)


def as_text(turns: Sequence[Turn]) -> str:
    """Turns as text, for models without a chat template: as worked examples stand before a question."""
    text = ""
    for turn in turns:
        if turn.role == ASSISTANT:
            text = text.removesuffix("\n\n") + f" {turn.content}\n\n"
        else:
            text += ("" if not text or text.endswith("\n\n") else "\n\n") + turn.content
    return text


def answered_turns(turns: Sequence[Turn]) -> tuple[int, ...]:
    """The turns that the model answers, by their places: the last, and each that another of the user follows."""
    following = (*turns[1:], Turn(USER, ""))
    pairs = enumerate(zip(turns, following, strict=False))
    return tuple(place for place, (turn, after) in pairs if turn.role == USER and after.role == USER)


def turns_with(turns: Sequence[Turn], answers: Sequence[str]) -> tuple[Turn, ...]:
    """A conversation with the model's own answers in it, up to the turn that it answers next."""
    places = answered_turns(turns)
    found: list[Turn] = []
    begin = 0
    for place, answer in zip(places, answers, strict=False):
        found += [*turns[begin : place + 1], Turn(ASSISTANT, answer)]
        begin = place + 1
    return (*found, *turns[begin : places[min(len(answers), len(places) - 1)] + 1])


def opening(prompt: Prompt) -> Prompt:
    """A prompt up to the first turn that the model answers; it is the prompt where there is one alone."""
    places = answered_turns(prompt.messages)
    if len(places) < 2:
        return prompt
    turns = prompt.messages[: places[0] + 1]
    return replace(prompt, messages=turns, text=as_text(turns), choices=())


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Goes on with conversations in a model's chat template, or as text where it has none."""

    chat: ChatTemplate | None

    def follow(self, prompt: Prompt, answers: Sequence[str], replies: Sequence[str]) -> Prompt | None:
        """The prompt of the next turn; None where the last was asked.

        Args:
            prompt: the whole conversation.
            answers: what the model answered so far, as it is shown to it.
            replies: the same as it was generated.

        Raises:
            TaskError: the chat template refuses the turns, or does not show them.
        """
        places = answered_turns(prompt.messages)
        if len(answers) >= len(places):
            return None
        turns = turns_with(prompt.messages, answers)
        where = f"{prompt.task}/{prompt.sample_id}, turn {len(answers) + 1}"
        return replace(
            prompt,
            messages=turns,
            text=as_text(turns),
            chat=None if self.chat is None else self.chat.render_turns(turns, where, answers),
            choices=prompt.choices if len(answers) == len(places) - 1 else (),
            replies=tuple(replies),
        )


AS_TEXT = Dialogue(None)


def last_answer(done: Completion, replies: Sequence[str], first: Completion) -> Completion:
    """The completion of a conversation: its last, with the replies before, and the token ids of the first prompt.

    What a model is asked later holds its own replies, so only the first prompt can be equal for two builds.
    """
    return replace(done, replies=tuple(replies), prompt_ids_sha256=first.prompt_ids_sha256, ttft_ms=first.ttft_ms)
