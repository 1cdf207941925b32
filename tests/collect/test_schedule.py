"""A study's cells: failed ones recorded, a resume asks what is missing, a kill or Ctrl-C loses one batch at most."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quantverdict.bundle.manifest import Bundle, verify
from quantverdict.bundle.prompts import PromptPlan, StoppingSchedule, grown, plan_batches, read_prompts
from quantverdict.bundle.store import CellStore
from quantverdict.collect.schedule import CellJob, read_outcomes, run_cells
from quantverdict.errors import BundleError, DataError, EngineError
from quantverdict.records import CellId

# A run of two slow cells in a process of its own, with the helpers of all tests.
SLOW = """
import importlib.util, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background has it ignored
from pathlib import Path
spec = importlib.util.spec_from_file_location("kit", sys.argv[2])
kit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kit)
from quantverdict.bundle.manifest import Bundle
from quantverdict.collect.schedule import CellJob, run_cells
from quantverdict.records import CellId

class Slow(kit.EchoBackend):
    def complete(self, prompts, decoding, progress=None):
        time.sleep(float(sys.argv[3]))
        return super().complete(prompts, decoding, progress)

with Bundle.open(Path(sys.argv[1]), kit.make_study()) as bundle:
    jobs = [CellJob(CellId("tiny", quant), kit.make_plan(), Slow) for quant in ("FP16", "Q8_0")]
    try:
        run_cells(bundle, jobs, kit.RecordingView())
    except KeyboardInterrupt:
        sys.exit(130)
    bundle.finish()
"""


def start(folder: Path, pause: float) -> subprocess.Popen[bytes]:
    helpers = Path(__file__).parents[1] / "conftest.py"
    return subprocess.Popen([sys.executable, "-c", SLOW, str(folder), str(helpers), str(pause)])


def answers(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "responses").glob("*")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert start(folder, 0).wait() == 0
    return folder


@pytest.mark.parametrize("lines", [0, 4, 13])
def test_a_killed_run_is_resumed_to_the_same_bytes(tmp_path, whole, lines):
    """Killed outright after so many answers, by a signal that nothing can catch."""
    run = start(tmp_path, 0.03)
    while run.poll() is None and sum(content.count(b"\n") for content in answers(tmp_path).values()) < lines:
        time.sleep(0.005)
    run.kill()
    run.wait()
    assert start(tmp_path, 0).wait() == 0
    assert answers(tmp_path) == answers(whole)
    assert (tmp_path / "prompts" / "tiny.jsonl").read_bytes() == (whole / "prompts" / "tiny.jsonl").read_bytes()
    assert verify(tmp_path) == []
    kept = [json.loads((folder / "manifest.json").read_text()) for folder in (tmp_path, whole)]
    runs = [manifest.pop("run") for manifest in kept]
    assert kept[0] == kept[1]
    assert all(run["finished"] for run in runs)


def test_ctrl_c_leaves_a_bundle_that_the_same_command_resumes(tmp_path, whole):
    run = start(tmp_path, 0.05)
    while run.poll() is None and not any(answers(tmp_path).values()):
        time.sleep(0.005)
    run.send_signal(signal.SIGINT)
    assert run.wait() == 130
    assert any(answers(tmp_path).values())
    assert start(tmp_path, 0).wait() == 0
    assert answers(tmp_path) == answers(whole)


def jobs_of(kit, *backends, plan=None):
    plan = plan or kit.make_plan()
    return [
        CellJob(CellId("tiny", quant), plan, lambda backend=backend: backend)
        for quant, backend in zip(["FP16", "Q8_0"], backends, strict=True)
    ]


def test_a_failed_cell_is_recorded_the_others_go_on_and_a_rerun_tries_it_again(tmp_path, kit):
    with Bundle.open(tmp_path, kit.make_study()) as bundle:
        jobs = jobs_of(kit, kit.EchoBackend(1, error=EngineError("no such layer")), kit.EchoBackend())
        failed, ok = run_cells(bundle, jobs, kit.RecordingView())
        assert ((failed.status, failed.failure), ok.status) == (("failed", "no such layer"), "ok")
        assert read_outcomes(bundle) == {failed.cell: failed, ok.cell: ok}
        left, _ = run_cells(bundle, jobs_of(kit, None, None), kit.RecordingView(), retry=False)
        assert left == failed
        repaired = kit.EchoBackend()
        outcomes = run_cells(bundle, jobs_of(kit, repaired, None), kit.RecordingView())
        assert [outcome.status for outcome in outcomes] == ["ok", "ok"]
        assert len(repaired.asked) == len(kit.make_plan().batches) - 1


def test_the_manifest_has_plan_decoding_and_engine_of_every_cell(tmp_path, kit):
    with Bundle.open(tmp_path, kit.make_study()) as bundle:
        run_cells(bundle, jobs_of(kit, kit.EchoBackend(), kit.EchoBackend()), kit.RecordingView())
        assert bundle.get_meta("backends") == {
            f"tiny/{quant}": {"engine": "echo", "version": 1} for quant in ("FP16", "Q8_0")
        }
        assert bundle.get_meta("batches") == {"tiny": [list(batch) for batch in kit.make_plan().batches]}
        assert bundle.get_meta("decoding")["tiny"]["alpha"]["max_new_tokens"] == 64


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda p: (*p[:3], dataclasses.replace(p[3], text="other"), *p[4:]), "alpha/alpha_003"),
        (lambda p: p[:-1], "beta/beta_004"),
        (lambda p: (*p[:7], dataclasses.replace(p[7], choices=("A", "C")), *p[8:]), "beta/beta_000"),
    ],
    ids=["changed", "one less", "other choices"],
)
def test_other_prompts_are_refused_by_the_first_that_differs(tmp_path, kit, change, told):
    plan = kit.make_plan()
    prompts = change(plan.prompts)
    other = PromptPlan(prompts, plan_batches(prompts, 3), plan.decoding)
    with Bundle.open(tmp_path, kit.make_study()) as bundle:
        run_cells(bundle, jobs_of(kit, kit.EchoBackend(), kit.EchoBackend()), kit.RecordingView())
        with pytest.raises(BundleError, match=f"begun with: {told}"):
            run_cells(bundle, jobs_of(kit, None, None, plan=other), kit.RecordingView())


def test_what_is_added_is_asked_after_what_was_asked_batch_by_batch(tmp_path, kit):
    """The frozen prompts and batches stay as they were at the beginning; only new batches are asked."""
    plan = kit.make_plan()
    wanted = kit.make_plan(sizes=(("alpha", 7), ("beta", 9), ("gamma", 4)))
    larger = grown(wanted, "x", plan.prompts, plan.batches, 3)
    assert larger.prompts[: len(plan.prompts)] == plan.prompts
    assert larger.batches[: len(plan.batches)] == plan.batches
    again = kit.EchoBackend()
    with Bundle.open(tmp_path, kit.make_study()) as bundle:
        run_cells(bundle, jobs_of(kit, kit.EchoBackend(), kit.EchoBackend()), kit.RecordingView())
        before = answers(tmp_path)
        run_cells(bundle, jobs_of(kit, again, kit.EchoBackend(), plan=larger), kit.RecordingView())
        assert bundle.get_meta("batches")["tiny"] == [list(batch) for batch in larger.batches]
        assert read_prompts(bundle.path("prompts/tiny.jsonl")) == larger.prompts
    new = [prompt.sample_id for prompt in wanted.prompts if prompt not in plan.prompts]
    assert sorted(name for batch in again.asked for name in batch) == sorted(new)
    assert all(content.startswith(before[name]) for name, content in answers(tmp_path).items())


def test_a_plan_of_rounds_never_grows_and_a_refusal_writes_nothing(tmp_path, kit):
    """Its number of prompts is part of when a build is stopped."""
    plan = dataclasses.replace(kit.make_plan(), rounds=StoppingSchedule((5,), {"alpha": 1, "beta": 1}))
    wanted = kit.make_plan(sizes=(("alpha", 7), ("beta", 9)))
    larger = dataclasses.replace(grown(wanted, "x", plan.prompts, plan.batches, 3), rounds=plan.rounds)
    with Bundle.open(tmp_path, kit.make_study()) as bundle:
        run_cells(bundle, jobs_of(kit, kit.EchoBackend(), kit.EchoBackend(), plan=plan), kit.RecordingView())
        before = bundle.path("prompts/tiny.jsonl").read_bytes()
        with pytest.raises(BundleError, match="begun with: beta/beta_005"):
            run_cells(bundle, jobs_of(kit, None, None, plan=larger), kit.RecordingView())
        other = dataclasses.replace(plan, rounds=StoppingSchedule((2, 5), {"alpha": 1, "beta": 1}))
        with pytest.raises(BundleError, match="the rounds of tiny are not those"):
            run_cells(bundle, jobs_of(kit, None, None, plan=other), kit.RecordingView())
        assert bundle.path("prompts/tiny.jsonl").read_bytes() == before
        assert bundle.get_meta("rounds") == {"tiny": {"ends": [5], "largest": {"alpha": 1, "beta": 1}}}


def test_prompts_that_a_kill_left_without_their_batches_get_the_same_ones(kit):
    plan = kit.make_plan()
    wanted = kit.make_plan(sizes=(("alpha", 7), ("beta", 9)))
    larger = grown(wanted, "x", plan.prompts, plan.batches, 3)
    assert grown(wanted, "x", larger.prompts, plan.batches, 3) == larger
    assert grown(wanted, "x", larger.prompts, larger.batches, 3) == larger
    assert grown(plan, "x", plan.prompts, (), 3) == plan
    with pytest.raises(BundleError, match="x: holds fewer prompts than were asked"):
        grown(wanted, "x", plan.prompts[:-1], plan.batches, 3)


def test_a_task_that_a_study_leaves_out_for_a_while_is_asked_of_whoever_lacks_it(tmp_path, kit):
    """FP16 was asked both tasks; Q8_0 comes while beta is left out, and is asked beta once it is there again."""
    both, one = kit.make_plan(), kit.make_plan(sizes=(("alpha", 7),))
    less = grown(one, "x", both.prompts, both.batches, 3)
    assert {both.prompts[both.batches[number][0]].task for number in less.left_out} == {"beta"}
    first, late, last = kit.EchoBackend(), kit.EchoBackend(), kit.EchoBackend()
    with Bundle.open(tmp_path, kit.make_study()) as bundle:
        run_cells(bundle, jobs_of(kit, first, None, plan=both)[:1], kit.RecordingView())
        larger = kit.make_plan(sizes=(("alpha", 10),))
        run_cells(bundle, jobs_of(kit, first, late, plan=less), kit.RecordingView())
        grew = grown(larger, "x", both.prompts, both.batches, 3)
        run_cells(bundle, jobs_of(kit, first, late, plan=grew), kit.RecordingView())
        whole = kit.make_plan(sizes=(("alpha", 10), ("beta", 5)))
        again = grown(whole, "x", grew.prompts, grew.batches, 3)
        outcomes = run_cells(bundle, jobs_of(kit, None, last, plan=again), kit.RecordingView())
    asked = [name for batch in late.asked for name in batch]
    assert len(asked) == len(set(asked)) == 10
    assert all(name.startswith("alpha") for name in asked)
    assert sorted(name for batch in last.asked for name in batch) == [f"beta_{n:03d}" for n in range(5)]
    assert [outcome.prompts for outcome in outcomes] == [15, 15]
    store = CellStore(tmp_path, CellId("tiny", "Q8_0"), again)
    assert (store.missing, len(store.timings), sorted(store.stored)) == (
        [],
        store.done,
        list(range(len(again.batches))),
    )
    assert store.stored != sorted(store.stored)


def test_another_batch_plan_is_refused(tmp_path, kit):
    """Text depends on it."""
    with Bundle.open(tmp_path, kit.make_study()) as bundle:
        run_cells(bundle, jobs_of(kit, kit.EchoBackend(), kit.EchoBackend()), kit.RecordingView())
        with pytest.raises(BundleError, match="the batches of tiny are not those"):
            run_cells(bundle, jobs_of(kit, None, None, plan=kit.make_plan(batch_size=4)), kit.RecordingView())


def test_changed_responses_stop_the_run_by_file_and_line(tmp_path, kit):
    with Bundle.open(tmp_path, kit.make_study()) as bundle:
        run_cells(bundle, jobs_of(kit, kit.EchoBackend(), kit.EchoBackend()), kit.RecordingView())
        path = tmp_path / "responses" / "tiny__FP16.jsonl"
        path.write_bytes(b"{}\n" + path.read_bytes())
        with pytest.raises(DataError, match=r"tiny__FP16\.jsonl:1: "):
            run_cells(bundle, jobs_of(kit, None, None), kit.RecordingView())


@pytest.mark.parametrize("change", [lambda data: data.replace(b'"text":"', b'"text":"No. ', 1), lambda data: data[:-9]])
def test_finished_answers_that_were_changed_are_not_taken_for_answers(tmp_path, kit, change):
    """A rerun would write a new hash over the change, and `verify` would find nothing."""
    with Bundle.open(tmp_path, kit.make_study()) as bundle:
        run_cells(bundle, jobs_of(kit, kit.EchoBackend(), kit.EchoBackend()), kit.RecordingView())
        bundle.finish()
        path = tmp_path / "responses" / "tiny__FP16.jsonl"
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(BundleError, match=r"tiny__FP16\.jsonl: changed since it was written"):
            run_cells(bundle, jobs_of(kit, None, None), kit.RecordingView())
        path.unlink()
        run_cells(bundle, jobs_of(kit, kit.EchoBackend(), kit.EchoBackend()), kit.RecordingView())
        bundle.finish()
    assert verify(tmp_path) == []
