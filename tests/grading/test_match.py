"""Answers held against what is expected: equal, as a number, holding a text, of a pattern, JSON, the likeliest."""

import json
import re
from fractions import Fraction

import pytest

from quantverdict.errors import TaskError
from quantverdict.grading.grade import grade_sample
from quantverdict.grading.match import READ_CHARS, extracted, readings
from quantverdict.records import Response
from quantverdict.tasks.catalog import Item, Task
from quantverdict.tasks.taskfile import read_task


def graded(kind, text, logprobs=None, finish="stop", **fields):
    """Metric to value, by the way that answers go."""
    item = Item("1", fields)
    task = Task("t", kind, "", "{{ q }}", (), (item,), "", None, None, "t.yaml")
    response = Response("m", "q", "t", "1", "", text, finish, 1, 1, None, logprobs)
    return {score.metric: score.value for score in grade_sample(task, item, response)}


def value(*arguments, **fields):
    return next(iter(graded(*arguments, **fields).values()))


def problem(tmp_path, kind, **fields):
    keys = {"name": "t", "task_type": kind, "prompt_template": "q", "samples": [{"id": "1", **fields}]}
    (tmp_path / "t.yaml").write_text(json.dumps(keys))
    try:
        read_task(tmp_path / "t.yaml")
    except TaskError as error:
        return str(error)
    return None


# Equal


@pytest.mark.parametrize(
    ("text", "reading", "right"),
    [
        ("Lima", {}, 1),
        ("  Lima\n", {}, 1),
        ("lima", {}, 0),
        ("lima", {"ignore_case": True}, 1),
        ("Lima.", {"ignore_punctuation": True}, 1),
        ("Lima\n\nQ: next", {"until": ["\n\n", "Q:"]}, 1),
        ("It is Lima, not Cusco", {"pattern": "It is (\\w+)"}, 1),
        ("Cusco; Lima", {"pattern": "\\w+", "select": -1}, 1),
        ("Cusco; Lima", {"pattern": "\\w+"}, 0),
        ("Cusco; Lima", {"pattern": "\\w+", "select": 7}, 1),
        ("Lima", {"pattern": "#### (.*)"}, 0),
        ("[[Lima]]", {"ignore": ["\\[", "\\]"]}, 1),
    ],
)  # fmt: skip
def test_an_answer_is_read_as_the_item_says_and_compared(text, reading, right):
    assert value("exact_match", text, reference="Lima", reading=json.dumps(reading)) == right


def test_one_of_several_expected_is_enough_and_no_answer_is_ungraded():
    several = {"correct_answers": ["a", "b"]}
    assert [value("exact_match", text, **several) for text in ("a", "b", "c", " ")] == [1, 1, 0, None]


def test_a_pattern_looks_at_the_end_of_a_long_answer():
    how = {"pattern": "x(\\d)"}
    assert extracted("x1" + " " * READ_CHARS, how) is None
    assert extracted("x1" + " " * (READ_CHARS - 2), how) == "1"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "reference: nothing is expected; expected a reference, or correct_answers"),
        ({"reference": "a", "reading": "x"}, "reading: 'x' says not how answers are read"),
        ({"reference": "a", "reading": '{"pattrn": "a"}'}, "reading: .*says not how"),
        ({"reference": "a", "reading": '{"pattern": "("}'}, r"reading: '\(' is no regular expression"),
        ({"reference": "a", "reading": '{"ignore": ["["]}'}, "is no regular expression"),
        ({"reference": "a", "reading": '{"until": "x"}'}, "says not how"),
    ],
)  # fmt: skip
def test_an_item_that_no_answer_could_match_is_refused(tmp_path, fields, told):
    assert re.search(told, problem(tmp_path, "exact_match", **fields))


# Numbers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 18.", "18"),
        ("First 3, then 4, so 7", "7"),
        ("#### 1,234", "1234"),
        ("#### 5\nThat took 12 steps.", "5"),
        (r"So \boxed{42} of 50.", "42"),
        (r"\boxed{1} no, \boxed{\frac{3}{4}}", "3/4"),
        (r"$\dfrac{1}{2}$", "1/2"),
        (r"-\frac{1}{2}", "-1/2"),
        ("3/4 of it", "3/4"),
        ("12,345.50 dollars", "24691/2"),
        ("$1,234,567", "1234567"),
        ("1 234 567 people", "1234567"),
        ("-3", "-3"),
        ("\u22125", "-5"),
        ("2.5e3", "2500"),
        ("6.02 x 10^23", "602" + "0" * 21),
        (rb"3 \u00d7 10^{-2}".decode("unicode_escape"), "3/100"),
        (".5", "1/2"),
        ("1,2,3", "3"),
        ("the 2nd of 3 kg", "3"),
        (r"\boxed{18\text{ km}}", "18"),
        (r"\boxed{1{,}000}", "1000"),
    ],
)
def test_the_number_that_an_answer_comes_to(text, number):
    assert readings(text) == (Fraction(number),)


def test_a_percentage_is_both_readings():
    assert readings("12.5 %") == (Fraction("12.5"), Fraction("0.125"))
    assert value("numeric", "So 12.5%.", reference="0.125") == 1
    assert value("numeric", "0.125", reference="12.5%") == 1
    assert value("numeric", "12.5", reference="12.5%") == 1
    assert value("numeric", "1250", reference="12.5%") == 0


@pytest.mark.parametrize("text", ["none", "", "1/0", "9" * 41, "v1.2.3b"])
def test_what_is_no_number_comes_to_nothing(text):
    assert readings(text) in ((), (Fraction(3),))


@pytest.mark.parametrize(("text", "right"), [("3.13", 1), ("3.15", 1), ("3.1299", 0), ("3.1501", 0), ("none", 0)])
def test_the_tolerance_holds_its_bounds(text, right):
    assert value("numeric", text, reference="3.14", tolerance=0.01) == right


def test_a_reference_without_a_number_is_refused(tmp_path):
    assert "'many' holds no number; expected a number" in problem(tmp_path, "numeric", reference="many")
    assert "tolerance: -1 is not valid" in problem(tmp_path, "numeric", reference="3", tolerance=-1)
    assert problem(tmp_path, "numeric", reference="3", tolerance="0.5") is None


# Contains, pattern


def test_a_text_stands_in_an_answer_as_whole_words():
    said = {"reference": "New York", "correct_answers": ["NYC"]}
    texts = ("in new york.", "NYC!", "Newport", "nycs", "\u200b")
    assert [value("contains", text, **said) for text in texts] == [1, 1, 0, 0, None]


def test_a_pattern_is_found(tmp_path):
    assert [value("regex", text, pattern=r"^\d{3}$") for text in ("123", "1234", "")] == [1, 0, None]
    assert "'(' is no regular expression" in problem(tmp_path, "regex", pattern="(")
    assert "'a*' is found in an empty answer" in problem(tmp_path, "regex", pattern="a*")
    assert "reference: nothing is expected" in problem(tmp_path, "contains")


# JSON

SCHEMA = json.dumps({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer", "minimum": 1}},
                     "additionalProperties": False})  # fmt: skip


@pytest.mark.parametrize(
    ("text", "valid", "of_schema"),
    [
        ('{"n": 1}', 1, 1),
        ('{"n": 0}', 1, 0),
        ('{"n": 1, "m": 2}', 1, 0),
        ('```json\n{"n": 2}\n```', 1, 1),
        ('{"n": 1', 0, 0),
        ("{'n': 1}", 0, 0),
        ('{"n": NaN}', 0, 0),
        ('Sure: {"n": 1}', 0, 0),
        ("[" * 100_000, 0, 0),
        ("", None, None),
    ],
)
def test_json_and_its_schema(text, valid, of_schema):
    assert graded("json", text, schema=SCHEMA) == {"json_valid": valid, "json_schema_valid": of_schema}


def test_without_a_schema_json_alone_is_graded_and_a_wrong_schema_is_refused(tmp_path):
    assert graded("json", "[1]") == {"json_valid": 1, "json_schema_valid": None}
    assert problem(tmp_path, "json", schema=SCHEMA) is None
    assert "schema: not valid JSON" in problem(tmp_path, "json", schema="{")
    assert "is no JSON Schema" in problem(tmp_path, "json", schema='{"type": "numbr"}')
    assert "is no JSON Schema" in problem(tmp_path, "json", schema="[]")


def test_a_schema_reaches_for_nothing_elsewhere():
    """A reference to another place is not fetched: the answer is ungraded, and the run goes on."""
    schema = json.dumps({"$ref": "http://127.0.0.1:9/schema.json"})
    assert graded("json", "{}", schema=schema) == {"json_valid": 1, "json_schema_valid": None}


# The likeliest continuation

CHOICES = {"choices": ["no", "certainly yes"], "reference": "certainly yes"}


@pytest.mark.parametrize(
    ("logprobs", "plain", "a_character"),
    [((-2.0, -1.0), 1, 1), ((-1.0, -2.0), 0, 1), ((-0.1, -2.0), 0, 0), ((-1.0, -1.0), 0, 1), (None, None, None)],
)
def test_the_likeliest_choice_by_the_whole_and_by_a_character(logprobs, plain, a_character):
    """-1 over 2 characters is less than -2 over 13; a tie is no arg-max."""
    found = graded("completion", "whatever", logprobs, **CHOICES)
    assert found == {"completion_accuracy": plain, "completion_accuracy_norm": a_character}


def test_choices_that_cannot_be_told_apart_are_refused(tmp_path):
    assert problem(tmp_path, "completion", **CHOICES) is None
    assert "choices: 1 choices" in problem(tmp_path, "completion", choices=["a"], reference="a")
    assert "choices: 2 choices" in problem(tmp_path, "completion", choices=["a", "a"], reference="a")
    assert "reference: 'c' is not a choice" in problem(tmp_path, "completion", choices=["a", "b"], reference="c")


def test_an_answer_that_a_rubric_judges_is_counted_where_there_is_one():
    assert graded("rubric_judged", "Dear all,") == {"answered_rate": 1}
    assert graded("rubric_judged", "") == {"answered_rate": None}
