"""llama.cpp inside a wheel: a GGUF build in a worker process of its own.

The worker is talked to over a pipe: no port is opened, its crash is an `EngineError` here, and it ends with this
process. Answers are greedy. With two slots or more the kernels are those by which an answer depends on its prompt and
the build alone: not on timing, threads, the batch, or how many slots. A lone slot has the fastest ones instead: equal
batches still give equal answers, but another batch may share another start, which is summed in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantverdict.backends.base import Decoding, Placement, Progress, TeacherForcedLogits, physical_cores
from quantverdict.backends.llama_engine import WHEELS
from quantverdict.backends.worker_process import MODULE, WorkerBackend, WorkerProcess
from quantverdict.errors import EngineError
from quantverdict.records import Completion, Prompt

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",  # waiting threads that spin cost 16 times the speed beside a busy neighbour
    "GGML_NO_BACKTRACE": "1",  # an abort must end the process, not start a debugger in it
}
SEVERAL_SLOTS = {"GGML_CPU_TILED_MM": "0"}  # the blocked product sums in another order from 8 rows on


class LlamaCppBackend(WorkerBackend):
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
        identity: dict[str, str | int | bool] = {
            "engine": "llama.cpp",
            "build": wheel.build,
            "wheel": f"{wheel.package} {wheel.release}",
            "threads": threads,
            "parallel": placement.parallel,
            "context": placement.context,
            "decoding": "greedy",
            "kv_cache": "/".join(dict.fromkeys((placement.cache_k, placement.cache_v))),
            "kv_unified": False,
            "flash_attention": placement.flash_attention,
            "repack": lone,
            "tiled_matmul": lone,
        }
        settings = {
            "path": str(path),
            "threads": threads,
            "parallel": placement.parallel,
            "context": placement.context,
            "wheel": placement.wheel,
            "cache": (placement.cache_k, placement.cache_v, placement.flash_attention),
            "gpu_layers": placement.gpu_layers,
        }
        environment = ENVIRONMENT | ({} if lone else SEVERAL_SLOTS)
        worker = WorkerProcess("llama.cpp", MODULE, environment, settings)
        if placement.gpu_layers is not None:
            layers = int(worker.ready["gpu_layers"])
            identity["gpu_layers"] = "all" if layers < 0 else layers
        super().__init__(worker, identity)

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
            "max_reasoning_tokens": decoding.max_reasoning_tokens,
            "prompts": [
                {
                    "name": f"{prompt.task}/{prompt.sample_id}",
                    "text": prompt.text if prompt.chat is None else prompt.chat,
                    "choices": prompt.choices,
                }
                for prompt in prompts
            ],
        }
        return self._completions(request, progress)

    def force(self, prompt: Prompt, answer: str, part: range) -> TeacherForcedLogits:
        """Logits along an answer; see `WhiteBox`."""
        text = prompt.text if prompt.chat is None else prompt.chat
        return self._forced({"name": f"{prompt.task}/{prompt.sample_id}", "text": text, "choices": [answer]}, part)


class LlamaTokenizer:
    """What llama.cpp reads a prompt as: its vocabulary alone, in a worker; see `Tokenizer`.

    Raises:
        EngineError: as `LlamaCppBackend`.
    """

    def __init__(self, path: Path, placement: Placement | None = None) -> None:
        wheel = (placement or Placement()).wheel
        settings = {"path": str(path), "threads": 1, "parallel": 1, "context": 1, "wheel": wheel, "vocab_only": True}
        self._worker = WorkerProcess("llama.cpp", MODULE, ENVIRONMENT, settings)
        self.stops: tuple[int, ...] = tuple(self._worker.ask({"stops": True})["tokens"])

    def ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt, the start token included."""
        text = prompt.text if prompt.chat is None else prompt.chat
        return tuple(self._worker.ask({"tokenize": text})["tokens"])

    def piece(self, token: int) -> str:
        """The text of one token, special tokens by their name."""
        return str(self._worker.ask({"piece": token})["text"])
