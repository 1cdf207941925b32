"""How many rounds a build that was stopped was asked, against counting them one by one."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantverdict.collect.schedule import SEQUENTIAL_SHARE
from quantverdict.config import StatisticsConfig
from quantverdict.matrix.criteria import lost_by
from quantverdict.matrix.grid import grids, scores_frame
from quantverdict.matrix.paired import ComparisonRules, PromptedSet, bets_on, comparisons, in_rounds
from quantverdict.matrix.shared import bounded_losses, losses_of
from quantverdict.records import CellId, Score
from quantverdict.stats.sequential import ConfidenceSequence

BASE = CellId("m", "FP16")


def asked(sizes, stopped_after):
    rounds = {("t", f"{number}/{at}"): number for number, size in enumerate(sizes) for at in range(size)}
    return PromptedSet(BASE, rounds, {"t": 1}, stopped_after)


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


BUILD, OTHER = CellId("m", "Q4_K_M"), CellId("m", "Q8_0")
TASKS = {"t": 12, "u": 8}
HOW = PromptedSet(
    BASE, {(task, f"{at:02d}"): at % 4 for task, n in TASKS.items() for at in range(n)}, {"t": 3, "u": 2}, 10
)


def graded(cell, metric, value, tasks=("t", "u"), most=99):
    """`value` of each prompt, by task and number; `most`: prompts of a later number have no answer."""
    return [
        Score(*cell, task, f"{at:02d}", metric, value(task, at), f"{at // 3}" if task == "t" else None)
        for task in tasks
        for at in range(min(TASKS[task], most))
    ]


def grids_of(*scores):
    return grids(scores_frame([one for part in scores for one in part]))


def test_a_grid_knows_the_rounds_of_its_prompts_and_the_largest_cluster_of_what_its_baseline_has():
    samples = grids_of(
        graded(BASE, "refusal_rate", lambda task, at: 1.0),
        graded(BUILD, "refusal_rate", lambda task, at: 1.0),
        graded(BASE, "truthfulness", lambda task, at: 0.5 if task == "u" else None),
        graded(BUILD, "truthfulness", lambda task, at: 0.5),
        graded(BUILD, "bias_resistance", lambda task, at: 1.0),
        graded(BASE, "rouge_l", lambda task, at: 0.5),
    )
    found = in_rounds(samples, {BUILD: HOW})
    looks = found["refusal_rate"].looks[BUILD]
    assert looks.rounds.tolist() == [at % 4 for n in TASKS.values() for at in range(n)]
    assert (looks.asked, looks.largest, looks.stopped_after, looks.planned) == (2, 3, 10, 20)
    assert found["truthfulness"].looks[BUILD].largest == 2, "the baseline has no grade of the other task"
    assert not found["bias_resistance"].looks, "the baseline has none"
    assert not found["rouge_l"].looks, "the build has none"
    assert in_rounds(samples, {}) is samples
    unknown = in_rounds(samples, {BUILD: PromptedSet(BASE, {("t", "00"): 0}, {}, None)})["refusal_rate"].looks[BUILD]
    assert (unknown.rounds.tolist(), unknown.asked, unknown.largest) == ([0] + [-1] * 19, 1, 1)


def compared(asked, margin, values, metric="refusal_rate"):
    """The comparison of a build whose answer differs from the baseline's as `values` say, over two tasks."""
    first = (lambda task, at: 1.0 - values(task, at)) if metric == "over_refusal_rate" else lambda task, at: 1.0
    second = (lambda task, at: 1.0) if metric == "over_refusal_rate" else lambda task, at: 1.0 - values(task, at)
    samples = in_rounds(grids_of(graded(BASE, metric, first), graded(BUILD, metric, second)), {BUILD: asked})
    rules = ComparisonRules({metric: margin}, 0.025, StatisticsConfig(confidence=0.9, bootstrap_samples=200), 42)
    (found,) = comparisons(samples, {BUILD: BASE}, rules, {}, {})
    return found, samples[metric]


def shared(p_values):
    """Looking early has its share of the level."""
    return tuple(min(1.0, p / SEQUENTIAL_SHARE) for p in p_values)


def by_hand(rounds, values, largest):
    """The sequence of cluster means of each round, weighed by size: what the documentation says goes into it."""
    sequence = ConfidenceSequence(0.1)
    for number in range(rounds):
        clusters = {}
        for task, n in TASKS.items():
            for at in range(n):
                if at % 4 == number:
                    clusters.setdefault((task, at // 3 if task == "t" else f"alone {at}"), []).append(values(task, at))
        sequence.add([np.mean(one) for one in clusters.values()], [len(one) / largest for one in clusters.values()])
    return sequence


@pytest.mark.parametrize("metric", ["refusal_rate", "over_refusal_rate"])
def test_a_stopped_build_has_the_interval_and_tests_of_the_sequence_of_its_rounds(metric):
    lost = lambda task, at: float((at + (task == "u")) % 3 != 0)  # noqa: E731
    found, _ = compared(HOW, Fraction(5), lost, metric)
    sequence = by_hand(2, lost, 3)
    interval = sequence.update([])
    assert found.interval_kind == "confidence_sequence"
    sign = 1 if metric == "over_refusal_rate" else -1
    assert sorted((found.lo, found.hi)) == pytest.approx(sorted((sign * 100 * interval.lo, sign * 100 * interval.hi)))
    assert (found.gate.p_noninferior, found.gate.p_inferior) == pytest.approx(shared(sequence.p_values(0.05)))
    assert found.gate.p_inferior < 1
    assert (found.n, found.stopped_after, found.missing, found.extra) == (10, 10, 0, 0)
    losses = [lost(task, at) for task, n in TASKS.items() for at in range(n) if at % 4 < 2]
    assert found.gate.loss == pytest.approx(np.mean(losses))


def test_a_build_that_was_asked_everything_keeps_its_interval():
    lost = lambda task, at: float(at % 3 == 0)  # noqa: E731
    whole = PromptedSet(BASE, HOW.rounds, HOW.largest, None)
    found, _ = compared(whole, Fraction(5), lost)
    assert found.interval_kind == "tango_clustered"
    assert (found.n, found.stopped_after) == (20, None)
    plain, _ = compared(PromptedSet(OTHER, HOW.rounds, HOW.largest, None), Fraction(5), lost)
    assert (found.lo, found.hi) == (plain.lo, plain.hi)
    early = shared(by_hand(4, lost, 3).p_values(0.05))
    full = [p / (1 - SEQUENTIAL_SHARE) for p in (plain.gate.p_noninferior, plain.gate.p_inferior)]
    expected = [min(one, two, 1.0) for one, two in zip(early, full, strict=True)]
    assert (found.gate.p_noninferior, found.gate.p_inferior) == pytest.approx(expected)


def test_what_a_stopped_build_left_ungraded_widens_its_interval_one_way():
    """Ungraded answers that the baseline had right are losses for the one sequence and nothing for the other."""
    gone = {("t", 1), ("u", 0)}
    samples = grids_of(
        graded(BASE, "refusal_rate", lambda task, at: 1.0),
        graded(BUILD, "refusal_rate", lambda task, at: None if (task, at) in gone else 1.0),
    )
    samples = in_rounds(samples, {BUILD: HOW})
    rules = ComparisonRules({"refusal_rate": Fraction(5)}, 0.025, StatisticsConfig(confidence=0.9), 42)
    (found,) = comparisons(samples, {BUILD: BASE}, rules, {}, {})
    accept = by_hand(2, lambda task, at: float((task, at) in gone), 3)
    reject = by_hand(2, lambda task, at: 0.0, 3)
    assert found.hi == pytest.approx(-100 * reject.update([]).lo)
    assert found.lo == pytest.approx(-100 * accept.update([]).hi)
    assert found.gate.p_noninferior == pytest.approx(shared(accept.p_values(0.05))[0])
    assert found.gate.p_inferior == pytest.approx(shared(reject.p_values(0.05))[1])
    assert (found.n, found.ungraded, found.ungraded_a, found.ungraded_c) == (8, 2, 2, 0)
    assert found.gate.hidden == pytest.approx(2 / 10)


def test_what_is_asked_in_rounds_is_lost_in_bets_that_are_never_more_than_everything():
    """Without rounds a cosine that falls from 1 to -1 loses 2."""
    scores = [graded(BASE, "coherence", lambda task, at: 1.0), graded(BUILD, "coherence", lambda task, at: -1.0)]
    samples = grids_of(*scores)
    at_once = lost_by(samples, BUILD, BASE, "coherence")
    in_turn = lost_by(in_rounds(samples, {BUILD: HOW}), BUILD, BASE, "coherence")
    assert (set(at_once.accept), at_once.rounds) == ({2.0}, None)
    assert set(in_turn.accept) == set(in_turn.reject) == {1.0}
    assert len(in_turn.rounds) == len(in_turn.accept)
