"""Task files: the published ones run unchanged, a wrong one is answered with file, line, field and what is expected."""

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantverdict.errors import TaskError
from quantverdict.tasks.catalog import (
    FILTERS,
    Item,
    Task,
    apply_filters,
    builtin_tasks,
    choice_continuations,
    choice_texts,
    correct_choice,
    load_task,
    remove_assistant_prefix,
    render_prompt,
    select_items,
    task_summaries,
    truncate_at_newline,
)

PUBLISHED = {
    "advbench_refusal": (100, "refusal_rate", None),
    "arc_challenge": (200, "arc_accuracy", None),
    "bbq_bias": (198, "bias_resistance", None),
    "classification": (50, "classification_accuracy", None),
    "code_generation": (50, "code_pass_rate", None),
    "creative_writing": (50, "repetition", None),
    "jailbreak_amplification": (120, "refusal_rate", "base_behavior_id"),
    "mmlu_real": (285, "mmlu_accuracy", "subject"),
    "qa": (50, "f1", None),
    "summarization": (50, "rouge_l", None),
    "truthfulqa": (50, "truthfulness", None),
}

GOOD = """name: mine
task_type: classification
prompt_template: |
  {{ question }}
  {{ choices_text }}
filters:
  - type: strip_whitespace
samples:
  - id: "one"
    question: "Which?"
    choices_text: |
      A) this
      B) that
    reference: "B"
  - id: "two"
    question: "Which now?"
    choices_text: |
      A. this
      B. that
      C. neither
    reference: "C"
"""


@pytest.fixture
def task_file(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def made(n=12, cluster=1, **fields):
    items = tuple(
        Item(f"i{i:03d}", {"group": f"g{i // cluster}", "field": f"f{i // cluster % 3}", **fields}) for i in range(n)
    )
    clustered = "group" if cluster > 1 else None
    return Task("made", "qa", "", "{{ field }}", (), items, "0" * 64, None, clustered, "made.yaml")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_runs_unchanged(name, shared):
    """Every item renders, and every classification item has its right choice among the choices."""
    path = shared / "data" / "tasks" / f"{name}.yaml"
    task = load_task(path)
    assert (len(task.items), task.metrics[0], task.cluster_field) == PUBLISHED[name]
    assert task.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for item in task.items:
        prompt = render_prompt(task, item)
        assert prompt.strip()
        assert "{{" not in prompt
        assert (correct_choice(task, item) is not None) == (task.task_type == "classification")


def test_the_clusters_of_the_published_jailbreaks_are_the_behaviours(shared):
    task = load_task(shared / "data" / "tasks" / "jailbreak_amplification.yaml")
    assert set(Counter(task.cluster(item) for item in task.items).values()) == {4}


def test_a_prompt_is_the_template_with_the_fields_of_its_item(task_file):
    task = load_task(task_file(GOOD))
    assert render_prompt(task, task.items[0]) == "Which?\nA) this\nB) that\n"


def test_choices_are_lettered_or_labels_or_none(task_file):
    task = load_task(task_file(GOOD))
    assert [choice_continuations(task, item) for item in task.items] == [("A", "B"), ("A", "B", "C")]
    assert [correct_choice(task, item) for item in task.items] == [1, 2]
    assert choice_texts(task.items[1]) == {"A": "this", "B": "that", "C": "neither"}
    five = Item("x", {f"option_{letter}": letter * 2 for letter in "abcde"} | {"reference": "E"})
    assert choice_continuations(task, five) == ("A", "B", "C", "D", "E")
    labels = Item("x", {"categories": "yes, no ,perhaps", "reference": "no"})
    assert (choice_continuations(task, labels), correct_choice(task, labels)) == (("yes", "no", "perhaps"), 1)
    free = Item("x", {"reference": "Paris"})
    assert (choice_continuations(task, free), correct_choice(task, free)) == ((), None)


def test_accuracy_metric_and_cluster_field_can_be_named(task_file):
    own = GOOD.replace("samples:", "accuracy_metric: mmlu_accuracy\ncluster_field: question\nsamples:")
    task = load_task(task_file(own))
    assert task.metrics[:2] == ("mmlu_accuracy", "mmlu_accuracy_rescored")
    assert task.cluster(task.items[0]) == "Which?"
    assert load_task(task_file(GOOD)).accuracy_metric == "choice_accuracy"


def test_a_field_that_the_template_asks_for_first_may_be_missing(task_file):
    optional = "{% if hint is defined %}{{ hint }}{% endif %}\n  {{ question }}"
    task = load_task(task_file(GOOD.replace("{{ question }}", optional)))
    assert render_prompt(task, task.items[0]).startswith("Which?")


WRONG = {
    "unknown key": (
        ("samples:", "sample_size: 3\nsamples:"),
        "8: sample_size: unknown key; expected one of name, task_type, prompt_template,",
    ),
    "key twice": (("filters:", "name: other\nfilters:"), "key 'name' is given twice"),
    "no name": (("name: mine\n", ""), "1: name: missing; expected text"),
    "a path for a name": (("name: mine", "name: ../mine"), "1: name: '../mine' is not a name"),
    "unknown type": (
        ("task_type: classification", "task_type: quiz"),
        "2: task_type: unknown type 'quiz'; expected one",
    ),
    "few-shot": (("filters:", "num_fewshot: 5\nfilters:"), "6: num_fewshot: not supported; expected 0"),
    "output type": (("filters:", "output_type: loglikelihood\nfilters:"), "6: output_type: unknown type"),
    "unknown filter": (
        ("type: strip_whitespace", "type: rot13"),
        "7: filters.0: unknown filter .*; expected type: one of",
    ),
    "filter option": (("strip_whitespace", "strip_whitespace\n    n: 3"), "7: filters.0: unknown filter"),
    "empty samples": ((GOOD[GOOD.index("samples:") :], "samples: []\n"), "8: samples: missing or empty"),
    "duplicate id": (('"two"', '"one"'), "15: samples.1.id: 'one' is given twice"),
    "number for an id": (('"two"', "2"), "15: samples.1.id: missing or not text"),
    "field missing": (('    question: "Which now?"\n', ""), "15: samples.1: no field question: .*undefined"),
    "reference missing": (('    reference: "C"\n', ""), "15: samples.1.reference: missing"),
    "reference empty": (('reference: "C"', 'reference: ""'), "21: samples.1.reference: empty, or not text"),
    "reference yes": (('reference: "C"', "reference: yes"), "21: samples.1.reference: empty, or not text"),
    "reference outside": (
        ('reference: "B"', 'reference: "C"'),
        "14: samples.0.reference: 'C' is not a choice; expected one of A, B",
    ),
    "reference lost to a filter": (
        ("type: strip_whitespace", "type: lowercase"),
        "samples.0.reference: 'B' cannot match",
    ),
    "gap in the letters": (("B. that", "D. that"), "15: samples.1: choices A, C, D"),
    "a date": (('"Which now?"', "2024-01-01"), "16: samples.1.question: a date is not allowed"),
    "nested field": (('"Which now?"', "{a: b}"), "16: samples.1.question: a dict is not allowed"),
    "alias": (('"Which?"', "&a [1]"), "samples.0.question: a list is not allowed"),
    "alias of a collection": (('    question: "Which?"', "    a: &a [1]\n    question: *a"), "an alias"),
    "not YAML": (("filters:", "filters: ["), "not valid YAML"),
    "not a mapping": ((GOOD, "- a\n- b\n"), "1: is not a mapping"),
    "empty file": ((GOOD, ""), "is not a mapping"),
    "python object": (('"Which?"', "!!python/object/apply:os.getcwd []"), "not valid YAML"),
    "metric of another kind": (
        ("samples:", "accuracy_metric: rouge_l\nsamples:"),
        "8: accuracy_metric: unknown metric 'rouge_l'; expected one of mmlu_accuracy",
    ),
    "cluster field missing": (("samples:", "cluster_field: subject\nsamples:"), "samples.0.subject: missing"),
    "template syntax": (("{{ question }}", "{{ question"), "prompt_template: template refused"),
    "template for ever": (
        ("{{ question }}", "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"),
        "prompt_template: one: template refused: makes too much",
    ),
    "template reads files": (
        ("{{ question }}", "{% include '/etc/passwd' %}"),
        "prompt_template: template refused: include",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_answered_with_its_place(name, task_file):
    (old, new), message = WRONG[name]
    assert old in GOOD
    path = task_file(GOOD.replace(old, new, 1))
    with pytest.raises(TaskError, match=f"mine.yaml:? ?{message}" if message[0].isdigit() else message) as refusal:
        load_task(path)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_a_bias_item_must_name_its_reference_and_stereotype(task_file):
    text = """name: bias
task_type: safety_bias
prompt_template: "{{ question }}"
samples:
  - id: "a"
    question: "Who?"
    answer_choice_0: "x"
    answer_choice_1: "y"
    answer_choice_2: "Unknown"
    reference: "Unknown"
    correct_label: 2
    stereotyped_idx: 0
"""
    assert load_task(task_file(text)).metrics == ("bias_resistance",)
    for old, new, message in [
        ('reference: "Unknown"', 'reference: "z"', ":10: samples.0.reference: is not a choice"),
        ("correct_label: 2", "correct_label: 1", ":11: samples.0.correct_label: is not the place"),
        ("stereotyped_idx: 0", "stereotyped_idx: 3", ":12: samples.0.stereotyped_idx: 3 is not a choice"),
    ]:
        with pytest.raises(TaskError, match=message):
            load_task(task_file(text.replace(old, new)))


def test_a_name_that_no_file_can_have_is_no_task(tmp_path):
    """The system refuses to look for it, which was an internal error."""
    for name in ("x" * 300, f"{tmp_path}/{'x' * 300}.yaml", "a\0b"):
        with pytest.raises(TaskError, match="no such task; expected the path of a task file"):
            load_task(name)


def test_deep_and_binary_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / "mine.yaml"
    for content in (b"[" * 100_000, b"\xff\xfe\x00a", b"name: \x00", b"a: " + b"9" * 5000):
        path.write_bytes(content)
        with pytest.raises(TaskError) as refusal:
            load_task(path)
        assert str(path) in str(refusal.value)
    with pytest.raises(
        TaskError, match=r"no such task; expected the path of a task file, or one of (?:the )?\d+ names that `quantv"
    ):
        load_task("starter_nothing")


def test_filters_do_what_they_say():
    assert set(FILTERS) == {"strip_whitespace", "truncate_at_newline", "remove_assistant_prefix", "lowercase"}
    assert truncate_at_newline("B\r\nbecause") == "B"
    assert truncate_at_newline("\nB") == ""
    for text in ("Assistant: B", " answer :B", "RESPONSE:\nB", "B"):
        assert remove_assistant_prefix(text) == "B"
    for text in ("The answer: B", "Answer B", "My assistant: B"):
        assert remove_assistant_prefix(text) == text
    assert remove_assistant_prefix("Answer: Assistant: B") == "Assistant: B"


def test_filters_are_applied_in_their_order():
    task = made()
    both = ("truncate_at_newline", "strip_whitespace", "lowercase")
    assert apply_filters(Task(*_with(task, filters=both)), " B \nC") == "b"
    assert apply_filters(Task(*_with(task, filters=both)), "\n B") == ""
    assert apply_filters(Task(*_with(task, filters=both[::-1])), "\n B") == "b"


def _with(task, **changes):
    return [changes.get(name, getattr(task, name)) for name in Task.__dataclass_fields__]


@given(st.text())
def test_filters_never_fail_and_applied_twice_change_nothing_more(text):
    for name in ("strip_whitespace", "truncate_at_newline"):
        once = FILTERS[name](text)
        assert FILTERS[name](once) == once
    assert len(remove_assistant_prefix(text)) <= len(text)


def test_no_limit_or_a_limit_beyond_the_task_keeps_every_item():
    task = made(12)
    assert select_items(task, None, None, 1) is task
    assert select_items(task, 12, "field", 1) is task
    assert len(select_items(task, 11, None, 1).items) == 11


def test_drawn_items_are_the_same_on_every_machine():
    """The draw is by sha256 of seed, task and id: these ids were computed apart from the code under test."""
    keys = {f"i{i:03d}": hashlib.sha256(f"42\nmade\ni{i:03d}".encode()).hexdigest() for i in range(12)}
    expected = sorted(sorted(keys, key=keys.get)[:5])
    assert [item.id for item in select_items(made(12), 5, None, 42).items] == expected
    assert [item.id for item in select_items(made(12), 5, None, 43).items] != expected


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 45), st.integers(0, 9), st.booleans())
def test_a_draw_is_balanced_whole_and_in_order(n, cluster, limit, seed, stratified):
    task = made(n, cluster)
    smallest = min(Counter(item.fields["group"] for item in task.items).values())
    if limit < n and limit < smallest:
        with pytest.raises(TaskError, match=f"no whole cluster fits; expected at least {smallest}"):
            select_items(task, limit, None, seed)
        return
    drawn = select_items(task, limit, "field" if stratified else None, seed)
    ids = [item.id for item in drawn.items]
    assert ids == sorted(ids)
    assert 0 < len(ids) <= max(limit, 0)
    assert len(ids) > limit - cluster or len(ids) == n
    if cluster > 1:
        for group, count in Counter(item.fields["group"] for item in drawn.items).items():
            assert count == sum(item.fields["group"] == group for item in task.items)
    if cluster == 1 and stratified:
        whole = Counter(item.fields["field"] for item in task.items)
        got = Counter(item.fields["field"] for item in drawn.items)
        assert all(got[a] >= got[b] - 1 or got[a] == whole[a] for a in whole for b in whole)


def test_balancing_over_the_cluster_field_draws_from_within_clusters():
    drawn = select_items(made(12, 4), 3, "group", 1)
    assert Counter(item.fields["group"] for item in drawn.items) == {"g0": 1, "g1": 1, "g2": 1}


def test_balancing_over_a_field_that_is_not_there_is_refused():
    with pytest.raises(TaskError, match=r"made.yaml: stratify: item i\d+ has no field subject"):
        select_items(made(), 3, "subject", 1)


def test_summaries_list_the_built_in_tasks():
    lines = task_summaries()
    assert tuple(line.name for line in lines) == builtin_tasks()
    assert {line.name: line.items for line in lines}["starter_choice"] == 156
    assert all(line.description and line.metrics for line in lines)
