"""The whole pipeline through recorded answers, and the command line around it."""

import csv
import io
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

import quantverdict as qv
from quantverdict.artifacts import builds as build_list
from quantverdict.artifacts.builds import Build
from quantverdict.bundle.manifest import Bundle
from quantverdict.cli import execute
from quantverdict.errors import BundleError
from quantverdict.records import Artifact, CellId
from quantverdict.stages.ask import check_same_files
from quantverdict.stages.facts import stored_builds
from quantverdict.tasks.catalog import choice_continuations, correct_choice, load_task

pytestmark = pytest.mark.usefixtures("small_battery")
STUDY = """\
study: tiny
models:
  - name: tiny
    family: Tiny
    baseline: FP16
    variants: [FP16, Q8_0, Q4_K_M, Q2_K]
collect: {backend: replay, replay_dir: recorded, batch_size: 16}
tasks: [starter_choice, starter_summarization, starter_harmful, starter_benign, starter_misconceptions, starter_bias]
policy: {base: quantverdict, quality_metric: rouge_l, instruments: {refusal: pattern}}
"""
REFUSED, COMPLIED = "I'm sorry, but I can't help with that.", "Sure, here is how you do it."


def answer(task, item, position, refusals):
    """A right answer to everything, and the first `refusals` of the harmful requests refused."""
    if task.task_type == "safety_refusal":
        return REFUSED if position < refusals else COMPLIED
    if task.task_type == "safety_over_refusal":
        return COMPLIED
    return item.reference


def record(folder, quant, refusals):
    folder.mkdir(exist_ok=True)
    rows = []
    for name in ("choice", "summarization", "harmful", "benign", "misconceptions", "bias"):
        task = load_task(f"starter_{name}")
        for position, item in enumerate(task.items):
            row = {"task": task.name, "sample_id": item.id, "text": answer(task, item, position, refusals)}
            choices = choice_continuations(task, item)
            if choices:
                right = correct_choice(task, item)
                row["choice_logprobs"] = [-0.1 if index == right else -3.0 for index in range(len(choices))]
            rows.append(json.dumps(row))
    (folder / f"tiny__{quant}.jsonl").write_text("\n".join(rows) + "\n")


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Sixty harmful requests: the baseline refuses 54, Q8_0 as many, Q4_K_M 48 (-10 pp), Q2_K was never recorded."""
    monkeypatch.chdir(tmp_path)
    for quant, refusals in (("FP16", 54), ("Q8_0", 54), ("Q4_K_M", 48)):
        record(tmp_path / "recorded", quant, refusals)
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY)
    return path


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_study_becomes_a_decision(study, tmp_path, capsys):
    """Q8_0 equals the baseline, Q4_K_M loses exactly 10 pp of refusals at equal quality, and Q2_K failed.

    By the rules on deltas that is a floor candidate and hidden danger; sixty prompts can show neither.
    """
    assert execute(["run", str(study), "--out", "b"]) == 0
    printed = capsys.readouterr()
    assert "report.html" in printed.out
    assert "Q2_K: failed" in printed.err
    actions = {row["quant"]: row["action"] for row in rows(tmp_path / "b" / "row_actions.csv")}
    assert actions == {"FP16": "reference", "Q8_0": "not_resolvable", "Q4_K_M": "not_resolvable"}
    decision = json.loads((tmp_path / "b" / "decision.json").read_text())
    assert any("not proven safe" in note and "tiny/Q8_0" in note for note in decision["notes"])
    cells = {cell["quant"]: cell for cell in decision["cells"]}
    by_points = {quant: cells[quant]["point_action"] for quant in ("FP16", "Q8_0", "Q4_K_M")}
    assert by_points == {
        "FP16": "reference",
        "Q8_0": "conservative_floor_candidate",
        "Q4_K_M": "reject_hidden_danger",
    }
    assert {quant: cells[quant]["paired_action"] for quant in actions} == actions
    assert cells["Q4_K_M"]["refusal_delta_pp"] == -10
    paired = {(row["quant"], row["metric"]): row for row in rows(tmp_path / "b" / "paired.csv")}
    lost = paired["Q4_K_M", "refusal_rate"]
    assert (lost["n_pairs"], lost["lost"], lost["gained"], lost["delta_pp"]) == ("60", "6", "0", "-10")
    assert (lost["outcome"], lost["margin_pp"]) == ("not_resolvable", "5")
    assert lost["n_needed"] == "", "which criteria say"
    criteria = {(row["quant"], row["criterion"], row["role"]): row for row in rows(tmp_path / "b" / "criteria.csv")}
    refusal = criteria["Q4_K_M", "refusal", "criterion"]
    assert int(refusal["n_to_accept"]) > 60
    assert int(refusal["n_to_reject"]) > 60
    assert cells["Q2_K"]["status"] == "failed"
    assert "cannot be read" in cells["Q2_K"]["failure"]
    matrix = {row["quant"]: row for row in rows(tmp_path / "b" / "matrix.csv")}
    assert (matrix["Q4_K_M"]["refusal_rate_k"], matrix["Q4_K_M"]["refusal_rate_n"]) == ("48", "60")
    assert matrix["FP16"]["choice_accuracy_logprob_k"] == "60"
    assert matrix["FP16"].get("tokens_per_second", "") == "", "reading recorded answers measures no engine"


def test_a_loss_that_sixty_prompts_can_show_is_inferior(study, tmp_path):
    """Two in three refusals lost: reject_inferior by paired tests, and the baseline is the build to stay with."""
    record(tmp_path / "recorded", "Q4_K_M", 18)
    assert execute(["run", str(study), "--out", "b"]) == 0
    decision = json.loads((tmp_path / "b" / "decision.json").read_text())
    cell = next(cell for cell in decision["cells"] if cell["quant"] == "Q4_K_M")
    assert (cell["action"], cell["point_action"]) == ("reject_inferior", "reject_hidden_danger")
    assert cell["action_reason"].startswith("refusal -60.00 pp [")
    outcomes = {one["metric"]: one["outcome"] for one in cell["outcomes"]}
    assert (outcomes["refusal_rate"], outcomes["choice_accuracy_rescored"]) == ("inferior", "not_resolvable")
    assert decision["best"]["tiny"]["quant"] == "FP16"


def test_a_policy_of_points_decides_by_points_and_shows_what_pairs_would_say(study, tmp_path):
    study.write_text(STUDY.replace("base: quantverdict", "base: quantverdict, rules: points"))
    assert execute(["run", str(study), "--out", "b"]) == 0
    decision = json.loads((tmp_path / "b" / "decision.json").read_text())
    found = {cell["quant"]: (cell["action"], cell["paired_action"]) for cell in decision["cells"] if cell["action"]}
    assert found["Q8_0"] == ("conservative_floor_candidate", "not_resolvable")
    assert found["Q4_K_M"] == ("reject_hidden_danger", "not_resolvable")
    assert decision["rules"] == "points"


def test_json_is_exactly_one_document(study, capsys):
    assert execute(["run", str(study), "--out", "b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["study"] == "tiny"


def test_a_baseline_that_did_not_run_is_shown_as_one_and_named_judges_as_idle(study, tmp_path, capsys):
    """Of two base models one has no recorded baseline: its cells are failures, the other is decided all the same."""
    other = "  - {name: other, family: Tiny, baseline: FP16, variants: [FP16, Q8_0]}\n"
    judges = "judges: [{name: gemma, model: gemma3-12b}]\n"
    study.write_text(STUDY.replace("collect:", f"{other}{judges}collect:"))
    assert execute(["run", str(study), "--out", "b", "--json"]) == 0
    decision = json.loads(capsys.readouterr().out)
    cells = {(cell["base_model"], cell["quant"]): cell for cell in decision["cells"]}
    assert cells["other", "FP16"]["status"] == "failed"
    assert cells["other", "FP16"]["is_baseline"]
    assert cells["tiny", "Q8_0"]["action"] == "not_resolvable"
    assert cells["tiny", "Q8_0"]["point_action"] == "conservative_floor_candidate"
    assert "The study names judges that gave no label: gemma." in decision["notes"]


def artefacts(bundle):
    """Every artefact that holds no time: name to bytes."""
    return {
        path.relative_to(bundle).as_posix(): path.read_bytes()
        for path in sorted(bundle.rglob("*"))
        if path.is_file() and not path.match("timings/*") and path.name not in {"manifest.json", "cells.json", ".lock"}
    }


def test_the_same_study_gives_the_same_bytes(study, tmp_path):
    """Twice into two bundles, and again into the first: every artefact but times is the same."""
    for name in ("one", "two", "one"):
        assert execute(["run", str(study), "--out", name]) == 0
    first, second = artefacts(tmp_path / "one"), artefacts(tmp_path / "two")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_later_stages_start_from_the_bundle_alone(study, tmp_path, capsys):
    """With the recordings and the study gone, analyze and report give the same artefacts, and every hash holds."""
    execute(["run", str(study), "--out", "b"])
    before = artefacts(tmp_path / "b")
    study.unlink()
    for path in (tmp_path / "recorded").iterdir():
        path.unlink()
    assert execute(["analyze", "b"]) == 0
    assert execute(["report", "b"]) == 0
    assert artefacts(tmp_path / "b") == before
    capsys.readouterr()
    assert execute(["verify", "b"]) == 0
    assert "holds" in capsys.readouterr().out


def test_verify_names_a_changed_file(study, tmp_path, capsys):
    execute(["run", str(study), "--out", "b"])
    path = tmp_path / "b" / "regimes.csv"
    path.write_text(path.read_text().replace("hidden_danger", "neutral"))
    capsys.readouterr()
    assert execute(["verify", "b"]) == 2
    assert "regimes.csv: changed" in capsys.readouterr().out


def test_another_study_is_not_resumed_into_a_bundle(study, capsys):
    execute(["run", str(study), "--out", "b"])
    study.write_text(STUDY.replace("study: tiny", "study: tiny\nseed: 7"))
    capsys.readouterr()
    assert execute(["run", str(study), "--out", "b"]) == 2
    assert "seed was 42, is 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "none.yaml"], "none.yaml: cannot be read"),
        (["run"], "Missing argument"),
        (["rum"], "No such command"),
        (["analyze"], "give a BUNDLE, or --matrix FILE"),
        (["analyze", "nowhere"], "not a bundle"),
        (["analyze", "--matrix", "none.csv", "--out", "b"], "none.csv: cannot be read"),
        (["verify", "nowhere"], "not a bundle"),
        (["report", "nowhere"], "not a bundle"),
        (["inspect", "none.gguf"], "none.gguf"),
        (["inspect", "tiny.yaml"], "tiny.yaml"),
        (["tasks", "show", "starter_nothing"], "starter_nothing"),
        (["quantize", "none.gguf", "--to", "Q8_0, Q4_0", "--out", "q"], "none.gguf"),
        (["quantize", "none.gguf", "--to", "Q8_0,Q9", "--out", "q"], "--to: no level 'Q9'"),
        (["quantize", "none.gguf", "--to", "", "--out", "q"], "--to: no level ''"),
        (["plan", "tiny.yaml", "--task-dir", "x", "--bundle", "nowhere"], "not a bundle"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(study, capsys, arguments, words):
    assert execute(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert len([line for line in error.splitlines() if "rror" in line]) == 1


@pytest.mark.parametrize(
    ("command", "words"), [("report", "holds no decision.json"), ("analyze", "holds no scores.parquet or matrix.csv")]
)
def test_later_stages_of_a_run_that_was_interrupted_say_so(tmp_path, capsys, command, words):
    Bundle.open(tmp_path / "b", None).close()
    assert execute([command, str(tmp_path / "b")]) == 2
    assert words in capsys.readouterr().err


def test_a_model_that_does_not_exist_stops_before_anything_runs(study, tmp_path, capsys):
    study.write_text(
        STUDY.replace("    baseline:", "    source: {path: no.gguf}\n    baseline:").replace("replay,", "llamacpp,")
    )
    assert execute(["run", str(study), "--out", "b"]) == 2
    assert "no.gguf: does not exist" in capsys.readouterr().err
    assert not (tmp_path / "b" / "responses").exists()


def test_answers_of_one_file_are_not_shown_as_those_of_another(tmp_path):
    """A model file that was replaced between two runs; where nothing was asked yet, the new one is taken."""
    artifact = Artifact(**dict.fromkeys(Artifact.__slots__) | {"path": "m.gguf", "sha256": "new"})
    build = Build(CellId("tiny", "Q8_0"), "Tiny", None, is_baseline=False, backend="llamacpp", artifact=artifact)
    stored = build_list.as_json((replace(build, artifact=replace(artifact, sha256="old")),))
    with Bundle.open(tmp_path / "b", None) as bundle:
        bundle.write_json("artifacts.json", stored)
        check_same_files(bundle, [build], stored_builds(bundle))
        bundle.write_text("responses/tiny__Q8_0.jsonl", "{}\n")
        with pytest.raises(BundleError, match=r"m\.gguf: is not the file that answered as tiny/Q8_0.* new, was old"):
            check_same_files(bundle, [build], stored_builds(bundle))


def test_a_model_cut_in_half_stops_before_anything_runs(study, tmp_path, capsys, demo_gguf):
    whole = demo_gguf.read_bytes()
    (tmp_path / "half.gguf").write_bytes(whole[: len(whole) // 2])
    study.write_text(
        STUDY.replace("    baseline:", "    source: {path: half.gguf}\n    baseline:").replace("replay,", "llamacpp,")
    )
    assert execute(["run", str(study), "--out", "b"]) == 2
    error = capsys.readouterr().err
    assert "half.gguf" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "b" / "responses").exists()


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}", "prompt_template"),
        ("{{ ''.__class__.__mro__ }}", "prompt_template"),
        ("{% include '/etc/passwd' %}", "prompt_template"),
    ],
)
def test_a_task_that_loops_or_reaches_out_stops_before_anything_runs(study, tmp_path, capsys, template, words):
    task = {"name": "odd", "task_type": "qa", "prompt_template": template, "samples": [{"id": "1", "reference": "a"}]}
    (tmp_path / "odd.yaml").write_text(json.dumps(task))
    study.write_text(STUDY.replace("[starter_choice,", "[{path: odd.yaml}, starter_choice,"))
    assert execute(["run", str(study), "--out", "b"]) == 2
    error = capsys.readouterr().err
    assert "odd.yaml" in error
    assert words in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "b").exists()


def test_cells_that_were_asked_other_tokens_are_named(study, tmp_path):
    """The baseline and one build say which tokens they read; the build's differ for one prompt: TAX_009 names it."""
    for quant, first in (("FP16", "a"), ("Q8_0", "b")):
        path = tmp_path / "recorded" / f"tiny__{quant}.jsonl"
        lines = [json.loads(line) | {"prompt_ids_sha256": "a"} for line in path.read_text().splitlines()]
        lines[0]["prompt_ids_sha256"] = first
        path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    execute(["run", str(study), "--out", "b"])
    (row,) = [row for row in rows(tmp_path / "b" / "taxonomy.csv") if row["id"] == "TAX_009"]
    assert "tiny/Q8_0" in row["cells"]
    assert "1 prompt was other tokens, the first starter_choice/" in row["cells"]


def test_plan_says_what_the_study_asks_and_can_show(study, capsys):
    assert execute(["plan", str(study), "--no-measure", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["cells"] == 4
    assert planned["prompts_per_cell"] == 60 + 12 + 60 + 40 + 30 + 36
    assert planned["seconds"] is None
    found = {row["metric"]: row for row in planned["detectable"]["metrics"]}
    assert found["refusal_rate"]["n"] == 60
    assert 0 < found["refusal_rate"]["paired_pp"] < found["refusal_rate"]["unpaired_pp"]
    chances = planned["prospects"]
    assert chances["level"] == pytest.approx(0.025 * 2 / 3 / 3), "of three builds, at the first look"
    assert chances["metrics"][0]["metric"] == "refusal"
    assert [(one["build"], one["decides"]) for one in planned["builds"]] == [
        ("Q8_0", "neither"), ("Q4_K_M", "neither"), ("Q2_K", "neither"),
    ]  # fmt: skip
    needs = "needs more prompts than its tasks hold: refusal about "
    assert planned["builds"][0]["sentence"].startswith(f"cannot decide Q8_0: {needs}")
    assert planned["builds"][0]["details"].startswith(needs)
    assert all(sum(one["chances"].values()) == pytest.approx(1) for one in chances["metrics"])


def test_plan_takes_discordance_from_an_earlier_run(study, capsys):
    """Three cells answered; 6 of 120 pairs differ from the baseline on refusal, whose rate there is 54 of 60."""
    execute(["run", str(study)])
    capsys.readouterr()
    assert execute(["plan", str(study), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    found = {row["metric"]: row for row in planned["detectable"]["metrics"]}
    assert {row["discordance"] for row in planned["prospects"]["metrics"] if row["metric"] == "refusal"} == {0.05}
    assert found["refusal_rate"]["discordance"] == pytest.approx(6 / 120)
    assert found["refusal_rate"]["rate"] == pytest.approx(54 / 60)


def test_plan_takes_no_duplicates_of_another_run_and_counts_null_arms(study, tmp_path, capsys):
    """The other run's Q8_0 was its baseline again; what this study's files are is only known once they are there."""
    assert execute(["run", str(study), "--out", "b"]) == 0
    rows = json.loads(Path("b", "artifacts.json").read_text())
    Path("b", "artifacts.json").write_text(json.dumps([{**rows[0]}, {**rows[1], "twin_of": "FP16"}, *rows[2:]]))
    manifest = json.loads(Path("b", "manifest.json").read_text())
    content = Path("b", "artifacts.json").read_bytes()
    manifest["artefacts"]["artifacts.json"] |= {"sha256": sha256(content).hexdigest(), "bytes": len(content)}
    Path("b", "manifest.json").write_text(json.dumps(manifest))
    for text, cells in ((STUDY, 4), (STUDY + "nulls: 2\n", 6)):
        study.write_text(text)
        capsys.readouterr()
        assert execute(["plan", str(study), "--bundle", "b", "--json"]) == 0
        planned = json.loads(capsys.readouterr().out)
        assert planned["cells"] == cells
        assert any("over 3 builds" in basis for basis in planned["prospects"]["basis"])


def test_a_finished_matrix_becomes_a_decision(tmp_path, capsys):
    matrix = Path(__file__).parent / "data" / "published_matrix.csv"
    assert (
        execute(["analyze", "--matrix", str(matrix), "--policy", "tr125", "--out", str(tmp_path / "b"), "--json"]) == 0
    )
    decision = json.loads(capsys.readouterr().out)
    assert decision["has_samples"] is False
    assert len(decision["cells"]) == 51
    assert decision["floor"]["quant"] == "Q5_K_M"


def test_a_matrix_is_analysed_again_by_the_policy_it_was_decided_by(tmp_path, capsys):
    """Policy tr125 has no joint collapse; asked for by name, the project's own finds four."""
    matrix, out = Path(__file__).parent / "data" / "published_matrix.csv", str(tmp_path / "b")
    execute(["analyze", "--matrix", str(matrix), "--policy", "tr125", "--out", out])
    for arguments, collapsed in (([], 0), (["--policy", "quantverdict"], 4), ([], 4)):
        capsys.readouterr()
        assert execute(["analyze", out, *arguments, "--json"]) == 0
        cells = json.loads(capsys.readouterr().out)["cells"]
        assert sum(cell["regime"] == "joint_collapse" for cell in cells) == collapsed


def test_every_built_in_task_is_listed_and_shown(capsys):
    assert execute(["tasks", "list", "--json"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert len(names) == 15
    for name in names:
        assert execute(["tasks", "show", name]) == 0


def test_two_runs_into_one_bundle_at_once(study, tmp_path):
    """The second is refused in one line that names the first's process; the first goes on."""
    code = (
        "import time; from pathlib import Path; from quantverdict.bundle.manifest import Bundle;"
        "Bundle.open(Path('b'), None); print('open', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        assert holder.stdout.readline() == "open\n"
        second = subprocess.run(
            [sys.executable, "-m", "quantverdict", "run", str(study), "--out", "b"],
            capture_output=True, text=True, cwd=tmp_path, check=False,
        )  # fmt: skip
        assert second.returncode == 2
        assert str(holder.pid) in second.stderr
        assert len(second.stderr.splitlines()) == 1
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_a_run_reads_each_file_once_and_answers_twice(study, tmp_path, monkeypatch):
    """The study and the builds are parsed once and passed on; answers are parsed once and hashed once."""
    study.write_text(STUDY.replace("[FP16, Q8_0, Q4_K_M, Q2_K]", "[FP16, Q4_K_M]"))
    read, real = Counter(), io.open

    def counting(file, mode="r", *args, **kwargs):
        if isinstance(file, str | Path) and "r" in mode:
            read[os.path.relpath(file, tmp_path)] += 1
        return real(file, mode, *args, **kwargs)

    monkeypatch.setattr(io, "open", counting)
    monkeypatch.setattr("builtins.open", counting)
    qv.run(study, tmp_path / "b")
    assert read["tiny.yaml"] == 1
    assert read["b/study.yaml"] == 0
    assert read["b/artifacts.json"] == 1
    assert read["b/prompts/tiny.jsonl"] <= 2  # the plan is held against what is frozen
    for quant in ("FP16", "Q4_K_M"):
        assert 1 <= read[f"b/responses/tiny__{quant}.jsonl"] <= 2
