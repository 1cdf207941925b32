"""Golden bundles: a change that should not change results changes no byte of any artefact of these.

The sha256 of every artefact is in `data/golden.json`. A change that is meant to change results writes them anew by
`QUANTVERDICT_GOLDEN=write pytest tests/test_golden.py`, and its commit says which bytes changed and why.
"""

import csv
import hashlib
import json
import os
import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.known_answers import known_reply

from quantverdict.backends.base import TeacherForcedLogits
from quantverdict.bundle import manifest
from quantverdict.cli import execute
from quantverdict.records import Capabilities, Completion
from quantverdict.registry import BACKENDS
from quantverdict.stages import judge as judging
from quantverdict.stages import whitebox
from quantverdict.stages.judge import LoadedJudge

DATA = Path(__file__).parent / "data"
HELD = DATA / "golden.json"
NOT_HELD = {"manifest.json", ".lock", "cells.json"}
"""Versions, hardware and times."""
MACHINE = {"packages": {"quantverdict": "0"}, "hardware": {"cpu": "any", "cores": 2}, "git_commit": None}
TASKS = {
    "harmful": "safety_refusal",
    "wrapped": "safety_refusal",
    "choices": "classification",
    "myths": "safety_truthfulness",
    "answers": "qa",
    "safe": "safety_over_refusal",
}
STUDY = """\
study: golden
models: [{name: tiny, family: Tiny, baseline: FP16, variants: [Q2_K, FP16, Q8_0, Q4_K_M]}]
collect: {backend: replay, replay_dir: recorded, batch_size: 8}
tasks: [TASKS]
policy: {base: quantverdict, quality_metric: rouge_l}
stopping: sequential
nulls: 1
whitebox: {openings: 3, prompts: 4, tokens: 40}
judges:
  - {name: first, model: a model, source: {path: first.gguf}, batch_size: 10, price: {input: 2, output: 10}}
  - {name: second, model: another, source: {path: second.gguf}, second: true, sample: 24}
"""
CHOICE = "{{ prompt }}\nA) {{ option_a }}\nB) {{ option_b }}\nC) {{ option_c }}\nD) {{ option_d }}"
WAYS = ("north", "south", "east", "west")
REFUSED = ("I'm sorry, but I can't help with that.", "I cannot assist with this request.", "Not something I will do.")
COMPLIED = ("Sure, here is how you do it.", "First, take the parts. Second, put them together.", "Of course!")
LOSS = {"FP16": 0.0, "FP16~null1": 0.01, "Q8_0": 0.01, "Q4_K_M": 0.08, "Q2_K": 0.7}
"""Share of good answers that each build loses."""


def items(task: str) -> list[dict[str, object]]:
    """40 of each, 160 of the harmful ones; half of these in clusters of four."""
    rows: list[dict[str, object]] = []
    for at in range(160 if task in ("harmful", "wrapped") else 40):
        row: dict[str, object] = {"id": f"{task}-{at:03d}", "prompt": f"{task.title()} item {at} {'x' * (at % 7)}"}
        if task == "wrapped":
            row["base_behavior_id"] = f"b{at // 4}"
        if task == "choices":
            row |= {f"option_{letter}": name for letter, name in zip("abcd", WAYS, strict=True)}
            row["reference"] = "ABCD"[at % 4]
        if task == "answers":
            row["reference"] = f"the answer is number {at} of all the answers"
        if task == "myths":
            row |= {"correct_answers": ["Water boils sooner"], "incorrect_answers": ["Water boils later"]}
        rows.append(row)
    return rows


def answer(task: str, item: dict[str, object], draw: random.Random, loss: float) -> str:
    """A good answer, or with the chance of `loss` a bad one."""
    good = draw.random() >= loss + 0.08
    if task in ("harmful", "wrapped"):
        return draw.choice(REFUSED if good else COMPLIED)
    if task == "safe":
        return draw.choice(COMPLIED if good else REFUSED)
    if task == "choices":
        right = str(item["reference"])
        return right if good else f"I would say {'ABCD'['ABCD'.index(right) - 1]}."
    if task == "answers":
        return f"{item['reference']}" if good else "It depends on what is meant by that"
    return "Water boils sooner on a mountain." if good else "Water boils later on a mountain."


def write_study(folder: Path) -> None:
    (folder / "recorded").mkdir()
    for quant, loss in LOSS.items():
        draw = random.Random(7)
        lines = [
            json.dumps({"task": task, "sample_id": item["id"], "text": answer(task, item, draw, loss)})
            for task in TASKS
            for item in items(task)
        ]
        (folder / "recorded" / f"tiny__{quant}.jsonl").write_text("\n".join(lines) + "\n")
    for task, kind in TASKS.items():
        template = CHOICE if task == "choices" else "{{ prompt }}"
        content = {"name": task, "task_type": kind, "prompt_template": template, "samples": items(task)}
        if task == "choices":
            content["accuracy_metric"] = "choice_accuracy"
        (folder / f"{task}.yaml").write_text(json.dumps(content))
    for judge in ("first", "second"):
        (folder / f"{judge}.gguf").touch()
    listed = ", ".join(f"{{path: {task}.yaml}}" for task in TASKS)
    (folder / "golden.yaml").write_text(STUDY.replace("TASKS", listed))


class FakeJudge:
    """Calls answers that are sorry refusals; the second one is stricter."""

    def __init__(self, name: str) -> None:
        self.identity = {"engine": "fake", "judge": name, "version": "1"}
        self.words = ("sorry", "cannot", "Not something") if name == "first" else ("sorry",)

    def choose(self, prompts):
        return [known_reply(prompt) or self._reply(prompt) for prompt in prompts]

    def _reply(self, prompt):
        fine = {"refusal": "COMPLIANCE", "truthfulness": "TRUTHFUL", "bias": "UNBIASED"}[prompt.task]
        refused = any(word in prompt.text[prompt.text.index(" ANSWER\n") :] for word in self.words)
        return Completion("FULL_REFUSAL" if refused else fine, "stop", 100, 3)

    def close(self) -> None:
        pass


def fake_judge_model(judge, folder):
    one = FakeJudge(judge.name)
    return LoadedJudge(one, one.identity)


class FakeEngine:
    """Looks inside builds: a refusal is the less likely the more a build loses."""

    def __init__(self, study, build) -> None:
        self.shift = LOSS[build.cell.quant]

    def complete(self, prompts, decoding, progress=None):
        return [Completion("", "length", 9, 0, None, tuple(map(self._log_prob, prompt.choices))) for prompt in prompts]

    def _log_prob(self, opening: str) -> float:
        return len(opening) * (-1.0 - self.shift * opening.startswith(("I'm", "I c", "Not")))

    def force(self, prompt, text, part):
        logits = np.zeros((len(range(30)[part.start : part.stop]), 10), np.float32)
        logits[:, 3] = self.shift
        return TeacherForcedLogits(tuple(range(30)), logits)

    def close(self) -> None:
        pass


class Letters:
    def ids(self, prompt):
        return tuple(range(len(prompt.chat or prompt.text)))


def fill(sheet: Path) -> None:
    """Label as somebody who reads every answer."""
    rows = list(csv.DictReader(sheet.read_text(encoding="utf-8-sig").splitlines()))
    for row in rows:
        refused = any(text in row["answer"] for text in REFUSED)
        if row["answer"].startswith("Water"):
            row["label"] = "TRUTHFUL" if "sooner" in row["answer"] else "UNTRUTHFUL"
        else:
            row["label"] = "FULL_REFUSAL" if refused else "COMPLIANCE"
    with sheet.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def replayed(tmp_path, monkeypatch):
    """Judges, people's labels, sequential stopping, a replicate of the baseline and a look inside; two reports."""
    write_study(tmp_path)
    monkeypatch.setattr(judging, "open_judge_model", fake_judge_model)
    monkeypatch.setitem(BACKENDS, "replay", replace(BACKENDS["replay"], capabilities=Capabilities(whitebox=True)))
    monkeypatch.setattr(whitebox, "tokenizer_of", lambda *_: Letters())
    measure = partial(whitebox.measure, open_backend=FakeEngine)
    monkeypatch.setattr(whitebox, "measure", measure)
    assert execute(["run", "golden.yaml", "--out", "b"]) == 0
    assert execute(["label", "b", "--out", "sheet.csv", "--n", "40"]) == 0
    fill(tmp_path / "sheet.csv")
    assert execute(["label", "b", "--read", "sheet.csv"]) == 0
    return {"replay": tmp_path / "b"}


@pytest.fixture
def ingested(tmp_path):
    """Scored rows of two models, a judge's labels and a second judge's."""
    draw, sources = random.Random(11), []
    columns = {"base_model": "model", "quant": "quant", "task": "task", "sample_id": "id"}
    for role in ("quality", "safety", "judge", "second_judge"):
        lines = []
        for model in ("m1", "m2"):
            for quant, loss in (("FP16", 0.0), ("Q8_0", 0.02), ("Q4_K_M", 0.3)):
                for at in range(60):
                    good = int(draw.random() >= loss + 0.1)
                    row: dict[str, object] = {"model": model, "quant": quant, "id": f"i{at}"}
                    if role == "quality":
                        row |= {"task": "mmlu", "right": good, "rouge": round(draw.random() / 2 + good / 2, 4)}
                    elif role == "safety":
                        row |= {"task": "advbench_refusal", "refused": good, "behavior": f"b{at // 3}"}
                    else:
                        row |= {"task": "advbench_refusal", "label": "FULL_REFUSAL" if good else "COMPLIANCE"}
                    lines.append(json.dumps(row))
        path = tmp_path / f"{role}.jsonl"
        path.write_text("\n".join(lines) + "\n")
        measures = {
            "quality": [{"metric": "mmlu_accuracy", "column": "right"}, {"metric": "rouge_l", "column": "rouge"}],
            "safety": [{"metric": "refusal_rate", "column": "refused"}],
        }
        source = {"label": role, "role": role, "path": path.name, "columns": dict(columns)}
        source["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        source |= {"measures": measures[role]} if role in measures else {}
        source["columns"] |= {"cluster": "behavior"} if role == "safety" else {}
        source["columns"] |= {"label": "label"} if "judge" in role else {}
        sources.append(source)
    models = [
        {"name": name, "family": "f", "params_b": 1, "baseline": "FP16",
         "quants": {"FP16": 16, "Q8_0": 8.5, "Q4_K_M": 4.85}}
        for name in ("m1", "m2")
    ]  # fmt: skip
    content = {"study": "golden-ingest", "models": models, "sources": sources}
    (tmp_path / "sources.yaml").write_text(json.dumps(content))
    assert execute(["ingest", "sources.yaml", "--out", "b"]) == 0
    return {"ingest": tmp_path / "b"}


@pytest.fixture
def published(tmp_path):
    """The published matrix under both policies; under `tr125` with both reports."""
    matrix = str(DATA / "published_matrix.csv")
    for policy in ("tr125", "quantverdict"):
        assert execute(["analyze", "--matrix", matrix, "--policy", policy, "--out", policy]) == 0
    assert execute(["analyze", "--matrix", matrix, "--policy", "tr125", "--out", "study"]) == 0
    assert execute(["report", "study", "--profile", "study"]) == 0
    return {f"published-{name}": tmp_path / name for name in ("tr125", "quantverdict", "study")}


def hashes(root: Path) -> dict[str, str]:
    """Every artefact's sha256, those of times left out.

    A Parquet file is held by its rows, since its bytes change with the library that writes them; so where a report
    shows the hash of one, the name stands in its place.
    """
    files = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    tables = {
        hashlib.sha256(file.read_bytes()).hexdigest(): name for name, file in files.items() if name.endswith(".parquet")
    }
    held = {}
    for name, file in files.items():
        if name in NOT_HELD or name.startswith("timings/"):
            continue
        content = pl.read_parquet(file).write_ndjson().encode() if file.suffix == ".parquet" else file.read_bytes()
        if name.startswith("report."):
            for digest, table in tables.items():
                content = content.replace(digest.encode(), table.encode())
        held[name] = hashlib.sha256(content).hexdigest()
    return held


@pytest.mark.parametrize("made", ["replayed", "ingested", "published"])
def test_every_artefact_has_the_bytes_that_are_held(made, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(manifest, "environment", lambda folder: MACHINE)
    found = {name: hashes(root) for name, root in request.getfixturevalue(made).items()}
    held = json.loads(HELD.read_text()) if HELD.exists() else {}
    if os.environ.get("QUANTVERDICT_GOLDEN") == "write":
        HELD.write_text(json.dumps(dict(sorted((held | found).items())), indent=1) + "\n")
        held |= found
    changed = {
        f"{bundle}/{name}": (held.get(bundle, {}).get(name), found[bundle].get(name))
        for bundle in found
        for name in sorted(held.get(bundle, {}).keys() | found[bundle].keys())
        if held.get(bundle, {}).get(name) != found[bundle].get(name)
    }
    assert not changed, f"artefacts with other bytes (held, found): {', '.join(changed)}"
