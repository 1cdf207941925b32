"""Alarms: what fires, at and beside its boundary, and what a change of form can explain."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from scipy.stats import binomtest, wilcoxon

from quantverdict.config import StatisticsConfig
from quantverdict.grading.format_features import COLUMNS as FORM
from quantverdict.matrix.format_alerts import COLUMNS, LENGTH, SHARES, alerts, alerts_table, describe, may_explain
from quantverdict.records import CellId
from quantverdict.stats.noninferiority import design_effect
from quantverdict.stats.paired import tango_interval

BASE, BUILD = CellId("m", "FP16"), CellId("m", "Q4_K_M")


def forms(cell, n, *, cluster=lambda _: None, tokens=lambda _: 20, **flags):
    """`n` answers; a flag is the set of those that have it, or None where it is not known."""
    rows = [
        (
            *cell, "t", f"{at:04}", cluster(at),
            *(_flag(flags.get(name, ()), name, at, tokens) for name in FORM[5:]),
        )
        for at in range(n)
    ]  # fmt: skip
    kinds = {name: pl.String if name in FORM[:5] else pl.Boolean for name in FORM}
    return pl.DataFrame(rows, schema={**kinds, LENGTH: pl.Int64}, orient="row")


def _flag(flagged, name, at, tokens):
    if name == LENGTH:
        return tokens(at)
    return None if flagged is None else at in flagged


def found(base, build, alpha=0.05):
    frame = pl.concat([base, build])
    of = alerts(frame, {BUILD: BASE}, alpha, StatisticsConfig(), 42)
    return {one.name: one for one in of}


@pytest.mark.parametrize(("loops", "fires"), [(8, False), (9, True), (10, True)])
def test_a_share_fires_from_what_holm_leaves_of_mcnemar(loops, fires):
    """Eight alarms: the smallest p-value counts eight times. Of 9 loops 8 * 2 / 2^9 = 0.031; 8 are too few."""
    one = found(forms(BASE, 100), forms(BUILD, 100, loop=range(loops)))["loop"]
    assert one.p_value == pytest.approx(binomtest(loops, loops).pvalue)
    assert one.p_holm == pytest.approx(8 * one.p_value)
    assert (one.gained, one.fires) == (loops, fires)


@pytest.mark.parametrize("name", list(SHARES))
def test_a_share_that_falls_is_no_alarm(name):
    many = range(60)
    rises = found(forms(BASE, 100), forms(BUILD, 100, **{name: many}))[name]
    falls = found(forms(BASE, 100, **{name: many}), forms(BUILD, 100))[name]
    assert (rises.fires, falls.fires) == (True, False)
    assert (rises.shift, falls.shift) == (60, -60)
    assert rises.p_holm == falls.p_holm
    assert rises.lo > 0 > falls.hi


def test_without_clusters_the_interval_is_tangos_of_the_counts_themselves():
    """No design effect: each prompt is its own unit."""
    one = found(forms(BASE, 100, loop={1, 2}), forms(BUILD, 100, loop=range(2, 20)))["loop"]
    exact = tango_interval(one.gained, one.lost, one.n, StatisticsConfig().confidence)
    assert (one.gained, one.lost) == (17, 1)
    assert (one.lo, one.hi) == (100 * exact.lo, 100 * exact.hi)


def test_with_clusters_the_interval_is_wider_where_their_answers_change_together():
    of = {}
    for name, cluster in (("alone", lambda _: None), ("clustered", lambda at: f"c{at // 5}")):
        base, build = (forms(cell, 100, cluster=cluster, loop=flag) for cell, flag in ((BASE, ()), (BUILD, range(20))))
        of[name] = found(base, build)["loop"]
    assert of["clustered"].lo < of["alone"].lo
    assert of["clustered"].hi > of["alone"].hi


@pytest.mark.parametrize("change", [-5, 5])
def test_the_length_fires_either_way_by_the_signed_rank_test(change):
    step = lambda at: 20 + change + at % 3  # noqa: E731
    one = found(forms(BASE, 60, tokens=lambda at: 20), forms(BUILD, 60, tokens=step))[LENGTH]
    assert one.fires
    assert one.p_value == pytest.approx(wilcoxon([step(at) - 20 for at in range(60)], method="approx").pvalue)
    assert float(one.shift) == change + 1
    assert one.lo < change + 1 < one.hi


def test_a_bundle_of_0_1_0_whose_answers_lack_the_later_columns_is_still_compared():
    old = [forms(cell, 40).drop("reasoning_cut", "runs_on") for cell in (BASE, BUILD)]
    of = found(*old)
    assert set(SHARES) - set(of) == {"reasoning_cut", "runs_on"}
    assert of[LENGTH].n == 40


def test_equal_answers_fire_nothing_and_leave_no_doubt():
    of = found(forms(BASE, 40, truncated=range(30)), forms(BUILD, 40, truncated=range(30)))
    assert {one.p_holm for one in of.values()} == {1.0}
    assert not any(one.fires for one in of.values())


def test_what_is_not_known_is_not_tested():
    of = found(forms(BASE, 40), forms(BUILD, 40, parse_failure=None))
    assert "parse_failure" not in of
    assert len(of) == 7
    assert found(forms(BASE, 5), forms(BUILD, 0)) == {}


def test_only_prompts_that_both_answered_count():
    of = found(forms(BASE, 100), forms(BUILD, 40, truncated=range(40)))
    assert (of["truncated"].n, of["truncated"].gained) == (40, 40)


def test_a_cluster_counts_once():
    """Eight prompts that are two behaviours in four forms are two signs, and prove nothing."""
    four = lambda at: str(at // 4)  # noqa: E731
    of = found(forms(BASE, 100, cluster=four), forms(BUILD, 100, cluster=four, loop=range(8)))
    assert (of["loop"].gained, of["loop"].clusters) == (8, 25)
    assert of["loop"].p_value == 0.5
    alone = found(forms(BASE, 100), forms(BUILD, 100, loop=range(8)))["loop"]
    assert alone.p_value < 0.01
    assert of["loop"].hi - of["loop"].lo > alone.hi - alone.lo


def test_nothing_fires_more_often_than_alpha_where_nothing_changed():
    """200 builds that differ from their baseline by chance alone: 5 % of them may raise a false alarm."""
    rng = np.random.default_rng(5)
    false = 0
    for _ in range(200):
        arms = [
            forms(cell, 40, tokens=rng.integers(5, 40, 40).__getitem__,
                  **{name: set(np.flatnonzero(rng.random(40) < 0.3)) for name in SHARES})
            for cell in (BASE, BUILD)
        ]  # fmt: skip
        false += any(one.fires for one in found(*arms).values())
    assert false <= 17


def test_the_table_keeps_counts_whole():
    table = alerts_table(found(forms(BASE, 9), forms(BUILD, 9, empty=range(3))).values())
    row = next(dict(zip(COLUMNS, row, strict=True)) for row in table.rows if row[2] == "empty")
    assert (row["k"], row["baseline_k"], row["n"], row["unit"]) == (3, 0, 9, "pp")


def test_an_alarm_in_words():
    of = found(forms(BASE, 9), forms(BUILD, 9, empty=range(3), tokens=lambda at: 22))
    assert describe(of["empty"]) == "empty answers 0 to 3 of 9"
    assert describe(of[LENGTH]) == "mean length 20.0 to 22.0 tokens"


@pytest.mark.parametrize(
    ("name", "tier", "explains"),
    [("parse_failure", "benchmark", True), ("parse_failure", "generation", False), ("truncated", "generation", True),
     ("truncated", "benchmark", True)],
)  # fmt: skip
def test_what_fell_may_explain_a_gain(name, tier, explains):
    falls = found(forms(BASE, 100, **{name: range(60)}), forms(BUILD, 100))[name]
    rises = found(forms(BASE, 100), forms(BUILD, 100, **{name: range(60)}))[name]
    assert may_explain(falls, tier, 0.05) is explains
    assert not may_explain(rises, tier, 0.05)
    assert may_explain(replace(falls, p_holm=0.05), tier, 0.05) is explains
    assert not may_explain(replace(falls, p_holm=0.051), tier, 0.05)


def test_length_and_language_explain_a_gain_of_free_text_alone():
    longer = found(forms(BASE, 60), forms(BUILD, 60, tokens=lambda at: 30))[LENGTH]
    assert may_explain(longer, "generation", 0.05)
    assert not may_explain(longer, "benchmark", 0.05)


def test_a_rise_of_less_than_a_point_may_fire_and_no_rise_does_not():
    """9 loops of 1,000 answers fire; so would the signs of 12 clusters against one, were the shares not equal."""
    assert found(forms(BASE, 1000), forms(BUILD, 1000, loop=range(9)))["loop"].fires
    twelve = lambda at: f"c{at}" if at < 12 else "all"  # noqa: E731
    equal = found(
        forms(BASE, 24, cluster=twelve, loop=range(12, 24)), forms(BUILD, 24, cluster=twelve, loop=range(12)), 0.5
    )["loop"]
    assert (equal.shift, equal.clusters) == (0, 13)
    assert equal.p_value == pytest.approx(binomtest(1, 13).pvalue)
    assert equal.p_holm <= 0.5
    assert not equal.fires
    assert may_explain(equal, "generation", 0.5) is False, "what did not fall explains nothing"


def test_a_change_by_chance_explains_nothing():
    one = found(forms(BASE, 100, loop=range(3)), forms(BUILD, 100))["loop"]
    assert may_explain(one, "generation", 0.05) is False


def test_the_interval_of_the_length_draws_clusters_whole():
    """Each answer four times in a cluster of its own: as wide as without the copies, and not half as wide."""
    length = lambda at: 20 + at % 7  # noqa: E731
    once = found(forms(BASE, 40, tokens=lambda _: 20), forms(BUILD, 40, tokens=length))[LENGTH]
    four = lambda at: f"c{at // 4}"  # noqa: E731
    copies = found(
        forms(BASE, 160, cluster=four, tokens=lambda _: 20),
        forms(BUILD, 160, cluster=four, tokens=lambda at: length(at // 4)),
    )[LENGTH]
    assert (copies.clusters, once.clusters) == (40, None)
    assert copies.hi - copies.lo == pytest.approx(once.hi - once.lo, rel=0.1)


def test_the_interval_of_clusters_has_the_design_effect_of_its_level():
    five = lambda at: f"c{at // 5}"  # noqa: E731
    one = found(forms(BASE, 100, cluster=five, loop=range(90, 93)), forms(BUILD, 100, cluster=five, loop=range(20)))[
        "loop"
    ]
    change = np.array([1] * 20 + [0] * 70 + [-1] * 3 + [0] * 7, dtype=float)
    effect = design_effect(change.reshape(20, 5).sum(axis=1), np.full(20, 5.0), 23, 0.025)
    exact = tango_interval(20 / effect, 3 / effect, 100 / effect, 0.95)
    assert (one.gained, one.lost, one.clusters) == (20, 3, 20)
    assert (one.lo, one.hi) == (pytest.approx(100 * exact.lo), pytest.approx(100 * exact.hi))


def test_the_table_of_a_length_has_tokens_and_no_counts():
    table = alerts_table(found(forms(BASE, 9), forms(BUILD, 9, tokens=lambda at: 22)).values())
    rows = {row[2]: dict(zip(COLUMNS, row, strict=True)) for row in table.rows}
    assert [rows[LENGTH][name] for name in ("k", "baseline_k", "unit", "shift", "value")] == [
        None,
        None,
        "tokens",
        2,
        22,
    ]
    assert {row["unit"] for name, row in rows.items() if name != LENGTH} == {"pp"}
