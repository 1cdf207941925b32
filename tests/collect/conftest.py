"""A small plan and a backend whose answers follow from its prompts alone."""

from __future__ import annotations

import hashlib
import random
from types import SimpleNamespace

import pytest

from quantverdict.backends.base import Decoding
from quantverdict.collect.generate import CellOutcome
from quantverdict.collect.prompts import Plan, plan_batches
from quantverdict.config import Study
from quantverdict.records import CellId, Completion, Prompt

CELL = CellId("tiny", "Q8_0")


def make_plan(sizes=(("alpha", 7), ("beta", 5)), batch_size=3):
    prompts = []
    for task, size in sizes:
        for number in range(size):
            text = f"{task} {number} " + "long " * (number * 7 % 5)
            sha = hashlib.sha256(text.encode()).hexdigest()
            prompts.append(Prompt(task, f"{task}_{number:03d}", text, None, sha, ("A", "B") if task == "beta" else ()))
    tasks = {prompt.task for prompt in prompts}
    return Plan(tuple(prompts), plan_batches(prompts, batch_size), {task: Decoding(64) for task in tasks})


class EchoBackend:
    """Awkward texts, the same for the same prompt; may fail or count what it is asked."""

    def __init__(self, fail_at=None, identity=None, error=None):
        self.fail_at, self.asked, self.closed, self.error = fail_at, [], 0, error
        self.identity = identity or {"engine": "echo", "version": 1}
        self.cpu_seconds, self.peak_memory_bytes = 0.0, 1000

    def complete(self, prompts, decoding, progress=None):
        if self.fail_at is not None and len(self.asked) == self.fail_at:
            raise self.error
        self.asked.append([prompt.sample_id for prompt in prompts])
        self.cpu_seconds += 0.5
        if progress is not None:
            progress(1, 2)
        return [self.answer(prompt) for prompt in prompts]

    def answer(self, prompt):
        draw = random.Random(prompt.sha256)
        pieces = ["I can’t", "\u2028", "\ud800", "\x00", "ünï", "😀", '"\\', "\r\n", "plain"]
        text = " ".join(draw.choices(pieces, k=draw.randint(0, 6)))
        logprobs = tuple(-draw.random() for _ in prompt.choices) or None
        return Completion(text, "stop", 5, max(1, len(text.split())), prompt.sha256[:8], logprobs, draw.random())

    def close(self):
        self.closed += 1


class RecordingView:
    def __init__(self):
        self.started, self.finished, self.prompts, self.tokens = [], [], 0, 0

    def start_cell(self, cell, total, done):
        self.started.append((cell, total, done))

    def advance(self, prompts, tokens):
        self.prompts += prompts
        self.tokens += tokens

    def finish_cell(self, outcome: CellOutcome):
        self.finished.append(outcome)


def make_study(**changes):
    base = {
        "study": "s",
        "models": [
            {
                "name": "tiny",
                "family": "f",
                "baseline": "FP16",
                "source": {"path": "m.gguf"},
                "variants": ["FP16", "Q8_0"],
            }
        ],
        "tasks": ["starter_qa"],
    }
    return Study.model_validate(base | changes)


@pytest.fixture(scope="session")
def kit():
    """The helpers of this folder."""
    return SimpleNamespace(
        CELL=CELL, make_plan=make_plan, EchoBackend=EchoBackend, RecordingView=RecordingView, make_study=make_study
    )
