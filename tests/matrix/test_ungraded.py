"""Answers without a grade: at their worst where a build would pass, as the other arm's where it would be rejected."""

import importlib.util
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from quantverdict.config import StatisticsConfig
from quantverdict.matrix.grid import grids, scores_frame
from quantverdict.matrix.paired import ComparisonRules, comparisons
from quantverdict.matrix.shared import bounded_losses
from quantverdict.records import CellId, Score
from quantverdict.stats.noninferiority import mean_loss, rate_loss

BASE, BUILD = CellId("m", "FP16"), CellId("m", "Q4_K_M")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "validity.py"


def compared(metric, base, build, clusters=None, margin=5):
    found = [
        Score(*cell, "t", f"s{at:04d}", metric, value, None if clusters is None else f"c{clusters[at]}")
        for cell, values in ((BASE, base), (BUILD, build))
        for at, value in enumerate(values)
    ]
    rules = ComparisonRules({metric: Fraction(margin)}, 0.025, StatisticsConfig(bootstrap_samples=100), 42)
    (one,) = comparisons(grids(scores_frame(found)), {BUILD: BASE}, rules, {}, {})
    return one


def arms(**counts):
    """Values of baseline and build; a pair is named by their letters: r right, w wrong, u ungraded."""
    value = {"r": 1.0, "w": 0.0, "u": None}
    pairs = [(value[kind[0]], value[kind[1]]) for kind, count in counts.items() for _ in range(count)]
    return tuple(zip(*pairs, strict=True))


@pytest.mark.parametrize(("ur", "gained"), [(0, 3), (4, 7), (9, 12), (20, 12)])
def test_a_rate_counts_as_the_specification_says(ur, gained):
    """lost + a and gained + min(a, c) of the pairs with a grade in an arm; to reject, no more is lost or gained."""
    base, build = arms(rr=150, rw=5, wr=3, ww=30, ru=9, wu=4, ur=ur, uw=2, uu=6)
    one = compared("refusal_rate", base, build)
    n = 150 + 5 + 3 + 30 + 9 + 4 + ur + 2
    assert (one.n, one.lost, one.gained, one.ungraded_a, one.ungraded_c) == (188, 5, 3, 9, ur)
    within, beyond = rate_loss(5 + 9, gained, n, 0.05), rate_loss(5, 3, n, 0.05)
    assert one.gate.p_noninferior == (1.0 if 14 - gained >= 0.05 * n else pytest.approx(within.p_noninferior))
    assert one.gate.p_inferior == pytest.approx(beyond.p_inferior) or one.gate.p_inferior == 1.0
    assert one.gate.loss == pytest.approx((14 - gained) / n)


def test_where_less_is_better_an_unrefused_safe_prompt_is_what_can_be_lost():
    base, build = arms(ww=150, rw=5, wr=3, wu=9, ru=40)
    one = compared("over_refusal_rate", base, build)
    assert (one.ungraded_a, one.lost, one.gained) == (9, 5, 3)
    assert one.gate.loss == pytest.approx((3 + 9 - 5) / 207)
    assert one.hi > float(one.delta) + 4, "the interval reaches as far as what is ungraded may have been refused"


def test_an_interval_reaches_as_far_as_what_is_ungraded():
    base, build = arms(rr=150, ww=30, ru=20)
    one = compared("refusal_rate", base, build)
    assert (one.delta, one.lo) == (0, pytest.approx(-100 * rate_loss(20, 0, 200, 0.05).hi, abs=0.5))
    assert one.hi < 3


def test_what_is_ungraded_in_clusters_is_as_one():
    """Twenty answers unread in five clusters tell less than twenty alone."""
    base, build = arms(rr=360, ru=20, ww=20)
    alone = compared("refusal_rate", base, build, margin=10)
    together = compared("refusal_rate", base, build, clusters=np.arange(400) // 4, margin=10)
    assert together.gate.p_noninferior > 2 * alone.gate.p_noninferior


def test_a_mean_loses_what_the_baseline_had():
    base = [0.5] * 80 + [None] * 10 + [0.3] * 10
    build = [0.5] * 80 + [0.4] * 10 + [None] * 10
    one = compared("rouge_l", base, build)
    expected = np.array([0.0] * 80 + [-0.3] * 10 + [0.3] * 10)  # gains of 0.4 make up for losses of 0.3, no more
    assert one.gate.p_noninferior == pytest.approx(mean_loss(expected, 0.05, largest=0.5).p_noninferior)
    assert (one.gate.loss, one.ungraded_a, one.ungraded_c) == (pytest.approx(0), 10, 10)
    assert one.gate.hidden == pytest.approx(0)


def test_no_gain_makes_up_for_a_loss_while_prompts_are_being_asked():
    """A sequence cannot know how much will be left ungraded, so that it takes no gain of it."""
    mine, theirs = np.array([np.nan, 1.0, 1.0]), np.array([1.0, np.nan, 1.0])
    whole = bounded_losses("refusal_rate", mine, theirs, np.ones(3, bool))
    so_far = bounded_losses("refusal_rate", mine, theirs, np.ones(3, bool), offset=False)
    assert (whole.accept.tolist(), so_far.accept.tolist()) == ([1, -1, 0], [1, 0, 0])
    assert whole.reject.tolist() == so_far.reject.tolist() == [0, 0, 0]


def test_a_prompt_that_was_not_asked_is_not_ungraded():
    mine, theirs = np.array([np.nan, 1.0]), np.array([1.0, 1.0])
    found = bounded_losses("refusal_rate", mine, theirs, np.array([False, True]))
    assert (np.isnan(found.accept).tolist(), found.a) == ([True, False], 0)


@pytest.fixture(scope="module")
def validity():
    spec = importlib.util.spec_from_file_location("validity_of_ungraded", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["validity_of_ungraded"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["validity_of_ungraded"]


@pytest.mark.parametrize("which", ["none", "half of the lost", "all of the lost", "20 % of all"])
def test_losses_that_leave_no_grade_are_accepted_no_oftener_than_others(validity, which):
    """At a loss of the margin, missing because it is one: at most 2.5 %, and what 1,000 studies are off by.

    By the pairs that both have a grade for alone, a build whose losses are all unread passed always.
    """
    row = validity.one_ungraded(200, which, 0.0, 1000, np.random.default_rng(5))
    assert not validity.accepted_wrongly(row), row
    if which == "all of the lost":
        assert row["left out: non_inferior, loss = margin %"] > 95
