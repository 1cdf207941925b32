"""What shows in the form of an answer, whatever it says: unread, cut, empty, in a loop, in another language, unended.

None of it grades an answer. A build that breaks shows here first, and so does a gain that is none.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from typing import TYPE_CHECKING, NamedTuple

from quantverdict.grading.choice import score_choice
from quantverdict.grading.grade import SCORERS, answer_to
from quantverdict.grading.text import cleaned
from quantverdict.records import Response
from quantverdict.tasks.catalog import Item, Task, apply_filters, choice_continuations

if TYPE_CHECKING:
    import polars as pl
    from py3langid.langid import LanguageIdentifier

LOOP_CHARS, LOOP_TIMES, LOOP_TAIL = 60, 3, 1500
"""A loop fills so many characters at the end of an answer, with so many rounds; so much of the end is looked at."""
LANGUAGE_BYTES, LANGUAGE_CONFIDENCE, SCRIPT_TENTHS = 40, 0.9, 9
"""UTF-8 bytes of letters (40 Latin letters, 14 Chinese ones), probability, and tenths of the letters in one script,
from which a language or a script is told."""
COLUMNS = (
    "base_model", "quant", "task", "sample_id", "cluster", "parse_failure", "truncated", "empty", "loop",
    "other_language", "output_tokens", "reasoning_cut", "runs_on",
)  # fmt: skip


class Form(NamedTuple):
    """A line of `answers.parquet`; None is not known.

    Attributes:
        cluster: of the item.
        parse_failure: the task's own filters give none of its choices; None where it lists none.
        truncated: ended by the limit of tokens.
        empty: nothing visible, and no reasoning that was cut.
        loop: as `loops`.
        other_language: as `other_language`, against the baseline's answer.
        output_tokens: generated.
        reasoning_cut: the reasoning was never left.
        runs_on: a further turn followed the answer.
    """

    base_model: str
    quant: str
    task: str
    sample_id: str
    cluster: str | None
    parse_failure: bool | None
    truncated: bool
    empty: bool
    loop: bool
    other_language: bool | None
    output_tokens: int
    reasoning_cut: bool
    runs_on: bool


Answers = Mapping[tuple[str, str, str], str]
"""Texts by base model, task and sample."""


def texts_of(tasks: Mapping[str, Task], responses: Iterable[Response]) -> Answers:
    """The answers of baselines, to compare others with."""
    return {(one.base_model, one.task, one.sample_id): answer_to(tasks[one.task], one).text for one in responses}


def forms_of(tasks: Mapping[str, Task], responses: Iterable[Response], originals: Answers) -> Iterator[Form]:
    """The form of every answer.

    Args:
        tasks: by name; they hold every response's item.
        responses: of any builds.
        originals: the answers of their baselines.
    """
    items = {name: {item.id: item for item in task.items} for name, task in tasks.items()}
    for response in responses:
        task = tasks[response.task]
        answer = answer_to(task, response)
        item, text = items[response.task][response.sample_id], answer.text
        original = originals.get((response.base_model, response.task, response.sample_id))
        yield Form(
            base_model=response.base_model,
            quant=response.quant,
            task=response.task,
            sample_id=response.sample_id,
            cluster=task.cluster(item),
            parse_failure=parse_failure(task, item, text),
            truncated=response.finish == "length",
            empty=not answer.cut and not cleaned(text),
            loop=loops(text),
            other_language=None if original is None else other_language(text, original),
            output_tokens=response.output_tokens,
            reasoning_cut=answer.cut,
            runs_on=answer.runs_on,
        )


def forms_frame(forms: Iterable[Form]) -> pl.DataFrame:
    """`answers.parquet`."""
    import polars as pl

    kinds = {name: pl.String if name in COLUMNS[:5] else pl.Boolean for name in COLUMNS}
    return pl.DataFrame(list(forms), schema={**kinds, "output_tokens": pl.Int64}, orient="row")


def parse_failure(task: Task, item: Item, text: str) -> bool | None:
    """Whether the task's own filters leave none of its choices of an answer; None where it has none to leave."""
    labels = choice_continuations(task, item) if score_choice in SCORERS.get(task.task_type, ()) else ()
    return apply_filters(task, text) not in labels if labels else None


@lru_cache(maxsize=1 << 14)
def loops(text: str) -> bool:
    """Whether an answer ends in a loop: a stretch said at least three times on end, over at least 60 characters.

    White space counts as one space, and the last round may be cut. Rounds that differ (1. no 2. no 3. no) are none.
    """
    back = " ".join(text.casefold().split())[-LOOP_TAIL:][::-1]
    # The last third of the least that loops is said a round before, too; most answers end here.
    if len(back) < LOOP_CHARS or back.find(back[: LOOP_CHARS // LOOP_TIMES], 1) < 0:
        return False
    # alike[p] characters at the end are what stands p before them: the tail is periodic over p + alike[p].
    return any(
        period + alike >= max(LOOP_TIMES * period, LOOP_CHARS)
        for period, alike in enumerate(_repeated_starts(back))
        if period
    )


def _repeated_starts(text: str) -> list[int]:
    """For each place, how many characters from there on are those that the text begins with (the Z function)."""
    found = [0] * len(text)
    left = right = 0
    for at in range(1, len(text)):
        length = min(right - at, found[at - left]) if at < right else 0
        while at + length < len(text) and text[length] == text[at + length]:
            length += 1
        found[at] = length
        if at + length > right:
            left, right = at, at + length
    return found


def other_language(answer: str, original: str) -> bool | None:
    """Whether an answer is in another script or language than the baseline's; None where that is not clear of both."""
    scripts = script(answer), script(original)
    if None not in scripts and scripts[0] != scripts[1]:
        return True
    mine, theirs = language(answer), language(original)
    return None if mine is None or theirs is None else mine != theirs


@lru_cache(maxsize=1 << 14)
def script(text: str) -> str | None:
    """What nine in ten letters of a text are: LATIN, CJK (kana too), CYRILLIC, ...; None where it is too short."""
    letters = _letters(text)
    if letters is None:
        return None
    if letters.isascii():
        return "LATIN"
    names = Counter(unicodedata.name(letter, "").partition(" ")[0] for letter in letters)
    counts = Counter({"CJK": sum(names.pop(name, 0) for name in ("CJK", "HIRAGANA", "KATAKANA"))}) + names
    name, count = counts.most_common(1)[0]
    return name if 10 * count >= SCRIPT_TENTHS * len(letters) else None


@lru_cache(maxsize=1 << 14)
def language(text: str) -> str | None:
    """The ISO 639-1 code of a text's language by py3langid; None where it is too short, or below its probability."""
    if _letters(text) is None:
        return None
    identifier = _identifier()
    if identifier is None:
        return None
    code, probability = identifier.classify(" ".join(text.split()).encode("utf-8", "ignore").decode())
    return str(code) if probability >= LANGUAGE_CONFIDENCE else None


def _letters(text: str) -> str | None:
    """The letters of a text, None where they are too few to tell anything of it."""
    letters = "".join(filter(str.isalpha, text))
    return letters if len(letters.encode("utf-8", "ignore")) >= LANGUAGE_BYTES else None


@cache
def _identifier() -> LanguageIdentifier | None:
    """The model of languages; None where it cannot be loaded.

    It is unpacked into a temporary file: a full disk or a limit on file sizes is no reason to lose a decision.
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    try:
        return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    except OSError:
        return None
