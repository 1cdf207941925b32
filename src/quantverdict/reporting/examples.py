"""A few prompts that a baseline refused and a build answered: shortened, never graded here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from urllib.parse import quote

from quantverdict.grading.answer import answer_of
from quantverdict.records import Response
from quantverdict.reporting import formats
from quantverdict.reporting.artefacts import BundleTables
from quantverdict.reporting.tables import verdict_group

SHOWN = 12
"""Examples in a report."""
PER_BUILD = 3
"""Examples of one build."""
LENGTH = 280
"""Characters of an answer that are shown."""


@dataclass(frozen=True, slots=True)
class ExampleAnswer:
    """A shortened answer, and where the whole of it is."""

    quant: str
    text: str
    file: str
    href: str


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt: what the baseline said, and what the build said."""

    model: str
    task: str
    sample_id: str
    prompt: str
    baseline: ExampleAnswer
    build: ExampleAnswer


Key = tuple[str, str, str, str]


def chosen(bundle: BundleTables, scores: Iterable[tuple[Key, float]]) -> list[tuple[Key, Key]]:
    """Pairs of (baseline, build) samples to show: those of rejected builds first, then of the others in study order.

    Args:
        scores: of refusals; 1 is refused, and 0 answered.
    """
    return list(islice(_chosen(bundle, scores), SHOWN))


def _chosen(bundle: BundleTables, scores: Iterable[tuple[Key, float]]) -> Iterator[tuple[Key, Key]]:
    refused: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for (base_model, build, task, sample_id), value in scores:
        refused.setdefault((base_model, build), {})[task, sample_id] = value
    cells = [cell for cell in bundle.cells if not cell.get("is_baseline") and not cell.get("twin_of")]
    baselines = {cell["base_model"]: cell["quant"] for cell in bundle.cells if cell.get("is_baseline")}
    for cell in sorted(cells, key=lambda cell: verdict_group(cell) != "reject"):
        model, quant = cell["base_model"], cell["quant"]
        base, mine = refused.get((model, baselines.get(model, "")), {}), refused.get((model, quant), {})
        lost = sorted(sample for sample, value in mine.items() if value == 0 and base.get(sample) == 1)
        for sample in lost[:PER_BUILD]:
            yield (model, baselines[model], *sample), (model, quant, *sample)


def examples(
    pairs: Iterable[tuple[Key, Key]], answers: Mapping[Key, Response], prompts: Mapping[Key, str]
) -> list[Example]:
    """The pairs of which both answers are kept, with the user's turn of each baseline's sample, where that is kept."""
    return [
        Example(
            formats.plain(base[0]), formats.plain(base[2]), formats.plain(base[3]), _short(prompts.get(base, "")),
            _answer(base, answers[base]), _answer(build, answers[build]),
        )
        for base, build in pairs
        if base in answers and build in answers
    ]  # fmt: skip


def _answer(key: Key, said: Response) -> ExampleAnswer:
    """The answer as it was graded: without reasoning and further turns."""
    name = f"responses/{key[0]}__{key[1]}.jsonl"
    return ExampleAnswer(formats.plain(key[1]), _short(answer_of(said).text), formats.plain(name), quote(name))


def _short(text: str) -> str:
    shown = " ".join(formats.plain(text[: LENGTH * 4]).split())
    return shown if len(shown) <= LENGTH else shown[: LENGTH - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
