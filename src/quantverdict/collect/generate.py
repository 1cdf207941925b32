"""One cell at a time: load, ask what is missing, append, unload. A cell that cannot run is a row with its reason."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple, Protocol

from quantverdict.backends.base import Backend, Decoding, MeteredBackend, Progress, Usage
from quantverdict.bundle.store import BatchTiming, CellStore, as_response
from quantverdict.errors import BundleError, EngineError
from quantverdict.records import FINISHES, WITHHELD, CellId, Completion, Prompt, Response
from quantverdict.tasks.conversation import Dialogue, last_answer, opening

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
    def reach(self) -> int:
        """How many batches may be stored before it is to be looked at again."""
        rounds = self._store.plan.rounds
        ends = () if rounds is None or self._open_watch is None else rounds.ends
        return next((end for end in ends if end > self._store.done), len(self._store.plan.batches))

    @property
    def _asked(self) -> int:
        return self._store.asked


Identity = Mapping[str, str | int | bool]


class OpenBackend(Protocol):
    """Loads a build; `moved` is where its file is on this machine, if not where the study has it."""

    def __call__(self, *, moved: Path | None = None) -> Backend: ...


SMOKE_PROMPTS = 8
"""First answers of at least this many prompts that are all empty are those of an engine that does not work."""


class ProgressView(Protocol):
    """Who is told how collecting goes."""

    def start_cells(self, cells: Mapping[CellId, int]) -> None:
        """The cells that will be asked in this order, with how many prompts each may still be asked."""
        ...

    def start_cell(self, cell: CellId, total: int, done: int) -> None:
        """A cell of `total` prompts begins; `done` of them were stored by an earlier run."""
        ...

    def advance(self, prompts: int, tokens: int) -> None:
        """So many more prompts are finished, so many more tokens generated."""
        ...

    def finish_cell(self, outcome: CellOutcome) -> None:
        """The cell ended, well or not."""
        ...

    def beside(self) -> ProgressView:
        """A view of one of several cells that are asked at once."""
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


ReadAnswer = Callable[[Prompt, Completion], str | None]


def whole_text(_prompt: Prompt, said: Completion) -> str | None:
    """All that was generated, as an answer."""
    return said.text or None


OpenAnswers = Callable[[Identity], KeptAnswers]
"""The kept answers of a build, once it is known what its engine is."""


@dataclass(frozen=True, slots=True)
class AnswerSource:
    """Where the answers of a cell come from.

    Attributes:
        open_backend: loads the build; not called where nothing is missing.
        kept: answers that are had without asking; None where each is asked for.
        watch: says after each round whether to stop; None asks everything.
        answer: what of a completion is its answer, as later turns of a conversation show it; None is none.
    """

    open_backend: OpenBackend
    kept: OpenAnswers | None = None
    watch: OpenWatch | None = None
    answer: ReadAnswer = whole_text


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
    run = CellRun(store, source, view, known)
    failure = attempt(partial(run.ask, note_identity))
    outcome = run.outcome(failure)
    view.finish_cell(outcome)
    return outcome


def attempt(step: Callable[[], object]) -> str | None:
    """Why a step of a cell failed, in one line; None where it did not.

    Raises:
        BundleError: the disk is full, or the stored part was made by another engine: that is no fault of the cell.
    """
    try:
        step()
    except BundleError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever an engine does, the other cells go on
        return one_line(error)
    return None


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A batch of the plan that is to be answered.

    Attributes:
        number: in the plan.
        known: the answers that need not be asked for, None where one does.
        dialogue, answer: how a conversation goes on.
    """

    number: int
    prompts: Sequence[Prompt]
    decoding: Decoding
    known: Sequence[Completion | None]
    dialogue: Dialogue
    answer: ReadAnswer

    @property
    def open(self) -> list[Prompt]:
        """What the engine is asked."""
        return [prompt for prompt, said in zip(self.prompts, self.known, strict=True) if said is None]


@dataclass(frozen=True, slots=True)
class BatchReply:
    """What an engine answered to the open prompts of a batch, and what that took.

    Attributes:
        prompt_tokens, output_tokens: of all turns.
        wall_s, cpu_s: seconds; `cpu_s` None where the backend does not tell.
        usage: of the backend so far.
    """

    completions: Sequence[Completion] = ()
    prompt_tokens: int = 0
    output_tokens: int = 0
    wall_s: float = 0.0
    cpu_s: float | None = None
    usage: Usage = field(default_factory=Usage)


def answer_batch(
    backend: Backend, prompts: Sequence[Prompt], decoding: Decoding, progress: Progress | None = None
) -> BatchReply:
    """Ask a backend and measure it, wherever it runs; raises what the backend does."""
    cpu_before, start = usage_of(backend).cpu_seconds, time.perf_counter()
    completions = backend.complete(prompts, decoding, progress)
    wall, used = time.perf_counter() - start, usage_of(backend)
    cpu = None if cpu_before is None or used.cpu_seconds is None else used.cpu_seconds - cpu_before
    return BatchReply(
        completions=completions,
        prompt_tokens=sum(completion.prompt_tokens or 0 for completion in completions),
        output_tokens=sum(completion.output_tokens or 0 for completion in completions),
        wall_s=wall,
        cpu_s=cpu,
        usage=used,
    )


class CellRun:
    """One cell while it is asked: which batches are to be asked, and what becomes of their answers."""

    def __init__(self, store: CellStore, source: AnswerSource, view: ProgressView, known: CellRecord) -> None:
        self.store, self.source, self.view, self.known = store, source, view, known
        self.stopping = CellStopping(store, source.watch, known.stopped_after)
        self.identity = known.identity
        self.spoke = False
        """Whether a prompt is known to be answered with more than nothing."""
        self.kept: KeptAnswers | None = None
        self.asked = 0
        """Prompts that the engine was given."""
        self.used: dict[object, Usage] = {}
        """What each loaded build used, by what it is."""
        view.start_cell(store.cell, store.wanted, store.asked)

    @property
    def finished(self) -> bool:
        """Whether nothing more is to be asked."""
        return self.stopping.enough()

    def ask(self, note_identity: Callable[[Identity], None]) -> None:
        """Load the build here and ask one batch after another, where any is missing."""
        if self.finished:
            return
        backend = self.source.open_backend()
        try:
            self.begin(backend.identity, note_identity)
            while not self.finished:
                request, steps = self.request(self.store.missing[0]), _Steps(self.view)
                reply = converse(partial(answer_batch, backend), request, steps) if request.open else BatchReply()
                self.commit(request, reply, steps)
            if self.asked:
                self.used[backend] = usage_of(backend)
        finally:
            backend.close()

    def begin(self, identity: Identity, note_identity: Callable[[Identity], None]) -> None:
        """Know the engine, before it is asked anything.

        Raises:
            BundleError: the stored part was made by another.
        """
        if self.store.done and self.known.identity is not None:
            check_same_engine(self.store.cell, self.known.identity, identity)
        self.identity = dict(identity)
        note_identity(self.identity)
        self.kept = None if self.source.kept is None else self.source.kept(self.identity)

    def request(self, number: int) -> BatchRequest:
        """A batch of the plan, with what is known of it."""
        plan = self.store.plan
        prompts = [plan.prompts[index] for index in plan.batches[number]]
        decoding = plan.decoding[prompts[0].task]
        known = self._known(prompts, decoding)
        return BatchRequest(number, prompts, decoding, known, plan.dialogue, self.source.answer)

    def commit(self, request: BatchRequest, reply: BatchReply, steps: Progress | None = None) -> None:
        """Store the answers to the batch that is next in the plan.

        Args:
            steps: was told how the batch went so far.

        Raises:
            EngineError: no engine that works answers so.
            BundleError: they cannot be stored.
        """
        open_, completions = request.open, reply.completions
        check_completions(open_, completions, request.decoding.most_tokens)
        asked = iter(completions)
        said = [next(asked) if one is None else one for one in request.known]
        self._refuse_silence(said)
        timing = BatchTiming(
            batch=request.number,
            prompts=len(open_),
            prompt_tokens=reply.prompt_tokens,
            output_tokens=reply.output_tokens,
            wall_s=reply.wall_s,
            cpu_s=reply.cpu_s,
            ttft_ms=tuple(completion.ttft_ms for completion in completions if completion.ttft_ms is not None),
        )
        pairs = zip(request.prompts, said, strict=True)
        self.store.append([as_response(self.store.cell, prompt, done) for prompt, done in pairs], timing)
        self.asked += len(open_)
        if self.kept is not None and open_:
            self.kept.keep(request.prompts, request.decoding, said)
        (steps or _Steps(self.view))(len(said), sum(completion.output_tokens or 0 for completion in said))

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
        peaks = [self.known.peak_memory_bytes, *(used.peak_memory_bytes for used in self.used.values())]
        halved = [self.known.halved, *(used.halved for used in self.used.values())]
        counted = [count for count in halved if count is not None]
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
            peak_memory_bytes=max(filter(None, peaks), default=None),
            stopped_after=self.stopping.stopped_after,
            halved=sum(counted) if counted else None,
        )


class _Steps:
    """A backend's running totals of one batch as the steps that a view wants."""

    def __init__(self, view: ProgressView) -> None:
        self.view, self.prompts, self.tokens = view, 0, 0

    def __call__(self, prompts: int, tokens: int) -> None:
        self.view.advance(prompts - self.prompts, tokens - self.tokens)
        self.prompts, self.tokens = prompts, tokens


Ask = Callable[..., BatchReply]
"""Asks a loaded build: prompts and decoding, and where it stands here, who is told of progress."""


def converse(ask: Ask, request: BatchRequest, progress: Progress | None = None) -> BatchReply:
    """Ask the open prompts of a batch; conversations turn by turn, all of them that go on at the same time.

    A conversation ends early where a turn has no answer that could be shown: that turn is then what is graded.

    Args:
        ask: asks the build one step.
        progress: is told of the first step.

    Returns:
        The completion of each prompt, and what all turns took.

    Raises:
        EngineError: what no engine that works returns, by sample.
        TaskError: the chat template does not take what was said.
    """
    prompts, taken = request.open, list[BatchReply]()

    def ask_step(step: Sequence[Prompt], *more: Progress) -> Sequence[Completion]:
        found = ask(step, request.decoding, *more)
        check_completions(step, found.completions, request.decoding.most_tokens)
        taken.append(found)
        return found.completions

    step = [opening(prompt) for prompt in prompts]
    done = list(ask_step(step, *(() if progress is None else (progress,))))
    talks = {at: _Talk() for at, prompt in enumerate(prompts) if prompt.messages}
    first = list(done)
    while talks:
        following: dict[int, Prompt] = {}
        for at, talk in list(talks.items()):
            reply = request.answer(step[at], done[at])
            if reply is None:
                continue
            said = _Talk([*talk.shown, reply], [*talk.raw, done[at].text])
            more = request.dialogue.follow(prompts[at], said.shown, said.raw)
            if more is not None:
                following[at] = step[at] = more
                talks[at] = said
        talks = {at: talks[at] for at in following}
        for at, one in zip(following, ask_step(list(following.values())) if following else (), strict=True):
            done[at] = last_answer(one, talks[at].raw, first[at])
    return _together(done, taken)


def _together(completions: Sequence[Completion], steps: Sequence[BatchReply]) -> BatchReply:
    """The steps of a batch as one reply."""
    cpu = [one.cpu_s for one in steps if one.cpu_s is not None]
    return BatchReply(
        completions=completions,
        prompt_tokens=sum(one.prompt_tokens for one in steps),
        output_tokens=sum(one.output_tokens for one in steps),
        wall_s=sum(one.wall_s for one in steps),
        cpu_s=sum(cpu) if len(cpu) == len(steps) else None,
        usage=steps[-1].usage,
    )


class _Talk(NamedTuple):
    """What a model said in a conversation so far: as it is shown to it, and as it was generated."""

    shown: Sequence[str] = ()
    raw: Sequence[str] = ()


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
