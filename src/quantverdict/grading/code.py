"""Code by its own assertions: what program an answer makes, and what running it came to.

Nothing is run here. A program is the code in an answer and the assertions of its item; what it came to when it was run
(`stages/execute.py`) is looked up by the program's key. Not run is not measured.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from quantverdict.bundle.store import key_of
from quantverdict.grading.base import EMPTY_ANSWER, Grade, cleaned
from quantverdict.records import Response
from quantverdict.tasks.catalog import Item, Task

NOT_RUN = "not run: the study does not say allow_code_execution: true"
SECONDS, MEMORY_BYTES, FILE_BYTES = 10, 512 << 20, 1 << 20
"""What a program may take: time, memory, and the size of a file it writes."""
MOST_CHARS = 20_000
"""Of an answer; one of 256 tokens has some 1,200."""

Outcome = Literal["passed", "failed", "timeout", "memory", "error"]


class Program(NamedTuple):
    """The code of an answer and the assertions that it must pass."""

    code: str
    check: str

    @property
    def key(self) -> str:
        """By what it is and what it may take."""
        return key_of("python", self.code, self.check, str((SECONDS, MEMORY_BYTES, FILE_BYTES)))


class Execution(NamedTuple):
    """What running a program came to.

    Attributes:
        key: of the program.
        outcome: `error` where it could not be run at all, which grades nothing.
        detail: the kind of exception, and whether the code or its assertions raised it; empty where it passed.
        isolation: what kept it from the network: `namespace` (it had none), or `guard` (the calls were refused).
    """

    key: str
    outcome: Outcome
    detail: str
    isolation: str


Executions = Mapping[str, Execution]


def score_code(
    _task: Task, item: Item, _response: Response, text: str, executions: Executions | None = None
) -> Iterator[Grade]:
    """`code_pass_rate`: 1 where the assertions of the item pass."""
    program = program_of(item, text)
    if program is None:
        yield Grade("code_pass_rate", None, "the item has no check" if cleaned(text) else EMPTY_ANSWER)
        return
    found = (executions or {}).get(program.key)
    if found is None or found.outcome == "error":
        yield Grade("code_pass_rate", None, NOT_RUN if found is None else f"could not be run: {found.detail}")
    else:
        yield Grade("code_pass_rate", float(found.outcome == "passed"))


def program_of(item: Item, text: str) -> Program | None:
    """What is to be run for an answer; None where it is empty or the item has no assertions."""
    check, name = item.fields.get("check"), item.fields.get("function_name")
    if not isinstance(check, str) or not check.strip() or not cleaned(text):
        return None
    return Program(code_in(text[:MOST_CHARS], name if isinstance(name, str) else ""), check)


_FENCE = re.compile(
    r"^[ \t]*(?:```|~~~)[ \t]*[\w+.-]*[ \t]*\n(.*?)(?:^[ \t]*(?:```|~~~)|\Z)",
    re.MULTILINE | re.DOTALL,
)
_BEGINS = re.compile(r"^(?:def |async def |class |import |from \w|@\w|[A-Za-z_]\w* ?= ?)", re.MULTILINE)


def code_in(text: str, function: str = "") -> str:
    """The code in an answer: its fenced block (the last that defines `function`), else from its first line of code on.

    Prose behind code that stands in no fence is left out where what is before it is a program.
    """
    blocks = [block for block in _FENCE.findall(text) if block.strip()]
    defining = [block for block in blocks if function and f"def {function}" in block]
    if defining:
        before = blocks[: blocks.index(defining[-1])]
        helpers = [
            block for block in before if f"def {function}" not in block and _BEGINS.match(block) and _parses(block)
        ]
        return "\n".join([*helpers, defining[-1]])
    if blocks:
        return "\n".join(blocks)
    begins = _BEGINS.search(text)
    lines = text[begins.start() if begins else 0 :].splitlines()
    for end in range(len(lines), max(len(lines) - 60, 0), -1):
        code = "\n".join(lines[:end])
        if _parses(code):
            return code
    return "\n".join(lines)


def _parses(code: str) -> bool:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
