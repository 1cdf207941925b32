"""The noise floor against enumeration, binomial tests and Clopper-Pearson limits of others."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest
from statsmodels.stats.proportion import proportion_confint

from quantverdict.stats.paired import excess_flips, noise_floor


def test_limit_of_the_floor_is_clopper_pearson():
    nulls = np.zeros((1, 50), dtype=bool)
    nulls[0, :3] = True
    found = noise_floor(nulls)
    assert (found.n, found.arms, found.flips, found.rate) == (50, 1, 3, 0.06)
    assert found.hi == pytest.approx(proportion_confint(3, 50, alpha=0.1, method="beta")[1])


def test_no_flip_is_no_proof_of_none_and_a_second_arm_is_no_second_set_of_prompts():
    assert noise_floor(np.zeros((1, 50))).hi == pytest.approx(1 - 0.05 ** (1 / 50))
    assert noise_floor(np.zeros((3, 50))).hi == noise_floor(np.zeros((1, 50))).hi
    assert noise_floor(np.ones((2, 4))).hi == 1


@settings(max_examples=40)
@given(arrays(bool, (3, 5)), st.booleans())
def test_excess_is_the_share_of_all_exchanges_of_arms(flips, clustered):
    """Every way in which each unit could have picked another arm as the variant, counted."""
    labels = ["a", "a", "b", None, None] if clustered else None
    units = [[0, 1], [2], [3], [4]] if clustered else [[0], [1], [2], [3], [4]]
    ways = list(product(range(3), repeat=len(units)))
    totals = [sum(int(flips[arm, unit].sum()) for arm, unit in zip(way, units, strict=True)) for way in ways]
    found = excess_flips(flips[0], flips[1:], labels)
    assert found.flips == flips[0].sum()
    assert found.expected == pytest.approx(np.mean(totals))
    assert found.p == pytest.approx(np.mean(np.array(totals) >= found.flips))


def test_excess_is_binomial_where_no_prompt_flips_twice():
    flips = np.zeros((3, 100), dtype=bool)
    flips[0, :9], flips[1, 20:23], flips[2, 40:42] = True, True, True
    assert excess_flips(flips[0], flips[1:]).p == pytest.approx(binomtest(9, 14, 1 / 3, alternative="greater").pvalue)


def test_nothing_flipped_is_no_excess():
    assert excess_flips(np.zeros(10), np.zeros((2, 10))).p == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: noise_floor(np.zeros((0, 5))),
        lambda: noise_floor(np.zeros(5)),
        lambda: excess_flips(np.zeros(4), np.zeros((2, 5))),
        lambda: excess_flips(np.zeros(5), np.zeros((2, 5)), ["a"]),
    ],
)
def test_an_unknown_floor_is_refused(call):
    with pytest.raises(ValueError):
        call()


def test_a_label_of_none_is_no_cluster_and_a_cluster_is_exchanged_whole():
    flips = np.array([[1, 1, 1, 0], [0, 0, 0, 0]], dtype=bool)
    alone = excess_flips(flips[0], flips[1:], [None] * 4)
    assert alone == excess_flips(flips[0], flips[1:])
    assert alone.p == pytest.approx(1 / 8)
    assert excess_flips(flips[0], flips[1:], ["a", "a", "a", "b"]).p == pytest.approx(1 / 2)
    assert excess_flips(flips[0], flips[1:], ["a", "a", None, None]).p == pytest.approx(1 / 4)


@pytest.mark.parametrize(("flips", "one"), [(3, 1), (4, 2), (6, 2), (7, 3)])
def test_the_flips_of_one_arm_are_the_mean_rounded_up(flips, one):
    nulls = np.zeros((3, 20), dtype=bool)
    nulls.flat[:flips] = True
    found = noise_floor(nulls)
    assert (found.n, found.arms, found.flips, found.rate) == (20, 3, flips, flips / 60)
    assert found.hi == pytest.approx(proportion_confint(one, 20, alpha=0.1, method="beta")[1])
