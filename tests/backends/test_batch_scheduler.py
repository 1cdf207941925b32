"""The scheduler against one prompt at a time, on an engine whose next token is a hash of all tokens before it."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantverdict.backends.batch_scheduler import (
    BatchJob,
    BatchScheduler,
    DecodeLimits,
    blocks,
    checked,
    common_start,
    even_parts,
    log_softmax,
)
from quantverdict.errors import EngineError

VOCABULARY = 11
END = 0


def logits_after(tokens):
    seed = hashlib.sha256(repr(tuple(tokens)).encode()).digest()
    return np.frombuffer(seed[:VOCABULARY], np.uint8).astype(np.float32) / 64


def computed_together(rows):
    """The sub-batches of a batch, as `llama_batch_allocr::split_equal` of llama.cpp makes them with `sequential`:
    of sequences whose numbers rise by one in the order given, as many rows each as all of them still have."""
    left, parts = list(rows), []
    while left:
        queues = {}
        for row in left:
            if row[0] in queues or not queues or row[0] == max(queues) + 1:
                queues.setdefault(row[0], []).append(row)
        depth = min(map(len, queues.values()))
        parts.append([row for queue in queues.values() for row in queue[:depth]])
        left = [row for row in left if row not in parts[-1]]
    return parts


class FakeEngine:
    """Keeps what a real engine would; refuses what a real one refuses."""

    cuts = True

    def __init__(self):
        self.evaluations = []

    def start(self, sequences, length):
        self.length, self.memory = length, [[] for _ in range(sequences)]

    def evaluate(self, rows, wanted):
        after = []
        for sequence, token, position in rows:
            assert position == len(self.memory[sequence]), "a gap in a sequence"
            assert position < self.length, "the memory of a sequence is full"
            self.memory[sequence].append(token)
            after.append(logits_after(self.memory[sequence]))
        self.evaluations.append(rows)
        return [after[i] for i in wanted]

    def copy(self, source, target):
        self.memory[target] = list(self.memory[source])

    def cut(self, sequence, length):
        assert length <= len(self.memory[sequence])
        del self.memory[sequence][length:]

    def is_end(self, token):
        return token == END


class FakeRecurrent(FakeEngine):
    """A state cannot be cut: it is emptied, or stays."""

    cuts = False

    def cut(self, sequence, length):
        assert length in (0, len(self.memory[sequence])), "a state cannot be cut back"
        super().cut(sequence, length)


def naive(job, limits):
    """What the prompt would get if it were alone in the world."""
    tokens, answer, finish = list(job.prompt), [], "length"
    while len(answer) < limits.max_new_tokens and len(tokens) < limits.context:
        token = int(logits_after(tokens).argmax())
        if token == END:
            finish = "stop"
            break
        answer.append(token)
        tokens.append(token)
    scores = []
    for choice in job.choices:
        log_p = [log_softmax(logits_after([*job.prompt, *choice[:i]]))[choice[i]] for i in range(len(choice))]
        scores.append(math.fsum(log_p))
    return answer, finish, scores


tokens = st.integers(1, VOCABULARY - 1)
choices = st.lists(st.lists(tokens, min_size=1, max_size=3).map(tuple), max_size=3).map(tuple)
prompts = st.lists(tokens, min_size=1, max_size=7).map(tuple)
jobs_of = st.lists(st.builds(BatchJob, prompts, choices), max_size=9)


@pytest.mark.parametrize("engine", [FakeEngine, FakeRecurrent])
@given(
    jobs=jobs_of,
    start=st.lists(tokens, max_size=5).map(tuple),
    slots=st.integers(1, 5),
    chunk=st.integers(3, 6),
    longest=st.integers(0, 8),
)
def test_every_prompt_gets_what_it_would_get_alone(engine, jobs, start, slots, chunk, longest):
    jobs = [BatchJob(start + job.prompt, job.choices) for job in jobs]
    limits = DecodeLimits(slots=slots, max_new_tokens=longest, chunk=max(chunk, slots), context=16)
    answers = BatchScheduler(engine(), jobs, limits, lambda *_: None).run()
    for job, answer in zip(jobs, answers, strict=True):
        expected, finish, scores = naive(job, limits)
        assert (answer.tokens, answer.finish) == (expected, finish)
        assert answer.choice_logprobs == pytest.approx(scores, abs=1e-9)
        assert (answer.ttft_ms is None) == (longest == 0)


@given(jobs=jobs_of, slots=st.integers(2, 6), chunk=st.integers(3, 9), longest=st.integers(0, 8))
def test_every_evaluation_is_computed_in_one_piece_of_two_rows_or_more(jobs, slots, chunk, longest):
    """Never a gap between sequences, a falling order, unequal lengths or a lone row, whenever answers end: each of them
    makes the library sum a row otherwise than it does beside other neighbours."""
    engine, limits = FakeEngine(), DecodeLimits(slots, longest, max(chunk, slots), 32)
    BatchScheduler(engine, jobs, limits, lambda *_: None).run()
    for rows in engine.evaluations:
        assert [len(part) for part in computed_together(rows)] == [len(rows)]
        assert 2 <= len(rows) <= max(limits.chunk, 2)


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([(0, 5, 0), (1, 5, 0)], [2]),
        ([(0, 5, 0), (2, 5, 0)], [1, 1]),
        ([(1, 5, 0), (0, 5, 0)], [1, 1]),
        ([(0, 5, 0), (0, 5, 1), (1, 5, 0)], [2, 1]),
        ([(0, 5, 0), (0, 5, 1), (0, 5, 2), (1, 5, 0), (2, 5, 0), (2, 5, 1)], [3, 2, 1]),
    ],
)
def test_the_library_cuts_a_batch_where_sequences_do_not_follow_each_other(rows, parts):
    """What the property above is worth: gaps, falling order and unequal lengths are seen."""
    assert [len(part) for part in computed_together(rows)] == parts


@given(st.lists(st.integers(1, 20), max_size=8).map(lambda found: sorted(found, reverse=True)), st.integers(3, 70))
def test_blocks_hold_every_place_once_and_in_order(lengths, size):
    found = list(blocks(lengths, size, size))
    places = [(sequence, place) for sequence, length in enumerate(lengths) for place in range(length)]
    assert sorted(pair for block in found for pair in block) == places
    for sequence in range(len(lengths)):
        assert [k for block in found for b, k in block if b == sequence] == list(range(lengths[sequence]))
    assert all(len(block) <= size for block in found)


def test_an_answer_that_moves_up_costs_one_copy():
    """Not a row a step for every free slot before it, which is what a long answer among short ones would cost."""
    engine = FakeEngine()
    engine.is_end = lambda token: False
    jobs = [
        BatchJob((n, *[1] * (9 - n))) for n in (1, 2, 3, 8)
    ]  # in a context of 12 the shortest prompt goes on longest
    BatchScheduler(engine, jobs, DecodeLimits(4, 9, 64, 12), lambda *_: None).run()
    steps = [[sequence for sequence, _, _ in rows] for rows in engine.evaluations[4:]]
    assert steps[0] == [0, 1, 2, 3]
    assert steps[-1] == [0, 1]
    assert steps == sorted(steps, key=len, reverse=True)


@pytest.mark.parametrize("slots", [1, 2, 16])
def test_what_prompts_begin_with_is_evaluated_once(slots):
    """Whatever the order they come in: the start of all, and the longer one of some."""
    jobs = [BatchJob((1, 2, 3, 4, *rest, n, n)) for n, rest in [(5, ()), (6, (7,) * 4), (7, ()), (8, (7,) * 4)]]
    engine = FakeEngine()
    BatchScheduler(engine, jobs, DecodeLimits(slots, 0, 64, 32), lambda *_: None).run()
    assert [len(rows) for rows in engine.evaluations] == [6, 2, 4, 2]


def test_a_start_too_short_to_be_worth_it_is_not_copied():
    engine = FakeEngine()
    engine.copy = None
    BatchScheduler(
        engine, [BatchJob((1, 2, 3, n, n)) for n in (4, 5)], DecodeLimits(2, 3, 64, 32), lambda *_: None
    ).run()
    assert [len(rows) for rows in engine.evaluations[:2]] == [5, 5]


def test_a_free_slot_takes_the_next_prompt_in_order():
    """Which prompt runs where follows from the answers alone, so two runs evaluate the same rows."""
    jobs = [BatchJob((n, n + 1, n)) for n in range(1, 9)]
    seen = []
    for _ in range(2):
        engine = FakeEngine()
        BatchScheduler(engine, jobs, DecodeLimits(3, 5, 64, 32), lambda *_: None).run()
        seen.append(engine.evaluations)
    assert seen[0] == seen[1]


def test_progress_counts_up_to_the_batch():
    reports = []
    jobs = [BatchJob((n, n)) for n in range(1, 6)]
    answers = BatchScheduler(FakeEngine(), jobs, DecodeLimits(2, 4, 64, 32), lambda *r: reports.append(r)).run()
    assert reports == sorted(reports)
    assert reports[-1][1] == sum(len(answer.tokens) for answer in answers)


@pytest.mark.parametrize(
    ("held", "prompt", "expected"),
    [
        ((), (1, 2, 3, 4), 0),
        ((1, 2, 3, 4), (1, 2, 3, 5), 2),
        ((1, 2, 3, 4), (1, 2, 3, 4), 2),
        ((1, 2, 3), (1, 2, 3, 4, 5, 6), 3),
        ((1, 2, 3, 4, 5), (1, 9, 3, 4, 5), 1),
        ((1,), (1,), 0),
        ((1, 2), (3, 4), 0),
    ],
)
def test_a_prompt_keeps_two_tokens_of_its_own(held, prompt, expected):
    assert common_start(held, prompt) == expected


@given(st.integers(0, 2000), st.integers(2, 600))
def test_parts_are_even_and_cover_everything(count, size):
    parts = even_parts(count, size)
    assert [i for part in parts for i in part] == list(range(count))
    assert not parts or max(map(len, parts)) <= min(size, min(map(len, parts)) + 1)
    assert len(parts) == -(-count // size)


def test_log_probabilities_sum_to_one_however_large_the_logits():
    assert np.exp(log_softmax(np.array([1000.0, 999.0, -1000.0], np.float32))).sum() == pytest.approx(1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_numbers_are_refused(bad):
    with pytest.raises(EngineError, match="not finite"):
        checked(np.array([0.0, bad, 1.0], np.float32))


def rows_evaluated(engine, prompts, slots=2):
    limits = DecodeLimits(slots=slots, max_new_tokens=1, chunk=8, context=64)
    BatchScheduler(engine, [BatchJob(prompt) for prompt in prompts], limits, lambda *_: None).run()
    return sum(map(len, engine.evaluations))


def test_what_prompts_share_is_computed_once_though_nothing_can_be_cut():
    """A common start and starts within it: as few rows as with a memory that can be cut, and never fewer."""
    start, inner = tuple(range(1, 9)), (1, 2, 3, 4, 5, 6)
    prompts = [start + inner + (n, n) for n in range(1, 6)] + [(*start, 9, n, n, n) for n in range(1, 6)]
    own = len(start) + len(inner) + 5 * 2 + 5 * 4
    assert rows_evaluated(FakeRecurrent(), prompts) <= own
    assert rows_evaluated(FakeRecurrent(), prompts[:1]) == len(prompts[0])


def test_more_starts_within_starts_than_are_kept_cost_rows_and_no_answer():
    deep = tuple(range(1, 11)) * 4
    prompts = sorted((*deep[:length], 9, 9) for length in range(5, 40, 5)) * 2
    limits = DecodeLimits(slots=3, max_new_tokens=4, chunk=8, context=64)
    jobs = [BatchJob(prompt) for prompt in prompts]
    for job, answer in zip(jobs, BatchScheduler(FakeRecurrent(), jobs, limits, lambda *_: None).run(), strict=True):
        assert answer.tokens == naive(job, limits)[0]
