"""Trains the refusal classifier of the package, and compares it with the pattern.

    python benchmarks/refusal_classifier.py train [--folds 5] [--keep]
    python benchmarks/refusal_classifier.py compare [ANSWERS.jsonl ...]

Needs scikit-learn and SciPy beside the package (`pip install scikit-learn`); nothing else does. `train` reads
`benchmarks/refusal/train-*.jsonl` (prompt, answer, label, kind, language, a line each), prints how it does on answers
to prompts that a fold left out, and writes the weights into the package, unless `--keep` keeps those that are there.
`compare` prints kappa, sensitivity and specificity of pattern, classifier and both together, and answers a second.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantverdict.grading import refusal_classifier as rc
from quantverdict.grading.answer import read_answer
from quantverdict.grading.base import cleaned
from quantverdict.grading.refusal import detect_refusal

HERE = Path(__file__).parent
TRAINING = HERE / "refusal"
TESTS = HERE.parent / "tests" / "data" / "refusal_answers.jsonl"
STRENGTH = {"refuses": 3.0, "partly": 3.0}
"""C of the two regressions."""
SHAPE_WEIGHT = 2.0
"""Features of the shape are few, and count double."""
PATTERN_WEIGHTS = (1.0, 1.5, 2.0)
"""Tried on held-out scores. Never 0, though 0 does as well there: models that people labelled refuse in set phrases,
which the pattern knows, more often than our answers do."""
LEAST_ANSWERS = 5
STEPS = 15
"""Of an int8 as many are used, up and down; finer ones change no label and make the file larger."""
MOST_WEIGHT = 4.0
"""Of an answer whose like is rare for its kind of prompt."""
WRITTEN = ("full", "partial")


def read(*files: Path) -> list[dict[str, str]]:
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines() if line]


def opened(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Each answer as it was written, and once more out of its wrapper where it stands in one."""
    read_rows = [(row, read_answer(row["answer"]).content) for row in rows]
    return [*rows, *(row | {"answer": content} for row, content in read_rows if content not in ("", row["answer"]))]


def training_files() -> list[Path]:
    return sorted(TRAINING.glob("train-*.jsonl"))


def matrix(rows: Sequence[dict[str, str]]) -> Any:
    """A row an answer: of each block how often a feature comes, over the root of how many come."""
    from scipy import sparse

    parts: list[list[Any]] = [[] for _ in rc.BLOCKS]
    for start in range(0, len(rows), rc.AT_ONCE):
        found = rc.features([(row["prompt"], row["answer"]) for row in rows[start : start + rc.AT_ONCE]])
        for part, (answers, places), bits in zip(parts, found.blocks, rc.BLOCKS.values(), strict=True):
            part.append(sparse.csr_matrix((np.ones(len(answers)), (answers, places)), shape=(found.n, 1 << bits)))
    wholes = []
    for name, part in zip(rc.BLOCKS, parts, strict=True):
        counts = sparse.vstack(part).tocsr()
        roots = np.sqrt(np.maximum(1, np.asarray(counts.sum(axis=1)).ravel()))
        wholes.append(sparse.diags((SHAPE_WEIGHT if name == "shape" else 1.0) / roots) @ counts)
    return sparse.hstack(wholes).tocsr()


def balance(rows: Sequence[dict[str, str]], refused: np.ndarray) -> np.ndarray:
    """Weights of answers by which refusals and answers weigh the same whatever kind of thing the prompts ask for.

    Without them the classifier would learn that a harmless prompt is answered, and miss a refusal of it.
    """
    asked = [tuple(rc._wants(cleaned(row["prompt"]).lower())) for row in rows]
    kinds = np.array([f"{7 in one} {bool({1, 2, 3, 4, 5} & set(one))} {31 in one}" for one in asked])
    weights = np.ones(len(rows))
    for kind in np.unique(kinds):
        mine = kinds == kind
        for side in (refused, ~refused):
            weights[mine & side] = min(MOST_WEIGHT, max(1.0, mine.sum() / 2 / max(1, (mine & side).sum())))
    return weights


def fit(found: Any, wanted: np.ndarray, strength: float, weights: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """Weights and intercept of a logistic regression on features weighted by how rare they are.

    What fewer than `LEAST_ANSWERS` have is left out: it teaches little, and the file is a third of the size.
    """
    from scipy import sparse
    from sklearn.linear_model import LogisticRegression

    counts = np.asarray((found > 0).sum(axis=0)).ravel()
    rarity = (np.log((len(wanted) + 1) / (counts + 1)) + 1) * (counts >= LEAST_ANSWERS)
    model = LogisticRegression(
        C=strength, solver="liblinear", dual=True, intercept_scaling=5.0, max_iter=5000, tol=1e-3, random_state=0
    ).fit(found @ sparse.diags(rarity), wanted, weights)
    return model.coef_[0] * rarity, float(model.intercept_[0])


def held_out(
    found: Any, wanted: np.ndarray, groups: np.ndarray, strength: float, folds: int, answer_weights: np.ndarray
) -> np.ndarray:
    """Each answer's score by a model that has not seen its prompt."""
    from sklearn.model_selection import GroupKFold

    scores = np.zeros(len(wanted))
    for train, test in GroupKFold(folds, shuffle=True, random_state=0).split(found, wanted, groups):
        weights, intercept = fit(found[train], wanted[train], strength, answer_weights[train])
        scores[test] = found[test] @ weights + intercept
    return scores


def whole_numbers(weights: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Weights as int8, with what a step is worth in each block; a block's few largest are cut off."""
    values, scales, start = np.zeros(len(weights), dtype=np.int8), [], 0
    for name, bits in rc.BLOCKS.items():
        block = weights[start : start + (1 << bits)]
        step = float(np.quantile(np.abs(block[block != 0]), 0.999)) / STEPS if block.any() else 1.0
        values[start : start + (1 << bits)] = np.clip(np.rint(block / step), -2 * STEPS, 2 * STEPS)
        scales.append(step * (SHAPE_WEIGHT if name == "shape" else 1.0))
        start += 1 << bits
    return values, scales


def train(folds: int, *, keep: bool) -> None:
    files = training_files()
    rows = opened(read(*files))
    refused = np.array([row["label"] in WRITTEN for row in rows])
    partly = np.array([row["label"] == "partial" for row in rows])
    groups = np.unique([row["prompt"] for row in rows], return_inverse=True)[1]
    found = matrix(rows)
    balanced = balance(rows, refused)
    scores = held_out(found, refused, groups, STRENGTH["refuses"], folds, balanced)
    by_pattern = np.array([bool(detect_refusal(row["answer"]).refused) for row in rows])
    pattern_weight, threshold = combined(scores, by_pattern, refused)
    print(f"learned on held-out scores: pattern weight {pattern_weight}, threshold {threshold}")
    scores -= threshold
    both = scores + pattern_weight * by_pattern
    part_scores = np.zeros(len(rows))
    part_scores[refused] = held_out(
        found[refused], partly[refused], groups[refused], STRENGTH["partly"], folds, np.ones(refused.sum())
    )
    cut = best_threshold(part_scores[refused], partly[refused])
    written = f"{len(read(*files))} answers, {len(rows)} with those out of a wrapper"
    print(f"{written}; {refused.sum()} refuse ({partly.sum()} in part), {len(set(groups))} prompts")
    print("held out by prompt:")
    for name, said in (("pattern", by_pattern), ("classifier", scores > 0), ("both", both > 0)):
        print(f"  {name:10} {agreement(refused, said)}")
    table(rows, refused, both > 0)
    three = np.where(both <= 0, 0, np.where(part_scores > cut, 1, 2))
    print(f"full, partial, none told apart: kappa {kappa(np.where(refused, np.where(partly, 1, 2), 0), three):.3f}")
    if keep:
        return
    learned = [
        fit(found, refused, STRENGTH["refuses"], balanced),
        fit(found[refused], partly[refused], STRENGTH["partly"]),
    ]
    numbers = [whole_numbers(weights) for weights, _ in learned]
    about = {
        "scales": [scales for _, scales in numbers],
        "intercepts": [learned[0][1] - threshold, learned[1][1] - cut],
        "pattern_weight": pattern_weight,
        "training": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        | {rc.WORDS: hashlib.sha256(words_file().read_bytes()).hexdigest()},
    }
    target = words_file().with_name(rc.WEIGHTS)
    np.savez_compressed(target, values=np.stack([values for values, _ in numbers]), about=np.array(json.dumps(about)))
    rc.stored_weights.cache_clear()
    print(f"{target.name}: {target.stat().st_size / 1000:.1f} kB")
    exact = found @ learned[0][0] + learned[0][1] - threshold
    pairs = [(row["prompt"], row["answer"]) for row in rows]
    stored = np.log([(one + 1e-9) / (1 - one + 1e-9) for one in rc.classifier_probabilities(pairs)])
    print(f"int8 changes {np.sum((exact > 0) != (stored > 0))} of {len(rows)} labels")


def words_file() -> Path:
    return Path(rc.__file__).with_name(rc.WORDS)


def combined(scores: np.ndarray, by_pattern: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """What a refusal by pattern adds to a held-out score, and above which score an answer refuses: where kappa is best.

    Of those that do as well (within 0.01) the one with the fewest false refusals, each of which hides a lost one.
    """
    tried = [(weight, cut) for weight in PATTERN_WEIGHTS for cut in np.linspace(-1, 1, 41).round(2).tolist()]
    said = [scores + weight * by_pattern > cut for weight, cut in tried]
    reached = [kappa(wanted, one) for one in said]
    good = [place for place, value in enumerate(reached) if value >= max(reached) - 0.01]
    return tried[min(good, key=lambda place: int((said[place] & ~wanted).sum()))]


def best_threshold(scores: np.ndarray, wanted: np.ndarray) -> float:
    """Where kappa is highest, the middle of the best."""
    tried = np.linspace(-4, 2, 61)
    reached = np.array([kappa(wanted, scores > one) for one in tried])
    return float(np.median(tried[reached >= reached.max() - 1e-9]))


# Agreement


def kappa(truth: np.ndarray, said: np.ndarray) -> float:
    """Cohen's."""
    labels = np.unique(np.concatenate([truth, said]))
    chance = sum(np.mean(truth == one) * np.mean(said == one) for one in labels)
    return float((np.mean(truth == said) - chance) / (1 - chance)) if chance < 1 else float("nan")


def agreement(truth: np.ndarray, said: np.ndarray) -> str:
    right, wrong = said & truth, said & ~truth
    return (
        f"kappa {kappa(truth, said):.3f}, sensitivity {right.sum() / truth.sum():.3f}, "
        f"specificity {1 - wrong.sum() / (~truth).sum():.3f} "
        f"(refused: {right.sum()} seen, {(truth & ~said).sum()} missed; "
        f"answered: {(~truth & ~said).sum()} seen, {wrong.sum()} taken for refusals)"
    )


def table(rows: Sequence[dict[str, str]], truth: np.ndarray, said: np.ndarray) -> None:
    for by in ("style", "kind", "language"):
        names = sorted({row[by] for row in rows if by in row})
        if not names:
            continue
        parts = []
        for name in names:
            mask = np.array([row.get(by) == name for row in rows])
            right = np.mean(truth[mask] == said[mask])
            both = len(set(truth[mask])) > 1
            parts.append(
                f"{name} {mask.sum()}: {right:.2f}" + (f" (kappa {kappa(truth[mask], said[mask]):.2f})" if both else "")
            )
        print(f"  by {by}: " + "; ".join(parts))


def difference(truth: np.ndarray, first: np.ndarray, second: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """Kappa of the second minus that of the first: the value, and the lower 95 % limit by the bootstrap."""
    random = np.random.default_rng(0)
    drawn = [kappa(truth[one], second[one]) - kappa(truth[one], first[one])
             for one in random.integers(0, len(truth), (draws, len(truth)))]  # fmt: skip
    return kappa(truth, second) - kappa(truth, first), float(np.quantile(drawn, 0.025))


def compare(files: Sequence[Path]) -> None:
    for file in files:
        rows = read(file)
        pairs = [(row["prompt"], row["answer"]) for row in rows]
        truth = np.array([row["label"] in WRITTEN for row in rows])
        said: dict[str, np.ndarray] = {}
        print(f"{file.name}: {len(rows)} answers of {np.mean([len(row['answer']) for row in rows]):.0f} characters")
        for name, instrument in INSTRUMENTS.items():
            instrument(pairs[:1])  # what is read once is read now
            begun = time.process_time()
            said[name] = np.array(instrument(pairs))
            speed = len(rows) / (time.process_time() - begun)
            print(f"{name}: {agreement(truth, said[name])}; {speed:,.0f} answers a CPU second")
            table(rows, truth, said[name])
        short = [pair for pair in pairs if len(pair[1]) <= SHORT]
        begun = time.process_time()
        rc.read_refusals(short)
        speed = len(short) / (time.process_time() - begun)
        length = np.mean([len(answer) for _, answer in short])
        print(f"both, {len(short)} answers of {length:.0f} characters: {speed:,.0f} a CPU second")
        gain, least = difference(truth, said["pattern"], said["both"])
        print(f"kappa of both minus that of the pattern: {gain:.3f}, lower 95 % limit {least:.3f}")
        whole = np.array([row["label"] != "partial" for row in rows])
        for name in INSTRUMENTS:
            print(f"without partial refusals, {name}: {agreement(truth[whole], said[name][whole])}")
        labels = [one.label for one in rc.read_refusals(pairs)]
        shown = (*WRITTEN, "none", "unclear")
        for wanted in (*WRITTEN, "none"):
            seen = [label for row, label in zip(rows, labels, strict=True) if row["label"] == wanted]
            print(f"  {wanted}: " + ", ".join(f"{label} {seen.count(label)}" for label in shown))


SHORT = 220
"""Characters; answers up to this many have some 110 on average."""
INSTRUMENTS: dict[str, Callable[[Sequence[rc.Pair]], list[bool]]] = {
    "pattern": lambda pairs: [bool(detect_refusal(answer).refused) for _, answer in pairs],
    "classifier": lambda pairs: [one > 0.5 for one in rc.classifier_probabilities(pairs)],
    "both": lambda pairs: [one.label in WRITTEN for one in rc.read_refusals(pairs)],
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = options.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("--folds", type=int, default=5)
    training.add_argument("--keep", action="store_true")
    comparing = commands.add_parser("compare")
    comparing.add_argument("files", type=Path, nargs="*", default=[TESTS])
    chosen = options.parse_args()
    if chosen.command == "train":
        train(chosen.folds, keep=chosen.keep)
    else:
        compare(chosen.files)


if __name__ == "__main__":
    main()
