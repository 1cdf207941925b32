"""Is a prompt the same tokens on two backends? Asked before anything is generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantverdict.backends.base import Tokenizer
from quantverdict.records import Prompt


@dataclass(frozen=True, slots=True)
class TokenDifference:
    """The first prompt that two backends read as different tokens.

    Attributes:
        prompts: how many prompts differ, this one included.
        position: of the first token that differs, from 0.
        baseline, other: its text on either side; None where the prompt ends before it.
    """

    task: str
    sample_id: str
    prompts: int
    position: int
    baseline: str | None
    other: str | None

    def __str__(self) -> str:
        sides = ["the end" if text is None else repr(text) for text in (self.baseline, self.other)]
        more = f", and {self.prompts - 1} more prompts" if self.prompts > 1 else ""
        said = f"token {self.position} is {sides[0]} to the baseline and {sides[1]} here"
        return f"{self.task}/{self.sample_id}: {said}{more}"


def first_difference(prompts: Sequence[Prompt], baseline: Tokenizer, other: Tokenizer) -> TokenDifference | None:
    """Compare every prompt token by token; None where all are the same ids."""
    found: TokenDifference | None = None
    different = 0
    for prompt in prompts:
        ours, theirs = baseline.ids(prompt), other.ids(prompt)
        if ours == theirs:
            continue
        different += 1
        if found is None:
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
            position = min(len(ours), len(theirs)) if at is None else at
            texts = [
                side.piece(ids[position]) if position < len(ids) else None
                for side, ids in ((baseline, ours), (other, theirs))
            ]
            found = TokenDifference(prompt.task, prompt.sample_id, 0, position, texts[0], texts[1])
    if found is None:
        return None
    return TokenDifference(found.task, found.sample_id, different, found.position, found.baseline, found.other)


def other_stops(baseline: Tokenizer, other: Tokenizer) -> str | None:
    """The tokens that end an answer on one side alone, in words; None where they are the same, or a side shows none."""
    ours, theirs = (getattr(side, "stops", None) for side in (baseline, other))
    if ours is None or theirs is None or set(ours) == set(theirs):
        return None
    named = [
        f"{', '.join(repr(side.piece(token)) for token in sorted(tokens))} {where}"
        for side, tokens, where in (
            (baseline, set(ours) - set(theirs), "for the baseline alone"),
            (other, set(theirs) - set(ours), "here alone"),
        )
        if tokens
    ]
    return f"an answer ends at {' and '.join(named)}"
