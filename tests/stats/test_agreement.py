"""Cohen's kappa against statsmodels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.inter_rater import cohens_kappa

from quantverdict.stats.agreement import cohen_kappa

LABELS = ("FULL_REFUSAL", "PARTIAL_REFUSAL", "COMPLIANCE", "UNCLEAR")


@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=200))
def test_kappa_and_its_error_are_those_of_statsmodels(pairs):
    ours = cohen_kappa(pairs)
    table = np.zeros((4, 4))
    for one, two in pairs:
        table[LABELS.index(one), LABELS.index(two)] += 1
    assert ours.agreement == np.trace(table) / table.sum()
    if len(set(pairs)) == 1 and pairs[0][0] == pairs[0][1]:
        assert ours.kappa is None
        assert "one and the same label" in ours.reason
        return
    with np.errstate(all="ignore"):
        theirs = cohens_kappa(table)
    assert ours.kappa == pytest.approx(theirs.kappa, abs=1e-12)
    assert ours.se**2 == pytest.approx(max(0, theirs.var_kappa), abs=1e-12)
    lo, hi = max(-1, theirs.kappa - 1.959963984540054 * ours.se), min(1, theirs.kappa + 1.959963984540054 * ours.se)
    assert (ours.kappa_interval.lo, ours.kappa_interval.hi) == pytest.approx((lo, hi), abs=1e-12)


def test_a_textbook_table():
    """Fleiss, Levin & Paik (2003), table 18.1: kappa 0.676 and standard error 0.088 with the figures rounded there."""
    counts = {("psychosis", "psychosis"): 75, ("psychosis", "neurosis"): 1, ("psychosis", "organic"): 4}
    counts |= {("neurosis", "psychosis"): 5, ("neurosis", "neurosis"): 4, ("neurosis", "organic"): 1}
    counts |= {("organic", "organic"): 10}
    ours = cohen_kappa(pair for pair, count in counts.items() for _ in range(count))
    assert ours.n == 100
    assert ours.agreement == 0.89
    assert (round(ours.kappa, 3), round(ours.se, 3)) == (0.676, 0.088)


def test_nothing_labelled_twice_is_no_agreement():
    ours = cohen_kappa([])
    assert (ours.n, ours.agreement, ours.kappa) == (0, None, None)
    assert ours.reason
