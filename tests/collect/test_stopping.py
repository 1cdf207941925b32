"""A cell in rounds: looked at once a round, stopped at the end of one, and finished for every later run."""

import dataclasses

import pytest

from quantverdict.bundle.prompts import StoppingSchedule
from quantverdict.bundle.store import CellStore
from quantverdict.collect.generate import AnswerSource, CellRecord, collect_cell


class Watch:
    """Enough after so many rounds; keeps what it was told."""

    def __init__(self, enough_after):
        self.enough_after, self.rounds = enough_after, []

    def __call__(self, answers):
        self.rounds.append([answer.sample_id for answer in answers])
        return len(self.rounds) >= self.enough_after


@pytest.fixture
def collect(kit, tmp_path):
    """Asks a cell of twelve prompts in five batches and three rounds, of two, two and one batch."""
    plan = dataclasses.replace(kit.make_plan(), rounds=StoppingSchedule((2, 4, 5), {"alpha": 1, "beta": 1}))

    def run(watch, backend=None, known=CellRecord(), fail_at=None):  # noqa: B008 - frozen
        backend = backend or kit.EchoBackend(fail_at, error=RuntimeError("gone"))
        store = CellStore(tmp_path, kit.CELL, plan)
        outcome = collect_cell(
            store,
            AnswerSource(lambda: backend, watch=lambda: watch),
            kit.RecordingView(),
            lambda _: None,
            known,
        )
        return outcome, backend

    run.plan = plan
    return run


def ids(plan, first, last):
    return [plan.prompts[index].sample_id for batch in plan.batches[first:last] for index in batch]


def test_a_cell_is_stopped_at_the_end_of_the_round_that_was_enough(collect):
    watch = Watch(enough_after=2)
    outcome, backend = collect(watch)
    assert watch.rounds == [ids(collect.plan, 0, 2), ids(collect.plan, 2, 4)]
    assert len(backend.asked) == 4
    assert (outcome.status, outcome.prompts, outcome.stopped_after) == (
        "ok",
        *[sum(map(len, collect.plan.batches[:4]))] * 2,
    )


def test_the_last_round_is_not_looked_at(collect):
    watch = Watch(enough_after=3)
    outcome, backend = collect(watch)
    assert len(watch.rounds) == 2
    assert (outcome.prompts, outcome.stopped_after, len(backend.asked)) == (12, None, 5)


def test_a_resumed_cell_is_told_its_stored_rounds_in_order_and_asked_the_rest(collect):
    collect(Watch(2), fail_at=3)
    watch = Watch(2)
    outcome, backend = collect(watch)
    assert watch.rounds == [ids(collect.plan, 0, 2), ids(collect.plan, 2, 4)]
    assert len(backend.asked) == 1
    assert outcome.stopped_after == sum(map(len, collect.plan.batches[:4]))


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "killed before it was noted"])
def test_a_stopped_cell_is_finished(collect, noted):
    """Its engine is not opened, and where it is known to have stopped its answers are not looked at either."""
    outcome, _ = collect(Watch(1))
    watch = Watch(1)
    known = CellRecord(outcome.identity, outcome.peak_memory_bytes, outcome.stopped_after if noted else None)
    again, backend = collect(watch, known=known)
    assert (again, backend.asked, backend.closed) == (outcome, [], 0)
    assert len(watch.rounds) == (0 if noted else 1)


def test_a_cell_that_went_past_an_early_end_stops_at_its_next_whole_round(collect):
    """As where its baseline was missing when it was first asked: rounds stay whole."""
    collect(Watch(9), fail_at=3)
    outcome, backend = collect(Watch(1))
    assert outcome.stopped_after == sum(map(len, collect.plan.batches[:4]))
    assert len(backend.asked) == 1
