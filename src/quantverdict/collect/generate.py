"""One cell at a time: load, ask what is missing, append, unload. A cell that cannot run is a row with its reason."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, Protocol

from quantverdict.backends.base import Backend, Decoding, MeteredBackend, Usage
from quantverdict.bundle.store import BatchTiming, CellStore, as_response
from quantverdict.errors import BundleError, EngineError
from quantverdict.records import FINISHES, WITHHELD, CellId, Completion, Prompt, Response

# Whether a cell that is asked in rounds need be asked any further.

Watch = Callable[[Sequence[Response]], bool]
"""Told the answers of one whole round after another, from the first; says whether those so far are enough."""
OpenWatch = Callable[[], Watch]
"""Begins to watch a cell. Called when its first round is there, so whatever was to be asked before it was."""


class CellStopping:
    """The rounds of one cell: it is stopped at the end of a round, and never after the last.

    A resumed cell is looked at again from its first round on, unless it was stopped already.
    """

    def __init__(self, store: CellStore, open_watch: OpenWatch | None, stopped_after: int | None) -> None:
        """`stopped_after` is what an earlier run noted: the prompts after which it stopped, None where it did not."""
        self._store, self._open_watch = store, open_watch
        self._watch: Watch | None = None
        self._seen = 0
        self._stopped = stopped_after is not None and stopped_after == self._asked

    @property
    def stopped_after(self) -> int | None:
        """Prompts that were asked, where the cell was stopped before the last."""
        return self._asked if self._stopped else None

    def enough(self) -> bool:
        """Whether nothing more is to be asked; looks at every whole round that is stored and was not looked at."""
        rounds = self._store.plan.rounds
        if self._stopped or rounds is None or self._open_watch is None:
            return self._stopped or not self._store.missing
        decided = False
        while self._seen < len(rounds.ends) - 1 and rounds.ends[self._seen] <= self._store.done:
            self._watch = self._watch or self._open_watch()
            begin = rounds.ends[self._seen - 1] if self._seen else 0
            decided = self._watch(self._store.answers(begin, rounds.ends[self._seen]))
            self._seen += 1
        # Answers beyond the last whole round belong to one that is not looked at yet.
        self._stopped = decided and self._store.done == rounds.ends[self._seen - 1]
        return self._stopped or not self._store.missing

    @property
    def _asked(self) -> int:
        return self._store.asked


Identity = Mapping[str, str | int | bool]
OpenBackend = Callable[[], Backend]

SMOKE_PROMPTS = 8
"""First answers of at least this many prompts that are all empty are those of an engine that does not work."""


class ProgressView(Protocol):
    """Who is told how collecting goes."""

    def start_cell(self, cell: CellId, total: int, done: int) -> None:
        """A cell of `total` prompts begins; `done` of them were stored by an earlier run."""
        ...

    def advance(self, prompts: int, tokens: int) -> None:
        """So many more prompts are finished, so many more tokens generated."""
        ...

    def finish_cell(self, outcome: CellOutcome) -> None:
        """The cell ended, well or not."""
        ...


@dataclass(frozen=True, slots=True)
class CellOutcome:
    """How a cell went; a figure that was not measured is None.

    Attributes:
        failure: why it could not run, in one line; None where it ran.
        prompts: answers that are stored.
        identity: what the backend says it is; empty where it could not be opened.
        tokens_per_second: generated tokens over the wall time of the batches, as far as they were asked.
        ttft_ms: median time to first token.
        cpu_seconds, wall_seconds: over all batches that were asked, earlier runs included.
        peak_memory_bytes: of the engine, where it tells.
        stopped_after: prompts that were asked, where that was enough; None where it was asked everything or failed.
        halved: how often the engine's memory did not hold what was asked at once, and it was asked in halves.
    """

    cell: CellId
    status: Literal["ok", "failed"]
    failure: str | None
    prompts: int
    identity: Identity
    tokens_per_second: float | None
    ttft_ms: float | None
    cpu_seconds: float | None
    wall_seconds: float | None
    peak_memory_bytes: int | None
    stopped_after: int | None = None
    halved: int | None = None


@dataclass(frozen=True, slots=True)
class CellRecord:
    """What an earlier run noted of a cell: half a cell by one engine is not completed by another."""

    identity: Identity | None = None
    peak_memory_bytes: int | None = None
    stopped_after: int | None = None
    halved: int | None = None


class KeptAnswers(Protocol):
    """What one build said by one engine, whoever asked."""

    def find(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[Completion | None]:
        """What was said to each prompt of a batch; None where that is not known."""
        ...

    def keep(self, prompts: Sequence[Prompt], decoding: Decoding, said: Sequence[Completion]) -> None:
        """Know what was said to a batch."""
        ...


OpenAnswers = Callable[[Identity], KeptAnswers]
"""The kept answers of a build, once it is known what its engine is."""


@dataclass(frozen=True, slots=True)
class AnswerSource:
    """Where the answers of a cell come from.

    Attributes:
        open_backend: loads the build; not called where nothing is missing.
        kept: answers that are had without asking; None where each is asked for.
        watch: says after each round whether to stop; None asks everything.
    """

    open_backend: OpenBackend
    kept: OpenAnswers | None = None
    watch: OpenWatch | None = None


def collect_cell(
    store: CellStore,
    source: AnswerSource,
    view: ProgressView,
    note_identity: Callable[[Identity], None],
    known: CellRecord = CellRecord(),
) -> CellOutcome:
    """Ask one cell what is missing of it.

    Args:
        store: the cell's files and its plan.
        source: where its answers come from.
        note_identity: called with the backend's identity before it is asked anything.
        known: what an earlier run noted.

    Raises:
        BundleError: the disk is full, or the stored part was made by another engine: the run cannot go on.
        KeyboardInterrupt: after the backend is closed; all whole batches are stored.
    """
    view.start_cell(store.cell, store.wanted, store.asked)
    run = _CellRun(store, view, known, CellStopping(store, source.watch, known.stopped_after))
    failure = None
    try:
        if not run.stopping.enough():
            run.ask(source, note_identity)
    except BundleError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever an engine does, the other cells go on
        failure = one_line(error)
    outcome = run.outcome(failure)
    view.finish_cell(outcome)
    return outcome


class _CellRun:
    """One cell while it is asked."""

    def __init__(self, store: CellStore, view: ProgressView, known: CellRecord, stopping: CellStopping) -> None:
        self.store, self.view, self.stopping = store, view, stopping
        self.known, self.identity, self.peak, self.halved = (
            known, known.identity, known.peak_memory_bytes, known.halved
        )  # fmt: skip
        self.spoke = False
        """Whether a prompt is known to be answered with more than nothing."""
        self.kept: KeptAnswers | None = None
        self.asked = 0
        """Prompts that the engine was given."""

    def ask(self, source: AnswerSource, note_identity: Callable[[Identity], None]) -> None:
        backend = source.open_backend()
        try:
            identity = dict(backend.identity)
            if self.store.done and self.known.identity is not None:
                check_same_engine(self.store.cell, self.known.identity, identity)
            self.identity = identity
            note_identity(identity)
            self.kept = None if source.kept is None else source.kept(identity)
            while not self.stopping.enough():
                self._ask_batch(backend, self.store.missing[0])
            used = usage_of(backend) if self.asked else Usage()
            self.peak = max(filter(None, (self.peak, used.peak_memory_bytes)), default=None)
            self.halved = self.halved if used.halved is None else used.halved + (self.halved or 0)
        finally:
            backend.close()

    def _ask_batch(self, backend: Backend, number: int) -> None:
        plan = self.store.plan
        prompts = [plan.prompts[index] for index in plan.batches[number]]
        decoding = plan.decoding[prompts[0].task]
        steps = _Steps(self.view)
        known = self._known(prompts, decoding)
        open_ = [prompt for prompt, said in zip(prompts, known, strict=True) if said is None]
        cpu_before, start = usage_of(backend).cpu_seconds, time.perf_counter()
        completions = backend.complete(open_, decoding, steps) if open_ else []
        wall, cpu_after = time.perf_counter() - start, usage_of(backend).cpu_seconds
        check_completions(open_, completions, decoding.most_tokens)
        asked = iter(completions)
        said = [next(asked) if one is None else one for one in known]
        self._refuse_silence(said)
        timing = BatchTiming(
            batch=number,
            prompts=len(open_),
            prompt_tokens=sum(completion.prompt_tokens or 0 for completion in completions),
            output_tokens=sum(completion.output_tokens or 0 for completion in completions),
            wall_s=wall if open_ else 0.0,
            cpu_s=None if cpu_before is None or cpu_after is None else cpu_after - cpu_before,
            ttft_ms=tuple(completion.ttft_ms for completion in completions if completion.ttft_ms is not None),
        )
        answers = [as_response(self.store.cell, prompt, done) for prompt, done in zip(prompts, said, strict=True)]
        self.store.append(answers, timing)
        self.asked += len(open_)
        if self.kept is not None and open_:
            self.kept.keep(prompts, decoding, said)
        steps(len(prompts), sum(completion.output_tokens or 0 for completion in said))

    def _known(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[Completion | None]:
        """What need not be asked: kept answers that an engine that works could have given."""
        if self.kept is None:
            return [None] * len(prompts)
        return [
            said if said is not None and _wrong_with(prompt, said, decoding.most_tokens) is None else None
            for prompt, said in zip(prompts, self.kept.find(prompts, decoding), strict=True)
        ]

    def _refuse_silence(self, completions: Sequence[Completion]) -> None:
        """Refuse an engine that answers with nothing from the first prompt on, however small its batches are.

        Raises:
            EngineError: so it does; its stored answers, which are none, are taken back.
        """
        if self.spoke:
            return
        first: list[Completion | Response] = [*self.store.answers(0, self.store.done), *completions]
        try:
            smoke_check(first)
        except EngineError:
            self.store.begin_anew()
            raise
        self.spoke = any(map(_says_something, first))

    def outcome(self, failure: str | None) -> CellOutcome:
        timings = [timing for timing in self.store.timings if timing.prompts]
        wall = sum(timing.wall_s for timing in timings)
        cpu = [timing.cpu_s for timing in timings if timing.cpu_s is not None]
        ttft = [value for timing in timings for value in timing.ttft_ms]
        tokens = sum(timing.output_tokens for timing in timings)
        return CellOutcome(
            cell=self.store.cell,
            status="ok" if failure is None else "failed",
            failure=failure,
            prompts=self.store.asked,
            identity=self.identity or {},
            tokens_per_second=tokens / wall if tokens and wall > 0 else None,
            ttft_ms=median(ttft) if ttft else None,
            cpu_seconds=sum(cpu) if cpu and len(cpu) == len(timings) else None,
            wall_seconds=wall if timings else None,
            peak_memory_bytes=self.peak,
            stopped_after=self.stopping.stopped_after,
            halved=self.halved,
        )


class _Steps:
    """A backend's running totals of one batch as the steps that a view wants."""

    def __init__(self, view: ProgressView) -> None:
        self.view, self.prompts, self.tokens = view, 0, 0

    def __call__(self, prompts: int, tokens: int) -> None:
        self.view.advance(prompts - self.prompts, tokens - self.tokens)
        self.prompts, self.tokens = prompts, tokens


def check_completions(prompts: Sequence[Prompt], completions: Sequence[Completion], max_new_tokens: int) -> None:
    """Refuse what no engine that works returns.

    Raises:
        EngineError: naming the sample.
    """
    if len(completions) != len(prompts):
        raise EngineError(f"{len(completions)} answers to {len(prompts)} prompts")
    for prompt, completion in zip(prompts, completions, strict=True):
        wrong = _wrong_with(prompt, completion, max_new_tokens)
        if wrong:
            raise EngineError(f"{prompt.task}/{prompt.sample_id}: {wrong}")


def _wrong_with(prompt: Prompt, completion: Completion, max_new_tokens: int) -> str | None:
    logprobs = completion.choice_logprobs
    if completion.finish not in FINISHES:
        return f"finished by {completion.finish!r}, expected one of {', '.join(FINISHES)}"
    if (completion.prompt_tokens or 0) < 0 or not 0 <= (completion.output_tokens or 0) <= max_new_tokens:
        return f"{completion.output_tokens} tokens generated, at most {max_new_tokens} were asked for"
    if logprobs is not None and len(logprobs) != len(prompt.choices):
        return f"{len(logprobs)} log-probabilities for {len(prompt.choices)} choices"
    if logprobs is not None and not all(math.isfinite(value) for value in logprobs):
        return f"a log-probability that is not finite ({logprobs})"
    return None


def smoke_check(completions: Sequence[Completion | Response]) -> None:
    """Refuse an engine whose first answers are all empty: there is nothing to measure.

    Raises:
        EngineError: so it is.
    """
    if len(completions) >= SMOKE_PROMPTS and not any(map(_says_something, completions)):
        raise EngineError(f"answered nothing to each of the first {len(completions)} prompts")


def _says_something(answer: Completion | Response) -> bool:
    """Whether an answer is more than nothing: by its tokens, by its text where nobody counts those, or kept back."""
    said = bool(answer.text or answer.reasoning) if answer.output_tokens is None else answer.output_tokens > 0
    return said or answer.finish == WITHHELD


def check_same_engine(cell: CellId, known: Identity, found: Identity) -> None:
    """Refuse to complete a cell with another engine than it was begun with.

    Raises:
        BundleError: naming what differs.
    """
    for key in sorted({*known, *found}):
        if known.get(key) != found.get(key):
            raise BundleError(
                f"{cell}: its first answers were collected with {key} {known.get(key)!r}, it is {found.get(key)!r} now;"
                " restore that, or collect into another bundle"
            )


def usage_of(backend: Backend) -> Usage:
    """What a backend used so far; nothing is known of one that does not count."""
    return backend.usage if isinstance(backend, MeteredBackend) else Usage()


def one_line(error: BaseException) -> str:
    """An exception as a reason: its text in one line, with its type where this package did not raise it."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, EngineError) and text else f"{type(error).__name__}: {text}".removesuffix(": ")
