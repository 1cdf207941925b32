"""Accuracy of a choice: as the task reads it, as a tolerant reader reads it, and by log-probability.

An answer is *read raw* where it equals a choice's label after the task's filters. It is a *format failure* where that
did not succeed and the tolerant reader found a choice: the share of answers whose form, not whose knowledge, a raw
accuracy judges. An answer that nobody can read is wrong in both accuracies and no format failure.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from quantverdict.errors import DataError
from quantverdict.grading import choice_patterns as say
from quantverdict.grading.base import Grade, cleaned
from quantverdict.records import Response
from quantverdict.tasks.catalog import Item, Task, choice_continuations, choice_texts, correct_choice

READ_CHARS = 4000
"""How much of an answer's end the tolerant reader looks at; 256 tokens are some 1,200 characters."""
_SHORT_WORDS = 12
"""A choice's text inside an answer counts where the answer has at most this many words more than the choice."""

_EDGES = re.compile(r"^[\W_]+|[\W_]+$")
_WORD = re.compile(r"[^\W_]+")


def score_choice(task: Task, item: Item, response: Response, text: str) -> Iterator[Grade]:
    """`A`, `A_rescored`, `A_format_failure`; by numbers `A_logprob`, `A_margin`, `A_p_right`; A: `accuracy_metric`.

    Raises:
        DataError: the response has log-probabilities for another number of choices than the item.
    """
    metric = task.accuracy_metric or "choice_accuracy"
    reference = item.reference
    labels = choice_continuations(task, item)
    right = correct_choice(task, item)
    if reference is None:
        yield Grade(metric, None, "the item has no reference")
    else:
        yield Grade(metric, float(text == reference))
    if not labels or right is None:
        reason = "the item lists no choices" if not labels else "the reference is none of the choices"
        yield Grade(f"{metric}_rescored", None, reason)
        yield Grade(f"{metric}_format_failure", None, reason)
        return
    raw = labels.index(text) if text in labels else None
    choices = reader(labels, tuple(choice_texts(item).values()))
    read = raw if raw is not None else read_answer(choices, response.text or text)
    yield Grade(f"{metric}_rescored", float(read == right))
    yield Grade(f"{metric}_format_failure", float(raw is None and read is not None))
    if response.choice_logprobs is not None:
        yield from _score_logprobs(metric, response, len(labels), right)


def _score_logprobs(metric: str, response: Response, n_choices: int, right: int) -> Iterator[Grade]:
    values = response.choice_logprobs or ()
    if len(values) != n_choices:
        where = f"{response.base_model}/{response.quant} {response.task}/{response.sample_id}"
        raise DataError(f"{where}: {len(values)} choice log-probabilities", expected=f"{n_choices}, one a choice")
    margin = logprob_margin(values, right)
    reason = "" if margin is not None else "the log-probabilities are not finite numbers"
    yield Grade(f"{metric}_logprob", None if margin is None else float(margin > 0), reason)
    yield Grade(f"{metric}_margin", margin, reason)
    if response.reasoning is not None or response.opened:
        yield Grade(f"{metric}_p_right", None, "the answer follows reasoning, and these are probabilities before it")
    else:
        yield Grade(f"{metric}_p_right", None if margin is None else probability(values, right), reason)


def logprob_margin(values: Sequence[float], right: int) -> float | None:
    """Right choice minus the best wrong one, in nats: positive where the arg-max is right, 0 at a tie (no arg-max).

    None where a value is NaN or infinite, or there is no wrong choice.
    """
    wrong = [value for index, value in enumerate(values) if index != right]
    return values[right] - max(wrong) if wrong and all(map(math.isfinite, values)) else None


def probability(values: Sequence[float], right: int) -> float:
    """The probability of one choice among the choices, in 0..1, from finite log-probabilities in nats."""
    most = max(values)
    weights = [math.exp(value - most) for value in values]
    return weights[right] / math.fsum(weights)


@dataclass(frozen=True, slots=True)
class ChoiceReader:
    """What to look for in an answer to one item.

    Attributes:
        labels: normal form of each label to its index.
        phrases: normal form of each choice's text (or of a label that is a word) to its index.
        letters: finds labels that are single characters in a marked form, None where the labels are words.
        bare: finds the same unmarked, to see that an answer names more than one.
    """

    labels: dict[str, int]
    phrases: dict[str, int]
    letters: re.Pattern[str] | None
    bare: re.Pattern[str] | None


@lru_cache(maxsize=8192)
def reader(labels: tuple[str, ...], texts: tuple[str, ...] = ()) -> ChoiceReader:
    """A reader for choices `labels` that say `texts` (none, or one a label). Kept: every cell has the same items."""
    known = {_normal(label): index for index, label in enumerate(labels)}
    lettered = all(len(label) == 1 for label in labels)
    phrases = dict(known) if not lettered else {}
    if len(texts) == len(labels):
        phrases |= {_phrase(text): index for index, text in enumerate(texts)}
        repeated = {_phrase(text) for text in texts if sum(_phrase(text) == _phrase(other) for other in texts) > 1}
        phrases = {phrase: index for phrase, index in phrases.items() if phrase not in repeated}
    phrases.pop("", None)
    if not lettered:
        return ChoiceReader(known, phrases, None, None)
    any_label = f"[{re.escape(''.join(labels + tuple(label.lower() for label in labels)))}]"
    upper = f"[{re.escape(''.join(labels))}]"
    marked = rf"[(\[{{]\s?({any_label})\s?[)\]}}]|(?<![\w'.])({any_label})[)\]]|(?:^|(?<=\n))({any_label})[.:](?!\w)"
    named = rf"|\b(?i:option|choice|letter|answer|pick|choose|select)\s({upper})(?![\w'])"
    # A capital A is also an article: it names a choice only where no noun can follow.
    bare = rf"(?<![\w'])(?!A\b(?! ?(?:[).:,;!?/&]|$|and\b|or\b|is\b)))({upper})(?![\w'])"
    return ChoiceReader(known, phrases, re.compile(marked + named), re.compile(bare, re.MULTILINE))


def read_answer(choices: ChoiceReader, text: str) -> int | None:
    """Index of the choice that an answer names, None where it names none or several.

    Where it states its answer (`the answer is B`, a line that is `B`, a box), the last statement decides.
    """
    plain = readable(text)
    named = named_by_label(choices, plain) or named_by_text(choices, plain)
    return named.pop() if len(named) == 1 else None


def readable(text: str) -> str:
    """The end of an answer, cleaned, without markup and without the labels that it says are *not* right."""
    end = say.TABLE.sub(r"\nAnswer: \1\n", say.STRUCK.sub(" ", text.strip()[-READ_CHARS:]))
    bold = say.BOLD_LINE.findall(end)
    if len(bold) == 1 and say.LABEL_LINE.search(end):  # the one of a list that is set off
        end = end.replace(bold[0], f"{bold[0]} ✅")
    end = say.TAGS.sub(" ", say.LATEX.sub(r"\1", say.BOXED.sub(r"\nAnswer: \1\n", end)))
    end = say.NUMBER_SIGN.sub(r"number \1", end)
    plain = say.latin(cleaned(say.XML_VALUE.sub(r"Answer: \1", end).translate(say.MARKUP)))
    plain = say.NEXT_TO_CJK.sub(lambda match: f" {match[1] or match[2]} ", plain)
    return say.NEGATED.sub(" ", say.ASKED.sub(" ", say.NOT_BUT.sub("Answer: ", plain)))


def named_by_label(choices: ChoiceReader, plain: str) -> set[int]:
    """The choices a readable answer names by label: `B`, `the answer is B`, `B) ...`, `B because ...`, `option B`."""
    alone = choices.labels.get(_PREFIX.sub("", _normal(plain)))
    if alone is not None:
        return {alone}
    plain = _by_letter(choices, plain[_taken_back(plain) :])
    stated = _last_stated(choices, plain) or _ticked(choices, plain)
    if stated or choices.letters is None or choices.bare is None:
        return stated
    plain = _without_false(choices, plain)
    marked = {_label_index(choices, match) for match in choices.letters.finditer(plain)}
    bare = {_label_index(choices, match) for match in choices.bare.finditer(plain)}
    lead = say.LEAD.match(plain)
    if lead is not None and lead[1] in map(str.upper, choices.labels) and _leads(choices, plain, lead):
        return {choices.labels[lead[1].casefold()]}
    if not marked and lead is not None and lead[1].casefold() in choices.labels:
        marked = {choices.labels[lead[1].casefold()]}
    if not marked and len(bare) == 1 and say.HEDGES.union(choices.labels).issuperset(_words(plain)):
        marked = bare
    if len(marked) != 1 or not _is_chosen(choices, plain):
        return marked if len(marked) != 1 else set()
    said = text_after_label(choices, plain)
    if said is None:
        return marked | bare
    return marked | {said}


def _by_letter(choices: ChoiceReader, plain: str) -> str:
    """A readable answer with choices that it names by their place (`the second option`) named by their letters."""
    letters = [label.upper() for label in choices.labels]
    if choices.letters is None or any(letter.isdigit() for letter in letters):
        return plain
    if _numeric(choices):
        return plain

    def named(match: re.Match[str]) -> str:
        which, number = match["which"], match["number"]
        last = which is not None and which.casefold() == "last"
        place = len(letters) - 1 if last else say.NUMBERS[(which or number).casefold()]
        return f"option {letters[place]}" if place < len(letters) else match[0]

    def alone(match: re.Match[str]) -> str:
        place = len(letters) - 1 if match[2].casefold() == "last" else say.NUMBERS[match[2].casefold()]
        return f"{match[1]}option {letters[place]}" if place < len(letters) else match[0]

    return say.ORDINAL_ALONE.sub(alone, say.NUMBERED.sub(named, plain))


def _numeric(choices: ChoiceReader) -> bool:
    """Whether a choice says a number, so that one in an answer is no place."""
    return any(word in say.NUMBERS for phrase in choices.phrases for word in phrase.split())


def _taken_back(plain: str) -> int:
    """Where what an answer takes back ends; 0 where it takes back nothing."""
    return max((match.end() for match in say.RETRACTED.finditer(plain)), default=0)


def _leads(choices: ChoiceReader, plain: str, lead: re.Match[str]) -> bool:
    """Whether an answer begins with its letter and names others only in what it says of it (`C; D would be colder`)."""
    assert choices.bare is not None
    assert choices.letters is not None
    if plain[lead.end() : lead.end() + 2].strip()[:1] not in (",", ";", ":", "–", "-", "—"):  # noqa: RUF001
        return False
    rest = plain[lead.end() + 1 :].lstrip(" ,;:–—-")  # noqa: RUF001
    others = [match for match in choices.bare.finditer(rest) if match[1] != lead[1]]
    listed = any(re.match(r"\s?(?:[.):/&]|,? ?(?:and|or)\b|,|$)", rest[match.end() :]) for match in others[:1])
    marked = any(
        _label_index(choices, match) != choices.labels[lead[1].casefold()] for match in choices.letters.finditer(rest)
    )
    verdict = say.IN_A_ROW.match(plain) or say.VERDICT.match(plain)
    return not marked and not verdict and not (listed and others[0].start() == 0) and not any(
        rest[match.end() :][:1] in (".", ")", ":") and match.end() < len(rest) - 1 for match in others
    )  # fmt: skip


def _is_chosen(choices: ChoiceReader, plain: str) -> bool:
    """Whether a letter stands anywhere but where it names something else (`Plan B`) or is only looked at."""
    assert choices.bare is not None
    own = any(_normal(match[0]) in choices.phrases for match in say.NO_CHOICE.finditer(plain))
    left = plain if own else say.NO_CHOICE.sub(" ", plain)
    return left == plain or choices.bare.search(left.upper()) is not None


def _without_false(choices: ChoiceReader, plain: str) -> str:
    """A readable answer without the lines that call a choice false, but for a choice that says just that."""

    def kept(match: re.Match[str]) -> str:
        return match[0] if match["yes"] or text_after_label(choices, match[0]) is not None else " "

    return say.IN_A_ROW.sub(kept, say.VERDICT.sub(kept, plain))


def text_after_label(choices: ChoiceReader, plain: str) -> int | None:
    """The choice whose text stands alone behind a label, whatever the label: `C) the text of B` gives B."""
    return choices.phrases.get(_phrase(_EDGES.sub("", plain)[1:]))


def named_by_text(choices: ChoiceReader, plain: str) -> set[int]:
    """The choices whose text is the whole of a readable answer, or stands in it where it is short."""
    words = _words(_CONCEDED.sub("", plain))
    whole = choices.phrases.get(_without_article(words))
    if whole is not None:
        return {whole}
    padded = f" {' '.join(words)} "
    room = len(words) - _SHORT_WORDS
    inside = [said for said in choices.phrases if f" {said} " in padded and said.count(" ") + 1 >= room]
    inside = [said for said in inside if f" {said} " in _without_negated(padded, said)]
    return {
        choices.phrases[said]
        for said in inside
        if not any(f" {said} " in f" {other} " for other in inside if other != said)
    }


def _last_stated(choices: ChoiceReader, plain: str) -> set[int]:
    """The choices of the last statement; of two that follow each other with nothing between, both.

    A line that is a label alone states it, and so does one that corrects another (`A. No, wait: B`); what is supposed
    (`if the answer were C`) or said of others states nothing.
    """
    last: set[int] = set()
    until = len(plain)
    for start, end, named in sorted(_statements(choices, plain), key=lambda one: (*one[:2], sorted(one[2]))):
        if not named:
            continue
        again = "\n" in plain[until:start] and say.STATED.match(plain, start) is not None
        apart = not last or again or not say.JOINS.issuperset(_words(plain[until:start]))
        last = set(named) if apart else last | named
        until = end if apart else max(end, until)
    return last


def _ticked(choices: ChoiceReader, plain: str) -> set[int]:
    """The one choice of a list of verdicts that is said to be right (`A: false`, `B: true`)."""
    verdicts = {
        choices.labels[match[1].casefold()]: match["yes"] is not None
        for match in (*say.VERDICT.finditer(plain), *say.FLAGS.finditer(plain))
        if match[1].casefold() in choices.labels
    }
    signed = any(match["yes"] in _TICKS for match in say.VERDICT.finditer(plain) if match["yes"])
    for pattern, letter in ((say.IN_A_ROW, 1), (say.SIGNED, 2)):
        found = list(pattern.finditer(plain))
        if len(found) > max(1, len(verdicts)) and (letter == 1 or plain.lstrip()[0] in say.SIGNS):
            verdicts = {choices.labels.get(match[letter].casefold(), -1): match["yes"] is not None for match in found}
    right = {index for index, yes in verdicts.items() if yes and index >= 0}
    return right if (len(verdicts) > 1 or signed) and len(right) == 1 else set()


def _statements(choices: ChoiceReader, plain: str) -> Iterator[tuple[int, int, frozenset[int]]]:
    """Where each statement begins and ends, and the choices that it names."""
    for match in (*say.STATED.finditer(plain), *say.ABROAD.finditer(plain)):
        if _is_supposed(plain, match.start()):
            continue
        rest = plain[match.end() : match.end() + 400].partition("\n")[0]
        shown = rest.lstrip("([{<\"' :「『：")  # noqa: RUF001
        named, length = _named_at(choices, shown)
        yield match.start(), match.end() + len(rest) - len(shown) + length, frozenset(named)
    for pattern in (say.SETTLED, say.CORRECTED, say.CALLED_RIGHT, say.REVISED, *_UNSUPPOSED):
        for match in pattern.finditer(plain):
            index = choices.labels.get(match[1].casefold())
            supposed = pattern not in _UNSUPPOSED and _is_supposed(
                plain, match.start(1) if match[0][:3].casefold() == "but" else match.start()
            )
            if index is not None and not supposed:
                yield match.start(1), match.end(), frozenset((index,))
    lines = [
        (match, choices.labels[match[1].casefold()])
        for match in say.LINE.finditer(plain)
        if match[1].casefold() in choices.labels
    ]
    said = [(match, index) for match, index in lines if choices.phrases.get(_phrase(match[2])) == index]
    listed = len({index for _, index in said}) > 1  # the choices, repeated
    alone = [(match, index) for match, index in lines if not match[2].strip()]
    if listed:  # the last of them again is the answer
        said = [
            one for at, one in enumerate(said) if at == len(said) - 1 and one[1] in [index for _, index in said[:at]]
        ]
    for match, index in alone + said:
        yield match.start(), match.end(), frozenset((index,))


def _is_supposed(plain: str, at: int) -> bool:
    """Whether what stands before a statement makes it one that is only supposed."""
    return say.SUPPOSED.search(plain[:at][-60:]) is not None


def _named_at(choices: ChoiceReader, rest: str) -> tuple[set[int], int]:
    """The choices that a text begins with, by letter or by what they say, and how far that goes."""
    found: set[int] = set()
    if choices.letters is not None and not say.ARTICLE.match(rest):
        letters = say.LETTER_LIST.match(rest)
        named = {choices.labels.get(letter.casefold()) for letter in letters.groups("")} if letters else set()
        found |= {index for index in named if index is not None}
        if letters and found:
            return found, letters.end()
        number = say.STATED_NUMBER.match(rest)
        if number is not None and not _numeric(choices):
            place = say.NUMBERS[number["number"].casefold()]
            return ({place} if place < len(choices.labels) else set()), number.end()
    words = _words(rest)
    spoken = f"{' '.join(words)} "
    shorter = f"{_without_article(words)} "
    leading = [said for said in choices.phrases if spoken.startswith(f"{said} ") or shorter.startswith(f"{said} ")]
    if leading:
        said = max(leading, key=len)
        return {choices.phrases[said]}, min(len(rest), len(said))
    return found, 0


def _without_negated(padded: str, said: str) -> str:
    for negation in _NEGATIONS:
        padded = padded.replace(f"{negation}{said} ", " ")
    return padded


def _label_index(choices: ChoiceReader, match: re.Match[str]) -> int:
    return choices.labels[next(group for group in match.groups() if group).casefold()]


def _words(text: str) -> list[str]:
    """In lower case and without accents."""
    if not text.isascii():
        text = "".join(one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))
    return _WORD.findall(text.casefold())


def _normal(text: str) -> str:
    """One word form for labels: case, punctuation, underscores and hyphens do not matter."""
    return " ".join(_words(text))


def _phrase(text: str) -> str:
    """The same for a choice's text, without an article or possessive in front."""
    return _without_article(_words(cleaned(text)))


def _without_article(words: list[str]) -> str:
    return " ".join(words[1:] if len(words) > 1 and words[0] in _DETERMINERS else words)


_PREFIX = re.compile(r"^(?:option|choice|alternative|letter|answer) ")
_TICKS = tuple("✓✔✅☑")
_CONCEDED = re.compile(r"^(?:although|though|while|even though|despite|whereas)\b[^,\n]{1,80},", re.IGNORECASE)
_UNSUPPOSED = (say.ALONE_AT_END, say.QUESTION_AND_ANSWER, say.TICKED_BOX, say.ABROAD_ALONE, say.BECAUSE)
"""Patterns of a letter that stands by itself."""
_NEGATIONS = (
    " not ", " not a ", " not the ", " isn t ", " isn t a ", " isn t the ", " wasn t ", " wasn t the ", " than ",
    " nor ", " rather than ", " rather than the ", " instead of ", " instead of the ",
)  # fmt: skip
_DETERMINERS = frozenset(["a", "an", "the", "my", "our", "his", "her", "their"])
