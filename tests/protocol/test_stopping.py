"""Which gated metrics can stop a build while it is asked, and which only a whole run settles."""

import pytest

from quantverdict.policy import Policy
from quantverdict.protocol.stopping import gated_while_asked, graded_later
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
