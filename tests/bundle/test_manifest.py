"""A bundle is one study's, one writer's, one version's; its manifest finds one flipped byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction

import polars as pl
import pytest

from quantverdict.bundle.manifest import MANIFEST, Bundle, verify
from quantverdict.errors import BundleError
from quantverdict.policy import POLICIES
from quantverdict.records import Table
from quantverdict.stages.verify import DryRunBundle

HOLD = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from quantverdict.bundle.manifest import Bundle\n"
    "with Bundle.open(Path(sys.argv[1]), None):\n"
    "    print('open', flush=True)\n"
    "    time.sleep(60)\n"
)


def test_the_study_as_run_loads_to_an_equal_study(tmp_path, kit):
    """Every threshold comes back as the exact number it was."""
    policy = {"base": "tr125", "severe_drift_pp": "7.5", "floor_drift_pp": Fraction(1, 3)}
    study = kit.make_study(policy=policy, seed=7, tasks=[{"path": "a/ü.yaml", "limit": 3}])
    Bundle.open(tmp_path / "b", study).close()
    with Bundle.reopen(tmp_path / "b") as bundle:
        stored = bundle.config
    assert stored.model_dump() == study.model_dump()
    assert stored.policy.severe_drift_pp == Fraction(15, 2)


def test_a_study_that_means_the_same_reopens_its_bundle(tmp_path, kit):
    with Bundle.open(tmp_path / "b", kit.make_study()) as bundle:
        first = bundle.read_text("study.yaml")
    with Bundle.open(tmp_path / "b", kit.make_study(seed=42, policy=POLICIES["quantverdict"])) as bundle:
        assert bundle.read_text("study.yaml") == first


def test_the_copy_of_the_study_is_whole_again_where_it_lost_a_line_of_a_default(tmp_path, kit):
    """It means the same, and would be sealed as it is."""
    with Bundle.open(tmp_path / "b", kit.make_study()) as bundle:
        first = bundle.read_text("study.yaml")
        bundle.write_text("cells.json", "[]")
    assert "seed: 42\n" in first
    (tmp_path / "b" / "study.yaml").write_text(first.replace("seed: 42\n", ""))
    with Bundle.open(tmp_path / "b", kit.make_study()) as bundle:
        assert bundle.read_text("study.yaml") == first


MODEL = {"name": "tiny", "family": "f", "baseline": "FP16", "source": {"path": "m.gguf"}, "variants": ["FP16", "Q8_0"]}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 43}, "seed was 42, is 43"),
        ({"decoding": {"max_new_tokens": 64}}, "decoding.max_new_tokens was 256, is 64"),
        (
            {"tasks": [{"task": "starter_qa", "max_new_tokens": 9}]},
            "tasks.starter_qa.max_new_tokens was None, is 9",
        ),
        ({"models": [MODEL | {"source": {"path": "n.gguf"}}]}, "models.tiny.source.path was 'm.gguf', is 'n.gguf'"),
        (
            {"models": [MODEL | {"variants": ["FP16", {"quant": "Q8_0", "source": {"path": "q.gguf"}}]}]},
            "models.tiny.variants.Q8_0.source was None",
        ),
        ({"models": [MODEL | {"baseline": "Q8_0"}]}, "models.tiny.baseline was 'FP16', is 'Q8_0'"),
        ({"collect": {"batch_size": 16}}, "collect.batch_size was 32, is 16"),
        ({"stopping": "sequential"}, "stopping was 'none', is 'sequential'"),
        ({"quantize": {"samples": 9}}, "quantize.samples was 128, is 9"),
    ],
)
def test_another_study_is_refused_by_the_key_that_differs(tmp_path, kit, change, told):
    with Bundle.open(tmp_path / "b", kit.make_study()) as bundle:
        bundle.write_text("prompts/tiny.jsonl", "")
    with pytest.raises(BundleError) as caught:
        Bundle.open(tmp_path / "b", kit.make_study(**change))
    assert f"is of another study: {told}" in str(caught.value)
    Bundle.open(tmp_path / "b", kit.make_study()).close()


JUDGE = {"name": "one", "model": "m", "source": {"path": "j.gguf"}}


@pytest.mark.parametrize(
    "added",
    [
        {"semantic": {}},
        {"whitebox": {"openings": 4}},
        {"judges": [JUDGE]},
        {"policy": {"measurement_gap_pp": 19}},
        {"constraints": {"max_file_bytes": 9}},
        {"statistics": {"bootstrap_samples": 9}},
        {"tasks": ["starter_qa", "starter_code"]},
        {"tasks": ["starter_code"]},
        {"tasks": [{"task": "starter_qa", "limit": 3}]},
        {"models": [MODEL | {"variants": ["FP16", "Q8_0", "Q2_K"]}]},
        {"models": [MODEL | {"variants": ["FP16"]}]},
        {"models": [MODEL, MODEL | {"name": "other"}]},
        {"waivers": [{"cell": "tiny/Q8_0", "check": "lineage", "reason": "r"}]},
        {"nulls": 1},
        {"reuse_servers": True},
    ],
)
def test_what_asks_nothing_anew_may_be_added_changed_and_taken_away(tmp_path, kit, added):
    """The study is the new one once something of the bundle is changed, and till then it stays finished."""
    with Bundle.open(tmp_path / "b", kit.make_study()) as bundle:
        bundle.write_text("prompts/tiny.jsonl", "")
        bundle.finish()
    with pytest.raises(BundleError, match="seed was 42, is 43"):
        Bundle.open(tmp_path / "b", kit.make_study(**added, seed=43))
    for study in (kit.make_study(**added), kit.make_study()):
        before = DryRunBundle(tmp_path / "b").config.model_dump()
        with Bundle.open(tmp_path / "b", study) as bundle:
            assert bundle.config is study
            assert DryRunBundle(tmp_path / "b").config.model_dump() == before
            bundle.begin()
            assert DryRunBundle(tmp_path / "b").config.model_dump() == study.model_dump()
            assert bundle.get_meta("run")["finished"] is None
            bundle.finish()
    states = DryRunBundle(tmp_path / "b").get_meta("run")["states"]
    assert [state["sha256"] for state in states[::2]] == [states[0]["sha256"]] * 2
    assert len({state["sha256"] for state in states}) == 2
    assert [bool(state["changed"]) for state in states] == [False, True, True]
    assert all(state["time"] for state in states)


def test_the_first_judge_is_not_added_where_a_build_was_stopped_that_it_would_have_let_go_on(tmp_path, kit):
    """A study that stops early stops nothing while a judge's metric is gated; a judge it has may be changed."""

    def study(*judges):
        return kit.make_study(stopping="sequential", policy={"rules": "paired"}, judges=judges)

    with Bundle.open(tmp_path / "b", study()) as bundle:
        bundle.write_text("prompts/tiny.jsonl", "")
    with Bundle.open(tmp_path / "b", study(JUDGE)) as bundle:
        bundle.set_meta(stopped={"tiny/Q8_0": 3})
    Bundle.open(tmp_path / "b", study({**JUDGE, "model": "other"})).close()
    Bundle.open(tmp_path / "b", study()).close()
    with pytest.raises(BundleError, match="judges was 0 entries, is 1 entries"):
        Bundle.open(tmp_path / "b", study(JUDGE))


def test_a_study_that_was_corrected_before_anything_was_asked_begins_anew(tmp_path, kit):
    """As after a wrong path of a model, which is found when the bundle is there already."""
    with Bundle.open(tmp_path / "b", kit.make_study(seed=43)) as bundle:
        bundle.write_json("artifacts.json", [])
    with Bundle.open(tmp_path / "b", kit.make_study()) as bundle:
        assert DryRunBundle(tmp_path / "b").config.seed == 42
        assert bundle.get_meta("seeds") == {"seed": 42}


def test_a_bundle_of_another_version_is_refused(tmp_path, kit):
    Bundle.open(tmp_path, kit.make_study()).close()
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(manifest | {"schema": 99}))
    for use in (
        lambda: Bundle.open(tmp_path, kit.make_study()),
        lambda: Bundle.reopen(tmp_path),
        lambda: verify(tmp_path),
    ):
        with pytest.raises(BundleError, match="schema version 99; this program reads 2"):
            use()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"schema": 2}'])
def test_a_broken_manifest_is_one_line(tmp_path, content):
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError) as caught:
        Bundle.open(tmp_path, None)
    assert "\n" not in str(caught.value)


def test_a_folder_with_somebody_elses_files_is_left_alone(tmp_path, kit):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BundleError, match=r"not a bundle and not empty \(it holds thesis.tex\)"):
        Bundle.open(tmp_path, kit.make_study())
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder_is_one_line(tmp_path, kit):
    (tmp_path / "b").write_text("")
    with pytest.raises(BundleError, match="cannot be written"):
        Bundle.open(tmp_path / "b", kit.make_study())


def test_reopening_what_is_no_bundle_makes_nothing(tmp_path):
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle.reopen(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_resume_can_be_declined(tmp_path, kit):
    Bundle.open(tmp_path, kit.make_study(), resume=False).close()
    with pytest.raises(BundleError, match="is a bundle already"):
        Bundle.open(tmp_path, kit.make_study(), resume=False)


def test_the_second_run_into_one_bundle_is_refused_until_the_first_is_dead(tmp_path, kit):
    """By a process of its own, killed without a chance to tidy up."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(BundleError, match=f"in use by process {holder.pid};"):
            Bundle.open(tmp_path, kit.make_study())
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    Bundle.open(tmp_path, kit.make_study()).close()


def test_a_run_killed_while_it_made_the_bundle_is_no_obstacle(tmp_path, kit):
    """After any prefix of what opening writes."""
    Bundle.open(tmp_path / "whole", kit.make_study()).close()
    for number, left in enumerate([[], [".lock"], [".lock", ".manifest.json.partial"]]):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in left:
            (folder / name).write_text("x")
        Bundle.open(folder, kit.make_study()).close()
        assert not list(folder.glob("*.partial")), left
    half = tmp_path / "half"
    Bundle.open(half, None).close()
    (half / "study.yaml").write_bytes((tmp_path / "whole" / "study.yaml").read_bytes())
    with Bundle.open(half, kit.make_study()) as bundle:
        assert bundle.get_meta("config") == "study.yaml"


def finished(path, kit):
    with Bundle.open(path, kit.make_study()) as bundle:
        bundle.write_table(Table("floor", ("quant", "signal"), (("Q8_0", Fraction(1, 8)), ("Q4_K_M", None))))
        bundle.write_json("decision.json", {"b": 1, "a": "é"})
        bundle.write_parquet("scores.parquet", pl.DataFrame({"a": [1, 2, 3], "b": ["x", None, "z"]}))
        bundle.write_text("responses/tiny__Q8_0.jsonl", "{}\n{}\n")
        bundle.write_text("timings/tiny__Q8_0.jsonl", "{}\n")
        bundle.finish()
    return path


def test_what_is_written_is_read_back_and_counted(tmp_path, kit):
    finished(tmp_path, kit)
    bundle = Bundle.reopen(tmp_path)
    bundle.close()
    assert bundle.read_table("floor") == [{"quant": "Q8_0", "signal": "0.125"}, {"quant": "Q4_K_M", "signal": ""}]
    assert bundle.read_json("decision.json") == {"a": "é", "b": 1}
    artefacts = bundle.get_meta("artefacts")
    rows = {name: entry["rows"] for name, entry in artefacts.items()}
    assert rows == {
        "decision.json": None, "floor.csv": 2, "responses/tiny__Q8_0.jsonl": 2, "scores.parquet": 3, "study.yaml": None,
    }  # fmt: skip
    assert list(bundle.get_meta("run")["artefacts"]) == ["timings/tiny__Q8_0.jsonl"]
    assert {"packages", "hardware", "git_commit", "seeds"} <= set(json.loads((tmp_path / MANIFEST).read_text()))


def test_equal_runs_differ_in_the_run_part_alone(tmp_path, kit):
    manifests = [json.loads((finished(tmp_path / name, kit) / MANIFEST).read_text()) for name in "ab"]
    for manifest in manifests:
        del manifest["run"]
    assert manifests[0] == manifests[1]


def test_verify_finds_nothing_in_what_was_not_touched(tmp_path, kit):
    assert verify(finished(tmp_path, kit)) == []


def test_verify_finds_one_flipped_bit_in_any_artefact(tmp_path, kit):
    finished(tmp_path, kit)
    for path in sorted(file for file in tmp_path.rglob("*.*") if file.name not in (MANIFEST, ".lock")):
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        (problem,) = verify(tmp_path)
        assert problem.startswith(f"{path.relative_to(tmp_path)}: changed; sha256 is ")
        path.write_bytes(before)


def test_verify_names_missing_and_extra_files(tmp_path, kit):
    finished(tmp_path, kit)
    (tmp_path / "floor.csv").rename(tmp_path / "flour.csv")
    assert verify(tmp_path) == ["floor.csv: missing", "flour.csv: not in the manifest"]


def test_verify_says_that_a_run_is_not_finished(tmp_path, kit):
    Bundle.open(tmp_path, kit.make_study()).close()
    assert "unfinished" in verify(tmp_path)[0]


def test_a_study_bundle_does_not_become_an_ingested_one(tmp_path, kit):
    from pydantic import BaseModel

    class Sources(BaseModel):
        study: str = "s"

        def adopt(self) -> None:
            """It brings nothing of its own."""

    Bundle.open(tmp_path, kit.make_study()).close()
    with pytest.raises(BundleError, match=r"was made from a study\.yaml"):
        Bundle.open(tmp_path, Sources())


def test_the_commit_is_that_of_the_studys_folder(tmp_path, kit):
    def git(*words):
        subprocess.run(
            ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words],
            check=True,
            capture_output=True,
        )

    (tmp_path / "study.yaml").write_text("")
    study = kit.make_study().model_copy(update={"file": str(tmp_path / "study.yaml")})
    with Bundle.open(tmp_path / "one", study) as bundle:
        assert bundle.get_meta("git_commit") is None
    git("init", "-q")
    git("add", "study.yaml")
    git("commit", "-q", "-m", "x")
    with Bundle.open(tmp_path / "two", study) as bundle:
        assert len(bundle.get_meta("git_commit")) == 40


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_really_full_disk_is_one_line_and_loses_nothing(tmp_path, kit):
    """On a file system of 256 KiB, for text, Parquet and responses alike."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", tmp_path], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed")
    try:
        with Bundle.open(tmp_path / "b", kit.make_study()) as bundle:
            bundle.write_text("kept.txt", "kept")
            with pytest.raises(BundleError, match="the disk is full"):
                bundle.write_text("big.txt", "x" * 10**6)
            with pytest.raises(BundleError, match="the disk is full"):
                bundle.write_parquet("big.parquet", pl.DataFrame({"a": os.urandom(10**6).hex()}))
            with pytest.raises(BundleError, match="the disk is full"):
                bundle.write_text("kept.txt", "y" * 10**6)
            assert bundle.read_text("kept.txt") == "kept"
            assert not list(tmp_path.rglob("*.partial"))
            bundle.finish()
        assert verify(tmp_path / "b") == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_an_artefact_is_read_once_for_each_time_that_it_is_written(tmp_path):
    read = []

    def reading(path):
        read.append(path.name)
        return path.read_text() if path.exists() else ""

    with Bundle.open(tmp_path, None) as bundle:
        assert bundle.once("a.json", reading) == bundle.once("a.json", reading) == ""
        for value in ("one", "two"):
            bundle.write_text("a.json", value)
            assert bundle.once("a.json", reading) == bundle.once("a.json", reading) == value
        assert read == ["a.json"] * 3
        assert bundle.once("a.json", lambda path: path.stat().st_size, "size") == 3
