"""A question as the user's turn in a model's own chat template, as Transformers renders it; and the check that it is
in the prompt, whole and once.

A template that drops the question, or a part of it, renders without a fault: every build then answers something else
alike. So the template is tried with a probe first, and every prompt is held against what the probe showed.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from quantverdict.errors import TaskError
from quantverdict.records import Turn

TEXT, PARTS = "text", "parts"
"""How a template takes the content of a turn: as text, or as `[{"type": "text", "text": ...}]`."""
_PROBE = "quantverdict asks whether this question is shown"
_SYSTEM_PROBE = "quantverdict asks whether what stands before all turns is shown"
_NONE = {"tools": None, "documents": None}
_MANNERS: tuple[tuple[str, Mapping[str, object]], ...] = ((TEXT, _NONE), (PARTS, _NONE), (TEXT, {}), (PARTS, {}))
"""Tried in this order. Transformers gives tools and documents as none; some templates render only without them, as
llama.cpp gives them."""
_SPECIAL = {
    "bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad", "mask": "mask", "cls": "cls", "separator": "sep",
    "seperator": "sep",
}  # fmt: skip
"""GGUF's names of special tokens (one as it is misspelt there) to Transformers'."""
_DUMPED = re.compile(r"""(['"])type\1: (['"])text\2""")
_EXPECTED = "a template whose prompt holds the question whole and once (white space around it may go)"


@dataclass(frozen=True, slots=True)
class _Frame:
    """What stands around the probe."""

    before: str
    after: str


class ChatTemplate:
    """A model's chat template.

    Args:
        source: in Jinja.
        special: texts of special tokens, by GGUF's names (`bos`, `eos`, ...).
        where: for whom it is tried; for the message.
        arguments: variables that are given to it besides; one at least of those of `SWITCHES` is to be read by it, and
            each of the others.

    Attributes:
        content: `text`, or `parts` where a text is not shown.

    Raises:
        TaskError: it does not render, or does not show a question, or shows it more than once, or reads no argument.
    """

    def __init__(
        self, source: str, special: Mapping[str, str], where: str, arguments: Mapping[str, object] | None = None
    ) -> None:
        self._source, self._arguments = source, dict(arguments or {})
        if self._arguments:
            _require_read(source, self._arguments, where)
        self._tokens: dict[str, object] = {"bos_token": "", "eos_token": ""}
        self._tokens |= {f"{_SPECIAL[name]}_token": text for name, text in special.items() if name in _SPECIAL}
        self.content, self._given, self._frame = self._try(where)

    def render(self, text: str, where: str) -> str:
        """`text` as the user's turn, up to where the model answers.

        Raises:
            TaskError: it does not render, or what comes out does not hold the text whole and once.
        """
        rendered = self._render(text, self.content, self._given, where)
        problem = _problem(rendered, text, self._frame)
        if problem is not None:
            raise _refused(problem, where)
        return rendered

    def takes_system(self, where: str) -> bool:
        """Whether it shows a system turn and the user's, each once."""
        try:
            rendered = self._render(_PROBE, self.content, self._given, where, [Turn("system", _SYSTEM_PROBE)])
        except TaskError:
            return False
        return rendered.count(_SYSTEM_PROBE) == 1 and rendered.count(_PROBE) == 1

    def render_turns(self, turns: Sequence[Turn], where: str, answers: Collection[str] = ()) -> str:
        """A conversation, up to where the model answers its last turn.

        Args:
            answers: turns that the model made itself: how a template shows these is its own.

        Raises:
            TaskError: it does not render, or does not show every turn whole, in their order, and the last one once.
        """
        *before, last = turns
        rendered = self._render(last.content, self.content, self._given, where, before)
        at = 0
        for number, turn in enumerate(turns, 1):
            core = turn.content.strip()
            if turn.role == "assistant" and turn.content in answers:
                continue
            spelt = dict.fromkeys((core, *_as_json(core)))
            found = [place for text in spelt if (place := rendered.find(text, 0 if turn.role == "system" else at)) >= 0]
            if not found:
                raise _refused(f"does not hold turn {number} ({turn.role}) whole", where)
            at = at if turn.role == "system" else min(found) + len(core)
        around = f"{self._frame.before}\0{self._frame.after}".count(last.content.strip()) * len(turns)
        if rendered.count(last.content.strip()) > around + sum(t.content.count(last.content.strip()) for t in turns):
            raise _refused("shows the question more than once", where)
        return rendered

    def _try(self, where: str) -> tuple[str, Mapping[str, object], _Frame]:
        errors: list[TaskError] = []
        shown: list[int] = []
        for content, given in _MANNERS:
            try:
                before, *rest = self._render(_PROBE, content, given, where).split(_PROBE)
            except TaskError as error:
                errors.append(error)
                continue
            if any(_DUMPED.search(text) for text in (before, *rest)):
                shown.append(0)  # the list as it is, not what it says
                continue
            if len(rest) == 1:
                return content, given, _Frame(before, rest[0])
            shown.append(len(rest))
        if not shown:
            raise errors[0]
        times = max(shown)
        raise _refused(f"shows the question {times} times" if times else "does not show the question", where)

    def _render(
        self, text: str, content: str, given: Mapping[str, object], where: str, before: Sequence[Turn] = ()
    ) -> str:
        turns = [(turn.role, turn.content) for turn in before] + [("user", text)]
        said = [(role, one if content == TEXT else [{"type": "text", "text": one}]) for role, one in turns]
        variables = {
            "messages": [{"role": role, "content": one} for role, one in said],
            "add_generation_prompt": True,
            **given,
            **self._tokens,
            **self._arguments,
        }
        return render_template(self._source, variables, where=_place(where))


SWITCHES = ("enable_thinking", "thinking")
"""What templates call the variable that turns reasoning on and off."""


def template_variables(thinking: str, arguments: Mapping[str, object]) -> dict[str, object]:
    """What a template is given for a mode of thinking (`enabled`, `disabled`, `template`) and arguments of its own."""
    switched = {} if thinking == "template" else dict.fromkeys(SWITCHES, thinking == "enabled")
    return {**switched, **arguments}


def _require_read(source: str, arguments: Mapping[str, object], where: str) -> None:
    fields = template_fields(source, where=_place(where))
    unread = [name for name in arguments if name not in fields]
    if set(SWITCHES) <= set(arguments) and not set(SWITCHES) <= set(unread):
        unread = [name for name in unread if name not in SWITCHES]
    if unread:
        what = "no switch for thinking" if set(SWITCHES) <= set(unread) else f"no variable {unread[0]}"
        named = ", ".join(sorted(fields - {"messages", "add_generation_prompt"})) or "none"
        raise TaskError(f"the template reads {what}", file=_place(where),
                        expected=f"thinking: template, and template_arguments that it reads: {named}")  # fmt: skip


def render_messages(source: str, special: Mapping[str, str], messages: list[dict[str, str]], where: str) -> str:
    """Turns in a model's chat template, up to where it goes on; a guard model's has its whole task in it.

    Raises:
        TaskError: it does not render.
    """
    tokens = {f"{_SPECIAL[name]}_token": text for name, text in special.items() if name in _SPECIAL}
    variables = {"messages": messages, "add_generation_prompt": True, "bos_token": "", "eos_token": "", **tokens}
    return render_template(source, variables, where=_place(where))


def _place(where: str) -> str:
    return f"chat template, for {where}"


def _refused(problem: str, where: str) -> TaskError:
    return TaskError(problem, file=_place(where), expected=_EXPECTED)


def _problem(rendered: str, text: str, frame: _Frame) -> str | None:
    """What became of a question in its prompt; None where it is there whole and once."""
    around = len(frame.before) + len(frame.after)
    if len(rendered) >= around and rendered.startswith(frame.before) and rendered.endswith(frame.after):
        inside = rendered[len(frame.before) : len(rendered) - len(frame.after)]
        if (inside.strip() == text.strip() and inside in text) or inside in set(_as_json(text)):
            return None
    # What stands around may depend on the question; where it is quoted there too, it is not counted.
    core = text.strip()
    if not core:
        return None
    counts = [
        rendered.count(spelt) - f"{frame.before}\0{frame.after}".count(spelt)
        for spelt in dict.fromkeys((core, *_as_json(core)))
    ]
    if 1 in counts:
        return None
    times = max(counts)
    return f"shows the question {times} times" if times > 1 else "does not hold the question whole"


def _as_json(text: str) -> Iterator[str]:
    """How the inside of a JSON string may spell a text, or the text without the white space around it."""
    for part in (text, text.strip(), text.lstrip(), text.rstrip()):
        for ascii_only in (False, True):
            yield json.dumps(part, ensure_ascii=ascii_only)[1:-1]


# --- The sandbox that templates run in -------------------------------------------------------------------------------
#
# Render a Jinja template that came with an untrusted file, in a worker process of its own.
#
# `template_worker` has the sandbox and its bounds; here is the stop for what runs on: a worker that takes more CPU time
# or memory than a template may is ended, and the next template has a new one. One worker serves every template, so that
# a prompt costs a line over a pipe.


CPU_SECONDS = 2.0
"""Of a rendering: the stop for work that makes nothing, such as comparing."""
RESIDENT_BYTES = 512 << 20
"""Of the worker: the stop where the system bounds no address space."""
_TICK_SECONDS = 0.05
"""Between two looks at a worker that has not answered."""
_TOO_MUCH = "makes too much text or too many steps"


def render_template(
    source: str, variables: Mapping[str, object], *, where: str, strict: bool = False, harness: bool = False
) -> str:
    """The text of a template.

    Blocks are trimmed as chat templates expect (`trim_blocks`, `lstrip_blocks`), one newline at the end is dropped.

    Args:
        source: Jinja source, a task's or a model's chat template.
        variables: JSON-like values.
        where: file (and field) for the message.
        strict: refuse a variable that is missing; else it is empty, as chat templates expect.
        harness: as lm-evaluation-harness renders: blocks are not trimmed, and the last newline stays.

    Raises:
        TaskError: a wrong template, one that calls `raise_exception`, reaches for what it may not, or does not end
            within its bounds.
    """
    request = {
        "source": source,
        "variables": dict(variables),
        "strict": strict,
        **({"harness": True} if harness else {}),
    }
    text: str = _ask(request, where)["text"]
    return text


def template_fields(source: str, *, where: str) -> frozenset[str]:
    """Names that a template takes from outside; compiles it, so that a wrong one is refused here.

    Raises:
        TaskError: as `render_template`.
    """
    return frozenset(_ask({"source": source}, where)["fields"])


class _Worker:
    """A running worker."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "quantverdict.tasks.template_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.pid = self._process.pid
        self._replies: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        atexit.register(self.close)
        if not self._replies.get():  # its first line says that it runs: what it takes until then is no template's
            self.close()
            raise TaskError("the process that renders templates does not start", expected=f"{sys.executable} to run")

    @property
    def runs(self) -> bool:
        return self.owner == os.getpid() and self._process.poll() is None

    def ask(self, request: bytes) -> bytes | None:
        """The reply to a line; None where the worker ended, or was ended, over it."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(request)
            self._process.stdin.flush()
        reply, start = None, None
        while reply is None:
            try:
                reply = self._replies.get(timeout=_TICK_SECONDS)
            except queue.Empty:
                start = self._look(start)
        if not reply:
            self.close()
        return reply or None

    def close(self) -> None:
        """End the worker and what reads from it; may be called twice."""
        atexit.unregister(self.close)
        if self.owner == os.getpid():
            self._process.kill()
            self._process.communicate()
            self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._replies.put(line)
        self._replies.put(b"")

    def _look(self, start: float | None) -> float:
        """End it where it has taken too much since the first look; gives its CPU time at that look."""
        import psutil

        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            used = sum(process.cpu_times()[:2])
            start = used if start is None else start
            if used - start > CPU_SECONDS or process.memory_info().rss > RESIDENT_BYTES:
                self._process.kill()
        return start or 0.0


_lock = threading.Lock()
_workers: list[_Worker] = []


def _ask(request: Mapping[str, Any], where: str) -> dict[str, Any]:
    line = json.dumps(request).encode() + b"\n"
    with _lock:
        if not _workers or not _workers[0].runs:
            _workers[:] = [_Worker()]
        reply = _workers[0].ask(line)
    answer: dict[str, Any] = {"problem": _TOO_MUCH} if reply is None else json.loads(reply)
    if "problem" in answer:
        raise TaskError(f"template refused: {answer['problem']}", file=where, expected="a template that renders")
    return answer
