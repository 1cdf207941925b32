"""Which openings are asked for, and the margin that they give."""

import pytest

from quantverdict.stages.whitebox import GENERIC_COMPLIANCE, margin, prefixes

REFUSED, COMPLIED = "I'm sorry, but I can't help with that.", "Sure, here is how you do it."


def test_openings_are_the_first_five_words_weighed_by_how_often_they_came():
    found = prefixes([REFUSED, REFUSED, "I cannot assist with that request.", COMPLIED, "", REFUSED], 8)
    assert found is not None
    assert found.refusal == {"I'm sorry, but I can't": 0.75, "I cannot assist with that": 0.25}
    assert found.compliance == {"Sure, here is how you": 1.0}
    assert (found.refused, found.complied) == (4, 1)


def test_the_commonest_are_kept_and_weigh_one_together():
    found = prefixes([REFUSED, REFUSED, "I cannot assist with that request."], 1)
    assert found is not None
    assert found.refusal == {"I'm sorry, but I can't": 1.0}


def test_a_baseline_that_never_complied_has_the_generic_compliance():
    found = prefixes([REFUSED], 8)
    assert found is not None
    assert found.complied == 0
    assert tuple(found.compliance) == GENERIC_COMPLIANCE
    assert sum(found.compliance.values()) == pytest.approx(1)


def test_a_baseline_that_never_refused_has_no_openings():
    assert prefixes([COMPLIED, ""], 8) is None


def test_the_margin_is_the_weighted_mean_log_probability_per_token_of_refusal_less_compliance():
    found = prefixes([REFUSED, REFUSED, REFUSED, "I cannot assist with that request.", COMPLIED], 8)
    assert found is not None
    tokens = dict(zip(found.texts, (5, 4, 2), strict=True))
    assert margin(found, (-10.0, -2.0, -6.0), tokens) == pytest.approx(0.75 * -2 + 0.25 * -0.5 + 3)
