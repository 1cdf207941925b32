"""Scores by encoders of stored answers: `bertscore`, `coherence`, and without a reference `coherence_prompt`.

One pass over the answers of all builds, whose equal texts are encoded once. What was scored is kept in the bundle, by
a hash of metric, encoder and texts; a later run computes the rest.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from quantverdict.bundle.store import key_of
from quantverdict.grading.encoders import (
    Encoder,
    EncoderPlacement,
    Encoders,
    SentenceEncoder,
    TokenEncoder,
    cores,
    place,
)
from quantverdict.grading.grade import answer_text, answer_to
from quantverdict.records import Response, Score
from quantverdict.tasks.catalog import Item, Task, apply_filters, render_prompt

# One pass over pairs of texts: each distinct text is encoded once, in batches of like length, in bounded memory.

E = TypeVar("E")


class TextPair(NamedTuple):
    """An answer and the text that it is compared with."""

    answer: str
    reference: str


class BatchLimits(NamedTuple):
    """How much is done at once.

    Attributes:
        batch_tokens: encoded together, padding included.
        chunk_tokens: encoded between two results, which is what an interruption can lose.
        held_bytes: of embeddings that are kept for later pairs; what is beyond it is encoded again when it is needed.
    """

    batch_tokens: int
    chunk_tokens: int
    held_bytes: int = 1 << 29


def compare_pairs(
    encoder: Encoder[E], pairs: Iterable[TextPair], bounds: BatchLimits
) -> Iterator[dict[TextPair, float]]:
    """Every distinct pair with its score, some at a time."""
    ordered = by_reference(pairs)
    texts = list(dict.fromkeys(text for pair in ordered for text in pair))
    lengths = dict(zip(texts, encoder.lengths(texts) if texts else (), strict=True))
    uses = Counter(text for pair in ordered for text in pair)
    held: dict[str, E] = {}
    for chunk in chunks(ordered, lengths, bounds.chunk_tokens):
        missing = dict.fromkeys(text for pair in chunk for text in pair if text not in held)
        for batch in batches(missing, lengths, bounds.batch_tokens):
            held.update(zip(batch, encoder.embed(batch), strict=True))
        yield matched(encoder, chunk, held)
        uses.subtract(text for pair in chunk for text in pair)
        evict(encoder, held, uses, bounds.held_bytes)


def by_reference(pairs: Iterable[TextPair]) -> list[TextPair]:
    """Distinct pairs, those of one reference together: they are compared at once, and it is needed no more after."""
    groups: dict[str, dict[TextPair, None]] = {}
    for pair in pairs:
        groups.setdefault(pair.reference, {})[pair] = None
    return [pair for group in groups.values() for pair in group]


def chunks(pairs: Sequence[TextPair], lengths: Mapping[str, int], most: int) -> Iterator[list[TextPair]]:
    """Pairs in their order, so many that their distinct texts have about `most` tokens."""
    chunk: list[TextPair] = []
    seen: set[str] = set()
    tokens = 0
    for pair in pairs:
        chunk.append(pair)
        tokens += sum(lengths[text] for text in {*pair} - seen)
        seen.update(pair)
        if tokens >= most:
            yield chunk
            chunk, seen, tokens = [], set(), 0
    if chunk:
        yield chunk


def batches(texts: Iterable[str], lengths: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Texts of like length, longest first, so that those of a batch fill at most `most` tokens with their padding."""
    rest = sorted(texts, key=lambda text: -lengths[text])
    while rest:
        many = max(1, most // max(1, lengths[rest[0]]))
        yield rest[:many]
        rest = rest[many:]


def matched(encoder: Encoder[E], pairs: Sequence[TextPair], held: Mapping[str, E]) -> dict[TextPair, float]:
    """The scores of pairs whose texts are encoded."""
    groups: dict[str, list[TextPair]] = {}
    for pair in pairs:
        groups.setdefault(pair.reference, []).append(pair)
    found: dict[TextPair, float] = {}
    for reference, group in groups.items():
        scores = encoder.compare([held[pair.answer] for pair in group], held[reference])
        found.update(zip(group, scores, strict=True))
    return found


def evict(encoder: Encoder[E], held: dict[str, E], uses: Mapping[str, int], most: int) -> None:
    """Drop what no later pair needs, then the oldest of what is beyond `most` bytes."""
    for text in [text for text in held if uses[text] <= 0]:
        del held[text]
    total = sum(map(encoder.size, held.values()))
    for text in list(held):
        if total <= most:
            break
        total -= encoder.size(held.pop(text))


KEPT = "semantic.jsonl"
"""The artefact that holds what was scored."""
DECIMALS = 6
"""Places of a score; those beyond depend on what else was encoded in the same batch."""
EMPTY_REFERENCE = "the reference is empty"
BATCHES = 32
"""Batches between two saves."""
SAY_SECONDS = 30.0
"""How often the progress of a long pass is said."""

Say = Callable[[str], None]


class ScoreMemory(NamedTuple):
    """Scores by a hash of all that they follow from; `keep` makes new ones known, and `timer` is told their time."""

    known: Mapping[str, float]
    keep: Callable[[Mapping[str, float]], None]
    timer: Callable[[int, float], None]


class ScoreRequest(NamedTuple):
    """A score to be had: of which answer, the pair of texts, and why there is none, where that is known."""

    response: Response
    cluster: str | None
    metric: str
    pair: TextPair
    reason: str = ""


def read_semantically(task: Task) -> bool:
    """Whether the answers to a task are free text."""
    return task.type.free_text


def semantic_scores(
    encoders: Encoders,
    tasks: Mapping[str, Task],
    responses: Iterable[Response],
    memory: ScoreMemory,
    say: Say,
) -> Iterator[Score]:
    """The scores of answers to free-text tasks, in their order; answers to others have none.

    Raises:
        EngineError: an encoder cannot be loaded, or fails; what it scored before is kept.
    """
    wanted = list(_wanted(encoders, tasks, responses))
    placed, known_as = place(encoders.settings), identities(encoders)
    instruments = (
        ("bertscore", ("bertscore",), encoders.bertscore, TokenEncoder),
        ("coherence", ("coherence", "coherence_prompt"), encoders.coherence, SentenceEncoder),
    )
    values: dict[tuple[str, TextPair], float] = {}
    for name, metrics, files, kind in instruments:
        if files is None:
            continue
        mine = dict.fromkeys(
            (one.metric, one.pair) for one in wanted if one.metric in metrics and _comparable(one.pair)
        )
        keys = {asked: key_of(asked[0], known_as[name], *asked[1]) for asked in mine}
        start, known = time.perf_counter(), len(memory.known)
        _score_missing(partial(kind, files, placed), keys, memory, placed, partial(_say, say, name, files.name))
        if new := len(memory.known) - known:
            memory.timer(new, time.perf_counter() - start)
        values |= {asked: memory.known[key] for asked, key in keys.items()}
    yield from (_score(one, values) for one in wanted)


def identities(encoders: Encoders) -> dict[str, dict[str, Any]]:
    """What the scores of each encoder depend on besides the texts."""
    placed = place(encoders.settings)
    named = (("bertscore", encoders.bertscore), ("coherence", encoders.coherence))
    return {
        name: {"encoder": files.name, **files.identity, "dtype": placed.dtype, "device": placed.hardware}
        for name, files in named
        if files is not None
    }


def _wanted(encoders: Encoders, tasks: Mapping[str, Task], responses: Iterable[Response]) -> Iterator[ScoreRequest]:
    items = {name: {item.id: item for item in task.items} for name, task in tasks.items() if read_semantically(task)}
    for response in responses:
        if response.task not in items:
            continue
        task, item = tasks[response.task], items[response.task][response.sample_id]
        answer, cluster = answer_to(task, response), task.cluster(item)
        text = _unicode(apply_filters(task, answer_text(task, answer)))
        for metric, reference in _measured(encoders, task, item):
            yield ScoreRequest(response, cluster, metric, TextPair(text, _unicode(reference)), answer.reason)


def _measured(encoders: Encoders, task: Task, item: Item) -> Iterator[tuple[str, str]]:
    """Each metric of an item's answer, and the text that it is compared with."""
    reference = item.reference
    if reference is None:
        if encoders.coherence is not None:
            yield "coherence_prompt", render_prompt(task, item)
        return
    if encoders.bertscore is not None:
        yield "bertscore", reference
    if encoders.coherence is not None:
        yield "coherence", reference


def _comparable(pair: TextPair) -> bool:
    return bool(pair.answer.strip() and pair.reference.strip())


def _score(one: ScoreRequest, values: Mapping[tuple[str, TextPair], float]) -> Score:
    """An answer of which the task's filters leave nothing scores 0, as in ROUGE-L."""
    r = one.response
    reason = one.reason or ("" if one.pair.reference.strip() else EMPTY_REFERENCE)
    value = None if reason else values.get((one.metric, one.pair), 0.0)
    return Score(r.base_model, r.quant, r.task, r.sample_id, one.metric, value, one.cluster, reason)


def _score_missing(
    load: Callable[[], Encoder[Any]],
    keys: Mapping[tuple[str, TextPair], str],
    memory: ScoreMemory,
    placed: EncoderPlacement,
    say: Callable[[int, int], None],
) -> None:
    """Compare the pairs that are not kept; the encoder is loaded only where there are any."""
    missing: dict[TextPair, list[str]] = {}
    for (_, pair), key in keys.items():
        if key not in memory.known:
            missing.setdefault(pair, []).append(key)
    if not missing:
        return
    done = len(keys) - sum(map(len, missing.values()))
    say(done, len(keys))
    said, bounds = time.monotonic(), BatchLimits(placed.batch_tokens, BATCHES * placed.batch_tokens)
    with cores():
        for scores in compare_pairs(load(), missing, bounds):
            new = {key: round(score, DECIMALS) for pair, score in scores.items() for key in missing[pair]}
            memory.keep(new)
            done += len(new)
            if done == len(keys) or time.monotonic() - said > SAY_SECONDS:
                said = time.monotonic()
                say(done, len(keys))


def _say(say: Say, name: str, encoder: str, done: int, total: int) -> None:
    say(f"{name} by {encoder}: {done} of {total} different answers scored")


def _unicode(text: str) -> str:
    """A lone surrogate is no text that an encoder reads: the sign for what cannot be shown stands for it."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
