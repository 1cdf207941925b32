"""llama.cpp inside a wheel: a GGUF build in a worker process of its own.

The worker is talked to over a pipe: no port is opened, its crash is an `EngineError` here, and it ends with this
process. Answers are greedy. With two slots or more the kernels are those by which an answer depends on its prompt and
the build alone: not on timing, threads, the batch, or how many slots. A lone slot has the fastest ones instead: equal
batches still give equal answers, but another batch may share another start, which is summed in another order.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

from quantverdict.backends.base import Decoding, Placement, Progress
from quantverdict.backends.cores import physical_cores
from quantverdict.backends.llama_library import WHEELS
from quantverdict.errors import EngineError
from quantverdict.records import Completion, Prompt

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",  # waiting threads that spin cost 16 times the speed beside a busy neighbour
    "GGML_NO_BACKTRACE": "1",  # an abort must end the process, not start a debugger in it
}
SEVERAL_SLOTS = {"GGML_CPU_TILED_MM": "0"}  # the blocked product sums in another order from 8 rows on
_END_SECONDS = 5


class LlamaCppBackend:
    """One loaded GGUF build; see `Backend`.

    Args:
        path: the GGUF file.
        placement: how to use the machine.

    Raises:
        EngineError: the engine is not installed, or cannot load the file.
    """

    def __init__(self, path: Path, placement: Placement) -> None:
        threads, wheel = placement.threads or physical_cores(), WHEELS[placement.wheel]
        lone = placement.parallel == 1
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "quantverdict.backends.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | ENVIRONMENT | ({} if lone else SEVERAL_SLOTS),
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the program, which ends the worker itself
        )
        self._end = weakref.finalize(self, _end, self._process, self._errors)
        self.cpu_seconds = 0.0
        self.peak_memory_bytes: int | None = None
        self._identity: dict[str, str | int | bool] = {
            "engine": "llama.cpp",
            "build": wheel.build,
            "wheel": f"{wheel.package} {wheel.release}",
            "threads": threads,
            "parallel": placement.parallel,
            "context": placement.context,
            "decoding": "greedy",
            "kv_cache": "f16",
            "kv_unified": False,
            "flash_attention": True,
            "repack": lone,
            "tiled_matmul": lone,
        }
        settings = {
            "path": str(path),
            "threads": threads,
            "parallel": placement.parallel,
            "context": placement.context,
            "wheel": placement.wheel,
        }
        try:
            self._ask(settings)
        except EngineError:
            self.close()
            raise

    @property
    def identity(self) -> Mapping[str, str | int | bool]:
        return self._identity

    def complete(
        self, prompts: Sequence[Prompt], decoding: Decoding, progress: Progress | None = None
    ) -> list[Completion]:
        """Answer one batch.

        Raises:
            EngineError: the worker died, a prompt does not fit the context (nothing is generated then), or sampling
                was asked for.
        """
        if decoding.temperature != 0:
            raise EngineError(f"the llama.cpp backend decodes greedily; temperature {decoding.temperature} is not 0")
        request = {
            "max_new_tokens": decoding.max_new_tokens,
            "prompts": [
                {
                    "name": f"{prompt.task}/{prompt.sample_id}",
                    "text": prompt.text if prompt.chat is None else prompt.chat,
                    "choices": prompt.choices,
                }
                for prompt in prompts
            ],
        }
        return [_completion(values) for values in self._ask(request, progress)["completions"]]

    def close(self) -> None:
        """End the worker and wait for it."""
        self._end()

    def _ask(self, request: Mapping[str, Any], progress: Progress | None = None) -> dict[str, Any]:
        """Send a line and read the reply that settles it."""
        if not self._end.alive:
            raise EngineError("the llama.cpp backend is closed")
        settled = False
        try:
            reply = self._exchange(request, progress)
            settled = True
        finally:
            if not settled:  # it is dead, or still busy with a batch that nobody waits for
                self._process.kill()
                self.close()
        if "error" in reply:
            raise EngineError(reply["error"])
        return reply

    def _exchange(self, request: Mapping[str, Any], progress: Progress | None) -> dict[str, Any]:
        requests, replies = self._process.stdin, self._process.stdout
        assert requests is not None
        assert replies is not None
        try:
            requests.write(json.dumps(request) + "\n")
            requests.flush()
        except BrokenPipeError:
            raise EngineError(self._reason()) from None
        for line in replies:
            reply: dict[str, Any] = json.loads(line)
            if "progress" not in reply:
                self.cpu_seconds = reply["usage"]["cpu_seconds"]
                self.peak_memory_bytes = reply["usage"]["peak_memory_bytes"]
                return reply
            if progress is not None:
                progress(*reply["progress"])
        raise EngineError(self._reason())

    def _reason(self) -> str:
        """Why the worker ended, in one line."""
        code = self._process.wait()
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 2000))
        lines = self._errors.read().decode(errors="replace").split("\n")
        said = " | ".join(line.strip() for line in lines if line.strip())[-300:]
        if code >= 0:
            how = f"ended with exit code {code}"
        else:
            how = f"was killed by {signal.Signals(-code).name}"
            how += " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"the llama.cpp worker {how}" + (f": {said}" if said else "")


def _completion(values: Mapping[str, Any]) -> Completion:
    known = {field.name: values[field.name] for field in fields(Completion)}
    logprobs = known["choice_logprobs"]
    return Completion(**known | {"choice_logprobs": None if logprobs is None else tuple(logprobs)})


def _end(process: subprocess.Popen[str], errors: IO[bytes]) -> None:
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
