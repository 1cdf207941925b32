"""A decision is sealed whole or not at all: whatever a kill leaves is finished by the same command or refused."""

import json
import shutil
from itertools import count
from pathlib import Path

import pytest
import yaml
from tests.test_gate import STUDY, record

import quantverdict as qv
from quantverdict.bundle import files, manifest
from quantverdict.cli import execute
from quantverdict.registry import TASKS
from quantverdict.registry.listing import resource
from quantverdict.stages import run as pipeline

pytestmark = pytest.mark.usefixtures("small_battery")

MATRIX = Path(__file__).parent / "data" / "published_matrix.csv"
POLICY = """\
base: quantverdict
quality_metric: choice_accuracy
margins: {refusal_rate: 90, choice_accuracy: 90}
required: [refusal_rate]
"""


class Killed(BaseException):
    """In place of a signal: nothing in the program catches it."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Of sixty harmful requests the baseline refuses 54, Q4_K_M 18: inferior by any margin but a wide one."""
    folder = tmp_path_factory.mktemp("sealing")
    for quant, refusals in (("FP16", 54), ("Q4_K_M", 18)):
        record(folder / "recorded", quant, refusals)
    (folder / "tiny.yaml").write_text(STUDY.replace("FP16, Q8_0, Q4_K_M, Q2_K", "FP16, Q4_K_M"))
    bundle = qv.run(folder / "tiny.yaml", folder / "b").path
    assert execute(["label", str(bundle), "--out", str(folder / "sheet.csv"), "--n", "20"]) == 0
    text = (folder / "sheet.csv").read_text(encoding="utf-8-sig")
    rows = [line.removesuffix('""') + '"FULL_REFUSAL"' if line.endswith('""') else line for line in text.splitlines()]
    (folder / "filled.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def bundle(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("filled.csv", "tiny.yaml"):
        shutil.copy(finished / name, tmp_path)
    shutil.copytree(finished / "recorded", tmp_path / "recorded")
    (tmp_path / "wide.yaml").write_text(POLICY)
    (tmp_path / "own.yaml").write_text("margins: {refusal_rate: 4}\n")
    return Path(shutil.copytree(finished / "b", tmp_path / "b"))


def contents(folder):
    """Of every artefact but those of times."""
    names = manifest.artefact_names(folder)
    return {name: (folder / name).read_bytes() for name in names if not name.startswith(manifest.TIMED)}


def killed_at(monkeypatch, number, command):
    """Run a command up to the write of its file of this number; False where it has not so many."""
    written = count()
    real = files.Path.replace

    def replace(path, target):
        if next(written) == number:
            raise Killed
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.Path, "replace", replace)
        try:
            execute(command)
        except Killed:
            return True
    return False


COMMANDS = {
    "analyze": ["analyze", "b", "--policy", "wide.yaml"],
    "label --read": ["label", "b", "--read", "filled.csv"],
    "label --out": ["label", "b", "--out", "new.csv", "--n", "5"],
    "report": ["report", "b", "--profile", "study"],
}


@pytest.mark.parametrize(
    ("name", "number"),
    [("analyze", 0), ("analyze", 2), ("analyze", 20), ("label --read", 1), ("label --read", 3), ("label --out", 2),
     ("report", 2)],
)  # fmt: skip
def test_a_kill_between_any_two_writes_never_leaves_a_mixture_that_passes(bundle, capsys, monkeypatch, name, number):
    """Whatever is asked of it next is refused, or makes a whole decision; the same command gives what it would have."""
    command = COMMANDS[name]
    shutil.copytree(bundle, "whole")
    shutil.copytree(bundle, "k")
    assert killed_at(monkeypatch, number, [*command[:1], "k", *command[2:]])
    capsys.readouterr()
    unchanged = contents(Path("k")) == contents(bundle)
    for other in (["gate", "w"], ["report", "w"], ["diff", "w", "b"], ["verify", "w"]):
        shutil.copytree("k", "w")
        code = execute(other)
        told = capsys.readouterr().err
        assert "internal" not in told
        if code != 2 and other[0] == "report":
            assert pipeline.verify(Path("w")) == [], other
        elif code != 2:
            assert unchanged, other
        shutil.rmtree("w")
    for folder in ("k", "whole"):
        Path("new.csv").unlink(missing_ok=True)
        assert execute([*command[:1], folder, *command[2:]]) == 0
    assert contents(Path("k")) == contents(Path("whole"))
    assert pipeline.verify(Path("k")) == []


def test_a_decision_that_was_broken_off_is_not_reported_as_finished(bundle, capsys, monkeypatch):
    """Tables of the wide policy beside those of the narrow one: one line names what brings them to one end."""
    assert killed_at(monkeypatch, 12, COMMANDS["analyze"])
    assert execute(["report", "b"]) == 2
    assert "b: `analyze` was broken off here; give that command again first" in capsys.readouterr().err
    assert execute(["gate", "b"]) == 2
    assert "holds no finished decision" in capsys.readouterr().err
    run = json.loads(Path("b/manifest.json").read_text())["run"]
    assert (run["finished"], run["changing"]) == (None, "analyze")


@pytest.mark.parametrize("command", [["report"], ["analyze"], ["gate"], ["label"], ["read"], ["diff"], ["own"]])
def test_what_a_command_rests_on_is_what_it_was(bundle, capsys, command):
    """One flipped bit in any file: one line names it, and the bundle stays as it is."""
    asked = {
        "report": ["report", "w"], "analyze": ["analyze", "w"], "gate": ["gate", "w"], "diff": ["diff", "b", "w"],
        "label": ["label", "w", "--out", "new.csv"], "read": ["label", "w", "--read", "filled.csv"],
        "own": ["gate", "w", "--policy", "own.yaml"],
    }[command[0]]  # fmt: skip
    free = {"report.md", "report.html", "claims.csv"}
    for name in manifest.artefact_names(bundle):
        primary = "/" in name or not name.endswith(".csv") or name in manifest.GIVEN
        decided = name in ("decision.json", "matrix.csv")
        read = {
            "report": name not in free,
            "label": name not in free,
            "read": name not in free,
            "analyze": primary and name not in {*free, "decision.json"},
            "gate": name in ("decision.json", "matrix.csv", "scores.parquet"),
            "own": name not in free and not name.startswith("timings/"),
            "diff": name not in free and not name.startswith("timings/"),
        }[command[0]]
        if not read and not (decided and command[0] == "gate"):
            continue
        shutil.copytree(bundle, "w")
        data = bytearray(Path("w", name).read_bytes())
        data[len(data) // 2] ^= 1
        Path("w", name).write_bytes(data)
        before = contents(Path("w"))
        assert execute(asked) == 2, name
        (line,) = capsys.readouterr().err.splitlines()
        assert f"w/{name}: changed since" in line
        assert contents(Path("w")) == before
        shutil.rmtree("w")


@pytest.mark.parametrize("asked", [["gate", "w"], ["gate", "w", "--policy", "own.yaml"]])
def test_whatever_a_gate_does_not_check_it_does_not_read(bundle, capsys, asked):
    """Without a file, a gate is refused or says what it said with it."""
    shutil.copytree(bundle, "w")
    expected = execute([*asked, "--json"]), capsys.readouterr().out
    for name in manifest.artefact_names(bundle):
        Path("w", name).rename("aside")
        found = execute([*asked, "--json"]), capsys.readouterr().out
        assert found == expected or found[0] == 2, name
        Path("aside").rename(Path("w", name))


def test_judgements_that_were_replaced_do_not_move_a_gate(bundle, capsys):
    """A file that the manifest does not know is refused as one that was changed."""
    import polars as pl

    from quantverdict.bundle.frames import JUDGEMENTS

    pl.DataFrame({name: ["x"] for name in JUDGEMENTS}).write_parquet("b/judgements.parquet")
    for more in ([], ["--policy", "own.yaml"]):
        assert execute(["gate", "b", *more]) == 2
        assert "b/judgements.parquet: changed since the bundle was finished" in capsys.readouterr().err


def test_a_gate_that_verifies_is_refused_by_what_does_not_follow(bundle, capsys):
    """Numbers that were changed together with their hashes pass the gate, and not the gate that computes them again."""
    import hashlib

    document = Path("b/decision.json")
    document.write_text(document.read_text().replace('"inferior"', '"non_inferior"'))
    told = json.loads(Path("b/manifest.json").read_text())
    told["artefacts"]["decision.json"]["sha256"] = hashlib.sha256(document.read_bytes()).hexdigest()
    Path("b/manifest.json").write_text(json.dumps(told))
    assert execute(["gate", "b"]) != 2
    capsys.readouterr()
    assert execute(["gate", "b", "--verify", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert any(problem.startswith("decision.json: ") for problem in found["problems"])


def test_a_whole_bundle_passes_the_gate_that_verifies(bundle, capsys):
    assert execute(["gate", "b", "--verify"]) == execute(["gate", "b"]) == 3


def test_a_run_that_fails_before_it_asks_leaves_the_bundle_finished(bundle, capsys):
    """Another seed is refused at once, another prompt once the study, which may change, is taken for the new one."""
    before, told = contents(Path("b")), Path("b/manifest.json").read_bytes()
    study = Path("tiny.yaml").read_text()
    for wrong in (study.replace("tasks: [", "seed: 7\ntasks: ["), other_prompt(study)):
        Path("tiny.yaml").write_text(wrong)
        capsys.readouterr()
        assert execute(["run", "tiny.yaml", "--out", "b"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "seed was 42, is 7" in line or "begun with: starter_choice/" in line
        assert execute(["gate", "b"]) == 3
        assert (contents(Path("b")), Path("b/manifest.json").read_bytes()) == (before, told)


def other_prompt(study):
    """A study with a built-in task whose text is another one, and a policy that would be taken over."""
    task = yaml.safe_load(resource(TASKS["starter_choice"].file).read_text(encoding="utf-8"))
    Path("choice.yaml").write_text(json.dumps(task | {"prompt_template": "Now: " + task["prompt_template"]}))
    return study.replace("starter_choice", "{path: choice.yaml}").replace("rouge_l", "choice_accuracy")


@pytest.mark.parametrize("name", ["artifacts.json", "cells.json", "labels.csv", "labels_key.csv", "responses/x"])
def test_a_run_of_a_finished_bundle_takes_nothing_over_that_was_changed(bundle, capsys, name):
    """People's labels, what proves a build to be its baseline's, and the answers themselves."""
    name = "responses/tiny__FP16.jsonl" if name == "responses/x" else name
    assert execute(["label", "b", "--read", "filled.csv"]) == 0
    data = bytearray(Path("b", name).read_bytes())
    data[len(data) // 2] ^= 1
    Path("b", name).write_bytes(data)
    before, told = contents(Path("b")), Path("b/manifest.json").read_bytes()
    capsys.readouterr()
    assert execute(["run", "tiny.yaml", "--out", "b"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"b/{name}: changed since it was written" in line
    assert (contents(Path("b")), Path("b/manifest.json").read_bytes()) == (before, told)


@pytest.mark.parametrize(
    "asked", [["analyze", "b"], ["label", "b", "--out", "new.csv"], ["run", "tiny.yaml", "--out", "b"]]
)
def test_labels_may_be_deleted_and_their_key_alone_may_not(bundle, capsys, asked):
    """Without the key nothing tells what was labelled; and the bundle stays finished."""
    assert execute(["label", "b", "--read", "filled.csv"]) == 0
    Path("b/labels_key.csv").rename("aside")
    capsys.readouterr()
    assert execute(asked) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "b/labels_key.csv: is missing; put it back" in line
    assert json.loads(Path("b/manifest.json").read_text())["run"]["finished"]
    Path("b/labels.csv").unlink()
    assert execute(asked) == 0


@pytest.fixture(scope="module")
def of_a_matrix(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matrix")
    (folder / "matrix.csv").write_text("".join(MATRIX.read_text().splitlines(keepends=True)[:3]))
    return pipeline.analyze_matrix(folder / "matrix.csv", folder / "m", "quantverdict")


@pytest.mark.parametrize(
    "document",
    [None, "[]", "{}", '{"policy": null}', '{"policy": {"foo": 1}}', '{"policy": {"margins": {"refusal_rate": "x"}}}',
     '{"policy": {"quality_margin_pp": "90"}}'],
)  # fmt: skip
def test_a_policy_that_was_changed_where_it_alone_stands_decides_nothing(of_a_matrix, tmp_path, capsys, document):
    """A bundle of a matrix has no study: another margin in its decision.json was taken and sealed, without a word."""
    bundle = Path(shutil.copytree(of_a_matrix, tmp_path / "m"))
    (bundle / "decision.json").unlink()
    if document is not None:
        (bundle / "decision.json").write_text(document)
    before = contents(bundle)
    assert execute(["analyze", str(bundle)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "decision.json: changed" in told if document else "decision.json: is missing" in told
    assert "--policy" in told
    assert contents(bundle) == before
    assert execute(["analyze", str(bundle), "--policy", "quantverdict"]) == 0
    assert (bundle / "decision.json").read_bytes() == (of_a_matrix / "decision.json").read_bytes()
