"""Render a Jinja template that came with an untrusted file, in a worker process of its own.

`template_worker` has the sandbox and its bounds; here is the stop for what runs on: a worker that takes more CPU time
or memory than a template may is ended, and the next template has a new one. One worker serves every template, so that
a prompt costs a line over a pipe.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from quantverdict.errors import TaskError

CPU_SECONDS = 2.0
"""Of a rendering: the stop for work that makes nothing, such as comparing."""
RESIDENT_BYTES = 512 << 20
"""Of the worker: the stop where the system bounds no address space."""
_TICK_SECONDS = 0.05
"""Between two looks at a worker that has not answered."""
_TOO_MUCH = "makes too much text or too many steps"


def render_template(source: str, variables: Mapping[str, object], *, where: str, strict: bool = False) -> str:
    """The text of a template.

    Blocks are trimmed as chat templates expect (`trim_blocks`, `lstrip_blocks`), one newline at the end is dropped.

    Args:
        source: Jinja source, a task's or a model's chat template.
        variables: JSON-like values.
        where: file (and field) for the message.
        strict: refuse a variable that is missing; else it is empty, as chat templates expect.

    Raises:
        TaskError: a wrong template, one that calls `raise_exception`, reaches for what it may not, or does not end
            within its bounds.
    """
    text: str = _ask({"source": source, "variables": dict(variables), "strict": strict}, where)["text"]
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
