"""The starter battery: counts, balance, right answers that are right, and nothing taken from published items."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from rapidfuzz import fuzz, process

from quantverdict.grading.grade import grade_sample
from quantverdict.records import Response
from quantverdict.registry import STARTER
from quantverdict.tasks.catalog import builtin_tasks, choice_texts, load_task, render_prompt, select_items

COUNTS = {
    "starter_choice": ("classification", 60),
    "starter_qa": ("qa", 30),
    "starter_summarization": ("summarization", 12),
    "starter_code": ("code_generation", 12),
    "starter_creative": ("creative_writing", 12),
    "starter_classification": ("classification", 30),
    "starter_harmful": ("safety_refusal", 60),
    "starter_jailbreak": ("safety_refusal", 40),
    "starter_benign": ("safety_over_refusal", 40),
    "starter_misconceptions": ("safety_truthfulness", 30),
    "starter_bias": ("safety_bias", 36),
}
STRATA = {
    "starter_choice": ("subject", 12),
    "starter_qa": ("category", 7),
    "starter_creative": ("form", 5),
    "starter_classification": ("label_set", 5),
    "starter_harmful": ("category", 12),
    "starter_jailbreak": ("jailbreak_type", 4),
    "starter_benign": ("category", 8),
    "starter_misconceptions": ("category", 8),
    "starter_bias": ("category", 9),
}
QUESTIONS = ("context", "question", "passage", "text", "instruction", "task_description")
NEAR = 90


@pytest.fixture(scope="module")
def battery():
    return {name: load_task(name) for name in builtin_tasks()}


def asked(task):
    """The own words of each item, in lower case without punctuation; for wrapped requests the whole text."""
    texts = [" ".join(str(item.fields[key]) for key in QUESTIONS if key in item.fields) for item in task.items]
    return [" ".join(re.sub(r"[^\w\s]", " ", text.lower()).split()) for text in texts]


def test_the_battery_is_complete(battery):
    assert {name: (task.task_type, len(task.items)) for name, task in battery.items()} == COUNTS


@pytest.mark.parametrize("name", COUNTS)
def test_every_prompt_renders_and_no_text_is_blank(name, battery):
    task = battery[name]
    for item in task.items:
        assert len(render_prompt(task, item)) > 20
        assert all(str(value).strip() for value in item.fields.values())
        assert (item.reference is None) == (name in {"starter_creative", "starter_benign"})


@pytest.mark.parametrize("name", STRATA)
def test_a_part_of_the_battery_is_balanced_over_its_field(name, battery):
    field, values = STRATA[name]
    task = battery[name]
    assert len({item.fields[field] for item in task.items}) == values
    if name != "starter_jailbreak":
        part = select_items(task, values, field, 42)
        assert len({item.fields[field] for item in part.items}) == values


def test_every_file_says_what_it_measures_and_whose_it_is():
    for path in STARTER.glob("*.yaml"):
        head = path.read_text(encoding="utf-8").split("\n\n")[0]
        assert head.startswith("# What it measures: ")
        assert "Our own writing" in head
        assert "Apache-2.0" in head


def test_no_two_items_are_near_duplicates(battery):
    """The wrapped jailbreaks share their wrappers, so only the direct forms are compared."""
    texts = []
    for name, task in battery.items():
        own = asked(task)
        direct = [item.fields.get("jailbreak_type", "direct") == "direct" for item in task.items]
        texts += [(name, text) for text, keep in zip(own, direct, strict=True) if keep]
    scores = process.cdist([text for _, text in texts], [text for _, text in texts], scorer=fuzz.ratio)
    near = [(texts[i], texts[j]) for i in range(len(texts)) for j in range(i) if scores[i][j] >= NEAR]
    assert not near
    wrapped = asked(battery["starter_jailbreak"])
    assert len(set(wrapped)) == len(wrapped)


def test_no_item_is_near_a_published_one(battery, shared):
    published = [text for path in (shared / "data" / "tasks").glob("*.yaml") for text in asked(load_task(path)) if text]
    own = [text for task in battery.values() for text in asked(task)]
    scores = process.cdist(own, published, scorer=fuzz.ratio)
    assert scores.shape == (len(own), 1203)
    assert [(own[i], published[scores[i].argmax()]) for i in range(len(own)) if scores[i].max() >= NEAR] == []


def test_choices_differ_and_the_right_letters_are_balanced(battery):
    items = battery["starter_choice"].items
    assert Counter(item.reference for item in items) == {"A": 15, "B": 15, "C": 15, "D": 15}
    for item in items:
        assert len({text.lower() for text in choice_texts(item).values()}) == 4
    longest = sum(
        len(choice_texts(item)[item.reference])
        > max(len(t) for k, t in choice_texts(item).items() if k != item.reference)
        for item in items
    )
    assert longest < 25, "the right answer must not be told by its length"


def test_labels_are_balanced_within_each_set(battery):
    counts = Counter((item.fields["label_set"], item.reference) for item in battery["starter_classification"].items)
    assert set(counts.values()) == {2}


def test_summaries_are_short_and_of_short_passages(battery):
    for item in battery["starter_summarization"].items:
        assert 60 <= len(item.fields["passage"].split()) <= 120
        assert 1 <= len(re.findall(r"[.!?](?:\s|$)", item.reference)) <= 3
        assert len(item.reference.split()) < len(item.fields["passage"].split()) / 1.5


def test_the_reference_programs_pass_their_checks(battery):
    for item in battery["starter_code"].items:
        assert item.reference.startswith(f"def {item.fields['function_name']}(")
        assert item.fields["check"].count("assert") >= 2
        program = f"{item.reference}\n{item.fields['check']}"
        done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{item.id}: {done.stderr}"


def test_jailbreaks_are_ten_behaviours_in_four_forms(battery):
    task = battery["starter_jailbreak"]
    assert Counter(task.cluster(item) for item in task.items) == {f"behavior_{i:02d}": 4 for i in range(1, 11)}
    direct = {item.fields["base_behavior_id"]: item.fields["instruction"] for item in task.items if "direct" in item.id}
    for item in task.items:
        assert direct[item.fields["base_behavior_id"]] in item.fields["instruction"]


def test_right_and_wrong_answers_of_misconceptions_differ(battery):
    for item in battery["starter_misconceptions"].items:
        right, wrong = item.fields["correct_answers"], item.fields["incorrect_answers"]
        assert item.reference in right
        assert 2 <= len(right) <= 4
        assert 2 <= len(wrong) <= 4
        assert len({text.lower() for text in [*right, *wrong]}) == len(right) + len(wrong)


def test_the_places_of_unknown_and_of_the_stereotype_are_balanced(battery):
    items = battery["starter_bias"].items
    assert Counter(item.fields["correct_label"] for item in items) == {0: 12, 1: 12, 2: 12}
    assert Counter(item.fields["stereotyped_idx"] for item in items) == {0: 12, 1: 12, 2: 12}
    for item in items:
        places = {item.fields[key] for key in ("correct_label", "stereotyped_idx", "anti_stereotyped_idx")}
        assert places == {0, 1, 2}
    assert len({item.reference for item in items}) >= 8


def graded(task, item, text):
    response = Response("model", "quant", task.name, item.id, "0" * 64, text, "stop", 1, 1)
    return {score.metric: score.value for score in grade_sample(task, item, response)}


def test_the_battery_and_the_graders_agree(battery):
    """Every answer the files call right is graded 1, every one they call wrong is graded 0."""
    task = battery["starter_misconceptions"]
    for item in task.items:
        assert {graded(task, item, text)["truthfulness"] for text in item.fields["correct_answers"]} == {1}
        assert {graded(task, item, text)["truthfulness"] for text in item.fields["incorrect_answers"]} == {0}
    task = battery["starter_bias"]
    for item in task.items:
        for place in range(3):
            value = graded(task, item, item.fields[f"answer_choice_{place}"])["bias_resistance"]
            assert value == (place != item.fields["stereotyped_idx"])
    task = battery["starter_choice"]
    for item in task.items:
        for letter, text in choice_texts(item).items():
            assert graded(task, item, letter)["choice_accuracy"] == (letter == item.reference)
            assert graded(task, item, text)["choice_accuracy_rescored"] == (letter == item.reference)
    task = battery["starter_classification"]
    assert {graded(task, item, item.reference)["classification_accuracy"] for item in task.items} == {1}


def test_the_battery_is_part_of_the_package():
    assert Path(STARTER).is_relative_to(Path(load_task.__code__.co_filename).parent)
