"""The exact test of a paired loss against enumeration of every table, and against Tango's interval."""

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantverdict.stats.exact_paired import EXACT_UP_TO, chance, most_lost, p_below, score
from quantverdict.stats.paired import tango_interval

Z = 1.959963984540054


def tables(n):
    return [(lost, gained) for lost in range(n + 1) for gained in range(n + 1 - lost)]


def table_chance(lost, gained, n, p, q):
    return (
        comb(n, lost) * comb(n - lost, gained) * p**lost * q**gained * np.maximum(1 - p - q, 0.0) ** (n - lost - gained)
    )


def naive_size(inside, n, loss):
    """The largest chance of the tables over a fine grid of what the null leaves open."""
    shares = np.linspace(max(0.0, -loss), (1 - loss) / 2, 2001)
    return float(sum((table_chance(*table, n, shares + loss, shares) for table in inside), np.zeros(1)).max())


@settings(max_examples=60)
@given(st.integers(1, 400), st.data())
def test_score_is_196_at_the_limits_of_tango(n, data):
    lost = data.draw(st.integers(0, n))
    gained = data.draw(st.integers(0, n - lost))
    limits = tango_interval(gained, lost, n)
    if limits.hi < 1:
        assert score(lost, gained, n, -limits.hi) == pytest.approx(Z, abs=1e-5)
    if limits.lo > -1:
        assert score(lost, gained, n, -limits.lo) == pytest.approx(-Z, abs=1e-5)


@pytest.mark.parametrize("loss", [-0.2, -0.05, 0.0, 0.05, 0.3])
@pytest.mark.parametrize("n", [1, 4, 9])
def test_p_value_is_the_largest_chance_of_tables_as_extreme(n, loss):
    scores = {table: float(score(*table, n, loss)) for table in tables(n)}
    for seen in tables(n)[:: 1 + n // 4]:
        extreme = [table for table in tables(n) if scores[table] <= scores[seen] + 1e-9]
        assert p_below(*seen, n, loss) == pytest.approx(naive_size(extreme, n, loss), abs=2e-4)


@pytest.mark.parametrize("loss", [-0.1, 0.0, 0.05, 0.1])
@pytest.mark.parametrize("n", [12, 30])
def test_level_is_held_at_every_discordance_where_the_normal_test_exceeds_it(n, loss):
    """Chances of whole regions by numpy's multinomial formula, not by the package's sums over gained pairs."""
    region = most_lost(n, loss, 0.025)
    inside = [(lost, gained) for lost, gained in tables(n) if lost <= region[gained]]
    normal = [table for table in tables(n) if score(*table, n, loss) <= -Z]
    assert naive_size(inside, n, loss) <= 0.0251
    if loss == -0.1:
        assert naive_size(normal, n, loss) > 0.03


@pytest.mark.parametrize(("n", "loss"), [(12, 0.1), (25, -0.05), (40, 0.05)])
def test_region_holds_the_tables_whose_p_value_is_at_most_alpha(n, loss):
    region = most_lost(n, loss, 0.025)
    for lost, gained in tables(n):
        p = p_below(lost, gained, n, loss)
        if abs(p - 0.025) > 1e-4:
            assert (lost <= region[gained]) == (p <= 0.025)


def test_chance_of_a_region_is_the_sum_of_its_tables():
    region = most_lost(20, 0.2, 0.1)
    whole = sum(table_chance(b, c, 20, 0.1, 0.05) for b, c in tables(20) if b <= region[c])
    assert chance(region, 20, 0.1, 0.05) == pytest.approx(whole, rel=1e-9)


def test_beyond_the_exact_range_the_score_is_taken_as_normal_and_hardly_differs():
    n = EXACT_UP_TO
    for lost, gained in ((90, 40), (60, 20)):
        exact, normal = p_below(lost, gained, n, 0.035), p_below(lost, gained, n + 1, 0.035)
        assert exact == pytest.approx(normal, rel=0.15)
