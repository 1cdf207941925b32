"""An engine in a process of its own: python -m quantverdict.backends.isolated.

Its threads, logging and memory are its own, all of which ends with it. What is said on the pipe: see `worker_side`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from quantverdict.backends.base import Decoding, Placement, Progress, WhiteBox
from quantverdict.backends.worker_process import WorkerBackend, WorkerProcess
from quantverdict.backends.worker_side import PAYLOAD, run
from quantverdict.records import Completion, Prompt


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


class IsolatedBackend(WorkerBackend):
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
        settings = {"engine": engine, "path": str(path), "placement": asdict(placement)}
        worker = WorkerProcess(name, "quantverdict.backends.isolated", environment, settings)
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


class _Worker:
    """A loaded engine that answers batches."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        module, _, name = request["engine"].partition(":")
        placement = Placement(**request["placement"])
        self._engine: Engine = getattr(importlib.import_module(module), name)(Path(request["path"]), placement)

    @property
    def ready(self) -> dict[str, str | int | bool]:
        return dict(self._engine.identity)

    @property
    def measured(self) -> Mapping[str, int]:
        return self._engine.measured

    def reply(self, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        if "force" in request:
            return self._force(**request["force"])
        prompts = [_prompt(values) for values in request["prompts"]]
        done = self._engine.complete(prompts, Decoding(**request["decoding"]), progress)
        return {"completions": [asdict(completion) for completion in done]}

    def _force(self, prompt: Mapping[str, Any], answer: str, start: int, stop: int) -> dict[str, Any]:
        assert isinstance(self._engine, WhiteBox)  # only such an engine's backend asks
        found = self._engine.force(_prompt(prompt), answer, range(start, stop))
        return {"ids": found.ids, "vocabulary": found.logits.shape[1], PAYLOAD: found.logits.tobytes()}


def _prompt(values: Mapping[str, Any]) -> Prompt:
    return Prompt(**{**values, "choices": tuple(values["choices"])})


if __name__ == "__main__":
    run(_Worker)
