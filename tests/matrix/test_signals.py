"""How differences and thresholds are said, and what a build's signals are made of."""

from fractions import Fraction

import pytest

from quantverdict.matrix.signals import limit, pp, signed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0", "+0.00"), ("3", "+3.00"), ("-10", "-10.00"), ("0.5", "+0.50"), ("-0.894", "-0.89"), ("1.004", "+1.004"),
        ("-9.999", "-9.999"), ("2.0004", "+2.0004"), ("2.00004", "+2.000040"), ("-9.9999999", "-9.999999900"),
        ("2.0000004", "+2.000000400"), ("1.0000000004", "+1.000000000400"), ("0.001", "+0.001"), ("0.0001", "+0.0001"),
        ("0.00001", "+0.000010"), ("1/3", "+0.33"), ("299/100", "+2.99"), ("2996/1000", "+2.996"),
        ("0.0000004", "+0.000000400"), ("4.996", "+4.996"), ("4.99996", "+4.999960"), ("4.9996", "+4.9996"),
    ],
)  # fmt: skip
def test_a_number_that_is_no_whole_one_is_never_shown_as_one(value, text):
    assert signed(Fraction(value)) == text
    assert pp(Fraction(value)) == f"{text} pp"


@pytest.mark.parametrize(("value", "text"), [("-10", "-10 pp"), ("7.5", "7.5 pp"), ("1/3", "0.333333 pp")])
def test_a_threshold_is_shown_as_it_is_written(value, text):
    assert limit(Fraction(value)) == text
