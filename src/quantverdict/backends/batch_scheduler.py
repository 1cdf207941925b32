"""Decode many prompts at once, greedily, in an order that the prompts alone decide.

Prompts are taken in the order of their tokens, so that each begins as one before it does; what it begins with is
copied from the slot that holds most of it. The rest is evaluated by itself, then the answer grows one token a step
beside the others; a slot whose answer ended takes the next prompt. Nothing here looks at the clock but the time to
first token, so equal batches give equal answers.

Where more than one slot is asked for, the rows of an evaluation are always computed together and are at least two:
the library sums a lone row in another order than a row among others, and an answer must not depend on how many others
are still being written, or where. It computes together only what it finds side by side: equally many rows of sequences
whose numbers rise by one. So answers move up into the slots of those that ended, choices are scored longest first in
branches without gaps, and a row that is still alone gets one beside it that nobody reads. (Of a prompt only the last
row's logits are asked for, whoever is beside it: its last layer is always computed alone.)

A recurrent state cannot be cut back to what two prompts share. So where the next prompt begins as this one does, the
evaluation stops there once, and what the sequence then holds is copied to a spare one, a bookmark, from which the next
prompts start. A prompt is computed in parts then; no part is so small or so large that it changes a sum.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from quantverdict.backends.base import AnswerLength, Decoding
from quantverdict.errors import EngineError

Logits = npt.NDArray[np.float32]
Report = Callable[[int, int], None]
"""Called every step with (prompts finished, tokens generated) so far."""


_WORTH_COPYING = 4
"""Rows that a copy of a slot's memory must spare; it costs about as much as evaluating one."""


_BOOKMARKS = 4
"""Kept at once, of starts each of which goes on from the one before."""


class Engine(Protocol):
    """What the scheduler needs of a model; see `LlamaEngine`."""

    @property
    def cuts(self) -> bool:
        """Whether a sequence can be cut to any length; else it can only be emptied."""
        ...

    def start(self, sequences: int, length: int) -> None: ...
    def evaluate(self, rows: Sequence[tuple[int, int, int]], wanted: Sequence[int]) -> list[Logits]: ...
    def copy(self, source: int, target: int) -> None: ...
    def cut(self, sequence: int, length: int) -> None: ...
    def is_end(self, token: int) -> bool: ...
    def detokenize(self, tokens: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True)
class BatchJob:
    """A prompt and the continuations to score, as token ids; no continuation is empty.

    `opened`: the prompt ends inside a thought.
    """

    prompt: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...] = ()
    opened: bool = False


@dataclass(slots=True)
class GeneratedAnswer:
    """What became of a job.

    Attributes:
        tokens: generated, without the end token.
        finish: `stop` at an end token, else `length`.
        choice_logprobs: natural log-probability of each continuation after the prompt.
        ttft_ms: from the start of the prompt's evaluation to its first token; None where none was asked for.
    """

    tokens: list[int] = field(default_factory=list)
    finish: str = "length"
    choice_logprobs: tuple[float, ...] = ()
    ttft_ms: float | None = None


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """How a batch is decoded.

    Attributes:
        slots: answers that grow at once.
        max_new_tokens: of an answer.
        max_reasoning_tokens: of the thought before it; None where both together have `max_new_tokens`.
        chunk: rows evaluated at once, at least 3 and no fewer than there are slots.
        context: tokens of prompt and answer together.
    """

    slots: int
    max_new_tokens: int
    chunk: int
    context: int
    max_reasoning_tokens: int | None = None

    @property
    def decoding(self) -> Decoding:
        return Decoding(self.max_new_tokens, max_reasoning_tokens=self.max_reasoning_tokens)


class BatchScheduler:
    """Decodes one batch; used once.

    Args:
        engine: the model.
        jobs: the batch.
        limits: how.
        report: called every step.
    """

    def __init__(self, engine: Engine, jobs: Sequence[BatchJob], limits: DecodeLimits, report: Report) -> None:
        self.engine, self.jobs, self.limits, self.report = engine, jobs, limits, report
        self.answers = [GeneratedAnswer() for _ in jobs]
        self.lengths = [AnswerLength(limits.decoding, self._text_of, opened=job.opened) for job in jobs]
        self.slots: list[int | None] = [None] * limits.slots
        self.held: list[tuple[int, ...]] = [()] * limits.slots  # what the memory of a slot begins with
        self.order = sorted(range(len(jobs)), key=lambda number: jobs[number].prompt)
        self.taken = 0
        self.bookmarks: list[tuple[int, tuple[int, ...]]] = []  # sequence and what it holds
        self.spare = range(0)  # the sequences for them
        self.finished = self.generated = 0

    def run(self) -> list[GeneratedAnswer]:
        """The answers, in the order of the jobs."""
        if not self.jobs:
            return []
        self._start()
        self._refill()
        while any(job is not None for job in self.slots):
            self._step()
            self._refill()
        return self.answers

    def _start(self) -> None:
        limits = self.limits
        branches = max((sum(len(choice) > 1 for choice in job.choices) for job in self.jobs), default=0)
        most = limits.decoding.most_tokens
        longest = max(len(job.prompt) + max(most, _longest(job.choices)) for job in self.jobs)
        used = limits.slots + branches + (branches == 1)  # one for the row beside a lone one
        self.spare = range(used, used if self.engine.cuts or len(self.jobs) == 1 else used + _BOOKMARKS)
        self.engine.start(self.spare.stop, max(2, min(longest, limits.context)))

    def _refill(self) -> None:
        """Give every free slot the next job; a job that needs no step ends here and frees its slot again."""
        for slot in range(self.limits.slots):
            while self.slots[slot] is None:
                if self.taken == len(self.order):
                    return
                self.taken += 1
                self._admit(slot, self.order[self.taken - 1])

    def _admit(self, slot: int, number: int) -> None:
        start = time.perf_counter()
        job, answer = self.jobs[number], self.answers[number]
        known = self._begin(slot, job.prompt) if self.engine.cuts else self._resume(slot, job.prompt)
        logits = self._evaluate_all(slot, job.prompt[known:], known)
        first = int(logits.argmax())
        self.slots[slot] = number
        if job.choices:
            answer.choice_logprobs = self._score(slot, job, logits)
        if self.limits.max_new_tokens:
            answer.ttft_ms = (time.perf_counter() - start) * 1000
        self._accept(slot, first)

    def _begin(self, slot: int, prompt: tuple[int, ...]) -> int:
        """Leave in a slot what some slot holds of a prompt's start; how many tokens that is."""
        starts = [common_start(held, prompt) for held in self.held]
        source = max(range(len(starts)), key=lambda one: (starts[one], one == slot))
        if starts[source] - starts[slot] < _WORTH_COPYING:
            source = slot
        if source != slot:
            self.engine.copy(source, slot)
        self.engine.cut(slot, starts[source])
        self.held[slot] = prompt
        return starts[source]

    def _resume(self, slot: int, prompt: tuple[int, ...]) -> int:
        """As `_begin`, where nothing can be cut; bookmarks what the next prompt begins with too."""
        self.bookmarks = [mark for mark in self.bookmarks if _go_on(mark[1], prompt)]
        known = 0
        self.engine.cut(slot, 0)
        for sequence, held in reversed(self.bookmarks):
            if len(held) <= len(prompt) - 2:
                self.engine.copy(sequence, slot)
                known = len(held)
                break
        for shared in self._shared_later(prompt, known):
            self._evaluate_all(slot, prompt[known:shared], known)
            if len(self.bookmarks) == len(self.spare):
                del self.bookmarks[0]
            free = next(one for one in self.spare if one not in [sequence for sequence, _ in self.bookmarks])
            self.engine.copy(slot, free)
            self.bookmarks.append((free, prompt[:shared]))
            known = shared
        return known

    def _shared_later(self, prompt: tuple[int, ...], known: int) -> list[int]:
        """Lengths beyond `known` that prompts which wait begin with as this one does, where a copy is worth it."""
        found: list[int] = []
        least = max(0, len(prompt) - 2)
        for number in self.order[self.taken :]:
            least = min(least, common_start(prompt, self.jobs[number].prompt))
            if least - known < _WORTH_COPYING:
                break
            if not found or found[-1] - least >= _WORTH_COPYING:
                found.append(least)
        return found[::-1]

    def _evaluate_all(self, slot: int, tokens: Sequence[int], position: int) -> Logits:
        """Append tokens to a sequence; the logits after the last one."""
        for part in even_parts(len(tokens), self.limits.chunk):
            rows = [(slot, tokens[i], position + i) for i in part]
            # A prompt of one token; what cannot be cut again always computes it alone.
            lone = len(rows) == 1 and self.limits.slots > 1 and self.engine.cuts
            beside = [(slot, tokens[0], position + 1)] if lone else []
            (logits,) = self.engine.evaluate(rows + beside, (len(rows) - 1,))
            if lone:
                self.engine.cut(slot, position + 1)
            self.report(self.finished, self.generated)
        return checked(logits)

    def _score(self, slot: int, job: BatchJob, logits: Logits) -> tuple[float, ...]:
        """Log-probabilities of the choices: their first tokens from the prompt's logits, the rest in branches of it.

        The longest choice has the first branch: whatever their lengths, those that go on are side by side.
        """
        log_p = log_softmax(logits)
        scores = [float(log_p[choice[0]]) for choice in job.choices]
        longer = [i for i, choice in enumerate(job.choices) if len(choice) > 1]
        longer.sort(key=lambda i: len(job.choices[i]), reverse=True)
        for branch in range(len(longer)):
            self.engine.copy(slot, self.limits.slots + branch)
        # A recurrent state takes one token in another way than several: one at a time, however long other choices are.
        deep = self.limits.chunk if self.engine.cuts else 1
        for block in blocks([len(job.choices[i]) - 1 for i in longer], self.limits.chunk, deep):
            rows = [(self.limits.slots + b, job.choices[longer[b]][k], len(job.prompt) + k) for b, k in block]
            found = self._evaluate(rows)
            for (b, k), row in zip(block, found, strict=True):
                scores[longer[b]] += float(log_softmax(checked(row))[job.choices[longer[b]][k + 1]])
        return tuple(scores)

    def _step(self) -> None:
        """One more token for every growing answer."""
        self._close_gaps()
        active = [(slot, number) for slot, number in enumerate(self.slots) if number is not None]
        rows = [(slot, self.answers[n].tokens[-1], self._length(n) - 1) for slot, n in active]
        found = self._evaluate(rows)
        chosen = [int(checked(logits).argmax()) for logits in found]
        for (slot, _), token in zip(active, chosen, strict=True):
            self._accept(slot, token)
        self.report(self.finished, self.generated)

    def _close_gaps(self) -> None:
        """Move the last answers into the free slots before them; there are free ones only when no prompt waits."""
        for free, number in enumerate(self.slots):
            last = max((slot for slot, held in enumerate(self.slots) if held is not None), default=0)
            if number is None and free < last:
                self.engine.copy(last, free)
                self.slots[free], self.slots[last], self.held[free] = self.slots[last], None, self.held[last]

    def _evaluate(self, rows: list[tuple[int, int, int]]) -> list[Logits]:
        """The logits after every row.

        A lone one gets a row of the next sequence, which nothing needs any more, beside it. Its logits are asked for
        too: what the last layer is not asked for it does not compute, and the one that is left would be alone there.
        """
        if len(rows) > 1 or self.limits.slots == 1:
            return self.engine.evaluate(rows, range(len(rows)))
        sequence, token, _ = rows[0]
        self.engine.cut(sequence + 1, 0)
        if sequence + 1 < self.limits.slots:
            self.held[sequence + 1] = ()
        return self.engine.evaluate([*rows, (sequence + 1, token, 0)], (0, 1))[:1]

    def _text_of(self, tokens: Sequence[int]) -> str:
        return self.engine.detokenize(tokens)

    def _length(self, number: int) -> int:
        return len(self.jobs[number].prompt) + len(self.answers[number].tokens)

    def _accept(self, slot: int, token: int) -> None:
        """Write a chosen token down, or end the answer and free the slot."""
        number = self.slots[slot]
        if number is None:
            return
        answer, limits = self.answers[number], self.limits
        stop = bool(limits.max_new_tokens) and self.engine.is_end(token)
        if stop:
            answer.finish = "stop"
        elif limits.max_new_tokens:
            answer.tokens.append(token)
            self.generated += 1
        if stop or self.lengths[number].full(answer.tokens) or self._length(number) >= limits.context:
            self.slots[slot] = None
            self.finished += 1


def common_start(held: Sequence[int], prompt: Sequence[int]) -> int:
    """Tokens that a prompt begins with as another does, less where it would be left with fewer than two of its own."""
    common = next(
        (i for i, (a, b) in enumerate(zip(held, prompt, strict=False)) if a != b), min(len(held), len(prompt))
    )
    return max(0, min(common, len(prompt) - 2))


def _go_on(held: Sequence[int], prompt: Sequence[int]) -> bool:
    """Whether one of two begins as all of the other."""
    return all(a == b for a, b in zip(held, prompt, strict=False))


def even_parts(count: int, size: int) -> list[range]:
    """`count` rows in the fewest parts of at most `size`, none more than one row longer than another."""
    parts = -(-count // size)
    edges = [count * i // parts for i in range(parts + 1)] if parts else [0]
    return [range(a, b) for a, b in pairwise(edges)]


def blocks(lengths: Sequence[int], size: int, deep: int) -> Iterator[list[tuple[int, int]]]:
    """Cut sequences into blocks of equally many places of sequences side by side, in order of the places.

    Args:
        lengths: of the sequences, falling.
        size: places of a block at most.
        deep: places of a sequence in a block at most.

    Yields:
        (sequence, place) of all of a block, sequence by sequence.
    """
    going_on = [sum(length > place for length in lengths) for place in range(max(lengths, default=0))]
    for many, group in groupby(range(len(going_on)), key=going_on.__getitem__):
        places = list(group)
        for part in even_parts(len(places), max(1, min(deep, size // many))):
            for sequences in even_parts(many, size):
                yield [(sequence, places[i]) for sequence in sequences for i in part]


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Natural log-probabilities in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    wide -= np.log(np.exp(wide).sum())
    return wide


def checked(logits: Logits) -> Logits:
    """The logits.

    Raises:
        EngineError: they are not numbers; an arg-max over them would look like an answer.
    """
    if not np.isfinite(logits.max()):
        raise EngineError("the engine returned logits that are not finite")
    return logits


def _longest(choices: Sequence[Sequence[int]]) -> int:
    return max((len(choice) for choice in choices), default=0)
