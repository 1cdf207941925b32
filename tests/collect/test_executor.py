"""Cells that are asked at once, by replicas: the same bytes as one after another, whatever comes when."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import replace

import pytest

from quantverdict.backends.base import Decoding
from quantverdict.bundle.manifest import Bundle
from quantverdict.bundle.prompts import PromptPlan, StoppingSchedule, plan_batches
from quantverdict.collect.crew import MOST_LOSSES
from quantverdict.collect.executor import (
    BuildRequest,
    LocalExecutor,
    LocalReplica,
    Node,
    Resources,
    nodes_lines,
    replicas_at_once,
    threads_of,
)
from quantverdict.collect.schedule import CellJob, read_outcomes, run_cells
from quantverdict.errors import BundleError, EngineError, ReplicaLostError
from quantverdict.records import CellId, Prompt

QUANTS = ("FP16", "Q8_0", "Q4_K_M")


@pytest.fixture
def plan():
    """Forty prompts in batches of two."""
    prompts = tuple(Prompt("t", f"s{n}", f"q{n}", None, f"{n:064}", ()) for n in range(40))
    return PromptPlan(prompts, plan_batches(prompts, 2), {"t": Decoding(8)})


@pytest.fixture
def view(kit):
    class View(kit.RecordingView):
        def beside(self):
            return self

    return View()


def answers(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "responses").glob("*"))}


ONE = Resources(1)


def jobs(kit, plan, backends, need=ONE, **others):
    return [
        CellJob(CellId("tiny", quant), plan, make, build=BuildRequest(CellId("tiny", quant), make, need), **others)
        for quant, make in zip(QUANTS, backends, strict=False)
    ]


def run(folder, kit, view, work, executor, say=lambda _: None):
    with Bundle.open(folder, kit.make_study()) as bundle:
        return run_cells(bundle, work, view, executor=executor, say=say), dict(read_outcomes(bundle))


class Jittery:
    """An echo whose batches take a random time, so that they come in any order; counts what runs at once."""

    running, most = 0, 0
    lock = threading.Lock()

    def __init__(self, kit, seconds=0.003):
        self._echo, self.seconds = kit.EchoBackend(), seconds
        self.identity, self.usage = self._echo.identity, self._echo.usage

    def complete(self, prompts, decoding, progress=None):
        with Jittery.lock:
            Jittery.running += 1
            Jittery.most = max(Jittery.most, Jittery.running)
        time.sleep(random.random() * self.seconds)
        with Jittery.lock:
            Jittery.running -= 1
        return self._echo.complete(prompts, decoding)

    def close(self):
        pass


@pytest.fixture
def whole(tmp_path, kit, view, plan):
    """The bundle of a run of one cell after another."""
    run(tmp_path / "whole", kit, view, jobs(kit, plan, [kit.EchoBackend] * 3), None)
    return tmp_path / "whole"


@pytest.mark.parametrize(("workers", "cores"), [(1, 1), (2, 2), (None, 5)])
def test_bytes_are_those_of_one_after_another_and_no_more_run_at_once_than_fit(
    tmp_path, kit, view, plan, whole, workers, cores
):
    Jittery.most = 0
    executor = LocalExecutor(workers, 1, Resources(cores, 10**9))
    outcomes, stored = run(tmp_path / "b", kit, view, jobs(kit, plan, [lambda: Jittery(kit)] * 3), executor)
    assert answers(tmp_path / "b") == answers(whole)
    assert [outcome.status for outcome in outcomes] == ["ok"] * 3
    assert list(stored) == [CellId("tiny", quant) for quant in QUANTS]
    assert 1 <= Jittery.most <= (workers or cores)
    assert (tmp_path / "b" / "prompts" / "tiny.jsonl").read_bytes() == (whole / "prompts" / "tiny.jsonl").read_bytes()


class Flaky:
    """An executor of nodes that go and come back under other names: every load and every batch may be lost."""

    notices_s = 0.0

    def __init__(self, count=3, chance=0.2, seed=1, *, goes=True):
        self._all = [Node(f"n{number}", Resources(1, 10**9)) for number in range(count)]
        self.random, self.chance, self.lost, self.goes = random.Random(seed), chance, 0, goes

    def nodes(self):
        return self._all

    def _may_be_lost(self, node):
        if self.random.random() < self.chance:
            self.lost += 1
            if self.goes:
                new = Node(f"n{self.lost + 10}", Resources(1, 10**9))
                self._all = [new if one.name == node else one for one in self._all]
            raise ReplicaLostError(f"{node} is gone")

    def load(self, build, node):
        self._may_be_lost(node.name)
        executor = self

        class Replica(LocalReplica):
            def answer(self, prompts, decoding):
                reply = super().answer(prompts, decoding)
                executor._may_be_lost(node.name)
                return reply

        found = Replica(build.open_backend())
        found.node = node.name
        return found

    def close(self):
        pass


def test_what_is_lost_with_its_node_is_asked_again_and_nothing_else(tmp_path, kit, view, plan, whole):
    backends, lines, executor = [], [], Flaky()

    def make():
        backends.append(kit.EchoBackend())
        return backends[-1]

    outcomes, _ = run(tmp_path / "b", kit, view, jobs(kit, plan, [make] * 3), executor, lines.append)
    assert executor.lost > 5
    assert answers(tmp_path / "b") == answers(whole)
    assert [outcome.failure for outcome in outcomes] == [None] * 3
    asked = sum(len(backend.asked) for backend in backends)
    again = sum("batch" in line and "asked again" in line for line in lines)
    assert asked == 3 * len(plan.batches) + again
    assert any(line.startswith("batches answered: ") and " by n" in line for line in lines)


def test_what_is_lost_again_and_again_is_a_failed_cell(tmp_path, kit, view, plan):
    executor = Flaky(chance=1, goes=False)
    outcomes, _ = run(tmp_path, kit, view, jobs(kit, plan, [kit.EchoBackend]), executor)
    failure = f"a replica that was being loaded was lost {MOST_LOSSES} times with its process, on nodes that go on"
    assert outcomes[0].failure == failure
    assert executor.lost >= MOST_LOSSES


def test_a_failing_batch_leaves_what_comes_before_it_and_the_others_go_on(tmp_path, kit, view, plan, whole):
    """As one after another: the answers up to the batch that failed, however many were asked beside it."""

    class Failing(kit.EchoBackend):
        def complete(self, prompts, decoding, progress=None):
            if prompts[0].sample_id == plan.prompts[plan.batches[7][0]].sample_id:
                raise EngineError("out of luck")
            time.sleep(0.002)
            return super().complete(prompts, decoding)

    executor = LocalExecutor(None, 1, Resources(8, 10**9))
    outcomes, _ = run(tmp_path / "b", kit, view, jobs(kit, plan, [Failing, kit.EchoBackend]), executor)
    assert [outcome.failure for outcome in outcomes] == ["out of luck", None]
    assert outcomes[0].prompts == 14
    name = "tiny__FP16.jsonl"
    assert answers(whole)[name].startswith(answers(tmp_path / "b")[name])
    again, _ = run(tmp_path / "b", kit, view, jobs(kit, plan, [kit.EchoBackend] * 2), executor)
    assert again[0].failure is None
    assert answers(tmp_path / "b")[name] == answers(whole)[name]


def test_a_build_that_fits_no_node_is_a_failed_cell_with_its_reason(tmp_path, kit, view, plan):
    small, large = (jobs(kit, plan, [kit.EchoBackend] * 2, need=Resources(1, size))[place]
                    for place, size in ((0, 10**9), (1, 10**9 + 1)))  # fmt: skip
    outcomes, _ = run(tmp_path, kit, view, [small, large], Flaky(chance=0))
    assert outcomes[0].failure is None
    assert outcomes[1].failure == (
        "needs 1 CPU, 1.0 GB of memory, and no node has that (the largest has 1 CPU, 1.0 GB of memory)"
    )


def test_another_engine_on_a_node_is_not_asked(tmp_path, kit, view, plan):
    made, lines = [], []

    def make():
        made.append(kit.EchoBackend(identity={"engine": "echo", "version": min(len(made), 1)}))
        time.sleep(0.02)
        return made[-1]

    class Slow(kit.EchoBackend):
        pass

    outcomes, _ = run(tmp_path, kit, view, jobs(kit, plan, [make]), Flaky(chance=0), lines.append)
    assert outcomes[0].identity == {"engine": "echo", "version": 0}
    assert [len(backend.asked) > 0 for backend in made] == [True] + [False] * (len(made) - 1)
    assert any("runs another engine, and is not asked: version 1 in place of 0" in line for line in lines)


def test_a_cell_that_is_watched_begins_when_its_baseline_is_done_and_stops_where_one_after_another_does(
    tmp_path, kit, view, plan
):
    ends = tuple(range(4, len(plan.batches) + 1, 4))
    rounds = replace(plan, rounds=StoppingSchedule(ends, {"t": 1}))
    seen = []

    def watched(root):
        def open_watch():
            seen.append(len((root / "responses" / "tiny__FP16.jsonl").read_bytes().splitlines()))
            asked = []
            return lambda new: asked.extend(new) or len(asked) >= 16

        return open_watch

    def work(root):
        first, second = jobs(kit, rounds, [kit.EchoBackend, lambda: Jittery(kit)])
        return [second.__class__(**{**_fields(second), "watch": watched(root)}), first]

    for folder, executor in ((tmp_path / "a", None), (tmp_path / "b", LocalExecutor(None, 1, Resources(6, 10**9)))):
        order = work(folder) if executor else list(reversed(work(folder)))
        outcomes, _ = run(folder, kit, view, order, executor)
        assert sorted(one.stopped_after or 0 for one in outcomes) == [0, 16]
    assert seen == [40, 40]
    assert answers(tmp_path / "a") == answers(tmp_path / "b")


def _fields(job):
    return {name: getattr(job, name) for name in job.__slots__}


def test_ctrl_c_closes_every_build_and_keeps_what_had_its_turn(tmp_path, kit, view, plan, whole):
    closed = []

    class Stopped(kit.EchoBackend):
        def close(self):
            closed.append(self)

    def advance(prompts, tokens):
        raise KeyboardInterrupt

    view.advance = advance
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", kit, view, jobs(kit, plan, [Stopped]), LocalExecutor(2, 1, Resources(2)))
    assert closed
    stored = answers(tmp_path / "b")["tiny__FP16.jsonl"]
    assert stored.count(b"\n") == 2
    assert answers(whole)["tiny__FP16.jsonl"].startswith(stored)


def test_a_full_disk_ends_the_run_and_no_cell_is_failed_for_it(tmp_path, kit, view, plan, monkeypatch):
    from quantverdict.bundle.store import CellStore

    monkeypatch.setattr(CellStore, "append", lambda *_: (_ for _ in ()).throw(BundleError("the disk is full")))
    with pytest.raises(BundleError, match="the disk is full"):
        run(tmp_path, kit, view, jobs(kit, plan, [kit.EchoBackend] * 3), LocalExecutor(3, 1, Resources(3)))


@pytest.mark.parametrize(
    ("need", "used", "fits"),
    [
        (Resources(2, 50, 1), [], True),
        (Resources(3, 50, 1), [], False),
        (Resources(2, 51, 1), [], False),
        (Resources(2, 50, 2), [], False),
        (Resources(1, 25), [Resources(1, 25)], True),
        (Resources(1, 26), [Resources(1, 25)], False),
        (Resources(0), [Resources(0), Resources(0)], True),
        (Resources(0), [Resources(0)] * 3, False),
    ],
)
def test_what_fits_a_node(need, used, fits):
    assert Node("n", Resources(2, 50, 1), most=3).fits(need, used) is fits


def test_the_first_build_is_always_taken_here_and_a_second_only_where_memory_allows_it():
    node = LocalExecutor(None, 1, Resources(4, 100)).nodes()[0]
    assert node.fits(Resources(8, 10**12))
    assert node.fits(Resources(1, 40), [Resources(1, 60)])
    assert not node.fits(Resources(1, 41), [Resources(1, 60)])


@pytest.mark.parametrize(
    ("workers", "threads", "cores", "expected"),
    [
        (1, None, 8, None), (1, 3, 8, 3), (2, None, 8, 4), (3, None, 8, 2), (16, None, 8, 1), (2, 6, 8, 6),
        (None, None, 8, 4), (None, None, 7, 7), (None, None, 3, 3), (None, None, 16, 4), (None, 2, 8, 2),
    ],
)  # fmt: skip
def test_threads_of_a_build(workers, threads, cores, expected):
    """As the study says; else an equal share of the cores, none below one; `auto` leaves each at least four."""
    assert threads_of(workers, threads, cores) == expected


def test_what_an_executor_has_is_said_a_line_a_node():
    assert nodes_lines(LocalExecutor(2, 1, Resources(4, 8 * 10**9, 1)).nodes()) == [
        "this machine: 4 CPUs, 8.0 GB of memory, 1 GPU, at most 2 builds at once"
    ]


@pytest.mark.parametrize(
    ("need", "expected"), [(Resources(1, 10), 5), (Resources(2, 10), 2), (Resources(1, 30), 3), (Resources(9), 0)]
)
def test_how_many_replicas_nodes_hold(need, expected):
    assert replicas_at_once([Node("a", Resources(3, 90)), Node("b", Resources(2, 29))], need) == expected
