"""Cohen's kappa against statsmodels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.inter_rater import cohens_kappa

from quantverdict.stats.correlation import cohen_kappa
from quantverdict.stats.intervals import wilson

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


@given(
    st.dictionaries(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), st.integers(1, 99), min_size=1),
    st.randoms(use_true_random=False),
)
def test_the_order_of_the_pairs_changes_no_bit(counts, chance):
    shuffled = list(counts.items())
    chance.shuffle(shuffled)
    assert cohen_kappa(dict(shuffled)) == cohen_kappa(counts)


def test_counts_and_pairs_are_one_and_an_interval_ends_at_one():
    counts = {("a", "a"): 30, ("b", "b"): 29, ("a", "b"): 1}
    found = cohen_kappa(counts, 0.9)
    assert found == cohen_kappa([pair for pair, count in counts.items() for _ in range(count)], 0.9)
    assert found.kappa_interval.hi == 1
    assert found.kappa_interval.lo == pytest.approx(found.kappa - 1.6448536 * found.se, abs=1e-6)
    assert found.agreement_interval == wilson(59, 60, 0.9)
    worst = cohen_kappa({("a", "b"): 30, ("b", "a"): 30})
    assert (worst.kappa, worst.kappa_interval.lo, worst.agreement) == (-1, -1, 0)
