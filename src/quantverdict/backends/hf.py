"""Transformers: FP16/BF16, AWQ, GPTQ and compressed-tensors checkpoints, and GGUF files unpacked to plain weights.

A batch is cut into sub-batches of `parallel` prompts of like length. What is in one follows from the prompts alone;
where one does not fit the memory, its halves are asked one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from quantverdict.backends.base import Decoding, Forced, Placement, Progress
from quantverdict.backends.batch_scheduler import Job
from quantverdict.backends.checkpoint_tokenizer import (
    INSTALL,
    LIBRARY_ERRORS,
    CheckpointTokenizer,
    LibraryErrors,
    completion,
    one_line,
    pretrained,
    read_jobs,
)
from quantverdict.backends.cores import physical_cores
from quantverdict.backends.hf_batch import BatchModel
from quantverdict.backends.isolated import IsolatedBackend
from quantverdict.errors import EngineError
from quantverdict.records import Completion, Prompt

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

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

    def force(self, prompt: Prompt, answer: str, part: range) -> Forced:
        """Log-probabilities along an answer; see `WhiteBox`."""
        return self._forced({"prompt": asdict(prompt), "answer": answer}, part)

    @property
    def halved(self) -> int:
        """How often a sub-batch did not fit the memory and was asked in halves."""
        return int(self._worker.usage["halved"])


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
        limit, context = decoding.max_new_tokens, self._placement.context
        jobs = read_jobs(self._tokenizer, prompts, limit, context)
        try:
            answers = self._batches.answer(jobs, limit, context, progress or (lambda *_: None))
        except LIBRARY_ERRORS as error:
            raise EngineError(f"the model fails: {one_line(error)}") from error
        return [completion(self._tokenizer, job, answer) for job, answer in zip(jobs, answers, strict=True)]

    def force(self, prompt: Prompt, answer: str, part: range) -> Forced:
        """Log-probabilities along an answer; see `WhiteBox`."""
        (job,) = read_jobs(self._tokenizer, [replace(prompt, choices=(answer,))], 0, self._placement.context)
        try:
            return Forced(job.choices[0], self._batches.force(job.prompt, job.choices[0], part))
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
        return model.eval()

    def _smoke(self, path: Path) -> None:
        """One token: a kernel that cannot do a build's shapes says so at its first use, not when it is loaded."""
        job = Job(self._tokenizer.ids(Prompt("", "", "Hello", None, "")) or (0,))
        try:
            self._batches.answer([job], 1, self._placement.context, lambda *_: None)
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
