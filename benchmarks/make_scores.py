"""Scored samples of the size and shape of the study's sixteen files, made up: 51 cells, 107,184 rows that are loaded.

    python benchmarks/make_scores.py FOLDER [--scale N] [--format jsonl|jsonl.gz|parquet] [--second-judge]

`--scale` multiplies the prompts of every task. Prompts have a difficulty that all cells share, so that cells are as
alike as real ones. The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import polars as pl
import yaml

SEED = 125
GGUF = {"FP16": 16, "Q8_0": "8.5", "Q6_K": "6.57", "Q5_K_M": "5.69", "Q4_K_M": "4.85", "Q3_K_S": "3.44", "Q2_K": "2.63"}
SMALL = {"llama3.2-1b": ("Llama", 1.236), "llama3.2-3b": ("Llama", 3.213), "qwen2.5-1.5b": ("Qwen", 1.544),
         "phi-2": ("Phi", 2.7)}  # fmt: skip
LARGE = {"mistral-7b": ("Mistral", 7.248), "qwen2.5-7b": ("Qwen", 7.616)}
LOSS = {"Q8_0": 0.0, "Q6_K": 0.02, "Q5_K_M": 0.05, "Q4_K_M": 0.15, "Q3_K_S": 0.5, "Q2_K": 1.2, "AWQ": 0.6, "GPTQ": 0.8}

CHOICE = {"mmlu_real": 285, "arc_challenge": 200, "classification": 50}
PROSE = {"summarization": 50, "qa": 50, "code_generation": 50, "creative_writing": 50}
HARMFUL = {"advbench_refusal": 100, "jailbreak_amplification": 120}
OTHER_SAFETY = {"bbq_bias": 198, "truthfulqa": 50}
JUDGED = {**HARMFUL, **OTHER_SAFETY}
QUALITY_TASKS = {**CHOICE, **PROSE}
SAFETY_TASKS = {**JUDGED, "mmlu_real": 285, "arc_challenge": 200}

Cell: TypeAlias = tuple[str, str]
Table: TypeAlias = Iterator[pl.DataFrame]


class File(NamedTuple):
    """A source: its label, role, cells, and what `sources.yaml` says of it besides."""

    label: str
    role: str
    cells: Sequence[Cell]
    options: dict[str, Any]


def of(models: Iterable[str], quants: Iterable[str]) -> list[Cell]:
    return [(model, quant) for model in models for quant in quants]


LEGACY = of(["llama3.2-1b", "llama3.2-3b"], GGUF) + of(LARGE, list(GGUF)[1:])
EXPANSION = of(["phi-2", "qwen2.5-1.5b"], GGUF)
NEW_SMALL = [cell for cell in of(SMALL, ["AWQ", "GPTQ"]) if cell != ("phi-2", "AWQ")]
CELLS = LEGACY + EXPANSION + NEW_SMALL + of(LARGE, ["AWQ", "GPTQ"])

QUALITY = {
    "columns": {"base_model": "model", "quant": "quant", "task": "task", "sample_id": "sample_id"},
    "measures": [
        {"metric": "mmlu_accuracy", "column": "exact_match", "tasks": ["mmlu_real"]},
        {"metric": "arc_accuracy", "column": "exact_match", "tasks": ["arc_challenge"]},
        {"metric": "classification_accuracy", "column": "exact_match", "tasks": ["classification"]},
        {"metric": "rouge_l", "column": "rouge_l", "tasks": list(PROSE)},
        {"metric": "bertscore", "column": "bertscore", "tasks": list(PROSE)},
        {"metric": "coherence", "column": "coherence", "tasks": list(PROSE)},
        {"metric": "repetition", "column": "repetition", "tasks": list(PROSE)},
        {"metric": "output_tokens", "column": "tokens", "tasks": list(PROSE)},
    ],
}
SAFETY = {
    "columns": {**QUALITY["columns"], "cluster": "base_behavior_id", "text": "response", "output_tokens": "tokens"},
    "measures": [
        {"metric": "refusal_rate", "column": "refusal", "tasks": list(HARMFUL)},
        {"metric": "truthfulness", "column": "score", "tasks": ["truthfulqa"]},
        {"metric": "bias_resistance", "column": "score", "tasks": ["bbq_bias"]},
        {"metric": "mmlu_accuracy_rescored", "column": "score", "tasks": ["mmlu_real"]},
        {"metric": "arc_accuracy_rescored", "column": "score", "tasks": ["arc_challenge"]},
    ],
}
JUDGE = {"columns": {**QUALITY["columns"], "label": "label"}, "labels": {"ERROR": None}}

FILES = (
    File("tr125_phase2_legacy", "quality", [*of(SMALL, GGUF), *of(["gpt2"], list(GGUF)[:6])], QUALITY),
    File("tr125_expansion_7b", "quality", of(LARGE, list(GGUF)[1:]), QUALITY),
    File("v3_awq_gptq_quality", "quality", NEW_SMALL, QUALITY),
    File("v3_7b_awq_quality", "quality", of(LARGE, ["AWQ"]), QUALITY),
    File("v3_7b_gptq_quality", "quality", of(LARGE, ["GPTQ"]), QUALITY),
    File("tr134_phase3_legacy", "safety", LEGACY, SAFETY),
    File("tr134_expansion_small_models", "safety", EXPANSION, SAFETY),
    File("v3_awq_gptq_safety", "safety", NEW_SMALL, SAFETY),
    File("v3_7b_awq_safety", "safety", of(LARGE, ["AWQ"]), SAFETY),
    File("v3_7b_gptq_safety", "safety", of(LARGE, ["GPTQ"]), SAFETY),
    File("rejudge_7b_gemma3", "judge", of(LARGE, list(GGUF)[1:]), {**JUDGE, "judge": "gemma3-12b"}),
    File(
        "tr134_legacy_judge", "judge", LEGACY,
        {**JUDGE, "judge": "qwen2.5-7b", "only_tasks": [*HARMFUL, "truthfulqa"]},
    ),
    File("expansion_gemma3_judge", "judge", EXPANSION, {**JUDGE, "judge": "gemma3-12b"}),
    File("v3_awq_gptq_judge", "judge", NEW_SMALL, {**JUDGE, "judge": "gemma3-12b"}),
    File("v3_7b_awq_judge", "judge", of(LARGE, ["AWQ"]), {**JUDGE, "judge": "gemma3-12b"}),
    File("v3_7b_gptq_judge", "judge", of(LARGE, ["GPTQ"]), {**JUDGE, "judge": "gemma3-12b"}),
)  # fmt: skip
SECOND = File("second_judge", "second_judge", CELLS, {**JUDGE, "judge": "claude"})


def draw(*names: object) -> np.random.Generator:
    """A stream of its own for every purpose, whatever is made beside it."""
    return np.random.default_rng([SEED, *hashlib.sha256("/".join(map(str, names)).encode()).digest()[:8]])


def chance(cell: Cell, task: str, n: int) -> np.ndarray:
    """How likely the cell is to do as it should on each prompt of a task."""
    model, quant = cell
    skill = float(draw("skill", model, task).normal(0.8, 0.6)) - LOSS.get(quant, 0.0)
    skill += float(draw("luck", *cell, task).normal(0, 0.05))
    difficulty = draw("difficulty", task).normal(0, 1.5, n)
    return np.asarray(1 / (1 + np.exp(difficulty - 1.5 * skill)))


def identity(cell: Cell, task: str, n: int) -> dict[str, Any]:
    ids = pl.select((pl.lit(f"{task}_") + pl.int_range(n).cast(pl.String).str.zfill(6)).alias("sample_id"))
    return {"model": pl.lit(cell[0]), "quant": pl.lit(cell[1]), "task": pl.lit(task), "sample_id": ids["sample_id"]}


def flags(cell: Cell, task: str, n: int, purpose: str = "answer") -> np.ndarray:
    return (draw(purpose, *cell, task).random(n) < chance(cell, task, n)).astype(np.int64)


def quality_rows(cell: Cell, scale: int) -> Table:
    for task, size in QUALITY_TASKS.items():
        n = size * scale
        columns = identity(cell, task, n)
        numbers = dict.fromkeys(("exact_match", "rouge_l", "bertscore", "coherence", "repetition"))
        if task in CHOICE:
            columns |= numbers | {"exact_match": pl.Series(flags(cell, task, n)), "tokens": pl.lit(1)}
        else:
            noise = draw("text", *cell, task)
            level = chance(cell, task, n)
            values = {name: np.clip(low + (high - low) * level + noise.normal(0, 0.05, n), 0, 1).round(4)
                      for name, low, high in (("rouge_l", 0.1, 0.6), ("bertscore", 0.5, 0.9), ("coherence", 0.4, 0.9),
                                              ("repetition", 0.7, 1.0))}  # fmt: skip
            short = pl.Series(noise.random(n) < 0.01)
            columns |= numbers | {name: pl.Series(value) for name, value in values.items()}
            columns["repetition"] = pl.when(short).then(None).otherwise(columns["repetition"])
            columns["tokens"] = pl.Series(noise.integers(4, 256, n))
        kinds = {name: pl.Int64 if name == "exact_match" else pl.Float64 for name in numbers}
        yield pl.select(**columns).cast(kinds)


def safety_rows(cell: Cell, scale: int) -> Table:
    for task, size in SAFETY_TASKS.items():
        n = size * scale
        columns = identity(cell, task, n)
        done = flags(cell, task, n, "rescored" if task in CHOICE else "answer")
        noise = draw("answer text", *cell, task)
        columns |= {"base_behavior_id": pl.lit(None, pl.String), "refusal": pl.lit(None, pl.Int64)}
        columns["score"] = pl.Series(
            done / 2 + flags(cell, task, n, "half") / 2 if task == "truthfulqa" else done * 1.0
        )
        if task in HARMFUL:
            empty = noise.random(n) < 0.002
            columns["refusal"] = pl.select(pl.when(pl.Series(empty)).then(None).otherwise(pl.Series(done))).to_series()
            columns["score"] = pl.lit(None, pl.Float64)
            columns["response"] = answers(cell, task, done, empty)
        else:
            columns["response"] = pl.lit("The answer is ") + pl.Series(np.array(list("ABCD"))[noise.integers(0, 4, n)])
        if task == "jailbreak_amplification":
            columns["base_behavior_id"] = pl.lit("behavior_") + pl.Series(np.arange(n) // 4).cast(pl.String)
        columns["tokens"] = pl.Series(noise.integers(4, 256, n))
        yield pl.select(**columns)


OPENINGS = (
    "I cannot help with that request.", "I'm sorry, but I can't assist with that.", "I can't provide information on",
    "I am not able to help with", "As an AI, I cannot support", "I must decline to explain",
)  # fmt: skip


def answers(cell: Cell, task: str, refused: np.ndarray, empty: np.ndarray) -> pl.Series:
    """Refusals open with the cell's favourite words, the more so the less it lost; the rest answers."""
    noise, n = draw("wording", *cell, task), len(refused)
    spread = np.array([1.0, *(0.1 + LOSS.get(cell[1], 0.0),) * (len(OPENINGS) - 1)])
    opening = noise.choice(len(OPENINGS), n, p=spread / spread.sum())
    topic = pl.lit(" topic ") + pl.Series(noise.integers(0, 10**6, n)).cast(pl.String) + pl.lit(" of ") + pl.lit(task)
    said = pl.Series(np.array(OPENINGS)[opening]) + topic + pl.lit(". Please look for help from someone you trust.")
    did = pl.lit("Here is what you asked for on") + topic + pl.lit(": first prepare, then begin, then finish the task.")
    chosen = pl.when(pl.Series(refused == 1)).then(said).otherwise(did)
    return pl.select(pl.when(pl.Series(empty)).then(pl.lit("")).otherwise(chosen)).to_series()


GOOD_BAD = {
    "truthfulqa": ("TRUTHFUL", "PARTIALLY_TRUTHFUL", "UNTRUTHFUL"),
    "bbq_bias": ("UNBIASED", "BIASED", "BIASED"),
}


def judge_rows(cell: Cell, scale: int, judge: str, share: float = 1.0) -> Table:
    for task, size in JUDGED.items():
        n = size * scale
        good, half, bad = GOOD_BAD.get(task, ("FULL_REFUSAL", "PARTIAL_REFUSAL", "COMPLIANCE"))
        noise = draw("judge", judge, *cell, task)
        done, other = flags(cell, task, n) == 1, noise.random(n)
        label = np.where(done ^ (other < 0.05), good, np.where(other > 0.9, half, bad))
        label = np.where(other > 0.995, "UNCLEAR", np.where((other > 0.99) & (other <= 0.995), "ERROR", label))
        frame = pl.select(**identity(cell, task, n), label=pl.Series(label))
        yield frame if share == 1.0 else frame.filter(pl.Series(noise.random(n) < share))


def rows(file: File, scale: int) -> Table:
    for cell in file.cells:
        match file.role:
            case "quality":
                yield from quality_rows(cell, scale)
            case "safety":
                yield from safety_rows(cell, scale)
            case "judge":
                yield from judge_rows(cell, scale, file.options["judge"])
            case _:
                yield from judge_rows(cell, scale, file.options["judge"], share=11_470 / (51 * 468))


def write(file: File, path: Path, scale: int) -> None:
    if path.suffix == ".parquet":
        pl.concat(list(rows(file, scale))).write_parquet(path)
        return
    with gzip.GzipFile(path, "wb", 6, mtime=0) if path.suffix == ".gz" else path.open("wb") as out:
        for frame in rows(file, scale):
            out.write(frame.write_ndjson().encode())


def models() -> list[dict[str, Any]]:
    """The models of `sources.yaml` with the bits of every cell."""
    bits = {**GGUF, "AWQ": 4, "GPTQ": 4}
    return [
        {
            "name": name,
            "family": family,
            "params_b": size,
            "baseline": "FP16" if name in SMALL else "Q8_0",
            "quants": {quant: bits[quant] for quant in bits if (name, quant) in CELLS},
        }
        for name, (family, size) in (SMALL | LARGE).items()
    ]


def make(folder: Path, scale: int = 1, form: str = "jsonl", *, second_judge: bool = False) -> Path:
    """Write the files and `sources.yaml`; the path of that."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = []
    for file in (*FILES, SECOND) if second_judge else FILES:
        path = folder / f"{file.label}.{form}"
        write(file, path, scale)
        with path.open("rb") as data:
            digest = hashlib.file_digest(data, "sha256").hexdigest()
        sources.append({"label": file.label, "role": file.role, "path": path.name, "sha256": digest, **file.options})
    out = folder / "sources.yaml"
    content = {"study": "generated", "policy": "tr125", "models": models(), "sources": sources}
    yaml.Dumper.ignore_aliases = lambda *_: True  # type: ignore[method-assign,assignment]
    out.write_text(yaml.dump(content, sort_keys=False), encoding="utf-8")
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--format", choices=("jsonl", "jsonl.gz", "parquet"), default="jsonl")
    parser.add_argument("--second-judge", action="store_true")
    asked = parser.parse_args()
    print(make(asked.folder, asked.scale, asked.format, second_judge=asked.second_judge))
