"""The worker's end of the pipe: one JSON document a line each way, and bytes behind one that says how many.

The first line in says what to load, the first line out is `ready` or `error`. Each later line in is answered by
`progress` lines and one that settles it. A worker ends when its input ends, in the middle of a batch too, so that it
cannot outlive the process that asked. A crash needs no handling here: the other side sees the pipe close.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, BinaryIO, Protocol, TextIO

from quantverdict.backends.base import Progress
from quantverdict.errors import EngineError

PAYLOAD = "payload"
"""The key of a reply's bytes; they follow its line, which holds their number instead."""
_PROGRESS_SECONDS = 0.1
_FD_IN, _FD_OUT, _FD_ERR = 0, 1, 2


class Worker(Protocol):
    """What has been loaded and answers."""

    @property
    def ready(self) -> object:
        """What the line that says it is loaded holds; a JSON value."""
        ...

    @property
    def measured(self) -> Mapping[str, int]:
        """What only the engine can count, beside the process's own `cpu_seconds` and `peak_memory_bytes`."""
        ...

    def reply(self, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """The line that settles a request.

        Raises:
            EngineError: it cannot be answered; the worker goes on.
        """
        ...


Load = Callable[[Mapping[str, Any]], Worker]
"""Makes a worker of the first line in."""


def run(load: Load) -> None:
    """Answer until the input ends. The reply pipe is ours: whatever a library prints goes to the error stream."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(_FD_OUT), "wb")
    os.dup2(_FD_ERR, _FD_OUT)
    # What no engine foresaw ends the process; its last words are the error, not the way there.
    sys.excepthook = lambda kind, error, _: print(f"{kind.__name__}: {error}", file=sys.stderr)  # noqa: T201
    try:
        _serve(load, sys.stdin, replies)
    except BrokenPipeError:
        os._exit(0)  # the reader is gone: there is nobody to tell


def _serve(load: Load, requests: TextIO, replies: BinaryIO) -> None:
    worker: Worker | None = None
    while line := requests.readline():
        request = json.loads(line)
        reply: dict[str, Any]
        try:
            if worker is None:
                worker = load(request)
                reply = {"ready": worker.ready}
            else:
                reply = worker.reply(request, _Reporter(replies))
        except EngineError as error:
            reply = {"error": str(error)}
        _send(replies, {**reply, "usage": _usage(worker)})


class _Reporter:
    """Passes progress on, a few times a second."""

    def __init__(self, replies: BinaryIO) -> None:
        self.replies, self.reported = replies, time.monotonic()

    def __call__(self, finished: int, generated: int) -> None:
        now = time.monotonic()
        if now - self.reported < _PROGRESS_SECONDS:
            return
        self.reported = now
        if os.name != "nt" and select.select([_FD_IN], [], [], 0)[0]:
            raise SystemExit(0)  # nothing is sent while a batch runs: the input has ended
        _send(self.replies, {"progress": [finished, generated]})


def _send(replies: BinaryIO, message: Mapping[str, Any]) -> None:
    payload = message.get(PAYLOAD)
    line = message if payload is None else {**message, PAYLOAD: len(payload)}
    replies.write(json.dumps(line).encode() + b"\n")
    if payload is not None:
        replies.write(payload)
    replies.flush()


def _usage(worker: Worker | None) -> dict[str, float]:
    own = {"cpu_seconds": time.process_time(), "peak_memory_bytes": peak_memory()}
    return own if worker is None else {**own, **worker.measured}


def peak_memory() -> int:
    """The most bytes that this process held resident, and it alone.

    Linux keeps `ru_maxrss` over the start of a new program: a child there shows what its parent held.
    """
    if os.name == "nt":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "linux":
        with suppress(OSError, ValueError, StopIteration), open("/proc/self/status", "rb") as lines:  # noqa: PTH123
            return int(next(line for line in lines if line.startswith(b"VmHWM:")).split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
