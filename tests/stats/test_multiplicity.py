"""Holm against statsmodels, Benjamini-Hochberg against scipy; what was not tested is not counted."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control
from statsmodels.stats.multitest import multipletests

from quantverdict.stats.noninferiority import benjamini_hochberg, holm

p_values = st.lists(st.one_of(st.none(), st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.05, 1.0])), max_size=16)


@given(p_values)
def test_benjamini_hochberg_is_scipys_over_what_was_tested(values):
    check(benjamini_hochberg(values), values, false_discovery_control)


@settings(max_examples=30)
@given(p_values)
def test_holm_is_that_of_statsmodels_over_what_was_tested(values):
    check(holm(values), values, lambda tested: multipletests(tested, method="holm")[1])


def check(ours, values, reference):
    assert [p is None for p in ours] == [p is None for p in values]
    tested = [p for p in values if p is not None]
    if tested:
        assert [p for p in ours if p is not None] == pytest.approx(list(reference(tested)), abs=1e-12)


def test_one_test_is_not_adjusted_and_none_is_no_family():
    for function in (holm, benjamini_hochberg):
        assert function([None, 0.03]) == [None, 0.03]
        assert function([None]) == [None]
        assert function([]) == []


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_what_is_not_a_probability_is_refused(bad):
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, bad])


def test_zero_and_one_are_probabilities():
    assert holm([0.0, 1.0]) == [0.0, 1.0]
    assert benjamini_hochberg([0.0, 1.0]) == [0.0, 1.0]
