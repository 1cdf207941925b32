"""llama.cpp in a process of its own: `python -m quantverdict.backends.worker`; see `worker_side`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantverdict.backends.base import Progress
from quantverdict.backends.batch_scheduler import BatchScheduler, Job, Limits, checked, even_parts
from quantverdict.backends.llama_engine import CHUNK, LlamaEngine
from quantverdict.backends.llama_library import open_library
from quantverdict.backends.token_hash import hash_ids
from quantverdict.backends.worker_side import PAYLOAD, run
from quantverdict.errors import EngineError

FEW = 63
"""Rows evaluated at once beside other slots: from 64 on attention is summed in tiles, so it would matter how much of a
prompt another one had evaluated before."""


class LlamaWorker:
    """A loaded model that answers batches.

    Args:
        settings: `path`, `threads`, `parallel`, `context`, `wheel`; `vocab_only` to tokenise and no more.
    """

    ready = True
    measured: Mapping[str, int] = {}

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.parallel, self.context = int(settings["parallel"]), int(settings["context"])
        self.engine = LlamaEngine(
            open_library(settings["wheel"]),
            Path(settings["path"]),
            int(settings["threads"]),
            repack=self.parallel == 1,
            vocab_only=bool(settings.get("vocab_only")),
        )

    def reply(self, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """To one line of input."""
        if "tokenize" in request:
            return {"tokens": self.engine.tokenize(request["tokenize"], start=True)}
        if "stops" in request:
            return {"tokens": [token for token in range(self.engine.n_vocab) if self.engine.is_end(token)]}
        if "piece" in request:
            return {"text": self.engine.piece(int(request["piece"]))}
        if "force" in request:
            return self.force(request["force"])
        return {"completions": self.answer(request, progress)}

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
        limits = Limits(
            slots=slots, max_new_tokens=max_new_tokens, chunk=CHUNK if slots == 1 else FEW, context=self.context
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


if __name__ == "__main__":
    run(LlamaWorker)
