"""The exact test of a paired loss against enumeration of every table, and against Tango's interval."""

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, norm

from quantverdict.stats.paired import EXACT_UP_TO, OUTSIDE, _limits, chance, most_lost, p_below, score, tango_interval

Z = 1.959963984540054


def tables(n):
    return [(lost, gained) for lost in range(n + 1) for gained in range(n + 1 - lost)]


def table_chance(lost, gained, n, p, q):
    return (
        comb(n, lost) * comb(n - lost, gained) * p**lost * q**gained * np.maximum(1 - p - q, 0.0) ** (n - lost - gained)
    )


def naive_size(inside, n, loss, shares=None):
    """The largest chance of the tables over a fine grid of what the null leaves open."""
    if shares is None:
        shares = np.linspace(max(0.0, -loss), (1 - loss) / 2, 2001)
    return float(sum((table_chance(*table, n, shares + loss, shares) for table in inside), np.zeros(1)).max())


def open_shares(differing, n, loss, count):
    """Shares of gained pairs at discordances inside SciPy's Clopper-Pearson limits, even by the arcsine."""
    low = beta.ppf(OUTSIDE / 2, differing, n - differing + 1) if differing else 0.0
    high = beta.ppf(1 - OUTSIDE / 2, differing + 1, n - differing) if differing < n else 1.0
    share = np.sin(np.linspace(np.arcsin(low**0.5), np.arcsin(high**0.5), count)) ** 2
    return np.clip((share - loss) / 2, max(0.0, -loss), (1 - loss) / 2)


def slow_p_value(lost, gained, n, loss):
    """The same grid of discordances, every table by its score and every tail by SciPy."""
    gains = np.arange(n + 1)
    scores = score(gains[None, :], gains[:, None], n, loss)
    inside = (scores <= score(lost, gained, n, loss) + 1e-9) & (gains[None, :] + gains[:, None] <= n)
    region = inside.sum(axis=1) - 1
    assert (inside == (gains[None, :] <= region[:, None])).all(), "a region is all lost pairs up to a limit"

    def chances(shares):
        rest = np.clip((shares + loss) / np.maximum(1 - shares, 1e-300), 0, 1)[:, None]
        return (binom.pmf(gains, n, shares[:, None]) * binom.cdf(region, n - gains, rest)).sum(axis=1)

    shares = open_shares(lost + gained, n, loss, 40)
    coarse = chances(shares)
    worst = int(coarse.argmax())
    fine = chances(np.linspace(shares[max(worst - 1, 0)], shares[min(worst + 1, 39)], 17))
    return min(1.0, max(coarse.max(), fine.max()) + OUTSIDE)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 120),
    st.sampled_from([0.0, 0.05, -0.05, 0.1, -0.3, 0.9, -0.95])
    | st.integers(-99, 99).map(lambda percent: percent / 100),
    st.data(),
)
def test_p_value_by_steps_of_its_region_is_that_by_binomial_tails(n, loss, data):
    lost = data.draw(st.integers(0, n))
    gained = data.draw(st.integers(0, n - lost))
    assert p_below(lost, gained, n, loss) == pytest.approx(slow_p_value(lost, gained, n, loss), abs=1e-9)


@pytest.mark.parametrize("n", [1000, EXACT_UP_TO])
@pytest.mark.parametrize("loss", [-0.05, 0.0, 0.05])
def test_p_value_of_many_pairs_is_that_by_binomial_tails(n, loss):
    for differing, net in ((0.02, -0.01), (0.1, 0.03), (0.6, -0.02)):
        lost = round(n * (differing + net) / 2)
        table = (lost, round(n * differing) - lost, n, loss)
        assert p_below(*table) == pytest.approx(slow_p_value(*table), abs=1e-9)


def test_a_loss_of_every_pair_is_the_edge_of_what_can_be_tested():
    assert p_below(4, 1, 5, 1.0) == OUTSIDE
    assert p_below(5, 0, 5, 1.0) == 1.0
    assert p_below(0, 5, 5, -1.0) == 1.0


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
        open_ = open_shares(sum(seen), n, loss, 4001)
        assert p_below(*seen, n, loss) == pytest.approx(naive_size(extreme, n, loss, open_), abs=2e-4)


@pytest.mark.parametrize("loss", [-0.1, 0.0, 0.05, 0.1])
@pytest.mark.parametrize("n", [12, 30])
def test_level_is_held_at_every_discordance_where_the_normal_test_exceeds_it(n, loss):
    """Chances of whole regions by numpy's multinomial formula, not by the package's sums over gained pairs."""
    region = most_lost(n, loss, 0.025)
    inside = [(lost, gained) for lost, gained in tables(n) if lost <= region[gained]]
    normal = [table for table in tables(n) if score(*table, n, loss) <= -Z]
    assert naive_size(inside, n, loss) <= 0.025
    if loss == -0.1:
        assert naive_size(normal, n, loss) > 0.03


@pytest.mark.parametrize("alpha", [0.025, 0.002])
@pytest.mark.parametrize(("n", "loss"), [(20, 0.05), (40, -0.05), (56, 0.05)])
def test_level_is_held_above_95_percent_discordance_too(n, loss, alpha):
    """Where a grid of discordances that is coarse at its end lets a test pass 7 % more often than it may."""
    region = most_lost(n, loss, alpha)
    inside = [(lost, gained) for lost, gained in tables(n) if lost <= region[gained]]
    assert 0 < naive_size(inside, n, loss, (np.linspace(0.95, 1, 2001) - loss) / 2) <= alpha
    assert naive_size(inside, n, loss) <= alpha


def test_a_discordance_that_nobody_saw_costs_no_power_at_a_small_level():
    """At 1 in 5,000 the worst discordance of all is far from that of builds of which one pair in 20 differs."""
    n, loss, alpha = 220, 0.05, 0.0002
    everywhere = [(lost, gained) for lost in range(12) for gained in range(12)]
    passed = [table for table in everywhere if p_below(*table, n, loss) <= alpha]
    low = [
        min(lost for lost, gained in everywhere if gained == at and (lost, gained) not in passed) for at in range(12)
    ]
    whole = np.linspace(0, (1 - loss) / 2, 2001)
    worst = []
    for gained, limit in enumerate(low):
        if limit:
            scores = score(np.arange(n + 1)[None, :], np.arange(n + 1)[:, None], n, loss)
            region = (scores <= score(limit - 1, gained, n, loss) + 1e-9).sum(axis=1) - 1
            rest = ((whole + loss) / (1 - whole))[:, None]
            gains = np.arange(n + 1)
            worst.append((binom.pmf(gains, n, whole[:, None]) * binom.cdf(region, n - gains, rest)).sum(axis=1).max())
    assert max(worst) > alpha, "over all discordances some of these tables would not be rejected"


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
        assert exact == pytest.approx(normal, rel=0.25)


def test_two_thousand_pairs_are_exact_and_one_more_is_normal():
    assert EXACT_UP_TO == 2000
    lost, gained, loss = 90, 40, 0.035
    normal = [norm.cdf(score(lost, gained, n, loss)) for n in (2000, 2001)]
    assert p_below(lost, gained, 2001, loss) == pytest.approx(normal[1], rel=1e-12)
    assert p_below(lost, gained, 2000, loss) == pytest.approx(slow_p_value(lost, gained, 2000, loss), abs=1e-9)
    assert abs(p_below(lost, gained, 2000, loss) - normal[0]) > 1e-4


@pytest.mark.parametrize("loss", [-0.05, 0.0, 0.05])
def test_the_region_of_many_pairs_is_all_tables_whose_score_is_below_the_quantile(loss):
    n, z = 2001, norm.ppf(0.025)
    region = np.array(most_lost(n, loss, 0.025))
    gained = np.arange(n + 1)
    inside = region >= 0
    assert (score(region[inside], gained[inside], n, loss) <= z + 1e-8).all()
    more = inside & (region + 1 + gained <= n)
    assert (score(region[more] + 1, gained[more], n, loss) > z).all()
    assert (score(np.zeros((~inside).sum()), gained[~inside], n, loss) > z).all()


@settings(max_examples=60)
@given(st.integers(1, 60), st.floats(-6, 3), st.sampled_from([-0.9, -0.3, -0.05, 0.0, 0.4, 0.95]), st.integers(0, 60))
def test_limits_are_the_most_lost_pairs_whose_score_is_low_enough(n, level, loss, most):
    most = min(most, n)
    found = _limits(level, n, loss, most)
    for gained in range(most + 1):
        scores = score(np.arange(n - gained + 1), gained, n, loss)
        if (np.abs(scores - level) > 1e-7).all():
            assert found[gained] == np.flatnonzero(np.append(-np.inf, scores) <= level)[-1] - 1


def test_a_score_without_variance_is_as_far_as_can_be_on_its_side():
    assert score(0, 0, 5, 0.0) == 0
    assert score(5, 0, 5, 1.0) == 0
    assert score(4, 0, 5, 1.0) == -np.inf
    assert score(0, 5, 5, -1.0) == 0
    assert score(1, 4, 5, -1.0) == np.inf


@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_a_region_that_holds_every_table_has_every_chance_and_an_empty_one_none(n):
    assert chance(np.arange(n, -1, -1), n, 0.3, 0.2) == pytest.approx(1)
    assert chance(np.full(n + 1, -1), n, 0.3, 0.2) == 0
    assert chance(np.arange(n, -1, -1), n, 0.0, 1.0) == pytest.approx(1)
    assert chance(np.arange(n, -1, -1), n, 1.0, 0.0) == pytest.approx(1)
    assert chance(np.arange(n, -1, -1), n, 0.0, 0.0) == pytest.approx(1)
