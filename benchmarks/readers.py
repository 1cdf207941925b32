"""How well the readers of choices, truth and bias read answers of our own writing: confusion tables by kind.

`python benchmarks/readers.py` reads the answers of `tests/data/choice_answers.jsonl` and its siblings for truth and
bias; `--wrong` names each answer that is read as something else than it says, and `--kinds` counts them by kind.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from quantverdict.grading.answer import answer_of
from quantverdict.grading.bias import bias_resistance
from quantverdict.grading.choice import read_answer, reader
from quantverdict.grading.truth import truthfulness
from quantverdict.records import Response

DATA = Path(__file__).parents[1] / "tests" / "data"
Row = dict[str, Any]


def rows_of(name: str) -> list[Row]:
    """The labelled answers of a test set; none where it is not there."""
    path = DATA / f"{name}_answers.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def choices_read(row: Row) -> tuple[str, str]:
    """What an answer to a multiple choice says, and what is read."""
    labels, texts = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(row["choices"])]), tuple(row["choices"])
    answer = answer_of(Response("m", "q", "t", "1", "0" * 64, row["answer"], "stop", 1, 1))
    found = read_answer(reader(labels, texts), answer.content or answer.text)
    return row["right"] or "none", "none" if found is None else labels[found]


def truth_read(row: Row) -> tuple[str, str]:
    """True, false or neither."""
    names = {1: "true", 0: "false", 0.5: "neither"}
    return names[row["label"]], names[truthfulness(row["answer"], row["correct"], row["incorrect"])]


BIAS = {"unknown": "resists", "other": "resists", "stereotype": "stereotype", "none": "ungraded"}


def bias_read(row: Row) -> tuple[str, str]:
    """Whether the answer resists the stereotype; None is ungraded."""
    found = bias_resistance(row["answer"], tuple(row["choices"]), row["unknown"], row["stereotype"]).value
    return BIAS[row["label"]], {1.0: "resists", 0.0: "stereotype", None: "ungraded"}[found]


READERS: dict[str, Callable[[Row], tuple[str, str]]] = {
    "choice": choices_read, "truth": truth_read, "truth_later": truth_read, "bias": bias_read,
}  # fmt: skip


def table(pairs: list[tuple[str, str]]) -> Iterator[str]:
    """A confusion table in Markdown: a row for what answers say, a column for what is read."""
    names = sorted({name for pair in pairs for name in pair})
    counts = Counter(pairs)
    yield f"| says \\ read as | {' | '.join(names)} |"
    yield f"| --- |{' ---: |' * len(names)}"
    for said in names:
        yield f"| {said} | {' | '.join(str(counts[said, read]) for read in names)} |"


def main(options: list[str]) -> None:
    """Print a table for each reader."""
    for name, read in READERS.items():
        rows = rows_of(name)
        pairs = [read(row) for row in rows]
        right = sum(said == found for said, found in pairs)
        none = sum(said != found and found in ("none", "ungraded") for said, found in pairs)
        print(f"\n{name}: {right} of {len(rows)} right, {none} not read, {len(rows) - right - none} wrong")
        if name == "choice":
            pairs = [("none" if said == "none" else "a choice", "right" if said == found else found and (
                "none" if found == "none" else "wrong")) for said, found in pairs]  # fmt: skip
        print("\n".join(table(pairs)))
        if "--kinds" in options:
            missed = Counter(row.get("kind") or row["style"] for row in rows if len(set(read(row))) > 1)
            print("missed by kind:", dict(missed))
        if "--wrong" in options:
            for row in rows:
                said, found = read(row)
                if said != found:
                    print(f"  {row.get('kind') or row['style']}: {row['answer']!r}: says {said}, read as {found}")


if __name__ == "__main__":
    main(sys.argv[1:])
