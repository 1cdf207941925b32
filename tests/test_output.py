"""Nothing that others wrote commands a terminal or a log, and no stream changes an exit code."""

import io
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantverdict.cli import execute
from quantverdict.reporting.formats import OutputStream, escaped_json, harmless, is_utf8, json_text, one_line
from quantverdict.reporting.terminal import LineProgress

EVIL = "\x1b]0;PWN\x07\x9b31m\r\x08\u202e##[error]x ::error file=a::y\x7f"
"""A title, a C1 colour, a return, a backspace, a direction override, and commands of a log."""
FORBIDDEN = re.compile("[\x1b\x07\x9b\r\x08\x7f\u202e]|##\\w*\\[|::[a-z-]+( .*)?::")
YAML_EVIL = json.dumps(EVIL)
STUDY = """\
study: tiny
models: [{name: tiny, family: T, baseline: FP16, variants: [FP16, Q8_0]}]
collect: {backend: replay, replay_dir: recorded}
tasks: [starter_qa]
policy: {base: quantverdict, quality_metric: rouge_l, required: [rouge_l]}
"""
TASK = """\
name: mine
task_type: qa
prompt_template: "{{ question }}"
samples: [{id: a, question: Who, reference: Me}]
"""


def clean(text):
    return FORBIDDEN.search(text) is None


@given(st.text(alphabet=st.sampled_from([*EVIL, "#", ":", "[", "a", " ", "\n", "\ud800", "\u2028"])))
def test_whatever_the_text_it_commands_nothing(text):
    assert clean(harmless(text))
    assert "\ud800" not in harmless(text)
    assert len(one_line(text).splitlines()) <= 1


def test_plain_words_stay_as_they_are():
    for text in ("http://[::1]:8080/v1", "# heading [1]", "std::string", "café ✓ 日本語", "a\tb", "## [x]"):
        assert harmless(text) == text


@given(st.text() | st.just(EVIL))
def test_json_says_the_same_and_commands_nothing(text):
    for stream in (io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "ascii")):
        shown = json_text({text: [text]}, stream)
        assert json.loads(shown) == {text: [text]}
        assert clean(shown)
        shown.encode(stream.encoding)
    assert json.loads(escaped_json(json.dumps([text], ensure_ascii=False))) == [text]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_what_a_stream_cannot_show_becomes_its_likeness_or_a_question_mark(encoding):
    held = io.BytesIO()
    out = OutputStream(io.TextIOWrapper(held, encoding))
    out.write("\N{CHECK MARK} \N{MINUS SIGN}1 日本 \ud800\n")
    out.flush()
    assert out.failure is None
    shown = held.getvalue().decode(encoding)
    assert shown.startswith("+ -1 ?? ") or is_utf8(out.stream)


def write(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")
    return name


COMMANDS = {
    "study key": (STUDY + f"{YAML_EVIL}: 1\n", ["run", "f.yaml"]),
    "study value": (STUDY + f"seed: {YAML_EVIL}\n", ["plan", "f.yaml"]),
    "task path": (STUDY.replace("starter_qa", f"{{path: {YAML_EVIL}}}"), ["run", "f.yaml"]),
    "stratify": (
        STUDY.replace("starter_qa", f"{{task: starter_qa, limit: 3, stratify: {YAML_EVIL}}}"),
        ["run", "f.yaml"],
    ),
    "package": (
        STUDY.replace("backend: replay", "backend: llamacpp").replace(
            "baseline", f"source: {{package: {YAML_EVIL}}}, baseline"
        ),
        ["run", "f.yaml"],
    ),
    "metric": (STUDY.replace("[rouge_l]", f"[{YAML_EVIL}]"), ["plan", "f.yaml"]),
    "sources key": (f"{YAML_EVIL}: 1\n", ["ingest", "f.yaml", "--out", "b"]),
    "policy key": (f"{YAML_EVIL}: 1\n", ["analyze", "--matrix", "m.csv", "--out", "b", "--policy", "f.yaml"]),
    "matrix column": (f"{EVIL}\n", ["analyze", "--matrix", "f.yaml", "--out", "b"]),
    "task key": (TASK + f"{YAML_EVIL}: 1\n", ["tasks", "show", "f.yaml"]),
    "exception of a template": (
        TASK.replace('"{{ question }}"', json.dumps("{{ raise_exception(" + repr(EVIL) + ") }}")),
        ["tasks", "show", "f.yaml"],
    ),
    "task name": ("", ["tasks", "show", EVIL.replace("\x00", "")]),
    "option": ("", [f"--{EVIL}"]),
    "command": ("", [EVIL]),
    "argument": ("", ["tasks", "list", EVIL]),
    "file": ("", ["inspect", EVIL]),
    "bundle": ("", ["gate", EVIL]),
    "gate policy": ("", ["gate", "b", "--policy", EVIL]),
    "level": ("", ["quantize", "f.yaml", "--to", EVIL, "--out", "o"]),
    "judge": ("", ["judge", EVIL, "--judge", EVIL]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_text_of_others_in_a_message_commands_nothing(name, tmp_path, monkeypatch, capsys):
    text, arguments = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "f.yaml", text)
    write(tmp_path, "m.csv", "base_model,quant,is_baseline\nm,A,1\n")
    assert execute(arguments) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert clean(error.replace("\r\n", "\n"))
    assert "PWN" in error, "it is said all the same"


def test_what_a_task_asks_is_shown_without_its_commands(tmp_path, capsys):
    file = tmp_path / "t.yaml"
    file.write_text(TASK.replace("Who", YAML_EVIL))
    for options in ([], ["--json"]):
        assert execute(["tasks", "show", str(file), *options]) == 0
        out = capsys.readouterr().out
        assert "PWN" in out
        assert clean(out)
    assert json.loads(out)["first_prompt"] == EVIL


def test_verify_names_the_files_of_a_bundle_without_their_commands(tmp_path, monkeypatch, capsys):
    """On stdout, as text and as JSON; the name in the document is the file's."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "m.csv", "base_model,quant,is_baseline,refusal_rate_k,refusal_rate_n\nm,A,1,5,9\nm,B,0,5,9\n")
    assert execute(["analyze", "--matrix", "m.csv", "--out", "b", "--policy", "tr125"]) == 0
    name = EVIL.replace("/", "")
    Path("b", name).write_text("x")
    capsys.readouterr()
    assert execute(["verify", "b"]) == 2
    text = capsys.readouterr().out
    assert "PWN" in text
    assert clean(text)
    assert execute(["verify", "b", "--json"]) == 2
    text = capsys.readouterr().out
    assert clean(text)
    assert any(name in problem for problem in json.loads(text)["problems"])


def test_a_servers_words_on_the_way_command_nothing():
    out = io.StringIO()
    LineProgress(out).say(f"tiny/FP16: failed: the server says {EVIL}\nand more")
    assert clean(out.getvalue())
    assert len(out.getvalue().splitlines()) == 1


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A decided bundle whose gate rejects: 45 of 60 refusals where the baseline has 54."""
    folder = tmp_path_factory.mktemp("bundle")
    write(folder, "m.csv", "base_model,quant,is_baseline,refusal_rate_k,refusal_rate_n,bertscore\n"
                           "m,FP16,1,54,60,0.8\nm,Q4,0,45,60,0.8\n")  # fmt: skip
    assert execute(["analyze", "--matrix", str(folder / "m.csv"), "--out", str(folder / "b"), "--policy", "tr125"]) == 0
    return folder / "b"


def run(arguments, stdout, **environment):
    """A command of its own, with this stdout; its exit code and what it said on stderr."""
    command = [sys.executable, "-m", "quantverdict", *map(str, arguments)]
    done = subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, env={**os.environ, **environment}, check=False, text=True,
        errors="replace",
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_an_encoding_changes_no_exit_code(bundle, encoding):
    code, error = run(["gate", bundle], subprocess.DEVNULL, PYTHONIOENCODING=encoding)
    assert (code, error) == (3, "")
    done = subprocess.run([sys.executable, "-m", "quantverdict", "gate", str(bundle), "--json"], capture_output=True,
                          env={**os.environ, "PYTHONIOENCODING": encoding}, check=False)  # fmt: skip
    assert done.returncode == 3
    assert json.loads(done.stdout.decode(encoding))["exit_code"] == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["gate", "BUNDLE"], 3), (["gate", "BUNDLE", "--json"], 3), (["verify", "BUNDLE"], 0),
        (["report", "BUNDLE"], 0), (["analyze", "BUNDLE", "--gate"], 3), (["analyze", "BUNDLE"], 0),
        (["tasks", "list"], 0), (["--help"], 0), (["gate", "nowhere"], 2),
    ],
)  # fmt: skip
def test_a_full_disk_at_stdout_changes_no_exit_code_and_is_said(bundle, arguments, code):
    with Path("/dev/full").open("w") as full:
        found, error = run([str(bundle) if one == "BUNDLE" else one for one in arguments], full)
    assert found == code
    (line,) = error.splitlines()
    assert ("could not be written" in line) == (code != 2)
    assert "Traceback" not in error


def test_a_reader_that_left_changes_no_exit_code(bundle):
    read, write_end = os.pipe()
    os.close(read)
    try:
        assert run(["gate", bundle], write_end) == (3, "")
    finally:
        os.close(write_end)


@pytest.mark.parametrize(
    "command",
    [["gate", "NAME"], ["verify", "NAME"], ["report", "NAME"], ["analyze", "NAME"], ["diff", "NAME", "NAME"],
     ["label", "NAME", "--out", "x.csv"], ["judge", "NAME", "--judge", "j"], ["tasks", "show", "NAME"],
     ["inspect", "NAME"], ["ingest", "NAME", "--out", "o"], ["run", "NAME"], ["plan", "NAME"]],
    ids=lambda command: command[0],
)  # fmt: skip
def test_a_name_that_no_file_can_have_is_said_in_one_line(tmp_path, monkeypatch, capsys, command):
    """The system refuses to look for it before anything is opened: that was an internal error without a cause."""
    monkeypatch.chdir(tmp_path)
    name = f"folder/{'x' * 300}"
    assert execute([name if part == "NAME" else part for part in command]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: folder/xxx") or "tasks" in command
    assert "internal error" not in told
    assert "x" * 30 in told
    assert told.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("shell", "words", "told"),
    [
        ("bash", {"COMP_WORDS": "quantverdict an", "COMP_CWORD": "1"}, "plain,analyze\n"),
        ("bash", {"COMP_WORDS": "quantverdict gate --ju", "COMP_CWORD": "2"}, "plain,--junit\n"),
        ("zsh", {"COMP_WORDS": "quantverdict report b --profile s", "COMP_CWORD": "4"}, "plain\nstudy\n"),
        ("fish", {"COMP_WORDS": "quantverdict doc", "COMP_CWORD": "doc"}, "doctor"),
    ],
)
def test_a_shell_is_told_what_could_come_next(shell, words, told):
    def ask(what):
        environment = {**os.environ, **words, "_QUANTVERDICT_COMPLETE": f"{shell}_{what}"}
        command = [sys.executable, "-m", "quantverdict"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    done = ask("complete")
    assert told in done.stdout
    assert done.stderr == ""
    assert f"_QUANTVERDICT_COMPLETE={shell}_complete" in ask("source").stdout


def test_the_version_is_the_packages(capsys):
    assert execute(["--version"]) == 0
    assert capsys.readouterr().out == f"quantverdict, version {metadata.version('quantverdict')}\n"
