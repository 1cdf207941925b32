"""A process that is killed at any moment loses nothing: the same command goes on to equal bytes.

Until then no other command takes what is there for whole: it refuses, or finds all of the old or all of the new.
"""

import json
import os
import shutil
from pathlib import Path

import pytest

STAGES = {
    "run": (["run", "study.yaml", "--out", "b"], "world"),
    "run with A/A replicates and judges": (["run", "nulls.yaml", "--out", "b"], "world"),
    "run with sequential stopping": (["run", "sequential.yaml", "--out", "b"], "world"),
    "ingest": (["ingest", "sources.yaml", "--out", "b"], "world"),
    "analyze a matrix": (["analyze", "--matrix", "matrix.csv", "--out", "b"], "world"),
    "analyze": (["analyze", "b", "--policy", "other.yaml"], "finished"),
    "judge": (["judge", "b", "--judge", "judge.yaml"], "finished"),
    "label --out": (["label", "b", "--out", "sheet.csv", "--n", "20"], "finished"),
    "label --read": (["label", "b", "--read", "filled.csv"], "labelled"),
    "report": (["report", "b", "--profile", "study"], "finished"),
}
OTHERS = (["report", "b"], ["gate", "b"], ["verify", "b"], ["diff", "b", "b"], ["analyze", "b"])
RENDERED = ("report.md", "report.html", "claims.csv")
"""What any `report` makes anew, and what the manifest says of it."""


@pytest.fixture
def start(world, finished, warm, tmp_path_factory):
    """The folder that a stage starts from."""

    def of(kind):
        if kind != "labelled":
            return {"world": world, "finished": finished}[kind]
        folder = tmp_path_factory.mktemp("labelled") / "world"
        shutil.copytree(finished, folder)
        assert warm(["label", "b", "--out", "sheet.csv", "--n", "20"], folder)["code"] == 0
        return folder

    return of


def decided(files):
    """Of a snapshot, what a decision consists of."""
    return {name: data for name, data in files.items() if name not in (*RENDERED, "manifest.json")}


def is_finished(files):
    return "manifest.json" in files and json.loads(files["manifest.json"])["run"]["finished"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage_is_resumed_to_equal_bytes(
    stage, start, fresh, warm, wrong, snapshot, differing, draw, rounds, figures
):
    """Before, after and half way through file operations, and at random times; an impatient user asks in between."""
    args, kind = STAGES[stage]
    origin = start(kind)
    before = snapshot(origin / "b") if (origin / "b").exists() else {}
    assert warm(args, fresh(origin), judge=True)["code"] == 0  # whatever is cached for the next time is cached now
    folder = fresh(origin)
    whole = warm(args, folder, judge=True)
    assert whole["code"] == 0, whole["err"]
    after, sheet = snapshot(folder / "b"), read(folder / "sheet.csv")
    n, lost, refused, killed = rounds(1, 100), [], 0, 0
    for number in range(n):
        fault = kill(number, n, whole, draw)
        folder = fresh(origin)
        result = warm(args, folder, judge=True, **fault)
        killed += result["code"] == -9
        said = between(folder, OTHERS[number % len(OTHERS)], warm, before, after, (wrong, snapshot, differing))
        refused += said == "refused"
        if said not in ("refused", "whole"):
            lost.append(f"{fault}: {said}")
            continue
        again = warm(args, folder, judge=True)
        if again["code"] != 0:
            lost.append(f"{fault}: again: exit {again['code']}: {again['err'][-300:]}")
        elif (names := differing(after, snapshot(folder / "b"))) or read(folder / "sheet.csv") != sheet:
            lost.append(f"{fault}: differs in {names or 'the sheet'}")
    figures(
        f"kills of {stage}: {killed} of {n} rounds killed at one of {whole['operations']} file operations or by time, "
        f"{n - len(lost)} resumed to equal bytes, {len(lost)} lost; other commands in between: {refused} refused"
    )
    assert not lost, "\n".join(lost)


def kill(number, n, whole, draw):
    """Every fourth kill is by time; the others spread over the file operations."""
    if number % 4 == 3:
        return {"seconds": max(0.001, draw.random() * whole["seconds"])}
    at = (
        1 + (number * whole["operations"] // n + draw.randrange(max(1, whole["operations"] // n))) % whole["operations"]
    )
    return {"at": at, "how": ("kill", "half", "after")[draw.randrange(3)]}


def between(folder, args, warm, before, after, tools):
    """What another command makes of what a kill left: `refused`, `whole`, or what is wrong.

    It works on a copy: what it does must not be what makes the resumed bundle right.
    """
    wrong, snapshot, differing = tools
    aside = folder.with_name("aside")
    if aside.exists():
        shutil.rmtree(aside)
    shutil.copytree(folder, aside)
    result = warm(args, aside)
    if told := wrong(result):
        return f"{args}: {told}"
    if result["code"] == 2:
        return "refused"
    # What was cut off before it took a file's place is no artefact, nor is what a judge has said so far beside a
    # finished bundle; the command that wrote it clears it away.
    found = {
        name: content
        for name, content in snapshot(aside / "b").items()
        if not (name.endswith(".partial") or name.startswith(".judging/"))
    }
    if args[0] == "analyze":
        # It decides anew, from scores that must be all there; by which policy is another question.
        return "whole" if warm(["verify", "b"], aside)["code"] == 0 else f"{args}: verify finds fault with what it left"
    names = [differing(decided(found), decided(state)) for state in (before, after) if state]
    if [] not in names:
        return f"{args}: exit {result['code']} over neither the old nor the new bundle: {min(names, key=len)}"
    return "whole"


def read(path: Path):
    return path.read_bytes() if path.exists() else None


@pytest.mark.engine
@pytest.mark.skipif(not os.environ.get("QUANTVERDICT_CAMPAIGN_ENGINE"), reason="QUANTVERDICT_CAMPAIGN_ENGINE=1 runs it")
def test_a_killed_run_of_the_engine_is_resumed_to_equal_bytes(
    world, demo_gguf, fresh, warm, snapshot, differing, draw, rounds, figures
):
    """The same with a model that answers, in processes of its own: some of them outlive the killed one for a moment."""
    study = (world / "study.yaml").read_text()
    study = study.replace("backend: replay, replay_dir: recorded, batch_size: 8", "batch_size: 8, parallel: 4")
    study = study.replace("variants: [FP16, Q8_0, Q2_K]", f"source: {{path: {demo_gguf}}}, variants: [FP16, Q8_0]")
    study += "decoding: {max_new_tokens: 4}\nnulls: 1\n"
    origin = fresh(world, "engine")
    (origin / "study.yaml").write_text(study)
    args = ["run", "study.yaml", "--out", "b"]
    folder = fresh(origin)
    env = {"XDG_CACHE_HOME": str(origin / "cache")}
    assert warm(args, folder, env=env, limit=600)["code"] == 0
    whole = warm(args, fresh(origin), env=env, limit=600)
    after, n, lost, killed = snapshot(folder / "b"), rounds(1, 20), [], 0
    for number in range(n):
        fault = kill(number, n, whole, draw)
        folder = fresh(origin)
        killed += warm(args, folder, env=env, **fault)["code"] == -9
        again = warm(args, folder, env=env, limit=600)
        if again["code"] or (names := differing(after, snapshot(folder / "b"))):
            lost.append(f"{fault}: {again['err'][-300:] if again['code'] else names}")
    figures(f"kills of run with the engine: {killed} of {n} killed, {n - len(lost)} resumed to equal bytes")
    assert not lost, "\n".join(lost)
