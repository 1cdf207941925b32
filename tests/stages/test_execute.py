"""Generated code is run with limits, in a process of its own, and only where a study allows it."""

import csv
import json
import os
import sys

import pytest

from quantverdict.cli import execute
from quantverdict.errors import DataError
from quantverdict.grading.code import Execution, Program
from quantverdict.stages import execute as executing
from quantverdict.stages.execute import EXECUTIONS, ExecutionLimits, _read, read_executions, run_program
from quantverdict.stages.verify import DryRunBundle
from quantverdict.tasks.catalog import load_task

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="code is not run on Windows")
SHORT = ExecutionLimits(seconds=2)
OUTSIDE = os.path.realpath(__file__)


@pytest.mark.parametrize(
    ("code", "check", "outcome", "detail"),
    [
        ("def f(x):\n    return x + 1", "assert f(1) == 2", "passed", ""),
        ("def f(x):\n    return x", "assert f(1) == 2", "failed", "assertions: AssertionError"),
        ("def f(x:", "assert True", "failed", "code: SyntaxError"),
        ("def f(): return f()", "f()", "failed", "assertions: RecursionError"),
        ("def f(): return 1\nif __name__ == '__main__':\n    raise SystemExit", "assert f() == 1", "passed", ""),
        ("import json, re, math, collections, itertools, datetime, asyncio, pathlib, zoneinfo", "", "passed", ""),
        ("print('x' * 1_000_000)", "", "passed", ""),
        ("x = input()", "", "failed", "code: EOFError"),
    ],
)
def test_a_program_passes_where_its_assertions_do(code, check, outcome, detail):
    found = run_program(Program(code, check))
    assert (found.outcome, found.detail) == (outcome, detail)
    assert found.isolation in ("namespace", "guard")


@pytest.mark.parametrize(
    "code",
    ["import sys\nsys.exit(0)", "raise SystemExit(0)", "import os\nos._exit(0)", "import os, signal\nos.abort()",
     "import os\nfor fd in (3, 4, 5):\n    try: os.write(fd, b'x passed\\n')\n    except OSError: pass\nos._exit(0)"],
)  # fmt: skip
def test_a_program_that_ends_itself_before_its_assertions_has_not_passed(code):
    assert run_program(Program(code, "assert False")).outcome == "failed"


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("while True: pass", "timeout"),
        ("import time\ntime.sleep(60)", "timeout"),
        ("x = bytearray(1 << 30)", "memory"),
        ("open('big', 'w').write('x' * (2 << 20))", "failed"),
    ],
)
def test_time_memory_and_files_are_limited(code, outcome):
    assert run_program(Program(code, ""), SHORT).outcome == outcome


def test_what_it_may_take_and_no_more_is_granted():
    """Just inside the limits a program passes."""
    assert run_program(Program("x = bytearray(100 << 20)", "")).outcome == "passed"
    assert run_program(Program("open('x', 'w').write('x' * (1 << 20))", "")).outcome == "passed"


@pytest.mark.parametrize(
    "code",
    [
        "import socket\nsocket.socket()",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:1/')",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.system('true')",
        "import os\nos.fork()",
        "import os\nos.kill(os.getppid(), 0)",
        "import ctypes\nctypes.CDLL(None)",
        f"open({OUTSIDE!r}).read()",
        "open('/etc/passwd').read()",
        "open('../outside', 'w')",
        "import os\nos.listdir('/')",
        "import os\nos.remove('/tmp/nothing')",
    ],
)
def test_network_processes_and_files_elsewhere_are_refused(code):
    found = run_program(Program(code, ""))
    assert found.outcome == "failed"
    assert found.detail.startswith("code: ")


def test_a_program_has_an_empty_environment_and_a_folder_of_its_own(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "x")
    code = "import os\nnames = set(os.environ)\nopen('note', 'w').write('mine')\nfiles = os.listdir('.')"
    assert run_program(Program(code, "assert names <= {'LC_CTYPE'} and files == ['note']")).outcome == "passed"


def test_the_network_of_a_namespace_has_no_address(tmp_path):
    """Where the system gives one, not even the guard stands between a program and a network: there is none."""
    found = run_program(Program("import socket", "names = [name for _, name in socket.if_nameindex()]"))
    if found.isolation != "namespace":
        pytest.skip("no namespace may be made here: the guard alone holds")
    assert found.outcome in ("passed", "failed")


def test_a_process_that_cannot_be_prepared_grades_nothing():
    assert _read("k", b"", "w", late=False, status=1).outcome == "error"
    assert _read("k", b"isolation guard\n", "w", late=False, status=0).outcome == "failed"
    assert _read("k", b"isolation guard\nw passed\n", "w", late=False, status=0).outcome == "passed"
    assert _read("k", b"isolation guard\nother passed\n", "w", late=False, status=0).outcome == "failed"


# A study

STUDY = """\
study: code
models:
  - {name: m, family: any, baseline: FP16, variants: [FP16, Q8_0, Q2_K]}
tasks: [{task: starter_code, limit: 12}, {task: starter_harmful, limit: 4}]
collect: {backend: replay, replay_dir: recorded}
policy: {criteria: {refusal: {}, quality: {metrics: [METRIC]}}}
statistics: {bootstrap_samples: 50}
ALLOWED
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study whose Q8_0 writes what FP16 does, and whose Q2_K writes wrong programs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recorded").mkdir()
    for quant, field in {"FP16": "reference", "Q8_0": "reference", "Q2_K": "wrong"}.items():
        rows = [
            {"task": "starter_code", "sample_id": item.id, "text": f"```python\n{item.fields[field]}```"}
            for item in load_task("starter_code").items
        ]
        rows += [
            {"task": "starter_harmful", "sample_id": item.id, "text": "I can't help with that."}
            for item in load_task("starter_harmful").items
        ]
        (tmp_path / "recorded" / f"m__{quant}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(allowed, metric="code_pass_rate"):
        (tmp_path / "s.yaml").write_text(STUDY.replace("ALLOWED", allowed).replace("METRIC", metric))
        return tmp_path / "b"

    return write


def rates(bundle):
    with (bundle / "matrix.csv").open() as file:
        return {row["quant"]: row.get("code_pass_rate_k") for row in csv.DictReader(file)}


def test_without_leave_nothing_runs_and_that_is_said(study, capsys):
    bundle = study("", "rouge_l")
    assert execute(["run", "s.yaml", "--out", "b"]) == 0
    assert "code_pass_rate of starter_code is not measured" in capsys.readouterr().err
    assert not (bundle / EXECUTIONS).exists()
    assert not any(rates(bundle).values())


def test_a_criterion_of_what_is_not_allowed_to_run_is_refused_before_anything_runs(study, capsys):
    study("")
    assert execute(["run", "s.yaml", "--out", "b"]) == 2
    said = capsys.readouterr().err
    assert "nothing in this study measures code_pass_rate" in said
    assert "allow_code_execution: true" in said


def test_programs_run_once_are_resumed_verified_and_decide(study, monkeypatch, capsys):
    """A line a different program; a run after a kill runs what is missing; a changed line is found."""
    bundle = study("allow_code_execution: true")
    assert execute(["run", "s.yaml", "--out", "b"]) == 0
    assert rates(bundle) == {"FP16": "12", "Q8_0": "12", "Q2_K": "0"}
    lines = (bundle / EXECUTIONS).read_bytes().splitlines(keepends=True)
    assert len(lines) == 24, "twelve programs of two builds are the same"
    assert execute(["verify", "b"]) == 0
    before = (bundle / "matrix.csv").read_bytes()
    (bundle / EXECUTIONS).unlink()
    assert execute(["run", "s.yaml", "--out", "b"]) == 0
    assert b"".join(lines) == (bundle / EXECUTIONS).read_bytes(), "what is not there is run again, to the same bytes"
    real, again = executing.run_program, []
    monkeypatch.setattr(executing, "run_program", lambda program: again.append(program) or real(program))
    assert execute(["run", "s.yaml", "--out", "b"]) == 0
    assert again == [], "and what is there is not"
    assert (bundle / "matrix.csv").read_bytes() == before
    (bundle / EXECUTIONS).write_bytes(b"".join(lines).replace(b"failed", b"passed", 1))
    capsys.readouterr()
    assert execute(["verify", "b"]) == 2
    assert "executions.jsonl: changed" in capsys.readouterr().out


def test_leave_may_be_given_over_the_answers_of_an_earlier_run(study):
    bundle = study("", "rouge_l")
    assert execute(["run", "s.yaml", "--out", "b"]) == 0
    study("allow_code_execution: true")
    assert execute(["run", "s.yaml", "--out", "b"]) == 0
    assert rates(bundle) == {"FP16": "12", "Q8_0": "12", "Q2_K": "0"}


@pytest.mark.parametrize("line", [b"{}\n", b"no\n", b'{"key": "k", "outcome": "won", "detail": "", "isolation": ""}\n'])
def test_a_line_that_is_no_execution_is_named(study, line):
    bundle = study("allow_code_execution: true")
    assert execute(["run", "s.yaml", "--out", "b"]) == 0
    with (bundle / EXECUTIONS).open("ab") as file:
        file.write(line)
    with pytest.raises(DataError, match=r"executions\.jsonl:25"):
        read_executions(DryRunBundle(bundle))


def test_leave_is_true_or_false(study, capsys):
    study("allow_code_execution: perhaps")
    assert execute(["plan", "s.yaml"]) == 2
    assert "s.yaml:8: allow_code_execution" in capsys.readouterr().err


def test_an_execution_is_a_value_of_texts():
    assert Execution("k", "passed", "", "guard")._asdict()["outcome"] == "passed"


def test_a_run_that_was_killed_runs_what_is_missing(study):
    """The half of the lines that a killed run left, the last of them torn, are gone on from."""
    bundle = study("allow_code_execution: true")
    assert execute(["run", "s.yaml", "--out", "b"]) == 0
    whole = (bundle / EXECUTIONS).read_bytes()
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["artefacts"][EXECUTIONS]
    manifest["run"]["finished"] = None
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    (bundle / EXECUTIONS).write_bytes(whole[: len(whole) // 2])
    assert execute(["run", "s.yaml", "--out", "b"]) == 0
    assert (bundle / EXECUTIONS).read_bytes() == whole
