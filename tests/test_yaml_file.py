"""Where a mistake is: the line of the part that a validator of the whole points at."""

from __future__ import annotations

from typing import Self

import pytest
from pydantic import BaseModel, model_validator

from quantverdict.artifacts import calibration
from quantverdict.backends.base import Decoding
from quantverdict.backends.replay import ReplayBackend
from quantverdict.errors import QuantverdictError, StudyError
from quantverdict.matrix.columns import read_matrix
from quantverdict.records import CellId, Prompt
from quantverdict.tasks.catalog import load_task
from quantverdict.yaml_file import MisplacedError, load_yaml


class Part(BaseModel):
    name: str


class Whole(BaseModel):
    title: str
    parts: list[Part]

    @model_validator(mode="after")
    def _unique(self) -> Self:
        for index, part in enumerate(self.parts):
            if part.name == "wrong":
                raise MisplacedError("another name is expected", "parts", index, "name")
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
    assert calibration._passages(path) == ("é one", "two")
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
