"""How many rounds a build that was stopped was asked, against counting them one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantverdict.matrix.rounds import Asked, bets_on
from quantverdict.matrix.ungraded import bounded_losses, losses_of
from quantverdict.records import CellId

BASE = CellId("m", "FP16")


def asked(sizes, stopped_after):
    rounds = {("t", f"{number}/{at}"): number for number, size in enumerate(sizes) for at in range(size)}
    return Asked(BASE, rounds, {"t": 1}, stopped_after)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.data())
def test_a_stopped_build_was_asked_the_rounds_that_its_prompts_fill(sizes, data):
    stopped_after = data.draw(st.integers(0, sum(sizes)))
    whole = max(number for number in range(len(sizes) + 1) if sum(sizes[:number]) <= stopped_after)
    assert asked(sizes, stopped_after).whole_rounds == whole


@given(st.lists(st.integers(1, 9), max_size=8))
def test_a_build_that_was_not_stopped_was_asked_every_round(sizes):
    assert asked(sizes, None).whole_rounds == len(sizes)


@pytest.mark.parametrize(("metric", "loss"), [("refusal_rate", 1), ("over_refusal_rate", -1), ("truthfulness", 1)])
def test_a_fall_is_a_loss_but_where_less_is_better(metric, loss):
    assert list(losses_of(metric, np.array([-1.0, 0.0, 1.0]))) == [loss, 0, -loss]


def test_no_loss_is_more_than_everything():
    """A cosine may fall from 1 to -1."""
    ones = np.ones(1)
    for mine, loss in ((-ones, 1), (ones, -1)):
        bets = bets_on(bounded_losses("coherence", mine, -mine, ones == 1))
        assert [list(bet) for bet in bets] == [[loss], [loss]]
