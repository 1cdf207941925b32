"""Which gated metrics can stop a build while it is asked, and which only a whole run settles."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from quantverdict.collect.schedule import SEQUENTIAL_SHARE
from quantverdict.policy import Policy
from quantverdict.protocol.stopping import BuildMonitor, StoppingRule, gated_while_asked, graded_later
from quantverdict.records import Response
from quantverdict.stats.sequential import ConfidenceSequence
from quantverdict.tasks.catalog import load_task

HARMFUL, SUMMARIES = "starter_harmful", "starter_summarization"


def policy(*metrics, quality="rouge_l"):
    return Policy.model_validate(
        {
            "quality_metric": quality,
            "margins": dict.fromkeys(metrics, 5),
        }
    )


def tasks(*names):
    return [load_task(name) for name in names]


def test_what_is_graded_as_it_comes_is_what_the_tasks_measure_and_the_policy_gates():
    gates = policy("refusal_rate", "truthfulness")
    assert set(gated_while_asked(tasks(HARMFUL, SUMMARIES), gates)) == {"refusal_rate", "rouge_l"}
    assert set(gated_while_asked(tasks(HARMFUL), gates)) == {"refusal_rate"}


@pytest.mark.parametrize(("judged", "waits"), [(True, True), (False, False)])
def test_a_judges_metric_is_waited_for_only_where_there_is_a_judge(judged, waits):
    gates = policy("refusal_rate", "judge_refusal_rate")
    later = graded_later(tasks(HARMFUL, SUMMARIES), gates, judged=judged)
    assert ("judge_refusal_rate" in later) is waits
    assert "refusal_rate" not in later


@pytest.mark.parametrize("judged", [True, False])
def test_a_metric_of_no_judge_is_never_waited_for_as_one(judged):
    """`truthfulness` is gated and no task of the study measures it: no run would ever decide it."""
    later = graded_later(tasks(HARMFUL, SUMMARIES), policy("refusal_rate", "truthfulness"), judged=judged)
    assert "truthfulness" not in later


def test_what_an_encoder_grades_is_waited_for():
    gates = policy("refusal_rate", quality="bertscore")
    assert "bertscore" in graded_later(tasks(HARMFUL, SUMMARIES), gates, judged=False)


REFUSED, COMPLIED = "I'm sorry, but I can't help with that.", "Sure, here is how you do it."
ITEMS = [item for item in load_task(HARMFUL).items if int(item.id.rsplit("_", 1)[1]) <= 5]
TASK = replace(load_task(HARMFUL), items=tuple(ITEMS[:60]), cluster_field="category")
"""60 prompts, in clusters of five by category."""


def answers(text, items):
    return [Response("m", "Q", HARMFUL, item.id, "", text(at), "stop", 1, 1) for at, item in enumerate(items)]


def by_hand(rounds, margin=0.05):
    """P-values of the sequence of cluster means, weighed by their share of the largest cluster."""
    largest = max(Counter(map(TASK.cluster, TASK.items)).values())
    sequence = ConfidenceSequence()
    for items, lost in rounds:
        clusters = {}
        for at, item in enumerate(items):
            clusters.setdefault(TASK.cluster(item), []).append(lost(at))
        sequence.add([np.mean(one) for one in clusters.values()], [len(one) / largest for one in clusters.values()])
    return sequence.p_values(margin)


def enough(p_values, family=1, alpha=0.05):
    return min(p_values) / SEQUENTIAL_SHARE <= alpha / 2 / family


@pytest.mark.parametrize("family", [1, 4, 100])
def test_a_build_was_asked_enough_in_the_round_in_which_its_sequence_decides(family):
    """Six rounds of ten prompts, of which nine in ten lose their refusal: the same round as by hand."""
    gates = policy("refusal_rate", quality="refusal_rate")
    watcher = BuildMonitor(
        StoppingRule({HARMFUL: TASK}, ("refusal_rate",), gates, family), answers(lambda _: REFUSED, TASK.items)
    )
    rounds, said, expected = [], [], []
    for start in range(0, 60, 10):
        items = TASK.items[start : start + 10]
        rounds.append((items, lambda at: float(at != 0)))
        said.append(watcher(answers(lambda at: COMPLIED if at else REFUSED, items)))
        expected.append(enough(by_hand(rounds), family))
    assert said == expected
    assert said[-1] or family > 1
    assert not said[0]


def test_every_gated_metric_must_be_decided_and_without_any_there_is_never_enough():
    gates = policy("refusal_rate", quality="refusal_rate")
    baseline = answers(lambda _: REFUSED, TASK.items)
    none = BuildMonitor(StoppingRule({HARMFUL: TASK}, (), gates, 1), baseline)
    unread = BuildMonitor(StoppingRule({HARMFUL: TASK}, ("refusal_rate",), gates, 1), answers(lambda _: "", TASK.items))
    other = BuildMonitor(StoppingRule({HARMFUL: TASK}, ("refusal_rate",), gates, 1), baseline)
    for start in range(0, 60, 10):
        round_ = answers(lambda _: COMPLIED, TASK.items[start : start + 10])
        found = [watcher(round_) for watcher in (none, unread, other)]
    assert found == [False, False, True]


def test_a_prompt_that_the_baseline_was_not_asked_is_no_pair():
    gates = policy("refusal_rate", quality="refusal_rate")
    few = BuildMonitor(
        StoppingRule({HARMFUL: TASK}, ("refusal_rate",), gates, 1), answers(lambda _: REFUSED, TASK.items[:3])
    )
    assert [few(answers(lambda _: COMPLIED, TASK.items[at : at + 20])) for at in (0, 20, 40)] == [False] * 3


# By criteria: what is watched is what the decision tests

HARM, TRUTH, SAFE = (
    replace(load_task(name), items=load_task(name).items[:120], cluster_field=None)
    for name in ("starter_harmful", "starter_misconceptions", "starter_benign")
)
THREE = {task.name: task for task in (HARM, TRUTH, SAFE)}


def truth(item, *, right):
    return item.fields["correct_answers" if right else "incorrect_answers"][0]


def said(task, items, *, bad):
    """Of so many of the items, from the first on, a bad answer."""
    good = {
        HARM.name: lambda _: REFUSED,
        SAFE.name: lambda _: COMPLIED,
        TRUTH.name: lambda item: truth(item, right=True),
    }
    worse = {
        HARM.name: lambda _: COMPLIED,
        SAFE.name: lambda _: REFUSED,
        TRUTH.name: lambda item: truth(item, right=False),
    }
    return [
        Response("m", "Q", task.name, item.id, "", (worse if at < bad else good)[task.name](item), "stop", 1, 1)
        for at, item in enumerate(items)
    ]


def by_criteria(**criteria):
    return Policy.model_validate({"criteria": criteria})


def watched(policy, tasks, baseline_bad=None, builds=1):
    """Tells a build twelve rounds of ten prompts of each task, of which so many of each round are bad."""
    metrics = gated_while_asked(tasks.values(), policy)
    baseline = [
        one for task in tasks.values() for one in said(task, task.items, bad=(baseline_bad or {}).get(task.name, 0))
    ]
    monitor = BuildMonitor(StoppingRule(tasks, metrics, policy, len(metrics) * builds), baseline)

    def ask(**bad):
        found = []
        for start in range(0, 120, 10):
            parts = [said(task, task.items[start : start + 10], bad=bad.get(kind, 0))
                     for kind, task in zip(("harm", "truth", "safe"), tasks.values(), strict=False)]  # fmt: skip
            found.append(monitor([one for part in parts for one in part]))
        return found

    return ask


POOL = {"metrics": ["truthfulness", "over_refusal_rate"], "margin_pp": 20, "guard_margin_pp": 30}


def test_a_member_that_cannot_lose_its_margin_is_in_no_family_and_stops_nothing():
    """A baseline that is never truthful: the build stops where it does if its truthfulness is not asked for at all."""
    harm = {"metrics": ["refusal_rate"], "margin_pp": 20, "demanded": True}
    with_idle = by_criteria(refusal=harm, safety=POOL)
    without = by_criteria(refusal=harm, safety={**POOL, "metrics": ["over_refusal_rate"], "margin_pp": 20})
    idle = watched(with_idle, THREE, {TRUTH.name: 120})(harm=0, truth=10, safe=0)
    alone = watched(without, {HARM.name: HARM, SAFE.name: SAFE})(harm=0, truth=0)
    measured = watched(with_idle, THREE)(harm=0, truth=0, safe=0)
    assert idle.index(True) == alone.index(True)
    assert any(measured)


def test_a_demanded_criterion_that_cannot_fail_lets_a_build_be_rejected_and_never_accepted():
    demanded = by_criteria(
        refusal={"metrics": ["refusal_rate"], "margin_pp": 20},
        safety={**POOL, "metrics": ["truthfulness"], "demanded": True},
    )
    two = {HARM.name: HARM, TRUTH.name: TRUTH}
    assert any(watched(demanded, two)(harm=0, truth=0))
    assert not any(watched(demanded, two, {TRUTH.name: 120})(harm=0, truth=10))
    assert any(watched(demanded, two, {TRUTH.name: 120})(harm=9, truth=10))


def test_without_enough_prompts_to_know_that_a_baseline_can_lose_nothing_is_accepted():
    """24 of 120 refused: between 13 and 28 % can be lost, so 20 pp may be more than there is."""
    criteria = by_criteria(refusal={"metrics": ["refusal_rate"], "margin_pp": 20, "demanded": True})
    criteria = criteria.model_copy(update={"margins": {"refusal_rate": 20}})
    assert not any(watched(criteria, {HARM.name: HARM}, {HARM.name: 96})(harm=10)[:9])
    assert any(watched(criteria, {HARM.name: HARM})(harm=0)[:9])


@pytest.mark.parametrize("weights", ["metric", {"truthfulness": 3, "over_refusal_rate": 1}])
def test_a_weighted_pool_stops_once_each_of_its_members_is_within_the_margin(weights):
    """And not sooner: of a mean of both, weighed by prompts, one member may make up for the other."""
    wide = {**POOL, "margin_pp": 40, "guard_margin_pp": 60}
    each = [
        by_criteria(safety={"metrics": [metric], "margin_pp": 40}) for metric in ("truthfulness", "over_refusal_rate")
    ]
    two = {TRUTH.name: TRUTH, SAFE.name: SAFE}
    whole = watched(by_criteria(safety={**wide, "weights": weights}), two)(harm=1, truth=0)
    alone = [watched(one, two)(harm=1, truth=0).index(True) for one in each]
    by_prompt = watched(by_criteria(safety=wide), two)(harm=1, truth=0)
    assert min(alone) < whole.index(True) == max(alone)
    assert by_prompt.index(True) < whole.index(True)


BENIGN, OVER = "starter_benign", "over_refusal_rate"


def in_families(task, size):
    """A task of 240 prompts in clusters."""
    first = task.items[0]
    items = [replace(first, id=f"{at:03}", fields={**first.fields, "family": f"{at // size}"}) for at in range(240)]
    return replace(task, cluster_field="family", items=tuple(items))


HARMS, SAFES = in_families(load_task(HARMFUL), 4), in_families(load_task(BENIGN), 2)


def decided_by_hand(policy, metrics, rounds, family):
    """A round's answer by hand, from one sequence a row: of the pool, and of each member where it has two.

    `rounds` are dicts of losses by metric, one list of cluster sums and sizes each.
    """
    (criterion,) = policy.criteria.values()
    size = {"refusal_rate": 4, OVER: 2}
    rows = [(criterion.margin_pp, criterion.margin_pp, metrics, "criterion")]
    if len(metrics) > 1:
        rows += [(criterion.guard_of(one), policy.gates[one], [one], "member") for one in metrics]
    weight = {"criterion": 1 if len(rows) == 1 else 0.5, "member": 0.25}
    accept, reject = [], []
    for guard, margin, members, role in rows:
        sequence, largest = ConfidenceSequence(), max(size[one] for one in members)
        for losses in rounds:
            units = [unit for one in members for unit in losses[one]]
            sequence.add([np.mean(unit) for unit in units], [len(unit) / largest for unit in units])
        below, above = sequence.p_values(float(guard) / 100)[0], sequence.p_values(float(margin) / 100)[1]
        accept.append(min(1, below / SEQUENTIAL_SHARE))
        reject.append(min(1, min(1, above / SEQUENTIAL_SHARE) / weight[role]))
    level = policy.alpha / 2 * 2 / 3 / max(1, family // len(metrics))
    return max(accept) <= level, min(reject) <= level


@pytest.mark.parametrize("family", [1, 2, 7])
@pytest.mark.parametrize("every", [0, 2, 20])
@pytest.mark.parametrize("metrics", [["refusal_rate"], [OVER], ["refusal_rate", OVER]])
def test_by_criteria_a_build_was_asked_enough_once_its_pool_and_members_are_decided(metrics, every, family):
    """Rounds of 24 prompts of each task, of which every so many answers are the wrong way round; none where 0.

    A pool of refusals and over-refusals in clusters of four and two, or either alone.
    """
    told = {"metrics": metrics, "margin_pp": 12, "guard_margin_pp": 16, "guards": {metrics[-1]: 20}, "demanded": True}
    name = "refusal" if metrics == ["refusal_rate"] else "pool"
    policy = Policy.model_validate({"criteria": {name: told}, "margins": dict.fromkeys(metrics, 8)})
    tasks = [task for task, metric in ((HARMS, "refusal_rate"), (SAFES, OVER)) if metric in metrics]
    right = {HARMFUL: REFUSED, BENIGN: COMPLIED}
    wrong = {HARMFUL: COMPLIED, BENIGN: REFUSED}

    def answered(task, at, mine):
        text = (wrong if mine and every and at % every == 0 else right)[task.name]
        return Response("m", "Q", task.name, task.items[at].id, "", text, "stop", 1, 1)

    rule = StoppingRule({task.name: task for task in tasks}, tuple(metrics), policy, family)
    monitor = BuildMonitor(rule, [answered(task, at, False) for task in tasks for at in range(240)])
    rounds, said, expected = [], [], []
    for start in range(0, 240, 24):
        places = range(start, start + 24)
        said.append(monitor([answered(task, at, True) for task in tasks for at in places]))
        lost = [float(bool(every) and at % every == 0) for at in places]
        clusters = {"refusal_rate": 4, OVER: 2}
        rounds.append({one: [lost[at : at + clusters[one]] for at in range(0, 24, clusters[one])] for one in metrics})
        expected.append(decided_by_hand(policy, metrics, rounds, family))
    assert said == [any(one) for one in expected]
    assert not said[0]
    if every == 2 or (every == 0 and family == 1):
        assert expected[-1] == (every == 0, every == 2)


@pytest.mark.parametrize("rules", ["paired", "criteria"])
@pytest.mark.parametrize(("factor", "stops"), [(0.999, False), (1.001, True)])
def test_a_build_is_stopped_at_exactly_the_level_that_its_sequence_has_reached(rules, factor, stops):
    """Three rounds of ten, all of them lost: the policy's alpha is just under and just over what that takes."""
    rounds = [(TASK.items[start : start + 10], lambda _: 1.0) for start in (0, 10, 20)]
    reached = min(by_hand(rounds)) / SEQUENTIAL_SHARE
    alpha = 2 * reached * factor
    gates = policy("refusal_rate", quality="refusal_rate").model_copy(update={"alpha": alpha})
    if rules == "criteria":
        named = {"criteria": {"refusal": {"demanded": True}}, "instruments": {"refusal": "pattern"}}
        gates = Policy.model_validate(named).model_copy(update={"alpha": alpha * 1.5})
    rule = StoppingRule({HARMFUL: TASK}, ("refusal_rate",), gates, 1)
    monitor = BuildMonitor(rule, answers(lambda _: REFUSED, TASK.items))
    assert [monitor(answers(lambda _: COMPLIED, items)) for items, _ in rounds] == [False, False, stops]
    assert 0 < alpha < 0.5
