"""Rounds of prompts: a fixed random order with every task's share, and when a cell may stop."""

import numpy as np
import pytest

from quantverdict.bundle.prompts import PromptPlan
from quantverdict.collect.schedule import (
    SEQUENTIAL_SHARE,
    MonitoredMetric,
    add_round,
    decided,
    full_p_values,
    in_rounds,
    plan_rounds,
    round_numbers,
    stopped_p_values,
)
from quantverdict.records import Prompt
from quantverdict.stats.sequential import ConfidenceSequence


@pytest.fixture
def prompts():
    sizes = {"refusal": 60, "jailbreak": 40, "tiny": 3}
    return [Prompt(t, f"{t}_{i}", "x" * (i * 7 % 11), None, "") for t, size in sizes.items() for i in range(size)]


@pytest.fixture
def clusters(prompts):
    return [f"b{int(p.sample_id.split('_')[1]) // 4}" if p.task == "jailbreak" else None for p in prompts]


def test_every_prompt_is_asked_once_in_batches_of_one_task(prompts, clusters):
    rounds = plan_rounds(prompts, clusters, 8, seed=42)
    batches = [batch for number in rounds for batch in number]
    assert sorted(index for batch in batches for index in batch) == list(range(len(prompts)))
    assert all(len(batch) <= 8 and len({prompts[index].task for index in batch}) == 1 for batch in batches)


def test_each_round_has_its_share_of_each_task_and_whole_clusters(prompts, clusters):
    asked = []
    rounds = plan_rounds(prompts, clusters, 8, seed=42, rounds=10)
    for number, batches in enumerate(rounds, start=1):
        asked += [index for batch in batches for index in batch]
        count = {task: sum(prompts[index].task == task for index in asked) for task in ("refusal", "jailbreak", "tiny")}
        assert count["refusal"] == 6 * number
        assert count["jailbreak"] == 4 * number
        assert abs(count["tiny"] - 0.3 * number) <= 0.5
        labels = [clusters[index] for index in asked if clusters[index] is not None]
        assert all(labels.count(label) == 4 for label in set(labels))


def test_order_follows_from_seed_and_task_alone(prompts, clusters):
    def order(found, of):
        return [of[i].sample_id for number in found for batch in number for i in batch if of[i].task == "refusal"]

    first = order(plan_rounds(prompts, clusters, 8, seed=42), prompts)
    assert first == order(plan_rounds(prompts[:60], clusters[:60], 8, seed=42), prompts[:60])
    assert first != order(plan_rounds(prompts, clusters, 8, seed=43), prompts)


def test_rounds_without_prompts_are_left_out():
    few = [Prompt("tiny", str(i), "", None, "") for i in range(3)]
    assert len(plan_rounds(few, [None] * 3, 8, seed=1, rounds=12)) == 3


def test_refuses_clusters_that_do_not_fit(prompts):
    with pytest.raises(ValueError):
        plan_rounds(prompts, [None], 8, seed=1)


def watched(losses, clusters=None, largest=1):
    found = MonitoredMetric(ConfidenceSequence(), 0.05)
    add_round(found, losses, clusters or [None] * len(losses), largest)
    return found


def test_cell_stops_once_every_gated_metric_is_resolved_for_the_whole_family():
    broken, equal, open_still = watched([1.0] * 40), watched([0.0] * 400), watched([0.0] * 20)
    assert decided([broken, equal], alpha=0.025, family=10)
    assert not decided([broken, open_still], alpha=0.025, family=1)
    assert not decided([equal], alpha=0.025, family=10**9)


def test_clusters_count_as_one_prompt_of_their_mean():
    found = watched([1.0, 0.0, 1.0, 1.0, 1.0], ["a", "a", "b", "b", None], largest=2)
    by_hand = ConfidenceSequence()
    by_hand.add([0.5, 1.0, 1.0], [1.0, 1.0, 0.5])
    assert found.sequence.p_values(0.05) == by_hand.p_values(0.05)


def test_both_ways_of_deciding_share_the_level():
    """A third for stopping early, the rest for the full run; the smaller p-value counts."""
    found = watched([0.0] * 100)
    early = found.sequence.p_values(0.05)[0] / SEQUENTIAL_SHARE
    assert stopped_p_values(found) == (pytest.approx(early), 1.0)
    assert full_p_values(found, (0.008, 1.0)) == (pytest.approx(0.012), 1.0)
    assert full_p_values(found, (0.9, 1.0)) == (pytest.approx(early), 1.0)


def test_optional_stopping_does_not_raise_the_level():
    """Looked at after each of 12 rounds, a loss at the margin is decided at most as often as both levels say."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(400):
        found = MonitoredMetric(ConfidenceSequence(), 0.05)
        for _ in range(12):
            add_round(found, (rng.random(20) < 0.05).astype(float).tolist(), [None] * 20, 1)
            if decided([found], alpha=0.025, family=1):
                wrong += 1
                break
    assert wrong / 400 <= 2 * 0.025 * SEQUENTIAL_SHARE + 0.01


def test_a_plan_in_rounds_asks_the_same_prompts_and_says_where_rounds_end(prompts, clusters):
    labels = {(p.task, p.sample_id): label for p, label in zip(prompts, clusters, strict=True)}
    plan = in_rounds(PromptPlan(tuple(prompts), (), {}), labels, 8, seed=42)
    rounds = plan_rounds(prompts, clusters, 8, seed=42)
    assert plan.prompts == tuple(prompts)
    assert plan.rounds.largest == {"refusal": 1, "jailbreak": 4, "tiny": 1}
    numbers = round_numbers(plan.prompts, plan.batches, plan.rounds.ends)
    asked = {
        (prompts[index].task, prompts[index].sample_id): number
        for number, batches in enumerate(rounds)
        for batch in batches
        for index in batch
    }
    assert numbers == asked
    assert sum(map(len, plan.batches[: plan.rounds.ends[-1]])) == len(prompts)
