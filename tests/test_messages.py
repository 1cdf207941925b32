"""What is said besides results: how loud, where it is kept, what a program reads of a failure, how a signal ends it."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

import quantverdict as qv
from quantverdict.cli import execute
from quantverdict.tasks.catalog import load_task

STUDY = """\
study: door
models: [{name: tiny, family: Tiny, baseline: FP16, variants: [FP16, Q2_K]}]
collect: {backend: replay, replay_dir: recorded}
tasks: [{task: starter_harmful, limit: 8}]
policy: {criteria: {refusal: {demanded: true}}, quality_metric: refusal_rate}
statistics: {bootstrap_samples: 20}
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recorded").mkdir()
    for quant in ("FP16", "Q2_K"):
        rows = [{"task": "starter_harmful", "sample_id": item.id, "text": "I can't help with that."}
                for item in load_task("starter_harmful").items]  # fmt: skip
        (tmp_path / "recorded" / f"tiny__{quant}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path


# A failure as JSON


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["gate", "nothere", "--json"], "BundleError", "nothere: not a bundle (no manifest.json)"),
        (["inspect", "no.gguf", "--json"], "ArtifactError", None),
        (["gate", "--nope", "b", "--json"], "UsageError", None),
        (["nope", "--json"], "UsageError", None),
    ],
)
def test_with_json_a_failure_is_the_one_document_and_the_line_stays_on_stderr(capsys, arguments, kind, message):
    assert execute(arguments) == 2
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert list(found) == ["error"]
    assert (found["error"]["kind"], found["error"]["exit_code"]) == (kind, 2)
    assert found["error"]["message"] in err
    assert message is None or found["error"]["message"] == message


def test_wrong_input_has_its_place_in_the_document(tmp_path, capsys):
    (tmp_path / "study.yaml").write_text("study: s\nmodles: []\n")
    assert execute(["plan", str(tmp_path / "study.yaml"), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["kind"], error["file"], error["line"]) == ("StudyError", str(tmp_path / "study.yaml"), 2)
    assert error["field"] == "modles"


def test_without_json_and_behind_a_double_dash_nothing_goes_to_stdout(capsys):
    for arguments in (["gate", "nothere"], ["gate", "--", "--json"]):
        assert execute(arguments) == 2
        assert capsys.readouterr().out == ""


def test_a_document_that_was_printed_is_the_only_one(study, capsys):
    """`verify` says itself what does not hold, and exits 2."""
    bundle = qv.run(study / "study.yaml", study / "b", cache=False).path
    (bundle / "deltas.csv").write_text("x\n")
    assert execute(["verify", str(bundle), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_an_interruption_is_told_as_one(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("quantverdict.api.verify", interrupted)
    assert execute(["verify", "b", "--json"]) == 130
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["kind"], error["exit_code"]) == ("Interrupted", 130)


# How loud, and where else


@pytest.mark.parametrize("behind", [True, False])
def test_quiet_is_silent_but_for_errors_and_the_log_has_every_line(study, capsys, behind):
    """The options stand before the command or behind it."""
    asked, quiet = ["run", "study.yaml", "--out", "b", "--no-cache"], ["-q", "--log-file", "log.txt"]
    assert execute([*asked, *quiet] if behind else [*quiet, *asked]) == 0
    out, err = capsys.readouterr()
    assert "tiny" in out
    assert err == ""
    log = (study / "log.txt").read_text()
    assert re.search(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ tiny/Q2_K: 8 answers, .+$", log, re.MULTILINE)
    assert execute(["-q", "gate", "nothere", "--log-file", "log.txt"]) == 2
    assert capsys.readouterr().err == "error: nothere: not a bundle (no manifest.json)\n"
    added = (study / "log.txt").read_text().removeprefix(log)
    assert re.fullmatch(r"\S+Z error: nothere: not a bundle \(no manifest\.json\)\n", added)


def test_verbose_has_the_time_of_each_line_and_shows_where_an_internal_error_came_from(study, capsys, monkeypatch):
    assert execute(["-v", "run", "study.yaml", "--out", "b", "--no-cache"]) == 0
    assert re.search(r"^ +\d+\.\d s  tiny/FP16: 8 answers", capsys.readouterr().err, re.MULTILINE)
    monkeypatch.setattr("quantverdict.api.verify", lambda _: 1 / 0)
    assert execute(["verify", "b"]) == 2
    with pytest.raises(ZeroDivisionError):
        execute(["verify", "b", "-v"])


def test_a_log_that_cannot_be_written_is_refused_before_anything_runs(study, capsys):
    assert execute(["run", "study.yaml", "--out", "b", "--log-file", str(study)]) == 2
    assert "cannot be written (it is a folder)" in capsys.readouterr().err
    assert not (study / "b").exists()


# Signals

WAITS = """\
import sys, time
from quantverdict.backends import replay
from quantverdict.cli import main
own = replay.ReplayBackend.complete
def slow(self, *given, **how):
    found = own(self, *given, **how)
    print("asked", flush=True)
    time.sleep(0.4)
    return found
replay.ReplayBackend.complete = slow
sys.argv[0] = "quantverdict"
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="no process is sent SIGTERM there")
def test_sigterm_ends_a_run_as_an_interruption_and_it_goes_on(study):
    """Exit 143, one line, a bundle whose next run asks only what is missing."""
    (study / "study.yaml").write_text(STUDY.replace("replay_dir: recorded", "replay_dir: recorded, batch_size: 2"))
    command = [sys.executable, "-c", WAITS, "run", "study.yaml", "--out", "b", "--no-cache", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "asked\n"
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGTERM == 143
    assert err.splitlines()[-1] == "ended by SIGTERM; the same command goes on where it stopped"
    assert "Traceback" not in err
    stored = (study / "b" / "responses" / "tiny__FP16.jsonl").read_text().count("\n")
    assert 2 <= stored < 8
    assert execute(["run", "study.yaml", "--out", "b", "--no-cache", "-q"]) == 0
    assert qv.open_bundle(study / "b").responses("tiny/FP16").height == 8
    assert qv.verify(study / "b") == []
