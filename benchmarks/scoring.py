"""ROUGE-L against the rouge-score package in one run: equal values, how many times faster; then every scorer's rate.

    python benchmarks/scoring.py [PAIRS]

Needs the `reference` extra. CPU seconds are counted, so a busy neighbour does not change the ratio much.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Sequence

from rouge_score import rouge_scorer

from quantverdict.grading.base import rouge_l
from quantverdict.grading.grade import grade_responses
from quantverdict.records import Response
from quantverdict.tasks.catalog import Task, builtin_tasks, load_task

ANSWERS = 3000


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def pairs(count: int, builds: int) -> list[tuple[str, str]]:
    """Answers of up to 200 words, one a build to a reference of up to 60, in overlapping words."""
    draw = random.Random(42)
    words = [f"w{n}" for n in range(300)] + ["the", "of", "a", "Don't", "naïve", "3.14", "—"]
    text = lambda most: " ".join(draw.choices(words, k=draw.randint(0, most)))  # noqa: E731
    references = [text(60) for _ in range(-(-count // builds))]
    return [(text(200), references[number % len(references)]) for number in range(count)]


def compare_rouge(cases: Sequence[tuple[str, str]]) -> dict[str, float | int]:
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    ours: list[float] = []
    theirs: list[float] = []
    fast = cpu_seconds(lambda: ours.extend(rouge_l(answer, reference) for answer, reference in cases))
    slow = cpu_seconds(
        lambda: theirs.extend(scorer.score(reference, answer)["rougeL"].fmeasure for answer, reference in cases)
    )
    different = sum(a != b for a, b in zip(ours, theirs, strict=True))
    return {
        "pairs": len(cases),
        "different": different,
        "quantverdict_per_s": round(len(cases) / fast),
        "rouge_score_per_s": round(len(cases) / slow),
        "ratio": round(slow / fast, 1),
    }


def answers(task: Task, draw: random.Random) -> list[Response]:
    """Half the items' own words as answers, half long ones that no scorer can decide at a glance."""
    long = "This is a longer answer that goes on for some time, says little, and does not name one of the choices. " * 5
    texts = [long, "I'm sorry, but I can't help with that.", "The answer is B.", "B", "Unknown"]
    return [
        Response("m", "q", task.name, item.id, "", draw.choice([item.reference or long, *texts]), "stop", 1, 50)
        for item in draw.choices(task.items, k=ANSWERS)
    ]


def rates() -> dict[str, int]:
    """Answers graded a CPU second, by built-in task."""
    found = {}
    for name in builtin_tasks():
        task = load_task(name)
        responses = answers(task, random.Random(42))
        seconds = cpu_seconds(lambda: list(grade_responses({task.name: task}, responses)))  # noqa: B023
        found[name] = round(ANSWERS / seconds)
    return found


if __name__ == "__main__":
    asked = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    # A study of seven builds shares its references; a single build has one for every answer.
    rouge = {f"rouge_l, {builds} builds": compare_rouge(pairs(asked, builds)) for builds in (7, 1)}
    print(json.dumps({**rouge, "answers_per_cpu_second": rates()}, indent=2))
    sys.exit(1 if any(one["different"] for one in rouge.values()) else 0)
