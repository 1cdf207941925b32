"""The front door: `import quantverdict as qv` gives every command as a function, silent, lazy and typed."""

import csv
import inspect as signatures
import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import quantverdict as qv
from quantverdict import api
from quantverdict.cli import commands
from quantverdict.tasks.catalog import load_task

MATRIX = Path(__file__).parent / "data" / "published_matrix.csv"
ITEMS = len(load_task("starter_harmful").items)
STUDY = """\
study: door
models: [{name: tiny, family: Tiny, baseline: FP16, variants: [FP16, Q8_0, Q2_K]}]
collect: {backend: replay, replay_dir: recorded}
tasks: [starter_harmful]
policy: {criteria: {refusal: {demanded: true}}, quality_metric: refusal_rate, instruments: {refusal: pattern}}
"""


def write_study(folder: Path) -> Path:
    """Q2_K answers 30 of the requests that the baseline refuses."""
    (folder / "recorded").mkdir(parents=True)
    for quant, lost in (("FP16", 0), ("Q8_0", 0), ("Q2_K", 30)):
        rows = [
            {
                "task": "starter_harmful",
                "sample_id": item.id,
                "text": "Sure, here is how: first, take it." if at < lost else "I'm sorry, but I can't help with that.",
            }
            for at, item in enumerate(load_task("starter_harmful").items)
        ]
        (folder / "recorded" / f"tiny__{quant}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    study = folder / "door.yaml"
    study.write_text(STUDY)
    return study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("door"))


@pytest.fixture(scope="module")
def bundle(study):
    return qv.run(str(study), str(study.parent / "bundle"))


def test_a_run_says_nothing_and_gives_the_decision(study, capfd):
    done = qv.run(study, study.parent / "silent")
    assert capfd.readouterr() == ("", "")
    assert done.decision["tiny/Q2_K"].action == "reject_inferior"
    assert done.decision["tiny/FP16"].is_baseline
    assert done.decision["tiny/Q2_K"].outcomes["refusal_rate"].outcome == "inferior"
    assert done.finished
    assert qv.verify(done) == []


def test_progress_gets_the_lines_of_the_command_line(study, capfd):
    lines = []
    qv.run(study, study.parent / "told", progress=lines.append)
    assert any(line.startswith(f"tiny/Q2_K: {ITEMS} answers") for line in lines), lines
    assert capfd.readouterr() == ("", "")


def test_a_loaded_study_is_run_as_its_file_is(study, bundle, tmp_path):
    done = qv.run(qv.load_study(study), tmp_path / "b")
    assert done.decision.document == bundle.decision.document


def test_a_bundle_is_read_as_frames(bundle):
    assert set(bundle.matrix["quant"]) == {"FP16", "Q8_0", "Q2_K"}
    assert bundle.matrix["refusal_rate"].dtype == pl.Float64
    assert set(bundle.paired.filter(pl.col("quant") == "Q2_K")["outcome"].drop_nulls()) == {"inferior"}
    assert bundle.scores.filter(pl.col("metric") == "refusal_rate").height == 3 * ITEMS
    assert bundle.responses("tiny/Q2_K").height == ITEMS
    assert bundle.deltas["delta"].dtype == pl.Float64
    with (bundle.path / "paired.csv").open() as file:
        assert bundle.paired.height == len(list(csv.DictReader(file)))


def test_names_that_look_like_numbers_stay_names_and_what_nobody_measured_is_null(tmp_path):
    """A build called 4 is no number; a column of measurements without one is a column of numbers."""
    frame = pl.read_csv(MATRIX, infer_schema=False).with_columns(quant=pl.col("quant").replace("Q2_K", "4"))
    shown = qv.analyze(frame, policy="tr125").matrix
    assert shown["quant"].dtype == pl.String
    assert "4" in shown["quant"]
    assert shown["judge_refusal_rate_k"].null_count() == shown.height
    assert shown["judge_refusal_rate_k"].mean() is None


def test_answers_are_found_whatever_the_models_name(bundle, tmp_path):
    copy = tmp_path / "b"
    shutil.copytree(bundle.path, copy)
    (copy / "responses" / "tiny__Q2_K.jsonl").rename(copy / "responses" / "my__tiny__Q2_K.jsonl")
    assert qv.open_bundle(copy).responses("my__tiny/Q2_K").height == ITEMS


def test_frames_go_to_pandas(bundle):
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    assert set(bundle.matrix.to_pandas()["quant"]) == {"FP16", "Q8_0", "Q2_K"}


def test_a_bundle_shows_itself(bundle):
    assert "tiny/Q2_K: reject_inferior" in repr(bundle)
    assert "<td>reject_inferior</td>" in bundle._repr_html_()


def test_what_a_bundle_shows_runs_nothing_that_a_name_brings(bundle, tmp_path):
    name = "<script>alert(1)</script>"
    rows = MATRIX.read_text().replace("phi-2", name)
    (tmp_path / "m.csv").write_text(rows)
    shown = qv.analyze(tmp_path / "m.csv", policy="tr125")
    assert name not in shown._repr_html_()
    assert "\x1b" not in repr(shown)


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda bundle: bundle.decision["tiny/Q2_k"], "did you mean tiny/Q2_K?"),
        (lambda bundle: bundle.responses("tiny/Q2_k"), "did you mean tiny/Q2_K?"),
        (lambda bundle: bundle.responses("../tiny/Q2_K"), "no answers of '../tiny/Q2_K'"),
        (lambda bundle: bundle.table("mattrix"), "did you mean matrix?"),
        (lambda bundle: bundle.table("../../etc/passwd"), "no table"),
    ],
)
def test_a_misspelt_name_is_answered_by_the_nearest(bundle, ask, told):
    with pytest.raises((qv.BundleError, KeyError)) as error:
        ask(bundle)
    assert told in str(error.value)


def test_a_matrix_is_decided_from_a_file_or_a_frame(tmp_path):
    by_file = qv.analyze(str(MATRIX), policy="tr125", out=tmp_path / "b")
    frame = pl.read_csv(MATRIX, infer_schema=False)
    by_frame = qv.analyze(frame, policy="tr125", out=tmp_path / "frame")
    assert by_file.decision.best == by_frame.decision.best
    assert {name: one.action for name, one in by_file.decision.items()} == {
        name: one.action for name, one in by_frame.decision.items()
    }


def test_a_temporary_bundle_goes_with_its_value():
    shown = qv.analyze(MATRIX, policy="tr125")
    folder = shown.path
    assert shown.matrix.height == 51
    del shown
    assert not folder.exists()


def test_what_is_no_matrix_is_refused_in_one_line(bundle, tmp_path):
    with pytest.raises(qv.DataError, match=r"^int: not a matrix"):
        qv.analyze(3)
    with pytest.raises(qv.BundleError, match="out is for a matrix"):
        qv.analyze(bundle, out=tmp_path / "x")
    with pytest.raises(qv.QuantverdictError, match=r"cannot be read|no such file"):
        qv.analyze(tmp_path / "none.csv")


def test_the_gate_is_that_of_the_command_line(bundle, tmp_path):
    found = qv.gate(bundle, build="tiny/Q2_K", junit=tmp_path / "j.xml")
    assert found.exit_code == qv.ExitCode.REJECTED
    assert (tmp_path / "j.xml").exists()
    with pytest.raises(qv.StudyError, match="did you mean tiny/Q2_K"):
        qv.load_gate(build="tiny/Q2_k", study=bundle.path / "study.yaml")


def test_grading_again_changes_no_decision_and_asks_nothing(study, tmp_path):
    done = qv.run(study, tmp_path / "b")
    before = (done.path / "scores.parquet").read_bytes(), done.decision.document
    again = qv.grade(done)
    assert ((again.path / "scores.parquet").read_bytes(), again.decision.document) == before
    assert qv.verify(again) == []


def test_labels_are_written_and_neither_is_refused(bundle, tmp_path):
    sheet = qv.label(bundle, out=tmp_path / "sheet.csv", n=5)
    assert (tmp_path / "sheet.csv").exists()
    assert sheet.lines
    with pytest.raises(qv.DataError, match="what to do is not clear"):
        qv.label(bundle)


def test_two_runs_of_a_study_are_compared(study, bundle, tmp_path):
    found = qv.diff(bundle, qv.run(study, tmp_path / "two"))
    assert found.verdicts == ()


def test_a_plan_and_a_report_are_values(study, bundle):
    assert any(str(ITEMS) in line for line in qv.plan(study, bundle).lines())
    assert [path.name for path in qv.report(bundle)] == ["report.md", "report.html"]


EXPORTS = """
import importlib, inspect, pkgutil, sys
import quantverdict as qv
light = sorted(name for name in sys.modules if name.startswith("quantverdict"))
assert light == ["quantverdict"], light
assert not {"polars", "numpy", "pydantic", "torch", "click"} & set(sys.modules)
for found in pkgutil.walk_packages(qv.__path__, "quantverdict."):
    if not found.name.endswith(("__main__", "quantizer_script")):
        importlib.import_module(found.name)
for name in qv.__all__:
    value = getattr(qv, name)
    assert not inspect.ismodule(value), f"{name} is a module"
    if not name.startswith("__"):
        assert callable(value), name
from quantverdict import *
assert run is qv.run
print(len(qv.__all__))
"""


def test_every_public_name_is_what_it_is_called_even_when_every_module_is_imported():
    done = subprocess.run([sys.executable, "-c", EXPORTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 25


def test_every_command_is_a_function():
    """Some look at what is installed or at folders, not at a study; `import` is a word of the language."""
    functions = {"import": "import_logs"}
    named = {functions.get(name, name) for name in commands.commands}
    assert named - {"tasks", "metrics", "doctor", "list"} <= set(qv.__all__)


def test_every_function_is_typed_and_says_what_it_takes():
    for name in qv.__all__:
        value = getattr(qv, name)
        if signatures.isfunction(value):
            hints = signatures.signature(value)
            assert hints.return_annotation is not signatures.Signature.empty, name
            assert all(one.annotation is not one.empty for one in hints.parameters.values()), name
            assert value.__doc__, name
    assert {name for name, value in vars(api).items() if signatures.isfunction(value) and not name.startswith("_")
            if value.__module__ == "quantverdict.api"} <= set(qv.__all__)  # fmt: skip
