"""Scores by encoders of stored answers: `bertscore`, `coherence`, and without a reference `coherence_prompt`.

One pass over the answers of all builds, whose equal texts are encoded once. What was scored is kept in the bundle, by
a hash of metric, encoder and texts; a later run computes the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from quantverdict.collect.clock import SEMANTIC, note_time
from quantverdict.collect.manifest import Bundle
from quantverdict.grading.embeddings import Bounds, Pair, compare_pairs
from quantverdict.grading.encoder_files import EncoderFiles, Encoders
from quantverdict.grading.encoders import Encoder, Placed, SentenceEncoder, TokenEncoder, cores, place
from quantverdict.grading.grade import SCORERS, answer_text, answer_to
from quantverdict.grading.kept import Kept, key_of
from quantverdict.grading.text import score_free_text, score_text
from quantverdict.records import Response, Score
from quantverdict.tasks.catalog import Item, Task, apply_filters, render_prompt

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


class Wanted(NamedTuple):
    """A score to be had: of which answer, the pair of texts, and why there is none, where that is known."""

    response: Response
    cluster: str | None
    metric: str
    pair: Pair
    reason: str = ""


def read_semantically(task: Task) -> bool:
    """Whether the answers to a task are free text."""
    return bool({score_text, score_free_text} & set(SCORERS.get(task.task_type, ())))


def semantic_scores(
    encoders: Encoders, tasks: Mapping[str, Task], responses: Iterable[Response], bundle: Bundle, say: Say
) -> Iterator[Score]:
    """The scores of answers to free-text tasks, in their order; answers to others have none.

    Raises:
        EngineError: an encoder cannot be loaded, or fails; what it scored before is kept.
        BundleError: the scores cannot be kept.
    """
    wanted = list(_wanted(encoders, tasks, responses))
    bundle.refuse_changed(KEPT)
    kept, placed = Kept(bundle.path(KEPT)), place(encoders.settings)
    instruments = (
        ("bertscore", ("bertscore",), encoders.bertscore, TokenEncoder),
        ("coherence", ("coherence", "coherence_prompt"), encoders.coherence, SentenceEncoder),
    )
    identities = {name: _identity(files, placed) for name, _, files, _ in instruments if files is not None}
    values: dict[tuple[str, Pair], float] = {}
    for name, metrics, files, kind in instruments:
        if files is None:
            continue
        mine = dict.fromkeys(
            (one.metric, one.pair) for one in wanted if one.metric in metrics and _comparable(one.pair)
        )
        keys = {asked: key_of(asked[0], identities[name], *asked[1]) for asked in mine}
        start, known = time.perf_counter(), len(kept.values)
        _score_missing(partial(kind, files, placed), keys, kept, placed, partial(_say, say, name, files.name))
        if new := len(kept.values) - known:
            note_time(bundle.root, SEMANTIC, new, time.perf_counter() - start)
        values |= {asked: kept.values[key] for asked, key in keys.items()}
    bundle.record(semantic=identities)
    yield from (_score(one, values) for one in wanted)


def _wanted(encoders: Encoders, tasks: Mapping[str, Task], responses: Iterable[Response]) -> Iterator[Wanted]:
    items = {name: {item.id: item for item in task.items} for name, task in tasks.items() if read_semantically(task)}
    for response in responses:
        if response.task not in items:
            continue
        task, item = tasks[response.task], items[response.task][response.sample_id]
        answer, cluster = answer_to(task, response), task.cluster(item)
        text = _unicode(apply_filters(task, answer_text(task, answer)))
        for metric, reference in _measured(encoders, task, item):
            yield Wanted(response, cluster, metric, Pair(text, _unicode(reference)), answer.reason)


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


def _comparable(pair: Pair) -> bool:
    return bool(pair.answer.strip() and pair.reference.strip())


def _score(one: Wanted, values: Mapping[tuple[str, Pair], float]) -> Score:
    """An answer of which the task's filters leave nothing scores 0, as in ROUGE-L."""
    r = one.response
    reason = one.reason or ("" if one.pair.reference.strip() else EMPTY_REFERENCE)
    value = None if reason else values.get((one.metric, one.pair), 0.0)
    return Score(r.base_model, r.quant, r.task, r.sample_id, one.metric, value, one.cluster, reason)


def _identity(files: EncoderFiles, placed: Placed) -> dict[str, Any]:
    """What a score depends on besides the texts."""
    return {"encoder": files.name, **files.identity, "dtype": placed.dtype, "device": placed.hardware}


def _score_missing(
    load: Callable[[], Encoder[Any]],
    keys: Mapping[tuple[str, Pair], str],
    kept: Kept,
    placed: Placed,
    say: Callable[[int, int], None],
) -> None:
    """Compare the pairs that are not kept; the encoder is loaded only where there are any."""
    missing: dict[Pair, list[str]] = {}
    for (_, pair), key in keys.items():
        if key not in kept.values:
            missing.setdefault(pair, []).append(key)
    if not missing:
        return
    done = len(keys) - sum(map(len, missing.values()))
    say(done, len(keys))
    said, bounds = time.monotonic(), Bounds(placed.batch_tokens, BATCHES * placed.batch_tokens)
    with cores():
        for scores in compare_pairs(load(), missing, bounds):
            new = {key: round(score, DECIMALS) for pair, score in scores.items() for key in missing[pair]}
            kept.add(new)
            done += len(new)
            if done == len(keys) or time.monotonic() - said > SAY_SECONDS:
                said = time.monotonic()
                say(done, len(keys))


def _say(say: Say, name: str, encoder: str, done: int, total: int) -> None:
    say(f"{name} by {encoder}: {done} of {total} different answers scored")


def _unicode(text: str) -> str:
    """A lone surrogate is no text that an encoder reads: the sign for what cannot be shown stands for it."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
