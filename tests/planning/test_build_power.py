"""The chances of each outcome that a plan prints."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import numpy as np
import pytest

from quantverdict.planning.power import DecisionRules, PilotStats, build_power
from quantverdict.stats.noninferiority import holm, rate_tests
from quantverdict.stats.power import n_resolved, outcome_probabilities
from quantverdict.tasks.catalog import Item, load_task


def task(metric="refusal", n=60, clusters=None):
    """The starter task of a metric with n items, in so many clusters."""
    found = load_task({"refusal": "starter_harmful", "truth": "starter_misconceptions"}[metric])
    items = [Item(f"i{at}", {"unit": str(at % clusters) if clusters else None}) for at in range(n)]
    return replace(found, items=tuple(items), cluster_field="unit" if clusters else None)


def gating(builds=1, **margins):
    return DecisionRules(margins or {"refusal_rate": 0.05}, ("truthfulness", "rouge_l"), builds, (), 0.025, 0.8)


def test_two_true_losses_at_the_level_of_the_first_step():
    """Of two gated metrics that are measured, and three builds: a sixth of alpha. The third metric is not asked."""
    rules = gating(3, refusal_rate=0.05, truthfulness=0.05, over_refusal_rate=0.05)
    found = build_power([task(n=400), task("truth", 90)], rules, {})
    assert found.level == pytest.approx(0.025 / 6)
    assert [(one.metric, one.true_loss_pp) for one in found.metrics] == [
        ("refusal_rate", 0), ("refusal_rate", 10), ("truthfulness", 0), ("truthfulness", 10),
    ]  # fmt: skip
    none, twice = found.metrics[:2]
    assert none.chances == outcome_probabilities(400, 0.1, 0.0, 0.05, 0.025 / 6)
    assert twice.chances == outcome_probabilities(400, 0.2, 0.1, 0.05, 0.025 / 6), (
        "the loss on top of what differs anyway"
    )
    assert none.n_needed == n_resolved(0.1, 0.0, 0.05, 0.8, 0.025 / 6)


def test_the_needed_prompts_have_the_power():
    needed = build_power([task(n=100)], gating(4), {}).metrics[0].n_needed
    assert build_power([task(n=needed)], gating(4), {}).metrics[0].chances.non_inferior >= 0.8
    assert build_power([task(n=needed * 9 // 10)], gating(4), {}).metrics[0].chances.non_inferior < 0.82


def test_clusters_count_once_or_by_the_design_effect_seen():
    """120 prompts of 30 behaviours count as 30; where a run saw a design effect of 1.5, as 80."""
    assumed = build_power([task(n=120, clusters=30)], gating(), {}).metrics[0]
    assert (assumed.n, assumed.counted) == (120, 30)
    assert assumed.n_needed == 4 * n_resolved(0.1, 0.0, 0.05, 0.8, 0.025)
    seen = {"refusal_rate": PilotStats(0.9, 0.04, 0.04, 1.5)}
    found = build_power([task(n=120, clusters=30)], gating(), seen).metrics[0]
    assert (found.counted, found.discordance) == (80, 0.04)
    assert found.n_needed == ceil(n_resolved(0.04, 0.0, 0.05, 0.8, 0.025) * 1.5)


def test_the_printed_chances_are_those_of_whole_studies_by_simulation():
    """Four builds of one metric through Holm: the chance printed for a build is a floor, and near for a lone loser."""
    n, builds = 250, 4
    none, twice = build_power([task(n=n)], gating(builds), {"refusal_rate": PilotStats(0.8, 0.04, 0.04, 1.0)}).metrics
    draw = np.random.default_rng(1)
    passed = rejected = 0
    studies = 400
    for _ in range(studies):
        equal = [draw.multinomial(n, (0.02, 0.02, 0.96)) for _ in range(builds - 1)]
        loser = draw.multinomial(n, (0.12, 0.02, 0.86))
        tests = [rate_tests((int(lost), int(gained), n), n, 1.0, 0.05) for lost, gained, _ in (*equal, loser)]
        within, beyond = (holm(kind) for kind in zip(*tests, strict=True))
        passed += within[0] <= 0.025
        rejected += beyond[-1] <= 0.025
    assert passed / studies > none.chances.non_inferior - 0.05
    assert rejected / studies == pytest.approx(twice.chances.inferior, abs=0.06)


def test_what_a_plan_prints():
    rules = replace(gating(2), required=("bertscore", "refusal_rate"))
    lines = build_power([task(n=300)], rules, {}).lines()
    assert "first step of Holm over 1 metrics x 2 builds" in lines[1]
    assert "assuming that 10% of pairs differ anyway" in lines[2]
    assert lines[4].split()[:6] == ["refusal_rate", "300", "300", "5", "pp", "0"]
    assert lines[-1] == "no build can be accepted: no task here measures bertscore"
    seen = build_power([task(n=300)], gating(), {"refusal_rate": PilotStats(0.9, 0.0, 0.0, 1.0)})
    assert seen.basis[1:] == ("differing pairs and clusters as in the earlier run",)
    assert build_power([], gating(), {}).metrics == ()
