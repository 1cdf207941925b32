"""Items from where people have them: files, patterns, a package, the hub; their fields, ids, samples and examples."""

import gzip
import importlib
import json
import re

import polars as pl
import pytest
import yaml

import quantverdict as qv
from quantverdict.cli import execute
from quantverdict.config import Study
from quantverdict.errors import BundleError, TaskError
from quantverdict.stages.run import check_data
from quantverdict.tasks.catalog import choice_continuations, load_task, render_prompt
from quantverdict.tasks.draft import task_schema

ROWS = [{"id": n, "Question text": f"What is {n} + {n}?", "sum": 2 * n, "kind": "even" if n % 2 else "odd",
         "choices": [str(2 * n), str(2 * n + 1), "none"], "right": 0} for n in range(20)]  # fmt: skip
HEAD = {"name": "sums", "task_type": "qa", "prompt_template": "{{ question }}"}
FIELDS = {"question": "Question text", "reference": "{{ sum }} apples"}


def write(folder, rows, name="rows.jsonl"):
    path = folder / name
    if name.endswith(".parquet"):
        pl.DataFrame(rows).write_parquet(path)
    elif name.endswith(".csv"):
        pl.DataFrame([{key: value for key, value in row.items() if key != "choices"} for row in rows]).write_csv(path)
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows))
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return path


def task(folder, **keys):
    file = folder / "task.yaml"
    given = HEAD | {"data": {"path": "rows.jsonl"}, "fields": FIELDS} | keys
    file.write_text(yaml.safe_dump({key: value for key, value in given.items() if value is not None}, sort_keys=False))
    return load_task(file)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.parquet", "rows.json"])
def test_every_format_gives_the_same_items_and_the_same_hash(name, tmp_path):
    """`{{ sum }}` of a CSV is text and of the others a number: both are written alike."""
    write(tmp_path, ROWS)
    first = task(tmp_path)
    write(tmp_path, ROWS, name)
    found = task(tmp_path, data={"path": name})
    assert [(item.id, dict(item.fields)) for item in found.items[:2]] == [
        ("0", {"question": "What is 0 + 0?", "reference": "0 apples"}),
        ("1", {"question": "What is 1 + 1?", "reference": "2 apples"}),
    ]
    assert (found.data.sha256, found.data.items, found.data.source) == (first.data.sha256, 20, name)


def test_a_pattern_takes_files_in_the_order_of_their_names(tmp_path):
    write(tmp_path, ROWS[10:], "part-2.jsonl")
    write(tmp_path, ROWS[:10], "part-1.jsonl")
    assert [item.id for item in task(tmp_path, data={"path": "part-*.jsonl"}).items] == [str(n) for n in range(20)]


def test_a_file_that_a_package_has_not_is_named(tmp_path):
    with pytest.raises(TaskError, match=r"quantverdict:tasks/nothing\.jsonl: data\.package: no such file"):
        task(tmp_path, data={"package": "quantverdict:tasks/nothing.jsonl"})
    with pytest.raises(TaskError, match=r"no_such_package_here"):
        task(tmp_path, data={"package": "no_such_package_here:a.jsonl"})


def test_a_package_gives_its_rows(tmp_path, monkeypatch):
    package = tmp_path / "qv_rows_of_a_package"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    write(package / "data", ROWS)
    monkeypatch.syspath_prepend(tmp_path)
    found = task(tmp_path, data={"package": "qv_rows_of_a_package:data/rows.jsonl"})
    assert (len(found.items), found.data.source) == (20, "qv_rows_of_a_package:data/rows.jsonl")


# Fields, ids, filters


def test_without_fields_every_plain_column_is_one(tmp_path):
    write(tmp_path, [{"question": "q", "reference": "r", "n": 1, "nested": {"a": 1}, "Not a name": 2, "none": None}])
    (item,) = task(tmp_path, fields=None).items
    assert dict(item.fields) == {"question": "q", "reference": "r", "n": 1}


def test_an_id_is_given_or_the_hash_of_the_fields(tmp_path):
    """It does not depend on the order of the rows, nor on columns that are no field; equal rows are told apart."""
    rows = [{"q": "a", "a": "x", "n": 1}, {"q": "b", "a": "y", "n": 2}, {"q": "a", "a": "x", "n": 3}]
    write(tmp_path, rows)
    fields = {"question": "q", "reference": "a"}
    found = [item.id for item in task(tmp_path, fields=fields).items]
    assert re.fullmatch(r"[0-9a-f]{16}", found[0])
    assert found[2] == f"{found[0]}-2"
    write(tmp_path, rows[::-1])
    assert sorted(item.id for item in task(tmp_path, fields=fields).items) == sorted(found)
    assert [item.id for item in task(tmp_path, fields=fields, id="row {{ n }}").items] == ["row 3", "row 2", "row 1"]


def test_a_nested_column_is_reached_by_a_dot_and_an_expression_sees_the_row(tmp_path):
    write(tmp_path, [{"id": "x", "a": {"b": " deep "}, "two words": "q"}])
    (item,) = task(tmp_path, fields={"question": "{{ row['two words'] }}!", "reference": "{{ a.b.strip() }}"}).items
    assert dict(item.fields) == {"question": "q!", "reference": "deep"}


def test_a_filter_leaves_the_rows_for_which_it_is_true(tmp_path):
    write(tmp_path, ROWS)
    assert len(task(tmp_path, filter="kind == 'odd' and sum > 3").items) == 9
    with pytest.raises(TaskError, match=r"task\.yaml: filter: the filter leaves none of 20 rows"):
        task(tmp_path, filter="sum < 0")


def test_expressions_run_in_the_sandbox(tmp_path):
    """What a template may not reach, an expression may not either; the row is named."""
    write(tmp_path, ROWS)
    for source in ("{{ ''.__class__.__mro__ }}", "{{ nothing }}", "{{ 1 / 0 }}", "{{ 'a' * 10**9 }}"):
        with pytest.raises(TaskError, match=r"rows\.jsonl:1: fields\.reference cannot be computed"):
            task(tmp_path, fields=FIELDS | {"reference": source})


def test_choices_become_letters_whichever_way_the_answer_is_given(tmp_path):
    """A list or columns; a place, a letter or a text; the form that ARC has."""
    for answer in (1, "1", "B", "b", "two"):
        write(tmp_path, [{"id": "a", "q": "Which?", "list": ["one", "two"], "answer": answer}])
        found = task(tmp_path, task_type="classification", fields={"question": "q"}, choices="list", answer="answer",
                     prompt_template="{{ question }} {{ option_a }} {{ option_b }}")  # fmt: skip
        assert found.items[0].reference == "B", answer
        assert choice_continuations(found, found.items[0]) == ("A", "B")
    write(tmp_path, [{"id": "a", "q": "Which?", "x": "one", "y": "two", "answer": 0,
                      "choices": {"text": ["one", "two"], "label": ["A", "B"]}}])  # fmt: skip
    for choices in (["x", "y"], "choices"):
        found = task(tmp_path, task_type="classification", fields={"question": "q"}, choices=choices, answer="answer")
        assert (found.items[0].fields["option_b"], found.items[0].reference) == ("two", "A")


# Samples and examples


def test_a_sample_is_drawn_by_seed_and_balanced_over_a_field(tmp_path):
    write(tmp_path, ROWS)
    fields = FIELDS | {"kind": "kind"}
    found = task(tmp_path, fields=fields, sample=8, stratify="kind")
    assert sorted(str(item.fields["kind"]) for item in found.items) == ["even"] * 4 + ["odd"] * 4
    ids = [item.id for item in found.items]
    assert ids == [item.id for item in task(tmp_path, fields=fields, sample=8, stratify="kind").items]
    assert ids != [item.id for item in task(tmp_path, fields=fields, sample=8, seed=1).items]
    assert found.data.items == 8


def test_worked_examples_stand_before_every_prompt_and_are_not_asked(tmp_path):
    write(tmp_path, ROWS)
    found = task(tmp_path, num_fewshot=2)
    first, second = render_prompt(found, found.items[0]), render_prompt(found, found.items[1])
    assert len(found.items) == 18
    *examples, asked = first.split("\n\n")
    assert asked == found.items[0].fields["question"]
    assert all(re.fullmatch(r"What is \d+ \+ \d+\? \d+ apples", one) for one in examples)
    assert not {one.rpartition("? ")[0] + "?" for one in examples} & {item.fields["question"] for item in found.items}
    assert second.split("\n\n")[:2] == examples
    assert render_prompt(task(tmp_path, num_fewshot=2, seed=3), found.items[0]) != first


def test_examples_come_from_other_files_where_those_are_named(tmp_path):
    write(tmp_path, ROWS)
    write(tmp_path, [{"id": "t", "Question text": "Train?", "sum": "Yes,", "kind": "", "choices": []}], "train.jsonl")
    found = task(tmp_path, num_fewshot=1, fewshot={"path": "train.jsonl"})
    assert len(found.items) == 20
    assert render_prompt(found, found.items[3]) == "Train? Yes, apples\n\nWhat is 3 + 3?"


def test_the_hash_of_a_task_is_of_its_file_and_of_what_was_used(tmp_path):
    write(tmp_path, ROWS)
    first = task(tmp_path, sample=5)
    write(tmp_path, [row | {"unused": 1} for row in ROWS])
    assert task(tmp_path, sample=5).sha256 == first.sha256  # a column that is no field changes nothing
    write(tmp_path, [row | {"sum": 0} for row in ROWS])
    assert task(tmp_path, sample=5).sha256 != first.sha256


class Meta:
    """What `check_data` needs of a bundle."""

    root = "b"

    def __init__(self):
        self.parts = {}

    def get_meta(self, key):
        return self.parts.get(key)

    def hold(self, **parts):
        self.parts |= parts


def test_a_data_set_that_changed_stops_a_run_that_is_gone_on_with(tmp_path):
    write(tmp_path, ROWS)
    bundle = Meta()
    check_data([task(tmp_path)], bundle)
    check_data([task(tmp_path)], bundle)
    assert bundle.parts["data"]["sums"]["items"] == 20
    write(tmp_path, ROWS[:-1])
    with pytest.raises(
        BundleError, match=r"the data of task sums changed .*: 20 items of rows\.jsonl .*, now 19 items"
    ):
        check_data([task(tmp_path)], bundle)


def test_a_run_on_a_data_set_is_gone_on_with_while_it_is_the_same(tmp_path):
    """From recorded answers to the decision, the record in the manifest; then another row, and the refusal by name."""
    write(tmp_path, ROWS)
    file = task(tmp_path).source
    (tmp_path / "recorded").mkdir()
    for quant in ("FP16", "Q4_K_M"):
        answers = [{"task": "sums", "sample_id": str(n), "text": f"{2 * n} apples"} for n in range(20)]
        (tmp_path / "recorded" / f"tiny__{quant}.jsonl").write_text("\n".join(map(json.dumps, answers)) + "\n")
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump({
        "study": "sums",
        "models": [{"name": "tiny", "family": "f", "baseline": "FP16", "variants": ["FP16", "Q4_K_M"]}],
        "collect": {"backend": "replay", "replay_dir": "recorded"}, "tasks": [{"path": file}],
        "policy": {"criteria": {"quality": {"metrics": ["rouge_l"], "demanded": True}}},
    }))  # fmt: skip
    bundle = qv.run(study, tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["data"]["sums"] == {"source": "rows.jsonl", "revision": "", "items": 20,
                                        "sha256": load_task(file).data.sha256}  # fmt: skip
    assert qv.run(study, tmp_path / "b").decision.document == bundle.decision.document
    assert qv.verify(bundle) == []
    write(tmp_path, [row | {"sum": row["sum"] + (row["id"] == 7)} for row in ROWS])
    with pytest.raises(BundleError, match=r"the data of task sums changed since this bundle was begun"):
        qv.run(study, tmp_path / "b")


# What is wrong is named


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"data": {"path": "nothing.jsonl"}}, r"nothing\.jsonl: data\.path: no such file"),
        ({"data": {"path": "no-*.jsonl"}}, r"no-\*\.jsonl: data\.path: no file has such a name"),
        ({"data": {}}, r"task\.yaml:4: data: does not say where the rows are; expected exactly one"),
        ({"data": {"path": "a", "hub": "b/c"}}, "exactly one of path, hub, package"),
        ({"data": {"path": "rows.jsonl", "split": "test"}}, "only beside hub"),
        ({"data": {"path": "rows.jsonl", "spilt": "x"}}, r"data\.spilt: unknown key; .*did you mean split"),
        ({"data": "rows.jsonl"}, r"task\.yaml:4: data: is 'rows\.jsonl'"),
        ({"fields": {"question": "Question"}}, r"rows\.jsonl:1: no column Question .*Question text"),
        ({"fields": {"question": "Question text"}}, r"rows\.jsonl:1: reference: missing"),
        ({"fields": {"1a": "sum"}}, r"rows\.jsonl:1: 1a: is not a field name"),
        ({"fields": FIELDS | {"reference": "{{ }}"}}, r"fields\.reference cannot be computed"),
        ({"fields": FIELDS | {"reference": "{{ '' }}"}}, r"rows\.jsonl:1: reference: empty, or not text"),
        ({"id": "kind"}, r"rows\.jsonl:3: id: 'odd' is given twice"),
        ({"id": "nothing"}, r"rows\.jsonl:1: no column nothing \(id\)"),
        ({"sample": 0}, r"task\.yaml:9: sample: is 0"),
        ({"sample": 3, "stratify": "nothing"}, "no field nothing"),
        ({"choices": "right"}, r"rows\.jsonl:1: right: 0 choices"),
        ({"choices": "choices", "answer": "kind"}, r"rows\.jsonl:1: the answer is 'odd'; expected a place from 0 to 2"),
        ({"num_fewshot": 20}, "num_fewshot: 20 examples of 20 rows"),
        ({"num_fewshot": -1}, "num_fewshot: not supported; expected a number from 0 to 100"),
        ({"num_fewshot": 1, "fewshot": {"path": "nothing.jsonl"}}, r"nothing\.jsonl: data\.path: no such file"),
        ({"samples": [{"id": "a"}]}, "data: stands beside samples"),
        ({"samples_of": "starter_qa"}, "samples_of: stands beside data"),
        ({"prompt_template": "{{ qestion }}"}, r"rows\.jsonl:1: .*no field qestion"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_by_its_key_or_by_its_row(keys, told, tmp_path):
    write(tmp_path, ROWS)
    with pytest.raises(TaskError, match=told) as caught:
        task(tmp_path, **keys)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "key", ["fields", "id", "choices", "answer", "filter", "sample", "stratify", "seed", "fewshot"]
)
def test_what_is_said_of_rows_stands_beside_data_alone(key, tmp_path):
    file = tmp_path / "t.yaml"
    content = HEAD | {"samples": [{"id": "a", "question": "q", "reference": "r"}], key: 1}
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(TaskError, match=f"{key}: stands without data"):
        load_task(file)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("rows.jsonl", b'{"id": 1}\nnonsense\n', r"rows\.jsonl:2: not valid JSON"),
        ("rows.jsonl", b"[1]\n", r"rows\.jsonl:1: not a JSON object"),
        ("rows.jsonl", b"", r"rows\.jsonl: has no rows"),
        ("rows.jsonl", b"\xff\xfe\x00", r"rows\.jsonl"),
        ("rows.jsonl.gz", b"plain", r"rows\.jsonl\.gz: cannot be read"),
        ("rows.csv", b"a,b\n1,2\n3\n", r"rows\.csv:3: 1 fields where 2 are expected"),
        ("rows.csv", b"a,a\n1,2\n", r"rows\.csv:1: a column is given twice"),
        ("rows.parquet", b"PAR1", r"rows\.parquet: cannot be read"),
        ("rows.json", b'{"a": 1}', r"rows\.json: is no list"),
        ("rows.json", b"[1]", r"rows\.json:1: not a JSON object"),
        ("rows.txt", b"a", r"rows\.txt: is of no format that is known"),
    ],
)
def test_a_file_that_is_broken_is_named_by_its_row(name, content, told, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError, match=told):
        task(tmp_path, data={"path": name})


# The hub: a stand-in on this machine that answers what the client asks


@pytest.fixture
def hub(data_hub, monkeypatch):
    text = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    files = {"main/test-00000-of-00001.jsonl": text, "main/train.jsonl": text[:100], "other/test.jsonl": b"{}\n"}
    monkeypatch.setattr(data_hub, "files", files | {"README.md": b"rows"})
    return data_hub


def test_a_data_set_of_the_hub_is_read_at_a_commit_that_is_recorded(hub, tmp_path):
    found = task(tmp_path, data={"hub": "own/rows", "config": "main", "split": "test"})
    assert (len(found.items), found.data.revision, found.data.source) == (20, "a" * 40, "hub:own/rows/main/test")
    with pytest.raises(TaskError, match=r"hub:own/rows: data\.files: has no file of main validation; .*test-00000"):
        task(tmp_path, data={"hub": "own/rows", "config": "main", "split": "validation"})
    by_name = task(tmp_path, data={"hub": "own/rows", "files": "main/test-*.jsonl"})
    assert by_name.data.sha256 == found.data.sha256


def test_a_commit_that_was_fetched_needs_no_network(hub, tmp_path, monkeypatch):
    constants = importlib.import_module("huggingface_hub.constants")
    pinned = {"hub": "own/rows", "config": "main", "split": "test", "revision": "a" * 40}
    first = task(tmp_path, data=pinned)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert task(tmp_path, data=pinned).data == first.data


def test_what_the_hub_refuses_is_said_in_a_line(hub, tmp_path, monkeypatch):
    with pytest.raises(TaskError, match=r"hub:own/nothing/main/test: cannot be had from the hub"):
        task(tmp_path, data={"hub": "own/nothing", "config": "main", "split": "test"})
    monkeypatch.setattr(hub, "gated", True)
    with pytest.raises(TaskError, match=r"cannot be had from the hub .*terms are accepted at .*own/rows, and HF_TOKEN"):
        task(tmp_path, data={"hub": "own/rows", "config": "main", "split": "test"})


# tasks new, and the schema


@pytest.mark.parametrize(
    ("name", "rows", "kind"),
    [
        (
            "q.csv",
            [{"id": "1", "question": "Why?", "answer": "So."}, {"id": "2", "question": "Who?", "answer": "Me."}],
            "qa",
        ),
        ("c.jsonl", [{"question": "Which?", "choices": ["a", "b"], "answer": 1}], "classification"),
        ("o.csv", [{"prompt": "Which?", "option_a": "x", "option_b": "y", "answer": "A"}], "classification"),
        ("t.parquet", [{"Text of it": "Say something."}, {"Text of it": "Say more."}], "creative_writing"),
    ],
)
def test_a_task_file_is_written_from_the_columns_of_a_table(name, rows, kind, tmp_path, capsys):
    write(tmp_path, rows, name)
    assert execute(["tasks", "new", str(tmp_path / name)]) == 0
    assert f"{kind}, {len(rows)} item{'' if len(rows) == 1 else 's'}" in capsys.readouterr().out
    found = load_task(tmp_path / name.replace(name.rpartition(".")[2], "yaml"))
    assert (found.task_type, len(found.items)) == (kind, len(rows))
    assert str(next(iter(rows[0].values() if kind != "qa" else [rows[0]["question"]]))) in render_prompt(
        found, found.items[0]
    )
    assert execute(["tasks", "new", str(tmp_path / name)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert execute(["tasks", "new", str(tmp_path / name), "--force", "--json"]) == 0


def test_a_table_that_cannot_be_read_writes_no_task(tmp_path, capsys):
    (tmp_path / "q.csv").write_text("a,b\n1\n")
    assert execute(["tasks", "new", str(tmp_path / "q.csv")]) == 2
    assert "q.csv:2: 1 fields where 2 are expected" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["q.csv"]


def test_the_schema_of_a_task_file_takes_what_is_read_and_refuses_what_is_not(tmp_path):
    schema = task_schema()
    assert all(key["description"] for key in schema["properties"].values())
    jsonschema = pytest.importorskip("jsonschema")
    write(tmp_path, ROWS)
    whole = HEAD | {"data": {"path": "rows.jsonl"}, "fields": FIELDS, "sample": 3, "choices": ["a"], "num_fewshot": 2}
    jsonschema.validate(whole, schema)
    for wrong in ({"data": {"pth": "x"}}, {"task_type": "riddle"}, {"samples": []}, {"unknown": 1}, {"sample": "3"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(whole | wrong, schema)


def test_a_study_names_such_a_task_like_any_other(tmp_path):
    """Through the study's own reader of tasks, with a limit drawn from the sample."""
    from quantverdict.bundle.prompts import study_tasks

    write(tmp_path, ROWS)
    task(tmp_path, sample=10)
    study = Study.model_validate({
        "study": "s", "task_dir": str(tmp_path), "tasks": [{"path": "task.yaml", "limit": 4}],
        "models": [{"name": "m", "family": "f", "params_b": 1, "baseline": "FP16",
                    "variants": [{"quant": "FP16"}, {"quant": "Q4_K_M"}]}],
        "collect": {"backend": "replay", "replay_dir": "r"}, "policy": "metric_rules",
    })  # fmt: skip
    (found,) = study_tasks(study)
    assert (len(found.items), found.data.items) == (4, 10)
