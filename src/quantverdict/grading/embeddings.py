"""One pass over pairs of texts: each distinct text is encoded once, in batches of like length, in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from quantverdict.grading.encoders import Encoder

E = TypeVar("E")


class Pair(NamedTuple):
    """An answer and the text that it is compared with."""

    answer: str
    reference: str


class Bounds(NamedTuple):
    """How much is done at once.

    Attributes:
        batch_tokens: encoded together, padding included.
        chunk_tokens: encoded between two results, which is what an interruption can lose.
        held_bytes: of embeddings that are kept for later pairs; what is beyond it is encoded again when it is needed.
    """

    batch_tokens: int
    chunk_tokens: int
    held_bytes: int = 1 << 29


def compare_pairs(encoder: Encoder[E], pairs: Iterable[Pair], bounds: Bounds) -> Iterator[dict[Pair, float]]:
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
        forget(encoder, held, uses, bounds.held_bytes)


def by_reference(pairs: Iterable[Pair]) -> list[Pair]:
    """Distinct pairs, those of one reference together: they are compared at once, and it is needed no more after."""
    groups: dict[str, dict[Pair, None]] = {}
    for pair in pairs:
        groups.setdefault(pair.reference, {})[pair] = None
    return [pair for group in groups.values() for pair in group]


def chunks(pairs: Sequence[Pair], lengths: Mapping[str, int], most: int) -> Iterator[list[Pair]]:
    """Pairs in their order, so many that their distinct texts have about `most` tokens."""
    chunk: list[Pair] = []
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


def matched(encoder: Encoder[E], pairs: Sequence[Pair], held: Mapping[str, E]) -> dict[Pair, float]:
    """The scores of pairs whose texts are encoded."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.reference, []).append(pair)
    found: dict[Pair, float] = {}
    for reference, group in groups.items():
        scores = encoder.compare([held[pair.answer] for pair in group], held[reference])
        found.update(zip(group, scores, strict=True))
    return found


def forget(encoder: Encoder[E], held: dict[str, E], uses: Mapping[str, int], most: int) -> None:
    """Drop what no later pair needs, then the oldest of what is beyond `most` bytes."""
    for text in [text for text in held if uses[text] <= 0]:
        del held[text]
    total = sum(map(encoder.size, held.values()))
    for text in list(held):
        if total <= most:
            break
        total -= encoder.size(held.pop(text))
