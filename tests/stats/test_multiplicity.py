"""Holm and Benjamini-Hochberg against statsmodels; what was not tested is not counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from quantverdict.stats.multiplicity import benjamini_hochberg, holm

p_values = st.lists(st.one_of(st.none(), st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.05, 1.0])), max_size=40)


@given(p_values, st.sampled_from([(holm, "holm"), (benjamini_hochberg, "fdr_bh")]))
def test_adjusted_p_values_are_those_of_statsmodels_over_what_was_tested(values, method):
    function, name = method
    ours = function(values)
    assert [p is None for p in ours] == [p is None for p in values]
    tested = [p for p in values if p is not None]
    if tested:
        theirs = multipletests(tested, method=name)[1]
        assert [p for p in ours if p is not None] == pytest.approx(list(theirs), abs=1e-12)


def test_one_test_is_not_adjusted_and_none_is_no_family():
    for function in (holm, benjamini_hochberg):
        assert function([None, 0.03]) == [None, 0.03]
        assert function([None]) == [None]
        assert function([]) == []


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_what_is_not_a_probability_is_refused(bad):
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, bad])
