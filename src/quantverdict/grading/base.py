"""What a scorer is: one answer to one item in, one or more grades out.

A scorer reads `text`, the answer after the task's filters; `response` has the answer without filters and out of its
wrapper, the token count and the log-probabilities. What the model thought, and what it went on with, neither has
(`answer`). It never raises on an answer, whatever that contains. What it cannot grade is `None` with a
reason, never 0. A new metric is one short module with such a function and a line in `grade.SCORERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from quantverdict.records import Response
from quantverdict.tasks.catalog import Item, Task

EMPTY_ANSWER = "the answer is empty"


class Grade(NamedTuple):
    """A metric's value for one answer; None is ungraded, and `reason` says why."""

    metric: str
    value: float | None
    reason: str = ""


Scorer = Callable[[Task, Item, Response, str], Iterable[Grade]]


def strings(value: object) -> tuple[str, ...]:
    """An item field as texts: a text is one, a list each of its members, anything else none."""
    if isinstance(value, str):
        return (value,)
    return tuple(str(member) for member in value) if isinstance(value, list | tuple) else ()
