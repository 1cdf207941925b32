"""What A/A replicates changed, task by task, and what a build changed and raised beyond them, counted by hand."""

from __future__ import annotations

import pytest
from scipy.stats import beta, binom

from quantverdict.matrix.grid import grids, scores_frame
from quantverdict.matrix.noise import COLUMNS, flips_over_floor, gains_over_floor, noise_floors, noise_table
from quantverdict.records import CellId, Score

BASE, BUILD, ONE, TWO, OTHER = (CellId("m", quant) for quant in ("FP16", "Q2_K", "null 1", "null 2", "Q8_0"))
NULLS = {ONE: BASE, TWO: BASE}


def samples(arms, n=40, metric="refusal_rate", cluster=lambda at: None):
    """Every arm answers 1 to the first half and 0 to the second, but for the prompts that it says; None is no grade."""
    scores = [
        Score(*cell, "t" if at % 4 else "u", f"s{at:03d}", metric, None if at in absent else value, cluster(at))
        for cell, (flipped, absent) in arms.items()
        for at in range(n)
        for value in [float((at < n / 2) != (at in flipped))]
    ]
    return grids(scores_frame(scores))


def plain(**flipped):
    cells = {"base": BASE, "build": BUILD, "one": ONE, "two": TWO}
    return {cells[name]: (set(prompts), set()) for name, prompts in flipped.items()}


def test_the_floor_is_of_all_tasks_and_of_each_over_the_prompts_that_every_arm_has():
    """Prompts 0, 4, ... are of task u. The arms change 1, 2 and 4; and 4: prompt 39 lacks a grade in one of them."""
    arms = {**plain(base=[], build=[5]), ONE: ({1, 2, 4, 39}, set()), TWO: ({4}, {39})}
    found = noise_floors(samples(arms), NULLS, 0.9)
    assert [(one.base_model, one.task, one.metric) for one in found] == [
        ("m", task, "refusal_rate") for task in ("all", "t", "u")
    ]
    counts = [(one.floor.n, one.floor.arms, one.floor.flips) for one in found]
    assert counts == [(39, 2, 4), (29, 2, 2), (10, 2, 2)]
    for one, a_flip in zip(found, (2, 1, 1), strict=True):
        n, arms_, flips = one.floor.n, one.floor.arms, one.floor.flips
        assert one.floor.rate == flips / (arms_ * n)
        assert one.floor.hi == pytest.approx(beta.ppf(0.9, a_flip + 1, n - a_flip))
    table = noise_table(found)
    assert table.columns == COLUMNS
    assert table.rows[0] == ("m", "all", "refusal_rate", 2, 39, 4, 4 / 78, found[0].floor.hi)


def test_without_a_null_arm_or_its_baseline_there_is_no_floor():
    given = samples(plain(base=[], build=[5], one=[1]))
    assert noise_floors(given, {}) == ()
    assert noise_floors(given, {TWO: BASE}) == ()
    assert noise_floors(given, {ONE: OTHER}) == ()
    assert len(noise_floors(given, {ONE: BASE, TWO: BASE})) == 3
    nothing = {BASE: (set(), set()), ONE: (set(), set(range(40)))}
    assert noise_floors(samples(nothing), {ONE: BASE}) == ()


def test_what_a_build_changes_beyond_null_arms_is_an_even_draw_among_all_arms():
    """Build 8 prompts, the one arm 2 others: 10 flips, each the build's with chance 1/2."""
    given = samples(plain(base=[], build=range(8), one=[20, 21]))["refusal_rate"]
    found = flips_over_floor(given, BUILD, BASE, {ONE: BASE})
    assert (found.rate, found.floor.flips, found.floor.n, found.floor.arms) == (8 / 40, 2, 40, 1)
    assert found.p_excess == pytest.approx(binom.sf(7, 10, 1 / 2))
    two = samples(plain(base=[], build=range(8), one=[20, 21], two=[22]))["refusal_rate"]
    assert flips_over_floor(two, BUILD, BASE, NULLS).p_excess == pytest.approx(binom.sf(7, 11, 1 / 3))
    same = flips_over_floor(given, BASE, BASE, {ONE: BASE})
    assert (same.rate, same.p_excess) == (0, 1)


def test_only_rises_count_as_gains():
    """The build raises 6 prompts of the second half and loses 3 of the first; the arm raises 1 and loses 5."""
    given = samples(plain(base=[], build=[0, 1, 2, *range(30, 36)], one=[10, 11, 12, 13, 14, 25]))["refusal_rate"]
    assert gains_over_floor(given, BUILD, BASE, {ONE: BASE}) == pytest.approx(binom.sf(5, 7, 1 / 2))
    both = flips_over_floor(given, BUILD, BASE, {ONE: BASE})
    assert both.p_excess == pytest.approx(binom.sf(8, 15, 1 / 2))


def test_a_cluster_is_drawn_whole():
    """8 flips of the build in two clusters of four, 2 of the arm in a third: three draws."""
    four = lambda at: f"c{at // 8}/{at % 4 == 0}"  # noqa: E731
    alone = samples(plain(base=[], build=[1, 2, 3, 5, 9, 10, 11, 13], one=[33, 34]))["refusal_rate"]
    whole = samples(plain(base=[], build=[1, 2, 3, 5, 9, 10, 11, 13], one=[33, 34]), cluster=four)["refusal_rate"]
    assert flips_over_floor(alone, BUILD, BASE, {ONE: BASE}).p_excess == pytest.approx(binom.sf(7, 10, 1 / 2))
    assert flips_over_floor(whole, BUILD, BASE, {ONE: BASE}).p_excess == pytest.approx(1 / 4)
    assert gains_over_floor(whole, BUILD, BASE, {ONE: BASE}) == 1


@pytest.mark.parametrize("measure", [flips_over_floor, gains_over_floor])
def test_where_a_build_and_null_arms_share_no_prompt_nothing_is_known(measure):
    given = samples(plain(base=[], build=[1], one=[2]))["refusal_rate"]
    assert measure(given, BUILD, BASE, {}) is None
    assert measure(given, BUILD, BASE, {TWO: BASE}) is None
    assert measure(given, OTHER, BASE, {ONE: BASE}) is None
    assert measure(given, BUILD, BASE, {ONE: BASE}) is not None
    first, second = set(range(20)), set(range(20, 40))
    apart = samples({BASE: (set(), set()), BUILD: ({1}, second), ONE: (set(), first)})["refusal_rate"]
    assert measure(apart, BUILD, BASE, {ONE: BASE}) is None
    shared = samples({BASE: (set(), set()), BUILD: ({1}, second - {30}), ONE: (set(), first)})["refusal_rate"]
    assert measure(shared, BUILD, BASE, {ONE: BASE}) is not None
