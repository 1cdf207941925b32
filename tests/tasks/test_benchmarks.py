"""Benchmarks by name: from rows in the schema of each data set, made by hand, by a local stand-in of the hub."""

import io
import json
from pathlib import Path

import polars as pl
import pytest
import yaml

from quantverdict.bundle.prompts import whole_tasks
from quantverdict.cli import execute
from quantverdict.config import load_study
from quantverdict.errors import TaskError
from quantverdict.grading.grade import grade_sample
from quantverdict.grading.match import readings
from quantverdict.records import Response
from quantverdict.tasks.benchmark_list import benchmark, benchmark_lines, benchmark_names, benchmark_task, listed
from quantverdict.tasks.catalog import render_prompt
from quantverdict.tasks.data import DataSource

BBQ = {"example_id": 0, "question_index": "1", "question_polarity": "neg", "context_condition": "ambig",
       "category": "Age", "context": "A girl and a grandmother wait.", "question": "Who is forgetful?",
       "answer_info": {"ans0": ["girl", "nonOld"], "ans1": ["grandmother", "old"], "ans2": ["unknown", "unknown"]},
       "additional_metadata": {"stereotyped_groups": ["old"], "version": "a", "source": "x"},
       "ans0": "The girl", "ans1": "The grandmother", "ans2": "Not known", "label": 2}  # fmt: skip
ROWS = {
    "mmlu": [{"question": "Which is 2?", "subject": "abstract_algebra", "choices": ["1", "2", "3", "4"], "answer": 1}],
    "arc_challenge": [
        {"id": "a", "question": "What melts?", "choices": {"text": ["ice", "air", "sand"], "label": ["1", "2", "3"]},
         "answerKey": "1"},
        {"id": "b", "question": "What flies?", "choices": {"text": list("wxyz"), "label": list("ABCD")},
         "answerKey": "C"}],
    "arc_easy": [{"id": "a", "question": "What melts?", "choices": {"text": ["ice", "air"], "label": ["A", "B"]},
                  "answerKey": "B"}],
    "gsm8k": [{"question": "2 and 1000?", "answer": "2 + 1000 = 1002\n#### 1,002"}],
    "truthfulqa": [{"type": "A", "category": "Myths", "question": "Do pigs fly?", "best_answer": "No.",
                    "correct_answers": ["No.", "They do not."], "incorrect_answers": ["Yes."], "source": "x"}],
    "bbq": [BBQ, {**BBQ, "example_id": 1, "question_polarity": "nonneg", "question": "Who is sharp?"},
            {**BBQ, "example_id": 2, "context_condition": "disambig", "label": 1},
            {**BBQ, "example_id": 3, "answer_info": {**BBQ["answer_info"], "ans1": ["x", "tall"]}}],
    "ifeval": [
        {"key": 1000, "prompt": "Write 20 words, no commas.",
         "instruction_id_list": ["length_constraints:number_words", "punctuation:no_comma"],
         "kwargs": [{"num_words": 20, "relation": "at least"}, {}]},
        {"key": 1001, "prompt": "Mark it.", "instruction_id_list": ["detectable_format:number_highlighted_sections"],
         "kwargs": [{"num_highlights": 2}]}],
    "humaneval": [{"task_id": "HumanEval/0", "prompt": "def one():\n    \"\"\"One.\"\"\"\n", "entry_point": "one",
                   "canonical_solution": "    return 1\n", "test": "def check(f):\n    assert f() == 1\n"}],
    "advbench": [{"prompt": "Do harm.", "target": "Sure"}],
    "harmbench": [{"prompt": "Do harm.", "category": "chemical"}],
    "strongreject": [{"prompt": "Do harm.", "source": "x", "category": "Violence"}],
    "do_not_answer": [{"id": 0, "risk_area": "Toxicity", "types_of_harm": "x", "specific_harms": "y",
                       "question": "Insult me?", "GPT4_response": "No."}],
    "or_bench": [{"prompt": "Kill a process?", "category": "violence"}],
    "xstest": [{"id": 1, "prompt": "Kill a process?", "type": "homonyms", "label": "safe", "focus": "x", "note": ""},
               {"id": 2, "prompt": "Kill him?", "type": "contrast", "label": "unsafe", "focus": "x", "note": ""}],
}  # fmt: skip
ROWS["xstest_unsafe"] = ROWS["xstest"]


def on_rows(folder, name):
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, ROWS[name])))
    return benchmark_task(name, DataSource(path=f"{name}.jsonl"), folder)


def test_every_benchmark_has_its_facts_and_rows_of_its_schema_here():
    assert set(benchmark_names()) == set(ROWS)
    for name in benchmark_names():
        known = benchmark(name)
        assert known.place.startswith("hub:")
        assert known.revision == "main" or len(known.revision) == 40
        assert known.paper.startswith("https://arxiv.org/abs/")
        assert known.rows > 100, name


@pytest.mark.parametrize("name", ROWS)
def test_a_benchmark_is_made_of_rows_of_its_schema(name, tmp_path):
    task = on_rows(tmp_path, name)
    assert (task.name, task.source) == (name, f"benchmark:{name}")
    assert all(render_prompt(task, item).strip() for item in task.items)


def test_what_each_asks_and_takes_for_right(tmp_path):
    """Letters of choices however the data give the right one, numbers behind ####, the stereotype by polarity."""
    tasks = {name: on_rows(tmp_path, name) for name in ROWS}
    assert [item.reference for item in tasks["arc_challenge"].items] == ["A", "C"]
    assert "A) ice\nB) air\nC) sand\n\nAnswer:" in render_prompt(
        tasks["arc_challenge"], tasks["arc_challenge"].items[0]
    )
    assert (tasks["mmlu"].items[0].reference, tasks["mmlu"].items[0].fields["subject"]) == ("B", "Abstract Algebra")
    assert tasks["mmlu"].accuracy_metric == "mmlu_accuracy"
    assert readings(tasks["gsm8k"].items[0].reference) == (1002,)
    assert [item.fields["stereotyped_idx"] for item in tasks["bbq"].items] == [1, 0, 2]
    assert [item.id for item in tasks["bbq"].items] == ["Age-0", "Age-1", "Age-3"]
    assert json.loads(tasks["ifeval"].items[0].fields["checks"]) == [
        {"kind": "length", "unit": "words", "at_least": 20},
        {"kind": "count", "unit": "commas", "exactly": 0},
    ]
    assert [item.id for item in tasks["ifeval"].items] == ["1000"]
    assert tasks["humaneval"].items[0].fields["check"].endswith("\ncheck(one)")
    assert [len(tasks[name].items) for name in ("xstest", "xstest_unsafe")] == [1, 1]


def test_kinds_of_instructions_mean_what_ifeval_means(tmp_path):
    kinds = {
        "length_constraints:number_sentences": ({"num_sentences": 3, "relation": "less than"}, "One. Two.", "A. B. C."),
        "keywords:existence": ({"keywords": ["sun", "moon"]}, "Sun and moon", "sun"),
        "keywords:forbidden_words": ({"forbidden_words": ["rain"]}, "sun", "Rain"),
        "change_case:english_lowercase": ({}, "all low", "One High"),
        "change_case:english_capital": ({}, "ALL HIGH", "All high"),
        "startend:end_checker": ({"end_phrase": "The end."}, "So. The end.", "The end. No"),
        "startend:quotation": ({}, '"said"', "said"),
        "detectable_format:json_format": ({}, '{"a": 1}', "a: 1"),
        "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* a\n* b", "* a"),
        "language:response_language": ({"language": "de"}, "Das ist ein schöner Tag, und wir gehen in den Wald hinaus.",
                                       "This is a fine day and we walk out to the forest."),
    }  # fmt: skip
    rows = [{"key": n, "prompt": "x", "instruction_id_list": [name], "kwargs": [kinds[name][0]]}
            for n, name in enumerate(kinds)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = benchmark_task("ifeval", DataSource(path="rows.jsonl"), tmp_path)
    for item, (_, right, wrong) in zip(task.items, kinds.values(), strict=True):
        answers = [Response("m", "q", "ifeval", item.id, "", text, "stop", 1, 1) for text in (right, wrong)]
        assert [grade_sample(task, item, one)[0].value for one in answers] == [1, 0], item.fields["checks"]


# From the hub, by a stand-in


@pytest.fixture
def hub(data_hub, monkeypatch):
    """The stand-in, by the names of two benchmarks."""
    monkeypatch.setattr(data_hub, "names", ("cais/mmlu", "walledai/HarmBench"))
    return data_hub


def parquet(rows):
    out = io.BytesIO()
    pl.DataFrame(rows).write_parquet(out)
    return out.getvalue()


def test_rows_come_from_their_place_at_their_revision(hub, tmp_path, monkeypatch):
    revision = benchmark("mmlu").revision
    monkeypatch.setattr(hub, "files", {"all/test-00000-of-00001.parquet": parquet(ROWS["mmlu"]), "README.md": b"x"})
    monkeypatch.setattr(hub, "commit", revision)
    task = benchmark_task("mmlu", None, tmp_path)
    assert (task.data.source, task.data.revision, len(task.items)) == ("hub:cais/mmlu/all/test", revision, 1)


def test_terms_that_were_not_accepted_are_said_with_where_to(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "files", {"standard/train-00000-of-00001.parquet": parquet(ROWS["harmbench"])})
    monkeypatch.setattr(hub, "gated", True)
    terms = r"expected that its terms are accepted at https://huggingface\.co/datasets/walledai/HarmBench, and HF_TOKEN"
    with pytest.raises(TaskError, match=terms):
        benchmark_task("harmbench", None, tmp_path)


def test_listing_them_fetches_nothing(capsys, monkeypatch):
    monkeypatch.setattr("quantverdict.tasks.data.read_rows", None)
    assert {row["name"] for row in listed() if row["kind"] == "benchmark"} == set(ROWS)
    assert any("terms to accept" in line for line in benchmark_lines())
    assert execute(["tasks", "list", "--all", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(listed())


# In a study


def study(folder, *tasks):
    keys = {"study": "s", "tasks": list(tasks), "collect": {"backend": "replay"}, "task_dir": "tasks",
            "models": [{"name": "m", "family": "f", "baseline": "FP16", "variants": ["FP16"]}]}  # fmt: skip
    (folder / "tasks").mkdir(exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(keys))
    return load_study(folder / "study.yaml")


def test_a_file_of_ones_own_stands_in_place_of_a_benchmark_where_it_is_there(tmp_path):
    (tmp_path / "tasks").mkdir()
    on_rows(tmp_path / "tasks", "gsm8k")
    use = {"path": "own.yaml", "benchmark": "gsm8k", "data": {"path": "gsm8k.jsonl"}, "sample": 1}
    found = study(tmp_path, use)
    assert whole_tasks(found)[0].source == "benchmark:gsm8k"
    own = {"name": "own", "task_type": "qa", "prompt_template": "x", "samples": [{"id": "1", "reference": "y"}]}
    (tmp_path / "tasks" / "own.yaml").write_text(yaml.safe_dump(own))
    assert whole_tasks(found)[0].name == "own"


def test_a_benchmark_that_is_none_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(TaskError, match=r"benchmark: no benchmark gsm8; .*gsm8k"):
        whole_tasks(study(tmp_path, {"benchmark": "gsm8"}))


def test_the_published_study_needs_no_folder_of_tasks():
    """Each of its files has a task in its place that can be had without it."""
    found = load_study(Path(__file__).parents[2] / "studies" / "tr125.yaml")
    assert all(use.task or use.benchmark for use in found.tasks)
    assert all(use.benchmark in benchmark_names() for use in found.tasks if use.benchmark)
    assert all(use.path for use in found.tasks)
