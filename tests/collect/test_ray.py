"""On three Ray nodes of one CPU that are killed: no answer is lost, and the bytes are those of a local run."""

from __future__ import annotations

import time

import pytest

from quantverdict.records import Completion

ray_executor = pytest.importorskip("quantverdict.collect.ray_executor")
QUANTS = ("FP16", "Q8_0")


class Echo:
    """Answers that follow from the prompts; pickled by value, as a node has no tests."""

    def __init__(self, seconds):
        self.seconds, self.identity = seconds, {"engine": "echo"}

    def complete(self, prompts, decoding, progress=None):
        time.sleep(self.seconds)
        return [Completion(f"to {prompt.text}", "stop", 1, 1, prompt.sha256[:8]) for prompt in prompts]

    def close(self):
        pass
