"""Tasks of lm-evaluation-harness: prompts and targets are that package's; what cannot be carried over is named."""

import json
import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from quantverdict.bundle.prompts import freeze_prompts, make_plan, whole_tasks
from quantverdict.config import load_study
from quantverdict.errors import StudyError, TaskError
from quantverdict.grading.grade import grade_sample
from quantverdict.records import Response
from quantverdict.tasks.catalog import choice_continuations, render_prompt
from quantverdict.tasks.data import DataSource
from quantverdict.tasks.lm_eval import MMLU_SUBJECTS, HarnessUse, find_config, lm_eval_task

DATA = Path(__file__).parents[1] / "data" / "lm_eval"
ROWS = json.loads((DATA / "rows.json").read_text())
PROMPTS = json.loads((DATA / "prompts.json").read_text())


def write(folder, name, rows):
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return DataSource(path=name)


def carried(folder, name, given=None, **changes):
    given = given or ROWS[name]
    use = HarnessUse(given["task"], write(folder, "rows.jsonl", given["rows"]),
                     write(folder, "train.jsonl", given["train"]) if "train" in given else None,
                     given["fewshot"], **changes)  # fmt: skip
    return lm_eval_task(use, folder)


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_and_targets_are_those_of_the_package(name, tmp_path):
    """Of a task whose inputs differ, each prompt with its choice is the package's input with what follows it."""
    task = carried(tmp_path, name)
    assert len(task.items) == len(PROMPTS[name])
    for item, wanted in zip(task.items, PROMPTS[name], strict=True):
        prompt, choices = render_prompt(task, item), choice_continuations(task, item)
        if isinstance(wanted["context"], list):
            whole = [f"{context} {wanted['target']}" for context in wanted["context"]]
            assert [f"{prompt}{choice}" for choice in choices] == whole
            assert item.reference == choices[wanted["text"]]
        elif wanted["choices"] is None:
            assert (prompt, item.reference) == (wanted["context"], wanted["target"])
        else:
            assert (prompt, list(choices)) == (wanted["context"], wanted["choices"])
            right = wanted["target"]
            assert item.reference == (choices[int(right)] if not isinstance(right, str) or right.isdigit() else right)


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed")
@pytest.mark.parametrize("name", ROWS)
def test_what_is_kept_is_what_the_installed_package_makes(name):
    given = ROWS[name]
    harness = runpy.run_path(str(DATA / "make.py"))["harness"]
    made = harness(given["task"], given["rows"], given.get("train"), given["fewshot"])
    assert json.loads(json.dumps(made)) == PROMPTS[name]


def graded(task, item, text, logprobs=None):
    response = Response("m", "q", task.name, item.id, "", text, "stop", 1, 1, None, logprobs)
    return {score.metric: score.value for score in grade_sample(task, item, response)}


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("So it is 7.\n#### 7", 1, 1),
        ("#### 7.\nQuestion: What is 1 + 1?\n#### 2", 1, 1),
        ("It is 7", 0, 1),
        ("7, no: 8", 0, 0),
        ("#### 8", 0, 0),
    ],
)
def test_sums_are_read_by_either_filter_up_to_the_stops(text, strict, flexible, tmp_path):
    tasks = [carried(tmp_path, "gsm8k", filter=name) for name in ("", "flexible-extract")]
    assert [graded(task, task.items[0], text)["exact_match_rate"] for task in tasks] == [strict, flexible]


def test_thousands_and_dollars_are_nothing_to_the_metric(tmp_path):
    task = carried(tmp_path, "gsm8k")
    assert graded(task, task.items[1], "#### 2000")["exact_match_rate"] == 1
    assert graded(task, task.items[1], "#### 2,000.")["exact_match_rate"] == 1


def test_choices_are_asked_behind_the_delimiter_of_the_harness_or_in_a_chat_as_they_are(tmp_path):
    task = carried(tmp_path, "boolq")
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
    assert freeze_prompts([task], None, {})[0].choices == (" no", " yes")
    assert freeze_prompts([task], template, {})[0].choices == ("no", "yes")
    assert graded(task, task.items[0], "x", (-2.0, -1.0)) == {"completion_accuracy": 1, "completion_accuracy_norm": 1}


def study(folder, *tasks):
    keys = {"study": "s", "tasks": list(tasks), "collect": {"backend": "replay"},
            "models": [{"name": "m", "family": "f", "baseline": "FP16", "variants": ["FP16"]}]}  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(keys))
    return load_study(folder / "study.yaml")


def test_a_study_names_one_with_a_sample_and_few_tokens(tmp_path):
    write(tmp_path, "rows.jsonl", ROWS["boolq"]["rows"])
    found = study(tmp_path, {"lm_eval": "boolq", "data": {"path": "rows.jsonl"}, "sample": 1})
    (task,) = whole_tasks(found)
    assert (task.name, task.source, task.data.source, found.tasks[0].limit) == (
        "boolq",
        "lm_eval:boolq",
        "rows.jsonl",
        1,
    )
    assert make_plan(found, [task], None, {}).decoding["boolq"].max_new_tokens == 8


# YAML of one's own

OWN = {
    "task": "own",
    "dataset_path": "own/rows",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "Q: {{q}}\nA:",
    "doc_to_target": "a",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12},
    "metric_list": [{"metric": "exact_match", "ignore_case": True}],
}


def own(folder, num_fewshot=None, rows=({"q": "x?", "a": "Yes"}, {"q": "y?", "a": "No"}), **keys):
    (folder / "own.yaml").write_text(yaml.safe_dump({**OWN, **keys}))
    return lm_eval_task(HarnessUse("own.yaml", write(folder, "rows.jsonl", rows), num_fewshot=num_fewshot), folder)


def test_a_yaml_file_becomes_a_task(tmp_path):
    task = own(tmp_path)
    assert (task.name, task.task_type, task.max_new_tokens) == ("own", "exact_match", 12)
    assert render_prompt(task, task.items[0]) == "Q: x?\nA:"
    assert [graded(task, task.items[0], text)["exact_match_rate"] for text in ("yes\nmore", "no")] == [1, 0]


def test_a_file_that_includes_another_overrides_it(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(OWN))
    (tmp_path / "child.yaml").write_text("include: base.yaml\ntask: child\ndoc_to_text: q\n")
    data = write(tmp_path, "rows.jsonl", [{"q": "x?", "a": "Yes"}])
    task = lm_eval_task(HarnessUse("child.yaml", data), tmp_path)
    assert (task.name, render_prompt(task, task.items[0])) == ("child", "x?")
    (tmp_path / "base.yaml").write_text("include: child.yaml\n")
    with pytest.raises(TaskError, match=r"include: includes itself"):
        lm_eval_task(HarnessUse("child.yaml", data), tmp_path)


def test_a_row_is_no_example_of_itself(tmp_path):
    """Examples from the split that is asked: drawn one more, and the row itself left out."""
    rows = [{"q": f"{n}?", "a": str(n)} for n in range(4)]
    task = own(tmp_path, num_fewshot=3, rows=rows)
    for item in task.items:
        assert render_prompt(task, item).count(f"Q: {item.id}?") == 1


def test_a_group_is_one_task_whose_items_say_whose_they_are(tmp_path):
    (tmp_path / "one.yaml").write_text(yaml.safe_dump({**OWN, "task": "one"}))
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({**OWN, "task": "two"}))
    (tmp_path / "both.yaml").write_text(yaml.safe_dump({"group": "both", "task": ["one.yaml", "two.yaml"]}))
    data = write(tmp_path, "rows.jsonl", [{"q": "x?", "a": "Yes"}])
    task = lm_eval_task(HarnessUse("both.yaml", data), tmp_path)
    assert [(item.id, item.fields["subtask"]) for item in task.items] == [("one/0", "one"), ("two/0", "two")]
    assert find_config("mmlu", tmp_path)[1]["task"] == [f"mmlu_{name}" for name in MMLU_SUBJECTS]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"output_type": "loglikelihood_rolling"}, r"output_type: own: loglikelihood_rolling cannot be carried over"),
        ({"process_results": "x"}, r"own.yaml: process_results: own: cannot be carried over"),
        ({"unsafe_code": True}, r"unsafe_code: own: cannot be carried over"),
        ({"metric_list": [{"metric": "bleu"}]}, r"metric_list: own: the metric bleu cannot be carried over"),
        ({"filter_list": [{"name": "a", "filter": [{"function": "majority_vote"}]}]},
         r"filter_list: own: the filter majority_vote cannot be carried over"),
        ({"repeats": 4}, r"repeats: own: several answers to a prompt"),
        ({"fewshot_config": {"sampler": "balanced"}, "num_fewshot": 1}, r"the sampler balanced cannot be carried over"),
        ({"fewshot_config": {"samples": []}}, r"fewshot_config\.samples: own: cannot be carried over"),
        ({"num_fewshot": 2}, r"num_fewshot: own: 2 examples of 2 rows"),
        ({"test_split": None}, r"test_split: own: names no split"),
        ({"doc_to_text": None}, r"doc_to_text: own: missing"),
        ({"doc_to_text": "{{ nothing }}"}, r"lm_eval:own: doc_to_text: .*nothing"),
        ({"doc_to_text": "{{ ''.__class__ }}"}, r"lm_eval:own: doc_to_text: template refused"),
        ({"output_type": "multiple_choice", "metric_list": []}, r"doc_to_choice: own: missing"),
        ({"output_type": "multiple_choice", "metric_list": [], "doc_to_choice": "{{ q }}"}, r"is no list of choices"),
        ({"output_type": "multiple_choice", "metric_list": [], "doc_to_choice": ["a", "b"]}, r"'Yes' is none of 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_carried_over_is_named(tmp_path, keys, told):
    with pytest.raises(TaskError, match=told):
        own(tmp_path, **keys)


def test_a_python_function_runs_only_with_the_package(tmp_path, monkeypatch):
    (tmp_path / "utils.py").write_text("def text(doc):\n    return 'Said: ' + doc['q']\n")
    plain = {key: value for key, value in OWN.items() if key != "doc_to_text"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(plain) + "doc_to_text: !function utils.text\n")
    data = write(tmp_path, "rows.jsonl", [{"q": "x?", "a": "Yes"}])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TaskError, match=r"doc_to_text: own: a Python function \(utils\.text\) cannot be carried over"):
        lm_eval_task(HarnessUse("own.yaml", data), tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: find_spec("json"))
    task = lm_eval_task(HarnessUse("own.yaml", data), tmp_path)
    assert render_prompt(task, task.items[0]) == "Said: x?"


def test_a_name_that_is_none_has_the_nearest_beside_it(tmp_path):
    with pytest.raises(TaskError, match=r"no task gsm8 of lm-evaluation-harness; .*gsm8k"):
        lm_eval_task(HarnessUse("gsm8"), tmp_path)
    (tmp_path / "bad.yaml").write_text("[1")
    with pytest.raises(TaskError, match=r"bad\.yaml: cannot be read"):
        lm_eval_task(HarnessUse("bad.yaml"), tmp_path)


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ({"lm_eval": "boolq", "task": "starter_qa"}, "exactly one of task, path, benchmark, lm_eval"),
        ({"task": "starter_qa", "num_fewshot": 2}, "num_fewshot beside lm_eval alone"),
        ({"benchmark": "gsm8k", "filter": "x"}, "filter beside lm_eval alone"),
        ({"path": "x.yaml", "data": {"path": "y"}}, "data beside lm_eval or benchmark alone"),
        ({"lm_eval": "boolq", "data": {"path": "y", "hub": "a/b"}}, "exactly one of path, hub, package"),
    ],
)
def test_a_study_that_says_it_wrongly_is_refused(tmp_path, task, told):
    with pytest.raises(StudyError, match=told):
        study(tmp_path, task)
