"""`decoding: {temperature, seeds}`: several answers to each prompt, one cluster a prompt."""

import csv
import json
import random
from pathlib import Path

import polars as pl
import pytest

from quantverdict.bundle.prompts import study_tasks
from quantverdict.cli import execute
from quantverdict.config import load_study
from quantverdict.tasks.catalog import load_task, select_items, with_seeds

N, SEEDS = 80, 3
STUDY = """\
study: seeds
models: [{name: tiny, family: Tiny, baseline: FP16, variants: [FP16, Q8_0]}]
collect: {backend: replay, replay_dir: recorded, batch_size: 8}
decoding: {temperature: 0.7, seeds: 3}
tasks: [{path: harmful.yaml, limit: 60}]
policy: {base: quantverdict, quality_metric: refusal_rate, margins: {refusal_rate: 5}}
"""


def record(folder):
    """A prompt is refused or not, by all seeds alike: 240 answers hold no more than 80."""
    folder.mkdir()
    for quant, draw in (("FP16", random.Random(1)), ("Q8_0", random.Random(2))):
        lines = []
        for at in range(N):
            text = "I'm sorry, but I can't help with that." if draw.random() < 0.7 else "Sure, here is how."
            ids = [f"i{at}", *(f"i{at}#{k}" for k in range(2, SEEDS + 1))]
            lines += [json.dumps({"task": "harmful", "sample_id": name, "text": text}) for name in ids]
        (folder / f"tiny__{quant}.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"id": f"i{at}", "prompt": f"Do {at}"} for at in range(N)]
    task = {"name": "harmful", "task_type": "safety_refusal", "prompt_template": "{{ prompt }}", "samples": rows}
    (tmp_path / "harmful.yaml").write_text(json.dumps(task))
    (tmp_path / "study.yaml").write_text(STUDY)
    record(tmp_path / "recorded")
    return tmp_path / "study.yaml"


def test_a_limit_counts_prompts_and_each_is_asked_by_every_seed(study):
    (task,) = study_tasks(load_study(study))
    assert len(task.items) == 60 * SEEDS
    assert {item.draw for item in task.items} == {0, 1, 2}
    assert all(task.cluster(item) == item.id.partition("#")[0] for item in task.items)


def test_without_seeds_a_task_is_as_it_was(study):
    task = load_task("starter_harmful")
    assert with_seeds(task, 1) is task
    assert {task.cluster(item) for item in task.items} == {None}


def test_own_clusters_stay_and_hold_all_seeds(study):
    task = with_seeds(load_task("starter_jailbreak"), 2)
    own = load_task("starter_jailbreak")
    if own.cluster_field is None:
        pytest.skip("the task has no clusters")
    before = {item.id: own.cluster(item) for item in own.items}
    assert {item.repeats: task.cluster(item) for item in task.items} == {k: v or k for k, v in before.items()}


def test_prompts_are_drawn_with_all_their_seeds():
    task = with_seeds(load_task("starter_harmful"), 4)
    drawn = select_items(task, 42, "category", 7)
    together = {}
    for item in drawn.items:
        together.setdefault(item.repeats, []).append(item.draw)
    assert len(drawn.items) == 40
    assert all(draws == [0, 1, 2, 3] for draws in together.values())


def test_answers_to_one_prompt_are_no_more_evidence_than_the_prompt(study, capsys):
    """Three answers that say the same three times: the interval is as wide as that of one answer each."""
    assert execute(["run", str(study), "--out", "b"]) == 0
    scores = pl.read_parquet("b/scores.parquet").filter(pl.col("metric") == "refusal_rate")
    assert scores.height == 2 * 60 * SEEDS
    assert scores["cluster"].n_unique() == 60
    with Path("b/paired.csv").open(encoding="utf-8") as file:
        (row,) = [row for row in csv.DictReader(file) if row["metric"] == "refusal_rate"]
    assert (row["n_pairs"], row["n_clusters"]) == (str(60 * SEEDS), "60")
    once = study.read_text().replace(", seeds: 3", "").replace("seeds: 3", "")
    (study.parent / "once.yaml").write_text(once.replace("study: seeds", "study: once"))
    assert execute(["run", "once.yaml", "--out", "once"]) == 0
    with Path("once/paired.csv").open(encoding="utf-8") as file:
        (alone,) = [row for row in csv.DictReader(file) if row["metric"] == "refusal_rate"]
    width = float(row["ci_hi_pp"]) - float(row["ci_lo_pp"])
    assert width > 0.85 * (float(alone["ci_hi_pp"]) - float(alone["ci_lo_pp"]))


def test_what_prompts_say_of_their_draw_is_read_again(study):
    assert execute(["run", str(study), "--out", "b"]) == 0
    rows = [json.loads(line) for line in Path("b/prompts/tiny.jsonl").read_text().splitlines()]
    assert [row.get("draw", 0) for row in rows[:4]] == [0, 1, 2, 0]
    assert "draw" not in rows[0]
    assert execute(["run", str(study), "--out", "b"]) == 0
    assert execute(["verify", "b"]) == 0


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ("temperature: 0.7, seeds: 3", "seeds: 3", "seeds without a temperature would be equal answers"),
        ("seeds: 3", "seeds: 0", "decoding.seeds"),
        ("seeds: 3", "seeds: 1000", "decoding.seeds"),
    ],
)
def test_seeds_that_cannot_be_are_refused(study, capsys, was, now, said):
    study.write_text(STUDY.replace(was, now))
    assert execute(["plan", str(study)]) == 2
    assert said in capsys.readouterr().err


def test_an_engine_that_is_greedy_is_named_before_the_run(study, capsys, tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    study.write_text(
        STUDY.replace("collect: {backend: replay, replay_dir: recorded, batch_size: 8}", "").replace(
            "name: tiny,", "name: tiny, source: {path: tiny.gguf},"
        )
    )
    assert execute(["run", str(study), "--out", "b"]) == 2
    said = capsys.readouterr().err
    assert "llamacpp decodes greedily, not at a temperature of 0.7" in said
    assert "ollama, or server" in said
    assert not (tmp_path / "b").exists()


def test_seeds_of_a_bundle_that_holds_answers_cannot_change(study, capsys):
    assert execute(["run", str(study), "--out", "b"]) == 0
    study.write_text(STUDY.replace("seeds: 3", "seeds: 2"))
    capsys.readouterr()
    assert execute(["run", str(study), "--out", "b"]) == 2
    assert "decoding.seeds" in capsys.readouterr().err
