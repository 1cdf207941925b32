"""A sum of floats has the same bits under every Python."""

from quantverdict.stats import plain_sum


def test_floats_are_added_one_after_another():
    """Python 3.12 and newer add ten tenths up to 1.0."""
    assert plain_sum([0.1] * 10) == 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1 == 0.9999999999999999
    assert plain_sum(x for x in (2, 3)) == 5
    assert plain_sum([]) == 0
