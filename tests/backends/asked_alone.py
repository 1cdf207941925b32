"""Run by tests in a process of its own, as a worker is: `asked_alone.py WHEEL PROMPTS GGUF...`; JSON, a line a file.

Of every file: how many logits of answers that end at different steps differ in a bit from those of the same answers
asked alone, and how many rows of one prompt may be evaluated at once before its logits depend on how many they are.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np

from quantverdict.backends.batch_scheduler import BatchJob, BatchScheduler, DecodeLimits
from quantverdict.backends.llama_engine import LlamaEngine, open_library
from quantverdict.backends.worker import FEW

CONTEXT = 40
LENGTHS = (30, 8, 34, 12, 36, 20, 25)
"""Of the prompts; nothing else ends an answer, so that each ends at another step and leaves a gap somewhere."""
SIZES = (2, 17, 63, 64)


class Recorder:
    """An engine that keeps the logits after every row, by all tokens that the row's sequence holds."""

    def __init__(self, engine: LlamaEngine) -> None:
        self.engine, self.after, self.memory = engine, {}, {}
        self.cuts = engine.cuts

    def start(self, sequences, length):
        self.engine.start(sequences, length)
        self.memory = {number: [] for number in range(sequences)}

    def evaluate(self, rows, wanted):
        held = []
        for sequence, token, position in rows:
            assert position == len(self.memory[sequence])
            self.memory[sequence].append(token)
            held.append(tuple(self.memory[sequence]))
        logits = self.engine.evaluate(rows, wanted)
        for place, found in zip(wanted, logits, strict=True):
            self.after.setdefault(held[place], []).append(found.tobytes())
        return logits

    def copy(self, source, target):
        self.engine.copy(source, target)
        self.memory[target] = list(self.memory[source])

    def cut(self, sequence, length):
        self.engine.cut(sequence, length)
        del self.memory[sequence][length:]

    def is_end(self, token):
        return False


def made_jobs(n_vocab: int, many: int) -> list[BatchJob]:
    """Prompts of all lengths that begin alike, with choices of unequal ones: three, one of two tokens, none."""
    rng = np.random.default_rng(11)
    start = tuple(map(int, rng.integers(3, n_vocab, 6)))
    choices = (((5, 6, 7, 8), (8,), (9, 10), (11, 12, 13)), ((5, 6),), ())
    return [
        BatchJob(start + tuple(map(int, rng.integers(3, n_vocab, n - 6))), choices[i % 3])
        for i, n in enumerate(LENGTHS[:many])
    ]


def answered(engine: LlamaEngine, jobs: list[BatchJob], slots: int):
    recorder = Recorder(engine)
    answers = BatchScheduler(recorder, jobs, DecodeLimits(slots, CONTEXT, FEW, CONTEXT), lambda *_: None).run()
    return recorder.after, answers


def differing(engine: LlamaEngine, many: int) -> dict[str, int]:
    """Of the logits that answers and choices are made of, asked with all others and asked alone in two slots."""
    jobs = made_jobs(engine.n_vocab, many)
    together, answers = answered(engine, jobs, len(jobs))
    count = differ = choices = 0
    for job, answer in zip(jobs, answers, strict=True):
        alone, _ = answered(engine, [job], 2)
        own = {held: found for held, found in alone.items() if held[: len(job.prompt)] == job.prompt}
        count += len(own)
        differ += sum(len({*found, *together[held]}) > 1 for held, found in own.items())
        for choice, scored in zip(job.choices, answer.choice_logprobs, strict=True):
            _, (single,) = answered(engine, [BatchJob(job.prompt, (choice,))], 2)
            choices += single.choice_logprobs != (scored,)
    return {"logits": count, "differ": differ, "choices_differ": choices}


def rows_that_agree(engine: LlamaEngine) -> int:
    """The most rows at once that give the logits which parts of two give."""
    prompt = [int(token) for token in np.random.default_rng(5).integers(3, engine.n_vocab, 130)]

    def in_parts(size: int) -> bytes:
        engine.start(2, len(prompt))
        found = bytearray()
        edges = [*range(0, len(prompt) - 1, size), len(prompt)]
        for start, end in pairwise(edges):
            rows = [(0, prompt[place], place) for place in range(start, end)]
            for logits in engine.evaluate(rows, range(len(rows))):
                found += logits.tobytes()
        return bytes(found)

    few = in_parts(2)
    equal = [in_parts(size) == few for size in SIZES]
    return SIZES[equal.index(False) - 1] if False in equal else SIZES[-1]


def main() -> None:
    library = open_library(sys.argv[1])
    for path in sys.argv[3:]:
        engine = LlamaEngine(library, Path(path), 1)
        found = differing(engine, int(sys.argv[2])) | {"rows": rows_that_agree(engine)}
        sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
