"""A worker: a process of its own that answers one JSON line with another, over a pipe.

No port is opened, a crash is an `EngineError` here, and the worker ends with this process: it reads its input to the
end. Whatever it prints goes to a file that is read only where it dies.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping
from typing import IO, Any

from quantverdict.backends.base import Forced, Progress
from quantverdict.backends.worker_side import PAYLOAD
from quantverdict.errors import EngineError
from quantverdict.records import Completion

_END_SECONDS = 5


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
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C is for the program, which ends the worker itself
        )
        self._end = weakref.finalize(self, _end, self.process, self._errors)
        self.usage: Mapping[str, Any] = {}
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
            raise EngineError(reply["error"])
        return reply

    def close(self) -> None:
        """End the worker and wait for it; may be called twice."""
        self._end()

    def _exchange(self, request: Mapping[str, Any], progress: Progress | None) -> dict[str, Any]:
        requests, replies = self.process.stdin, self.process.stdout
        assert requests is not None
        assert replies is not None
        try:
            requests.write(json.dumps(request).encode() + b"\n")
            requests.flush()
        except BrokenPipeError:
            raise EngineError(self._reason()) from None
        for line in replies:
            reply: dict[str, Any] = json.loads(line)
            if "progress" not in reply:
                self.usage = reply["usage"]
                return reply if PAYLOAD not in reply else {**reply, PAYLOAD: self._payload(reply[PAYLOAD])}
            if progress is not None:
                progress(*reply["progress"])
        raise EngineError(self._reason())

    def _payload(self, size: int) -> bytes:
        assert self.process.stdout is not None
        data = self.process.stdout.read(size)
        if len(data) < size:
            raise EngineError(self._reason())
        return data

    def _reason(self) -> str:
        """Why the worker ended, in one line."""
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
    def cpu_seconds(self) -> float:
        """CPU time of the worker so far."""
        return float(self._worker.usage["cpu_seconds"])

    @property
    def peak_memory_bytes(self) -> int:
        """Most memory that it held: on the accelerator where the engine uses one, else resident."""
        return int(self._worker.usage["peak_memory_bytes"])

    def close(self) -> None:
        """End the worker and wait for it."""
        self._worker.close()

    def _completions(self, request: Mapping[str, Any], progress: Progress | None) -> list[Completion]:
        """What a batch is answered with; raises as `WorkerProcess.ask`."""
        return [_completion(values) for values in self._worker.ask(request, progress)["completions"]]

    def _forced(self, request: Mapping[str, Any], part: range) -> Forced:
        """What a `force` request is answered with; raises as `WorkerProcess.ask`."""
        import numpy as np

        reply = self._worker.ask({"force": {**request, "start": part.start, "stop": part.stop}})
        logits = np.frombuffer(reply[PAYLOAD], dtype=np.float32).reshape(-1, reply["vocabulary"])
        return Forced(tuple(reply["ids"]), logits)


def _completion(values: Mapping[str, Any]) -> Completion:
    logprobs = values["choice_logprobs"]
    return Completion(**{**values, "choice_logprobs": None if logprobs is None else tuple(logprobs)})


def _end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    """Close the pipes, which ends the worker; kill it where that does not."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:
                continue  # what was still to be sent has no reader
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    errors.close()
