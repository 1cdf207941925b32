"""Prompts are rendered once and planned from their texts alone."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantverdict.bundle.prompts import (
    PromptParity,
    freeze_prompts,
    make_plan,
    plan_batches,
    prompt_lines,
    prompt_parity,
    read_prompts,
    study_tasks,
)
from quantverdict.errors import StudyError, TaskError
from quantverdict.records import Prompt, Response
from quantverdict.tasks.catalog import Item, Task

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}{{ eos_token }}"
)


@pytest.fixture
def task():
    items = tuple(Item(f"q{number}", {"question": f"What is {number}?", "reference": "x"}) for number in range(3))
    return Task("quiz", "qa", "", "Q: {{ question }}", (), items, "0" * 64, None, None, "quiz.yaml")


def test_a_prompt_is_the_users_turn_in_the_models_template(task):
    (first, *_) = freeze_prompts([task], TEMPLATE, {"bos": "<s>", "eos": "</s>"})
    assert (first.task, first.sample_id, first.text) == ("quiz", "q0", "Q: What is 0?")
    assert first.chat == "<s><user>Q: What is 0?<bot></s>"
    assert first.sha256 == hashlib.sha256(first.chat.encode()).hexdigest()


def test_without_a_template_the_text_is_asked(task):
    (first, *_) = freeze_prompts([task], None, {})
    assert (first.chat, first.sha256) == (None, hashlib.sha256(b"Q: What is 0?").hexdigest())


def test_frozen_prompts_are_read_back_as_they_were(task, tmp_path):
    prompts = freeze_prompts([task], TEMPLATE, {"bos": "\ud800", "eos": "ü"})
    path = tmp_path / "p.jsonl"
    path.write_text(prompt_lines(prompts), encoding="utf-8")
    assert read_prompts(path) == prompts


sizes = st.lists(st.tuples(st.sampled_from("abc"), st.text(max_size=12)), max_size=40)


def as_prompts(drawn):
    drawn = sorted(drawn, key=lambda pair: pair[0])
    return [Prompt(task, str(number), text, None, "h") for number, (task, text) in enumerate(drawn)]


@given(drawn=sizes, batch_size=st.integers(1, 9))
def test_every_prompt_is_in_one_batch_with_its_task_and_its_length(drawn, batch_size):
    prompts = as_prompts(drawn)
    batches = plan_batches(prompts, batch_size)
    assert sorted(index for batch in batches for index in batch) == list(range(len(prompts)))
    assert all(0 < len(batch) <= batch_size for batch in batches)
    assert all(len({prompts[index].task for index in batch}) == 1 for batch in batches)
    lengths = [(prompts[index].task, len(prompts[index].text)) for batch in batches for index in batch]
    assert lengths == sorted(lengths)


@given(drawn=sizes, batch_size=st.integers(1, 9))
def test_a_tasks_batches_do_not_depend_on_the_other_tasks(drawn, batch_size):
    prompts = as_prompts(drawn)
    alone = [prompt for prompt in prompts if prompt.task == "b"]
    together = [
        [prompts[i].sample_id for i in batch]
        for batch in plan_batches(prompts, batch_size)
        if prompts[batch[0]].task == "b"
    ]
    assert together == [[alone[i].sample_id for i in batch] for batch in plan_batches(alone, batch_size)]


TASK_FILE = """
name: {name}
description: d
task_type: qa
prompt_template: "{{{{ question }}}}"
filters: []
samples:
  - {{id: a, question: one, reference: x}}
  - {{id: b, question: two, reference: y}}
  - {{id: c, question: three, reference: z}}
"""


def test_a_study_asks_its_tasks_with_their_limits_and_lengths(tmp_path, kit):
    """Paths start at the study's folder and task_dir; a task's own token limit wins."""
    (tmp_path / "t").mkdir()
    for name in ("one", "two"):
        (tmp_path / "t" / f"{name}.yaml").write_text(TASK_FILE.format(name=name))
    uses = [{"path": "one.yaml", "limit": 2, "max_new_tokens": 9}, {"path": "two.yaml"}]
    study = kit.make_study(task_dir="t", tasks=uses, decoding={"max_new_tokens": 50}, collect={"batch_size": 2})
    study = study.model_copy(update={"file": str(tmp_path / "study.yaml")})
    tasks = study_tasks(study)
    plan = make_plan(study, tasks, None, {})
    assert [(task.name, len(task.items)) for task in tasks] == [("one", 2), ("two", 3)]
    assert {name: how.max_new_tokens for name, how in plan.decoding.items()} == {"one": 9, "two": 50}
    assert [len(batch) for batch in plan.batches] == [2, 2, 1]


PARTS = "{% for m in messages %}<{{ m.role }}>{{ m.content[0].text }}{% endfor %}<bot>"


def test_a_plan_says_how_its_template_takes_a_question(task, kit):
    """The same for every build of the model: its prompts are rendered once."""
    study = kit.make_study()
    plans = {given: make_plan(study, [task], given, {}, "tiny") for given in (TEMPLATE, PARTS, None)}
    assert [plans[given].content for given in (TEMPLATE, PARTS, None)] == ["text", "parts", None]
    assert plans[PARTS].prompts[0].chat == "<user>Q: What is 0?<bot>"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("{{ m.words }}", "quiz/q0: does not show the question; expected"),
        ("{{ m.content }}{{ m.content }}", "quiz/q0: shows the question 2 times"),
        ("{{ m.content.split('1')[0] }}", "quiz/q1: does not hold the question whole"),
    ],
)
def test_a_template_without_the_question_stops_before_anything_is_asked(task, kit, body, told):
    template = "{% for m in messages %}" + body + "{% endfor %}"
    with pytest.raises(TaskError, match=rf"^chat template, for tiny/{told}"):
        make_plan(kit.make_study(), [task], template, {}, "tiny")


def test_two_tasks_of_one_name_are_refused(tmp_path, kit):
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(TASK_FILE.format(name="same"))
    study = kit.make_study(tasks=[{"path": "one.yaml"}, {"path": "two.yaml"}])
    with pytest.raises(StudyError, match=r"study\.yaml: tasks\.1: same twice"):
        study_tasks(study.model_copy(update={"file": str(tmp_path / "study.yaml")}))


def response(sample, ids):
    return Response("m", "q", "t", sample, "h", "x", "stop", 1, 1, ids)


def test_parity_names_the_first_prompt_of_other_tokens():
    base = [response("a", "1"), response("b", "2"), response("c", None), response("d", "4")]
    other = [response("a", "1"), response("b", "9"), response("c", "3"), response("d", "8"), response("e", "5")]
    assert prompt_parity(base, other) == PromptParity(1, 2, 1, "t/b")
    assert prompt_parity(base, base) == PromptParity(3, 0, 1, None)
