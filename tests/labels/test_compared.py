"""An instrument against people: each figure against another implementation or a count by hand."""

import pytest

from quantverdict.labels.compared import compared

PAIRS = [("1", "1")] * 40 + [("1", "0")] * 10 + [("0", "1")] * 5 + [("0", "0")] * 45


def test_kappa_is_that_of_the_published_formula_and_the_shares_are_counts():
    """By hand: observed 0.85, expected 0.5 * 0.45 + 0.5 * 0.55 = 0.5, kappa 0.7."""
    found = compared(PAIRS)
    assert found.found.kappa == pytest.approx(0.7)
    assert (found.sensitivity.k, found.sensitivity.n) == (40, 50)
    assert (found.specificity.k, found.specificity.n) == (45, 50)


def test_kappa_is_that_of_statsmodels():
    kappa = pytest.importorskip("statsmodels.stats.inter_rater").cohens_kappa
    expected = kappa([[40, 10], [5, 45]])
    interval = compared(PAIRS).found.kappa_interval
    assert (interval.lo, interval.hi) == pytest.approx((expected.kappa_low, expected.kappa_upp), abs=1e-6)


def test_what_an_instrument_calls_unclear_is_missed_where_people_see_it_and_no_false_alarm_where_not():
    found = compared([("1", "nowhere"), ("0", "nowhere"), ("nowhere", "1")])
    assert (found.sensitivity.k, found.sensitivity.n) == (0, 1)
    assert (found.specificity.k, found.specificity.n) == (1, 1)
    assert found.found.n == 3


def test_of_choices_a_wrong_letter_is_missed_and_an_invented_one_is_a_false_alarm():
    found = compared([("A", "A"), ("A", "B"), ("none", "none"), ("none", "C")], choices=True)
    assert (found.sensitivity.k, found.sensitivity.n) == (1, 2)
    assert (found.specificity.k, found.specificity.n) == (1, 2)


def test_nothing_is_not_measured():
    found = compared([])
    assert found.sensitivity.interval is None
    assert found.as_json()["kappa"] is None
    assert found.as_json()["sensitivity"]["value"] is None
