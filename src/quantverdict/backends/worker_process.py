"""A worker: a process of its own that answers one JSON line with another, over a pipe.

No port is opened, a crash is an `EngineError` here, and the worker ends with this process: it reads its input to the
end. Whatever it prints goes to a file that is read only where it dies. One that is frozen is ended after a while; one
that is slow, however slow, is waited for. Threads read and write its pipes, as not every system can wait for a pipe
for a while; one that hangs in a driver, and cannot be killed, keeps its threads and nobody else.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import IO, TYPE_CHECKING, Any, TypeVar

from quantverdict.backends.base import Decoding, Placement, Progress, TeacherForcedLogits, TextTokens, Usage
from quantverdict.backends.worker import PAYLOAD
from quantverdict.errors import EngineError, PromptTooLongError
from quantverdict.records import Completion, Prompt

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MODULE = "quantverdict.backends.worker"
"""What every engine that has a process of its own is run by."""
_END_SECONDS = 5
_TICK_SECONDS = 5.0
"""Between two looks at a worker that says nothing."""
_STILL_SECONDS = 60.0
"""Without a word and without work, until it is said."""
_FROZEN_SECONDS = 600.0
"""Likewise, until the worker is ended; and without a word, though at work, until that is said."""
_T = TypeVar("_T")
_AT_WORK = 0.01
"""Of a core: what threads that only wait stay under."""


class WorkerProcess:
    """A running worker that has loaded what it was told to.

    Args:
        name: of the engine, for messages.
        module: what is run, as `python -m MODULE`.
        environment: what is set for it besides this process's own environment.
        settings: what it loads.

    Attributes:
        ready: what it said when it had loaded.
        usage: `cpu_seconds`, `peak_memory_bytes` and what else the engine counts, as of its last reply.

    Raises:
        EngineError: it cannot load, or died.
    """

    def __init__(self, name: str, module: str, environment: Mapping[str, str], settings: Mapping[str, Any]) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        self.process = subprocess.Popen(  # noqa: S603 - a module of this package
            [sys.executable, "-P", "-m", module],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C is for the program, which ends the worker itself
        )
        self._end = weakref.finalize(self, _end, self.process, self._errors)
        self.usage: Mapping[str, Any] = {}
        self._received = bytearray()
        self._chunks: SimpleQueue[bytes] = SimpleQueue()
        Thread(target=_read, args=(self.process.stdout, self._chunks), daemon=True).start()
        try:
            self.ready: Any = self.ask(settings)["ready"]
        except EngineError:
            self.close()
            raise

    def ask(self, request: Mapping[str, Any], progress: Progress | None = None) -> dict[str, Any]:
        """Send a line and read the reply that settles it.

        Raises:
            EngineError: the worker says so, died, or is closed.
        """
        if not self._end.alive:
            raise EngineError(f"the {self.name} backend is closed")
        settled = False
        try:
            reply = self._exchange(request, progress)
            settled = True
        finally:
            if not settled:  # it is dead, or still busy with a batch that nobody waits for
                self.process.kill()
                self.close()
        if "error" in reply:
            too_long = reply.get("too_long")
            raise EngineError(reply["error"]) if too_long is None else PromptTooLongError(reply["error"], too_long)
        return reply

    def close(self) -> None:
        """End the worker and wait for it; may be called twice."""
        self._end()

    def _exchange(self, request: Mapping[str, Any], progress: Progress | None) -> dict[str, Any]:
        watch = _WorkerMonitor(self.name, self.process)
        self._send(json.dumps(request).encode() + b"\n", watch)
        while True:
            reply: dict[str, Any] = json.loads(self._line(watch))
            if "progress" not in reply:
                self.usage = reply["usage"]
                return reply if PAYLOAD not in reply else {**reply, PAYLOAD: self._taken(reply[PAYLOAD], watch)}
            if progress is not None:
                progress(*reply["progress"])

    def _send(self, data: bytes, watch: _WorkerMonitor) -> None:
        sent: SimpleQueue[bool] = SimpleQueue()
        Thread(target=_write, args=(self.process.stdin, data, sent), daemon=True).start()
        if not watch.wait_for(sent):
            raise EngineError(self._reason())

    def _line(self, watch: _WorkerMonitor) -> bytes:
        """The next line of the worker."""
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            self._receive(watch)
        return self._taken(end + 1, watch)

    def _taken(self, size: int, watch: _WorkerMonitor) -> bytes:
        """The next bytes of the worker."""
        while len(self._received) < size:
            self._receive(watch)
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def _receive(self, watch: _WorkerMonitor) -> None:
        data = watch.wait_for(self._chunks)
        if not data:
            raise EngineError(self._reason())
        self._received += data

    def _reason(self) -> str:
        """Why the worker ended, in one line."""
        try:
            code = self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:  # it closed its pipe, and lives on
            self.process.kill()
            code = self.process.wait()
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 2000))
        lines = self._errors.read().decode(errors="replace").split("\n")
        said = " | ".join(line.strip() for line in lines if line.strip())[-300:]
        if code >= 0:
            how = f"ended with exit code {code}"
        else:
            how = f"was killed by {signal.Signals(-code).name}"
            how += " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"the {self.name} worker {how}" + (f": {said}" if said else "")


class _WorkerMonitor:
    """Looks at a worker while it is waited for.

    One that is stopped, or whose device hangs, neither says anything nor works. Work is time on a processor or bytes
    read from a disk, by the worker or by processes that it started. Only what passed between two looks counts: this
    process may have been stopped too.
    """

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self.name, self.process = name, process
        self._reset()
        self.reported: set[str] = set()

    def _reset(self) -> None:
        self.silent = self.still = 0.0
        self.work: tuple[float, int] | None = None

    def wait_for(self, queue: SimpleQueue[_T]) -> _T:
        """What a thread puts into a queue.

        Raises:
            EngineError: the worker is frozen; it was ended.
        """
        start = time.monotonic()
        while True:
            with suppress(Empty):
                found = queue.get(timeout=_TICK_SECONDS)
                self._reset()
                return found
            now = time.monotonic()
            self._look(min(now - start, 2 * _TICK_SECONDS))
            start = now

    def _look(self, passed: float) -> None:
        self.silent += passed
        work = _work(self.process.pid)
        before, self.work = self.work, work
        if before is not None and work is not None:
            worked = work[0] - before[0] >= _AT_WORK * passed or work[1] != before[1]
            self.still = 0.0 if worked else self.still + passed
        if self.still >= _FROZEN_SECONDS:
            _kill(self.process.pid)
            raise EngineError(
                f"the {self.name} worker was frozen (stopped, or its device hangs): it said nothing and used no"
                f" processor for {self.still:.0f} s, and was ended"
            )
        if self.still >= _STILL_SECONDS:
            self._tell(
                f"the {self.name} worker has said nothing and used no processor for {self.still:.0f} s: it is stopped,"
                f" or its device hangs; it is ended after {_FROZEN_SECONDS:.0f} s of that"
            )
        elif self.silent >= _FROZEN_SECONDS:
            self._tell(
                f"the {self.name} worker has said nothing for {self.silent:.0f} s, though it is at work; it is waited"
                " for (Ctrl-C ends the run, and the same command resumes it)"
            )

    def _tell(self, line: str) -> None:
        """On stderr, once an exchange."""
        kind = line.partition(" for ")[0]
        if kind not in self.reported:
            self.reported.add(kind)
            with suppress(OSError, ValueError):
                sys.stderr.write(line + "\n")
                sys.stderr.flush()


def _work(pid: int) -> tuple[float, int] | None:
    """Seconds on a processor and bytes read from a disk, by a process and those it started; None where it is gone."""
    import psutil

    seconds, read = 0.0, 0
    try:
        own = psutil.Process(pid)
        for process in (own, *own.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                seconds += times.user + times.system
                if hasattr(process, "io_counters"):
                    read += process.io_counters().read_bytes
    except psutil.Error:
        return None
    return seconds, read


def _kill(pid: int) -> None:
    """End a worker and whatever it started, though it be orphaned where a system has sessions."""
    if hasattr(os, "killpg"):
        with suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        return
    import psutil

    with suppress(psutil.Error):
        own = psutil.Process(pid)
        for process in (*own.children(recursive=True), own):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _read(pipe: IO[bytes], chunks: SimpleQueue[bytes]) -> None:
    """Pass on what comes through a pipe, and an empty text for its end."""
    with pipe, suppress(OSError):
        while data := pipe.read(1 << 20):
            chunks.put(data)
    chunks.put(b"")


def _write(pipe: IO[bytes], data: bytes, sent: SimpleQueue[bool]) -> None:
    """Put data into a pipe, and say whether it has a reader."""
    left = memoryview(data)
    try:
        while left:
            left = left[pipe.write(left) :]
    except (OSError, ValueError):  # it has none any more, or was closed here
        sent.put(False)
    else:
        sent.put(True)


class WorkerBackend:
    """What every `Backend` whose engine is a worker shares.

    Args:
        worker: the worker.
        identity: of the engine.
    """

    def __init__(self, worker: WorkerProcess, identity: Mapping[str, str | int | bool]) -> None:
        self._worker, self._identity = worker, identity

    @property
    def identity(self) -> Mapping[str, str | int | bool]:
        return self._identity

    @property
    def usage(self) -> Usage:
        """What the worker used so far."""
        counted = self._worker.usage
        halved = counted.get("halved")
        peak = int(counted["peak_memory_bytes"])
        return Usage(float(counted["cpu_seconds"]), peak, None if halved is None else int(halved))

    def close(self) -> None:
        """End the worker and wait for it."""
        self._worker.close()

    def text_tokens(self, text: str) -> TextTokens:
        """A text as the engine reads it; see `TextReader`."""
        reply = self._worker.ask({"text": text})
        return TextTokens(tuple(reply["ids"]), reply["start"], reply["vocabulary"])

    def window_logits(self, windows: Sequence[tuple[int, ...]], part: range) -> npt.NDArray[np.float32]:
        """Logits along windows of a text; see `TextReader`."""
        import numpy as np

        reply = self._worker.ask({"windows": {"tokens": windows, "start": part.start, "stop": part.stop}})
        logits = np.frombuffer(reply[PAYLOAD], dtype=np.float32)
        return logits.reshape(len(windows), len(part), reply["vocabulary"])

    def _completions(self, request: Mapping[str, Any], progress: Progress | None) -> list[Completion]:
        """What a batch is answered with; raises as `WorkerProcess.ask`."""
        return [_completion(values) for values in self._worker.ask(request, progress)["completions"]]

    def _forced(self, request: Mapping[str, Any], part: range) -> TeacherForcedLogits:
        """What a `force` request is answered with; raises as `WorkerProcess.ask`."""
        import numpy as np

        reply = self._worker.ask({"force": {**request, "start": part.start, "stop": part.stop}})
        logits = np.frombuffer(reply[PAYLOAD], dtype=np.float32).reshape(-1, reply["vocabulary"])
        return TeacherForcedLogits(tuple(reply["ids"]), logits)


def _completion(values: Mapping[str, Any]) -> Completion:
    logprobs, replies = values["choice_logprobs"], tuple(values.get("replies", ()))
    scored = None if logprobs is None else tuple(logprobs)
    return Completion(**{**values, "choice_logprobs": scored, "replies": replies})


def _end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    """Close its input, which ends the worker; kill it where that does not."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # what hangs in a driver cannot be killed
            process.wait(_END_SECONDS)
    errors.close()


# An engine in a process of its own: python -m quantverdict.backends.worker_process.
#
# Its threads, logging and memory are its own, all of which ends with it. What is said on the pipe: see `worker_side`.


class IsolatedBackend(WorkerBackend):
    """A `Backend` whose engine runs in another process.

    Args:
        name: of the engine, for messages.
        engine: `MODULE:CLASS` of a `worker.Engine`.
        path: the build.
        placement: how to use the machine.
        environment: what is set for the process.

    Raises:
        EngineError: the engine cannot be loaded, or could not generate one token.
    """

    def __init__(
        self, name: str, engine: str, path: Path, placement: Placement, environment: Mapping[str, str]
    ) -> None:
        settings = {"engine": engine, "path": str(path), "placement": asdict(placement)}
        worker = WorkerProcess(name, MODULE, environment, settings)
        super().__init__(worker, worker.ready)

    def complete(
        self, prompts: Sequence[Prompt], decoding: Decoding, progress: Progress | None = None
    ) -> list[Completion]:
        """Answer one batch; see `Backend`.

        Raises:
            EngineError: the process died, or the engine refused the batch.
        """
        request = {"prompts": [asdict(prompt) for prompt in prompts], "decoding": asdict(decoding)}
        return self._completions(request, progress)
