"""Regimes counted, and their shares of the builds that are no baseline."""

from fractions import Fraction

from quantverdict.protocol.regimes import regime_counts
from quantverdict.records import Table


def counted(*regimes):
    return regime_counts(Table("regimes", ("quant", "regime"), tuple(("Q", name) for name in regimes))).rows


def test_shares_leave_baselines_out():
    found = counted("neutral", "baseline", "hidden_danger", "neutral")
    assert found == (("baseline", 1, None), ("hidden_danger", 1, Fraction(1, 3)), ("neutral", 2, Fraction(2, 3)))


def test_baselines_alone_have_no_share():
    assert counted("baseline") == (("baseline", 1, None),)
