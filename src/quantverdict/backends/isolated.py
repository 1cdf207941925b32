"""An engine in a process of its own: python -m quantverdict.backends.isolated.

Its threads, logging and memory are its own, all of which ends with it. The first line in says which engine to load;
each later one is a batch. Lines out are `ready`, `progress`, `completions` or `error`.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TextIO

from quantverdict.backends.base import Decoding, Placement, Progress
from quantverdict.backends.worker_process import WorkerProcess
from quantverdict.errors import EngineError
from quantverdict.records import Completion, Prompt

_PROGRESS_SECONDS = 0.1
_FD_IN, _FD_OUT, _FD_ERR = 0, 1, 2


class Engine(Protocol):
    """What runs in the other process: made with (path, placement), it is a `Backend` without an end."""

    @property
    def identity(self) -> Mapping[str, str | int | bool]: ...

    @property
    def measured(self) -> Mapping[str, int]:
        """What only the engine can count, beside the process's own `cpu_seconds` and `peak_memory_bytes`."""
        ...

    def complete(
        self, prompts: Sequence[Prompt], decoding: Decoding, progress: Progress | None = None
    ) -> list[Completion]: ...


class IsolatedBackend:
    """A `Backend` whose engine runs in another process.

    Args:
        name: of the engine, for messages.
        engine: `MODULE:CLASS` of an `Engine`.
        path: the build.
        placement: how to use the machine.
        environment: what is set for the process.

    Raises:
        EngineError: the engine cannot be loaded, or could not generate one token.
    """

    def __init__(
        self, name: str, engine: str, path: Path, placement: Placement, environment: Mapping[str, str]
    ) -> None:
        self._worker = WorkerProcess(name, "quantverdict.backends.isolated", environment)
        request = {"engine": engine, "path": str(path), "placement": asdict(placement)}
        try:
            self._identity: dict[str, str | int | bool] = self._worker.ask(request)["ready"]
        except EngineError:
            self._worker.close()
            raise

    @property
    def identity(self) -> Mapping[str, str | int | bool]:
        return self._identity

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the process so far."""
        return float(self._worker.usage["cpu_seconds"])

    @property
    def peak_memory_bytes(self) -> int:
        """Most memory that it held: on the accelerator where the engine uses one, else resident."""
        return int(self._worker.usage["peak_memory_bytes"])

    def complete(
        self, prompts: Sequence[Prompt], decoding: Decoding, progress: Progress | None = None
    ) -> list[Completion]:
        """Answer one batch; see `Backend`.

        Raises:
            EngineError: the process died, or the engine refused the batch.
        """
        request = {"prompts": [asdict(prompt) for prompt in prompts], "decoding": asdict(decoding)}
        return [_completion(values) for values in self._worker.ask(request, progress)["completions"]]

    def close(self) -> None:
        """End the process and wait for it."""
        self._worker.close()


def _completion(values: Mapping[str, Any]) -> Completion:
    logprobs = values["choice_logprobs"]
    return Completion(**{**values, "choice_logprobs": None if logprobs is None else tuple(logprobs)})


class _Reporter:
    """Passes progress on, a few times a second."""

    def __init__(self, replies: TextIO) -> None:
        self.replies, self.reported = replies, time.monotonic()

    def __call__(self, finished: int, generated: int) -> None:
        now = time.monotonic()
        if now - self.reported < _PROGRESS_SECONDS:
            return
        self.reported = now
        if select.select([_FD_IN], [], [], 0)[0]:
            raise SystemExit(0)  # nothing is sent while a batch runs: the input has ended
        _send(self.replies, {"progress": [finished, generated]})


def _send(replies: TextIO, message: Mapping[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def _usage(engine: Engine | None) -> dict[str, float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    unit = 1 if sys.platform == "darwin" else 1024
    own = {"cpu_seconds": used.ru_utime + used.ru_stime, "peak_memory_bytes": used.ru_maxrss * unit}
    return own if engine is None else {**own, **engine.measured}


def _serve(requests: TextIO, replies: TextIO) -> None:
    """Load, then answer until the input ends."""
    engine: Engine | None = None
    while line := requests.readline():
        request = json.loads(line)
        reply: dict[str, Any]
        try:
            if engine is None:
                module, _, name = request["engine"].partition(":")
                placement = Placement(**request["placement"])
                engine = getattr(importlib.import_module(module), name)(Path(request["path"]), placement)
                reply = {"ready": dict(engine.identity)}
            else:
                prompts = [Prompt(**{**values, "choices": tuple(values["choices"])}) for values in request["prompts"]]
                done = engine.complete(prompts, Decoding(**request["decoding"]), _Reporter(replies))
                reply = {"completions": [asdict(completion) for completion in done]}
        except EngineError as error:
            reply = {"error": str(error)}
        _send(replies, {**reply, "usage": _usage(engine)})


def main() -> None:
    """Keep the reply pipe to ourselves: whatever a library prints goes to the error stream."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(_FD_OUT), "w", encoding="utf-8")
    os.dup2(_FD_ERR, _FD_OUT)
    # What no engine foresaw ends the process; its last words are the error, not the way there.
    sys.excepthook = lambda kind, error, _: print(f"{kind.__name__}: {error}", file=sys.stderr)  # noqa: T201
    try:
        _serve(sys.stdin, replies)
    except BrokenPipeError:
        os._exit(0)  # the reader is gone: there is nobody to tell


if __name__ == "__main__":
    main()
