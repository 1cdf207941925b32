"""The confidence sequence against a slow reading of its definition, and its coverage at all times by simulation."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantverdict.stats.sequential import _PURSE, _STAKES, ConfidenceSequence

VALUES = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.0, 0.0, 0.25, 1.0]), min_size=1, max_size=30)


def capital(values, mean, side, population=None, weights=None):
    """What the bettor has after each value, one bet after the other."""
    purses = [math.exp(purse) for purse in _PURSE]
    seen, history = 0.0, []
    for at, value in enumerate(values):
        left = mean if population is None else (population * mean - seen) / (population - at)
        most = 1 / max(1 + side * left, 1e-12)
        weight = 1 if weights is None else weights[at]
        purses = [p * (1 + weight * f * most * side * (value - left)) for p, f in zip(purses, _STAKES, strict=True)]
        seen += value
        history.append(sum(purses))
    return history


@settings(max_examples=60)
@given(VALUES, st.sampled_from([0.0, 0.05, 0.3]), st.booleans())
def test_p_values_are_the_reciprocal_of_the_best_capital(values, margin, finite):
    population = len(values) + 7 if finite else None
    total, left = sum(values), 7
    sequence = ConfidenceSequence(population=population)
    for value in values:
        sequence.add([value])
    expected = [1 / max(1.0, *capital(values, margin, side, population)) for side in (-1, 1)]
    if finite and margin > (total + left) / population:
        expected[0] = 0.0
    if finite and margin < (total - left) / population:
        expected[1] = 0.0
    assert sequence.p_values(margin) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@settings(max_examples=40)
@given(VALUES)
def test_weighted_values_bet_in_proportion(values):
    weights = [0.25 if at % 2 else 1.0 for at in range(len(values))]
    sequence = ConfidenceSequence()
    sequence.add(values, weights)
    last = [capital(values, 0.05, side, None, weights)[-1] for side in (-1, 1)]
    assert sequence.p_values(0.05) == pytest.approx([1 / max(1.0, each) for each in last], rel=1e-6)


@settings(max_examples=40)
@given(VALUES, st.booleans())
def test_limits_are_where_capital_reaches_two_over_alpha_on_a_grid(values, finite):
    population = 3 * len(values) if finite else None
    sequence = ConfidenceSequence(0.2, population)
    found = sequence.update(values)
    least, most = (-1.0, 1.0)
    if finite:
        spare = population - len(values)
        least, most = (sum(values) - spare) / population, (sum(values) + spare) / population
    grid = np.linspace(least, most, 401)[1:-1]
    kept = [m for m in grid if all(capital(values, m, side, population)[-1] < 10 for side in (1, -1))]
    step = (most - least) / 400
    assert found.lo == pytest.approx(min(kept), abs=1.01 * step)
    assert found.hi == pytest.approx(max(kept), abs=1.01 * step)


def test_interval_only_narrows_and_is_the_mean_once_all_were_asked():
    rng = np.random.default_rng(0)
    values = rng.choice([-1.0, 0.0, 1.0], p=[0.05, 0.75, 0.2], size=120)
    sequence, before = ConfidenceSequence(population=120), (-1.0, 1.0)
    for at in range(0, 120, 10):
        found = sequence.update(values[at : at + 10])
        assert before[0] <= found.lo <= found.hi <= before[1]
        before = (found.lo, found.hi)
    assert before == pytest.approx((values.mean(), values.mean()), abs=1e-9)
    assert len(sequence) == 120


def ever_excluded(draw, truth, runs, population=None, alpha=0.1):
    """Share of runs in which the truth was outside at some time: it is at most alpha."""
    excluded = 0
    for run in range(runs):
        sequence = ConfidenceSequence(alpha, population)
        for values in np.array_split(draw(np.random.default_rng(run)), 40):
            sequence.add(values)
        excluded += min(sequence.p_values(truth)) < alpha / 2
    return excluded / runs


@pytest.mark.parametrize(
    ("values", "chances"),
    [((-1, 0, 1), (0.01, 0.92, 0.07)), ((-1, 0, 1), (0.3, 0.3, 0.4)), ((-0.2, 0.0, 0.9), (0.4, 0.4, 0.2))],
)
def test_truth_is_excluded_at_any_time_at_most_as_often_as_alpha(values, chances):
    truth = float(np.dot(values, chances))
    share = ever_excluded(lambda rng: rng.choice(values, p=chances, size=200).astype(float), truth, 600)
    assert share <= 0.1 + 0.025


def test_mean_of_a_finite_set_is_excluded_at_most_as_often_as_alpha():
    rare = np.array([1.0] * 12 + [-1.0] * 4 + [0.0] * 184)
    share = ever_excluded(lambda rng: rng.permutation(rare), rare.mean(), 600, population=200)
    assert share <= 0.1 + 0.025


def test_a_mixture_of_two_kinds_in_every_update_holds_too():
    """Half of each update loses nothing, the other half twice the margin: the mean is the margin."""

    def draw(rng):
        return np.column_stack([np.zeros(100), rng.random(100) < 0.1]).ravel().astype(float)

    assert ever_excluded(draw, 0.05, 600) <= 0.1 + 0.025


def test_a_loss_of_30_points_is_seen_within_some_fifty_prompts():
    rng = np.random.default_rng(5)
    taken = []
    for _ in range(100):
        sequence, values = ConfidenceSequence(), rng.choice([-1.0, 0.0, 1.0], p=[0.01, 0.68, 0.31], size=200)
        for at in range(0, 200, 10):
            sequence.add(values[at : at + 10])
            if sequence.p_values(0.05)[1] <= 0.025:
                break
        taken.append(at + 10)
    assert np.mean(taken) < 55


def test_nothing_asked_says_nothing():
    sequence = ConfidenceSequence()
    assert sequence.p_values(0.05) == (1.0, 1.0)
    found = sequence.update([])
    assert (found.lo, found.hi) == (-1, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ConfidenceSequence(0.0),
        lambda: ConfidenceSequence(population=0),
        lambda: ConfidenceSequence().add([1.5]),
        lambda: ConfidenceSequence().add([float("nan")]),
        lambda: ConfidenceSequence().add([0.0], [1.5]),
        lambda: ConfidenceSequence().add([0.0, 0.0], [1.0]),
        lambda: ConfidenceSequence(population=2).add([0.0] * 3),
        lambda: ConfidenceSequence(population=2).add([0.0], [1.0]),
    ],
)
def test_what_cannot_be_bet_on_is_refused(call):
    with pytest.raises(ValueError):
        call()


@pytest.mark.parametrize(("alpha", "population"), [(0.001, 1), (0.999, None)])
def test_levels_and_sizes_up_to_their_ends_are_taken(alpha, population):
    assert len(ConfidenceSequence(alpha, population)) == 0


@pytest.mark.parametrize(("alpha", "population"), [(0.0, None), (1.0, None), (-0.1, None), (0.05, 0), (0.05, -1)])
def test_levels_and_sizes_beyond_them_are_not(alpha, population):
    with pytest.raises(ValueError, match="level"):
        ConfidenceSequence(alpha, population)


def test_values_weights_and_populations_are_taken_up_to_their_ends():
    sequence = ConfidenceSequence()
    sequence.add([1.0, -1.0], [1.0, 1e-9])
    with pytest.raises(ValueError, match="weights above 0"):
        sequence.add([0.5], [0.0])
    with pytest.raises(ValueError, match="losses from -1 to 1"):
        sequence.add([-1.0000001])
    assert len(sequence) == 2, "what is refused is not taken"
    whole = ConfidenceSequence(population=3)
    whole.add([0.0, 1.0])
    whole.add([1.0])
    with pytest.raises(ValueError, match="at most the 3 values"):
        whole.add([1.0])
    assert len(whole) == 3


def test_no_value_of_what_the_mean_can_still_be_is_excluded_for_certain_and_any_other_is():
    """Of 4 values 1, 1 and 0 are known: the mean is from 1/4 to 3/4."""
    sequence = ConfidenceSequence(population=4)
    sequence.add([1.0, 1.0, 0.0])
    for margin, (below, above) in (
        (0.25, (False, False)),
        (0.75, (False, False)),
        (0.2499, (False, True)),
        (0.7501, (True, False)),
    ):
        found = sequence.p_values(margin)
        assert ((found[0] == 0), (found[1] == 0)) == (below, above), margin
        assert all(0 <= p <= 1 for p in found)


def test_an_empty_look_between_two_changes_nothing():
    one, two = ConfidenceSequence(), ConfidenceSequence()
    for sequence in (one, two):
        if sequence is two:
            sequence.update([])
        sequence.add([1.0] * 5)
        if sequence is two:
            sequence.add([])
        sequence.add([1.0] * 5)
    assert one.p_values(0.1) == two.p_values(0.1)
    assert one.update([]) == two.update([])


def test_limits_are_exact_to_a_millionth_and_stand_where_capital_reaches_its_bound():
    sequence = ConfidenceSequence(0.1)
    found = sequence.update([1.0, 0.0, 0.0, 1.0, 0.5, 1.0] * 20)
    history = [1.0, 0.0, 0.0, 1.0, 0.5, 1.0] * 20
    for limit, side in ((found.lo, 1), (found.hi, -1)):
        # The bound is 2 / alpha; every value comes in one look, so that only the last capital counts.
        assert capital(history, limit, side)[-1] >= 20 * (1 - 1e-9)
        assert capital(history, limit + side * 1.1e-6, side)[-1] < 20


def test_stakes_and_purses_are_shares_that_are_spent_whole():
    """Each bet stakes less than everything, in growing steps, and all purses together are one."""
    assert sum(np.exp(_PURSE)) == pytest.approx(1)
    assert (np.diff(_PURSE) > 0).all()
    assert np.allclose(np.diff(np.exp(_PURSE)), 0.05)
    assert _STAKES[-1] == 0.95
    assert [1.9 < after / before < 3.4 for before, after in pairwise(_STAKES[:-1])] == [True] * 3
    assert 0.025 < _STAKES[0] < 0.0334
