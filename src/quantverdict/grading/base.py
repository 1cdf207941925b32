"""What a scorer is: one answer to one item in, one or more grades out.

A scorer reads `text`, the answer after the task's filters; `response` has the answer without filters and out of its
wrapper, the token count and the log-probabilities. What the model thought, and what it went on with, neither has
(`answer`). It never raises on an answer, whatever that contains. What it cannot grade is `None` with a
reason, never 0. The registry names it for a task type, in a `ScorerSpec`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from rapidfuzz.distance import LCSseq

from quantverdict.records import Response
from quantverdict.tasks.catalog import Item, Task

EMPTY_ANSWER = "the answer is empty"
NOT_COUNTED = "the server does not count tokens"


class Grade(NamedTuple):
    """A metric's value for one answer; None is ungraded, and `reason` says why."""

    metric: str
    value: float | None
    reason: str = ""


Scorer = Callable[[Task, Item, Response, str], Iterable[Grade]]


def strings(value: object) -> tuple[str, ...]:
    """An item field as texts: a text is one, a list each of its members, anything else none."""
    if isinstance(value, str):
        return (value,)
    return tuple(str(member) for member in value) if isinstance(value, list | tuple) else ()


# Grades of free text: ROUGE-L, repetition, length; and the cleaned text that the pattern readers share.

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_ROUGE_BYTES = bytes(ord(chr(byte).lower()) if chr(byte).lower() in _LETTERS else ord(" ") for byte in range(128))
_ROUGE_BYTES += b" " * 128
_STRAIGHT = {"’": "'", "‘": "'", "ʼ": "'", "‛": "'", "＇": "'", "′": "'", "´": "'"}  # noqa: RUF001
_QUOTES = dict.fromkeys("“”„‟«»「」『』＂", '"')  # noqa: RUF001
_INVISIBLE_RANGES = (
    *((0x00, 0x08), (0x0E, 0x1B), (0x7F, 0x7F), (0xAD, 0xAD), (0x61C, 0x61C), (0x180E, 0x180E), (0x200B, 0x200F)),
    *((0x202A, 0x202E), (0x2060, 0x206F), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF)),
)
_INVISIBLE = {code: None for first, last in _INVISIBLE_RANGES for code in range(first, last + 1)}
_SIGNS = dict.fromkeys((0x2122, 0x2139), " ")
_CLEAN = str.maketrans({**_STRAIGHT, **_QUOTES}) | _INVISIBLE | _SIGNS


def score_text(_task: Task, item: Item, response: Response, text: str) -> Iterator[Grade]:
    """`rouge_l` against the item's reference, then the grades that need none."""
    reference = item.reference
    if reference is None:
        yield Grade("rouge_l", None, "the item has no reference")
    elif not rouge_tokens(reference):
        yield Grade("rouge_l", None, "the reference has no ROUGE token (a-z, 0-9), so no answer could match it")
    else:
        yield Grade("rouge_l", rouge_l(text, reference))
    yield from score_free_text(_task, item, response, text)


def score_free_text(_task: Task, _item: Item, response: Response, text: str) -> Iterator[Grade]:
    """`repetition` and `output_tokens`."""
    share = repetition(text)
    yield Grade("repetition", share, "" if share is not None else "under 4 tokens")
    tokens = response.output_tokens
    yield Grade("output_tokens", None if tokens is None else float(tokens), NOT_COUNTED if tokens is None else "")


def rouge_tokens(text: str) -> list[bytes]:
    """The tokens of the `rouge-score` package without stemming: lower case, runs of a-z and 0-9, as ASCII.

    By a table of bytes, which takes a third of the time of a pattern; no byte of a wider character is a letter in it,
    and the Kelvin sign and the dotted I are the only ones whose lower case has one.
    """
    if not text.isascii():
        text = text.replace("\u212a", "k").replace("\u0130", "i ")
    return text.encode("utf-8", "surrogatepass").translate(_ROUGE_BYTES).split()


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L F1 in 0..1: longest common subsequence of tokens over both lengths; 0 where either has no token.

    Equal to `rouge_score.rouge_scorer.RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure`.
    """
    found, wanted = rouge_tokens(answer), _reference_tokens(reference)
    if not found or not wanted:
        return 0.0
    common = LCSseq.similarity(wanted, found)
    precision, recall = common / len(found), common / len(wanted)
    return 2 * precision * recall / (precision + recall) if common else 0.0


@lru_cache(maxsize=4096)
def _reference_tokens(reference: str) -> tuple[bytes, ...]:
    """Kept, because every cell is compared with the same references."""
    return tuple(rouge_tokens(reference))


def repetition(text: str) -> float | None:
    """Distinct 4-grams over all 4-grams of whitespace tokens, in 0..1; None under 4 tokens."""
    tokens = text.split()
    total = len(tokens) - 3
    if total < 1:
        return None
    return len(set(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False))) / total


def cleaned(text: str) -> str:
    """`text` as a pattern reads it: NFKC, straight quotes, no invisible characters, single spaces, no blank lines.

    Linear in the length, so that no pattern has to meet a long run of spaces. Invisible characters are controls,
    zero-width characters, direction marks and variation selectors. Empty where nothing visible is left.
    """
    text = text.translate(_CLEAN)
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return "\n".join(line for line in (" ".join(line.split()) for line in text.splitlines()) if line)


# Short answers, as SQuAD has them

_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")


def score_short_answer(_task: Task, item: Item, _response: Response, text: str) -> Iterator[Grade]:
    """`f1` and `contains`, against the item's reference."""
    reference = item.reference
    if reference is None or not short_tokens(reference):
        reason = "the item has no reference" if reference is None else "the reference has no word"
        yield Grade("f1", None, reason)
        yield Grade("contains", None, reason)
        return
    found, wanted = short_tokens(text), short_tokens(reference)
    yield Grade("f1", token_f1(found, wanted))
    yield Grade("contains", float(f" {' '.join(wanted)} " in f" {' '.join(found)} "))


def short_tokens(text: str) -> list[str]:
    """Words in lower case, without ASCII punctuation and English articles: as SQuAD's evaluation has it."""
    return [word for word in _PUNCTUATION.sub("", text.lower()).split() if word not in _ARTICLES]


def token_f1(found: list[str], wanted: list[str]) -> float:
    """F1 in 0..1 of the words that two texts share, each as often as in both (Rajpurkar et al. 2016)."""
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted)) if common else 0.0
