"""The dispatch: every task type has its scorers, every score its cluster or its reason."""

from __future__ import annotations

import pytest

from quantverdict.errors import DataError, TaskError
from quantverdict.grading.grade import grade_responses, grade_sample
from quantverdict.registry import TASK_TYPES
from quantverdict.tasks.catalog import Item, Task, builtin_tasks, load_task

OTHERS = {
    "tool_calls": {"tools": '[{"name": "f"}]', "reference": '[{"name": "f", "arguments": {}}]'},
    "instruction_following": {"checks": '[{"kind": "case", "is": "upper"}]'},
    "regex": {"pattern": "[BY]"},
}
"""Fields of which another task type has the name for something else."""


def test_every_task_type_has_scorers_that_emit_its_metrics(make_task, answer):
    fields = {
        "option_a": "x",
        "option_b": "y",
        "reference": "B",
        "correct_answers": ["x"],
        "incorrect_answers": ["y"],
        "answer_choice_0": "Unknown",
        "answer_choice_1": "x",
        "correct_label": 0,
        "stereotyped_idx": 1,
    }
    for task_type in TASK_TYPES:
        task = make_task(task_type, fields | OTHERS.get(task_type, {}))
        logprobs = (-1.0, -2.0) if task_type in ("classification", "completion") else None
        found = grade_sample(task, task.items[0], answer("B", choice_logprobs=logprobs))
        assert tuple(score.metric for score in found) == task.metrics


def test_every_built_in_task_grades_its_own_reference(answer):
    """The right answer of an item, said as such, never scores below another one."""
    for name in builtin_tasks():
        task = load_task(name)
        for item in task.items:
            for score in grade_sample(task, item, answer(item.reference or "x", task=name, sample_id=item.id)):
                assert score.cluster == task.cluster(item)
                if score.metric == "tool_call_accuracy" and "any_of" in item.reference:
                    continue  # one of several values is to be put in first
                whole = (
                    "_accuracy",
                    "_rescored",
                    "rouge_l",
                    "f1",
                    "contains",
                    "following",
                    "truthfulness",
                    "bias_resistance",
                )
                if score.metric.endswith(whole):
                    assert score.value == 1.0, (name, item.id, score)


def test_a_score_carries_who_what_and_cluster(make_task, answer):
    task = make_task("safety_refusal", {"base_behavior_id": "b7"}, name="harm", cluster_field="base_behavior_id")
    score, other = grade_sample(task, task.items[0], answer("I cannot help with that.", task="harm"))
    assert (other.metric, other.value, other.cluster) == ("classifier_refusal_rate", 1.0, "b7")
    assert (score.base_model, score.quant, score.task, score.sample_id) == ("model", "Q4_K_M", "harm", "0")
    assert (score.metric, score.value, score.cluster, score.reason) == ("refusal_rate", 1.0, "b7", "")


def test_an_ungraded_score_says_why(make_task, answer):
    task = make_task("safety_over_refusal", {})
    score, other = grade_sample(task, task.items[0], answer(" "))
    assert (other.metric, other.value) == ("classifier_over_refusal_rate", None)
    assert (score.metric, score.value, score.reason) == ("over_refusal_rate", None, "the answer is empty")


def test_the_filters_come_first(make_task, answer):
    task = make_task(
        "classification",
        {"option_a": "x", "option_b": "y", "reference": "B"},
        filters=("strip_whitespace", "truncate_at_newline"),
    )
    assert grade_sample(task, task.items[0], answer("  B\nbecause"))[0].value == 1.0


def test_scores_come_in_the_order_of_the_responses(make_task, answer):
    tasks = {"q": make_task("creative_writing", {}, {}, name="q")}
    found = list(grade_responses(tasks, [answer("a", "q", "1"), answer("b", "q", "0")]))
    assert [(score.sample_id, score.metric) for score in found] == [
        ("1", "repetition"),
        ("1", "output_tokens"),
        ("0", "repetition"),
        ("0", "output_tokens"),
    ]


@pytest.mark.parametrize(
    ("task", "sample", "named"), [("x", "0", "unknown task 'x'"), ("q", "9", "task q has no sample '9'")]
)
def test_a_response_of_nothing_known_is_refused_by_name(make_task, answer, task, sample, named):
    tasks = {"q": make_task("qa", {"reference": "r"}, name="q")}
    with pytest.raises(DataError, match=f"model/Q4_K_M: {named}"):
        list(grade_responses(tasks, [answer("a", task, sample)]))


def test_a_task_type_without_a_scorer_is_refused():
    task = Task("t", "poetry", "", "", (), (Item("0", {}),), "", None, None, "t.yaml")
    with pytest.raises(TaskError, match=r"t.yaml: task_type: poetry has no scorer"):
        grade_sample(task, task.items[0], None)  # type: ignore[arg-type]


def test_awkward_answers_to_every_task_type_are_in_range_or_say_why(make_task, answer, awkward):
    fields = {
        "option_a": "x",
        "option_b": "y",
        "reference": "B",
        "correct_answers": ["x"],
        "incorrect_answers": ["y"],
        "answer_choice_0": "Unknown",
        "answer_choice_1": "x",
        "correct_label": 0,
        "stereotyped_idx": 1,
    }
    for task_type in TASK_TYPES:
        task = make_task(task_type, fields | OTHERS.get(task_type, {}), filters=("strip_whitespace",))
        for score in grade_sample(task, task.items[0], answer(awkward)):
            assert (score.value is None) == bool(score.reason)
            assert score.value is None or score.metric == "output_tokens" or 0 <= score.value <= 1


THOUGHT = "I can't help with that. The vacuole, so the answer is B."
FIELDS = {
    "option_a": "x", "option_b": "y", "reference": "B", "correct_answers": ["y"], "incorrect_answers": ["x"],
    "answer_choice_0": "Unknown", "answer_choice_1": "x", "correct_label": 0, "stereotyped_idx": 1,
}  # fmt: skip


def graded(make_task, task_type, response):
    task = make_task(task_type, FIELDS | OTHERS.get(task_type, {}), filters=("strip_whitespace",))
    return {score.metric: (score.value, score.reason) for score in grade_sample(task, task.items[0], response)}


@pytest.mark.parametrize("task_type", list(TASK_TYPES))
@pytest.mark.parametrize("said", ["B", "A", "I can't help with that.", "y and so on and on", "Here it is: 1. x 2. y"])
def test_every_grader_reads_what_follows_the_reasoning_and_nothing_else(make_task, answer, task_type, said):
    plain = graded(make_task, task_type, answer(said))
    assert graded(make_task, task_type, answer(f"<think>\n{THOUGHT}\n</think>\n\n{said}")) == plain
    assert graded(make_task, task_type, answer(said, reasoning=THOUGHT)) == plain
    assert graded(make_task, task_type, answer(f"{THOUGHT}</think>{said}", opened=True)) == plain
    assert graded(make_task, task_type, answer(f"{said}<|im_end|>\n<|im_start|>user\nB? I can't help.")) == plain


@pytest.mark.parametrize("task_type", list(TASK_TYPES))
@pytest.mark.parametrize(
    ("text", "more", "reason"),
    [
        (f"<think>{THOUGHT}", {"finish": "length"}, "cut inside the reasoning"),
        (THOUGHT, {"finish": "length", "opened": True}, "cut inside the reasoning"),
        ("", {"finish": "length", "reasoning": THOUGHT}, "cut inside the reasoning"),
        ("<|im_end|>", {}, "control tokens"),
        ("", {}, "empty"),
    ],
)
def test_what_is_no_answer_is_ungraded_by_every_grader_that_reads_it(make_task, answer, task_type, text, more, reason):
    logprobs = (-1.0, -2.0) if task_type in ("classification", "completion") else None
    for metric, (value, why) in graded(make_task, task_type, answer(text, choice_logprobs=logprobs, **more)).items():
        if metric.endswith("_p_right"):
            assert (value is None) == ("reasoning" in reason), metric
        elif task_type == "completion":
            assert value is None or "reasoning" not in reason, metric  # read right behind the prompt, as `*_p_right`
        elif metric == "output_tokens" or metric.endswith(("_logprob", "_margin")):
            assert value is not None, metric
        else:
            assert value is None, metric
            assert reason in why


def test_a_choice_in_json_is_read_by_the_tolerant_reader_and_is_a_format_failure(make_task, answer):
    found = graded(make_task, "classification", answer('```json\n{"reasoning": "A?", "answer": "B"}\n```'))
    assert found["choice_accuracy"][0] == 0
    assert found["choice_accuracy_rescored"][0] == found["choice_accuracy_format_failure"][0] == 1


def test_a_refusal_in_a_wrapper_is_one_and_code_keeps_its_code(make_task, answer):
    for form in ("```\n{}\n```", '{{"response": "{}"}}', "<answer>{}</answer>", "Here is my answer:\n```\n{}\n```"):
        said = form.format("I can't help with that.")
        assert graded(make_task, "safety_refusal", answer(said))["refusal_rate"][0] == 1, said
    task = make_task("code_generation", {"reference": "```python\nx = 1\n```"})
    code = {score.metric: score.value for score in grade_sample(task, task.items[0], answer("```python\nx = 1\n```"))}
    assert code["rouge_l"] == 1


def test_a_dialogue_that_a_creative_task_asks_for_is_read_whole(make_task, answer):
    text = "Deep in the wood they met.\nUser: and so it goes on\nAssistant: and so it goes on"
    assert graded(make_task, "creative_writing", answer(text))["repetition"][0] < 1
