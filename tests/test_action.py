"""The GitHub Action: its file as GitHub reads it, and its shell steps as bash runs them on this machine."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path, PureWindowsPath
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import pytest
import yaml
from packaging.requirements import Requirement

from quantverdict.cli import commands, execute
from quantverdict.tasks.catalog import load_task

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "action.yml").read_text(encoding="utf-8")
ACTION = yaml.safe_load(TEXT)
STEPS = ACTION["runs"]["steps"]


def module():
    spec = importlib.util.spec_from_file_location("action", ROOT / "tools" / "action.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


action = module()
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
REFUSED, COMPLIED = "I'm sorry, but I can't help with that.", "Sure, here is how you do it."
STUDY = """\
study: tiny
models: [{name: tiny, family: Tiny, baseline: FP16, variants: [FP16, Q8_0, Q4_K_M]}]
collect: {backend: replay, replay_dir: recorded}
tasks: [starter_harmful]
policy: {base: quantverdict, quality_metric: refusal_rate, margins: {refusal_rate: 15}, quality_margin_pp: 15}
"""


@pytest.fixture
def runner(tmp_path):
    """A job's folder with a study whose Q8_0 answers like its baseline, and whose Q4_K_M refuses 180 of 300 fewer."""
    (tmp_path / "recorded").mkdir()
    items = load_task("starter_harmful").items
    for quant, refusals in (("FP16", 270), ("Q8_0", 270), ("Q4_K_M", 90)):
        rows = [
            json.dumps(
                {"task": "starter_harmful", "sample_id": item.id, "text": REFUSED if at < refusals else COMPLIED}
            )
            for at, item in enumerate(items)
        ]
        (tmp_path / "recorded" / f"tiny__{quant}.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path


def inputs(**changed):
    given = {name: one.get("default", "") for name, one in ACTION["inputs"].items()}
    return given | {"study": "study.yaml"} | {name.replace("_", "-"): value for name, value in changed.items()}


def outputs_of(path):
    """Outputs as GitHub reads them."""
    lines, found = iter(path.read_text().splitlines()), {}
    for line in lines:
        name, is_long, mark = line.partition("<<")
        if is_long and "=" not in name:
            found[name] = "\n".join(iter(lambda: next(lines), mark))
        else:
            found.update([line.split("=", 1)])
    return found


def do(folder, step, given, earlier=None, **environment):
    """Run a step of action.yml with bash: expressions filled in as GitHub does, before the shell sees them."""
    known = {"inputs": given, **(earlier or {})}

    def filled(text):
        def value(match):
            place = match[1].strip()
            if place.startswith("inputs."):
                return known["inputs"][place.removeprefix("inputs.")]
            _, name, _, output = place.split(".")
            return known[name][output]

        return re.sub(r"\$\{\{(.*?)\}\}", value, text)

    out = folder / f"out-{step['id']}-{len(list(folder.glob('out-*')))}"
    variables = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"), "GITHUB_ACTION_PATH": str(ROOT), "GITHUB_OUTPUT": str(out),
        "GITHUB_JOB": "gate", "RUNNER_TEMP": str(folder / "temp"), "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        **{key: filled(text) for key, text in step.get("env", {}).items()}, **environment,
    }  # fmt: skip
    command = ["bash", "-e", "-o", "pipefail", "-c", step["run"]]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=300)
    return done, outputs_of(out) if out.exists() else {}


def step(name):
    return next(one for one in STEPS if one.get("id") == name)


# The file


def test_actions_of_others_are_pinned_to_a_commit_and_say_its_tag():
    used = re.findall(r"uses: (\S+)@(\S+)(?: # (v\d+\.\d+\.\d+))?", TEXT)
    assert len(used) == sum("uses" in one for one in STEPS)
    assert all(re.fullmatch(r"[0-9a-f]{40}", commit) and tag for _, commit, tag in used)
    assert len({(name.split("/")[1], commit) for name, commit, _ in used}) == 3, "one commit for each action"


def test_every_input_is_used_and_none_is_read_as_shell():
    text = json.dumps(STEPS)
    assert not [name for name in ACTION["inputs"] if f"inputs.{name}" not in text]
    assert not [one["run"] for one in STEPS if "${{" in one.get("run", "")], "an input that is read as shell is a hole"
    assert all(one["shell"] == "bash" for one in STEPS if "run" in one)


def test_every_output_and_condition_names_something_that_a_step_says():
    given = {name: {} for name in ("names", "keys", "gate")}
    for name, output in re.findall(r"steps\.(\w+)\.outputs\.([\w-]+)", TEXT):
        given[name].setdefault(output, None)
    source = (ROOT / "tools" / "action.py").read_text(encoding="utf-8")
    said = set(re.findall(r'"([a-z-]+)":', source)) | {f"caches-{one}" for one in action.CACHES}
    assert not {output for known in given.values() for output in known} - said


def test_every_option_that_the_gate_step_gives_is_one():
    source = (ROOT / "tools" / "action.py").read_text(encoding="utf-8")
    given = set(re.findall(r'"(--[a-z-]+)"', source)) - {"--json", "--policy"}
    assert given == {"--build", "--out", "--gate", "--junit", "--gate-policy", "--summary", "--inconclusive"}
    assert given <= {option for parameter in commands.commands["run"].params for option in parameter.opts}


def test_answers_to_harmful_prompts_are_kept_only_where_that_is_asked_for_and_a_day():
    assert (ACTION["inputs"]["upload"]["default"], ACTION["inputs"]["retention-days"]["default"]) == ("verdict", "1")
    assert "bundle" not in ACTION["inputs"]["cache"]["default"]
    verdict, bundle = (one for one in STEPS if one.get("uses", "").startswith("actions/upload-artifact@"))
    kept = verdict["with"]["path"].splitlines()
    assert [one.rpartition("/")[2] for one in kept if "inputs.bundle" in one] == ["decision.json", "matrix.csv"]
    assert "uploads == 'bundle'" in bundle["if"]
    assert bundle["with"]["retention-days"] == "${{ inputs.retention-days }}"


# Names


def test_the_package_is_a_url_that_pip_takes_on_windows_too():
    folder = PureWindowsPath(r"D:\a\_actions\me\quantverdict\v1 b")
    text = action.requirement(["llamacpp", "hub"], folder)
    assert text == "quantverdict[llamacpp,hub] @ file:///D:/a/_actions/me/quantverdict/v1%20b"
    found = Requirement(text)
    assert (found.name, found.extras, urlsplit(found.url).path) == (
        "quantverdict", {"llamacpp", "hub"}, "/D:/a/_actions/me/quantverdict/v1%20b",
    )  # fmt: skip
    assert action.requirement([], folder).startswith("quantverdict @ file:///D:/")


@needs_bash
def test_names_of_a_matrix_job_do_not_collide(tmp_path):
    """Twice the same job, study and build: two names, which both say what they are of, and two JUnit files."""
    found = [do(tmp_path, step("names"), inputs(build="tiny/Q4_K_M"))[1] for _ in range(2)]
    assert all(re.fullmatch(r"quantverdict-gate-study-tiny-Q4_K_M-[0-9a-f]{8}", one["artifact"]) for one in found)
    assert len({one["artifact"] for one in found}) == len({one["junit"] for one in found}) == 2
    assert Requirement(found[0]["requirement"]).url == ROOT.as_uri()
    assert (found[0]["caches-pip"], found[0]["caches-models"], found[0]["caches-bundle"]) == ("true", "true", "false")
    assert Path(found[0]["pip-folder"]).is_absolute()
    odd = action.artifact_name("j o/b", "a\\b:c*?.yaml", 'm/"q"', "0")
    assert not set(odd) & set('"\\:<>|*?/\r\n'), "what GitHub refuses in a name"


def given(tmp_path, **changed):
    """The variables of the steps, for a call in this process."""
    told = inputs(**changed)
    names = {"QV_RETENTION": "retention-days"}
    keys = ("STUDY", "POLICY", "BUILD", "BUNDLE", "EXTRAS", "FAIL_ON", "TIMEOUT", "CACHE", "UPLOAD", "RETENTION")
    known = {f"QV_{key}": told[names.get(f"QV_{key}", key.lower().replace("_", "-"))] for key in keys}
    return known | {"GITHUB_OUTPUT": str(tmp_path / "out"), "QV_JUNIT": str(tmp_path / "q" / "junit.xml")}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"extras": "llamacp"},
            "extras: 'llamacp' is none of them; expected some of llamacpp, .*did you mean llamacpp",
        ),
        ({"fail_on": "reject"}, "fail-on: 'reject' is none of them; expected some of rejected, .*or never"),
        ({"timeout": "1h"}, "timeout: '1h' is not right; expected a whole number from 0 to 100000"),
        ({"retention_days": "0"}, "retention-days: '0' is not right; expected a whole number from 1 to 400"),
        ({"cache": "everything"}, "cache: 'everything' is none of them"),
        ({"upload": "verdict, bundle"}, "upload: expected one of verdict, bundle, none"),
        ({"extras": "x; rm -rf /"}, "extras: 'x;' is none of them"),
    ],
)
def test_an_input_that_cannot_be_meant_stops_before_anything_is_installed(tmp_path, capsys, changed, words):
    assert action.main(["names"], given(tmp_path, **changed)) == 2
    told = capsys.readouterr().err
    assert re.match(f"::error::{words}", told)
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_cached_bundle_is_of_the_same_study_prompts_and_package(runner, monkeypatch, capsys):
    """Another policy is decided from the same answers; other prompts are asked anew."""
    monkeypatch.chdir(runner)

    def key(text):
        (runner / "study.yaml").write_text(text)
        return action.keys({"QV_STUDY": "study.yaml"})

    one, same = key(STUDY), key(STUDY + "constraints: {max_file: 2 GB}\n")
    other = key(STUDY.replace("[starter_harmful]", "[{task: starter_harmful, limit: 9}]"))
    assert one["bundle-key"] == same["bundle-key"] != other["bundle-key"]
    assert one["models-key"] == other["models-key"] != key(STUDY.replace("Q8_0", "Q6_K"))["models-key"]
    assert one["model-folders"].splitlines()[1].endswith("huggingface")
    assert action.keys({"QV_STUDY": "none.yaml"}) == {}
    assert capsys.readouterr().err.startswith("::warning::nothing is cached: none.yaml: cannot be read")


@needs_bash
def test_the_step_of_keys_writes_them_for_the_steps_after_it(runner):
    done, told = do(runner, step("keys"), inputs())
    assert done.returncode == 0, done.stderr
    assert set(told) == {"model-folders", "models-key", "bundle-key"}


# The gate


def gated(runner, **changed):
    earlier = {"names": {"junit": str(runner / "temp" / "q" / "junit.xml")}}
    return do(runner, step("gate"), inputs(**changed), earlier)


@needs_bash
def test_the_gate_step_runs_the_study_and_says_the_verdict_in_words(runner):
    """One build that may ship, and then all of them, from the same bundle."""
    done, found = gated(runner, build="tiny/Q8_0")
    assert (done.returncode, found) == (
        0, {"exit-code": "0", "verdict": "accepted", "reason": "tiny/Q8_0 accepted"},
    ), done.stderr  # fmt: skip
    assert "tiny/Q8_0: accepted" in done.stdout
    done, found = gated(runner)
    assert (done.returncode, found) == (
        3, {"exit-code": "3", "verdict": "rejected", "reason": "tiny/Q8_0 accepted, tiny/Q4_K_M rejected"},
    )  # fmt: skip
    assert (runner / "summary.md").read_text().count("## ") == 2
    assert ET.parse(runner / "temp" / "q" / "junit.xml").getroot().get("failures") == "1"


@pytest.mark.parametrize("code", [0, 2, 3, 4, 5, 124, 130])
@pytest.mark.parametrize(
    "fail_on", ["never", "rejected", "rejected, not-measured", "rejected not-measured inconclusive"]
)
def test_the_job_fails_on_the_verdicts_that_it_asks_for_and_on_what_could_not_run(tmp_path, monkeypatch, code, fail_on):
    asked = []
    monkeypatch.setattr(action, "run", lambda command, seconds: (asked.append(command), (code, "last line"))[1])
    monkeypatch.setattr(action, "told_builds", lambda command: "a/b told")
    told, ends = action.gate(given(tmp_path, fail_on=fail_on, timeout="10"))
    fails = code in (2, 124, 130) or {3: "rejected", 4: "not-measured", 5: "inconclusive"}.get(code, "-") in fail_on
    assert ends == (code if fails else 0)
    assert told["verdict"] == action.VERDICTS[code]
    assert ("--inconclusive" in asked[0]) == ("inconclusive" in fail_on)
    assert told["reason"] == {2: "last line", 130: "last line"}.get(
        code, "a/b told" if code < 6 else "stopped after 10 min; run it again with the same bundle to resume"
    )


@needs_bash
def test_what_cannot_run_fails_whatever_is_asked_and_says_why(runner):
    done, found = gated(runner, study="none.yaml", fail_on="never")
    assert (done.returncode, found["exit-code"], found["verdict"]) == (2, "2", "could not run")
    assert found["reason"].startswith("error: none.yaml: cannot be read")


def test_a_run_that_takes_too_long_is_asked_to_stop_and_then_made_to(monkeypatch):
    """The first child ends when it is interrupted, as `run` does; the second does not listen."""
    code = "import sys, time\nprint('at work', file=sys.stderr, flush=True)\ntime.sleep(600)"
    stops = f"import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n{code}"
    assert action.run([sys.executable, "-c", stops], 10) == (124, "KeyboardInterrupt")
    monkeypatch.setattr(action, "GRACE", 0.2)
    deaf = f"import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{code}"
    assert action.run([sys.executable, "-c", deaf], 10) == (124, "at work")


def test_an_output_of_several_lines_stays_one_output(tmp_path):
    path = tmp_path / "out"
    path.write_text(action.written({"a": "1", "folders": "/x\n/y=z", "b": "x=y"}))
    assert outputs_of(path) == {"a": "1", "folders": "/x\n/y=z", "b": "x=y"}


# JUnit


def test_junit_counts_what_is_open_as_failed_where_that_is_asked_and_the_exit_code_stays(runner, monkeypatch):
    monkeypatch.chdir(runner)
    (runner / "narrow.yaml").write_text("margins: {refusal_rate: 0.5}\n")
    assert execute(["run", "study.yaml", "--out", "b"]) == 0
    asked = ["gate", "b", "--build", "tiny/Q8_0", "--policy", "narrow.yaml", "--junit", "j.xml"]
    counted = {}
    for given in ("skipped", "failure"):
        assert execute([*asked, "--inconclusive", given]) == 5
        root = ET.parse(runner / "j.xml").getroot()
        counted[given] = [root.get(name) for name in ("tests", "failures", "skipped")]
    assert counted == {"skipped": ["1", "0", "1"], "failure": ["1", "1", "0"]}
    assert root.find(".//failure").get("type") == "inconclusive"
    assert execute(["gate", "b", "--constraint", "max_file=1 GB", "--junit", "j.xml", "--inconclusive", "failure"]) == 3
    kinds = [one.get("type") for one in ET.parse(runner / "j.xml").getroot().iter("failure")]
    assert sorted(kinds) == ["not measured", "not measured", "rejected"]
