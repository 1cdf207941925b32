"""vLLM in a process of its own, for a machine with a GPU: the same prompts as token ids, greedy, its own batching.

Reuse of earlier prompts' memory is off, so that an answer cannot depend on which batches were asked before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from quantverdict.backends.base import Decoding, Placement, Progress
from quantverdict.backends.batch_scheduler import BatchJob, GeneratedAnswer
from quantverdict.backends.checkpoint_tokenizer import (
    LIBRARY_ERRORS,
    CheckpointTokenizer,
    completion,
    one_line,
    read_jobs,
    until_stop,
)
from quantverdict.backends.hf import ENVIRONMENT
from quantverdict.backends.worker_process import IsolatedBackend
from quantverdict.errors import EngineError, PromptTooLongError
from quantverdict.records import Completion, Prompt
from quantverdict.stats import plain_sum

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams

_INSTALL = "pip install 'quantverdict[vllm]'"


class VllmBackend(IsolatedBackend):
    """One loaded checkpoint; see `Backend`.

    Args:
        path: a checkpoint's folder.
        placement: how to use the machine; `dtype` auto is the checkpoint's own, `threads` has no meaning here.

    Raises:
        EngineError: vLLM is not installed, cannot load it, or cannot generate one token with it.
    """

    def __init__(self, path: Path, placement: Placement) -> None:
        environment = {**ENVIRONMENT, "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
        super().__init__("vLLM", "quantverdict.backends.vllm:VllmEngine", path, placement, environment)


class VllmEngine:
    """The model, in the process that is its own."""

    def __init__(self, path: Path, placement: Placement) -> None:
        try:
            import vllm
        except ImportError as error:
            raise EngineError(f"vLLM is not installed ({error}); expected: {_INSTALL}") from error
        self._sampling, self._placement = vllm.SamplingParams, placement
        self._tokenizer = CheckpointTokenizer(path)
        try:
            self._llm = vllm.LLM(
                model=str(path),
                trust_remote_code=False,
                skip_tokenizer_init=True,  # it is given ids and gives ids
                dtype=placement.dtype,
                max_model_len=placement.context,
                max_num_seqs=placement.parallel,
                seed=0,
                kv_cache_dtype="auto" if placement.cache_k == "f16" else placement.cache_k,
                generation_config="vllm",  # not the checkpoint's penalties
                enable_prefix_caching=False,
                disable_log_stats=False,  # without them an answer does not say when its first token came
            )
            self._answer([BatchJob(self._tokenizer.ids(Prompt("", "", "Hello", None, "")) or (0,))], 1)
        except LIBRARY_ERRORS as error:
            raise EngineError(f"{path} cannot be run by vLLM: {one_line(error)}") from error

    @property
    def identity(self) -> Mapping[str, str | int | bool]:
        try:
            release = version("vllm")
        except PackageNotFoundError:
            release = "unknown"
        return {
            "engine": "vllm",
            "vllm": release,
            "dtype": self._placement.dtype,
            "parallel": self._placement.parallel,
            "context": self._placement.context,
            "prefix_caching": False,
            **({} if self._placement.cache_k == "f16" else {"kv_cache": self._placement.cache_k}),
            "decoding": "greedy",
            "stops": " ".join(map(str, self._tokenizer.stops)),
        }

    @property
    def measured(self) -> Mapping[str, int]:
        return {}

    def complete(
        self, prompts: Sequence[Prompt], decoding: Decoding, progress: Progress | None = None
    ) -> list[Completion]:
        """Answer one batch.

        Raises:
            EngineError: a prompt does not fit the context (nothing is generated then), vLLM fails, or sampling was
                asked for.
        """
        if decoding.temperature != 0:
            raise EngineError(f"the vLLM backend decodes greedily; temperature {decoding.temperature} is not 0")
        jobs = read_jobs(self._tokenizer, prompts, decoding.max_new_tokens, self._placement.context)
        for prompt, job in zip(prompts, jobs, strict=True):
            self._refuse_long_choices(f"{prompt.task}/{prompt.sample_id}", job)
        try:
            answers = self._answer(jobs, decoding.most_tokens)
        except LIBRARY_ERRORS as error:
            raise EngineError(f"vLLM fails: {one_line(error)}") from error
        if progress is not None:
            progress(len(jobs), sum(len(answer.tokens) for answer in answers))
        return [completion(self._tokenizer, job, answer) for job, answer in zip(jobs, answers, strict=True)]

    def _refuse_long_choices(self, name: str, job: BatchJob) -> None:
        """vLLM scores what is a prompt to it, and must generate a token after that: one more than elsewhere."""
        tokens = len(job.prompt) + max((len(choice) for choice in job.choices), default=0)
        if job.choices and tokens >= self._placement.context:
            message = f"{name}: prompt and choice are {tokens} tokens; expected fewer than a context of"
            raise PromptTooLongError(f"{message} {self._placement.context}", name)

    def _answer(self, jobs: Sequence[BatchJob], max_new_tokens: int) -> list[GeneratedAnswer]:
        answers = [GeneratedAnswer() for _ in jobs]
        if max_new_tokens:
            limits = [min(max_new_tokens, self._placement.context - len(job.prompt)) for job in jobs]
            params = [self._params(max_tokens=limit, stop_token_ids=list(self._tokenizer.stops)) for limit in limits]
            for answer, output in zip(answers, self._ask([job.prompt for job in jobs], params), strict=True):
                answer.tokens, answer.finish = until_stop(list(output.outputs[0].token_ids), self._tokenizer.stops)
                answer.ttft_ms = _ttft_ms(output)
        scores = iter(self._scores(jobs))
        for job, answer in zip(jobs, answers, strict=True):
            answer.choice_logprobs = tuple(islice(scores, len(job.choices)))
        return answers

    def _scores(self, jobs: Sequence[BatchJob]) -> list[float]:
        """Log-probability of every choice: those of its tokens as the end of a prompt, summed."""
        asked = [(job.prompt, choice) for job in jobs for choice in job.choices]
        params = [self._params(max_tokens=1, prompt_logprobs=0) for _ in asked]
        outputs = self._ask([prompt + choice for prompt, choice in asked], params)
        return [
            plain_sum(
                float(output.prompt_logprobs[place][token].logprob) for place, token in enumerate(choice, len(prompt))
            )
            for (prompt, choice), output in zip(asked, outputs, strict=True)
        ]

    def _params(self, **options: int | list[int]) -> SamplingParams:
        return self._sampling(temperature=0.0, detokenize=False, **options)

    def _ask(self, sequences: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> Sequence[RequestOutput]:
        if not sequences:
            return []
        prompts = [{"prompt_token_ids": list(tokens)} for tokens in sequences]
        outputs: list[RequestOutput] = self._llm.generate(prompts, list(params), use_tqdm=False)
        return outputs


def _ttft_ms(output: RequestOutput) -> float | None:
    """From when a request was taken up to its first token; None where vLLM does not say."""
    started = getattr(output.metrics, "scheduled_ts", 0.0)
    first = getattr(output.metrics, "first_token_ts", 0.0)
    return (first - started) * 1000 if first > started > 0 else None
