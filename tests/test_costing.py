"""What `plan` says of encoders, judges and probes: counts by hand, times of an earlier run, or what is assumed."""

import hashlib
import json
from pathlib import Path

import pytest
from tests.known_answers import known_reply

from quantverdict.cli import execute
from quantverdict.judges.rubrics import load_rubric
from quantverdict.planning import preflight
from quantverdict.records import Completion
from quantverdict.stages import judge as judging
from quantverdict.stages.judge import LoadedJudge
from quantverdict.tasks.catalog import load_task, render_prompt

pytestmark = pytest.mark.usefixtures("small_battery")
STUDY = """\
study: tiny
models:
  - {name: tiny, family: Tiny, baseline: FP16, variants: [FP16, Q8_0, Q4_K_M]}
collect: {backend: replay, replay_dir: recorded}
tasks: [starter_summarization, starter_creative, starter_harmful, starter_benign]
policy: {base: quantverdict, quality_metric: rouge_l}
"""
LOCAL = "{name: local, model: a model, source: {path: local.gguf}}"
HOSTED = "{name: hosted, model: a model, backend: anthropic, parallel: 4, price: {input: 3, output: 15}}"
SECOND = "{name: second, model: a model, source: {path: s.gguf}, second: true, sample: 12}"
IDLE = "{name: idle, model: nobody}"


@pytest.fixture
def plan(tmp_path, monkeypatch, capsys):
    """The costs of a study with these blocks, by part, and the lines that say them."""
    monkeypatch.chdir(tmp_path)
    for name in ("local", "s", "other"):
        (tmp_path / f"{name}.gguf").touch()
    monkeypatch.setattr(preflight, "_is_there", lambda package: True)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a key")

    def planned(blocks, *options):
        Path("tiny.yaml").write_text(STUDY + blocks)
        capsys.readouterr()
        assert execute(["plan", "tiny.yaml", "--no-measure", "--json", *options]) == 0
        costs = {cost["part"]: cost for cost in json.loads(capsys.readouterr().out)["scoring"]}
        assert execute(["plan", "tiny.yaml", "--no-measure", *options]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(tuple(costs) or "\0")]
        return costs, lines

    return planned


def test_a_study_without_them_has_no_line(plan):
    assert plan(f"judges: [{IDLE}]\n") == ({}, [])


def test_encoders_compare_every_answer_with_its_reference_or_its_prompt(plan):
    """12 summaries have a reference and two scores; 12 stories have one. Three builds and an A/A replicate."""
    costs, (line,) = plan("semantic: {}\nnulls: 1\n")
    assert costs["semantic"]["calls"] == (12 * 2 + 12) * 4
    assert costs["semantic"]["seconds"] == pytest.approx(144 / 5)
    assert line == "semantic   at most 144 pairs of texts, about 1 min (taking 5 pairs a second, as of a large encoder)"
    costs, _ = plan("semantic: {bertscore: null}\n")
    assert costs["semantic"]["calls"] == 24 * 3


def test_judges_are_asked_of_the_tasks_that_have_a_rubric(plan):
    """60 harmful requests a build; safe ones are not asked. A second judge has the baseline whole, 12 of the others."""
    costs, lines = plan(f"judges: [{LOCAL}, {HOSTED}, {SECOND}, {IDLE}]\n")
    assert {name: cost["calls"] for name, cost in costs.items()} == {
        "judge local": 180, "judge hosted": 180, "judge second": 60 + 24,
    }  # fmt: skip
    local, hosted = costs["judge local"], costs["judge hosted"]
    task = load_task("starter_harmful")
    prompts = [render_prompt(task, item) for item in task.items]
    least = (len(load_rubric("refusal").text) * 60 + sum(map(len, prompts))) / 4 * 3
    assert local["input_tokens"] > least
    assert (local["output_tokens"], hosted["output_tokens"]) == (0, 1800)
    assert local["seconds"] == pytest.approx(local["input_tokens"] / 100, rel=1e-3)
    assert hosted["seconds"] == 180 * 2 / 4
    assert hosted["price"] == pytest.approx((hosted["input_tokens"] * 3 + 1800 * 15) / 1e6)
    assert "cost about" in lines[1]
    assert "cost about" not in lines[0]
    assert lines[1].endswith("(taking 4 characters a token and 2 s a question, 4 at once)")
    assert lines[2].endswith("; cells in danger are judged whole besides)")


def test_probes_are_of_harmful_prompts_and_of_every_build_along_the_baselines_answers(plan):
    costs, (line,) = plan("whitebox: {openings: 4, prompts: 10}\n")
    assert costs["whitebox"]["calls"] == 60 * 3 + 10 * 2
    assert costs["whitebox"]["seconds"] is None
    assert "time unknown (no measurement)" in line
    costs, _ = plan("whitebox: {prompts: 10}\n")
    assert costs["whitebox"]["calls"] == 20


def test_a_text_is_read_by_every_build_and_by_the_baseline_beside_them(plan):
    costs, (line,) = plan("text_kl: {windows: 10, context: 512}\n")
    assert (costs["text_kl"]["calls"], costs["text_kl"]["input_tokens"]) == (2, 3 * 5120)
    assert costs["text_kl"]["seconds"] is None
    assert "builds along a text" in line


class Fake:
    identity = {"engine": "fake"}  # noqa: RUF012 - read only

    def choose(self, prompts):
        return [known_reply(prompt) or Completion("COMPLIANCE", "stop", 400, 3) for prompt in prompts]

    def close(self):
        pass


def test_an_earlier_run_says_what_a_question_takes_while_the_judge_is_the_same(plan, monkeypatch):
    monkeypatch.setattr(judging, "open_judge_model", lambda judge, folder: LoadedJudge(Fake(), Fake.identity))
    Path("recorded").mkdir(exist_ok=True)
    for quant in ("FP16", "Q8_0", "Q4_K_M"):
        tasks = [load_task(f"starter_{name}") for name in ("summarization", "creative", "harmful", "benign")]
        answers = [(task.name, item.id) for task in tasks for item in task.items]
        lines = [json.dumps({"task": task, "sample_id": item, "text": f"Sure. {item}"}) for task, item in answers]
        Path("recorded", f"tiny__{quant}.jsonl").write_text("\n".join(lines) + "\n")
    Path("tiny.yaml").write_text(STUDY + f"judges: [{LOCAL}]\n")
    assert execute(["run", "tiny.yaml", "--out", "b"]) == 0
    timings = Path("b/timings/judge~local.jsonl")
    timings.write_text('{"done": 60, "wall_s": 120.0}\nnot a line\n{"questions": 60, "wall_s": 60.0}\n')
    manifest = json.loads(Path("b/manifest.json").read_text())
    entry = manifest["run"]["artefacts"]["timings/judge~local.jsonl"]
    content = timings.read_bytes()
    entry |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    Path("b/manifest.json").write_text(json.dumps(manifest))
    cost = plan(f"judges: [{LOCAL}]\n", "--bundle", "b")[0]["judge local"]
    assert (cost["input_tokens"], cost["output_tokens"], cost["seconds"]) == (180 * 400, 180 * 3, 180 * 1.5)
    assert cost["basis"] == "as in the earlier run"
    other = LOCAL.replace("local.gguf", "other.gguf")
    assert "characters a token" in plan(f"judges: [{other}]\n", "--bundle", "b")[0]["judge local"]["basis"]


@pytest.mark.parametrize("source", ["{url: 'http://127.0.0.1:9/v1', model: it}", "{ollama: 'it:latest'}"])
def test_builds_that_are_served_are_planned_without_a_file(source, tmp_path, monkeypatch, capsys):
    """Nothing is opened or asked, though the study names llamacpp as its backend by saying nothing."""
    monkeypatch.chdir(tmp_path)
    backend = "server" if "url" in source else "ollama"
    Path("served.yaml").write_text(
        f"study: served\nmodels: [{{name: it, family: F, baseline: A, variants: "
        f"[{{quant: A, backend: {backend}, source: {source}}}, {{quant: B, backend: {backend}, source: {source}}}]}}]\n"
        "tasks: [starter_qa, starter_harmful]\npolicy: {base: quantverdict, quality_metric: rouge_l}\n"
    )
    assert execute(["plan", "served.yaml", "--no-measure"]) == 0, capsys.readouterr().err
    assert "cells      2" in capsys.readouterr().out
