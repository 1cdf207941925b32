"""A sentence a build before a run, and the study that has the power to accept one."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import yaml

import quantverdict as qv
from quantverdict.cli import execute
from quantverdict.config import load_study
from quantverdict.planning.power import DecisionRules, PilotStats, PlannedCriterion
from quantverdict.planning.target import PlannedStudy, TaskRoom
from quantverdict.stats.power import outcome_probabilities

REFUSAL = PlannedCriterion("refusal", ("refusal_rate",), 0.1, 0.1, 0.5)
POOL = [
    PlannedCriterion("safety", ("truthfulness", "bias_resistance"), 0.2, 0.2, 0.25),
    PlannedCriterion("safety/truthfulness", ("truthfulness",), 0.4, 0.2, 0.125),
    PlannedCriterion("safety/bias_resistance", ("bias_resistance",), 0.4, 0.2, 0.125),
]
MEAN = PlannedCriterion("quality", ("rouge_l",), 0.2, 0.2, 0.25)
RULES = DecisionRules({}, ("rouge_l",), 1, (), 0.02, 0.8)


def room(name, metric, asked, held, seconds=2.0, counted=None):
    return TaskRoom(name, (metric,), asked, counted or asked, held, seconds)


def planned(rows, *rooms, rules=RULES, **assumed):
    return PlannedStudy(rows, rooms, rules, assumed)


def only(found):
    (one,) = found
    return one


def seen(discordance, loss=0.0):
    return PilotStats(0.8, discordance, discordance, 1.0, loss)


def test_a_study_with_the_power_can_accept_each_build_and_says_the_chance_of_the_exact_tests():
    study = planned([REFUSAL], room("harm", "refusal_rate", 250, 300))
    one, other = study.prospects({"Q8_0": {}, "Q4_0": {"refusal_rate": seen(0.02)}})
    assert one.accept == outcome_probabilities(250, 0.1, 0.0, 0.1, 0.02).non_inferior
    assert other.accept == outcome_probabilities(250, 0.02, 0.0, 0.1, 0.02).non_inferior
    assert (one.decides, one.more, one.limits, one.reject) == ("accept", {}, {}, None)
    assert one.sentence == f"can accept Q8_0: {one.accept:.0%} if it loses nothing"
    assert other.sentence == "can accept Q4_0: 100% if it loses nothing"


def test_the_level_is_that_of_the_first_step_of_all_builds():
    four = replace(RULES, builds=4)
    study = planned([REFUSAL], room("harm", "refusal_rate", 250, 300), rules=four)
    assert only(study.prospects({"Q8_0": {}})).accept == outcome_probabilities(250, 0.1, 0.0, 0.1, 0.005).non_inferior


def test_a_study_without_it_says_what_to_add_and_the_minutes_of_the_build_and_its_baseline():
    study = planned([REFUSAL, MEAN], room("harm", "refusal_rate", 60, 400), room("sums", "rouge_l", 200, 200, 9.0),
                    rouge_l=seen(0.01))  # fmt: skip
    one = only(study.prospects({"Q4_0": {}}))
    added = one.limits["harm"] - 60
    assert (one.decides, dict(one.more), one.limits["sums"]) == ("neither", {"refusal": added}, 200)
    assert one.seconds == 2 * 2.0 * added
    minutes = f"about {one.seconds / 60:.0f} min of it and its baseline"
    assert one.sentence == (
        f"cannot decide Q4_0: add {added} refusal prompts, {minutes} (now {one.accept:.0%} if it loses nothing)"
    )
    enough = outcome_probabilities(one.limits["harm"], 0.1, 0.0, 0.1, 0.02).non_inferior
    assert 0.74 < enough < 0.88, "the normal approximation is near"


def test_without_a_speed_the_time_is_not_measured():
    study = planned([REFUSAL], room("harm", "refusal_rate", 60, 400, None))
    one = only(study.prospects({"Q4_0": {}}))
    assert one.seconds is None
    assert "prompts, time not measured (now" in one.sentence


def test_what_the_tasks_do_not_hold_is_named_with_what_they_hold():
    study = planned([REFUSAL, *POOL], room("harm", "refusal_rate", 60, 90), room("truth", "truthfulness", 90, 90),
                    room("bias", "bias_resistance", 90, 90))  # fmt: skip
    one = only(study.prospects({"Q4_0": {}}))
    assert (one.limits, one.decides) == ({}, "neither")
    assert one.sentence.startswith("cannot decide Q4_0: needs more prompts than its tasks hold: refusal about ")
    assert one.sentence.endswith(" of 90")
    assert study.exact_limits_for({}) is None


@pytest.mark.parametrize(("loss", "decides"), [(0.5, "reject"), (0.12, "neither"), (0.09, "neither")])
def test_a_build_that_lost_more_than_a_margin_in_an_earlier_run_can_be_rejected(loss, decides):
    study = planned([REFUSAL], room("harm", "refusal_rate", 60, 400))
    one = only(study.prospects({"Q2_K": {"refusal_rate": seen(0.5, loss)}}))
    expected = outcome_probabilities(60, 0.5, loss, 0.1, 0.01).inferior if loss > 0.1 else None
    assert (one.decides, one.reject) == (decides, expected), "at the weight of the row"
    if decides == "reject":
        assert one.sentence == f"can reject Q2_K: {one.reject:.0%} if it loses what the earlier run saw"


def test_members_of_a_pool_are_given_equal_numbers_as_far_as_their_tasks_hold_them():
    def limits(bias):
        rooms = room("truth", "truthfulness", 10, 300), room("bias", "bias_resistance", 5, bias)
        return planned(POOL, *rooms).limits_for({})

    both, short = limits(300), limits(12)
    assert both["truth"] == both["bias"] > 12
    assert short["bias"] == 12
    assert short["truth"] > both["truth"]


def test_tasks_of_one_metric_grow_as_far_as_they_have_prompts_left_and_none_shrinks():
    rooms = room("one", "refusal_rate", 30, 40), room("two", "refusal_rate", 30, 400)
    limits = planned([REFUSAL], *rooms).limits_for({})
    alone = planned([REFUSAL], room("harm", "refusal_rate", 60, 440)).limits_for({})["harm"]
    assert 30 <= limits["one"] <= 40 < limits["two"]
    assert sum(limits.values()) == alone
    assert planned([REFUSAL], room("one", "refusal_rate", 390, 400)).limits_for({}) == {"one": 390}


def test_prompts_of_clusters_count_as_their_clusters():
    single, fours = (
        planned([REFUSAL], room("harm", "refusal_rate", 80, 4000, counted=80 // size)).limits_for({})["harm"]
        for size in (1, 4)
    )
    assert fours == pytest.approx(4 * single, rel=0.03)


def test_the_exact_limits_have_the_power_and_a_little_less_has_not():
    study = planned([REFUSAL, MEAN], room("harm", "refusal_rate", 40, 400), room("sums", "rouge_l", 40, 400),
                    rouge_l=seen(0.05))  # fmt: skip
    limits = study.exact_limits_for({"rouge_l": seen(0.05)})
    assert study.chance({"rouge_l": seen(0.05)}, limits) >= 0.8
    fewer = {name: size * 8 // 10 for name, size in limits.items()}
    assert study.chance({"rouge_l": seen(0.05)}, fewer) < 0.8


def test_more_pairs_that_differ_take_more_prompts():
    sizes = [planned([REFUSAL], room("h", "refusal_rate", 20, 9000)).limits_for({"refusal_rate": seen(share)})["h"]
             for share in (0.0, 0.02, 0.1, 0.3)]  # fmt: skip
    assert all(one < other for one, other in pairwise(sizes))


# From a file

STUDY = """\
study: small
models:
  - &model {name: tiny, family: Tiny, baseline: FP16, variants: [FP16, Q8_0, Q4_0]}
collect: {backend: replay, replay_dir: recorded}   # answers that are there
tasks:
  - starter_harmful
  - {task: starter_choice, limit: 20, max_new_tokens: 8}
policy:
  criteria:
    refusal: {margin_pp: 20, demanded: true}
    quality: {margin_pp: 20}
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recorded").mkdir()
    (tmp_path / "small.yaml").write_text(STUDY)
    return tmp_path / "small.yaml"


def test_the_target_is_a_study_that_loads_and_whose_plan_can_accept_the_build(study, capsys):
    assert execute(["plan", "small.yaml", "--target", "accept:Q8_0"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("# accepts Q8_0, if it loses nothing, with ")
    study.with_name("target.yaml").write_text(out)
    given, found = load_study(study), load_study(study.with_name("target.yaml"))
    assert (found.models, found.policy, found.collect) == (given.models, given.policy, given.collect)
    assert [(use.task, use.max_new_tokens) for use in found.tasks] == [("starter_harmful", None), ("starter_choice", 8)]
    assert found.tasks[0].limit == 300
    assert 20 < found.tasks[1].limit < 156
    estimate = qv.plan("target.yaml", measure=False)
    assert [one.decides for one in estimate.builds] == ["accept", "accept"]
    assert estimate.lines()[-1] == f"can accept Q8_0, Q4_0: {estimate.builds[0].details}"


def test_the_target_as_json_and_by_the_name_of_its_model(study):
    found = qv.plan(study, target="accept:tiny/Q4_0").target
    assert found.build == "Q4_0"
    assert found.power >= 0.8
    assert yaml.safe_load(found.yaml)["tasks"][1]["limit"] == found.limits["starter_choice"]
    assert found.seconds is None


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("accept:Q9", "--target: 'accept:Q9' is no target; expected accept:BUILD, a build one of Q8_0, Q4_0"),
        ("reject:Q8_0", "--target: 'reject:Q8_0' is no target; expected accept:BUILD"),
        ("Q8_0", "--target: 'Q8_0' is no target"),
        ("accept:FP16", "--target: 'accept:FP16' is no target"),
    ],
)
def test_what_is_no_target_is_said_in_a_line(study, capsys, target, words):
    assert execute(["plan", "small.yaml", "--target", target]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("policy: tr125\n", "policy tr125 has no criteria; expected a policy with criteria"),
        ("policy: quantverdict\n", "no study of these tasks can accept Q8_0: needs more prompts than its tasks hold"),
    ],
)
def test_a_target_out_of_reach_is_said_in_a_line(study, capsys, policy, words):
    study.write_text(STUDY.partition("policy:")[0] + policy)
    assert execute(["plan", "small.yaml", "--target", "accept:Q8_0"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert words in line
