"""Whatever type a key of a task file has, the file is a task or one line says what is wrong."""

import copy
import hashlib
import json

import pytest

from quantverdict.errors import TaskError
from quantverdict.tasks.catalog import load_task, render_prompt
from quantverdict.tasks.taskfile import read_task

SAMPLES = {
    "classification": {"id": "a", "q": "Which?", "option_a": "x", "option_b": "y", "reference": "A"},
    "safety_bias": {
        "id": "a", "q": "Who?", "answer_choice_0": "x", "answer_choice_1": "y", "answer_choice_2": "z",
        "reference": "x", "stereotyped_idx": 1, "correct_label": 0,
    },
    "safety_truthfulness": {"id": "a", "q": "Is it?", "correct_answers": ["yes"], "incorrect_answers": ["no"]},
    "qa": {"id": "a", "q": "Who?", "reference": "Me"},
}  # fmt: skip
VALUES = [
    "", "x", 0, -1, 1.5, 10**30, True, None, [], ["a"], [["a"]], [None], {}, {"a": 1}, {"type": ["lowercase"]},
    [{"type": ["lowercase"]}], [{"type": {}}], [{"type": None}], [{"type": "lowercase", "x": 1}], [1], float("inf"),
    float("nan"), "A,A", ",", "\ud800",
]  # fmt: skip
KEYS = (
    "name", "task_type", "prompt_template", "description", "metric_group", "output_type", "num_fewshot", "filters",
    "samples", "samples_of", "accuracy_metric", "cluster_field",
)  # fmt: skip


def read(path, data):
    path.write_text(json.dumps(data))  # JSON is YAML
    return read_task(path)


@pytest.mark.parametrize("kind", SAMPLES)
def test_any_value_of_any_key_is_taken_or_refused_in_a_line(tmp_path, kind):
    whole = {"name": "mine", "task_type": kind, "prompt_template": "{{ q }}", "samples": [SAMPLES[kind]]}
    assert read(tmp_path / "t.yaml", whole).name == "mine"
    told = []
    for key in (*KEYS, *(("samples", 0, name) for name in SAMPLES[kind]), ("samples", 0), ("samples", 0, "categories")):
        path = (key,) if isinstance(key, str) else key
        for value in VALUES:
            data = copy.deepcopy(whole)
            part = data
            for step in path[:-1]:
                part = part[step]
            part[path[-1]] = value
            try:
                read(tmp_path / "t.yaml", data)
            except TaskError as error:
                told.append(str(error))
    assert len(told) > 100
    assert all(line.startswith(f"{tmp_path / 't.yaml'}") and len(line.splitlines()) == 1 for line in told)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("filters", [{"type": ["lowercase"]}], "filters.0: unknown filter"),
        ("filters", [{"type": "lowercse"}], "did you mean lowercase?"),
        ("cluster_field", ["a"], "cluster_field: is not text"),
        ("accuracy_metric", ["a"], "accuracy_metric: is not text"),
        ("accuracy_metric", "mmlu_acuracy", "did you mean mmlu_accuracy?"),
        ("task_type", "clasification", "did you mean classification?"),
        ("promt_template", "x", "did you mean prompt_template?"),
    ],
)
def test_a_wrong_value_is_named_with_the_nearest_right_one(tmp_path, key, value, words):
    sample = SAMPLES["classification"]
    whole = {"name": "mine", "task_type": "classification", "prompt_template": "{{ q }}", "samples": [sample]}
    with pytest.raises(TaskError) as caught:
        read(tmp_path / "t.yaml", {**whole, key: value})
    assert words in str(caught.value)


OWN_TEMPLATE = {"name": "with_examples", "task_type": "safety_refusal", "prompt_template": "Request: {{ instruction }}"}


def test_a_file_asks_the_items_of_a_built_in_task_in_its_own_template(tmp_path):
    task, source = (
        read(tmp_path / "t.yaml", OWN_TEMPLATE | {"samples_of": "starter_jailbreak"}),
        load_task("starter_jailbreak"),
    )
    assert (task.name, task.items) == ("with_examples", source.items)
    assert render_prompt(task, task.items[0]) == f"Request: {task.items[0].fields['instruction']}"
    assert [task.cluster(item) for item in task.items] == [source.cluster(item) for item in source.items]


def test_the_hash_of_such_a_task_follows_its_template_and_the_items(tmp_path):
    path = tmp_path / "t.yaml"
    first = read(path, OWN_TEMPLATE | {"samples_of": "starter_harmful"}).sha256
    assert read(path, OWN_TEMPLATE | {"samples_of": "starter_harmful"}).sha256 == first
    assert read(path, OWN_TEMPLATE | {"samples_of": "starter_harmful", "description": "x"}).sha256 != first
    own, source = hashlib.sha256(path.read_bytes()).hexdigest(), load_task("starter_harmful").sha256
    assert read(path, OWN_TEMPLATE | {"samples_of": "starter_harmful", "description": "x"}).sha256 == (
        hashlib.sha256((own + source).encode()).hexdigest()
    )


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"samples_of": "starter_harmfull"}, "no built-in task starter_harmfull; expected one of "),
        ({"samples_of": "t.yaml"}, "samples_of: no built-in task t.yaml"),
        ({"samples_of": "starter_harmful", "samples": [{"id": "a"}]}, "samples_of: stands beside samples"),
        ({}, "samples: missing or empty; expected a list of items, or samples_of: a built-in task"),
        ({"samples_of": "starter_choice"}, "samples.0: no field instruction"),
        ({"samples_of": "starter_harmful", "task_type": "safety_bias"}, "answer_choice_0: missing"),
        ({"samples_of": ""}, "samples_of: is not text"),
    ],
)
def test_samples_of_names_a_built_in_task_that_fits_the_type_and_the_template(tmp_path, more, words):
    with pytest.raises(TaskError) as caught:
        read(tmp_path / "t.yaml", OWN_TEMPLATE | more)
    assert words in str(caught.value)
