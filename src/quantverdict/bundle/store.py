"""One append-only JSONL a cell, exact on reload after a crash.

A batch is appended by one write and flushed to the disk. Reload keeps whole batches only, so that a resumed file is
byte for byte the file of a run that nothing stopped. Timings, which differ from run to run, are in a file of their own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path

from quantverdict.backends.base import opens_reasoning
from quantverdict.bundle.files import Json, json_line, whole_lines
from quantverdict.bundle.jsonl_store import JsonlStore, value_of
from quantverdict.bundle.prompts import PromptPlan
from quantverdict.errors import DataError, os_reason
from quantverdict.records import FINISHES, CellId, Completion, Prompt, Response

FIELDS = tuple(field.name for field in fields(Response))
OPTIONAL = {field.name: field.default for field in fields(Response) if field.name in ("reasoning", "opened", "replies")}
"""Keys that a line has only where they say something, with what they are where it has not."""


@dataclass(frozen=True, slots=True)
class BatchTiming:
    """What one batch cost.

    Attributes:
        batch: its index in the plan.
        prompts, prompt_tokens, output_tokens: that were asked in this time; an answer that was kept is none of them.
            No tokens where the backend does not count them.
        wall_s, cpu_s: seconds; `cpu_s` None where the backend does not tell.
        ttft_ms: time to first token of each prompt that has one.
        sha256: of the batch's lines in `responses`, so that one that was damaged before the cell was finished is found;
            None where an older version stored it.
    """

    batch: int
    prompts: int
    prompt_tokens: int
    output_tokens: int
    wall_s: float
    cpu_s: float | None
    ttft_ms: tuple[float, ...]
    sha256: str | None = None


class CellStore:
    """The responses of one cell, open for appending.

    Batches are stored in the order of the plan, but for those of a task that a study left out for a while.

    Attributes:
        stored: numbers of the whole batches that are stored, in their order.
        timings: of the stored batches, where known.
        unproved: whether batches are stored that have no checksum: an older version stored them, or it was lost.
    """

    def __init__(self, bundle: Path, cell: CellId, plan: PromptPlan, proved: int = 0) -> None:
        """Open a cell's files, cutting off what a killed run left unfinished.

        Args:
            proved: so many bytes are known to be what they were, by the hash of a finished run.

        Raises:
            DataError: a line that is not JSON, out of order, for another prompt, or not as it was stored, by file and
                line.
            BundleError: a file cannot be written.
        """
        self.cell, self.plan = cell, plan
        self.path = responses_path(bundle, cell)
        self._responses = JsonlStore(self.path, checked=False)
        self._timings = JsonlStore(bundle / "timings" / self.path.name, checked=False, synced=False)
        for file in (self._responses, self._timings):
            file.make()
        self.unproved = False
        self.stored = self._recover_responses(proved)
        self.timings = self._recover_timings()

    def append(self, responses: Sequence[Response], timing: BatchTiming) -> None:
        """Store the next batch of the plan: all of it, or on failure nothing of it.

        Raises:
            BundleError: the disk is full, or the file not writable.
        """
        # Timings first: a batch that is stored then always has its timing, and one too many is cut off on reload.
        lines = b"".join(map(response_line, responses))
        timing = replace(timing, sha256=hashlib.sha256(lines).hexdigest())
        self._timings.append([asdict(timing)])
        self._responses.append_lines(lines)
        self.stored.append(timing.batch)
        self.timings = (*self.timings, timing)

    def begin_anew(self) -> None:
        """Take back every batch that is stored."""
        for file in (self._responses, self._timings):
            file.cut(0, file.path.stat().st_size)
        self.stored, self.timings = [], ()

    @property
    def done(self) -> int:
        """How many whole batches are stored."""
        return len(self.stored)

    @property
    def asked(self) -> int:
        """How many prompts the stored batches have."""
        return self._prompts_of(self.stored)

    @property
    def reused(self) -> int:
        """How many of them were not asked, but kept from another run."""
        return self.asked - sum(timing.prompts for timing in self.timings) if len(self.timings) == self.done else 0

    @property
    def missing(self) -> list[int]:
        """Numbers of the batches that are to be asked, in their order."""
        have = self.plan.left_out.union(self.stored)
        return [number for number in range(len(self.plan.batches)) if number not in have]

    @property
    def wanted(self) -> int:
        """How many prompts the cell has when nothing is missing."""
        return self.asked + self._prompts_of(self.missing)

    def answers(self, first: int, last: int) -> tuple[Response, ...]:
        """The answers to the stored batches from the one at `first` up to but without that at `last`."""
        start, end = (self._prompts_of(self.stored[:at]) for at in (first, last))
        return tuple(islice(read_responses(self.path), start, end))

    def _prompts_of(self, numbers: Sequence[int]) -> int:
        return sum(len(self.plan.batches[number]) for number in numbers)

    def _recover_responses(self, proved: int) -> list[int]:
        data = self._responses.read()
        lines = whole_lines(data)
        sums, order = self._stored_sums(), _Order(self.plan)
        at = begin = 0
        while at < len(lines):
            number = order.of(parse_response(lines[at], self.path, at + 1))
            if number is None:
                raise DataError("more lines than the study has prompts", file=self.path, line=at + 1)
            batch = self.plan.batches[number]
            held = lines[at : at + len(batch)]
            for line, index, position in zip(held, batch, range(at + 1, at + 1 + len(held)), strict=False):
                self._check(parse_response(line, self.path, position), self.plan.prompts[index], position)
            if len(held) < len(batch):
                break
            end = begin + sum(map(len, held)) + len(held)
            if end > proved:
                self._prove(data[begin:end], sums.get(number), at + 1)
            order.stored.append(number)
            at, begin = at + len(batch), end
        self._responses.cut(begin, len(data))
        return order.stored

    def _stored_sums(self) -> dict[int, str | None]:
        """The checksum of each batch, where it is known."""
        timings = filter(None, map(parse_timing, self._timings.lines()))
        return {timing.batch: timing.sha256 for timing in timings}

    def _prove(self, batch: bytes, sha256: str | None, number: int) -> None:
        if sha256 is None:
            self.unproved = True
        elif hashlib.sha256(batch).hexdigest() != sha256:
            problem = f"one of the {len(whole_lines(batch))} answers from here on was changed since it was stored"
            message = "them as they were; or delete the file, and the cell is asked again"
            raise DataError(problem, file=self.path, line=number, expected=message)

    def _check(self, response: Response, prompt: Prompt, number: int) -> None:
        found = (response.base_model, response.quant, response.task, response.sample_id)
        wanted = (*self.cell, prompt.task, prompt.sample_id)
        if found != wanted:
            problem = f"is {'/'.join(found)}"
            raise DataError(problem, file=self.path, line=number, field="sample_id", expected="/".join(wanted))
        if response.prompt_sha256 != prompt.sha256:
            problem = f"{response.sample_id} was asked with another prompt"
            raise DataError(problem, file=self.path, line=number, field="prompt_sha256", expected=prompt.sha256)

    def _recover_timings(self) -> tuple[BatchTiming, ...]:
        """Timings are a measurement, not a result: what does not fit the responses is dropped, not refused."""
        data = self._timings.read()
        places = {number: place for place, number in enumerate(self.stored)}
        kept: list[BatchTiming] = []
        size = 0
        for line in whole_lines(data):
            timing = parse_timing(line)
            if timing is None or timing.batch not in places:
                break
            if kept and places[timing.batch] <= places[kept[-1].batch]:
                break
            kept.append(timing)
            size += len(line) + 1
        self._timings.cut(size, len(data))
        return tuple(kept)


class _Order:
    """Finds out in which order batches are stored; in a plan of rounds it is that of the plan."""

    def __init__(self, plan: PromptPlan) -> None:
        self.plan, self.stored = plan, list[int]()
        firsts = (plan.prompts[batch[0]] for batch in plan.batches)
        self._numbers = {(prompt.task, prompt.sample_id): number for number, prompt in enumerate(firsts)}

    def of(self, first: Response) -> int | None:
        """The number of the batch that begins with an answer, or that should begin there; None after the last."""
        found = self._numbers.get((first.task, first.sample_id))
        if found is not None and found not in self.stored and self.plan.rounds is None:
            return found
        return next((number for number in range(len(self.plan.batches)) if number not in self.stored), None)


def responses_path(bundle: Path, cell: CellId) -> Path:
    """`responses/BASE__QUANT.jsonl`."""
    return bundle / "responses" / f"{cell.base_model}__{cell.quant}.jsonl"


def as_response(cell: CellId, prompt: Prompt, completion: Completion) -> Response:
    """An answer with the question it belongs to, without its timing."""
    return Response(
        base_model=cell.base_model,
        quant=cell.quant,
        task=prompt.task,
        sample_id=prompt.sample_id,
        prompt_sha256=prompt.sha256,
        text=completion.text,
        finish=completion.finish,
        prompt_tokens=completion.prompt_tokens,
        output_tokens=completion.output_tokens,
        prompt_ids_sha256=completion.prompt_ids_sha256,
        choice_logprobs=completion.choice_logprobs,
        reasoning=completion.reasoning or None,
        opened=completion.opened or opens_reasoning(prompt.chat),
        replies=completion.replies,
    )


def read_responses(path: Path) -> Iterator[Response]:
    """The stored answers of one cell, in the order they were asked.

    Raises:
        DataError: a line that is not a response, or a last line that is cut, by file and line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({os_reason(error)})", file=path) from error
    lines = whole_lines(data)
    for number, line in enumerate(lines, start=1):
        yield parse_response(line, path, number)
    if data and not data.endswith(b"\n"):
        raise DataError("cut off", file=path, line=len(lines) + 1, expected="a whole line; run the study again")


def response_line(response: Response) -> bytes:
    """One line of `responses/*.jsonl`: keys in the order of `Response`, UTF-8, no number that JSON does not have."""
    values = {name: getattr(response, name) for name in FIELDS}
    return json_line({name: value for name, value in values.items() if name not in OPTIONAL or value})


def parse_response(line: bytes, path: Path, number: int) -> Response:
    """A line as a Response; every key but an optional one is there, and of its type.

    Raises:
        DataError: by file, line and key.
    """
    try:
        data = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON ({error})", file=path, line=number) from error
    if isinstance(data, dict):
        data = {**OPTIONAL, **data}
    if not isinstance(data, dict) or tuple(sorted(data)) != tuple(sorted(FIELDS)):
        raise DataError("is not a response", file=path, line=number, expected=f"the keys {', '.join(FIELDS)}")
    wrong = next((name for name in FIELDS if not _fits(name, data[name])), None)
    if wrong is not None:
        raise DataError(f"{str(data[wrong])[:60]!r} is not valid", file=path, line=number, field=wrong)
    logprobs = data["choice_logprobs"]
    own = {"choice_logprobs": None if logprobs is None else tuple(map(float, logprobs))}
    return Response(**{**data, **own, "replies": tuple(data["replies"])})


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _fits(name: str, value: object) -> bool:
    match name:
        case "prompt_tokens" | "output_tokens":
            return value is None or (type(value) is int and value >= 0)
        case "finish":
            return value in FINISHES
        case "opened" | "replies":
            texts = isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
            return texts if name == "replies" else isinstance(value, bool)
        case "prompt_ids_sha256" | "reasoning":
            return value is None or isinstance(value, str)
        case "choice_logprobs":
            return value is None or (isinstance(value, list) and all(type(item) in (int, float) for item in value))
    return isinstance(value, str)


def parse_timing(line: bytes) -> BatchTiming | None:
    """A line of `timings/*.jsonl`, None where it is not one."""
    try:
        data = json.loads(line)
        timing = BatchTiming(**{**data, "ttft_ms": tuple(data["ttft_ms"])})
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    counts = (timing.batch, timing.prompts, timing.prompt_tokens, timing.output_tokens)
    whole = all(type(count) is int for count in counts) and isinstance(timing.sha256, str | None)
    return timing if whole and isinstance(timing.wall_s, int | float) else None


# What scoring stored answers took: a line a pass in `timings/NAME.jsonl`, for the plan of the next run.

SEMANTIC, CLASSIFIER, MARGINS, DRIFTS = "semantic", "classifier", "whitebox~margins", "whitebox~drifts"
TEXT_KL = "text_kl"


@dataclass(frozen=True, slots=True)
class Timing:
    """How much was done in how long; nothing in no time where it is not known."""

    done: int = 0
    seconds: float = 0.0

    @property
    def each(self) -> float | None:
        return self.seconds / self.done if self.done else None


def judge_timer(file: str) -> str:
    """The name for a judge, by the file of its labels."""
    return f"judge~{file}"


def note_time(bundle: Path, name: str, done: int, seconds: float) -> None:
    """Add a line.

    Raises:
        BundleError: it cannot be written.
    """
    _clock(bundle, name).append([{"done": done, "wall_s": round(seconds, 3)}])


def time_taken(bundle: Path, name: str) -> Timing:
    """All lines together; one that is none is left out."""
    found = [_read(line) for line in _clock(bundle, name).lines()]
    return Timing(sum(done for done, _ in found), sum(seconds for _, seconds in found))


def _clock(bundle: Path, name: str) -> JsonlStore:
    return JsonlStore(bundle / "timings" / f"{name}.jsonl", checked=False, synced=False)


def _read(line: bytes) -> tuple[int, float]:
    try:
        data: Mapping[str, object] = json.loads(line)
        # Judges' lines said questions before there were others.
        done, seconds = data.get("done", data.get("questions")), data["wall_s"]
    except (ValueError, KeyError, AttributeError, RecursionError):
        return 0, 0.0
    whole = type(done) is int and isinstance(seconds, int | float)
    return (int(str(done)), float(str(seconds))) if whole else (0, 0.0)


# What a judge said: one append-only JSONL a judge, `judgements/NAME.jsonl`, exact on reload after a crash.
#
# What a judge of the same name said that was another model is apart, in `judgements/NAME~2.jsonl` and so on. A line is
# a question's, not a sample's: equal answers of many builds are one question. A batch is appended by one write and
# flushed. What the batches took is apart, among the timings.


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """What a judge said to one question.

    Attributes:
        key: of the question.
        rubric: its name and version, for a reader.
        label: None is ungraded, and `reason` says why.
        text: the reply; empty where the log-probabilities were read.
        logprobs: natural log-probability of each label of the rubric, None where the engine gave none.
    """

    key: str
    rubric: str
    label: str | None
    reason: str
    text: str
    logprobs: tuple[float, ...] | None
    prompt_tokens: int
    output_tokens: int


_FIELDS = tuple(field.name for field in fields(JudgeReply))


def labels_path(file: str) -> str:
    """`judgements/FILE.jsonl`."""
    return f"judgements/{file}.jsonl"


def read_labels(bundle: Path, file: str) -> dict[str, JudgeReply]:
    """What a judge said so far, by question; a line that a killed run left unfinished is no part of it.

    Args:
        file: name of the judge's file, as the roll has it.

    Raises:
        DataError: a line that is none, by file and line.
    """
    path = bundle / labels_path(file)
    found: dict[str, JudgeReply] = {}
    for number, line in enumerate(JsonlStore(path).lines(), start=1):
        said = _parse(line, path, number)
        found[said.key] = said
    return found


def append_labels(bundle: Path, file: str, said: Sequence[JudgeReply], seconds: float) -> None:
    """Store a batch and how long it took: all of it, or on failure nothing of it.

    Raises:
        BundleError: the disk is full, or the file not writable.
    """
    store = JsonlStore(bundle / labels_path(file))
    store.make()
    store.mend()
    note_time(bundle, judge_timer(file), len(said), seconds)
    store.append(map(asdict, said))


def _parse(line: bytes, path: Path, number: int) -> JudgeReply:
    try:
        data = value_of(line)
        said = JudgeReply(
            **{**data, "logprobs": None if data["logprobs"] is None else tuple(map(float, data["logprobs"]))}
        )
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        keys = ", ".join(_FIELDS)
        raise DataError(f"is not what a judge said ({error})", file=path, line=number, expected=keys) from error
    tokens = (said.prompt_tokens, said.output_tokens)
    if not isinstance(said.key, str) or not all(type(count) is int and count >= 0 for count in tokens):
        raise DataError("is not what a judge said", file=path, line=number, field="key, prompt_tokens, output_tokens")
    return said


# Values that are kept in a bundle by a hash of all that they follow from, so that none is computed twice.


def key_of(*parts: Json) -> str:
    """A hash of texts, numbers and mappings of them."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class NumberStore:
    """A number for each key, a line each.

    Raises:
        BundleError: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._store = JsonlStore(path)
        self._store.make()
        lines = self._store.recover()
        self.values: dict[str, float] = dict(entry for line in lines if (entry := _entry(line)) is not None)

    def add(self, values: Mapping[str, float]) -> None:
        """Store values: all of them, or on failure none."""
        self._store.append({"key": key, "value": own} for key, own in values.items())
        self.values.update(values)


def _entry(line: bytes) -> tuple[str, float] | None:
    """A line's key and value, None where it is no such line: that value is computed again."""
    try:
        data = value_of(line)
        return str(data["key"]), float(data["value"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
