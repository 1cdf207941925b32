"""An engine in a process of its own, `python -m quantverdict.backends.worker`; its other end is `worker_process`."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TextIO

import numpy as np

from quantverdict.backends.base import (
    Decoding,
    Placement,
    Progress,
    TextReader,
    WhiteBox,
    hash_ids,
    opens_reasoning,
)
from quantverdict.backends.batch_scheduler import BatchJob, BatchScheduler, DecodeLimits, checked, even_parts
from quantverdict.backends.llama_engine import CHUNK, CacheSettings, LlamaEngine, open_library
from quantverdict.errors import EngineError, PromptTooLongError
from quantverdict.records import Completion, Prompt
from quantverdict.registry.listing import load

# The worker's end of the pipe: one JSON document a line each way, and bytes behind one that says how many.
#
# The first line in says what to load, the first line out is `ready` or `error`. Each later line in is answered by
# `progress` lines and one that settles it. A worker ends when its input ends, in the middle of a batch too, so that it
# cannot outlive the process that asked. A crash needs no handling here: the other side sees the pipe close.

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


def run(open_engine: Load) -> None:
    """Answer until the input ends. The reply pipe is ours: whatever a library prints goes to the error stream."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(_FD_OUT), "wb")
    os.dup2(_FD_ERR, _FD_OUT)
    # What no engine foresaw ends the process; its last words are the error, not the way there.
    sys.excepthook = lambda kind, error, _: print(f"{kind.__name__}: {error}", file=sys.stderr)  # noqa: T201
    try:
        _serve(open_engine, sys.stdin, replies)
    except BrokenPipeError:
        os._exit(0)  # the reader is gone: there is nobody to tell


def _serve(open_engine: Load, requests: TextIO, replies: BinaryIO) -> None:
    worker: Worker | None = None
    while line := requests.readline():
        request = json.loads(line)
        reply: dict[str, Any]
        try:
            if worker is None:
                worker = open_engine(request)
                reply = {"ready": worker.ready}
            else:
                reply = worker.reply(request, _Reporter(replies))
        except PromptTooLongError as error:
            reply = {"error": str(error), "too_long": error.prompt}
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


FEW = 63
"""Rows evaluated at once beside other slots: from 64 on attention is summed in tiles, so it would matter how much of a
prompt another one had evaluated before."""


class LlamaWorker:
    """A loaded model that answers batches.

    Args:
        settings: `path`, `threads`, `parallel`, `context`, `wheel`; `vocab_only` to tokenise and no more.
    """

    measured: Mapping[str, int] = {}

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.parallel, self.context = int(settings["parallel"]), int(settings["context"])
        self.engine = LlamaEngine(
            open_library(settings["wheel"]),
            Path(settings["path"]),
            int(settings["threads"]),
            repack=self.parallel == 1,
            vocab_only=bool(settings.get("vocab_only")),
            cache=CacheSettings(*settings.get("cache", ())),
            gpu_layers=settings.get("gpu_layers") or 0,
        )
        self.ready = {"gpu_layers": self.engine.gpu_layers}
        self._windows: list[tuple[int, ...]] = []  # of a text, as far as `_read` is evaluated in each
        self._read = 0

    def reply(self, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """To one line of input."""
        if "tokenize" in request:
            return {"tokens": self.engine.tokenize(request["tokenize"], start=True)}
        if "stops" in request:
            return {"tokens": [token for token in range(self.engine.n_vocab) if self.engine.is_end(token)]}
        if "piece" in request:
            return {"text": self.engine.piece(int(request["piece"]))}
        return self._read_along(request) or self._asked(request, progress)

    def _asked(self, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        self._windows = []  # the engine begins anew
        return self.force(request["force"]) if "force" in request else {"completions": self.answer(request, progress)}

    def _read_along(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What is asked of a text; empty where nothing is."""
        if "text" in request:
            tokens = self.engine.tokenize(request["text"], start=True, special=False)
            return {"ids": tokens, "start": self.engine.start_token, "vocabulary": self.engine.n_vocab}
        return self.read_windows(**request["windows"]) if "windows" in request else {}

    def read_windows(self, tokens: Sequence[Sequence[int]], start: int, stop: int) -> dict[str, Any]:
        """Logits after the places of a part of windows, which are evaluated side by side: of each `FEW` rows at once.

        So they are those by which answers are chosen, and no other than those of a window by itself.
        """
        windows = [tuple(window) for window in tokens]
        if windows != self._windows or start < self._read:
            self.engine.start(len(windows), len(windows[0]))
            self._windows, self._read = windows, 0
        self._evaluate_windows(range(self._read, start), None)
        found = np.empty((len(windows), stop - start, self.engine.n_vocab), np.float32)
        self._evaluate_windows(range(start, stop), found)
        self._read = stop
        return {"vocabulary": self.engine.n_vocab, PAYLOAD: found.data.cast("B")}

    def _evaluate_windows(self, places: range, found: np.ndarray[Any, Any] | None) -> None:
        most = max(1, min(FEW, CHUNK // len(self._windows)))
        for block in even_parts(len(places), most):
            rows = [(s, window[places[i]], places[i]) for s, window in enumerate(self._windows) for i in block]
            shown = self.engine.evaluate(rows, () if found is None else range(len(rows)))
            for at, logits in enumerate(shown):
                assert found is not None  # else none is asked for
                found[at // len(block), block[at % len(block)]] = checked(logits)

    def force(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Logits before the tokens of an answer, evaluated with the prompt as one sequence that is alone."""
        job = self._named_job(request, 0)
        answer, stop = job.choices[0], min(int(request["stop"]), len(job.choices[0]))
        part = range(int(request["start"]), stop)
        tokens = (job.prompt + answer[: stop - 1]) if part else ()
        first, found = len(job.prompt) - 1 + part.start, bytearray()
        self.engine.start(1, self.context)
        for rows in even_parts(len(tokens), CHUNK):
            wanted = [place - rows.start for place in rows if place >= first]
            shown = self.engine.evaluate([(0, tokens[place], place) for place in rows], wanted)
            for logits in shown:
                found += checked(logits).tobytes()
        return {"ids": answer, "vocabulary": self.engine.n_vocab, PAYLOAD: bytes(found)}

    def answer(self, request: Mapping[str, Any], progress: Progress) -> list[dict[str, Any]]:
        """The completions of a batch, as the fields of `Completion`."""
        max_new_tokens = int(request["max_new_tokens"])
        jobs = [self._named_job(prompt, max_new_tokens) for prompt in request["prompts"]]
        slots = min(self.parallel, max(2, len(jobs)))
        limits = DecodeLimits(
            slots=slots,
            max_new_tokens=max_new_tokens,
            chunk=CHUNK if slots == 1 else FEW,
            context=self.context,
            max_reasoning_tokens=request.get("max_reasoning_tokens"),
        )
        answers = BatchScheduler(self.engine, jobs, limits, progress).run()
        return [
            {
                "text": self.engine.detokenize(answer.tokens),
                "finish": answer.finish,
                "prompt_tokens": len(job.prompt),
                "output_tokens": len(answer.tokens),
                "prompt_ids_sha256": hash_ids(job.prompt),
                "choice_logprobs": answer.choice_logprobs if job.choices else None,
                "ttft_ms": answer.ttft_ms,
            }
            for job, answer in zip(jobs, answers, strict=True)
        ]

    def _named_job(self, prompt: Mapping[str, Any], max_new_tokens: int) -> BatchJob:
        try:
            return self._job(prompt["text"], prompt["choices"], max_new_tokens)
        except EngineError as error:
            raise error.of_prompt(prompt["name"]) from error

    def _job(self, text: str, choices: Sequence[str], max_new_tokens: int) -> BatchJob:
        tokens = self.engine.tokenize(text, start=True)
        if not tokens:
            raise EngineError("the prompt has no tokens")
        continuations = tuple(self._continuation(text, tokens, choice) for choice in choices)
        longest = max((len(tokens) for tokens in continuations), default=0)
        if len(tokens) + max(min(1, max_new_tokens), longest - 1) > self.context:
            raise PromptTooLongError(
                f"the prompt's {len(tokens)} tokens do not fit a context of {self.context};"
                " expected a larger context or a shorter prompt"
            )
        return BatchJob(tuple(tokens), continuations, opens_reasoning(text))

    def _continuation(self, text: str, prompt: list[int], choice: str) -> tuple[int, ...]:
        """Tokens of a choice as they follow the prompt's; by itself where prompt and choice melt into one token."""
        joint = self.engine.tokenize(text + choice, start=True)
        melted = joint[: len(prompt)] != prompt
        tokens = self.engine.tokenize(choice, start=False) if melted else joint[len(prompt) :]
        if not tokens:
            raise EngineError(f"the choice {choice!r} has no tokens")
        return tuple(tokens)


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


class EngineWorker:
    """An engine of ours in Python, which answers batches.

    Args:
        settings: `engine` (MODULE:CLASS), `path`, `placement`.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        placement = Placement(**settings["placement"])
        self._engine: Engine = load(settings["engine"])(Path(settings["path"]), placement)

    @property
    def ready(self) -> dict[str, str | int | bool]:
        return dict(self._engine.identity)

    @property
    def measured(self) -> Mapping[str, int]:
        return self._engine.measured

    def reply(self, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """To one line of input."""
        if "text" in request:
            assert isinstance(self._engine, TextReader)  # only such an engine's backend asks
            return asdict(self._engine.text_tokens(request["text"]))
        if "windows" in request:
            return self._read_windows(**request["windows"])
        if "force" in request:
            return self._force(**request["force"])
        prompts = [_prompt(values) for values in request["prompts"]]
        done = self._engine.complete(prompts, Decoding(**request["decoding"]), progress)
        return {"completions": [asdict(completion) for completion in done]}

    def _read_windows(self, tokens: Sequence[Sequence[int]], start: int, stop: int) -> dict[str, Any]:
        assert isinstance(self._engine, TextReader)
        found = np.ascontiguousarray(self._engine.window_logits([tuple(one) for one in tokens], range(start, stop)))
        return {"vocabulary": found.shape[2], PAYLOAD: found.data.cast("B")}

    def _force(self, prompt: Mapping[str, Any], answer: str, start: int, stop: int) -> dict[str, Any]:
        assert isinstance(self._engine, WhiteBox)  # only such an engine's backend asks
        found = self._engine.force(_prompt(prompt), answer, range(start, stop))
        return {"ids": found.ids, "vocabulary": found.logits.shape[1], PAYLOAD: found.logits.tobytes()}


def _prompt(values: Mapping[str, Any]) -> Prompt:
    return Prompt(**{**values, "choices": tuple(values["choices"])})


def open_worker(settings: Mapping[str, Any]) -> Worker:
    """What the first line asks for."""
    return EngineWorker(settings) if "engine" in settings else LlamaWorker(settings)


if __name__ == "__main__":
    run(open_worker)
