"""Alarms over the whole pipeline: a build whose answers loop, and one that equals its baseline."""

import csv
import json

import polars as pl
import pytest

from quantverdict.cli import execute
from quantverdict.tasks.catalog import choice_continuations, load_task

pytestmark = pytest.mark.usefixtures("small_battery")
STUDY = """\
study: loops
models:
  - {name: tiny, family: Tiny, baseline: FP16, variants: [FP16, Q8_0, Q2_K]}
collect: {backend: replay, replay_dir: recorded}
tasks: [starter_summarization, starter_choice, starter_qa]
policy: {base: quantverdict, quality_metric: rouge_l, required: [rouge_l]}
"""


def record(folder, quant, change, spoken=0):
    """`change` makes the texts; the first `spoken` choices are said in a sentence that the task cannot read."""
    folder.mkdir(exist_ok=True)
    rows = []
    for name in ("summarization", "choice", "qa"):
        task = load_task(f"starter_{name}")
        for at, item in enumerate(task.items):
            choices = choice_continuations(task, item)
            text = str(item.reference)
            said = f"I think that it is {text}." if at < spoken else text
            rows.append({"task": task.name, "sample_id": item.id, "text": said if choices else change(at, text)})
            if choices:
                rows[-1]["choice_logprobs"] = [-1.0 - index for index in range(len(choices))]
    (folder / f"tiny__{quant}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_build_that_loops_is_said_to_and_one_that_does_not_is_passed_over(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for quant in ("FP16", "Q8_0"):
        record(tmp_path / "recorded", quant, lambda _, text: text)
    record(tmp_path / "recorded", "Q2_K", lambda at, text: text + " and so it goes on" * 9 if at % 2 else text)
    (tmp_path / "s.yaml").write_text(STUDY)
    assert execute(["run", "s.yaml", "--out", "b"]) == 0
    said = capsys.readouterr().out
    assert "Format alert, tiny/Q2_K: answers in a loop 0 to 21 of 102" in " ".join(said.split())
    assert "alarm, tiny/Q8_0" not in said
    alerts = {(row["quant"], row["alarm"]): row for row in rows(tmp_path / "b" / "alarms.csv")}
    loop = alerts["Q2_K", "loop"]
    assert (loop["k"], loop["baseline_k"], loop["lost"], loop["gained"], loop["fires"]) == ("21", "0", "0", "21", "1")
    assert {row["fires"] for key, row in alerts.items() if key[0] == "Q8_0"} == {"0"}
    report = (tmp_path / "b" / "report.md").read_text()
    assert "## Format alerts" in report
    assert "answers in a loop" in report
    assert 'id="alarms"' in (tmp_path / "b" / "report.html").read_text()
    assert execute(["verify", "b"]) == 0
    answers = tmp_path / "b" / "answers.parquet"
    pl.read_parquet(answers).with_columns(loop=pl.lit(value=False)).write_parquet(answers)
    capsys.readouterr()
    assert execute(["verify", "b"]) != 0
    assert "alarms.csv" in "".join(capsys.readouterr())


def test_a_gain_that_answers_of_another_form_make_is_named_with_its_cause(tmp_path, monkeypatch):
    """The baseline says 40 of 60 choices in a sentence, and the build says each by its letter: it knows no more."""
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "recorded", "FP16", lambda _, text: text, spoken=40)
    record(tmp_path / "recorded", "Q8_0", lambda _, text: text)
    record(tmp_path / "recorded", "Q2_K", lambda _, text: text, spoken=40)
    (tmp_path / "s.yaml").write_text(STUDY)
    assert execute(["run", "s.yaml", "--out", "b"]) == 0
    fired = next(row for row in rows(tmp_path / "b" / "taxonomy.csv") if row["id"] == "TAX_008")
    assert fired["cells"] == "tiny/Q8_0 (choice_accuracy +66.67 pp, likely cause: unparsed answers 40 to 0 of 60)"
    alerts = {(row["quant"], row["alarm"]): row for row in rows(tmp_path / "b" / "alarms.csv")}
    assert alerts["Q8_0", "parse_failure"]["lost"] == "40"
    assert [key for key, row in alerts.items() if row["fires"] == "1"] == [("Q8_0", "output_tokens")]
