"""Where a mistake is: the line of the part that a validator of the whole points at."""

from __future__ import annotations

from typing import Self

import pytest
from pydantic import BaseModel, model_validator

from quantverdict.artifacts import builds
from quantverdict.backends.base import Decoding
from quantverdict.backends.replay import ReplayBackend
from quantverdict.errors import InputError, QuantverdictError, StudyError
from quantverdict.matrix.columns import read_matrix
from quantverdict.policy import Policy
from quantverdict.records import CellId, Prompt
from quantverdict.stages.gate import load_gate
from quantverdict.tasks.catalog import load_task
from quantverdict.tasks.taskfile import read_task
from quantverdict.yaml_file import InvalidFieldError, load_yaml


class Part(BaseModel):
    name: str


class Whole(BaseModel):
    title: str
    parts: list[Part]

    @model_validator(mode="after")
    def _unique(self) -> Self:
        for index, part in enumerate(self.parts):
            if part.name == "wrong":
                raise InvalidFieldError("another name is expected", "parts", index, "name")
        if self.title == "wrong":
            raise ValueError("another title is expected")
        return self


class Outer(BaseModel):
    whole: Whole


def refused(tmp_path, text, model):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(StudyError) as caught:
        load_yaml(path, model)
    return str(caught.value).removeprefix(f"{path}:")


def test_a_mistake_in_a_part_names_its_line_and_key(tmp_path):
    text = "title: t\nparts:\n  - name: a\n  - name: wrong\n"
    assert refused(tmp_path, text, Whole).startswith("4: parts.1.name: ")
    nested = "# a whole inside another\nwhole:\n  title: t\n  parts:\n  - {name: a}\n  -\n    name: wrong\n"
    assert refused(tmp_path, nested, Outer).startswith("7: whole.parts.1.name: ")


def test_a_mistake_of_the_whole_names_where_the_whole_begins(tmp_path):
    text = "# title\nwhole:\n  title: wrong\n  parts: []\n"
    assert refused(tmp_path, text, Outer).startswith("2: whole: ")


MARKED = {"none": "utf-8", "a mark": "utf-8-sig", "PowerShell 5": "utf-16", "UTF-32": "utf-32"}
TASK = """\
name: quiz
description: d
task_type: qa
prompt_template: "{{ question }}"
filters: []
samples:
  - {id: a, question: é?, reference: x}
"""
MATRIX = """\
base_model,family,params_b,quant,bpw,is_baseline,rouge_l\r
m,f,1,FP16,16,1,0.5\r
m,f,1,Q8_0,8.5,0,0.5\r
"""


@pytest.mark.parametrize("encoding", MARKED.values(), ids=MARKED)
def test_a_file_is_read_whatever_mark_it_begins_with(tmp_path, encoding):
    """The files of users: a study, a task, a matrix, recorded answers, calibration text."""
    path = tmp_path / "x.yaml"
    path.write_bytes("title: é\r\nparts: []\r\n".encode(encoding))
    assert load_yaml(path, Whole).title == "é"
    path.write_bytes(TASK.encode(encoding))
    assert load_task(path).items[0].fields["question"] == "é?"
    path.write_bytes(MATRIX.encode(encoding))
    assert [row.quant for row in read_matrix(path)] == ["FP16", "Q8_0"]
    path.write_bytes("é one\r\n\r\ntwo".encode(encoding))
    assert builds._passages(path) == ("é one", "two")
    (tmp_path / "m__Q8_0.jsonl").write_bytes('{"task": "t", "sample_id": "a", "text": "é"}\r\n\r\n'.encode(encoding))
    replay = ReplayBackend(tmp_path, CellId("m", "Q8_0"))
    assert replay.complete([Prompt("t", "a", "x", None, "h")], Decoding())[0].text == "é"


def test_what_is_no_text_is_one_line(tmp_path):
    path = tmp_path / "m__Q8_0.jsonl"
    path.write_bytes(b"\xff\xfea\x00\x00\xd8")
    for read in (lambda: load_yaml(path, Whole), lambda: load_task(path), lambda: read_matrix(path)):
        with pytest.raises(QuantverdictError, match=r"m__Q8_0\.jsonl: cannot be read \(.*utf-16"):
            read()
    with pytest.raises(QuantverdictError, match=r"m__Q8_0\.jsonl: cannot be read \(.*utf-16"):
        ReplayBackend(tmp_path, CellId("m", "Q8_0"))


TAGS = [
    "!!timestamp x", "!!bool x", "!!int ''", "!!int '-'", "!!int 0x", "!!int 1:9x", "!!float ''", "!!float 1:x",
    "!!null [a]",
    "!!binary '*'", "!!timestamp [a]", "!!set [a]", "!!omap {a: 1}", "!!map [a]", "!!seq {a: b}", "!!str {a: b}", "=",
    "2001-99-99", "2001-01-01T99:99:99Z", "!!python/object/apply:os.system [echo]", "!foo bar", "*nothing", "&a [*a]",
    "&a {b: *a}", "{<<: 5}", "&a {<<: *a}", "9" * 5000, "0x" + "F" * 5000, "{1: 2, 1: 3}", "{[a]: 1}",
    "[" * 30 + "]" * 30,
    "{a: " * 30 + "}" * 30,
    "[" * 5000, "- " * 3000, '"\\ud800"', "\x01",
]  # fmt: skip


@pytest.mark.parametrize("value", TAGS, ids=range(len(TAGS)))
@pytest.mark.parametrize("load", [lambda path: load_yaml(path, Whole), read_task, lambda path: load_gate(str(path))])
def test_whatever_a_tag_or_an_alias_says_is_answered_in_a_line(tmp_path, value, load):
    """Of a study, a task and a gate; PyYAML raises seven kinds of exception for these, and libyaml ends the process."""
    path = tmp_path / "x.yaml"
    path.write_text(f"title: t\nparts: {value}\n")
    with pytest.raises(InputError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:")
    assert len(message.splitlines()) == 1
    assert len(message) < 600


@pytest.mark.parametrize("value", TAGS[:7])
def test_a_value_that_is_not_what_its_tag_says_is_named_with_its_line(tmp_path, value):
    assert refused(tmp_path, f"title: t\nparts:\n- {{name: {value}}}\n", Whole).startswith("3: not valid YAML: ")


def laughs(levels, each=10):
    first = f"a0: &a0 [{', '.join(['x'] * each)}]\n"
    return first + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * each)}]\n" for n in range(1, levels)
    )  # fmt: skip


def merges(levels, each=10):
    return "a0: &a0 {k: 1}\n" + "".join(
        f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * each)}]}}\n" for n in range(1, levels)
    )


@pytest.mark.parametrize("text", [laughs(10), merges(10), laughs(4, 40)], ids=["lists", "merges", "wide"])
def test_aliases_that_unfold_without_end_are_refused(tmp_path, text):
    assert "aliases unfold to over" in refused(tmp_path, text, Whole)


def test_an_alias_that_stands_for_many_values_is_not_written_out_in_the_message(tmp_path):
    assert len(refused(tmp_path, laughs(4) + "title: *a3\nparts: []\n", Whole)) < 300


def test_an_alias_and_a_merge_say_what_they_stand_for(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("title: t\nparts: [&one {name: a}, {<<: *one}, *one]\n")
    assert [part.name for part in load_yaml(path, Whole).parts] == ["a", "a", "a"]


def test_a_misspelt_key_is_answered_with_the_nearest(tmp_path):
    assert "(did you mean margins?)" in refused(tmp_path, "margin: {refusal_rate: 5}\n", Policy)


def test_a_number_that_yaml_takes_for_text_is_explained(tmp_path):
    assert "1.0e-6 for a number" in refused(tmp_path, "alpha: 1e-6\n", Policy)


@pytest.mark.parametrize(
    "value", ["http://user:hunter2@host/v1", "http://hunter2@host", f"https://u:hunter2{'x' * 90}@host"]
)
def test_a_login_in_what_was_given_is_not_said(tmp_path, value):
    """The address stands where a mapping should."""
    assert "hunter2" not in refused(tmp_path, f"title: t\nparts: ['{value}']\n", Whole)
    assert "hunter2" not in refused(tmp_path, f"title: ['{value}']\nparts: []\n", Whole)
