"""The process that holds the engine: `python -m quantverdict.backends.worker`, one JSON document a line each way.

First line in: what to load; first line out: `ready` or `error`. Then each line in is a batch, answered by `progress`
lines and one `completions` or `error`. It ends when its input ends, in the middle of a batch too, so that it cannot
outlive the process that asked. A crash needs no handling here: the other side sees the pipe close.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from quantverdict.backends.batch_scheduler import BatchScheduler, Job, Limits
from quantverdict.backends.llama_engine import CHUNK, LlamaEngine
from quantverdict.backends.llama_library import open_library
from quantverdict.backends.token_hash import hash_ids
from quantverdict.errors import EngineError

_PROGRESS_SECONDS = 0.1
_FD_IN, _FD_OUT, _FD_ERR = 0, 1, 2


class Worker:
    """A loaded model that answers batches.

    Args:
        settings: `path`, `threads`, `parallel`, `context`, `wheel`; `vocab_only` to tokenise and no more.
        replies: where lines go.
    """

    def __init__(self, settings: Mapping[str, Any], replies: TextIO) -> None:
        self.replies, self.parallel, self.context = replies, int(settings["parallel"]), int(settings["context"])
        self.engine = LlamaEngine(
            open_library(settings["wheel"]),
            Path(settings["path"]),
            int(settings["threads"]),
            repack=self.parallel == 1,
            vocab_only=bool(settings.get("vocab_only")),
        )
        self.reported = time.monotonic()

    def reply(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """To one line of input."""
        if "tokenize" in request:
            return {"tokens": self.engine.tokenize(request["tokenize"], start=True)}
        if "stops" in request:
            return {"tokens": [token for token in range(self.engine.n_vocab) if self.engine.is_end(token)]}
        if "piece" in request:
            return {"text": self.engine.piece(int(request["piece"]))}
        return {"completions": self.answer(request)}

    def answer(self, request: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The completions of a batch, as the fields of `Completion`."""
        max_new_tokens = int(request["max_new_tokens"])
        jobs = [self._named_job(prompt, max_new_tokens) for prompt in request["prompts"]]
        slots = min(self.parallel, max(2, len(jobs)))
        limits = Limits(slots=slots, max_new_tokens=max_new_tokens, chunk=CHUNK, context=self.context)
        answers = BatchScheduler(self.engine, jobs, limits, self._report).run()
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

    def _named_job(self, prompt: Mapping[str, Any], max_new_tokens: int) -> Job:
        try:
            return self._job(prompt["text"], prompt["choices"], max_new_tokens)
        except EngineError as error:
            raise EngineError(f"{prompt['name']}: {error}") from error

    def _job(self, text: str, choices: Sequence[str], max_new_tokens: int) -> Job:
        tokens = self.engine.tokenize(text, start=True)
        if not tokens:
            raise EngineError("the prompt has no tokens")
        continuations = tuple(self._continuation(text, tokens, choice) for choice in choices)
        longest = max((len(tokens) for tokens in continuations), default=0)
        if len(tokens) + max(min(1, max_new_tokens), longest - 1) > self.context:
            raise EngineError(
                f"the prompt's {len(tokens)} tokens do not fit a context of {self.context};"
                " expected a larger context or a shorter prompt"
            )
        return Job(tuple(tokens), continuations)

    def _continuation(self, text: str, prompt: list[int], choice: str) -> tuple[int, ...]:
        """Tokens of a choice as they follow the prompt's; by itself where prompt and choice melt into one token."""
        joint = self.engine.tokenize(text + choice, start=True)
        melted = joint[: len(prompt)] != prompt
        tokens = self.engine.tokenize(choice, start=False) if melted else joint[len(prompt) :]
        if not tokens:
            raise EngineError(f"the choice {choice!r} has no tokens")
        return tuple(tokens)

    def _report(self, finished: int, generated: int) -> None:
        now = time.monotonic()
        if now - self.reported < _PROGRESS_SECONDS:
            return
        self.reported = now
        if select.select([_FD_IN], [], [], 0)[0]:
            raise SystemExit(0)  # nothing is sent while a batch runs: the input has ended
        send(self.replies, {"progress": [finished, generated]})


def send(replies: TextIO, message: Mapping[str, Any]) -> None:
    """Write one line."""
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def usage() -> dict[str, float]:
    """CPU seconds and peak resident bytes of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    unit = 1 if sys.platform == "darwin" else 1024
    return {"cpu_seconds": used.ru_utime + used.ru_stime, "peak_memory_bytes": used.ru_maxrss * unit}


def serve(requests: TextIO, replies: TextIO) -> None:
    """Load, then answer until the input ends."""
    worker = None
    while line := requests.readline():
        request = json.loads(line)
        try:
            if worker is None:
                worker = Worker(request, replies)
                send(replies, {"ready": True, "usage": usage()})
            else:
                send(replies, {**worker.reply(request), "usage": usage()})
        except EngineError as error:
            send(replies, {"error": str(error), "usage": usage()})


def main() -> None:
    """Keep the reply pipe to ourselves: whatever a library prints goes to the error stream."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(_FD_OUT), "w", encoding="utf-8")
    os.dup2(_FD_ERR, _FD_OUT)
    try:
        serve(sys.stdin, replies)
    except BrokenPipeError:
        os._exit(0)  # the reader is gone: there is nobody to tell


if __name__ == "__main__":
    main()
