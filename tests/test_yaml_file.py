"""Where a mistake is: the line of the part that a validator of the whole points at."""

from __future__ import annotations

from typing import Self

import pytest
from pydantic import BaseModel, model_validator

from quantverdict.errors import StudyError
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
