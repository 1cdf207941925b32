"""Thought and answer have a limit of tokens each; a thought that never ends is cut at its own."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from quantverdict.backends.base import AnswerLength, Decoding
from quantverdict.backends.batch_scheduler import BatchJob, BatchScheduler, DecodeLimits
from quantverdict.grading.answer import CUT_IN_REASONING, read_answer

WORD = "word "


def grown(pieces, most=3, thought=5, *, opened=False):
    """How many of the pieces, and then of words without end, are generated."""
    length = AnswerLength(Decoding(most, max_reasoning_tokens=thought), "".join, opened=opened)
    tokens = []
    while not tokens or not length.full(tokens):
        tokens.append(pieces[len(tokens)] if len(tokens) < len(pieces) else WORD)
    return len(tokens)


@pytest.mark.parametrize(
    ("pieces", "more", "tokens"),
    [
        ([], {}, 3),  # no thought: the answer's own limit
        ([], {"thought": None}, 3),
        (["<think>", WORD, "</think>"], {"thought": None}, 3),  # one limit for both
        (["<think>"], {}, 5),  # a thought that never ends
        (["<think>", "</think>"], {}, 2 + 3),
        (["<think>", WORD, WORD, WORD, "</think>"], {}, 5 + 3),  # ends with its last token
        (["<think>", WORD, WORD, WORD, WORD, "</think>"], {}, 5),  # one too late
        (["<", "think", ">", WORD, "</", "think", ">"], {"thought": 9}, 7 + 3),  # marks of several tokens
        ([WORD, "<think>"], {}, 3),  # spoken of, not thought
        ([WORD, WORD, "</think>"], {"opened": True}, 3 + 3),  # the prompt opened it
        ([], {"opened": True}, 5),
        (["<|channel|>", "analysis", WORD, "<|channel|>", "final"], {"thought": 9}, 5 + 3),
    ],
)
def test_thought_and_answer_are_counted_apart(pieces, more, tokens):
    assert grown(pieces, **more) == tokens


class Scripted:
    """Says what stands behind the number of its prompt; tokens are places in `PIECES`."""

    PIECES = ("", "<think>", WORD, "</think>", "one", "two")
    SCRIPTS: ClassVar = {4: (1, 2, 3, 2, 2, 2, 2, 2), 5: (1, *[2] * 30)}
    cuts = True

    def start(self, sequences, length):
        self.memory = [[] for _ in range(sequences)]
        self.room = length

    def evaluate(self, rows, wanted):
        found = []
        for sequence, token, position in rows:
            assert position < self.room
            del self.memory[sequence][position:]
            self.memory[sequence].append(token)
            said = self.memory[sequence]
            place, script = len(said) - 2, self.SCRIPTS.get(said[0], (2,))
            found.append(np.eye(len(self.PIECES), dtype=np.float32)[script[min(max(place, 0), len(script) - 1)]])
        return [found[at] for at in wanted]

    def copy(self, source, target):
        self.memory[target] = list(self.memory[source])

    def cut(self, sequence, length):
        del self.memory[sequence][length:]

    def is_end(self, token):
        return False

    def detokenize(self, tokens):
        return "".join(self.PIECES[token] for token in tokens)


def test_the_scheduler_ends_each_answer_by_its_own_thought():
    limits = DecodeLimits(slots=2, max_new_tokens=4, chunk=8, context=64, max_reasoning_tokens=10)
    jobs = [BatchJob((4, 4)), BatchJob((5, 5))]
    engine = Scripted()
    ended, cut = BatchScheduler(engine, jobs, limits, lambda *_: None).run()
    assert (len(ended.tokens), len(cut.tokens)) == (3 + 4, 10)
    assert engine.room == 2 + 4 + 10
    texts = [engine.detokenize(one.tokens) for one in (ended, cut)]
    assert read_answer(texts[0], ended.finish).text.strip() == (WORD * 4).strip()
    assert read_answer(texts[1], cut.finish).reason == CUT_IN_REASONING


def test_what_is_bounded_is_the_sum_where_an_engine_counts_both_together():
    assert Decoding(8).most_tokens == 8
    assert Decoding(8, max_reasoning_tokens=32).most_tokens == 40
