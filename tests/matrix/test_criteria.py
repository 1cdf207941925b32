"""The loss of a pool: which test of `stats` it is put to, over which counts, units and rooms, and in rounds."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from quantverdict.collect.schedule import SEQUENTIAL_SHARE
from quantverdict.matrix.criteria import Loss, Lost
from quantverdict.matrix.grid import InterimAnalyses
from quantverdict.matrix.paired import collapse
from quantverdict.stats.noninferiority import (
    Part,
    Room,
    cluster_sums,
    design_effect,
    mean_loss,
    rate_limits,
    rate_tests,
    weighted_limit,
    weighted_p,
)
from quantverdict.stats.sequential import ConfidenceSequence

ALPHA = 0.02
MARGIN, SHARE = Fraction(7), 0.07


def whole(metric="refusal_rate", n=120, first=0, size=1, rounds=None):
    """Right or wrong answers: one in ten lost, one in twenty gained, in units of `size`; two lost are ungraded."""
    accept = np.random.default_rng(n).choice([1.0, -1.0, 0.0], n, p=[0.1, 0.05, 0.85])
    reject = accept.copy()
    reject[np.flatnonzero(accept > 0)[:2]] = 0.0
    both = accept == reject
    units = first + np.arange(n) // size
    return Lost(metric, accept, reject, units, np.ones(n), both, 2, 0, rounds)


def graded(metric="rouge_l", n=90, first=1000, size=1, rounds=None):
    rng = np.random.default_rng(n)
    accept = np.clip(rng.normal(0.02, 0.1, n), -0.9, 0.9)
    reject = accept - 0.001
    credit = rng.uniform(0.1, 0.9, n)
    credit[3] = np.nan
    return Lost(metric, accept, reject, first + np.arange(n) // size, credit, np.arange(n) > 4, 0, 0, rounds)


def pooled(*parts, weights=None, looks=None):
    return Loss(parts, weights, ALPHA, looks)


@pytest.mark.parametrize("size", [1, 4])
def test_right_or_wrong_answers_are_tested_by_their_counts_over_all_members(size):
    parts = whole(size=size), whole("bias_resistance", 80, 500, size)
    loss = pooled(*parts)
    assert (loss.n, loss.whole) == (200, True)
    for upper, side in ((True, "accept"), (False, "reject")):
        values = np.concatenate([getattr(part, side) for part in parts])
        units = np.concatenate([part.units for part in parts]).tolist()
        counts = int((values > 0).sum()), int((values < 0).sum()), 200
        effect = design_effect(*cluster_sums(values, units), counts[0] + counts[1], ALPHA)
        tests = rate_tests(counts, len(set(units)), effect, SHARE)
        limit = rate_limits(counts, len(set(units)), effect, 0.01, upper=upper)
        assert (loss.p_accept(MARGIN) if upper else loss.p_reject(MARGIN)) == tests[0 if upper else 1]
        assert (loss.upper(0.01, MARGIN) if upper else loss.lower(0.01, MARGIN)) == limit
        assert loss.estimate(side) == pytest.approx(values.mean())
        if upper:
            assert loss.design_effect == effect
            assert loss.differing == pytest.approx((values != 0).mean())
    assert (loss.design_effect == 1) == (size == 1)


def rooms_by_hand(parts, n):
    found = []
    for part in parts:
        sizes = np.bincount(part.units - part.units.min())
        units = math.floor(len(part.units) ** 2 / (sizes**2).sum())
        known = part.credit[~np.isnan(part.credit)]
        largest = 1.0 if part.metric != "rouge_l" else collapse(known, SHARE)
        found.append(Room(units, len(part.accept) / n, largest))
    return tuple(found)


@pytest.mark.parametrize("size", [1, 3])
def test_a_pool_with_a_mean_is_tested_by_the_mean_of_all_its_prompts(size):
    """What no prompt met may be anywhere in it: everything of right or wrong answers, of a mean what collapses lose."""
    parts = whole(size=size), graded(size=size)
    loss, rooms = pooled(*parts), rooms_by_hand(parts, 210)
    assert not loss.whole
    units = np.concatenate([part.units for part in parts]).tolist()
    accept, reject = (np.concatenate([getattr(part, side) for part in parts]) for side in ("accept", "reject"))
    tested = [mean_loss(values, SHARE, ALPHA, units, rooms) for values in (accept, reject)]
    assert loss.p_accept(MARGIN) == pytest.approx(tested[0].p_noninferior)
    assert loss.p_reject(MARGIN) == pytest.approx(tested[1].p_inferior)
    assert loss.upper(0.01, MARGIN) == pytest.approx(mean_loss(accept, SHARE, 0.01, units, rooms).hi)
    assert loss.lower(0.01, MARGIN) == pytest.approx(mean_loss(reject, SHARE, 0.01, units, rooms).lo)
    assert loss.differing == pytest.approx(np.square(accept).mean())
    expected = 1.0 if size == 1 else mean_loss(accept, 0.5, ALPHA, units).design_effect
    assert loss.design_effect == expected


def test_a_metric_of_which_nothing_is_known_to_lose_may_lose_everything():
    part = replace(graded(), credit=np.full(90, np.nan))
    room = (Room(90, 1.0, 1.0),)
    assert pooled(part).p_accept(MARGIN) == mean_loss(part.accept, SHARE, ALPHA, None, room).p_noninferior


@pytest.mark.parametrize("size", [1, 3])
def test_weights_test_the_weighted_mean_of_the_limits_of_each_member(size):
    one, two = whole(size=size), graded(size=size)
    weights = {"refusal_rate": 0.7, "rouge_l": 0.3}
    loss = pooled(one, two, weights=weights)
    for upper, side in ((True, "accept"), (False, "reject")):
        values, means = getattr(one, side), getattr(two, side)
        counts = int((values > 0).sum()), int((values < 0).sum()), 120
        units = one.units.tolist()
        effect = design_effect(*cluster_sums(values, units), counts[0] + counts[1], ALPHA)

        def rate(level, counts=counts, effect=effect, units=units, upper=upper):
            return rate_limits(counts, len(set(units)), effect, level, upper=upper)

        def mean(level, means=means, upper=upper):
            found = mean_loss(means, SHARE, level, two.units.tolist(), rooms_by_hand([two], 90))
            return found.hi if upper else found.lo

        parts = [Part(0.7, float(values.mean()), rate), Part(0.3, float(means.mean()), mean)]
        assert (loss.p_accept(MARGIN) if upper else loss.p_reject(MARGIN)) == weighted_p(parts, SHARE, upper=upper)
        found = loss.upper(0.01, MARGIN) if upper else loss.lower(0.01, MARGIN)
        assert found == weighted_limit(parts, 0.01, upper=upper)
        assert loss.estimate(side) == pytest.approx(0.7 * values.mean() + 0.3 * means.mean())
    assert loss.seen == pytest.approx(0.7 * one.accept[one.both].mean() + 0.3 * two.accept[two.both].mean())
    alone = pooled(one, weights={"refusal_rate": 1.0})
    assert alone.p_accept(MARGIN) == pooled(one).p_accept(MARGIN)
    assert alone.upper(0.01, MARGIN) == pooled(one).upper(0.01, MARGIN)


def test_a_member_without_a_pair_of_grades_has_no_part_in_what_was_seen():
    one, two = whole(), replace(graded(), both=np.zeros(90, bool))
    assert pooled(one, two).seen == pytest.approx(one.accept[one.both].mean())
    weighed = pooled(one, two, weights={"refusal_rate": 0.2, "rouge_l": 0.8})
    assert weighed.seen == pytest.approx(one.accept[one.both].mean())


@pytest.mark.parametrize("stopped", [None, 60])
@pytest.mark.parametrize("largest", [1, 6])
def test_a_build_that_was_asked_in_rounds_is_tested_by_its_sequence_and_by_all_its_prompts(stopped, largest):
    """A third of the level is the sequence's; a build that was stopped has nothing else. Clusters count as what share
    of the largest they are; a member that was not asked in rounds comes in none."""
    rounds = np.arange(120) // 40
    one = whole(size=2, rounds=rounds)
    two = replace(graded(n=120, size=3, rounds=rounds), accept=np.full(120, 0.3))
    plain = pooled(one, two)
    loss = pooled(one, two, looks=InterimAnalyses(rounds, 2, largest, stopped, 240))
    largest = max(largest, 3)
    for upper, side in ((True, "accept"), (False, "reject")):
        sequence = ConfidenceSequence(2 * 0.012 * SEQUENTIAL_SHARE)
        for number in (0, 1):
            units = []
            for part in (one, two):
                here = rounds == number
                values, names = getattr(part, side)[here], part.units[here]
                units += [values[names == name] for name in dict.fromkeys(names.tolist())]
            sequence.add([unit.mean() for unit in units], [len(unit) / largest for unit in units])
        ends = sequence.update([])
        early = min(1.0, sequence.p_values(SHARE)[0 if upper else 1] / SEQUENTIAL_SHARE)
        full = plain.p_accept(MARGIN) if upper else plain.p_reject(MARGIN)
        reach = 0.012 * (1 - SEQUENTIAL_SHARE)
        limit = plain.upper(reach, MARGIN) if upper else plain.lower(reach, MARGIN)
        expected = early if stopped else min(early, 1.0, full / (1 - SEQUENTIAL_SHARE))
        end = ends.hi if upper else ends.lo
        held = end if stopped else min(end, limit) if upper else max(end, limit)
        found = loss.p_accept(MARGIN) if upper else loss.p_reject(MARGIN)
        assert found == pytest.approx(expected, rel=1e-9)
        assert (loss.upper(0.012, MARGIN) if upper else loss.lower(0.012, MARGIN)) == pytest.approx(held, abs=1e-7)
    unasked = pooled(replace(one, rounds=None), two, looks=InterimAnalyses(rounds, 2, largest, 60, 240))
    alone = pooled(two, looks=InterimAnalyses(rounds, 2, largest, 60, 240))
    assert unasked.p_reject(MARGIN) == pytest.approx(alone.p_reject(MARGIN))
