"""Which look would decide a build: the figures of `_Goal` beside formulas written out once more."""

import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import norm

from quantverdict.matrix.criteria import Standing
from quantverdict.protocol.criteria import (
    MOST_LOOKS,
    Row,
    _Goal,
    _grown,
    _looks_to_accept,
    _looks_to_reject,
    look_share,
)
from quantverdict.records import CellId
from quantverdict.stats.noninferiority import rate_tests

POWER = 0.8


def loss(n=201, spread=0.1, effect=1.0, whole=True, weights=None, accept=0.0, reject=0.0):
    return SimpleNamespace(
        n=n, differing=spread, design_effect=effect, whole=whole, weights=weights,
        estimate=lambda side: {"accept": accept, "reject": reject}[side],
    )  # fmt: skip


def test_each_look_has_half_as_many_prompts_again_rounded_up():
    assert [_grown(201, looks) for looks in range(4)] == [201, 302, 453, 680]


def edge(says, low=-0.5, high=0.5):
    """Where a rule turns: it says yes at `low` and no at `high`."""
    assert says(low)
    assert not says(high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if says(middle) else (low, middle)
    return low


@pytest.mark.parametrize("more", [1, 3])
@pytest.mark.parametrize("effect", [1.0, 1.7])
@pytest.mark.parametrize("kind", [{"whole": False}, {"weights": {"a": 1.0}}])
def test_a_mean_is_planned_by_the_normal_approximation(kind, effect, more):
    """Of n pairs a share was seen and lost `now` each: the rest adds its standard error, times the power's quantile."""
    n, level, margin, spread = _grown(201, more), 0.004, 0.05, 0.1
    goal = _Goal(loss(effect=effect, **kind), margin, level, POWER, more)
    share, reach = 201 / n, norm.ppf(POWER)
    needs = norm.isf(level) * math.sqrt(spread * effect / n)
    chance = reach * math.sqrt((1 - share) * spread * effect / n)
    assert edge(goal.accepts) == pytest.approx((margin - needs - chance) / share)

    def rejects(now):
        return now - reach * math.sqrt((1 - share) * (spread - now**2) * effect / n) - margin >= needs

    assert edge(lambda now: not goal.rejects(now), 0.0, 0.3) == pytest.approx(
        edge(lambda now: not rejects(now), 0.0, 0.3)
    )
    assert goal.rejects(0.9), "the mean square of a loss is no less than its square"


@pytest.mark.parametrize("more", [1, 4])
@pytest.mark.parametrize(("spread", "effect"), [(0.02, 1.0), (0.1, 1.7), (1.0, 1.0)])
def test_right_and_wrong_answers_are_planned_by_the_exact_test_of_what_is_expected(spread, effect, more):
    """Counts are rounded against what is hoped for: lost up and gained down to accept, and the reverse to reject."""
    n, level, margin = _grown(201, more), 0.012, 0.05
    goal = _Goal(loss(spread=spread, effect=effect), margin, level, POWER, more)
    share, reach = 201 / n, norm.ppf(POWER)
    told = {True: set(), False: set()}
    for now in np.linspace(-0.05, 0.3, 141).tolist():
        total = now * share + reach * math.sqrt((1 - share) * spread * effect / n)
        differing = max(spread, abs(total)) * n
        lost = min(n, math.ceil((differing + total * n) / 2))
        counts = lost, min(math.floor((differing - total * n) / 2 + 1e-12), n - lost), n
        accepts = rate_tests(counts, n, effect, margin)[0] <= level
        total = now - reach * math.sqrt((1 - share) * max(spread - now**2, 0) * effect / n)
        differing = max(spread, abs(total)) * n
        lost = max(0, math.floor((differing + total * n) / 2 + 1e-12))
        counts = lost, min(math.ceil((differing - total * n) / 2 - 1e-12), n - lost), n
        rejects = rate_tests(counts, n, effect, margin)[1] <= level
        assert (goal.accepts(now), goal.rejects(now)) == (accepts, rejects), now
        told[True].add(accepts)
        told[False].add(rejects)
    assert told[False] == {True, False}
    assert told[True] == ({True, False} if spread < 1 else {False})


def row(weight=Fraction(1, 2), p_accept=0.5, level=0.01, margin=5, guard=8, role="member", **given):
    standing = Standing(CellId("m", "Q"), "c", "a", role, Fraction(margin), Fraction(guard), "informative",
                        loss(**given), "", p_accept, 1.0)  # fmt: skip
    return Row(standing, weight, None, None, level, 1.0, "not_resolvable")


@pytest.mark.parametrize("look", [1, 2])
@pytest.mark.parametrize("given", [{}, {"whole": False}])
@pytest.mark.parametrize("lost", [0.0, 0.03, 0.06, 0.075])
def test_the_look_that_accepts_is_the_first_whose_level_does(look, given, lost):
    """A member by its guard margin, a criterion by its margin; the level is that of each later look."""
    for role, margin in (("member", 0.08), ("criterion", 0.05)):
        one = row(role=role, accept=lost, spread=max(0.1, lost), **given)
        looks = [
            more for more in range(1, MOST_LOOKS)
            if _Goal(one.standing.loss, margin, 0.025 * float(look_share(look + more)), POWER, more).accepts(lost)
        ]  # fmt: skip
        assert _looks_to_accept(one, 0.025, POWER, look) == (looks[0] if looks else None)
    assert _looks_to_accept(row(p_accept=0.01, **given), 0.025, POWER, look) == 0
    assert _looks_to_accept(row(p_accept=0.0101, **given), 0.025, POWER, look) != 0


@pytest.mark.parametrize("look", [1, 2])
@pytest.mark.parametrize("given", [{}, {"whole": False}])
@pytest.mark.parametrize("lost", [0.051, 0.06, 0.08, 0.2])
def test_the_look_that_rejects_is_the_first_whose_share_of_the_level_does(look, given, lost):
    for weight in (Fraction(1, 2), Fraction(1, 16)):
        one = row(weight, reject=lost, spread=max(0.1, lost), **given)
        looks = [
            more for more in range(1, MOST_LOOKS)
            if _Goal(one.standing.loss, 0.05, 0.025 * float(weight) * float(look_share(look + more)), POWER,
                     more).rejects(lost)
        ]  # fmt: skip
        assert _looks_to_reject(one, 0.025, POWER, look) == (looks[0] if looks else None)
    assert _looks_to_reject(row(reject=0.05, **given), 0.025, POWER, look) is None, "the margin itself"


def test_nothing_is_planned_beyond_fifteen_further_looks():
    assert MOST_LOOKS == 16
    n = [_grown(20, more) for more in range(17)]
    for more in (15, 16):
        # A loss just inside what that look accepts, and no look before it.
        margin, level = 0.05, 0.01 * float(look_share(1 + more))
        lost = edge(_Goal(loss(20, whole=False), margin, level, POWER, more).accepts, -0.5, n[more]) * (1 - 1e-9)
        assert _looks_to_accept(row(n=20, whole=False, accept=lost, guard=5), 0.01, POWER, 1) == (
            15 if more == 15 else None
        )
