"""Transformers: FP16/BF16, AWQ, GPTQ and compressed-tensors checkpoints, and GGUF files unpacked to plain weights.

A batch is cut into sub-batches of `parallel` prompts of like length. What is in one follows from the prompts alone;
where one does not fit the memory, its halves are asked one after the other.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from quantverdict.backends.base import (
    AnswerLength,
    Decoding,
    Placement,
    Progress,
    TeacherForcedLogits,
    TextTokens,
    physical_cores,
)
from quantverdict.backends.batch_scheduler import BatchJob, GeneratedAnswer
from quantverdict.backends.checkpoint_tokenizer import (
    INSTALL,
    LIBRARY_ERRORS,
    CheckpointTokenizer,
    LibraryErrors,
    completion,
    one_line,
    pretrained,
    read_jobs,
    until_stop,
)
from quantverdict.backends.worker_process import IsolatedBackend
from quantverdict.errors import EngineError
from quantverdict.records import Completion, Prompt
from quantverdict.stats import plain_sum

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

# A Transformers model asked for a batch: sub-batches padded on the left, greedy, float32 log-probabilities.

Report = Callable[[int, int], None]
"""Called with (prompts finished, tokens generated) so far."""
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class BatchModel:
    """A loaded causal model that is asked for several sequences at once.

    Args:
        model: of Transformers; it loses its own defaults for generation.
        stops: ids of the tokens that end an answer.
        parallel: sequences asked for at once.

    Attributes:
        halved: how often a sub-batch did not fit the memory and was asked in halves.
    """

    def __init__(self, model: PreTrainedModel, stops: Sequence[int], parallel: int) -> None:
        import torch
        import transformers

        self._torch, self._transformers = torch, transformers
        self._model, self._stops, self._parallel = model, list(stops), parallel
        # Whatever a call leaves open would be filled from here: penalties, suppressed tokens.
        model.generation_config = transformers.GenerationConfig()
        self._takes = set(inspect.signature(model.forward).parameters)
        self.halved = 0
        self._windows: list[tuple[int, ...]] = []  # of a text, with what the model keeps of them so far
        self._kept: Any = None
        self._read = 0

    def answer(
        self,
        jobs: Sequence[BatchJob],
        decoding: Decoding,
        context: int,
        report: Report,
        text_of: Callable[[Sequence[int]], str],
    ) -> list[GeneratedAnswer]:
        """Answers in the order of the jobs, and the log-probabilities of their choices.

        A choice of one token costs nothing where an answer is asked for too: it is read from the logits of the first.

        Args:
            jobs: prompts and choices as token ids.
            decoding: its limits; 0 tokens of an answer ask for the choices alone.
            context: tokens of prompt and answer together.
            report: called every step.
            text_of: the text of tokens.

        Raises:
            EngineError: one prompt alone does not fit the memory, or logits are not finite.
        """
        answers = [GeneratedAnswer() for _ in jobs]
        scores: dict[tuple[int, int], float] = {}
        totals = _Totals(report)

        def generate(rows: Sequence[int]) -> None:
            limits = [min(decoding.most_tokens, context - len(jobs[row].prompt)) for row in rows]
            lengths = [AnswerLength(decoding, text_of, opened=jobs[row].opened) for row in rows]
            thinks = lengths if decoding.max_reasoning_tokens is not None else []
            found, watch = self._generate([jobs[row].prompt for row in rows], limits, totals.during, thinks)
            for row, tokens in zip(rows, found, strict=True):
                answers[row].tokens, answers[row].finish = until_stop(tokens, self._stops)
                answers[row].ttft_ms = watch.ttft_ms
            scores.update(self._first_scores(jobs, rows, watch.first))
            totals.add(len(rows), sum(len(answers[row].tokens) for row in rows))

        if decoding.max_new_tokens:
            order = sorted(range(len(jobs)), key=lambda row: len(jobs[row].prompt))
            self._in_parts(order, generate)
        self._score_rest(jobs, scores)
        for row, job in enumerate(jobs):
            answers[row].choice_logprobs = tuple(scores[row, i] for i in range(len(job.choices)))
        return answers

    def force(self, prompt: tuple[int, ...], answer: tuple[int, ...], part: range) -> npt.NDArray[np.float32]:
        """Log-probabilities before the tokens of `answer` in `part`: (tokens, vocabulary).

        Raises:
            EngineError: logits that are not finite.
        """
        stop = min(part.stop, len(answer))
        if stop <= part.start:
            return np.empty((0, self._model.config.get_text_config().vocab_size), np.float32)
        found = self._log_probs([prompt + answer[: stop - 1]], stop - part.start)[0]
        return np.asarray(found.cpu().numpy(), np.float32)

    def window_logits(self, windows: Sequence[tuple[int, ...]], part: range) -> npt.NDArray[np.float32]:
        """Logits after the places of a part of windows: (windows, places, vocabulary).

        Raises:
            EngineError: logits that are not finite.
        """
        if [*windows] != self._windows or part.start < self._read:
            self._windows, self._kept, self._read = [*windows], None, 0
        options: dict[str, Any] = {"logits_to_keep": len(part)} if "logits_to_keep" in self._takes else {}
        keeps = "past_key_values" in self._takes
        begun = self._read if keeps else 0
        options |= {"past_key_values": self._kept, "use_cache": True} if keeps else {}
        with self._torch.inference_mode():
            found = self._model(input_ids=self._tensor([one[begun : part.stop] for one in windows]), **options)
            logits = found.logits[:, -len(part) :].float()
            _check(logits)
        self._kept, self._read = found.get("past_key_values"), part.stop
        return np.asarray(logits.cpu().numpy(), np.float32)

    def _generate(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], report: Report, lengths: Sequence[AnswerLength]
    ) -> tuple[list[list[int]], _GenerationMonitor]:
        """At most `limits` tokens after each prompt; what follows an end token is padding."""
        ids, mask = self._padded(prompts)
        watch = _GenerationMonitor(self._torch, self._tensor(limits), self._tensor(self._stops), report)
        watch.bound(lengths, ids.shape[1])
        with self._torch.inference_mode():
            found = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=self._transformers.GenerationConfig(
                    do_sample=False,
                    num_beams=1,
                    max_new_tokens=max(limits),
                    eos_token_id=self._stops or None,
                    pad_token_id=self._stops[0] if self._stops else 0,
                ),
                logits_processor=self._transformers.LogitsProcessorList([watch.look]),
                stopping_criteria=self._transformers.StoppingCriteriaList([watch.stop]),
            )
        rows = found[:, ids.shape[1] :].tolist()
        ends = [watch.ends.get(at, limit) for at, limit in enumerate(limits)]
        return [row[:end] for row, end in zip(rows, ends, strict=True)], watch

    def _first_scores(
        self, jobs: Sequence[BatchJob], rows: Sequence[int], logits: Tensor
    ) -> dict[tuple[int, int], float]:
        """Scores of the choices that are one token, from the logits after the prompts."""
        wanted = [(place, row, i) for place, row in enumerate(rows) for i, choice in enumerate(jobs[row].choices)]
        single = [(place, row, i) for place, row, i in wanted if len(jobs[row].choices[i]) == 1]
        if not single:
            return {}
        log_p = self._log_softmax(logits)
        return {(row, i): float(log_p[place, jobs[row].choices[i][0]]) for place, row, i in single}

    def _score_rest(self, jobs: Sequence[BatchJob], scores: dict[tuple[int, int], float]) -> None:
        """Score the other choices; those of a prompt that share all but their last token are one sequence."""
        asked: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for row, job in enumerate(jobs):
            for i, choice in enumerate(job.choices):
                if (row, i) not in scores:
                    asked.setdefault(job.prompt + choice[:-1], []).append((row, i))

        def score(sequences: Sequence[tuple[int, ...]]) -> None:
            wanted = max(len(jobs[row].choices[i]) for tokens in sequences for row, i in asked[tokens])
            log_p = self._log_probs(sequences, wanted)
            for place, tokens in enumerate(sequences):
                for row, i in asked[tokens]:
                    choice = jobs[row].choices[i]
                    last = log_p[place, wanted - len(choice) :]
                    scores[row, i] = plain_sum(float(last[k, token]) for k, token in enumerate(choice))

        self._in_parts(sorted(asked, key=len), score)

    def _log_probs(self, sequences: Sequence[Sequence[int]], wanted: int) -> Tensor:
        """Log-probabilities of what follows: (sequence, last `wanted` positions, token)."""
        ids, mask = self._padded(sequences)
        options: dict[str, Any] = {"logits_to_keep": wanted} if "logits_to_keep" in self._takes else {}
        if "position_ids" in self._takes:
            options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        with self._torch.inference_mode():
            logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False, **options).logits
            return self._log_softmax(logits[:, -wanted:])

    def _log_softmax(self, logits: Tensor) -> Tensor:
        _check(logits)
        return self._torch.log_softmax(logits.float(), dim=-1)

    def _in_parts(self, items: Sequence[Any], ask: Callable[[Sequence[Any]], None]) -> None:
        for start in range(0, len(items), self._parallel):
            self._in_halves(items[start : start + self._parallel], ask)

    def _in_halves(self, items: Sequence[Any], ask: Callable[[Sequence[Any]], None]) -> None:
        """Ask for all at once; where the memory does not hold them, for one half and then the other.

        The next sub-batch starts whole again: what is asked together must not depend on what was asked before.
        """
        if self._fits(items, ask):
            return
        if len(items) == 1:
            raise EngineError("out of memory with a single prompt; expected a smaller context or model")
        self.halved += 1
        if self._torch.cuda.is_available():
            self._torch.cuda.empty_cache()
        middle = len(items) // 2
        self._in_halves(items[:middle], ask)
        self._in_halves(items[middle:], ask)

    def _fits(self, items: Sequence[Any], ask: Callable[[Sequence[Any]], None]) -> bool:
        try:
            ask(items)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
                return False  # what the attempt held goes with its frames
            raise
        return True

    def _padded(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids and their mask: (sequence, position)."""
        width = max(map(len, sequences))
        ids = [[0] * (width - len(tokens)) + list(tokens) for tokens in sequences]
        mask = [[0] * (width - len(tokens)) + [1] * len(tokens) for tokens in sequences]
        return self._tensor(ids), self._tensor(mask)

    def _tensor(self, values: Sequence[Any]) -> Tensor:
        return self._torch.tensor(values, dtype=self._torch.long, device=self._model.device)


class _GenerationMonitor:
    """Looks on while a sub-batch is generated.

    Attributes:
        first: logits after the prompts, (sequence, token).
        ttft_ms: time to the first tokens of the sub-batch.
        ends: the tokens of a row that had all its own before the limit.
    """

    def __init__(self, torch: ModuleType, limits: Tensor, stops: Tensor, report: Report) -> None:
        self._torch, self._limits, self._stops, self._report = torch, limits, stops, report
        self._growing = limits > 0
        self._start, self._steps, self._tokens = time.perf_counter(), 0, 0
        self.first: Tensor | None = None
        self.ttft_ms: float | None = None
        self.ends: dict[int, int] = {}
        self._lengths: Sequence[AnswerLength] = ()
        self._begin = 0

    def bound(self, lengths: Sequence[AnswerLength], begin: int) -> None:
        """End each row by a length of its own, too; the answers begin at column `begin`."""
        self._lengths, self._begin = lengths, begin

    def look(self, ids: Tensor, logits: Tensor) -> Tensor:  # noqa: ARG002 - called so by generate
        """Sees the logits that a token is chosen from; an arg-max over what is no number would look like an answer."""
        _check(logits)
        if self.first is None:
            self.first = logits
        return logits

    def stop(self, ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002 - called so by generate
        """Sees the tokens that were chosen; says which rows are done."""
        if self.ttft_ms is None:
            self.ttft_ms = (time.perf_counter() - self._start) * 1000
        self._steps += 1
        self._growing = self._growing & ~self._torch.isin(ids[:, -1], self._stops)
        self._tokens += int(self._growing.sum())
        self._growing = self._growing & (self._limits > self._steps)
        for row, length in enumerate(self._lengths):
            if bool(self._growing[row]) and length.full(ids[row, self._begin :].tolist()):
                self._growing[row] = False
                self.ends[row] = self._steps
        self._report(len(self._growing) - int(self._growing.sum()), self._tokens)
        return ~self._growing


class _Totals:
    """What finished sub-batches add to the report of a running one."""

    def __init__(self, report: Report) -> None:
        self._report, self._finished, self._generated = report, 0, 0

    def during(self, finished: int, generated: int) -> None:
        self._report(self._finished + finished, self._generated + generated)

    def add(self, finished: int, generated: int) -> None:
        self._finished += finished
        self._generated += generated


def _check(logits: Tensor) -> None:
    if not bool(logits.amax(-1).isfinite().all()):
        raise EngineError("the engine returned logits that are not finite")


ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # a build is what is on disk: nothing is fetched to complete it
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
    "OMP_WAIT_POLICY": "passive",  # waiting threads that spin take the speed from a busy neighbour
}


class TransformersBackend(IsolatedBackend):
    """One loaded checkpoint or GGUF file; see `Backend`.

    Args:
        path: a checkpoint's folder, or a GGUF file.
        placement: how to use the machine.

    Raises:
        EngineError: Transformers is not installed, cannot load it, or cannot generate one token with it.
    """

    def __init__(self, path: Path, placement: Placement) -> None:
        engine = "quantverdict.backends.hf:TransformersEngine"
        super().__init__("Transformers", engine, path, placement, environment=ENVIRONMENT)

    def force(self, prompt: Prompt, answer: str, part: range) -> TeacherForcedLogits:
        """Log-probabilities along an answer; see `WhiteBox`."""
        return self._forced({"prompt": asdict(prompt), "answer": answer}, part)


class TransformersEngine:
    """The model, in the process that is its own: it sets the threads of the whole process."""

    def __init__(self, path: Path, placement: Placement) -> None:
        try:
            import torch
            import transformers
        except ImportError as error:
            raise EngineError(f"Transformers is not installed ({error}); expected: {INSTALL}") from error
        self._torch, self._transformers = torch, transformers
        self._placement, self._threads = placement, placement.threads or physical_cores()
        torch.set_num_threads(self._threads)
        self._method = "none"
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tokenizer = CheckpointTokenizer(path)
        self._model = self._load(path)
        self._batches = BatchModel(self._model, self._tokenizer.stops, placement.parallel)
        self._smoke(path)

    @property
    def identity(self) -> Mapping[str, str | int | bool]:
        return {
            "engine": "transformers",
            **{package: _version(package) for package in ("transformers", "torch", "compressed-tensors", "gptqmodel")},
            "device": self._torch.cuda.get_device_name() if self._device == "cuda" else "cpu",
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "threads": self._threads,
            "parallel": self._placement.parallel,
            "context": self._placement.context,
            "attention": str(self._model.config._attn_implementation),  # noqa: SLF001 - it is said nowhere else
            "quantization": self._method,
            "decoding": "greedy",
            "stops": " ".join(map(str, self._tokenizer.stops)),
        }

    @property
    def measured(self) -> Mapping[str, int]:
        halved = {"halved": self._batches.halved}
        if self._device == "cuda":
            return {**halved, "peak_memory_bytes": self._torch.cuda.max_memory_allocated()}
        return halved

    def complete(
        self, prompts: Sequence[Prompt], decoding: Decoding, progress: Progress | None = None
    ) -> list[Completion]:
        """Answer one batch.

        Raises:
            EngineError: a prompt does not fit the context (nothing is generated then) or by itself the memory, the
                model fails, or sampling was asked for.
        """
        if decoding.temperature != 0:
            raise EngineError(f"the Transformers backend decodes greedily; temperature {decoding.temperature} is not 0")
        context, report = self._placement.context, progress or (lambda *_: None)
        jobs = read_jobs(self._tokenizer, prompts, decoding.max_new_tokens, context)
        try:
            answers = self._batches.answer(jobs, decoding, context, report, self._tokenizer.text)
        except LIBRARY_ERRORS as error:
            raise EngineError(f"the model fails: {one_line(error)}") from error
        return [completion(self._tokenizer, job, answer) for job, answer in zip(jobs, answers, strict=True)]

    def force(self, prompt: Prompt, answer: str, part: range) -> TeacherForcedLogits:
        """Log-probabilities along an answer; see `WhiteBox`."""
        (job,) = read_jobs(self._tokenizer, [replace(prompt, choices=(answer,))], 0, self._placement.context)
        try:
            return TeacherForcedLogits(job.choices[0], self._batches.force(job.prompt, job.choices[0], part))
        except LIBRARY_ERRORS as error:
            raise EngineError(f"the model fails: {one_line(error)}") from error

    def text_tokens(self, text: str) -> TextTokens:
        """A text as the tokenizer reads it; see `TextReader`."""
        size = int(self._model.config.get_text_config().vocab_size)
        return TextTokens(self._tokenizer.ids(Prompt("", "", text, None, "")), self._tokenizer.start, size)

    def window_logits(self, windows: Sequence[tuple[int, ...]], part: range) -> npt.NDArray[np.float32]:
        """Logits along windows of a text; see `TextReader`."""
        try:
            return self._batches.window_logits(windows, part)
        except LIBRARY_ERRORS as error:
            raise EngineError(f"the model fails: {one_line(error)}") from error

    def _load(self, path: Path) -> PreTrainedModel:
        dtype = self._placement.dtype
        # In bfloat16 on a CPU most answers change with the batch they are asked in.
        chosen = "float32" if dtype == "auto" and self._device == "cpu" else dtype
        transformers = self._transformers
        with LibraryErrors(f"{path} cannot be loaded by Transformers"), pretrained(path) as (folder, options):
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, **options)
            self._method = _quantization(config)
            if "gguf_file" in options:
                options["quantization_config"] = transformers.GgufConfig(dequantize=True)
            elif self._method == "compressed-tensors":
                # Decoded while loading: packed zero points are expected in another shape else.
                options["quantization_config"] = transformers.CompressedTensorsConfig(dequantize=True)
            model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=chosen,
                device_map=self._device,
                output_loading_info=True,
                trust_remote_code=False,
                weights_only=True,  # of a pickle: tensors, and nothing that is called
                **options,
            )
            missing = sorted(loaded["missing_keys"])
            if missing and self._method == "none" and path.is_dir():  # filled with random numbers
                raise ValueError(f"the weights lack {missing[0]}, {len(missing)} in all")
            if self._method == "compressed-tensors" and chosen == "float32":
                model = model.float()  # 4-bit floats are decoded to bfloat16, whatever was asked for
        return model.eval()

    def _smoke(self, path: Path) -> None:
        """One token: a kernel that cannot do a build's shapes says so at its first use, not when it is loaded."""
        job = BatchJob(self._tokenizer.ids(Prompt("", "", "Hello", None, "")) or (0,))
        try:
            self._batches.answer([job], Decoding(1), self._placement.context, lambda *_: None, self._tokenizer.text)
        except (*LIBRARY_ERRORS, EngineError) as error:
            raise EngineError(f"{path} loads, and fails at its first token: {one_line(error)}") from error


def _quantization(config: PretrainedConfig) -> str:
    """The method of a checkpoint, `none` for plain weights."""
    settings = getattr(config, "quantization_config", None)
    method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    return str(getattr(method, "value", method or "none"))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
