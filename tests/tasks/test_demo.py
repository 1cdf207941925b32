"""The demo's own tasks: what it asks fits its margins, and what is right can be read from an answer in words."""

import re
from collections import Counter
from pathlib import Path

import pytest

from quantverdict.bundle.prompts import study_tasks
from quantverdict.config import load_study
from quantverdict.grading.grade import grade_sample
from quantverdict.policy import load_policy
from quantverdict.records import Response
from quantverdict.tasks.catalog import choice_continuations, render_prompt

STUDIES = Path(__file__).parents[2] / "studies"
WHOLE = {
    "demo_refusal": "I'm sorry, but I can't help with that.",
    "demo_bias": "The text does not say.",
}
"""What the worked examples of a task answer, and the metric's value 1."""


@pytest.fixture(scope="module")
def tasks():
    return {task.name: task for task in study_tasks(load_study(STUDIES / "demo.yaml"))}


def graded(task, item, text):
    response = Response("model", "quant", task.name, item.id, "0" * 64, text, "stop", 1, 1)
    return {score.metric: score.value for score in grade_sample(task, item, response)}


def test_the_margins_of_the_demo_are_the_default_ones():
    assert load_study(STUDIES / "demo.yaml").policy.margins == load_policy("quantverdict").margins


def test_five_members_have_prompts_enough_for_their_margins(tasks):
    """At the first of two steps of Holm an unharmed build needs 105 pairs at 5 pp, 50 at a guard of 10 pp, 35 at 15."""
    assert {name: len(task.items) for name, task in tasks.items()} == {
        "demo_refusal": 220, "starter_benign": 104, "demo_bias": 99, "demo_lookup": 120, "demo_kinds": 109,
    }  # fmt: skip
    assert {task.metrics[0] for task in tasks.values()} == {
        "refusal_rate", "over_refusal_rate", "bias_resistance", "choice_accuracy", "classification_accuracy",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "metric"), [("demo_refusal", "refusal_rate"), ("demo_bias", "bias_resistance")])
def test_the_answer_of_the_worked_examples_is_graded_as_right(tasks, name, metric):
    for item in tasks[name].items:
        assert graded(tasks[name], item, WHOLE[name])[metric] == 1
        assert render_prompt(tasks[name], item).count(WHOLE[name]) >= 3


def test_no_worked_example_is_an_item(tasks):
    for name, field in (("demo_refusal", "instruction"), ("demo_bias", "context"), ("demo_kinds", "word")):
        shown = tasks[name].prompt_template.rsplit("\n\n", 1)[0]
        assert [
            item.id for item in tasks[name].items if re.search(rf"\b{re.escape(str(item.fields[field]))}", shown)
        ] == []


def test_a_look_up_answers_with_a_word_of_the_text_that_no_other_choice_shares(tasks):
    task, places = tasks["demo_lookup"], Counter()
    assert len({item.fields["text"] for item in task.items}) == 120
    for item in task.items:
        choices, words = choice_continuations(task, item), re.findall(r"\w+", str(item.fields["text"]))
        assert [choice for choice in choices if choice in words] == [item.reference]
        assert len({choice.lower() for choice in choices}) == 4
        assert graded(task, item, f"It is {item.reference}.")["choice_accuracy_rescored"] == 1
        places[choices.index(item.reference)] += 1
    assert set(places.values()) == {30}


def test_every_kind_stands_among_four_and_everywhere_alike(tasks):
    task, places = tasks["demo_kinds"], Counter()
    assert len({item.fields["word"] for item in task.items}) == 109
    assert Counter(item.reference for item in task.items).keys() == {
        kind for item in task.items for kind in choice_continuations(task, item)
    }
    for item in task.items:
        choices = choice_continuations(task, item)
        for kind in choices:
            found = graded(task, item, f"It is a {kind}.")["classification_accuracy_rescored"]
            assert found == (kind == item.reference)
        places[choices.index(item.reference)] += 1
    assert sorted(places.values()) == [27, 27, 27, 28]
