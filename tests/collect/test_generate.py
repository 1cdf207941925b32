"""One cell: asked in plan order, resumed without asking twice, and a failure is a row with its reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quantverdict.bundle.store import CellStore, read_responses
from quantverdict.collect.generate import (
    AnswerSource,
    CellRecord,
    check_completions,
    collect_cell,
    one_line,
    smoke_check,
)
from quantverdict.errors import BundleError, EngineError
from quantverdict.records import Completion, Prompt

FRESH = CellRecord()


@pytest.fixture
def collect(kit, tmp_path):
    """Collect the cell of this test's folder with a backend; the outcome, the view, and the identities noted."""

    def run(backend, known=FRESH, folder=tmp_path):
        view, noted = kit.RecordingView(), []
        store = CellStore(folder, kit.CELL, kit.make_plan())
        outcome = collect_cell(store, AnswerSource(lambda: backend), view, noted.append, known)
        return outcome, view, noted

    return run


def stored(folder):
    return (folder / "responses" / "tiny__Q8_0.jsonl").read_bytes()


def test_halves_are_counted_over_all_runs(collect, kit):
    backend = kit.EchoBackend()
    backend.usage = replace(backend.usage, halved=2)
    first, _, _ = collect(backend)
    assert first.halved == 2
    again, _, _ = collect(None, CellRecord(first.identity, halved=first.halved))
    assert again.halved == 2


def test_a_whole_cell(collect, kit, tmp_path):
    backend = kit.EchoBackend()
    outcome, view, noted = collect(backend)
    plan = kit.make_plan()
    assert backend.asked == [[plan.prompts[index].sample_id for index in batch] for batch in plan.batches]
    assert (outcome.status, outcome.failure, outcome.prompts) == ("ok", None, 12)
    assert (view.started, view.prompts) == ([(kit.CELL, 12, 0)], 12)
    tokens = sum(response.output_tokens for response in read_responses(tmp_path / "responses" / "tiny__Q8_0.jsonl"))
    assert view.tokens == tokens
    assert outcome.tokens_per_second == pytest.approx(tokens / outcome.wall_seconds)
    assert outcome.cpu_seconds == 0.5 * len(plan.batches)
    assert (outcome.peak_memory_bytes, 0 < outcome.ttft_ms < 1) == (1000, True)
    assert noted == [backend.identity] == [outcome.identity]
    assert (backend.closed, view.finished) == (1, [outcome])


@pytest.mark.parametrize("fail_at", range(5))
@pytest.mark.parametrize("error", [EngineError("the engine\ncrashed"), RuntimeError("boom"), MemoryError()])
def test_a_failed_cell_is_a_row_and_a_resume_completes_it(collect, kit, tmp_path, fail_at, error):
    """At every batch; the resumed file is that of a run that nothing stopped, and no batch is asked twice."""
    failing = kit.EchoBackend(fail_at, error=error)
    failed, view, _ = collect(failing)
    assert (failed.status, failed.failure) == ("failed", one_line(error))
    assert (failing.closed, view.finished) == (1, [failed])
    backend = kit.EchoBackend()
    outcome, view, _ = collect(backend, CellRecord(failed.identity, failed.peak_memory_bytes))
    assert (outcome.status, outcome.prompts) == ("ok", 12)
    assert len(failing.asked) + len(backend.asked) == len(kit.make_plan().batches)
    assert view.started[0][2] == failed.prompts
    collect(kit.EchoBackend(), folder=tmp_path / "whole")
    assert stored(tmp_path) == stored(tmp_path / "whole")


def test_a_build_that_does_not_load_is_a_row(kit, tmp_path):
    def refuse():
        raise EngineError("phi: no such layer")

    store = CellStore(tmp_path, kit.CELL, kit.make_plan())
    outcome = collect_cell(store, AnswerSource(refuse), kit.RecordingView(), lambda identity: None)
    assert (outcome.failure, outcome.identity, outcome.prompts) == ("phi: no such layer", {}, 0)
    assert (outcome.tokens_per_second, outcome.wall_seconds, outcome.cpu_seconds, outcome.ttft_ms) == (None,) * 4


def test_ctrl_c_passes_through_after_the_backend_is_closed(collect, kit):
    backend = kit.EchoBackend(2, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        collect(backend)
    assert backend.closed == 1


def test_a_full_disk_stops_the_run(collect, kit, monkeypatch):
    """It is no fault of the cell."""
    monkeypatch.setattr(CellStore, "append", lambda *_: (_ for _ in ()).throw(BundleError("the disk is full")))
    backend = kit.EchoBackend()
    with pytest.raises(BundleError, match="full"):
        collect(backend)
    assert backend.closed == 1


def test_a_complete_cell_opens_no_backend(collect, kit):
    first, _, _ = collect(kit.EchoBackend())
    again, view, noted = collect(None, CellRecord(first.identity, first.peak_memory_bytes))
    assert (again, noted, view.prompts) == (first, [], 0)


def test_half_a_cell_is_not_completed_by_another_engine(collect, kit):
    failed, _, _ = collect(kit.EchoBackend(1, error=EngineError("x")))
    other = kit.EchoBackend(identity={"engine": "echo", "version": 2})
    with pytest.raises(BundleError, match="version 1, it is 2 now"):
        collect(other, CellRecord(failed.identity))
    assert (other.asked, other.closed) == ([], 1)


def test_a_cell_with_no_answer_yet_may_start_with_another_engine(collect, kit):
    failed, _, _ = collect(kit.EchoBackend(0, error=EngineError("x")))
    outcome, _, _ = collect(kit.EchoBackend(identity={"engine": "new"}), CellRecord(failed.identity))
    assert (outcome.status, outcome.identity) == ("ok", {"engine": "new"})


def test_a_backend_that_tells_no_cost_leaves_it_unmeasured(collect, kit):
    backend = kit.EchoBackend()
    del backend.usage
    backend.complete = lambda prompts, decoding, progress: [Completion("x", "stop", 1, 1) for _ in prompts]
    outcome, _, _ = collect(backend)
    assert (outcome.cpu_seconds, outcome.peak_memory_bytes, outcome.ttft_ms) == (None, None, None)


PROMPT = Prompt("t", "s", "x", None, "h", ("A", "B"))
GOOD = Completion("x", "stop", 1, 4, None, (-1.0, -2.0))


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([], "0 answers to 1 prompts"),
        ([Completion("x", "error", 1, 4)], "finished by 'error'"),
        ([Completion("x", "stop", 1, 5)], "5 tokens generated, at most 4"),
        ([Completion("x", "stop", 1, -1)], "-1 tokens"),
        ([Completion("x", "stop", 1, 4, None, (-1.0,))], "1 log-probabilities for 2 choices"),
        ([Completion("x", "stop", 1, 4, None, (-1.0, float("-inf")))], "not finite"),
    ],
)
def test_what_no_working_engine_returns_is_refused(answers, told):
    with pytest.raises(EngineError, match=told):
        check_completions([PROMPT], answers, 4)


def test_what_a_working_engine_returns_is_accepted():
    check_completions([PROMPT, PROMPT], [GOOD, Completion("", "length", 1, 0)], 4)


def test_a_first_batch_of_eight_without_a_token_is_an_engine_that_does_not_work():
    empty = Completion("", "stop", 3, 0)
    with pytest.raises(EngineError, match="nothing to each of the first 8"):
        smoke_check([empty] * 8)
    smoke_check([empty] * 7)
    smoke_check([empty] * 7 + [GOOD])


def test_a_reason_is_one_line_with_the_type_of_a_strange_error():
    assert one_line(EngineError("a\n  b")) == "a b"
    assert one_line(ValueError("a\nb")) == "ValueError: a b"
    assert one_line(MemoryError()) == "MemoryError"
    assert len(one_line(EngineError("x" * 9999))) == 500


class Silent:
    """Answers nothing up to its n-th prompt."""

    identity = {"engine": "silent"}  # noqa: RUF012 - a test's

    def __init__(self, until, fail_at=None):
        self.until, self.fail_at, self.asked = until, fail_at, 0

    def complete(self, prompts, decoding, progress=None):
        if self.fail_at is not None and self.asked >= self.fail_at:
            raise EngineError("gone")
        self.asked += len(prompts)
        spoken = range(self.asked - len(prompts), self.asked)
        return [Completion(*(("", "stop", 5, 0) if at < self.until else ("x", "stop", 5, 1))) for at in spoken]

    def close(self):
        pass


def test_an_engine_that_answers_nothing_is_noticed_in_batches_of_three_and_leaves_no_answer(collect, kit, tmp_path):
    outcome, _, _ = collect(Silent(99))
    assert (outcome.failure, outcome.prompts) == ("answered nothing to each of the first 10 prompts", 0)
    assert stored(tmp_path) == b""
    again, _, _ = collect(kit.EchoBackend(), CellRecord(outcome.identity))
    assert (again.status, again.prompts) == ("ok", 12)


def test_what_an_earlier_run_got_for_nothing_counts_too(collect, tmp_path):
    """Three empty answers, a break, then more of them."""
    first, _, _ = collect(Silent(99, fail_at=3))
    assert (first.failure, first.prompts) == ("gone", 3)
    second, _, _ = collect(Silent(99), CellRecord(first.identity))
    assert (second.failure, second.prompts) == ("answered nothing to each of the first 10 prompts", 0)


def test_one_answer_among_the_first_is_an_engine_that_works(collect):
    outcome, _, _ = collect(Silent(8))
    assert (outcome.failure, outcome.prompts) == (None, 12)
