"""Which answers a person labels: every discordant pair whole, then prompts drawn at random with known probabilities.

A prompt is drawn for all builds of a base model at once, within the baseline's own label. A build that does not differ
there from its baseline has the same label, so that each build's answers are drawn within build and label; and both arms
of a pair are drawn together, which is what its difference needs.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from quantverdict.records import CellId

AT_LEAST = 4
"""Prompts drawn of each stratum: with fewer, intervals cover less than they say."""

NO_BASELINE = "without a baseline"


class Prompted(NamedTuple):
    """A question, whoever answers it."""

    task: str
    sample_id: str


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer that can be labelled.

    Attributes:
        baseline: the cell that its own is compared with; its own for a baseline.
        metric: the rate that it counts in.
        cluster: of its prompt, None where it has none.
        said: what each instrument said, as text; blank where it said nothing.
        text: the id of question, prompt and answer: equal texts share it.
    """

    cell: CellId
    baseline: CellId
    prompt: Prompted
    metric: str
    cluster: str | None
    said: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Drawn:
    """What was settled about an answer before anybody labelled it.

    Attributes:
        stratum: answers of a cell that share it are alike in all that was known.
        certain: its text is on the sheet whatever is drawn.
        selected: it counts where its text is labelled.
        probability: with which it was selected.
    """

    answer: Answered
    stratum: str
    certain: bool
    selected: bool
    probability: Fraction


def keyed(seed: int, *parts: str) -> str:
    """A hash that nobody makes without the seed: the order of rows and of draws, and the ids of rows."""
    message = "\0".join(f"{len(part)}:{part}" for part in parts).encode("utf-8", "surrogatepass")
    return hmac.new(f"labels/{seed}".encode(), message, hashlib.sha256).hexdigest()


def draw(answers: Sequence[Answered], rows: int, seed: int) -> tuple[Drawn, ...]:
    """Settle what is labelled.

    Args:
        answers: every one that could be.
        rows: about how many rows the random sample gives, besides the discordant pairs.
        seed: of the draws.

    Returns:
        One entry an answer, in their order.
    """
    at = {(answer.cell, answer.prompt, answer.metric): answer for answer in answers}
    certain = set(_discordant_texts(answers, at))
    prompts = _by_prompt([answer for answer in answers if answer.text not in certain], at)
    probability = _chosen(prompts, rows, seed)
    drawn = []
    for answer in answers:
        if answer.text in certain:
            drawn.append(Drawn(answer, f"certain {_told(answer.said)}", True, True, Fraction(1)))
        else:
            stratum = prompts[_group(answer)][answer.prompt].stratum
            chance, chosen = probability[(*_group(answer), stratum)]
            alike = f"{stratum} {_told(answer.said)}" if stratum == NO_BASELINE else stratum
            drawn.append(Drawn(answer, alike, False, answer.prompt in chosen, chance))
    return tuple(drawn)


def row_order(drawn: Iterable[Drawn], seed: int) -> list[str]:
    """The texts of the sheet: those of discordant pairs, then those drawn, each shuffled: no place tells a build."""
    selected = [entry for entry in drawn if entry.selected]
    certain = {entry.answer.text for entry in selected if entry.certain}
    texts = {entry.answer.text for entry in selected}
    return sorted(texts, key=lambda text: (text not in certain, keyed(seed, "row", text)))


@dataclass(slots=True)
class _Prompt:
    stratum: str
    texts: set[str]


_Group = tuple[str, str]


def _group(answer: Answered) -> _Group:
    return answer.cell.base_model, answer.metric


def _told(said: tuple[str, ...]) -> str:
    return "/".join(value or "ungraded" for value in said)


def _discordant_texts(
    answers: Iterable[Answered], at: Mapping[tuple[CellId, Prompted, str], Answered]
) -> Iterable[str]:
    """Both arms of every pair in which an instrument said something else of the build than of its baseline."""
    for answer in answers:
        other = at.get((answer.baseline, answer.prompt, answer.metric))
        if other is not None and other.said != answer.said:
            yield from (answer.text, other.text)


def _by_prompt(
    answers: Iterable[Answered], at: Mapping[tuple[CellId, Prompted, str], Answered]
) -> dict[_Group, dict[Prompted, _Prompt]]:
    """The prompts that are drawn from, with the texts that drawing each would put on the sheet."""
    found: dict[_Group, dict[Prompted, _Prompt]] = defaultdict(dict)
    for answer in answers:
        base = at.get((answer.baseline, answer.prompt, answer.metric))
        stratum = NO_BASELINE if base is None else _told(base.said)
        entry = found[_group(answer)].setdefault(answer.prompt, _Prompt(stratum, set()))
        entry.texts.add(answer.text)
    return found


def _chosen(
    prompts: Mapping[_Group, Mapping[Prompted, _Prompt]], rows: int, seed: int
) -> dict[tuple[str, str, str], tuple[Fraction, set[Prompted]]]:
    """By base model, metric and stratum: the share that is drawn, and the prompts that are.

    A prompt has one random number for all base models, so that texts that models share are drawn together.
    """
    every = sum(len(prompt.texts) for group in prompts.values() for prompt in group.values())
    rate = min(Fraction(1), Fraction(rows, every)) if every else Fraction(1)
    chosen = {}
    for group, members in prompts.items():
        sizes = Counter(prompt.stratum for prompt in members.values())
        for stratum, size in sizes.items():
            wanted = min(size, max(AT_LEAST, round(rate * size)))
            mine = [prompt for prompt, entry in members.items() if entry.stratum == stratum]
            first = sorted(mine, key=lambda prompt: keyed(seed, "draw", *prompt))[:wanted]
            chosen[*group, stratum] = Fraction(wanted, size), set(first)
    return chosen
